# SPDX-License-Identifier: Apache-2.0
"""The answer that begins the page of a study: yes, no or undecided, never more than the interval and its correction say."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from scipy import stats

from eldistill.tables import inference
from eldistill.tables.answers import EQUAL, HIGHER, LOWER, UNDECIDED, amount, answer, decide, more_seeds
from eldistill.tables.effects import Effect, Unmeasured, of_times
from eldistill.tables.headline import TIME
from eldistill.tables.intervals import forest

ASKED = {"question": "Does EL help?", "against": "pixel-mmd", "confidence": 0.95}


def effect(percent, half=None, p=0.01, p_equal=None, raw="dmd/el", arm="DMD + EL", **more):
    ends = (None, None) if half is None else (percent - half, percent + half)
    family = None if p is None else 1
    margin = None if p_equal is None else 10.0
    return Effect("digits", arm, raw, percent, *ends, p, family, 10, 0.05, margin=margin, p_equal=p_equal, **more)


LESS, MORE, OPEN = effect(-5.8, 4.5, 0.0178), effect(33.3, 7.3, 5e-6), effect(-2.1, 9.85, 0.4)
SAME = effect(-1.0, 3.0, 0.6, 0.001)


@pytest.mark.parametrize("seed", range(200))
def test_the_rule(seed):
    """Lower or higher if, and only if, the interval is without 0 and the corrected p is below the level, by the sign of the mean;
    else equal if the test of equality shows it; else undecided."""
    draw = random.Random(seed)
    found = effect(draw.uniform(-20, 20), draw.choice([None, draw.uniform(0.1, 30)]), draw.choice([None, 0.001, 0.2]),
                   draw.choice([None, 0.001, 0.2]))  # fmt: skip
    without = found.low is not None and (found.low > 0 or found.high < 0)
    tested = found.low is not None and found.p_holm is not None
    if tested and without and found.p_holm < 0.05:
        assert decide(found) == (LOWER if found.high < 0 else HIGHER)
    elif tested and found.p_equal == 0.001:
        assert decide(found) == EQUAL
    else:
        assert decide(found) == UNDECIDED


def test_the_answer_is_the_first_sentence_with_its_interval():
    """Of one comparison in its direction, and equality is said to be shown or not."""
    assert answer([LESS], ASKED)[0] == "Yes: DMD + EL ends 5.8 % lower [1.3, 10.3] than pixel MMD, over 10 seeds."
    assert answer([MORE], ASKED)[0].startswith("No: DMD + EL ends 33.3 % higher [26.0, 40.6] than pixel MMD")
    assert answer([OPEN], ASKED)[0].startswith("Undecided: DMD + EL ends 2.1 % lower [−7.8, 11.9] than pixel MMD")
    assert answer([SAME], ASKED)[0] == (
        "No difference: DMD + EL ends 1.0 % lower [−2.0, 4.0] than pixel MMD, over 10 seeds; equivalence within ±10 % is shown."
    )
    near = effect(-5.8, 4.5, 0.0178, 0.0664)
    assert answer([near], ASKED)[0].endswith("over 10 seeds; equivalence within ±10 % is not shown.")


def test_what_yes_does_not_answer_is_lower_or_sooner():
    """`How far` and `What` ask for no yes; a prefix before a colon changes nothing; times are sooner or later."""
    for question, word in (
        ("What matters in EL?", "Lower"), ("Colour, 32x32: how far do they come?", "Lower"), ("EL in small batches", "Lower"),
        ("Colour, 32x32: does EL help?", "Yes"), ("Are the two better?", "Yes"),
    ):  # fmt: skip
        assert answer([LESS], ASKED | {"question": question})[0].startswith(f"{word}: ")
    claim = answer([effect(-47.0, 12.0)], ASKED | {"question": "How much sooner?"}, TIME)[0]
    assert claim.startswith("Sooner: DMD + EL needs 47 % fewer iterations [35, 59] than pixel MMD")


def test_several_arms_are_grouped_and_counted():
    other = effect(-25.0, 5.5, 0.001, arm="DI + EL", raw="di/el")
    claim = answer([LESS, other, OPEN], ASKED)[0]
    assert claim == (
        "Yes for DMD + EL (5.8 % lower [1.3, 10.3] than pixel MMD) and DI + EL (25.0 % lower [19.5, 30.5]); undecided for DMD + EL "
        "(2.1 % lower [−7.8, 11.9] than pixel MMD)."
    )
    many = [effect(-20.0 - i, 5.0, 0.001, arm=f"M{i}", raw=f"m{i}/el") for i in range(5)]
    claim = answer([*many, OPEN], ASKED)[0]
    assert claim.startswith(
        "Yes for 5 of 6 arms, most of all M4 (24.0 % lower [19.0, 29.0] than pixel MMD); undecided for DMD + EL"
    )
    assert answer(many, ASKED)[0].startswith("Yes for all 5 arms")


def test_an_arm_without_a_supplement_does_not_answer():
    """It is there to be compared with, unless nothing else is."""
    none = effect(33.3, 7.3, raw="dmd/none", arm="DMD")
    claim, *rest = answer([none, LESS], ASKED)
    assert claim.startswith(
        "Yes: DMD + EL ends"
    ) and "For comparison, without a supplement: DMD 33.3 % higher" in " ".join(rest)
    assert answer([none], ASKED)[0].startswith("No: DMD ends")


@pytest.mark.parametrize("seed", range(30))
def test_no_answer_is_stronger_than_the_numbers(seed):
    """Random results: a `yes` or `no` stands in the sentence only if some comparison is so after the correction."""
    draw, made = random.Random(seed), []
    for i in range(draw.randint(1, 9)):
        made.append(effect(draw.uniform(-40, 40), draw.choice([None, draw.uniform(1, 50)]), draw.choice([None, 0.001, 0.2, 1.0]),
                           arm=f"M{i} + EL", raw=f"m{i}/el"))  # fmt: skip
    claim, *rest = answer(made, ASKED)
    kinds = {decide(each) for each in made}
    assert bool(re.search(r"\b[Yy]es\b", claim)) == (LOWER in kinds)
    assert bool(re.search(r"\b[Nn]o\b(?! differ| supple)", claim)) == (HIGHER in kinds)
    assert all(text.endswith(".") for text in (claim, *rest)) and claim[0].isupper()


def test_nothing_tested_is_undecided():
    assert answer([], ASKED)[0] == "Nothing is compared."
    assert answer([effect(-29.0, None, None)], ASKED)[0] == "Undecided, because each comparison has one pair of seeds."
    assert (
        answer([effect(-29.0, 5.0, None)], ASKED)[0]
        == "Undecided: these comparisons are exploratory, without a correction."
    )


@pytest.mark.parametrize("n", [3, 10])
@pytest.mark.parametrize("deviation", [2.0, 8.0, 300.0])
def test_the_seeds_that_are_missing_are_those_of_the_power(n, deviation):
    """From the interval alone the same number as from the differences themselves."""
    deltas = list(np.linspace(-1, 1, n) / np.linspace(-1, 1, n).std(ddof=1) * deviation)
    low, high = stats.t.interval(0.95, n - 1, loc=0, scale=deviation / np.sqrt(n))
    found = Effect("digits", "DMD + EL", "dmd/el", 0.0, low, high, 0.9, 1, n, 0.05, margin=10.0, p_equal=0.9)
    wanted = max(0, inference.seeds_for_equivalence(deltas, 10.0, 0.05) - n)
    assert more_seeds(found, 0.95) == wanted
    claim = answer([found], ASKED)[0]
    if 0 < wanted <= 1000:
        assert f"about {wanted} more seed" in claim
    elif wanted:
        assert "more than 1,000 more seeds" in claim
    assert more_seeds(OPEN, 0.95) is None  # equality is not tested there


@pytest.mark.parametrize("seed", range(50))
def test_an_amount_keeps_sign_and_order(seed):
    """The number before the word and its interval are those of the effect, seen in the direction of the word."""
    draw = random.Random(seed)
    found = effect(draw.uniform(-50, 50), draw.uniform(1, 60))
    text = amount(found).replace("−", "-")
    middle, low, high = map(float, re.findall(r"-?\d+(?:\.\d+)?", text))
    sign = -1 if "lower" in text else 1
    near = pytest.approx
    assert low <= middle <= high and sign * found.percent >= 0
    assert (middle, low, high) == (near(abs(found.percent), abs=0.5), *(near(end, abs=0.51) for end in
                                   sorted((sign * found.low, sign * found.high))))  # fmt: skip


# --- comparisons of times without a ratio, and the margin --------------------------------------------------


def time_row(never, early=0, ratio=None, bound=None, **more):
    fewer = None if ratio is None else 100 * (1 - ratio)
    return {"data": "digits", "method": "di", "supplement": "el", "pairs": 5, "of_run": 100, "never": never, "early": early, "no_time": 0,
            "ratio_iterations": ratio, "fewer_iterations": fewer, "fewer_iterations_low": None, "fewer_iterations_high": None,
            "bound": bound, "p_holm": None, "p_family": None} | more  # fmt: skip


def test_every_pair_of_times_has_a_line_and_says_what_is_known():
    """A bound is on the side where the ratio is; without a ratio the count stands alone; rows without pairs have no line."""
    rows = [
        time_row(1, ratio=0.56, bound="at least"), time_row(2, ratio=1.5, bound="at least"), time_row(0, 3, 0.5, "at most"),
        time_row(4, 1), time_row(0, no_time=2), time_row(0) | {"pairs": None},
    ]  # fmt: skip
    found = of_times(rows, 0.95)
    assert all(isinstance(each, Unmeasured) for each in found)
    assert [each.text for each in found] == [
        "≤ 44 % fewer, never reached in 1 of 5 seeds", "≥ 50 % more, never reached in 2 of 5 seeds",
        "≥ 50 % fewer, reached before the first snapshot in 3 of 5 seeds",
        "never reached in 4, reached before the first snapshot in 1 of 5 seeds", "no time in 2 of 5 seeds",
    ]  # fmt: skip
    text = forest(found, "none", 0.95, TIME)
    assert text.count('class="open"') == 5 and text.count("<circle") == 3 == text.count('class="out"')
    assert "never reached in 4" in text


def test_a_margin_is_a_band_with_its_label():
    """Around 0, as wide as the margin on both sides, behind every line that is tested for equality; without a test there is none."""
    text = forest([effect(-5.8, 4.5, p_equal=0.07), MORE], "none", 0.95)
    (left, width) = map(float, *re.findall(r'class="band" x="([\d.]+)%" width="([\d.]+)%"', text))
    zero = float(re.search(r'class="zero" x1="([\d.]+)%', text)[1])
    assert left + width / 2 == pytest.approx(zero, abs=0.02)
    assert "equivalent: ±10" in text and "The shaded band is the margin of equivalence, ±10" in text
    assert "band" not in forest([LESS, MORE], "none", 0.95)
