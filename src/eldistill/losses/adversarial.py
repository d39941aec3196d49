# SPDX-License-Identifier: Apache-2.0
"""Discriminators on the encoder of a denoiser, and their losses.

Two kinds: a trained head that gives one logit an image (DMD2, Yin et al. 2024, arXiv 2405.14867, section 4.3), and
the mean over the channels of the encoder's output, without any new weight (SiDA, Zhou et al. 2024, arXiv 2410.14919).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from eldistill.contract import Batch, Denoiser
from eldistill.losses.head import Head as Head
from eldistill.losses.head import add_head as add_head
from eldistill.losses.score import grid_sigma

RECIPE = ("adversarial", 1)


def logits(
    net: Denoiser, batch: Batch, images: torch.Tensor, labels: torch.Tensor | None, bins: int, purpose: str
) -> torch.Tensor:
    """The head's logits [n, 1] of noised images; sigma uniform over the Karras grid of `bins` levels."""
    sigma = grid_sigma(batch, f"{purpose}/sigma", bins)
    noisy = images + sigma.reshape(-1, 1, 1, 1) * batch.draw.normal(f"{purpose}/epsilon", *batch.shape)
    found: torch.Tensor = net.head(net.encode(noisy, sigma, labels))
    return found


def generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """mean softplus(-logit), the non-saturating loss: low if generated images are classified as real. fake: logits."""
    return F.softplus(-fake).mean()


def critic_loss(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """mean softplus(logit of generated) + mean softplus(-logit of real)."""
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def at_images(
    net: Denoiser, batch: Batch, images: torch.Tensor, bins: int, purpose: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(generator_loss of the head, its gradient at the images [n, c, h, w])."""
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        value = generator_loss(logits(net, batch, x, batch.labels, bins, purpose))
        return value.detach(), torch.autograd.grad(value, x)[0]


def critic(net: Denoiser, batch: Batch, images: torch.Tensor, bins: int, purpose: str) -> torch.Tensor:
    """critic_loss of the head, a scalar, with independent noise and noise levels for generated and real images.

    images: generated, [n, c, h, w], encoded. Real images are drawn from the batch together with their labels.
    """
    real, labels = batch.real("label")
    fake = logits(net, batch, images, batch.labels, bins, f"{purpose}/fake")
    return critic_loss(fake, logits(net, batch, real, labels, bins, f"{purpose}/real"))


# --- without new weights: SiDA ---


def channel_mean(features: torch.Tensor) -> torch.Tensor:
    """Logits [n, 1, h, w] in float32 or better: the mean of the encoder's output over its channels."""
    return features.mean(dim=1, keepdim=True).to(torch.promote_types(features.dtype, torch.float32))


def grouped(first: torch.Tensor, second: torch.Tensor, size: int) -> torch.Tensor:
    """Mean over groups of `size` images of mean(first) mean(second) within a group, weighted by the group's images.

    A scalar that is averaged over a group before it is weighted is what the authors' code does with a micro-batch.
    """
    total = first.new_zeros(())
    for start in range(0, len(first), size):
        part = slice(start, start + size)
        total = total + len(first[part]) / len(first) * first[part].mean() * second[part].mean()
    return total
