# SPDX-License-Identifier: Apache-2.0
"""Signals that make a training save its state and stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

COVERED_BY = "loop"


class Interrupts:
    """A context in which SIGTERM and SIGINT call `stop` with the name of the signal.

    A second signal ends the process.
    """

    def __init__(self, stop: Callable[[str], None]) -> None:
        self.stop = stop
        self.before: dict[int, Any] = {}  # the previous handlers

    def __enter__(self) -> None:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._caught)
        except ValueError:  # Python sets handlers in the main thread only
            self.before = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.stop(signal.Signals(number).name)
        signal.signal(number, self.before[number])
