# SPDX-License-Identifier: Apache-2.0
"""TCM, truncated consistency models (Lee et al. 2024, arXiv 2410.14895): a second stage that leaves small noise levels to the first.

Symbols: their f_theta, f_theta0 are our generator and target; t, r are sigma and lower; t' is border. The first stage f_theta0
is a consistency model of all levels. The second learns those above t' alone, and takes the first one's images below:

    w d(f_theta(x_t; t), sg f(x_r; r)) / (t - r),    f = f_theta where r >= t', f_theta0 below

A share of the images has t = t', whose lower level lies below: that is the boundary loss, which has a weight of its own. The
other levels have a logarithm from a Student distribution with very long tails, truncated to t' … sigma_max. x_r has the noise
of x_t. r(t) = t (1 - eta(t) / q), ECT's at its last stage; d is the pseudo-Huber distance.

The first stage is one of two: the generator that the run starts from (`start_from`, of ECT for example; the authors' way),
or, without one, the first part of this run, `first_share`, which trains ECT's loss at all levels from the teacher on. Its
running average, with weight mu, is then kept as the first stage. Both parts are this method's, so that a run says what
it started from.

Departures: each image is one of the boundary with probability boundary_share, and the losses are weighted by it, where the
authors split the batch; the first stage is kept without dropout. Sampling stays at or above t', where the second stage
is defined. A NaN stops the run.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from eldistill.contract import Batch, Phase, Progress
from eldistill.diffusion import dropout, noise
from eldistill.errors import Problem
from eldistill.losses import score
from eldistill.losses.levels import check_steps, column, easy_lower, few_steps
from eldistill.numbers import number

RECIPE = ("methods/tcm", 1)
ENTRIES = 4096  # of the table of the truncated distribution


@dataclass(frozen=True)
class Numbers:
    """TCM's numbers; the defaults are the authors' for CIFAR-10, but for the first stage in the run itself."""

    first_share: float = number(
        0.5, "share of the run that trains the first stage; 0: the run starts from one (start_from: ect/none)", low=0, below=1
    )  # fmt: skip
    mu: float = number(
        0.95, "weight of the past in the running average that becomes the first stage; 0: the generator itself", low=0, below=1
    )  # fmt: skip
    border: float = number(1.0, "t': noise level below which the first stage is kept", above=0)
    boundary_share: float = number(0.25, "share of the images at t'", above=0, below=1)
    boundary_weight: float = number(0.1, "weight of the loss at t' beside that of the other levels", above=0)
    P_mean: float = number(-1.1, "first stage: mean of ln sigma (ECT)", low=-10, high=10)
    P_std: float = number(2.0, "first stage: standard deviation of ln sigma (ECT)", above=0, high=10)
    tail_mean: float = number(
        0.0, "centre of the Student distribution of ln sigma, before its truncation", low=-10, high=10
    )
    tail_scale: float = number(0.2, "scale of that distribution", above=0, high=10)
    tail_df: float = number(0.01, "its degrees of freedom; large: a normal distribution", above=0)
    q: float = number(64.0, "r = t (1 - eta(t) / q) (ECT's last stage: 256)", above=1)
    k: float = number(8.0, "eta(t) = 1 + k sigmoid(-b t) (ECT)", low=0)
    b: float = number(1.0, "see k (ECT)", above=0)
    huber_c: float | None = number(
        None, "constant of the pseudo-Huber distance; null is 0.00054 sqrt(pixels) (iCT)", above=0
    )
    sigma_max: float = number(80.0, "noise level that sampling starts from, the largest of the second stage", above=0)
    sigmas_2: tuple[float, ...] = number((80.0, 1.0), "noise levels of two-step sampling (FastGen)")
    sigmas_4: tuple[float, ...] = number((80.0, 24.4, 5.84, 1.0), "noise levels of four-step sampling (ours)")

    def __post_init__(self):
        check_steps(self, 0.0)
        if min(*self.sigmas_2, *self.sigmas_4) < self.border:
            raise Problem(
                f"params.yaml: border is {self.border:g} and the lowest noise level of sampling "
                f"{min(*self.sigmas_2, *self.sigmas_4):g} of tcm; expected levels at or above border in sigmas_2 and sigmas_4"
            )


def phases(numbers: Numbers, progress: Progress) -> list[Phase]:
    """One step of the generator, on real images."""
    return [Phase("generator", images="none")]


def generator(teacher: torch.nn.Module, start: torch.nn.Module | None, numbers: Numbers) -> torch.nn.Module:
    """The student: a copy of the teacher, or of the first stage. Raises Problem without either first stage."""
    if start is None and not numbers.first_share:
        raise Problem(
            "params.yaml: first_share is 0 of tcm, but the run starts from no consistency model; set start_from, for example to "
            "ect/none, or first_share above 0"
        )
    return score.student(teacher, start)


def networks(teacher: torch.nn.Module, numbers: Numbers, seed: int) -> dict[str, torch.nn.Module]:
    """The target, which is the first stage; where a run starts from another one it is set to that generator."""
    return {"target": score.student(teacher, None)}


def generate(nets: dict, batch: Batch, numbers: Numbers) -> torch.Tensor:
    """One-step images f(sigma_max z; sigma_max), [n, c, h, w], encoded: what a supplement sees."""
    return score.one_step(nets, batch, numbers.sigma_max)


def in_first_stage(numbers: Numbers, progress: Progress) -> bool:
    """Whether this iteration trains the first stage."""
    return progress.n_images < numbers.first_share * progress.total


def generator_terms(nets: dict, batch: Batch, images, numbers: Numbers) -> dict[str, torch.Tensor]:
    """The loss of the current stage on real images, a scalar."""
    real, labels = batch.real("label")
    epsilon = batch.draw.normal("epsilon", *batch.shape)
    first = in_first_stage(numbers, batch.progress)
    sigma, share = (first_levels if first else second_levels)(batch, numbers)
    lower = easy_lower(sigma, numbers.q, 0, numbers.k, numbers.b)
    with dropout.masks(batch.draw, "consistency"):
        ours = nets["generator"](real + column(sigma) * epsilon, sigma, labels)
    with torch.no_grad():
        level = torch.where(lower > 0, lower, torch.full_like(lower, noise.SIGMA_MIN))  # at 0 the image is the target
        below = real + column(lower) * epsilon
        with dropout.masks(batch.draw, "consistency"):
            theirs = nets["generator"](below, level, labels)
        if not first:
            theirs = torch.where(column(lower < numbers.border), nets["target"](below, level, labels), theirs)
        theirs = torch.where(column(lower > 0), theirs, real)
    return {"consistency": (share * distance(ours, theirs, numbers.huber_c) / (sigma - lower)).mean()}


def distance(a: torch.Tensor, b: torch.Tensor, c: float | None) -> torch.Tensor:
    """sqrt(|a - b|^2 + c^2) - c of images [n, c, h, w], [n]; c: None is 0.00054 sqrt(pixels)."""
    c = 0.00054 * math.sqrt(a[0].numel()) if c is None else c
    return ((a - b).square().sum(dim=(1, 2, 3)) + c**2).sqrt() - c


def first_levels(batch: Batch, numbers: Numbers) -> tuple[torch.Tensor, torch.Tensor]:
    """(sigma, weight of each image), [n] each: lognormal, with the weight 1."""
    sigma = noise.lognormal(batch.draw.normal("sigma"), numbers.P_mean, numbers.P_std)
    return sigma, torch.ones_like(sigma)


def second_levels(batch: Batch, numbers: Numbers) -> tuple[torch.Tensor, torch.Tensor]:
    """(sigma, weight of each image), [n] each: t' for a share of the images, for the others from t' to sigma_max.

    The mean of weight times loss is E_other loss + boundary_weight E_boundary loss.
    """
    draw, share = batch.draw, numbers.boundary_share
    ln_sigma = quantile(draw.uniform("sigma"), numbers)
    at_border = draw.uniform("boundary") < share
    sigma = torch.where(at_border, torch.full_like(ln_sigma, numbers.border), ln_sigma.exp())
    weights = torch.full_like(sigma, 1 / (1 - share))
    return sigma, torch.where(at_border, torch.full_like(sigma, numbers.boundary_weight / share), weights)


def quantile(u: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """ln sigma at the share u in [0, 1) of the truncated Student distribution, of u's shape and type."""
    n = numbers
    place, cumulative = _table(n.border, n.sigma_max, n.tail_mean, n.tail_scale, n.tail_df, u.device)
    above = torch.searchsorted(cumulative, u.double(), right=True).clamp(1, ENTRIES - 1)
    low, high = cumulative[above - 1], cumulative[above]
    part = (u.double() - low) / (high - low)
    return (place[above - 1] + part * (place[above] - place[above - 1])).to(u.dtype)


