# SPDX-License-Identifier: Apache-2.0
"""The report of a suite: one self-contained HTML page with its result, images, tables, curves, and the origin of every number.

It begins with what the numbers say in a few sentences and one plot of all comparisons. It loads nothing and runs no script; a checkbox
enlarges pictures. It is readable on a phone, in the dark and on paper.
"""

from __future__ import annotations

import html
from collections.abc import Collection
from pathlib import Path

from eldistill.files import read_rows, write_text
from eldistill.plan.recipes import WORDS
from eldistill.tables import acrosstext, citations, judged, names
from eldistill.tables.effects import of_suite, other_spaces
from eldistill.tables.gallery import samples, strips
from eldistill.tables.headline import elsewhere, headline, headline_html
from eldistill.tables.intervals import FOREST_STYLE, forest
from eldistill.tables.page import (
    bullets,
    document,
    evaluation_link,
    figure,
    folded,
    inline,
    notice,
    sheet_links,
    short_table,
    true_minus,
)
from eldistill.tables.studies.partial import count_runs
from eldistill.tables.typeset import BELOW, NOTE, Made, Section

RECIPE = ("report", 10)  # beside the answer of a study, what KID says of it
SECTIONS = {
    "result": "Result",
    "samples": "Samples",
    "tables": "Tables",
    "curves": "Curves and costs",
    "checks": "Checks",
    "runs": "Runs and origins",
}
KINDS = {
    "distance": "Distances",
    "quality": "Quality and diversity",
    "cost": "Costs",
}  # {kind of a column: heading of its table}


def make_report(suite: str, params: dict, root: Path, made: Made, tables: dict[str, Path], output: Path,
                absent: Collection[str] = ()) -> None:  # fmt: skip
    """Write the report of a suite to `output`.

    params: runs, baseline, confidence, primary, steps, grid; judges, as `judged.section` takes them; papers: keys of citations.csv.
    made: what suite.make_tables returned. tables: {file name: path} of the suite's tables and figures. root: folder that contains
    data/evaluations. absent: paths of pictures that kept results lack; the number of those left out is said. Raises Problem for a
    missing file."""
    datas = list(dict.fromkeys(run.split("/")[0] for run in params["runs"]))
    parts = [
        f"<h1>eldistill: suite {html.escape(suite)}</h1>",
        "<nav>" + "".join(f'<a href="#{name}">{text}</a>' for name, text in SECTIONS.items()) + "</nav>",
        notice(count_runs(params["partial"], suite)) if "partial" in params else "",
        _result(made, params), _heading("samples"), samples(params, root, absent),
        _heading("tables"), *(_tables(section, params, len(datas) > 1) for section in made.sections),
        acrosstext.page(made.across, params),
        _published(tables["published.csv"]), _heading("curves"),
        figure("Fréchet distance of the running average of the generator against iterations", tables["curves.svg"], tables["curves.png"]),
        figure("Fréchet distance to held-out images against iterations, CPU seconds and FLOP", tables["costs.svg"], tables["costs.png"]),
        figure("Cost and result divided by those of the baseline: left of 1 is better", tables["ratios.svg"], tables["ratios.png"]),
        strips(params, root, absent), _heading("checks"), _checks(made.sections), judged.section(params.get("judges", [])),
        _heading("runs"), _what(params, datas), "<h3>A page for each run</h3>", sheet_links(params["runs"]), _origins(tables["runs.csv"]),
        citations.section(params.get("papers", [])),
    ]  # fmt: skip
    write_text(output, document(f"eldistill: {suite}", parts, FOREST_STYLE))


def _heading(name: str) -> str:
    return f'<h2 id="{name}">{SECTIONS[name]}</h2>'


