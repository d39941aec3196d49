# SPDX-License-Identifier: Apache-2.0
"""Tables from synthetic runs whose means, differences and crossings are known."""

import csv
import dataclasses
import json
import math
import re
import shutil
import statistics
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from eldistill.errors import Problem
from eldistill.paths import TABLES
from eldistill.tables import costs, curves, figures, results, typeset
from eldistill.tables import suite as tables
from eldistill.tables.effects import of_suite
from tests import conftest
from tests.conftest import ROOT

NAMES = TABLES[:-1]  # without the report
PARAMS = {"confidence": 0.95, "baseline": "none", "grid": 4, "primary": "judge-a"}
SPACES, PARTS = ("judge-a", "judge-b", "pixels"), ("heldout", "train")
T_975_2 = 0.95 / math.sqrt(2 * 0.975 * 0.025)  # closed form of Student's quantile with 2 degrees of freedom
BASE, EL = (1.0, 1.25, 1.5), (0.5, 1.0, 0.75)
FALLING = (4.0, 3.0, 2.0, 1.0)


def metrics(value, n="5k", n_train=None, shift=0.0):
    out = {}
    for i, space in enumerate(SPACES):
        for part in PARTS:
            size = n_train if part == "train" and n_train else n
            for j, metric in enumerate(("fd", "relfd", "kid", "precision", "recall")):
                out[f"{metric}{size}_{space}_{part}"] = value + i / 4 + j / 8 + (part == "train") / 2 + shift
    return out


def picture(path, side=37):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4 * side, 4 * side), 90).save(path)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def add_run(root, run, value, curve=FALLING, milliseconds=80.0, n="5k", shift=0.0):
    """One synthetic run of 100 iterations and 6,400 images with four snapshots."""
    folder = root / "data/evaluations" / run
    write(folder / "metrics.json", metrics(value, n, shift=shift))
    rows = [["n_images", *(f"{m}2k_{space}_{part}" for space in SPACES for part in PARTS for m in ("fd", "relfd"))]]
    rows += [[1600 * (i + 1), *[point] * 12] for i, point in enumerate(curve)]
    (folder / "curve.csv").write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    picture(folder / "samples.png")
    about = {"n_images": 6400, "iterations": 100, "recipe": "0123456789abcdef" * 4, "git_commit": "c0ffee"}
    about |= {"milliseconds_per_iteration_cpu": milliseconds, "milliseconds_per_iteration_wall": milliseconds + 1}
    about |= {"command": f"python -m eldistill distil {run}", "device": "x86_64", "finished": "2026-01-01T00:00"}
    write(root / f"data/runs/{run}/provenance.json", about)


def add_reference_runs(root, data="toy", n="5k"):
    write(root / f"data/evaluations/{data}/real/metrics.json", metrics(0.125, "1437", "360"))
    write(root / f"data/evaluations/{data}/teacher/metrics.json", metrics(0.25, n))
    for which in ("real", "teacher"):
        picture(root / f"data/evaluations/{data}/{which}/samples.png")


def make(root, runs, out="out", **changes):
    outputs = [root / out / "demo" / name for name in NAMES]
    tables.make_tables(PARAMS | {"runs": runs} | changes, root, outputs)
    return {path.name: path for path in outputs}


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def arm(rows, supplement):
    return next(row for row in rows if row["supplement"] == supplement)


@pytest.fixture
def suite(tmp_path):
    """none and el, three seeds each; el is first listed."""
    return add_suite(tmp_path)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """The same suite and its outputs, made once: to read only."""
    root, runs = add_suite(tmp_path_factory.mktemp("known"))
    return root, runs, make(root, runs)


@pytest.fixture
def undrawn(monkeypatch):
    """No pictures, where numbers alone are asked for."""
    monkeypatch.setattr(tables.grids, "draw_samples", lambda path, *_: path.touch())
    for module, name in ((tables.curves, "draw_curves"), (tables.costs, "draw_costs"), (tables.costs, "draw_ratios")):
        monkeypatch.setattr(module, name, lambda paths, *_: [path.touch() for path in paths])


def add_suite(tmp_path):
    add_reference_runs(tmp_path)
    runs = []
    for supplement, values, cost in (("el", EL, 100.0), ("none", BASE, 80.0)):
        for seed, value in enumerate(values):
            runs.append(f"toy/di/{supplement}/{seed}")
            curve = (4.0, 1.0, 0.75, 0.5) if supplement == "el" else FALLING
            add_run(tmp_path, runs[-1], value, curve, cost + seed)
    return tmp_path, runs


# --- numbers ------------------------------------------------------------------------------------------


def test_means_differences_and_intervals(known):
    row = arm(read(known[2]["main.csv"]), "el")
    deltas = [a - b for a, b in zip(EL, BASE, strict=True)]
    mean = sum(deltas) / 3
    sd = math.sqrt(sum((delta - mean) ** 2 for delta in deltas) / 2)
    half = T_975_2 * sd / math.sqrt(3)
    stem = "fd_judge-a_heldout"
    assert float(row[f"{stem}_mean"]) == 0.75
    assert float(row[f"{stem}_sd"]) == 0.25
    for part in PARTS:
        assert float(row[f"fd_judge-a_{part}_difference"]) == pytest.approx(mean, rel=1e-14)
        assert float(row[f"fd_judge-a_{part}_difference_low"]) == pytest.approx(mean - half, rel=1e-10)
        assert float(row[f"fd_judge-a_{part}_difference_high"]) == pytest.approx(mean + half, rel=1e-10)
        assert row[f"fd_judge-a_{part}_lower_in"] == "3/3"
    assert float(row[f"{stem}_ratio"]) == pytest.approx(0.75 / 1.25, rel=1e-14)
    assert (row["seeds"], row["paired_seeds"]) == ("3", "3")
    assert row["metric_heldout"] == "fd5k_judge-a_heldout"


def test_a_narrower_confidence_narrows_the_interval(suite, undrawn):
    widths = []
    for confidence in (0.8, 0.95):
        row = arm(read(make(*suite, confidence=confidence)["main.csv"]), "el")
        ends = (float(row[f"fd_judge-a_train_difference_{end}"]) for end in ("low", "high"))
        widths.append(-statistics.fmean([next(ends), -next(ends)]))
    assert 0 < widths[0] < widths[1]


