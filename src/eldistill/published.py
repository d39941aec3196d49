# SPDX-License-Identifier: Apache-2.0
"""What others have published: their figures (published.csv), the statistics behind their FIDs, and a FID that compares with
them: Inception's features, their reference, 50,000 images, in blocks of seeds."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from eldistill import metrics
from eldistill.files import Problem
from eldistill.schema import PACKAGE

VERSION = 1
FIGURES = PACKAGE / "published.csv"
METHODS: dict[str, tuple[str, ...]] = {  # what published.csv calls the methods of this project, up to a bracket
    "teacher": ("EDM", "EDM teacher", "EDM2-S"),
    "di": ("DI", "Diff-Instruct"),
    "dmd": ("DMD",),
    "dmd2": ("DMD2", "DMD2 with GAN", "DMD2 with GAN; longer training"),
    "sid": ("SiD",),
    "sida": ("SiDA",),
    "sid2a": ("SiD2A",),
    "cd": ("CD",),
    "ct": ("CT",),
    "ict": ("iCT",),
    "ect": ("ECT", "ECT-S"),
}
SETS = {  # what published.csv calls the data settings of params.yaml: (data set, conditional, resolution)
    "cifar10": ("CIFAR-10", "no", "32"), "cifar10-cond": ("CIFAR-10", "yes", "32"), "ffhq64": ("FFHQ", "no", "64"),
    "afhqv2-64": ("AFHQv2", "no", "64"), "imagenet64": ("ImageNet", "yes", "64"), "imagenet512-s": ("ImageNet", "yes", "512"),
}  # fmt: skip


@functools.cache
def figures() -> tuple[dict[str, str], ...]:
    """The rows of published.csv: dataset, conditional, resolution, method, nfe, fid, inception_score, precision, recall and
    source. They were measured by their authors, each in a way of its own: to be shown beside ours, never ranked with them."""
    with open(FIGURES, newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def beside(data: str, method: str, supplement: str) -> list[dict[str, str]]:
    """The published figures of an arm: same data, method and supplement (none, or el); of a data setting that nobody published
    those on all data sets, which then compare with nothing here."""
    if supplement not in ("none", "el", "regression", "regression+el"):
        return []
    ending = "+EL" if supplement.endswith("el") else ""
    wanted = {f"{name}{ending}" for name in METHODS.get(method, ())}
    rows = [row for row in figures() if row["method"].split(" (")[0].split("/")[0] in wanted]
    return [row for row in rows if data not in SETS or _place(row) == SETS[data]]


def _place(row: dict[str, str]) -> tuple[str, str, str]:
    return row["dataset"], row["conditional"], row["resolution"]


# --- a FID that compares with them ------------------------------------------------------------------------


def statistics(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] of a published reference: EDM's .npz or EDM2's .pkl, read without executing it.
    Raises Problem for any other file."""
    from eldistill.teacher import pickles

    if path.suffix == ".pkl":
        with pickles.read(path) as file:
            found = file.plain(file.value)
        found = found.get("fid") if isinstance(found, dict) else None
        found = found if isinstance(found, dict) else {}
    else:
        try:
            with np.load(path, allow_pickle=False) as archive:
                found = {key: archive[key] for key in archive.files if key in ("mu", "sigma")}
        except (OSError, ValueError, EOFError, AttributeError) as error:
            raise Problem(f"{path} is no file of reference statistics ({error}); fetch it again") from None
    mean, cov = (np.asarray(found.get(key, []), np.float64) for key in ("mu", "sigma"))
    if (
        mean.ndim != 1
        or not len(mean)
        or cov.shape != 2 * mean.shape
        or not (np.isfinite(mean).all() and np.isfinite(cov).all())
    ):
        raise Problem(
            f"{path} has mu of shape {mean.shape} and sigma of {cov.shape}; expected finite [D] and [D, D]: fetch it again"
        )
    return mean, cov


def streamed(
    images: Iterable, space: Callable, say=lambda count: None, team=None
) -> tuple[int, np.ndarray, np.ndarray]:
    """Number, mean [D] and covariance [D, D] (divisor n - 1) of the features of uint8 chunks, which are not kept; of all
    processes' chunks together, if they are a team."""
    from eldistill import evaluate

    count, total, square = 0, 0.0, 0.0
    for chunk in images:
        features = evaluate.embed([chunk], space)
        count, total, square = count + len(features), total + features.sum(0), square + features.T @ features
        say(count)
    if team is not None and team.size > 1:
        count, total, square = (team.sum_of(each) for each in (count, total, square))
        count = int(count)
    if count < 2:
        raise Problem(f"{count} images for a covariance; expected at least 2")
    mean = total / count
    return count, mean, (square - count * np.outer(mean, mean)) / (count - 1)


def whose(reference: str) -> str:
    """The end of a metric's name: ADM's statistics of ImageNet are of other crops than EDM's, another ruler."""
    return "admref" if reference.startswith("adm-refs") else "edmref"


def fid(
    images: Callable[[int], Iterator], space: Callable, reference: tuple, name: str, blocks: int, team=None
) -> dict[str, float]:
    """{name: mean over blocks, name_sd, name_min, name_block1, …} of FIDs to (mean, covariance); images(b) gives block b.

    EDM's table has the minimum of three blocks of 50,000 (it reads low, and says nothing of the spread): here the mean is the
    figure, and the minimum stands beside it.
    """
    found = []
    for block in range(blocks):
        _, mean, cov = streamed(images(block), space, team=team)
        if mean.shape != reference[0].shape:
            raise Problem(
                f"features have {len(mean)} numbers, the reference {len(reference[0])}; they do not belong together"
            )
        found.append(metrics.frechet(mean, cov, *reference))
    about = {name: fmean(found), f"{name}_min": min(found)} | ({f"{name}_sd": stdev(found)} if blocks > 1 else {})
    return about | {f"{name}_block{number + 1}": value for number, value in enumerate(found)}
