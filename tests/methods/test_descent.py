# SPDX-License-Identifier: Apache-2.0
"""One step of gradient descent leads towards the exact function: sCM, MeanFlow and TCM on Gaussian data.

The flow of N(M, S^2) data keeps k = (y - M) / (sigma^2 + S^2)^(1/2). The exact consistency function is M + S k. Here it is
wrong by a h(sigma) (y - M), where h rises from 0, so that along the flow the error is a k h (sigma^2 + S^2)^(1/2), a scalar
function of the time. The gradient to a follows from derivatives of that function alone: no network, no derivative in
forward mode and no preconditioning are needed for what these tests expect.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from eldistill.losses.levels import column
from eldistill.methods import mean_flow, scm, tcm
from eldistill.networks import interval
from tests.methods.test_methods import Gaussian
from tests.toys import batch_of

M, S, DATA = 0.1, 0.8, 0.5  # mean and deviation of the data, and sigma_data of the networks
SHAPES: dict[str, Callable] = {  # h, for numbers and tensors
    "sigma / (1 + sigma)": lambda sigma: sigma / (1 + sigma),
    "1 - S / (sigma^2 + S^2)^(1/2)": lambda sigma: 1 - S / (sigma**2 + S**2) ** 0.5,
}
SEEN = 30  # images before this step
LEVELS = [0.05, 0.4, 1.3, 6.0, 40.0]
PLACES = (-1.7, -0.4, 0.6, 1.1)  # k of the pixels of an image
SIDES = (-1.5, -0.5, 0.5, 1.5)  # images of equal density on both sides of the mean of a noisy image


class Wrong(nn.Module):
    """A denoiser that is wrong by `a` times a shape, times 1 + lower where it has a second level."""

    sigma_data = DATA

    def __init__(self, exact: Callable, shape: Callable, a: float, second: bool = False):
        super().__init__()
        self.exact, self.shape, self.second = exact, shape, second
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, y, sigma, labels=None, augment_labels=None):
        more = 1 + interval._lower.get() if self.second else torch.ones_like(sigma)
        return self.exact(y, sigma) + self.a * column(self.shape(sigma) * more) * (y - M)


def consistency(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The end of the flow through y."""
    return M + S * (y - M) / (column(sigma) ** 2 + S**2).sqrt()


