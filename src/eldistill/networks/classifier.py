# SPDX-License-Identifier: Apache-2.0
"""Small classifiers whose penultimate layer is a feature space for metrics: the two judges.

`conv`: 3x3 conv 16, conv 32 with SiLU and 2x2 mean; `mlp`: two hidden layers on the pixels. They share neither
architecture nor seed, and nothing with EL's random networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from eldistill.networks.layers import Conv2d, Linear

RECIPE = ("networks/classifier", 1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """body: conv or mlp. features: width of the penultimate layer. label_dim: number of classes."""

    img_resolution: int
    img_channels: int
    label_dim: int
    body: str = "conv"
    features: int = 32


class Classifier(nn.Module):
    """A classifier from encoded images [n, c, h, w] to logits [n, label_dim]; `embed` returns its features."""

    def __init__(self, settings: Settings):
        super().__init__()
        channels, side = settings.img_channels, settings.img_resolution
        self.body = settings.body
        if settings.body == "conv":
            self.conv0, self.conv1 = Conv2d(channels, 16, 3), Conv2d(16, 32, 3)
            self.hidden = Linear(32 * min(side // 4, 4) ** 2, settings.features)
        elif settings.body == "mlp":
            self.first = Linear(channels * side**2, 128)
            self.hidden = Linear(128, settings.features)
        else:
            raise ValueError(f"classifier body {settings.body!r}; expected conv or mlp")
        self.pool = min(side // 4, 4)
        self.head = Linear(settings.features, settings.label_dim)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """The penultimate layer, [n, features]."""
        x = 2 * images  # encoded images have deviation 0.5
        if self.body == "conv":
            x = F.avg_pool2d(F.silu(self.conv0(x)), 2)
            x = F.adaptive_avg_pool2d(F.silu(self.conv1(x)), self.pool)
        else:
            x = F.silu(self.first(x.flatten(1)))
        return F.silu(self.hidden(x.flatten(1)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [n, label_dim]."""
        return self.head(self.embed(images))


def network(**settings) -> Classifier:
    """The classifier; keywords are those of `Settings`.

    Its weights are NaN until eldistill.networks.build draws them.
    """
    return Classifier(Settings(**settings))
