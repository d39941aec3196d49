# SPDX-License-Identifier: Apache-2.0
"""Results of finished runs in a file that git keeps, data/tables/SUITE/kept.jsonl: one line of JSON for each run.

A suite of hundreds of trainings takes many sessions on several machines, and each machine has only the runs that it made. What tables
and studies read of a run is small: its metrics, curve, provenance and a few numbers of its log. A line has these, the digests of the
recipes that made them, and the sha256 of itself. A run whose recipe here is the one that params.yaml asks for is neither trained nor
evaluated again; its files on the disk are read where they are there, and this file where they are not.

Lines are sorted. Git merges the files of two machines by taking the lines of both (.gitattributes), so that a run can have several
lines. Of lines with different recipes only the one that is asked for counts; of lines with equal recipes, which are equal results up
to the machine, all readers take the one with the smallest sha256. This file imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eldistill.errors import Problem, brief, denied
from eldistill.files import digest, parse_json, read_json, read_rows
from eldistill.plan.recipes import MEASURED, Step

NAME = "kept.jsonl"
MAX_BYTES = 256_000_000  # of a file; a run takes about 10,000, so that there is room for thousands
LINE = re.compile(r'(\{"run":.*),"sha256":"([0-9a-f]{64})"\}')
# Of a training log those numbers that studies read, by the ends of their names (study.Study.logged).
LOGGED = (".weight", ".gradient_rms", ".base_rms", ".trace_ratio", "generator.gradient_norm")
OMITTED = ("host",)  # of a provenance: the name of a machine says nothing to others
READ = ("metrics.json", "curve.csv", "log.csv", "provenance.json")  # outputs that tables and studies read of a run

Key = tuple[str, str]  # name of a run and digest of the recipe of its evaluation, which contains that of its training


@dataclass(frozen=True)
class Kept:
    """A line: the results of a run, or of a reference run (DATA/real, DATA/teacher)."""

    run: str
    results: dict[str, Any]  # metrics, and of a run curve, log and provenance (see eldistill.tables.kept)
    recipes: dict[str, str]  # {word: sha256 of the recipe of the step that made them}
    sha256: str  # of the line without it
    line: str

    @property
    def key(self) -> Key:
        """What it is looked up by."""
        return self.run, self.recipes["evaluate"]


NO_LINES: Mapping[str, Kept] = MappingProxyType({})  # where all results are read from the disk


def kept_file(suite: str) -> str:
    """Path of the kept results of a suite, relative to the root of the project."""
    return f"data/tables/{suite}/{NAME}"


def make_kept(run: str, recipes: dict[str, str], results: dict[str, Any]) -> Kept:
    """The line of a run. Raises ValueError for NaN and infinity, which no result may hold."""
    value = {"run": run, "recipes": recipes, "results": results}
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    sha256 = digest(text)
    return Kept(run, results, recipes, sha256, f'{text[:-1]},"sha256":"{sha256}"}}')


def unique(lines: Iterable[Kept]) -> dict[Key, Kept]:
    """Lines by their keys; of several with one key the one with the smallest sha256, whatever their order."""
    found: dict[Key, Kept] = {}
    for each in lines:
        known = found.setdefault(each.key, each)
        if each.sha256 < known.sha256:
            found[each.key] = each
    return found


def text_of(lines: dict[Key, Kept]) -> str:
    """The content of a file with these lines."""
    return "".join(f"{lines[key].line}\n" for key in sorted(lines))


def read_kept(path: Path) -> dict[Key, Kept]:
    """The lines of a file; none if there is no such file. Raises Problem for a damaged line, and for a file that is too large."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise Problem(f"{path} has more than {MAX_BYTES:,} bytes; expected kept results: {_again(path)}")
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return {}
    except PermissionError:
        raise denied(path) from None
    return unique(_parsed(path, number, line) for number, line in enumerate(lines, 1) if line.strip())


