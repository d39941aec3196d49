# SPDX-License-Identifier: Apache-2.0
"""The schema of the descriptions in files of this project: what each key that other modules read must be.

Files may come from elsewhere. Keys that are not listed are not checked, and nothing reads them without a check of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from eldistill.errors import Problem

COVERED_BY = "networks/layers"
LONGEST = 100_000  # values of a list


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float = -1e9, high: float = 1e9) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def _list(of: Callable[[Any], bool], longest: int = LONGEST, shortest: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and shortest <= len(value) <= longest and all(map(of, value))


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4096


def _codec(value: Any) -> bool:
    if not isinstance(value, dict) or not {"mean", "std"} <= value.keys():
        return False
    mean, std = value["mean"], value["std"]
    if isinstance(mean, list) or isinstance(std, list):
        fits = _list(_number(), 64, 1)(mean) and _list(_number(1e-9), 64, 1)(std) and len(mean) == len(std)
    else:
        fits = _number()(mean) and _number(1e-9)(std)
    return fits and (value.get("vae") is None or _text(value["vae"]))


def _sampler(value: Any) -> bool:
    steps = value.get("steps") if isinstance(value, dict) else None
    levels = _list(_number(0), 1000, 1)
    fits = (
        isinstance(steps, dict)
        and bool(steps)
        and all(key.isascii() and key.isdecimal() and levels(each) for key, each in steps.items())
    )
    return fits and _number(0)(value.get("boundary", 0.0))


# {key: (what it must be, whether a value is that)}
SCHEMA: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "shape": ("channels, height and width", _list(_whole(1, 65536), 3, 3)),
    "label_dim": ("a whole number from 0", _whole(0, 1_000_000)),
    "classes": ("a whole number from 0", _whole(0, 1_000_000)),
    "codec": ("mean and std, numbers or lists of one length", _codec),
    "sampler": ("steps with their noise levels", _sampler),
    "rotations": ("true or false", lambda value: isinstance(value, bool)),
    "class_names": ("a list of texts", _list(_text)),
}


def check_description(path, about: dict) -> None:
    """Raise Problem for the first key of a description whose value is not what it must be. path: of the file, for the message."""
    for key, (what, fits) in SCHEMA.items():
        if key in about and not fits(about[key]):
            raise Problem(
                f"{path} says that its {key} is {ascii(about[key])[:60]}; expected {what}: make or fetch it again"
            )
