# SPDX-License-Identifier: Apache-2.0
"""Consistency models: CD and CT (Song et al. 2023, arXiv 2303.01469), iCT (Song and Dhariwal 2023, arXiv 2310.14189),
ECT (Geng et al. 2024, arXiv 2406.14548). One loss, weight(t, r) d(f(x_t; t), sg f(x_r; r)), in four settings:

             levels t > r              x_r from            target        d            weight
    CD       neighbours of a grid      a step of teacher   an average    l1, l2       1
    CT       of a grid that grows      the data            an average    l1, l2       1
    iCT      of a grid that doubles    the data            f itself      Huber        1 / (t - r)
    ECT      t lognormal, r(t)         the data            f itself      Huber        1 / (t - r)

Symbols: their f_theta, f_theta-, D_phi are our generator, target, teacher; their t, r (t', t_n) our sigma and lower.

The boundary condition of ECT holds at sampling only, as in its authors' code. Student and target share the dropout
mask; an averaged target has dropout off. LPIPS, the distance of CD and CT, needs its weights; the authors' code on
ImageNet-64 averages where VGG-16 takes maxima (`lpips_pooling: average`).

Every student starts as a copy of the teacher. The authors' code does so for CD, for ECT, and for CT on ImageNet-64,
whose script copies the weights of the EDM teacher into the student. Departures: the authors start CT on CIFAR-10 and
iCT from random weights (and in the paper of CT also ImageNet-64), which takes hundreds of thousands of iterations and
does not use the teacher that every run here has; iCT's smaller Fourier scale of the noise level and ECT's decay of the
rate on ImageNet are not offered; dropout acts at every resolution; a NaN stops the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from eldistill.contract import Batch, Phase, Progress
from eldistill.diffusion import draws, dropout, noise
from eldistill.errors import Problem
from eldistill.losses import perceptual, score
from eldistill.losses.levels import check_steps, column
from eldistill.losses.levels import easy_lower as easy_lower
from eldistill.numbers import number

RECIPE = ("methods/consistency", 2)


@dataclass(frozen=True)
class Numbers:
    """The numbers of consistency models; the defaults are those of CD."""

    levels: str = number(
        "fixed", "fixed: neighbours of a Karras grid; growing: CT's grid; doubling: iCT's; continuous: ECT's t and r(t)",
        choices=("fixed", "growing", "doubling", "continuous"),
    )  # fmt: skip
    n: int = number(18, "fixed: entries of the grid (CD on CIFAR-10: 18, on ImageNet-64: 40)", low=2)
    first: int = number(2, "growing, doubling: s0, intervals at the start (CT: 2; iCT: 10)", low=1)
    last: int = number(150, "growing, doubling: s1, intervals at the end (CT on CIFAR-10: 150; iCT: 1280)", low=1)
    choice: str = number(
        "uniform", "distribution of the interval of the grid: uniform, or lognormal with P_mean and P_std (iCT)",
        choices=("uniform", "lognormal"),
    )  # fmt: skip
    P_mean: float = number(-1.1, "mean of ln sigma where it is lognormal (iCT, ECT)", low=-10, high=10)
    P_std: float = number(2.0, "standard deviation of ln sigma where it is lognormal (iCT, ECT)", above=0, high=10)
    q: float = number(2.0, "continuous: r = t (1 - eta(t) / q^(stage + 1)) (ECT: 2; ImageNet: 4)", above=1)
    k: float = number(8.0, "continuous: eta(t) = 1 + k sigmoid(-b t) (ECT)", low=0)
    b: float = number(1.0, "continuous: see k (ECT)", above=0)
    stage_images: int = number(0, "continuous: images after which the stage rises by one; 0: never (ECT)", low=0)
    source: str = number(
        "teacher", "source of x_r: a Heun step of the teacher, an Euler step of it, or the real image (data) with the same noise",
        choices=("teacher", "euler", "data"),
    )  # fmt: skip
    target: str = number(
        "average", "average: running average of the generator with weight mu; growing: with CT's mu; itself: the generator",
        choices=("average", "growing", "itself"),
    )  # fmt: skip
    mu: float = number(
        0.95, "average: weight of the past; growing: mu_0 (CD on ImageNet-64: 0.95; CT: 0.9)", low=0, below=1
    )
    distance: str = number(
        "huber", "l1 or l2: mean over pixels; huber: sqrt(|a - b|^2 + c^2) - c over the image; lpips",
        choices=("l1", "l2", "huber", "lpips"),
    )  # fmt: skip
    c: float | None = number(None, "huber: null is 0.00054 sqrt(pixels) (iCT); ECT has 0 (CIFAR-10) or 0.06", low=0)
    lpips: str | None = number(
        None, "lpips: safetensors file with its weights, described in eldistill/losses/perceptual.py", outside="weights"
    )
    lpips_pooling: str = number(
        "max", "lpips: between VGG's stages: max (LPIPS itself, CM on CIFAR-10) or average (CM's code on ImageNet-64)",
        choices=("max", "average"), neutral=True,
    )  # fmt: skip
    weighting: str = number(
        "one", "one; inverse: 1 / (t - r) (iCT, ECT); snr: 1 / t^2 + 1 / sigma_data^2 (ECT on ImageNet)",
        choices=("one", "inverse", "snr"),
    )  # fmt: skip
    sigma_max: float = number(80.0, "largest noise level, where sampling starts", above=0)
    sigma_min: float = number(0.002, "smallest noise level of the grid, where f is the identity", above=0)
    boundary: str = number(
        "always", "when f(x; sigma_min) = x holds: always, or in sampling only (ECT, with sigma_min 0.003)",
        choices=("always", "sampling"),
    )  # fmt: skip
    flip: bool = number(False, "mirror half of the real images (CD and CT on CIFAR-10)")
    targets: str = number(
        "needed", "needed: on a CPU skip the target pass for images with r = 0, whose target is the data; all: compute it (the authors)",
        choices=("needed", "all"),
    )  # fmt: skip
    sigmas_2: tuple[float, ...] = number((80.0, 0.821), "noise levels of two-step sampling (ECT; CD: 1.3824)")
    sigmas_4: tuple[float, ...] = number((80.0, 24.4, 5.84, 0.821), "noise levels of four-step sampling (ours)")
    renoise: str = number(
        "boundary", "noise added between steps. boundary: sqrt(sigma^2 - sigma_min^2), after clipping (CM); whole: sigma (ECT)",
        choices=("boundary", "whole"),
    )  # fmt: skip

    def __post_init__(self):
        check_steps(self, self.sigma_min)
        if self.lpips is not None and self.distance != "lpips":
            raise Problem(
                f"params.yaml: lpips names a file of weights, but distance is {self.distance}; set distance to lpips, or lpips to null"
            )
        if self.sigma_min >= self.sigma_max or self.first > self.last:
            raise Problem(
                f"params.yaml: sigma_min {self.sigma_min} and sigma_max {self.sigma_max}, first {self.first} and last {self.last}; "
                "expected the former of each pair below the latter"
            )


def phases(numbers: Numbers, progress: Progress) -> list[Phase]:
    """One step of the generator, on real images."""
    return [Phase("generator", images="none")]


def generator(teacher: torch.nn.Module, start: torch.nn.Module | None, numbers: Numbers) -> torch.nn.Module:
    """The student: the same network under the consistency model's scalings."""
    student = score.student(teacher, start)
    student.boundary = numbers.sigma_min if numbers.boundary == "always" else 0.0
    return student


