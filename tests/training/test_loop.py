# SPDX-License-Identifier: Apache-2.0
"""The loop on toys whose every number is known by hand: guards, clipping, snapshots, logs, phases, stops."""

from __future__ import annotations

import copy
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from eldistill.contract import AtImages, Method, Phase, SupplementModule, Weight
from eldistill.diffusion.draws import Draw
from eldistill.errors import NonFinite, Stopped
from eldistill.training import loop, state
from eldistill.training.job import Job, Supplement, Training
from eldistill.training.optimisers import Ema, Optimiser

BATCH, SHAPE = 4, (1, 2, 2)
OPTIMISER = {"kind": "adam", "lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0,
             "warmup_images": 0, "decay_images": 0, "clip": 0.0, "clip_value": 0.0}  # fmt: skip


class Line(nn.Module):
    """x = a z + b."""

    def __init__(self, a: float, b: float):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (a, b))

    def forward(self, z):
        return self.a * z + self.b


class Unlabelled:
    """Real images, of which a toy asks nothing."""

    def __len__(self):
        return 100

    def labels(self, indices):
        return indices


def toy(**changes) -> SimpleNamespace:
    """A method: `critic` fits its b to the images, the generator pulls its images to zero; calls are noted in `calls`."""
    calls = []

    def phases(numbers, progress):
        return [Phase("critic"), Phase("generator")]

    def generate(nets, batch, numbers):
        calls.append(("generate", batch.draw.scope, batch.progress.iteration, nets["generator"].training))
        return nets["generator"](batch.draw.normal("z", *SHAPE))

    def critic_terms(nets, batch, images, numbers):
        calls.append(
            ("critic", None if images is None else images.clone(), batch.labels.clone(), nets["critic"].training)
        )
        target = batch.draw.normal("target", *SHAPE) if images is None else images
        return {"fit": (nets["critic"](torch.zeros_like(target)) - target).square().mean()}

    def generator_terms(nets, batch, images, numbers):
        x = images()
        calls.append(("generator", x.clone(), batch.labels.clone(), nets["critic"].training))
        return {"pull": AtImages(x.square().mean() / 2, x / x.numel())}

    made = {"phases": phases, "generate": generate, "critic_terms": critic_terms, "generator_terms": generator_terms}
    return SimpleNamespace(**{**made, "calls": calls, **changes})  # more than a Method has: what tests look at


def job_of(folder, method=None, steps=5, optimiser=None, **others) -> Job:
    nets = {"generator": Line(0.5, 1.0), "critic": Line(0.3, -1.0)}
    values = {
        "method": Method.of(method or toy()), "numbers": None, "nets": nets, "published": "generator", "reals": Unlabelled(),
        "training": Training(steps * BATCH, BATCH, Ema("constant", beta=0.5)),
        "shape": SHAPE, "seed": 0, "folder": folder, "dtype": torch.float64, "log": lambda text: None,
        "optimisers": dict.fromkeys(nets, Optimiser.of({**OPTIMISER, **(optimiser or {})})),
    }  # fmt: skip
    return Job(**{**values, **others})


def weights(net: nn.Module) -> list[float]:
    return [float(parameter.detach()) for parameter in net.parameters()]


def reference(folder, steps=5) -> list[float]:
    """The average of an undisturbed run."""
    folder.mkdir(exist_ok=True)
    return weights(loop.Loop(job_of(folder, steps=steps)).run())


# --- guards ---


def poison(gradient: torch.Tensor) -> torch.Tensor:
    return torch.full_like(gradient, math.nan)


def with_poison(where: str, value: float = math.nan) -> SimpleNamespace:
    """The toy, sick at iteration 3 in one place."""
    good = toy()
    at = lambda batch: batch.progress.iteration == 3  # noqa: E731

    def generate(nets, batch, numbers):
        images = good.generate(nets, batch, numbers)
        if at(batch) and where == f"{batch.draw.scope} images":
            images = images.clone()
            images[2, 0, 1, 1] = value
        if at(batch) and where == "generator weights" and images.requires_grad:
            images = images + 0 * images
            images.register_hook(poison)
        return images

    def critic_terms(nets, batch, images, numbers):
        term = good.critic_terms(nets, batch, images, numbers)["fit"]
        if at(batch) and where == "critic weights":
            term = nets["critic"].b.square() + 0 * (nets["critic"].b * 0).sqrt()  # finite, but its slope is not
        return {"fit": term * value if at(batch) and where == "critic term" else term}

    def generator_terms(nets, batch, images, numbers):
        term = good.generator_terms(nets, batch, images, numbers)["pull"]
        if at(batch) and where == "generator term":
            return {"pull": AtImages(term.value * value, term.gradient)}
        if at(batch) and where == "generator gradient":
            return {"pull": AtImages(term.value, term.gradient * value)}
        return {"pull": term}

    return toy(generate=generate, critic_terms=critic_terms, generator_terms=generator_terms)


