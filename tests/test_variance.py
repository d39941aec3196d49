# SPDX-License-Identifier: Apache-2.0
"""Theory of the gradients: what a batch averages out and what it does not, where a student ends that hears its teacher
and the data, and what the biased form of the Embedding Loss does to the spread of a generator.
"""

from __future__ import annotations

import copy
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from eldistill.contract import Batch, Progress
from eldistill.data import dataset as data
from eldistill.diffusion.draws import Draw
from eldistill.ensemble import seed
from eldistill.losses import mmd
from eldistill.methods import diff_instruct
from eldistill.supplements import embedding
from tests.conftest import perturb, teacher
from tests.methods.test_methods import Gaussian
from tests.toys import batch_of

NUMBERS = diff_instruct.Numbers()  # ln sigma ~ N(-1.2, 1.2^2), weight sigma^2


def over_sigma(function) -> float:
    """E over sigma of function(sigma^2), by 200 points of Gauss and Hermite."""
    points, weights = np.polynomial.hermite_e.hermegauss(200)
    square = np.exp(2 * (NUMBERS.P_mean + NUMBERS.P_std * points))
    return float((weights * function(square)).sum() / weights.sum())


def spread(gradients: torch.Tensor) -> tuple[float, float]:
    """Trace of the covariance of the rows [repeats, D], and its standard error."""
    squares = (gradients - gradients.mean(0)).square().sum(1)
    return float(squares.sum()) / (len(squares) - 1), float(squares.std()) / math.sqrt(len(squares))


