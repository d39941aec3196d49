# SPDX-License-Identifier: Apache-2.0
"""DMD2's trained discriminator (Yin et al. 2024, arXiv 2405.14867, section 4.3): a head on the encoder of a denoiser.

The authors use convolutions of torch with their default initialisation: weights and biases uniform within 1 / sqrt(fan
in), so that a weight has the standard deviation 1 / sqrt(3 fan in) (He et al. 2015, arXiv 1502.01852, with the gain 1 /
sqrt(3)). The layers of EDM's networks start at 1 / sqrt((fan in + fan out) / 2) with biases of 0, which is larger by
sqrt(3) in the first layer.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from eldistill.contract import Denoiser
from eldistill.errors import Problem
from eldistill.networks import layers

RECIPE = ("head", 1)


class Head(nn.Module):
    """Features [n, c, s, s] of a denoiser's encoder -> logits [n, 1].

    Halvings by 4x4 convolutions until s is at most 4, one convolution over all that is left, one to a logit; group
    norm and SiLU between. For 8x8 this is DMD2's head. Its weights and biases are drawn from `seed`.
    """

    def __init__(self, channels: int, side: int, seed: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        while side > 4 and side % 2 == 0:
            parts += [_Conv(channels, channels, 4, 2, 1), layers.GroupNorm(channels, 1e-5), nn.SiLU()]
            side //= 2
        parts += [_Conv(channels, channels, side, side, 0), layers.GroupNorm(channels, 1e-5), nn.SiLU()]
        self.parts = nn.Sequential(*parts, _Conv(channels, 1, 1, 1, 0))
        layers.initialise(self, torch.Generator(device="cpu").manual_seed(seed))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.parts(features).flatten(1)


class _Conv(layers.Conv2d):
    # A strided convolution, which the U-Nets do not have, with the initial weights of torch instead of those of EDM.
    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__(in_channels, out_channels, kernel)
        self.stride, self.padding = stride, padding

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Weights, then biases, U(-b, b) with b = 1 / sqrt(fan in), from `generator`."""
        weight, bias = self._both()
        bound = 1 / math.sqrt(weight[0].numel())
        for values in (weight, bias):
            uniform = torch.rand(values.shape, generator=generator, device="cpu", dtype=torch.float32)
            values.copy_((2 * uniform - 1) * bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._both()
        return F.conv2d(x, weight, bias, stride=self.stride, padding=self.padding)

    def _both(self) -> tuple[torch.Tensor, torch.Tensor]:
        # A layer without a kernel has neither; this one has one.
        assert self.weight is not None and self.bias is not None
        return self.weight, self.bias


def add_head(denoiser: Denoiser, seed: int) -> Denoiser:
    """The denoiser with a trainable `head` on its encoder. Raises Problem if it has one already."""
    if hasattr(denoiser, "head"):
        raise Problem("fake_score has a discriminator already; use the supplement gan with a method that has none")
    channels, side, _ = denoiser.features_shape
    reference = next(denoiser.parameters())
    denoiser.head = Head(channels, side, seed).to(reference)
    return denoiser
