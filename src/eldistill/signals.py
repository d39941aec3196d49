# SPDX-License-Identifier: Apache-2.0
"""Signals that end a command: Ctrl-C, SIGTERM and a closed terminal become one exception, one sentence and one exit code.

A training loop handles the same signals itself while it runs (eldistill.training.interrupts), because it saves its state first.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any

# SIGUSR1 is SIGTERM at second hand: a driver passes its own signal on by it (eldistill.plan.driver). A step may get both, and the
# second one must not count as impatience.
PASSED_ON = signal.SIGUSR1
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, PASSED_ON)


class Interrupted(BaseException):
    """A signal asked the command to end. No `except Exception` catches it, so temporary files are removed on its way up."""


class Signals:
    """A context in which the signals of ENDING raise Interrupted, with the name of the signal. One that the starter of this
    process ignores, as nohup does with SIGHUP, stays ignored.

    name: the signal that came, or None. It is kept because libraries turn an exception during their import into another one.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.certain = False  # whether another signal than PASSED_ON came
        self.before: dict[int, Any] = {}  # the previous handlers

    def __enter__(self) -> Signals:
        try:
            for number in ENDING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._caught)
        except ValueError:  # Python sets handlers in the main thread only
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        again, self.certain = self.name is not None and not self.certain, self.certain or number != PASSED_ON
        if self.name and (again or number == PASSED_ON):
            return  # the same request at second hand, before or after it: do not disturb the end that it began
        self.name = signal_name(number)
        raise Interrupted(self.name)

    def is_cause_of(self, error: BaseException) -> bool:
        """Whether an exception is the end that a signal asked for."""
        return isinstance(error, Interrupted | KeyboardInterrupt) or (
            self.name is not None and not isinstance(error, SystemExit)
        )

    def report(self, error: BaseException) -> int:
        """Print one sentence and return the exit code: 130 after Ctrl-C, as shells have it, 75 after the other signals."""
        name = self.name or str(error) or "SIGINT"
        print(
            f"eldistill: stopped by {name}; finished files and saved states are kept, repeat the command to go on",
            file=sys.stderr,
        )
        return 130 if name == "SIGINT" else 75


def signal_name(number: int) -> str:
    """Its name, such as SIGTERM, which is also that of PASSED_ON."""
    return "SIGTERM" if number == PASSED_ON else signal.Signals(number).name


def handle_from_start() -> None:
    """Handle signals for as long as the process lives, also while Python imports the modules of a command.

    No `try` surrounds these imports, so that the hook for uncaught exceptions prints the sentence."""
    early, usual = Signals(), sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not early.is_cause_of(error):
            return usual(kind, error, trace)
        code = early.report(error)
        sys.stderr.flush()
        os._exit(code)  # after a hook Python would end with 1, or by the signal

    sys.excepthook = hook
    early.__enter__()
