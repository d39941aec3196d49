# SPDX-License-Identifier: Apache-2.0
"""Augmentations: EDM's pipe, whose parameters the network is given as labels, and one transform for two batches.

EDM's pipe (Karras et al. 2022, arXiv 2206.00364, appendix F.2; after Karras et al. 2020, arXiv 2006.06676,
appendix B): flips and an affine map per image, resampled with a sym6 wavelet at twice the resolution. It has
two halves, `edm_parameters` (random) and `edm_apply` (pure).

Siamese augmentation (Zhao & Bilen 2021, arXiv 2102.08259): one operation a step, with the same parameters for
every image, real or generated, so that a distance between the two sides stays one between distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch.nn import functional as F

from eldistill.diffusion import draws
from eldistill.errors import Problem

RECIPE = ("augment", 1)

EDM_LABELS = 9  # width of the labels of EDM's pipe: the network's augment_dim

# The low-pass filter of the sym6 wavelet; orthonormal to its own even shifts.
_SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
_PAD = len(_SYM6) // 2  # pixels around an image that the filters may touch


@dataclass(frozen=True)
class Parameters:
    """The parameters of EDM's pipe for each of n images; zeros change nothing. Tensors have the shape [n].

    They stay on the CPU: on a GPU the padding would have to be read back, and each entry of the matrices sent.
    """

    xflip: torch.Tensor  # 0 or 1: mirror left and right
    yflip: torch.Tensor  # 0 or 1: mirror top and bottom
    scale: torch.Tensor  # w: enlarge by 2^(0.2 w)
    angle: torch.Tensor  # radians, in [-pi, pi)
    aniso: torch.Tensor  # w: enlarge by s = 2^(0.2 w) along an axis and by 1 / s across it
    aniso_angle: torch.Tensor  # of that axis, radians
    translate: torch.Tensor  # [n, 2]: to the right and down, in eighths of the width and the height

    def labels(self) -> torch.Tensor:
        """Augmentation labels [n, 9] for the network; zeros mean an image without augmentation."""
        flips = torch.stack([self.xflip, self.yflip], dim=1).to(self.scale.dtype)
        turn = [self.angle.cos() - 1, self.angle.sin()]
        stretch = [self.aniso * self.aniso_angle.cos(), self.aniso * self.aniso_angle.sin()]
        return torch.cat([flips, torch.stack([self.scale, *turn, *stretch], dim=1), self.translate], dim=1)


def edm_parameters(
    draw: draws.Draw,
    p: float,
    *,
    xflip: float = 1e8,
    yflip: float = 1.0,
    scale: float = 1.0,
    rotate: float = 1.0,
    aniso: float = 1.0,
    translate: float = 1.0,
) -> Parameters:
    """Draw the parameters of the images of `draw`, of which only .uniform, .normal and .integers are used.

    p: overall probability in [0, 1] (EDM: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQv2). The others multiply
    it: each operation acts with its product, independently. A flip that acts mirrors half of the time;
    xflip's default always acts, unless p is 0. Raises ValueError for p outside [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"The augmentation's probability must lie in [0, 1], not at {p}.")

    def gated(purpose: str, values: torch.Tensor, probability: float) -> torch.Tensor:
        acts = draw.uniform(f"augment/{purpose}/acts") < probability
        return torch.where(acts.reshape(-1, *[1] * (values.ndim - 1)), values, 0)

    def angle(purpose: str) -> torch.Tensor:
        return (2 * draw.uniform(f"augment/{purpose}") - 1) * math.pi

    # The order of the draws is EDM's: it matters to a sequential generator, not to `Draw`.
    xflips = gated("xflip", draw.integers("augment/xflip", 2), p * xflip)
    yflips = gated("yflip", draw.integers("augment/yflip", 2), p * yflip)
    scales = gated("scale", draw.normal("augment/scale"), p * scale)
    angles = gated("angle", angle("angle"), p * rotate)
    stretches, axes = draw.normal("augment/aniso"), angle("aniso_angle")
    stretches = gated("aniso", stretches, p * aniso)
    axes = gated("aniso_angle", axes, 0.5)  # half of the stretches stay along the image's axes
    shifts = gated("translate", draw.normal("augment/translate", 2), p * translate)
    return Parameters(xflips, yflips, scales, angles, stretches, axes, shifts)


