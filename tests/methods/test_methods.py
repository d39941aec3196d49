# SPDX-License-Identifier: Apache-2.0
"""Diff-Instruct, averages and learning rates against golden arrays of the original code and against closed forms."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from eldistill import contract
from eldistill.contract import Method, Progress
from eldistill.diffusion import draws, noise
from eldistill.methods import diff_instruct
from eldistill.training import loop, optimisers, update
from eldistill.training.job import Job, Training
from eldistill.training.optimisers import Ema, Optimiser
from tests.conftest import GOLDEN

DATA = GOLDEN / "methods"


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def progress(n_images: int, total: int = 10**9) -> Progress:
    return Progress(n_images, 0, total)


class Told(draws.Draw):
    """A Draw that returns given normals: `tape` maps a name ("generator/z") to [images of the run, ...]."""

    tape: dict[str, torch.Tensor] = {}

    def __getitem__(self, part: slice) -> Told:
        start, stop, _ = part.indices(self.size)
        return Told(self.seed, self.scope, self.first + start, stop - start, self.device, self.dtype)

    def normal(self, purpose: str, *shape: int) -> torch.Tensor:
        told = self.tape[f"{self.scope}/{purpose}"][self.first : self.first + self.size]
        return told.reshape(self.size, *shape).to(self.dtype)


@pytest.fixture
def tape(monkeypatch) -> dict[str, torch.Tensor]:
    """What the loop's draws return in this test."""
    monkeypatch.setattr(update, "Draw", Told)
    monkeypatch.setattr(Told, "tape", {})
    return Told.tape


class Affine(nn.Module):
    """EDM's preconditioning of F = p0 * c_in * x + p1, the toy of the golden trajectories."""

    sigma_data = 0.5

    def __init__(self, p0: float, p1: float):
        super().__init__()
        self.p0, self.p1 = (nn.Parameter(torch.tensor(p, dtype=torch.float64)) for p in (p0, p1))

    def forward(self, x, sigma, labels=None, augment_labels=None):
        c_skip, c_out, c_in, _ = noise.precondition(sigma.reshape(-1, 1, 1, 1), self.sigma_data)
        return c_skip * x + c_out * (self.p0 * c_in * x + self.p1)

    def values(self) -> np.ndarray:
        return np.array([self.p0.item(), self.p1.item()])


OPTIMISER = {"kind": "adam", "lr": 1e-2, "betas": [0.0, 0.999], "eps": 1e-8, "weight_decay": 0.0,
             "warmup_images": 0, "decay_images": 0, "clip": 0.0, "clip_value": 0.0}  # fmt: skip


def job_of(nets: dict, teacher: nn.Module, shape, numbers, folder, batch=4, steps=1, method=diff_instruct, **others):
    """A job of Diff-Instruct on nets that are no networks of ours: no labels, Adam as the authors set it."""
    ema = Ema("ramped", halflife_images=500_000, ramp=0.05)

    class Unlabelled:
        def __len__(self):
            return 8

        def labels(self, indices):
            return None

    return Job(
        method=Method.of(method), numbers=numbers, training=Training(steps * batch, batch, ema), nets=nets,
        published="generator", reals=Unlabelled(), shape=shape, seed=0, folder=folder, fixed={"teacher": teacher},
        optimisers=dict.fromkeys(nets, Optimiser.of(OPTIMISER)), dtype=torch.float64,
        log=lambda text: None, **others,
    )  # fmt: skip


# --- Diff-Instruct against the authors' code ---


def test_term_equals_golden():
    """The term's value and its gradient at the images are those of the original code."""
    arrays = golden("di_generator")
    fake, teacher, images = (torch.from_numpy(arrays[key]).double() for key in ("D_fake", "D_teacher", "x_gen"))
    term = diff_instruct.kl_term(fake - teacher, images)
    np.testing.assert_allclose(term.value, arrays["total"], rtol=2e-6)
    np.testing.assert_allclose(term.gradient, arrays["grad_x"], rtol=1e-5, atol=1e-8)