def networks(teacher: torch.nn.Module, numbers: Numbers, seed: int) -> dict[str, torch.nn.Module]:
    """The target, if it is not the generator itself."""
    return {} if numbers.target == "itself" else {"target": generator(teacher, None, numbers)}


def generate(nets: dict, batch: Batch, numbers: Numbers) -> torch.Tensor:
    """One-step images f(sigma_max z; sigma_max), [n, c, h, w], encoded: what a supplement sees."""
    return score.one_step(nets, batch, numbers.sigma_max)


def generator_terms(nets: dict, batch: Batch, images, numbers: Numbers) -> dict[str, torch.Tensor]:
    """The consistency loss on real images under one noise at two levels."""
    real, labels = batch.real("label")
    if numbers.flip:
        mirrored = (batch.draw.uniform("flip") < 0.5).reshape(-1, 1, 1, 1)
        real = torch.where(mirrored, real.flip(3), real)
    epsilon = batch.draw.normal("epsilon", *batch.shape)
    sigma, lower = LEVELS[numbers.levels](batch, numbers)
    noisy = real + column(sigma) * epsilon
    with dropout.masks(batch.draw, "consistency"):
        ours = nets["generator"](noisy, sigma, labels)
    with torch.no_grad():
        # A new context draws the same masks: the target uses the dropout masks of the student.
        with dropout.masks(batch.draw, "consistency"):
            theirs = targets(nets, real, noisy, epsilon, sigma, lower, labels, numbers)
    loss = distance(ours, theirs, numbers, batch.reals.codec) * WEIGHTS[numbers.weighting](
        sigma, lower, nets["generator"].sigma_data
    )
    return {"consistency": loss.mean()}


