# SPDX-License-Identifier: Apache-2.0
"""Objects whose pickles call something, for tests of readers that must not: the call leaves a file in the current folder."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

CANARY = "canary"  # the file that is there once a call was made


class Call:
    """Pickles as a call of a function, by default of one that makes the file CANARY. state: set on what the call returns."""

    def __init__(self, function: Callable = os.system, *arguments, state=None):
        arguments = arguments or (f"touch {CANARY}",)
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def dumps(protocol: int = 4) -> bytes:
    """A pickle of {"ema": Call()}."""
    return pickle.dumps({"ema": Call()}, protocol)


def called() -> bool:
    """Whether the file CANARY exists in the current folder."""
    return Path(CANARY).exists()
