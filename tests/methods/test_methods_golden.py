# SPDX-License-Identifier: Apache-2.0
"""The losses of SiD, SiDA, DMD2, CM, iCT and ECT against golden arrays, nearly all of the original codes.

The arrays are float32, most computations here float64. Each docstring states the worst error that was measured,
relative to the largest entry of an array.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from eldistill.contract import Progress
from eldistill.diffusion import noise
from eldistill.losses import adversarial, score
from eldistill.methods import consistency, dmd2, sid, sida
from eldistill.sampling import generators as sampling
from eldistill.training import loop, update
from eldistill.training.optimisers import Optimiser
from tests.methods.test_methods import Affine, job_of
from tests.toys import Scaled, Tape, batch_of, golden, linear, near


@pytest.fixture
def tape(monkeypatch) -> dict[str, torch.Tensor]:
    """What the loop's draws return in this test."""
    monkeypatch.setattr(update, "Draw", Tape)
    monkeypatch.setattr(Tape, "tape", {})
    return Tape.tape


def leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


# --- SiD ---


def test_sid_sigma():
    """sid_sigma_from_u: uniform in the warped coordinate; worst error 1.5e-16 (tolerance 1e-12)."""
    arrays = golden("sid_sigma_from_u")
    batch = batch_of((1, 1, 1), {"sigma": arrays["u"]})
    sigma = score.identity_sigma(batch, float(arrays["tmax"]) / 1000)
    near(sigma, arrays["sigma"], 1e-12, entries=True)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sid_loss_and_its_three_gradients(alpha):
    """sid_generator_arrays: loss map, weight, total, and the gradients at x, D_phi, D_psi;
    worst error 1.5e-7 (tolerance 1e-6).
    """
    arrays = golden("sid_generator_arrays")
    x, real, fake = leaves(arrays["y"], arrays["y_real"], arrays["y_fake"])
    pixels, weight = score.identity_loss(x, real, fake, alpha)
    total = arrays["scale_G"] * pixels.sum() / len(x)
    near(weight, arrays["weight_factor"], 1e-6)
    near(pixels, arrays[f"loss_map_a{alpha}"], 1e-6)
    near(total, arrays[f"total_a{alpha}"], 1e-6)
    for gradient, name in zip(torch.autograd.grad(total, (x, real, fake)), ("y", "y_real", "y_fake"), strict=True):
        near(gradient, arrays[f"grad_{name}_a{alpha}"], 1e-6)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_sid_gradient_through_both_denoisers(alpha, sequential):
    """sid_generator_linear: the method's own term, the whole gradient at x; worst error 7.1e-7 (tolerance 2e-6)."""
    arrays = golden("sid_generator_linear")
    seen = []
    real, fake = linear(0.25, float(arrays["b_real"])), linear(0.36, float(arrays["b_fake"]))
    nets = {"teacher": lambda x, sigma, labels: seen.append(sigma) or real(x, sigma), "fake_score": fake}
    numbers = sid.Numbers(
        alpha=alpha, t_max=float(arrays["tmax"]) / 1000, scale=float(arrays["loss_scale"]), sequential=sequential
    )
    batch = batch_of((3, 4, 4), {"sigma": arrays["u"], "epsilon": arrays["eps"]})
    term = sid.generator_terms(nets, batch, lambda: arrays["x"], numbers)["identity"]
    assert len(seen) == 1 + sequential
    near(seen[0], arrays["sigma"].flatten(), 1e-6)
    near(term.value, arrays[f"total_a{alpha}"], 1e-6)
    near(term.gradient, arrays[f"grad_x_a{alpha}"], 2e-6)
    noisy = arrays["x"] + arrays["sigma"] * arrays["eps"]
    pixels, _ = score.identity_loss(arrays["x"], real(noisy, arrays["sigma"]), fake(noisy, arrays["sigma"]), alpha)
    near(pixels, arrays[f"loss_map_a{alpha}"], 1e-6)


