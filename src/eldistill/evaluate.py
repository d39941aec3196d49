# SPDX-License-Identifier: Apache-2.0
"""Images → features → metrics. Features come from any iterable of uint8 images; metrics are arithmetic on them.

A metric's name carries what it is: `fd5k_judge-a_heldout` is the Fréchet distance of 5,000 images to the held-out
images in the features of judge-a. To add a metric, add a function to METRICS.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from eldistill import data, judges, schema
from eldistill.files import Problem, atomic

VERSION = 2  # precision and recall take images evenly, not the first ones
FLOAT = np.float64

# --- features -----------------------------------------------------------------------------------------


def pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 [n, c, h, w] to [n, c * h * w] in [0, 1]; above 16x16 averaged to 16x16 (a Fréchet distance needs n >> D)."""
    x = images.float() / 255
    if x.shape[-1] > 16:
        x = torch.nn.functional.adaptive_avg_pool2d(x, 16)
    return x.flatten(1)


def feature_space(name: str, judge: Path | None = None, device="cpu") -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from uint8 images to features called `name` in params.yaml; judge: the file of a `judge-…`."""
    if judge or name == "pixels":
        return judges.load(judge, device) if judge else pixels
    return importlib.import_module(f"eldistill.spaces.{schema.spaces()[name]}").load(name, device)


@torch.no_grad()
def embed(images: Iterable[torch.Tensor], space: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Features [n, D] in float64 of an iterable of uint8 chunks. Raises Problem if one is not finite."""
    return embed_all(images, {"": space})[""]


@torch.no_grad()
def embed_all(images: Iterable[torch.Tensor], spaces: dict[str, Callable]) -> dict[str, np.ndarray]:
    """The same in several spaces, in one pass: of the images no more than a chunk needs to be in memory."""
    found = {name: _Rows() for name in spaces}
    for chunk in images:
        for name, space in spaces.items():
            found[name].add(space(chunk).cpu().numpy())
    features = {name: rows.joined() for name, rows in found.items()}
    for each in features.values():
        if not np.isfinite(each).all():
            raise Problem(
                f"{int((~np.isfinite(each)).any(1).sum())} images have features that are not finite; look at them"
            )
    return features


class _Rows:
    # Rows that arrive in pieces, in large blocks: small arrays that stay, between large ones that come and go, would leave
    # holes in the memory into which nothing fits, one for each chunk.
    size = 1024

    def __init__(self):
        self.blocks, self.free = [], 0

    def add(self, rows: np.ndarray) -> None:
        while len(rows):
            if not self.free:
                self.blocks.append(np.empty((self.size, *rows.shape[1:]), rows.dtype))
                self.free = self.size
            part, rows = rows[: self.free], rows[self.free :]
            start = self.size - self.free
            self.blocks[-1][start : start + len(part)] = part
            self.free -= len(part)

    def joined(self) -> np.ndarray:
        # In float64.
        whole = [*self.blocks[:-1], self.blocks[-1][: self.size - self.free]]
        return np.concatenate(whole, dtype=FLOAT)


def chunks(images: torch.Tensor, size: int = 250) -> Iterable[torch.Tensor]:
    """A tensor of images as an iterable of chunks."""
    return images.split(size)


# --- metrics ------------------------------------------------------------------------------------------


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] (divisor n - 1) in float64. Raises Problem for fewer than two rows."""
    if len(features) < 2:
        raise Problem(f"{len(features)} images for a covariance; expected at least 2")
    return features.mean(0, dtype=FLOAT), np.atleast_2d(np.cov(features, rowvar=False, dtype=FLOAT))


def frechet(mean: np.ndarray, cov: np.ndarray, mean_r: np.ndarray, cov_r: np.ndarray) -> float:
    """|m - m_r|^2 + tr(S + S_r - 2 (S_r^1/2 S S_r^1/2)^1/2), by two symmetric eigen decompositions, float64.

    The Fréchet distance of two Gaussians (Dowson & Landau 1982), as in FID; never complex.
    """
    values, vectors = np.linalg.eigh(cov_r)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov @ root), 0, None)).sum()
    return float(((mean - mean_r) ** 2).sum() + np.trace(cov) + np.trace(cov_r) - 2 * cross)


def fd(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Fréchet distance between the features of generated and real images, [n, D] each."""
    return frechet(*moments(fake), *moments(real))


