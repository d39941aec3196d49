# SPDX-License-Identifier: Apache-2.0
"""The Embedding Loss (EL; Ying et al. 2026, arXiv 2604.22379): MMD to real images in random feature spaces.

    EL(x) = 1/K sum_k MMD^2( phi_k(T x), phi_k(T x_real) ),    phi_k = f_k(. / sigma_data) / s_k

f_k: frozen random networks; s_k: root of the trace of their covariance over real images, so that a member's value
is a squared shift in units of the real spread; T: one augmentation a step, shared by both sides. The paper leaves
members, kernel, estimator, augmentation and weight open: ours are stated beside each number.

`pixel-mmd` is this file with the identity as its only member.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from eldistill.contract import AtImages, Batch, Later, Memory, Progress, Setting, Weight
from eldistill.diffusion import augment
from eldistill.diffusion.draws import sent
from eldistill.ensemble.reading import EnsembleNumbers, read_members, spread_warning, stacking, trace_ratio
from eldistill.ensemble.seed import Ensemble
from eldistill.errors import Problem
from eldistill.external.arrays import read_pairs
from eldistill.losses import balance, mixing, mmd
from eldistill.losses.balance import WeightNumbers
from eldistill.numbers import number
from eldistill.training import processes

RECIPE = ("supplements/embedding", 2)


@dataclass(frozen=True)
class Numbers(EnsembleNumbers, WeightNumbers):
    """EL's numbers."""

    kernel: str = number(
        "rbf",
        "rbf: a mixture of five widths around the median squared distance; linear: the means only; cubic: (x.y + 1)^3; energy: "
        "minus the distance; laplace: exp(-distance / R), a mixture of four R around the median distance",
        choices=("rbf", "linear", "cubic", "energy", "laplace"),
    )
    estimator: str = number(
        "unbiased",
        "unbiased: the U-statistic; biased: the V-statistic, which rewards a smaller spread",
        choices=("unbiased", "biased"),
    )
    labels: str = number(
        "marginal",
        "marginal: images alone; joint: images with their labels, by a product kernel; per_class: within each class; "
        "both: half marginal, half joint. All but the first need labels: true in the data setting",
        choices=("marginal", "joint", "per_class", "both"), neutral=True,
    )  # fmt: skip
    real_ratio: int = number(
        1, "number of real images for each generated one; new ones are drawn in each step", low=1, high=64
    )
    anchored: bool = number(
        False, "compare with all train images at once (linear kernel: their mean features; others: landmarks), so that a step needs "
        "no real images; needs an ensemble with anchor: true", neutral=True,
    )  # fmt: skip
    pairs: int | None = number(
        None, "number of stored images of the teacher to match instead of real ones (from the step `teacher NAME/pairs-N-SEED`)",
        low=2, neutral=True,
    )  # fmt: skip
    pairs_seed: int = number(
        0, "seed of the teacher's stored images", low=0, high=9_223_372_036_854_775_807, neutral=True
    )
    augmentation: tuple[str, ...] = number(
        (),
        "operations applied equally to generated and real images, one in each step; none by default, because they hurt on "
        "aligned 8x8 digits",
        choices=("color", "crop", "cutout", "flip", "scale", "rotate"),
    )
    weighting: str = number(
        "balanced",
        "balanced: `weight` is the ratio of EL's gradient to the base loss's at the images; adaptive: balanced, times the share "
        "of EL that is not sampling noise; fixed: `weight` is the raw factor",
        choices=("balanced", "adaptive", "fixed"),
    )
    decay: float = number(
        0.99, "balanced and adaptive: decay of the running averages of gradient norms and of EL", low=0, below=1
    )
    start_images: int = number(
        0, "balanced and adaptive: generated images over which the factor changes linearly from start_weight to its own; 0: none",
        low=0, neutral=True,
    )  # fmt: skip
    start_weight: float = number(
        1.0, "raw factor of EL's gradient at the first iteration, if start_images is not 0", low=0, neutral=True
    )  # fmt: skip
    fade: float = number(
        0.0, "share of the run, at its end, over which the weight falls to 0 along a cosine", low=0, high=1, neutral=True
    )  # fmt: skip
    precision: str = number(
        "float32", "precision of the members' layers; sums, norms and differences are always float32",
        choices=("float32", "bfloat16"), neutral=True,
    )  # fmt: skip
    diagnose: int = number(
        10, "iterations between diagnostics of the gradients in the log; 0: never", low=0, neutral=True
    )


