# SPDX-License-Identifier: Apache-2.0
"""The Embedding Loss (EL; Ying et al. 2026, arXiv 2604.22379): MMD to real images in random feature spaces.

    EL(x) = 1/K sum_k MMD^2( phi_k(T x), phi_k(T x_real) ),    phi_k = f_k(. / sigma_data) / s_k

f_k: frozen random networks; s_k: root of the trace of their covariance over real images, so that a member's value
is a squared shift in units of the real spread; T: one augmentation a step, shared by both sides. The paper leaves
members, kernel, estimator, augmentation and weight open: ours are stated beside each number.

`pixel-mmd` is this file with the identity as its only member.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from eldistill import augment, mmd
from eldistill.contract import AtImages, Batch, Progress
from eldistill.ensemble.seed import Ensemble
from eldistill.schema import number

VERSION = 1


@dataclass(frozen=True)
class Numbers:
    """EL's numbers."""

    ensemble: str = number("conv4", "a name under `ensemble`: the random networks")
    ensemble_seed: int | None = number(None, "seed of the ensemble; null takes the run's seed", low=0)
    kernel: str = number(
        "rbf",
        "rbf: a mixture of five widths around the median distance; linear: the means only",
        choices=("rbf", "linear"),
    )
    estimator: str = number(
        "unbiased",
        "unbiased: the U-statistic; biased: the V-statistic, which pays for collapse",
        choices=("unbiased", "biased"),
    )
    real_ratio: int = number(1, "real images for every generated one, drawn anew each step", low=1, high=64)
    augmentation: tuple[str, ...] = number(
        (),
        "operations shared by generated and real images, one a step; none by default: on aligned 8x8 digits they hurt",
        choices=("color", "crop", "cutout", "flip", "scale", "rotate"),
    )
    weighting: str = number(
        "balanced",
        "balanced: `weight` is the ratio of EL's gradient to the base loss's at the images; fixed: it is the raw factor",
        choices=("balanced", "fixed"),
    )
    weight: float = number(0.7, "strength of EL; 0 is off", low=0)
    decay: float = number(0.99, "balanced: decay of the running gradient norms", low=0, below=1)
    warmup: float = number(0.05, "share of the run over which the weight rises linearly from 0", low=0, high=1)


@dataclass(frozen=True)
class Tools:
    """What a run needs beside the numbers: the members, sigma_data, the seed of the augmentation."""

    ensemble: Ensemble
    sigma_data: float
    seed: int


def prepare(numbers: Numbers, setting: Any) -> Tools:
    """setting: .ensemble (path of the manifest), .device, .dtype, .sigma_data, .seed (the run's)."""
    return Tools(Ensemble(setting.ensemble, setting.device, setting.dtype), setting.sigma_data, setting.seed)


def generator_terms(tools: Tools, images: torch.Tensor, batch: Batch, numbers: Numbers) -> dict[str, AtImages]:
    """EL of the whole batch of images [n, c, h, w] (encoded) and its gradient. Raises Problem for one image."""
    real, _ = batch.real("el/real", numbers.real_ratio)
    transform = (
        augment.siamese(tools.seed, batch.progress.iteration, numbers.augmentation) if numbers.augmentation else None
    )
    x = images.detach().requires_grad_()
    value = embedding_loss(
        tools.ensemble.at(batch.progress.iteration), x / tools.sigma_data, real / tools.sigma_data,
        numbers.kernel, numbers.estimator, transform,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(value, x)
    return {"mmd2": AtImages(value.detach(), gradient)}


def embedding_loss(
    members, x: torch.Tensor, real: torch.Tensor, kernel: str, estimator: str, transform=None
) -> torch.Tensor:
    """Mean over the members of MMD^2 between x [m, c, h, w] and real [n, c, h, w], both over sigma_data; scalar."""
    if transform is not None:
        x = transform(x)
        with torch.no_grad():
            real = transform(real)
    total = 0
    for member in members:
        with torch.no_grad():
            target = member(real)
        total = total + mmd.mmd2(member(x), target, kernel, member.bandwidth, estimator)
    return total / len(members)


def weight(
    base: float, own: float, batch: int, numbers: Numbers, progress: Progress, memory: dict[str, float]
) -> float:
    """The factor of EL's gradient. base, own: root mean squares of the two gradients where they meet.

    balanced: weight * warm-up * EMA[base] / EMA[own], the ratio of the averages clipped to [1e-4, 1e4]; fixed:
    weight * warm-up. Warm-up rises linearly from 0 to 1 over its share of the run. `memory` keeps the two averages,
    which start at 0 together. While the base gradient is zero the factor is 0.
    """
    if not numbers.weight:
        return 0.0
    rise = min(1.0, (progress.n_images + batch) / (numbers.warmup * progress.total)) if numbers.warmup else 1.0
    if numbers.weighting == "fixed":
        return numbers.weight * rise
    for name, rms in (("base", base), ("own", own)):
        memory[name] = numbers.decay * memory.get(name, 0.0) + (1 - numbers.decay) * rms
    if memory["base"] == 0:
        return 0.0
    ratio = memory["base"] / (memory["own"] + 1e-30)
    return numbers.weight * rise * min(max(ratio, 1e-4), 1e4)
