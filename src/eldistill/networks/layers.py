# SPDX-License-Identifier: Apache-2.0
"""Layers of the networks of Karras et al. 2022 (arXiv 2206.00364, appendix F): shared by all U-Nets.

Images and features are [n, channels, height, width]. Names, shapes and order of the state entries are
those of the published checkpoints. A new layer holds NaN until its weights are drawn (`initialise`) or
loaded, so that a forgotten weight is noticed, and no global random state is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from eldistill.diffusion import dropout
from eldistill.networks import half

RECIPE = ("networks/layers", 1)


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights of `network` in place, in module order, from `generator` (on the CPU, any seed)."""
    for module in network.modules():
        draw = getattr(module, "draw", None)
        if draw is not None:
            draw(generator)


def xavier_uniform(shape: Sequence[int], fan_in: int, fan_out: int, generator: torch.Generator) -> torch.Tensor:
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out)), float32 of `shape` (Glorot and Bengio 2010, eq. 16)."""
    uniform = torch.rand(tuple(shape), generator=generator, device="cpu", dtype=torch.float32)
    return (2 * uniform - 1) * math.sqrt(6 / (fan_in + fan_out))


def check_unet(img_resolution: int, channel_mult: Sequence[int], dropout: float) -> None:
    """Check settings of a U-Net with len(channel_mult) resolutions.

    Raises ValueError if img_resolution cannot be halved that often, or if dropout is not in [0, 1).
    """
    halvings = len(channel_mult) - 1
    if halvings < 0 or img_resolution % 2**halvings:
        raise ValueError(f"img_resolution {img_resolution} cannot be halved {halvings} times.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), not at {dropout}.")


def count_heads(channels: int, width: int) -> int:
    """The number of attention heads of at least `width` channels; 0, so no attention, for fewer channels than that.

    Raises ValueError where the channels do not divide evenly among them.
    """
    number = channels // width
    if number and channels % number:
        raise ValueError(f"{channels} channels cannot be split into {number} equal heads.")
    return number


def undrawn(*shape: int) -> nn.Parameter:
    """A parameter of this shape filled with NaN, to be drawn or loaded."""
    return nn.Parameter(torch.full(shape, math.nan))


def cast_like(reference: torch.Tensor, *tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """The tensors cast to the dtype of `reference`; None stays None.

    Only a pass in half precision changes the dtype.
    """
    return tuple(None if each is None else each.to(reference.dtype) for each in tensors)


class _Weighted(nn.Module):
    """A weight and perhaps a bias, drawn xavier-uniform times `gain`; the bias starts at zero."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    gain: float

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """New initial weights from `generator`."""
        if self.weight is None:
            return
        fan_out, fan_in, *kernel = self.weight.shape
        area = math.prod(kernel)
        drawn = xavier_uniform(self.weight.shape, fan_in * area, fan_out * area, generator)
        self.weight.copy_(drawn * self.gain)
        if self.bias is not None:
            self.bias.zero_()


