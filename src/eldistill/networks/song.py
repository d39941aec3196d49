# SPDX-License-Identifier: Apache-2.0
"""SongUNet: the DDPM++ and NCSN++ U-Nets of Song et al. 2021 (arXiv 2011.13456) as trained by
Karras et al. 2022 (arXiv 2206.00364, table 1 and appendix F).

DDPM++ ("vp" checkpoints): embedding_type positional, encoder_type standard, resample_filter [1, 1].
NCSN++ ("ve" checkpoints): fourier, residual, [1, 3, 3, 1], channel_mult_noise 2.
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

RECIPE = ("networks/song", 1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that defines the denoiser; the defaults are those of the published checkpoints."""

    img_resolution: int  # pixels on a side
    img_channels: int
    label_dim: int = 0  # classes; 0 means unconditional
    augment_dim: int = 0  # width of the augmentation labels; 0 means none
    model_channels: int = 128  # base width
    channel_mult: Sequence[int] = (1, 2, 2, 2)  # width of each resolution / model_channels
    channel_mult_emb: int = 4  # width of the embedding / model_channels
    channel_mult_noise: int = 1  # width of the noise level's own embedding / model_channels
    num_blocks: int = 4  # residual blocks per resolution in the encoder; the decoder has one more
    attn_resolutions: Sequence[int] = (16,)  # pixels on a side; absent ones are ignored
    dropout: float = 0.10  # probability, in training mode
    embedding_type: str = "positional"  # or "fourier"
    encoder_type: str = "standard"  # or "residual"
    resample_filter: Sequence[int] = (1, 1)
    sigma_data: float = SIGMA_DATA  # standard deviation of the images
    sigma_min: float = 0.0  # limits that a sampler respects
    sigma_max: float | None = None  # None: no limit

    def __post_init__(self):
        _one_of("embedding_type", self.embedding_type, ("positional", "fourier"))
        _one_of("encoder_type", self.encoder_type, ("standard", "residual"))
        layers.check_unet(self.img_resolution, self.channel_mult, self.dropout)
        if self.noise_channels % 2 or self.noise_channels < 4:
            raise ValueError(f"The noise embedding's width must be even and >= 4, not {self.noise_channels}.")

    @property
    def noise_channels(self) -> int:
        """Width of the embedding of the noise level."""
        return self.model_channels * self.channel_mult_noise

    @property
    def embedding_channels(self) -> int:
        """Width of the embedding that enters every block."""
        return self.model_channels * self.channel_mult_emb

    @property
    def widths(self) -> list[int]:
        """Channels at each resolution, the highest first."""
        return [self.model_channels * factor for factor in self.channel_mult]


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}.")


def network(**settings) -> EDMPrecond:
    """The denoiser with EDM's preconditioning; keywords and errors are those of `Settings`.

    Its weights are NaN until they are drawn or loaded: use `eldistill.networks.build`.
    """
    s = Settings(**settings)
    return EDMPrecond(SongUNet(s), sigma_data=s.sigma_data, sigma_min=s.sigma_min, sigma_max=s.sigma_max)


