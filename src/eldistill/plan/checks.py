# SPDX-License-Identifier: Apache-2.0
"""Checks of parameters that a schema cannot express: names that must exist, and numbers that must fit together."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from eldistill.errors import Problem, quoted
from eldistill.paths import TABLE_NAMES
from eldistill.plan import combinations, embeddings, teachers
from eldistill.plan.run import Run
from eldistill.plan.schema import Wrong, expected_value, merge_mappings, refuse_unknown
from eldistill.registry import defines, readers, spaces

LARGEST = 2**63 - 1  # seed of torch; the schema has it as the maximum of every seed


class Sections(Protocol):
    """The part of params.Params that these checks use."""

    values: dict[str, Any]
    checked: set[tuple]
    definitions: dict[str, dict[str, Any]]

    def named(self, kind: str) -> dict[str, dict[str, Any]]: ...
    def place(self, kind: str, name: str) -> str: ...
    def chain(self, kind: str, name: str, where: str) -> list[dict[str, Any]]: ...
    def peek(self, kind: str, name: str, data: str | None = None) -> dict[str, Any]: ...
    def section(self, kind: str, name: str, data: str | None = None, where: str | None = None) -> dict[str, Any]: ...
    def top(self, name: str, data: str | None = None) -> Any: ...
    def ancestry(self, data: str | None) -> list[str]: ...
    def has_numbers(self, method: str, data: str) -> bool: ...


class Project(Sections, Protocol):
    """The part of params.Params that checks of a whole suite use."""

    root: Path

    def runs(self, suite: str, study: str | None = None) -> Iterator[Run]: ...
    def studies(self, suite: str) -> list[str]: ...
    def images_of(self, data: str) -> tuple: ...


# --- where a mistake stands -----------------------------------------------------------------------------


def checked_section(params: Sections, kind: str, name: str, data: str | None, where: str) -> dict[str, Any]:
    """The resolved section of this kind and name for a data setting, checked.

    data: a data setting whose `per_data` values count, or None. where: the name of the section in messages. Raises Wrong at the
    first mistake; it names the section that contains it, not one that inherits it.
    """
    try:
        return _fitting(params, kind, name, data, where)
    except Wrong as wrong:
        found = wrong
    rest = found.where.removeprefix(where).removeprefix(params.place(kind, name))
    for above in _above(params, kind, name):
        place = params.place(kind, above)
        try:
            _fitting(params, kind, above, data, place)
        except Wrong as wrong:
            if (wrong.where, wrong.text) == (place + rest, found.text):
                raise wrong from None
    raise found


def _above(params: Sections, kind: str, name: str) -> list[str]:
    # The names that a section is like, furthest first.
    found: list[str] = []
    sections = params.named(kind)
    while (like := sections[name].get("like")) in sections and like not in found:
        name = like
        found.insert(0, like)
    return found


def _fitting(params: Sections, kind: str, name: str, data: str | None, where: str) -> dict[str, Any]:
    with of_data(params, params.place(kind, name), data):
        value = params.peek(kind, name, data)
        check_section(params, kind, name, where, value)
    return value


@contextlib.contextmanager
def of_data(params: Sections, place: str, data: str | None) -> Iterator[None]:
    """Context: a Wrong about a section for a data setting may also be caused by its `per_data` blocks, whose places are added."""
    try:
        yield
    except Wrong as wrong:
        rest = wrong.where.removeprefix(place).removeprefix(f" on {data}")
        wrong.places += [f"{place}.per_data.{setting}{rest}" for setting in params.ancestry(data)]
        raise


# --- one section ----------------------------------------------------------------------------------------


def check_section(params: Sections, kind: str, name: str, where: str, value: dict[str, Any]) -> None:
    """Raise Wrong at the first mistake in a resolved section. where: the name of the section in messages."""
    if kind == "data":
        _data(params, where, value)
    if kind == "teacher":
        teachers.check_teacher(params, where, value)
    if kind == "supplement" and "ensemble" in value and value["ensemble"] not in params.values["ensemble"]:
        refuse_unknown(f"{where}.ensemble", value["ensemble"], params.values["ensemble"])
    if kind == "ensemble":
        embeddings.check_ensemble(where, value)
    for arm in value["rates"] if kind == "method" else ():
        _supplement(params, f"{where}.rates", arm)
    if kind == "method" and value["start_from"] is not None:
        _start(params, name, f"{where}.start_from", value["start_from"])
    if kind in ("method", "teacher") and value["n_images"] % value["batch"]:
        raise Wrong(
            f"{where}.n_images",
            f"is {value['n_images']}; expected a multiple of its batch, "
            f"{value['batch']}, such as {max(1, round(value['n_images'] / value['batch'])) * value['batch']}",
        )


def _data(params: Sections, where: str, value: dict[str, Any]) -> None:
    source, known = value["source"], params.definitions["data"]["properties"]
    if value["teacher"] not in params.values["teacher"]:
        refuse_unknown(f"{where}.teacher", value["teacher"], params.values["teacher"])
    for needed in readers()[source].needs:
        if value[needed] is None:
            raise Wrong(f"{where}.{needed}", f"is missing; source: {source} needs it")
    _codec(params, where, value)
    combinations.check_data(where, value)
    if isinstance(value["background"], str) and value["background"] not in ("white", "black"):
        raise Wrong(
            f"{where}.background", f"is {quoted(value['background'])}; expected {expected_value(known['background'])}"
        )
    options = {key for each in readers().values() for key in each.options}
    for key in sorted(options - set(readers()[source].options)):
        if value[key] != known[key]["default"]:
            raise Wrong(f"{where}.{key}", f"is {quoted(value[key])}, but source: {source} does not read it; remove it")


def _codec(params: Sections, where: str, data: dict[str, Any]) -> None:
    """Check that latents have one number for each channel and name a data setting of pixels, and that pixels have neither."""
    codec, latent = data["codec"], data["source"] == "latents"
    lists = [isinstance(codec[key], list) for key in ("mean", "std")]
    if lists != [latent, latent] or (latent and len(codec["mean"]) != len(codec["std"])):
        wanted = "two lists, a number for each channel" if latent else "two numbers"
        raise Wrong(
            f"{where}.codec",
            f"has mean {codec['mean']} and std {codec['std']}; source: {data['source']} needs {wanted}",
        )
    pixels = data["pixels"]
    if pixels is None:
        return
    if pixels not in params.values["data"]:
        refuse_unknown(f"{where}.pixels", pixels, params.values["data"])
    if not latent or params.section("data", pixels)["source"] == "latents":
        raise Wrong(
            f"{where}.pixels",
            f"is {quoted(pixels)}; expected a data setting of images, and only where source is latents: name one, or remove it",
        )


def _start(params: Sections, name: str, where: str, start: str | None) -> None:
    """Check that `start_from` is METHOD/SUPPLEMENT with existing names and leads into no circle. name: the method with the key."""
    seen: list[str] = []
    while start is not None:
        method, _, supplement = start.partition("/")
        if not supplement or "/" in supplement:
            raise Wrong(where, f"is {quoted(start)}; expected METHOD/SUPPLEMENT, such as sid/none")
        for kind, each in (("method", method), *(("supplement", s) for s in supplement.split("+") if s != "none")):
            if each not in params.named(kind):
                refuse_unknown(f"{where}: the {kind}", each, params.named(kind))
        if method in seen:
            raise Wrong(where, f"goes in a circle ({' → '.join([*seen, method])}); remove one `start_from`")
        seen.append(method)
        layers = params.chain("method", method, where)
        start = functools.reduce(merge_mappings, layers, dict[str, Any]()).get("start_from")
    if name in seen:
        raise Wrong(where, "goes in a circle, but a method cannot start from itself; name another method, or remove it")


# --- a run ----------------------------------------------------------------------------------------------


def check_run(params: Sections, run: Run) -> None:
    """Raise Problem if a Run has too large a seed, or Wrong at a mistake in its method on its data setting."""
    if run.seed > LARGEST:
        raise Problem(f"the run {run} has a seed above {LARGEST}, the largest that torch takes; choose a smaller one")
    key = (run.data, run.method)
    if key not in params.checked:
        where = f"{params.place('method', run.method)} on {run.data}"
        checked_section(params, "method", run.method, run.data, where)
        params.checked.add(key)


def check_base_loss(params: Sections, text: str, data: str, method: str, supplements: Iterable[str]) -> None:
    """Raise Wrong for a run whose method has no base loss, and whose supplements train nothing without one. text: of the run."""
    if defines(f"methods/{params.section('method', method, data)['file']}", "generator_terms"):
        return
    supplements = list(supplements)
    if not supplements:
        raise Wrong(
            f"the run {text}",
            f"has the method {method}, which has no loss of its own, and no supplement, so nothing would be trained; "
            f"expected a supplement with weighting: fixed, such as {method}/el-fixed",
        )
    for name in supplements:
        if (weighting := params.section("supplement", name, data).get("weighting", "fixed")) != "fixed":
            raise Wrong(
                f"distil.supplements.{name}.weighting",
                f"is {weighting} in the run {text}, whose method has no loss of its own with a gradient that weight could be a share "
                f"of; expected fixed: name a supplement with it, such as {name}-fixed: {{like: {name}, weighting: fixed}}",
            )


# --- all of them ----------------------------------------------------------------------------------------


def check_names(params: Sections) -> None:
    """Raise Wrong at the first name that is not allowed, and at the first sections that do not fit together."""
    for kind in ("data", "teacher", "ensemble", "method", "supplement"):
        for name in params.named(kind):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(name)) or name in ("none", "real", "suite"):
                raise Wrong(
                    params.place(kind, name),
                    "cannot be a name; expected letters, digits, . _ - but not none, real or suite, which are reserved",
                )
    for suite in params.values["suites"]:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(suite)):
            raise Wrong(
                f"suites.{suite}", "cannot be a name, because it becomes a folder; expected letters, digits, . _ -"
            )
    for name in params.values["data"]:
        _taught_alike(params, name)
    if params.top("distil")["compile"] and params.top("distil")["recompute"]:
        raise Wrong(
            "distil.compile",
            "and distil.recompute are both true, but a compiled network decides by itself what to keep and what to compute again; set one "
            "of them to false",
        )
    _tables(params, params.top("tables"))


def _taught_alike(params: Sections, name: str) -> None:
    # A data setting and the one of its teacher: networks see the same encoding.
    data = params.section("data", name)
    taught = params.section("data", params.section("teacher", data["teacher"])["data"])
    for key in ("codec", "labels"):
        if data[key] != taught[key]:
            raise Wrong(
                f"data.{name}.{key}",
                f"is {quoted(data[key])}, but its teacher {data['teacher']} is trained with {quoted(taught[key])}; make them equal, or "
                "give it a teacher of its own",
            )


def _tables(params: Sections, tables: dict[str, Any]) -> None:
    for name in tables["studies"]:  # first, because names of studies become names of files
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", str(name)) or name in TABLE_NAMES:
            raise Wrong(
                f"tables.studies.{name}",
                f"cannot be a name; expected letters, digits, _ - but none of {', '.join(TABLE_NAMES)}, which name other tables",
            )
    _supplement(params, "tables.baseline", tables["baseline"])
    for name, study in tables["studies"].items():
        _against(params, f"tables.studies.{name}.against", study)


ACROSS = ("contrast", "central", "speed")  # kinds of studies whose baseline may be METHOD/SUPPLEMENT


def _against(params: Sections, where: str, study: dict[str, Any]) -> None:
    method, _, supplement = study["against"].rpartition("/")
    if method and method not in params.named("method"):
        refuse_unknown(where, method, params.named("method"))
    if method and study["kind"] not in ACROSS:
        raise Wrong(
            where,
            f"is {quoted(study['against'])}; only studies of the kinds {', '.join(ACROSS)} can name a method: give a supplement",
        )
    _supplement(params, where, supplement)


def _supplement(params: Sections, where: str, supplement: str) -> None:
    if "/" in supplement:
        raise Wrong(where, f"is {quoted(supplement)}; expected a supplement without its method, such as none")
    if any(part not in params.named("supplement") for part in supplement.split("+")) and supplement != "none":
        refuse_unknown(where, supplement, ["none", *params.named("supplement")])


def check_evaluation(params: Sections) -> None:
    """Raise Wrong at the first unknown feature space in `evaluate` or in its `per_data` blocks."""
    for data in [None, *params.values.get("evaluate", {}).get("per_data", {})]:
        if data is not None and data not in params.values["data"]:
            refuse_unknown("evaluate.per_data", data, params.values["data"])
        section, where = params.top("evaluate", data), "evaluate" if data is None else f"evaluate.per_data.{data}"
        for key, known in (
            ("features", spaces()),
            ("curve_features", section["features"]),
            ("n_of", section["features"]),
        ):
            for name in section[key]:
                if name not in known:
                    refuse_unknown(f"{where}.{key}", name, known)
