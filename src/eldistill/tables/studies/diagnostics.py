# SPDX-License-Identifier: Apache-2.0
"""Kinds of studies that look at the runs themselves, not at their ranking: whether they diverged or collapsed, and what the
Embedding Loss's gradient have to say?"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, median

from eldistill.errors import Problem
from eldistill.tables.results import arms_of, ended_no_better, identity, short

RECIPE = ("diagnostics", 2)  # curves of one point do not diverge; names of data settings
COLLAPSE = 0.5  # of the real trace of covariance, in the members' features
SPIKE = 3.0  # times the run's own median of the gradient's norm


def stability(study) -> tuple[list[dict], list[str]]:
    """Every arm: runs that ended no better than they started, runs whose spread fell below half of the data's, ticks
    whose gradient is beyond three times the run's median, and what was lost after the best point of the curve.

    Spread and gradients are those of the second half of a run: a student starts as its teacher's blurred image, whose
    spread is small, and from a fake_score that knows nothing yet. A run with a NaN has no row: it stops, and the suite with it.
    """
    rows = []
    for group in arms_of(study.results).values():
        curves = [study.curve(result) for result in group]
        fell = [worse for curve in curves if (worse := ended_no_better(curve)) is not None]
        lost = [100 * curve[-1][1] / best - 100 for curve in curves if (best := min(value for _, value in curve)) > 0]
        spreads = [values for result in group if (values := study.logged(result, "trace_ratio"))]
        norms = [values for result in group if (values := study.logged(result, "gradient_norm", of="generator"))]
        spikes = [fmean(value > SPIKE * median(values) for value in values) for values in norms]
        row = identity(group) | {
            "diverged": sum(fell) if fell else None,
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
        ("collapsed", f"fell below a trace ratio of {COLLAPSE}"),
    ):
        worst = ", ".join(f"{name(row)} {row[key]} of {row['seeds']}" for row in rows if row[key])
        total = sum(row["seeds"] for row in rows if row[key] is not None)
        said.append(f"{sum(row[key] or 0 for row in rows)} of {total} runs {what}{': ' + worst if worst else ''}.")
    if known := [row for row in rows if row["lost_percent"] is not None]:
        last = max(known, key=lambda row: row["lost_percent"])
        said.append(f"After its best point {name(last)} lost most: {last['lost_percent']:.0f} % "
                    f"(median of {last['seeds']}); a curve's best point is partly luck.")  # fmt: skip
    return rows, said


def signal(study) -> tuple[list[dict], list[str]]:
    """The supplement's own signal, batch by batch, from the second half of each run's log: its value over its running
    deviation, the cosine of its gradient with the base loss's, and the share that would mix the two with the least
    variance (a diagnostic: the lemma needs two estimators of one vector). A biased form has a value that is mostly its
    bias at small batches, which is no signal: its ratio is left out."""
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
