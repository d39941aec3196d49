# SPDX-License-Identifier: Apache-2.0
"""The summary over several feature spaces (across.py) as Markdown, HTML and LaTeX."""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable
from pathlib import Path

from eldistill.files import write_rows, write_text
from eldistill.tables import names
from eldistill.tables.across import COLUMNS, FEWEST
from eldistill.tables.latex import EMPTY, in_math, label
from eldistill.tables.page import folded, inline, short_table, true_minus
from eldistill.tables.results import short, spanned

COVERED_BY = "across"
TITLE = "Over several feature spaces"
NONE = (
    f"No summary over several feature spaces: it needs {FEWEST} spaces that are related to no ensemble which an arm is trained with and in "
    "which each distance is above 0. Name more of them under `evaluate.features` of params.yaml."
)
Column = tuple[str, Callable[[dict], str]]  # its heading, and a function from a row to its cell


def _groups(rows: list[dict]) -> list[list[dict]]:
    # The rows of each data setting and metric; those of a method together, the teacher's first.
    methods = list(dict.fromkeys(row["method"] for row in rows))
    groups = itertools.groupby(rows, lambda row: (row["data"], row["metric"]))
    return [sorted(group, key=lambda row: methods.index(row["method"])) for _, group in groups]


def _listed(spaces: str | None) -> str:
    return ", ".join(names.space_name(space).short for space in (spaces or "").split())


def _times(value: float | None, factor: float | None) -> str:
    return "" if value is None else short(value) + ("" if factor is None else f" ×/÷ {factor:.2f}")


def _range(row: dict) -> str:
    if row["lowest"] is None:
        return ""
    ends = ((row[end], names.space_name(row[f"{end}_space"]).short) for end in ("lowest", "highest"))
    return " – ".join(f"{short(value)} ({space})" for value, space in ends)


def _in_spaces(row: dict, column: str) -> str:
    return "" if row[column] is None else f"{short(row[column])} ({_listed(row[f'{column}_spaces'])})"


def _more(row: dict) -> str:
    # Over all spaces that are unrelated to this arm, where these are more than those of the table.
    if row["unrelated_spaces"] in (None, row["spaces"]):
        return ""
    return f"{short(row['unrelated'])} ({len(row['unrelated_spaces'].split())})"


def _to_baseline(row: dict) -> str:
    return (
        ""
        if row["to_baseline"] is None
        else spanned(row["to_baseline"], row["to_baseline_low"], row["to_baseline_high"])
    )


def _differ(rows: list[dict]) -> bool:
    # Whether arms are averaged over different spaces.
    return len({row["spaces"] for row in rows if row["seeds"]}) > 1


def _columns(rows: list[dict]) -> list[Column]:
    columns: list[Column] = [
        ("seeds", lambda row: short(row["seeds"]) if row["seeds"] is None else str(row["seeds"])),
        ("spaces", lambda row: _listed(row["spaces"]) if _differ(rows) else ""),
        ("held-out ÷ real ↓", lambda row: _times(row["heldout"], row["heldout_over_seeds"])),
        ("lowest – highest space", _range),
        ("ratio to baseline", _to_baseline),
        ("train ÷ real ↓", lambda row: _times(row["train"], row["train_over_seeds"])),
        ("train ÷ held-out", lambda row: short(row["train_to_heldout"])),
        ("all unrelated spaces (number)", _more),
        ("related spaces", lambda row: _in_spaces(row, "related")),
    ]
    return [column for column in columns if any(column[1](row) for row in rows)]


def _averaged(rows: list[dict]) -> str:
    # The spaces of the mean, where all arms have the same.
    *first, last = _listed(_first(rows)["spaces"]).split(", ")
    return f"{', '.join(first)} and {last}"


def _first(rows: list[dict]) -> dict:
    # The first arm that has a mean.
    return next(row for row in rows if row["seeds"] and row["spaces"])


def _lowest(rows: list[dict]) -> str:
    # Without memorisation no ratio of the distances to train and to held-out images is below this.
    return short(min(1.0, _first(rows)["train_to_heldout_real"]))


