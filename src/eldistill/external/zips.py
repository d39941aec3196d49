# SPDX-License-Identifier: Apache-2.0
"""Opens zip files from outside within bounds of memory.

Python's zipfile creates an object of some 700 bytes for each entry of the directory, also for the entries of a directory that a few
bytes claim, and knows methods of compression whose decoders take gigabytes. Here the directory is counted before it is read, and
only stored and deflated members are opened.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

COVERED_BY = "folders"
SLACK = (
    128 * 2**20
)  # bytes of memory that any file may take; beyond that, memory is bounded by twice the size of the file
FREE = 2**25  # bytes that a member may have however small the zip is
ENTRY = 700  # bytes of memory for an entry
METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
END, END64, LOCATOR, DIRECTORY, LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"

# What zipfile raises for a damaged member; RuntimeError for an encrypted one.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    UnicodeDecodeError,
)


class BadZip(ValueError):
    """A zip is damaged or beyond the bounds. The text is the middle of a sentence and does not name the file."""


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Open a zip that is open for binary reading. Close it as a context manager. Raises BadZip and OSError."""
    size = os.fstat(file.fileno()).st_size
    try:
        count = _count_entries(file, size)
        if count * ENTRY > 2 * size + SLACK:
            raise BadZip(f"its directory has {count:,} entries, more than {size:,} bytes can need")
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise BadZip(str(error)) from None
    members = archive.infolist()
    if (
        any(not 0 <= member.header_offset < size for member in members)
        or sum(each.compress_size for each in members) > size
    ):
        raise BadZip("its members overlap, or are cut off")
    return archive


def _count_entries(file: BinaryIO, size: int) -> int:
    """The number of entries of the directory, which is walked without storing it. Raises BadZip."""
    begin = max(0, size - 22 - 65535)
    file.seek(begin)
    tail = file.read(22 + 65535)
    if (at := tail.rfind(END)) < 0 or len(tail) - at < 22:
        raise BadZip("it has no end of a directory")
    length, end = struct.unpack_from("<L", tail, at + 12)[0], begin + at
    if at >= 20 and tail[at - 20 : at - 16] == LOCATOR:
        place = begin + at - 20 - 56
        file.seek(max(0, place))
        record = file.read(56)
        if place < 0 or record[:4] != END64 or len(record) < 56:
            raise BadZip("the end of its directory is damaged")
        length, end = struct.unpack_from("<Q", record, 40)[0], place
    if length > end:
        raise BadZip("its directory is cut off")
    return _walk(file, end - length, end)


def _walk(file: BinaryIO, at: int, end: int) -> int:
    file.seek(at)
    count = 0
    while at < end:
        head = file.read(46)
        if len(head) < 46 or head[:4] != DIRECTORY:
            raise BadZip("its directory is damaged")
        more = sum(struct.unpack_from("<HHH", head, 28))
        file.seek(more, os.SEEK_CUR)
        at, count = at + 46 + more, count + 1
    return count


def check_member(member: zipfile.ZipInfo, size: int) -> None:
    """Raise BadZip unless a member can be read within the bounds. size: of the zip, in bytes."""
    if member.compress_type not in METHODS:
        raise BadZip(f"it is compressed by method {member.compress_type}; expected stored or deflated")
    if member.file_size > (most := FREE + 2 * size):
        raise BadZip(f"it has {member.file_size:,} bytes; expected at most {most:,} in a zip of {size:,}")


@contextmanager
def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[Member]:
    """Context with an open member. Raises BadZip, also while it is read."""
    if member.flag_bits & 1:
        raise BadZip("it is encrypted")
    try:
        with archive.open(member) as file:
            yield Member(file, member.file_size)
    except DAMAGED as error:
        raise BadZip(" ".join(str(error).split())[:200] or type(error).__name__) from None


class Member:
    """An open member of a zip. A read without a length is one of its declared size: zipfile would decompress all that there is."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self.size = file, size

    def read(self, count: int | None = -1) -> bytes:
        """At most `count` bytes, all of the rest for a negative number."""
        return self._file.read(self.size if count is None or count < 0 else min(count, self.size))

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def size_of(file: BinaryIO | Member) -> int:
    """The number of bytes of an open file or member."""
    return file.size if isinstance(file, Member) else os.fstat(file.fileno()).st_size
