# SPDX-License-Identifier: Apache-2.0
"""Trains the generator of one run and writes it.

All files are first written to the state folder of the run. The outputs are copied from there together at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eldistill import files
from eldistill.data import classes
from eldistill.distil import prepare
from eldistill.distil.board import TENSORBOARD, Board, events_folder
from eldistill.distil.prepare import Parts, Recipe, Upstream
from eldistill.distil.provenance import git
from eldistill.sampling import generators, guidance
from eldistill.training import compute
from eldistill.training.job import Job, Training
from eldistill.training.loop import Loop
from eldistill.training.machine import Machine
from eldistill.training.optimisers import Ema, Optimiser

RECIPE = ("distil", 2)
Save = Callable[[torch.nn.Module], None]  # a function that writes a network


def train_generator(
    recipe: Recipe, digest: str, upstream: Upstream, folder: Path, machine: Machine, log: Callable[[str], None],
    whole: dict[str, Any] | None = None,
) -> Loop:  # fmt: skip
    """Train the generator of a recipe and write its files to `folder`, the state folder of the run.

    recipe: `params` of a distil recipe. whole: the complete recipe, which the generator's metadata record. upstream:
    paths of `images`, `teacher`, `guide` (the other network of a guided teacher, or None), `ensembles` (a manifest for
    each supplement that names an ensemble, in order), `pairs` {(n, seed): path} and `start` (a generator, or None).
    Raises Problem for inputs that do not fit; NonFinite, Stopped or Lost as `Loop.run` does.
    """
    parts = prepare.load_parts(recipe, upstream, machine.device)
    start, before = prepare.load_start(upstream.get("start"), parts, machine.device)
    _say_guidance(parts, recipe, log)
    job = _job(recipe, upstream, parts, start, folder, machine, log)
    if start is None:
        prepare.check_start(job, parts.network)
    described = {"codec": parts.metadata["codec"], "shape": parts.metadata["shape"], "label_dim": parts.metadata["label_dim"],
                 "sampler": parts.method.sampler(parts.numbers), "recipe": digest, "n_images_before": before}  # fmt: skip
    if parts.reals.label_dim:  # sampling draws classes with the frequencies of the training images
        described |= classes.describe_classes(upstream["images"])
    raw = job.nets["generator"] if recipe["method"].get("raw_snapshots") else None
    job.snapshots = _snapshots(recipe, folder, described, raw)
    if TENSORBOARD in machine.log:
        _watch(job, recipe, Board(events_folder((whole or {}).get("name") or "run", digest), machine.device, log))
    compute.prepare_networks(machine, guidance.networks_of(parts.teacher), list(job.nets.values()))
    work = Loop(job)
    first = work.across.rank == 0  # only the first process writes
    if first and 0 in job.snapshots:
        job.snapshots[0](work.average)  # the untrained generator, before a saved state is loaded
    work.run()
    if first:
        lineage = _lineage(whole or {"params": recipe}, recipe["method"], upstream)
        _write(work, folder, {**described, "n_images": job.training.n_images, "lineage": lineage})
    return work


def _say_guidance(parts: Parts, recipe: Recipe, log: Callable[[str], None]) -> None:
    # Guidance changes what the teacher's denoiser returns. A method that evaluates none learns of it from pairs at most.
    if (found := recipe.get("guidance")) is None:
        return
    log(f"the teacher is {guidance.describe(found)}")
    if parts.method.offers("passes_of") and not parts.method.passes_of(parts.numbers).get("teacher"):
        log(
            "warning: this method does not evaluate the teacher, so that guidance acts on its pairs alone, if it has any"
        )


def _job(
    recipe: Recipe, upstream: Upstream, parts: Parts, start: torch.nn.Module | None, folder: Path, machine: Machine,
    log: Callable[[str], None],
) -> Job:  # fmt: skip
    values, seed = recipe["method"], recipe["seed"]
    nets = prepare.make_networks(parts, start, seed, values.get("generator_network"))
    added = prepare.prepare_supplements(recipe, upstream, parts, machine)
    prepare.add_networks(nets, added, seed)
    prepare.set_dropout(nets, values["dropout"])
    # Recipes omit the default precision, float32.
    every = [*guidance.networks_of(parts.teacher), *nets.values()]
    arithmetic = compute.set_arithmetic(values.get("precision", "float32"), machine, every)
    settings = {name: Optimiser.of(values[name]) for name in ("generator", "critic")}
    return Job(
        method=parts.method, numbers=parts.numbers,
        training=Training(values["n_images"], values["batch"], Ema.of(values["ema"])),
        nets=nets, published="generator", reals=parts.reals, shape=parts.reals.shape, seed=seed, folder=folder,
        optimisers={name: settings["generator" if name == "generator" else "critic"] for name in nets},
        fixed={"teacher": parts.teacher}, supplements=added, device=machine.device, micro_batch=machine.micro_batch,
        ticks=recipe["ticks"], save_seconds=machine.save_seconds, max_seconds=machine.max_seconds, log=log,
        arithmetic=arithmetic,
    )  # fmt: skip


# --- files of a run -------------------------------------------------------------------------------------


def _write(work: Loop, folder: Path, described: dict[str, Any]) -> None:
    # A run that was killed after its last step may not have written its last snapshots, so they are written again.
    generators.save_generator(folder / "generator_ema.safetensors", work.average, described)
    if (total := work.job.training.n_images) in work.job.snapshots:
        work.job.snapshots[total](work.average)
    files.write_rows(folder / "log.csv", work.rows)


def _lineage(whole: dict[str, Any], values: dict[str, Any], upstream: Upstream) -> dict[str, Any]:
    guide = upstream.get("guide")
    return {
        "run": whole.get("name"), "method": (whole.get("name") or "/").split("/")[1], "file": values["file"],
        "n_images": values["n_images"], "teacher_sha256": files.sha256(upstream["teacher"]),
        **({"guide_sha256": files.sha256(guide)} if guide else {}),
        "upstream": whole.get("upstream"), "git_commit": git("rev-parse", "HEAD"), "params": whole["params"],
    }  # fmt: skip


def _snapshots(
    recipe: Recipe, folder: Path, described: dict[str, Any], raw: torch.nn.Module | None = None
) -> dict[int, Save]:
    """{number of images: function that writes the generator}.

    In a short run one function may write several percentages. raw: the generator without its average, which is
    written too; None if it is not wanted.
    """
    total, batch = recipe["method"]["n_images"], recipe["method"]["batch"]
    found: dict[int, Save] = {}
    for percent in recipe["snapshots"]:
        count = snapshot_images(total, batch, percent)
        write = _writer(folder / f"ema-{percent}.safetensors", {**described, "n_images": count}, raw)
        found[count] = _both(found.get(count), write)
    return found


def snapshot_images(total: int, batch: int, percent: int) -> int:
    """The number of images at `percent` of a run of `total` images: a multiple of the batch, and 0 only for 0 %."""
    if percent == 0:
        return 0
    return max(1, round(total * percent / 100 / batch)) * batch if percent < 100 else total


def _watch(job: Job, recipe: Recipe, board: Board) -> None:
    # Rows of the log and images of snapshots go to TensorBoard, too.
    total, batch = recipe["method"]["n_images"], recipe["method"]["batch"]
    job.on_row = board.row
    for percent in recipe["snapshots"]:
        count = snapshot_images(total, batch, percent)
        job.snapshots[count] = _then(job.snapshots[count], board, job.folder / f"ema-{percent}.safetensors", count)


def _then(write: Save, board: Board, path: Path, count: int) -> Save:
    def both(net: torch.nn.Module) -> None:
        write(net)
        board.snapshot(path, count)

    return both


def _writer(path: Path, metadata: dict[str, Any], raw: torch.nn.Module | None) -> Save:
    def write(net: torch.nn.Module) -> None:
        generators.save_generator(path, net, metadata, raw)

    return write


def _both(first: Save | None, second: Save) -> Save:
    if first is None:
        return second

    def write(net: torch.nn.Module) -> None:
        first(net)
        second(net)

    return write


def publish_outputs(folder: Path, outputs: tuple[str, ...], root: Path) -> None:
    """Copy the finished files from the state folder to the outputs. Each is written completely or not at all."""
    for output in outputs:
        target = root / output
        with files.atomic(target) as temporary:
            shutil.copyfile(folder / os.path.basename(output), temporary)