def edm_apply(images: torch.Tensor, parameters: Parameters) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply EDM's pipe: images [n, c, h, w] of any range -> (the same shape, labels [n, 9]).

    Both come in the images' dtype, float32 or float64. With p = 0 the filters still run and give images of
    4 x 4 or more back up to rounding. Beyond the border the image is reflected, as far as any image of the batch
    needs, and then zero. So the outermost pixels depend on the other images of the batch, by up to 1e-4 of the
    range (1e-5 with p = 0.12).
    """
    height, width = images.shape[2:]
    here = parameters.scale.new_empty(0, dtype=images.dtype)  # where matrices are made
    matrix = _inverse(parameters, here, height, width)
    left, top, right, bottom = _margins(matrix, height, width)
    matrix = _affine(here, 1, 0, (left - right) / 2, 0, 1, (top - bottom) / 2) @ matrix
    matrix = _affine(here, 2, 0, 0, 0, 2, 0) @ matrix @ _affine(here, 0.5, 0, 0, 0, 0.5, 0)
    # The filter has an even number of taps: a fine sample lies half a step beside the coarse one.
    matrix = _affine(here, 1, 0, -0.5, 0, 1, -0.5) @ matrix @ _affine(here, 1, 0, 0.5, 0, 1, 0.5)
    # To affine_grid's units, in which either picture reaches from -1 to 1.
    rows, columns = 2 * (height + _PAD), 2 * (width + _PAD)
    to_units = _affine(here, 2 / (2 * (width + left + right)), 0, 0, 0, 2 / (2 * (height + top + bottom)), 0)
    matrix = to_units @ matrix @ _affine(here, columns / 2, 0, 0, 0, rows / 2, 0)

    # Everything that is sent to the device: the flips, the matrices and the labels.
    mirrored = draws.sent(
        torch.stack((parameters.xflip, parameters.yflip)).bool().reshape(2, -1, 1, 1, 1), images.device
    )
    matrix, labels = (draws.sent(each, images.device) for each in (matrix, parameters.labels().to(images.dtype)))
    for flips, axis in zip(mirrored, (3, 2), strict=True):
        images = torch.where(flips, images.flip(axis), images)
    padded = F.pad(images, (left, right, top, bottom), mode="reflect")
    vertical, horizontal = (_band(size, images.dtype, images.device) for size in padded.shape[2:])
    fine = vertical.T @ padded @ horizontal
    grid = F.affine_grid(matrix[:, :2], [*images.shape[:2], rows, columns], align_corners=False)
    moved = F.grid_sample(fine, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    inner = slice(_PAD // 2, -_PAD // 2)
    vertical, horizontal = (_band(size + _PAD, images.dtype, images.device)[inner] for size in (height, width))
    return vertical @ moved @ horizontal.T, labels


def _inverse(parameters: Parameters, here: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Matrices [n, 3, 3] from a position in the result to one in the image, in pixels from the centre, x first."""
    p, dtype = parameters, here.dtype
    scale, angle, aniso, axis, shift = (
        values.to(dtype) for values in (p.scale, p.angle, p.aniso, p.aniso_angle, p.translate)
    )
    zoom, stretch = torch.exp2(-0.2 * scale), torch.exp2(0.2 * aniso)
    x, y = -shift[:, 0] * width / 8, -shift[:, 1] * height / 8
    matrix = _affine(here, zoom, 0, 0, 0, zoom, 0) @ _rotation(here, angle)
    across = _affine(here, 1 / stretch, 0, 0, 0, stretch, 0)
    matrix = matrix @ _rotation(here, -axis) @ across @ _rotation(here, axis)
    return matrix @ _affine(here, 1, 0, x, 0, 1, y)


def _margins(matrix: torch.Tensor, height: int, width: int) -> list[int]:
    """Pixels to add left, top, right and bottom, for the image of the batch that needs most; at most one reflection."""
    centre = matrix.new_tensor([(width - 1) / 2, (height - 1) / 2])
    signs = matrix.new_tensor([[-1, 1, 1, -1], [-1, -1, 1, 1]])
    corners = matrix[:, :2, :2] @ (signs * centre[:, None]) + matrix[:, :2, 2:]  # [n, 2, 4]
    needed = torch.cat([-corners.amin(dim=(0, 2)), corners.amax(dim=(0, 2))]) + _PAD - centre.repeat(2)
    most = matrix.new_tensor([width - 1, height - 1] * 2)
    return [int(margin) for margin in needed.clamp(min=0).minimum(most).ceil().tolist()]


def _affine(here: torch.Tensor, *entries: float | torch.Tensor) -> torch.Tensor:
    """Matrices [n or 1, 3, 3] from the six entries of their upper rows, numbers or tensors [n] like `here`."""
    tensors = [e if torch.is_tensor(e) else here.new_tensor(e) for e in (*entries, 0, 0, 1)]
    return torch.stack(torch.broadcast_tensors(*tensors), dim=-1).reshape(-1, 3, 3)


