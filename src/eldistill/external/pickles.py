# SPDX-License-Identifier: Apache-2.0
"""Reads the pickles in which EDM and EDM2 networks are published, without executing anything from them.

machine.py interprets the bytes, and rules.py decides about the names in them. This module finds the network in a complete file,
with its tensors in the order of its state.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eldistill.errors import Problem
from eldistill.external.machine import DEPTH, VALUES, Array, Machine, Record, Stub, Tensor
from eldistill.external.opcodes import Refused
from eldistill.external.rules import RULES
from eldistill.outside import check_file

RECIPE = ("teacher/pickles", 1)
# Bounds for a network, far above those published: modules, tensors, characters of a name and of all names together.
MODULES, TENSORS, PATH, NAMES = 20_000, 20_000, 512, 4 * 2**20
SETTINGS = [
    10_000,
    2**20,
]  # bounds for constructor arguments and descriptions of data: number of values; bytes of texts and arrays


@dataclass
class Network:
    """A network in a file: its constructor arguments, and its tensors in the order of its state.

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
    """An open file: its value, sha256 and size in bytes. Close it (as a context manager) after its tensors were copied."""

    path: Path
    value: Any
    sha256: str
    bytes: int
    _map: mmap.mmap | None = None

    def network(self, key: str = "ema") -> Network:
        """The network under `key` of the root, or the root itself if that is one. Raises Refused."""
        value = self.value
        if isinstance(value, dict):
            if "G_ema" in value:
                raise Refused(
                    f"{self.path} holds a GAN (G, D and G_ema, as StyleGAN has them); expected a network file of EDM or EDM2"
                )
            if key not in value:
                there = ", ".join(ascii(name)[:40] for name in list(value)[:8]) or "nothing"
                raise Refused(f"{self.path}: it has no {key!r}, but {there}; expected a network file of EDM or EDM2")
            value = value[key]
        return self._named(lambda: _walk(value, self.bytes))

    def plain(self, value, most: list[int] | None = None) -> Any:
        """A value of the file as plain Python: texts, numbers, lists, dicts and numpy arrays. Raises Refused.

        most: [largest number of values, of bytes], such as SETTINGS; by default as many bytes as the file has.
        """
        return self._named(lambda: plain_settings(value, list(most or (VALUES, self.bytes))))

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
        self.value = None  # views of the file must be deleted before the map can be closed
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:  # a Tensor is still in use; the map is closed when it is deleted
                pass


def read_network_file(path: str | os.PathLike, sha256: str | None = None) -> File:
    """Read a pickle of EDM, EDM2 or NVIDIA's metrics without executing anything in it.

    sha256: the digest that the file must have, None to accept any. Raises Refused, one sentence, for every other file.
    """
    try:
        path = check_file(path, "a network file")
    except Problem as error:
        raise Refused(str(error)) from None
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
            if sha256 is not None and digest != sha256:
                raise Refused(f"{path} has the sha256 {digest[:16]}…; expected {sha256[:16]}…: fetch it again")
            # A private writable map, because torch warns about read-only buffers; nothing writes to it.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); give the path of a network file") from None
    if sys.byteorder != "little":
        raise Refused(f"{path} is little-endian and this machine is not")
    view = memoryview(mapped)
    try:
        value, end = Machine(view).run(0, size, RULES)
        if end != size:
            raise Refused(f"{size - end} bytes follow its end")
    except Refused as error:
        raise Refused(f"{path} is no network file of EDM or EDM2 ({error}); fetch it again, or give another") from None
    return File(path, value, digest, size, mapped)


def read_python2_pickle(data: bytes | memoryview) -> Any:
    """The value of a pickle that Python 2 wrote with protocol 2, such as the batches of CIFAR-10: texts, numbers, lists, dicts and
    numpy arrays. Nothing is executed. Raises Refused."""
    view = memoryview(data)
    rules = {name: rule for name, rule in RULES.items() if name.module.startswith("numpy")}
    value, end = Machine(view).run(0, len(view), rules, old=True)
    if end != len(view):
        raise Refused(f"{len(view) - end} bytes follow its end")
    return plain_settings(value, [VALUES, len(view)])


