# SPDX-License-Identifier: Apache-2.0
"""What all figures share: sizes, colours and markers, ticks with plain numbers, and files. Equal input gives equal bytes."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eldistill.errors import Problem
from eldistill.files import atomic

COVERED_BY = "plots"
WIDTH = 7.0  # inches of a figure as wide as the text of a page
COLUMN = 3.4  # inches of one panel, for a column of a paper
DPI = 200  # of PNG files
GREY = "#666666"
SMALL = 5.5  # points, for raw names of metrics
SPACE = 8  # pixels between a title or label and its neighbour
LINE = 84  # characters of 9 points that fit a figure of WIDTH
# Colours of Okabe & Ito (2008), which colour-blind readers can distinguish. Markers and dashes repeat the distinction in grey.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"
DASHES: tuple[Any, ...] = ("-", (0, (4, 1)), (0, (6, 1, 1, 1)))
RC = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7.5, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "svg.hashsalt": "eldistill", "svg.fonttype": "none", "pdf.fonttype": 42,
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """The colour, the marker and the dashes of the lines of a supplement."""

    colour: str
    marker: str
    dash: Any = "-"

    def line(self, **more: Any) -> dict[str, Any]:
        """Keywords of matplotlib's `plot`."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dash} | more


FIXED = ("none", "el", "pixel-mmd", "regression", "regression+el")  # supplements with the same style in every figure


def styles(supplements: Iterable[str]) -> dict[str, Style]:
    """A style for each supplement. Those of FIXED look the same in every figure; others have the remaining ones, in their order."""
    looks = [*zip(COLOURS, MARKERS, strict=True)]
    first = {name: Style(*looks[place]) for place, name in enumerate(FIXED)}
    # After the two looks that are left, colours come back with the markers of others and with dashes.
    left = itertools.chain((Style(*look) for look in looks[len(FIXED) :]), _mixed_looks())
    found: dict[str, Style] = {}
    for name in dict.fromkeys(supplements):
        found[name] = first[name] if name in first else next(left)
    return found


def _mixed_looks() -> Iterator[Style]:
    # Endless, without black.
    for shift in itertools.count(1):
        for place, marker in enumerate(MARKERS):
            yield Style(COLOURS[(place + shift) % 7 or 1], marker, DASHES[1 + shift % 2])


@contextlib.contextmanager
def plain_style() -> Iterator[None]:
    """Matplotlib's default style with this project's sizes, whatever a user's configuration says."""
    import matplotlib
    import matplotlib.style

    with matplotlib.style.context("default"), matplotlib.rc_context(RC):
        yield


# --- axes ---------------------------------------------------------------------------------------------


def plain_number(value: float) -> str:
    """A tick as text: without an exponent for readable sizes."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def round_step(wanted: float) -> float:
    """The smallest distance between ticks of a linear axis that is at least `wanted` (above 0): 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(power * step for step in (1, 2, 2.5, 5, 10) if power * step >= wanted * 0.999)


