# SPDX-License-Identifier: Apache-2.0
"""Reads the description of a safetensors file, and checks all sizes in it before any memory is allocated.

A file has the length of its description in 8 bytes, the description as JSON, and the numbers: {name: {dtype, shape, data_offsets}}
and, under __metadata__, texts. The numbers of all tensors fill the rest of the file without gaps, each byte once. The reader of the
package safetensors checks less: it allocates what a description asks for.
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from typing import Any, BinaryIO

# {dtype: (bytes of a number, name in torch)}
ITEMS = {
    "BOOL": (1, "bool"), "U8": (1, "uint8"), "I8": (1, "int8"), "U16": (2, "uint16"), "I16": (2, "int16"), "F16": (2, "float16"),
    "BF16": (2, "bfloat16"), "U32": (4, "uint32"), "I32": (4, "int32"), "F32": (4, "float32"), "U64": (8, "uint64"),
    "I64": (8, "int64"), "F64": (8, "float64"), "C64": (8, "complex64"), "F8_E4M3": (1, "float8_e4m3fn"), "F8_E5M2": (1, "float8_e5m2"),
    "F8_E4M3FNUZ": (1, "float8_e4m3fnuz"), "F8_E5M2FNUZ": (1, "float8_e5m2fnuz"),
}  # fmt: skip
LONGEST = 100_000_000  # bytes of a description, as in the package safetensors
TENSORS, NAME, AXES = 100_000, 512, 8  # largest number of tensors, of characters of a name, of axes
TOKENS = 3_000_000  # largest number of commas and brackets in a description, each of which may become an object
METADATA = "__metadata__"


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: safetensors' name of its dtype, its shape, and where its numbers begin and end in the file, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The checked description of a file: its tensors, its texts, and the size of the file in bytes."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    bytes: int


def read_header(path: str | os.PathLike) -> Header:
    """The description of a safetensors file. Raises ValueError, whose text is the middle of a sentence, and OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no ordinary file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        text = _text(file, size)
    try:
        top = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("its description is nested too deeply") from None
    if not isinstance(top, dict):
        raise ValueError("its description is no mapping")
    metadata = top.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise ValueError("its metadata are no texts")
    if len(top) > TENSORS:
        raise ValueError(f"its description has {len(top):,} tensors; expected at most {TENSORS:,}")
    begin = 8 + len(text)
    entries = {name: _entry(name, each, begin) for name, each in top.items()}
    _check_places(entries, begin, size)
    return Header(entries, metadata, size)


def _text(file: BinaryIO, size: int) -> bytes:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= size - 8:
        raise ValueError("its description is cut off")
    if length > LONGEST:
        raise ValueError(f"its description has {length:,} bytes; expected at most {LONGEST:,}")
    text = file.read(length)
    if sum(map(text.count, b"[{,")) > TOKENS:
        raise ValueError(f"its description has more than {TOKENS:,} values")
    return text


def _once(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its description has a name twice")
    return found


def _whole(values, count: int | None = None) -> bool:
    fits = isinstance(values, list) and all(type(each) is int and 0 <= each < 2**60 for each in values)
    return fits and (count is None or len(values) == count)


def _entry(name: str, value: Any, begin: int) -> Entry:
    shown = ascii(name)[:80]
    if len(name) > NAME:
        raise ValueError(f"the name of a tensor has {len(name):,} characters; expected at most {NAME}")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMS:
        raise ValueError(f"{shown} has the dtype {ascii(dtype)[:40]}, which is not read")
    if not _whole(shape) or len(shape) > AXES or not _whole(offsets, 2):
        raise ValueError(f"{shown} has a shape or offsets that are not a few whole numbers")
    first, end = offsets
    if end - first != math.prod(shape) * ITEMS[dtype][0]:
        raise ValueError(f"{shown} has {end - first:,} bytes, its shape and dtype need another number")
    return Entry(dtype, tuple(shape), begin + first, begin + end)


def _check_places(entries: dict[str, Entry], begin: int, size: int) -> None:
    # Raise ValueError unless the tensors fill the file.
    at = begin
    for entry in sorted(entries.values(), key=lambda each: (each.start, each.end)):
        if entry.start != at:
            raise ValueError("its tensors overlap, or leave gaps")
        at = entry.end
    if at != size:
        raise ValueError("its length is not what its description says")


def parse_metadata(text: str | None) -> dict:
    """The description of this project in the metadata of a file, a mapping. Raises ValueError."""
    try:
        found = json.loads(text or "{}")
        if "\\u" in (text or ""):
            json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair could not be written again
    except RecursionError:
        raise ValueError("its metadata are nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("its metadata are no mapping")
    return found


def kind_of(path: str | os.PathLike) -> str:
    """What a file that is no safetensors file seems to be, as the end of a sentence, or "" if that is not known."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself: run `git lfs pull`"
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<head", b"<?xml"):
        return "it is a web page"
    return "it is a zip, perhaps of torch.save" if start.startswith(b"PK\3\4") else ""
