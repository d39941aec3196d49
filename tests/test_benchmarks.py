# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the Embedding Loss measures what it says, on a case of seconds; nothing here asserts a time."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from eldistill.diffusion import draws
from eldistill.losses import mmd
from eldistill.plan import params
from eldistill.supplements import embedding
from tests.conftest import ROOT

NAMES = ["conv4", "mix8-8", "identity", "conv8"]


def loaded(name: str):
    """benchmarks/<name>.py as a module, while somebody looks at it."""
    sys.path.insert(0, str(ROOT / "benchmarks"))  # they import each other
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "benchmarks"))
    del sys.modules[spec.name]
    sys.modules.pop("loops", None)


@pytest.fixture(scope="module")
def script():
    """benchmarks/embedding.py as a module."""
    yield from loaded("embedding")


@pytest.fixture(scope="module")
def settings():
    return params.load_params(ROOT / "params.yaml")


def options(**changes) -> SimpleNamespace:
    return SimpleNamespace(
        **{"device": "cpu", "resolution": 8, "network": "digits", "channels": 4, "repeats": 1, **changes}
    )


def test_rows_are_complete(script, settings, tmp_path):
    """One row for each ensemble: a share in (0, 1) for every kernel; ratios wherever there is something to compare."""
    rows = script.measure(settings, NAMES, 4, options(), tmp_path)
    assert [(row["batch"], row["ensemble"]) for row in rows] == [(4, name) for name in NAMES]
    for row in rows:
        assert set(row) == {"batch", "ensemble", *mmd.KERNELS, "anchored", "stacked/loop", "bfloat16/float32"}
        assert all(0 < row[name] < 1 for name in (*mmd.KERNELS, "anchored"))
        ratios = [row["stacked/loop"], row["bfloat16/float32"]]
        if row["ensemble"] == "identity":  # one member without layers
            assert ratios == [None, None]
        else:
            assert all(ratio > 0 and math.isfinite(ratio) for ratio in ratios)


def test_every_variant_is_an_embedding_loss_of_its_own(script, settings, tmp_path):
    """What is timed differs in what its name says; stacked, looped and bfloat16 give one value up to rounding."""
    added = script.supplements(settings, NAMES, options(), tmp_path)
    assert len(added) == 4 * (len(mmd.KERNELS) + 1) + 3 + 3
    work = script.loop_of(settings, list(added.values()), 8, options(), tmp_path)
    work.iterate()
    values = {variant: work.monitor.sums[f"{each.name}.mmd2"][0] for variant, each in added.items()}
    for variant, each in added.items():
        own = (each.numbers.ensemble, each.numbers.kernel, each.numbers.stack, each.numbers.precision)
        own += (each.numbers.anchored,)
        assert own == tuple(variant)
        plain = values[variant._replace(stack="loop", precision="float32")]
        assert values[variant] == pytest.approx(plain, rel=1e-5 if variant.precision == "float32" else 0.05)
    looped = [value for variant, value in values.items() if variant.stack == "loop" and variant.precision == "float32"]
    assert len(set(looped)) == 4 * (len(mmd.KERNELS) + 1)


def test_no_variant_makes_another_draw_its_members_again(script, settings, tmp_path):
    """Ensembles at work side by side keep their members: a share holds no more than a run with one of them would pay."""
    added = script.supplements(settings, ["conv4", "conv8"], options(), tmp_path)
    ensembles = [each.prepared.ensemble for each in added.values()]
    first = [ensemble.at(0) for ensemble in ensembles]
    assert all(ensemble.at(1) is members for ensemble, members in zip(ensembles, first, strict=True))


def test_the_clock(script, settings, tmp_path, monkeypatch):
    """Seconds go to the supplement that spends them, and what none of them spends is the rest."""
    added = script.supplements(settings, ["identity"], options(), tmp_path)
    work = script.loop_of(settings, list(added.values()), 4, options(), tmp_path)
    ticks = {"now": 0.0}
    monkeypatch.setattr(script.Clocked, "_now", lambda self: ticks["now"])
    costs = {each.name: 2.0 ** (index + 1) for index, each in enumerate(added.values())}
    spend = embedding.generator_terms

    def terms(tools, images, batch, numbers):
        ticks["now"] += costs[
            str(script.Variant(numbers.ensemble, numbers.kernel, numbers.stack, numbers.precision, numbers.anchored))
        ]
        return spend(tools, images, batch, numbers)

    for each in added.values():
        each.module = dataclasses.replace(each.module, generator_terms=terms)
    step = torch.optim.Adam.step

    def base(*arguments, **more):
        ticks["now"] += 0.5  # both networks
        return step(*arguments, **more)

    monkeypatch.setattr(torch.optim.Adam, "step", base)
    first = [each.name for each in work.at_images]
    work.iterate()
    assert work.seen == {"rest": 1.0, **costs}
    assert [each.name for each in work.at_images] == first[1:] + first[:1]


