# SPDX-License-Identifier: Apache-2.0
"""Small residual members (He et al. 2016, arXiv 1512.03385): a stem, then one basic block a stage; each stage after the
first doubles the width and halves the resolution, by means of 2x2 in the shortcut too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from eldistill.ensemble import conv
from eldistill.errors import Problem
from eldistill.numbers import number

RECIPE = ("ensemble/resnet", 1)


@dataclass(frozen=True)
class Numbers:
    """A resnet member's numbers."""

    width: int = number(32, "channels of the first stage; each further stage has twice as many", low=1, high=1024)
    depth: int = number(3, "stages, each after the first at half the resolution", low=1, high=6)
    norm: str = number(
        "instance", "none, group (4 groups), instance, layer; batch is refused",
        choices=("none", "group", "instance", "layer", "batch"),
    )  # fmt: skip
    bias: float = number(0.2, "standard deviation of the biases", low=0)


def draw(numbers: Numbers, shape: tuple[int, int, int], normal) -> dict[str, torch.Tensor]:
    """Weights for images of shape (c, h, w). Raises Problem for batch norm, or a last stage of one pixel."""
    conv.check_norm(numbers.norm, *(numbers.width << stage for stage in range(numbers.depth)))
    side = min(shape[1:])
    if side >> (numbers.depth - 1) < 2:
        raise Problem(f"a resnet member of depth {numbers.depth} on {side}-pixel images; its last stage would have no more than "
                      "one pixel, whose norm is a constant: expected fewer stages")  # fmt: skip
    weights = conv.layer_of(normal, "stem", (numbers.width, shape[0], 3, 3), numbers.bias)
    before = numbers.width
    for stage in range(numbers.depth):
        width = numbers.width << stage
        weights |= conv.layer_of(normal, f"{stage}.first", (width, before, 3, 3), numbers.bias)
        weights |= conv.layer_of(normal, f"{stage}.second", (width, width, 3, 3), numbers.bias)
        if width != before:
            weights |= conv.layer_of(normal, f"{stage}.shortcut", (width, before, 1, 1), numbers.bias)
        before = width
    return weights


def stages(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> list[torch.Tensor]:
    """The output of every stage: [n, width 2^stage, h / 2^stage, w / 2^stage]."""

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    x = F.relu(conv.normalised(layer("stem", images), numbers.norm))
    found = []
    for stage in range(numbers.depth):
        if stage:
            x = F.avg_pool2d(x, 2)
        inner = F.relu(conv.normalised(layer(f"{stage}.first", x), numbers.norm))
        inner = conv.normalised(layer(f"{stage}.second", inner), numbers.norm)
        x = F.relu(inner + (layer(f"{stage}.shortcut", x) if f"{stage}.shortcut.weight" in weights else x))
        found.append(x)
    return found
