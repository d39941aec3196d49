# SPDX-License-Identifier: Apache-2.0
"""MeanFlow against golden arrays, against its linear path written out, and against the exact mean velocity of Gaussian data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from eldistill import contract
from eldistill.contract import Progress
from eldistill.diffusion import draws
from eldistill.errors import Problem
from eldistill.losses.levels import column
from eldistill.methods import mean_flow
from eldistill.networks import interval
from tests import arrays, conftest
from tests.methods.test_methods import Gaussian
from tests.toys import batch_of, golden, linear, near

MEAN, DEVIATION = 0.1, 0.8  # of the data
SIGMA = torch.tensor([0.05, 0.3, 1.0, 5.0, 60.0]).double()
LOWER = torch.tensor([0.05, 0.1, 0.0, 5.0, 2.0]).double()  # two are equal
NUMBERS = mean_flow.Numbers(source="teacher")


class Of(nn.Module):
    """A function of image, level and second level as a denoiser, moved by one trainable number."""

    sigma_data = 0.5

    def __init__(self, function):
        super().__init__()
        self.function, self.shift = function, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, sigma, labels=None, augment_labels=None):
        return self.function(x, sigma, interval._lower.get()) + self.shift * x


def exact(y: torch.Tensor, sigma: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """D = z - t u of the flow of N(MEAN, DEVIATION^2) data: y moves to `below` at the lower level; at equal levels the
    denoised image."""
    sigma, lower = column(sigma), column(lower)
    ratio = ((DEVIATION**2 + lower**2) / (DEVIATION**2 + sigma**2)).sqrt()
    same = (sigma - lower).abs() < 1e-9 * sigma
    gap = torch.where(same, torch.ones_like(sigma), sigma - lower)
    below = MEAN + ratio * (y - MEAN)
    return torch.where(same, Gaussian(MEAN, DEVIATION)(y, sigma.flatten()), (sigma * below - lower * y) / gap)


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def told(numbers, sigma, lower, epsilon, real):
    """A batch with these two levels of each image."""
    normal = lambda level: (level.clamp_min(1e-300).log() - numbers.P_mean) / numbers.P_std  # noqa: E731
    share = torch.where(lower == sigma, 1.0, 0.0).double()
    given = {"sigma": normal(sigma), "lower": normal(lower), "unequal": share, "epsilon": epsilon}
    return batch_of(real.shape[1:], given, reals=real)


# --- the formulas ---


@pytest.mark.parametrize("source", ["teacher", "data"])
def test_golden_loss(source):
    """mean_flow: both levels, the mean velocity and the loss, for a denoiser that reads its second level."""
    found = golden("mean_flow")
    numbers = mean_flow.Numbers(source=source, power=arrays.POWER, power_c=arrays.POWER_C)
    batch = told(numbers, found["sigma"], found["lower"], found["noise"], found["x"])
    sigma, lower = mean_flow.levels(batch, numbers)
    near(sigma, found["sigma"], 1e-12, entries=True)
    near(lower, found["lower"], 1e-12)
    slope = lambda y, sigma, lower: (  # noqa: E731
        linear(*arrays.FAKE)(y, sigma) + column(arrays.SECOND * lower / (1 + lower)) * y
    )
    nets = {"generator": Of(slope), "teacher": linear(*arrays.TEACHER)}
    t = sigma / (1 + sigma)
    z = column(1 - t) * found["x"] + column(t) * found["noise"]
    with interval.until(lower):
        near(mean_flow.velocity(nets["generator"], z, t, None), found[f"{source}/u"], 1e-9)
    near(mean_flow.generator_terms(nets, batch, None, numbers)["mean_flow"], found[f"{source}/loss"], 1e-9)


def test_change_of_variables_there_and_back():
    """z_t = (1 - t) y with t = sigma / (1 + sigma); a step z_r = z_t - (t - r) u is y_r = D + lower / sigma (y - D)."""
    image, noise = random(5, 1, 2, 2), random(5, 1, 2, 2, seed=1)
    t, r = SIGMA / (1 + SIGMA), LOWER / (1 + LOWER)
    z = column(1 - t) * image + column(t) * noise
    y = z / column(1 - t)
    near(y, image + column(SIGMA) * noise, 1e-12)
    near(t / (1 - t), SIGMA, 1e-12, entries=True)
    net = Of(lambda y, sigma, lower: torch.tanh(y) + column(lower) / 9)
    with interval.until(LOWER):
        u, denoised = mean_flow.velocity(net, z, t, None), net(y, SIGMA)
    near(z - column(t) * u, denoised, 1e-11)
    below = (z - column(t - r) * u) / column(1 - r)
    near(below, denoised + column(LOWER / SIGMA) * (y - denoised), 1e-11)


def test_velocity_of_the_teacher_is_the_mean_of_the_path():
    """(z - E[x | z]) / t = E[e - x | z]: with one image as the data they are the same number."""
    image, noise = torch.full((5, 1, 1, 1), 0.3, dtype=torch.float64), random(5, 1, 1, 1)
    t = SIGMA / (1 + SIGMA)
    z = column(1 - t) * image + column(t) * noise
    near(mean_flow.velocity(lambda y, sigma, labels: torch.full_like(y, 0.3), z, t, None), noise - image, 1e-12)


# --- closed forms: Gaussian data ---


def pulled(nets: dict, batch, numbers) -> tuple[float, float]:
    """The loss and the derivative to the generator's number."""
    nets["generator"].shift.grad = None
    loss = mean_flow.generator_terms(nets, batch, None, numbers)["mean_flow"]
    loss.backward()
    return float(loss.detach()), float(nets["generator"].shift.grad)


