# SPDX-License-Identifier: Apache-2.0
"""A factor on the learning rates, of a method or of one of its supplements."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest

from eldistill.plan import params, rates
from eldistill.plan.plan import Plan
from eldistill.tables.results import Result
from eldistill.tables.studies.rates import find_arms
from tests.plan.test_params import SHIPPED, load, sentence


def document(factors=None, methods=None) -> dict:
    """The shipped parameters without factors, then with these for di on digits, and with more methods."""
    values = copy.deepcopy(SHIPPED)
    for each in values["distil"]["methods"].values():
        for block in (each, *each.get("per_data", {}).values()):
            block.pop("rates", None)
            block.pop("rate", None)
    if factors is not None:
        values["distil"]["methods"]["di"]["per_data"]["digits"]["rates"] = factors
    values["distil"]["methods"] |= methods or {}
    return values


def recipe(values: params.Params, arm: str) -> dict:
    return Plan(values).distil(values.run(f"digits/{arm}/0")).params["method"]


@pytest.mark.parametrize(
    ("arm", "factor"), [("di/el", 4), ("di/none", 1), ("di/regression+el", 2), ("fast/el", 8), ("fast/none", 8)]
)
def test_a_run_has_the_rates_of_its_arm(arm, factor):
    """`rates` by supplement, and `rate` before it; the recipe has nothing but the learning rates that follow."""
    fast = {"fast": {"like": "di", "rate": 8}}
    values = load(document({"el": 4, "regression+el": 2}, fast))
    found, plain = recipe(values, arm), recipe(load(document()), "di/none")
    assert rates.factor(values, values.run(f"digits/{arm}/0")) == factor
    for network in ("generator", "critic"):
        assert found[network].pop("lr") == factor * plain[network].pop("lr")
    assert found == plain and "rate" not in found and "rates" not in found


def test_the_method_at_rate_one_is_found():
    """Through a chain of methods: what a method with a `rate` is like; another method is its own."""
    more = {"fast": {"like": "di", "rate": 8}, "faster": {"like": "fast", "rate": 16}, "other": {"like": "di", "P_mean": 0.0},
            "both": {"like": "other", "per_data": {"digits": {"rate": 2}}}}  # fmt: skip
    values = load(document({}, more))
    assert [rates.base_method(values, name) for name in ("di", "fast", "faster", "other", "both")] == [
        "di",
        "di",
        "di",
        "other",
        "other",
    ]


@pytest.mark.parametrize("given", [{"ell": 2}, {"el+ell": 2}])
def test_an_unknown_supplement_is_refused(given):
    text = sentence(document(given))
    assert "rates" in text and "ell" in text and "el" in text


@pytest.mark.parametrize("given", [{"el": 0}, {"el": -1}, {"el": "2"}])
def test_a_factor_is_a_positive_number(given):
    assert "rates" in sentence(document(given))


def test_a_study_of_several_data_settings_has_the_factor_of_each():
    """One name for all settings where they agree, which recipes of older studies have; else one for each setting."""
    values = copy.deepcopy(SHIPPED)
    values["distil"]["methods"]["di"]["per_data"]["digits"]["rates"] = {"el": 4, "none": 2}
    values["distil"]["methods"]["di"]["per_data"]["digits-smoke"]["rates"] = {"el": 1, "none": 2}
    loaded = load(values)
    runs = [loaded.run(f"{data}/di/{name}/0") for name in ("el", "none") for data in ("digits", "digits-smoke")]
    assert rates.arm_rates(loaded, runs) == {
        "digits/di/el": ["di", 4.0], "digits-smoke/di/el": ["di", 1.0], "di/none": ["di", 2.0],
    }  # fmt: skip
    results = [Result(str(run), {}, [], {}) for run in runs]
    study = SimpleNamespace(params={"rates": rates.arm_rates(loaded, runs), "tuning": [0]}, results=results)
    found = {arm.key: list(arm.tuning) for arm in find_arms(study).values()}
    assert found == {
        ("digits", "di", "el"): [4.0], ("digits-smoke", "di", "el"): [1.0],
        ("digits", "di", "none"): [2.0], ("digits-smoke", "di", "none"): [2.0],
    }  # fmt: skip