def test_crossings_saving_and_overhead(known):
    rows = read(known[2]["main.csv"])
    el, none = arm(rows, "el"), arm(rows, "none")
    for part in PARTS:
        assert none[f"iterations_to_baseline_{part}"] == "100"
        assert el[f"iterations_to_baseline_{part}"] == "50"
        assert float(el[f"saving_percent_{part}"]) == 50
    assert float(el["step_ms_cpu"]) == 101
    assert float(el["overhead_percent"]) == pytest.approx(100 * 101 / 81 - 100)
    assert not any(none[key] for key in none if "difference" in key or "saving" in key or "overhead" in key)


def test_a_baseline_that_was_there_earlier_gets_credit(tmp_path):
    add_reference_runs(tmp_path)
    runs = [f"toy/di/{supplement}/{seed}" for supplement in ("none", "el") for seed in range(2)]
    for run in runs:
        add_run(tmp_path, run, 1.0, (1.0, 1.0, 1.0, 1.0) if "/el/" in run else (4.0, 1.0, 2.0, 1.0))
    rows = read(make(tmp_path, runs)["main.csv"])
    assert arm(rows, "none")["iterations_to_baseline_train"] == "50"
    assert float(arm(rows, "el")["saving_percent_train"]) == 50


def test_censored_runs_stay_censored(tmp_path):
    add_reference_runs(tmp_path)
    runs = [f"toy/di/{supplement}/{seed}" for supplement in ("none", "el") for seed in range(3)]
    for run in runs[:3]:
        add_run(tmp_path, run, 1.0)
    for run, curve in zip(runs[3:], ((1.0,) * 4, (9.0,) * 4, (9.0,) * 4), strict=True):
        add_run(tmp_path, run, 1.0, curve)
    outputs = make(tmp_path, runs)
    row = arm(read(outputs["main.csv"]), "el")
    assert row["iterations_to_baseline_heldout"] == "> 100"
    assert row["saving_percent_heldout"] == "< 0"
    assert [r["iterations_to_baseline_train"] for r in read(outputs["runs.csv"])[3:]] == ["25", "> 100", "> 100"]
    assert "> 100 (not reached)" in outputs["main.md"].read_text()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(30, False)], (30, False)),
        ([(30, False), (10, False)], (10, False)),
        ([(30, False), (90, True), (10, False)], (30, False)),
        ([(90, True), (90, True), (10, False)], (90, True)),
        ([(10, False), (90, True)], (10, False)),
    ],
)
def test_the_middle_of_times_is_kaplan_and_meiers(values, expected):
    assert tables.median_or_bound(values) == expected


@pytest.mark.parametrize("constant", [-0.25, 0.5, 8.0])
def test_a_constant_shifts_the_difference_by_itself(known, suite, undrawn, constant):
    root, runs = suite
    before = arm(read(known[2]["main.csv"]), "el")
    for seed, value in enumerate(EL):
        write(root / f"data/evaluations/toy/di/el/{seed}/metrics.json", metrics(value, shift=constant))
    after = arm(read(make(root, runs)["main.csv"]), "el")
    for part in PARTS:
        for end in ("", "_low", "_high"):
            key = f"fd_judge-a_{part}_difference{end}"
            assert float(after[key]) - float(before[key]) == pytest.approx(constant, abs=1e-12)
        assert after[f"fd_judge-a_{part}_difference"] == str(float(before[f"fd_judge-a_{part}_difference"]) + constant)


def test_every_number_of_the_main_table_follows_from_the_runs(known):
    root, _, outputs = known
    runs = {f"{r['data']}/{r['method']}/{r['supplement']}/{r['seed']}": r for r in read(outputs["runs.csv"])}
    checked = 0
    for row in read(outputs["main.csv"])[2:]:
        mine = [runs[name] for name in row["runs"].split()]
        base = [runs[name.replace("/el/", "/none/")] for name in row["runs"].split()]
        n = row["metric_heldout"].removeprefix("fd").split("_")[0]
        values = lambda rows, key: [float(r[key]) for r in rows]  # noqa: E731
        for key, text in row.items():
            if not text or key in ("data", "method", "supplement", "runs") or key.startswith("metric_"):
                continue
            stem, _, end = key.rpartition("_")
            exact = f"{stem.split('_')[0]}{n}_{stem.split('_', 1)[-1]}"
            pairs = list(zip(mine, base, strict=True))
            if end in ("mean", "sd"):
                expected = (statistics.fmean if end == "mean" else statistics.stdev)(values(mine, exact))
            elif end == "difference":
                expected = statistics.fmean(float(a[exact]) - float(b[exact]) for a, b in pairs)
            elif end == "baseline":
                expected = statistics.fmean(values(base, exact))
            elif end == "ratio":
                expected = sum(values(mine, exact)) / sum(values(base, exact))
            elif key.startswith("iterations"):
                expected = statistics.median(values(mine, key))
            elif stem == "saving_percent":
                column = f"iterations_to_baseline_{end}"
                expected = 100 * (1 - statistics.median(values(mine, column)) / statistics.median(values(base, column)))
            elif key in ("step_ms_cpu", "overhead_percent"):
                a, b = (statistics.median(values(rows, "milliseconds_per_iteration_cpu")) for rows in (mine, base))
                expected = a if key == "step_ms_cpu" else 100 * (a / b - 1)
            elif key in ("seeds", "paired_seeds"):
                expected = len(mine)
            elif end in ("p", "holm", "family"):
                continue  # test_p_values_are_those_of_the_differences
            elif end == "in":
                name = exact.removesuffix("_lower")
                text = text.split("/")[0]
                expected = sum(float(a[name]) < float(b[name]) for a, b in pairs)
            else:
                name = exact.removesuffix("_difference")
                deltas = [float(a[name]) - float(b[name]) for a, b in pairs]
                half = T_975_2 * statistics.stdev(deltas) / math.sqrt(3)
                expected = statistics.fmean(deltas) + {"low": -half, "high": half}[end]
            assert float(text) == pytest.approx(expected, rel=1e-10), key
            checked += 1
    assert checked > 40
    assert all(r["recipe"] == "0123456789ab" and r["git_commit"] == "c0ffee" for r in runs.values())
    assert all(r["command"].endswith(name) for name, r in runs.items())
    assert all(json.loads((root / r["metrics_file"]).read_text()) for r in runs.values())


# --- what may be absent -------------------------------------------------------------------------------


