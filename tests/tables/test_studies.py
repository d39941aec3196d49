# SPDX-License-Identifier: Apache-2.0
"""Studies from synthetic runs whose answers are known, and the studies of params.yaml."""

import copy
import csv
import functools
import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from eldistill.distil import probe
from eldistill.errors import Problem
from eldistill.paths import STUDY, STUDY_ENDINGS
from eldistill.plan import params, rates, versions
from eldistill.plan.plan import Plan
from eldistill.tables.effects import of_study
from eldistill.tables.studies import comparisons, forest
from eldistill.tables.studies import page as studies
from tests import conftest
from tests.conftest import ROOT
from tests.tables.test_tables import add_run, metrics, read, write

SHIPPED = conftest.shipped()
ABLATION = SHIPPED["suites"]["ablation"]

PARAMS = {"question": "What of it?", "kind": "contrast", "against": "none", "margin": 0.1, "confidence": 0.95,
          "tuning": [100, 101]}  # fmt: skip
DRAW_STUDY = forest.draw_study
UNDRAWN = '<svg viewBox="0 0 1 1"></svg>'
BASE = (10.0, 11.0, 9.0, 10.5, 9.5)  # mean 10: the margin of equivalence is 1


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Pictures take most of the time: only the tests of pictures draw them."""
    monkeypatch.setattr(forest, "draw_study", lambda paths, rows, params: [path.write_text(UNDRAWN) for path in paths])


def add(root, run, value=1.0, log=None, flop=None, estimator="unbiased", **others):
    """One synthetic run (see add_run), with its log {column: values}, its cost and a recipe."""
    add_run(root, run, value, **others)
    path = root / f"data/runs/{run}/provenance.json"
    write(
        path.with_name("generator_ema.safetensors.recipe"),
        {"params": {"supplements": {"el": {"estimator": estimator}}}},
    )
    write(path, json.loads(path.read_text()) | {"flop_per_iteration": flop})
    columns = {"iteration": range(8), "generator.loss": [1.0] * 8} | (log or {})
    with open(path.with_name("log.csv"), "w", newline="") as file:
        csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])
    return run


def add_arm(root, supplement, values, data="toy", method="di", first=0, **others):
    """An arm with one run for each value; seeds count from `first`."""
    return [add(root, f"{data}/{method}/{supplement}/{first + i}", value, **others) for i, value in enumerate(values)]


def make(root, runs, out="out", **changes):
    """The rows of the csv, and the Markdown."""
    outputs = [root / out / f"study.{ending}" for ending in STUDY_ENDINGS]
    beds = {run.split("/")[0]: ["toys", "judge-a"] for run in runs}
    for data in beds:
        write(root / f"data/evaluations/{data}/real/metrics.json", metrics(0.125, "1437", "360"))
        write(root / f"data/evaluations/{data}/teacher/metrics.json", metrics(0.25))
    studies.make_study("study", PARAMS | {"runs": runs, "beds": beds} | changes, root, outputs)
    for path in (*outputs[:2], outputs[3]):
        assert "nan" not in path.read_text().lower() and "None" not in path.read_text()
    return read(outputs[0]), outputs[1].read_text()


def said(text, arm):
    """The sentence on an arm."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"- {arm}:") or line.startswith(f"- {arm} in"))
    return line


def titles(text):
    """The columns of the Markdown table."""
    (line, *_) = (line for line in text.splitlines() if line.startswith("| "))
    return line.strip("| ").split(" | ")


# --- contrast -----------------------------------------------------------------------------------------

DRAW = np.random.default_rng(0)
NOISE = {"none": DRAW.normal(10, 1, 5), "el": DRAW.normal(8, 1, 5), "other": DRAW.normal(9.5, 2, 5)}


def test_a_method_can_be_the_baseline(tmp_path):
    """METHOD/SUPPLEMENT: every other arm of the data setting is paired with it, its own method's too."""
    arms = {("di", "none"): (10.0, 11.0, 9.0), ("di-reuse", "none"): (10.5, 11.2, 9.4), ("di", "el"): (8.0, 9.1, 7.0)}
    runs = [run for (method, name), values in arms.items() for run in add_arm(tmp_path, name, values, method=method)]
    rows, text = make(tmp_path, runs, against="di/none")
    found = {(row["method"], row["supplement"]): row["difference"] for row in rows}
    assert found["di", "none"] == ""
    assert float(found["di-reuse", "none"]) == pytest.approx((0.5 + 0.2 + 0.4) / 3)
    assert float(found["di", "el"]) == pytest.approx(-(2.0 + 1.9 + 2.0) / 3)
    assert (
        "di-reuse/none: the distance is not distinguishable from di/none's" in text
        and "di/el: the distance is lower than di/none's" in text
    )


def test_every_number_of_a_contrast_is_numpys(tmp_path):
    """Means, deviations, paired differences, intervals, p, Holm over the table, train part, other spaces, cost."""
    runs = [run for name, values in NOISE.items() for run in add_arm(tmp_path, name, values.tolist())]
    for seed in range(5):
        add(tmp_path, f"toy/di/el/{seed}", NOISE["el"][seed], milliseconds=100.0 + seed)
    rows, text = make(tmp_path, runs)
    assert [row["supplement"] for row in rows] == list(NOISE)
    ps = [stats.ttest_rel(NOISE[name], NOISE["none"]).pvalue for name in ("el", "other")]
    corrected = [min(1, p * 2) if p == min(ps) else max(ps) for p in ps]
    corrected = [max(q, 2 * min(ps)) for q in corrected]
    for row in rows:
        values = NOISE[row["supplement"]]
        for stem, shift in (("fd", 0), ("fd_train", 0.5), ("fd_judge-b", 0.25), ("fd_pixels", 0.5), ("recall", 0.5)):
            assert float(row[f"{stem}_mean"]) == pytest.approx(values.mean() + shift, rel=1e-12)
            assert float(row[f"{stem}_sd"]) == pytest.approx(values.std(ddof=1), rel=1e-9)
        assert row["runs"].split() == [f"toy/di/{row['supplement']}/{seed}" for seed in range(5)]
    for row, p, q in zip(rows[1:], ps, corrected, strict=True):
        deltas = NOISE[row["supplement"]] - NOISE["none"]
        low, high = stats.t.interval(0.95, 4, loc=deltas.mean(), scale=stats.sem(deltas))
        wanted = {"difference": deltas.mean(), "low": low, "high": high, "p": p, "p_holm": q,
                  "percent": 100 * deltas.mean() / NOISE["none"].mean()}  # fmt: skip
        wanted |= {f"train_{key}": wanted[key] for key in ("difference", "low", "high")}
        for key, value in wanted.items():
            assert float(row[key]) == pytest.approx(value, rel=1e-9), key
        assert (row["seeds"], row["pairs"], row["lower_in"]) == ("5", "5", f"{(deltas < 0).sum()}/5")
    assert (rows[1]["step_ms_cpu"], rows[2]["step_ms_cpu"]) == ("102.0", "80.0")
    assert not any(rows[0][key] for key in ("difference", "low", "high", "p", "p_holm", "pairs", "train_low"))
    assert len([line for line in text.splitlines() if line.startswith("- ")]) == 2


def test_the_family_of_holm_is_the_table(tmp_path):
    """The same arm and the same p in tables of one, two and three tests, in whatever data setting they stand."""
    runs = add_arm(tmp_path, "none", BASE) + add_arm(tmp_path, "el", [9.0, 10.5, 8.0, 9.0, 9.0])
    ps, adjusted = [], []
    more = [add_arm(tmp_path, "wild", [12.0, 8.0, 9.0, 12.0, 9.5]),
            add_arm(tmp_path, "none", BASE, "other") + add_arm(tmp_path, "wild", BASE[::-1], "other")]  # fmt: skip
    for extra in ([], *more):
        runs = runs + extra
        row = make(tmp_path, runs)[0][1]
        ps.append(float(row["p"]))
        adjusted.append(float(row["p_holm"]))
    assert len(set(ps)) == 1 and ps[0] == pytest.approx(stats.ttest_rel([9.0, 10.5, 8.0, 9.0, 9.0], BASE).pvalue)
    assert adjusted == pytest.approx([ps[0], 2 * ps[0], 3 * ps[0]])


def test_sentences_say_what_holm_allows(tmp_path):
    """p = .004 is `lower` alone and `higher` with its sign turned; p = .03 is not, once a second test stands beside it."""
    runs = add_arm(tmp_path, "none", BASE)
    runs += add_arm(tmp_path, "low", [base - d for base, d in zip(BASE, (3, 4, 3, 2, 4), strict=True)])
    runs += add_arm(tmp_path, "high", [base + d for base, d in zip(BASE, (3, 4, 3, 2, 4), strict=True)])
    _, text = make(tmp_path, runs)
    assert "the distance is lower than none's: -3.2 [-4.2, -2.2], -32 % (p = 0.00" in said(text, "toy, di/low")
    assert "the distance is higher than none's: 3.2 [2.2, 4.2], +32 %" in said(text, "toy, di/high")
    assert "5 pairs, lower in 5/5)." in said(text, "toy, di/low")
    runs = runs[:5] + add_arm(tmp_path, "near", [base - d for base, d in zip(BASE, (1, 2, 2, 0, 1), strict=True)])
    assert 0.025 < float(make(tmp_path, runs)[0][1]["p"]) < 0.05
    assert "is lower than none's" in said(make(tmp_path, runs)[1], "toy, di/near")
    runs += add_arm(tmp_path, "wild", [12.0, 8.0, 9.0, 12.0, 9.5])
    rows, text = make(tmp_path, runs)
    assert float(rows[1]["p"]) < 0.05 < float(rows[1]["p_holm"])
    assert "is not distinguishable from none's" in said(text, "toy, di/near")
    assert "is lower than none's" in said(make(tmp_path, runs, confidence=0.9)[1], "toy, di/near")


