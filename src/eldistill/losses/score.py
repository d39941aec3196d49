# SPDX-License-Identifier: Apache-2.0
"""The common part of all methods with a fake_score: student, images, phases, and three formulas.

Symbols: D_phi is the teacher, D_psi the fake_score, x an image of the generator, x_t = x + sigma n.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from eldistill.contract import AtImages, Batch, Denoiser, Nets, Phase
from eldistill.diffusion import augment, noise
from eldistill.errors import Problem

RECIPE = ("score", 1)
Pass = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]  # a pass of a denoiser through noisy images [n, c, h, w]


def student(teacher: Denoiser, start: Denoiser | None) -> Denoiser:
    """The generator before training: a copy of the teacher, or of `start`, the generator of another run."""
    made = copy.deepcopy(teacher if start is None else start)
    made.boundary = 0.0  # `start` may be a consistency model
    return made


# --- functions of the contract, for methods that need no others ---


def generator(teacher: Denoiser, start: Denoiser | None, numbers: Any) -> Denoiser:
    """The student before training."""
    return student(teacher, start)


def networks(teacher: Denoiser, numbers: Any, seed: int) -> Nets:
    """The extra network: fake_score, a copy of the teacher. Raises Problem if the teacher lacks what `numbers` need."""
    if getattr(numbers, "uncertainty", False) and not hasattr(teacher, "logvar"):
        raise Problem(
            "params.yaml: uncertainty is true, but the teacher's network does not estimate its uncertainty (only edm2 does); set it to "
            "false"
        )
    layers = list(teacher.modules())
    if getattr(numbers, "normalise", "all") != "all" and not any(hasattr(each, "normalise_weight") for each in layers):
        raise Problem(
            f"params.yaml: normalise is {numbers.normalise}, but the teacher's network has no weights that are normalised; only "
            "edm2 does: set it to all"
        )
    if getattr(numbers, "augment", 0) and teacher.augment_dim != 9:
        raise Problem(
            f"params.yaml: augment is {numbers.augment}, but the teacher knows no augmentation labels; "
            "set augment to 0 or train the teacher with augment above 0"
        )
    return {"fake_score": copy.deepcopy(teacher)}


def generate(nets: Nets, batch: Batch, numbers: Any) -> torch.Tensor:
    """One-step images from numbers.sigma_init, [n, c, h, w], encoded."""
    return one_step(nets, batch, numbers.sigma_init)


def sampler(numbers: Any) -> dict[str, Any]:
    """The noise levels of sampling: one step from numbers.sigma_init."""
    return {"steps": {"1": [numbers.sigma_init]}}


# --- parts of the methods ---


def check_grid(low: float, high: float, method: str) -> None:
    """Raises Problem unless the lowest entry of the grid of noise levels, as a share of it, is below the highest."""
    if low >= high:
        raise Problem(f"params.yaml: low is {low} and high {high} of {method}; expected low below high")


def phases(images: str, every: int = 1, generator_first: bool = False) -> list[Phase]:
    """One step of fake_score an iteration, one of the generator every `every` iterations.

    images: `fresh`: each phase makes its own, fake_score first unless generator_first says otherwise. `reuse`: the
    generator steps first and fake_score learns from the images of that step: one generator pass less, but the images
    are those of the generator before its step, so fake_score is one step staler than with `fresh`, and they were made
    with the generator's dropout on. With networks held fixed and no dropout fake_score's expected gradient is the same.
    At the very first step fake_score still equals the teacher: DI's, DMD's and SiD's gradient is then zero.
    """
    fake, own = Phase("fake_score", generator_mode="eval"), Phase("generator", every=every)
    if images == "reuse":
        # In an iteration without a generator step there are no images to reuse, and fake_score makes new ones.
        return [own, Phase("fake_score", images="reuse", labels="same", generator_mode="eval")]
    return [own, fake] if generator_first else [fake, own]


def one_step(nets: Nets, batch: Batch, sigma_init: float) -> torch.Tensor:
    """Images D_theta(sigma_init z; sigma_init), [n, c, h, w], encoded."""
    z = batch.draw.normal("z", *batch.shape)
    return nets["generator"](sigma_init * z, z.new_full((batch.size,), sigma_init), batch.labels)


def augmented(
    batch: Batch, images: torch.Tensor, probability: float, purpose: str = "augment"
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images after EDM's augmentation pipe and its labels [n, 9]; unchanged and None at probability 0."""
    if not probability:
        return images, None
    return augment.edm_apply(images, augment.edm_parameters(batch.draw.under(purpose).on("cpu"), probability))


