# SPDX-License-Identifier: Apache-2.0
"""Types of numbers on the command line, for `type` of argparse: what a command cannot compute with is refused before it starts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def above_zero(text: str) -> float:
    """A finite number above 0. Raises ArgumentTypeError, as argparse expects."""
    return _number(text, above=True)


def from_zero(text: str) -> float:
    """A finite number, 0 or more. Raises ArgumentTypeError, as argparse expects."""
    return _number(text, above=False)


def whole_from_one(text: str) -> int:
    """A whole number, 1 or more. Raises ArgumentTypeError, as argparse expects."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text[:100]!r}; expected a whole number, 1 or more")
    return value


def whole_up_to(most: int) -> Callable[[str], int]:
    """A type: a whole number from 1 to `most`, above which a command would run for years or need more memory than there is."""

    def whole(text: str) -> int:
        value = whole_from_one(text)
        if value > most:
            raise argparse.ArgumentTypeError(f"{text[:100]!r}; expected a whole number from 1 to {most:,}")
        return value

    return whole


def _number(text: str, above: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (above and value == 0):
        raise argparse.ArgumentTypeError(f"{text[:100]!r}; expected a number{' above 0' if above else ', 0 or more'}")
    return value