def test_one_seed_has_no_deviation_and_no_interval(tmp_path):
    add_reference_runs(tmp_path)
    runs = ["toy/di/none/0", "toy/di/el/0"]
    add_run(tmp_path, runs[0], 1.0)
    add_run(tmp_path, runs[1], 0.5)
    outputs = make(tmp_path, runs)
    row = arm(read(outputs["main.csv"]), "el")
    assert float(row["fd_judge-a_heldout_difference"]) == -0.5
    assert not any(row[key] for key in row if key.endswith(("_sd", "_low", "_high")))
    text = outputs["main.md"].read_text()
    assert "no interval, no conclusion" in text
    for name in NAMES[:7]:
        assert "nan" not in outputs[name].read_text().lower()


def test_without_a_baseline_its_columns_are_empty(suite):
    outputs = make(*suite, baseline="absent")
    for row in read(outputs["main.csv"])[2:]:
        relative = ("difference", "lower_in", "ratio", "paired", "iterations_to", "saving", "overhead")
        assert not any(row[key] for key in row if any(word in key for word in relative))
    assert "No comparison" in outputs["main.md"].read_text()


def test_only_shared_seeds_are_paired(suite):
    root, runs = suite
    row = arm(read(make(root, [run for run in runs if run != "toy/di/none/1"])["main.csv"]), "el")
    assert (row["seeds"], row["paired_seeds"]) == ("3", "2")
    assert float(row["fd_judge-a_heldout_difference"]) == pytest.approx((EL[0] - BASE[0] + EL[2] - BASE[2]) / 2)


def test_every_ratio_lies_in_its_interval_and_is_that_of_the_shared_seeds(tmp_path, undrawn):
    """The table, the figure of ratios and the headline, where the baseline has more seeds than the arm and they are unlike."""
    add_reference_runs(tmp_path)
    values = {"none": (2.0, 2.5, 6.0, 6.5), "el": (1.0, 1.5)}
    runs = [f"toy/di/{supplement}/{seed}" for supplement, each in values.items() for seed in range(len(each))]
    for run in runs:
        add_run(tmp_path, run, values[run.split("/")[2]][int(run[-1])])
    loaded = [results.load_result(run, tmp_path) for run in runs]
    rows = tables.main_rows(loaded, PARAMS | {"runs": runs}, tmp_path)
    row = arm(rows, "el")
    ours, theirs = (statistics.fmean(values[name][:2]) for name in ("el", "none"))
    for part in PARTS:
        more = 0.5 * (part == "train")
        ratio = (ours + more) / (theirs + more)
        drawn = tables.costs._distance(part)(row, arm(rows, "none"), [], [], PARAMS)
        assert drawn.value == pytest.approx(ratio) == row[f"fd_judge-a_{part}_ratio"]
        assert drawn.low <= drawn.value <= drawn.high
    (effect,), _ = of_suite(rows, PARAMS)
    assert effect.percent == pytest.approx(100 * (ours / theirs - 1))
    assert effect.low <= effect.percent <= effect.high


@pytest.mark.parametrize(
    "name",
    ["evaluations/toy/di/el/1/metrics.json", "evaluations/toy/di/el/1/curve.csv", "runs/toy/di/el/1/provenance.json",
     "evaluations/toy/real/metrics.json", "evaluations/toy/teacher/metrics.json",
     "evaluations/toy/di/none/0/samples.png"],
)  # fmt: skip
def test_a_missing_file_is_a_problem_that_names_it(suite, name):
    (suite[0] / "data" / name).unlink()
    with pytest.raises(Problem, match=name.rsplit("/", 1)[1]):
        make(*suite)


@pytest.mark.parametrize(
    "text", ["", "n_images\n", "n_images,fd2k_judge-a_heldout\n1,x\n", "fd\n1\n", "n_images,fd\n1,nan\n"]
)
def test_a_damaged_curve_is_a_problem(suite, text):
    (suite[0] / "data/evaluations/toy/di/el/0/curve.csv").write_text(text)
    with pytest.raises(Problem, match="curve.csv"):
        make(*suite)


def test_other_problems(suite):
    root, runs = suite
    with pytest.raises(Problem, match="no runs"):
        make(root, [])
    with pytest.raises(Problem, match="judge-z"):
        make(root, runs, primary="judge-z")
    write(root / "data/evaluations/toy/di/el/0/metrics.json", metrics(1.0, "2k"))
    with pytest.raises(Problem, match="differ in metrics"):
        make(root, runs)
    with pytest.raises(Problem, match="for two numbers of images"):
        results.named(["fd2k_judge-a_train", "fd5k_judge-a_train"], "fd", "judge-a", "train")


# --- form ---------------------------------------------------------------------------------------------


def test_equal_input_gives_equal_bytes(known, suite):
    first, second = known[2], make(*suite)
    for name in NAMES:
        assert first[name].read_bytes() == second[name].read_bytes(), name
    assert not list(suite[0].rglob("*.tmp"))


def test_no_times_of_day(known):
    assert not any("2026" in known[2][name].read_text() for name in NAMES[:7])


def test_rows_stand_in_the_order_of_the_suite_and_settings_may_differ_in_n(suite):
    root, runs = suite
    add_reference_runs(root, "tiny", "512")
    add_run(root, "tiny/sid/none/7", 1.0, n="512")
    outputs = make(root, ["tiny/sid/none/7", *runs])
    main = [(row["data"], row["method"], row["supplement"]) for row in read(outputs["main.csv"])]
    real, teacher = results.REAL, results.TEACHER
    assert main == [("tiny", real, ""), ("tiny", teacher, ""), ("tiny", "sid", "none"),
                    ("toy", real, ""), ("toy", teacher, ""), ("toy", "di", "el"), ("toy", "di", "none")]  # fmt: skip
    exact = [row["metric_train"] for row in read(outputs["main.csv"])]
    assert exact[:4] == ["fd360_judge-a_train", *["fd512_judge-a_train"] * 2, "fd360_judge-a_train"]
    assert [row["seed"] for row in read(outputs["runs.csv"])] == ["7", "0", "1", "2", "0", "1", "2"]
    assert len(read(outputs["curves.csv"])) == 4 * 7
    assert read(outputs["runs.csv"])[0]["fd5k_judge-a_train"] == ""


def test_the_curves_keep_every_bit_and_count_iterations(tmp_path):
    add_reference_runs(tmp_path)
    add_run(tmp_path, "toy/di/none/0", 1.0, (0.1 + 0.2, 3.0, 2.0, 1.0))
    rows = read(make(tmp_path, ["toy/di/none/0"])["curves.csv"])
    assert rows[0]["fd2k_pixels_train"] == "0.30000000000000004"
    assert [row["iteration"] for row in rows] == ["25", "50", "75", "100"]
    assert list(rows[0])[:6] == ["data", "method", "supplement", "seed", "n_images", "iteration"]


