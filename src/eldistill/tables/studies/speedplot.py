# SPDX-License-Identifier: Apache-2.0
"""The plot of a study of the kind `speed`: distance against learning rate, and ratios of times to the baseline's values."""

from __future__ import annotations

import itertools
from pathlib import Path

from eldistill.files import atomic
from eldistill.tables.curves import COLOURS, MARKERS

COVERED_BY = "speed"
GREY = "#777777"


def draw_speed(path: Path, rows: list[dict], params: dict) -> None:
    """Write the plot: a row of two panels for each data setting and root method. Equal input gives equal bytes.

    Left, on logarithmic axes: the distance at the end of the tuning runs against the factor on the learning rates; a line is the mean
    of an arm, a small marker is a run, and a cross is a run that diverged. Right: the ratio of iterations to the baseline's value
    at a percentage of its run, with its interval; an arrow is a ratio of which only a bound is known.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    styles, beds = _styles(rows, params["against"]), list(dict.fromkeys((row["data"], row["method"]) for row in rows))
    with matplotlib.style.context("default"), atomic(path) as temporary:
        figure = Figure(figsize=(12, 0.5 + 4 * len(beds)), dpi=100, layout="constrained")
        figure.suptitle(params["question"])
        for panels, bed in zip(figure.subplots(len(beds), 2, squeeze=False), beds, strict=True):
            here = [row for row in rows if (row["data"], row["method"]) == bed]
            _draw_rates(panels[0], [row for row in here if row["part"] == "rate"], styles)
            _draw_times(panels[1], [row for row in here if row["part"] == "time"], styles, params)
            panels[0].set_title(f"{', '.join(bed)}: learning rates that train", fontsize=10)
            panels[1].set_title(f"{', '.join(bed)}: time to {params['against']}'s values", fontsize=10)
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _styles(rows: list[dict], against: str) -> dict[str, tuple[str, str]]:
    # Black is reserved for the baseline's supplement.
    baseline = against.rpartition("/")[2]
    others = dict.fromkeys(row["supplement"] for row in rows if row["supplement"] != baseline)
    looks = itertools.cycle(zip(COLOURS[1:], MARKERS[1:], strict=True))
    return {baseline: (COLOURS[0], MARKERS[0])} | dict(zip(others, looks, strict=False))


def _draw_rates(axes, rows: list[dict], styles: dict) -> None:
    arms = list(dict.fromkeys(row["supplement"] for row in rows))
    for place, supplement in enumerate(arms):
        colour, marker = styles[supplement]
        arm = [row for row in rows if row["supplement"] == supplement]
        aside = 1.03 ** (place - (len(arms) - 1) / 2)  # so that equal values do not cover each other
        factors, means = [aside * row["factor"] for row in arm], [row["end_mean"] for row in arm]
        axes.plot(factors, means, color=colour, marker=marker, markersize=5, linewidth=1.8, label=supplement)
        for row, factor in zip(arm, factors, strict=True):
            _draw_runs(axes, row, factor, colour, marker)
    if not rows:
        return _note(axes, "no runs on tuning seeds")
    if any(row["diverged_runs"] for row in rows):
        axes.plot([], [], "x", color=GREY, markersize=8, markeredgewidth=2, label="run that diverged")
    axes.set_xscale("log", base=2)
    factors = sorted({row["factor"] for row in rows})
    axes.set_xticks(factors, [f"× {factor:g}" for factor in factors])
    axes.set_yscale("log")
    _dress(axes)
    axes.minorticks_off()
    axes.set(xlabel="factor on the learning rates", ylabel="Fréchet distance at the end\n(mean and runs, tuning seeds)")


def _draw_runs(axes, row: dict, factor: float, colour: str, marker: str) -> None:
    ends = [float(end) for end in row["ends"].split()]
    seeds = [run.rpartition("/")[2] for run in row["runs"].split()]
    fallen = (row["diverged_seeds"] or "").split()
    for seed, end in zip(seeds, ends, strict=True):
        if seed in fallen:
            axes.plot(factor, end, "x", color=colour, markersize=8, markeredgewidth=2)
        else:
            axes.plot(factor, end, marker, color=colour, markersize=3, alpha=0.5)


def _draw_times(axes, rows: list[dict], styles: dict, params: dict) -> None:
    shown = [row for row in rows if row.get("ratio_iterations") is not None]
    arms = list(dict.fromkeys(row["supplement"] for row in shown))
    for place, supplement in enumerate(arms):
        colour, marker = styles[supplement]
        arm = [row for row in shown if row["supplement"] == supplement]
        offset = 2.5 * (place - (len(arms) - 1) / 2)  # in percent of the run, so that intervals do not cover each other
        axes.plot([], [], color=colour, marker=marker, markersize=6, linewidth=1.8,
                  label=f"{supplement}, factor {arm[0]['reported']:g}")  # fmt: skip
        for row in arm:
            _draw_ratio(axes, row, row["of_run"] + offset, colour, marker)
    if not shown:
        return _note(axes, "no ratio of times")
    axes.axhline(1, color=COLOURS[0], linewidth=1, label=f"{params['against']}, {_baseline(rows, params['against'])}")
    axes.set_yscale("log")
    axes.set_xticks(sorted({row["of_run"] for row in shown}))
    cut = _cut(axes, shown)
    _dress(axes)
    axes.set(xlabel="percent of the baseline's run at which it has the value to reach")
    axes.set_ylabel(f"iterations over the baseline's\n(fresh seeds, {100 * params['confidence']:g} % intervals{cut})")


def _draw_ratio(axes, row: dict, x: float, colour: str, marker: str) -> None:
    ratio, low, high = (row[f"ratio_iterations{end}"] for end in ("", "_low", "_high"))
    if row["bound"]:
        up = 1 if row["bound"] == "at least" else -1
        axes.annotate("", (x, ratio), (0, 24 * up), textcoords="offset points",
                      arrowprops={"arrowstyle": "<-", "color": colour, "linewidth": 1.8})  # fmt: skip
    elif low is not None:
        axes.plot([x, x], [low, high], color=colour, linewidth=1.8)
    axes.plot(x, ratio, marker, color=colour, markersize=6, markerfacecolor="white" if row["bound"] else colour)


def _cut(axes, rows: list[dict]) -> str:
    # One wide interval of few seeds would make all others look like points. It is cut, and the axis says so.
    ratios = [1.0, *(row["ratio_iterations"] for row in rows)]
    ends = [row[f"ratio_iterations{end}"] for row in rows for end in ("_low", "_high")]
    low, high = min(ratios) / 4, 4 * max(ratios)
    if all(end is None or low <= end <= high for end in ends):
        return ""
    axes.set_ylim(low, high)
    return ", cut at the edge"


def _baseline(rows: list[dict], against: str) -> str:
    # The baseline's factor, if the baseline is among these rows, which are those of one method.
    method, _, supplement = against.rpartition("/")
    bases = [row for row in rows if row["supplement"] == supplement and method in ("", row["method"])]
    factor = bases[0]["reported"] if bases else None
    return "at its own factor" if factor is None else f"factor {factor:g}"


def _dress(axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, frameon=False, fontsize=9)  # below the axis


def _note(axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY)
    axes.set_axis_off()
