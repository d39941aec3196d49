# SPDX-License-Identifier: Apache-2.0
"""data/metrics.json: its numbers are those of the evaluations, and they are few."""

from __future__ import annotations

import random
import re
from statistics import fmean, stdev

import pytest

from eldistill.tables import summary
from eldistill.tables.summary import Evaluation

NAME = "fd5k_judge-a_heldout"


def evaluation(value: float, curve=((0, 9.0), (100, 4.0), (200, 2.0)), **more: float) -> Evaluation:
    rows = [{"n_images": str(n), "fd2k_judge-a_heldout": str(d), "fd2k_judge-a_train": "0"} for n, d in curve]
    return Evaluation({NAME: value, "fd5k_judge-a_train": 0.0, "copied5k_judge-a": 0.5} | more, rows)


def leaves(nested: dict) -> list[float]:
    return [leaf for value in nested.values() for leaf in (leaves(value) if isinstance(value, dict) else [value])]


def runs(arms: int, seeds: int = 3) -> summary.Runs:
    """Arms over methods, two supplements in each; values that a seed decides."""
    draw = random.Random(arms)
    named = [("digits", f"m{i // 2}", ("none", "el")[i % 2]) for i in range(arms)]
    return {arm: {str(seed): evaluation(draw.uniform(1, 5)) for seed in range(seeds)} for arm in named}


def test_the_numbers_of_an_arm():
    """Mean, deviation and seeds of the metric that ranks; the median of the images to the baseline's final distance."""
    slow = [(200, 2.0), (0, 9.0), (100, 5.0)]
    fast = [(0, 9.0), (100, 2.0), (200, 1.0)]
    found = summary.summarise(
        {
            ("digits", "di", "none"): {"0": evaluation(3.0, slow), "1": evaluation(5.0, slow)},
            ("digits", "di", "el"): {"0": evaluation(2.0, fast), "1": evaluation(1.0, slow)},
        }, {"digits": "judge-a"}, "none",
    )["digits"]["di"]  # fmt: skip
    assert found["none"] == {f"{NAME}_mean": 4.0, f"{NAME}_sd": stdev([3, 5]), "seeds": 2, "images_to_quality": 200}
    assert found["el"] == {f"{NAME}_mean": 1.5, f"{NAME}_sd": stdev([2, 1]), "seeds": 2, "images_to_quality": 150}


def test_a_published_measure_ranks_where_it_was_taken():
    run = evaluation(3.0, **{"fid50k_inception_edmref": 1.5, "fid50k_inception_edmref_min": 1.4})
    found = summary.summarise({("cifar10", "di", "none"): {"0": run}}, {"cifar10": "judge-a"}, "none")
    assert found["cifar10"]["di"]["none"]["fid50k_inception_edmref_mean"] == 1.5


@pytest.mark.parametrize("curve", [[(0, 2.0), (100, 3.0)], [(100, 3.0)]])
def test_a_baseline_that_did_not_improve_is_no_goal(curve):
    assert summary.images_to_quality(evaluation(1.0), evaluation(1.0, curve), "judge-a") is None


def test_what_is_never_reached_has_no_number():
    assert summary.images_to_quality(evaluation(1.0, [(0, 9.0), (200, 8.0)]), evaluation(1.0), "judge-a") is None


@pytest.mark.parametrize("arms", [1, 2, 5, 6, 10, 19, 20, 21, 30, 200])
def test_there_are_never_more_than_twenty(arms):
    """And each is the mean of its arm, or the geometric mean of ratios of such means."""
    made = runs(arms)
    found = summary.summarise(made, {"digits": "judge-a"}, "none")
    assert 1 <= len(leaves(found)) <= summary.LIMIT
    if arms <= summary.LIMIT:
        for (data, method, supplement), seeds in made.items():
            mean = found[data][method][supplement][f"{NAME}_mean"]
            assert mean == fmean(run.metrics[NAME] for run in seeds.values())
        return
    means = {arm: fmean(run.metrics[NAME] for run in seeds.values()) for arm, seeds in made.items()}
    ratios = [means[d, m, "el"] / means[d, m, "none"] for d, m, s in made if s == "none" and (d, m, "el") in made]
    product = 1.0
    for ratio in ratios:
        product *= ratio ** (1 / len(ratios))
    assert found == {"el": {"ratio_to_none": pytest.approx(product), "arms": len(ratios)}}


def test_every_name_says_what_it_is():
    found = summary.summarise(runs(2), {"digits": "judge-a"}, "none")
    assert all(re.fullmatch(r"fd5k_judge-a_heldout_(mean|sd)|seeds|images_to_quality", name)
               for arm in found["digits"]["m0"].values() for name in arm)  # fmt: skip


def test_several_points_of_one_number_of_images_need_no_order():
    """A short run has several snapshots of one iteration. On a GPU their values may differ in the last digit."""
    twice = [(0, 9.0), (64, 4.0), (64, 4.000001), (128, 2.0)]
    assert summary.images_to_quality(evaluation(1.0, twice), evaluation(1.0, [(0, 9.0), (128, 4.0)]), "judge-a") == 64


def test_a_ratio_is_of_the_seeds_that_both_arms_have():
    """The baseline has more seeds, which are worse: they are no merit of the other arm."""
    made = runs(summary.LIMIT + 2)
    before = summary.summarise(made, {"digits": "judge-a"}, "none")
    for (_, _, supplement), seeds in made.items():
        if supplement == "none":
            seeds |= {"7": evaluation(1e6)}
    made["digits", "m99", "el"] = {"0": evaluation(1.0)}  # without a baseline
    assert summary.summarise(made, {"digits": "judge-a"}, "none") == before
