# SPDX-License-Identifier: Apache-2.0
"""Stores the hashes of files outside the project in data/scratch/identities.

The keys are name, size and times, so that a file is read again only when one of them changed. This module imports nothing heavy."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from eldistill.files import read_note, write_text

HASHES = Path("data/scratch/identities")
PATIENCE = 5.0  # seconds between log lines while files are hashed


@dataclass(frozen=True)
class Identity:
    """The identity of a content: its sha256 and its number of files and bytes."""

    sha256: str
    files: int
    bytes: int


class File(NamedTuple):
    name: str
    size: int
    mtime: int
    ctime: int  # moves with a rename, which keeps mtime


class Progress:
    """Log lines while many or large files are hashed."""

    def __init__(self, name: str, count: int, size: int, say):
        self.name, self.count, self.size, self.say = name, count, size, say
        self.files = self.bytes = 0
        self.began = self.last = time.monotonic()

    def tell(self, size: int) -> None:
        self.files, self.bytes = self.files + 1, self.bytes + size
        if self.say and time.monotonic() - self.last > PATIENCE:
            self.last = time.monotonic()
            rate = self.bytes / (self.last - self.began)
            self.say(f"{self.name}: checking its content, {self.files:,} of at most {self.count:,} files hashed, "
                     f"{self.bytes / 1e9:.1f} of {self.size / 1e9:.1f} GB, {rate / 1e6:.0f} MB/s")  # fmt: skip


class Cache:
    """The stored hashes of one source. If they are lost or damaged, the files are hashed again.

    source: a text that distinguishes it from other sources."""

    def __init__(self, source: str, root: Path):
        stem = root / HASHES / hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
        self.all, self.each = stem.with_suffix(".json"), stem.with_suffix(".tsv")
        self.lines = 0

    def whole(self, listing: str, unsettled: int) -> Identity | None:
        """The stored identity if the listing of names, sizes and times is unchanged, otherwise None."""
        found = read_note(self.all) or {}
        try:
            if found["listing"] != listing or not (found["settled"] or unsettled == 0):
                return None
            identity = Identity(**found["identity"])
        except (KeyError, TypeError):
            return None
        return identity if re.fullmatch("[0-9a-f]{64}", str(identity.sha256)) else None

    def keep(self, listing: str, identity: Identity, settled: bool) -> None:
        text = json.dumps({"listing": listing, "identity": asdict(identity), "settled": settled})
        with contextlib.suppress(OSError):
            write_text(self.all, text)

    def load(self) -> dict[str, tuple[File, str, int]]:
        """{name: (file, sha256, time of hashing in nanoseconds)}. Incomplete lines are ignored."""
        known = {}
        with contextlib.suppress(OSError), open(self.each, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self.lines += 1
                with contextlib.suppress(ValueError, TypeError, RecursionError):
                    digest, hashed, size, mtime, ctime, name = json.loads(line)
                    if re.fullmatch("[0-9a-f]{64}", digest):
                        known[str(name)] = File(name, int(size), int(mtime), int(ctime)), digest, int(hashed)
        return known

    @contextlib.contextmanager
    def append(self) -> Iterator[Callable[[File, str, int], None]]:
        """Context with a function that stores the hash of a file, so that an interrupted run continues where it stopped."""
        with contextlib.ExitStack() as stack:
            file, last = None, time.monotonic()
            with contextlib.suppress(OSError):
                self.each.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(self.each, "a", encoding="utf-8"))
                file.write("\n")  # ends a line that may have been cut off

            def keep(each: File, digest: str, hashed: int) -> None:
                nonlocal last
                if file is not None and hashed:
                    self.lines += 1
                    file.write(_line(each, digest, hashed))
                    if time.monotonic() - last > 1:
                        last = time.monotonic()
                        file.flush()

            yield keep

    def tidy(self, names: list[str], known: dict[str, tuple[File, str, int]]) -> None:
        """Rewrite the file without the lines of removed files, if those are the majority."""
        if self.lines > 2 * len(names) + 100:
            lines = (_line(*known[name]) for name in names if known[name][2])
            with contextlib.suppress(OSError):
                write_text(self.each, "".join(lines))


def _line(file: File, digest: str, hashed: int) -> str:
    return json.dumps([digest, hashed, file.size, file.mtime, file.ctime, file.name]) + "\n"
