# SPDX-License-Identifier: Apache-2.0
"""sCM, continuous-time consistency models (Lu and Song 2024, arXiv 2410.11081): sCD with a teacher, sCT without.

Symbols: their f_theta and F_pretrain are our generator and teacher; their sigma_d is sigma_data. Their TrigFlow has
x_t = cos(t) x_0 + sin(t) z, t in [0, pi / 2], z of deviation sigma_d, and f(x_t, t) = cos(t) x_t - sin(t) sigma_d F. Ours is

    y = x_t / cos(t) = x_0 + sigma n,    sigma = sigma_d tan(t),    f(x_t, t) = D(y; sigma),    F = (cos(t)^2 y - D) / (sigma_d sin(t))

EDM's preconditioning is that of TrigFlow with c_noise = ln(sigma_d tan(t)) / 4, so every teacher here can be the start as it
is, f = D is the identity at t = 0, and -F is the output of its network.

f is constant along the flow where cos(t) df/dt = 0, whose two parts (A and B in the code) are

    A = -cos(t)^2 (sigma_d F - dx_t/dt),    B = -cos(t) sin(t) (x_t + sigma_d dF/dt)

With d/dsigma along dy/dsigma = (y - x) / sigma their sum is sqrt(sigma^2 + sigma_d^2) dD/dsigma, one derivative in forward mode,
and A = cos(t)^2 (D - x) / sin(t). x is the teacher's image at y (sCD) or the real image (sCT). The loss is

    e^w / N |F - sg(F + g)|^2 - w,    g = A + r B, divided by |g| + c,

with r rising from 0 to 1, N entries of an image, |g| the root of their sum of squares, and w(t) a layer of its own, which
learns the logarithm of the weight that makes all noise levels count alike. Its best value is ln N + 2 ln(1 + c / |g|) of g
before the division. It is ln N at first. From 0 it would rise by ln N in the run, and with e^w the gradient, faster than
the second moment of Adam follows: on digits the steps became too long and the generator was lost again.

Departures: w starts at ln N and learns in steps of its own, on other images, by the optimiser of section `critic`; the
authors train it with the generator. c_noise is EDM's and not t, and adaptive double normalisation is not offered: both would
make the start another network than the teacher. Their dropout acts in F and its derivative alike, as here. A NaN stops the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from eldistill.contract import Batch, Phase, Progress
from eldistill.diffusion import dropout, noise
from eldistill.losses import score, tangent
from eldistill.losses.levels import check_steps, column, few_steps
from eldistill.losses.score import generator as generator
from eldistill.networks.interval import Cosines
from eldistill.numbers import number

RECIPE = ("methods/scm", 2)  # the weight starts at ln N
CRITICS = ("weighting",)  # the networks that critic_terms trains
COSINES = 16  # of the layer of w


@dataclass(frozen=True)
class Numbers:
    """sCM's numbers; the defaults are those of sCD on CIFAR-10."""

    source: str = number(
        "teacher", "image that the path points away from: the teacher's at the noisy image (sCD), or the real one (sCT: data)",
        choices=("teacher", "data"),
    )  # fmt: skip
    P_mean: float = number(-1.0, "mean of ln sigma (sCM on ImageNet-512: -0.8)", low=-10, high=10)
    P_std: float = number(1.4, "standard deviation of ln sigma (sCM on ImageNet: 1.6)", above=0, high=10)
    tangent_images: int = number(
        0, "images over which the part of the derivative of F rises from 0 to 1 (the authors: 10,000 iterations)", low=0
    )
    tangent_c: float = number(0.1, "constant beside the norm that the derivative is divided by (sCM)", above=0)
    adaptive: bool = number(True, "learn the weight of each noise level; false: all have the weight 1")
    weight_every: int = number(1, "adaptive: iterations between steps of the weight (the authors: 1)", low=1)
    sigma_max: float = number(80.0, "noise level that sampling starts from", above=0)
    sigmas_2: tuple[float, ...] = number((80.0, 0.982), "noise levels of two-step sampling (sCM: t = 1.1)")
    sigmas_4: tuple[float, ...] = number((80.0, 7.0, 0.982, 0.3), "noise levels of four-step sampling (ours)")

    def __post_init__(self):
        check_steps(self, 0.0)


class Weighting(nn.Module):
    """w - ln N of noise levels: sigma [n] -> [n], a sum of cosines of t = arctan(sigma / sigma_data); 0 at first."""

    def __init__(self, sigma_data: float):
        super().__init__()
        self.sigma_data, self.cosines = sigma_data, Cosines(1, COSINES)

    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        return self.cosines((sigma / self.sigma_data).arctan() * (2 / math.pi)).squeeze(1)


def phases(numbers: Numbers, progress: Progress) -> list[Phase]:
    """One step of the generator on real images, then one of the weight."""
    own = [Phase("weighting", every=numbers.weight_every, images="none")] if numbers.adaptive else []
    return [Phase("generator", images="none"), *own]


