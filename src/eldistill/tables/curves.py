# SPDX-License-Identifier: Apache-2.0
"""Plots of a suite: curves over training, curves over cost, and a radar plot of cost and result. Equal input gives equal bytes."""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import fmean, median, stdev

from eldistill.files import atomic
from eldistill.tables.results import COSTS, PARTS, Result, arms_of, is_reason, named, one_device, short

RECIPE = ("plots", 6)  # iterations on a logarithmic axis; curves without the running average

# Colours of Okabe & Ito (2008), which colour-blind readers can distinguish. Black is first, for the baseline.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"


def _panel(axes, arms: dict, rows: list[dict], styles: dict, part: str, primary: str) -> None:
    # One panel: the arms of one data setting and method, compared with one part of the data. rows: the reference runs.
    for (data, method, supplement), results in arms.items():
        column = named(results[0].curve[0], "fd", primary, part)
        colour, marker = styles[supplement]
        for result in results if len(results) > 1 else ():
            curve = _points([result], column)
            axes.plot(curve.keys(), _means(curve), color=colour, linewidth=0.7, alpha=0.3)
        points = _points(results, column)
        label = f"{supplement} ({_seeds(results)})"
        style = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 2, "label": label}
        axes.plot(points.keys(), _means(points), **style)
        _band(axes, points, colour)
        if raw := _points(results, f"raw_{column}"):
            axes.plot(raw.keys(), _means(raw), color=colour, linewidth=1, linestyle=(0, (1, 1.2)))
        axes.set(title=f"{data}, {method}: against {PARTS[part]} images", xlabel="iterations")
        axes.set(ylabel=f"Fréchet distance (lower is better)\n{column}")
    if any(f"raw_{column}" in results[0].curve[0] for results in arms.values()):
        axes.plot(
            [], [], color="#777777", linewidth=1, linestyle=(0, (1, 1.2)), label="dotted: without running average"
        )
    # There is no noise floor with respect to train images, because 360 held-out images give a larger distance than 5,000 generated ones.
    rows = rows if part == "heldout" else [None, rows[1]]
    for row, what, dash in zip(rows, ("noise floor", "teacher"), ((0, (1, 1.5)), (0, (6, 2))), strict=True):
        if row is None:
            continue
        value, name = row[f"fd_{primary}_{part}_mean"], row[f"metric_{part}"].split("_")[0]
        axes.axhline(value, color="#777777", linestyle=dash, label=f"{what}, {name}: {short(value)}")
    _dress(axes)
    _iterations(axes)


def _points(results: list[Result], column: str) -> dict[int, list[float]]:
    # {iteration: a value for each seed} of the snapshots after the start that all seeds have; empty if one lacks the column.
    points: dict[int, list[float]] = {}
    for result in results:
        for point in result.curve:
            if point.get(column) and result.iteration(point) > 0:
                points.setdefault(result.iteration(point), []).append(float(point[column]))
    return {each: values for each, values in sorted(points.items()) if len(values) == len(results)}


def _means(points: dict[int, list[float]]) -> list[float]:
    # The mean of the values of each point, in the order of the points.
    return [fmean(values) for values in points.values()]


def _iterations(axes) -> None:
    # A logarithmic axis of iterations with plain numbers; the untrained generator, at 0, is not on it.
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not any(value > 0 for line in axes.get_lines() if line.get_marker() != "None" for value in line.get_xdata()):
        return  # all snapshots are of the untrained generator
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _seeds(results: list[Result]) -> str:
    return f"mean of {len(results)} seeds" if len(results) > 1 else "1 seed"


def _band(axes, points: dict[float, list[float]], colour: str) -> None:
    # Mean ± deviation over seeds; where that would reach below the smallest one, only as far as it.
    if min(map(len, points.values()), default=0) > 1:
        ends = [(max(fmean(v) - stdev(v), min(v)), fmean(v) + stdev(v)) for v in points.values()]
        axes.fill_between(list(points), *zip(*ends, strict=True), color=colour, alpha=0.12, linewidth=0)


