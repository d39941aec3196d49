# SPDX-License-Identifier: Apache-2.0
"""The two judges of a data setting as feature spaces. eldistill.evaluate.judges trains them."""

from __future__ import annotations

from pathlib import Path

import torch

from eldistill.data import dataset as data
from eldistill.errors import Problem
from eldistill.evaluate.arithmetic import softmax
from eldistill.evaluate.features import ClassifierSpace, Space
from eldistill.external import weights
from eldistill.tensors import load_tensors

COVERED_BY = "evaluate"
NAMES = ("judge-a", "judge-b")


def load_space(name: str, device, path: str | Path) -> Space:
    """Load a judge as a function from uint8 images [n, c, h, w] to float32 features [n, D].

    A judge that was trained on labels is a ClassifierSpace, whose `label_dim` is their number; one that was trained on rotations is
    a plain function. Raises Problem if the file is damaged. The function raises Problem for images of another shape than the judge
    was trained on: a network of convolutions takes them, but its features of them are not comparable."""
    tensors, about = load_tensors(path)
    net = weights.restore_network(path, tensors, about)
    net.requires_grad_(False).eval().to(device)

    trained = [about["config"][key] for key in ("img_channels", "img_resolution", "img_resolution")]

    def features(images: torch.Tensor) -> torch.Tensor:
        if list(images.shape[1:]) != trained:
            raise Problem(
                f"{path} was trained on images of shape {trained}, and these have {list(images.shape[1:])}; give the data setting a "
                "teacher that makes images of its shape, or another `resolution`"
            )
        return net.embed(data.encode(images.to(device), about["codec"]))

    if about["rotations"]:
        return features
    weight, bias = (each.cpu().numpy() for each in (net.head.weight, net.head.bias))
    return ClassifierSpace(features, lambda found: softmax(found, weight, bias), len(weight))
