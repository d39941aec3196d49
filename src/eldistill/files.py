# SPDX-License-Identifier: Apache-2.0
"""Reading, writing and fetching files: whole or not at all, checked, and never executed.

Tensors travel as safetensors with one metadata entry (canonical JSON), so equal content gives equal bytes.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Problem(Exception):
    """Something the user can put right. Its text says what was found, what was expected, what to type next."""


class NonFinite(Exception):
    """A NaN or an infinity: says where, in which term, in which tensor."""


def canonical(value) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text, 1 and 1.0 too."""
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
    """A temporary name beside `path`, renamed to it at the end; removed if anything goes wrong."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
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


def write_json(path: str | os.PathLike, value) -> None:
    """Write readable JSON with sorted keys."""
    write_text(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike):
    """Read JSON; a missing or damaged file is a Problem."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except ValueError as error:
        raise Problem(f"{path} is not JSON ({error}); delete it and run `snakemake all`") from None


def write_rows(path: str | os.PathLike, rows: list[dict]) -> None:
    """Write a CSV whose columns are all keys of the rows in order of appearance. Floats keep every bit."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def save_tensors(path: str | os.PathLike, tensors: dict, about: dict) -> None:
    """Write tensors and a JSON-able description into one safetensors file, atomically. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        try:
            # One metadata entry only: the order of several is not fixed, and bytes must be.
            text = json.dumps(about, separators=(",", ":"), ensure_ascii=False, allow_nan=False)  # order and types kept
            save_file(flat, temporary, metadata={"eldistill": text})
        except SafetensorError as error:
            if "os error 28" in str(error) or "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path)) from None
            raise


def load_tensors(path: str | os.PathLike, foreign: bool = False) -> tuple[dict, dict]:
    """Read what `save_tensors` wrote: (tensors on the CPU, description). Nothing in the file is executed.

    foreign: take a file without our description too. Raises Problem if the file is missing, truncated or not ours.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            about = (file.metadata() or {}).get("eldistill")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except (SafetensorError, OSError) as error:
        raise Problem(f"{path} is damaged ({error}); delete it and run `snakemake all`") from None
    if about is None and not foreign:
        raise Problem(f"{path} holds tensors but not eldistill's description; expected a file of this project")
    return tensors, json.loads(about or "{}")


def append_line(path: str | os.PathLike, text: str) -> None:
    """Add one line to a log; short appends of several processes do not mix."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text + "\n")
