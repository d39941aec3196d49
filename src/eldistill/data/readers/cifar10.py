# SPDX-License-Identifier: Apache-2.0
"""The reader of CIFAR-10's tarball for Python, whose batches are pickles; they are read without executing them."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import numpy as np

from eldistill.data.images import Arrays, first_of_test
from eldistill.errors import Problem
from eldistill.external.fetching import fetch
from eldistill.outside import check_file, locate

COVERED_BY = "data"
OPTIONS = ("path",)
SHAPE = (3, 32)
IMAGES = (50_000, 10_000)
MODULES = ("teacher/pickles",)
DOWNLOADS = ("cifar-10-python",)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MD5 = "c58f30108f718f92721af3b95e74349a"  # of cifar-10-python.tar.gz, as its authors state it
BATCHES = ([f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)], ["cifar-10-batches-py/test_batch"])


def read(section: dict) -> Arrays:
    """cifar-10-python.tar.gz (fetched, or `path`): 50,000 train images, in its order; held-out are test images. Its batches
    are pickles, which are read without executing them."""
    from eldistill.external.opcodes import Refused
    from eldistill.external.pickles import read_python2_pickle

    path = locate(section["path"]) if section["path"] else fetch("cifar-10-python", section["folder"])
    if section["path"]:  # what is fetched has the digest of data/sources.csv
        _check_md5(path, section.get("md5", MD5))
    arrays: list[np.ndarray] = []
    with tarfile.open(path, "r:gz") as archive:
        for names in BATCHES:
            images, labels = [], []
            for name in names:
                try:
                    batch = read_python2_pickle(archive.extractfile(name).read())
                    rows, classes = batch["data"], np.asarray(batch["labels"], np.int64)
                except (Refused, KeyError, TypeError, AttributeError, ValueError) as error:
                    raise Problem(f"{path}: {name} is not a batch of CIFAR-10 ({error}); fetch it again") from None
                if rows.dtype != np.uint8 or rows.shape != (len(classes), 3072):
                    raise Problem(
                        f"{path}: {name} has {rows.shape} {rows.dtype} and {len(classes)} labels; fetch it again"
                    )
                images.append(rows.reshape(-1, 3, 32, 32))
                labels.append(classes)
            arrays += [np.concatenate(images), np.concatenate(labels)]
    return first_of_test(arrays, section["heldout"], "CIFAR-10")


def _check_md5(path: Path, wanted: str) -> None:
    check_file(path, "the path of cifar-10-python.tar.gz")
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise Problem(f"{path} cannot be read ({error.strerror}); give the path of cifar-10-python.tar.gz") from None
    if digest != wanted:
        raise Problem(f"{path} has md5 {digest}, cifar-10-python.tar.gz has {MD5}; fetch it again")
