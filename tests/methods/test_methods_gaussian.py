# SPDX-License-Identifier: Apache-2.0
"""DMD, SiD, SiDA and consistency models against closed forms, mostly where the data are Gaussian.

Where z and epsilon occur in the first or second power only, +1 and -1 in all combinations give the exact mean. An image
here has four pixels, one for each combination, so that a weight which is a mean over pixels is one known number.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from eldistill import contract
from eldistill.contract import Progress
from eldistill.diffusion import draws, noise
from eldistill.methods import consistency, dmd, sid, sida
from eldistill.sampling.heun import heun
from eldistill.training import loop, update
from tests.methods.test_methods import Gaussian, Line, job_of
from tests.toys import Tape, batch_of

MEAN, DEVIATION = 0.1, 0.8  # of the data
Z = torch.tensor([[1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, -1.0]]).double()
EPSILON = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, -1.0, 1.0, -1.0]]).double()
GENERATORS = [(0.4, 0.7), (1.3, -0.2)]  # x = a z + b


@pytest.fixture
def tape(monkeypatch) -> dict[str, torch.Tensor]:
    """What the loop's draws return in this test."""
    monkeypatch.setattr(update, "Draw", Tape)
    monkeypatch.setattr(Tape, "tape", {})
    return Tape.tape


def step(bench, method, numbers, tape, folder, a, b, micro_batch, told: dict) -> tuple[loop.Loop, Line]:
    """One generator step on N(b, a^2), with the ideal denoisers of the data and of the generated images."""
    tape.update({"generator/z": Z, **{f"generator/{name}": value for name, value in told.items()}})
    net = Line(a, b, numbers.sigma_init)
    job = job_of({"generator": net}, Gaussian(MEAN, DEVIATION), (1, 2, 2), numbers, folder, batch=2,
                 method=bench.only(method, "generator"), micro_batch=micro_batch)  # fmt: skip
    job.fixed["fake_score"] = Gaussian(b, a)
    work = loop.Loop(job)
    work.iterate()
    return work, net


def weight_of(a: float, b: float, sigma: float) -> float:
    """mean |x - D_phi(x + sigma n)| over the four combinations."""
    x = a * Z[0] + b
    levels = torch.full((1,), sigma, dtype=torch.float64)
    denoised = Gaussian(MEAN, DEVIATION)((x + sigma * EPSILON[0]).reshape(1, 1, 2, 2), levels)
    return float((x.reshape(1, 1, 2, 2) - denoised).abs().mean())


def lines(mean: float, deviation: float, sigma: float) -> tuple[float, float]:
    """Slope and intercept of the ideal denoiser of N(mean, deviation^2)."""
    spread, level = deviation**2, sigma**2
    return spread / (spread + level), level * mean / (spread + level)


# --- distribution matching ---


@pytest.mark.parametrize("micro_batch", [0, 1])
@pytest.mark.parametrize("index", [0, 400, 960])
@pytest.mark.parametrize(("a", "b"), GENERATORS)
def test_dmd_gradient(bench, tape, tmp_path, a, b, index, micro_batch):
    """sigma^2 / w(sigma) times that of KL(N(b, a^2 + sigma^2) | N(m, s^2 + sigma^2)), as a mean over pixels."""
    told = {"matching/sigma": torch.full((2,), index), "matching/epsilon": EPSILON}
    numbers = dmd.Numbers()
    _, net = step(bench, dmd, numbers, tape, tmp_path, a, b, micro_batch, told)
    sigma = float(noise.karras_sigmas(1000).flip(0)[20 + index])
    at = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (a, b)]
    ours = torch.distributions.Normal(at[1], (at[0] ** 2 + sigma**2).sqrt())
    theirs = torch.distributions.Normal(torch.tensor(MEAN).double(), math.sqrt(DEVIATION**2 + sigma**2))
    slopes = torch.autograd.grad(torch.distributions.kl_divergence(ours, theirs), at)
    for parameter, slope in zip((net.a, net.b), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, sigma**2 / weight_of(a, b, sigma) * slope, rtol=1e-6, atol=1e-12)


