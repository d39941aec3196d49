# SPDX-License-Identifier: Apache-2.0
"""The weighting `adaptive` and the start of a run: what they are by their formulas, in several processes and after a resume."""

from __future__ import annotations

import functools
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eldistill.contract import AtImages, Progress, Setting
from eldistill.errors import Problem
from eldistill.losses import balance, mmd
from eldistill.supplements import embedding
from eldistill.training import loop, state

ESTIMATORS = ("unbiased", "biased")
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- both values from one pass ---


@each_estimator
@pytest.mark.parametrize("form", ["marginal", "joint", "per_class", "anchored"])
@pytest.mark.parametrize("kernel", mmd.KERNELS)
def test_the_gap_is_the_difference_of_the_estimators(kernel, form, estimator):
    """Biased minus unbiased value, whichever is trained; it is not negative, and no bit of the value depends on it."""
    x, y = 0.7 * normal(9, 3, seed=1), 0.3 + normal(11, 3, seed=2)
    classes = torch.arange(9) % 2, torch.arange(11) % 2

    def value(name: str, gaps=None) -> torch.Tensor:
        if form == "anchored":
            return mmd.anchored(x, y.mean(0), name, gaps=gaps)
        if form == "per_class":
            return mmd.per_class(x, y, kernel, 2.5, name, classes, gaps=gaps)
        return mmd.mmd2(x, y, kernel, 2.5, name, classes if form == "joint" else None, gaps=gaps)

    gaps: list[torch.Tensor] = []
    x.requires_grad_()
    plain, found = value(estimator), value(estimator, gaps)
    assert torch.equal(plain, found)
    assert torch.equal(*(torch.autograd.grad(each, x)[0] for each in (plain, found)))
    unbiased, biased = (float(value(name).detach()) for name in ESTIMATORS)
    gap = torch.stack(gaps).mean()
    assert not gap.requires_grad and float(gap) == pytest.approx(biased - unbiased, abs=1e-12) and gap > 0


@each_estimator
def test_single_rows_have_no_gap(estimator):
    """The unbiased value needs two rows, so the pair does with either estimator; a class with one row is left out."""
    x, y = normal(3, 2), normal(1, 2, seed=1)
    for rest in ((x, y, "rbf"), (x, y, "linear"), (y, x, "rbf")):
        with pytest.raises(Problem, match="expected at least 2"):
            mmd.mmd2(*rest, 1.0, estimator, gaps=[])
    with pytest.raises(Problem, match="expected at least 2"):
        mmd.anchored(y, x.mean(0), estimator, gaps=[])
    gaps: list[torch.Tensor] = []
    nothing = mmd.per_class(x, y, "rbf", 1.0, estimator, (torch.arange(3), torch.zeros(1)), gaps=gaps)
    assert float(nothing) == 0 and not gaps


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_the_signal_is_the_share_that_is_no_sampling_noise(rate):
    """Of one distribution U is 0 on average and V is not: the signal is near 0; of distant ones it is near 1."""
    memory: dict = {}
    numbers = embedding.Numbers(weighting="adaptive", decay=0.99)
    for step in range(400):
        x, y = normal(8, 3, seed=2 * step) + 6 * rate, normal(8, 3, seed=2 * step + 1)
        gaps: list[torch.Tensor] = []
        value = mmd.mmd2(x, y, "linear", gaps=gaps)
        observed(numbers, memory, value, gaps[0])
    expected = 108 * rate**2 / (108 * rate**2 + 2 * 3 / 8)  # squared shift of the means over it and both traces / 8
    assert float(balance.signal(memory["unbiased"], memory["biased"])) == pytest.approx(expected, abs=0.08)


# --- the factor ---


def observed(numbers, memory, value, gap, across=None) -> None:
    wide = functools.partial(torch.as_tensor, dtype=torch.float64)
    terms = {"mmd2": AtImages(wide(value), None), "gap": AtImages(wide(gap), None)}
    embedding.observe(SimpleNamespace(across=across), terms, numbers, memory)


