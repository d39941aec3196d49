# SPDX-License-Identifier: Apache-2.0
"""Fréchet distances: between the Gaussians that have the moments of two sets of features, and without their finite-sample bias."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from eldistill.errors import Problem
from eldistill.evaluate import arithmetic
from eldistill.evaluate.arithmetic import symmetric_root
from eldistill.evaluate.remembered import number_of, once

COVERED_BY = "metrics"
GROUPS = 20  # number of groups of the jackknife
WIDE = 128  # largest D with a jackknife; in more dimensions its 420 eigendecompositions would take minutes


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] (divisor n - 1) in float64. Raises Problem for fewer than two rows."""
    if len(features) < 2:
        raise Problem(f"{len(features)} images for a covariance; expected at least 2")
    return arithmetic.mean_and_covariance(features)


def frechet(mean: np.ndarray, cov: np.ndarray, mean_r: np.ndarray, cov_r: np.ndarray, root_r=None) -> float:
    """Fréchet distance of two Gaussians (Dowson & Landau 1982), as in FID, from means [D] and covariances [D, D].

    |m - m_r|^2 + tr(S + S_r - 2 (S_r^1/2 S S_r^1/2)^1/2) in float64, by two symmetric eigendecompositions, so that it is never
    complex. root_r: S_r^1/2, if it is known.
    """
    half = symmetric_root(cov_r) if root_r is None else root_r
    cross = arithmetic.trace_of_root(half, cov)
    return float(((mean - mean_r) ** 2).sum() + np.trace(cov) + np.trace(cov_r) - 2 * cross)


def fd(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Fréchet distance between the features of generated and real images, [n, D] each."""
    # Of a pair of arrays that cannot be written to; the number of the other one is not that of a later array in its place.
    other = number_of(real)
    whole = lambda: frechet(*moments_of(fake), *moments_of(real), root_of(real))  # noqa: E731
    return once(fake, f"fd {other}", whole) if other else whole()


def moments_of(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`moments` of features [n, D], remembered by `once`."""
    found: tuple[np.ndarray, np.ndarray] = once(features, "moments", lambda: moments(features))
    return found


def root_of(real: np.ndarray) -> np.ndarray:
    """The root [D, D] of the covariance of real features [n, D], remembered by `once`."""
    found: np.ndarray = once(real, "root", lambda: symmetric_root(moments_of(real)[1]))
    return found


def relfd(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Fréchet distance divided by the trace of the real covariance, so that it does not depend on the scale of the features."""
    return fd(fake, real, options) / float(np.trace(moments_of(real)[1]))


def jackknife(fake: np.ndarray, real: np.ndarray, groups: int = GROUPS) -> tuple[float, float]:
    """The Fréchet distance corrected for its finite-sample bias, and its standard error from sampling the images of both sides.

    fake, real: features [n, D]. A delete-a-group jackknife (Quenouille 1956) is applied to each side, with image i in group
    i mod G. Let F_g be the distance without group g. The bias is (G - 1)(mean F_g - F), and the variance is
    V = (G - 1)/G sum (F_g - mean)^2. V counts the part that is quadratic in the sample twice, and for equal distributions this is
    the only part. The quadratic part is estimated from pairs of groups (Q of Efron & Stein 1981) and subtracted, at most down to
    V/2. Biases and variances of the two sides are added. The estimate is comparable between different numbers of images and may be
    negative. Raises Problem for fewer than 2 images per group.
    """
    if min(len(fake), len(real)) < 2 * groups:
        raise Problem(
            f"{min(len(fake), len(real))} images for a jackknife in {groups} groups; expected {2 * groups} or more"
        )
    whole, bias, variance = fd(fake, real, {}), 0.0, 0.0
    pairs = list(itertools.combinations(range(groups), 2))
    for side, other in ((fake, real), (real, fake)):
        mean, cov = moments(other)
        half, without = symmetric_root(cov), _without(side, groups)
        left = np.array([frechet(*without(group), mean, cov, half) for group in range(groups)])
        both = np.array([frechet(*without(*pair), mean, cov, half) for pair in pairs])
        bias += (groups - 1) * (left.mean() - whole)
        own = (groups - 1) / groups * ((left - left.mean()) ** 2).sum()
        q = groups * whole - (groups - 1) * np.array([left[i] + left[j] for i, j in pairs]) + (groups - 2) * both
        variance += max(own - ((q - q.mean()) ** 2).sum() / (groups * (groups - 1)), own / 2)
    return float(whole - bias), float(np.sqrt(variance))


def _without(x: np.ndarray, groups: int) -> Callable:
    # Function from groups to the moments of all other images. The moments come from sums of centred features, which limits rounding
    # errors.
    centre = x.mean(0)
    x = x - centre
    parts = [(len(own), own.sum(0), own.T @ own) for own in (x[group::groups] for group in range(groups))]
    every = [sum(kind) for kind in zip(*parts, strict=True)]

    def moments_without(*gone: int) -> tuple[np.ndarray, np.ndarray]:
        n, total, square = (whole - sum(parts[group][i] for group in gone) for i, whole in enumerate(every))
        mean = total / n
        return mean + centre, (square - n * np.outer(mean, mean)) / (n - 1)

    return moments_without


def debiased(fake: np.ndarray, real: np.ndarray, options: dict) -> dict[str, float] | None:
    """{fdj, fdse}: the distance of `jackknife` and its standard error, which covers the sampling of images but not training seeds.

    None for more than WIDE dimensions or fewer than 2 GROUPS images."""
    if fake.shape[1] > WIDE or min(len(fake), len(real)) < 2 * GROUPS:
        return None
    return dict(zip(("fdj", "fdse"), jackknife(fake, real), strict=True))
