# SPDX-License-Identifier: Apache-2.0
"""What a schema cannot say of parameters: names that must exist, numbers that must fit together."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Any, Protocol

from eldistill.errors import nearest
from eldistill.paths import TABLE_NAMES
from eldistill.plan.schema import Wrong, expected, merge, unknown
from eldistill.registry import available, readers, settings, spaces


class Sections(Protocol):
    """What the checks need of parameters (params.Params)."""

    values: dict[str, Any]
    definitions: dict[str, dict[str, Any]]

    def named(self, kind: str) -> dict[str, dict[str, Any]]: ...
    def place(self, kind: str, name: str) -> str: ...
    def chain(self, kind: str, name: str, where: str) -> list[dict[str, Any]]: ...
    def section(self, kind: str, name: str, data: str | None = None, where: str | None = None) -> dict[str, Any]: ...
    def top(self, name: str, data: str | None = None) -> Any: ...
    def ancestry(self, data: str | None) -> list[str]: ...


# --- where a mistake stands -----------------------------------------------------------------------------


def checked(params: Sections, kind: str, name: str, data: str | None, where: str) -> dict[str, Any]:
    """A resolved section, for a data setting, that fits. where: how sentences call it.

    Raises Wrong at the first thing that does not fit, of the section that has it: one that inherits a mistake is not named.
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
        value = params.section(kind, name, data)
        meaning(params, kind, name, where, value)
    return value


@contextlib.contextmanager
def of_data(params: Sections, place: str, data: str | None) -> Iterator[None]:
    """What is wrong with a section for a data setting may stand in the blocks that it has for that one."""
    try:
        yield
    except Wrong as wrong:
        rest = wrong.where.removeprefix(place).removeprefix(f" on {data}")
        wrong.places += [f"{place}.per_data.{setting}{rest}" for setting in params.ancestry(data)]
        raise


# --- one section ----------------------------------------------------------------------------------------


def meaning(params: Sections, kind: str, name: str, where: str, value: dict[str, Any]) -> None:
    """Raise Wrong at the first thing in a resolved section that does not fit. where: how sentences call it."""
    if kind == "data":
        _data(params, where, value)
    if kind == "teacher":
        _teacher(params, where, value)
    if kind == "supplement" and "ensemble" in value and value["ensemble"] not in params.values["ensemble"]:
        unknown(f"{where}.ensemble", value["ensemble"], params.values["ensemble"])
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
        unknown(f"{where}.teacher", value["teacher"], params.values["teacher"])
    for needed in readers()[source].needs:
        if value[needed] is None:
            raise Wrong(f"{where}.{needed}", f"is missing; source: {source} needs it")
    _codec(params, where, value)
    if isinstance(value["background"], str) and value["background"] not in ("white", "black"):
        raise Wrong(f"{where}.background", f"is {value['background']!r}; expected {expected(known['background'])}")
    options = {key for each in readers().values() for key in each.options}
    for key in sorted(options - set(readers()[source].options)):
        if value[key] != known[key]["default"]:
            raise Wrong(f"{where}.{key}", f"is {value[key]!r}, but source: {source} does not read it; remove it")


def _codec(params: Sections, where: str, data: dict[str, Any]) -> None:
    """Latents have a number for each channel, and pixels to be compared with; pixels have neither."""
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
        unknown(f"{where}.pixels", pixels, params.values["data"])
    if not latent or params.section("data", pixels)["source"] == "latents":
        raise Wrong(
            f"{where}.pixels",
            f"is {pixels!r}; expected null, because only latents have `pixels`, or a data setting of images: set source to latents, or name one",
        )


def _teacher(params: Sections, where: str, value: dict[str, Any]) -> None:
    if value["data"] not in params.values["data"]:
        unknown(f"{where}.data", value["data"], params.values["data"])
    theirs = value["source"] is not None or value["file"] is not None
    if theirs == ("network" in value):
        both = "a network and a source or a file" if theirs else "neither a network to train nor a source or a file"
        raise Wrong(where, f"has {both}; give one of `network`, `source` and `file`")
    if value["state"] is not None and not theirs:
        raise Wrong(
            f"{where}.state",
            "is only for a teacher from a `source` or a `file`; remove it, because this teacher is trained",
        )
    if value["precision"] != "float32" and theirs:
        raise Wrong(
            f"{where}.precision",
            "is only for a teacher that is trained; remove it, because this one comes from a source or a file",
        )
    if not theirs:
        _network(f"{where}.network", value["network"])


