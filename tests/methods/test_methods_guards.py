# SPDX-License-Identifier: Apache-2.0
"""A NaN in any network, image or pair ends a run of any method: none is masked, dropped or replaced on the way."""

from __future__ import annotations

import math

import pytest
import torch

from eldistill import contract
from eldistill.errors import NonFinite, Problem
from eldistill.losses import adversarial, score
from eldistill.methods import consistency, sida
from eldistill.supplements import regression
from eldistill.training import loop
from eldistill.training.job import Job
from tests.toys import batch_of

ECT = {"levels": "continuous", "source": "data", "target": "itself", "weighting": "inverse", "P_mean": 1.0}
# A name, the method, changes of its numbers, and the networks and sources that it reads.
RUNS = {
    "diff_instruct": ("diff_instruct", {}, ["generator", "teacher", "fake_score"]),
    "diff_instruct-reuse": ("diff_instruct", {"images": "reuse"}, ["generator", "teacher", "fake_score"]),
    "dmd": ("dmd", {}, ["generator", "teacher", "fake_score"]),
    "dmd2": ("dmd2", {}, ["generator", "teacher", "fake_score", "fake_score/head", "reals"]),
    "sid": ("sid", {}, ["generator", "teacher", "fake_score"]),
    "sid-sequential": ("sid", {"sequential": True}, ["generator", "teacher", "fake_score"]),
    "sida": ("sida", {}, ["generator", "teacher", "fake_score", "reals"]),
    "sida-sequential": ("sida", {"sequential": True}, ["generator", "teacher", "fake_score", "reals"]),
    "sim": ("sim", {}, ["generator", "teacher", "fake_score"]),
    "f-distill": ("f_divergence", {}, ["generator", "teacher", "fake_score", "fake_score/head", "reals"]),
    "uni-instruct": ("f_divergence", {"gradient": "expanded", "every": 1},
                     ["generator", "teacher", "fake_score", "fake_score/head", "reals"]),
    "scd": ("scm", {}, ["generator", "teacher", "reals"]),
    "sct": ("scm", {"source": "data", "adaptive": False}, ["generator", "reals"]),
    "mean-flow": ("mean_flow", {}, ["generator", "reals"]),
    "mean-flow-cd": ("mean_flow", {"source": "teacher"}, ["generator", "teacher", "reals"]),
    "tcm": ("tcm", {}, ["generator", "reals"]),
    "cd": ("consistency", {}, ["generator", "teacher", "target", "reals"]),
    "cd-euler": ("consistency", {"source": "euler", "distance": "l1"}, ["generator", "teacher", "target", "reals"]),
    "ct": ("consistency", {"levels": "growing", "source": "data", "target": "growing", "distance": "l2"},
           ["generator", "target", "reals"]),
    "ect": ("consistency", ECT, ["generator", "reals"]),
    "ect-all": ("consistency", {**ECT, "targets": "all"}, ["generator", "reals"]),
}  # fmt: skip
CASES = [(run, place) for run, (_, _, places) in RUNS.items() for place in places]


def poison(job: Job, place: str, value: float) -> None:
    """One value of one image, wherever the place gives images, features or logits."""

    def sick(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[-1].view(-1)[0] = value
        return tensor

    if place == "reals":
        take = job.reals.take
        job.reals.take = lambda indices: (sick(take(indices)[0]), take(indices)[1])
        return
    name, _, part = place.partition("/")
    net = {**job.fixed, **job.nets}[name]
    layer = net.head if part else list(net.network.dec.values())[-1]
    layer.register_forward_hook(lambda _, inputs, output: sick(output))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("run", "place"), CASES)
def test_no_method_hides_a_value_that_is_not_finite(bench, run, place, value):
    """The very first iteration ends, and says so; without the poison it does not."""
    method, changes, _ = RUNS[run]
    numbers = contract.load_module("methods", method).Numbers(**changes)
    loop.Loop(bench.job(method, numbers=numbers, folder="healthy")).iterate()
    job = bench.job(method, numbers=numbers)
    poison(job, place, value)
    with pytest.raises(NonFinite, match="is not finite"):
        loop.Loop(job).iterate()


@pytest.mark.parametrize(("supplement", "place"), [
    ("gan", "fake_score/head"), ("gan", "reals"), ("regression", "generator"), ("regression", "pairs"),
])  # fmt: skip
def test_no_supplement_hides_a_nan(bench, supplement, place):
    """The head's logits, the real images and the pairs are read, and nothing is dropped."""
    job = bench.job("diff_instruct", {supplement: {}})
    if place == "pairs":
        job.supplements[0].prepared.images[:] = math.nan
    else:
        poison(job, place, math.nan)
    with pytest.raises(NonFinite, match="is not finite"):
        loop.Loop(job).iterate()


def images(n: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(4)]


