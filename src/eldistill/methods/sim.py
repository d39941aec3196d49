# SPDX-License-Identifier: Apache-2.0
"""SIM, score implicit matching (Luo et al. 2024, arXiv 2410.16794), with the pseudo-Huber distance.

Symbols: their s_q, s_p and g_theta are our teacher, fake_score and generator; their t is our sigma. They match scores,
s = (D(x_t) - x_t) / sigma^2, under a weight w(t). We take w = sigma^2 and measure the distance between denoised images
instead of scores, which is a distance of scores whose constant depends on sigma. The divergence at each sigma is then

    E sqrt(|D_psi(x_t) - D_phi(x_t)|^2 + c^2) - c,    x_t held fixed while D_psi follows the generator,

and its gradient is that of E Delta . (D_psi(x_t) - x) / sqrt(|Delta|^2 + c^2), with Delta = D_phi(x_t) - D_psi(x_t) and
the networks held fixed (their theorem 3.1). With the squared distance in place of this one it is SiD's loss at alpha 1.

The authors published no code of the training. Noise levels and the training of fake_score are those of SiD. Their value
of c belongs to scores and is not known here: the default is the constant of iCT, as in methods/consistency.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from eldistill.contract import AtImages, Batch, Phase, Progress
from eldistill.losses import score
from eldistill.losses.score import generate as generate
from eldistill.losses.score import generator as generator
from eldistill.losses.score import networks as networks
from eldistill.losses.score import sampler as sampler
from eldistill.numbers import number

RECIPE = ("methods/sim", 1)
OTHER_SIZE = True  # its generator may be smaller or larger than the teacher


@dataclass(frozen=True)
class Numbers:
    """SIM's numbers."""

    sigma_init: float = number(2.5, "noise level the generator starts from (the authors' sampling script)", above=0)
    huber_c: float | None = number(
        None, "constant of the pseudo-Huber distance; null is 0.00054 sqrt(pixels) (iCT)", above=0
    )
    t_max: float = number(0.8, "generator: largest noise level, as a share of the rho-warped range", above=0, high=1)
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
    """The implicit loss; its gradient flows through x and both denoisers. Its mean is 0 where fake_score is ideal."""

    def loss(u, x, real, fake):
        return ((implicit_loss(x, real, fake, numbers.huber_c) / u.exp().flatten()).mean(),)

    (value,), gradient = score.identity_pull(loss, nets, batch, images(), numbers, nets["fake_score"])
    return {"implicit": AtImages(value.detach(), gradient)}


def implicit_loss(x: torch.Tensor, real: torch.Tensor, fake: torch.Tensor, c: float | None = None) -> torch.Tensor:
    """Delta . (D_psi - x) / sqrt(|Delta|^2 + c^2) of each image, [n]; Delta = D_phi - D_psi.

    x, real (D_phi), fake (D_psi): [n, c, h, w], encoded. c: in units of their norm; None is 0.00054 sqrt(pixels).
    """
    c = 0.00054 * math.sqrt(x[0].numel()) if c is None else c
    difference = (real - fake).flatten(1)
    norm = (difference.square().sum(dim=1) + c**2).sqrt()
    return (difference * (fake - x).flatten(1)).sum(dim=1) / norm


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes; encoder: the share of one that the encoder takes."""
    return 11 + numbers.sequential - (numbers.images == "reuse")


def passes_of(numbers: Numbers) -> dict[str, float]:
    """Those of generator and teacher among them."""
    return {"generator": 4 - (numbers.images == "reuse"), "teacher": 2 + numbers.sequential}
