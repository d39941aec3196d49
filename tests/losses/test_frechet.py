# SPDX-License-Identifier: Apache-2.0
"""The Fréchet distance of moments: closed forms, gradients, and what is left out of the leading axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eldistill.evaluate import gaussians
from eldistill.losses import frechet

TINY = 1e-12  # noise, in units of the mean variance


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(d: int, seed: int = 0) -> torch.Tensor:
    factor = random(d, d, seed=seed)
    return factor @ factor.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


def known(mean: torch.Tensor, cov: torch.Tensor, axes: int = 100, noise: float = TINY) -> frechet.Known:
    return frechet.known_of(mean, cov, axes, noise)


def moments(real: frechet.Known, mean: torch.Tensor, cov: torch.Tensor) -> frechet.Moments:
    """Those of features with this mean and covariance."""
    shift = mean - real.mean
    second = cov + torch.outer(shift, shift)
    return frechet.Moments(shift, real.axes.T @ second @ real.axes, second.trace())


def distance(mean: torch.Tensor, cov: torch.Tensor, mean_real: torch.Tensor, cov_real: torch.Tensor, **others) -> float:
    real = known(mean_real, cov_real, **others)
    return float(real.distance(moments(real, mean, cov)))


@pytest.mark.parametrize(("m", "s", "n", "t"), [(0.0, 1.0, 0.0, 1.0), (1.5, 2.0, -0.5, 0.3), (0.0, 1e-3, 0.0, 1.0)])
def test_gaussians_in_one_dimension(m, s, n, t):
    """(m - n)^2 + (s - t)^2 for means m, n and standard deviations s, t."""
    one = lambda value: torch.tensor([value], dtype=torch.float64)  # noqa: E731
    found = distance(one(m), one(s**2)[None], one(n), one(t**2)[None])
    assert found == pytest.approx((m - n) ** 2 + (s - t) ** 2, rel=1e-5, abs=1e-9)


def test_diagonal_covariances():
    """The sum of those of the coordinates."""
    a, b = random(6).abs() + 0.1, random(6, seed=1).abs() + 0.1
    found = distance(torch.zeros(6).double(), a.diag(), torch.zeros(6).double(), b.diag())
    assert found == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-6)


def test_equal_covariances():
    """The squared distance of the means."""
    mean, cov = random(5), covariance(5)
    assert distance(mean, cov, 0 * mean, cov) == pytest.approx(float(mean.square().sum()), rel=1e-9)


def test_it_is_the_metric_of_the_evaluations():
    """Against the Fréchet distance by which runs are ranked, on rows that do not fill all directions."""
    x, y = random(40, 7) @ covariance(7), random(30, 7, seed=2) + 0.3
    real = known(y.mean(0), torch.cov(y.T, correction=0))
    found = real.distance(real.moments(x))
    wanted = gaussians.frechet(
        x.numpy().mean(0), np.cov(x.numpy().T, bias=True), y.numpy().mean(0), np.cov(y.numpy().T, bias=True)
    )
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)


def test_it_is_zero_for_equal_moments_with_any_noise_and_axes():
    """Noise and the isotropic part are the same on both sides."""
    y = random(50, 8) @ covariance(8)
    for axes, noise in ((8, 1e-12), (8, 0.1), (3, 1e-3), (1, 1.0)):
        real = known(y.mean(0), torch.cov(y.T, correction=0), axes, noise)
        assert abs(float(real.distance(real.moments(y)))) < 1e-9


def test_fewer_axes_give_a_lower_bound_that_sees_variance_outside():
    """It rises with the number of axes to the complete distance; noise outside the axes is seen with any number."""
    mean, cov, cov_real = 0.1 * random(6), covariance(6), covariance(6, seed=3)
    found = [distance(mean, cov, 0 * mean, cov_real, axes=axes) for axes in range(1, 7)]
    assert all(a <= b + 1e-12 for a, b in zip(found, found[1:], strict=False))
    flat = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64).diag()
    thick = flat + 0.25 * torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64).diag()
    zero = torch.zeros(4).double()
    assert distance(zero, thick, zero, flat, axes=2) == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("axes", [6, 2])
@pytest.mark.parametrize("rows", [20, 3, 1])
def test_gradient_by_finite_differences(rows, axes):
    """Also of singular covariances, at which the root of the matrix alone has no derivative."""
    y = random(60, 6, seed=5)
    real = known(y.mean(0), torch.cov(y.T, correction=0), axes, 1e-3)
    x = random(rows, 6, seed=6).requires_grad_()
    (gradient,) = torch.autograd.grad(real.distance(real.moments(x)), x)
    direction, step = random(rows, 6, seed=7), 1e-6
    ahead, behind = (float(real.distance(real.moments(x.detach() + s * direction))) for s in (step, -step))
    assert float((gradient * direction).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-8)


def test_gradient_where_all_eigenvalues_are_equal():
    """Equal covariances: the gradient is that of the means alone."""
    real = known(torch.zeros(4).double(), torch.eye(4).double())
    found = moments(real, random(4), torch.eye(4).double())
    inputs = [each.clone().requires_grad_() for each in (found.mean, found.second, found.square)]
    mean, second, _ = torch.autograd.grad(real.distance(frechet.Moments(*inputs)), inputs, allow_unused=True)
    torch.testing.assert_close(mean, 2 * found.mean, rtol=1e-9, atol=1e-9)
    assert float(second.abs().max()) < 1e-9


def test_blended_moments_are_those_of_all_rows():
    """With the share of their number, exactly."""
    y, x, old = random(30, 4), random(8, 4, seed=1), random(24, 4, seed=2)
    real = known(y.mean(0), torch.cov(y.T))
    found, both = real.moments(x).blended(real.moments(old), 0.25), real.moments(torch.cat([x, old]))
    for name in ("mean", "second", "square"):
        torch.testing.assert_close(getattr(found, name), getattr(both, name))
    assert real.trace_ratio(real.moments(y)) == pytest.approx(29 / 30)


def test_a_nan_comes_out():
    """It is neither an error of the decomposition nor hidden by a bound."""
    y = random(30, 4)
    real, x = known(y.mean(0), torch.cov(y.T)), random(6, 4)
    x[2, 1] = torch.nan
    assert real.distance(real.moments(x)).isnan()