def _parsed(path: Path, number: int, line: bytes) -> Kept:
    try:
        text = line.decode().rstrip("\r")
        if text.startswith(("<<<<<<<", "=======", ">>>>>>>", "|||||||")):
            raise ValueError("a mark of a merge that git did not finish")
        match = LINE.fullmatch(text)
        if not match or digest(match[1] + "}") != match[2]:
            raise ValueError(
                "its sha256 is missing or is not that of its text" if text.endswith("}") else "it is cut off"
            )
        value = parse_json(line)
        recipes = value["recipes"]
        kinds = isinstance(value["results"], dict), isinstance(recipes["evaluate"], str), isinstance(value["run"], str)
        if not all(kinds):
            raise ValueError("it has no run, no results or no recipe")
        return Kept(value["run"], value["results"], recipes, match[2], text)
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(f"{path} is damaged in line {number} ({brief(error)}); {_again(path)}") from None


def _again(path: Path) -> str:
    return f"restore it from git, or remove that line and run `python -m eldistill keep {path.parent.name}`"


# --- runs on the disk -----------------------------------------------------------------------------------


def is_measured(step: Step, root: Path) -> bool:
    """Whether this recipe made the outputs of a step that tables read, and they are here unchanged.

    Generators, snapshots and pictures may be elsewhere: tables do not need them."""
    needed = tuple(output for output in step.outputs if output.rpartition("/")[2] in READ)
    return step.made(root, needed)


def by_run(steps: Iterable[Step]) -> dict[str, list[Step]]:
    """{run: its evaluation, and its training if it is no reference run} of those among these steps."""
    found: dict[str, list[Step]] = {}
    for step in steps:
        if step.kind in MEASURED:
            found[step.name] = [step, *(above for above in step.upstream if above.kind == "run")]
    return found


def pack_run(run: str, root: Path) -> dict[str, Any]:
    """The results of a run, or of a reference run, from its files below `root`. Raises Problem if one is missing or damaged."""
    folder, trained = root / "data/evaluations" / run, root / "data/runs" / run
    found: dict[str, Any] = {"metrics": read_json(folder / "metrics.json")}
    if run.count("/") == 1:
        return found
    log = [{name: row[name] for name in row if name.endswith(LOGGED)} for row in read_rows(trained / "log.csv")]
    about = read_json(trained / "provenance.json")
    found["curve"], found["log"] = _pack_rows(read_rows(folder / "curve.csv")), _pack_rows(log)
    return found | {"provenance": {key: value for key, value in about.items() if key not in OMITTED}}


def line_of(steps: list[Step], root: Path) -> Kept:
    """The line of a run from its files below `root`. steps: its evaluation, and its training if it is no reference run (by_run).

    Raises Problem if a file is missing or damaged, or has a number that is not finite."""
    run = steps[0].name
    try:
        return make_kept(run, {each.word: each.digest for each in steps}, pack_run(run, root))
    except ValueError:
        raise Problem(
            f"data/evaluations/{run}/metrics.json or data/runs/{run}/provenance.json has a number that is not finite; delete that "
            "file and run `snakemake all`"
        ) from None


def _pack_rows(rows: list[dict[str, str]]) -> dict[str, list]:
    names = list(rows[0]) if rows else []
    return {"names": names, "rows": [[row[name] for name in names] for row in rows]}


def absent_pictures(steps: Iterable[Step], root: Path) -> frozenset[str]:
    """Paths of pictures of the evaluations among these steps that are not here, or that another recipe made."""
    pictures = ((each, output) for each in steps if each.kind in MEASURED for output in each.outputs)
    return frozenset(path for each, path in pictures if path.endswith(".png") and not each.made(root, (path,)))


def only_kept(steps: Iterable[Step], root: Path) -> list[Step]:
    """The evaluations among these steps whose results are not on the disk, so that they are read from the kept file."""
    return [found[0] for found in by_run(steps).values() if not all(is_measured(each, root) for each in found)]


def sha256_here(steps: Iterable[Step], root: Path, run: str) -> str | None:
    """The sha256 of the line that the results of a run on the disk would have; None if they are not here, or damaged. steps: those
    whose results are kept."""
    found = by_run(steps).get(run, [])
    if not found or not all(is_measured(each, root) for each in found):
        return None
    try:
        return line_of(found, root).sha256
    except Problem:
        return None
