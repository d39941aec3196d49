# SPDX-License-Identifier: Apache-2.0
"""Signals that end a command: Ctrl-C, SIGTERM and a closed terminal become one exception, one sentence and one exit code.

A training loop handles the same signals itself while it runs (eldistill.training.interrupts), because it saves its state first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any, Self

# SIGUSR1 is SIGTERM at second hand: a driver passes its own signal on by it (eldistill.plan.driver). A step may get both, and the
# second one must not count as impatience.
PASSED_ON = signal.SIGUSR1
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, PASSED_ON)


class Interrupted(BaseException):
    """A signal asked the command to end. No `except Exception` catches it, so temporary files are removed on its way up."""


class Handlers:
    """A context in which a handler gets the signals of ENDING; the previous handlers return after it.

    A signal that the starter of this process ignores stays ignored, as nohup does with SIGHUP, unless it is in `always`. In a
    thread that is not the main one nothing changes, because Python sets handlers in the main thread only."""

    def __init__(self, handler: Callable[[int, FrameType | None], None], always: Iterable[int] = ()) -> None:
        self.handler, self.always = handler, frozenset(always)
        self.before: dict[int, Any] = {}  # the previous handlers

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if number in self.always or signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self.before:
            self.restore(number)

    def restore(self, number: int) -> None:
        """Give a signal back to its previous handler."""
        signal.signal(number, self.before[number])


class Signals(Handlers):
    """A context in which the signals of ENDING raise Interrupted, with the name of the signal.

    name: the signal that came, or None. It is kept because libraries turn an exception during their import into another one.
    """

    def __init__(self) -> None:
        super().__init__(self._caught)
        self.name: str | None = None
        self.certain = False  # whether another signal than PASSED_ON came

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
