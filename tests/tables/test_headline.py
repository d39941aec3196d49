# SPDX-License-Identifier: Apache-2.0
"""The headline of a page and its forest plot: what they say of made-up results, and that they never say more."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from eldistill.tables.effects import Effect, of_study, of_suite, of_times, other_spaces, signed
from eldistill.tables.headline import TIME, elsewhere, headline, headline_html
from eldistill.tables.intervals import forest, scale_of

ARMS = ("DMD + EL", "CD + EL", "DI + EL", "SiD + EL", "ECT + EL")


def effect(percent, low=None, high=None, p=None, arm=ARMS[0], data="digits", family=4, pairs=3):
    return Effect(
        data, arm, f"{arm.split()[0].lower()}/el", percent, low, high, p, None if p is None else family, pairs, 0.05
    )


HELPED = effect(-29.0, -36.0, -22.0, 0.003)
HARMED = effect(9.8, 3.4, 16.2, 0.01, ARMS[1])
OPEN = effect(-5.7, -47.0, 35.0, 1.0, ARMS[2])
ALONE = effect(-12.0, -20.0, -4.0, 0.3, ARMS[3])


def test_what_helped_is_the_claim_with_its_size_and_what_is_undecided_follows():
    claim, *rest = headline([HELPED, OPEN], "none")
    assert claim == (
        "DMD + EL lowers the Fréchet distance to held-out images, compared with no supplement: −29.0 % [−36.0, −22.0]."
    )
    assert "3 seeds" in rest[0] and "p < 0.05 after Holm's correction over all 2 comparisons" in rest[0]
    assert rest[1] == "Undecided: DI + EL −6 % [−47, +35]."


def test_harm_is_claimed_as_plainly():
    claim, *_ = headline([HARMED, OPEN], "none")
    assert claim.startswith("CD + EL raises the Fréchet distance") and claim.endswith("+9.8 % [+3.4, +16.2].")
    claim, *_ = headline([HELPED, HARMED], "none")
    assert "DMD + EL lowers" in claim and "; CD + EL raises it: +9.8 %" in claim


def test_where_nothing_is_certain_the_claim_says_so():
    """Also if an interval excludes 0: it is not corrected."""
    claim, _, last = headline([OPEN, ALONE, effect(2.0, -9.0, 13.0, 0.9, ARMS[4])], "none")
    assert claim == "None of 3 arms differs for certain from no supplement in the Fréchet distance to held-out images."
    assert "lower in 2 and higher in 1 of the 3 undecided arms" in last
    assert "By themselves, without the correction, these would differ: SiD + EL −12.0 % [−20.0, −4.0]" in last
    claim, _, last = headline([OPEN, effect(2.0, -9.0, 13.0, 0.9)], "none")
    assert "differs most, by −6 % [−47, +35]." in last
    assert headline([OPEN], "none")[0].startswith("DI + EL does not differ for certain from no supplement")


def test_a_study_that_compares_an_arm_several_times_counts_comparisons():
    claim, _, last = headline([OPEN, OPEN], "none")
    assert claim.startswith(
        "None of 2 comparisons with no supplement shows a certain difference in the Fréchet distance"
    )
    assert "of the 2 undecided comparisons" in last
    exploring = effect(-3.0, -5.0, -1.0)
    assert headline([OPEN, exploring], "none")[-1] == "1 more comparison is exploratory, without a correction."
    assert headline([exploring], "none")[0] == "Nothing is certain."


def test_one_seed_has_no_certainty():
    claim, text = headline([effect(-29.0), effect(9.8, arm=ARMS[1])], "none")
    assert claim == "Nothing is certain, because each comparison has one pair of seeds."
    assert "−29 % (DMD + EL) to +9.8 % (CD + EL)" in text
    assert "differs by −29 %." in headline([effect(-29.0)], "none")[1]
    assert headline([HELPED, effect(3.0, arm=ARMS[1])], "none")[-1] == "1 comparison with one seed cannot be tested."


def test_without_a_comparison_nothing_is_claimed():
    assert headline([], "el") == ["Nothing is compared.", "No arm shares a seed with the baseline (EL)."]
    assert forest([], "none", 0.95) == ""


def test_the_claim_comes_first_and_its_rule_in_small_print():
    text = headline_html(headline([HELPED, OPEN], "none"), ["`More`.", ""])
    assert re.fullmatch(
        r'<p class="claim">DMD \+ EL lowers .*</p><p>Undecided: .* <code>More</code>\.</p><p class="note">A difference counts as .*</p>',
        text,
    )
    assert 'class="note"' not in headline_html(headline([], "none"))


def test_several_data_settings_are_named():
    claim, rule, *_ = headline([HELPED, effect(-9.0, -12.0, -6.0, 0.01, ARMS[2], "cifar10")], "none")
    assert "2 of 2 arms lower" in claim and "DI + EL (CIFAR-10) −9.0 %" in claim and "(8×8 digits)" in claim
    assert "comparisons of a data setting" in rule


@pytest.mark.parametrize("seed", range(40))
def test_a_claim_names_only_what_remains_after_the_correction(seed):
    """Random results: `lowers` and `raises` appear if, and only if, there is such an effect; at most three are named."""
    draw, made = random.Random(seed), []
    for i in range(draw.randint(1, 12)):
        middle, half, p = draw.uniform(-60, 60), draw.uniform(1, 40), draw.choice([None, 0.001, 0.04, 0.05, 0.2, 1.0])
        ends = (None, None) if p is None else (middle - half, middle + half)
        made.append(effect(middle, *ends, p, f"M{i} + EL"))
    claim, *rest = headline(made, "none")
    for verb, lower in (("lower", True), ("raise", False)):
        sure = [each for each in made if each.certain and (each.percent < 0) is lower]
        assert bool(sure) == bool(re.search(rf"\b{verb}s? (the|it)", claim)), claim
    named = [each.arm for each in made if re.search(rf"\b{re.escape(each.arm)}\b", claim)]
    if any(each.certain for each in made):
        assert all(each.certain for each in made if each.arm in named) and len(named) <= 4
    assert all(text.endswith(".") for text in (claim, *rest)) and 2 <= 1 + len(rest) <= 4


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-9, -0.026, 0.26, -0.99, 0.996, 3.14, -9.94, 9.96, -137.6, 1e6])
def test_a_percentage_keeps_its_sign_and_two_digits(value):
    text = signed(value)
    if not value:
        assert text == "0"
        return
    back = float(text.replace("−", "-"))
    assert (back < 0) == (value < 0) and back == pytest.approx(value, rel=0.06 if abs(value) >= 0.1 else 0.5)


def row(**more):
    base = {"data": "digits", "method": "dmd", "supplement": "el", "seeds": 3, "paired_seeds": 3}
    stem = "fd_judge-a_heldout"
    values = {
        "mean": 1.0,
        "difference": -0.5,
        "difference_low": -0.75,
        "difference_high": -0.25,
        "p_holm": 0.01,
        "baseline": 2.0,
    }
    return base | {f"{stem}_{key}": value for key, value in (values | {"p_family": 2}).items()} | more


def test_effects_are_in_percent_of_the_baselines_mean():
    """An arm whose baseline's mean is not above 0 has no percentage and is named; reference runs and baselines are no effects."""
    nothing = dict.fromkeys([f"fd_judge-a_heldout_{key}" for key in ("difference", "p_holm")])
    base = row(supplement="none", **{"fd_judge-a_heldout_mean": 4.0}) | nothing  # also over seeds that are not paired
    real = row(method="real", supplement=None, seeds=None) | nothing
    params = {"primary": "judge-a", "baseline": "none", "confidence": 0.95}
    found, without = of_suite([real, base, row()], params)
    assert [(each.arm, each.percent, each.low, each.high, each.certain) for each in found] == [
        ("DMD + EL", -25.0, -37.5, -12.5, True)
    ]
    assert not without
    assert of_suite([base, row() | {"fd_judge-a_heldout_baseline": 0.0}], params) == ([], ["digits/dmd/el"])