@pytest.mark.parametrize(("where", "value", "named"), [
    ("critic images", math.nan, "images is not finite (1 of 16 values, shape (4, 1, 2, 2))"),
    ("generator images", math.inf, "images is not finite (1 of 16 values, shape (4, 1, 2, 2))"),
    ("critic term", math.nan, "critic.fit is not finite (1 of 1 values, shape ())"),
    ("generator term", -math.inf, "generator.pull is not finite (1 of 1 values, shape ())"),
    ("generator gradient", math.nan, "generator.pull: gradient at the images is not finite (16 of 16 values"),
    ("generator weights", math.nan, "gradient of generator.a is not finite (1 of 1 values"),
    ("critic weights", math.nan, "gradient of critic.b is not finite (1 of 1 values"),
])  # fmt: skip
@pytest.mark.parametrize("micro_batch", [0, 4])
def test_not_finite_stops_with_the_place_and_a_good_state(tmp_path, where, value, named, micro_batch):
    """A NaN anywhere ends the run, naming step, term and tensor; the saved state is the last good one and continues."""
    sick = job_of(tmp_path, with_poison(where, value), save_seconds=-1.0, micro_batch=micro_batch)
    with pytest.raises(NonFinite) as caught:
        loop.Loop(sick).run()
    assert str(caught.value).startswith("step 3 (12 images): ") and named in str(caught.value)
    tensors, numbers = state.load_state(tmp_path)
    assert numbers["n_images"] == 12 and numbers["iteration"] == 3
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    healed = loop.Loop(job_of(tmp_path))
    assert weights(healed.run()) == reference(tmp_path / "whole")


def test_a_poisoned_supplement_is_named(tmp_path):
    """A NaN of a supplement carries the supplement's name."""
    sick = SimpleNamespace(
        generator_terms=lambda tools, images, batch, numbers: {"far": AtImages(images.sum(), poison(images))},
        weight=lambda base, own, batch, numbers, progress, memory: Weight(1.0),
    )
    job = job_of(tmp_path, supplements=[Supplement("extra", SupplementModule.of(sick), None)])
    with pytest.raises(NonFinite, match=r"step 0 \(0 images\): extra.far: gradient at the images is not finite"):
        loop.Loop(job).run()


def test_a_norm_that_overflows_is_no_number_of_a_log(tmp_path):
    """Finite gradients whose norm overflows stop the run too, or leave finite sums: an infinity cannot be saved."""
    huge = toy(
        critic_terms=lambda nets, batch, images, numbers: {"fit": (nets["critic"].a + nets["critic"].b) * 1.5e308}
    )
    work = loop.Loop(job_of(tmp_path, huge, steps=1))
    try:
        work.run()
    except NonFinite:
        return
    assert all(math.isfinite(value) for row in work.rows for value in row.values())


def test_a_failed_step_is_saved_nowhere(tmp_path):
    """It is found at the end of its iteration: before its images are counted, and anything is written or shown."""
    shown = []
    job = job_of(tmp_path, with_poison("critic weights"), save_seconds=-1.0)
    job.snapshots = {each * job.training.batch: lambda net: shown.append(weights(net)) for each in range(1, 6)}
    work = loop.Loop(job)
    with pytest.raises(NonFinite):
        work.run()
    assert work.iteration == len(shown) == 3 and work.n_images == 3 * job.training.batch
    tensors, numbers = state.load_state(job.folder)
    assert numbers["iteration"] == 3 and all(bool(each.isfinite().all()) for each in tensors.values())
    assert all(math.isfinite(value) for each in shown for value in each)