def _intro(rows: list[dict], params: dict) -> list[str]:
    # Sentences that say how to read a table.
    over = "the feature spaces that are related to no ensemble that its arm is trained with. Rows compare only if their spaces are equal"
    if not _differ(rows):
        over = f"{_averaged(rows)}, which are related to no ensemble that an arm of this table is trained with"
    said = [
        f"{names.METRICS[rows[0]['metric']].text} to held-out images, divided by that of real train images to held-out ones, so that 1 is "
        "as close as real images are.",
        f"Each number is the geometric mean over {over}; any single representation can be gamed (RDM, arXiv 2607.02375).",
    ]
    if any(row["heldout_over_seeds"] for row in rows):
        said.append("×/÷ is the standard deviation over seeds, as a factor.")
    if any(row["to_baseline"] is not None for row in rows):
        said.append(
            f"The ratio to the baseline ({names.baseline_name(params['baseline'])}) is paired by seed, with "
            f"{100 * params['confidence']:g} % t-intervals of its logarithm, "
            "which are not corrected for the number of comparisons."
        )
    said.append(
        f"Train ÷ held-out is {_lowest(rows)} or more for images that copy nothing; memorised train images lower it."
    )
    if any(row["related"] is not None for row in rows):
        said.append(
            "Related spaces have the features that the loss of an arm compares: where a value is far below the others, the loss has "
            "improved its own measure more than the images."
        )
    return said


# --- files ------------------------------------------------------------------------------------------------


