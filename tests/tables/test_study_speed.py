# SPDX-License-Identifier: Apache-2.0
"""The kind of study `speed`, from synthetic curves whose times and divergences are known."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from eldistill.errors import Problem
from eldistill.paths import STUDY_ENDINGS
from eldistill.tables.studies import forest, rates, speed
from eldistill.tables.studies import page as studies
from tests.tables.test_studies import add as add_plain
from tests.tables.test_tables import SPACES, add_history, metrics, read, write

PARAMS = {"question": "How much sooner?", "kind": "speed", "against": "none", "margin": 0.1, "confidence": 0.95,
          "tuning": [100, 101], "rates": {}}  # fmt: skip
ITERATIONS, IMAGES = 100, 6400
TUNED, FRESH = (100, 101), (200, 201, 202)
DRAW_STUDY = forest.draw_study
UNDRAWN = '<svg viewBox="0 0 1 1"></svg>'


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Pictures take most of the time: only their own test draws them."""
    monkeypatch.setattr(forest, "draw_study", lambda paths, rows, params: [path.write_text(UNDRAWN) for path in paths])


def falling(rate, start=64.0, floor=1e-9, every=10):
    """A curve of a snapshot each `every` iterations whose log distance falls linearly, by `rate` an iteration, to a floor."""
    return {time: max(start * math.exp(-rate * time), floor) for time in range(0, ITERATIONS + 1, every)}


def add(root, run, curve, images=IMAGES, **others):
    """One run whose curve is {iteration: distance}, of 100 iterations and 6,400 images."""
    add_plain(root, run, list(curve.values())[-1], **others)
    about = root / f"data/runs/{run}/provenance.json"
    write(about, json.loads(about.read_text()) | {"n_images": images, "iterations": ITERATIONS})
    rows = [
        [
            "n_images",
            *(f"{m}2k_{space}_{part}" for space in SPACES for part in ("heldout", "train") for m in ("fd", "relfd")),
        ]
    ]
    rows += [[round(time * images / ITERATIONS), *[value] * 12] for time, value in curve.items()]
    path = root / f"data/evaluations/{run}/curve.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    return run


def add_arm(root, arm, curve, seeds, data="toy", **others):
    """An arm METHOD/SUPPLEMENT; curve: {iteration: distance}, or a function from the seed to one."""
    return [add(root, f"{data}/{arm}/{seed}", curve(seed) if callable(curve) else curve, **others) for seed in seeds]


def make(root, runs, out="out", **changes):
    """The rows of the csv by part, and the Markdown."""
    outputs = [root / out / f"study.{ending}" for ending in STUDY_ENDINGS]
    for data, which in itertools.product({run.split("/")[0] for run in runs}, ("real", "teacher")):
        write(root / f"data/evaluations/{data}/{which}/metrics.json", metrics(0.125))
    beds = {run.split("/")[0]: ["toys", "judge-a"] for run in runs}
    studies.make_study("study", PARAMS | {"runs": runs, "beds": beds} | changes, root, outputs)
    text = outputs[1].read_text()
    assert not {"nan", "inf", "None"} & set(text.replace(",", " ").split())
    rows = read(outputs[0])
    return [[row for row in rows if row["part"] == part] for part in ("time", "rate")] + [text]


def said(text, start):
    """The sentences that begin so."""
    return [line[2:] for line in text.splitlines() if line.startswith(f"- {start}")]


# --- time ---------------------------------------------------------------------------------------------


def jitter(seed):
    """A factor on the slope of a seed's curve, the same for all arms."""
    return {200: 1.0, 201: 1.1, 202: 0.8}.get(seed, 1.0)


