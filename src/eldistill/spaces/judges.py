# SPDX-License-Identifier: Apache-2.0
"""The two classifiers of a data setting as feature spaces; eldistill.evaluate.judges trains them."""

from __future__ import annotations

from pathlib import Path

import torch

from eldistill.data import dataset as data
from eldistill.evaluate.features import ClassifierSpace, Space
from eldistill.evaluate.metrics import softmax
from eldistill.external import weights
from eldistill.tensors import load_tensors

COVERED_BY = "evaluate"
NAMES = ("judge-a", "judge-b")


def load(name: str, device, path: str | Path) -> Space:
    """The judge in a file as a function of uint8 images [n, c, h, w] that gives features [n, D], float32; where it tells classes its
    `probabilities` gives those of features, [n, classes], and `label_dim` how many labels of the data it has learned."""
    tensors, about = load_tensors(path)
    net = weights.restore_network(path, tensors, about)
    net.requires_grad_(False).eval().to(device)

    def features(images: torch.Tensor) -> torch.Tensor:
        return net.embed(data.encode(images.to(device), about["codec"]))

    if about["rotations"]:
        return features
    weight, bias = (each.cpu().numpy() for each in (net.head.weight, net.head.bias))
    return ClassifierSpace(features, lambda found: softmax(found, weight, bias), len(weight))
