# SPDX-License-Identifier: Apache-2.0
"""Locks of state folders, so that only one process or Slurm job trains a run at a time."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eldistill.errors import Problem
from eldistill.paths import SCRATCH

COVERED_BY = "loop"


def locks_work(root: Path = Path()) -> None:
    """Take a lock on the file system that holds the results. Raises OSError if it does not support locks."""
    path = root / SCRATCH / "locks.probe"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path.unlink(missing_ok=True)


def me() -> str:
    """This process as a lock file names it: "process 12 on node0, job 345"."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"process {os.getpid()} on {socket.gethostname()}" + (f", job {job}" if job else "")


def job_of(holder: str) -> str | None:
    """The Slurm job number in the text of a lock file, or None if it names none."""
    found = re.search(r", job (\d+)", holder)
    return found[1] if found else None


def running(job: str) -> bool | None:
    """Whether Slurm lists a job as running. False without Slurm on this machine, None if Slurm does not answer."""
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        return False
    except (OSError, subprocess.SubprocessError):
        return None
    if answer.returncode and "invalid job id" not in answer.stderr.lower():  # the answer for a job that ended long ago
        return None
    return answer.stdout.strip() in ("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING")


def at_work_elsewhere(holder: str) -> bool | None:
    """Whether the text of a lock file names a running Slurm job other than this one; None if Slurm does not answer.

    This is needed on file systems whose locks are not seen by other nodes.
    """
    job = job_of(holder)
    return running(job) if job is not None and job != os.environ.get("SLURM_JOB_ID") else False


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Lock a state folder. The system releases the lock when the process ends.

    The lock file names its holder. Because some file systems do not share locks between nodes, Slurm is asked whether
    the job that the file names is still running. Raises Problem if another process or job trains this run.
    """
    name = path / "lock"
    file = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask: a group may share the folder
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
        os.close(file)
        raise Problem(
            f"{holder} is already at work on this run; wait for it, or stop it and repeat the command"
        ) from None
    except OSError as error:
        print(f"eldistill: this file system has no locks ({error}); start no second copy of this run", file=sys.stderr)
    try:
        before = os.read(file, 200).decode(errors="replace").strip()
        elsewhere = at_work_elsewhere(before)
        if elsewhere is None:
            raise Problem(
                f"squeue does not say whether {before} is still at work on this run; repeat the command when it answers"
            )
        if elsewhere:
            raise Problem(f"{before} is already at work on this run; wait for it, or stop it and repeat the command")
        os.ftruncate(file, 0)
        os.pwrite(file, f"{me()}\n".encode(), 0)
        yield
    finally:
        os.close(file)
