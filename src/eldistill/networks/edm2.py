# SPDX-License-Identifier: Apache-2.0
"""The magnitude-preserving U-Net of EDM2 (Karras et al. 2024, arXiv 2312.02696, configuration G).

Every layer keeps the magnitude of its activations: weights are used divided by their norm, sums and joins are
weighted, and there is no bias and no group normalisation. The forward pass never writes to a weight: a network may
run twice in one graph. Training calls `normalise_weight` of every layer that has it after each optimiser step
(forced weight normalisation, eq. 66 of the paper).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from eldistill.diffusion import dropout
from eldistill.diffusion.noise import SIGMA_DATA
from eldistill.networks import layers
from eldistill.networks.adm import Place, plan
from eldistill.networks.precond import EDMPrecond
from eldistill.networks.unet import UNet

RECIPE = ("networks/edm2", 1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that defines the denoiser; the defaults are those of the published checkpoints."""

    img_resolution: int  # pixels (or latents) on a side
    img_channels: int
    label_dim: int = 0  # classes; 0 means unconditional
    model_channels: int = 192  # base width
    channel_mult: Sequence[int] = (1, 2, 3, 4)  # width of each resolution / model_channels
    channel_mult_noise: int | None = None  # width of the noise embedding / model_channels; None: channel_mult[0]
    channel_mult_emb: int | None = None  # width of the embedding / model_channels; None: the largest channel_mult
    num_blocks: int = 3  # residual blocks per resolution in the encoder; the decoder has one more
    attn_resolutions: Sequence[int] = (16, 8)  # pixels on a side; absent ones are ignored
    channels_per_head: int = 64
    dropout: float = 0.0  # probability, in training mode
    resample_filter: Sequence[int] = (1, 1)
    label_balance: float = 0.5  # weights of mp_sum and mp_cat, in [0, 1]: class embedding,
    concat_balance: float = 0.5  # output of the encoder in the decoder,
    res_balance: float = 0.3  # residual branch,
    attn_balance: float = 0.3  # attention
    clip_act: float = 256.0  # upper limit of the absolute output of a block
    logvar_channels: int = 128  # width of the noise embedding of logvar; 0: a generator, which has no logvar
    sigma_data: float = SIGMA_DATA  # standard deviation of the images

    def __post_init__(self):
        layers.check_unet(self.img_resolution, self.channel_mult, self.dropout)
        for name in ("label_balance", "concat_balance", "res_balance", "attn_balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not at {getattr(self, name)}.")
        for name in ("channels_per_head", "clip_act"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}.")
        if self.logvar_channels < 0:
            raise ValueError(f"logvar_channels must not be below 0, it is {self.logvar_channels}.")

    @property
    def noise_channels(self) -> int:
        """Width of the embedding of the noise level."""
        return self.model_channels * (self.channel_mult_noise or self.channel_mult[0])

    @property
    def embedding_channels(self) -> int:
        """Width of the embedding that enters every block."""
        return self.model_channels * (self.channel_mult_emb or max(self.channel_mult))


def network(**settings) -> EDM2Generator:
    """The denoiser with its preconditioning, an EDM2Precond unless logvar_channels is 0.

    Keywords and errors are those of `Settings`.

    Its weights are NaN until they are drawn or loaded: use `eldistill.networks.build`.
    """
    s = Settings(**settings)
    if not s.logvar_channels:
        return EDM2Generator(EDM2UNet(s), sigma_data=s.sigma_data)
    return EDM2Precond(EDM2UNet(s), sigma_data=s.sigma_data, logvar_channels=s.logvar_channels)


# --- magnitude-preserving operations ---


