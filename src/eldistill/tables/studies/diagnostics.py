# SPDX-License-Identifier: Apache-2.0
"""The kind of study that examines the training of the runs: whether they diverged, collapsed or had spikes."""

from __future__ import annotations

from statistics import fmean, median

from eldistill.tables.results import arms_of, ended_no_better, identity

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
