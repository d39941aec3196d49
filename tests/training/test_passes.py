# SPDX-License-Identifier: Apache-2.0
"""What an iteration costs: forward and backward passes of whole networks and of encoders, counted as they happen.

F is a forward pass of a whole network for one image, e the same of its encoder alone. A backward pass to weights and
inputs costs 2, one to the inputs only 1, and a pass with its derivative in forward mode 3: its own operations and those of the
two terms of each product's derivative (tests/commands/test_cost.py holds that against operations).
"""

from __future__ import annotations

import pytest
import torch

from eldistill import contract
from eldistill.contract import Batch, Progress
from eldistill.diffusion import draws
from eldistill.losses import tangent
from eldistill.methods import consistency
from eldistill.networks import half
from eldistill.training import loop

BATCH = 4


class Meter:
    """Counts the passes through the encoder's and the decoder's last layer of every network, in images."""

    def __init__(self, nets: dict[str, torch.nn.Module]):
        self.counts: dict[tuple, int] = {}
        for name, net in nets.items():
            for part in (
                ("enc", "dec") if hasattr(net, "network") else ()
            ):  # a layer that weights noise levels costs nothing
                last = list(getattr(net.network, part).values())[-1]
                last.register_forward_hook(
                    lambda layer, _, output, name=name, part=part: self._seen(name, part, layer, output)
                )

    def _seen(self, name: str, part: str, layer: torch.nn.Module, output: torch.Tensor) -> None:
        self._count(name, part, "forward", (tangent.PASSES if half.in_forward_mode() else 1) * len(output))
        if output.requires_grad:
            both = any(parameter.requires_grad for parameter in layer.parameters())
            cost, n = 2 if both else 1, len(output)
            output.register_hook(lambda gradient: self._count(name, part, "backward", cost * n))

    def _count(self, *key_and_n) -> None:
        *key, n = key_and_n
        self.counts[tuple(key)] = self.counts.get(tuple(key), 0) + n

    def of(self, name: str) -> tuple[float, float]:
        """(F, e) of one network for an image of a batch."""
        sums = {part: sum(n for key, n in self.counts.items() if key[:2] == (name, part)) for part in ("enc", "dec")}
        return sums["dec"] / BATCH, (sums["enc"] - sums["dec"]) / BATCH

    def total(self) -> tuple[float, float]:
        """(F, e) of all networks."""
        each = [self.of(name) for name in {key[0] for key in self.counts}]
        return sum(f for f, _ in each), sum(e for _, e in each)


def numbers_of(method: str, **changes):
    return contract.load_module("methods", method).Numbers(**changes)


def measured(bench, method: str, supplements=None, iterations: int = 1, numbers=None, **others) -> Meter:
    """A Meter after `iterations` of the loop, from the start of a run."""
    job = bench.job(method, supplements, numbers=numbers, batch=BATCH, steps=100, **others)
    meter = Meter({**job.fixed, **job.nets})
    work = loop.Loop(job)
    # The running average is a copy, hooks included: what it does would be counted, and it does nothing here.
    for _ in range(iterations):
        work.iterate()
    return meter


