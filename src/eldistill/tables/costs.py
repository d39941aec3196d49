# SPDX-License-Identifier: Apache-2.0
"""The figures of cost: curves over iterations, seconds and FLOP, and cost and result relative to the baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from eldistill.tables import curves, figures, names
from eldistill.tables.figures import GREY, Style
from eldistill.tables.results import COSTS, PARTS, Result, arms_of, is_reason, named, one_device

COVERED_BY = "plots"
SPENT = {
    "iterations": "iterations",
    "seconds": "CPU seconds",
    "FLOP": "FLOP",
}  # {key of COSTS: title of a horizontal axis}
FLOP_UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))


def draw_costs(paths: Sequence[Path], results: list[Result], params: dict) -> None:
    """Write the figure of costs: for each data setting and method the held-out curves against iterations, CPU seconds and FLOP.

    paths: files (png, pdf, svg). Lines are means over seeds with a band of one deviation; all axes are logarithmic. The cost of an
    iteration is the median over the runs of an arm, because the load of the machine affects single runs. A panel without a
    measured cost, or with costs of several kinds of device, contains a note instead.
    """
    from matplotlib.figure import Figure

    beds, looks = curves.beds_of(results), figures.styles([params["baseline"], *(result.arm[2] for result in results)])
    with figures.plain_style():
        figure = Figure(figsize=(figures.WIDTH, 2.1 * len(beds) + 0.4), layout="constrained")
        for panels, (bed, arms) in zip(
            figure.subplots(len(beds), len(SPENT), squeeze=False), beds.items(), strict=True
        ):
            column = named(next(iter(arms.values()))[0].curve[0], "fd", params["primary"], "heldout")
            for axes, unit in zip(panels, SPENT, strict=True):
                _draw_cost(axes, arms, unit, column, looks)
            panels[0].set_title(f"{curves.bed_title(*bed)} ({curves.seeds_text(arms.values())})", loc="left")
            panels[0].set_ylabel(curves.ylabel(column).replace("Fréchet distance ↓", "Fréchet distance to held-out ↓"))
            figures.small_print(panels[-1], column)
        curves.legend(figure, results, looks, lines=False)
        figures.save(figure, paths)


def _draw_cost(axes: Any, arms: dict, unit: str, column: str, looks: dict[str, Style]) -> None:
    shown = [result for group in arms.values() for result in group]
    if unit == "seconds" and not one_device(shown):
        return figures.note(axes, "seconds: measured on\nseveral devices")
    if not all(COSTS[unit](result) for result in shown):
        return figures.note(axes, f"{SPENT[unit]}: not measured")
    size, title = _unit(unit, max(COSTS[unit](result) * result.about["iterations"] for result in shown))
    lines = [
        (curves.points_of(group, column, median(COSTS[unit](result) for result in group) / size), looks[supplement])
        for (_, _, supplement), group in arms.items()
    ]
    if not curves.fit_axes(axes, [points for points, _ in lines]):
        return figures.note(axes, "no snapshot after the start")
    for points, look in lines:
        curves.draw_mean(axes, points, look)
    axes.set_xlabel(title)
    return None


def _unit(unit: str, most: float) -> tuple[float, str]:
    # The size and the title of the unit of an axis: FLOP are shown in a multiple that needs no exponent.
    if unit != "FLOP":
        return 1.0, SPENT[unit]
    return next(((size, title) for size, title in FLOP_UNITS if most >= size), (1.0, "FLOP"))


# --- relative to the baseline -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """A cost or result divided by the baseline's. low, high: its interval, if there is one. bound: the ratio is at least this."""

    value: float
    low: float | None = None
    high: float | None = None
    bound: bool = False