@functools.lru_cache(maxsize=8)
def _table(
    border: float, sigma_max: float, mean: float, scale: float, df: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    # (ln sigma, cumulative distribution), float64 [ENTRIES] each. Entries lie closer to t', where the density is large.
    low, high = math.log(border), math.log(sigma_max)
    place = low + (high - low) * torch.linspace(0, 1, ENTRIES, dtype=torch.float64) ** 2
    log_density = -(df + 1) / 2 * (((place - mean) / scale) ** 2 / df).log1p()
    cumulative = torch.cumulative_trapezoid((log_density - log_density.max()).exp(), place)
    cumulative = torch.cat([cumulative.new_zeros(1), cumulative]) / cumulative[-1]
    return place.to(device), cumulative.to(device)


@torch.no_grad()
def after_step(nets: dict, numbers: Numbers, progress: Progress) -> None:
    """While the first stage trains, the target follows the generator; then it stays."""
    if in_first_stage(numbers, progress):
        torch._foreach_lerp_(list(nets["target"].parameters()), list(nets["generator"].parameters()), 1 - numbers.mu)


def sampler(numbers: Numbers) -> dict:
    """The settings of sampling in 1, 2 or 4 steps; eldistill.sampling.generators explains the keys."""
    return {"steps": few_steps(numbers), "renoise": "whole"}


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes; encoder: the share of one that the encoder takes."""
    return 5 - numbers.first_share


def passes_of(numbers: Numbers) -> dict[str, float]:
    """Those of generator and teacher among them. The frozen generator of the first stage takes the others."""
    return {"generator": 4, "teacher": 0}
