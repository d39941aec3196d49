# SPDX-License-Identifier: Apache-2.0
"""No network: the pixels themselves. With it EL becomes the `pixel-mmd` control."""

from __future__ import annotations

from dataclasses import dataclass

import torch

VERSION = 1


@dataclass(frozen=True)
class Numbers:
    """The identity has none."""


def draw(numbers: Numbers, shape: tuple[int, int, int], normal) -> dict[str, torch.Tensor]:
    """No weights."""
    return {}


def features(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """[n, c, h, w] to [n, c * h * w]."""
    return images.flatten(1)
