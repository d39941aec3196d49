# SPDX-License-Identifier: Apache-2.0
"""Reads labels of images from dataset.json or from folders of classes: numbers 0 … C - 1 and the names of the classes.

The classes are those that have images, in sorted order: numbers by their value, folders by their name. Their names
are those of the source. One-hot labels are C wide, so gaps in the numbers of a source are closed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eldistill.data.containers import LARGEST, Container
from eldistill.errors import Problem
from eldistill.external import listing
from eldistill.external.listing import Listing
from eldistill.external.zips import size_of
from eldistill.files import parse_json

RECIPE = ("labels", 1)
DIGITS, MOST_NAMES, LONGEST_NAME = 40, 1_000_000, 256  # of a label; number of names of classes, and characters of one
TRAINING = {"train", "training"}
SPLITS = TRAINING | {"val", "valid", "validation", "dev", "test", "testing"}


@dataclass(frozen=True)
class Labels:
    """numbers: int64 [n], 0 … C - 1, or -1 for all images where there are no classes. names: C names. notes: sentences about
    what was decided."""

    numbers: np.ndarray
    names: list[str]
    notes: list[str] = field(default_factory=list)


def renumber(values: Iterable, names: dict | None = None) -> Labels:
    """Labels 0 … C - 1 for raw labels, whole numbers or texts, in sorted order. If a number is below 0 there are no classes.

    names: {raw label: name of the class}; the default is its text.
    """
    values = values.tolist() if isinstance(values, np.ndarray) else list(values)
    found = sorted(set(values))
    if not found or (isinstance(found[0], int) and found[0] < 0):
        return Labels(np.full(len(values), -1, np.int64), [])
    numbers = {value: number for number, value in enumerate(found)}
    # A folder's name need not be UTF-8, and JSON can write half a character: the names of classes become texts of other files.
    called = [(names or {}).get(value, str(value)).encode("utf-8", "backslashreplace").decode() for value in found]
    return Labels(np.array([numbers[value] for value in values], np.int64), called, _renumbered(found))


def _renumbered(found: list) -> list[str]:
    if isinstance(found[0], str) or found == list(range(len(found))):
        return []
    text = ", ".join(map(str, found if len(found) <= 8 else [*found[:4], "…", found[-1]]))
    return [f"labels {text} become 0 to {len(found) - 1}, in this order; their names keep what they were"]


def labels_of_listing(path: Path, files: Listing, container: Container, folders: bool = True) -> Labels:
    """Labels of files.names: from the table of the listing if there is one, otherwise from folders of classes, otherwise none.

    folders: whether folders can be classes; for latents only the table counts. Raises Problem.
    """
    if files.labels is not None:
        table, names, notes = _table(path, files, container)
        found = _by_table(path, files, table, names) if table else renumber([-1] * len(files.names))
        return Labels(found.numbers, found.names, [*notes, *found.notes])
    return _by_folders(path, files.names) if folders else renumber([-1] * len(files.names))


# --- dataset.json -------------------------------------------------------------------------------------


class _Pairs(list):
    """The pairs of a JSON object. A dict would silently keep only the last of two equal keys."""


def _table(path: Path, files: Listing, container: Container) -> tuple[dict[str, int], dict[int, str], list[str]]:
    # {name beside the table: raw label}, empty where it says that there are no labels; {raw label: name} where it says that;
    # and sentences about it.
    where = f"{path}/{files.labels}"
    with container.open(files.labels) as file:
        if size_of(file) > LARGEST:
            raise Problem(f"{where} has more than {LARGEST:,} bytes; expected a table of labels")
        content = file.read()
    try:
        top = parse_json(content, _Pairs)
        pairs = [(_plain(name), label) for name, label in (dict(top).get("labels") or [])]
        names = dict(top).get("class_names") or []
        understood = isinstance(top, _Pairs) and isinstance(names, list) and all(isinstance(n, str) for n in names)
        understood &= len(set(names)) == len(names) <= MOST_NAMES and all(len(n) <= LONGEST_NAME for n in names)
    except (ValueError, TypeError, AttributeError):
        understood = False
    if not understood:
        raise Problem(f'{where} is not understood; expected {{"labels": [[name, whole number], …]}}')
    table: dict[str, int] = {}
    for name, label in pairs:
        label = _whole(where, name, label)
        if table.setdefault(name, label) != label:
            raise Problem(f"{where} gives {name} two labels, {table[name]} and {label}; keep one of the two lines")
    twice = len(pairs) - len(table)
    notes = [f"{files.labels} names {twice:,} files twice, with the same label"] if twice else []
    if not pairs and dict(top).get("labels", 0) is not None:
        notes.append(
            f'{files.labels} has no labels, so that there are no classes; {{"labels": null}} says that this is meant'
        )
    return table, dict(enumerate(names)), notes


def _plain(name: str) -> str:
    # Windows writes backslashes. AttributeError for what is no text.
    return name.replace("\\", "/").removeprefix("./")


def _whole(where: str, name: str, label) -> int:
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 10**DIGITS:
        shown = json.dumps(label)[:40]
        more = f" of at most {DIGITS} digits" if isinstance(label, int) and label > 0 else " from 0"
        raise Problem(f"{where} gives {name[:200]} the label {shown}; expected a whole number{more}, such as 3")
    return label


def _by_table(path: Path, files: Listing, table: dict[str, int], names: dict[int, str]) -> Labels:
    base = files.labels.removesuffix(listing.LABELS)
    inner = [_plain(name.removeprefix(base)) for name in files.names]
    missing = [name for name in inner if name not in table]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise Problem(f"{path}/{files.labels} has no label for {missing[0]}{more}; expected one for every image")
    notes, highest, spare = [], max(table[name] for name in inner), table.keys() - set(inner)
    if names and highest not in names:
        notes.append(
            f"{files.labels} has {len(names):,} class_names, its labels go to {highest:,}: the names are not taken"
        )
        names = {}
    if spare:
        notes.append(f"{files.labels} has labels for {len(spare):,} files that are not there, such as {min(spare)}")
    labels = renumber((table[name] for name in inner), names)
    return Labels(labels.numbers, labels.names, [*labels.notes, *notes])


# --- folders of classes -------------------------------------------------------------------------------


def _by_folders(path: Path, names: list[str]) -> Labels:
    base = listing.outer_folders(names)[-1]
    inner = [name.removeprefix(base).split("/") for name in names]
    tops = {parts[0] for parts in inner if len(parts) > 1}
    depth, notes = 0, []
    if len(tops) > 1 and all(top.lower() in SPLITS for top in tops):
        depth = 1
        notes = [f"{_listed(tops)} are merged; the held-out images are chosen from all of them by `heldout`"]
    loose = [name for name, parts in zip(names, inner, strict=True) if len(parts) < depth + 2]
    classes = {parts[depth] for parts in inner if len(parts) > depth + 1}
    if len(classes) < 2:
        return Labels(np.full(len(names), -1, np.int64), [], notes)
    if loose:
        raise Problem(
            f"{path}/{loose[0]}{f' and {len(loose) - 1:,} more' if len(loose) > 1 else ''} lies beside the folders of classes "
            f'({_listed(classes)}); move it into one of them, or elsewhere; for images without classes write {{"labels": null}} into '
            f"{path}/{listing.LABELS}"
        )
    if depth:
        _check_splits(path, inner)
    found = renumber(parts[depth] for parts in inner)
    return Labels(found.numbers, found.names, [*notes, *found.notes])


def _check_splits(path: Path, inner: list[list[str]]) -> None:
    # A folder that is in the test part only, such as test/images, is no class of the training part.
    of = {top: {parts[1] for parts in inner if parts[0] == top} for top in {parts[0] for parts in inner}}
    train = set().union(*(classes for top, classes in of.items() if top.lower() in TRAINING))
    for top, classes in sorted(of.items()):
        if train and (alone := classes - train):
            raise Problem(
                f"{path}: {top} has the class {min(alone)}, which the training images lack; move {top}/{min(alone)} elsewhere"
            )


def _listed(words: Iterable[str], most: int = 5) -> str:
    words = sorted(words)
    return ", ".join(words[:most]) + (f" and {len(words) - most:,} more" if len(words) > most else "")


# --- printing -----------------------------------------------------------------------------------------


def count_labels(numbers: np.ndarray, classes: int) -> list[int]:
    """The number of images in each class."""
    return np.bincount(numbers, minlength=classes).tolist() if classes else []


def class_table(names: list[str], counts: list[int]) -> list[str]:
    """Lines for the log: the classes with their numbers of train images, abridged if there are more than 20."""
    if not names:
        return ["no classes"]
    if len(names) <= 20:
        each = ", ".join(f"{name} {number:,}" for name, number in zip(names, counts, strict=True))
        lines = [f"classes  {each} (train images)"]
    else:
        (few, rare), (many, frequent) = min(zip(counts, names, strict=True)), max(zip(counts, names, strict=True))
        lines = [f"classes  {len(names):,}, from {rare} with {few:,} train images to {frequent} with {many:,}"]
    if empty := [name for name, number in zip(names, counts, strict=True) if not number]:
        lines.append(f"{_listed(empty)}: no train image; all that the class has are held out or beyond `limit`")
    return lines
