# SPDX-License-Identifier: Apache-2.0
"""Small line charts in SVG for the sheet of a run. They take the colours of the page and need no matplotlib."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from eldistill.tables.figures import plain_number, round_step, ticks_between

COVERED_BY = "report"
WIDE, TALL = 320, 190  # units of the drawing, which are pixels at its natural size
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 8, 36  # margins for the numbers at ticks; the left one grows for long ones
MOST = 1e150  # a larger number is counted as infinite, because distances on the axis would be
LETTER = 6.2  # units of the width of a digit
CHART_STYLE = """
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: 1rem 1.5rem; }
.panels figure { margin: 0; } .panels figcaption { font-size: .9rem; opacity: 1; }
.panels small { display: block; opacity: .75; overflow-wrap: anywhere; }
.line { width: 100%; height: auto; display: block; }
.line text { fill: currentColor; font: 11px system-ui, sans-serif; } .line .grid { stroke: var(--line); stroke-width: .6; }
.line .frame { stroke: currentColor; fill: none; } .line .curve { stroke: var(--blue); stroke-width: 1.8; fill: none; }
.line circle { fill: var(--blue); }
"""


def line_chart(title: str, raw: str, places: Sequence[float], values: Sequence[float], logarithmic: bool) -> str:
    """A panel in HTML: the title, the raw name in small print, and the curve.

    places: generated images. values: as many numbers; NaN was not logged and is a gap. Infinite values cannot be drawn and are counted
    below. logarithmic: the vertical axis, if all values are above 0."""
    strange = sum(abs(y) > MOST for y in values)
    values = [math.nan if abs(y) > MOST else y for y in values]
    drawn = [(x, y) for x, y in zip(places, values, strict=True) if not math.isnan(y)]
    below = f"<p>{strange} infinite values are not drawn.</p>" if strange else ""
    head = f"<figcaption>{html.escape(title)}<small><code>{html.escape(raw)}</code></small></figcaption>"
    if not drawn:
        return f"<figure>{head}<p>No number was logged.</p>{below}</figure>"
    log = logarithmic and min(y for _, y in drawn) > 0
    across, up = _axis([x for x, _ in drawn], False, 4), _axis([y for _, y in drawn], log, 5)
    left = max(LEFT, 8 + math.ceil(LETTER * max(len(_number(tick)) for tick in up.ticks)) if up.ticks else LEFT)
    body = _frame(across, up, left) + _curve(places, values, across, up, left)
    return (
        f'<figure>{head}<svg class="line" viewBox="0 0 {WIDE} {TALL}" role="img" aria-label="{html.escape(title)}">{body}</svg>'
        f"{below}</figure>"
    )


class Axis:
    """Positions on one axis. low, high: its ends. ticks: round numbers between them."""

    def __init__(self, low: float, high: float, ticks: Sequence[float], log: bool):
        self.low, self.high, self.ticks, self.log = low, high, ticks, log

    def share(self, value: float) -> float:
        """The position of a value, 0 at the lower end and 1 at the upper one."""
        low, high, here = (math.log(each) for each in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value)  # fmt: skip
        return (here - low) / (high - low)


def _axis(values: Sequence[float], log: bool, most: int) -> Axis:
    low, high = min(values), max(values)
    if log:
        wide = max((high / low) ** 0.06, 1.05)
        low, high = low / wide, high * wide
        ticks = ticks_between(low, high)
        return Axis(low, high, ticks[:: math.ceil(len(ticks) / (most + 1))], True)
    room = 0.06 * (high - low) or abs(high) / 2 or 1.0
    low, high = low - room, high + room
    step = round_step((high - low) / most)
    return Axis(low, high, [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)], False)


def _x(axis: Axis, value: float, left: int) -> float:
    return round(left + (WIDE - left - RIGHT) * axis.share(value), 1)


def _y(axis: Axis, value: float) -> float:
    return round(TALL - BOTTOM - (TALL - TOP - BOTTOM) * axis.share(value), 1)


def _frame(across: Axis, up: Axis, left: int) -> str:
    right, top, bottom = WIDE - RIGHT, TOP, TALL - BOTTOM
    parts = [f'<path class="frame" d="M{left} {top}V{bottom}H{right}"/>']
    for tick in up.ticks:
        y = _y(up, tick)
        parts.append(f'<path class="grid" d="M{left} {y}H{right}"/>')
        parts.append(f'<text x="{left - 5}" y="{y + 4:g}" text-anchor="end">{_number(tick)}</text>')
    longest = max((len(_number(tick)) for tick in across.ticks), default=0)
    shown = max(1, int((right - left) / (LETTER * (longest + 2))))
    for tick in across.ticks[:: -(-len(across.ticks) // shown) or 1]:
        x, text = _x(across, tick, left), _number(tick)
        half = LETTER * len(text) / 2
        parts.append(f'<path class="grid" d="M{x} {top}V{bottom}"/>')
        parts.append(f'<text x="{min(x, WIDE - half):g}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
    parts.append(
        f'<text x="{(left + right) / 2:g}" y="{TALL - 4}" text-anchor="middle">generated images in training</text>'
    )
    return "".join(parts)


def _number(value: float) -> str:
    return plain_number(0.0 if abs(value) < 1e-12 else value).replace("-", "−")


def _curve(places: Sequence[float], values: Sequence[float], across: Axis, up: Axis, start: int) -> str:
    # A line that breaks where nothing was logged, and a point for each number, so that one between two gaps is seen.
    path, points, pen = "", "", "M"
    for x, y in zip(places, values, strict=True):
        if math.isnan(y):
            pen = "M"
            continue
        left, top = _x(across, x, start), _y(up, y)
        path += f"{pen}{left:g} {top:g}"
        points += f'<circle cx="{left:g}" cy="{top:g}" r="2"/>'
        pen = "L"
    return f'<path class="curve" d="{path}"/>{points}'