def test_fake_score_loss():
    """edm_fake_score_loss: the term of SiD and Diff-Instruct and its gradient at D_psi;
    worst error 2.0e-7 (tolerance 1e-6).
    """
    arrays = golden("edm_fake_score_loss")
    (answer,) = leaves(arrays["pred"])
    seen = {}

    def net(x, sigma, labels, augment_labels):
        seen["x"], seen["sigma"] = x, sigma
        return answer

    net.sigma_data = 0.5
    batch = batch_of((3, 4, 4), {"sigma": arrays["z_normal"], "epsilon": arrays["eps"]})
    term = sid.critic_terms({"fake_score": net}, batch, arrays["x_gen"], sid.Numbers())["denoising"]
    near(seen["x"], arrays["x_t"], 1e-6)
    near(seen["sigma"], arrays["sigma"].flatten(), 1e-6)
    near(term, arrays["total_sum_over_B"], 1e-6)
    near(torch.autograd.grad(term, answer)[0], arrays["grad_pred"], 1e-6)


# --- SiDA ---


class Encoded:
    """A fake_score whose encoder gives told logits: D = v / (sigma^2 + v) x + b."""

    sigma_data = 0.5

    def __init__(self, fake: torch.Tensor, real: torch.Tensor):
        self.fake, self.real, self.seen = fake, real, []
        self.denoise = linear(0.36, -0.05)

    def both(self, x, sigma, labels, augment_labels):
        self.seen.append((x, sigma))
        return self.denoise(x, sigma), self.fake

    def encode(self, x, sigma, labels, augment_labels):
        self.seen.append((x, sigma))
        return self.real


def test_sida_fake_score_and_discriminator():
    """sida_discriminator: both terms, one noise for both images, the gradients at the logits;
    worst error 3.1e-7 (tolerance 1e-6).
    """
    arrays = golden("sida_discriminator")
    fake, real = leaves(arrays["logit_fake"], arrays["logit_real"])
    net = Encoded(fake, real)
    told = {"sigma": arrays["z_normal"], "epsilon": arrays["eps"]}
    batch = batch_of((3, 4, 4), told, reals=arrays["x_real"])
    terms = sida.critic_terms({"fake_score": net}, batch, arrays["x_gen"], sida.Numbers())
    for (x, sigma), name in zip(net.seen, ("x_t_gen", "x_t_real"), strict=True):
        near(x, arrays[name], 1e-6)
        near(sigma, arrays["sigma"].flatten(), 1e-6)
    near(terms["denoising"], arrays["L_fake_score_sum_over_B"], 1e-6)
    near(terms["adversarial"], arrays["L_D_lsd1"], 1e-6)
    for gradient, name in zip(torch.autograd.grad(terms["adversarial"], (fake, real)), ("fake", "real"), strict=True):
        near(gradient, arrays[f"grad_logit_{name}"], 1e-6)


def test_sida_generator():
    """sida_generator: both halves, the clamp of the logits, the gradient at them;
    worst error 9.1e-8 (tolerance 1e-6).
    """
    arrays = golden("sida_generator")
    (logits,) = leaves(arrays["logit_map"])
    assert logits.abs().max() > 10
    numbers = sida.Numbers(
        alpha=float(arrays["alpha"]), scale=float(arrays["lsg"]), weight_generator=float(arrays["lsg_gan"])
    )
    nothing = torch.zeros(4, 1, 1, 1).double()
    given = (arrays["y"], arrays["y_real"], arrays["y_fake"], logits, nothing, numbers)
    total, identity, own = sida.objective(*given, False)
    near(total, arrays["total"], 1e-6)
    near(identity, arrays["L_sid"] / 2, 1e-6)
    near(own, arrays["L_gan"] / 2, 1e-6)
    slope = torch.autograd.grad(total, logits)[0]
    near(slope, arrays["grad_logit"], 1e-6)
    assert not slope[logits.abs() > 10].any()
    _, weight = score.identity_loss(arrays["y"], arrays["y_real"], arrays["y_fake"], 1.0)
    near(weight, arrays["weight_factor"], 1e-6)
    near(adversarial.generator_loss(logits.clamp(-10, 10)), arrays["bce_mean"], 1e-6)
    # While the adversarial loss rests, SiD's counts whole.
    total, identity, own = sida.objective(*given, True)
    near(total, arrays["L_sid"], 1e-6)
    assert torch.equal(total, identity) and not own