def relfd(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Fréchet distance over the trace of the real covariance: free of the feature space's scale."""
    return fd(fake, real, options) / float(np.trace(moments(real)[1]))


def kid(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Kernel distance (Binkowski et al. 2018): unbiased MMD^2 with (x.y/D + 1)^3, over all samples; may be negative.

    Features are first divided by the root mean variance of the real ones, so that judges can be compared.
    """
    scale = np.sqrt(np.mean(real.var(0))) or 1.0
    x, y = fake / scale, real / scale
    m, n = len(x), len(y)
    (sum_x, trace_x), (sum_y, trace_y), (across, _) = (_cubic(a, b) for a, b in ((x, x), (y, y), (x, y)))
    return float((sum_x - trace_x) / (m * (m - 1)) + (sum_y - trace_y) / (n * (n - 1)) - 2 * (across / (m * n)))


def _cubic(a: np.ndarray, b: np.ndarray, block: int = 8192) -> tuple[float, float]:
    # Sum and trace of (a.b/D + 1)^3, in blocks: 60,000 images would need 29 GB at once.
    total, trace = 0.0, 0.0
    for i in range(0, len(a), block):
        for j in range(0, len(b), block):
            kernel = (a[i : i + block] @ b[j : j + block].T / a.shape[1] + 1) ** 3
            total += kernel.sum()
            trace += np.trace(kernel) if i == j else 0.0
    return total, trace


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(np.clip((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0, None))


def _covered(points: np.ndarray, cloud: np.ndarray, k: int) -> float:
    # A point is covered if it lies within the k-th neighbour distance of some point of the cloud.
    within = _distances(cloud, cloud)
    np.fill_diagonal(within, np.inf)
    radius = np.partition(within, k - 1, axis=1)[:, k - 1]
    return float((_distances(points, cloud) <= radius).any(1).mean())


def _even(fake: np.ndarray, real: np.ndarray, options: dict) -> tuple[np.ndarray, np.ndarray]:
    # Both metrics depend on the number of points: as many of each side, evenly, for real ones may be sorted by class.
    n = min(len(fake), len(real), options["neighbours_n"])
    if n <= options["neighbours"]:
        raise Problem(f"{n} images for precision and recall with k = {options['neighbours']}; expected more images")
    return tuple(side[np.linspace(0, len(side) - 1, n).astype(int)] for side in (fake, real))


def precision(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Share of generated images inside the real manifold (Kynkäänniemi et al. 2019, k-th neighbour balls)."""
    fake, real = _even(fake, real, options)
    return _covered(fake, real, options["neighbours"])


def recall(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Share of real images inside the generated manifold (Kynkäänniemi et al. 2019)."""
    fake, real = _even(fake, real, options)
    return _covered(real, fake, options["neighbours"])


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, dict], float]] = {
    "fd": fd, "relfd": relfd, "kid": kid, "precision": precision, "recall": recall,
}  # fmt: skip
CURVE = ("fd", "relfd")


def count_name(n: int) -> str:
    """5000 → 5k, 512 → 512: the number of images in a metric's name."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


def measure(
    features: dict[str, np.ndarray],
    references: dict[str, dict],
    options: dict,
    names=None,
    parts=("heldout", "train"),
) -> dict[str, float]:
    """All metrics of features {space: [n, D]} against references {space: {train, heldout}}: {name: value}.

    names: which of METRICS; all if None.
    """
    names = tuple(METRICS) if names is None else names
    return {
        f"{name}{count_name(len(fake))}_{space}_{part}": METRICS[name](fake, references[space][part], options)
        for space, fake in features.items() for part in parts for name in names
    }  # fmt: skip


# --- references ---------------------------------------------------------------------------------------


def make_reference(space: Callable, pack: Path, output: Path) -> None:
    """Features and moments of the train and the held-out images in one feature space: an npz."""
    arrays = {}
    for part in ("train", "heldout"):
        features = embed(chunks(data.load(pack, part)[0]), space)
        mean, cov = moments(features)
        arrays |= {part: features.astype(np.float32), f"mu_{part}": mean, f"sigma_{part}": cov}
    with atomic(output) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_reference(path: Path) -> dict[str, np.ndarray]:
    """{train, heldout}: features in float64."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {part: archive[part].astype(FLOAT) for part in ("train", "heldout")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Problem(f"{path} is missing or damaged ({error}); delete it and run `snakemake all`") from None


# --- the step -----------------------------------------------------------------------------------------


def real_row(references: dict[str, dict], options: dict) -> dict[str, float]:
    """The noise floor: all train images against the held-out ones, and the other way round."""
    rows = {}
    for part, other in (("train", "heldout"), ("heldout", "train")):
        rows |= measure({space: each[part] for space, each in references.items()}, references, options, parts=(other,))
    return rows


def of_images(
    images: Iterable[torch.Tensor], spaces: dict, references: dict, options: dict, names=None
) -> dict[str, float]:
    """The metrics of generated images (uint8 chunks) in all spaces."""
    return measure(embed_all(images, spaces), references, options, names)


def curve_row(images: Iterable[torch.Tensor], spaces: dict, references: dict, options: dict) -> dict[str, float]:
    """The metrics of one point of a convergence curve."""
    return of_images(images, spaces, references, options, CURVE)


def nest(evaluations: dict[str, dict]) -> dict:
    """{digits/di/el/0: metrics} as nested mappings, for data/metrics.json."""
    nested: dict = {}
    for name, metrics in evaluations.items():
        place = nested
        for part in name.split("/"):
            place = place.setdefault(part, {})
        place |= metrics
    return nested
