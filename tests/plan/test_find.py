# SPDX-License-Identifier: Apache-2.0
"""Names of steps on the command line: what follows the last `/` is read or refused, never left out."""

from __future__ import annotations

import pytest

from eldistill.errors import SHOWN_NAMES, Problem
from eldistill.plan import params
from eldistill.plan.plan import Plan
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(params.load_params(ROOT / "params.yaml"))


@pytest.mark.parametrize(
    ("word", "name", "found"),
    [
        ("teacher", "digits/chekc", "did you mean check?"),
        ("teacher", "digits/pairs-10", "pairs-COUNT-SEED"),
        ("teacher", "digits/check/now", "is not a name that the step `teacher` knows"),
        ("tables", "speed/speed/x", "is not a name that the step `tables` knows"),
        ("tables", "speed/sped", "did you mean speed?"),
        ("data", "digits/imagse", "did you mean images?"),
        ("data", "digits/images/x", "is not a name that the step `data` knows"),
        ("data", "digits", "is not a name that the step `data` knows"),
        ("ensemble", "digits/conv4", "is not a name that the step `ensemble` knows"),
        ("evaluate", "digits/reall", "is not a name that the step `evaluate` knows"),
        ("tables", "demo/demo", "the suite demo has no studies"),
        ("tables", "deno", "did you mean demo?"),
        ("teacher", "digit", "did you mean digits?"),
        ("data", "digit/images", "did you mean digits?"),
        ("ensemble", "digits/conv/0", "did you mean conv"),
        ("distil", "digits/dii/el/0", "did you mean di?"),
        ("evaluate", "digits/di/ell/0", "did you mean el?"),
    ],
)
def test_a_name_that_nobody_knows_is_one_sentence(plan, word, name, found):
    """It does not say that a file holds the name, which was typed."""
    with pytest.raises(Problem) as error:
        plan.find(word, name)
    assert found in str(error.value) and "\n" not in str(error.value) and "params.yaml:" not in str(error.value)


def test_of_many_known_names_the_first_ones_are_listed(plan):
    with pytest.raises(Problem) as error:
        plan.find("distil", "digits/zzzz/el/0")
    count = len(plan.params.named("method")) - SHOWN_NAMES
    assert str(error.value).endswith(f"and {count} others") and count > 0


@pytest.mark.parametrize(("word", "name"), [
    ("teacher", "digits"), ("teacher", "digits/check"), ("teacher", "digits/pairs-64-0"), ("tables", "speed"), ("tables", "speed/speed"),
    ("data", "digits/images"), ("data", "digits/judge-a"), ("data", "digits/reference-judge-a"), ("ensemble", "digits/conv4/0"),
])  # fmt: skip
def test_known_ends_are_found(plan, word, name):
    assert (plan.find(word, name).word, plan.find(word, name).name) == (word, name)