def test_twice_the_slope_takes_half_the_time_at_every_percentage(tmp_path):
    """Curves that fall exponentially: the ratio of times is that of the slopes, between snapshots too, for every seed."""
    runs = add_arm(tmp_path, "di/none", lambda seed: falling(0.03 * jitter(seed)), FRESH)
    runs += add_arm(tmp_path, "di/el", lambda seed: falling(0.06 * jitter(seed), every=5), FRESH)
    times, _, text = make(tmp_path, runs, percents=[13, 30, 50, 70, 100])
    none, *el = times
    assert (none["supplement"], none["of_run"], none["ratio_iterations"]) == ("none", "", "")
    assert [row["of_run"] for row in el] == ["13", "30", "50", "70", "100"]
    for row in el:
        assert float(row["ratio_iterations"]) == pytest.approx(0.5, rel=1e-9)
        assert float(row["fewer_iterations"]) == pytest.approx(50, rel=1e-9)
        logs = [math.log(64) - 0.03 * jitter(seed) * float(row["of_run"]) for seed in FRESH]
        assert float(row["target"]) == pytest.approx(math.exp(np.mean(logs)), rel=1e-9)
        assert (row["pairs"], row["never"], row["early"], row["bound"]) == ("3", "0", "0", "")
    assert "50 % fewer iterations" in said(text, "toy, di/el at factor 1, time to none's value at 30 %")[0]


def test_ratios_intervals_and_p_are_scipys_and_one_family(tmp_path):
    """Geometric means of paired ratios, t-intervals of the logs, and Holm over all arms and percents of both data settings."""
    slopes = {"el": (0.05, 0.07, 0.04), "mmd": (0.031, 0.029, 0.03)}
    runs = []
    for data in ("toy", "other"):
        runs += add_arm(tmp_path, "di/none", falling(0.03), FRESH, data=data)
        for name, each in slopes.items():
            runs += add_arm(tmp_path, f"di/{name}", lambda seed, each=each: falling(each[seed - 200]), FRESH, data=data)
    times, _, text = make(tmp_path, runs, percents=[30, 60])
    tested = [row for row in times if row["p"]]
    assert len(tested) == 8
    for row in tested:
        logs = np.log(0.03 / np.array(slopes[row["supplement"]]))
        low, high = np.exp(stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs)))
        wanted = {"ratio_iterations": np.exp(logs.mean()), "ratio_iterations_low": low, "ratio_iterations_high": high,
                  "fewer_iterations_low": 100 * (1 - high), "fewer_iterations_high": 100 * (1 - low),
                  "p": stats.ttest_1samp(logs, 0).pvalue}  # fmt: skip
        assert {key: float(row[key]) for key in wanted} == pytest.approx(wanted, rel=1e-6)
    least = min(float(row["p"]) for row in tested)
    assert min(float(row["p_holm"]) for row in tested) == pytest.approx(8 * least)
    assert "one family of 8 tests, all arms and percents of the table (Holm)" in text


@pytest.mark.parametrize(
    ("slopes", "words"),
    [
        ((0.06, 0.0605, 0.0595), ": shorter: 50 % fewer iterations and images ["),
        ((0.015, 0.0151, 0.0149), ": longer: 100 % more iterations and images ["),
        ((0.031, 0.02, 0.045), ": not distinguishable: "),
        ((0.03,) * 3, ": not distinguishable: 0 % fewer iterations"),
    ],
)
def test_a_sentence_is_no_stronger_than_its_interval(tmp_path, slopes, words):
    """Shorter and longer need a corrected p below the level; an interval with 1 in it is `not distinguishable`."""
    runs = add_arm(tmp_path, "di/none", falling(0.03), FRESH)
    runs += add_arm(tmp_path, "di/el", lambda seed: falling(slopes[seed - 200]), FRESH)
    times, _, text = make(tmp_path, runs, percents=[30])
    (sentence,) = said(text, "toy, di/el at factor 1, time")
    assert words in sentence
    spans_one = float(times[1]["ratio_iterations_low"]) <= 1 <= float(times[1]["ratio_iterations_high"])
    assert spans_one is ("not distinguishable" in words)


@pytest.mark.parametrize("images", [64, 6400])
def test_images_of_an_earlier_run_change_no_ratio(tmp_path, images):
    """Percents and times are those of the run itself, also if its curve counts the images of the run that it starts from."""
    runs = add_arm(tmp_path, "di/none", falling(0.04), (*TUNED, *FRESH))
    runs += add_arm(tmp_path, "di/el", lambda seed: falling(0.06 + 0.001 * (seed % 3)), (*TUNED, *FRESH))
    before = make(tmp_path, runs)
    add_history(tmp_path, runs, images)
    assert make(tmp_path, runs, "later") == before


