# SPDX-License-Identifier: Apache-2.0
"""Loads teachers and makes images with them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eldistill import files
from eldistill.data import dataset as data
from eldistill.errors import Problem
from eldistill.external import arrays, weights
from eldistill.sampling import generators
from eldistill.sampling.heun import heun
from eldistill.tensors import load_tensors

COVERED_BY = "sampling"
STORED_BYTES = 3 * 64 * 64  # of an image at most that is stored: 155,000 of them, for a FID of three blocks, take 2 GB


def load_denoiser(path: str | Path, device="cpu", dtype=torch.float32) -> tuple[torch.nn.Module, dict]:
    """Load a teacher.safetensors as (frozen denoiser, metadata).

    Raises Problem for any other file, and if tensors are not finite floats of the shapes that the metadata require.
    """
    tensors, metadata = load_tensors(path)
    if "sampler" in metadata:
        raise Problem(
            f"{path} is a one-step generator, which knows no other noise level; expected a teacher.safetensors"
        )
    if lacking := [key for key in ("config", "codec", "shape", "label_dim") if key not in metadata]:
        raise Problem(
            f"{path} is not a teacher of this project: its description has no {lacking[0]}; expected a teacher.safetensors"
        )
    net = weights.restore_network(path, tensors, metadata)
    return net.requires_grad_(False).eval().to(device, dtype), metadata


@torch.no_grad()
def images_of_teacher(
    teacher, metadata: dict, n: int, steps: int, seed: int = 0, batch: int = 250, churn: dict | None = None, first: int = 0,
    labels=None, folder: Path | None = None,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Chunks of uint8 images [≤ batch, c, h, w] by Heun's method, n in total, starting at image number `first`.

    They start from the same noise as the images of a generator with this seed. labels: as for `generators.images_of`;
    the metadata of a teacher contain class_counts only if the caller adds them. churn: settings of EDM's stochastic
    sampler (churn, s_min, s_max, s_noise); None samples deterministically. folder: of this teacher and these settings;
    chunks are stored there, so that after a stop the same call makes none of them again. Not stored are images of given
    labels and of more than STORED_BYTES.
    """
    device = next(teacher.parameters()).device
    for draw, wanted in generators.chunks(n, seed, batch, device, labels, first):
        path = folder / f"images-{draw.first}-{draw.size}.npy" if folder and labels is None else None
        if path and (stored := _read(path, draw.size)) is not None:
            yield stored
            continue
        fresh = partial(lambda draw, step: draw.normal(f"churn/{step}", *metadata["shape"]), draw) if churn else None
        given = generators.one_hot_labels(draw, metadata, wanted)
        x = heun(teacher, draw.normal("z", *metadata["shape"]), given, steps, **(churn or {}), fresh=fresh)
        made = data.decode(x, metadata["codec"]).cpu()
        if path and made[0].numel() <= STORED_BYTES:
            with files.atomic(path) as temporary, open(temporary, "wb") as file:
                np.save(file, made.numpy())
        yield made


def _read(path: Path, size: int) -> torch.Tensor | None:
    # A stored chunk of `size` images; None if there is none, or if it is damaged, so that it is made again.
    try:
        found = arrays.read_npy(path.read_bytes())
    except (OSError, arrays.BadArrays):
        return None
    return (
        torch.from_numpy(found.copy()) if found.dtype == np.uint8 and found.ndim == 4 and len(found) == size else None
    )
