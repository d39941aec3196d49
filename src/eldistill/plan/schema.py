# SPDX-License-Identifier: Apache-2.0
"""Checks values against a schema and fills in defaults. The first mistake is reported in one sentence.

It implements the part of JSON Schema 2020-12 that params.schema.yaml uses, so that no further package is needed.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn, Self

from eldistill.errors import Problem, expected_among, nearest, one_line, quoted
from eldistill.files import canonical
from eldistill.numbers import declared
from eldistill.registry import available, readers


class Wrong(Problem):
    """A wrong value in the parameters: the place of its key, and what is wrong.

    places: keys that may have caused it, the most likely first. file: the file that holds the key, which reading.py fills in; empty
    for a name that was given on the command line.
    """

    def __init__(self, where: str, text: str, file: str = "params.yaml"):
        super().__init__(where, text)
        self.where, self.text, self.places, self.file = where, text, [where], file

    def __str__(self) -> str:
        return one_line(f"{self.file}: {self.where} {self.text}" if self.file else f"{self.where} {self.text}")


def refuse_unknown(where: str, name: object, known: Iterable[object], file: str = "params.yaml") -> NoReturn:
    """Raise Wrong because `name` is not one of `known`, with the most similar one. file: that holds the name, as in Wrong."""
    raise Wrong(where, f"is {quoted(name)}{expected_among(known, name)}", file)


def merge_mappings(below: dict, above: dict) -> dict:
    """`above` over `below`; mappings are merged, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge_mappings(merged[key], value) if both else value
    return merged


class OutsidePath(str):
    """A value of params.yaml that names files outside the project; read_as: what they are read as (READ_AS in listing.py)."""

    read_as: str

    def __new__(cls, value: str, read_as: str) -> Self:
        path = super().__new__(cls, value)
        path.read_as = read_as
        return path

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # for copies: this class takes two
        return str(self), self.read_as