def test_clip_shortens_and_never_lengthens(tmp_path):
    """Above `clip` the gradient keeps its direction and gets that norm; below it stays; the log has the norm before."""

    def gradient(clip):
        path = tmp_path / str(clip)
        path.mkdir(exist_ok=True)
        job = job_of(path, steps=1, optimiser={"clip": clip})
        work = loop.Loop(job)
        work.run()
        grads = [p.grad for p in job.nets["critic"].parameters() if p.grad is not None]
        return torch.stack(grads), work.rows[0]["critic.gradient_norm"]

    free, logged = gradient(0.0)
    norm = float(free.norm())
    assert logged == pytest.approx(norm, rel=1e-12) and norm > 0
    clipped, clipped_logged = gradient(norm / 5)
    torch.testing.assert_close(clipped, free / 5, rtol=1e-5, atol=0)
    assert clipped_logged == logged
    assert torch.equal(gradient(norm * 5)[0], free)


# --- snapshots and logs ---


def test_snapshots_are_the_averages_of_shorter_runs(tmp_path):
    """A snapshot is written once, at its count, and is the average of a run that ends there."""
    seen = []
    keep = lambda count: lambda net: seen.append((count, weights(net)))  # noqa: E731
    loop.Loop(job_of(tmp_path, steps=6, snapshots={count: keep(count) for count in (4, 12, 24)})).run()
    assert [count for count, _ in seen] == [4, 12, 24]
    for count, found in seen:
        assert found == reference(tmp_path / f"until-{count}", count // BATCH)
    assert seen[0][1] != seen[1][1]


def counting() -> SimpleNamespace:
    """The toy whose terms are the number of the iteration, and ten times it."""

    def critic_terms(nets, batch, images, numbers):
        return {"fit": 0 * nets["critic"](images).sum() + batch.progress.iteration}

    def generator_terms(nets, batch, images, numbers):
        x = images()
        return {"pull": AtImages(x.new_tensor(10.0 * batch.progress.iteration), torch.zeros_like(x))}

    return toy(critic_terms=critic_terms, generator_terms=generator_terms)


@pytest.mark.parametrize("micro_batch", [0, 1, 3])
def test_log_rows_are_means_over_their_steps(tmp_path, micro_batch):
    """Every row has the count of images and the mean of each term since the row before; the last row is the end."""
    work = loop.Loop(job_of(tmp_path, counting(), steps=8, ticks=2, micro_batch=micro_batch))
    work.run()
    assert [(row["n_images"], row["iteration"]) for row in work.rows] == [(16, 4), (32, 8)]
    assert [row["critic.fit"] for row in work.rows] == pytest.approx([1.5, 5.5])
    assert [row["generator.pull"] for row in work.rows] == pytest.approx([15.0, 55.0])
    assert set(work.rows[0]) == {"n_images", "iteration", "critic.fit", "critic.gradient_norm", "generator.pull",
                                 "generator.gradient_norm"}  # fmt: skip


def test_a_short_last_row(tmp_path):
    """Where the ticks do not divide the run, the rest has a row of its own."""
    work = loop.Loop(job_of(tmp_path, counting(), steps=7, ticks=2))
    work.run()
    assert [(row["iteration"], row["critic.fit"]) for row in work.rows] == [(3, 1.0), (6, 4.0), (7, 6.0)]


def test_more_ticks_than_steps(tmp_path):
    """A row a step at most, and a line for each."""
    lines = []
    work = loop.Loop(job_of(tmp_path, counting(), steps=3, ticks=40, log=lines.append))
    work.run()
    assert [row["iteration"] for row in work.rows] == [1, 2, 3] and len(lines) == 3
    assert all("critic.fit" in line and "/12 images" in line for line in lines)


def test_a_rare_phase_is_logged_by_its_own_steps(tmp_path):
    """The mean of a term is over the steps that computed it: a phase of every third step is not diluted."""
    every = toy(phases=lambda numbers, progress: [Phase("critic", every=3), Phase("generator")],
                critic_terms=lambda nets, batch, images, numbers: {"fit": 0 * nets["critic"](images).sum() + 7.0})  # fmt: skip
    work = loop.Loop(job_of(tmp_path, every, steps=6, ticks=2))
    work.run()
    assert [row["critic.fit"] for row in work.rows] == pytest.approx([7.0, 7.0])


# --- phases ---


def test_every(tmp_path):
    """A phase with every=3 runs at the iterations 0, 3, 6; the others each time."""
    method = toy(phases=lambda numbers, progress: [Phase("critic"), Phase("generator", every=3)])
    loop.Loop(job_of(tmp_path, method, steps=7)).run()
    assert [call[2] for call in method.calls if call[0] == "generate" and call[1] == "generator"] == [0, 3, 6]
    assert len([call for call in method.calls if call[0] == "critic"]) == 7


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_reuse_takes_the_images_and_the_labels_of_the_phase_before(tmp_path, micro_batch):
    """images="reuse", labels="same": the critic sees the generator's very images, made once; fresh ones differ."""
    order = lambda **critic: lambda numbers, progress: [Phase("generator"), Phase("critic", **critic)]  # noqa: E731
    reusing, fresh = toy(phases=order(images="reuse", labels="same")), toy(phases=order())
    for method, folder in ((reusing, "reuse"), (fresh, "fresh")):
        (tmp_path / folder).mkdir()
        loop.Loop(job_of(tmp_path / folder, method, steps=3, micro_batch=micro_batch)).run()
    seen = lambda calls, word, at: torch.cat([call[at] for call in calls if call[0] == word])  # noqa: E731
    for at in (1, 2):
        assert torch.equal(seen(reusing.calls, "critic", at), seen(reusing.calls, "generator", at))
        assert not torch.equal(seen(fresh.calls, "critic", at), seen(fresh.calls, "generator", at))
    assert {call[1] for call in reusing.calls if call[0] == "generate"} == {"generator"}


def test_reuse_is_the_same_after_a_resume(tmp_path):
    """A phase that reuses images or labels across a skipped phase goes on as if there had been no stop."""

    def method():
        order = [Phase("generator", every=2), Phase("critic", images="reuse", labels="same")]
        return toy(phases=lambda numbers, progress: order)

    parted = tmp_path / "parted"
    parted.mkdir()
    whole = loop.Loop(job_of(tmp_path, method(), steps=4))
    whole.run()
    first = loop.Loop(job_of(parted, method(), steps=4))
    first.iterate()
    first.save()
    second = loop.Loop(job_of(parted, method(), steps=4))
    second.run()
    assert weights(second.job.nets["critic"]) == weights(whole.job.nets["critic"])


def test_images_none_makes_none(tmp_path):
    """images="none": the critic gets None and the generator is not called for it."""
    method = toy(phases=lambda numbers, progress: [Phase("critic", images="none"), Phase("generator")])
    loop.Loop(job_of(tmp_path, method, steps=2)).run()
    assert all(call[1] is None for call in method.calls if call[0] == "critic")
    assert {call[1] for call in method.calls if call[0] == "generate"} == {"generator"}


def test_modes(tmp_path):
    """The trained network is in train mode, the others in eval mode; generator_mode rules the generator's images."""
    modes = [Phase("critic", generator_mode="eval"), Phase("critic", generator_mode="train"), Phase("generator")]
    method = toy(phases=lambda numbers, progress: modes)
    loop.Loop(job_of(tmp_path, method, steps=1)).run()
    assert [call[3] for call in method.calls if call[0] == "generate"] == [False, True, True]
    assert [call[3] for call in method.calls if call[0] == "critic"] == [True, True]
    assert [call[3] for call in method.calls if call[0] == "generator"] == [False]


def test_only_the_trained_network_collects_gradients(tmp_path):
    """A generator term through the critic reaches the generator and leaves no gradient in the critic."""

    def generator_terms(nets, batch, images, numbers):
        return {"adversary": nets["critic"](nets["generator"](batch.draw.normal("z", *SHAPE))).mean()}

    method = toy(phases=lambda numbers, progress: [Phase("generator")], generator_terms=generator_terms)
    job = job_of(tmp_path, method, steps=1)
    loop.Loop(job).run()
    assert all(parameter.grad is None for parameter in job.nets["critic"].parameters())
    assert float(job.nets["generator"].b.grad) == pytest.approx(0.3)


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_random_numbers_belong_to_the_image_of_the_run(tmp_path, micro_batch):
    """Phases and steps share no number; step i of batch 4 has those of images 4 i to 4 i + 3, however it is parted."""
    seen = []

    def generate(nets, batch, numbers):
        seen.append((batch.draw.scope, batch.draw.normal("z", *SHAPE)))
        return nets["generator"](seen[-1][1])

    loop.Loop(job_of(tmp_path, toy(generate=generate), steps=3, micro_batch=micro_batch)).run()
    every = []
    for scope in ("critic", "generator"):
        # Replayed micro-batches repeat their numbers.
        found = torch.cat([z for name, z in seen if name == scope]).flatten(1).unique(dim=0)
        wanted = Draw(0, scope, 0, 3 * BATCH, dtype=torch.float64).normal("z", *SHAPE).flatten(1)
        assert torch.equal(found, wanted.unique(dim=0))
        every.append(wanted.flatten())
    assert len(torch.cat(every).unique()) == 2 * 3 * BATCH * 4


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_a_second_critic_may_reuse_the_images_of_the_first(tmp_path, micro_batch):
    """Images are kept whichever phase made them."""
    order = [Phase("generator"), Phase("critic"), Phase("critic", images="reuse", labels="same")]
    method = toy(phases=lambda numbers, progress: order)
    loop.Loop(job_of(tmp_path, method, steps=1, micro_batch=micro_batch)).run()
    images = torch.cat([call[1] for call in method.calls if call[0] == "critic"])
    assert torch.equal(images[:BATCH], images[BATCH:])


def test_after_step(tmp_path):
    """after_step runs once an iteration, before the average is taken, with all networks."""
    counts = []

    def after_step(nets, numbers, progress):
        counts.append(progress.iteration)
        with torch.no_grad():
            nets["generator"].b.fill_(progress.iteration)

    average = loop.Loop(job_of(tmp_path, toy(after_step=after_step), steps=3)).run()
    assert counts == [0, 1, 2]
    assert weights(average)[1] == ((1.0 + 0) / 2 / 2 + 1 / 2) / 2 + 2 / 2


# --- direct terms ---


def direct(calls: list) -> dict:
    """A consistency-like base loss: a scalar from the generator's weights, no images."""

    def generator_terms(nets, batch, images, numbers):
        calls.append("terms")
        return {"match": (nets["generator"](batch.draw.normal("noise", *SHAPE)) - 3).square().mean()}

    return {"phases": lambda numbers, progress: [Phase("generator")], "generator_terms": generator_terms}


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_direct_term_makes_no_images(tmp_path, micro_batch):
    """A scalar term is backpropagated as it is, and images nobody asks for are never made."""
    method = toy()
    method = toy(**direct(method.calls), calls=method.calls, generate=None)
    job = job_of(tmp_path, method, steps=1, micro_batch=micro_batch)
    expected = copy.deepcopy(job.nets["generator"])
    loop.Loop(job).run()
    noise = Draw(0, "generator", 0, BATCH, dtype=torch.float64).normal("noise", *SHAPE)
    (expected(noise) - 3).square().mean().backward()
    for found, wanted in zip(job.nets["generator"].parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-12, atol=1e-14)


def additional(gradient=1.0, bounded=False) -> SimpleNamespace:
    """A supplement: the mean of all pixels, at weight 2; it notes the base gradient it is shown."""
    shown = []

    def generator_terms(tools, images, batch, numbers):
        assert len(images) == BATCH and not images.requires_grad
        return {"mean": AtImages(images.mean(), torch.full_like(images, gradient / images.numel()))}

    def weight(base, own, batch, numbers, progress, memory):
        shown.append((base, own))
        memory["calls"] = memory.get("calls", 0.0) + 1
        return Weight(2.0, bounded)

    return SimpleNamespace(generator_terms=generator_terms, weight=weight, shown=shown)


@pytest.mark.parametrize("micro_batch", [0, 1, 3])
def test_supplement_joins_a_direct_term(tmp_path, micro_batch):
    """The images are made, the supplement's gradient joins the scalar's, and its weight compares them at the last layer."""
    method, extra = toy(), additional()
    method = toy(**direct([]), generate=method.generate, calls=method.calls)
    job = job_of(tmp_path, method, steps=1, micro_batch=micro_batch,
                 supplements=[Supplement("extra", SupplementModule.of(extra), None)])  # fmt: skip
    expected = copy.deepcopy(job.nets["generator"])
    loop.Loop(job).run()
    draw = Draw(0, "generator", 0, BATCH, dtype=torch.float64)
    loss = (expected(draw.normal("noise", *SHAPE)) - 3).square().mean() + 2 * expected(draw.normal("z", *SHAPE)).mean()
    loss.backward()
    for found, wanted in zip(job.nets["generator"].parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-12, atol=1e-14)
    last = list(expected.parameters())[-1]
    rms = lambda loss: float(torch.autograd.grad(loss, last)[0].square().mean().sqrt())  # noqa: E731
    base = rms((expected(draw.normal("noise", *SHAPE)) - 3).square().mean())
    assert extra.shown == [pytest.approx((base, rms(expected(draw.normal("z", *SHAPE)).mean())), rel=1e-9)]
    # One forward pass for whole batches; a second, with a graph, for each micro-batch.
    parts = -(-BATCH // (micro_batch or BATCH))
    assert len([call for call in method.calls if call[0] == "generate"]) == (1 if parts == 1 else 2 * parts)


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_supplement_joins_the_gradient_at_the_images(tmp_path, micro_batch):
    """The generator gets base + weight * own; the weight is shown the base gradient of the whole batch; rms are logged."""
    extra = additional()
    method = toy(phases=lambda numbers, progress: [Phase("generator")])
    job = job_of(tmp_path, method, steps=1, micro_batch=micro_batch, ticks=1,
                 supplements=[Supplement("extra", SupplementModule.of(extra), None)])  # fmt: skip
    expected = copy.deepcopy(job.nets["generator"])
    work = loop.Loop(job)
    work.run()
    images = expected(Draw(0, "generator", 0, BATCH, dtype=torch.float64).normal("z", *SHAPE))
    (images.square().mean() / 2 + 2 * images.mean()).backward()
    images = images.detach()
    for found, wanted in zip(job.nets["generator"].parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-12, atol=1e-14)
    base = images / images.numel()
    assert extra.shown == [pytest.approx((float(base.square().mean().sqrt()), 1 / images.numel()), rel=1e-12)]
    (row,) = work.rows
    assert row["generator.base_rms"] == pytest.approx(float(base.square().mean().sqrt()))
    assert row["extra.mean"] == pytest.approx(float(images.mean())) and row["extra.weight"] == 2.0
    assert row["extra.gradient_rms"] == pytest.approx(1 / images.numel())
    share = 2 / images.numel() / float(base.square().mean().sqrt())
    assert row["extra.share"] == pytest.approx(share) and row["extra.bounded"] == 0


def test_a_weight_that_reaches_a_bound_is_said(tmp_path):
    """In every tick, with the share that was reached."""
    said = []
    method = toy(phases=lambda numbers, progress: [Phase("generator")])
    job = job_of(tmp_path, method, steps=4, ticks=2, supplements=[Supplement("extra", SupplementModule.of(additional(bounded=True)), None)],
                 log=said.append)  # fmt: skip
    loop.Loop(job).run()
    assert [text for text in said if "extra: its weight reached a bound in 100 % of the iterations" in text][1:]
    assert not any("bounded" in text for text in said)


# --- stops ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_politely(tmp_path, number):
    """After SIGTERM or SIGINT the step is finished, the state saved, the handlers restored; a second run ends the work."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def after_step(nets, numbers, progress):
        if progress.iteration == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(
        Stopped, match=f"stopped by {number.name}; saved at 12 of 20 images, the same command continues"
    ):
        loop.Loop(job_of(tmp_path, toy(after_step=after_step))).run()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert state.load_state(tmp_path)[1]["n_images"] == 12
    lines = []
    assert weights(loop.Loop(job_of(tmp_path, log=lines.append)).run()) == reference(tmp_path / "whole")
    assert lines[0] == "continuing at 12 of 20 images"


def test_a_second_signal_is_not_held_back(tmp_path):
    """Who asks twice does not wait: the second signal goes to whoever had it before."""
    asked = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))

    def after_step(nets, numbers, progress):
        os.kill(os.getpid(), signal.SIGTERM)
        assert not asked
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        with pytest.raises(Stopped):
            loop.Loop(job_of(tmp_path, toy(after_step=after_step))).run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == [signal.SIGTERM]


def test_time_budget(tmp_path):
    """A budget that is used up stops after a step, with the state saved; repeating the command ends the work."""
    stops = 0
    while True:
        try:
            average = loop.Loop(job_of(tmp_path, max_seconds=1e-9)).run()
            break
        except Stopped as stopped:
            stops += 1
            assert "the time budget is used up" in str(stopped)
            assert state.load_state(tmp_path)[1]["n_images"] == BATCH * stops
    assert weights(average) == reference(tmp_path / "whole")


def test_a_finished_run_is_not_stopped(tmp_path):
    """Stopped means that work is left: a budget that ends with the last step changes nothing."""
    average = loop.Loop(job_of(tmp_path, steps=1, max_seconds=1e-9)).run()
    assert weights(average) == reference(tmp_path / "whole", 1)


def test_a_finished_state_returns_at_once(tmp_path):
    """The state of a run that is complete gives the same average without a step."""
    first = weights(loop.Loop(job_of(tmp_path)).run())
    method = toy()
    assert weights(loop.Loop(job_of(tmp_path, method)).run()) == first
    assert not method.calls
