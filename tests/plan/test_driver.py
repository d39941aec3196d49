# SPDX-License-Identifier: Apache-2.0
"""What of Snakemake is not its documented interface, and is used all the same: fenced by its version and by these tests."""

from __future__ import annotations

import inspect
import re
import threading

import pytest
import snakemake
from snakemake import api, workflow
from snakemake.scheduling.job_scheduler import JobScheduler

from eldistill.plan import driver
from tests.conftest import ROOT


@pytest.fixture
def schedule(monkeypatch):
    """The method as Snakemake has it, put back afterwards."""
    monkeypatch.setattr(JobScheduler, "_schedule_reevalutation", JobScheduler._schedule_reevalutation)
    return JobScheduler._schedule_reevalutation


class Scheduler(JobScheduler):
    """One that only counts how often it is woken."""

    def __init__(self):
        self._open_jobs = threading.Semaphore(0)

    def woken(self) -> int:
        count = 0
        while self._open_jobs.acquire(timeout=0.5):
            count += 1
        return count


def test_the_version_that_is_known_is_the_locked_one():
    """A newer lock: look whether Snakemake still lets wake-ups add up, then change KNOWN, or remove `wake_once`."""
    locked = re.search(r"^snakemake==(\S+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M)[1]
    assert driver.KNOWN == locked == snakemake.__version__


def test_wake_ups_add_up_in_snakemake_and_not_here(schedule):
    before = Scheduler()
    for _ in range(5):
        before._schedule_reevalutation(0.05)
    assert before.woken() == 5, "Snakemake has mended it: remove wake_once"
    assert driver.wake_once()
    one, other = Scheduler(), Scheduler()
    for each in (one, other, one, one, other):
        each._schedule_reevalutation(0.05)
    assert (one.woken(), other.woken()) == (1, 1)
    one._schedule_reevalutation(0.05)  # not for the first time only
    assert one.woken() == 1


def test_another_version_is_left_as_it_is(schedule):
    assert not driver.wake_once("9.99.0") and JobScheduler._schedule_reevalutation is schedule


def test_snakemake_starts_a_run_by_the_method_that_is_wrapped():
    """`obey_recipes` puts its check around Workflow.execute; under another name no run would be checked."""
    assert ".execute(" in inspect.getsource(api) and callable(workflow.Workflow.execute)
