# SPDX-License-Identifier: Apache-2.0
"""DMD, distribution matching distillation (Yin et al. 2024, arXiv 2311.18828), without its regression loss.

Symbols: their mu_real, mu_fake, G_theta are our teacher, fake_score, generator; their t indexes a grid of sigma.
`dmd` with the supplement `regression` is the DMD of the paper.

The authors published no code; the order (generator, then fake_score on the same images) is that of their algorithm.
Labels are those of real images.
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

RECIPE = ("methods/dmd", 1)
OTHER_SIZE = True  # its generator may be smaller or larger than the teacher


@dataclass(frozen=True)
class Numbers:
    """DMD's numbers."""

    sigma_init: float = number(80.0, "noise level the generator starts from (DMD, appendix B)", above=0)
    bins: int = number(1000, "entries of the Karras grid that sigma is drawn from (DMD, appendix B)", low=2)
    low: float = number(0.02, "generator: lowest entry, as a share of the grid (DMD, section 3.2)", low=0, below=1)
    high: float = number(0.98, "generator: highest entry, as a share of the grid (DMD, section 3.2)", above=0, high=1)
    images: str = number(
        "reuse", "reuse: fake_score trains on the images of the generator's step; fresh: on new images, one more pass",
        choices=("reuse", "fresh"),
    )  # fmt: skip

    def __post_init__(self):
        score.check_grid(self.low, self.high, "dmd")


def phases(numbers: Numbers, progress: Progress) -> list[Phase]:
    """The generator, then fake_score; see score.phases for what re-use changes."""
    return score.phases(numbers.images, generator_first=True)


def critic_terms(nets: dict, batch: Batch, images: torch.Tensor, numbers: Numbers) -> dict[str, torch.Tensor]:
    """fake_score's denoising loss on the grid, mean over pixels and images."""
    return {"denoising": score.matching_denoising(nets["fake_score"], batch, images, numbers.bins)}


@torch.no_grad()
def generator_terms(nets: dict, batch: Batch, images, numbers: Numbers) -> dict[str, AtImages]:
    """The normalised difference of the denoisers, as half a squared distance (its value is flat by construction)."""
    return {"matching": score.matching(nets, batch, images(), numbers.bins, numbers.low, numbers.high)}


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes; encoder: the share of one that the encoder takes."""
    return 8 + (numbers.images == "fresh")


def passes_of(numbers: Numbers) -> dict[str, float]:
    """Those of generator and teacher among them."""
    return {"generator": 3 + (numbers.images == "fresh"), "teacher": 1}
