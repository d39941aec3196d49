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

from eldistill.errors import Problem
from eldistill.files import atomic
from eldistill.outside import check_file, locate

# Item types of packed data: safetensors' name, numpy's, bytes an item; the order is that of a file's tensors.
_KINDS = {"I64": ("<i8", 8), "F32": ("<f4", 4), "U8": ("u1", 1)}


def save_tensors(path: str | os.PathLike, tensors: dict, about: dict) -> None:
    """Write {name: tensor} and a description (values that JSON can hold) into one safetensors file, completely or not at all.

    Raises OSError, for instance if the disk is full, and ValueError for NaN or infinity in the description."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
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

    foreign: accept a file without our description, which is then {}. Raises Problem if the file is missing, truncated or not ours.
    """
    from safetensors import SafetensorError, safe_open

    path = locate(path)
    if path.exists():  # otherwise the sentence below
        path = check_file(path, "a file of safetensors")
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            about = (file.metadata() or {}).get("eldistill")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except (SafetensorError, OSError) as error:
        raise Problem(f"{path} is damaged ({error}); delete it and run `snakemake all`") from None
    if about is None and not foreign:
        raise Problem(f"{path} holds tensors but not eldistill's description; expected a file of this project")
    try:
        described = json.loads(about or "{}")
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path} is damaged (its description: {error}); delete it and run `snakemake all`") from None
    if not isinstance(described, dict):
        raise Problem(f"{path} has a description that is no mapping; expected a file of this project")
    return tensors, described


def map_tensors(path: str | os.PathLike) -> tuple[dict, dict]:
    """Like `load_tensors`, but the tensors stay in the file: a row is read from the disk when it is used, so that a file may be
    larger than the memory. The tensors are read-only; writing into one ends the process with a segmentation fault.

    Only I64, F32 and U8. Raises Problem as `load_tensors` does.
    """
    import numpy as np
    import torch

    # safetensors maps files too, but asks the system for as much memory as the file has, which it may refuse.
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if not 0 < length <= size - 8:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        about = header.pop("__metadata__", {}).get("eldistill")
        tensors, ends = {}, [0]
        for name, each in header.items():
            kind, item = _KINDS[each["dtype"]]
            first, end = each["data_offsets"]
            count = math.prod(each["shape"])
            if end - first != count * item or not 0 <= first <= end <= size - 8 - length:
                raise ValueError(f"{name} does not fit into the file")
            array = np.frombuffer(whole, kind, count, 8 + length + first).reshape(each["shape"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that it cannot be written to is the purpose
                tensors[name] = torch.from_numpy(array)
            ends.append(end)
        if max(ends) != size - 8 - length:
            raise ValueError("its length is not what its header says")
        about = None if about is None else json.loads(about)
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Problem(f"{path} is damaged ({error}); delete it and run `snakemake all`") from None
    if about is None:
        raise Problem(f"{path} holds tensors but not eldistill's description; expected a file of this project")
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