class Linear(_Weighted):
    """y = x W^T + b for x [n, in_features]; weight [out_features, in_features]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, gain: float = 1.0):
        super().__init__()
        self.gain = gain
        self.weight = undrawn(out_features, in_features)
        self.bias = undrawn(out_features) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(_Weighted):
    """Resampling by two (`up` or `down`, not both), then a convolution with zero padding, then the bias.

    kernel: odd, or 0 for resampling alone (then in_channels = out_channels). resample_filter: one
    dimension of the separable low-pass filter, of even length. fused: with `down`, convolve first, at full
    resolution, and take every second sample afterwards (the order matters at the border).
    Raises ValueError for an impossible combination.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[int] = (1, 1),
        fused: bool = False,
        gain: float = 1.0,
    ):
        super().__init__()
        if up and down or fused and not (down and kernel):
            raise ValueError(
                "A convolution resamples up or down, not both, and only one that resamples down can be fused."
            )
        if len(resample_filter) % 2:
            raise ValueError(f"resample_filter must have an even length, not {list(resample_filter)}.")
        self.up, self.down, self.fused, self.gain = up, down, fused, gain
        self.weight = undrawn(out_channels, in_channels, kernel, kernel) if kernel else None
        self.bias = undrawn(out_channels) if kernel else None
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        blur = (taps.outer(taps) / taps.sum() ** 2)[None, None]
        self.register_buffer("resample_filter", blur if up or down else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused:
            # The margin of the filter is convolved too, instead of being padded with zeros afterwards.
            margin = (self.resample_filter.shape[-1] - 1) // 2
            x = F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2 + margin)
            return self._halve(x, padding=0) + self.bias[:, None, None]
        margin = (self.resample_filter.shape[-1] - 1) // 2 if self.up or self.down else 0
        x = self._double(x, margin) if self.up else self._halve(x, margin) if self.down else x
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding="same")

    def _filters(self, x: torch.Tensor) -> torch.Tensor:
        return self.resample_filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)

    def _double(self, x: torch.Tensor, padding: int) -> torch.Tensor:
        # Three of four samples enter as zeros, hence the factor that keeps the mean.
        return F.conv_transpose2d(x, 4 * self._filters(x), stride=2, padding=padding, groups=x.shape[1])

    def _halve(self, x: torch.Tensor, padding: int) -> torch.Tensor:
        return F.conv2d(x, self._filters(x), stride=2, padding=padding, groups=x.shape[1])


