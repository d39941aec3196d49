# SPDX-License-Identifier: Apache-2.0
"""Pictures of a suite: convergence curves and sample grids. Equal input gives equal bytes."""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import fmean, median, stdev

from eldistill.errors import Problem
from eldistill.files import atomic
from eldistill.tables.results import COSTS, PARTS, TEACHER, Result, arms_of, is_reason, named, one_device, short

RECIPE = ("plots", 4)  # colours and labels of one seed; names follow each data setting; legends are whole

SAMPLE_ROWS = 4
# Okabe & Ito (2008), told apart by colour-blind readers; black first, for the baseline.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"


def _panel(axes, arms: dict, rows: list[dict], styles: dict, part: str, primary: str) -> None:
    # One panel: arms of one data setting and method against one part; rows: the yardsticks.
    for (data, method, supplement), results in arms.items():
        column, points = named(results[0].curve[0], "fd", primary, part), {}
        colour, marker = styles[supplement]
        for result in results:
            curve = {int(point["n_images"]): float(point[column]) for point in result.curve}
            for n_images, value in curve.items():
                points.setdefault(n_images, []).append(value)
            if len(results) > 1:
                axes.plot(curve.keys(), curve.values(), color=colour, linewidth=0.8, alpha=0.4)
        mean = {n: fmean(values) for n, values in sorted(points.items()) if len(values) == len(results)}
        label = f"{supplement} ({_seeds(results)})"
        style = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 2, "label": label}
        axes.plot(mean.keys(), mean.values(), **style)
        _band(axes, {n: points[n] for n in mean}, colour)
        axes.set(title=f"{data}, {method}: against {PARTS[part]} images", xlabel="generated images in training")
        axes.set(ylabel=f"Fréchet distance (lower is better)\n{column}")
    # Against train images there is no floor: that of 360 held-out ones lies above what 5,000 generated reach.
    rows = rows if part == "heldout" else [None, rows[1]]
    for row, what, dash in zip(rows, ("noise floor", "teacher"), ((0, (1, 1.5)), (0, (6, 2))), strict=True):
        if row is None:
            continue
        value, name = row[f"fd_{primary}_{part}_mean"], row[f"metric_{part}"].split("_")[0]
        axes.axhline(value, color="#777777", linestyle=dash, label=f"{what}, {name}: {short(value)}")
    _dress(axes)


def _seeds(results: list[Result]) -> str:
    return f"mean of {len(results)} seeds" if len(results) > 1 else "1 seed"


def _band(axes, points: dict[float, list[float]], colour: str) -> None:
    # Mean ± deviation over seeds; where that would reach below the smallest one, only as far as it.
    if min(map(len, points.values()), default=0) > 1:
        ends = [(max(fmean(v) - stdev(v), min(v)), fmean(v) + stdev(v)) for v in points.values()]
        axes.fill_between(list(points), *zip(*ends, strict=True), color=colour, alpha=0.12, linewidth=0)


def _ticks(axes) -> None:
    # A logarithmic axis, unless nothing on it is above 0.
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
    axes.legend(frameon=False, fontsize=10)


def _styles(results: list[Result], baseline: str) -> dict[str, tuple[str, str]]:
    # Black is the baseline's, in every panel and also where it is absent.
    others = dict.fromkeys(result.arm[2] for result in results if result.arm[2] != baseline)
    looks = itertools.cycle(zip(COLOURS[1:], MARKERS[1:], strict=True))
    return {baseline: (COLOURS[0], MARKERS[0])} | dict(zip(others, looks, strict=False))


