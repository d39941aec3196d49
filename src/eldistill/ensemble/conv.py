# SPDX-License-Identifier: Apache-2.0
"""Plain convolutional members: `depth` layers of 3x3 convolution, norm, activation and halving of the resolution.

The network of dataset condensation by distribution matching (Zhao & Bilen 2021, arXiv 2110.04181), with He
initialisation. Without norm its features depend on contrast and brightness; with instance norm they do
not, but they depend on noise, which is why ensembles mix both. Other families use the functions below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from eldistill.errors import Problem
from eldistill.numbers import number

RECIPE = ("ensemble/conv", 1)


@dataclass(frozen=True)
class Numbers:
    """A conv member's numbers."""

    width: int = number(16, "channels of every layer", low=1, high=4096)
    depth: int = number(2, "layers; each halves the resolution", low=1, high=8)
    norm: str = number(
        "none", "none, group (4 groups), instance, layer; batch is refused",
        choices=("none", "group", "instance", "layer", "batch"),
    )  # fmt: skip
    bias: float = number(0.2, "standard deviation of the biases", low=0)
    activation: str = number(
        "relu", "relu, leaky (slope 0.01), silu, or linear: no activation",
        choices=("relu", "leaky", "silu", "linear"), neutral=True,
    )  # fmt: skip
    pool: str = number(
        "mean", "how a layer halves the resolution: mean or max of 2x2, or a convolution of stride 2",
        choices=("mean", "max", "stride"), neutral=True,
    )  # fmt: skip
    init: str = number(
        "he", "he: normal, variance 2 / fan-in; torch: uniform, torch's default, that of dataset condensation",
        choices=("he", "torch"), neutral=True,
    )  # fmt: skip


def draw(numbers: Numbers, shape: tuple[int, int, int], normal: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights for images of shape (c, h, w). Raises Problem for batch norm or too many layers."""
    check_norm(numbers.norm, numbers.width)
    channels, side = shape[0], min(shape[1:])
    if side >> numbers.depth < 1:
        raise Problem(
            f"a conv member of depth {numbers.depth} on {side}-pixel images; expected a depth of at most {int(math.log2(side))}"
        )
    weights = {}
    for layer in range(numbers.depth):
        weights |= layer_of(normal, str(layer), (numbers.width, channels, 3, 3), numbers.bias, numbers.init)
        channels = numbers.width
    return weights


def stages(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> list[torch.Tensor]:
    """The output of every layer: from [n, c, h, w] to [n, width, h / 2^layer, w / 2^layer]."""
    x, found = images, []
    for layer in range(numbers.depth):
        stride = 2 if numbers.pool == "stride" else 1
        x = F.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], stride=stride, padding=1)
        x = ACTIVATIONS[numbers.activation](normalised(x, numbers.norm))
        x = POOLS[numbers.pool](x)
        found.append(x)
    return found


# --- parts ---

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu, "leaky": lambda x: F.leaky_relu(x, 0.01), "silu": F.silu, "linear": lambda x: x,
}  # fmt: skip
POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda x: F.avg_pool2d(x, 2), "max": lambda x: F.max_pool2d(x, 2), "stride": lambda x: x,
}  # fmt: skip


def layer_of(normal, name: str, shape: tuple[int, ...], bias: float, init: str = "he") -> dict[str, torch.Tensor]:
    """Weight [out, in, ...] and bias [out] of one layer, by name.

    normal: as for `draw`. shape: of the weight. bias: standard deviation of the bias, for init he. init: see `Numbers`.
    """
    fan_in = math.prod(shape[1:])
    drawn, shift = normal(f"{name}.weight", *shape), normal(f"{name}.bias", shape[0])
    if init == "he":
        return {f"{name}.weight": drawn * math.sqrt(2 / fan_in), f"{name}.bias": shift * bias}
    return {f"{name}.{part}": torch.erf(each / math.sqrt(2)) / math.sqrt(fan_in)
            for part, each in (("weight", drawn), ("bias", shift))}  # fmt: skip


def check_norm(norm: str, *widths: int) -> None:
    """Check a norm for layers of these widths.

    Raises Problem for batch norm, or a width that four groups do not divide.
    """
    if norm == "batch":
        raise Problem(
            "an embedding network with norm: batch; expected none, group or instance: batch norm normalises generated "
            "and real batches each by itself, which hides the very shift that EL measures, and couples the images"
        )
    for width in widths:
        if norm == "group" and width % min(4, width):
            raise Problem(
                f"an embedding network of width {width} with norm: group; expected a multiple of 4, or less than 4"
            )


def normalised(x: torch.Tensor, norm: str) -> torch.Tensor:
    """x [n, c, h, w] normalised by none, group, instance or layer norm, without a learned scale. Same shape."""
    if norm == "none":
        return x
    groups = {"instance": x.shape[1], "group": min(4, x.shape[1]), "layer": 1}[norm]
    return F.group_norm(x, groups)
