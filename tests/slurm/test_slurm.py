# SPDX-License-Identifier: Apache-2.0
"""`snakemake --profile slurm` against a real Slurm, left in peace and disturbed: the end is the same to the bit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from eldistill import files
from tests.slurm import cluster

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(cluster.lacking()), reason=cluster.lacking() or "all there")]
SEEDS = 5
RUNS = [f"digits-smoke/di/el/{seed}" for seed in range(SEEDS)]
GPU = {"train_teacher", "check_teacher", "distil_run", "evaluate_run", "evaluate_reference_run"}


@pytest.fixture(scope="module")
def slurm() -> Iterator[cluster.Slurm]:
    with cluster.running() as found:
        found.environment |= {"OMP_NUM_THREADS": "1", "ELDISTILL_SUITE": "smoke"}
        found.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{found.environment['PATH']}"
        yield found


def rule_of(job: dict) -> str:
    return job["comment"].removeprefix("rule_").split("_wildcards_")[0]


def test_the_literal_command_from_a_clone_to_tables(slurm, tmp_path):
    """Every job went through Slurm, with a GPU where one is needed; the generator is that of a run by hand."""
    there = cluster.clone(tmp_path / "clone")
    environment = slurm.environment | {"PYTHONPATH": str(there / "src")}
    done = subprocess.run(
        ["snakemake", "--profile", "slurm", "all"], cwd=there, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    jobs = slurm.jobs()
    assert {job["state"] for job in jobs} == {"COMPLETED"}
    small = "small_judge_reference_seed_ensemble"  # six steps that share one job
    assert sorted({rule_of(job) for job in jobs}) == sorted(GPU | {small, "pack"})
    for job in jobs:
        needed = rule_of(job) in GPU
        assert job["partition"] == ("gpu" if needed else "cpu") and ("gpu:1" in job["gpus"]) == needed, job
    rows = (there / "data/tables/smoke/main.csv").read_text().splitlines()
    assert len(rows) > 4 and any("di" in row and "el" in row for row in rows)
    ran = [json.loads(line) for line in (there / "data/scratch/run-log.jsonl").read_text().splitlines()]
    local = {("evaluate", "suite/smoke"), ("tables", "smoke")}
    assert len(ran) == len(jobs) - 1 + 6 + len(local) == len({(row["word"], row["name"]) for row in ran})
    generator = there / "data/runs/digits-smoke/di/el/0/generator_ema.safetensors"
    before = files.sha256(generator)
    command = [sys.executable, "-m", "eldistill", "distil", "digits-smoke/di/el/0", "--force"]
    subprocess.run(command, cwd=there, env=environment, check=True, capture_output=True)
    assert files.sha256(generator) == before


# --- disturbed --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A project whose five runs, of some minutes each, were made without Slurm; the digests of their generators."""
    there = cluster.clone(tmp_path_factory.mktemp("undisturbed") / "clone")
    values = yaml.safe_load((there / "params.yaml").read_text(encoding="utf-8"))
    values["suites"]["smoke"] = [
        {"data": ["digits-smoke"], "methods": ["di"], "supplements": ["el"], "seeds": list(range(SEEDS))}
    ]
    values["distil"]["methods"]["di"]["per_data"]["digits-smoke"]["n_images"] = 24576
    values["distil"]["save_seconds"] = 5
    (there / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": str(there / "src"), "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }  # fmt: skip
    words = ["snakemake", "--cores", "2", "distil", "--config", "suite=smoke"]
    done = subprocess.run(words, cwd=there, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return there, {run: files.sha256(there / f"data/runs/{run}/generator_ema.safetensors") for run in RUNS}


class Driver:
    """`snakemake --profile slurm distil` in a project."""

    def __init__(self, slurm: cluster.Slurm, there: Path):
        self.slurm, self.there, self.log = slurm, there, there / "driver.log"
        self.earlier = {job["id"] for job in slurm.jobs()}
        self.start()

    def start(self) -> None:
        environment = self.slurm.environment | {"PYTHONPATH": str(self.there / "src")}
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                ["snakemake", "--profile", "slurm", "distil"], cwd=self.there, env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def training(self) -> list[dict]:
        """Its jobs that train and have saved something."""
        found = []
        for job in self.slurm.jobs():
            if job["id"] not in self.earlier and job["state"] == "RUNNING" and rule_of(job) == "distil_run":
                seed = job["comment"].rsplit("_", 1)[1]
                text = self.there / f"data/scratch/logs/distil/digits-smoke/di/el/{seed}.log"
                if text.exists() and text.read_text().count(" images/s ") >= 3:
                    found.append(job | {"run": f"digits-smoke/di/el/{seed}"})
        return found

    def tries(self, once_each: bool, disturb, count: int = SEEDS) -> int:
        """Disturb, `count` times: each run once, or whatever is there every now and then. Waits for the end."""
        done: set[str] = set()
        number, last = 0, 0.0
        while self.process.poll() is None:
            jobs = [job for job in self.training() if job["run"] not in done or not once_each]
            if jobs and number < count and time.monotonic() - last > 8:
                if disturb(jobs[0]) is not False:
                    done.add(jobs[0]["run"])
                    number, last = number + 1, time.monotonic()
            time.sleep(1)
        return number


def requeue(slurm: cluster.Slurm, job: dict) -> None:
    slurm.run("scontrol", "requeue", job["id"])
    for _ in range(60):  # when it has ended Slurm would wait for two minutes
        states = {each["id"]: each["state"] for each in slurm.jobs()}
        if states.get(job["id"]) == "PENDING":
            slurm.run("scontrol", "update", f"JobId={job['id']}", "StartTime=now", check=False)
            return
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["scancel", "requeue", "time limit", "slurmd killed", "driver killed"])
def test_disturbed_runs_end_as_if_they_were_not(slurm, undisturbed, tmp_path, how):
    """Five times each; the generators are those of the project that was left in peace, to the bit."""
    source, wanted = undisturbed
    there = tmp_path / "clone"
    shutil.copytree(source, there, ignore=shutil.ignore_patterns("runs", ".snakemake", "scratch"))
    driver = Driver(slurm, there)

    def node(job: dict) -> None:
        slurm.kill_node()
        time.sleep(3)
        slurm.start_node()

    def kill(job: dict) -> None:
        driver.kill()
        driver.start()

    disturb = {
        "scancel": lambda job: slurm.run("scancel", job["id"], check=False), "requeue": lambda job: requeue(slurm, job),
        "time limit": lambda job: slurm.run("scontrol", "update", f"JobId={job['id']}", "TimeLimit=1", check=False),
        "slurmd killed": node, "driver killed": kill,
    }[how]  # fmt: skip
    try:
        number = driver.tries(how in ("scancel", "requeue", "time limit"), disturb)
        while how == "driver killed" and driver.process.poll() is None:
            time.sleep(1)
    finally:
        driver.kill()
    text = driver.log.read_text()
    print(
        f"{how}: {number} times; states {sorted(job['state'] for job in slurm.jobs() if job['id'] not in driver.earlier)}"
    )
    assert driver.process.returncode == 0, text[-3000:]
    assert number >= 5
    assert {run: files.sha256(there / f"data/runs/{run}/generator_ema.safetensors") for run in RUNS} == wanted
    continued = sum("continuing at" in (there / f"data/scratch/logs/distil/{run}.log").read_text() for run in RUNS)
    starts = [
        row
        for row in map(json.loads, (there / "data/scratch/run-log.jsonl").read_text().splitlines())
        if row["word"] == "distil"
    ]
    print(f"{how}: {len(starts)} starts of {SEEDS} runs, {continued} of which last continued")
    if how != "slurmd killed":  # its steps outlive it
        assert len(starts) > SEEDS and continued
    if how == "driver killed":
        assert "they are told to save and to end" in text
        assert len(starts) <= SEEDS * (number + 1), "no job of a dead driver did again what was done"
