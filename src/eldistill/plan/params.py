# SPDX-License-Identifier: Apache-2.0
"""The parameters of a project: params.yaml over workflow/params/*.yaml, checked, and resolved into plain dicts.

The schema (workflow/schemas/params.schema.yaml) is the one list of keys: type, range, default and meaning; schema.py checks
against it, and checks.py what it cannot say.

Values resolve in this order, later wins: default; then section by section along `like`, furthest first, its own keys
and after them its `per_data: {data: …}`. What a section says itself so beats everything that it inherits.

Values for a data setting hold also for those that are `like` it and have the same images at the same size: equal
source, files, path and resolution. Numbers tuned for one set of images say nothing of another.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eldistill.errors import Problem, quoted
from eldistill.numbers import declared
from eldistill.plan import checks, conflicts, questions, reading
from eldistill.plan.run import Run
from eldistill.plan.schema import (
    Wrong,
    add_numbers,
    check_value,
    fill_defaults,
    follow_reference,
    lasting_keys,
    merge_mappings,
    refuse_unknown,
    with_modules,
)
from eldistill.registry import available

SCHEMA = Path("workflow/schemas/params.schema.yaml")
HALF = 64  # pixels a side from which trainings are in half precision by default, as those of SiD, SiDA, CM and EDM2
SAME_IMAGES = ("source", "files", "path", "resolution")  # equal: `per_data` follows the `like` of a data setting


class Params:
    """A checked params.yaml. Sections come back as plain dicts with every value resolved."""

    def __init__(self, values: dict, root: Path):
        self.root = root
        self.schema = dict(_parsed((root / SCHEMA).read_text(encoding="utf-8")))
        self.definitions = with_modules(self.schema.pop("$defs"))
        # A section may lack what it is `like`, and its keys may depend on a module: `section` checks it resolved.
        loose = {name: dict(each) for name, each in self.definitions.items()}
        for kind in ("data", "codec", "teacher", "ensemble", "method", "supplement", "member"):
            loose[kind]["required"] = []
        for kind in ("method", "supplement", "member"):
            loose[kind]["additionalProperties"] = True
        self.values, self.checked = values, set[tuple]()  # checked: what checks need to look at once
        self.recorded_suite: Any = values.get("suite")  # of params.yaml itself, which DVC makes and records
        try:
            check_value(values, self.schema, "", loose)
            self._check()
        except Wrong as wrong:
            raise reading.with_file_name(wrong, root) from None

    def _check(self) -> None:
        if self.values["suite"] not in self.values["suites"]:
            refuse_unknown("suite", self.values["suite"], self.values["suites"])
        list(self.sections())
        checks.check_names(self)
        conflicts.check_blocks(self)
        conflicts.check_capitals(self)
        checks.check_evaluation(self)
        for suite in self.values["suites"]:
            self.studies(suite)
            list(self.runs(suite))

    def named(self, kind: str) -> dict[str, dict[str, Any]]:
        """The sections of a kind (data, teacher, ensemble, method or supplement) as they are written, by name."""
        if kind in ("method", "supplement"):
            return self.values["distil"][f"{kind}s"]
        return self.values[kind]

    def place(self, kind: str, name: str) -> str:
        """The name of a section in messages, such as distil.methods.di."""
        return f"distil.{kind}s.{name}" if kind in ("method", "supplement") else f"{kind}.{name}"

    def chain(self, kind: str, name: str, where: str, file: str = "params.yaml") -> list[dict[str, Any]]:
        """A section and those that it inherits from by `like`, furthest first, unresolved. Raises Wrong for unknown names and circles.

        file: that holds `name`, empty for the command line."""
        sections, seen = self.named(kind), list[str]()
        each: str | None = name
        while each is not None:
            if each not in sections:
                refuse_unknown(where, each, sections, "params.yaml" if seen else file)
            if each in seen:
                raise Wrong(where, f"goes in a circle ({' → '.join([*seen, each])}); remove one `like`")
            seen.append(each)
            where, each = f"{self.place(kind, each)}.like", sections[each].get("like")
        return [sections[each] for each in reversed(seen)]

    @functools.cache  # noqa: B019
    def images_of(self, data: str) -> tuple:
        """The values of the keys SAME_IMAGES, its own or inherited, which identify the images of a data setting."""
        merged: dict[str, Any] = functools.reduce(merge_mappings, self.chain("data", data, f"data.{data}"), {})
        return tuple(repr(merged.get(key)) for key in SAME_IMAGES)

    @functools.cache  # noqa: B019
    def ancestry(self, data: str | None) -> list[str]:
        """The data settings whose per_data values hold for this one, furthest first: itself, and those it is `like`
        that have the same images."""
        if data is None or data not in self.values["data"]:
            return []
        found, each = [data], self.values["data"][data].get("like")
        while each is not None and each in self.values["data"] and each not in found:
            found.append(each)
            each = self.values["data"][each].get("like")
        return [each for each in reversed(found) if self.images_of(each) == self.images_of(data)]

    def _layers(self, chain: list[dict], data: str | None) -> list[dict]:
        """The mappings whose merge is the resolved section, in the order of merging: each section, then its blocks for the data."""
        settings = self.ancestry(data)
        return [
            layer
            for section in chain
            for layer in (section, *(section.get("per_data", {}).get(setting, {}) for setting in settings))
        ]

    def status(self, kind: str, name: str, data: str | None = None) -> str | None:
        """Where the numbers of a section, for a data setting, come from: authors, paper, ours, or None if nobody says.

        Numbers that a data setting inherits, with whatever status, are ours for it unless a block of its own says more.
        """
        if data is None:
            return self.named(kind)[name].get("status")
        own: str | None
        for section in reversed(self.chain(kind, name, self.place(kind, name))):
            blocks = section.get("per_data", {})
            if own := blocks.get(data, {}).get("status"):
                return own
            if any("status" in blocks.get(each, {}) for each in self.ancestry(data)):
                return "ours"
        return None

    def section(self, kind: str, name: str, data: str | None = None, where: str | None = None) -> dict:
        """One resolved section: kind is data, teacher, ensemble, method or supplement. Raises Problem.

        where: what a name on the command line is, for a sentence about an unknown one."""
        return copy.deepcopy(self._section(kind, name, data, where))

    def peek(self, kind: str, name: str, data: str | None = None) -> dict:
        """Like `section`, without a copy: for checks, which ask for hundreds of sections and change none."""
        return self._section(kind, name, data, None)

    @functools.cache  # noqa: B019
    def _section(self, kind: str, name: str, data: str | None, where: str | None) -> dict:
        chain = self.chain(kind, name, where or self.place(kind, name), "" if where else "params.yaml")
        value: dict[str, Any] = functools.reduce(merge_mappings, self._layers(chain, data), {})
        value = {key: item for key, item in value.items() if key not in ("like", "per_data", "status")}
        if kind == "ensemble":
            value = copy.deepcopy(value)  # its members are filled where they lie; `fill` copies all others
        schema = self._schema(kind, value, self.place(kind, name))
        check_value(value, schema, self.place(kind, name), self.definitions)
        filled: dict[str, Any] = fill_defaults(value, schema, self.definitions)
        if filled.get("precision") == "auto":
            filled["precision"] = self._usual_precision(data)
        return filled

    def _usual_precision(self, data: str | None) -> str:
        # This depends on the images and not on the device, so that a plan is the same on every machine.
        if data is None or data not in self.values["data"]:
            return "float32"
        images = self._section("data", data, None, None)
        return "bfloat16" if images["source"] == "latents" or (images["resolution"] or 0) >= HALF else "float32"

    def _schema(self, kind: str, value: dict, where: str) -> dict:
        schema = self._open(kind)
        if kind in ("method", "supplement") and "file" not in value:  # before its numbers are called unknown
            raise Wrong(
                f"{where}.file",
                f"is missing; expected a module, one of {', '.join(available(f'{kind}s'))}, or a `like`",
            )
        if kind in ("method", "supplement") and isinstance(value.get("file"), str):
            add_numbers(schema, self._declared(f"{kind}s", value["file"], f"{where}.file"), f"{kind}s/{value['file']}")
        if kind == "ensemble":
            members = value.get("members", [])
            for index, member in enumerate(members if isinstance(members, list) else []):
                each = self._open("member")
                place = f"{where}.members[{index}]"
                if isinstance(member, dict) and isinstance(member.get("family"), str):
                    numbers = self._declared("ensemble", member["family"], f"{place}.family")
                    add_numbers(each, numbers, f"ensemble/{member['family']}")
                check_value(member, each, place, self.definitions)
                members[index] = fill_defaults(member, each, self.definitions)
            schema["properties"]["members"] = {**schema["properties"]["members"], "items": {"type": "object"}}
        return schema

    def _open(self, kind: str) -> dict:
        # A definition to which keys can be added: only what is added to is copied, hundreds of times in a load.
        schema = self.definitions[kind]
        return {**schema, "properties": dict(schema["properties"])}

    @staticmethod
    def _declared(kind: str, file: str, where: str) -> dict:
        try:
            return declared(kind, file)
        except Problem as problem:
            raise Wrong(where, f"is {quoted(file)}; {problem}") from None

    def sections(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Every section of every kind, resolved and checked, also for each data setting that overrides it."""
        for kind in ("data", "teacher", "ensemble", "method", "supplement"):
            for name, raw in self.named(kind).items():
                for data in [None, *raw.get("per_data", {})]:
                    if data is not None and data not in self.values["data"]:
                        refuse_unknown(f"{self.place(kind, name)}.per_data", data, self.values["data"])
                    value = checks.checked_section(self, kind, name, data, self.place(kind, name))
                yield kind, name, value

    def others_teachers(self) -> list[str]:
        """Names of the teachers that others have trained: those with a source or a file."""
        sections = {name: self._section("teacher", name, None, None) for name in self.values["teacher"]}
        return [name for name, each in sections.items() if each["source"] or each["file"]]

    def top(self, name: str, data: str | None = None) -> Any:
        """A single section or value of the top level (threads, device, distil, evaluate, tables), resolved."""
        return copy.deepcopy(self._top(name, data))

    @functools.cache  # noqa: B019  (parameters live as long as the program)
    def _top(self, name: str, data: str | None) -> Any:
        schema = follow_reference(self.schema["properties"][name], self.definitions)
        value = self.values.get(name, schema.get("default"))
        if isinstance(value, dict):
            value = {key: item for key, item in value.items() if key not in ("methods", "supplements")}
        value = copy.deepcopy(value)
        if isinstance(value, dict):
            merged: dict[str, Any] = functools.reduce(merge_mappings, self._layers([value], data), {})
            value = {key: item for key, item in merged.items() if key != "per_data"}
            with checks.of_data(self, name, data):
                check_value(value, {**schema, "required": []}, name, self.definitions)
        return fill_defaults(value, schema, self.definitions)

    def run(self, text: str, file: str = "params.yaml") -> Run:
        """`digits/di/el/0` as a Run whose names all exist. Raises Problem. file: that holds the text, empty for the command line."""
        parts = text.strip("/").split("/")
        if len(parts) != 4 or not parts[3].isdecimal():
            raise Problem(f"{quoted(text)} is not a run; expected DATA/METHOD/SUPPLEMENT/SEED, such as digits/di/el/0")
        run = Run(parts[0], parts[1], parts[2], int(parts[3]))
        for kind, name in (("data", run.data), ("method", run.method), *(("supplement", s) for s in run.supplements)):
            if name not in self.named(kind):
                refuse_unknown(f"{kind} of the run {text}", name, self.named(kind), file)
        if not self.has_numbers(run.method, run.data):
            raise Wrong(
                f"distil.methods.{run.method}",
                f"has no numbers for the data {run.data}; give it a block under per_data.{run.data} with n_images, batch and "
                f"rates, or type `python -m eldistill suggest {run.data}` for a start",
            )
        if len(set(run.supplements)) < len(run.supplements):
            raise Problem(f"the run {text} names a supplement twice; remove one of them")
        checks.check_run(self, run)
        checks.check_base_loss(self, text, run.data, run.method, run.supplements)
        return run

    @functools.cache  # noqa: B019
    def has_numbers(self, method: str, data: str) -> bool:
        return any("n_images" in each for each in self._layers(self.chain("method", method, "method"), data))

    def studies(self, suite: str) -> list[str]:
        """The studies of a suite, in the order in which its grids name them. Raises Problem for an unknown one."""
        known = self.top("tables")["studies"]
        found = list(dict.fromkeys(name for grid in self.values["suites"][suite] for name in grid.get("studies", [])))
        for name in found:
            if name not in known:
                refuse_unknown(f"suites.{suite}: a study", name, known)
        return found

    def runs(self, suite: str, study: str | None = None) -> Iterator[Run]:
        """The runs of a suite, or of one of its studies, in order, without repetition."""
        if suite not in self.values["suites"]:
            refuse_unknown("suite", suite, self.values["suites"], "")  # the key `suite` was checked before
        seen = set()
        for grid in self.values["suites"][suite]:
            if study is not None and study not in grid.get("studies", []):
                continue
            cells = (
                (d, m, s, n)
                for d in grid["data"] for m in grid["methods"] for s in grid["supplements"] for n in grid["seeds"]
            )  # fmt: skip
            for cell in cells:
                run = self.run("/".join(map(str, (*cell[:3], int(cell[3])))))
                if run not in seen:
                    seen.add(run)
                    yield run

    def without_site(self, kind: str, value: dict) -> dict:
        """The part of a value that enters a recipe: without keys that only describe the machine, and without neutral defaults."""
        schema = (
            self.definitions[kind]
            if kind in self.definitions
            else follow_reference(self.schema["properties"][kind], self.definitions)
        )
        known = dict(schema["properties"])
        if kind in ("method", "supplement"):
            known |= declared(f"{kind}s", value["file"])
        elif kind == "member":
            known |= declared("ensemble", value["family"])
        kept = lasting_keys(value, known, self.definitions)
        if kind == "ensemble":
            kept["members"] = [self.without_site("member", member) for member in kept["members"]]
        return kept


