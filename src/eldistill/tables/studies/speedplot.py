# SPDX-License-Identifier: Apache-2.0
"""The plot of a study of the kind `speed`: distance against learning rate, and ratios of times to the baseline's values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eldistill.tables import figures, names
from eldistill.tables.figures import GREY, Style

COVERED_BY = "speed"
TITLE = 48  # characters of a title that fit one of two panels, and of small print that fit its height


def draw_speed(paths: Sequence[Path], rows: list[dict], params: dict) -> None:
    """Write the figure to files (png, pdf, svg): a row of two panels for each data setting and root method.

    Left, on logarithmic axes: the distance at the end of the tuning runs against the factor on the learning rates; a line is the mean
    of an arm, a small marker is a run, and a cross is a run that diverged. Right: the ratio of iterations to the baseline's value
    at a percentage of its run, with its interval; an arrow is a ratio of which only a bound is known. Equal input gives equal bytes.
    """
    from matplotlib.figure import Figure

    looks = figures.styles([params["against"].rpartition("/")[2], *(row["supplement"] for row in rows)])
    beds = list(dict.fromkeys((row["data"], row["method"]) for row in rows))
    with figures.plain_style():
        figure = Figure(figsize=(figures.WIDTH, 0.4 + 2.55 * len(beds)), layout="constrained")
        for panels, bed in zip(figure.subplots(len(beds), 2, squeeze=False), beds, strict=True):
            here = [row for row in rows if (row["data"], row["method"]) == bed]
            _draw_rates(panels[0], [row for row in here if row["part"] == "rate"], looks)
            _draw_times(panels[1], [row for row in here if row["part"] == "time"], looks, params)
            where = f"{names.data_name(bed[0]).short}, {names.method_name(bed[1]).short}"
            for panel, what in zip(panels, ("learning rates that train", "time to the baseline's values"), strict=True):
                panel.set_title(figures.wrapped(f"{where}: {what}", TITLE), loc="left")
        _legend(figure, rows, looks, params)
        figures.save(figure, paths)


def _draw_rates(axes: Any, rows: list[dict], looks: dict[str, Style]) -> None:
    arms = list(dict.fromkeys(row["supplement"] for row in rows))
    for place, supplement in enumerate(arms):
        look, arm = looks[supplement], [row for row in rows if row["supplement"] == supplement]
        aside = 1.03 ** (place - (len(arms) - 1) / 2)  # so that equal values do not cover each other
        factors, means = [aside * row["factor"] for row in arm], [row["end_mean"] for row in arm]
        axes.plot(factors, means, **look.line(markersize=4, linewidth=1.4))
        for row, factor in zip(arm, factors, strict=True):
            _draw_runs(axes, row, factor, look)
    if not rows:
        return figures.note(axes, "no runs on tuning seeds")
    axes.set_xscale("log", base=2)
    factors = sorted({row["factor"] for row in rows})
    axes.set_xticks(factors, [f"× {factor:g}" for factor in factors])
    ends = [float(end) for row in rows for end in row["ends"].split()]
    _fit(axes, ends)
    axes.minorticks_off()
    axes.set(
        xlabel="factor on the learning rates", ylabel="Fréchet distance at the end ↓\n(mean and runs, tuning seeds)"
    )
    return None


def _draw_runs(axes: Any, row: dict, factor: float, look: Style) -> None:
    ends = [float(end) for end in row["ends"].split()]
    seeds = [run.rpartition("/")[2] for run in row["runs"].split()]
    fallen = (row["diverged_seeds"] or "").split()
    for seed, end in zip(seeds, ends, strict=True):
        if seed in fallen:
            axes.plot(factor, end, "x", color=look.colour, markersize=6, markeredgewidth=1.5)
        else:
            axes.plot(factor, end, look.marker, color=look.colour, markersize=2.2, alpha=0.5)


def _draw_times(axes: Any, rows: list[dict], looks: dict[str, Style], params: dict) -> None:
    shown = [row for row in rows if row.get("ratio_iterations") is not None]
    if not shown:
        return figures.note(axes, "no ratio of times")
    ratios = [1.0, *(row["ratio_iterations"] for row in shown)]
    # One wide interval of few seeds would make all others look like points: it ends in a triangle at the edge.
    ends = [row[f"ratio_iterations{end}"] for row in shown for end in ("_low", "_high")]
    low, high = min(ratios) / 4, 4 * max(ratios)
    _fit(
        axes,
        [*ratios, *(min(max(end, low), high) for end in ends if end is not None)],
        arrows=any(row["bound"] for row in shown),
    )
    without = [row for row in rows if row.get("pairs") and row.get("ratio_iterations") is None]
    arms = list(dict.fromkeys(row["supplement"] for row in rows if row.get("pairs")))
    for place, supplement in enumerate(arms):
        arm = [row for row in shown if row["supplement"] == supplement]
        offset = 2.5 * (place - (len(arms) - 1) / 2)  # in percent of the run, so that intervals do not cover each other
        for row in arm:
            _draw_ratio(axes, row, row["of_run"] + offset, looks[supplement])
        _draw_without(
            axes, [row["of_run"] + offset for row in without if row["supplement"] == supplement], looks[supplement]
        )
    base = looks[params["against"].rpartition("/")[2]]
    axes.axhline(1, color=base.colour, linewidth=1)
    axes.set_xticks(sorted({row["of_run"] for row in (*shown, *without)}))
    factors = {names.supplement_name(row["supplement"]).short: f"{row['reported']:g}" for row in shown}
    factors[names.baseline_name(params["against"])] = _baseline(rows, params["against"])
    text = ", ".join(f"{name} {factor}" for name, factor in factors.items())
    axes.set_xlabel("percent of the baseline's run with the value to reach")
    figures.small_print(axes, figures.wrapped(f"factors: {text}", TITLE))
    axes.set_ylabel(f"iterations over the baseline's ↓\n(other seeds, {100 * params['confidence']:g} % intervals)")
    return None


def _draw_without(axes: Any, places: list[float], look: Style) -> None:
    # Comparisons without a ratio: crosses at the upper edge.
    top = axes.get_ylim()[1]
    for x in places:
        axes.plot(x, top, "x", color=look.colour, markersize=5, clip_on=False)


def _draw_ratio(axes: Any, row: dict, x: float, look: Style) -> None:
    ratio, ends = row["ratio_iterations"], [row[f"ratio_iterations{end}"] for end in ("_low", "_high")]
    low, high = axes.get_ylim()
    if row["bound"]:
        up = 1 if row["bound"] == "at least" else -1
        axes.annotate("", (x, ratio), (0, 14 * up), textcoords="offset points",
                      arrowprops={"arrowstyle": "<-", "color": look.colour, "linewidth": 1.2})  # fmt: skip
    elif ends[0] is not None:
        axes.plot([x, x], [max(ends[0], low), min(ends[1], high)], color=look.colour, linewidth=1.4)
        for edge, marker, outside in ((low, "v", ends[0] < low), (high, "^", ends[1] > high)):
            if outside:
                axes.plot(x, edge, marker, color=look.colour, markersize=4, clip_on=False)
    axes.plot(x, ratio, look.marker, color=look.colour, markersize=4.5,
              markerfacecolor="white" if row["bound"] else look.colour)  # fmt: skip


def _fit(axes: Any, values: list[float], arrows: bool = False) -> None:
    # A logarithmic axis that holds all values, and the arrows that start at some of them.
    figures.tidy(axes)
    positive = [value for value in values if value > 0]
    if positive:
        low, high = min(positive), max(positive)
        wide = max((high / low) ** (0.2 if arrows else 0.06), 1.15)
        figures.logarithmic(axes.yaxis, low / wide, high * wide)


def _baseline(rows: list[dict], against: str) -> str:
    # The baseline's factor, if the baseline is among these rows, which are those of one method.
    method, _, supplement = against.rpartition("/")
    bases = [row for row in rows if row["supplement"] == supplement and method in ("", row["method"])]
    factor = bases[0]["reported"] if bases else None
    return "at its own" if factor is None else f"{factor:g}"


def _legend(figure: Any, rows: list[dict], looks: dict[str, Style], params: dict) -> None:
    # One legend for all panels, above them, below the question.
    from matplotlib.lines import Line2D

    shown = {row["supplement"] for row in rows} | {params["against"].rpartition("/")[2]}
    handles = [
        Line2D([], [], **look.line(markersize=4, linewidth=1.4), label=names.supplement_name(name).text)
        for name, look in looks.items()
        if name in shown
    ]
    alone = {"color": GREY, "linestyle": "none", "markersize": 5}
    if any(row.get("diverged_runs") for row in rows if row["part"] == "rate"):
        handles.append(Line2D([], [], marker="x", **alone, label="run that diverged"))
    if any(row.get("bound") for row in rows):
        handles.append(
            Line2D([], [], marker="o", markerfacecolor="white", **alone, label="only a bound is known (arrow)")
        )
    if any(row.get("pairs") and row.get("ratio_iterations") is None for row in rows if row["part"] == "time"):
        handles.append(Line2D([], [], marker="x", **alone, label="never reached, or no time (at the upper edge)"))
    figures.legend_above(figure, handles, 3, title=figures.wrapped(params["question"]), title_fontsize=9)
