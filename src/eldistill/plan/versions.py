# SPDX-License-Identifier: Apache-2.0
"""Names and versions of modules in recipes. They are read from the source text, so that planning imports nothing heavy."""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path
from typing import Any

from eldistill import paths
from eldistill.errors import Problem
from eldistill.files import write_text
from eldistill.registry import literal

# A module says in a literal who it is in recipes: RECIPE = (name, version). The name stays when the file moves, and the version is
# raised when a change of code changes results. A file without one that can change results names a module whose version is raised
# for it: COVERED_BY = name.
SAID = re.compile(r"^(RECIPE|COVERED_BY) = (.*)$", re.MULTILINE)
PLUG_INS = ("methods", "supplements", "ensemble", "spaces", "networks", "metrics")  # where a name is folder/file
# Modules that others are built on, by name: raising their version retires what those made.
USES = {
    "loop": ("noise",),
    "networks/song": ("networks/layers", "networks/precond"),
    "networks/adm": ("networks/layers", "networks/precond"),
    "networks/edm2": ("networks/layers", "networks/precond", "networks/adm"),
    "networks/ddpm": ("networks/precond",),
    "networks/guided": ("networks/layers", "networks/precond", "networks/adm"),
    "networks/baselines": ("networks/layers", "networks/precond", "networks/adm", "networks/song"),
    "networks/classifier": ("networks/layers",),
    "teacher/train": ("augment",),
    "ensemble/seed": ("noise", "mmd"),
    "ensemble/anchors": ("noise", "mmd"),
    "classes": ("noise",),
    "teacher/pairs": ("sampling", "noise"),
    "teacher/check": ("noise",),
    "teacher/pickles": ("teacher/machine",),
    "methods/diff_instruct": ("score", "augment"),
    "methods/dmd": ("score",),
    "methods/dmd2": ("score", "adversarial", "head"),
    "methods/sid": ("score", "augment"),
    "methods/sida": ("score", "adversarial", "augment"),
    "methods/sim": ("score", "augment"),
    "methods/f_divergence": ("score", "adversarial", "head"),
    "methods/consistency": ("score", "perceptual"),
    "supplements/embedding": ("ensemble/seed", "mmd", "augment", "balance"),
    "supplements/gan": ("adversarial", "head", "score", "balance"),
    "supplements/regression": ("perceptual",),
    "sampling": ("noise",),
    "spaces/inception_clean": ("spaces/inception",),
    "clean": ("fid",),
    "central": ("comparisons",),
    "speed": ("comparisons",),
    "summary": ("results",),
}


def uses(module: str) -> tuple[str, ...]:
    """The modules that a module depends on: its entry in USES, or, for a plug-in without one, the modules that it imports."""
    return USES[module] if module in USES else _imported(module)


@functools.cache
def _imported(module: str) -> tuple[str, ...]:
    if module.rpartition("/")[0] not in ("methods", "supplements", "ensemble", "metrics"):
        return ()
    counted, found = {**named_files(), **covering_names()}, set[str]()
    for node in ast.walk(ast.parse(source_of(module).read_text(encoding="utf-8"))):
        top, *below = (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else [""]
        if isinstance(node, ast.ImportFrom) and top == "eldistill":
            base = "/".join(below)
            for file in (base, *(f"{base}/{alias.name}".strip("/") for alias in node.names)):
                found |= {counted[each] for each in (file, f"{file}/__init__".strip("/")) if each in counted}
    return tuple(sorted(found - {module}))


def named_files() -> dict[str, str]:
    """{file below src/eldistill/, without its ending: the name in its RECIPE}."""
    return {file: name for name, (file, _) in _modules(paths.PACKAGE)[0].items()}


def covering_names() -> dict[str, str]:
    """{file below src/eldistill/, without its ending: the name in its COVERED_BY}."""
    return _modules(paths.PACKAGE)[1]


def recipe_name(file: str) -> str:
    """The name in the RECIPE, or in the COVERED_BY, of a file below src/eldistill/, without its ending. Raises Problem."""
    named = named_files() | covering_names()
    if file not in named:
        raise Problem(
            f'src/eldistill/{file}.py has neither a RECIPE nor COVERED_BY; add `RECIPE = ("{file}", 1)` below its imports'
        )
    return named[file]


@functools.cache
def _modules(package: Path) -> tuple[dict[str, tuple[str, int]], dict[str, str]]:
    # ({name: (file, version)} of every RECIPE, {file: name} of every COVERED_BY). Nothing is imported.
    recipes: dict[str, tuple[str, int]] = {}
    covers: dict[str, str] = {}
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).with_suffix("").as_posix()
        for key, text in SAID.findall(path.read_text(encoding="utf-8")):
            if key == "COVERED_BY":
                covers[file] = _covering(file, text)
                continue
            name, version = _named(file, text)
            if name in recipes:
                raise Problem(f"src/eldistill/{file}.py and src/eldistill/{recipes[name][0]}.py both have the name {name!r} in "
                              "their RECIPE; give one of them another name")  # fmt: skip
            recipes[name] = file, version
    for file, name in covers.items():
        if name not in recipes or file in (other for other, _ in recipes.values()):
            raise Problem(f"src/eldistill/{file}.py has COVERED_BY = {name!r}; expected the name in the RECIPE of another module, "
                          "and no RECIPE beside it")  # fmt: skip
    return recipes, covers


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return None


