# SPDX-License-Identifier: Apache-2.0
"""One machine with several GPUs and no scheduler: every job takes GPUs of its own, by locks.

Snakemake counts (`--resources gpu=4`, as profiles/gpu has it) but does not say which: without this all jobs would share the
first one. A lock is a file that the system releases when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from eldistill.errors import Problem

COUNT = "ELDISTILL_GPUS"  # how many the jobs of this machine share; the Snakefile sets it
VISIBLE = "CUDA_VISIBLE_DEVICES"
FOLDER = Path("data/scratch/gpus")
PATIENCE = 0.5  # seconds between two looks at the locks

_held: list[IO] = []  # open for as long as the process lives


def devices() -> list[str]:
    """The GPUs to share, by the names that CUDA_VISIBLE_DEVICES gives or will get. Raises Problem."""
    count = os.environ[COUNT]
    if not count.isdigit() or int(count) < 1:
        raise Problem(
            f"{COUNT} is {count!r}; expected the number of GPUs that the jobs share, such as --resources gpu=4"
        )
    listed = [name for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    if listed and len(listed) < int(count):
        raise Problem(
            f"{VISIBLE} names {len(listed)} GPUs and {COUNT} is {count}; pass --resources gpu=N with at most that many"
        )
    return (listed or [str(index) for index in range(int(count))])[: int(count)]


def take(wanted: int, folder: Path = FOLDER) -> list[str]:
    """Wait until so many GPUs are free, lock them for the life of this process, and make them the only visible ones.

    Nothing happens where COUNT is not set: a scheduler or the user says which GPU it is. With wanted 0 none is visible.
    Returns their names. Raises Problem if there are fewer.
    """
    if COUNT not in os.environ:
        return []
    names = devices()
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
    os.environ.pop(COUNT)  # what this process starts has them already
    return found


def _lock(names: list[str], wanted: int, folder: Path) -> list[str]:
    # All or none: two jobs that each wait for the other's second GPU would wait for ever.
    got: list[tuple[str, IO[str]]] = []
    for name in names:
        file: IO[str] = open(folder / f"{name}.lock", "a")
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
