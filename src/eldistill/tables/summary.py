# SPDX-License-Identifier: Apache-2.0
"""The summary data/metrics.json of a suite: at most LIMIT numbers, so that `dvc metrics diff` fits on a screen.

Each arm has the mean and standard deviation of the metric that ranks, the number of seeds, and the number of images until the
baseline's final quality. In a suite with many arms each arm has fewer of them. With more than LIMIT arms, the summary has the ratio
of each supplement to the baseline over all data settings and methods. data/metrics-all.json has all numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, geometric_mean, median, stdev

from eldistill.tables.results import named

RECIPE = ("summary", 2)  # ratios over shared seeds
LIMIT = 20  # upper limit of the number of values in the file


@dataclass(frozen=True)
class Evaluation:
    """What is known of one evaluated run. metrics: {name: number}. curve: rows of text by column, in any order."""

    metrics: Mapping[str, float]
    curve: Iterable[Mapping[str, str]]


Arm = tuple[str, str, str]  # data, method, supplement
Runs = dict[Arm, dict[str, Evaluation]]  # by arm and seed


def ranking(metrics: Mapping[str, float], primary: str) -> str:
    """The name of the metric that ranks: the FID that is comparable with published values if it was measured, else the Fréchet
    distance to held-out images in the primary space."""
    fids = [name for name in metrics if name.startswith("fid") and name.endswith("ref")]
    return fids[0] if fids else named(metrics, "fd", primary, "heldout")


def images_to_quality(run: Evaluation, base: Evaluation, primary: str) -> int | None:
    """Number of training images at the first point of a run's curve that is at or below the last point of the baseline's curve of
    the same seed, with those of the runs that it starts from; None if there is no such point, or if the baseline ended no better
    than it began."""
    curves = []
    for each in (run, base):
        points = sorted(((int(row["n_images"]), row) for row in each.curve), key=lambda point: point[0])
        column = named(points[0][1], "fd", primary, "heldout")
        curves.append([(n_images, float(row[column])) for n_images, row in points])
    ours, theirs = curves
    if len(theirs) < 2 or theirs[-1][1] >= theirs[0][1]:
        return None
    return next((n_images for n_images, distance in ours if distance <= theirs[-1][1]), None)


def summarise(runs: Runs, primary: Mapping[str, str], baseline: str) -> dict:
    """The summary of a suite: nested mappings with at most LIMIT numbers.

    primary: {data setting: feature space that ranks}. baseline: a supplement.
    """
    if len(runs) > LIMIT:
        return _by_supplement(runs, primary, baseline)
    each = LIMIT // len(runs)  # limit for each arm
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
    # Ratio of the means of a supplement and the baseline over the seeds that both have: its geometric mean over data settings and
    # methods.
    ratios: dict[str, list[float]] = {}
    for (data, method, supplement), seeds in runs.items():
        base = runs.get((data, method, baseline), {})
        shared = [seed for seed in seeds if seed in base]
        if supplement != baseline and shared:
            name = ranking(base[shared[0]].metrics, primary[data])
            ours, theirs = (fmean(each[seed].metrics[name] for seed in shared) for each in (seeds, base))
            if ours > 0 and theirs > 0:
                ratios.setdefault(supplement, []).append(ours / theirs)
    rows = {name: {f"ratio_to_{baseline}": geometric_mean(each), "arms": len(each)} for name, each in ratios.items()}
    return dict(list(rows.items())[: LIMIT // 2])
