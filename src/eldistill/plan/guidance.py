# SPDX-License-Identifier: Apache-2.0
"""Guided teachers as params.yaml describes them: which teacher is guided, by what, and whether both fit together.

A guided teacher is made of teachers that params.yaml names beside it and has no file of its own. sampling/guidance.py computes it
and checks the files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from eldistill.errors import quoted
from eldistill.plan import sizes
from eldistill.plan.schema import Wrong, refuse_unknown

Section = dict[str, Any]
OWN = ("data", "guidance", "steps", "check")  # keys that count for a guided teacher


class Resolved(Protocol):
    """The part of params.Params that gives resolved sections."""

    def peek(self, kind: str, name: str, data: str | None = None) -> Section: ...


class Sections(Resolved, Protocol):
    """The part of params.Params that the checks use."""

    values: dict[str, Any]
    definitions: dict[str, dict[str, Any]]


def main_name(params: Resolved, name: str) -> str:
    """The teacher whose network and file a teacher has: itself, or the one that is guided."""
    guidance = params.peek("teacher", name)["guidance"]
    return name if guidance is None else guidance["of"]


def guidance_of(params: Resolved, name: str) -> Section | None:
    """What recipes contain of a teacher's guidance: {of, guide, weight} and the limits of the noise level that are given.

    None for a teacher without guidance, and with weight 1, which is the same.
    """
    guidance = params.peek("teacher", name)["guidance"]
    if guidance is None or guidance["weight"] == 1:
        return None
    limits = {key: guidance[key] for key in ("sigma_low", "sigma_high") if guidance[key] is not None}
    return {key: guidance[key] for key in ("of", "guide", "weight")} | limits


def parts_of(params: Resolved, name: str) -> list[str]:
    """The teachers with files that a teacher consists of: itself, or the guided one and its guide, if that is another."""
    guidance = guidance_of(params, name)
    guide = guidance["guide"] if guidance else None
    return [main_name(params, name), *([guide] if guide else [])]


# --- checks ---------------------------------------------------------------------------------------------


def check_guided(params: Sections, where: str, teacher: Section) -> None:
    """Raise Wrong if a resolved teacher with guidance names teachers that do not fit, or has keys that do not count."""
    guidance = teacher["guidance"]
    _own_keys(params, where, teacher)
    where = f"{where}.guidance"
    _named(params, f"{where}.of", guidance["of"])
    _fits(params, f"{where}.of", guidance["of"], teacher["data"])
    if guidance["guide"] is None:
        _unlabelled(params, where, guidance["of"])
    else:
        _named(params, f"{where}.guide", guidance["guide"])
        if guidance["guide"] == guidance["of"]:
            raise Wrong(
                f"{where}.guide",
                f"is {guidance['guide']}, which is guided itself; name another teacher, or set guide to null for its passes "
                "without a label",
            )
        _fits(params, f"{where}.guide", guidance["guide"], teacher["data"], unlabelled=True)
    low, high = guidance["sigma_low"] or 0.0, guidance["sigma_high"]
    if high is not None and low >= high:
        raise Wrong(f"{where}.sigma_low", f"is {low:g} and sigma_high {high:g}; expected sigma_low below sigma_high")


def _own_keys(params: Sections, where: str, teacher: Section) -> None:
    known = params.definitions["teacher"]["properties"]
    for key, value in teacher.items():
        given = key == "network" or (not isinstance(value, dict) and value != known[key].get("default"))
        if key not in OWN and given:
            raise Wrong(
                f"{where}.{key}",
                f"does not count beside guidance, which takes the network of teacher.{teacher['guidance']['of']}; remove one of them",
            )


def _named(params: Sections, where: str, name: str) -> None:
    if name not in params.values["teacher"]:
        refuse_unknown(where, name, params.values["teacher"])
    if params.peek("teacher", name)["guidance"] is not None:
        raise Wrong(where, f"is {name}, which has guidance itself; name a teacher with a network, a source or a file")


def _fits(params: Sections, where: str, name: str, data: str, unlabelled: bool = False) -> None:
    # Whether a named teacher was trained on images like those of a data setting; unlabelled: it may know no labels.
    mine, its = (params.peek("data", each) for each in (data, params.peek("teacher", name)["data"]))
    facts: dict[str, Callable[[Section], Any]] = {
        "codec": lambda data: data["codec"],
        "pixels a side": sizes.side_of,
        "channels": sizes.channels_of,
    }
    for what, of in facts.items():
        if None not in (of(mine), of(its)) and of(mine) != of(its):
            raise Wrong(
                where,
                f"is {name}, whose data has {of(its)} as {what}, but data.{data} has {of(mine)}; name a teacher of the same images",
            )
    if mine["labels"] != its["labels"] and not (unlabelled and mine["labels"]):
        raise Wrong(
            where,
            f"is {name}, whose data has labels: {quoted(its['labels'])}, but data.{data} has {quoted(mine['labels'])}; name a teacher "
            "that knows the same classes" + (", or none" if unlabelled else ""),
        )


def _unlabelled(params: Sections, where: str, name: str) -> None:
    # Guidance without a second network needs one that knows labels and has seen images without them.
    teacher = params.peek("teacher", name)
    if not params.peek("data", teacher["data"])["labels"]:
        raise Wrong(
            f"{where}.guide",
            f"is null, which guides by passes without a label, but teacher.{name} knows no labels; name a worse teacher of the same "
            "images as guide",
        )
    if "network" in teacher and not teacher["label_dropout"]:
        raise Wrong(
            f"{where}.guide",
            f"is null, which guides by passes without a label, but teacher.{name} was trained with a label on every image; set "
            f"teacher.{name}.label_dropout, such as 0.1, or name another teacher as guide",
        )
