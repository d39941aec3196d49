# SPDX-License-Identifier: Apache-2.0
"""Environments of users that differ from that of the developers: the same commands work in all of them, without a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eldistill.commands import doctor
from eldistill.distil import provenance
from eldistill.plan import cluster
from tests import conftest
from tests.conftest import ROOT

GONE = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
CACHE = {"XDG_CACHE_HOME": "{project}/cache"}  # absolute, as the standard asks
ENVIRONMENTS = {
    "backend of a notebook": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    "backend with windows": {"MPLBACKEND": "TkAgg", "DISPLAY": ""},
    "no UTF-8": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    "POSIX": {"LC_ALL": "POSIX", "LANG": ""},
    "narrow": {"COLUMNS": "20", "TERM": "dumb"},
    "no folder for temporary files": {"TMPDIR": "/nowhere"},
    "home that cannot be written": {"HOME": "/dev/null/home", **CACHE},
    "warnings of a developer": {"PYTHONWARNINGS": "default", "PYTHONDEVMODE": "0"},
    "numbers that are none": {
        "OMP_NUM_THREADS": "abc",
        "MKL_NUM_THREADS": "-1",
        "SOURCE_DATE_EPOCH": "abc",
        "ELDISTILL_PARTS": "x",
        "ELDISTILL_STORE": "",
        "ELDISTILL_MIRROR": "",
        "CUDA_VISIBLE_DEVICES": "abc,-1,,/",
    },
    "no user name": dict.fromkeys(GONE) | CACHE | {"HOME": "{project}"},
}
# A plan, a page of help, a refusal, a picture, and a question to Slurm; in one process, because its start takes most of the time.
STEPS = """
from eldistill import __main__ as program
from eldistill.plan import cluster

def code(*words):
    try:
        return program.main(list(words))
    except SystemExit as ended:
        return ended.code

assert code("plan", "smoke") == 0 and code("--help") == 0 and code("check", "nothing") == 2
from matplotlib.figure import Figure
Figure().savefig("a.png"), Figure().savefig("a.pdf"), Figure().savefig("a.svg")
assert cluster.jobs_of(cluster.Path()) == []
"""
DRIVER = ["-m", "snakemake", "-n", "all", "--config", "suite=smoke"]
DRIVEN = ("no UTF-8", "home that cannot be written", "no user name")  # what concerns Snakemake


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    conftest.copy_parameters(folder)
    for name in ("workflow", "profiles"):
        shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True)
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "src").symlink_to(ROOT / "src")
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data/sources.csv", folder / "data")
    (folder / "squeue").write_text("#!/bin/sh\nexit 0\n")
    (folder / "squeue").chmod(0o755)
    return folder


def environment(changes: dict[str, str | None], project: Path) -> dict[str, str]:
    """The present one with changes; None removes a variable. No squeue of this machine is asked."""
    found = (
        os.environ | {"PYTHONPATH": str(ROOT / "src"), "PATH": f"{project}{os.pathsep}{os.environ['PATH']}"} | changes
    )
    return {name: value.replace("{project}", str(project)) for name, value in found.items() if value is not None}


def nameless() -> list[str]:
    """The beginning of a command that runs as a user without a name. Skips the test where that needs rights."""
    words = ["unshare", "--user", "--map-user=12345"]
    works = shutil.which("unshare") and not subprocess.run([*words, "true"], capture_output=True).returncode
    if not works:
        pytest.skip("no namespaces of users here")
    return words


# The others of a kind are slow tests: each starts a Python with matplotlib, or a Snakemake.
ALWAYS = ("backend of a notebook", "numbers that are none", "no UTF-8", "home that cannot be written", "no user name")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(pytest.param(name, ["-c", STEPS], marks=() if name in ALWAYS else pytest.mark.slow) for name in ENVIRONMENTS),
        *(pytest.param(name, DRIVER, marks=() if name == "no user name" else pytest.mark.slow) for name in DRIVEN),
    ],
)
def test_no_environment_ends_in_a_traceback(project, name, words):
    before = nameless() if name == "no user name" else []
    done = subprocess.run(
        [*before, sys.executable, *words], cwd=project, env=environment(ENVIRONMENTS[name], project), capture_output=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert "Traceback" not in said and done.returncode == 0, said


@pytest.mark.parametrize("words", [["--help"], ["distil", "--help"], ["plan", "smoke"]])
def test_a_reader_that_leaves_is_no_error(project, words):
    """`… | head -1` closes the pipe; also where all output fits into a buffer that is flushed at the end."""
    command = [sys.executable, "-m", "eldistill", *words]
    with subprocess.Popen(
        command, cwd=project, env=environment({}, project), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as started:
        started.stdout.close()
        assert started.stderr.read() == b"" and started.wait(60) in (0, 1)


def test_closed_standard_streams_are_no_error(project):
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m eldistill plan smoke >&- <&-"], cwd=project, env=environment({}, project),
        capture_output=True,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr and done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("home", "cache", "good", "words"),
    [(".", None, True, "can be written"), ("/dev/null/home", None, False, "export XDG_CACHE_HOME="),
     ("/dev/null/home", "cache", True, "can be written")],
)  # fmt: skip
def test_the_doctor_says_what_snakemake_needs_of_a_home(tmp_path, monkeypatch, home, cache, good, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home if home.startswith("/dev") else str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if cache:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
    ((found, sentence),) = doctor._home(None, "smoke")
    assert found == good and words in sentence


def test_what_other_programs_print_may_have_any_bytes(tmp_path, monkeypatch):
    """Names of folders and files need not be text: git and squeue print them, and nothing may end because of that."""
    folder = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(folder)
    for name, line in (("git", b"M \\377.txt"), ("squeue", b"7|rule_all|" + folder)):
        script = tmp_path / name
        (tmp_path / f"{name}.out").write_bytes(line.replace(b"\\377", b"\xff") + b"\n")
        script.write_text(f"#!/bin/sh\ncat {tmp_path}/{name}.out\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert provenance.git("status", "--porcelain") == "M \ufffd.txt"
    assert doctor._answer("git", "status") == (0, "M \ufffd.txt")
    assert cluster.jobs_of(Path(os.fsdecode(folder))) == ["7"] and cluster.jobs_of(tmp_path) == []
