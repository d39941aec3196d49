# SPDX-License-Identifier: Apache-2.0
"""DhariwalUNet: the ADM U-Net of Dhariwal and Nichol 2021 (arXiv 2105.05233) as trained by
Karras et al. 2022 (arXiv 2206.00364, table 1 and appendix F) on ImageNet at 64x64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from eldistill.diffusion.noise import SIGMA_DATA
from eldistill.networks import layers
from eldistill.networks.precond import EDMPrecond
from eldistill.networks.unet import UNet

RECIPE = ("networks/adm", 1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that defines the denoiser; the defaults are those of the published checkpoint."""

    img_resolution: int  # pixels on a side
    img_channels: int
    label_dim: int = 0  # classes; 0 means unconditional
    augment_dim: int = 0  # width of the augmentation labels; 0 means none
    model_channels: int = 192  # base width
    channel_mult: Sequence[int] = (1, 2, 3, 4)  # width of each resolution / model_channels
    channel_mult_emb: int = 4  # width of the embedding / model_channels
    num_blocks: int = 3  # residual blocks per resolution in the encoder; the decoder has one more
    attn_resolutions: Sequence[int] = (32, 16, 8)  # pixels on a side; absent ones are ignored
    dropout: float = 0.10  # probability, in training mode
    sigma_data: float = SIGMA_DATA  # standard deviation of the images
    sigma_min: float = 0.0  # limits that a sampler respects
    sigma_max: float | None = None  # None: no limit

    def __post_init__(self):
        layers.check_unet(self.img_resolution, self.channel_mult, self.dropout)
        if self.model_channels % 2 or self.model_channels < 2:
            raise ValueError(
                f"model_channels, the width of the noise embedding, must be even, not {self.model_channels}."
            )

    @property
    def embedding_channels(self) -> int:
        """Width of the embedding that enters every block."""
        return self.model_channels * self.channel_mult_emb


def network(**settings) -> EDMPrecond:
    """The denoiser with EDM's preconditioning; keywords and errors are those of `Settings`.

    Its weights are NaN until they are drawn or loaded: use `eldistill.networks.build`.
    """
    s = Settings(**settings)
    return EDMPrecond(DhariwalUNet(s), sigma_data=s.sigma_data, sigma_min=s.sigma_min, sigma_max=s.sigma_max)


# --- initial weights ---


class _FanIn:
    """Weight and bias drawn gain U(-1, 1) / sqrt(fan_in); gain 0 gives a layer that starts at zero."""

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """New initial weights from `generator`."""
        if self.weight is None:
            return
        bound = self.gain / math.sqrt(self.weight[0].numel())
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                drawn = torch.rand(parameter.shape, generator=generator, device="cpu", dtype=torch.float32)
                parameter.copy_((2 * drawn - 1) * bound)


class Linear(_FanIn, layers.Linear):
    """Like the layer in `layers`, with ADM's initial weights."""


class Conv2d(_FanIn, layers.Conv2d):
    """Like the layer in `layers`, with ADM's initial weights."""


class LabelEmbedding(layers.Linear):
    """A row for each class, drawn N(0, 1)."""

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """New initial weights from `generator`."""
        self.weight.copy_(torch.randn(self.weight.shape, generator=generator, device="cpu", dtype=torch.float32))


# --- the network ---


@dataclass(frozen=True)
class Place:
    """A layer of the U-Net: name in the state, numbers of channels, resampling, and whether it has attention."""

    name: str
    in_channels: int
    out_channels: int
    up: bool = False
    down: bool = False
    attends: bool = False


