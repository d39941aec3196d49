# SPDX-License-Identifier: Apache-2.0
"""The saved state of a training: tensors and numbers, never objects. It is written completely or not at all.

The state lies in data/scratch/state/<digest of the recipe>/, outside of what Snakemake and DVC know: a failed
job loses no progress, and a changed number never continues an old run.
"""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from types import TracebackType

import torch

from eldistill.contract import Memory
from eldistill.errors import Problem
from eldistill.external import weights
from eldistill.files import read_note
from eldistill.paths import STATE
from eldistill.tensors import load_tensors, save_tensors

COVERED_BY = "loop"


def state_folder(digest: str, root: str | Path = ".") -> Path:
    """The state folder of a recipe, created if it does not exist. digest: of the recipe."""
    path = Path(root) / STATE / digest[:32]
    path.mkdir(parents=True, exist_ok=True)
    return path


def pack_tensors(
    nets: dict[str, torch.nn.Module], optimisers: dict[str, torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    """All tensors of networks and optimisers by flat names: net/NAME/KEY and optimiser/NAME/INDEX/SLOT."""
    flat = {f"net/{name}/{key}": value for name, net in nets.items() for key, value in net.state_dict().items()}
    for name, optimiser in optimisers.items():
        for index, slots in optimiser.state_dict()["state"].items():
            flat |= {f"optimiser/{name}/{index}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    return flat


def unpack_tensors(flat: dict[str, torch.Tensor], nets: dict, optimisers: dict, path: Path = Path(STATE)) -> None:
    """Load what `pack_tensors` returned into networks and optimisers, in place.

    path: the state folder, for messages. Raises Problem if a network's tensors are not finite or have other shapes.
    """
    for name, net in nets.items():
        prefix = f"net/{name}/"
        own = {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}
        if (found := weights.find_fault(own, net.state_dict())) is not None:
            raise Problem(f"{path} is damaged: its {name} {found}; delete that folder and run the same command again")
        net.load_state_dict(own)
    for name, optimiser in optimisers.items():
        prefix, state = f"optimiser/{name}/", optimiser.state_dict()
        state["state"] = {}
        for key, value in flat.items():
            if key.startswith(prefix):
                index, slot = key.removeprefix(prefix).split("/")
                state["state"].setdefault(int(index), {})[slot] = value
        optimiser.load_state_dict(state)
        # A file does not store memory layouts, but fused optimisers need the same layout for a parameter and its
        # moments.
        for parameter, slots in optimiser.state.items():
            for slot, value in slots.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    slots[slot] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def pack_memories(memories: dict[str, Memory]) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, float]]]:
    """What supplements remember, by their names: tensors with dimensions as memory/NAME/KEY, and all scalars as floats."""
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, dict[str, float]] = {}
    for name, memory in memories.items():
        large = {key: value for key, value in memory.items() if isinstance(value, torch.Tensor) and value.ndim}
        tensors |= {f"memory/{name}/{key}": value for key, value in large.items()}
        scalars[name] = {key: float(value) for key, value in memory.items() if key not in large}
    return tensors, scalars


def unpack_memories(
    flat: dict[str, torch.Tensor], scalars: dict[str, dict[str, float]], memories: dict[str, Memory], device: str,
    path: Path = Path(STATE),
) -> None:  # fmt: skip
    """Load what `pack_memories` returned into the memories of supplements, in place; tensors go to the device.

    path: the state folder, for messages. Raises Problem if a tensor is not finite.
    """
    for name, memory in memories.items():
        prefix = f"memory/{name}/"
        memory.update(scalars.get(name, {}))
        for key, value in flat.items():
            if not key.startswith(prefix):
                continue
            if not bool(value.isfinite().all()):
                raise Problem(
                    f"{path} is damaged: {key} is not finite; delete that folder and run the same command again"
                )
            memory[key.removeprefix(prefix)] = value.to(device)


PIECE, ALIGNED = 2**28, 64  # size of one allocation and alignment of tensors in it, in bytes


def save_state(path: Path, tensors: dict[str, torch.Tensor], numbers: dict) -> None:
    """Write the state file. The previous one is replaced only when the new one is complete."""
    save_tensors(path / "state.safetensors", tensors, numbers)


def make_buffers(layout: dict[str, tuple[torch.Size, torch.dtype]], pinned: bool) -> dict[str, torch.Tensor]:
    """Empty tensors on the CPU of the given shapes and types, packed into pieces of PIECE bytes.

    torch rounds each pinned allocation up to a power of two, so thousands of small ones would take 50 % more memory.
    """
    found: dict[str, torch.Tensor] = {}
    waiting: list[tuple[str, int, int]] = []  # name, place in the piece, bytes
    filled = 0

    def finish() -> None:
        piece = torch.empty(filled, dtype=torch.uint8, pin_memory=pinned)
        for name, start, size in waiting:
            shape, dtype = layout[name]
            found[name] = piece[start : start + size].view(dtype).reshape(shape)
        waiting.clear()

    for name, (shape, dtype) in layout.items():
        size = shape.numel() * dtype.itemsize
        if filled + size > PIECE:
            finish()
            filled = 0
        waiting.append((name, filled, size))
        filled += -(-size // ALIGNED) * ALIGNED
    finish()
    return {name: found[name] for name in layout}


class Writer:
    """Writes states in a thread, one at a time, so that the loop waits only for a copy of the tensors.

    At its end as a context it waits for the state that is being written. If the process is killed, the previous state
    stays.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(self, path: Path, tensors: dict[str, torch.Tensor], numbers: dict) -> None:
        """Copy tensors and numbers and begin to write the copies in a thread.

        Raises the error of the previous write, if any.
        """
        self.wait()
        arguments = path, self._copied(tensors), copy.deepcopy(numbers)
        self._thread = threading.Thread(target=self._write, args=arguments, name="state")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written. Raises the error of the write, if any."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, path: Path, tensors: dict[str, torch.Tensor], numbers: dict) -> None:
        try:
            save_state(path, tensors, numbers)
        except BaseException as error:
            self._error = error

    def _copied(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # The buffers are kept between states, because pinning memory takes as long as filling it.
        devices = {tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"}
        layout = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if layout != {name: (buffer.shape, buffer.dtype) for name, buffer in self._buffers.items()}:
            self._buffers = {}  # free the old buffers before allocating new ones
            self._buffers = make_buffers(layout, pinned=bool(devices))
        for name, tensor in tensors.items():
            self._buffers[name].copy_(tensor.detach(), non_blocking=True)
        for device in devices:
            torch.cuda.synchronize(device)
        return dict(self._buffers)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:  # the error that ended the training is reported, not one of the disk
            self._thread.join()


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict] | None:
    """The saved state (tensors, numbers), or None if there is none. Raises Problem for a damaged file."""
    if not (path / "state.safetensors").exists():
        return None
    return load_tensors(path / "state.safetensors")


def note_failure(path: Path, sentence: str, code: str) -> None:
    """Record a failure that a retry cannot cure (a NaN), so that the next attempt reports it immediately.

    code: digest of the package's source.
    """
    (path / "failed.json").write_text(json.dumps({"sentence": sentence, "code": code}))


def noted_failure(path: Path, code: str) -> str | None:
    """The recorded sentence, or None if there is none or the package's source has changed since."""
    noted = read_note(path / "failed.json") or {}
    return str(noted["sentence"]) if noted.get("code") == code and "sentence" in noted else None
