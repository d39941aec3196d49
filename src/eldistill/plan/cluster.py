# SPDX-License-Identifier: Apache-2.0
"""What a driver, and a Slurm job, know of others: who else is at work here, and what an earlier one has left behind."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from eldistill.paths import SCRATCH

PATIENCE = 120.0  # seconds that a job has to save itself and end


# --- drivers --------------------------------------------------------------------------------------------


def driver_lock(root: Path = Path()) -> tuple[bool, int | None]:
    """Whether this is the only living Snakemake of the folder, and the open file that says so to others until it ends.

    Snakemake's own lock outlives a driver that was killed. If none of this machine lives, it is removed here, as `snakemake
    --unlock` would. On a file system without locks, or where a driver of another machine was the last, nothing is touched.
    """
    path = root / SCRATCH / "driver.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        return False, None
    os.set_inheritable(file, False)  # jobs that outlive the driver are no drivers
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False, file
    here, last = socket.gethostname(), os.read(file, 200).decode(errors="replace").strip()
    if last in ("", here):
        for lock in (root / ".snakemake/locks").glob("*"):
            lock.unlink(missing_ok=True)
    os.ftruncate(file, 0)
    os.pwrite(file, f"{here}\n".encode(), 0)
    fcntl.flock(file, fcntl.LOCK_SH)
    return True, file


# --- jobs -----------------------------------------------------------------------------------------------


def jobs_of(folder: Path) -> list[str] | None:
    """Slurm's jobs, waiting or at work, that a Snakemake in this folder has submitted; none where there is no Slurm, None
    where it does not answer."""
    wanted = ["squeue", "--noheader", "--user", getpass.getuser(), "--format", "%i|%k|%Z"]
    try:
        answer = subprocess.run(wanted, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return []
    except (OSError, subprocess.SubprocessError):
        return None
    if answer.returncode:
        return None
    rows = [line.split("|", 2) for line in answer.stdout.splitlines() if line.count("|") >= 2]
    return [
        job for job, comment, where in rows if comment.startswith("rule_") and Path(where.strip()) == folder.resolve()
    ]


def end_orphans(root: Path = Path(), say: Callable[[str], object] = print, patience: float = PATIENCE) -> list[str]:
    """End the jobs that a driver which was killed has left in the queue: trainings save, and their successors continue.

    One that waits would otherwise begin when its successor has finished, and do it all again. Only for a driver that knows
    to be the only one here, before it submits anything. Returns the jobs; does not wait longer than `patience` seconds.
    """
    found = jobs_of(root)
    if found is None:
        say(
            "eldistill: squeue does not answer, so jobs of an earlier snakemake may still run; their locks keep others from the same runs"
        )
        return []
    if found:
        say(f"eldistill: {len(found)} jobs of an earlier snakemake still run ({', '.join(found)}); they are told to save and end, "
            "and new jobs continue them")  # fmt: skip
        subprocess.run(["scancel", *found], capture_output=True, timeout=60)
    deadline = time.monotonic() + patience
    while _some_left(found, jobs_of(root)) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def _some_left(found: list[str], now: list[str] | None) -> bool:
    # Of jobs that were told to end; no answer is no sign that they did.
    return bool(found) and (now is None or bool(set(found) & set(now)))