def test_equal_is_said_only_of_what_a_test_of_equivalence_shows(tmp_path):
    """Neither is distinguishable from the baseline: one is within 10 % for sure (scipy's two one-sided tests), one is not."""
    small, wild = np.array([0.1, -0.1, 0.05, -0.1, 0.0]), np.array([3.0, -2.5, 0.5, 2.0, -3.0])
    runs = add_arm(tmp_path, "none", BASE)
    for name, deltas in (("near", small), ("wild", wild)):
        runs += add_arm(tmp_path, name, (np.array(BASE) + deltas).tolist())
    rows, text = make(tmp_path, runs)
    ps = []
    for row, deltas in zip(rows[1:], (small, wild), strict=True):
        sides = (stats.ttest_1samp(deltas, -1, alternative="greater"), stats.ttest_1samp(deltas, 1, alternative="less"))
        ps.append(max(side.pvalue for side in sides))
        assert float(row["p_equivalent"]) == pytest.approx(ps[-1], rel=1e-9) and float(row["margin"]) == pytest.approx(
            1
        )
    assert float(rows[1]["p_equivalent_holm"]) == pytest.approx(2 * ps[0]) and rows[1]["p_equivalent_family"] == "2"
    near, other = (said(text, f"toy, di/{name}") for name in ("near", "wild"))
    assert all("is not distinguishable from none's" in each for each in (near, other))
    assert "; equivalent within ±10 % (Holm over 2: " in near and near.endswith("e-05).")
    assert "; not shown equivalent within ±10 % (Holm over 2: " in other and "pairs would show it)." in other
    assert "tests of equivalence are a family of their own" in text


@pytest.mark.parametrize("kind", ["central", "contrast", "budget"])
def test_every_corrected_p_names_its_family(tmp_path, kind):
    """N of `Holm over N` is the number of rows of the table that have such a p; what has none says why."""
    runs = add_arm(tmp_path, "none", BASE)
    for name, step in (("el", 0.3), ("more", 1.5), ("most", 2.5)):
        runs += add_arm(tmp_path, name, [base + step * (i % 3) for i, base in enumerate(BASE)])
    rows, text = make(tmp_path, runs, kind=kind)
    family = sum(bool(row["p_holm"]) for row in rows)
    sizes = re.findall(r"Holm over (\d+): ", text)
    assert family >= 3 and set(sizes) == {str(family)} and len(sizes) >= family
    assert f"Holm's correction over the {family} comparisons of this table" in text
    tested = [line for line in text.splitlines() if re.search(r"^- .*\(p = ", line)]
    assert len(tested) == len([row for row in rows if row["p"]])
    assert all("Holm over" in line or "not corrected, exploratory" in line for line in tested)


def test_a_page_has_its_floors_its_teachers_and_its_runs(tmp_path):
    """For each data setting real images and the teacher, with their own number of images; a row for each run with its origin."""
    runs = add_arm(tmp_path, "none", BASE) + add_arm(tmp_path, "el", BASE[::-1], "wide")
    _, text = make(tmp_path, [*runs, *add_arm(tmp_path, "el", BASE[::-1]), *add_arm(tmp_path, "none", BASE, "wide")])
    for data in ("toy", "wide"):
        assert re.search(rf"^\| {data} \| real \(noise floor\) \| 1437 \| 0\.125 \|", text, re.M)
        assert re.search(rf"^\| {data} \| teacher \(Heun, many steps\) \| 5k \| 0\.250 \|", text, re.M)
    made = read(tmp_path / "out/study.runs.csv")
    assert len(made) == 20 and [row["data"] for row in made[:6]] == ["toy"] * 5 + ["wide"]
    assert [float(row["fd5k_judge-a_heldout"]) for row in made[:5]] == list(BASE)
    assert all(
        row["git_commit"] == "c0ffee" and row["command"].startswith("python -m eldistill distil toy/di/")
        for row in made[:5]
    )
    assert (
        made[0]["metrics_file"] == "data/evaluations/toy/di/none/0/metrics.json" and made[0]["recipe"] == "0123456789ab"
    )
    assert float(made[0]["milliseconds_per_iteration_cpu"]) > 0
    (tmp_path / "data/evaluations/toy/real/metrics.json").unlink()
    with pytest.raises(Problem, match="toy/real/metrics.json"):
        studies.make_study("study", PARAMS | {"runs": runs, "beds": {d: ["toys", "judge-a"] for d in ("toy", "wide")}},
                           tmp_path, [tmp_path / f"bad.{ending}" for ending in STUDY_ENDINGS])  # fmt: skip


def test_the_realised_gradient_ratio_is_of_the_second_half(tmp_path):
    """Mean of weight x own / base over the second half of the ticks; empty cells and a base of 0 count for nothing."""
    log = {"generator.base_rms": [1, 1, 1, 1, 2, 2, 4, 0], "el.weight": [9, 9, 9, 9, 1, 2, 3, 4],
           "el.gradient_rms": [9, 9, 9, 9, 1, 1, 2, 2], "el.trace_ratio": [0.1, "", "", 0.9, "", 0.6, "", 0.7]}  # fmt: skip
    runs = add_arm(tmp_path, "none", BASE[:2]) + add_arm(tmp_path, "el", [1.0, 2.0], log=log)
    halves = {name: [value / 2 if value else value for value in values] for name, values in log.items()}
    traces = ["", "", "", 0.2, "", 0.65, "", 0.9]
    add(tmp_path, "toy/di/el/1", 2.0, log=log | {"el.weight": halves["el.weight"], "el.trace_ratio": traces})
    none, el = make(tmp_path, runs)[0]
    ratios = [1 * 1 / 2, 2 * 1 / 2, 3 * 2 / 4]
    assert float(el["gradient_ratio"]) == pytest.approx(np.mean([*ratios, *(ratio / 2 for ratio in ratios)]))
    assert float(el["weight"]) == pytest.approx(np.mean([2.5, 1.25]))
    assert float(el["trace_ratio_min"]) == 0.6
    assert not any(none[key] for key in ("gradient_ratio", "weight", "trace_ratio_min"))


def test_arms_are_paired_on_shared_seeds_only(tmp_path):
    """The baseline has seeds 0 to 4, the arm 2 to 6: three pairs; the arm's own mean is over all five."""
    runs = add_arm(tmp_path, "none", BASE) + add_arm(tmp_path, "el", [8.0, 9.0, 9.0, 50.0, 60.0], first=2)
    row = make(tmp_path, runs)[0][1]
    deltas = np.array([8.0, 9.0, 9.0]) - BASE[2:]
    assert (row["seeds"], row["pairs"]) == ("5", "3")
    assert float(row["fd_mean"]) == pytest.approx(27.2) and float(row["difference"]) == pytest.approx(deltas.mean())
    assert float(row["percent"]) == pytest.approx(100 * deltas.mean() / np.mean(BASE[2:]))
    assert float(row["p"]) == pytest.approx(stats.ttest_1samp(deltas, 0).pvalue)


def test_pairs_are_of_one_data_setting_and_one_method(tmp_path):
    """A baseline elsewhere is no baseline: the arm stays in the table, without a comparison."""
    runs = (
        add_arm(tmp_path, "none", BASE)
        + add_arm(tmp_path, "el", BASE, "other")
        + add_arm(tmp_path, "el", BASE, method="sid")
    )
    rows, text = make(tmp_path, runs)
    assert [row["difference"] for row in rows] == ["", "", ""]
    assert "\n- " not in text


@pytest.mark.parametrize("kind", ["contrast", "central", "budget"])
def test_one_seed_allows_no_conclusion(tmp_path, kind):
    """A difference, no interval, no p, and a sentence that says so."""
    runs = add_arm(tmp_path, "none", [2.0]) + add_arm(tmp_path, "el", [1.5], curve=(4.0, 3.0, 2.0, 0.5))
    rows, text = make(tmp_path, runs, kind=kind)
    row = next(row for row in rows if row["supplement"] == "el")
    assert float(row["difference"]) == -0.5
    assert not any(row[key] for key in ("low", "high", "p", "fd_sd"))
    lines = [line for line in text.splitlines() if line.startswith("- toy, di/el")]
    assert lines and all("one paired seed, -0.500 from none: no conclusion" in line for line in lines)


@pytest.mark.parametrize("kind", ["contrast", "central", "budget"])
@pytest.mark.parametrize("shift", [0.0, -4.0])
def test_without_any_spread_nothing_breaks(tmp_path, kind, shift):
    """All runs of an arm alike: a point for an interval, p of 0 or 1."""
    runs = add_arm(tmp_path, "none", [8.0] * 3, curve=(8.0,) * 4)
    runs += add_arm(tmp_path, "el", [8.0 + shift] * 3, curve=(8.0 + shift,) * 4)
    rows, _ = make(tmp_path, runs, kind=kind)
    row = next(row for row in rows if row["supplement"] == "el")
    assert float(row["low"]) == float(row["high"]) == shift and float(row["p"]) == (shift == 0)