def _result(made: Made, params: dict) -> str:
    effects, without = of_suite(made.rows, params)
    said = headline(effects, params["baseline"])
    said = f'<section id="result">{headline_html(said, [elsewhere(other_spaces(made.rows, params))])}'
    if without:
        said += (
            f"<p>{html.escape(', '.join(without))}: not in this plot, because the baseline's mean is not above 0.</p>"
        )
    if alarmed := sum(len({*section.alarms, *section.below}) for section in made.sections):
        word = "arm raises an alarm" if alarmed == 1 else "arms raise an alarm"
        said += (
            f'<p class="alarm"><a href="#checks">{alarmed} {word}</a> in other metrics. Look at their images first.</p>'
        )
    return said + forest(effects, params["baseline"], params["confidence"]) + "</section>"


# --- tables -------------------------------------------------------------------------------------------


def _tables(section: Section, params: dict, several: bool) -> str:
    # The columns of main.md in three tables that fit a screen, with readable names; sentences and notes are folded below.
    rows, kinds, titles, last = [], [], [], None
    methods = list(dict.fromkeys(method for method, _ in section.keys))  # the arms of a method stand together
    pairs = sorted(zip(section.lines, section.keys, strict=True), key=lambda pair: methods.index(pair[1][0]))
    for line, (method, supplement) in pairs:
        arm = supplement is not None
        rows.append([names.arm_name(method, supplement).short if arm else line[0], *map(true_minus, line[1:])])
        kinds.append("reference" if not arm else "group" if method != last else "")
        titles.append(f"{section.data}/{method}/{supplement}" if arm else "")
        last = method if arm else None
    made = [f"<h3>{html.escape(names.data_name(section.data).text)}</h3>"] if several else []
    for kind, title in KINDS.items():
        kept = [0, *(place for place in range(1, len(section.head)) if section.kinds[place] == kind)]
        if len(kept) > 1:
            head = ["arm", *(_head(section.head[place], params["baseline"]) for place in kept[1:])]
            made.append(f"<h4>{title}</h4>")
            shown = [i for i, row in enumerate(rows) if any(row[place] for place in kept[1:])]
            cells = [[rows[i][place] for place in kept] for i in shown]
            css, hints = [kinds[i] for i in shown], [titles[i] for i in shown]
            made.append(short_table(head, cells, "", css, hints, f"{title} on {names.data_name(section.data).text}"))
    made.append(_folded(section))
    return "\n".join(made)


def _head(title: str, base: str) -> str:
    return title.replace(f"minus {base}", "minus baseline").replace(f"to {base}'s", "to the baseline's")


def _folded(section: Section) -> str:
    said = [*section.said, *section.pairs]
    found = folded(f"Every comparison with its p-value, in {len(said)} sentences", bullets([*said, *section.notes]))
    return found + folded(
        "How to read these tables", f'<p class="note">{inline(section.intro)}</p><p class="note">{inline(NOTE)}</p>'
    )


def _published(path: Path) -> str:
    # Published results on other data are folded, so that they are not compared with ours.
    rows = [row for row in read_rows(path) if row.get("published_fid")]
    beside = [row for row in rows if row["data"]]
    head = ["method", "data set", "classes given", "published FID", "calls", "as", "source"]
    cells = [
        [f"{row['method']}" + (f"/{row['supplement']}" if row["supplement"] else ""), f"{row['dataset']} {row['resolution']}",
         row["conditional"], row["published_fid"], row["calls"], row["published_as"], row["source"]] for row in rows if not row["data"]
    ]  # fmt: skip
    found = _beside(beside) if beside else ""
    if cells:
        title = "What was published for these methods, on other data: it compares with nothing on this page"
        found += folded(title, short_table(head, cells, "text"))
    return found


