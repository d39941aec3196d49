# SPDX-License-Identifier: Apache-2.0
"""The report of a suite: one self-contained HTML page with its runs, tables and pictures, and the origin of every number.

The page loads nothing and runs no script; a checkbox enlarges pictures. It is readable on a phone and on paper.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection
from pathlib import Path

from eldistill.files import read_rows, write_text
from eldistill.plan.recipes import WORDS
from eldistill.tables import citations, grids, judged
from eldistill.tables.page import STYLE, markdown_to_html, picture, short_table

RECIPE = ("report", 5)  # ratios to the baseline in place of a radar plot


def make_report(
    suite: str, params: dict, root: Path, tables: dict[str, Path], output: Path, absent: Collection[str] = ()
) -> None:
    """Write the report of a suite to `output`.

    params: runs, baseline, confidence, primary, steps; judges, as `judged.section` takes them; papers: keys of
    citations.csv. tables: {file name: path} of the suite's tables and pictures. root: folder with data/evaluations. absent: paths of
    pictures that kept results lack; the number of those left out is said. Raises Problem for a missing file."""
    runs = params["runs"]
    first = first_of_each_arm(grids.with_pictures(runs, absent))
    left_out = grids.elsewhere(len(first_of_each_arm(runs)) - len(first))
    beds = list(dict.fromkeys(run.split("/")[0] for run in runs))
    parts = [
        f"<h1>eldistill: suite {html.escape(suite)}</h1>",
        "<nav>" + "".join(f'<a href="#{name}">{text}</a>' for name, text in SECTIONS.items()) + "</nav>",
        _what(params, beds), f'<h2 id="tables">{SECTIONS["tables"]}</h2>',
        # Without the heading of main.md, because the page has its title.
        re.sub(r"^<h1>.*?</h1>\n", "", markdown_to_html(tables["main.md"].read_text(encoding="utf-8"))),
        _theirs(tables["published.csv"]), judged.section(params.get("judges", [])), f'<h2 id="curves">{SECTIONS["curves"]}</h2>',
        picture("Fréchet distance of the running average of the generator against iterations", tables["curves.png"], False),
        picture("The same, held-out, against iterations, CPU seconds and FLOP", tables["costs.png"], False),
        picture("Cost and result divided by those of the baseline: left of 1 is better", tables["ratios.png"], False),
        f'<h2 id="images">{SECTIONS["images"]}</h2>',
        "<p>From the same noise, one network call each (the teacher: many), not selected; choose a grid to enlarge it. A "
        "generator need not map a noise to its teacher's image.</p>",
        '<div class="grids">',
    ]  # fmt: skip
    for bed in beds:
        for which, text in (("real", "held-out images"), ("teacher", "teacher")):
            if grids.with_pictures([f"{bed}/{which}"], absent):
                parts.append(picture(f"{bed}: {text}", root / f"data/evaluations/{bed}/{which}/samples.png"))
        parts += [
            picture(run, root / f"data/evaluations/{run}/samples.png") for run in first if run.split("/")[0] == bed
        ]
    parts += ["</div>", '<h3>From one noise to another</h3><div class="grids">']
    between = grids.with_pictures(first, absent, "interpolation.png")
    parts += [picture(run, root / f"data/evaluations/{run}/interpolation.png") for run in between]
    parts += ["</div>", *([f"<p>{left_out}</p>"] if left_out else [])]
    parts += [f'<h2 id="origins">{SECTIONS["origins"]}</h2>', _origins(tables["runs.csv"])]
    parts.append(citations.section(params.get("papers", [])))
    write_text(
        output,
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<link rel="icon" href="data:,"><title>eldistill: {html.escape(suite)}</title><style>{STYLE}</style></head><body>\n'
        + "\n".join(parts) + "\n</body></html>\n",
    )  # fmt: skip


def first_of_each_arm(runs: list[str]) -> list[str]:
    """The first run of each arm (DATA/METHOD/SUPPLEMENT), in the order of the runs."""
    return list({run.rsplit("/", 1)[0]: run for run in reversed(runs)}.values())[::-1]


SECTIONS = {
    "run": "What was run",
    "tables": "Tables",
    "curves": "Curves and cost",
    "images": "Images",
    "origins": "Origins",
}


def _what(params: dict, beds: list[str]) -> str:
    # The number of steps of each of the six kinds, and the arms.
    arms: dict[tuple[str, str], dict[str, list[str]]] = {}
    for run in params["runs"]:
        data, method, supplement, seed = run.split("/")
        arms.setdefault((data, method), {}).setdefault(supplement, []).append(seed)
    rows = []
    for (data, method), each in arms.items():
        by_seeds: dict[str, list[str]] = {}  # supplements with the same seeds share a row
        for supplement, seeds in each.items():
            by_seeds.setdefault(", ".join(sorted(seeds, key=int)), []).append(supplement)
        rows += [[f"{data}/{method}", ", ".join(names), seeds] for seeds, names in by_seeds.items()]
    count = params.get("steps", {})
    flow = "".join(
        f"<li><b>{word}</b>{count[word]} step{'s' if count[word] != 1 else ''}</li>" for word in WORDS if word in count
    )
    return (
        f'<h2 id="run">{SECTIONS["run"]}</h2><p>{len(params["runs"])} one-step generators on {", ".join(map(html.escape, beds))}, '
        f"each distilled from a frozen diffusion teacher and measured against held-out images. Baseline: "
        f"<code>{html.escape(params['baseline'])}</code>; ranked in the features of <code>{html.escape(params['primary'])}</code>; "
        f"{100 * params['confidence']:g} % intervals. These distances are not FIDs, unless their name begins with fid.</p>"
        f'<ol class="flow">{flow}</ol>' + short_table(["data/method", "supplements", "seeds"], rows, "text")
    )


def _rows(path: Path) -> list[dict[str, str]]:
    return read_rows(path)


def _theirs(path: Path) -> str:
    # Published results on other data are collapsed, so that they are not compared with ours.
    rows = [row for row in _rows(path) if row.get("published_fid") and not row["data"]]
    if not rows:
        return ""
    head = ["method", "data set", "classes given", "published FID", "calls", "as", "source"]
    cells = [
        [f"{row['method']}" + (f"/{row['supplement']}" if row["supplement"] else ""), f"{row['dataset']} {row['resolution']}",
         row["conditional"], row["published_fid"], row["calls"], row["published_as"], row["source"]] for row in rows
    ]  # fmt: skip
    return (
        "<details><summary>What was published for these methods, on other data: it compares with nothing on this page</summary>"
        + short_table(head, cells, "text")
        + "</details>"
    )


def _origins(path: Path) -> str:
    rows = _rows(path)
    lines = []
    for row in rows:
        run = row["metrics_file"].removeprefix("data/evaluations/").removesuffix("/metrics.json")
        where = f"../../evaluations/{run}"
        dirty = " (with changes)" if row.get("git_dirty") == "True" else ""
        cells = [
            f'<a href="{where}/sheet.html">{html.escape(run)}</a>',
            f'<a href="{where}/metrics.json"><code>{html.escape(row["metrics_file"])}</code></a>',
            f"<code>{html.escape(row['command'])}</code>", f"<code>{html.escape(row['git_commit'])}</code>{dirty}",
            f"<code>{html.escape(row['recipe'])}</code>", html.escape(row.get("device") or ""),
        ]  # fmt: skip
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    head = "".join(
        f"<th>{name}</th>" for name in ("sheet of the run", "metrics", "made by", "git commit", "recipe", "device")
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        "<p>Every number above is a mean of, or a difference between, numbers in these files; the recipe beside a generator holds "
        "every resolved parameter. Links lead to files beside this page, as the workflow leaves them.</p>"
        f'<div class="wide"><table class="text"><tr>{head}</tr>{body}</table></div>'
    )