# --- central ------------------------------------------------------------------------------------------

DELTAS = {
    "lower": (-3.0, -3.2, -2.8, -3.1, -2.9),
    "higher": (3.0, 3.2, 2.8, 3.1, 2.9),
    "equivalent": (0.1, -0.1, 0.2, -0.2, 0.0),
    "undecided": (2.0, -2.0, 1.0, -1.0, 0.5),
}


@pytest.mark.parametrize("verdict", DELTAS)
def test_the_four_verdicts(tmp_path, verdict):
    """By the paired test at 5 % and two one-sided ones within 10 % of the baseline's mean, in every feature space."""
    deltas = np.array(DELTAS[verdict])
    runs = add_arm(tmp_path, "pixels", BASE) + add_arm(tmp_path, "el", (np.array(BASE) + deltas).tolist())
    rows, text = make(tmp_path, runs, kind="central", against="pixels")
    assert [(row["supplement"], row["space"]) for row in rows] == [
        (name, space) for space in ("judge-a", "judge-b", "pixels") for name in ("pixels", "el")
    ]
    for row, shift in zip(rows[1::2], (0, 0.25, 0.5), strict=True):
        margin = 0.1 * (10 + shift)
        above = stats.ttest_1samp(deltas, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(deltas, margin, alternative="less").pvalue
        assert row["verdict"] == verdict
        assert float(row["margin"]) == pytest.approx(margin)
        assert float(row["p"]) == pytest.approx(stats.ttest_1samp(deltas, 0).pvalue, rel=1e-6)
        assert float(row["p_equivalent"]) == pytest.approx(max(above, below), rel=1e-6)
        enough = [(stats.t.ppf(0.95, n - 1) + stats.t.ppf(0.9, n - 1)) * deltas.std(ddof=1) / margin <= math.sqrt(n)
                  for n in range(2, 100)]  # fmt: skip
        assert int(row["seeds_needed"]) == 2 + enough.index(True)
    words = {"lower": "lower than pixels, and not shown equivalent", "higher": "higher than pixels, and not shown equivalent",
             "equivalent": "equivalent to pixels within the margin",
             "undecided": f"undecided against pixels; were they equal, about {rows[1]['seeds_needed']} pairs would show it"}  # fmt: skip
    sentence = said(text, "toy, di/el in judge-a")
    assert f"toy, di/el in judge-a: {words[verdict]}:" in sentence
    assert "equivalence within ±10 %: p = " in sentence and sentence.endswith("5 pairs).")
    assert {"verdict", "p equivalent", "space"} <= set(titles(text))


def test_the_answer_is_pooled_over_data_settings(tmp_path):
    """In percent of each setting's own baseline, averaged over the settings seed by seed: the unit is a seed, for its runs
    under several teachers are no independent ones. In the primary space; first of rows and sentences."""
    runs, shares = [], []
    for data, scale, shift in (("one", 1.0, 0.0), ("two", 10.0, 0.3)):
        bases = scale * np.array(BASE)
        deltas = scale * (np.array(DELTAS["equivalent"]) + shift)
        runs += add_arm(tmp_path, "pixels", bases.tolist(), data) + add_arm(
            tmp_path, "el", (bases + deltas).tolist(), data
        )
        shares.append(100 * deltas / bases.mean())
    shares = np.mean(shares, 0)
    rows, text = make(tmp_path, runs, kind="central", against="pixels")
    pooled = [row for row in rows if row["data"] == "toys, 2 teachers"]
    assert pooled == rows[:1] and (pooled[0]["supplement"], pooled[0]["space"], pooled[0]["pairs"]) == (
        "el",
        "judge-a",
        "5",
    )
    assert float(pooled[0]["difference"]) == pytest.approx(np.mean(shares), abs=1e-9)
    assert float(pooled[0]["margin"]) == 10 and pooled[0]["verdict"] == "equivalent"
    above = stats.ttest_1samp(shares, -10, alternative="greater").pvalue
    below = stats.ttest_1samp(shares, 10, alternative="less").pvalue
    assert float(pooled[0]["p_equivalent"]) == pytest.approx(max(above, below), rel=1e-6)
    assert text.split("\n- ")[1].startswith(
        "toys, 2 teachers, di/el in judge-a: equivalent to pixels within the margin"
    )


def test_the_answers_are_one_family(tmp_path):
    """Two arms: their rows in the space that ranks are corrected for each other (Holm), the others are not."""
    runs = add_arm(tmp_path, "pixels", BASE)
    for name, deltas in (("el", (-1.6, -2.6, -0.9, -2.4, -0.2)), ("more", (1.3, 2.9, -0.3, 2.5, 0.9))):
        runs += add_arm(tmp_path, name, (np.array(BASE) + deltas).tolist())
    rows, text = make(tmp_path, runs, kind="central", against="pixels")
    first = [row for row in rows if row["space"] == "judge-a" and row["p"]]
    p = [float(row["p"]) for row in first]
    assert [float(row["p_holm"]) for row in first] == pytest.approx([2 * p[0], max(2 * p[0], p[1])])
    assert p[0] < 0.05 < max(2 * p[0], p[1]) and {row["p_holm"] for row in rows if row["space"] != "judge-a"} == {""}
    assert first[0]["verdict"] == ("lower" if 2 * p[0] < 0.05 else "undecided")
    first, explores = (said(text, f"toy, di/el in {space}") for space in ("judge-a", "judge-b"))
    assert first.count(", Holm over 2: ") == 2 and "Holm" not in explores and "not corrected, exploratory" in explores
    assert "exploratory" not in first


def test_a_small_sure_difference_is_equivalent_and_a_large_one_is_not(tmp_path):
    """The margin decides, not the p: -0.3 of 10 is sure and within 10 %, but not within 2 %, where it is `lower`."""
    runs = add_arm(tmp_path, "none", BASE)
    runs += add_arm(tmp_path, "el", [b - d for b, d in zip(BASE, (0.3, 0.31, 0.29, 0.3, 0.32), strict=True)])
    verdicts = [make(tmp_path, runs, kind="central", margin=margin)[0][1]["verdict"] for margin in (0.1, 0.02)]
    assert verdicts == ["equivalent", "lower"]


def test_one_seed_is_undecided(tmp_path):
    """Also where the difference is 0."""
    runs = add_arm(tmp_path, "none", [8.0]) + add_arm(tmp_path, "el", [8.0])
    assert [row["verdict"] for row in make(tmp_path, runs, kind="central")[0]] == ["", "undecided"] * 3


def test_data_settings_with_other_spaces_are_compared_in_those_that_all_have(tmp_path):
    """One setting was evaluated in judge-a alone: the table has that space, for both."""
    runs = add_arm(tmp_path, "none", BASE) + add_arm(tmp_path, "el", BASE[::-1])
    few = add_arm(tmp_path, "none", BASE, "few") + add_arm(tmp_path, "el", BASE[::-1], "few")
    for run, value in zip(few, (*BASE, *BASE[::-1]), strict=True):
        names = {name: number for name, number in metrics(value).items() if "judge-a" in name}
        write(tmp_path / f"data/evaluations/{run}/metrics.json", names)
    for kind in ("central", "contrast"):
        rows, _ = make(tmp_path, runs + few, kind=kind)
        rows = [row for row in rows if row["data"] != "toys, 2 teachers"]
        assert len(rows) == 4 and {row.get("space", "judge-a") for row in rows} == {"judge-a"}


def two_settings(root, seeds=(5, 5), deltas=(-1.0, -3.0)):
    """An arm and its baseline under two teachers, with so many seeds each; runs of all."""
    runs = []
    for data, count, delta in zip(("one", "two"), seeds, deltas, strict=True):
        values = [base + delta + 0.1 * seed for seed, base in enumerate(BASE[:count])]
        runs += add_arm(root, "pixels", BASE[:count], data) + add_arm(root, "el", values, data)
    return runs


def test_only_seeds_of_every_teacher_are_pooled(tmp_path):
    """The second teacher has two of five seeds: the answer is of those two, as if the others had not been run."""
    few = make(tmp_path, two_settings(tmp_path, (2, 2)), "few", kind="central", against="pixels")[0]
    rows, _ = make(tmp_path, two_settings(tmp_path, (5, 2)), kind="central", against="pixels")
    assert rows[0]["data"] == few[0]["data"] == "toys, 2 teachers" and rows[0]["pairs"] == "2"
    keys = ("difference", "low", "high", "p", "p_equivalent", "between_settings_sd")
    assert [rows[0][key] for key in keys] == [few[0][key] for key in keys]
    assert float(rows[0]["low"]) < -20 < float(rows[0]["high"])


def test_an_arm_that_cannot_be_pooled_answers_by_its_own_row(tmp_path):
    """An arm under one teacher only is one of the family, beside another one's pooled row."""
    runs = two_settings(tmp_path) + add_arm(tmp_path, "more", [base - 2 for base in BASE], "one")
    rows, text = make(tmp_path, runs, kind="central", against="pixels")
    answers = {(row["data"], row["supplement"]): row for row in rows if row["p_holm"]}
    assert set(answers) == {("toys, 2 teachers", "el"), ("one", "more")}
    assert "Holm" in said(text, "one, di/more in judge-a")
    assert len(re.findall(r"^- .*di/el in judge-a:", text, re.M)) == 1, (
        "its answer, which contains those of single teachers"
    )
    assert "one, di/el in judge-b" in text


def test_settings_of_other_numbers_of_images_are_not_pooled(tmp_path):
    """A Fréchet distance depends on the number of images: the differences of 2,000 and of 5,000 are not averaged, and a study
    that pools nothing names both."""
    runs = two_settings(tmp_path)
    for run in runs[10:]:
        path = tmp_path / f"data/evaluations/{run}/metrics.json"
        path.write_text(path.read_text().replace("5k_", "2k_"))
    with pytest.raises(
        Problem, match="the settings of toys are ranked by fd5k_judge-a_heldout and fd2k_judge-a_heldout"
    ):
        make(tmp_path, runs, kind="central", against="pixels")
    assert "Ranked by `fd5k_judge-a_heldout` and `fd2k_judge-a_heldout`," in make(tmp_path, runs, against="pixels")[1]


@pytest.mark.parametrize("kind", ["contrast", "central", "seeds", "speed", "budget", "stability"])
def test_a_data_setting_has_the_same_rows_alone_and_beside_another(tmp_path, kind):
    """Of another data set, with other values: but for Holm, whose family is the table, nothing of a row moves."""
    here, there = (some_runs(tmp_path, kind, data, shift) for data, shift in (("toy", 0.0), ("wide", 3.0)))
    beds = {"toy": ["toys", "judge-a"], "wide": ["wide", "judge-a"]}
    alone, both = ({(*(row.get(key) for key in ("data", "method", "supplement", "space", "equal", "part", "of_run", "factor")),): row
                    for row in make(tmp_path, runs, kind=kind, beds=beds)[0] if row["data"] == "toy"}
                   for runs in (here, [*there, *here]))  # fmt: skip
    assert alone.keys() == both.keys() and alone
    for key, row in alone.items():
        free = {"p_holm", "p_family", "p_equivalent_holm", "p_equivalent_family", "verdict"}
        assert {k: v for k, v in row.items() if k not in free} == {k: both[key][k] for k in row if k not in free}


@pytest.mark.parametrize("kind", ["contrast", "central"])
def test_arms_of_another_method_than_the_baselines_are_paired_with_it(tmp_path, kind):
    """di-r4/el against di/none, and di-r4/none too: the numbers are those of arms that are renamed to the baseline's method."""
    deltas = {"el": (-3.0, -3.2, -2.8, -3.1, -2.9), "none": (2.0, -2.0, 1.0, -1.0, 0.5)}
    runs, twins = add_arm(tmp_path, "none", BASE), add_arm(tmp_path, "none", BASE)
    for name, each in deltas.items():
        values = (np.array(BASE) + each).tolist()
        runs += add_arm(tmp_path, name, values, method="di-r4")
        twins += add_arm(tmp_path, f"{name}-r4", values)
    rows, text = make(tmp_path, runs, kind=kind, against="di/none")
    alike, _ = make(tmp_path, twins, kind=kind)
    keys = ("space", "pairs", "difference", "low", "high", "p", "p_holm", "percent", "verdict", "p_equivalent")
    assert [[row.get(key) for key in keys] for row in rows] == [[row.get(key) for key in keys] for row in alike]
    assert sum(row["pairs"] == "5" for row in rows) == 2 * (3 if kind == "central" else 1)
    assert "lower than di/none" in text and "toy, di-r4/el" in text


def test_the_pooled_rows_of_another_method_than_the_baselines(tmp_path):
    """In percent of each setting's di/none, averaged over the settings; the baseline's own method is pooled beside them."""
    runs, shares = [], {}
    for data, scale in (("one", 1.0), ("two", 10.0)):
        bases = scale * np.array(BASE)
        runs += add_arm(tmp_path, "none", bases.tolist(), data)
        for method, shift in (("di", -2.0), ("di-r4", -4.0)):
            values = bases + scale * (shift + 0.1 * np.arange(5))
            runs += add_arm(tmp_path, "el", values.tolist(), data, method=method)
            shares.setdefault(method, []).append(100 * (values - bases) / bases.mean())
    rows, text = make(tmp_path, runs, kind="central", against="di/none")
    pooled = {row["method"]: float(row["difference"]) for row in rows if row["data"] == "toys, 2 teachers"}
    assert pooled == pytest.approx({method: np.mean(each) for method, each in shares.items()})
    assert "toys, 2 teachers, di-r4/el in judge-a: lower than di/none" in text


# --- seeds --------------------------------------------------------------------------------------------


def grid_of(root, table, name="el", data="toy"):
    """Runs NAME-e0, NAME-e1, …: one row of the table for each training seed, one column for each ensemble seed."""
    return [add(root, f"{data}/di/{name}-e{e}/{t}", value) for t, row in enumerate(table) for e, value in enumerate(row)]  # fmt: skip


def test_a_full_table_is_split_by_training_and_ensemble_seed(tmp_path):
    """value = training + ensemble: nothing is left; with a rest, numpy's mean squares. Rows for each stem and setting."""
    training, ensemble = np.array([1.0, 2.0, 4.0, 5.0]), np.array([0.0, 0.5, -0.5])
    additive = 10 + training[:, None] + ensemble
    noisy = additive + np.random.default_rng(1).normal(size=(4, 3))
    runs = grid_of(tmp_path, additive.tolist()) + grid_of(tmp_path, noisy.tolist(), "redrawn", "other")
    rows, text = make(tmp_path, [*runs, *add_arm(tmp_path, "none", BASE)], kind="seeds")
    assert [(row["data"], row["supplement"]) for row in rows] == [("toy", "el"), ("other", "redrawn")]
    wanted = training.var(ddof=1), ensemble.var(ddof=1), 0
    names = ("training", "ensemble", "rest")
    assert [float(rows[0][f"variance_{name}"]) for name in names] == pytest.approx(wanted, abs=1e-12)
    assert [float(rows[0][f"share_{name}"]) for name in names] == pytest.approx(np.array(wanted) / sum(wanted))
    assert (rows[0]["training_seeds"], rows[0]["ensemble_seeds"]) == ("4", "3")
    assert float(rows[0]["fd_sd"]) == pytest.approx(additive.std(ddof=1))
    rest = noisy - noisy.mean(0) - noisy.mean(1)[:, None] + noisy.mean()
    assert float(rows[1]["variance_rest"]) == pytest.approx((rest**2).sum() / 6)
    shares = r"of the variance 93 % \[\d+, \d+\] training seed, 7 % \[\d+, \d+\] ensemble seed, 0 % \[0, 0\] their interaction"
    assert re.search(shares, said(text, "toy, di/el"))
    for name in names:
        low, high = (float(rows[1][f"share_{name}_{end}"]) for end in ("low", "high"))
        assert 0 <= low <= float(rows[1][f"share_{name}"]) <= high <= 1
    assert "4 x 3 runs" in said(text, "other, di/redrawn")
    assert {"variance: training seed", "ensemble seed", "rest"} <= set(titles(text))
    own = text.partition("\n## ")[0]  # before the summary over feature spaces, which has intervals of its own
    assert "generalized 95 % confidence intervals" in own and "t-intervals" not in own and "paired" not in own


def test_a_variance_below_0_counts_as_0_in_its_share(tmp_path):
    """An interaction without main effects: the estimates stay as they are in the csv, shares are of what is above 0."""
    rows, _ = make(tmp_path, grid_of(tmp_path, [[1.0, 2.0], [2.0, 1.0]]), kind="seeds")
    assert [float(rows[0][f"variance_{name}"]) for name in ("training", "ensemble", "rest")] == [-0.5, -0.5, 1.0]
    assert [float(rows[0][f"share_{name}"]) for name in ("training", "ensemble", "rest")] == [0, 0, 1]


def test_a_table_without_variance_has_no_shares(tmp_path):
    """All runs alike."""
    rows, text = make(tmp_path, grid_of(tmp_path, [[2.0, 2.0], [2.0, 2.0]]), kind="seeds")
    assert float(rows[0]["fd_sd"]) == 0 and rows[0]["share_rest"] == ""
    assert "no variance" in said(text, "toy, di/el")


@pytest.mark.parametrize("missing", [1, 3])
def test_an_incomplete_table_is_a_problem(tmp_path, missing):
    """One run less than the product, or a single row."""
    runs = grid_of(tmp_path, [[1.0, 2.0, 3.0], [2.0, 1.0, 3.0]])[:-missing]
    with pytest.raises(Problem, match=r"toy/di/el-e\*: \d runs for \d seeds and 3 ensembles; expected a full table"):
        make(tmp_path, runs, kind="seeds")


@pytest.mark.parametrize("difference", [0.0, 1e-12, -0.5])
def test_the_intervals_of_a_figure_are_in_percent_also_without_a_difference(difference):
    """The figure and the page have the same numbers; their unit does not depend on whether means happen to be equal."""
    row = {"data": "toy", "method": "di", "supplement": "el", "difference": difference, "percent": 100 * difference / 2.0,
           "low": difference - 1, "high": difference + 1, "fd_mean": 2.0 + difference, "pairs": 2}  # fmt: skip
    line, (effect,) = forest._difference(0, row), of_study([row], {"confidence": 0.95})
    assert (line.low, line.middle, line.high) == (effect.low, effect.percent, effect.high)
    assert (line.low, line.high) == pytest.approx((50 * row["low"], 50 * row["high"]))


# --- budget -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", [[(64, 3.0)], [(64, 3.0), (64, 3.0)], [(0, 5.0), (64, 3.0), (64, 3.0), (128, 1.0)]])
def test_several_snapshots_of_one_iteration_are_one_value(curve):
    """A short run has them. Between points a curve is linear."""
    assert comparisons._at(curve, 64) == 3.0
    assert comparisons._at(curve, curve[-1][0]) == curve[-1][1]
    if len(curve) > 2:
        assert (comparisons._at(curve, 32), comparisons._at(curve, 96)) == (4.0, 2.0)


# Points lie 25 iterations apart.
TUNING = ((90.0, 80.0, 70.0, 6.0, 5.0, 4.0, 3.0, 2.0), (90.0, 80.0, 70.0, 7.0, 6.0, 6.0, 6.0, 5.0))
SLOW = (9.0, 8.0, 7.0, 6.0, 5.0, 5.0, 5.0, 5.0)
FAST = (9.0, 4.0, 4.0, 6.0, 4.0, 4.0, 4.0, 9.0)
SOON = (4.0, 5.0, 3.0, 9.0, 9.0, 9.0, 9.0, 9.0)


def add_curves(root, supplement, curves, first=0, data="toy", **others):
    """An arm by its curves."""
    runs = [f"{data}/di/{supplement}/{first + i}" for i in range(len(curves))]
    return [add(root, run, curve[-1], curve=curve, **others) for run, curve in zip(runs, curves, strict=True)]


def test_seconds_of_several_devices_are_not_compared(tmp_path):
    """One of the runs was made elsewhere: iterations are compared, CPU time is not."""
    runs = add_curves(tmp_path, "none", (SLOW,) * 2) + add_curves(tmp_path, "el", (SOON,) * 2)
    path = tmp_path / "data/runs/toy/di/el/1/provenance.json"
    write(path, json.loads(path.read_text()) | {"device": "another"})
    assert [row["equal"] for row in make(tmp_path, runs, kind="budget")[0]] == ["iterations"]


def test_equal_iterations_are_the_last_points_and_equal_seconds_lie_between(tmp_path):
    """The arm costs twice as much: at the baseline's 100 iterations' price it has done 50. FLOP are left out if unknown."""
    curves = {"none": [(8.0, 6.0, 5.0, 4.0), (8.0, 7.0, 5.0, 5.0)], "el": [(6.0, 3.0, 2.0, 1.0), (6.0, 4.0, 3.0, 2.0)]}
    runs = add_curves(tmp_path, "none", curves["none"], milliseconds=50.0)
    runs += add_curves(tmp_path, "el", curves["el"], milliseconds=100.0)
    rows, text = make(tmp_path, runs, kind="budget")
    assert [row["equal"] for row in rows] == ["iterations", "seconds"]
    for row, place in zip(rows, (3, 1), strict=True):
        ours, theirs = [each[place] for each in curves["el"]], [each[3] for each in curves["none"]]
        deltas = np.subtract(ours, theirs)
        assert float(row["fd_mean"]) == pytest.approx(np.mean(ours))
        assert float(row["baseline_mean"]) == pytest.approx(np.mean(theirs))
        assert float(row["difference"]) == pytest.approx(deltas.mean())
        assert float(row["percent"]) == pytest.approx(100 * deltas.mean() / np.mean(theirs))
    # Holm over the two rows: here the p of both are of two pairs.
    ps = [float(row["p"]) for row in rows]
    assert min(float(row["p_holm"]) for row in rows) == pytest.approx(2 * min(ps))
    assert "at equal seconds the distance is" in text and "at equal" in titles(text)


@pytest.mark.parametrize(("price", "value"), [(50.0, 4.0), (80.0, 5.75), (25.0, 4.0), (200.0, 8.0)])
def test_the_dearer_one_is_read_between_its_points(tmp_path, price, value):
    """On the line between its two points around the end of the cheaper one, which is read at its own last point."""
    base, mine = (8.0, 6.0, 5.0, 4.0), (8.0, 6.0, 5.5, 4.0)
    runs = add_curves(tmp_path, "none", [base], milliseconds=50.0, flop=1e6)
    runs += add_curves(tmp_path, "el", [mine], milliseconds=price, flop=1e6 * price / 50)
    rows, _ = make(tmp_path, runs, kind="budget")
    assert [row["equal"] for row in rows] == ["iterations", "seconds", "FLOP"]
    ends = {"el": 100 * min(1, 50 / price), "none": 100 * min(1, price / 50)}  # iterations
    for row in rows[1:]:
        assert float(row["fd_mean"]) == pytest.approx(value)
        assert float(row["fd_mean"]) == pytest.approx(np.interp(ends["el"], [25, 50, 75, 100], mine))
        assert float(row["baseline_mean"]) == pytest.approx(np.interp(ends["none"], [25, 50, 75, 100], base))


def test_one_slow_run_does_not_change_the_price_of_its_arm(tmp_path):
    """The price is the arm's median: what else the machine did counts for nothing."""
    curve = (8.0, 6.0, 5.0, 4.0)
    runs = add_curves(tmp_path, "none", [curve] * 3, milliseconds=50.0) + add_curves(
        tmp_path, "el", [curve] * 3, milliseconds=50.0
    )
    before = make(tmp_path, runs, kind="budget")
    add(tmp_path, "toy/di/el/1", 4.0, curve=curve, milliseconds=150.0)
    assert make(tmp_path, runs, kind="budget") == before


def test_a_budget_before_the_first_point_of_a_curve_is_a_problem(tmp_path):
    """Five times as dear: by the baseline's end it has no point yet, and a guess would be one in its favour."""
    runs = add_curves(tmp_path, "none", [SLOW[:4]], milliseconds=50.0) + add_curves(
        tmp_path, "el", [SLOW[:4]], milliseconds=250.0
    )
    with pytest.raises(Problem, match="toy/di/el/0 and toy/di/none/0 share no seconds; add 0 to distil.snapshots"):
        make(tmp_path, runs, kind="budget")


# --- what is written ----------------------------------------------------------------------------------


def some_runs(root, kind, data="toy", shift=0.0):
    """Runs that a study of this kind can use; shift: of all distances."""
    if kind == "seeds":
        return grid_of(root, [[1.0 + shift, 2.0], [2.5, 1.0]], data=data)
    curves = [tuple(value + shift for value in curve) for curve in (SLOW, FAST, SLOW)]
    runs = add_curves(root, "none", TUNING, first=100, data=data) if kind == "speed" else []
    return (
        runs + add_curves(root, "none", curves, data=data) + add_curves(root, "el", curves[::-1], data=data, flop=2.0)
    )


def test_runs_that_fell_are_counted(tmp_path):
    """Of three runs one ends where it started, one loses its spread, one has a spike in two of four ticks."""
    flat = [1.0] * 8
    runs = add_curves(tmp_path, "none", [(4.0, 2.0, 4.0), (4.0, 2.0, 1.0), (4.0, 1.0, 3.0)])
    logs = [{"el.trace_ratio": [0.1] * 4 + [0.6] * 4, "generator.gradient_norm": flat},
            {"el.trace_ratio": flat[:7] + [0.4], "generator.gradient_norm": flat},
            {"el.trace_ratio": flat, "generator.gradient_norm": [9.0] * 4 + [1.0, 3.0, 1.0, 3.1]}]  # fmt: skip
    for seed, log in enumerate(logs):
        runs += add_curves(tmp_path, "el", [(4.0, 1.0)], seed, log={"fake_score.gradient_norm": [9.0] * 8, **log})
    (none, el), text = make(tmp_path, runs, kind="stability")
    assert [none[key] for key in ("diverged", "collapsed", "spikes_percent")] == ["1", "", ""]
    assert float(none["lost_percent"]) == 100, "the median of 100, 0 and 200"
    assert [float(el[key]) for key in ("diverged", "collapsed", "trace_ratio_min", "lost_percent")] == [0, 1, 0.4, 0]
    assert float(el["spikes_percent"]) == 0, "3.1 is not beyond three times 2, the median of its second half"
    assert "- 1 of 6 runs ended no better than they started: di/none 1 of 3." in text
    assert "- 1 of 3 runs fell below a trace ratio of 0.5: di/el 1 of 3." in text
    assert "Ranked by" not in text
    # The baseline ends at 8/3 on average, and no run ends above twice that.
    assert [row["far_above"] for row in (none, el)] == ["0", "0"]
    assert "- 0 of 6 runs ended above 2 times the mean distance of none." in text
    logs[2]["generator.gradient_norm"][5:] = [1.0, 1.0, 3.1]
    add_curves(tmp_path, "el", [(4.0, 1.0)], 2, log=logs[2])
    assert float(make(tmp_path, runs, kind="stability")[0][1]["spikes_percent"]) == pytest.approx(25 / 3)


def test_a_run_that_breaks_is_counted_although_its_start_was_worse(tmp_path):
    """From 40 to 3: better than its start, and more than twice as far as the baseline, which ends at 1 on average."""
    runs = add_curves(tmp_path, "none", [(40.0, 2.0, 0.9), (40.0, 2.0, 1.1)])
    runs += add_curves(tmp_path, "el", [(40.0, 2.0, 1.9), (40.0, 1.0, 3.0)])
    (none, el), text = make(tmp_path, runs, kind="stability")
    assert (none["far_above"], el["far_above"], el["diverged"]) == ("0", "1", "0")
    assert "- 1 of 4 runs ended above 2 times the mean distance of none: di/el 1 of 2." in text
    assert "no better than they started" not in text, "a count that is 0 wherever a training learns anything"
    (row,), text = make(tmp_path, runs[2:], kind="stability")
    assert row["far_above"] == "" and "the mean distance of none" not in text


def test_a_run_of_one_point_has_neither_fallen_nor_risen(tmp_path):
    """distil.snapshots: [100]: nobody knows; beside curves that fall it is not counted."""
    (row,), text = make(tmp_path, add_curves(tmp_path, "none", [(4.0,)] * 2), kind="stability")
    assert row["diverged"] == "" and "no better than they started" not in text
    rows, _ = make(tmp_path, add_curves(tmp_path, "none", [(4.0,), (4.0, 2.0), (2.0, 4.0)]), kind="stability")
    assert rows[0]["diverged"] == "1"


def test_runs_that_fell_are_named_with_their_data_setting(tmp_path):
    """Where there are two: the same method and supplement fell in one of them."""
    runs = [
        add(tmp_path, f"{data}/di/none/0", curve=curve) for data, curve in (("toy", (4.0, 2.0)), ("wide", (2.0, 4.0)))
    ]
    text = make(tmp_path, runs, kind="stability")[1]
    assert "started: wide, di/none 1 of 1." in text and "wide, di/none lost most: 100 %" in text


@pytest.mark.parametrize("kind", ["contrast", "central", "budget", "stability"])
def test_a_baseline_at_0_has_no_percent(tmp_path, monkeypatch, kind):
    """Differences, tests and a picture, and no division by it."""
    monkeypatch.setattr(forest, "draw_study", DRAW_STUDY)
    runs = add_arm(tmp_path, "none", [0.0] * 3, curve=(0.0,) * 4) + add_arm(
        tmp_path, "el", [1.0, 2.0, 1.5], curve=(2.0, 1.0)
    )
    for run in runs[:3]:
        write(tmp_path / f"data/evaluations/{run}/metrics.json", dict.fromkeys(metrics(1.0), 0.0))
    rows, text = make(tmp_path, runs, kind=kind)
    row = next(row for row in rows if row["supplement"] == "el")
    assert row.get("percent", "") == "" and (tmp_path / "out/study.png").stat().st_size > 1000
    assert kind == "stability" or (
        float(row["difference"]) > 0 and "is higher than none's: " in text or "higher than none," in text
    )
    assert kind != "central" or "equivalence not tested, for the mean of the baseline is 0" in text


def test_the_other_feature_spaces_have_a_column_whatever_they_are_called(tmp_path):
    """A suite ranked by another space than judge-a, with spaces that no code names."""
    runs = add_arm(tmp_path, "none", BASE) + add_arm(tmp_path, "el", BASE[::-1])
    for run in runs:
        path = tmp_path / f"data/evaluations/{run}/metrics.json"
        path.write_text(path.read_text().replace("judge-b", "clip-vit-b-32").replace("pixels", "inception"))
    beds = {"toy": ["toys", "inception"]}
    text = make(tmp_path, runs, beds=beds)[1]
    assert {"FD judge A", "FD CLIP (vit-b-32)"} <= set(titles(text)) and "Ranked by `fd5k_inception_heldout`" in text
    assert not {"FD judge B", "FD pixels", "FD Inception"} & set(titles(text))


def test_a_picture_leaves_out_what_has_no_number(tmp_path, monkeypatch):
    """An empty place would look like a loss of 0: the picture is as tall as the rows that have one."""
    from PIL import Image

    monkeypatch.setattr(forest, "draw_study", DRAW_STUDY)
    runs = add_curves(tmp_path, "none", [FAST]) + add_curves(tmp_path, "el", [(4.0, 0.0)])
    assert len(make(tmp_path, runs, kind="stability")[0]) == 2
    with Image.open(tmp_path / "out/study.png") as picture:
        assert picture.size == pytest.approx((1400, 200 * (1.0 + 0.19)), abs=1)


def test_a_bed_has_one_space_that_ranks(tmp_path):
    """Two settings of the same images, ranked by different features: nothing to pool."""
    runs = [run for data in ("toy", "toy-t1") for name in ("none", "el") for run in add_arm(tmp_path, name, BASE, data)]
    with pytest.raises(Problem, match="the settings of toys are ranked by judge-a and judge-b"):
        make(tmp_path, runs, kind="central", beds={"toy": ["toys", "judge-a"], "toy-t1": ["toys", "judge-b"]})


LOOK = {8: 4.0, 32: 1.0, 128: 0.25, "floor": 0.0, "signal": 1.0}


@pytest.mark.parametrize(("shares", "verdict"), [([1.0, 2.0, 3.0], "no floor to be seen: 2.0 % [-0.5, 4.5]"),
                                                 ([1.9, 2.0, 2.1], "a floor: 2.0 % [1.8, 2.2]"),
                                                 ([-1.9, -2.0, -2.1], "no floor, and the fit does not suit it: -2.0 % [-2.2, -1.8]"),
                                                 ([2.0], "of one run: 2.0 %")])  # fmt: skip
def test_a_floor_is_one_if_its_interval_says_so(tmp_path, monkeypatch, shares, verdict):
    """Mean and t-interval of the floor's share over runs; a row for each gradient of an arm."""
    monkeypatch.setattr(
        probe, "measure_variance", lambda run, root: {"own": LOOK | {"floor": shares[int(run[-1])] / 25}, "b": LOOK}
    )
    runs = add_arm(tmp_path, "none", BASE[: len(shares)])
    rows, text = make(tmp_path, runs, kind="variance")
    assert [row["gradient"] for row in rows] == ["own", "b"] and abs(float(rows[0]["share"])) == pytest.approx(2)
    assert f"- toy, di/none, own: {verdict} of the variance at batch 8 stays at any batch" in text
    assert f"noise over signal 4.00 at 8, 0.250 at 128 images ({len(shares)} runs, " in text
    assert ("95 % t-intervals over runs" in text) is (len(shares) > 1)
    first = text.split("\n\n")[1]
    wanted = ("**Undecided for 2 gradients" if len(shares) < 2 else
              "**Of the variance at batch 8 no batch averages out 2 % [" if verdict.startswith("a floor") else
              "**Nothing: none of 2 gradients")  # fmt: skip
    assert first.startswith(wanted)
    assert first.endswith(" with own (DI); of one more gradient no such part is seen.**") is ("averages" in wanted)


def test_a_gradient_without_variance_has_no_floor(tmp_path, monkeypatch):
    """All gradients alike: nothing to take a share of."""
    still = dict.fromkeys(LOOK, 0.0) | {"signal": 1.0}
    monkeypatch.setattr(probe, "measure_variance", lambda run, root: {"own": still})
    rows, text = make(tmp_path, add_arm(tmp_path, "none", BASE[:2]), kind="variance")
    assert rows[0]["share"] == "" and "- toy, di/none, own: no variance at batch 8; noise over signal 0 at 8" in text


@pytest.mark.parametrize(("signals", "sentence"), [([0.5, 1.5, 4.0], "noise over signal 2.00 at 8"),
                                                   ([1.0, -2.0, 0.5], "its mean is lost in the noise (3 runs, each with 32 and 16 "
                                                                      "gradients)")])  # fmt: skip
def test_noise_over_signal_is_a_ratio_of_means(tmp_path, monkeypatch, signals, sentence):
    """One run whose signal is next to nothing does not decide; a mean that is not above 0 has no ratio."""
    monkeypatch.setattr(probe, "measure_variance", lambda run, root: {"own": LOOK | {"signal": signals[int(run[-1])]}})
    rows, text = make(tmp_path, add_arm(tmp_path, "none", BASE[:3]), kind="variance")
    assert sentence in text and bool(rows[0]["noise_8"]) is (sum(signals) > 0)


@pytest.mark.parametrize("kind", studies.KINDS)
def test_every_kind_writes_a_table_a_page_and_a_picture_and_equal_input_gives_equal_bytes(tmp_path, monkeypatch, kind):
    """Two calls write what STUDY_ENDINGS lists; the picture opens, is as tall as its rows need, and holds more than paper."""
    from PIL import Image

    monkeypatch.setattr(forest, "draw_study", DRAW_STUDY)
    monkeypatch.setattr(probe, "measure_variance", lambda run, root: {"own": LOOK | {"floor": float(run[-1])}})
    runs = some_runs(tmp_path, kind)
    rows, text = make(tmp_path, runs, kind=kind)
    make(tmp_path, runs, "again", kind=kind)
    for ending in STUDY_ENDINGS:
        first, second = (tmp_path / out / f"study.{ending}" for out in ("out", "again"))
        assert first.read_bytes() == second.read_bytes() and first.stat().st_size > 100
    assert len(list((tmp_path / "out").iterdir())) == len(STUDY_ENDINGS)
    with Image.open(tmp_path / "out/study.png") as picture:
        drawn = [row for row in rows if row.get("difference")] or rows
        lines = 3 * len(drawn) if kind == "seeds" else len(drawn)  # a bar for each part of the variance
        wanted = (1400, 200 * (1.0 + 0.19 * lines))
        assert picture.size == pytest.approx(
            (1400, 590) if kind == "speed" else wanted, abs=1
        )  # one row of panels for the method
        assert "Software" not in picture.info
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    page = (tmp_path / "out/study.html").read_text()
    assert (
        page.startswith("<!doctype html>") and "What of it?" in page and "<script" not in page and len(page) < 5_000_000
    )
    assert 'class="claim"' in page
    assert ('class="forest"' in page) is (kind in ("contrast", "central", "budget", "speed"))
    assert "<details><summary>Every comparison in " in page
    heading = "## Time to the baseline's values\n\n" if kind == "speed" else ""
    title, claim, *rest = text.split("\n\n")
    assert title == "# What of it?" and claim.startswith("**")
    assert rest[0].startswith("KID in the same features") is (kind in ("contrast", "central"))
    rest = rest[1:] if kind in ("contrast", "central") else rest
    assert "\n\n".join(rest).startswith(f"{heading}| data, method/supplement |")
    if kind == "central":
        assert "comparisons of this table that answer, " in text and " others explore without one" in text
    ranks = kind not in ("stability", "variance", "seeds")
    assert (
        "Ranked by `fd5k_judge-a_heldout`, lower is better; baseline `none`" in text
    ) is ranks and "study.csv" in text
    assert ("comparisons of this table; " in text) is (kind in ("contrast", "budget", "speed"))


def test_a_picture_of_one_seed_has_points_without_bars(tmp_path, monkeypatch):
    """No interval is no failure."""
    monkeypatch.setattr(forest, "draw_study", DRAW_STUDY)
    from PIL import Image

    runs = add_arm(tmp_path, "none", [1.0]) + add_arm(tmp_path, "el", [2.0])
    make(tmp_path, runs, kind="central")
    with Image.open(tmp_path / "out/study.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    # Blue is the colour of intervals without 0: one seed has no interval.
    assert (0x66, 0x66, 0x66) in colours and (0x00, 0x72, 0xB2) not in colours


def test_columns_without_a_number_are_dropped(tmp_path):
    """The page has no column that is empty in every row; the csv keeps all."""
    runs = add_arm(tmp_path, "none", [1.0]) + add_arm(tmp_path, "el", [2.0])
    rows, text = make(tmp_path, runs)
    assert titles(text) == ["data, method/supplement", "seeds", "FD held-out", "minus baseline", "%", "FD train",
                            "minus baseline, train", "FD judge B", "FD pixels", "KID", "recall", "CPU ms an iteration"]  # fmt: skip
    assert {"p_holm", "gradient_ratio", "low"} <= rows[0].keys()
    log = {"generator.base_rms": [2.0] * 8, "el.weight": [1.0] * 8, "el.gradient_rms": [1.0] * 8}
    runs = add_arm(tmp_path, "none", BASE) + add_arm(tmp_path, "el", BASE[::-1], log=log)
    _, text = make(tmp_path, runs)
    assert {"p (Holm)", "gradient ratio"} <= set(titles(text)) and "least trace ratio" not in titles(text)
    lines = [line for line in text.split("\n\n")[3].splitlines() if line.startswith("|")]
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "10.00 ± 0.79" in lines[2] and "0.500" in lines[3]


@pytest.mark.parametrize(
    "name",
    [
        "evaluations/toy/di/el/1/metrics.json",
        "evaluations/toy/di/el/1/curve.csv",
        "runs/toy/di/el/1/provenance.json",
        "runs/toy/di/el/1/log.csv",
    ],
)
def test_a_missing_file_is_a_problem_that_names_it(tmp_path, name):
    """Whichever of the four."""
    runs = add_arm(tmp_path, "none", BASE) + add_arm(tmp_path, "el", BASE)
    (tmp_path / "data" / name).unlink()
    with pytest.raises(Problem, match=name.rsplit("/", 1)[1]):
        make(tmp_path, runs)


def test_runs_that_cannot_be_compared_are_a_problem(tmp_path):
    """A space that ranks and is not there, or numbers of images that differ within a data setting."""
    runs = add_arm(tmp_path, "none", BASE) + add_arm(tmp_path, "el", BASE)
    for kind in studies.KINDS:
        with pytest.raises(Problem, match="judge-z"):
            make(tmp_path, runs, kind=kind, beds={"toy": ["toys", "judge-z"]})
    write(tmp_path / "data/evaluations/toy/di/el/0/metrics.json", metrics(1.0, "2k"))
    with pytest.raises(Problem, match="differ in metrics"):
        make(tmp_path, runs)


# --- studies in params.yaml ---------------------------------------------------------------------------


FEW = [{**each, "seeds": each["seeds"][:1], "studies": [name for name in each["studies"] if name != "el-against-none"]}
       for each in ABLATION
       if {"central", "central-fashion", "mechanism", "batch"} & set(each["studies"])]  # fmt: skip


def values_with(path="", value=None):
    """The shipped params.yaml with one value set; of its suites the demo, and four grids of the ablation with a seed each."""
    values = copy.deepcopy(SHIPPED) | {
        "suites": {"demo": copy.deepcopy(SHIPPED["suites"]["demo"]), "ablation": copy.deepcopy(FEW)}
    }
    *above, last = path.split("/")
    place = values
    for step in above:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if path:
        place[int(last) if isinstance(place, list) else last] = value
    return values


@functools.cache
def shipped():
    """The shipped params.yaml, checked."""
    return params.from_values(SHIPPED, ROOT)


@functools.cache
def shipped_plan():
    """Its steps."""
    return Plan(shipped())


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("suites/demo/0/studies", ["centrl"], ["suites.demo: a study is 'centrl'", "small-batch", "mean central?"]),
        ("suites/ablation/1/studies", ["central", "budgt"], ["suites.ablation", "'budgt'", "did you mean budget?"]),
        ("tables/studies/main", {"question": "?"}, ["tables.studies.main cannot be a name", "main, main-wide, runs, curves"]),
        ("tables/studies/report", {"question": "?"}, ["tables.studies.report cannot be a name", "name other tables"]),
        ("tables/studies/a.b", {"question": "?"}, ["tables.studies.a.b cannot be a name", "letters, digits, _ -"]),
        ("tables/studies/central/against", "pixel-bse", ["tables.studies.central.against is 'pixel-bse'", "pixel-base?"]),
        ("tables/studies/batch/against", "dj/none", ["tables.studies.batch.against is 'dj'", "did you mean di?"]),
        ("tables/studies/budget/against", "di/none", ["studies.budget.against is 'di/none'", "of the kinds contrast, central, speed can"]),
        ("tables/baseline", "di/none", ["tables.baseline is 'di/none'", "such as none"]),
        ("tables/studies/budget/against", "el+non", ["tables.studies.budget.against is 'el+non'", "one of none, el,"]),
        ("tables/studies/central/kind", "centre", ["tables.studies.central.kind", "'centre'", "did you mean central?"]),
        ("tables/studies/central/margin", 0, ["tables.studies.central.margin", "> 0"]),
        ("tables/studies/central", {}, ["tables.studies.central.question is missing"]),
        ("tables/tuning", [100, 100], ["tables.tuning", "[100, 100]"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_study_is_one_sentence_with_its_neighbours(path, value, words):
    """Where, what was found, what could stand there, the nearest name."""
    with pytest.raises(Problem) as caught:
        params.from_values(values_with(path, value), ROOT)
    text = str(caught.value)
    assert re.match(r"(params|workflow/params/[a-z]+)\.yaml: ", text) and "\n" not in text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


@pytest.mark.parametrize("kind", studies.KINDS)
def test_the_kinds_that_accept_the_baseline_of_another_method(kind):
    """contrast, central and speed; others refuse it, because they compare within a method or have no baseline."""
    values = values_with("tables/studies/central/kind", kind)
    values["tables"]["studies"]["central"]["against"] = "di/none"
    if kind in ("contrast", "central", "speed"):
        assert params.from_values(values, ROOT).top("tables")["studies"]["central"]["against"] == "di/none"
    else:
        with pytest.raises(Problem, match="tables.studies.central.against is 'di/none'; only studies of the kinds"):
            params.from_values(values, ROOT)


def test_a_name_that_only_begins_like_a_table_is_a_study():
    """`runs-of-luck` is fine: for the checker, and for Snakemake, whose pattern says the same."""
    rules = (ROOT / "workflow/rules/common.smk").read_text(encoding="utf-8")
    pattern = STUDY
    assert "    study=STUDY,\n" in rules
    for name, allowed in (("runs-of-luck", True), ("mainly", True), ("central", True), ("main", False), ("report", False)):  # fmt: skip
        values = values_with(f"tables/studies/{name}", {"question": "?"})
        assert bool(re.fullmatch(rf"({pattern})\.csv", f"{name}.csv")) is allowed
        if allowed:
            params.from_values(values, ROOT)
    assert not re.fullmatch(rf"({pattern})\.csv", "central.runs.csv"), (
        "the runs of central, no table of a study central.runs"
    )


def test_the_command_line_finds_a_study_and_names_its_neighbours():
    """`tables ablation/central` is the step of the suite; a suite knows only the studies that its grids name."""
    plan = shipped_plan()
    assert plan.find("tables", "ablation/central") is plan.study("ablation", "central")
    assert plan.find("tables", "ablation/central") in plan.studies("ablation") and plan.studies("demo") == ()
    with pytest.raises(Problem, match="study of ablation/centrl is 'centrl'; did you mean central"):
        plan.find("tables", "ablation/centrl")
    with pytest.raises(Problem, match="the suite demo has no studies"):
        plan.find("tables", "demo/central")
    with pytest.raises(Problem, match="study of speed/central is 'central'"):
        plan.find("tables", "speed/central")


def digests(path="", value=None):
    """The digests of the studies of four grids of the ablation, by name."""
    plan = Plan(params.from_values(values_with(path, value), ROOT))
    return {name: plan.study("ablation", name).digest for name in plan.params.studies("ablation")}


BEFORE = functools.cache(digests)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("suites/ablation/0/seeds", [300, 301], {"central"}),
        ("suites/ablation/1/seeds", [300, 301], {"central-fashion"}),
        ("suites/ablation/3/methods", ["di-b8"], {"batch", "small-batch", "stability"}),
        ("tables/studies/batch/question", "Why?", {"batch"}),
        ("tables/studies/variance/question", "Why?", set()),
        ("tables/studies/central/margin", 0.2, {"central"}),
        ("distil/supplements/el-permuted/fade", 0.3, {"mechanism", "stability"}),
        ("distil/methods/di-b8/per_data", {"digits": {"batch": 4}}, {"batch", "small-batch", "stability"}),
        ("suites/demo/0/seeds", [7], set()),
        ("distil/supplements/el/weight", 3, {"central"}),
        ("tables/baseline", "el", set()),
    ],
)  # fmt: skip
def test_a_study_is_retired_by_its_own_runs_and_by_nothing_else(path, value, expected):
    """Another study's grid, question or arms leave its digest; so does everything about the suite's own tables."""
    before, after = BEFORE(), digests(path, value)
    studies_of_grids = {"central", "central-fashion", "mechanism", "batch", "small-batch", "stability"}
    assert before.keys() == after.keys() == studies_of_grids
    assert {name for name in before if before[name] != after[name]} == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        *((module, set(BEFORE())) for module in ("studies", "names", "inference", "plots", "results")),
        ("comparisons", {"central", "central-fashion", "mechanism", "batch", "small-batch"}),
        ("speed", set()),
        ("central", {"central", "central-fashion"}),
        ("diagnostics", {"stability"}),
        ("variance", set()),
    ],
)
def test_a_raised_version_of_what_makes_a_study_retires_it(monkeypatch, module, expected):
    """All that its files are made by, and no other kind's code."""
    before, old = BEFORE(), versions.version_of
    monkeypatch.setattr(versions, "version_of", lambda name: old(name) + (name == module))
    after = digests()
    assert {name for name in before if before[name] != after[name]} == expected


