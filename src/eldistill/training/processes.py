# SPDX-License-Identifier: Apache-2.0
"""Communication between processes that share every batch of a training.

Each process computes the loss of its own rows, scaled by their share of the batch, and the gradients are summed. The
result equals that of one process with the whole batch. Random numbers belong to images (see eldistill.diffusion.draws),
so the number of processes changes none of them. EL is a loss of the whole batch: every process computes all of it, and
its gradient at the process's own rows needs no further scaling.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import distributed

from eldistill import environment
from eldistill.errors import Lost, Problem, Stopped
from eldistill.training import compute

COVERED_BY = "loop"
BUCKET = 25 * 2**20  # bytes, as in torch's DistributedDataParallel: small messages cost latency, large ones start late


class SingleProcess:
    """One process alone, with the methods of `ProcessGroup`."""

    rank, size = 0, 1

    def rows(self, batch: int, group: int = 1) -> slice:
        """The own rows of a batch."""
        return slice(0, batch)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over processes, without a gradient."""
        return value

    def sum_of(self, value: np.ndarray | float) -> np.ndarray:
        """The sum over processes of numbers outside torch, in float64."""
        return np.asarray(value, np.float64)

    def largest(self, *values: float) -> list[float]:
        """The largest value of each number over all processes."""
        return list(values)

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """The rows of all processes."""
        return own

    def gather_of(self, own: np.ndarray) -> np.ndarray:
        """Like `gather`, for a NumPy array."""
        return own

    def barrier(self) -> None:
        """Wait until all are here."""


