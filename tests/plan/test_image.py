# SPDX-License-Identifier: Apache-2.0
"""The image that jobs may run inside: its definition, and a driver that asks for it. Nothing is built here: tests/slurm has
the rest, with a stand-in for apptainer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from eldistill.errors import Problem
from eldistill.plan import driver
from tests.conftest import ROOT

TEXT = (ROOT / driver.DEFINITION).read_text(encoding="utf-8")
HEADER, *PARTS = re.split(r"^%(\w+)\n", TEXT, flags=re.M)
SECTIONS = dict(zip(PARTS[::2], PARTS[1::2], strict=True))
KNOWN = {"labels", "files", "post", "environment", "runscript", "test", "help"}  # of those that apptainer has
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def copied() -> dict[str, str]:
    """What %files takes from the repository, and where it puts it."""
    return dict(line.split() for line in SECTIONS["files"].splitlines() if line.strip())


def test_header_and_sections_are_those_of_a_definition_file():
    keys = dict(line.split(": ", 1) for line in HEADER.splitlines() if line and not line.startswith("#"))
    assert set(keys) == {"Bootstrap", "From"} and keys["Bootstrap"] == "docker"
    assert set(SECTIONS) <= KNOWN and len(SECTIONS) == len(PARTS) // 2
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", keys["From"])[1]
    assert f"{version}.0" in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("name", ["post", "environment", "runscript", "test"])
def test_sections_are_lines_of_a_plain_shell(name, tmp_path):
    """/bin/sh of Debian is dash, which knows nothing of bash."""
    done = subprocess.run(["sh", "-n"], input=SECTIONS[name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"\[\[|\bsource\b|pipefail|<\(", SECTIONS[name])


def test_variables_of_the_environment_are_set_by_a_shell():
    """Nothing is written into the checkout, which is a job's home folder."""
    done = subprocess.run(
        ["sh", "-euc", f"{SECTIONS['environment']}\nenv"], capture_output=True, text=True, env={"TMPDIR": "/fast"}
    )
    set_ = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert set_["PYTHONNOUSERSITE"] == "1"
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        assert set_[name].startswith("/fast/eldistill-cache"), name


def test_packages_are_those_of_the_lock_to_their_digests():
    lines = re.findall(r"pip install (.*)", SECTIONS["post"])
    assert ["--require-hashes" in line and "-r requirements.lock" in line for line in lines] == [True, False]
    assert all("--no-deps" in line for line in lines), "nothing that the lock does not name"
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    named = {line.split("==")[0].lower() for line in lock.splitlines() if re.match(r"[a-z]", line)}
    wanted = {
        Requirement(each).name.lower()
        for each in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["workflow"]
    }
    assert wanted | {"setuptools"} <= named


def test_the_package_can_be_installed_from_what_is_copied(tmp_path):
    """The second command of %post, with the files of %files and no others."""
    folder = tmp_path / "opt"
    for source, target in copied().items():
        where = folder / Path(target).relative_to("/opt/eldistill")
        where.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, where)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
               "--target", str(tmp_path / "site"), "."]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = [sys.executable, "-c", "import eldistill; print(eldistill.__file__)"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(tmp_path / "site"))


def workflow(*methods: str) -> SimpleNamespace:
    settings = SimpleNamespace(deployment_method=[SimpleNamespace(name=name) for name in methods])
    return SimpleNamespace(deployment_settings=settings)


def test_an_image_that_is_missing_stops_the_driver(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problem, match=r"image a\.sif is missing; build it with `apptainer build a\.sif profiles/"):
        driver.need_image(workflow("APPTAINER"), "a.sif")
    (tmp_path / "a.sif").touch()
    driver.need_image(workflow("APPTAINER"), "a.sif")


@pytest.mark.parametrize("image", ["docker://lab/eldistill:1", "oras://lab/eldistill"])
def test_an_image_that_apptainer_pulls_is_no_file(image):
    driver.need_image(workflow("APPTAINER"), image)


def test_without_a_container_no_image_is_asked_for():
    driver.need_image(workflow(), "no.sif")
    driver.need_image(workflow("CONDA"), "no.sif")
    driver.need_image(SimpleNamespace(deployment_settings=None), "no.sif")
