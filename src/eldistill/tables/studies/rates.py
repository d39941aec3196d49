# SPDX-License-Identifier: Apache-2.0
"""Learning rates in studies of the kind `speed`: the factor that each arm uses, and the factors at which trainings diverge.

An arm is a root method with a supplement in one data setting. Its runs differ in the factor on all learning rates of the root method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean, stdev

from eldistill.errors import Problem
from eldistill.tables.results import Result, ended_no_better, short
from eldistill.tables.studies.study import Study

COVERED_BY = "speed"

PERCENTS = (30, 50, 70, 100)  # default for `percents` and `pick`
Runs = dict[float, dict[int, Result]]  # {factor: {seed: run}}


@dataclass(frozen=True)
class Arm:
    """The runs of a root method with a supplement in one data setting: {factor on the learning rates: {seed: run}}."""

    data: str
    method: str  # the root method
    supplement: str
    tuning: Runs = field(default_factory=dict)  # runs on seeds that are only for tuning
    fresh: Runs = field(default_factory=dict)  # runs on the other seeds

    @property
    def key(self) -> tuple[str, str, str]:
        """(data, root method, supplement)."""
        return self.data, self.method, self.supplement

    @property
    def label(self) -> str:
        """The arm in a sentence."""
        return f"{self.data}, {self.method}/{self.supplement}"


@dataclass(frozen=True)
class Choice:
    """The factor on the learning rates of an arm. None: there is no such factor."""

    picked: float | None  # by the rule, on the tuning seeds
    reported: float | None  # the picked one, or the nearest to it on the fresh seeds
    scores: dict[float, float]  # {factor at which no tuning run diverged: mean log distance over seeds and percents}
    seeds: list[int]  # the tuning seeds of these means, which all factors have


def find_arms(study: Study) -> dict[tuple[str, str, str], Arm]:
    """The arms of a study by (data, root method, supplement), in the order of the runs.

    study.params["rates"] is {METHOD/SUPPLEMENT: [root method, factor]}, with DATA/ before it where data settings differ; without an
    entry a method is its own root, with factor 1.
    Raises Problem if two runs have the same arm, factor and seed."""
    rates, tuning = study.params.get("rates") or {}, set(study.params["tuning"])
    arms: dict[tuple[str, str, str], Arm] = {}
    for result in study.results:
        data, method, supplement = result.arm
        name = f"{method}/{supplement}"
        root, factor = rates.get(f"{data}/{name}") or rates.get(name, (method, 1))
        arm = arms.setdefault((data, root, supplement), Arm(data, root, supplement))
        runs = (arm.tuning if result.seed in tuning else arm.fresh).setdefault(float(factor), {})
        if other := runs.get(result.seed):
            raise Problem(f"{other.run} and {result.run} are both {root}/{supplement} at factor {factor:g} of the learning rates; "
                          "expected one run for each factor and seed: remove one of them from the grids of the study in "
                          "params.yaml")  # fmt: skip
        runs[result.seed] = result
    return arms


def log_curve(study: Study, result: Result) -> list[tuple[float, float]]:
    """The curve of a run as (iteration, log of the distance), each iteration once. Raises Problem for a distance of 0 or less."""
    curve = dict(study.curve(result))
    if odd := [time for time, value in curve.items() if value <= 0]:
        raise Problem(f"the curve of {result.run} has a distance of {curve[odd[0]]:g} in {study.primary(result)} at iteration {odd[0]}; "
                      "a study of the kind speed takes logarithms and expected values above 0: remove the run from the grids of the "
                      "study in params.yaml")  # fmt: skip
    return [(time, math.log(value)) for time, value in curve.items()]


def log_distance(study: Study, result: Result, percent: float) -> float:
    """The log distance at `percent` of a run, interpolated linearly between snapshots. Raises Problem outside of its curve."""
    curve, time = log_curve(study, result), result.about["iterations"] * percent / 100
    if not curve[0][0] <= time <= curve[-1][0]:
        raise Problem(f"the curve of {result.run} has snapshots from iteration {curve[0][0]:g} to {curve[-1][0]:g}, but the study "
                      f"needs its value at {percent:g} % of the run, iteration {time:g}; add 0 and 100 to distil.snapshots")  # fmt: skip
    return interpolate(curve, time)


def interpolate(curve: list[tuple[float, float]], time: float) -> float:
    """The value of a curve of (time, value) at a time within it, linearly between its points."""
    for (before, one), (after, other) in zip(curve, curve[1:], strict=False):
        if before <= time < after:
            between = one + (other - one) * (time - before) / (after - before)
            return min(max(between, min(one, other)), max(one, other))  # rounding must not put it beyond the two points
    return curve[-1][1]


def diverged(study: Study, arm: Arm, factor: float, result: Result) -> bool:
    """Whether a run of an arm at a factor diverged: its last distance is more than twice its lowest one, or it ended no better than
    it began, or its factor is larger than the best one of the arm and its last distance more than twice the mean one there. The best
    factor has the lowest mean of the last distances on the tuning seeds."""
    curve = study.curve(result)
    ends = {each: fmean(study.curve(run)[-1][1] for run in runs.values()) for each, runs in arm.tuning.items()}
    best = min(ends, key=lambda each: ends[each], default=factor)
    lowest = [value for _, value in curve] + ([ends[best]] if factor > best else [])
    return curve[-1][1] > 2 * min(lowest) or bool(ended_no_better(curve))


def choose(study: Study, arm: Arm) -> Choice:
    """The factor of an arm. Of the factors at which no tuning run diverged, it is the one with the lowest mean log distance over the
    tuning seeds that all factors of the arm have, and over study.params["pick"], in percent of the run.

    If the fresh seeds lack this factor, the nearest one (by its logarithm) is reported."""
    seeds = sorted(set.intersection(*map(set, arm.tuning.values()))) if arm.tuning else []
    percents = study.params.get("pick") or PERCENTS
    scores = {
        factor: fmean(log_distance(study, runs[seed], percent) for seed in seeds for percent in percents)
        for factor, runs in sorted(arm.tuning.items())
        if seeds and not any(diverged(study, arm, factor, result) for result in runs.values())
    }
    picked = min(scores, key=lambda factor: scores[factor]) if scores else None
    wanted = math.log(picked or 1)
    reported = min(sorted(arm.fresh), key=lambda factor: abs(math.log(factor) - wanted), default=None)
    return Choice(picked, reported, scores, seeds)


def rate_rows(study: Study, arm: Arm, choice: Choice) -> list[dict]:
    """One row for each factor of an arm on the tuning seeds: the distance at the end, how many runs diverged, and the rule's score."""
    rows = []
    for factor, runs in sorted(arm.tuning.items()):
        ends = [study.curve(runs[seed])[-1][1] for seed in sorted(runs)]
        rows.append({
            "part": "rate", "data": arm.data, "method": arm.method, "supplement": arm.supplement, "seeds": len(runs),
            "factor": factor, "chosen": "picked" if factor == choice.picked else None,
            "score": math.exp(choice.scores[factor]) if factor in choice.scores else None,
            "end_mean": fmean(ends), "end_sd": stdev(ends) if len(ends) > 1 else None, "ends": " ".join(map(str, ends)),
            "diverged_runs": sum(diverged(study, arm, factor, result) for result in runs.values()),
            "diverged_seeds": " ".join(str(seed) for seed in sorted(runs) if diverged(study, arm, factor, runs[seed])) or None,
            "runs": " ".join(runs[seed].run for seed in sorted(runs)),
        })  # fmt: skip
    return rows


