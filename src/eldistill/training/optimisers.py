# SPDX-License-Identifier: Apache-2.0
"""Optimisers, learning rates, and the weight of the running average.

A change of results here raises the version in the RECIPE of eldistill.training.loop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from eldistill.contract import Progress

COVERED_BY = "loop"
Many = list[torch.Tensor]


class Section:
    """A dataclass whose fields are keys of a resolved section of params.yaml."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Build it from a resolved section of params.yaml. Lists become tuples."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


@dataclass(frozen=True)
class Optimiser(Section):
    """The optimiser of a network and its numbers."""

    kind: str  # adam, adamw or radam
    lr: float  # learning rate, before warm-up and decay
    betas: tuple[float, float]  # decay of the two moments
    eps: float  # added to the root of the second moment
    weight_decay: float
    warmup_images: int  # images over which the rate rises linearly from 0
    decay_images: int  # images at the end over which it falls linearly to 0
    clip: float  # upper limit of the gradient norm of the network; 0: no limit
    clip_value: float  # upper limit of the absolute value of a gradient entry; 0: no limit


@dataclass(frozen=True)
class Ema(Section):
    """The running average of a network's weights; `ema_beta` has the formulas."""

    policy: str  # ramped, constant or power
    beta: float = 0.0  # constant: weight of the past
    halflife_images: float = 0.0  # ramped: images after which the influence of a weight has halved
    ramp: float = 0.0  # ramped: the half-life is at most this share of the images so far
    gamma: float = 0.0  # power: exponent less 1


class RAdam(torch.optim.RAdam):
    """RAdam (Liu et al. 2019, arXiv 1908.03265) over all tensors of a network at once, bitwise equal to torch's.

    torch has no fused RAdam. Its `foreach` version rounds in another order and is a loop on a CPU. Here the moments of
    all tensors lie in one tensor on a CPU, where many small tensors cost more than one large one.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], **options: Any) -> None:
        super().__init__(params, **options)
        self._whole: dict[str, tuple[list[torch.Tensor], torch.Tensor]] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch's may return a loss
        """One step; closure is not supported."""
        for index, group in enumerate(self.param_groups):
            params, grads, exp_avgs, squares, steps = (list[torch.Tensor]() for _ in range(5))
            self._init_group(group, params, grads, exp_avgs, squares, steps)
            torch._foreach_add_(steps, 1)
            alike: defaultdict[float, list[int]] = defaultdict(
                list
            )  # of one age: without a gradient a tensor ages later
            for place, age in enumerate(steps):
                alike[age.item()].append(place)
            for step, places in alike.items():
                chosen, slopes, first, second = (
                    [each[place] for place in places] for each in (params, grads, exp_avgs, squares)
                )
                if len(alike) > 1 or chosen[0].device.type != "cpu":
                    _subtract(chosen, _update(chosen, slopes, first, second, step, group))
                else:
                    self._step_together(chosen, slopes, first, second, step, group, str(index))

    def _step_together(
        self, params: Many, grads: Many, exp_avgs: Many, squares: Many, step: float, group: dict[str, Any], name: str
    ) -> None:
        whole = [torch.cat([each.reshape(-1) for each in grads])]
        before = [torch.cat([each.reshape(-1) for each in params])] if group["weight_decay"] else []
        first, second = self._joined(f"{name}/m", exp_avgs), self._joined(f"{name}/v", squares)
        (update,) = _update(before, whole, first, second, step, group)
        _subtract(params, _apart(update, params))

    def state_dict(self) -> dict[str, Any]:
        """The state as torch's RAdam gives it.

        Moments that share one tensor on a CPU are returned as separate copies.
        """
        found = super().state_dict()
        if not self._whole:
            return found
        state = {key: {name: each.clone() for name, each in slots.items()} for key, slots in found["state"].items()}
        return {**found, "state": state}

    def _joined(self, name: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        # Joins the tensors into one and makes them views of it. The joined tensor is kept while the tensors stay the
        # same.
        known = self._whole[name][0] if name in self._whole else []
        if len(known) != len(tensors) or any(a is not b for a, b in zip(known, tensors, strict=True)):
            whole = torch.cat([each.reshape(-1) for each in tensors])
            for part, each in zip(_apart(whole, tensors), tensors, strict=True):
                each.data = part
            self._whole[name] = list(tensors), whole
        return [self._whole[name][1]]


def _apart(whole: torch.Tensor, like: list[torch.Tensor]) -> list[torch.Tensor]:
    parts = whole.split([each.numel() for each in like])
    return [part.view_as(each) for part, each in zip(parts, like, strict=True)]


def _subtract(params: Many, update: Many) -> None:
    foreach: Any = torch._foreach_sub_  # its type hints accept numbers only
    foreach(params, update)


def _update(params: Many, grads: Many, exp_avgs: Many, squares: Many, step: float, group: dict[str, Any]) -> Many:
    # Updates the moments and returns the amount to subtract from each parameter. params is used for weight decay only.
    (beta1, beta2), lr = group["betas"], group["lr"]
    if group["weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    correction = 1 - beta2**step
    longest = 2 / (1 - beta2) - 1
    # Length of the approximated moving average (the paper's rho_t). Up to 5 the variance is too large to divide by it.
    length = longest - 2 * step * beta2**step / correction
    update = torch._foreach_div(exp_avgs, 1 - beta1**step)
    torch._foreach_mul_(update, lr)
    if length > 5:
        scale = torch._foreach_sqrt(squares)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_reciprocal_(scale)
        torch._foreach_mul_(scale, correction**0.5)
        torch._foreach_mul_(update, scale)
        rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        torch._foreach_mul_(update, rectified**0.5)
    return list(update)


def make_optimiser(net: torch.nn.Module, numbers: Optimiser) -> torch.optim.Optimizer:
    """The optimiser `numbers.kind` for the parameters of `net`: torch's fused version, or `RAdam` above."""
    kind: Any = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": RAdam}[numbers.kind]
    options = {
        "lr": numbers.lr,
        "betas": tuple(map(float, numbers.betas)),
        "eps": numbers.eps,
        "weight_decay": numbers.weight_decay,
    }
    made: torch.optim.Optimizer = kind(
        net.parameters(), **options, **({} if numbers.kind == "radam" else {"fused": True})
    )
    return made


def learning_rate(numbers: Optimiser, progress: Progress) -> float:
    """The learning rate, which rises linearly over warmup_images and falls linearly to 0 over the last decay_images."""
    rise = min(1.0, (progress.n_images + 1) / numbers.warmup_images) if numbers.warmup_images else 1.0
    left = progress.total - progress.n_images
    return numbers.lr * rise * (min(1.0, left / numbers.decay_images) if numbers.decay_images else 1.0)


def ema_beta(numbers: Ema, progress: Progress, batch: int) -> float:
    """Weight of the old values in the running average, in [0, 1]. progress: before this iteration. batch: its images.

    ramped: 0.5^(batch / min(half-life, ramp * n_images)), so 0 at the first step (EDM, appendix F.2);
    constant: beta; power: (1 - batch / t)^(gamma + 1) with t after the step (EDM2, eq. 127).
    """
    if numbers.policy == "constant":
        return numbers.beta
    if numbers.policy == "power":
        return (1 - batch / (progress.n_images + batch)) ** (numbers.gamma + 1)
    return 0.5 ** (batch / max(min(numbers.halflife_images, numbers.ramp * progress.n_images), 1e-8))