def test_a_study_has_the_runs_of_its_grids_and_what_it_needs_to_read_them():
    """Upstream are exactly the evaluations and the runs, in the order of the grids, each once; where networks run again,
    also what they are built on."""
    plan = shipped_plan()
    for name in shipped().studies("ablation"):
        step, runs = plan.study("ablation", name), list(map(str, shipped().runs("ablation", name)))
        assert step.params["runs"] == runs and len(set(runs)) == len(runs)
        first = [(word, run) for run in runs for word in ("evaluate", "distil")]
        found = [(each.word, each.name) for each in step.upstream]
        assert found[: len(first)] == first
        more = {"data digits/images", "teacher digits"} | {f"ensemble digits/{name}/{seed}" for name in ("conv4", "identity")
                                                           for seed in range(200, 205)}  # fmt: skip
        datas = dict.fromkeys(run.split("/")[0] for run in runs)
        beside = {f"evaluate {data}/{which}" for data in datas for which in ("real", "teacher")}
        assert set(map(" ".join, found[len(first) :])) == beside | (more if name == "variance" else set())
        assert step.outputs == tuple(f"data/tables/ablation/{name}.{ending}" for ending in STUDY_ENDINGS)


# --- the studies that we ship -------------------------------------------------------------------------

ANSWERS = SHIPPED["tables"]["studies"]
TUNED = set(SHIPPED["tables"]["tuning"])
# `central` and `variants` share runs with the suite `speed`, whose arms are `el` and `pixel-mmd` at their own learning rates.
FROZEN = [each for each in ABLATION if not {"central", "variants"} & set(each["studies"])]


