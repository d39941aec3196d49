# SPDX-License-Identifier: Apache-2.0
"""Converts images to PIL pictures: a single one, or many in a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from PIL import Image

COVERED_BY = "sampling"


def picture(image: torch.Tensor) -> Image.Image:
    """A uint8 image [c, h, w] as a PIL picture: grey for one channel, otherwise the first three channels as RGB."""
    from PIL import Image

    return Image.fromarray(image[0].numpy() if len(image) == 1 else image[:3].permute(1, 2, 0).contiguous().numpy())


def tile(images: torch.Tensor, columns: int) -> torch.Tensor:
    """uint8 images [n, c, h, w] in rows of `columns`, uint8 [c, height, width]: each with a white line below and on its right."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    board = torch.full((rows * columns, c, h + 1, w + 1), 255, dtype=torch.uint8)
    board[:n, :, :h, :w] = images
    rows_apart = board.reshape(rows, columns, c, h + 1, w + 1).permute(2, 0, 3, 1, 4)
    return rows_apart.reshape(c, rows * (h + 1), columns * (w + 1))


def grid(images: torch.Tensor, columns: int, scale: int = 1) -> Image.Image:
    """uint8 images [n, c, h, w] as one PIL picture, `columns` a row, enlarged by the whole number `scale`."""
    from PIL import Image

    whole = picture(tile(images, columns))
    return whole.resize((whole.width * scale, whole.height * scale), Image.Resampling.NEAREST)
