# SPDX-License-Identifier: Apache-2.0
"""params.yaml: read, checked against workflow/schemas/params.schema.yaml, resolved into frozen dataclasses.

The schema is the one list of keys: type, range, default and meaning; eldistill.plan.schema checks against it.

Values resolve in this order, later wins: default; then section by section along `like`, furthest first, its own keys
and after them its `per_data: {data: …}`. What a section says itself so beats everything that it inherits.

Values for a data setting hold also for those that are `like` it and have the same images at the same size: equal
source, files, path and resolution. Numbers tuned for one set of images say nothing of another.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from eldistill.errors import Problem, nearest
from eldistill.numbers import declared
from eldistill.paths import TABLE_NAMES
from eldistill.plan.schema import check, expected, fill, follow, lasting
from eldistill.registry import available, settings, spaces

SCHEMA = Path("workflow/schemas/params.schema.yaml")
# Options of a source, and which of them it reads (one not named here: all).
HALF = 64  # pixels a side from which trainings are in half precision by default, as those of SiD, SiDA, CM and EDM2
SAME_IMAGES = ("source", "files", "path", "resolution")  # equal: `per_data` follows the `like` of a data setting
OPTIONS = {"files", "path", "crop", "resolution", "pixels", "background", "orientation", "bits"}
READ = {"digits": set(), "idx": {"files", "resolution"}, "cifar10": {"path"}, "folder": OPTIONS - {"files", "pixels"},
        "latents": {"path", "pixels"}}  # fmt: skip


def merge(below: dict, above: dict) -> dict:
    """`above` over `below`; mappings are merged, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def freeze(name: str, value):
    """Nested mappings as frozen dataclasses, lists as tuples."""
    if isinstance(value, dict):
        fields = [(key, object) for key in value]
        kind = dataclasses.make_dataclass(name, fields, frozen=True)
        return kind(**{key: freeze(key, item) for key, item in value.items()})
    return tuple(freeze(name, item) for item in value) if isinstance(value, list) else value


# --- params.yaml --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """One distillation: data setting, method, supplement(s) joined by +, seed. str(run) is its folder."""

    data: str
    method: str
    supplement: str
    seed: int

    def __str__(self) -> str:
        return f"{self.data}/{self.method}/{self.supplement}/{self.seed}"

    @property
    def supplements(self) -> tuple[str, ...]:
        """The supplements one by one; empty for `none`."""
        return () if self.supplement == "none" else tuple(self.supplement.split("+"))


