# SPDX-License-Identifier: Apache-2.0
"""Discriminators and their losses: optima in closed form, DMD2's head against torch's own layers, groups of images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from eldistill import contract
from eldistill.contract import Setting
from eldistill.diffusion import draws, noise
from eldistill.errors import Problem
from eldistill.losses import adversarial, balance, head
from eldistill.methods import dmd2, sida
from eldistill.supplements import gan
from eldistill.training import loop
from tests.methods.test_methods import Gaussian
from tests.toys import Images, batch_of

# Generated and real images occur at four places, so often.
FAKE, REAL = torch.tensor([5, 2, 2, 1]), torch.tensor([1, 3, 2, 4])


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Jensen and Shannon's, in nats."""
    p, q = p.double() / p.sum(), q.double() / q.sum()
    middle = (p + q) / 2
    return float((p * (p / middle).log() + q * (q / middle).log()).sum() / 2)


@pytest.fixture
def optimum() -> torch.Tensor:
    """The best logit at each place: ln p_real / p_fake."""
    return (REAL.double() / FAKE.double()).log().requires_grad_()  # both occur ten times


# --- losses ---


def test_critic_loss_at_the_best_discriminator(optimum):
    """log 4 - 2 JSD, without slope, and less than at any other logits; log 4 where it cannot tell."""
    loss = lambda table: adversarial.critic_loss(table.repeat_interleave(FAKE), table.repeat_interleave(REAL))  # noqa: E731
    best = loss(optimum)
    assert best.item() == pytest.approx(math.log(4) - 2 * divergence(FAKE, REAL), rel=1e-12)
    assert torch.autograd.grad(best, optimum)[0].abs().max() < 1e-15
    for index in range(4):
        for change in (-0.1, 0.1):
            other = optimum.detach().clone()
            other[index] += change
            assert loss(other) > best
    assert float(loss(torch.zeros(4).double())) == pytest.approx(math.log(4), rel=1e-12)


def test_generator_loss_at_a_logit():
    """mean ln(1 + e^-l): ln 2 where the discriminator cannot tell; its slope is -(1 - sigmoid(l)) / n."""
    logit = torch.tensor([0.0, 2.0, -30.0], dtype=torch.float64, requires_grad=True)
    value = adversarial.generator_loss(logit)
    wanted = (math.log(2) + math.log1p(math.exp(-2)) + 30) / 3
    assert value.item() == pytest.approx(wanted, rel=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad(value, logit)[0], (logit.detach().sigmoid() - 1) / 3, rtol=1e-9, atol=0
    )
    assert float(adversarial.generator_loss(torch.zeros(5, 1))) == pytest.approx(math.log(2), rel=1e-6)


def test_sida_discriminator_at_its_optimum(optimum):
    """Mean weight times (log 2 - JSD), without slope: a place in a logit map is an image of the table above."""
    fake, real = (optimum.repeat_interleave(counts).reshape(1, 1, 2, 5) for counts in (FAKE, REAL))
    weight = torch.tensor([1.0, 5.0, 9.0, 25.0]).double()
    loss = sida.discriminator_loss(fake.expand(4, 1, 2, 5), real.expand(4, 1, 2, 5), weight, 32)
    assert loss.item() == pytest.approx(10 * (math.log(2) - divergence(FAKE, REAL)), rel=1e-12)
    assert torch.autograd.grad(loss, optimum)[0].abs().max() < 1e-14


def test_sida_generator_where_the_discriminator_cannot_tell():
    """Half of weight * pixels * ln 2 * mean(1 / w) for logits of zero."""
    x, real = (
        torch.zeros(3, 1, 2, 2).double(),
        torch.tensor([0.5, 1.0, 2.0]).double().reshape(3, 1, 1, 1).expand(3, 1, 2, 2),
    )
    logits, nothing = torch.zeros(3, 1, 8, 8).double(), torch.zeros(3, 1, 1, 1).double()
    numbers = sida.Numbers(weight_generator=0.3)
    _, _, own = sida.objective(x, real, real, logits, nothing, numbers, False)
    assert float(own) == pytest.approx(0.5 * 0.3 * 4 * math.log(2) * (2 + 1 + 0.5) / 3, rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 32])
