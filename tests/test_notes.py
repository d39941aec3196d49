# SPDX-License-Identifier: Apache-2.0
"""Files that this project notes something in for itself: a damaged one is as good as none, in a folder that several people share."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from eldistill import files
from eldistill.commands import planned
from eldistill.errors import Problem
from eldistill.external import fetching, hashes, sourcelock
from eldistill.plan import records
from eldistill.training import state
from tests import messages
from tests.test_outside import MADE

PACKAGE = messages.ROOT / "src/eldistill"
DAMAGED = {
    "empty": b"", "cut": b'{"recipe": "x", "fil', "a list": b"[1, 2]", "a number": b"1", "a text": b'"x"', "no mapping": b"null",
    "nothing in it": b"{}", "other values": b'{"recipe": [1], "files": 3, "listing": null, "sentence": null, "code": {}, "data/a": 5}',
    "nested": b"[" * 100_000, "nested mappings": b'{"recipe": ' * 5_000, "no text": b"\xff\xfe\x00",
    "half a pair": b'{"recipe": "\\ud800"}',
    "UTF-16": "{}".encode("utf-16"), "bytes of a disk": bytes(512), "a long number": b'{"recipe": ' + b"9" * 5_000 + b"}",
}  # fmt: skip


def step(sidecar: str) -> SimpleNamespace:
    """A step that is not fresh, as far as the list of states looks at one."""
    recipe = json.dumps({"name": "a", "params": {}, "versions": {}, "sources": {}})
    return SimpleNamespace(
        fresh=lambda root: False, sidecar=sidecar, recipe=recipe, outputs=["a"], changed=lambda root: ["a"]
    )


def known(path):
    """The digests of earlier plans, of a folder that has none in memory."""
    records._seen.clear()
    (path.parent / records.SEEN).parent.mkdir(parents=True, exist_ok=True)
    path.rename(path.parent / records.SEEN)
    return records._known(str(path.parent))


def listed(path):
    """The identity that is stored for a folder outside."""
    stored = hashes.Cache("somewhere", path.parent)
    stored.all.parent.mkdir(parents=True, exist_ok=True)
    path.rename(stored.all)
    return stored.whole("listing", 0)


def failed(path):
    """The sentence of an earlier try."""
    path.rename(path.with_name("failed.json"))
    return state.noted_failure(path.parent, "code")


READERS = {
    "the record of outputs": (lambda path: records.changed_outputs(path.parent, path.name, "digest"), []),
    "the record of kept results": (lambda path: records.other_lines(path.parent, path.name, "digest", {}), {}),
    "digests of earlier plans": (known, {}),
    "the identity of a folder": (listed, None),
    "a failure": (failed, None),
    "a download that stopped": (lambda path: isinstance(fetching._about(path.with_suffix("")), dict), True),
    "the recipe of a result": (lambda path: planned.state_of(step(path.name), path.parent).is_ in (planned.MISSING, planned.STALE), True),
}  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_note_is_as_good_as_none(tmp_path, reader, content):
    read, nothing = READERS[reader]
    path = tmp_path / "note.json"
    path.write_bytes(DAMAGED[content])
    assert read(path) == nothing


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_in_place_of_a_note_is_as_good_as_none(tmp_path, reader):
    (tmp_path / "note.json").mkdir()
    assert READERS[reader][0](tmp_path / "note.json") == READERS[reader][1]


def test_a_note_is_read_as_it_was_written(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [1, 2.5, "ü"]})
    assert files.read_note(tmp_path / "a.json") == {"a": [1, 2.5, "ü"]}
    assert files.read_note(tmp_path / "b.json") is None


ORDINARY = {
    "JSON": ("a.json", files.read_json), "a table": ("a.csv", files.read_rows),
    "the lock of sources": ("data/sources.lock.csv", lambda path: sourcelock.read_rows(path.parents[1])),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "an endless device", "a folder", "too large"])
@pytest.mark.parametrize("reader", ORDINARY)
def test_what_is_no_ordinary_file_is_refused_before_it_is_opened(tmp_path, reader, kind):
    """A reader that opened the pipe, or read the device, would not end."""
    name, read = ORDINARY[reader]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if kind == "too large":
        with open(path, "wb") as file:
            file.truncate(files.MAX_TABLE + 1)  # a hole: it takes no space
    else:
        (Path.mkdir if kind == "a folder" else MADE[kind][0])(path)
    with pytest.raises(Problem, match="has more than" if kind == "too large" else "is no ordinary file"):
        read(path)
    assert kind == "too large" or files.read_note(path) is None


# Modules that parse JSON with bounds of their own, or only texts that this process made: name, and why.
OWN = {
    "files.py": "parse_json", "tensorheader.py": "headers, whose length is bounded", "teacher/ddpm.py": "of at most CONFIG_BYTES",
    "tables/judged.py": "of at most LARGEST bytes", "external/hashes.py": "lines", "networks/__init__.py": "made here",
    "commands/cost.py": "made here", "commands/planned.py": "recipes of this plan", "steps/run.py": "checked before",
}  # fmt: skip


def test_json_is_parsed_where_its_nesting_is_bounded():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("load", "loads") and ast.unparse(node.value) == "json":
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == set(OWN)


def test_the_state_of_a_loss_that_is_nested_too_deeply_is_one_sentence():
    import torch

    from eldistill import embedding_loss

    with pytest.raises(Problem, match="EmbeddingLoss: the state_dict is damaged"):
        embedding_loss._read_state(torch.tensor(list(b"[" * 50_000), dtype=torch.uint8))
