# SPDX-License-Identifier: Apache-2.0
"""The reader of IDX files, the format of MNIST and Fashion-MNIST: images and labels, train and test."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from eldistill.data.images import Arrays, first_of_test
from eldistill.errors import Problem
from eldistill.external.fetching import fetch

COVERED_BY = "data"
OPTIONS = ("files", "resolution")
NEEDS = ("files",)
LARGEST = 1 << 30  # bytes of the numbers of a file
DOWNLOADS = ("{files}-train-images", "{files}-train-labels", "{files}-test-images", "{files}-test-labels")


def read(section: dict) -> Arrays:
    """Four IDX files: images and labels, train and test. The held-out images are the first test images. Raises Problem.

    Images are padded with zeros to `resolution`, or to a multiple of it and averaged in blocks (from 28 pixels to 16: padded
    to 32, means of 2x2)."""
    arrays = []
    for part in ("train", "test"):
        images = _idx(fetch(f"{section['files']}-{part}-images", section["folder"]))[:, None]
        labels = _idx(fetch(f"{section['files']}-{part}-labels", section["folder"]))
        if len(images) != len(labels):
            raise Problem(
                f"{section['files']} {part}: {len(images)} images and {len(labels)} labels; expected equal numbers: fetch the files again"
            )
        arrays += [_fit(images, section["resolution"]), labels.astype(np.int64)]
    return first_of_test(arrays, section["heldout"], section["files"])


def _idx(path: Path) -> np.ndarray:
    # IDX: two zero bytes, type 8 (uint8), number of dimensions, big-endian sizes, data.
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            start = file.read(4)
            axes = file.read(4 * start[3]) if start[:3] == b"\0\0\x08" and len(start) == 4 else b""
            sizes = [int.from_bytes(axes[at : at + 4], "big") for at in range(0, len(axes), 4)]
            count = math.prod(sizes) if len(axes) and len(axes) == 4 * start[3] else LARGEST + 1
            raw = (
                file.read(count + 1) if count <= LARGEST else b""
            )  # what a gzip file decompresses to can exceed any memory
    except (OSError, EOFError, zlib.error):
        count, raw = 1, b""
    if len(raw) != count:
        raise Problem(f"{path} is not a complete IDX file of bytes; fetch it again")
    return np.frombuffer(raw, np.uint8).reshape(sizes)


def _fit(images: np.ndarray, resolution: int | None) -> np.ndarray:
    size = images.shape[-1]
    resolution = resolution or size
    times = -(-size // resolution)
    missing = times * resolution - size
    if times > 1 and 4 * missing > size:
        raise Problem(f"resolution is {resolution}, but the images have {size} pixels; expected at least as many, or a "
                      f"divisor of a number a little above {size}, so that blocks can be averaged")  # fmt: skip
    before = missing // 2
    padded = np.pad(images, ((0, 0), (0, 0), (before, missing - before), (before, missing - before)))
    if times == 1:
        return padded
    blocks = padded.reshape(*images.shape[:2], resolution, times, resolution, times)
    return np.floor(blocks.mean((3, 5), dtype=np.float64) + 0.5).astype(np.uint8)
