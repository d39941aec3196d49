# SPDX-License-Identifier: Apache-2.0
"""Environment variables of this project: an empty one counts as not set, and a wrong one is refused by its name."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from eldistill import environment
from eldistill.errors import Problem
from eldistill.external import fetching
from eldistill.paths import PACKAGE
from eldistill.plan import driver, gpus
from eldistill.steps import work
from tests.conftest import ROOT

WRONG = ["abc", "-1", "1.5", "²", "nan", "x" * 10_000, "1;2"]
HUGE = "9" * 30
TOP = {"micro_batch": 0}
# What reads a variable whose values are limited. The others hold a path, an address or a name of Slurm, and any text may be one.
READERS = {
    "ELDISTILL_GPUS": gpus.shared_gpus,
    "ELDISTILL_PARTS": lambda: work._micro_batch(TOP, {"batch": 8}),
    "ELDISTILL_MAX_GPU_HOURS": lambda: driver.allowed(1.0),
    "ELDISTILL_OFFLINE": environment.offline,
    "ELDISTILL_FETCH": lambda: fetching.fetch("fashion-mnist-train-images", store="."),
}
TEXTS = {"ELDISTILL_STORE", "ELDISTILL_MIRROR", "ELDISTILL_IMAGE"}


def test_every_variable_that_the_package_reads_is_here():
    texts = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    named = set(re.findall(r"ELDISTILL_[A-Z_]+[A-Z]", texts)) - {"ELDISTILL_SLURM"}
    assert {name for name in named if not name.startswith("ELDISTILL_SLURM_")} == READERS.keys() | TEXTS


@pytest.mark.parametrize("name", READERS)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sources.csv").write_bytes((ROOT / "data/sources.csv").read_bytes())
    values = WRONG if name == "ELDISTILL_MAX_GPU_HOURS" else [*WRONG, HUGE]
    for value in values:
        if name == "ELDISTILL_MAX_GPU_HOURS" and value == "1.5":
            continue
        monkeypatch.setenv(name, value)
        with pytest.raises(Problem, match=f"^{name} is ") as refused:
            READERS[name]()
        assert "expected " in str(refused.value) and len(str(refused.value)) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_empty_variable_is_none(monkeypatch):
    for name in (*READERS, *TEXTS):
        monkeypatch.setenv(name, "")
    assert environment.store_folder() == "data/scratch/store" and not environment.offline()
    assert environment.whole_number("ELDISTILL_PARTS") == 1 and work._micro_batch(TOP, {"batch": 8}) == 0


@pytest.mark.parametrize("value", ["", "abc", "0", "-1", "1e3", "9" * 9, "²", "4;2", "4,"])
def test_a_word_in_place_of_a_number_of_threads_is_one_thread(monkeypatch, value):
    """Libraries would take as many threads as there are cores, and other bits with them."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, value)
    environment.set_threads()
    assert [os.environ[name] for name in names] == ["1"] * 3
    for good in ("1", "16", "4,2", " 8 "):
        monkeypatch.setenv("OMP_NUM_THREADS", good)
        environment.set_threads()
        assert os.environ["OMP_NUM_THREADS"] == good


@pytest.mark.parametrize("profile", ["slurm", "profiles/gpu"])
def test_an_empty_suite_is_the_usual_one(monkeypatch, profile):
    import yte

    found = []
    for value in ("", "gpu-day"):
        monkeypatch.setenv("ELDISTILL_SUITE", value)
        found.append(
            yte.process_yaml(Path(ROOT, profile, "config.yaml").read_text(encoding="utf-8"), require_use_yte=True)
        )
    assert found[0] == found[1]