SCORE = {
    # method, changes, iterations: F and e of generator, teacher, fake_score, and of all
    "diff_instruct-fresh": ("diff_instruct", {"images": "fresh"}, 1, (4, 0), (1, 0), (4, 0), (9, 0)),
    "diff_instruct-reuse": ("diff_instruct", {"images": "reuse"}, 1, (3, 0), (1, 0), (4, 0), (8, 0)),
    "sid-fresh": ("sid", {"images": "fresh"}, 1, (4, 0), (2, 0), (5, 0), (11, 0)),
    "sid-reuse": ("sid", {"images": "reuse"}, 1, (3, 0), (2, 0), (5, 0), (10, 0)),
    "sid-sequential": ("sid", {"sequential": True}, 1, (4, 0), (3, 0), (5, 0), (12, 0)),
    "sida-fresh": ("sida", {"images": "fresh"}, 1, (4, 0), (2, 0), (5, 3), (11, 3)),
    "sida-reuse": ("sida", {"images": "reuse"}, 1, (3, 0), (2, 0), (5, 3), (10, 3)),
    "sida-sequential": ("sida", {"sequential": True}, 1, (4, 0), (3, 0), (5, 3), (12, 3)),
    "sida-frozen": ("sida", {"freeze_images": 1000}, 1, (1, 0), (0, 0), (3, 3), (4, 3)),
    "dmd-fresh": ("dmd", {"images": "fresh"}, 1, (4, 0), (1, 0), (4, 0), (9, 0)),
    "dmd-reuse": ("dmd", {"images": "reuse"}, 1, (3, 0), (1, 0), (4, 0), (8, 0)),
    "dmd2-fresh": ("dmd2", {"images": "fresh"}, 5, (8, 0), (1, 0), (16, 32), (25, 32)),
    "dmd2-reuse": ("dmd2", {"images": "reuse"}, 5, (7, 0), (1, 0), (16, 32), (24, 32)),
    "sim-fresh": ("sim", {"images": "fresh"}, 1, (4, 0), (2, 0), (5, 0), (11, 0)),
    "sim-reuse": ("sim", {"images": "reuse"}, 1, (3, 0), (2, 0), (5, 0), (10, 0)),
    "sim-sequential": ("sim", {"sequential": True}, 1, (4, 0), (3, 0), (5, 0), (12, 0)),
    "f-distill-fresh": ("f_divergence", {"images": "fresh"}, 5, (8, 0), (1, 0), (16, 31), (25, 31)),
    "f-distill-reuse": ("f_divergence", {"images": "reuse"}, 5, (7, 0), (1, 0), (16, 31), (24, 31)),
    "f-distill-no-gan": ("f_divergence", {"weight_generator": 0}, 5, (7, 0), (1, 0), (16, 30), (24, 30)),
    "uni-instruct": ("f_divergence", {"gradient": "expanded"}, 5, (7, 0), (2, 0), (17, 30), (26, 30)),
    "uni-instruct-1": ("f_divergence", {"gradient": "expanded", "every": 1}, 1, (3, 0), (2, 0), (5, 6), (10, 6)),
    "dmd2-no-gan": ("dmd2", {"weight_generator": 0, "weight_critic": 0}, 5, (7, 0), (1, 0), (16, 0), (24, 0)),
}


@pytest.mark.parametrize("case", SCORE)
def test_methods_with_a_fake_score(bench, case):
    """DI 9 or 8, SiD and SIM 11 or 10, SiDA 3e more, DMD 9 or 8, DMD2 24 + 32e in five iterations; sequential: one F more.
    f-distill takes the logits of the generator from the pass that denoises, 24 + 31e.

    These are the numbers of the original codes where the images are theirs: fresh for DI, SiD and SiDA, reuse for DMD
    and DMD2, whose fresh images cost one pass more. What is possible for DMD2 with less, 23 + 32e, would share a pass of
    fake_score between the two phases at one noise level for both, another method: no switch does that.
    """
    method, changes, iterations, generator, teacher, fake, total = SCORE[case]
    meter = measured(bench, method, None, iterations, numbers_of(method, **changes))
    assert meter.of("generator") == generator
    assert meter.of("teacher") == teacher
    assert meter.of("fake_score") == fake
    assert meter.total() == total


# The passes that a method names are those of most iterations, with every loss: not those before its generator's first step.
NAMED = [case for case in SCORE if case not in ("sida-frozen", "dmd2-no-gan")]


