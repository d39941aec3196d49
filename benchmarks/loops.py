# SPDX-License-Identifier: Apache-2.0
"""Training loops for the benchmarks, with random images, the numbers of params.yaml, and a learning rate near 0."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eldistill import contract, networks
from eldistill.contract import Setting
from eldistill.data.dataset import PackedImages
from eldistill.diffusion import augment
from eldistill.ensemble import seed as ensembles
from eldistill.numbers import make_numbers
from eldistill.plan.params import Params
from eldistill.training.job import Job, Supplement, Training
from eldistill.training.optimisers import Ema, Optimiser

CODEC = {"mean": 0.5, "std": 0.29}
RATE = 1e-9


def random_images(channels: int, side: int, device: str = "cpu", count: int = 2048) -> PackedImages:
    """Images of random pixels without labels, which take as much time as real images."""
    pixels = torch.randint(
        0, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return PackedImages(pixels, torch.zeros(count, dtype=torch.int64), CODEC, 0, device)


def ensemble_of(settings: Params, name: str, reals: PackedImages, folder: Path, **changes: Any) -> Path:
    """The path of an ensemble of params.yaml, which is made in `folder` if needed. changes: keys that replace those of its section."""
    path = folder / f"{name}-{'x'.join(map(str, reals.shape))}.json"
    if not path.exists():
        section = {**settings.section("ensemble", name), **changes}
        here = PackedImages(reals.images.cpu(), reals.classes.cpu(), reals.codec, 0)  # members are drawn on the CPU
        ensembles.record_ensemble(section, 0, here, path, path.with_suffix(".npz"))
    return path


def supplement_of(name: str, values: dict[str, Any], ensemble: Path, device: str, **setting: Any) -> Supplement:
    """A prepared supplement. values: its resolved section. setting: further fields of its Setting."""
    module = contract.load_supplement(values["file"])
    numbers = make_numbers(module, values)
    given = {"sigma_data": PackedImages.sigma_data, "seed": 0, "sigma_init": 2.5, **setting}
    return Supplement(
        name, module, numbers, module.prepare(numbers, Setting(ensemble=ensemble, device=device, **given))
    )


def still_job(
    values: dict[str, Any], network: dict[str, Any], reals: PackedImages, batch: int, folder: Path,
    supplements: Sequence[Supplement] = (), micro_batch: int = 0,
) -> Job:  # fmt: skip
    """A job of practically unlimited length. values: the resolved section of a method. network: the settings of a teacher's network;
    resolution, channels and labels come from the images."""
    method, device = contract.load_method(values["file"]), reals.device
    numbers = make_numbers(method, values)
    config = {**network, "label_dim": 0, "img_resolution": reals.shape[1], "img_channels": reals.shape[0]}
    if getattr(numbers, "augment", 0):
        config["augment_dim"] = augment.EDM_LABELS
    teacher = networks.build(config, 0).to(device).requires_grad_(False).eval()
    nets = {"generator": method.generator(teacher, None, numbers), **method.networks(teacher, numbers, 0)}
    sections = {name: values["generator" if name == "generator" else "critic"] for name in nets}
    return Job(
        method=method, numbers=numbers, training=Training(10**9, batch, Ema.of(values["ema"])),
        nets={name: net.to(device) for name, net in nets.items()}, published="generator", reals=reals, shape=reals.shape,
        seed=0, folder=folder, optimisers={name: Optimiser.of({**each, "lr": RATE}) for name, each in sections.items()},
        fixed={"teacher": teacher}, supplements=list(supplements), device=device, micro_batch=micro_batch,
    )  # fmt: skip
