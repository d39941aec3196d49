# SPDX-License-Identifier: Apache-2.0
"""params.yaml: read, checked against workflow/schemas/params.schema.yaml, resolved into frozen dataclasses.

The schema is the one list of keys: type, range, default and meaning. A method, a supplement or a family of
embedding networks declares its own numbers in its module (class Numbers, fields made by `number`); they are
read from the source text, so that the Snakefile can check them without importing torch.

Values resolve in this order, later wins: default, `like`, own, `per_data: {data: …}`.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
import functools
from collections.abc import Iterator
from pathlib import Path

import yaml

from eldistill.files import Problem, canonical

PACKAGE = Path(__file__).parent
SCHEMA = Path("workflow/schemas/params.schema.yaml")


def number(default, about: str, low=None, high=None, above=None, below=None, choices=None):
    """A field of a module's `Numbers`: its default, one sentence with unit and source, and its range."""
    limits = {"minimum": low, "maximum": high, "exclusiveMinimum": above, "exclusiveMaximum": below, "enum": choices}
    return dataclasses.field(default=default, metadata={"description": about, **limits})


_LIMITS = {"low": "minimum", "high": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}
_TYPES = {"float": "number", "int": "integer", "bool": "boolean", "str": "string", "tuple": "array"}


@functools.cache
def declared(kind: str, file: str) -> dict[str, dict]:
    """The schema of each field of class Numbers in src/eldistill/<kind>/<file>.py, without importing it."""
    path = PACKAGE / kind / f"{file}.py"
    if not path.exists() or file.startswith("_"):
        there = sorted(p.stem for p in (PACKAGE / kind).glob("*.py") if not p.stem.startswith("_"))
        raise Problem(f"{kind}/ has no file {file!r}; it has {', '.join(there)}{_nearest(file, there)}")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Numbers":
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            return {field.target.id: _field_schema(field) for field in fields}
    return {}


def _field_schema(field: ast.AnnAssign) -> dict:
    kind = field.annotation
    optional = isinstance(kind, ast.BinOp)  # int | None
    kind = kind.left if optional else kind
    name = _TYPES[(kind.value if isinstance(kind, ast.Subscript) else kind).id]
    default, about = (ast.literal_eval(argument) for argument in field.value.args[:2])
    schema = {"type": [name, "null"] if optional else name, "description": about}
    schema["default"] = list(default) if isinstance(default, tuple) else default
    for keyword in field.value.keywords:
        value = ast.literal_eval(keyword.value)
        if keyword.arg == "choices" and name == "array":
            schema["items"] = {"enum": list(value)}
        else:
            schema[_LIMITS.get(keyword.arg, "enum")] = list(value) if keyword.arg == "choices" else value
    return schema


# --- checking -----------------------------------------------------------------------------------------

_PYTHON = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float), "null": type(None)
}  # fmt: skip


