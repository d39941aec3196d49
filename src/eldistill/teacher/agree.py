# SPDX-License-Identifier: Apache-2.0
"""Checks that all readers of published networks share: allowed values of keywords, the digest of a file, and whether a network
matches its data setting.

`whole_number`, `real_number`, `list_of`, `or_none` and `one_of` return a function that takes a value and returns whether it is
allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from eldistill.data import latents
from eldistill.external.opcodes import Refused
from eldistill.files import sha256 as sha256_of
from eldistill.outside import check_file

COVERED_BY = "teacher/convert"
PIXELS = {"mean": 0.5, "std": 0.25}  # codec of pixels on [-1, 1], u / 127.5 - 1, which EDM's networks use


def whole_number(low: int, high: int) -> Callable:
    """Allows whole numbers from low to high, both included."""
    return lambda value: type(value) is int and low <= value <= high


def real_number(low: float, high: float) -> Callable:
    """Allows numbers from low to high, both included; NaN is not allowed."""
    return lambda value: type(value) in (int, float) and low <= value <= high


def list_of(one: Callable, most: int = 8) -> Callable:
    """Allows lists of 1 to `most` values that `one` allows."""
    return lambda value: isinstance(value, list) and 1 <= len(value) <= most and all(map(one, value))


def or_none(one: Callable) -> Callable:
    """Allows None and the values that `one` allows."""
    return lambda value: value is None or one(value)


def one_of(*choices) -> Callable:
    """Allows the given choices, of the same type: 0 does not stand for False."""
    return lambda value: any(type(value) is type(choice) and value == choice for choice in choices)


def check_digest(path: Path, wanted: str | None, text: bool = False) -> str:
    """The sha256 digest of a file, as 64 hexadecimal digits. Raises Refused unless it is `wanted`, or `wanted` is None.

    text: whether the file may be a text."""
    found = sha256_of(check_file(path, text=text))
    if wanted not in (None, found):
        raise Refused(f"{path} has the sha256 {found[:16]}…; expected {wanted[:16]}…: give that file, or its digest")
    return found


def check_labels(source: Path, label_dim: int, labels: bool | None) -> None:
    """Raise Refused unless the network has classes (label_dim > 0) exactly if its data setting has `labels`. None accepts both."""
    if labels is not None and bool(label_dim) != labels:
        raise Refused(
            f"{source} has {label_dim} classes, but its data setting has labels: {str(labels).lower()}; set labels to "
            f"{str(not labels).lower()}, or give another network"
        )


def check_codec(source: Path, codec: dict, found: dict | None, channels: int) -> None:
    """Raise Refused if a network was trained on another encoding than that of its data setting: on pixels or latents instead of the
    other, or on latents with other constants.

    codec: of the data setting. found: {scale, bias} of the latents according to the file, a list with one number for each channel;
    None if the file has none. channels: of the network's images."""
    if not latents.is_latent(codec):
        if found is not None:
            raise Refused(
                f"{source} was trained on latents, but its data setting has pixels; give it a data setting with source: latents"
            )
        return
    if channels != len(codec["mean"]):
        raise Refused(
            f"{source} was trained on {channels} channels, but the codec of its data setting has {len(codec['mean'])}; give mean and "
            "std one number for each channel"
        )
    for key, ours in zip(("scale", "bias"), latents.codec_constants(codec), strict=True):
        theirs = None if found is None else found[key]
        same = theirs is None or len(theirs) == channels
        if not (same and (theirs is None or torch.allclose(torch.tensor(theirs), ours.flatten(), 1e-5, 1e-6))):
            raise Refused(
                f"{source} was trained on latents with {key} {theirs}, but the codec of its data setting gives "
                f"{ours.flatten().tolist()}; set its "
                "mean and std to those that the network was trained with"
            )