@functools.cache
def _parsed(text: str) -> dict[str, Any]:
    """The schema, which nothing changes: once for a process, however many files it reads."""
    parsed: dict[str, Any] = reading.read_yaml(text)
    return parsed


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml over the files of workflow/params beside it; the project's root is its folder. Raises
    Problem."""
    path = Path(path)
    return Params(reading.merge_files(reading.read_files(path.parent, path)), path.parent)


def from_snakemake(config: dict[str, Any], given: dict[str, Any], root: str | Path = ".") -> Params:
    """Params from Snakemake's config. given: what --config, --configfile and a profile put over the files of the project.

    Only `suite` may be given there. The steps read the files, and DVC records them: another number would be planned and
    not computed. Raises Problem that names it.
    """
    found = reading.read_files(Path(root))
    if set(given) - {"suite"}:
        reading.refuse_config(given, found)
    values = reading.merge_files(found)
    project = from_values(values | {"suite": config.get("suite", values.get("suite"))}, root)
    project.recorded_suite = values.get("suite", project.values["suite"])
    questions.check_suite(project, project.values["suite"])
    return project


def from_values(values: Any, root: str | Path = ".") -> Params:
    """Params from a mapping that is already read (Snakemake's config)."""
    if not isinstance(values, dict):
        raise Problem(f"params.yaml holds {type(values).__name__}; expected a mapping of sections")
    return Params(values, Path(root))