def ticks_between(low: float, high: float) -> list[float]:
    """At least three round numbers between two positive ones if there are some, at best not more than eight, for a logarithmic axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, (last - first) // 5)
    ticks: list[float] = []
    for subs in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9)):
        places = range(first, last + 1, step if len(subs) == 1 else 1)
        ticks = [tick for e in places for sub in subs if low <= (tick := float(f"{sub * 10.0**e:.6g}")) <= high]
        if len(ticks) >= 3:
            return ticks
    return ticks or [low, high]


def logarithmic(axis: Any, low: float, high: float) -> None:
    """Make an axis of matplotlib logarithmic from `low` to `high`, two positive numbers, with plain numbers at round ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes, name = axis.axes, axis.axis_name
    getattr(axes, f"set_{name}scale")("log")
    getattr(axes, f"set_{name}lim")(low, high)  # also ends matplotlib's scaling by itself
    axis.set_major_locator(FixedLocator(ticks_between(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
    axis.set_minor_locator(NullLocator())


def tidy(axes: Any) -> None:
    """A faint grid, and no frame above and to the right."""
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def legend_above(figure: Any, handles: list[Any], columns: int, **more: Any) -> None:
    """One legend above all panels, with as many columns as fit the figure, at most `columns`. more: keywords of matplotlib."""
    for count in range(columns, 0, -1):
        legend = figure.legend(
            handles=handles, loc="outside upper center", ncols=count, frameon=False, columnspacing=1.2, **more
        )
        if count == 1 or legend.get_window_extent().width < 0.98 * figure.bbox.width:
            return
        legend.remove()


def wrapped(text: str, characters: int = LINE) -> str:
    """The text in lines of at most so many characters, so that a figure does not cut it off."""
    return textwrap.fill(text, characters, break_long_words=False, break_on_hyphens=False)


def fit_labels(figure: Any) -> None:
    """Give the titles of panels, and the labels of their vertical axes, letters small enough not to meet a neighbour or be cut off.

    figure: after its layout. All titles keep one size, and all labels; nothing changes where there is room.
    """
    panels = [axes for axes in figure.axes if axes.axison]
    titles = {axes: title for axes in panels if (title := left_title(axes))}
    labels = {axes: axes.yaxis.label for axes in panels if axes.yaxis.label.get_text()}
    _shrink(labels.values(), [_height(axes, panels) / _size(label).height for axes, label in labels.items()])
    _shrink(titles.values(), [_room(axes, title, panels) / _size(title).width for axes, title in titles.items()])


def left_title(axes: Any) -> Any:
    """The text object of the title at the left of a panel; None without one."""
    from matplotlib.text import Text

    words = axes.get_title("left")
    found = [each for each in axes.get_children() if isinstance(each, Text) and each.get_text() == words]
    return found[0] if words else None


def _size(text: Any) -> Any:
    return text.get_window_extent()


def _shrink(texts: Iterable[Any], factors: list[float]) -> None:
    factor = min(factors, default=1.0)
    for text in texts if factor < 1 else ():
        text.set_fontsize(0.98 * factor * text.get_fontsize())


def _room(axes: Any, title: Any, panels: list[Any]) -> float:
    # Pixels from the left end of a title to what is right of it at the same height, a title or a label, or to the end of the figure.
    mine = _size(title)
    words = [
        text
        for each in panels
        if each is not axes
        for text in (left_title(each), each.yaxis.label)
        if text and text.get_text()
    ]
    boxes = [_size(text) for text in words]
    ends = [box.x0 - SPACE for box in boxes if box.x0 > mine.x0 and box.y0 < mine.y1 and box.y1 > mine.y0]
    return min([axes.figure.bbox.width, *ends]) - mine.x0


def _height(axes: Any, panels: list[Any]) -> float:
    # Pixels that the label of a vertical axis may have, which lies around the middle of its panel: to the middle of the nearest
    # neighbour above or below with a label, or twice to the nearer end of the figure.
    mine = axes.get_window_extent()
    middle = (mine.y0 + mine.y1) / 2
    apart = [
        abs(middle - (box.y0 + box.y1) / 2)
        for each in panels
        if each.yaxis.label.get_text() and abs((box := each.get_window_extent()).x0 - mine.x0) < 1 and each is not axes
    ]
    return min([*(each - SPACE for each in apart), 2 * middle, 2 * (axes.figure.bbox.height - middle)])


def small_print(axes: Any, text: str) -> None:
    """Raw names of what a panel shows, and the like, along its right side."""
    axes.text(1.012, 0.5, text, transform=axes.transAxes, fontsize=SMALL, color=GREY, rotation=90, va="center")


def note(axes: Any, text: str) -> None:
    """Words in place of a panel."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY)
    axes.set_axis_off()


# --- files --------------------------------------------------------------------------------------------


def save(figure: Any, paths: Iterable[Path]) -> None:
    """Write a figure to files whose endings are png, pdf or svg. Raises Problem for another ending."""
    figure.set_dpi(DPI)
    figure.draw_without_rendering()  # the layout, which takes longer than a file, once for all of them
    figure.set_layout_engine("none")
    fit_labels(figure)
    for path in paths:
        with atomic(path) as temporary:
            temporary.write_bytes(_bytes(figure, path.suffix))


def save_pages(figures: Iterable[Any], path: Path) -> None:
    """Write a PDF with one figure on each page."""
    from matplotlib.backends.backend_pdf import PdfPages

    with atomic(path) as temporary:
        with PdfPages(temporary, metadata=PLAIN["pdf"]) as pages:
            for figure in figures:
                pages.savefig(figure)


# No dates and no versions, so that equal figures have equal bytes.
PLAIN: Mapping[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}


def _bytes(figure: Any, suffix: str) -> bytes:
    kind, stored = suffix.removeprefix("."), io.BytesIO()
    if kind not in PLAIN:
        raise Problem(f"a figure cannot be written as {suffix}; expected .png, .pdf or .svg")
    figure.savefig(stored, format=kind, dpi=DPI, metadata=PLAIN[kind])
    return _with_palette(stored) if kind == "png" else stored.getvalue()


def _with_palette(png: io.BytesIO) -> bytes:
    # Lines on white need few colours: with a palette the file has a third of the size.
    from PIL import Image

    stored = io.BytesIO()
    with Image.open(png) as file:
        file.convert("RGB").quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            stored, format="PNG", optimize=True, dpi=(DPI, DPI)
        )
    return stored.getvalue()
