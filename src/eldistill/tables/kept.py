# SPDX-License-Identifier: Apache-2.0
"""The results of a run from its line of the kept file, in place of its files."""

from __future__ import annotations

import math
from typing import Any

from eldistill.errors import Problem, brief
from eldistill.plan.kept import Kept

COVERED_BY = "results"
Rows = list[dict[str, str]]  # of a CSV file; cells as text, so that values keep all their digits


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
