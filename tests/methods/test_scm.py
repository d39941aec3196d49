# SPDX-License-Identifier: Apache-2.0
"""sCM against golden arrays, against TrigFlow written out, and against the exact consistency function of Gaussian data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from eldistill.contract import Phase, Progress
from eldistill.errors import Problem
from eldistill.losses.levels import column
from eldistill.methods import scm
from tests import arrays, conftest
from tests.methods.test_methods import Gaussian
from tests.toys import batch_of, golden, linear, near

MEAN, DEVIATION = 0.1, 0.8  # of the data
LEVELS = torch.tensor([0.02, 0.3, 1.0, 5.0, 60.0]).double()
PLAIN = {"adaptive": False}


class Of(nn.Module):
    """A function of image and noise level as a denoiser, moved by one trainable number."""

    sigma_data = 0.5

    def __init__(self, function):
        super().__init__()
        self.function, self.shift = function, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, sigma, labels=None, augment_labels=None):
        return self.function(x, sigma) + self.shift * x


def exact(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The end at sigma = 0 of the flow of N(MEAN, DEVIATION^2) data through y."""
    return MEAN + DEVIATION * (y - MEAN) / (column(sigma) ** 2 + DEVIATION**2).sqrt()


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def told(numbers: scm.Numbers, sigma: torch.Tensor, epsilon: torch.Tensor, real: torch.Tensor, **others):
    """A batch with these noise levels."""
    normal = (sigma.log() - numbers.P_mean) / numbers.P_std
    return batch_of(real.shape[1:], {"sigma": normal, "epsilon": epsilon}, reals=real, **others)


# --- the formulas ---


@pytest.mark.parametrize("source", ["teacher", "data"])
def test_golden_direction_and_loss(source):
    """scm: TrigFlow's output, the normalised derivative g with a rise of 0.4, and the loss."""
    found = golden("scm")
    numbers = scm.Numbers(source=source, tangent_images=1000, **PLAIN)
    batch = told(numbers, found["sigma"], found["noise"], found["x"], n_images=round(1000 * arrays.RISE))
    nets = {"generator": Of(linear(*arrays.FAKE)), "teacher": linear(*arrays.TEACHER)}
    noisy, sigma, labels, origin = scm.path(nets, batch, numbers)
    near(sigma, found["sigma"], 1e-12, entries=True)
    near(scm.trig_output(noisy, nets["generator"](noisy, sigma), sigma, 0.5), found[f"{source}/trig"], 1e-10)
    near(scm.direction(nets["generator"], batch, noisy, sigma, labels, origin, numbers), found[f"{source}/g"], 1e-10)
    near(scm.generator_terms(nets, batch, None, numbers)["consistency"], found[f"{source}/loss"], 1e-10)


def test_change_of_variables_there_and_back():
    """y = x_t / cos(t) and sigma = sigma_data tan(t): f = cos(t) x_t - sin(t) sigma_data F is D, and -F is what the network
    itself gives."""
    net = conftest.teacher(dtype=torch.float64)
    image, noise = random(5, 1, 8, 8), random(5, 1, 8, 8, seed=1)
    t = (LEVELS / net.sigma_data).arctan()
    x_t = column(t.cos()) * image + column(t.sin()) * net.sigma_data * noise
    y = x_t / column(t.cos())
    near(y, image + column(LEVELS) * noise, 1e-12)
    near(net.sigma_data * t.tan(), LEVELS, 1e-12, entries=True)
    denoised = net(y, LEVELS)
    found = scm.trig_output(y, denoised, LEVELS, net.sigma_data)
    near(column(t.cos()) * x_t - column(t.sin()) * net.sigma_data * found, denoised, 1e-11)
    near(found, -net.network(x_t / net.sigma_data, LEVELS.log() / 4), 1e-9)


@pytest.mark.parametrize("rise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("source", ["teacher", "data"])
def test_direction_is_the_derivative_of_trigflow(source, rise):
    """g before its normalisation is A + r B of the paper, with differences in (x_t, t) in place of the derivative."""
    net, teacher = conftest.teacher(dtype=torch.float64, seed=1), conftest.teacher(dtype=torch.float64)
    real, epsilon, s = random(5, 1, 8, 8), random(5, 1, 8, 8, seed=1), 0.5
    numbers = scm.Numbers(source=source, tangent_images=1000, **PLAIN)
    batch = told(numbers, LEVELS, epsilon, real, n_images=round(1000 * rise))
    nets = {"generator": net, "teacher": teacher}
    g = scm.direction(net, batch, *scm.path(nets, batch, numbers), numbers)

    def output(x_t, t):
        return scm.trig_output(x_t / column(t.cos()), net(x_t / column(t.cos()), s * t.tan()), s * t.tan(), s)

    t = (LEVELS / s).arctan()
    cos, sin = column(t.cos()), column(t.sin())
    x_t = cos * real + sin * s * epsilon
    velocity = cos * s * epsilon - sin * real
    if source == "teacher":
        velocity = s * scm.trig_output(x_t / cos, teacher(x_t / cos, LEVELS), LEVELS, s)
    step = 1e-6 * t.cos() * t.sin()
    ends = [output(x_t + sign * column(step) * velocity, t + sign * step) for sign in (1, -1)]
    change = (ends[0] - ends[1]) / (2 * column(step))
    wanted = -(cos**2) * (s * output(x_t, t) - velocity) - rise * cos * sin * (x_t + s * change)
    wanted = wanted / (wanted.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) + numbers.tangent_c)
    near(g, wanted, 1e-5)