@pytest.mark.parametrize("case", NAMED)
def test_a_method_names_the_passes_that_it_takes(case):
    """What `cost` counts, with an encoder of half a network: `passes` of the module is the counted sum of an iteration, and
    `passes_of` that of generator and teacher."""
    method, changes, iterations, generator, teacher, _, (whole, encoders) = SCORE[case]
    module, numbers = contract.load_module("methods", method), numbers_of(method, **changes)
    assert iterations * module.passes(numbers, 0.5) == pytest.approx(whole + encoders / 2)
    named = {name: iterations * count for name, count in module.passes_of(numbers).items()}
    assert named == pytest.approx({"generator": generator[0], "teacher": teacher[0]})


def test_regression(bench):
    """DMD with its regression loss is 11, as published: a whole pass of the generator more."""
    meter = measured(bench, "dmd", {"regression": {}}, numbers=numbers_of("dmd"))
    assert meter.of("generator") == (6, 0) and meter.total() == (11, 0)


def test_gan(bench):
    """The supplement adds 2e to the generator's step and 6e to that of fake_score."""
    assert measured(bench, "diff_instruct", {"gan": {}}).total() == (9, 8)
    assert measured(bench, "diff_instruct", {"gan": {"weight": 0.0}}, folder="off").total() == (9, 0)


def test_embedding_costs_no_pass(bench):
    """Where a base loss makes images the Embedding Loss adds none; a consistency loss pays a pass of the generator."""
    assert measured(bench, "sid", {"embedding": {}}).total() == (11, 0)
    assert measured(bench, "consistency", folder="plain").total() == (6, 0)
    assert measured(bench, "consistency", {"embedding": {}}, folder="added").total() == (9, 0)


@pytest.mark.parametrize("supplement", ["fd", "drift"])
def test_relatives_of_the_embedding_loss_cost_no_pass_either(bench, supplement):
    """Nor does a generator without a base loss cost more than its own step, 3."""
    assert measured(bench, "sid", {supplement: {}}).total() == (11, 0)
    alone = measured(bench, "alone", {supplement: {"weighting": "fixed"}}, folder="alone")
    assert alone.total() == alone.of("generator") == (numbers_passes("alone"), 0) == (3, 0)


def numbers_passes(method: str) -> float:
    module = contract.load_module("methods", method)
    return module.passes(module.Numbers(), 0.5)


@pytest.mark.parametrize("method", ["diff_instruct", "sid", "dmd", "sida"])
def test_micro_batches_cost_one_forward_pass(bench, method):
    """The images are made once without a graph, and each micro-batch once more with one."""
    numbers = numbers_of(method, **({"group": 2} if method == "sida" else {}))
    whole = measured(bench, method, None, 1, numbers)
    parts = measured(bench, method, None, 1, numbers, micro_batch=2, folder="parts")
    assert parts.total() == (whole.total()[0] + 1, whole.total()[1])


