# SPDX-License-Identifier: Apache-2.0
"""Estimators of the squared MMD against explicit double sums and closed forms for normal distributions."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from eldistill.errors import Problem
from eldistill.losses import mmd

KERNELS = ["linear", "rbf"]
ESTIMATORS = ["unbiased", "biased"]
each_form = pytest.mark.parametrize("estimator", ESTIMATORS)
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def normal(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(m: int = 5, n: int = 7, d: int = 3, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(m, d, seed=1, dtype=dtype), 0.5 + 1.5 * normal(n, d, seed=2, dtype=dtype)


def by_hand(x, y, kernel: str, bandwidth: float, estimator: str) -> float:
    """The definition, one pair at a time, in numpy and float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def k(a, b):
        if kernel == "linear":
            return float(np.dot(a, b))
        distance = float(np.sum((a - b) ** 2))
        return sum(math.exp(-distance / (2 * c * bandwidth)) for c in (1 / 4, 1 / 2, 1, 2, 4)) / 5

    def within(rows):
        terms = [k(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j or estimator == "biased"]
        return math.fsum(terms) / len(terms)

    across = math.fsum(k(a, b) for a in x for b in y) / (len(x) * len(y))
    return within(x) + within(y) - 2 * across


def mean_and_error(values) -> tuple[float, float]:
    """Mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


# --- values and gradients --------------------------------------------------------------------------------


@each_kernel
@each_form
@pytest.mark.parametrize("m, n, bandwidth", [(5, 7, 1.0), (7, 5, 4.3), (2, 2, 0.2), (9, 2, 30.0)])
def test_value_is_the_double_sum(kernel, estimator, m, n, bandwidth):
    x, y = pair(m, n)
    value = mmd.mmd2(x, y, kernel, bandwidth, estimator)
    assert value.shape == () and value.dtype == torch.float64
    assert float(value) == pytest.approx(by_hand(x, y, kernel, bandwidth, estimator), abs=1e-10)


@pytest.mark.parametrize("m, n", [(1, 1), (1, 4), (3, 1)])
@each_kernel
def test_biased_form_takes_single_rows(kernel, m, n):
    """The V-statistic is defined for one row on either side."""
    x, y = pair(m, n)
    value = mmd.mmd2(x, y, kernel, 2.0, "biased")
    assert float(value) == pytest.approx(by_hand(x, y, kernel, 2.0, "biased"), abs=1e-10)


@each_kernel
@each_form
def test_gradient(kernel, estimator):
    """Finite differences in both arguments: centring on y's mean without its gradient changes nothing."""
    x, y = (each.requires_grad_() for each in pair(4, 5))
    assert torch.autograd.gradcheck(lambda x, y: mmd.mmd2(x, y, kernel, 2.0, estimator), (x, y))


@each_form
def test_linear_sums_are_the_gram_form(estimator):
    """O((m + n) D) and O(m n D) give one value and one gradient."""
    x, y = (each.requires_grad_() for each in pair(6, 9, 4))
    xx, yy, xy = mmd.linear(x, x), mmd.linear(y, y), mmd.linear(x, y)
    if estimator == "biased":
        gram = xx.mean() + yy.mean() - 2 * xy.mean()
    else:
        gram = (xx.sum() - xx.trace()) / 30 + (yy.sum() - yy.trace()) / 72 - 2 * xy.mean()
    value = mmd.mmd2(x, y, "linear", 1.0, estimator)
    assert float(value.detach()) == pytest.approx(float(gram.detach()), abs=1e-12)
    ours, theirs = torch.autograd.grad(value, (x, y)), torch.autograd.grad(gram, (x, y))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


def test_linear_forms_differ_by_the_covariances():
    """V - U = tr S_x / m + tr S_y / n with the sample covariances, and V is the distance of the means."""
    x, y = pair(6, 9, 4)
    biased, unbiased = (float(mmd.mmd2(x, y, "linear", 1.0, form)) for form in ("biased", "unbiased"))
    traces = float(x.var(0).sum()) / 6 + float(y.var(0).sum()) / 9
    assert biased - unbiased == pytest.approx(traces, abs=1e-12)
    assert biased == pytest.approx(float((x.mean(0) - y.mean(0)).square().sum()), abs=1e-12)


@each_kernel
@each_form
def test_order_and_sides_do_not_matter(kernel, estimator):
    """Invariant to permutations of either side and symmetric in the two."""
    x, y = pair(16, 21, 5)
    value = float(mmd.mmd2(x, y, kernel, 3.0, estimator))
    shuffled = x[torch.randperm(16, generator=torch.Generator().manual_seed(0))], y.flip(0)
    assert float(mmd.mmd2(*shuffled, kernel, 3.0, estimator)) == pytest.approx(value, abs=1e-13)
    assert float(mmd.mmd2(y, x, kernel, 3.0, estimator)) == pytest.approx(value, abs=1e-13)


@each_kernel
@each_form
def test_rigid_motions_do_not_matter(kernel, estimator):
    """Invariant to a common shift and rotation of both sides."""
    x, y = pair(6, 9, 4)
    turn, _ = torch.linalg.qr(normal(4, 4, seed=3))
    moved = (each @ turn + normal(4, seed=4) for each in (x, y))
    value = float(mmd.mmd2(x, y, kernel, 3.0, estimator))
    assert float(mmd.mmd2(*moved, kernel, 3.0, estimator)) == pytest.approx(value, abs=1e-12)


@each_kernel
def test_units(kernel):
    """Scaling the features by s scales linear by s^2; rbf stays as it is if the bandwidth goes along."""
    x, y = pair(6, 9, 4)
    value = float(mmd.mmd2(x, y, kernel, 3.0))
    factor = 100 if kernel == "linear" else 1
    assert float(mmd.mmd2(10 * x, 10 * y, kernel, 300.0)) == pytest.approx(factor * value, rel=1e-12)


@each_kernel
def test_equal_samples(kernel):
    """V(x, x) = 0 up to rounding; U(x, x) = -2/m (mean of k on the diagonal minus mean off it) < 0."""
    x, _ = pair(6)
    assert float(mmd.mmd2(x, x, kernel, 2.0, "biased")) == pytest.approx(0, abs=1e-14)
    unbiased = float(mmd.mmd2(x, x, kernel, 2.0))
    assert unbiased == pytest.approx(by_hand(x, x, kernel, 2.0, "unbiased"), abs=1e-12)
    if kernel == "linear":
        assert unbiased == pytest.approx(-2 * float(x.var(0).sum()) / 6, abs=1e-12)
    assert unbiased < -0.01


def test_rbf_sees_what_linear_cannot():
    """Two distributions of one mean and different spread: only rbf tells them apart."""
    x, y = normal(400, 3, seed=1), 2 * normal(400, 3, seed=2)
    x, y = x - x.mean(0), y - y.mean(0)
    assert float(mmd.mmd2(x, y, "linear", 1.0, "biased")) == pytest.approx(0, abs=1e-14)
    assert float(mmd.mmd2(x, y, "rbf", 6.0)) > 0.02


# --- precision -------------------------------------------------------------------------------------------


@each_kernel
@each_form
def test_float32_far_from_the_origin(kernel, estimator):
    """An offset of 1000 loses no digits beyond those of the inputs: the same sums in float64 agree to 1e-6 |x|^2.

    Without centring they would not: |x|^2 is 8e6 and float32 keeps 6e-8 of it.
    """
    x, y = (1000 + each.float() for each in pair(32, 48, 8))
    bandwidth = 10.0
    value = mmd.mmd2(x, y, kernel, bandwidth, estimator)
    assert value.dtype == torch.float32
    expected = by_hand(x.numpy(), y.numpy(), kernel, bandwidth, estimator)
    assert float(value) == pytest.approx(expected, abs=1e-5)
    naive = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    assert (naive - torch.cdist(x.double(), y.double()).square()).abs().max() > 0.1  # so the test can fail


@each_kernel
@each_form
def test_float32_gradient(kernel, estimator):
    """The gradient of float32 features, also far away, is that of float64 to 1e-5 of its largest entry."""
    for offset in (0, 1000):
        x, y = (offset + each.float() for each in pair(16, 16, 8))
        gradients = []
        for dtype in (torch.float32, torch.float64):
            leaf = x.to(dtype).requires_grad_()
            gradients += torch.autograd.grad(mmd.mmd2(leaf, y.to(dtype), kernel, 10.0, estimator), leaf)
        assert (gradients[0].double() - gradients[1]).abs().max() < 1e-5 * gradients[1].abs().max()


@each_kernel
@each_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_summed_in_float32(kernel, estimator, dtype):
    """Half precision in, the float32 value of those very numbers out."""
    x, y = (each.to(dtype) for each in pair(16, 24, 8))
    value = mmd.mmd2(x, y, kernel, 10.0, estimator)
    assert value.dtype == torch.float32
    assert torch.equal(value, mmd.mmd2(x.float(), y.float(), kernel, 10.0, estimator))


def test_squared_distances():
    """Zero from a row to itself, never negative, and the difference's square for all pairs."""
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):  # |x|^2 is about 30
        x, y = pair(20, 30, 10, dtype)
        expected = (x[:, None] - y).square().sum(-1)
        assert torch.allclose(mmd.squared_distances(x, y), expected, rtol=0, atol=10 * tolerance)
        own = mmd.squared_distances(x, x)
        assert own.min() >= 0 and own.diagonal().max() < 10 * tolerance


