# SPDX-License-Identifier: Apache-2.0
"""Golden arrays of methods whose authors' code is not public or departs from ours, computed with numpy and without eldistill.

`python -m tests.arrays` writes them to tests/golden/methods/, one file a method. Denoisers are linear, so that every
gradient is written down by hand: D(x; sigma) = slope x + shift with slope = v / (sigma^2 + v).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHAPE = (6, 2, 3, 3)
TEACHER, FAKE = (0.25, 0.1), (0.36, -0.05)  # v and shift
C = 0.2  # of the pseudo-Huber distance
BINS, ENTRIES = 1000, [150, 300, 450, 600, 700, 800]
LOGITS = [-4.0, -1.0, -0.2, 0.3, 1.5, 4.0]  # two are clipped to [0.1, 20]
RATIO = (0.1, 20.0)
GROUPS, INTERVALS = [0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]  # four images a group; entries 0 ... 800 in two halves
WEIGHT = 3e-3  # of the adversarial loss; a logit grows by the mean of the change of its noisy image


def inputs() -> dict[str, np.ndarray]:
    """Images, unit noises and the two levels of noise: uniform positions u (SIM), entries of the Karras grid."""
    draw = np.random.default_rng(20261127)
    u = np.array([0.3, 0.5, 0.6, 0.7, 0.85, 0.95])
    ends = 0.002 ** (1 / 7), 80 ** (1 / 7)
    warped = lambda share: (ends[0] + share * (ends[1] - ends[0])) ** 7  # noqa: E731
    return {
        "x": 0.5 * draw.standard_normal(SHAPE), "noise": draw.standard_normal(SHAPE), "u": u, "sigma_sim": warped(0.8 * u),
        "entries": np.array(ENTRIES), "sigma": warped(np.array(ENTRIES) / (BINS - 1)), "logits": np.array(LOGITS),
    }  # fmt: skip


def column(values) -> np.ndarray:
    """[n] -> [n, 1, 1, 1]."""
    return np.asarray(values, dtype=np.float64).reshape(-1, 1, 1, 1)


def summed(values: np.ndarray) -> np.ndarray:
    """Over channels and pixels, [n, 1, 1, 1]."""
    return values.sum(axis=(1, 2, 3), keepdims=True)


def denoised(x: np.ndarray, noise: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, ...]:
    """D_phi, D_psi at x + sigma noise, and their slopes in x."""
    noisy = x + column(sigma) * noise
    slopes = [v / (column(sigma) ** 2 + v) for v, _ in (TEACHER, FAKE)]
    return *(slope * noisy + shift for slope, (_, shift) in zip(slopes, (TEACHER, FAKE), strict=True)), *slopes


def sim(x: np.ndarray, noise: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(loss of each image [n], gradient of their mean at x)."""
    real, fake, real_slope, fake_slope = denoised(x, noise, sigma)
    delta, slope = real - fake, real_slope - fake_slope
    product, norm = summed(delta * (fake - x)), np.sqrt(summed(delta**2) + C**2)
    gradient = (slope * (fake - x) + delta * (fake_slope - 1)) / norm - product * slope * delta / norm**3
    return (product / norm).ravel(), gradient / len(x)


# r -> h, its derivative in ln r, h - r h', its derivative in ln r
DIVERGENCES = {
    "reverse-kl": lambda r: (1 + 0 * r, 0 * r, 1 + 0 * r, 0 * r),
    "forward-kl": lambda r: (r, r, 0 * r, 0 * r),
    "jeffreys": lambda r: (1 + r, r, 1 + 0 * r, 0 * r),
    "jensen-shannon": lambda r: (r / (1 + r), r / (1 + r) ** 2, r**2 / (1 + r) ** 2, 2 * r**2 / (1 + r) ** 3),
    "chi-squared": lambda r: (2 * r**2, 4 * r**2, -2 * r**2, -4 * r**2),
    "squared-hellinger": lambda r: (r**0.5 / 4, r**0.5 / 8, r**0.5 / 8, r**0.5 / 16),
    "softened-reverse-kl": lambda r: (
        1 / (1 + r),
        -r / (1 + r) ** 2,
        (1 + 2 * r) / (1 + r) ** 2,
        -2 * r**2 / (1 + r) ** 3,
    ),  # fmt: skip
}


