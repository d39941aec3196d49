# SPDX-License-Identifier: Apache-2.0
"""The sheet of a run: one HTML page with its metrics, curves, training log and images.

This module has no RECIPE, because a change of the page does not make any number stale.
"""

from __future__ import annotations

import html
import math
from pathlib import Path

from eldistill.errors import Problem, brief
from eldistill.files import read_json, read_rows, write_text
from eldistill.tables import logged, names
from eldistill.tables.chart import CHART_STYLE, line_chart
from eldistill.tables.page import document, picture, short_table
from eldistill.tables.results import PARTS, short

GROUPS = {  # {heading: endings of the logged names that belong to it}; all other names are loss terms
    "Gradients": ("gradient_norm", "gradient_rms", "base_rms"),
    "The supplement's signal": ("weight", "share", "bounded", "snr", "cosine", "optimal", "trace_ratio", "signal"),
}
LOGARITHMIC = (*GROUPS["Gradients"], "weight", "snr")
OTHER = "without a part"  # column for metrics that compare with neither part of the data alone


def make_sheet(run: str, root: Path, output: Path) -> None:
    """Write the sheet of a run to `output`. root: folder with data/runs and data/evaluations. Raises Problem for a damaged input."""
    folder, trained = root / "data/evaluations" / run, root / "data/runs" / run
    metrics, about = read_json(folder / "metrics.json"), read_json(trained / "provenance.json")
    log, curve = (_columns(path) for path in (trained / "log.csv", folder / "curve.csv"))
    data, method, supplement, seed = run.split("/")
    title = f"{names.data_name(data).text}: {names.arm_name(method, supplement).text}, seed {seed}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p><code>{html.escape(run)}</code>: {about['n_images']:,} generated images in {about['iterations']:,} iterations. Host, times, "
        f"commit and command are in <code>data/runs/{html.escape(run)}/provenance.json</code>, and every resolved parameter is in the "
        "recipe beside it.</p>",
        "<h2>Distances during training</h2>", _charts(curve, [name for name in curve if name.startswith(("fd", "fid"))], True),
        *_logged(log),
        "<h2>Images</h2>", picture("one image of each noise, not selected", folder / "samples.png"),
        picture("from one noise to another, a row each", folder / "interpolation.png"),
        "<h2>Every metric</h2>", _metrics(metrics),
    ]  # fmt: skip
    write_text(output, document(f"eldistill: {run}", parts, CHART_STYLE))


def _columns(path: Path) -> dict[str, list[float]]:
    # The columns of a CSV file. Empty cells, of numbers that were not yet logged, become NaN, which charts show as gaps.
    try:
        rows = read_rows(path, then="make the run again", missing=f"{path} is missing; make the run again")
        return {name: [float(row[name]) if row[name] else math.nan for row in rows] for name in rows[0]} if rows else {}
    except (ValueError, TypeError) as error:
        raise Problem(f"{path} is damaged ({brief(error)}); delete it and make the run again") from None


def _logged(log: dict[str, list[float]]) -> list[str]:
    named = [name for name in log if name not in ("n_images", "iteration")]
    in_groups = {ending for endings in GROUPS.values() for ending in endings}
    groups = {"Loss terms": [name for name in named if logged.split(name)[1] not in in_groups]}
    groups |= {title: [name for name in named if logged.split(name)[1] in ends] for title, ends in GROUPS.items()}
    return [f"<h2>{title}</h2>{_charts(log, found)}" for title, found in groups.items() if found]


def _charts(columns: dict[str, list[float]], found: list[str], distances: bool = False) -> str:
    # One small panel for each number, because their scales differ.
    if not found:
        return "<p>Nothing was measured.</p>"
    panels = []
    for name in found:
        title = names.metric_name(name).short if distances else logged.logged_name(name)
        log = distances or logged.split(name)[1] in LOGARITHMIC
        panels.append(line_chart(title, name, columns["n_images"], columns[name], log))
    notes = dict.fromkeys(filter(None, (logged.note(name) for name in found)))
    gaps = any(math.isnan(value) for name in found for value in columns[name])
    said = [*notes, *(["A gap in a curve is a line of the log without this number."] if gaps else [])]
    below = f'<p class="note">{html.escape(" ".join(said))}</p>' if said else ""
    return f'<div class="panels">{"".join(panels)}</div>{below}'


def _metrics(metrics: dict[str, float]) -> str:
    # One row for each metric, number of images and space, and one column for each part of the data; others have a column of their own.
    rows: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for raw, value in metrics.items():
        match = names.MEASURED.fullmatch(raw)
        if match and match["metric"] in names.METRICS:
            stem = raw.removesuffix(f"_{match['part']}") if match["part"] else raw
            key = (
                names.METRICS[match["metric"]].text,
                names.space_name(match["space"]).text,
                names.images(match["n"]),
                stem,
            )
            rows.setdefault(key, {})[match["part"] or OTHER] = value
        else:
            rows.setdefault((raw, "", "", raw), {})[OTHER] = value
    columns = [*PARTS, *([OTHER] if any(OTHER in each for each in rows.values()) else [])]
    return short_table(
        ["metric", "features", *(PARTS.get(part, part) for part in columns), "images", "name in metrics.json"],
        [[name, space, *(short(each.get(part)).replace("-", "−") for part in columns), n, stem]
         for (name, space, n, stem), each in rows.items()],
        "names", label="every metric of the run",
    )  # fmt: skip