class Params:
    """A checked params.yaml. Sections come back as plain dicts with every value resolved."""

    def __init__(self, values: dict, root: Path):
        self.root = root
        self.schema = dict(_parsed((root / SCHEMA).read_text(encoding="utf-8")))
        self.definitions = self.schema.pop("$defs")
        # A section may lack what it is `like`, and its keys may depend on a module: `section` checks it resolved.
        loose = {name: dict(each) for name, each in self.definitions.items()}
        for kind in ("data", "teacher", "ensemble", "method", "supplement", "member"):
            loose[kind]["required"] = []
        for kind in ("method", "supplement", "member"):
            loose[kind]["additionalProperties"] = True
        check(values, self.schema, "", loose)
        self.values = values
        if values["suite"] not in values["suites"]:
            self._unknown("suite", values["suite"], values["suites"])
        list(self._sections())
        self._check_names()
        for data in [None, *values.get("evaluate", {}).get("per_data", {})]:
            if data is not None and data not in values["data"]:
                self._unknown("evaluate.per_data", data, values["data"])
            section, where = self.top("evaluate", data), "evaluate" if data is None else f"evaluate.per_data.{data}"
            for key, known in (
                ("features", spaces()),
                ("curve_features", section["features"]),
                ("n_of", section["features"]),
            ):
                for name in section[key]:
                    if name not in known:
                        self._unknown(f"{where}.{key}", name, known)
        for suite in values["suites"]:
            list(self.runs(suite))

    @staticmethod
    def _unknown(where: str, name: str, known) -> None:
        raise Problem(
            f"params.yaml: {where} is {name!r}; expected one of {', '.join(map(str, known))}{nearest(name, known)}"
        )

    def _named(self, kind: str) -> dict:
        if kind in ("method", "supplement"):
            return self.values["distil"][f"{kind}s"]
        return self.values[kind]

    def _place(self, kind: str, name: str) -> str:
        return f"distil.{kind}s.{name}" if kind in ("method", "supplement") else f"{kind}.{name}"

    def _chain(self, kind: str, name: str, where: str) -> list[dict]:
        sections, chain, seen = self._named(kind), [], []
        while name is not None:
            if name not in sections:
                self._unknown(where, name, sections)
            if name in seen:
                raise Problem(f"params.yaml: {where} goes in a circle ({' → '.join([*seen, name])}); remove one `like`")
            seen.append(name)
            chain.insert(0, sections[name])
            where, name = f"{self._place(kind, name)}.like", sections[name].get("like")
        return chain

    @functools.cache  # noqa: B019
    def _images_of(self, data: str) -> tuple:
        """Which images a data setting has: what it gives, or inherits, for each key of SAME_IMAGES."""
        merged = functools.reduce(merge, self._chain("data", data, f"data.{data}"), {})
        return tuple(repr(merged.get(key)) for key in SAME_IMAGES)

    @functools.cache  # noqa: B019
    def _ancestry(self, data: str | None) -> list[str]:
        """The data settings whose per_data values hold for this one, furthest first: itself, and those it is `like`
        that have the same images."""
        if data is None or data not in self.values["data"]:
            return []
        found, each = [data], self.values["data"][data].get("like")
        while each is not None and each in self.values["data"] and each not in found:
            found.append(each)
            each = self.values["data"][each].get("like")
        return [each for each in reversed(found) if self._images_of(each) == self._images_of(data)]

    def _layers(self, chain: list[dict], data: str | None) -> list[dict]:
        """What gives values, furthest first: of every section its own keys, and then those that it has for the data."""
        settings = self._ancestry(data)
        return [
            layer
            for section in chain
            for layer in (section, *(section.get("per_data", {}).get(setting, {}) for setting in settings))
        ]

    def section(self, kind: str, name: str, data: str | None = None, where: str | None = None) -> dict:
        """One resolved section: kind is data, teacher, ensemble, method or supplement. Raises Problem."""
        return copy.deepcopy(self._section(kind, name, data, where))

    @functools.cache  # noqa: B019
    def _section(self, kind: str, name: str, data: str | None, where: str | None) -> dict:
        chain = self._chain(kind, name, where or self._place(kind, name))
        value = functools.reduce(merge, self._layers(chain, data), {})
        value = {key: item for key, item in value.items() if key not in ("like", "per_data")}
        if kind == "ensemble":
            value = copy.deepcopy(value)  # its members are filled where they lie; `fill` copies all others
        schema = self._schema(kind, value, self._place(kind, name))
        check(value, schema, self._place(kind, name), self.definitions)
        filled = fill(value, schema, self.definitions)
        if filled.get("precision") == "auto":
            filled["precision"] = self._usual_precision(data)
        return filled

    def _usual_precision(self, data: str | None) -> str:
        # By the images and never by the device: a plan is the same everywhere.
        if data is None or data not in self.values["data"]:
            return "float32"
        images = self._section("data", data, None, None)
        return "bfloat16" if images["source"] == "latents" or (images["resolution"] or 0) >= HALF else "float32"

    def _schema(self, kind: str, value: dict, where: str) -> dict:
        schema = self._open(kind)
        if kind in ("method", "supplement") and isinstance(value.get("file"), str):
            schema["properties"] |= self._declared(f"{kind}s", value["file"], f"{where}.file")
        if kind == "ensemble":
            members = value.get("members", [])
            for index, member in enumerate(members if isinstance(members, list) else []):
                each = self._open("member")
                place = f"{where}.members[{index}]"
                if isinstance(member, dict) and isinstance(member.get("family"), str):
                    each["properties"] |= self._declared("ensemble", member["family"], f"{place}.family")
                check(member, each, place, self.definitions)
                members[index] = fill(member, each, self.definitions)
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
            raise Problem(f"params.yaml: {where} is {file!r}; {problem}") from None

    def sections(self) -> Iterator[tuple[str, str, dict]]:
        """Every section of every kind, resolved and checked, also for each data setting that overrides it."""
        for kind, name, value in self._sections():
            yield kind, name, copy.deepcopy(value)

    def _sections(self) -> Iterator[tuple[str, str, dict]]:
        # The same to read, not to change.
        for kind in ("data", "teacher", "ensemble", "method", "supplement"):
            for name, raw in self._named(kind).items():
                for data in [None, *raw.get("per_data", {})]:
                    if data is not None and data not in self.values["data"]:
                        self._unknown(f"{self._place(kind, name)}.per_data", data, self.values["data"])
                    value = self._section(kind, name, data, None)
                    self._check_meaning(kind, self._place(kind, name), value)
                yield kind, name, value

    def _check_meaning(self, kind: str, where: str, value: dict) -> None:
        """What a schema cannot say: names that must exist, numbers that must fit together."""
        if kind == "data":
            if value["teacher"] not in self.values["teacher"]:
                self._unknown(f"{where}.teacher", value["teacher"], self.values["teacher"])
            for needed in {"idx": ["files"], "folder": ["path"], "latents": ["path", "pixels"]}.get(
                value["source"], []
            ):
                if value[needed] is None:
                    raise Problem(f"params.yaml: {where}.{needed} is missing; source: {value['source']} needs it")
            self._check_codec(where, value)
            if isinstance(value["background"], str) and value["background"] not in ("white", "black"):
                wanted = expected(self.definitions["data"]["properties"]["background"])
                raise Problem(f"params.yaml: {where}.background is {value['background']!r}; expected {wanted}")
            for key in sorted(OPTIONS - READ.get(value["source"], OPTIONS)):
                if value[key] != self.definitions["data"]["properties"][key]["default"]:
                    raise Problem(
                        f"params.yaml: {where}.{key} is {value[key]!r}, but source: {value['source']} does not read it; leave it away"
                    )
        if kind == "teacher":
            if value["data"] not in self.values["data"]:
                self._unknown(f"{where}.data", value["data"], self.values["data"])
            theirs = value["source"] is not None or value["file"] is not None
            if theirs == ("network" in value):
                both = (
                    "a network and a source or a file"
                    if theirs
                    else "neither a network to train nor a source or a file"
                )
                raise Problem(f"params.yaml: {where} has {both}; give one of `network`, `source` and `file`")
            if value["state"] is not None and not theirs:
                raise Problem(
                    f"params.yaml: {where}.state is for a source or a file; leave it out of a teacher that is trained"
                )
            if value["precision"] != "float32" and theirs:
                raise Problem(
                    f"params.yaml: {where}.precision is of a training; leave it out of a teacher from a source or a file"
                )
            if not theirs:
                self._check_network(f"{where}.network", value["network"])
        if kind == "supplement" and "ensemble" in value and value["ensemble"] not in self.values["ensemble"]:
            self._unknown(f"{where}.ensemble", value["ensemble"], self.values["ensemble"])
        if kind == "method" and value["start_from"] is not None:
            self._check_start(f"{where}.start_from", value["start_from"])
        if kind in ("method", "teacher") and value["n_images"] % value["batch"]:
            raise Problem(
                f"params.yaml: {where}.n_images is {value['n_images']}; expected a multiple of its batch, "
                f"{value['batch']}, such as {max(1, round(value['n_images'] / value['batch'])) * value['batch']}"
            )

    def _check_codec(self, where: str, data: dict) -> None:
        """Latents have a number for each channel, and pixels to be compared with; pixels have neither."""
        codec, latent = data["codec"], data["source"] == "latents"
        lists = [isinstance(codec[key], list) for key in ("mean", "std")]
        if lists != [latent, latent] or (latent and len(codec["mean"]) != len(codec["std"])):
            wanted = "two lists, a number for each channel" if latent else "two numbers"
            raise Problem(
                f"params.yaml: {where}.codec has mean {codec['mean']} and std {codec['std']}; source: {data['source']} needs {wanted}"
            )
        pixels = data["pixels"]
        if pixels is None:
            return
        if pixels not in self.values["data"]:
            self._unknown(f"{where}.pixels", pixels, self.values["data"])
        if not latent or self.section("data", pixels)["source"] == "latents":
            raise Problem(
                f"params.yaml: {where}.pixels is {pixels!r}; only latents have it, and what it names has pixels of its own"
            )

    def _check_start(self, where: str, start: str) -> None:
        """METHOD/SUPPLEMENT whose names exist, and no circle of such starts."""
        seen = []
        while start is not None:
            method, _, supplement = start.partition("/")
            if not supplement or "/" in supplement:
                raise Problem(f"params.yaml: {where} is {start!r}; expected METHOD/SUPPLEMENT, such as sid/none")
            for kind, name in (("method", method), *(("supplement", s) for s in supplement.split("+") if s != "none")):
                if name not in self._named(kind):
                    self._unknown(f"{where}: the {kind}", name, self._named(kind))
            if method in seen:
                raise Problem(f"params.yaml: {where} goes in a circle ({' → '.join([*seen, method])}); remove one")
            seen.append(method)
            start = functools.reduce(merge, self._chain("method", method, where), {}).get("start_from")
        if where.split(".")[2].split(" ")[0] in seen:
            raise Problem(f"params.yaml: {where} goes in a circle; a method cannot start from itself")

    def _check_network(self, where: str, network: dict) -> None:
        file = network.get("network")
        if file not in available("networks"):
            self._unknown(f"{where}.network", file, available("networks"))
        known = [name for name in settings(file) if name not in ("img_resolution", "img_channels", "label_dim")]
        for key in network:
            if key != "network" and key not in known:
                raise Problem(
                    f"params.yaml: {where}.{key} is not a known key (found {network[key]!r}); "
                    f"expected one of {', '.join(known)}{nearest(key, known)}"
                )

    def _check_names(self) -> None:
        for kind in ("data", "teacher", "ensemble", "method", "supplement"):
            for name in self._named(kind):
                if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(name)) or name in ("none", "real", "suite"):
                    raise Problem(
                        f"params.yaml: {self._place(kind, name)} cannot be a name; expected letters, digits, . _ - "
                        f"and none of none, real, suite, which mean something else"
                    )
        for name in self.values["data"]:
            data = self._section("data", name, None, None)
            taught = self._section("data", self._section("teacher", data["teacher"], None, None)["data"], None, None)
            for key in ("codec", "labels"):
                if data[key] != taught[key]:
                    raise Problem(
                        f"params.yaml: data.{name}.{key} is {data[key]!r}, but its teacher {data['teacher']} is trained "
                        f"with {taught[key]!r}; make them equal, or give it a teacher of its own"
                    )
        if self.top("distil")["compile"] and self.top("distil")["recompute"]:
            raise Problem(
                "params.yaml: distil.compile and distil.recompute are both true, but a compiler decides itself what to keep "
                "and what to compute again; set one of them to false"
            )
        tables = self.top("tables")
        others = {f"tables.studies.{name}.against": study["against"] for name, study in tables["studies"].items()}
        for where, baseline in {"tables.baseline": tables["baseline"], **others}.items():
            method, _, supplement = baseline.rpartition("/")
            if method and (where == "tables.baseline" or method not in self._named("method")):
                self._unknown(where, method, self._named("method"))
            if method and tables["studies"][where.split(".")[2]]["kind"] != "contrast":
                raise Problem(
                    f"params.yaml: {where} is {baseline!r}; a method can be named only where the kind is contrast: give a supplement"
                )
            if any(part not in self._named("supplement") for part in supplement.split("+")) and supplement != "none":
                self._unknown(where, supplement, ["none", *self._named("supplement")])
        for name in tables["studies"]:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in TABLE_NAMES:
                raise Problem(
                    f"params.yaml: tables.studies.{name} cannot be a name; expected letters, digits, _ - and none of "
                    f"{', '.join(TABLE_NAMES)}, which are tables already"
                )
        for suite in self.values["suites"]:
            self.studies(suite)

    # --- what the steps ask for ---

    def others_teachers(self) -> list[str]:
        """Names of the teachers that others have trained: those with a source or a file."""
        sections = {name: self._section("teacher", name, None, None) for name in self.values["teacher"]}
        return [name for name, each in sections.items() if each["source"] or each["file"]]

    def top(self, name: str, data: str | None = None):
        """A single section or value of the top level (threads, device, distil, evaluate, tables), resolved."""
        return copy.deepcopy(self._top(name, data))

    @functools.cache  # noqa: B019  (parameters live as long as the program)
    def _top(self, name: str, data: str | None):
        schema = follow(self.schema["properties"][name], self.definitions)
        value = self.values.get(name, schema.get("default"))
        if isinstance(value, dict):
            value = {key: item for key, item in value.items() if key not in ("methods", "supplements")}
        value = copy.deepcopy(value)
        if isinstance(value, dict):
            value = functools.reduce(merge, self._layers([value], data), {})
            value = {key: item for key, item in value.items() if key != "per_data"}
            check(value, {**schema, "required": []}, name, self.definitions)
        return fill(value, schema, self.definitions)

    def run(self, text: str) -> Run:
        """`digits/di/el/0` as a Run whose names all exist. Raises Problem."""
        parts = text.strip("/").split("/")
        if len(parts) != 4 or not parts[3].isdigit():
            raise Problem(f"{text!r} is not a run; expected DATA/METHOD/SUPPLEMENT/SEED, such as digits/di/el/0")
        run = Run(parts[0], parts[1], parts[2], int(parts[3]))
        for kind, name in (("data", run.data), ("method", run.method), *(("supplement", s) for s in run.supplements)):
            if name not in self._named(kind):
                self._unknown(f"{kind} of the run {text}", name, self._named(kind))
        if not self._has_numbers(run.method, run.data):
            raise Problem(
                f"params.yaml: distil.methods.{run.method} has no numbers for the data {run.data}; "
                f"give it a block under per_data.{run.data} with n_images, batch and rates"
            )
        if len(set(run.supplements)) < len(run.supplements):
            raise Problem(f"the run {text} names a supplement twice; expected each once")
        return run

    @functools.cache  # noqa: B019
    def _has_numbers(self, method: str, data: str) -> bool:
        return any("n_images" in each for each in self._layers(self._chain("method", method, "method"), data))

    def studies(self, suite: str) -> list[str]:
        """The studies of a suite, in the order in which its grids name them. Raises Problem for an unknown one."""
        known = self.top("tables")["studies"]
        found = list(dict.fromkeys(name for grid in self.values["suites"][suite] for name in grid.get("studies", [])))
        for name in found:
            if name not in known:
                self._unknown(f"suites.{suite}: a study", name, known)
        return found

    def runs(self, suite: str, study: str | None = None) -> Iterator[Run]:
        """The runs of a suite, or of one of its studies, in order, without repetition."""
        if suite not in self.values["suites"]:
            self._unknown("suite", suite, self.values["suites"])
        seen, resolved = set(), set()
        for grid in self.values["suites"][suite]:
            if study is not None and study not in grid.get("studies", []):
                continue
            cells = (
                (d, m, s, n)
                for d in grid["data"] for m in grid["methods"] for s in grid["supplements"] for n in grid["seeds"]
            )  # fmt: skip
            for cell in cells:
                run = self.run("/".join(map(str, (*cell[:3], int(cell[3])))))
                if (run.method, run.data) not in resolved:
                    resolved.add((run.method, run.data))
                    value = self._section("method", run.method, run.data, None)
                    self._check_meaning("method", f"{self._place('method', run.method)} on {run.data}", value)
                if run not in seen:
                    seen.add(run)
                    yield run

    def without_site(self, kind: str, value: dict) -> dict:
        """What enters a recipe: the value without what only describes a machine, and without neutral defaults."""
        schema = (
            self.definitions[kind]
            if kind in self.definitions
            else follow(self.schema["properties"][kind], self.definitions)
        )
        known = dict(schema["properties"])
        if kind in ("method", "supplement"):
            known |= declared(f"{kind}s", value["file"])
        elif kind == "member":
            known |= declared("ensemble", value["family"])
        kept = lasting(value, known, self.definitions)
        if kind == "ensemble":
            kept["members"] = [self.without_site("member", member) for member in kept["members"]]
        return kept


