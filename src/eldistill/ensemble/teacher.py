# SPDX-License-Identifier: Apache-2.0
"""The encoder of the frozen teacher as a member.

It is not random; it gives the best features without further training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eldistill.numbers import number

RECIPE = ("ensemble/teacher", 1)
RELATED = ("teacher",)  # the features of the teacher, if they ever become a feature space; none has them now
TEACHER = True  # `stages` gets the teacher, so the ensemble is made after it


@dataclass(frozen=True)
class Numbers:
    """The numbers of the teacher as a member."""

    sigma: float = number(0.2, "noise level given to the teacher; no noise is added to the images", above=0)


def draw(numbers: Numbers, shape: tuple[int, int, int], normal) -> dict[str, torch.Tensor]:
    """Return no weights, because nothing is random."""
    return {}


def stages(weights: dict[str, torch.Tensor], images: torch.Tensor, numbers: Numbers, teacher) -> list[torch.Tensor]:
    """The last output of the teacher's encoder without a label, [n, c, s, s]; images are over sigma_data."""
    x = images * teacher.sigma_data
    return [teacher.encode(x, x.new_full((len(x),), numbers.sigma))]
