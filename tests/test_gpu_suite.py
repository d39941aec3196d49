# SPDX-License-Identifier: Apache-2.0
"""Runs of a suite on a GPU without Snakemake: the order, the limit of time, what is packed. The steps here write a line each."""

from __future__ import annotations

import sys
import tarfile
import time
from pathlib import Path

import pytest

from eldistill import files
from eldistill.plan import params
from eldistill.plan.identity import Identities
from eldistill.plan.plan import Plan
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_suite


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Plan:
    found = Plan(params.load_params(ROOT / "params.yaml"), Identities(measured=False))
    monkeypatch.chdir(tmp_path)
    return found


def written(step, slow: str = "", fail: str = "") -> None:
    if fail and fail in step.name:
        raise RuntimeError("no")
    if slow and slow in step.name:
        time.sleep(60)
    for output in step.outputs:
        files.write_text(Path(output), f"{step.name}\n")
    gpu_suite.steps.records.write_record(Path(), step.record, step.digest, step.outputs)
    files.write_text(Path(step.sidecar), step.recipe)


def make(plan, monkeypatch, todo, seconds=30.0, **how):
    monkeypatch.setattr(
        gpu_suite.steps, "run_step", lambda word, name, recipe, say: written(plan.find(word, name), **how)
    )
    said: list[str] = []
    return *gpu_suite.make(todo, 4, time.monotonic() + seconds, said.append), said


def test_runs_are_made_in_the_order_of_the_patterns_with_what_they_need(plan, monkeypatch, tmp_path):
    todo = gpu_suite.chosen(plan, "demo", ["digits", "digits/*/el/1", "digits/di/none/*"])
    names = [f"{step.word} {step.name}" for step in todo]
    runs = [name for name in names if name.startswith("distil")]
    assert runs == [f"distil digits/{run}" for run in ("di/el/1", "dmd/el/1", "di/none/0", "di/none/1")]
    assert names.index("teacher digits/check") < names.index(runs[0])
    for step in todo:
        above = [f"{each.word} {each.name}" for each in step.upstream if not each.on_demand]
        assert all(names.index(each) < names.index(f"{step.word} {step.name}") for each in above)
    failed, missing, _ = make(plan, monkeypatch, todo)
    assert (failed, missing) == ([], []) and all(step.fresh(Path()) for step in todo)
    assert make(plan, monkeypatch, todo)[2] == [f"0 steps to make, {len(todo)} fresh"]

    gpu_suite.pack(todo, tmp_path, ["*/di/el/1/generator_ema.safetensors"])
    with tarfile.open(tmp_path / "results-0.tar.xz") as archive:
        kept = set(archive.getnames())
    assert "data/evaluations/digits/di/el/1/metrics.json" in kept and "data/teachers/digits/teacher.safetensors" in kept
    assert {name for name in kept if name.endswith(("generator_ema.safetensors", "images.safetensors"))} == {
        "data/runs/digits/di/el/1/generator_ema.safetensors"
    }


def test_what_fails_and_what_is_not_reached_is_named(plan, monkeypatch):
    todo = gpu_suite.chosen(plan, "demo", ["digits/di/none/0", "digits/di/el/0"])
    failed, missing, said = make(plan, monkeypatch, todo, fail="di/none/0")
    assert failed == ["distil digits/di/none/0"] and missing == ["evaluate digits/di/none/0"]
    assert any("RuntimeError: no" in line for line in said)


def test_the_end_of_the_time_stops_what_runs(plan, monkeypatch):
    todo = gpu_suite.chosen(plan, "demo", ["digits/di/none/0"])
    begun = time.monotonic()
    failed, missing, _ = make(plan, monkeypatch, todo, seconds=3, slow="di/none/0")
    assert not failed and missing[0] == "distil digits/di/none/0" and time.monotonic() - begun < 30
    assert not plan.find("distil", "digits/di/none/0").fresh(Path())
