# SPDX-License-Identifier: Apache-2.0
"""What a Slurm job knows of itself and of others, and what a driver does about those that an earlier one left behind."""

from __future__ import annotations

import getpass
import os
import re
import socket
import subprocess
import time
from pathlib import Path

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


def jobs_of(folder: Path) -> list[str]:
    """Slurm's jobs, waiting or at work, that a Snakemake in this folder has submitted; none where there is no Slurm."""
    wanted = ["squeue", "--noheader", "--user", getpass.getuser(), "--format", "%i|%k|%Z"]
    try:
        answer = subprocess.run(wanted, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split("|", 2) for line in answer.stdout.splitlines() if line.count("|") >= 2]
    return [
        job for job, comment, where in rows if comment.startswith("rule_") and Path(where.strip()) == folder.resolve()
    ]


def end_orphans(root: Path = Path(), say=print, patience: float = PATIENCE) -> list[str]:
    """End the jobs that a driver which was killed has left in the queue: trainings save, and their successors continue.

    One that waits would otherwise begin when its successor has finished, and do it all again. Only for a driver that knows
    to be the only one here, before it submits anything. Returns the jobs; does not wait longer than `patience` seconds.
    """
    found = jobs_of(root)
    if found:
        say(f"eldistill: {len(found)} jobs of an earlier snakemake are still there ({', '.join(found)}); they are told to save and "
            "to end, and continued")  # fmt: skip
        subprocess.run(["scancel", *found], capture_output=True, timeout=60)
    deadline = time.monotonic() + patience
    while set(found) & set(jobs_of(root)) and time.monotonic() < deadline:
        time.sleep(1)
    return found
