# SPDX-License-Identifier: Apache-2.0
"""Inserts a block of numbers into the text of params.yaml and keeps all other lines and comments."""

from __future__ import annotations

import yaml

from eldistill.errors import Problem
from eldistill.plan.reading import compose_yaml, read_yaml


def insert(text: str, path: list[str], key: str, lines: list[str]) -> str:
    """`text` with `key` under the mapping at `path`, at its end; mappings that are missing are made.

    lines: what stands behind the key (a comment), then the lines of its block, not indented. Raises Problem where a mapping
    of the path is written in braces, or holds the key already, or where the result would say anything else.
    """
    node, depth = compose_yaml(text), 0
    while depth < len(path) and (below := _child(node, path[depth])) is not None:
        node, depth = below, depth + 1
    where = ".".join(path[:depth]) or "the file"
    if not isinstance(node, yaml.MappingNode) or not node.value or node.flow_style:
        raise Problem(f"params.yaml: {where} is not written with one key per line; insert the block by hand")
    if depth == len(path) and _child(node, key) is not None:
        raise Problem(f"params.yaml: {'.'.join([*path, key])} exists already; change it by hand")
    indent = node.value[0][0].start_mark.column
    new = []
    for name in path[depth:]:
        new.append(f"{' ' * indent}{name}:")
        indent += 2
    new += [f"{' ' * indent}{key}:    {lines[0]}", *(f"{' ' * (indent + 2)}{line}" for line in lines[1:])]
    rows = text.splitlines()
    at = len(rows) if node.end_mark.index >= len(text) else node.end_mark.line  # of the next key
    while not rows[at - 1].strip() or rows[at - 1].lstrip().startswith("#"):  # comments below belong to what follows
        at -= 1
    changed = "\n".join([*rows[:at], *new, *rows[at:]]) + "\n"
    expected = read_yaml(text)
    place = expected
    for name in path:
        place = place.setdefault(name, {})
    place[key] = read_yaml("\n".join(lines[1:]))
    if read_yaml(changed) != expected:
        raise Problem(
            f"params.yaml: {'.'.join([*path, key])} cannot be inserted without changing another key; insert it by hand"
        )
    return changed


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == name), None)
