# SPDX-License-Identifier: Apache-2.0
"""Metrics that need the classifier to which a feature space belongs."""

from __future__ import annotations

import numpy as np

COVERED_BY = "metrics"
SPLITS = 10  # number of splits of the Inception score


def inception_score(fake: np.ndarray, real: dict, options: dict) -> float | None:
    """Inception score (Salimans et al. 2016) with the classifier of this feature space, from 1 to its number of classes.

    It is the exponential of the mean Kullback-Leibler divergence between an image's class probabilities and their mean, averaged
    over 10 splits. It detects missing classes and images without a clear class, but nothing within a class. None if the feature
    space has no classifier of images, or for fewer than 10 images.
    """
    head = options.get("probabilities")
    if head is None or len(fake) < SPLITS:
        return None
    found, seen = [], head(fake)
    # Images in the order of their files' names may be sorted by class: then each split has every tenth of them.
    strided = (seen[first::SPLITS] for first in range(SPLITS))
    for part in strided if options.get("by_name") else np.array_split(seen, SPLITS):
        mean = part.mean(0, keepdims=True)
        found.append(
            np.exp((part * (np.log(np.clip(part, 1e-12, None)) - np.log(np.clip(mean, 1e-12, None)))).sum(1).mean())
        )
    return float(np.mean(found))


def agreement(fake: np.ndarray, asked: np.ndarray, options: dict) -> float | None:
    """Fraction of images, from 0 to 1, that the classifier of this feature space assigns to the requested class.

    asked: requested classes, int64 [n]. The classifier also makes mistakes: compare with the value of held-out images and their
    labels. None if the feature space has no classifier of these classes."""
    head = options.get("probabilities")
    return None if head is None else float((head(fake).argmax(1) == asked).mean())
