# SPDX-License-Identifier: Apache-2.0
"""Studies that compare means over the last snapshots of each run (`last` in tables.studies)."""

from __future__ import annotations

import numpy as np
import pytest

from eldistill.errors import Problem
from eldistill.tables.results import load_result
from eldistill.tables.studies import last
from eldistill.tables.studies.study import Study
from tests.tables import test_studies
from tests.tables.test_studies import add_arm, make, titles, undrawn  # noqa: F401

DRAW = np.random.default_rng(5)
CURVES = {name: DRAW.normal(middle, 1, (5, 4)) for name, middle in (("none", 10), ("el", 8))}


def arms(root):
    """Five runs of each arm, whose curves have four points, and whose distances at the end are 20 and 21."""
    found = []
    for name, curves in CURVES.items():
        for seed, curve in enumerate(curves.tolist()):
            end = 20.0 if name == "none" else 21.0
            found += add_arm(root, name, [end], first=seed, curve=curve)
    return found


@pytest.mark.parametrize("kind", ["contrast", "central"])
@pytest.mark.parametrize("last", [2, 3, 4])
def test_the_numbers_are_those_of_the_means(tmp_path, kind, last):
    """Distances, differences, intervals and tests of the means over the last points are those of the same study whose distances at
    the end are these means."""
    runs = arms(tmp_path)
    rows, text = make(tmp_path, runs, kind=kind, last=last)
    for name, curves in CURVES.items():
        for seed, mean in enumerate(curves[:, -last:].mean(1).tolist()):
            test_studies.add(tmp_path, f"toy/di/{name}/{seed}", mean)
    wanted, _ = make(tmp_path, runs, "wanted", kind=kind)
    ranked = [[row for row in each if row.get("space", "judge-a") == "judge-a"] for each in (rows, wanted)]
    for row, other in zip(*ranked, strict=True):
        for key in ("fd_mean", "fd_sd", "difference", "low", "high", "percent", "p", "p_equivalent", "margin"):
            assert (row[key] == "") is (other[key] == "")
            assert row[key] == "" or float(row[key]) == pytest.approx(float(other[key]), rel=1e-9), key
    assert {row["end_mean"] for row in ranked[0]} == {"20.0", "21.0"}  # the distances at the end stand beside them
    assert "Ranked by `fd2k_judge-a_heldout`" in text and f"means over the last {last} snapshots (" in text


def test_one_snapshot_is_the_end(tmp_path):
    """`last: 1` changes nothing: every file is the same byte for byte."""
    runs = arms(tmp_path)
    make(tmp_path, runs)
    make(tmp_path, runs, "one", last=1)
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
    assert "snapshots" not in (tmp_path / "out/study.md").read_text()


def test_pages_and_the_runs_say_what_is_averaged(tmp_path):
    """One sentence with the percents of a run, in Markdown and in HTML; the mean of each run stands in its row."""
    _, text = make(tmp_path, arms(tmp_path), last=3)
    sentence = (
        "Distances are means over the last 3 snapshots (50, 75 and 100 % of a run), with the images of the curves"
    )
    assert text.count(sentence) == 1 == (tmp_path / "out/study.html").read_text().count(sentence)
    assert "distance at the end" in titles(text)
    assert "Distances to compare with those at the end, of real train images and of the teachers:" in text
    every = test_studies.read(tmp_path / "out/study.runs.csv")
    means = {row["metrics_file"]: float(row["mean_of_last_3_fd2k_judge-a_heldout"]) for row in every}
    for name, curves in CURVES.items():
        for seed, curve in enumerate(curves):
            assert means[f"data/evaluations/toy/di/{name}/{seed}/metrics.json"] == pytest.approx(curve[-3:].mean())


def test_a_space_without_curves_is_left_out_and_named(tmp_path):
    """Judge B and pixels are measured at the end only: their columns would be other numbers, so there are none."""
    runs = arms(tmp_path)
    for run in runs:
        path = tmp_path / f"data/evaluations/{run}/curve.csv"
        lines = [line.split(",")[:5] for line in path.read_text().splitlines()]
        path.write_text("\n".join(map(",".join, lines)) + "\n")
    rows, text = make(tmp_path, runs, last=3)
    assert "Without curves, and so left out: judge-b, pixels." in text
    assert not any(key.startswith(("fd_judge-b", "fd_pixels")) for row in rows for key in row)


def test_a_run_with_fewer_snapshots_is_a_sentence(tmp_path):
    """It names the run, both numbers and what to change; nothing is written."""
    runs = arms(tmp_path)
    with pytest.raises(Problem, match=r"curve of toy/di/none/0 has 4 of the 5 snapshots .*make `last`.* smaller"):
        make(tmp_path, runs, last=5)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_last_points_are_those_of_the_training(tmp_path):
    """Points are ordered by n_images, whatever the order of the file."""
    (run,) = add_arm(tmp_path, "el", [1.0], curve=[4.0, 3.0, 2.0, 1.0])
    path = tmp_path / f"data/evaluations/{run}/curve.csv"
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(lines)]) + "\n")
    result = load_result(run, tmp_path)
    assert last.mean_of_last(result, 2, "judge-a", "heldout") == 1.5
    assert last.mean_of_last(result, 4, "judge-a", "train") == 2.5
    study = Study([result], {"beds": {"toy": ["toys", "judge-a"]}, "last": 3}, {})
    assert study.metric(result) == 2.0 and study.at_end(result) == 1.0 and study.metric(result, "kid") == 1.25
