# SPDX-License-Identifier: Apache-2.0
"""Real images as metrics see them: their features in a space, made once for a data setting, and the noise floor between them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eldistill.data import dataset as data
from eldistill.errors import Problem
from eldistill.evaluate.features import ClassifierSpace, Space, chunks, embed
from eldistill.evaluate.metrics import FLOAT, measure, measure_labelled, moments
from eldistill.files import atomic

COVERED_BY = "evaluate"


def make_reference(space: Space, pack: Path, output: Path) -> None:
    """Features and moments of the train and the held-out images in one feature space: an npz."""
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "heldout"):
        features = embed(chunks(data.load_pack(pack, part)[0]), space)
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


def real_row(references: dict[str, dict], options: dict, spaces: dict | None = None, labels=None) -> dict[str, float]:
    """The noise floor: all train images against the held-out ones, and the other way round. `copied` is omitted: it is defined only for
    images that are in neither part. labels: of the held-out images, int64 [n], for the metrics of LABELLED: the judges have
    been trained on those of the train images."""
    rows: dict[str, float] = {}
    known = heads(spaces or {})
    for part, other in (("train", "heldout"), ("heldout", "train")):
        features = {space: each[part] for space, each in references.items()}
        rows |= measure(features, references, options, parts=(other,), heads=known)
    if labels is not None:
        heldout = {space: each["heldout"] for space, each in references.items()}
        rows |= measure_labelled(heldout, labels.numpy(), label_heads(spaces or {}))
    return {name: value for name, value in rows.items() if not name.startswith("copied")}


def heads(spaces: dict[str, Space]) -> dict[str, Callable]:
    """Of the spaces that belong to a classifier: from features [n, D] to class probabilities [n, classes]."""
    return {name: space.probabilities for name, space in spaces.items() if isinstance(space, ClassifierSpace)}


def label_heads(spaces: dict[str, Space]) -> dict[str, Callable]:
    """Of the spaces whose classifier has learned the labels of this data: from features to their probabilities. A network of
    others has classes of its own, whatever they are called."""
    known = {name: space for name, space in spaces.items() if isinstance(space, ClassifierSpace)}
    return {name: space.probabilities for name, space in known.items() if space.label_dim}
