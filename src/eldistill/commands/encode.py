# SPDX-License-Identifier: Apache-2.0
"""The command `encode`: writes the images of a data setting as latents, which EDM2's code and this project read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from eldistill.data import latents
from eldistill.data.archives import labels_file, npy, npy_name
from eldistill.data.containers import new_folder, new_zip
from eldistill.data.packing import check_count
from eldistill.data.readers import folder
from eldistill.errors import Problem, edge
from eldistill.external.arrays import read_npy
from eldistill.files import check_target
from eldistill.outside import check_file
from eldistill.plan import params
from eldistill.sampling.devices import check_device

COVERED_BY = "latents"
SAME = 0.05  # largest relative difference between latents of one image on two devices; of other images it is about 1


def write_latents(section: dict, path: str | Path, vae: str | None = None, device: str = "cpu", say=print) -> int:
    """Encode the images of a section's folder or zip, one at a time, as the reader of latents and EDM2's code read them.

    path: a zip; or a folder, in which what is there is kept: the same command continues. vae: the folder of an autoencoder;
    None fetches sd-vae-ft-mse. Returns how many images it holds. Raises Problem.
    """
    if section["source"] != "folder":
        raise Problem(
            f"source is {section['source']}; expected a data setting whose source is a folder or zip of images"
        )
    latents.load_autoencoder(vae, device)  # what is missing is said before the images are looked at
    stream, path = folder.read(section), Path(path)
    for note in stream.notes:
        say(note)
    if stream.shape[0] != 3:
        raise Problem(
            f"{section['path']} has grey images; expected images in colour, because the autoencoder reads three channels"
        )
    count, began, last = len(stream.labels), time.monotonic(), time.monotonic()
    check_count(section, count)
    whole = path.suffix == ".zip"
    wanted = [index for index in range(count) if whole or not (path / npy_name(index)).exists()]
    if not whole:
        _check_kept(path, count, stream.read, vae, device)
    with (new_zip if whole else new_folder)(path) as put:
        for done, (index, image) in enumerate(zip(wanted, stream.read(np.array(wanted, np.int64)), strict=True), 1):
            put(*npy(index, latents.encode_moments(torch.tensor(image), vae, device)))
            if time.monotonic() - last > 60 or done == len(wanted):
                last, rate = time.monotonic(), done / max(time.monotonic() - began, 1e-9)
                say(f"{count - len(wanted) + done:>8}/{count} images  {rate:6.1f} images/s  "
                    f"{(len(wanted) - done) / rate / 3600:5.1f} h left")  # fmt: skip
        labels = [[npy_name(index), label] for index, label in enumerate(stream.labels.tolist())]
        put("dataset.json", labels_file(labels, stream.names))
    return count


def _check_kept(path: Path, count: int, read: Callable, vae: str | None, device: str) -> None:
    # Latents that an earlier call left in a folder are kept. Whether they are of these images shows at the first, the last and some
    # between, which are encoded again; devices differ in their last digits.
    kept = [index for index in range(count) if (path / npy_name(index)).exists()]
    other = (path / npy_name(count)).exists()
    chosen = sorted({kept[round(share * (len(kept) - 1))] for share in (0, 1 / 3, 2 / 3, 1)}) if kept else []
    for index, image in zip(chosen, read(np.array(chosen, np.int64)), strict=True):
        place = path / npy_name(index)
        with edge(place, "give another folder, or remove it", "is no array of numbers"):
            there = read_npy(check_file(place, "latents").read_bytes()).astype(np.float64)
        made = latents.encode_moments(torch.tensor(image), vae, device).cpu().numpy()
        other |= there.shape != made.shape or not np.linalg.norm(there - made) <= SAME * np.linalg.norm(made)
    if other:
        raise Problem(
            f"{path} holds latents of other images, of another resolution or of another autoencoder; give another folder, or remove it"
        )


def command(options, say) -> None:
    """Options as the command line gives them. Raises Problem."""
    check_device(options.device)
    out = Path(options.out)
    check_target(out if out.suffix == ".zip" else out / npy_name(0))
    section = params.load_params().section("data", options.name, where="data on the command line")
    count = write_latents(section, options.out, options.vae, options.device, say)
    say(f"{options.out}: latents of {count} images")
