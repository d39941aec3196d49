# SPDX-License-Identifier: Apache-2.0
"""The tables of a suite, computed from the metrics of its runs. Equal input gives equal bytes.

The unit is a training seed. Intervals are Student's t-intervals of differences paired by seed, because the variation between seeds
is larger than the noise from sampling images, and the noise of the real images is common to all arms and cancels. Runs are paired
and pooled only within a data setting and a method. A metric is found by its parts, `<metric><n>_<space>_<part>`, for any n; tables
contain the exact names. A cell is empty if its number cannot be computed (one seed, or no baseline).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import fmean, median, stdev

from eldistill.errors import Problem
from eldistill.evaluate.metrics import ALONE, LABELLED
from eldistill.files import write_rows, write_text
from eldistill.plan.kept import NO_LINES, Kept
from eldistill.tables import across, acrosstext, costs, curves, grids, latex, published, typeset
from eldistill.tables.inference import holm, interval, median_time, paired_p
from eldistill.tables.results import (
    NAME,
    PARTS,
    REAL,
    REFERENCE_RUNS,
    TEACHER,
    Result,
    arms_of,
    check_results,
    ended_no_better,
    load_result,
    measured,
    metrics_of,
    named,
    named_without_part,
    names_of_metrics,
    one_device,
    origin,
    protocols,
)
from eldistill.tables.studies.partial import count_runs

RECIPE = ("tables", 4)  # the mean of the baseline over the paired seeds; the Inception score of held-out images

# --- statistics ---------------------------------------------------------------------------------------


def time_to_baseline(result: Result, base: Result, primary: str, part: str) -> tuple[int, bool]:
    """(iteration, censored): the first point of a curve that is at or below the last point of the baseline's curve.

    Points are not interpolated, so that the resolution is that of the snapshots, and noise makes the crossing a little early. If no
    point is low enough, the time is censored and the iteration is the last one. Both curves use the same number of images.
    """
    goal, curve = base.distances(primary, part)[-1][1], result.distances(primary, part)
    for iteration, distance in curve:
        if distance <= goal:
            return iteration, False
    return curve[-1][0], True


def no_goal(bases: list[Result], params: dict, part: str) -> str | None:
    """The reason why the time to the last distance of these baseline runs has no meaning; None if it has one.

    If a baseline run ended no better than it began, every other run reaches its last distance before any training.
    """
    ended = [ended_no_better(base.distances(params["primary"], part)) for base in bases]
    if None in ended:
        return f"the curve of {params['baseline']} has one point"
    runs = f"{len(ended)} run{'s' if len(ended) > 1 else ''}"
    return f"{params['baseline']} ended no better than it began in {sum(ended)} of {runs}" if any(ended) else None


def median_or_bound(times: list[tuple[int, bool]]) -> tuple[float, bool]:
    """(Kaplan–Meier median of (time, censored), False), or (the last time, True) as a lower bound if there is no median."""
    found = median_time(times)
    return (max(time for time, _ in times), True) if found is None else (found, False)


def _bounded(value: float, censored: bool, sign: str = ">"):
    value = int(value) if value == int(value) else value
    return f"{sign} {value}" if censored else value


# --- rows ---------------------------------------------------------------------------------------------


def spaces(results: list[Result], primary: str) -> list[str]:
    """The names of all feature spaces, the primary one first."""
    matches = (NAME.fullmatch(name) for result in results for name in result.metrics)
    return list(dict.fromkeys([primary, *(match["space"] for match in matches if match)]))


def columns(results: list[Result], primary: str) -> list[tuple[str, str, str]]:
    """(metric, space, part) of the columns of the main table. The first one ranks the arms."""
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
    """The rows of runs.csv, one for each run: all metrics, its cost, the times to the baseline's value, and its origin."""
    arms, names, rows = arms_of(results), names_of_metrics(results), []
    for result in results:
        row, twins = measured(result, names), _twins([result], arms, params["baseline"])
        for part in PARTS:
            row[f"iterations_to_baseline_{part}"] = None
            if twins:
                reason = no_goal([twins[0][1]], params, part)
                reached = time_to_baseline(*twins[0], params["primary"], part)
                row[f"iterations_to_baseline_{part}"] = reason or _bounded(*reached)
        rows.append(row | origin(result))
    return rows


