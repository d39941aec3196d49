# SPDX-License-Identifier: Apache-2.0
"""Whitened pixels: a stronger control than plain ones, and no random network either.

Principal components of the calibration images, each over its deviation: every direction in which real images vary
counts alike. A ridge keeps directions in which they do not from counting at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eldistill.numbers import number

RECIPE = ("ensemble/whitened", 1)


@dataclass(frozen=True)
class Numbers:
    """The whitening's only number."""

    ridge: float = number(0.01, "added to every variance, in units of their mean", above=0)


def draw(numbers: Numbers, shape: tuple[int, int, int], normal) -> dict[str, torch.Tensor]:
    """Nothing is random."""
    return {}


def fit(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> dict[str, torch.Tensor]:
    """The map of the calibration images [n, c, h, w]: float32 [D, D], rows are components."""
    flat = images.flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    return {"map": (vectors / (values.clamp(min=0) + numbers.ridge * values.mean()).sqrt()).T.float().contiguous()}


def stages(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> list[torch.Tensor]:
    """[n, D], D = c h w."""
    return [images.flatten(1) @ weights["map"].T]
