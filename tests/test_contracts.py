# SPDX-License-Identifier: Apache-2.0
"""What every file in methods/, supplements/ and ensemble/ must do, whoever adds one: the tests find it by themselves."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import eldistill
from eldistill import contract, networks
from eldistill.contract import AtImages, Batch, Phase, Progress
from eldistill.diffusion import draws
from eldistill.errors import Problem, Stopped
from eldistill.numbers import declared, make_numbers, number
from eldistill.plan import params, schema, versions
from eldistill.registry import available
from eldistill.training import loop, state
from eldistill.training.job import Job
from tests import conftest
from tests.conftest import ROOT

PACKAGE = Path(eldistill.__file__).parent


EVERY_METHOD, SUPPLEMENTS, FAMILIES = available("methods"), available("supplements"), available("ensemble")
EVERY = [(kind, file) for kind in ("methods", "supplements", "ensemble") for file in available(kind)]
with_every_method = pytest.mark.parametrize("method", EVERY_METHOD)
with_supplements = pytest.mark.parametrize("supplement", SUPPLEMENTS)


def offers(kind: str, file: str, function: str) -> bool:
    """Whether a module has a function of the contract that is optional."""
    return callable(getattr(contract.load_module(kind, file), function, None))


# Those with a loss of their own: the others train nothing without a supplement.
METHODS = [method for method in EVERY_METHOD if offers("methods", method, "generator_terms")]
with_methods = pytest.mark.parametrize("method", METHODS)


def numbers_of(method: str, supplement: str | None) -> dict[str, dict]:
    """A supplement for `bench.job`, with its defaults or, where no base loss is there to compare with, a fixed weight."""
    relative = supplement is not None and method not in METHODS and "weighting" in declared("supplements", supplement)
    return {supplement: {"weighting": "fixed"} if relative else {}} if supplement else {}


def joins(method: str, supplement: str | None) -> bool:
    """Whether the two go together: what adds to the phase of fake_score needs a method that has one, and no other head.
    A method without a loss of its own needs a supplement."""
    if supplement is None and method not in METHODS:
        return False
    module = contract.load_module("methods", method)
    needs = supplement is not None and offers("supplements", supplement, "critic_terms")
    has_head = re.search("add_head", source(PACKAGE / "methods" / f"{method}.py"))
    return not needs or ("fake_score" in nets_of(method) and not has_head and module is not None)


DECLARED = [*EVERY, *(("metrics", file) for file in available("metrics"))]
with_declared = pytest.mark.parametrize(("kind", "file"), DECLARED)
with_labels = pytest.mark.parametrize("labels", [0, 3], ids=["unconditional", "conditional"])
# Adam's first steps are the sign of the gradient, which rounding decides where it is zero: a larger eps is smooth.
SMOOTH = {"eps": 1e-2, "lr": 1e-2}


@pytest.fixture(autouse=True)
def untouched_rng():
    """Nothing draws from a global generator, or leaves one changed."""
    before, numpys = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), before)
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(after, numpys, strict=True))


def copied(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Unsaved(loop.Loop):
    """A loop that writes no state: what is asked of its end alone."""

    def save(self) -> None:
        pass


def trained(job: Job) -> dict[str, dict]:
    """The weights of all networks and of the average at the end."""
    average = Unsaved(job).run()
    return {**{name: copied(net) for name, net in job.nets.items()}, "average": copied(average)}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


def distance(a: dict, b: dict) -> float:
    """Root of the summed squared differences of two sets of weights."""
    squares = [(x.double() - b[name][key].double()).square().sum() for name in a for key, x in a[name].items()]
    return float(torch.stack(squares).sum().sqrt())


def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def nets_of(method: str) -> list[str]:
    """The trained networks of a method, in the order of its phases."""
    module = contract.load_module("methods", method)
    return [phase.net for phase in module.phases(module.Numbers(), Progress(0, 0, 100))]


PAIRS = [(m, s) for m in EVERY_METHOD for s in (None, *SUPPLEMENTS) if joins(m, s)]
with_pairs = pytest.mark.parametrize(("method", "supplement"), PAIRS)


def test_something_is_found():
    """The folders are read: the first method, supplement and families are there."""
    assert "diff_instruct" in METHODS and "embedding" in SUPPLEMENTS and {"conv", "identity"} <= set(FAMILIES)


# --- methods ---


@with_every_method
def test_phases(method):
    """Phases name networks that exist, use known words, and train the generator."""
    module = contract.load_module("methods", method)
    for progress in (Progress(0, 0, 1000), Progress(996, 249, 1000)):
        phases = module.phases(module.Numbers(), progress)
        assert phases and all(isinstance(phase, Phase) for phase in phases)
        for phase in phases:
            assert phase.every >= 1 and phase.images in ("fresh", "reuse", "none")
            assert phase.generator_mode in ("train", "eval") and phase.labels in ("fresh", "same")
    assert "generator" in nets_of(method)


@with_methods
@with_labels
def test_terms_are_named_and_finite(bench, method, labels):
    """generator_terms and critic_terms give names, finite values, and gradients of the images' shape."""
    job = bench.job(method, labels=labels, batch=5)
    module, shape = job.method, (5, *job.shape)
    batch_labels = job.reals.labels(torch.arange(5))
    draw = lambda scope: draws.Draw(0, scope, 0, 5)  # noqa: E731
    batch = Batch(draw("generator"), batch_labels, job.shape, Progress(0, 0, 100), job.reals)
    nets = {**job.fixed, **job.nets}
    images = module.generate(nets, batch, job.numbers)
    assert images.shape == shape and images.isfinite().all()
    terms = module.generator_terms(nets, batch, images.detach, job.numbers)
    if offers("methods", method, "critic_terms"):
        other = Batch(draw("critic"), batch_labels, job.shape, Progress(0, 0, 100), job.reals)
        critic = module.critic_terms(nets, other, images.detach(), job.numbers)
        assert critic and all(not isinstance(term, AtImages) for term in critic.values())
        terms = {**terms, **critic}
    for name, term in terms.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        value = term.value if isinstance(term, AtImages) else term
        assert value.ndim == 0 and value.isfinite()
        if isinstance(term, AtImages) and term.gradient is not None:
            assert term.gradient.shape == shape and term.gradient.isfinite().all() and term.gradient.any()
            assert not term.gradient.requires_grad


