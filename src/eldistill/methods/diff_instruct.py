# SPDX-License-Identifier: Apache-2.0
"""Diff-Instruct (Luo et al. 2023, arXiv 2305.18455): the integral Kullback-Leibler gradient.

Symbols: their pretrained score, s_phi, g_theta are our teacher, fake_score, generator; their t is our sigma.

At noisy images x + sigma n the gradient is w(sigma) (score_fake - score_teacher) with score = (D(x) - x) / sigma^2;
we take w(sigma) = sigma^2, as the authors' published code does, which leaves D_fake - D_teacher.

Departures from the authors' code: both denoisers are in eval mode in the generator step (theirs share one dropout
mask in train mode), the labels of the two phases are drawn independently, and a NaN stops the run (theirs replaces it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eldistill.contract import AtImages, Batch, Phase, Progress
from eldistill.diffusion import noise
from eldistill.losses import score
from eldistill.losses.score import generate as generate
from eldistill.losses.score import generator as generator
from eldistill.losses.score import networks as networks
from eldistill.losses.score import sampler as sampler
from eldistill.numbers import number

RECIPE = ("methods/diff_instruct", 1)
OTHER_SIZE = True  # its generator may be smaller or larger than the teacher


@dataclass(frozen=True)
class Numbers:
    """Diff-Instruct's numbers."""

    sigma_init: float = number(2.5, "noise level the generator starts from (SiD; the authors' recipe has 1.0)", above=0)
    P_mean: float = number(-1.2, "mean of ln sigma in both losses (EDM, table 1)", low=-10, high=10)
    P_std: float = number(1.2, "standard deviation of ln sigma in both losses (EDM, table 1)", above=0, high=10)
    augment: float = number(0.0, "fake_score: probability of EDM's augmentations of generated images", low=0, high=1)
    images: str = number(
        "fresh", "fresh: each phase makes new images; reuse: fake_score trains on those of the generator's step",
        choices=("fresh", "reuse"),
    )  # fmt: skip


def phases(numbers: Numbers, progress: Progress) -> list[Phase]:
    """fake_score first: while it equals the teacher the generator's gradient is zero. See score.phases for re-use."""
    return score.phases(numbers.images)


def critic_terms(nets: dict, batch: Batch, images: torch.Tensor, numbers: Numbers) -> dict[str, torch.Tensor]:
    """EDM's denoising loss of fake_score on generated images, summed over pixels, mean over images."""
    return {
        "denoising": score.denoising(nets["fake_score"], batch, images, numbers.P_mean, numbers.P_std, numbers.augment)
    }


@torch.no_grad()
def generator_terms(nets: dict, batch: Batch, images, numbers: Numbers) -> dict[str, AtImages]:
    """The integral-KL gradient at the images. Its value <D_fake - D_teacher, x> is signed and does not show progress."""
    x = images()
    sigma = noise.lognormal(batch.draw.normal("sigma"), numbers.P_mean, numbers.P_std)
    noisy = x + sigma.reshape(-1, 1, 1, 1) * batch.draw.normal("epsilon", *batch.shape)
    difference = nets["fake_score"](noisy, sigma, batch.labels) - nets["teacher"](noisy, sigma, batch.labels)
    return {"kl": kl_term(difference, x)}


def kl_term(difference: torch.Tensor, images: torch.Tensor) -> AtImages:
    """Value and gradient of mean over images of <sg[D_fake - D_teacher], x>; both arguments [n, c, h, w]."""
    return AtImages((difference * images).sum() / len(images), difference / len(images))


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes; encoder: the share of one that the encoder takes."""
    return 9 - (numbers.images == "reuse")


def passes_of(numbers: Numbers) -> dict[str, float]:
    """Those of generator and teacher among them."""
    return {"generator": 4 - (numbers.images == "reuse"), "teacher": 1}
