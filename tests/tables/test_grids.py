# SPDX-License-Identifier: Apache-2.0
"""samples.png of a suite: the labels of its grids."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from eldistill.tables import grids
from eldistill.tables.results import Result


@pytest.mark.parametrize("method", ["dmd", "dmd-r0125", "a-method-of-a-user-with-a-name-of-many-words"])
def test_a_label_ends_where_its_grid_does(method, tmp_path):
    """A long one has smaller letters, so that it runs neither into the next grid nor off the picture."""
    results = [Result(f"digits/{method}/{arm}/100", {}, [], {}) for arm in ("none", "el", "pixel-mmd")]
    for folder in ("digits/real", "digits/teacher", *(result.run for result in results)):
        (tmp_path / "data/evaluations" / folder).mkdir(parents=True)
        Image.new("RGB", (64, 64), "red").save(tmp_path / "data/evaluations" / folder / "samples.png")
    grids.draw_samples(tmp_path / "all.png", results, {"grid": 8}, tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "all.png").convert("L")).astype(int)
    wide = grids.WIDTH + grids.GAP
    top = grids.GAP // 2 + (32 * 9 + grids.LABEL + grids.GAP)  # of the labels of the arms
    labels = pixels[top : top + grids.LABEL - 4]
    for place in range(1, 4):
        assert (labels[:, place * wide + 2 : place * wide + grids.GAP - 2] == 255).all()
        assert (labels[:, (place - 1) * wide + grids.GAP : place * wide] < 128).any()
