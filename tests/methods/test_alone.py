# SPDX-License-Identifier: Apache-2.0
"""A generator without a base loss: supplements alone train it, and what cannot be trained is refused in a sentence."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from eldistill import contract
from eldistill.errors import Problem
from eldistill.methods import alone
from eldistill.plan import params
from eldistill.registry import available, defines
from eldistill.training import loop
from tests.conftest import ROOT, copy_parameters

FIXED = {"weighting": "fixed", "weight": 1.0, "warmup": 0.0}


def weights(job) -> list[torch.Tensor]:
    return [each.detach().clone() for each in job.nets["generator"].parameters()]


@pytest.mark.parametrize("supplement", ["embedding", "fd", "drift"])
def test_the_gradient_is_that_of_the_supplement(bench, supplement):
    """By autograd through the generator, times the factor: nothing else is added."""
    job = bench.job("alone", {supplement: {**FIXED, "weight": 3.0}}, dtype=torch.float64)
    (each,), seen = job.supplements, {}
    module = each.module

    def terms(prepared, images, batch, numbers):
        seen["images"], seen["batch"] = images, batch
        return module.generator_terms(prepared, images, batch, numbers)

    each.module = dataclasses.replace(module, generator_terms=terms)
    before = [p.detach().clone().requires_grad_() for p in job.nets["generator"].parameters()]
    loop.Loop(job).iterate()
    pull = next(iter(module.generator_terms(each.prepared, seen["images"], seen["batch"], each.numbers).values()))
    names = [name for name, _ in job.nets["generator"].named_parameters()]

    def made(values):
        net = lambda *inputs: torch.func.functional_call(  # noqa: E731
            job.nets["generator"], dict(zip(names, values, strict=True)), inputs
        )
        return alone.generate({"generator": net}, seen["batch"], alone.Numbers())

    wanted = torch.autograd.grad((made(before) * pull.gradient).sum() * 3.0, before)
    for parameter, gradient in zip(job.nets["generator"].parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-12)


def test_the_log_has_no_base_loss(bench):
    work = loop.Loop(bench.job("alone", {"embedding": FIXED}))
    work.run()
    assert not {name for name in work.rows[-1] if name == "generator.base_rms" or name.endswith((".share", ".cosine"))}
    assert work.rows[-1]["embedding.weight"] == 1.0


def test_a_loss_with_a_pass_of_its_own_is_a_base(bench):
    """The pairs of regression train alone, and a fixed EL is added at the weights."""
    for name, chosen in (("pairs", {"regression": {}}), ("both", {"regression": {}, "embedding": FIXED})):
        job = bench.job("alone", chosen, folder=name)
        before = weights(job)
        loop.Loop(job).run()
        assert any(not torch.equal(a, b) for a, b in zip(before, weights(job), strict=True))


def test_one_pass_of_the_generator_and_nothing_else(bench):
    job = bench.job("alone", {"embedding": FIXED})
    assert list(job.nets) == ["generator"] and alone.passes(alone.Numbers(), 0.3) == 3


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({}, "no loss of its own and the run has no supplement"),
        ({"embedding": {}}, "weighting is balanced in the supplement embedding.*set it to fixed"),
        ({"embedding": FIXED, "drift": {}}, "weighting is balanced in the supplement drift"),
    ],
)
def test_what_would_train_nothing_is_refused_before_the_first_step(bench, chosen, sentence):
    with pytest.raises(Problem, match=sentence):
        loop.Loop(bench.job("alone", chosen))


@pytest.mark.parametrize(
    "arm", ["el-fixed", "fd-fixed", "drift-fixed", "pixel-mmd-fixed", "regression", "el-fixed+drift-fixed"]
)
def test_the_controls_of_params_yaml_are_runs(arm):
    assert str(params.load_params(ROOT / "params.yaml").run(f"digits/alone/{arm}/0")) == f"digits/alone/{arm}/0"


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("none", ["digits/alone/none/0", "no loss of its own", "alone/el-fixed"]),
        (
            "el",
            [
                "distil.supplements.el.weighting",
                "is balanced",
                "expected fixed",
                "el-fixed: {like: el, weighting: fixed}",
            ],
        ),
        ("el-fixed+fd", ["distil.supplements.fd.weighting", "digits/alone/el-fixed+fd/0"]),
    ],
)
def test_a_plan_refuses_what_would_train_nothing(arm, words):
    """As a run that is named, and as one of a suite, before anything is made."""
    whole = params.load_params(ROOT / "params.yaml")
    with pytest.raises(Problem) as caught:
        whole.run(f"digits/alone/{arm}/0")
    assert all(word in str(caught.value) for word in words)


def test_a_suite_is_refused_too(tmp_path):
    copy_parameters(tmp_path)
    text = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    grid = "{data: [digits], methods: [alone], supplements: [el], seeds: [0]}"
    (tmp_path / "params.yaml").write_text(
        text.replace("suites:\n", f"suites:\n  mine: [{grid}]\n", 1), encoding="utf-8"
    )
    with pytest.raises(Problem, match="el.weighting is balanced"):
        list(params.load_params(tmp_path / "params.yaml").runs("mine"))


@pytest.mark.parametrize("file", available("methods"))
def test_what_is_read_from_the_source_is_what_the_module_offers(file):
    """A method that imports its generator_terms from elsewhere has one too."""
    for name in ("generator_terms", "generate", "critic_terms", "group"):
        assert defines(f"methods/{file}", name) == hasattr(contract.load_module("methods", file), name)
