# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's view of a run while it trains: the values of log.csv, and a grid of images at each snapshot.

`distil.log: [csv, tensorboard]` asks for it. Events go to data/scratch/tensorboard/RUN/RECIPE, which is no output of the run: they
are neither kept by DVC nor part of a recipe. They change nothing in the training: images are made by a copy of the generator, from
the file of the snapshot.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eldistill.data import classes, latents
from eldistill.errors import Problem
from eldistill.paths import SCRATCH
from eldistill.sampling import generators
from eldistill.sampling.pictures import tile

COVERED_BY = "distil"
TENSORBOARD = "tensorboard"
GRID = 64  # images of a grid, or eight of each class
CHUNK = 16  # images of a grid at once, next to a training on the same device
PACKAGES = {"tensorboard": "tensorboard", "PIL": "pillow"}  # {module: package}, which the extra `tensorboard` has


def check_packages(log: tuple[str, ...]) -> None:
    """Raise Problem if distil.log names tensorboard and a package for it is missing. log: the value of distil.log."""
    missing = [package for name, package in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if TENSORBOARD in log and missing:
        raise Problem(
            f"distil.log in params.yaml names tensorboard, but the package {missing[0]} is missing; type `pip install "
            "'.[tensorboard]'` in this repository, or remove the word"
        )


def events_folder(run: str, digest: str) -> Path:
    """The folder of the events of a run with a recipe, relative to the root. `tensorboard --logdir data/scratch/tensorboard` shows all."""
    return Path(SCRATCH) / TENSORBOARD / run / digest[:12]


def open_writer(folder: Path, start: int) -> Any:
    """TensorBoard's writer into a folder. start: number of images; events of an earlier attempt from there on are hidden."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start)


class Board:
    """Writes events of one run. Its steps are numbers of images.

    A full disk, too little memory for a grid, or another failure ends the events and not the training: it is logged once. An image
    that is not finite ends both.

    Args:
        folder: of the events.
        device: that makes the images of a grid.
        log: gets the line about a failure.
    """

    def __init__(self, folder: Path, device: str, log: Callable[[str], None]) -> None:
        self.folder, self.device, self.log = folder, device, log
        self.writer: Any = None
        self.failed = False

    def row(self, row: dict[str, Any]) -> None:
        """Add a row of the log: n_images, iteration, and means {NAME.VALUE: number}, which become NAME/VALUE."""
        numbers = {name.replace(".", "/", 1): value for name, value in row.items() if name != "n_images"}

        def write(writer: Any) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, row["n_images"])

        self._write(write, row["n_images"])

    def snapshot(self, path: Path, n_images: int) -> None:
        """Add a grid of images of a generator's file: the same noises at each snapshot, rows of classes if there are some. Latents
        have no grid, because their autoencoder would slow the training down. A run that continues writes its first snapshot again, which
        is left out: it would hide the events so far."""
        if n_images == 0 and any(self.folder.glob("events.*")):
            return
        self._write(lambda writer: self._add_grid(writer, path, n_images), n_images)

    def _add_grid(self, writer: Any, path: Path, n_images: int) -> None:
        generator = generators.load_generator(path, self.device)
        if not latents.is_latent(generator.metadata["codec"]):
            writer.add_image("images", make_grid(generator), n_images)

    def _write(self, write: Callable[[Any], None], n_images: int) -> None:
        if self.failed:
            return
        try:
            self.writer = self.writer or open_writer(self.folder, n_images)
            write(self.writer)
            self.writer.flush()
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            self.failed = True
            self.log(
                f"warning: TensorBoard's events end here ({' '.join(str(error).split())[:200]}); the training goes on"
            )


def make_grid(generator: generators.Generator) -> torch.Tensor:
    """A grid of one-step images, uint8 [c, height, width] with c of 1 or 3."""
    dim = generator.metadata["label_dim"]
    labels = classes.row_labels(dim, 8) if dim else None
    n = GRID if labels is None else len(labels)
    images = torch.cat(list(generators.images_of(generator, n, labels=labels, batch=CHUNK)))
    grid: torch.Tensor = tile(images[:, :1] if images.shape[1] < 3 else images[:, :3], 8)
    return grid