# Of each member its mean features [D], or an Anchor. Its module is not imported: only ensembles with anchor: true count it.
Anchors = Sequence[Any]


@dataclass(frozen=True)
class Prepared:
    """The data that EL uses in a run.

    sigma_data: standard deviation of the encoded images. seed: of the augmentation. anchors: for each member its mean
    features [D] over all real images, or its Anchor for kernels other than linear. traces: of the covariance of each
    member's features over them. stored: the teacher's images [n, c, h, w] on the CPU. across: the processes that share a
    batch.
    """

    ensemble: Ensemble
    sigma_data: float
    seed: int
    anchors: Anchors | None = None
    traces: list[float] | None = None
    stored: torch.Tensor | None = None
    across: processes.ProcessGroup | None = None


def prepare(numbers: Numbers, setting: Setting) -> Prepared:
    """Load the ensemble and, if the numbers need them, mean features or stored images.

    Raises Problem for numbers that contradict each other or the data, or for a damaged file.
    """
    dtype = torch.bfloat16 if numbers.precision == "bfloat16" else setting.dtype
    ensemble = Ensemble(setting.ensemble, setting.device, dtype, setting.teacher)
    if numbers.labels != "marginal" and not setting.label_dim:
        raise Problem(f"params.yaml: labels is {numbers.labels} in an Embedding Loss, but its data has no labels; "
                      "set it to marginal, or labels: true in the data setting")  # fmt: skip
    if numbers.start_images and numbers.weighting == "fixed":
        raise Problem(f"params.yaml: start_images is {numbers.start_images} in an Embedding Loss with weighting: fixed, whose factor "
                      "never changes; set start_images to 0, or weighting to balanced or adaptive")  # fmt: skip
    known, traces = None, None
    if numbers.anchored:
        _check_anchored(numbers, ensemble)
        known, traces = ensemble.anchored(numbers.kernel, setting.reals)
    stored = None
    if numbers.pairs:
        stored = torch.from_numpy(read_pairs(setting.pairs, ("images",))["images"])
        if numbers.labels != "marginal":
            raise Problem(f"params.yaml: labels is {numbers.labels} in an Embedding Loss with pairs, which ignores labels; set labels to "
                          "marginal, or pairs to null")  # fmt: skip
    return Prepared(ensemble, setting.sigma_data, setting.seed, known, traces, stored, processes.process_group())


def _check_anchored(numbers: Numbers, ensemble: Ensemble) -> None:
    found = {"augmentation": list(numbers.augmentation), "pairs": numbers.pairs, "real_ratio": numbers.real_ratio,
             "labels": numbers.labels, "redraw": ensemble.record["redraw"]}  # fmt: skip
    wanted = {"augmentation": [], "pairs": None, "real_ratio": 1, "labels": "marginal", "redraw": 0}
    if odd := [f"{key}: {value}" for key, value in found.items() if value != wanted[key]]:
        raise Problem(f"params.yaml: anchored is true in an Embedding Loss with {', '.join(odd)}; it compares with all train images as "
                      "they are: expected no augmentation, no pairs, real_ratio: 1, labels: marginal and an ensemble with "
                      "redraw: 0, or anchored: false")  # fmt: skip