def write_summary(suite: str, rows: list[dict], params: dict, path: dict[str, Path]) -> None:
    """Write spaces.csv, spaces.md and spaces.tex of a suite to their paths. params: confidence and baseline."""
    write_csv(path["spaces.csv"], rows)
    write_text(
        path["spaces.md"],
        f"# Suite {suite}, over several feature spaces\n\n{markdown(rows, params)}\nAll digits: spaces.csv.\n",
    )
    write_text(path["spaces.tex"], latex(rows, params))


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write the rows with all digits; without rows only the names of the columns."""
    write_rows(path, rows or [dict.fromkeys(COLUMNS)])


# --- Markdown and HTML ----------------------------------------------------------------------------------


def _heading(rows: list[dict], several: bool) -> str:
    # The data setting and the metric of a table.
    metric = names.METRICS[rows[0]["metric"]].text
    return f"{rows[0]['data']}: {metric}" if several else metric


def _who(row: dict) -> str:
    return f"{row['method']}/{row['supplement']}" if row["seeds"] else row["method"]


def markdown(rows: list[dict], params: dict, level: str = "##") -> str:
    """Tables of the summary, each with a heading of this level and sentences on how to read it; one sentence if there is no row."""
    if not rows:
        return f"{NONE}\n"
    parts = []
    for group in _groups(rows):
        columns = _columns(group)
        lines = [["method/supplement", *(title for title, _ in columns)], ["---", *["---:"] * len(columns)]]
        lines += [[_who(row), *(cell(row) for _, cell in columns)] for row in group]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"{level} {_heading(group, True)}\n\n{' '.join(_intro(group, params))}\n\n{table}\n")
    return "\n".join(parts)


def page(rows: list[dict], params: dict) -> str:
    """The same as HTML, with names for readers."""
    parts = [f"<h3>{TITLE}</h3>"]
    if not rows:
        return parts[0] + f"<p>{inline(NONE)}</p>"
    several = len({row["data"] for row in rows}) > 1
    for group in _groups(rows):
        name = names.data_name(group[0]["data"]).text if several else ""
        parts.append(f"<h4>{html.escape(': '.join(filter(None, (name, _heading(group, False)))))}</h4>")
        first, second, *more = _intro(group, params)
        parts += [f'<p class="note">{html.escape(f"{first} {second}")}</p>', _page_table(group)]
        parts.append(folded("How to read this table", f'<p class="note">{html.escape(" ".join(more))}</p>'))
    return "\n".join(parts)


def _page_table(rows: list[dict]) -> str:
    columns = _columns(rows)
    cells = [[_arm(row), *(true_minus(cell(row)) for _, cell in columns)] for row in rows]
    titles = [f"{row['data']}/{row['method']}/{row['supplement']}" if row["seeds"] else "" for row in rows]
    before = [None, *(row["method"] for row in rows)]
    kinds = [
        "reference" if not row["seeds"] else "group" if row["method"] != last else ""
        for row, last in zip(rows, before, strict=False)
    ]
    return short_table(
        ["arm", *(title for title, _ in columns)], cells, "", kinds, titles, f"{TITLE} on {rows[0]['data']}"
    )


def _arm(row: dict) -> str:
    return names.arm_name(row["method"], row["supplement"]).short if row["seeds"] else row["method"]


# --- LaTeX ----------------------------------------------------------------------------------------------


def latex(rows: list[dict], params: dict) -> str:
    """The text of spaces.tex: one table that fits \\textwidth for each data setting and metric."""
    head = (
        "% \\usepackage{booktabs}\n% Each table fits \\textwidth; in a document of two columns write table* for table.\n"
        "% All digits: spaces.csv.\n"
    )
    return head + ("\n".join(_table(group, params) for group in _groups(rows)) or f"% {NONE}\n")


def _table(rows: list[dict], params: dict) -> str:
    columns: list[Column] = [
        (r"Held-out $\downarrow$", _tex_times),
        ("Spaces", lambda row: f"${in_math(short(row['lowest']))}$--${in_math(short(row['highest']))}$"),
        ("Ratio", lambda row: _tex_interval(_to_baseline(row))),
        (r"\shortstack[r]{Train/\\held-out}", lambda row: f"${in_math(short(row['train_to_heldout']))}$"),
    ]
    lines = [f"\\toprule\n{' & '.join(['Method', *(title for title, _ in columns)])} \\\\\n"]
    for place, (_, group) in enumerate(itertools.groupby(rows, lambda row: row["seeds"] and row["method"])):
        lines.append("\\midrule\n" if place < 2 else "\\addlinespace\n")
        for row in group:
            cells = [cell(row) if row["spaces"] else EMPTY for _, cell in columns]
            lines.append(" & ".join([f"\\raggedright {_tex_who(row)}", *cells]) + " \\\\\n")
    name = f"{label(rows[0]['data'])}-spaces" + ("" if rows[0]["metric"] == "fd" else f"-{rows[0]['metric']}")
    return (
        "\\begin{table}[tb]\n\\centering\n\\small\n\\setlength{\\tabcolsep}{3pt}\n\\setlength{\\belowcaptionskip}{4pt}\n"
        f"\\caption{{{_caption(rows, params)}}}\n\\label{{tab:{name}}}\n"
        "\\begin{tabular*}{\\textwidth}{@{}p{0.24\\textwidth}@{\\extracolsep{\\fill}}rrrr@{}}\n"
        f"{''.join(lines)}\\bottomrule\n\\end{{tabular*}}\n\\end{{table}}\n"
    )


def _tex_who(row: dict) -> str:
    return names.arm_name(row["method"], row["supplement"]).tex if row["seeds"] else "Teacher"


def _tex_times(row: dict) -> str:
    spread = row["heldout_over_seeds"]
    return f"${in_math(short(row['heldout']))}$" + (f" $\\times\\!/\\!\\div\\,{spread:.2f}$" if spread else "")


def _tex_interval(text: str) -> str:
    middle, *ends = text.replace("[", "").replace("]", "").replace(",", "").split(" ") if text else [""]
    return (f"${in_math(middle)}$" if middle else "") + (f" $[{in_math(ends[0])},{in_math(ends[1])}]$" if ends else "")


def _caption(rows: list[dict], params: dict) -> str:
    over = "the feature spaces that are related to no ensemble of the arm" if _differ(rows) else _averaged(rows)
    base = params["baseline"]
    base = "the method alone" if base == "none" else names.supplement_name(base).short
    ratio = f"Ratio: to {base}, paired by seed, with {100 * params['confidence']:g} % t-interval. "
    text = (
        f"{names.data_name(rows[0]['data']).text}: {names.METRICS[rows[0]['metric']].text} to held-out images, divided by that of real "
        f"train images; geometric mean over {over}, ± standard deviation over seeds as a factor; spaces: the lowest and highest of them. "
        f"{ratio if any(row['to_baseline'] is not None for row in rows) else ''}"
        f"Train/held-out: ratio of the distances to train and to held-out images, {_lowest(rows)} or more if nothing is copied."
    )
    text = names.escape_tex(text).replace(r" \%", r"\,\%").replace("t-interval", "$t$-interval")
    return text.replace("± standard", r"$\times\!/\!\div$ standard")
