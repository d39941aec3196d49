# SPDX-License-Identifier: Apache-2.0
"""An interpreter of pickles that executes nothing.

Python's unpickler is made to call what a file names. This one walks over the bytes: it knows the few opcodes that the
published files use, a name in the file is a pair of words that is looked up in a table of rules (pickles.py has them), and a
rule can only make one of the records below. There is no way from a file to an import, a call or an attribute. Work and
memory are bounded by the file's size, whatever the file says: tensors are views of its bytes until they are asked for.

Anything unknown is refused with a Problem that names the place.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eldistill.errors import Problem

RECIPE = ("teacher/machine", 1)

# Bounds, far above what the published files need (the largest has some 150,000 opcodes and modules 6 deep).
OPCODES = 1_000_000
MEMORY = 48 * 2**20  # bytes of small objects: everything but tensors and arrays
DEPTH, VALUES = 32, 200_000  # of modules, of plain settings
TEXT, KEY = 4 * 2**20, 256  # bytes of a text (source files have some 50,000), of a key

STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
CODES = {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"}  # numpy's, of one byte order and no objects
STREAMS = (0x1950A86A20F9469CFC6C, 1001)  # how a storage written by torch's old format begins


class Refused(Problem):
    """The file is damaged, or holds something that no published network does."""


# --- what a file can turn into --------------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """A global that the file names: two words, nothing more."""

    module: str
    name: str


@dataclass
class Stub:
    """An instance of a class that torch itself offers: its name and its attributes."""

    name: str
    state: dict | None = None


@dataclass(frozen=True)
class Record:
    """An instance of a class whose source travels in the file: its name, its attributes, the digest of that source."""

    class_name: str
    state: dict
    source_sha256: str


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
        own = torch.frombuffer(self.storage.data[start : start + self.bytes], dtype=dtype)
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
        """The same for numpy."""
        return np.dtype(f"<{self.code}")


@dataclass
class Array:
    """A numpy array; `value` copies it out."""

    shape: tuple[int, ...] | None = None
    dtype: Dtype | None = None
    fortran: bool = False
    data: memoryview | None = None

    def value(self) -> np.ndarray:
        """A copy of its own."""
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

    def run(
        self, at: int, end: int, rules: dict[Name, Callable], storage: bool = False, old: bool = False
    ) -> tuple[Any, int]:
        """The value of the pickle that begins at `at`, and the place behind its last opcode.

        storage: whether it may name a storage by persistent id. old: whether it may hold the strings of Python 2, which
        are texts up to 255 bytes and bytes above. Raises Refused.
        """
        stack: list = []
        marks: list[int] = []
        memo: dict[int, Any] = {}
        data, first = self.data, True

        def need(count: int) -> int:
            nonlocal at
            if count > end - at:
                raise Refused(f"ends at byte {end}, in the middle of something")
            at += count
            return at - count

        def number(form: str) -> int | float:
            return struct.unpack_from(form, data, need(struct.calcsize(form)))[0]

        def words(count: int) -> str:
            if count > TEXT:
                raise Refused(f"a text of {count} bytes at byte {at}")
            try:
                return str(data[need(count) : at], "utf-8", "surrogatepass")
            except UnicodeDecodeError:
                raise Refused(f"a text at byte {at - count} is not UTF-8") from None

        def line() -> str:
            limit = min(end, at + 256)
            stop = bytes(data[at:limit]).find(b"\n")
            if stop < 0:
                raise Refused(f"a name at byte {at} has no end")
            text = words(stop)
            need(1)
            return text

        def push(value) -> None:
            self.memory += sys.getsizeof(value)
            if self.memory > MEMORY:
                raise Refused(f"more than {MEMORY >> 20} MiB of small objects")
            stack.append(value)

        def pop():
            if len(stack) <= (marks[-1] if marks else 0):
                raise Refused(f"an empty stack at byte {at}")
            return stack.pop()

        def top(kind: type):
            if len(stack) <= (marks[-1] if marks else 0) or not isinstance(stack[-1], kind):
                raise Refused(f"no {kind.__name__} to add to at byte {at}")
            return stack[-1]

        def since_mark() -> list:
            if not marks:
                raise Refused(f"no mark at byte {at}")
            place = marks.pop()
            values = stack[place:]
            del stack[place:]
            return values

        def add(target: dict, values: list) -> None:
            if len(values) % 2:
                raise Refused(f"a key without a value at byte {at}")
            for key, value in zip(values[::2], values[1::2], strict=True):
                if not isinstance(key, str) or len(key) > KEY:  # other keys could be chosen to collide
                    raise Refused(f"a key that is no short text at byte {at}")
                target[key] = value
            self.memory += 64 * len(values)

        def recall(index: int) -> None:
            if index not in memo:
                raise Refused(f"memo {index}, which is not there, at byte {at}")
            self.memory += 8
            stack.append(memo[index])

        def keep(index: int) -> None:
            if not stack:
                raise Refused(f"nothing to remember at byte {at}")
            self.memory += 100
            memo[index] = stack[-1]

        while True:
            self.opcodes += 1
            if self.opcodes > OPCODES or self.memory > MEMORY:
                raise Refused(f"more than {OPCODES:,} opcodes, or {MEMORY >> 20} MiB of small objects")
            code = data[need(1)]
            if first and code != 0x80:
                raise Refused(f"no pickle at byte {at - 1}")
            if code == 0x80:  # PROTO
                if not first or data[need(1)] not in (2, 3, 4, 5):
                    raise Refused(f"a protocol at byte {at} that is not 2 to 5")
                first = False
            elif code == 0x95:  # FRAME: how much follows; only a hint
                need(8)
            elif code == 0x2E:  # STOP
                value = pop()
                if stack or marks:
                    raise Refused(f"{len(stack)} values are left over at byte {at}")
                return value, at
            elif code == 0x94:  # MEMOIZE
                keep(len(memo))
            elif code == 0x71:  # BINPUT
                keep(data[need(1)])
            elif code == 0x72:  # LONG_BINPUT
                keep(number("<I"))
            elif code == 0x68:  # BINGET
                recall(data[need(1)])
            elif code == 0x6A:  # LONG_BINGET
                recall(number("<I"))
            elif code == 0x28:  # MARK
                marks.append(len(stack))
                self.memory += 8
            elif code == 0x30:  # POP
                pop()
            elif code == 0x31:  # POP_MARK
                since_mark()
            elif code == 0x4E:  # NONE
                push(None)
            elif code == 0x88 or code == 0x89:  # NEWTRUE, NEWFALSE
                push(code == 0x88)
            elif code == 0x4A:  # BININT
                push(number("<i"))
            elif code == 0x4B:  # BININT1
                push(data[need(1)])
            elif code == 0x4D:  # BININT2
                push(number("<H"))
            elif code == 0x8A:  # LONG1
                size = data[need(1)]
                push(int.from_bytes(data[need(size) : at], "little", signed=True))
            elif code == 0x47:  # BINFLOAT
                push(number(">d"))
            elif code == 0x8C:  # SHORT_BINUNICODE
                push(words(data[need(1)]))
            elif code == 0x58:  # BINUNICODE
                push(words(number("<I")))
            elif code == 0x8D:  # BINUNICODE8
                push(words(number("<Q")))
            elif code in (0x43, 0x42, 0x8E):  # SHORT_BINBYTES, BINBYTES, BINBYTES8: a view, no copy
                size = data[need(1)] if code == 0x43 else number("<I" if code == 0x42 else "<Q")
                push(data[need(size) : at])
            elif code == 0x55 and old:  # SHORT_BINSTRING
                size = data[need(1)]
                push(str(data[need(size) : at], "latin-1"))
            elif code == 0x54 and old:  # BINSTRING
                size = number("<I")
                push(data[need(size) : at])
            elif code == 0x5D:  # EMPTY_LIST
                push([])
            elif code == 0x7D:  # EMPTY_DICT
                push({})
            elif code == 0x8F:  # EMPTY_SET
                push(set())
            elif code == 0x29:  # EMPTY_TUPLE
                push(())
            elif code == 0x74:  # TUPLE
                push(tuple(since_mark()))
            elif code in (0x85, 0x86, 0x87):  # TUPLE1, 2, 3
                push(tuple(reversed([pop() for _ in range(code - 0x84)])))
            elif code == 0x61:  # APPEND
                value = pop()
                top(list).append(value)
                self.memory += 16
            elif code == 0x65:  # APPENDS
                values = since_mark()
                top(list).extend(values)
                self.memory += 16 * len(values)
            elif code == 0x73:  # SETITEM
                value, key = pop(), pop()
                add(top(dict), [key, value])
            elif code == 0x75:  # SETITEMS
                values = since_mark()
                add(top(dict), values)
            elif code == 0x90:  # ADDITEMS
                values = since_mark()
                if not all(isinstance(value, str) for value in values):
                    raise Refused(f"a set of something else than texts at byte {at}")
                top(set).update(values)
                self.memory += 100 * len(values)
            elif code == 0x93:  # STACK_GLOBAL
                name, module = pop(), pop()
                if not (isinstance(name, str) and isinstance(module, str)):
                    raise Refused(f"a global at byte {at} that is not named by two texts")
                push(self._known(Name(module, name), rules, at))
            elif code == 0x63:  # GLOBAL
                push(self._known(Name(line(), line()), rules, at))
            elif code == 0x52 or code == 0x81:  # REDUCE, NEWOBJ
                arguments, called = pop(), pop()
                if not isinstance(called, Name) or not isinstance(arguments, tuple):
                    raise Refused(f"a call at byte {at} of something that cannot be called")
                push(rules[called](self, arguments, code == 0x81))
            elif code == 0x62:  # BUILD
                state = pop()
                if not stack:
                    raise Refused(f"nothing to build at byte {at}")
                self._build(stack[-1], state, at)
            elif code == 0x51 and storage:  # BINPERSID
                push(_header(pop(), at))
            else:
                raise Refused(f"opcode 0x{code:02x} at byte {at - 1}, which no published network has")

    @staticmethod
    def _known(name: Name, rules: dict[Name, Callable], at: int) -> Name:
        if name not in rules:
            shown = f"{name.module}.{name.name}"[:80]
            raise Refused(f"it names {shown!r} at byte {at}, which no published network does; nothing was executed")
        return name

    @staticmethod
    def _build(target, state, at: int) -> None:
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
