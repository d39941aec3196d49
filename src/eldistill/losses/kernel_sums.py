# SPDX-License-Identifier: Apache-2.0
"""Sums of kernels over rows, with their gradients computed in the same pass as their values.

A matrix k(x, y) [m, n] is written once and changed in place, so that it costs about a third of what autograd needs for
the functions in mmd.py, which these equal up to rounding. There is no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from eldistill.losses import mmd

COVERED_BY = "ensemble/anchors"  # only anchored EL uses it
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Weigh = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def kernel_sums(
    x: torch.Tensor, y: torch.Tensor | None, weights: torch.Tensor | None, pairs: float, kernel: str, bandwidth: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(pairs * P + sum_i sum_j w_j k(x_i, y_j), P) with P = sum_{i != j} k(x_i, x_j); two scalars.

    Only the first has a gradient, in x [m, D]. y: [n, D], weights: [n]; without them the double sum is omitted, and with
    pairs = 0 so is P, which is then 0. kernel: rbf, cubic, energy or laplace, with the bandwidth of mmd.py.
    """
    total, of_pairs = _Sums.apply(x, y, weights, pairs, kernel, bandwidth)
    return total, of_pairs


def sum_of_diagonal(x: torch.Tensor, kernel: str) -> torch.Tensor:
    """sum_i k(x_i, x_i), a scalar: what the sum over pairs excludes."""
    if kernel == "cubic":
        return (x.square().sum(1) + 1).pow(3).sum()
    return x.new_full((), len(x) * mmd.AT_ZERO.get(kernel, 1.0))


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, y: torch.Tensor | None, weights: torch.Tensor | None, pairs: float, kernel: str,
        bandwidth: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        m = len(x) if pairs else 0
        columns = torch.cat([*([x] if m else []), *([] if y is None else [y])])
        form = _of_products if kernel == "cubic" else _of_distances
        total, of_pairs, gradient = form(
            x, columns, lambda values, slopes: _weighed(values, slopes, weights, pairs, m), kernel, bandwidth
        )
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(of_pairs)
        return total, of_pairs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None, None, None, None]:
        return factor * ctx.saved_tensors[0], None, None, None, None, None


def _weighed(
    values: torch.Tensor, slopes: torch.Tensor, weights: torch.Tensor | None, pairs: float, m: int
) -> tuple[torch.Tensor, torch.Tensor]:
    # Both sums of the values [m, m + n], whose first m columns are pairs; the slopes get the same weights in place.
    of_pairs = values.new_zeros(())
    if m:
        for matrix in (values, slopes):
            matrix[:, :m].diagonal().zero_()
        of_pairs = values[:, :m].sum()
        slopes[:, :m].mul_(2 * pairs)  # a pair has its gradient in both of its rows
    total = pairs * of_pairs
    if weights is not None:
        slopes[:, m:].mul_(weights)
        total = total + (values[:, m:] @ weights).sum()
    return total, of_pairs


def _of_products(x: torch.Tensor, y: torch.Tensor, weigh: Weigh, kernel: str, bandwidth: float) -> Tensors:
    products = (x @ y.T).add_(1)
    slopes = products.square()
    sums = weigh(products.mul_(slopes), slopes)
    return *sums, 3 * slopes @ y


def _of_distances(x: torch.Tensor, y: torch.Tensor, weigh: Weigh, kernel: str, bandwidth: float) -> Tensors:
    centre = y.mean(0)  # differences of large numbers lose digits
    x, y = x - centre, y - centre
    squares = torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2).clamp_(min=0)
    values, slopes = SLOPES[kernel](squares, bandwidth)
    sums = weigh(values, slopes)
    return *sums, 2 * (x * slopes.sum(1)[:, None] - slopes @ y)


def _powers(first: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Sums over i < count of first^(2^i), and of 2^i first^(2^i). `first` is overwritten.
    total, slope = first.clone(), first.clone()
    for i in range(1, count):
        first.square_()
        total.add_(first)
        slope.add_(first, alpha=2.0**i)
    return total, slope


def _rbf(squares: torch.Tensor, bandwidth: float) -> tuple[torch.Tensor, torch.Tensor]:
    rate, count = 1 / (2 * bandwidth * mmd.FACTORS[-1]), len(mmd.FACTORS)
    total, slope = _powers(squares.mul_(-rate).exp_(), count)
    return total.div_(count), slope.mul_(-rate / count)


def _energy(squares: torch.Tensor, bandwidth: float) -> tuple[torch.Tensor, torch.Tensor]:
    distance = squares.add_(1e-12).sqrt_()
    return -distance, -0.5 / distance


def _laplace(squares: torch.Tensor, bandwidth: float) -> tuple[torch.Tensor, torch.Tensor]:
    rate, count = 1 / mmd.RANGES[-1], len(mmd.RANGES)
    distance = squares.div_(bandwidth).add_(1e-12).sqrt_()
    total, slope = _powers((-rate * distance).exp_(), count)
    return total.div_(count), slope.mul_(-rate / (2 * bandwidth * count)).div_(distance)


# The kernels of |x - y|^2 [m, n] and their derivative in it. The argument is overwritten.
SLOPES = {"rbf": _rbf, "energy": _energy, "laplace": _laplace}
