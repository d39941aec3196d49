# SPDX-License-Identifier: Apache-2.0
"""Markdown of the rows of suite.py, with one sentence for each comparison, which is derived from its numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from eldistill.evaluate import metrics
from eldistill.tables import names
from eldistill.tables.alarms import alarms
from eldistill.tables.results import NAME, PARTS, corrected, is_reason, plus_minus, short, spanned

RECIPE = ("typeset", 5)  # differences with two digits of half of their interval
ALONE = (
    *metrics.ALONE,
    *metrics.LABELLED,
)  # metrics without a part; those of LABELLED are shown only if runs have them

BELOW = "Look for a mistake; it is no success."
NOTE = (
    "Intervals cover training seeds only: all runs share one teacher, one judge and one set of held-out images, whose "
    "sampling error is not in them (`fdse` has it: the standard error of `fdj`, the distance without the bias of finite "
    "samples). p: paired t-test. `Holm over N`: Holm's correction over the N comparisons of a section with the same baseline, the "
    "same features and the same real images; comparisons in other features, with train images or between two supplements are "
    "families of their own, and nothing is corrected over the page. "
    "Iterations are read off the curves, whose points are as far apart as the snapshots; Kaplan–Meier medians over "
    "seeds; what they save is said of two paired seeds or more. All digits: main.csv."
)


def _cell(row: dict, stem: str) -> str:
    return plus_minus(row[f"{stem}_mean"], row[f"{stem}_sd"])


def _delta(row: dict, part: str, params: dict) -> tuple:
    # The values are None for a feature space in which this data setting was not measured.
    return tuple(row.get(f"fd_{params['primary']}_{part}_difference{end}") for end in ("", "_low", "_high"))


def sentence(row: dict, part: str, params: dict, space: str | None = None) -> str | None:
    """One sentence about the paired difference of a row; None without a baseline. space: None means the primary one."""
    name = row[f"metric_{part}"]
    if space:
        name, params = row.get(f"metric_{space}_{part}"), {**params, "primary": space}
    (delta, low, high), base = _delta(row, part, params), params["baseline"]
    if delta is None:
        return None
    who = f"{row['method']}/{row['supplement']}: {name}"
    if low is None:
        return f"{who} differs from {base} by {short(delta)} in one paired seed: no interval, no conclusion."
    stem = f"fd_{params['primary']}_{part}"
    p, adjusted, lower_in = (row[f"{stem}_{end}"] for end in ("p", "p_holm", "lower_in"))
    tail = f"p = {short(p)}, {corrected(adjusted, row[f'{stem}_p_family'])}, n = {row['paired_seeds']}, "
    tail += f"lower in {lower_in.replace('/', ' of ')}"
    if low <= 0 <= high:
        return f"{who} is not distinguishable from {base}: difference {spanned(delta, low, high)} ({tail})."
    near, far = sorted((abs(low), abs(high)))
    which = "lower" if delta < 0 else "higher"
    alone_only = "" if adjusted < 1 - params["confidence"] else ": by itself, not after correction"
    return f"{who} is {which} than {base} by {spanned(abs(delta), near, far)} ({tail}){alone_only}."


NO_GOAL = "—"  # cell without a time to the baseline's final value; a line below the table gives the reason


def _reach(iterations, saving) -> str:
    if is_reason(iterations):
        return NO_GOAL
    if isinstance(iterations, str):
        return f"{iterations} (not reached)"
    return short(iterations) + ("" if saving is None else f" (saves {saving:.0f} %)")


def _line(row: dict, params: dict, wanted: list) -> list[str]:
    values = [_cell(row, "_".join(want)) for want in wanted]
    if row["seeds"] is None:
        # A reference run may have another number of images than the arms.
        n, n_train = (NAME.fullmatch(row[f"metric_{part}"])["n"] for part in PARTS)
        # With fewer images than the arms have, its distance to train images is not a lower bound; only main.csv contains it.
        against_train = values[1] if n_train == n else ""
        return [
            f"{row['method']}, n = {n}",
            "",
            values[0],
            "",
            against_train,
            "",
            *values[2:],
            *_alone(row, params),
            "",
            "",
            "",
        ]
    deltas = []
    for part in PARTS:
        delta, low, high = _delta(row, part, params)
        deltas.append("" if delta is None else spanned(delta, low, high))
    speeds = [_reach(row[f"iterations_to_baseline_{p}"], row[f"saving_percent_{p}"]) for p in PARTS]
    cost, overhead = short(row["step_ms_cpu"]), row["overhead_percent"]
    cost += f" ({overhead:+.0f} %)" if overhead is not None else ""
    label = f"{row['method']}/{row['supplement']}"
    return [
        label,
        str(row["seeds"]),
        values[0],
        deltas[0],
        values[1],
        deltas[1],
        *values[2:],
        *_alone(row, params),
        *speeds,
        cost,
    ]


def _alone(row: dict, params: dict) -> list[str]:
    return [short(row.get(f"{metric}_{params['primary']}_mean")) for metric in ALONE]


def _title(metric: str, space: str, part: str | None = None) -> str:
    # The heading of a column, such as `FD judge A, held-out ↓`.
    name = names.METRICS[metric].short if metric in names.METRICS else metric
    where = f", {names.PARTS[part].short}" if part else ""
    return f"{name} {names.space_name(space).short}{where} {names.arrow(metric)}".rstrip()


@dataclass(frozen=True)
class Section:
    """The texts about one data setting, from which main.md and the page are made.

    head: titles of columns. lines: cells of the rows, the reference runs first; `keys` has (method, supplement) of each. kinds: what a
    column is about: `distance`, `quality` or `cost`; the first one is a row's name. said: one sentence for each comparison. pairs: the
    same for two supplements. notes: times that have no meaning. below: arms below the noise floor. alarms: {arm: clauses}."""

    data: str
    intro: str
    head: list[str]
    kinds: list[str]
    lines: list[list[str]]
    keys: list[tuple[str, str | None]]
    said: list[str]
    pairs: list[str]
    notes: list[str]
    below: list[str]
    alarms: dict[str, list[str]]


@dataclass(frozen=True)
class Made:
    """What the report is made from: the rows of main.csv, the texts of main.md by data setting, and the rows of spaces.csv."""

    rows: list[dict]
    sections: list[Section]
    across: list[dict] = field(default_factory=list)


def sections(rows: list[dict], params: dict, wanted: list, pairs: dict[str, list[str]]) -> list[Section]:
    """One section for each data setting. rows: of main.csv. wanted: (metric, space, part) of columns. pairs: sentences by data setting."""
    groups = itertools.groupby(rows, lambda row: row["data"])
    return [_section(data, list(group), params, wanted, pairs.get(data, [])) for data, group in groups]


def _section(data: str, rows: list[dict], params: dict, wanted: list, pairs: list[str]) -> Section:
    floor, arms = rows[0], [row for row in rows if row["seeds"]]
    primary, base = params["primary"], params["baseline"]
    stem = f"fd_{primary}_heldout_mean"
    columns, cells = _heads(params, wanted), [_line(row, params, wanted) for row in rows]
    kept = [place for place in range(len(columns)) if place < 4 or any(line[place] for line in cells)]
    others = [space for metric, space, _ in wanted if metric == "fd" and space != primary]
    said = [text for row in arms for part in PARTS if (text := sentence(row, part, params))]
    said += [text for row in arms for space in others if (text := sentence(row, "heldout", params, space))]
    notes = {
        f"{NO_GOAL} {row['method']}, {PARTS[part]}: {reason}, so that its final value is no goal for a time."
        for row in arms for part in PARTS if is_reason(reason := row[f"iterations_to_baseline_{part}"])
    }  # fmt: skip
    return Section(
        data, _intro(floor, arms, params), [columns[i][0] for i in kept], [columns[i][1] for i in kept],
        [[line[i] for i in kept] for line in cells], [(row["method"], row["supplement"]) for row in rows],
        said or [f"No comparison: no other supplement shares a seed with {base}."], pairs, sorted(notes),
        [f"{row['method']}/{row['supplement']}" for row in arms if row[stem] < floor[stem]],
        _alarms({"real images": floor, "its teacher": rows[1]}, arms, primary),
    )  # fmt: skip


def _intro(floor: dict, arms: list[dict], params: dict) -> str:
    primary, name = params["primary"], arms[0]["metric_heldout"]
    return (
        f"`{name}` ranks: Fréchet distance of {NAME.fullmatch(name)['n']} generated images to the held-out ones "
        f"in the features of {primary}; lower is better. Noise floor (`{floor['metric_heldout']}`, train images "
        f"against held-out ones): {short(floor[f'fd_{primary}_heldout_mean'])}. Cells: mean ± sd over seeds; differences paired by "
        f"seed, with {100 * params['confidence']:g} % t-intervals. Fewer images raise a Fréchet distance, so "
        "only those of equal n compare strictly."
    )


def _heads(params: dict, wanted: list) -> list[tuple[str, str]]:
    # (title, kind) of every column of `_line`.
    titles, minus = [_title(*want) for want in wanted], f"minus {params['baseline']}"
    distances = ["method/supplement", "seeds", titles[0], minus, titles[1], minus]
    kinds = ["distance" if metric in ("fd", "kid") else "quality" for metric, *_ in wanted[2:]]
    costs = [f"iterations to {params['baseline']}'s final {title.rstrip(' ↓↑')}" for title in titles[:2]]
    solo = [_title(metric, params["primary"]) for metric in ALONE]
    return [
        *((title, "distance") for title in distances), *zip(titles[2:], kinds, strict=True),
        *((title, "quality") for title in solo), *((title, "cost") for title in (*costs, "CPU ms an iteration")),
    ]  # fmt: skip


def _text(section: Section) -> str:
    rule = ["---"] + ["---:"] * (len(section.head) - 1)
    lines = [f"| {' | '.join(line)} |" for line in [section.head, rule, *section.lines]]
    alone = section.said if section.said[0].startswith("No comparison") else [f"- {text}" for text in section.said]
    said = [*alone, *(f"- {text}" for text in section.pairs)]
    said += ["", *(f"- {note}" for note in section.notes)] if section.notes else []
    if section.below:
        said += ["", f"Below the noise floor: {', '.join(section.below)}. {BELOW}"]
    told = [f"- {who}: {'; '.join(clauses)}." for who, clauses in section.alarms.items()]
    said += ["", "Look at the images of", "", *told] if told else []
    return "\n".join([f"## {section.data}", "", section.intro, "", *lines, "", *said])


def _alarms(floors: dict[str, dict], arms: list[dict], primary: str) -> dict[str, list[str]]:
    # {arm: clauses} of arms whose metrics show a problem of their images, whatever their distance is.
    def seen(row: dict) -> dict:
        parts = {name: row.get(f"{name}_{primary}_heldout_mean") for name in ("precision", "recall", "coverage")}
        return parts | {name: row.get(f"{name}_{primary}_mean") for name in ALONE}

    floors = {who: seen(row) for who, row in floors.items()}
    found = {f"{row['method']}/{row['supplement']}": alarms(seen(row), floors) for row in arms}
    return {who: clauses for who, clauses in found.items() if clauses}


def markdown(suite: str, parts: list[Section], others: list[dict] = ()) -> str:
    """The text of main.md: a section for each data setting with its table and one sentence for each comparison."""
    return "\n\n".join([f"# Suite {suite}", *map(_text, parts), NOTE, *_published(others)]) + "\n"


def _published(others: list[dict]) -> list[str]:
    others = [each for each in others if each["data"]]
    if not others:
        return []
    head = ["data, method/supplement", "published FID", "calls", "as", "ours", "source"]
    lines = [head, ["---", "---:", "---:", "---", "---:", "---"]]
    for each in others:
        who = f"{each['data']}, {each['method']}" + (f"/{each['supplement']}" if each["supplement"] else "")
        ours = f"{short(each['ours'])} (`{each['ours_is']}`)" if each["ours_is"] else ""
        lines.append([who, each["published_fid"], each["calls"], each["published_as"], ours, each["source"]])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = (
        "Published figures stand beside ours; they are not ranked with them, nor with each other: teachers, batches, numbers of "
        "images seen, samplers and which snapshot was reported differ, and most are the best of several."
    )
    return [f"## Published, beside ours\n\n{note}\n\n{table}"]
