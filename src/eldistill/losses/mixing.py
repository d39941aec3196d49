# SPDX-License-Identifier: Apache-2.0
"""The mixing share of two gradients that has the least variance.

It is a diagnostic of EL and never used as a weight.
"""

from __future__ import annotations

import functools
import math

import torch

from eldistill.diffusion.draws import Draw

COVERED_BY = "supplements/embedding"
GROUPS, DIRECTIONS = 8, 32  # parts of a batch, and random directions in the space of gradients


def mix(s1: float, s2: float, r: float) -> float:
    """The share of the second of two unbiased estimators of one quantity that gives the mix the least variance.

    s1, s2: their variances, r: their covariance. (s1 - r) / (s1 + s2 - 2 r), clipped to [0, 1]: outside it mixing does
    not help (the paper's appendix C.6; r < min(s1, s2) is the condition). With biased estimators give second moments.
    """
    total = s1 + s2 - 2 * r
    return 0.0 if total <= 0 else min(max((s1 - r) / total, 0.0), 1.0)


def optimal(base: torch.Tensor, own: torch.Tensor) -> float | None:
    """The share of EL in the mix of least variance, from one batch; None if the gradients do not agree in direction.

    base, own: gradients [n, c, h, w]. The batch is cut into GROUPS parts. Their mean gradients, projected on DIRECTIONS
    fixed random directions, are repeated measurements. The lemma (appendix C.6) holds for two estimators of one vector,
    but the two losses estimate different ones. So EL is scaled first, to the least squared difference of the mean
    projections.
    """
    return share_of(*map(float, projections(base, own)))


def share_of(scale: float, s1: float, s2: float, r: float) -> float | None:
    """Like `optimal`, from the values that `projections` returned."""
    return mix(s1, s2, r) if scale > 0 else None


def projections(base: torch.Tensor, own: torch.Tensor) -> list[torch.Tensor]:
    """The scale of EL, the variances of the projections of base loss and EL, and their covariance, as scalars.

    base, own: gradients [n, c, h, w] with n at least 2 GROUPS.
    """
    n = len(base) // GROUPS * GROUPS
    size = base[0].numel()
    directions = _directions(size, base.device)
    a, b = ((each[:n].double().reshape(GROUPS, -1, size).mean(1) @ directions) for each in (base, own))
    mean_a, mean_b = a.mean(0), b.mean(0)
    length = mean_b @ mean_b
    scale = torch.where(length > 0, (mean_a @ mean_b) / length, 0.0)
    b = scale * b
    a, b = a - a.mean(0), b - b.mean(0)
    return [scale, *((left * right).sum() / (GROUPS - 1) for left, right in ((a, a), (b, b), (a, b)))]


@functools.cache
def _directions(size: int, device: torch.device) -> torch.Tensor:
    draw = Draw(0, "el/directions", 0, DIRECTIONS, dtype=torch.float64)
    return (draw.normal("direction", size).T / math.sqrt(size)).to(device)
