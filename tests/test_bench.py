# SPDX-License-Identifier: Apache-2.0
"""The shipped bench says what the README says of it: every method ends better than it started."""

from __future__ import annotations

import csv
import itertools
import math

import pytest

from eldistill.plan import params
from eldistill.tables import results
from eldistill.tables import suite as tables
from tests.conftest import ROOT

PRIMARY = params.load_params(ROOT / "params.yaml").top("evaluate")["features"][0]  # the feature space that ranks


def rows(name: str, suite: str = "bench") -> list[dict[str, str]]:
    with open(ROOT / "data/tables" / suite / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_of(row: dict[str, str]) -> str:
    return "/".join(row[key] for key in ("data", "method", "supplement", "seed"))


@pytest.mark.parametrize(("suite", "count"), [("bench", 8 * 3 * 3 + 2 * 3), ("bench-recent", 6 * 3 * 5)])
def test_the_table_holds_every_run_of_the_suite(suite, count):
    """Eight methods by three supplements by three seeds, and DMD's regression with and without EL; six recent methods by three
    supplements by five seeds."""
    wanted = {str(run) for run in params.load_params(ROOT / "params.yaml").runs(suite)}
    assert {run_of(row) for row in rows("runs.csv", suite)} == wanted and len(wanted) == count


@pytest.mark.parametrize("part", ["heldout", "train"])
@pytest.mark.parametrize(
    ("suite", "count", "diverged"), [("bench", 78, set()), ("bench-recent", 90, {("scd", "none")})]
)
def test_every_run_ends_better_than_it_started(suite, count, diverged, part):
    """The last point of a curve is below its first, which is the generator before training; nothing diverges, but for runs of
    `scd/none`, of which docs/results.md says so."""
    curves = itertools.groupby(rows("curves.csv", suite), key=run_of)
    checked = 0
    for run, points in curves:
        points = sorted(points, key=lambda row: int(row["n_images"]))
        column = results.named(points[0], "fd", PRIMARY, part)
        values = [float(row[column]) for row in points]
        assert len(values) == 18 and all(map(math.isfinite, values)), run
        assert values[-1] < values[0], run
        assert values[-1] < 3 * min(values) or tuple(run.split("/")[1:3]) in diverged, run
        checked += 1
    assert checked == count


@pytest.mark.parametrize("supplement", ["none", "el", "pixel-mmd"])
def test_sid2a_is_not_worse_than_the_sid_it_starts_from(supplement):
    """Paired by seed with its own start, `sid/none`: the 95 % interval of the difference reaches zero or lies below."""
    column = results.named(rows("runs.csv")[0], "fd", PRIMARY, "heldout")
    found = {(row["method"], row["supplement"], row["seed"]): float(row[column]) for row in rows("runs.csv")}
    seeds = sorted({seed for _, _, seed in found})
    low, _ = tables.interval([found["sid2a", supplement, s] - found["sid", "none", s] for s in seeds], 0.95)
    assert low <= 0
