# SPDX-License-Identifier: Apache-2.0
"""The command `keep`: collects the results of the finished runs of a suite in its file of kept results, which git keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from eldistill.errors import Problem
from eldistill.files import write_text
from eldistill.plan import kept, params
from eldistill.plan.identity import Identities
from eldistill.plan.kept import Kept, Key
from eldistill.plan.plan import Plan


def finished(plan: Plan, suite: str) -> dict[Key, Kept]:
    """Lines of the runs and reference runs of a suite that are on the disk, made by the recipes that params.yaml asks for.

    Raises Problem if a file of one is damaged."""
    root = plan.params.root
    steps = kept.by_run(plan.evaluations(suite))

    def measured(found) -> bool:
        return all(kept.is_measured(each, root) for each in found)

    lines = {run: kept.line_of(found, root) for run, found in steps.items() if measured(found)}
    # A run that another process began to make again meanwhile is left out: its files may have been read half old and half new.
    return kept.unique(line for run, line in lines.items() if measured(steps[run]))


def keep_runs(plan: Plan, suite: str, others: Iterable[Path] = ()) -> str:
    """Write the finished runs of a suite into its file of kept results; returns a sentence about what it holds then.

    What is on the disk replaces a line of the same recipes. Other lines stay while params.yaml asks for their recipes, and are dropped
    when it does not. others: files of kept results of other machines, whose lines are added. Raises Problem for a suite that there is
    not, and for a damaged file; then nothing is written."""
    steps = plan.evaluations(suite)
    asked = {(step.name, step.digest) for step in steps}
    path = plan.params.root / kept.kept_file(suite)
    before, here = plan.kept(suite), finished(plan, suite)
    added = kept.unique(line for file in others for line in _given(file).values())
    known = kept.unique([*before.values(), *added.values()])
    lines = {key: line for key, line in {**known, **here}.items() if key in asked}
    if lines or before:
        text = kept.text_of(lines)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    dropped = len(known.keys() - asked)
    return _told(suite, len(asked), len(lines), len(lines.keys() - before.keys()), dropped)


def _given(path: Path) -> dict[Key, Kept]:
    if not path.is_file():
        raise Problem(f"{path} is missing; expected a {kept.NAME} of another machine")
    return kept.read_kept(path)


def _told(suite: str, asked: int, there: int, new: int, dropped: int) -> str:
    text = f"{kept.kept_file(suite)} holds {there} of {asked} runs and reference runs, {new} of them new"
    if dropped:
        text += f"; {dropped} dropped, because params.yaml asks for other numbers now"
    return text + (f"; `snakemake all --config suite={suite}` makes the rest" if there < asked else "")


def command(options, say: Callable[[str], None]) -> None:
    """Run the command with parsed options. Raises Problem for wrong parameters and damaged files."""
    plan = Plan(params.load_params(), Identities(measured=True, say=say))
    say(keep_runs(plan, options.suite, map(Path, options.others)))
