# SPDX-License-Identifier: Apache-2.0
"""The command `selftest`: samples a small generator that is a part of the package, and compares its images with stored numbers.

It trains nothing, fetches nothing and needs no project, only torch, numpy, pyyaml and safetensors. Two numbers are compared:

- the Fréchet distance in the pixels of `n` images to held-out digits. Other versions of torch, other processors and GPUs round
  sums in another order, which moves a pixel by a grey level here and there; the file of expected numbers says how far the
  distance moved in such cases. The tolerance is several times that, and a small part of what another seed changes;
- the first images, pixel by pixel, which also shows a permutation of images, to which a distance is blind.

docs/renew_selftest.py makes the files in FILES from a run of the demo; tests/commands/test_selftest.py says when they are stale.
"""

from __future__ import annotations

import importlib.util
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eldistill import files, tensors
from eldistill.evaluate import gaussians
from eldistill.paths import PACKAGE
from eldistill.sampling.devices import check_device
from eldistill.sampling.generators import images_of, load_generator
from eldistill.sampling.pictures import grid
from eldistill.spaces.pixels import pixels

COVERED_BY = "sampling"
FILES = PACKAGE / "commands/selftest_files"
Numbers = dict[str, Any]


def command(options, say) -> int:
    """`python -m eldistill selftest`: options as the command line gives them. Returns 0 if all numbers agree, otherwise 1."""
    check_device(options.device)
    files.check_target(options.out)
    start = time.monotonic()
    wanted = files.read_json(FILES / "expected.json")
    images = make_images(wanted, options.device)
    say(f"{len(images):,} images of {wanted['run']}, a generator of the demo that is in the package, in {time.monotonic() - start:.1f} s "
        f"on {options.device} (torch {torch.__version__}, numpy {np.__version__})")  # fmt: skip
    found = measure(images)
    faults = compare(found, wanted)
    for line in describe(found, wanted):
        say(line)
    say(write_picture(images[: wanted["stored"]], options.out))
    say(verdict(faults))
    return 1 if faults else 0


def make_images(wanted: Numbers, device: str = "cpu") -> torch.Tensor:
    """The images of the generator in the package, uint8 [n, c, h, w]. wanted: the content of expected.json."""
    torch.backends.cudnn.allow_tf32 = False  # its 10 bits of mantissa would move many pixels
    generator = load_generator(FILES / "generator.safetensors", device)
    return torch.cat(list(images_of(generator, wanted["n"], wanted["seed"])))


def measure(images: torch.Tensor) -> Numbers:
    """{distance: Fréchet distance in the pixels to the held-out digits; grey: largest difference of a pixel, 0 to 255, of the first
    images to the stored ones}."""
    reference, _ = tensors.load_tensors(FILES / "reference.safetensors")
    mean, cov = (reference[name].numpy() for name in ("mean", "covariance"))
    stored = reference["images"]
    return {
        "distance": gaussians.frechet(*gaussians.moments(pixels(images).double().numpy()), mean, cov),
        "grey": int((images[: len(stored)].int() - stored.int()).abs().max()),
    }


def compare(found: Numbers, wanted: Numbers) -> list[str]:
    """The numbers that differ by more than is allowed, one sentence each. A NaN differs."""
    faults = []
    if not math.fabs(found["distance"] - wanted["distance"]) <= wanted["tolerance"]:
        faults.append(
            f"the distance is {found['distance']:.4f}; expected {wanted['distance']:.4f} ± {wanted['tolerance']}"
        )
    if found["grey"] > wanted["grey"]:
        faults.append(
            f"a pixel differs by {found['grey']} grey levels from the stored images; expected {wanted['grey']} or less"
        )
    return faults


def describe(found: Numbers, wanted: Numbers) -> list[str]:
    """What was measured, and what one must see, line by line."""
    return [
        f"Fréchet distance to held-out digits in the pixels ({wanted['metric']}), lower is better:",
        f"  expected  {wanted['distance']:.4f} ± {wanted['tolerance']}",
        f"  here      {found['distance']:.4f}",
        f"  to compare: real images have {wanted['real']:.4f}, images of another seed differ by about {wanted['seeds']:.4f}",
        f"largest difference to the {wanted['stored']} stored images: {found['grey']} of 255 grey levels ({wanted['grey']} are allowed)",
    ]


def write_picture(images: torch.Tensor, path: str) -> str:
    """Write images [n, c, h, w] into one PNG file, if the package pillow is there. Returns the line that says so."""
    if importlib.util.find_spec("PIL") is None:
        return "no picture was written, because the package pillow is missing; `pip install pillow` adds it"
    with files.atomic(path) as temporary:
        grid(images, math.ceil(len(images) ** 0.5), 6).save(temporary, format="PNG")
    return f"picture of {len(images)} images: {Path(path).resolve()}"


def verdict(faults: list[str]) -> str:
    """The last line."""
    if not faults:
        return "selftest passed: this installation makes the images that it should"
    return (
        f"selftest failed: {'; '.join(faults)}. This installation computes other images than the one that was tested; try the "
        "versions of requirements.lock, and report the lines above"
    )
