# SPDX-License-Identifier: Apache-2.0
"""Whitened pixels as features: a stronger control than plain pixels, also without a random network.

The features are principal components of the calibration images, each divided by its standard deviation, so that all
directions in which real images vary have equal weight. A ridge suppresses directions in which they hardly vary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eldistill.numbers import number

RECIPE = ("ensemble/whitened", 1)
RELATED = ("pixels",)  # a linear map of what this feature space has


@dataclass(frozen=True)
class Numbers:
    """The whitening's only number."""

    ridge: float = number(0.01, "added to every variance, relative to the mean variance", above=0)


def draw(numbers: Numbers, shape: tuple[int, int, int], normal) -> dict[str, torch.Tensor]:
    """Return no weights, because nothing is random."""
    return {}


def fit(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> dict[str, torch.Tensor]:
    """{"map": [D, D]} from the calibration images [n, c, h, w], float32; its rows are scaled principal components."""
    flat = images.flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    return {"map": (vectors / (values.clamp(min=0) + numbers.ridge * values.mean()).sqrt()).T.float().contiguous()}


def stages(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> list[torch.Tensor]:
    """One stage: whitened pixels [n, D], D = c h w."""
    return [images.flatten(1) @ weights["map"].T]
