# SPDX-License-Identifier: Apache-2.0
"""Reads and writes text, JSON and CSV files. A file is written completely or not at all, and nothing in it is executed."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from eldistill.errors import Problem, brief, denied, edge
from eldistill.paths import is_result

MAX_TABLE = 256_000_000  # bytes of a table or of a JSON file
SURPLUS = "\0"  # the column of cells for which the first line has none

FREE_VALUES = 2**20  # values that a JSON text may have however short it is

# Codes of a write that found no space, which the system gives without a file name: disk, quota, and the largest size of a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LITTLE = 2**20  # bytes; a disk with less free space counts as full where a library hides the code of an error


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


# --- failures of the disk ---------------------------------------------------------------------------------


@contextmanager
def naming_full(path: str | os.PathLike) -> Iterator[None]:
    """Context of a write into `path`: an error because of too little space becomes an OSError with the name of its folder."""
    try:
        yield
    except Exception as error:
        folder = os.path.dirname(os.path.abspath(path))
        if (code := _full_code(error, folder)) is None:
            raise
        raise OSError(code, os.strerror(code), folder) from error


def _full_code(error: Exception, folder: str) -> int | None:
    # The code in FULL that an error stands for. safetensors names it in its text; Pillow raises an OSError without any.
    named = re.search(r"\(os error (\d+)\)", str(error))
    code = error.errno if isinstance(error, OSError) else int(named[1]) if named else errno.EIO
    if code is None and _free(folder) < LITTLE:
        return errno.ENOSPC
    return code if code in FULL else None


def _free(folder: str | os.PathLike) -> float:
    # Bytes that are free in the file system of a folder; infinity if it cannot be asked.
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return float("inf")


def describe_failure(error: OSError, places: Iterable[str] | None = None) -> str:
    """What the system refused and what to do, as the beginning of a sentence. A full disk is named by a folder on it.

    places: folders that may be full if the error names none; by default those in which commands write."""
    if error.errno == errno.EROFS:
        return f"{error.filename or 'a folder'} is on a read-only file system; make it writable, or work in a clone elsewhere,"
    if isinstance(error, PermissionError) and error.filename:
        return f"this user may not write or read {error.filename}; ask its owner for access, or work in a clone of your own,"
    if error.errno not in FULL:
        return f"{error}; correct this"  # a lost file system, say: the words of the system name the file
    if error.errno == errno.EFBIG:
        return f"a file in {error.filename or 'this folder'} would be larger than allowed; raise the limit (ulimit -f)"
    full = error.filename or next(
        (each for each in (_written() if places is None else places) if _free(each) < LITTLE), None
    )
    what = "the disk quota is used up" if error.errno == errno.EDQUOT else "no space left on the disk"
    return f"{what}, in {full or 'a folder that the system does not name, perhaps that of the log'}; free some space"


def _written() -> list[str]:
    # Folders in which commands write, and which may lie on disks of their own.
    store = os.environ.get("ELDISTILL_STORE")
    below = [str(path) for path in sorted(Path("data").glob("*/")) if path.is_dir()]
    return [*([store] if store else []), *below, "data", os.getcwd(), tempfile.gettempdir(), os.path.expanduser("~")]


# --- files ------------------------------------------------------------------------------------------------


def check_target(path: str | os.PathLike) -> Path:
    """The path of a file that a user wants written. Raises Problem if it is a folder, or if what should be its folder is a file."""
    path = Path(path)
    if not path.name or path.is_dir():
        raise Problem(f"{path} is a folder; give the name of a file to write")
    above = next((each for each in path.parents if os.path.lexists(each)), path.parent)
    if os.path.lexists(above) and not above.is_dir():
        raise Problem(
            f"{above} is not a folder, so that nothing can be written into it; give another path, or move that file"
        )
    return path


def check_writable(path: str | os.PathLike) -> None:
    """Raise Problem unless a file with this path could be written: its folder, or the nearest one above it that exists, may be read-only
    or belong to somebody else. For results of long computations; an old file there is replaced, whoever owns it."""
    above = next((each for each in Path(path).absolute().parents if each.is_dir()), Path("/"))
    if not os.access(above, os.W_OK | os.X_OK):
        raise Problem(
            f"{os.path.relpath(above)} is a folder that this user may not write, or on a read-only file system, and {path} belongs "
            "there; ask for write access, or work in a clone of your own"
        )


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Context with a temporary path beside `path`, which is renamed to `path` at the end, and removed after an error.

    The file gets the mode that the umask and the folder give to new files, also if what writes it makes a private one, as the
    package safetensors does (600)."""
    path = Path(path)
    if not path.name or path.is_dir():  # before anything is computed that could then not be written
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
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
        with naming_full(path):
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
    except BaseException:  # also a signal
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


