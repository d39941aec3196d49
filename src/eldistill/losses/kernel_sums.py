# SPDX-License-Identifier: Apache-2.0
"""Sums of kernels over rows, with their gradients computed in the same pass as their values.

A matrix k(x, y) [m, n] is written once and changed in place, so that it costs a third of what autograd needs for the
functions in mmd.py, which these equal up to rounding. There is no second derivative.
"""

from __future__ import annotations

import torch

from eldistill.losses import mmd

COVERED_BY = "ensemble/anchors"  # only anchored EL uses it


def weighted_sum(
    x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, kernel: str, bandwidth: float
) -> torch.Tensor:
    """sum_i sum_j w_j k(x_i, y_j), a scalar, differentiable in x [m, D] only. y: [n, D]. weights: [n].

    kernel: rbf, cubic, energy or laplace, all with the bandwidth of mmd.py.
    """
    result: torch.Tensor = _Sum.apply(x, y, weights, kernel, bandwidth)
    return result


def sum_of_pairs(x: torch.Tensor, kernel: str, bandwidth: float) -> torch.Tensor:
    """sum_{i != j} k(x_i, x_j), a scalar, differentiable in x [m, D]; kernel and bandwidth as in `weighted_sum`."""
    result: torch.Tensor = _Sum.apply(x, None, None, kernel, bandwidth)
    return result


def sum_of_diagonal(x: torch.Tensor, kernel: str) -> torch.Tensor:
    """sum_i k(x_i, x_i), a scalar: what `sum_of_pairs` excludes."""
    if kernel == "cubic":
        return (x.square().sum(1) + 1).pow(3).sum()
    return x.new_tensor(len(x) * mmd.AT_ZERO.get(kernel, 1.0))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, weights, kernel: str, bandwidth: float) -> torch.Tensor:
        form = _of_products if kernel == "cubic" else _of_distances
        value, gradient = form(x, x if y is None else y, weights, kernel, bandwidth)
        ctx.save_for_backward(
            gradient if y is not None else 2 * gradient
        )  # a pair has its gradient in both of its rows
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, factor):
        return factor * ctx.saved_tensors[0], None, None, None, None


def _weighed(values, slopes, weights) -> torch.Tensor:
    # The sum of the values; the slopes get the same weights in place. Without weights the diagonals are 0.
    if weights is None:
        slopes.fill_diagonal_(0)
        return values.fill_diagonal_(0).sum()
    slopes.mul_(weights)
    return (values @ weights).sum()


def _of_products(x, y, weights, kernel: str, bandwidth: float) -> tuple[torch.Tensor, torch.Tensor]:
    products = (x @ y.T).add_(1)
    slopes = products.square()
    value = _weighed(products.mul_(slopes), slopes, weights)
    return value, 3 * slopes @ y


def _of_distances(x, y, weights, kernel: str, bandwidth: float) -> tuple[torch.Tensor, torch.Tensor]:
    centre = y.mean(0)  # differences of large numbers lose digits
    x, y = x - centre, y - centre
    squares = torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2).clamp_(min=0)
    values, slopes = SLOPES[kernel](squares, bandwidth)
    value = _weighed(values, slopes, weights)
    return value, 2 * (x * slopes.sum(1)[:, None] - slopes @ y)


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