def _nearest(word: str, words) -> str:
    close = difflib.get_close_matches(str(word), [str(w) for w in words], 1, 0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _is(value, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _PYTHON[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def _expected(schema: dict) -> str:
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    words = {"object": "a mapping", "array": "a list", "string": "a text", "boolean": "true or false",
             "integer": "a whole number", "number": "a number", "null": "null"}  # fmt: skip
    text = " or ".join(words[kind] for kind in kinds)
    if "enum" in schema:
        text = "one of " + ", ".join(map(str, schema["enum"]))
    for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")):
        if schema.get(key) is not None:
            text += f" {sign} {schema[key]}"
    if schema.get("minItems"):
        text += f" of at least {schema['minItems']}"
    return text + (f" ({schema['description']})" if "description" in schema else "")


def check(value, schema: dict, where: str, definitions: dict, partial: bool = False) -> None:
    """Raise Problem at the first key of `value` that the schema forbids. partial: required keys may be absent."""
    schema = _follow(schema, definitions)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    bad = (kinds and not any(_is(value, kind) for kind in kinds)) or ("enum" in schema and value not in schema["enum"])
    if not bad and _is(value, "number"):
        bad = value != value or not (
            value >= schema.get("minimum", value)
            and value <= schema.get("maximum", value)
            and (schema.get("exclusiveMinimum") is None or value > schema["exclusiveMinimum"])
            and (schema.get("exclusiveMaximum") is None or value < schema["exclusiveMaximum"])
        )
    if not bad and isinstance(value, list):
        repeated = schema.get("uniqueItems") and len({canonical(item) for item in value}) < len(value)
        bad = repeated or not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
    if bad:
        near = _nearest(value, schema["enum"]) if "enum" in schema else ""
        raise Problem(f"params.yaml: {where} is {value!r}; expected {_expected(schema)}{near}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            check(item, schema.get("items", {}), f"{where}[{index}]", definitions, partial)
    if isinstance(value, dict):
        _check_keys(value, schema, where, definitions, partial)


def _check_keys(value: dict, schema: dict, where: str, definitions: dict, partial: bool) -> None:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for key, item in value.items():
        place = f"{where}.{key}" if where else str(key)
        if key in known:
            check(item, known[key], place, definitions, partial)
        elif others is False:
            raise Problem(
                f"params.yaml: {place} is not a known key (found {item!r}); "
                f"expected one of {', '.join(known)}{_nearest(key, known)}"
            )
        elif isinstance(others, dict):
            check(item, others, place, definitions, partial)
    missing = [key for key in schema.get("required", []) if key not in value]
    if missing and not partial:
        raise Problem(
            f"params.yaml: {where + '.' if where else ''}{missing[0]} is missing; expected {_expected(_follow(known[missing[0]], definitions))}"
        )


def _follow(schema: dict, definitions: dict) -> dict:
    if "$ref" in schema:
        return {
            **definitions[schema["$ref"].removeprefix("#/$defs/")],
            **{k: v for k, v in schema.items() if k != "$ref"},
        }
    return schema


def fill(value, schema: dict, definitions: dict):
    """A copy of `value` with the schema's defaults filled in, at every depth."""
    schema = _follow(schema, definitions)
    if isinstance(value, list):
        return [fill(item, schema.get("items", {}), definitions) for item in value]
    if not isinstance(value, dict):
        # YAML writes 1 where a number is meant; recipes must not tell 1 from 1.0.
        if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return int(value) if schema.get("type") == "integer" else value
    known = schema.get("properties", {})
    filled = {key: fill(item, known.get(key, {}), definitions) for key, item in value.items()}
    for key, each in known.items():
        each = _follow(each, definitions)
        if key not in filled and "default" in each:
            filled[key] = fill(copy.deepcopy(each["default"]), each, definitions)
    return filled


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
        schema = yaml.safe_load((root / SCHEMA).read_text(encoding="utf-8"))
        self.definitions = schema.pop("$defs")
        self.schema = schema
        # Sections whose keys depend on a module are checked by `section`, where the module is known.
        loose = copy.deepcopy(self.definitions)
        for kind in ("method", "supplement", "member"):
            loose[kind]["additionalProperties"] = True
        check(values, schema, "", loose, partial=True)
        for key in schema["required"]:
            if key not in values:
                raise Problem(
                    f"params.yaml: {key} is missing; expected {_expected(_follow(schema['properties'][key], loose))}"
                )
        self.values = values
        if values["suite"] not in values["suites"]:
            self._unknown("suite", values["suite"], values["suites"])
        list(self.sections())
        for data in values.get("evaluate", {}).get("per_data", {}):
            if data not in values["data"]:
                self._unknown("evaluate.per_data", data, values["data"])
            self.top("evaluate", data)
        for suite in values["suites"]:
            list(self.runs(suite))

    @staticmethod
    def _unknown(where: str, name: str, known) -> None:
        raise Problem(
            f"params.yaml: {where} is {name!r}; expected one of {', '.join(map(str, known))}{_nearest(name, known)}"
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

    def section(self, kind: str, name: str, data: str | None = None, where: str | None = None) -> dict:
        """One resolved section: kind is data, teacher, ensemble, method or supplement. Raises Problem."""
        chain = self._chain(kind, name, where or self._place(kind, name))
        value = functools.reduce(merge, chain, {})
        overrides = [each.get("per_data", {}).get(data, {}) for each in chain]
        value = functools.reduce(merge, overrides, value)
        value = copy.deepcopy({key: item for key, item in value.items() if key not in ("like", "per_data")})
        schema = self._schema(kind, value, self._place(kind, name))
        check(value, schema, self._place(kind, name), self.definitions)
        return fill(value, schema, self.definitions)

    def _schema(self, kind: str, value: dict, where: str) -> dict:
        schema = copy.deepcopy(self.definitions[kind])
        if kind in ("method", "supplement") and isinstance(value.get("file"), str):
            schema["properties"] |= self._declared(f"{kind}s", value["file"], f"{where}.file")
        if kind == "ensemble":
            members = value.get("members", [])
            for index, member in enumerate(members if isinstance(members, list) else []):
                each = copy.deepcopy(self.definitions["member"])
                place = f"{where}.members[{index}]"
                if isinstance(member, dict) and isinstance(member.get("family"), str):
                    each["properties"] |= self._declared("ensemble", member["family"], f"{place}.family")
                check(member, each, place, self.definitions)
                members[index] = fill(member, each, self.definitions)
            schema["properties"]["members"]["items"] = {"type": "object"}
        return schema

    @staticmethod
    def _declared(kind: str, file: str, where: str) -> dict:
        try:
            return declared(kind, file)
        except Problem as problem:
            raise Problem(f"params.yaml: {where} is {file!r}; {problem}") from None

    def sections(self) -> Iterator[tuple[str, str, dict]]:
        """Every section of every kind, resolved and checked, also for each data setting that overrides it."""
        for kind in ("data", "teacher", "ensemble", "method", "supplement"):
            for name, raw in self._named(kind).items():
                for data in [None, *raw.get("per_data", {})]:
                    if data is not None and data not in self.values["data"]:
                        self._unknown(f"{self._place(kind, name)}.per_data", data, self.values["data"])
                    value = self.section(kind, name, data)
                    self._check_meaning(kind, self._place(kind, name), value)
                yield kind, name, value

    def _check_meaning(self, kind: str, where: str, value: dict) -> None:
        """What a schema cannot say: names that must exist, numbers that must fit together."""
        if kind == "data":
            if value["teacher"] not in self.values["teacher"]:
                self._unknown(f"{where}.teacher", value["teacher"], self.values["teacher"])
            needed = {"idx": "files", "folder": "path"}.get(value["source"])
            if needed and value[needed] is None:
                raise Problem(f"params.yaml: {where}.{needed} is missing; source: {value['source']} needs it")
        if kind == "teacher" and value["data"] not in self.values["data"]:
            self._unknown(f"{where}.data", value["data"], self.values["data"])
        if kind == "supplement" and "ensemble" in value and value["ensemble"] not in self.values["ensemble"]:
            self._unknown(f"{where}.ensemble", value["ensemble"], self.values["ensemble"])
        if kind in ("method", "teacher") and value["n_images"] % value["batch"]:
            raise Problem(
                f"params.yaml: {where}.n_images is {value['n_images']}; expected a multiple of its batch, "
                f"{value['batch']}, such as {max(1, round(value['n_images'] / value['batch'])) * value['batch']}"
            )

    # --- what the steps ask for ---

    def top(self, name: str, data: str | None = None):
        """A single section or value of the top level (threads, device, distil, evaluate, tables), resolved."""
        schema = _follow(self.schema["properties"][name], self.definitions)
        value = copy.deepcopy(self.values.get(name, schema.get("default")))
        if isinstance(value, dict):
            value = merge(value, value.get("per_data", {}).get(data, {}))
            value = {key: item for key, item in value.items() if key not in ("methods", "supplements", "per_data")}
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
        return run

    def runs(self, suite: str) -> Iterator[Run]:
        """The runs of a suite, in order, without repetition."""
        if suite not in self.values["suites"]:
            self._unknown("suite", suite, self.values["suites"])
        seen = set()
        for grid in self.values["suites"][suite]:
            cells = (
                (d, m, s, n)
                for d in grid["data"] for m in grid["methods"] for s in grid["supplements"] for n in grid["seeds"]
            )  # fmt: skip
            for cell in cells:
                run = self.run("/".join(map(str, cell)))
                if run not in seen:
                    seen.add(run)
                    yield run

    def without_site(self, kind: str, value: dict) -> dict:
        """The value without what only describes a machine: what enters a recipe."""
        schema = (
            self.definitions[kind]
            if kind in self.definitions
            else _follow(self.schema["properties"][kind], self.definitions)
        )
        site = {key for key, each in schema["properties"].items() if each.get("site")}
        return {key: item for key, item in value.items() if key not in site}


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml; the project's root is its folder. Raises Problem."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run this command in the folder that holds params.yaml") from None
    except yaml.YAMLError as error:
        raise Problem(f"{path} is not YAML: {' '.join(str(error).split())}; mend that line") from None
    return from_values(values, path.parent)


def from_values(values, root: str | Path = ".") -> Params:
    """Params from a mapping that is already read (Snakemake's config)."""
    if not isinstance(values, dict):
        raise Problem(f"params.yaml holds {type(values).__name__}; expected a mapping of sections")
    return Params(values, Path(root))