ONE = torch.ones(3).double()
NOTHING = torch.zeros(3, 1, 1, 1).double()
FORMULAS = {
    "kl_term": lambda a, b, x, y: contract.load_module("methods", "diff_instruct").kl_term(a - b, x).value,
    "matching_term": lambda a, b, x, y: score.matching_term(a, b, x).value,
    "matching_term: gradient": lambda a, b, x, y: score.matching_term(a, b, x).gradient,
    "identity_loss": lambda a, b, x, y: score.identity_loss(a, b, x, 1.2)[0],
    "objective": lambda a, b, x, y: sida.objective(a, b, x, y, NOTHING, sida.Numbers(), False)[0],
    "objective: solo": lambda a, b, x, y: sida.objective(a, b, x, y, NOTHING, sida.Numbers(), True)[0],
    "discriminator_loss": lambda a, b, x, y: sida.discriminator_loss(a, b, ONE + 0 * x.sum(dim=(1, 2, 3)), 2),
    "critic_loss": lambda a, b, x, y: adversarial.critic_loss(a, b),
    "generator_loss": lambda a, b, x, y: adversarial.generator_loss(a),
    "channel_mean": lambda a, b, x, y: adversarial.channel_mean(a),
    **{
        f"distance: {kind}": lambda a, b, x, y, kind=kind: consistency.distance(a, b, consistency.Numbers(distance=kind))
        for kind in ("l1", "l2", "huber")
    },
    "heun_step": lambda a, b, x, y: consistency.heun_step(lambda *_: a, b, 2 * ONE, ONE, None),
    "easy_lower": lambda a, b, x, y: consistency.easy_lower(a.abs(), 2.0, 0, 8.0, 1.0),
}  # fmt: skip
READS = {
    "kl_term": 3, "matching_term": 3, "matching_term: gradient": 3, "identity_loss": 3, "objective": 4,
    "objective: solo": 3, "discriminator_loss": 3, "critic_loss": 2, "heun_step": 2, "distance: l1": 2, "distance: l2": 2,
    "distance: huber": 2,
}  # fmt: skip


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_formula_hides_a_nan(formula):
    """A NaN in any argument that a formula reads is in what it returns."""
    compute = FORMULAS[formula]
    assert compute(*images()).isfinite().all()
    for index in range(READS.get(formula, 1)):
        given = images()
        given[index][1, 0, 1, 0] = math.nan
        assert compute(*given).isnan().any(), f"argument {index}"


@pytest.mark.parametrize("targets", ["needed", "all"])
def test_a_target_that_is_not_needed_is_not_read(targets):
    """Where r = 0 the target is the data, so that only a NaN of the others counts."""
    numbers = consistency.Numbers(**{**ECT, "distance": "l2"}, targets=targets)
    x, epsilon, _, _ = images()
    level = torch.tensor([-2.0, 0.5, 1.0]).double()  # t of 0.05, 4.5, 7.4: r is 0 for the first alone

    def answers(sick: int):
        def net(noisy, sigma, labels):
            if not torch.is_grad_enabled():  # the pass of the target
                rows = noisy.clone()
                rows[sick if len(rows) == 3 else sick - 1] = math.nan
                return rows
            return noisy

        net.sigma_data = 0.5
        return net

    batch = batch_of((1, 2, 2), {"sigma": level, "epsilon": epsilon}, reals=x)
    _, lower = consistency.LEVELS["continuous"](batch, numbers)
    assert (lower == 0).tolist() == [True, False, False]
    for sick in (1, 2):
        term = consistency.generator_terms({"generator": answers(sick), "teacher": None}, batch, None, numbers)
        assert term["consistency"].isnan()
    if targets == "all":
        term = consistency.generator_terms({"generator": answers(0), "teacher": None}, batch, None, numbers)
        assert term["consistency"].isfinite()


def test_regression_reads_every_chosen_pair(bench):
    """A NaN in a pair that is not chosen does not count; in one that is, it does."""
    each = bench.supplement("regression", dtype=torch.float64)
    nets = {"generator": lambda x, sigma, labels: x}
    batch = batch_of((1, 8, 8), {"pair": torch.tensor([1, 4])})
    for index, counts in ((0, False), (4, True)):
        each.prepared.images[index, 0, 3, 3] = math.nan
        value = regression.direct_terms(each.prepared, nets, batch, each.numbers)["huber"]
        assert bool(value.isnan()) == counts


def test_numbers_of_consistency_models_that_do_not_go_together():
    """Weights of LPIPS that nothing would use, and few-step levels that do not start where the generator does."""
    with pytest.raises(Problem, match="lpips names a file of weights, but distance is huber; set distance to lpips"):
        consistency.Numbers(lpips="vgg.safetensors")
    with pytest.raises(Problem, match=r"sigmas_2 starts at 80\.0 and sigma_max is 10"):
        consistency.Numbers(sigma_max=10)
    consistency.Numbers(sigma_max=10, sigmas_2=(10, 0.8), sigmas_4=(10, 3, 0.8, 0.2))


@pytest.mark.parametrize("q", [2.0, 4.0, 256.0])
def test_stages_of_ect_end_where_float32_does(bench, q):
    """After any number of stages t - r is still told from rounding: the loss and its weight 1 / (t - r) are finite."""
    numbers = consistency.Numbers(**ECT, q=q, stage_images=1)
    batch = batch_of((1, 2, 2), {"sigma": torch.tensor([-2.0, 0.5, 1.0])}, dtype=torch.float32, n_images=10**6)
    t, r = consistency.LEVELS["continuous"](batch, numbers)
    assert (t - r > 1e-6 * t).all()
