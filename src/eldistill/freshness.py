# SPDX-License-Identifier: Apache-2.0
"""How Snakemake is told which steps are stale, so that it runs exactly those.

Snakemake compares mtimes, and since 9.18 it ignores a newer input whose checksum it remembers from an earlier run. So a
touched recipe is no voice: after A, B and a checkout of A, a plan of B found nothing to do. Each step therefore has one
more input, its token. A stale step's token gets random content that nothing can remember, and a new mtime. Everything else
(recipes, sidecars, tokens of fresh steps) gets mtime 1, so that neither a checkout nor a wrong clock makes a step run.
`--touch` and `--consider-ancient` are the user's own word and are obeyed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Set
from pathlib import Path

from eldistill import records
from eldistill.files import Problem, replace_text
from eldistill.recipes import WORDS, Plan, Step

QUIET = 1.0  # the mtime of whatever must not make a step run


def refresh(steps: Iterable[Step], root: str | Path = ".", say: Callable[[str], None] | None = None) -> list[Step]:
    """Write the wanted recipes and the tokens; returns the stale steps. For the main process only.

    say: is told of outputs that somebody has edited. Raises Problem if a recipe or a token cannot be written, because
    Snakemake would not hear of a stale step. A colleague's sidecar that cannot be touched is left; `inputs` allows for it.
    """
    root, stale = Path(root), []
    for step in steps:
        fresh, silent = step.fresh(root), _silenced(root / step.sidecar)
        if not fresh:
            stale.append(step)
        try:
            _write(root / step.file, step.recipe)
            if fresh:
                _write(root / step.token, "")
            else:
                replace_text(root / step.token, secrets.token_hex(16), time.time() if silent else _later(step, root))
        except OSError as error:
            raise Problem(
                f"{error.filename or step.token} cannot be written ({error.strerror}), so Snakemake cannot be told what is "
                "stale; ask for write access to data/scratch, or work in a clone of your own"
            ) from None
        if say and (edited := step.changed(root)):
            say(_edited(step, edited, stale=not fresh))
    records.save_seen(root)
    return stale


def _write(path: Path, text: str) -> None:
    # A quiet file with this text. A token of a step that is fresh again may keep its content: only its mtime speaks.
    try:
        if text and path.read_text(encoding="utf-8") != text:
            raise FileNotFoundError
        _silence(path)
    except (FileNotFoundError, PermissionError, UnicodeDecodeError):
        replace_text(path, text, QUIET)


def _silence(path: Path) -> None:
    if os.stat(path).st_mtime != QUIET:
        os.utime(path, (QUIET, QUIET))


def _silenced(path: Path) -> bool:
    try:
        _silence(path)
    except OSError:
        return False
    return True


def _later(step: Step, root: Path) -> float:
    # Than its oldest output, whatever the clock of the machine that wrote it says.
    for path in (step.sidecar, *step.outputs):
        with contextlib.suppress(OSError):
            return max(time.time(), os.stat(root / path).st_mtime + 1)
    return time.time()


def inputs(step: Step, stale: Callable[[Step], bool], forced: bool = False, root: Path = Path()) -> list[str]:
    """Inputs of a step's rule: the wanted recipe, the sidecars upstream, the token last.

    A stale step waits for all upstream. A fresh one must not be made again with a step above it that is made again by the
    same recipe (a file of it was lost), nor because a colleague's sidecar kept its mtime: such edges are omitted.
    forced: the user names steps to be made again, as Snakemake defines it; all edges are kept.
    """
    above = list(step.upstream)
    if stale(step):
        # What decides nothing about a step is waited for by a step that runs, and cannot make a fresh one run: not even
        # `ancient` keeps Snakemake from that.
        above += step.after
    elif not forced:
        above = [each for each in above if not stale(each) and _quiet(root / each.sidecar)]
    return [step.file, *(each.sidecar for each in above), step.token]


def _quiet(path: Path) -> bool:
    try:
        return os.stat(path).st_mtime == QUIET
    except OSError:
        return False


# --- what remains stale ---------------------------------------------------------------------------------


def unmade(steps: Iterable[Step], targets: Set[str], root: Path = Path()) -> list[Step]:
    """Steps that are behind Snakemake's targets (words, `all` or files; none: all) and still stale."""
    words = {word for word in WORDS if word in targets}
    whole = not targets or "all" in targets
    return [
        step
        for step in steps
        if (whole or step.word in words or not targets.isdisjoint((*step.outputs, step.sidecar)))
        and not step.fresh(root)
    ]


def complaint(left: list[Step]) -> str:
    """One sentence about steps that Snakemake took for finished."""
    return (
        f"{names(left)} {'is' if len(left) == 1 else 'are'} still not what params.yaml asks for, though snakemake found no "
        "more to do; nothing of this should be recorded: run the same command again, and report it if it stays"
    )


def names(steps: list[Step]) -> str:
    """A few of them by name, and how many more there are."""
    more = f" and {len(steps) - 3} others" if len(steps) > 3 else ""
    return ", ".join(f"{step.word} {step.name}" for step in steps[:3]) + more


def abandoned(plan: Plan, suite: str, root: Path = Path()) -> list[tuple[str, list[Step]]]:
    """Results that lie here with other numbers than params.yaml asks for, and that the suite does not make: (suite, steps)."""
    seen, found = set(plan.suite(suite)), []
    for other in plan.params.values["suites"]:
        steps = {key: step for key, step in plan.suite(other).items() if key not in seen}
        seen |= set(steps)
        old = [step for step in steps.values() if (root / step.sidecar).exists() and not step.fresh(root)]
        if old:
            found.append((other, old))
    return found


def edits(steps: Iterable[Step], root: Path = Path()) -> list[str]:
    """A sentence for each step whose outputs somebody has edited."""
    return [_edited(step, edited, not step.fresh(root)) for step in steps if (edited := step.changed(root))]


def _edited(step: Step, paths: list[str], stale: bool) -> str:
    what = f"{', '.join(paths)} changed since `{step.word} {step.name}` made {'it' if len(paths) == 1 else 'them'}"
    if stale:
        return f"{what}; it is made again"
    return (
        f"{what}; it is kept, `dvc checkout {Path(paths[0]).parent}` brings back what was recorded, and "
        f"`python -m eldistill {step.word} {step.name} --force` makes it again"
    )
