# SPDX-License-Identifier: Apache-2.0
"""Which files are read of a folder outside the project, by what it is read as.

The readers and the identities of sources (eldistill.identity) take the same functions, so that they cannot differ: a file
that is not read, such as a README beside the images, changes no identity. This file imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

LABELS = "dataset.json"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
ARRAYS = (".npy",)
WEIGHTS = "diffusion_pytorch_model.safetensors"  # as diffusers calls them
CONFIG, SCHEDULE = "config.json", "scheduler_config.json"


def images(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """Sorted names, relative and with slashes, of the files with these endings and of the table of labels."""
    found = _files(folder, "")
    return sorted(name for name in found if os.path.splitext(name)[1].lower() in endings or name == LABELS)


def _files(folder: Path, before: str) -> Iterator[str]:
    # Links to folders are not followed. A link whose file is gone is listed: whoever reads it must fail.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), f"{before}{entry.name}/")
            elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                yield before + entry.name


def unet(folder: Path) -> tuple[Path, Path | None, Path]:
    """Configuration, schedule (None if there is none) and weights of a DDPM as diffusers saves it: of a pipeline's folder, or
    of that of its UNet2DModel with the scheduler's beside it."""
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    places = [folder / "scheduler", folder.parent / "scheduler", folder]
    schedule = next((each / SCHEDULE for each in places if (each / SCHEDULE).exists()), None)
    return inner / CONFIG, schedule, inner / WEIGHTS


def weights_there(folder: Path) -> list[str]:
    """Sorted names of the files of weights of diffusers in a folder, in whatever form; none are read but WEIGHTS."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.startswith("diffusion_pytorch_model"))


def autoencoder(folder: Path) -> tuple[Path, Path]:
    """Configuration and weights of an autoencoder as diffusers saves it."""
    return folder / CONFIG, folder / WEIGHTS


def _relative(paths, folder: Path) -> list[str]:
    return sorted(os.path.relpath(path, folder) for path in paths if path is not None and path.exists())


# What a path can be read as: the sources of data settings (the schema says `outside: source` of their path) and the other values
# of `outside` there. The names of the files that are read of a folder, none where it must be a file. detail: names of IDX files.
READ_AS: dict[str, Callable[[Path, tuple[str, ...]], list[str]]] = {
    "folder": lambda folder, detail: images(folder, PICTURES),
    "latents": lambda folder, detail: images(folder, ARRAYS),
    "cifar10": lambda folder, detail: [],
    "network": lambda folder, detail: _relative(unet(folder), folder),
    "autoencoder": lambda folder, detail: _relative(autoencoder(folder), folder),
    "idx": lambda folder, detail: _relative([folder / name for name in detail], folder),
    "weights": lambda folder, detail: [],
    "statistics": lambda folder, detail: [],
}


def is_path(read_as: str, value: str) -> bool:
    """Whether a value names a file outside; statistics may be a row of data/sources.csv, which has no ending."""
    return read_as != "statistics" or bool(Path(value).suffix)