def add_history(root, runs, images):
    """The curves of runs that start from others, whose images they count too."""
    for run in runs:
        path = root / f"data/evaluations/{run}/curve.csv"
        head, *rows = path.read_text().splitlines()
        points = (row.split(",", 1) for row in rows)
        path.write_text("\n".join([head, *(f"{int(n) + images},{values}" for n, values in points)]) + "\n")


@pytest.mark.parametrize("images", [64, 6400, 10**6])
def test_images_of_an_earlier_run_move_no_time(suite, undrawn, images):
    """Times, savings and iterations are those of the run itself, whatever `start_from` names; n_images counts both."""
    root, runs = suite
    before = {name: read(path) for name, path in make(root, runs).items() if name.endswith(".csv")}
    add_history(root, runs, images)
    after = {name: read(path) for name, path in make(root, runs, "later").items() if name.endswith(".csv")}
    for row in before["curves.csv"]:
        row["n_images"] = str(int(row["n_images"]) + images)
    assert after == before
    result = results.load_result(runs[0], root)
    assert list(curves.points_of([result], "fd2k_judge-a_heldout")) == [25, 50, 75, 100]


def test_snapshots_of_one_iteration_are_one_point(tmp_path):
    """A short run has them for several percentages of its images; none of its points may be missing from a figure."""
    runs = [add_run(tmp_path, f"toy/di/none/{seed}", 1.0) or f"toy/di/none/{seed}" for seed in range(2)]
    loaded = [results.load_result(run, tmp_path) for run in runs]
    twice = [
        dataclasses.replace(each, curve=sorted(each.curve * 2, key=lambda point: int(point["n_images"])))
        for each in loaded
    ]
    column = "fd2k_judge-a_heldout"
    for count in (1, 2):
        assert curves.points_of(twice[:count], column) == curves.points_of(loaded[:count], column) != {}


def row_of(delta, low, high):
    ends = {"": delta, "_low": low, "_high": high}
    row = {"method": "di", "supplement": "el", "metric_heldout": "fd5k_judge-a_heldout", "paired_seeds": 3}
    row |= {
        f"fd_judge-a_heldout_{key}": value
        for key, value in {"lower_in": "3/3", "p": 0.03, "p_holm": 0.04, "p_family": 2}.items()
    }
    return row | {f"fd_judge-a_heldout_difference{end}": value for end, value in ends.items()}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((-0.08, -0.15, -0.01), "is lower than none by 0.080 [0.010, 0.150] (p = 0.0300, Holm over 2: 0.0400, n = 3, lower in 3 of 3)."),
        ((0.08, 0.01, 0.15), "is higher than none by 0.080 [0.010, 0.150] (p = 0.0300, Holm over 2: 0.0400, n = 3, lower in 3 of 3)."),
        ((-0.08, -0.2, 0.04), "is not distinguishable from none: difference -0.08 [-0.20, 0.04] (p = 0.0300, Holm"),
    ],
)  # fmt: skip
def test_sentences_claim_what_the_interval_allows(numbers, expected):
    text = typeset.sentence(row_of(*numbers), "heldout", PARAMS)
    assert text.startswith(f"di/el: fd5k_judge-a_heldout {expected}")


def test_what_does_not_survive_the_correction_says_so():
    row = row_of(-0.08, -0.15, -0.01) | {"fd_judge-a_heldout_p_holm": 0.12}
    assert typeset.sentence(row, "heldout", PARAMS).endswith("lower in 3 of 3): by itself, not after correction.")


def test_p_values_are_those_of_the_differences(suite, undrawn):
    """Of two arms against the baseline: the paired t-test of each, and Holm's correction over both."""
    from scipy.stats import ttest_rel

    root, runs = suite
    more = (0.75, 1.5, 1.75)
    for seed, value in enumerate(more):
        runs.append(f"toy/di/pixel-mmd/{seed}")
        add_run(root, runs[-1], value)
    rows = read(make(root, runs)["main.csv"])
    key = "fd_judge-a_heldout_p"
    found = [float(arm(rows, name)[key]) for name in ("el", "pixel-mmd")]
    assert found == pytest.approx([ttest_rel(values, BASE).pvalue for values in (EL, more)], rel=1e-9)
    smaller, larger = sorted(found)
    holm = {smaller: min(1.0, 2 * smaller), larger: max(larger, min(1.0, 2 * smaller))}
    adjusted = [float(arm(rows, name)[f"{key}_holm"]) for name in ("el", "pixel-mmd")]
    assert adjusted == pytest.approx([holm[p] for p in found])


def test_a_corrected_p_counts_the_comparisons_that_stand_beside_it(tmp_path, undrawn):
    """N of `Holm over N` is the number of sentences of a section with the same metric, against the baseline or between others."""
    runs = add_setting(tmp_path, "toy") + add_setting(tmp_path, "wide", 10.0)
    for run in list(runs[:9]):
        runs.append(run.replace("/di/", "/sid/"))
        add_run(tmp_path, runs[-1], 3.0 + int(run[-1]) * len(run))
    outputs = make(tmp_path, runs)
    text, sizes = outputs["main.md"].read_text(), set()
    for name in ("toy", "wide"):
        found = re.findall(
            r"^- \S+: (\S+) is .*? (?:than|from) ([\w-]+)\b.* Holm over (\d+): ", section(text, name), re.M
        )
        families = [(metric, other == "none") for metric, other, _ in found]
        assert len(found) > 6 and [int(size) for *_, size in found] == [families.count(each) for each in families]
        sizes |= {size for *_, size in found}
        assert (
            f"Holm's correction over the {families.count(('fd5k_judge-a_heldout', True))} comparisons"
            in (re.search(rf"caption{{{name}: .*", outputs["main.tex"].read_text())[0])
        )
    assert len(sizes) > 1 and "Holm 0" not in text


def test_markdown_is_a_table_with_its_explanation(known):
    text = known[2]["main.md"].read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 6
    assert len({line.count("|") for line in lines}) == 1
    for words in (
        "# Suite demo",
        "lower is better",
        "`fd5k_judge-a_heldout`",
        "`fd1437_judge-a_heldout`",
        "0.75 ± 0.25",
    ):
        assert words in text


