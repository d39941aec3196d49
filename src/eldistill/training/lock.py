# SPDX-License-Identifier: Apache-2.0
"""Locks, so that only one process or Slurm job makes the outputs of a step, or trains in a state folder, at a time."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eldistill.errors import Problem
from eldistill.paths import SCRATCH

COVERED_BY = "loop"
CLAIMS = f"{SCRATCH}/claims"  # lock files of steps, in folders that are named like those of their outputs


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
def lock(path: Path, what: str = "this run") -> Iterator[None]:
    """Lock a state folder. The system releases the lock when the process ends.

    The lock file names its holder. Because some file systems do not share locks between nodes, Slurm is asked whether
    the job that the file names is still running. what: what the holder makes, for the message. Raises Problem if another
    process or job trains this run.
    """
    with _locked(path / "lock", what):
        yield


@contextmanager
def claim(output: str, what: str, root: Path = Path()) -> Iterator[None]:
    """Lock the outputs of a step for the process that makes them. Without it a second process of the same step would remove the
    temporary files of the first one, and files of both could end up beside one recipe.

    output: the first output of the step. what: the step, for the message. Raises Problem if another process makes it."""
    name = root / CLAIMS / f"{output}.claim"
    name.parent.mkdir(parents=True, exist_ok=True)
    with _locked(name, what) as file:
        try:
            yield
        finally:
            with suppress(OSError):  # a file of another user cannot be written
                os.ftruncate(
                    file, 0
                )  # also after an error it is at work no more, and nobody has to ask Slurm about its job


def claimed(path: Path, root: Path = Path()) -> str | None:
    """Who makes a step whose outputs lie in the folder of this file, or in one above it: "process 12 on node0". None if nobody does.

    path: relative to root."""
    names = (name for folder in path.parents for name in sorted((root / CLAIMS / folder).glob("*.claim")))
    return next((holder for name in names if (holder := _holder(name))), None)


def _holder(name: Path) -> str | None:
    # Who holds this lock file, without a change to it; None if nobody does.
    try:
        file = os.open(name, os.O_RDONLY)
    except OSError:
        return None
    try:
        text = os.read(file, 200).decode(errors="replace").strip()
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return text or "another process"
    except OSError:
        pass  # no locks: only Slurm knows
    finally:
        os.close(file)
    return None if at_work_elsewhere(text) is False else text


@contextmanager
def _locked(name: Path, what: str) -> Iterator[int]:
    # A context that holds the lock of this file, and gives its descriptor.
    file = _open(name)
    try:
        _take(file, what)
        before = os.read(file, 200).decode(errors="replace").strip()
        elsewhere = at_work_elsewhere(before)
        if elsewhere is None:
            raise Problem(
                f"squeue does not say whether {before} is still at work on {what}; repeat the command when it answers"
            )
        if elsewhere:
            raise Problem(f"{before} is already at work on {what}; wait for it, or stop it and repeat the command")
        with suppress(OSError):  # a file of another user
            os.ftruncate(file, 0)
            os.pwrite(file, f"{me()}\n".encode(), 0)
        yield file
    finally:
        os.close(file)


def _open(name: Path) -> int:
    # A colleague's lock file, which this user may only read, is locked as well.
    try:
        return os.open(name, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask: a group may share the folder
    except PermissionError:
        return os.open(name, os.O_RDONLY)


def _take(file: int, what: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
        raise Problem(
            f"{holder} is already at work on {what}; wait for it, or stop it and repeat the command"
        ) from None
    except OSError as error:
        print(f"eldistill: this file system has no locks ({error}); start no second copy of {what}", file=sys.stderr)
