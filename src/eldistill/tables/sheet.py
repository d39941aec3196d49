# SPDX-License-Identifier: Apache-2.0
"""The sheet of a run: one HTML page with its metrics, curves, training log and images.

This module has no RECIPE, because a change of the page does not make any number stale.
"""

from __future__ import annotations

import html
import io
import math
from pathlib import Path

from eldistill.errors import Problem, brief
from eldistill.files import read_json, read_rows, write_text
from eldistill.tables.page import BLUE, STYLE, picture, short_table
from eldistill.tables.results import NAME, PARTS, short

GROUPS = {  # {heading: endings of the logged names that belong to it}; all other names are loss terms
    "Gradients": ("gradient_norm", "gradient_rms", "base_rms"),
    "The supplement's signal": ("weight", "snr", "cosine", "optimal", "trace_ratio"),
}
LOGARITHMIC = (*GROUPS["Gradients"], "weight", "snr")
NOTES = {
    "snr": "a batch's value over its running deviation: below 1 one batch alone says little",
    "trace_ratio": "spread of generated over real features: below 0.5 is collapse",
    "cosine": "angle between the supplement's gradient and the base loss's",
    "optimal": "the share that would mix both with least variance",
    "weight": "factor on the supplement's gradient",
}


def make_sheet(run: str, root: Path, output: Path) -> None:
    """Write the sheet of a run to `output`. root: folder with data/runs and data/evaluations. Raises Problem for a damaged input."""
    folder, trained = root / "data/evaluations" / run, root / "data/runs" / run
    metrics, about = read_json(folder / "metrics.json"), read_json(trained / "provenance.json")
    log, curve = (_columns(path) for path in (trained / "log.csv", folder / "curve.csv"))
    parts = [
        f"<h1>{html.escape(run)}</h1>",
        f"<p>{about['n_images']:,} generated images in {about['iterations']:,} iterations. Host, times, commit and command: "
        f"<code>data/runs/{html.escape(run)}/provenance.json</code>; every resolved parameter: the recipe beside it.</p>",
        "<h2>Distances along the way</h2>", _charts(curve, [name for name in curve if name.startswith(("fd", "fid"))], True),
    ]  # fmt: skip
    named = [name for name in log if name not in ("n_images", "iteration")]
    losses = [name for name in named if not any(name.rsplit(".", 1)[-1] in each for each in GROUPS.values())]
    groups = {"Loss terms": losses}
    groups |= {title: [name for name in named if name.rsplit(".", 1)[-1] in ends] for title, ends in GROUPS.items()}
    for title, names in groups.items():
        if names:
            parts += [f"<h2>{title}</h2>", _charts(log, names)]
    parts += ["<h2>Images</h2>", picture("images of one noise each, not selected", folder / "samples.png")]
    parts.append(picture("from one noise to another, a row each", folder / "interpolation.png"))
    parts += ["<h2>Every metric</h2>", _metrics(metrics)]
    title = f"eldistill: {html.escape(run)}"
    write_text(
        output,
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n",
    )


def _columns(path: Path) -> dict[str, list[float]]:
    # The columns of a CSV file. Empty cells, of numbers that were not yet logged, become NaN, which plots omit.
    try:
        rows = read_rows(path, then="make the run again", missing=f"{path} is missing; make the run again")
        return {name: [float(row[name]) if row[name] else math.nan for row in rows] for name in rows[0]} if rows else {}
    except (ValueError, TypeError) as error:
        raise Problem(f"{path} is damaged ({brief(error)}); delete it and make the run again") from None


def _charts(columns: dict[str, list[float]], names: list[str], logarithmic: bool = False) -> str:
    # One small panel for each number, because their scales differ.
    import matplotlib
    import matplotlib.style
    from matplotlib.figure import Figure

    if not names:
        return "<p>Nothing was measured.</p>"
    wide = 3
    rows = -(-len(names) // wide)
    with (
        matplotlib.style.context("default"),
        matplotlib.rc_context({"svg.hashsalt": "eldistill", "svg.fonttype": "none"}),
    ):
        figure = Figure(figsize=(11, 2.1 * rows + 0.3))
        panels = figure.subplots(rows, wide, squeeze=False).flat
        for name, axes in zip(names, panels, strict=False):
            values, ending = columns[name], name.rsplit(".", 1)[-1]
            axes.plot(columns["n_images"], values, color=BLUE, linewidth=1.4, marker="o", markersize=2.2)
            if (logarithmic or ending in LOGARITHMIC) and all(value > 0 for value in values if not math.isnan(value)):
                axes.set_yscale("log")
            axes.set_title(name, fontsize=8.5, loc="left")
            axes.tick_params(labelsize=7, which="both")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        for axes in list(panels):
            axes.set_visible(False)
        for axes in figure.axes[len(names) :]:
            axes.set_visible(False)
        figure.supxlabel("generated images in training", fontsize=8, y=0.0)
        high = 2.1 * rows + 0.3  # inches; matplotlib's constrained layout would take three times as long
        figure.subplots_adjust(0.05, 0.5 / high, 0.99, 1 - 0.25 / high, wspace=0.22, hspace=0.45)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    svg = drawn.getvalue()
    notes = dict.fromkeys(
        f"{ending}: {NOTES[ending]}" for name in names if (ending := name.rsplit(".", 1)[-1]) in NOTES
    )
    below = f'<p class="note">{html.escape("; ".join(notes))}.</p>' if notes else ""
    return f'<div class="chart">{svg[svg.index("<svg") :]}</div>{below}'


def _metrics(metrics: dict[str, float]) -> str:
    # A table with one row for each metric and space, and one column for each part of the data.
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for name, value in metrics.items():
        match = NAME.fullmatch(name)
        key = (f"{match['metric']}{match['n']}", match["space"]) if match else (name, "")
        rows.setdefault(key, {})[match["part"] if match else "heldout"] = value
    return short_table(
        ["metric", "features", *PARTS.values()],
        [[name, space, *(short(each.get(part)) for part in PARTS)] for (name, space), each in rows.items()],
    )
