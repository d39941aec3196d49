# SPDX-License-Identifier: Apache-2.0
"""LaTeX tables (booktabs) of the rows of suite.py: five columns that fit the width of a page, and a wide one in landscape."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable

from eldistill.tables import names
from eldistill.tables.results import NAME, PARTS, REFERENCE_RUNS, plus_minus, short, spanned

COVERED_BY = "typeset"
EMPTY = "--"  # a cell of an arm whose number cannot be computed
REFERENCES = dict(zip(REFERENCE_RUNS.values(), ("Real train images", "Teacher"), strict=True))
WIDE = ("fd", "kid", "precision", "recall", "coverage", "fdj")  # metrics of the wide table
Column = tuple[str, Callable[[dict], str]]  # its heading, and a function from a row to its cell, both LaTeX


def narrow(rows: list[dict], params: dict) -> str:
    """The text of main.tex: for each data setting the metric that ranks, its difference to the baseline, p and recall."""
    head = (
        "% \\usepackage{booktabs}\n% Each table fits \\textwidth; in a document of two columns write table* for table.\n"
        "% All digits, and the raw names of metrics: main.csv.\n"
    )
    return head + "\n".join(_narrow(data, list(group), params) for data, group in _by_data(rows))


def wide(rows: list[dict], params: dict, wanted: list[tuple[str, str, str]]) -> str:
    """The text of main-wide.tex: for each data setting a table in landscape with one column for each metric of `wanted` that was
    measured and is in WIDE."""
    head = "% \\usepackage{booktabs,graphicx,rotating}\n% All digits, and the raw names of metrics: main.csv.\n"
    return head + "\n".join(_wide(data, list(group), params, wanted) for data, group in _by_data(rows))


def _by_data(rows: list[dict]) -> Iterable[tuple[str, Iterable[dict]]]:
    return itertools.groupby(rows, lambda row: row["data"])


def _narrow(data: str, rows: list[dict], params: dict) -> str:
    primary = params["primary"]
    columns = [
        _measured(rows, "fd", primary, "heldout", f"FD {_arrow('fd')}"),
        ("Difference", lambda row: _difference(row, primary, "heldout")),
        ("$p$", lambda row: _p(row, primary)),
        _measured(rows, "recall", primary, "heldout", f"Recall {_arrow('recall')}"),
    ]
    body = _body(rows, columns)
    return (
        "\\begin{table}[tb]\n\\centering\n\\small\n\\setlength{\\tabcolsep}{3pt}\n\\setlength{\\belowcaptionskip}{4pt}\n"
        f"\\caption{{{_caption(data, rows, params, 'FD and recall')}}}\n\\label{{tab:{label(data)}}}\n"
        "\\begin{tabular*}{\\textwidth}{@{}p{0.24\\textwidth}@{\\extracolsep{\\fill}}rrrr@{}}\n"
        f"{body}\\end{{tabular*}}\n\\end{{table}}\n"
    )


def _wide(data: str, rows: list[dict], params: dict, wanted: list[tuple[str, str, str]]) -> str:
    primary = params["primary"]
    columns: list[Column] = []
    for want in (want for want in wanted if want[0] in WIDE):
        columns.append(_measured(rows, *want))
        if want == ("fd", primary, "heldout"):
            columns += [
                ("Difference", lambda row: _difference(row, primary, "heldout")),
                ("$p$", lambda row: _p(row, primary)),
            ]
    columns.append(("CPU ms per\\\\iteration", lambda row: short(row["step_ms_cpu"])))
    kept = [column for column in columns if any(column[1](row) not in ("", EMPTY) for row in rows)]
    body = _body(rows, [(f"\\shortstack[r]{{{title}}}" if "\\\\" in title else title, cell) for title, cell in kept])
    return (
        "\\begin{sidewaystable}\n\\centering\n\\scriptsize\n\\setlength{\\tabcolsep}{3pt}\n\\setlength{\\belowcaptionskip}{4pt}\n"
        f"\\caption{{{_caption(data, rows, params, 'each metric')}}}\n\\label{{tab:{label(data)}-wide}}\n"
        f"\\sbox0{{\\begin{{tabular}}{{@{{}}l{'r' * len(kept)}@{{}}}}\n{body}\\end{{tabular}}}}\n"
        "% Smaller letters only if the table is wider than the page is high.\n"
        "\\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\usebox0}\\else\\usebox0\\fi\n\\end{sidewaystable}\n"
    )


def label(data: str) -> str:
    """The name of a data setting as LaTeX takes it in a label."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", data)


def _body(rows: list[dict], columns: list[Column]) -> str:
    # Rows of each method together, below the reference runs.
    methods = list(dict.fromkeys(row["method"] for row in rows))
    rows = sorted(rows, key=lambda row: methods.index(row["method"]))
    lines = [f"\\toprule\n{' & '.join(['Method', *(title for title, _ in columns)])} \\\\\n"]
    for place, (_, group) in enumerate(itertools.groupby(rows, lambda row: row["seeds"] and row["method"])):
        lines.append("\\midrule\n" if place < 2 else "\\addlinespace\n")
        for row in group:
            lines.append(" & ".join([_who(row, rows), *(cell(row) for _, cell in columns)]) + " \\\\\n")
    return "".join([*lines, "\\bottomrule\n"])


