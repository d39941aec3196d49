# SPDX-License-Identifier: Apache-2.0
"""The opcodes of pickles that published files use, and their effects on a stack.

A table maps each opcode to a function. None of them imports, looks up or calls anything that a file names: for names, calls,
states and storages they ask the interpreter (machine.py), which decides by a table of rules.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eldistill.errors import Problem

COVERED_BY = "teacher/machine"

# Bounds, far above what the published files need (the largest has some 150,000 opcodes and modules 6 deep).
OPCODES = 1_000_000
MEMORY = 48 * 2**20  # bytes of small objects: everything but tensors and arrays
TEXT, KEY = 4 * 2**20, 256  # bytes of a text (source files have some 50,000), of a key
PROTO, STOP = 0x80, 0x2E


@dataclass(frozen=True)
class Utf8:
    """Bytes that a file has as a text, because protocols below 3 have no bytes: a view of the text."""

    data: memoryview


class Refused(Problem):
    """A file is damaged, or contains something that is in no published network."""


@dataclass(frozen=True)
class Name:
    """A global that the file names: two words, nothing more."""

    module: str
    name: str


ENCODE = Name("_codecs", "encode")


class Reading:
    """A pickle that is being read: the position in the file, the stack, the marks and the memo.

    machine: the interpreter, which counts opcodes and memory and decides about names, states and storages. data: the file. at,
    end: positions of the pickle in bytes. rules: {name: function that creates its record}. storage: whether persistent ids of
    storages are allowed. old: whether strings of Python 2 are allowed. Every method raises Refused.
    """

    def __init__(
        self, machine, data: memoryview, at: int, end: int, rules: dict[Name, Callable], storage: bool, old: bool
    ):
        self.machine, self.data, self.at, self.end, self.rules = machine, data, at, end, rules
        self.operations = OPERATIONS | (STORAGE if storage else {}) | (PYTHON2 if old else {})
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def value(self) -> Any:
        """The value of the pickle. Afterwards `at` is the position after its last opcode."""
        if (code := self._code()) != PROTO:
            raise Refused(f"no pickle at byte {self.at - 1}")
        if self.byte() not in (2, 3, 4, 5):
            raise Refused(f"a protocol at byte {self.at} that is not 2 to 5")
        while (code := self._code()) != STOP:
            if code == PROTO:
                raise Refused(f"a protocol at byte {self.at} that is not 2 to 5")
            if code not in self.operations:
                raise Refused(f"opcode 0x{code:02x} at byte {self.at - 1}, which no published network has")
            self.operations[code](self)
        value = self.pop()
        if self.stack or self.marks:
            raise Refused(f"{len(self.stack)} values are left over at byte {self.at}")
        return value

    def _code(self) -> int:
        self.machine.opcodes += 1
        if self.machine.opcodes > OPCODES or self.machine.memory > MEMORY:
            raise Refused(f"more than {OPCODES:,} opcodes, or {MEMORY >> 20} MiB of small objects")
        return self.byte()

    # --- bytes ---

    def need(self, count: int) -> int:
        """Step over `count` bytes; returns where they begin."""
        if count > self.end - self.at:
            raise Refused(f"ends at byte {self.end}, in the middle of something: the download or copy was cut off")
        self.at += count
        return self.at - count

    def byte(self) -> int:
        return self.data[self.need(1)]

    def view(self, count: int) -> memoryview:
        """A view of the next `count` bytes, no copy."""
        start = self.need(count)
        return self.data[start : self.at]

    def number(self, form: str) -> int | float:
        """A number in a format of `struct`."""
        return struct.unpack_from(form, self.data, self.need(struct.calcsize(form)))[0]

    def words(self, count: int) -> str:
        """A text of `count` bytes, UTF-8."""
        if count > TEXT:
            raise Refused(f"a text of {count} bytes at byte {self.at}")
        try:
            return str(self.view(count), "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise Refused(f"a text at byte {self.at - count} is not UTF-8") from None

    def text(self, count: int) -> str | Utf8:
        """A text of `count` bytes. If it is the argument of `_codecs.encode`, which makes bytes of it, it stays in the file."""
        if self.stack and self.stack[-1] == ENCODE:
            return Utf8(self.view(count))
        return self.words(count)

    def line(self) -> str:
        """A text that ends with a newline, as names have it."""
        limit = min(self.end, self.at + 256)
        stop = bytes(self.data[self.at : limit]).find(b"\n")
        if stop < 0:
            raise Refused(f"a name at byte {self.at} has no end")
        text = self.words(stop)
        self.need(1)
        return text

    # --- stack and memo ---

    def push(self, value) -> None:
        self.machine.memory += sys.getsizeof(value)
        if self.machine.memory > MEMORY:
            raise Refused(f"more than {MEMORY >> 20} MiB of small objects")
        self.stack.append(value)

    def pop(self):
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Refused(f"an empty stack at byte {self.at}")
        return self.stack.pop()

    def top(self, kind: type):
        """The last value, which must be of this type."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or not isinstance(self.stack[-1], kind):
            raise Refused(f"no {kind.__name__} to add to at byte {self.at}")
        return self.stack[-1]

    def mark(self) -> None:
        self.marks.append(len(self.stack))
        self.machine.memory += 8

    def since_mark(self) -> list:
        """The values above the last mark, which goes too."""
        if not self.marks:
            raise Refused(f"no mark at byte {self.at}")
        place = self.marks.pop()
        values = self.stack[place:]
        del self.stack[place:]
        return values

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Refused(f"memo {index}, which is not there, at byte {self.at}")
        self.machine.memory += 8
        self.stack.append(self.memo[index])

    def keep(self, index: int) -> None:
        if not self.stack:
            raise Refused(f"nothing to remember at byte {self.at}")
        self.machine.memory += 100
        self.memo[index] = self.stack[-1]

    # --- containers ---

    def _add(self, target: dict, values: list) -> None:
        if len(values) % 2:
            raise Refused(f"a key without a value at byte {self.at}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not self.machine.fits_key(key, KEY):
                raise Refused(f"a key that is no short text at byte {self.at}")
            target[key] = value
        self.machine.memory += 64 * len(values)

    def append(self) -> None:
        value = self.pop()
        self.top(list).append(value)
        self.machine.memory += 16

    def extend(self) -> None:
        values = self.since_mark()
        self.top(list).extend(values)
        self.machine.memory += 16 * len(values)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self._add(self.top(dict), [key, value])

    def set_items(self) -> None:
        values = self.since_mark()
        self._add(self.top(dict), values)

    def add_items(self) -> None:
        values = self.since_mark()
        if not all(isinstance(value, str) for value in values):
            raise Refused(f"a set of something else than texts at byte {self.at}")
        self.top(set).update(values)
        self.machine.memory += 100 * len(values)

    # --- what the interpreter decides ---

    def name_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Refused(f"a global at byte {self.at} that is not named by two texts")
        self.push(self.machine.known(Name(module, name), self.rules, self.at))

    def call(self, new: bool) -> None:
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            raise Refused(f"a call at byte {self.at} of something that cannot be called")
        self.push(self.rules[called](self.machine, arguments, new))

    def build(self) -> None:
        state = self.pop()
        if not self.stack:
            raise Refused(f"nothing to build at byte {self.at}")
        self.machine.build(self.stack[-1], state, self.at)


def _tuple(count: int) -> Callable[[Reading], None]:
    return lambda r: r.push(tuple(reversed([r.pop() for _ in range(count)])))


OPERATIONS: dict[int, Callable[[Reading], Any]] = {
    0x95: lambda r: r.need(8),  # FRAME: how much follows; only a hint
    0x94: lambda r: r.keep(len(r.memo)),  # MEMOIZE
    0x71: lambda r: r.keep(r.byte()),  # BINPUT
    0x72: lambda r: r.keep(r.number("<I")),  # LONG_BINPUT
    0x68: lambda r: r.recall(r.byte()),  # BINGET
    0x6A: lambda r: r.recall(r.number("<I")),  # LONG_BINGET
    0x28: Reading.mark,  # MARK
    0x30: Reading.pop,  # POP
    0x31: Reading.since_mark,  # POP_MARK
    0x4E: lambda r: r.push(None),  # NONE
    0x88: lambda r: r.push(True),  # NEWTRUE
    0x89: lambda r: r.push(False),  # NEWFALSE
    0x4A: lambda r: r.push(r.number("<i")),  # BININT
    0x4B: lambda r: r.push(r.byte()),  # BININT1
    0x4D: lambda r: r.push(r.number("<H")),  # BININT2
    0x8A: lambda r: r.push(int.from_bytes(r.view(r.byte()), "little", signed=True)),  # LONG1
    0x47: lambda r: r.push(r.number(">d")),  # BINFLOAT
    0x8C: lambda r: r.push(r.words(r.byte())),  # SHORT_BINUNICODE
    0x58: lambda r: r.push(r.text(r.number("<I"))),  # BINUNICODE
    0x8D: lambda r: r.push(r.words(r.number("<Q"))),  # BINUNICODE8
    0x43: lambda r: r.push(r.view(r.byte())),  # SHORT_BINBYTES
    0x42: lambda r: r.push(r.view(r.number("<I"))),  # BINBYTES
    0x8E: lambda r: r.push(r.view(r.number("<Q"))),  # BINBYTES8
    0x96: lambda r: r.push(r.view(r.number("<Q"))),  # BYTEARRAY8
    0x98: lambda r: r.top(memoryview),  # READONLY_BUFFER: what it is already
    0x5D: lambda r: r.push([]),  # EMPTY_LIST
    0x7D: lambda r: r.push({}),  # EMPTY_DICT
    0x8F: lambda r: r.push(set()),  # EMPTY_SET
    0x29: lambda r: r.push(()),  # EMPTY_TUPLE
    0x74: lambda r: r.push(tuple(r.since_mark())),  # TUPLE
    0x85: _tuple(1),  # TUPLE1
    0x86: _tuple(2),  # TUPLE2
    0x87: _tuple(3),  # TUPLE3
    0x61: Reading.append,  # APPEND
    0x65: Reading.extend,  # APPENDS
    0x73: Reading.set_item,  # SETITEM
    0x75: Reading.set_items,  # SETITEMS
    0x90: Reading.add_items,  # ADDITEMS
    0x93: Reading.name_on_stack,  # STACK_GLOBAL
    0x63: lambda r: r.push(r.machine.known(Name(r.line(), r.line()), r.rules, r.at)),  # GLOBAL
    0x52: lambda r: r.call(new=False),  # REDUCE
    0x81: lambda r: r.call(new=True),  # NEWOBJ
    0x62: Reading.build,  # BUILD
}
STORAGE = {0x51: lambda r: r.push(r.machine.header(r.pop(), r.at))}  # BINPERSID
PYTHON2 = {
    0x55: lambda r: r.push(str(r.view(r.byte()), "latin-1")),  # SHORT_BINSTRING
    0x54: lambda r: r.push(r.view(r.number("<I"))),  # BINSTRING
}
