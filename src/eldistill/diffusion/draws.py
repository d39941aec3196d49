# SPDX-License-Identifier: Apache-2.0
"""Random numbers as pure functions of (seed, purpose, index of the image in the run).

They do not depend on micro-batches, the number of processes, restarts or the device.
"""

from __future__ import annotations

import copy
import hashlib
import math

import numpy as np
import torch

from eldistill.diffusion import philox

COVERED_BY = "noise"


FEW = (
    2**14
)  # numbers; up to that many are drawn on the CPU and sent, which takes less time than starting the kernels of a GPU


def stream_key(seed: int, purpose: str) -> int:
    """A 128-bit key of a stream of random numbers, by a hash of seed and purpose."""
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
    """The tensor on the device. A copy to a GPU goes through pinned memory and does not wait for the GPU."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def computed_on(device) -> bool:
    """Whether random bits are computed on this device. On the CPU they come from NumPy."""
    return torch.device(device).type != "cpu"


class Draw:
    """The random numbers of images `first` … `first + size - 1` of a run.

        draw = Draw(seed=0, scope="generator", first=64, size=32)
        z = draw.normal("z", 3, 32, 32)                   # [32, 3, 32, 32]
        assert torch.equal(draw[:8].normal("z", 3, 32, 32), z[:8])
        labels = draw.integers("label", 10)               # int64 [32] in 0 … 9

    Args:
        seed: of the run, any integer.
        scope: prefix that separates the streams of different phases.
        first, size: index in the run of the first image, and number of images.
        device, dtype: of the results of `normal` and `uniform`; `integers` returns int64.

    The numbers are Philox 4x64 and Box-Muller in float64. On the CPU they come from NumPy; another device computes the
    same bits itself (eldistill.diffusion.philox). Integers and uniforms are equal on all devices, normals up to the
    last place of float32, because logarithm and cosine differ between devices. A slice with a step other than 1 raises
    ValueError.
    """

    def __init__(self, seed: int, scope: str, first: int, size: int, device="cpu", dtype=torch.float32):
        self.seed, self.scope, self.first, self.size = seed, scope, first, size
        self.device, self.dtype = device, dtype

    def __getitem__(self, part: slice) -> Draw:
        """The same random numbers for a slice of the images. Raises ValueError for a step other than 1."""
        start, stop, step = part.indices(self.size)
        if step != 1 or stop < start:
            raise ValueError(f"{part} of {self.size} images; expected start ≤ stop and step 1")
        return Draw(self.seed, self.scope, self.first + start, stop - start, self.device, self.dtype)

    def on(self, device) -> Draw:
        """The same random numbers on another device, such as indices of rows for tensors on the CPU."""
        there = copy.copy(self)
        there.device = device
        return there

    def under(self, purpose: str) -> Draw:
        """Random numbers of the same images from other streams. purpose: a further prefix of their names."""
        return type(self)(self.seed, f"{self.scope}/{purpose}", self.first, self.size, self.device, self.dtype)

    def _bits(self, purpose: str, each: int) -> np.ndarray:
        return _bits(self.seed, f"{self.scope}/{purpose}", self.first, self.size, each)

    def _words(self, purpose: str, each: int) -> torch.Tensor:
        # Words of 32 bits, int64 [size, each], on the device.
        if computed_on(self.device) and self.size * each > FEW:
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
