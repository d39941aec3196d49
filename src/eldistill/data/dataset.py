# SPDX-License-Identifier: Apache-2.0
"""Packed data sets, one file with uint8 images and integer labels, train and held-out; and the encoding that networks see.

Networks see x = 0.5 (u/255 - mean) / std, so that sigma_data = 0.5 holds; metrics see uint8. A pack of latents holds
float32 means and standard deviations (eldistill.data.latents). eldistill.data.packing writes packs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from eldistill.data import latents
from eldistill.diffusion.draws import Draw, sent
from eldistill.diffusion.noise import SIGMA_DATA
from eldistill.errors import NonFinite, Problem
from eldistill.external.descriptions import check_description
from eldistill.tensors import map_tensors

RECIPE = ("data", 2)


# --- codec --------------------------------------------------------------------------------------------


def encode(images: torch.Tensor, codec: dict, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """x = 0.5 (u/255 - mean) / std of uint8 images u of any shape. With mean 0.5 and std 0.25 this is EDM's u/127.5 - 1."""
    return (images.to(dtype) / 255 - codec["mean"]) * (SIGMA_DATA / codec["std"])


def decode(x: torch.Tensor, codec: dict) -> torch.Tensor:
    """The uint8 images of encoded x [n, c, h, w]: the inverse of `encode`, clipped to 0 … 255 and rounded half up, as in EDM (which
    adds 128 and truncates). Latents are decoded by their autoencoder.

    Raises NonFinite for a NaN or an infinity, which a cast would hide as a black or a white pixel.
    """
    if not bool(x.isfinite().all()):
        raise NonFinite(f"an image is not finite in {int((~x.isfinite()).sum())} of its values, shape {tuple(x.shape)}; "
                        "the network that made it is broken")  # fmt: skip
    if latents.is_latent(codec):
        return latents.decode(x, codec)
    level = (x.double() * (codec["std"] / SIGMA_DATA) + codec["mean"]) * 255
    return (level + 0.5).clamp(0, 255).to(torch.uint8)


def encoded_limits(codec: dict) -> tuple[float, float]:
    """The encoded values of the pixels 0 and 255; (-inf, inf) for latents."""
    if latents.is_latent(codec):
        return -math.inf, math.inf
    return -codec["mean"] * SIGMA_DATA / codec["std"], (1 - codec["mean"]) * SIGMA_DATA / codec["std"]


class PackedImages:
    """The images of one part of a packed file, encoded for networks on a device when they are taken.

    images: uint8 [n, c, h, w], on the device too if they fill at most a quarter of what is free there; else they stay
    where they are, and only the rows that are taken are sent. labels: int64 [n], -1 where there is none. label_dim: width
    of the one-hot labels, 0 for networks that see none.
    """

    sigma_data = SIGMA_DATA

    def __init__(self, images, labels, codec: dict, label_dim: int, device="cpu", dtype=torch.float32):
        self.images, self.classes = images.to(device) if _fits(images, device) else images, labels.to(device)
        self.codec, self.label_dim, self.dtype, self.device = codec, label_dim, dtype, device

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return tuple(self.images.shape[1:])

    def labels(self, indices: torch.Tensor) -> torch.Tensor | None:
        """One-hot labels [len(indices), label_dim], None if label_dim is 0. Indices on the CPU avoid waiting for a GPU."""
        if not self.label_dim:
            return None
        classes = self.classes[sent(indices, self.classes.device)]
        return torch.nn.functional.one_hot(classes, self.label_dim).to(self.dtype)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """The packed images [len(indices), c, h, w], uint8, on the device."""
        return sent(self.images[sent(indices, self.images.device)], self.device)

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encoded images [len(indices), c, h, w] and their one-hot labels."""
        return encode(self.rows(indices), self.codec, self.dtype), self.labels(indices)


def _fits(images: torch.Tensor, device) -> bool:
    device = torch.device(device)
    return device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] // 4


class PackedLatents(PackedImages):
    """PackedImages of latents. images: float32 [n, 2c, r, r], means and then standard deviations."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what networks see."""
        channels, height, width = self.images.shape[1:]
        return channels // 2, height, width

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents [len(indices), c, r, r] and labels, with noise that depends only on the index of the image: for measurements."""
        each = [Draw(0, "latents", index, 1, self.device, self.dtype) for index in indices.tolist()]
        return self.fresh(indices, lambda *shape: torch.cat([draw.normal("encoder", *shape) for draw in each]))

    def fresh(self, indices: torch.Tensor, normal: Callable) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents [len(indices), c, r, r] and labels, with noise of the caller: normal(c, r, r) returns N(0, 1) of that shape."""
        return latents.encode(self.rows(indices), normal(*self.shape), self.codec), self.labels(indices)


def load_pack(path: str | Path, part: str = "train") -> tuple[torch.Tensor, torch.Tensor, dict]:
    """(images uint8 [n, c, h, w], labels int64 [n], description) of a packed file. part: train or heldout.

    Latents are float32 [n, 2c, r, r]. The tensors stay in the file and are read-only. Raises Problem if it is not a pack.
    """
    tensors, about = map_tensors(path)
    images, labels = (tensors.get(f"{part}_{what}") for what in ("images", "labels"))
    if (
        images is None
        or labels is None
        or images.ndim != 4
        or labels.shape != images.shape[:1]
        or labels.dtype != torch.int64
    ):
        raise Problem(f"{path} is not a packed data set; delete it and run `snakemake all`")
    check_description(path, about)
    count = about.get("classes", 0)  # of a pack without classes the labels are not used
    if count and len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < count:
        raise Problem(f"{path} has labels beyond its {count} classes; delete it and run `snakemake all`")
    return images, labels, about


def load_real_images(
    path: str | Path, codec: dict, labels: bool, device="cpu", dtype=torch.float32, part: str = "train"
) -> PackedImages:
    """One part of a packed file as PackedImages, or PackedLatents for a codec of latents.

    labels: whether networks are conditioned on labels. Raises Problem if they are but the pack has none, or if the codec does
    not fit the pack."""
    images, classes, about = load_pack(path, part)
    if labels and not about["classes"]:
        raise Problem(
            f"{path} has no labels, but its data setting has labels: true; set it to false, add dataset.json, or sort the images into "
            "a folder for each class"
        )
    if (images.dtype == torch.float32) != latents.is_latent(codec):
        raise Problem(
            f"{path} has {'latents' if images.dtype == torch.float32 else 'pixels'}, its codec is {codec}; of latents it has "
            "a list of means and one of deviations, a number for each channel"
        )
    kind = PackedLatents if latents.is_latent(codec) else PackedImages
    return kind(images, classes, codec, about["classes"] if labels else 0, device, dtype)
