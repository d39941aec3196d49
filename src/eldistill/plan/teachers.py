# SPDX-License-Identifier: Apache-2.0
"""Checks of a section of `teacher`: one origin for its network, known keywords, and no key that does not count."""

from __future__ import annotations

from typing import Any, Protocol

from eldistill.errors import expected_among, quoted
from eldistill.plan import combinations, guidance
from eldistill.plan.schema import Wrong, refuse_unknown
from eldistill.registry import available, settings


class Sections(guidance.Sections, combinations.Sections, Protocol):
    """The part of params.Params that these checks use."""


def check_teacher(params: Sections, where: str, value: dict[str, Any]) -> None:
    """Raise Wrong at the first mistake in a resolved teacher. where: the name of its section in messages."""
    if value["data"] not in params.values["data"]:
        refuse_unknown(f"{where}.data", value["data"], params.values["data"])
    if value["guidance"] is not None:
        guidance.check_guided(params, where, value)
        combinations.check_teacher(params, where, value)
        return
    theirs = value["source"] is not None or value["file"] is not None
    if theirs == ("network" in value):
        both = "a network and a source or a file" if theirs else "neither a network to train nor a source or a file"
        raise Wrong(where, f"has {both}; give one of `network`, `source` and `file`")
    if value["state"] is not None and not theirs:
        raise Wrong(
            f"{where}.state",
            "is only for a teacher from a `source` or a `file`; remove it, because this teacher is trained",
        )
    for key, usual in (("precision", "float32"), ("label_dropout", 0)):
        if value[key] != usual and theirs:
            raise Wrong(
                f"{where}.{key}",
                "is only for a teacher that is trained; remove it, because this one comes from a source or a file",
            )
    if not theirs:
        _network(f"{where}.network", value["network"])
    combinations.check_teacher(params, where, value)


def _network(where: str, network: dict[str, Any]) -> None:
    file = network.get("network")
    if file not in available("networks"):
        refuse_unknown(f"{where}.network", file, available("networks"))
    known = [name for name in settings(file) if name not in ("img_resolution", "img_channels", "label_dim")]
    for key in network:
        if key != "network" and key not in known:
            raise Wrong(
                f"{where}.{key}",
                f"is not a known key (found {quoted(network[key])}){expected_among(known, key)}",
            )
