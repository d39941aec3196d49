# SPDX-License-Identifier: Apache-2.0
"""Several GPUs on one machine: each is used, none by two jobs at once."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import pytest

from eldistill.errors import Problem
from eldistill.plan import gpus


def _job(folder: str, wanted: int, count: int, rows) -> None:
    os.environ[gpus.COUNT] = str(count)
    os.environ.pop(gpus.VISIBLE, None)
    gpus.PATIENCE = 0.02
    found = gpus.take_gpus(wanted, Path(folder))
    assert os.environ[gpus.VISIBLE] == ",".join(found) and gpus.COUNT not in os.environ
    began = time.monotonic()
    time.sleep(0.3)
    rows.put([(name, began, time.monotonic()) for name in found])


@pytest.mark.parametrize("wanted", [[1] * 12, [2] * 5, [1, 3, 1, 2, 4, 1, 2]])
def test_four_gpus_are_all_used_and_none_twice(tmp_path, wanted):
    """Of each device the times of its jobs do not overlap; jobs with several never wait for each other's."""
    context = multiprocessing.get_context("fork")
    rows = context.Queue()
    jobs = [context.Process(target=_job, args=(str(tmp_path), each, 4, rows)) for each in wanted]
    for job in jobs:
        job.start()
    used: dict[str, list] = {}
    for _ in jobs:
        for name, *times in rows.get(timeout=60):
            used.setdefault(name, []).append(times)
    for job in jobs:
        job.join(60)
    assert sorted(used) == ["0", "1", "2", "3"] and sum(map(len, used.values())) == sum(wanted)
    for times in used.values():
        times.sort()
        assert all(end <= later for (_, end), (later, _) in zip(times, times[1:], strict=False))


def test_what_is_visible_already_is_what_is_shared(tmp_path, monkeypatch):
    monkeypatch.setenv(gpus.COUNT, "2")
    monkeypatch.setenv(gpus.VISIBLE, "5,7,9")
    assert gpus.shared_gpus() == ["5", "7"]
    assert gpus.take_gpus(2, tmp_path) == ["5", "7"] and os.environ[gpus.VISIBLE] == "5,7"
    for file in gpus._held:
        file.close()
    gpus._held.clear()


def test_a_step_without_a_gpu_sees_none(tmp_path, monkeypatch):
    monkeypatch.setenv(gpus.COUNT, "2")
    monkeypatch.setenv(gpus.VISIBLE, "")
    assert gpus.take_gpus(0, tmp_path) == [] and os.environ[gpus.VISIBLE] == ""


def test_a_name_of_a_gpu_is_no_path(tmp_path, monkeypatch):
    """Parts of a GPU had names with slashes: MIG-GPU-…/1/0."""
    monkeypatch.setenv(gpus.COUNT, "1")
    monkeypatch.setenv(gpus.VISIBLE, "MIG-GPU-5/1/0")
    assert gpus.take_gpus(1, tmp_path / "locks") == ["MIG-GPU-5/1/0"] and len(list(tmp_path.rglob("*.lock"))) == 1
    for file in gpus._held:
        file.close()
    gpus._held.clear()


@pytest.mark.parametrize("empty", [False, True])
def test_without_the_variable_nothing_happens(tmp_path, monkeypatch, empty):
    monkeypatch.delenv(gpus.COUNT, raising=False)
    if empty:
        monkeypatch.setenv(gpus.COUNT, "")
    monkeypatch.setenv(gpus.VISIBLE, "3")
    assert gpus.take_gpus(1, tmp_path) == [] and os.environ[gpus.VISIBLE] == "3" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("count", "visible", "wanted"), [("two", "", 1), ("9" * 20, "", 1), ("0", "", 1), ("4", "0,1", 1), ("2", "", 3)]
)
def test_what_cannot_be_had_is_one_sentence(tmp_path, monkeypatch, count, visible, wanted):
    monkeypatch.setenv(gpus.COUNT, count)
    monkeypatch.setenv(gpus.VISIBLE, visible)
    with pytest.raises(Problem, match="GPUs"):
        gpus.take_gpus(wanted, tmp_path)


def test_a_job_that_is_killed_gives_its_gpu_back(tmp_path):
    context = multiprocessing.get_context("fork")
    rows = context.Queue()
    first = context.Process(target=_hold, args=(str(tmp_path), rows))
    first.start()
    assert rows.get(timeout=30) == ["0"]
    subprocess.run(["kill", "-9", str(first.pid)], check=True)
    first.join(30)
    second = context.Process(target=_job, args=(str(tmp_path), 1, 1, rows))
    second.start()
    assert [name for name, *_ in rows.get(timeout=30)] == ["0"]
    second.join(30)


def _hold(folder: str, rows) -> None:
    os.environ[gpus.COUNT] = "1"
    rows.put(gpus.take_gpus(1, Path(folder)))
    time.sleep(60)
