# SPDX-License-Identifier: Apache-2.0
"""Notes for readers on what variants of data settings, methods and supplements change: `rates × 2` for `di-r2`.

A section that is `like` another is called after it, with what differs. Where that takes more than a few words there is no note, and
tables show the ending of the raw name. This file imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eldistill.errors import Problem
from eldistill.plan.checks import Project
from eldistill.plan.run import Run

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
MEASURING = ("raw_snapshots", "status", "rates")  # keys that a reader need not know of to know a method
MOST = 2  # keys that a note names
Notes = dict[str, dict[str, list[str]]]


def notes(params: Project, runs: Iterable[Run]) -> Notes:
    """{data, method or supplement: {name: [the section that it is like, what differs]}} of the variants among these runs."""
    found: Notes = {}
    runs = list(runs)
    datas = list(dict.fromkeys(run.data for run in runs))
    for run in runs:
        places = [("data", run.data), ("method", run.method), *(("supplement", name) for name in run.supplements)]
        for kind, name in places:
            known = found.setdefault(kind, {})
            if name not in known and (like := params.named(kind)[name].get("like")):
                known[name] = [
                    like,
                    _of_data(params, name, like, datas)
                    if kind == "data"
                    else _note(params, kind, name, like, run.data),
                ]
    kept = {kind: {name: each for name, each in known.items() if each[1]} for kind, known in found.items()}
    return {kind: known for kind, known in kept.items() if known}


def _note(params: Project, kind: str, name: str, like: str, data: str) -> str:
    try:
        changed = _changed(params.peek(kind, name, data), params.peek(kind, like, data))
    except Problem:  # the other has no numbers for this data setting
        return ""
    if changed.get("rate"):
        return f"rates × {changed['rate']:g}"
    if "batch" in changed:  # with its learning rates
        return f"batch {changed['batch']}"
    words = [_words(key, value) for key, value in changed.items() if key not in MEASURING]
    return ", ".join(words) if all(words) and len(words) <= MOST else ""


def _of_data(params: Project, name: str, like: str, datas: list[str]) -> str:
    # `second teacher`, counted in the order of the runs; the setting that they are like has the first one.
    base = params.peek("data", like)
    changed = {each: _changed(params.peek("data", each), base) for each in (name, *datas)}
    if side := changed[name].get("resolution"):
        return f"{side}×{side}"
    if set(changed[name]) != {"teacher"}:
        return ""
    if like not in datas:
        return f"teacher {changed[name]['teacher']}"
    place = 1 + [each for each in datas if set(changed[each]) == {"teacher"}].index(name)
    return f"{ORDINALS[place]} teacher" if place < len(ORDINALS) else f"teacher {place + 1}"


def _changed(own: dict[str, Any], other: dict[str, Any], where: str = "") -> dict[str, Any]:
    # {key: own value} of the keys that differ, at every depth: `generator lr`.
    found: dict[str, Any] = {}
    for key, value in own.items():
        before = other.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            found |= _changed(value, before, f"{where}{key} ")
        elif value != before:
            found[f"{where}{key}"] = value
    return found


def _words(key: str, value: Any) -> str:
    if key == "n_images":
        return f"{value:,} images"
    if key == "pairs" and value:
        return f"{value:,} images of the teacher"
    key = key.replace("_", " ")
    if value is True or value is None or value is False:
        return key if value else f"without {key}"
    if isinstance(value, float):
        return f"{key} {value:g}"
    return f"{key} {value}" if isinstance(value, int | str) else ""
