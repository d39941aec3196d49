# SPDX-License-Identifier: Apache-2.0
"""Numbers in tables and sentences: as many digits as their uncertainty allows, and no more."""

from __future__ import annotations

import random
import re

import pytest

from eldistill.tables.effects import spanned_percent
from eldistill.tables.results import decimals, plus_minus, signed_percent, spanned


def drawn(seed: int) -> tuple[float, float, float]:
    """A difference with its interval, over nine orders of magnitude."""
    draw = random.Random(seed)
    middle, half = draw.gauss(0, 1) * 10 ** draw.uniform(-3, 4), 10 ** draw.uniform(-3.5, 4)
    return middle, middle - half, middle + half


@pytest.mark.parametrize("seed", range(300))
def test_an_interval_is_rounded_to_two_digits_of_its_half_and_keeps_what_it_says(seed):
    """All three numbers have the same places; each is off by half a place at most; 0 is inside exactly where it was."""
    numbers = drawn(seed)
    text = spanned(*numbers)
    printed = re.fullmatch(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]", text).groups()
    places = {len(each.partition(".")[2]) for each in printed}
    wanted = decimals((numbers[2] - numbers[1]) / 2)
    assert len(places) == 1 and places.pop() >= max(0, wanted)
    assert all(
        abs(float(each) - number) <= 0.5000001 * 10.0**-wanted for each, number in zip(printed, numbers, strict=True)
    )
    assert (float(printed[1]) <= 0 <= float(printed[2])) == (numbers[1] <= 0 <= numbers[2])
    assert "-0.0" not in text or all(float(each) for each in printed if each.startswith("-"))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((-0.0349, -0.679, 0.610), "-0.03 [-0.68, 0.61]"),
        ((-0.0004, -0.807, 0.806), "0.00 [-0.81, 0.81]"),
        ((-0.0305, -0.0527, -0.00829), "-0.030 [-0.053, -0.008]"),
        ((5.0, 0.004, 9.996), "5.000 [0.004, 9.996]"),  # it excludes 0, and says so
        ((150.0, 20.0, 280.0), "150 [20, 280]"),
        ((0.5, None, None), "0.500"),
        ((1e-5, -1e-5, 3e-5), "1.00e-05 [-1.00e-05, 3.00e-05]"),
        ((-3.0, -3.0, -3.0), "-3.00 [-3.00, -3.00]"),
    ],
)
def test_intervals_as_they_are_printed(numbers, text):
    assert spanned(*numbers) == text


@pytest.mark.parametrize("seed", range(50))
def test_a_difference_and_a_mean_of_equal_uncertainty_have_equal_places(seed):
    middle, low, high = drawn(seed)
    half = (high - low) / 2
    mean = plus_minus(middle, half).partition(" ")[0]
    assert len(mean.partition(".")[2]) <= len(spanned(middle, low, high).partition(" ")[0].partition(".")[2])


@pytest.mark.parametrize("seed", range(200))
def test_percent_has_no_more_digits_than_its_interval(seed):
    """In tables and in plots: to the second digit of half of the interval, with its sign, and 0 without one."""
    middle, low, high = drawn(seed)
    places = decimals((high - low) / 2)
    # A difference in other units than percent, by a factor of 7.
    text = signed_percent({"percent": 7 * middle, "difference": middle, "low": low, "high": high})
    wanted = decimals(7 * (high - low) / 2)
    assert len(text.partition(".")[2]) == max(0, wanted)
    assert float(text) == pytest.approx(7 * middle, abs=0.5000001 * 10.0**-wanted)
    assert text.startswith(("+", "-")) is (float(text) != 0)
    for printed, value in zip(spanned_percent(middle, low, high), (middle, low, high), strict=True):
        assert float(printed.replace("−", "-")) == pytest.approx(value, abs=0.5000001 * 10.0**-places)
        assert len(printed.partition(".")[2]) >= max(0, places) and printed.startswith("+") is (
            float(printed.replace("−", "-")) > 0
        )
    assert signed_percent({"percent": 3.25, "difference": 1.0}) == "+3.2" and signed_percent({"percent": None}) == ""
