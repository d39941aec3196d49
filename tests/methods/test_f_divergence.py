# SPDX-License-Identifier: Apache-2.0
"""f-distill and Uni-Instruct against golden arrays, and against derivatives of f-divergences of Gaussians."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from eldistill.contract import Phase, Progress
from eldistill.diffusion import noise
from eldistill.errors import Problem
from eldistill.losses import score
from eldistill.methods import dmd2, f_divergence
from tests import arrays
from tests.methods.test_methods import Gaussian
from tests.methods.test_sim import nodes
from tests.toys import batch_of, golden, linear, near

MEAN, DEVIATION = 0.1, 0.8  # of the data
GENERATORS = [(1.0, 0.4), (1.3, -0.2)]  # x = a z + b, wider than the data: the chi-squared distance is finite
# f of r = q / p, whose divergence is E_p f(r)
CONVEX = {
    "reverse-kl": lambda r: -r.log(),
    "forward-kl": lambda r: r * r.log(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "jensen-shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "chi-squared": lambda r: (r - 1) ** 2,
    "squared-hellinger": lambda r: 1 - r.sqrt(),
    "softened-reverse-kl": lambda r: (r + 1) * ((r + 1) / (2 * r)).log(),
}
with_divergences = pytest.mark.parametrize("divergence", CONVEX)
with_gradients = pytest.mark.parametrize("gradient", ["weighted", "expanded"])
PLAIN = {"unit_means": False, "ratio_min": 1e-200, "ratio_max": 1e200, "weight_generator": 0.0}


class Judged:
    """A fake_score whose discriminator's logits are a function of the noisy image and its noise level."""

    def __init__(self, denoiser, logits):
        self.denoiser, self.logits = denoiser, logits

    def both(self, x, sigma, labels=None):
        return self.denoiser(x, sigma), self.logits(x, sigma)

    def head(self, features):
        return features.reshape(-1, 1)


def told(index: int, epsilon: torch.Tensor, shape=(1, 1, 1)):
    """A batch whose noise level is that entry of the generator's part of the grid."""
    return batch_of(shape, {"matching/sigma": torch.full((len(epsilon),), index), "matching/epsilon": epsilon})


# --- the divergences ---


