# SPDX-License-Identifier: Apache-2.0
"""Sliced Wasserstein distance between features (Bonneel et al. 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eldistill.diffusion.draws import Draw
from eldistill.evaluate.arithmetic import FLOAT, copied, either
from eldistill.numbers import number

RECIPE = ("metrics/sw", 1)
BLOCK = (
    2**22
)  # projected values in memory at once, 32 MiB; a sum over blocks of directions has no other result than rounding


@dataclass(frozen=True)
class Numbers:
    """The numbers of the sliced Wasserstein distance."""

    projections: int = number(
        1000,
        "number of random directions; the relative error of the squared distance is about √(2 / projections) or less",
        low=1,
        high=65536,
    )
    seed: int = number(0, "seed of the directions, which are the same for all images", low=0, high=9223372036854775807)


def measure(fake: np.ndarray, real: np.ndarray, numbers: Numbers) -> float:
    """Sliced Wasserstein distance of order 2 of features [n, D] and [m, D], in their unit; 0 or larger.

    It is the root of the mean, over random unit vectors, of the squared Wasserstein distance of both projections. That is exact for two
    finite samples: their quantile functions are steps, also for different numbers of images. Gaussians with means a, b and covariances
    s² I, t² I have the distance √(|a - b|² / D + (s - t)²). It is biased upwards: two samples of one distribution have a distance of
    the order of their standard deviation times √(1/n + 1/m), and real train images against held-out ones show this floor. A value that
    is not finite gives a result that is not finite.
    """
    total, steps = 0.0, _coupling(len(fake), len(real))
    for directions in _directions(fake.shape[1], numbers, max(1, BLOCK // max(len(fake) + len(real), fake.shape[1]))):
        total += either(_sum_there, _sum_here, fake, real, directions, *steps)
    return float(np.sqrt(total / numbers.projections))


def _directions(dim: int, numbers: Numbers, most: int) -> Iterator[np.ndarray]:
    # Unit vectors [D, at most `most`]. Each depends on the seed and on its number alone.
    for first in range(0, numbers.projections, most):
        draw = Draw(numbers.seed, "sw", first, min(most, numbers.projections - first))
        rows = draw.normal("direction", dim).numpy().astype(FLOAT)
        yield np.ascontiguousarray((rows / np.linalg.norm(rows, axis=1, keepdims=True)).T)


def _coupling(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # The optimal coupling of n and m sorted values: indices [k] on both sides, and weights [k] whose sum is 1. Both quantile functions
    # are constant between two neighbours of the points i/n and j/m, which are compared as whole numbers, i m and j n.
    ends = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))
    return (ends - 1) // m, (ends - 1) // n, np.diff(ends, prepend=0) / (n * m)


def _sum_here(fake, real, directions, left, right, weights) -> float:
    # Sum over the directions [D, k] of the squared Wasserstein distances.
    x, y = np.sort(fake @ directions, axis=0)[left], np.sort(real @ directions, axis=0)[right]
    return float((weights @ (x - y) ** 2).sum())


def _sum_there(fake, real, directions, left, right, weights) -> float:
    x, y = ((copied(side) @ copied(directions)).sort(0).values for side in (fake, real))
    left, right = (copied(indices).long() for indices in (left, right))
    return float((copied(weights) @ (x[left] - y[right]) ** 2).sum())
