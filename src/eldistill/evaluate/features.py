# SPDX-License-Identifier: Apache-2.0
"""Feature spaces by name, and features of any iterable of uint8 images. A change here raises the version of evaluator.py, whose
references are made of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eldistill import registry
from eldistill.errors import Problem
from eldistill.evaluate.metrics import FLOAT

COVERED_BY = "evaluate"


Space = Callable[[torch.Tensor], torch.Tensor]  # from uint8 images [n, c, h, w] to features [n, D]


@dataclass(frozen=True)
class ClassifierSpace:
    """A feature space that belongs to a classifier; it is called like every other one."""

    features: Space
    probabilities: Callable[[np.ndarray], np.ndarray]  # from features [n, D] to those of the classes, [n, classes]
    label_dim: int = 0  # how many labels of the data set the classifier has learned; 0: classes of its own

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features [n, D] of uint8 images [n, c, h, w]."""
        return self.features(images)


def feature_space(name: str, file: Path | None = None, device="cpu") -> Space:
    """The function from uint8 images [n, c, h, w] to features [n, D] called `name` in params.yaml; file: of a space whose network
    this project trains, a `judge-…`."""
    module = importlib.import_module(f"eldistill.spaces.{registry.spaces()[name]}")
    return module.load_space(name, device) if file is None else module.load_space(name, device, file)


@torch.no_grad()
def embed(images: Iterable[torch.Tensor], space: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Features [n, D] in float64 of an iterable of uint8 chunks. Raises Problem if one is not finite."""
    return embed_all(images, {"": space})[""]


@torch.no_grad()
def embed_all(
    images: Iterable[torch.Tensor], spaces: dict[str, Callable], most: dict[str, int] | None = None
) -> dict[str, np.ndarray]:
    """The same in several spaces, in one pass: of the images no more than a chunk needs to be in memory. most: {space: how many
    of the images it sees}, the first ones, where that is not all."""
    found, left = {name: _Rows() for name in spaces}, dict(most or {})
    for chunk in images:
        for name, space in spaces.items():
            seen = chunk[: max(0, left.get(name, len(chunk)))]
            if name in left:
                left[name] -= len(chunk)
            if len(seen):
                found[name].add(space(seen).cpu().numpy())
    features = {name: rows.joined() for name, rows in found.items()}
    for each in features.values():
        if not np.isfinite(each).all():
            raise Problem(
                f"{int((~np.isfinite(each)).any(1).sum())} images have features that are not finite; look at them"
            )
    return features


class _Rows:
    # Rows that arrive in pieces, in large blocks: small arrays that stay, between large ones that come and go, would leave
    # holes in the memory into which nothing fits, one for each chunk.
    size = 1024

    def __init__(self):
        self.blocks, self.free = [], 0

    def add(self, rows: np.ndarray) -> None:
        while len(rows):
            if not self.free:
                self.blocks.append(np.empty((self.size, *rows.shape[1:]), rows.dtype))
                self.free = self.size
            part, rows = rows[: self.free], rows[self.free :]
            start = self.size - self.free
            self.blocks[-1][start : start + len(part)] = part
            self.free -= len(part)

    def joined(self) -> np.ndarray:
        # In float64; without any rows, which only a process has whose images a space does not see, none of width 0.
        if not self.blocks:
            return np.empty((0, 0), FLOAT)
        whole = [*self.blocks[:-1], self.blocks[-1][: self.size - self.free]]
        return np.concatenate(whole, dtype=FLOAT)


def chunks(images: torch.Tensor, size: int = 250) -> Iterable[torch.Tensor]:
    """A tensor of images as an iterable of chunks."""
    return images.split(size)
