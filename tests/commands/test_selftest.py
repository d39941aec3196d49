# SPDX-License-Identifier: Apache-2.0
"""The self-test: what it needs, that it finds what is wrong, and that its files are those of today's demo."""

from __future__ import annotations

import fnmatch
import math
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image

from eldistill import files
from eldistill.commands import check, encode, sample, selftest
from eldistill.errors import Problem
from eldistill.paths import PACKAGE
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.tensors import load_tensors
from tests.conftest import ROOT

WANTED = files.read_json(selftest.FILES / "expected.json")
NEEDED = ("torch", "numpy", "yaml", "safetensors")
# Neither a package outside of NEEDED and of what torch itself needs, nor a socket.
BARE = """
import socket, sys
BLOCKED = ("PIL", "tqdm", "pandas", "matplotlib", "sklearn", "scipy", "snakemake", "dvc", "torchvision", "cleanfid", "diffusers")
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(each) if hasattr(each, "find_spec") else each for each in sys.meta_path]
class Refusing(socket.socket):
    def connect(self, address):
        raise AssertionError("the self-test opened a connection")
socket.socket = Refusing
import eldistill
assert eldistill.__file__.startswith(sys.argv[1])
from eldistill.__main__ import main
sys.exit(main(["selftest"]))
"""


def test_it_passes_in_an_installed_package_with_four_packages_and_without_a_network(tmp_path):
    """As a wheel holds it, in an empty folder; it says that there is no picture, and why. 20 seconds of this process's time."""
    shutil.copytree(PACKAGE, tmp_path / "site/eldistill", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "empty").mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path)], cwd=tmp_path / "empty", env=environment, capture_output=True, text=True
    )  # fmt: skip
    spent = sum(os.times()[2:4]) - sum(before[2:4])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "selftest passed" in done.stdout and "package pillow is missing" in done.stdout
    assert f"expected  {WANTED['distance']:.4f}" in done.stdout and not list((tmp_path / "empty").iterdir())
    assert spent < 20


def test_every_file_of_the_package_is_in_a_wheel():
    """Whatever lies in the package and is no module matches a line of pyproject.toml."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    paths = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()]
    others = [name for name in paths if not name.endswith(".py") and "__pycache__" not in name]
    assert f"{selftest.FILES.relative_to(PACKAGE)}/generator.safetensors" in others
    assert not [name for name in others if not any(fnmatch.fnmatch(name, each) for each in data["eldistill"])]


def test_the_files_are_small_and_the_network_is_that_of_the_card():
    sizes = {path.name: path.stat().st_size for path in selftest.FILES.iterdir()}
    tensors, about = load_tensors(selftest.FILES / "generator.safetensors")
    assert sizes["generator.safetensors"] <= 400_000 and sum(sizes.values()) <= 500_000
    assert {each.dtype for each in tensors.values()} == {torch.float16}
    card = (selftest.FILES / "README.md").read_text(encoding="utf-8")
    assert about["recipe"] in card and about["recipe"] == WANTED["recipe"] and WANTED["run"] in card
    assert not re.search(r"\]\((?!https?:)", card)  # it links to nothing that does not lie beside it


def test_the_generator_is_that_of_the_demo_of_today():
    """Its run has the recipe that params.yaml and the code ask for."""
    step = Plan(params.load_params(ROOT / "params.yaml")).find("distil", WANTED["run"])
    assert WANTED["recipe"] == step.digest, (
        "src/eldistill/commands/selftest_files/ is stale: its generator was made with other numbers or versions than the demo has "
        "today; type `make demo`, then `python docs/renew_selftest.py`, and commit what that makes"
    )


@pytest.fixture(scope="module")
def images():
    return selftest.make_images(WANTED)


def test_the_numbers_are_those_of_a_run_of_the_demo_and_of_real_images(images):
    """Rounding the weights moved the distance by less than the tolerance, which is far below what another seed changes."""
    found = selftest.measure(images)
    assert images.shape == (5000, 1, 8, 8) and not selftest.compare(found, WANTED)
    assert abs(WANTED["distance"] - WANTED["of_run"]) < WANTED["tolerance"]
    assert 10 * WANTED["rounding"] < WANTED["tolerance"] < WANTED["seeds"] / 3
    assert WANTED["real"] < WANTED["distance"] / 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.flip(0), ["a pixel differs by"]),  # a distance is blind to it
        (lambda x: x.flip(3), ["a pixel differs by", "the distance is"]),
        (lambda x: torch.cat([x[:64], x[64:] // 16 * 16]), ["the distance is"]),  # all but the stored ones
        (lambda x: x // 2 + 64, ["the distance is", "a pixel differs by"]),
        (lambda x: x.roll(1, 2), ["the distance is", "a pixel differs by"]),
    ],
)
def test_other_images_fail(images, change, words):
    faults = selftest.compare(selftest.measure(change(images)), WANTED)
    assert len(faults) == len(words) and all(any(word in fault for fault in faults) for word in words)
    assert "failed" in selftest.verdict(faults) and "passed" in selftest.verdict([])


@pytest.mark.parametrize(("name", "value"), [("distance", math.nan), ("distance", math.inf), ("grey", 255)])
def test_a_number_that_is_far_off_or_no_number_fails(name, value):
    good = {"distance": WANTED["distance"], "grey": 0}
    assert not selftest.compare(good, WANTED) and len(selftest.compare(good | {name: value}, WANTED)) == 1


def test_the_exit_code_and_the_picture(tmp_path, monkeypatch):
    """0 with a picture at the place that was said; 1 if the images are others. It takes seconds."""
    lines: list[str] = []
    start = time.process_time()
    assert selftest.command(Namespace(device="cpu", out=str(tmp_path / "a.png")), lines.append) == 0
    assert time.process_time() - start < 20
    assert f"picture of 64 images: {tmp_path / 'a.png'}" in lines
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (8 * 9 * 6, 8 * 9 * 6) and len(picture.getcolors(10_000)) > 50
    made = selftest.make_images
    monkeypatch.setattr(selftest, "make_images", lambda *words: 255 - made(*words))
    assert selftest.command(Namespace(device="cpu", out=str(tmp_path / "b.png")), lines.append) == 1
    assert "selftest failed" in lines[-1] and "requirements.lock" in lines[-1]


@pytest.mark.parametrize("tool", [selftest, sample, check, encode])
@pytest.mark.parametrize("device", ["tpu", "", "cuda:9000"])
def test_a_device_that_is_not_there_is_one_sentence_of_every_command(tool, device):
    """Before anything is read."""
    options = Namespace(device=device, out=None, grid="a.png", n=1, name=None, generator=None)
    with pytest.raises(Problem, match="--device is .*use cpu"):
        tool.command(options, print)
    assert not Path("a.png").exists()
