# SPDX-License-Identifier: Apache-2.0
"""Pairs of noise and the teacher's image: what is in the file, after an interruption too, and the loss on them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eldistill.contract import Setting
from eldistill.errors import Problem
from eldistill.losses import perceptual
from eldistill.sampling.heun import heun
from eldistill.supplements import regression
from eldistill.teacher import pairs
from eldistill.tensors import save_tensors
from tests.toys import batch_of

RECIPE = {"n": 7, "seed": 3, "steps": 4}


@pytest.fixture(params=[0, 3], ids=["unconditional", "conditional"])
def teacher(request, bench, tmp_path):
    """A teacher's file, the network in it, and its number of classes."""
    net = bench.teacher(request.param)
    path = tmp_path / "teacher.safetensors"
    save_tensors(
        path,
        net.state_dict(),
        {"config": net.config, "codec": {"mean": 0.5, "std": 0.25}, "shape": [1, 8, 8], "label_dim": request.param},
    )
    return SimpleNamespace(path=path, net=net, classes=request.param)


def made(
    teacher, folder, name: str = "pairs", batch: int = 3, recipe=RECIPE, say=lambda text: None
) -> dict[str, np.ndarray]:
    output = folder / f"{name}.npz"
    pairs.make_pairs(recipe, teacher.path, output, folder / f"{name}-parts", batch, "cpu", say)
    with np.load(output) as arrays:
        return {key: arrays[key] for key in arrays.files}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_images_are_heuns(teacher, tmp_path):
    """image = Heun(z, label), float32 beside its unit normal z; -1 where there is no label."""
    said = []
    arrays = made(teacher, tmp_path, say=said.append)
    assert {key: (array.dtype, array.shape) for key, array in arrays.items()} == {
        "z": (np.float32, (7, 1, 8, 8)), "images": (np.float32, (7, 1, 8, 8)), "labels": (np.int64, (7,)),
    }  # fmt: skip
    labels = torch.from_numpy(arrays["labels"])
    one_hot = torch.nn.functional.one_hot(labels, teacher.classes).float() if teacher.classes else None
    wanted = heun(teacher.net, torch.from_numpy(arrays["z"]), one_hot, RECIPE["steps"])
    np.testing.assert_allclose(arrays["images"], wanted.float().numpy(), rtol=1e-5, atol=1e-6)
    if teacher.classes:
        assert 0 <= labels.min() and labels.max() < teacher.classes and len(set(labels.tolist())) > 1
    else:
        assert (labels == -1).all()
    assert abs(arrays["z"].mean()) < 0.2 and abs(arrays["z"].std() - 1) < 0.15
    assert len(said) == 3 and "7/7 pairs" in said[-1]


def test_pairs_depend_on_seed_and_index_only(teacher, tmp_path):
    """Another batch gives the same noise and labels; fewer pairs are the first of more; another seed differs."""
    whole = made(teacher, tmp_path)
    for name, batch, changes in (("batch", 7, {}), ("fewer", 3, {"n": 5})):
        part = made(teacher, tmp_path, name, batch, {**RECIPE, **changes})
        n = len(part["z"])
        assert np.array_equal(part["z"], whole["z"][:n]) and np.array_equal(part["labels"], whole["labels"][:n])
        np.testing.assert_allclose(part["images"], whole["images"][:n], rtol=1e-5, atol=1e-6)
    assert not np.array_equal(made(teacher, tmp_path, "other", recipe={**RECIPE, "seed": 4})["z"], whole["z"])


@pytest.mark.parametrize("interrupted", [1, 2, 3])
def test_an_interruption_costs_one_chunk(teacher, tmp_path, monkeypatch, interrupted):
    """The same command continues after the last whole chunk and ends with the same bytes."""
    whole = made(teacher, tmp_path)
    calls, whole_heun = [], heun

    def fails(*arguments, **others):
        calls.append(len(arguments[1]))
        if len(calls) == interrupted:
            raise KeyboardInterrupt
        return whole_heun(*arguments, **others)

    monkeypatch.setattr(pairs, "heun", fails)
    with pytest.raises(KeyboardInterrupt):
        made(teacher, tmp_path, "again")
    assert not (tmp_path / "again.npz").exists()
    assert same(made(teacher, tmp_path, "again"), whole)
    assert calls == [3, 3, 1][:interrupted] + [3, 3, 1][interrupted - 1 :]
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "pairs.npz").read_bytes()
    # Another batch size does not mix with the chunks that are there.
    other = made(teacher, tmp_path, "again", batch=4)
    assert np.array_equal(other["z"], whole["z"]) and len(other["images"]) == 7


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list the open files of a process")
def test_chunks_are_closed(teacher, tmp_path, monkeypatch):
    """However many chunks there are, none is open before and after one is read."""
    seen, read = [], pairs.read_pairs

    def still_open() -> list[str]:
        names = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
        return [name for name in names if name.startswith(f"{tmp_path}/parts")]

    def watched(path, names):
        assert not still_open()
        found = read(path, names)
        seen.append(path)
        assert not still_open()
        return found

    monkeypatch.setattr(pairs, "read_pairs", watched)
    pairs.make_pairs(RECIPE, teacher.path, tmp_path / "pairs.npz", tmp_path / "parts", 1, "cpu", lambda text: None)
    assert len(seen) == 3 * 7 and len(set(seen)) == 7


