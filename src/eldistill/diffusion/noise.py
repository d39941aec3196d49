# SPDX-License-Identifier: Apache-2.0
"""Sigma schedules, loss weights, preconditioning (Karras et al. 2022, arXiv 2206.00364), and random numbers.

Everything here is a pure function of its arguments. Random numbers too: `Draw` computes them from
(seed, purpose, index of the image in the run), so that micro-batches, processes, restarts and the device
change none of them.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import numpy as np
import torch

from eldistill.diffusion import philox

RECIPE = ("noise", 1)

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # EDM, table 1


def precondition(sigma: torch.Tensor, sigma_data: float, boundary: float = 0.0) -> tuple[torch.Tensor, ...]:
    """c_skip, c_out, c_in, c_noise of D = c_skip x + c_out F(c_in x; c_noise) (EDM, table 1).

    sigma: any shape, > 0 for c_noise to be finite. Each result has sigma's shape.
    boundary: the sigma at which D(x) = x; not 0 in consistency models (arXiv 2303.01469, appendix C).
    """
    above = sigma - boundary
    variance = sigma**2 + sigma_data**2
    c_skip = sigma_data**2 / (above**2 + sigma_data**2)
    return c_skip, above * sigma_data / variance.sqrt(), 1 / variance.sqrt(), sigma.log() / 4


def edm_weight(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """lambda(sigma) = 1 / c_out^2, the weight of the denoising loss (EDM, table 1). Same shape as sigma."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def karras_sigmas(n: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO) -> torch.Tensor:
    """n noise levels from sigma_max down to sigma_min, float64 [n] (EDM, eq. 5, without the final 0)."""
    steps = torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1, dtype=torch.float64)
    return (sigma_max ** (1 / rho) + steps * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def warped_sigma(u: torch.Tensor, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO):
    """The noise level at u in [0, 1] of Karras' grid from its small end: u 0 is sigma_min, 1 is sigma_max; u's shape."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + (1 - u) * (low - high)) ** rho


def lognormal(normal: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """ln sigma ~ N(mean, std^2) from standard normals of any shape (EDM's training distribution)."""
    return (normal * std + mean).exp()


def denoising_loss(
    network, images: torch.Tensor, labels, sigma: torch.Tensor, noise: torch.Tensor, augment_labels=None
) -> torch.Tensor:
    """EDM's unreduced loss lambda(sigma) (D(x + sigma n; sigma) - x)^2 (EDM, table 1).

    images, noise [n, c, h, w]; sigma [n] > 0; labels [n, L] one-hot or None. Returns [n, c, h, w].
    """
    level = sigma.reshape(-1, 1, 1, 1)
    denoised = network(images + level * noise, sigma, labels, augment_labels)
    return edm_weight(level, network.sigma_data) * (denoised - images) ** 2


def stream_key(seed: int, purpose: str) -> int:
    """128 bits that name a stream of random numbers; unrelated for any two (seed, purpose)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16], "little")


def stream_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for torch.Generator, from the same hash."""
    return stream_key(seed, purpose) % 2**63


def _bits(seed: int, purpose: str, first: int, count: int, each: int) -> np.ndarray:
    """uint32 [count, each]: row i belongs to image first + i, whatever first and count are."""
    blocks = max(1, math.ceil(each / 8))  # Philox gives 4 x 64 bits a block
    generator = np.random.Philox(key=stream_key(seed, purpose)).advance(first * blocks)
    raw = generator.random_raw(count * blocks * 4).reshape(count, blocks * 4)
    return raw.astype("<u8", copy=False).view("<u4")[:, : max(each, 1)]


def sent(tensor: torch.Tensor, device) -> torch.Tensor:
    """A tensor on the device. From the CPU to a GPU through pinned memory: the GPU's work before it is not waited for."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def computed_on(device) -> bool:
    """Whether a device computes its own random bits; the CPU has numpy's."""
    return torch.device(device).type != "cpu"


class Draw:
    """The random numbers of images `first` … `first + size - 1` of a run.

    seed: the run's. scope: a prefix that keeps the streams of one phase apart from those of another.
    Numbers are Philox 4x64 and Box-Muller in float64. The CPU has numpy's; another device computes the same bits where they
    are needed (eldistill.diffusion.philox): whole numbers and uniforms are equal everywhere, normals within a unit in the last place
    of float32, which is how far logarithm and cosine of two devices differ.
    """

    def __init__(self, seed: int, scope: str, first: int, size: int, device="cpu", dtype=torch.float32):
        self.seed, self.scope, self.first, self.size = seed, scope, first, size
        self.device, self.dtype = device, dtype

    def __getitem__(self, part: slice) -> Draw:
        """The same numbers for a slice of the images (of step 1)."""
        start, stop, step = part.indices(self.size)
        if step != 1 or stop < start:
            raise ValueError(f"{part} of {self.size} images; expected start ≤ stop and step 1")
        return Draw(self.seed, self.scope, self.first + start, stop - start, self.device, self.dtype)

    def on(self, device) -> Draw:
        """The same numbers on another device: indices of rows that lie on the CPU must not be fetched back from a GPU."""
        there = copy.copy(self)
        there.device = device
        return there

    def under(self, purpose: str) -> Draw:
        """The same images, other streams: for a part that draws under names of its own."""
        return type(self)(self.seed, f"{self.scope}/{purpose}", self.first, self.size, self.device, self.dtype)

    def _bits(self, purpose: str, each: int) -> np.ndarray:
        return _bits(self.seed, f"{self.scope}/{purpose}", self.first, self.size, each)

    def _words(self, purpose: str, each: int) -> torch.Tensor:
        # Words of 32 bits, int64 [size, each], on the device.
        if computed_on(self.device):
            key = stream_key(self.seed, f"{self.scope}/{purpose}")
            return philox.bits(key, self.first, self.size, each, self.device)
        return sent(torch.from_numpy(self._bits(purpose, each).astype(np.int64)), self.device)

    def _tensor(self, values: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values)).reshape(self.size, *shape)
        return sent(tensor.to(self.dtype), self.device)

    def uniform(self, purpose: str, *shape: int) -> torch.Tensor:
        """U[0, 1), [size, *shape]."""
        below = 1 - torch.finfo(self.dtype).eps / 2  # rounding to fewer bits must not reach 1
        if computed_on(self.device):
            words = self._words(purpose, math.prod(shape)).reshape(self.size, *shape)
            return (words.double() / 2**32).to(self.dtype).clamp_(max=below)
        bits = self._bits(purpose, math.prod(shape))
        return self._tensor(bits.astype(np.float64) / 2**32, shape).clamp_(max=below)

    def normal(self, purpose: str, *shape: int) -> torch.Tensor:
        """N(0, 1), [size, *shape], by Box-Muller; |value| < 6.7 (32-bit uniforms)."""
        each = math.prod(shape)
        pairs = (each + 1) // 2
        if computed_on(self.device):
            words = self._words(purpose, 2 * pairs).double()
            radius = (-2 * ((words[:, :pairs] + 1) / 2**32).log()).sqrt()
            angle = words[:, pairs:] * (2 * math.pi / 2**32)
            both = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
            return both[:, :each].to(self.dtype).reshape(self.size, *shape)
        bits = self._bits(purpose, 2 * pairs).astype(np.float64)
        radius = np.sqrt(-2 * np.log((bits[:, :pairs] + 1) / 2**32))
        angle = bits[:, pairs:] * (2 * np.pi / 2**32)
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return self._tensor(both[:, :each], shape)

    def integers(self, purpose: str, high: int, *shape: int) -> torch.Tensor:
        """Uniform on 0 … high - 1, int64 [size, *shape]; the bias of the reduction is below high / 2^32."""
        # A word times high is below 2^63 for any number of images.
        return (self._words(purpose, math.prod(shape)) * high >> 32).reshape(self.size, *shape)


# --- dropout -------------------------------------------------------------------------------------------


class _Masks:
    """Where dropout finds its numbers: a key for each image, and how many layers have asked."""

    def __init__(self, keys: torch.Tensor, calls: int = 0):
        self.keys, self.calls = keys, calls


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
    """Inside `masks`: a block that sees a part of its images; chosen: bool [n]. Each keeps the masks it would have had."""
    source = _masks.get()
    part = None if source is None else _Masks(source.keys[chosen.to(source.keys.device)], source.calls)
    token = _masks.set(part)
    try:
        yield
    finally:
        _masks.reset(token)


class _Again:
    """Inside it dropout draws the masks that a block drew before, however often it is entered."""

    def __init__(self):
        source = _masks.get()
        self.source, self.calls = source, 0 if source is None else source.calls

    def __enter__(self):
        self.token = _masks.set(None if self.source is None else _Masks(self.source.keys, self.calls))

    def __exit__(self, *_):
        _masks.reset(self.token)


def again() -> tuple:
    """Two contexts for torch's checkpoint: one for a block now, one for the same block computed again on the way back."""
    return nullcontext(), _Again()


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """x [n, …] with each entry zeroed with probability p, the rest divided by 1 - p. Needs `masks` around it."""
    source = _masks.get()
    if source is None or len(source.keys) != len(x):
        raise RuntimeError(
            "dropout in training mode needs eldistill.diffusion.noise.masks(draw, purpose) of the same images"
        )
    source.calls += 1
    keys, layer, limit = source.keys.to(x.device), source.calls << 40, round(p * 2**24)
    if x.device.type in FUSED and _fusible():
        return _Fused.apply(x, keys, layer, limit, p)
    return _apply(x, _keep(x, keys, layer, limit), p)


def _apply(x: torch.Tensor, keep: torch.Tensor, p: float) -> torch.Tensor:
    # A product, so that a NaN stays one wherever the mask is zero.
    return x * keep.reshape(x.shape) / (1 - p)


# Numbers of a mask that are computed together: on a CPU as many as its cache holds (seven times as fast as all at once), on a
# GPU so many that their 256 MB do not grow with the layer.
AT_ONCE = {"cpu": 2**16, "cuda": 2**24}


def _keep(x: torch.Tensor, keys: torch.Tensor, layer: int, limit: int) -> torch.Tensor:
    # The mask, bool [n, entries of an image]: a hash of the image's key and of the entry's place in this layer.
    each = x[0].numel()
    place = _scramble(torch.arange(each, device=x.device) + layer)
    keep = torch.empty(len(x), each, dtype=torch.bool, device=x.device)
    together = AT_ONCE.get(x.device.type, 2**24) // max(each, 1)
    step = len(x) if torch.compiler.is_compiling() else max(1, together)  # a compiler keeps no numbers in between
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


# --- dropout on a GPU: one kernel ---

FUSED = ("cuda",)  # devices on which dropout is compiled code


def _fusible() -> bool:
    # Inside a region that a compiler traces the plain form is fused with its neighbours; derivatives in forward mode
    # (torch.func.jvp, torch.autograd.forward_ad) go through the plain form too.
    forward = torch.autograd.forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
    return not (forward or torch.compiler.is_compiling())


class _Fused(torch.autograd.Function):
    # Dropout by the compiled form. It is linear, so the way back is the same with the same mask, which is computed again
    # instead of being kept.

    @staticmethod
    def forward(ctx, x: torch.Tensor, keys: torch.Tensor, layer: int, limit: int, p: float) -> torch.Tensor:
        ctx.save_for_backward(keys)
        ctx.numbers = layer, limit, p
        return _fused(x, keys, layer, limit, p)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        return _Fused.apply(gradient, *ctx.saved_tensors, *ctx.numbers), None, None, None, None


def _fused(x: torch.Tensor, keys: torch.Tensor, layer: int, limit: int, p: float) -> torch.Tensor:
    """What `dropout` gives, from compiled code; from the plain form, after one warning, where it cannot be compiled.

    The masks are equal to the bit. On a GPU the division may differ from the plain form's in the last place.
    """
    if not _failed:
        try:
            # As a tensor: a compiler may hold whole numbers in 32 bits.
            place = torch.full((), layer, dtype=torch.int64, device=x.device)
            # Flat where that is a view: the code of a compiler depends on which sizes of a tensor are equal.
            flat = x.view(len(x), x[0].numel()) if x.is_contiguous() else x
            return _compiled()(flat, keys, place, limit, 1 - p).view(x.shape)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a compiler: whatever it is, dropout can do without
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            _failed.append(reason)
            warnings.warn(
                f"dropout is computed without compiled code, which is slower and equal otherwise: {reason}",
                stacklevel=2,
            )
    return _apply(x, _keep(x, keys, layer, limit), p)


_failed: list[str] = []  # why there is no compiled code, once that is known


@functools.cache
def _compiled():
    # Beyond that many variants torch would go on uncompiled without a word; with fullgraph it says so.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    return torch.compile(_expression, dynamic=True, fullgraph=True)


def _expression(x: torch.Tensor, keys: torch.Tensor, layer: torch.Tensor, limit: int, share: float) -> torch.Tensor:
    place = _scramble(torch.arange(x[0].numel(), device=x.device) + layer)
    return x * (_hash(keys, place) >= limit).reshape(x.shape) / share
