# SPDX-License-Identifier: Apache-2.0
"""Kernels and estimators of the squared Maximum Mean Discrepancy (Gretton et al. 2012): pure functions.

x [m, D] are features of generated images, y [n, D] of real ones. All sums are taken in float32 or better.
"""

from __future__ import annotations

import torch

from eldistill.files import Problem

VERSION = 1

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the median squared distance


def squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """|x_i - y_j|^2, [m, n], never negative. Both sides are centred first: differences of large numbers lose digits."""
    centre = y.detach().mean(dim=0)
    x, y = x - centre, y - centre
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def linear(x: torch.Tensor, y: torch.Tensor, bandwidth: float = 1.0) -> torch.Tensor:
    """k(x, y) = <x, y>: the MMD is the distance of the means. `bandwidth` has no meaning here."""
    return x @ y.T


def rbf(x: torch.Tensor, y: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """k(x, y) = mean over c in FACTORS of exp(-|x - y|^2 / (2 c bandwidth)).

    bandwidth: the median of |x - y|^2 over pairs of real images, > 0.
    """
    scaled = squared_distances(x, y) / (2 * bandwidth)
    # The factors are powers of two: the widest kernel is computed, the others are its powers.
    widest = torch.exp(-scaled / FACTORS[-1])
    total, power = widest, widest
    for _ in FACTORS[1:]:
        power = power.square()
        total = total + power
    return total / len(FACTORS)


KERNELS = {"linear": linear, "rbf": rbf}


def mmd2(
    x: torch.Tensor, y: torch.Tensor, kernel: str, bandwidth: float = 1.0, estimator: str = "unbiased"
) -> torch.Tensor:
    """Estimate MMD^2 between the rows of x [m, D] and y [n, D]; scalar, differentiable in both.

    unbiased: the U-statistic, may be negative, needs m, n >= 2. biased: the V-statistic, whose expectation has
    tr Cov_x / m + tr Cov_y / n on top (linear kernel), a reward for shrinking the spread of x.
    Raises Problem for an unknown kernel or estimator, or too few rows.
    """
    if kernel not in KERNELS or estimator not in ("unbiased", "biased"):
        raise Problem(
            f"MMD with kernel {kernel!r}, estimator {estimator!r}; expected {', '.join(KERNELS)} and unbiased or biased"
        )
    m, n = len(x), len(y)
    if estimator == "unbiased" and min(m, n) < 2:
        raise Problem(
            f"the unbiased MMD of {m} generated and {n} real images; expected at least 2 of each: raise the batch"
        )
    x, y = (each if each.dtype == torch.float64 else each.float() for each in (x, y))
    if kernel == "linear":
        return _linear_sums(x, y, estimator)
    k = KERNELS[kernel]
    within_x, within_y, across = k(x, x, bandwidth), k(y, y, bandwidth), k(x, y, bandwidth)
    if estimator == "biased":
        return within_x.mean() + within_y.mean() - 2 * across.mean()
    # k(x, x) = 1 on the diagonal, up to rounding, which must not leak into the sum.
    off_x = (within_x.sum() - within_x.diagonal().sum()) / (m * (m - 1))
    off_y = (within_y.sum() - within_y.diagonal().sum()) / (n * (n - 1))
    return off_x + off_y - 2 * across.mean()


def _linear_sums(x: torch.Tensor, y: torch.Tensor, estimator: str) -> torch.Tensor:
    # O((m + n) D): the same numbers from sums alone. Centring changes no difference of means and saves digits.
    centre = y.detach().mean(dim=0)
    x, y = x - centre, y - centre
    m, n, sum_x, sum_y = len(x), len(y), x.sum(0), y.sum(0)
    if estimator == "biased":
        return (sum_x / m - sum_y / n).square().sum()
    within_x = (sum_x.square().sum() - x.square().sum()) / (m * (m - 1))
    within_y = (sum_y.square().sum() - y.square().sum()) / (n * (n - 1))
    return within_x + within_y - 2 * (sum_x @ sum_y) / (m * n)


def median_squared_distance(x: torch.Tensor) -> float:
    """Median of |x_i - x_j|^2 over pairs i < j of the rows of x [n, D], n >= 2: the bandwidth of `rbf`."""
    upper = torch.triu_indices(len(x), len(x), 1)
    return float(squared_distances(x, x)[upper[0], upper[1]].median())
