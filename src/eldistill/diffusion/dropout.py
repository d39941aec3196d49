# SPDX-License-Identifier: Apache-2.0
"""Dropout whose masks belong to images: the same whatever the micro-batch, the process or the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch

from eldistill.diffusion import compiled
from eldistill.diffusion.draws import Draw

COVERED_BY = "noise"


class _Masks:
    """The source of dropout masks: a key for each image, and the number of layers that have drawn so far."""

    def __init__(self, keys: torch.Tensor, calls: int = 0, unit: torch.Tensor | None = None):
        self.keys, self.calls = keys, calls
        # The distance between the places of two layers. It is a tensor, because code that torch compiles for a GPU
        # holds a sum of an index and a constant in 32 bits.
        self.unit = keys.new_full((), 1 << 40) if unit is None else unit

    def layer(self) -> torch.Tensor:
        """The place of the first entry of the current layer, int64 []."""
        return self.unit * self.calls


_masks: ContextVar[_Masks | None] = ContextVar("masks", default=None)


@contextmanager
def masks(draw: Draw, purpose: str) -> Iterator[None]:
    """Dropout inside this block takes its masks from the images of `draw`: the same for the same images and order
    of layers, whatever the micro-batch, the process or the device."""
    words = draw._words(f"dropout/{purpose}", 2)
    token = _masks.set(_Masks(words[:, 0] << 32 | words[:, 1]))
    try:
        yield
    finally:
        _masks.reset(token)


@contextmanager
def rows(chosen: torch.Tensor) -> Iterator[None]:
    """Inside `masks`, a context for the images where `chosen` (bool [n]) is true. They keep their masks."""
    source = _masks.get()
    part = None if source is None else _Masks(source.keys[chosen.to(source.keys.device)], source.calls, source.unit)
    token = _masks.set(part)
    try:
        yield
    finally:
        _masks.reset(token)


class _Again:
    """A context in which dropout draws the same masks again, however often it is entered."""

    def __init__(self):
        source = _masks.get()
        self.source, self.calls = source, 0 if source is None else source.calls

    def __enter__(self):
        self.token = _masks.set(None if self.source is None else _Masks(self.source.keys, self.calls, self.source.unit))

    def __exit__(self, *_):
        _masks.reset(self.token)


def repeat_masks() -> tuple:
    """Two contexts for torch's checkpoint: one for the forward pass of a block, one for its recomputation."""
    return nullcontext(), _Again()


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """x [n, …] with each entry zeroed with probability p, the rest divided by 1 - p. Needs `masks` around it."""
    source = _masks.get()
    if source is None or len(source.keys) != len(x):
        raise RuntimeError(
            "dropout in training mode needs eldistill.diffusion.dropout.masks(draw, purpose) of the same images"
        )
    source.calls += 1
    keys, layer, limit = source.keys.to(x.device), source.layer().to(x.device), round(p * 2**24)
    if x.device.type in compiled.DEVICES and _fusible():
        return _Fused.apply(x, keys, layer, limit, p)
    return _apply(x, _keep(x, keys, layer, limit), p)


def _apply(x: torch.Tensor, keep: torch.Tensor, p: float) -> torch.Tensor:
    # A product keeps a NaN even where the mask is zero.
    return x * keep.reshape(x.shape) / (1 - p)


# Numbers of a mask that are computed together: on a CPU as many as its cache holds (seven times as fast as all at
# once); on a GPU a fixed number, so that their 256 MB do not grow with the layer.
AT_ONCE = {"cpu": 2**16, "cuda": 2**24}


def _keep(x: torch.Tensor, keys: torch.Tensor, layer: torch.Tensor, limit: int) -> torch.Tensor:
    # The mask, bool [n, entries of an image]: a hash of the image's key and of the entry's place in this layer.
    each = x[0].numel()
    place = _scramble(torch.arange(each, device=x.device) + layer)
    keep = torch.empty(len(x), each, dtype=torch.bool, device=x.device)
    together = AT_ONCE.get(x.device.type, 2**24) // max(each, 1)
    step = len(x) if torch.compiler.is_compiling() else max(1, together)  # compiled code stores no intermediate numbers
    for start in range(0, len(x), step):
        keep[start : start + step] = _hash(keys[start : start + step], place) >= limit
    return keep


def _hash(keys: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    return _scramble(keys[:, None] ^ place).bitwise_and_(0xFFFFFF)


def _scramble(x: torch.Tensor) -> torch.Tensor:
    # The finaliser of MurmurHash3, in place: 64-bit integers only, so every device gives the same bits.
    high = torch.empty_like(x)

    def fold() -> None:
        torch.bitwise_right_shift(x, 33, out=high)
        x.bitwise_xor_(high.bitwise_and_(0x7FFFFFFF))

    for factor in (-49064778989728563, -4265267296055464877):
        fold()
        x.mul_(factor)
    fold()
    return x


# --- on a GPU: one kernel ---


def _fusible() -> bool:
    # Inside a region that a compiler traces the plain form is fused with its neighbours; derivatives in forward mode
    # (torch.func.jvp, torch.autograd.forward_ad) go through the plain form too.
    forward = torch.autograd.forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
    return not (forward or torch.compiler.is_compiling())


class _Fused(torch.autograd.Function):
    # Dropout by compiled code. It is linear, so the backward pass applies the same mask to the gradient; the mask is
    # computed again instead of being stored.

    @staticmethod
    def forward(ctx, x: torch.Tensor, keys: torch.Tensor, layer: torch.Tensor, limit: int, p: float) -> torch.Tensor:
        ctx.save_for_backward(keys, layer)
        ctx.numbers = limit, p
        return _fused(x, keys, layer, limit, p)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        return _Fused.apply(gradient, *ctx.saved_tensors, *ctx.numbers), None, None, None, None


def _fused(x: torch.Tensor, keys: torch.Tensor, layer: torch.Tensor, limit: int, p: float) -> torch.Tensor:
    """`dropout` by compiled code.

    The masks are equal to the bit; on a GPU the division may differ in the last place.
    """
    # Flattened if that needs no copy, because compiled code is specific to which sizes of a tensor are equal.
    flat = x.view(len(x), x[0].numel()) if x.is_contiguous() else x

    def plain() -> torch.Tensor:
        return _apply(x, _keep(x, keys, layer, limit), p)

    return KERNEL(flat, keys, layer, limit, 1 - p, otherwise=plain).view(x.shape)


def _expression(x: torch.Tensor, keys: torch.Tensor, layer: torch.Tensor, limit: int, share: float) -> torch.Tensor:
    place = _scramble(torch.arange(x[0].numel(), device=x.device) + layer)
    return x * (_hash(keys, place) >= limit).reshape(x.shape) / share


KERNEL = compiled.Kernel(_expression, "dropout is computed")
