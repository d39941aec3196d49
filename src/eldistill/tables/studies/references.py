# SPDX-License-Identifier: Apache-2.0
"""The table of real images and of teachers that stands on the page of a study, so that its distances have a scale."""

from __future__ import annotations

from eldistill.tables import names
from eldistill.tables.results import NAME, REFERENCE_RUNS, Result, metrics_of, named, short
from eldistill.tables.studies.study import Study

COVERED_BY = "studies"
METRICS = ("kid", "precision", "recall")  # shown in the feature space that ranks


def beside(study: Study) -> str:
    """A Markdown table with the noise floor and the teacher of each data setting of a study, and an empty line.

    Columns are Fréchet distances to held-out images in the spaces that all runs have, and METRICS. Reads
    data/evaluations/DATA/real and teacher below the study's root. Raises Problem if one is missing or damaged."""
    spaces, first = study.spaces(), dict[str, Result]()
    for result in study.results:
        first.setdefault(result.arm[0], result)
    lines = [["data", "images", "n", *(f"FD {names.space_name(space).short}" for space in spaces), *METRICS]]
    lines.append(["---", "---", *["---:"] * (len(lines[0]) - 2)])
    for result in first.values():
        lines += [_line(study, result, which, spaces) for which in REFERENCE_RUNS]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    same = "The same distances" if study.last == 1 else "Distances to compare with those at the end,"
    return f"{same} of real train images and of the teachers:\n\n{table}\n\n"


def _line(study: Study, result: Result, which: str, spaces: list[str]) -> list[str]:
    data, primary = result.arm[0], study.primary(result)
    found = metrics_of(f"{data}/{which}", study.root, study.lines)
    names = [named(found, "fd", space, "heldout") for space in spaces]
    names += [named(found, metric, primary, "heldout") for metric in METRICS]
    ranks = named(found, "fd", primary, "heldout")
    n = NAME.fullmatch(ranks)["n"] if ranks else ""
    return [data, REFERENCE_RUNS[which], n, *(short(found[name]) if name else "" for name in names)]
