# SPDX-License-Identifier: Apache-2.0
"""Feature spaces by name, and the computation of features of images.

A change of results here needs a new version of evaluator.py, because references consist of these features."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eldistill import registry
from eldistill.errors import Problem
from eldistill.evaluate.arithmetic import FLOAT

COVERED_BY = "evaluate"


Space = Callable[[torch.Tensor], torch.Tensor]  # from uint8 images [n, c, h, w] to features [n, D]


@dataclass(frozen=True)
class ClassifierSpace:
    """A feature space that belongs to a classifier; it is called like every other one."""

    features: Space
    probabilities: Callable[[np.ndarray], np.ndarray]  # from features [n, D] to those of the classes, [n, classes]
    label_dim: int = 0  # number of labels of the data set that the classifier was trained on; 0 if it has other classes

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features [n, D] of uint8 images [n, c, h, w]."""
        return self.features(images)


def feature_space(name: str, file: Path | None = None, device="cpu") -> Space:
    """Load a feature space: a function from uint8 images [n, c, h, w] to float32 features [n, D].

    name: as in `evaluate.features` of params.yaml. file: the network of a space that this project trains (`judge-a`, `judge-b`).
    Raises Problem if a package or a file that the space needs is missing."""
    module = importlib.import_module(f"eldistill.spaces.{registry.spaces()[name]}")
    return module.load_space(name, device) if file is None else module.load_space(name, device, file)


@torch.no_grad()
def embed(images: Iterable[torch.Tensor], space: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Features [n, D] in float64 of chunks of uint8 images [m, c, h, w]. Raises Problem if a feature is not finite."""
    return embed_all(images, {"": space})[""]


@torch.no_grad()
def embed_all(
    images: Iterable[torch.Tensor], spaces: dict[str, Callable], most: dict[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Features in several spaces in one pass over the images, {space: float64 [n, D]}; only one chunk is in memory.

    most: {space: number of images} for spaces that use only the first images. Raises Problem if a feature is not finite."""
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
                f"{int((~np.isfinite(each)).any(1).sum())} images have features that are not finite; look at the images "
                "and at the network that made them"
            )
    return features


class _Rows:
    # Rows that arrive in pieces, stored in large blocks. If each piece stayed in an array of its size, between large temporary
    # arrays, the memory would become fragmented.
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
        # All rows in float64. A process has no rows if the space uses none of its images; the result then has shape [0, 0].
        if not self.blocks:
            return np.empty((0, 0), FLOAT)
        whole = [*self.blocks[:-1], self.blocks[-1][: self.size - self.free]]
        return np.concatenate(whole, dtype=FLOAT)


def chunks(images: torch.Tensor, size: int = 250) -> Iterable[torch.Tensor]:
    """A tensor of images [n, c, h, w] as an iterable of chunks of at most `size` images."""
    return images.split(size)
