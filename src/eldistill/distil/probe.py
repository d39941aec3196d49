# SPDX-License-Identifier: Apache-2.0
"""Measures the variance of the generator's gradient at a snapshot of a finished run, and how it depends on the batch.

The generator is fixed. Several fake_scores are trained on it, starting from the teacher, each with different random
numbers. Then the gradient of the generator's parameters is computed repeatedly at several batch sizes. Its variance
(the trace of its covariance) is fitted by floor + slope / batch; for a supplement, whose loss compares pairs of images,
also by a term in 1 / batch^2 (the variance of a U-statistic). With one fake_score and a different noise level for every
image the images of a batch are independent, so the floor is 0. One noise level for the whole batch gives a floor, and
so do different fake_scores.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from eldistill.contract import AtImages, Batch, Method, Nets, Phase, Progress
from eldistill.diffusion.draws import Draw, stream_seed
from eldistill.distil import prepare
from eldistill.distil.prepare import Upstream
from eldistill.errors import Problem
from eldistill.files import parse_json
from eldistill.sampling import generators
from eldistill.training.job import Job, Supplement, Training
from eldistill.training.loop import Loop
from eldistill.training.machine import Machine
from eldistill.training.optimisers import Ema, Optimiser

COVERED_BY = "variance"
PERCENT = 20  # of the run: the snapshot that is measured
FAKES, FAKE_IMAGES = 3, 4096  # fake_scores for each run, and the number of images that each is trained on
REPEATS = {8: 32, 32: 24, 128: 16}  # {batch: number of gradients}
Pull = Callable[[torch.Tensor, Batch], torch.Tensor]  # from (images [n, c, h, w], batch) to a gradient at the images
Variances = dict[int | str, float]  # {batch: variance of the gradient, "signal": …, "floor": …}
OWN, SHARED, ACROSS = "own noise levels", "one noise level a batch", f"own noise levels, across {FAKES} fake_scores"


@dataclass(frozen=True)
class Moments:
    """Statistics of repeated gradients at one batch size: mean [P], trace of the covariance, number of gradients."""

    mean: np.ndarray
    variance: float
    count: int


def moments(gradients: np.ndarray) -> Moments:
    """The statistics of gradients [repeats, P]."""
    mean = gradients.mean(0, dtype=np.float64)
    return Moments(mean, float(((gradients - mean) ** 2).sum() / (len(gradients) - 1)), len(gradients))


def fit_variance(found: dict[int, float], order: int = 1) -> tuple[float, ...]:
    """Fit variance = floor + slope / batch + … up to 1 / batch^order; returns (floor, slope, …).

    found: {batch: variance}. Each point is weighted by its inverse, because errors are relative.
    """
    batches, values = np.array(list(found), float), np.array(list(found.values()))
    design = batches[:, None] ** -np.arange(order + 1) / values[:, None]
    return tuple(map(float, np.linalg.lstsq(design, np.ones_like(values), rcond=None)[0]))


def variance_between(means: list[Moments]) -> float:
    """Variance of the mean gradient between fake_scores, corrected for the noise of each mean."""
    stack = np.stack([each.mean for each in means])
    spread = ((stack - stack.mean(0)) ** 2).sum() / (len(means) - 1)
    return float(spread - fmean(each.variance / each.count for each in means))


def squared_mean(means: list[Moments]) -> float:
    """Squared norm of the mean gradient, corrected for its noise; averaged over `means`."""
    return fmean(float((each.mean**2).sum()) - each.variance / each.count for each in means)


class OneLevel(Draw):
    """Random numbers like those of a Draw, but with one noise level for all images of the batch."""

    @classmethod
    def of(cls, draw: Draw) -> OneLevel:
        """A OneLevel with the streams of another Draw."""
        return cls(draw.seed, draw.scope, draw.first, draw.size, draw.device, draw.dtype)

    def _first(self) -> Draw:
        return Draw(self.seed, self.scope, self.first, 1, self.device, self.dtype)

    def _of_all(self, one: torch.Tensor) -> torch.Tensor:
        return one.repeat(self.size, *[1] * (one.ndim - 1))

    def normal(self, purpose: str, *shape: int) -> torch.Tensor:
        """Like Draw.normal; for a noise level all images get the value of the first."""
        return (
            self._of_all(self._first().normal(purpose, *shape))
            if _is_level(purpose)
            else super().normal(purpose, *shape)
        )

    def uniform(self, purpose: str, *shape: int) -> torch.Tensor:
        """Like Draw.uniform; for a noise level all images get the value of the first."""
        return (
            self._of_all(self._first().uniform(purpose, *shape))
            if _is_level(purpose)
            else super().uniform(purpose, *shape)
        )

    def integers(self, purpose: str, high: int, *shape: int) -> torch.Tensor:
        """Like Draw.integers; for a noise level all images get the value of the first."""
        if _is_level(purpose):
            return self._of_all(self._first().integers(purpose, high, *shape))
        return super().integers(purpose, high, *shape)


def _is_level(purpose: str) -> bool:
    return purpose.endswith("sigma")


def _file(step: str) -> tuple[str, str]:
    # (folder, file) of an upstream step whose output the supplements read; ("", "") for any other step.
    word, name = step.split(" ", 1)
    if word == "ensemble":
        return "ensembles", f"{name}.json"
    return ("teachers", f"{name}.npz") if word == "teacher" and "/pairs-" in name else ("", "")


def _recipe(run: str, root: Path) -> dict:
    try:
        return dict(parse_json((root / f"data/runs/{run}/generator_ema.safetensors.recipe").read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise Problem(f"the recipe of {run} cannot be read ({error}); make the run again") from None


def _upstream(recipe: dict, root: Path) -> Upstream:
    # Files of the steps upstream that a recipe names.
    steps = [key.split(" ", 1) for key in recipe["upstream"]]
    named = {word: name for word, name in steps if word == "data" or (word == "teacher" and "/" not in name)}
    guidance = recipe["params"].get("guidance") or {"of": named["teacher"], "guide": None}
    teacher, guide = (
        root / f"data/teachers/{name}/teacher.safetensors" if name else None
        for name in (guidance["of"], guidance["guide"])
    )
    files = [root / f"data/{folder}/{name}" for folder, name in map(_file, recipe["upstream"]) if folder]
    return {
        "images": root / f"data/sets/{named['data']}.safetensors",
        "teacher": teacher,
        "guide": guide,
        **prepare.upstream_files(recipe["params"], files),
    }


def _fake_score_alone(_numbers: Any, _progress: Progress) -> list[Phase]:
    return [Phase("fake_score", generator_mode="eval")]


def _nothing(*_: Any) -> None:
    return None


class Probe:
    """The networks of a run at its snapshot, and gradients of the generator's parameters."""

    def __init__(self, run: str, root: Path) -> None:
        recipe = _recipe(run, root)
        self.params = recipe["params"]
        self.images = self.params["method"]["n_images"]  # of the run
        torch.set_num_threads(self.params["threads"])
        upstream = _upstream(recipe, root)
        self.parts = prepare.load_parts(self.params, upstream, "cpu")
        snapshot = root / f"data/runs/{run}/ema-{PERCENT}.safetensors"
        if not snapshot.exists():
            raise Problem(f"{snapshot} is missing; a study of variance needs it: add {PERCENT} to distil.snapshots and "
                          "make the run again")  # fmt: skip
        self.generator = generators.load_generator(snapshot).network
        self.supplements = prepare.prepare_supplements(self.params, upstream, self.parts, Machine())
        for each in self.supplements:
            if each.module.offers("networks") or not each.module.offers("generator_terms"):
                raise Problem(f"{run}: a study of variance needs supplements with a fixed loss at the images, and {each.name} has none; "
                              "remove it from the grids of that study in params.yaml")  # fmt: skip

    def fakes(self) -> list[Nets]:
        """Train FAKES fake_scores on the fixed generator, each with different random numbers.

        Raises Problem without a fake_score.
        """
        made = []
        for index in range(FAKES):
            seed = stream_seed(self.params["seed"], f"variance/{index}") % 2**31
            others = self.parts.method.networks(self.parts.network, self.parts.numbers, seed)
            nets = {"generator": copy.deepcopy(self.generator), **others}
            if "fake_score" not in nets or not self.parts.method.offers("critic_terms"):
                raise Problem(
                    f"the method {self.params['method']['file']} has no fake_score, which a study of variance needs; "
                    "remove its grid from that study in params.yaml"
                )
            prepare.set_dropout(others, self.params["method"]["dropout"])
            with tempfile.TemporaryDirectory() as folder:
                Loop(self._job(nets, seed, Path(folder))).run()
            for net in nets.values():
                net.requires_grad_(False).eval()
            made.append(nets | {"teacher": self.parts.teacher})
        return made

    def _job(self, nets: Nets, seed: int, folder: Path) -> Job:
        # The training of one fake_score: the phases of the method without steps of the generator.
        critic, reals, method = Optimiser.of(self.params["method"]["critic"]), self.parts.reals, self.parts.method
        return Job(
            method=Method(
                phases=_fake_score_alone, generate=method.generate, critic_terms=method.critic_terms, normalised=method.normalised
            ),
            numbers=self.parts.numbers, nets=nets, published="fake_score", reals=reals, shape=reals.shape,
            training=Training(FAKE_IMAGES, 64, Ema("constant", beta=0.0)), seed=seed, folder=folder,
            optimisers=dict.fromkeys(nets, critic), fixed={"teacher": self.parts.teacher}, ticks=1, save_seconds=1e9,
            log=_nothing,
        )  # fmt: skip

    def gradients(self, scope: str, batch: int, pull: Pull, one_level: bool = False) -> Moments:
        """Moments of REPEATS[batch] gradients of the generator's parameters.

        scope: prefix of the random numbers. pull: returns a gradient [n, c, h, w] at the images. one_level: all images
        of a batch have the same noise level.
        """
        found, nets = [], {"generator": self.generator.requires_grad_(True)}
        parameters = list(self.generator.parameters())
        for repeat in range(REPEATS[batch]):
            draw = Draw(self.params["seed"], f"variance/{scope}/{batch}", repeat * batch, batch)
            draw = OneLevel.of(draw) if one_level else draw
            labels = self.parts.reals.labels(draw.integers("label", len(self.parts.reals)))
            progress = Progress(PERCENT * self.images // 100, repeat, self.images)
            here = Batch(draw, labels, self.parts.reals.shape, progress, self.parts.reals)
            images = self.parts.method.generate(nets, here, self.parts.numbers)
            own = torch.autograd.grad(images, parameters, pull(images.detach(), here), allow_unused=True)
            flat = [each.flatten() for each in own if each is not None]
            found.append(torch.cat(flat).double().numpy())
        return moments(np.stack(found))

    def base(self, nets: Nets) -> Pull:
        """A function that returns the gradient of the base loss at the images, with the fake_score of `nets`."""

        def pull(images: torch.Tensor, batch: Batch) -> torch.Tensor:
            terms = self.parts.method.generator_terms(nets, batch, lambda: images, self.parts.numbers)
            found = (term.gradient for term in terms.values() if isinstance(term, AtImages))
            return _sum([gradient for gradient in found if gradient is not None])

        return pull

    def supplement(self, each: Supplement) -> Pull:
        """A function that returns the gradient of a supplement at the images."""

        def pull(images: torch.Tensor, batch: Batch) -> torch.Tensor:
            terms = each.module.generator_terms(each.prepared, images, batch, each.numbers)
            return _sum([term.gradient for term in terms.values() if term.gradient is not None])

        return pull


def _sum(gradients: list[torch.Tensor]) -> torch.Tensor:
    total = torch.zeros_like(gradients[0])
    for each in gradients:
        total = total + each
    return total


def measure_variance(run: str, root: Path) -> dict[str, Variances]:
    """Measure the gradient variance of one run: {gradient: {batch: variance, "signal": …, "floor": …}}.

    signal: squared norm of the mean gradient. floor: variance at an infinite batch.

    run: DATA/METHOD/SUPPLEMENTS/SEED. root: the folder of the project. Raises Problem if the run has no snapshot or
    fake_score.
    """
    probe = Probe(run, root)
    found: dict[str, Variances] = {}
    if probe.supplements:
        for each in probe.supplements:
            per = {batch: probe.gradients(each.name, batch, probe.supplement(each)) for batch in REPEATS}
            found[each.name] = _found({b: m.variance for b, m in per.items()}, squared_mean([per[max(per)]]), 2)
        return found
    nets = probe.fakes()
    own = {
        batch: [probe.gradients(f"own/{k}", batch, probe.base(each)) for k, each in enumerate(nets)]
        for batch in REPEATS
    }
    signal, within = squared_mean(own[max(own)]), {b: fmean(m.variance for m in each) for b, each in own.items()}
    found[OWN] = _found(within, signal)
    one = {b: probe.gradients("one", b, probe.base(nets[0]), one_level=True).variance for b in REPEATS}
    found[SHARED] = _found(one, squared_mean([own[max(own)][0]]))
    apart = variance_between(own[max(own)])
    # The mean gradient of a fake_score is the common one plus a deviation; only the common one is the signal.
    found[ACROSS] = _found({b: value + apart for b, value in within.items()}, signal - apart)
    return found


def _found(variances: dict[int, float], signal: float, order: int = 1) -> Variances:
    found: Variances = {"signal": signal, "floor": fit_variance(variances, order)[0]}
    found.update(variances.items())
    return found
