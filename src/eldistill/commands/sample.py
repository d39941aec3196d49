# SPDX-License-Identifier: Apache-2.0
"""The command `sample`: writes images from a finished generator as one picture, as files, or both."""

from __future__ import annotations

import math
from pathlib import Path

from eldistill.data import classes
from eldistill.errors import Problem
from eldistill.files import atomic, check_target
from eldistill.sampling.devices import check_device
from eldistill.sampling.generators import class_number, load_generator, sample
from eldistill.sampling.pictures import grid, picture

COVERED_BY = "sampling"


def command(options, say) -> None:
    """`python -m eldistill sample`: options as the command line gives them. Raises Problem."""
    if not (options.grid or options.out):
        raise Problem("nothing to write; give --grid FILE.png, --out FOLDER, or both")
    if options.n < 1:
        raise Problem(f"--n is {options.n}; expected 1 or more")
    for target in filter(None, (options.grid, options.out and Path(options.out) / "000000.png")):
        check_target(target)  # before time is spent on images
    check_device(options.device)
    generator = load_generator(options.generator, options.device)
    label = None if options.label is None else class_number(generator, options.label)
    images = sample(generator, options.n, options.seed, label, options.steps)
    if label is None and generator.metadata["label_dim"]:
        say(classes.how_drawn(generator.metadata))
    if options.grid:
        with atomic(options.grid) as temporary:
            grid(images, math.ceil(options.n**0.5), max(1, 32 // images.shape[-1])).save(temporary, format="PNG")
        say(f"{options.n} images in {options.grid}")
    if options.out:
        for index, image in enumerate(images):
            with atomic(Path(options.out) / f"{index:06d}.png") as temporary:
                picture(image).save(temporary, format="PNG")
        say(f"{options.n} images in {options.out}")