_PYTHON: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float), "null": type(None)
}  # fmt: skip


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _PYTHON[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def expected_value(schema: dict) -> str:
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
    text += _expected_items(schema)
    return text + (f" ({schema['description']})" if "description" in schema else "")


def _expected_items(schema: dict) -> str:
    # How many values a list may have, and whether they must differ.
    fewest, most = schema.get("minItems", 0), schema.get("maxItems")
    text = f" of {fewest}" if fewest and fewest == most else f" of at least {fewest}" if fewest else ""
    if most is not None and most != fewest:
        text += f"{' and' if fewest else ' of'} at most {most}"
    return text + (", each of them once" if schema.get("uniqueItems") else "")


def check_value(value: Any, schema: dict, where: str, definitions: dict) -> None:
    """Raise Wrong at the first key of `value` that the schema forbids. where: the place of `value` in messages."""
    schema = follow_reference(schema, definitions)
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
        expected = f"{near} Expected" if near else "; expected"
        raise Wrong(where, f"is {quoted(value)}{expected} {expected_value(schema)}{_hint(value, kinds)}")
    if isinstance(value, str) and "outside" in schema and not value.strip():
        # An empty path would be that of the current folder.
        raise Wrong(where, f"is {quoted(value)}; expected {expected_value(schema)}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            check_value(item, schema.get("items", {}), f"{where}[{index}]", definitions)
    if isinstance(value, dict):
        _check_keys(value, schema, where, definitions)


def _hint(value: Any, kinds: list[str]) -> str:
    # What to type where YAML, or the decimal comma of many languages, made something else of a text or a number.
    if "string" in kinds and isinstance(value, bool | int | float):
        return f': put it in quotes, "{str(value).lower()}", if it is meant as a text'
    if "number" in kinds and isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,20},\d{1,20}", value):
        return f": a number is written with a point, {value.replace(',', '.')}"
    return ""


def _check_keys(value: dict, schema: dict, where: str, definitions: dict) -> None:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for key, item in value.items():
        place = f"{where}.{key}" if where else str(key)
        if key in known:
            check_value(item, known[key], place, definitions)
        elif others is False:
            raise Wrong(place, f"is not a known key (found {quoted(item)}){expected_among(known, key)}")
        elif isinstance(others, dict):
            check_value(item, others, place, definitions)
    missing = [key for key in schema.get("required", []) if key not in value]
    if missing:
        wanted = expected_value(follow_reference(known[missing[0]], definitions))
        raise Wrong(f"{where + '.' if where else ''}{missing[0]}", f"is missing; expected {wanted}")


def follow_reference(schema: dict, definitions: dict) -> dict:
    if "$ref" in schema:
        return {
            **definitions[schema["$ref"].removeprefix("#/$defs/")],
            **{k: v for k, v in schema.items() if k != "$ref"},
        }
    return schema


def with_modules(definitions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The definitions of the schema, in which `source` of a data setting may be any file of data/readers, and `extra_metrics` of an
    evaluation has the numbers of any file of metrics."""
    found = _with_values(definitions, "data", "source", {"enum": list(readers())})
    metrics = {name: _numbers_of("metrics", name) for name in available("metrics")}
    return _with_values(found, "evaluate", "extra_metrics", {"properties": metrics, "additionalProperties": False})


def _with_values(definitions: dict[str, dict], section: str, key: str, more: dict[str, Any]) -> dict[str, dict]:
    # The definitions with `more` in the schema of a key of a section; what is given is not changed.
    known = definitions[section]["properties"]
    return definitions | {section: definitions[section] | {"properties": known | {key: known[key] | more}}}


def _numbers_of(kind: str, file: str) -> dict[str, Any]:
    # The schema of a mapping that has the numbers of a file and nothing else.
    return {"type": "object", "additionalProperties": False, "properties": declared(kind, file)}


def lasting_keys(value: dict, known: dict[str, dict], definitions: dict) -> dict:
    """`value` without the keys that only describe a machine (`site`) and without neutral ones, at every depth of mappings
    whose keys the schema lists. known: the schema of each key; a key is neutral at its default (`neutral: true`), or at the
    value that `neutral` names."""
    kept = {}
    for key, item in value.items():
        schema = follow_reference(known.get(key, {}), definitions)
        neutral = schema.get("neutral")
        if schema.get("site") or (neutral and item == (schema.get("default") if neutral is True else neutral)):
            continue
        inner = schema.get("properties")
        kept[key] = lasting_keys(item, inner, definitions) if inner and isinstance(item, dict) else item
    return kept


def fill_defaults(value: Any, schema: dict, definitions: dict) -> Any:
    """A copy of `value` with the schema's defaults filled in, at every depth."""
    schema = follow_reference(schema, definitions)
    if isinstance(value, list):
        return [fill_defaults(item, schema.get("items", {}), definitions) for item in value]
    if not isinstance(value, dict):
        if isinstance(value, str) and "outside" in schema:
            return OutsidePath(value, schema["outside"])
        # YAML writes 1 where a number is meant; recipes must not tell 1 from 1.0.
        if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return int(value) if schema.get("type") == "integer" else value
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    others = others if isinstance(others, dict) else {}
    filled = {key: fill_defaults(item, known.get(key, others), definitions) for key, item in value.items()}
    for key, each in known.items():
        each = follow_reference(each, definitions)
        if key not in filled and "default" in each:
            filled[key] = fill_defaults(copy.deepcopy(each["default"]), each, definitions)
    return filled


def add_numbers(schema: dict[str, Any], numbers: dict[str, dict], file: str) -> None:
    """Add the numbers of a module to the keys of a section. Raises Problem for a name that every such section has already."""
    if taken := schema["properties"].keys() & numbers:
        raise Problem(f"src/eldistill/{file}.py: Numbers has a field {sorted(taken)[0]!r}, which is a key of every such section of "
                      f"params.yaml; rename it (taken are {', '.join(schema['properties'])})")  # fmt: skip
    schema["properties"] |= numbers