def draw_ratios(paths: Sequence[Path], results: list[Result], rows: list[dict], params: dict) -> None:
    """Write the figure of cost and result of each arm, divided by those of the baseline: left of 1 is better on every line.

    paths: files (png, pdf, svg). Lines: final distances to held-out and to train images over paired seeds, with the interval of the
    difference; iterations until the distance is at most the baseline's last one; CPU seconds per iteration; peak memory of the process;
    all over the seeds that both arms have. A line is omitted if it was not measured, or if its seconds are those of several kinds of
    device.
    """
    from matplotlib.figure import Figure

    looks, groups = figures.styles([params["baseline"], *(result.arm[2] for result in results)]), arms_of(results)
    beds = {bed: found for bed, arms in curves.beds_of(results).items() if (found := _ratios(bed, arms, rows, params))}
    with figures.plain_style():
        wide, tall = 2, -(-len(beds) // 2) or 1
        figure = Figure(figsize=(figures.WIDTH, 1.9 * tall + 0.4), layout="constrained")
        panels = list(figure.subplots(tall, wide, squeeze=False).flat)
        for axes, (bed, found) in zip(panels, beds.items(), strict=False):
            _draw_ratios(axes, found, looks)
            base = names.supplement_name(params["baseline"]).short
            axes.set_title(curves.bed_title(*bed), loc="left")
            axes.set_xlabel(f"ratio to {base} ↓")
        for axes in panels[max(1, len(beds)) :]:
            axes.set_axis_off()
        if not beds:
            figures.note(panels[0], "no two supplements to compare")
        compared = [result for arm, group in groups.items() if arm[:2] in beds for result in group]
        others = [result for result in compared if result.arm[2] != params["baseline"]]
        if others:
            _legend(figure, others, looks)
        figures.save(figure, paths)


def _legend(figure: Any, results: list[Result], looks: dict[str, Style]) -> None:
    from matplotlib.lines import Line2D

    shown = {result.arm[2] for result in results}
    handles = [
        Line2D([], [], **look.line(markersize=4, linestyle="none"), label=names.supplement_name(name).text)
        for name, look in looks.items()
        if name in shown
    ]
    handles.append(Line2D([], [], color=GREY, marker="o", markerfacecolor="white", markersize=4, linestyle="none",
                          label="at least (not reached)"))  # fmt: skip
    figures.legend_above(figure, handles, 4)


Lines = dict[str, dict[str, Ratio]]  # {line: {supplement: ratio}}


def _ratios(bed: tuple[str, str], arms: dict, rows: list[dict], params: dict) -> Lines:
    # Empty without a baseline or another supplement.
    found = {(row["data"], row["method"], row["supplement"]): row for row in rows}
    base = params["baseline"]
    others = [supplement for (_, _, supplement) in arms if supplement != base]
    if (*bed, base) not in arms or not others:
        return {}
    runs = [result for group in arms.values() for result in group]
    lines: Lines = {}
    for title, ratio in MEASURES.items():
        if title.startswith("seconds") and not one_device(runs):
            continue
        each = {
            name: ratio(found[*bed, name], found[*bed, base], arms[*bed, name], arms[*bed, base], params)
            for name in others
        }
        lines[title] = {name: value for name, value in each.items() if value is not None}
    return {title: each for title, each in lines.items() if each}


def _distance(part: str) -> Callable[..., Ratio | None]:
    def ratio(row: dict, base: dict, mine: list, theirs: list, params: dict) -> Ratio | None:
        # Of the seeds that both arms have: with means over other seeds the ratio could lie outside of its interval.
        stem = f"fd_{params['primary']}_{part}"
        scale, value = row[f"{stem}_baseline"], row[f"{stem}_ratio"]
        if scale is None or value is None or not min(scale, value) > 0:
            return None
        low, high = (row[f"{stem}_difference_{end}"] for end in ("low", "high"))
        ends = (None, None) if low is None else (1 + low / scale, 1 + high / scale)
        return Ratio(value, *ends)

    return ratio


def _paired(mine: list, theirs: list) -> tuple[list, list]:
    # The runs of both arms on the seeds that both have.
    seeds = {result.seed for result in mine} & {result.seed for result in theirs}
    return [each for each in mine if each.seed in seeds], [each for each in theirs if each.seed in seeds]


def _iterations(row: dict, base: dict, mine: list, theirs: list, params: dict) -> Ratio | None:
    alike = {each.seed for each in mine} == {
        each.seed for each in theirs
    }  # else the rows have medians over other seeds
    if not alike and (saved := row["saving_percent_heldout"]) is not None:
        ratio = 1 - float(str(saved).removeprefix("< ")) / 100
        return Ratio(ratio, bound=isinstance(saved, str)) if ratio > 0 else None
    reach, goal = row["iterations_to_baseline_heldout"], base["iterations_to_baseline_heldout"]
    if reach is None or goal is None or is_reason(reach) or is_reason(goal):
        return None
    bound = isinstance(reach, str)
    ours, best = (float(str(each).removeprefix("> ")) for each in (reach, goal))
    return Ratio(ours / best, bound=bound) if ours and best else None


def _memory(row: dict, base: dict, mine: list, theirs: list, params: dict) -> Ratio | None:
    used = [[result.about.get("memory_gib") for result in group] for group in _paired(mine, theirs)]
    return Ratio(median(used[0]) / median(used[1])) if all(used) and all(map(all, used)) else None


def _seconds(row: dict, base: dict, mine: list, theirs: list, params: dict) -> Ratio | None:
    times = [[result.about["milliseconds_per_iteration_cpu"] for result in group] for group in _paired(mine, theirs)]
    return Ratio(median(times[0]) / median(times[1])) if all(times) and median(times[0]) and median(times[1]) else None


MEASURES: dict[
    str, Callable[..., Ratio | None]
] = {  # {line of the figure: its ratio to the baseline, None if not measured}
    **{f"distance to {names.PARTS[part].text}": _distance(part) for part in PARTS},
    "iterations to the\nbaseline's last distance": _iterations,
    "seconds an iteration": _seconds,
    "peak memory": _memory,
}


def _draw_ratios(axes: Any, lines: Lines, looks: dict[str, Style]) -> None:
    values = [ratio.value for each in lines.values() for ratio in each.values()]
    low, high = min([*values, 0.8]) / 1.15, max([*values, 1.25]) * 1.15
    figures.logarithmic(axes.xaxis, low, high)
    axes.axvline(1, color="black", linewidth=0.8)
    for place, each in enumerate(lines.values()):
        for turn, (name, ratio) in enumerate(each.items()):
            y = place + 0.5 * ((turn + 1) / (len(each) + 1) - 0.5)
            _draw_ratio(axes, ratio, y, looks[name], low, high)
    axes.set_yticks(range(len(lines)), list(lines))
    axes.set_ylim(len(lines) - 0.5, -0.5)
    figures.tidy(axes)


def _draw_ratio(axes: Any, ratio: Ratio, y: float, look: Style, low: float, high: float) -> None:
    if ratio.low is not None and ratio.high is not None:
        ends = max(ratio.low, low), min(ratio.high, high)
        axes.plot(ends, [y, y], color=look.colour, linewidth=1)
        for end, edge, arrow in ((ratio.low, low, "<"), (ratio.high, high, ">")):  # an interval that ends outside
            if (end < low) if arrow == "<" else (end > high):
                axes.plot(edge, y, arrow, color=look.colour, markersize=3.5, clip_on=False)
    fill = "white" if ratio.bound else look.colour
    axes.plot(ratio.value, y, look.marker, color=look.colour, markersize=4, markerfacecolor=fill)