def test_noisy_images_and_sigma_of_the_term_are_golden():
    """generator_terms noises the images as the original does: denoisers that record their input see x_t and sigma."""
    arrays = {key: torch.from_numpy(value).double() for key, value in golden("di_generator").items()}
    given = {"sigma": arrays["z_normal"].flatten(), "epsilon": arrays["eps"]}
    seen = {}

    def answer(name):
        def denoiser(x, sigma, labels):
            seen[name] = x, sigma, labels
            return arrays[f"D_{name}"]

        return denoiser

    nets = {"fake_score": answer("fake"), "teacher": answer("teacher")}
    batch = SimpleNamespace(
        draw=SimpleNamespace(normal=lambda purpose, *shape: given[purpose]), shape=(3, 4, 4), labels=None
    )
    terms = diff_instruct.generator_terms(nets, batch, lambda: arrays["x_gen"], diff_instruct.Numbers())
    assert list(seen) == ["fake", "teacher"] or list(seen) == ["teacher", "fake"]
    for x, sigma, _ in seen.values():
        torch.testing.assert_close(x, arrays["x_t"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(sigma, arrays["sigma"].flatten(), rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["kl"].gradient, arrays["grad_x"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_trajectory_equals_golden(tape, tmp_path, micro_batch):
    """Four iterations of the loop (fake_score, generator, average) follow the authors' run: weights and losses."""
    arrays = golden("trajectory_di")
    renamed = {"fake_score/z": "z_fake", "fake_score/sigma": "zn_fake", "fake_score/epsilon": "eps_fake",
               "generator/z": "z_G", "generator/sigma": "u_or_zn_G", "generator/epsilon": "eps_G"}  # fmt: skip
    for name, key in renamed.items():
        tape[name] = torch.from_numpy(arrays[key]).flatten(0, 1)
    teacher = Affine(0.8, 0.1)
    numbers = diff_instruct.Numbers(sigma_init=1.0)
    nets = {"generator": diff_instruct.generator(teacher, None, numbers), **diff_instruct.networks(teacher, numbers, 0)}
    job = job_of(nets, teacher, (3, 4, 4), numbers, tmp_path, steps=4, ticks=4, micro_batch=micro_batch)
    found = []
    for step in range(4):
        here = lambda average: found.append((nets["fake_score"].values(), nets["generator"].values(), average.values()))  # noqa: E731
        job.snapshots[4 * (step + 1)] = here
    work = loop.Loop(job)
    work.run()
    for key, values in zip(("fake", "G", "ema"), zip(*found, strict=True), strict=True):
        np.testing.assert_allclose(values, arrays[key], rtol=1e-6, err_msg=key)
    losses = {key: [row[key] for row in work.rows] for key in ("fake_score.denoising", "generator.kl")}
    np.testing.assert_allclose(losses["fake_score.denoising"], arrays["loss_fake"], rtol=1e-6)
    np.testing.assert_allclose(losses["generator.kl"], arrays["loss_G"], rtol=1e-5)  # a difference, in float32


# --- Diff-Instruct against mathematics ---


class Gaussian(nn.Module):
    """The ideal denoiser of data N(mean, deviation^2)."""

    sigma_data = 0.5

    def __init__(self, mean: float, deviation: float):
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, x, sigma, labels=None, augment_labels=None):
        level, spread = sigma.reshape(-1, 1, 1, 1) ** 2, self.deviation**2
        return (spread * x + level * self.mean) / (spread + level)


class Line(nn.Module):
    """A generator x = a z + b of N(b, a^2)."""

    def __init__(self, a: float, b: float, sigma_init: float):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (a, b))
        self.sigma_init = sigma_init

    def forward(self, x, sigma, labels=None):
        return self.a * x / self.sigma_init + self.b


@pytest.mark.parametrize("micro_batch", [0, 1])
@pytest.mark.parametrize("level", [-2.0, 0.0, 1.5])
@pytest.mark.parametrize(("a", "b"), [(0.4, 0.7), (1.3, -0.2)])
def test_gradient_with_gaussian_data(bench, tape, tmp_path, a, b, level, micro_batch):
    """With ideal denoisers the gradient is sigma^2 times that of KL(N(b, a^2 + sigma^2) | N(m, s^2 + sigma^2)).

    The gradient is quadratic in the noises, so z, epsilon = +1, -1 in all combinations give its exact mean.
    """
    mean, deviation = 0.1, 0.8
    numbers = diff_instruct.Numbers()
    tape["generator/z"] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    tape["generator/epsilon"] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    tape["generator/sigma"] = torch.full((4,), level, dtype=torch.float64)
    net, sigma = Line(a, b, numbers.sigma_init), math.exp(level * numbers.P_std + numbers.P_mean)
    job = job_of({"generator": net}, Gaussian(mean, deviation), (1, 1, 1), numbers, tmp_path,
                 method=bench.only(diff_instruct, "generator"), micro_batch=micro_batch)  # fmt: skip
    job.fixed["fake_score"] = Gaussian(b, a)
    loop.Loop(job).iterate()

    at = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (a, b)]
    ours = torch.distributions.Normal(at[1], (at[0] ** 2 + sigma**2).sqrt())
    theirs = torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), math.sqrt(deviation**2 + sigma**2))
    slopes = torch.autograd.grad(torch.distributions.kl_divergence(ours, theirs), at)
    for parameter, slope in zip((net.a, net.b), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, sigma**2 * slope, rtol=1e-9, atol=1e-14)


