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


def test_a_missing_file_stops_a_call_only_if_one_of_its_jobs_reads_it(tmp_path, monkeypatch):
    """Such a job may come last; a call that makes something else goes on."""
    from types import SimpleNamespace

    from snakemake.exceptions import WorkflowError

    from eldistill.plan.identity import Source

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.zip").write_text("")
    steps = [
        SimpleNamespace(
            word="data",
            name=f"{name}/images",
            outputs=(f"{name}/images",),
            sources=(Source(f"{name}.zip", "folder", f"{name}.zip"),),
        )
        for name in ("here", "gone")
    ]

    def call(*outputs):
        jobs = [SimpleNamespace(output=[each]) for each in outputs]
        driver.need_files(SimpleNamespace(dag=SimpleNamespace(needrun_jobs=lambda: jobs)), steps)

    call("here/images")
    with pytest.raises(
        WorkflowError, match=r"gone.zip does not exist, and `data gone/images` reads it.*no job was started"
    ):
        call("here/images", "gone/images")
