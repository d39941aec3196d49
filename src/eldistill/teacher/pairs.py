# SPDX-License-Identifier: Apache-2.0
"""Pairs of noise and the image that the teacher makes of it deterministically, for the supplement `regression`."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from eldistill import files
from eldistill.data import classes
from eldistill.diffusion.draws import Draw
from eldistill.errors import NonFinite
from eldistill.external.arrays import read_pairs
from eldistill.sampling import guidance
from eldistill.sampling.heun import heun

RECIPE = ("teacher/pairs", 1)


@torch.no_grad()
def make_pairs(
    recipe: dict, teacher: Path, output: Path, folder: Path, batch: int, device: str, say, pack: Path | None = None,
    guide: Path | None = None,
) -> None:  # fmt: skip
    """Write pairs as an npz: z [n, c, h, w] (unit normal) and encoded images [n, c, h, w], both float32, and labels [n], which are
    -1 for an unconditional teacher.

    recipe: n, seed and steps (of Heun's method), and guidance of a teacher that is guided; guide: the file of the other network
    that guides it. pack: images whose class frequencies a conditional teacher follows; None draws
    classes uniformly. batch: images at once. Chunks are stored in `folder`, and the same command continues after the last complete
    one. Raises NonFinite if an image is not finite.
    """
    net, about = guidance.load_teacher(teacher, recipe.get("guidance"), guide, device)
    about |= classes.describe_classes(pack) if pack and about["label_dim"] else {}
    n, done, fresh, began = recipe["n"], 0, 0, time.monotonic()
    parts = []
    while done < n:
        size = min(batch, n - done)
        path = folder / f"pairs-{done}-{size}.npz"
        if not path.exists():
            draw = Draw(recipe["seed"], "pairs", done, size, device)
            z = draw.normal("z", *about["shape"])
            chosen = classes.draw_classes(draw, about) if about["label_dim"] else torch.full((size,), -1)
            labels = torch.nn.functional.one_hot(chosen, about["label_dim"]).to(z) if about["label_dim"] else None
            images = heun(net, z, labels, recipe["steps"]).float()
            if not bool(images.isfinite().all()):
                raise NonFinite(
                    f"the teacher's images {done} to {done + size - 1} are not finite; train or fetch the teacher again"
                )
            arrays = {"z": z, "images": images, "labels": chosen}
            with files.atomic(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **{key: value.cpu().numpy() for key, value in arrays.items()})
            fresh += size
            rate = fresh / max(time.monotonic() - began, 1e-9)
            say(f"{done + size:>8}/{n} pairs  {rate:6.0f} pairs/s  {(n - done - size) / rate / 60:5.1f} min left")
        parts.append(path)
        done += size
    with files.atomic(output) as temporary:
        _join(parts, n, temporary)


def _join(parts: list[Path], n: int, output: Path) -> None:
    """Join all chunks in one npz with only one chunk in memory, because half a million pairs may be larger than it."""
    with zipfile.ZipFile(output, "w") as archive:
        for key in ("z", "images", "labels"):
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                for index, path in enumerate(parts):
                    rows = np.ascontiguousarray(read_pairs(path, (key,))[key])
                    if index == 0:
                        about = np.lib.format.header_data_from_array_1_0(rows)
                        np.lib.format.write_array_header_2_0(file, about | {"shape": (n, *rows.shape[1:])})
                    file.write(rows.tobytes())
