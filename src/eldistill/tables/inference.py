# SPDX-License-Identifier: Apache-2.0
"""Statistics of runs: paired tests over seeds, tests of equivalence, correction for multiple tests, and censored times.

The functions depend only on their arguments. The unit is a training seed, and `deltas` are differences of two arms, paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

RECIPE = ("inference", 1)


def interval(deltas: Sequence[float], confidence: float) -> tuple[float | None, float | None]:
    """Student's t-interval (low, high) of the mean, at a confidence level from 0 to 1; (None, None) for fewer than two values."""
    if len(deltas) < 2:
        return None, None
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, len(deltas) - 1)) * stdev(deltas) / math.sqrt(len(deltas))
    return fmean(deltas) - half, fmean(deltas) + half


def paired_p(deltas: Sequence[float]) -> float | None:
    """Two-sided p-value of the paired t-test of a mean difference of 0; None for fewer than two values."""
    return None if len(deltas) < 2 else min(1.0, 2 * min(_tail(deltas, 0.0), 1 - _tail(deltas, 0.0)))


def _tail(deltas: Sequence[float], at: float) -> float:
    # Probability that Student's t is above the t-statistic of the deltas for a mean of `at`.
    from scipy.stats import t

    spread = stdev(deltas) / math.sqrt(len(deltas))
    if spread == 0:
        return 0.5 if fmean(deltas) == at else float(fmean(deltas) < at)
    return float(t.sf((fmean(deltas) - at) / spread, len(deltas) - 1))


def equivalence_p(deltas: Sequence[float], margin: float) -> float | None:
    """p-value of the two one-sided t-tests of equivalence (Schuirmann 1987): a small value shows that the mean difference is within
    ± margin. None for fewer than two values."""
    if len(deltas) < 2:
        return None
    return max(_tail(deltas, -margin), 1 - _tail(deltas, margin))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (1979) of a family of p-values. A None does not belong to the family and stays None."""
    order = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    running = 0.0
    for rank, (p, place) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p))
        adjusted[place] = running
    return adjusted


def seeds_for_equivalence(deltas: Sequence[float], margin: float, level: float = 0.05, power: float = 0.8) -> int:
    """Number of pairs that the two one-sided tests at `level` need for this power, if the true difference is 0 and the standard
    deviation sd is that of the deltas.

    It is the smallest n with (t_(1 - level) + t_(1 - (1 - power) / 2)) sd / margin <= sqrt(n), with n - 1 degrees of freedom."""
    return pairs_for_equivalence(stdev(deltas), margin, level, power)


def spread_of(low: float, high: float, n: int, confidence: float) -> float:
    """The standard deviation of n differences, at least two, whose mean has this t-interval."""
    from scipy.stats import t

    return (high - low) / 2 * math.sqrt(n) / float(t.ppf((1 + confidence) / 2, n - 1))


def pairs_for_equivalence(deviation: float, margin: float, level: float = 0.05, power: float = 0.8) -> int:
    """`seeds_for_equivalence` for differences with this standard deviation."""
    from scipy.stats import norm, t

    scale, tails = deviation / margin, (1 - level, 1 - (1 - power) / 2)
    n = max(
        2, math.ceil(float(sum(norm.ppf(tail) for tail in tails) * scale) ** 2)
    )  # the normal quantiles give a lower bound
    while sum(t.ppf(tail, n - 1) for tail in tails) * scale > math.sqrt(n):
        n += 1
    return n


def median_time(times: Sequence[tuple[float, bool]]) -> float | None:
    """Kaplan–Meier median of (time, censored): the first time at which the survival is at most one half; None if there is none.

    A censored time is one up to which the event did not happen.
    """
    alive, survival = len(times), 1.0
    for time in sorted({time for time, _ in times}):
        events = sum(1 for each, censored in times if each == time and not censored)
        if alive and events:
            survival *= 1 - events / alive
        if survival <= 0.5 + 1e-12:
            return time
        alive -= sum(1 for each, _ in times if each == time)
    return None


def variance_components(table: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Variance components (rows, columns, rest) of a complete two-way table of at least 2 x 2 single values, by mean squares.

    The model is value = mean + row + column + rest with independent terms. Negative estimates are returned unchanged.
    """
    rows, columns = len(table), len(table[0])
    of_rows, of_columns, rest = _mean_squares(table)
    return (of_rows - rest) / columns, (of_columns - rest) / rows, rest


def _mean_squares(table: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    # Mean squares of rows, of columns and of the rest of a complete two-way table.
    rows, columns = len(table), len(table[0])
    grand = fmean(value for row in table for value in row)
    of_rows, of_columns = [fmean(row) for row in table], [fmean(column) for column in zip(*table, strict=True)]
    rest = math.fsum(
        (value - of_rows[i] - of_columns[j] + grand) ** 2 for i, row in enumerate(table) for j, value in enumerate(row)
    ) / ((rows - 1) * (columns - 1))
    between_rows = columns * math.fsum((each - grand) ** 2 for each in of_rows) / (rows - 1)
    between_columns = rows * math.fsum((each - grand) ** 2 for each in of_columns) / (columns - 1)
    return between_rows, between_columns, rest


def variance_share_intervals(
    table: Sequence[Sequence[float]], confidence: float, points: int = 16381
) -> list[tuple[float, float]]:
    """Intervals of the shares (rows, columns, rest), from 0 to 1, of the variance components of a complete two-way table.

    They are generalized confidence intervals (Hamada and Weerahandi 2000): each sum of squares is divided by a chi-squared variable of
    its degrees of freedom, components below 0 count as 0, and the ends are quantiles of the shares. The variables lie on a lattice of
    `points` points instead of being drawn, so that equal input gives equal numbers; `points` is a prime. A table without any
    variance has no intervals: the result is empty."""
    import numpy
    from scipy.stats import chi2

    rows, columns = len(table), len(table[0])
    degrees = rows - 1, columns - 1, (rows - 1) * (columns - 1)
    grid = (numpy.outer(numpy.arange(points), (1, 1516, 1516**2 % points)) / points + 0.5 / points) % 1
    squares = [
        mean * n / chi2.ppf(grid[:, i], n)
        for i, (mean, n) in enumerate(zip(_mean_squares(table), degrees, strict=True))
    ]
    parts = numpy.stack([(squares[0] - squares[2]) / columns, (squares[1] - squares[2]) / rows, squares[2]]).clip(0)
    total = parts.sum(0)
    if not (total > 0).all():
        return []
    ends = numpy.quantile(parts / total, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)
    return [(float(low), float(high)) for low, high in ends.T]