class SongUNet(UNet):
    """F(x, c_noise), without preconditioning."""

    def __init__(self, settings: Settings):
        super().__init__()
        s = settings
        self.img_resolution, self.img_channels = s.img_resolution, s.img_channels
        self.label_dim, self.augment_dim = s.label_dim, s.augment_dim
        noise_width, width = s.noise_channels, s.embedding_channels
        fourier = s.embedding_type == "fourier"
        self.map_noise = (
            layers.FourierEmbedding(noise_width) if fourier else layers.PositionalEmbedding(noise_width, endpoint=True)
        )
        self.map_label = layers.Linear(s.label_dim, noise_width) if s.label_dim else None
        self.map_augment = layers.Linear(s.augment_dim, noise_width, bias=False) if s.augment_dim else None
        self.map_layer0 = layers.Linear(noise_width, width)
        self.map_layer1 = layers.Linear(width, width)
        self.enc, skip_widths = _encoder(s)
        side = s.img_resolution >> len(s.channel_mult) - 1
        self.features_shape = (skip_widths[-1], side, side)
        self.dec = _decoder(s, skip_widths)

    def _embed(self, c_noise, labels, augment_labels) -> torch.Tensor:
        cosine, sine = self.map_noise(c_noise).chunk(2, dim=1)
        embedding = torch.cat([sine, cosine], dim=1)  # the order of the published weights
        embedding, labels, augment_labels = layers.cast_like(self.map_layer0.weight, embedding, labels, augment_labels)
        if self.map_label is not None and labels is not None:
            embedding = embedding + self.map_label(labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

    def encode(
        self, x, c_noise, labels=None, augment_labels=None
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Like UNet.encode; the residual encoder adds the image, halved and convolved, once at each resolution."""
        embedding = self._embed(c_noise, labels, augment_labels)
        x = pyramid = self._enter(x, embedding)
        skips = []
        for name, layer in self.enc.items():
            if name.endswith("_aux_residual"):
                x = pyramid = (x + layer(pyramid)) * math.sqrt(0.5)
                skips[-1] = x
            else:
                x = self._pass(layer, x, embedding)
                skips.append(x)
        return x, skips, embedding

    @staticmethod
    def _pass(layer: nn.Module, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        x = UNet._pass(layer, x, embedding)
        return F.silu(x) if isinstance(layer, layers.GroupNorm) else x  # that of the decoder's end


def _block(s: Settings, in_channels: int, out_channels: int, attends: bool = False, **direction):
    return layers.UNetBlock(
        in_channels,
        out_channels,
        s.embedding_channels,
        heads=int(attends),
        dropout=s.dropout,
        resample_filter=s.resample_filter,
        **direction,
    )


def _encoder(s: Settings) -> tuple[nn.ModuleDict, list[int]]:
    """The encoder, highest resolution first, and the widths of what it leaves for the decoder."""
    enc, current, pyramid = nn.ModuleDict(), s.model_channels, s.img_channels
    skip_widths = []
    for level, width in enumerate(s.widths):
        side = s.img_resolution >> level
        here = f"{side}x{side}"
        if level == 0:
            enc[f"{here}_conv"] = layers.Conv2d(s.img_channels, current, 3)
        else:
            enc[f"{here}_down"] = _block(s, current, current, down=True)
        skip_widths.append(current)
        if level and s.encoder_type == "residual":
            enc[f"{here}_aux_residual"] = layers.Conv2d(
                pyramid, current, 3, down=True, resample_filter=s.resample_filter, fused=True
            )
            pyramid = current
        for index in range(s.num_blocks):
            enc[f"{here}_block{index}"] = _block(s, current, width, side in s.attn_resolutions)
            current = width
            skip_widths.append(current)
    return enc, skip_widths


def _decoder(s: Settings, skip_widths: list[int]) -> nn.ModuleDict:
    """The decoder, lowest resolution first; each of its blocks takes one encoder output, last first."""
    dec, current, waiting = nn.ModuleDict(), skip_widths[-1], list(skip_widths)
    for level, width in reversed(list(enumerate(s.widths))):
        side = s.img_resolution >> level
        here = f"{side}x{side}"
        if level == len(s.widths) - 1:
            dec[f"{here}_in0"] = _block(s, current, current, attends=True)
            dec[f"{here}_in1"] = _block(s, current, current)
        else:
            dec[f"{here}_up"] = _block(s, current, current, up=True)
        for index in range(s.num_blocks + 1):
            attends = index == s.num_blocks and side in s.attn_resolutions
            dec[f"{here}_block{index}"] = _block(s, current + waiting.pop(), width, attends)
            current = width
    dec[f"{here}_aux_norm"] = layers.GroupNorm(current, layers.UNetBlock.eps)
    dec[f"{here}_aux_conv"] = layers.Conv2d(current, s.img_channels, 3, gain=1e-5)
    return dec