def _who(row: dict, rows: list[dict]) -> str:
    if row["seeds"] is None:
        n = NAME.fullmatch(row["metric_heldout"])["n"]
        return f"\\raggedright {REFERENCES[row['method']]}, $n={in_math(names.images(n))}$"
    seeds = f" ({row['seeds']})" if len(_seeds(rows)) > 1 else ""
    return f"\\raggedright {names.arm_name(row['method'], row['supplement']).tex}{seeds}"


def _seeds(rows: list[dict]) -> list[int]:
    # The numbers of seeds of the arms, each once.
    return sorted({row["seeds"] for row in rows if row["seeds"]})


def _arrow(metric: str) -> str:
    return {"↓": r"$\downarrow$", "↑": r"$\uparrow$"}.get(names.arrow(metric), "")


def _measured(rows: list[dict], metric: str, space: str, part: str, title: str | None = None) -> Column:
    """The column of a metric: mean and deviation, the best mean of each method in bold."""
    stem = f"{metric}_{space}_{part}"
    known, text = names.METRICS[metric], f"{names.escape_tex(names.space_name(space).short)}, {names.PARTS[part].short}"
    title = title or f"{names.escape_tex(known.short)} {_arrow(metric)}\\\\{text}"
    title = title.removesuffix(f"\\\\{text}") if metric != "fd" else title  # all others are in the space that ranks

    def cell(row: dict) -> str:
        mean = row[f"{stem}_mean"]
        if mean is None or (row["seeds"] is None and part == "train" and not _same_n(row)):
            return EMPTY if row["seeds"] else ""
        return _plus_minus(mean, row[f"{stem}_sd"], mean == _best(rows, row, stem, metric))

    return title, cell


def _same_n(row: dict) -> bool:
    # Whether a reference run has as many images with respect to both parts of the data; only then its distance to train images stands
    # beside the others.
    return len({NAME.fullmatch(row[f"metric_{part}"])["n"] for part in PARTS}) == 1


def _best(rows: list[dict], row: dict, stem: str, metric: str) -> float | None:
    # The best mean of the arms of a row's method; None for a reference run, and for a method with one arm.
    arms = [each for each in rows if each["seeds"] and row["seeds"] and each["method"] == row["method"]]
    means = [each[f"{stem}_mean"] for each in arms if each[f"{stem}_mean"] is not None]
    return None if len(means) < 2 or metric == "fdse" else (min if metric in names.LOWER else max)(means)


def _plus_minus(mean: float, deviation: float | None, bold: bool) -> str:
    first, *second = plus_minus(mean, deviation).split(" ± ")
    first = f"$\\mathbf{{{in_math(first)}}}$" if bold else f"${in_math(first)}$"
    return first + (f"${{}}\\pm {in_math(second[0])}$" if second else "")


def in_math(number: str) -> str:
    """A number for math mode: with a thousands separator that is no comma of a list, and powers of ten."""
    mantissa, _, power = number.partition("e")
    return mantissa.replace(",", "{,}") + (f"\\times 10^{{{int(power)}}}" if power else "")


def _difference(row: dict, space: str, part: str) -> str:
    delta, low, high = (row[f"fd_{space}_{part}_difference{end}"] for end in ("", "_low", "_high"))
    if delta is None:
        return ""
    middle, *ends = spanned(delta, low, high).replace("[", "").replace("]", "").replace(",", "").split(" ")
    return f"${in_math(middle)}$" + (f" $[{in_math(ends[0])},{in_math(ends[1])}]$" if ends else "")


def _p(row: dict, space: str) -> str:
    p = row[f"fd_{space}_heldout_p_holm"]
    return "" if p is None else "$<0.001$" if p < 0.001 else f"${p:.3f}$" if p < 0.1 else f"${p:.2f}$"


def _caption(data: str, rows: list[dict], params: dict, bold: str) -> str:
    primary, arms = params["primary"], [row for row in rows if row["seeds"]]
    n, seeds = names.images(NAME.fullmatch(arms[0]["metric_heldout"])["n"]), _seeds(rows)
    size = next((row[key] for row in arms if row[key := f"fd_{primary}_heldout_p_family"]), None)
    over = f"{seeds[0]} seed{'s' if seeds[0] > 1 else ''}" if len(seeds) == 1 else "seeds, whose number is in brackets"
    text = (
        f"{names.data_name(data).text}: Fréchet distances (FD) of {n} generated images to held-out images, "
        f"{_features(primary)}. Mean ± standard deviation over {over}. "
    )
    if size is not None:
        base = params["baseline"]
        base = "alone" if base == "none" else f"with {names.supplement_name(base).short}"
        text += (
            f"Difference: from the method {base}, paired by seed, with {100 * params['confidence']:g} % t-interval; p: paired t-test, "
            f"Holm's correction over the {size} comparison{'s' if size > 1 else ''} on held-out images. "
        )
    text += f"Bold: the best mean of {bold} among the arms of a method, which is no test."
    text = names.escape_tex(text).replace(" ± ", r" $\pm$ ").replace(r" \%", r"\,\%")
    return text.replace("t-interval", "$t$-interval").replace("t-test", "$t$-test").replace("p: ", "$p$: ")


def _features(space: str) -> str:
    return "in pixels" if space == "pixels" else f"in the features of {names.space_name(space).text}"
