# SPDX-License-Identifier: Apache-2.0
"""The command `sample`: writes images from a finished generator as one picture, as files, or both."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from eldistill.data import classes
from eldistill.errors import Problem
from eldistill.files import atomic, check_target
from eldistill.sampling.devices import check_device
from eldistill.sampling.generators import class_number, images_of, load_generator, sample
from eldistill.sampling.pictures import grid, picture

COVERED_BY = "sampling"
MOST_PIXELS = 2**28  # of one picture, which is made in memory
PATIENCE = 60.0  # seconds between two lines about the progress


def command(options, say) -> None:
    """`python -m eldistill sample`: options as the command line gives them. Raises Problem; then nothing is written.

    Files are written as their images are made, so that their number is limited by the disk only; a picture is made in memory."""
    if not (options.grid or options.out):
        raise Problem("nothing to write; give --grid FILE.png, --out FOLDER, or both")
    if options.n < 1:
        raise Problem(f"--n is {options.n}; expected 1 or more")
    for target in filter(None, (options.grid, options.out and Path(options.out) / "000000.png")):
        check_target(target)  # before time is spent on images
    check_device(options.device)
    generator = load_generator(options.generator, options.device)
    label = None if options.label is None else class_number(generator, options.label)
    one = sample(generator, 1, options.seed, label, options.steps)[0]
    scale, columns = max(1, 32 // one.shape[-1]), math.isqrt(options.n - 1) + 1
    if options.grid:
        _check_pixels(options.n, columns, scale, *one.shape[1:])
    if options.out:
        _check_space(options.n, Path(options.out), one)
    if label is None and generator.metadata["label_dim"]:
        say(classes.how_drawn(generator.metadata))
    shown, first, pace = [], 0, _Pace(options.n, say)
    for images in images_of(generator, options.n, options.seed, label, steps=options.steps):
        if options.grid:
            shown.append(images)
        if options.out:
            _write_files(Path(options.out), first, images)
        first += len(images)
        pace.tell(first)
    if options.grid:
        with atomic(options.grid) as temporary:
            grid(torch.cat(shown), columns, scale).save(temporary, format="PNG")
        say(f"{options.n} images in {options.grid}")
    if options.out:
        say(f"{options.n} images in {options.out}")


def _write_files(folder: Path, first: int, images: torch.Tensor) -> None:
    for index, image in enumerate(images, first):
        with atomic(folder / f"{index:06d}.png") as temporary:
            picture(image).save(temporary, format="PNG")


def _check_pixels(n: int, columns: int, scale: int, height: int, width: int) -> None:
    # Raise Problem if the picture of `grid` would be too large. A line of one pixel surrounds each image.
    each = (height + 1) * (width + 1) * scale**2
    if (found := columns * -(-n // columns) * each) > MOST_PIXELS:
        raise Problem(
            f"--n is {n}, and one picture of them would have {found:,} pixels; expected at most {MOST_PIXELS:,}, which is room for "
            f"{math.isqrt(MOST_PIXELS // each) ** 2:,} of these images; lower --n, or give --out FOLDER in place of --grid"
        )


def _check_space(n: int, folder: Path, image: torch.Tensor) -> None:
    # Raise Problem if n files like that of this image do not fit on the disk.
    packed = io.BytesIO()
    picture(image).save(packed, format="PNG")
    above = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    disk = os.statvfs(above)
    size = -(-packed.tell() // disk.f_frsize) * disk.f_frsize  # a file fills whole blocks
    free, files = disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else math.inf
    if n * size > free or n > files:
        raise Problem(
            f"--n is {n}, and that many files of {size:,} bytes need {n * size / 1e9:,.0f} GB; {above} has {free / 1e9:,.1f} GB free, "
            f"expected at most {min(free // size, files):,} images; lower --n, or give a folder on another disk"
        )


class _Pace:
    """Says how many of n images are made and how long the others take, once in a minute."""

    def __init__(self, n: int, say: Callable[[str], object]) -> None:
        self.n, self.say = n, say
        self.began = self.last = time.monotonic()

    def tell(self, done: int) -> None:
        now = time.monotonic()
        if done < self.n and now - self.last >= PATIENCE:
            self.last = now
            left = (now - self.began) / done * (self.n - done)
            self.say(f"{done:,} of {self.n:,} images, about {left / 60:,.0f} min left")
