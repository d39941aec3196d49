# SPDX-License-Identifier: Apache-2.0
"""Reads the pickles in which EDM and EDM2 networks are published, without executing anything from them.

Python's unpickler is made to call what a file names. Here an interpreter of our own walks over the bytes: it knows the
few opcodes those files use, a name in the file is a pair of words that is looked up in a table of rules, and a rule can
only make one of the records below. There is no way from a file to an import, a call or an attribute. Work and memory are
bounded by the file's size, whatever the file says: tensors are views of its bytes until they are asked for.

Anything unknown is refused with a Problem that names the place.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eldistill.files import Problem

VERSION = 1

# Bounds, far above what the published files need (the largest has some 150,000 opcodes and modules 6 deep).
OPCODES = 1_000_000
MEMORY = 48 * 2**20  # bytes of small objects: everything but tensors and arrays
DEPTH, MODULES, ENTRIES = 32, 20_000, 1_000_000
TEXT, KEY, PATH = 4 * 2**20, 256, 512  # bytes of a text (source files have some 50,000), of a key, of a tensor's name

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


class _Mark:
    pass


MARK = _Mark()


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


def _whole(*values) -> bool:
    return all(type(value) is int and 0 <= value < 2**48 for value in values)


def _fill(array: Array, state, at: int) -> None:
    fits = isinstance(state, tuple) and len(state) == 5
    if fits:
        _, shape, dtype, fortran, content = state
        fits = (isinstance(shape, tuple) and len(shape) <= 8 and _whole(*shape) and isinstance(dtype, Dtype)
                and isinstance(fortran, bool) and isinstance(content, memoryview)
                and math.prod(shape) * dtype.numpy.itemsize == len(content))  # fmt: skip
    if not fits:
        raise Refused(f"an array at byte {at} whose shape, dtype and content do not agree")
    array.shape, array.dtype, array.fortran, array.data = shape, dtype, fortran, content


@dataclass(frozen=True)
class _Header:
    dtype: torch.dtype
    numel: int
    key: str


def _header(described, at: int) -> _Header:
    fits = isinstance(described, tuple) and len(described) == 6 and described[0] == "storage" and described[5] is None
    kind = described[1] if fits else None
    if not (
        isinstance(kind, Name)
        and isinstance(described[2], str)
        and isinstance(described[3], str)
        and _whole(described[4])
    ):
        raise Refused(f"a storage at byte {at} whose description is not understood")
    # Where it once lay (described[3], such as cuda:0) does not matter.
    return _Header(STORAGES[kind.name], described[4], described[2])


# --- rules: what a name may become -----------------------------------------------------------------------


def _persistent(machine: Machine, arguments: tuple, new: bool) -> Record:
    meta = arguments[0] if len(arguments) == 1 and not new else None
    keys = {"type": str, "version": int, "module_src": str, "class_name": str, "state": dict}
    if not isinstance(meta, dict) or {key: type(value) for key, value in meta.items()} != keys:
        raise Refused("an object whose description has not the five parts that were expected")
    if meta["type"] != "class" or meta["version"] != 6:
        raise Refused(f"an object of format {meta['version']}; expected 6")
    text = meta["module_src"]
    if id(text) not in machine.sources:
        machine.sources[id(text)] = text, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Record(meta["class_name"], meta["state"], machine.sources[id(text)][1])


def _blob(machine: Machine, arguments: tuple, new: bool) -> Storage:
    """A storage in torch's format of before 2020: five pickles, a count, the numbers."""
    view = arguments[0] if len(arguments) == 1 and not new else None
    if not isinstance(view, memoryview):
        raise Refused("a storage that is not bytes")
    inner = Machine(view)
    inner.opcodes, inner.memory = machine.opcodes, machine.memory
    at, found = 0, []
    classes = {Name("torch", name): _uncallable for name in STORAGES}
    for place in range(5):
        value, at = inner.run(at, len(view), classes if place == 3 else {}, storage=place == 3)
        found.append(value)
    machine.opcodes, machine.memory = inner.opcodes, inner.memory
    magic, version, system, header, keys = found
    if (magic, version) != STREAMS or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("a storage that does not begin as one")
    if not isinstance(header, _Header) or keys != [header.key]:
        raise Refused("a storage whose two names differ")
    size = header.numel * header.dtype.itemsize
    if len(view) - at != 8 + size or struct.unpack_from("<q", view, at)[0] != header.numel:
        raise Refused(f"a storage of {header.numel} numbers with {len(view) - at - 8} bytes")
    return Storage(header.dtype, header.numel, view[at + 8 :])