def factors(rows, total: int = 400, memory=None, **numbers) -> list:
    """The weights for rows of (rms of base, rms of own, unbiased, biased), one for each iteration of 4 images."""
    numbers = embedding.Numbers(**{"warmup": 0.0, "weight": 0.7, **numbers})
    memory = {} if memory is None else memory
    found = []
    for i, (base, own, unbiased, biased) in enumerate(rows):
        trained = unbiased if numbers.estimator == "unbiased" else biased
        observed(numbers, memory, float(trained), float(biased - unbiased))
        found.append(embedding.weight(float(base), float(own), 4, numbers, Progress(4 * i, i, total), memory))
    return found


ROWS = [(1.0, 2.0, 0.5, 0.625), (4.0, 2.0, 0.25, 0.5), (0.5, 3.0, -0.125, 0.125), (0.0, 1.0, 0.0, 0.25)]


@each_estimator
@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_at_a_known_ratio_the_factor_is_exact_from_the_first_step(ratio, estimator):
    """weight * base / own * U / V: the averages start together, so that neither has a bias of the start."""
    for found in factors([(3.0, 2.0, ratio, 1.0)] * 4, estimator=estimator, weighting="adaptive"):
        assert float(found.factor) == pytest.approx(0.7 * 3 / 2 * ratio, rel=1e-12)
        assert float(found.logged["signal"]) == pytest.approx(ratio, rel=1e-12)


@each_estimator
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_ratio_is_that_of_two_exponential_averages(decay, estimator):
    """sum_j decay^(i - j) U_j over the same sum of V_j, times the factor of `balanced`."""
    found = factors(ROWS, estimator=estimator, decay=decay, weighting="adaptive")
    plain = factors(ROWS, decay=decay, weighting="balanced")
    for i, (each, other) in enumerate(zip(found, plain, strict=True)):
        above, below = (sum(decay ** (i - j) * row[side] for j, row in enumerate(ROWS[: i + 1])) for side in (2, 3))
        assert float(each.factor) == pytest.approx(float(other.factor) * min(1, max(0, above / below)), rel=1e-9)
        assert not other.logged


@pytest.mark.parametrize(
    "unbiased, biased, expected",
    [(-0.3, 0.5, 0), (0.7, 0.5, 1), (0.2, 0.5, 0.4), (0, 0, 0), (-1e-9, -1e-12, 0), (math.inf, 1.0, 1)],
)
def test_the_signal_lies_between_0_and_1(unbiased, biased, expected):
    assert float(balance.signal(unbiased, biased)) == pytest.approx(expected)


@pytest.mark.parametrize("unbiased, biased", [(math.nan, 1.0), (1.0, math.nan), (math.nan, 0.0), (math.nan, math.nan)])
def test_a_nan_stays_one(unbiased, biased):
    """A value that is no number must reach the check of the training, not a weight of 0 or 1."""
    assert math.isnan(float(balance.signal(unbiased, biased)))


def test_balanced_and_fixed_observe_nothing():
    for weighting in ("balanced", "fixed"):
        memory: dict = {}
        factors(ROWS, memory=memory, weighting=weighting)
        assert not {"unbiased", "biased"} & memory.keys()


# --- the start of a run ---


@pytest.mark.parametrize("weighting", ["balanced", "adaptive"])
def test_the_start_gives_way_linearly(weighting):
    """At the first iteration the raw factor, without warm-up; after start_images that without a start, to the bit."""
    rows = [(0.0 if i < 2 else 1.0, 2.0, 0.25, 0.5) for i in range(12)]
    with_start = factors(rows, weighting=weighting, start_images=32, start_weight=3.0, warmup=0.05)
    without = factors(rows, weighting=weighting, warmup=0.05)
    assert float(with_start[0].factor) == 3.0 and float(without[0].factor) == 0
    for i, (found, plain) in enumerate(zip(with_start, without, strict=True)):
        t = min(1.0, 4 * i / 32)
        assert float(found.factor) == pytest.approx((1 - t) * 3.0 + t * float(plain.factor), rel=1e-12)
    assert [float(each.factor) for each in with_start[8:]] == [float(each.factor) for each in without[8:]]