def test_other_units_are_the_ratio_times_the_ratio_of_costs(tmp_path):
    """Twice the images, three times the CPU time (median over an arm's runs) and five times the FLOP an iteration."""
    runs = add_arm(tmp_path, "di/none", falling(0.02), FRESH, milliseconds=10.0, flop=1e9)
    runs += add_arm(tmp_path, "di/el", falling(0.08), FRESH, milliseconds=30.0, flop=5e9, images=2 * IMAGES)
    slow = add_arm(tmp_path, "di/el", falling(0.08), FRESH[:1], milliseconds=900.0, flop=5e9, images=2 * IMAGES)
    assert set(slow) < set(runs)
    times, _, text = make(tmp_path, runs, percents=[50])
    found = {unit: float(times[1][f"ratio_{unit}"]) for unit in speed.UNITS}
    assert found == pytest.approx({"iterations": 0.25, "images": 0.5, "seconds": 0.75, "FLOP": 1.25})
    assert "75 % fewer iterations" in text and "25 % fewer CPU seconds" in text and "25 % more FLOP" in text
    assert "are omitted" not in text


def test_what_is_not_comparable_is_omitted_and_said(tmp_path):
    """Several kinds of device have no common seconds, and no FLOP were counted."""
    runs = add_arm(tmp_path, "di/none", falling(0.03), FRESH) + add_arm(tmp_path, "di/el", falling(0.06), FRESH)
    path = tmp_path / "data/runs/toy/di/el/201/provenance.json"
    write(path, json.loads(path.read_text()) | {"device": "another"})
    times, _, text = make(tmp_path, runs)
    assert not any(row["ratio_seconds"] or row["ratio_FLOP"] for row in times) and times[1]["ratio_images"]
    assert (
        "CPU seconds are omitted where" in text
        and "FLOP are omitted where" in text
        and "% fewer CPU seconds |" not in text
    )


def test_a_seed_that_never_arrives_makes_the_ratio_a_bound(tmp_path):
    """It counts with the whole run; the ratio is at least the one shown, without an interval and a test."""
    runs = add_arm(tmp_path, "di/none", falling(0.04), FRESH)
    runs += add_arm(tmp_path, "di/el", lambda seed: falling(0.08 if seed > 200 else 0.01), FRESH)
    runs += add_arm(tmp_path, "di/worse", falling(0.01), FRESH)
    times, _, text = make(tmp_path, runs, percents=[50])
    el, worse = times[1:]
    assert (el["never"], el["bound"], worse["never"]) == ("1", "at least", "3")
    assert float(el["ratio_iterations"]) == pytest.approx((0.5 * 0.5 * 100 / 50) ** (1 / 3))
    assert float(worse["ratio_iterations"]) == pytest.approx(2)
    assert not any(row[key] for row in (el, worse) for key in ("ratio_iterations_low", "p", "p_holm"))
    assert "never reached in 1 of 3 seeds; at most 21 % fewer iterations" in text
    assert "never reached in 3 of 3 seeds; at least 100 % more iterations" in text
    assert "| ≤ 20.6 |" in text


def test_a_first_snapshot_below_the_value_is_a_bound_from_the_other_side(tmp_path):
    """Without a snapshot at 0, all that is known is that the time is at most that of the first one."""
    late = {time: value for time, value in falling(0.2).items() if time >= 20}
    runs = add_arm(tmp_path, "di/none", falling(0.03), FRESH) + add_arm(tmp_path, "di/el", late, FRESH)
    times, _, text = make(tmp_path, runs, percents=[80], pick=[80])
    assert (times[1]["early"], times[1]["bound"], times[1]["p"]) == ("3", "at most", "")
    assert float(times[1]["ratio_iterations"]) == pytest.approx(20 / 80)
    assert "below it at the first snapshot in 3 of 3 seeds; at least 75 % fewer iterations" in text


