# SPDX-License-Identifier: Apache-2.0
"""The command `plan`: prints which steps of a suite are fresh, stale (and why) or missing, and what the rest costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eldistill.errors import Problem
from eldistill.files import read_note
from eldistill.plan import freshness, params, questions
from eldistill.plan.identity import Identities
from eldistill.plan.kept import kept_file
from eldistill.plan.plan import Plan
from eldistill.plan.recipes import WORDS, Step

NAMED = 3  # steps that a line names
FRESH, STALE, MISSING = "fresh", "stale", "missing"


@dataclass(frozen=True)
class State:
    """A step, whether it is fresh, stale or missing, and why it is stale: one phrase for each cause, none if only upstream steps
    changed."""

    step: Step
    is_: str
    why: tuple[str, ...] = ()


def state_of(step: Step, root: Path) -> State:
    """The state of a step, from a comparison of its recipe with the one beside its outputs."""
    if step.fresh(root):
        return State(step, FRESH)
    if (before := read_note(root / step.sidecar)) is None:
        return State(step, MISSING)
    now = json.loads(step.recipe)
    if before.get("name") != now["name"]:  # one file of all suites
        return State(step, STALE, (f"{step.outputs[0]} holds {before.get('name')}; it will hold {now['name']}",))
    why = [*_changes(before.get("params"), now["params"], "")]
    why += [f"version of {change}" for change in _changes(before.get("versions"), now["versions"], "")]
    why += [f"content of {name}" for name in _unlike(before.get("sources"), now.get("sources"))]
    if not why and before == now:
        why = [_unlike_files(step, root)]
    return State(step, STALE, tuple(why))


def _unlike_files(step: Step, root: Path) -> str:
    # Why a step is stale whose recipe is the one that is asked for.
    if lost := [path for path in step.outputs if not (root / path).exists()]:
        return f"{lost[0]} is missing"
    if other := step.read_otherwise(root):
        return f"the kept results of {', '.join(other[:NAMED])} changed"
    return f"{', '.join(step.changed(root))} was edited"


def _changes(before, now, where: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            yield from _changes(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    elif before != now:
        yield f"{where}: {_said(before)} → {_said(now)}"


def _said(value) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) < 60 else f"{text[:57]}…"


def _unlike(before: dict | None, now: dict | None) -> list[str]:
    before, now = before or {}, now or {}
    return [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]


def suite_states(plan: Plan, suite: str) -> list[State]:
    """The states of all steps of a suite, upstream steps first. Downloads are omitted, because they are not results."""
    return [state_of(step, plan.params.root) for step in plan.suite(suite).values() if not step.on_demand]


def downloads(plan: Plan, found: list[State]) -> list[str]:
    """Names of rows in data/sources.csv that steps which will run wait for."""
    waiting = [step for state in found if state.is_ != FRESH for step in state.step.after if step.on_demand]
    return list(dict.fromkeys(step.item for step in waiting if not step.fresh(plan.params.root)))


def plan_page(plan: Plan, suite: str, bill: str) -> Iterator[str]:
    """The lines of the page. bill: the line of `cost.describe_left` about the unfinished trainings."""
    found = suite_states(plan, suite)
    yield f"suite {suite}: {len(found)} steps, " + ", ".join(
        f"{sum(each.is_ == kind for each in found)} {kind}" for kind in (FRESH, STALE, MISSING)
    )
    yield ""
    yield f"{'':9}" + "".join(f"{kind:>9}" for kind in (FRESH, STALE, MISSING))
    for word in WORDS:
        counts = [sum(each.is_ == kind for each in found if each.step.word == word) for kind in (FRESH, STALE, MISSING)]
        yield f"{word:9}" + "".join(f"{count or '-':>9}" for count in counts)
    yield from _reasons(found)
    yield from _kept(plan, suite)
    if names := downloads(plan, found):
        yield f"\nto download: {', '.join(names)}"
    for sentence in freshness.missing_files((each.step for each in found if each.is_ != FRESH), plan.params.root):
        yield f"\n{sentence}"
    yield f"\n{bill}"


def _kept(plan: Plan, suite: str) -> Iterator[str]:
    # Runs that are not listed above, because their results are kept.
    runs = list(plan.params.runs(suite))
    if number := sum((str(run), plan.evaluation(run).digest) in plan.kept(suite) for run in runs):
        yield f"\n{number} of {len(runs)} runs are read from {kept_file(suite)}, so that nothing makes them"


def _reasons(found: list[State]) -> Iterator[str]:
    reasons: dict[str, list[Step]] = {}
    for each in found:
        for why in each.why:
            reasons.setdefault(why, []).append(each.step)
    if reasons:
        yield "\nstale because of"
    for why, steps in reasons.items():
        more = f" and {len(steps) - NAMED} others" if len(steps) > NAMED else ""
        yield f"  {why}   ({', '.join(f'{step.word} {step.name}' for step in steps[:NAMED])}{more})"
    follow = sum(each.is_ == STALE and not each.why for each in found)
    if follow:
        yield f"  what those steps make   ({follow} steps that follow from them)"


def command(options, say: Callable[[str], None]) -> None:
    """Print the page. Raises Problem for an unknown suite."""
    from eldistill.commands import cost  # torch takes seconds

    plan = Plan(params.load_params(), Identities(measured=True, say=say))  # as Snakemake does; nothing is recorded
    suite = options.suite or plan.params.values["suite"]
    questions.check_suite(plan.params, suite)
    try:
        bill = cost.describe_left(plan, suite, options.tflops)
    except (
        Problem
    ) as problem:  # of a file or of images that are not read yet: what is missing is on the page all the same
        bill = f"suite {suite}: the cost of its trainings is not known yet: {problem}"
    for line in plan_page(plan, suite, bill):
        say(line)
