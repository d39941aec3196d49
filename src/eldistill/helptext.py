# SPDX-License-Identifier: Apache-2.0
"""The numbers of params.yaml as help text, from the schema and the modules: help and schema cannot differ."""

from __future__ import annotations

from eldistill import params
from eldistill.recipes import WORDS

SECTIONS = {"data": ("data",), "teacher": ("teacher",), "ensemble": ("ensemble", "member"), "distil": ("distil", "method", "supplement"),
            "evaluate": ("evaluate",), "tables": ("tables",)}  # fmt: skip
MODULES = {"ensemble": ("ensemble",), "distil": ("methods", "supplements")}


def numbers(word: str) -> str:
    """Every key that a step reads: name, meaning, range, default. Raises Problem if params.yaml is not here."""
    assert word in WORDS
    try:
        values = params.load()
    except params.Problem as problem:
        return f"(the numbers could not be listed: {problem})"
    lines = ["numbers in params.yaml:"]
    for section in SECTIONS[word]:
        lines += ["", f"  {section}:", *_keys(values.definitions[section], values.definitions, "    ")]
    for kind in MODULES.get(word, ()):
        for path in sorted((params.PACKAGE / kind).glob("*.py")):
            declared = params.declared(kind, path.stem) if not path.stem.startswith("_") else {}
            if declared:
                lines += ["", f"  {kind}/{path.stem}:", *_keys({"properties": declared}, {}, "    ")]
    return "\n".join(lines)


def _keys(schema: dict, definitions: dict, indent: str) -> list[str]:
    lines = []
    for key, each in schema.get("properties", {}).items():
        each = params._follow(each, definitions)
        default = "" if "default" not in each or each.get("properties") else f", default {each['default']}"
        lines.append(f"{indent}{key}: {params._expected(each)}{default}")
        lines += _keys(each, definitions, indent + "  ")
    return lines
