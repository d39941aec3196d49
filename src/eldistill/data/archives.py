# SPDX-License-Identifier: Apache-2.0
"""A pack as a zip that EDM's code reads, and the images of a data setting as latents that EDM2's code reads."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
import torch

from eldistill.data import latents
from eldistill.data.containers import new_folder, new_zip
from eldistill.data.dataset import load
from eldistill.data.packing import counted
from eldistill.data.readers import folder
from eldistill.errors import Problem

COVERED_BY = "latents"


def write_zip(pack: str | Path, path: str | Path, parts=("train", "heldout")) -> int:
    """The images of a packed file as a zip that EDM's code reads: PNGs, nothing compressed, labels in dataset.json; of
    latents one that EDM2's code reads.

    Returns how many images it holds. Raises Problem.
    """
    labels: list[list] = []
    with new_zip(path) as put:
        for part in parts:
            images, classes, about = load(pack, part)
            for image, label in zip(images, classes.tolist(), strict=True):
                name, content = (_npy if image.dtype == torch.float32 else _png)(len(labels), image)
                put(name, content)
                labels.append([name, label])
        put("dataset.json", _dataset(labels, about.get("class_names", [])))
    return len(labels)


def _dataset(labels: list[list], names: list[str]) -> bytes:
    # Their code reads `labels` alone; ours takes the names of classes from beside it.
    labelled = all(label >= 0 for _, label in labels)
    more = {"class_names": names} if names and labelled else {}
    return json.dumps({"labels": labels if labelled else None, **more}).encode()


def _png(index: int, image: torch.Tensor) -> tuple[str, bytes]:
    from PIL import Image

    png, array = io.BytesIO(), image.numpy()
    Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)).save(png, "PNG", compress_level=0)
    return f"{index // 1000:05d}/img{index:08d}.png", png.getvalue()


def _npy(index: int, image: torch.Tensor) -> tuple[str, bytes]:
    file = io.BytesIO()
    np.save(file, image.numpy())
    return _npy_name(index), file.getvalue()


def _npy_name(index: int) -> str:
    return f"{index // 1000:05d}/img-mean-std-{index:08d}.npy"


def write_latents(section: dict, path: str | Path, vae: str | None = None, device: str = "cpu", say=print) -> int:
    """Encode the images of a section's folder or zip, one at a time, as the reader of latents and EDM2's code read them.

    path: a zip; or a folder, in which what is there is kept: the same command continues. vae: the folder of an autoencoder;
    None fetches sd-vae-ft-mse. Returns how many images it holds. Raises Problem.
    """
    if section["source"] != "folder":
        raise Problem(
            f"source is {section['source']}; expected a data setting whose source is a folder or zip of images"
        )
    latents.load(vae, device)  # what is missing is said before the images are looked at
    stream, path = folder.read(section), Path(path)
    for note in stream.notes:
        say(note)
    if stream.shape[0] != 3:
        raise Problem(f"{section['path']} has grey images; expected colours")
    count, began, last = len(stream.labels), time.monotonic(), time.monotonic()
    counted(section, count)
    whole = path.suffix == ".zip"
    wanted = [index for index in range(count) if whole or not (path / _npy_name(index)).exists()]
    with (new_zip if whole else new_folder)(path) as put:
        for done, (index, image) in enumerate(zip(wanted, stream.read(np.array(wanted, np.int64)), strict=True), 1):
            put(*_npy(index, latents.moments(torch.tensor(image), vae, device)))
            if time.monotonic() - last > 60 or done == len(wanted):
                last, rate = time.monotonic(), done / max(time.monotonic() - began, 1e-9)
                say(f"{count - len(wanted) + done:>8}/{count} images  {rate:6.1f} images/s  "
                    f"{(len(wanted) - done) / rate / 3600:5.1f} h left")  # fmt: skip
        labels = [[_npy_name(index), label] for index, label in enumerate(stream.labels.tolist())]
        put("dataset.json", _dataset(labels, stream.names))
    return count
