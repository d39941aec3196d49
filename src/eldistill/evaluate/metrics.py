# SPDX-License-Identifier: Apache-2.0
"""The metrics of generated images, computed from features in float64. To add a metric, add a function to METRICS.

A function of METRICS gets the features of generated and of real images, [n, D] each, and the section `evaluate` of params.yaml.
A function of ALONE gets both parts {train, heldout} of the real images. A function of LABELLED gets the class [n] that was
requested for each image, which only conditional generators have. A metric that does not apply returns None and is omitted.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from eldistill.errors import Problem
from eldistill.evaluate import arithmetic
from eldistill.evaluate.arithmetic import cubic_sums, inside, nearest, symmetric_root

RECIPE = ("metrics", 1)
GROUPS = 20  # number of groups of the jackknife
WIDE = 128  # largest D with a jackknife; in more dimensions its 420 eigendecompositions would take minutes
DENSE = 5  # number of neighbours for density and coverage, as chosen by their authors
SPLITS = 10  # number of splits of the Inception score

# --- values of real images that are computed once ---------------------------------------------------------

_kept: dict[int, dict[str, Any]] = {}
_numbers = itertools.count()


def once(array: np.ndarray, name: str, compute: Callable[[], Any]) -> Any:
    """compute(), which is called once for each name while `array` exists. An array that can be written to is never remembered.

    Every snapshot is compared with the same real images, whose covariance, its root, and sums over all pairs take longer than the
    generated side."""
    if array.flags.writeable:
        return compute()
    if id(array) not in _kept:
        _kept[id(array)] = {}
        weakref.finalize(array, _kept.pop, id(array), None)
    known = _kept[id(array)]
    if name not in known:
        known[name] = compute()
    return known[name]


def keep(array: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """The array, made read-only, with values that `once` then finds by their names."""
    array.flags.writeable = False
    for name, value in values.items():
        once(array, name, lambda value=value: value)
    return array


# --- Fréchet distance -----------------------------------------------------------------------------------


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] (divisor n - 1) in float64. Raises Problem for fewer than two rows."""
    if len(features) < 2:
        raise Problem(f"{len(features)} images for a covariance; expected at least 2")
    return arithmetic.mean_and_covariance(features)


def frechet(mean: np.ndarray, cov: np.ndarray, mean_r: np.ndarray, cov_r: np.ndarray, root_r=None) -> float:
    """Fréchet distance of two Gaussians (Dowson & Landau 1982), as in FID, from means [D] and covariances [D, D].

    |m - m_r|^2 + tr(S + S_r - 2 (S_r^1/2 S S_r^1/2)^1/2) in float64, by two symmetric eigendecompositions, so that it is never
    complex. root_r: S_r^1/2, if it is known.
    """
    half = symmetric_root(cov_r) if root_r is None else root_r
    cross = arithmetic.trace_of_root(half, cov)
    return float(((mean - mean_r) ** 2).sum() + np.trace(cov) + np.trace(cov_r) - 2 * cross)