def test_fake_score_loss_is_least_at_the_ideal_denoiser(tmp_path, tape):
    """Where generated images are N(b, a^2) no other linear denoiser has a smaller loss than the posterior mean."""
    a, b, numbers = 0.6, 0.3, diff_instruct.Numbers()
    normals = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    tape.update({"critic/sigma": torch.full((4,), 0.7).double(), "critic/epsilon": normals})
    images = (a * torch.tensor([1.0, -1.0, 1.0, -1.0]).double() + b).reshape(4, 1, 1, 1)
    batch = contract.Batch(Told(0, "critic", 0, 4, dtype=torch.float64), None, (1, 1, 1), progress(0))

    def loss(mean, deviation):
        return float(
            diff_instruct.critic_terms({"fake_score": Gaussian(mean, deviation)}, batch, images, numbers)["denoising"]
        )

    best = loss(b, a)
    assert all(loss(b + shift, a) > best + 1e-6 for shift in (-0.1, 0.1))
    assert all(loss(b, a + change) > best + 1e-6 for change in (-0.1, 0.1))
    # Its value is lambda(sigma) times the variance of the posterior, a^2 sigma^2 / (a^2 + sigma^2).
    sigma = math.exp(0.7 * numbers.P_std + numbers.P_mean)
    assert math.isclose(best, (sigma**-2 + 4) * a**2 * sigma**2 / (a**2 + sigma**2), rel_tol=1e-6)


def test_no_gradient_while_fake_score_equals_teacher(bench):
    """Equal denoisers give a gradient of exactly zero: the generator stays bit for bit where it was."""
    job = bench.job(bench.only(diff_instruct, "generator"), numbers=diff_instruct.Numbers(), apart=0.0, steps=3)
    before = {key: value.clone() for key, value in job.nets["generator"].state_dict().items()}
    loop.Loop(job).run()
    assert all(not parameter.grad.any() for parameter in job.nets["generator"].parameters())
    assert all(torch.equal(before[key], value) for key, value in job.nets["generator"].state_dict().items())


def test_fake_score_trains_before_the_generator(bench):
    """The very first iteration moves the generator, although fake_score starts at the teacher."""
    job = bench.job("diff_instruct", apart=0.0, steps=1)
    loop.Loop(job).run()
    assert any(parameter.grad.any() for parameter in job.nets["generator"].parameters())


def test_generator_starts_as_the_teacher_at_sigma_init(bench):
    """Before training a generated image is the teacher's denoised sigma_init z, labels included."""
    numbers = diff_instruct.Numbers(sigma_init=1.7)
    job = bench.job("diff_instruct", numbers=numbers, labels=3)
    draw = draws.Draw(0, "any", 0, 4)
    labels = job.reals.labels(torch.tensor([0, 1, 2, 0]))
    batch = contract.Batch(draw, labels, job.shape, progress(0))
    expected = job.fixed["teacher"](1.7 * draw.normal("z", *job.shape), torch.full((4,), 1.7), labels)
    assert torch.equal(diff_instruct.generate(job.nets, batch, numbers), expected)
    assert diff_instruct.sampler(numbers) == {"steps": {"1": [1.7]}}


# --- running averages and learning rates ---


def test_ramped_average_equals_golden():
    """The weight of the past follows the original code, half-life and ramp included."""
    arrays = golden("ema_beta")
    for key, batch, halflife in (("beta_b256_hl500k_r005", 256, 5e5), ("beta_b8192_hl2M_r005", 8192, 2e6)):
        numbers = Ema(policy="ramped", halflife_images=halflife, ramp=0.05)
        betas = [optimisers.ema_beta(numbers, progress(n), batch) for n in arrays["cur_nimg_before_step"].tolist()]
        np.testing.assert_allclose(betas, arrays[key], rtol=1e-12, atol=0)
    numbers = Ema(policy="constant", beta=float(arrays["beta_b128_fixed"]))
    assert optimisers.ema_beta(numbers, progress(12345), 128) == 0.9999


