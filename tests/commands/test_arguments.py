# SPDX-License-Identifier: Apache-2.0
"""Numbers and paths on the command line: what a command cannot use is refused before it starts, in one sentence."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import pytest

from eldistill import __main__, files
from eldistill.commands import arguments
from eldistill.errors import Problem

STRANGE = ["nan", "inf", "-inf", "-1", "x", "", "1e999", "²", "1,5"]


@pytest.mark.parametrize("text", [*STRANGE, "0", "3", "0.5", "1e-3", "7_0", " 4 "])
def test_a_number_is_finite_and_in_range_or_refused(text):
    for kind, least in ((arguments.above_zero, 1e-300), (arguments.from_zero, 0), (arguments.whole_from_one, 1)):
        try:
            value = kind(text)
        except argparse.ArgumentTypeError as error:
            assert "expected a" in str(error)
        else:
            assert math.isfinite(value) and value >= least


@pytest.mark.parametrize("text", STRANGE)
@pytest.mark.parametrize(
    "words",
    [["cost", "smoke", "--tflops"], ["plan", "smoke", "--tflops"], ["cost", "smoke", "--allow"], ["suggest", "digits", "--images"],
     ["distil", "digits/di/el/0", "--max-minutes"], ["teacher", "digits", "--max-minutes"]],
    ids=" ".join,
)  # fmt: skip
def test_every_option_that_takes_a_number_refuses_others(words, text, capsys):
    """`cost --tflops 0` divided by zero, and `--max-minutes nan` never ended a training."""
    with pytest.raises(SystemExit) as ended:
        __main__.main([*words[:-1], f"{words[-1]}={text}"])
    assert ended.value.code == 2 and "expected a" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--n", "--steps", "--batch"])
@pytest.mark.parametrize("text", ["0", "-3", "x", str(10**12), "9" * 5000])
def test_a_check_of_a_published_network_has_bounds(option, text, capsys):
    """`--batch 0` ended in a traceback, `--steps 0` was the default, and `--n 1000000000000` ran until it was stopped."""
    with pytest.raises(SystemExit) as ended:
        __main__.main(["check", "edm-cifar10", f"{option}={text}"])
    said = capsys.readouterr().err
    assert (
        ended.value.code == 2
        and f"argument {option}: '" in said
        and "expected a whole number" in said
        and len(said) < 1500
    )


def test_every_option_with_a_decimal_number_has_such_a_type():
    options = [
        action
        for command in __main__.parser()._subparsers._group_actions[0].choices.values()
        for action in command._actions
    ]
    assert not [action.dest for action in options if action.type is float]


@pytest.mark.parametrize("path", ["/", ".", "..", "folder", "file/x.png", "file/deeper/x.png", "nowhere-link/x.png"])
def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("mine")
    Path("nowhere-link").symlink_to("nowhere")
    with pytest.raises(Problem, match="is a folder; give|is not a folder, so that"):
        files.check_target(path)
    with pytest.raises(OSError), files.atomic(path) as temporary:  # which callers that can do without the file expect
        temporary.write_text("")
    assert Path("file").read_text() == "mine" and sorted(tmp_path.iterdir()) == sorted(
        map(tmp_path.joinpath, ("file", "folder", "nowhere-link"))
    )


def test_folders_that_are_absent_are_made(tmp_path):
    with files.atomic(tmp_path / "a/b/c.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a/b/c.txt").read_text() == "x"


def test_where_to_write_is_looked_at_before_images_are_made(tmp_path, capsys):
    generator = next((Path(__main__.__file__).parent / "commands/selftest_files").glob("*.safetensors"))
    for option in (["--grid", str(tmp_path)], ["--out", str(Path(__file__))]):
        assert __main__.main(["sample", "--generator", str(generator), "--n", str(10**12), *option]) == 2
        assert "folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["recipes"], ["plan"], ["keep", "demo"], ["prune"], ["doctor"], ["fetch"], ["cite", "demo"]]
)
def test_a_command_outside_a_project_writes_nothing(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(words) == 2
    assert "run this command in the folder" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", ["0", "-1", "1000000", "1" * 400])
def test_processes_are_as_many_as_a_machine_can_have(project, capsys, count):
    """A million of them would have been started."""
    assert __main__.main(["distil", "digits-smoke/di/el/0", "--processes", count]) == 2
    said = capsys.readouterr().err
    assert "expected 1 to " in said and "one for each GPU" in said and len(said) < 300


@pytest.mark.parametrize("path", ["x", "a/b/x", "/x"])
def test_a_folder_that_cannot_be_written_is_named_before_hours_are_spent(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    files.check_writable(path)
    asked = []
    monkeypatch.setattr(os, "access", lambda folder, mode: asked.append(folder))
    with pytest.raises(
        Problem, match="may not write, or on a read-only file system, and .* belongs there; ask for write access"
    ):
        files.check_writable(path)
    assert asked == [tmp_path if path != "/x" else Path("/")] and not list(tmp_path.iterdir())
