# SPDX-License-Identifier: Apache-2.0
"""The images that the generator makes in one optimiser step, and backward passes through them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import torch

from eldistill.training.monitor import Monitor

COVERED_BY = "loop"


class Images:
    """The images of one optimiser step, by micro-batch.

    A single micro-batch keeps its graph. Several are made without a graph, to save memory, and generated again with one
    when a gradient is propagated back through them.

    make: returns the images [n, c, h, w] of a slice of the batch, with a graph. last: `Update._last`.
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
        """The images of one micro-batch [n, c, h, w] without a graph, made on the first call."""
        if index not in self.made:
            with torch.set_grad_enabled(len(self.parts) == 1):
                self.made[index] = self.make(self.parts[index])
            self.monitor.finite("images", self.made[index])
        return self.made[index].detach()

    def whole(self) -> torch.Tensor:
        """The images of all micro-batches, [n, c, h, w]."""
        return torch.cat([self.of(index) for index in range(len(self.parts))])

    def pull(self, gradient_of: Callable[[int], torch.Tensor], again: bool = False) -> None:
        """Propagate gradients at the images back to the weights of the generator, where they are added.

        gradient_of: returns the gradient [n, c, h, w] of a micro-batch by its index. again: keep the graph for another
        call.
        """
        for index, part in enumerate(self.parts):
            graph = self.made[index] if len(self.parts) == 1 else self.make(part)
            with self.last("generator", index == len(self.parts) - 1 and not again):
                graph.backward(gradient_of(index), retain_graph=again)

    def pull_whole(self, gradient: torch.Tensor) -> None:
        """Like `pull`, with one gradient [n, c, h, w] for all images. The graph is kept."""
        self.pull(lambda index: gradient[self.parts[index]], again=True)


def sum_of(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of tensors of one shape; there is at least one."""
    first, *others = terms
    return sum(others, 0 + first)
