# SPDX-License-Identifier: Apache-2.0
"""The summary over several feature spaces: ratios, means and spreads with closed forms, and which spaces count for whom."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from eldistill.errors import Problem
from eldistill.evaluate import gaussians
from eldistill.metrics import sw
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.plan.related import related_spaces
from eldistill.registry import available, literal, spaces
from eldistill.tables import across, acrosstext
from eldistill.tables.results import Result
from tests import conftest
from tests.conftest import ROOT
from tests.tables import test_tables
from tests.tables.test_tables import write

FLOORS = {"judge-a": 0.5, "judge-b": 2.0, "pixels": 0.125}
PARAMS = {"confidence": 0.95, "baseline": "none"}
EL, NONE, PIXEL = "toy/di/el", "toy/di/none", "toy/di/pixel-mmd"


def metrics(ratios: dict[str, float], train: float = 1.0, n: str = "5k", metric: str = "fd") -> dict[str, float]:
    """Metrics whose ratios to FLOORS are these for held-out images, and `train` times as large for train images."""
    return {
        f"{metric}{n}_{space}_{part}": ratio * FLOORS[space] * (train if part == "train" else 1)
        for space, ratio in ratios.items()
        for part in ("heldout", "train")
    }


def real(metric: str = "fd", floors: dict[str, float] = FLOORS) -> dict[str, float]:
    return {
        f"{metric}{n}_{space}_{part}": floor
        for space, floor in floors.items()
        for n, part in (("1000", "heldout"), ("250", "train"))
    }


def rows_of(root: Path, runs: dict[str, dict[str, float]], reals=None, teacher=None, **changes) -> list[dict]:
    """The rows of runs {run: metrics}."""
    write(root / "data/evaluations/toy/real/metrics.json", reals or real())
    write(root / "data/evaluations/toy/teacher/metrics.json", teacher or metrics(dict.fromkeys(FLOORS, 1.5)))
    results = [Result(run, found, [], {}) for run, found in runs.items()]
    return across.rows_across(results, PARAMS | changes, root)


def arm(rows: list[dict], name: str) -> dict:
    return next(row for row in rows if f"{row['data']}/{row['method']}/{row['supplement']}" == name)


# --- numbers ----------------------------------------------------------------------------------------------


def test_means_and_spreads_have_closed_forms(tmp_path):
    """Ratios 2, 4, 8 have the geometric mean 4; factors √2 and 1/√2 of two seeds leave it, and are their spread."""
    seeds = {0: math.sqrt(2), 1: 1 / math.sqrt(2)}
    runs = {
        f"{EL}/{n}": metrics({"judge-a": 2 * f, "judge-b": 4 * f, "pixels": 8 * f}, train=0.5) for n, f in seeds.items()
    }
    row = arm(rows_of(tmp_path, runs), EL)
    assert (
        row["heldout"] == pytest.approx(4)
        and row["train"] == pytest.approx(2)
        and row["train_to_heldout"] == pytest.approx(0.5)
    )
    assert row["heldout_over_seeds"] == pytest.approx(math.exp(statistics.stdev([math.log(2) / 2, -math.log(2) / 2])))
    assert row["heldout_over_spaces"] == pytest.approx(2), "the standard deviation of log 2, log 4 and log 8 is log 2"
    assert (row["lowest_space"], row["highest_space"]) == ("judge-a", "pixels")
    assert row["lowest"] == pytest.approx(2) and row["highest"] == pytest.approx(8)
    assert row["unrelated"] == pytest.approx(4) and row["related"] is None and row["seeds"] == 2


def test_the_scale_of_a_feature_space_does_not_matter(tmp_path):
    """Distances of a space and their floor times any factor: no number changes."""
    runs = {
        f"{EL}/0": metrics({"judge-a": 3, "judge-b": 5, "pixels": 7}),
        f"{NONE}/0": metrics(dict.fromkeys(FLOORS, 4)),
    }
    times = lambda found: {key: value * (1000 if "pixels" in key else 1) for key, value in found.items()}  # noqa: E731
    teacher = metrics(dict.fromkeys(FLOORS, 1.5))
    before = rows_of(tmp_path, runs, teacher=teacher)
    after = rows_of(tmp_path, {run: times(found) for run, found in runs.items()}, times(real()), times(teacher))
    for one, other in zip(before, after, strict=True):
        assert one == {
            key: pytest.approx(value, rel=1e-12) if isinstance(value, float) else value for key, value in other.items()
        }


def test_the_ratio_to_the_baseline_is_paired_by_seed(tmp_path):
    """Logarithms of the ratios of pairs, and Student's interval of their mean; what is common to a pair cancels."""
    logs, runs = [0.1, -0.3, -0.4], {}
    for seed, log in enumerate(logs):
        runs[f"{NONE}/{seed}"] = metrics(dict.fromkeys(FLOORS, 2.0**seed))
        runs[f"{EL}/{seed}"] = metrics(dict.fromkeys(FLOORS, 2.0**seed * math.exp(log)))
    runs[f"{EL}/7"] = metrics(dict.fromkeys(FLOORS, 99.0))
    rows = rows_of(tmp_path, runs)
    row = arm(rows, EL)
    half = stats.t.ppf(0.975, 2) * statistics.stdev(logs) / math.sqrt(3)
    assert row["paired_seeds"] == 3 and row["to_baseline"] == pytest.approx(math.exp(-0.2))
    assert row["to_baseline_low"] == pytest.approx(math.exp(-0.2 - half))
    assert row["to_baseline_high"] == pytest.approx(math.exp(-0.2 + half))
    assert arm(rows, NONE)["to_baseline"] is None
    other = arm(rows_of(tmp_path, runs, baseline="di/el"), NONE)
    assert other["to_baseline"] == pytest.approx(math.exp(0.2)), "a baseline of another method has METHOD/SUPPLEMENT"


