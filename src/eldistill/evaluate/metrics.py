# SPDX-License-Identifier: Apache-2.0
"""The metrics that every evaluation has, and `measure`, which computes them from features in float64.

A function of METRICS gets the features of generated and of real images, [n, D] each, and the section `evaluate` of params.yaml.
A function of ALONE gets both parts {train, heldout} of the real images. A function of LABELLED gets the class [n] that was
requested for each image, which only conditional generators have. A metric that does not apply returns None and is omitted.

The recipe of each evaluation names all of these, so that one more makes every evaluation stale. A metric that only some evaluations
ask for is a file in the folder `metrics`; `evaluate.extra_metrics` names it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eldistill.evaluate.classifiers import agreement, inception_score
from eldistill.evaluate.gaussians import debiased, fd, relfd
from eldistill.evaluate.kernel import kid
from eldistill.evaluate.neighbours import copied, coverage, density, precision, recall
from eldistill.numbers import make_numbers

RECIPE = ("metrics", 1)

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
        names: names in METRICS; None computes all, those in ALONE, and those that `extra_metrics` of the options names.
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
                found |= _measure_extra(f"{stem}_{part}", fake, references[space][part], options)
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


def _measure_extra(stem: str, fake: np.ndarray, real: np.ndarray, options: dict) -> dict[str, float]:
    # The metrics of the folder `metrics` that the options ask for. Tables import this file, and need no torch for it.
    from eldistill.contract import load_module

    found: dict[str, float] = {}
    for name, numbers in options.get("extra_metrics", {}).items():
        module = load_module("metrics", name)
        found |= _named(name, stem, module.measure(fake, real, make_numbers(module, numbers)))
    return found


def _named(name: str, stem: str, value) -> dict[str, float]:
    each = value if isinstance(value, dict) else {name: value}
    return {f"{key}{stem}": number for key, number in each.items() if number is not None}
