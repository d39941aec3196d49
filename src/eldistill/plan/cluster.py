# SPDX-License-Identifier: Apache-2.0
"""Locks and leftovers: which Snakemake driver or Slurm job is active in this folder, and how to end jobs of a driver that was killed."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from eldistill.files import FULL, naming_full
from eldistill.paths import SCRATCH

LOCK = f"{SCRATCH}/driver.lock"
PATIENCE = 120.0  # seconds that a job gets to save its state and end


# --- drivers --------------------------------------------------------------------------------------------


def driver_lock(root: Path = Path()) -> tuple[bool, int | None]:
    """Lock the folder for this Snakemake: (whether it is the only one that runs here, the file descriptor that holds the lock).

    Snakemake's own lock outlives a driver that was killed. If none of this machine lives, it is removed here, as `snakemake
    --unlock` would. On a file system without locks, or where a driver of another machine was the last, nothing is touched.
    """
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask: a group may share the folder
    except OSError as error:
        if error.errno in FULL:
            raise
        return False, None
    os.set_inheritable(file, False)  # jobs may outlive the driver and must not hold its lock
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False, file
    here, last = socket.gethostname(), os.read(file, 200).decode(errors="replace").partition("\n")[0].strip()
    if last in ("", here):
        for lock in (root / ".snakemake/locks").glob("*"):
            lock.unlink(missing_ok=True)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    with naming_full(path):
        os.ftruncate(file, 0)
        os.pwrite(file, f"{here}\nprocess {os.getpid()} on {here}, since {since}\n".encode(), 0)
    fcntl.flock(file, fcntl.LOCK_SH)
    return True, file


def other_driver(file: int | None) -> str | None:
    """Which other Snakemake is at work in the folder: "process 12 on node0, since 2026-11-27 15:01:22". "another process" if that
    one has ended and a later one still lives. None if there is no other, as far as this machine sees.

    file: the descriptor that `driver_lock` gave."""
    if file is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _living(os.pread(file, 400, 0).decode(errors="replace")) or "another process"
    except OSError:
        return None  # a file system without locks
    finally:
        with contextlib.suppress(OSError):  # the attempt has released the shared lock
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def driver_at_work(root: Path = Path()) -> str | None:
    """Like `other_driver`, for a command that is no driver itself and leaves the lock as it is."""
    try:
        file = os.open(root / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        return other_driver(file)
    finally:
        os.close(file)


def _living(text: str) -> str | None:
    # The process that the text of a lock file names, None if it is this one or has ended.
    found = re.search(r"process (\d+) on (\S+), since [-\d]+ [:\d]+", text)
    if not found or int(found[1]) == os.getpid():
        return None
    if found[2] == socket.gethostname():
        try:
            os.kill(int(found[1]), 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass  # it belongs to another user
    return found[0]


def ensure_user_name() -> None:
    """Set LOGNAME if the system has no name for this user, as in many containers: Snakemake and torch ask for one and fail."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


# --- jobs -----------------------------------------------------------------------------------------------


def jobs_of(folder: Path) -> list[str] | None:
    """Ids of the Slurm jobs, waiting or running, that a Snakemake in this folder submitted. [] without Slurm, None if squeue
    does not answer."""
    # By number: a process in a container, or of a user whom only the cluster's directory knows, may have no name.
    wanted = ["squeue", "--noheader", "--user", str(os.getuid()), "--format", "%i|%k|%Z"]
    try:
        # Names of folders, also of others' jobs, may have any bytes.
        answer = subprocess.run(wanted, capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=60)
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
    """End the Slurm jobs that a killed driver left in the queue. Trainings save their state, and new jobs continue them.

    A waiting job would otherwise start after its successor and repeat the work. Call this only in the one driver of a folder,
    before it submits jobs. patience: seconds to wait for them to end. Returns their ids.
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
    # Whether some of the cancelled jobs may still run. Without an answer of squeue they may.
    return bool(found) and (now is None or bool(set(found) & set(now)))
