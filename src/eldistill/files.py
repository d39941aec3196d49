# SPDX-License-Identifier: Apache-2.0
"""Reading and writing files: whole or not at all, checked, and never executed.

Tensors travel as safetensors with one metadata entry (canonical JSON), so equal content gives equal bytes.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import mmap
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eldistill.errors import Problem


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


def link(target: str | os.PathLike, path: str | os.PathLike) -> None:
    """Make `path` a symbolic link to the absolute path of target, in place of whatever link or file was there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(Path(target).absolute())
    os.replace(temporary, path)


def replace_text(path: str | os.PathLike, text: str, mtime: float | None = None) -> None:
    """Write a text file that can be made again: whole or not at all, but without waiting for the disk.

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


def read_rows(path: str | os.PathLike) -> list[dict[str, str]]:
    """Read a CSV that `write_rows` wrote, cells as text. Raises Problem."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{path} is damaged ({error}); delete it and run `snakemake all`") from None


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
    try:
        described = json.loads(about or "{}")
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path} is damaged (its description: {error}); delete it and run `snakemake all`") from None
    if not isinstance(described, dict):
        raise Problem(f"{path} has a description that is no mapping; expected a file of this project")
    return tensors, described


# Item types of packed data: safetensors' name, numpy's, bytes an item; the order is that of a file's tensors.
_KINDS = {"I64": ("<i8", 8), "F32": ("<f4", 4), "U8": ("u1", 1)}


def map_tensors(path: str | os.PathLike) -> tuple[dict, dict]:
    """As `load_tensors`, but the tensors stay in the file, whatever its size: a row is read when it is touched, and the
    system may forget it again. They can be read only: writing into one is a segmentation fault.

    Only I64, F32 and U8. Raises Problem as `load_tensors` does.
    """
    import numpy as np
    import torch

    # safetensors maps files too, but asks the system for as much memory as the file has, which it may refuse.
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if not 0 < length <= size - 8:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        about = header.pop("__metadata__", {}).get("eldistill")
        tensors, ends = {}, [0]
        for name, each in header.items():
            kind, item = _KINDS[each["dtype"]]
            first, end = each["data_offsets"]
            count = math.prod(each["shape"])
            if end - first != count * item or not 0 <= first <= end <= size - 8 - length:
                raise ValueError(f"{name} does not fit into the file")
            array = np.frombuffer(whole, kind, count, 8 + length + first).reshape(each["shape"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that it cannot be written to is the purpose
                tensors[name] = torch.from_numpy(array)
            ends.append(end)
        if max(ends) != size - 8 - length:
            raise ValueError("its length is not what its header says")
        about = None if about is None else json.loads(about)
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Problem(f"{path} is damaged ({error}); delete it and run `snakemake all`") from None
    if about is None:
        raise Problem(f"{path} holds tensors but not eldistill's description; expected a file of this project")
    return tensors, about


class Growing:
    """A file of tensors that is written piece by piece, as `grow_tensors` opens it. `about`: its description."""

    def __init__(self, file, shapes: dict[str, tuple[str, tuple[int, ...]]], about: dict):
        self.file, self.about, self.shapes = file, about, {}
        self.places: dict[str, list[int]] = {}  # of each tensor: where its next byte goes, and where its last one ends
        offset = 0
        order = list(_KINDS)
        for name, (kind, shape) in sorted(shapes.items(), key=lambda each: (order.index(each[1][0]), each[0])):
            end = offset + math.prod(shape) * _KINDS[kind][1]
            self.shapes[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
            self.places[name] = [offset, end]
            offset = end
        self.size, self.room = offset, len(self._header())

    def _header(self) -> bytes:
        text = json.dumps(self.about, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        value = {"__metadata__": {"eldistill": text}, **self.shapes}
        header = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        return header + b" " * (-len(header) % 8)

    def append(self, name: str, array) -> None:
        """Write the next rows (a numpy array) of a tensor. Raises ValueError for more than it has."""
        place, content = self.places[name], array.astype(_KINDS[self.shapes[name]["dtype"]][0], order="C", copy=False)
        if place[0] + content.nbytes > place[1]:
            raise ValueError(f"{name} gets more than its shape {self.shapes[name]['shape']}")
        self.file.seek(8 + self.room + place[0])
        self.file.write(content.data if content.size else b"")
        place[0] += content.nbytes

    def finish(self) -> None:
        """Write the header. Raises ValueError if a tensor lacks rows or the description outgrew its room."""
        lacking = [name for name, (at, end) in self.places.items() if at != end]
        header = self._header()
        if lacking or len(header) > self.room:
            raise ValueError(f"unfinished: {lacking or 'the description is longer than the room that was kept for it'}")
        self.file.seek(0)
        self.file.write(self.room.to_bytes(8, "little") + header.ljust(self.room))


@contextmanager
def grow_tensors(path: str | os.PathLike, shapes: dict[str, tuple[str, tuple[int, ...]]], about: dict):
    """A `Growing` for tensors {name: (U8, I64 or F32, shape)}: what `save_tensors` writes, for those that memory cannot
    hold; complete or not at all. about: as long as the final one can be; a shorter one is followed by blanks.

    Raises OSError, at once if the disk has not enough room.
    """
    with atomic(path) as temporary, open(temporary, "wb") as file:
        growing = Growing(file, shapes, about)
        if growing.size > shutil.disk_usage(temporary.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        yield growing
        growing.finish()


def append_line(path: str | os.PathLike, text: str) -> None:
    """Add one line to a log; short appends of several processes do not mix."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text + "\n")
