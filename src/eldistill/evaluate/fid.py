# SPDX-License-Identifier: Apache-2.0
"""FID that is comparable with published values: features of Inception-v3 (2015-12-05), the authors' reference statistics, blocks of
50,000 generated images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from eldistill.errors import Problem
from eldistill.evaluate import metrics
from eldistill.evaluate.features import embed

RECIPE = ("fid", 1)


def statistics(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] of a published reference: EDM's .npz or EDM2's .pkl, read without executing it.
    Raises Problem for any other file."""
    from eldistill.external import pickles

    if path.suffix == ".pkl":
        with pickles.read_network_file(path) as file:
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


class Moments:
    """Number, mean and covariance of features that arrive in pieces and are not kept, in float64."""

    def __init__(self):
        self.count, self.total, self.square = 0, 0.0, 0.0

    def add(self, rows: np.ndarray) -> None:
        """Features [n, D] more."""
        self.count += len(rows)
        self.total, self.square = self.total + rows.sum(0), self.square + rows.T @ rows

    def result(self, team=None) -> tuple[int, np.ndarray, np.ndarray]:
        """Number, mean [D] and covariance [D, D] (divisor n - 1), of all processes together if they are a team. Raises Problem for
        fewer than 2 rows."""
        count, total, square = self.count, self.total, self.square
        if team is not None and team.size > 1:
            count, total, square = (team.sum_of(each) for each in (count, total, square))
            count = int(count)
        if count < 2:
            raise Problem(f"{count} images for a covariance; expected at least 2")
        mean = total / count
        return count, mean, (square - count * np.outer(mean, mean)) / (count - 1)


def streamed(
    images: Iterable, space: Callable, say=lambda count: None, team=None
) -> tuple[int, np.ndarray, np.ndarray]:
    """Number, mean [D] and covariance [D, D] (divisor n - 1) of the features of uint8 chunks, which are not kept; of all
    processes' chunks together, if they are a team."""
    moments = Moments()
    for chunk in images:
        moments.add(embed([chunk], space))
        say(moments.count)
    return moments.result(team)


def distance(images: Iterable, space: Callable, reference: tuple, team=None) -> float:
    """FID of uint8 chunks to a reference: (mean, covariance), or with the root of the covariance as a third. Raises Problem if
    features and reference differ in their number of features D."""
    _, mean, cov = streamed(images, space, team=team)
    if mean.shape != reference[0].shape:
        raise Problem(
            f"features have {len(mean)} numbers, the reference {len(reference[0])}; they do not belong together"
        )
    return metrics.frechet(mean, cov, *reference)


def reference_label(reference: str) -> str:
    """The end of a metric's name: ADM's statistics of ImageNet are of other crops than EDM's, so that the figures do not compare."""
    return "admref" if reference.startswith("adm-refs") else "edmref"


def blocks(
    images: Callable[[int], Iterator], space: Callable, reference: tuple, name: str, count: int, team=None
) -> dict[str, float]:
    """{name: mean over blocks, name_sd, name_min, name_block1, …} of FIDs to (mean, covariance); images(b) gives block b.

    EDM's table has the minimum of three blocks of 50,000 (it reads low, and says nothing of the spread): here the mean is the
    figure, and the minimum stands beside it.
    """
    found = [distance(images(block), space, reference, team) for block in range(count)]
    about = {name: fmean(found), f"{name}_min": min(found)} | ({f"{name}_sd": stdev(found)} if count > 1 else {})
    return about | {f"{name}_block{number + 1}": value for number, value in enumerate(found)}
