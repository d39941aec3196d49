# SPDX-License-Identifier: Apache-2.0
"""The reader of a folder or zip of an autoencoder's latents, one .npy file for each image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eldistill.data import badfiles, labels
from eldistill.data.containers import Container, open_container
from eldistill.data.images import Stream
from eldistill.errors import Problem, edge
from eldistill.external import arrays
from eldistill.outside import locate

COVERED_BY = "folders"
OPTIONS = ("path", "pixels")
NEEDS = ("path", "pixels")
MODULES = ("latents",)
ENDINGS = (".npy",)


def read(section: dict) -> Stream:
    """A folder or zip of .npy files in sorted order of their names, each float32 [2c, r, r]: c means and c standard deviations of
    an image's latents. Labels come from dataset.json. EDM2 and `python -m eldistill encode` write this format. Raises Problem."""
    path = locate(section["path"])
    with open_container(path) as container:
        files = container.list(ENDINGS)
        if not files.names:
            raise Problem(f"{path} has no latents; expected .npy files, as `python -m eldistill encode` writes them")
        classes = labels.labels_of_listing(path, files, container, folders=False)
        shape = _latent(path, files.names[0], container, None).shape

    def examine(container: Container, name: str) -> np.ndarray:
        return _latent(path, name, container, shape)

    def read_these(indices: np.ndarray) -> Iterator[np.ndarray]:
        with open_container(path) as container:
            for index in indices:
                with badfiles.listing_all(path, files.names, examine):
                    array = examine(container, files.names[index])
                yield array

    return Stream(shape, "F32", classes.numbers, read_these, classes.names, [*files.left_out(), *classes.notes])


def _latent(path: Path, name: str, container: Container, shape: tuple | None) -> np.ndarray:
    with container.open(name) as file:
        content = file.read()
    with edge(f"{path}: {name}", "encode the images again", "is no array of numbers"):
        array = arrays.read_npy(content)
    found = f"{array.dtype} {list(array.shape)}"
    if array.dtype != np.float32 or array.ndim != 3 or len(array) % 2 or array.shape[1] != array.shape[2]:
        raise Problem(
            f"{path}: {name} is {found}; expected float32, means and deviations of c channels, such as [8, 64, 64]"
        )
    if shape not in (None, array.shape):
        raise Problem(f"{path}: {name} is {found}, the first one {list(shape)}; encode the images again")
    if not np.isfinite(array).all() or array[len(array) // 2 :].min() < 0:
        raise Problem(f"{path}: {name} has deviations below 0 or values that are not finite; encode the images again")
    return array
