# SPDX-License-Identifier: Apache-2.0
"""The two forms in which readers return images, arrays or a stream, and the choice of held-out images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from eldistill.errors import Problem

COVERED_BY = "data"
# (train images uint8 [n, c, h, w], their labels int64 [n], held-out images, their labels)
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Stream:
    """Images that are read one by one, and read again each time that they are requested.

    shape: of one image; kind: U8 or F32. labels: int64 [n], -1 where there is none. read: from indices to arrays of that
    shape, in their order. names: of the classes. notes: sentences about what was left out or decided.
    """

    shape: tuple[int, ...]
    kind: str
    labels: np.ndarray
    read: Callable[[np.ndarray], Iterator[np.ndarray]]
    names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def split_heldout(count: int, heldout: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, held-out) indices, each ascending. A hash of the index decides, so the choice never changes. Raises Problem if
    `heldout` is not below `count`."""
    if heldout >= count:
        if count < 4:
            found = "is 1 image" if count == 1 else f"are {count} images"
            raise Problem(
                f"there {found}; expected at least 4, 2 to hold out and 2 to train on, and better some hundreds"
            )
        raise Problem(
            f"heldout is {heldout}, but there are {count} images; set `heldout` of the data setting below {count}"
            + (f", for instance to {count // 5}" if count >= 10 else "")
        )
    order = sorted(range(count), key=lambda index: hashlib.sha256(str(index).encode()).digest())
    return np.sort(order[: count - heldout]), np.sort(order[count - heldout :])


def split_arrays(images: np.ndarray, labels: np.ndarray, heldout: int) -> Arrays:
    """The images [n, c, h, w] and labels [n] of a source without a test part, `heldout` of them set aside."""
    train, rest = split_heldout(len(images), heldout)
    return images[train], labels[train], images[rest], labels[rest]


def first_of_test(arrays: list[np.ndarray], n: int, name: str) -> Arrays:
    """[train images, their labels, test images, their labels] with the first n test images held out. name: of the source, for
    the message. Raises Problem if there are fewer."""
    train, labels, test, test_labels = arrays
    if n > len(test):
        raise Problem(f"heldout is {n}, but {name} has {len(test)} test images; expected at most as many")
    return train, labels, test[:n], test_labels[:n]
