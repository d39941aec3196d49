# SPDX-License-Identifier: Apache-2.0
"""The English of the package: messages and docstrings avoid words that readers stumble over, and public names say what they do."""

from __future__ import annotations

import ast
import re

import pytest

from tests import messages

PACKAGE = messages.ROOT / "src/eldistill"
FOLDERS = ("", "plan", "steps", "commands", "data", "data/readers", "external")
FILES = sorted(path for folder in FOLDERS for path in (PACKAGE / folder).glob("*.py") if path.name != "contract.py")
AVOIDED = re.compile(
    r"\bleave[sd]? (it |them |\S+ )?away\b|\bmend(s|ed)?\b|\bfor ever\b|\bever after\b|\btold from\b|\blaid to\b|\bso many\b|\bbeds?\b"
)
OPENINGS = re.compile(r"(What|How|Where|Who|Whose|Why) ")
BARE = {
    "make",
    "load",
    "check",
    "read",
    "write",
    "run",
    "names",
    "count",
    "counts",
    "rows",
    "table",
    "text",
    "parts",
    "split",
}
CONTRACTS = {"data/readers": {"read"}}  # names by which plug-ins are called


def relative(path):
    return path.relative_to(PACKAGE).as_posix()


def test_every_kind_of_message_is_listed(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        'def f(x):\n    say(f"{x} of {x} images")\n    number(1, "images at once")\n'
        '    raise Problem("it is" + " wrong" if x else f"not {x} found")\n',
        encoding="utf-8",
    )
    assert sorted(messages.texts(file)) == [
        (2, "log", "{} of {} images"), (3, "help", "images at once"), (4, "error", "it is wrong | not {} found"),
    ]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_texts_avoid_words_that_readers_stumble_over(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
    texts = [*(text for _, _, text in messages.texts(path)), *(ast.get_docstring(node) or "" for node in documented)]
    assert [text for text in texts if AVOIDED.search(text)] == []
    assert not OPENINGS.match(ast.get_docstring(tree) or ""), (
        "a module's docstring opens with what the module holds or does"
    )


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_public_function_says_what_it_makes(path):
    """Of `load`, `make` and other bare verbs one sees what they do only together with the name of their module."""
    found = {
        node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)
    }
    assert found & BARE - CONTRACTS.get(relative(path.parent), set()) == set()


def test_help_texts_avoid_them_too():
    schema = messages.yaml.safe_load(
        (messages.ROOT / "workflow/schemas/params.schema.yaml").read_text(encoding="utf-8")
    )
    texts = list(messages.descriptions(schema))
    assert len(texts) > 100 and [text for text in texts if AVOIDED.search(text[1])] == []
