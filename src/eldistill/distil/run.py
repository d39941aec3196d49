# SPDX-License-Identifier: Apache-2.0
"""One run: prepares networks, data and supplements, calls the loop, writes the generator.

Everything is first written to the run's state folder; the outputs appear at the end, together.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import torch

from eldistill import contract, files
from eldistill.contract import Batch, Progress
from eldistill.data import classes
from eldistill.data import dataset as data
from eldistill.diffusion import noise
from eldistill.diffusion.noise import Draw
from eldistill.errors import Problem
from eldistill.plan import params
from eldistill.sampling import generators as sampling
from eldistill.teacher import train
from eldistill.training import compute as speed
from eldistill.training import loop

RECIPE = ("distil", 2)


def make(recipe: dict, digest: str, upstream: dict, folder: Path, site, say, whole: dict | None = None) -> loop.Loop:
    """Train the generator of a recipe; leaves its files in `folder` (the state folder).

    recipe: the `params` of a distil recipe; whole: all of it, for the description of the generator. upstream: paths of
    `images`, `teacher`, `ensembles` (one manifest for each supplement that names an ensemble, in order), `pairs` {(n,
    seed): path}, `start` (a generator, or None). site: device, micro_batch, channels_last, recompute, compile, tf32,
    deterministic, benchmark, save_seconds, max_seconds.
    Raises Problem, NonFinite, loop.Stopped.
    """
    values = recipe["method"]
    method = contract.module("methods", values["file"])
    numbers = contract.numbers(method, values)
    teacher, about = train.load(upstream["teacher"], site.device)
    if about["codec"] != recipe["data"]["codec"]:
        raise Problem(
            f"{upstream['teacher']} was trained with codec {about['codec']}, the data has {recipe['data']['codec']}; make them equal"
        )
    reals = data.reals(upstream["images"], recipe["data"]["codec"], recipe["data"]["labels"], site.device)
    if reals.label_dim != about["label_dim"] or list(reals.shape) != about["shape"]:
        raise Problem(
            f"{upstream['teacher']} makes images of shape {about['shape']} with {about['label_dim']} labels, "
            f"the data has {list(reals.shape)} and {reals.label_dim}; choose a teacher that fits"
        )
    start, before = None, 0
    if upstream.get("start"):
        begun = sampling.load_generator(upstream["start"], site.device)
        levels = [each["steps"]["1"][0] for each in (begun.about["sampler"], method.sampler(numbers))]
        if levels[0] != levels[1]:
            raise Problem(
                f"{upstream['start']} starts from noise of level {levels[0]}, this method from {levels[1]}; make them equal"
            )
        start, before = begun.network, begun.about["n_images_before"] + begun.about["n_images"]
    key = noise.stream_seed(recipe["seed"], "initialisation")
    nets = {"generator": method.generator(teacher, start, numbers), **method.networks(teacher, numbers, key)}
    if start is not None and "target" in nets:
        nets["target"].load_state_dict(nets["generator"].state_dict())  # the average of a generator starts at it
    added = supplements(recipe, upstream, reals, teacher, site, method.sampler(numbers)["steps"]["1"][0])
    for each in added:
        if hasattr(each.module, "networks"):
            each.module.networks(
                nets, each.tools, each.numbers, noise.stream_seed(recipe["seed"], f"initialisation/{each.name}")
            )
    if values["dropout"] is not None:
        every = [each for net in nets.values() for each in net.modules()]
        layers = [each for each in every if type(each).__module__.startswith("eldistill.") and hasattr(each, "dropout")]
        if values["dropout"] and not layers:
            raise Problem(
                f"params.yaml: dropout is {values['dropout']}, but the teacher's network has none; set it to 0 or null"
            )
        for layer in layers:
            layer.dropout = values["dropout"]
    # A recipe leaves float32 out.
    arithmetic = speed.arithmetic(values.get("precision", "float32"), site, [teacher, *nets.values()])
    settings = [params.freeze("Optimiser", values[name]) for name in ("generator", "critic")]
    job = loop.Job(
        method=method, numbers=numbers,
        training=SimpleNamespace(n_images=values["n_images"], batch=values["batch"], ema=params.freeze("Ema", values["ema"])),
        nets=nets, published="generator", reals=reals, shape=reals.shape, seed=recipe["seed"], folder=folder,
        optimisers={name: settings[name != "generator"] for name in nets}, fixed={"teacher": teacher},
        supplements=added, device=site.device, micro_batch=site.micro_batch,
        ticks=recipe["ticks"], save_seconds=site.save_seconds, max_seconds=site.max_seconds, say=say, arithmetic=arithmetic,
    )  # fmt: skip
    if start is None:
        _check_start(job, teacher)
    described = {"codec": about["codec"], "shape": about["shape"], "label_dim": about["label_dim"],
                 "sampler": method.sampler(numbers), "recipe": digest, "n_images_before": before}  # fmt: skip
    if reals.label_dim:  # as often as training draws them: so are they drawn in sampling
        described |= classes.describe(upstream["images"])
    total = values["n_images"]
    for percent in recipe["snapshots"]:
        count = snapshot_images(total, values["batch"], percent)
        write = _writer(folder / f"ema-{percent}.safetensors", {**described, "n_images": count})
        job.snapshots[count] = _both(job.snapshots.get(count), write)
    speed.prepare(site, [teacher], list(nets.values()))
    work = loop.Loop(job)
    first = work.across.rank == 0  # of several processes one writes
    if first and 0 in job.snapshots:
        job.snapshots[0](work.average)  # before the state of a stopped run is read: the start, every time
    work.run()
    if not first:
        return work
    # A run that was killed after its last step finds its snapshots written, or writes the last ones again.
    whole = whole or {"params": recipe}
    lineage = {
        "run": whole.get("name"), "method": (whole.get("name") or "/").split("/")[1], "file": values["file"], "n_images": total,
        "teacher_sha256": files.sha256(upstream["teacher"]),
        "upstream": whole.get("upstream"), "git_commit": _git("rev-parse", "HEAD"), "params": whole["params"],
    }  # fmt: skip
    finished = {**described, "n_images": total, "lineage": lineage}
    sampling.save_generator(folder / "generator_ema.safetensors", work.average, finished)
    if total in job.snapshots:
        job.snapshots[total](work.average)
    files.write_rows(folder / "log.csv", work.rows)
    return work


def snapshot_images(total: int, batch: int, percent: int) -> int:
    """The image count at which `percent` of a run is reached: a multiple of the batch; 0 for 0, else at least one."""
    if percent == 0:
        return 0
    return max(1, round(total * percent / 100 / batch)) * batch if percent < 100 else total


def _writer(path: Path, about: dict):
    return lambda net: sampling.save_generator(path, net, about)


def _both(first, second):
    if first is None:
        return second

    def write(net):
        first(net)
        second(net)

    return write


def upstream(recipe: dict, files: Iterable[Path]) -> dict:
    """Which of the files upstream the supplements of a run read: `ensembles`, manifests in the order of its supplements,
    and `pairs`, {(n, seed): file}."""
    files = list(files)
    manifests = {
        (path.parent.name, path.stem): path for path in files if path.suffix == ".json" and "ensembles" in path.parts
    }
    ensembles = []
    for each in recipe["supplements"].values():
        if each.get("ensemble"):
            seed = recipe["seed"] if each.get("ensemble_seed") is None else each["ensemble_seed"]
            ensembles.append(manifests[each["ensemble"], str(seed)])
    pairs = [path for path in files if path.suffix == ".npz" and path.stem.startswith("pairs-")]
    return {"ensembles": ensembles, "pairs": {tuple(map(int, path.stem.split("-")[1:])): path for path in pairs}}


def supplements(recipe: dict, upstream: dict, reals, teacher, site, sigma_init: float) -> list[loop.Supplement]:
    """The supplements of a run, prepared. upstream: as the function of that name gives it."""
    waiting, made = list(upstream["ensembles"]), []
    for name, values in recipe["supplements"].items():
        module = contract.module("supplements", values["file"])
        numbers = contract.numbers(module, values)
        setting = SimpleNamespace(
            ensemble=waiting.pop(0) if values.get("ensemble") else None, device=site.device, dtype=torch.float32,
            pairs=upstream["pairs"][values["pairs"], values.get("pairs_seed", 0)] if values.get("pairs") else None,
            sigma_data=reals.sigma_data, seed=recipe["seed"], sigma_init=sigma_init, codec=recipe["data"]["codec"],
            label_dim=reals.label_dim, micro_batch=site.micro_batch, teacher=teacher,
        )  # fmt: skip
        made.append(loop.Supplement(name, module, numbers, module.prepare(numbers, setting)))
    return made


@torch.no_grad()
def _check_start(job: loop.Job, teacher: torch.nn.Module) -> None:
    """Before any update a generator that is a copy of the teacher must give the teacher's image."""
    net = job.nets["generator"]
    mine, its = net.state_dict(), teacher.state_dict()
    if mine.keys() != its.keys() or any(not torch.equal(mine[key], its[key]) for key in its):
        return
    draw = Draw(job.seed, "check", 0, 4, job.device)
    labels = job.reals.labels(draw.integers("label", len(job.reals)))
    batch = Batch(draw, labels, job.shape, Progress(0, 0, job.training.n_images), job.reals)
    net.eval()
    image = job.method.generate(job.nets, batch, job.numbers)
    sigma = job.method.sampler(job.numbers)["steps"]["1"][0]
    teacher = copy.deepcopy(teacher)
    teacher.boundary = net.boundary  # a consistency model's scalings differ by design
    expected = teacher(sigma * draw.normal("z", *job.shape), torch.full((4,), sigma, device=job.device), labels)
    if not torch.allclose(image, expected, atol=1e-5):
        raise Problem(
            "the generator does not start at the teacher's denoised image; the method's `generate` and `sampler` disagree"
        )


