# SPDX-License-Identifier: Apache-2.0
"""The reader of IDX files, the format of MNIST and Fashion-MNIST: images and labels, train and test."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from eldistill.data.images import Arrays, first_of_test
from eldistill.errors import Problem, denied
from eldistill.external.fetching import fetch

COVERED_BY = "data"
OPTIONS = ("files", "resolution")
SHAPE = (1, 0)
NEEDS = ("files",)
LARGEST, SHRINK = 2**25, 16  # bytes that a file may unpack to however small it is, and more for each byte of it
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
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            sizes = _sizes(file)
            # What a gzip file claims to hold can exceed any memory; real images shrink to a fifth.
            if not sizes or (count := math.prod(sizes)) > LARGEST + SHRINK * path.stat().st_size:
                raise OSError
            raw = _exactly(file, count)
    except PermissionError:
        raise denied(path) from None
    except (OSError, EOFError, zlib.error):
        raise Problem(f"{path} is not a complete IDX file of bytes; fetch it again") from None
    return np.frombuffer(raw, np.uint8).reshape(sizes)


def _sizes(file: BinaryIO) -> list[int]:
    # IDX: two zero bytes, type 8 (uint8), number of dimensions, big-endian sizes, data. [] for anything else.
    start = file.read(4)
    axes = file.read(4 * start[3]) if start[:3] == b"\0\0\x08" and len(start) == 4 else b""
    sizes = [int.from_bytes(axes[at : at + 4], "big") for at in range(0, len(axes), 4)]
    return sizes if len(start) == 4 and len(axes) == 4 * start[3] and len(sizes) <= 4 else []


def _exactly(file: BinaryIO, count: int) -> bytes:
    # The rest of the file, which must have `count` bytes. A read of all at once would allocate what is claimed.
    parts, left = [], count
    while left >= 0 and (part := file.read(min(left + 1, 2**20))):
        parts.append(part)
        left -= len(part)
    if left:
        raise EOFError
    return b"".join(parts)


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
