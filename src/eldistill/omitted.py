# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the functions of the contract that a method or a supplement omits."""

from __future__ import annotations

from typing import Any

COVERED_BY = "loop"


def unoffered(*_: Any) -> Any:
    """In place of a function that has no default. Raises TypeError."""
    raise TypeError(
        "this method or supplement lacks a function that is needed here; eldistill.contract lists the functions"
    )


def nothing(*_: Any) -> None:
    """In place of a function without a result."""
    return None


def first(first: Any, *_: Any) -> Any:
    """In place of a function that may change its first argument."""
    return first


def no_terms(*_: Any) -> dict[str, Any]:
    """In place of a function that returns values by their names."""
    return {}


def one(_: Any) -> int:
    """In place of a function that returns a number of images."""
    return 1
