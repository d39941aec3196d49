# SPDX-License-Identifier: Apache-2.0
"""Pixels as features, without a network.

EL with them is the `pixel-mmd` control; members with several `mean` form a pyramid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from eldistill.errors import Problem
from eldistill.numbers import number

RECIPE = ("ensemble/identity", 1)
RELATED = ("pixels",)  # it compares what this feature space has


@dataclass(frozen=True)
class Numbers:
    """The identity's only number."""

    mean: int = number(1, "side in pixels of the squares that are averaged first", low=1, high=64, neutral=True)


def draw(numbers: Numbers, shape: tuple[int, int, int], normal) -> dict[str, torch.Tensor]:
    """Return no weights. Raises Problem if the squares do not fill the image."""
    if any(side % numbers.mean for side in shape[1:]):
        raise Problem(
            f"an identity member with mean: {numbers.mean} on {shape[1]}x{shape[2]} pixels; expected a divisor of both"
        )
    return {}


def stages(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> list[torch.Tensor]:
    """The image itself, [n, c, h / mean, w / mean]."""
    return [F.avg_pool2d(images, numbers.mean) if numbers.mean > 1 else images]
