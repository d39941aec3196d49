# SPDX-License-Identifier: Apache-2.0
"""Checking values against a schema: one clear sentence for the first thing that is wrong.

The part of JSON Schema 2020-12 that params.schema.yaml uses, so that a run needs no further package. A method, a
supplement or a family of embedding networks declares its own numbers in its module (class Numbers, fields made by
`number`); they are read from the source text, so that the Snakefile can check them without importing torch.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
import functools
import math
from pathlib import Path

from eldistill.files import Problem, canonical

PACKAGE = Path(__file__).parent


class OutsidePath(str):
    """A value of params.yaml that names files outside the project; read_as: what they are read as (READ_AS in listing.py)."""

    read_as: str

    def __new__(cls, value: str, read_as: str):
        path = super().__new__(cls, value)
        path.read_as = read_as
        return path

    def __getnewargs__(self) -> tuple[str, str]:  # for copies
        return str(self), self.read_as


def number(default, about: str, low=None, high=None, above=None, below=None, choices=None, neutral=False, outside=None):
    """A field of a module's `Numbers`: its default, one sentence with unit and source, and its range.

    neutral: at its default everything is as it was before the number existed; recipes then leave it out, so that a new
    option makes no result stale. outside: of a path of files that git does not know, what they are read as: recipes then hold
    the identity of their content.
    """
    limits = {"minimum": low, "maximum": high, "exclusiveMinimum": above, "exclusiveMaximum": below, "enum": choices,
              "neutral": neutral or None, "outside": outside}  # fmt: skip
    return dataclasses.field(default=default, metadata={"description": about, **limits})


_LIMITS = {"low": "minimum", "high": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}
_TYPES = {"float": "number", "int": "integer", "bool": "boolean", "str": "string", "tuple": "array"}


@functools.cache
def declared(kind: str, file: str) -> dict[str, dict]:
    """The schema of each field of class Numbers in src/eldistill/<kind>/<file>.py, without importing it."""
    if file not in (there := available(kind)):
        raise Problem(f"{kind}/ has no file {file!r}; it has {', '.join(there)}{nearest(file, there)}")
    tree = ast.parse((PACKAGE / kind / f"{file}.py").read_text(encoding="utf-8"))
    numbers = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Numbers")
    fields = [item for item in numbers.body if isinstance(item, ast.AnnAssign)]
    return {field.target.id: _field_schema(field) for field in fields}


@functools.cache
def available(kind: str) -> list[str]:
    """The names in src/eldistill/<kind>/: files with a class Numbers, or for networks with a class Settings."""
    wanted = "class Settings" if kind == "networks" else "class Numbers"
    paths = (PACKAGE / kind).glob("*.py")
    return sorted(p.stem for p in paths if f"\n{wanted}" in p.read_text(encoding="utf-8"))


@functools.cache
def spaces() -> dict[str, str | None]:
    """Every feature space: its name and the file in spaces/ that defines it, None for those of evaluate.py itself."""
    found: dict[str, str | None] = {"judge-a": None, "judge-b": None, "pixels": None}
    for path in sorted((PACKAGE / "spaces").glob("[a-z]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "NAMES":
                found |= dict.fromkeys(ast.literal_eval(node.value), path.stem)
    return found


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
        if keyword.arg in ("neutral", "outside"):
            schema[keyword.arg] = value
        elif keyword.arg == "choices" and name == "array":
            schema["items"] = {"enum": list(value)}
        else:
            schema[_LIMITS.get(keyword.arg, "enum")] = list(value) if keyword.arg == "choices" else value
    return schema


@functools.cache
def settings(file: str) -> list[str]:
    """The keyword arguments of networks/<file>.py: the fields of its class Settings, without importing it."""
    tree = ast.parse((PACKAGE / "networks" / f"{file}.py").read_text(encoding="utf-8"))
    fields = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings").body
    return [item.target.id for item in fields if isinstance(item, ast.AnnAssign)]


# --- checking -----------------------------------------------------------------------------------------

_PYTHON = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float), "null": type(None)
}  # fmt: skip


def nearest(word: str, words) -> str:
    close = difflib.get_close_matches(str(word), [str(w) for w in words], 1, 0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _is(value, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _PYTHON[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def expected(schema: dict) -> str:
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


def check(value, schema: dict, where: str, definitions: dict) -> None:
    """Raise Problem at the first key of `value` that the schema forbids."""
    schema = follow(schema, definitions)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    bad = (kinds and not any(_is(value, kind) for kind in kinds)) or ("enum" in schema and value not in schema["enum"])
    if not bad and _is(value, "number"):
        bad = not math.isfinite(value) or not (
            value >= schema.get("minimum", value)
            and value <= schema.get("maximum", value)
            and (schema.get("exclusiveMinimum") is None or value > schema["exclusiveMinimum"])
            and (schema.get("exclusiveMaximum") is None or value < schema["exclusiveMaximum"])
        )
    if not bad and isinstance(value, list):
        repeated = schema.get("uniqueItems") and len({canonical(item) for item in value}) < len(value)
        bad = repeated or not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
    if bad:
        near = nearest(value, schema["enum"]) if "enum" in schema else ""
        raise Problem(f"params.yaml: {where} is {value!r}; expected {expected(schema)}{near}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            check(item, schema.get("items", {}), f"{where}[{index}]", definitions)
    if isinstance(value, dict):
        _check_keys(value, schema, where, definitions)


def _check_keys(value: dict, schema: dict, where: str, definitions: dict) -> None:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for key, item in value.items():
        place = f"{where}.{key}" if where else str(key)
        if key in known:
            check(item, known[key], place, definitions)
        elif others is False:
            raise Problem(
                f"params.yaml: {place} is not a known key (found {item!r}); "
                f"expected one of {', '.join(known)}{nearest(key, known)}"
            )
        elif isinstance(others, dict):
            check(item, others, place, definitions)
    missing = [key for key in schema.get("required", []) if key not in value]
    if missing:
        wanted = expected(follow(known[missing[0]], definitions))
        raise Problem(f"params.yaml: {where + '.' if where else ''}{missing[0]} is missing; expected {wanted}")


def follow(schema: dict, definitions: dict) -> dict:
    if "$ref" in schema:
        return {
            **definitions[schema["$ref"].removeprefix("#/$defs/")],
            **{k: v for k, v in schema.items() if k != "$ref"},
        }
    return schema


def lasting(value: dict, known: dict[str, dict], definitions: dict) -> dict:
    """`value` without the keys that only describe a machine (`site`) and without neutral ones, at every depth of mappings
    whose keys the schema lists. known: the schema of each key; a key is neutral at its default (`neutral: true`), or at the
    value that `neutral` names."""
    kept = {}
    for key, item in value.items():
        schema = follow(known.get(key, {}), definitions)
        neutral = schema.get("neutral")
        if schema.get("site") or (neutral and item == (schema.get("default") if neutral is True else neutral)):
            continue
        inner = schema.get("properties")
        kept[key] = lasting(item, inner, definitions) if inner and isinstance(item, dict) else item
    return kept


def fill(value, schema: dict, definitions: dict):
    """A copy of `value` with the schema's defaults filled in, at every depth."""
    schema = follow(schema, definitions)
    if isinstance(value, list):
        return [fill(item, schema.get("items", {}), definitions) for item in value]
    if not isinstance(value, dict):
        if isinstance(value, str) and "outside" in schema:
            return OutsidePath(value, schema["outside"])
        # YAML writes 1 where a number is meant; recipes must not tell 1 from 1.0.
        if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return int(value) if schema.get("type") == "integer" else value
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    others = others if isinstance(others, dict) else {}
    filled = {key: fill(item, known.get(key, others), definitions) for key, item in value.items()}
    for key, each in known.items():
        each = follow(each, definitions)
        if key not in filled and "default" in each:
            filled[key] = fill(copy.deepcopy(each["default"]), each, definitions)
    return filled