def _ticks(axes) -> None:
    # A logarithmic axis, unless no value on it is above 0.
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not any(value > 0 for line in axes.get_lines() for value in line.get_ydata()):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _dress(axes) -> None:
    from matplotlib.ticker import FuncFormatter

    _ticks(axes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(framealpha=0.85, edgecolor="none", fontsize=10)  # lines that it covers stay faintly visible


def _styles(results: list[Result], baseline: str) -> dict[str, tuple[str, str]]:
    # Black is reserved for the baseline, also in panels without it.
    others = dict.fromkeys(result.arm[2] for result in results if result.arm[2] != baseline)
    looks = itertools.cycle(zip(COLOURS[1:], MARKERS[1:], strict=True))
    return {baseline: (COLOURS[0], MARKERS[0])} | dict(zip(others, looks, strict=False))


def draw_curves(path: Path, results: list[Result], rows: list[dict], params: dict) -> None:
    """curves.png: two panels (held-out, train) of 600 x 500 pixels for each data setting and method.

    Thick lines are means over seeds, at points that all seeds have; thin lines are seeds; dotted lines are means without the
    running average, if they were measured; grey lines are the two reference runs. Both axes are logarithmic, so that the untrained
    generator is not shown.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    arms, styles = arms_of(results), _styles(results, params["baseline"])
    beds = list(dict.fromkeys(arm[:2] for arm in arms))
    with matplotlib.style.context("default"), atomic(path) as temporary:
        figure = Figure(figsize=(12, 5 * len(beds)), dpi=100, layout="constrained")
        for panels, bed in zip(figure.subplots(len(beds), 2, squeeze=False), beds, strict=True):
            here = {arm: group for arm, group in arms.items() if arm[:2] == bed}
            reference_runs = [row for row in rows if row["data"] == bed[0] and row["seeds"] is None]
            for axes, part in zip(panels, PARTS, strict=True):
                _panel(axes, here, reference_runs, styles, part, params["primary"])
        figure.savefig(temporary, format="png", metadata={"Software": None})


SPENT = {  # horizontal axes of the cost curves: {title: cost of an iteration}
    "iterations": COSTS["iterations"],
    "generated images": lambda result: result.about["n_images"] / result.about["iterations"],
    "CPU seconds": COSTS["seconds"],
    "FLOP": COSTS["FLOP"],
}


def draw_costs(path: Path, results: list[Result], params: dict) -> None:
    """costs.png: for each data setting and method the held-out curves against iterations, images, CPU seconds and FLOP.

    Lines are means over seeds with a band of one standard deviation. The cost of an iteration is the median over the runs of an
    arm, because the load of the machine affects single runs. A panel without a measured cost, or with costs of several kinds of
    device, contains a note instead.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    arms, styles = arms_of(results), _styles(results, params["baseline"])
    beds = list(dict.fromkeys(arm[:2] for arm in arms))
    with matplotlib.style.context("default"), atomic(path) as temporary:
        figure = Figure(figsize=(16, 3.8 * len(beds)), dpi=80, layout="constrained")
        for panels, bed in zip(figure.subplots(len(beds), len(SPENT), squeeze=False), beds, strict=True):
            here = {arm: group for arm, group in arms.items() if arm[:2] == bed}
            for axes, (what, price) in zip(panels, SPENT.items(), strict=True):
                axes.set(title=f"{bed[0]}, {bed[1]}", xlabel=what)
                shown = [result for group in here.values() for result in group]
                text = "measured on several devices" if what == "CPU seconds" and not one_device(shown) else None
                if text or any(price(result) is None for result in shown):
                    axes.text(0.5, 0.5, text or "not counted", ha="center", va="center", transform=axes.transAxes,
                              color="#777777")  # fmt: skip
                    axes.set_axis_off()
                    continue
                for arm, group in here.items():
                    _spent(
                        axes,
                        group,
                        median(price(result) for result in group),
                        styles[arm[2]],
                        f"{arm[2]} ({_seeds(group)})",
                        params["primary"],
                    )
                _dress(axes)
                if what == "FLOP":
                    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.1e}")
                    axes.tick_params(axis="x", labelsize=8)
            first = next(iter(here.values()))[0]  # the number of images may differ between data settings
            panels[0].set_ylabel(
                f"Fréchet distance\n{named(first.curve[0], 'fd', params['primary'], 'heldout')}", fontsize=9
            )
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _spent(axes, group: list[Result], price: float, style: tuple[str, str], label: str, primary: str) -> None:
    column, points = named(group[0].curve[0], "fd", primary, "heldout"), {}
    for result in group:
        for point in result.curve:
            points.setdefault(result.iteration(point) * price, []).append(float(point[column]))
    points = {cost: values for cost, values in sorted(points.items()) if len(values) == len(group)}
    colour, marker = style
    means = [fmean(values) for values in points.values()]
    axes.plot(list(points), means, color=colour, marker=marker, markersize=3.5, linewidth=1.6, label=label)
    _band(axes, points, colour)