def test_loss_of_the_exact_mean_velocity_is_zero():
    """With the teacher's velocity: no value and no gradient at any pair of levels; neither is zero at the teacher."""
    real, epsilon = MEAN + DEVIATION * random(5, 1, 2, 2), random(5, 1, 2, 2, seed=1)
    batch = told(NUMBERS, SIGMA, LOWER, epsilon, real)
    nets = {"generator": Of(exact), "teacher": Gaussian(MEAN, DEVIATION)}
    loss, slope = pulled(nets, batch, NUMBERS)
    assert abs(loss) < 1e-15 and abs(slope) < 1e-8
    nets["generator"] = Of(lambda y, sigma, lower: Gaussian(MEAN, DEVIATION)(y, sigma))
    loss, slope = pulled(nets, batch, NUMBERS)
    assert loss > 1e-3 and abs(slope) > 1e-3


def test_expected_gradient_without_a_teacher_is_zero_there_too():
    """For each noisy image, images of equal density on both sides of its mean cancel: the loss is linear in v."""
    numbers = mean_flow.Numbers(power=0.0)
    variance = DEVIATION**2 * SIGMA**2 / (DEVIATION**2 + SIGMA**2)  # of an image, given y
    y = MEAN + (DEVIATION**2 + SIGMA**2).sqrt() * random(5)
    mean = Gaussian(MEAN, DEVIATION)(y.reshape(5, 1, 1, 1), SIGMA).flatten()
    sides = torch.tensor([1.7, 0.4, -0.4, -1.7]).double()
    images = (mean[:, None] + variance.sqrt()[:, None] * sides).flatten()
    sigma, lower = SIGMA.repeat_interleave(4), LOWER.repeat_interleave(4)
    epsilon, shape = (y.repeat_interleave(4) - images) / sigma, (20, 1, 1, 1)
    batch = told(numbers, sigma, lower, epsilon.reshape(shape), images.reshape(shape))
    loss, slope = pulled({"generator": Of(exact), "teacher": None}, batch, numbers)
    assert loss > 1e-3 and abs(slope) < 1e-8


def test_equal_levels_are_flow_matching():
    """r = t: the squared error of the velocity, without a derivative."""
    numbers = mean_flow.Numbers(power=0.0)
    real, epsilon = random(5, 1, 2, 2), random(5, 1, 2, 2, seed=1)
    batch = told(numbers, SIGMA, SIGMA, epsilon, real)
    net = Of(lambda y, sigma, lower: torch.tanh(y))
    t = SIGMA / (1 + SIGMA)
    u = mean_flow.velocity(lambda y, sigma, labels: torch.tanh(y), column(1 - t) * real + column(t) * epsilon, t, None)
    wanted = (u - (epsilon - real)).square().sum(dim=(1, 2, 3)).mean()
    near(
        mean_flow.generator_terms({"generator": net, "teacher": None}, batch, None, numbers)["mean_flow"], wanted, 1e-12
    )


# --- levels, start and numbers ---


def test_levels_are_sorted_and_equal_for_a_share():
    """Both lognormal with the same numbers, the larger first; the share `unequal` differs."""
    numbers, draw = mean_flow.Numbers(unequal=0.25), draws.Draw(0, "generator", 0, 4000, dtype=torch.float64)
    batch = contract.Batch(draw, None, (1, 1, 1), Progress(0, 0, 100))
    sigma, lower = mean_flow.levels(batch, numbers)
    assert (lower <= sigma).all() and abs(float((lower < sigma).double().mean()) - 0.25) < 0.03
    none = mean_flow.levels(batch, mean_flow.Numbers(unequal=0.0))
    every = mean_flow.levels(batch, mean_flow.Numbers(unequal=1.0))
    assert torch.equal(*none) and (every[1] < every[0]).all()
    both = torch.cat(every).log()
    assert abs(float(both.mean()) + 2) < 0.1 and abs(float(both.std()) - 2) < 0.1


def test_the_start_is_the_teacher_at_every_second_level_and_other_starts_are_kept():
    """The layer of the second level is zero at first; a start that has one keeps it."""
    teacher, numbers = conftest.teacher(), mean_flow.Numbers()
    made = mean_flow.generator(teacher, None, numbers)
    x, sigma = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 1.0, 9.0])
    with interval.until(sigma / 3):
        assert torch.equal(made(x, sigma), teacher(x, sigma))
    with torch.no_grad():
        made.network.interval.weight.fill_(0.5)
    again = mean_flow.generator(teacher, made, numbers)
    assert again is not made and torch.equal(again.network.interval.weight, made.network.interval.weight)
    assert not hasattr(teacher.network, "interval")


def test_levels_of_sampling_must_fall():
    with pytest.raises(Problem, match=r"sigmas_2 is \[80.0, 90.0\]; expected 2 falling noise levels above 0"):
        mean_flow.Numbers(sigmas_2=(80.0, 90.0))


@pytest.mark.parametrize("place", ["real", "epsilon"])
def test_a_nan_stays(place):
    given = {"real": random(5, 1, 2, 2), "epsilon": random(5, 1, 2, 2, seed=1)}
    given[place][1, 0, 1, 0] = np.nan
    batch = told(NUMBERS, SIGMA, LOWER, given["epsilon"], given["real"])
    nets = {"generator": Of(exact), "teacher": Gaussian(MEAN, DEVIATION)}
    assert mean_flow.generator_terms(nets, batch, None, NUMBERS)["mean_flow"].isnan()