@with_methods
@with_labels
def test_generator_phase_trains_the_generator_alone(bench, method, labels):
    """A gradient reaches the generator, its label layer included; nothing else gets one, or moves by one bit."""
    module = contract.load_module("methods", method)
    alone = bench.only(module, "generator")
    vars(alone).pop("after_step", None)  # it may move what no optimiser trains
    job = bench.job(alone, numbers=module.Numbers(), labels=labels)
    others = {**job.fixed, **{name: net for name, net in job.nets.items() if name != "generator"}}
    before = {name: copied(net) for name, net in {**others, "generator": job.nets["generator"]}.items()}
    loop.Loop(job).iterate()
    gradients = {key: p.grad for key, p in job.nets["generator"].named_parameters()}
    assert all(gradient is not None and gradient.any() for key, gradient in gradients.items() if "weight" in key)
    assert any("map_label" in key for key in gradients) == bool(labels)
    assert not same(before["generator"], job.nets["generator"].state_dict())
    for name, net in others.items():
        assert all(p.grad is None for p in net.parameters()), name
        assert same(before[name], net.state_dict()), name


@pytest.mark.parametrize(
    ("method", "net"), [(m, n) for m in METHODS for n in dict.fromkeys(nets_of(m)) if n != "generator"]
)
def test_critic_phase_leaves_the_rest_untouched(bench, method, net):
    """A step of an extra network moves that network; generator, teacher and the others stay bit for bit."""
    module = contract.load_module("methods", method)
    job = bench.job(bench.only(module, net), numbers=module.Numbers())
    before = {name: copied(each) for name, each in {**job.fixed, **job.nets}.items()}
    loop.Loop(job).iterate()
    after = {name: each.state_dict() for name, each in {**job.fixed, **job.nets}.items()}
    assert {name for name in after if not same(before[name], after[name])} == {net}
    assert all(
        p.grad is None for name, each in {**job.fixed, **job.nets}.items() if name != net for p in each.parameters()
    )


@with_pairs
def test_seed_decides_every_bit(bench, method, supplement):
    """The same seed gives the same bits whatever torch's global generator holds; another seed gives others."""
    chosen = numbers_of(method, supplement)

    def run(number: int, seed: int) -> dict:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            return trained(bench.job(method, chosen, seed=seed, steps=2, dropout=0.2, folder=f"state-{number}"))

    first, again, other = run(1, 0), run(2, 0), run(3, 1)
    assert equal(first, again)
    assert all(not same(first[name], other[name]) for name in first)


@with_pairs
def test_float64_agrees_with_float32(bench, method, supplement):
    """Two steps in float64 are the steps of float32, but for its rounding: same draws, same terms."""
    chosen = numbers_of(method, supplement)

    def run(dtype):
        job = bench.job(method, chosen, dtype=dtype, steps=2, optimiser=SMOOTH, folder=str(dtype))
        start = {name: copied(net) for name, net in {**job.nets, "average": job.nets["generator"]}.items()}
        return start, trained(job)

    start, low = run(torch.float32)
    begun, high = run(torch.float64)
    assert distance(start, begun) == 0  # float64 holds the weights of float32
    assert all(value.dtype == torch.float64 for value in high["generator"].values())
    assert distance(low, high) < 1e-4 * distance(begun, high)