class ProcessGroup:
    """The processes of a group (None: all) that share a batch. Parts may differ in size; ranks give the order of rows.

    Every method raises Lost if another process has ended.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)

    def rows(self, batch: int, group: int = 1) -> slice:
        """The own rows of a batch whose images belong together in groups. Raises Problem if it has too few."""
        units = -(-batch // group)
        if units < self.size:
            raise Problem(
                f"a batch of {batch} images"
                + (f" in groups of {group}" if group > 1 else "")
                + f" cannot be shared by {self.size} processes; expected at least {self.size * group}, or fewer processes"
            )
        return slice(units * self.rank // self.size * group, min(batch, units * (self.rank + 1) // self.size * group))

    def count(self, own: torch.Tensor) -> int:
        """The number of rows in all processes together. own: [rows, …] of this process."""
        return int(self.sum(torch.tensor(len(own), device=own.device)))

    def total(self, own: torch.Tensor) -> torch.Tensor:
        """Sum over processes, of the shape of `own`. Only this process's summand has a gradient."""
        return own + (self.sum(own.detach()) - own.detach())

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """Rows of all processes in the order of ranks, [n, …] from [own rows, …]. Only the own rows have a gradient."""
        sizes = [torch.zeros(1, dtype=torch.int64, device=own.device) for _ in range(self.size)]
        with _together():
            distributed.all_gather(sizes, torch.tensor([len(own)], device=own.device), group=self.group)
        longest = max(int(size) for size in sizes)
        padded = own.detach().new_zeros(longest, *own.shape[1:])
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        with _together():
            distributed.all_gather(parts, padded, group=self.group)
        parts = [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]
        parts[self.rank] = own
        return torch.cat(parts)

    def gather_of(self, own: np.ndarray) -> np.ndarray:
        """Like `gather`, for a NumPy array [rows, width]. A process without rows may pass any width."""
        width = int(self.largest(own.shape[1])[0])
        own = own if own.shape[1] == width else np.empty((0, width), own.dtype)
        return self.gather(torch.as_tensor(own, device=self._device())).cpu().numpy()

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over processes, without a gradient."""
        value = value.detach().clone()
        with _together():
            distributed.all_reduce(value, group=self.group)
        return value

    def sum_of(self, value: np.ndarray | float) -> np.ndarray:
        """The sum over processes of numbers outside torch, in float64."""
        return self.sum(torch.as_tensor(np.asarray(value, np.float64), device=self._device())).cpu().numpy()

    def _device(self) -> str:
        return "cuda" if distributed.get_backend(self.group) == "nccl" else "cpu"

    def largest(self, *values: float) -> list[float]:
        """The largest value of each number over all processes."""
        both = torch.tensor(values, dtype=torch.float64, device=self._device())
        with _together():
            distributed.all_reduce(both, distributed.ReduceOp.MAX, group=self.group)
        return both.tolist()

    def begin_sum(self, tensors: list[torch.Tensor]) -> Callable[[], None]:
        """Begin to sum tensors of one type and device over processes, in place, in one message.

        Returns a function that waits for the result. With NCCL only the current stream waits, not this process.
        """
        options = distributed.AllreduceCoalescedOptions()
        group: Any = self.group or distributed.group.WORLD  # torch declares no type for this
        options.asyncOp = True  # otherwise NCCL sums on the current stream and nothing overlaps
        with _together():
            work = group.allreduce_coalesced(tensors, options)

        def wait() -> None:
            with _together():
                work.wait()

        return wait

    @property
    def bucket_bytes(self) -> int:
        """Largest message of gradients in bytes: BUCKET with NCCL, 0 (no limit) with gloo.

        See eldistill.training.reduction.
        """
        return BUCKET if distributed.get_backend(self.group) == "nccl" else 0

    def barrier(self) -> None:
        """Wait until all processes call it."""
        self.largest(0.0)


@contextlib.contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if compute.out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:120]
        raise Lost(f"another process of this run has ended ({text}); the last saved state is kept") from None


def process_group() -> ProcessGroup | None:
    """All processes of this run, or None if there is only one."""
    ready = distributed.is_available() and distributed.is_initialized()
    return ProcessGroup() if ready and distributed.get_world_size() > 1 else None


def process_group_or_single() -> ProcessGroup | SingleProcess:
    """Like `process_group()`, but returns a stand-in for one process instead of None."""
    return process_group() or SingleProcess()


# --- being one of several ------------------------------------------------------------------------------


def rank_and_size() -> tuple[int, int]:
    """(rank, number of processes) as torchrun or `launch` set them, or (0, 1). Raises Problem for impossible values."""
    try:
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        rank, size = 0, 0
    if not 0 <= rank < size:
        raise Problem(
            f"RANK is {os.environ.get('RANK')!r} and WORLD_SIZE {os.environ.get('WORLD_SIZE')!r}; expected numbers as torchrun "
            "sets them, or neither"
        )
    return rank, size


@contextlib.contextmanager
def join_group(device: str = "auto") -> Iterator[int]:
    """A context in which this process belongs to the group of the run. Yields its rank, which is 0 for a single one.

    The backend is NCCL with one GPU for each process, or gloo on CPUs. device: auto, cpu or cuda, as in params.yaml.
    Raises Problem if a process has no GPU.

    After an error on a GPU the group is not closed: closing NCCL waits for the other processes, which wait for this
    one. The caller then ends the process immediately (see `left_after_error`).
    """
    rank, size = rank_and_size()
    if size == 1:
        yield 0
        return
    local = environment.whole_number("LOCAL_RANK", rank, least=0)
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if gpus:
        if local >= gpus:
            raise Problem(
                f"process {local} of this machine has no GPU, there are {gpus}; start as many processes as GPUs"
            )
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if gpus else "gloo")
    together = False
    try:
        yield rank
        _leave()
        together = True
    except Stopped:  # all processes stop at the same step
        _leave()
        together = True
        raise
    finally:
        if together or not gpus:
            with contextlib.suppress(RuntimeError):
                distributed.destroy_process_group()


def left_after_error() -> bool:
    """Whether the group is still open because this process left it after an error."""
    return distributed.is_available() and distributed.is_initialized()


def _leave() -> None:
    # A process that closes its connections while another still reads makes the other one fail.
    with contextlib.suppress(Lost):
        ProcessGroup().barrier()