class GroupNorm(nn.GroupNorm):
    """Normalisation over min(32, channels // 4) groups of channels, then a scale and a shift per channel.

    Raises ValueError where the channels do not divide evenly among them.
    """

    def __init__(self, channels: int, eps: float):
        groups = min(32, channels // 4)
        if groups == 0 or channels % groups:
            raise ValueError(f"{channels} channels cannot be split into min(32, channels // 4) equal groups.")
        super().__init__(groups, channels, eps=eps)


class PositionalEmbedding(nn.Module):
    """[cos(x f), sin(x f)], [n, channels], of x [n], f falling geometrically from 1 to 1/10000.

    endpoint: whether the last frequency is 1/10000 itself (DDPM++) or one step above it (ADM).
    The frequencies are computed in x's dtype.
    """

    def __init__(self, channels: int, endpoint: bool):
        super().__init__()
        self.half, self.endpoint = channels // 2, endpoint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        exponent = torch.arange(self.half, dtype=x.dtype, device=x.device) / (self.half - self.endpoint)
        angle = x.outer(1e-4**exponent)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """[cos(2 pi f x), sin(2 pi f x)], [n, channels], of x [n], with fixed f ~ N(0, scale^2) (NCSN++)."""

    freqs: torch.Tensor

    def __init__(self, channels: int, scale: float = 16.0):
        super().__init__()
        self.scale = scale
        self.register_buffer("freqs", torch.full((channels // 2,), math.nan))

    def draw(self, generator: torch.Generator) -> None:
        """New frequencies from `generator`."""
        normal = torch.randn(len(self.freqs), generator=generator, device="cpu", dtype=torch.float32)
        self.freqs.copy_(normal * self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angle = x.outer((2 * math.pi * self.freqs).to(x.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def attention(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """Self-attention over all pixels. qkv [n, 3 c, h, w] -> [n, c, h, w], c divisible by `heads`.

    The channels of qkv lie as [head][channel of the head][q, k, v], those of the result as [head][channel]. The softmax
    runs in float32, or in float64 if that is what comes in. In half precision one kernel of torch computes all of it
    where there is one (`scaled_dot_product_attention`), and no scores are kept.
    """
    n, channels, height, width = qkv.shape
    if qkv.dtype.itemsize == 2:
        # Its fast kernels need the channels of a head to be contiguous.
        split = qkv.reshape(n, heads, channels // (3 * heads), 3, height * width).permute(3, 0, 1, 4, 2).contiguous()
        return F.scaled_dot_product_attention(*split).transpose(2, 3).reshape(n, channels // 3, height, width)
    q, k, v = qkv.reshape(n, heads, channels // (3 * heads), 3, height * width).unbind(3)
    precise = torch.promote_types(qkv.dtype, torch.float32)
    scores = torch.einsum("nhcq,nhck->nhqk", q.to(precise), (k / math.sqrt(k.shape[2])).to(precise))
    out = torch.einsum("nhqk,nhck->nhcq", scores.softmax(dim=-1).to(v.dtype), v)
    return out.reshape(n, channels // 3, height, width)


class _Both:
    # Enters two contexts together.
    def __init__(self, first: AbstractContextManager, second: AbstractContextManager):
        self.first, self.second = first, second

    def __enter__(self):
        self.first.__enter__()
        self.second.__enter__()

    def __exit__(self, *error):
        self.second.__exit__(*error)
        self.first.__exit__(*error)


class Recomputed(nn.Module):
    """A block that, with `recompute` set, stores only its inputs and is computed again in the backward pass.

    The result is equal to the bit, including dropout (Chen et al. 2016, arXiv 1604.06174).
    """

    recompute = False

    def __call__(self, *inputs):
        if not (self.recompute and torch.is_grad_enabled()) or half.in_forward_mode():
            return super().__call__(*inputs)
        return checkpoint(
            super().__call__, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=self._contexts
        )

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        # For the forward pass and for its recomputation, which needs the same dropout masks and half precision weights.
        now, later = dropout.repeat_masks()
        return now, _Both(later, half.keep_weights(self))


class UNetBlock(Recomputed):
    """Residual block with an embedding, then perhaps self-attention (EDM, appendix F, DDPM++ and NCSN++).

    x [n, in_channels, h, w], embedding [n or 1, embedding_channels] -> [n, out_channels, h', w'], where h'
    is h, 2h (`up`) or h/2 (`down`). heads = 0 means no attention. dropout acts in training mode only and
    then needs `dropout.masks` around the call, which gives it random numbers by image, unless it is 0.
    Another flavour of block overrides `eps`, `scale`, `affine_factor`, `modulate`, what `_skip` builds and the
    classes of its layers, which draw the weights.
    """

    linear, convolution, normalisation = Linear, Conv2d, GroupNorm
    eps = 1e-6
    scale = math.sqrt(0.5)  # keeps the variance of a sum of two
    affine_factor = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        up: bool = False,
        down: bool = False,
        heads: int = 0,
        dropout: float = 0.0,
        resample_filter: Sequence[int] = (1, 1),
    ):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        resampling = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = self.normalisation(in_channels, self.eps)
        self.conv0 = self.convolution(in_channels, out_channels, 3, **resampling)
        self.affine = self.linear(embedding_channels, self.affine_factor * out_channels)
        self.norm1 = self.normalisation(out_channels, self.eps)
        self.conv1 = self.convolution(out_channels, out_channels, 3, gain=1e-5)
        self.skip = self._skip(in_channels, out_channels, resampling)
        if heads:
            self.norm2 = self.normalisation(out_channels, self.eps)
            self.qkv = self.convolution(out_channels, 3 * out_channels, 1, gain=math.sqrt(0.2))
            self.proj = self.convolution(out_channels, out_channels, 1, gain=1e-5)

    def _skip(self, in_channels: int, out_channels: int, resampling: dict) -> nn.Module:
        if in_channels == out_channels and not (resampling["up"] or resampling["down"]):
            return nn.Identity()
        return self.convolution(in_channels, out_channels, 1, **resampling)

    def modulate(self, h: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Add the embedding [n, c, 1, 1] as a shift to h [n, c, h, w] and normalise."""
        return self.norm1(h + shift)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        h = F.silu(self.modulate(h, self.affine(embedding)[:, :, None, None]))
        if self.training and self.dropout:
            h = dropout.dropout(h, self.dropout)
        x = (self.conv1(h) + self.skip(x)) * self.scale
        if self.heads:
            x = (self.proj(attention(self.qkv(self.norm2(x)), self.heads)) + x) * self.scale
        return x