# --- DMD2 ---


def test_dmd2_grid():
    """dmd2_losses: the 1000 levels; worst error 1.6e-6 (tolerance 3e-6)."""
    arrays = golden("dmd2_losses")
    wanted = arrays["karras_sigmas_ascending_1000"]
    sigma = score.grid_sigma(batch_of((1, 1, 1), {"sigma": torch.arange(1000)}), "sigma", 1000)
    near(sigma, wanted, 3e-6, entries=True)


def test_dmd2_matching():
    """dmd2_losses: noise level, noisy images, normaliser, value and gradient; worst error 4.0e-7 (tolerance 1e-6)."""
    arrays = golden("dmd2_losses")
    numbers, seen = dmd2.Numbers(weight_generator=0), []
    low, high = round(numbers.low * numbers.bins), round(numbers.high * numbers.bins)
    assert (low, high) == (arrays["min_step"], arrays["max_step"])

    def answer(name):
        return lambda x, sigma, labels: seen.append((x, sigma)) or arrays[name]

    told = {"matching/sigma": arrays["timesteps"] - low, "matching/epsilon": arrays["eps"]}
    batch = batch_of((3, 4, 4), told)
    nets = {"teacher": answer("D_teacher"), "fake_score": answer("D_fake")}
    terms = dmd2.generator_terms(nets, batch, lambda: arrays["x_gen"], numbers)
    assert list(terms) == ["matching"] and len(seen) == 2
    for x, sigma in seen:
        near(x, arrays["x_t"], 1e-6)
        near(sigma, arrays["sigma"].flatten(), 1e-6)
    near(terms["matching"].value, arrays["loss_dm"], 1e-6)
    near(terms["matching"].gradient, arrays["grad_x"], 1e-6)
    near(terms["matching"].gradient * arrays["x_gen"].numel(), arrays["grad_before_mse"], 1e-6)
    difference = arrays["D_fake"] - arrays["D_teacher"]
    near(terms["matching"].gradient * arrays["x_gen"].numel() * arrays["normaliser"], difference, 1e-6)


def test_dmd2_fake_score_loss():
    """dmd2_losses: the mean denoising loss on the grid; worst error 5.5e-7 (tolerance 2e-6)."""
    arrays = golden("dmd2_losses")
    net = lambda x, sigma, labels, augment_labels: linear(0.36, -0.05)(x, sigma)  # noqa: E731
    net.sigma_data = 0.5
    batch = batch_of((3, 4, 4), {"sigma": arrays["fake_timesteps"], "epsilon": arrays["fake_eps"]})
    terms = dmd2.critic_terms({"fake_score": net}, batch, arrays["x_gen"], dmd2.Numbers(weight_critic=0))
    assert list(terms) == ["denoising"]
    near(terms["denoising"], arrays["loss_fake_mean"], 2e-6)


def test_dmd2_adversarial_losses():
    """dmd2_losses: both losses of the head and their gradients at the logits; worst error 8.7e-8 (tolerance 1e-6)."""
    arrays = golden("dmd2_losses")
    fake, real = leaves(arrays["logit_fake"], arrays["logit_real"])
    critic, generator = adversarial.critic_loss(fake, real), adversarial.generator_loss(fake)
    near(critic, arrays["guidance_cls_loss"], 1e-6)
    near(generator, arrays["gen_cls_loss"], 1e-6)
    slopes = (*torch.autograd.grad(critic, (fake, real)), *torch.autograd.grad(generator, fake))
    names = ("grad_logit_fake", "grad_logit_real", "grad_gen_logit_fake")
    for gradient, name in zip(slopes, names, strict=True):
        near(gradient, arrays[name], 1e-6)


# --- whole iterations ---


def replayed(work: loop.Loop, steps: int) -> dict[str, np.ndarray]:
    """Weights of the networks and of the average after each of the loop's iterations."""
    nets, found = work.job.nets, []
    for step in range(steps):
        here = lambda average: found.append((nets["fake_score"].values(), nets["generator"].values(), average.values()))  # noqa: E731
        work.job.snapshots[4 * (step + 1)] = here
    work.run()
    return dict(zip(("fake", "G", "ema"), map(np.array, zip(*found, strict=True)), strict=True))


