# SPDX-License-Identifier: Apache-2.0
"""The factor of a loss whose strength is given as a share of the base loss's gradient.

Base losses differ in scale by ten powers of ten and more: SiD's is 100 times a sum over pixels, Diff-Instruct's a mean.
A share has the same meaning beside all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from eldistill.contract import Progress, Weight
from eldistill.numbers import number

RECIPE = ("balance", 1)
LOW, HIGH = 1e-12, 1e12  # of the ratio: a loss that has vanished but for rounding is not amplified without limit


Scalar = float | torch.Tensor


@dataclass(frozen=True)
class WeightNumbers:
    """The numbers of a supplement whose weight `scheduled` gives."""

    weighting: str = number(
        "balanced", "balanced: `weight` is the ratio of its gradient to the base loss's at the images; fixed: the raw factor",
        choices=("balanced", "fixed"),
    )  # fmt: skip
    weight: float = number(0.7, "strength of the supplement; 0 is off", low=0)
    decay: float = number(0.99, "balanced: decay of the running averages of gradient norms", low=0, below=1)
    warmup: float = number(0.05, "share of the run over which the weight rises linearly from 0", low=0, high=1)
    fade: float = number(
        0.0, "share of the run, at its end, over which the weight falls to 0 along a cosine", low=0, high=1
    )  # fmt: skip


def balanced(share: float, base: Scalar, own: Scalar, decay: float, memory: dict[str, Scalar]) -> Weight:
    """The factor share * EMA[base] / EMA[own], the ratio of the averages held between LOW and HIGH.

    base, own: root mean squares of the two gradients where they meet, >= 0; scalars of a device stay there. decay: of
    both averages, which start at 0 together, so that their ratio is unbiased from the first step on. `memory` keeps
    them, as "base" and "own". While the base loss has no gradient the factor is 0; a loss without a gradient of its own
    gets the bound.
    """
    for name, rms in (("base", base), ("own", own)):
        memory[name] = decay * memory.get(name, 0.0) + (1 - decay) * rms
    above, below = (torch.as_tensor(memory[name], dtype=torch.float64) for name in ("base", "own"))
    ratio, there = above / below, above != 0  # infinite if `below` is 0; the clamp bounds it
    held = ratio.clamp(LOW, HIGH)
    return Weight(torch.where(there, share * held, 0.0), bounded=there & (held != ratio))


def scheduled(
    base: Scalar, own: Scalar, batch: int, numbers: Any, progress: Progress, memory: dict[str, Scalar]
) -> Weight:  # fmt: skip
    """The weight of a supplement with WeightNumbers.

    fixed: the factor weight * schedule; any other weighting: the share weight * schedule, as `balanced` has it. A weight of 0 is
    the factor 0, and memory is left alone. Arguments as `weight` of a supplement has them.
    """
    if not numbers.weight:
        return Weight(0.0)
    strength = numbers.weight * schedule(progress, batch, numbers.warmup, numbers.fade)
    if numbers.weighting == "fixed":
        return Weight(strength)
    return balanced(strength, base, own, numbers.decay, memory)


def signal(unbiased: Scalar, biased: Scalar) -> torch.Tensor:
    """The share of a biased estimate that is not bias: unbiased / biased, held in [0, 1]; a scalar in float64.

    unbiased, biased: running averages of two estimates of one squared distance, scalars of a device stay there. 0 where
    the biased one is 0: nothing differs. A NaN of either stays one.
    """
    above, below = (torch.as_tensor(each, dtype=torch.float64) for each in (unbiased, biased))
    return torch.where(below <= 0, 0 * above, (above / below).clamp(0, 1))


def schedule(progress: Progress, batch: int, warmup: float, fade: float) -> float:
    """The factor of a weight over a run, in [0, 1]: a linear rise at its start times half a cosine at its end.

    batch: images of the present iteration, which the rise includes. warmup, fade: shares of the run, 0 for none.
    """
    rise = min(1.0, (progress.n_images + batch) / (warmup * progress.total)) if warmup else 1.0
    if fade:
        left = min(1.0, (progress.total - progress.n_images) / (fade * progress.total))
        rise *= (1 - math.cos(math.pi * left)) / 2
    return rise


def started(weight: Weight, progress: Progress, images: int, factor: float) -> Weight:
    """`weight` with the factor (1 - t) * factor + t * its own, t = min(1, generated images / images).

    A share of the base loss's gradient is little at the start of a distillation, where the distance to real images is
    largest: the warm-up holds it back, and a method that trains its generator first (DMD) has no gradient of its own in
    the first iteration, because fake_score still is the teacher. So a raw factor acts there. It changes gradually,
    because a switch would change the weight by a multiple of itself in one step.
    """
    if progress.n_images >= images:
        return weight
    t = progress.n_images / images
    return replace(weight, factor=(1 - t) * factor + t * weight.factor)