@with_methods
@with_labels
@pytest.mark.parametrize("network", [name for name in networks.available() if name not in ("song", "classifier")])
def test_every_network_serves_every_method(bench, method, labels, network):
    """A network is one file: each trains under each method, its weights normalised once a step where it asks for it."""
    if labels and not getattr(importlib.import_module(f"eldistill.networks.{network}"), "LABELS", True):
        with pytest.raises(ValueError, match="classes are not supported"):
            bench.job(method, labels=labels, network=network)
        return
    job = bench.job(method, labels=labels, network=network, steps=2)
    before = {name: copied(net) for name, net in job.nets.items()}
    after = trained(job)
    assert all(value.isfinite().all() for weights in after.values() for value in weights.values())
    assert not same(before["generator"], after["generator"])
    for name in {"generator", "fake_score"} & set(nets_of(method)):
        for layer in job.nets[name].modules():
            if hasattr(layer, "normalise_weight"):
                held = layer.weight.detach().clone()
                layer.normalise_weight()
                torch.testing.assert_close(layer.weight.detach(), held, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("choice", "forced"), [("all", {"generator", "fake_score"}), ("generator", {"generator"}), ("none", set())]
)
def test_forced_normalisation_acts_on_the_networks_that_a_method_names(bench, choice, forced):
    """Of EDM2: rows of unit mean square after a run where it acts, and the weights that the optimiser left where it does not.

    Adam moves every weight of fan in n by about lr a step, so that a row's mean square drifts away from 1."""
    module = contract.load_module("methods", "sida")
    job = bench.job(
        "sida", network="edm2", numbers=module.Numbers(group=2, normalise=choice), steps=5, optimiser={"lr": 0.05}
    )
    trained(job)
    for name in ("generator", "fake_score"):
        layers = [each for each in job.nets[name].unet.modules() if hasattr(each, "normalise_weight")]
        rows = [each.weight.detach().flatten(1).square().mean(1) for each in layers]
        drift = max(float((each - 1).abs().max()) for each in rows)
        assert layers and (drift < 1e-3) == (name in forced), (name, drift)


def test_the_recipe_of_size_s_has_no_forced_normalisation_with_a_discriminator():
    """SiD has it, SiDA and SiD²A of the authors' size S have not."""
    whole = params.load_params(ROOT / "params.yaml")
    for method in ("sida", "sid2a"):
        values = whole.section("method", method, "imagenet512-s")
        numbers = make_numbers(contract.load_module("methods", values["file"]), values)
        assert contract.load_module("methods", "sida").normalised(numbers) == ()
    assert not hasattr(contract.load_module("methods", "sid"), "normalised"), "all of its networks"


@with_every_method
def test_every_student_starts_at_the_teacher(bench, method):
    """Its weights, and those of an averaged target, are the teacher's to the bit: also CT's, as in its authors' script for
    ImageNet-64, and those of CT on CIFAR-10 and iCT, whose authors start from random weights (methods/consistency.py)."""
    module, teacher = contract.load_module("methods", method), conftest.teacher()
    numbers = module.Numbers()
    made = {"generator": module.generator(teacher, None, numbers), **module.networks(teacher, numbers, 1)}
    for name in {"generator", "target", "fake_score"} & made.keys():
        found = made[name].state_dict()
        assert all(torch.equal(found[key], value) for key, value in teacher.state_dict().items()), name


@pytest.mark.parametrize("method", [m for m in METHODS if "uncertainty" in declared("methods", m)])
def test_uncertainty_is_learned_and_divides(bench, method):
    """With EDM2's own estimate of its loss: its layer learns, accumulation changes nothing, the generator's loss differs."""
    module = contract.load_module("methods", method)

    def run(folder, size=0, **changes):
        job = bench.job(method, network="edm2", numbers=module.Numbers(**changes), dtype=torch.float64, steps=2, batch=4,
                        micro_batch=size, optimiser=SMOOTH, folder=folder)  # fmt: skip
        return trained(job)

    plain, whole, parts = run("plain"), run("whole", uncertainty=True), run("parts", 2, uncertainty=True)
    layer = "logvar_linear.weight"
    assert not torch.equal(whole["fake_score"][layer], plain["fake_score"][layer])
    assert distance(whole, plain) > 1e-6 and distance(whole, parts) < 1e-8


@with_methods
@with_labels
def test_batch_of_one(bench, method, labels):
    """One image a step trains, to finite weights."""
    job = bench.job(method, batch=1, labels=labels, steps=2)
    before = copied(job.nets["generator"])
    after = trained(job)
    assert not same(before, after["generator"])
    assert all(value.isfinite().all() for weights in after.values() for value in weights.values())


