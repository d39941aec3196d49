# SPDX-License-Identifier: Apache-2.0
"""A second noise level as an input of a denoiser: D(x; sigma, lower), the mean of the flow from sigma down to `lower`.

MeanFlow (arXiv 2505.13447) needs two times, and the networks here have one. `attach` adds a layer W phi(r), whose weight is
zero at first, to the output of the last linear layer of the embedding of the noise level, so that the network starts as it
was. phi_k(r) = cos(pi k r), k = 0, 1, …, and r = lower / (1 + lower) is in [0, 1).

Inside `until(lower)` the second level is `lower`; outside it is 0, so that D(x; sigma) is an image, as everywhere else.

In a description of a network the key `interval` is the number of cosines; networks.build attaches the layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

RECIPE = ("networks/interval", 1)
LARGEST = 1024  # cosines
PLACES = (
    "map_layer1",
    "emb_noise",
    "unet.time_embedding",
)  # the last linear layer of the embedding, in each kind of network
_lower: ContextVar[torch.Tensor | None] = ContextVar("lower", default=None)


class Cosines(nn.Module):
    """s [n] -> W phi(s), [n, width], phi_k(s) = cos(pi k s), k = 0 … count - 1; W [width, count] is zero at first.

    s: in [0, 1], where these cosines are a basis. It is computed in float32 or better.
    """

    def __init__(self, width: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, count))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """The weight is zero again, so that the layer has no effect at first."""
        self.weight.zero_()

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        precise = torch.promote_types(s.dtype, torch.float32)
        order = torch.arange(self.weight.shape[1], dtype=precise, device=s.device)
        return (math.pi * s.to(precise)[:, None] * order).cos().to(self.weight.dtype) @ self.weight.T


class Interval(Cosines):
    """W phi(r) for a layer whose output [n or 1, width] it is added to; `added` is a forward hook of that layer."""

    def added(self, layer: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        """The output of the layer with W phi(r) added. Raises ValueError if there are other images than second levels."""
        lower = _lower.get()
        if lower is None:
            lower = output.new_zeros(1, dtype=torch.promote_types(output.dtype, torch.float32))
        if len(lower) != 1 and len(output) not in (1, len(lower)):
            raise ValueError(f"There are {len(lower)} second noise levels for {len(output)} images.")
        return output + self(lower / (1 + lower)).to(output.dtype)


def attach(denoiser: nn.Module, count: int) -> nn.Module:
    """The denoiser with a second noise level, in place; one that has it already stays as it is.

    count: cosines, 1 to LARGEST; `denoiser.config` gets it as `interval`. The layer is `interval` of the network F, with
    the type and the place of the other weights. Raises ValueError for another count, and for a network without an
    embedding of the noise level that is known here.
    """
    if type(count) is not int or not 1 <= count <= LARGEST:
        raise ValueError(f"interval must be a whole number from 1 to {LARGEST}, not {count!r}.")
    network = denoiser.network
    if hasattr(network, "interval"):
        return denoiser
    layers = dict(network.named_modules())
    found = next((layers[name] for name in PLACES if name in layers), None)
    if found is None:
        raise ValueError("this network has no embedding of the noise level that a second one could be added to.")
    weight = next(each for each in reversed([*found.parameters()]) if each.ndim > 1)
    made = Interval(weight.shape[0], count)
    network.interval = made if weight.is_meta else made.to(weight)  # ddpm gets its memory when its weights are drawn
    found.register_forward_hook(network.interval.added)
    denoiser.config = {**denoiser.config, "interval": count}
    return denoiser


@contextmanager
def until(lower: torch.Tensor) -> Iterator[None]:
    """Inside, the second noise level of every denoiser that has one is `lower`, [n] or [1], at least 0."""
    token = _lower.set(lower)
    try:
        yield
    finally:
        _lower.reset(token)