def _attributes(value) -> tuple[str, dict]:
    if isinstance(value, Record):
        return value.class_name, value.state
    if isinstance(value, Stub) and value.state is not None:
        return value.name, value.state
    raise Refused(f"a {type(value).__name__.lower()} where a module was expected")


def _settings(value, what: str) -> dict:
    if not isinstance(found := plain_settings(value, list(SETTINGS)), dict):
        raise Refused(f"{what} that are no mapping")
    if any(isinstance(each, np.ndarray) for each in found.values()):  # they could not be compared with a setting
        raise Refused(f"{what} that are arrays")
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
    total = entries = names = 0
    for prefix, value in _modules(root):
        found.classes[prefix], state = _attributes(value)
        if prefix in ("model", "unet"):
            found.inner_kwargs = _settings(state.get("_init_kwargs", {}), "constructor arguments")
        hidden = state.get("_non_persistent_buffers_set", set())
        for kind in ("_parameters", "_buffers"):
            own = state.get(kind, {})
            if not isinstance(own, dict) or not isinstance(hidden, set):
                raise Refused(f"module {ascii(prefix)[:80]}, whose {kind} are no mapping")
            if (entries := entries + len(own)) > TENSORS:
                raise Refused(f"more than {TENSORS:,} tensors")
            for key, tensor in own.items():
                if tensor is None or (kind == "_buffers" and key in hidden):
                    continue
                full = f"{prefix}.{key}" if prefix else key
                if (names := names + len(full)) > NAMES:
                    raise Refused(f"names of more than {NAMES:,} characters")
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
    waiting, count, names = [("", root, 0)], 1, 0
    while waiting:
        prefix, value, depth = waiting.pop()
        yield prefix, value
        children = _attributes(value)[1].get("_modules", {})
        if not isinstance(children, dict):
            raise Refused(f"module {ascii(prefix)[:80]}, whose _modules are no mapping of modules")
        count, names = count + len(children), names + sum(len(prefix) + len(key) for key in children)
        longest = max(map(len, children), default=0) + len(prefix)
        if count > MODULES or names > NAMES or longest > PATH or (children and depth == DEPTH):
            raise Refused(
                f"modules deeper than {DEPTH}, more than {MODULES:,}, or with names of more than {PATH} characters, {NAMES:,} in all"
            )
        waiting += [(f"{prefix}.{key}" if prefix else key, child, depth + 1)
                    for key, child in reversed(children.items()) if child is not None]  # fmt: skip


def plain_settings(value, budget: list[int] | None = None, depth: int = 0):
    """Texts, numbers, None, lists, tuples (as lists), dicts, sets (as sorted lists) and arrays. Raises Refused for more.

    budget: how many values, and how many bytes of texts and arrays, are still allowed: a text that a file names a thousand
    times is counted a thousand times, for so often it would be written.
    """
    budget = [VALUES, 2**26] if budget is None else budget
    budget[0] -= 1
    if depth > 16 or budget[0] < 0:
        raise Refused("settings that are nested too deeply, or too many")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _spend(value, budget)
    if isinstance(value, list | tuple):
        return [plain_settings(item, budget, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_spend(key, budget): plain_settings(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, set):
        budget[0] -= len(value)
        return sorted(_spend(item, budget) for item in value)
    if isinstance(value, Array):
        _spend(value.data or b"", budget)
        return value.value()
    raise Refused(f"a {type(value).__name__.lower()} where a setting was expected")


def _spend(value, budget: list[int]):
    budget[1] -= len(value)
    if budget[1] < 0:
        raise Refused("texts or arrays of more bytes than it has, or than settings need")
    return value
