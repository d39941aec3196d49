# SPDX-License-Identifier: Apache-2.0
"""Adds the gradients of the supplements to that of the base loss: at the images, or at the weights of the generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eldistill.contract import Batch, Progress
from eldistill.errors import Problem
from eldistill.training.images import Images, sum_of
from eldistill.training.job import Job, Supplement
from eldistill.training.monitor import Monitor
from eldistill.training.processes import ProcessGroup, SingleProcess

COVERED_BY = "loop"


class Meeting:
    """The supplements that have a loss at the images of the whole batch.

    across: the processes that share the batch. weights: parameters of the generator, in their order.
    """

    def __init__(
        self, job: Job, across: ProcessGroup | SingleProcess, monitor: Monitor, weights: list[torch.Tensor]
    ) -> None:
        self.job, self.across, self.monitor, self.weights = job, across, monitor, weights
        self.supplements = [each for each in job.supplements if each.module.offers("generator_terms")]
        if "generator" in job.nets and not job.method.offers("generator_terms"):
            if any(phase.net == "generator" for phase in job.method.phases(job.numbers, Progress(0, 0, 1000))):
                _check_without_base(job.supplements)

    def meet(self, batch: Batch, images: Images, gradients: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Add the weighted gradients of all supplements to those of the base loss.

        gradients: of the base loss at the images [n, c, h, w], by index of the micro-batch. Returns the sums in the
        same form. If the base loss has a gradient at the weights only, the gradients are added there and {} is
        returned.
        """
        made = images.whole()
        if not gradients and any(p.grad is not None for p in self.weights):
            self._meet_at_weights(made, batch, images)
            return {}
        base = torch.cat([gradients[index] for index in range(len(images.parts))]) if gradients else None
        total = self._meet_at_images(made, base, batch)
        return {index: total[part] for index, part in enumerate(images.parts)}

    def _meet_at_images(self, images: torch.Tensor, base: torch.Tensor | None, batch: Batch) -> torch.Tensor:
        """The gradient of the base loss at the images [n, c, h, w], or 0 for None, plus the weighted ones of all supplements."""
        total = torch.zeros_like(images) if base is None else base
        strength = self._rms(total)
        if base is not None:
            self.monitor.count("generator.base_rms", strength)
        for each in self.supplements:
            own = self.own_gradient(each, images, batch, base)
            weight = self.weigh(each, strength, self._rms(own), batch)
            if _acts(weight):
                total = total + weight * own
        return total

    def _meet_at_weights(self, made: torch.Tensor, batch: Batch, images: Images) -> None:
        """Add the gradients at the weights, for a base loss without a gradient at the images.

        Their magnitudes are compared at the output layer.
        """
        weights = self.weights
        base = [p.grad for p in weights]
        last = output_layer(weights)
        strength = self._rms_of_weight(base[last])
        self.monitor.count("generator.base_rms", strength)
        total = base
        for each in self.supplements:
            for p in weights:
                p.grad = None
            images.pull_whole(self.own_gradient(each, made, batch))
            own = [p.grad for p in weights]
            weight = self.weigh(each, strength, self._rms_of_weight(own[last]), batch)
            if _acts(weight):
                total = [
                    a if b is None else weight * b if a is None else a + weight * b
                    for a, b in zip(total, own, strict=True)
                ]
        for p, gradient in zip(weights, total, strict=True):
            p.grad = gradient

    def own_gradient(
        self, each: Supplement, images: torch.Tensor, batch: Batch, base: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The gradient of a supplement at the images [n, c, h, w]. Its terms are logged.

        base: gradient of the base loss.
        """
        prepared = each.module.recall(each.prepared, each.numbers, each.memory)
        terms = each.module.generator_terms(prepared, images, batch, each.numbers)
        # A supplement that gathers from all processes returns the loss of the whole batch, any other that of its own
        # rows.
        whole = getattr(each.prepared, "across", None) is not None
        share = None if whole else batch.size / self.job.training.batch
        for name, term in terms.items():
            self.monitor.finite(f"{each.name}.{name}", term.value)
            if term.gradient is not None:
                self.monitor.finite(f"{each.name}.{name}: gradient at the images", term.gradient)
            self.monitor.count(f"{each.name}.{name}", term.value, share)
        each.module.observe(each.prepared, terms, each.numbers, each.memory)
        gradients = [term.gradient for term in terms.values() if term.gradient is not None]
        own = gradients[0] if len(gradients) == 1 else sum_of(gradients)
        own = own if share in (None, 1) else own * share
        if each.module.offers("diagnose"):
            loss = sum_of(term.value for term in terms.values() if term.gradient is not None)
            gathered = None if base is None else self.across.gather(base)
            later = each.module.diagnose(loss, gathered, self.across.gather(own), batch, each.numbers, each.memory)
            self.monitor.later(later, prefix=f"{each.name}.")
        return own

    def weigh(self, each: Supplement, base: torch.Tensor, own: torch.Tensor, batch: Batch) -> float | torch.Tensor:
        """The factor of a supplement's gradient.

        base, own: root mean squares of both gradients, scalars on the device.
        """
        size = self.job.training.batch
        weight = each.module.weight(base, own, size, each.numbers, batch.progress, each.memory)
        self.monitor.count(f"{each.name}.gradient_rms", own)
        self.monitor.count(f"{each.name}.weight", weight.factor)
        # Its weighted gradient relative to the base loss's, if the base loss has one.
        self.monitor.count(f"{each.name}.share", weight.factor * own / base, known=base != 0)
        self.monitor.count(f"{each.name}.bounded", weight.bounded)
        for name, value in weight.logged.items():
            self.monitor.count(f"{each.name}.{name}", value)
        return weight.factor

    def _rms(self, own: torch.Tensor) -> torch.Tensor:
        """Root mean square over all entries of the images of the whole batch, a scalar in float64."""
        if self.across.size == 1:
            return _rms(own)
        squares = self.across.sum(own.double().square().sum())
        return (squares / (own[0].numel() * self.job.training.batch)).sqrt()

    def _rms_of_weight(self, gradient: torch.Tensor | None) -> torch.Tensor:
        # All images pass through this layer, so it has a gradient.
        assert gradient is not None
        return _rms(self.across.sum(gradient))


def _rms(tensor: torch.Tensor) -> torch.Tensor:
    """Root mean square over all entries, a scalar in float64."""
    return tensor.double().square().mean().sqrt()


def _check_without_base(supplements: list[Supplement]) -> None:
    """Raise Problem unless supplements can train a generator without a base loss."""
    if not supplements:
        raise Problem(
            "this method has no loss of its own and the run has no supplement, so nothing would be trained; name one with "
            "weighting: fixed, such as alone/el-fixed"
        )
    for each in supplements:
        if (weighting := getattr(each.numbers, "weighting", "fixed")) != "fixed":
            raise Problem(
                f"weighting is {weighting} in the supplement {each.name}, but this method has no loss of its own whose gradient "
                "that weight could be a share of; set it to fixed"
            )


def output_layer(weights: Sequence[torch.Tensor]) -> int:
    """The index of the layer that makes the images, among weights in the order of their network that have a gradient.

    It is the last one with the most dimensions: the last convolution of an image network. Layers of embeddings, such as that
    of a second noise level (networks/interval.py), come behind it in some networks and have two dimensions."""
    return max((p.ndim, index) for index, p in enumerate(weights) if p.grad is not None)[1]


def _acts(weight: float | torch.Tensor) -> bool:
    """Whether a weight may differ from 0. A weight on the device is not read, because that would wait for a GPU."""
    return isinstance(weight, torch.Tensor) or weight != 0