def draw_curves(path: Path, results: list[Result], rows: list[dict], params: dict) -> None:
    """curves.png: two panels (held-out, train) of 600 x 500 pixels for each data setting and method.

    Thick: mean over the seeds at points that all of them have; thin: each seed; dashed: the two yardsticks.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    arms, styles = arms_of(results), _styles(results, params["baseline"])
    beds = list(dict.fromkeys(arm[:2] for arm in arms))
    with matplotlib.style.context("default"), atomic(path) as temporary:
        figure = Figure(figsize=(12, 5 * len(beds)), dpi=100, layout="constrained")
        for panels, bed in zip(figure.subplots(len(beds), 2, squeeze=False), beds, strict=True):
            here = {arm: group for arm, group in arms.items() if arm[:2] == bed}
            yardsticks = [row for row in rows if row["data"] == bed[0] and row["seeds"] is None]
            for axes, part in zip(panels, PARTS, strict=True):
                _panel(axes, here, yardsticks, styles, part, params["primary"])
        figure.savefig(temporary, format="png", metadata={"Software": None})


SPENT = {  # what a curve can be drawn against: title, and what an iteration costs of it
    "iterations": COSTS["iterations"],
    "generated images": lambda result: result.about["n_images"] / result.about["iterations"],
    "CPU seconds": COSTS["seconds"],
    "FLOP": COSTS["FLOP"],
}


def draw_costs(path: Path, results: list[Result], params: dict) -> None:
    """costs.png: for each data setting and method the held-out curves against iterations, images, CPU seconds and FLOP.

    Means over seeds with a band of one deviation. An arm's price is the median of its runs', for that of one run depends on
    what else the machine was doing. A panel whose price nobody measured, or not on one kind of device, says so.
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
            first = next(iter(here.values()))[0]  # another data setting may be measured by another number of images
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


SECONDS = "seconds an\niteration"  # a spoke of radar.png


