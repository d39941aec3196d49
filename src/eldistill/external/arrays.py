# SPDX-License-Identifier: Apache-2.0
"""Reads numpy's files (.npy, .npz) within bounds: only plain numbers, whose size is checked before memory is allocated.

numpy itself allocates what the header of an array asks for, evaluates that header as a Python literal, and decompresses as much as
a zip claims to hold.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from eldistill.errors import Problem, brief, denied
from eldistill.external import zips

HEADER = 10_000  # bytes of the header of an array, as in numpy
KINDS = "biuf"  # booleans, whole numbers and floats


class BadArrays(ValueError):
    """A file of arrays is damaged, or has something else than plain numbers. The text is the middle of a sentence."""


def read_npy(content: bytes) -> np.ndarray:
    """The array of the content of a .npy file. Raises BadArrays."""
    return _array(io.BytesIO(content), len(content))


def read_npz(path: str | os.PathLike, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; names: those that are read, by default all. Missing ones are missing in the result.

    Raises BadArrays, and OSError, for instance if the file is missing."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise BadArrays("it is no ordinary file")
    wanted, found = None if names is None else set(names), {}
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        try:
            with zips.open_zip(file) as archive:
                for member in archive.infolist():
                    name = member.filename.removesuffix(".npy")
                    if (wanted is None or name in wanted) and member.filename != name:
                        zips.check_member(member, size)
                        with zips.open_member(archive, member) as opened:
                            found[name] = _array(opened, member.file_size)
        except zips.BadZip as error:
            raise BadArrays(str(error)) from None
    return found


def _array(file: BinaryIO, size: int) -> np.ndarray:
    # The array in an open file of `size` bytes.
    shape, fortran, dtype = _header(file)
    count = math.prod(shape)
    if dtype.kind not in KINDS or dtype.hasobject or dtype.names or dtype.subdtype:
        raise BadArrays(f"it has the dtype {str(dtype)[:60]}; expected plain numbers")
    if (
        len(shape) > 16
        or any(type(each) is not int or not 0 <= each < 2**48 for each in shape)
        or count * dtype.itemsize != size - file.tell()
    ):
        raise BadArrays(f"its shape {str(list(shape))[:80]} and dtype {dtype} do not fit its {size:,} bytes")
    found = np.empty(count, dtype)
    view = memoryview(found.view(np.uint8)) if count else memoryview(b"")
    while len(view):
        part = file.read(min(len(view), 2**20))
        if not part:
            raise BadArrays("it is cut off")
        view[: len(part)] = part
        view = view[len(part) :]
    return found.reshape(shape, order="F" if fortran else "C")


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise BadArrays(f"its format is {version}; expected 1.0 or 2.0")
        return read(file, max_header_size=HEADER)
    except Exception as error:  # numpy parses the header as Python, with all exceptions of the parser and the tokenizer
        raise BadArrays(f"it has no header of an array ({' '.join(str(error).split())[:120]})") from None


def read_pairs(path: str | os.PathLike, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Arrays of a file of pairs, which the step `teacher NAME/pairs-N-SEED` writes. Raises Problem if it is missing or damaged."""
    names = tuple(names)
    try:
        found = read_npz(path, names)
        return {name: found[name] for name in names}
    except PermissionError:
        raise denied(path) from None
    except (OSError, ValueError, KeyError) as error:
        raise Problem(f"{path} is missing or damaged ({brief(error)}); delete it and run `snakemake all`") from None
