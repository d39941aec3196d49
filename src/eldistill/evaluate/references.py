# SPDX-License-Identifier: Apache-2.0
"""Features of the real images of a data setting, and the noise floor, which is the metrics of real images themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from eldistill.data import dataset as data
from eldistill.errors import Problem, brief, denied
from eldistill.evaluate.arithmetic import FLOAT, symmetric_root
from eldistill.evaluate.features import ClassifierSpace, Space, chunks, embed
from eldistill.evaluate.gaussians import moments
from eldistill.evaluate.kernel import pairs_of
from eldistill.evaluate.metrics import measure, measure_labelled
from eldistill.evaluate.remembered import keep
from eldistill.external import arrays
from eldistill.files import atomic

COVERED_BY = "evaluate"


def make_reference(space: Space, pack: Path, output: Path) -> None:
    """Write the features of the train and held-out images of a packed data set in one feature space, as an npz, with the values of
    them alone that metrics need again and again: moments, root of the covariance, and the sums of the kernel distance.

    Raises Problem if a feature is not finite."""
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "heldout"):
        features = embed(chunks(data.load_pack(pack, part)[0]), space)
        mean, cov = moments(features)
        arrays |= {part: features.astype(np.float32), f"mu_{part}": mean, f"sigma_{part}": cov}
        arrays |= {f"root_{part}": symmetric_root(cov), f"pairs_{part}": np.array(pairs_of(features))}
    with atomic(output) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_reference(path: Path) -> dict[str, np.ndarray]:
    """Load the features {train, heldout} that `make_reference` writes, float64 [n, D] and read-only, so that metrics remember what
    they compute of them. Raises Problem if the file is damaged."""
    try:
        found = arrays.read_npz(path)
        return {part: keep(found[part].astype(FLOAT), _known(found, part)) for part in ("train", "heldout")}
    except PermissionError:
        raise denied(path) from None
    except (OSError, ValueError, KeyError) as error:
        raise Problem(f"{path} is missing or damaged ({brief(error)}); delete it and run `snakemake all`") from None


def _known(found: dict[str, np.ndarray], part: str) -> dict[str, object]:
    # What the file has of one part; files of before have no root and no sums.
    values: dict[str, object] = {"moments": (found[f"mu_{part}"], found[f"sigma_{part}"])}
    if f"root_{part}" in found:
        values |= {"root": found[f"root_{part}"], "pairs": tuple(map(float, found[f"pairs_{part}"]))}
    return values


def noise_floor(
    references: dict[str, dict], options: dict, spaces: dict | None = None, labels=None
) -> dict[str, float]:
    """The noise floor {name: value}: metrics of all train images with respect to the held-out ones, and vice versa.

    `copied` is omitted: it is defined only for images that are in neither part. labels: of the held-out images, int64 [n], for the
    metrics of LABELLED. Train images are not used for them, because the judges were trained on their labels."""
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
    """{space: function from features [n, D] to class probabilities [n, classes]} of the spaces that belong to a classifier."""
    return {name: space.probabilities for name, space in spaces.items() if isinstance(space, ClassifierSpace)}


def label_heads(spaces: dict[str, Space]) -> dict[str, Callable]:
    """The same functions, only of spaces whose classifier was trained on the labels of this data set. Published networks have
    other classes."""
    known = {name: space for name, space in spaces.items() if isinstance(space, ClassifierSpace)}
    return {name: space.probabilities for name, space in known.items() if space.label_dim}
