# SPDX-License-Identifier: Apache-2.0
"""How the methods are put together: their phases, who sees which labels, what is augmented, how generators are sampled."""

from __future__ import annotations

import pytest
import torch

from eldistill import contract
from eldistill.contract import Batch, Phase, Progress
from eldistill.diffusion import draws, noise
from eldistill.errors import Problem
from eldistill.losses import adversarial, score
from eldistill.methods import (
    consistency,
    diff_instruct,
    dmd,
    dmd2,
    f_divergence,
    mean_flow,
    scm,
    sid,
    sida,
    sim,
    tcm,
)
from eldistill.networks import precond
from eldistill.sampling import generators as sampling
from eldistill.training import loop
from tests.toys import batch_of, linear

START = Progress(0, 0, 10**6)
FAKE, OWN = Phase("fake_score", generator_mode="eval"), Phase("generator")
AGAIN = Phase("fake_score", images="reuse", labels="same", generator_mode="eval")


# --- phases ---


@pytest.mark.parametrize(("method", "fresh"), [
    (diff_instruct, [FAKE, OWN]), (sid, [FAKE, OWN]), (sida, [FAKE, OWN]), (sim, [FAKE, OWN]), (dmd, [OWN, FAKE]),
], ids=["diff_instruct", "sid", "sida", "sim", "dmd"])  # fmt: skip
def test_order_of_an_iteration(method, fresh):
    """Fresh images in the authors' order; images used again are the generator's, whose step then comes first."""
    assert method.phases(method.Numbers(images="fresh"), START) == fresh
    assert method.phases(method.Numbers(images="reuse"), START) == [OWN, AGAIN]


def test_defaults_are_the_authors_order():
    """DI, SiD and SiDA make fresh images for each phase; DMD and DMD2 use the generator's again."""
    assert [m.Numbers().images for m in (diff_instruct, sid, sida, dmd, dmd2)] == ["fresh"] * 3 + ["reuse"] * 2
    assert dmd2.phases(dmd2.Numbers(), START) == [Phase("generator", every=5), AGAIN]
    assert dmd2.phases(dmd2.Numbers(images="fresh", every=3), START) == [Phase("generator", every=3), FAKE]
    assert consistency.phases(consistency.Numbers(), START) == [Phase("generator", images="none")]


@pytest.mark.parametrize("images", ["fresh", "reuse"])
def test_sida_warms_up(bench, images):
    """Until freeze_images, itself included, the generator rests; until solo_images its loss is SiD's."""
    numbers = sida.Numbers(freeze_images=8, solo_images=16, images=images)
    whole = score.phases(images)
    for n_images, wanted in ((0, [FAKE]), (8, [FAKE]), (9, whole), (17, whole)):
        assert sida.phases(numbers, Progress(n_images, 0, 100)) == wanted
    for off in (0, 1000):
        assert sida.phases(sida.Numbers(images=images), Progress(off, 0, 100)) == whole
    work, seen = loop.Loop(bench.job("sida", numbers=numbers, batch=4, steps=7)), []
    for _ in range(7):
        work.monitor.sums = {}
        work.iterate()
        seen.append([name for name in ("identity", "adversarial") if f"generator.{name}" in work.monitor.sums])
    assert seen == [[]] * 3 + [["identity"]] * 2 + [["identity", "adversarial"]] * 2


def test_the_generator_rests_bit_for_bit(bench):
    """A frozen generator is the start, whatever fake_score learns meanwhile."""
    job = bench.job("sida", numbers=sida.Numbers(freeze_images=100), steps=3)
    before = {key: value.clone() for key, value in job.nets["generator"].state_dict().items()}
    loop.Loop(job).run()
    assert all(torch.equal(before[key], value) for key, value in job.nets["generator"].state_dict().items())


# --- labels ---