@with_divergences
def test_weights_are_those_of_f(divergence):
    """h = r^2 f''(r) by automatic differentiation of f, k = h - r h'(r); f(1) = 0."""
    r = torch.tensor([0.1, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(CONVEX[divergence](r).sum(), r, create_graph=True)[0]
    h = r**2 * torch.autograd.grad(slope.sum(), r, create_graph=True)[0]
    h_slope = torch.autograd.grad(h.sum(), r, allow_unused=True)[0]
    found_h, found_k = f_divergence.DIVERGENCES[divergence](r.detach())
    near(found_h, h, 1e-12, entries=True)
    torch.testing.assert_close(found_k, h - r * h_slope, rtol=1e-12, atol=1e-14)
    assert CONVEX[divergence](torch.ones(1).double()) == 0
    assert set(CONVEX) == set(f_divergence.DIVERGENCES)


def gaussian(x: torch.Tensor, mean, variance) -> torch.Tensor:
    return (-((x - mean) ** 2) / (2 * variance)).exp() / (2 * math.pi * variance) ** 0.5


def divergence_of(name: str, gradient: str, at, sigma: float) -> torch.Tensor:
    """sigma^2 E_p f(r), or E_p h(r) Delta^2 / 2, by a sum over a fine grid; p of N(b, a^2 + sigma^2), at = (a, b)."""
    a, b = at
    x = torch.linspace(-14, 14, 4001, dtype=torch.float64) * (1 + sigma)
    p, q = gaussian(x, b, a**2 + sigma**2), gaussian(x, MEAN, DEVIATION**2 + sigma**2)
    ratio = torch.where(p > 1e-250, q / p.clamp_min(1e-250), 1.0)
    if gradient == "weighted":
        inside = sigma**2 * CONVEX[name](ratio.clamp_min(1e-200))
    else:
        real = (DEVIATION**2 * x + sigma**2 * MEAN) / (DEVIATION**2 + sigma**2)
        fake = (a**2 * x + sigma**2 * b) / (a**2 + sigma**2)
        inside = f_divergence.DIVERGENCES[name](ratio)[0] * (real - fake) ** 2 / 2
    return (p * inside).sum() * (x[1] - x[0])


@with_divergences
@with_gradients
@pytest.mark.parametrize("index", [350, 650])
@pytest.mark.parametrize(("a", "b"), GENERATORS)
def test_gradient_with_gaussian_data(a, b, index, gradient, divergence):
    """With ideal denoisers and the true density ratio it is the derivative of the divergence by a and b, images weighed
    by mean |x - D_phi|: for `expanded` p, the ratio and Delta all follow a and b."""
    z, epsilon, weight = nodes(56)
    numbers = f_divergence.Numbers(divergence=divergence, gradient=gradient, low=0, **PLAIN)
    sigma = float(noise.karras_sigmas(1000).flip(0)[index])
    p = torch.distributions.Normal(torch.tensor(b).double(), math.sqrt(a**2 + sigma**2))
    q = torch.distributions.Normal(torch.tensor(MEAN).double(), math.sqrt(DEVIATION**2 + sigma**2))
    teacher, fake = Gaussian(MEAN, DEVIATION), Gaussian(b, a)
    nets = {"teacher": teacher, "fake_score": Judged(fake, lambda x, _: q.log_prob(x) - p.log_prob(x))}
    x = (a * z + b).reshape(-1, 1, 1, 1)
    terms = f_divergence.generator_terms(nets, told(index, epsilon), lambda: x, numbers)
    assert list(terms) == ["matching"]
    level = torch.full((len(z),), sigma).double()
    scale = (x - teacher(x + sigma * epsilon.reshape(-1, 1, 1, 1), level)).abs().flatten()
    slopes = terms["matching"].gradient.flatten() * len(z) * scale * weight
    at = [torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (a, b)]
    wanted = torch.autograd.grad(divergence_of(divergence, gradient, at, sigma), at)
    near(torch.stack([(slopes * z).sum(), slopes.sum()]), torch.stack(wanted), 1e-4)


# --- the golden arrays ---


def golden_terms(weight: float, **changes):
    """The arrays, and the terms of the generator on them."""
    given = golden("f_divergence")
    numbers = f_divergence.Numbers(low=0, high=0.8, group=4, intervals=2, weight_generator=weight, **changes)
    noisy = given["x"] + given["sigma"].reshape(-1, 1, 1, 1) * given["noise"]
    logits = lambda x, _: given["logits"] + (x - noisy).mean(dim=(1, 2, 3))  # noqa: E731
    nets = {"teacher": linear(*arrays.TEACHER), "fake_score": Judged(linear(*arrays.FAKE), logits)}
    batch = batch_of(arrays.SHAPE[1:], {"matching/sigma": given["entries"], "matching/epsilon": given["noise"]})
    return given, f_divergence.generator_terms(nets, batch, lambda: given["x"], numbers), batch, numbers


@with_divergences
@with_gradients
def test_golden_gradient(gradient, divergence):
    """f_divergence: clipped and twice normalised weights, value, gradient; groups of four and two images, two intervals."""
    given, terms, batch, numbers = golden_terms(0.0, gradient=gradient, divergence=divergence)
    sigma, interval = f_divergence.levels(batch, numbers)
    near(sigma, given["sigma"], 1e-12, entries=True)
    assert interval.tolist() == arrays.INTERVALS
    near(f_divergence.weights(given["logits"], interval, numbers)[0], given[f"{divergence}/h"], 1e-12)
    near(terms["matching"].gradient, given[f"{divergence}/{gradient}"], 1e-10)
    if gradient == "expanded":
        near(terms["matching"].value, given[f"{divergence}/expanded_value"], 1e-10)


@with_divergences
def test_golden_gradient_with_the_ratio_held(divergence):
    """f_divergence: the ratio is a number in it, as in the code of Uni-Instruct; the value is the same."""
    given, terms, _, _ = golden_terms(0.0, gradient="expanded", divergence=divergence, through_ratio=False)
    near(terms["matching"].gradient, given[f"{divergence}/held"], 1e-10)
    near(terms["matching"].value, given[f"{divergence}/expanded_value"], 1e-10)


@with_gradients
def test_golden_adversarial_loss(gradient):
    """Its gradient is in that of `matching`; the density ratio passes none on to the logits."""
    given, terms, _, _ = golden_terms(arrays.WEIGHT, gradient=gradient)
    wanted = given[f"jensen-shannon/{gradient}"] + given["adversarial_gradient"]
    near(terms["matching"].gradient, wanted, 1e-10)
    near(terms["adversarial"].value, given["adversarial"], 1e-12)
    assert terms["adversarial"].gradient is None


# --- beside other methods ---


@pytest.mark.parametrize("unit_means", [False, True])
def test_reverse_kl_is_dmd2(unit_means):
    """h = 1: the gradient of DMD2's distribution matching, whatever the discriminator thinks."""
    given, terms, batch, _ = golden_terms(0.0, divergence="reverse-kl", unit_means=unit_means)
    nets = {"teacher": linear(*arrays.TEACHER), "fake_score": linear(*arrays.FAKE)}
    numbers = dmd2.Numbers(low=0, high=0.8, weight_generator=0)
    wanted = dmd2.generator_terms(nets, batch, lambda: given["x"], numbers)["matching"]
    near(terms["matching"].gradient, wanted.gradient, 1e-12)


def test_expanded_reverse_kl_is_sid_at_alpha_one_half():
    """h = k = 1: SiD's loss over all entries, its gradient through both denoisers."""
    given, terms, _, _ = golden_terms(0.0, divergence="reverse-kl", gradient="expanded")
    shift = given["sigma"].reshape(-1, 1, 1, 1) * given["noise"]

    def loss(x, real, fake):
        return (score.identity_loss(x, real, fake, 0.5)[0].mean(),)

    passes = [
        lambda noisy, each=each: (linear(*each)(noisy, given["sigma"]),) for each in (arrays.TEACHER, arrays.FAKE)
    ]
    (value,), gradient = score.pull(loss, *passes, given["x"], shift, False)
    near(terms["matching"].value, value, 1e-12)
    near(terms["matching"].gradient, gradient, 1e-12)


# --- normalisation, clipping, bad numbers ---


@with_divergences
def test_weights_have_mean_one_in_each_group(divergence):
    """Whatever the logits, in full and in incomplete groups; the mean of r is 1 before h is taken."""
    numbers = f_divergence.Numbers(divergence=divergence, group=4, intervals=3)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(10, generator=generator, dtype=torch.float64)
    interval = torch.randint(0, 3, (10,), generator=generator)
    h, _ = f_divergence.weights(logits, interval, numbers)
    near(torch.stack([part.mean() for part in h.split(4)]), torch.ones(3).double(), 1e-12)
    assert torch.equal(f_divergence.weights(logits[:4], interval[:4], numbers)[0], h[:4])  # a group knows no other
    one, _ = f_divergence.weights(logits[:1], interval[:1], numbers)
    near(one, torch.ones(1).double(), 1e-12)


def test_a_shift_of_all_logits_changes_nothing():
    """A discriminator that errs by one factor everywhere is corrected, as long as nothing is clipped."""
    numbers = f_divergence.Numbers(divergence="forward-kl", group=4, ratio_min=1e-6, ratio_max=1e6)
    logits, interval = torch.linspace(-1, 1, 8).double(), torch.zeros(8, dtype=torch.long)
    first, second = (f_divergence.weights(logits + shift, interval, numbers)[0] for shift in (0.0, 2.0))
    near(first, second, 1e-12)


def test_clipped_ratios_have_no_gradient():
    logits = torch.tensor([-9.0, 0.5, 9.0], dtype=torch.float64, requires_grad=True)
    numbers = f_divergence.Numbers(divergence="forward-kl", unit_means=False)
    h, _ = f_divergence.weights(logits, torch.zeros(3, dtype=torch.long), numbers)
    near(h, torch.tensor([0.1, math.exp(0.5), 20], dtype=torch.float64), 1e-12, entries=True)
    assert (torch.autograd.grad(h.sum(), logits)[0] != 0).tolist() == [False, True, False]


@with_divergences
@pytest.mark.parametrize("unit_means", [False, True])
def test_a_nan_stays(divergence, unit_means):
    """A NaN of a logit is in the gradient of its image, also for reverse KL, which needs no ratio: by the adversarial loss."""
    numbers = f_divergence.Numbers(divergence=divergence, unit_means=unit_means)
    given = golden("f_divergence")
    logits = given["logits"].clone()
    logits[1] = torch.nan
    nets = {
        "teacher": linear(*arrays.TEACHER),
        "fake_score": Judged(linear(*arrays.FAKE), lambda x, _: logits + 0 * x.mean()),
    }
    batch = batch_of(arrays.SHAPE[1:], {"matching/sigma": given["entries"], "matching/epsilon": given["noise"]})
    terms = f_divergence.generator_terms(nets, batch, lambda: given["x"], numbers)
    assert terms["adversarial"].value.isnan()
    if divergence != "reverse-kl":
        assert terms["matching"].gradient[1].isnan().all()


def test_phases_and_groups():
    """DMD2's order; the images of a group stay together only where their means are used."""
    again = Phase("fake_score", images="reuse", labels="same", generator_mode="eval")
    numbers, start = f_divergence.Numbers(), Progress(0, 0, 10**6)
    assert f_divergence.phases(numbers, start) == [Phase("generator", every=5), again]
    assert f_divergence.group(numbers) == 32
    assert f_divergence.group(dataclasses.replace(numbers, unit_means=False)) == 1


def test_numbers_that_do_not_go_together():
    with pytest.raises(
        Problem, match=r"ratio_min is 2\.0 and ratio_max 1\.5 of f_divergence; expected ratio_min below"
    ):
        f_divergence.Numbers(ratio_min=2.0, ratio_max=1.5)
    with pytest.raises(Problem, match=r"low is 0\.5 and high 0\.5 of f_divergence; expected low below high"):
        f_divergence.Numbers(low=0.5, high=0.5)
