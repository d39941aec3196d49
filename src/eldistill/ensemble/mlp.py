# SPDX-License-Identifier: Apache-2.0
"""Members without convolutions: hidden ReLU layers on the flattened image.

Images above 32 pixels a side are first averaged to 8x8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from eldistill.ensemble import conv
from eldistill.numbers import number

RECIPE = ("ensemble/mlp", 1)


@dataclass(frozen=True)
class Numbers:
    """An mlp member's numbers."""

    width: int = number(128, "units of every layer", low=1, high=16384)
    depth: int = number(2, "hidden layers, one after the other", low=1, high=16)
    bias: float = number(0.2, "standard deviation of the biases", low=0)


def _seen(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if max(shape[-2:]) <= 32 else (shape[0], 8, 8)


def draw(numbers: Numbers, shape: tuple[int, int, int], normal) -> dict[str, torch.Tensor]:
    """Weights for images of shape (c, h, w)."""
    weights, before = {}, math.prod(_seen(shape))
    for layer in range(numbers.depth):
        weights |= conv.layer_of(normal, str(layer), (numbers.width, before), numbers.bias)
        before = numbers.width
    return weights


def stages(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> list[torch.Tensor]:
    """Every hidden layer, [n, width]."""
    side = _seen(tuple(images.shape[1:]))[-2:]
    x = images if side == tuple(images.shape[2:]) else F.adaptive_avg_pool2d(images, side)
    x, found = x.flatten(1), []
    for layer in range(numbers.depth):
        x = F.relu(F.linear(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"]))
        found.append(x)
    return found
