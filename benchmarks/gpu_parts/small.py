# SPDX-License-Identifier: Apache-2.0
"""Complete small trainings of a few iterations for comparisons: every method of params.yaml on 8x8 images."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import loops
import torch

from eldistill import contract, networks
from eldistill.data import dataset as data
from eldistill.errors import Stopped
from eldistill.numbers import make_numbers
from eldistill.plan import params
from eldistill.training import compute, loop, state
from eldistill.training.job import Job, Supplement, Training
from eldistill.training.optimisers import Ema, Optimiser

STEPS, BATCH, GROUP = 4, 8, 4
START = 2048  # number of images before the first step: after the warm-ups of the numbers for digits, and a multiple of the batch
NETWORKS = {
    "song": {"model_channels": 8, "attn_resolutions": [], "dropout": 0.0},
    "song with attention": {"network": "song", "model_channels": 8, "attn_resolutions": [8], "dropout": 0.0},
    "adm": {"model_channels": 64, "attn_resolutions": [8], "dropout": 0.0},
    "edm2": {"model_channels": 16, "attn_resolutions": [8], "channels_per_head": 8},
}
NOISY = (".snr", ".cosine", ".optimal")  # logged ratios of differences: not compared


@dataclass(frozen=True)
class Case:
    """A training. micro_batch: images at once, 0: all. precision: float32 or bfloat16 of products, weights being `dtype`."""

    method: str
    supplement: str = "none"
    network: str = "song"
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    precision: str = "float32"
    micro_batch: int = 0
    dropout: float = 0.0
    augment: float = 0.0
    labels: int = 0
    seed: int = 0


@dataclass
class Outcome:
    """What a training leaves: weights of all networks and of the average, float64 on the CPU; its log; images [64, 1, 8, 8]."""

    weights: dict[str, torch.Tensor]
    rows: list[dict]
    images: torch.Tensor


def perturbed(net: torch.nn.Module, seed: int, size: float = 0.1) -> torch.nn.Module:
    """size * N(0, 1) added to every weight, in place: wakes up layers that begin at zero; rounded to float32."""
    normal = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            moved = parameter.cpu().float() + size * torch.randn(parameter.shape, generator=normal)
            parameter.copy_(moved)
    return net


def teacher_of(case: Case) -> torch.nn.Module:
    """The frozen teacher of a case."""
    config = {"network": case.network, "channel_mult": [1], "num_blocks": 1, **NETWORKS[case.network],
              "img_resolution": 8, "img_channels": 1, "label_dim": case.labels}  # fmt: skip
    if case.dropout:
        config["dropout"] = case.dropout
    if case.augment:
        config["augment_dim"] = 9
    net = perturbed(networks.build(config, 0), 0)
    return net.requires_grad_(False).eval().to(case.device, case.dtype)


def reals_of(case: Case, count: int = 128) -> data.PackedImages:
    """Grey images whose class decides where a bright square lies."""
    classes = torch.arange(count) % 3
    images = 60 + 30 * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for image, label in zip(images, classes.tolist(), strict=True):
        image[:, label : label + 4, label : label + 4] += 120
    images = images.clamp(0, 255).to(torch.uint8)
    return data.PackedImages(images, classes, {"mean": 0.33, "std": 0.23}, case.labels, case.device, case.dtype)


def supplement_of(settings: params.Params, case: Case, folder: Path) -> Supplement:
    """A supplement of params.yaml at work, its ensemble made once in `folder`."""
    values = settings.section("supplement", case.supplement)
    path = loops.ensemble_of(settings, values["ensemble"], reals_of(Case(case.method)), folder)
    return loops.supplement_of(case.supplement, values, path, case.device, dtype=case.dtype, seed=case.seed)


def job_of(settings: params.Params, case: Case, folder: Path, state_folder: Path) -> Job:
    """The job of a case: the method's optimisers and averages for digits, at a rate that moves weights in a few steps."""
    values = settings.section("method", case.method, "digits")
    module = contract.load_method(values["file"])
    changes = {"augment": case.augment} if case.augment else {}
    if module.offers("group"):
        changes["group"] = GROUP
    numbers = dataclasses.replace(make_numbers(module, values), **changes)
    teacher = teacher_of(case)
    nets = {"generator": module.generator(teacher, None, numbers)}
    for place, (name, net) in enumerate(module.networks(teacher, numbers, 5).items()):
        nets[name] = perturbed(net, 10 + place)  # apart from the teacher: else the first gradient is zero
    nets = {name: net.to(case.device, case.dtype) for name, net in nets.items()}
    # eps: Adam's first steps are signs of gradients, and those near 0 would show nothing but rounding.
    changes = {"lr": 1e-3, "eps": 1e-3, "warmup_images": 0, "decay_images": 0}
    optimisers = {
        name: Optimiser.of({**values["generator" if name == "generator" else "critic"], **changes}) for name in nets
    }
    compute.set_precision(case.precision, [teacher, *nets.values()])
    total = START + STEPS * BATCH
    return Job(
        method=module, numbers=numbers, nets=nets, published="generator", reals=reals_of(case), shape=(1, 8, 8), seed=case.seed,
        training=Training(total, BATCH, Ema.of(values["ema"])),
        optimisers=optimisers, fixed={"teacher": teacher}, device=case.device, dtype=case.dtype,
        supplements=[] if case.supplement == "none" else [supplement_of(settings, case, folder)],
        micro_batch=case.micro_batch, ticks=total // BATCH, folder=state_folder, log=lambda line: None,
    )  # fmt: skip


