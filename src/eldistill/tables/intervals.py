# SPDX-License-Identifier: Apache-2.0
"""The forest plot of a page: one line for each comparison, in SVG inside HTML, so that it fits every width and colour scheme."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from eldistill.tables import names
from eldistill.tables.effects import Effect
from eldistill.tables.figures import round_step
from eldistill.tables.headline import MEASURE

COVERED_BY = "report"
FOREST_STYLE = """
.forest { --low: #0072B2; --high: #C04E00; --open: #767676; }
.forest ol { list-style: none; margin: 0; padding: 0; }
.forest li { display: grid; grid-template-columns: minmax(9rem, 17rem) 1fr minmax(11rem, max-content); column-gap: .8rem;
  line-height: 1.3; }
.forest .arm, .forest .value { align-self: center; }
.forest li.data { display: block; font-weight: bold; padding: .8rem 0 .2rem; }
.forest .plot { order: 1; position: relative; min-height: 22px; }
.forest .plot > svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.forest .value { order: 2; font-variant-numeric: tabular-nums; font-size: .9rem; white-space: nowrap; }
.forest svg svg { overflow: visible; }
.forest svg text { fill: currentColor; font: 12px system-ui, sans-serif; text-anchor: middle; }
.forest .tick { stroke: var(--line); } .forest .zero { stroke: currentColor; stroke-width: 1.5; }
.forest .low { --mark: var(--low); } .forest .high { --mark: var(--high); } .forest .open { --mark: var(--open); }
.forest .span { stroke: var(--mark); stroke-width: 2.5; } .forest .out { fill: var(--mark); }
.forest circle { stroke: var(--mark); stroke-width: 2; fill: var(--paper); }
.forest .sure circle { fill: var(--mark); } .forest .sure .value { font-weight: bold; }
.forest .sides { display: flex; justify-content: space-between; gap: 1rem; font-size: .85rem; margin: .3rem 0; }
.forest .sides span + span { text-align: right; }
@media (prefers-color-scheme: dark) { .forest { --low: #56B4E9; --high: #F09A4A; --open: #9A9A9A; } }
@media (max-width: 40rem) { .forest li { grid-template-columns: 1fr auto; } .forest .plot { grid-column: 1 / -1; order: 3; }
  .forest li > .arm { font-size: .9rem; }
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


def forest(effects: Sequence[Effect], against: str, confidence: float, measure: str = MEASURE) -> str:
    """The plot as HTML; empty without effects.

    effects: in the order of the lines; a data setting has a heading if there are several. against: the baseline. measure: what is
    compared. confidence: of the intervals, from 0 to 1. Intervals that are much wider than most end in a triangle; their numbers
    stand beside them."""
    if not effects:
        return ""
    scale, several, lines = scale_of(effects), len({each.data for each in effects}) > 1, []
    for place, effect in enumerate(effects):
        if several and (place == 0 or effects[place - 1].data != effect.data):
            lines.append(f'<li class="data">{html.escape(names.data_name(effect.data).text)}</li>')
        lines.append(_line(effect, scale))
    base = html.escape(names.baseline_name(against))
    return (
        f'<figure class="forest"><ol>{"".join(lines)}{_axis(scale)}</ol>'
        '<p class="sides"><span>← lower than the baseline, which is better</span><span>higher, which is worse →</span></p>'
        f"<figcaption>{measure[0].upper()}{measure[1:]}, in percent of that of {base}, with {100 * confidence:g} % intervals, "
        "which are not corrected. A filled point remains after the correction for the number of comparisons; a ring in colour "
        f"differs only by itself; a grey ring is undecided. {html.escape(_spelled(effects))}</figcaption></figure>"
    )


def _spelled(effects: Sequence[Effect]) -> str:
    # What the short names of methods and supplements stand for.
    found: dict[str, str] = {}
    for effect in effects:
        method, _, supplement = effect.raw.partition("/")
        for name in (names.method_name(method), *map(names.supplement_name, supplement.split("+"))):
            short, text = (each.split(" (")[0] for each in (name.short, name.text))  # without the ending of a variant
            if short != text:
                found[short] = text
    return "; ".join(f"{short}: {text}" for short, text in found.items()) + ("." if found else "")


def scale_of(effects: Sequence[Effect]) -> Scale:
    """An axis with 0 that holds all means, and the intervals but for a few that are more than twice as wide as most."""
    middles = [abs(each.percent) for each in effects]
    wide = sorted(max(abs(each.low or each.percent), abs(each.high or each.percent)) for each in effects)
    most = 1.25 * wide[int(0.75 * (len(wide) - 1))]
    reach = max(most, 1.1 * max(middles)) if wide[-1] > 2 * most else wide[-1]
    values = [value for each in effects for value in (each.percent, each.low, each.high) if value is not None]
    low, high = (max(min(*values, 0.0), -reach), min(max(*values, 0.0), reach))
    room = 0.06 * (high - low) or 1.0
    low, high = low - room, high + room
    step = round_step((high - low) / 6)
    ticks = tuple(step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1))
    return Scale(low, high, ticks)


def _line(effect: Effect, scale: Scale) -> str:
    side = "low" if effect.percent < 0 else "high"
    kind = f"{side} sure" if effect.certain else side if effect.by_itself else "open"
    value, arm, raw = effect.text(), html.escape(effect.arm), html.escape(f"{effect.data}/{effect.raw}", quote=True)
    drawn = "".join(f'<line class="tick" x1="{x}" x2="{x}" y1="0" y2="100%"/>' for x in map(scale.place, scale.ticks))
    drawn += f'<line class="zero" x1="{scale.place(0)}" x2="{scale.place(0)}" y1="0" y2="100%"/>'
    if effect.low is not None and effect.high is not None:
        ends = scale.place(effect.low), scale.place(effect.high)
        drawn += f'<line class="span" x1="{ends[0]}" x2="{ends[1]}" y1="50%" y2="50%"/>'
        drawn += "".join(
            f'<svg x="{scale.place(end)}" y="50%" style="width:1px"><path class="out" d="M0 -5L{8 * way} 0L0 5z"/></svg>'
            for end, way in ((effect.low, -1), (effect.high, 1)) if not scale.low <= end <= scale.high
        )  # fmt: skip
    drawn += f'<circle cx="{scale.place(effect.percent)}" cy="50%" r="5"/>'
    return (
        f'<li class="{kind}"><span class="arm" title="{raw}">{arm}</span><span class="value">{value}</span>'
        f'<span class="plot"><svg role="img" aria-label="{arm}: {value}, {effect.verdict}">{drawn}</svg></span></li>'
    )


def _axis(scale: Scale) -> str:
    marks = ""
    for tick in scale.ticks:
        place = float(scale.place(tick).removesuffix("%"))
        anchor = "start" if place < 8 else "end" if place > 92 else "middle"  # so that no number leaves a narrow window
        marks += f'<text x="{place:g}%" y="14" style="text-anchor: {anchor}">{_tick(tick)}</text>'
    return f'<li aria-hidden="true"><span class="arm"></span><span class="value"></span><span class="plot"><svg>{marks}</svg></span></li>'


def _tick(value: float) -> str:
    return "0" if not round(value, 9) else f"{value:+.4g} %".replace("-", "−")