def cells(study):
    """(data, method, supplement, seed) of the runs of a study of the ablation."""
    return [(run.data, run.method, run.supplement, run.seed) for run in shipped().runs("ablation", study)]


def test_every_study_is_named_by_a_grid():
    """No question without runs; and no run of the ablation without a question."""
    named = {name for suite in SHIPPED["suites"].values() for each in suite for name in each.get("studies", [])}
    assert named == set(ANSWERS)
    assert all(each["studies"] for each in ABLATION)


def test_every_arm_of_the_ablation_derives_from_the_frozen_copy():
    """But for the central study: the file is embedding and the chain of `like` ends at el-base, whatever becomes of `el`."""
    sections = SHIPPED["distil"]["supplements"]
    arms = {part for each in FROZEN for name in each["supplements"] for part in name.split("+")}
    assert len(arms) > 20 and "el" not in arms
    for arm in arms - {"none", "regression", "gan"}:
        assert shipped().section("supplement", arm)["file"] == "embedding"
        last = arm
        while like := sections[last].get("like"):
            last = like
        assert last == "el-base", arm


def test_the_arms_of_the_ablation_differ():
    """No two arms are the same loss under two names."""
    arms = {name for each in FROZEN for name in each["supplements"]} - {"none"}
    sections = [json.dumps(shipped().section("supplement", arm, "digits"), sort_keys=True) for arm in sorted(arms)]
    assert len(set(sections)) == len(sections)