def _tensor(machine: Machine, arguments: tuple, new: bool) -> Tensor:
    if new or not 6 <= len(arguments) <= 7 or any(arguments[6:]):
        raise Refused("a tensor whose description is not understood")
    storage, offset, size, stride, _, hooks = arguments[:6]
    fits = isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple) and not hooks
    if not (fits and len(size) == len(stride) <= 8 and _whole(offset, *size, *stride)):
        raise Refused("a tensor whose description is not understood")
    if count := math.prod(size):
        # Every number once and nothing between: no stride of 0 makes much of little, no gap copies more than is there.
        span = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if offset + span > storage.numel or span != count:
            raise Refused(
                f"a tensor of shape {list(size)} that does not lie within its {storage.numel} numbers, one by one"
            )
    return Tensor(storage, offset, size, stride)


def _parameter(machine: Machine, arguments: tuple, new: bool) -> Tensor:
    if new or len(arguments) != 3 or not isinstance(arguments[0], Tensor) or arguments[2]:
        raise Refused("a parameter whose description is not understood")
    found = arguments[0]
    return Tensor(found.storage, found.offset, found.size, found.stride, True)


def _mapping(machine: Machine, arguments: tuple, new: bool) -> dict:
    if arguments:
        raise Refused("a mapping that is made from something")
    return {}


def _module(name: str) -> Callable:
    def make(machine: Machine, arguments: tuple, new: bool) -> Stub:
        if arguments or not new:
            raise Refused(f"a {name} that is made from something")
        return Stub(name)

    return make


def _dtype(machine: Machine, arguments: tuple, new: bool) -> Dtype:
    if new or not 1 <= len(arguments) <= 3 or not isinstance(arguments[0], str) or arguments[0] not in CODES:
        raise Refused("a dtype that is not one of plain numbers")
    return Dtype(arguments[0])


def _scalar(machine: Machine, arguments: tuple, new: bool) -> int | float | bool:
    fits = not new and len(arguments) == 2 and isinstance(arguments[0], Dtype) and isinstance(arguments[1], memoryview)
    if not fits or len(arguments[1]) != arguments[0].numpy.itemsize:
        raise Refused("a number whose bytes do not fit its dtype")
    return np.frombuffer(arguments[1], arguments[0].numpy)[0].item()


def _array(machine: Machine, arguments: tuple, new: bool) -> Array:
    first = arguments[0] if len(arguments) == 3 and not new else None
    if first != Name("numpy", "ndarray") or arguments[1] != (0,):
        raise Refused("an array whose description is not understood")
    return Array()


def _uncallable(machine: Machine, arguments: tuple, new: bool):
    raise Refused("a call of a class that is only named in such files")


MODULES_OF_TORCH = (("container", "ModuleDict"), ("container", "Sequential"), ("pooling", "MaxPool2d"),
                    ("pooling", "AvgPool2d"), ("linear", "Linear"))  # fmt: skip
RULES: dict[Name, Callable] = {
    Name("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch.storage", "_load_from_bytes"): _blob,
    Name("collections", "OrderedDict"): _mapping,
    Name("dnnlib.util", "EasyDict"): _mapping,
    Name("numpy", "dtype"): _dtype,
    Name("numpy", "ndarray"): _uncallable,
    **{Name(f"numpy.{core}.multiarray", name): rule
       for core in ("core", "_core") for name, rule in (("scalar", _scalar), ("_reconstruct", _array))},
    **{Name(f"torch.nn.modules.{place}", place_name): _module(place_name) for place, place_name in MODULES_OF_TORCH},
}  # fmt: skip


