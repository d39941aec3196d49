# SPDX-License-Identifier: Apache-2.0
"""What must be finite in a training, and what its log counts: asked of the device together, once a step of a network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from eldistill.contract import Progress
from eldistill.errors import NonFinite

COVERED_BY = "loop"
Parts = Iterable[tuple[str, torch.Tensor]]


@dataclass
class Watched:
    """A tensor that must be finite, and whether it is, which the device knows first."""

    name: str
    tensor: torch.Tensor
    good: torch.Tensor
    parts: Parts  # what it was made of, asked only if it is bad: the first bad one is named in its place


class Watch:
    """Tensors that must be finite and numbers for the log, kept on the device until `look` asks for all of them.

    Reading a number of a GPU waits for all its work. A step of a network reads once; with supplements at the images once
    more for the base loss and once for each of them, whose weights compare gradients.
    """

    def __init__(self, processes: int):
        self.processes = processes
        self.sums: dict[str, list[float]] = {}  # of each logged number: its sum, and over how many steps
        self._watched: list[Watched] = []
        self._numbers: list[tuple[str, torch.Tensor, float]] = []

    def finite(self, name: str, tensor: torch.Tensor, parts: Parts = ()) -> None:
        """`tensor`, of any shape, must be finite, or the next look raises."""
        tensor = tensor.detach()
        self._watched.append(Watched(name, tensor, torch.isfinite(tensor).all(), parts))

    def count(self, name: str, value: torch.Tensor | float, share: float | None = None) -> None:
        """Add a number (a scalar) to the sums. share: of the batch; None: every process knows it and adds its part."""
        share = 1 / self.processes if share is None else share
        if isinstance(value, torch.Tensor):
            self._numbers.append((name, value.detach(), share))
        else:
            self._add(name, value, share)

    def look(self, progress: Progress, *wanted: torch.Tensor) -> list[float]:
        """The values of scalars that are needed now; all numbers are added to their sums.

        Raises NonFinite for the first bad tensor since the last look.
        """
        watched, numbers = self._watched, self._numbers
        self._watched, self._numbers = [], []
        asked = [*(each.good for each in watched), *(value for _, value, _ in numbers), *wanted]
        if not asked:
            return []
        answers = torch.stack([each.double().reshape(()) for each in asked]).tolist()
        for each, good in zip(watched, answers, strict=False):
            if not good:
                raise NonFinite(_sentence(each, progress))
        answers = answers[len(watched) :]
        for (name, _, share), value in zip(numbers, answers, strict=False):
            self._add(name, value, share)
        return answers[len(numbers) :]

    def _add(self, name: str, value: float, share: float) -> None:
        total, steps = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = [total + value * share, steps + share]


def _sentence(each: Watched, progress: Progress) -> str:
    bad = lambda tensor: int((~torch.isfinite(tensor)).sum())  # noqa: E731
    parts = ((name, part.detach()) for name, part in each.parts)
    name, tensor = next(((name, part) for name, part in parts if bad(part)), (each.name, each.tensor))
    return (
        f"step {progress.iteration} ({progress.n_images} images): {name} is not finite "
        f"({bad(tensor)} of {tensor.numel()} values, shape {tuple(tensor.shape)}); the last good state is kept"
    )
