# SPDX-License-Identifier: Apache-2.0
"""A member of an ensemble as a torch module, for eldistill.EmbeddingLoss: it moves, is copied and is saved like any other."""

from __future__ import annotations

import torch

from eldistill import contract
from eldistill.ensemble.members import Member


class FrozenMember(torch.nn.Module):
    """The weights of one member as buffers, and all else that it consists of as plain values, which can be copied."""

    def __init__(self, member: Member):
        super().__init__()
        self.family = member.family.__name__.rpartition(".")[2]  # its name, because a module cannot be copied
        self.numbers, self.features = member.numbers, member.features
        self.calibration = member.scale, member.bandwidth
        self.names = list(member.weights)
        for name, weight in member.weights.items():
            self.register_buffer(_buffer(name), weight)
        self.register_buffer("order", member.order)

    def member(self) -> Member:
        """The member with the weights as they are now."""
        weights = {name: self.get_buffer(_buffer(name)) for name in self.names}
        family = contract.load_module("ensemble", self.family)
        return Member(family, self.numbers, weights, self.features, self.order, *self.calibration)

    def overwrite(self, weights: dict[str, torch.Tensor]) -> None:
        """Put other weights in place of those of the same names. Earlier values keep theirs for their backward pass."""
        for name, weight in weights.items():
            setattr(self, _buffer(name), weight.to(self.get_buffer(_buffer(name))))

    def calibrate(self, row: dict) -> None:
        """Take scale and bandwidth of a row of an ensemble's manifest."""
        scale = row["scale"]
        self.calibration = tuple(scale) if isinstance(scale, list) else scale, row["bandwidth"]


def _buffer(name: str) -> str:
    return name.replace(".", "__")  # torch takes no dots in the names of buffers