def denoising(
    net: Denoiser, batch: Batch, images: torch.Tensor, mean: float, std: float, augmentation: float = 0.0,
    uncertainty: bool = False,
) -> torch.Tensor:  # fmt: skip
    """EDM's loss of fake_score on generated images: sum over pixels, mean over images; ln sigma ~ N(mean, std^2).

    uncertainty: divided by e^u and u added, u(sigma) being the network's own estimate (EDM2, section 2.1).
    """
    images, labels = augmented(batch, images, augmentation)
    sigma = noise.lognormal(batch.draw.normal("sigma"), mean, std)
    epsilon = batch.draw.normal("epsilon", *batch.shape)
    loss = noise.denoising_loss(net, images, batch.labels, sigma, epsilon, labels)
    if uncertainty:
        u = net.logvar(sigma)
        loss = loss / u.exp() + u
    return loss.sum(dim=(1, 2, 3)).mean()


# --- distribution matching (Yin et al. 2024, arXiv 2311.18828, eq. 7 and 8) ---


def matching(nets: Nets, batch: Batch, images: torch.Tensor, bins: int, low: float, high: float) -> AtImages:
    """g = (D_psi(x_t) - D_phi(x_t)) / mean |x - D_phi(x_t)| at a noise level of the Karras grid of `bins` entries."""
    sigma = grid_sigma(batch, "matching/sigma", bins, round(low * bins), round(high * bins))
    noisy = images + sigma.reshape(-1, 1, 1, 1) * batch.draw.normal("matching/epsilon", *batch.shape)
    real = nets["teacher"](noisy, sigma, batch.labels)
    return matching_term(nets["fake_score"](noisy, sigma, batch.labels), real, images)


def matching_term(fake: torch.Tensor, real: torch.Tensor, images: torch.Tensor) -> AtImages:
    """Value mean(g^2) / 2 and gradient g / (n c h w) of the squared distance between x and sg[x - g]."""
    weight = (images - real).abs().mean(dim=(1, 2, 3), keepdim=True)
    g = (fake - real) / weight.clamp_min(torch.finfo(weight.dtype).tiny)  # 0 / 0 becomes 0: no direction
    return AtImages(g.square().mean() / 2, g / g.numel())


def grid_sigma(batch: Batch, purpose: str, bins: int, low: int = 0, high: int | None = None) -> torch.Tensor:
    """sigma [n] uniform over the entries low ... high (included) of the ascending Karras grid of `bins` levels."""
    grid = _grid(bins, batch.draw.device, batch.draw.dtype)
    high = bins - 1 if high is None else min(high, bins - 1)
    return grid[low + batch.draw.integers(purpose, high - low + 1)]


@functools.cache
def _grid(bins: int, device: str | torch.device, dtype: torch.dtype) -> torch.Tensor:
    # Cached, so that the grid is copied to the device only once.
    return noise.karras_sigmas(bins).flip(0).to(device=device, dtype=dtype)


def matching_denoising(net: Denoiser, batch: Batch, images: torch.Tensor, bins: int) -> torch.Tensor:
    """Mean over images and pixels of (sigma^-2 + sigma_data^-2) (D_psi(x_t) - x)^2, sigma uniform over the grid."""
    sigma = grid_sigma(batch, "sigma", bins)
    epsilon = batch.draw.normal("epsilon", *batch.shape)
    return noise.denoising_loss(net, images, batch.labels, sigma, epsilon).mean()


