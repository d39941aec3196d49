# SPDX-License-Identifier: Apache-2.0
"""Plain convolutional members: depth times (3x3 convolution, norm, ReLU, 2x2 mean), flattened.

The network of dataset condensation by distribution matching (Zhao & Bilen 2021, arXiv 2110.04181), with He
initialisation. Without norm it sees contrast and brightness; with instance norm it is blind to them but sees noise:
hence mixed ensembles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from eldistill.files import Problem
from eldistill.schema import number

VERSION = 1


@dataclass(frozen=True)
class Numbers:
    """A conv member's numbers."""

    width: int = number(16, "channels of every layer", low=1, high=4096)
    depth: int = number(2, "layers; each halves the resolution", low=1, high=8)
    norm: str = number(
        "none", "none, group (4 groups), instance; batch is refused", choices=("none", "group", "instance", "batch")
    )
    bias: float = number(0.2, "standard deviation of the biases", low=0)


def draw(numbers: Numbers, shape: tuple[int, int, int], normal: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights for images of shape (c, h, w). Raises Problem for batch norm or too many layers."""
    if numbers.norm == "batch":
        raise Problem(
            "an embedding network with norm: batch; expected none, group or instance: batch norm normalises generated "
            "and real batches each by itself, which hides the very shift that EL measures, and couples the images"
        )
    channels, side = shape[0], min(shape[1:])
    if side >> numbers.depth < 1:
        raise Problem(
            f"a conv member of depth {numbers.depth} on {side}-pixel images; expected a depth of at most {int(math.log2(side))}"
        )
    if numbers.norm == "group" and numbers.width % min(4, numbers.width):
        raise Problem(
            f"a conv member of width {numbers.width} with norm: group; expected a multiple of 4, or less than 4"
        )
    weights = {}
    for layer in range(numbers.depth):
        fan_in = channels * 9
        weights[f"{layer}.weight"] = normal(f"{layer}.weight", numbers.width, channels, 3, 3) * math.sqrt(2 / fan_in)
        weights[f"{layer}.bias"] = normal(f"{layer}.bias", numbers.width) * numbers.bias
        channels = numbers.width
    return weights


def features(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """[n, c, h, w] to [n, width * (h / 2^depth) * (w / 2^depth)]."""
    x = images
    for layer in range(numbers.depth):
        x = F.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1)
        if numbers.norm != "none":
            x = F.group_norm(x, numbers.width if numbers.norm == "instance" else min(4, numbers.width))
        x = F.avg_pool2d(F.relu(x), 2)
    return x.flatten(1)