def test_what_is_certain_in_other_features_is_said_apart():
    """Such features do not rank; each is a family of its own."""
    rows = [row(supplement="none") | {"fd_judge-a_heldout_difference": None}, row()]
    for each, p in zip(rows, (None, 0.01), strict=True):
        each |= {key.replace("judge-a", "pixels"): value for key, value in each.items()} | {
            "fd_pixels_heldout_p_holm": p
        }
    found = other_spaces(rows, {"primary": "judge-a", "baseline": "none", "confidence": 0.95})
    assert list(found) == ["pixels"]
    assert elsewhere(found).endswith("some differences are certain: in pixels DMD + EL −25 % [−38, −12] (lower).")
    assert elsewhere({"judge-b": [OPEN]}) == "In the other feature spaces no difference is certain."
    assert elsewhere({"judge-b": []}) == elsewhere({}) == ""
    both = elsewhere({"judge-b": [HELPED, HARMED], "pixels": [HARMED]})
    assert "judge B DMD + EL −29.0 % [−36.0, −22.0] (lower); in the features of judge B CD + EL +9.8 %" in both


def test_effects_of_the_time_to_a_value_are_ratios_of_iterations():
    rows = [
        {"data": "digits", "method": "di", "supplement": "el", "ratio_iterations": 0.75, "fewer_iterations": 25.0,
         "fewer_iterations_low": 10.0, "fewer_iterations_high": 40.0, "p_holm": 0.01, "p_family": 2, "pairs": 4, "bound": None,
         "of_run": 30.0},
    ]  # fmt: skip
    (found,) = of_times(rows[:1], 0.95)
    assert (found.percent, found.low, found.high) == (-25.0, -40.0, -10.0) and found.arm == "DI + EL, value at 30 %"
    assert headline([found], "none", TIME)[0].startswith(
        "DI + EL, value at 30 % lowers the number of iterations to the"
    )


