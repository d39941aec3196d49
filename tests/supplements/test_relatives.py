# SPDX-License-Identifier: Apache-2.0
"""The relatives of the Embedding Loss, fd and drift: their loss by the written formula, what fd remembers, and their weight."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from eldistill import contract
from eldistill.contract import Batch, Progress
from eldistill.diffusion.draws import Draw
from eldistill.errors import Problem
from eldistill.evaluate import gaussians
from eldistill.losses import balance, drifting
from eldistill.supplements import drift, embedding, fd
from eldistill.training import loop

RELATIVES = ("fd", "drift")
SHAPE = (1, 8, 8)


def batch(reals, size: int = 6, iteration: int = 0) -> Batch:
    draw = Draw(0, "generator", iteration * size, size, dtype=torch.float64)
    return Batch(draw, None, SHAPE, Progress(iteration * size, iteration, 100 * size), reals)


def images(size: int = 6, seed: int = 2) -> torch.Tensor:
    return 0.4 * torch.randn(size, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def test_fd_is_the_metric_in_the_features_of_the_members(bench):
    """Of one batch against all train images, without noise: the Fréchet distance of the evaluations, mean over members."""
    reals = bench.reals(0, torch.float64)
    each = bench.supplement("fd", torch.float64, noise=1e-9, axes=4096)
    found = fd.generator_terms(each.prepared, images(20), batch(reals, 20), each.numbers)["frechet"].value
    values = []
    for member in each.prepared.ensemble.at(0):
        x = member(images(20) / 0.5).double().numpy()
        y = member(reals.take(torch.arange(len(reals)))[0] / reals.sigma_data).double().numpy()
        moments = [(rows.mean(0), torch.cov(torch.from_numpy(rows).T, correction=0).numpy()) for rows in (x, y)]
        values.append(gaussians.frechet(*moments[0], *moments[1]))
    assert float(found) == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_fd_of_a_population_is_that_of_all_its_images(bench):
    """Three batches one after the other have the value of one batch of all, until the population is full; then the oldest fade."""
    reals = bench.reals(0, torch.float64)
    each = bench.supplement("fd", torch.float64, population=18)
    parts = [images(6, seed) for seed in range(4)]

    def after(some: list[torch.Tensor]) -> float:
        memory: dict = {}
        for x in some:
            prepared = fd.recall(each.prepared, each.numbers, memory)
            terms = fd.generator_terms(prepared, x, batch(reals, len(x)), each.numbers)
            fd.observe(prepared, terms, each.numbers, memory)
        assert memory["images"] == sum(map(len, some))
        return float(terms["frechet"].value)

    whole = torch.cat(parts[:3])
    assert after(parts[:3]) == pytest.approx(after([whole]), rel=1e-9)
    weighted = torch.cat([*(part for part in parts[:3] for _ in range(2)), *[parts[3]] * 3])  # 2/9 each, and 1/3
    assert after(parts) == pytest.approx(after([weighted]), rel=1e-9)


def test_fd_remembers_only_what_it_was_given(bench):
    """generator_terms changes nothing: the same images have the same value until observe is called. `recall` gives a copy."""
    reals = bench.reals(0, torch.float64)
    each = bench.supplement("fd", torch.float64)
    first, again = (fd.generator_terms(each.prepared, images(), batch(reals), each.numbers) for _ in range(2))
    assert torch.equal(first["frechet"].value, again["frechet"].value)
    memory: dict = {}
    fd.observe(each.prepared, first, each.numbers, memory)
    assert not each.prepared.past and len(fd.recall(each.prepared, each.numbers, memory).past) == 2
    assert all(not value.requires_grad for key, value in memory.items() if key != "images")


def test_a_run_goes_on_where_another_machine_finds_other_axes(bench):
    """Eigenvectors have no sign, and those of near variances turn with the rounding of a BLAS: the value does not change."""
    reals = bench.reals(0, torch.float64)
    each, memory, values = bench.supplement("fd", torch.float64, axes=10), {}, []
    fd.observe(
        each.prepared, fd.generator_terms(each.prepared, images(), batch(reals), each.numbers), each.numbers, memory
    )
    known = [
        dataclasses.replace(some, axes=-some.axes.flip(1), variances=some.variances.flip(0))
        for some in each.prepared.known
    ]
    for prepared in (each.prepared, dataclasses.replace(each.prepared, known=known)):
        own = dict(memory)
        for seed in (3, 4):
            told = fd.recall(prepared, each.numbers, own)
            terms = fd.generator_terms(told, images(6, seed), batch(reals), each.numbers)
            fd.observe(prepared, terms, each.numbers, own)
        values.append(float(terms["frechet"].value))
    assert values[0] == values[1]


def test_the_gradient_of_fd_does_not_depend_on_the_size_of_the_population(bench):
    """If the earlier images are like the batch, the gradient is that of the batch alone, whatever its share."""
    reals = bench.reals(0, torch.float64)
    each = bench.supplement("fd", torch.float64)
    memory: dict = {}
    alone = fd.generator_terms(each.prepared, images(), batch(reals), each.numbers)["frechet"]
    for _ in range(20):
        prepared = fd.recall(each.prepared, each.numbers, memory)
        terms = fd.generator_terms(prepared, images(), batch(reals), each.numbers)
        fd.observe(prepared, terms, each.numbers, memory)
    torch.testing.assert_close(terms["frechet"].gradient, alone.gradient, rtol=1e-6, atol=1e-10)


def test_fd_needs_members_of_a_single_draw(bench):
    with pytest.raises(Problem, match="redraw: 3.*need a single draw"):
        bench.supplement("fd", redraw=3)


def test_drift_pulls_features_to_where_the_field_points(bench):
    """The gradient is that of the squared distance to places that are held fixed, in the features of each member."""
    reals = bench.reals(0, torch.float64)
    each = bench.supplement("drift", torch.float64)
    now = batch(reals)
    terms = drift.generator_terms(each.prepared, images(), now, each.numbers)
    x, real = images().requires_grad_(), now.real("drift/real", 1)[0]
    losses = []
    for member in each.prepared.ensemble.at(0):
        mine, its = member(x / 0.5), member(real / 0.5)
        found, unit, _ = drifting.drift(mine.detach(), its, each.numbers.radii, each.numbers.floor, True)
        losses.append((mine / unit - (mine.detach() / unit + found)).square().sum(1).mean())
    (gradient,) = torch.autograd.grad(sum(losses) / len(losses), x)
    torch.testing.assert_close(terms["drift"].gradient, gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(terms["drift"].value, (sum(losses) / len(losses)).detach())
    assert terms["length"].gradient is None and terms["length"].value > 0


def test_drift_needs_two_images_and_good_radii(bench):
    each, reals = bench.supplement("drift", torch.float64), bench.reals(0, torch.float64)
    with pytest.raises(Problem, match="1 generated image; expected at least 2: raise the batch"):
        drift.generator_terms(each.prepared, images(1), batch(reals, 1), each.numbers)
    for radii in ((), (0.0,), (0.1, -1.0), ("a",)):
        with pytest.raises(Problem, match="radii is .* expected numbers above 0"):
            drift.Numbers(radii=radii)


@pytest.mark.parametrize("name", RELATIVES)
def test_a_nan_of_an_image_comes_out(bench, name):
    each, reals, x = bench.supplement(name, torch.float64), bench.reals(0, torch.float64), images()
    x[2, 0, 3, 3] = torch.nan
    terms = each.module.generator_terms(each.prepared, x, batch(reals), each.numbers)
    assert terms[{"fd": "frechet"}.get(name, name)].value.isnan()


@pytest.mark.parametrize("name", RELATIVES)
def test_stacked_members_are_the_loop(bench, name):
    reals, found = bench.reals(0, torch.float64), []
    for stack in ("loop", "stacked"):
        each = bench.supplement(name, torch.float64, stack=stack)
        terms = each.module.generator_terms(each.prepared, images(), batch(reals), each.numbers)
        found.append({key: term.value for key, term in terms.items()})
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighting", ["balanced", "fixed"])
@pytest.mark.parametrize("file", ["embedding", *RELATIVES])
def test_all_are_weighed_alike(file, weighting):
    """The same gradients have the same factors over a run, with warm-up and fade: one function stands for all."""
    module = contract.load_supplement(file)
    numbers = module.Numbers(weighting=weighting, warmup=0.3, fade=0.4)
    memory, other = {}, {}
    for i in range(10):
        progress, base, own = Progress(4 * i, i, 40), 2.0 + i, 0.5 * i
        found = module.weight(base, own, 4, numbers, progress, memory)
        wanted = balance.scheduled(base, own, 4, numbers, progress, other)
        assert float(found.factor) == float(wanted.factor)
    assert module.weight(1.0, 1.0, 4, dataclasses.replace(numbers, weight=0.0), progress, memory).factor == 0


@pytest.mark.parametrize("name", RELATIVES)
@pytest.mark.parametrize("method", ["dmd", "consistency"])
def test_its_share_of_the_gradient_is_the_weight(bench, name, method):
    """At the images, and at the last layer where a base loss has no gradient there."""
    job = bench.job(method, {name: {"warmup": 0.0, "decay": 0.0, "weight": 0.4}}, steps=3, ticks=3)
    work = loop.Loop(job)
    work.run()
    shares = [row[f"{name}.share"] for row in work.rows if f"{name}.share" in row]
    assert shares and shares == pytest.approx([0.4] * len(shares), rel=1e-5)


@pytest.mark.parametrize("name", RELATIVES)
def test_images_that_follow_its_gradient_come_nearer_to_real_ones(bench, name):
    """By EL, which is none of the two, and on other real images than each step has."""
    each, judge = bench.supplement(name, torch.float64), bench.supplement("embedding", torch.float64)
    reals = bench.reals(0, torch.float64)
    x, memory = images(24), {}

    def distance() -> float:
        values = [
            judge.module.generator_terms(judge.prepared, x, batch(reals, 24, 900 + i), embedding.Numbers())
            for i in range(8)
        ]
        return sum(float(terms["mmd2"].value) for terms in values) / len(values)

    before = distance()
    for step in range(60):
        prepared = each.module.recall(each.prepared, each.numbers, memory)
        terms = each.module.generator_terms(prepared, x, batch(reals, 24, step), each.numbers)
        gradient = next(iter(terms.values())).gradient
        x = x - 0.02 * gradient / gradient.square().mean().sqrt()
    assert distance() < 0.5 * before
