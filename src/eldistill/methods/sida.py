# SPDX-License-Identifier: Apache-2.0
"""SiDA, adversarial score identity distillation (Zhou et al. 2024, arXiv 2410.14919).

Symbols: their f_phi, f_psi, G_theta are our teacher, fake_score, generator; their discriminator is the encoder of
fake_score. SiD²A is this method with `start_from` a run of SiD: fake_score starts at the teacher again, and the
warm-up below lets it catch up with the generator.

Departures from the authors' code: a NaN stops the run; theirs drops the images that hold one. The binary
cross-entropy is averaged over `group` images, which they call the batch of a GPU: here it is a number of the method,
so that the machine does not change the loss. A frozen generator's loss is not computed.

EDM2's networks divide every weight by its norm in each pass; forced normalisation also writes the result back after a
step, which keeps the norm from growing and with it the rate from falling. The authors' recipe of size S for
ImageNet-512 has it off for both networks, and so has `normalise: none` here. Their other sizes have it on, but it acts
on the generator alone: their fake_score is a copy of a network in evaluation mode, and the copy is never set to
training mode; `normalise: generator` does the same.

The authors train FFHQ, AFHQv2 and ImageNet in half precision with Adam's eps at 1e-6, and CIFAR-10 in float32 at 1e-8.
The larger eps guards the steps against gradients that half precision has rounded to nothing; networks here train in
float32, or in bfloat16, which has the exponents of float32, and eps is 1e-8 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from eldistill.contract import AtImages, Batch, Phase, Progress
from eldistill.diffusion import noise
from eldistill.losses import adversarial, score
from eldistill.losses.score import generate as generate
from eldistill.losses.score import generator as generator
from eldistill.losses.score import networks as networks
from eldistill.losses.score import sampler as sampler
from eldistill.numbers import number

RECIPE = ("methods/sida", 1)
OTHER_SIZE = True  # its generator may be smaller or larger than the teacher


@dataclass(frozen=True)
class Numbers:
    """SiDA's numbers; the warm-up's defaults are off, because it counts in the images of a data set."""

    sigma_init: float = number(2.5, "noise level the generator starts from (SiD, section 5)", above=0)
    alpha: float = number(1.0, "weight of the squared difference of the denoisers (SiDA, section 3)", low=0, high=10)
    t_max: float = number(0.8, "generator: largest noise level, as a share of the rho-warped range", above=0, high=1)
    scale: float = number(100.0, "factor of the score identity loss (authors' recipe)", above=0)
    weight_critic: float = number(1.0, "factor of the discriminator's loss (authors: 1; EDM2: 100)", low=0)
    weight_generator: float = number(0.01, "factor of the generator's adversarial loss (authors' recipe)", low=0)
    group: int = number(32, "images over which a cross-entropy is averaged before it is weighted", low=1)
    freeze_images: int = number(0, "images before the generator's first step (authors: 100,000)", low=0)
    solo_images: int = number(0, "images before the adversarial loss is added (authors: 200,000)", low=0)
    P_mean: float = number(-1.2, "fake_score: mean of ln sigma (EDM, table 1; EDM2: -0.4)", low=-10, high=10)
    P_std: float = number(1.2, "fake_score: standard deviation of ln sigma (EDM, table 1; EDM2: 1.0)", above=0, high=10)
    augment: float = number(0.0, "probability of EDM's augmentations of generated and real images", low=0, high=1)
    normalise: str = number(
        "all", "networks edm2: networks whose weights are normalised after their steps: all, generator, none (authors' size S: none)",
        choices=("all", "generator", "none"), neutral=True,
    )  # fmt: skip
    uncertainty: bool = number(False, "divide all losses by the uncertainty that fake_score estimates (networks edm2)")
    sequential: bool = number(
        False, "keep the graph of one denoiser at a time: less memory, one more pass of the teacher"
    )
    images: str = number(
        "fresh", "fresh: each phase makes new images; reuse: fake_score trains on those of the generator's step",
        choices=("fresh", "reuse"),
    )  # fmt: skip


def phases(numbers: Numbers, progress: Progress) -> list[Phase]:
    """fake_score, then the generator, which rests at first; see score.phases for what re-use changes."""
    chosen = score.phases(numbers.images)
    rests = numbers.freeze_images and progress.n_images <= numbers.freeze_images
    return [Phase("fake_score", generator_mode="eval")] if rests else chosen


def normalised(numbers: Numbers) -> tuple[str, ...]:
    """The networks that forced weight normalisation acts on."""
    return {"all": ("generator", "fake_score"), "generator": ("generator",), "none": ()}[numbers.normalise]


def group(numbers: Numbers) -> int:
    """The number of images that must stay in one micro-batch."""
    return numbers.group


def critic_terms(nets: dict, batch: Batch, images: torch.Tensor, numbers: Numbers) -> dict[str, torch.Tensor]:
    """Denoising of generated images, and the discriminator's loss on generated and real ones under the same noise."""
    net = nets["fake_score"]
    fake, fake_augment = score.augmented(batch, images, numbers.augment)
    real, real_labels = batch.real("label")
    real, real_augment = score.augmented(batch, real, numbers.augment, "augment/real")
    sigma = noise.lognormal(batch.draw.normal("sigma"), numbers.P_mean, numbers.P_std)
    shift = sigma.reshape(-1, 1, 1, 1) * batch.draw.normal("epsilon", *batch.shape)
    denoised, features = net.both(fake + shift, sigma, batch.labels, fake_augment)
    weight = noise.edm_weight(sigma.reshape(-1, 1, 1, 1), net.sigma_data)
    terms = {"denoising": weight * (denoised - fake) ** 2}
    seen = (
        adversarial.channel_mean(features),
        adversarial.channel_mean(net.encode(real + shift, sigma, real_labels, real_augment)),
    )
    if numbers.uncertainty:
        u = net.logvar(sigma)
        terms, weight = {"denoising": terms["denoising"] / u.exp() + u}, weight / u.exp()
    return {
        "denoising": terms["denoising"].sum(dim=(1, 2, 3)).mean(),
        "adversarial": numbers.weight_critic * discriminator_loss(*seen, weight.flatten(), numbers.group),
    }