def test_a_baseline_that_has_not_improved_has_no_time(tmp_path):
    """At 30 % it is still above its start, where both curves begin."""
    bump = falling(0.03) | {10: 70.0, 20: 80.0, 30: 75.0}
    runs = add_arm(tmp_path, "di/none", bump, FRESH) + add_arm(tmp_path, "di/el", falling(0.06), FRESH)
    times, _, text = make(tmp_path, runs, percents=[30, 100])
    assert [row["ratio_iterations"] != "" for row in times[1:]] == [False, True]
    assert "no ratio, because none's value is not below its first snapshot" in text and "in 3 of 3 seeds" in text


def test_a_dip_of_the_baseline_counts_for_the_baseline_too(tmp_path):
    """Both times are first passages: a baseline that was as low before had the value then, not at the percentage."""
    dip = falling(0.03) | {20: 64 * math.exp(-1.8)}
    runs = add_arm(tmp_path, "di/none", dip, FRESH) + add_arm(tmp_path, "di/same", dip, FRESH)
    times, _, _ = make(tmp_path, runs, percents=[60])
    assert float(times[1]["ratio_iterations"]) == pytest.approx(1)
    curve = [(time, math.log(value)) for time, value in dip.items()]
    assert speed.first_passage(curve, math.log(64) - 1.8) == (pytest.approx(20), "reached")


def test_every_curve_reaches_its_own_values():
    """Over random curves and times: the first passage at the value that a curve has at t is not after t, whatever is rounded."""
    draw = np.random.default_rng(0)
    for _ in range(300):
        times = np.cumsum(draw.integers(1, 9, 12)).tolist()
        curve = list(zip(times, draw.normal(0, 1, 12).tolist(), strict=True))
        for at in draw.uniform(times[0], times[-1], 9).tolist() + [times[-1]]:
            value = rates.interpolate(curve, at)
            time, state = speed.first_passage(curve, value)
            assert time <= at * (1 + 1e-12) and state != "never"


def test_one_pair_allows_no_conclusion(tmp_path):
    """A ratio, no interval, no p."""
    runs = add_arm(tmp_path, "di/none", falling(0.03), FRESH) + add_arm(tmp_path, "di/el", falling(0.06), FRESH[:1])
    times, _, text = make(tmp_path, runs, percents=[50])
    assert (times[1]["pairs"], times[1]["p"], times[1]["ratio_iterations_low"]) == ("1", "", "")
    assert said(text, "toy, di/el at factor 1, time")[0].endswith("; one paired seed: no conclusion.")


def test_two_pairs_that_differ_a_lot_have_a_finite_interval(tmp_path):
    """The t-interval of two pairs reaches far; the file has no infinity."""
    runs = add_arm(tmp_path, "di/none", falling(0.03), FRESH[:2])
    runs += add_arm(tmp_path, "di/el", lambda seed: falling(3.0 if seed > 200 else 0.03), FRESH[:2])
    times, _, _ = make(tmp_path, runs, percents=[100], confidence=0.9999)
    assert all(math.isfinite(float(times[1][f"fewer_iterations{end}"])) for end in ("", "_low", "_high"))


# --- rates --------------------------------------------------------------------------------------------

RATES = {"di/none": ["di", 1], "di-r2/none": ["di", 2], "di-r4/none": ["di", 4],
         "di/el": ["di", 2], "di-r4/el": ["di", 4], "di-r8/el": ["di", 8]}  # fmt: skip
BROKEN = falling(0.05) | {90: 30.0, 100: 40.0}  # it ends far above its lowest value, and below its start


def tuned(root, **curves):
    """Tuning runs of all arms of RATES; curves: by arm, with _ for / and -."""
    default = {"di_none": falling(0.03), "di_r2_none": falling(0.04), "di_r4_none": BROKEN,
               "di_el": falling(0.04), "di_r4_el": falling(0.07), "di_r8_el": BROKEN} | curves  # fmt: skip
    return [run for arm in RATES for run in add_arm(root, arm, default[arm.replace("/", "_").replace("-", "_")], TUNED)]