SECONDS = "seconds an\niteration"  # an axis of radar.png


def draw_radar(path: Path, results: list[Result], rows: list[dict], params: dict) -> None:
    """radar.png: cost and result of each arm, divided by those of the baseline; smaller is better on every axis.

    Axes: CPU seconds per iteration; peak memory of the process; generated images until the distance is at most the baseline's last
    one (all images if it is not reached); final distances to held-out and to train images. An axis is omitted if it was not
    measured for all arms of a data setting and method, or if its seconds come from several kinds of device.
    """
    import math

    import matplotlib.style
    from matplotlib.figure import Figure

    styles, beds, kept = _styles(results, params["baseline"]), {}, {}
    groups = arms_of(results)
    for arm, group in groups.items():
        beds.setdefault(arm[:2], {})[arm[2]] = _spokes(group, _row(rows, arm), params)
    for bed, arms in beds.items():
        runs = [result for arm, group in groups.items() if arm[:2] == bed for result in group]
        keys = [key for key in next(iter(arms.values())) if key != SECONDS or one_device(runs)]
        kept[bed] = [key for key in keys if all(each[key] for each in arms.values())]
    beds = {bed: arms for bed, arms in beds.items() if len(arms) > 1 and params["baseline"] in arms and kept[bed]}
    with matplotlib.style.context("default"), atomic(path) as temporary:
        wide = min(3, len(beds)) or 1
        figure = Figure(figsize=(5 * wide, 4.6 * max(1, -(-len(beds) // wide))), dpi=80, layout="constrained")
        if not beds:
            figure.text(0.5, 0.5, "no two supplements to compare", ha="center")
        for place, ((data, method), arms) in enumerate(beds.items()):
            base = arms[params["baseline"]]
            spokes = kept[data, method]
            angles = [2 * math.pi * i / len(spokes) for i in range(len(spokes))]
            axes = figure.add_subplot(-(-len(beds) // wide), wide, place + 1, projection="polar")
            for supplement, each in arms.items():
                ratios = [each[key] / base[key] for key in spokes]
                label = f"{supplement} ({_seeds(groups[data, method, supplement])})"
                colour, marker = styles[supplement]
                axes.plot([*angles, 0], [*ratios, ratios[0]], color=colour, marker=marker, markersize=4, label=label)
                axes.fill([*angles, 0], [*ratios, ratios[0]], color=colour, alpha=0.06)
            axes.set_xticks(angles, spokes, fontsize=9)
            axes.tick_params(axis="x", pad=10)
            axes.set_rlabel_position(40)
            axes.set_theta_offset(math.pi / 2)
            axes.set_ylim(0, None)
            axes.set_title(f"{data}, {method}: over {params['baseline']}'s", fontsize=11)
            axes.tick_params(axis="y", labelsize=8)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=1, fontsize=9, frameon=False)
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _row(rows: list[dict], arm: tuple[str, str, str]) -> dict:
    return next(row for row in rows if (row["data"], row["method"], row["supplement"]) == arm)


def _spokes(group: list[Result], row: dict, params: dict) -> dict[str, float | None]:
    reach = row["iterations_to_baseline_heldout"]
    each = median(result.about["n_images"] / result.about["iterations"] for result in group)
    images = None if reach is None or is_reason(reach) else each * float(str(reach).removeprefix("> "))
    memory = [result.about.get("memory_gib") for result in group]
    ends = {f"{PARTS[part]}\ndistance": row[f"fd_{params['primary']}_{part}_mean"] for part in PARTS}
    return {
        SECONDS: row["step_ms_cpu"], "memory": median(memory) if all(memory) else None,
        "images to the\nbaseline's end": images, **ends,
    }  # fmt: skip
