# SPDX-License-Identifier: Apache-2.0
"""The Fréchet distance of features (Dowson and Landau 1982) as a differentiable function of moments, in float64.

    FD = |m_x - m_y|^2 + tr C_x + tr C_y - 2 tr (C_y^1/2 C_x C_y^1/2)^1/2

y: real features, whose moments are known and given once (`Known`). x: generated ones. Both covariances have the same small
multiple of the identity added. FD is then the distance after equal noise on both sides: it is 0 exactly where the moments are
equal, and the root can be differentiated where a covariance is singular, as that of few images is.

With fewer axes than features, the covariances are those along the leading principal axes of the real features, and all that is
left counts as one isotropic part, (sqrt tr C_x - sqrt tr C_y)^2 outside these axes. The means are compared in all dimensions.
This is never above the complete FD, 0 for equal moments, and sees variance in directions that real features do not have.

`Moments` are means over rows, so they can be blended over iterations: Yang et al. 2026 (arXiv 2604.28190) take those of far more
images than a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

RECIPE = ("frechet", 1)


@dataclass(frozen=True)
class Moments:
    """Moments of rows [n, D] about the mean of the real features, in float64."""

    mean: torch.Tensor  # [D]
    second: torch.Tensor  # mean of the outer products along the axes [d, d]
    square: torch.Tensor  # mean of the squared norms, a scalar

    def blended(self, past: Moments, share: float) -> Moments:
        """share of these moments and 1 - share of the past ones."""
        names = [each.name for each in fields(self)]
        return Moments(*(share * getattr(self, name) + (1 - share) * getattr(past, name) for name in names))

    def detached(self) -> Moments:
        """Without a graph."""
        return Moments(self.mean.detach(), self.second.detach(), self.square.detach())


@dataclass(frozen=True)
class Known:
    """The real features of one member: their mean, principal axes and variances, in float64."""

    mean: torch.Tensor  # [D]
    axes: torch.Tensor  # orthonormal columns [D, d], d <= D; the leading principal axes
    variances: torch.Tensor  # along the axes [d], falling
    rest: float  # variance outside the axes; 0 if d = D
    total: float  # trace of the covariance
    noise: float  # what is added to the variance in every direction, > 0

    def moments(self, x: torch.Tensor) -> Moments:
        """The moments of the rows of x [n, D], differentiable in x."""
        centred = x.double() - self.mean
        along = centred @ self.axes
        return Moments(centred.mean(0), along.T @ along / len(x), centred.square().sum(1).mean())

    def distance(self, found: Moments) -> torch.Tensor:
        """FD between these real features and features with the given moments; a scalar, differentiable in them."""
        along = found.mean @ self.axes
        covariance = found.second - torch.outer(along, along)
        noise = self.noise * torch.eye(len(along), dtype=covariance.dtype, device=covariance.device)
        mine, its = covariance + noise, self.variances + self.noise
        root = its.sqrt()
        product = root[:, None] * mine * root
        # torch refuses to decompose a NaN, which must come out as a NaN: the trace has it.
        finite = product.detach().isfinite().all()
        values = torch.linalg.eigvalsh(
            torch.where(finite, product, torch.eye(len(along), dtype=product.dtype, device=product.device))
        )
        # Both factors are at least `noise`, so that the bound holds but for rounding.
        inside = mine.trace() + its.sum() - 2 * values.clamp(min=self.noise**2).sqrt().sum()
        return found.mean.square().sum() + inside + self._outside(found, covariance, along)

    def _outside(self, found: Moments, covariance: torch.Tensor, along: torch.Tensor) -> torch.Tensor | float:
        count = len(self.axes) - len(along)
        if not count:
            return 0.0
        variance = found.square - found.mean.square().sum() - covariance.trace()
        mine = (variance.clamp(min=0) + count * self.noise).sqrt()
        return (mine - (self.rest + count * self.noise) ** 0.5).square()

    def trace_ratio(self, found: Moments) -> torch.Tensor:
        """The trace of the covariance of features with these moments over that of the real ones, a scalar."""
        return (found.square - found.mean.square().sum()) / self.total


def known_of(mean: torch.Tensor, covariance: torch.Tensor, axes: int, noise: float) -> Known:
    """`Known` from the mean [D] and covariance [D, D] of the real features, both in float64.

    axes: largest number of principal axes. noise: what is added to every variance, in units of the mean variance, > 0.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    count = min(axes, len(values))
    total = float(values.sum())
    rest = float(values[count:].sum())
    return Known(mean, vectors[:, :count].contiguous(), values[:count], rest, total, noise * total / len(values))
