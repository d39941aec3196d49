# SPDX-License-Identifier: Apache-2.0
"""Several processes, each with a part of every batch: the two collectives that EL needs.

Every process computes the same loss of the whole batch, so no gradient has to travel: that of the own rows is exact
as it stands, and nothing is multiplied by the number of processes.
"""

from __future__ import annotations

import torch
from torch import distributed


class Processes:
    """The processes of a group (None: all) that share a batch. Parts may differ in size; ranks give the order of rows."""

    def __init__(self, group=None):
        self.group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)

    def count(self, own: torch.Tensor) -> int:
        """How many rows like those of `own` all processes hold together."""
        return int(self._sum(torch.tensor(len(own), device=own.device)))

    def total(self, own: torch.Tensor) -> torch.Tensor:
        """The sum over processes, of any shape; the gradient goes to the own summand."""
        return own + (self._sum(own.detach()) - own.detach())

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """The rows of all processes, in the order of their ranks; the gradient goes to the own ones."""
        sizes = [torch.zeros(1, dtype=torch.int64, device=own.device) for _ in range(self.size)]
        distributed.all_gather(sizes, torch.tensor([len(own)], device=own.device), group=self.group)
        longest = max(int(size) for size in sizes)
        padded = own.detach().new_zeros(longest, *own.shape[1:])
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded, group=self.group)
        parts = [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]
        parts[self.rank] = own
        return torch.cat(parts)

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        distributed.all_reduce(value, group=self.group)
        return value


def processes() -> Processes | None:
    """All processes that torch was started with; None where there is one."""
    ready = distributed.is_available() and distributed.is_initialized()
    return Processes() if ready and distributed.get_world_size() > 1 else None
