# SPDX-License-Identifier: Apache-2.0
"""Real images that a caller holds as a tensor, in units of his own, with what ensemble/seed.py asks of training images."""

from __future__ import annotations

from collections.abc import Callable

import torch

from eldistill.diffusion.draws import sent
from eldistill.errors import NonFinite, Problem

BLOCK = 1000  # images that are converted to floating point at once


class GivenImages:
    """Real images for an Embedding Loss; networks see (values - mean) / sigma_data.

    images: [n, c, h, w], uint8 or floating point. labels: int64 [n] or one-hot [n, L], or None. limits: values that 0
    and 255 of uint8 images stand for; None: 0 and 255. mean, sigma_data: None takes the mean and the standard deviation
    of all values. Raises Problem for images or numbers that do not fit, and NonFinite for a NaN or an infinity.
    """

    def __init__(self, images, labels, limits, mean, sigma_data):
        _check_images(images, limits)
        self.images, self.limits = images, limits
        self.labels = None if labels is None else class_numbers(labels)
        if self.labels is not None and len(self.labels) != len(images):
            raise Problem(
                f"EmbeddingLoss: {len(self.labels)} real_labels for {len(images)} real_images; expected one for each"
            )
        self.mean = self._average(lambda values: values) if mean is None else float(mean)
        square = self._average(lambda values: (values - self.mean).square()) if sigma_data is None else None
        self.sigma_data = float(sigma_data) if square is None else square**0.5
        if not self.sigma_data > 0:
            raise Problem(
                f"EmbeddingLoss: sigma_data is {self.sigma_data}; expected a number above 0, or real_images that differ"
            )

    def __len__(self) -> int:
        return len(self.images)

    def values(self, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Images [n, c, h, w] in the units of generated images."""
        if images.dtype != torch.uint8:
            return images.to(dtype)
        if self.images.dtype != torch.uint8:
            raise Problem(
                "EmbeddingLoss: images are uint8, but real_images were floating point; give both in the same units"
            )
        low, high = self.limits or (0, 255)
        return images.to(dtype) * ((high - low) / 255) + low

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Images [len(indices), c, h, w] with mean 0 on the CPU, for the calibration."""
        rows = self.images[indices.to(self.images.device)].cpu()
        return self.values(rows, torch.float32) - self.mean, None

    def rows(self, indices: torch.Tensor, device) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images as they were given and their classes, on a device."""
        rows = sent(self.images[indices.to(self.images.device)], device)
        return rows, None if self.labels is None else self.labels[indices.to(self.labels.device)]

    def _average(self, of: Callable) -> float:
        total = 0.0
        for part in self.images.split(BLOCK):
            total += float(of(self.values(part.cpu(), torch.float64)).sum())  # on the CPU: equal bits on every device
        if total - total != 0:
            raise NonFinite("EmbeddingLoss: real_images hold a NaN or an infinity")
        return total / self.images.numel()


def class_numbers(labels: torch.Tensor) -> torch.Tensor:
    """Classes as int64 [n], from the same or from one-hot [n, L]."""
    return labels.argmax(1) if labels.ndim == 2 else labels.to(torch.int64)


def _check_images(images: torch.Tensor, limits: tuple[float, float] | None) -> None:
    tensor = isinstance(images, torch.Tensor)
    if not tensor or images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        found = f"{images.dtype} {list(images.shape)}" if tensor else type(images).__name__
        raise Problem(f"EmbeddingLoss: real_images is {found}; expected a tensor [n, c, h, w], uint8 or floating point")
    if len(images) < 2:
        raise Problem(f"EmbeddingLoss: {len(images)} real_images; expected at least 2")
    if limits is not None and (images.dtype != torch.uint8 or not limits[0] < limits[1]):
        raise Problem(
            f"EmbeddingLoss: limits are {limits} with {images.dtype} images; expected two rising numbers, and uint8 images"
        )
