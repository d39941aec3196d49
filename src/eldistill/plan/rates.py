# SPDX-License-Identifier: Apache-2.0
"""The learning rates of a run: those of its method, times the factor of its arm (`rate` and `rates` in params.yaml)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eldistill.plan.checks import Sections
from eldistill.plan.run import Run


def factor(params: Sections, run: Run) -> float:
    """The factor on the learning rates of a run: `rate` of its method, or else that of its supplement in `rates`."""
    section = params.peek("method", run.method, run.data)
    return float(section["rates"].get(run.supplement, 1) if section["rate"] is None else section["rate"])


def base_method(params: Sections, method: str) -> str:
    """The method that this one is at another rate: what it is `like` if it has the key `rate`, or else itself."""
    section = params.named("method")[method]
    own = any("rate" in each for each in (section, *section.get("per_data", {}).values()))
    return base_method(params, section["like"]) if own and "like" in section else method


def method_of(params: Sections, run: Run) -> dict[str, Any]:
    """The resolved section of a run's method, with the learning rates of this run."""
    section, times = params.section("method", run.method, run.data), factor(params, run)
    for network in ("generator", "critic"):
        section[network]["lr"] *= times
    return {key: value for key, value in section.items() if key not in ("rate", "rates")}


def arm_rates(params: Sections, runs: Iterable[Run]) -> dict[str, list]:
    """{METHOD/SUPPLEMENT: [method at rate 1, factor]} of the runs; {DATA/METHOD/SUPPLEMENT: …} where data settings differ in it."""
    found: dict[str, dict[str, list]] = {}
    for run in runs:
        rate = [base_method(params, run.method), factor(params, run)]
        found.setdefault(f"{run.method}/{run.supplement}", {})[run.data] = rate
    flat: dict[str, list] = {}
    for arm, each in found.items():
        first, *others = each.values()
        flat |= (
            {arm: first}
            if all(other == first for other in others)
            else {f"{data}/{arm}": rate for data, rate in each.items()}
        )
    return flat
