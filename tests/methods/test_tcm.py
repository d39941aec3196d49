# SPDX-License-Identifier: Apache-2.0
"""TCM against golden arrays, its two stages, its distribution of noise levels, and Gaussian data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from eldistill import contract
from eldistill.contract import Progress
from eldistill.diffusion import draws
from eldistill.errors import Problem
from eldistill.losses.levels import column
from eldistill.methods import tcm
from eldistill.training import loop
from tests import arrays, conftest
from tests.methods.test_methods import Gaussian
from tests.toys import batch_of, golden, linear, near

MEAN, DEVIATION = 0.1, 0.8  # of the data


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


def share_of(sigma: torch.Tensor, numbers: tcm.Numbers) -> torch.Tensor:
    """The position of a level in the truncated distribution, by bisection of its quantiles."""
    low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
    for _ in range(60):
        middle = (low + high) / 2
        above = tcm.quantile(middle, numbers) > sigma.log()
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return low


# --- the formulas ---


@pytest.mark.parametrize("stage", ["first", "second"])
def test_golden_losses(stage):
    """tcm: ECT's loss at all levels, then that above the border with the first stage below it."""
    found = golden("tcm")
    numbers = tcm.Numbers(border=arrays.BORDER, q=arrays.TCM_Q, huber_c=arrays.TCM_C)
    if stage == "first":
        given = {"sigma": (found["sigma"].log() - numbers.P_mean) / numbers.P_std}
    else:
        given = {"sigma": share_of(found["above"], numbers), "boundary": 1.0 - found["boundary"].double()}
    batch = batch_of(
        (2, 3, 3), {**given, "epsilon": found["noise"]}, reals=found["x"], n_images=60 * (stage == "second"), total=100
    )
    nets = {"generator": Of(linear(*arrays.FAKE)), "target": linear(*arrays.TEACHER)}
    near(tcm.generator_terms(nets, batch, None, numbers)["consistency"], found[stage], 1e-9)


@pytest.mark.parametrize("df", [0.01, 1.0, 5.0])
def test_levels_follow_the_truncated_student_distribution(df):
    """Against numerical integration of its density on a plain grid: the share of the levels below some noise levels."""
    numbers = tcm.Numbers(tail_df=df)
    grid = torch.linspace(0, math.log(80), 2_000_001, dtype=torch.float64)
    density = (1 + (grid / 0.2) ** 2 / df) ** (-(df + 1) / 2)
    for sigma in (1.01, 1.1, 2.0, 10.0, 70.0):
        wanted = float(torch.trapezoid(density[grid <= math.log(sigma)], dx=1) / torch.trapezoid(density, dx=1))
        found = float(share_of(torch.tensor([sigma]).double(), numbers))
        assert found == pytest.approx(wanted, abs=1e-4)


def test_many_degrees_of_freedom_are_a_normal_distribution():
    """Truncated at its centre: the median is the upper quartile of the whole one."""
    numbers = tcm.Numbers(tail_df=1e6)
    assert float(tcm.quantile(torch.tensor([0.5]).double(), numbers)) == pytest.approx(0.2 * 0.674490, rel=1e-3)


def test_levels_of_the_second_stage():
    """A share at the border exactly, the others between it and sigma_max, with weights whose means are 1 and that of the
    boundary loss."""
    numbers, draw = tcm.Numbers(), draws.Draw(0, "generator", 0, 8000, dtype=torch.float64)
    sigma, weight = tcm.second_levels(contract.Batch(draw, None, (1, 1, 1), Progress(0, 0, 100)), numbers)
    border = sigma == 1.0
    assert abs(float(border.double().mean()) - 0.25) < 0.02 and sigma.min() == 1.0 and sigma.max() < 80
    near(weight, border.double() * 0.1 / 0.25 + (~border).double() / 0.75, 1e-12, entries=True)


# --- the two stages ---


def test_below_the_border_the_first_stage_answers():
    """A NaN of the first stage counts where the lower level is below the border alone; in the first stage it never does."""
    numbers = tcm.Numbers(q=16.0)
    sick = lambda x, sigma, labels: torch.full_like(x, math.nan)  # noqa: E731
    nets = {"generator": Of(exact), "target": sick}
    for sigma, reads in ((1.02, True), (40.0, False)):
        given = {"sigma": share_of(torch.full((3,), sigma).double(), numbers), "boundary": torch.ones(3)}
        batch = batch_of(
            (1, 2, 2),
            {**given, "epsilon": random(3, 1, 2, 2)},
            reals=random(3, 1, 2, 2, seed=1),
            n_images=60,
            total=100,
        )
        assert bool(tcm.generator_terms(nets, batch, None, numbers)["consistency"].isnan()) == reads
    given = {"sigma": torch.zeros(3), "epsilon": random(3, 1, 2, 2)}
    batch = batch_of((1, 2, 2), given, reals=random(3, 1, 2, 2, seed=1), n_images=0, total=100)
    assert tcm.generator_terms(nets, batch, None, numbers)["consistency"].isfinite()


