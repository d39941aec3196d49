# SPDX-License-Identifier: Apache-2.0
"""In which precision a training runs: decided by the images when it is planned, used by the device, and told."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from eldistill.errors import Problem
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.training import compute as speed
from tests import conftest
from tests.conftest import ROOT

PROJECT = params.load_params(ROOT / "params.yaml")
PLAN = Plan(PROJECT)
CELLS = sorted({(run.method, run.data) for suite in PROJECT.values["suites"] for run in PROJECT.runs(suite)})


@pytest.mark.parametrize("method, data", CELLS)
def test_the_images_decide(method, data):
    """bfloat16 for latents and from 64 pixels a side on; below, a recipe says nothing of it, as before there was a choice."""
    images, raw = PROJECT.section("data", data), PROJECT.values["distil"]["methods"][method]
    assert "precision" not in json.dumps(raw)  # nobody says otherwise
    large = images["source"] == "latents" or (images["resolution"] or 0) >= 64
    assert PROJECT.section("method", method, data)["precision"] == ("bfloat16" if large else "float32")
    run = next(r for s in PROJECT.values["suites"] for r in PROJECT.runs(s) if (r.method, r.data) == (method, data))
    assert PLAN.distil(run).params["method"].get("precision") == ("bfloat16" if large else None)


def changed(where: str, value) -> params.Params:
    values = conftest.shipped()
    *path, key = where.split("/")
    section = values
    for each in path:
        section = section[each]
    section[key] = value
    return params.from_values(values, ROOT)


def test_what_is_written_beats_the_rule():
    for data, value in (("digits", "bfloat16"), ("ffhq64", "float32")):
        found = changed("distil/methods/sid/precision", value).section("method", "sid", data)
        assert found["precision"] == value
    found = changed("distil/methods/sid/per_data/ffhq64/precision", "float32")
    assert found.section("method", "sid", "ffhq64")["precision"] == "float32"
    assert found.section("method", "sid", "afhqv2-64")["precision"] == "bfloat16"


def test_it_is_of_trainings():
    """A teacher that others have trained has none."""
    with pytest.raises(Problem, match="edm-cifar10.precision is only for a teacher that is trained; remove it"):
        changed("teacher/edm-cifar10/precision", "bfloat16")
    assert changed("teacher/digits/precision", "bfloat16").section("teacher", "digits")["precision"] == "bfloat16"
    with pytest.raises(
        Problem, match=r"precision is 'tf32'; did you mean \w+\? Expected one of auto, float32, bfloat16"
    ):
        changed("distil/methods/sid/precision", "tf32")


@pytest.fixture
def flags():
    """Torch's own switches, put back afterwards."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, products.allow_tf32
    yield lambda: (cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark, cudnn.deterministic)
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, products.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


AUTO = "auto"


@pytest.mark.parametrize(
    "device, tf32, deterministic, benchmark, expected",
    [
        ("cuda", False, AUTO, AUTO, (False, False, True)), ("cuda", True, AUTO, AUTO, (True, False, True)),
        ("cuda", False, True, AUTO, (False, True, False)), ("cuda", False, True, True, (False, True, True)),
        ("cuda", True, False, False, (True, False, False)), ("cuda:1", False, False, AUTO, (False, False, True)),
        ("cpu", True, False, True, (False, True, False)), ("cpu", False, AUTO, AUTO, (False, True, False)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_what_describes_the_machine(flags, monkeypatch, device, tf32, deterministic, benchmark, expected, wanted):
    """tf32, deterministic, benchmark: as they are asked for on a GPU; a CPU has float32 and equal bits."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    net, before = SimpleNamespace(precision=None), flags()
    site = SimpleNamespace(device=device, tf32=tf32, deterministic=deterministic, benchmark=benchmark)
    found = speed.set_arithmetic(wanted, site, [net])
    assert (found.tf32, found.deterministic, found.benchmark) == expected
    assert found.precision == (wanted if "cuda" in device else "float32") == str(net.precision).removeprefix("torch.")
    assert flags() == (before if device == "cpu" else (expected[0], False, expected[2], expected[1]))
    assert torch.are_deterministic_algorithms_enabled() == (expected[1] and device != "cpu")
