# SPDX-License-Identifier: Apache-2.0
"""Tables from synthetic runs whose means, differences and crossings are known."""

import csv
import json
import math
import statistics
import subprocess
import sys

import pytest

from eldistill import results, tables, typeset
from eldistill.files import Problem

NAMES = ("main.csv", "main.md", "main.tex", "runs.csv", "curves.csv", "published.csv", "curves.png", "costs.png", "radar.png",
         "samples.png")  # fmt: skip
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


def add_yardsticks(root, data="toy", n="5k"):
    write(root / f"data/evaluations/{data}/real/metrics.json", metrics(0.125, "1437", "360"))
    write(root / f"data/evaluations/{data}/teacher/metrics.json", metrics(0.25, n))
    picture(root / f"data/evaluations/{data}/teacher/samples.png")


def make(root, runs, out="out", **changes):
    outputs = [root / out / "demo" / name for name in NAMES]
    tables.make(PARAMS | {"runs": runs} | changes, root, outputs)
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
    for name in ("draw_curves", "draw_costs", "draw_radar", "draw_samples"):
        monkeypatch.setattr(tables.plots, name, lambda path, *_: path.touch())


def add_suite(tmp_path):
    add_yardsticks(tmp_path)
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
    add_yardsticks(tmp_path)
    add_run(tmp_path, "toy/di/none/0", 1.0, (4.0, 1.0, 2.0, 1.0))
    add_run(tmp_path, "toy/di/el/0", 1.0, (1.0, 1.0, 1.0, 1.0))
    rows = read(make(tmp_path, ["toy/di/none/0", "toy/di/el/0"])["main.csv"])
    assert arm(rows, "none")["iterations_to_baseline_train"] == "50"
    assert float(arm(rows, "el")["saving_percent_train"]) == 50


def test_censored_runs_stay_censored(tmp_path):
    add_yardsticks(tmp_path)
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
    assert tables.middle(values) == expected


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
            elif end in ("p", "holm"):
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
    add_yardsticks(tmp_path)
    runs = ["toy/di/none/0", "toy/di/el/0"]
    add_run(tmp_path, runs[0], 1.0)
    add_run(tmp_path, runs[1], 0.5)
    outputs = make(tmp_path, runs)
    row = arm(read(outputs["main.csv"]), "el")
    assert float(row["fd_judge-a_heldout_difference"]) == -0.5
    assert not any(row[key] for key in row if key.endswith(("_sd", "_low", "_high")))
    text = outputs["main.md"].read_text()
    assert "no interval, no conclusion" in text
    for name in NAMES[:6]:
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
    with pytest.raises(Problem, match="two sizes"):
        results.named(["fd2k_judge-a_train", "fd5k_judge-a_train"], "fd", "judge-a", "train")


# --- form ---------------------------------------------------------------------------------------------


def test_equal_input_gives_equal_bytes(known, suite):
    first, second = known[2], make(*suite)
    for name in NAMES:
        assert first[name].read_bytes() == second[name].read_bytes(), name
    assert not list(suite[0].rglob("*.tmp"))


def test_no_times_of_day(known):
    assert not any("2026" in known[2][name].read_text() for name in NAMES[:6])


def test_rows_stand_in_the_order_of_the_suite_and_settings_may_differ_in_n(suite):
    root, runs = suite
    add_yardsticks(root, "tiny", "512")
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
    add_yardsticks(tmp_path)
    add_run(tmp_path, "toy/di/none/0", 1.0, (0.1 + 0.2, 3.0, 2.0, 1.0))
    rows = read(make(tmp_path, ["toy/di/none/0"])["curves.csv"])
    assert rows[0]["fd2k_pixels_train"] == "0.30000000000000004"
    assert [row["iteration"] for row in rows] == ["25", "50", "75", "100"]
    assert list(rows[0])[:6] == ["data", "method", "supplement", "seed", "n_images", "iteration"]


def row_of(delta, low, high):
    ends = {"": delta, "_low": low, "_high": high}
    row = {"method": "di", "supplement": "el", "metric_heldout": "fd5k_judge-a_heldout", "paired_seeds": 3}
    row |= {f"fd_judge-a_heldout_{key}": value for key, value in {"lower_in": "3/3", "p": 0.03, "p_holm": 0.04}.items()}
    return row | {f"fd_judge-a_heldout_difference{end}": value for end, value in ends.items()}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((-0.08, -0.15, -0.01), "is lower than none by 0.0800 [0.0100, 0.150] (p = 0.0300, Holm 0.0400, n = 3, lower in 3 of 3)."),
        ((0.08, 0.01, 0.15), "is higher than none by 0.0800 [0.0100, 0.150] (p = 0.0300, Holm 0.0400, n = 3, lower in 3 of 3)."),
        ((-0.08, -0.2, 0.04), "is not distinguishable from none: difference -0.0800 [-0.200, 0.0400] (p = 0.0300, Holm"),
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
        "0.750 ± 0.250",
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
        assert picture.size == (1200, 500)
        assert "Software" not in picture.info
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    with Image.open(outputs["samples.png"]) as picture:
        width, height = picture.size
        assert 600 < width < 1400
        assert 600 < height < 1400
        assert picture.getpixel((0, 0)) == (255, 255, 255)
        colours = {colour: count for count, colour in picture.getcolors(1 << 20)}
        # Three panels (teacher, el, none) of 4 x 4 images, 37 pixels a side, enlarged three times.
        assert colours[(90, 90, 90)] == pytest.approx(3 * (4 * 37 * 3) ** 2, rel=0.01)


def test_importing_is_light():
    code = (
        "import sys, eldistill.tables; print([m for m in ('torch', 'scipy', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
