# SPDX-License-Identifier: Apache-2.0
"""Kinds of studies that compare arms: after training, at equal cost, and by their variance between seeds.

Comparisons are paired by seed within a data setting and a method. The tests of one table are one family (Holm).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean, median, stdev

from eldistill.errors import Problem
from eldistill.tables import inference
from eldistill.tables.results import (
    COSTS,
    Result,
    arms_of,
    corrected,
    identity,
    one_device,
    short,
    signed_percent,
    spanned,
)
from eldistill.tables.studies.study import Study

RECIPE = ("comparisons", 6)  # differences of KID


def _ends(row: dict, name: str) -> str:
    # The interval of the share of a component of the variance, in percent.
    low, high = row[f"share_{name}_low"], row[f"share_{name}_high"]
    return "" if low is None else f" [{100 * low:.0f}, {100 * high:.0f}]"


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


def correct(rows: list[dict], key: str = "p") -> None:
    """Fill in the columns `KEY_holm` and `KEY_family`: Holm's correction over the rows, and the number of p-values that it counts."""
    found = [row[key] for row in rows]
    for row, p in zip(rows, inference.holm(found), strict=True):
        row[f"{key}_holm"], row[f"{key}_family"] = p, None if p is None else sum(each is not None for each in found)


def equivalence(deltas: list[float], bound: float, level: float) -> dict:
    """Columns about the test of equivalence within ± bound: the margin, p_equivalent, and the seeds that equal arms would need at this
    level. They are None if the bound is not above 0, because a baseline with mean 0 has no margin."""
    if bound <= 0:
        return {"margin": None, "p_equivalent": None, "seeds_needed": None}
    needed = inference.seeds_for_equivalence(deltas, bound, level) if len(deltas) > 1 else None
    return {"margin": bound, "p_equivalent": inference.equivalence_p(deltas, bound), "seeds_needed": needed}


def mean_and_sd(values: list[float], stem: str) -> dict:
    """{stem_mean, stem_sd} of values; both are None if a value was not measured (None)."""
    values = [] if None in values else values
    return {f"{stem}_mean": fmean(values) if values else None, f"{stem}_sd": stdev(values) if len(values) > 1 else None}


def at_end(study: Study, group: list[Result], space: str | None = None) -> dict:
    """{end_mean, end_sd}, the distances at the end of the runs of an arm, for a study that compares means over snapshots; nothing for
    others. These have as many images as those of real images and of the teacher, with which they are comparable."""
    return mean_and_sd([study.at_end(result, space=space) for result in group], "end") if study.last > 1 else {}


def compare_kid(study: Study, settings: Sequence[Sequence[tuple[Result, Result]]]) -> dict:
    """Columns {kid_difference, kid_low, kid_high}: the mean difference of KID in the primary space, which asks the answer of a study
    again by another distance. All None where it was not measured.

    settings: for each setting the pairs (run, baseline run), in the same order of seeds; a seed's differences are averaged over them."""
    deltas = []
    for pairs in zip(*settings, strict=True):
        values = [[study.at_end(run, "kid") for run in pair] for pair in pairs]
        if any(None in pair for pair in values):
            deltas = []
            break
        deltas.append(fmean(ours - theirs for ours, theirs in values))
    low, high = inference.interval(deltas, study.params["confidence"])
    return {"kid_difference": fmean(deltas) if deltas else None, "kid_low": low, "kid_high": high}


def contrast(study: Study) -> tuple[list[dict], list[str]]:
    """Compare every arm with the baseline of its data setting and method: distances, recall, effective weight and cost. Returns rows
    and sentences.

    Each arm is tested for a difference and for equivalence within the margin. Both are families of their own (Holm)."""
    arms, rows = arms_of(study.results), []
    others = [space for space in study.spaces() if {study.primary(r) for r in study.results} != {space}]
    for group in arms.values():
        twins = pair_with_baseline(study, group, arms)
        row = identity(group) | mean_and_sd([study.metric(r) for r in group], "fd")
        row |= at_end(study, group) | _primary(study, twins) | compare_kid(study, [twins])
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
    correct(rows)
    correct(rows, "p_equivalent")
    return rows, [text for row in rows if (text := _verdict(row, study.params))]


def _primary(study: Study, twins: list[tuple[Result, Result]]) -> dict:
    # The difference in the metric that ranks, and its test of equivalence.
    ours, theirs = ([study.metric(pair[side]) for pair in twins] for side in (0, 1))
    row = compare_pairs(ours, theirs, study.params["confidence"]) | dict.fromkeys(("p_holm", "p_family"))
    bound = study.params["margin"] * fmean(theirs) if theirs else 0.0
    deltas = [a - b for a, b in zip(ours, theirs, strict=True)]
    return row | equivalence(deltas, bound, 1 - study.params["confidence"])


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
    share = "" if row["percent"] is None else f", {signed_percent(row)} %"
    span = f"{spanned(row['difference'], row['low'], row['high'])}{share}"
    tail = f"p = {short(row['p'])}, {corrected(row['p_holm'], row['p_family'])}, {row['pairs']} pairs, lower in {row['lower_in']}"
    differs = row["p_holm"] < 1 - params["confidence"]
    end = f"{span} ({tail}){_equal(row, params, differs)}."
    if differs:
        return f"{who}: {what} is {'lower' if row['difference'] < 0 else 'higher'} than {against}'s: {end}"
    return f"{who}: {what} is not distinguishable from {against}'s: {end}"


def _equal(row: dict, params: dict, differs: bool) -> str:
    # The end of a sentence: whether the arms were shown to be equal. A large p of a difference cannot say so.
    if row.get("p_equivalent_holm") is None:
        return ""
    within = f"within ±{100 * params['margin']:g} %"
    p = corrected(row["p_equivalent_holm"], row["p_equivalent_family"])
    if row["p_equivalent_holm"] < 1 - params["confidence"]:
        return f"; equivalent {within} ({p})"
    if differs:
        return ""
    return f"; not shown equivalent {within} ({p}; were they equal, about {row['seeds_needed']} pairs would show it)"


def seeds(study: Study) -> tuple[list[dict], list[str]]:
    """Variance between training seeds and between ensemble seeds, from a complete table of both; returns rows and sentences.

    Supplements called NAME-e0, NAME-e1, … differ only in the seed of the ensemble. Shares have generalized confidence intervals,
    which are wide for a few seeds. Raises Problem if the table is incomplete."""
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
        ends = inference.variance_share_intervals(
            [[cells[t, e] for e in ensemble] for t in training], study.params["confidence"]
        )
        for name, (low, high) in zip(names, ends or [(None, None)] * 3, strict=True):
            row |= {f"share_{name}_low": low, f"share_{name}_high": high}
        rows.append(row)
        if not total:
            said.append(f"{data}, {method}/{stem}: no variance in {len(cells)} runs.")
            continue
        shares = ", ".join(f"{100 * row[f'share_{name}']:.0f} %{_ends(row, name)} {text}" for name, text in
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
    correct(rows)
    return rows, [
        text for row in rows if (text := _verdict(row, study.params, f"at equal {row['equal']} the distance"))
    ]


def _at(curve: list[tuple[float, float]], time: float) -> float:
    for (before, low), (after, high) in zip(curve, curve[1:], strict=False):
        if before <= time <= after and before < after:  # a short run has several snapshots of one iteration
            return low + (high - low) * (time - before) / (after - before)
    return curve[-1][1]
