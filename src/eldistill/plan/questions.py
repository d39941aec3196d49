# SPDX-License-Identifier: Apache-2.0
"""Checks that the runs of a suite can answer it: that its tables and its studies will find what they need.

Without them the tables, which come last, would be the first to complain.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from eldistill.plan import checks, combinations, conflicts, reading
from eldistill.plan.rates import base_method, factor
from eldistill.plan.run import Run
from eldistill.plan.schema import Wrong
from eldistill.registry import defines, literal

CURVED = ("speed", "budget", "stability")  # kinds of studies that read curves
AVERAGED = ("contrast", "central", "seeds")  # kinds that compare distances which can be means over the last snapshots
PAIRED = ("contrast", "central", "budget")  # kinds that have no row without a pair of the baseline and another arm


def check_suite(params: checks.Project, suite: str) -> None:
    """Raise Problem at the first run of a suite whose settings contradict each other, or if its tables or
    studies could not be made.

    Only what is about to be made is checked like this: a number that suits one suite may not suit another."""
    with _named(params):
        runs = list(params.runs(suite))
        conflicts.check_arms(suite, runs)
        for data in dict.fromkeys(run.data for run in runs):
            conflicts.check_heldout(params, data)
        for run in runs:
            _check_once(params, run)
        primary = ranking_space(params, suite)
        for data in dict.fromkeys(run.data for run in runs):
            combinations.check_evaluation(params, data)
            _ranked(params, data, primary, f"the tables of the suite {suite}, which are ranked by {primary},")
        for data in dict.fromkeys(run.data for run in runs):  # the last point of a curve counts as the end of a run
            _has_points(params, data, (100,), f"a table of the suite {suite}")
        for name in params.studies(suite):
            _study(params, suite, name, list(params.runs(suite, name)))


def curve_percents(params: checks.Project, data: str) -> list[int]:
    """The times of the points of a curve, in percent of the run: those snapshots that are asked for, or all if none is."""
    snapshots, asked = params.top("distil")["snapshots"], params.top("evaluate", data)["curve_snapshots"]
    return [each for each in snapshots if each in asked] or snapshots


def _has_points(params: checks.Project, data: str, wanted: Iterable[int], reader: str) -> None:
    # Whether a curve has these points, which `reader` takes.
    for percent in wanted:
        if percent not in params.top("distil")["snapshots"]:
            raise Wrong("distil.snapshots", f"has no {percent}, but {reader} reads it; add {percent}")
        if percent not in curve_percents(params, data):
            raise Wrong(
                f"evaluate.per_data.{data}.curve_snapshots", f"has no {percent}, but {reader} reads it; add {percent}"
            )


def ranking_space(params: checks.Project, suite: str) -> str:
    """The feature space that ranks the tables of a suite: the first one of its data settings if they agree, else that of `evaluate`."""
    first = {params.top("evaluate", data)["features"][0] for data in {run.data for run in params.runs(suite)}}
    found: str = first.pop() if len(first) == 1 else params.top("evaluate")["features"][0]
    return found


def check_run(params: checks.Project, run: Run) -> None:
    """Raise Problem if the settings of a run contradict each other."""
    with _named(params):
        _check_once(params, run)


def _check_once(params: checks.Project, run: Run) -> None:
    # Once for all seeds.
    key = (run.data, run.method, run.supplements)
    if key not in params.checked:
        with checks.of_data(params, params.place("method", run.method), run.data):
            combinations.check_run(params, *key)
        params.checked.add(key)


@contextlib.contextmanager
def _named(params: checks.Project) -> Iterator[None]:
    try:
        yield
    except Wrong as wrong:
        raise reading.with_file_name(wrong, params.root) from None


def _ranked(params: checks.Project, data: str, space: str, reader: str) -> None:
    # Whether a feature space is measured on a data setting, at the end and in curves.
    options = params.top("evaluate", data)
    for key in ("features", "curve_features"):
        if options[key] and space not in options[key]:
            raise Wrong(
                f"evaluate.per_data.{data}.{key}",
                f"is {', '.join(options[key])}, but {reader} need {space} on {data}; add {space} to {key}",
            )


def _study(params: checks.Project, suite: str, name: str, runs: list[Run]) -> None:
    study, where = params.top("tables")["studies"][name], f"tables.studies.{name}"
    kind, snapshots = study["kind"], params.top("distil")["snapshots"]
    _last(params, where, study, runs)
    for data in dict.fromkeys(run.data for run in runs) if kind in CURVED or study["last"] > 1 else ():
        space = params.top("evaluate", data)["features"][0]
        _ranked(params, data, space, f"the curves of the study {name}")
    for data in dict.fromkeys(run.data for run in runs) if kind == "speed" else ():
        _has_points(params, data, (0, 100), f"{where}, which is of the kind {kind},")
    if kind == "variance" and (percent := literal("distil/probe", "PERCENT")) not in snapshots:
        raise Wrong(
            "distil.snapshots", f"has no {percent}, but {where} is of the kind {kind}, which reads it; add {percent}"
        )
    if kind == "variance":
        _variance(params, where, runs)
    if kind == "speed":
        _speed(params, where, runs)
    if kind == "seeds":
        _seeds(where, suite, runs)
    if kind in PAIRED and not _pairs(study["against"], runs):
        raise Wrong(
            f"{where}.against",
            f"is {study['against']}, but no run of the study in suites.{suite} has it as baseline: add it and another supplement "
            "with the same data, method and seed to the grids of that study",
        )
    _alike(params, where, study, runs)


def _last(params: checks.Project, where: str, study: dict[str, Any], runs: list[Run]) -> None:
    # Whether there are as many points of curves as the means over the last snapshots need.
    if study["last"] == 1:
        return
    if study["kind"] not in AVERAGED:
        raise Wrong(
            f"{where}.last",
            f"is {study['last']}, but the kind {study['kind']} compares no means over snapshots; remove it, or make the kind one of "
            f"{', '.join(AVERAGED)}",
        )
    for data in dict.fromkeys(run.data for run in runs):
        there = curve_percents(params, data)
        if len(there) < study["last"]:
            raise Wrong(
                f"{where}.last",
                f"is {study['last']}, but curves on {data} have {len(there)} snapshots; make it smaller, or add percents to "
                "distil.snapshots and evaluate.curve_snapshots",
            )


def _pairs(against: str, runs: list[Run]) -> bool:
    method, _, supplement = against.rpartition("/")
    arms = {(run.data, run.method, run.supplement, run.seed) for run in runs}
    return any(
        (run.data, method or run.method, supplement, run.seed) in arms
        and (run.method, run.supplement) != (method or run.method, supplement)
        for run in runs
    )


def _variance(params: checks.Project, where: str, runs: list[Run]) -> None:
    for run in runs:
        if not combinations.trains_fake_score(params.peek("method", run.method, run.data)):
            raise Wrong(f"{where}.kind", f"is variance, which needs a fake_score, but distil.methods.{run.method} trains none; remove it "
                        "from the grids of that study")  # fmt: skip
        for name in run.supplements:
            file = params.peek("supplement", name, run.data)["file"]
            if any(defines(f"supplements/{file}", function) for function in ("critic_terms", "direct_terms")):
                raise Wrong(f"{where}.kind", f"is variance, which needs a fixed loss at the images, but distil.supplements.{name} is a "
                            f"{file}; remove it from the grids of that study")  # fmt: skip


def _speed(params: checks.Project, where: str, runs: list[Run]) -> None:
    seen: dict[tuple, Run] = {}
    for run in runs:
        times = factor(params, run)
        root = base_method(params, run.method)
        other = seen.setdefault((run.data, root, run.supplement, times, run.seed), run)
        if other is not run:
            raise Wrong(
                where,
                f"has the runs {other} and {run}, both {root}/{run.supplement} at factor {times:g} of the learning rates; remove one of "
                "them from the grids of that study",
            )


def _seeds(where: str, suite: str, runs: list[Run]) -> None:
    cells: dict[tuple[str, str, str], set[tuple[int, int]]] = {}
    for run in runs:
        if found := re.fullmatch(r"(.+)-e(\d+)", run.supplement):
            cells.setdefault((run.data, run.method, found[1]), set()).add((run.seed, int(found[2])))
    if not cells:
        raise Wrong(f"{where}.kind", f"is seeds, which compares supplements called NAME-e0, NAME-e1, …, but its grids in suites.{suite} "
                    "have none; add them")  # fmt: skip
    for (data, method, stem), each in cells.items():
        training, ensembles = ({cell[i] for cell in each} for i in (0, 1))
        if len(each) < len(training) * len(ensembles) or min(len(training), len(ensembles)) < 2:
            raise Wrong(
                f"{where}.kind",
                f"is seeds, but {data}/{method}/{stem}-e* has {len(each)} runs for {len(training)} seeds and {len(ensembles)} "
                f"ensembles in suites.{suite}; give every ensemble the same two or more seeds",
            )


def _alike(params: checks.Project, where: str, study: dict[str, Any], runs: list[Run]) -> None:
    # Settings of one set of images are compared with each other, so they must be measured in the same way.
    first: dict[tuple, tuple[str, dict[str, Any]]] = {}
    number = "curve_n" if study["last"] > 1 else "n"
    for data in dict.fromkeys(run.data for run in runs):
        section = params.peek("data", data)
        key = (params.images_of(data), section["heldout"], section["limit"])
        options = params.top("evaluate", data)
        other, before = first.setdefault(key, (data, options))
        for name, mine, its in (
            ("features", options["features"][0], before["features"][0]),
            *(((number, options[number], before[number]),) if study["kind"] == "central" else ()),
        ):
            if mine != its:
                raise Wrong(
                    f"evaluate.per_data.{data}.{name}",
                    f"ranks by {mine} what evaluate ranks by {its} on {other}, and {where} compares both; make them equal"
                    if name == "features"
                    else f"is {mine} and {its} on {other}, which {where} compares; make them equal",
                )
