# SPDX-License-Identifier: Apache-2.0
"""DMD's regression loss (Yin et al. 2024, arXiv 2311.18828, section 3.3), which fits stored images of the teacher.

The generator at a stored noise is fitted to the image that the teacher makes from that noise.

The pairs (noise, teacher's image) are made once, by the step `teacher NAME/pairs-N-SEED`. The paper uses LPIPS, whose
weights are not part of this package. Without them the distance is iCT's pseudo-Huber distance divided by the root of
the number of pixels, so that its gradient does not exceed that of distribution matching on larger images. The default
of `weight` is the paper's for LPIPS and untuned for the pseudo-Huber distance. The teacher starts from the unit noise
times its largest noise level, the generator from the same noise times sigma_init.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from eldistill.contract import Batch, Nets, Setting
from eldistill.diffusion.draws import sent
from eldistill.errors import Problem
from eldistill.external.arrays import read_pairs
from eldistill.losses import perceptual
from eldistill.numbers import number

RECIPE = ("supplements/regression", 2)


@dataclass(frozen=True)
class Numbers:
    """The numbers of the regression."""

    weight: float = number(0.25, "factor of the distance (DMD: 0.25, or 0.5 without labels)", low=0)
    pairs: int = number(
        10000, "pairs that the teacher makes before training (DMD on CIFAR-10: 100,000 or 500,000)", low=2
    )
    pairs_seed: int = number(0, "seed of the pairs", low=0, high=9_223_372_036_854_775_807)
    c: float = number(
        0.00054, "constant c of the pseudo-Huber distance sqrt(rms^2 + c^2) - c, rms over the pixels (iCT)", above=0
    )
    lpips: str | None = number(
        None, "safetensors file with the weights of LPIPS; null takes the pseudo-Huber distance", outside="weights"
    )
    lpips_pooling: str = number(
        "max", "pooling of LPIPS between the stages of VGG: max (LPIPS itself) or average (PIQ with replace_pooling)",
        choices=("max", "average"), neutral=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """The pairs, the facts of the run, and the weights of LPIPS."""

    z: torch.Tensor  # unit noise [n, c, h, w], on the CPU
    images: torch.Tensor  # the teacher's images of it [n, c, h, w], on the CPU
    labels: torch.Tensor  # [n], -1 where there are none
    setting: Setting
    measure: dict[str, torch.Tensor] | None  # weights of LPIPS


def prepare(numbers: Numbers, setting: Setting) -> Prepared:
    """Load the pairs of the setting, and LPIPS if it is used. Raises Problem for labels or weights that do not fit."""
    path = setting.pairs or Path()  # a run with this supplement has pairs
    # They stay on the CPU, because half a million pairs would fill a GPU.
    z, images, labels = map(torch.from_numpy, read_pairs(path, ("z", "images", "labels")).values())
    if setting.label_dim and int(labels.max()) >= setting.label_dim:
        raise Problem(f"{path} has labels beyond the {setting.label_dim} of the data; make the pairs again")
    measure = perceptual.load_lpips(numbers.lpips, setting.device, setting.dtype) if numbers.lpips else None
    return Prepared(z, images, labels, setting, measure)


def direct_terms(prepared: Prepared, nets: Nets, batch: Batch, numbers: Numbers) -> dict[str, torch.Tensor]:
    """The mean distance of D_theta(sigma_init z; sigma_init) from the teacher's image, over one pair for each image."""
    setting = prepared.setting
    index = batch.draw.on("cpu").integers("pair", len(prepared.z))
    z, wanted = (sent(each[index], setting.device).to(setting.dtype) for each in (prepared.z, prepared.images))
    labels = None
    if setting.label_dim:
        labels = sent(torch.nn.functional.one_hot(prepared.labels[index], setting.label_dim), setting.device).to(z)
    made = nets["generator"](setting.sigma_init * z, z.new_full((len(z),), setting.sigma_init), labels)
    if prepared.measure is not None:
        distance = perceptual.lpips(prepared.measure, made, wanted, setting.codec, numbers.lpips_pooling)
        return {"lpips": distance.mean()}
    return {"huber": (((made - wanted).square().mean(dim=(1, 2, 3)) + numbers.c**2).sqrt() - numbers.c).mean()}


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes: one pair, forward and back. LPIPS comes on top."""
    return 3


def passes_of(numbers: Numbers) -> dict[str, float]:
    """All of them are passes of the generator."""
    return {"generator": 3}