def discriminator_loss(fake: torch.Tensor, real: torch.Tensor, weight: torch.Tensor, group: int) -> torch.Tensor:
    """mean w(sigma) (BCE(real, 1) + BCE(fake, 0)) / 2, each BCE a mean over a group; logits [n, 1, h, w], w [n]."""
    return adversarial.grouped(weight, (F.softplus(-real) + F.softplus(fake)) / 2, group)


def generator_terms(nets: dict, batch: Batch, images, numbers: Numbers) -> dict[str, AtImages]:
    """The score identity loss and, after the warm-up, the adversarial one, half each; the first value is signed.

    One gradient carries both: that of `identity`.
    """
    solo = bool(numbers.solo_images) and batch.progress.n_images <= numbers.solo_images

    def loss(u, x, real, fake, features):
        return objective(x, real, fake, adversarial.channel_mean(features), u, numbers, solo)

    (_, identity, own), gradient = score.identity_pull(loss, nets, batch, images(), numbers, nets["fake_score"].both)
    terms = {"identity": AtImages(identity.detach(), gradient)}
    return terms if solo else {**terms, "adversarial": AtImages(own.detach(), None)}


def objective(x, real, fake, logits, u, numbers: Numbers, solo: bool):
    """(total, its score identity part, its adversarial part), scalars; logits [n, 1, h, w], u [n, 1, 1, 1]."""
    pixels, weight = score.identity_loss(x, real, fake, numbers.alpha)
    identity = numbers.scale * (pixels / u.exp()).sum() / len(x)
    if solo:
        return identity, identity, torch.zeros_like(identity)
    fooled = F.softplus(-logits.clamp(-10, 10))
    own = numbers.weight_generator * x[0].numel() * adversarial.grouped(
        1 / (weight * u.exp()).flatten(), fooled, numbers.group
    )  # fmt: skip
    return (identity + own) / 2, identity / 2, own / 2


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes; encoder: the share of one that the encoder takes."""
    return 11 + numbers.sequential + 3 * encoder - (numbers.images == "reuse")


def passes_of(numbers: Numbers) -> dict[str, float]:
    """Those of generator and teacher among them."""
    return {"generator": 4 - (numbers.images == "reuse"), "teacher": 2 + numbers.sequential}