def test_a_student_below_the_noise_floor_is_pointed_out(known, suite, undrawn):
    root, runs = suite
    assert "Below the noise floor" not in known[2]["main.md"].read_text()
    for seed in range(3):
        write(root / f"data/evaluations/toy/di/el/{seed}/metrics.json", metrics(0.0625))
    assert "Below the noise floor: di/el." in make(root, runs)["main.md"].read_text()


def test_the_pictures_open_and_have_a_sensible_size(known):
    from PIL import Image

    outputs = known[2]
    with Image.open(outputs["curves.png"]) as picture:
        assert picture.size == pytest.approx((1400, 590), abs=1)  # 7 inches at 200 dpi
        assert "Software" not in picture.info
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    with Image.open(outputs["samples.png"]) as picture:
        width, height = picture.size
        assert 600 < width < 1400
        assert 600 < height < 1400
        assert picture.getpixel((0, 0)) == (255, 255, 255)
        colours = {colour: count for count, colour in picture.getcolors(1 << 20)}
        # Four panels (real, teacher, el, none) of 4 x 4 images, 37 pixels a side, enlarged three times.
        assert colours[(90, 90, 90)] == pytest.approx(4 * (4 * 37 * 3) ** 2, rel=0.01)


@pytest.mark.parametrize(("curve_n", "primary"), [("250", "judge-a"), ("512", "judge-b")])
def test_the_plots_of_dvc_show_the_points_of_every_suite(tmp_path, undrawn, curve_n, primary):
    """`dvc plots show` in a repository of its own, with our dvc.yaml and template: every plot has all points of a suite whose
    curve_n and first feature space are not those of the demo, and none of its values is missing."""
    for name in ("dvc.yaml", "params.yaml", ".dvc/config", ".dvc/plots/arms.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    runs = add_setting(tmp_path, "toy", curve_n=curve_n)
    for place, run in enumerate(runs):  # a value of its own in each column
        path = tmp_path / f"data/evaluations/{run}/curve.csv"
        rows = [[*row.values()] for row in read(path)]
        lines = [[row[0], *(str(float(cell) + i + place) for i, cell in enumerate(row[1:]))] for row in rows]
        path.write_text("\n".join(",".join(row) for row in [[*read(path)[0]], *lines]) + "\n")
    suite = conftest.shipped()["suite"]
    assert suite == "demo"  # where `make` writes
    tables = make(tmp_path, runs, "data/tables", primary=primary)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "plots", "show", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    shown = json.loads(done.stdout)
    assert done.returncode == 0 and "errors" not in shown, done.stderr
    wanted = {
        "fd_heldout": f"fd{curve_n}_{primary}_heldout",
        "fd_train": f"fd{curve_n}_{primary}_train",
        "fd_last_heldout": f"fd{curve_n}_pixels_heldout",
    }
    contents = [each["content"] for (each,) in shown["data"].values()]
    assert {each["encoding"]["y"]["field"] for each in contents} == set(wanted)
    for content in contents:
        column, points = content["encoding"]["y"]["field"], content["data"]["values"]
        values = [float(point[column]) for point in points]
        assert values == [float(row[wanted[column]]) for row in read(tables["curves.csv"])]
        assert len(values) == 4 * len(runs) and all(point[content["encoding"]["x"]["field"]] for point in points)


# --- what must agree before runs are compared ------------------------------------------------------------


def add_setting(root, data, shift=0.0, n="5k", curve_n="2k", supplements=("none", "el", "pixel-mmd")):
    """A data setting with three supplements of three seeds each, all values shifted; returns its runs."""
    add_reference_runs(root, data, n)
    values = {"none": BASE, "el": EL, "pixel-mmd": (0.75, 1.5, 1.75)}
    runs = [f"{data}/di/{supplement}/{seed}" for supplement in supplements for seed in range(3)]
    for run in runs:
        _, _, supplement, seed = run.split("/")
        add_run(root, run, values[supplement][int(seed)] + shift, n=n)
        path = root / f"data/evaluations/{run}/curve.csv"
        path.write_text(path.read_text().replace("2k_", f"{curve_n}_"))
    return runs


def section(text, data):
    """The section of a data setting of main.md."""
    return text.split(f"\n## {data}\n")[1].split("\n## ")[0].split("\n\nIntervals cover")[0].strip()


def test_a_data_setting_says_the_same_alone_and_beside_another(tmp_path, undrawn):
    """Everything of a section of main.md, every cell of main.csv and runs.csv: nothing is paired, pooled, corrected or named
    across data settings, whichever comes first."""
    settings = {"toy": add_setting(tmp_path, "toy"), "wide": add_setting(tmp_path, "wide", 10.0, "512", "250")}
    tables_of = {name: make(tmp_path, runs, name) for name, runs in settings.items()}
    for i, order in enumerate((("toy", "wide"), ("wide", "toy"))):
        both = make(tmp_path, [run for name in order for run in settings[name]], f"both{i}")
        for name, alone in tables_of.items():
            mine, theirs = (section(each["main.md"].read_text(), name) for each in (alone, both))
            assert mine == theirs and "di/el: fd" in mine and "from pixel-mmd" in mine
            captions = [re.findall(rf"{name}: Fréchet.*", each["main.tex"].read_text()) for each in (alone, both)]
            assert captions[0] == captions[1] and captions[0]
            for file in ("main.csv", "runs.csv", "curves.csv"):
                rows = [row for row in read(both[file]) if row["data"] == name]
                for before, after in zip(read(alone[file]), rows, strict=True):
                    assert before == {key: after[key] for key in before}, file


def test_two_supplements_are_compared_once_and_within_a_setting_and_a_method(tmp_path, undrawn):
    """el against pixel-mmd: one sentence a part in each of three places, none of which says that el differs from el by 0."""
    runs = add_setting(tmp_path, "toy") + add_setting(tmp_path, "wide", 10.0)
    for run in list(runs[:9]):
        runs.append(run.replace("/di/", "/sid/"))
        add_run(tmp_path, runs[-1], 3.0)
    text = make(tmp_path, runs)["main.md"].read_text()
    pairs = [line for line in text.splitlines() if "is not distinguishable from" in line and "from none" not in line]
    assert [line.split(":")[0] for line in pairs] == ["- di/el"] * 2 + ["- sid/el"] * 2 + ["- di/el"] * 2
    assert all("from pixel-mmd" in line for line in pairs)
    ps = [
        [float(each) for each in re.search(r"p = ([\d.]+), Holm over [12]: ([\d.]+)", line).groups()] for line in pairs
    ]
    assert ps[4] == ps[5] and ps[4][0] == ps[4][1] == ps[0][0], "of one data setting: a family of one"
    assert ps[0][1] == pytest.approx(2 * ps[0][0]), "of the other one: two methods, a family of two"


def test_a_setting_without_a_feature_space_of_another_has_no_sentence_in_it(tmp_path, undrawn):
    """One setting was measured in judge-a and pixels only; the other's comparisons in judge-b stay."""
    runs = add_setting(tmp_path, "toy") + add_setting(tmp_path, "few")
    for run in [*runs[9:], "few/real", "few/teacher"]:
        path = tmp_path / f"data/evaluations/{run}/metrics.json"
        write(path, {name: value for name, value in json.loads(path.read_text()).items() if "judge-b" not in name})
    text = make(tmp_path, runs)["main.md"].read_text()
    assert "di/el: fd5k_judge-b" in section(text, "toy") and "judge-b_" not in section(text, "few")


def test_a_sentence_names_the_number_of_images_of_its_own_space(tmp_path, undrawn):
    """One space was measured with fewer images (evaluate.n_of): its sentence says so."""
    runs = add_setting(tmp_path, "toy")
    for run in [*runs, "toy/real", "toy/teacher"]:
        path = tmp_path / f"data/evaluations/{run}/metrics.json"
        path.write_text(path.read_text().replace("5k_pixels", "2k_pixels"))
    text = make(tmp_path, runs)["main.md"].read_text()
    assert "- di/el: fd2k_pixels_heldout is" in text and "fd5k_pixels" not in text


def test_costs_of_several_devices_are_not_compared(tmp_path, undrawn):
    """One run of the baseline was made elsewhere: each arm keeps its time, but nobody is dearer."""
    runs = add_setting(tmp_path, "toy")
    assert arm(read(make(tmp_path, runs)["main.csv"]), "el")["overhead_percent"] == "0.0"
    path = tmp_path / "data/runs/toy/di/none/1/provenance.json"
    write(path, json.loads(path.read_text()) | {"device": "another"})
    row = arm(read(make(tmp_path, runs)["main.csv"]), "el")
    assert (row["overhead_percent"], row["step_ms_cpu"]) == ("", "80.0")


def test_times_of_two_models_of_cpu_are_not_compared(tmp_path, undrawn):
    """Kept results come from several machines. Records of before say no model, and tell no two machines apart."""
    runs = add_setting(tmp_path, "toy")
    for seed, model, compared in ((0, "one", True), (1, "another", False)):
        path = tmp_path / f"data/runs/toy/di/none/{seed}/provenance.json"
        write(path, json.loads(path.read_text()) | {"processor": model})
        assert bool(arm(read(make(tmp_path, runs)["main.csv"]), "el")["overhead_percent"]) is compared


def test_ratios_are_over_the_seeds_that_both_arms_have():
    """As in main.csv, of which they take the savings."""
    key = "milliseconds_per_iteration_cpu"
    mine, theirs = (
        [results.Result(f"toy/di/{name}/{seed}", {}, [], {"memory_gib": value, key: value}) for seed, value in each]
        for name, each in (("el", [(0, 9.0), (1, 2.0)]), ("none", [(1, 1.0), (2, 5.0)]))
    )
    row = {"saving_percent_heldout": 60.0, "iterations_to_baseline_heldout": 30}
    base = {"iterations_to_baseline_heldout": 100}
    assert costs._seconds(row, {}, mine, theirs, {}) == costs._memory(row, {}, mine, theirs, {}) == costs.Ratio(2.0)
    assert costs._memory(row, {}, mine[:1], theirs, {}) is costs._seconds(row, {}, mine[:1], theirs, {}) is None
    assert costs._iterations(row, base, mine, theirs, {}) == costs.Ratio(0.4)
    assert costs._iterations(row, base, mine, [*mine], {}) == costs.Ratio(0.3)
    bounded = {"saving_percent_heldout": "< 20", "iterations_to_baseline_heldout": "> 90"}
    assert costs._iterations(bounded, base, mine, theirs, {}) == costs.Ratio(0.8, bound=True)


@pytest.mark.parametrize(("data", "ours"), [("cifar10", {"1": "2.5", "2": ""}), ("toy", {"1": "", "2": ""})])
def test_ours_stands_beside_figures_of_the_same_data_and_calls(tmp_path, undrawn, data, ours):
    """Our FID is of one call: beside a published one of two calls, or of another data set, the place is empty; clean-fid's
    figures stand in main.csv and beside none of them."""
    add_reference_runs(tmp_path, data)
    add_run(tmp_path, f"{data}/cd/none/0", 1.0)
    path = tmp_path / f"data/evaluations/{data}/cd/none/0/metrics.json"
    figures = {"fid50k_clean": 2.25, "kid50k_clean": -0.125, "fid50k_inception_edmref": 2.5}
    write(path, json.loads(path.read_text()) | figures)
    made = make(tmp_path, [f"{data}/cd/none/0"])
    (measured,) = [row for row in read(made["main.csv"]) if row["method"] == "cd"]
    assert {name: float(measured[f"{name}_mean"]) for name in figures} == figures
    rows = [row for row in read(made["published.csv"]) if row["method"] == "cd"]
    assert {row["calls"]: row["ours"] for row in rows} == ours
    assert {row["dataset"] for row in rows if row["ours"]} <= {"CIFAR-10"}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, in order."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: (figures.append(self), save(self, *args, **more))
    )
    return figures