def networks(teacher: nn.Module, numbers: Numbers, seed: int) -> dict[str, nn.Module]:
    """The layer of w, if it is learned."""
    made = Weighting(teacher.sigma_data).to(next(teacher.parameters()))
    return {"weighting": made.requires_grad_(True)} if numbers.adaptive else {}


def generate(nets: dict, batch: Batch, numbers: Numbers) -> torch.Tensor:
    """One-step images f(sigma_max z; sigma_max), [n, c, h, w], encoded: what a supplement sees."""
    return score.one_step(nets, batch, numbers.sigma_max)


def generator_terms(nets: dict, batch: Batch, images, numbers: Numbers) -> dict[str, torch.Tensor]:
    """The consistency loss on real images, a scalar. Its value is that of the normalised derivative g."""
    net, (noisy, sigma, labels, origin) = nets["generator"], path(nets, batch, numbers)
    g = direction(net, batch, noisy, sigma, labels, origin, numbers)
    with dropout.masks(batch.draw, "consistency"):
        ours = trig_output(noisy, net(noisy, sigma, labels), sigma, net.sigma_data)
    return {"consistency": weighed(ours - (ours.detach() + g), sigma, nets, held=True)}


def critic_terms(nets: dict, batch: Batch, images: torch.Tensor | None, numbers: Numbers) -> dict[str, torch.Tensor]:
    """The same loss as a function of w alone."""
    noisy, sigma, labels, origin = path(nets, batch, numbers)
    g = direction(nets["generator"], batch, noisy, sigma, labels, origin, numbers)
    return {"consistency": weighed(g, sigma, nets, held=False)}


def path(nets: dict, batch: Batch, numbers: Numbers) -> tuple:
    """(noisy y [n, c, h, w], sigma [n], labels, x [n, c, h, w]): noisy real images, and what the path points away from."""
    real, labels = batch.real("label")
    sigma = noise.lognormal(batch.draw.normal("sigma"), numbers.P_mean, numbers.P_std)
    noisy = real + column(sigma) * batch.draw.normal("epsilon", *batch.shape)
    return noisy, sigma, labels, nets["teacher"](noisy, sigma, labels) if numbers.source == "teacher" else real


def direction(net, batch: Batch, noisy, sigma, labels, origin, numbers: Numbers) -> torch.Tensor:
    """g [n, c, h, w] of a generator, normalised, without a graph."""

    def f(y: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        with dropout.masks(batch.draw, "consistency"):
            found: torch.Tensor = net(y, level, labels)
            return found

    whole = (column(sigma) ** 2 + net.sigma_data**2).sqrt()  # sigma_data / cos(t)
    along = whole * (noisy - origin) / column(sigma), whole.flatten()
    value, change = tangent.jvp([net], f, (noisy, sigma), along)
    cos, sin = net.sigma_data / whole, column(sigma) / whole
    first = cos**2 / sin * (value - origin)  # A; `change` is A + B
    rise = min(1.0, batch.progress.n_images / numbers.tangent_images) if numbers.tangent_images else 1.0
    g = first + rise * (change - first)
    return g / (g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) + numbers.tangent_c)


def trig_output(noisy: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """TrigFlow's F [n, c, h, w] of D(y; sigma), y [n, c, h, w] at sigma [n]."""
    whole = (column(sigma) ** 2 + sigma_data**2).sqrt()
    return ((sigma_data / whole) ** 2 * noisy - denoised) / (sigma_data * column(sigma) / whole)


def weighed(error: torch.Tensor, sigma: torch.Tensor, nets: dict, held: bool) -> torch.Tensor:
    """The mean of e^w / N |error|^2 - w, a scalar; error [n, c, h, w], sigma [n]. held: w without a gradient. w is 0 without
    a layer of its own."""
    square = error.square().mean(dim=(1, 2, 3))
    if "weighting" not in nets:
        return square.mean()
    w = math.log(error[0].numel()) + nets["weighting"](sigma)
    w = w.detach() if held else w
    return (w.exp() * square - w).mean()


def sampler(numbers: Numbers) -> dict:
    """The settings of sampling in 1, 2 or 4 steps; eldistill.sampling.generators explains the keys."""
    return {"steps": few_steps(numbers), "renoise": "whole"}


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes; encoder: the share of one that the encoder takes."""
    change = tangent.PASSES + (numbers.source == "teacher")
    return 3 + change + (change / numbers.weight_every if numbers.adaptive else 0)


def passes_of(numbers: Numbers) -> dict[str, float]:
    """Those of generator and teacher among them."""
    teacher = (numbers.source == "teacher") * (1 + (1 / numbers.weight_every if numbers.adaptive else 0))
    return {"generator": passes(numbers, 0) - teacher, "teacher": teacher}
