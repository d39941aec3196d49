# SPDX-License-Identifier: Apache-2.0
"""Reads and writes folders and zip files, one file at a time.

Nothing is unpacked to the disk. Which files count as data is decided by eldistill.external.listing.
"""

from __future__ import annotations

import errno
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from eldistill.data import foreign
from eldistill.errors import Problem, denied, edge
from eldistill.external import listing, zips
from eldistill.files import atomic
from eldistill.outside import check_file, locate

COVERED_BY = "folders"
LARGEST = 1 << 30  # bytes of one file; the size that a zip declares can exceed any memory


@dataclass(frozen=True)
class Container:
    """list: function from endings to a Listing. open: function from a name in it to a context with the opened binary file."""

    list: Callable[[tuple[str, ...]], listing.Listing]
    open: Callable[[str], BinaryIO]


@contextmanager
def open_container(path: Path) -> Iterator[Container]:
    """Context with the Container of a folder or zip. Raises Problem if `path` is neither, or if a file in it is damaged, encrypted
    or larger than LARGEST."""
    path = locate(path)
    if path.exists() and not os.access(path, os.R_OK):
        raise denied(path)
    if path.is_dir():
        yield Container(lambda endings: _listed(path, endings), lambda name: _of_folder(path, name))
    elif path.is_file() and zipfile.is_zipfile(path):
        with _zip(path) as archive:
            members = _members(path, archive)
            yield Container(
                lambda endings: listing.choose_files(members, endings),
                lambda name: _of_zip(path, archive, name, members[name]),
            )
    elif not path.exists():
        raise Problem(f"{path} does not exist; put it there, or change `path` of the data setting in params.yaml")
    elif not path.is_file():
        raise Problem(
            f"{path} is neither a folder nor a zip file, but a pipe, a socket or a device; give a folder or a zip"
        )
    elif tarfile.is_tarfile(path):
        raise Problem(f"{path} is neither a folder nor a zip file; unpack this tar archive and give its folder")
    else:
        raise Problem(f"{path} {foreign.describe_file(path)}")


def _listed(path: Path, endings: tuple[str, ...]) -> listing.Listing:
    try:
        return listing.list_folder(path, endings)
    except PermissionError as error:  # of a folder in it
        raise denied(error.filename or path) from None


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    with open(path, "rb") as file:
        with edge(path, "make it again", "is a damaged zip"):
            archive = zips.open_zip(file)
        with archive:
            yield archive


@contextmanager
def _of_folder(path: Path, name: str) -> Iterator[BinaryIO]:
    place = path / name
    try:
        if place.exists():  # otherwise the sentence below
            check_file(place, "an ordinary file", text=True)
        file = open(place, "rb")
    except OSError as error:
        if isinstance(error, PermissionError):
            raise denied(place) from None
        if error.errno not in (errno.ENOENT, errno.ELOOP):  # a link to itself leads nowhere either
            raise
        why = "is a link to a missing file" if place.is_symlink() else "was removed while it was read"
        raise Problem(f"{place} {why}; restore the file, or take it out of the folder") from None
    with file:
        yield file


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    # Files by name. The zip program of Windows separates folders with backslashes in some zips.
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.replace("\\", "/").removeprefix("./")
        if name.endswith("/"):
            continue
        if name in members:
            raise Problem(f"{path} holds two files called {name}; make the zip again")
        members[name] = member
    return members


@contextmanager
def _of_zip(path: Path, archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> Iterator[BinaryIO]:
    if member.file_size > LARGEST:
        raise Problem(
            f"{path}: {name} has {member.file_size:,} bytes; expected at most {LARGEST:,}: make the zip without it"
        )
    if member.flag_bits & 1:
        raise Problem(f"{path}: {name} is encrypted; make the zip again without a password")
    try:
        zips.check_member(member, path.stat().st_size)
    except zips.BadZip as error:
        raise Problem(f"{path}: {name}: {error}; make the zip again") from None
    with edge(path, "make the zip again", f"is damaged at {name}"), zips.open_member(archive, member) as file:
        yield file


# --- writing ------------------------------------------------------------------------------------------

Put = Callable[[str, bytes], None]


@contextmanager
def new_zip(path: str | Path) -> Iterator[Put]:
    """Context with a function that adds a file (name, content) to a zip without compression. The zip appears at the end."""
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        yield archive.writestr


@contextmanager
def new_folder(path: str | Path) -> Iterator[Put]:
    """Context with a function that adds a file (name, content) to a folder, where it appears when it is complete."""

    def put(name: str, content: bytes) -> None:
        with atomic(Path(path) / name) as temporary:
            temporary.write_bytes(content)

    yield put
