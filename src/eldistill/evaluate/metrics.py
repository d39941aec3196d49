# SPDX-License-Identifier: Apache-2.0
"""Metrics: arithmetic on features, float64 throughout. To add one, add a function to METRICS.

A function gets the features of generated and of real images, [n, D] each, and the options of `evaluate` in params.yaml; one
of ALONE gets {train, heldout} in place of the real ones, one of LABELLED the class [n] that each image was asked for, which
only conditional generators have. None means that it does not apply, and it is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from eldistill.errors import Problem

RECIPE = ("metrics", 1)
FLOAT = np.float64
GROUPS = 20  # of the jackknife
WIDE = 128  # features beyond which the jackknife's 420 decompositions would cost minutes
DENSE = 5  # k of density and coverage, their authors' choice
SPLITS = 10  # of the Inception score

# --- Fréchet distance -----------------------------------------------------------------------------------


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] (divisor n - 1) in float64. Raises Problem for fewer than two rows."""
    if len(features) < 2:
        raise Problem(f"{len(features)} images for a covariance; expected at least 2")
    return features.mean(0, dtype=FLOAT), np.atleast_2d(np.cov(features, rowvar=False, dtype=FLOAT))


def symmetric_root(cov: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def frechet(mean: np.ndarray, cov: np.ndarray, mean_r: np.ndarray, cov_r: np.ndarray, root_r=None) -> float:
    """|m - m_r|^2 + tr(S + S_r - 2 (S_r^1/2 S S_r^1/2)^1/2), by two symmetric eigen decompositions, float64.

    The Fréchet distance of two Gaussians (Dowson & Landau 1982), as in FID; never complex. root_r: S_r^1/2, where it is known.
    """
    half = symmetric_root(cov_r) if root_r is None else root_r
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(half @ cov @ half), 0, None)).sum()
    return float(((mean - mean_r) ** 2).sum() + np.trace(cov) + np.trace(cov_r) - 2 * cross)


