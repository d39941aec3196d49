# SPDX-License-Identifier: Apache-2.0
"""Noise levels of consistency models and their relatives: pairs of levels, and the levels of sampling in a few steps."""

from __future__ import annotations

from typing import Any

import torch

from eldistill.errors import Problem

COVERED_BY = "methods/consistency"


def column(values: torch.Tensor) -> torch.Tensor:
    """Values [n] reshaped to [n, 1, 1, 1], to multiply images."""
    return values.reshape(-1, 1, 1, 1)


def easy_lower(t: torch.Tensor, q: float, stage: int, k: float, b: float) -> torch.Tensor:
    """ECT's r(t) = max(0, t (1 - eta(t) / q^(stage + 1))), eta(t) = 1 + k sigmoid(-b t); t's shape."""
    return (t * (1 - (1 + k * torch.sigmoid(-b * t)) / q ** (stage + 1))).clamp_min(0)


def check_steps(numbers: Any, lowest: float) -> None:
    """Raise Problem unless sigmas_2 and sigmas_4 of these numbers fall from sigma_max and stay above `lowest`."""
    for name, count in (("sigmas_2", 2), ("sigmas_4", 4)):
        levels = getattr(numbers, name)
        falls = all(isinstance(level, int | float) for level in levels) and list(levels) == sorted(
            set(levels), reverse=True
        )
        if not falls or len(levels) != count or levels[-1] <= lowest:
            raise Problem(
                f"params.yaml: {name} is {list(levels)}; expected {count} falling noise levels above {lowest:g}"
            )
        if levels[0] != numbers.sigma_max:
            raise Problem(
                f"params.yaml: {name} starts at {levels[0]} and sigma_max is {numbers.sigma_max}; expected the same level, "
                "the only one at which a generator has learned to start from noise"
            )


def few_steps(numbers: Any) -> dict[str, list[float]]:
    """The noise levels of sampling in 1, 2 and 4 steps, by the number of steps as a text."""
    return {
        "1": [float(numbers.sigma_max)],
        "2": [float(level) for level in numbers.sigmas_2],
        "4": [float(level) for level in numbers.sigmas_4],
    }
