# SPDX-License-Identifier: Apache-2.0
"""Records of the files that a step wrote: their sizes and sha256, kept beside them, so that edits by hand are noticed.

The record is versioned with the outputs, so it also holds after a checkout, a clone or a pull. Results that were made before
there were records have none and are trusted. Only sizes of large files are compared: planning reads no weights. provenance.json
is omitted, because it differs between equal runs and the record must not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from eldistill.files import canonical, read_note, replace_text, sha256

SEEN = "data/scratch/seen.json"
LARGE = 1_000_000  # bytes; a longer file is compared by its size
OMITTED = ("provenance.json",)

# Digests by path, size and mtime: what was hashed once need not be read at the next plan.
_seen: dict[str, dict[str, list]] = {}


def write_record(
    root: Path, record: str, digest: str, outputs: Iterable[str], kept: Mapping[str, str] | None = None
) -> None:
    """Record the files that the recipe with this digest has made. kept: {run: sha256} of the results of runs that have a line in the
    suite's kept file: of the line if it was read, otherwise of the line that the files on the disk would have."""
    found = {}
    for output in outputs:
        if (path := root / output).name not in OMITTED:
            size = path.stat().st_size
            found[output] = [size, sha256(path) if size <= LARGE else None]
    read = {"kept": dict(kept)} if kept else {}
    replace_text(root / record, canonical({"recipe": digest, "files": found, **read}))


def changed_outputs(root: Path, record: str, digest: str) -> list[str]:
    """Files that differ from their record; none if the record is missing, damaged, or of another recipe."""
    noted = read_note(os.path.join(root, record)) or {}
    try:
        if noted["recipe"] != digest:
            return []
        return [output for output, each in noted["files"].items() if _differs(root, output, *each)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def other_lines(root: Path, record: str, digest: str, lines: Mapping[str, str]) -> dict[str, str]:
    """{run: sha256 of its results when they were read} of the runs whose line in `lines` has another one; none if the record is missing,
    damaged, or of another recipe."""
    noted = read_note(os.path.join(root, record)) or {}
    try:
        read = noted.get("kept", {}) if noted["recipe"] == digest else {}
        return {run: sha256 for run, sha256 in read.items() if lines.get(run, sha256) != sha256}
    except (KeyError, TypeError, AttributeError):
        return {}


def _differs(root: Path, output: str, size: int, wanted: str | None) -> bool:
    try:
        found = os.stat(os.path.join(root, output))
    except OSError:
        return False  # a missing file is another matter: Step.fresh asks for it
    return found.st_size != size or (wanted is not None and _digest(root, output, found) != wanted)


def _digest(root: Path, output: str, found: os.stat_result) -> str:
    known, signature = _known(os.path.abspath(root)), [found.st_size, found.st_mtime_ns, found.st_ino]
    if (noted := known.get(output)) and noted[:3] == signature:
        return noted[3]
    known[output] = [*signature, sha256(root / output)]
    known[""] = []  # to be saved
    return known[output][3]


def _known(root: str) -> dict[str, list]:
    if root not in _seen:
        read = read_note(Path(root, SEEN)) or {}
        _seen[root] = {name: each for name, each in read.items() if isinstance(each, list) and len(each) == 4}
    return _seen[root]


def save_seen(root: Path) -> None:
    """Keep the digests for the next plan. Losing them costs only time, so a folder of another user is no problem."""
    known = _known(os.path.abspath(root))
    if known.pop("", None) is not None:
        try:
            replace_text(root / SEEN, json.dumps(known))
        except OSError:
            pass