def test_a_table_from_the_command_line(script, tmp_path, monkeypatch, capsys):
    """It prints what it writes: where, and a row for each batch and ensemble."""
    monkeypatch.setattr(script, "measure", lambda settings, names, batch, *rest: [
        {"batch": batch, "ensemble": name, **dict.fromkeys((*mmd.KERNELS, "anchored"), 0.125), "stacked/loop": 1.5,
         "bfloat16/float32": None}
        for name in names
    ])  # fmt: skip
    script.main(["--batch", "2", "4", "--resolution", "32", "--out", str(tmp_path / "table.md")])
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "table.md").read_text(encoding="utf-8")
    lines = printed.splitlines()
    assert all(word in lines[0] for word in ("`digits`", "32 px", "CPU", "1 thread", torch.__version__))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert len({len(row) for row in rows}) == 1
    assert [row[:2] for row in rows[2:]] == [[n, e] for n in "24" for e in ("conv4", "mix8-32", "identity", "conv8")]
    assert rows[2][2:] == ["12.5 %"] * (len(mmd.KERNELS) + 1) + ["1.50", "–"]


# --- benchmarks/step.py ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step():
    """benchmarks/step.py as a module."""
    yield from loaded("step")


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(("method", "supplement"), [("di", "none"), ("di", "el"), ("sid", "none"), ("dmd", "none")])
def test_the_bare_passes_are_those_that_the_method_needs(step, settings, tmp_path, method, supplement, dropout):
    """In forward passes for an image: what its module says, with EL or without; making them again, with their dropout
    masks, changes nothing."""
    work = step.loop_of(
        settings,
        method,
        supplement,
        SimpleNamespace(
            device="cpu",
            network="demo",
            batch=4,
            precision="float32",
            channels_last=False,
            compile=False,
            recompute=False,
        ),
        tmp_path,
    )
    for module in (each for net in work.nets.values() for each in net.modules() if hasattr(each, "dropout")):
        module.dropout = dropout
    recorder = step.Recorder(work)
    recorder.passes = []
    work.iterate()
    passes, recorder.passes = recorder.passes, None
    cost = sum(1 + (2 if each.weights else 1) * each.back for each in passes)
    assert cost == work.job.method.passes(work.job.numbers, 0.3)
    before = {name: each.clone() for name, each in work.nets["generator"].state_dict().items()}
    seconds = sum(step._bare(each, SimpleNamespace(device="cpu")) for each in passes)
    assert seconds > 0
    assert all(torch.equal(before[name], each) for name, each in work.nets["generator"].state_dict().items())


def test_a_step_is_compared_with_its_twin(step, tmp_path, capsys, monkeypatch):
    """A row for each method and supplement, written as JSON, and read again for the last column."""
    file = tmp_path / "rows.json"
    words = [
        "--methods",
        "di",
        "--supplements",
        "none",
        "--batch",
        "4",
        "--repeats",
        "1",
        "--warmup",
        "1",
        "--images",
        "8",
    ]
    plain = draws.Draw.normal, torch.autograd.grad, torch.Tensor.backward
    step.main([*words, "--out", str(file)])
    assert plain == (draws.Draw.normal, torch.autograd.grad, torch.Tensor.backward)  # nothing that was clocked stays so
    step.main([*words, "--compare", str(file)])
    assert json.loads(file.read_text())["sampling"]["ratio"] > 5
    (row,) = json.loads(file.read_text())["rows"]
    parts = row["parts_milliseconds"]
    known = {
        "data",
        "generator",
        "teacher",
        "fake_score",
        "backward",
        "noise",
        "optimiser",
        "checks",
        "average",
        "rest",
    }
    assert set(parts) == known
    assert min(parts.values()) > 0 and 0 < row["ceiling_percent"] < 150
    lines = [text for text in capsys.readouterr().out.splitlines() if text.startswith("| di")]
    assert len(lines) == 4 and lines[2].count("|") == lines[0].count("|") + 1  # two tables each time
    assert float(lines[2].split("|")[-2]) > 0
