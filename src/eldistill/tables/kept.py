# SPDX-License-Identifier: Apache-2.0
"""The results of a run as a line of the kept file holds them: written from its files, and read in their place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from eldistill.errors import Problem, brief
from eldistill.files import read_json, read_rows
from eldistill.plan.kept import Kept, make_kept
from eldistill.plan.recipes import Step

COVERED_BY = "results"
# Of a training log those numbers that studies read, by the ends of their names (study.Study.logged).
LOGGED = (".weight", ".gradient_rms", ".base_rms", ".trace_ratio", "generator.gradient_norm")
OMITTED = ("host",)  # of a provenance: the name of a machine says nothing to others

Rows = list[dict[str, str]]  # of a CSV file; cells as text, so that values keep all their digits


def pack_run(run: str, root: Path) -> dict[str, Any]:
    """The results of a run, or of a reference run, from its files below `root`. Raises Problem if one is missing or damaged."""
    folder, trained = root / "data/evaluations" / run, root / "data/runs" / run
    found: dict[str, Any] = {"metrics": read_json(folder / "metrics.json")}
    if run.count("/") == 1:
        return found
    log = [{name: row[name] for name in row if name.endswith(LOGGED)} for row in read_rows(trained / "log.csv")]
    about = read_json(trained / "provenance.json")
    found["curve"], found["log"] = _pack_rows(read_rows(folder / "curve.csv")), _pack_rows(log)
    return found | {"provenance": {key: value for key, value in about.items() if key not in OMITTED}}


def line_of(steps: list[Step], root: Path) -> Kept:
    """The line of a run from its files below `root`. steps: its evaluation, and its training if it is no reference run (kept.by_run).

    Raises Problem if a file is missing or damaged, or has a number that is not finite."""
    run = steps[0].name
    try:
        return make_kept(run, {each.word: each.digest for each in steps}, pack_run(run, root))
    except ValueError:
        raise Problem(
            f"data/evaluations/{run}/metrics.json or data/runs/{run}/provenance.json has a number that is not finite; delete that "
            "file and run `snakemake all`"
        ) from None


def _pack_rows(rows: Rows) -> dict[str, list]:
    names = list(rows[0]) if rows else []
    return {"names": names, "rows": [[row[name] for name in names] for row in rows]}


def _unpacked(line: Kept, key: str) -> Rows:
    try:
        names, rows = line.results[key]["names"], line.results[key]["rows"]
        if not all(isinstance(cell, str) for row in (names, *rows) for cell in row):
            raise ValueError(f"its {key} has cells that are not texts")
        return [dict(zip(names, row, strict=True)) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(line, brief(error)) from None


def _damaged(line: Kept, why: str) -> Problem:
    return Problem(
        f"the kept results of {line.run} are damaged ({why}); remove the line of this run from the suite's kept.jsonl, and keep "
        "it again where it was made, by `python -m eldistill keep SUITE`"
    )


def curve_of(line: Kept) -> Rows:
    """The rows of curve.csv, at least one. Raises Problem for a line without them, or with a cell that is no finite number."""
    rows = _unpacked(line, "curve")
    try:
        good = rows and all(math.isfinite(float(cell)) for row in rows for cell in row.values())
    except ValueError:
        good = False
    if not good or "n_images" not in rows[0]:
        raise _damaged(line, "its curve is empty, has no n_images, or cells that are no finite numbers")
    return rows


def log_of(line: Kept) -> Rows:
    """The rows of log.csv with the columns LOGGED. Raises Problem for a line without them."""
    return _unpacked(line, "log")


def about_of(line: Kept) -> dict[str, Any]:
    """The provenance of the run, without what OMITTED names. Raises Problem for a line without it."""
    return _mapping(line, "provenance")


def metrics_of(line: Kept) -> dict[str, float]:
    """The metrics of the evaluation, finite numbers. Raises Problem for a line without them."""
    metrics = _mapping(line, "metrics")
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _damaged(line, f"{name} is not a finite number")
    return metrics


def _mapping(line: Kept, key: str) -> dict[str, Any]:
    found = line.results.get(key)
    if not isinstance(found, dict):
        raise _damaged(line, f"it has no {key}")
    return found