@with_pairs
@with_labels
def test_accumulation_changes_nothing(bench, method, supplement, labels):
    """Five images at once, or in three parts, the last of which is smaller: the same weights and logs, also with a supplement."""
    chosen = numbers_of(method, supplement)

    def run(size):
        job = bench.job(method, chosen, labels=labels, dtype=torch.float64, batch=5, steps=2, ticks=2, micro_batch=size,
                        optimiser=SMOOTH, folder=f"state-{size}")  # fmt: skip
        work = Unsaved(job)
        work.run()
        return {name: copied(net) for name, net in {**job.nets, "average": work.average}.items()}, work.rows

    (whole, rows), (parts, part_rows) = run(0), run(2)
    assert len(rows) == 2
    for name, weights in whole.items():
        for key, value in weights.items():
            where = f"{name}: {key}"
            torch.testing.assert_close(
                parts[name][key], value, rtol=1e-10, atol=1e-12, msg=lambda m, where=where: f"{where}: {m}"
            )
    for row, part_row in zip(rows, part_rows, strict=True):
        assert row.keys() == part_row.keys()
        np.testing.assert_allclose([*part_row.values()], [*row.values()], rtol=1e-9, atol=1e-12)


@with_methods
def test_accumulation_changes_nothing_with_dropout(bench, method):
    """Dropout masks belong to an image of the run, not to its micro-batch: micro_batch describes a machine only."""

    def run(size):
        return trained(bench.job(method, dtype=torch.float64, dropout=0.3, batch=8, steps=2, micro_batch=size,
                                 optimiser=SMOOTH, folder=f"state-{size}"))  # fmt: skip

    whole, parts = run(0), run(2)
    assert distance(whole, parts) < 1e-8


class Ending(loop.Loop):
    """A loop that is asked to stop after some steps."""

    after = 0

    def iterate(self) -> None:
        super().iterate()
        if self.iteration == self.after:
            self.stop_reason = "stopped by the test"


@with_pairs
def test_stopped_and_continued_is_the_uninterrupted_run(bench, method, supplement):
    """Weights, averages, optimisers, log rows: bit for bit, for every method and supplement, dropout and schedules on.

    Stopped twice: between two rows of the log, and where a row has just been written.
    """

    def job(folder):
        chosen = numbers_of(method, supplement)
        ema = {"policy": "ramped", "halflife_images": 40, "ramp": 0.5}
        return bench.job(method, chosen, labels=3, dropout=0.2, steps=4, ticks=2, folder=folder, ema=ema,
                         optimiser={"warmup_images": 8, "betas": [0.5, 0.99]})  # fmt: skip

    def outcome(work):
        tensors = state.pack_tensors({**work.job.nets, "average": work.average}, work.optimisers)
        return tensors, work.rows, [remembered(each.memory) for each in work.job.supplements]

    for after in (1, 2):
        first = Ending(job("parted"))
        first.after = after
        with pytest.raises(Stopped):
            first.run()
        assert first.iteration == after and len(first.rows) == after - 1
    parted, whole = loop.Loop(job("parted")), Unsaved(job("whole"))
    parted.run()
    whole.run()
    (a, *rest_a), (b, *rest_b) = outcome(parted), outcome(whole)
    assert a.keys() == b.keys() and not [name for name in a if not torch.equal(a[name], b[name])]
    assert rest_a == rest_b and len(rest_a[0]) == 2


def remembered(memory: dict) -> dict:
    """A memory to compare bit for bit."""
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in memory.items()}


def named_once() -> list[str]:
    """The sections of distil.methods, one of those whose methods have the same numbers: others differ in rates and batches only."""
    shipped, found = params.load_params(ROOT / "params.yaml"), {}
    for name in shipped.values["distil"]["methods"]:
        section = shipped.section("method", name, "digits")
        own = {key: section.get(key) for key in declared("methods", section["file"])}
        found.setdefault((section["file"], "start_from" in section, json.dumps(own, sort_keys=True)), name)
    return list(found.values())


NAMED = named_once()


