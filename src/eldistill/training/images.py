# SPDX-License-Identifier: Apache-2.0
"""The generator's images of one optimiser step, made once and differentiated as often as it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import torch

from eldistill.training.monitor import Monitor

COVERED_BY = "loop"


class Images:
    """The generator's images of one step by micro-batch. One micro-batch keeps its graph; several are made without one, and
    made again with a graph when a gradient is pulled through them.

    make: gives the images [n, c, h, w] of a slice, with a graph. last: `Update._last`.
    """

    def __init__(
        self,
        make: Callable[[slice], torch.Tensor],
        parts: list[slice],
        monitor: Monitor,
        last: Callable[[str, bool], contextlib.AbstractContextManager[None]],
    ) -> None:
        self.make, self.parts, self.monitor, self.last = make, parts, monitor, last
        self.made: dict[int, torch.Tensor] = {}

    def of(self, index: int) -> torch.Tensor:
        """Those of one micro-batch, without a graph; made when they are first asked for."""
        if index not in self.made:
            with torch.set_grad_enabled(len(self.parts) == 1):
                self.made[index] = self.make(self.parts[index])
            self.monitor.finite("images", self.made[index])
        return self.made[index].detach()

    def whole(self) -> torch.Tensor:
        """Those of all micro-batches, [n, c, h, w]."""
        return torch.cat([self.of(index) for index in range(len(self.parts))])

    def pull(self, gradient_of: Callable[[int], torch.Tensor], again: bool = False) -> None:
        """Add the gradients of the generator's weights from those at the images. again: the graph is needed once more."""
        for index, part in enumerate(self.parts):
            graph = self.made[index] if len(self.parts) == 1 else self.make(part)
            with self.last("generator", index == len(self.parts) - 1 and not again):
                graph.backward(gradient_of(index), retain_graph=again)

    def pull_whole(self, gradient: torch.Tensor) -> None:
        """The same from one gradient at all images; the graph stays."""
        self.pull(lambda index: gradient[self.parts[index]], again=True)


def sum_of(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of tensors of one shape; there is at least one."""
    first, *others = terms
    return sum(others, 0 + first)
