# SPDX-License-Identifier: Apache-2.0
"""Kernels and estimators of the squared Maximum Mean Discrepancy (Gretton et al. 2012): pure functions.

x [m, D] are features of generated images, y [n, D] of real ones. All sums are taken in float32 or better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from eldistill.errors import Problem

RECIPE = ("mmd", 1)

Classes = tuple[torch.Tensor, torch.Tensor]  # labels of x [m] and of y [n]


class Rows(Protocol):
    """Processes that share the rows. eldistill.training.processes.ProcessGroup implements it."""

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """Rows of all processes, [n, …] from [own rows, …]; only the own rows have a gradient."""

    def count(self, own: torch.Tensor) -> int:
        """The number of rows in all processes."""

    def total(self, own: torch.Tensor) -> torch.Tensor:
        """Sum over processes; only the own summand has a gradient."""


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
    return rbf_of(squared_distances(x, y), bandwidth)


def rbf_of(squares: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """Like `rbf`, from the squared distances [m, n]."""
    scaled = squares / (2 * bandwidth)
    return _mean_of_powers(torch.exp(-scaled / FACTORS[-1]), len(FACTORS))


def _mean_of_powers(widest: torch.Tensor, count: int) -> torch.Tensor:
    # The mean of kernels whose widths fall by powers of two, from the widest: each is the square of the one before.
    total, power = widest, widest
    for _ in range(count - 1):
        power = power.square()
        total = total + power
    return total / count


def cubic(x: torch.Tensor, y: torch.Tensor, bandwidth: float = 1.0) -> torch.Tensor:
    """k(x, y) = (<x, y> + 1)^3 on scaled features: it sees means, covariances and third moments. No bandwidth."""
    return (x @ y.T + 1) ** 3


def energy(x: torch.Tensor, y: torch.Tensor, bandwidth: float = 1.0) -> torch.Tensor:
    """k(x, y) = -|x - y|: MMD^2 is the energy distance (Székely & Rizzo 2013). No bandwidth.

    1e-12 under the root gives equal features a slope of zero.
    """
    return energy_of(squared_distances(x, y))


def energy_of(squares: torch.Tensor, bandwidth: float = 1.0) -> torch.Tensor:
    """Like `energy`, from the squared distances [m, n]."""
    return -(squares + 1e-12).sqrt()


# In units of the median distance. 2: nearly linear up to the median distance, as `energy` is. 1/4: exp(-4) is left at the
# median, so only near images count. Below that, batches of 64 hardly have pairs that count (at 1/8 the median has exp(-8)).
RANGES = (0.25, 0.5, 1.0, 2.0)


def laplace(x: torch.Tensor, y: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """k(x, y) = mean over R in RANGES of exp(-|x - y| / (R u)), u = sqrt(bandwidth).

    bandwidth: as for `rbf`. Its root u is the median distance over pairs of real images, because the root is monotone;
    no second number is measured. 1e-12 under the root gives equal features a slope of zero.
    """
    return laplace_of(squared_distances(x, y), bandwidth)


def laplace_of(squares: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """Like `laplace`, from the squared distances [m, n]."""
    distance = (squares / bandwidth + 1e-12).sqrt()
    return _mean_of_powers(torch.exp(-distance / RANGES[-1]), len(RANGES))


KERNELS = {"linear": linear, "rbf": rbf, "cubic": cubic, "energy": energy, "laplace": laplace}
RADIAL = {"rbf": rbf_of, "energy": energy_of, "laplace": laplace_of}  # functions of |x - y|^2 and the bandwidth
# k(x, x) of the kernels with a small number under a root: there it is not the distance 0 that is computed.
AT_ZERO = {"energy": 0.0, "laplace": 1.0}


def exact_diagonal(gram: torch.Tensor, kernel: str) -> torch.Tensor:
    """k(x, x) [n, n] with the exact values k(x_i, x_i) on its diagonal, which then has no gradient."""
    if kernel not in AT_ZERO:
        return gram
    gram, value = gram - gram.diagonal().diag(), AT_ZERO[kernel]
    return gram + torch.full_like(gram.diagonal(), value).diag() if value else gram


def _gathered(classes: Classes, across: Rows) -> Classes:
    of_x, of_y = classes
    return across.gather(of_x), across.gather(of_y)


def mmd2(
    x: torch.Tensor, y: torch.Tensor, kernel: str, bandwidth: float = 1.0, estimator: str = "unbiased",
    classes: Classes | None = None, across: Rows | None = None, gaps: list[torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Estimate MMD^2 between the rows of x [m, D] and y [n, D]; scalar, differentiable in both.

    unbiased: the U-statistic, may be negative, needs m, n >= 2. biased: the V-statistic, whose expectation has
    tr Cov_x / m + tr Cov_y / n on top (linear kernel), a reward for shrinking the spread of x.
    classes: labels of x [m] and of y [n]; the kernel is then k(x, y) 1[label of x = label of y], which compares the
    joint distributions of features and labels. across: the processes that hold the rest of the rows (see
    eldistill.training.processes); the value is that of all rows, the gradient that of the own ones.
    gaps: a list that receives the biased minus the unbiased value, from the same kernel values (see `_gap`): a scalar
    without a gradient, which needs m, n >= 2 with either estimator.
    Raises Problem for an unknown kernel or estimator, or too few rows.
    """
    if kernel not in KERNELS or estimator not in ("unbiased", "biased"):
        raise Problem(
            f"MMD with kernel {kernel!r} and estimator {estimator!r}; expected one of {', '.join(KERNELS)} "
            "and unbiased or biased"
        )
    x, y = (each if each.dtype == torch.float64 else each.float() for each in (x, y))
    if across is not None and (kernel != "linear" or classes is not None):
        x, y = across.gather(x), across.gather(y)
        classes = None if classes is None else _gathered(classes, across)
        across = None
    m, n = (len(x), len(y)) if across is None else (across.count(x), across.count(y))
    if (estimator == "unbiased" or gaps is not None) and min(m, n) < 2:
        raise Problem(
            f"the unbiased MMD of {m} generated and {n} real images; expected at least 2 of each: raise the batch"
        )
    if kernel == "linear" and classes is None:
        return _linear_sums(x, y, m, n, estimator, across, gaps)
    k = KERNELS[kernel]
    within_x, within_y, between = k(x, x, bandwidth), k(y, y, bandwidth), k(x, y, bandwidth)
    if classes is not None:
        of_x, of_y = classes
        within_x, within_y, between = (
            gram * (a[:, None] == b)
            for gram, a, b in ((within_x, of_x, of_x), (within_y, of_y, of_y), (between, of_x, of_y))
        )
    if gaps is not None:
        gaps.append(_gap_of(within_x, kernel) + _gap_of(within_y, kernel))
    if estimator == "biased":
        within_x, within_y = (exact_diagonal(gram, kernel) for gram in (within_x, within_y))
        return within_x.mean() + within_y.mean() - 2 * between.mean()
    # The unbiased estimator excludes the diagonal.
    off_x = (within_x.sum() - within_x.diagonal().sum()) / (m * (m - 1))
    off_y = (within_y.sum() - within_y.diagonal().sum()) / (n * (n - 1))
    return off_x + off_y - 2 * between.mean()


