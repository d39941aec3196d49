# SPDX-License-Identifier: Apache-2.0
"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929) of 8x8 patches with pre-norm blocks.

The feature is the mean of the tokens after the last layer norm. At initialisation it is nearly linear in the pixels, so
such members are weak on their own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from eldistill.errors import Problem
from eldistill.numbers import number

RECIPE = ("ensemble/vit", 1)
PATCHES = 8  # a side


@dataclass(frozen=True)
class Numbers:
    """A vit member's numbers."""

    width: int = number(192, "width of a token", low=1, high=4096)
    depth: int = number(4, "blocks of attention and perceptron", low=1, high=32)
    heads: int = number(3, "heads of attention; divides the width", low=1, high=64)
    std: float = number(0.02, "standard deviation of the weights, truncated at two standard deviations", above=0)


def draw(numbers: Numbers, shape: tuple[int, int, int], normal) -> dict[str, torch.Tensor]:
    """Weights for images of shape (c, h, w). Raises Problem if 8 does not divide a side, or heads the width."""
    if any(side % PATCHES for side in shape[1:]):
        raise Problem(f"a vit member on images of {shape[1]}x{shape[2]} pixels; expected multiples of {PATCHES}")
    if numbers.width % numbers.heads:
        raise Problem(
            f"a vit member of width {numbers.width} with {numbers.heads} heads; expected heads that divide the width"
        )
    size = shape[0] * math.prod(side // PATCHES for side in shape[1:])

    def cut(name: str, *dims: int) -> torch.Tensor:
        # Maps each normal to a truncated one by their distribution functions, so that no number is drawn again.
        low = torch.special.ndtr(torch.tensor(-2.0, dtype=torch.float64))
        share = torch.special.ndtr(normal(name, *dims).double())
        return (torch.special.ndtri(low + share * (1 - 2 * low)) * numbers.std).float()

    weights = {"patch": cut("patch", numbers.width, size), "place": cut("place", PATCHES**2, numbers.width)}
    for block in range(numbers.depth):
        for name, rows, columns in (("qkv", 3, 1), ("out", 1, 1), ("up", 4, 1), ("down", 1, 4)):
            weights[f"{block}.{name}"] = cut(f"{block}.{name}", rows * numbers.width, columns * numbers.width)
    return weights


def stages(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> list[torch.Tensor]:
    """The mean token after every block, [n, width], each after a layer norm."""
    n, c, height, width = images.shape
    patches = images.reshape(n, c, PATCHES, height // PATCHES, PATCHES, width // PATCHES)
    x = F.linear(patches.permute(0, 2, 4, 1, 3, 5).reshape(n, PATCHES**2, -1), weights["patch"]) + weights["place"]
    found, norm = [], lambda x: F.layer_norm(x, x.shape[-1:])
    for block in range(numbers.depth):
        qkv = F.linear(norm(x), weights[f"{block}.qkv"]).reshape(n, PATCHES**2, 3, numbers.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        x = x + F.linear(attention.transpose(1, 2).reshape(n, PATCHES**2, -1), weights[f"{block}.out"])
        x = x + F.linear(F.gelu(F.linear(norm(x), weights[f"{block}.up"])), weights[f"{block}.down"])
        found.append(norm(x).mean(dim=1))
    return found
