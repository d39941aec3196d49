# SPDX-License-Identifier: Apache-2.0
"""Interprets pickles without executing anything in them.

Python's unpickler calls the functions that a file names. This interpreter knows only the few opcodes that published files
use. A name in a file is a pair of words, which is looked up in a table of rules (rules.py), and a rule can only create one of
the records below. No content of a file leads to an import, a call or an attribute access. Time and memory are bounded by the
size of the file: tensors are views of its bytes until their values are requested.

Everything unknown is refused with a Problem that contains the position in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eldistill.external.opcodes import Name, Reading, Refused, Utf8

RECIPE = ("teacher/machine", 1)

DEPTH, VALUES = 32, 200_000  # largest depth of modules; largest number of plain settings
STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
CODES = {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"}  # numpy's, of one byte order and no objects
STREAMS = (0x1950A86A20F9469CFC6C, 1001)  # how a storage written by torch's old format begins


# --- the records that a file can create --------------------------------------------------------------------------


@dataclass
class Stub:
    """An instance of a class of torch: the name of the class and its attributes."""

    name: str
    state: dict | None = None


@dataclass(frozen=True)
class Record:
    """An instance of a class whose source is in the file: the name of the class, its attributes, the sha256 of the source."""

    class_name: str
    state: dict
    source_sha256: str


@dataclass(frozen=True)
class Method:
    """A method of an object in the file, which is only named: it is neither looked up nor called."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers in the file: a view of its bytes."""

    dtype: torch.dtype
    numel: int
    data: memoryview


@dataclass(frozen=True)
class Tensor:
    """A tensor as the file describes it; `value` copies it out."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    parameter: bool = False

    @property
    def bytes(self) -> int:
        """Size of the copy."""
        return math.prod(self.size) * self.storage.dtype.itemsize

    def view(self) -> torch.Tensor:
        """The tensor in the file's precision, in the file's memory; not to be written to, and gone with the file."""
        dtype = self.storage.dtype
        if not self.bytes:
            return torch.empty(self.size, dtype=dtype)
        start = self.offset * dtype.itemsize
        span = 1 + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        own = torch.frombuffer(self.storage.data[start : start + span * dtype.itemsize], dtype=dtype)
        return own.as_strided(self.size, self.stride)

    def value(self) -> torch.Tensor:
        """A contiguous copy, in the file's precision."""
        return self.view().clone(memory_format=torch.contiguous_format)


@dataclass
class Dtype:
    """numpy's description of an element."""

    code: str
    ready: bool = False

    @property
    def numpy(self) -> np.dtype:
        """The dtype of numpy."""
        return np.dtype(f"<{self.code}")


@dataclass
class Array:
    """A numpy array; `value` copies it out."""

    shape: tuple[int, ...] | None = None
    dtype: Dtype | None = None
    fortran: bool = False
    data: memoryview | None = None

    def value(self) -> np.ndarray:
        """A contiguous copy."""
        if self.data is None:
            raise Refused("an array has no content")
        flat = np.frombuffer(self.data, self.dtype.numpy)
        return flat.reshape(self.shape, order="F" if self.fortran else "C").copy("C")


# --- the interpreter ------------------------------------------------------------------------------------


class Machine:
    """One pass over the bytes of a file. `run(start)` gives the value of the stream there and where it ends.

    data: the file, as one memoryview. rules: what each name may become when it is called.
    """

    def __init__(self, data: memoryview):
        self.data = data
        self.opcodes = self.memory = 0
        self.sources: dict[int, tuple[str, str]] = {}  # of texts that were hashed: they come again and again
        self.encoded: dict[int, tuple[Utf8, memoryview]] = {}  # bytes of texts, each once

    def run(
        self, at: int, end: int, rules: dict[Name, Callable], storage: bool = False, old: bool = False
    ) -> tuple[Any, int]:
        """The value of the pickle that begins at `at`, and the place behind its last opcode.

        storage: whether it may name a storage by persistent id. old: whether it may hold the strings of Python 2, which
        are texts up to 255 bytes and bytes above. Raises Refused.
        """
        reading = Reading(self, self.data, at, end, rules, storage, old)
        return reading.value(), reading.at

    @staticmethod
    def known(name: Name, rules: dict[Name, Callable], at: int) -> Name:
        """A name of the file, if there is a rule for it."""
        if name not in rules:
            shown = f"{name.module}.{name.name}"[:80]
            raise Refused(f"it names {shown!r} at byte {at}, which no published network does; nothing was executed")
        return name

    def fits_key(self, key, longest: int) -> bool:
        """Whether a value can be a key of a mapping: a text of at most `longest` characters. Others could be chosen to collide."""
        return isinstance(key, str) and len(key) <= longest

    def build(self, target, state, at: int) -> None:
        """Give a record its state."""
        if isinstance(target, Stub) and isinstance(state, dict) and target.state is None:
            target.state = state
        elif isinstance(target, Dtype) and isinstance(state, tuple) and not target.ready:
            if len(state) < 2 or state[1] not in ("<", "|"):
                raise Refused(f"a dtype at byte {at} that is not little-endian")
            target.ready = True
        elif isinstance(target, Array) and target.shape is None:
            _fill(target, state, at)
        elif not (isinstance(target, dict) and isinstance(state, dict) and not state):
            raise Refused(f"a state at byte {at} for something that takes none")

    def header(self, described, at: int) -> Header:
        """What a persistent id says of a storage."""
        return _header(described, at)


def whole(*values) -> bool:
    return all(type(value) is int and 0 <= value < 2**48 for value in values)


def _fill(array: Array, state, at: int) -> None:
    fits = isinstance(state, tuple) and len(state) == 5
    if fits:
        _, shape, dtype, fortran, content = state
        fits = (isinstance(shape, tuple) and len(shape) <= 8 and whole(*shape) and isinstance(dtype, Dtype)
                and isinstance(fortran, bool) and isinstance(content, memoryview)
                and math.prod(shape) * dtype.numpy.itemsize == len(content))  # fmt: skip
    if not fits:
        raise Refused(f"an array at byte {at} whose shape, dtype and content do not agree")
    array.shape, array.dtype, array.fortran, array.data = shape, dtype, fortran, content


@dataclass(frozen=True)
class Header:
    dtype: torch.dtype
    numel: int
    key: str


def _header(described, at: int) -> Header:
    fits = isinstance(described, tuple) and len(described) == 6 and described[0] == "storage" and described[5] is None
    kind = described[1] if fits else None
    if not (
        isinstance(kind, Name)
        and isinstance(described[2], str)
        and isinstance(described[3], str)
        and whole(described[4])
    ):
        raise Refused(f"a storage at byte {at} whose description is not understood")
    # Where it once lay (described[3], such as cuda:0) does not matter.
    return Header(STORAGES[kind.name], described[4], described[2])
