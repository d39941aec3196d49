# SPDX-License-Identifier: Apache-2.0
"""SIM against golden arrays, against the divergence that it minimises on Gaussian data, and against SiD."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eldistill.diffusion import noise
from eldistill.losses import score
from eldistill.methods import sim
from tests import arrays
from tests.methods.test_methods import Gaussian
from tests.toys import batch_of, golden, linear, near

MEAN, DEVIATION = 0.1, 0.8  # of the data
GENERATORS = [(0.4, 0.7), (1.3, -0.2)]  # x = a z + b


def nodes(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(z, epsilon, weight), [count^2] each: E f(z, epsilon) of two unit normals is the sum of weight f(z, epsilon)."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    points, weights = torch.from_numpy(points), torch.from_numpy(weights / np.sqrt(2 * np.pi))
    z, epsilon = torch.meshgrid(points, points, indexing="ij")
    return z.flatten(), epsilon.flatten(), torch.outer(weights, weights).flatten()


def test_golden_arrays_are_those_of_their_script():
    """All files of tests/arrays.py, entry by entry."""
    for name, wanted in arrays.computed().items():
        found = golden(name)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_allclose(found[key].numpy(), value, rtol=1e-12, atol=1e-15, err_msg=f"{name}: {key}")


@pytest.mark.parametrize("sequential", [False, True])
def test_golden_loss_and_gradient(sequential):
    """sim: noise levels, each image's loss, and the gradient through x and both denoisers."""
    told = golden("sim")
    batch = batch_of(arrays.SHAPE[1:], {"sigma": told["u"], "epsilon": told["noise"]})
    numbers = sim.Numbers(huber_c=arrays.C, sequential=sequential)
    near(score.identity_sigma(batch, numbers.t_max), told["sigma"], 1e-12, entries=True)
    nets = {"teacher": linear(*arrays.TEACHER), "fake_score": linear(*arrays.FAKE)}
    term = sim.generator_terms(nets, batch, lambda: told["x"], numbers)["implicit"]
    near(term.value, told["loss"].mean(), 1e-12)
    near(term.gradient, told["gradient"], 1e-12)


@pytest.mark.parametrize("share", [0.4, 0.7, 1.0])
@pytest.mark.parametrize(("a", "b"), GENERATORS)
def test_gradient_with_gaussian_data(a, b, share):
    """With the ideal fake_score it is that of E sqrt((D_psi - D_phi)^2 + c^2) with x_t held, D_psi following a and b."""
    z, epsilon, weight = nodes(40)
    numbers, shape = sim.Numbers(huber_c=0.5), (len(z), 1, 1, 1)
    batch = batch_of((1, 1, 1), {"sigma": torch.full((len(z),), share).double(), "epsilon": epsilon})
    nets = {"teacher": Gaussian(MEAN, DEVIATION), "fake_score": Gaussian(b, a)}
    term = sim.generator_terms(nets, batch, lambda: (a * z + b).reshape(shape), numbers)["implicit"]
    slopes = term.gradient.flatten() * len(z) * weight
    sigma = noise.warped_sigma(torch.tensor([numbers.t_max * share]).double())
    noisy = (a * z + b + sigma * epsilon).reshape(shape)
    at = [torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (a, b)]
    ours = (at[0] ** 2 * noisy + sigma**2 * at[1]) / (at[0] ** 2 + sigma**2)
    distance = ((ours - nets["teacher"](noisy, sigma)) ** 2 + numbers.huber_c**2).sqrt().flatten()
    wanted = torch.autograd.grad((weight * distance).sum(), at)
    near(torch.stack([(slopes * z).sum(), slopes.sum()]), torch.stack(wanted), 1e-6)
    value = sim.implicit_loss((a * z + b).reshape(shape), nets["teacher"](noisy, sigma), ours.detach(), numbers.huber_c)
    assert abs(float((weight * value).sum())) < 1e-8  # E (D_psi - x) is 0 at each x_t


def test_nothing_moves_at_the_data():
    """Where the generator is the data both denoisers agree: no value and no gradient, and no division by zero."""
    z, epsilon, _ = nodes(3)
    batch = batch_of((1, 1, 1), {"sigma": torch.full((len(z),), 0.5).double(), "epsilon": epsilon})
    nets = dict.fromkeys(("teacher", "fake_score"), Gaussian(MEAN, DEVIATION))
    x = (DEVIATION * z + MEAN).reshape(-1, 1, 1, 1)
    term = sim.generator_terms(nets, batch, lambda: x, sim.Numbers())["implicit"]
    assert term.value == 0 and not term.gradient.any()


def test_a_large_constant_is_sid_at_alpha_1():
    """c times the loss tends to Delta (D_psi - x), which is SiD's loss without its weight."""
    generator = torch.Generator().manual_seed(0)
    x, real, fake = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    pixels, weight = score.identity_loss(x, real, fake, 1.0)
    near(1e6 * sim.implicit_loss(x, real, fake, 1e6), (pixels * weight).sum(dim=(1, 2, 3)), 1e-9)


def test_the_constant_follows_the_pixels():
    """null is 0.00054 sqrt(pixels), which counts channels too: with Delta = c in each entry the loss is known."""
    real = torch.zeros(2, 3, 4, 4).double()
    fake = real - 0.00054
    found = sim.implicit_loss(real - 1, real, fake)
    near(found, torch.full((2,), (1 - 0.00054) * (48 / 2) ** 0.5, dtype=torch.float64), 1e-9)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_nan_stays(part):
    """Of x or either denoiser: the image's loss is NaN, the others are not."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(3, 1, 2, 2, generator=generator) for _ in range(3)]
    given[part][1, 0, 1, 0] = torch.nan
    assert sim.implicit_loss(*given).isnan().tolist() == [False, True, False]
