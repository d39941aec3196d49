# SPDX-License-Identifier: Apache-2.0
"""data/metrics.json: at most LIMIT numbers of a suite, so that `dvc metrics diff` fits a screen.

Of each arm the mean, the deviation and the number of seeds of the metric that ranks, and the images to the baseline's
final quality. A suite with too many arms for that has fewer of them: means alone, or, beyond LIMIT arms, how each supplement
compares with the baseline over all data settings and methods. Every other number stands in data/metrics-all.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, geometric_mean, median, stdev

from eldistill.tables.results import named

RECIPE = ("summary", 1)
LIMIT = 20  # numbers of the file, at most


@dataclass(frozen=True)
class Evaluation:
    """What is known of one evaluated run. metrics: {name: number}. curve: rows of text by column, in any order."""

    metrics: Mapping[str, float]
    curve: Iterable[Mapping[str, str]]


Arm = tuple[str, str, str]  # data, method, supplement
Runs = dict[Arm, dict[str, Evaluation]]  # by arm and seed


def ranking(metrics: Mapping[str, float], primary: str) -> str:
    """The name of the metric that ranks: the FID by its authors' protocol where it was measured, else the Fréchet distance to
    held-out images in the primary space."""
    fids = [name for name in metrics if name.startswith("fid") and name.endswith("ref")]
    return fids[0] if fids else named(metrics, "fd", primary, "heldout")


def images_to_quality(run: Evaluation, base: Evaluation, primary: str) -> int | None:
    """Images of training at the first point of the curve at or below the last one of the baseline's run of the same seed; None
    if it has none, or if the baseline ended no better than it began."""
    curves = []
    for each in (run, base):
        points = sorted((int(row["n_images"]), row) for row in each.curve)
        column = named(points[0][1], "fd", primary, "heldout")
        curves.append([(n_images, float(row[column])) for n_images, row in points])
    ours, theirs = curves
    if len(theirs) < 2 or theirs[-1][1] >= theirs[0][1]:
        return None
    return next((n_images for n_images, distance in ours if distance <= theirs[-1][1]), None)


def summarise(runs: Runs, primary: Mapping[str, str], baseline: str) -> dict:
    """Nested mappings of at most LIMIT numbers.

    primary: the feature space that ranks, by data setting. baseline: a supplement.
    """
    if len(runs) > LIMIT:
        return _by_supplement(runs, primary, baseline)
    each = LIMIT // len(runs)  # numbers that an arm may have
    nested: dict = {}
    for (data, method, supplement), seeds in runs.items():
        bases = runs.get((data, method, baseline), {})
        row = list(_arm(seeds, bases, primary[data]).items())[:each]
        nested.setdefault(data, {}).setdefault(method, {})[supplement] = dict(row)
    return nested


def _arm(seeds: dict[str, Evaluation], bases: dict[str, Evaluation], primary: str) -> dict[str, float]:
    first = next(iter(seeds.values()))
    name = ranking(first.metrics, primary)
    values = [run.metrics[name] for run in seeds.values()]
    row = {f"{name}_mean": fmean(values)}
    if len(values) > 1:
        row[f"{name}_sd"] = stdev(values)
    row["seeds"] = len(values)
    times = [images_to_quality(run, bases[seed], primary) for seed, run in seeds.items() if seed in bases]
    if times and None not in times:
        row["images_to_quality"] = median(times)
    return row


def _by_supplement(runs: Runs, primary: Mapping[str, str], baseline: str) -> dict:
    # The ratio of means to the baseline's: its geometric mean over data settings and methods that have both.
    ratios: dict[str, list[float]] = {}
    for (data, method, supplement), seeds in runs.items():
        base = runs.get((data, method, baseline))
        if supplement != baseline and base:
            ours, theirs = (list(_arm(each, {}, primary[data]).values())[0] for each in (seeds, base))
            if ours > 0 and theirs > 0:
                ratios.setdefault(supplement, []).append(ours / theirs)
    rows = {name: {f"ratio_to_{baseline}": geometric_mean(each), "arms": len(each)} for name, each in ratios.items()}
    return dict(list(rows.items())[: LIMIT // 2])
