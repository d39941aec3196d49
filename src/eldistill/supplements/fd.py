# SPDX-License-Identifier: Apache-2.0
"""The Fréchet distance as a loss (Yang et al. 2026, arXiv 2604.28190), in the random feature spaces of the Embedding Loss.

    FD(x) = 1/K sum_k FD_k,    FD_k of the moments of phi_k(x) and of phi_k over all train images (losses/frechet.py)

phi_k: features of member k of an ensemble, scaled as in the Embedding Loss, so that FD_k is in units of the real variance. The
moments of the real images are computed once, before the run: a step needs no real images.

A covariance needs many more images than a batch has. As in the paper, the population is decoupled from the batch: the moments
are running averages over about `population` generated images, and those of earlier images have no gradient. The batch has the
share s = batch / population in them, and at the start its share of all images so far. Its gradient is divided by s: it is then
that of a distance whose population moves with the batch, so `population` changes how much the moments lag and fluctuate. Where
the generator rests it does not change the strength of the loss; while it moves, moments that lag make the loss stronger.

Departures from the paper: random networks in place of pretrained ones; running averages of moments, which the paper has beside
a queue of features; equal noise of variance `noise` on both sides; and with more features than `axes` an isotropic part.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from eldistill.contract import AtImages, Batch, Memory, Progress, Setting, Weight
from eldistill.ensemble.reading import EnsembleNumbers, feature_blocks, read_members, spread_warning, stacking
from eldistill.ensemble.seed import Ensemble
from eldistill.errors import Problem
from eldistill.losses import balance
from eldistill.losses.balance import WeightNumbers
from eldistill.losses.frechet import Known, Moments, known_of
from eldistill.numbers import number
from eldistill.training import processes

RECIPE = ("supplements/fd", 1)
BLOCK = 1000  # real images whose features are computed at once


@dataclass(frozen=True)
class Numbers(EnsembleNumbers, WeightNumbers):
    """The numbers of the Fréchet distance."""

    ensemble: str = number("conv4", "a name under `ensemble`: the random networks; with redraw: 0")
    population: int = number(
        5000, "generated images over which the moments are averaged (the paper: 50,000); no more than the batch: the batch alone",
        low=1,
    )  # fmt: skip
    axes: int = number(
        128, "principal axes of the real features along which covariances are compared; what is left counts as one isotropic part. "
        "The root takes of the order of axes^3 operations for each member and step",
        low=1, high=4096,
    )  # fmt: skip
    noise: float = number(
        1e-3, "variance that is added to both sides in every direction, in units of the mean variance of the real features", above=0
    )  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """The data that the Fréchet distance uses in a run.

    known: real features of each member. across: the processes that share a batch. past: moments of earlier generated images, for
    each member; empty before the first step. seen: how many images those are.
    """

    ensemble: Ensemble
    sigma_data: float
    known: list[Known]
    across: processes.ProcessGroup | None = None
    past: tuple[Moments, ...] = ()
    seen: int = 0


@dataclass(frozen=True)
class OfPopulation(AtImages):
    """The loss with what becomes of the population.

    moments: for each member, without a graph. known: the real features whose axes they are along. seen: number of images.
    """

    moments: list[Moments] = field(default_factory=list)
    known: list[Known] = field(default_factory=list)
    seen: int = 0


def prepare(numbers: Numbers, setting: Setting) -> Prepared:
    """Load the ensemble and compute the moments of all real images in its features. Raises Problem for one that is redrawn."""
    ensemble = Ensemble(setting.ensemble, setting.device, setting.dtype, setting.teacher)
    if every := ensemble.record["redraw"]:
        raise Problem(f"params.yaml: the ensemble {numbers.ensemble} has redraw: {every}, but the supplement fd compares with moments of "
                      "all train images, which need a single draw; name an ensemble with redraw: 0")  # fmt: skip
    known = [_known(member, setting.reals, numbers) for member in ensemble.at(0)]
    return Prepared(ensemble, setting.sigma_data, known, processes.process_group())


def _known(member: Any, reals: Any, numbers: Numbers) -> Known:
    # In float64, about the mean of the first block, so that differences lose no digits.
    n, centre = len(reals), None
    total: Any = 0.0
    second: Any = 0.0
    for block in feature_blocks(member, reals, torch.arange(n), BLOCK):
        centre = block.double().mean(0) if centre is None else centre
        rows = block.double() - centre
        total, second = total + rows.sum(0), second + rows.T @ rows
    shift = total / n
    return known_of(centre + shift, second / n - torch.outer(shift, shift), numbers.axes, numbers.noise)


# In memory, with the number of the member. Moments are along axes, which another machine may find with other signs, or rotated
# where variances are equal; so a run that is continued takes the axes that it began with.
MOMENTS, OF_KNOWN = ("mean", "second", "square"), ("axes", "variances")


def recall(prepared: Prepared, numbers: Numbers, memory: Memory) -> Prepared:
    """With the moments of earlier images and their axes, if there are any."""
    if "images" not in memory:
        return prepared
    past, known = [], []
    for k, each in enumerate(prepared.known):  # a scalar is a float after a saved state
        found = (torch.as_tensor(memory[f"{name}_{k}"], dtype=torch.float64).to(each.mean.device) for name in MOMENTS)
        past.append(Moments(*found))
        known.append(replace(each, **{name: memory[f"{name}_{k}"] for name in OF_KNOWN}))
    return replace(prepared, known=known, past=tuple(past), seen=int(memory["images"]))


def generator_terms(prepared: Prepared, images: torch.Tensor, batch: Batch, numbers: Numbers) -> dict[str, AtImages]:
    """FD of the population, to which the images [n, c, h, w] (encoded) are added, and its gradient at them.

    With several processes the images are the rows of this one; features are gathered from all, and the value is that of the
    complete batch.
    """
    x = images.detach().requires_grad_()
    values, moments, ratios, share, count = [], [], [], 1.0, 0
    members = prepared.ensemble.at(0)
    for places, features, _ in read_members(members, x / prepared.sigma_data, None, stacking(numbers.stack, x)):
        for place, mine in zip(places, features, strict=True):
            rows = mine if prepared.across is None else prepared.across.gather(mine)
            known, count = prepared.known[place], len(rows)
            found = known.moments(rows)
            if prepared.past:
                share = min(1.0, max(count / numbers.population, count / (prepared.seen + count)))
                found = found.blended(prepared.past[place], share)
            values.append(known.distance(found))
            moments.append((place, found.detached()))
            ratios.append(known.trace_ratio(moments[-1][1]))
    value = torch.stack(values).mean()
    (gradient,) = torch.autograd.grad(value, x)
    ordered = [each for _, each in sorted(moments, key=lambda pair: pair[0])]
    return {
        "frechet": OfPopulation(value.detach(), gradient / share, ordered, prepared.known, prepared.seen + count),
        "trace_ratio": AtImages(torch.stack(ratios).mean(), None),
    }


def observe(prepared: Prepared, terms: dict[str, Any], numbers: Numbers, memory: Memory) -> None:
    """Keep the moments of the population. All processes have the same, because they gather the same features."""
    term = terms["frechet"]
    for k, (moments, known) in enumerate(zip(term.moments, term.known, strict=True)):
        memory.update({f"{name}_{k}": getattr(moments, name) for name in MOMENTS})
        memory.update({f"{name}_{k}": getattr(known, name) for name in OF_KNOWN})
    memory["images"] = float(term.seen)


def weight(
    base: balance.Scalar, own: balance.Scalar, batch: int, numbers: Numbers, progress: Progress, memory: Memory
) -> Weight:
    """The factor of its gradient, as for the Embedding Loss (losses/balance.py)."""
    return balance.scheduled(base, own, batch, numbers, progress, memory)


def warning(means: dict[str, float]) -> str | None:
    """A warning if the population has less than half of the spread of the real images; None otherwise."""
    return spread_warning(means, "the features of fd")
