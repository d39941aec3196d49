# SPDX-License-Identifier: Apache-2.0
"""Checks of settings that would otherwise be ignored, or make results wrong, without a word."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from eldistill.plan import sizes
from eldistill.plan.run import Run
from eldistill.plan.schema import Wrong

Section = dict[str, Any]


class Sections(Protocol):
    """The part of params.Params that these checks use."""

    values: dict[str, Any]

    def named(self, kind: str) -> dict[str, dict[str, Any]]: ...
    def place(self, kind: str, name: str) -> str: ...
    def peek(self, kind: str, name: str, data: str | None = None) -> Section: ...
    def images_of(self, data: str) -> tuple: ...


def check_blocks(params: Sections) -> None:
    """Raise Wrong at a block of `per_data` with a key that such blocks cannot have, because nothing would read it."""
    places = [
        (f"{params.place(kind, name)}", each)
        for kind in ("method", "supplement")
        for name, each in params.named(kind).items()
    ]
    for where, section in (*places, ("evaluate", params.values.get("evaluate", {}))):
        for data, block in section.get("per_data", {}).items():
            for key in ("like", "per_data"):
                if key in block:
                    raise Wrong(
                        f"{where}.per_data.{data}.{key}",
                        f"has no effect in the numbers for one data setting; move it to {where}, or remove it",
                    )


def check_capitals(params: Sections) -> None:
    """Raise Wrong at two names of a kind that differ only in capitals: on many disks their files would be the same."""
    kinds = [
        (params.place(kind, "")[:-1], params.named(kind))
        for kind in ("data", "teacher", "ensemble", "method", "supplement")
    ]
    for where, names in (*kinds, ("suites", params.values["suites"])):
        first: dict[str, str] = {}
        for name in names:
            if (other := first.setdefault(name.lower(), name)) != name:
                raise Wrong(
                    f"{where}.{name}",
                    f"differs from {other} only in capitals, which macOS and Windows do not distinguish in names of files; rename one "
                    "of them",
                )


def check_heldout(params: Sections, name: str) -> None:
    """Raise Wrong if some held-out images of a data setting are among the train images of its teacher, or of its latents.

    Both settings hold out the last ones of one order of the same images, so that the larger number contains the smaller one."""
    data = params.peek("data", name)
    teacher = params.peek("teacher", data["teacher"])
    taught, theirs = teacher["data"], params.peek("data", teacher["data"])
    trained_here = teacher["source"] is None and teacher["file"] is None
    same = params.images_of(name) == params.images_of(taught) and data["source"] not in sizes.OWN_TEST
    if trained_here and same and data["heldout"] > theirs["heldout"]:
        raise Wrong(
            f"data.{name}.heldout",
            f"is {data['heldout']}, but its teacher {data['teacher']} is trained on data.{taught}, which holds out {theirs['heldout']} of "
            f"the same images, so that it has seen {data['heldout'] - theirs['heldout']} of them; set both to the same number, or give "
            f"data.{name} a teacher of its own",
        )
    if data["pixels"] and (seen := params.peek("data", data["pixels"]))["heldout"] > data["heldout"]:
        raise Wrong(
            f"data.{data['pixels']}.heldout",
            f"is {seen['heldout']} and that of data.{name}, the latents of its images, {data['heldout']}, so that latents of held-out "
            "images would be trained on; set both to the same number",
        )


def check_arms(suite: str, runs: Iterable[Run]) -> None:
    """Raise Wrong if two runs of a suite add the same supplements in another order: they are one arm, not two."""
    seen: dict[tuple, Run] = {}
    for run in runs:
        other = seen.setdefault((run.data, run.method, frozenset(run.supplements), run.seed), run)
        if other is not run:
            raise Wrong(
                f"suites.{suite}",
                f"has the supplements {other.supplement} and {run.supplement}, which are the same in another order; remove one of them",
            )
