# SPDX-License-Identifier: Apache-2.0
"""Runs one step by its name: checks its recipe and what it reads, has the module of its word make it, records what it made.

By hand (`python -m eldistill distil digits/di/el/0`) the recipe is computed from params.yaml; a Snakemake rule
passes the file. Both are the same text, so both are the same run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eldistill import files
from eldistill.errors import Problem, edge
from eldistill.paths import SCRATCH
from eldistill.plan import identity, params, records
from eldistill.plan.identity import Identities
from eldistill.plan.plan import Plan
from eldistill.plan.recipes import MEASURED, REMADE, TRAINED, Step
from eldistill.steps import work as works
from eldistill.steps.work import Work
from eldistill.training import lock

COVERED_BY = "evaluate"
RUN_LOG = f"{SCRATCH}/run-log.jsonl"


def run_step(
    word: str, name: str, recipe_file: str | None = None, force: bool = False, max_minutes: float = 0,
    say: Callable[[str], None] = print, rank: int | None = None, partial: bool = False,
) -> bool:  # fmt: skip
    """Run the step `word name` in the current folder. Returns False if it was fresh already.

    recipe_file: a recipe to follow instead of that of params.yaml. force: run it even if it is fresh. max_minutes: a training
    saves and stops after this time; 0 means no limit. say: gets each log line. rank: number of this process, if several share
    the step: the first one writes and logs, the others only compute. partial: make a table from the runs that are kept. Raises
    Problem, NonFinite, Stopped and Lost.
    """
    # A rule passes a recipe whose sources the driver has measured.
    plan = Plan(params.load_params(), Identities(measured=not recipe_file))
    step = plan.partial(name) if partial else plan.find(word, name)
    if rank is not None and step.kind not in TRAINED | MEASURED:
        raise Problem(f"{word} {name} is made by one process; remove --processes")
    if rank:
        say = _silent
    text = _text(step, recipe_file)
    if not force and _is_fresh(step, text):
        plan.identities.record()
        say(f"{step.word} {step.name} is up to date; --force makes it again")
        if step.word == "data" and not recipe_file:
            for line in importlib.import_module("eldistill.steps.data").summary(step, plan):
                say(f"{step.name}  {line}")
        return False
    if mirror := plan.params.top("mirror"):
        os.environ.setdefault("ELDISTILL_MIRROR", mirror)
    with _claimed(step, rank):
        if rank is None and not force and _is_fresh(step, text):
            say(f"{step.word} {step.name} was made by another process meanwhile; --force makes it again")
            return False
        recipe = json.loads(text)
        work = Work(
            step=step, recipe=recipe, digest=files.digest(text), upstream=_checked(plan, step, recipe), plan=plan,
            machine=works.find_machine(plan.params, recipe["params"], step, max_minutes),
            say=lambda line: say(f"{step.name}  {line}"), force=force, first=not rank, alone=rank is None,
            kept=plan.kept_results(step, step.name.removeprefix("suite/").split("/")[0]) if step.kept else {},
        )  # fmt: skip
        _make(work)
        if work.first:
            _check_unchanged(work)
            _record(work, text)
    return True


def _is_fresh(step: Step, text: str) -> bool:
    return text == step.recipe and step.fresh(Path())


def _claimed(step: Step, rank: int | None) -> contextlib.AbstractContextManager[None]:
    # Of several processes that share a step the first one claims it. Who needs a file that another process fetches waits there.
    if rank or step.kind == "download":
        return contextlib.nullcontext()
    return lock.claim(step.outputs[0], f"{step.word} {step.name}")


def _silent(line: str) -> None:
    # Of several processes only the first one logs.
    pass


def _text(step: Step, recipe_file: str | None) -> str:
    if not recipe_file:
        return step.recipe
    if not Path(recipe_file).is_file():
        raise Problem(f"{recipe_file} is missing; remove --recipe, which computes it from params.yaml")
    with edge(recipe_file, "remove --recipe, which computes it from params.yaml", "is not a recipe"):
        text = Path(recipe_file).read_text(encoding="utf-8")
        recipe = files.parse_json(text.encode())
        if not all(isinstance(recipe[key], dict) for key in ("params", "upstream")):
            raise ValueError("it has no parameters or inputs")
    return text


def _sidecar(step: Step) -> str:
    # A damaged recipe is a text that is no recipe, so that its step is made again.
    return Path(step.sidecar).read_text(encoding="utf-8", errors="replace")


def _checked(plan: Plan, step: Step, recipe: dict[str, Any]) -> tuple[Step, ...]:
    """The upstream steps that a recipe names. Raises Problem if an output of them is missing, was made by another recipe or
    edited, or if a source or the snapshots changed after the recipe was written."""
    above = _upstream(plan, step, recipe)
    if recipe["params"].get("snapshots") != step.params.get("snapshots"):
        raise Problem("params.yaml: distil.snapshots changed since this recipe was written; run snakemake again")
    identity.check_sources(step.sources, recipe.get("sources", {}))
    return above


def _check_unchanged(work: Work) -> None:
    # A training has read its inputs at its start. What only reads results must not name the recipes of files that were replaced since.
    if work.step.word not in REMADE:
        return
    try:
        _upstream(work.plan, work.step, work.recipe)
    except Problem as problem:
        raise Problem(
            f"{work.step.word} {work.step.name} is not finished, because what it reads changed meanwhile: {problem}"
        ) from None


def _upstream(plan: Plan, step: Step, recipe: dict[str, Any]) -> tuple[Step, ...]:
    # The upstream steps that a recipe names, whose outputs exist and match it. Raises Problem.
    above = [plan.find(*upstream.split(" ", 1)) for upstream in recipe["upstream"]]
    kept = {(each.word, each.name) for each in step.kept}
    for each in above:
        if (each.word, each.name) in kept:
            continue
        missing = [output for output in each.outputs if not Path(output).exists()]
        if missing:
            raise Problem(
                f"{missing[0]} is missing; run `python -m eldistill {each.word} {each.name}` first, or `snakemake all`"
            )
    for each, wanted in zip(above, recipe["upstream"].values(), strict=True):
        if (each.word, each.name) in kept:
            _check_kept(each, wanted)
            continue
        # Existing is not enough: a student of another teacher must not get this recipe.
        there = Path(each.sidecar).exists()
        if not there or files.digest(_sidecar(each)) != wanted:
            why = (
                "was made with other numbers than this step asks for"
                if there
                else ("has no recipe beside it, because its step did not come to its end")
            )
            raise Problem(
                f"{each.outputs[0]} {why}; run `python -m eldistill {each.word} {each.name}` first, or `snakemake all`"
            )
        if each.word in REMADE and (edited := each.changed(Path())):
            raise Problem(
                f"{edited[0]} changed since its step made it; run `python -m eldistill {each.word} {each.name}` first, "
                "or `snakemake all`"
            )
    return tuple(above)


def _check_kept(step: Step, wanted: str) -> None:
    # The results that the plan found in the kept file are those that the recipe names.
    if step.digest != wanted:
        raise Problem(
            f"params.yaml asks for another {step.name} than this recipe; run the same command again, or snakemake"
        )


def _make(work: Work) -> None:
    step = work.step
    if work.first:
        for output in (*step.outputs, step.sidecar, step.record):  # before hours are spent
            files.check_writable(output)
        line = {"time": round(time.time(), 3), "word": step.word, "name": step.name, "recipe": work.digest}
        files.append_line(RUN_LOG, files.canonical(line))
        for output in (*step.outputs, step.sidecar):
            files.remove_leftovers(output)
    works.set_threads(work.params.get("threads", work.plan.threads), step.word)
    # A distil run has its outputs untouched until it publishes them.
    untouched = step.word == "distil" or not work.first
    with contextlib.nullcontext() if untouched else works.overwriting(step):
        make_step(work)
        if step.word == "data" or step.kind == "conversion":  # which read them to their end
            identity.check_sources(step.sources, work.recipe.get("sources", {}))


def make_step(work: Work) -> None:
    """Call the module of a step's word. It is imported here, because some of these modules need seconds for their imports."""
    importlib.import_module(f"eldistill.steps.{work.step.word}").make_step(work)


def _record(work: Work, text: str) -> None:
    work.plan.identities.record()
    read = {
        run: work.kept[run].sha256 if run in work.kept else work.step.kept_here(run) or line
        for run, line in work.step.kept_lines.items()
    }
    records.write_record(Path(), work.step.record, work.digest, work.step.outputs, read)
    # Last: an output without its recipe is not trusted, so a step cut short here runs again.
    files.write_text(work.step.sidecar, text)
    if work.state is not None:
        shutil.rmtree(work.state, ignore_errors=True)
