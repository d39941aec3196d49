# SPDX-License-Identifier: Apache-2.0
"""The command `prune`: lists or removes results and saved states that no suite of params.yaml uses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from eldistill.errors import Problem
from eldistill.paths import FOLDERS, STATE
from eldistill.plan import params
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
    """List what no suite uses, and remove it if `remove`. Returns its size in bytes. The state of a running training is kept."""
    from eldistill.training import lock

    total = 0
    for path in leftovers(Plan(params.load_params())):
        size = path.stat().st_size if path.is_file() else sum(each.stat().st_size for each in path.rglob("*"))
        total += size
        say(f"{size / 1e6:10.1f} MB  {path}")
        if remove and path.is_dir():
            try:
                with lock.lock(path):
                    shutil.rmtree(path)
            except Problem as problem:
                say(f"            kept: {problem}")
        elif remove:
            path.unlink()
            for parent in path.parents:
                if parent.as_posix() in FOLDERS or any(parent.iterdir()):
                    break
                parent.rmdir()
    what = "removed" if remove else "in total, which no suite of params.yaml uses; `make prune REMOVE=yes` removes them"
    say(f"{total / 1e6:10.1f} MB  {what}" if total else "nothing to remove: suites of params.yaml use all results")
    return total


def command(options, say: Callable[[str], None]) -> None:
    """Run the command with parsed options. Raises Problem for wrong parameters."""
    prune(options.remove, say)
