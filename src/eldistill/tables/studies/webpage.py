# SPDX-License-Identifier: Apache-2.0
"""The page of a study for a browser: its question, what the numbers say, the comparisons in one plot, tables and sentences."""

from __future__ import annotations

import html
from pathlib import Path

from eldistill.files import write_text
from eldistill.tables import names
from eldistill.tables.answers import answer
from eldistill.tables.effects import Effect, Unmeasured, of_study, of_times
from eldistill.tables.headline import MEASURE, TIME, headline_html
from eldistill.tables.intervals import FOREST_STYLE, forest
from eldistill.tables.page import (
    bullets,
    document,
    figure,
    folded,
    inline,
    notice,
    sheet_links,
    short_table,
    true_minus,
)
from eldistill.tables.studies.agreement import kid_sentence

COVERED_BY = "report"
FEW = 4  # sentences of a study without a baseline that its headline shows at most
Tables = dict[str, tuple[list[dict], list[str], list[list[str]]]]  # {heading: (rows, titles of columns, cells)}


def make_page(
    params: dict,
    tables: Tables,
    said: list[str],
    note: str,
    drawn: tuple[Path, Path],
    output: Path,
    partial: str = "",
    means: str = "",
    summary: str = "",
) -> None:
    """Write the page of a study to `output`.

    params: question, kind, against, confidence and runs. tables: as above. said: one sentence for each comparison. note: how to read the
    tables. drawn: the figure as SVG and PNG. partial: Markdown on the runs that are missing, or nothing. means: a sentence on
    distances that are means over snapshots, or nothing. summary: HTML of the one over several feature spaces, or nothing. Of kinds that
    compare nothing with a baseline the first of `said` is the headline, and the figure follows."""
    rows = [row for group, *_ in tables.values() for row in group]
    result, shown = _result(rows, params), figure(params["question"], *drawn)
    if result and params["kind"] != "speed":  # the plot of the page has the same, but for the margin of equivalence
        shown = folded("The figure for a paper", shown)
    result = result or (headline_html(said[:1], said[1:FEW] if len(said) <= FEW else []) if said else "")
    parts = [f"<h1>{html.escape(params['question'])}</h1>", notice(partial), result, _small(means), shown]
    for heading, (group, head, cells) in tables.items():
        parts += [f"<h2>{html.escape(heading or 'Table')}</h2>", _table(group, head, cells)]
    parts += [summary] if summary else []
    count = "one sentence" if len(said) == 1 else f"{len(said)} sentences"
    parts += [folded(f"Every comparison in {count}", bullets(said))] if said else []
    parts += [_small(note), folded(f"A page for each of {len(params['runs'])} runs", sheet_links(params["runs"]))]
    write_text(output, document(f"eldistill: {params['question']}", parts, FOREST_STYLE))


def _small(text: str) -> str:
    return f'<p class="note">{inline(text)}</p>' if text else ""


def claims(rows: list[dict], params: dict, said: list[str]) -> list[str]:
    """What answers the question of a study: the sentence with the answer, and what KID says of it.

    said: the sentences of the kind, the first of which answers where nothing is compared with a baseline."""
    lines, measure = _lines(rows, params)
    if not lines:
        return said[:1]
    found, asked_again, contradicts = _answers(rows, params, lines, measure)
    return found[:1] if contradicts else [found[0], *filter(None, [asked_again])]


def _answers(
    rows: list[dict], params: dict, lines: list[Effect | Unmeasured], measure: str
) -> tuple[list[str], str, bool]:
    # The sentences of `answer`, of which the first also has what KID says if that contradicts it; what KID says; whether it contradicts.
    effects = _effects(lines)
    said = answer(effects, params, measure) if effects or not lines else [_only_bounds(len(lines))]
    asked_again, contradicts = kid_sentence(rows, params)
    if contradicts:
        said[0] += f" But {asked_again}"
    return said, asked_again, contradicts


def _only_bounds(count: int) -> str:
    every = "the one comparison" if count == 1 else f"each of {count} comparisons"
    return f"Undecided: in {every} a seed never reaches the value or begins below it, so that there is no test."


def _effects(lines: list[Effect | Unmeasured]) -> list[Effect]:
    return [line for line in lines if isinstance(line, Effect)]


def _lines(rows: list[dict], params: dict) -> tuple[list[Effect | Unmeasured], str]:
    # The comparisons, and what is compared.
    timed = params["kind"] == "speed"
    return (of_times(rows, params["confidence"]), TIME) if timed else (of_study(rows, params), MEASURE)


def _result(rows: list[dict], params: dict) -> str:
    lines, measure = _lines(rows, params)
    if not lines:
        return ""
    said, asked_again, contradicts = _answers(rows, params, lines, measure)
    if asked_again and not contradicts:
        said.insert(2, asked_again)
    shown = headline_html(said, _times(lines) if measure == TIME else [])
    return shown + forest(lines, params["against"], params["confidence"], measure)


def _times(lines: list[Effect | Unmeasured]) -> list[str]:
    # What a study of the kind `speed` adds.
    said = ["`Value at 30 %` means the baseline's value at 30 % of its run."]
    if without := len(lines) - len(_effects(lines)):
        said.append(
            f"{without} more {'comparison has' if without == 1 else 'comparisons have'} no interval and no test, because a seed never "
            "reaches the value or begins below it: their lines say in how many seeds."
        )
    return said


def _table(rows: list[dict], head: list[str], cells: list[list[str]]) -> str:
    # With readable names in the first column, whose raw name is shown where a mouse rests.
    several = len({row["data"] for row in rows}) > 1
    raw = [f"{row['data']}, {row['method']}/{row['supplement']}" for row in rows]
    lines = []
    for row, line in zip(rows, cells, strict=True):
        arm = names.arm_name(row["method"], row["supplement"]).short
        first = f"{names.data_name(row['data']).short}, {arm}" if several else arm
        lines.append([first, *map(true_minus, line[1:])])
    return short_table(["arm", *head[1:]], lines, titles=raw, label="comparisons of the study")