@pytest.mark.parametrize("n", [2, 3, 6, 7, 41])
def test_median_squared_distance(n):
    """Brute force over pairs i < j; of an even number of pairs the lower of the middle two."""
    x = normal(n, 4, seed=n)
    every = sorted(float((x[i] - x[j]).square().sum()) for j in range(n) for i in range(j))
    assert mmd.median_squared_distance(x) == pytest.approx(statistics.median_low(every), rel=1e-12)


# --- refusals --------------------------------------------------------------------------------------------


@each_kernel
@pytest.mark.parametrize("m, n", [(1, 5), (5, 1), (1, 1)])
def test_unbiased_needs_two_rows(kernel, m, n):
    with pytest.raises(Problem, match=f"{m} generated and {n} real"):
        mmd.mmd2(*pair(m, n), kernel, 1.0, "unbiased")


@pytest.mark.parametrize("kernel, estimator", [("quartic", "unbiased"), ("rbf", "u"), ("", "biased")])
def test_unknown_names(kernel, estimator):
    """The message names what was given and what there is."""
    with pytest.raises(Problem, match="expected one of linear, rbf, cubic, energy, laplace and unbiased or") as caught:
        mmd.mmd2(*pair(), kernel, 1.0, estimator)
    assert repr(kernel) in str(caught.value) and repr(estimator) in str(caught.value)


