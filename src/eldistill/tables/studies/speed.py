# SPDX-License-Identifier: Apache-2.0
"""The kind of study that measures how soon an arm reaches the baseline's values, with each arm at its own learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, median

from eldistill.tables import inference
from eldistill.tables.results import COSTS, Result, corrected, one_device, short
from eldistill.tables.studies.comparisons import baseline_of, correct, mean_and_sd
from eldistill.tables.studies.rates import (
    PERCENTS,
    Choice,
    choose,
    diverged,
    find_arms,
    log_curve,
    log_distance,
    rate_rows,
    rate_sentences,
)
from eldistill.tables.studies.study import Study

RECIPE = ("speed", 3)  # comparisons without a ratio are drawn
RATES = True  # the planner gives the factor of each arm on the learning rates

# {unit: (its name in sentences, what an iteration costs in it, or None if that was not measured)}
UNITS: dict[str, tuple[str, Callable[[Result], float | None]]] = {
    "iterations": ("iterations", COSTS["iterations"]),
    "images": ("images", lambda result: result.about["n_images"] / result.about["iterations"]),
    "seconds": ("CPU seconds", COSTS["seconds"]),
    "FLOP": ("FLOP", COSTS["FLOP"]),
}


def speed(study: Study) -> tuple[list[dict], list[str]]:
    """Time to the baseline's own values, and the range of learning rates that train; returns rows and sentences.

    Learning rates: of the factors at which no tuning run diverged, each arm uses the one with the lowest mean log distance over the
    tuning seeds and over `pick`, in percent of the run. A run diverged if its last distance is more than twice its lowest one, if it
    ended no better than it began, or if it ended more than twice as high as the arm's best factor, where that is a smaller one.
    Distances are those of the curves, to held-out images in the primary space.

    Time: q is the value of the baseline, at its own factor, at `percents` of its run. For the arm and for the baseline alike, the
    time is the first passage of the curve at q, interpolated linearly in the log distance between snapshots. The ratio of times is
    the geometric mean over paired fresh seeds. A seed that never reaches q counts with the whole run, so that the ratio is at least
    the one shown; a seed whose first snapshot is below q counts with that snapshot, so that it is at most the one shown. Such
    ratios have no interval and no test. The p-values are those of paired t-tests of the log ratios of iterations; all arms and
    percents of the table are one family (Holm). Rows of the table have the `part` time or rate."""
    arms = find_arms(study)
    choices = {key: choose(study, arm) for key, arm in arms.items()}
    times = [row for key in arms for row in _time_rows(study, key, arms, choices)]
    correct(times)
    rates = [row for key, arm in arms.items() for row in rate_rows(study, arm, choices[key])]
    if not rates and not any(row["pairs"] for row in times):
        return [], []
    said = [text for row in times if (text := _sentence(row, study.params))]
    said += [text for key, arm in arms.items() for text in rate_sentences(study, arm, choices[key])]
    return times + rates, said + _rules(study, times)


def _time_rows(study: Study, key: tuple[str, str, str], arms: dict, choices: dict[tuple, Choice]) -> list[dict]:
    # One row for each percentage of the baseline's run, and one row for the baseline itself.
    arm, choice = arms[key], choices[key]
    if choice.reported is None:
        return []
    runs, base = arm.fresh[choice.reported], baseline_of(study, key)
    theirs = arms[base].fresh.get(choices[base].reported, {}) if base in arms else {}
    twins = [] if key == base else [(runs[seed], theirs[seed]) for seed in sorted(runs.keys() & theirs.keys())]
    first = {
        "part": "time", "data": arm.data, "method": arm.method, "supplement": arm.supplement, "seeds": len(runs),
        "picked": choice.picked, "reported": choice.reported,
    }  # fmt: skip
    last = {"diverged_runs": sum(diverged(study, arm, choice.reported, result) for result in runs.values())}
    last |= mean_and_sd([study.metric(result) for result in runs.values()], "fd")
    last |= {"runs": " ".join(runs[seed].run for seed in sorted(runs))}
    percents = (study.params.get("percents") or PERCENTS) if twins else [None]
    return [first | _compare(study, twins, percent) | last for percent in percents]


def _compare(study: Study, twins: list[tuple[Result, Result]], percent: float | None) -> dict:
    # The columns of the ratio of times to the baseline's value at `percent` of its run; without a pair they are empty.
    row: dict = dict.fromkeys(("of_run", "target", "pairs", "never", "early", "no_time", "bound"))
    row |= {
        f"{stem}_{unit}{end}": None for unit in UNITS for stem in ("ratio", "fewer") for end in ("", "_low", "_high")
    }
    row |= {"p": None, "p_holm": None, "p_family": None}
    if percent is None or not twins:
        return row
    targets = [log_distance(study, base, percent) for _, base in twins]
    ours, theirs = (
        [first_passage(log_curve(study, pair[side]), target) for pair, target in zip(twins, targets, strict=True)]
        for side in (0, 1)
    )
    row |= {"of_run": percent, "target": math.exp(fmean(targets)), "pairs": len(twins)}
    row |= {state: sum(found == state for _, found in ours) for state in ("never", "early")}
    row["no_time"] = sum(found == "early" or not time for (time, _), (_, found) in zip(ours, theirs, strict=True))
    if row["no_time"] or (row["never"] and row["early"]):
        return row
    row["bound"] = "at least" if row["never"] else "at most" if row["early"] else None
    logs = [math.log(a / b) for (a, _), (b, _) in zip(ours, theirs, strict=True)]
    for unit, shift in _shifts(twins).items():
        row |= _ratio([log + shift for log in logs], unit, study.params["confidence"], row["bound"])
    return row | {"p": None if row["bound"] else inference.paired_p(logs)}


def first_passage(curve: list[tuple[float, float]], target: float) -> tuple[float, str]:
    """When a curve of (time, value) first is at `target` or below it, interpolated linearly between points: (time, state).

    The state is `reached`; `early` if the first point is there already, with the time of that point, which is an upper bound; or
    `never`, with the time of the last point, which is a lower bound."""
    if curve[0][1] <= target:
        return curve[0][0], "early"
    for (before, high), (after, low) in zip(curve, curve[1:], strict=False):
        if low <= target:
            return before + (after - before) * (high - target) / (high - low), "reached"
    return curve[-1][0], "never"


def _shifts(twins: list[tuple[Result, Result]]) -> dict[str, float]:
    # {unit: log of the cost of an iteration of the arm over the baseline's}. The cost is the median over the runs of an arm,
    # because the load of the machine affects single runs. Units that were not measured are absent.
    found, every = {}, [result for pair in twins for result in pair]
    for unit, (_, cost) in UNITS.items():
        if all(cost(result) for result in every) and (unit != "seconds" or one_device(every)):
            mine, base = (median(cost(pair[side]) for pair in twins) for side in (0, 1))
            found[unit] = math.log(mine / base)
    return found


def _ratio(logs: list[float], unit: str, confidence: float, bound: str | None) -> dict:
    # The geometric mean of ratios with the t-interval of their logarithms, as a ratio and as percent fewer.
    low, high = (None, None) if bound else inference.interval(logs, confidence)
    ratio = {"": fmean(logs), "_low": low, "_high": high}
    # Two pairs that differ a lot have an interval whose end no float can hold.
    ratio = {end: None if log is None else math.exp(min(log, 700.0)) for end, log in ratio.items()}
    fewer = {"": ratio[""], "_low": ratio["_high"], "_high": ratio["_low"]}
    return {f"ratio_{unit}{end}": value for end, value in ratio.items()} | {
        f"fewer_{unit}{end}": None if value is None else 100 * (1 - value) for end, value in fewer.items()
    }


# --- sentences ----------------------------------------------------------------------------------------


def _sentence(row: dict, params: dict) -> str | None:
    against = params["against"]
    who = f"{row['data']}, {row['method']}/{row['supplement']}"
    if not row["pairs"]:
        one, _, supplement = against.rpartition("/")
        is_base = (row["method"], row["supplement"]) == (one or row["method"], supplement)
        return None if is_base else f"{who}: no fresh seed is shared with {against}, so there is nothing to compare."
    who += f" at factor {row['reported']:g}, time to {against}'s value at {row['of_run']:g} % of its run ({short(row['target'])})"
    if row["ratio_iterations"] is None:
        return f"{who}: no ratio, {_why_none(row, against)}."
    # At equal batches the images are as many times fewer as the iterations.
    alike = row["ratio_images"] == row["ratio_iterations"]
    amounts = ", ".join(text for unit in UNITS if (text := _amount(row, unit)) and not (alike and unit == "images"))
    amounts = amounts.replace(" iterations", " iterations and images", 1) if alike else amounts
    if row["bound"]:
        state = "never reached" if row["never"] else "below it at the first snapshot"
        return f"{who}: {state} in {row['never'] or row['early']} of {row['pairs']} seeds; {amounts}; no interval and no test."
    if row["p"] is None:
        return f"{who}: {amounts}; one paired seed: no conclusion."
    tail = f"p = {short(row['p'])}, {corrected(row['p_holm'], row['p_family'])}, {row['pairs']} pairs"
    verdict = "shorter" if row["ratio_iterations"] < 1 else "longer"
    verdict = verdict if row["p_holm"] < 1 - params["confidence"] else "not distinguishable"
    return f"{who}: {verdict}: {amounts} ({tail})."


def _why_none(row: dict, against: str) -> str:
    if row["no_time"]:
        return (
            f"because {against}'s value is not below its first snapshot, or the arm begins below it, in {row['no_time']} of "
            f"{row['pairs']} seeds"
        )
    return f"because {row['never']} of {row['pairs']} seeds never reach it, and {row['early']} are below it at the first snapshot"


def _amount(row: dict, unit: str) -> str | None:
    # "43 % fewer iterations [30, 54]", "at least 20 % more images"; None if it was not measured.
    fewer, (name, _) = row[f"fewer_{unit}"], UNITS[unit]
    if fewer is None:
        return None
    sign, word = (1, "fewer") if fewer >= 0 else (-1, "more")
    ends = sorted(
        sign * row[f"fewer_{unit}{end}"] for end in ("_low", "_high") if row[f"fewer_{unit}{end}"] is not None
    )
    span = f" [{', '.join(map(_round, ends))}]" if ends else ""
    # A ratio that is at least R is at most 100 (1 - R) % fewer, and at least 100 (R - 1) % more.
    bound = row["bound"] if word == "more" else {"at least": "at most", "at most": "at least"}.get(row["bound"])
    return f"{bound + ' ' if bound else ''}{_round(abs(fewer))} % {word} {name}{span}"


def _round(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 or not value else f"{value:.1f}"


def _rules(study: Study, times: list[dict]) -> list[str]:
    # What all sentences rest on, and what is left out.
    pick, tuning = (", ".join(f"{each:g}" for each in values) for values in
                    (study.params.get("pick") or PERCENTS, study.params["tuning"]))  # fmt: skip
    tests = sum(row["p"] is not None for row in times)
    family = f"one family of {tests} tests, all arms and percents of the table (Holm)" if tests else "there are none"
    said = [
        f"Rule for the learning rates: of the factors at which no run on the tuning seeds ({tuning}) diverged, an arm uses the one with "
        f"the lowest mean log distance over these seeds and over {pick} % of the run. A run diverged if its last distance is more "
        "than twice its lowest one, if it ended no better than it began, or if it ended more than twice as high as the arm's best factor, "
        "where that is a smaller one.",
        "Times are first passages of the curves, interpolated linearly in the log distance between snapshots, for the arm and for "
        "the baseline; ratios are geometric means over paired seeds, with t-intervals of the log ratios, which are "
        f"not corrected. p-values are those of paired t-tests of the log ratios of iterations: {family}.",
    ]
    compared = [row for row in times if row["ratio_iterations"] is not None]
    if any(row["ratio_seconds"] is None for row in compared):
        said.append(
            "CPU seconds are omitted where runs were made on several kinds of device, or where they were not measured."
        )
    if any(row["ratio_FLOP"] is None for row in compared):
        said.append("FLOP are omitted where they were not counted.")
    return said