@pytest.mark.parametrize("micro_batch", [0, 1])
@pytest.mark.parametrize("sequential", [False, True])
def test_trajectory_of_sid(tape, tmp_path, micro_batch, sequential):
    """trajectory_sid: four iterations of fake_score, generator, average, with Adam;
    worst error 1.6e-7 (tolerance 1e-6),
    of the generator's signed loss 1.2e-6 (1e-5)."""
    arrays = golden("trajectory_sid")
    teacher, numbers = Affine(0.8, 0.1), sid.Numbers(sequential=sequential)
    renamed = {"fake_score/sigma": "zn_fake", "fake_score/epsilon": "eps_fake",
               "generator/sigma": "u_or_zn_G", "generator/epsilon": "eps_G"}  # fmt: skip
    tape.update({name: arrays[key].flatten(0, 1) for name, key in renamed.items()})
    tape["fake_score/z"], tape["generator/z"] = (
        arrays[key].flatten(0, 1) / numbers.sigma_init for key in ("z_fake", "z_G")
    )
    nets = {"generator": sid.generator(teacher, None, numbers), "fake_score": copy.deepcopy(teacher)}
    job = job_of(nets, teacher, (3, 4, 4), numbers, tmp_path, steps=4, ticks=4, micro_batch=micro_batch, method=sid)
    work = loop.Loop(job)
    for key, values in replayed(work, 4).items():
        near(values, arrays[key], 1e-6)
    near([row["fake_score.denoising"] for row in work.rows], arrays["loss_fake"], 1e-6)
    near([row["generator.identity"] for row in work.rows], arrays["loss_G"], 1e-5)


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_trajectory_of_dmd2(tape, tmp_path, micro_batch):
    """trajectory_dmd2_ttur: seven iterations, two of them with the generator, whose images are used again, with
    AdamW and clipping; the first gradient of the generator is zero and only the decay moves it; worst error 6.9e-7
    (tolerance 1e-6), of the matching loss 9.7e-6 (2e-5).
    """
    arrays = golden("trajectory_dmd2_ttur")
    teacher, numbers = Affine(0.8, 0.1), dmd2.Numbers(weight_generator=0, weight_critic=0)
    z = arrays["z"].flatten(0, 1) / numbers.sigma_init
    renamed = {"generator/matching/epsilon": "eps_dm", "fake_score/sigma": "t_fake", "fake_score/epsilon": "eps_fake"}
    tape.update({name: arrays[key].flatten(0, 1) for name, key in renamed.items()})
    tape.update({"generator/z": z, "fake_score/z": z, "generator/matching/sigma": arrays["t_dm"].flatten(0, 1) - 20})
    nets = {"generator": dmd2.generator(teacher, None, numbers), "fake_score": copy.deepcopy(teacher)}
    job = job_of(nets, teacher, (3, 4, 4), numbers, tmp_path, steps=7, ticks=7, micro_batch=micro_batch, method=dmd2)
    settings = {"kind": "adamw", "lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01,
                "warmup_images": 0, "decay_images": 0, "clip": 10.0, "clip_value": 0.0}  # fmt: skip
    job.optimisers = dict.fromkeys(nets, Optimiser.of(settings))
    work = loop.Loop(job)
    found = replayed(work, 7)
    near(found["fake"], arrays["fake"], 1e-6)
    near(found["G"], arrays["G"], 1e-6)
    near([row["fake_score.denoising"] for row in work.rows], arrays["loss_fake"], 1e-6)
    stepped = ["generator.matching" in row for row in work.rows]
    assert stepped == arrays["did_generator_update"].tolist()
    values = [row["generator.matching"] for row in work.rows if "generator.matching" in row]
    near(values, arrays["loss_dm"][arrays["did_generator_update"]], 2e-5)
    assert values[0] == 0
    np.testing.assert_allclose(found["G"][0], np.array([0.8, 0.1]) * (1 - 1e-2 * 0.01), rtol=1e-12)


# --- consistency models ---


def grid_of_cm(**changes) -> consistency.Numbers:
    return consistency.Numbers(**{"n": 18, "distance": "l2", **changes})