def _precise(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def normalise(x: torch.Tensor, dim: int | Sequence[int] | None = None, eps: float = 1e-4) -> torch.Tensor:
    """x / (eps + r), r the root mean square of x over `dim`, by default all but the first (EDM2, eq. 52).

    r is taken in float32 at least; shape and dtype are those of x.
    """
    over = tuple(range(1, x.ndim)) if dim is None else dim
    if x.dtype.itemsize == 2:  # summed in float32 without a copy of x in float32
        size = torch.linalg.vector_norm(x, dim=over, keepdim=True, dtype=torch.float32)
        return x / (size * math.sqrt(size.numel() / x.numel()) + eps).to(x.dtype)
    r = x.to(_precise(x)).square().mean(over, keepdim=True).sqrt()
    return x / (r + eps).to(x.dtype)


def mp_silu(x: torch.Tensor) -> torch.Tensor:
    """silu(x) / 0.596, which keeps the mean square of standard normals (EDM2, eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """((1 - share) a + share b) / sqrt((1 - share)^2 + share^2): keeps the variance of uncorrelated terms (eq. 88)."""
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)


def mp_cat(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """Channels of a, then of b, weighted so that b contributes with the weight `share` as in mp_sum (eq. 103).

    a [n, c, h, w], b [n, d, h, w] of unit variance -> [n, c + d, h, w] of unit variance.
    """
    scale = math.sqrt(a.shape[1] + b.shape[1]) / math.hypot(1 - share, share)
    weights = (scale * (1 - share) / math.sqrt(a.shape[1]), scale * share / math.sqrt(b.shape[1]))
    return torch.cat([weights[0] * a, weights[1] * b], dim=1)


class MPFourier(nn.Module):
    """sqrt(2) cos(f x + phase), [n, channels], of x [n]; f ~ 2 pi N(0, 1), phase ~ U(0, 2 pi), fixed (eq. 75)."""

    freqs: torch.Tensor
    phases: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.full((channels,), math.nan))
        self.register_buffer("phases", torch.full((channels,), math.nan))

    def draw(self, generator: torch.Generator) -> None:
        """New frequencies and phases from `generator`."""
        for buffer, law in ((self.freqs, torch.randn), (self.phases, torch.rand)):
            buffer.copy_(2 * math.pi * law(len(buffer), generator=generator, device="cpu", dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = _precise(x)
        angle = x.to(dtype).outer(self.freqs.to(dtype)) + self.phases.to(dtype)
        return (angle.cos() * math.sqrt(2)).to(x.dtype)


class MPConv(nn.Module):
    """A convolution with zero padding (without a kernel: a linear layer) with normalised weights (EDM2, eq. 47).

    MPConv(c, d, 3, 3): x [n, c, h, w] -> [n, d, h, w]; MPConv(c, d): x [n, c] -> [n, d]. weight [d, c, *kernel].
    """

    def __init__(self, in_channels: int, out_channels: int, *kernel: int):
        super().__init__()
        self.weight = layers.undrawn(out_channels, in_channels, *kernel)
        self.fan_in = in_channels * math.prod(kernel)
        self.prepared = False  # whether `weight` holds the result of `prepared_weight`, in a pass in half precision

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """New initial weights, N(0, 1), from `generator`."""
        self.weight.copy_(torch.randn(self.weight.shape, generator=generator, device="cpu", dtype=torch.float32))

    @torch.no_grad()
    def normalise_weight(self) -> None:
        """Write the normalised weight in place, after an optimiser step (eq. 66); what the layer computes stays."""
        self.weight.copy_(normalise(self.weight))

    def prepared_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight of a half precision pass before rounding; the root mean square of a row is 1 / sqrt(fan in)."""
        return normalise(weight.to(_precise(weight))) / self.fan_in**0.5

    def unprepared_gradient(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of the weight from that of `prepared_weight`, both of the weight's shape."""
        over = tuple(range(1, weight.ndim))
        r = weight.square().mean(over, keepdim=True).sqrt()
        along = (gradient * weight).mean(over, keepdim=True) / (r * (r + 1e-4))
        return (gradient - weight * along) / ((r + 1e-4) * self.fan_in**0.5)

    def forward(self, x: torch.Tensor, gain: torch.Tensor | float = 1.0) -> torch.Tensor:
        if self.prepared:  # networks/half.py; the gain, in float32, scales the result instead of the weight
            x = x.to(self.weight.dtype)
            out = F.conv2d(x, self.weight, padding="same") if x.ndim == 4 else F.linear(x, self.weight)
            return out * gain if isinstance(gain, torch.Tensor) or gain != 1 else out
        # Unit variance in, unit variance out: a row's entries have the root mean square 1 / sqrt(fan in).
        unit = normalise(self.weight.to(_precise(self.weight)))
        weight = (unit * (gain / self.fan_in**0.5)).to(x.dtype)
        return F.conv2d(x, weight, padding="same") if x.ndim == 4 else F.linear(x, weight)


class Resample(layers.Conv2d):
    """Doubling or halving of the resolution, without weights; its filter is not part of the published state."""

    def __init__(self, **resampling):
        super().__init__(0, 0, 0, **resampling)
        self.register_buffer("resample_filter", self.resample_filter, persistent=False)


# --- the network ---


class Block(layers.Recomputed):
    """Residual block with an embedding, then perhaps self-attention (EDM2, figure 21).

    x [n, in_channels, h, w], embedding [n or 1, e] -> [n, out_channels, h', w']; h' is h, 2h (up) or h/2 (down).
    decoder: whether it is a decoder block. An encoder block normalises its input for each pixel, after its 1x1
    convolution.
    """

    def __init__(self, s: Settings, place: Place, decoder: bool):
        super().__init__()
        into, out = place.in_channels, place.out_channels
        self.decoder, self.dropout, self.bound = decoder, s.dropout, s.clip_act
        self.res_balance, self.attn_balance = s.res_balance, s.attn_balance
        self.heads = layers.count_heads(out, s.channels_per_head) if place.attends else 0
        self.emb_gain = layers.undrawn()
        resamples = place.up or place.down
        self.resample = (
            Resample(up=place.up, down=place.down, resample_filter=s.resample_filter) if resamples else nn.Identity()
        )
        self.conv_res0 = MPConv(into if decoder else out, out, 3, 3)
        self.emb_linear = MPConv(s.embedding_channels, out)
        self.conv_res1 = MPConv(out, out, 3, 3)
        self.conv_skip = MPConv(into, out, 1, 1) if into != out else nn.Identity()
        if self.heads:
            self.attn_qkv = MPConv(out, 3 * out, 1, 1)
            self.attn_proj = MPConv(out, out, 1, 1)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Set the gain of the embedding to zero, so that it has no effect at first."""
        self.emb_gain.zero_()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        x = self.resample(x)
        if not self.decoder:
            x = normalise(self.conv_skip(x), dim=1)
        h = self.conv_res0(mp_silu(x))
        h = mp_silu(h * (1 + self.emb_linear(embedding, self.emb_gain))[:, :, None, None])
        if self.training and self.dropout:
            h = dropout.dropout(h, self.dropout)
        h = self.conv_res1(h)
        x = mp_sum(self.conv_skip(x) if self.decoder else x, h, self.res_balance)
        if self.heads:
            x = mp_sum(x, self.attn_proj(self._attend(self.attn_qkv(x))), self.attn_balance)
        return x.clip(-self.bound, self.bound)

    def _attend(self, qkv: torch.Tensor) -> torch.Tensor:
        # Channels lie as [head][channel of the head][q, k, v]; each of the three is normalised for each head and pixel.
        n, channels, height, width = qkv.shape
        split = qkv.reshape(n, self.heads, channels // (3 * self.heads), 3, height, width)
        return layers.attention(normalise(split, dim=2).reshape(qkv.shape), self.heads)


class EDM2UNet(UNet):
    """F(x, c_noise), without preconditioning; it knows no augmentation labels."""

    augment_dim = 0

    def __init__(self, settings: Settings):
        super().__init__()
        s = settings
        self.img_resolution, self.img_channels, self.label_dim = s.img_resolution, s.img_channels, s.label_dim
        self.label_balance, self.concat_balance = s.label_balance, s.concat_balance
        self.out_gain = layers.undrawn()
        self.emb_fourier = MPFourier(s.noise_channels)
        self.emb_noise = MPConv(s.noise_channels, s.embedding_channels)
        self.emb_label = MPConv(s.label_dim, s.embedding_channels) if s.label_dim else None
        (first, *encoder), decoder = plan(s)
        # One channel more, of ones: layers without bias have nothing else to make a constant from.
        self.enc = nn.ModuleDict({first.name: MPConv(first.in_channels + 1, first.out_channels, 3, 3)})
        self.enc.update({place.name: Block(s, place, decoder=False) for place in encoder})
        self.dec = nn.ModuleDict({place.name: Block(s, place, decoder=True) for place in decoder})
        self.out_conv = MPConv(decoder[-1].out_channels, s.img_channels, 3, 3)
        side = s.img_resolution >> len(s.channel_mult) - 1
        self.features_shape = (decoder[0].in_channels, side, side)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """The result starts at zero."""
        self.out_gain.zero_()

    def _embed(self, c_noise, labels, augment_labels) -> torch.Tensor:
        embedding = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            # No label is a row of zeros: the weight of the sum stays.
            labels = embedding.new_zeros(1, self.label_dim) if labels is None else labels
            embedding = mp_sum(embedding, self.emb_label(labels * math.sqrt(self.label_dim)), self.label_balance)
        return mp_silu(embedding)

    def _enter(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)

    def _join(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return mp_cat(x, skip, self.concat_balance)

    def _leave(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_conv(x, self.out_gain)


class EDM2Generator(EDMPrecond):
    """EDM's preconditioning of EDM2's U-Net under its names, without what only a training of denoisers needs."""

    inner = "unet"


class EDM2Precond(EDM2Generator):
    """An EDM2Generator that also estimates u(sigma), the uncertainty that weights the loss in training (EDM2, eq.

    14).
    """

    def __init__(self, model: EDM2UNet, sigma_data: float = SIGMA_DATA, logvar_channels: int = 128):
        super().__init__(model, sigma_data)
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1)

    def logvar(self, sigma: torch.Tensor | float) -> torch.Tensor:
        """u(sigma), the logarithm of the expected weighted error, [n, 1, 1, 1], in float32 or float64; sigma > 0, [n]."""
        device = self.logvar_linear.weight.device
        sigma = torch.as_tensor(sigma, dtype=self.dtype, device=device).reshape(-1)
        with torch.autocast(device.type, enabled=False):
            return self.logvar_linear(self.logvar_fourier(sigma.log() / 4))[:, :, None, None]