def test_each_arm_is_reported_at_the_factor_that_its_tuning_runs_pick(tmp_path):
    """none picks 2 and el picks 4; the other fresh runs, which are faster, are not used."""
    runs = tuned(tmp_path) + add_arm(tmp_path, "di/none", falling(0.2), FRESH)
    runs += add_arm(tmp_path, "di-r2/none", falling(0.03), FRESH) + add_arm(tmp_path, "di-r4/el", falling(0.06), FRESH)
    runs += add_arm(tmp_path, "di/el", falling(0.2), FRESH)
    times, found, text = make(tmp_path, runs, rates=RATES, percents=[50])
    assert [(row["supplement"], row["picked"], row["reported"]) for row in times] == [
        ("none", "2.0", "2.0"),
        ("el", "4.0", "4.0"),
    ]
    assert float(times[1]["ratio_iterations"]) == pytest.approx(0.5)
    assert times[1]["runs"].split() == [f"toy/di-r4/el/{seed}" for seed in FRESH]
    assert [(row["supplement"], row["factor"], row["diverged_runs"], row["chosen"]) for row in found] == [
        ("none", "1.0", "0", ""), ("none", "2.0", "0", "picked"), ("none", "4.0", "2", ""),
        ("el", "2.0", "0", ""), ("el", "4.0", "0", "picked"), ("el", "8.0", "2", ""),
    ]  # fmt: skip
    assert (
        "toy, di/none: the largest factor at which no tuning run diverged is 2 (of 1, 2, 4; diverged: 2 of 2 at 4)"
        in text
    )
    assert "fresh seeds" not in text


def test_the_rule_is_the_mean_log_distance_over_the_picked_percents(tmp_path):
    """One factor is lower early and the other at the end: `pick` decides, and the score is the geometric mean."""
    early = falling(0.09, floor=8.0)
    runs = tuned(tmp_path, di_none=early, di_r2_none=falling(0.025))
    for pick, chosen in (([10, 20], "1.0"), ([95, 100], "2.0")):
        _, found, _ = make(tmp_path, runs, rates=RATES, pick=pick)
        none = [row for row in found if row["supplement"] == "none"]
        assert [row["factor"] for row in none if row["chosen"]] == [chosen]
        logs = [math.log(64) - 0.025 * percent for percent in pick]
        assert float(none[1]["score"]) == pytest.approx(math.exp(np.mean(logs)), rel=1e-9)
        assert none[2]["score"] == ""


@pytest.mark.parametrize(
    ("curve", "fell"),
    [
        (falling(0.03), False),
        (BROKEN, True),
        ({0: 4.0, 50: 1.0, 100: 2.0}, False),
        ({0: 4.0, 50: 1.0, 100: 2.01}, True),
        ({0: 4.0, 50: 3.0, 100: 4.0}, True),
        ({0: 4.0, 50: 3.0, 100: 3.99}, False),
    ],
)
def test_when_a_run_has_diverged(tmp_path, curve, fell):
    """More than twice its lowest value at the end, or no better than at the start; one such run excludes its factor."""
    runs = tuned(tmp_path, di_none=lambda seed: curve if seed == 101 else falling(0.04))
    _, found, text = make(tmp_path, runs, rates=RATES)
    row = found[0]
    assert (row["factor"], row["diverged_runs"], row["diverged_seeds"]) == (
        "1.0",
        str(int(fell)),
        "101" if fell else "",
    )
    assert (row["score"] == "") is fell and ("1 of 2 at 1" in text) is fell
    assert "more than twice its lowest one, if it ended no better than it began" in text


@pytest.mark.parametrize(("end", "fell"), [(1.9, False), (2.1, True)])
def test_a_higher_factor_that_ends_twice_as_high_has_diverged(tmp_path, end, fell):
    """Although each of its runs fell all the time; a smaller factor that ends as high is only slow."""
    high, low = {0: 40.0, 50: 20.0, 100: end}, {0: 40.0, 50: 20.0, 100: 1.0}
    runs = add_arm(tmp_path, "di/none", low, TUNED) + add_arm(tmp_path, "di-r2/none", high, TUNED)
    assert [row["diverged_runs"] for row in make(tmp_path, runs, rates=RATES)[1]] == ["0", "2" if fell else "0"]


def test_a_smaller_factor_that_ends_high_is_slow(tmp_path):
    high, low = {0: 40.0, 50: 20.0, 100: 5.0}, {0: 40.0, 50: 20.0, 100: 1.0}
    runs = add_arm(tmp_path, "di/none", high, TUNED) + add_arm(tmp_path, "di-r2/none", low, TUNED)
    assert [row["diverged_runs"] for row in make(tmp_path, runs, rates=RATES)[1]] == ["0", "0"]


