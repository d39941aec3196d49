# SPDX-License-Identifier: Apache-2.0
"""Pixels as features, without any network."""

from __future__ import annotations

import torch

from eldistill.evaluate.features import Space

COVERED_BY = "evaluate"
NAMES = ("pixels",)


def load_space(name: str, device: str = "cpu") -> Space:
    """Load the function `pixels`, which computes on the device of its images."""
    return pixels


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Pixels of uint8 images [n, c, h, w] in [0, 1], as [n, c * h * w]. Images above 16x16 are averaged to 16x16, because a Fréchet
    distance needs many more images than dimensions."""
    x = images.float() / 255
    if x.shape[-1] > 16:
        x = torch.nn.functional.adaptive_avg_pool2d(x, 16)
    return x.flatten(1)
