# SPDX-License-Identifier: Apache-2.0
"""The command `cost`: floating-point operations, GPU hours, memory and disk that a suite needs, before it runs.

The trainings of generators are counted, and of teachers that are trained here. Operations are counted on the networks
themselves, without weights, times the passes that a method names; embedding
networks, LPIPS, the discriminator of `gan` and evaluations are not counted. Memory is that of weights, averages,
gradients and optimisers (activations depend on distil.micro_batch); disk is that of the generators a run leaves.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Collection, Iterator
from typing import Any

import torch

from eldistill import contract, networks
from eldistill.distil import student
from eldistill.errors import Problem
from eldistill.files import canonical
from eldistill.numbers import make_numbers
from eldistill.plan import guidance, params, sizes
from eldistill.plan.identity import Identities
from eldistill.plan.plan import Plan
from eldistill.sampling.guidance import describe
from eldistill.tensors import load_tensors

TFLOPS = 60.0  # speed of an A100 in bfloat16, which follows from DMD2's 53 hours on seven of them
TEACHER_COPIES = 5  # of the weights of a teacher in training: itself, its average, two moments, gradients
TEACHER_PASSES = 3  # of a training of a denoiser, in forward passes: one forward and one backward, which costs two
COPIES = 10  # of the weights: teacher, fake_score, generator, its average, two times two moments, gradients
COPIES_OF_GENERATOR = 5  # of these: itself, its average, two moments, gradients


_EDM = {"network": "song", "img_channels": 3, "model_channels": 128}
_EDM2 = {"network": "edm2", "img_resolution": 64, "label_dim": 1000}
PUBLISHED = {  # rows of data/sources.csv by the beginning of their names, and what is in them
    "edm-cifar10-32x32-cond": _EDM | {"img_resolution": 32, "label_dim": 10, "channel_mult": [2, 2, 2]},
    "edm-cifar10-32x32-uncond": _EDM | {"img_resolution": 32, "label_dim": 0, "channel_mult": [2, 2, 2]},
    "edm-ffhq-64x64": _EDM | {"img_resolution": 64, "label_dim": 0, "channel_mult": [1, 2, 2, 2]},
    "edm-afhqv2-64x64": _EDM | {"img_resolution": 64, "label_dim": 0, "channel_mult": [1, 2, 2, 2]},
    "edm-imagenet-64x64": {"network": "adm", "img_resolution": 64, "img_channels": 3, "label_dim": 1000},
    **{f"edm2-img{size}-{name}-": _EDM2 | {"img_channels": channels, "model_channels": width}
       for size, channels in (("512", 4), ("64", 3))
       for name, width in (("xs", 128), ("s", 192), ("m", 256), ("l", 320), ("xl", 384), ("xxl", 448))},
}  # fmt: skip


def operations(config: dict) -> tuple[float, float, int]:
    """(floating-point operations of a forward pass for one image, the encoder's share of them in 0 … 1, number of parameters) of a
    network, from its configuration."""
    return _operations(canonical(config))


@functools.cache
def _operations(config: str) -> tuple[float, float, int]:
    from torch.utils.flop_counter import FlopCounterMode

    net = networks.outline(json.loads(config)).eval()
    found = []
    for call in (net, net.encode):
        with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
            call(torch.empty(1, net.img_channels, net.img_resolution, net.img_resolution), torch.ones(1))
        found.append(counter.get_total_flops())
    return float(found[0]), found[1] / found[0], sum(each.numel() for each in net.parameters())


def network_of(plan: Plan, name: str) -> dict:
    """The configuration of the teacher's network, from params.yaml, its finished file or PUBLISHED; of a guided teacher that of the
    network that is guided. Raises Problem if unknown."""
    name = guidance.main_name(plan.params, name)
    section = plan.params.section("teacher", name)
    path = plan.params.root / plan.teacher(name).outputs[0]
    if "network" in section and not path.exists():
        data = plan.params.section("data", section["data"])
        if (side := sizes.side_of(data)) is not None:
            shape = {"img_resolution": side, "img_channels": sizes.channels_of(data) or 3, "label_dim": 0}
            return {"network": "song"} | section["network"] | shape
    if path.exists():
        return load_tensors(path)[1]["config"]
    known = next((config for stem, config in PUBLISHED.items() if (section["source"] or "").startswith(stem)), None)
    if known is None:
        raise Problem(
            f"the network of the teacher {name} is not known yet; run `python -m eldistill teacher {name}` first"
        )
    return known


def cost_of_run(plan: Plan, run: params.Run) -> dict:
    """{images, flop, weights, disk} of one run: images in training, floating-point operations, GB of memory, GB on the disk.

    flop is None if the method declares no passes, or not those of a network that has another size or is guided. Raises Problem if
    the teacher's network is not known yet."""
    step, values = plan.distil(run), plan.params.section("method", run.method, run.data)
    method, teacher = contract.load_method(values["file"]), plan.params.section("data", run.data)["teacher"]
    config, changes = network_of(plan, teacher), values["generator_network"]
    forward, encoder, parameters = operations(config)
    other, _, own = operations(student.config_of(config, changes)) if changes else (forward, encoder, parameters)
    guide, _, guides = _guide(plan, teacher)
    parts = [(method, values)]
    for name in run.supplements:
        section = plan.params.section("supplement", name, run.data)
        module = contract.load_supplement(section["file"])
        parts += [(module, section)] if module.offers("passes") else []
    flop = None
    if _counts(parts, guide or changes):
        flop = values["n_images"] * sum(_passes(*part, encoder, forward, other - forward, guide) for part in parts)
    files = sum(output.endswith(".safetensors") for output in step.outputs)
    files += (files - 1) * values.get("raw_snapshots", False)  # snapshots have both networks then
    weights = (COPIES - COPIES_OF_GENERATOR) * parameters + COPIES_OF_GENERATOR * own + guides
    return {"images": values["n_images"], "flop": flop, "weights": 4e-9 * weights, "disk": files * 4e-9 * own}


def _guide(plan: Plan, teacher: str) -> tuple[float, float, int]:
    # What `operations` says of the second pass of a guided teacher; its parameters are none if the network is the same.
    found = guidance.guidance_of(plan.params, teacher)
    if found is None:
        return 0.0, 0.0, 0
    if found["guide"] is None:
        return (*operations(network_of(plan, teacher))[:2], 0)
    return operations(network_of(plan, found["guide"]))


def _counts(parts: list, apart: Any) -> bool:
    # Whether a method and supplements declare their passes; apart: also those of the networks whose operations differ.
    method, _ = parts[0]
    return bool(method.offers("passes") and (not apart or method.offers("passes_of")))


def _passes(module: Any, section: dict, encoder: float, forward: float, more: float, guide: float) -> float:
    # Operations for each image. more: those of a pass of the generator beyond one of the teacher; guide: of the teacher's second pass.
    numbers = make_numbers(module, section)
    found: float = module.passes(numbers, encoder) * forward
    if more or guide:
        of = module.passes_of(numbers)
        found += of.get("generator", 0) * more + of.get("teacher", 0) * guide
    return found


def trainings(plan: Plan, suite: str) -> list[params.Run]:
    """The runs of a suite in their order, and those that they start from (`start_from`), which are trained for them."""
    steps = plan.suite(suite, kept=True).values()
    above = (plan.params.run(step.name) for step in steps if step.kind == "run")
    return list(dict.fromkeys([*plan.params.runs(suite), *above]))


def trained_here(plan: Plan, suite: str) -> list[str]:
    """The names of a suite's teachers that are trained here, not converted from a file."""
    names = dict.fromkeys(plan.params.section("data", run.data)["teacher"] for run in plan.params.runs(suite))
    parts = dict.fromkeys(part for name in names for part in guidance.parts_of(plan.params, name))
    return [name for name in parts if plan.teacher(name).kind == "teacher"]


def cost_of_teacher(plan: Plan, name: str) -> dict:
    """{images, flop, weights, disk, teacher} of the training of a teacher, as `cost_of_run` has them. Raises Problem."""
    forward, _, parameters = operations(network_of(plan, name))
    images = plan.params.section("teacher", name)["n_images"]
    return {
        "images": images, "flop": images * TEACHER_PASSES * forward, "weights": TEACHER_COPIES * 4e-9 * parameters,
        "disk": 4e-9 * parameters, "teacher": True,
    }  # fmt: skip


def cost_table(plan: Plan, suite: str, tflops: float = TFLOPS) -> Iterator[str]:
    """Lines of a Markdown table: one for each data setting and method, one for each data setting, and one for the suite.

    tflops: speed of the GPU in TFLOP/s."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for run in trainings(plan, suite):
        groups.setdefault((run.data, run.method), []).append(cost_of_run(plan, run))
    yield "| data, method | runs | images a run | FLOP a run | GPU hours | GB of weights | GB on disk | numbers |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    whole = [each for group in groups.values() for each in group]
    for (data, method), group in groups.items():
        status = plan.params.status("method", method, data) or ""
        yield _line(f"{data}, {method}", group, tflops, f"{group[0]['images'] / 1e6:.4g} M", group[0]["flop"], status)
    for data in dict.fromkeys(data for data, _ in groups):
        yield _line(
            f"{data}, all",
            [each for key, group in groups.items() if key[0] == data for each in group],
            tflops,
            "",
            None,
        )
    for name in trained_here(plan, suite):
        whole.append(bill := cost_of_teacher(plan, name))
        yield _line(f"teacher {name}", [bill], tflops, f"{bill['images'] / 1e6:.4g} M", bill["flop"])
    yield _line("all", whole, tflops, "", None)


def guided_teachers(plan: Plan, suite: str) -> list[str]:
    """A sentence about each guided teacher of a suite."""
    names = dict.fromkeys(plan.params.section("data", run.data)["teacher"] for run in plan.params.runs(suite))
    found = {name: guidance.guidance_of(plan.params, name) for name in names}
    return [
        f"the teacher {name} is {describe(each)}: each of its calls takes two passes, which are counted"
        for name, each in found.items()
        if each
    ]


def _line(name: str, group: list[dict], tflops: float, images: str, flop: float | None, status: str = "") -> str:
    known = all(each["flop"] is not None for each in group)
    hours = _number(sum(each["flop"] for each in group) / tflops / 3.6e15) if known else "?"
    cells = (name, len(group), images, re.sub(r"e\+0?", "e", f"{flop:.1e}") if flop else "", hours,
             f"{max(each['weights'] for each in group):.1f}", _number(sum(each["disk"] for each in group)), status)  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bills_left(plan: Plan, suite: str, only: Collection[str] | None = None) -> list[dict]:
    """The result of `cost_of_run` or `cost_of_teacher` for each unfinished training of a suite. Raises Problem.

    only: the trainings that count, such as "distil/digits/di/el/0" and "teacher/digits"; None: all."""
    root = plan.params.root
    asked = plan.suite(suite)  # without runs whose results are kept, and without teachers that only those need
    names = [name for name in trained_here(plan, suite) if ("teacher", name) in asked]
    teachers = [name for name in names if not plan.teacher(name).fresh(root)]
    runs = [run for run in trainings(plan, suite) if ("distil", str(run)) in asked and not plan.distil(run).fresh(root)]
    if only is not None:
        teachers = [name for name in teachers if f"teacher/{name}" in only]
        runs = [run for run in runs if f"distil/{run}" in only]
    return [*(cost_of_teacher(plan, name) for name in teachers), *(cost_of_run(plan, run) for run in runs)]


def hours_left(bills: list[dict], tflops: float = TFLOPS) -> float | None:
    """Hours of one GPU for these trainings; None if a method declares no passes. tflops: speed of the GPU in TFLOP/s."""
    if any(each["flop"] is None for each in bills):
        return None
    return sum(each["flop"] for each in bills) / tflops / 3.6e15


def check_allowed(plan: Plan, suite: str, most: float, only: Collection[str] | None = None) -> str:
    """The line of `describe_left`, if the unfinished trainings take at most `most` GPU hours; otherwise Problem is raised.

    only: as `bills_left` has it. A suite whose cost is not known yet, because a network or its passes are unknown, is allowed.
    """
    try:
        hours = hours_left(bills_left(plan, suite, only))
    except Problem as problem:
        return f"suite {suite}: the cost of its trainings is not known yet: {problem}"
    if hours is not None and hours > most:
        raise Problem(
            f"{describe_left(plan, suite, only=only)}; max_gpu_hours allows {most:g} hours: if you want them, set max_gpu_hours in "
            f"params.yaml, or ELDISTILL_MAX_GPU_HOURS={math.ceil(hours)}, and repeat the command, or choose another suite"
        )
    return describe_left(plan, suite, only=only)


def describe_left(plan: Plan, suite: str, tflops: float = TFLOPS, only: Collection[str] | None = None) -> str:
    """One line about the unfinished trainings of a suite: their number, GPU hours, memory and disk. Raises Problem.

    only: as `bills_left` has it."""
    bills = bills_left(plan, suite, only)
    if not bills:
        return f"suite {suite}: all trainings are finished"
    hours = hours_left(bills, tflops)
    spent = "an unknown time" if hours is None else f"{_number(hours)} hours" if hours > 1 else "less than an hour"
    weights, disk = max(each["weights"] for each in bills), sum(each["disk"] for each in bills)
    teachers = sum(each.get("teacher", False) for each in bills)
    of_teachers = f" ({teachers} of {'a teacher' if teachers == 1 else 'teachers'})" if teachers else ""
    those = "trainings" if only is None else "trainings of this command"
    return (
        f"suite {suite}: {len(bills)} {those} are left{of_teachers}, {spent} of one GPU at {tflops:g} TFLOP/s, "
        f"at most {weights:.1f} GB of weights and optimisers at a time, {_number(disk)} GB on disk"
    )


def command(options, say) -> None:
    """`python -m eldistill cost SUITE`. Raises Problem for a suite that there is not."""
    if options.allow is not None:
        say(check_allowed(Plan(params.load_params()), options.suite, options.allow, options.only))
        return
    if options.left:
        plan = Plan(params.load_params(), Identities(measured=True, say=say))
        say(describe_left(plan, options.suite, options.tflops))
        return
    plan = Plan(params.load_params())
    for line in cost_table(plan, options.suite, options.tflops):
        say(line)
    say(f"\nHours of one GPU at {options.tflops:g} TFLOP/s; activations come on top of the weights' memory.")
    for line in guided_teachers(plan, options.suite):
        say(line)
