# SPDX-License-Identifier: Apache-2.0
"""Kinds of studies that compare arms: after training, at equal cost, and by their variance between seeds.

Comparisons are paired by seed within a data setting and a method. The tests of one table are one family (Holm).
"""

from __future__ import annotations

import re
from statistics import fmean, median, stdev

from eldistill.errors import Problem
from eldistill.tables import inference
from eldistill.tables.results import COSTS, Result, arms_of, identity, one_device, short
from eldistill.tables.studies.study import Study

RECIPE = ("comparisons", 2)  # savings are paired by seed and need two; no threshold from runs that do not fall


def baseline_of(study: Study, arm: tuple[str, str, str]) -> tuple[str, str, str]:
    """The baseline (data, method, supplement) of an arm. Its method is that of the arm, unless `against` is METHOD/SUPPLEMENT."""
    named, _, against = study.params["against"].rpartition("/")
    return arm[0], named or arm[1], against


def pair_with_baseline(study: Study, group: list[Result], arms: dict) -> list[tuple[Result, Result]]:
    """Pairs (run, baseline run) with the same data and seed, and the same method unless the baseline names one; empty for the baseline."""
    baseline = baseline_of(study, group[0].arm)
    if group[0].arm == baseline:
        return []
    bases = {base.seed: base for base in arms.get(baseline, ())}
    return [(result, bases[result.seed]) for result in group if result.seed in bases]


def compare_pairs(values: list[float], bases: list[float], confidence: float, unit: float | None = None) -> dict:
    """Columns about the differences of paired values: number of pairs, mean, interval (low, high), percent, p, and in how many pairs
    the value is lower. Percent is relative to `unit`, or to the mean of the bases; None if that mean is 0."""
    deltas = [a - b for a, b in zip(values, bases, strict=True)]
    unit = unit or (fmean(bases) if bases else 0.0)
    low, high = inference.interval(deltas, confidence)
    return {
        "pairs": len(deltas) or None, "difference": fmean(deltas) if deltas else None, "low": low, "high": high,
        "percent": 100 * fmean(deltas) / unit if unit else None,
        "p": inference.paired_p(deltas), "lower_in": f"{sum(d < 0 for d in deltas)}/{len(deltas)}" if deltas else None,
    }  # fmt: skip


def mean_and_sd(values: list[float], stem: str) -> dict:
    """{stem_mean, stem_sd} of values; both are None if a value was not measured (None)."""
    values = [] if None in values else values
    return {f"{stem}_mean": fmean(values) if values else None, f"{stem}_sd": stdev(values) if len(values) > 1 else None}