def fd(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Fréchet distance between the features of generated and real images, [n, D] each."""
    # Of a pair of arrays that cannot be written to; the number of the other one is not that of a later array in its place.
    other = "" if real.flags.writeable else once(real, "number", lambda: str(next(_numbers)))
    whole = lambda: frechet(*moments_of(fake), *moments_of(real), root_of(real))  # noqa: E731
    return once(fake, f"fd {other}", whole) if other else whole()


def moments_of(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`moments` of features [n, D], remembered by `once`."""
    found: tuple[np.ndarray, np.ndarray] = once(features, "moments", lambda: moments(features))
    return found


def root_of(real: np.ndarray) -> np.ndarray:
    """The root [D, D] of the covariance of real features [n, D], remembered by `once`."""
    found: np.ndarray = once(real, "root", lambda: symmetric_root(moments_of(real)[1]))
    return found


def relfd(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Fréchet distance divided by the trace of the real covariance, so that it does not depend on the scale of the features."""
    return fd(fake, real, options) / float(np.trace(moments_of(real)[1]))


def jackknife(fake: np.ndarray, real: np.ndarray, groups: int = GROUPS) -> tuple[float, float]:
    """The Fréchet distance corrected for its finite-sample bias, and its standard error from sampling the images of both sides.

    fake, real: features [n, D]. A delete-a-group jackknife (Quenouille 1956) is applied to each side, with image i in group
    i mod G. Let F_g be the distance without group g. The bias is (G - 1)(mean F_g - F), and the variance is
    V = (G - 1)/G sum (F_g - mean)^2. V counts the part that is quadratic in the sample twice, and for equal distributions this is
    the only part. The quadratic part is estimated from pairs of groups (Q of Efron & Stein 1981) and subtracted, at most down to
    V/2. Biases and variances of the two sides are added. The estimate is comparable between different numbers of images and may be
    negative. Raises Problem for fewer than 2 images per group.
    """
    if min(len(fake), len(real)) < 2 * groups:
        raise Problem(
            f"{min(len(fake), len(real))} images for a jackknife in {groups} groups; expected {2 * groups} or more"
        )
    whole, bias, variance = fd(fake, real, {}), 0.0, 0.0
    pairs = list(itertools.combinations(range(groups), 2))
    for side, other in ((fake, real), (real, fake)):
        mean, cov = moments(other)
        half, without = symmetric_root(cov), _without(side, groups)
        left = np.array([frechet(*without(group), mean, cov, half) for group in range(groups)])
        both = np.array([frechet(*without(*pair), mean, cov, half) for pair in pairs])
        bias += (groups - 1) * (left.mean() - whole)
        own = (groups - 1) / groups * ((left - left.mean()) ** 2).sum()
        q = groups * whole - (groups - 1) * np.array([left[i] + left[j] for i, j in pairs]) + (groups - 2) * both
        variance += max(own - ((q - q.mean()) ** 2).sum() / (groups * (groups - 1)), own / 2)
    return float(whole - bias), float(np.sqrt(variance))


def _without(x: np.ndarray, groups: int) -> Callable:
    # Function from groups to the moments of all other images. The moments come from sums of centred features, which limits rounding
    # errors.
    centre = x.mean(0)
    x = x - centre
    parts = [(len(own), own.sum(0), own.T @ own) for own in (x[group::groups] for group in range(groups))]
    every = [sum(kind) for kind in zip(*parts, strict=True)]

    def moments_without(*gone: int) -> tuple[np.ndarray, np.ndarray]:
        n, total, square = (whole - sum(parts[group][i] for group in gone) for i, whole in enumerate(every))
        mean = total / n
        return mean + centre, (square - n * np.outer(mean, mean)) / (n - 1)

    return moments_without


def debiased(fake: np.ndarray, real: np.ndarray, options: dict) -> dict[str, float] | None:
    """{fdj, fdse}: the distance of `jackknife` and its standard error, which covers the sampling of images but not training seeds.

    None for more than WIDE dimensions or fewer than 2 GROUPS images."""
    if fake.shape[1] > WIDE or min(len(fake), len(real)) < 2 * GROUPS:
        return None
    return dict(zip(("fdj", "fdse"), jackknife(fake, real), strict=True))


# --- kernel distance --------------------------------------------------------------------------------------


def kid(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Kernel distance (Binkowski et al. 2018): unbiased MMD^2 with the kernel (x.y/D + 1)^3 over all images; may be negative.

    Features are divided by the square root of the mean variance of the real ones, so that feature spaces are comparable.
    """
    scale = once(real, "scale", lambda: _scale(real))
    m, n = len(fake), len(real)
    (sum_x, trace_x), (across, _) = cubic_sums(fake, fake, scale), cubic_sums(fake, real, scale)
    sum_y, trace_y = pairs_of(real)
    return float((sum_x - trace_x) / (m * (m - 1)) + (sum_y - trace_y) / (n * (n - 1)) - 2 * (across / (m * n)))


def _scale(real: np.ndarray) -> float:
    return float(np.sqrt(np.mean(real.var(0)))) or 1.0


def pairs_of(real: np.ndarray) -> tuple[float, float]:
    """Sum and trace of the kernel of `kid` over all pairs of real features [n, D], remembered by `once`."""
    found: tuple[float, float] = once(real, "pairs", lambda: cubic_sums(real, real, _scale(real)))
    return found


# --- neighbours -------------------------------------------------------------------------------------------


def _even(side: np.ndarray, n: int) -> np.ndarray:
    # n evenly spaced rows, because real images may be sorted by class.
    return side[np.linspace(0, len(side) - 1, n).astype(int)]


def _alike(fake: np.ndarray, real: np.ndarray, most: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    # The same number of generated and real images, because these metrics depend on both numbers.
    n = min(len(fake), len(real), most)
    if n <= k:
        raise Problem(f"{n} images for precision and recall with k = {k}; expected more images")
    return _even(fake, n), _even(real, n)


def precision(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Fraction of generated images within the k-th-neighbour ball of a real image (Kynkäänniemi et al. 2019), from 0 to 1."""
    fake, real = _alike(fake, real, options["neighbours_n"], options["neighbours"])
    return float(inside(fake, real, options["neighbours"]).any(1).mean())


def recall(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Fraction of real images within the k-th-neighbour ball of a generated image (Kynkäänniemi et al. 2019), from 0 to 1."""
    return precision(real, fake, options)


def density(fake: np.ndarray, real: np.ndarray, options: dict) -> float | None:
    """Mean number of balls of real images that contain a generated image, divided by k = 5 (Naeem et al. 2020).

    It is 1 for equal distributions and larger if generated images concentrate near dense groups of real images. None for fewer
    than 6 images."""
    return _dense(fake, real, options["neighbours_n"])[0]


def coverage(fake: np.ndarray, real: np.ndarray, options: dict) -> float | None:
    """Fraction of real images whose ball (k = 5) contains a generated image (Naeem et al. 2020). None for fewer than 6 images."""
    return _dense(fake, real, options["neighbours_n"])[1]


def _dense(fake: np.ndarray, real: np.ndarray, most: int) -> tuple[float | None, float | None]:
    if min(len(fake), len(real), most) <= DENSE:
        return None, None
    fake, real = _alike(fake, real, most, DENSE)
    within = inside(fake, real, DENSE)
    return float(within.sum() / (DENSE * len(fake))), float(within.any(0).mean())


def copied(fake: np.ndarray, real: dict, options: dict) -> float:
    """Fraction of generated images that are copies of train images, beyond chance: 0 if they are as close to held-out images as to
    train images, 1 if all are copies of train images; it may be negative.

    (s - e)/(1 - e), where s is the fraction of generated images whose nearest real image is a train image, and e is the fraction of
    train images among the real ones, which is the expectation of s without copies. At most `neighbours_n` images of each set are
    used, evenly spaced.
    """
    fake = _even(fake, min(len(fake), options["neighbours_n"]))
    train, heldout = (_even(real[part], min(len(real[part]), options["neighbours_n"])) for part in ("train", "heldout"))
    to_train, to_heldout = (nearest(fake, part) for part in (train, heldout))
    # Equal distances count as one half, so that images that are in both parts do not raise the result.
    share = float(np.mean((to_train < to_heldout) + 0.5 * (to_train == to_heldout)))
    expected = len(train) / (len(train) + len(heldout))
    return (share - expected) / (1 - expected)


def inception_score(fake: np.ndarray, real: dict, options: dict) -> float | None:
    """Inception score (Salimans et al. 2016) with the classifier of this feature space, from 1 to its number of classes.

    It is the exponential of the mean Kullback-Leibler divergence between an image's class probabilities and their mean, averaged
    over 10 splits. It detects missing classes and images without a clear class, but nothing within a class. None if the feature
    space has no classifier of images, or for fewer than 10 images.
    """
    head = options.get("probabilities")
    if head is None or len(fake) < SPLITS:
        return None
    found, seen = [], head(fake)
    # Images in the order of their files' names may be sorted by class: then each split has every tenth of them.
    strided = (seen[first::SPLITS] for first in range(SPLITS))
    for part in strided if options.get("by_name") else np.array_split(seen, SPLITS):
        mean = part.mean(0, keepdims=True)
        found.append(
            np.exp((part * (np.log(np.clip(part, 1e-12, None)) - np.log(np.clip(mean, 1e-12, None)))).sum(1).mean())
        )
    return float(np.mean(found))


def agreement(fake: np.ndarray, asked: np.ndarray, options: dict) -> float | None:
    """Fraction of images, from 0 to 1, that the classifier of this feature space assigns to the requested class.

    asked: requested classes, int64 [n]. The classifier also makes mistakes: compare with the value of held-out images and their
    labels. None if the feature space has no classifier of these classes."""
    head = options.get("probabilities")
    return None if head is None else float((head(fake).argmax(1) == asked).mean())


Metric = Callable[[np.ndarray, np.ndarray, dict], float | dict[str, float] | None]
METRICS: dict[str, Metric] = {
    "fd": fd, "relfd": relfd, "debiased": debiased, "kid": kid, "precision": precision, "recall": recall,
    "density": density, "coverage": coverage,
}  # fmt: skip
ALONE: dict[str, Callable[[np.ndarray, dict, dict], float | None]] = {"copied": copied, "is": inception_score}
LABELLED: dict[str, Callable[[np.ndarray, np.ndarray, dict], float | None]] = {"agreement": agreement}
CURVE = ("fd", "relfd")


def count_name(n: int) -> str:
    """A number of images as it is written in the name of a metric: 5000 gives 5k, 512 gives 512."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


def measure(
    features: dict[str, np.ndarray],
    references: dict[str, dict],
    options: dict,
    names=None,
    parts=("heldout", "train"),
    heads: dict[str, Callable] | None = None,
) -> dict[str, float]:
    """The metrics of generated images against real ones: {name: value}, such as {"fd64_pixels_heldout": 0.1}.

        fake, real = np.random.default_rng(0).normal(size=(2, 64, 5))
        references = {"pixels": {"heldout": real}}
        found = measure({"pixels": fake}, references, {}, names=["fd"], parts=["heldout"])
        assert found["fd64_pixels_heldout"] > 0

    Args:
        features: {space: features [n, D] of the generated images}.
        references: {space: {"train": [m, D], "heldout": [m, D]}} of real images; only those named in `parts` are needed.
        options: the resolved section `evaluate` of params.yaml.
        names: names in METRICS; None computes all, and those in ALONE.
        parts: the references to compare with.
        heads: {space: function from features to class probabilities}.

    Raises Problem for too few images.
    """
    found: dict[str, float] = {}
    for space, fake in features.items():
        stem = f"{count_name(len(fake))}_{space}"
        for part in parts:
            for name in METRICS if names is None else names:
                found |= _named(name, f"{stem}_{part}", METRICS[name](fake, references[space][part], options))
        if names is None:
            own = {**options, "probabilities": (heads or {}).get(space)}
            for name, metric in ALONE.items():
                found |= _named(name, stem, metric(fake, references[space], own))
    return found


def measure_labelled(
    features: dict[str, np.ndarray], asked: np.ndarray, heads: dict[str, Callable]
) -> dict[str, float]:
    """The metrics of LABELLED {name: value} of features {space: [n, D]}.

    asked: the requested class of each image; the first n are used. heads: {space: function from features to probabilities of these
    classes}, for spaces that have one."""
    found: dict[str, float] = {}
    for space, fake in features.items():
        for name, metric in LABELLED.items():
            value = metric(fake, asked[: len(fake)], {"probabilities": heads.get(space)})
            found |= _named(name, f"{count_name(len(fake))}_{space}", value)
    return found


def _named(name: str, stem: str, value) -> dict[str, float]:
    each = value if isinstance(value, dict) else {name: value}
    return {f"{key}{stem}": number for key, number in each.items() if number is not None}