@pytest.mark.parametrize("name", NAMED)
def test_every_named_method_continues(bench, name):
    """Each section of distil.methods (CT's growing grid, iCT's stages, SiDA's warm-up, ...): stopped at half, bit for bit."""
    section = params.load_params(ROOT / "params.yaml").section("method", name, "digits")
    warm = {"group": 2, "freeze_images": 4, "solo_images": 12, "stage_images": 4, "every": 2}
    module = contract.load_module("methods", section["file"])
    changes = {
        key: value for key, value in warm.items() if key in declared("methods", section["file"]) and section[key]
    }
    numbers = make_numbers(module, {**section, **changes})

    def outcome(folder, stop):
        def job() -> Job:
            chosen = {} if section["file"] in METHODS else numbers_of(section["file"], "embedding")
            return bench.job(
                section["file"], chosen, numbers=numbers, labels=3, dropout=0.2, steps=4, ticks=2, folder=folder,
                begun="start_from" in section,
            )  # fmt: skip

        if stop:
            first = Ending(job())
            first.after = 2
            with pytest.raises(Stopped):
                first.run()
        work = Unsaved(job())
        work.run()
        return state.pack_tensors({**work.job.nets, "average": work.average}, work.optimisers), work.rows

    (a, rows_a), (b, rows_b) = outcome("parted", True), outcome("whole", False)
    assert a.keys() == b.keys() and not [key for key in a if not torch.equal(a[key], b[key])]
    assert rows_a == rows_b


# --- supplements ---


@with_methods
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_weight_zero_is_the_run_without(bench, method, micro_batch):
    """A supplement of weight 0 gives bit for bit the run without it; one of positive weight does not."""
    run = lambda name, chosen: trained(bench.job(method, chosen, steps=2, folder=name, micro_batch=micro_batch))  # noqa: E731
    without = run("without", {})
    for supplement in [s for s in SUPPLEMENTS if joins(method, s)]:
        off, on = run(f"off-{supplement}", {supplement: {"weight": 0.0}}), run(f"on-{supplement}", {supplement: {}})
        assert equal(without, off), supplement
        assert not same(without["generator"], on["generator"]), supplement