def test_the_first_stage_follows_the_generator_and_then_stays(bench):
    """In a run without a start: an average until half of the images, and bit for bit the same from then on."""
    work, seen = loop.Loop(bench.job("tcm", numbers=tcm.Numbers(mu=0.0), batch=4, steps=6)), []
    for _ in range(6):
        work.iterate()
        seen.append([p.detach().clone() for p in work.nets["target"].parameters()])
        same = all(torch.equal(a, b) for a, b in zip(seen[-1], work.nets["generator"].parameters(), strict=True))
        assert same == (len(seen) <= 3)
    changed = [not all(map(torch.equal, a, b)) for a, b in zip(seen, seen[1:], strict=False)]
    assert changed == [True, True, False, False, False]


def test_a_run_without_any_first_stage_is_a_sentence():
    """first_share 0 needs a start; with one, generator and first stage are it."""
    teacher, other, numbers = conftest.teacher(), conftest.teacher(seed=7), tcm.Numbers(first_share=0.0)
    with pytest.raises(
        Problem, match="first_share is 0 of tcm, but the run starts from no consistency model; set start_from"
    ):
        tcm.generator(teacher, None, numbers)
    made = tcm.generator(teacher, other, numbers)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), other.parameters(), strict=True))
    assert not tcm.in_first_stage(numbers, Progress(0, 0, 100))


def test_sampling_stays_above_the_border():
    with pytest.raises(Problem, match="border is 2 and the lowest noise level of sampling 1 of tcm"):
        tcm.Numbers(border=2.0)


# --- closed forms: Gaussian data ---


@pytest.mark.parametrize("second", [False, True])
def test_expected_gradient_vanishes_at_the_exact_consistency_function(second):
    """As t - r goes to 0, for each noisy image images of equal density on both sides of its mean cancel; at the start, the
    teacher, they do not."""
    numbers = tcm.Numbers(q=1e5, huber_c=1e3)  # the squared distance, but for a factor
    sigma = torch.tensor([1.2, 3.0, 20.0] if second else [0.1, 1.0, 20.0]).double()
    variance = DEVIATION**2 * sigma**2 / (DEVIATION**2 + sigma**2)
    y = MEAN + (DEVIATION**2 + sigma**2).sqrt() * random(3)
    mean = Gaussian(MEAN, DEVIATION)(y.reshape(3, 1, 1, 1), sigma).flatten()
    images = (mean[:, None] + variance.sqrt()[:, None] * torch.tensor([1.7, 0.4, -0.4, -1.7]).double()).flatten()
    levels = sigma.repeat_interleave(4)
    epsilon = ((y.repeat_interleave(4) - images) / levels).reshape(12, 1, 1, 1)
    given = {"sigma": share_of(levels, numbers), "boundary": torch.ones(12)} if second else {
        "sigma": (levels.log() - numbers.P_mean) / numbers.P_std
    }  # fmt: skip
    batch = batch_of(
        (1, 1, 1), {**given, "epsilon": epsilon}, reals=images.reshape(12, 1, 1, 1), n_images=60 * second, total=100
    )

    def slope(function) -> float:
        nets = {"generator": Of(function), "target": Of(function)}
        loss = tcm.generator_terms(nets, batch, None, numbers)["consistency"] * numbers.huber_c
        return float(torch.autograd.grad(loss, nets["generator"].shift)[0])

    assert abs(slope(exact)) < 1e-3 * abs(slope(Gaussian(MEAN, DEVIATION)))


@pytest.mark.parametrize("place", ["real", "epsilon"])
def test_a_nan_stays(place):
    given = {"real": random(3, 1, 2, 2), "epsilon": random(3, 1, 2, 2, seed=1)}
    given[place][1, 0, 1, 0] = np.nan
    batch = batch_of((1, 2, 2), {"sigma": torch.zeros(3), "epsilon": given["epsilon"]}, reals=given["real"], total=100)
    nets = {"generator": Of(exact), "target": Of(exact)}
    assert tcm.generator_terms(nets, batch, None, tcm.Numbers())["consistency"].isnan()
