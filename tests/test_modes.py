# SPDX-License-Identifier: Apache-2.0
"""A folder that a group shares: every new file has the mode that the umask gives, whatever wrote it."""

from __future__ import annotations

import os
import re
import stat

import numpy as np
import pytest
import torch

from eldistill import files
from eldistill.data import containers
from eldistill.paths import PACKAGE
from eldistill.plan import cluster
from eldistill.tensors import grow_tensors, save_tensors
from eldistill.training.lock import lock

PRIVATE = re.compile(
    r"mkstemp|NamedTemporaryFile|0o6[04]0|0o644|0o600|0o7[05]0"
)  # what ignores the umask, or narrows it


def grow(path) -> None:
    with grow_tensors(path, {"a": ("U8", (2,))}, {}) as growing:
        growing.append("a", np.zeros(2, np.uint8))


def new_zip(path) -> None:
    with containers.new_zip(path) as put:
        put("a", b"x")


def locked(path) -> None:
    with lock(path.parent):
        (path.parent / "lock").rename(path)


def driver(path) -> None:
    os.close(cluster.driver_lock(path.parent)[1])
    (path.parent / "data/scratch/driver.lock").rename(path)


WRITERS = {
    "tensors": lambda path: save_tensors(path, {"a": torch.ones(2)}, {}), "a large pack": grow, "a zip": new_zip,
    "text": lambda path: files.write_text(path, "x"), "JSON": lambda path: files.write_json(path, {}),
    "a table": lambda path: files.write_rows(path, [{"a": 1}]), "text at once": lambda path: files.replace_text(path, "x"),
    "a log": lambda path: files.append_line(path, "x"), "the lock of a run": locked, "the lock of a driver": driver,
}  # fmt: skip


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o027, 0o640), (0o077, 0o600)], ids=oct)
@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_new_file_has_the_mode_of_the_umask(tmp_path, kind, umask, mode):
    before = os.umask(umask)
    try:
        WRITERS[kind](tmp_path / "file")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
        WRITERS[kind](tmp_path / "file")  # over an old one
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    finally:
        os.umask(before)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_makes_private_files(path):
    """`files.atomic` is the way to write a file; locks are opened with 0o666, of which the umask takes what it takes."""
    assert not PRIVATE.search(path.read_text(encoding="utf-8"))
