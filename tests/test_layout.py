# SPDX-License-Identifier: Apache-2.0
"""Where tests lie: a folder for each package of src/eldistill, and file names that never collide."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eldistill.paths import PACKAGE
from tests.conftest import GOLDEN, ROOT

TESTS = ROOT / "tests"
MIRRORS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
FILES = [str(path.relative_to(TESTS)) for path in sorted(TESTS.rglob("*.py"))]
BELOW = [name for name in FILES if "/" in name and not name.startswith("slurm/")]


def imported(name: str) -> set[str]:
    """The dotted names that a file of tests/ imports, also inside functions."""
    tree = ast.parse((TESTS / name).read_text(encoding="utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return found | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


def test_the_lists_are_not_empty():
    assert len(MIRRORS) > 10 and len(FILES) > 50 and len(BELOW) > 30 and GOLDEN.is_dir()


@pytest.mark.parametrize("name", BELOW)
def test_a_folder_of_tests_is_a_package_that_its_files_import(name):
    """The tests of eldistill.plan lie in tests/plan. Golden arrays and the tests of a real Slurm have folders of their own."""
    folder, file = Path(name).parts
    assert folder in MIRRORS and re.fullmatch(r"test_\w+\.py", file)
    assert any(f"{each}.".startswith(f"eldistill.{folder}.") for each in imported(name))


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_tests_is_imported_under_its_full_name(name):
    """`import helper` would find a second copy, or nothing, from another folder."""
    ours = {Path(each).stem for each in FILES} - {"__init__"}
    short = {each for each in imported(name) if each.split(".")[0] in ours}
    assert not short, f"write `from tests import ...` in place of {', '.join(sorted(short))}"


@pytest.mark.parametrize("name", [name for name in FILES if Path(name).name.startswith("test_")])
def test_the_root_is_named_once(name):
    """A test file that moves to another folder needs no edit: conftest.py has ROOT and GOLDEN."""
    text = (TESTS / name).read_text(encoding="utf-8")
    assert not re.search(r"Path\(__file__\)(\.resolve\(\))?\.parent", text), "take ROOT or GOLDEN from tests.conftest"


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "two workers"])
def test_files_of_one_name_in_two_folders_do_not_collide(workers, tmp_path):
    """With the settings of this project, started from a folder outside, each by itself and both together."""
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")
    for folder in ("data", "plan"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        text = f"from tests import helper\n\ndef test_it():\n    assert helper.A and __name__ == 'tests.{folder}.test_same'\n"
        (tmp_path / "tests" / folder / "test_same.py").write_text(text, encoding="utf-8")
    (tmp_path / "tests/__init__.py").touch()
    (tmp_path / "tests/helper.py").write_text("A = 1\n", encoding="utf-8")
    both = [str(tmp_path / f"tests/{folder}/test_same.py") for folder in ("data", "plan")]
    for files in ([both[0]], [both[1]], both):
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(tmp_path / "pyproject.toml")]
        done = subprocess.run([*words, *workers, *files], cwd=tmp_path.parent, capture_output=True, text=True)
        assert done.returncode == 0 and f"{len(files)} passed" in done.stdout, done.stdout + done.stderr
