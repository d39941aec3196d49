# SPDX-License-Identifier: Apache-2.0
"""DMD2 (Yin et al. 2024, arXiv 2405.14867): distribution matching without regression, two time scales, a GAN.

Symbols: their mu_real, mu_fake, G are our teacher, fake_score, generator; the guidance of their code is fake_score
with its head.

Departures from the authors' code: labels are those of real images (theirs are uniform over the classes), and 0 / 0
in the normalised gradient is a zero, not a NaN that is replaced. Re-using images, as the authors do, is the cheapest
order of phases: one pass of fake_score less would need one noise for its own loss and for the matching.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from eldistill.contract import AtImages, Batch, Phase, Progress
from eldistill.losses import adversarial, score
from eldistill.losses.score import generate as generate
from eldistill.losses.score import generator as generator
from eldistill.losses.score import sampler as sampler
from eldistill.numbers import number

RECIPE = ("methods/dmd2", 1)
OTHER_SIZE = True  # its generator may be smaller or larger than the teacher


@dataclass(frozen=True)
class Numbers:
    """DMD2's numbers."""

    sigma_init: float = number(80.0, "noise level the generator starts from (the authors' ImageNet recipe)", above=0)
    bins: int = number(1000, "entries of the Karras grid that sigma is drawn from (DMD, appendix B)", low=2)
    low: float = number(0.02, "generator: lowest entry, as a share of the grid (DMD, section 3.2)", low=0, below=1)
    high: float = number(0.98, "generator: highest entry, as a share of the grid (DMD, section 3.2)", above=0, high=1)
    every: int = number(
        5, "iterations between generator steps; each has one step of fake_score (DMD2, section 4.2)", low=1
    )
    weight_generator: float = number(3e-3, "factor of the adversarial loss of the generator (authors' recipe)", low=0)
    weight_critic: float = number(
        1e-2, "factor of the adversarial loss of fake_score and head (authors' recipe)", low=0
    )
    images: str = number(
        "reuse", "reuse: fake_score trains on the images of the generator's step; fresh: on new images, one more pass",
        choices=("reuse", "fresh"),
    )  # fmt: skip

    def __post_init__(self):
        score.check_grid(self.low, self.high, "dmd2")


def phases(numbers: Numbers, progress: Progress) -> list[Phase]:
    """The generator every few iterations, then fake_score; see score.phases for what re-use changes."""
    return score.phases(numbers.images, numbers.every, generator_first=True)


def networks(teacher: torch.nn.Module, numbers: Numbers, seed: int) -> dict[str, torch.nn.Module]:
    """The extra network: fake_score, a copy of the teacher, with a head on its encoder."""
    return {"fake_score": adversarial.add_head(copy.deepcopy(teacher), seed)}


def critic_terms(nets: dict, batch: Batch, images: torch.Tensor, numbers: Numbers) -> dict[str, torch.Tensor]:
    """fake_score's denoising loss, and the head's loss on generated and real images."""
    net = nets["fake_score"]
    terms = {"denoising": score.matching_denoising(net, batch, images, numbers.bins)}
    if numbers.weight_critic:
        terms["adversarial"] = numbers.weight_critic * adversarial.critic(net, batch, images, numbers.bins, "head")
    return terms


@torch.no_grad()
def generator_terms(nets: dict, batch: Batch, images, numbers: Numbers) -> dict[str, AtImages]:
    """Distribution matching, and the head's loss; neither value is a measure of progress."""
    x = images()
    terms = {"matching": score.matching(nets, batch, x, numbers.bins, numbers.low, numbers.high)}
    if numbers.weight_generator:
        value, gradient = adversarial.at_images(nets["fake_score"], batch, x, numbers.bins, "head")
        weight = numbers.weight_generator
        terms["adversarial"] = AtImages(weight * value, weight * gradient)
    return terms


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes; encoder: the share of one that the encoder takes."""
    return (4 * numbers.every + 4 + (6 * numbers.every + 2) * encoder + (numbers.images == "fresh")) / numbers.every


def passes_of(numbers: Numbers) -> dict[str, float]:
    """Those of generator and teacher among them."""
    generator = numbers.every + 2 + (numbers.images == "fresh")
    return {"generator": generator / numbers.every, "teacher": 1 / numbers.every}