def test_results_are_reported_on_seeds_that_tuned_nothing():
    """Tuning seeds occur in the ablation's studies whose names begin with `tuning`, and in no other."""
    for name in ANSWERS:
        tuned = {cell for cell in cells(name) if cell[3] in TUNED}
        if name.startswith("tuning"):
            assert tuned == set(cells(name))
        else:
            assert not tuned, name


def test_every_arm_has_a_baseline_with_its_own_seeds():
    """In the studies that compare: each run has a twin in the study's `against`, so that no seed is lost."""
    for name in shipped().studies("ablation"):
        study = ANSWERS[name]
        if study.get("kind", "contrast") in ("seeds", "variance", "stability"):
            continue
        one, _, against = study.get("against", "none").rpartition("/")
        there = set(cells(name))
        assert all((data, one or method, against, seed) in there for data, method, _, seed in there), name
        assert {(method, supplement) for _, method, supplement, _ in there} - {(one or "di-base", against)}, name


@pytest.mark.parametrize(
    ("suite", "methods"),
    [("speed", 3), ("speed-others", 4), ("speed-recent", 6)],
)
def test_each_arm_has_the_same_rates_on_tuning_seeds_and_runs_at_its_own_on_others(suite, methods):
    """Factors 1, 2, 4 and 8 for every arm, on the same seeds; on at least five other seeds what `rates` has for the arm."""
    arms = {}
    for run in shipped().runs(suite, "speed"):
        root, factor = rates.base_method(shipped(), run.method), rates.factor(shipped(), run)
        kind = "tuning" if run.seed in TUNED else "fresh"
        arms.setdefault((root, run.supplement), {}).setdefault(kind, set()).add((factor, run.seed))
    assert (
        set(arms) == {(method, arm) for method, _ in arms for arm in ("none", "el", "pixel-mmd")}
        and len(arms) == 3 * methods
    )
    tuned = {frozenset(each["tuning"]) for each in arms.values()}
    assert len(tuned) == 1 and {factor for factor, _ in next(iter(tuned))} == {1, 2, 4, 8}
    assert all(len(each["fresh"]) >= 5 and len({factor for factor, _ in each["fresh"]}) == 1 for each in arms.values())
    assert len({frozenset(seed for _, seed in each["fresh"]) for each in arms.values()}) == 1


