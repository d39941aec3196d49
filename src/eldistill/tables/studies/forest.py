# SPDX-License-Identifier: Apache-2.0
"""The plot of a study: a forest plot of differences from the baseline, or the value of each arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eldistill.tables import figures, names
from eldistill.tables.effects import percent_of
from eldistill.tables.figures import COLOURS, GREY
from eldistill.tables.studies.speedplot import draw_speed

COVERED_BY = "plots"
# {column: title of the axis}. Without differences, the first of these columns that a table has is drawn.
DRAWN = {
    "part": "percent of the variance of the Fréchet distance",
    "fd_mean": "Fréchet distance, mean ± sd",
    "share": "floor: percent of the variance at the smallest batch that no batch averages out",
    "lost_percent": "percent lost after the best point of the curve, median",
}
LABEL = 44  # characters of a line of a label
BARS = ("part", "lost_percent")  # columns of DRAWN that are drawn as bars from 0
PARTS = {
    "training": "training seed",
    "ensemble": "ensemble seed",
    "rest": "interaction and noise",
}  # components of variance


@dataclass(frozen=True)
class Interval:
    """One line of the plot, in units of the axis."""

    place: int  # position from the top, starting with 0
    middle: float
    low: float
    high: float
    colour: str


def draw_study(paths: Sequence[Path], rows: list[dict], params: dict) -> None:
    """Write the figure of a study to files (png, pdf, svg): a forest plot of its differences, or else the mean of each arm with its
    standard deviation.

    rows: of the study's table. params: question, kind, against, and margin if rows have one. Equal input gives equal bytes.
    A study of the kind `speed` has panels of its own.
    """
    if params["kind"] == "speed":
        return draw_speed(paths, rows, params)
    from matplotlib.figure import Figure

    shown, value = _chosen(rows)
    with figures.plain_style():
        labels = _labels(shown)
        height = 0.27 if any("\n" in label for label in labels) else 0.19  # inches of a line
        figure = Figure(figsize=(figures.WIDTH, 1.0 + height * len(shown)), layout="constrained")
        axes = figure.subplots()
        lines = [line for place, row in enumerate(shown) if (line := _line(place, row, value)) is not None]
        for line in lines:
            _draw(axes, line, value)
        if any(row.get("margin") for row in shown):
            _shade_margin(axes, 100 * params["margin"])
        if value is None:
            axes.axvline(0, color="black", linewidth=0.8)
            _cut(axes, lines)
        axes.set_yticks(range(len(shown)), labels)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel(_axis(value, params))
        figure.suptitle(figures.wrapped(params["question"]), fontsize=9)
        figures.tidy(axes)
        axes.grid(visible=False, axis="y")
        return figures.save(figure, paths)


def _chosen(rows: list[dict]) -> tuple[list[dict], str | None]:
    """The rows that are drawn, and the column of DRAWN; the column is None for differences in percent of the baseline."""
    if "share_training" in rows[0]:  # one bar for each part of the variance
        rows = [part for row in rows for part in _by_part(row)]
    # A row without a percentage, because its baseline is 0, has no position on the common axis.
    compared = [row for row in rows if row.get("difference") is not None and row.get("percent") is not None]
    if compared:
        return compared, None
    value = next(key for key in DRAWN if key in rows[0])
    return [row for row in rows if row[value] is not None] or rows, value  # an empty line would look like a 0


def _by_part(row: dict) -> list[dict]:
    shares = {text: row[f"share_{key}"] for key, text in PARTS.items()}
    return [{**row, "supplement": f"{row['supplement']}, {text}", "part": None if share is None else 100 * share}
            for text, share in shares.items()]  # fmt: skip


def _labels(rows: list[dict]) -> list[str]:
    # With what differs between the lines before the arm; a long label has two lines.
    places = [[names.data_name(row["data"]).short, names.space_name(row["space"]).short if row.get("space") else "",
               *(str(row.get(key) or "") for key in ("equal", "gradient"))] for row in rows]  # fmt: skip
    varying = [column for column, values in enumerate(zip(*places, strict=True)) if len(set(values)) > 1]
    labels = []
    for row, place in zip(rows, places, strict=True):
        supplement, *part = row["supplement"].split(", ")  # a part of the variance follows the name
        arm = ", ".join([names.arm_name(row["method"], supplement).short, *part])
        before = ", ".join(place[column] for column in varying if place[column])
        labels.append(figures.wrapped(f"{before}: {arm}" if before else arm, LABEL))
    return labels


def _line(place: int, row: dict, value: str | None) -> Interval | None:
    if value is None:
        return _difference(place, row)
    middle = row[value]
    if middle is None:
        return None
    if row.get(f"{value}_low") is not None:
        return Interval(place, middle, row[f"{value}_low"], row[f"{value}_high"], GREY)
    reach = row.get("fd_sd") or 0.0 if value == "fd_mean" else 0.0
    return Interval(place, middle, middle - reach, middle + reach, GREY)


def _difference(place: int, row: dict) -> Interval:
    # Percent of the baseline, so that all data settings and feature spaces share one axis.
    unit, middle = percent_of(row), row["percent"]
    if row["low"] is None:  # one seed has no interval and is drawn in grey
        return Interval(place, middle, middle, middle, GREY)
    low, high = row["low"] * unit, row["high"] * unit
    return Interval(place, middle, low, high, COLOURS[1] if low > 0 or high < 0 else GREY)


def _draw(axes, line: Interval, value: str | None) -> None:
    if value in BARS:
        axes.barh(line.place, line.middle, height=0.6, color=COLOURS[1])
        return
    axes.plot([line.low, line.high], [line.place, line.place], color=line.colour, linewidth=1.6)
    axes.plot(line.middle, line.place, "o", color=line.colour, markersize=4)


def _shade_margin(axes, margin: float) -> None:
    # The differences that count as equal, in percent of the baseline, with a label above the plot.
    axes.axvspan(-margin, margin, color=COLOURS[2], alpha=0.15, linewidth=0, zorder=0)
    axes.annotate(f"equivalent: ±{margin:g} %", (0, 1), (0, 2), ("data", "axes fraction"), textcoords="offset points",
                  ha="center", va="bottom", fontsize=6.5, color=GREY)  # fmt: skip


def _cut(axes, lines: list[Interval]) -> None:
    # A few wide intervals would make all others look like points. They are cut, and a label states their ends.
    wide = sorted(max(abs(line.low), abs(line.high)) for line in lines)
    reach = 1.25 * wide[int(0.75 * (len(wide) - 1))]
    if not reach or wide[-1] < 4 * reach:
        return
    axes.set_xlim(-reach, reach)
    for line in lines:
        if max(abs(line.low), abs(line.high)) > reach:
            side = 1 if line.high > reach else -1
            text = f"{line.middle:+.0f} [{line.low:.0f}, {line.high:.0f}]"
            axes.annotate(text, (side * reach, line.place), (-4 * side, 1.5), textcoords="offset points", fontsize=6,
                          color=line.colour, ha="right" if side > 0 else "left", va="bottom")  # fmt: skip


def _axis(value: str | None, params: dict) -> str:
    if value is not None:
        return DRAWN[value]
    return (
        f"Fréchet distance minus that of {names.baseline_name(params['against'])}, in percent of it, with its interval"
    )
