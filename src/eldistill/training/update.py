# SPDX-License-Identifier: Apache-2.0
"""One optimiser step of one network, as a phase describes it.

In a step of the generator the images are made when a loss first asks for them. The base loss gives its gradient at these images,
micro-batch by micro-batch. Each supplement then sees the images of all micro-batches (of this process, unless it gathers from all)
and adds its weighted gradient, and one backward pass propagates the sum to the generator. So a supplement does not depend on the
size of micro-batches, and a supplement whose weight compares gradients costs no further pass.

A base loss without a gradient at the images, as that of consistency models, is backpropagated as it is. The supplements' gradients
are then added at the parameters of the generator, at the price of a backward pass for each of them (training/meeting.py).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch

from eldistill.contract import AtImages, Batch, Phase, Progress
from eldistill.diffusion import dropout
from eldistill.diffusion.draws import Draw
from eldistill.errors import NonFinite
from eldistill.training import optimisers, reduction
from eldistill.training.images import Images, sum_of
from eldistill.training.job import Job, Supplement
from eldistill.training.meeting import Meeting
from eldistill.training.monitor import Monitor
from eldistill.training.optimisers import Optimiser
from eldistill.training.processes import ProcessGroup, SingleProcess

COVERED_BY = "loop"


class Update:
    """The networks and optimisers of a training; `step` makes one optimiser step of one network.

    across: the processes that share a batch. monitor: receives tensors that must be finite and numbers for the log.
    """

    def __init__(self, job: Job, across: ProcessGroup | SingleProcess, monitor: Monitor) -> None:
        self.job, self.across, self.monitor = job, across, monitor
        self.group = job.method.group(job.numbers)  # images that must share a micro-batch
        self.own = across.rows(job.training.batch, self.group)  # rows of a batch that this process computes
        self.nets = {**job.fixed, **job.nets}
        for net in job.fixed.values():
            net.requires_grad_(False).eval()
        self.optimisers = {name: optimisers.make_optimiser(net, job.optimisers[name]) for name, net in job.nets.items()}
        self.modules = {name: list(net.modules()) for name, net in job.nets.items()}
        self.named: dict[str, list[tuple[str, torch.Tensor]]] = {
            name: [*net.named_parameters()] for name, net in job.nets.items()
        }
        self.reductions = reduction.reductions(across, self.named)
        self.normalised = {name: self._forced(name) for name in job.nets}
        generator = [
            parameter for _, parameter in self.named.get("generator", [])
        ]  # trainings of teachers and judges have no generator
        self.meeting = Meeting(job, across, monitor, generator)
        self.critics = [each for each in job.supplements if each.module.offers("critic_terms")]
        self.direct = [each for each in job.supplements if each.module.offers("direct_terms") and each.numbers.weight]
        self.begin()

    def begin(self) -> None:
        """Forget labels and images of the previous iteration, which `same` and `reuse` of a phase must not use."""
        self._labels: torch.Tensor | None = None
        self._images: torch.Tensor | None = None

    def step(self, phase: Phase, progress: Progress, scope: str) -> None:
        """Make one optimiser step of the network of a phase.

        progress: at the beginning of the iteration. scope: prefix that separates its random numbers from other phases.
        """
        job = self.job
        for name in job.nets:
            training = name == phase.net or (name == "generator" and phase.generator_mode == "train")
            self._set(name, training, name == phase.net)
        batch = self._batch(phase, progress, scope)
        optimiser, numbers = self.optimisers[phase.net], job.optimisers[phase.net]
        optimiser.zero_grad(set_to_none=True)
        (self._generator if phase.net == "generator" else self._critic)(phase, batch)
        self._sum_gradients(phase.net, progress)
        self._check_gradients(phase.net, numbers, progress)
        optimiser.param_groups[0]["lr"] = optimisers.learning_rate(numbers, progress)
        optimiser.step()
        for normalise_weight in self.normalised[phase.net]:
            normalise_weight()

    # --- preparation of a step ---

    def _forced(self, name: str) -> list[Callable[[], None]]:
        # EDM2's forced weight normalisation acts after a step, because changing weights inside a graph would break it.
        chosen = self.job.method.normalised(self.job.numbers)
        if chosen is not None and name not in chosen:
            return []
        layers: list[Any] = [each for each in self.modules[name] if hasattr(each, "normalise_weight")]
        return [layer.normalise_weight for layer in layers]

    def _batch(self, phase: Phase, progress: Progress, scope: str) -> Batch:
        job = self.job
        draw = Draw(job.seed, scope, progress.n_images, job.training.batch, job.device, job.dtype)[self.own]
        if phase.labels == "fresh" or self._labels is None:
            self._labels = job.reals.labels(draw.on("cpu").integers("label", len(job.reals)))
        return Batch(draw, self._labels, job.shape, progress, job.reals)

    def _set(self, name: str, training: bool, gradient: bool) -> None:
        if self.job.device != "cpu":
            self.job.nets[name].train(training).requires_grad_(gradient)
            return
        # Like `train` and `requires_grad_`, but without walking through the module tree and without torch's attribute
        # checks, which cost a tenth of a small step on a CPU.
        for module in self.modules[name]:
            module.__dict__["training"] = training
        for _, parameter in self.named[name]:
            parameter.requires_grad = gradient

    def _parts(self, size: int) -> list[slice]:
        # Micro-batches of `size` images.
        asked = self.job.micro_batch or size
        step = max(self.group, asked // self.group * self.group)
        return [slice(start, min(start + step, size)) for start in range(0, size, step)]

    def _share(self, part: slice) -> float:
        # The share that these rows have in the batch of all processes.
        return float((part.stop - part.start) / self.job.training.batch)

    def _last(self, name: str, last: bool) -> contextlib.AbstractContextManager[None]:
        """A context for a backward pass.

        last: it is the last one that adds to this network's gradients in this phase.
        """
        return self.reductions[name].last_pass() if last and self.reductions else contextlib.nullcontext()

    # --- networks other than the generator ---

    def _critic(self, phase: Phase, batch: Batch) -> None:
        made = []
        for part in self._parts(batch.size):
            images = self._images_of_phase(phase, batch, part)
            if images is not None:
                made.append(images)
            terms = self._critic_terms(phase, batch, part, images)
            for name, value in terms.items():
                self.monitor.finite(f"{phase.net}.{name}", value)
                self.monitor.count(f"{phase.net}.{name}", value, self._share(part))
            with self._last(phase.net, part.stop == batch.size):
                (sum_of(terms.values()) * self._share(part)).backward()
        if made:
            self._images = torch.cat(made)

    def _images_of_phase(self, phase: Phase, batch: Batch, part: slice) -> torch.Tensor | None:
        if phase.images == "reuse" and self._images is not None:
            return self._images[part]
        if phase.images == "none":
            return None
        with torch.no_grad():
            images = self._generate(batch, part)
        self.monitor.finite("images", images)
        return images

    def _critic_terms(
        self, phase: Phase, batch: Batch, part: slice, images: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        with dropout.masks(batch.draw[part], "terms"):
            terms = self.job.method.critic_terms(self.nets, batch[part], images, self.job.numbers)
        for each in self.critics if phase.net == "fake_score" else ():
            with dropout.masks(batch.draw[part], each.name):
                more = each.module.critic_terms(each.prepared, self.nets, batch[part], images, each.numbers)
            terms = {**terms, **{f"{each.name}.{name}": value for name, value in more.items()}}
        return terms

    def _generate(self, batch: Batch, part: slice) -> torch.Tensor:
        with dropout.masks(batch.draw[part], "images"):
            return self.job.method.generate(self.nets, batch[part], self.job.numbers)

    # --- the generator ---

    def _generator(self, phase: Phase, batch: Batch) -> None:
        parts = self._parts(batch.size)
        images = Images(functools.partial(self._generate, batch), parts, self.monitor, self._last)
        gradients: dict[int, torch.Tensor] = {}  # at the images, by micro-batch
        for index, part in enumerate(parts):
            direct = self._terms(batch[part], self._share(part), images, index, gradients)
            # This is the last backward pass unless gradients at the images follow.
            ends = index == len(parts) - 1 and not gradients and not self.meeting.supplements
            if direct:
                with self._last("generator", ends and not self.direct):
                    (sum_of(direct) * self._share(part)).backward()
            for each in self.direct:
                self._direct(each, batch[part], self._share(part), ends and each is self.direct[-1])
        if self.meeting.supplements:
            gradients = self.meeting.meet(batch, images, gradients)
        if gradients:
            images.pull(gradients.__getitem__)
        if images.made:
            self._images = images.whole()

    def _terms(
        self, batch: Batch, share: float, images: Images, index: int, gradients: dict[int, torch.Tensor]
    ) -> list[torch.Tensor]:
        # Computes the base loss of one micro-batch. Adds its gradient at the images to `gradients` and returns the
        # other terms.
        with dropout.masks(batch.draw, "terms"):
            terms = self.job.method.generator_terms(
                self.nets, batch, functools.partial(images.of, index), self.job.numbers
            )
        direct = []
        for name, term in terms.items():
            value = term.value if isinstance(term, AtImages) else term
            self.monitor.finite(f"generator.{name}", value)
            self.monitor.count(f"generator.{name}", value, share)
            if not isinstance(term, AtImages):
                direct.append(term)
            elif term.gradient is not None:
                self.monitor.finite(f"generator.{name}: gradient at the images", term.gradient)
                gradients[index] = gradients.get(index, 0) + term.gradient * share
        return direct

    def _direct(self, each: Supplement, batch: Batch, share: float, last: bool) -> None:
        with dropout.masks(batch.draw, each.name):
            terms = each.module.direct_terms(each.prepared, self.nets, batch, each.numbers)
        for name, value in terms.items():
            self.monitor.finite(f"{each.name}.{name}", value)
            self.monitor.count(f"{each.name}.{name}", value, share)
        with self._last("generator", last):
            (sum_of(terms.values()) * (share * each.numbers.weight)).backward()

    # --- after the backward passes ---

    def _sum_gradients(self, name: str, progress: Progress) -> None:
        """Sum the gradients of all processes. Raises NonFinite if a value of this process is not finite."""
        if not self.reductions:
            return
        # All sums finish before an error is raised, so that no process waits for one that has stopped.
        self.monitor.ask([self.reductions[name].finish()], self.reductions[name].settle)
        self.monitor.flush(progress)

    def _check_gradients(self, name: str, numbers: Optimiser, progress: Progress) -> None:
        found = [(key, gradient) for key, p in self.named[name] if (gradient := p.grad) is not None]
        norm = torch.nn.utils.get_total_norm([gradient for _, gradient in found])
        parts = ((f"gradient of {name}.{key}", gradient) for key, gradient in found)
        self.monitor.finite(f"gradient norm of {name}", norm, parts)
        self.monitor.count(f"{name}.gradient_norm", norm)
        if self.across.size > 1:
            self._flush_together(progress)
        if numbers.clip:
            # Scaling by a norm that is not finite would spoil all gradients before the bad one is named.
            usable = torch.where(norm.isfinite(), norm, 0.0)  # the monitor has the norm itself, and raises
            torch.nn.utils.clip_grads_with_norm_([p for _, p in self.named[name]], numbers.clip, usable)
        if numbers.clip_value:
            torch.nn.utils.clip_grad_value_([p for _, p in self.named[name]], numbers.clip_value)

    def _flush_together(self, progress: Progress) -> None:
        """Flush the monitor.

        If it raises, wait for the other processes, so that the one with the bad value reports it.
        """
        try:
            self.monitor.flush(progress)
        except NonFinite:
            self.across.barrier()
            raise