def test_the_central_question_is_asked_as_it_was_written_down():
    """EL against the MMD on pixels, margin 10 %; on digits at least ten seeds on at least three teachers; on every bed the
    same seeds for both."""
    study = shipped().top("tables")["studies"]["central"]
    assert (study["kind"], study["against"], study["margin"]) == ("central", "pixel-mmd", 0.1)
    el, pixel = (
        {(data, seed) for data, _, supplement, seed in cells("central") if supplement == arm}
        for arm in ("el", "pixel-mmd")
    )
    assert el == pixel
    digits = {cell for cell in el if cell[0].startswith("digits")}
    teachers = {shipped().section("data", data)["teacher"] for data, _ in digits}
    assert len(teachers) >= 3 and len(digits) >= 10 * len(teachers)
    ours, theirs = (shipped().section("supplement", arm) for arm in ("el", "pixel-mmd"))
    assert {key for key in ours if ours[key] != theirs[key]} == {"ensemble"}


def test_the_tables_of_both_seeds_are_full():
    """Every training seed meets every ensemble seed, whose ensembles are the same for all training seeds."""
    for name, study in ANSWERS.items():
        if study.get("kind") == "seeds":
            pairs = {(supplement, seed) for *_, supplement, seed in cells(name)}
            arms, training = ({pair[i] for pair in pairs} for i in (0, 1))
            assert len(pairs) == len(arms) * len(training) >= 4
            fixed = [shipped().section("supplement", arm)["ensemble_seed"] for arm in arms]
            assert None not in fixed and len(set(fixed)) == len(fixed)