def open_regular(path: str | os.PathLike, then: str, **options) -> IO:
    """`open` for reading, only for an ordinary file of at most MAX_TABLE bytes; a pipe or a device is refused before it is opened.

    then: what a user can do, for the Problem of any other file. Raises OSError as `open` does."""
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise Problem(f"{path} is no ordinary file; {then}")
    if about.st_size > MAX_TABLE:
        raise Problem(f"{path} has more than {MAX_TABLE:,} bytes; {then}")
    # If it was replaced by a pipe meanwhile, this does not wait for it.
    return open(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK), **options)


def read_json(path: str | os.PathLike):
    """Read a JSON file. Raises Problem if it is missing or damaged."""
    try:
        with open_regular(path, make_again(path), mode="rb") as file:
            return parse_json(file.read())
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except PermissionError:
        raise denied(path) from None
    except ValueError as error:
        raise Problem(f"{path} is not JSON ({brief(error)}); {make_again(path)}") from None


def read_note(path: str | os.PathLike) -> dict | None:
    """The mapping in a JSON file that this project writes for itself only; None if the file is missing or damaged, because what it
    notes can be found out anew."""
    try:
        with open_regular(path, "", mode="rb") as file:
            found = parse_json(file.read())
    except (OSError, ValueError, Problem):
        return None
    return found if isinstance(found, dict) else None


def write_rows(path: str | os.PathLike, rows: list[dict]) -> None:
    """Write a CSV file. Its columns are the keys of all rows, in the order in which they first appear. Floats keep every bit."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(
    path: str | os.PathLike, needed: Iterable[str] = (), then: str = "", missing: str = ""
) -> list[dict[str, str]]:
    """Read a table as CSV, cells as text; a cell that is absent is "".

    needed: columns that it must have. then, missing: what a user can do if it is damaged or missing; by default the step that
    makes it is named. Raises Problem, also for what a spreadsheet saved with semicolons or in another encoding.
    """
    then = then or make_again(path)
    try:
        with edge(path, then), open_regular(path, then, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", restkey=SURPLUS)
            rows, columns = list(reader), list(reader.fieldnames or [])
    except FileNotFoundError:
        raise Problem(missing or f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    _check_table(path, columns, needed, rows, then)
    return rows


def _check_table(path, columns: list[str], needed: Iterable[str], rows: list[dict], then: str) -> None:
    if absent := [name for name in needed if name not in columns]:
        if len(columns) == 1 and ";" in columns[0]:
            raise Problem(f"{path} has semicolons between its columns; save it with commas, or {then}")
        raise Problem(f"{path} is damaged (it has no column {absent[0]}); {then}")
    if any(SURPLUS in row for row in rows):
        raise Problem(f"{path} is damaged (a line has more cells than the first one); {then}")


def make_again(path: str | os.PathLike) -> str:
    """What a user can do about a damaged file: a result can be deleted and made again, a file of his own can not."""
    if is_result(path):
        return "delete it and run `snakemake all`"
    return "restore it from a copy, or from git, or give another file"


def append_line(path: str | os.PathLike, text: str) -> None:
    """Add one line to a log; short appends of several processes do not mix."""
    with naming_full(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(text + "\n")
