# SPDX-License-Identifier: Apache-2.0
"""Tiny teachers, small data, and whole training jobs in milliseconds: what several test files need."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import importlib
import os
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml

from eldistill import contract, networks
from eldistill.contract import Method
from eldistill.data import dataset as data
from eldistill.distil import student
from eldistill.ensemble import seed as ensembles
from eldistill.plan import params, reading
from eldistill.sampling import guidance
from eldistill.training.job import Job, Supplement, Training
from eldistill.training.optimisers import Ema, Optimiser

OPTIMISER = {
    "kind": "adam", "lr": 1e-3, "betas": [0.0, 0.999], "eps": 1e-8, "weight_decay": 0.0,
    "warmup_images": 0, "decay_images": 0, "clip": 0.0, "clip_value": 0.0,
}  # fmt: skip
EMA = {"policy": "constant", "beta": 0.5, "halflife_images": 5e5, "ramp": 0.05, "gamma": 6.94}
ROOT = Path(__file__).parents[1]  # of the project
GOLDEN = ROOT / "tests/golden"  # small arrays computed by the original codes; LICENSES.md says which
MEMBERS = [{"family": "conv", "norm": "none", "width": 4, "count": 1}, {"family": "identity", "count": 1}]


# Files of minutes, begun first: a worker that gets one last would end alone.
LONG = (
    "test_workflow",
    "test_processes",
    "plan/test_freshness",
    "test_gpu_benchmark",
    "test_contracts",
    "plan/test_identity",
    "test_resume",
)


def pytest_collection_finish() -> None:
    """Looking for garbage among the objects of three thousand tests takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first, all others as they were; with ELDISTILL_CASES (`make check`) so many cases of each test, evenly."""
    if most := int(os.environ.get("ELDISTILL_CASES", "0")):
        tests: dict[str, list[pytest.Item]] = {}
        for item in items:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
        kept = {id(cases[i * len(cases) // most]) for cases in tests.values() for i in range(most)}
        config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
        items[:] = [item for item in items if id(item) in kept]
    order = {ROOT / f"tests/{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(LONG)))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Sums do not depend on the machine's cores."""
    torch.set_num_threads(1)


@functools.cache
def _shipped() -> dict:
    return reading.merge_files(reading.read_files(ROOT))


def shipped() -> dict:
    """The parameters of this project, of all its files: a copy that can be changed, and be the params.yaml of another one."""
    return copy.deepcopy(_shipped())


