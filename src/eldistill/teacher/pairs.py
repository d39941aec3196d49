# SPDX-License-Identifier: Apache-2.0
"""Pairs (noise, the teacher's deterministic image of it) for the supplement `regression`."""

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
from eldistill.sampling import teachers
from eldistill.sampling.heun import heun

RECIPE = ("teacher/pairs", 1)


@torch.no_grad()
def make(
    recipe: dict, teacher: Path, output: Path, folder: Path, batch: int, device: str, say, pack: Path | None = None
) -> None:
    """Write z [n, c, h, w] (unit normal), images [n, c, h, w] (encoded), float32, and labels [n] (-1: none).

    pack: the images of a conditional teacher, whose classes are drawn by their frequency there; None: uniformly. Chunks are
    kept in `folder`: the same command continues after the last whole one.
    """
    net, about = teachers.load(teacher, device)
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
                raise NonFinite(f"the teacher's images {done} to {done + size - 1} are not finite; it is broken")
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
    """One npz of all chunks, one chunk in memory at a time: half a million pairs are larger than most memories."""
    with zipfile.ZipFile(output, "w") as archive:
        for key in ("z", "images", "labels"):
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                for index, path in enumerate(parts):
                    with np.load(path, allow_pickle=False) as chunk:
                        rows = np.ascontiguousarray(chunk[key])
                    if index == 0:
                        about = np.lib.format.header_data_from_array_1_0(rows)
                        np.lib.format.write_array_header_2_0(file, about | {"shape": (n, *rows.shape[1:])})
                    file.write(rows.tobytes())
