# SPDX-License-Identifier: Apache-2.0
"""One question, one table: the studies of a suite, each made from the grids that name it.

A study is a section of `tables.studies` (question, kind, baseline, margin). Every kind is a function from results to
rows, sentences and what is drawn; all sentences are written from the numbers. To add a kind, add it to KINDS.
Comparisons are paired by seed within a data setting and a method; the tests of one table are one family (Holm).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev

from eldistill import diagnostics, inference, plots, variance
from eldistill.files import Problem, write_rows, write_text
from eldistill.results import Result, arms_of, check, identity, load, named, short

VERSION = 1


@dataclass(frozen=True)
class Study:
    """What a kind of study sees: its results, its section of params.yaml with `confidence`, `tuning` and `beds`, and the
    training log of each run, {run: rows}. beds: {data setting: [what it shows, the feature space that ranks it]}."""

    results: list[Result]
    params: dict
    logs: dict[str, list[dict[str, str]]]
    root: Path = Path()

    def metric(
        self, result: Result, metric: str = "fd", space: str | None = None, part: str = "heldout"
    ) -> float | None:
        """One number of a run; None if it was not measured."""
        name = named(result.metrics, metric, space or self.primary(result), part)
        return None if name is None else result.metrics[name]

    def primary(self, result: Result) -> str:
        """The feature space that ranks a run."""
        return self.params["beds"][result.arm[0]][1]

    def spaces(self) -> list[str]:
        """The feature spaces that every run has, those that rank first."""
        found = (re.fullmatch(r"fd\d+k?_(.+)_heldout", name) for name in self.results[0].metrics)
        every = dict.fromkeys([*map(self.primary, self.results), *(match[1] for match in found if match)])
        return [
            space for space in every if all(self.metric(result, space=space) is not None for result in self.results)
        ]

    def curve(self, result: Result) -> list[tuple[int, float]]:
        """(iteration, distance that ranks) along a run."""
        column = named(result.curve[0], "fd", self.primary(result), "heldout")
        return [(result.iteration(point), float(point[column])) for point in result.curve]

    def split(self) -> list[tuple[str, Study]]:
        """A study of each bed: data settings that show the same images."""
        beds: dict[str, list[Result]] = {}
        for result in self.results:
            beds.setdefault(self.params["beds"][result.arm[0]][0], []).append(result)
        return [(name, Study(results, self.params, self.logs, self.root)) for name, results in beds.items()]

    def logged(self, result: Result, number: str, of: str | None = None) -> list[float]:
        """A logged number of the run's own supplement, or of `of`, tick by tick in the second half of the run."""
        rows = self.logs[result.run]
        ending = f".{number}" if of is None else f"{of}.{number}"
        names = [name for name in rows[0] if name.endswith(ending)] if rows else []
        values = [float(row[names[0]]) for row in rows if row.get(names[0])] if names else []
        return values[len(values) // 2 :]


def _twins(study: Study, group: list[Result], arms: dict) -> list[tuple[Result, Result]]:
    # (run, the baseline's run of the same data, method and seed); none for the baseline itself.
    data, method, supplement = group[0].arm
    against = study.params["against"]
    if supplement == against:
        return []
    bases = {base.seed: base for base in arms.get((data, method, against), ())}
    return [(result, bases[result.seed]) for result in group if result.seed in bases]


def _compared(values: list[float], bases: list[float], confidence: float, unit: float | None = None) -> dict:
    # unit: what 100 percent are, if not the mean of the bases.
    deltas = [a - b for a, b in zip(values, bases, strict=True)]
    low, high = inference.interval(deltas, confidence)
    return {
        "pairs": len(deltas) or None, "difference": fmean(deltas) if deltas else None, "low": low, "high": high,
        "percent": 100 * fmean(deltas) / (unit or fmean(bases)) if deltas else None,
        "p": inference.paired_p(deltas), "lower_in": f"{sum(d < 0 for d in deltas)}/{len(deltas)}" if deltas else None,
    }  # fmt: skip


def _spread(values: list[float], stem: str) -> dict:
    return {f"{stem}_mean": fmean(values) if values else None, f"{stem}_sd": stdev(values) if len(values) > 1 else None}


# --- kinds ----------------------------------------------------------------------------------------------


def contrast(study: Study) -> tuple[list[dict], list[str]]:
    """Every arm against the baseline of its data setting and method: distances, recall, realised strength, cost."""
    arms, rows = arms_of(study.results), []
    for group in arms.values():
        twins = _twins(study, group, arms)
        row = identity(group) | _spread([study.metric(r) for r in group], "fd")
        row |= _compared(
            [study.metric(a) for a, _ in twins], [study.metric(b) for _, b in twins], study.params["confidence"]
        )
        row["p_holm"] = None
        train = _compared(*([study.metric(r, part="train") for r in side] for side in (zip(*twins, strict=True) if twins else ((), ()))),
                          study.params["confidence"])  # fmt: skip
        row |= _spread([study.metric(r, part="train") for r in group], "fd_train")
        row |= {f"train_{key}": train[key] for key in ("difference", "low", "high")}
        for space in study.spaces()[1:]:
            row |= _spread([study.metric(r, space=space) for r in group], f"fd_{space}")
        for metric in ("kid", "precision", "recall"):
            row |= _spread([study.metric(r, metric) for r in group], metric)
        row |= _realised(study, group)
        row["step_ms_cpu"] = median(r.about["milliseconds_per_iteration_cpu"] for r in group)
        rows.append(row | {"runs": " ".join(r.run for r in group)})
    for row, p in zip(rows, inference.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows, [text for row in rows if (text := _verdict(row, study.params))]


def _realised(study: Study, group: list[Result]) -> dict:
    # What the weight came to, and the ratio of the two gradients where they met, in the second half of training.
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
    span = f"{short(row['difference'])} [{short(row['low'])}, {short(row['high'])}], {row['percent']:+.1f} %"
    tail = f"p = {short(row['p'])}, Holm {short(row['p_holm'])}, {row['pairs']} pairs, lower in {row['lower_in']}"
    if row["p_holm"] < 1 - params["confidence"]:
        return f"{who}: {what} is {'lower' if row['difference'] < 0 else 'higher'} than {against}'s: {span} ({tail})."
    return f"{who}: {what} is not distinguishable from {against}'s: {span} ({tail})."


def central(study: Study) -> tuple[list[dict], list[str]]:
    """Each arm against the baseline, with an equivalence margin fixed beforehand: lower, higher, equivalent or
    undecided. The answers are one row for each arm and bed, in the space that ranks it, over all its teachers; their p
    are one family (Holm). The other rows explore and are not corrected."""
    answers, pooled, rows, level = [], [], [], 1 - study.params["confidence"]
    for name, bed in study.split():
        whole, more = _pooled(name, bed), _settings(bed)
        first = bed.primary(bed.results[0])
        answers += whole or [row for row in more if row["space"] == first and row.get("p") is not None]
        pooled, rows = pooled + whole, rows + more
    for row, p in zip(answers, inference.holm([row["p"] for row in answers]), strict=True):
        row["p_holm"] = p
        row["verdict"] = _decide(row, level)
    rows = pooled + rows
    blank = dict.fromkeys(key for row in rows for key in row)
    return [blank | row for row in rows], [_central_sentence(row, study.params) for row in rows if row.get("verdict")]


def _settings(study: Study) -> list[dict]:
    arms, rows = arms_of(study.results), []
    level, margin = 1 - study.params["confidence"], study.params["margin"]
    for space in study.spaces():
        for group in arms.values():
            values = [study.metric(r, space=space) for r in group]
            row = identity(group) | {"space": space} | _spread(values, "fd")
            twins = _twins(study, group, arms)
            if twins:
                ours, theirs = ([study.metric(r, space=space) for r in side] for side in zip(*twins, strict=True))
                row |= _compared(ours, theirs, study.params["confidence"])
                deltas, bound = [a - b for a, b in zip(ours, theirs, strict=True)], margin * fmean(theirs)
                row |= {"margin": bound, "p_equivalent": inference.equivalence_p(deltas, bound)}
                row["seeds_needed"] = inference.seeds_for_equivalence(deltas, bound, level) if len(deltas) > 1 else None
                row["verdict"] = _decide(row, level)
            rows.append(row | {"runs": " ".join(r.run for r in group)})
    return rows


def _pooled(name: str, study: Study) -> list[dict]:
    """Each arm over all settings of a bed, in percent of each setting's own baseline: the unit is a training seed, whose
    differences under all teachers are averaged, for they share images, noise and judge. None if there is but one setting,
    whose own row then answers."""
    rows, arms, level = [], arms_of(study.results), 1 - study.params["confidence"]
    for method, supplement in dict.fromkeys(arm[1:] for arm in arms):
        by_seed: dict[int, list[float]] = {}
        means = []
        for group in (group for arm, group in arms.items() if arm[1:] == (method, supplement)):
            twins = _twins(study, group, arms)
            base = fmean(study.metric(b) for _, b in twins) if twins else 1.0
            shares = {a.seed: 100 * (study.metric(a) - study.metric(b)) / base for a, b in twins}
            for seed, share in shares.items():
                by_seed.setdefault(seed, []).append(share)
            means += [fmean(shares.values())] if shares else []
        deltas = [fmean(each) for each in by_seed.values()]
        if len(means) < 2 or len(deltas) < 2:
            continue
        bound = 100 * study.params["margin"]
        row = {
            "data": f"{name}, {len(means)} teachers",
            "method": method,
            "supplement": supplement,
            "seeds": len(deltas),
            "space": study.primary(study.results[0]),
        }
        row |= _compared(deltas, [0.0] * len(deltas), study.params["confidence"], 100.0)
        row |= {"margin": bound, "p_equivalent": inference.equivalence_p(deltas, bound),
                "seeds_needed": inference.seeds_for_equivalence(deltas, bound, level),
                "between_settings_sd": stdev(means)}  # fmt: skip
        rows.append(row)
    return rows


def _decide(row: dict, level: float) -> str:
    if row["p"] is None:
        return "undecided"
    if row["p_equivalent"] < level:
        return "equivalent"
    p = row["p"] if row.get("p_holm") is None else row["p_holm"]
    return ("lower" if row["difference"] < 0 else "higher") if p < level else "undecided"


def _central_sentence(row: dict, params: dict) -> str:
    who = f"{row['data']}, {row['method']}/{row['supplement']} in {row['space']}"
    if row["low"] is None:
        return f"{who}: one paired seed, {short(row['difference'])} from {params['against']}: no conclusion."
    span = f"{short(row['difference'])} [{short(row['low'])}, {short(row['high'])}], {row['percent']:+.1f} % of {params['against']}"
    within = f"±{100 * params['margin']:g} %"
    tests = (
        f"p = {short(row['p'])}{'' if row.get('p_holm') is None else ', Holm ' + short(row['p_holm'])}; "
        f"equivalence within {within}: p = {short(row['p_equivalent'])}; {row['pairs']} pairs"
    )
    text = {
        "equivalent": f"equivalent to {params['against']} within the margin",
        "lower": f"lower than {params['against']}, and not shown equivalent",
        "higher": f"higher than {params['against']}, and not shown equivalent",
        "undecided": f"undecided against {params['against']}; were they equal, about {row['seeds_needed']} pairs would show it",
    }[row["verdict"]]
    return f"{who}: {text}: {span} ({tests})."


def seeds(study: Study) -> tuple[list[dict], list[str]]:
    """Supplements called NAME-e0, NAME-e1, … differ in the ensemble's seed alone: variance by training seed and by
    ensemble seed, from the full table of both."""
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
        parts = inference.components([[cells[t, e] for e in ensemble] for t in training])
        names = ("training", "ensemble", "rest")
        total = sum(max(part, 0.0) for part in parts)
        row = {
            "data": data,
            "method": method,
            "supplement": stem,
            "training_seeds": len(training),
            "ensemble_seeds": len(ensemble),
        }
        row |= _spread(list(cells.values()), "fd") | {
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


def speed(study: Study) -> tuple[list[dict], list[str]]:
    """Time to a threshold fixed on the tuning seeds: the mean of the baseline's last five points; reached where three
    points in a row lie below it. Medians by Kaplan and Meier: runs that never reach it are kept as censored."""
    arms, rows, said = arms_of(study.results), [], []
    tuning, against = set(study.params["tuning"]), study.params["against"]
    for (data, method, supplement), group in arms.items():
        base = [r for r in arms.get((data, method, against), ()) if r.seed in tuning]
        group = [r for r in group if r.seed not in tuning]
        if not base or not group:
            continue
        threshold = fmean(value for r in base for _, value in study.curve(r)[-5:])
        times = [_first(study.curve(r), threshold) for r in group]
        cost = median(r.about["milliseconds_per_iteration_cpu"] for r in group) / 1000
        middle = inference.median_time(times)
        row = {"data": data, "method": method, "supplement": supplement, "seeds": len(group), "threshold": threshold}
        row |= {
            "iterations": middle,
            "never": sum(censored for _, censored in times),
            "cpu_seconds": middle and middle * cost,
        }
        rows.append(row | _spread([study.metric(r) for r in group], "fd") | {"runs": " ".join(r.run for r in group)})
    for row in rows:
        base = next(
            (r for r in rows if (r["data"], r["method"], r["supplement"]) == (row["data"], row["method"], against)),
            None,
        )
        both = base and base["iterations"] and row["iterations"]
        row["saved_iterations_percent"] = 100 - 100 * row["iterations"] / base["iterations"] if both else None
        row["saved_seconds_percent"] = 100 - 100 * row["cpu_seconds"] / base["cpu_seconds"] if both else None
        who = f"{row['data']}, {row['method']}/{row['supplement']}"
        if row["iterations"] is None:
            said.append(f"{who}: more than half of its {row['seeds']} runs never stay below {short(row['threshold'])}.")
        elif row["supplement"] != against:
            shares = [row[f"saved_{what}_percent"] for what in ("iterations", "seconds")]
            saved = ""
            if both:
                less = [f"{abs(share):.0f} % {'less' if share >= 0 else 'more'}" for share in shares]
                saved = f"; iterations: {less[0]} than {against}, CPU time: {less[1]}"
            said.append(f"{who}: below {short(row['threshold'])} after {row['iterations']:.0f} iterations (median of {row['seeds']}, "
                        f"{row['never']} never){saved}.")  # fmt: skip
    return rows, said


def _first(curve: list[tuple[int, float]], threshold: float) -> tuple[float, bool]:
    for place in range(len(curve) - 2):
        if all(value <= threshold for _, value in curve[place : place + 3]):
            return curve[place][0], False
    return curve[-1][0], True


def budget(study: Study) -> tuple[list[dict], list[str]]:
    """Every arm against the baseline at equal iterations (and images: the batch is the same), equal CPU seconds and equal
    FLOP: curves, interpolated where the dearer of the two has spent what the other has at its end."""
    arms, rows = arms_of(study.results), []
    for group in arms.values():
        for kind, cost_of in COSTS.items():
            if any(cost_of(result) is None for result in study.results):
                continue
            twins = _twins(study, group, arms)
            if not twins:
                continue
            ours, theirs = [], []
            # One price for an arm: that of a single run depends on what else the machine was doing.
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
            row = identity(group) | {"equal": kind} | _spread(ours, "fd") | _spread(theirs, "baseline")
            rows.append(
                row | _compared(ours, theirs, study.params["confidence"]) | {"runs": " ".join(r.run for r in group)}
            )
    for row, p in zip(rows, inference.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows, [
        text for row in rows if (text := _verdict(row, study.params, f"at equal {row['equal']} the distance"))
    ]


COSTS: dict[str, Callable[[Result], float | None]] = {  # of an iteration
    "iterations": lambda result: 1.0,
    "seconds": lambda result: result.about["milliseconds_per_iteration_cpu"] / 1000,
    "FLOP": lambda result: result.about.get("flop_per_iteration"),
}


def _at(curve: list[tuple[float, float]], time: float) -> float:
    for (before, low), (after, high) in zip(curve, curve[1:], strict=False):
        if before <= time <= after:
            return low + (high - low) * (time - before) / (after - before)
    return curve[-1][1]


KINDS: dict[str, Callable[[Study], tuple[list[dict], list[str]]]] = {
    "contrast": contrast, "central": central, "seeds": seeds, "speed": speed, "budget": budget,
    "stability": diagnostics.stability, "signal": diagnostics.signal,
    "variance": variance.variance,
}  # fmt: skip
CURVED = ("speed", "budget", "stability")  # kinds that read curves

# --- the step -------------------------------------------------------------------------------------------

# Columns of the Markdown table, of those that a kind has: (title, how to show it).
SHOWN: list[tuple[str, Callable[[dict], str | None]]] = [
    ("data, method/supplement", lambda row: f"{row['data']}, {row['method']}/{row['supplement']}"),
    ("space", lambda row: row.get("space")),
    ("gradient", lambda row: row.get("gradient")),
    ("at equal", lambda row: row.get("equal")),
    ("seeds", lambda row: _text(row.get("seeds"))),
    ("fd held-out", lambda row: _pm(row, "fd")),
    ("minus baseline", lambda row: _span(row)),
    ("%", lambda row: None if row.get("percent") is None else f"{row['percent']:+.1f}"),
    ("p (Holm)", lambda row: _text(row.get("p_holm"))),
    ("p equivalent", lambda row: _text(row.get("p_equivalent"))),
    ("verdict", lambda row: row.get("verdict")),
    ("fd train", lambda row: _pm(row, "fd_train")),
    ("minus baseline, train", lambda row: _span(row, "train_difference", "train_low", "train_high")),
    ("fd judge-b", lambda row: _pm(row, "fd_judge-b")),
    ("fd pixels", lambda row: _pm(row, "fd_pixels")),
    ("recall", lambda row: _pm(row, "recall")),
    ("batch", lambda row: _text(row.get("batch"))),
    ("weight", lambda row: _text(row.get("weight"))),
    ("gradient ratio", lambda row: _text(row.get("gradient_ratio"))),
    ("least trace ratio", lambda row: _text(row.get("trace_ratio_min"))),
    *(
        (f"noise over signal, batch {batch}", lambda row, batch=batch: _text(row.get(f"noise_{batch}")))
        for batch in variance.REPEATS
    ),
    ("floor, % of the variance at the smallest", lambda row: _span(row, "share", "share_low", "share_high")),
    ("signal over noise", lambda row: _text(row.get("snr"))),
    ("cosine", lambda row: _text(row.get("cosine"))),
    ("least-variance share", lambda row: _text(row.get("optimal"))),
    ("trace ratio", lambda row: _text(row.get("trace_ratio"))),
    ("no better than the start", lambda row: _text(row.get("diverged"))),
    ("trace ratio below 0.5", lambda row: _text(row.get("collapsed"))),
    ("% of ticks with a spike", lambda row: _text(row.get("spikes_percent"))),
    ("% lost after the best point", lambda row: _text(row.get("lost_percent"))),
    ("CPU ms an iteration", lambda row: _text(row.get("step_ms_cpu"))),
    ("iterations to threshold", lambda row: _text(row.get("iterations"))),
    ("never", lambda row: _text(row.get("never"))),
    ("% iterations saved", lambda row: _text(row.get("saved_iterations_percent"))),
    ("% CPU time saved", lambda row: _text(row.get("saved_seconds_percent"))),
    ("variance: training seed", lambda row: _text(row.get("variance_training"))),
    ("ensemble seed", lambda row: _text(row.get("variance_ensemble"))),
    ("rest", lambda row: _text(row.get("variance_rest"))),
]


def _text(value) -> str | None:
    return None if value is None else str(value) if isinstance(value, int | str) else short(value)


def _pm(row: dict, stem: str) -> str | None:
    mean, sd = row.get(f"{stem}_mean"), row.get(f"{stem}_sd")
    return None if mean is None else short(mean) + (f" ± {short(sd)}" if sd is not None else "")


def _span(row: dict, *keys: str) -> str | None:
    delta, low, high = (row.get(key) for key in keys or ("difference", "low", "high"))
    return None if delta is None else short(delta) + ("" if low is None else f" [{short(low)}, {short(high)}]")


def markdown(name: str, params: dict, rows: list[dict], said: list[str], metric: str) -> str:
    """The page of a study: its question, its table, one sentence for each comparison."""
    table = [[show(row) for row in rows] for _, show in SHOWN]
    kept = [(title, cells) for (title, _), cells in zip(SHOWN, table, strict=True) if any(cell for cell in cells)]
    lines = [[title for title, _ in kept], ["---", *["---:"] * (len(kept) - 1)]]
    lines += [[cells[i] or "" for _, cells in kept] for i in range(len(rows))]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    tested = [row for row in rows if row.get("p") is not None]
    corrected = sum(row.get("p_holm") is not None for row in tested)
    family = "no correction for the number of comparisons"
    if corrected:
        family = "Holm's correction over this table"
    if 0 < corrected < len(tested):
        family = "Holm's correction over the rows that have one, which answer; the others explore"
    note = (
        f"Ranked by {metric}, lower is better; baseline `{params['against']}`, paired by seed; mean ± sd, "
        f"{100 * params['confidence']:g} % t-intervals; {family}. "
    )
    # Kinds that rank nothing need no such words.
    note = (note if any("fd_mean" in row for row in rows) else "") + f"All digits and runs: {name}.csv."
    return f"# {params['question']}\n\n{text}\n\n" + "\n".join(f"- {each}" for each in said) + f"\n\n{note}\n"


def make(name: str, params: dict, root: Path, outputs: list[Path]) -> None:
    """Write the study's csv, md and png (outputs, in this order). params: the section with beds, confidence, tuning
    and runs. Reads data/evaluations and data/runs under root. Raises Problem for a missing or damaged input."""
    results = [load(run, root) for run in params["runs"]]
    for space in dict.fromkeys(primary for _, primary in params["beds"].values()):
        ranked = [result for result in results if params["beds"][result.arm[0]][1] == space]
        check(ranked, space, curves=params["kind"] in CURVED)
    study = Study(results, params, {r.run: _log(root / f"data/runs/{r.run}/log.csv") for r in results}, root)
    rows, said = KINDS[params["kind"]](study)
    if not rows:
        raise Problem(f"the study {name} has nothing to compare; see its grids under `suites` in params.yaml")
    table, text, picture = outputs
    write_rows(table, [dict.fromkeys(key for row in rows for key in row) | row for row in rows])
    write_text(text, markdown(name, params, rows, said, _ranking(study)))
    plots.draw_study(picture, rows, params)


def _ranking(study: Study) -> str:
    # The metric that ranks, or one for each bed.
    found = {
        bed: named(each.results[0].metrics, "fd", each.primary(each.results[0]), "heldout")
        for bed, each in study.split()
    }
    if len(set(found.values())) == 1:
        return f"`{next(iter(found.values()))}`"
    return ", ".join(f"`{metric}` ({bed})" for bed, metric in found.items())


def _log(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise Problem(f"{path} cannot be read ({error}); make the run again") from None