def curve_rows(results: list[Result], primary: str) -> list[dict]:
    """The rows of curves.csv, one for each snapshot, for `dvc plots`.

    dvc.yaml uses three columns whose names depend neither on evaluate.curve_n nor on the feature spaces: fd_heldout and fd_train are
    distances in the primary space, and fd_last_heldout is the distance in the last space of the curves (pixels by default). They
    repeat columns with exact names.
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
    # The paired difference of a distance; cells are None without pairs.
    stem, row = f"fd_{space}_{part}", {}
    name = named(twins[0][0].metrics, "fd", space, part) if twins else None
    pairs = [(result.metrics[name], base.metrics[name]) for result, base in twins]
    deltas = [a - b for a, b in pairs]
    row[f"{stem}_difference"] = fmean(deltas) if deltas else None
    row[f"{stem}_difference_low"], row[f"{stem}_difference_high"] = interval(deltas, params["confidence"])
    row[f"{stem}_p"], row[f"{stem}_p_holm"], row[f"{stem}_p_family"] = paired_p(deltas), None, None
    row[f"{stem}_lower_in"] = f"{sum(delta < 0 for delta in deltas)}/{len(deltas)}" if deltas else None
    base = sum(b for _, b in pairs)
    row[f"{stem}_ratio"] = sum(a for a, _ in pairs) / base if base else None
    row[f"{stem}_baseline"] = fmean(b for _, b in pairs) if pairs else None  # of the paired seeds, which may not be all
    return row


def _speed(twins: list[tuple[Result, Result]], params: dict, part: str, against: bool) -> dict:
    # Iterations to the baseline's final value and the percentage saved, None without pairs; or the reason why they have no meaning.
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
    """The row of an arm in main.csv: means and standard deviations over seeds, and the comparison with the baseline.

    saving_percent is 100 (1 - iterations / iterations of the baseline), with medians over paired seeds. The iterations of the baseline
    end at its first crossing of its final value, which may be before its end. `> N` iterations and `< x` percent mean that the value
    was not reached in N iterations. It is None for a single seed, which shows nothing about the variation. overhead_percent is the
    additional CPU time per iteration, with medians over paired seeds; None if the devices differ.
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
    """Fill in the columns `…_p_holm` and `…_p_family` of the rows of a data setting.

    Holm's correction is separate for each feature space and part; the family is the number of p-values that it counts."""
    for key in [key.removesuffix("_holm") for key in rows[0] if key.endswith("_p_holm")] if rows else ():
        found = [row[key] for row in rows]
        for row, p in zip(rows, holm(found), strict=True):
            row[f"{key}_holm"], row[f"{key}_family"] = p, None if p is None else sum(each is not None for each in found)


def contrasts(arms: dict, params: dict) -> dict[str, list[str]]:
    """Sentences that compare pairs of supplements without the baseline, {data setting: sentences}; pairs share data and method."""
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
    # The metrics without a part. Those of LABELLED are included only if a run of the suite has them.
    every = [result.metrics for group in arms.values() for result in group]
    return [
        *ALONE,
        *(metric for metric in LABELLED if any(named_without_part(each, metric, primary) for each in every)),
    ]


