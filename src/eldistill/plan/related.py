# SPDX-License-Identifier: Apache-2.0
"""Which feature spaces are related to the members that a run is trained with, so that they do not judge it alone.

A family of embedding networks names them in a literal `RELATED` (see eldistill.ensemble). A run is related to those of all families in
the ensembles of its supplements, and of the run that its generator starts from. Members that see latents count as those that see pixels.
Other losses that compare images or features (regression on pairs, LPIPS, discriminators) are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from eldistill.plan.checks import Sections
from eldistill.plan.run import Run
from eldistill.registry import literal


def related_spaces(params: Sections, runs: Iterable[Run]) -> dict[str, list[str]]:
    """{DATA/METHOD/SUPPLEMENT: names of feature spaces} of the arms of these runs that are related to one or more."""
    found: dict[str, list[str]] = {}
    for run in runs:
        arm = f"{run.data}/{run.method}/{run.supplement}"
        if arm not in found:
            found[arm] = sorted(set(_of_training(params, run.data, run.method, run.supplements)))
    return {arm: spaces for arm, spaces in found.items() if spaces}


def _of_training(params: Sections, data: str, method: str, supplements: Iterable[str]) -> Iterator[str]:
    # Of the supplements of a run, and of the run that its generator starts from.
    for name in supplements:
        if ensemble := params.peek("supplement", name, data).get("ensemble"):
            for member in params.peek("ensemble", ensemble)["members"]:
                yield from literal(f"ensemble/{member['family']}", "RELATED", ())
    start = params.peek("method", method, data).get("start_from")
    if start:
        other, _, names = start.partition("/")
        yield from _of_training(params, data, other, [] if names == "none" else names.split("+"))
