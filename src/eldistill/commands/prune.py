# SPDX-License-Identifier: Apache-2.0
"""The command `prune`: lists or removes results and saved states that no suite of params.yaml uses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from eldistill.errors import Problem
from eldistill.paths import FOLDERS, STATE
from eldistill.plan import cluster, params
from eldistill.plan.plan import Plan


def leftovers(plan: Plan, root: Path = Path()) -> list[Path]:
    """Sorted paths of result files and state folders that no suite of params.yaml uses."""
    steps = [step for suite in plan.params.values["suites"] for step in plan.suite(suite, kept=True).values()]
    named = {root / path for step in steps for path in (*step.outputs, step.sidecar, step.record)}
    found = [
        path
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and path not in named
    ]
    states = {step.digest[:32] for step in steps}
    return found + [path for path in sorted((root / STATE).glob("*")) if path.is_dir() and path.name not in states]


def prune(remove: bool, say: Callable[[str], None]) -> int:
    """List what no suite uses, and remove it if `remove`. Returns its size in bytes.

    The state of a running training is kept, and so are the files in the folder of a step that is being made. Raises Problem for
    wrong parameters, and with `remove` while a snakemake works in this folder: its jobs may run on other machines."""
    if remove and (other := cluster.driver_at_work()):
        raise Problem(
            f"a snakemake is at work in this folder: {other}; nothing was removed, because it may be making these files; repeat the "
            "command when it has ended"
        )
    total = found = 0
    for path in leftovers(Plan(params.load_params())):
        if (size := _size(path)) is None:  # removed meanwhile, such as the temporary file of a step that has ended
            continue
        say(f"{size / 1e6:10.1f} MB  {path}")
        why = _remove(path) if remove else None
        if why:
            say(f"            kept: {why}")
        total, found = total + (0 if why else size), found + 1
    what = "removed" if remove else "in total, which no suite of params.yaml uses; `make prune REMOVE=yes` removes them"
    say(f"{total / 1e6:10.1f} MB  {what}" if found else "nothing to remove: suites of params.yaml use all results")
    return total


def _size(path: Path) -> int | None:
    # Bytes of a file, or of all files of a folder; None if it is gone.
    try:
        return sum(each.stat().st_size for each in path.rglob("*")) if path.is_dir() else path.stat().st_size
    except FileNotFoundError:
        return None


def _remove(path: Path) -> str | None:
    # Remove a file or a state folder; returns why it was not removed, None if it was.
    from eldistill.training import lock

    if path.is_dir():
        try:
            with lock.lock(path):
                shutil.rmtree(path)
        except Problem as problem:
            return str(problem)
        return None
    if holder := lock.claimed(path):
        return f"{holder} is at work on its step; repeat the command when it has ended"
    path.unlink(missing_ok=True)
    for parent in path.parents:
        if parent.as_posix() in FOLDERS or any(parent.iterdir()):
            break
        parent.rmdir()
    return None


def command(options, say: Callable[[str], None]) -> None:
    """Run the command with parsed options. Raises Problem as `prune` does."""
    prune(options.remove, say)
