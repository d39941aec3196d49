# SPDX-License-Identifier: Apache-2.0
"""The drifting field (Deng et al. 2026, arXiv 2602.04770): generated features are attracted by real ones and repelled by others.

    V(x_i) = sum_jk a_ij b_ik (y_j - x_k),    (a, b) = sqrt(softmax over all j and k * softmax over i) of -distance / R

y: positives, real features. x_k: negatives, the other generated features. a: affinities of x_i to the positives, b: to the
negatives. V is 0 where both sets are the same, and changes its sign when they are exchanged. The sum over a and b is that over
y_j weighted with a_ij sum_k b_ik, minus that over x_k weighted with b_ik sum_j a_ij.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

RECIPE = ("drifting", 1)
SMALLEST = 1e-8  # of the mean squared length of a field that is divided by its length (the authors' code)


def distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """|x_i - y_j|, [m, n]. Differences are taken one by one, so that near features lose no digits."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def field(
    x: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, radius: float, floor: float = 0.0,
    own: bool = False, gaps: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    """V at the rows of x [m, D], from positives [n, D] and negatives [l, D]; [m, D].

    radius: R, in units of the distances. floor: smallest affinity. own: the negatives are x itself, and no row repels itself.
    gaps: distances [m, n] and [m, l], if they are known.
    """
    to_positives, to_negatives = gaps or (distances(x, positives), distances(x, negatives))
    logits = torch.cat([-to_positives / radius, -to_negatives / radius], 1)
    if own:
        logits = torch.cat([logits[:, : len(positives)], logits[:, len(positives) :].fill_diagonal_(-torch.inf)], 1)
    affinity = (logits.softmax(1) * logits.softmax(0)).sqrt().clamp(min=floor)
    # Of a single row, the column without any affinity has a softmax of 0/0. A NaN of a feature is not minus infinity and stays.
    affinity = affinity.masked_fill(logits == -torch.inf, 0.0)
    pull, push = affinity[:, : len(positives)], affinity[:, len(positives) :]
    return (pull * push.sum(1, keepdim=True)) @ positives - (push * pull.sum(1, keepdim=True)) @ negatives


def drift(
    x: torch.Tensor, real: torch.Tensor, radii: Sequence[float], floor: float, normalise: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(the sum of the fields of all radii at x, the unit of length, the mean squared length of a field before normalisation).

    x: generated features [m, D], m >= 2; real: [n, D]. The unit is the mean distance of x to real and to the other x; the field
    [m, D] and its length are in this unit. normalise: the field of each radius is divided by its root mean square length, so
    that all radii count equally. Nothing has a graph, and all is computed in float64.
    """
    with torch.no_grad():
        x, real = x.double(), real.double()
        gaps = distances(x, real), distances(x, x)
        pairs = len(x) * (len(real) + len(x) - 1)
        unit = (gaps[0].sum() + gaps[1].sum()) / pairs
        unit = torch.where(unit == 0, 1.0, unit)  # 0: all features are equal
        x, real, scaled = x / unit, real / unit, (gaps[0] / unit, gaps[1] / unit)
        total, lengths = torch.zeros_like(x), []
        for radius in radii:
            found = field(x, real, x, radius, floor, own=True, gaps=scaled)
            lengths.append(found.square().sum(1).mean())
            total = total + (found / lengths[-1].clamp(min=SMALLEST).sqrt() if normalise else found)
        return total, unit, torch.stack(lengths).mean()
