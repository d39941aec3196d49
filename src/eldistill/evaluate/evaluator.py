# SPDX-License-Identifier: Apache-2.0
"""Images → features → metrics. Features come from any iterable of uint8 images; metrics are arithmetic on them.

A metric's name carries what it is: `fd5k_judge-a_heldout` is the Fréchet distance of 5,000 images to the held-out
images in the features of judge-a. The metrics themselves: metrics.py.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eldistill.data import dataset as data
from eldistill.errors import Problem
from eldistill.evaluate import clean, fid
from eldistill.evaluate.features import chunks, embed, embed_all
from eldistill.evaluate.metrics import FLOAT, count_name, measure, measure_labelled, moments
from eldistill.files import atomic
from eldistill.training.processes import Alone, Processes

RECIPE = ("evaluate", 2)  # precision and recall take images evenly, not the first ones

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

    def measure(
        self, images: Callable[[int, int], Iterable], n: int, names=None, spaces=None, asked=None
    ) -> dict[str, float]:
        """The metrics of n generated images in all spaces, or in those named, in one pass; nothing in processes but the first.

        asked: the class of each image, int64 [n], of a conditional generator; then those of LABELLED too."""
        chosen = {name: space for name, space in self.spaces.items() if spaces is None or name in spaces}
        count, first = self.share(n)
        most = {name: few - first for name, few in self.options.get("n_of", {}).items()}
        features = embed_all(images(count, first), chosen, most)
        features = {name: self.team.gather_of(each) for name, each in features.items()}
        if self.team.rank:
            return {}
        found = measure(features, self.references, self.options, names, heads=_heads(chosen))
        return found if asked is None else found | measure_labelled(features, asked.numpy(), label_heads(chosen))

    def fid(
        self,
        images: Callable[[int, int], Iterable],
        space: Callable,
        reference: tuple,
        label: str,
        cleanly: tuple[Callable, clean.Reference] | None = None,
    ) -> dict[str, float]:
        """The FID that compares with published ones, as `evaluate.fid` asks for it: block b has images b n and on.

        cleanly: clean-fid's feature space and reference, for its figures of the first block, whose images are made once."""
        wanted = self.options["fid"]
        count, start = self.share(wanted["n"])
        number, own = count_name(wanted["n"]), slice(start, start + count)
        sample = clean.Sample(cleanly[0], clean.chosen(wanted["n"])[own]) if cleanly else None

        def block(index: int) -> Iterable:
            made = images(count, start + index * wanted["n"])
            return sample.watch(made) if sample and index == 0 else made

        found = fid.blocks(block, space, reference, f"fid{number}_{label}", wanted["blocks"], self.team)
        return found | (sample.measure(cleanly[1], number, self.team) if sample else {})

    def fid_on_the_way(
        self, images: Callable[[int, int], Iterable], space: Callable, reference: tuple, label: str
    ) -> dict[str, float]:
        """The same of a snapshot: one number, of its first `curve_n` images."""
        n = self.options["fid"]["curve_n"]
        return {f"fid{count_name(n)}_{label}": fid.distance(images(*self.share(n)), space, reference, self.team)}


def real_row(references: dict[str, dict], options: dict, spaces: dict | None = None, labels=None) -> dict[str, float]:
    """The noise floor: all train images against the held-out ones, and the other way round. `copied` has no floor: it asks
    after images that are neither. labels: of the held-out images, int64 [n], for the metrics of LABELLED: the judges have
    learned the train ones by heart."""
    rows, heads = {}, _heads(spaces or {})
    for part, other in (("train", "heldout"), ("heldout", "train")):
        features = {space: each[part] for space, each in references.items()}
        rows |= measure(features, references, options, parts=(other,), heads=heads)
    if labels is not None:
        heldout = {space: each["heldout"] for space, each in references.items()}
        rows |= measure_labelled(heldout, labels.numpy(), label_heads(spaces or {}))
    return {name: value for name, value in rows.items() if not name.startswith("copied")}


def _heads(spaces: dict) -> dict[str, Callable]:
    # Of the spaces that belong to a classifier: from features to class probabilities.
    return {name: space.probabilities for name, space in spaces.items() if getattr(space, "probabilities", None)}


def label_heads(spaces: dict) -> dict[str, Callable]:
    """Of the spaces whose classifier has learned the labels of this data: from features to their probabilities. A network of
    others has classes of its own, whatever they are called."""
    return {name: space.probabilities for name, space in spaces.items() if getattr(space, "label_dim", 0)}


def nest(evaluations: dict[str, dict]) -> dict:
    """{digits/di/el/0: metrics} as nested mappings, for data/metrics-all.json."""
    nested: dict = {}
    for name, metrics in evaluations.items():
        place = nested
        for part in name.split("/"):
            place = place.setdefault(part, {})
        place |= metrics
    return nested
