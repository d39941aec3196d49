# SPDX-License-Identifier: Apache-2.0
"""Kinds of studies that examine the training of the runs: whether they diverged or collapsed, and the signal of the supplement."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, median

from eldistill.errors import Problem
from eldistill.tables.results import arms_of, ended_no_better, identity, short

RECIPE = ("diagnostics", 3)  # runs that end far above their baseline; no count of 0 that says nothing
COLLAPSE = 0.5  # ratio of the trace of the covariance, generated over real, below which a run counts as collapsed
FAR = 2.0  # ratio of a run's last distance to the mean of the baseline's above which it counts as far above
SPIKE = 3.0  # ratio of a gradient norm to the median of the run above which it counts as a spike


def stability(study) -> tuple[list[dict], list[str]]:
    """Stability of every arm; returns rows and sentences.

    Counts runs that ended no better than they started, which is rare because a start is noise; runs that ended more than FAR times as
    far as the baseline of their data and method does on average; runs whose spread fell below COLLAPSE times that of the data; and
    ticks with a gradient norm above SPIKE times the median. Measures the increase after the best point of the curve. Spread and
    gradients are taken from the second half of a run, because a student starts with blurred images of small spread and an untrained
    fake_score. There are no runs with a NaN, because they stop and their suite is not finished.
    """
    rows, arms = [], arms_of(study.results)
    for arm, group in arms.items():
        curves = [study.curve(result) for result in group]
        fell = [worse for curve in curves if (worse := ended_no_better(curve)) is not None]
        lost = [100 * curve[-1][1] / best - 100 for curve in curves if (best := min(value for _, value in curve)) > 0]
        spreads = [values for result in group if (values := study.logged(result, "trace_ratio"))]
        norms = [values for result in group if (values := study.logged(result, "gradient_norm", of="generator"))]
        spikes = [fmean(value > SPIKE * median(values) for value in values) for values in norms]
        row = identity(group) | {
            "diverged": sum(fell) if fell else None,
            "far_above": _far_above(
                curves, [study.curve(base) for base in arms.get((*arm[:2], study.params["against"]), ())]
            ),
            "collapsed": sum(min(values) < COLLAPSE for values in spreads) if spreads else None,
            "trace_ratio_min": min(map(min, spreads)) if spreads else None,
            "spikes_percent": 100 * fmean(spikes) if spikes else None,
            "lost_percent": median(lost) if lost else None,
        }
        rows.append(row | {"runs": " ".join(result.run for result in group)})
    said, several = [], len({row["data"] for row in rows}) > 1

    def name(row: dict) -> str:
        return f"{row['data']}, " * several + f"{row['method']}/{row['supplement']}"

    for key, what in (
        ("diverged", "ended no better than they started"),
        ("far_above", f"ended above {FAR:g} times the mean distance of {study.params['against']}"),
        ("collapsed", f"fell below a trace ratio of {COLLAPSE}"),
    ):
        worst = ", ".join(f"{name(row)} {row[key]} of {row['seeds']}" for row in rows if row[key])
        total = sum(row["seeds"] for row in rows if row[key] is not None)
        if worst or (total and key != "diverged"):  # that no run ended as badly as it started says nothing
            said.append(f"{sum(row[key] or 0 for row in rows)} of {total} runs {what}{': ' + worst if worst else ''}.")
    if known := [row for row in rows if row["lost_percent"] is not None]:
        last = max(known, key=lambda row: row["lost_percent"])
        said.append(f"After its best point {name(last)} lost most: {last['lost_percent']:.0f} % "
                    f"(median of {last['seeds']}); a curve's best point is partly luck.")  # fmt: skip
    return rows, said


def _far_above(curves: list[list[tuple[int, float]]], bases: list[list[tuple[int, float]]]) -> int | None:
    # How many curves end above FAR times the mean end of the baseline's; None without a baseline.
    goal = FAR * fmean(curve[-1][1] for curve in bases) if bases else 0.0
    return sum(curve[-1][1] > goal for curve in curves) if goal > 0 else None


def signal(study) -> tuple[list[dict], list[str]]:
    """The signal of the supplement by batch size, from the second half of each run's log; returns rows and sentences.

    Columns are the value over its running standard deviation (snr), the cosine between its gradient and that of the base loss, and
    the fraction that would mix both with the least variance (a diagnostic only: the lemma requires two estimators of the same
    vector). The value of a biased estimator is mostly bias at small batches, so that its snr is omitted."""
    rows, biased = [], []
    for group in arms_of(study.results).values():
        found = {}
        for name in ("snr", "cosine", "optimal", "trace_ratio", "weight"):
            values = [fmean(values) for result in group if (values := study.logged(result, name))]
            found[name] = fmean(values) if values else None
        if found["snr"] is None:
            continue
        if _biased(study.root, group[0].run):
            found["snr"] = None
            biased.append(group[0].arm[2])
        about = group[0].about
        row = identity(group) | {"batch": round(about["n_images"] / about["iterations"])} | found
        rows.append(row | {"runs": " ".join(result.run for result in group)})
    rows.sort(key=lambda row: (row["data"], row["supplement"], row["batch"], row["method"]))
    said = []
    for data, supplement in dict.fromkeys((row["data"], row["supplement"]) for row in rows if row["snr"] is not None):
        same = [row for row in rows if (row["data"], row["supplement"]) == (data, supplement)]
        twice = len({row["batch"] for row in same}) < len(same)
        values = ", ".join(
            f"{short(row['snr'])} at {row['batch']}" + (f" ({row['method']})" if twice else "") for row in same
        )
        alone = "" if same[0]["snr"] >= 1 else "; below 1 a batch alone says little, and only many steps do"
        said.append(f"{data}, {supplement}: signal over noise {values} images a batch{alone}.")
    if biased:
        said.append(f"{', '.join(dict.fromkeys(biased))}: no signal over noise is given, for the value of a biased form is mostly "
                    "its bias.")  # fmt: skip
    return rows, said


def _biased(root: Path, run: str) -> bool:
    path = root / f"data/runs/{run}/generator_ema.safetensors.recipe"
    try:
        supplements = json.loads(path.read_text(encoding="utf-8"))["params"]["supplements"]
    except (OSError, ValueError, KeyError) as error:
        raise Problem(f"{path} cannot be read ({error}); make the run again") from None
    return any(each.get("estimator") == "biased" for each in supplements.values())
