# SPDX-License-Identifier: Apache-2.0
"""Distances as means over the last snapshots of a run, which a study compares in place of those at the end (its key `last`).

A single snapshot has the noise of the last steps of a training; a mean over several has less of it. They are the last points of
curve.csv, and have as many images as the curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from eldistill.errors import Problem
from eldistill.tables.results import Result, named

COVERED_BY = "studies"


def points_of(result: Result, last: int) -> list[dict[str, str]]:
    """The last points of the curve of a run, in the order of n_images. Raises Problem if it has fewer."""
    if len(result.curve) < last:
        raise Problem(
            f"the curve of {result.run} has {len(result.curve)} of the {last} snapshots that a mean over the last {last} needs; "
            "make `last` of the study in tables.studies of params.yaml smaller, or add percents to distil.snapshots"
        )
    return result.curve[-last:]


def mean_of_last(result: Result, last: int, space: str, part: str) -> float | None:
    """The mean Fréchet distance over the last `last` points of the curve of a run; None if curves are not measured in this space.

    space: a feature space. part: heldout or train. Raises Problem for a curve with fewer points."""
    name = named(result.curve[0], "fd", space, part)
    return None if name is None else fmean(float(point[name]) for point in points_of(result, last))


def describe(results: Sequence[Result], last: int, omitted: Sequence[str]) -> str:
    """One or two sentences on what the distances of a study are; nothing if they are those at the end.

    omitted: feature spaces in which curves are not measured."""
    if last < 2:
        return ""
    percents = {tuple(_percents(result, last)) for result in results}
    where = f" ({_listed(percents.pop())} % of a run)" if len(percents) == 1 else ""
    text = (
        f"Distances are means over the last {last} snapshots{where}, with the images of the curves; all other numbers are those at "
        "the end."
    )
    return text + (f" Without curves, and so left out: {', '.join(omitted)}." if omitted else "")


def column(result: Result, params: Mapping[str, Any], space: str) -> dict[str, float | None]:
    """The column of a table of runs with the distance that ranks: `mean_of_last_3_fd1k_judge-a_heldout`; none for a distance at the end."""
    last, name = params.get("last", 1), named(result.curve[0], "fd", space, "heldout")
    return {f"mean_of_last_{last}_{name}": mean_of_last(result, last, space, "heldout")} if last > 1 else {}


def _percents(result: Result, last: int) -> list[str]:
    every = result.about["n_images"]
    return [f"{100 * (int(point['n_images']) - result.images_before) / every:.3g}" for point in points_of(result, last)]


def _listed(texts: Sequence[str]) -> str:
    return f"{', '.join(texts[:-1])} and {texts[-1]}"