CASES = {
    "diff_instruct": (diff_instruct, {}), "dmd": (dmd, {}), "dmd2": (dmd2, {}), "sid": (sid, {}), "sida": (sida, {}),
    "sim": (sim, {}), "f-distill": (f_divergence, {}), "uni-instruct": (f_divergence, {"gradient": "expanded", "every": 1}),
    "sid-sequential": (sid, {"sequential": True}), "sida-reuse": (sida, {"images": "reuse"}), "cd": (consistency, {}),
    "scd": (scm, {}), "mean-flow-cd": (mean_flow, {"source": "teacher"}), "tcm": (tcm, {}),
    "ect": (consistency, {"levels": "continuous", "source": "data", "target": "itself", "P_mean": 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_pass_is_told_labels(bench, monkeypatch, case):
    """Each pass of each network has the label of each of its images, as drawn for its phase or with its real images."""
    method, changes = CASES[case]
    job = bench.job(method, numbers=method.Numbers(**changes), labels=3, batch=6)
    drawn, passes = [], []
    labels, scale = job.reals.labels, precond.EDMPrecond._scale
    monkeypatch.setattr(job.reals, "labels", lambda indices: drawn.append(labels(indices)) or drawn[-1])

    def noted(net, x, sigma, labels, augment_labels):
        passes.append((x, labels))
        return scale(net, x, sigma, labels, augment_labels)

    monkeypatch.setattr(precond.EDMPrecond, "_scale", noted)
    loop.Loop(job).iterate()
    assert len(passes) >= 3 or case in ("ect", "tcm")
    for x, given in passes:
        assert given is not None and given.shape == (len(x), 3)
        known = [each for each in drawn if len(each) >= len(given)]
        assert any(torch.equal(given, each) or _within(given, each) for each in known)


def _within(part: torch.Tensor, whole: torch.Tensor) -> bool:
    # The target of ECT sees some of the images, in their order.
    rows = iter(whole.argmax(dim=1).tolist())
    return all(any(row == label for row in rows) for label in part.argmax(dim=1).tolist())


class Noted:
    """A fake_score that notes the labels and the images of its passes."""

    sigma_data = 0.5

    def __init__(self):
        self.passes = []

    def __call__(self, x, sigma, labels=None, augment_labels=None):
        self.passes.append((x, labels, augment_labels))
        return linear(0.3, 0.1)(x, sigma)

    def both(self, x, sigma, labels=None, augment_labels=None):
        return self(x, sigma, labels, augment_labels), x

    def encode(self, x, sigma, labels=None, augment_labels=None):
        self.passes.append((x, labels, augment_labels))
        return x

    def head(self, features):
        return features.mean(dim=(1, 2, 3)).reshape(-1, 1)


@pytest.mark.parametrize("loss", ["head", "encoder"])
def test_discriminators_give_real_images_their_own_labels(bench, loss):
    """The generated images have the labels of the phase, the real ones those of the data."""
    reals, net = bench.reals(3), Noted()
    given = torch.nn.functional.one_hot(torch.tensor([2, 2, 2, 2, 2]), 3).float()
    batch = Batch(draws.Draw(0, "fake_score", 0, 5), given, (1, 8, 8), START, reals)
    images = batch.draw.normal("images", 1, 8, 8)
    if loss == "head":
        adversarial.critic(net, batch, images, 1000, "any")
    else:
        sida.critic_terms({"fake_score": net}, batch, images, sida.Numbers())
    _, its = batch.real("label")
    assert not torch.equal(its, given)
    (_, first, _), (_, second, _) = net.passes
    assert torch.equal(first, given) and torch.equal(second, its)


def test_fresh_labels_are_those_of_the_real_images(bench):
    """SiDA's generated and real images of one batch have the same labels, as in the authors' code."""
    job, seen = bench.job("sida", labels=3, batch=6), []
    real = Batch.real
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Batch, "real", lambda batch, purpose: seen.append((batch.labels, real(batch, purpose))) or seen[-1][1]
        )
        loop.Loop(job).iterate()
    ((given, (_, its)),) = seen
    assert torch.equal(given, its)


# --- augmentation ---


@pytest.mark.parametrize("method", [diff_instruct, sid, sida, sim], ids=["diff_instruct", "sid", "sida", "sim"])
def test_fake_score_learns_from_augmented_images(bench, method):
    """The pipe and its labels go to fake_score, for SiDA's real images too, and the loss is that of augmented images."""
    net, reals = Noted(), bench.reals()
    batch = Batch(draws.Draw(0, "fake_score", 0, 5), None, (1, 8, 8), START, reals)
    images = batch.draw.normal("images", 1, 8, 8)
    terms = method.critic_terms({"fake_score": net}, batch, images, method.Numbers(augment=1.0))
    turned, its = score.augmented(batch, images, 1.0)
    assert not torch.equal(turned, images) and its.any()
    sigma = noise.lognormal(batch.draw.normal("sigma"), -1.2, 1.2)
    shift = sigma.reshape(-1, 1, 1, 1) * batch.draw.normal("epsilon", 1, 8, 8)
    seen = {0: (turned + shift, its)}
    if method is sida:
        real, others = score.augmented(batch, batch.real("label")[0], 1.0, "augment/real")
        assert not torch.equal(others, its)
        seen[1] = (real + shift, others)
    assert len(net.passes) == len(seen)
    for index, (x, told) in seen.items():
        torch.testing.assert_close(net.passes[index][0], x, rtol=1e-6, atol=1e-6)
        assert torch.equal(net.passes[index][2], told)
    weight = noise.edm_weight(sigma.reshape(-1, 1, 1, 1), 0.5)
    wanted = (weight * (linear(0.3, 0.1)(turned + shift, sigma) - turned) ** 2).sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(terms["denoising"], wanted, rtol=1e-5, atol=0)
    plain = method.critic_terms({"fake_score": net}, batch, images, method.Numbers())
    assert net.passes[len(seen)][2] is None and not torch.equal(plain["denoising"], terms["denoising"])


@pytest.mark.parametrize("method", ["diff_instruct", "sid", "sida", "sim"])
def test_augmentation_needs_a_teacher_that_knows_it(bench, method):
    """A sentence, before any training."""
    module = contract.load_module("methods", method)
    with pytest.raises(Problem, match="augment is 0.12, but the teacher knows no augmentation labels"):
        bench.job(method, numbers=module.Numbers(augment=0.12))


# --- numbers and samplers ---


def test_clip_value_bounds_each_entry(bench):
    """Of the gradient (SiDA's recipe for fake_score): larger entries keep their sign, smaller ones their value."""
    gradients = []
    for index, bound in enumerate((0.0, 1.0)):
        job = bench.job(bench.only(sida, "fake_score"), numbers=sida.Numbers(), dtype=torch.float64,
                        optimiser={"clip_value": bound}, folder=f"state-{index}")  # fmt: skip
        loop.Loop(job).iterate()
        gradients.append(
            torch.cat([p.grad.flatten() for p in job.nets["fake_score"].parameters() if p.grad is not None])
        )
    assert gradients[0].abs().max() > 1
    assert torch.equal(gradients[1], gradients[0].clamp(-1, 1))


def test_weight_of_score_identity_has_a_floor():
    """w is at least 1e-5 and has no gradient: equal images give finite numbers."""
    x = torch.ones(2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    real, fake = torch.ones(2, 1, 2, 2).double(), torch.zeros(2, 1, 2, 2).double()
    pixels, weight = score.identity_loss(x, real, fake, 0.0)
    assert (weight == 1e-5).all() and not weight.requires_grad
    (slope,) = torch.autograd.grad(pixels.sum(), x)
    torch.testing.assert_close(slope, torch.full_like(slope, -1e5), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "method",
    [diff_instruct, sid, sida, sim, dmd, dmd2, f_divergence],
    ids=lambda method: method.__name__.split(".")[-1],
)
def test_images_are_the_students_at_sigma_init(bench, method):
    """Before training: the teacher's denoised sigma_init z with its labels; sampled from there, too."""
    numbers = method.Numbers(sigma_init=1.7)
    job = bench.job(method, numbers=numbers, labels=3)
    draw, labels = draws.Draw(0, "any", 0, 4), job.reals.labels(torch.tensor([0, 1, 2, 0]))
    wanted = job.fixed["teacher"](1.7 * draw.normal("z", *job.shape), torch.full((4,), 1.7), labels)
    assert torch.equal(method.generate(job.nets, Batch(draw, labels, job.shape, START), numbers), wanted)
    assert method.sampler(numbers) == {"steps": {"1": [1.7]}}


@pytest.mark.parametrize("boundary", ["always", "sampling"])
def test_consistency_student(bench, boundary):
    """The identity at sigma_min while it trains, or in sampling only; a target has the student's scalings."""
    numbers = consistency.Numbers(boundary=boundary, sigma_min=0.01)
    job = bench.job("consistency", numbers=numbers)
    x, at = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((2,), 0.01)
    for net in job.nets.values():
        assert torch.equal(net(x, at), x) == (boundary == "always")
    assert job.fixed["teacher"].boundary == 0
    assert consistency.sampler(numbers)["boundary"] == 0.01


def test_start_from_another_run(bench):
    """Methods take the generator of another run as it is; fake_score starts at the teacher again."""
    teacher, other = bench.teacher(), bench.teacher(seed=7)
    for method in (diff_instruct, sid, sida, sim, dmd, dmd2, f_divergence, consistency, scm, mean_flow, tcm):
        made = method.generator(teacher, other, method.Numbers())
        assert made is not other
        weights = dict(made.named_parameters())
        assert all(torch.equal(weights[key], weight) for key, weight in other.named_parameters())
    for method in (diff_instruct, sid, sida, sim, dmd):
        fake = method.networks(teacher, method.Numbers(), 0)["fake_score"]
        assert all(torch.equal(a, b) for a, b in zip(fake.parameters(), teacher.parameters(), strict=True))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("renoise", "added"), [("boundary", (0.8**2 - 0.1**2) ** 0.5), ("whole", 0.8)])
def test_noise_and_clipping_between_steps(renoise, added, clip):
    """f(f(80 z) + s n): s as the sampler says, after a clipping to the range of pixels; the last image is not clipped."""
    codec = {"mean": 0.4, "std": 0.2}  # pixels from -1 to 1.5
    settings = {"steps": {"2": [80.0, 0.8]}, "boundary": 0.1, "renoise": renoise, "clip": clip}
    described = {"shape": [1, 2, 2], "codec": codec, "sampler": settings}
    generator = sampling.Generator(lambda x, sigma, labels: x * (3 + sigma).reshape(-1, 1, 1, 1) / 50, described)
    z, fresh = (
        torch.linspace(-2, 2, 8).double().reshape(2, 1, 2, 2),
        torch.linspace(1, -1, 8).double().reshape(2, 1, 2, 2),
    )
    draw = batch_of((1, 2, 2), {"z": z, "renoise/1": fresh}).draw
    found = sampling.few_steps(generator, draw, None, sampling.sigmas_of(generator, 2))
    first = 80 * z * 83 / 50
    assert first.max() > 1.5
    wanted = (first.clamp(-1, 1.5) if clip else first) + added * fresh
    torch.testing.assert_close(found, wanted * 3.8 / 50, rtol=1e-12, atol=1e-12)