def generator_terms(prepared: Prepared, images: torch.Tensor, batch: Batch, numbers: Numbers) -> dict[str, AtImages]:
    """EL of images [n, c, h, w] (encoded) and its gradient. Raises Problem for one image.

    images: of all micro-batches. With several processes they are the rows of this one; `prepared.across` adds those of the others,
    so that the value is that of the complete batch.
    """
    iteration = batch.progress.iteration
    transform = augment.siamese(prepared.seed, iteration, numbers.augmentation) if numbers.augmentation else None
    real, labels = (None, None) if numbers.anchored else _matched(prepared, images, batch, numbers)
    classes = None
    if numbers.labels != "marginal":
        classes = batch.labels.argmax(1), labels.argmax(1)
    x = images.detach().requires_grad_()
    gaps = [] if numbers.weighting == "adaptive" else None
    found = {} if numbers.diagnose and iteration % numbers.diagnose == 0 else None
    value = embedding_loss(
        prepared.ensemble.at(iteration), x / prepared.sigma_data, None if real is None else real / prepared.sigma_data,
        numbers.kernel, numbers.estimator, transform, labels=numbers.labels, classes=classes, anchors=prepared.anchors,
        traces=prepared.traces,
        stack=stacking(numbers.stack, x),
        across=prepared.across, found=found, gaps=gaps,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(value, x)
    terms = {"mmd2": AtImages(value.detach(), gradient)}
    if gaps is not None:
        terms["gap"] = AtImages(torch.stack(gaps).mean() if gaps else torch.zeros_like(value), None)
    if found:
        terms["trace_ratio"] = AtImages(found["trace_ratio"].to(value), None)
    return terms


def _matched(prepared: Prepared, images: torch.Tensor, batch: Batch, numbers: Numbers):
    # Real images, or stored ones of the teacher, that the generated images are compared with.
    if prepared.stored is None:
        return batch.real("el/real", numbers.real_ratio)
    index = batch.draw.on("cpu").integers("el/real", len(prepared.stored), numbers.real_ratio).reshape(-1)
    return sent(prepared.stored[index], images.device).to(images), None


def embedding_loss(
    members, x: torch.Tensor, real: torch.Tensor | None, kernel: str, estimator: str, transform=None, *,
    labels: str = "marginal", classes=None, anchors: Anchors | None = None, traces: Sequence[float] | None = None,
    stack: bool = False, across=None, found: dict | None = None, gaps: list[torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Mean over the members of MMD^2 between x [m, c, h, w] and real [n, c, h, w], both over sigma_data; scalar.

    anchors: instead of real, the members' means over all real images (linear) or their Anchors. traces: of the covariance of
    each member's features over all real images, for `trace_ratio` with anchors. classes: labels of x [m] and real [n] for every
    `labels` but marginal. stack: members of one shape in one pass. across: processes with the rest of both batches.
    found: a dict that receives `trace_ratio`, the mean over the members of tr Cov(x) / tr Cov(real) in their features.
    gaps: a list that receives scalars without a gradient, whose mean is the biased minus the unbiased value.
    """
    if transform is not None:
        x = transform(x)
        with torch.no_grad():
            real = transform(real)
    values, ratios = [], []
    for places, ours, its in read_members(members, x, real, stack):
        for place, mine, target in zip(places, ours, its, strict=True):
            bandwidth = members[place].bandwidth
            if target is None:
                known = anchors[place]
                if isinstance(known, torch.Tensor):
                    values.append(mmd.anchored(mine, known, estimator, across, gaps))
                else:
                    values.append(known.mmd2(mine, kernel, bandwidth, estimator, across, gaps))
            else:
                values.append(_compare(mine, target, kernel, bandwidth, estimator, labels, classes, across, gaps))
            if found is not None and (target is not None or traces is not None):
                ratios += trace_ratio(mine.detach().double(), target, traces[place] if target is None else None, across)
    if ratios:
        found["trace_ratio"] = torch.stack(ratios).mean()
    return functools.reduce(torch.add, values) / len(members)


def _compare(x, y, kernel, bandwidth, estimator, labels, classes, across, gaps) -> torch.Tensor:
    rest = functools.partial(mmd.mmd2, x, y, kernel, bandwidth, estimator, gaps=gaps)
    if labels == "marginal":
        return rest(across=across)
    if labels == "per_class":
        return mmd.per_class(x, y, kernel, bandwidth, estimator, classes, across, gaps)
    joint = rest(classes=classes, across=across)
    return joint if labels == "joint" else (rest(across=across) + joint) / 2


def observe(prepared: Prepared, terms: dict[str, AtImages], numbers: Numbers, memory: Memory) -> None:
    """Add this iteration's unbiased and biased value of EL to their running averages, which `adaptive` needs.

    terms: of `generator_terms`, scalars of a device that stay there. The averages start at 0 together, as those of the
    gradients do. Processes add the mean of their values, which differ by rounding, so that all keep the same averages.
    """
    if numbers.weighting != "adaptive":
        return
    pair = torch.stack([terms["mmd2"].value.double(), terms["gap"].value.double()])
    value, gap = pair if prepared.across is None else prepared.across.sum(pair) / prepared.across.size
    unbiased, biased = (value, value + gap) if numbers.estimator == "unbiased" else (value - gap, value)
    for name, now in (("unbiased", unbiased), ("biased", biased)):
        memory[name] = numbers.decay * memory.get(name, 0.0) + (1 - numbers.decay) * now


def weight(
    base: balance.Scalar, own: balance.Scalar, batch: int, numbers: Numbers, progress: Progress, memory: Memory
) -> Weight:
    """The factor of EL's gradient. base, own: root mean squares of the two gradients where they meet.

    balanced: the share weight * warm-up of the base loss's gradient, as eldistill.losses.balance has it; fixed: the
    factor weight * warm-up. Warm-up rises linearly from 0 to 1 over its share of the run. Over the share `fade`, at the
    end of the run, the weight falls to 0 along half a cosine.

    adaptive: the factor of balanced times the signal of EL, clip(mean U / mean V, 0, 1), U and V the unbiased and the
    biased value. V - U is what sampling alone adds to V. A balanced share keeps the size of EL's gradient whatever is
    left in it, and so amplifies noise when the distributions have met; the signal is then near 0.

    start_images, start_weight: at the first images the factor is another one (eldistill.losses.balance.started).
    """
    found = balance.scheduled(base, own, batch, numbers, progress, memory)
    if not numbers.weight or numbers.weighting == "fixed":
        return found
    if numbers.weighting == "adaptive":
        signal = balance.signal(memory["unbiased"], memory["biased"])
        found = replace(found, factor=found.factor * signal, logged={"signal": signal})
    return balance.started(found, progress, numbers.start_images, numbers.start_weight)


# --- diagnostics for the log, without effect on the training ---


def diagnose(
    value: torch.Tensor, base: torch.Tensor | None, own: torch.Tensor, batch: Batch, numbers: Numbers, memory: Memory
) -> Later:
    """Numbers for the log.

    value: EL, a scalar. base, own: gradients [n, c, h, w] of the base loss (None if it has none there) and of EL.

    snr: running mean of EL over its running deviation. Every `diagnose` iterations, `cosine` of the two gradients, and
    `optimal`: the factor that mixes the two with the least variance, EL scaled to the base's mean (see
    losses/mixing.py).
    """
    scalars = [value]
    if base is not None and numbers.diagnose and batch.progress.iteration % numbers.diagnose == 0:
        left, right = base.double(), own.double()
        scalars += [left.norm(), right.norm(), (left * right).sum()]
        if len(own) >= 2 * mixing.GROUPS:
            scalars += mixing.projections(base, own)
    return Later(scalars, functools.partial(_diagnosed, numbers.decay, memory))


def _diagnosed(decay: float, memory: Memory, value: float, *gradients: float) -> dict[str, float]:
    # Like `diagnose`, from the values of its scalars: EL, the two norms, the scalar product, and those of
    # `mixing.projections`.
    for name, each in (("value", value), ("square", value * value), ("weight", 1.0)):
        memory[name] = decay * memory.get(name, 0.0) + (1 - decay) * each
    mean, square = memory["value"] / memory["weight"], memory["square"] / memory["weight"]
    spread = square - mean * mean  # for equal values this is a rounding error
    found = {"snr": mean / math.sqrt(spread)} if memory["weight"] > 0.05 and spread > 1e-12 * square else {}
    if not gradients:
        return found
    left, right, product, *projections = gradients
    if min(left, right) > 0:
        found["cosine"] = product / (left * right)
    share = mixing.share_of(*projections) if projections else None
    return found if share is None else found | {"optimal": share}


def warning(means: dict[str, float]) -> str | None:
    """A warning if the generated images have less than half of the spread of the real ones; None otherwise.

    means: of the logged numbers since the previous row of the log.
    """
    return spread_warning(means, "EL's features")
