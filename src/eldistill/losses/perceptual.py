# SPDX-License-Identifier: Apache-2.0
"""LPIPS, the learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924), on VGG-16.

VGG-16 and LPIPS pool by maxima between the stages, and so does the code of consistency models on CIFAR-10. Their code
on ImageNet (PIQ's LPIPS with `replace_pooling`) pools by averages with the same weights. `lpips_pooling: average`
computes that distance.

The weights are not part of this package. One safetensors file holds the 13 convolutions of VGG-16 under torchvision's
names (`features.N.weight`, `features.N.bias`) and the five linear weights of LPIPS 0.1 (`lin0` … `lin4`, [1, c, 1, 1]).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from eldistill.contract import Codec
from eldistill.errors import Problem
from eldistill.external.weights import FLOATS, is_finite
from eldistill.tensors import load_tensors

RECIPE = ("perceptual", 1)
# VGG-16's convolutions, in five stages; 2x2 pooling stands between two stages.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
POOLINGS: dict[str, Any] = {"max": F.max_pool2d, "average": F.avg_pool2d}
WIDTHS = (64, 128, 256, 512, 512)
SIDE = 224  # smaller images are enlarged, as DMD and CM do
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pixels of ImageNet, in [0, 1]


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights in the file."""
    found: dict[str, tuple[int, ...]] = {}
    before = 3
    for stage, width in zip(STAGES, WIDTHS, strict=True):
        for index in stage:
            found |= {f"features.{index}.weight": (width, before, 3, 3), f"features.{index}.bias": (width,)}
            before = width
    return found | {f"lin{index}": (1, width, 1, 1) for index, width in enumerate(WIDTHS)}


@functools.cache
def load_lpips(
    path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Load the weights of VGG-16 and LPIPS by name, once in a process.

    Raises Problem if a weight is missing, has another shape or type, or is not finite.
    """
    tensors, _ = load_tensors(path, foreign=True)
    for name, shape in weight_shapes().items():
        found = tensors.get(name)
        if found is None or tuple(found.shape) != shape or found.dtype not in FLOATS or not is_finite(found):
            raise Problem(
                f"{path} has no {name} of shape {list(shape)} and finite floats; expected VGG-16 and LPIPS 0.1 in one file"
            )
    return {name: tensors[name].to(device, dtype) for name in weight_shapes()}


def lpips(
    weights: dict[str, torch.Tensor], a: torch.Tensor, b: torch.Tensor, codec: Codec, pooling: str = "max"
) -> torch.Tensor:
    """LPIPS [n], at least 0, of encoded images [n, 1 or 3, h, w]; grey ones are repeated. pooling: one of POOLINGS.

    Raises Problem for latents."""
    total, pool = a.new_zeros(()), POOLINGS[pooling]
    pairs = zip(_features(weights, a, codec, pool), _features(weights, b, codec, pool), strict=True)
    for index, (x, y) in enumerate(pairs):
        squares = (_unit(x) - _unit(y)).square()
        total = total + (squares * weights[f"lin{index}"]).sum(dim=1).mean(dim=(1, 2))
    return total


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-20).sqrt()


@functools.cache  # one copy to a device, because copying waits for a GPU
def _moments(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(each, device=device, dtype=dtype).reshape(1, 3, 1, 1) for each in (MEAN, STD))
    return mean, std


def _features(
    weights: dict[str, torch.Tensor], x: torch.Tensor, codec: Codec, pool: Callable[[torch.Tensor, int], torch.Tensor]
) -> Iterator[torch.Tensor]:
    if isinstance(codec["mean"], list | tuple):
        raise Problem(
            "params.yaml: LPIPS sees pixels, but this data has latents; set distance to huber, or lpips to null"
        )
    x = x * (codec["std"] / 0.5) + codec["mean"]  # [0, 1], as data.decode but unrounded
    x = x.expand(-1, 3, -1, -1)
    if min(x.shape[2:]) < SIDE:
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    mean, std = _moments(x.device, x.dtype)
    x = (x - mean) / std
    for number, stage in enumerate(STAGES):
        x = pool(x, 2) if number else x
        for index in stage:
            x = F.relu(F.conv2d(x, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], padding=1))
        yield x
