# SPDX-License-Identifier: Apache-2.0
"""Lists the plug-in modules of a folder and reads the literals in them, without importing them."""

from __future__ import annotations

import ast
import dataclasses
import functools
from typing import Any

from eldistill import paths


@functools.cache
def available(kind: str) -> list[str]:
    """The names in src/eldistill/<kind>/: files with a class Numbers, or for networks with a class Settings."""
    wanted = "class Settings" if kind == "networks" else "class Numbers"
    found = (paths.PACKAGE / kind).glob("*.py")
    return sorted(p.stem for p in found if f"\n{wanted}" in p.read_text(encoding="utf-8"))


@functools.cache
def spaces() -> dict[str, str]:
    """Every feature space: its name and the file in spaces/ that defines it."""
    files = sorted(path.stem for path in (paths.PACKAGE / "spaces").glob("[a-z]*.py"))
    return {name: file for file in files for name in literal(f"spaces/{file}", "NAMES", ())}


@functools.cache
def settings(file: str) -> list[str]:
    """The keyword arguments of networks/<file>.py: the fields of its class Settings, without importing it."""
    return list(setting_fields(file))


@functools.cache
def setting_fields(file: str) -> dict[str, tuple[str, Any]]:
    """{field: (annotation, default)} of the class Settings in networks/<file>.py; None where the default is no literal."""
    tree = ast.parse((paths.PACKAGE / "networks" / f"{file}.py").read_text(encoding="utf-8"))
    fields = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings").body
    return {
        item.target.id: (ast.unparse(item.annotation), _plain(item.value))
        for item in fields
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def _plain(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


@functools.cache
def literal(file: str, name: str, default: Any = None) -> Any:
    """The literal value of `name` in src/eldistill/<file>.py, read without importing it; default if there is none."""
    for node in ast.parse((paths.PACKAGE / f"{file}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    return default


@functools.cache
def defines(file: str, name: str, imported: bool = True) -> bool:
    """Whether src/eldistill/<file>.py defines a function of this name, read without importing it; imported: importing one as this
    name counts, too."""
    for node in ast.parse((paths.PACKAGE / f"{file}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return True
        if (
            imported
            and isinstance(node, ast.ImportFrom)
            and any((alias.asname or alias.name) == name for alias in node.names)
        ):
            return True
    return False


@dataclasses.dataclass(frozen=True)
class Reader:
    """The literals that the file of a data set reader declares; eldistill/data/readers/__init__.py explains them."""

    options: tuple[str, ...]  # keys of a data setting that it reads, of those that belong to a source
    needs: tuple[str, ...]  # those of them that must be given
    modules: tuple[str, ...]  # RECIPE names of modules whose versions count for its packs, beside those of all packs
    downloads: tuple[str, ...]  # rows of data/sources.csv, with {key} for a value of the data setting
    endings: tuple[str, ...]  # of the files that it reads in a folder; none where `path` must be a file
    classes: tuple[str, ...]  # names of the labels 0, 1, …
    shape: tuple[int, ...]  # (channels, side) of its images; 0 for what differs between its sources, () if both do
    images: tuple[int, ...]  # (images, test images) of its only source; () if there are several sources


@functools.cache
def readers() -> dict[str, Reader]:
    """Every reader of data sets, by the name that `source` of a data setting has: the files of data/readers/."""
    names = sorted(path.stem for path in (paths.PACKAGE / "data/readers").glob("[a-z]*.py"))
    return {name: _reader(f"data/readers/{name}") for name in names}


def _reader(file: str) -> Reader:
    return Reader(**{field.name: literal(file, field.name.upper(), ()) for field in dataclasses.fields(Reader)})
