# SPDX-License-Identifier: Apache-2.0
"""Mutated files of every kind that is read from outside: read, or refused in one line, within bounds of memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from eldistill.external import zips
from tests.conftest import ROOT


def figures(count: int, tmp_path) -> list[dict]:
    """What tests/fuzz.py finds with so many mutations of each reader, in a process with a limit of memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, ROOT / "tests/fuzz.py", str(count)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(found: list[dict], count: int) -> None:
    assert len(found) >= 25 and all(each["mutations"] == count for each in found)
    assert [(each["reader"], each["failures"]) for each in found if each["failed"]] == []
    assert all(each["refused"] > count // 20 for each in found if "CSV" not in each["reader"])
    assert all(each["memory"] < zips.SLACK / 1e6 + 1 for each in found)  # the files have some kilobytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured by Linux's /proc")
def test_mutations_are_read_or_refused_within_bounds(tmp_path):
    """200 for each reader; 2,000 in the slow test below."""
    check(figures(200, tmp_path), 200)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured by Linux's /proc")
def test_two_thousand_mutations_are_read_or_refused_within_bounds(tmp_path):
    check(figures(2000, tmp_path), 2000)
