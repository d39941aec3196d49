# SPDX-License-Identifier: Apache-2.0
"""No base loss: the generator starts with the weights of the teacher, and supplements alone train it.

The control of a supplement that is added to a base loss: how much of the result needs the base loss? The teacher is not
evaluated in training. Weights of supplements are factors (weighting: fixed), because there is no gradient of which they
could be a share. With one supplement and an optimiser that divides by the size of the gradient, as Adam does, the factor
changes nothing but rounding; the learning rate is what to tune.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eldistill.contract import Phase, Progress
from eldistill.losses.score import generate as generate
from eldistill.losses.score import generator as generator
from eldistill.losses.score import sampler as sampler
from eldistill.numbers import number

RECIPE = ("methods/alone", 1)
OTHER_SIZE = True  # its generator may be smaller or larger than the teacher


@dataclass(frozen=True)
class Numbers:
    """The numbers of a generator without a base loss."""

    sigma_init: float = number(2.5, "noise level the generator starts from (that of Diff-Instruct here)", above=0)


def phases(numbers: Numbers, progress: Progress) -> list[Phase]:
    """One step of the generator."""
    return [Phase("generator")]


def networks(teacher: torch.nn.Module, numbers: Numbers, seed: int) -> dict[str, torch.nn.Module]:
    """No further network."""
    return {}


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes; encoder: the share of one that the encoder takes."""
    return 3


def passes_of(numbers: Numbers) -> dict[str, float]:
    """Those of generator and teacher among them."""
    return {"generator": 3, "teacher": 0}
