# SPDX-License-Identifier: Apache-2.0
"""Reads and writes files of tensors: safetensors with a JSON description as their only metadata entry.

Equal content gives equal bytes. A file can be read into memory, mapped, or written in pieces. Nothing in it is executed."""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import shutil
import warnings
from contextlib import contextmanager

from eldistill import tensorheader
from eldistill.errors import Problem, brief, denied
from eldistill.files import atomic, make_again
from eldistill.outside import check_file, locate
from eldistill.paths import is_result

# Item types of packed data: safetensors' name, numpy's, bytes an item; the order is that of a file's tensors.
_KINDS = {"I64": ("<i8", 8), "F32": ("<f4", 4), "U8": ("u1", 1)}


def save_tensors(path: str | os.PathLike, tensors: dict, about: dict) -> None:
    """Write {name: tensor} and a description (values that JSON can hold) into one safetensors file, completely or not at all.

    Raises OSError, for instance if the disk is full, and ValueError for NaN or infinity in the description."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    flat, seen = {}, set()
    for name, tensor in tensors.items():
        flat[name] = tensor.detach().cpu().contiguous()
        if (place := flat[name].untyped_storage().data_ptr()) in seen:  # the package refuses tensors that share memory
            flat[name] = flat[name].clone()
        seen.add(place)
    with atomic(path) as temporary:
        try:
            # One metadata entry only: the order of several is not fixed, and bytes must be.
            text = json.dumps(about, separators=(",", ":"), ensure_ascii=False, allow_nan=False)  # order and types kept
            save_file(flat, temporary, metadata={"eldistill": text})
        except SafetensorError as error:
            if "os error 28" in str(error) or "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path)) from None
            raise


def load_tensors(path: str | os.PathLike, foreign: bool = False) -> tuple[dict, dict]:
    """Read what `save_tensors` wrote: (tensors on the CPU, description). Nothing in the file is executed.

    foreign: accept a file without our description, which is then {}. All sizes are checked before memory is allocated. Raises
    Problem if the file is missing, may not be read, is truncated, damaged or not ours.
    """
    import torch

    path = locate(path)
    # What is missing has its sentence below, and so has an empty file that a step made: it is damaged, and made again.
    if path.exists() and not (is_result(path) and path.is_file() and path.stat().st_size == 0):
        path = check_file(path, "a file of safetensors")
    header, about = _described(path, foreign)
    found = {}
    try:
        with open(path, "rb", buffering=0) as file:
            for name, entry in sorted(header.entries.items()):
                content = torch.empty(entry.end - entry.start, dtype=torch.uint8)
                _fill(file, entry.start, content.numpy())
                found[name] = content.view(getattr(torch, tensorheader.ITEMS[entry.dtype][1])).reshape(entry.shape)
    except (OSError, AttributeError) as error:  # a dtype that this version of torch lacks
        raise Problem(f"{path} cannot be read ({error}); repeat the command, or make the file again") from None
    return found, about


def _fill(file, at: int, target) -> None:
    # Fill a numpy array of bytes from a place in a file.
    file.seek(at)
    view = memoryview(target)
    while len(view):
        if not (count := file.readinto(view)):
            raise OSError("it became shorter while it was read")
        view = view[count:]


def _described(path: str | os.PathLike, foreign: bool) -> tuple[tensorheader.Header, dict]:
    # The checked header of a file and our description in it. Raises Problem.
    try:
        header = tensorheader.read_header(path)
        about = tensorheader.parse_metadata(header.metadata.get("eldistill"))
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except PermissionError:
        raise denied(path) from None
    except OSError as error:
        raise Problem(
            f"{path} cannot be read ({error.strerror or error}); repeat the command, or give another file"
        ) from None
    except ValueError as error:
        kind = tensorheader.kind_of(path) if os.path.isfile(path) else ""
        raise Problem(f"{path} is damaged ({kind or brief(error)}); {make_again(path)}") from None
    if "eldistill" not in header.metadata and not foreign:
        raise Problem(f"{path} holds tensors but not eldistill's description; expected a file of this project")
    return header, about


def map_tensors(path: str | os.PathLike) -> tuple[dict, dict]:
    """Like `load_tensors`, but the tensors stay in the file: a row is read from the disk when it is used, so that a file may be
    larger than the memory. The tensors are read-only; writing into one ends the process with a segmentation fault.

    Only I64, F32 and U8. Raises Problem as `load_tensors` does.
    """
    import numpy as np
    import torch

    # safetensors maps files too, but asks the system for as much memory as the file has, which it may refuse.
    header, about = _described(path, foreign=False)
    with open(path, "rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {}
    for name, entry in header.entries.items():
        if entry.dtype not in _KINDS:
            raise Problem(f"{path} is damaged ({ascii(name)[:80]} has the dtype {entry.dtype}); {make_again(path)}")
        array = np.frombuffer(whole, _KINDS[entry.dtype][0], math.prod(entry.shape), entry.start).reshape(entry.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it cannot be written to is the purpose
            tensors[name] = torch.from_numpy(array)
    return tensors, about


class Growing:
    """A file of tensors that is written in pieces; `grow_tensors` opens it. about: its description, which may change until the
    end."""

    def __init__(self, file, shapes: dict[str, tuple[str, tuple[int, ...]]], about: dict):
        self.file, self.about, self.shapes = file, about, {}
        self.places: dict[str, list[int]] = {}  # {tensor: [offset of its next byte, offset of its end]}
        offset = 0
        order = list(_KINDS)
        for name, (kind, shape) in sorted(shapes.items(), key=lambda each: (order.index(each[1][0]), each[0])):
            end = offset + math.prod(shape) * _KINDS[kind][1]
            self.shapes[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
            self.places[name] = [offset, end]
            offset = end
        self.size, self.room = offset, len(self._header())

    def _header(self) -> bytes:
        text = json.dumps(self.about, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        value = {"__metadata__": {"eldistill": text}, **self.shapes}
        header = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        return header + b" " * (-len(header) % 8)

    def append(self, name: str, array) -> None:
        """Write the next rows of a tensor, a numpy array. Raises ValueError if the tensor has fewer rows than that."""
        place, content = self.places[name], array.astype(_KINDS[self.shapes[name]["dtype"]][0], order="C", copy=False)
        if place[0] + content.nbytes > place[1]:
            raise ValueError(f"{name} got more rows than its shape {self.shapes[name]['shape']}")
        self.file.seek(8 + self.room + place[0])
        self.file.write(content.data if content.size else b"")
        place[0] += content.nbytes

    def finish(self) -> None:
        """Write the header. Raises ValueError if a tensor lacks rows or the description became longer than the space reserved for it."""
        lacking = [name for name, (at, end) in self.places.items() if at != end]
        header = self._header()
        if lacking or len(header) > self.room:
            raise ValueError(f"unfinished: {lacking or 'the description is longer than the space reserved for it'}")
        self.file.seek(0)
        self.file.write(self.room.to_bytes(8, "little") + header.ljust(self.room))


@contextmanager
def grow_tensors(path: str | os.PathLike, shapes: dict[str, tuple[str, tuple[int, ...]]], about: dict):
    """Context with a `Growing` for tensors that do not fit into memory. The file is that of `save_tensors`, complete or absent.

    shapes: {name: (U8, I64 or F32, shape)}. about: a description as long as the final one can become; blanks fill the rest.
    Raises OSError, immediately if the disk has too little space.
    """
    with atomic(path) as temporary, open(temporary, "wb") as file:
        growing = Growing(file, shapes, about)
        if growing.size > shutil.disk_usage(temporary.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        yield growing
        growing.finish()