def targets(nets: dict, real, noisy, epsilon, sigma, lower, labels, numbers: Numbers) -> torch.Tensor:
    """f-(x_r; r), [n, c, h, w]; the data where r = 0."""
    target = nets.get("target", nets["generator"])
    below = SOURCES[numbers.source](nets["teacher"], real, noisy, epsilon, sigma, lower, labels)
    if numbers.levels != "continuous":  # all levels of a grid are above 0
        return target(below, lower, labels)
    needed = lower > 0
    # Selecting rows would wait for a GPU, so there the target of all images is computed.
    unknown = draws.computed_on(lower.device)
    if unknown or (numbers.targets == "all" and needed.any()):
        level = torch.where(needed, lower, torch.full_like(lower, noise.SIGMA_MIN))
        return torch.where(column(needed), target(below, level, labels), real)
    found = real.clone()
    if needed.any():
        rows = None if labels is None else labels[needed]
        with dropout.rows(needed):
            found[needed] = target(below[needed], lower[needed], rows)
    return found


# --- x_r: what the target sees ---


def heun_step(denoiser, x: torch.Tensor, sigma, lower, labels, second: bool = True) -> torch.Tensor:
    """x at `lower` from x at `sigma` along the probability flow: Heun's step, or Euler's without `second`."""
    slope = (x - denoiser(x, sigma, labels)) / column(sigma)
    euler = x + column(lower - sigma) * slope
    if not second:
        return euler
    return x + column(lower - sigma) * (slope + (euler - denoiser(euler, lower, labels)) / column(lower)) / 2


SOURCES = {
    "teacher": lambda teacher, real, noisy, epsilon, t, r, labels: heun_step(teacher, noisy, t, r, labels),
    "euler": lambda teacher, real, noisy, epsilon, t, r, labels: heun_step(teacher, noisy, t, r, labels, False),
    "data": lambda teacher, real, noisy, epsilon, t, r, labels: real + column(r) * epsilon,
}


# --- the two levels ---