# --- score identity (Zhou et al. 2024, arXiv 2404.04057) ---


def identity_loss(
    x: torch.Tensor, real: torch.Tensor, fake: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss [n, c, h, w], w [n, 1, 1, 1]): Delta ((D_phi - x) - alpha Delta) / w, Delta = D_phi - D_psi.

    w = max(mean |x - D_phi|, 1e-5), without gradient. The loss is signed: zero at the optimum for alpha 1,
    negative for alpha above 1; its value is no measure of progress.
    """
    weight = (x - real).detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-5)
    difference = real - fake
    return difference * ((real - x) - alpha * difference) / weight, weight


def identity_sigma(batch: Batch, t_max: float) -> torch.Tensor:
    """sigma [n] uniform in the rho-warped coordinate, from sigma_min up to its share t_max."""
    return noise.warped_sigma(batch.draw.uniform("sigma") * t_max)


def identity_pull(
    loss: Callable[..., tuple[torch.Tensor, ...]],
    nets: Nets,
    batch: Batch,
    images: torch.Tensor,
    numbers: Any,
    fake: Any,
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """`pull` at x_t = x + sigma n of SiD's noise levels, with an estimate of the uncertainty of fake_score.

    loss(u, x, D_phi(x_t), *fake(x_t, sigma, labels)) -> (scalar, ...); u [n, 1, 1, 1] is 0 without
    `numbers.uncertainty`. numbers: those of SiD or SiDA (t_max, uncertainty, sequential). fake: a function of
    fake_score.
    """
    labels, sigma = batch.labels, identity_sigma(batch, numbers.t_max)
    shift = sigma.reshape(-1, 1, 1, 1) * batch.draw.normal("epsilon", *batch.shape)
    fake_score: Denoiser = nets["fake_score"]
    u = fake_score.logvar(sigma).detach() if numbers.uncertainty else torch.zeros_like(shift[:, :1, :1, :1])

    def real_pass(noisy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (nets["teacher"](noisy, sigma, labels),)

    def fake_pass(noisy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = fake(noisy, sigma, labels)
        return found if isinstance(found, tuple) else (found,)

    return pull(functools.partial(loss, u), real_pass, fake_pass, images, shift, numbers.sequential)


@torch.enable_grad()
def pull(
    loss: Callable[..., tuple[torch.Tensor, ...]], real: Pass, fake: Pass, images: torch.Tensor, shift: torch.Tensor,
    sequential: bool,
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:  # fmt: skip
    """(what loss returns, the gradient of its first element at `images`): through x, D_phi(x_t) and D_psi(x_t).

    loss(x, *real(x + shift), *fake(x + shift)) -> (scalar, ...). sequential: one denoiser's graph is held at a time,
    at the price of a second forward pass of `real`; the same gradient up to rounding.
    """
    x = images.detach().requires_grad_()
    if not sequential:
        found = loss(x, *real(x + shift), *fake(x + shift))
        return found, torch.autograd.grad(found[0], x)[0]
    with torch.no_grad():
        a = tuple(each.detach().requires_grad_() for each in real(images + shift))
    noisy = (images + shift).detach().requires_grad_()
    outputs = fake(noisy)
    b = tuple(each.detach().requires_grad_() for each in outputs)
    found = loss(x, *a, *b)
    direct, *slopes = torch.autograd.grad(found[0], (x, *a, *b), allow_unused=True)
    total = _vjp(outputs, noisy, slopes[len(a) :])
    del outputs
    again = noisy.detach().requires_grad_()
    return found, direct + total + _vjp(real(again), again, slopes[: len(a)])


def _vjp(outputs: Sequence[torch.Tensor], leaf: torch.Tensor, slopes: Sequence[torch.Tensor | None]) -> torch.Tensor:
    used = [(output, slope) for output, slope in zip(outputs, slopes, strict=True) if slope is not None]
    return torch.autograd.grad([o for o, _ in used], leaf, [s for _, s in used])[0]
