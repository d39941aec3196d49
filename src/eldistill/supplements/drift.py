# SPDX-License-Identifier: Apache-2.0
"""Drifting (Deng et al. 2026, arXiv 2602.04770) in the random feature spaces of the Embedding Loss.

    L(x) = 1/K sum_k mean_i |z_i - sg(z_i + V(z_i))|^2,    z = phi_k(x) / (mean distance),    V: losses/drifting.py

phi_k: features of member k of an ensemble. V is the sum of the drifting fields of several radii; each image is pulled to the
place where its field points, which is held fixed. Positives are real images, drawn anew in each step, negatives the other
generated images of the batch.

The field of each radius is divided by its length (`normalise`), as in the paper. The value of the loss then hardly changes, and
the gradient does not become small where the distributions meet; `length` in the log is the mean squared length before.

Departures from the paper: random networks in place of a trained encoder; images without classes, and no guidance; a batch of
one distribution in place of groups of 64 images of a class; no memory of earlier images; one vector of features for each image in
place of a field for each place and patch. `floor` is of the authors' code only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eldistill.contract import AtImages, Batch, Memory, Progress, Setting, Weight
from eldistill.ensemble.reading import EnsembleNumbers, read_members, spread_warning, stacking, trace_ratio
from eldistill.ensemble.seed import Ensemble
from eldistill.errors import Problem
from eldistill.losses import balance
from eldistill.losses.balance import WeightNumbers
from eldistill.losses.drifting import drift
from eldistill.numbers import number
from eldistill.training import processes

RECIPE = ("supplements/drift", 1)
TARGET_HELD = True  # the places that images are pulled to depend on the images, but have no gradient


@dataclass(frozen=True)
class Numbers(EnsembleNumbers, WeightNumbers):
    """The numbers of drifting."""

    radii: tuple[float, ...] = number(
        (0.02, 0.05, 0.2),
        "R of the affinity exp(-distance / R), in units of the mean distance; the fields are added (the paper)",
    )
    floor: float = number(
        1e-3, "smallest affinity of two images (the authors' code; the paper has 0)", low=0, below=1
    )  # fmt: skip
    normalise: bool = number(True, "divide the field of each radius by its root mean square length (the paper)")
    real_ratio: int = number(
        1, "number of real images for each generated one; new ones are drawn in each step", low=1, high=64
    )

    def __post_init__(self):
        good = all(isinstance(radius, int | float) and 0 < radius < float("inf") for radius in self.radii)
        if not self.radii or not good:
            raise Problem(
                f"params.yaml: radii is {list(self.radii)} in the supplement drift; expected numbers above 0, such as [0.02, 0.05, 0.2]"
            )


@dataclass(frozen=True)
class Prepared:
    """The data that drifting uses in a run. across: the processes that share a batch."""

    ensemble: Ensemble
    sigma_data: float
    across: processes.ProcessGroup | None = None


def prepare(numbers: Numbers, setting: Setting) -> Prepared:
    """Load the ensemble. Raises Problem for a damaged file."""
    ensemble = Ensemble(setting.ensemble, setting.device, setting.dtype, setting.teacher)
    return Prepared(ensemble, setting.sigma_data, processes.process_group())


def generator_terms(prepared: Prepared, images: torch.Tensor, batch: Batch, numbers: Numbers) -> dict[str, AtImages]:
    """The squared distance of the features of images [n, c, h, w] (encoded) to where they drift, and its gradient.

    With several processes the images are the rows of this one; features are gathered from all, and the value is that of the
    complete batch. Raises Problem for a batch of one image, which has no negatives.
    """
    real, _ = batch.real("drift/real", numbers.real_ratio)
    x = images.detach().requires_grad_()
    members, stack = prepared.ensemble.at(batch.progress.iteration), stacking(numbers.stack, x)
    values, lengths, ratios = [], [], []
    for _, ours, its in read_members(members, x / prepared.sigma_data, real / prepared.sigma_data, stack):
        for mine, target in zip(ours, its, strict=True):
            value, length = _of_member(mine, target, numbers, prepared.across)
            values.append(value)
            lengths.append(length)
            ratios += trace_ratio(mine.detach().double(), target, None, prepared.across)
    value = torch.stack(values).mean()
    (gradient,) = torch.autograd.grad(value, x)
    terms = {"drift": AtImages(value.detach(), gradient), "length": AtImages(torch.stack(lengths).mean(), None)}
    return terms | ({"trace_ratio": AtImages(torch.stack(ratios).mean(), None)} if ratios else {})


def _of_member(mine: torch.Tensor, real: torch.Tensor, numbers: Numbers, across) -> tuple[torch.Tensor, torch.Tensor]:
    # The loss in the features of one member, and the mean squared length of a field.
    if across is not None:
        mine, real = across.gather(mine), across.gather(real)
    if len(mine) < 2:
        raise Problem("the drifting field of 1 generated image; expected at least 2: raise the batch")
    found, unit, length = drift(mine.detach(), real, numbers.radii, numbers.floor, numbers.normalise)
    scaled = mine.double() / unit
    return (scaled - (scaled.detach() + found)).square().sum(1).mean(), length


def weight(
    base: balance.Scalar, own: balance.Scalar, batch: int, numbers: Numbers, progress: Progress, memory: Memory
) -> Weight:
    """The factor of its gradient, as for the Embedding Loss (losses/balance.py)."""
    return balance.scheduled(base, own, batch, numbers, progress, memory)


def warning(means: dict[str, float]) -> str | None:
    """A warning if the generated images have less than half of the spread of the real ones; None otherwise."""
    return spread_warning(means, "the features of drift")