# --- statistics ------------------------------------------------------------------------------------------

SPREAD = torch.tensor([2.0, 1.0, 0.5, 0.1], dtype=torch.float64)  # deviations; tr Cov = 5.26
TRACE, TRACE_OF_SQUARE = float((SPREAD**2).sum()), float((SPREAD**4).sum())
DRAWS = 2000


def samples(m: int, n: int, seed: int = 0):
    """DRAWS pairs of independent samples of N(0, diag(SPREAD^2))."""
    x, y = normal(DRAWS, m, 4, seed=seed) * SPREAD, normal(DRAWS, n, 4, seed=seed + 1) * SPREAD
    return zip(x, y, strict=True)


@pytest.mark.parametrize("m, n", [(4, 6), (16, 16), (8, 32)])
def test_bias_of_the_linear_forms(m, n):
    """c.1: at P = Q the U-statistic has mean 0, the V-statistic tr(Cov) (1/m + 1/n)."""
    values = [[float(mmd.mmd2(x, y, "linear", 1.0, form)) for form in ESTIMATORS] for x, y in samples(m, n)]
    unbiased, biased = (mean_and_error(column) for column in zip(*values, strict=True))
    assert abs(unbiased[0]) < 3 * unbiased[1]
    assert abs(biased[0] - TRACE * (1 / m + 1 / n)) < 3 * biased[1] < 0.1 * biased[0]


def gaussian_similarity(shift: float, variance: float, dimensions: int, bandwidth: float) -> float:
    """E k(a, b) for a - b ~ N(mu, variance I), |mu|^2 = shift."""
    terms = []
    for c in (0.25, 0.5, 1, 2, 4):
        h = c * bandwidth
        terms.append((h / (h + variance)) ** (dimensions / 2) * math.exp(-shift / (2 * (h + variance))))
    return sum(terms) / 5