def test_levels_are_lognormal():
    """t = arctan(e^tau / sigma_data), tau ~ N(P_mean, P_std^2): ln sigma is tau."""
    numbers = scm.Numbers(P_mean=-0.8, P_std=1.6, **PLAIN)
    draws = {"sigma": torch.tensor([-1.0, 0.0, 2.0]), "epsilon": torch.zeros(3, 1, 1, 1)}
    batch = batch_of((1, 1, 1), draws, reals=random(3, 1, 1, 1))
    _, sigma, *_ = scm.path({"teacher": Gaussian(MEAN, DEVIATION)}, batch, numbers)
    near(sigma.log(), torch.tensor([-2.4, -0.8, 2.4], dtype=torch.float64), 1e-12, entries=True)


# --- closed forms: Gaussian data ---


def pulled(nets: dict, batch, numbers: scm.Numbers) -> tuple[float, float]:
    """The loss and the derivative to the generator's number."""
    nets["generator"].shift.grad = None
    loss = scm.generator_terms(nets, batch, None, numbers)["consistency"]
    loss.backward()
    return float(loss.detach()), float(nets["generator"].shift.grad)


def test_loss_of_the_exact_consistency_function_is_zero():
    """sCD with the exact teacher: no value and no gradient at any level; neither is zero elsewhere."""
    numbers = scm.Numbers(**PLAIN)
    real, epsilon = MEAN + DEVIATION * random(5, 1, 2, 2), random(5, 1, 2, 2, seed=1)
    batch = told(numbers, LEVELS, epsilon, real)
    nets = {"generator": Of(exact), "teacher": Gaussian(MEAN, DEVIATION)}
    loss, slope = pulled(nets, batch, numbers)
    assert abs(loss) < 1e-20 and abs(slope) < 1e-10
    nets["generator"] = Of(Gaussian(MEAN, DEVIATION))  # the start
    loss, slope = pulled(nets, batch, numbers)
    assert loss > 1e-3 and abs(slope) > 1e-3


def test_expected_gradient_of_training_without_a_teacher_is_zero_there_too():
    """sCT: for each noisy image, images of equal density on both sides of its mean cancel."""
    numbers = scm.Numbers(source="data", **PLAIN)
    variance = DEVIATION**2 * LEVELS**2 / (DEVIATION**2 + LEVELS**2)  # of an image, given y
    y = MEAN + (DEVIATION**2 + LEVELS**2).sqrt() * random(5)
    mean = Gaussian(MEAN, DEVIATION)(y.reshape(5, 1, 1, 1), LEVELS).flatten()
    sides = torch.tensor([1.7, 0.4, -0.4, -1.7]).double()
    images = (mean[:, None] + variance.sqrt()[:, None] * sides).flatten()
    levels = LEVELS.repeat_interleave(4)
    epsilon = (y.repeat_interleave(4) - images) / levels
    shape = (20, 1, 1, 1)
    batch = told(numbers, levels, epsilon.reshape(shape), images.reshape(shape))
    loss, slope = pulled({"generator": Of(exact), "teacher": None}, batch, numbers)
    assert loss > 1e-3 and abs(slope) < 1e-10


def test_first_step_goes_towards_the_exact_function():
    """From the teacher, along x: D is too small where sigma is large, because it is a mean of images."""
    numbers = scm.Numbers(**PLAIN)
    real, epsilon = MEAN + DEVIATION * random(5, 1, 4, 4), random(5, 1, 4, 4, seed=1)
    for sigma in (1.0, 5.0):
        batch = told(numbers, torch.full((5,), sigma).double(), epsilon, real)
        nets = {"generator": Of(Gaussian(MEAN, DEVIATION)), "teacher": Gaussian(MEAN, DEVIATION)}
        assert pulled(nets, batch, numbers)[1] < 0  # a step against the gradient makes images larger


# --- the learned weight, warm-up and phases ---


def test_learned_weight_makes_levels_count_alike():
    """At its optimum e^w is N over the square of g, and there e^w / N |g|^2 is 1 at each level."""
    size, sigma = torch.tensor([0.2, 0.2, 3.0, 3.0]).double(), torch.tensor([0.1, 0.1, 4.0, 4.0]).double()
    error, weighting = column(size).sqrt().expand(4, 1, 2, 3), scm.Weighting(0.5).double()
    optimiser = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(600):
        optimiser.zero_grad()
        loss = scm.weighed(error, sigma, {"weighting": weighting}, held=False)
        loss.backward()
        optimiser.step()
    near((math.log(6) + weighting(sigma)).exp() * size, torch.ones(4).double(), 0.02)
    assert weighting(sigma).shape == (4,)


