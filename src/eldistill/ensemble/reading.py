# SPDX-License-Identifier: Apache-2.0
"""Features of generated and real images in all members of an ensemble, and their spread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from eldistill.contract import RealImages
from eldistill.ensemble.members import Member, stacked, stacks
from eldistill.losses.mmd import Rows
from eldistill.numbers import number

COVERED_BY = "ensemble/seed"


@dataclass(frozen=True)
class EnsembleNumbers:
    """The numbers of a supplement that compares features of an ensemble."""

    ensemble: str = number("conv4", "a name under `ensemble`: the random networks")
    ensemble_seed: int | None = number(
        None, "seed of the ensemble; null takes the run's seed", low=0, high=9_223_372_036_854_775_807
    )
    stack: str = number(
        "auto", "members of one shape: stacked in one pass, or one after the other in a loop; auto: stacked on a GPU",
        choices=("auto", "stacked", "loop"), neutral=True,
    )  # fmt: skip


def read_members(
    members: list[Member], x: torch.Tensor, real: torch.Tensor | None, stack: bool
) -> Iterator[tuple[list[int], Any, Any]]:
    """Yield (indices of members, their features of x, their features of real), one member or one stack at a time.

    x [m, c, h, w], real [n, c, h, w] or None: images over sigma_data. Features are [m, D] and [n, D] for each member; those
    of real have no graph, and are None without real.
    """
    for places in stacks(members) if stack else [[place] for place in range(len(members))]:
        together = len(places) > 1
        read = stacked([members[p] for p in places]) if together else lambda images, p=places[0]: [members[p](images)]
        of_real: Any = [None] * len(places)
        if real is not None:
            with torch.no_grad():
                of_real = read(real)
        yield places, read(x), of_real


def stacking(choice: str, x: torch.Tensor) -> bool:
    """Whether members of one shape are read in one pass. choice: the number `stack` of a supplement; x: what they read."""
    return choice == "stacked" or choice == "auto" and x.device.type == "cuda"


def feature_blocks(member: Member, reals: RealImages, order: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Yield features [up to size, D] of the real images in this order of their rows, without a graph."""
    for rows in order.split(size):
        with torch.no_grad():
            features = member(reals.take(rows)[0] / reals.sigma_data)
        yield features


def spread_warning(means: dict[str, float], features: str) -> str | None:
    """A warning if `trace_ratio` in the means of a row of the log is below 1/2; None otherwise. features: whose, in words."""
    ratio = means.get("trace_ratio", 1.0)
    if ratio >= 0.5:
        return None
    return f"the generated images have {100 * ratio:.0f} % of the real ones' spread in {features}: the generator may be collapsing"


def trace_ratio(
    x: torch.Tensor, y: torch.Tensor | None, of_real: float | None, across: Rows | None
) -> list[torch.Tensor]:
    """[tr Cov(x) / tr Cov(real)], where the second trace is of_real or that of the rows y; [] for one row on a side.

    x [m, D], y [n, D]: features, x in float64. across: processes that hold the rest of the rows.
    """
    if across is None and min(len(x), len(x if y is None else y)) < 2:
        return []
    return [_spread(x, across) / (of_real if y is None else _spread(y.double(), across))]


def _spread(x: torch.Tensor, across: Rows | None) -> torch.Tensor:
    # Trace of the covariance of the rows of all processes.
    if across is None:
        return x.var(0).sum()
    n, total, square = across.count(x), across.total(x.sum(0)), across.total(x.square().sum())
    return (square - total.square().sum() / n) / (n - 1)
