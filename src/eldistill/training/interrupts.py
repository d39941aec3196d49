# SPDX-License-Identifier: Apache-2.0
"""Signals that make a training save its state and stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

from eldistill.signals import PASSED_ON, Handlers, signal_name

COVERED_BY = "loop"


class Interrupts(Handlers):
    """A context in which the signals of eldistill.signals.ENDING call `stop` with the name of the signal.

    A second signal goes to the previous handler, which ends the process; PASSED_ON repeats a signal and is never the second one.
    SIGINT is handled also where the starter of the process ignores it: shells ignore it for all background jobs.
    """

    def __init__(self, stop: Callable[[str], None]) -> None:
        super().__init__(self._caught, always=(signal.SIGINT,))
        self.stop = stop

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.stop(signal_name(number))
        if number != PASSED_ON:
            self.restore(number)
