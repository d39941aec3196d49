# SPDX-License-Identifier: Apache-2.0
"""Tells Snakemake which steps are stale, so that it runs exactly those.

Snakemake compares mtimes, and since 9.18 it ignores a newer input whose checksum it remembers from an earlier run. So a
new mtime of a recipe is not enough: after runs of A and B and a checkout of A, a plan of B found nothing to do. Each step
therefore has one more input, its token. A stale step's token gets random content that nothing can remember, and a
new mtime. Everything else
(recipes, sidecars, tokens of fresh steps) gets mtime 1, so that neither a checkout nor a wrong clock makes a step run.
`--touch` and `--consider-ancient` are explicit requests of the user and are obeyed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Set
from pathlib import Path

from eldistill.errors import Problem
from eldistill.files import FULL, replace_text
from eldistill.outside import locate
from eldistill.plan import records
from eldistill.plan.plan import Plan
from eldistill.plan.recipes import WORDS, Step

QUIET = 1.0  # the mtime of files that must not cause a step to run


def refresh(steps: Iterable[Step], root: str | Path = ".", say: Callable[[str], None] | None = None) -> list[Step]:
    """Write the wanted recipes and the tokens; returns the stale steps. For the main process only.

    say: is told of outputs that somebody has edited. Raises Problem, or OSError on a full disk, if a recipe or a token cannot be
    written, because Snakemake would not hear of a stale step. A colleague's sidecar that cannot be touched is left; `Inputs` allows for it.
    """
    root, stale = Path(root), []
    for step in steps:
        fresh, silent = step.fresh(root), _silenced(os.path.join(root, step.sidecar))
        if not fresh:
            stale.append(step)
        try:
            _write(os.path.join(root, step.file), step.recipe)
            token = os.path.join(root, step.token)
            if fresh:
                _write(token, "")
            else:
                replace_text(token, secrets.token_hex(16), time.time() if silent else _later(step, root))
        except OSError as error:
            if error.errno in FULL:
                raise
            raise Problem(
                f"{error.filename or step.token} cannot be written ({error.strerror}), so Snakemake cannot be told what is "
                "stale; ask for write access to data/scratch, or work in a clone of your own"
            ) from None
        if say and (edited := step.changed(root)):
            say(_edited(step, edited, stale=not fresh))
    records.save_seen(root)
    return stale


def refuse_changes(steps: Iterable[Step], other: str, suite: str, root: str | Path = ".") -> None:
    """Raise Problem if `refresh` would change a recipe while another driver is at work: its waiting jobs would follow the new one.

    other: that driver, as `cluster.other_driver` names it."""
    changed = [step for step in steps if _other_text(os.path.join(root, step.file), step.recipe)]
    if changed:
        raise Problem(
            f"another snakemake is at work here ({other}), and params.yaml asks for other numbers than its jobs read: "
            f"{step_names(changed)}; wait until it has ended or stop it, or undo the change. `python -m eldistill plan {suite}` says what "
            "the change makes stale"
        )


def _other_text(path: str, text: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read() != text
    except (OSError, UnicodeDecodeError):
        return False  # no job reads it


def _write(path: str, text: str) -> None:
    # A quiet file with this text. A token of a step that is fresh again may keep its content: only its mtime speaks.
    try:
        if text:
            with open(path, encoding="utf-8") as file:
                if file.read() != text:
                    raise FileNotFoundError
        _silence(path)
    except (FileNotFoundError, PermissionError, UnicodeDecodeError):
        replace_text(path, text, QUIET)


def _silence(path: str) -> None:
    if os.stat(path).st_mtime != QUIET:
        os.utime(path, (QUIET, QUIET))


def _silenced(path: str) -> bool:
    try:
        _silence(path)
    except OSError:
        return False
    return True


def _later(step: Step, root: Path) -> float:
    # An mtime after that of the outputs, even if the clock of the machine that wrote them was ahead.
    there = os.path.isdir(os.path.dirname(os.path.join(root, step.sidecar)))
    for path in (step.sidecar, *step.outputs) if there else ():
        with contextlib.suppress(OSError):
            return max(time.time(), os.stat(root / path).st_mtime + 1)
    return time.time()


class Inputs:
    """The inputs of each step's rule, by which Snakemake sees what follows from what.

    A step that lost a file is made again by the same recipe, and what was made from it stays: an ancient edge. But
    Snakemake does not look at any step below one that runs, except along edges that are not ancient; so a stale step also
    names the stale ones that are hidden behind fresh ones.

    stale: the steps that `refresh` found, None in a job's process, which asks anew. ancient: Snakemake's mark. forced: the
    user names steps to be made again, as Snakemake defines it; then no edge is ancient.
    """

    def __init__(self, stale: Iterable[Step] | None, ancient: Callable[[str], str], forced: bool, root: Path = Path()):
        self.found = None if stale is None else {(step.word, step.name) for step in stale}
        self.ancient, self.forced, self.root = ancient, forced, root
        self._behind: dict[tuple[str, str], dict[str, None]] = {}

    def __call__(self, step: Step) -> list[str]:
        """The wanted recipe, the sidecars upstream, the token last."""
        if self._stale(step):
            # What decides nothing about a step is waited for by a step that runs, and cannot make a fresh one run.
            near = dict.fromkeys(each.sidecar for each in (*step.upstream, *step.after))
            above = [*(near | self.behind(step) if self.found else near)]
        elif self.forced:
            above = [each.sidecar for each in step.upstream]
        else:
            above = [path for each in step.upstream if (path := self._edge(each))]
        return [step.file, *above, step.token]

    def _stale(self, step: Step) -> bool:
        return not step.fresh(self.root) if self.found is None else (step.word, step.name) in self.found

    def _edge(self, above: Step) -> str | None:
        # An input of a fresh step. If its mtime could not be set, the sidecar belongs to another user and counts as unchanged.
        if not self._stale(above) and _quiet(os.path.join(self.root, above.sidecar)):
            return above.sidecar
        there = (path for path in (above.sidecar, above.outputs[0]) if (self.root / path).exists())
        path = next(there, None)
        return path and self.ancient(path)  # a missing file would make the fresh step run, ancient or not

    def behind(self, step: Step) -> dict[str, None]:
        """Sidecars of the nearest stale steps above a step, through fresh ones."""
        key = (step.word, step.name)
        if key not in self._behind:
            found: dict[str, None] = {}
            for above in step.upstream:
                if self._stale(above):
                    found[above.sidecar] = None
                else:
                    found.update(self.behind(above))
            self._behind[key] = found
        return self._behind[key]


def _quiet(path: str) -> bool:
    try:
        return os.stat(path).st_mtime == QUIET
    except OSError:
        return False


# --- what remains stale ---------------------------------------------------------------------------------


def stale_targets(steps: Iterable[Step], targets: Set[str], root: Path = Path()) -> list[Step]:
    """The steps of Snakemake's targets that are still stale. targets: words, `all` or files; empty means all."""
    words = {word for word in WORDS if word in targets}
    whole = not targets or "all" in targets
    return [
        step
        for step in steps
        if not step.on_demand
        and (whole or step.word in words or not targets.isdisjoint((*step.outputs, step.sidecar)))
        and not step.fresh(root)
    ]