def test_effects_of_a_study_are_those_of_its_rows():
    rows = [
        {"data": "digits", "method": "di", "supplement": "el", "difference": 0.5, "low": 0.25, "high": 1.0, "percent": 10.0,
         "p_holm": 0.2, "p_family": 3, "pairs": 4},
        {"data": "digits", "method": "di", "supplement": "none", "difference": None},
    ]  # fmt: skip
    (found,) = of_study(rows, {"confidence": 0.9})
    assert (found.percent, found.low, found.high, found.level) == (10.0, 5.0, 20.0, pytest.approx(0.1))
    assert found.verdict == "higher by itself, not after the correction"
    (same,) = of_study(
        [rows[0] | {"difference": 0.0, "percent": 0.0, "low": -1.0, "high": 1.0, "fd_mean": 4.0}], {"confidence": 0.9}
    )
    assert (same.low, same.percent, same.high) == (-25.0, 0.0, 25.0)


# --- the plot -----------------------------------------------------------------------------------------


def test_the_plot_has_a_line_for_each_comparison_and_says_each_in_words():
    text = forest([HELPED, HARMED, OPEN, ALONE, effect(-3.0, arm=ARMS[4])], "none", 0.95)
    kinds = re.findall(r'<li class="([a-z ]+)">', text)
    assert kinds == ["low sure", "high sure", "open", "low", "open"]
    labels = re.findall(r'role="img" aria-label="([^"]*)"', text)
    assert labels[0] == "DMD + EL: −29.0 % [−36.0, −22.0], lower, also after the correction"
    assert labels[2].endswith("undecided") and labels[4].endswith("one pair of runs, no interval")
    assert "EL: Embedding Loss" in text and "95 % intervals" in text
    assert len(re.findall("<circle", text)) == 5 and len(re.findall('class="span"', text)) == 4


def test_a_data_setting_has_a_heading_where_there_are_several():
    text = forest([HELPED, effect(-9.0, -12.0, -6.0, 0.01, data="cifar10")], "none", 0.95)
    assert re.findall(r'<li class="data">([^<]*)', text) == ["8×8 digits", "CIFAR-10"]


def test_names_are_escaped():
    text = forest([effect(-9.0, -12.0, -6.0, 0.01, arm="<b> & EL", data='"x"')], "none", 0.95)
    assert "<b> &" not in text and "&lt;b&gt; &amp; EL" in text


@pytest.mark.parametrize("seed", range(30))
def test_the_axis_holds_0_all_means_and_few_ticks(seed):
    """Whatever the intervals: one that is much wider than the others is cut with a triangle, and its numbers stand beside it."""
    draw, made = random.Random(seed), []
    for _ in range(draw.randint(1, 20)):
        middle, half = draw.gauss(0, 10 ** draw.uniform(-3, 3)), 10 ** draw.uniform(-3, 4)
        made.append(effect(middle, middle - half, middle + half, 0.5))
    scale = scale_of(made)
    assert scale.low <= 0 <= scale.high and all(scale.low <= each.percent <= scale.high for each in made)
    assert 2 <= len(scale.ticks) <= 8 and all(a < b for a, b in itertools.pairwise(scale.ticks))
    ends = [end for each in made for end in (each.low, each.high)]
    outside = sum(not scale.low <= end <= scale.high for end in ends)
    assert forest(made, "none", 0.95).count('class="out"') == outside
