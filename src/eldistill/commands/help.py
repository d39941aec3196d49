# SPDX-License-Identifier: Apache-2.0
"""Help texts of the numbers in params.yaml, generated from the schema and the modules, so that they cannot differ."""

from __future__ import annotations

from eldistill.errors import Problem
from eldistill.numbers import declared
from eldistill.plan import params, schema
from eldistill.plan.recipes import WORDS
from eldistill.registry import available

SECTIONS = {"data": ("data",), "teacher": ("teacher",), "ensemble": ("ensemble", "member"), "distil": ("distil", "method", "supplement"),
            "evaluate": ("evaluate",), "tables": ("tables",)}  # fmt: skip
MODULES = {"ensemble": ("ensemble",), "distil": ("methods", "supplements")}


def describe_numbers(word: str) -> str:
    """Text with every key that a step reads: name, meaning, range, default. If params.yaml is missing the text says so."""
    assert word in WORDS
    try:
        values = params.load_params()
    except Problem as problem:
        return f"(the numbers could not be listed: {problem})"
    lines = ["numbers in params.yaml:"]
    for section in SECTIONS[word]:
        lines += ["", f"  {section}:", *_keys(values.definitions[section], values.definitions, "    ")]
    for kind in MODULES.get(word, ()):
        for file in available(kind):
            if keys := declared(kind, file):
                lines += ["", f"  {kind}/{file}:", *_keys({"properties": keys}, {}, "    ")]
    return "\n".join(lines)


def _keys(section: dict, definitions: dict, indent: str) -> list[str]:
    lines = []
    for key, each in section.get("properties", {}).items():
        each = schema.follow_reference(each, definitions)
        default = "" if "default" not in each or each.get("properties") else f", default {each['default']}"
        lines.append(f"{indent}{key}: {schema.expected_value(each)}{default}")
        lines += _keys(each, definitions, indent + "  ")
    return lines
