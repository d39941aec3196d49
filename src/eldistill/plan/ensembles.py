# SPDX-License-Identifier: Apache-2.0
"""Sections of ensembles for programs outside a project: the names that this package ships, or a section of the caller.

`params.yaml` and `params.schema.yaml` beside this file are links to the ones of the repository. An installed package
holds copies, so that a name means the same with and without a checkout. The params.yaml of the current folder is not read.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

from eldistill import paths
from eldistill.errors import Problem, quoted
from eldistill.plan import reading
from eldistill.plan.params import Params
from eldistill.plan.schema import Wrong

GIVEN = "(given)"  # the name of the caller's section, which YAML files do not use


class _Ensembles(Params):
    """The resolution of Params for sections of ensembles alone."""

    def __init__(self, sections: dict[str, Any]) -> None:
        self.schema = dict(_shipped("params.schema.yaml"))
        self.definitions = self.schema.pop("$defs")
        self.values = {"ensemble": sections}

    def place(self, kind: str, name: str) -> str:
        return "ensemble" if name == GIVEN else f"ensemble.{name}"


@functools.cache
def _shipped(name: str) -> dict[str, Any]:
    found: dict[str, Any] = reading.read_file(paths.PACKAGE / "plan" / name)
    return found


def ensemble_section(ensemble: str | dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any]:
    """The complete section of an ensemble, with all defaults.

    ensemble: a name under `ensemble` in the params.yaml that this package ships, such as conv4; or a section like those,
    {"members": [{"family": "conv", "norm": "group"}, …], "calibration": 512, …}, which may be `like` one of them; or the
    list of members alone. Raises Problem for an unknown name, key or value.
    """
    sections = _shipped("params.yaml")["ensemble"]
    if not isinstance(ensemble, str):
        given = {"members": ensemble} if isinstance(ensemble, (list, tuple)) else ensemble
        if not isinstance(given, dict):
            raise Problem(f"ensemble is {quoted(ensemble)}; expected a name ({', '.join(sections)}), a dict like a section of "
                          "params.yaml, or a list of members")  # fmt: skip
        if isinstance(given.get("members"), tuple):
            given = {**given, "members": list(given["members"])}
        sections, ensemble = {**sections, GIVEN: copy.deepcopy(given)}, GIVEN
    try:
        return _Ensembles(sections).section("ensemble", ensemble, where="ensemble")
    except Wrong as wrong:
        raise Problem(f"EmbeddingLoss: {wrong.where} {wrong.text}") from None