def main_rows(results: list[Result], params: dict, root: Path, lines: Mapping[str, Kept] = NO_LINES) -> list[dict]:
    """The rows of main.csv: for each data setting the noise floor, the teacher, and the arms in the order of the suite."""
    arms, wanted, rows = arms_of(results), columns(results, params["primary"]), []
    for data in dict.fromkeys(arm[0] for arm in arms):
        groups = [group_row(group, arms, params, wanted) for arm, group in arms.items() if arm[0] == data]
        fill_in_holm(groups)
        for which, label in REFERENCE_RUNS.items():
            found = metrics_of(f"{data}/{which}", root, lines)
            row = dict.fromkeys(groups[0]) | {"data": data, "method": label, "runs": f"{data}/{which}"}
            row |= {f"metric_{p}": named(found, "fd", params["primary"], p) for p in PARTS}
            if not (row["metric_heldout"] and row["metric_train"]):
                raise Problem(
                    f"{data}/{which} has no fd of {params['primary']}; run `python -m eldistill evaluate {data}/{which}`"
                )
            row |= {"_".join((*want, "mean")): found.get(named(found, *want)) for want in wanted}
            # Of real images those of the held-out ones count, which no judge was trained on: they are compared with the train images.
            count = (NAME.fullmatch(row["metric_train"])["n"],) if label == REAL else ()
            for metric in _without_part(arms, params["primary"]):
                name = named_without_part(found, metric, params["primary"], *count)
                row[f"{metric}_{params['primary']}_mean"] = found.get(name)
            rows.append(row | {f"{name}_mean": found[name] for name in protocols(found)})
        rows += groups
    return rows


def published_rows(rows: list[dict]) -> list[dict]:
    """The rows of published.csv: published results for each arm with their source, and our FID if it is comparable: measured in the
    same way, with the same number of calls, on the same data. They are in the order of the arms and not ranked."""
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
            each |= {"data": data, "method": method, "supplement": row["supplement"], "published_as": published.label(figure),
                     "published_fid": figure["fid"], "calls": figure["nfe"], "source": published.source_and_note(figure),
                     "ours": row[ours] if ours else None, "ours_is": ours and ours.removesuffix("_mean"),
                     "ours_seeds": row["seeds"] if ours else None}  # fmt: skip
            found.setdefault(tuple(map(str, each.values())), each)
    return list(found.values())


# --- the step -----------------------------------------------------------------------------------------


def make_tables(
    params: dict, root: Path, outputs: list[Path], lines: Mapping[str, Kept] = NO_LINES, absent: Collection[str] = ()
) -> typeset.Made:
    """Write all files of paths.TABLES except the report to the paths `outputs`, and return what the report is made from.

    params: confidence, baseline (a supplement), grid (images in a row of a samples.png), primary (the feature space that ranks), runs.
    root: folder with data/evaluations and data/runs. lines: {run: kept results} of runs that are not there. absent: paths of pictures
    that they lack. Raises Problem for a missing or damaged input.
    """
    results = [load_result(run, root, lines) for run in dict.fromkeys(params["runs"])]
    if not results:
        raise Problem("the suite has no runs; expected at least one: add a grid to it under `suites` in params.yaml")
    check_results(results, params["primary"])
    rows = main_rows(results, params, root, lines)
    path = {output.name: output for output in outputs}
    write_rows(path["main.csv"], rows)
    suite, pairs = path["main.csv"].parent.name, contrasts(arms_of(results), params)
    wanted, others = columns(results, params["primary"]), published_rows(rows)
    made = typeset.Made(
        rows, typeset.sections(rows, params, wanted, pairs), across.rows_across(results, params, root, lines)
    )
    acrosstext.write_summary(suite, made.across, params, path)
    title, _, text = typeset.markdown(suite, made.sections, others).partition("\n\n")
    more = count_runs(params["partial"], suite) if "partial" in params else ""
    write_text(path["main.md"], f"{title}\n\n{more}{text}")
    write_text(path["main.tex"], latex.narrow(rows, params))
    write_text(path["main-wide.tex"], latex.wide(rows, params, wanted))
    nothing = [dict.fromkeys(("data", "method", "supplement", "published_fid", "source"))]
    write_rows(path["published.csv"], others or nothing)
    write_rows(path["runs.csv"], run_rows(results, params))
    write_rows(path["curves.csv"], curve_rows(results, params["primary"]))
    stems = {stem: [each for name, each in path.items() if name.split(".")[0] in (stem, f"{stem}-panels") and
                    each.suffix in (".png", ".pdf", ".svg")] for stem in ("curves", "costs", "ratios")}  # fmt: skip
    curves.draw_curves(stems["curves"], results, rows, params)
    costs.draw_costs(stems["costs"], results, params)
    costs.draw_ratios(stems["ratios"], results, rows, params)
    grids.draw_samples(path["samples.png"], results, params, root, absent)
    return made