def test_halflife_halves():
    """After half-life images, in steps of any batch, the past counts a half."""
    numbers = Ema(policy="ramped", halflife_images=1200, ramp=1.0)
    for batch in (1, 8, 400):
        past = math.prod(optimisers.ema_beta(numbers, progress(10**6 + n), batch) for n in range(0, 1200, batch))
        assert math.isclose(past, 0.5, rel_tol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 6.94, 16.97])
@pytest.mark.parametrize("batch", [1, 8])
def test_power_average_weighs_by_a_power_of_time(gamma, batch):
    """The weight of step t among N is t^(g+1) - (t-1)^(g+1) over N^(g+1): the integral of t^g (EDM2, eq. 123)."""
    numbers, weights = Ema(policy="power", gamma=gamma), []
    for step in range(20):
        beta = optimisers.ema_beta(numbers, progress(step * batch), batch)
        weights = [beta * weight for weight in weights] + [1 - beta]
    times = np.arange(21.0) ** (gamma + 1)
    np.testing.assert_allclose(weights, np.diff(times) / times[-1], rtol=1e-9)


@pytest.mark.parametrize("numbers", [
    Ema(policy="constant", beta=0.7), Ema(policy="power", gamma=3.0), Ema(policy="ramped", halflife_images=20, ramp=0.5),
], ids=lambda numbers: numbers.policy)  # fmt: skip
def test_average_is_the_weighted_sum_of_the_weights(bench, numbers):
    """The published network is sum_t w_t theta_t, w from the betas, over the generator after every step."""
    job = bench.job("diff_instruct", dtype=torch.float64, steps=6)
    job.training = dataclasses.replace(job.training, ema=numbers)
    work, history = loop.Loop(job), []
    expected = [value.clone() for value in work.average.state_dict().values()]
    for _ in range(6):
        beta = optimisers.ema_beta(numbers, work.progress, 4)
        work.iterate()
        history.append(beta)
        now = job.nets["generator"].state_dict().values()
        expected = [beta * old + (1 - beta) * new for old, new in zip(expected, now, strict=True)]
    for value, wanted in zip(work.average.state_dict().values(), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-14)
    assert 0 < history[-1] < 1


def test_learning_rate_rises_and_falls_linearly():
    """lr n / warmup, then lr, then lr (total - n) / decay; without either it is constant."""
    numbers = Optimiser.of({**OPTIMISER, "lr": 0.3, "warmup_images": 1000, "decay_images": 2000})
    rate = lambda n: optimisers.learning_rate(numbers, progress(n, total=10_000))  # noqa: E731
    for n in (0, 250, 500, 999):
        assert math.isclose(rate(n), 0.3 * n / 1000, abs_tol=0.3 / 1000 + 1e-12)
    assert rate(0) > 0  # a first step that does nothing would waste the first draw
    assert rate(1000) == rate(5000) == rate(8000) == 0.3
    for n in (8500, 9000, 9999):
        assert math.isclose(rate(n), 0.3 * (10_000 - n) / 2000, rel_tol=1e-12)
    plain = Optimiser.of({**OPTIMISER, "lr": 0.3})
    assert {optimisers.learning_rate(plain, progress(n, total=10)) for n in range(10)} == {0.3}


def test_learning_rate_reaches_the_optimiser(bench):
    """Adam's first step without momentum is the rate times the sign of the gradient: half the rate, half the step."""

    def step(rate: dict) -> list[torch.Tensor]:
        job = bench.job("diff_instruct", dtype=torch.float64, steps=4, optimiser={"eps": 1e-30, **rate})
        before = [p.detach().clone() for p in job.nets["generator"].parameters()]
        loop.Loop(job).iterate()
        return [new.detach() - old for new, old in zip(job.nets["generator"].parameters(), before, strict=True)]

    full, warm = step({"lr": 1e-3}), step({"lr": 1e-2, "warmup_images": 10})
    assert max(float(change.abs().max()) for change in full) == pytest.approx(1e-3, rel=1e-6)
    assert max(float(change.abs().max()) for change in warm) == pytest.approx(1e-3, rel=1e-6)
    half = step({"lr": 1e-3, "decay_images": 32})
    assert max(float(change.abs().max()) for change in half) == pytest.approx(5e-4, rel=1e-6)
