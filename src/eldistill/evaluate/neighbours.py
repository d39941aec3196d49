# SPDX-License-Identifier: Apache-2.0
"""Metrics that count nearest neighbours: precision, recall, density, coverage and copies of train images."""

from __future__ import annotations

import numpy as np

from eldistill.errors import Problem
from eldistill.evaluate.arithmetic import inside, nearest

COVERED_BY = "metrics"
DENSE = 5  # number of neighbours for density and coverage, as chosen by their authors


def _even(side: np.ndarray, n: int) -> np.ndarray:
    # n evenly spaced rows, because real images may be sorted by class.
    return side[np.linspace(0, len(side) - 1, n).astype(int)]


def _alike(fake: np.ndarray, real: np.ndarray, most: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    # The same number of generated and real images, because these metrics depend on both numbers.
    n = min(len(fake), len(real), most)
    if n <= k:
        raise Problem(f"{n} images for precision and recall with k = {k}; expected more images")
    return _even(fake, n), _even(real, n)


def precision(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Fraction of generated images within the k-th-neighbour ball of a real image (Kynkäänniemi et al. 2019), from 0 to 1."""
    fake, real = _alike(fake, real, options["neighbours_n"], options["neighbours"])
    return float(inside(fake, real, options["neighbours"]).any(1).mean())


def recall(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Fraction of real images within the k-th-neighbour ball of a generated image (Kynkäänniemi et al. 2019), from 0 to 1."""
    return precision(real, fake, options)


def density(fake: np.ndarray, real: np.ndarray, options: dict) -> float | None:
    """Mean number of balls of real images that contain a generated image, divided by k = 5 (Naeem et al. 2020).

    It is 1 for equal distributions and larger if generated images concentrate near dense groups of real images. None for fewer
    than 6 images."""
    return _dense(fake, real, options["neighbours_n"])[0]


def coverage(fake: np.ndarray, real: np.ndarray, options: dict) -> float | None:
    """Fraction of real images whose ball (k = 5) contains a generated image (Naeem et al. 2020). None for fewer than 6 images."""
    return _dense(fake, real, options["neighbours_n"])[1]


def _dense(fake: np.ndarray, real: np.ndarray, most: int) -> tuple[float | None, float | None]:
    if min(len(fake), len(real), most) <= DENSE:
        return None, None
    fake, real = _alike(fake, real, most, DENSE)
    within = inside(fake, real, DENSE)
    return float(within.sum() / (DENSE * len(fake))), float(within.any(0).mean())


def copied(fake: np.ndarray, real: dict, options: dict) -> float:
    """Fraction of generated images that are copies of train images, beyond chance: 0 if they are as close to held-out images as to
    train images, 1 if all are copies of train images; it may be negative.

    (s - e)/(1 - e), where s is the fraction of generated images whose nearest real image is a train image, and e is the fraction of
    train images among the real ones, which is the expectation of s without copies. At most `neighbours_n` images of each set are
    used, evenly spaced.
    """
    fake = _even(fake, min(len(fake), options["neighbours_n"]))
    train, heldout = (_even(real[part], min(len(real[part]), options["neighbours_n"])) for part in ("train", "heldout"))
    to_train, to_heldout = (nearest(fake, part) for part in (train, heldout))
    # Equal distances count as one half, so that images that are in both parts do not raise the result.
    share = float(np.mean((to_train < to_heldout) + 0.5 * (to_train == to_heldout)))
    expected = len(train) / (len(train) + len(heldout))
    return (share - expected) / (1 - expected)