def toys_of_cm() -> dict:
    """Student, target and teacher of the golden files; their label is 250 ln sigma."""
    student = Scaled(lambda x, sigma: 0.7 * x + 0.02 * torch.sin(250 * sigma.log() / 300), 0.002)
    target = Scaled(lambda x, sigma: 0.65 * x - 0.01 * torch.cos(250 * sigma.log() / 200), 0.002)
    return {"generator": student, "target": target, "teacher": Scaled(lambda x, sigma: 0.6 * x + 0.015)}


def test_cm_scalings():
    """cm_scalings: c_skip, c_out, c_in of the student and of its teacher, and the teacher's label;
    worst error 8.6e-8 (tolerance 1e-6).

    The label 250 ln sigma of OpenAI's own networks is in the file too; we have none of those networks.
    """
    arrays = golden("cm_scalings")
    for name, boundary in (("cm", 0.002), ("edm", 0.0)):
        c_skip, c_out, c_in, label = noise.precondition(arrays["sigma"], 0.5, boundary)
        near(c_skip, arrays[f"{name}_c_skip"], 1e-6)
        near(c_out, arrays[f"{name}_c_out"], 1e-6)
        near(c_in, arrays[f"{name}_c_in"], 1e-6)
    near(label, arrays["edm_noise_label"], 1e-6)
    near(250 * arrays["sigma"].log(), arrays["openai_noise_label"], 1e-6)
    at = torch.tensor([0.002], dtype=torch.float64)
    c_skip, c_out, _, _ = noise.precondition(at, 0.5, 0.002)
    assert c_skip == 1 and c_out == 0


def test_cm_levels_and_teacher_steps():
    """cm_losses_N18: t, t', x_t, Euler's and Heun's point, the outputs of student and target;
    worst error 1.3e-7 (tolerance 1e-6).
    """
    arrays, nets = golden("cm_losses_N18"), toys_of_cm()
    batch = batch_of((3, 4, 4), {"sigma": arrays["indices"]})
    t, lower = consistency.LEVELS["fixed"](batch, grid_of_cm(n=int(arrays["N"])))
    near(t, arrays["t"], 1e-12, entries=True)
    near(lower, arrays["t_next"], 1e-12, entries=True)
    noisy = arrays["x0"] + consistency.column(t) * arrays["noise"]
    near(noisy, arrays["x_t"], 1e-6)
    near(consistency.heun_step(nets["teacher"], noisy, t, lower, None, second=False), arrays["x_euler"], 1e-6)
    heun = consistency.heun_step(nets["teacher"], noisy, t, lower, None)
    near(heun, arrays["x_heun"], 1e-6)
    near(nets["generator"](noisy, t), arrays["f_student"], 1e-6)
    given = (nets, arrays["x0"], noisy, arrays["noise"], t, lower, None)
    near(consistency.targets(*given, grid_of_cm()), arrays["f_target"], 1e-6)


@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize(("source", "name"), [("teacher", "cd_heun"), ("data", "ct")])
def test_cm_losses(source, name, kind):
    """cm_losses_N18: the method's own term for CD and CT, the distance of each image, the gradient with respect to
    the student's scale; worst error 5.1e-6 (tolerance 1e-5), of the gradient 1.6e-5 (3e-5): differences of nearly equal
    float32 numbers.
    """
    arrays, nets = golden("cm_losses_N18"), toys_of_cm()
    told = {"sigma": arrays["indices"], "epsilon": arrays["noise"]}
    batch = batch_of((3, 4, 4), told, reals=arrays["x0"])
    numbers = grid_of_cm(source=source, distance=kind)
    term = consistency.generator_terms(nets, batch, None, numbers)["consistency"]
    wanted = arrays[f"{name}_N18_{kind}_per_sample"]
    near(term, wanted.mean(), 1e-5)
    near(torch.autograd.grad(term, nets["generator"].scale)[0], arrays[f"{name}_N18_{kind}_grad_scale"], 3e-5)
    if source == "teacher":
        near(consistency.distance(arrays["f_student"], arrays["f_target"], numbers), wanted, 1e-5)


