# SPDX-License-Identifier: Apache-2.0
"""Declarations of the numbers that a module reads from params.yaml.

A method, a supplement, a family of embedding networks or an extra metric has a class Numbers, whose fields `number` makes. Their
schema is read from the source text, so that the Snakefile can check params.yaml without importing torch.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

from eldistill import paths
from eldistill.errors import Problem, expected_among, quoted
from eldistill.registry import available

_LIMITS = {"low": "minimum", "high": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}
_TYPES = {"float": "number", "int": "integer", "bool": "boolean", "str": "string", "tuple": "array"}


def number(default, about: str, low=None, high=None, above=None, below=None, choices=None, neutral=False, outside=None):
    """A field of a module's `Numbers`: its default, one sentence with unit and source, and its range.

    low, high: smallest and largest allowed value. above, below: bounds that are not allowed themselves. neutral: the default
    gives the results of before the number existed; recipes then omit it, so that a new number makes no result stale.
    outside: for a path of files outside git, how they are read (READ_AS in listing.py); recipes then hold the identity of
    their content.
    """
    limits = {"minimum": low, "maximum": high, "exclusiveMinimum": above, "exclusiveMaximum": below, "enum": choices,
              "neutral": neutral or None, "outside": outside}  # fmt: skip
    return dataclasses.field(default=default, metadata={"description": about, **limits})


def declared(kind: str, file: str) -> dict[str, dict]:
    """{field: its JSON Schema} of class Numbers in src/eldistill/<kind>/<file>.py, read without importing it; classes that it
    inherits from are imported by their names.

    The result is a copy: what its reader does with it changes no other one's. kind: methods, supplements, ensemble or metrics.
    Raises Problem if there is no such file."""
    return copy.deepcopy(_declared(kind, file))


@functools.cache
def _declared(kind: str, file: str) -> dict[str, dict]:
    if file not in (there := available(kind)):
        raise Problem(f"{kind}/ has no file {quoted(file)}{expected_among(there, file)}")
    return _fields(paths.PACKAGE / kind / f"{file}.py", "Numbers")


def _fields(path: Path, name: str) -> dict[str, dict]:
    # The fields of a class and of those that it inherits from. A field replaces that of the same name of a class behind it, as
    # in a dataclass.
    tree = ast.parse(path.read_text(encoding="utf-8"))
    numbers = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found: dict[str, dict] = {}
    for base in reversed(numbers.bases):
        found |= _fields(_defined_in(path, tree, base), ast.unparse(base))
    own = (item for item in numbers.body if isinstance(item, ast.AnnAssign))
    return found | {field.target.id: _field_schema(field) for field in own}


def _defined_in(path: Path, tree: ast.Module, base: ast.expr) -> Path:
    # The file of a class that a module defines, or imports by its name.
    name = base.id if isinstance(base, ast.Name) else ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path
        ours = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eldistill.")
        if ours and any(alias.name == name for alias in node.names):
            return (paths.PACKAGE.parent / node.module.replace(".", "/")).with_suffix(".py")
    raise Problem(
        f"class Numbers in {path.name} inherits from {ast.unparse(base)}; expected a class of that file, or one that is imported from "
        "eldistill by its name, because the numbers are read from the text"
    )


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


def make_numbers(kind: Any, values: dict[str, Any]) -> Any:
    """The `Numbers` of a module or of its loaded functions, from a resolved section of params.yaml.

    Keys that are not fields of its `Numbers` are ignored, because they belong to other parts. Raises Problem for
    impossible values.
    """
    fields = kind.Numbers.__dataclass_fields__
    return kind.Numbers(**{key: _cast(fields[key].type, value) for key, value in values.items() if key in fields})


def _cast(kind: str, value: Any) -> Any:
    # A recipe writes 1.0 as 1 and a tuple as a list.
    if isinstance(value, list):
        return tuple(value)
    return {"float": float, "int": int}[kind](value) if kind in ("float", "int") else value
