# SPDX-License-Identifier: Apache-2.0
"""Identities of files outside git: images, network files, weights, statistics. A recipe with a path contains its identity.

It is the sha256 of a file; of a folder that of the sorted (name, sha256) of the files that are read of it, without times. The
process that plans measures it and records it in data/sources.lock.csv. Jobs take what is recorded and hash nothing. Where a
source is absent, what is recorded holds. A file is hashed again only when its size or its times changed (eldistill.external.hashes). This
file imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eldistill.errors import Problem, printable
from eldistill.external import sourcelock
from eldistill.external.hashes import Cache, File, Identity, Progress
from eldistill.external.listing import READ_AS, is_path
from eldistill.files import sha256
from eldistill.outside import locate
from eldistill.plan.schema import OutsidePath

# A file that was written so shortly before it was hashed may have changed since under the same time: file systems count in
# steps of up to two seconds. Its hash is not trusted by later plans.
UNSETTLED_NS = 2_000_000_000


@dataclass(frozen=True, order=True)
class Source:
    """A path outside: its name in recipes and in the lock (the path as params.yaml has it), what it is read as, where it is
    (empty: nowhere here), and the detail that READ_AS needs."""

    name: str
    read_as: str
    path: str
    detail: tuple[str, ...] = ()


def sources_of(params: Any) -> Iterator[Source]:
    """Every source that resolved parameters name, at any depth."""
    values = params.items() if isinstance(params, dict) else enumerate(params if isinstance(params, list) else ())
    for _, value in values:
        if isinstance(value, OutsidePath):
            if is_path(value.read_as, value):
                read_as = params["source"] if value.read_as == "source" else value.read_as
                yield Source(str(value), read_as, str(value))
        else:
            yield from sources_of(value)


def _listed(source: Source, root: Path) -> list[str]:
    """The sorted names of the files of a source, one empty name if it is a file itself; none if it is absent. Raises OSError
    if it is there but cannot be read."""
    path = root / locate(source.path)
    try:
        kind = path.stat().st_mode if source.path else 0
    except (FileNotFoundError, NotADirectoryError):
        return []
    if stat.S_ISDIR(kind):
        return sorted(READ_AS[source.read_as](path, source.detail))
    return [""] if stat.S_ISREG(kind) else []  # a pipe or a device has no content that stays


def _place(folder: Path, name: str) -> str:
    return os.path.join(folder, name) if name else str(folder)


def _file(folder: Path, name: str) -> File:
    about = os.stat(_place(folder, name))
    return File(name, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


# --- measuring ------------------------------------------------------------------------------------------


def measure_source(
    source: Source, root: Path = Path(), say: Callable[[str], object] | None = None, unsettled: int | None = None
) -> Identity | None:
    """The identity of a source's present content, None if it is absent. Only files that changed since the last call are read.

    unsettled: a file that changed less than this many nanoseconds before it was hashed is hashed again; UNSETTLED_NS unless
    given. Raises OSError if a file cannot be read."""
    unsettled = UNSETTLED_NS if unsettled is None else unsettled
    names, folder, listing, size = _listed(source, root), root / locate(source.path), hashlib.sha256(), 0
    if not names:
        return None
    for name in names:  # a million files: nothing of them is kept where nothing changed
        file = _file(folder, name)
        listing.update(os.fsencode(name) + f"\0{file[1:]}\n".encode())
        size += file.size
    cache = Cache(f"{source.read_as}\0{source.detail}\0{os.path.abspath(folder)}", root)
    if found := cache.whole(listing.hexdigest(), unsettled):
        return found
    found, settled = _hash(folder, names, cache, Progress(source.name, len(names), size, say), unsettled)
    cache.keep(listing.hexdigest(), found, settled)
    return found


def _hash(folder: Path, names: list[str], cache: Cache, progress: Progress, unsettled: int) -> tuple[Identity, bool]:
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


# --- of a plan ------------------------------------------------------------------------------------------


def _warn(line: str) -> None:
    print(f"eldistill: {printable(line)}", file=sys.stderr, flush=True)


class Identities:
    """The identities of the sources of one plan, each determined once.

    measured: hash the present content. Otherwise, in jobs and tools, the digests of data/sources.lock.csv are used.
    """

    def __init__(self, measured: bool = False, root: Path = Path(), say: Callable[[str], object] = _warn):
        self.measured, self.root, self.say = measured, root, say
        self.recorded = sourcelock.read_rows(root)
        self.found: dict[Source, str | None] = {}
        self.new: dict[Source, Identity] = {}

    def __call__(self, sources: Iterable[Source]) -> dict[str, str | None]:
        """{name: identity}. A source that was never seen has None, so that its steps run when it appears."""
        identities = {source: self._of(source) for source in sources}
        # IDX files that were fetched are checked by their row in data/sources.csv.
        return {source.name: each for source, each in identities.items() if each or source.read_as != "idx"}

    def _of(self, source: Source) -> str | None:
        if source not in self.found:
            row = self.recorded.get((source.name, source.read_as))
            self.found[source] = row["sha256"] if row else None
            if self.measured:
                try:
                    identity, why = measure_source(source, self.root, self.say), "is not here"
                except OSError as error:
                    identity, why = None, why_unreadable(error)
                if identity is not None:
                    self.found[source] = identity.sha256
                    self.new[source] = identity
                elif row and source.path:
                    self.say(f"{source.name} {why}; {sourcelock.LOCK} is trusted instead, which records {row['files']} files with "
                             f"sha256 {row['sha256'][:16]}…")  # fmt: skip
        return self.found[source]

    def record(self) -> None:
        """Write the measured identities into data/sources.lock.csv where they differ from it."""
        changed = []
        for source, identity in sorted(self.new.items()):
            row = {"name": source.name, "sha256": identity.sha256, "bytes": str(identity.bytes),
                   "files": str(identity.files), "read_as": source.read_as}  # fmt: skip
            old = self.recorded.get((source.name, source.read_as))
            if old is None or any(old[key] != value for key, value in row.items()):
                changed.append(row)
                was = f", it was {old['sha256'][:16]}… of {old['files']}" if old else ""
                self.say(f"{source.name}: sha256 {identity.sha256[:16]}… of {identity.files} files{was}; "
                         f"recorded in {sourcelock.LOCK}; commit that file")  # fmt: skip
        if changed:
            sourcelock.add_rows(changed, self.root)
            self.recorded = sourcelock.read_rows(self.root)


def why_unreadable(error: OSError) -> str:
    """Which file of a source cannot be read and why, as the end of a sentence, without the number of the error."""
    where = f"{error.filename}: " if error.filename else ""
    return f"cannot be read ({where}{error.strerror or error})"


def check_sources(sources: Iterable[Source], wanted: dict[str, str | None], root: Path = Path()) -> None:
    """Raise Problem if the content of a source differs from the identity in a recipe.

    Files with unchanged size and times are not hashed again. A source that is absent or cannot be read is not checked here; its
    reader complains."""
    for source in sources:
        if source.name not in wanted:
            continue
        identity = wanted[source.name]
        try:
            now = measure_source(source, root, unsettled=0)
        except OSError:
            continue  # also where it had no identity for that reason: its reader says what is wrong with it
        same = now is None or now.sha256 == identity
        if not same:
            raise Problem(
                f"{source.name} changed since this recipe was written; run the same command again, or `snakemake all`"
            )
