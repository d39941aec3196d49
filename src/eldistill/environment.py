# SPDX-License-Identifier: Apache-2.0
"""Reads environment variables. An empty one counts as not set, and a value that cannot be meant is refused by the name of its variable."""

from __future__ import annotations

import os
import re

from eldistill.errors import Problem, quoted

STORE = "ELDISTILL_STORE"
MOST = 4096  # of processes, GPUs, parts of a batch and threads: above any machine, and small enough to make a list of


def whole_number(name: str, default: int = 1, least: int = 1) -> int:
    """The whole number in a variable, `default` if it is not set. Raises Problem below `least` and above MOST."""
    given = os.environ.get(name, "").strip()
    if not given:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", given) or not least <= int(given) <= MOST:
        raise Problem(
            f"{name} is {quoted(given)}; expected a whole number from {least} to {MOST}, or unset it (unset {name})"
        )
    return int(given)


def one_of(name: str, words: tuple[str, ...]) -> str:
    """The word in a variable, "" if it is not set. Raises Problem for any other than `words`."""
    given = os.environ.get(name, "").strip()
    if given and given not in words:
        raise Problem(f"{name} is {quoted(given)}; expected {' or '.join(words)}, or unset it (unset {name})")
    return given


def offline() -> bool:
    """Whether ELDISTILL_OFFLINE forbids to ask servers. Raises Problem for other values than 0 and 1."""
    return one_of("ELDISTILL_OFFLINE", ("1", "0")) == "1"


def store_folder() -> str:
    """The folder of fetched files, as the user writes it."""
    return os.environ.get(STORE, "").strip() or "data/scratch/store"


def set_threads() -> None:
    """Give numerical libraries one thread each where the user names no number. They read the variables as they are imported, and bits
    must not follow the number of cores, which is what they would take in place of a word."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        # A list has a number for each level of nesting.
        if not re.fullmatch(r"\s*[1-9]\d{0,3}\s*(,\s*[1-9]\d{0,3}\s*)*", os.environ.get(name, ""), re.ASCII):
            os.environ[name] = "1"