def mean_velocity(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """D = z - t u of the mean velocity from sigma down to the second level, which is lower."""
    sigma, lower = column(sigma), column(interval._lower.get())
    below = M + ((S**2 + lower**2) / (S**2 + sigma**2)).sqrt() * (y - M)
    return (sigma * below - lower * y) / (sigma - lower)


def slope(function: Callable[[float], float], at: float) -> float:
    """The derivative of a function of one number, by differences."""
    step = 1e-5 * min(at, 1.0)
    return (8 * (function(at + step) - function(at - step)) - function(at + 2 * step) + function(at - 2 * step)) / (
        12 * step
    )


def wide(sigma: float) -> float:
    """(sigma^2 + S^2)^(1/2)."""
    return math.hypot(sigma, S)


def one_image(numbers, sigma: float, **told):
    """A batch of one noisy image at sigma, whose pixels have the k of PLACES. Real image and noise are of no other use."""
    noisy = M + torch.tensor(PLACES, dtype=torch.float64).reshape(1, 1, 2, 2) * wide(sigma)
    normal = {"sigma": _normal(numbers, sigma), "epsilon": (noisy - M) / sigma}
    return batch_of((1, 2, 2), {**normal, **told}, reals=torch.full_like(noisy, M), n_images=SEEN)


def _normal(numbers, *levels: float) -> torch.Tensor:
    return (torch.tensor(levels, dtype=torch.float64).log() - numbers.P_mean) / numbers.P_std


def gradient(method, net: Wrong, batch, numbers, **nets) -> float:
    """The derivative of the loss to a."""
    (loss,) = method.generator_terms({"generator": net, **nets}, batch, None, numbers).values()
    return float(torch.autograd.grad(loss, net.a)[0])


# --- the whole gradient ---


def parts(k: float, sigma: float, shape: Callable, a: float) -> tuple[float, float]:
    """(A, B) of a pixel: A as the paper writes it, from F and dx_t/dt, and B as the rest of cos(t) df/dt."""
    t = math.atan(sigma / DATA)
    cos, sin = math.cos(t), math.sin(t)

    def f(time: float) -> float:
        level = DATA * math.tan(time)
        return M + S * k + a * shape(level) * k * wide(level)

    def x(time: float) -> float:
        return math.cos(time) * (M + k * wide(DATA * math.tan(time)))

    output = (cos * x(t) - f(t)) / (DATA * sin)  # F
    first = -(cos**2) * (DATA * output - slope(x, t))
    return first, cos * slope(f, t) - first


@pytest.mark.parametrize("rise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("a", [0.2, -0.1])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("sigma", LEVELS)
def test_scm_gradient_is_that_of_trigflow(sigma, shape, a, rise):
    """-2 / N sum g dF/da, where g is A + r B over its norm plus c."""
    numbers = scm.Numbers(adaptive=False, tangent_c=0.7, tangent_images=round(SEEN / rise) if rise else 10**12)
    net, teacher = Wrong(consistency, shape, a), Gaussian(M, S)
    found = gradient(scm, net, one_image(numbers, sigma), numbers, teacher=teacher)
    both = [parts(k, sigma, shape, a) for k in PLACES]
    g = [first + SEEN / numbers.tangent_images * second for first, second in both]
    sin = math.sin(math.atan(sigma / DATA))
    outputs = [-shape(sigma) * k * wide(sigma) / (DATA * sin) for k in PLACES]  # dF/da
    wanted = -2 / len(g) * sum(x * y for x, y in zip(g, outputs, strict=True)) / (math.hypot(*g) + 0.7)
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("power", [0.0, 0.75])
@pytest.mark.parametrize("a", [0.2, -0.1])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("sigma", "lower"), [(0.4, 0.05), (1.3, 1e-6), (6.0, 5.0), (40.0, 1.0)])
def test_mean_flow_gradient_is_that_of_its_identity(sigma, lower, shape, a, power):
    """u - v + (t - r) du/dt of a wrong u is d/dt of (t - r) times the error of u, because the exact u has none."""
    numbers = mean_flow.Numbers(source="teacher", power=power, power_c=0.3)
    told = {"lower": _normal(numbers, lower), "unequal": torch.zeros(1)}
    found = gradient(
        mean_flow, Wrong(mean_velocity, shape, a, second=True), one_image(numbers, sigma, **told), numbers,
        teacher=Gaussian(M, S),
    )  # fmt: skip
    r, at = lower / (1 + lower), sigma / (1 + sigma)

    def error(t: float) -> float:  # of u, for k = 1
        level = t / (1 - t)
        return -a * shape(level) * (1 + lower) * wide(level) / t

    left = slope(lambda t: (t - r) * error(t), at)
    squares = sum(k**2 for k in PLACES)
    wanted = 2 * left * error(at) / a * squares / (left**2 * squares + 0.3) ** power
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-10)


# --- training on real images alone: in expectation ---


def around(sigma: float, numbers, **told):
    """A batch of one noisy pixel for each k, with images on both sides of its mean."""
    y = torch.tensor([M + k * wide(sigma) for k in PLACES], dtype=torch.float64)
    mean, spread = M + S**2 / wide(sigma) ** 2 * (y - M), S * sigma / wide(sigma)
    images = (mean[:, None] + spread * torch.tensor(SIDES, dtype=torch.float64)).reshape(-1, 1, 1, 1)
    epsilon = (y.repeat_interleave(len(SIDES)).reshape(-1, 1, 1, 1) - images) / sigma
    levels = _normal(numbers, sigma).expand(len(images))
    each = {name: value.expand(len(images)) for name, value in told.items()}
    return batch_of((1, 1, 1), {"sigma": levels, "epsilon": epsilon, **each}, reals=images, total=100)


@pytest.mark.parametrize("a", [0.2, -0.1])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("sigma", LEVELS)
def test_a_step_on_real_images_makes_the_error_smaller_at_every_level(sigma, shape, a):
    """sCT, MeanFlow and TCM's first stage: the gradient has the sign of the error, because the error grows along the flow."""
    numbers = scm.Numbers(source="data", adaptive=False)
    assert gradient(scm, Wrong(consistency, shape, a), around(sigma, numbers), numbers, teacher=None) * a > 0
    numbers = mean_flow.Numbers(power=0.0)
    told = {"lower": _normal(numbers, sigma / 4), "unequal": torch.zeros(1)}
    net = Wrong(mean_velocity, shape, a, second=True)
    assert gradient(mean_flow, net, around(sigma, numbers, **told), numbers, teacher=None) * a > 0
    numbers = tcm.Numbers(q=1e3, huber_c=1e3)  # the squared distance, but for a factor
    net = Wrong(consistency, shape, a)
    assert gradient(tcm, net, around(sigma, numbers), numbers, target=net) * a > 0
