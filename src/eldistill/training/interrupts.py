# SPDX-License-Identifier: Apache-2.0
"""Signals that make a training save its state and stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from eldistill.signals import ENDING, PASSED_ON, signal_name

COVERED_BY = "loop"


class Interrupts:
    """A context in which the signals of ENDING call `stop` with the name of the signal.

    A second signal goes to the previous handler, which ends the process; PASSED_ON repeats a signal and is never the second one.
    Signals that the starter of the process ignores stay ignored, except SIGINT: shells ignore it for all background jobs.
    """

    def __init__(self, stop: Callable[[str], None]) -> None:
        self.stop = stop
        self.before: dict[int, Any] = {}  # the previous handlers

    def __enter__(self) -> None:
        try:
            for number in ENDING:
                if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._caught)
        except ValueError:  # Python sets handlers in the main thread only
            self.before = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.stop(signal_name(number))
        if number != PASSED_ON:
            signal.signal(number, self.before[number])
