# SPDX-License-Identifier: Apache-2.0
"""What a Slurm job knows of itself and of others, and what a driver does about those that an earlier one left behind."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from pathlib import Path

STATE = "data/scratch/state"
PATIENCE = 120.0  # seconds that a job has to save itself and end


def me() -> str:
    """This process, for the file of a lock: "process 12 on node0, job 345"."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"process {os.getpid()} on {socket.gethostname()}" + (f", job {job}" if job else "")


def job_of(holder: str) -> str | None:
    """The Slurm job that such a text names."""
    found = re.search(r", job (\d+)", holder)
    return found[1] if found else None


def running(job: str) -> bool:
    """Whether Slurm says that a job is at work; False where there is no Slurm to ask."""
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return answer.stdout.strip() in ("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING")


def at_work_elsewhere(holder: str) -> bool:
    """Whether a text names a running job that is not this one: where a file system's locks do not reach other nodes."""
    job = job_of(holder)
    return job is not None and job != os.environ.get("SLURM_JOB_ID") and running(job)


def end_orphans(root: Path = Path(), say=print, patience: float = PATIENCE) -> list[str]:
    """Stop the trainings that a driver which was killed has left running: they save, and their successors continue.

    Only for a driver that knows to be the only one here. Returns the jobs; does not wait longer than `patience` seconds.
    """
    found = {}
    for lock in sorted((root / STATE).glob("*/lock")):
        try:
            holder = lock.read_text(errors="replace").strip()
        except OSError:
            continue
        job = job_of(holder)
        if job and running(job):
            found[job] = holder
    for job, holder in found.items():
        say(
            f"eldistill: {holder}, of an earlier snakemake, is still at work; it is told to save and to end, and continued"
        )
        subprocess.run(["scancel", job], capture_output=True, timeout=60)
    deadline = time.monotonic() + patience
    while any(map(running, found)) and time.monotonic() < deadline:
        time.sleep(1)
    return list(found)