def test_every_panel_names_what_its_own_setting_measured_and_how_many_seeds(tmp_path, drawn):
    """Two settings with other numbers of images, the second with one seed: titles, axes, small print and legends."""
    runs = add_setting(tmp_path, "toy") + add_setting(tmp_path, "wide", 1.0, "512", "250")[::3]
    make(tmp_path, runs)
    curves = drawn[0]
    assert [axes.get_title("left") for axes in curves.axes] == [
        f"{data}, DI, {part} images ({seeds})"
        for data, seeds in (("toy", "3 seeds"), ("wide", "1 seed"))
        for part in ("held-out", "train")
    ]
    shown = [axes.get_ylabel().split("\n")[-1] for axes in curves.axes]
    assert shown == [f"(judge A, {n} images)" for n in ("2,000", "2,000", "250", "250")]
    small = [text.get_text() for axes in curves.axes for text in axes.texts if text.get_rotation() == 90]
    assert small == [f"{n}_judge-a_{part}" for n in ("fd2k", "fd250") for part in ("heldout", "train")]
    (costs,) = {id(each): each for each in drawn if len(each.axes) == 6}.values()
    assert [axes.get_ylabel().split("\n")[-1] for axes in costs.axes[::3]] == [shown[0], shown[2]]
    for figure in (curves, costs):
        (legend,) = figure.legends
        assert legend.get_window_extent().width < figure.bbox.width
        assert {"no supplement", "Embedding Loss (EL)", "MMD on pixels (control)"} <= {
            text.get_text() for text in legend.get_texts()
        }
        assert not [axes for axes in figure.axes if axes.get_legend()], "a legend inside a panel hides curves"


