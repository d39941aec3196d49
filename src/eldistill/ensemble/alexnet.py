# SPDX-License-Identifier: Apache-2.0
"""AlexNet members as dataset condensation has them (Zhao & Bilen 2021, arXiv 2110.04181): five convolutions, no norm,
maxima of 2x2 after the first, the second and the last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from eldistill.ensemble import conv
from eldistill.errors import Problem
from eldistill.numbers import number

RECIPE = ("ensemble/alexnet", 1)
LAYERS = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))  # channels, kernel, halving


@dataclass(frozen=True)
class Numbers:
    """An alexnet member's numbers."""

    scale: float = number(1.0, "factor of the number of channels of every layer", above=0, high=4)
    bias: float = number(0.2, "standard deviation of the biases", low=0)


def draw(numbers: Numbers, shape: tuple[int, int, int], normal) -> dict[str, torch.Tensor]:
    """Weights for images of shape (c, h, w), at least 8 pixels a side. Raises Problem for smaller ones."""
    if min(shape[1:]) < 8:
        raise Problem(f"an alexnet member on {min(shape[1:])}-pixel images; expected at least 8")
    weights, before = {}, shape[0]
    for layer, (channels, kernel, _) in enumerate(LAYERS):
        width = max(1, round(channels * numbers.scale))
        weights |= conv.layer_of(normal, str(layer), (width, before, kernel, kernel), numbers.bias)
        before = width
    return weights


def stages(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> list[torch.Tensor]:
    """The output of every layer; the last is [n, 192 scale, h / 8, w / 8]."""
    x, found = images, []
    for layer, (_, kernel, halving) in enumerate(LAYERS):
        x = F.relu(F.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=kernel // 2))
        x = F.max_pool2d(x, 2) if halving else x
        found.append(x)
    return found