def test_groups_average_before_they_multiply(size):
    """Groups of one: the mean of products; one group: the product of means; a smaller last group counts by its images."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(7, generator=generator, dtype=torch.float64)
    second = torch.rand(7, 1, 2, 2, generator=generator, dtype=torch.float64)
    parts = [slice(start, min(start + size, 7)) for start in range(0, 7, size)]
    wanted = sum(float(first[p].mean() * second[p].mean()) * (p.stop - p.start) for p in parts) / 7
    assert float(adversarial.grouped(first, second, size)) == pytest.approx(wanted, rel=1e-12)
    if size == 1:
        assert wanted == pytest.approx(float((first * second.mean(dim=(1, 2, 3))).mean()), rel=1e-12)
    if size >= 7:
        assert wanted == pytest.approx(float(first.mean() * second.mean()), rel=1e-12)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5])
def test_groups_do_not_depend_on_the_micro_batch(bench, micro_batch):
    """A group stays whole in a micro-batch: SiDA's losses are those of the whole batch, to rounding."""
    found = []
    for size in (0, micro_batch):
        job = bench.job("sida", numbers=sida.Numbers(group=2), dtype=torch.float64, batch=6, micro_batch=size,
                        folder=f"state-{size}")  # fmt: skip
        work = loop.Loop(job)
        work.iterate()
        found.append(work.monitor.sums)
    for name in ("fake_score.adversarial", "generator.adversarial", "generator.identity"):
        assert found[0][name][0] == pytest.approx(found[1][name][0], rel=1e-9)


def test_channel_mean():
    """One logit for each place; half precision becomes float32."""
    features = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert torch.equal(adversarial.channel_mean(features)[1, 0], features[1].mean(dim=0))
    assert adversarial.channel_mean(features.bfloat16()).dtype == torch.float32
    assert adversarial.channel_mean(features.double()).dtype == torch.float64


# --- the head ---


