# SPDX-License-Identifier: Apache-2.0
"""Makes the tables of a suite from the metrics of its runs. Only arithmetic on files: equal input gives equal bytes.

The unit of evidence is a training seed: intervals are Student's t over differences paired by seed, because
variation between seeds dominates the noise of sampling images, and the noise of the reference images is common
to all arms and cancels. A metric is found by its parts, `<metric><n>_<space>_<part>`, whatever n is; the exact
names stand in the tables. An empty cell: the number cannot be known (one seed, or no baseline). Runs are paired and
pooled only within a data setting and a method.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import fmean, median, stdev

from eldistill.errors import Problem
from eldistill.evaluate.metrics import ALONE, LABELLED
from eldistill.files import write_rows, write_text
from eldistill.tables import curves, grids, published, typeset
from eldistill.tables.inference import holm, interval, median_time, paired_p
from eldistill.tables.results import (
    ABOUT,
    NAME,
    PARTS,
    REFERENCE_RUNS,
    TEACHER,
    Result,
    arms_of,
    check_results,
    ended_no_better,
    load_result,
    named,
    named_without_part,
    one_device,
    protocols,
    read_metrics,
)

RECIPE = ("tables", 2)  # pairs within a data setting; no saving of one seed or of a flat baseline; columns for plots

# --- statistics ---------------------------------------------------------------------------------------


def time_to_baseline(result: Result, base: Result, primary: str, part: str) -> tuple[int, bool]:
    """(iteration, censored): the first point of the curve at or below the last one of the baseline's curve.

    No interpolation: the resolution is that of the snapshots, and a noisy curve crosses a little early.
    Censored: never reached, and the iteration is the last one known. Both curves have the same n.
    """
    goal, curve = base.distances(primary, part)[-1][1], result.distances(primary, part)
    for iteration, distance in curve:
        if distance <= goal:
            return iteration, False
    return curve[-1][0], True


def no_goal(bases: list[Result], params: dict, part: str) -> str | None:
    """Why the last distance of these runs of the baseline is no goal for the time to it; None where it is one.

    A run that ended no better than it began is met by every other one before any training.
    """
    ended = [ended_no_better(base.distances(params["primary"], part)) for base in bases]
    if None in ended:
        return f"the curve of {params['baseline']} has one point"
    runs = f"{len(ended)} run{'s' if len(ended) > 1 else ''}"
    return f"{params['baseline']} ended no better than it began in {sum(ended)} of {runs}" if any(ended) else None


def median_or_bound(times: list[tuple[int, bool]]) -> tuple[float, bool]:
    """Kaplan–Meier median of (time, censored); where it is not reached the last time known, and True: a lower bound."""
    found = median_time(times)
    return (max(time for time, _ in times), True) if found is None else (found, False)


def _bounded(value: float, censored: bool, sign: str = ">"):
    value = int(value) if value == int(value) else value
    return f"{sign} {value}" if censored else value


# --- rows ---------------------------------------------------------------------------------------------


def spaces(results: list[Result], primary: str) -> list[str]:
    """All feature spaces, the primary one first."""
    matches = (NAME.fullmatch(name) for result in results for name in result.metrics)
    return list(dict.fromkeys([primary, *(match["space"] for match in matches if match)]))


def columns(results: list[Result], primary: str) -> list[tuple[str, str, str]]:
    """(metric, space, part) of the columns of the main table; the first is the one that ranks."""
    others = [("fd", space, "heldout") for space in spaces(results, primary)[1:]]
    return [("fd", primary, "heldout"), ("fd", primary, "train"), *others,
            *((metric, primary, "heldout") for metric in ("kid", "precision", "recall", "density", "coverage", "fdj", "fdse"))]  # fmt: skip


def _twins(results: list[Result], arms: dict, baseline: str) -> list[tuple[Result, Result]]:
    # (run, baseline's run of the same data, method and seed)
    data, method, _ = results[0].arm
    bases = {base.seed: base for base in arms.get((data, method, baseline), ())}
    return [(result, bases[result.seed]) for result in results if result.seed in bases]


def _identity(result: Result) -> dict:
    return dict(zip(("data", "method", "supplement"), result.arm, strict=True)) | {"seed": result.seed}


def run_rows(results: list[Result], params: dict) -> list[dict]:
    """runs.csv: one row a run: every metric, the cost, the crossings, and where each number comes from."""
    arms, names, rows = arms_of(results), dict.fromkeys(n for result in results for n in result.metrics), []
    for result in results:
        row = _identity(result) | {name: result.metrics.get(name) for name in names}
        row |= {key: result.about[key] for key in ABOUT[:4]}
        twins = _twins([result], arms, params["baseline"])
        for part in PARTS:
            row[f"iterations_to_baseline_{part}"] = None
            if twins:
                reason = no_goal([twins[0][1]], params, part)
                row[f"iterations_to_baseline_{part}"] = reason or _bounded(
                    *time_to_baseline(*twins[0], params["primary"], part)
                )
        row["metrics_file"] = f"data/evaluations/{result.run}/metrics.json"
        row["recipe"] = result.about["recipe"][:12]
        row |= {key: result.about.get(key) for key in ("git_commit", "git_dirty", "command", "device")}
        rows.append(row)
    return rows


def curve_rows(results: list[Result], primary: str) -> list[dict]:
    """curves.csv: one row a snapshot, for `dvc plots`.

    The columns that dvc.yaml names depend neither on evaluate.curve_n nor on the feature spaces: fd_heldout and fd_train are
    the distances in the space that ranks, fd_last_heldout that in the last space which the curves follow (pixels, as
    shipped). They repeat the columns with exact names.
    """
    names = dict.fromkeys(name for result in results for name in result.curve[0] if name != "n_images")
    rows = []
    for result in results:
        last = [m["space"] for name in result.curve[0] if (m := NAME.fullmatch(name)) and m["metric"] == "fd"][-1]
        plotted = {
            "fd_heldout": (primary, "heldout"),
            "fd_train": (primary, "train"),
            "fd_last_heldout": (last, "heldout"),
        }
        columns = {column: named(result.curve[0], "fd", *place) for column, place in plotted.items()}
        for point in result.curve:
            row = _identity(result) | {"n_images": point["n_images"], "iteration": result.iteration(point)}
            row |= {column: point[name] for column, name in columns.items()}
            rows.append(row | {name: point.get(name) for name in names})
    return rows


def _difference(twins: list[tuple[Result, Result]], params: dict, part: str, space: str) -> dict:
    # The paired difference of a distance; empty without twins.
    stem, row = f"fd_{space}_{part}", {}
    name = named(twins[0][0].metrics, "fd", space, part) if twins else None
    pairs = [(result.metrics[name], base.metrics[name]) for result, base in twins]
    deltas = [a - b for a, b in pairs]
    row[f"{stem}_difference"] = fmean(deltas) if deltas else None
    row[f"{stem}_difference_low"], row[f"{stem}_difference_high"] = interval(deltas, params["confidence"])
    row[f"{stem}_p"], row[f"{stem}_p_holm"] = paired_p(deltas), None
    row[f"{stem}_lower_in"] = f"{sum(delta < 0 for delta in deltas)}/{len(deltas)}" if deltas else None
    base = sum(b for _, b in pairs)
    row[f"{stem}_ratio"] = sum(a for a, _ in pairs) / base if base else None
    return row


def _speed(twins: list[tuple[Result, Result]], params: dict, part: str, against: bool) -> dict:
    # Iterations to the baseline's final value, and their saving; empty without twins. Where that value is no goal, why.
    row = dict.fromkeys((f"iterations_to_baseline_{part}", f"saving_percent_{part}"))
    reason = no_goal([base for _, base in twins], params, part)
    if twins and reason:
        row[f"iterations_to_baseline_{part}"] = reason
    elif twins:
        here = median_or_bound([time_to_baseline(result, base, params["primary"], part) for result, base in twins])
        there = median_or_bound([time_to_baseline(base, base, params["primary"], part) for _, base in twins])
        row[f"iterations_to_baseline_{part}"] = _bounded(*here)
        if against and len(twins) > 1:
            row[f"saving_percent_{part}"] = _bounded(100 - 100 * here[0] / there[0], here[1], "<")
    return row


def group_row(results: list[Result], arms: dict, params: dict, wanted: list) -> dict:
    """One row of main.csv: mean and deviation over seeds, and the comparison with the baseline.

    saving_percent: 100 (1 - iterations / the baseline's own first crossing of its final value), medians over
    paired seeds: a baseline that was there before its end gets credit for it. `> N` iterations, `< x` percent:
    not reached by N. Of a single seed there is no saving, for nothing says how far another would be from it.
    overhead_percent: of CPU time an iteration, medians over paired seeds; empty where their devices differ.
    """
    data, method, supplement = results[0].arm
    row = {"data": data, "method": method, "supplement": supplement, "seeds": len(results)}
    row |= {f"metric_{p}": named(results[0].metrics, "fd", params["primary"], p) for p in PARTS}
    for want in wanted:
        name, stem = named(results[0].metrics, *want), "_".join(want)
        values = [result.metrics[name] for result in results] if name else []
        row[f"{stem}_mean"] = fmean(values) if values else None
        row[f"{stem}_sd"] = stdev(values) if len(values) > 1 else None
    for metric in _without_part(arms, params["primary"]):
        name = named_without_part(results[0].metrics, metric, params["primary"])
        values = [result.metrics[name] for result in results] if name else []
        row[f"{metric}_{params['primary']}_mean"] = fmean(values) if values else None
    other_spaces = spaces(results, params["primary"])[1:]
    row |= {f"metric_{space}_heldout": named(results[0].metrics, "fd", space, "heldout") for space in other_spaces}
    for name in protocols(results[0].metrics):
        row[f"{name}_mean"] = fmean(result.metrics[name] for result in results)
    twins, against = _twins(results, arms, params["baseline"]), supplement != params["baseline"]
    others, key = twins if against else [], "milliseconds_per_iteration_cpu"
    for part in PARTS:
        row |= _difference(others, params, part, params["primary"])
    for space in other_spaces:
        row |= _difference(others, params, "heldout", space)
    row["paired_seeds"] = len(others) or None
    for part in PARTS:
        row |= _speed(twins, params, part, against)
    row["step_ms_cpu"] = median(result.about[key] for result in results)
    mine, theirs = (median(pair[i].about[key] for pair in others) if others else None for i in (0, 1))
    same = one_device([result for pair in others for result in pair])
    row["overhead_percent"] = 100 * mine / theirs - 100 if theirs and same else None
    return row | {"runs": " ".join(result.run for result in results)}


def fill_in_holm(rows: list[dict]) -> None:
    """Fill in `…_p_holm`: Holm's correction over the rows of a data setting, for each feature space and part by itself."""
    for key in [key for key in rows[0] if key.endswith("_p_holm")] if rows else ():
        for row, p in zip(rows, holm([row[key.removesuffix("_holm")] for row in rows]), strict=True):
            row[key] = p


def contrasts(arms: dict, params: dict) -> dict[str, list[str]]:
    """Sentences on pairs of supplements of one data setting and method, none of them the baseline, by data setting: is
    one of them enough?"""
    found: dict[str, list[tuple[dict, str]]] = {}
    for (data, method, one), (*other_place, other) in itertools.combinations(arms, 2):
        if [data, method] != other_place or params["baseline"] in (one, other):
            continue
        twins = _twins(arms[data, method, one], arms, other)
        row = {"method": method, "supplement": one, "paired_seeds": len(twins)}
        for part in PARTS:
            row |= _difference(twins, params, part, params["primary"])
            row[f"metric_{part}"] = named(arms[data, method, one][0].metrics, "fd", params["primary"], part)
        found.setdefault(data, []).append((row, other))
    said: dict[str, list[str]] = {}
    for data, pairs in found.items():
        fill_in_holm([row for row, _ in pairs])
        texts = [typeset.sentence(row, part, {**params, "baseline": other}) for row, other in pairs for part in PARTS]
        said[data] = [text for text in texts if text]
    return said


def _without_part(arms: dict[tuple, list[Result]], primary: str) -> list[str]:
    # The metrics without a part: those of LABELLED where a run of the suite has them, so that other tables keep their columns.
    every = [result.metrics for group in arms.values() for result in group]
    return [
        *ALONE,
        *(metric for metric in LABELLED if any(named_without_part(each, metric, primary) for each in every)),
    ]


def main_rows(results: list[Result], params: dict, root: Path) -> list[dict]:
    """main.csv: for each data setting the noise floor, the teacher, then each arm, in the suite's order."""
    arms, wanted, rows = arms_of(results), columns(results, params["primary"]), []
    for data in dict.fromkeys(arm[0] for arm in arms):
        groups = [group_row(group, arms, params, wanted) for arm, group in arms.items() if arm[0] == data]
        fill_in_holm(groups)
        for which, label in REFERENCE_RUNS.items():
            found = read_metrics(root / f"data/evaluations/{data}/{which}/metrics.json")
            row = dict.fromkeys(groups[0]) | {"data": data, "method": label, "runs": f"{data}/{which}"}
            row |= {f"metric_{p}": named(found, "fd", params["primary"], p) for p in PARTS}
            if not (row["metric_heldout"] and row["metric_train"]):
                raise Problem(f"{data}/{which} has no fd of {params['primary']}; evaluate it again")
            row |= {"_".join((*want, "mean")): found.get(named(found, *want)) for want in wanted}
            for metric in _without_part(arms, params["primary"]):
                row[f"{metric}_{params['primary']}_mean"] = found.get(
                    named_without_part(found, metric, params["primary"])
                )
            rows.append(row | {f"{name}_mean": found[name] for name in protocols(found)})
        rows += groups
    return rows


def published_rows(rows: list[dict]) -> list[dict]:
    """published.csv: for each arm what its authors, and others, published, with the source, and our figure where one was
    measured in the same way, in as many calls, on the same data. No order but that of the arms: they were measured differently."""
    found: dict[tuple, dict] = {}
    for row in rows:
        if row["supplement"] is None and row["method"] != TEACHER:
            continue
        name = next(
            (key for key in row if key.startswith("fid") and key.endswith("ref_mean") and row[key] is not None), None
        )
        method = "teacher" if row["supplement"] is None else row["method"]
        data = row["data"] if row["data"] in published.SETS else ""
        for figure in published.figures_for(row["data"], method, row["supplement"] or "none"):
            each = {key: figure[key] for key in ("dataset", "conditional", "resolution")}
            ours = name if published.is_comparable(row["data"], method, figure) else None
            each |= {"data": data, "method": method, "supplement": row["supplement"], "published_as": figure["method"],
                     "published_fid": figure["fid"], "calls": figure["nfe"], "source": figure["source"],
                     "ours": row[ours] if ours else None, "ours_is": ours and ours.removesuffix("_mean"),
                     "ours_seeds": row["seeds"] if ours else None}  # fmt: skip
            found.setdefault(tuple(map(str, each.values())), each)
    return list(found.values())


# --- the step -----------------------------------------------------------------------------------------


def make_tables(params: dict, root: Path, outputs: list[Path]) -> None:
    """Write paths.TABLES but for the report; outputs are their paths.

    params: confidence, baseline (a supplement), grid (images in a row of a samples.png), primary (the feature space
    that ranks), runs. Reads data/evaluations and data/runs under root. Raises Problem for a missing or damaged input.
    """
    results = [load_result(run, root) for run in dict.fromkeys(params["runs"])]
    if not results:
        raise Problem("the suite has no runs; see `suites` in params.yaml")
    check_results(results, params["primary"])
    rows = main_rows(results, params, root)
    path = {output.name: output for output in outputs}
    write_rows(path["main.csv"], rows)
    suite, pairs = path["main.csv"].parent.name, contrasts(arms_of(results), params)
    wanted, others = columns(results, params["primary"]), published_rows(rows)
    write_text(path["main.md"], typeset.markdown(suite, rows, params, wanted, pairs, others))
    write_text(path["main.tex"], typeset.tex(rows, params, wanted))
    write_rows(
        path["published.csv"], others or [dict.fromkeys(("data", "method", "supplement", "published_fid", "source"))]
    )
    write_rows(path["runs.csv"], run_rows(results, params))
    write_rows(path["curves.csv"], curve_rows(results, params["primary"]))
    curves.draw_curves(path["curves.png"], results, rows, params)
    curves.draw_costs(path["costs.png"], results, params)
    curves.draw_radar(path["radar.png"], results, rows, params)
    grids.draw_samples(path["samples.png"], results, params, root)
