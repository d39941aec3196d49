# SPDX-License-Identifier: Apache-2.0
"""The public doors: the example in each docstring runs as it is written, and errors and arguments are explained."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import eldistill
from eldistill import contract, networks
from eldistill.diffusion.draws import Draw
from eldistill.ensemble import seed
from eldistill.evaluate.metrics import measure
from eldistill.numbers import make_numbers
from eldistill.plan import params, reading
from eldistill.plan.plan import Plan
from eldistill.sampling import generators
from eldistill.training.job import Job
from eldistill.training.loop import Loop

ROOT = Path(eldistill.__file__).parents[2]
DOORS = {
    "load_method": contract.load_method, "load_supplement": contract.load_supplement, "Batch": contract.Batch,
    "Draw": Draw, "Phase": contract.Phase, "Loop": Loop, "Plan": Plan, "Generator": generators.Generator,
    "sample": generators.sample, "measure": measure, "Ensemble": seed.Ensemble, "EmbeddingLoss": eldistill.EmbeddingLoss,
}  # fmt: skip
NETWORK = {
    "network": "song", "img_resolution": 8, "img_channels": 1, "label_dim": 3, "model_channels": 16,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
ABOUT = {
    "shape": [1, 8, 8], "label_dim": 3, "codec": {"mean": 0.5, "std": 0.25}, "n_images": 64, "recipe": "r",
    "sampler": {"steps": {"1": [2.5]}},
}  # fmt: skip
SECTION = {"members": [{"family": "conv", "width": 4, "count": 2}], "redraw": 0, "calibration": 16, "draws": 1}


def example(door) -> str:
    """The indented lines of a docstring outside of its list of arguments."""
    text = re.sub(r"^Args:\n(    .*\n)+", "", inspect.getdoc(door) + "\n", flags=re.M)
    return textwrap.dedent("\n".join(re.findall(r"^    .*$", text, re.M)))


@pytest.fixture
def names(bench, tmp_path, monkeypatch) -> dict:
    """What examples use: names, and files in a folder of the test."""
    parameters = params.from_values(reading.merge_files(reading.read_files(ROOT)), ROOT)
    monkeypatch.chdir(tmp_path)
    run, recorded = tmp_path / "data/runs/digits/di/el/0", tmp_path / "data/ensembles/digits/conv4"
    for folder in (run, recorded):
        folder.mkdir(parents=True)
    generators.save_generator(run / "generator_ema.safetensors", networks.build(NETWORK, 0), ABOUT)
    job = bench.job()
    seed.record_ensemble(SECTION, 0, job.reals, recorded / "0.json", recorded / "0.npz")
    batch = contract.Batch(Draw(0, "door", 0, 4), None, job.shape, contract.Progress(0, 0, 4), job.reals)
    found = {"torch": torch, "np": np, "job": job, "batch": batch, "parameters": parameters}
    return DOORS | vars(contract) | found | {"load_generator": generators.load_generator, "make_numbers": make_numbers}


@pytest.mark.parametrize("name", DOORS)
def test_the_example_of_a_door_runs(name, names):
    """It is short and uses the door that it explains; its assertions hold."""
    code = example(DOORS[name])
    assert 3 <= len(code.splitlines()) <= 5 and name.lower() in code.lower()
    exec(compile(code, name, "exec"), dict(names))


@pytest.mark.parametrize("name", DOORS)
def test_a_door_says_which_errors_it_raises(name):
    assert re.search(r"\braises?\s+[A-Z]\w+", inspect.getdoc(DOORS[name]), re.I)


@pytest.mark.parametrize("name", [*DOORS, "Job"])
def test_a_door_explains_every_argument(name):
    """In its docstring; for the fields of a dataclass by a comment or by their type."""
    door = (DOORS | {"Job": Job})[name]
    text, source = inspect.getdoc(door), inspect.getsource(door)
    for argument in inspect.signature(door).parameters:
        beside = re.search(rf"^    {argument}: (.*# \S|[A-Z]\w+( .*)?$)", source, re.M)
        assert beside or re.search(rf"\b{argument}\b", text), f"{name} does not explain {argument}"
