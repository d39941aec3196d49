# SPDX-License-Identifier: Apache-2.0
"""A generator whose network is smaller or larger than the teacher's, and how it starts.

It is the same kind of network with other sizes. Its weights start by this rule, of which nothing is trained:

1. A tensor whose name the teacher's network has too takes its values. Where a layer has fewer channels, every so many-th of the
   teacher's is taken, evenly spaced; where it has more, each of the teacher's is repeated, evenly too. Evenly spaced channels keep
   what belongs together: the two parts of a join, the groups of a norm, queries, keys and values.
2. What a layer computes keeps its size: weights on fewer inputs are multiplied by sqrt(teacher's inputs / own inputs), as for
   uncorrelated channels; weights on repeated inputs are split among the repetitions by random shares that add up to 1, which
   leaves the sum as it was (Chen et al. 2016, arXiv 1511.05641) and lets the repetitions learn different things.
3. All other tensors start as the constructor draws them, from the seed of the run.
4. The last convolution is fitted by least squares to the output of the teacher's one, over images of pure noise at the level
   that the generator starts from: what a generator of the teacher's size gives there without training. A network of edm2, whose
   weights are normalised, takes the direction and one common gain of that solution.

With the teacher's own sizes the generator starts as the teacher, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from eldistill import networks
from eldistill.contract import Denoiser
from eldistill.diffusion.draws import Draw, stream_seed
from eldistill.errors import Problem
from eldistill.networks import edm2
from eldistill.training import processes

RECIPE = ("student", 1)
IMAGES = 64  # images of noise that the last layer is fitted on, at least
EQUATIONS = 8  # for each unknown of the fit, at least
PIXELS = 2**14  # of the images in one pass of the fit
RIDGE = 1e-6  # added to the normal equations, relative to their mean diagonal
TRIPLES = ("qkv", "attn_qkv")  # layers whose outputs lie as [channel][query, key, value]


def config_of(config: dict[str, Any], changes: dict[str, Any] | None) -> dict[str, Any]:
    """The configuration of a generator: the teacher's with other sizes. Raises Problem if no such network can be built."""
    if not changes:
        return config
    try:
        outline: Denoiser = networks.outline({**config, **changes})
        return dict(outline.config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise Problem(
            f"params.yaml: generator_network is {changes}, with which no network {config['network']} can be built "
            f"({str(error).rstrip('.')}); change it, or set it to null"
        ) from None


def resize(teacher: Denoiser, changes: dict[str, Any] | None, seed: int, sigma: float) -> Denoiser:
    """The network that a generator starts with: the teacher itself, or one of other sizes by the rule above.

    teacher: frozen, in eval mode. changes: keyword arguments of its network that differ. seed: of the run. sigma: noise level that
    the generator starts from. All processes of a run get the same weights. Raises Problem for sizes that do not fit.
    """
    config = config_of(teacher.config, changes)
    if config == teacher.config:
        return teacher
    key = stream_seed(seed, "initialisation/generator")
    made = networks.build(config, key)
    random = torch.Generator(device="cpu").manual_seed(key)
    theirs = teacher.state_dict()
    taken = {}
    for name, own in made.state_dict().items():
        if name in theirs and (found := fit_shape(theirs[name].cpu(), own.shape, name, random)) is not None:
            taken[name] = found
    made.load_state_dict(taken, strict=False)
    made = made.to(next(teacher.parameters())).eval()
    fit_last_layer(made, teacher, seed, sigma)
    return made.requires_grad_(False)


# --- one tensor -----------------------------------------------------------------------------------------


def fit_shape(
    values: torch.Tensor, shape: torch.Size, name: str, random: torch.Generator
) -> torch.Tensor | None:  # fmt: skip
    """A tensor of the teacher in another shape, by the rules 1 and 2; None if only the channels cannot explain the difference.

    values: [outputs], or [outputs, inputs, *kernel]. name: its name in the state. random: for the shares of repeated inputs.
    """
    if values.ndim != len(shape) or values.shape[2:] != shape[2:]:
        return None
    if values.ndim == 0 or not values.is_floating_point():
        return values if values.shape == shape else None
    period = 3 if any(part in TRIPLES for part in name.split(".")) else 1
    values = values[spaced(shape[0], values.shape[0], period)]
    if values.ndim == 1 or values.shape[1] == shape[1]:
        return values
    index, before = spaced(shape[1], values.shape[1]), values.shape[1]
    chosen = values[:, index]
    if shape[1] < before:
        return chosen * math.sqrt(before / shape[1])
    drawn = 0.5 + torch.rand(shape[0], shape[1], generator=random, dtype=torch.float32)
    sums = torch.zeros(shape[0], before).index_add_(1, index, drawn)
    share = drawn / sums[:, index]
    return chosen * share.reshape(*share.shape, *[1] * (values.ndim - 2)).to(chosen.dtype)


def spaced(new: int, old: int, period: int = 1) -> torch.Tensor:
    """The channels [new] of `old` that a layer takes: evenly spaced, in blocks of `period` that stay together."""
    place = torch.arange(new)
    return place // period * (old // period) // (new // period) * period + place % period


# --- the last layer -------------------------------------------------------------------------------------


@dataclass
class Seen:
    """The last convolution of a pass, what it saw, [n, c, h, w], and what it returned, [n, d, h, w]."""

    layer: Any
    inputs: torch.Tensor
    output: torch.Tensor


@torch.no_grad()
def last_layer(net: Denoiser, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> Seen:
    """Run a denoiser and return what happened at its last convolution."""
    found: list[Seen] = []

    def see(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found[:] = [Seen(layer, inputs[0], output)]

    convolutions = [each for each in net.modules() if getattr(getattr(each, "weight", None), "ndim", 0) == 4]
    hooks = [each.register_forward_hook(see) for each in convolutions]
    try:
        net(x, sigma, labels)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0]


@torch.no_grad()
def fit_last_layer(net: Denoiser, teacher: Denoiser, seed: int, sigma: float) -> None:
    """Set the last convolution of `net` so that its output is nearest to that of the teacher's (rule 4), in place."""
    device, side = next(net.parameters()).device, net.img_resolution
    probe = last_layer(net, *_noise(net, Draw(seed, "student", 0, 1, device), sigma))
    unknowns = probe.layer.weight[0].numel() + (getattr(probe.layer, "bias", None) is not None)
    count = max(IMAGES, -(-EQUATIONS * unknowns // side**2))
    size = max(1, PIXELS // side**2)
    left, right = torch.zeros(unknowns, unknowns, dtype=torch.float64), torch.zeros(unknowns, net.img_channels).double()
    for first in range(0, count, size):
        given = _noise(net, Draw(seed, "student", first, min(size, count - first), device), sigma)
        inputs = _patches(last_layer(net, *given))
        wanted = last_layer(teacher, *given).output.double().movedim(1, 0).flatten(1)
        left += (inputs @ inputs.T).cpu()
        right += (inputs @ wanted.T).cpu()
    left += RIDGE * left.diagonal().mean() * torch.eye(unknowns, dtype=torch.float64)
    _install(net, probe.layer, torch.linalg.solve(left, right), left, right)


def _noise(net: Denoiser, draw: Draw, sigma: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    # What a generator sees in its one step: noise, its level, and labels that are drawn uniformly.
    x = sigma * draw.normal("z", net.img_channels, net.img_resolution, net.img_resolution)
    labels = None
    if net.label_dim:
        labels = F.one_hot(draw.integers("label", net.label_dim), net.label_dim).to(x)
    return x.to(net.dtype), x.new_full((len(x),), sigma).to(net.dtype), labels


def _patches(seen: Seen) -> torch.Tensor:
    # The inputs of the convolution at every pixel, [unknowns, pixels] in float64; a row of ones for its bias.
    side = seen.layer.weight.shape[-1]
    found = F.unfold(seen.inputs.double(), side, padding=side // 2).movedim(1, 0).flatten(1)
    if getattr(seen.layer, "bias", None) is None:
        return found
    return torch.cat([found, torch.ones_like(found[:1])])


def _install(net: Denoiser, layer: Any, solution: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    # Write the solution [unknowns, d] of left s = right into the layer; of several processes that of the first counts.
    across = processes.process_group_or_single()
    solution = across.sum((solution if across.rank == 0 else torch.zeros_like(solution)).to(layer.weight.device)).cpu()
    weights = len(solution) - (getattr(layer, "bias", None) is not None)
    rows = solution[:weights].T
    if isinstance(layer, edm2.MPConv):
        rows = rows / rows.square().mean(1, keepdim=True).sqrt()
        unit = rows.T / math.sqrt(weights)  # what the layer multiplies with at a gain of 1
        net.network.out_gain.fill_(float((unit * right).sum() / (unit * (left @ unit)).sum()))
    layer.weight.copy_(rows.reshape(layer.weight.shape))
    if weights < len(solution):
        layer.bias.copy_(solution[-1])
