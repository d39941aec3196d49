# SPDX-License-Identifier: Apache-2.0
"""Checks that the readers of other people's network files share: which values a keyword may have, a file's digest, and whether a
network sees what its data has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from eldistill.data import latents
from eldistill.external.opcodes import Refused
from eldistill.files import sha256 as sha256_of

COVERED_BY = "teacher/convert"
PIXELS = {"mean": 0.5, "std": 0.25}  # the codec of EDM's range: u / 127.5 - 1


def whole(low: int, high: int) -> Callable:
    """Takes a whole number from low to high."""
    return lambda value: type(value) is int and low <= value <= high


def real(low: float, high: float) -> Callable:
    """Takes a number from low to high."""
    return lambda value: type(value) in (int, float) and low <= value <= high


def every(one: Callable, most: int = 8) -> Callable:
    """Takes a list of 1 to `most` values that `one` takes."""
    return lambda value: isinstance(value, list) and 1 <= len(value) <= most and all(map(one, value))


def or_none(one: Callable) -> Callable:
    """Takes None, and what `one` takes."""
    return lambda value: value is None or one(value)


def among(*choices) -> Callable:
    """Takes one of the choices; 0 and False are not the same."""
    return lambda value: any(type(value) is type(choice) and value == choice for choice in choices)


def digest(path: Path, wanted: str | None) -> str:
    """The sha256 of a file. Raises Refused if it is not `wanted`."""
    found = sha256_of(path)
    if wanted not in (None, found):
        raise Refused(f"{path} has the sha256 {found[:16]}…; expected {wanted[:16]}…: give that file, or its digest")
    return found


def agree_labels(source: Path, label_dim: int, labels: bool | None) -> None:
    """Raise Refused where a network knows classes and its data has none, or the other way round; None takes either."""
    if labels is not None and bool(label_dim) != labels:
        raise Refused(
            f"{source} knows {label_dim} classes, its data has labels: {str(labels).lower()}; make them agree"
        )


def agree_codec(source: Path, codec: dict, found: dict | None, channels: int) -> None:
    """Raise Refused where a network sees other images than its data has: pixels for latents, or latents of other constants.
    found: {scale, bias} of its latents as the file says them, a number for each channel; None if it says nothing."""
    if not latents.is_latent(codec):
        if found is not None:
            raise Refused(f"{source} sees latents, its data has pixels; give it a data setting with source: latents")
        return
    if channels != len(codec["mean"]):
        raise Refused(
            f"{source} sees {channels} channels, the codec of its data has {len(codec['mean'])}; make them agree"
        )
    for key, ours in zip(("scale", "bias"), latents.codec_constants(codec), strict=True):
        theirs = None if found is None else found[key]
        same = theirs is None or len(theirs) == channels
        if not (same and (theirs is None or torch.allclose(torch.tensor(theirs), ours.flatten(), 1e-5, 1e-6))):
            raise Refused(
                f"{source} sees latents with {key} {theirs}, the codec of its data gives {ours.flatten().tolist()}; set its "
                "mean and std to those that the network was trained with"
            )
