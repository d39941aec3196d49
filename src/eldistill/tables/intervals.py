# SPDX-License-Identifier: Apache-2.0
"""The forest plot of a page: one line for each comparison, in SVG inside HTML, so that it fits every width and colour scheme."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from eldistill.tables import names
from eldistill.tables.effects import Effect, Unmeasured
from eldistill.tables.figures import round_step
from eldistill.tables.headline import MEASURE
from eldistill.tables.page import unbroken

COVERED_BY = "report"
FOREST_STYLE = """
.forest { --low: #0072B2; --high: #C04E00; --open: #767676; }
.forest ol { list-style: none; margin: 0; padding: 0; display: grid; column-gap: .8rem;
  grid-template-columns: fit-content(19rem) minmax(10rem, 1fr) fit-content(14rem); }
.forest li { display: grid; grid-column: 1 / -1; grid-template-columns: subgrid; line-height: 1.3; }
.forest .arm, .forest .value { align-self: center; }
.forest li.data { display: block; font-weight: bold; padding: .8rem 0 .2rem; }
.forest .plot { order: 1; position: relative; min-height: 22px; }
.forest .plot > svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.forest .value { order: 2; font-variant-numeric: tabular-nums; font-size: .9rem; white-space: nowrap; }
.forest .words { white-space: normal; font-size: .8rem; }
.forest svg svg { overflow: visible; }
.forest svg text { fill: currentColor; font: 12px system-ui, sans-serif; text-anchor: middle; }
.forest .tick { stroke: var(--line); } .forest .zero { stroke: currentColor; stroke-width: 1.5; }
.forest .low { --mark: var(--low); } .forest .high { --mark: var(--high); } .forest .open { --mark: var(--open); }
.forest .band { fill: var(--blue); opacity: .13; }
.forest .span { stroke: var(--mark); stroke-width: 2.5; } .forest .out { fill: var(--mark); }
.forest circle { stroke: var(--mark); stroke-width: 2; fill: var(--paper); }
.forest .sure circle { fill: var(--mark); } .forest .sure .value { font-weight: bold; }
.forest .sides { display: flex; justify-content: space-between; gap: 1rem; font-size: .85rem; margin: .3rem 0; }
.forest .sides span + span { text-align: right; }
@media (prefers-color-scheme: dark) { .forest { --low: #56B4E9; --high: #F09A4A; --open: #9A9A9A; } }
@media (max-width: 40rem) { .forest ol { display: block; }
  .forest li { column-gap: .8rem; grid-template-columns: 1fr auto; } .forest .plot { grid-column: 1 / -1; order: 3; }
  .forest .between { display: none; } .forest li > .arm { font-size: .9rem; }
  .forest .words { max-width: 11rem; text-align: right; }
  .forest li { padding-bottom: .4rem; } .forest .arm:empty, .forest .value:empty { display: none; } }
@media print { .forest { --low: #0072B2; --high: #C04E00; --open: #767676; } .forest li { break-inside: avoid; }
  .forest .plot { min-height: 16px; } }
"""


@dataclass(frozen=True)
class Scale:
    """The horizontal axis, in percent of the baseline: its ends, and round numbers on it."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> str:
        """The position of a value, as a length in SVG."""
        return f"{100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low):.2f}%"


def forest(lines: Sequence[Effect | Unmeasured], against: str, confidence: float, measure: str = MEASURE) -> str:
    """The plot as HTML; empty without effects.

    lines: in their order; a data setting or feature space has a heading if there are several. against: the baseline. measure: what is
    compared. confidence: of the intervals, from 0 to 1. Intervals that are much wider than most end in a triangle; their numbers
    stand beside them."""
    if not lines:
        return ""
    effects = [each for each in lines if isinstance(each, Effect)]
    margin = next((each.margin for each in effects if each.margin is not None), None)
    scale, headings, drawn = scale_of(lines, margin or 0.0), _headings(lines), list[str]()
    drawn += [_band_label(margin, scale)] if margin is not None else []
    for place, line in enumerate(lines):
        if headings and (place == 0 or headings[place - 1] != headings[place]):
            drawn.append(f'<li class="data">{html.escape(headings[place])}</li>')
        drawn.append(_line(line, scale) if isinstance(line, Effect) else _without_interval(line, scale))
    band = "" if margin is None else f"The shaded band is the margin of equivalence, ±{margin:g} %. "
    if any(isinstance(each, Unmeasured) and each.percent is not None for each in lines):
        band += "Where only a bound is known, a triangle points to where the difference lies. "
    base = html.escape(names.baseline_name(against))
    return (
        f'<figure class="forest"><ol>{"".join(drawn)}{_axis(scale)}</ol>'
        '<p class="sides"><span>← lower than the baseline, which is better</span><span>higher, which is worse →</span></p>'
        f"<figcaption>{measure[0].upper()}{measure[1:]}, in percent of that of {base}, with {100 * confidence:g} % intervals, "
        "which are not corrected. A filled point remains after the correction for the number of comparisons; a ring in colour "
        f"differs only by itself; a grey ring is undecided. {band}{html.escape(_spelled(lines))}</figcaption></figure>"
    )


def _headings(effects: Sequence[Effect | Unmeasured]) -> list[str]:
    # Above each line its data setting and feature space, where there are several; nothing where there is one of both.
    datas, spaces = {each.data for each in effects}, {each.where for each in effects}
    if len(datas) == 1 == len(spaces):
        return []
    parts = ([names.data_name(each.data).text] if len(datas) > 1 else [] for each in effects)
    return [
        ", ".join([*part, *([each.where] if len(spaces) > 1 else [])])
        for part, each in zip(parts, effects, strict=True)
    ]


def _spelled(effects: Sequence[Effect | Unmeasured]) -> str:
    # What the short names of methods and supplements stand for.
    found: dict[str, str] = {}
    for effect in effects:
        method, _, supplement = effect.raw.partition("/")
        for name in (names.method_name(method), *map(names.supplement_name, supplement.split("+"))):
            short, text = (
                each.split(" (")[0].split(", ")[0] for each in (name.short, name.text)
            )  # without the ending of a variant
            if short != text:
                found[short] = text
    return "; ".join(f"{short}: {text}" for short, text in found.items()) + ("." if found else "")


def scale_of(lines: Sequence[Effect | Unmeasured], margin: float = 0.0) -> Scale:
    """An axis with 0 that holds all means, and the intervals but for a few that are more than twice as wide as most.

    margin: of equivalence, in percent, whose band it holds too."""
    effects = [each for each in lines if isinstance(each, Effect)]
    middles = [abs(each.percent) for each in lines if each.percent is not None] or [1.0]
    values = [value for each in effects for value in (each.percent, each.low, each.high) if value is not None]
    values += [each.percent for each in lines if each.percent is not None] or [-1.0, 1.0]
    wide = sorted(max(abs(each.low or each.percent), abs(each.high or each.percent)) for each in effects) or middles
    most = 1.25 * wide[int(0.75 * (len(wide) - 1))]
    reach = max(most, 1.1 * max(middles)) if wide[-1] > 2 * most else max(wide[-1], *middles)
    low, high = (max(min(*values, 0.0), -reach), min(max(*values, 0.0), reach))
    low, high = min(low, -margin), max(high, margin)
    room = 0.06 * (high - low) or 1.0
    low, high = low - room, high + room
    step = round_step((high - low) / 6)
    ticks = tuple(step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1))
    return Scale(low, high, ticks)


def _line(effect: Effect, scale: Scale) -> str:
    side = "low" if effect.percent < 0 else "high"
    kind = f"{side} sure" if effect.certain else side if effect.by_itself else "open"
    drawn = _band(effect.margin, scale) + _grid(scale)
    if effect.low is not None and effect.high is not None:
        ends = scale.place(effect.low), scale.place(effect.high)
        drawn += f'<line class="span" x1="{ends[0]}" x2="{ends[1]}" y1="50%" y2="50%"/>'
        drawn += "".join(
            f'<svg x="{scale.place(end)}" y="50%" style="width:1px"><path class="out" d="M0 -5L{8 * way} 0L0 5z"/></svg>'
            for end, way in ((effect.low, -1), (effect.high, 1)) if not scale.low <= end <= scale.high
        )  # fmt: skip
    drawn += f'<circle cx="{scale.place(effect.percent)}" cy="50%" r="5"/>'
    return _row(effect, kind, f"{effect.text()}, {effect.verdict}", drawn)


def _without_interval(line: Unmeasured, scale: Scale) -> str:
    # A bound is a ring with a triangle on the side where the difference lies; without one the line has no mark.
    drawn = _grid(scale)
    if line.percent is not None:
        way, place = 1 if line.more else -1, scale.place(line.percent)
        drawn += f'<svg x="{place}" y="50%" style="width:1px"><path class="out" d="M{8 * way} -5L{16 * way} 0L{8 * way} 5z"/></svg>'
        drawn += f'<circle cx="{place}" cy="50%" r="5"/>'
    return _row(line, "open", line.text, drawn)


def _row(line: Effect | Unmeasured, kind: str, spoken: str, drawn: str) -> str:
    value = unbroken(line.text() if isinstance(line, Effect) else line.text)
    arm, raw = html.escape(unbroken(line.arm)), html.escape(f"{line.data}/{line.raw}", quote=True)
    css = "value" if isinstance(line, Effect) else "value words"
    return (
        f'<li class="{kind}"><span class="arm" title="{raw}">{arm}</span><span class="{css}">{value}</span>'
        f'<span class="plot"><svg role="img" aria-label="{arm}: {spoken}">{drawn}</svg></span></li>'
    )


def _grid(scale: Scale) -> str:
    drawn = "".join(f'<line class="tick" x1="{x}" x2="{x}" y1="0" y2="100%"/>' for x in map(scale.place, scale.ticks))
    return f'{drawn}<line class="zero" x1="{scale.place(0)}" x2="{scale.place(0)}" y1="0" y2="100%"/>'


def _band(margin: float | None, scale: Scale) -> str:
    # The margin of equivalence of a comparison that is tested for it.
    if margin is None:
        return ""
    left, right = (float(scale.place(end).removesuffix("%")) for end in (-margin, margin))
    return f'<rect class="band" x="{left:g}%" width="{right - left:.2f}%" y="0" height="100%"/>'


def _band_label(margin: float, scale: Scale) -> str:
    text = f'<text class="label" x="{scale.place(0)}" y="14">equivalent: ±{margin:g} %</text>'
    return f'<li aria-hidden="true"><span class="arm"></span><span class="value"></span><span class="plot"><svg>{text}</svg></span></li>'


def _axis(scale: Scale) -> str:
    marks, step = "", scale.ticks[1] - scale.ticks[0] if len(scale.ticks) > 4 else 0.0
    for tick in scale.ticks:
        place = float(scale.place(tick).removesuffix("%"))
        anchor = "start" if place < 8 else "end" if place > 92 else "middle"  # so that no number leaves a narrow window
        css = ' class="between"' if step and round(tick / step) % 2 else ""  # these a narrow window has no place for
        marks += f'<text{css} x="{place:g}%" y="14" style="text-anchor: {anchor}">{_tick(tick)}</text>'
    return f'<li aria-hidden="true"><span class="arm"></span><span class="value"></span><span class="plot"><svg>{marks}</svg></span></li>'


def _tick(value: float) -> str:
    return "0" if not round(value, 9) else f"{value:+.4g} %".replace("-", "−")
