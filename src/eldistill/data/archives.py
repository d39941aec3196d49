# SPDX-License-Identifier: Apache-2.0
"""Writes packed data sets as zip files that the code of EDM and EDM2 reads: PNG files or arrays, and a table of labels."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch

from eldistill.data.containers import new_zip
from eldistill.data.dataset import load_pack

COVERED_BY = "latents"


def write_zip(pack: str | Path, path: str | Path, parts=("train", "heldout")) -> int:
    """Write the images of a packed file as a zip of uncompressed PNG files with labels in dataset.json, which EDM's code reads;
    latents as a zip that EDM2's code reads.

    parts: train, heldout or both. Returns the number of images. Raises Problem if `pack` is missing or damaged.
    """
    labels: list[list] = []
    with new_zip(path) as put:
        for part in parts:
            images, classes, about = load_pack(pack, part)
            for image, label in zip(images, classes.tolist(), strict=True):
                name, content = (npy if image.dtype == torch.float32 else _png)(len(labels), image)
                put(name, content)
                labels.append([name, label])
        put("dataset.json", labels_file(labels, about.get("class_names", [])))
    return len(labels)


def labels_file(labels: list[list], names: list[str]) -> bytes:
    """The content of dataset.json. labels: [name of a file, class] of each image, class -1 where there is none. names: of classes."""
    # The authors' code reads only `labels`; this project also reads the names of the classes.
    labelled = all(label >= 0 for _, label in labels)
    more = {"class_names": names} if names and labelled else {}
    return json.dumps({"labels": labels if labelled else None, **more}).encode()


def _png(index: int, image: torch.Tensor) -> tuple[str, bytes]:
    from PIL import Image

    png, array = io.BytesIO(), image.numpy()
    Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)).save(png, "PNG", compress_level=0)
    return f"{index // 1000:05d}/img{index:08d}.png", png.getvalue()


def npy(index: int, image: torch.Tensor) -> tuple[str, bytes]:
    """Name and content of an .npy file. image: latents float32 [2c, r, r], means and then standard deviations."""
    file = io.BytesIO()
    np.save(file, image.numpy())
    return npy_name(index), file.getvalue()


def npy_name(index: int) -> str:
    """The name of the .npy file of image `index`, counted from 0."""
    return f"{index // 1000:05d}/img-mean-std-{index:08d}.npy"
