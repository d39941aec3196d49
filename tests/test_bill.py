# SPDX-License-Identifier: Apache-2.0
"""The bill before the first job: a real Snakemake that is stopped by it, by its own command line, in a project of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.project import Project, bins, tracked  # noqa: F401  (bins is a fixture)

ALL = ("snakemake", "all", "--cores", "1")


@pytest.fixture(scope="module")
def dear(tmp_path_factory, bins) -> Project:  # noqa: F811
    """A project in which nothing is made, and which allows almost no GPU hours."""
    project = Project(tracked(tmp_path_factory.mktemp("bill") / "a/project").path, bins)
    project.edit("max_gpu_hours", value=1e-12)
    return project


def made(project: Project) -> list[Path]:
    """Results, and the entries of the run log."""
    results = [path for path in project.path.glob("data/*/**/*") if path.is_file() and "scratch" not in path.parts]
    return [*results, *map(Path, project.log())]


def test_a_dear_suite_is_stopped_before_its_first_job(dear):
    """Exit code 1 is Snakemake's; the sentence has what is left, what is allowed, and both ways to allow it."""
    said = dear.run(*ALL, code=1)
    assert "suite smoke: 3 trainings are left (1 of a teacher)" in said and "max_gpu_hours allows 1e-12 hours" in said
    assert "set max_gpu_hours in params.yaml, or ELDISTILL_MAX_GPU_HOURS=1" in said
    assert "eldistill: no job was started" in said
    assert made(dear) == []


@pytest.mark.parametrize("command", [(*ALL, "-n"), ("snakemake", "data/sets/digits/images.safetensors", "-n")])
def test_a_dry_run_is_not_stopped(dear, command):
    assert "no job was started" not in dear.run(*command)
    assert made(dear) == []


@pytest.mark.parametrize("hours", ["nan", "-1", "many", ""])
def test_a_limit_that_is_no_number_of_hours_stops_too(dear, monkeypatch, hours):
    """`nan` is below nothing: a comparison alone would let everything pass."""
    monkeypatch.setenv("ELDISTILL_MAX_GPU_HOURS", hours)
    said = dear.run(*ALL, code=1)
    assert "ELDISTILL_MAX_GPU_HOURS" in said and repr(hours) in said and "no job was started" in said
    assert made(dear) == []


def test_a_bill_that_cannot_be_made_stops_too(dear, tmp_path):
    """The command that counts breaks down: what it would have said is not known, so nothing starts."""
    broken = tmp_path / "bin/python"
    broken.parent.mkdir()
    broken.write_text(f'#!/bin/sh\n[ "$3" = cost ] && exit 1\nexec {dear.bins}/python "$@"\n')
    broken.chmod(0o755)
    (tmp_path / "bin/snakemake").symlink_to(dear.bins / "snakemake")
    said = Project(dear.path, tmp_path / "bin").run(*ALL, code=1)
    assert "no job was started" in said and "exit code 1" in said
    assert made(dear) == []


def test_only_what_the_command_makes_is_counted(dear, monkeypatch):
    """One run of a dear suite, with the teacher that it needs."""
    run = "data/runs/digits-smoke/di/el/0/generator_ema.safetensors"
    said = dear.run("snakemake", run, "--cores", "1", code=1)
    assert "suite smoke: 2 trainings of this command are left (1 of a teacher)" in said and "no job was started" in said
    assert made(dear) == []


def test_the_variable_allows_it(dear, monkeypatch):
    """The same command, then: it starts and makes; steps that train nothing are not asked at all."""
    dear.run("snakemake", "data", "--cores", "1")
    assert "data digits/images" in dear.log()
    monkeypatch.setenv("ELDISTILL_MAX_GPU_HOURS", "1")
    said = dear.run("snakemake", "distil", "--cores", "1")
    assert "trainings are left" in said and "distil digits-smoke/di/el/0" in dear.log()
    assert os.path.exists(dear.path / "data/runs/digits-smoke/di/el/0/generator_ema.safetensors")
