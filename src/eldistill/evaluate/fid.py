# SPDX-License-Identifier: Apache-2.0
"""FID that is comparable with published values: features of Inception-v3 (2015-12-05), the authors' reference statistics, blocks of
50,000 generated images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from eldistill.errors import Problem, brief, denied
from eldistill.evaluate import gaussians
from eldistill.evaluate.features import embed
from eldistill.external import arrays
from eldistill.outside import check_file

RECIPE = ("fid", 1)


def load_statistics(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Load published reference statistics: mean [D] and covariance [D, D], float64.

    path: EDM's .npz or EDM2's .pkl, which is read without executing it. Raises Problem for any other file."""
    from eldistill.external import pickles

    path = check_file(path, "a file of reference statistics")
    if path.suffix == ".pkl":
        with pickles.read_network_file(path) as file:
            found = file.plain(file.value)
        found = found.get("fid") if isinstance(found, dict) else None
        found = found if isinstance(found, dict) else {}
    else:
        try:
            found = arrays.read_npz(path, ("mu", "sigma"))
        except PermissionError:
            raise denied(path) from None
        except (OSError, ValueError) as error:
            raise Problem(f"{path} is no file of reference statistics ({brief(error)}); fetch it again") from None
    mean, cov = (np.asarray(found.get(key, []), np.float64) for key in ("mu", "sigma"))
    if (
        mean.ndim != 1
        or not len(mean)
        or cov.shape != 2 * mean.shape
        or not (np.isfinite(mean).all() and np.isfinite(cov).all())
    ):
        raise Problem(
            f"{path} has mu of shape {mean.shape} and sigma of {cov.shape}; expected finite [D] and [D, D]: fetch it again"
        )
    return mean, cov


class Moments:
    """Accumulates the number, mean and covariance of features that arrive in pieces, in float64, without keeping the features."""

    def __init__(self):
        self.count, self.total, self.square = 0, 0.0, 0.0

    def add(self, rows: np.ndarray) -> None:
        """Add features [n, D]."""
        self.count += len(rows)
        self.total, self.square = self.total + rows.sum(0), self.square + rows.T @ rows

    def result(self, team=None) -> tuple[int, np.ndarray, np.ndarray]:
        """Number, mean [D] and covariance [D, D] (divisor n - 1) of all features so far, of all processes if `team` is given.

        Raises Problem for fewer than 2 rows."""
        count, total, square = self.count, self.total, self.square
        if team is not None and team.size > 1:
            count, total, square = (team.sum_of(each) for each in (count, total, square))
            count = int(count)
        if count < 2:
            raise Problem(f"{count} images for a covariance; expected at least 2")
        mean = total / count
        return count, mean, (square - count * np.outer(mean, mean)) / (count - 1)


def measure_moments(
    images: Iterable, space: Callable, say=lambda count: None, team=None
) -> tuple[int, np.ndarray, np.ndarray]:
    """Number, mean [D] and covariance [D, D] (divisor n - 1) of the features of chunks of uint8 images, which are not kept.

    say: called with the number of images after each chunk. team: processes whose images are counted together. Raises Problem for
    fewer than 2 images or a feature that is not finite."""
    moments = Moments()
    for chunk in images:
        moments.add(embed([chunk], space))
        say(moments.count)
    return moments.result(team)


def fid_to_reference(images: Iterable, space: Callable, reference: tuple, team=None) -> float:
    """FID of chunks of uint8 images to a reference, (mean [D], covariance [D, D]) or these and the root of the covariance.

    Raises Problem if the features and the reference have different dimensions D."""
    _, mean, cov = measure_moments(images, space, team=team)
    if mean.shape != reference[0].shape:
        raise Problem(
            f"features have {len(mean)} dimensions, the reference statistics {len(reference[0])}; expected the same number: give "
            "statistics of this feature space"
        )
    return gaussians.frechet(mean, cov, *reference)


def reference_label(reference: str) -> str:
    """The end of the name of an FID. It differs between ADM's and EDM's statistics of ImageNet, because they are of different crops
    and give FIDs that are not comparable."""
    return "admref" if reference.startswith("adm-refs") else "edmref"


def fid_of_blocks(
    images: Callable[[int], Iterator], space: Callable, reference: tuple, name: str, count: int, team=None
) -> dict[str, float]:
    """{name: mean over `count` blocks, name_sd, name_min, name_block1, …} of the FIDs of the images of each block.

    images: function from the number of a block to its uint8 chunks. reference: as in `fid_to_reference`. EDM's table has the
    minimum over three blocks of 50,000 images, which is biased downwards and does not show the spread. The mean is therefore the
    main number here, and the minimum is reported next to it.
    """
    found = [fid_to_reference(images(block), space, reference, team) for block in range(count)]
    about = {name: fmean(found), f"{name}_min": min(found)} | ({f"{name}_sd": stdev(found)} if count > 1 else {})
    return about | {f"{name}_block{number + 1}": value for number, value in enumerate(found)}
