# SPDX-License-Identifier: Apache-2.0
"""The steps of the word `tables`: tables, plots and a report of a suite, and one table for each study."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from eldistill.plan.kept import absent_pictures
from eldistill.steps.work import Work
from eldistill.tables import citations, names, report, suite
from eldistill.tables.studies import page as studies

COVERED_BY = "evaluate"


def make_step(work: Work) -> None:
    """Make the outputs of this step. Raises Problem."""
    with names.variants(work.params.get("called", {})):
        _make(work)


def _make(work: Work) -> None:
    if work.step.kind == "study":
        studies.make_study(work.step.item, work.params, Path(), work.outputs, work.kept)
        return
    *parts, page = work.outputs
    absent = absent_pictures(work.step.kept, Path())
    made = suite.make_tables(work.params, Path(), parts, work.kept, absent)
    every = work.plan.suite(work.step.name, kept=True).values()
    count = Counter(step.word for step in every if not step.on_demand)
    more = {"steps": count, "judges": _judges(work), "papers": citations.of_runs(work.plan, work.params["runs"])}
    tables = {path.name: path for path in parts}
    report.make_report(work.step.name, work.params | more, Path(), made, tables, page, absent)


def _judges(work: Work) -> list[tuple[str, str, Path]]:
    # (data setting, feature space, file) of every judge in whose features the suite is measured.
    datas = dict.fromkeys(run.split("/")[0] for run in work.params["runs"])
    return [
        (data, name, Path(work.plan.judge(data, name[-1]).outputs[0]))
        for data in datas
        for name in work.plan.params.top("evaluate", data)["features"]
        if name in ("judge-a", "judge-b")
    ]