def test_dmd_value_is_flat():
    """Half the mean square of the gradient times the number of entries: the value of a normalised direction."""
    generator = torch.Generator().manual_seed(0)
    fake, real, x = (torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    terms = [dmd.score.matching_term(real + scale * (fake - real), real, x) for scale in (1.0, 2.0)]
    for term in terms:
        torch.testing.assert_close(term.value, (term.gradient * x.numel()).square().mean() / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(2 * terms[0].gradient, terms[1].gradient, rtol=1e-12, atol=0)
    # It is the gradient of half the mean squared distance to x - g.
    leaf = x.clone().requires_grad_()
    target = (x - terms[0].gradient * x.numel()).detach()
    (slope,) = torch.autograd.grad((leaf - target).square().mean() / 2, leaf)
    torch.testing.assert_close(terms[0].gradient, slope, rtol=1e-12, atol=1e-15)


def test_dmd_without_a_direction_is_zero():
    """0 / 0 where both denoisers return the image itself."""
    x = torch.ones(2, 1, 2, 2)
    term = dmd.score.matching_term(x, x, x)
    assert term.value == 0 and not term.gradient.any()


@pytest.mark.parametrize("index", [100, 500, 900])
def test_fake_score_loss_on_the_grid_is_least_at_the_ideal_denoiser(index):
    """(sigma^-2 + 4) times the variance of the posterior, a^2 sigma^2 / (a^2 + sigma^2); larger for other denoisers."""
    a, b, numbers = 0.6, 0.3, dmd.Numbers()
    sigma = float(noise.karras_sigmas(1000).flip(0)[index])
    batch = batch_of((1, 2, 2), {"sigma": torch.full((2,), index), "epsilon": EPSILON})
    images = (a * Z + b).reshape(2, 1, 2, 2)

    def loss(mean, deviation):
        return float(dmd.critic_terms({"fake_score": Gaussian(mean, deviation)}, batch, images, numbers)["denoising"])

    assert math.isclose(loss(b, a), (sigma**-2 + 4) * a**2 * sigma**2 / (a**2 + sigma**2), rel_tol=1e-9)
    assert all(loss(b + shift, a) > loss(b, a) for shift in (-0.1, 0.1))
    assert all(loss(b, a + change) > loss(b, a) for change in (-0.1, 0.1))


# --- score identity ---


def identity(at, alpha: float, sigma: float, fake: tuple[float, float], real: tuple[float, float]):
    """E of Delta ((D_phi - x) - alpha Delta) over z and n: D_phi = p x_t + q, Delta = d x_t + e, x_t = a z + b + sigma n."""
    a, b = at
    p, q = real
    d, e = p - fake[0], q - fake[1]
    middle = d * b + e
    first = middle * ((p - 1) * b + q) + d * (p - 1) * a**2 + d * p * sigma**2
    return first - alpha * (middle**2 + d**2 * (a**2 + sigma**2))


@pytest.mark.parametrize("micro_batch", [0, 1])
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
@pytest.mark.parametrize(("a", "b"), GENERATORS)
def test_sid_value_and_gradient(bench, tape, tmp_path, a, b, alpha, share, sequential, micro_batch):
    """With the ideal fake_score the loss is (1 - alpha) E|Delta|^2 / w: zero at alpha 1, negative above. Its gradient,
    fake_score and w held, is that of a polynomial in a and b.
    """
    numbers = sid.Numbers(alpha=alpha, sequential=sequential)
    told = {"sigma": torch.full((2,), share).double(), "epsilon": EPSILON}
    work, net = step(bench, sid, numbers, tape, tmp_path, a, b, micro_batch, told)
    sigma = float(noise.warped_sigma(torch.tensor(numbers.t_max * share, dtype=torch.float64)))
    real, fake = lines(MEAN, DEVIATION, sigma), lines(b, a, sigma)
    factor = numbers.scale * 4 / weight_of(a, b, sigma)
    d, e = real[0] - fake[0], real[1] - fake[1]
    square = (d * b + e) ** 2 + d**2 * (a**2 + sigma**2)
    value = work.monitor.sums["generator.identity"][0]
    assert value == pytest.approx(factor * (1 - alpha) * square, rel=1e-9, abs=factor * 1e-12)
    at = [torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (a, b)]
    expected = identity(at, alpha, sigma, fake, real)
    assert float(expected.detach()) == pytest.approx((1 - alpha) * square, rel=1e-9, abs=1e-12)
    for parameter, slope in zip((net.a, net.b), torch.autograd.grad(expected, at), strict=True):
        torch.testing.assert_close(parameter.grad, factor * slope, rtol=1e-8, atol=factor * 1e-12)


def test_sid_gradient_vanishes_at_the_data(bench, tape, tmp_path):
    """Where the generator is the data, fake_score the teacher: no value and no gradient."""
    told = {"sigma": torch.full((2,), 0.5).double(), "epsilon": EPSILON}
    work, net = step(bench, sid, sid.Numbers(), tape, tmp_path, DEVIATION, MEAN, 0, told)
    assert work.monitor.sums["generator.identity"][0] == 0
    assert abs(float(net.a.grad)) < 1e-12 and abs(float(net.b.grad)) < 1e-12


@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize(("method", "changes"), [
    ("sid", {}), ("sida", {}), ("sida", {"group": 2}), ("sida", {"solo_images": 10**6}),
], ids=["sid", "sida", "sida-groups", "sida-solo"])  # fmt: skip
def test_one_graph_at_a_time_gives_the_same_gradient(bench, method, changes, labels):
    """`sequential` changes neither the values nor the gradient, through the encoder's logits too."""
    module, found = contract.load_module("methods", method), []
    for sequential in (False, True):
        numbers = module.Numbers(sequential=sequential, **changes)
        job = bench.job(method, numbers=numbers, labels=labels, dtype=torch.float64, folder=f"state-{sequential}")
        job.nets["fake_score"].requires_grad_(False)
        draw = draws.Draw(0, "generator", 0, 5, dtype=torch.float64)
        batch = contract.Batch(draw, job.reals.labels(torch.arange(5)), job.shape, Progress(0, 0, 100), job.reals)
        nets = {**job.fixed, **job.nets}
        x = module.generate(nets, batch, numbers).detach()
        found.append(module.generator_terms(nets, batch, lambda x=x: x, numbers))
    plain, sequential = found
    assert plain.keys() == sequential.keys()
    for name in plain:
        torch.testing.assert_close(plain[name].value, sequential[name].value, rtol=1e-10, atol=1e-12)
    gradients = plain["identity"].gradient, sequential["identity"].gradient
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_sida_adds_its_adversarial_gradient(bench):
    """With the adversarial loss the gradient is half of SiD's and half of that of the logits alone."""
    gradients = {}
    for name, changes in {
        "both": {}, "solo": {"solo_images": 10**6}, "logits": {"scale": 1e-12},
    }.items():  # fmt: skip
        numbers = sida.Numbers(**changes)
        job = bench.job("sida", numbers=numbers, dtype=torch.float64, folder=f"state-{name}")
        draw = draws.Draw(0, "generator", 0, 5, dtype=torch.float64)
        batch = contract.Batch(draw, None, job.shape, Progress(0, 0, 100), job.reals)
        nets = {**job.fixed, **job.nets}
        x = sida.generate(nets, batch, numbers).detach()
        gradients[name] = sida.generator_terms(nets, batch, lambda x=x: x, numbers)["identity"].gradient
    torch.testing.assert_close(gradients["both"], gradients["solo"] / 2 + gradients["logits"], rtol=1e-8, atol=1e-10)
    assert gradients["logits"].any()


class Unsure(Gaussian):
    """An ideal denoiser with an estimate u = k ln sigma of its own loss."""

    def __init__(self, mean, deviation, k):
        super().__init__(mean, deviation)
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def logvar(self, sigma):
        return self.k * sigma.log().reshape(-1, 1, 1, 1)

    def both(self, x, sigma, labels=None, augment_labels=None):
        return self(x, sigma), x

    def encode(self, x, sigma, labels=None, augment_labels=None):
        return x


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_uncertainty_divides_all_losses(sigma):
    """Each loss over e^u, with u added for every pixel where fake_score learns; without gradient to u elsewhere."""
    k = 0.7
    net, level = Unsure(0.2, 0.5, k), torch.full((2,), math.log(sigma), dtype=torch.float64)
    x = (0.6 * Z + 0.3).reshape(2, 1, 2, 2)
    batch = batch_of((1, 2, 2), {"sigma": level, "epsilon": EPSILON}, reals=-x)
    scale = math.exp(k * math.log(sigma))
    for method in (sid, sida):
        numbers = method.Numbers(P_mean=0.0, P_std=1.0)
        plain = method.critic_terms({"fake_score": net}, batch, x, numbers)
        sure = method.critic_terms({"fake_score": net}, batch, x, dataclasses.replace(numbers, uncertainty=True))
        wanted = plain["denoising"] / scale + 4 * k * math.log(sigma)
        torch.testing.assert_close(sure["denoising"], wanted, rtol=1e-10, atol=1e-12)
        (slope,) = torch.autograd.grad(
            sure["denoising"], net.k, retain_graph=True
        )  # zero where e^u is the loss of a pixel
        wanted = (4 - float(plain["denoising"]) / scale) * math.log(sigma)
        assert float(slope) == pytest.approx(wanted, rel=1e-9)
        if method is sida:
            torch.testing.assert_close(sure["adversarial"], plain["adversarial"] / scale, rtol=1e-10, atol=0)
            assert torch.autograd.grad(sure["adversarial"], net.k)[0] != 0
        share = torch.tensor(0.5).double().expand(2)
        own = batch_of((1, 2, 2), {"sigma": share, "epsilon": EPSILON})
        nets = {"fake_score": net, "teacher": Gaussian(MEAN, DEVIATION)}
        plain = method.generator_terms(nets, own, lambda: x, numbers)
        sure = method.generator_terms(nets, own, lambda: x, dataclasses.replace(numbers, uncertainty=True))
        scale_g = float(noise.warped_sigma(share * numbers.t_max)[0]) ** k
        for name in plain:
            torch.testing.assert_close(sure[name].value, plain[name].value / scale_g, rtol=1e-10, atol=0)
        torch.testing.assert_close(
            sure["identity"].gradient, plain["identity"].gradient / scale_g, rtol=1e-9, atol=1e-12
        )


# --- consistency models ---


class Table(nn.Module):
    """f(x; sigma_i) = factor_i x + shift_i on a grid; the identity at its end."""

    sigma_data = 0.5

    def __init__(self, grid: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor):
        super().__init__()
        self.grid, self.shift = grid, shift
        self.factor = nn.Parameter(factor.clone())

    def forward(self, x, sigma, labels=None, augment_labels=None):
        index = (self.grid[:, None] - sigma).abs().argmin(dim=0)
        factor = torch.cat([self.factor, torch.ones(1, dtype=torch.float64)])
        return consistency.column(factor[index]) * x + consistency.column(self.shift[index])


def composed(grid: torch.Tensor, mean: float, deviation: float, second: bool) -> torch.Tensor:
    """H_i, of f(x; sigma_i) - mean = H_i (x - mean): the product of the solver's factors down to the end of the grid."""
    slope = lambda sigma: sigma / (deviation**2 + sigma**2)  # of (x - D) / sigma  # noqa: E731
    factors = []
    for t, r in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        euler = 1 + (r - t) * slope(t)
        factors.append(1 + (r - t) * (slope(t) + euler * slope(r)) / 2 if second else euler)
    return torch.tensor([math.prod(factors[index:]) for index in range(len(grid))], dtype=torch.float64)


def cd(n: int, source: str = "teacher", **changes) -> tuple[consistency.Numbers, contract.Batch]:
    """CD's numbers and a batch with three images at every level."""
    numbers = consistency.Numbers(n=n, source=source, **{"distance": "l2", "target": "itself", **changes})
    generator = torch.Generator().manual_seed(3)
    x, epsilon = (torch.randn(3 * (n - 1), 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return numbers, batch_of((1, 2, 2), {"sigma": torch.arange(n - 1).repeat(3), "epsilon": epsilon}, reals=x)


@pytest.mark.parametrize("distance", ["l1", "l2", "huber"])
@pytest.mark.parametrize("source", ["teacher", "euler"])
@pytest.mark.parametrize("n", [2, 6, 18, 40])
def test_cd_is_zero_at_the_composed_steps_of_the_solver(n, source, distance):
    """With a linear teacher the composition of its discrete steps has no consistency loss; every other slope has some."""
    numbers, batch = cd(n, source, distance=distance)
    grid = noise.karras_sigmas(n)
    factor = composed(grid, MEAN, DEVIATION, source == "teacher")
    net = Table(grid, factor[:-1], MEAN * (1 - factor))
    nets = {"generator": net, "target": net, "teacher": Gaussian(MEAN, DEVIATION)}
    loss = lambda: float(consistency.generator_terms(nets, batch, None, numbers)["consistency"].detach())  # noqa: E731
    assert abs(loss()) < {"l1": 1e-12, "l2": 1e-24, "huber": 1e-12}[distance]
    for index in range(n - 1):
        with torch.no_grad():
            net.factor[index] += 1e-3
        assert loss() > 1e-9
        with torch.no_grad():
            net.factor[index] -= 1e-3


def test_cd_solves_the_levels_one_by_one():
    """From any start, with itself as target: after k exact minimisations the k lowest levels are the composed steps."""
    n = 6
    numbers, batch = cd(n)
    grid = noise.karras_sigmas(n)
    wanted = composed(grid, 0.0, DEVIATION, True)[:-1]
    net = Table(grid, torch.full((n - 1,), 0.5, dtype=torch.float64), torch.zeros(n, dtype=torch.float64))
    nets = {"generator": net, "teacher": Gaussian(0.0, DEVIATION)}
    for sweep in range(1, n):
        loss = consistency.generator_terms(nets, batch, None, numbers)["consistency"]
        (slope,) = torch.autograd.grad(loss, net.factor, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), net.factor)  # no level's loss knows another level's slope
        with torch.no_grad():
            net.factor -= slope / curve
        error = (net.factor.detach() / wanted - 1).abs()
        assert torch.all(error[n - 1 - sweep :] < 1e-9)
        assert torch.all(error[: n - 1 - sweep] > 1e-6)


def test_cd_optimum_is_the_sampler_of_the_teacher():
    """The composed map from 80, then the teacher at 0.002, is what Heun's sampler gives from the same noise."""
    n, z = 18, torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    teacher = Gaussian(MEAN, DEVIATION)
    teacher.anchor = nn.Parameter(torch.zeros((), dtype=torch.float64))  # the sampler asks for a dtype
    factor = composed(noise.karras_sigmas(n), MEAN, DEVIATION, True)[0]
    last = MEAN + factor * (80 * z - MEAN)
    wanted = heun(teacher, z, steps=n)
    torch.testing.assert_close(teacher(last, torch.full((3,), 0.002).double()), wanted, rtol=1e-10, atol=1e-12)


def test_target_is_a_running_average():
    """theta- = mu theta- + (1 - mu) theta after every step; CT's mu comes from its grid."""
    grid = noise.karras_sigmas(3)
    nothing = torch.zeros(3, dtype=torch.float64)
    for numbers, mu in (
        (consistency.Numbers(mu=0.9), 0.9),
        (consistency.Numbers(levels="growing", target="growing", mu=0.9), 0.9 ** (2 / 1)),  # two entries at the start
    ):
        target = Table(grid, torch.tensor([1.0, 2.0]).double(), nothing)
        nets = {"generator": Table(grid, torch.tensor([3.0, -2.0]).double(), nothing), "target": target}
        consistency.after_step(nets, numbers, Progress(0, 0, 1000))
        wanted = torch.tensor([mu + (1 - mu) * 3, mu * 2 - (1 - mu) * 2], dtype=torch.float64)
        torch.testing.assert_close(target.factor.detach(), wanted, rtol=1e-12, atol=0)
        assert nets["generator"].factor[0] == 3


ECT = {
    "levels": "continuous", "source": "data", "target": "itself", "c": 0.0, "weighting": "inverse", "boundary": "sampling",
    "sigma_min": 0.003,
}  # fmt: skip


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("labels", [0, 3])
def test_ect_needs_no_target_pass_where_the_target_is_the_data(bench, labels, dropout):
    """targets: `needed` and `all` give one loss and one gradient, dropout masks included."""
    found = []
    for targets in ("needed", "all"):
        numbers = consistency.Numbers(**ECT, targets=targets)
        job = bench.job("consistency", numbers=numbers, labels=labels, dtype=torch.float64, dropout=dropout, batch=16,
                        folder=f"state-{targets}")  # fmt: skip
        work = loop.Loop(job)
        work.iterate()
        found.append(
            (work.monitor.sums["generator.consistency"][0], [p.grad for p in job.nets["generator"].parameters()])
        )
    (one, slopes), (other, others) = found
    assert one == pytest.approx(other, rel=1e-12)
    for a, b in zip(slopes, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("targets", ["needed", "all"])
def test_student_and_target_share_the_dropout_masks(bench, targets):
    """Where r is next to t the two outputs agree, although each has dropout: the masks are the same."""
    numbers = consistency.Numbers(**{**ECT, "weighting": "one", "q": 1e12}, targets=targets)
    job = bench.job("consistency", numbers=numbers, dtype=torch.float64, dropout=0.5, batch=8)
    work = loop.Loop(job)
    work.iterate()
    assert 0 < work.monitor.sums["generator.consistency"][0] < 1e-6


def test_flip_mirrors_half():
    """`flip` mirrors the real images whose number is below a half; nothing else."""
    images = torch.arange(12.0).reshape(3, 1, 2, 2).double()
    told = {
        "sigma": torch.tensor([0, 1, 2]),
        "epsilon": torch.zeros(3, 1, 2, 2),
        "flip": torch.tensor([0.1, 0.6, 0.49]),
    }
    seen = []

    class Net(Table):
        def forward(self, x, sigma, labels=None, augment_labels=None):
            seen.append(x)
            return super().forward(x, sigma)

    grid = noise.karras_sigmas(4)
    net = Net(grid, torch.ones(3).double(), torch.zeros(4).double())
    numbers = consistency.Numbers(n=4, source="data", target="itself", distance="l2", flip=True)
    batch = batch_of((1, 2, 2), told, reals=images)
    consistency.generator_terms({"generator": net, "teacher": None}, batch, None, numbers)
    wanted = torch.stack([images[0].flip(2), images[1], images[2].flip(2)])
    assert all(torch.equal(x, wanted) for x in seen) and len(seen) == 2


@pytest.mark.parametrize("n", [2, 3, 18])
def test_every_interval_is_drawn_equally_often(n):
    """uniform: each of the n - 1 intervals of the grid, and nothing outside it."""
    draw = draws.Draw(0, "any", 0, 20_000, dtype=torch.float64)
    batch = contract.Batch(draw, None, (1, 1, 1), Progress(0, 0, 100))
    sigma, lower = consistency.LEVELS["fixed"](batch, consistency.Numbers(n=n))
    levels, counts = sigma.unique(return_counts=True)
    grid = noise.karras_sigmas(n).flip(0)
    assert torch.equal(levels, grid[1:]) and torch.equal(lower.unique(), grid[:-1])
    expected = 20_000 / (n - 1)
    assert (counts - expected).abs().max() < 4.5 * expected**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [0.0, 0.06, None])
def test_equal_images_have_no_slope(dtype, c):
    """The root of the pseudo-Huber distance is finite where the images are equal, also for c = 0."""
    a = torch.ones(2, 1, 2, 2, dtype=dtype, requires_grad=True)
    value = consistency.distance(a, a.detach(), consistency.Numbers(c=c))
    (slope,) = torch.autograd.grad(value.sum(), a)
    assert value.abs().max() < 1e-7 and not slope.any()