class Stopping(loop.Loop):
    """A loop that stops after `stop` iterations; 0 means never."""

    stop = 0

    def iterate(self) -> None:
        """Make one iteration."""
        super().iterate()
        if self.iteration == self.stop:
            self.stop_reason = "the comparison asks for it"


def loop_of(settings: params.Params, case: Case, folder: Path, state_folder: Path, stop: int = 0) -> loop.Loop:
    """The loop of a case before its first step."""
    work = Stopping(job_of(settings, case, folder, state_folder))
    work.stop, work.n_images = stop, START
    return work


def trained(settings: params.Params, case: Case, folder: Path, stop: int = 0, change=None) -> Outcome:
    """Run a case to its end. stop: the number of iterations after which it is stopped and resumed from the saved state by a new loop;
    0 means never. change: a function that changes the loop before it runs."""
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        work = loop_of(settings, case, folder, place, stop)
        if change:
            change(work)
        try:
            work.run()
        except Stopped:
            work = loop_of(settings, case, folder, place)
            work.run()
        return outcome(work, case)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def outcome(work: loop.Loop, case: Case) -> Outcome:
    """The weights, log and images of a finished loop."""
    tensors = state.pack_tensors({**work.job.nets, "average": work.average}, {})
    compute.set_precision("float32", [work.average])
    z = 2.5 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = work.average(z.to(case.device, case.dtype), torch.full((64,), 2.5, device=case.device), None)
    weights = {name: each.detach().to("cpu", torch.float64, copy=True) for name, each in tensors.items()}
    return Outcome(weights, work.rows, images.to("cpu", torch.float64))


def weights_apart(mine: dict, wanted: dict) -> float:
    """The largest difference between two sets of tensors, relative to the largest entry of each tensor."""
    if mine.keys() != wanted.keys():
        raise ValueError("two runs have other networks")
    parts = [
        float((mine[name] - each).abs().max() / each.abs().max().clamp_min(1e-30))
        for name, each in wanted.items()
        if each.numel()
    ]
    return max(parts)


def terms_apart(mine: list[dict], wanted: list[dict]) -> float:
    """The largest difference between two logs, relative to the largest value of each logged number."""
    if len(mine) != len(wanted) or any(a.keys() != b.keys() for a, b in zip(mine, wanted, strict=True)):
        raise ValueError("two runs have other logs")
    names = {name for row in wanted for name in row if not name.endswith(NOISY)}
    largest = {name: max(abs(row[name]) for row in wanted if name in row) for name in names}
    return max(
        abs(row[name] - other[name]) / max(largest[name], 1e-30)
        for row, other in zip(mine, wanted, strict=True)
        for name in names & row.keys()
    )


def same_bits(mine: Outcome, wanted: Outcome) -> bool:
    """Whether weights and logs are bit-identical."""
    equal = all(torch.equal(mine.weights[name], each) for name, each in wanted.weights.items())
    return equal and mine.rows == wanted.rows
