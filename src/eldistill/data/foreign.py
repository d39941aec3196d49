# SPDX-License-Identifier: Apache-2.0
"""Says what a file is that `source: folder` does not read, and how its images become files that are read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

COVERED_BY = "folders"
UNPACK = "unpack it, and give its folder"
EXPORT = 'save its images as PNG files in a folder, and give that (docs/images.md, "From other formats")'
CUT = "copy or download it again"
SINGLE = "give the folder that holds it and the other images"
# {first bytes: (what such a file is, what to do)}
HEADS = {
    b"PAR1": ("a Parquet file", EXPORT), b"ARROW1": ("an Arrow file", EXPORT), b"\x89HDF": ("an HDF5 file", EXPORT),
    b"\x93NUMPY": ("a NumPy array", EXPORT), b"MATLAB": ("a MATLAB file", EXPORT), b"\x80": ("a pickle", EXPORT),
    b"Rar!": ("a RAR archive", UNPACK), b"7z\xbc\xaf": ("a 7-Zip archive", UNPACK), b"\x1f\x8b": ("a gzip file", UNPACK),
    b"BZh": ("a bzip2 file", UNPACK), b"\xfd7zXZ": ("an xz file", UNPACK), b"\x28\xb5\x2f\xfd": ("a zstd file", UNPACK),
    b"PK": ("a zip that is cut off", CUT), b"\x89PNG": ("one picture", SINGLE), b"\xff\xd8\xff": ("one picture", SINGLE),
    b"GIF8": ("one picture", SINGLE), b"RIFF": ("one picture or film", SINGLE), b"BM": ("one picture", SINGLE),
}  # fmt: skip
PACKED = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"}
PICTURES = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".psd", ".tga", ".ico", ".svg", ".exr", ".hdr", ".dcm"}
ARRAYS = {".npy", ".npz", ".parquet", ".arrow", ".h5", ".hdf5", ".mat", ".pkl", ".pickle", ".tfrecord", ".mdb", ".pt"}


def describe_file(path: Path) -> str:
    """The end of a sentence about an ordinary file that is no zip: what it is and what to do. Raises OSError."""
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        return f"is empty; {CUT}"
    for start, (what, todo) in HEADS.items():
        if head.startswith(start):
            return f"is {what}, neither a folder nor a zip file; {todo}"
    return f"is neither a folder nor a zip file; {EXPORT}"


def advice(endings: Iterable[str]) -> list[str]:
    """What to do where a folder or zip has no images but files with these endings: at most one phrase."""
    endings = {os.path.splitext(f"x{ending}")[1].lower() for ending in endings}
    if endings & PACKED:
        return ["unpack the archives in it"]
    if endings & PICTURES:
        return ["convert them to PNG"]
    return ['save the images as PNG files (docs/images.md, "From other formats")'] if endings & ARRAYS else []