@pytest.mark.parametrize(("metric", "power"), [("fd", 1.0), ("sw", 0.5)])
def test_images_of_the_true_distribution_have_the_ratio_that_the_row_names(tmp_path, metric, power):
    """(1/n + 1/train) / (1/n + 1/held-out), and its root for a distance that is not squared; measured here on normal features."""
    found = metrics(dict.fromkeys(FLOORS, 2.0), metric=metric, n="500")
    rows = rows_of(tmp_path, {f"{EL}/0": found}, real(metric), found)
    expected = ((1 / 500 + 1 / 1000) / (1 / 500 + 1 / 250)) ** power
    assert arm(rows, EL)["train_to_heldout_real"] == pytest.approx(expected) and arm(rows, EL)["metric"] == metric
    draw, parts = np.random.default_rng(0), []
    for _ in range(40):
        fake, train, heldout = (draw.normal(size=(n, 4)) for n in (500, 1000, 250))
        measure = gaussians.fd if metric == "fd" else lambda a, b, _: sw.measure(a, b, sw.Numbers(30, 0))
        parts.append([measure(fake, part, {}) for part in (train, heldout)])
    assert np.divide(*np.mean(parts, axis=0)) == pytest.approx(expected, rel=0.1)


def test_memorised_images_show_as_train_far_below_held_out(tmp_path):
    runs = {
        f"{EL}/0": metrics(dict.fromkeys(FLOORS, 2.0), train=0.05),
        f"{NONE}/0": metrics(dict.fromkeys(FLOORS, 2.0), train=0.8),
    }
    rows = rows_of(tmp_path, runs)
    assert (
        arm(rows, EL)["train_to_heldout"] < arm(rows, EL)["train_to_heldout_real"] < arm(rows, NONE)["train_to_heldout"]
    )


# --- which spaces -----------------------------------------------------------------------------------------


def test_all_arms_are_averaged_over_spaces_that_are_related_to_none(tmp_path):
    """A control on pixels has gamed the pixels: no row's mean has them, and its own column shows it."""
    runs = {
        f"{NONE}/0": metrics({"judge-a": 4, "judge-b": 4, "pixels": 4}),
        f"{PIXEL}/0": metrics({"judge-a": 4, "judge-b": 9, "pixels": 1e-3}),
    }
    rows = rows_of(tmp_path, runs, related={PIXEL: ["pixels"]})
    assert {row["spaces"] for row in rows} == {"judge-a judge-b"}
    pixel, none = arm(rows, PIXEL), arm(rows, NONE)
    assert (
        pixel["heldout"] == pytest.approx(6)
        and pixel["related"] == pytest.approx(1e-3)
        and pixel["related_spaces"] == "pixels"
    )
    assert none["unrelated_spaces"] == "judge-a judge-b pixels" and none["related"] is None
    text = acrosstext.markdown(rows, PARAMS)
    assert (
        "over judge A and judge B, which are related to no ensemble" in text
        and "(pixels)" in text
        and "2607.02375" in text
    )


def test_with_one_common_space_each_arm_has_its_own_and_none_is_compared(tmp_path):
    two = {key: value for key, value in FLOORS.items() if key != "judge-b"}
    found = lambda value: metrics(dict.fromkeys(two, value))  # noqa: E731
    rows = rows_of(
        tmp_path,
        {f"{NONE}/0": found(4.0), f"{PIXEL}/0": found(2.0)},
        real(floors=two),
        found(1.5),
        related={PIXEL: ["pixels"]},
    )
    none, pixel = arm(rows, NONE), arm(rows, PIXEL)
    assert none["heldout"] == pytest.approx(4) and none["spaces"] == "judge-a pixels"
    assert pixel["heldout"] is None and pixel["spaces"] is None and pixel["unrelated"] == pytest.approx(2)
    assert not any(row["to_baseline"] for row in rows)
    assert "Rows compare only if their spaces are equal" in acrosstext.markdown(rows, PARAMS)
    assert r"-- & -- & -- & --" in acrosstext.latex(rows, PARAMS)


