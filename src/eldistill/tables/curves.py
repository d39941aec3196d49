# SPDX-License-Identifier: Apache-2.0
"""The figure of curves over training. Equal input gives equal bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from eldistill.tables import figures, names
from eldistill.tables.figures import GREY, Style
from eldistill.tables.results import NAME, PARTS, Result, arms_of, named, short

RECIPE = ("plots", 9)  # the margin of equivalence is a band; labels say what differs; ratios over paired seeds
DOTTED = {"linewidth": 0.7, "linestyle": (0, (1, 1.2))}
FAR = 2.0  # a reference run that is this many times lower than all curves is at the edge, so that it does not squeeze them
Points = dict[float, list[float]]  # {place on the horizontal axis: a value for each seed}


@dataclass(frozen=True)
class Panel:
    """The arms of one data setting and method, compared with one part of the data. rows: of the reference runs of the data."""

    arms: dict[tuple[str, str, str], list[Result]]
    rows: list[dict]
    part: str

    @property
    def results(self) -> list[Result]:
        """The results of all arms."""
        return [result for group in self.arms.values() for result in group]

    def title(self) -> str:
        """Data setting, method, part of the data and number of seeds."""
        data, method, _ = next(iter(self.arms))
        return f"{bed_title(data, method)}, {names.PARTS[self.part].text} ({seeds_text(self.arms.values())})"


def bed_title(data: str, method: str) -> str:
    """The short names of a data setting and a method."""
    return f"{names.data_name(data).short}, {names.method_name(method).short}"


def seeds_text(groups: Iterable[Sequence[Result]]) -> str:
    """How many seeds these arms have, such as `3 seeds` or `1 to 3 seeds`."""
    low, *_, high = sorted([len(group) for group in groups] * 2)
    return f"{low} to {high} seeds" if low < high else "1 seed" if high == 1 else f"{high} seeds"


def beds_of(results: list[Result]) -> dict[tuple[str, str], dict[tuple[str, str, str], list[Result]]]:
    """{(data, method): its arms}, in the order of the runs."""
    beds: dict[tuple[str, str], dict] = {}
    for arm, group in arms_of(results).items():
        beds.setdefault(arm[:2], {})[arm] = group
    return beds


def draw_curves(paths: Sequence[Path], results: list[Result], rows: list[dict], params: dict) -> None:
    """Write the figure of curves: two panels (held-out, train) for each data setting and method.

    paths: files (png, pdf, svg) of all panels together; one whose name ends with `-panels.pdf` has one page for each panel, as
    wide as a column. Thick lines are means over seeds, at points that all seeds have; thin lines are seeds; bands are one
    deviation; dotted lines are means without the running average, if they were measured. The teacher is a line and the noise floor a
    band; far below the curves they are at the edge. Both axes are logarithmic, so that the untrained generator is not shown.
    """
    beds, looks = beds_of(results), figures.styles([params["baseline"], *(result.arm[2] for result in results)])
    panels = []
    for (data, _), arms in beds.items():
        found = [row for row in rows if row["data"] == data and row["seeds"] is None]
        panels.append([Panel(arms, found, part) for part in PARTS])
    with figures.plain_style():
        together = [path for path in paths if not path.stem.endswith("-panels")]
        figures.save(_figure(panels, looks, params, (figures.WIDTH, 2.45 * len(panels) + 0.5)), together)
        for path in set(paths) - set(together):
            single = (_figure([[panel]], looks, params, (figures.COLUMN, 3.1)) for row in panels for panel in row)
            figures.save_pages(single, path)


def _figure(panels: list[list[Panel]], looks: dict[str, Style], params: dict, size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    for line, row in zip(figure.subplots(len(panels), len(panels[0]), squeeze=False), panels, strict=True):
        for axes, panel in zip(line, row, strict=True):
            _draw(axes, panel, looks, params["primary"])
    every = [result for row in panels for panel in row for result in panel.results]
    legend(figure, every, looks, size[0] <= figures.COLUMN)
    return figure


def legend(
    figure: Any, results: list[Result], looks: dict[str, Style], narrow: bool = False, lines: bool = True
) -> None:
    """One legend above all panels, with every supplement of the results.

    narrow: for a figure as wide as a column. lines: also say what thin and dotted lines mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown, several = {result.arm[2] for result in results}, any(len(group) > 1 for group in arms_of(results).values())
    handles: list[Any] = [
        Line2D(
            [],
            [],
            **look.line(markersize=4, linewidth=1.6),
            label=getattr(names.supplement_name(name), "short" if narrow else "text"),
        )
        for name, look in looks.items()
        if name in shown
    ]
    if several:
        handles += [Line2D([], [], color=GREY, linewidth=0.5, label="one seed")] if lines else []
        handles += [
            Patch(
                color=GREY, alpha=0.25, linewidth=0, label="± one deviation" if narrow else "± one deviation over seeds"
            )
        ]
    if lines and any(name.startswith("raw_") for result in results for name in result.curve[0]):
        label = "without average" if narrow else "without running average"
        handles += [Line2D([], [], color=GREY, **DOTTED, label=label)]
    figures.legend_above(figure, handles, 3 if narrow else 4)


