# SPDX-License-Identifier: Apache-2.0
"""Real images that a caller holds as a tensor, in units of his own, with what ensemble/seed.py asks of training images."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

import torch

from eldistill.diffusion.draws import sent
from eldistill.errors import NonFinite, Problem

BLOCK = 1000  # images that are converted to floating point at once
SOME = 256  # real images whose range is compared with that of generated ones


class GivenImages:
    """Real images for an Embedding Loss; networks see (values - mean) / sigma_data.

    images: [n, c, h, w], uint8 or floating point. labels: int64 [n] or one-hot [n, L], or None. limits: values that 0
    and 255 of uint8 images stand for; None: 0 and 255. mean, sigma_data: None takes the mean and the standard deviation
    of all values. Raises Problem for images or numbers that do not fit, and NonFinite for a NaN or an infinity.
    """

    def __init__(self, images, labels, limits, mean, sigma_data):
        _check_images(images, limits)
        self.images, self.limits = images.detach(), limits
        self.labels = None if labels is None else class_numbers(labels, "real_labels", thorough=True)
        if self.labels is not None and len(self.labels) != len(images):
            raise Problem(
                f"EmbeddingLoss: {len(self.labels)} real_labels for {len(images)} real_images; expected one for each"
            )
        self.mean = self._average(lambda values: values) if mean is None else _number("mean", mean)
        square = self._average(lambda values: (values - self.mean).square()) if sigma_data is None else None
        self.sigma_data = _number("sigma_data", sigma_data) if square is None else square**0.5
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


def class_numbers(labels: torch.Tensor, name: str = "labels", thorough: bool = False) -> torch.Tensor:
    """Classes as int64 [n], from the same or from one-hot [n, L], L > 1. thorough: look at the values too, which waits for the
    device. Raises Problem for anything else, with `name`."""
    if not isinstance(labels, torch.Tensor):
        raise Problem(
            f"EmbeddingLoss: {name} is {type(labels).__name__}; expected a tensor, int64 [n] or one-hot [n, L]"
        )
    hot = labels.ndim == 2 and labels.shape[1] > 1
    if not hot and (labels.ndim != 1 or labels.is_floating_point()):
        raise Problem(
            f"EmbeddingLoss: {name} is {labels.dtype} {list(labels.shape)}; expected classes, int64 [n], or one-hot [n, L]: "
            "for whole numbers of another type or shape give labels.long().flatten()"
        )
    if thorough and not bool(
        ((labels != 0).sum(1) == 1).all() and (labels.sum(1) == 1).all() if hot else (labels >= 0).all()
    ):
        wanted = (
            "one 1 in each row, and 0 elsewhere"
            if hot
            else "classes from 0; images without a class cannot be compared by class"
        )
        raise Problem(
            f"EmbeddingLoss: {name} has {'rows that are not one-hot' if hot else 'values below 0'}; expected {wanted}"
        )
    return labels.argmax(1) if hot else labels.to(torch.int64)


def unlike_units(reals: GivenImages, fake: torch.Tensor) -> str:
    """A sentence if real images and the first generated ones seem to be in different units; "" otherwise.

    fake: [n, c, h, w]. Only usual ranges are recognised, [0, 255], [0, 1] and [-1, 1]: a generator without limits may begin
    anywhere."""
    if not fake.numel():
        return ""
    low, high = (float(each) for each in fake.detach().aminmax())
    if reals.images.dtype == torch.uint8 and reals.limits is None:
        if max(-low, high) <= 2:
            return (
                "real_images are 0 … 255 and no generated value is above 2; if they are in -1 … 1, give limits=(-1, 1)"
            )
        return ""
    real_low, real_high = (float(each) for each in reals.values(reals.images[:SOME], torch.float32).aminmax())
    if 0 <= real_low and real_high <= 1 and -1.01 <= low < -0.5 and high <= 1.01:
        return "real_images are in 0 … 1 and generated ones in -1 … 1; give both in the same units, such as 2 * real_images - 1"
    if -1 <= real_low < -0.5 and real_high <= 1 and 0 <= low and 0.5 < high <= 1.01:
        return "real_images are in -1 … 1 and generated ones in 0 … 1; give both in the same units"
    return ""


def _number(name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        found = (
            f"{value}"
            if isinstance(value, int | float)
            else f"{value!r}"[:60]
            if isinstance(value, str)
            else type(value).__name__
        )
        raise Problem(f"EmbeddingLoss: {name} is {found}; expected one finite number, or None")
    return number


def _limits(limits: object) -> bool:
    # Whether they are two rising numbers.
    two = (
        isinstance(limits, tuple | list) and len(limits) == 2 and all(isinstance(each, numbers.Real) for each in limits)
    )
    return two and -math.inf < limits[0] < limits[1] < math.inf  # type: ignore[index]


def _check_images(images: torch.Tensor, limits: tuple[float, float] | None) -> None:
    tensor = isinstance(images, torch.Tensor)
    if not tensor or images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        found = f"{images.dtype} {list(images.shape)}" if tensor else type(images).__name__
        raise Problem(f"EmbeddingLoss: real_images is {found}; expected a tensor [n, c, h, w], uint8 or floating point")
    if len(images) < 2:
        raise Problem(f"EmbeddingLoss: {len(images)} real_images; expected at least 2")
    if images.shape[3] in (1, 3, 4) and images.shape[1] == images.shape[2] > 4:
        raise Problem(
            f"EmbeddingLoss: real_images is {list(images.shape)}, which looks like [n, h, w, c]; expected [n, c, h, w]: give "
            "images.permute(0, 3, 1, 2)"
        )
    if limits is not None and (images.dtype != torch.uint8 or not _limits(limits)):
        raise Problem(
            f"EmbeddingLoss: limits are {limits} with {images.dtype} images; expected two rising numbers, and uint8 images"
        )