# --- a file ---------------------------------------------------------------------------------------------


@dataclass
class Network:
    """A network of a file: what it was made with, and its numbers in the order of its state.

    class_name: of the root. classes: {prefix: class name} of every module. kwargs: the root's constructor arguments.
    attributes: its other plain values. tensors: {name: Tensor}, parameters and buffers as in its state_dict.
    """

    class_name: str
    kwargs: dict
    attributes: dict
    classes: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    inner_kwargs: dict = field(default_factory=dict)
    source_sha256: str = ""

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of all tensors, in the file's precision."""
        return {name: each.value() for name, each in self.tensors.items()}


@dataclass
class File:
    """An open file: its value, its digest and its size. Close it when its tensors have been copied."""

    path: Path
    value: Any
    sha256: str
    bytes: int
    _map: mmap.mmap | None = None

    def network(self, key: str = "ema") -> Network:
        """The network under `key` of the root, or the root itself if that is one. Raises Refused."""
        value = self.value
        if isinstance(value, dict):
            if key not in value:
                there = ", ".join(ascii(name)[:40] for name in list(value)[:8]) or "nothing"
                raise Refused(f"{self.path}: it has no {key!r}, but {there}; expected a network file of EDM or EDM2")
            value = value[key]
        return self._named(lambda: _walk(value, self.bytes))

    def plain(self, value) -> Any:
        """A value of the file as plain Python: texts, numbers, lists, dicts and numpy arrays. Raises Refused."""
        return self._named(lambda: plain(value, [ENTRIES, self.bytes]))

    def _named(self, make: Callable):
        try:
            return make()
        except Refused as error:
            raise Refused(
                f"{self.path} holds what no network of EDM or EDM2 does ({error}); fetch it again, or give another"
            ) from None

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_) -> None:
        self.value = None  # the views must go before the map can
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:  # somebody still holds a Tensor; its bytes live as long as it does
                pass


def read(path: str | os.PathLike, sha256: str | None = None) -> File:
    """Read a pickle of EDM, EDM2 or NVIDIA's metrics; nothing in it is executed.

    sha256: what its digest must be, if that is known. Raises Refused, one sentence, for every other file.
    """
    path = Path(path)
    try:
        kind = os.lstat(path).st_mode
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); give the path of a network file") from None
    if not stat.S_ISREG(kind):
        what = "a symbolic link" if stat.S_ISLNK(kind) else "a folder" if stat.S_ISDIR(kind) else "no ordinary file"
        raise Refused(f"{path} is {what}; give the network file itself")
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
            if sha256 is not None and digest != sha256:
                raise Refused(f"{path} has the sha256 {digest[:16]}…; expected {sha256[:16]}…: fetch it again")
            if not size:
                raise Refused(f"{path} is empty; fetch it again")
            # Private and writable, for torch warns of read-only buffers; nobody writes.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); give the path of a network file") from None
    if sys.byteorder != "little":
        raise Refused(f"{path} is little-endian and this machine is not")
    view = memoryview(mapped)
    try:
        if view[:1] in (b"<", b"v"):
            raise Refused("it is a text, perhaps a web page or a pointer to a large file")
        value, end = Machine(view).run(0, size, RULES)
        if end != size:
            raise Refused(f"{size - end} bytes follow its end")
    except Refused as error:
        raise Refused(f"{path} is no network file of EDM or EDM2 ({error}); fetch it again, or give another") from None
    return File(path, value, digest, size, mapped)


def python2(data: bytes | memoryview) -> Any:
    """The value of a pickle of protocol 2 by Python 2, as CIFAR-10 has them: texts, numbers, lists, dicts and arrays of
    numpy. Nothing is executed. Raises Refused."""
    view = memoryview(data)
    rules = {name: rule for name, rule in RULES.items() if name.module.startswith("numpy")}
    value, end = Machine(view).run(0, len(view), rules, old=True)
    if end != len(view):
        raise Refused(f"{len(view) - end} bytes follow its end")
    return plain(value, [ENTRIES, len(view)])