def ratios() -> tuple[np.ndarray, np.ndarray]:
    """The density ratio of each image, clipped and divided by its mean, [n], and whether it was clipped."""
    plain = np.exp(np.array(LOGITS))
    clipped = plain.clip(*RATIO)
    parts = list(zip(GROUPS, INTERVALS, strict=True))
    means = [np.mean([clipped[j] for j, other in enumerate(parts) if other == part]) for part in parts]
    return clipped / np.array(means), clipped != plain


def f_divergence(name: str, x: np.ndarray, noise: np.ndarray, sigma: np.ndarray) -> dict[str, np.ndarray]:
    """h of each image after both normalisations, and the gradients at x of both methods, without the adversarial loss."""
    real, fake, real_slope, fake_slope = denoised(x, noise, sigma)
    ratio, clipped = ratios()
    h, h_slope, k, k_slope = DIVERGENCES[name](ratio)
    mean = np.array([np.mean([h[j] for j, other in enumerate(GROUPS) if other == group]) for group in GROUPS])
    h, h_slope, k, k_slope = (column(each / mean) for each in (h, h_slope, k, k_slope))
    h_slope, k_slope = (each * column(~clipped) for each in (h_slope, k_slope))
    delta, slope, scale = real - fake, real_slope - fake_slope, np.abs(x - real).mean(axis=(1, 2, 3), keepdims=True)
    log_ratio_slope = delta / column(sigma) ** 2
    first, second = summed(delta * (fake - x)), summed(delta**2) / 2
    held = h * (slope * (fake - x) + delta * (fake_slope - 1)) + k * delta * slope
    expanded = held + (h_slope * first + k_slope * second) * log_ratio_slope
    return {
        "h": h.ravel(), "weighted": -h * delta / scale / x.size, "expanded": expanded / scale / x.size,
        "held": held / scale / x.size,
        "expanded_value": np.sum((h * first + k * second) / scale) / x.size,
    }  # fmt: skip


