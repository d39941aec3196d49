# SPDX-License-Identifier: Apache-2.0
"""Sums the gradients of a network over all processes, in buckets, while the last backward pass still runs.

A bucket holds about 25 MiB of gradients, in the reverse order of the parameters, because a backward pass completes them
roughly in that order. Its sum begins as soon as the last backward pass of an optimiser step has completed all of it,
and NCCL adds it on a stream of its own while the pass goes on (Li et al. 2020, arXiv 2006.15704). NCCL sums the
gradients where they are, many tensors in one call, so no flat copy of them exists.

On CPUs all gradients of one type of number form a single bucket, in the order of the parameters. The order in which
gloo adds the processes' numbers depends on their position in a message; with more than two processes other buckets
round otherwise.

All processes begin the same sums in the same order, even where a value is not finite. The error comes after them, so
that no process waits for another that has stopped.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator

import torch

from eldistill.training.processes import ProcessGroup, SingleProcess

COVERED_BY = "loop"


class Reduction:
    """The sum over processes of the gradients of one network, once in an optimiser step.

    across: the processes. parameters: all of the network, in the same order in every process.
    bucket: the most bytes in a bucket; 0 means one bucket for each type of number, summed after the last pass.

    A parameter that has a gradient in some processes only counts as zero in the others. One without a gradient in any
    process keeps none. The first step finds out which are which by a message of its own, later ones only if a process
    reports that it differs.
    """

    def __init__(self, across: ProcessGroup, parameters: Iterable[torch.Tensor], bucket: int) -> None:
        self.across, self.parameters, self.limit = across, list(parameters), bucket
        self.here: list[bool] = []  # parameters with a gradient in this process, when all processes last agreed
        self.used: list[bool] = []  # parameters with a gradient in any process; empty before the first step
        self.buckets: list[list[int]] = []
        self.bucket_of: dict[int, int] = {}
        self.missing: list[set[int]] = []  # for each bucket, gradients that the last pass has not completed yet
        self.begun = 0  # number of buckets whose sum has begun; all processes begin them in the same order
        self.waits: list[Callable[[], None]] = []
        self.is_last_pass = False
        self.hooked: set[int] = set()

    @contextlib.contextmanager
    def last_pass(self) -> Iterator[None]:
        """A context for the last backward pass of a step, in which sums of buckets begin as gradients are completed."""
        self.is_last_pass = bool(self.limit and self.used)
        try:
            yield
        finally:
            self.is_last_pass = False

    def finish(self) -> torch.Tensor:
        """Sum the remaining buckets and wait for all sums (with NCCL only the device waits, not this process).

        Returns the number of processes whose set of parameters with a gradient has changed, a scalar on the device;
        `settle` needs it.
        """
        now = [parameter.grad is not None for parameter in self.parameters]
        if not self.used:
            self._agree(now)
        changed = torch.full((), float(now != self.here), device=self.parameters[0].device)
        self.here = now
        while self.begun < len(self.buckets):
            self._begin()
        self.waits.append(self.across.begin_sum([changed]))
        self._wait()
        return changed

    def settle(self, changed: float) -> None:
        """If `finish` found changed sets, sum the new gradients and remove zeros where no process has a gradient.

        changed: the value that `finish` returned.
        """
        if changed:
            before = self.used
            self._agree(self.here)
            for parameter, used in zip(self.parameters, self.used, strict=True):
                parameter.grad = parameter.grad if used else None
            new = [used and not earlier for used, earlier in zip(self.used, before, strict=True)]
            for bucket in self._divide(new):
                self._sum(bucket)
            self._wait()

    def _agree(self, now: list[bool]) -> None:
        self.here = now
        self.used = [value > 0 for value in self.across.largest(*map(float, now))]
        self.buckets = self._divide(self.used)
        self.bucket_of = {index: place for place, bucket in enumerate(self.buckets) for index in bucket}
        self._restart()
        if self.limit:
            self._hook()

    def _divide(self, chosen: list[bool]) -> list[list[int]]:
        """Indices of the chosen parameters in buckets of one type of number, in the order in which they are summed."""
        order = [index for index, each in enumerate(chosen) if each]
        made: list[list[int]] = []
        filling: dict[torch.dtype, tuple[list[int], int]] = {}
        for index in reversed(order) if self.limit else order:
            parameter = self.parameters[index]
            bucket, filled = filling.get(parameter.dtype, ([], 0))
            if not bucket or (self.limit and filled + parameter.nbytes > self.limit):
                bucket, filled = [], 0
                made.append(bucket)
            bucket.append(index)
            filling[parameter.dtype] = bucket, filled + parameter.nbytes
        return made

    def _restart(self) -> None:
        self.begun, self.missing = 0, [set(bucket) for bucket in self.buckets]

    def _hook(self) -> None:
        this = weakref.ref(self)  # the parameters must not keep a training in memory

        def hook_of(index: int) -> Callable[[torch.Tensor], None]:
            def hook(_parameter: torch.Tensor) -> None:
                if (reduction := this()) is not None and reduction.is_last_pass:
                    reduction._completed(index)

            return hook

        for index in (
            self.bucket_of.keys() - self.hooked
        ):  # torch refuses hooks for parameters that need no gradient now
            self.parameters[index].register_post_accumulate_grad_hook(hook_of(index))
            self.hooked.add(index)

    def _completed(self, index: int) -> None:
        place = self.bucket_of.get(index)
        if place is None:  # this parameter had no gradient before; `settle` sums it
            return
        if index not in self.missing[place]:
            raise RuntimeError(f"parameter {index} got a gradient twice in one pass; its sum may have begun too early")
        self.missing[place].discard(index)
        while self.begun < len(self.buckets) and not self.missing[self.begun]:
            self._begin()

    def _begin(self) -> None:
        self._sum(self.buckets[self.begun])
        self.begun += 1

    def _sum(self, bucket: list[int]) -> None:
        chosen = [self.parameters[index] for index in bucket]
        for parameter in chosen:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in chosen if parameter.grad is not None]
        self.waits.append(self.across.begin_sum(gradients))

    def _wait(self) -> None:
        for wait in self.waits:
            wait()
        self.waits.clear()
        self._restart()


def reductions(
    across: ProcessGroup | SingleProcess, named: dict[str, list[tuple[str, torch.Tensor]]]
) -> dict[str, Reduction]:
    """A Reduction for each network by name; {} for a single process. named: [(name, parameter), …] of each network."""
    if isinstance(across, SingleProcess):
        return {}
    size = across.bucket_bytes
    return {name: Reduction(across, (each for _, each in pairs), size) for name, pairs in named.items()}