def test_a_start_ends_with_no_jump():
    """Between two iterations the factor changes by no more than start_weight / (iterations of the start) beside its own way."""
    rows = [(1e-3, 1.0, 0.5, 0.5)] * 20
    found = [float(each.factor) for each in factors(rows, start_images=40, start_weight=5.0)]
    assert max(abs(b - a) for a, b in itertools.pairwise(found)) < 5.0 / 10 + 1e-9


def test_weight_zero_is_off_at_the_start_too():
    assert [each.factor for each in factors(ROWS, weight=0.0, start_images=100, weighting="adaptive")] == [0] * 4


def test_fixed_has_no_start(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "Ensemble", lambda *_: None)
    numbers = embedding.Numbers(weighting="fixed", start_images=64)
    with pytest.raises(
        Problem, match="start_images is 64 .* set start_images to 0, or weighting to balanced or adaptive"
    ):
        embedding.prepare(numbers, Setting(sigma_data=0.5, seed=0, sigma_init=2.5))


# --- several processes, and a run that is continued ---


def test_processes_remember_the_same_numbers():
    """Their values differ by rounding; what they remember is equal to the bit, and that of one process to rounding."""
    values = np.array([0.3, 0.3 * (1 + 2e-16)]), np.array([0.1, 0.1 * (1 - 2e-16)])
    across = SimpleNamespace(size=2, sum=lambda own: torch.tensor([each.sum() for each in values]))
    numbers, memories = embedding.Numbers(weighting="adaptive"), ({}, {}, {})
    for rank in range(2):
        observed(numbers, memories[rank], values[0][rank], values[1][rank], across)
    observed(numbers, memories[2], 0.3, 0.1)
    assert memories[0] == memories[1]
    assert {key: float(each) for key, each in memories[0].items()} == pytest.approx(
        {key: float(each) for key, each in memories[2].items()}, rel=1e-14
    )


def test_memory_survives_a_saved_state():
    """Floats under names, so a run goes on bit for bit from its JSON."""
    whole = factors(ROWS, memory=(through := {}), weighting="adaptive")
    resumed: dict = {}
    for i in range(len(ROWS)):
        resumed = {key: float(value) for key, value in json.loads(json.dumps(resumed)).items()}
        numbers = embedding.Numbers(weighting="adaptive", warmup=0.0)
        base, own, unbiased, biased = ROWS[i]
        observed(numbers, resumed, unbiased, biased - unbiased)
        found = embedding.weight(base, own, 4, numbers, Progress(4 * i, i, 400), resumed)
        assert float(found.factor) == float(whole[i].factor)
        resumed = {key: float(value) for key, value in resumed.items()}
    assert resumed == {key: float(value) for key, value in through.items()}


@pytest.mark.parametrize("method", ["dmd", "consistency"])
def test_a_run_that_is_continued_is_the_whole_run(bench, method):
    """With a start that the stop lies in, to the bit: weights, averages, memory and the log."""
    el = {"embedding": {"weighting": "adaptive", "start_images": 16, "start_weight": 0.5, "diagnose": 1}}
    whole = loop.Loop(bench.job(method, el, steps=6, ticks=6, folder="whole"))
    whole.run()
    stopped = loop.Loop(bench.job(method, el, steps=6, ticks=6, folder="stopped"))
    for _ in range(2):
        stopped.iterate()
    stopped.save()
    again = loop.Loop(bench.job(method, el, steps=6, ticks=6, folder="stopped"))
    again.run()
    wanted, found = (
        state.pack_tensors({**each.job.nets, "average": each.average}, each.optimisers) for each in (whole, again)
    )
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    memories = [{k: float(v) for k, v in each.job.supplements[0].memory.items()} for each in (whole, again)]
    assert memories[0] == memories[1] and {"unbiased", "biased", "base", "own"} <= memories[0].keys()
    name = whole.job.supplements[0].name
    assert 0 <= again.rows[-1][f"{name}.signal"] <= 1 and again.rows[-1][f"{name}.gap"] > 0
    assert again.rows[-1] == whole.rows[-1]
