# SPDX-License-Identifier: Apache-2.0
"""Values of features that are computed once, as long as the array that they belong to exists."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

COVERED_BY = "metrics"

_kept: dict[int, dict[str, Any]] = {}
_numbers = itertools.count()


def once(array: np.ndarray, name: str, compute: Callable[[], Any]) -> Any:
    """compute(), which is called once for each name while `array` exists. An array that can be written to is never remembered.

    Every snapshot is compared with the same real images, whose covariance, its root, and sums over all pairs take longer than the
    generated side."""
    if array.flags.writeable:
        return compute()
    if id(array) not in _kept:
        _kept[id(array)] = {}
        weakref.finalize(array, _kept.pop, id(array), None)
    known = _kept[id(array)]
    if name not in known:
        known[name] = compute()
    return known[name]


def keep(array: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """The array, made read-only, with values that `once` then finds by their names."""
    array.flags.writeable = False
    for name, value in values.items():
        once(array, name, lambda value=value: value)
    return array


def number_of(array: np.ndarray) -> str:
    """A number that no other array has had, as text; empty for an array that can be written to."""
    return "" if array.flags.writeable else str(once(array, "number", lambda: next(_numbers)))
