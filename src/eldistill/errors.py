# SPDX-License-Identifier: Apache-2.0
"""Exceptions that end a command; the command line prints their sentence and chooses the exit code. This module imports no other
of the package."""

from __future__ import annotations

import difflib


class Problem(Exception):
    """An error that the user can correct. Its text says what was found, what was expected and what to type next. Exit code 2."""


class NonFinite(Exception):
    """A value became NaN or infinite. The text names the place, the term of the loss and the tensor."""


class Stopped(Exception):
    """A training saved its state and stopped early, after a signal or at its time limit. Exit code 75."""


class Lost(Exception):
    """Another process of a run with several processes has ended, so this one cannot continue."""


def nearest(word: str, words) -> str:
    """ "; did you mean …?" with the word of `words` that is most similar to `word`, or "" if none is similar."""
    close = difflib.get_close_matches(str(word), [str(w) for w in words], 1, 0.5)
    return f"; did you mean {close[0]}?" if close else ""
