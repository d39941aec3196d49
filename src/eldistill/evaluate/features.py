# SPDX-License-Identifier: Apache-2.0
"""Feature spaces by name, and features of any iterable of uint8 images. A change here raises the version of evaluator.py, whose
references are made of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from eldistill import registry
from eldistill.errors import Problem
from eldistill.evaluate import judges
from eldistill.evaluate.metrics import FLOAT

COVERED_BY = "evaluate"


def pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 [n, c, h, w] to [n, c * h * w] in [0, 1]; above 16x16 averaged to 16x16 (a Fréchet distance needs n >> D)."""
    x = images.float() / 255
    if x.shape[-1] > 16:
        x = torch.nn.functional.adaptive_avg_pool2d(x, 16)
    return x.flatten(1)


def feature_space(name: str, judge: Path | None = None, device="cpu") -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from uint8 images to features called `name` in params.yaml; judge: the file of a `judge-…`."""
    if judge or name == "pixels":
        return judges.load(judge, device) if judge else pixels
    return importlib.import_module(f"eldistill.spaces.{registry.spaces()[name]}").load(name, device)


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
