# SPDX-License-Identifier: Apache-2.0
"""Statistics of runs: paired tests over seeds, equivalence, corrections, censored times. Pure functions on numbers.

The unit is a training seed; `deltas` are differences of two arms paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

RECIPE = ("inference", 1)


def interval(deltas: Sequence[float], confidence: float) -> tuple[float | None, float | None]:
    """Student's t-interval of the mean, (low, high); (None, None) for fewer than two values."""
    if len(deltas) < 2:
        return None, None
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, len(deltas) - 1)) * stdev(deltas) / math.sqrt(len(deltas))
    return fmean(deltas) - half, fmean(deltas) + half


def paired_p(deltas: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test that the mean difference is 0; None for fewer than two values."""
    return None if len(deltas) < 2 else min(1.0, 2 * min(_tail(deltas, 0.0), 1 - _tail(deltas, 0.0)))


def _tail(deltas: Sequence[float], at: float) -> float:
    # Probability that Student's t lies above that of the deltas against a mean of `at`.
    from scipy.stats import t

    spread = stdev(deltas) / math.sqrt(len(deltas))
    if spread == 0:
        return 0.5 if fmean(deltas) == at else float(fmean(deltas) < at)
    return float(t.sf((fmean(deltas) - at) / spread, len(deltas) - 1))


def equivalence_p(deltas: Sequence[float], margin: float) -> float | None:
    """p of two one-sided t-tests that the mean difference lies within ± margin (Schuirmann 1987): small means equal
    for all purposes that the margin stands for. None for fewer than two values."""
    if len(deltas) < 2:
        return None
    return max(_tail(deltas, -margin), 1 - _tail(deltas, margin))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (1979) of a family of p-values; Nones are no members of it and stay."""
    order = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    running = 0.0
    for rank, (p, place) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p))
        adjusted[place] = running
    return adjusted


def seeds_for_equivalence(deltas: Sequence[float], margin: float, level: float = 0.05, power: float = 0.8) -> int:
    """Pairs that two one-sided tests at `level` need for this power, were the true difference 0 and the deviation that of
    the deltas: the smallest n with (t_(1 - level) + t_(1 - (1 - power) / 2)) sd / margin <= sqrt(n), n - 1 degrees."""
    from scipy.stats import norm, t

    scale, tails = stdev(deltas) / margin, (1 - level, 1 - (1 - power) / 2)
    n = max(2, math.ceil(float(sum(norm.ppf(tail) for tail in tails) * scale) ** 2))  # fewer than that are never enough
    while sum(t.ppf(tail, n - 1) for tail in tails) * scale > math.sqrt(n):
        n += 1
    return n


def median_time(times: Sequence[tuple[float, bool]]) -> float | None:
    """Kaplan–Meier median of (time, censored): the first time at which at most half are left; None if never reached.

    A censored time says that the event had not come by then.
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
    """Variances (of rows, of columns, of the rest) of a full two-way table with one value a cell, by mean squares.

    value = mean + row + column + rest, all independent; an estimate below 0 is given as it is. At least 2 x 2.
    """
    rows, columns = len(table), len(table[0])
    grand = fmean(value for row in table for value in row)
    of_rows, of_columns = [fmean(row) for row in table], [fmean(column) for column in zip(*table, strict=True)]
    rest = math.fsum(
        (value - of_rows[i] - of_columns[j] + grand) ** 2 for i, row in enumerate(table) for j, value in enumerate(row)
    ) / ((rows - 1) * (columns - 1))
    between_rows = columns * math.fsum((each - grand) ** 2 for each in of_rows) / (rows - 1)
    between_columns = rows * math.fsum((each - grand) ** 2 for each in of_columns) / (columns - 1)
    return (between_rows - rest) / columns, (between_columns - rest) / rows, rest