def rate_sentences(study: Study, arm: Arm, choice: Choice) -> list[str]:
    """At which factors an arm trains, and which one it uses; also what is missing or diverged on the fresh seeds."""
    fresh = arm.fresh.get(choice.reported, {}).values()
    fallen = sum(diverged(study, arm, choice.reported or 1, result) for result in fresh)
    more = (
        [f"{arm.label}: {fallen} of {len(fresh)} fresh runs diverged at factor {choice.reported:g}."] if fallen else []
    )
    if not arm.tuning:
        at = "" if choice.reported is None else f"; the table reports factor {choice.reported:g}, which no rule picked"
        return [f"{arm.label}: no run on a tuning seed{at}.", *more]
    return [f"{arm.label}: {_range(study, arm)}. {_picked(arm, choice)}", *_missing(arm, choice), *more]


def _range(study: Study, arm: Arm) -> str:
    fallen = {
        factor: sum(diverged(study, arm, factor, result) for result in runs.values())
        for factor, runs in sorted(arm.tuning.items())
    }
    stable = [factor for factor, count in fallen.items() if not count]
    broken = [f"{count} of {len(arm.tuning[factor])} at {factor:g}" for factor, count in fallen.items() if count]
    tried = f"of {', '.join(f'{factor:g}' for factor in fallen)}; diverged: {', '.join(broken) or 'none'}"
    if not stable:
        return f"a tuning run diverged at every factor ({tried})"
    return f"the largest factor at which no tuning run diverged is {max(stable):g} ({tried})"


def _picked(arm: Arm, choice: Choice) -> str:
    if choice.picked is None:
        return "No factor is picked" + ("." if choice.seeds else ", because no tuning seed has runs at all factors.")
    tried = sorted(arm.tuning)
    edges = {
        tried[0]: ", the smallest one that was tried: a smaller one may be better",
        tried[-1]: ", the largest one that was tried: a larger one may be better",
    }
    edge = edges.get(choice.picked, "") if len(tried) > 1 else ", the only one that was tried"
    score = short(math.exp(choice.scores[choice.picked]))
    return (
        f"Factor {choice.picked:g} is picked{edge} (geometric mean distance {score}, {len(choice.seeds)} tuning seeds)."
    )


def _missing(arm: Arm, choice: Choice) -> list[str]:
    if choice.picked is None or choice.reported == choice.picked:
        return []
    there = ", ".join(f"{factor:g}" for factor in sorted(arm.fresh))
    there = (
        f"have runs at {there}, of which the table reports {choice.reported:g}" if there else "have no run of this arm"
    )
    return [f"{arm.label}: factor {choice.picked:g} was picked, but the fresh seeds {there}; set {choice.picked:g} for "
            f"{arm.supplement} under `rates` of the method {arm.method} in params.yaml, and make the study again."]  # fmt: skip
