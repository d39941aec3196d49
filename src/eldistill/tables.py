# SPDX-License-Identifier: Apache-2.0
"""Metrics → tables, intervals, plots. Only arithmetic on files: equal input gives equal bytes.

The unit of evidence is a training seed: intervals are Student's t over differences paired by seed, because
variation between seeds dominates the noise of sampling images, and the noise of the reference images is common
to all arms and cancels. A metric is found by its parts, `<metric><n>_<space>_<part>`, whatever n is; the exact
names stand in the tables. An empty cell: the number cannot be known (one seed, or no baseline).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import fmean, median, stdev

from eldistill import metrics, plots, published
from eldistill.files import Problem, read_json, write_rows, write_text
from eldistill.inference import holm, interval, median_time, paired_p
from eldistill.results import ABOUT, NAME, PARTS, TEACHER, YARDSTICKS, Result, alone, arms_of, check, load, named, short

VERSION = 1

# --- statistics ---------------------------------------------------------------------------------------


def reached(result: Result, base: Result, primary: str, part: str) -> tuple[int, bool]:
    """(iteration, censored): the first point of the curve at or below the last one of the baseline's curve.

    No interpolation: the resolution is that of the snapshots, and a noisy curve crosses a little early.
    Censored: never reached, and the iteration is the last one known. Both curves have the same n.
    """
    column = named(base.curve[0], "fd", primary, part)
    goal = float(base.curve[-1][column])
    for point in result.curve:
        if float(point[column]) <= goal:
            return result.iteration(point), False
    return result.iteration(result.curve[-1]), True


def middle(times: list[tuple[int, bool]]) -> tuple[float, bool]:
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


ALONE = tuple(metrics.ALONE)  # metrics without a part


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
            reach = _bounded(*reached(*twins[0], params["primary"], part)) if twins else None
            row[f"iterations_to_baseline_{part}"] = reach
        row["metrics_file"] = f"data/evaluations/{result.run}/metrics.json"
        row["recipe"] = result.about["recipe"][:12]
        row |= {key: result.about.get(key) for key in ("git_commit", "git_dirty", "command", "device")}
        rows.append(row)
    return rows


def curve_rows(results: list[Result]) -> list[dict]:
    """curves.csv: one row a snapshot, for `dvc plots`."""
    names = dict.fromkeys(name for result in results for name in result.curve[0] if name != "n_images")
    return [
        _identity(result)
        | {"n_images": point["n_images"], "iteration": result.iteration(point)}
        | {name: point.get(name) for name in names}
        for result in results
        for point in result.curve
    ]


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
    # Iterations to the baseline's final value, and their saving; empty without twins.
    row = dict.fromkeys((f"iterations_to_baseline_{part}", f"saving_percent_{part}"))
    if twins:
        here = middle([reached(result, base, params["primary"], part) for result, base in twins])
        there = middle([reached(base, base, params["primary"], part) for _, base in twins])
        row[f"iterations_to_baseline_{part}"] = _bounded(*here)
        if against:
            row[f"saving_percent_{part}"] = _bounded(100 - 100 * here[0] / there[0], here[1], "<")
    return row


def group_row(results: list[Result], arms: dict, params: dict, wanted: list) -> dict:
    """One row of main.csv: mean and deviation over seeds, and the comparison with the baseline.

    saving_percent: 100 (1 - iterations / the baseline's own first crossing of its final value), medians over
    paired seeds: a baseline that was there before its end gets credit for it. `> N` iterations, `< x` percent:
    not reached by N. overhead_percent: of CPU time an iteration, medians over paired seeds.
    """
    data, method, supplement = results[0].arm
    row = {"data": data, "method": method, "supplement": supplement, "seeds": len(results)}
    row |= {f"metric_{p}": named(results[0].metrics, "fd", params["primary"], p) for p in PARTS}
    for want in wanted:
        name, stem = named(results[0].metrics, *want), "_".join(want)
        values = [result.metrics[name] for result in results] if name else []
        row[f"{stem}_mean"] = fmean(values) if values else None
        row[f"{stem}_sd"] = stdev(values) if len(values) > 1 else None
    for metric in ALONE:
        name = alone(results[0].metrics, metric, params["primary"])
        values = [result.metrics[name] for result in results] if name else []
        row[f"{metric}_{params['primary']}_mean"] = fmean(values) if values else None
    for name in [name for name in results[0].metrics if name.startswith("fid")]:
        row[f"{name}_mean"] = fmean(result.metrics[name] for result in results)
    twins, against = _twins(results, arms, params["baseline"]), supplement != params["baseline"]
    others, key = twins if against else [], "milliseconds_per_iteration_cpu"
    for part in PARTS:
        row |= _difference(others, params, part, params["primary"])
    for space in spaces(results, params["primary"])[1:]:
        row |= _difference(others, params, "heldout", space)
    row["paired_seeds"] = len(others) or None
    for part in PARTS:
        row |= _speed(twins, params, part, against)
    row["step_ms_cpu"] = median(result.about[key] for result in results)
    mine, theirs = (median(pair[i].about[key] for pair in others) if others else None for i in (0, 1))
    row["overhead_percent"] = 100 * mine / theirs - 100 if theirs else None
    return row | {"runs": " ".join(result.run for result in results)}


def corrected(rows: list[dict]) -> None:
    """Fill in `…_p_holm`: Holm's correction over the rows of a data setting, for each feature space and part by itself."""
    for key in [key for key in rows[0] if key.endswith("_p_holm")] if rows else ():
        for row, p in zip(rows, holm([row[key.removesuffix("_holm")] for row in rows]), strict=True):
            row[key] = p


def contrasts(results: list[Result], arms: dict, params: dict) -> dict[str, list[str]]:
    """Sentences on pairs of supplements that are not the baseline, by data setting: is one of them enough?"""
    found: dict[str, list[tuple[dict, str]]] = {}
    for (data, method, one), (_, other_method, other) in itertools.combinations(arms, 2):
        if method != other_method or params["baseline"] in (one, other) or (data, method, other) not in arms:
            continue
        twins = _twins(arms[data, method, one], arms, other)
        row = {"method": method, "supplement": one, "paired_seeds": len(twins)}
        for part in PARTS:
            row |= _difference(twins, params, part, params["primary"])
            row[f"metric_{part}"] = named(results[0].metrics, "fd", params["primary"], part)
        found.setdefault(data, []).append((row, other))
    said: dict[str, list[str]] = {}
    for data, pairs in found.items():
        corrected([row for row, _ in pairs])
        texts = [sentence(row, part, {**params, "baseline": other}) for row, other in pairs for part in PARTS]
        said[data] = [text for text in texts if text]
    return said


def main_rows(results: list[Result], params: dict, root: Path) -> list[dict]:
    """main.csv: for each data setting the noise floor, the teacher, then each arm, in the suite's order."""
    arms, wanted, rows = arms_of(results), columns(results, params["primary"]), []
    for data in dict.fromkeys(arm[0] for arm in arms):
        groups = [group_row(group, arms, params, wanted) for arm, group in arms.items() if arm[0] == data]
        corrected(groups)
        for which, label in YARDSTICKS.items():
            found = read_json(root / f"data/evaluations/{data}/{which}/metrics.json")
            row = dict.fromkeys(groups[0]) | {"data": data, "method": label, "runs": f"{data}/{which}"}
            row |= {f"metric_{p}": named(found, "fd", params["primary"], p) for p in PARTS}
            if not (row["metric_heldout"] and row["metric_train"]):
                raise Problem(f"{data}/{which} has no fd of {params['primary']}; evaluate it again")
            row |= {"_".join((*want, "mean")): found.get(named(found, *want)) for want in wanted}
            for metric in ALONE:
                row[f"{metric}_{params['primary']}_mean"] = found.get(alone(found, metric, params["primary"]))
            rows.append(row | {f"{name}_mean": found[name] for name in found if name.startswith("fid")})
        rows += groups
    return rows


# --- Markdown -----------------------------------------------------------------------------------------


def _cell(row: dict, stem: str) -> str:
    sd = row[f"{stem}_sd"]
    return short(row[f"{stem}_mean"]) + (f" ± {short(sd)}" if sd is not None else "")


def _delta(row: dict, part: str, params: dict) -> tuple:
    return tuple(row[f"fd_{params['primary']}_{part}_difference{end}"] for end in ("", "_low", "_high"))


def sentence(row: dict, part: str, params: dict, space: str | None = None) -> str | None:
    """What the paired difference of one row says, and no more; None without a baseline. space: not the primary."""
    name = row[f"metric_{part}"]
    if space:
        name, params = name.replace(f"_{params['primary']}_", f"_{space}_"), {**params, "primary": space}
    (delta, low, high), base = _delta(row, part, params), params["baseline"]
    if delta is None:
        return None
    who = f"{row['method']}/{row['supplement']}: {name}"
    if low is None:
        return f"{who} differs from {base} by {short(delta)} in one paired seed: no interval, no conclusion."
    stem = f"fd_{params['primary']}_{part}"
    p, adjusted, lower_in = (row[f"{stem}_{end}"] for end in ("p", "p_holm", "lower_in"))
    tail = (
        f"p = {short(p)}, Holm {short(adjusted)}, n = {row['paired_seeds']}, lower in {lower_in.replace('/', ' of ')}"
    )
    if low <= 0 <= high:
        span = f"{short(delta)} [{short(low)}, {short(high)}]"
        return f"{who} is not distinguishable from {base}: difference {span} ({tail})."
    near, far = sorted((abs(low), abs(high)))
    which = "lower" if delta < 0 else "higher"
    alone_only = "" if adjusted < 1 - params["confidence"] else ": by itself, not after correction"
    return f"{who} is {which} than {base} by {short(abs(delta))} [{short(near)}, {short(far)}] ({tail}){alone_only}."


def _reach(iterations, saving) -> str:
    if saving is None:
        return short(iterations)
    return short(iterations) + (" (not reached)" if isinstance(saving, str) else f" (saves {saving:.0f} %)")


def _line(row: dict, params: dict, wanted: list) -> list[str]:
    values = [_cell(row, "_".join(want)) for want in wanted]
    if row["seeds"] is None:
        # A yardstick has another number of images than the arms.
        n, n_train = (NAME.fullmatch(row[f"metric_{part}"])["n"] for part in PARTS)
        # Of few images the distance to train ones is no floor for many: it is left out here, not in main.csv.
        against_train = values[1] if n_train == n else ""
        return [
            f"{row['method']}, n = {n}",
            "",
            values[0],
            "",
            against_train,
            "",
            *values[2:],
            *_alone(row, params),
            "",
            "",
            "",
        ]
    deltas = []
    for part in PARTS:
        delta, low, high = _delta(row, part, params)
        deltas.append(short(delta) + (f" [{short(low)}, {short(high)}]" if low is not None else ""))
    speeds = [_reach(row[f"iterations_to_baseline_{p}"], row[f"saving_percent_{p}"]) for p in PARTS]
    cost, overhead = short(row["step_ms_cpu"]), row["overhead_percent"]
    cost += f" ({overhead:+.0f} %)" if overhead is not None else ""
    label = f"{row['method']}/{row['supplement']}"
    return [
        label,
        str(row["seeds"]),
        values[0],
        deltas[0],
        values[1],
        deltas[1],
        *values[2:],
        *_alone(row, params),
        *speeds,
        cost,
    ]


def _alone(row: dict, params: dict) -> list[str]:
    return [short(row.get(f"{metric}_{params['primary']}_mean")) for metric in ALONE]


def _section(data: str, rows: list[dict], params: dict, wanted: list, pairs: list[str]) -> str:
    floor, arms = rows[0], [row for row in rows if row["seeds"]]
    primary, base, name = params["primary"], params["baseline"], arms[0]["metric_heldout"]
    stem = f"fd_{primary}_heldout_mean"
    intro = (
        f"`{name}` ranks: Fréchet distance of {NAME.fullmatch(name)['n']} generated images to the held-out ones "
        f"in the features of {primary}; lower is better. Noise floor (`{floor['metric_heldout']}`, train images "
        f"against held-out ones): {short(floor[stem])}. Cells: mean ± sd over seeds; differences paired by "
        f"seed, with {100 * params['confidence']:g} % t-intervals. Fewer images raise a Fréchet distance, so "
        "only those of equal n compare strictly."
    )
    titles = [f"{metric} {space} {PARTS[part]}" for metric, space, part in wanted]
    minus, speeds = f"minus {base}", [f"iterations to {base}'s final {title}" for title in titles[:2]]
    solo = [f"{metric} {primary}" for metric in ALONE]
    head = [
        "method/supplement",
        "seeds",
        titles[0],
        minus,
        titles[1],
        minus,
        *titles[2:],
        *solo,
        *speeds,
        "CPU ms an iteration",
    ]
    cells = [_line(row, params, wanted) for row in rows]
    kept = [place for place in range(len(head)) if place < 4 or any(line[place] for line in cells)]
    rule = ["---"] + ["---:"] * (len(kept) - 1)
    lines = [
        f"| {' | '.join(line)} |"
        for line in [[head[i] for i in kept], rule, *([line[i] for i in kept] for line in cells)]
    ]
    said = [f"- {text}" for row in arms for part in PARTS if (text := sentence(row, part, params))]
    others = [space for metric, space, _ in wanted if metric == "fd" and space != primary]
    said += [f"- {text}" for row in arms for space in others if (text := sentence(row, "heldout", params, space))]
    said = said or [f"No comparison: no other supplement shares a seed with {base}."]
    said += [f"- {text}" for text in pairs]
    below = [f"{row['method']}/{row['supplement']}" for row in arms if row[stem] < floor[stem]]
    if below:
        said += ["", f"Below the noise floor: {', '.join(below)}. Look for a mistake; it is no success."]
    said += _alarms({"real images": floor, "its teacher": rows[1]}, arms, primary)
    return "\n".join([f"## {data}", "", intro, "", *lines, "", *said])


def _alarms(floors: dict[str, dict], arms: list[dict], primary: str) -> list[str]:
    # What the numbers say is wrong with the images of an arm, whatever its distance.
    def seen(row: dict) -> dict:
        parts = {name: row.get(f"{name}_{primary}_heldout_mean") for name in ("precision", "recall", "coverage")}
        return parts | {name: row.get(f"{name}_{primary}_mean") for name in ALONE}

    floors = {who: seen(row) for who, row in floors.items()}
    found = {f"{row['method']}/{row['supplement']}": metrics.alarms(seen(row), floors) for row in arms}
    told = [f"- {who}: {'; '.join(clauses)}." for who, clauses in found.items() if clauses]
    return ["", "Look at the images of", "", *told] if told else []


def markdown(
    suite: str, rows: list[dict], params: dict, wanted: list, pairs: dict[str, list[str]], others: list[dict] = ()
) -> str:
    """main.md: a section for each data setting; below its table one sentence for each comparison."""
    groups = itertools.groupby(rows, lambda row: row["data"])
    sections = [_section(data, list(group), params, wanted, pairs.get(data, [])) for data, group in groups]
    note = (
        "Intervals cover training seeds only: all runs share one teacher, one judge and one set of held-out images, whose "
        "sampling error is not in them (`fdse` has it: the standard error of `fdj`, the distance without the bias of finite "
        "samples). p: paired t-test; Holm: corrected over the comparisons of a section in the same features and part. "
        "Iterations are read off the curves, whose points are as far apart as the snapshots; Kaplan–Meier medians over "
        "seeds. All digits: main.csv."
    )
    return "\n\n".join([f"# Suite {suite}", *sections, note, *_published(rows, others)]) + "\n"


# --- published figures, LaTeX --------------------------------------------------------------------------


def published_rows(rows: list[dict]) -> list[dict]:
    """published.csv: for each arm what its authors, and others, published, with the source, and our figure where one was
    measured in the same way on the same data. No order but that of the arms: they were measured differently."""
    found: dict[tuple, dict] = {}
    for row in rows:
        if row["supplement"] is None and row["method"] != TEACHER:
            continue
        name = next(
            (key for key in row if key.startswith("fid") and key.endswith("ref_mean") and row[key] is not None), None
        )
        method = "teacher" if row["supplement"] is None else row["method"]
        data = row["data"] if row["data"] in published.SETS else ""
        for figure in published.beside(row["data"], method, row["supplement"] or "none"):
            each = {key: figure[key] for key in ("dataset", "conditional", "resolution")}
            each |= {"data": data, "method": method, "supplement": row["supplement"], "published_as": figure["method"],
                     "published_fid": figure["fid"], "calls": figure["nfe"], "source": figure["source"],
                     "ours": row[name] if name else None, "ours_is": name and name.removesuffix("_mean"),
                     "ours_seeds": row["seeds"] if name else None}  # fmt: skip
            found.setdefault(tuple(map(str, each.values())), each)
    return list(found.values())


def _published(rows: list[dict], others: list[dict]) -> list[str]:
    others = [each for each in others if each["data"]]
    if not others:
        return []
    head = ["data, method/supplement", "published FID", "calls", "as", "ours", "source"]
    lines = [head, ["---", "---:", "---:", "---", "---:", "---"]]
    for each in others:
        who = f"{each['data']}, {each['method']}" + (f"/{each['supplement']}" if each["supplement"] else "")
        ours = f"{short(each['ours'])} (`{each['ours_is']}`)" if each["ours_is"] else ""
        lines.append([who, each["published_fid"], each["calls"], each["published_as"], ours, each["source"]])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = (
        "Published figures stand beside ours; they are not ranked with them, nor with each other: teachers, batches, numbers of "
        "images seen, samplers and which snapshot was reported differ, and most are the best of several."
    )
    return [f"## Published, beside ours\n\n{note}\n\n{table}"]


def tex(rows: list[dict], params: dict, wanted: list) -> str:
    """main.tex: the main table's first columns for a paper (booktabs), a table for each data setting."""
    import pandas

    primary, parts = params["primary"], []
    for data, group in itertools.groupby(rows, lambda row: row["data"]):
        head = ["arm", "seeds"]
        for _, space, part in wanted[:2]:
            head += [f"FD {space}, {PARTS[part]}", f"minus {params['baseline']}, {PARTS[part]}"]
        lines = []
        for row in group:
            more = {metric: _cell(row, f"{metric}_{primary}_heldout") for metric in ("recall", "coverage")}
            first = dict(zip(head, _line(row, params, wanted), strict=False))
            lines.append(first | {"p (Holm), held-out": short(row.get(f"fd_{primary}_heldout_p_holm"))} | more)
        frame = pandas.DataFrame(lines).map(lambda cell: cell.replace("±", r"$\pm$") if "±" in cell else cell)
        frame = frame.rename(columns=lambda title: title.replace("_", r"\_")).map(lambda cell: cell.replace("_", r"\_"))
        caption = (
            f"{data}: Fréchet distances of {NAME.fullmatch(rows[-1]['metric_heldout'])['n']} images, mean $\\pm$ deviation "
            f"over seeds; differences paired by seed, {100 * params['confidence']:g}\\,\\% t-intervals"
        )
        parts.append(
            frame.to_latex(
                index=False,
                caption=caption.replace("_", r"\_"),
                label=f"tab:{data}",
                column_format="l" + "r" * (len(frame.columns) - 1),
            )
        )
    return "% \\usepackage{booktabs}\n" + "\n".join(parts)


# --- the step -----------------------------------------------------------------------------------------


def make(params: dict, root: Path, outputs: list[Path]) -> None:
    """Write OUTPUTS (in this order).

    params: confidence, baseline (a supplement), grid (images in a row of a samples.png), primary (the feature space
    that ranks), runs. Reads data/evaluations and data/runs under root. Raises Problem for a missing or damaged input.
    """
    results = [load(run, root) for run in dict.fromkeys(params["runs"])]
    if not results:
        raise Problem("the suite has no runs; see `suites` in params.yaml")
    check(results, params["primary"])
    rows = main_rows(results, params, root)
    main, text, latex, runs, curves, theirs, curves_picture, costs, radar, samples = outputs
    write_rows(main, rows)
    pairs = contrasts(results, arms_of(results), params)
    wanted, others = columns(results, params["primary"]), published_rows(rows)
    write_text(text, markdown(main.parent.name, rows, params, wanted, pairs, others))
    write_text(latex, tex(rows, params, wanted))
    write_rows(theirs, others or [dict.fromkeys(("data", "method", "supplement", "published_fid", "source"))])
    write_rows(runs, run_rows(results, params))
    write_rows(curves, curve_rows(results))
    plots.draw_curves(curves_picture, results, rows, params)
    plots.draw_costs(costs, results, params)
    plots.draw_radar(radar, results, rows, params)
    plots.draw_samples(samples, results, params, root)
