# SPDX-License-Identifier: Apache-2.0
"""The reader of scikit-learn's 1,797 handwritten digits, which need no download."""

from __future__ import annotations

import numpy as np

from eldistill.data.images import Arrays, split_arrays

COVERED_BY = "data"
SHAPE = (1, 8)
IMAGES = (1797, 0)


def read(section: dict) -> Arrays:
    """scikit-learn's 1,797 real handwritten digits: 8x8, one channel, 17 grey levels, stretched to 0 … 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return split_arrays(images, bunch.target, section["heldout"])