def test_cm_two_steps():
    """cm_two_step_sampling: both steps, and the levels chosen from the grids; worst error 1.3e-7 (tolerance 1e-6).

    The authors clip the last image too, which we leave to the decoding.
    """
    arrays = golden("cm_two_step_sampling")
    sigmas = arrays["sigmas"].tolist()
    codec = {"mean": 0.5, "std": 0.25}  # pixels are [-1, 1]
    settings = {"steps": {"1": sigmas[:1], "2": sigmas}, "boundary": 0.002, "renoise": "boundary", "clip": True}
    described = {"shape": [3, 4, 4], "codec": codec, "sampler": settings}
    generator = sampling.Generator(toys_of_cm()["generator"], described)
    draw = batch_of((3, 4, 4), {"z": arrays["x_T"] / 80, "renoise/1": arrays["noise"]}).draw
    near(sampling.few_steps(generator, draw, None, sampling.sigmas_of(generator, 1)), arrays["x_after_step1"], 1e-6)
    final = sampling.few_steps(generator, draw, None, sampling.sigmas_of(generator, 2))
    near(final.clamp(-1, 1), arrays["x_final"], 1e-6)
    near(noise.karras_sigmas(40)[[0, 22, 39]], arrays["cd_sigmas"], 1e-12)
    near(noise.karras_sigmas(201)[[0, 106, 200]], arrays["ct_sigmas"], 1e-12)


@pytest.mark.parametrize(("name", "last", "mu"), [("cifar", 150, 0.9), ("imagenet", 200, 0.95)])
def test_ct_schedules(name, last, mu):
    """ct_schedules: the entries of the grid and the weight of the target's past, whatever the batch; N is exact, worst
    error of mu 2.9e-8 (tolerance 1e-7).
    """
    arrays = golden("ct_schedules")
    numbers = consistency.Numbers(levels="growing", target="growing", first=2, last=last, mu=mu)
    for batch in (1, 512):
        at = [Progress(batch * step, step, batch * 800_000) for step in arrays[f"{name}_steps"].tolist()]
        assert [consistency.growing(progress, numbers) for progress in at] == arrays[f"{name}_N"].tolist()
        near([consistency.growing_mu(progress, numbers) for progress in at], arrays[f"{name}_mu"], 1e-7)
        # The method itself draws from that grid: its first interval starts at 80, its last one ends at 0.002.
        for progress, n in zip(at, arrays[f"{name}_N"].tolist(), strict=True):
            told = batch_of(
                (1, 1, 1), {"sigma": torch.tensor([0, n - 2])}, n_images=progress.n_images, total=progress.total
            )
            sigma, lower = consistency.LEVELS["growing"](told, numbers)
            near(sigma[0], torch.tensor(80.0), 1e-12)
            near(lower[1], torch.tensor(0.002, dtype=torch.float64), 1e-12)


# --- iCT ---

ICT = {"levels": "doubling", "choice": "lognormal", "first": 10, "last": 1280}


@pytest.mark.parametrize("n", [11, 21, 41, 1281])
def test_ict_grids_probabilities_and_weights(n):
    """ict_derived, from the paper's formulas: levels, probabilities of intervals, weights; worst error 2.9e-13
    (tolerance 1e-12)."""
    arrays, numbers = golden("ict_derived"), consistency.Numbers(**ICT)
    grid = noise.karras_sigmas(n)
    near(grid.flip(0), arrays[f"sigmas_N{n}"], 1e-12)
    mass = consistency.interval_probabilities(grid, numbers.P_mean, numbers.P_std)
    near((mass / mass.sum()).flip(0), arrays[f"prob_N{n}"], 1e-12)
    near(consistency.WEIGHTS["inverse"](grid[:-1], grid[1:], 0.5).flip(0), arrays[f"weight_N{n}"], 1e-12)


