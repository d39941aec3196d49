# SPDX-License-Identifier: Apache-2.0
"""A summary of each arm over several feature spaces, which no single space decides.

Any single representation can be gamed (RDM, arXiv 2607.02375): a loss that compares features lowers the distance in these features, and
the images need not become better. The distance in each feature space is therefore divided by that of real train images to held-out ones,
and the ratios are averaged geometrically over the spaces that are related to no member which the arms are trained with
(plan/related.py). All arms of a data setting are averaged over the same spaces if there are two of these; otherwise each over its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from eldistill.plan.kept import NO_LINES, Kept
from eldistill.tables.inference import interval
from eldistill.tables.results import NAME, REFERENCE_RUNS, TEACHER, Result, arms_of, identity, metrics_of, named

RECIPE = ("across", 1)
FEWEST = 2  # feature spaces of a mean
DISTANCES = {
    "fd": 1.0,
    "sw": 0.5,
}  # {metric: power of 1/n with which it falls with the number of images, for equal distributions}
COLUMNS = (
    "data", "method", "supplement", "seeds", "metric", "spaces", "heldout", "heldout_over_seeds", "heldout_over_spaces", "lowest",
    "lowest_space", "highest", "highest_space", "train", "train_over_seeds", "train_to_heldout", "train_to_heldout_real", "to_baseline",
    "to_baseline_low", "to_baseline_high", "paired_seeds", "unrelated_spaces", "unrelated", "related_spaces", "related", "runs",
)  # fmt: skip
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Scale:
    """Distances of the runs of a data setting by one metric, divided by those of real images.

    floors: {feature space: distance of real train images to held-out ones}, in which every run has a positive distance. images: {feature
    space: numbers of train and of held-out images}."""

    metric: str
    floors: dict[str, float]
    images: dict[str, tuple[int, int]]

    def logs(self, found: Metrics, spaces: Iterable[str], part: str) -> list[float]:
        """Logarithm of distance / floor in each of these spaces, to a part of the data."""
        return [math.log(_value(found, self.metric, space, part) / self.floors[space]) for space in spaces]


def _value(found: Metrics, metric: str, space: str, part: str) -> float:
    # 0 if it was not measured.
    name = named(found, metric, space, part)
    return found[name] if name else 0.0


def scale_of(metric: str, real: Metrics, others: Iterable[Metrics]) -> Scale:
    """The scale of a metric: the spaces that real images and all others have, in their order. A distance of 0 or less has no ratio, and
    its space is left out."""
    others, matches = list(others), (NAME.fullmatch(name) for name in real)
    spaces = dict.fromkeys(m["space"] for m in matches if m and m["metric"] == metric and m["part"] == "heldout")
    floors = {space: _value(real, metric, space, "heldout") for space in spaces}
    every = {
        space: [_value(each, metric, space, part) for each in others for part in ("heldout", "train")]
        for space in spaces
    }
    kept = {space: floor for space, floor in floors.items() if min(floor, *every[space]) > 0}
    return Scale(
        metric,
        kept,
        {space: (_count(real, metric, space, "heldout"), _count(real, metric, space, "train")) for space in kept},
    )


def rows_across(results: list[Result], params: dict, root: Path, lines: Mapping[str, Kept] = NO_LINES) -> list[dict]:
    """The rows of the summary: for each data setting and metric the teacher and every arm. Empty where fewer than FEWEST spaces remain.

    params: confidence; baseline, a supplement or METHOD/SUPPLEMENT; related, {DATA/METHOD/SUPPLEMENT: feature spaces} as
    plan.related.related_spaces gives them. Raises Problem if a reference run is missing or damaged."""
    rows = []
    for data in dict.fromkeys(result.arm[0] for result in results):
        arms = arms_of([result for result in results if result.arm[0] == data])
        real, teacher = (metrics_of(f"{data}/{which}", root, lines) for which in REFERENCE_RUNS)
        for metric in DISTANCES:
            every = [teacher, *(result.metrics for group in arms.values() for result in group)]
            rows += _rows(scale_of(metric, real, every), arms, teacher, params)
    return rows


def _rows(scale: Scale, arms: dict, teacher: Metrics, params: dict) -> list[dict]:
    related = {arm: set(params.get("related", {}).get("/".join(arm), ())) & scale.floors.keys() for arm in arms}
    gone = set().union(*related.values())
    common = [space for space in scale.floors if space not in gone]
    shared = len(common) >= FEWEST
    data = next(iter(arms))[0]
    first = {"data": data, "method": TEACHER, "supplement": None, "seeds": None}
    spaces = common if shared else list(scale.floors)
    rows = [_row(first | {"runs": f"{data}/teacher"}, scale, [teacher], spaces, set())]
    for arm, group in arms.items():
        own = [space for space in scale.floors if space not in related[arm]]
        about = identity(group) | {"runs": " ".join(result.run for result in group)}
        row = _row(about, scale, [result.metrics for result in group], common if shared else own, related[arm])
        rows.append(row | (_against(scale, group, arms, common, params) if shared else {}))
    # A table in which no arm has enough spaces says nothing.
    return rows if any(row["spaces"] for row in rows[1:]) else []


def _row(about: dict, scale: Scale, found: list[Metrics], spaces: list[str], related: set[str]) -> dict:
    # The row of one arm, or of the teacher. found: the metrics of each seed.
    row = dict.fromkeys(COLUMNS) | about | {"metric": scale.metric}
    own = [space for space in scale.floors if space not in related]
    for column, names in (("unrelated", own), ("related", [space for space in scale.floors if space in related])):
        row |= {f"{column}_spaces": " ".join(names) or None, column: _mean(scale, found, names, "heldout")}
    if len(spaces) < FEWEST:
        return row
    for part in ("heldout", "train"):
        logs = [fmean(scale.logs(each, spaces, part)) for each in found]
        row |= {part: math.exp(fmean(logs)), f"{part}_over_seeds": math.exp(stdev(logs)) if len(logs) > 1 else None}
    each_space = [_mean(scale, found, [space], "heldout") for space in spaces]
    low, high = (pick(zip(each_space, spaces, strict=True)) for pick in (min, max))
    return row | {
        "spaces": " ".join(spaces), "heldout_over_spaces": math.exp(stdev(map(math.log, each_space))),
        "lowest": low[0], "lowest_space": low[1], "highest": high[0], "highest_space": high[1],
        "train_to_heldout": row["train"] / row["heldout"], "train_to_heldout_real": _without_copies(scale, found[0], spaces),
    }  # fmt: skip


def _mean(scale: Scale, found: list[Metrics], spaces: list[str], part: str) -> float | None:
    # Geometric mean over spaces and seeds; None without spaces.
    return math.exp(fmean(fmean(scale.logs(each, spaces, part)) for each in found)) if spaces else None


def _without_copies(scale: Scale, found: Metrics, spaces: list[str]) -> float:
    # The ratio of the distances to train and to held-out images that images from the distribution of both have. These distances are
    # sampling error alone, of the order (1/n + 1/m) of the numbers of images of both sides. A distance that does not come from sampling
    # is equal for both parts, so that without memorisation the ratio is between this and 1.
    logs = []
    for space in spaces:
        n, (train, heldout) = _count(found, scale.metric, space, "heldout"), scale.images[space]
        logs.append(DISTANCES[scale.metric] * math.log((1 / n + 1 / train) / (1 / n + 1 / heldout)))
    return math.exp(fmean(logs))


def _count(found: Metrics, metric: str, space: str, part: str) -> int:
    # The number of images in the name of a metric.
    text = NAME.fullmatch(named(found, metric, space, part))["n"]
    return int(text.removesuffix("k")) * (1000 if text.endswith("k") else 1)


def _against(scale: Scale, group: list[Result], arms: dict, spaces: list[str], params: dict) -> dict:
    # The ratio to the baseline, paired by seed, with the interval of the mean of its logarithm.
    data, method, _ = group[0].arm
    other, _, supplement = params["baseline"].rpartition("/")
    baseline = (data, other or method, supplement)
    bases = {} if group[0].arm == baseline else {base.seed: base for base in arms.get(baseline, ())}
    logs = [
        fmean(scale.logs(result.metrics, spaces, "heldout"))
        - fmean(scale.logs(bases[result.seed].metrics, spaces, "heldout"))
        for result in group
        if result.seed in bases
    ]
    if not logs:
        return {}
    low, high = interval(logs, params["confidence"])
    ends = {"to_baseline_low": low, "to_baseline_high": high}
    return {"to_baseline": math.exp(fmean(logs)), "paired_seeds": len(logs)} | {
        # exp(700) is about the largest number; an end of an interval beyond it says no more.
        key: None if end is None else math.exp(min(end, 700.0))
        for key, end in ends.items()
    }