@pytest.mark.parametrize("side", [1, 8, 32])
def test_the_weight_starts_near_its_optimum_whatever_the_size_of_an_image(side):
    """e^w / N |g|^2 is (|g| / (|g| + c))^2 at first, so that the gradient's scale does not rise while w is learned."""
    numbers = scm.Numbers()
    real, epsilon = random(5, 1, side, side), random(5, 1, side, side, seed=1)
    batch = told(numbers, LEVELS, epsilon, real)
    nets = {"generator": Of(Gaussian(0.0, 0.3)), "teacher": Gaussian(MEAN, DEVIATION)}
    nets |= scm.networks(conftest.teacher(dtype=torch.float64), numbers, 0)
    g = scm.direction(nets["generator"], batch, *scm.path(nets, batch, numbers), numbers)
    wanted = g.square().sum(dim=(1, 2, 3)).mean() - math.log(side**2)
    near(scm.generator_terms(nets, batch, None, numbers)["consistency"], wanted, 1e-9)
    near(scm.critic_terms(nets, batch, None, numbers)["consistency"], wanted, 1e-9)


def test_the_weight_is_held_for_the_generator_and_moves_in_its_own_step():
    """Its own term reads no graph of the generator, and the generator's term none of the weight."""
    numbers = scm.Numbers()
    batch = told(numbers, LEVELS, random(5, 1, 2, 2, seed=1), random(5, 1, 2, 2))
    nets = {"generator": Of(Gaussian(0.0, 0.3)), "teacher": Gaussian(MEAN, DEVIATION)}
    nets |= scm.networks(conftest.teacher(dtype=torch.float64), numbers, 0)
    scm.generator_terms(nets, batch, None, numbers)["consistency"].backward()
    assert nets["weighting"].cosines.weight.grad is None and nets["generator"].shift.grad is not None
    nets["generator"].shift.grad = None
    scm.critic_terms(nets, batch, None, numbers)["consistency"].backward()
    assert nets["weighting"].cosines.weight.grad.any() and nets["generator"].shift.grad is None


def test_warm_up_begins_with_the_derivative_of_the_flow_alone():
    """r is 0 at first and 1 from tangent_images on; 0 images: 1 from the start."""
    net, real, epsilon = Of(Gaussian(0.0, 0.3)), random(5, 1, 2, 2), random(5, 1, 2, 2, seed=1)
    nets = {"generator": net, "teacher": Gaussian(MEAN, DEVIATION)}

    def direction(images: int, n_images: int) -> torch.Tensor:
        numbers = scm.Numbers(tangent_images=images, **PLAIN)
        batch = told(numbers, LEVELS, epsilon, real, n_images=n_images)
        return scm.direction(net, batch, *scm.path(nets, batch, numbers), numbers)

    assert torch.equal(direction(100, 100), direction(0, 0)) and torch.equal(direction(100, 900), direction(0, 0))
    noisy = real + column(LEVELS) * epsilon
    sign = (net(noisy, LEVELS) - nets["teacher"](noisy, LEVELS)).sign()
    assert torch.equal(direction(100, 0).sign(), sign)


def test_phases():
    """The weight steps after the generator, as often as asked."""
    start = Progress(0, 0, 100)
    own = Phase("generator", images="none")
    assert scm.phases(scm.Numbers(), start) == [own, Phase("weighting", images="none")]
    assert scm.phases(scm.Numbers(weight_every=4), start)[1].every == 4
    assert scm.phases(scm.Numbers(**PLAIN), start) == [own]


def test_two_step_level_is_that_of_the_paper():
    """sigma_data tan(1.1) (sCM, section 6)."""
    assert scm.Numbers().sigmas_2[1] == pytest.approx(0.5 * math.tan(1.1), abs=1e-3)
    with pytest.raises(Problem, match=r"sigmas_4 is \[80.0, 7.0, 7.0, 0.3\]; expected 4 falling noise levels above 0"):
        scm.Numbers(sigmas_4=(80.0, 7.0, 7.0, 0.3))


@pytest.mark.parametrize("place", ["real", "epsilon"])
def test_a_nan_stays(place):
    given = {"real": random(5, 1, 2, 2), "epsilon": random(5, 1, 2, 2, seed=1)}
    given[place][1, 0, 1, 0] = np.nan
    numbers = scm.Numbers(**PLAIN)
    nets = {"generator": Of(Gaussian(0.0, 0.3)), "teacher": Gaussian(MEAN, DEVIATION)}
    batch = told(numbers, LEVELS, given["epsilon"], given["real"])
    assert scm.generator_terms(nets, batch, None, numbers)["consistency"].isnan()
