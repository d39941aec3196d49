# SPDX-License-Identifier: Apache-2.0
"""Statistics of runs against scipy, hand-made examples and simulations whose truth is known."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from eldistill.tables.inference import (
    equivalence_p,
    holm,
    interval,
    median_time,
    paired_p,
    seeds_for_equivalence,
    variance_components,
    variance_share_intervals,
)

DRAWS = [np.random.default_rng(seed).normal(loc, scale, n).tolist()
         for seed, (loc, scale, n) in enumerate([(0, 1, 2), (0.5, 1, 3), (-2, 0.5, 5), (0.1, 3, 10), (1e3, 1, 40)])]  # fmt: skip


# --- one sample of differences ------------------------------------------------------------------------


@pytest.mark.parametrize("deltas", DRAWS)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_interval_is_students(deltas, confidence):
    """Mean -+ t s / sqrt(n), as scipy computes it."""
    wanted = stats.t.interval(confidence, len(deltas) - 1, loc=np.mean(deltas), scale=stats.sem(deltas))
    assert interval(deltas, confidence) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("deltas", DRAWS)
def test_the_p_is_that_of_the_paired_test(deltas):
    """scipy's test of two samples that differ by the deltas; the sign does not matter."""
    base = np.random.default_rng(9).normal(10, 4, len(deltas))
    wanted = stats.ttest_rel(base + deltas, base).pvalue
    assert paired_p(deltas) == pytest.approx(wanted, rel=1e-6, abs=1e-12)
    assert paired_p([-delta for delta in deltas]) == pytest.approx(paired_p(deltas), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("deltas", DRAWS)
def test_a_p_below_alpha_is_an_interval_without_zero(deltas):
    """p < 1 - confidence if and only if the interval of that confidence leaves 0 out."""
    for confidence in (0.6, 0.9, 0.95, 0.999):
        low, high = interval(deltas, confidence)
        assert (paired_p(deltas) < 1 - confidence) is not (low <= 0 <= high)


# --- equivalence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("deltas", DRAWS)
@pytest.mark.parametrize("margin", [0.1, 1.0, 5.0])
def test_equivalence_is_two_one_sided_tests(deltas, margin):
    """The larger p of scipy's one-sided tests against the two margins."""
    above = stats.ttest_1samp(deltas, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(deltas, margin, alternative="less").pvalue
    assert equivalence_p(deltas, margin) == pytest.approx(max(above, below), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("deltas", DRAWS)
@pytest.mark.parametrize("margin", [0.1, 1.0, 5.0])
def test_equivalent_at_5_percent_is_a_90_percent_interval_within_the_margin(deltas, margin):
    """The duality of Schuirmann's test with the interval of 1 - 2 alpha."""
    low, high = interval(deltas, 0.9)
    assert (equivalence_p(deltas, margin) < 0.05) is (-margin < low and high < margin)


@pytest.mark.parametrize("side", [-1, 1])
def test_a_difference_at_the_margin_is_called_equivalent_5_times_in_100(side):
    """The test keeps its level where it is hardest: 2,000 experiments of ten pairs, deviation a quarter of the margin."""
    draws = np.random.default_rng(side + 5).normal(side, 0.25, (2000, 10)).tolist()
    share = np.mean([equivalence_p(deltas, 1.0) < 0.05 for deltas in draws])
    assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_no_difference_is_called_one_5_times_in_100():
    """The level of the paired test: 2,000 experiments of five pairs."""
    draws = np.random.default_rng(3).normal(0, 2, (2000, 5)).tolist()
    share = np.mean([paired_p(deltas) < 0.05 for deltas in draws])
    assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize(("margin", "pairs"), [(0.5, 36), (0.3, 97)])
def test_as_many_pairs_as_it_asks_for_have_the_power(margin, pairs):
    """n = ((t_.95 + t_.90) sd / margin)^2, and a simulation of equal arms with so many pairs finds 80 % equivalent."""
    unit = [side / math.sqrt(1.2) for side in (-1, 1) for _ in range(3)]  # deviation 1
    assert seeds_for_equivalence(unit, margin) == pairs
    draws = np.random.default_rng(1).normal(0, 1, (600, pairs)).tolist()
    share = np.mean([equivalence_p(deltas, margin) < 0.05 for deltas in draws])
    assert abs(share - 0.8) < 0.02 + 3 * math.sqrt(0.8 * 0.2 / 600)


def test_more_power_or_a_smaller_margin_asks_for_more_pairs():
    """Also: only the ratio of deviation and margin counts, the mean does not, and there are never fewer than two."""
    deltas = DRAWS[3]
    needed = [seeds_for_equivalence(deltas, margin) for margin in (4, 2, 1)]
    assert needed == sorted(needed) and needed[0] < needed[-1]
    assert needed[2] == pytest.approx(4 * needed[1], abs=8)
    assert seeds_for_equivalence(deltas, 1, power=0.95) > needed[2] > seeds_for_equivalence(deltas, 1, level=0.2)
    assert seeds_for_equivalence([8 * delta for delta in deltas], 8) == needed[2]
    assert seeds_for_equivalence([delta + 64 for delta in deltas], 1) == needed[2]
    assert seeds_for_equivalence(deltas, 1e9) == 2


# --- families -----------------------------------------------------------------------------------------


def test_holm_by_hand():
    """.005 x 4, .01 x 3, .03 x 2, then .04 x 1, which may not fall below the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6, 0.2]) == pytest.approx([1, 1, 0.6])
    assert holm([0.5]) == [0.5] and holm([]) == []


def test_holm_leaves_nones_alone_and_does_not_count_them():
    """The family is what was tested."""
    assert holm([None, 0.01, None, 0.04]) == [None, 0.02, None, 0.04]
    assert holm([None]) == [None]


def test_holm_is_monotone_between_p_and_bonferroni():
    """Order is kept, p <= adjusted <= min(1, m p), equal p stay equal, a smaller p makes none larger."""
    generator = np.random.default_rng(0)
    for size in range(2, 9):
        ps = generator.uniform(0, 0.3, size).round(2).tolist()
        adjusted = holm(ps)
        for p, q in zip(ps, adjusted, strict=True):
            assert p <= q <= min(1, size * p) + 1e-15
            assert all(q <= other for value, other in zip(ps, adjusted, strict=True) if p <= value)
        assert all(a <= b for a, b in zip(holm([ps[0] / 2, *ps[1:]]), adjusted, strict=True))


def test_holm_keeps_the_level_of_the_whole_family():
    """Six tests without any effect: at least one is called significant about 5 times in 100."""
    draws = np.random.default_rng(2).uniform(size=(4000, 6)).tolist()
    share = np.mean([min(holm(ps)) < 0.05 for ps in draws])
    assert abs(share - (1 - (1 - 0.05 / 6) ** 6)) < 4 * math.sqrt(0.05 * 0.95 / 4000)


# --- censored times -----------------------------------------------------------------------------------

FREIREICH = "6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+"  # weeks of remission, 1963


def times(text: str) -> list[tuple[int, bool]]:
    """`6 9+` as [(6, False), (9, True)]."""
    return [(int(each.strip("+")), each.endswith("+")) for each in text.split()]


@pytest.mark.parametrize(
    ("text", "median"),
    [
        ("3 1 2", 2), ("1 2 3 4", 2), ("7", 7),  # nothing censored: the first time at which at most half are left
        ("1 1 2 3", 1), ("1 2 2 2 3", 2),  # ties
        ("1+ 2 3 4", 3),  # 2/3 are left at 2, 1/3 at 3
        ("2 2+ 3", 3),  # who is censored at 2 had not come by then: 2/3 are left
        ("3 5+", 3), ("3 5+ 5+", None), ("5+ 5+", None), ("", None),  # never reached
        ("1+ 1+ 1+ 1+ 9", 9),  # only the last is known
        (FREIREICH, 23), ("1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23", 8),
    ],
)  # fmt: skip
def test_kaplan_meier_by_hand(text, median):
    """Hand examples, and the two arms of the trial that the textbooks use."""
    assert median_time(times(text)) == median
    assert median_time(times(text)[::-1]) == median


def test_kaplan_meier_as_scipy_has_it():
    """The first time at which the survival of scipy's estimate is at most a half, of 200 random samples with ties."""
    generator = np.random.default_rng(7)
    for _ in range(200):
        size = int(generator.integers(2, 12))
        moments, over = generator.integers(1, 8, size).tolist(), (generator.random(size) < 0.4).tolist()
        sample = list(zip(moments, over, strict=True))
        known, after = ([time for time, censored in sample if censored is which] for which in (False, True))
        left = stats.ecdf(stats.CensoredData(uncensored=known, right=after)).sf
        below = [time for time, share in zip(left.quantiles, left.probabilities, strict=True) if share <= 0.5 + 1e-9]
        assert median_time(sample) == (below[0] if below else None)


def test_censored_runs_make_a_median_later_never_sooner():
    """Leaving the runs out that never arrive would flatter: with them the median is later, or none."""
    arrived = times("10 20 30")
    assert median_time(arrived) == 20
    assert median_time([*arrived, (90, True)]) == 20 and median_time([*arrived, (90, True), (90, True)]) == 30
    assert median_time([*arrived, *[(90, True)] * 4]) is None


# --- components of variance ------------------------------------------------------------------------------


def test_an_additive_table_has_no_rest():
    """value = row + column: the components are the variances of the two effects, whatever is added to all."""
    rows, columns = np.array([0.0, 1.0, 5.0]), np.array([2.0, -2.0, 0.5, 1.0])
    for constant in (0.0, 100.0):
        found = variance_components((constant + rows[:, None] + columns).tolist())
        assert found == pytest.approx((rows.var(ddof=1), columns.var(ddof=1), 0), abs=1e-12)


def test_a_transposed_table_swaps_rows_and_columns():
    """The two ways are treated alike."""
    table = np.random.default_rng(4).normal(size=(3, 5))
    row, column, rest = variance_components(table.tolist())
    assert variance_components(table.T.tolist()) == pytest.approx((column, row, rest), rel=1e-12)


def test_components_are_the_mean_squares_of_the_analysis_of_variance():
    """Against numpy's sums of squares; together with the degrees of freedom they make up the total one."""
    table = np.random.default_rng(5).normal(size=(4, 6))
    row, column, rest = variance_components(table.tolist())
    total = ((table - table.mean()) ** 2).sum()
    assert 3 * (6 * row + rest) + 5 * (4 * column + rest) + 15 * rest == pytest.approx(total, rel=1e-12)
    assert rest == pytest.approx(
        np.linalg.norm(table - table.mean(0) - table.mean(1)[:, None] + table.mean()) ** 2 / 15
    )


@pytest.mark.parametrize("truth", [(4.0, 1.0, 0.25), (0.5, 3.0, 1.0), (0.0, 0.0, 1.0)])
def test_components_are_unbiased(truth):
    """The means over 600 tables of 5 x 5 are the variances that made them; without an effect some lie below 0."""
    generator = np.random.default_rng(6)
    sds = np.sqrt(truth)
    found = np.array([
        variance_components((sds[0] * generator.normal(size=(5, 1)) + sds[1] * generator.normal(size=(1, 5))
                    + sds[2] * generator.normal(size=(5, 5))).tolist())
        for _ in range(600)
    ])  # fmt: skip
    assert (abs(found.mean(0) - truth) < 4 * found.std(0) / math.sqrt(600)).all()
    assert truth[0] or (found[:, 0] < 0).any()


# --- what may be degenerate ---------------------------------------------------------------------------


@pytest.mark.parametrize("deltas", [[], [0.3]])
def test_fewer_than_two_pairs_say_nothing(deltas):
    """None, and no number that could be taken for one."""
    assert interval(deltas, 0.95) == (None, None)
    assert paired_p(deltas) is None and equivalence_p(deltas, 1.0) is None


@pytest.mark.parametrize(
    ("value", "p", "equivalent"), [(0.0, 1.0, 0.0), (0.5, 0.0, 0.0), (1.0, 0.0, 0.5), (-1.0, 0.0, 0.5), (2.0, 0.0, 1.0)]
)
def test_no_spread_is_certainty(value, p, equivalent):
    """Equal deltas: the interval is a point, the tests are sure, and at the margin they toss a coin."""
    deltas = [value] * 4
    assert interval(deltas, 0.95) == (value, value)
    assert paired_p(deltas) == p and equivalence_p(deltas, 1.0) == equivalent
    assert seeds_for_equivalence(deltas, 1.0) == 2
    assert variance_components([deltas, deltas]) == (0, 0, 0)


@pytest.mark.parametrize("deltas", [[0.1 + 0.2 - 0.3, 0.0], [1e-300, 2e-300], [1e12, 1e12 + 1], [-1e-9, 1e-9, 0]])
def test_extreme_numbers_are_numbers(deltas):
    """Tiny and huge spreads: finite, in [0, 1], no warning."""
    assert all(map(math.isfinite, interval(deltas, 0.95)))
    assert 0 <= paired_p(deltas) <= 1 and 0 <= equivalence_p(deltas, 1.0) <= 1
    assert seeds_for_equivalence(deltas, 1.0) >= 2


def test_importing_is_light():
    """Neither inference nor studies loads scipy, matplotlib or torch before it computes."""
    code = "import sys, eldistill.tables.studies.page; print([m for m in ('torch', 'scipy', 'matplotlib', 'PIL') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("seed", range(6))
def test_a_share_of_a_variance_is_above_0_where_the_f_test_says_so(seed):
    """The lower end of the rows' share is above 0 exactly where the F test of rows rejects at half of the level, and so for columns;
    a table's unit and its mean change nothing."""
    noise = np.random.default_rng(seed)
    table = noise.normal(size=(5, 1)) * (seed % 3) + noise.normal(size=(1, 4)) * (seed % 2) + noise.normal(size=(5, 4))
    found = variance_share_intervals(table.tolist(), 0.95)
    assert np.allclose(variance_share_intervals((100 * table + 7).tolist(), 0.95), found)
    assert all(0 <= low <= high <= 1 for low, high in found)
    rows, columns, rest = variance_components(table.tolist())
    for (low, _), ratio, n in ((found[0], 4 * rows / rest + 1, 4), (found[1], 5 * columns / rest + 1, 3)):
        p = stats.f.sf(ratio, n, 12)
        assert (low > 0) is bool(p < 0.025) or abs(p - 0.025) < 0.002


def test_a_table_without_variance_has_no_shares():
    assert variance_share_intervals([[2.0, 2.0], [2.0, 2.0]], 0.95) == []
