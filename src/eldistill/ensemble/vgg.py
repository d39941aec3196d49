# SPDX-License-Identifier: Apache-2.0
"""VGG11 members (Simonyan & Zisserman 2015, arXiv 1409.1556) without fully connected layers, pooling by 2x2 means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from eldistill.ensemble import conv
from eldistill.errors import Problem
from eldistill.numbers import number

RECIPE = ("ensemble/vgg", 1)
BLOCKS = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # channels of each convolution, in widths; a halving after each block


@dataclass(frozen=True)
class Numbers:
    """A vgg member's numbers."""

    width: int = number(64, "channels of the first layer; the last have eight times as many", low=1, high=512)
    norm: str = number(
        "instance", "none, group (4 groups), instance, layer; batch is refused",
        choices=("none", "group", "instance", "layer", "batch"),
    )  # fmt: skip
    bias: float = number(0.2, "standard deviation of the biases", low=0)


def draw(numbers: Numbers, shape: tuple[int, int, int], normal) -> dict[str, torch.Tensor]:
    """Weights for images of shape (c, h, w), at least 32 pixels a side.

    Raises Problem for smaller ones, or batch norm.
    """
    conv.check_norm(numbers.norm, *(numbers.width * factor for layers in BLOCKS for factor in layers))
    if min(shape[1:]) < 32:
        raise Problem(
            f"a vgg member on {min(shape[1:])}-pixel images; expected at least 32: its last norm would see one pixel"
        )
    weights, before = {}, shape[0]
    for block, layers in enumerate(BLOCKS):
        for layer, factor in enumerate(layers):
            width = numbers.width * factor
            weights |= conv.layer_of(normal, f"{block}.{layer}", (width, before, 3, 3), numbers.bias)
            before = width
    return weights


def stages(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> list[torch.Tensor]:
    """The output of each of the five blocks: [n, c, h / 2^block, w / 2^block]."""
    x, found = images, []
    for block, layers in enumerate(BLOCKS):
        for layer in range(len(layers)):
            x = F.conv2d(x, weights[f"{block}.{layer}.weight"], weights[f"{block}.{layer}.bias"], padding=1)
            x = F.relu(conv.normalised(x, numbers.norm))
        x = F.avg_pool2d(x, 2)
        found.append(x)
    return found
