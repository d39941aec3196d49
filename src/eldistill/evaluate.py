# SPDX-License-Identifier: Apache-2.0
"""Images → features → metrics. Features come from any iterable of uint8 images; metrics are arithmetic on them.

A metric's name carries what it is: `fd5k_judge-a_heldout` is the Fréchet distance of 5,000 images to the held-out
images in the features of judge-a. The metrics themselves: metrics.py.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from eldistill import data, judges, published, schema
from eldistill.distributed import Alone, Processes
from eldistill.files import Problem, atomic
from eldistill.metrics import FLOAT, count_name, measure, moments

VERSION = 2  # precision and recall take images evenly, not the first ones

# --- features -----------------------------------------------------------------------------------------


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
    return importlib.import_module(f"eldistill.spaces.{schema.spaces()[name]}").load(name, device)


@torch.no_grad()
def embed(images: Iterable[torch.Tensor], space: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Features [n, D] in float64 of an iterable of uint8 chunks. Raises Problem if one is not finite."""
    return embed_all(images, {"": space})[""]


@torch.no_grad()
def embed_all(images: Iterable[torch.Tensor], spaces: dict[str, Callable]) -> dict[str, np.ndarray]:
    """The same in several spaces, in one pass: of the images no more than a chunk needs to be in memory."""
    found = {name: _Rows() for name in spaces}
    for chunk in images:
        for name, space in spaces.items():
            found[name].add(space(chunk).cpu().numpy())
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
        # In float64.
        whole = [*self.blocks[:-1], self.blocks[-1][: self.size - self.free]]
        return np.concatenate(whole, dtype=FLOAT)


def chunks(images: torch.Tensor, size: int = 250) -> Iterable[torch.Tensor]:
    """A tensor of images as an iterable of chunks."""
    return images.split(size)


# --- references ---------------------------------------------------------------------------------------


def make_reference(space: Callable, pack: Path, output: Path) -> None:
    """Features and moments of the train and the held-out images in one feature space: an npz."""
    arrays = {}
    for part in ("train", "heldout"):
        features = embed(chunks(data.load(pack, part)[0]), space)
        mean, cov = moments(features)
        arrays |= {part: features.astype(np.float32), f"mu_{part}": mean, f"sigma_{part}": cov}
    with atomic(output) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_reference(path: Path) -> dict[str, np.ndarray]:
    """{train, heldout}: features in float64."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {part: archive[part].astype(FLOAT) for part in ("train", "heldout")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Problem(f"{path} is missing or damaged ({error}); delete it and run `snakemake all`") from None


# --- the step -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ruler:
    """Feature spaces, their references {space: {train, heldout}}, the options of `evaluate`, how many images at once, and
    the processes that share them. Images come from functions of (count, first) that give uint8 chunks."""

    spaces: dict[str, Callable]
    references: dict[str, dict]
    options: dict
    batch: int = 250
    team: Alone | Processes = field(default_factory=Alone)

    def share(self, n: int) -> tuple[int, int]:
        """How many of n images are this process's, and the first of them: whole chunks, in the order of ranks, so that the
        images that meet in a chunk are the same for one process and for many."""
        rows = self.team.rows(n, max(1, min(self.batch, n // self.team.size)))
        return rows.stop - rows.start, rows.start

    def measure(self, images: Callable[[int, int], Iterable], n: int, names=None, spaces=None) -> dict[str, float]:
        """The metrics of n generated images in all spaces, or in those named, in one pass; nothing in processes but the first."""
        chosen = {name: space for name, space in self.spaces.items() if spaces is None or name in spaces}
        features = embed_all(images(*self.share(n)), chosen)
        features = {name: self.team.gather_of(each) for name, each in features.items()}
        if self.team.rank:
            return {}
        return measure(features, self.references, self.options, names, heads=_heads(chosen))

    def fid(
        self, images: Callable[[int, int], Iterable], space: Callable, reference: tuple, label: str
    ) -> dict[str, float]:
        """The FID that compares with published ones, as `evaluate.fid` asks for it: block b has images b n and on."""
        wanted = self.options["fid"]
        count, start = self.share(wanted["n"])
        name = f"fid{count_name(wanted['n'])}_{label}"
        return published.fid(lambda block: images(count, start + block * wanted["n"]), space, reference, name,
                             wanted["blocks"], self.team)  # fmt: skip


def real_row(references: dict[str, dict], options: dict, spaces: dict | None = None) -> dict[str, float]:
    """The noise floor: all train images against the held-out ones, and the other way round. `copied` has no floor: it asks
    after images that are neither."""
    rows, heads = {}, _heads(spaces or {})
    for part, other in (("train", "heldout"), ("heldout", "train")):
        features = {space: each[part] for space, each in references.items()}
        rows |= measure(features, references, options, parts=(other,), heads=heads)
    return {name: value for name, value in rows.items() if not name.startswith("copied")}


def _heads(spaces: dict) -> dict[str, Callable]:
    # Of the spaces that belong to a classifier: from features to class probabilities.
    return {name: space.probabilities for name, space in spaces.items() if getattr(space, "probabilities", None)}


def nest(evaluations: dict[str, dict]) -> dict:
    """{digits/di/el/0: metrics} as nested mappings, for data/metrics.json."""
    nested: dict = {}
    for name, metrics in evaluations.items():
        place = nested
        for part in name.split("/"):
            place = place.setdefault(part, {})
        place |= metrics
    return nested
