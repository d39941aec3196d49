# SPDX-License-Identifier: Apache-2.0
"""Inception-v3 as clean-fid uses it (Parmar et al. 2022, arXiv 2104.11222): the network of December 2015, with images resized by
Pillow's bicubic filter, each channel in float32, without rounding.

The TorchScript file that clean-fid downloads would have to be executed. It contains the same network as the pickle of EDM's
evaluation, which `inception` reads without executing it. This space therefore takes the weights from that pickle and the resizing
from clean-fid; a test compares its features with those of clean-fid's class. The two feature spaces differ only in the resizing, and
distances in one are not comparable with distances in the other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from eldistill.errors import Problem
from eldistill.evaluate.features import ClassifierSpace, Space
from eldistill.external import fetching
from eldistill.spaces import inception

RECIPE = ("spaces/inception_clean", 1)
NAMES = ("inception-clean",)
DOWNLOADS = ("inception-2015-12-05-pkl",)  # rows of data/sources.csv that it reads


def clean_resizer() -> Callable[[np.ndarray], np.ndarray]:
    """clean-fid's resizing function from an image [h, w, 3] to float32 [299, 299, 3], with values from 0 to 255. Raises Problem if
    the package is missing."""
    try:
        from cleanfid.resize import build_resizer
    except ImportError as error:
        raise Problem(
            f"{NAMES[0]} needs the package {error.name}; run `make env`, or remove {NAMES[0]} from evaluate.features and `clean` "
            "from evaluate.fid"
        ) from None
    return build_resizer("clean")


def load_space(name: str, device="cpu", path: Path | None = None) -> Space:
    """Load the function from uint8 images [n, c, h, w] to features [n, 2048]. path: the pickle; None downloads it.

    Raises Problem if the file or clean-fid is not available. The function raises Problem unless images have 1 or 3 channels."""
    resize = clean_resizer()
    net = inception.load_network(path or fetching.fetch(DOWNLOADS[0]), device)

    def features(images: torch.Tensor) -> torch.Tensor:
        pictures = inception.to_rgb(images, name).permute(0, 2, 3, 1).cpu().numpy()
        resized = torch.from_numpy(np.stack([resize(picture) for picture in pictures]))
        return net.pooled(resized.permute(0, 3, 1, 2).to(device))

    return ClassifierSpace(features, inception.probability_head(net))