def _covering(file: str, text: str) -> str:
    found = _value(text)
    if not isinstance(found, str):
        raise Problem(f"src/eldistill/{file}.py has COVERED_BY = {text[:80]}; expected the name of another module's RECIPE, such as "
                      "'loop'")  # fmt: skip
    return found


def _named(file: str, text: str) -> tuple[str, int]:
    # The name and the version in a RECIPE.
    found, folder = _value(text), file.rpartition("/")[0]
    wanted = file if folder in PLUG_INS else "loop"
    kinds = tuple(map(type, found)) if isinstance(found, tuple) else None
    if kinds != (str, int) or (folder in PLUG_INS and found[0] != file):
        raise Problem(f'src/eldistill/{file}.py has RECIPE = {text[:80]}; expected a name and a whole number on one line, such as '
                      f'RECIPE = ("{wanted}", 1){"; here the name is folder/file" if folder in PLUG_INS else ""}')  # fmt: skip
    return found


def source_of(module: str) -> Path:
    """The file whose RECIPE has this name. Raises Problem if there is none."""
    return paths.PACKAGE / f"{_recipe_of(module)[0]}.py"


def _recipe_of(module: str) -> tuple[str, int]:
    if module not in (found := _modules(paths.PACKAGE)[0]):
        raise Problem(f"no module below src/eldistill/ has the name {module!r} in its RECIPE; add "
                      f'`RECIPE = ("{module}", 1)` below its imports')  # fmt: skip
    return found[module]


def literal_of(module: str, name: str, default: Any = None) -> Any:
    """Like `registry.literal`, for the module whose RECIPE has this name."""
    return literal(_recipe_of(module)[0], name, default)


def version_of(module: str) -> int:
    """The version in the RECIPE that has this name."""
    return _recipe_of(module)[1]


@functools.cache
def metric_names(labelled: bool = False) -> list[str]:
    """The names in METRICS and ALONE of evaluate/metrics.py, with labels those in LABELLED too, read without importing it: a new one
    is missing from old evaluations. A file in metrics/ is none of them: it enters only the recipes that ask for it."""
    found: dict[str, list[str]] = {}
    for node in ast.parse(source_of("metrics").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Dict):
            found[node.target.id] = [str(ast.literal_eval(key)) for key in node.value.keys if key]
    tables = ("METRICS", "ALONE", *(("LABELLED",) if labelled else ()))
    return [name for table in tables for name in found[table]]


def version_table() -> dict[str, int]:
    """All module versions: the content of workflow/versions.json, a dependency of each DVC stage."""
    return {name: version for name, (_, version) in sorted(_modules(paths.PACKAGE)[0].items())}


def write_versions(root: str | Path = ".") -> None:
    """Write workflow/versions.json, if it differs."""
    path, text = Path(root) / "workflow/versions.json", json.dumps(version_table(), indent=2, sort_keys=True) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