def test_head_is_dmd2s():
    """At 8x8 with 768 channels: their layers, by torch's own, and 18.88 million weights."""
    head = adversarial.Head(768, 8, 0).double()
    theirs = nn.Sequential(
        nn.Conv2d(768, 768, 4, 2, 1), nn.GroupNorm(32, 768), nn.SiLU(),
        nn.Conv2d(768, 768, 4, 4, 0), nn.GroupNorm(32, 768), nn.SiLU(),
        nn.Conv2d(768, 1, 1, 1, 0),
    ).double()  # fmt: skip
    assert sum(p.numel() for p in head.parameters()) == sum(p.numel() for p in theirs.parameters()) == 18_879_745
    with torch.no_grad():
        for ours, other in zip(head.parameters(), theirs.parameters(), strict=True):
            assert ours.shape == other.shape
            other.copy_(ours)
    features = torch.randn(2, 768, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(head(features), theirs(features).flatten(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 8, 16])
def test_head_at_any_side(side):
    """One logit an image; the same seed gives the same weights and leaves torch's generator alone."""
    before = torch.get_rng_state()
    head, again, other = (adversarial.Head(8, side, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    features = torch.randn(5, 8, side, side, generator=torch.Generator().manual_seed(0))
    assert head(features).shape == (5, 1)
    assert torch.equal(head(features), again(features)) and not torch.equal(head(features), other(features))
    assert all(p.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize(("channels", "side"), [(128, 8), (64, 4), (32, 16)])
def test_head_starts_as_torchs_own_layers(channels, side):
    """U(-b, b) with b = 1 / sqrt(fan in) for weights and biases: the standard deviation is 1 / sqrt(3 fan in) to within 5 of
    its own errors, nothing lies beyond b, and torch's layers of the same shape have the same; norms are 1 and 0."""
    torch.manual_seed(0)
    for module in adversarial.Head(channels, side, 0).modules():
        if not isinstance(module, head._Conv):
            continue
        own, theirs = module, nn.Conv2d(module.weight.shape[1], module.weight.shape[0], module.weight.shape[2])
        bound = 1 / math.sqrt(own.weight[0].numel())
        for name in ("weight", "bias"):
            values, others = getattr(own, name).detach(), getattr(theirs, name).detach()
            error = 5 / math.sqrt(len(values.flatten()))  # relative; of a uniform's deviation it is smaller
            assert values.abs().max() <= bound and others.abs().max() <= bound and values.any()
            for each in (values, others):
                root = float(each.square().mean().sqrt())
                assert len(each.flatten()) < 100 or abs(root * math.sqrt(3) / bound - 1) < error
                assert abs(float(each.mean())) < bound * error
    first = adversarial.Head(128, 8, 0).parts[0]
    assert float(first.weight.detach().std()) == pytest.approx(0.01276, rel=0.01), "EDM's layers: 0.0221"


def test_add_head(bench):
    """The head is trained with fake_score, has its dtype, changes none of its images, and is added once."""
    net = bench.teacher(dtype=torch.float64)
    x, sigma = torch.ones(2, 1, 8, 8).double(), torch.ones(2).double()
    before, count = net(x, sigma), len(list(net.parameters()))
    assert adversarial.add_head(net, 0) is net
    assert torch.equal(net(x, sigma), before) and len(list(net.parameters())) > count
    assert {p.dtype for p in net.head.parameters()} == {torch.float64}
    with pytest.raises(Problem, match="discriminator already"):
        adversarial.add_head(net, 0)


class Squares(Gaussian):
    """A denoiser whose encoder gives its input and whose head sums the squares; it notes what it encodes."""

    def __init__(self):
        super().__init__(0.0, 1.0)
        self.seen = []

    def encode(self, x, sigma, labels=None, augment_labels=None):
        self.seen.append((x, sigma))
        return x

    def head(self, features):
        return features.square().sum(dim=(1, 2, 3), keepdim=True).flatten(1)


def test_generated_and_real_images_have_noise_of_their_own():
    """critic: two levels, two noises; at_images: the gradient at the images, through the noise and the encoder."""
    generator = torch.Generator().manual_seed(0)
    images, reals, one, two = (torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(4))
    low, high = torch.tensor([0, 5, 9]), torch.tensor([3, 3, 1])
    told = {"a/fake/sigma": low, "a/fake/epsilon": one, "a/real/sigma": high, "a/real/epsilon": two,
            "b/sigma": high, "b/epsilon": two}  # fmt: skip
    batch, net = batch_of((1, 2, 2), told, reals=reals), Squares()
    grid = noise.karras_sigmas(10).flip(0)
    fake = images + grid[low].reshape(-1, 1, 1, 1) * one
    real = reals + grid[high].reshape(-1, 1, 1, 1) * two
    value = adversarial.critic(net, batch, images, 10, "a")
    for (x, sigma), noisy, level in zip(net.seen, (fake, real), (grid[low], grid[high]), strict=True):
        torch.testing.assert_close(x, noisy, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(sigma, level, rtol=1e-12, atol=0)
    torch.testing.assert_close(value, adversarial.critic_loss(net.head(fake), net.head(real)), rtol=1e-12, atol=0)
    with torch.no_grad():
        value, gradient = adversarial.at_images(net, batch, images, 10, "b")
    noisy = images + grid[high].reshape(-1, 1, 1, 1) * two
    logit = net.head(noisy)
    torch.testing.assert_close(value, adversarial.generator_loss(logit), rtol=1e-12, atol=0)
    wanted = (logit.sigmoid() - 1).reshape(-1, 1, 1, 1) / 3 * 2 * noisy
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-14)
    assert not gradient.requires_grad and not value.requires_grad


def test_dmd2_weighs_its_adversarial_terms():
    """The losses of the head times their factors, beside those of distribution matching; none at a factor of zero."""
    generator = torch.Generator().manual_seed(0)
    images, reals = (torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    batch, net = (
        contract.Batch(draws.Draw(0, "any", 0, 3, dtype=torch.float64), None, (1, 2, 2), None, Images(reals)),
        Squares(),
    )
    nets, numbers = (
        {"fake_score": net, "teacher": Gaussian(0.5, 0.5)},
        dmd2.Numbers(weight_generator=0.3, weight_critic=0.2),
    )
    terms = dmd2.generator_terms(nets, batch, lambda: images, numbers)
    value, gradient = adversarial.at_images(net, batch, images, 1000, "head")
    assert list(terms) == ["matching", "adversarial"]
    torch.testing.assert_close(terms["adversarial"].value, 0.3 * value, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms["adversarial"].gradient, 0.3 * gradient, rtol=1e-12, atol=0)
    terms = dmd2.critic_terms(nets, batch, images, numbers)
    assert list(terms) == ["denoising", "adversarial"]
    wanted = 0.2 * adversarial.critic(net, batch, images, 1000, "head")
    torch.testing.assert_close(terms["adversarial"], wanted, rtol=1e-12, atol=0)
    off = dmd2.Numbers(weight_generator=0, weight_critic=0)
    assert list(dmd2.generator_terms(nets, batch, lambda: images, off)) == ["matching"]
    assert list(dmd2.critic_terms(nets, batch, images, off)) == ["denoising"]


# --- the supplement gan ---


def test_gan_weighs_its_critic():
    """fake_score and head learn the critic's loss times weight_critic; nothing where the supplement is off."""
    images, reals = torch.ones(3, 1, 2, 2).double(), torch.zeros(3, 1, 2, 2).double()
    batch, net = (
        contract.Batch(draws.Draw(0, "any", 0, 3, dtype=torch.float64), None, (1, 2, 2), None, Images(reals)),
        Squares(),
    )
    terms = gan.critic_terms(None, {"fake_score": net}, batch, images, gan.Numbers(weight_critic=0.2))
    wanted = 0.2 * adversarial.critic(net, batch, images, 1000, "gan")
    torch.testing.assert_close(terms["adversarial"], wanted, rtol=1e-12, atol=0)
    assert gan.critic_terms(None, {"fake_score": net}, batch, images, gan.Numbers(weight=0.0)) == {}


def test_gan_needs_a_fake_score(bench):
    """A method without one, or one whose fake_score has a head: a sentence."""
    with pytest.raises(Problem, match="gan needs a method with a fake_score"):
        bench.job("consistency", {"gan": {}})
    with pytest.raises(Problem, match="discriminator already"):
        bench.job("dmd2", {"gan": {}})


@pytest.mark.parametrize("micro_batch", [0, 1, 3])
def test_gan_sees_the_batch_in_parts(bench, micro_batch):
    """Value and gradient at the images are means over the whole batch, however many images pass at once."""
    nets = {"fake_score": bench.teacher(dtype=torch.float64)}
    tools = gan.prepare(gan.Numbers(), Setting(sigma_data=0.5, seed=0, sigma_init=2.5, micro_batch=micro_batch))
    gan.networks(nets, tools, gan.Numbers(), 0)
    nets["fake_score"].requires_grad_(False)
    draw = draws.Draw(0, "generator", 0, 7, dtype=torch.float64)
    batch = contract.Batch(draw, None, (1, 8, 8), None)
    images = draw.normal("images", 1, 8, 8)
    term = gan.generator_terms(tools, images, batch, gan.Numbers())["adversarial"]
    value, gradient = adversarial.at_images(nets["fake_score"], batch, images, 1000, "gan")
    torch.testing.assert_close(term.value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(term.gradient, gradient, rtol=1e-9, atol=1e-15)


def test_gan_weight():
    """fixed: the number; balanced: the number times the running ratio of the two gradients, clipped."""
    fixed, memory = gan.Numbers(weight=0.3, weighting="fixed"), {}
    assert gan.weight(1.0, 2.0, 4, fixed, None, memory).factor == 0.3 and not memory
    balanced = gan.Numbers(weight=0.3, decay=0.5)
    assert gan.weight(1.0, 2.0, 4, balanced, None, memory).factor == pytest.approx(0.3 / 2)
    assert gan.weight(4.0, 1.0, 4, balanced, None, memory).factor == pytest.approx(0.3 * (0.25 + 2) / (0.5 + 0.5))
    assert gan.weight(1.0, 0.0, 4, balanced, None, {}) == contract.Weight(0.3 * balance.HIGH, bounded=True)
    assert gan.weight(0.0, 1.0, 4, balanced, None, {}).factor == 0
    assert gan.weight(1.0, 1.0, 4, gan.Numbers(weight=0.0), None, {}).factor == 0
