# SPDX-License-Identifier: Apache-2.0
"""What ends a command: exceptions that the command line turns into one sentence and an exit code. Imports nothing of ours."""

from __future__ import annotations

import difflib


class Problem(Exception):
    """Something the user can put right. Its text says what was found, what was expected, what to type next."""


class NonFinite(Exception):
    """A NaN or an infinity: says where, in which term, in which tensor."""


class Stopped(Exception):
    """A training saved its state and ended before it was complete (a signal, or the time budget)."""


class Lost(Exception):
    """Another process of the run has ended."""


def nearest(word: str, words) -> str:
    """The end of a sentence: "; did you mean …?" with the closest of `words`, or nothing."""
    close = difflib.get_close_matches(str(word), [str(w) for w in words], 1, 0.5)
    return f"; did you mean {close[0]}?" if close else ""
