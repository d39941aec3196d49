# SPDX-License-Identifier: Apache-2.0
"""Reads and merges the YAML files of a project's parameters, and finds the file that holds a key."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from eldistill.errors import Problem, brief, log_traceback, quoted
from eldistill.plan import yamltext
from eldistill.plan.schema import Wrong, merge_mappings

# A later file wins. Only the last one is meant to be edited; the Snakefile and dvc.yaml name them too.
FILES = (
    "workflow/params/paper.yaml",
    "workflow/params/ablation.yaml",
    "workflow/params/colour.yaml",
    "params.yaml",
)


def read_yaml(text: str) -> Any:
    """The value of a YAML text, with numbers as YAML 1.2 reads them. Raises yaml.YAMLError, or Problem if a mapping has a key
    twice, of which YAML would silently take the second, or for what no settings may have (eldistill.plan.yamltext)."""
    yamltext.check_text(text)
    loader = yamltext.Loader(text)
    try:
        node = loader.get_single_node()
        if twice := _twice(node):
            raise Problem(twice)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def compose_yaml(text: str) -> yaml.Node | None:
    """The YAML text as a tree of nodes, which know their lines. Raises as `read_yaml`."""
    yamltext.check_text(text)
    loader = yamltext.Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


def _twice(node: yaml.Node | None) -> str | None:
    # A sentence about all keys that occur twice in a mapping; None if there is none.
    found = list(_repeated(node, ""))
    if not found:
        return None
    second = (
        "the second one to the first, and remove the second"
        if len(found) == 1
        else "each second one to its first, and remove it"
    )
    return f"{'; '.join(found)}; move what is below {second}"


def _repeated(node: yaml.Node | None, where: str) -> Iterator[str]:
    if isinstance(node, yaml.SequenceNode):
        for index, each in enumerate(node.value):
            yield from _repeated(each, f"{where}[{index}]")
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, tuple[int, yaml.Node]] = {}
    for key, value in node.value:
        place = f"{where}.{key.value}" if where else str(key.value)
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.value != "<<" and key.value in first:
            above, there = first[key.value]
            yield f"{place} occurs twice, in line {above} and in line {line}{_home(there, value, place)}"
        first.setdefault(str(key.value), (line, value))
        yield from _repeated(value, place)


def _home(first: yaml.Node, second: yaml.Node, place: str) -> str:
    # Where the content of a second section belongs in the first, if that is deeper than the section itself.
    line = 0
    while isinstance(first, yaml.MappingNode) and isinstance(second, yaml.MappingNode) and len(second.value) == 1:
        ((wanted, inside),) = second.value
        found = next(((key, value) for key, value in first.value if key.value == wanted.value), None)
        if found is None:
            break
        place, line = f"{place}.{wanted.value}", found[0].start_mark.line + 1
        first, second = found[1], inside
    return f" (what it adds belongs below {place}, in line {line})" if line else ""


def _where(error: yaml.YAMLError) -> str:
    # Near which lines, and what to look at.
    marks = [getattr(error, name, None) for name in ("context_mark", "problem_mark")]
    lines = sorted({mark.line + 1 for mark in marks if mark})
    near = f"near line{'s' * (len(lines) > 1)} {' to '.join(map(str, lines))}" if lines else "anywhere"
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{near}: {problem[:100]}; compare the indentation there with the lines around it, and each bracket and quote with its partner"


def read_file(path: Path) -> Any:
    """The value of one YAML file. Raises Problem if it is missing, not YAML, or anything else is wrong with it."""
    text = yamltext.read_text(path)
    try:
        return read_yaml(text)
    except Problem as problem:
        raise Problem(f"{path.name}: {problem}") from None
    except yaml.YAMLError as error:
        if odd := yamltext.odd_indentation(text):
            raise Problem(f"{path.name}: {odd}") from None
        raise Problem(f"{path} is not YAML {_where(error)}") from None
    except (MemoryError, OSError):
        raise
    except Exception as error:  # whatever a library makes of a strange text
        log_traceback(path, error)
        raise Problem(
            f"{path} is not understood ({brief(error)}); compare it with the file that the project came with"
        ) from error


def read_files(root: Path, last: Path | None = None) -> dict[str, Any]:
    """{name in FILES: value} of the files below `root`. last: a file to read instead of params.yaml.

    Files of workflow/params may be missing. Raises Problem."""
    found = {name: read_file(root / name) for name in FILES[:-1] if (root / name).exists()}
    return found | {FILES[-1]: read_file(last or root / FILES[-1])}


def _not_sections(value: Any) -> str:
    if value is None:
        return "is empty; expected sections such as `data:`: if it is in git, `git checkout` restores it"
    return f"holds {'a list' if isinstance(value, list) else 'one value'}; expected sections such as `data:`, one below the other"


def merge_files(found: dict[str, Any]) -> dict[str, Any]:
    """One mapping of all files, in which later files win. Raises Problem if a file is not a mapping."""
    for name, each in found.items():
        if not isinstance(each, dict):
            raise Problem(f"{name} {_not_sections(each)}")
    *below, last = found.values()
    # Its keys come first, so that sentences and lists begin with what a user wrote; its values come last, so that they win.
    return functools.reduce(merge_mappings, [*below, last], last)


# --- where a key stands ---------------------------------------------------------------------------------


def file_of(found: dict[str, Any], places: list[str]) -> str:
    """The file that holds a key, or most of the way to it; of several the one that wins."""
    depth = {name: max(_depth(values, place) for place in places) for name, values in found.items()}
    return max(reversed(depth), key=depth.__getitem__)


def _depth(values: Any, place: str) -> int:
    # How many characters of a dotted place there are keys for. A name may have dots of its own; behind a list there is no key.
    best = 0
    if isinstance(values, dict):
        for key, item in values.items():
            if (rest := place.removeprefix(str(key))) != place and (not rest or rest[0] in ".[: "):
                best = max(best, len(str(key)) + 1 + _depth(item, rest[1:]))
    return best


def with_file_name(wrong: Wrong, root: Path) -> Wrong:
    """The same Wrong with the name of the file that holds the key, and the whole key there, if the files can be read."""
    try:
        found = read_files(root)
    except (Problem, OSError):
        return wrong  # there is no file: parameters of a test, or of Snakemake alone
    wrong.file = file_of(found, wrong.places)
    for place in wrong.places[1:]:  # blocks for a data setting, of which a later one wins
        if _depth(found[wrong.file], place.partition("[")[0]) > len(place.partition("[")[0]):
            wrong.where = place
    return wrong


def _leaves(values: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    # (path of keys, value) of everything in mappings; an empty mapping is a value.
    if not isinstance(values, dict) or not values:
        yield where, values
        return
    for key, item in values.items():
        yield from _leaves(item, (*where, str(key)))


def _there(values: Any, path: tuple[str, ...]) -> tuple[Any, int]:
    # The value at a path and the number of its keys that are there; None if not all are.
    for depth, key in enumerate(path):
        if not isinstance(values, dict) or key not in values:
            return None, depth
        values = values[key]
    return values, len(path)


def _alike(given: Any, here: Any) -> bool:
    # Snakemake reads 1e-5 as a text, and 5 of --config as a number.
    number = isinstance(given, str) and yamltext.NUMBER.fullmatch(given)
    return given == here or (isinstance(here, float) and bool(number) and float(given) == here)


def refuse_config(given: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise Problem at the first number but `suite` that was given to Snakemake and the files have not, or have otherwise."""
    merged = merge_files(found)
    for path, there in _leaves(given):
        here, depth = _there(merged, path)
        if path == ("suite",) or (depth == len(path) and _alike(there, here)):
            continue
        if depth < len(path) - 1:  # a section that the files lack is named, rather than its first key
            path, there = path[: depth + 1], {}
        where = ".".join(path)
        file = file_of(found, [where])
        what = "a section" if isinstance(there, dict) else quoted(there)
        has, also = "has none", ""
        if here is not None:
            key = where if file == FILES[-1] else f"{file}:{where}"
            has, also = (
                f"has {quoted(here)}",
                f" (`dvc exp run -S {key}={quoted(there) if isinstance(there, list) else there}` does)",
            )
        raise Problem(
            f"--config or --configfile gives {where} as {what}, and {file} {has}; steps and DVC read {file}, so write it there"
            f"{also}: only `--config suite=NAME` is obeyed"
        )


def check_before_snakemake(root: Path, others: Iterable[str | Path] = ()) -> None:
    """Read every settings file with this reader before Snakemake reads it with its own, which takes the second of two keys, and
    runs templates if a file asks for it. Raises Problem.

    others: files of `--configfile`. Snakemake has read those already, before it reads any line of a Snakefile."""
    # Steps read the files beside the Snakefile, Snakemake those of the current folder, which is another one with --directory.
    files = [root / FILES[-1], *(folder / name for folder in {root.resolve(), Path.cwd()} for name in FILES)]
    for path in filter(Path.exists, dict.fromkeys(files)):
        _check_settings(path, "asks Snakemake to run the file as a program; write values and remove that key")
    for path in map(Path, others):
        _check_settings(
            path,
            "made Snakemake run the file as a program before any other file was read; write values, remove that key, and if the "
            "file is not yours, look at what it did",
        )


def _check_settings(path: Path, template: str) -> None:
    values = read_file(path)
    if not isinstance(values, dict):
        raise Problem(f"{path.name} {_not_sections(values)}")
    if "__use_yte__" in values:
        raise Problem(f"{path.name}: __use_yte__ {template}")