def test_one_space_is_no_summary(tmp_path):
    one = {"judge-a": 0.5}
    rows = rows_of(tmp_path, {f"{NONE}/0": metrics({"judge-a": 4.0})}, real(floors=one), metrics({"judge-a": 1.5}))
    assert (
        rows == []
        and acrosstext.markdown(rows, PARAMS) == acrosstext.NONE + "\n"
        and acrosstext.NONE.split("`")[0] in acrosstext.page([], PARAMS)
    )


@pytest.mark.parametrize("value", [0.0, -1e-12])
def test_a_distance_of_zero_has_no_ratio_and_its_space_is_left_out(tmp_path, value):
    runs = {
        f"{NONE}/0": metrics(dict.fromkeys(FLOORS, 2.0)),
        f"{EL}/0": metrics(dict.fromkeys(FLOORS, 2.0)) | {"fd5k_pixels_train": value},
    }
    rows = rows_of(tmp_path, runs)
    assert {row["spaces"] for row in rows} == {"judge-a judge-b"} and all(math.isfinite(row["heldout"]) for row in rows)


def test_a_distance_that_is_not_finite_stops_the_tables(tmp_path):
    with pytest.raises(Problem, match="not finite"):
        rows_of(
            tmp_path, {f"{NONE}/0": metrics(dict.fromkeys(FLOORS, 2.0))}, real() | {"fd1000_pixels_heldout": math.nan}
        )


# --- the rule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", available("ensemble"))
def test_a_family_names_feature_spaces_that_exist(family):
    """`teacher` is what a space with its features would be called."""
    assert set(literal(f"ensemble/{family}", "RELATED", ())) <= {*spaces(), "teacher"}


def test_runs_are_related_through_their_ensembles_and_what_they_start_from():
    values = conftest.shipped()
    distil = values["distil"]
    distil["methods"]["later"] = {"like": "di", "start_from": "di/pixel-mmd"}
    loaded = params.from_values(values, ROOT)
    runs = [
        loaded.run(f"digits/{arm}/0") for arm in ("di/none", "di/el", "di/pixel-mmd", "di/el+pixel-mmd", "later/none")
    ]
    found = {arm.removeprefix("digits/"): each for arm, each in related_spaces(loaded, runs).items()}
    assert found == dict.fromkeys(("di/pixel-mmd", "di/el+pixel-mmd", "later/none"), ["pixels"])


def test_a_table_knows_what_its_runs_are_related_to():
    """It is a parameter of tables and studies: another ensemble makes them anew, and no run or evaluation."""
    plan = Plan(params.from_values(conftest.shipped(), ROOT))
    step = plan.tables("demo")
    assert (
        step.params["related"] == {"digits/di/pixel-mmd": ["pixels"], "digits/dmd/pixel-mmd": ["pixels"]}
        and "across" in step.modules
    )
    assert not any("related" in each.recipe for each in step.upstream)


# --- files ------------------------------------------------------------------------------------------------


def test_a_suite_has_the_summary_in_its_files(tmp_path, monkeypatch):
    """The numbers of spaces.csv are those of runs.csv and of the reference runs."""
    root, runs = test_tables.add_suite(tmp_path)
    for module, name in (
        (test_tables.tables.curves, "draw_curves"),
        (test_tables.tables.costs, "draw_costs"),
        (test_tables.tables.costs, "draw_ratios"),
    ):
        monkeypatch.setattr(module, name, lambda paths, *_: [path.touch() for path in paths])
    outputs = test_tables.make(root, runs)
    row = next(row for row in test_tables.read(outputs["spaces.csv"]) if row["supplement"] == "none")
    logs = [
        math.log(
            float(run[f"fd5k_{space}_heldout"]) / test_tables.metrics(0.125, "1437", "360")[f"fd1437_{space}_heldout"]
        )
        for run in test_tables.read(outputs["runs.csv"])
        if run["supplement"] == "none"
        for space in test_tables.SPACES
    ]
    assert float(row["heldout"]) == pytest.approx(math.exp(statistics.fmean(logs)))
    text, tex = outputs["spaces.md"].read_text(), outputs["spaces.tex"].read_text()
    assert "| di/none | 3 |" in text and "nan" not in text.lower() and "None" not in text + tex
    head, *lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") == head.count("|") for line in lines)
    assert all(line.count("&") == 4 for line in re.findall(r"^.*&.*\\\\$", tex, re.MULTILINE)) and "\\textwidth" in tex