def test_a_picture_compares_no_seconds_of_several_devices(tmp_path, drawn):
    """Costs say so in the panel of seconds; the ratios have no line of them, nor of a goal that is none."""
    runs = add_setting(tmp_path, "toy")
    for run in runs:
        add_run(tmp_path, run, 1.0, RISING if "/none/" in run else FALLING)
    for device in ("x86_64", "another"):
        path = tmp_path / "data/runs/toy/di/el/0/provenance.json"
        write(path, json.loads(path.read_text()) | {"device": device})
        make(tmp_path, runs)
    figures = {id(each): each for each in drawn}.values()  # each is saved once for each ending
    lines = [
        [label.get_text() for label in each.axes[0].get_yticklabels()]
        for each in figures
        if each.axes[0].get_xlabel().startswith("ratio")
    ]
    distances = ["distance to held-out images", "distance to train images"]
    assert lines == [[*distances, "seconds an iteration"], distances]
    texts = [[text.get_text() for axes in each.axes[1:] for text in axes.texts if not text.get_rotation()]
             for each in figures if len(each.axes) == 3]  # fmt: skip
    missing = "FLOP: not measured"
    assert texts == [[missing], ["seconds: measured on\nseveral devices", missing]]


def test_every_point_of_the_curves_is_inside_its_panel_or_marked_at_the_edge(tmp_path, drawn):
    """Also with a noise floor and a teacher far below all curves, which must not squeeze them."""
    runs = add_setting(tmp_path, "toy")
    for which in ("real", "teacher"):
        path = tmp_path / f"data/evaluations/toy/{which}/metrics.json"
        write(path, dict.fromkeys(json.loads(path.read_text()), 1e-6))
    make(tmp_path, runs)
    for axes in drawn[0].axes:
        low, high = axes.get_ylim()
        values = [
            float(y) for line in axes.get_lines() for y in line.get_ydata() if line.get_transform() == axes.transData
        ]
        assert min(values) >= low and max(values) <= high and len(values) > 12
        assert high / low < 2 * max(values) / min(values)
        assert any("teacher" in text.get_text() for text in axes.texts)
        assert len(axes.get_yticks()) >= 3 and all("e" not in label.get_text() for label in axes.get_yticklabels())


def test_a_supplement_looks_the_same_in_every_figure():
    """Whatever the baseline and the order; eleven others differ from each other and from these."""
    first = figures.styles(["none", "el", "pixel-mmd"])
    other = figures.styles(["pixel-mmd", *(f"own{i}" for i in range(11)), "el", "none"])
    assert all(first[name] == other[name] for name in first)
    assert first["none"].colour == "#000000" and len(set(other.values())) == len(other) == 14


# --- what a baseline, or a single seed, does not allow to say ----------------------------------------------

RISING, FLAT = (2.0, 5.0, 3.0, 2.5), (2.0,) * 4


def begin_at_0(root, runs):
    """The first point of each curve is the generator before training."""
    for run in runs:
        path = root / f"data/evaluations/{run}/curve.csv"
        head, first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([head, f"0,{first.split(',', 1)[1]}", *rest]) + "\n")


@pytest.mark.parametrize("curve", [RISING, FLAT])
@pytest.mark.parametrize("bad", [1, 3])
@pytest.mark.parametrize("zero", [True, False])
def test_a_baseline_that_ends_no_better_than_it_began_is_no_goal(tmp_path, request, curve, bad, zero):
    """One of its runs, or all: the table says so in place of times, whether or not the curves begin at 0; the rest of it and
    all pictures are there. A run whose own baseline fell keeps its time in runs.csv."""
    drawn = zero and bad == 3
    if not drawn:  # pictures take most of the time
        request.getfixturevalue("undrawn")
    add_reference_runs(tmp_path)
    runs = [f"toy/di/{supplement}/{seed}" for supplement in ("none", "el") for seed in range(3)]
    for run in runs:
        add_run(tmp_path, run, 1.0, curve if "/none/" in run and int(run[-1]) < bad else FALLING)
    if zero:
        begin_at_0(tmp_path, runs)
    outputs = make(tmp_path, runs)
    text, reason = outputs["main.md"].read_text(), f"none ended no better than it began in {bad} of 3 runs"
    for supplement in ("none", "el"):
        row = arm(read(outputs["main.csv"]), supplement)
        for part in PARTS:
            assert (row[f"iterations_to_baseline_{part}"], row[f"saving_percent_{part}"]) == (reason, "")
        (line,) = (line for line in text.splitlines() if line.startswith(f"| di/{supplement} "))
        assert line.count("| — |") == 1 and line.count(" — |") == 2 and "saves" not in line
    for part in ("held-out", "train"):
        assert f"- — di, {part}: {reason}, so that its final value is no goal for a time." in text
    cells = [row["iterations_to_baseline_heldout"] for row in read(outputs["runs.csv"])]
    assert cells == [*["none ended no better than it began in 1 of 1 run"] * bad, *["100"] * (3 - bad)] * 2
    assert "saves" not in text and (not drawn or all(outputs[name].stat().st_size > 1000 for name in NAMES[7:]))


def test_a_curve_of_one_point_is_no_goal(tmp_path):
    """distil.snapshots: [100]: there is a table, with no time to anything."""
    add_reference_runs(tmp_path)
    runs = [f"toy/di/{supplement}/{seed}" for supplement in ("none", "el") for seed in range(2)]
    for run in runs:
        add_run(tmp_path, run, 1.0, (1.0,))
    outputs = make(tmp_path, runs)
    assert arm(read(outputs["main.csv"]), "el")["iterations_to_baseline_train"] == "the curve of none has one point"
    assert "the curve of none has one point, so that" in outputs["main.md"].read_text()