def _gap(diagonal: torch.Tensor, total: torch.Tensor, m: int) -> torch.Tensor:
    """What the diagonal of a Gram matrix adds to the biased MMD^2; a scalar, never negative for a kernel of an MMD.

    diagonal, total: sums of the diagonal and of all entries of the Gram matrix of m >= 2 rows.
    total / m^2 - (total - diagonal) / (m (m - 1)) is (diagonal - total / m) / (m (m - 1)): the variance of the rows in
    the space of the kernel, over m.
    """
    return (diagonal - total / m) / (m * (m - 1))


def _gap_of(gram: torch.Tensor, kernel: str) -> torch.Tensor:
    gram = exact_diagonal(gram.detach(), kernel)
    return _gap(gram.diagonal().sum(), gram.sum(), len(gram))


def _same(own: torch.Tensor) -> torch.Tensor:
    return own


def _linear_sums(
    x: torch.Tensor, y: torch.Tensor, m: int, n: int, estimator: str, across: Rows | None,
    gaps: list[torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    # The same estimators in O((m + n) D), from sums. Centring does not change differences of means and reduces
    # rounding.
    total = _same if across is None else across.total
    centre = y.detach().mean(dim=0) if across is None else total(y.detach().sum(dim=0)) / n
    x, y = x - centre, y - centre
    sum_x, sum_y = total(x.sum(0)), total(y.sum(0))
    if gaps is not None:
        gaps.append(_linear_gap(x, sum_x, m, total) + _linear_gap(y, sum_y, n, total))
    if estimator == "biased":
        return (sum_x / m - sum_y / n).square().sum()
    within_x = (sum_x.square().sum() - total(x.square().sum())) / (m * (m - 1))
    within_y = (sum_y.square().sum() - total(y.square().sum())) / (n * (n - 1))
    return within_x + within_y - 2 * (sum_x @ sum_y) / (m * n)


def _linear_gap(x: torch.Tensor, sum_x: torch.Tensor, m: int, total: Callable[..., torch.Tensor]) -> torch.Tensor:
    # `_gap` of rows x, whose sum over all processes is sum_x.
    return _gap(total(x.detach().square().sum()), sum_x.detach().square().sum(), m)


def anchored(
    x: torch.Tensor, mean: torch.Tensor, estimator: str = "unbiased", across: Rows | None = None,
    gaps: list[torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    """The linear MMD^2, a scalar, between the rows of x [m, D] and a data set whose mean features [D] are known.

    unbiased: (|S|^2 - sum |x|^2) / (m (m - 1)) - 2 <S, mean> / m + |mean|^2, S the sum of x. gaps: as in `mmd2`.
    Raises Problem for one row.
    """
    total = _same if across is None else across.total
    m = len(x) if across is None else across.count(x)
    x = (x if x.dtype == torch.float64 else x.float()) - mean
    sum_x = total(x.sum(0))
    if m < 2 and (estimator == "unbiased" or gaps is not None):
        raise Problem("the unbiased MMD of 1 generated image; expected at least 2: raise the batch")
    if gaps is not None:
        gaps.append(_linear_gap(x, sum_x, m, total))
    if estimator == "biased":
        return (sum_x / m).square().sum()
    return (sum_x.square().sum() - total(x.square().sum())) / (m * (m - 1))


def per_class(
    x: torch.Tensor, y: torch.Tensor, kernel: str, bandwidth: float, estimator: str, classes: Classes,
    across: Rows | None = None, gaps: list[torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Mean over the classes that have enough rows on both sides of the MMD^2 within the class; arguments as in `mmd2`.

    A class has enough rows with two (unbiased, or with gaps) or one (biased) on each side. If no class has, the result
    and its gradient are 0. gaps: receives one number for each of these classes.
    """
    if across is not None:
        x, y = across.gather(x), across.gather(y)
        classes = _gathered(classes, across)
    of_x, of_y = classes
    least, values = 1 if estimator == "biased" and gaps is None else 2, []
    for label in torch.unique(of_x).tolist():
        mine, its = of_x == label, of_y == label
        if min(int(mine.sum()), int(its.sum())) >= least:
            values.append(mmd2(x[mine], y[its], kernel, bandwidth, estimator, gaps=gaps))
    return torch.stack(values).mean() if values else 0 * x.float().sum()


def median_squared_distance(x: torch.Tensor) -> float:
    """Median of |x_i - x_j|^2 over pairs i < j of the rows of x [n, D], n >= 2: the bandwidth of `rbf`."""
    upper = torch.triu_indices(len(x), len(x), 1)
    return float(squared_distances(x, x)[upper[0], upper[1]].median())
