# SPDX-License-Identifier: Apache-2.0
"""The steps of the word `tables`: tables, plots and a report of a suite, and one table for each study."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from eldistill.steps.work import Work
from eldistill.tables import report, suite
from eldistill.tables.studies import page as studies

COVERED_BY = "evaluate"


def make_step(work: Work) -> None:
    """Make the outputs of this step. Raises Problem."""
    if work.step.kind == "study":
        studies.make_study(work.step.item, work.params, Path(), work.outputs)
        return
    *parts, page = work.outputs
    suite.make_tables(work.params, Path(), parts)
    count = Counter(step.word for step in work.plan.suite(work.step.name).values() if not step.on_demand)
    report.make_report(
        work.step.name, work.params | {"steps": count}, Path(), {path.name: path for path in parts}, page
    )