@pytest.mark.parametrize("value", [0.0, 2.0, 1e12])
def test_equal_and_extreme_values_make_a_table(tmp_path, value):
    """All runs alike, also at 0 and where everything has diverged: means, sentences and pictures, and no number that is none."""
    add_reference_runs(tmp_path)
    runs = [f"toy/di/{supplement}/{seed}" for supplement in ("none", "el", "pixel-mmd") for seed in range(2)]
    for run in runs:
        add_run(tmp_path, run, value, (value,) * 4, milliseconds=0.0)
        write(tmp_path / f"data/evaluations/{run}/metrics.json", dict.fromkeys(metrics(1.0), value))
    outputs = make(tmp_path, runs)
    assert all(outputs[name].stat().st_size > 0 for name in NAMES)
    for name in NAMES[:7]:
        assert not re.search(r"\b(nan|inf)\b", outputs[name].read_text().lower())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["toy/di/none/1", "toy/real", "toy/teacher"])
def test_a_metric_that_is_not_finite_is_a_problem_that_names_it(suite, undrawn, value, where):
    """Of a run, of real images, of the teacher: it would make a mean or a test that is none."""
    path = suite[0] / f"data/evaluations/{where}/metrics.json"
    write(path, json.loads(path.read_text()) | {"kid5k_judge-a_heldout": value})
    with pytest.raises(Problem, match=rf"{where}/metrics.json has kid5k_judge-a_heldout = .*, which is not finite"):
        make(*suite)


def test_one_seed_claims_no_saving(tmp_path, undrawn):
    """The iterations of both are shown; that one of them saves some is not said anywhere, with two seeds it is."""
    add_reference_runs(tmp_path)
    runs = [f"toy/di/{supplement}/{seed}" for seed in range(2) for supplement in ("none", "el")]
    for run in runs:
        add_run(tmp_path, run, 1.0, (4.0, 1.0, 0.75, 0.5) if "/el/" in run else FALLING)
    for count, saving in ((2, ""), (4, "50")):
        outputs = make(tmp_path, runs[:count], str(count))
        row, text = arm(read(outputs["main.csv"]), "el"), outputs["main.md"].read_text()
        assert (row["iterations_to_baseline_heldout"], row["saving_percent_heldout"]) == ("50", saving)
        assert "| 50.0 " in text and ("(saves 50 %)" in text) is bool(saving)
        assert ("no conclusion" in text) is not bool(saving)
    assert (
        re.search(
            r"saves|lower than|higher than|(?<!not )distinguishable from", (tmp_path / "2/demo/main.md").read_text()
        )
        is None
    )


def test_one_paired_seed_claims_no_saving_however_many_seeds_an_arm_has(tmp_path, undrawn):
    """Three seeds of el, of which the baseline has one."""
    add_reference_runs(tmp_path)
    runs = ["toy/di/none/0", *(f"toy/di/el/{seed}" for seed in range(3))]
    for run in runs:
        add_run(tmp_path, run, 1.0, (4.0, 1.0, 0.75, 0.5) if "/el/" in run else FALLING)
    outputs = make(tmp_path, runs)
    row = arm(read(outputs["main.csv"]), "el")
    assert (row["seeds"], row["paired_seeds"], row["saving_percent_train"]) == ("3", "1", "")
    assert "saves" not in outputs["main.md"].read_text()


def test_importing_is_light():
    code = "import sys, eldistill.tables.suite; print([m for m in ('torch', 'scipy', 'matplotlib', 'PIL') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_files_of_a_suite_are_listed_once(known):
    """paths.TABLES: what a suite writes, and nothing else; of them Snakemake's report shows those that have a caption."""
    written = {path.name for path in known[2]["main.csv"].parent.iterdir()}
    assert written == set(TABLES) - {"report.html"}
    rules = (ROOT / "workflow/rules/tables.smk").read_text(encoding="utf-8")
    shown = set(re.findall(r'^    "([a-z.]+)": "[A-Z]', rules, re.MULTILINE))
    captions = {path.stem for path in (ROOT / "workflow/report").glob("*.rst")} - {"workflow"}
    assert shown <= set(TABLES) and {name.split(".")[0] for name in shown} == captions
    assert not [name for name in TABLES if f"/{name}" in rules]


@pytest.mark.parametrize(("train", "heldout"), [("1437", "360"), ("900", "1k"), ("50k", "10k"), ("360", "360")])
def test_metrics_of_real_images_are_those_of_the_held_out_ones(suite, train, heldout):
    """Where a metric compares with no part: judges were trained on the train images. The order of names as texts decides nothing."""
    root, runs = suite
    found = metrics(0.125, train, heldout) | {f"is{train}_judge-a": 9.0} | {f"is{heldout}_judge-a": 7.0}
    path = root / "data/evaluations/toy/real/metrics.json"
    for names in (sorted(found), sorted(found, reverse=True)):
        write(path, {name: found[name] for name in names})
        loaded = [results.load_result(run, root) for run in runs]
        real = tables.main_rows(loaded, PARAMS | {"runs": runs}, root)[0]
        assert real["is_judge-a_mean"] == 7.0


@pytest.mark.parametrize("raw", [False, True])
def test_curves_are_drawn_whatever_snapshots_there_are(tmp_path, raw):
    """The untrained generator alone, which a logarithmic axis cannot show; and snapshots with and without the running average."""
    from PIL import Image

    add_run(tmp_path, "toy/di/none/0", 1.0)
    result = results.load_result("toy/di/none/0", tmp_path)
    rows = [{"data": "toy", "seeds": None, **{f"fd_judge-a_{part}_mean": 0.5 for part in PARTS},
             **{f"metric_{part}": "fd5k_judge-a" for part in PARTS}}] * 2  # fmt: skip
    for n_images in (0, 64):
        point = {"n_images": str(n_images), "fd2k_judge-a_heldout": "2.0", "fd2k_judge-a_train": "1.0"}
        point |= {f"raw_{name}": value for name, value in point.items() if raw and name != "n_images"}
        path = tmp_path / f"{n_images}.png"
        curves.draw_curves(
            [path], [dataclasses.replace(result, curve=[point])], rows, {"baseline": "none", "primary": "judge-a"}
        )
        with Image.open(path) as shown:
            assert shown.size == pytest.approx((1400, 590), abs=1)