def plan(s) -> tuple[list[Place], list[Place]]:
    """The encoder, highest resolution first, and the decoder, lowest first, of these Settings (EDM2 has them too).

    The first place is a 3x3 convolution, which takes the image; all others are blocks. Each `_block` of the decoder
    takes one output of the encoder, last first: its in_channels include it.
    """
    levels = [(s.img_resolution >> level, s.model_channels * factor) for level, factor in enumerate(s.channel_mult)]
    encoder, decoder, current = [], [], levels[0][1]
    for side, width in levels:
        here, attends = f"{side}x{side}", side in s.attn_resolutions
        if encoder:
            encoder.append(Place(f"{here}_down", current, current, down=True))
        else:
            encoder.append(Place(f"{here}_conv", s.img_channels, current))
        for index in range(s.num_blocks):
            encoder.append(Place(f"{here}_block{index}", current, width, attends=attends))
            current = width
    waiting = [place.out_channels for place in encoder]
    for side, width in reversed(levels):
        here, attends = f"{side}x{side}", side in s.attn_resolutions
        if decoder:
            decoder.append(Place(f"{here}_up", current, current, up=True))
        else:
            decoder.append(Place(f"{here}_in0", current, current, attends=True))
            decoder.append(Place(f"{here}_in1", current, current))
        for index in range(s.num_blocks + 1):
            decoder.append(Place(f"{here}_block{index}", current + waiting.pop(), width, attends=attends))
            current = width
    return encoder, decoder


class Block(layers.UNetBlock):
    """Residual block of ADM: the embedding scales and shifts after the normalisation; sums are not rescaled."""

    linear, convolution = Linear, Conv2d
    eps = 1e-5
    scale = 1.0
    affine_factor = 2
    head_channels = 64

    def __init__(self, s: Settings, place: Place):
        super().__init__(
            place.in_channels,
            place.out_channels,
            s.embedding_channels,
            up=place.up,
            down=place.down,
            heads=self.count_heads(s, place.out_channels) if place.attends else 0,
            dropout=s.dropout,
        )
        self.conv1.gain = 0.0
        if self.heads:
            self.qkv.gain, self.proj.gain = 1.0, 0.0

    @classmethod
    def count_heads(cls, s, channels: int) -> int:
        """The number of attention heads for `channels` channels. Raises ValueError if they cannot have equal widths."""
        return layers.count_heads(channels, cls.head_channels)

    def _skip(self, in_channels: int, out_channels: int, resampling: dict) -> nn.Module:
        if in_channels != out_channels:
            return super()._skip(in_channels, out_channels, resampling)
        resamples = resampling["up"] or resampling["down"]
        return self.convolution(in_channels, out_channels, 0, **resampling) if resamples else nn.Identity()

    def modulate(self, h: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Normalise h [n, c, h, w], then apply scale and shift from the embedding [n, 2 c, 1, 1]."""
        scale, shift = shift.chunk(2, dim=1)
        return self.norm1(h) * (1 + scale) + shift


class DhariwalUNet(UNet):
    """F(x, c_noise), without preconditioning."""

    block = Block  # subclasses override it

    def __init__(self, settings: Settings):
        super().__init__()
        s = settings
        self.img_resolution, self.img_channels = s.img_resolution, s.img_channels
        self.label_dim, self.augment_dim = s.label_dim, s.augment_dim
        noise_width, width = s.model_channels, s.embedding_channels
        self.map_noise = layers.PositionalEmbedding(noise_width, endpoint=False)
        self.map_augment = Linear(s.augment_dim, noise_width, bias=False, gain=0.0) if s.augment_dim else None
        self.map_layer0 = Linear(noise_width, width)
        self.map_layer1 = Linear(width, width)
        self.map_label = LabelEmbedding(s.label_dim, width, bias=False) if s.label_dim else None
        (first, *encoder), decoder = plan(s)
        self.enc = nn.ModuleDict({first.name: Conv2d(first.in_channels, first.out_channels, 3)})
        self.enc.update({place.name: self.block(s, place) for place in encoder})
        self.dec = nn.ModuleDict({place.name: self.block(s, place) for place in decoder})
        self.out_norm = self.block.normalisation(decoder[-1].out_channels, self.block.eps)
        self.out_conv = Conv2d(decoder[-1].out_channels, s.img_channels, 3, gain=0.0)
        side = s.img_resolution >> len(s.channel_mult) - 1
        self.features_shape = (decoder[0].in_channels, side, side)

    def _embed(self, c_noise, labels, augment_labels) -> torch.Tensor:
        embedding, labels, augment_labels = layers.cast_like(
            self.map_layer0.weight, self.map_noise(c_noise), labels, augment_labels
        )
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels)
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None and labels is not None:
            embedding = embedding + self.map_label(labels)
        return F.silu(embedding)

    def _leave(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_conv(F.silu(self.out_norm(x)))