def draw_radar(path: Path, results: list[Result], rows: list[dict], params: dict) -> None:
    """radar.png: what an arm costs and where it ends, over the baseline's: smaller is better on every axis.

    Axes: CPU seconds an iteration; peak memory of the process; generated images until the distance is at or below the
    baseline's last (the whole length where that is not reached); held-out and train distance at the end. An axis that was
    not measured for all arms of a data setting and method, or whose seconds are of several devices, is left out.
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


def _picture(path: Path, columns: int, width: int):
    # The first rows of a grid of square images, enlarged by a whole number.
    from PIL import Image

    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except OSError as error:
        raise Problem(f"{path} is no picture ({error}); delete it and run `snakemake all`") from None
    picture = picture.crop((0, 0, picture.width, min(picture.height, SAMPLE_ROWS * picture.width // columns)))
    scale = max(1, width // picture.width)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def draw_samples(path: Path, results: list[Result], params: dict, root: Path) -> None:
    """samples.png: the teacher's and each arm's first images (lowest seed), labelled, two panels a row."""
    from PIL import Image, ImageDraw, ImageFont

    places: dict[str, list[tuple[str, str]]] = {}
    for (data, method, supplement), group in arms_of(results).items():
        run = min(group, key=lambda result: result.seed)
        panels = places.setdefault(data, [(f"{data}: {TEACHER}", f"{data}/teacher")])
        panels.append((f"{data}: {method}, {supplement}, seed {run.seed}", run.run))
    panels = [(text, _picture(root / f"data/evaluations/{folder}/samples.png", params["grid"], 576))
              for group in places.values() for text, folder in group]  # fmt: skip
    label, gap = 36, 24
    width, height = (max(getattr(picture, side) for _, picture in panels) for side in ("width", "height"))
    rows = -(-len(panels) // 2)
    board = Image.new("RGB", (2 * width + 3 * gap, rows * (height + label + gap) + gap // 2), "white")
    pen, font = ImageDraw.Draw(board), ImageFont.load_default(size=22)
    for i, (text, picture) in enumerate(panels):
        x, y = gap + i % 2 * (width + gap), gap // 2 + i // 2 * (height + label + gap)
        pen.text((x, y), text, fill="black", font=font)
        board.paste(picture, (x, y + label))
    with atomic(path) as temporary:
        board.save(temporary, format="PNG")


def _cut(axes, ends: list[tuple]) -> None:
    # A few wide intervals must not make points of all the others: they are cut, and say where they would end.
    wide = sorted(max(abs(low), abs(high)) for _, _, low, high, _ in ends)
    reach = 1.25 * wide[int(0.75 * (len(wide) - 1))]
    if not reach or wide[-1] < 4 * reach:
        return
    axes.set_xlim(-reach, reach)
    for place, middle, low, high, colour in ends:
        if max(abs(low), abs(high)) > reach:
            side = 1 if high > reach else -1
            text = f"{middle:+.0f} [{low:.0f}, {high:.0f}]"
            axes.annotate(text, (side * reach, place), (-4 * side, 4), textcoords="offset points", fontsize=8, color=colour,
                          ha="right" if side > 0 else "left", va="bottom")  # fmt: skip


DRAWN = {
    "part": "percent of the variance of the Fréchet distance",
    "iterations": "iterations until the distance stays below the threshold, median over seeds",
    "fd_mean": "Fréchet distance, mean ± sd",
    "snr": "signal of the supplement over its noise",
    "share": "floor: percent of the variance at the smallest batch that no batch averages out",
    "lost_percent": "percent lost after the best point of the curve, median",
}


BARS = ("part", "iterations", "lost_percent", "snr")


def draw_study(path: Path, rows: list[dict], params: dict) -> None:
    """A picture of a study: where there are differences a forest of them, else each arm's mean with its deviation."""
    import matplotlib.style
    from matplotlib.figure import Figure

    if "share_training" in rows[0]:  # one bar for each part of the variance
        names = {"training": "training seed", "ensemble": "ensemble seed", "rest": "interaction and noise"}
        rows = [
            {**row, "supplement": f"{row['supplement']}, {text}", "part": None if (share := row[f"share_{key}"]) is None else 100 * share}
            for row in rows for key, text in names.items()
        ]  # fmt: skip
    # Without a percent, which a baseline of 0 has not, there is no place on the common axis.
    compared = [row for row in rows if row.get("difference") is not None and row.get("percent") is not None]
    shown = compared or rows
    # A table without distances is drawn by the first of these that it has.
    value, title = next((key, text) for key, text in DRAWN.items() if key in shown[0])
    shown = compared or [row for row in shown if row[value] is not None] or shown  # an empty place would look like a 0
    labels = [
        ", ".join(str(row[key]) for key in ("data", "space", "equal", "gradient") if row.get(key))
        + f": {row['method']}/{row['supplement']}"
        for row in shown
    ]
    with matplotlib.style.context("default"), atomic(path) as temporary:
        figure = Figure(figsize=(10, 1.4 + 0.32 * len(shown)), dpi=100, layout="constrained")
        axes = figure.subplots()
        ends = []
        for place, row in enumerate(shown):
            # Differences in percent of the baseline: one axis for all data settings and feature spaces.
            unit = row["percent"] / row["difference"] if compared and row["difference"] else 1.0
            middle = row["difference"] * unit if compared else row[value]
            if middle is None:
                continue
            reach = row.get("fd_sd") or 0.0 if value == "fd_mean" else 0.0
            low, high = (row["low"], row["high"]) if compared else (middle - reach, middle + reach)
            if value in BARS and not compared:
                axes.barh(place, middle, height=0.6, color=COLOURS[1])
                continue
            if not compared and row.get(f"{value}_low") is not None:
                low, high = row[f"{value}_low"], row[f"{value}_high"]
            if compared:
                low, high = (middle, middle) if low is None else (low * unit, high * unit)
            sure = compared and row["low"] is not None and (low > 0 or high < 0)  # one seed is never sure
            colour = COLOURS[1] if sure else "#777777"
            ends.append((place, middle, low, high, colour))
            axes.plot([low, high], [place, place], color=colour, linewidth=2.5)
            axes.plot(middle, place, "o", color=colour)
            if row.get("margin"):
                axes.plot(
                    [-100 * params["margin"], 100 * params["margin"]], [place + 0.25] * 2, color=COLOURS[2], linewidth=1
                )
        if compared:
            axes.axvline(0, color="black", linewidth=1)
            _cut(axes, ends)
        axes.set_yticks(range(len(shown)), labels, fontsize=9)
        axes.invert_yaxis()
        what = (
            f"Fréchet distance minus {params['against']}'s in percent of it, with its interval" if compared else title
        )
        if any(row.get("margin") for row in shown):
            what += "\nthin line: the margin of equivalence"
        axes.set(xlabel=what, title=params["question"])
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(temporary, format="png", metadata={"Software": None})
