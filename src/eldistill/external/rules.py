# SPDX-License-Identifier: Apache-2.0
"""The rules for names in pickles: which record each known name creates. Every other name is refused.

A rule is a function of (machine, arguments, new): the machine that walks over the file, the arguments of the call, and whether
the pickle calls `__new__` of a class rather than a function. It gives a plain value or one of the records of machine.py, or raises
Refused. Nothing is imported and nothing of the file is executed.
"""

from __future__ import annotations

import codecs
import hashlib
import math
import struct
from collections.abc import Callable

import numpy as np

from eldistill.external.machine import (
    CODES,
    STORAGES,
    STREAMS,
    Array,
    Dtype,
    Header,
    Machine,
    Method,
    Record,
    Storage,
    Stub,
    Tensor,
    whole,
)
from eldistill.external.opcodes import ENCODE, Name, Refused, Utf8

COVERED_BY = "teacher/pickles"
PIECE = 2**20  # bytes of a text that are decoded at once


def _persistent(machine: Machine, arguments: tuple, new: bool) -> Record:
    meta = arguments[0] if len(arguments) == 1 and not new else None
    keys = {"type": str, "version": int, "module_src": str, "class_name": str, "state": dict}
    if not isinstance(meta, dict) or {key: type(value) for key, value in meta.items()} != keys:
        raise Refused("an object whose description does not have the five expected parts")
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
    if not isinstance(header, Header) or keys != [header.key]:
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
    if not (fits and len(size) == len(stride) <= 8 and whole(offset, *size, *stride)):
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


def _buffer(machine: Machine, arguments: tuple, new: bool) -> Array:
    """An array as numpy pickles it in protocol 5: bytes, dtype, shape, order."""
    made = Array()
    if new or len(arguments) != 4 or arguments[3] not in ("C", "F"):
        raise Refused("an array whose description is not understood")
    content, dtype, shape, order = arguments
    machine.build(made, (1, shape, dtype, order == "F", content), 0)
    return made


def _bytes(machine: Machine, arguments: tuple, new: bool) -> memoryview:
    """Bytes that a protocol below 3 has as a text with one character for each."""
    text = arguments[0] if len(arguments) == 2 and arguments[1] in ("latin1", "latin-1") and not new else None
    if isinstance(text, str):  # counted, because a text can be named again and again
        machine.memory += len(text)
        text = Utf8(memoryview(text.encode("utf-8", "surrogatepass")))
    if not isinstance(text, Utf8):
        raise Refused("an encoding of something else than a text of bytes")
    if id(text) not in machine.encoded:
        machine.encoded[id(text)] = text, memoryview(_decoded(text.data))
    return machine.encoded[id(text)][1]


def _decoded(text: memoryview) -> bytearray:
    # In pieces: a text with one character beyond Latin-1 would take two or four bytes for each of its characters.
    decoder, found = codecs.getincrementaldecoder("utf-8")(), bytearray()
    try:
        for at in range(0, len(text), PIECE):
            found += decoder.decode(bytes(text[at : at + PIECE])).encode("latin-1")
        decoder.decode(b"", final=True)
    except UnicodeError:
        raise Refused("a text of bytes that has other characters") from None
    return found


def _no_bytes(machine: Machine, arguments: tuple, new: bool) -> memoryview:
    if arguments or new:
        raise Refused("bytes that are made from something")
    return memoryview(bytearray())


def _set(machine: Machine, arguments: tuple, new: bool) -> set:
    items = arguments[0] if len(arguments) == 1 and not new else None
    if not isinstance(items, list) or not all(isinstance(each, str) for each in items):
        raise Refused("a set of something else than texts")
    machine.memory += 100 * len(items)
    return set(items)


def _method(machine: Machine, arguments: tuple, new: bool) -> Method:
    """A method of an object, as ECT's loss has one among its settings. It is never looked up."""
    fits = not new and len(arguments) == 2 and isinstance(arguments[0], Record) and isinstance(arguments[1], str)
    if not fits or not arguments[1].isidentifier() or arguments[1].startswith("__"):
        raise Refused("an attribute of something else than an object of the file")
    return Method(arguments[1])


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
    ENCODE: _bytes,
    **{Name(f"numpy.{core}.numeric", "_frombuffer"): _buffer for core in ("core", "_core")},
    **{Name(module, name): rule for module in ("builtins", "__builtin__")
       for name, rule in (("set", _set), ("bytes", _no_bytes), ("getattr", _method))},
    **{Name(f"numpy.{core}.multiarray", name): rule
       for core in ("core", "_core") for name, rule in (("scalar", _scalar), ("_reconstruct", _array))},
    **{Name(f"torch.nn.modules.{place}", place_name): _module(place_name) for place, place_name in MODULES_OF_TORCH},
}  # fmt: skip
