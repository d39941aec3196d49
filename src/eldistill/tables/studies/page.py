# SPDX-License-Identifier: Apache-2.0
"""The table, page and plot of a study, made from the runs of the grids that name it.

A study is a section of `tables.studies` (question, kind, baseline, margin). Every kind is a function from results to rows and
sentences, and all sentences are derived from the numbers. To add a kind, write a module in this folder with a function of its name
and a RECIPE with the module's name, and add it to KINDS.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from eldistill.errors import Problem
from eldistill.files import read_rows, write_rows, write_text
from eldistill.plan.kept import NO_LINES, Kept
from eldistill.tables import across, acrosstext, names
from eldistill.tables.kept import log_of
from eldistill.tables.results import (
    Result,
    check_results,
    load_result,
    measured,
    names_of_metrics,
    origin,
    plus_minus,
    short,
    signed_percent,
    spanned,
)
from eldistill.tables.studies import forest, last, partial, references, webpage
from eldistill.tables.studies.study import Study

RECIPE = ("studies", 7)  # beside the answer, what KID says of it
# {kind: its module}. It is a literal, because the planner reads it: the recipe of a study names that module.
KINDS = {
    "contrast": "comparisons", "central": "central", "seeds": "comparisons", "speed": "speed", "budget": "comparisons",
    "stability": "diagnostics", "variance": "variance",
}  # fmt: skip
CURVED = ("speed", "budget", "stability")  # kinds that need curves
# {value of the column `part`: heading of its table}. Rows of kinds with one table have no such column.
PARTS = {"time": "Time to the baseline's values", "rate": "Learning rates that train (tuning seeds)"}


# All columns of Markdown tables: (title, function from a row to its text). A table has those for which its rows have values.
SHOWN: list[tuple[str, Callable[[dict], str | None]]] = [
    ("data, method/supplement", lambda row: f"{row['data']}, {row['method']}/{row['supplement']}"),
    ("space", lambda row: names.space_name(row["space"]).short if row.get("space") else None),
    ("gradient", lambda row: row.get("gradient")),
    ("at equal", lambda row: row.get("equal")),
    ("seeds", lambda row: _text(row.get("seeds"))),
    ("factor on the learning rates", lambda row: _factor(row, "factor")),
    ("factor picked", lambda row: _factor(row, "picked")),
    ("factor reported", lambda row: _factor(row, "reported")),
    ("% of the baseline's run", lambda row: _text(row.get("of_run"))),
    ("value to reach", lambda row: _text(row.get("target"))),
    ("pairs", lambda row: _text(row.get("pairs")) if "of_run" in row else None),
    ("% fewer iterations", lambda row: _fewer(row, "iterations")),
    ("% fewer images", lambda row: _fewer(row, "images")),
    ("% fewer CPU seconds", lambda row: _fewer(row, "seconds")),
    ("% fewer FLOP", lambda row: _fewer(row, "FLOP")),
    ("never", lambda row: _text(row.get("never"))),
    ("distance at the end", lambda row: _pm(row, "end")),
    (
        "of each seed",
        lambda row: " ".join(short(float(end)) for end in row["ends"].split()) if row.get("ends") else None,
    ),
    ("diverged", lambda row: _text(row.get("diverged_runs"))),
    ("geometric mean distance of the rule", lambda row: _text(row.get("score"))),
    ("choice", lambda row: row.get("chosen")),
    ("FD held-out", lambda row: _pm(row, "fd")),
    ("minus baseline", lambda row: _span(row)),
    ("%", lambda row: signed_percent(row) or None),
    ("p (Holm)", lambda row: _text(row.get("p_holm"))),
    ("p equivalent", lambda row: _text(row.get("p_equivalent"))),
    ("p equivalent (Holm)", lambda row: _text(row.get("p_equivalent_holm"))),
    ("verdict", lambda row: row.get("verdict")),
    ("FD train", lambda row: _pm(row, "fd_train")),
    ("minus baseline, train", lambda row: _span(row, "train_difference", "train_low", "train_high")),
    ("fd of the other spaces", lambda row: None),  # `_columns` makes one for each space
    ("KID", lambda row: _pm(row, "kid")),
    ("recall", lambda row: _pm(row, "recall")),
    ("weight", lambda row: _text(row.get("weight"))),
    ("gradient ratio", lambda row: _text(row.get("gradient_ratio"))),
    ("least trace ratio", lambda row: _text(row.get("trace_ratio_min"))),
    ("noise over signal", lambda row: None),  # `_columns` makes one for each batch
    ("floor, % of the variance at the smallest", lambda row: _span(row, "share", "share_low", "share_high")),
    ("no better than the start", lambda row: _text(row.get("diverged"))),
    ("far above the baseline", lambda row: _text(row.get("far_above"))),
    ("trace ratio below 0.5", lambda row: _text(row.get("collapsed"))),
    ("% of ticks with a spike", lambda row: _text(row.get("spikes_percent"))),
    ("% lost after the best point", lambda row: _text(row.get("lost_percent"))),
    ("CPU ms an iteration", lambda row: _text(row.get("step_ms_cpu"))),
    ("variance: training seed", lambda row: _text(row.get("variance_training"))),
    ("ensemble seed", lambda row: _text(row.get("variance_ensemble"))),
    ("rest", lambda row: _text(row.get("variance_rest"))),
]


def _columns(rows: list[dict]) -> list[tuple[str, Callable[[dict], str | None]]]:
    # SHOWN with one column for each feature space except the primary one, and one for each batch.
    stems = [stem for stem in _found(rows, r"(fd_.+)_mean") if stem != "fd_train"]
    several = {
        "fd of the other spaces": [
            (f"FD {names.space_name(stem.removeprefix('fd_')).short}", lambda row, stem=stem: _pm(row, stem))
            for stem in stems
        ],
        "noise over signal": [
            (f"noise over signal, batch {batch}", lambda row, batch=batch: _text(row.get(f"noise_{batch}")))
            for batch in _found(rows, r"noise_(\d+)")
        ],
    }
    return [column for each in SHOWN for column in several.get(each[0], [each])]


def _found(rows: list[dict], pattern: str) -> list[str]:
    # The different matches of the pattern's group in the names of columns, in the order of the rows.
    return list(dict.fromkeys(match[1] for row in rows for key in row if (match := re.fullmatch(pattern, key))))


def _text(value) -> str | None:
    return None if value is None else str(value) if isinstance(value, int | str) else short(value)


def _factor(row: dict, key: str) -> str | None:
    return None if row.get(key) is None else f"{row[key]:g}"


def _fewer(row: dict, unit: str) -> str | None:
    # Percent fewer with its interval. If the ratio of times is only bounded, so is the percentage, from the other side.
    text = _span(row, *(f"fewer_{unit}{end}" for end in ("", "_low", "_high")))
    if text is None and unit == "iterations" and row.get("never"):
        return f"never reached in {row['never']} of {row['pairs']}"
    return text and {"at least": "≤ ", "at most": "≥ "}.get(row.get("bound"), "") + text


def _pm(row: dict, stem: str) -> str | None:
    mean, sd = row.get(f"{stem}_mean"), row.get(f"{stem}_sd")
    return None if mean is None else plus_minus(mean, sd)


def _span(row: dict, *keys: str) -> str | None:
    delta, low, high = (row.get(key) for key in keys or ("difference", "low", "high"))
    return None if delta is None else spanned(delta, low, high)


def _parts(rows: list[dict]) -> dict[str, list[dict]]:
    # {heading: rows of a table}. Rows without a column `part` are one table without a heading.
    if "part" not in rows[0]:
        return {"": rows}
    parts = {heading: [row for row in rows if row["part"] == part] for part, heading in PARTS.items()}
    return {heading: group for heading, group in parts.items() if group}


def _tables(rows: list[dict]) -> str:
    return "\n\n".join(
        (f"## {heading}\n\n" if heading else "") + _table(group) for heading, group in _parts(rows).items()
    )


def _cells(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    # Titles of the columns that have values, and the cells of each row.
    columns = _columns(rows)
    table = [[show(row) for row in rows] for _, show in columns]
    kept = [(title, cells) for (title, _), cells in zip(columns, table, strict=True) if any(cell for cell in cells)]
    return [title for title, _ in kept], [[cells[i] or "" for _, cells in kept] for i in range(len(rows))]


def _table(rows: list[dict]) -> str:
    head, cells = _cells(rows)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(
    name: str,
    params: dict,
    rows: list[dict],
    said: list[str],
    metric: str,
    beside: str = "",
    more: str = "",
    summary: str = "",
) -> str:
    """The text of the Markdown page of a study: its question, its table, and one sentence for each comparison.

    beside: the table of real images and of teachers, or nothing. more: what is said below the question, or nothing. summary: the one
    over several feature spaces, or nothing."""
    ranked, listed = _ranked(rows), "\n".join(f"- {each}" for each in said)
    note = _note(name, params, rows, metric)
    return f"# {params['question']}\n\n{more}{_tables(rows)}\n\n{listed}\n\n{beside if ranked else ''}{note}\n{summary}"


def _ranked(rows: list[dict]) -> bool:
    return any("fd_mean" in row for row in rows)


def _note(name: str, params: dict, rows: list[dict], metric: str) -> str:
    # How to read the table. Kinds without a ranking need less.
    note = (
        f"Ranked by {metric}, lower is better; baseline `{params['against']}`, paired by seed; mean ± sd, "
        f"{100 * params['confidence']:g} % t-intervals; {_family(rows)}. "
    )
    note = note if _ranked(rows) else ""
    if any("share_training" in row for row in rows):  # no arm is compared with another
        note = (
            f"Variance of {metric} between runs; its parts in percent have generalized {100 * params['confidence']:g} % confidence "
            "intervals (Hamada and Weerahandi 2000). "
        )
    if any(row.get("share_low") is not None for row in rows):
        note = f"Intervals: {100 * params['confidence']:g} % t-intervals over runs. "
    return note + f"All digits: {name}.csv; every run: {name}.runs.csv."


def _family(rows: list[dict]) -> str:
    # What the corrected p-values of a table are corrected over, in words.
    tested = [row for row in rows if row.get("p") is not None]
    family = [row for row in tested if row.get("p_holm") is not None]
    if not family:
        return "no correction for the number of comparisons"
    text = f"Holm's correction over the {len(family)} comparisons of this table"
    if len(family) < len(tested):
        text += f" that answer, {len(tested) - len(family)} others explore without one"
    if any(row.get("p_equivalent_holm") is not None for row in family):
        text += "; tests of equivalence are a family of their own"
    return f"{text}; tables of other studies that have some of the same runs do not count"


def make_study(name: str, params: dict, root: Path, outputs: list[Path], lines: Mapping[str, Kept] = NO_LINES) -> None:
    """Write the table (csv), page (md), figure (png), runs (csv), summary over feature spaces (csv), the figure once more (pdf, svg), and
    the page for a browser (html) to `outputs`, in this order.

    params: the section of the study, with beds (see Study), confidence, tuning and runs; for the kind `speed` also rates (see
    find_arms in rates.py), and percents and pick if they differ from the defaults. root: folder with data/evaluations and
    data/runs. lines: {run: kept results} of runs that are not there. Raises Problem for a missing or damaged input."""
    results, averaged = [load_result(run, root, lines) for run in params["runs"]], params.get("last", 1) > 1
    for space in dict.fromkeys(primary for _, primary in params["beds"].values()):
        ranked = [result for result in results if params["beds"][result.arm[0]][1] == space]
        check_results(ranked, space, curves=averaged or params["kind"] in CURVED)
    logs = {
        r.run: log_of(lines[r.run]) if r.run in lines else _log(root / f"data/runs/{r.run}/log.csv") for r in results
    }
    study = Study(results, params, logs, root, lines)
    kind = params["kind"]
    rows, said = getattr(importlib.import_module(f"eldistill.tables.studies.{KINDS[kind]}"), kind)(study)
    if not rows:
        raise Problem(
            f"the study {name} has nothing to compare; add the baseline and another supplement with the same seeds "
            "to its grids under `suites` in params.yaml"
        )
    table, text, picture, each, spaces, *figures, html = outputs
    write_rows(table, [dict.fromkeys(key for row in rows for key in row) | row for row in rows])
    found = partial.describe(study, text.parent.name) if "partial" in params else ""
    means = last.describe(results, study.last, study.without_curves())
    claims = webpage.claims(rows, params, said)
    more = (
        "".join(f"**{each}**\n\n" if each == claims[0] else f"{each}\n\n" for each in claims)
        + found
        + (f"{means}\n\n" if means else "")
    )
    summary, on_page = _write_across(spaces, study)
    write_text(text, markdown(name, params, rows, said, _ranking(study), references.beside(study), more, summary))
    forest.draw_study([picture, *figures], rows, params)
    metrics = names_of_metrics(results)
    write_rows(each, [_run_row(study, result, metrics) for result in results])
    shown = {heading: (group, *_cells(group)) for heading, group in _parts(rows).items()}
    webpage.make_page(
        params,
        shown,
        said,
        _note(name, params, rows, _ranking(study)),
        (figures[-1], picture),
        html,
        found,
        means,
        on_page,
    )


def _run_row(study: Study, result: Result, metrics: list[str]) -> dict:
    means = last.column(result, study.params, study.primary(result))
    return measured(result, metrics) | means | origin(result)


def _write_across(path: Path, study: Study) -> tuple[str, str]:
    # Writes the summary over several feature spaces; it as Markdown and as HTML, both empty if there is none.
    params = study.params | {"baseline": study.params["against"]}
    rows = across.rows_across(study.results, params, study.root, study.lines)
    acrosstext.write_csv(path, rows)
    if not rows:
        return "", ""
    text = f"\n## {acrosstext.TITLE}\n\n{acrosstext.markdown(rows, params, '###')}\nAll digits: {path.name}.\n"
    return text, acrosstext.page(rows, params)


def _ranking(study: Study) -> str:
    # The metric that ranks, for each data set if they differ. A data set has two if its settings differ in the number of images.
    found = {bed: " and ".join(f"`{name}`" for name in each.ranking()) for bed, each in study.split()}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{metrics} ({bed})" for bed, metrics in found.items())


def _log(path: Path) -> list[dict[str, str]]:
    return read_rows(path, then="make the run again", missing=f"{path} is missing; make the run again")
