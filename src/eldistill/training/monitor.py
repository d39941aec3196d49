# SPDX-License-Identifier: Apache-2.0
"""Checks that tensors are finite, and sums for the log.

Values stay on the device and are read back together, once an iteration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from eldistill.contract import Later, Progress
from eldistill.errors import NonFinite

COVERED_BY = "loop"
Parts = Iterable[tuple[str, torch.Tensor]]


@dataclass
class Finite:
    """A tensor that must be finite, and the result of the check on the device."""

    name: str
    tensor: torch.Tensor
    good: torch.Tensor
    parts: Parts  # tensors it was computed from; if it is not finite, the first bad part is named instead


class Monitor:
    """Tensors that must be finite and numbers for the log, kept on the device until `flush` reads them together.

    Reading a number of a GPU waits for all its work, so the loop flushes once an iteration. Networks may have taken a
    step with a bad gradient by then: nothing of it is saved, because `flush` raises before anything else can happen.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.sums: dict[str, list[float]] = {}  # {name of a logged number: [its sum, number of steps]}
        self._watched: list[Finite] = []
        self._asked: list[
            tuple[list[torch.Tensor], Callable[..., None]]
        ] = []  # scalars, and the function that is given their values

    def finite(self, name: str, tensor: torch.Tensor, parts: Parts = ()) -> None:
        """Check that `tensor`, of any shape, is finite; if not, the next flush raises NonFinite.

        parts: see `Finite`.
        """
        tensor = tensor.detach()
        self._watched.append(Finite(name, tensor, torch.isfinite(tensor).all(), parts))

    def count(
        self, name: str, value: torch.Tensor | float, share: float | None = None, known: torch.Tensor | None = None
    ) -> None:
        """Add a number (a scalar) to the sums, at the next flush.

        share: of the batch that the number stands for; None: it is the same in all processes, and each adds an equal
        part. known: a scalar on the device; False means that the number does not exist and is not added.
        """
        share = 1 / self.processes if share is None else share

        def add(value: float, there: float = 1.0) -> None:
            if there:
                self._add(name, value, share)

        if isinstance(value, torch.Tensor):
            self.ask([value] if known is None else [value, known], add)
        else:
            self.ask([], functools.partial(add, value))

    def later(self, later: Later, prefix: str) -> None:
        """Add the numbers that a supplement computes from scalars once these have been read back."""

        def add(*values: float) -> None:
            for name, value in later.finish(*values).items():
                self._add(prefix + name, value, 1 / self.processes)

        self.ask(later.scalars, add)

    def ask(self, scalars: list[torch.Tensor], take: Callable[..., None]) -> None:
        """Pass the values of scalars to `take` at the next flush, unless a tensor is not finite."""
        self._asked.append(([each.detach() for each in scalars], take))

    def flush(self, progress: Progress) -> None:
        """Read all values back together and add the numbers to their sums, in the order in which they were counted.

        Raises NonFinite for the first bad tensor since the last flush.
        """
        watched, asked = self._watched, self._asked
        self._watched, self._asked = [], []
        scalars = [*(each.good for each in watched), *(each for some, _ in asked for each in some)]
        answers = iter(torch.stack([each.double().reshape(()) for each in scalars]).tolist() if scalars else [])
        for each in watched:
            if not next(answers):
                raise NonFinite(_sentence(each, progress))
        for some, take in asked:
            take(*(next(answers) for _ in some))

    def _add(self, name: str, value: float, share: float) -> None:
        total, steps = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = [total + value * share, steps + share]


def _bad(tensor: torch.Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum())


def _sentence(each: Finite, progress: Progress) -> str:
    parts = ((name, part.detach()) for name, part in each.parts)
    name, tensor = next(((name, part) for name, part in parts if _bad(part)), (each.name, each.tensor))
    return (
        f"step {progress.iteration} ({progress.n_images} images): {name} is not finite "
        f"({_bad(tensor)} of {tensor.numel()} values, shape {tuple(tensor.shape)}); the last good state is kept"
    )
