# SPDX-License-Identifier: Apache-2.0
"""Names for readers: variants are called after what they change, as the parameters say."""

from __future__ import annotations

import re

import pytest

from eldistill.plan import called, params
from eldistill.plan.run import Run
from eldistill.tables import names
from tests import conftest
from tests.conftest import ROOT

PROJECT = params.load_params(ROOT / "params.yaml")
# An ending of a raw name that says nothing to a reader: letters and a number, such as r2, t1, b16, w035.
CRYPTIC = re.compile(r"\((?:[a-z]{1,2}\d+)\)")


def all_of(suite):
    """What the arms of a suite are called, long and short."""
    runs = list(PROJECT.runs(suite))
    with names.variants(called.notes(PROJECT, runs)):
        for run in runs:
            yield from (names.data_name(run.data).text, names.data_name(run.data).short)
            yield from vars(names.arm_name(run.method, run.supplement)).values()


@pytest.mark.parametrize("suite", PROJECT.values["suites"])
def test_no_suite_has_an_arm_with_a_cryptic_name(suite):
    """In no data setting, method or supplement; every name has its text, and no two arms of a suite share one."""
    assert not {name for name in all_of(suite) if CRYPTIC.search(name) or not name}
    runs = list(PROJECT.runs(suite))
    with names.variants(called.notes(PROJECT, runs)):
        arms = {(run.data, run.method, run.supplement) for run in runs}
        known = {
            (names.data_name(data).text, names.arm_name(method, supplement).text) for data, method, supplement in arms
        }
    assert len(known) == len(arms)


def test_what_differs_is_in_the_name():
    runs = [Run("digits-t2", method, supplement, 0) for method in ("di-r2", "di-b16", "di-base", "sid2a", "di")
            for supplement in ("el-w035", "el-base", "regression+el-k8", "el-synthetic")]  # fmt: skip
    runs += [Run("digits", "di", "none", 0), Run("digits-t1", "di", "none", 0)]
    with names.variants(called.notes(PROJECT, runs)):
        assert names.data_name("digits-t2").text in ("8×8 digits, second teacher", "8×8 digits, third teacher")
        assert names.method_name("di-r2").short == "DI, rates × 2" and names.method_name("sid2a").short == "SiD²A"
        assert names.arm_name("di-b16", "el-base").short == "DI + EL, batch 16"
        assert names.arm_name("di-r2", "none").text == "Diff-Instruct, rates × 2"
        assert names.arm_name("di", "el-w035").short == "DI + EL (weight 0.35)"
        assert names.supplement_name("regression+el-k8").short == "regression + EL (ensemble conv8)"
        assert names.supplement_name("el-synthetic").short == "EL (5,000 images of the teacher)"
        assert names.data_name("digits, 3 teachers").text == "8×8 digits, 3 teachers"
        assert r"$\times$" in names.method_name("di-r2").tex
    assert names.method_name("di-r2").short == "DI (r2)"  # outside of a suite nothing is known


def test_teachers_are_counted_among_the_settings_of_the_suite():
    """Another data setting that is like the same one, but not in the suite, has no place in the count."""
    runs = [Run(data, "dmd", "el", 0) for data in ("digits", "digits-t1", "digits-t2")]
    assert called.notes(PROJECT, runs)["data"] == {
        "digits-t1": ["digits", "second teacher"], "digits-t2": ["digits", "third teacher"]
    }  # fmt: skip
    assert called.notes(PROJECT, runs[1:])["data"]["digits-t1"] == ["digits", "teacher digits-t1"]
    assert called.notes(PROJECT, runs[:1]) == {}


def test_a_users_own_name_stays_and_its_variants_are_described():
    values = conftest.shipped()
    own = {"like": "di", "rate": 3}
    values["distil"]["methods"] |= {"mine": own, "mine-b8": {"like": "mine", "per_data": {"digits": {"batch": 8}}},
                                    "di-many": {"like": "di", "P_mean": 1.0, "P_std": 2.0, "sigma_init": 1.0}}  # fmt: skip
    project = params.Params(values, ROOT)
    runs = [Run("digits", method, "el", 0) for method in ("mine", "mine-b8", "di-many")]
    with names.variants(called.notes(project, runs)):
        assert [names.method_name(run.method).short for run in runs] == ["mine", "mine, batch 8", "DI (many)"]