def _neighbours(batch: Batch, numbers: Numbers, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    grid = draws.sent(noise.karras_sigmas(n, numbers.sigma_min, numbers.sigma_max), batch.draw.device)
    if numbers.choice == "uniform":
        index = batch.draw.integers("sigma", n - 1)
    else:
        cumulative = interval_probabilities(grid, numbers.P_mean, numbers.P_std).cumsum(0)
        index = torch.searchsorted(cumulative, batch.draw.uniform("sigma").double() * cumulative[-1], right=True)
        index = index.clamp_max(n - 2)
    return grid[index].to(batch.draw.dtype), grid[index + 1].to(batch.draw.dtype)


def _continuous(batch: Batch, numbers: Numbers) -> tuple[torch.Tensor, torch.Tensor]:
    t = noise.lognormal(batch.draw.normal("sigma"), numbers.P_mean, numbers.P_std)
    stage = batch.progress.n_images // numbers.stage_images if numbers.stage_images else 0
    stage = min(
        stage, max(0, int(18 / math.log2(numbers.q)) - 1)
    )  # in later stages t - r would be lost in float32 rounding
    return t, easy_lower(t, numbers.q, stage, numbers.k, numbers.b)


LEVELS = {
    "fixed": lambda batch, numbers: _neighbours(batch, numbers, numbers.n),
    "growing": lambda batch, numbers: _neighbours(batch, numbers, growing(batch.progress, numbers)),
    "doubling": lambda batch, numbers: _neighbours(batch, numbers, doubling(batch.progress, numbers)),
    "continuous": _continuous,
}


def growing(progress: Progress, numbers: Numbers) -> int:
    """Entries of CT's grid: ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 (CM, appendix C)."""
    share = progress.n_images / progress.total
    return math.ceil(math.sqrt(share * ((numbers.last + 1) ** 2 - numbers.first**2) + numbers.first**2) - 1) + 1


def doubling(progress: Progress, numbers: Numbers) -> int:
    """Entries of iCT's grid: min(s0 2^floor(k / K'), s1) + 1, K' = floor(K / (log2 floor(s1 / s0) + 1)) (iCT, eq.

    10).
    """
    stages = math.log2(max(1, numbers.last // numbers.first)) + 1  # not an integer unless s1 / s0 is a power of 2
    stage = int(progress.n_images // max(1, progress.total // stages))
    return min(numbers.first * 2**stage, numbers.last) + 1


def interval_probabilities(grid: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """Lognormal probability of each interval of a descending grid [n], not normalised; float64 [n - 1] (iCT)."""
    place = torch.erf((grid.double().log() - mean) / (math.sqrt(2) * std))
    return place[:-1] - place[1:]


# --- distance and weight ---


def distance(a: torch.Tensor, b: torch.Tensor, numbers: Numbers, codec: dict | None = None) -> torch.Tensor:
    """d(a, b) [n] of encoded images [n, c, h, w]; lpips needs their codec. Raises Problem without its weights."""
    if numbers.distance == "lpips":
        if numbers.lpips is None:
            raise Problem("params.yaml: distance is lpips; give `lpips`, the file with its weights, or take huber")
        weights = perceptual.load_lpips(numbers.lpips, a.device, a.dtype)
        return perceptual.lpips(weights, a, b, codec, numbers.lpips_pooling)
    if numbers.distance == "l1":
        return (a - b).abs().mean(dim=(1, 2, 3))
    square = (a - b).square()
    if numbers.distance == "l2":
        return square.mean(dim=(1, 2, 3))
    c = 0.00054 * math.sqrt(a[0].numel()) if numbers.c is None else numbers.c
    # The derivative of the root at zero is infinite; the smallest positive number makes it finite for equal images.
    return (square.sum(dim=(1, 2, 3)) + max(c**2, torch.finfo(a.dtype).tiny)).sqrt() - c


WEIGHTS = {
    "one": lambda t, r, sigma_data: torch.ones_like(t),
    "inverse": lambda t, r, sigma_data: 1 / (t - r),
    "snr": lambda t, r, sigma_data: noise.edm_weight(t, sigma_data),
}


# --- the target ---


def growing_mu(progress: Progress, numbers: Numbers) -> float:
    """CT's mu = exp(s0 ln mu_0 / (N - 1)), N the entries of its grid (the authors' code; their paper has N)."""
    return math.exp(numbers.first * math.log(numbers.mu) / (growing(progress, numbers) - 1))


@torch.no_grad()
def after_step(nets: dict, numbers: Numbers, progress: Progress) -> None:
    """Update the target's running average of the generator."""
    if "target" in nets:
        mu = growing_mu(progress, numbers) if numbers.target == "growing" else numbers.mu
        torch._foreach_lerp_(list(nets["target"].parameters()), list(nets["generator"].parameters()), 1 - mu)


def sampler(numbers: Numbers) -> dict:
    """The settings of sampling in 1, 2 or 4 steps; eldistill.sampling.generators explains the keys."""
    few = {"1": [numbers.sigma_max], "2": list(numbers.sigmas_2), "4": list(numbers.sigmas_4)}
    return {
        "steps": few,
        "boundary": numbers.sigma_min,
        "renoise": numbers.renoise,
        "clip": numbers.renoise == "boundary",
    }


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes; encoder: the share of one that the encoder takes."""
    return 4 + {"teacher": 2, "euler": 1, "data": 0}[numbers.source]


def passes_of(numbers: Numbers) -> dict[str, float]:
    """Those of generator and teacher among them."""
    teacher = {"teacher": 2, "euler": 1, "data": 0}[numbers.source]
    return {"generator": 3 + (numbers.target == "itself"), "teacher": teacher}
