# SPDX-License-Identifier: Apache-2.0
"""The identity of what lies outside git: images, a network's file, weights, statistics. A recipe that names a path holds it.

It is the sha256 of a file; of a folder that of the sorted (name, sha256) of the files that are read of it, without times. The
process that plans measures it and records it in data/sources.lock.csv. Jobs take what is recorded and hash nothing. Where a
source is absent, what is recorded holds. Hashes are kept in data/scratch/identities by name, size and times of a file, so that
a file is read again only when one of them changed. This file imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from eldistill import sourcelock
from eldistill.files import Problem, sha256, write_text
from eldistill.listing import READ_AS, is_path
from eldistill.schema import OutsidePath

HASHES = Path("data/scratch/identities")
# A file that was written so shortly before it was hashed may have changed since under the same time: file systems count in
# steps of up to two seconds. Its hash is not trusted by later plans.
UNSETTLED_NS = 2_000_000_000
PATIENCE = 5.0  # seconds of hashing after which a line says so


@dataclass(frozen=True, order=True)
class Source:
    """A path outside: its name in recipes and in the lock (the path as params.yaml has it), what it is read as, where it is
    (empty: nowhere here), and the detail that READ_AS needs."""

    name: str
    read_as: str
    path: str
    detail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Identity:
    """Of a content: its digest, how many files and bytes it has."""

    sha256: str
    files: int
    bytes: int


class _File(NamedTuple):
    name: str
    size: int
    mtime: int
    ctime: int  # moves with a rename, which keeps mtime


def named(params) -> Iterator[Source]:
    """Every source that resolved parameters name, at any depth."""
    values = params.items() if isinstance(params, dict) else enumerate(params if isinstance(params, list) else ())
    for _, value in values:
        if isinstance(value, OutsidePath):
            if is_path(value.read_as, value):
                reader = (params.get("source", ""),) if value.read_as == "images" else ()
                yield Source(str(value), value.read_as, str(value), reader)
        else:
            yield from named(value)


def _listed(source: Source, root: Path) -> list[str]:
    """The sorted names of the files of a source, one empty name if it is a file itself; none if it is absent. Raises OSError
    if it is there but cannot be read."""
    path = root / source.path
    try:
        kind = path.stat().st_mode if source.path else 0
    except (FileNotFoundError, NotADirectoryError):
        return []
    if stat.S_ISDIR(kind):
        return sorted(READ_AS[source.read_as](path, source.detail))
    return [""] if stat.S_ISREG(kind) else []  # a pipe or a device has no content that stays


def _place(folder: Path, name: str) -> str:
    return os.path.join(folder, name) if name else str(folder)


def _file(folder: Path, name: str) -> _File:
    about = os.stat(_place(folder, name))
    return _File(name, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


# --- measuring ------------------------------------------------------------------------------------------


def measure(source: Source, root: Path = Path(), say=None, unsettled: int | None = None) -> Identity | None:
    """The identity of what lies there now, None if nothing does. Only files that changed since the last call are read.
    Raises OSError if it cannot be read. unsettled: nanoseconds, UNSETTLED_NS unless given."""
    unsettled = UNSETTLED_NS if unsettled is None else unsettled
    names, folder, listing, size = _listed(source, root), root / source.path, hashlib.sha256(), 0
    if not names:
        return None
    for name in names:  # a million files: nothing of them is kept where nothing changed
        file = _file(folder, name)
        listing.update(os.fsencode(name) + f"\0{file[1:]}\n".encode())
        size += file.size
    cache = _Cache(source, root)
    if found := cache.whole(listing.hexdigest(), unsettled):
        return found
    found, settled = _hash(folder, names, cache, _Progress(source, len(names), size, say), unsettled)
    cache.keep(listing.hexdigest(), found, settled)
    return found


def _hash(folder: Path, names: list[str], cache: _Cache, progress: _Progress, unsettled: int) -> tuple[Identity, bool]:
    """The identity, and whether no file may have changed since it was hashed; what is hashed is kept at once."""
    known, total, size, all_settled, digest = cache.load(), hashlib.sha256(), 0, True, ""
    with cache.append() as keep:
        for name in names:
            file = _file(folder, name)
            before, digest, hashed = known.get(name, (None, "", 0))
            if before != file or file.ctime + unsettled > hashed:
                hashed = time.time_ns()
                digest = sha256(_place(folder, name))
                if _file(folder, name) != file:
                    hashed = 0  # it is being written: this hash is of no moment
                known[name] = file, digest, hashed
                keep(file, digest, hashed)
                progress.tell(file.size)
            total.update(os.fsencode(name) + f"\0{digest}\n".encode())
            size += file.size
            all_settled = all_settled and file.ctime + unsettled <= hashed
    cache.tidy(names, known)
    return Identity(total.hexdigest() if names[0] else digest, len(names), size), all_settled


class _Progress:
    """Lines about a hashing that takes long."""

    def __init__(self, source: Source, count: int, size: int, say):
        self.name, self.count, self.size, self.say = source.name, count, size, say
        self.files = self.bytes = 0
        self.began = self.last = time.monotonic()

    def tell(self, size: int) -> None:
        self.files, self.bytes = self.files + 1, self.bytes + size
        if self.say and time.monotonic() - self.last > PATIENCE:
            self.last = time.monotonic()
            rate = self.bytes / (self.last - self.began)
            self.say(f"{self.name}: is its content the same? {self.files:,} of at most {self.count:,} files hashed, "
                     f"{self.bytes / 1e9:.1f} of {self.size / 1e9:.1f} GB, {rate / 1e6:.0f} MB/s")  # fmt: skip


class _Cache:
    """What was hashed of a source. It may be lost or damaged: then files are hashed again."""

    def __init__(self, source: Source, root: Path):
        place = f"{source.read_as}\0{source.detail}\0{os.path.abspath(root / source.path)}"
        stem = root / HASHES / hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
        self.all, self.each = stem.with_suffix(".json"), stem.with_suffix(".tsv")
        self.lines = 0

    def whole(self, listing: str, unsettled: int) -> Identity | None:
        """The identity, if every file has the size and the times that it had."""
        try:
            found = json.loads(self.all.read_text(encoding="utf-8"))
            if found["listing"] != listing or not (found["settled"] or unsettled == 0):
                return None
            identity = Identity(**found["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return identity if re.fullmatch("[0-9a-f]{64}", str(identity.sha256)) else None

    def keep(self, listing: str, identity: Identity, settled: bool) -> None:
        text = json.dumps({"listing": listing, "identity": asdict(identity), "settled": settled})
        with contextlib.suppress(OSError):
            write_text(self.all, text)

    def load(self) -> dict[str, tuple[_File, str, int]]:
        """{name: (file, sha256, when it was hashed)}; lines that are not whole say nothing."""
        known = {}
        with contextlib.suppress(OSError), open(self.each, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self.lines += 1
                with contextlib.suppress(ValueError, TypeError):
                    digest, hashed, size, mtime, ctime, name = json.loads(line)
                    if re.fullmatch("[0-9a-f]{64}", digest):
                        known[str(name)] = _File(name, int(size), int(mtime), int(ctime)), digest, int(hashed)
        return known

    @contextlib.contextmanager
    def append(self):
        """A function that keeps the hash of a file: a hashing that is stopped goes on where it was."""
        with contextlib.ExitStack() as stack:
            file, last = None, time.monotonic()
            with contextlib.suppress(OSError):
                self.each.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(self.each, "a", encoding="utf-8"))
                file.write("\n")  # after a line that was cut

            def keep(each: _File, digest: str, hashed: int) -> None:
                nonlocal last
                if file is not None and hashed:
                    self.lines += 1
                    file.write(_line(each, digest, hashed))
                    if time.monotonic() - last > 1:
                        last = time.monotonic()
                        file.flush()

            yield keep

    def tidy(self, names: list[str], known: dict[str, tuple[_File, str, int]]) -> None:
        """Drop the lines of files that are no more, if they are the most."""
        if self.lines > 2 * len(names) + 100:
            lines = (_line(*known[name]) for name in names if known[name][2])
            with contextlib.suppress(OSError):
                write_text(self.each, "".join(lines))


def _line(file: _File, digest: str, hashed: int) -> str:
    return json.dumps([digest, hashed, file.size, file.mtime, file.ctime, file.name]) + "\n"


# --- of a plan ------------------------------------------------------------------------------------------


def _warn(line: str) -> None:
    print(f"eldistill: {line}", file=sys.stderr, flush=True)


class Identities:
    """The identities of the sources of one plan, each looked up once.

    measured: whether what lies there is measured. Otherwise, in jobs and tools, what data/sources.lock.csv says counts.
    """

    def __init__(self, measured: bool = False, root: Path = Path(), say=_warn):
        self.measured, self.root, self.say = measured, root, say
        self.recorded = sourcelock.rows(root)
        self.found: dict[Source, str | None] = {}
        self.new: dict[Source, Identity] = {}

    def __call__(self, sources: Iterable[Source]) -> dict[str, str | None]:
        """{name: identity}, None for a source that was never seen: when it appears, its steps run."""
        identities = {source: self._of(source) for source in sources}
        # IDX files that were fetched are checked by their row in data/sources.csv.
        return {source.name: each for source, each in identities.items() if each or source.read_as != "idx"}

    def _of(self, source: Source) -> str | None:
        if source not in self.found:
            row = self.recorded.get((source.name, source.read_as))
            self.found[source] = row["sha256"] if row else None
            if self.measured:
                try:
                    identity, why = measure(source, self.root, self.say), "is not here"
                except OSError as error:
                    identity, why = None, f"cannot be read ({error})"
                if identity is not None:
                    self.found[source] = identity.sha256
                    self.new[source] = identity
                elif row and source.path:
                    self.say(f"{source.name} {why}; its content counts as {sourcelock.LOCK} records it, {row['files']} files of "
                             f"sha256 {row['sha256'][:16]}…")  # fmt: skip
        return self.found[source]

    def record(self) -> None:
        """Write what was measured into data/sources.lock.csv, where it is not what stands there."""
        changed = []
        for source, identity in sorted(self.new.items()):
            row = {"name": source.name, "sha256": identity.sha256, "bytes": str(identity.bytes),
                   "files": str(identity.files), "read_as": source.read_as}  # fmt: skip
            old = self.recorded.get((source.name, source.read_as))
            if old is None or any(old[key] != value for key, value in row.items()):
                changed.append(row)
                was = f", it was {old['sha256'][:16]}… of {old['files']}" if old else ""
                self.say(f"{source.name}: sha256 {identity.sha256[:16]}… of {identity.files} files{was}; "
                         f"recorded in {sourcelock.LOCK}, which belongs into git")  # fmt: skip
        if changed:
            sourcelock.note(changed, self.root)
            self.recorded = sourcelock.rows(self.root)


def check(sources: Iterable[Source], wanted: dict[str, str | None], root: Path = Path()) -> None:
    """Raise Problem if a source is not what a recipe says of it. Nothing is hashed where size and times are as measured; one
    that is absent is left to its reader."""
    for source in sources:
        if source.name not in wanted:
            continue
        identity = wanted[source.name]
        try:
            if identity is None:
                same = not _listed(source, root)
            else:
                now = measure(source, root, unsettled=0)
                same = now is None or now.sha256 == identity
        except OSError:
            continue
        if not same:
            raise Problem(
                f"{source.name} changed since this recipe was written; run the same command, or snakemake, again"
            )
