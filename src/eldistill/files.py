# SPDX-License-Identifier: Apache-2.0
"""Reads and writes text, JSON and CSV files. A file is written completely or not at all, and nothing in it is executed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eldistill.errors import Problem

FREE_VALUES = 2**20  # values that a JSON text may have however short it is


def canonical(value) -> str:
    """JSON with sorted keys and no blanks. Equal values give equal text, also 1 and 1.0. Raises ValueError for NaN and infinity."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def digest(text: str) -> str:
    """sha256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: str | os.PathLike) -> str:
    """sha256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Context with a temporary path beside `path`, which is renamed to `path` at the end, and removed after an error.

    The file gets the mode that the umask and the folder give to new files, also if what writes it makes a private one, as the
    package safetensors does (600)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield temporary
        with open(temporary, "rb+") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                with suppress(OSError):  # some file systems have no modes
                    os.chmod(temporary, mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: str | os.PathLike) -> None:
    """Remove temporary files of `atomic` that a killed process left beside `path`."""
    path = Path(path)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def link(target: str | os.PathLike, path: str | os.PathLike) -> None:
    """Make `path` a symbolic link to the absolute path of target. It replaces a link or a file of that name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(Path(target).absolute())
    os.replace(temporary, path)


def replace_text(path: str | os.PathLike, text: str, mtime: float | None = None) -> None:
    """Write a text file completely or not at all, without waiting for the disk: for files that can be made again.

    It needs write access to the folder only, so it also replaces a file of another user there.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        try:
            file = open(temporary, "w", encoding="utf-8")
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            file = open(temporary, "w", encoding="utf-8")
        with file:
            file.write(text)
        if mtime is not None:
            os.utime(temporary, (mtime, mtime))
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: str | os.PathLike, value) -> None:
    """Write indented JSON with sorted keys. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def parse_json(content: bytes, pairs: Callable | None = None):
    """The value of a JSON text in any of Unicode's encodings. Raises ValueError if it is not JSON, is nested too deeply, has more
    values than its length explains, or has half of a surrogate pair, which could not be written again.

    pairs: what makes a value of the list of pairs of an object, a dict by default."""
    if sum(map(content.count, (b"[", b"{", b","))) > FREE_VALUES + len(content) // 4:
        raise ValueError(f"it has more values than a text of {len(content):,} bytes should")
    try:
        text = content.decode(json.detect_encoding(content))  # json.loads would accept halves of pairs
        found = json.loads(text, object_pairs_hook=pairs)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found


def read_json(path: str | os.PathLike):
    """Read a JSON file. Raises Problem if it is missing or damaged."""
    try:
        return parse_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except ValueError as error:
        raise Problem(f"{path} is not JSON ({error}); delete it and run `snakemake all`") from None


def write_rows(path: str | os.PathLike, rows: list[dict]) -> None:
    """Write a CSV file. Its columns are the keys of all rows, in the order in which they first appear. Floats keep every bit."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: str | os.PathLike) -> list[dict[str, str]]:
    """Read a CSV that `write_rows` wrote, cells as text. Raises Problem."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{path} is damaged ({error}); delete it and run `snakemake all`") from None


def append_line(path: str | os.PathLike, text: str) -> None:
    """Add one line to a log; short appends of several processes do not mix."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text + "\n")
