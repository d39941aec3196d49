# SPDX-License-Identifier: Apache-2.0
"""Pixels as features: nothing is trained, nothing is fetched."""

from __future__ import annotations

import torch

from eldistill.evaluate.features import Space

COVERED_BY = "evaluate"
NAMES = ("pixels",)


def load_space(name: str, device: str = "cpu") -> Space:
    """The function `pixels`; it stays on the device of its images."""
    return pixels


def pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 [n, c, h, w] to [n, c * h * w] in [0, 1]; above 16x16 averaged to 16x16 (a Fréchet distance needs n >> D)."""
    x = images.float() / 255
    if x.shape[-1] > 16:
        x = torch.nn.functional.adaptive_avg_pool2d(x, 16)
    return x.flatten(1)