def contrast(study: Study) -> tuple[list[dict], list[str]]:
    """Compare every arm with the baseline of its data setting and method: distances, recall, effective weight and cost. Returns rows
    and sentences."""
    arms, rows = arms_of(study.results), []
    others = [space for space in study.spaces() if {study.primary(r) for r in study.results} != {space}]
    for group in arms.values():
        twins = pair_with_baseline(study, group, arms)
        row = identity(group) | mean_and_sd([study.metric(r) for r in group], "fd")
        row |= compare_pairs(
            [study.metric(a) for a, _ in twins], [study.metric(b) for _, b in twins], study.params["confidence"]
        )
        row["p_holm"] = None
        sides = zip(*twins, strict=True) if twins else ((), ())
        of_train = [[study.metric(result, part="train") for result in side] for side in sides]
        train = compare_pairs(*of_train, study.params["confidence"])
        row |= mean_and_sd([study.metric(r, part="train") for r in group], "fd_train")
        row |= {f"train_{key}": train[key] for key in ("difference", "low", "high")}
        for space in others:
            row |= mean_and_sd([study.metric(r, space=space) for r in group], f"fd_{space}")
        for metric in ("kid", "precision", "recall"):
            row |= mean_and_sd([study.metric(r, metric) for r in group], metric)
        row |= _realised(study, group)
        row["step_ms_cpu"] = median(r.about["milliseconds_per_iteration_cpu"] for r in group)
        rows.append(row | {"runs": " ".join(r.run for r in group)})
    for row, p in zip(rows, inference.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows, [text for row in rows if (text := _verdict(row, study.params))]


def _realised(study: Study, group: list[Result]) -> dict:
    # The mean weight of the supplement and the mean ratio of its weighted gradient to the base loss's, in the second half of training.
    found: dict[str, float | None] = {}
    weights = [fmean(values) for r in group if (values := study.logged(r, "weight"))]
    found["weight"] = fmean(weights) if weights else None
    ratios = []
    for r in group:
        parts = [study.logged(r, name) for name in ("weight", "gradient_rms", "base_rms")]
        ratios += [w * own / base for w, own, base in zip(*parts, strict=False) if base]
    found["gradient_ratio"] = fmean(ratios) if ratios else None
    spread = [min(values) for r in group if (values := study.logged(r, "trace_ratio"))]
    found["trace_ratio_min"] = min(spread) if spread else None
    return found


def _verdict(row: dict, params: dict, what: str = "the distance") -> str | None:
    if row["difference"] is None:
        return None
    who, against = f"{row['data']}, {row['method']}/{row['supplement']}", params["against"]
    if row["low"] is None:
        return f"{who}: one paired seed, {short(row['difference'])} from {against}: no conclusion."
    share = "" if row["percent"] is None else f", {row['percent']:+.1f} %"
    span = f"{short(row['difference'])} [{short(row['low'])}, {short(row['high'])}]{share}"
    tail = f"p = {short(row['p'])}, Holm {short(row['p_holm'])}, {row['pairs']} pairs, lower in {row['lower_in']}"
    if row["p_holm"] < 1 - params["confidence"]:
        return f"{who}: {what} is {'lower' if row['difference'] < 0 else 'higher'} than {against}'s: {span} ({tail})."
    return f"{who}: {what} is not distinguishable from {against}'s: {span} ({tail})."


def seeds(study: Study) -> tuple[list[dict], list[str]]:
    """Variance between training seeds and between ensemble seeds, from a complete table of both; returns rows and sentences.

    Supplements called NAME-e0, NAME-e1, … differ only in the seed of the ensemble. Raises Problem if the table is incomplete."""
    tables: dict[tuple[str, str, str], dict[tuple[int, int], float]] = {}
    for result in study.results:
        match = re.fullmatch(r"(.+)-e(\d+)", result.arm[2])
        if match:
            tables.setdefault((*result.arm[:2], match[1]), {})[result.seed, int(match[2])] = study.metric(result)
    rows, said = [], []
    for (data, method, stem), cells in tables.items():
        training, ensemble = (sorted({cell[i] for cell in cells}) for i in (0, 1))
        if len(cells) < len(training) * len(ensemble) or min(len(training), len(ensemble)) < 2:
            raise Problem(f"{data}/{method}/{stem}-e*: {len(cells)} runs for {len(training)} seeds and {len(ensemble)} ensembles; "
                          "expected a full table")  # fmt: skip
        parts = inference.variance_components([[cells[t, e] for e in ensemble] for t in training])
        names = ("training", "ensemble", "rest")
        total = sum(max(part, 0.0) for part in parts)
        row = {
            "data": data,
            "method": method,
            "supplement": stem,
            "training_seeds": len(training),
            "ensemble_seeds": len(ensemble),
        }
        row |= mean_and_sd(list(cells.values()), "fd") | {
            f"variance_{name}": part for name, part in zip(names, parts, strict=True)
        }
        row |= {
            f"share_{name}": max(part, 0.0) / total if total else None for name, part in zip(names, parts, strict=True)
        }
        rows.append(row)
        if not total:
            said.append(f"{data}, {method}/{stem}: no variance in {len(cells)} runs.")
            continue
        shares = ", ".join(f"{100 * row[f'share_{name}']:.0f} % {text}" for name, text in
                           zip(names, ("training seed", "ensemble seed", "their interaction and noise"), strict=True))  # fmt: skip
        said.append(f"{data}, {method}/{stem}: of the variance {shares} (sd in all {short(row['fd_sd'])}, "
                    f"{len(training)} x {len(ensemble)} runs; an estimate below 0 counts as 0).")  # fmt: skip
    return rows, said


def budget(study: Study) -> tuple[list[dict], list[str]]:
    """Compare every arm with the baseline at equal iterations (and images, as batches are equal), equal CPU seconds and equal FLOP.

    Curves are interpolated at the largest cost that both of them reach. Returns rows and sentences. Raises Problem if two curves have
    no common cost."""
    arms, rows = arms_of(study.results), []
    for group in arms.values():
        for kind, cost_of in COSTS.items():
            if any(cost_of(result) is None for result in study.results):
                continue
            twins = pair_with_baseline(study, group, arms)
            if not twins or (kind == "seconds" and not one_device([result for pair in twins for result in pair])):
                continue
            ours, theirs = [], []
            # The median cost of an arm, because the load of the machine affects single runs.
            prices = [median(cost_of(pair[side]) for pair in twins) for side in (0, 1)]
            for mine, base in twins:
                curves = [
                    [(i * price, v) for i, v in study.curve(r)] for r, price in zip((mine, base), prices, strict=True)
                ]
                end = min(curve[-1][0] for curve in curves)
                if max(curve[0][0] for curve in curves) > end:
                    raise Problem(f"the curves of {mine.run} and {base.run} share no {kind}; add 0 to distil.snapshots")
                ours.append(_at(curves[0], end))
                theirs.append(_at(curves[1], end))
            row = identity(group) | {"equal": kind} | mean_and_sd(ours, "fd") | mean_and_sd(theirs, "baseline")
            rows.append(
                row | compare_pairs(ours, theirs, study.params["confidence"]) | {"runs": " ".join(r.run for r in group)}
            )
    for row, p in zip(rows, inference.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows, [
        text for row in rows if (text := _verdict(row, study.params, f"at equal {row['equal']} the distance"))
    ]


def _at(curve: list[tuple[float, float]], time: float) -> float:
    for (before, low), (after, high) in zip(curve, curve[1:], strict=False):
        if before <= time <= after:
            return low + (high - low) * (time - before) / (after - before)
    return curve[-1][1]
