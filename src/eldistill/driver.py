# SPDX-License-Identifier: Apache-2.0
"""Snakemake's main process: how it is kept to the recipes, and what it is asked at its end."""

from __future__ import annotations

from collections.abc import Iterable

from eldistill import freshness
from eldistill.recipes import Step


def forced(workflow) -> bool:
    """Whether the user names steps to be made again; then all that follows from them is made again too."""
    settings = workflow.dag_settings
    return bool(settings and (settings.forceall or settings.forcerun or settings.forcetargets))


def trains(workflow, stale: Iterable[Step]) -> bool:
    """Whether this call of Snakemake may start trainings of generators."""
    targets = set(workflow.dag_settings.targets)
    return any(step.word == "distil" for step in stale) and not (targets and targets <= {"data", "teacher", "ensemble"})


def obey_recipes(workflow, steps: Iterable[Step]) -> None:
    """Let recipes alone decide what runs, with and without a profile, and let no run end well that leaves a step stale.

    What Snakemake remembers of code, parameters and sets of inputs would make finished steps again. What it remembers of
    checksums has made it find nothing to do where there was; a DVC stage then records results under the wrong numbers.
    """
    from snakemake.exceptions import WorkflowError
    from snakemake.settings.types import RerunTrigger

    settings, execute, steps = workflow.dag_settings, workflow.execute, list(steps)
    if not settings:  # nothing will run: --lint
        return
    settings.rerun_triggers = frozenset({RerunTrigger.MTIME})

    def execute_and_check(*given, **named) -> None:
        execute(*given, **named)
        partly = settings.until or settings.omit_from or settings.batch or workflow.workflow_settings.consider_ancient
        if workflow.dryrun or workflow.touch or partly:
            return
        if left := freshness.unmade(steps, set(settings.targets)):
            raise WorkflowError(f"eldistill: {freshness.complaint(left)}")

    workflow.execute = execute_and_check