def test_a_missing_fresh_run_at_the_picked_factor_is_said_with_what_to_set(tmp_path):
    """The row uses what is there."""
    runs = tuned(tmp_path) + add_arm(tmp_path, "di-r2/none", falling(0.03), FRESH)
    runs += add_arm(tmp_path, "di/el", falling(0.06), FRESH)
    times, _, text = make(tmp_path, runs, rates=RATES, percents=[50])
    assert (times[1]["picked"], times[1]["reported"], times[1]["ratio_iterations"] != "") == ("4.0", "2.0", True)
    assert (
        "toy, di/el: factor 4 was picked, but the fresh seeds have runs at 2, of which the table reports 2; set 4 for el under "
        "`rates` of the method di in params.yaml" in text
    )


def test_before_any_fresh_run_the_page_has_the_rates(tmp_path):
    """Tuning comes first: the part on rates, what was picked, and that the fresh seeds have no runs yet."""
    times, found, text = make(tmp_path, tuned(tmp_path), rates=RATES)
    assert not times and len(found) == 6 and "## Time" not in text
    assert "factor 4 was picked, but the fresh seeds have no run of this arm; set 4 for el" in text


def test_an_arm_that_always_diverges_has_no_factor(tmp_path):
    """Nothing is picked, and the sentence says so."""
    _, found, text = make(tmp_path, tuned(tmp_path, di_el=BROKEN, di_r4_el=BROKEN), rates=RATES)
    assert not any(row["chosen"] for row in found if row["supplement"] == "el")
    assert "toy, di/el: a tuning run diverged at every factor" in text and "No factor is picked." in text


@pytest.mark.parametrize(("slopes", "words"), [((0.08, 0.04), "smallest one that was tried: a smaller"),
                                               ((0.04, 0.08), "largest one that was tried: a larger")])  # fmt: skip
def test_a_pick_at_the_end_of_the_range_is_said(tmp_path, slopes, words):
    """The best may lie outside of what was tried."""
    runs = [run for arm, slope in zip(("di/el", "di-r4/el"), slopes, strict=True)
            for run in add_arm(tmp_path, arm, falling(slope), TUNED)]  # fmt: skip
    assert words in make(tmp_path, runs, rates=RATES)[2]


def test_factors_are_compared_over_the_seeds_that_all_have(tmp_path):
    """A seed that only one factor has would shift its mean; whether it diverged still counts."""
    runs = add_arm(tmp_path, "di/none", falling(0.04), TUNED)
    runs += add_arm(
        tmp_path, "di-r2/none", lambda seed: falling({100: 0.05, 101: 0.05, 102: 0.035}[seed]), (*TUNED, 102)
    )
    changes = {"rates": RATES, "tuning": [100, 101, 102]}
    assert [row["chosen"] for row in make(tmp_path, runs, **changes)[1]] == ["", "picked"]
    add_arm(tmp_path, "di-r2/none", BROKEN, [102])
    assert [row["chosen"] for row in make(tmp_path, runs, **changes)[1]] == ["picked", ""]


def test_fresh_runs_that_diverged_are_counted(tmp_path):
    """A rate that was fine on the tuning seeds may not be on others."""
    runs = tuned(tmp_path) + add_arm(tmp_path, "di-r2/none", falling(0.03), FRESH)
    runs += add_arm(tmp_path, "di-r4/el", lambda seed: BROKEN if seed == 201 else falling(0.06), FRESH)
    times, _, text = make(tmp_path, runs, rates=RATES)
    assert [row["diverged_runs"] for row in times[:2]] == ["0", "1"]
    assert "toy, di/el: 1 of 3 fresh runs diverged at factor 4." in text


# --- baselines, mistakes, pictures --------------------------------------------------------------------