def line(found: dict[int, tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) and their standard errors, from the variance and its error at every batch B: a + b / B."""
    values, errors = (np.array(each) for each in zip(*found.values(), strict=True))
    design = np.stack([np.ones(len(found)), 1 / np.array(list(found))], 1) / errors[:, None]
    inverse = np.linalg.inv(design.T @ design)
    return inverse @ design.T @ (values / errors), np.sqrt(np.diag(inverse))


# --- what a batch shares does not average out (c.4) ---


class Shared(Draw):
    """Draws in which `together` images at a time have one sigma."""

    together = 1

    def normal(self, purpose: str, *shape: int) -> torch.Tensor:
        if purpose != "sigma":
            return super().normal(purpose, *shape)
        few = Draw(self.seed, self.scope, 0, self.size // self.together, self.device, self.dtype)
        return few.normal(purpose, *shape).repeat_interleave(self.together, 0)


MU, S = 0.6, 0.7  # x = MU + S z against data N(0, 1), both scores exact


def per_image(scope: str, size: int, together: int) -> torch.Tensor:
    """Diff-Instruct's gradient with respect to (MU, S) from every one of `size` images, [size, 2]."""
    draw = Shared(0, scope, 0, size, dtype=torch.float64)
    draw.together = together
    z = draw.normal("z", 1, 1, 1)
    nets = {"fake_score": Gaussian(MU, S), "teacher": Gaussian(0.0, 1.0)}
    batch = Batch(draw, None, (1, 1, 1), Progress(0, 0, 1))
    gradient = size * diff_instruct.generator_terms(nets, batch, lambda: MU + S * z, NUMBERS)["kl"].gradient
    return torch.cat([gradient, gradient * z], 1).flatten(1)


def predicted() -> tuple[float, float]:
    """Variance of E[g | sigma] and mean of Var[g | sigma], each a trace over (MU, S), in closed form.

    g = c (S z + sigma n) + m with c = sigma^2 / (1 + sigma^2) - sigma^2 / (S^2 + sigma^2), m = MU sigma^2 / (1 + sigma^2).
    """
    c = lambda u: u / (1 + u) - u / (S**2 + u)  # noqa: E731
    m = lambda u: MU * u / (1 + u)  # noqa: E731
    means = [(over_sigma(f), over_sigma(lambda u, f=f: f(u) ** 2)) for f in (m, lambda u: c(u) * S)]
    shared = sum(square - mean**2 for mean, square in means)
    own = over_sigma(lambda u: c(u) ** 2 * (S**2 + u) + c(u) ** 2 * (2 * S**2 + u) + m(u) ** 2)
    return shared, own


@pytest.mark.parametrize("shared", [True, False], ids=["one sigma", "own sigma"])
def test_a_shared_sigma_leaves_a_floor(shared):
    """Var of the batch's gradient is a + b / B: a = Var E[g | sigma] = 0.0268 with one sigma a batch, 0 with own ones."""
    floor, rest = predicted()
    assert (floor, rest) == pytest.approx((0.02676, 0.06983), rel=1e-3)
    found, size = {}, 2**19
    for batch in (4, 8, 16, 32, 64, 128, 256, 512):
        gradients = per_image(f"toy/{batch}", size, batch if shared else 1)
        found[batch] = spread(gradients.reshape(size // batch, batch, 2).mean(1))
    (a, b), (error_a, error_b) = line(found)
    wanted = (floor, rest) if shared else (0.0, floor + rest)
    assert abs(a - wanted[0]) < 4 * error_a < 0.05 * floor
    assert abs(b - wanted[1]) < 4 * error_b < 0.1 * wanted[1]
    scatter = [(value - a - b / batch) / error for batch, (value, error) in found.items()]
    assert sum(each**2 for each in scatter) < 25  # chi^2 of 6


# --- the same with networks: the floor is fake_score's ---

SHAPE = (1, 8, 8)


def batch_gradient(nets: dict, size: int, repeat: int, scope: str = "generator") -> torch.Tensor:
    """A batch's mean gradient with respect to the parameters of x = 0.1 + 0.5 z, one pair a pixel, [128]."""
    draw = Draw(3, scope, repeat * size, size)
    batch = Batch(draw, None, SHAPE, Progress(repeat * size, repeat, 10**9))
    z = draw.normal("z", *SHAPE)
    gradient = diff_instruct.generator_terms(nets, batch, lambda: 0.1 + 0.5 * z, NUMBERS)["kl"].gradient
    return torch.cat([gradient.sum(0).flatten(), (gradient * z).sum(0).flatten()]).double()


def nets_of(fake: int) -> dict:
    """The small teacher and a fake_score that was moved away from it with this seed."""
    taught = teacher()
    return {"teacher": taught, "fake_score": perturb(copy.deepcopy(taught), 0.1, 100 + fake)}


def test_no_floor_with_a_fixed_fake_score():
    """Own sigma, given networks: the variance over repeats is b / B, nothing else, from 4 to 256 images."""
    nets, found = nets_of(0), {}
    for batch, repeats in ((4, 256), (16, 128), (64, 96), (256, 96)):
        found[batch] = spread(torch.stack([batch_gradient(nets, batch, repeat) for repeat in range(repeats)]))
    (a, b), (error_a, error_b) = line(found)
    assert abs(a) < 4 * error_a and error_a < 0.002 * found[4][0]
    for batch, (value, error) in found.items():
        assert batch * value == pytest.approx(b, abs=4 * math.hypot(batch * error, error_b))
        assert error < 0.05 * value


def test_the_floor_across_fake_scores():
    """Over fake_scores of independent weights the variance is a + b / B, a = Var E[g | fake_score]: at 256 images it has
    hardly fallen, while that within each of them has, as 1 / B."""
    nets = [nets_of(fake) for fake in range(16)]
    common = [torch.stack([batch_gradient(each, 256, r, "common") for r in range(4)]).mean(0) for each in nets]
    a, _ = spread(torch.stack(common))
    within, between, total = {}, {}, {}
    for batch, repeats in ((16, 6), (64, 6), (256, 3)):
        gradients = torch.stack([
            torch.stack([batch_gradient(each, batch, fake * repeats + r) for r in range(repeats)])
            for fake, each in enumerate(nets)
        ])  # fmt: skip
        within[batch] = float(gradients.var(1).sum(1).mean())
        between[batch] = spread(gradients.mean(1))[0] - within[batch] / repeats
        total[batch] = within[batch] + between[batch]
    for batch in (16, 64, 256):
        assert between[batch] == pytest.approx(a, rel=0.2)
        assert batch * within[batch] == pytest.approx(16 * within[16], rel=0.15)
    assert total[256] > 0.8 * a > 5 * within[256]


# --- between teacher and data (c.11) ---

DELTA = 0.5  # the teacher's mean; the data have 0, all deviations are 1


def student(strength: float) -> float:
    """Where the mean of N(mu, 1) comes to rest under Diff-Instruct and `strength` times the linear, unbiased MMD."""
    count = 4096
    quantiles = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    half = torch.randn(count // 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.cat([half, -half])  # antithetic: its mean is 0, as that of the quantiles
    told = {"sigma": quantiles, "epsilon": z.roll(7)}
    mu = torch.zeros((), dtype=torch.float64)
    for _ in range(500):
        x = (mu + z).reshape(count, 1, 1, 1)
        nets = {"fake_score": Gaussian(float(mu), 1.0), "teacher": Gaussian(DELTA, 1.0)}
        base = diff_instruct.generator_terms(nets, batch_of((1, 1, 1), told), lambda x=x: x, NUMBERS)["kl"].gradient
        leaf = x.flatten(1).requires_grad_()
        (own,) = torch.autograd.grad(mmd.mmd2(leaf, quantiles[:, None], "linear", 1.0, "unbiased"), leaf)
        mu = mu - 0.2 * float(base.sum() + strength * own.sum())
    return float(mu)


def test_the_student_ends_between_teacher_and_data():
    """delta / (1 + 2 lambda / A), A = E[sigma^2 / (1 + sigma^2)]: matching alone is led astray by all of the teacher's gap."""
    a = over_sigma(lambda u: u / (1 + u))
    strengths = [0.0, 0.03, 0.1, 0.5, 2.0]
    found = [student(strength) for strength in strengths]
    wanted = [DELTA / (1 + 2 * strength / a) for strength in strengths]
    assert found == pytest.approx(wanted, rel=1e-3)
    assert found[0] == pytest.approx(DELTA, abs=1e-6)
    assert [wanted[index] for index in (2, 3, 4)] == pytest.approx([0.256, 0.087, 0.025], abs=6e-4)
    assert all(after < before for before, after in zip(found, found[1:], strict=False)) and found[-1] > 0


# --- collapse (c.12) ---


def digits() -> data.PackedImages:
    """scikit-learn's 1,797 digits."""
    datasets = pytest.importorskip("sklearn.datasets")
    images = np.round(datasets.load_digits().images * 255 / 16).astype(np.uint8)[:, None]
    codec = {"mean": float(images.mean() / 255), "std": float(images.std() / 255)}
    return data.PackedImages(torch.from_numpy(images), torch.zeros(len(images), dtype=torch.int64), codec, 0)


def spread_after_training(reals: data.PackedImages, folder: Path, estimator: str, size: int, number: int) -> float:
    """tr Cov(generated) / tr Cov(real) in fresh members after 800 steps of EL alone on 64 real images a step.

    The generator is an MLP whose output lies within the pixels' range; the four members are redrawn every step.
    """
    section = {
        "members": [{"family": "conv", "norm": norm, "count": 2} for norm in ("none", "instance")],
        "redraw": 1, "calibration": 256, "draws": 4,
    }  # fmt: skip
    seed.record_ensemble(section, number, reals, folder / f"{number}.json", folder / f"{number}.npz")
    ensemble = seed.Ensemble(folder / f"{number}.json")
    tools = embedding.Prepared(ensemble, reals.sigma_data, number)
    numbers = embedding.Numbers(kernel="linear", estimator=estimator, real_ratio=64 // size, diagnose=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        layers = [torch.nn.Linear(32, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU()]
        generator = torch.nn.Sequential(*layers, torch.nn.Linear(512, 64), torch.nn.Unflatten(1, SHAPE))
    low, high = data.encoded_limits(reals.codec)
    optimiser = torch.optim.Adam(generator.parameters(), lr=1e-3)

    def images_of(draw: Draw) -> torch.Tensor:
        return low + (high - low) * (generator(draw.normal("z", 32)).tanh() + 1) / 2

    for step in range(800):
        batch = Batch(
            Draw(number, "generator", step * size, size), None, SHAPE, Progress(step * size, step, 10**9), reals
        )
        images = images_of(batch.draw)
        optimiser.zero_grad()
        images.backward(embedding.generator_terms(tools, images, batch, numbers)["mmd2"].gradient)
        optimiser.step()
    with torch.no_grad():
        x = images_of(Draw(number, "look", 0, 1000)) / reals.sigma_data
        y = reals.take(torch.arange(len(reals)))[0] / reals.sigma_data
        fresh = [member for redraw in range(3) for member in ensemble.at(10**6 + redraw)]
        return statistics.fmean(float(member(x).var(0).sum() / member(y).var(0).sum()) for member in fresh)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("size", [8, 32])
def test_only_the_biased_form_collapses(tmp_path, size, number):
    """At the end of a run U has the spread of the data; V has lost half of it at batch 8, less at 32."""
    reals = digits()
    biased, unbiased = (spread_after_training(reals, tmp_path, form, size, number) for form in ("biased", "unbiased"))
    print(f"batch {size}, seed {number}: V {biased:.3f}, U {unbiased:.3f}")
    assert 0.8 < unbiased < 1.25
    assert biased < (0.7 if size == 8 else 0.85) and biased < unbiased - 0.05