CONSISTENCY = {
    "cd": ({}, (3, 0), (2, 0), (1, 0)),
    "cd-euler": ({"source": "euler"}, (3, 0), (1, 0), (1, 0)),
    "cd-itself": ({"target": "itself"}, (4, 0), (2, 0), (0, 0)),
    "ct": ({"levels": "growing", "source": "data", "target": "growing"}, (3, 0), (0, 0), (1, 0)),
    "ict": ({"levels": "doubling", "choice": "lognormal", "source": "data", "target": "itself"}, (4, 0), (0, 0), (0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", CONSISTENCY)
def test_consistency(bench, case):
    """CD 6, with Euler's step 5; CT and iCT 4."""
    changes, generator, teacher, target = CONSISTENCY[case]
    meter = measured(bench, "consistency", numbers=numbers_of("consistency", **changes))
    assert (meter.of("generator"), meter.of("teacher"), meter.of("target")) == (generator, teacher, target)
    wanted = {"cd": 6, "cd-euler": 5, "cd-itself": 6, "ct": 4, "ict": 4}[case]
    assert meter.total() == (wanted, 0)
    module, numbers = contract.load_module("methods", "consistency"), numbers_of("consistency", **changes)
    assert module.passes(numbers, 0.5) == wanted
    assert module.passes_of(numbers) == {"generator": generator[0], "teacher": teacher[0]}


FLOWS = {
    # method, changes, iterations: F of generator, teacher, target, and of all
    "scd": ("scm", {"adaptive": False}, 1, 6, 1, 0, 7),
    "scd-adaptive": ("scm", {}, 1, 9, 2, 0, 11),
    "scd-every-2": ("scm", {"weight_every": 2}, 2, 15, 3, 0, 18),
    "sct": ("scm", {"source": "data", "adaptive": False}, 1, 6, 0, 0, 6),
    "mean-flow": ("mean_flow", {}, 1, 6, 0, 0, 6),
    "mean-flow-cd": ("mean_flow", {"source": "teacher"}, 1, 6, 1, 0, 7),
    "tcm": ("tcm", {"first_share": 0.005}, 2, 8, 0, 1, 9),  # an iteration of each stage
}


@pytest.mark.parametrize("case", FLOWS)
def test_methods_along_a_flow(bench, case):
    """sCD 7, sCT and MeanFlow 6, and 4 or 3 more for a step of the learned weight; TCM 4, then 5. `passes` says the same."""
    method, changes, iterations, generator, teacher, target, total = FLOWS[case]
    numbers = numbers_of(method, **changes)
    meter = measured(bench, method, None, iterations, numbers)
    assert (meter.of("generator"), meter.of("teacher"), meter.of("target")) == (
        (generator, 0),
        (teacher, 0),
        (target, 0),
    )
    assert meter.total() == (total, 0)
    module = contract.load_module("methods", method)
    assert {name: iterations * count for name, count in module.passes_of(numbers).items()} == pytest.approx(
        {"generator": generator, "teacher": teacher}
    )
    passes = module.passes(numbers, 0.5)
    assert passes == (pytest.approx(5, abs=0.01) if method == "tcm" else total / iterations)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ect(bench, seed):
    """4 with every target; 3 and the share of images with r > 0 where only those are computed."""
    ect = {"levels": "continuous", "source": "data", "target": "itself", "weighting": "inverse", "P_mean": 0.5}
    whole = numbers_of("consistency", **ect, targets="all")
    draw = draws.Draw(seed, "generator", 0, BATCH)
    _, lower = consistency.LEVELS["continuous"](Batch(draw, None, (1, 8, 8), Progress(0, 0, 400)), whole)
    share = float((lower > 0).double().mean())
    assert measured(bench, "consistency", numbers=whole, seed=seed).total() == (4 if share else 3, 0)
    part = numbers_of("consistency", **ect, targets="needed")
    assert measured(bench, "consistency", numbers=part, seed=seed, folder="part").total() == (3 + share, 0)


def test_the_meter_agrees_with_flops(bench):
    """The counted units stand for arithmetic: the operations of an iteration over those of one forward pass.

    Not exactly: attention, a fifth of this small network, has no weights, so that its backward pass costs 2 always.
    """
    from torch.utils.flop_counter import FlopCounterMode

    job = bench.job("sida", batch=BATCH, steps=100)
    meter, work = Meter({**job.fixed, **job.nets}), loop.Loop(job)
    x, sigma = torch.zeros(BATCH, *job.shape), torch.ones(BATCH)
    with FlopCounterMode(display=False) as one, torch.no_grad():
        job.fixed["teacher"](x, sigma)
    with FlopCounterMode(display=False) as encoder, torch.no_grad():
        job.fixed["teacher"].encode(x, sigma)
    share = encoder.get_total_flops() / one.get_total_flops()
    meter.counts.clear()
    with FlopCounterMode(display=False) as all_of_it:
        work.iterate()
    f, e = meter.total()
    assert (f, e) == (11, 3)
    assert all_of_it.get_total_flops() / one.get_total_flops() == pytest.approx(f + e * share, rel=0.05)