def complaint(left: list[Step]) -> str:
    """One sentence about stale steps that Snakemake considered finished."""
    return (
        f"{step_names(left)} {'is' if len(left) == 1 else 'are'} still not what params.yaml asks for, although snakemake found "
        "nothing more to do; do not record these results: run the same command again, and report this as a bug if it stays"
    )


def step_names(steps: list[Step]) -> str:
    """The names of the first three steps, and how many more there are, as part of a sentence."""
    more = f" and {len(steps) - 3} others" if len(steps) > 3 else ""
    return ", ".join(f"{step.word} {step.name}" for step in steps[:3]) + more


def abandoned(plan: Plan, suite: str, root: Path = Path()) -> list[tuple[str, list[Step]]]:
    """Stale results of other suites, which this suite does not make again, as pairs (other suite, its stale steps)."""
    seen, found = set(plan.suite(suite)), []
    # data/metrics.json is of the suite that was made last: one file, as many steps as suites.
    shared = {plan.metrics(other).sidecar for other in plan.params.values["suites"]}
    for other in plan.params.values["suites"]:
        steps = {key: step for key, step in plan.suite(other).items() if key not in seen}
        seen |= set(steps)
        there = [step for step in steps.values() if step.sidecar not in shared and (root / step.sidecar).exists()]
        old = [step for step in there if not step.fresh(root)]
        if old:
            found.append((other, old))
    return found


def missing_files(steps: Iterable[Step], root: Path = Path()) -> list[str]:
    """A sentence for each path outside git that these steps read, and that does not exist. steps: those that will run."""
    readers: dict[str, Step] = {}
    for step in steps:
        for source in step.sources:
            if source.path and not (root / locate(source.path)).exists():
                readers.setdefault(source.name, step)
    return [
        f"{name} does not exist, and `{step.word} {step.name}` reads it: put it there, or change its path in params.yaml"
        for name, step in readers.items()
    ]


def describe_edits(steps: Iterable[Step], root: Path = Path()) -> list[str]:
    """One sentence for each step whose outputs were edited after the step made them."""
    return [_edited(step, edited, not step.fresh(root)) for step in steps if (edited := step.changed(root))]


def _edited(step: Step, paths: list[str], stale: bool) -> str:
    what = f"{', '.join(paths)} changed since `{step.word} {step.name}` made {'it' if len(paths) == 1 else 'them'}"
    if stale:
        return f"{what}; it is made again"
    return (
        f"{what}; it is kept: `dvc checkout {Path(paths[0]).parent}` restores the recorded version, "
        f"`python -m eldistill {step.word} {step.name} --force` makes it again"
    )