def _network(where: str, network: dict[str, Any]) -> None:
    file = network.get("network")
    if file not in available("networks"):
        unknown(f"{where}.network", file, available("networks"))
    known = [name for name in settings(file) if name not in ("img_resolution", "img_channels", "label_dim")]
    for key in network:
        if key != "network" and key not in known:
            raise Wrong(
                f"{where}.{key}",
                f"is not a known key (found {network[key]!r}); expected one of {', '.join(known)}{nearest(key, known)}",
            )


def _start(params: Sections, name: str, where: str, start: str | None) -> None:
    """METHOD/SUPPLEMENT whose names exist, and no circle of such starts. name: the method that has it."""
    seen: list[str] = []
    while start is not None:
        method, _, supplement = start.partition("/")
        if not supplement or "/" in supplement:
            raise Wrong(where, f"is {start!r}; expected METHOD/SUPPLEMENT, such as sid/none")
        for kind, each in (("method", method), *(("supplement", s) for s in supplement.split("+") if s != "none")):
            if each not in params.named(kind):
                unknown(f"{where}: the {kind}", each, params.named(kind))
        if method in seen:
            raise Wrong(where, f"goes in a circle ({' → '.join([*seen, method])}); remove one `start_from`")
        seen.append(method)
        layers = params.chain("method", method, where)
        start = functools.reduce(merge, layers, dict[str, Any]()).get("start_from")
    if name in seen:
        raise Wrong(where, "goes in a circle, but a method cannot start from itself; name another method, or remove it")


# --- all of them ----------------------------------------------------------------------------------------


def names(params: Sections) -> None:
    """Raise Wrong at the first name that cannot be one, and at what does not fit between sections."""
    for kind in ("data", "teacher", "ensemble", "method", "supplement"):
        for name in params.named(kind):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(name)) or name in ("none", "real", "suite"):
                raise Wrong(
                    params.place(kind, name),
                    "cannot be a name; expected letters, digits, . _ - but not none, real or suite, which are reserved",
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
                f"is {data[key]!r}, but its teacher {data['teacher']} is trained with {taught[key]!r}; make them equal, or give "
                "it a teacher of its own",
            )


def _tables(params: Sections, tables: dict[str, Any]) -> None:
    for name in tables["studies"]:  # before a name is read: it stands in names of files
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", str(name)) or name in TABLE_NAMES:
            raise Wrong(
                f"tables.studies.{name}",
                f"cannot be a name; expected letters, digits, _ - but none of {', '.join(TABLE_NAMES)}, which name other tables",
            )
    _supplement(params, "tables.baseline", tables["baseline"])
    for name, study in tables["studies"].items():
        _against(params, f"tables.studies.{name}.against", study)


def _against(params: Sections, where: str, study: dict[str, Any]) -> None:
    method, _, supplement = study["against"].rpartition("/")
    if method and method not in params.named("method"):
        unknown(where, method, params.named("method"))
    if method and study["kind"] != "contrast":
        raise Wrong(
            where,
            f"is {study['against']!r}; only studies of the kind contrast can name a method: give a supplement",
        )
    _supplement(params, where, supplement)


def _supplement(params: Sections, where: str, supplement: str) -> None:
    method = supplement.rpartition("/")[0]
    if method:
        unknown(where, method, params.named("method"))
    if any(part not in params.named("supplement") for part in supplement.split("+")) and supplement != "none":
        unknown(where, supplement, ["none", *params.named("supplement")])


def evaluation(params: Sections) -> None:
    """Raise Wrong at a feature space that there is not, of `evaluate` and of what it has for a data setting."""
    for data in [None, *params.values.get("evaluate", {}).get("per_data", {})]:
        if data is not None and data not in params.values["data"]:
            unknown("evaluate.per_data", data, params.values["data"])
        section, where = params.top("evaluate", data), "evaluate" if data is None else f"evaluate.per_data.{data}"
        for key, known in (
            ("features", spaces()),
            ("curve_features", section["features"]),
            ("n_of", section["features"]),
        ):
            for name in section[key]:
                if name not in known:
                    unknown(f"{where}.{key}", name, known)
