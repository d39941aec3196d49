# SPDX-License-Identifier: Apache-2.0
"""MeanFlow (Geng et al. 2025, arXiv 2505.13447), started at the teacher.

Symbols: their u_theta, v, (r, t) and e are our generator, the slope of the path, (lower, sigma) and n. Their linear path
z_t = (1 - t) x + t e, t in [0, 1], e of deviation 1, is EDM's with

    y = z_t / (1 - t) = x + sigma n,    sigma = t / (1 - t),    r = lower / (1 + lower)

u(z_t, r, t) is the mean velocity from t down to r. It is kept as the image D = z_t - t u, so that

    at r = t    u is the velocity and D the denoised image: the generator starts as the teacher, for every r
    at r = 0    D is the end of the flow: D(y; sigma) without a second level is an image, as for other methods

and a step to r, z_r = z_t - (t - r) u, is y_r = D + lower / sigma (y - D). The second level is a layer of
networks/interval.py, zero at first; the authors embed t and t - r. The loss is

    |u - sg(v - (t - r) du/dt)|^2 / (|…|^2 + c)^p,    du/dt along (dz/dt, dr/dt, dt/dt) = (v, 0, 1),

the sum over an image, its denominator held, and du/dt one derivative in forward mode. v is e - x, or (z_t - D_phi) / t of
the teacher (`source: teacher`), with which MeanFlow becomes a distillation (as in FastGen). Where r = t, for the share
1 - `unequal` of the images, this is flow matching.

t and r are logit-normal, so that sigma and lower are lognormal with the same two numbers. Departures: the authors start at
random weights; guidance inside the loss is not offered; sampling starts at t = sigma_max / (1 + sigma_max) instead of 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eldistill.contract import Batch, Phase, Progress
from eldistill.diffusion import dropout, noise
from eldistill.losses import score, tangent
from eldistill.losses.levels import check_steps, column, few_steps
from eldistill.networks import interval
from eldistill.numbers import number

RECIPE = ("methods/mean_flow", 2)  # supplements are compared at the output layer, not at the one of the second level


@dataclass(frozen=True)
class Numbers:
    """MeanFlow's numbers; the defaults are those of the paper for CIFAR-10."""

    source: str = number(
        "data", "velocity of the path: of the real image and its noise (data: MeanFlow), or of the teacher (a distillation)",
        choices=("data", "teacher"),
    )  # fmt: skip
    P_mean: float = number(-2.0, "mean of ln sigma, which is logit t (ImageNet: -0.4)", low=-10, high=10)
    P_std: float = number(2.0, "standard deviation of ln sigma (ImageNet: 1.0)", above=0, high=10)
    unequal: float = number(0.75, "share of images whose two levels differ (ImageNet: 0.25)", low=0, high=1)
    power: float = number(
        0.75, "p: power of the squared error that the loss is divided by (ImageNet: 1)", low=0, high=2
    )
    power_c: float = number(1e-3, "c: constant beside the squared error", above=0)
    cosines: int = number(16, "width of the second level's input, in cosines", low=1, high=1024)
    sigma_max: float = number(80.0, "noise level that sampling starts from, t = sigma_max / (1 + sigma_max)", above=0)
    sigmas_2: tuple[float, ...] = number((80.0, 1.0), "noise levels of two-step sampling (t = 0.5)")
    sigmas_4: tuple[float, ...] = number(
        (80.0, 3.0, 1.0, 0.333), "noise levels of four-step sampling (t = 0.75, 0.5, 0.25)"
    )

    def __post_init__(self):
        check_steps(self, 0.0)


def phases(numbers: Numbers, progress: Progress) -> list[Phase]:
    """One step of the generator, on real images."""
    return [Phase("generator", images="none")]


def generator(teacher: torch.nn.Module, start: torch.nn.Module | None, numbers: Numbers) -> torch.nn.Module:
    """The student: the same network with a second noise level, which has no effect at first."""
    return interval.attach(score.student(teacher, start), numbers.cosines)


def networks(teacher: torch.nn.Module, numbers: Numbers, seed: int) -> dict[str, torch.nn.Module]:
    """None beside the generator."""
    return {}


def generate(nets: dict, batch: Batch, numbers: Numbers) -> torch.Tensor:
    """One-step images D(sigma_max z; sigma_max, 0), [n, c, h, w], encoded: what a supplement sees."""
    return score.one_step(nets, batch, numbers.sigma_max)


def generator_terms(nets: dict, batch: Batch, images, numbers: Numbers) -> dict[str, torch.Tensor]:
    """The loss of the mean velocity on real images, a scalar; its value is near 1 where p is 1."""
    real, labels = batch.real("label")
    sigma, lower = levels(batch, numbers)
    epsilon = batch.draw.normal("epsilon", *batch.shape)
    t, r = sigma / (1 + sigma), lower / (1 + lower)
    z = column(1 - t) * real + column(t) * epsilon
    net = nets["generator"]

    def u(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with dropout.masks(batch.draw, "mean_flow"), interval.until(lower):
            return velocity(net, z, t, labels)

    v = velocity(nets["teacher"], z, t, labels) if numbers.source == "teacher" else epsilon - real
    _, change = tangent.jvp([net], u, (z, t), (v, torch.ones_like(t)))
    error = (u(z, t) - (v - column(t - r) * change)).square().sum(dim=(1, 2, 3))
    return {"mean_flow": (error / (error.detach() + numbers.power_c) ** numbers.power).mean()}


def levels(batch: Batch, numbers: Numbers) -> tuple[torch.Tensor, torch.Tensor]:
    """(sigma, lower), [n] each: two lognormal levels, the larger first, equal for the share 1 - unequal of the images."""
    both = [noise.lognormal(batch.draw.normal(name), numbers.P_mean, numbers.P_std) for name in ("sigma", "lower")]
    sigma = torch.maximum(*both)
    unequal = batch.draw.uniform("unequal") < numbers.unequal
    return sigma, torch.where(unequal, torch.minimum(*both), sigma)


def velocity(net, z: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """(z_t - D) / t, [n, c, h, w], with D of a denoiser at y = z_t / (1 - t); z [n, c, h, w], t [n] in (0, 1)."""
    found: torch.Tensor = (z - net(z / column(1 - t), t / (1 - t), labels)) / column(t)
    return found


def sampler(numbers: Numbers) -> dict:
    """The settings of sampling in 1, 2 or 4 steps along the flow; eldistill.sampling.generators explains the keys."""
    return {"steps": few_steps(numbers), "renoise": "none"}


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes; encoder: the share of one that the encoder takes."""
    return 3 + tangent.PASSES + (numbers.source == "teacher")


def passes_of(numbers: Numbers) -> dict[str, float]:
    """Those of generator and teacher among them."""
    return {"generator": 3 + tangent.PASSES, "teacher": int(numbers.source == "teacher")}