def fd(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Fréchet distance between the features of generated and real images, [n, D] each."""
    return frechet(*moments(fake), *moments(real))


def relfd(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Fréchet distance over the trace of the real covariance: free of the feature space's scale."""
    return fd(fake, real, options) / float(np.trace(moments(real)[1]))


def jackknife(fake: np.ndarray, real: np.ndarray, groups: int = GROUPS) -> tuple[float, float]:
    """The Fréchet distance without its bias of finite samples, and its standard error, of both sides' sampling.

    Delete-a-group jackknife (Quenouille 1956) on each side, image i being in group i mod G: with F_g, the distance without
    group g, the bias is (G - 1)(mean F_g - F), the variance V = (G - 1)/G sum (F_g - mean)^2. V counts what is quadratic in
    the sample twice, and between equal distributions the distance is nothing else: what pairs of groups show of it is taken
    off (Efron & Stein 1981, their Q), down to V/2. Biases and variances of the two sides add up. Such estimates compare
    across numbers of images, and may be negative. Raises Problem for fewer than 2 images a group.
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
    # The function from groups to the moments of all others, from sums: centred, so that little is lost.
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
    """`jackknife`'s estimate `fdj` and its standard error `fdse`, of sampling images, not of training again; None in more than
    WIDE features, or for too few images."""
    if fake.shape[1] > WIDE or min(len(fake), len(real)) < 2 * GROUPS:
        return None
    return dict(zip(("fdj", "fdse"), jackknife(fake, real), strict=True))


# --- kernel distance --------------------------------------------------------------------------------------


def kid(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Kernel distance (Binkowski et al. 2018): unbiased MMD^2 with (x.y/D + 1)^3, over all samples; may be negative.

    Features are first divided by the root mean variance of the real ones, so that judges can be compared.
    """
    scale = np.sqrt(np.mean(real.var(0))) or 1.0
    x, y = fake / scale, real / scale
    m, n = len(x), len(y)
    (sum_x, trace_x), (sum_y, trace_y), (across, _) = (_cubic(a, b) for a, b in ((x, x), (y, y), (x, y)))
    return float((sum_x - trace_x) / (m * (m - 1)) + (sum_y - trace_y) / (n * (n - 1)) - 2 * (across / (m * n)))


def _cubic(a: np.ndarray, b: np.ndarray, block: int = 1024) -> tuple[float, float]:
    # Sum and trace of (a.b/D + 1)^3, in blocks small enough for memory to be used again: of 60,000 images the whole has 29 GB.
    total, trace = 0.0, 0.0
    for i in range(0, len(a), block):
        for j in range(0, len(b), block):
            base = a[i : i + block] @ b[j : j + block].T / a.shape[1] + 1
            kernel = base * base * base  # many times as fast as a power
            total += kernel.sum()
            trace += np.trace(kernel) if i == j else 0.0
    return total, trace


# --- neighbours -------------------------------------------------------------------------------------------


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(np.clip((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0, None))


def _inside(points: np.ndarray, cloud: np.ndarray, k: int) -> np.ndarray:
    # [points, cloud]: which points lie within the k-th neighbour distance of which points of the cloud.
    within = _distances(cloud, cloud)
    np.fill_diagonal(within, np.inf)
    radius = np.partition(within, k - 1, axis=1)[:, k - 1]
    return _distances(points, cloud) <= radius


def _even(side: np.ndarray, n: int) -> np.ndarray:
    # So many of them, evenly: real ones may be sorted by class.
    return side[np.linspace(0, len(side) - 1, n).astype(int)]


def _alike(fake: np.ndarray, real: np.ndarray, most: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    # These metrics depend on the number of points: as many of each side.
    n = min(len(fake), len(real), most)
    if n <= k:
        raise Problem(f"{n} images for precision and recall with k = {k}; expected more images")
    return _even(fake, n), _even(real, n)


def precision(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Share of generated images inside the real manifold (Kynkäänniemi et al. 2019, k-th neighbour balls)."""
    fake, real = _alike(fake, real, options["neighbours_n"], options["neighbours"])
    return float(_inside(fake, real, options["neighbours"]).any(1).mean())


def recall(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Share of real images inside the generated manifold (Kynkäänniemi et al. 2019)."""
    return precision(real, fake, options)


def density(fake: np.ndarray, real: np.ndarray, options: dict) -> float | None:
    """Real balls around a generated image, on average, over k = 5 (Naeem et al. 2020): 1 where the two agree, and more where
    generated images crowd. None for fewer than 6 images."""
    return _dense(fake, real, options["neighbours_n"])[0]


def coverage(fake: np.ndarray, real: np.ndarray, options: dict) -> float | None:
    """Share of real images whose ball (k = 5) holds a generated one (Naeem et al. 2020). None for fewer than 6 images."""
    return _dense(fake, real, options["neighbours_n"])[1]


def _dense(fake: np.ndarray, real: np.ndarray, most: int) -> tuple[float | None, float | None]:
    if min(len(fake), len(real), most) <= DENSE:
        return None, None
    fake, real = _alike(fake, real, most, DENSE)
    inside = _inside(fake, real, DENSE)
    return float(inside.sum() / (DENSE * len(fake))), float(inside.any(0).mean())


def copied(fake: np.ndarray, real: dict, options: dict) -> float:
    """Generated images whose nearest real one is a train image, beyond what chance gives: 0 for images that know no train
    image better than a held-out one, 1 if all are copies of train images.

    (s - e)/(1 - e): s is the share whose nearest neighbour is a train image, e that of train images among the real ones,
    which s would be if both were draws of one distribution. Of each side at most `neighbours_n`, evenly.
    """
    fake = _even(fake, min(len(fake), options["neighbours_n"]))
    train, heldout = (_even(real[part], min(len(real[part]), options["neighbours_n"])) for part in ("train", "heldout"))
    nearest = [_distances(fake, part).min(1) for part in (train, heldout)]
    # At equal distance half a point: images that are in both parts count as chance.
    share = float(np.mean((nearest[0] < nearest[1]) + 0.5 * (nearest[0] == nearest[1])))
    expected = len(train) / (len(train) + len(heldout))
    return (share - expected) / (1 - expected)


def inception_score(fake: np.ndarray, real: dict, options: dict) -> float | None:
    """Inception score (Salimans et al. 2016) with the classifier of this feature space: exp of the mean KL of an image's
    class probabilities to their mean, mean over 10 splits; at most the number of classes. None where features belong to no
    classifier of images. It sees classes that are missing and images of no class, nothing within a class.
    """
    head = options.get("probabilities")
    if head is None or len(fake) < SPLITS:
        return None
    found = []
    for part in np.array_split(head(fake), SPLITS):
        mean = part.mean(0, keepdims=True)
        found.append(
            np.exp((part * (np.log(np.clip(part, 1e-12, None)) - np.log(np.clip(mean, 1e-12, None)))).sum(1).mean())
        )
    return float(np.mean(found))


def agreement(fake: np.ndarray, asked: np.ndarray, options: dict) -> float | None:
    """Share of images in which the classifier of this feature space sees the class that was asked for, between 0 and 1; asked
    [n], whole numbers. Real held-out images with their labels give its floor: the classifier errs too. Images of one class
    alone reach the share in which that class is asked for. None where features belong to no classifier of these classes."""
    head = options.get("probabilities")
    return None if head is None else float((head(fake).argmax(1) == asked).mean())


def softmax(features: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Class probabilities [n, classes] of features [n, D], by the last layer of their classifier."""
    logits = features @ np.asarray(weight, FLOAT).T + (0.0 if bias is None else np.asarray(bias, FLOAT))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


Metric = Callable[[np.ndarray, np.ndarray, dict], float | dict[str, float] | None]
METRICS: dict[str, Metric] = {
    "fd": fd, "relfd": relfd, "debiased": debiased, "kid": kid, "precision": precision, "recall": recall,
    "density": density, "coverage": coverage,
}  # fmt: skip
ALONE: dict[str, Callable[[np.ndarray, dict, dict], float | None]] = {"copied": copied, "is": inception_score}
LABELLED: dict[str, Callable[[np.ndarray, np.ndarray, dict], float | None]] = {"agreement": agreement}
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
    heads: dict[str, Callable] | None = None,
) -> dict[str, float]:
    """All metrics of features {space: [n, D]} against references {space: {train, heldout}}: {name: value}.

    names: which of METRICS; all, and those of ALONE, if None. heads: {space: function from features to class probabilities}.
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
    """The metrics of LABELLED, of features {space: [n, D]} of the first n images; asked: the class of each image, at least n.

    heads: {space: function from features to probabilities of these classes}, for the spaces that have one."""
    found: dict[str, float] = {}
    for space, fake in features.items():
        for name, metric in LABELLED.items():
            value = metric(fake, asked[: len(fake)], {"probabilities": heads.get(space)})
            found |= _named(name, f"{count_name(len(fake))}_{space}", value)
    return found


def _named(name: str, stem: str, value) -> dict[str, float]:
    each = value if isinstance(value, dict) else {name: value}
    return {f"{key}{stem}": number for key, number in each.items() if number is not None}
