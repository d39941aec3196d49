# SPDX-License-Identifier: Apache-2.0
"""Checks of a file of others before a reader opens it: it says what the file is if it cannot be one.

Links are followed, because every file in the cache of a hub is one. Pipes, sockets and devices are refused by what the file system
says about them: opening one can wait without end, and a device can be endless. This file imports no other than errors.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from eldistill.errors import Problem

HEAD = 512  # bytes at the beginning by which a file is recognised
KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe (FIFO)", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip
TEXTS = re.compile(rb"[\t\n\r\x20-\x7e]+")


def locate(path: str | os.PathLike) -> Path:
    """The path of a file of others as a user writes it: `~` and `~name` are home folders."""
    return Path(os.path.expanduser(path))


def check_file(path: str | os.PathLike, wanted: str = "the file itself", text: bool = False) -> Path:
    """The path, with `~` expanded, of an ordinary file with content, or of a link to one.

    wanted: what the reader expects, for the message, such as "a network file". text: whether the file may be a text. Raises
    Problem, one sentence, if it is something else, absent, empty, not readable by this user, or recognised as what a failed
    download leaves behind: a pointer of Git LFS, a web page, the answer of a server."""
    path = locate(path)
    if (fault := find_fault(path, wanted)) is not None:
        raise Problem(f"{path} {fault}")
    try:
        # If the file was replaced by a pipe since it was looked at, O_NONBLOCK keeps this from waiting.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            head = file.read(HEAD)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise Problem(f"{path} {_denied(path, error, wanted)}") from None
    if (found := recognise(head, size, text)) is not None:
        raise Problem(f"{path} {found}")
    return path


def find_fault(path: Path, wanted: str = "the file itself") -> str | None:
    """Why a path is no ordinary file with content, as the end of a sentence; None if it is one. Nothing is opened."""
    try:
        about = os.stat(path)
    except OSError as error:
        if os.path.islink(path):
            return f"is a link to {ascii(os.readlink(path))[1:-1][:200]}, which is not there; give {wanted}"
        return _denied(path, error, wanted)
    if not stat.S_ISREG(about.st_mode):
        return f"is {KINDS.get(stat.S_IFMT(about.st_mode), 'no ordinary file')}; give {wanted}"
    # The files of /proc and /sys have no size either, and some of them have no end.
    return None if about.st_size else "is empty; fetch or copy it again"


def _denied(path: Path, error: OSError, wanted: str) -> str:
    if isinstance(error, FileNotFoundError):
        return f"is missing; give the path of {wanted.removeprefix('the path of ')}"
    if isinstance(error, PermissionError):
        return f"may not be read by this user{_rights(path)}; ask its owner for the right to read it (chmod g+r)"
    return f"cannot be read ({error.strerror}); give the path of {wanted.removeprefix('the path of ')}"


def _rights(path: Path) -> str:
    try:
        about = os.stat(path)
    except OSError:
        return ""
    return f" (mode {stat.S_IMODE(about.st_mode):o}, owner {about.st_uid})"


def recognise(head: bytes, size: int, text: bool = False) -> str | None:
    """What a file is by its first bytes, as the end of a sentence; None if it is not recognised as the result of a failed download.

    head: its first HEAD bytes, or fewer. size: of the file in bytes. text: whether the file may be a text."""
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        found = re.search(rb"\nsize (\d{1,15})\b", head)
        much = f" to a file of {int(found[1]):,} bytes" if found else ""
        return f"is a pointer of Git LFS{much}, not the file; run `git lfs pull` in its repository, or download the file itself"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error", b"<script")):
        return "is a web page, not the file; download it again, and look whether its page asks for a login or a confirmation"
    if not text and head and size <= HEAD and TEXTS.fullmatch(head):
        line = head.decode("ascii").split("\n")[0].strip()[:60]
        return f"is a text that begins with {line!r}, perhaps the answer of a server; download the file again"
    return None
