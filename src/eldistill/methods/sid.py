# SPDX-License-Identifier: Apache-2.0
"""SiD, score identity distillation (Zhou et al. 2024, arXiv 2404.04057).

Symbols: their f_phi, f_psi, G_theta are our teacher, fake_score, generator; t_max / 1000 is our t_max.

Departure from the authors' code: a NaN stops the run; theirs drops the images that hold one.

The authors train FFHQ, AFHQv2 and ImageNet in half precision with Adam's eps at 1e-6, and CIFAR-10 in float32 at 1e-8.
The larger eps guards the steps against gradients that half precision has rounded to nothing; networks here train in
float32, or in bfloat16, which has the exponents of float32, and eps is 1e-8 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eldistill.contract import AtImages, Batch, Phase, Progress
from eldistill.losses import score
from eldistill.losses.score import generate as generate
from eldistill.losses.score import generator as generator
from eldistill.losses.score import networks as networks
from eldistill.losses.score import sampler as sampler
from eldistill.numbers import number

RECIPE = ("methods/sid", 1)
OTHER_SIZE = True  # its generator may be smaller or larger than the teacher


@dataclass(frozen=True)
class Numbers:
    """SiD's numbers."""

    sigma_init: float = number(2.5, "noise level the generator starts from (SiD, section 5)", above=0)
    alpha: float = number(1.2, "weight of the squared difference of the denoisers (SiD, eq. 23)", low=0, high=10)
    t_max: float = number(0.8, "generator: largest noise level, as a share of the rho-warped range", above=0, high=1)
    scale: float = number(
        100.0, "factor of the generator's loss (authors' recipe); with Adam it matters only relative to eps", above=0
    )
    P_mean: float = number(-1.2, "fake_score: mean of ln sigma (EDM, table 1; EDM2: -0.4)", low=-10, high=10)
    P_std: float = number(1.2, "fake_score: standard deviation of ln sigma (EDM, table 1; EDM2: 1.0)", above=0, high=10)
    augment: float = number(0.0, "fake_score: probability of EDM's augmentations of generated images", low=0, high=1)
    uncertainty: bool = number(False, "divide both losses by the uncertainty that fake_score estimates (networks edm2)")
    sequential: bool = number(
        False, "keep the graph of one denoiser at a time: less memory, one more pass of the teacher"
    )
    images: str = number(
        "fresh", "fresh: each phase makes new images; reuse: fake_score trains on those of the generator's step",
        choices=("fresh", "reuse"),
    )  # fmt: skip


def phases(numbers: Numbers, progress: Progress) -> list[Phase]:
    """fake_score, then the generator; see score.phases for what re-use changes."""
    return score.phases(numbers.images)


def critic_terms(nets: dict, batch: Batch, images: torch.Tensor, numbers: Numbers) -> dict[str, torch.Tensor]:
    """EDM's denoising loss of fake_score on generated images, summed over pixels, mean over images."""
    loss = score.denoising(
        nets["fake_score"], batch, images, numbers.P_mean, numbers.P_std, numbers.augment, numbers.uncertainty
    )
    return {"denoising": loss}


def generator_terms(nets: dict, batch: Batch, images, numbers: Numbers) -> dict[str, AtImages]:
    """The score identity loss; its gradient flows through x and both denoisers. The value is signed."""

    def loss(u, x, real, fake):
        pixels, _ = score.identity_loss(x, real, fake, numbers.alpha)
        return (numbers.scale * (pixels / u.exp()).sum() / len(x),)

    (value,), gradient = score.identity_pull(loss, nets, batch, images(), numbers, nets["fake_score"])
    return {"identity": AtImages(value.detach(), gradient)}


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes; encoder: the share of one that the encoder takes."""
    return 11 + numbers.sequential - (numbers.images == "reuse")


def passes_of(numbers: Numbers) -> dict[str, float]:
    """Those of generator and teacher among them."""
    return {"generator": 4 - (numbers.images == "reuse"), "teacher": 2 + numbers.sequential}