def _attributes(value) -> tuple[str, dict]:
    if isinstance(value, Record):
        return value.class_name, value.state
    if isinstance(value, Stub) and value.state is not None:
        return value.name, value.state
    raise Refused(f"a {type(value).__name__.lower()} where a module was expected")


def _settings(value, what: str) -> dict:
    if not isinstance(found := plain(value, [10_000, 2**20]), dict):
        raise Refused(f"{what} that are no mapping")
    return found


def _walk(root, size: int) -> Network:
    # Depth first like torch: own parameters, own buffers, then the modules, in order.
    class_name, state = _attributes(root)
    values = {
        key: value
        for key, value in state.items()
        if not key.startswith("_") and isinstance(value, bool | int | float | str)
    }
    found = Network(class_name, _settings(state.get("_init_kwargs", {}), "constructor arguments"), values)
    found.source_sha256 = getattr(root, "source_sha256", "")
    total = entries = 0
    for prefix, value in _modules(root):
        found.classes[prefix], state = _attributes(value)
        if prefix in ("model", "unet"):
            found.inner_kwargs = _settings(state.get("_init_kwargs", {}), "constructor arguments")
        hidden = state.get("_non_persistent_buffers_set", set())
        for kind in ("_parameters", "_buffers"):
            own = state.get(kind, {})
            if not isinstance(own, dict) or not isinstance(hidden, set):
                raise Refused(f"module {ascii(prefix)[:80]}, whose {kind} are no mapping")
            if (entries := entries + len(own)) > ENTRIES:
                raise Refused(f"more than {ENTRIES:,} entries")
            for key, tensor in own.items():
                if tensor is None or (kind == "_buffers" and key in hidden):
                    continue
                full = f"{prefix}.{key}" if prefix else key
                if (
                    not isinstance(tensor, Tensor)
                    or tensor.parameter != (kind == "_parameters")
                    or full in found.tensors
                ):
                    raise Refused(f"{ascii(full)[:80]} is not what {kind} hold")
                if (total := total + tensor.bytes) > size:
                    raise Refused(f"tensors of more than its {size:,} bytes")
                found.tensors[full] = tensor
    return found


def _modules(root) -> Iterator[tuple[str, Any]]:
    waiting, count, entries = [("", root, 0)], 0, 0
    while waiting:
        prefix, value, depth = waiting.pop()
        count += 1
        if depth > DEPTH or count > MODULES or len(prefix) > PATH:
            raise Refused(
                f"modules deeper than {DEPTH}, more than {MODULES:,}, or with names of more than {PATH} characters"
            )
        yield prefix, value
        children = _attributes(value)[1].get("_modules", {})
        if not isinstance(children, dict) or (entries := entries + len(children)) > ENTRIES:
            raise Refused(f"module {ascii(prefix)[:80]}, whose _modules are no mapping of modules")
        waiting += [(f"{prefix}.{key}" if prefix else key, child, depth + 1)
                    for key, child in reversed(children.items()) if child is not None]  # fmt: skip


def plain(value, budget: list[int] | None = None, depth: int = 0):
    """Texts, numbers, None, lists, tuples (as lists), dicts, sets (as sorted lists) and arrays. Raises Refused for more.

    budget: how many values, and how many bytes of arrays, are still allowed.
    """
    budget = [ENTRIES, 2**26] if budget is None else budget
    budget[0] -= 1
    if depth > 16 or budget[0] < 0:
        raise Refused("settings that are nested too deeply, or too many")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item, budget, depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: plain(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, set):
        budget[0] -= len(value)
        return sorted(value)
    if isinstance(value, Array):
        budget[1] -= 0 if value.data is None else len(value.data)
        if budget[1] < 0:
            raise Refused("arrays of more bytes than it has")
        return value.value()
    raise Refused(f"a {type(value).__name__.lower()} where a setting was expected")