def test_ict_interval_from_a_uniform_number():
    """An interval is chosen for the share of [0, 1) that is its probability."""
    arrays, numbers = golden("ict_derived"), consistency.Numbers(**ICT)
    edges = arrays["prob_N11"].flip(0).cumsum(0)  # descending levels
    inside = torch.stack([torch.cat([torch.zeros(1), edges[:-1]]) + 1e-9, edges - 1e-9]).flatten()
    sigma, lower = consistency.LEVELS["doubling"](batch_of((1, 1, 1), {"sigma": inside}), numbers)
    wanted = arrays["sigmas_N11"].flip(0)
    near(sigma, wanted[:-1].repeat(2), 1e-12)
    near(lower, wanted[1:].repeat(2), 1e-12)
    # The largest number that a draw can give is below 1.
    last = batch_of((1, 1, 1), {"sigma": torch.tensor([1 - torch.finfo(torch.float32).eps / 2])}, dtype=torch.float32)
    assert consistency.LEVELS["doubling"](last, numbers)[1] == torch.tensor(0.002)


@pytest.mark.parametrize("batch", [1, 1024])
def test_ict_doublings(batch):
    """ict_derived: the entries of the grid at every stage, exactly."""
    arrays, numbers = golden("ict_derived"), consistency.Numbers(**ICT)
    for name, total in (("400k", 400_000), ("800k", 800_000)):
        at = [Progress(batch * step, step, batch * total) for step in arrays[f"k_{name}"].tolist()]
        assert [consistency.doubling(progress, numbers) for progress in at] == arrays[f"N_{name}"].tolist()


@pytest.mark.parametrize("last", [10, 20, 30, 150, 1000])
def test_ict_grid_reaches_its_end(last):
    """Where s1 is s0 or at least 2 s0: N starts at s0 + 1, never falls and ends at s1 + 1."""
    numbers = consistency.Numbers(**{**ICT, "last": last})
    sizes = [consistency.doubling(Progress(step, step, 1000), numbers) for step in range(1000)]
    assert sizes == sorted(sizes) and (sizes[0], sizes[-1]) == (11, last + 1)


def test_ict_distance():
    """ict_derived: the pseudo-Huber distance and its constant from the number of pixels;
    worst error 1.8e-16 (tolerance 1e-6).
    """
    arrays, numbers = golden("ict_derived"), consistency.Numbers(distance="huber")
    a, b = arrays["ph_a"], arrays["ph_b"]
    near((a - b).square().sum(dim=(1, 2, 3)), arrays["ph_sq_l2"], 1e-6)
    near(consistency.distance(a, b, numbers), arrays["ph_value"], 1e-6)
    fixed = consistency.Numbers(distance="huber", c=float(arrays["ph_c"]))
    near(consistency.distance(a, b, fixed), arrays["ph_value"], 1e-6)
    for side, name in ((32, "c_cifar10"), (64, "c_imagenet64")):
        one = torch.zeros(1, 3, side, side, dtype=torch.float64)
        far = consistency.distance(one, one + 1, numbers)  # sqrt(d + c^2) - c
        c = float(arrays[name])
        near(far, torch.tensor([(one.numel() + c**2) ** 0.5 - c], dtype=torch.float64), 1e-12)


# --- ECT ---


@pytest.mark.parametrize(("q", "stages"), [(2, 9), (4, 5), (256, 1)])
def test_ect_lower_level(q, stages):
    """ect_t_to_r: r(t) at every stage, by the formula and by the method's progress;
    worst error 6.3e-8 (tolerance 1e-6) of t.
    """
    arrays = golden("ect_t_to_r")
    t = arrays["t"]
    for stage in range(stages):
        wanted = arrays[f"r_q{q}_stage{stage}"]
        near(1 + (consistency.easy_lower(t, q, stage, 8.0, 1.0) - wanted) / t, torch.ones_like(t), 1e-6)
        numbers = consistency.Numbers(levels="continuous", q=q, stage_images=100, P_mean=0.0, P_std=1.0)
        for n_images in (100 * stage, 100 * stage + 99):
            found = consistency.LEVELS["continuous"](
                batch_of((1, 1, 1), {"sigma": t.log()}, n_images=n_images), numbers
            )
            near(found[0], t, 1e-6)
            near(1 + (found[1] - wanted) / t, torch.ones_like(t), 1e-6)