def read_yaml(text: str):
    """What YAML says, by libyaml where PyYAML was built with it: a quarter of a second less in every step."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


@functools.cache
def _parsed(text: str) -> dict:
    """The schema, which nothing changes: once for a process, however many files it reads."""
    return read_yaml(text)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml; the project's root is its folder. Raises Problem."""
    path = Path(path)
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run this command in the folder that holds params.yaml") from None
    except yaml.YAMLError as error:
        raise Problem(f"{path} is not YAML: {' '.join(str(error).split())}; mend that line") from None
    return from_values(values, path.parent)


def from_snakemake(config: dict, given: dict, root: str | Path = ".") -> Params:
    """Params from Snakemake's config. given: what --config, --configfile and a profile put over params.yaml.

    Only `suite` may be given there. The steps read params.yaml, and DVC records it: another number would be planned and
    not computed. Raises Problem that names it.
    """
    if set(given) - {"suite"}:
        values = read_yaml((Path(root) / "params.yaml").read_text(encoding="utf-8"))
        for where, there, here in _differences(config, values):
            if where != "suite":
                what = "a section" if isinstance(there, dict) else repr(there)
                has, also = "has none", ""
                if here is not None:
                    has, also = f"has {here!r}", f" (`dvc exp run -S {where}={there}` does)"
                raise Problem(
                    f"--config or --configfile gives {where} as {what}, and params.yaml {has}; steps and DVC read params.yaml, "
                    f"so write it there{also}: only `--config suite=NAME` is obeyed"
                )
    return from_values(config, root)


def _differences(one, other, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys((*one, *other)):
            yield from _differences(one.get(key), other.get(key), f"{where}.{key}" if where else str(key))
    elif one != other:
        yield where, one, other


def from_values(values, root: str | Path = ".") -> Params:
    """Params from a mapping that is already read (Snakemake's config)."""
    if not isinstance(values, dict):
        raise Problem(f"params.yaml holds {type(values).__name__}; expected a mapping of sections")
    return Params(values, Path(root))
