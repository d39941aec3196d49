# SPDX-License-Identifier: Apache-2.0
"""Toys of the tests of methods: random numbers that are told, denoisers in closed form, a distance to golden arrays."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from eldistill import contract
from eldistill.diffusion import draws, noise
from eldistill.training.processes import SingleProcess
from tests.conftest import GOLDEN

DATA = GOLDEN / "methods"


def golden(name: str) -> dict[str, torch.Tensor]:
    """The arrays of a golden file, floats as float64."""
    with np.load(DATA / f"{name}.npz") as arrays:
        tensors = {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
    return {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}


def near(found, wanted, tolerance: float, entries: bool = False) -> None:
    """The largest difference, relative to the largest entry wanted, is below the tolerance; `entries`: each to itself."""
    found, wanted = (torch.as_tensor(each).detach().double() for each in (found, wanted))
    assert found.shape == wanted.shape
    error = float(((found - wanted).abs() / (wanted.abs() if entries else wanted.abs().max())).max())
    assert error < tolerance, f"error {error:.2e}, tolerance {tolerance:.0e}"


class Tape(draws.Draw):
    """A Draw that returns what it is told: `tape` maps "scope/purpose" to [images of the run, …].

    Only the labels of a loop, which no test here has, may be drawn.
    """

    tape: dict[str, torch.Tensor] = {}

    def _copy(self, scope: str, first: int, size: int) -> Tape:
        part = Tape(self.seed, scope, first, size, self.device, self.dtype)
        part.tape = self.tape
        return part

    def __getitem__(self, part: slice) -> Tape:
        start, stop, _ = part.indices(self.size)
        return self._copy(self.scope, self.first + start, stop - start)

    def under(self, purpose: str) -> Tape:
        return self._copy(f"{self.scope}/{purpose}", self.first, self.size)

    def _told(self, purpose: str, *shape: int) -> torch.Tensor:
        told = torch.as_tensor(self.tape[f"{self.scope}/{purpose}"])
        return told[self.first : self.first + self.size].reshape(self.size, *shape)

    def normal(self, purpose: str, *shape: int) -> torch.Tensor:
        return self._told(purpose, *shape).to(self.dtype)

    uniform = normal

    def integers(self, purpose: str, high: int, *shape: int) -> torch.Tensor:
        if purpose == "label" and f"{self.scope}/label" not in self.tape:
            return super().integers(purpose, high, *shape)
        told = self._told(purpose, *shape)
        assert 0 <= int(told.min()) and int(told.max()) < high
        return told


class Images:
    """Real images [n, c, h, w] without labels, already encoded."""

    sigma_data = 0.5
    codec = {"mean": 0.5, "std": 0.25}  # pixels are [-1, 1]

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def labels(self, indices):
        return None

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.images[indices], None


def batch_of(
    shape, told: dict, size: int = 0, reals=None, dtype=torch.float64, n_images: int = 0, total: int = 10**9
) -> contract.Batch:
    """A batch without labels whose random numbers are `told`, by purpose; real image i goes with image i."""
    size = size or len(next(iter(told.values())))
    draw = Tape(0, "told", 0, size, dtype=dtype)
    draw.tape = {f"told/{name}": value for name, value in {"label": torch.arange(size), **told}.items()}
    progress = contract.Progress(n_images, 0, total)
    return contract.Batch(draw, None, tuple(shape), progress, None if reals is None else Images(reals))


def linear(variance: float, shift: float):
    """A denoiser D(x; sigma) = v / (sigma^2 + v) x + b, as the golden files use it."""

    def denoiser(x, sigma, labels=None, augment_labels=None):
        return variance / (sigma.reshape(-1, 1, 1, 1) ** 2 + variance) * x + shift

    return denoiser


class Scaled(nn.Module):
    """The preconditioning of scale * F(c_in x, sigma): EDM's, or a consistency model's with the identity at `boundary`."""

    sigma_data = 0.5

    def __init__(self, function, boundary: float = 0.0, scale: float = 1.0):
        super().__init__()
        self.function, self.boundary = function, boundary
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x, sigma, labels=None, augment_labels=None):
        level = sigma.reshape(-1, 1, 1, 1)
        c_skip, c_out, c_in, _ = noise.precondition(level, self.sigma_data, self.boundary)
        return c_skip * x + c_out * self.scale.to(x.dtype) * self.function(c_in * x, level)


class OneOfTwo(SingleProcess):
    """One of two processes that share images; `other` carries what the other one has to say."""

    size = 2

    def __init__(self, rank: int, other: list):
        self.rank, self.other = rank, other

    def rows(self, batch: int, group: int = 1) -> slice:
        units = -(-batch // group)
        return slice(units * self.rank // 2 * group, min(batch, units * (self.rank + 1) // 2 * group))