@pytest.mark.parametrize("m, n", [(4, 8), (16, 16), (64, 32)])
@pytest.mark.parametrize("mean, deviation", [(0.0, 1.0), (0.3, 1.0), (0.0, 0.6), (0.2, 1.5)])
def test_rbf_between_normals(m, n, mean, deviation):
    """c.1, c.2: E[U] is the known MMD^2 of N(mu, s^2 I) and N(0, I) whatever m and n; E[V] adds the self-pairs."""
    d, bandwidth, count = 3, 4.0, 1000
    xs, ys = mean + deviation * normal(count, m, d, seed=5), normal(count, n, d, seed=6)
    shift = d * mean**2
    own_x = gaussian_similarity(0, 2 * deviation**2, d, bandwidth)
    own_y = gaussian_similarity(0, 2, d, bandwidth)
    truth = own_x + own_y - 2 * gaussian_similarity(shift, 1 + deviation**2, d, bandwidth)
    bias = {"unbiased": 0.0, "biased": (1 - own_x) / m + (1 - own_y) / n}
    for form in ESTIMATORS:
        found, error = mean_and_error(
            [float(mmd.mmd2(x, y, "rbf", bandwidth, form)) for x, y in zip(xs, ys, strict=True)]
        )
        assert abs(found - truth - bias[form]) < 3.5 * error  # 24 comparisons
        assert bias[form] == 0 or 3.5 * error < bias[form] / 2  # sharp enough to see the bias


@pytest.mark.parametrize("m", [16, 64, 256])
def test_spread_of_the_linear_form_at_the_null(m):
    """c.2: Var U = 2 tr(Cov^2) (1/m(m-1) + 1/n(n-1) + 2/mn), so its deviation falls as 1/m."""
    values = [float(mmd.mmd2(x, y, "linear")) for x, y in samples(m, m, seed=7)]
    variance = 2 * TRACE_OF_SQUARE * (2 / (m * (m - 1)) + 2 / m**2)
    assert abs(statistics.fmean(values)) < 3 * math.sqrt(variance / DRAWS)
    # A square of a normal has kurtosis 15, so the sample variance's error is at most sqrt(14 / 2000) = 8 %.
    assert statistics.variance(values) == pytest.approx(variance, rel=0.25)


@pytest.mark.parametrize("m", [4, 16])
def test_gradient_at_the_truth(m):
    """c.3: generator x -> a x at a = 1, linear kernel: E dV/da = 2 tr(Cov) / m, E dU/da = 0."""
    slopes = {form: [] for form in ESTIMATORS}
    for x, y in samples(m, 16, seed=9):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        for form in ESTIMATORS:
            (slope,) = torch.autograd.grad(mmd.mmd2(scale * x, y, "linear", 1.0, form), scale)
            slopes[form].append(float(slope))
    mean, error = mean_and_error(slopes["unbiased"])
    assert abs(mean) < 3 * error
    mean, error = mean_and_error(slopes["biased"])
    assert abs(mean - 2 * TRACE / m) < 3 * error < 0.2 * mean


def test_rbf_gradient_at_the_truth():
    """c.3 for rbf: at P = Q the U-statistic's mean gradient is 0, the V-statistic's rewards a smaller spread.

    E dV/da = -(1/m) d/da E k(a x, a x') at a = 1.
    """
    m, d, bandwidth = 4, 3, 4.0
    slopes = {form: [] for form in ESTIMATORS}
    for x, y in zip(normal(DRAWS, m, d, seed=11), normal(DRAWS, 16, d, seed=12), strict=True):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        for form in ESTIMATORS:
            (slope,) = torch.autograd.grad(mmd.mmd2(scale * x, y, "rbf", bandwidth, form), scale)
            slopes[form].append(float(slope))
    step = 1e-5
    up, down = (gaussian_similarity(0, 2 * (1 + sign * step) ** 2, d, bandwidth) for sign in (1, -1))
    mean, error = mean_and_error(slopes["unbiased"])
    assert abs(mean) < 3 * error
    mean, error = mean_and_error(slopes["biased"])
    assert abs(mean + (up - down) / (2 * step) / m) < 3 * error < 0.2 * mean
