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
SHAPE = (1, 0)
NEEDS = ("files",)
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
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error):
        raw = b""
    sizes = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])] if len(raw) > 3 else []
    if raw[:3] != b"\0\0\x08" or not sizes or len(raw) != 4 + 4 * len(sizes) + math.prod(sizes):
        raise Problem(f"{path} is not a complete IDX file of bytes; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


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