def _rotation(here: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    return _affine(here, angle.cos(), -angle.sin(), 0, angle.sin(), angle.cos(), 0)


@lru_cache(256)  # one matrix for each padded size
def _band(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A matrix [size, 2 size] that halves a signal; its transpose doubles one. Row k is the filter around sample 2 k.

    A matrix product is used because convolutions on GPUs may round to ten bits of mantissa (TF32).
    """
    tap = torch.arange(2 * size) - 2 * torch.arange(size)[:, None] + len(_SYM6) // 2 - 1
    inside = (tap >= 0) & (tap < len(_SYM6))
    return torch.where(inside, torch.tensor(_SYM6, dtype=torch.float64)[tap * inside], 0).to(dtype=dtype, device=device)


# --- one transform for both sides ------------------------------------------------------------------------


def siamese(draw_seed: int, step: int, strategy: Sequence[str]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The transform of one step: a pure function of (draw_seed, step) and the set of enabled operations.

    strategy: names of OPERATIONS, in any order; one of them is drawn uniformly. None enabled: the identity.
    The result takes images [n, c, h, w] divided by sigma_data, any n, to the same shape, does to every image
    the same, and is differentiable; half precision comes back as float32. Raises Problem for an unknown name.
    """
    check_operations(strategy)
    enabled = [name for name in OPERATIONS if name in strategy]
    if not enabled:
        return lambda images: images
    draw = draws.Draw(draw_seed, "siamese", step, 1, dtype=torch.float64)
    name = enabled[int(draw.integers("operation", len(enabled)))]
    return partial(_transform, name, draw.uniform("parameters", 3)[0].tolist())


def check_operations(strategy: Sequence[str]) -> None:
    """Check that all names are in OPERATIONS. Raises Problem for the first that is not."""
    unknown = [name for name in strategy if name not in OPERATIONS]
    if unknown:
        raise Problem(f"augmentation has no operation {unknown[0]!r}; there are {', '.join(OPERATIONS)}")


def _transform(name: str, u: list[float], images: torch.Tensor) -> torch.Tensor:
    return _TRANSFORMS[name](images.to(torch.promote_types(images.dtype, torch.float32)), *u)


def _color(images: torch.Tensor, u: float, v: float, w: float) -> torch.Tensor:
    """Brightness by up to half a deviation, then saturation by 0 … 2, then contrast by 0.5 … 1.5."""
    images = images + (u - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (2 * v) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (w + 0.5) + mean


def _crop(images: torch.Tensor, u: float, v: float, _: float) -> torch.Tensor:
    """Shift by whole pixels, up to an eighth of the size, and fill with zeros."""
    down, right = (_shift(size, part) for size, part in zip(images.shape[2:], (u, v), strict=True))
    return F.pad(images, (right, -right, down, -down))


def _shift(size: int, u: float) -> int:
    most = int(size / 8 + 0.5)
    return int(u * (2 * most + 1)) - most


def _cutout(images: torch.Tensor, u: float, v: float, _: float) -> torch.Tensor:
    """Zero a square of half the size; its centre lies anywhere in the image, so the border may clip it."""
    keep = torch.ones_like(images[0, 0])
    keep[tuple(_square(size, part) for size, part in zip(images.shape[2:], (u, v), strict=True))] = 0
    return images * keep


def _square(size: int, u: float) -> slice:
    side = int(size / 2 + 0.5)
    # An even side is centred between two pixels (or at a border), an odd one on a pixel.
    start = int(u * (size + 1 - side % 2)) - side // 2
    return slice(max(start, 0), start + side)


def _flip(images: torch.Tensor, u: float, _: float, __: float) -> torch.Tensor:
    """Mirror left and right, half of the time."""
    return images.flip(3) if u < 0.5 else images


def _scale(images: torch.Tensor, u: float, v: float, _: float) -> torch.Tensor:
    """Shrink or enlarge by up to 1.2 along either axis, zeros outside."""
    x, y = (1 / 1.2 + part * (1.2 - 1 / 1.2) for part in (u, v))
    return _resample(images, [[x, 0, 0], [0, y, 0]])


def _rotate(images: torch.Tensor, u: float, _: float, __: float) -> torch.Tensor:
    """Turn by up to 15 degrees, zeros outside."""
    cosine, sine = math.cos(math.radians(30 * u - 15)), math.sin(math.radians(30 * u - 15))
    aspect = images.shape[3] / images.shape[2]  # affine_grid measures x in widths and y in heights
    return _resample(images, [[cosine, -sine / aspect, 0], [sine * aspect, cosine, 0]])


def _resample(images: torch.Tensor, inverse: list[list[float]]) -> torch.Tensor:
    grid = F.affine_grid(images.new_tensor([inverse]), [1, *images.shape[1:]], align_corners=False)
    grid = grid.expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


_TRANSFORMS = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}
OPERATIONS = tuple(_TRANSFORMS)
