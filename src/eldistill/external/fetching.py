# SPDX-License-Identifier: Apache-2.0
"""Fetches the files that data/sources.csv lists, each only once, and checks them; also over an unreliable connection.

An interrupted download is continued where it stopped, also by the next call. A file is used only if its digest is right. If
no digest is known, that of the first download is recorded in data/sources.lock.csv, and every later download must match it.
If several jobs need one file, one fetches it and the others wait. Environment: ELDISTILL_STORE (where files are kept,
default data/scratch/store), ELDISTILL_MIRROR (an address or a folder that is asked first), ELDISTILL_OFFLINE=1 (ask
nobody), ELDISTILL_FETCH=no (take what is in the store, as jobs of Snakemake do: its rule `download` fetches), and the
usual proxy variables.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import http.client
import json
import os
import random
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

from eldistill import environment
from eldistill.errors import Problem, denied
from eldistill.external import sourcelock
from eldistill.external.sourcelock import LOCK
from eldistill.external.sources import TABLE, noted_rows, source_row
from eldistill.files import naming_full, read_note, sha256, write_text
from eldistill.outside import check_file, find_fault, locate

TRIES, BLOCK, TIMEOUT = 6, 1 << 20, 60


# --- one file -------------------------------------------------------------------------------------------


def fetch(
    name: str, folder: str | os.PathLike | None = None, store: str | os.PathLike | None = None, say=print
) -> Path:
    """The path of the file with this name in data/sources.csv, after a check of its digest.

    It is taken from `folder` if given, otherwise from the store, a mirror or its publisher. folder: a folder of the user with a
    file of that name. store: the folder of fetched files. say: gets log lines. Raises Problem, and then leaves no file that a
    later call would trust.
    """
    row = source_row(name)
    file_name = row["url"].rsplit("/", 1)[-1]
    if folder is not None:
        path = locate(folder) / file_name
        if not path.exists():
            raise Problem(f"{path} is missing; expected {name} of data/sources.csv there, or set its folder to null")
        return _checked(check_file(path), row, say, "replace it by the published file")
    store = locate(store or environment.store_folder())
    if found := _kept(store, file_name, row):
        return _checked(found, row, say)
    if environment.one_of("ELDISTILL_FETCH", ("no", "yes")) == "no":
        raise Problem(
            f"{name} is not in {store}, and jobs fetch nothing; type `python -m eldistill data download/{name} --force` "
            "on a machine that reaches the network, or `snakemake all`, which does it first"
        )
    store.mkdir(parents=True, exist_ok=True)
    key = row["sha256"][:16] or hashlib.sha256(row["url"].encode()).hexdigest()[:16]
    with _alone(store / f".{key}-{file_name}.lock", row, say):
        row = source_row(name)  # another process may have noted its digest
        if found := _kept(store, file_name, row):
            return _checked(found, row, say)
        part = store / f"{key}-{file_name}.part"
        address, digest = _download(row, part, say)
        size = part.stat().st_size
        path = store / f"{digest[:16]}-{file_name}"
        os.replace(part, path)
        _drop(part)
        if not row["sha256"]:
            _note(row, digest, size, say, f"; fetched from {address}")
    return path


def _where(row: dict[str, str]) -> Path:
    # The table that contains the digest, for messages.
    return LOCK if row["name"] in noted_rows() else TABLE


def _kept(store: Path, file_name: str, row: dict[str, str]) -> Path | None:
    path = store / f"{row['sha256'][:16]}-{file_name}"
    return path if row["sha256"] and path.exists() else None


def _note(row: dict[str, str], digest: str, size: int, say, origin: str = "") -> None:
    # Trust on first use: later downloads must equal the first one.
    sourcelock.add_rows([{"name": row["name"], "sha256": digest, "bytes": str(size)}])
    say(f"{row['name']}: no digest was known; sha256 {digest} is trusted from now on and recorded in {LOCK}{origin}")


def _content_digest(path: Path) -> str:
    # The digest of a .gz file is that of its content: Debian's copies differ from upstream's in the gzip header. A .tar.gz
    # is taken as it is: its publishers name that digest.
    plain = path.name.removesuffix(".part")
    if not plain.endswith(".gz") or plain.endswith(".tar.gz"):
        return sha256(path)
    try:
        with gzip.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        raise denied(path) from None
    except (OSError, EOFError, zlib.error):
        return ""


def _checked(path: Path, row: dict[str, str], say, then: str = "remove it and fetch it again") -> Path:
    # then: what to do with another file. One in the store can be removed, one in a folder of the user is his own.
    digest = _content_digest(path)
    if not digest:
        raise Problem(f"{path} is no gzip file; {then}")
    if not row["sha256"]:
        _note(row, digest, path.stat().st_size, say)
    elif digest != row["sha256"]:
        way = (
            ""
            if _where(row) == TABLE
            else f", or, if that file is the right one, remove the line of {row['name']} there"
        )
        raise Problem(f"{path} has sha256 {digest[:16]}…, expected {row['sha256'][:16]}… ({_where(row)}); {then}{way}")
    return path


@contextlib.contextmanager
def _alone(path: Path, row: dict[str, str], say) -> Iterator[None]:
    name = row["name"]
    # Released by the system when the process ends, however it ends.
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: another process is fetching it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if not row["sha256"]:  # two mixed downloads could become the trusted file
                raise Problem(
                    f"{path.parent} is on a file system without locks ({error}), and no digest of {name} is known; set "
                    "ELDISTILL_STORE to a folder of a local disk"
                ) from None
            print(
                f"eldistill: this file system has no locks ({error}); fetch {name} with one job before you start others",
                file=sys.stderr,
            )
        yield


# --- the line -------------------------------------------------------------------------------------------


class _Broken(Exception):
    """The reason why an attempt failed. again: whether another attempt at this address may succeed. wait: seconds to wait first."""

    def __init__(self, reason, again: bool = True, wait: float = 0):
        super().__init__(str(reason))
        self.again, self.wait = again, wait


def _addresses(row: dict[str, str]) -> list[str]:
    name = row["url"].rsplit("/", 1)[-1]
    first = os.environ.get("ELDISTILL_MIRROR", "")
    if first and "://" not in first:
        first = locate(first).absolute().as_uri()
    found = [f"{first.rstrip('/')}/{name}"] if first else []
    local = [address for address in found if address.startswith("file:")]
    found += [address for address in (row["mirror"], row["url"]) if address]
    return local if environment.offline() else found


def _download(row: dict[str, str], part: Path, say) -> tuple[str, str]:
    """Fill the part file. Returns (the address it came from, its sha256, which is that of the row if the row has one)."""
    waiting, reasons = _addresses(row), {}
    for attempt in range(TRIES):
        if not waiting:
            break
        address = waiting[attempt % len(waiting)]
        try:
            begun = part.exists()
            _attempt(row, address, part)
            return address, _right(row, part, begun)
        except _Broken as broken:
            reasons[address] = reason = f"{address}: {broken}"
            if not broken.again:
                waiting.remove(address)
            say(f"{row['name']}: {reason}" + ("; trying again" if waiting and attempt + 1 < TRIES else ""))
            if waiting and attempt + 1 < TRIES:
                time.sleep(max(broken.wait, min(2**attempt, 30) * random.uniform(0.5, 1)) if broken.again else 0)
    reason = "; ".join(reasons.values()) or "ELDISTILL_OFFLINE is set, so that no server is asked"
    raise Problem(
        f"{row['name']} could not be fetched from {row['url']} ({reason}); "
        f"put the file into a folder and name that folder in params.yaml"
    )


def _right(row: dict[str, str], part: Path, begun: bool) -> str:
    # begun: the file may be a mixture with the part of an earlier attempt, so that another attempt may succeed.
    digest = _content_digest(part)
    if not digest or row["sha256"] not in ("", digest):
        _drop(part)
        wanted = f"expected {row['sha256'][:16]}… ({_where(row)})" if row["sha256"] else "expected a gzip file"
        raise _Broken(f"it came with sha256 {digest[:16] or 'none'}…, {wanted}", again=begun)
    return digest


def _attempt(row: dict[str, str], address: str, part: Path) -> None:
    """Continue or begin the part file from one address, until it is complete. Raises _Broken."""
    if address.startswith("file:"):  # opening a pipe would wait for ever
        path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(address).path))
        if path.exists() and (fault := find_fault(path)):
            raise _Broken(f"{path} {fault}", again=False)
    # The size of a .gz file is not checked: copies with the same content can differ in their header.
    wanted = int(row["bytes"]) if row["bytes"].isdecimal() and not row["url"].endswith(".gz") else None
    about = _about(part)
    start = part.stat().st_size if part.exists() else 0
    if start and (start == wanted or (wanted is None and start == about.get("total"))):
        return
    checked = row["sha256"] or (about.get("address") == address and about.get("etag"))
    if start and (not checked or (wanted and start > wanted)):
        _drop(part)  # the part belongs to another file, or a mixture could not be detected
        start, about = 0, {}
    request = urllib.request.Request(address, headers={"User-Agent": "eldistill"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        if about.get("address") == address and about.get("etag"):
            request.add_header("If-Range", about["etag"])
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            start, total = _agreed(answer, start, wanted)
            tag = answer.headers.get("ETag", "")
            if start and not row["sha256"] and (tag != about["etag"] or total != about.get("total")):
                _drop(part)
                raise _Broken("the file changed while it was fetched")
            if total is None and not row["sha256"] and not getattr(answer, "chunked", False):
                raise _Broken("the server does not say how long the file is, and no digest is known", again=False)
            _room(part, (total or 0) - start)
            if not start:
                _drop(part)  # before the side file describes the new part
            write_text(
                _side(part),
                json.dumps({"address": address, "etag": "" if tag.startswith("W/") else tag, "total": total}),
            )
            with naming_full(part):
                _receive(answer, part, start, total)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            _drop(part)
        asked = error.headers.get("Retry-After", "") if error.headers else ""
        again = error.code in (408, 416, 425, 429) or error.code >= 500
        raise _Broken(
            f"HTTP {error.code} {error.reason}", again, min(60.0, float(asked)) if asked.isdecimal() else 0
        ) from None
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
        missing = isinstance(getattr(error, "reason", None), FileNotFoundError) or address.startswith("file:")
        raise _Broken(getattr(error, "reason", None) or error or type(error).__name__, not missing) from None


def _agreed(answer, start: int, wanted: int | None) -> tuple[int, int | None]:
    """(offset at which the answer begins, length of the file or None), from the server's headers. Raises _Broken, also for a web
    page instead of a file."""
    kind = answer.headers.get("Content-Type", "")
    if kind.split(";")[0].strip().lower() in ("text/html", "application/xhtml+xml"):
        raise _Broken("it answers with a web page", again=False)
    length = answer.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    if getattr(answer, "status", 200) == 206:
        words = answer.headers.get("Content-Range", "").replace("bytes ", "").partition("/")
        first = words[0].partition("-")[0]
        if first and first != str(start):
            raise _Broken(
                f"the server was asked for the bytes from {start} on and sends those from {first} on", again=False
            )
        total = int(words[2]) if words[2].isdecimal() else None if total is None else total + start
    else:
        start = 0
    if wanted and total and total != wanted:
        raise _Broken(f"it has {total:,} bytes, expected {wanted:,}", again=False)
    return start, wanted or total


def _receive(answer, part: Path, start: int, total: int | None) -> None:
    from tqdm import tqdm  # only a download needs it, not who samples from a generator

    seen = start
    with (
        open(part, "r+b" if start else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.name[17:-5], mininterval=5) as bar,
    ):
        file.seek(start)
        file.truncate()
        while block := _read(answer):
            if not seen and block[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
                file.close()
                _drop(part)
                raise _Broken("it answers with a web page", again=False)
            seen += len(block)
            if total is not None and seen > total:
                file.close()
                _drop(part)
                raise _Broken(f"the server sends more than {total:,} bytes", again=False)
            file.write(block)
            bar.update(len(block))
    # An interrupted connection ends like a complete file, so the length is checked.
    if total is not None and seen < total:
        raise _Broken(f"the connection ended after {seen:,} of {total:,} bytes")
    if not seen:
        _drop(part)
        raise _Broken("the server sends nothing")


def _read(answer) -> bytes:
    try:
        return answer.read(BLOCK)
    except OSError as error:  # errors of the connection only; errors of the disk are raised as they are
        raise _Broken(error) from None


def _room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise Problem(
            f"{part.parent} has {free / 1e9:.1f} GB left, the file needs {needed / 1e9:.1f}; make room, or set "
            "ELDISTILL_STORE to another folder"
        )


def _side(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _about(part: Path) -> dict:
    return read_note(_side(part)) or {}


def _drop(part: Path) -> None:
    for path in (part, _side(part)):
        path.unlink(missing_ok=True)