@pytest.mark.parametrize("supplement", [s for s in SUPPLEMENTS if offers("supplements", s, "generator_terms")])
@with_labels
def test_supplement_terms(bench, supplement, labels):
    """Named finite terms whose gradient at the images is the derivative of their value."""
    dtype = torch.float64
    (each,) = bench.job("diff_instruct", {supplement: {}}, labels=labels, dtype=dtype).supplements
    images = bench.reals(labels, dtype).take(torch.arange(6))[0]
    reals = bench.reals(labels, dtype)
    batch = Batch(draws.Draw(0, "generator", 0, 6, dtype=dtype), reals.labels(torch.arange(6)), reals.shape,
                  Progress(0, 0, 100), reals)  # fmt: skip

    def terms(x):
        return each.module.generator_terms(each.prepared, x, batch, each.numbers)

    found = terms(images)
    direction = draws.Draw(1, "direction", 0, 6, dtype=dtype).normal("d", *reals.shape)
    assert found
    for name, term in found.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name) and isinstance(term, AtImages)
        assert term.value.ndim == 0 and term.value.isfinite() and not term.value.requires_grad
        if term.gradient is None:  # for the log alone
            continue
        assert term.gradient.shape == images.shape and term.gradient.any() and not term.gradient.requires_grad
        if getattr(contract.load_module("supplements", supplement), "TARGET_HELD", False):
            continue
        ahead, behind = (terms(images + step * direction)[name].value for step in (1e-4, -1e-4))
        torch.testing.assert_close((ahead - behind) / 2e-4, (term.gradient * direction).sum(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("supplement", [s for s in SUPPLEMENTS if not offers("supplements", s, "networks")])
def test_supplement_leaves_networks_alone(bench, supplement):
    """A run with a supplement that adds no network changes no tensor of its tools."""
    job = bench.job("diff_instruct", {supplement: {}})

    def tensors(thing, depth=6):
        if isinstance(thing, torch.Tensor):
            yield thing
        elif isinstance(thing, dict):
            thing = list(thing.values())
        elif hasattr(thing, "__dict__") and not isinstance(thing, type(eldistill)):
            thing = list(vars(thing).values())
        if isinstance(thing, (list, tuple)) and depth:
            for part in thing:
                yield from tensors(part, depth - 1)

    tools = job.supplements[0].prepared
    ensemble = getattr(tools, "ensemble", None)
    watched = list(tensors(tools)) + (list(tensors(ensemble.at(0))) if ensemble else [])
    before = [tensor.clone() for tensor in watched]
    assert watched
    loop.Loop(job).run()
    assert all(
        torch.equal(a, b) and b.grad is None and not b.requires_grad for a, b in zip(before, watched, strict=True)
    )


def test_redrawn_members_follow_the_step(bench):
    """With redraw 3 the value for the same images and draws stays for three steps, then changes; with 0 it never does."""
    reals = bench.reals(0, torch.float64)
    images, draw = reals.take(torch.arange(6))[0], draws.Draw(0, "generator", 0, 6, dtype=torch.float64)

    def values(redraw: int) -> list[float]:
        each, found = bench.supplement("embedding", torch.float64, redraw=redraw), []
        for step in range(7):
            batch = Batch(draw, None, reals.shape, Progress(0, step, 100), reals)
            terms = each.module.generator_terms(each.prepared, images, batch, each.numbers)
            found.append(float(terms["mmd2"].value))
        return found

    for_ever, redrawn = values(0), values(3)
    assert len(set(for_ever)) == 1
    assert redrawn[0] == redrawn[2] != redrawn[3] == redrawn[5] != redrawn[6] != redrawn[0]


@with_methods
def test_batch_of_one_with_an_unbiased_supplement(bench, method):
    """The unbiased estimate of one image does not exist: a sentence, not a NaN; the biased one trains."""
    with pytest.raises(Problem, match="at least 2 of each: raise the batch"):
        trained(bench.job(method, {"embedding": {"estimator": "unbiased"}}, batch=1))
    for kernel in ("rbf", "linear"):
        chosen = {"embedding": {"estimator": "biased", "kernel": kernel}}
        after = trained(bench.job(method, chosen, batch=1, steps=2, folder=kernel))
        assert all(value.isfinite().all() for value in after["generator"].values())


@with_methods
@with_labels
def test_micro_batches_of_one_with_a_supplement(bench, method, labels):
    """A supplement sees the whole batch: micro-batches of one image do not trouble the unbiased estimate."""
    job = bench.job(method, {"embedding": {}}, labels=labels, micro_batch=1, steps=2)
    assert all(value.isfinite().all() for value in trained(job)["generator"].values())


@with_methods
def test_supplements_add_up(bench, method):
    """Two supplements together add both gradients: one counted twice at fixed weight w is one at 2 w."""
    numbers = {"weighting": "fixed", "warmup": 0.0}

    def run(name, weights):
        job = bench.job(method, {}, dtype=torch.float64, steps=2, optimiser=SMOOTH, folder=name)
        job.supplements = [bench.supplement("embedding", torch.float64, weight=w, **numbers) for w in weights]
        for index, each in enumerate(job.supplements):
            each.name = f"embedding-{index}"
        return trained(job)

    once, twice, none = run("once", [3.0]), run("twice", [1.0, 2.0]), run("none", [])
    assert distance(once, twice) < 1e-9 < 1e-6 < distance(once, none)


# --- families of embedding networks ---


def sees_colour(family: str) -> bool:
    """Whether the family takes images of any number of channels; the small teacher of the tests has one."""
    return not getattr(contract.load_module("ensemble", family), "TEACHER", False)


@pytest.mark.parametrize(("family", "channels"), [(f, c) for f in FAMILIES for c in (1, 3) if c == 1 or sees_colour(f)])
def test_family(family, channels):
    """Features are finite, follow from the seed, embed each image by itself, and carry a gradient to the images."""
    module = contract.load_module("ensemble", family)
    side = 32 if family == "vgg" else 8
    numbers, shape = module.Numbers(), (channels, side, side)
    tools = ()
    if getattr(module, "TEACHER", False):
        tools = (conftest.teacher(dtype=torch.float64),)
    fitted = draws.Draw(1, "images", 0, 80, dtype=torch.float64).normal("x", *shape)

    def weights(seed, dtype=torch.float64):
        normal = draws.Draw(seed, "el", 0, 1, dtype=dtype).normal
        made = module.draw(numbers, shape, lambda name, *size: normal(name, *size)[0])
        return {
            key: w.double()
            for key, w in (module.fit(made, fitted, numbers) if hasattr(module, "fit") else made).items()
        }

    first, again, other = weights(0), weights(0), weights(1)
    assert same(first, again)
    if not hasattr(module, "fit"):  # what is fitted to the images is not drawn
        assert all(not torch.equal(first[key], other[key]) for key in first)
    images = draws.Draw(0, "images", 0, 5, dtype=torch.float64).normal("x", *shape).requires_grad_()

    def embedded(weights, images, tools=tools):
        return module.stages(weights, images, numbers, *tools)[-1].flatten(1)

    features = embedded(first, images)
    assert len(features) == 5 and features.isfinite().all()
    alone = torch.cat([embedded(first, image[None]) for image in images])
    torch.testing.assert_close(alone, features, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(features.square().sum(), images)
    assert gradient.isfinite().all() and all(each.any() for each in gradient)
    single = (conftest.teacher(),) if tools else ()
    low = embedded({key: w.float() for key, w in first.items()}, images.detach().float(), single)
    assert float((low - features.detach()).norm() / features.detach().norm()) < 1e-5


# --- the numbers ---


@with_declared
def test_numbers_are_declared(kind, file):
    """Numbers is a frozen dataclass; number made every field, with a sentence and a default."""
    module = contract.load_module(kind, file)
    assert dataclasses.is_dataclass(module.Numbers)
    numbers = module.Numbers()
    for field in dataclasses.fields(module.Numbers):
        assert set(field.metadata) == set(number(0, "").metadata), field.name
        assert isinstance(field.metadata["description"], str) and len(field.metadata["description"]) > 10
        assert field.default is not dataclasses.MISSING
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(numbers, field.name, field.default)
    with pytest.raises(dataclasses.FrozenInstanceError):
        numbers.another = 1
    assert module.RECIPE == (f"{kind}/{file}", versions.version_of(f"{kind}/{file}"))


@with_declared
def test_declared_agrees_with_the_dataclass(kind, file):
    """What is read from the source without importing it is what the class says: names, defaults, limits, types."""
    module = contract.load_module(kind, file)
    read, fields = declared(kind, file), dataclasses.fields(module.Numbers)
    assert list(read) == [field.name for field in fields]
    for field in fields:
        found, limits = dict(read[field.name]), dict(field.metadata)
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        choices = limits.pop("enum")
        types = found.pop("type")
        assert found.pop("default") == default
        if choices is not None:
            where = found.pop("items") if types == "array" else found
            assert where.pop("enum") == list(choices)
        assert found == {key: value for key, value in limits.items() if value is not None}
        schema.check_value(default, read[field.name], field.name, {})
        names = {"float": "number", "int": "integer", "str": "string", "bool": "boolean", "tuple": "array"}
        word, *rest = re.split(r"\s*\|\s*", field.type)
        kinds = [names[word.split("[")[0]], *("null" for _ in rest)]
        assert types == (kinds if rest else kinds[0])
    again = make_numbers(module, {key: value["default"] for key, value in read.items()} | {"file": "x"})
    assert again == module.Numbers()


@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, file in EVERY if kind != "ensemble"])
def test_contract_functions(kind, file):
    """A method and a supplement offer all functions that the contract names, and nothing public beside them is missing."""
    needed = {
        "methods": {"phases", "generator", "networks", "generate", "sampler"},
        "supplements": {"prepare"},
    }[kind]
    module = contract.load_module(kind, file)
    assert {name for name in needed if callable(getattr(module, name, None))} == needed
    if kind == "methods":
        assert offers(kind, file, "critic_terms") == (set(nets_of(file)) != {"generator"})
        if offers(kind, file, "critic_terms"):
            assert set(getattr(module, "CRITICS", ("fake_score",))) == set(nets_of(file)) - {"generator"}
    else:
        assert offers(kind, file, "generator_terms") == offers(kind, file, "weight")
        assert any(offers(kind, file, name) for name in ("generator_terms", "direct_terms", "critic_terms"))


@with_every_method
def test_sampler_is_json(method):
    """The sampler's description has a list of positive noise levels and a rule for renoising."""
    module = contract.load_module("methods", method)
    found = module.sampler(module.Numbers())
    assert set(found) <= {"steps", "boundary", "renoise", "clip"} and "1" in found["steps"]
    for steps, sigmas in found["steps"].items():
        assert len(sigmas) == int(steps) and all(isinstance(sigma, float) and sigma > 0 for sigma in sigmas)
        assert sigmas == sorted(sigmas, reverse=True)
    assert found == json.loads(json.dumps(found))


def test_unknown_file_is_a_sentence():
    """A file that is not there is a Problem which lists those that are."""
    with pytest.raises(Problem, match="methods/ has no file 'difinstruct'; it has .*diff_instruct"):
        contract.load_module("methods", "difinstruct")
    with pytest.raises(Problem, match="has no file"):
        contract.load_module("methods", "__init__")


# --- the text of the files ---


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_asks_which_method_it_is(path):
    """No file compares the name of a method or a supplement: what differs stands in the module."""
    names = {*EVERY_METHOD, *SUPPLEMENTS, "di", "el", "pixel-mmd"}
    if "tables" in path.parts:
        names -= {"fd"}  # there it is the metric
    asked = []
    for node in ast.walk(ast.parse(source(path))):
        tested = node if isinstance(node, ast.Compare) else getattr(node, "pattern", None)  # `if x == y`, `case y`
        if tested is not None:
            asked += [each.value for each in ast.walk(tested) if isinstance(each, ast.Constant) and each.value in names]
    assert not asked and "if method ==" not in source(path)


@with_methods
def test_methods_do_not_know_the_embedding_loss(method):
    """The Embedding Loss appears in no method file."""
    assert not re.search(r"embedding|mmd|\bEL\b", source(PACKAGE / "methods" / f"{method}.py"), re.IGNORECASE)


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, functions included, as `loop` or `methods.x`."""
    modules = {str(p.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for p in PACKAGE.rglob("*.py")}
    found = set()
    for node in ast.walk(ast.parse(source(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide who imports whom"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.removeprefix("eldistill.") for name in found if name.startswith("eldistill.")}
    known = modules | {name.removesuffix(".__init__") for name in modules}
    # `from package import module` asks for the module; any other name, for what holds it.
    return {each for name in ours if (each := name if name in known else name.rpartition(".")[0]) in known}


def parts(name: str) -> set[str]:
    return {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for path in PACKAGE.glob(f"{name}/*.py")}


# Packages and single modules, from the ground up: each imports only what stands in an earlier line, or itself.
ORDER = (
    {"errors", "paths"},
    {"files", "environment", "outside", "omitted", "registry", "signals", "tensorheader", "diffusion"},
    {"tensors", "numbers", "networks"},
    {"contract", "external"},
    {"plan", "losses"},
    {"data"},
    {"training"},
    {"methods", "ensemble", "sampling", "evaluate"},
    {"supplements", "spaces", "metrics", "teacher"},
    {"distil", "embedding_loss"},
    {"tables"},
    {"steps"},
    {"commands"},
    {"__main__"},
)
LINE = {name: line for line, names in enumerate(ORDER) for name in names}


@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, file in EVERY if kind != "ensemble"])
def test_methods_and_supplements_import_downwards(kind, file):
    """A method or a supplement imports neither the loop and its state, nor another of its kind."""
    found = imports(PACKAGE / kind / f"{file}.py")
    assert found, "at least the contract"
    assert not found & ({"training.loop", "training.state", kind} | parts("methods") | parts("supplements"))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_upward(path):
    """Not even inside a function. Only eldistill/__init__.py does: it offers two names from above to others."""
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in LINE or own == "__init__", "a new package has a line in ORDER"
    above = {name for name in imports(path) if (top := name.split(".")[0]) != own and LINE[top] >= LINE.get(own, 99)}
    assert not above, f"{own} stands in line {LINE[own]} of ORDER"


def test_the_page_shows_the_order_of_packages():
    text = source(ROOT / "docs/architecture.md")
    cells = [re.findall(r"`([\w/.]+)`", line.split("|")[1]) for line in text.splitlines() if line.startswith("| `")]
    assert [{name.removesuffix(".py").strip("/") for name in cell} for cell in cells] == list(ORDER[:-1])


def test_imports_have_no_circle():
    """No module imports itself by way of others, not even inside a function."""
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        graph[name] = imports(path) - {name}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert (
        order.index("contract") < order.index("training.loop") < order.index("distil.run") < order.index("steps.distil")
    )


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_and_a_function_hold_one_idea(path):
    """A file has at most 350 lines and a function 60; tables of data are no functions."""
    text = path.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [node.name for node in functions if node.end_lineno - node.lineno >= 60]
    assert text.count("\n") <= 350 and not long


TYPED = ("contract", "diffusion", "distil", "ensemble", "evaluate", "losses", "methods", "networks", "sampling", "supplements",
         "teacher", "training")  # fmt: skip


@pytest.mark.parametrize("name", TYPED)
def test_what_passes_between_modules_has_written_types(name):
    """No namespace without declared fields, and no question whether a module has a function: contract.py fills defaults."""
    files = [PACKAGE / f"{name}.py"] if name == "contract" else (PACKAGE / name).rglob("*.py")
    found = [
        path.name for path in files if re.search(r"SimpleNamespace|hasattr\(.*module|make_dataclass", source(path))
    ]
    assert not found


@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, file in EVERY if kind != "ensemble"])
def test_a_loaded_file_offers_what_it_defines(kind, file):
    """Method and SupplementModule take over every function of the contract, and have a default for each other one."""
    loaded = contract.load_method(file) if kind == "methods" else contract.load_supplement(file)
    module = contract.load_module(kind, file)
    for field in dataclasses.fields(loaded):
        assert loaded.offers(field.name) == hasattr(module, field.name)
        assert getattr(loaded, field.name) is getattr(module, field.name, field.default)
    assert type(loaded).of(loaded) == loaded
    assert kind == "methods" or loaded.offers("generator_terms") == loaded.offers("weight"), "they come together"


def test_a_function_that_is_missing_is_said():
    """Called all the same, a function that a file leaves out raises a sentence, unless it may be left out."""
    bare = contract.Method(phases=lambda numbers, progress: [])
    assert bare.group(None) == 1 and bare.normalised(None) is None and bare.after_step({}, None, None) is None
    with pytest.raises(TypeError, match="lacks a function"):
        bare.generate({}, None, None)


def test_the_loop_knows_no_method(bench):
    """A method need not be a file: the loop takes any namespace with the contract's functions, and asks no name."""
    module = contract.load_module("methods", METHODS[0])
    anonymous = SimpleNamespace(**{name: getattr(module, name) for name in dir(module) if not name.startswith("__")})
    assert equal(trained(bench.job(anonymous, folder="a")), trained(bench.job(METHODS[0], folder="b")))
