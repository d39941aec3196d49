# SPDX-License-Identifier: Apache-2.0
"""LeNet members (LeCun et al. 1998) with ReLU and maxima of 2x2; the feature is the last hidden layer, 84 wide.

Below 12 pixels the second convolution is padded, because its output would be empty otherwise. With maxima the gradients
of two draws of such a member are nearly unrelated, so it is for comparison rather than for training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from eldistill.ensemble import conv
from eldistill.errors import Problem
from eldistill.numbers import number

RECIPE = ("ensemble/lenet", 1)


@dataclass(frozen=True)
class Numbers:
    """A lenet member's numbers."""

    bias: float = number(0.2, "standard deviation of the biases", low=0)


def _padding(side: int) -> int:
    return 0 if side >= 12 else 2


def draw(numbers: Numbers, shape: tuple[int, int, int], normal) -> dict[str, torch.Tensor]:
    """Weights for images of shape (c, h, w), at least 4 pixels a side. Raises Problem for smaller ones."""
    if min(shape[1:]) < 4:
        raise Problem(f"a lenet member on {min(shape[1:])}-pixel images; expected at least 4")
    height, width = ((side // 2 - 4 + 2 * _padding(min(shape[1:]))) // 2 for side in shape[1:])
    weights = conv.layer_of(normal, "0", (6, shape[0], 5, 5), numbers.bias)
    weights |= conv.layer_of(normal, "1", (16, 6, 5, 5), numbers.bias)
    weights |= conv.layer_of(normal, "2", (120, 16 * height * width), numbers.bias)
    return weights | conv.layer_of(normal, "3", (84, 120), numbers.bias)


def stages(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> list[torch.Tensor]:
    """Two maps [n, 6 or 16, ...] and two hidden layers [n, 120], [n, 84]."""
    x, found = images, []
    for layer, padding in ((0, 2), (1, _padding(min(images.shape[2:])))):
        x = F.max_pool2d(F.relu(F.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=padding)), 2)
        found.append(x)
    x = x.flatten(1)
    for layer in (2, 3):
        x = F.relu(F.linear(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"]))
        found.append(x)
    return found
