# SPDX-License-Identifier: Apache-2.0
"""Precision of a run: float32 is the reference, bfloat16 stays near it, and only networks compute in it."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from eldistill.errors import Problem
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.training import compute as speed
from eldistill.training import loop
from tests import conftest
from tests.conftest import ROOT

SHIPPED = conftest.shipped()
STEPS, BATCH = 50, 16


def trained(bench, method: str, precision: str, folder: str, supplements=None) -> tuple[torch.Tensor, loop.Loop]:
    """Images of the running average after fifty steps, and the loop."""
    job = bench.job(method, supplements, folder=folder, batch=BATCH, steps=STEPS)
    speed.set_precision(precision, [*job.fixed.values(), *job.nets.values()])
    work = loop.Loop(job)
    work.run()
    speed.set_precision("float32", [work.average])
    z = torch.randn(64, *job.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return work.average(2.5 * z, torch.full((64,), 2.5)), work


@pytest.mark.parametrize(
    ("method", "supplements"), [("diff_instruct", {"embedding": {}}), ("sid", None), ("consistency", None)]
)
def test_bfloat16_stays_near_float32(bench, method, supplements):
    """After fifty steps the images of the two differ by a small part of what the steps have changed, and not by nothing."""
    exact, work = trained(bench, method, "float32", "exact", supplements)
    rounded, other = trained(bench, method, "bfloat16", "rounded", supplements)
    z = torch.randn(64, *work.job.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        start = bench.job(method, supplements, folder="start", batch=BATCH, steps=STEPS).nets["generator"].eval()
        before = start(2.5 * z, torch.full((64,), 2.5))
    moved, apart = ((exact - each).square().mean().sqrt() for each in (before, rounded))
    assert 0 < apart < 0.3 * moved
    for net in other.job.nets.values():
        assert {p.dtype for p in net.parameters()} == {torch.float32}
    always = lambda row: {name for name in row if not name.endswith(".optimal")}  # logged where the gradients agree  # noqa: E731
    assert [always(row) for row in work.rows] == [always(row) for row in other.rows]


def test_networks_alone_compute_in_it(bench):
    """The network's convolutions see bfloat16, the denoised image and its gradient are float32."""
    job = bench.job("diff_instruct", batch=4, steps=1)
    net, seen = job.nets["generator"], []
    speed.set_precision("bfloat16", [net])
    convolution = torch.nn.functional.conv2d

    def watching(*args, **named):
        found = convolution(*args, **named)
        seen.append(found.dtype)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "conv2d", watching)
        x = torch.randn(4, *job.shape, requires_grad=True)
        image = net(x, torch.full((4,), 2.5))
    assert set(seen) == {torch.bfloat16} and image.dtype == torch.float32
    assert torch.autograd.grad(image.sum(), x)[0].dtype == torch.float32


def plan(**changes) -> Plan:
    values = copy.deepcopy(SHIPPED)
    values["distil"]["methods"]["di"] |= changes
    return Plan(params.from_values(values, ROOT))


def test_it_is_part_of_a_recipe_unless_it_is_the_reference():
    text = lambda here: here.distil(here.params.run("digits/di/el/0")).recipe  # noqa: E731
    assert (
        text(plan()) == text(plan(precision="float32"))
        and "precision" not in json.loads(text(plan()))["params"]["method"]
    )
    assert json.loads(text(plan(precision="bfloat16")))["params"]["method"]["precision"] == "bfloat16"
    with pytest.raises(
        Problem, match=r"di.precision is 'fp16'; did you mean \w+\? Expected one of auto, float32, bfloat16"
    ):
        plan(precision="fp16")


def test_tf32_is_switched_on_for_its_run_alone():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        speed.set_precision("tf32", [])
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
        from eldistill.steps import work

        work.set_threads(torch.get_num_threads(), "distil")  # what every step begins with
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
