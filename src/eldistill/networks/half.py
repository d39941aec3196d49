# SPDX-License-Identifier: Apache-2.0
"""Passes of a network in bfloat16 (half precision) whose weights stay float32.

The optimiser, the running averages and the gradients see float32 weights. A pass uses a bfloat16 copy of each weight.
The copy is made once after each change of the weight, so once an optimiser step for a trained network and once for a
frozen one, whatever the number of passes, micro-batches and phases. Convolutions, linear layers, norms and activations
take and give bfloat16; the kernels of products and of norms sum in float32, as in the half precision of Karras et al.
2022 (arXiv 2206.00364, appendix F).

torch.autocast is not used: it casts frozen weights in every pass, and norms and activations give float32 under it.

A change of results here concerns runs in bfloat16 only. It raises no version in a RECIPE, because no recipe of a
float32 run may change.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import register_optimizer_step_post_hook

COVERED_BY = "networks/layers"
LAST = 2**63  # larger than every sequence number that autograd gives to its nodes
# Depth of nested passes in half precision and of nested contexts of forward mode in this process.
_depth = {"half": 0, "forward": 0}


class _Link(torch.autograd.Function):
    # The copy of a weight as a differentiable function of the weight. No tensor is saved for the backward pass, so one
    # link can be part of many graphs until the weight changes.

    @staticmethod
    def forward(ctx, weight: torch.Tensor, copied: torch.Tensor, layer: nn.Module | None) -> torch.Tensor:
        ctx.weight, ctx.version, ctx.layer = weight, weight._version, layer
        return copied.detach()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        wide = gradient.to(ctx.weight.dtype)
        if ctx.layer is None:
            return wide, None, None
        if ctx.weight._version != ctx.version:
            raise RuntimeError("a weight was changed in place between a pass in half precision and its backward pass")
        return ctx.layer.unprepared_gradient(ctx.weight, wide), None, None


@dataclass
class _Copy:
    # One weight, its place in the module, and its copy. `layer`: a layer that prepares its weight before rounding.
    place: dict[str, Any]
    name: str
    weight: nn.Parameter
    layer: nn.Module | None
    values: torch.Tensor | None = None
    link: torch.Tensor | None = None  # `values` as a function of the weight, until the weight changes
    seen: tuple = ()

    def state(self) -> tuple:
        """Values of which one differs after each change of the weight: in place, by an optimiser, or by new memory."""
        return self.weight._version, self.weight.data_ptr(), self.weight.stride()


class Copies:
    """The half precision copies of one network's weights, made when they are first needed.

    They belong to the denoiser but not to its state: a deep copy or a pickle of the denoiser has none.
    made: number of weight copies computed so far. The network's modules must not be replaced after its first
    pass in half precision; weights may change in any way.
    """

    def __init__(self):
        self.entries: list[_Copy] = []
        self.switches: list[dict] = []
        self.dtype: torch.dtype | None = None
        self.made = 0

    def __deepcopy__(self, memo: dict) -> Copies:
        return Copies()

    def __reduce__(self) -> tuple:
        return Copies, ()

    @contextlib.contextmanager
    def inside(self, network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
        """A context in which the modules of `network` hold copies in `dtype` in place of their weights."""
        self.refresh(network, dtype)
        entries = [(each.place, each.name, _used(each)) for each in self.entries]
        with _Placed([*entries, *((place, "prepared", True) for place in self.switches)]):
            _depth["half"] += 1
            try:
                yield
            finally:
                _depth["half"] -= 1

    def refresh(self, network: nn.Module, dtype: torch.dtype) -> None:
        """Bring the copies up to date with the weights of `network`.

        Without changes this only compares version numbers.
        """
        if self.dtype != dtype or any(each.place[each.name] is not each.weight for each in self.entries):
            self._find(network, dtype)
        stale = [each for each in self.entries if each.seen != each.state()]
        if stale:
            with _outside_transforms():
                self._cast(stale)
        unlinked = [each for each in self.entries if each.link is None and each.weight.requires_grad]
        if unlinked:
            with _outside_transforms(), torch.enable_grad():
                for each in unlinked:
                    each.link = _linked(each)

    def _find(self, network: nn.Module, dtype: torch.dtype) -> None:
        # Scalars (gains) keep their precision: they cost nothing, and rounding them would rescale layers.
        _notice_fused_optimisers()
        self.entries, self.switches, self.dtype = [], [], dtype
        for layer in network.modules():
            prepares = hasattr(layer, "prepared_weight")
            if prepares:
                self.switches.append(layer.__dict__)
            for name, weight in layer._parameters.items():
                if weight is not None and weight.ndim and weight.is_floating_point():
                    self.entries.append(_Copy(layer._parameters, name, weight, layer if prepares else None))

    @torch.no_grad()
    def _cast(self, stale: list[_Copy]) -> None:
        for each in stale:
            state = each.state()
            if each.values is None or state[1:] != each.seen[1:]:
                each.values = torch.empty_like(each.weight, dtype=self.dtype, requires_grad=False)
            each.link = None
            if each.layer is not None:
                each.values.copy_(each.layer.prepared_weight(each.weight))
            each.seen = state
        plain = [each for each in stale if each.layer is None]
        if plain:
            torch._foreach_copy_([each.values for each in plain], [each.weight for each in plain])
        self.made += len(stale)


def _linked(each: _Copy) -> torch.Tensor:
    link: torch.Tensor = _Link.apply(each.weight, each.values, each.layer)
    # Autograd runs the most recent of the nodes that are ready. A link is older than every pass. Without the number
    # below all weight gradients would be kept in memory until the end of the backward pass, and sums over processes
    # could not begin earlier.
    link.grad_fn._set_sequence_nr(LAST)
    return link


def _used(each: _Copy) -> torch.Tensor | None:
    # The tensor that a pass uses: a plain one if the weight needs no gradient.
    return each.link if each.weight.requires_grad else each.values


@contextlib.contextmanager
def _outside_transforms() -> Iterator[None]:
    # Leaves transforms of torch.func and inference mode, because the copies outlive both.
    with temporarily_clear_interpreter_stack(), torch.inference_mode(False):
        yield


@functools.cache
def _notice_fused_optimisers() -> None:
    # torch counts changes of a tensor, except those by its fused optimisers. The hook counts these too.
    def count(optimiser: torch.optim.Optimizer, *_) -> None:
        for group in optimiser.param_groups:
            if group.get("fused"):
                torch.autograd.graph.increment_version([each for each in group["params"] if each.grad is not None])

    register_optimizer_step_post_hook(count)


class _Placed:
    # A context in which place[name] is the given value. It may be entered again, but not nested.

    def __init__(self, entries: list[tuple[dict, str, Any]]):
        self.entries, self.before = entries, []

    def __enter__(self) -> None:
        self.before = [place[name] for place, name, _ in self.entries]
        for place, name, value in self.entries:
            place[name] = value

    def __exit__(self, *error) -> None:
        for (place, name, _), value in zip(self.entries, self.before, strict=True):
            place[name] = value


def keep_weights(module: nn.Module) -> AbstractContextManager:
    """A context in which `module` has the weights that it has at the time of this call.

    Blocks that are computed again in the backward pass need it, because the pass in half precision is over by then.
    Outside such a pass the context changes nothing.
    """
    if not _depth["half"]:
        return contextlib.nullcontext()
    entries = []
    for each in module.modules():
        entries += [(each._parameters, name, value) for name, value in each._parameters.items() if value is not None]
        if "prepared" in each.__dict__:
            entries.append((each.__dict__, "prepared", each.prepared))
    return _Placed(entries)


@contextlib.contextmanager
def forward_mode(*denoisers: nn.Module) -> Iterator[None]:
    """A context for torch.func.jvp of these denoisers, in which all their operations have a forward-mode derivative.

    Attention is computed by torch's MATH backend, because the fused kernels have no derivative in forward mode, and
    blocks keep what they computed even if they are set to compute it again. Values change by rounding only.
    """
    for each in denoisers:
        each.ready()
    _depth["forward"] += 1
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _depth["forward"] -= 1


def in_forward_mode() -> bool:
    """Whether the caller is inside `forward_mode`."""
    return _depth["forward"] > 0