# --- the loss on pairs ---


def prepared(teacher, folder, label_dim: int, **changes) -> regression.Prepared:
    made(teacher, folder)
    setting = Setting(sigma_data=0.5, seed=0, sigma_init=2.5, pairs=folder / "pairs.npz", dtype=torch.float64,
                      codec={"mean": 0.5, "std": 0.25}, label_dim=label_dim)  # fmt: skip
    return regression.prepare(regression.Numbers(**changes), setting)


def test_regression_of_the_chosen_pairs(teacher, tmp_path):
    """The generator sees sigma_init z and the pair's label; pseudo-Huber to the pair's image, mean over pairs."""
    tools, seen = prepared(teacher, tmp_path, teacher.classes), []
    chosen = torch.tensor([5, 0, 5, 2])
    answer = torch.linspace(-1, 1, 4 * 64).double().reshape(4, 1, 8, 8)

    def generator(x, sigma, labels):
        seen.append((x, sigma, labels))
        return answer

    batch = batch_of((1, 8, 8), {"pair": chosen})
    terms = regression.direct_terms(tools, {"generator": generator}, batch, regression.Numbers())
    with np.load(tmp_path / "pairs.npz") as arrays:
        z, images, labels = (torch.from_numpy(arrays[key])[chosen] for key in ("z", "images", "labels"))
    ((x, sigma, given),) = seen
    torch.testing.assert_close(x, 2.5 * z.double(), rtol=1e-12, atol=0)
    assert torch.equal(sigma, torch.full((4,), 2.5).double())
    assert (given is None) if not teacher.classes else torch.equal(given.argmax(dim=1), labels)
    c = 0.00054
    wanted = ((answer - images.double()).square().mean(dim=(1, 2, 3)) + c**2).sqrt() - c
    assert list(terms) == ["huber"]
    torch.testing.assert_close(terms["huber"], wanted.mean(), rtol=1e-12, atol=0)
    exact = regression.direct_terms(tools, {"generator": lambda *_: images.double()}, batch, regression.Numbers())
    assert float(exact["huber"]) == pytest.approx(0, abs=1e-15)


def test_regression_by_lpips(teacher, tmp_path, monkeypatch):
    """With the weights of LPIPS the term is that distance."""
    from safetensors.torch import save_file

    monkeypatch.setattr(perceptual, "WIDTHS", (2, 2, 2, 2, 2))
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.rand(shape, generator=generator) for name, shape in perceptual.weight_shapes().items()}
    path = tmp_path / "lpips.safetensors"
    save_file(weights, path)
    numbers = regression.Numbers(lpips=str(path))
    tools = prepared(teacher, tmp_path, teacher.classes, lpips=str(path))
    batch, answer = batch_of((1, 8, 8), {"pair": torch.tensor([1, 2])}), torch.zeros(2, 1, 8, 8).double()
    terms = regression.direct_terms(tools, {"generator": lambda *_: answer}, batch, numbers)
    wanted = perceptual.lpips(tools.measure, answer, tools.images[[1, 2]].double(), tools.setting.codec).mean()
    assert list(terms) == ["lpips"] and torch.equal(terms["lpips"], wanted) and wanted > 0


def test_pairs_of_other_classes_are_a_sentence(teacher, tmp_path):
    """Labels that the data do not have."""
    if not teacher.classes:
        prepared(teacher, tmp_path, 0)
        return
    with pytest.raises(Problem, match="labels beyond the 2 of the data"):
        prepared(teacher, tmp_path, 2)
