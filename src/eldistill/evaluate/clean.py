# SPDX-License-Identifier: Apache-2.0
"""FID and KID as clean-fid computes them (Parmar et al. 2022, arXiv 2104.11222): features after its own resizing, compared with
the train images of the data setting, as clean-fid compares a folder with the folder of train images.

The train images' moments and features are made once for a data setting, a step of `data`. Moments are summed up while images pass,
in float64. KID draws subsets, so it needs features themselves: those of at most MOST images a side are kept, in float32. Up to
MOST images a side both figures are those of `cleanfid.fid` on the same images as PNG files; KID's subsets are drawn from a fixed
seed there. Of more images, KID sees MOST of them, spread evenly.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eldistill.data import dataset as data
from eldistill.errors import Problem
from eldistill.evaluate import metrics
from eldistill.evaluate.features import chunks, embed
from eldistill.evaluate.fid import Moments
from eldistill.files import atomic
from eldistill.training.processes import Alone, Processes

RECIPE = ("clean", 1)
SPACE = "inception-clean"
MOST = 50_000  # images a side whose features are kept for KID: 410 MB
SEED = 0  # of KID's subsets


def chosen(n: int) -> np.ndarray:
    """Which of n images KID sees: bool [n], at most MOST of them, spread evenly (train images may be sorted by class)."""
    mask = np.zeros(n, bool)
    mask[np.linspace(0, n - 1, min(n, MOST)).astype(int)] = True
    return mask


@dataclass(frozen=True)
class Reference:
    """The train images in the feature space: mean [D] and covariance [D, D] of all, float64; features of the chosen ones,
    float32 [k, D]."""

    mean: np.ndarray
    cov: np.ndarray
    rows: np.ndarray


class Sample:
    """Features of images on their way to somebody else: their moments, and the features of the chosen ones for KID.

    space: from uint8 images [n, c, h, w] to features [n, D]. mask: bool, one for each image that will pass (`chosen`).
    """

    def __init__(self, space: Callable, mask: np.ndarray):
        self.space, self.mask, self.moments, self.rows = space, mask, Moments(), []

    def watch(self, images: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The same chunks; the features of each are taken before it is passed on. Raises Problem if one is not finite."""
        for chunk in images:
            found, first = embed([chunk], self.space), self.moments.count
            self.moments.add(found)
            self.rows.append(found[self.mask[first : first + len(found)]].astype(np.float32))
            yield chunk

    def kept(self) -> np.ndarray:
        """Features of the chosen images, float32 [k, D]; [0, 0] where none has passed."""
        return np.concatenate(self.rows) if self.rows else np.empty((0, 0), np.float32)

    def measure(self, reference: Reference, count: str, team: Alone | Processes | None = None) -> dict[str, float]:
        """`fid…_clean` and `kid…_clean` of the images of all processes; nothing in processes but the first. count: the number of
        images as names have it (50k)."""
        team = team or Alone()
        (_, mean, cov), rows = self.moments.result(team), team.gather_of(self.kept())
        if team.rank:
            return {}
        return {
            f"fid{count}_clean": metrics.frechet(mean, cov, reference.mean, reference.cov),
            f"kid{count}_clean": kernel_distance(rows, reference.rows),
        }


def make_reference(space: Callable, pack: Path, output: Path, say=lambda line: None) -> None:
    """Write the Reference of the train images of a packed data set, one pass over them: an npz of `mean`, `cov` and `rows`."""
    images = data.load_pack(pack, "train")[0]
    sample = Sample(space, chosen(len(images)))
    for number, _ in enumerate(sample.watch(chunks(images))):
        if number % 40 == 0:
            say(f"{sample.moments.count} of {len(images)} images")
    _, mean, cov = sample.moments.result()
    with atomic(output) as temporary, open(temporary, "wb") as file:
        np.savez(file, mean=mean, cov=cov, rows=sample.kept())


def load_reference(path: Path) -> Reference:
    """What `make_reference` wrote. Raises Problem if the file is missing, damaged, of other shapes, or not finite."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            mean, cov, rows = (archive[name] for name in ("mean", "cov", "rows"))
        size = len(mean)
        sound = (mean.shape, cov.shape, rows.shape[1:]) == ((size,), (size, size), (size,))
        sound = sound and all(np.isfinite(each).all() for each in (mean, cov, rows))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise Problem(f"{path} is missing or damaged ({error}); delete it and run `snakemake all`") from None
    if not sound:
        raise Problem(
            f"{path} has a mean of shape {mean.shape}, a covariance of {cov.shape} and rows of {rows.shape}; expected finite [D], "
            "[D, D] and [k, D]: delete it and run `snakemake all`"
        )
    return Reference(mean, cov, rows)


def kernel_distance(fake: np.ndarray, real: np.ndarray) -> float:
    """KID by clean-fid's own function: the mean over 100 subsets of at most 1,000 images a side of the unbiased MMD^2 with the
    kernel (x.y/D + 1)^3, D features, not scaled; may be negative. fake, real: [n, D]. Its subsets come from SEED; the state of
    numpy's global generator, from which clean-fid draws them, is left as it was."""
    from cleanfid import fid

    with _seeded():
        return fid.kernel_distance(real, fake)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    # clean-fid draws from numpy's global generator and offers no other.
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(SEED)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
