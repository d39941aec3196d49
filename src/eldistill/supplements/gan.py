# SPDX-License-Identifier: Apache-2.0
"""A discriminator for methods with a fake_score: DMD2's head on its encoder (Yin et al. 2024, arXiv 2405.14867, section 4.3).

In the phase of fake_score its encoder and the head learn to distinguish noised generated images from noised real ones.
The generator receives the gradient of its adversarial loss at the images.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from eldistill.contract import AtImages, Batch, Memory, Nets, Progress, Setting, Weight
from eldistill.errors import Problem
from eldistill.losses import adversarial, balance
from eldistill.numbers import number

RECIPE = ("supplements/gan", 2)


@dataclass(frozen=True)
class Numbers:
    """The discriminator's numbers."""

    bins: int = number(1000, "entries of the Karras grid that its noise levels are drawn from (DMD2)", low=2)
    weight: float = number(
        0.1, "balanced: ratio of its gradient to the base loss's at the images; fixed: the factor itself", low=0
    )
    weighting: str = number(
        "balanced", "balanced: relative to the base loss, whose scale differs from method to method; fixed (DMD2: 3e-3)",
        choices=("balanced", "fixed"),
    )  # fmt: skip
    decay: float = number(0.99, "balanced: decay of the running gradient norms", low=0, below=1)
    weight_critic: float = number(
        1e-2,
        "factor of the loss of head and fake_score (DMD2, authors' recipe, beside a "
        "denoising loss that is a mean over pixels; that of DI, SiD and SIM is a sum over them)",
        low=0,
    )


@dataclass
class Prepared:
    """The data that the discriminator uses in a run."""

    micro_batch: int  # images at once; 0: the whole batch
    nets: Nets = field(default_factory=dict)  # networks of the run, set by `networks`


def prepare(numbers: Numbers, setting: Setting) -> Prepared:
    """Keep the micro-batch of the setting."""
    return Prepared(setting.micro_batch)


def networks(nets: Nets, prepared: Prepared, numbers: Numbers, seed: int) -> None:
    """Put a head on fake_score. Raises Problem if the method has no fake_score, or one with a head."""
    if "fake_score" not in nets:
        raise Problem(
            "the supplement gan needs a method with a fake_score, and this one has none; choose another method or omit gan"
        )
    if numbers.weight:
        adversarial.add_head(nets["fake_score"], seed)
    prepared.nets = nets


def generator_terms(prepared: Prepared, images: torch.Tensor, batch: Batch, numbers: Numbers) -> dict[str, AtImages]:
    """The non-saturating loss of the head, mean over images, and its gradient."""
    if not numbers.weight:
        return {"adversarial": AtImages(images.new_zeros(()), torch.zeros_like(images))}
    step, values, gradients = prepared.micro_batch or batch.size, [], []
    for start in range(0, batch.size, step):
        part = slice(start, min(start + step, batch.size))
        share = (part.stop - part.start) / batch.size
        value, gradient = adversarial.at_images(
            prepared.nets["fake_score"], batch[part], images[part], numbers.bins, "gan"
        )
        values.append(value * share)
        gradients.append(gradient * share)
    return {"adversarial": AtImages(torch.stack(values).sum(), torch.cat(gradients))}


def critic_terms(prepared: Prepared, nets: Nets, batch: Batch, images: torch.Tensor, numbers: Numbers) -> dict:
    """The head's loss on generated and real images, whose labels are their own."""
    if not numbers.weight:
        return {}
    return {
        "adversarial": numbers.weight_critic
        * adversarial.critic(nets["fake_score"], batch, images, numbers.bins, "gan")
    }


def weight(
    base: balance.Scalar, own: balance.Scalar, batch: int, numbers: Numbers, progress: Progress, memory: Memory
) -> Weight:
    """The factor of its gradient.

    balanced: chosen so that its size is `weight` times the base loss's (losses/balance.py).
    """
    if not numbers.weight or numbers.weighting == "fixed":
        return Weight(numbers.weight)
    return balance.balanced(numbers.weight, base, own, numbers.decay, memory)