def origin(digest: str) -> dict:
    """Who made something, when, by which command, from which recipe and commit."""
    return {
        "command": " ".join(["python -m eldistill", *sys.argv[1:]]),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None
        if (status := _git("status", "--porcelain", "--untracked-files=no")) is None
        else bool(status),
        "recipe": digest,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def provenance(work: loop.Loop, digest: str, device: str, flop: float | None = None) -> dict:
    """Who made it, when, from what, at what cost: the one file of a run that differs between equal runs."""
    iterations = max(1, work.iteration)
    return {
        **origin(digest),
        "device": torch.cuda.get_device_name() if "cuda" in device else platform.machine(),
        **(dataclasses.asdict(work.job.arithmetic) if work.job.arithmetic else {}),
        "iterations": work.iteration,
        "n_images": work.n_images,
        "flop_per_iteration": flop,
        "memory_gib": round(loop.memory_gib(device), 3),
        "seconds_wall": round(work.seconds["wall"], 3),
        "seconds_cpu": round(work.seconds["cpu"], 3),
        "milliseconds_per_iteration_cpu": round(1000 * work.seconds["cpu"] / iterations, 3),
        "milliseconds_per_iteration_wall": round(1000 * work.seconds["wall"] / iterations, 3),
    }


def _git(*words: str) -> str | None:
    try:
        answer = subprocess.run(["git", *words], capture_output=True, text=True, timeout=20)
        return answer.stdout.strip() if answer.returncode == 0 else None
    except (OSError, subprocess.SubprocessError):
        return None


def publish(folder: Path, outputs: tuple[str, ...], root: Path) -> None:
    """Copy finished files from the state folder to the outputs, each to a temporary name first."""
    for output in outputs:
        target = root / output
        with files.atomic(target) as temporary:
            shutil.copyfile(folder / os.path.basename(output), temporary)
