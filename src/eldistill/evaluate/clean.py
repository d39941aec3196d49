# SPDX-License-Identifier: Apache-2.0
"""FID and KID as clean-fid computes them (Parmar et al. 2022, arXiv 2104.11222): generated images are compared with the train
images of the data setting, in Inception's features after clean-fid's resizing.

A step of `data` makes the moments and features of the train images once for each data setting. Moments are accumulated in float64
while images pass. KID draws subsets of images and therefore needs the features themselves, which are kept in float32 for at most
MOST generated and MOST real images. With at most MOST images on each side, FID and KID equal those of `cleanfid.fid` on the same
images as PNG files, with KID's subsets drawn from a fixed seed. With more images, KID uses MOST of them, evenly spaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eldistill.data import dataset as data
from eldistill.errors import Problem, brief, denied
from eldistill.evaluate import gaussians
from eldistill.evaluate.features import chunks, embed
from eldistill.evaluate.fid import Moments
from eldistill.external import arrays
from eldistill.files import atomic
from eldistill.training.processes import ProcessGroup, SingleProcess

RECIPE = ("clean", 1)
SPACE = "inception-clean"
MOST = 50_000  # largest number of generated, and of real, images whose features are kept for KID: 410 MB
SEED = 0  # of KID's subsets


def choose_for_kid(n: int) -> np.ndarray:
    """Mask of the images that KID uses, bool [n]: at most MOST of n images, evenly spaced, because they may be sorted by class."""
    mask = np.zeros(n, bool)
    mask[np.linspace(0, n - 1, min(n, MOST)).astype(int)] = True
    return mask


@dataclass(frozen=True)
class Reference:
    """Features of the train images: mean [D] and covariance [D, D] of all images, in float64, and the features [k, D] of the
    images that KID uses, in float32."""

    mean: np.ndarray
    cov: np.ndarray
    rows: np.ndarray


class Sample:
    """Collects moments of all images that pass through `watch`, and the features of those that KID uses.

    space: function from uint8 images [n, c, h, w] to features [n, D]. mask: bool [n], see `choose_for_kid`.
    """

    def __init__(self, space: Callable, mask: np.ndarray):
        self.space, self.mask, self.moments, self.rows = space, mask, Moments(), []

    def watch(self, images: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the given chunks of images unchanged, and collect their features. Raises Problem if a feature is not finite."""
        for chunk in images:
            found, first = embed([chunk], self.space), self.moments.count
            self.moments.add(found)
            self.rows.append(found[self.mask[first : first + len(found)]].astype(np.float32))
            yield chunk

    def kept(self) -> np.ndarray:
        """Features of the images that KID uses, float32 [k, D], or [0, 0] if no image has passed."""
        return np.concatenate(self.rows) if self.rows else np.empty((0, 0), np.float32)

    def measure(
        self, reference: Reference, count: str, team: SingleProcess | ProcessGroup | None = None
    ) -> dict[str, float]:
        """{`fid…_clean`, `kid…_clean`} of the images of all processes together; empty in all processes but the first.

        count: the number of images as it is written in names, such as 50k."""
        team = team or SingleProcess()
        (_, mean, cov), rows = self.moments.result(team), team.gather_of(self.kept())
        if team.rank:
            return {}
        return {
            f"fid{count}_clean": gaussians.frechet(mean, cov, reference.mean, reference.cov),
            f"kid{count}_clean": kernel_distance(rows, reference.rows),
        }


def make_clean_reference(space: Callable, pack: Path, output: Path, say=lambda line: None) -> None:
    """Write the Reference of the train images of a packed data set, in one pass over them, as an npz of `mean`, `cov` and `rows`."""
    images = data.load_pack(pack, "train")[0]
    sample = Sample(space, choose_for_kid(len(images)))
    for number, _ in enumerate(sample.watch(chunks(images))):
        if number % 40 == 0:
            say(f"{sample.moments.count} of {len(images)} images")
    _, mean, cov = sample.moments.result()
    with atomic(output) as temporary, open(temporary, "wb") as file:
        np.savez(file, mean=mean, cov=cov, rows=sample.kept())


def load_clean_reference(path: Path) -> Reference:
    """Load the file that `make_clean_reference` writes. Raises Problem if the file is missing, damaged, of other shapes, or not finite."""
    try:
        found = arrays.read_npz(path)
        mean, cov, rows = (found[name] for name in ("mean", "cov", "rows"))
        size = len(mean)
        sound = (mean.shape, cov.shape, rows.shape[1:]) == ((size,), (size, size), (size,))
        sound = sound and all(np.isfinite(each).all() for each in (mean, cov, rows))
    except PermissionError:
        raise denied(path) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(f"{path} is missing or damaged ({brief(error)}); delete it and run `snakemake all`") from None
    if not sound:
        raise Problem(
            f"{path} has a mean of shape {mean.shape}, a covariance of {cov.shape} and rows of {rows.shape}; expected finite [D], "
            "[D, D] and [k, D]: delete it and run `snakemake all`"
        )
    return Reference(mean, cov, rows)


def kernel_distance(fake: np.ndarray, real: np.ndarray) -> float:
    """KID of features fake and real, [n, D] each, by clean-fid's function.

    It is the mean over 100 random subsets, of at most 1,000 images on each side, of the unbiased MMD^2 with the kernel
    (x.y/D + 1)^3. Features are not scaled, and the value may be negative. Subsets are drawn from SEED; the state of numpy's global
    generator is restored afterwards."""
    from cleanfid import fid

    with _seeded():
        return fid.kernel_distance(real, fake)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    # clean-fid always draws from numpy's global generator.
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(SEED)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
