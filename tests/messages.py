# SPDX-License-Identifier: Apache-2.0
"""Prints every text of the project that a user reads, by file and line: errors, log lines, help texts.

python tests/messages.py                  # all of them
python tests/messages.py plan/ external/  # those of some files below src/eldistill
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT

ERRORS = {"Problem", "Wrong", "Refused", "NonFinite", "Stopped", "Lost", "_Broken", "ValueError", "RuntimeError"}
LOGS = {"say", "log", "print"}
HELP = {"Tool", "option", "number", "add_argument", "add_parser", "ArgumentParser"}


def texts(file: Path) -> Iterator[tuple[int, str, str]]:
    """(line, "error", "log" or "help", text) of every message in a Python file. `{}` stands for a value that is put in."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and (kind := _kind(node)):
            for argument in (*node.args, *(each.value for each in node.keywords)):
                if " " in (found := _text(argument)):
                    yield argument.lineno, kind, found


def _kind(call: ast.Call) -> str | None:
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    kinds = (("error", ERRORS), ("log", LOGS), ("help", HELP))
    return next((kind for kind, names in kinds if name in names), None)


def _text(node: ast.AST) -> str:
    # The text of an expression that builds a string, with {} for the values in it.
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_text(node.left) or "{}") + (_text(node.right) or "{}")
    if isinstance(node, ast.IfExp):
        return " | ".join(filter(None, (_text(node.body), _text(node.orelse))))
    return ""


def descriptions(schema: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(place of the key, help text) of every key of workflow/schemas/params.schema.yaml."""
    if isinstance(schema, dict):
        if isinstance(schema.get("description"), str):
            yield where, schema["description"]
        for key, value in schema.items():
            yield from descriptions(
                value, where if key in ("properties", "$defs", "items") else f"{where}.{key}".strip(".")
            )


def main(wanted: list[str]) -> None:
    """Print the messages of all files, or of those whose path below src/eldistill contains one of the words."""
    package = ROOT / "src/eldistill"
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package).as_posix()
        if not wanted or any(word in name for word in wanted):
            for line, kind, text in sorted(texts(file)):
                print(f"{name}:{line}: {kind}: {' '.join(text.split())}")
    if not wanted:
        schema = yaml.safe_load((ROOT / "workflow/schemas/params.schema.yaml").read_text(encoding="utf-8"))
        for where, text in descriptions(schema):
            print(f"params.yaml: {where}: help: {' '.join(text.split())}")


if __name__ == "__main__":
    main(sys.argv[1:])