def copy_parameters(folder: Path) -> None:
    """The parameters of this project in one params.yaml, and their schema, in another folder."""
    (folder / "workflow/schemas").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / params.SCHEMA, folder / params.SCHEMA)
    (folder / "params.yaml").write_text(write_yaml(shipped(), sort_keys=False), encoding="utf-8")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The current folder: a project with its parameters and the table of published files, and without results."""
    copy_parameters(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data/sources.csv", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_yaml(text: str):
    """What YAML says; by libyaml, where there is one, in an eighth of the time."""
    return reading.read_yaml(text)


def write_yaml(value, **options) -> str:
    """A value as YAML, likewise."""
    return yaml.dump(value, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), **options)


def perturb(network: torch.nn.Module, size: float = 0.1, seed: int = 0) -> torch.nn.Module:
    """Add size * N(0, 1) to every weight, in place: wakes up layers that start near zero."""
    normal = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            moved = parameter.float() + size * torch.randn(parameter.shape, generator=normal)
            parameter.copy_(moved)  # rounded to float32, so that float64 holds the same weights
    return network


def teacher(
    labels: int = 0, dtype=torch.float32, dropout: float = 0.0, seed: int = 0, network: str = "song"
) -> torch.nn.Module:
    """A frozen network on 8x8 images of one channel; float64 has the very weights of float32. A copy of its own."""
    return copy.deepcopy(_teacher(labels, dtype, dropout, seed, network))


@functools.cache
def _teacher(labels: int, dtype, dropout: float, seed: int, network: str) -> torch.nn.Module:
    config = {"network": network, "img_resolution": 8, "img_channels": 1, "label_dim": labels}
    # A network with other keywords than those of EDM's says itself what a small one is.
    usual = {"model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [], "dropout": dropout}
    config |= getattr(importlib.import_module(f"eldistill.networks.{network}"), "TINY", usual)
    return perturb(networks.build(config, seed), seed=seed).requires_grad_(False).eval().to(dtype)


def reals(labels: int = 0, dtype=torch.float32, count: int = 48) -> data.PackedImages:
    """Grey 8x8 images whose class decides where a bright square lies, encoded to deviation 0.5."""
    normal = torch.Generator().manual_seed(1)
    classes = torch.arange(count) % (labels or 3)
    images = 60 + 30 * torch.randn(count, 1, 8, 8, generator=normal)
    for image, label in zip(images, classes.tolist(), strict=True):
        image[:, label : label + 4, label : label + 4] += 120
    images = images.clamp(0, 255).to(torch.uint8)
    level = images.double() / 255
    codec = {"mean": float(level.mean()), "std": float(level.std())}
    return data.PackedImages(images, classes, codec, labels, dtype=dtype)


@dataclasses.dataclass
class Bench:
    """Makes everything that a training needs, below one temporary folder."""

    folder: Path

    perturb = staticmethod(perturb)
    teacher = staticmethod(teacher)
    reals = staticmethod(reals)

    def manifest(self, redraw: int = 0, seed: int = 0, members=MEMBERS) -> Path:
        """The manifest of a small ensemble, calibrated on `reals()`."""
        path = self.folder / f"ensemble-{redraw}-{seed}.json"
        if not path.exists():
            section = {"members": members, "redraw": redraw, "calibration": 32, "draws": 2}
            ensembles.record_ensemble(section, seed, reals(), path, path.with_suffix(".npz"))
        return path

    def pairs(self, labels: int = 0) -> Path:
        """Pairs of noise and the image of the small teacher, as the step `teacher` makes them."""
        path = self.folder / f"pairs-{labels}.npz"
        if not path.exists():
            z = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(2))
            classes = torch.arange(12) % labels if labels else torch.full((12,), -1)
            one_hot = torch.nn.functional.one_hot(classes, labels).float() if labels else None
            images = teacher(labels, seed=3)(2.5 * z, torch.full((12,), 2.5), one_hot)  # not what a student starts with
            np.savez(path, z=z.numpy(), images=images.numpy(), labels=classes.numpy())
        return path

    def supplement(
        self,
        file: str,
        dtype=torch.float32,
        redraw: int = 0,
        seed: int = 0,
        labels: int = 0,
        sigma_init: float = 2.5,
        device: str = "cpu",
        **changes,
    ) -> Supplement:
        """supplements/<file>.py at work, named after its file; changes: of its numbers."""
        module, images = contract.load_supplement(file), reals(labels, dtype)
        if device != "cpu":
            images = data.PackedImages(images.images, images.classes, images.codec, labels, device, dtype)
        setting = contract.Setting(
            ensemble=self.manifest(redraw), device=device, dtype=dtype, sigma_data=0.5, seed=seed, sigma_init=sigma_init,
            pairs=self.pairs(labels), codec=reals().codec, label_dim=labels, micro_batch=0, reals=images,
        )  # fmt: skip
        numbers = module.Numbers(**changes)
        return Supplement(file, module, numbers, module.prepare(numbers, setting))

    def job(
        self, method="diff_instruct", supplements: dict | None = None, *, numbers=None, labels: int = 0,
        dtype=torch.float32, dropout: float = 0.0, batch: int = 4, steps: int = 4, seed: int = 0, apart: float = 0.1,
        folder: str = "state", optimiser: dict | None = None, ema: dict | None = None, network: str = "song",
        device: str = "cpu", guided: dict | None = None, sizes: dict | None = None, begun: bool = False, **others,
    ) -> Job:  # fmt: skip
        """A job of `steps` iterations, nets fresh from their seeds.

        method: a file of methods/ or a namespace with its functions (then give `numbers`). supplements: {file:
        changes of its numbers, also redraw}. apart: how far the extra networks are moved away from the teacher.
        optimiser, ema: changes for all. device: where all of it lies. guided: the teacher is guided by another one, with
        these keywords of Guided. sizes: of a generator that is smaller or larger. begun: it starts from another generator, which
        has the weights of the teacher here. others: fields of Job.
        """
        module = contract.load_method(method) if isinstance(method, str) else Method.of(method)
        if numbers is None:  # groups small enough for micro-batches to be smaller than a batch
            numbers = module.Numbers(**({"group": 2} if module.offers("group") else {}))
        frozen, images = teacher(labels, dtype, dropout, network=network), reals(labels, dtype)
        start = copy.deepcopy(frozen) if begun else None
        nets = {"generator": module.generator(student.resize(frozen, sizes, 1, 2.5), start, numbers)}
        for index, (name, net) in enumerate(module.networks(frozen, numbers, 5).items()):
            nets[name] = perturb(net, apart, seed=10 + index)
        added = [
            self.supplement(file, dtype, seed=seed, labels=labels, device=device, **each)
            for file, each in (supplements or {}).items()
        ]
        for each in added:
            each.module.networks(nets, each.prepared, each.numbers, 6)
        if device != "cpu":
            images = data.PackedImages(images.images, images.classes, images.codec, labels, device, dtype)
            for net in (frozen, *nets.values()):
                net.to(device)
        path = self.folder / folder
        path.mkdir(parents=True, exist_ok=True)
        used = frozen
        if guided:
            used = guidance.Guided(frozen, teacher(labels, dtype, seed=7, network=network).to(device), **guided)
        values = {
            "method": module, "numbers": numbers,
            "training": Training(steps * batch, batch, Ema.of({**EMA, **(ema or {})})),
            "nets": nets, "published": "generator", "reals": images, "shape": images.shape, "seed": seed, "folder": path,
            "optimisers": dict.fromkeys(nets, Optimiser.of({**OPTIMISER, **(optimiser or {})})),
            "fixed": {"teacher": used}, "dtype": dtype, "log": lambda text: None,
            "supplements": added, "device": device,
        }  # fmt: skip
        return Job(**{**values, **others})

    @staticmethod
    def only(method: ModuleType, net: str) -> Method:
        """The method with those phases alone that train `net`."""
        chosen = lambda numbers, progress: [p for p in method.phases(numbers, progress) if p.net == net]  # noqa: E731
        return dataclasses.replace(Method.of(method), phases=chosen)


@pytest.fixture(scope="session")
def small_project(tmp_path_factory) -> Path:
    """A project folder with packed digits, a teacher of 320 images and an ensemble: to copy, not to change."""
    from tests.distil import test_distil

    return test_distil.make(tmp_path_factory.mktemp("small"))


@pytest.fixture
def bench(tmp_path) -> Bench:
    """A Bench in the test's own folder."""
    return Bench(tmp_path)