def _beside(rows: list[dict[str, str]]) -> str:
    head = ["arm", "published FID", "calls", "as", "our FID", "its name", "source"]
    cells = [
        [f"{row['data']}, {row['method']}" + (f"/{row['supplement']}" if row["supplement"] else ""), row["published_fid"],
         row["calls"], row["published_as"], f"{float(row['ours']):.3g}" if row["ours"] else "", row["ours_is"], row["source"]]
        for row in rows
    ]  # fmt: skip
    note = (
        "Published values stand beside ours and are not ranked with them: teachers, batches, numbers of images, samplers and the "
        "choice of the snapshot differ, and most are the best of several."
    )
    return f"<h3>Published, beside ours</h3><p>{note}</p>" + short_table(head, cells, "text")


# --- checks -------------------------------------------------------------------------------------------


def _checks(sections: list[Section]) -> str:
    said = []
    for section in sections:
        data = names.data_name(section.data).text
        said += [f"{data}, {_arm(who)}: {'; '.join(map(_clause, clauses))}." for who, clauses in section.alarms.items()]
        said += [f"{data}, {_arm(who)} is below the noise floor. {BELOW}" for who in section.below]
    if not said:
        return "<p>No alarm: precision, recall, coverage and copies of all arms are near those of real images and of the teacher.</p>"
    intro = (
        "<h3>Alarms</h3><p>These values are far below those of real images or of the teacher. Look at the images.</p>"
    )
    return intro + f'<div class="alarm">{bullets(said)}</div>'


def _clause(text: str) -> str:
    # `is 4.59, its teacher …` begins with the name that readers know.
    metric, _, rest = text.partition(" ")
    return f"{names.METRICS[metric].short if metric in names.METRICS else metric} {rest}"


def _arm(raw: str) -> str:
    return names.arm_name(*raw.split("/", 1)).short


# --- runs ---------------------------------------------------------------------------------------------


def _what(params: dict, datas: list[str]) -> str:
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
        readable = f"{names.data_name(data).short}, {names.method_name(method).short}"
        rows += [
            [readable, ", ".join(names.supplement_name(name).short for name in found), seeds,
             f"{data}/{method}: {', '.join(found)}"] for seeds, found in by_seeds.items()
        ]  # fmt: skip
    count = params.get("steps", {})
    flow = "".join(
        f"<li><b>{word}</b>{count[word]} step{'s' if count[word] != 1 else ''}</li>" for word in WORDS if word in count
    )
    return (
        f"<p>{len(params['runs'])} one-step generators on {', '.join(html.escape(names.data_name(data).text) for data in datas)}, "
        f"each distilled from a frozen diffusion teacher and measured against held-out images. Baseline: "
        f"<code>{html.escape(params['baseline'])}</code>; ranked in the features of <code>{html.escape(params['primary'])}</code>; "
        f"{100 * params['confidence']:g} % intervals. These distances are not FIDs, unless their name begins with fid.</p>"
        f'<ol class="flow">{flow}</ol>' + short_table(["data, method", "supplements", "seeds", "names in files"], rows, "text")
    )  # fmt: skip


def _origins(path: Path) -> str:
    lines = []
    for row in read_rows(path):
        run = row["metrics_file"].removeprefix("data/evaluations/").removesuffix("/metrics.json")
        dirty = " (with changes)" if row.get("git_dirty") == "True" else ""
        cells = [
            html.escape(run),
            evaluation_link(run, "metrics.json", f"<code>{html.escape(row['metrics_file'])}</code>"),
            f"<code>{html.escape(row['command'])}</code>", f"<code>{html.escape(row['git_commit'])}</code>{dirty}",
            f"<code>{html.escape(row['recipe'])}</code>", html.escape(row.get("device") or ""),
        ]  # fmt: skip
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    head = "".join(f"<th>{name}</th>" for name in ("run", "metrics", "made by", "git commit", "recipe", "device"))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        "<p>Every number above is a mean of, or a difference between, numbers in these files; the recipe beside a generator has "
        "every resolved parameter.</p>"
        + folded(f"The origin of {len(lines)} runs: command, commit, recipe and device",
                 f'<div class="wide"><table class="text"><tr>{head}</tr>{body}</table></div>')
    )  # fmt: skip
