# SPDX-License-Identifier: Apache-2.0
"""Teachers as files of ours hold them, ready to be used."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from eldistill.data import dataset as data
from eldistill.errors import Problem
from eldistill.external import weights
from eldistill.sampling import generators
from eldistill.sampling.heun import heun
from eldistill.tensors import load_tensors

COVERED_BY = "sampling"


def load(path: str | Path, device="cpu", dtype=torch.float32) -> tuple[torch.nn.Module, dict]:
    """(frozen teacher, description) from a file of ours, whose tensors are finite floats of the shapes that its description
    asks for. Raises Problem."""
    tensors, about = load_tensors(path)
    if "sampler" in about:
        raise Problem(
            f"{path} is a one-step generator, which knows no other noise level; expected a teacher.safetensors"
        )
    if lacking := [key for key in ("config", "codec", "shape", "label_dim") if key not in about]:
        raise Problem(
            f"{path} is not a teacher of this project: its description has no {lacking[0]}; expected a teacher.safetensors"
        )
    net = weights.restore_network(path, tensors, about)
    return net.requires_grad_(False).eval().to(device, dtype), about


@torch.no_grad()
def images_of_teacher(
    teacher, about: dict, n: int, steps: int, seed: int = 0, batch: int = 250, churn: dict | None = None, first: int = 0,
    labels=None,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Chunks of uint8 images by Heun's method, from the same latents as a generator's, those from number `first` on.

    labels: as of `images_of`; the description of a teacher has class_counts only if the caller adds them. churn: the numbers
    of EDM's stochastic sampler (churn, s_min, s_max, s_noise); None is deterministic."""
    device = next(teacher.parameters()).device
    for draw, wanted in generators.chunks(n, seed, batch, device, labels, first):
        fresh = partial(lambda draw, step: draw.normal(f"churn/{step}", *about["shape"]), draw) if churn else None
        given = generators.one_hot_labels(draw, about, wanted)
        x = heun(teacher, draw.normal("z", *about["shape"]), given, steps, **(churn or {}), fresh=fresh)
        yield data.decode(x, about["codec"]).cpu()
