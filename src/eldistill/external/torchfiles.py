# SPDX-License-Identifier: Apache-2.0
"""Reads files of torch.save (.pt, .pth, .bin) without torch's unpickler and without executing anything in them.

Since 2020 such a file is a zip: data.pkl is a pickle of protocol 2 that names each storage by a persistent id, and data/KEY has the
numbers of the storage KEY, not compressed. Files of before consist of pickles: a magic number, a protocol, facts of the system, the
object, the list of keys; then for each key the number of its elements and the elements. machine.py interprets the pickles.

All sizes are checked before anything is allocated, and tensors are views of the file. Their values are those of
`torch.load(weights_only=True)`, to the bit.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eldistill.external import zips
from eldistill.external.machine import STORAGES, STREAMS, Header, Machine, Storage, Tensor, whole
from eldistill.external.opcodes import Name, Refused
from eldistill.external.pickles import File
from eldistill.external.rules import RULES
from eldistill.outside import check_file

COVERED_BY = "teacher/states"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of the magic number with which the old format begins
ENTRIES = 50_000  # largest number of parts of a zip; a network of 20,000 tensors has as many
LOCAL_HEADER = 30  # bytes of a member's header in the zip, before its name and its extra field
KEYS = 2**20  # keys of mappings that are numbers, as in the states of optimisers, are below this
RAW = "UntypedStorage"
ALL_STORAGES = STORAGES | {
    "CharStorage": torch.int8, "ShortStorage": torch.int16, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
# Dtypes of tensors whose storages are plain bytes. Not all of them are in every version of torch.
NEW_DTYPES = {
    name: getattr(torch, name)
    for name in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(torch, name)
}


# --- what the names in such a file may become ---------------------------------------------------------


def _within(storage: Storage, offset: int, size: tuple, stride: tuple, itemsize: int) -> bool:
    # Whether every element is inside the storage; offset and strides count elements of `itemsize` bytes.
    if not math.prod(size):
        return True
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    return (last + 1) * itemsize <= storage.numel * storage.dtype.itemsize


def _tensor(machine: Machine, arguments: tuple, new: bool) -> Tensor:
    if new or not 6 <= len(arguments) <= 7 or any(arguments[6:]):
        raise Refused("a tensor whose description is not understood")
    storage, offset, size, stride, _, hooks = arguments[:6]
    fits = isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple) and not hooks
    if not (fits and len(size) == len(stride) <= 16 and whole(offset, *size, *stride)):
        raise Refused("a tensor whose description is not understood")
    if not _within(storage, offset, size, stride, storage.dtype.itemsize):
        raise Refused(f"a tensor of shape {list(size)} that does not lie within its {storage.numel} numbers")
    return Tensor(storage, offset, size, stride)


def _tensor_of_bytes(machine: TorchMachine, arguments: tuple, new: bool) -> Tensor:
    dtype = NEW_DTYPES.get(arguments[6].name) if len(arguments) > 6 and isinstance(arguments[6], Name) else None
    storage = arguments[0] if arguments else None
    if dtype is None or not isinstance(storage, Storage) or storage.dtype != torch.uint8:
        raise Refused("a tensor whose description is not understood")
    if machine.open:  # its storages have no numbers yet
        raise Refused(f"a tensor of {arguments[6].name} in a file of the format of before 2020, which has none")
    typed = Storage(dtype, storage.numel // dtype.itemsize, storage.data)
    return _tensor(machine, (typed, *arguments[1:6], *arguments[7:]), new)


def _parameter(machine: Machine, arguments: tuple, new: bool) -> Tensor:
    if new or len(arguments) != 3 or not isinstance(arguments[0], Tensor) or arguments[2]:
        raise Refused("a parameter whose description is not understood")
    found = arguments[0]
    return Tensor(found.storage, found.offset, found.size, found.stride, True)


def _size(machine: Machine, arguments: tuple, new: bool) -> tuple:
    if len(arguments) != 1 or not isinstance(arguments[0], tuple | list) or not whole(*arguments[0]):
        raise Refused("a size that is no list of whole numbers")
    return tuple(arguments[0])


def _set(machine: Machine, arguments: tuple, new: bool) -> set:
    items = arguments[0] if len(arguments) == 1 else None
    if not isinstance(items, list) or not all(isinstance(each, str) for each in items):
        raise Refused("a set of something else than texts")
    machine.memory += 100 * len(items)
    return set(items)


def _only_named(machine: Machine, arguments: tuple, new: bool):
    raise Refused("a call of a class that is only named in such files")


TORCH_RULES: dict[Name, Callable] = RULES | {
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v3"): _tensor_of_bytes,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch", "Size"): _size,
    **{Name(module, "set"): _set for module in ("builtins", "__builtin__")},
    **{Name("torch", name): _only_named for name in (*ALL_STORAGES, *NEW_DTYPES)},
    Name("torch.storage", RAW): _only_named,
}


class TorchMachine(Machine):
    """The interpreter with the two things that only files of torch.save have: storages by name, and numbers as keys.

    storages: {key: Storage}; for the old format empty at first, and filled by the pickle. open: whether unknown keys are created."""

    def __init__(self, data: memoryview, storages: dict[str, Storage], open: bool = False):
        super().__init__(data)
        self.storages, self.open, self.used = storages, open, set()

    def fits_key(self, key, longest: int) -> bool:
        """Whether a value can be a key of a mapping."""
        return super().fits_key(key, longest) or (type(key) is int and 0 <= key < KEYS)

    def build(self, target, state, at: int) -> None:
        """Give a record its state. A state_dict has the versions of its modules beside it, which are not used."""
        if not (type(target) is dict and isinstance(state, dict) and set(state) == {"_metadata"}):
            super().build(target, state, at)

    def header(self, described, at: int) -> Storage:  # type: ignore[override]
        """The storage that a persistent id names."""
        fits = isinstance(described, tuple) and len(described) in (5, 6) and not any(described[5:])
        fits = fits and described[0] == "storage" and isinstance(described[1], Name) and isinstance(described[2], str)
        if not (fits and isinstance(described[3], str) and whole(described[4])):
            raise Refused(f"a storage at byte {at} whose description is not understood")
        kind, key, numel = described[1].name, described[2], described[4]
        if kind != RAW and kind not in ALL_STORAGES:
            raise Refused(f"a storage at byte {at} of the unknown kind {kind[:40]}")
        header = Header(torch.uint8 if kind == RAW else ALL_STORAGES[kind], numel, key)
        self.used.add(key)
        return self._storage(header, at)

    def _storage(self, header: Header, at: int) -> Storage:
        found = self.storages.get(header.key)
        if found is None and not self.open:
            raise Refused(f"a storage at byte {at} that is not in the file")
        if found is None:
            found = self.storages[header.key] = Storage(header.dtype, header.numel, memoryview(b""))
        elif isinstance(found, memoryview):
            if len(found) != header.numel * header.dtype.itemsize:
                raise Refused("one of its records has another length than its numbers, or belongs to no numbers")
            found = self.storages[header.key] = Storage(header.dtype, header.numel, found)
        if (found.dtype, found.numel) != (header.dtype, header.numel):
            raise Refused(f"a storage at byte {at} that is described in two ways")
        return found


# --- the file -----------------------------------------------------------------------------------------


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as torch.save writes it: as a zip, or with the magic number of the old format."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(LEGACY))
    except OSError:
        return False
    return start.startswith(zips.LOCAL) or start == LEGACY


def read_torch_file(path: str | os.PathLike) -> File:
    """Read a file of torch.save: its `value` has plain values, mappings, lists, and Tensors that are views of the file.

    Raises Refused, one sentence, for every other file. Close it (as a context manager) after its tensors were copied.
    """
    path = Path(path)
    try:
        mapped, size = _mapped(path)
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); give the path of a file of torch.save") from None
    view = memoryview(mapped)
    try:
        value = _zip_value(path, view) if view[:4] == zips.LOCAL else _legacy_value(view)
    except (zips.BadZip, Refused) as error:
        raise Refused(
            f"{path} is no file of torch.save that can be read ({error}); fetch it again, or give another"
        ) from None
    return File(path, value, "", size, mapped)


def _mapped(path: Path) -> tuple[mmap.mmap, int]:
    path = check_file(path, "a file of torch.save")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if sys.byteorder != "little":
            raise Refused(f"{path} is little-endian and this machine is not")
        # A private writable map, because torch warns about read-only buffers; nothing writes to it.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), size


def _zip_value(path: Path, view: memoryview) -> Any:
    records = read_records(path, view)
    folder = next(
        (name.removesuffix("data.pkl") for name in records if name.count("/") == 1 and name.endswith("/data.pkl")), None
    )
    if folder is None:
        raise Refused("it is a zip without data.pkl")
    if any(name.startswith((f"{folder}code/", f"{folder}constants.pkl")) for name in records):
        raise Refused("it is a program of TorchScript, which would have to be executed")
    if bytes(records.get(f"{folder}byteorder", b"little")) != b"little":
        raise Refused("its numbers are not little-endian")
    prefix = f"{folder}data/"
    storages = {name.removeprefix(prefix): each for name, each in records.items() if name.startswith(prefix)}
    machine = TorchMachine(records[f"{folder}data.pkl"], storages)
    value, end = machine.run(0, len(machine.data), TORCH_RULES, storage=True)
    if end != len(machine.data):
        raise Refused(f"{len(machine.data) - end} bytes follow the end of data.pkl")
    if any(len(storages[key]) for key in storages.keys() - machine.used):
        raise Refused("one of its records has another length than its numbers, or belongs to no numbers")
    return value


def read_records(path: Path, view: memoryview) -> dict[str, memoryview]:
    """{name: content} of the parts of a zip that stores them, whose checksums are right. view: of the file. Raises BadZip."""
    found: dict[str, memoryview] = {}
    with open(path, "rb") as file, zips.open_zip(file) as archive:
        members = sorted(archive.infolist(), key=lambda each: each.header_offset)
        if len(members) > ENTRIES:
            raise zips.BadZip(f"it has {len(members):,} parts; expected at most {ENTRIES:,}")
        ends = [*(each.header_offset for each in members[1:]), len(view)]
        for member, end in zip(members, ends, strict=True):
            if member.filename in found:
                raise zips.BadZip(f"it has two parts called {ascii(member.filename)[:80]}")
            found[member.filename] = _record(view, member, end)
    return found


def _record(view: memoryview, member: zipfile.ZipInfo, end: int) -> memoryview:
    name = ascii(member.filename)[:80]
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise zips.BadZip("parts of it are compressed")
    if member.flag_bits & 1:
        raise zips.BadZip("parts of it are encrypted")
    at = member.header_offset
    if view[at : at + 4] != zips.LOCAL or at + LOCAL_HEADER > end:
        raise zips.BadZip(f"its part {name} is not where its directory says")
    start = at + LOCAL_HEADER + sum(struct.unpack_from("<HH", view, at + LOCAL_HEADER - 4))
    if start + member.file_size > end:
        raise zips.BadZip("parts of it overlap")
    content = view[start : start + member.file_size]
    if zlib.crc32(content) != member.CRC:
        raise zips.BadZip(f"the checksum of its part {name} is wrong")
    return content


def _legacy_value(view: memoryview) -> Any:
    if bytes(view[: len(LEGACY)]) != LEGACY:
        raise Refused("it begins neither as a zip nor as a file of torch.save of before 2020")
    machine, size = TorchMachine(view, {}, open=True), len(view)
    magic, at = machine.run(0, size, {})
    version, at = machine.run(at, size, {})
    system, at = machine.run(at, size, {})
    if (magic, version) != STREAMS or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("it does not begin as a file of torch.save of before 2020")
    value, at = machine.run(at, size, TORCH_RULES, storage=True)
    keys, at = machine.run(at, size, {})
    if not isinstance(keys, list) or len(keys) != len(set(map(str, keys))) or set(map(str, keys)) != machine.used:
        raise Refused("its list of storages is not that of its tensors")
    for key in keys:
        at = _fill(machine.storages[str(key)], view, at)
    if at != size:
        raise Refused(f"{size - at} bytes follow its end")
    return value


def _fill(storage: Storage, view: memoryview, at: int) -> int:
    # The numbers of a storage of the old format; returns where they end.
    end = at + 8 + storage.numel * storage.dtype.itemsize
    if end > len(view) or struct.unpack_from("<q", view, at)[0] != storage.numel:
        raise Refused(f"a storage of {storage.numel} numbers at byte {at} is cut off, or has another length")
    object.__setattr__(storage, "data", view[at + 8 : end])
    return end


def tensors_of(value, largest: int) -> dict[str, Tensor]:
    """A mapping of names to tensors, such as a state_dict. Raises Refused for anything else, and if the copies of all tensors
    would have more than `largest` bytes."""
    if not isinstance(value, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        raise Refused("it is not a mapping of names to tensors")
    if sum(each.bytes for each in value.values()) > largest:
        raise Refused(f"its tensors would have more than {largest:,} bytes")
    return value
