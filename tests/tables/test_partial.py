# SPDX-License-Identifier: Apache-2.0
"""What a page of a part of the runs says: numbers of runs, arms that lack seeds, and how many more would decide."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from eldistill.tables import inference
from eldistill.tables.results import Result
from eldistill.tables.studies import partial
from eldistill.tables.studies.study import Study

PARAMS = {
    "kind": "contrast",
    "against": "none",
    "margin": 0.1,
    "confidence": 0.95,
    "beds": {"toy": ["toys", "judge-a"]},
}


def study(logs, **changes) -> Study:
    """The arm el, whose ratios to none have these logarithms, seed by seed."""
    values = {"none": [2.0] * len(logs), "el": [2.0 * math.exp(log) for log in logs]}
    found = [
        Result(f"toy/di/{arm}/{seed}", {"fd5k_judge-a_heldout": value}, [], {})
        for arm, each in values.items()
        for seed, value in enumerate(each)
    ]
    return Study(found, PARAMS | changes, {})


def logs_of(mean: float, deviation: float, n: int) -> list[float]:
    """n numbers with exactly this mean and standard deviation."""
    z = np.linspace(-1, 1, n)
    return list(mean + deviation * z / z.std(ddof=1))


def test_the_paragraph_counts_and_names_what_is_missing():
    missing = [f"toy/di/el/{seed}" for seed in (3, 4)] + ["toy/dmd/none/3"]
    text = partial.count_runs({"asked": 20, "missing": missing}, "mine")
    assert text == (
        "**17 of 20 runs made.** Missing (arm and seeds): toy/di/el 3, 4; toy/dmd/none 3. "
        "`snakemake all --config suite=mine` makes them.\n\n"
    )
    missing = [f"toy/di/{arm}/{seed}" for arm in ("none", "el") for seed in (7, 3, 4, 5, 10, 11)] + ["toy/di/fd/3"]
    assert "seeds): toy/di/{none,el} 3–5, 7, 10, 11; toy/di/fd 3. " in partial.count_runs(
        {"asked": 20, "missing": missing}, "mine"
    )
    many = [f"toy/di-r{arm}/el/0" for arm in range(partial.LISTED + 5)]
    text = partial.count_runs({"asked": 40, "missing": many}, "mine")
    assert text.count("; ") == partial.LISTED and "; and seeds of 5 other arms." in text


@pytest.mark.parametrize("n", [2, 3, 5, 8])
@pytest.mark.parametrize("deviation", [0.05, 0.1, 0.3])
def test_the_number_of_seeds_is_that_of_the_power(n, deviation):
    """Simulated: with that many pairs of equal arms the tests of equivalence succeed in 80 of 100 cases, with fewer in fewer."""
    logs = logs_of(0.0, deviation, n)
    needed = inference.seeds_for_equivalence(logs, math.log(1.1), 0.05)
    said = partial.undecided(study(logs))
    if min(inference.paired_p(logs), inference.equivalence_p(logs, math.log(1.1))) < 0.05:
        assert not said
        return
    (sentence,) = said
    assert sentence.startswith("toy/di/el against none: undecided") and f"over {n} pairs" in sentence
    more = re.search(r"about (\d+) more seed", sentence)
    assert (int(more[1]) if more else 0) == max(0, needed - n)
    draws = np.random.default_rng(0).normal(0, deviation, (400, max(needed, 2)))
    won = np.mean([inference.equivalence_p(list(row), math.log(1.1)) < 0.05 for row in draws])
    assert won > 0.72


def test_what_is_decided_is_not_called_undecided():
    """Neither a clear difference, nor equivalence within the margin."""
    assert partial.undecided(study(logs_of(-0.5, 0.1, 5))) == [] == partial.undecided(study(logs_of(0.0, 0.01, 5)))
    assert partial.undecided(study([0.0, 0.0])) == [] == partial.undecided(study([0.2, 0.2]))


def test_too_few_pairs_say_so():
    assert partial.undecided(study([0.1])) == [
        "toy/di/el against none: undecided, with 1 pair of seeds; two or more show how much they vary."
    ]
    lonely = study([0.1, 0.2])
    lonely = Study([result for result in lonely.results if result.arm[2] == "el"], lonely.params, {})
    assert "with 0 pairs of seeds" in partial.undecided(lonely)[0]


def test_an_arm_of_the_baselines_name_under_another_method_is_compared():
    """Its baseline is METHOD/SUPPLEMENT, and has no run yet."""
    whole = study([0.1, 0.2], against="dmd/none")
    assert [text.split(" ")[0] for text in partial.undecided(whole)] == ["toy/di/none", "toy/di/el"]


def test_a_distance_of_zero_has_no_ratio_and_other_kinds_no_sentence():
    zero = study([0.1, 0.2])
    zero.results[0].metrics["fd5k_judge-a_heldout"] = 0.0
    assert partial.undecided(zero) == []
    told = partial.describe(study([0.3, -0.3], kind="speed", partial={"asked": 4, "missing": ["toy/di/el/9"]}), "mine")
    assert "undecided" not in told and "**3 of 4 runs made.**" in told