def _draw(axes: Any, panel: Panel, looks: dict[str, Style], primary: str) -> None:
    column = named(panel.results[0].curve[0], "fd", primary, panel.part)
    means, seeds = [], []
    for (_, _, supplement), group in panel.arms.items():
        points = points_of(group, column)
        means.append((points, looks[supplement], points_of(group, f"raw_{column}")))
        seeds += [(points_of([result], column), looks[supplement]) for result in group if len(group) > 1]
    axes.set_title(panel.title(), loc="left")
    if not fit_axes(axes, [points for points, _, _ in means] + [points for points, _ in seeds]):
        return figures.note(axes, "no snapshot after the start")
    for points, look in seeds:
        axes.plot(list(points), means_of(points), color=look.colour, linewidth=0.5, alpha=0.35)
    for points, look, raw in means:
        draw_mean(axes, points, look)
        axes.plot(list(raw), means_of(raw), color=look.colour, **DOTTED)
        mark_edges(axes, raw, look)
    _references(axes, panel, primary)
    axes.set(xlabel="iterations", ylabel=ylabel(column))
    figures.small_print(axes, column)


def ylabel(column: str) -> str:
    """The label of an axis of a Fréchet distance. column: its name in curve.csv."""
    match = NAME.fullmatch(column)
    return f"Fréchet distance ↓\n({names.space_name(match['space']).text}, {names.images(match['n'])} images)"


def points_of(results: list[Result], column: str, price: float = 1.0) -> Points:
    """The snapshots after the start that all seeds have: {iteration times `price`: values}; empty if they lack the column."""
    points: Points = {}
    for result in results:
        # A short run may have several snapshots of one iteration, which are equal.
        found = {result.iteration(point): float(point[column]) for point in result.curve if point.get(column)}
        for iteration, value in found.items():
            if iteration > 0:
                points.setdefault(iteration * price, []).append(value)
    return {each: values for each, values in sorted(points.items()) if len(values) == len(results)}


def means_of(points: Points) -> list[float]:
    """The mean of the values of each point, in the order of the points."""
    return [fmean(values) for values in points.values()]


def draw_mean(axes: Any, points: Points, look: Style) -> None:
    """The line of an arm: means over seeds, with a band of one deviation that ends at the smallest value at most."""
    axes.plot(list(points), means_of(points), **look.line(markersize=3, linewidth=1.4))
    if min(map(len, points.values()), default=0) > 1:
        ends = [(max(fmean(v) - stdev(v), min(v)), fmean(v) + stdev(v)) for v in points.values()]
        axes.fill_between(list(points), *zip(*ends, strict=True), color=look.colour, alpha=0.12, linewidth=0)


def fit_axes(axes: Any, lines: list[Points]) -> bool:
    """Logarithmic axes that hold all these points; False, and nothing is changed, if there are none.

    An axis stays linear if no value on it is above 0."""
    figures.tidy(axes)
    places = [place for points in lines for place in points]
    values = [value for points in lines for each in points.values() for value in each if value > 0]
    if not places:
        return False
    if min(places) > 0:
        wide = max((max(places) / min(places)) ** 0.03, 1.02)
        figures.logarithmic(axes.xaxis, min(places) / wide, max(places) * wide)
    if values:
        high = max((max(values) / min(values)) ** 0.05, 1.1)
        figures.logarithmic(axes.yaxis, min(values) / high, max(values) * high)
    return True


def mark_edges(axes: Any, points: Points, look: Style) -> None:
    """Small triangles at the edge for points that lie above or below the panel."""
    low, high = axes.get_ylim()
    for place, mean in zip(points, means_of(points), strict=True):
        if not low <= mean <= high:
            up = mean > high
            axes.plot(place, high if up else low, "^" if up else "v", color=look.colour, markersize=3, clip_on=False)


def _references(axes: Any, panel: Panel, primary: str) -> None:
    # There is no noise floor with respect to train images, because 360 held-out images give a larger distance than 5,000 generated ones.
    rows = panel.rows if panel.part == "heldout" else [None, *panel.rows[1:2]]
    found = [(row[f"fd_{primary}_{panel.part}_mean"], row[f"metric_{panel.part}"], what)
             for row, what in zip(rows, ("noise floor", "teacher"), strict=False) if row]  # fmt: skip
    low, high = axes.get_ylim()
    near = [value for value, *_ in found if value >= low / FAR]
    if axes.get_yscale() == "log":  # room for those that are not far away, and for a line of text on the others
        low, high = min([low, *(value / 1.15 for value in near)]), max([high, *(1.15 * value for value in near)])
        low /= (high / low) ** (0.09 * (len(found) - len(near)))
        figures.logarithmic(axes.yaxis, low, high)
    below = [f"▾ {_labelled(what, value, metric)}" for value, metric, what in found if value < low]
    if below:
        axes.text(0.02, 0.02, "\n".join(below), transform=axes.transAxes, fontsize=6.5, color=GREY, va="bottom")
    for value, metric, what in found:
        if low <= value <= high:
            _reference(axes, what, value, metric, low)


def _labelled(what: str, value: float, metric: str) -> str:
    return f"{what} {short(value)} ({names.images(re.match('[a-z]+([0-9]+k?)', metric)[1])} images)"


def _reference(axes: Any, what: str, value: float, metric: str, low: float) -> None:
    # A band below the noise floor, where differences are noise, or the line of the teacher; with its label.
    if what == "teacher":
        axes.axhline(value, color=GREY, linewidth=0.9, linestyle=(0, (6, 2)))
    else:
        axes.axhspan(low, value, color=GREY, alpha=0.15, linewidth=0)
    axes.annotate(_labelled(what, value, metric), (0.02, value), (0, 2), xycoords=("axes fraction", "data"),
                  textcoords="offset points", fontsize=6.5, color=GREY, va="bottom")  # fmt: skip
