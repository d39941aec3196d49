# SPDX-License-Identifier: Apache-2.0
"""CLIP's image encoder (Radford et al. 2021, arXiv 2103.00020) as clean-fid uses it. It is not trained on ImageNet's
classes, so that it gives a second opinion (Kynkäänniemi et al. 2023, arXiv 2203.06026).

It is optional: it needs OpenAI's package `clip`, which is not in requirements.lock. That package downloads the weights, checks their
digest and loads them as TorchScript, which executes code from the file. Only `evaluate.features` can select it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from eldistill.errors import Problem

RECIPE = ("spaces/clip", 1)
NAMES = ("clip-vit-b-32",)
MODEL = "ViT-B/32"


def load_space(name: str, device="cpu") -> Callable[[torch.Tensor], torch.Tensor]:
    """Load the function from uint8 images [n, c, h, w] to features [n, 512], with clean-fid's preparation: Pillow's bicubic filter to
    224 pixels, grey images as RGB. Raises Problem if the package is missing, or for images without 1 or 3 channels."""
    try:
        from cleanfid.clip_features import CLIP_fx, img_preprocess_clip
    except ImportError as error:
        raise Problem(
            f"{name} needs the package {error.name}; run `pip install git+https://github.com/openai/CLIP.git`, or remove it from "
            "evaluate.features"
        ) from None
    encoder = CLIP_fx(MODEL, device=device)

    def features(images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] not in (1, 3):
            raise Problem(
                f"images of {images.shape[1]} channels for {name}; expected 1 or 3: remove it from evaluate.features"
            )
        pictures = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        prepared = np.stack([img_preprocess_clip(picture) for picture in pictures])
        return encoder(torch.from_numpy(prepared).permute(0, 3, 1, 2).to(device).float()).float()

    return features
