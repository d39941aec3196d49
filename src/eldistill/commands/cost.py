# SPDX-License-Identifier: Apache-2.0
"""What a suite would take: floating-point operations, hours, memory and disk, before anything of it runs.

Operations are counted on the networks themselves, without weights, times the passes that a method names; embedding
networks, LPIPS and the discriminator of `gan` are not in it, nor are evaluations. Memory is that of weights, averages,
gradients and optimisers (activations depend on distil.micro_batch); disk is that of the generators a run leaves.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator

import torch

from eldistill import contract, networks
from eldistill.errors import Problem
from eldistill.files import canonical
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.tensors import load_tensors

TFLOPS = 60.0  # of an A100 in bf16, as DMD2's 53 hours on seven of them come to
COPIES = 10  # of the weights: teacher, fake_score, generator, its average, two times two moments, gradients


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
    """(operations of a forward pass for one image, the encoder's share of it, parameters) of a network's configuration."""
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
    """The configuration of the teacher called `name`: its own, that of its finished file, or the published one's."""
    section = plan.params.section("teacher", name)
    path = plan.params.root / plan.teacher(name).outputs[0]
    if "network" in section and not path.exists():
        data = plan.params.section("data", section["data"])
        if data["resolution"] is not None or data["source"] in ("digits", "cifar10"):
            side = data["resolution"] or {"digits": 8, "cifar10": 32}[data["source"]]
            shape = {
                "img_resolution": side,
                "img_channels": {"digits": 1, "idx": 1}.get(data["source"], 3),
                "label_dim": 0,
            }
            return {"network": "song"} | section["network"] | shape
    if path.exists():
        return load_tensors(path)[1]["config"]
    known = next((config for stem, config in PUBLISHED.items() if (section["source"] or "").startswith(stem)), None)
    if known is None:
        raise Problem(
            f"the network of the teacher {name} is not known yet; run `python -m eldistill teacher {name}` first"
        )
    return known


def of_run(plan: Plan, run: params.Run) -> dict:
    """images, flop, gigabytes of weights and of disk of one run. flop is None where the method names no passes."""
    step, values = plan.distil(run), plan.params.section("method", run.method, run.data)
    method = contract.method(values["file"])
    forward, encoder, parameters = operations(network_of(plan, plan.params.section("data", run.data)["teacher"]))
    passes = method.passes(contract.numbers(method, values), encoder) if method.offers("passes") else None
    for name in run.supplements:
        section = plan.params.section("supplement", name, run.data)
        module = contract.supplement(section["file"])
        if passes is not None and module.offers("passes"):
            passes += module.passes(contract.numbers(module, section), encoder)
    files = sum(output.endswith(".safetensors") for output in step.outputs)
    return {
        "images": values["n_images"], "flop": None if passes is None else values["n_images"] * passes * forward,
        "weights": COPIES * 4e-9 * parameters, "disk": files * 4e-9 * parameters,
    }  # fmt: skip


def table(plan: Plan, suite: str, tflops: float = TFLOPS) -> Iterator[str]:
    """Markdown: a line for each data setting and method, with the `status` of its numbers; then for each data setting, then all
    of it."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for run in plan.params.runs(suite):
        groups.setdefault((run.data, run.method), []).append(of_run(plan, run))
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
    yield _line("all", whole, tflops, "", None)


def _line(name: str, group: list[dict], tflops: float, images: str, flop: float | None, status: str = "") -> str:
    known = all(each["flop"] is not None for each in group)
    hours = _number(sum(each["flop"] for each in group) / tflops / 3.6e15) if known else "?"
    cells = (name, len(group), images, re.sub(r"e\+0?", "e", f"{flop:.1e}") if flop else "", hours,
             f"{max(each['weights'] for each in group):.1f}", _number(sum(each["disk"] for each in group)), status)  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bills_left(plan: Plan, suite: str) -> list[dict]:
    """What `of_run` says of each training that is still to be made. Raises Problem."""
    return [of_run(plan, run) for run in plan.params.runs(suite) if not plan.distil(run).fresh(plan.params.root)]


def hours_left(bills: list[dict], tflops: float = TFLOPS) -> float | None:
    """Hours of one GPU that these trainings take; None if a method does not say how many passes it makes."""
    if any(each["flop"] is None for each in bills):
        return None
    return sum(each["flop"] for each in bills) / tflops / 3.6e15


def allow(plan: Plan, suite: str, most: float) -> str:
    """The line of `left`, where the trainings take no more than `most` GPU hours. Raises Problem with the bill otherwise.

    What cannot be counted, because a network or its passes are not known yet, is not stopped.
    """
    try:
        hours = hours_left(bills_left(plan, suite))
    except Problem as problem:
        return f"suite {suite}: the cost of its trainings is not known yet: {problem}"
    if hours is not None and hours > most:
        raise Problem(
            f"{left(plan, suite)}; max_gpu_hours allows {most:g} hours: if you want them, set max_gpu_hours in params.yaml, or "
            f"ELDISTILL_MAX_GPU_HOURS={math.ceil(hours)}, and repeat the command, or choose another suite"
        )
    return left(plan, suite)


def left(plan: Plan, suite: str, tflops: float = TFLOPS) -> str:
    """One line about the trainings that are still to be made."""
    bills = bills_left(plan, suite)
    if not bills:
        return f"suite {suite}: all trainings are finished"
    hours = hours_left(bills, tflops)
    spent = "an unknown time" if hours is None else f"{_number(hours)} hours" if hours > 1 else "less than an hour"
    weights, disk = max(each["weights"] for each in bills), sum(each["disk"] for each in bills)
    return (
        f"suite {suite}: {len(bills)} trainings are left, {spent} of one GPU at {tflops:g} TFLOP/s, at most {weights:.1f} GB of "
        f"weights and optimisers at a time, {_number(disk)} GB on disk"
    )


def command(options, say) -> None:
    """`python -m eldistill cost SUITE`. Raises Problem for a suite that there is not."""
    if options.allow is not None:
        say(allow(Plan(params.load()), options.suite, options.allow))
        return
    if options.left:
        say(left(Plan(params.load()), options.suite, options.tflops))
        return
    for line in table(Plan(params.load()), options.suite, options.tflops):
        say(line)
    say(f"\nHours of one GPU at {options.tflops:g} TFLOP/s; activations come on top of the weights' memory.")