def test_a_root_method_can_be_the_baseline_of_all(tmp_path):
    """di/none at its own factor, for dmd's arms too, dmd/none among them; without a method each root has its own."""
    rates_ = RATES | {"dmd/none": ["dmd", 1], "dmd-r2/el": ["dmd", 2]}
    runs = tuned(tmp_path) + add_arm(tmp_path, "di-r2/none", falling(0.03), FRESH)
    runs += add_arm(tmp_path, "di-r4/el", falling(0.06), FRESH) + add_arm(tmp_path, "dmd/none", falling(0.015), FRESH)
    runs += add_arm(tmp_path, "dmd-r2/el", falling(0.12), FRESH)
    wanted = {"none": {("di", "el"): 0.5, ("dmd", "el"): 0.125},
              "di/none": {("di", "el"): 0.5, ("dmd", "none"): 2.0, ("dmd", "el"): 0.25}}  # fmt: skip
    for against, ratios in wanted.items():
        times, _, text = make(tmp_path, runs, rates=rates_, against=against, percents=[40])
        found = {(row["method"], row["supplement"]): float(row["ratio_iterations"]) for row in times if row["of_run"]}
        assert found == pytest.approx(ratios) and f"time to {against}'s value at 40 %" in text


def test_an_arm_without_a_baseline_says_so(tmp_path):
    """No fresh seed in common."""
    runs = add_arm(tmp_path, "di/none", falling(0.03), FRESH[:1]) + add_arm(tmp_path, "di/el", falling(0.06), FRESH[1:])
    runs += add_arm(tmp_path, "di/mmd", falling(0.06), FRESH[:1])
    times, _, text = make(tmp_path, runs, percents=[50])
    assert "toy, di/el: no fresh seed is shared with none" in text and len(times) == 3
    with pytest.raises(Problem, match="nothing to compare"):
        make(tmp_path, runs[1:3])


def test_mistakes_are_one_sentence(tmp_path):
    """Two runs of one factor and seed, a curve that does not cover a percentage, a distance without a logarithm."""
    runs = add_arm(tmp_path, "di/none", falling(0.03), FRESH) + add_arm(tmp_path, "di-b/none", falling(0.03), FRESH)
    with pytest.raises(
        Problem, match="toy/di/none/200 and toy/di-b/none/200 are both di/none at factor 1 .* remove one"
    ):
        make(tmp_path, runs, rates={"di-b/none": ["di", 1]})
    cut = {time: value for time, value in falling(0.03).items() if time >= 40}
    runs = add_arm(tmp_path, "di/none", cut, FRESH) + add_arm(tmp_path, "di/el", falling(0.06), FRESH)
    with pytest.raises(
        Problem, match="toy/di/none/200 has snapshots from iteration 40 to 100, .* at 30 % .* distil.snapshots"
    ):
        make(tmp_path, runs)
    runs = add_arm(tmp_path, "di/none", falling(0.03) | {50: 0.0}, FRESH)
    with pytest.raises(Problem, match="toy/di/none/200 has a distance of 0 in judge-a at iteration 50"):
        make(tmp_path, runs + add_arm(tmp_path, "di/el", falling(0.06), FRESH))


def test_the_picture_has_a_row_of_panels_for_each_root_method(tmp_path, monkeypatch):
    """As many as there are data settings and methods; equal input gives equal bytes; a panel without numbers says so."""
    from PIL import Image

    monkeypatch.setattr(forest, "draw_study", DRAW_STUDY)
    runs = tuned(tmp_path) + add_arm(tmp_path, "di-r2/none", falling(0.03), FRESH)
    runs += add_arm(tmp_path, "di-r4/el", lambda seed: falling(0.06 * jitter(seed)), FRESH)
    runs += add_arm(tmp_path, "sid/none", falling(0.02), FRESH) + add_arm(tmp_path, "sid/el", falling(0.01), FRESH)
    sizes = []
    for count, out in itertools.product((len(runs), len(runs) - 6), ("a", "b")):
        make(tmp_path, runs[:count], out, rates=RATES)
        with Image.open(tmp_path / out / "study.png") as picture:
            sizes.append(picture.size)
        if out == "b":
            first, second = (Path(tmp_path / name / "study.png").read_bytes() for name in ("a", "b"))
            assert first == second
    assert [high for _, high in sizes] == pytest.approx([1100] * 2 + [590] * 2, abs=1) and {
        wide for wide, _ in sizes
    } == {1400}
