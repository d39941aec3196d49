# SPDX-License-Identifier: Apache-2.0
"""The part `right`: every method, with and without EL, compared with the CPU in float64; repeated runs, restarts, micro-batches and
bfloat16."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import step
import torch
from torch import distributed as collectives

from eldistill.ensemble import seed as ensembles
from eldistill.supplements import embedding
from eldistill.training import processes
from eldistill.training.reduction import Reduction
from gpu_parts import small
from gpu_parts.items import Item, failure, is_memory
from gpu_parts.small import Case

EXACT = 1e-9  # largest accepted relative difference between two devices in float64, after small.STEPS steps
MOVED = 1e-6  # smallest change that the steps must make; without it an agreement would mean nothing
SHORT = ("float64", "float32", "micro-batch")  # checks of cases that vary one thing


def items(options) -> list[Item]:
    """Every method with and without EL, EL stacked, a group of one process, and cases that vary one thing. A few of each kind come
    first, in case the time ends."""
    cases = [Case(method, supplement) for method in step.METHODS for supplement in ("none", "el")]
    more = {
        "di/none, dropout": Case("di", dropout=0.2),
        "di/none, augmentation": Case("di", augment=0.5),
        "di/el, labels": Case("di", "el", labels=3),
        "di/none, attention": Case("di", network="song with attention"),
        "di/none, adm": Case("di", network="adm"),
        "di/none, edm2": Case("di", network="edm2"),
    }
    whole = [Item(f"{case.method}/{case.supplement}", lambda _, case=case: compare(case, options)) for case in cases]
    varied = [Item(name, lambda _, case=case: compare(case, options, SHORT)) for name, case in more.items()]
    others = [
        Item("EL stacked", lambda _: stacked(options)),
        Item("a group of one process", lambda _: group_of_one(options)),
    ]
    return [*whole[:2], *others, *varied[:2], *whole[2:], *varied[2:]]


def verdict(checks: dict[str, dict]) -> dict:
    """The result of an item: its checks, and the names of those that did not pass."""
    return {"checks": checks, "differs": [name for name, check in checks.items() if check.get("passes") is False]}


def compare(case: Case, options, only: tuple[str, ...] = ()) -> dict:
    """Make the checks of one case. A check that raises an exception is recorded as not passed, and the next one is made."""
    runs: dict[str, small.Outcome] = {}
    cases = {
        "cpu float64": dataclasses.replace(case, dtype=torch.float64),
        "float64": dataclasses.replace(case, dtype=torch.float64, device=options.device),
        "float32": dataclasses.replace(case, device=options.device),
        "again": dataclasses.replace(case, device=options.device),
        "micro": dataclasses.replace(case, dtype=torch.float64, device=options.device, micro_batch=small.GROUP),
        "bfloat16": dataclasses.replace(case, precision="bfloat16", device=options.device),
    }

    def run(name: str) -> small.Outcome:
        if name not in runs:
            runs[name] = small.trained(options.settings, cases[name], options.folder)
        return runs[name]

    def start() -> small.Outcome:
        with tempfile.TemporaryDirectory(dir=options.folder) as place:
            work = small.loop_of(options.settings, cases["cpu float64"], options.folder, Path(place))
            return small.outcome(work, cases["cpu float64"])

    known = {
        "float64": lambda: exact(run("float64"), run("cpu float64"), start()),
        "float32": lambda: stated(run("float32"), run("cpu float64")),
        "twice": lambda: equal(run("again"), run("float32")),
        "resumed": lambda: equal(
            small.trained(options.settings, cases["float32"], options.folder, stop=small.STEPS // 2), run("float32")
        ),
        "micro-batch": lambda: exact(run("micro"), run("float64"), start()),
        "bfloat16": lambda: rounded(run("bfloat16"), run("float32"), start()),
    }
    checks = {name: tried(check) for name, check in known.items() if not only or name in only}
    if checks.get("twice", {}).get("equal") is False and "equal" in checks["resumed"]:
        checks["resumed"]["passes"] = None  # where two runs differ a resumed one may too
    return verdict(checks)


def tried(check: Callable[[], dict]) -> dict:
    """A check, or what it raised; errors of the device itself go on, for the process to be given up."""
    try:
        return check()
    except Exception as error:
        if is_memory(error) or "CUDA error" in str(error):
            raise
        return {"passes": False, **failure(error)}


def stated(mine: small.Outcome, wanted: small.Outcome) -> dict:
    """Relative differences of weights and of logged terms, without a verdict."""
    return {
        "weights": small.weights_apart(mine.weights, wanted.weights),
        "terms": small.terms_apart(mine.rows, wanted.rows),
    }


def exact(mine: small.Outcome, wanted: small.Outcome, start: small.Outcome) -> dict:
    """The same in float64, below EXACT, after steps that moved something."""
    found = stated(mine, wanted)
    moved = small.weights_apart(wanted.weights, start.weights)
    passes = max(found["weights"], found["terms"]) < EXACT and moved > MOVED
    return {**found, "moved": moved, "limit": EXACT, "passes": bool(passes)}


def equal(mine: small.Outcome, wanted: small.Outcome) -> dict:
    """Equal to the bit, which runs on one device with equal seeds should be."""
    same = small.same_bits(mine, wanted)
    return {"equal": same, **stated(mine, wanted), "passes": same}


def rounded(mine: small.Outcome, wanted: small.Outcome, start: small.Outcome) -> dict:
    """Images of bfloat16 beside those of float32: finite, and apart by less than the steps have changed."""
    finite = all(bool(each.isfinite().all()) for each in mine.weights.values())
    apart, moved = (
        float((a - b).square().mean().sqrt()) for a, b in ((mine.images, wanted.images), (wanted.images, start.images))
    )
    share = apart / moved if moved else math.inf
    return {"finite": finite, "apart_over_moved": share, "passes": finite and 0 < share < 1}


def stacked(options) -> dict:
    """EL and its gradient with its members stacked, against a loop over them, by ensemble and precision."""
    checks = {}
    for name in ("conv4", "mix8-8"):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            checks[label] = tried(lambda name=name, dtype=dtype: _stacked(name, dtype, options))
    return verdict(checks)


def _stacked(name: str, dtype: torch.dtype, options) -> dict:
    path = options.folder / f"small-{name}.json"
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    reals = small.reals_of(Case("di"))
    if not path.exists():
        ensembles.record_ensemble(options.settings.section("ensemble", name), 0, reals, path, path.with_suffix(".npz"))
    members = ensembles.Ensemble(path, options.device, dtype).at(0)
    images = (reals.take(torch.arange(128))[0] / reals.sigma_data).to(options.device, wide)
    found = []
    for stack in (True, False):
        x = images[:64].flip(3).clone().requires_grad_()
        value = embedding.embedding_loss(members, x, images[64:], "rbf", "unbiased", stack=stack)
        found.append((float(value.detach()), torch.autograd.grad(value, x)[0].double()))
    (a, ours), (b, theirs) = found
    value, gradient = abs(a - b) / abs(b), float((ours - theirs).abs().max() / theirs.abs().max())
    limit = {torch.float64: EXACT, torch.float32: 1e-3}.get(dtype)
    passes = max(value, gradient) < limit if limit else None
    return {"value": value, "gradient": gradient, "limit": limit, "passes": passes}


def group_of_one(options) -> dict:
    """A group of one process (NCCL on a GPU, else gloo): its collectives, and a training through them, change nothing."""
    backend = "nccl" if options.device == "cuda" else "gloo"
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        collectives.init_process_group(backend, init_method=f"file://{place}/store", world_size=1, rank=0)
        try:
            across, alone = processes.ProcessGroup(), processes.SingleProcess()
            checks = {"collectives": tried(lambda: _collectives(across, alone, options.device))}
            for supplement in ("none", "el"):
                case = Case("di", supplement, device=options.device, dtype=torch.float64)
                checks[f"di/{supplement}"] = tried(lambda case=case: _through(across, case, options))
        finally:
            collectives.destroy_process_group()
    return {"backend": backend, **verdict(checks)}


def _collectives(across, alone, device: str) -> dict:
    rows = torch.arange(6.0, device=device, dtype=torch.float64).reshape(3, 2)
    pairs = [
        *((across.sum(each), alone.sum(each)) for each in (rows, rows.float(), rows.long())),
        (across.gather(rows), rows),
        (across.total(rows), rows),
        (torch.as_tensor(across.gather_of(rows.cpu().numpy())), rows.cpu()),
        (torch.as_tensor(across.sum_of(rows.cpu().numpy())), rows.cpu()),
        (torch.tensor(across.largest(3.0, -1.0)), torch.tensor([3.0, -1.0])),
        (torch.tensor(across.count(rows)), torch.tensor(3)),
    ]
    across.barrier()
    same = [torch.equal(mine, wanted) for mine, wanted in pairs]
    return {"equal": all(same), "passes": all(same)}


def _through(across, case: Case, options) -> dict:
    def change(work) -> None:
        for part in (work, work.update, work.update.meeting):
            part.across = across
        # Small buckets, so that sums begin within a backward pass.
        pairs = work.update.named.items()
        work.update.reductions = {name: Reduction(across, [each for _, each in named], 4096) for name, named in pairs}
        for each in work.job.supplements:
            each.prepared = dataclasses.replace(each.prepared, across=across)

    mine = small.trained(options.settings, case, options.folder, change=change)
    wanted = small.trained(options.settings, case, options.folder)
    found = stated(mine, wanted)
    return {**found, "limit": EXACT, "passes": max(found.values()) < EXACT}