def rounding_of(arrays: dict, numbers, n_images: int) -> float:
    """The deviation of test_ect_losses' gradient, in float64, when denoised images are off at random by a last bit of float32
    (half a bit for each rounding, of which an image sees several)."""
    normal, found = torch.Generator().manual_seed(0), []
    for _ in range(40):
        slope = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        net = Scaled(lambda x, sigma, slope=slope: slope * x + 0.02 * torch.sin(sigma.log()))

        net.register_forward_hook(
            lambda net, inputs, image: (
                image * (1 + 2**-23 * torch.randn(image.shape, generator=normal, dtype=torch.float64))
            )
        )
        told = {"sigma": arrays["z_normal"], "epsilon": arrays["eps"]}
        batch = batch_of((3, 4, 4), told, reals=arrays["x0"], n_images=n_images)
        loss = consistency.generator_terms({"generator": net, "teacher": None}, batch, None, numbers)["consistency"]
        found.append(float(torch.autograd.grad(loss, slope)[0]))
    return float(np.std(found))


@pytest.mark.parametrize("targets", ["all", "needed"])
@pytest.mark.parametrize(("q", "stage", "c"), [(2, 0, 0.0), (2, 3, 0.0), (256, 0, 0.0), (4, 1, 0.06)])
def test_ect_losses(q, stage, c, targets):
    """ect_losses: levels, the method's own term for each image and for all, its gradient with respect to F's slope, both
    weightings; worst error 1.3e-6 (tolerance 3e-6). In float32, because t - r is the rounded difference of two rounded
    levels. The gradient is a sum of small differences, in which the last bits of the golden array and of this machine show
    (2e-6 to 2e-3, by machine and q): it may differ by what rounding the denoised images moves it (`rounding_of`).
    """
    arrays, key = golden("ect_losses"), f"q{q}_s{stage}_c{c}"
    numbers = consistency.Numbers(
        levels="continuous", q=q, stage_images=10, source="data", target="itself", c=c, weighting="inverse", targets=targets,
        boundary="sampling", sigma_min=0.003,
    )  # fmt: skip
    slope = torch.tensor(0.7, requires_grad=True)
    nets = {"generator": Scaled(lambda x, sigma: slope * x + 0.02 * torch.sin(sigma.log())), "teacher": None}
    told = {"sigma": arrays["z_normal"], "epsilon": arrays["eps"]}
    batch = batch_of((3, 4, 4), told, reals=arrays["x0"].float(), dtype=torch.float32, n_images=10 * stage)
    t, r = consistency.LEVELS["continuous"](batch, numbers)
    near(t, arrays[f"{key}_t"], 1e-6)
    near(1 + (r - arrays[f"{key}_r"]) / t, torch.ones_like(t), 1e-6)

    def loss(part, numbers=numbers):
        return consistency.generator_terms(nets, part, None, numbers)["consistency"]

    near(torch.stack([loss(batch[i : i + 1]) for i in range(5)]), arrays[f"{key}_loss"], 3e-6)
    near(loss(batch), arrays[f"{key}_loss"].mean(), 3e-6)
    gradient, wanted = torch.autograd.grad(loss(batch), slope)[0], float(arrays[f"{key}_grad_a"])
    rounding = rounding_of(arrays, numbers, 10 * stage)
    assert rounding < 1e-3 * abs(wanted)
    assert abs(float(gradient) - wanted) < 6 * rounding
    if f"{key}_loss_imgnet_weight" in arrays:
        other = dataclasses.replace(numbers, weighting="snr")
        found = torch.stack([loss(batch[i : i + 1], other) for i in range(5)])
        near(found, arrays[f"{key}_loss_imgnet_weight"], 1e-6)


def test_ect_scalings():
    """ect_precond: plain in training, with the identity at 0.003 where the generator is sampled; worst error 7.2e-8
    (tolerance 1e-6)."""
    arrays = golden("ect_precond")
    numbers = consistency.Numbers(boundary="sampling", sigma_min=0.003)
    student = consistency.generator(Scaled(None), None, numbers)
    for name, boundary in (("train", student.boundary), ("eval", consistency.sampler(numbers)["boundary"])):
        c_skip, c_out, _, _ = noise.precondition(arrays["sigma"], 0.5, boundary)
        near(c_skip, arrays[f"c_skip_{name}"], 1e-6)
        near(c_out, arrays[f"c_out_{name}"], 1e-6)
