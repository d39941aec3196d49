# SPDX-License-Identifier: Apache-2.0
"""Distributes the GPUs of one machine without a scheduler: each job locks the GPUs that it uses.

Snakemake counts (`--resources gpu=4`, as profiles/gpu has it) but does not choose which: without this module all jobs would use
the first one. A lock is a file that the system releases when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path
from typing import IO

from eldistill.environment import MOST
from eldistill.errors import Problem, quoted

COUNT = "ELDISTILL_GPUS"  # environment variable: number of GPUs that the jobs share; the Snakefile sets it
VISIBLE = "CUDA_VISIBLE_DEVICES"
FOLDER = Path("data/scratch/gpus")
PATIENCE = 0.5  # seconds between two attempts to take the locks

_held: list[IO] = []  # open for as long as the process lives


def share(count: int) -> None:
    """Set the number of GPUs that the jobs of this process share, unless COUNT is set."""
    if not os.environ.get(COUNT):
        os.environ[COUNT] = str(count)


def shared_gpus() -> list[str]:
    """The names of the shared GPUs, as CUDA_VISIBLE_DEVICES lists them. Raises Problem if it lists fewer than COUNT says."""
    count = os.environ[COUNT]
    if not re.fullmatch("[0-9]{1,9}", count) or not 1 <= int(count) <= MOST:
        raise Problem(
            f"{COUNT} is {quoted(count)}; expected the number of GPUs that the jobs share, such as --resources gpu=4"
        )
    listed = [name for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    if listed and len(listed) < int(count):
        raise Problem(
            f"{VISIBLE} names {len(listed)} GPUs and {COUNT} is {count}; pass --resources gpu=N with at most that many"
        )
    return (listed or [str(index) for index in range(int(count))])[: int(count)]


def take_gpus(wanted: int, folder: Path = FOLDER) -> list[str]:
    """Wait until `wanted` GPUs are free, lock them until this process ends, and make only them visible. Returns their names.

    Without COUNT nothing happens, because a scheduler or the user chooses the GPU. With wanted 0 no GPU is visible. Raises
    Problem if fewer than `wanted` are shared.
    """
    if not os.environ.get(COUNT):
        return []
    names = shared_gpus()
    if wanted > len(names):
        raise Problem(
            f"a job asks for {wanted} GPUs, but {COUNT} is {len(names)}; set its `gpu` lower under set-resources of the profile"
        )
    folder.mkdir(parents=True, exist_ok=True)
    while wanted:
        found = _lock(names, wanted, folder)
        if found:
            break
        time.sleep(PATIENCE)
    else:
        found = []
    os.environ[VISIBLE] = ",".join(found)
    os.environ.pop(COUNT)  # child processes use the GPUs that are visible now
    return found


def _lock(names: list[str], wanted: int, folder: Path) -> list[str]:
    # All or none: two jobs that each wait for the other's second GPU would never end.
    got: list[tuple[str, IO[str]]] = []
    for name in names:
        file: IO[str] = open(folder / f"{name.replace('/', '_')}.lock", "a")  # older names of MIG have slashes
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        got.append((name, file))
        if len(got) == wanted:
            _held.extend(file for _, file in got)
            return [name for name, _ in got]
    for _, file in got:
        file.close()
    return []
