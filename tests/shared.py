# SPDX-License-Identifier: Apache-2.0
"""Folders that several test files need are made once in a session, whichever worker comes first, and copied by the others."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of this session, filled by `make(folder)` once for all workers of pytest-xdist.

    Whoever comes first makes it, the others wait. Nobody may write into it: copy what a test changes. A `make` that
    fails fails in every test that needs the folder, since nobody else's attempt would be another one.
    """
    root = factory.getbasetemp()
    if root.name.startswith("popen-"):  # a worker's own folder, below that of the session
        root = root.parent
    folder, done = root / f"shared-{name}", root / f"shared-{name}.done"
    with open(root / f"shared-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
