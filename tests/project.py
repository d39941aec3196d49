# SPDX-License-Identifier: Apache-2.0
"""A clone of this project in which the commands of the README run: made once in a session, copied for every test."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks
from tests.conftest import ROOT, read_yaml, write_yaml
from tests.shared import made_once

BIN = Path(sys.executable).parent
# The suite smoke, with as little training as its steps can have: what it makes is not looked at.
SMALL = {
    "data/digits-smoke/judges": {"n_images": 640},
    "teacher/digits-smoke/n_images": 640,
    "teacher/digits-smoke/steps": 4,
    "teacher/digits-smoke/check": {"n": 100},
    "distil/methods/di/per_data/digits-smoke/n_images": 320,
    "evaluate/per_data/digits-smoke": {"n": 100, "curve_n": 50},
}


class Project:
    """A clone, its commands and its run log."""

    def __init__(self, path: Path, bins: Path = BIN):
        self.path, self.bins = path, bins

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command in the clone; returns what it printed."""
        environment = {
            **os.environ, "PYTHONPATH": str(self.path / "src"), "PATH": f"{self.bins}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1", "HOME": str(self.path.parent), "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.path.parent / "site"),
            **{f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }  # fmt: skip
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        done = subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, (
            f"{command} gave {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
        return done.stdout + done.stderr

    def ran(self, *command: str) -> set[str]:
        """Run a command; returns the steps that it ran, from the run log."""
        before = self.log()
        self.run(*command)
        steps = self.log()[len(before) :]
        assert len(steps) == len(set(steps)), f"a step ran twice: {steps}"
        return set(steps)

    def log(self) -> list[str]:
        """The steps that ever ran here."""
        path = self.path / "data/scratch/run-log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [f"{row['word']} {row['name']}" for row in map(json.loads, lines)]

    def edit(self, *keys: str, value) -> None:
        """Change one number of params.yaml."""
        path = self.path / "params.yaml"
        values = read_yaml(path.read_text())
        place = values
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
        path.write_text(write_yaml(values, sort_keys=False))

    def nothing_to_do(self) -> bool:
        """Whether `snakemake -n all` would run nothing."""
        return "Nothing to be done" in self.run("snakemake", "-n", "all")

    def clone(self, name: str) -> Project:
        """A fresh clone beside this one."""
        path = self.path.parent / name
        subprocess.run(["git", "clone", "-q", str(self.path), str(path)], check=True, capture_output=True)
        return Project(path, self.bins)


def digests(project: Project, pattern: str) -> dict[str, str]:
    """sha256 of the files that match."""
    return {
        str(path.relative_to(project.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(project.path.glob(pattern))
    }


def tracked(path: Path) -> Project:
    """The tracked files as a repository of its own in a new folder, without results, its suite set to a small smoke."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if not name.startswith(("data/", "tests/", "dvc.lock")) or name in ("data/.gitignore", "data/sources.csv"):
            if (ROOT / name).exists():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, path / name)
    it = Project(path)
    it.edit("suite", value="smoke")
    for keys, value in SMALL.items():
        it.edit(*keys.split("/"), value=value)
    it.run("git", "init", "-q", "-b", "main")
    it.run("git", "add", "-A")
    it.run("git", "commit", "-qm", "start")
    return it


def make_smoke(folder: Path) -> None:
    """Into an empty folder: project, its suite made by Snakemake, recorded by DVC, committed and pushed; its remote;
    first.json, the steps that the first command ran."""
    it = tracked(folder / "a/project")
    with forks.serving(folder / "forks", whole=True) as it.bins:
        first = it.ran("snakemake", "all", "--cores", "2")
        assert it.ran("dvc", "repro") == set()  # it records, and runs nothing
        it.run("git", "add", "-A")
        it.run("git", "commit", "-qm", "first")
        it.run("dvc", "push")
    shutil.rmtree(folder / "forks")
    (folder / "first.json").write_text(json.dumps(sorted(first)), encoding="utf-8")


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """What `make_smoke` left, to be read and copied only."""
    return made_once(tmp_path_factory, "smoke", make_smoke)


@pytest.fixture
def project(smoke, tmp_path) -> Project:
    """A copy of that project, with its remote beside it: nothing to do."""
    shutil.copytree(smoke, tmp_path, dirs_exist_ok=True, symlinks=True)
    return Project(tmp_path / "a/project")


@pytest.fixture(scope="module")
def bins(tmp_path_factory) -> Path:
    """snakemake, dvc and python forked from one process: for projects that have this checkout's code."""
    with forks.serving(tmp_path_factory.mktemp("forks"), whole=True) as programs:
        yield programs


@pytest.fixture
def quick(project, bins) -> Project:
    """The same project, whose commands start in a tenth of the time."""
    return Project(project.path, bins)