def adversarial(x: np.ndarray, noise: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(loss, gradient at x) of WEIGHT mean ln(1 + exp(-logit)), where the slope of a logit is 1 / pixels."""
    logits = np.array(LOGITS)
    slope = -1 / (1 + np.exp(logits)) / len(x) / x[0].size
    return WEIGHT * np.mean(np.log1p(np.exp(-logits))), WEIGHT * column(slope) * np.ones_like(x)


# --- methods with a derivative along the flow ---

SIGMA_DATA, TANGENT_C, RISE = 0.5, 0.1, 0.4
FLOW_SIGMA = [0.05, 0.3, 0.8, 2.0, 7.0, 40.0]


def moving(x: np.ndarray, noise: np.ndarray, sigma: np.ndarray, origin: str) -> tuple[np.ndarray, ...]:
    """Noisy images y, the image that the flow points away from, the student's D(y; sigma) and its derivative to sigma
    along dy/dsigma = (y - origin) / sigma."""
    level, (v, shift), (w, offset) = column(sigma), FAKE, TEACHER
    y = x + level * noise
    away = x if origin == "data" else w / (level**2 + w) * y + offset
    slope = v / (level**2 + v)
    return y, away, slope * y + shift, slope * (y - away) / level - 2 * level * v / (level**2 + v) ** 2 * y


def scm(x: np.ndarray, noise: np.ndarray, origin: str) -> dict[str, np.ndarray]:
    """g of each image, and the loss without a learned weight: the mean of its squares."""
    level = column(FLOW_SIGMA)
    y, away, denoised, slope = moving(x, noise, np.array(FLOW_SIGMA), origin)
    t = np.arctan(level / SIGMA_DATA)
    trig = (np.cos(t) * (np.cos(t) * y) - denoised) / (SIGMA_DATA * np.sin(t))
    velocity = (np.cos(t) ** 2 * y - away) / np.sin(t)  # dx_t/dt
    first = -(np.cos(t) ** 2) * (SIGMA_DATA * trig - velocity)
    whole = np.cos(t) * slope * SIGMA_DATA / np.cos(t) ** 2  # cos(t) df/dt, df/dt by way of dsigma/dt
    g = first + RISE * (whole - first)
    g = g / (np.sqrt(summed(g**2)) + TANGENT_C)
    return {f"{origin}/trig": trig, f"{origin}/g": g, f"{origin}/loss": np.mean(g**2)}


FLOW_LOWER = [0.05, 0.1, 0.0, 2.0, 3.0, 1.0]  # the first and the fourth are the levels themselves
SECOND, POWER, POWER_C = 0.3, 0.75, 1e-3  # what r adds to the slope of D; p and c of the loss


def mean_flow(x: np.ndarray, noise: np.ndarray, origin: str) -> dict[str, np.ndarray]:
    """The target v - (t - r) du/dt, u, and the loss, for D = (slope + SECOND r) y + shift."""
    sigma, lower = np.array(FLOW_SIGMA), np.array(FLOW_LOWER)
    t, r = column(sigma / (1 + sigma)), column(lower / (1 + lower))
    z, (v, shift), (w, offset) = (1 - t) * x + t * noise, FAKE, TEACHER
    y, level = z / (1 - t), t / (1 - t)
    velocity = noise - x if origin == "data" else (z - w / (level**2 + w) * y - offset) / t
    slope = v / (level**2 + v) + SECOND * r
    denoised = slope * y + shift
    u = (z - denoised) / t
    y_slope, level_slope = velocity / (1 - t) + z / (1 - t) ** 2, 1 / (1 - t) ** 2
    change = slope * y_slope - 2 * level * v / (level**2 + v) ** 2 * level_slope * y
    target = velocity - (t - r) * ((velocity - change) / t - (z - denoised) / t**2)
    error = summed((u - target) ** 2)
    return {f"{origin}/u": u, f"{origin}/loss": np.mean(error / (error + POWER_C) ** POWER)}


BORDER, TCM_Q, TCM_C = 0.8, 16.0, 0.2
TCM_BOUNDARY = [0, 0, 1, 0, 0, 1]  # images at the border


def tcm(x: np.ndarray, noise: np.ndarray) -> dict[str, np.ndarray]:
    """The losses of both stages; the generator is FAKE, the first stage TEACHER."""

    def loss(sigma: np.ndarray, second: bool) -> np.ndarray:
        lower = np.maximum(0, sigma * (1 - (1 + 8 / (1 + np.exp(sigma))) / TCM_Q))

        def at(which: tuple[float, float], levels: np.ndarray) -> np.ndarray:
            return which[0] / (column(levels) ** 2 + which[0]) * (x + column(levels) * noise) + which[1]

        theirs = at(FAKE, lower)
        if second:
            theirs = np.where(column(lower < BORDER), at(TEACHER, lower), theirs)
        theirs = np.where(column(lower > 0), theirs, x)
        return (np.sqrt(summed((at(FAKE, sigma) - theirs) ** 2) + TCM_C**2) - TCM_C).ravel() / (sigma - lower)

    sigma, border = np.array(FLOW_SIGMA), np.array(TCM_BOUNDARY)
    above = np.where(border, BORDER, np.array([0.9, 1.5, 0.0, 4.0, 9.0, 0.0]))
    weight = np.where(border, 0.1 / 0.25, 1 / 0.75)
    return {"above": above, "first": np.mean(loss(sigma, False)), "second": np.mean(weight * loss(above, True))}


def computed() -> dict[str, dict[str, np.ndarray]]:
    """The arrays of all files."""
    given = inputs()
    loss, gradient = sim(given["x"], given["noise"], given["sigma_sim"])
    at = given["x"], given["noise"], given["sigma"]
    family = {f"{name}/{key}": value for name in DIVERGENCES for key, value in f_divergence(name, *at).items()}
    own, own_gradient = adversarial(*at)
    shared = {name: given[name] for name in ("x", "noise")}
    return {
        "sim": {**shared, "u": given["u"], "sigma": given["sigma_sim"], "loss": loss, "gradient": gradient},
        "f_divergence": {
            **shared, "entries": given["entries"], "sigma": given["sigma"], "logits": given["logits"], **family,
            "adversarial": own, "adversarial_gradient": own_gradient,
        },
        "scm": {
            **shared, "sigma": np.array(FLOW_SIGMA), **scm(given["x"], given["noise"], "teacher"),
            **scm(given["x"], given["noise"], "data"),
        },
        "mean_flow": {
            **shared, "sigma": np.array(FLOW_SIGMA), "lower": np.array(FLOW_LOWER),
            **mean_flow(given["x"], given["noise"], "data"), **mean_flow(given["x"], given["noise"], "teacher"),
        },
        "tcm": {
            **shared, "sigma": np.array(FLOW_SIGMA), "boundary": np.array(TCM_BOUNDARY), **tcm(given["x"], given["noise"]),
        },
    }  # fmt: skip


if __name__ == "__main__":
    for name, arrays in computed().items():
        np.savez_compressed(Path(__file__).parent / "golden/methods" / f"{name}.npz", **arrays)
