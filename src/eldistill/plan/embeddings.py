# SPDX-License-Identifier: Apache-2.0
"""Checks of the members of an ensemble, by themselves and against the size of the images that they will see.

The families refuse the same when they are drawn; a test compares both.
"""

from __future__ import annotations

from typing import Any

from eldistill.plan.schema import Wrong

PATCHES = 8  # of a vit member, a side
LEAST = {"alexnet": 8, "vgg": 32, "lenet": 4}  # pixels a side
BLOCKS = (1, 2, 4, 8)  # widths of a vgg member's layers, in units of the first


def check_ensemble(where: str, section: dict[str, Any]) -> None:
    """Raise Wrong at settings of an ensemble that contradict each other. section: resolved. where: its place in messages."""
    for index, member in enumerate(section["members"]):
        place, family = f"{where}.members[{index}]", member["family"]
        if member.get("norm") == "batch":
            raise Wrong(
                f"{place}.norm",
                "is 'batch'; expected none, group, instance or layer, because batch norm normalises generated and real images each by "
                "themselves, which hides the shift that EL measures",
            )
        if member.get("norm") == "group" and (odd := [each for each in _widths(member) if each % min(4, each)]):
            raise Wrong(
                f"{place}.width",
                f"is {member['width']} and norm is group, which has 4 groups, but a layer has {odd[0]} channels; "
                "set the width to a multiple of 4, or norm to another",
            )
        if family == "vit" and member["width"] % member["heads"]:
            raise Wrong(
                f"{place}.heads",
                f"is {member['heads']} and width is {member['width']}; set heads to a divisor of the width",
            )
    if section["anchor"] and section["redraw"]:
        raise Wrong(
            f"{where}.anchor",
            f"is true and redraw is {section['redraw']}, but what is recorded of all images needs a single draw; set redraw to 0, or "
            "anchor to false",
        )


def _widths(member: dict[str, Any]) -> list[int]:
    # Channels of the layers of a member that have a norm.
    if member["family"] == "resnet":
        return [member["width"] << stage for stage in range(member["depth"])]
    if member["family"] == "vgg":
        return [member["width"] * factor for factor in BLOCKS]
    return [member["width"]]


def check_members(where: str, section: dict[str, Any], side: int, seen: str) -> None:
    """Raise Wrong if a member cannot see images of `side` pixels. seen: the key that decides the size, for messages."""
    for index, member in enumerate(section["members"]):
        if wrong := _too_deep(member, side):
            key, text = wrong
            raise Wrong(
                f"{where}.members[{index}].{key}", f"is {member[key]!r}, but {seen} has {side} pixels a side; {text}"
            )


def _too_deep(member: dict[str, Any], side: int) -> tuple[str, str] | None:
    # (key, what to type) of a member that does not fit; None if it fits.
    family = member["family"]
    if family == "conv" and not side >> member["depth"]:
        return "depth", f"each layer halves them: set depth to at most {side.bit_length() - 1}"
    if family == "resnet" and side >> (member["depth"] - 1) < 2:
        return (
            "depth",
            f"each stage after the first halves them, and 2 must be left: set depth to at most {side.bit_length() - 1}",
        )
    if side < LEAST.get(family, 0):
        return "family", f"it needs {LEAST[family]} or more: choose another family"
    if family == "vit" and side % PATCHES:
        return "family", f"it needs a multiple of {PATCHES}: choose another family, or another resolution"
    if family == "identity" and side % member["mean"]:
        return "mean", "set mean to a divisor of that"
    return None
