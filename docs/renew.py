# SPDX-License-Identifier: Apache-2.0
"""Write the results that README.md and docs/ quote, from the files in git that hold them.

`python docs/renew.py` after new tables or benchmarks. A page marks each quoted part:

    <!-- results: demo-table -->
    (made by this file; do not edit)
    <!-- end -->

tests/test_readme.py compares every such part with what this file makes of the committed files, and refuses result
numbers that stand elsewhere. The wording follows the numbers: an interval that includes zero is "not distinguishable".
"""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from eldistill.plan.params import load_params
from eldistill.tables import inference
from eldistill.tables.alarms import ALARMS

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"(<!-- results: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.S)
RANK = "fd judge-a held-out"
Read = Callable[[str], str]  # from a path in the repository to the text of that file


def read_working_tree(name: str) -> str:
    """The file as it is here."""
    return (ROOT / name).read_text(encoding="utf-8")


# --- tables ---------------------------------------------------------------------------------------------


def raw_heading(text: str) -> str:
    """The raw names in a heading for readers: `FD judge A, held-out ↓` is `fd judge-a held-out`. Raw headings stay as they are."""
    text = (
        text.strip(" ↓↑").replace("FD, unbiased", "fdj").replace("FD, std. error", "fdse").replace("judge ", "judge-")
    )
    text = text.replace(", held-out", " held-out").replace(", train", " train")
    return re.sub(r"\b(FD|KID|IS|[A-Z])\b", lambda found: found[0].lower(), text)


def table(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """The first table of a main.md: its header, and its rows by their first cell. Headings are those of raw names, and a header
    `minus …` carries the name of the column before it."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header: list[str] = []
    for name in map(raw_heading, rows[0]):
        header.append(f"{header[-1]}, {name}" if name.startswith("minus") else name)
    return header, {row[0]: row for row in rows[2:] if len(row) == len(rows[0])}


def chosen(text: str, columns: dict[str, str], keep: Callable[[str], bool]) -> str:
    """Some columns and rows of a main.md as a Markdown table. columns: heading here for each heading there."""
    header, rows = table(text)
    places = [header.index(name) for name in columns]
    made = [["", *columns.values()], ["---", *["---:"] * len(columns)]]
    made += [[name, *(row[place] for place in places)] for name, row in rows.items() if keep(name)]
    return "\n".join("| " + " | ".join(row) + " |" for row in made) + "\n"


def without_networks(name: str) -> bool:
    """Rows of data, of di and of dmd: what the README shows."""
    return name.startswith(("real", "teacher", "di/", "dmd/"))


DIFFERENCE = f"{RANK}, minus none"
TRAIN = "fd judge-a train"
SMALL = {
    "seeds": "seeds", RANK: "judge-a",
    "fd judge-b held-out": "judge-b", "fd pixels held-out": "pixels", "fdj judge-a held-out": "judge-a, unbiased",
    "CPU ms an iteration": "CPU ms per iteration",
}  # fmt: skip
DEMO = {
    "seeds": "seeds", RANK: "judge-a, held-out", DIFFERENCE: "minus none", TRAIN: "judge-a, train",
    f"{TRAIN}, minus none": "minus none", "fd judge-b held-out": "judge-b, held-out",
    "fd pixels held-out": "pixels, held-out", "fdj judge-a held-out": "judge-a, held-out, unbiased",
    "kid judge-a held-out": "KID", "precision judge-a held-out": "precision",
    "recall judge-a held-out": "recall", "coverage judge-a held-out": "coverage",
    f"iterations to none's final {RANK}": "iterations to none's final distance, held-out",
    f"iterations to none's final {TRAIN}": "the same, train", "CPU ms an iteration": "CPU ms per iteration",
}  # fmt: skip
BENCH = {
    RANK: "judge-a, held-out", DIFFERENCE: "minus none", TRAIN: "judge-a, train", f"{TRAIN}, minus none": "minus none",
    "fd pixels held-out": "pixels, held-out", "recall judge-a held-out": "recall, held-out",
    "CPU ms an iteration": "CPU ms per iteration",
}  # fmt: skip


# --- comparisons ----------------------------------------------------------------------------------------


def comparison(text: str, arm: str, metric: str, other: str) -> tuple[str, str, str]:
    """Difference of two arms and the ends of its 95 % interval, as printed in a main.md."""
    found = re.search(
        rf"^- {re.escape(arm)}: {re.escape(metric)} is (lower|higher|not distinguishable)[^\n]*? {re.escape(other)}"
        r"(?: by |: difference )(\S+) \[([^,]+), ([^\]]+)\]", text, re.M,
    )  # fmt: skip
    if not found:
        raise SystemExit(f"main.md compares {arm} with {other} nowhere by {metric}; expected a sentence about them")
    word, middle, low, high = found.groups()
    return (f"-{middle}", f"-{high}", f"-{low}") if word == "lower" else (middle, low, high)


def verdict(low: str, high: str) -> str:
    """What an interval of a difference allows one to say."""
    return "lower" if float(high) < 0 else "higher" if float(low) > 0 else "not distinguishable"


def with_interval(difference: tuple[str, str, str]) -> str:
    """A difference in words."""
    middle, low, high = difference
    zero = "includes" if verdict(low, high) == "not distinguishable" else "excludes"
    return f"is {middle} and its 95 % interval, {low} to {high}, {zero} zero"


def wrapped(text: str) -> str:
    """A paragraph in lines that one can read in an editor."""
    text = text.replace(" %", "\0%")  # a number and its unit stay in one line
    return textwrap.fill(text, 140, break_long_words=False, break_on_hyphens=False).replace("\0", " ") + "\n"


SPEED = "data/tables/speed/{}.csv"
BATCH_16 = ("batch-16", "batch-16-against-256", "batch-16-control")
BATCHES = {
    "di-b8": "8",
    "di-b16": "16",
    "di-b32": "32",
    "di-base": "64",
    "di-b256": "256",
}  # images a step of the study `batch`
NAMES = {"di": "Diff-Instruct", "dmd": "DMD", "sid": "SiD"}


def speed_row(read: Read, study: str, method: str, supplement: str, percent: int) -> dict[str, str]:
    """The row of a study of the kind `speed` on the time to the baseline's value at `percent` of its run."""
    return next(
        row for row in rows_of(read(SPEED.format(study)))
        if row["part"] == "time" and (row["method"], row["supplement"]) == (method, supplement)
        and row["of_run"] and float(row["of_run"]) == percent
    )  # fmt: skip


def fewer(row: dict[str, str]) -> str:
    """ "43 % fewer [30, 54]", with the 95 % interval, or a bound without one."""
    if not row["ratio_iterations"]:
        return "a number that the snapshots do not tell"
    middle = float(row["fewer_iterations"])
    word, sign = ("fewer", 1) if middle >= 0 else ("more", -1)
    if row["bound"]:
        never = row["bound"] == "at least"
        what = f"never reached in {row['never']}" if never else f"reached at the first snapshot in {row['early']}"
        # A ratio that is at least R is at most 100 (1 - R) % fewer.
        most = "at most" if never == (word == "fewer") else "at least"
        return f"{most} {abs(middle):.0f} % {word} ({what} of {row['pairs']} seeds)"
    ends = sorted(sign * float(row[f"fewer_iterations_{end}"]) for end in ("low", "high"))
    return f"{abs(middle):.0f} % {word} [{round(ends[0])}, {round(ends[1])}]"


def finding(read: Read) -> str:
    """The first screen of the README: how much sooner EL and the control are, each arm at its own learning rates."""
    lines, rows = ["| to the baseline's distance | with EL | with the control |", "|---|---|---|"], []
    for method in ("dmd", "di"):
        for percent, where in ((50, "at half of its run"), (100, "at its end")):
            rows += [speed_row(read, "speed", method, name, percent) for name in ("el", "pixel-mmd")]
            lines.append(f"| {NAMES[method]}, {where} | {fewer(rows[-2])} | {fewer(rows[-1])} |")
    first = (
        f"**Finding** (8×8 digits, {rows[0]['pairs']} seeds, each arm at its own learning rates; Fréchet distance to held-out images in "
        "the features of a small classifier; 95 % intervals in brackets). The control is the same loss on the pixels, without networks. "
        "How many fewer iterations a run needs to the distance of its baseline, the same method without a supplement:"
    )
    last = (
        f"{clear_savings(read)} {networks_against_pixels(read)} {ends_with_teachers(read)} {kid_against_pixels(read)}"
    )
    return "\n".join([wrapped(first), *lines, "", wrapped(last), wrapped(colour_finding(read))])


def in_percent(row: dict[str, str]) -> dict[str, str]:
    """The row of a study of the kind `contrast` with the ends of its interval in percent of the baseline, as pooled rows have them."""
    difference = float(row["difference"])
    scale = float(row["percent"]) / difference if difference else 100 / float(row["fd_mean"])  # equal to its baseline
    return row | {end: str(scale * float(row[end])) if row[end] else "" for end in ("low", "high")}


SUITES_OF_TIMES = ("speed", "speed-others", "speed-recent")


def tests_of_times(read: Read, study: str, suites: Sequence[str] = SUITES_OF_TIMES) -> list[dict[str, str]]:
    """The comparisons of a study of the kind `speed`, over suites, with Holm's p over all comparisons of the table of each suite.

    The pages correct over those comparisons that have a test. Which ones have none depends on the outcome: those with a seed that
    never reaches the value, or reaches it at once. Here they count with a p of 1."""
    found: list[dict[str, str]] = []
    for suite in suites:
        rows = [
            row for row in rows_of(read(f"data/tables/{suite}/{study}.csv")) if row["part"] == "time" and row["pairs"]
        ]
        corrected = inference.holm([float(row["p"]) if row["p"] else 1.0 for row in rows])
        found += [row | {"p_holm": f"{p}"} for row, p in zip(rows, corrected, strict=True)]
    return found


def without_test(rows: list[dict[str, str]]) -> str:
    """How many of these comparisons have no test."""
    bounds = sum(not row["p"] for row in rows)
    return f" ({bounds} without a test)" if bounds else ""


def is_clear(row: dict[str, str]) -> bool:
    """Whether the p of a row is below 0.05 after Holm's correction."""
    return float(row["p_holm"]) < 0.05


def clear_savings(read: Read) -> str:
    """Which times to the baseline's distances are clear, after the correction over their table."""
    tests = tests_of_times(read, "speed", ["speed"])
    arms = {"el": "EL", "pixel-mmd": "the control"}
    clear = [f"{NAMES[row['method']]} with {arms[row['supplement']]}, at {float(row['of_run']):g} % of its run"
             for row in tests if is_clear(row)]  # fmt: skip
    which = f"{len(clear)} {'has' if len(clear) == 1 else 'have'}" if clear else "none has"
    bounds = sum(not row["p"] for row in tests)
    untested = f" {bounds} have no test and count with p = 1." if bounds else ""
    named = f" ({'; '.join(clear)})" if clear else ""
    return (
        f"Of {len(tests)} comparisons of [such times](data/tables/speed/speed.md) {which} p < 0.05 after Holm's correction{named}."
        f"{untested}"
    )


def rates_that_train(read: Read) -> str:
    """The largest factor on the learning rates at which no tuning run diverged, for DMD and DI."""
    largest: dict[tuple[str, str], float] = {}
    rows = [row for row in rows_of(read(SPEED.format("speed"))) if row["part"] == "rate"]
    for row in rows:
        if row["diverged_runs"] == "0":
            arm = row["method"], row["supplement"]
            largest[arm] = max(largest.get(arm, 0.0), float(row["factor"]))
    parts: dict[str, list[str]] = {}
    for method in ("dmd", "di"):
        el, control, none = (
            f"{largest[method, name]:g}" if (method, name) in largest else "none"
            for name in ("el", "pixel-mmd", "none")
        )
        words = f"{el} with EL, {control} with the control and {none} without"
        parts.setdefault(words, []).append(NAMES[method])
    found = "; ".join(f"{words}, for {' and '.join(methods)}" for words, methods in parts.items())
    tried = ", ".join(f"{factor:g}" for factor in sorted({float(row["factor"]) for row in rows}))
    return f"Of the factors {tried} on the learning rates, the largest at which no tuning run diverged is {found}."


def speed_arms(read: Read) -> str:
    """A row for each arm of the suites of times: its rates, its iterations, its distance at the end."""
    head = ["", "factor", "largest that trains", "iterations to half", "iterations to the end", "distance at the end"]
    lines, notes = [head, ["---", *["---:"] * (len(head) - 1)]], []
    for suite in SUITES_OF_TIMES:
        rows = rows_of(read(f"data/tables/{suite}/speed.csv"))
        for method, supplement in dict.fromkeys(
            (row["method"], row["supplement"]) for row in rows if row["part"] == "time"
        ):
            mine = [row for row in rows if (row["method"], row["supplement"]) == (method, supplement)]
            times = {float(row["of_run"] or 0): row for row in mine if row["part"] == "time"}
            trains = [float(row["factor"]) for row in mine if row["part"] == "rate" and row["diverged_runs"] == "0"]
            first = next(iter(times.values()))
            none = next(
                row for row in rows if row["part"] == "time" and (row["method"], row["supplement"]) == (method, "none")
            )
            mark = " †" if int(none["diverged_runs"]) and supplement != "none" else ""
            if mark:
                notes.append(f"{none['diverged_runs']} of {none['seeds']} runs of {method}/none")
            lines.append([
                f"{method}/{supplement}", f"{float(first['reported']):g}", f"{max(trains):g}" if trains else "none",
                *(fewer(times[percent]) + mark if percent in times else "" for percent in (50.0, 100.0)),
                f"{float(first['fd_mean']):.2f} ± {float(first['fd_sd']):.2f}",
            ])  # fmt: skip
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    if not notes:
        return text
    return (
        text
        + "\n"
        + wrapped(
            f"† The value to reach is that of a baseline of which some runs diverged ({'; '.join(dict.fromkeys(notes))}), so this is no "
            "time that EL or the control saves."
        )
    )


def variants(read: Read) -> str:
    """How much lower or higher the variants of EL end than EL, in percent, for each method."""
    rows = [row for row in rows_of(read("data/tables/ablation/tuning-variants.csv")) if row["percent"]]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [["", *(NAMES[method.partition("-")[0]] for method in methods)], ["---", *["---:"] * len(methods)]]
    for supplement in dict.fromkeys(row["supplement"] for row in rows):
        found = {row["method"]: float(row["percent"]) for row in rows if row["supplement"] == supplement}
        lines.append([f"`{supplement}`", *(f"{round(found[method], 1) + 0:+.1f} %" for method in methods)])
    clear = sum(float(row["p_holm"]) < 0.05 for row in rows)
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in lines)
        + "\n\n"
        + wrapped(
            f"{clear or 'None'} of these {len(rows)} differences in the last distance to held-out images is clear (Holm)."
        )
    )


def networks_against_pixels(read: Read) -> str:
    """Whether EL is sooner than the control, over the methods and percentages of the studies `speed-control`."""
    rows = [row for row in tests_of_times(read, "speed-control") if row["supplement"] == "el"]
    methods, clear = {row["method"] for row in rows}, [row for row in rows if is_clear(row)]
    sooner = sum(float(row["ratio_iterations"]) < 1 for row in clear)
    which = {0: "EL later", len(clear): "EL sooner"}.get(sooner, f"EL sooner in {sooner}")
    how = f"{len(clear)} of {len(rows)} of them ({which})" if clear else f"none of {len(rows)} of them"
    return f"Over {len(methods)} methods EL and the control differ clearly in {how}{without_test(rows)}."


def pooled(read: Read, study: str, supplement: str) -> dict[str, str]:
    """The row of a study of the kind `central` that pools the teachers of the digits."""
    rows = rows_of(read(f"data/tables/ablation/{study}.csv"))
    return next(row for row in rows if row["data"].startswith("digits, ") and row["supplement"] == supplement)


def against(row: dict[str, str], other: str) -> str:
    """ "5.8 % lower [1.3, 10.3] than with the control": a pooled comparison; without a clear difference the range of the interval."""
    ends = sorted(float(row[end]) for end in ("low", "high"))
    if float(row["p_holm"]) >= 0.05:
        return f"not distinguishable from that {other} (between {ends[0]:+.1f} and {ends[1]:+.1f} %)"
    word = "lower" if float(row["percent"]) < 0 else "higher"
    low, high = sorted(abs(end) for end in ends)
    digits = 0 if abs(float(row["percent"])) >= 10 else 1
    return f"{abs(float(row['percent'])):.{digits}f} % {word} [{low:.{digits}f}, {high:.{digits}f}] than {other}"


def ends_with_teachers(read: Read) -> str:
    """The central study in a sentence: the last distance of DMD with EL against none and against the control, over three teachers."""
    none, control = pooled(read, "el-against-none", "el"), pooled(read, "central", "el")
    teachers = none["data"].partition(", ")[2]
    return (
        f"At the end of DMD's run ({none['pairs']} seeds, {teachers}) the distance with EL is {against(none, 'without')} and "
        f"{against(control, 'with the control')} (p = {float(control['p_holm']):.2g} after Holm's correction)."
    )


def kid_against_pixels(read: Read) -> str:
    """KID of the runs of the study `central`, where the Fréchet distance decides: means over teachers, paired by training seed."""
    column, values = "kid5k_judge-a_heldout", {}
    for row in rows_of(read("data/tables/ablation/central.runs.csv")):
        values.setdefault(row["supplement"], {}).setdefault(row["seed"], []).append(float(row[column]))
    means = {name: {seed: statistics.mean(each) for seed, each in seeds.items()} for name, seeds in values.items()}
    middle, low, high = interval([means["el"][seed] - means["pixel-mmd"][seed] for seed in means["el"]])
    none, el, control = (statistics.mean(means[name].values()) for name in ("none", "el", "pixel-mmd"))
    ranks = {"lower": "agrees", "higher": "says the opposite of EL and the control"}
    rank = ranks.get(verdict(low, high), "does not distinguish EL from the control")
    middle, low, high = (f"{float(each):.2g}" for each in (middle, low, high))
    return (
        f"KID, another distance in the same features, {rank}: {none:.3f} without, {el:.3f} with EL, {control:.3f} with the control "
        f"(EL minus control {middle} [{low}, {high}], not corrected)."
    )


def central(read: Read) -> str:
    """The central study with its tests of equivalence, in sentences."""
    control = pooled(read, "central", "el")
    margin, shown = float(control["margin"]), float(control["p_equivalent_holm"]) < 0.05
    plain = pooled(read, "el-against-none", "pixel-mmd")
    judges = [row for row in rows_of(read("data/tables/ablation/central.csv"))
              if row["supplement"] == "el" and not row["data"].startswith("digits, ")]  # fmt: skip
    lower = sum(float(row["percent"]) < 0 for row in judges)
    clear = sum(float(row["high"]) < 0 for row in judges)
    return wrapped(
        f"{ends_with_teachers(read)} The control alone is {against(plain, 'without')}. Equivalence of EL and the control within "
        f"{margin:g} % is {'shown' if shown else 'not shown'} (p = {float(control['p_equivalent_holm']):.2g}, Holm). By teacher and "
        f"feature space EL is lower than the control in {lower} of {len(judges)} means, and clearly in {clear} (uncorrected, exploratory). "
        f"{kid_against_pixels(read)}"
    )


def percent_with_interval(row: dict[str, str]) -> str:
    """ "-4.7 % [-19, +10]": a difference in percent of the baseline, with its 95 % interval."""
    difference = float(row["difference"])
    scale = float(row["percent"]) / difference if difference else 100 / float(row["fd_mean"])  # equal to its baseline
    ends = sorted(scale * float(row[end]) for end in ("low", "high"))
    return f"{round(float(row['percent']), 1) + 0:+.1f} % [{round(ends[0]):+d}, {round(ends[1]):+d}]"


def changes(read: Read, study: str) -> str:
    """A study of the kind `contrast` with one method: each arm against the baseline, the lowest distance first."""
    rows = [row for row in rows_of(read(f"data/tables/ablation/{study}.csv")) if row["percent"]]
    clear = [row for row in rows if float(row["p_holm"]) < 0.05]
    lower = [row for row in clear if float(row["percent"]) < 0]
    lines = [["", "difference of the last distance", "p (Holm)"], ["---", "---:", "---:"]]
    for row in sorted(rows, key=lambda row: float(row["percent"])):
        p = float(row["p_holm"])
        lines.append([f"`{row['supplement']}`", percent_with_interval(row), f"{p:.2g}" if p < 1 else "1"])

    def named(those: list[dict[str, str]]) -> str:
        return ", ".join(f"`{row['supplement']}`" for row in those) or "none"

    higher = [row for row in clear if row not in lower]
    said = (
        f"{len(clear)} of these {len(rows)} differences are clear ({rows[0]['pairs']} seeds, Holm): lower {named(lower)}, higher "
        f"{named(higher)}."
        if clear
        else f"None of these {len(rows)} differences is clear ({rows[0]['pairs']} seeds, Holm)."
    )
    equal = [row for row in rows if float(row["p_equivalent_holm"]) < 0.05]
    said += (
        f" Equivalent within the margin: {named(equal)}."
        if equal
        else " The intervals are too wide to call any of them equal."
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + wrapped(said)


def answer_of(read: Read, study: str, suite: str = "ablation") -> str:
    """The sentences that begin the page of a study: its answer, and what KID says of it."""
    lines = read(f"data/tables/{suite}/{study}.md").split("\n\n")
    more = [line for line in lines[2:3] if not line.startswith(("|", "**"))]  # no table, and no count of the runs made
    return " ".join([lines[1].strip("*"), *more])


def small_batches(read: Read) -> str:
    """The study `batch`: the last distance without EL by batch, and the differences with it."""
    rows = rows_of(read("data/tables/ablation/batch.csv"))
    found = {(row["method"], row["supplement"]): row for row in rows}
    arms = list(dict.fromkeys(row["supplement"] for row in rows if row["supplement"] != "none"))
    lines = [["batch", "without EL", *(f"`{arm}`" for arm in arms)], ["---:"] * (2 + len(arms))]
    for method in sorted({method for method, _ in found}, key=lambda name: int(BATCHES[name])):
        none = found[method, "none"]
        mean = f"{float(none['fd_mean']):.2f} ± {float(none['fd_sd']):.2f}"
        lines.append([BATCHES[method], mean, *(percent_with_interval(found[method, arm]) for arm in arms)])
    tested = [row for row in rows if row["percent"]]
    clear = [f"`{row['supplement']}` at {BATCHES[row['method']]}" for row in tested if float(row["p_holm"]) < 0.05]
    said = (
        f"{len(clear)} of these {len(tested)} differences are clear ({tested[0]['pairs']} seeds, Holm): {', '.join(clear)}."
        if clear
        else f"None of these {len(tested)} differences is clear ({tested[0]['pairs']} seeds, Holm)."
    )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{wrapped(said)}"


def seeds_apart(read: Read) -> str:
    """How the variance of the last distance divides between training seeds, ensemble seeds and the rest."""
    row = rows_of(read("data/tables/ablation/ensemble-seed.csv"))[0]

    def share(name: str) -> str:
        middle, low, high = (100 * float(row[f"share_{name}{end}"]) for end in ("", "_low", "_high"))
        return f"{middle:.0f} % [{low:.0f}, {high:.0f}]"

    return wrapped(
        f"Of the variance of the last distance ({row['training_seeds']} training seeds, each with {row['ensemble_seeds']} ensembles) "
        f"{share('training')} comes from the training seed, {share('ensemble')} from the seed of the ensemble, and {share('rest')} from "
        "both together and from noise."
    )


def variants_fresh(read: Read) -> str:
    """The variants of EL on fresh seeds: differences of the last distance in percent, with their intervals."""
    rows = [row for row in rows_of(read("data/tables/ablation/variants.csv")) if row["percent"]]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [["", *(NAMES[method] for method in methods)], ["---", *["---:"] * len(methods)]]
    for supplement in dict.fromkeys(row["supplement"] for row in rows):
        cells = []
        for method in methods:
            row = next(each for each in rows if (each["method"], each["supplement"]) == (method, supplement))
            cells.append(percent_with_interval(row))
        lines.append([f"`{supplement}`", *cells])
    clear = sum(float(row["p_holm"]) < 0.05 for row in rows)
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in lines)
        + "\n\n"
        + wrapped(
            f"{clear or 'None'} of these {len(rows)} differences is clear over {rows[0]['pairs']} other seeds (Holm)."
        )
    )


def demo_reading(read: Read) -> str:
    """What the small table of the README says, in sentences, and what it leaves out."""
    text = read("data/tables/demo/main.md")
    seeds = table(text)[1]["di/el"][1]
    low, high = standard_errors(text)
    return wrapped(
        f"{seeds} seeds keep the demo short, and are too few for intervals. The standard error of a distance from "
        f"sampling images, 360 of them held out, is {low} to {high}. {rates_that_train(read)} " + bench_short(read)
    )


def standard_errors(text: str) -> tuple[str, str]:
    """The smallest and the largest standard error of the arms' distances, from sampling images."""
    header, rows = table(text)
    place = header.index("fdse judge-a held-out")
    errors = sorted((row[place].split(" ± ")[0] for name, row in rows.items() if "/" in name), key=float)
    return f"{float(errors[0]):.3g}", f"{float(errors[-1]):.3g}"


def demo_error(read: Read) -> str:
    """The sampling error that the intervals leave out."""
    low, high = standard_errors(read("data/tables/demo/main.md"))
    return wrapped(
        f"Intervals cover training seeds only. The standard error of a distance from sampling images (`fdse`), 360 of them held out, "
        f"is {low} to {high} for the arms above. All arms share the held-out images, so this error cancels partly in a difference. How "
        "much was not measured."
    )


def misquotes(read: Read) -> str:
    """Published figures for which another paper prints a different number."""
    lines = []
    for row in rows_of(read("src/eldistill/tables/published.csv")):
        if row["note"].startswith("Quoted as "):
            classes = "with classes" if row["conditional"] == "yes" else "without classes"
            calls = "one call" if row["nfe"] == "1" else f"{row['nfe']} calls"
            quote = row["note"].split(" Discriminator:")[0]
            text = f"* {row['method']}, {row['dataset']} {classes}, {calls}: {row['fid']}. {quote}"
            lines.append(textwrap.fill(text, 140, subsequent_indent="  ", break_long_words=False))
    return "\n".join(lines) + "\n"


def demo_sentences(read: Read) -> str:
    """All comparisons of the demo, as its page has them."""
    return "\n".join(re.findall(r"^- [\w-]+/[\w-]+: fd.*$", read("data/tables/demo/main.md"), re.M)) + "\n"


# --- bench ----------------------------------------------------------------------------------------------


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of a CSV."""
    return list(csv.DictReader(io.StringIO(text)))


def bench_means(read: Read, column: str, suite: str = "bench") -> dict[tuple[str, str], float]:
    """Mean over seeds for each (method, supplement) that has the column."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows_of(read(f"data/tables/{suite}/runs.csv")):
        if row[column]:
            values.setdefault((row["method"], row["supplement"]), []).append(float(row[column]))
    return {arm: statistics.mean(each) for arm, each in values.items()}


def interval(differences: list[float]) -> tuple[str, str, str]:
    """Mean of paired differences and the ends of its 95 % t-interval."""
    low, high = inference.interval(differences, 0.95)
    return f"{statistics.mean(differences):.3g}", f"{low:.3g}", f"{high:.3g}"


def paired(read: Read, suite: str, column: str, arm: str, base: str) -> tuple[str, str, str]:
    """Difference of two arms, paired by seed, and its 95 % t-interval, from the runs of a suite."""
    values: dict[str, dict[str, float]] = {arm: {}, base: {}}
    for row in rows_of(read(f"data/tables/{suite}/runs.csv")):
        if (name := f"{row['method']}/{row['supplement']}") in values:
            values[name][row["seed"]] = float(row[column])
    differences = [values[arm][seed] - values[base][seed] for seed in values[arm] if seed in values[base]]
    return interval(differences)


def listed(names: list[str]) -> str:
    """`a`, `b` and `c`; "none" if there is none."""
    quoted = [f"`{name}`" for name in names]
    return " and ".join(filter(None, [", ".join(quoted[:-1]), *quoted[-1:]])) or "none"


SID2A = " (`sid2a` starts from trained generators)"


def start_and_end(read: Read, suite: str = "bench") -> str:
    """How far distances fall in training: the range over runs before and after."""
    runs: dict[tuple[str, ...], list[tuple[int, float]]] = {}
    rows = rows_of(read(f"data/tables/{suite}/curves.csv"))
    (column,) = (name for name in rows[0] if re.fullmatch(r"fd\d+k?_judge-a_heldout", name))
    count = column.split("_")[0].removeprefix("fd").replace("k", ",000")
    for row in rows:
        run = (row["method"], row["supplement"], row["seed"])
        runs.setdefault(run, []).append((int(row["n_images"]), float(row[column])))
    ends = {run: (min(points)[1], max(points)[1]) for run, points in runs.items()}
    fresh = {run: each for run, each in ends.items() if run[0] != "sid2a"}
    below = sum(last < first for first, last in ends.values())
    lengths = [max(points)[0] for points in runs.values()]
    first = [each[0] for each in fresh.values()]
    last = [each[1] for each in ends.values()]
    return (
        f"{below} of {len(ends)} runs end below where they began, after {min(lengths):,} to {max(lengths):,} generated "
        f"images. The distance to held-out images ({count} generated, judge-a) is "
        f"{min(first):.1f} to {max(first):.1f} before training{SID2A if len(fresh) < len(ends) else ''} and {min(last):.2f} to "
        f"{max(last):.2f} after it. This checks that every training learns; it compares nothing."
    )


def supplement_counts(read: Read, suite: str = "bench") -> list[str]:
    """For how many methods EL lowers the mean, and for which the interval excludes zero; the same against the control."""
    text = read(f"data/tables/{suite}/main.md")
    means = bench_means(read, "fd5k_judge-a_heldout", suite)
    train = bench_means(read, "fd5k_judge-a_train", suite)
    methods = sorted({method for method, supplement in means if supplement == "el"})
    lower = {
        part: [m for m in methods if each[m, "el"] < each[m, "none"]] for part, each in (("h", means), ("t", train))
    }
    ahead = [m for m in methods if means[m, "el"] < means[m, "pixel-mmd"]]
    return [
        f"With EL the mean distance in the features of judge-a is lower than without for {len(lower['h'])} of {len(methods)} "
        f"methods on held-out images and for {len(lower['t'])} on train images. On held-out images the 95 % interval of the difference, "
        f"not corrected, {excludes_zero(text, methods, 'none')}.",
        f"Against the control `pixel-mmd`, `el` has a lower mean for {len(ahead)} of {len(methods)} methods, and the interval "
        f"{excludes_zero(text, methods, 'pixel-mmd')}.",
        f"{after_holm(text, methods)}",
    ]


def clear_after_holm(text: str, methods: list[str], other: str) -> list[str]:
    """The methods whose difference of EL to `other` on held-out images is clear after Holm's correction: "`sid2a` (EL higher)"."""
    found = {
        method: re.search(
            rf"^- {re.escape(method)}/el: fd5k_judge-a_heldout is (lower|higher|not distinguishable).*? {re.escape(other)}"
            r"(?: by |: ).*?Holm over \d+: ([\d.e-]+)", text, re.M,
        ) for method in methods
    }  # fmt: skip
    return [f"`{method}`, EL {each[1]}" for method, each in found.items() if each and float(each[2]) < 0.05]


def after_holm(text: str, methods: list[str]) -> str:
    """Which differences of EL on held-out images stay clear after Holm's correction: to none, and to the control."""
    parts = []
    for other, name in (("none", "`none`"), ("pixel-mmd", "the control")):
        clear = clear_after_holm(text, methods, other)
        which = f"the difference to {name} is clear for {'; '.join(clear)}"
        parts.append(which if clear else f"no difference to {name} is clear")
    return f"After Holm's correction {', and '.join(parts)}."


def excludes_zero(text: str, methods: list[str], other: str) -> str:
    """For which methods EL is clearly lower, and for which clearly higher, than another supplement on held-out images."""
    found = {m: verdict(*comparison(text, f"{m}/el", "fd5k_judge-a_heldout", other)[1:]) for m in methods}
    parts = [
        f"for {listed([m for m in methods if found[m] == word])} (EL {word})"
        for word in ("lower", "higher")
        if word in found.values()
    ]
    return f"excludes zero {' and '.join(parts)}" if parts else "includes zero for all"


def bench_short(read: Read) -> str:
    """The bench, and the table of the recent methods, in two sentences."""
    lines = []
    for suite, where in (("bench", "In the bench of {} methods"), ("bench-recent", "With {} methods of 2024 and 2025")):
        means, text = bench_means(read, "fd5k_judge-a_heldout", suite), read(f"data/tables/{suite}/main.md")
        methods = sorted({method for method, supplement in means if supplement == "el"})
        lower = {other: sum(means[m, "el"] < means[m, other] for m in methods) for other in ("none", "pixel-mmd")}
        clear = {other: "; ".join(clear_after_holm(text, methods, other)) or "none" for other in lower}
        lines.append(
            f"{where.format(len(methods))} EL's mean is lower than without for {lower['none']} (clear after Holm's correction: "
            f"{clear['none']}), and than the control's for {lower['pixel-mmd']} (clear: {clear['pixel-mmd']})."
        )
    return " ".join(lines)


def precision_and_recall(read: Read) -> str:
    """For how many methods EL raises recall and lowers precision."""
    recall, precision = (bench_means(read, f"{name}5k_judge-a_heldout") for name in ("recall", "precision"))
    methods = sorted({method for method, supplement in recall if supplement == "el"})
    parts = []
    for name in ("el", "pixel-mmd"):
        more = sum(recall[m, name] > recall[m, "none"] for m in methods)
        less = sum(precision[m, name] < precision[m, "none"] for m in methods)
        parts.append(
            f"with `{name}` mean recall is higher for {more} and mean precision lower for {less} of {len(methods)} methods"
        )
    return "Against `none`, " + ", and ".join(parts) + "."


def pixels(read: Read) -> str:
    """How the control does in the space that it minimises."""
    means = bench_means(read, "fd5k_pixels_heldout")
    methods = sorted({method for method, supplement in means if supplement == "el"})
    ahead = [m for m in methods if means[m, "pixel-mmd"] < means[m, "el"]]
    return f"In the distance of the pixels, `pixel-mmd` has a lower mean than `el` for {len(ahead)} of {len(methods)} methods."


def pairs_of_arms(read: Read) -> list[str]:
    """SiD²A against the SiD that it starts from, and what DMD's regression changes."""
    judge, plain = "fd5k_judge-a_heldout", "fd5k_pixels_heldout"
    longer = paired(read, "bench", judge, "sid2a/none", "sid/none")
    regression = [paired(read, "bench", column, "dmd/regression", "dmd/none") for column in (judge, plain)]
    return [
        f"`sid2a/none` starts from `sid/none`. The difference of its distance {with_interval(longer)}.",
        f"For `dmd/regression` the difference to `dmd/none` {with_interval(regression[0])}; in the pixels it "
        f"{with_interval(regression[1])}.",
    ]


def alarms(read: Read, suite: str = "bench") -> str:
    """How many arms the page asks one to look at, by which metrics, and what these can mean."""
    text = read(f"data/tables/{suite}/main.md")
    names = "|".join(name for name, *_ in (*ALARMS, ("copied",)))
    lists = re.findall(rf"^- (\S+/\S+): ((?:{names}) -?[\d.]+.*)\.$", text, re.M)
    clauses = [
        (arm, *re.fullmatch(r"(\w+) .*: ([^:]+)", each).groups()) for arm, said in lists for each in said.split("; ")
    ]
    arms = [name for name in table(text)[1] if "/" in name.split(" ")[0]]
    if not clauses:
        return f"For none of {len(arms)} arms the list below the table raises an alarm."
    counts = {}
    for _, metric, cause in clauses:
        counts[metric, cause] = counts.get((metric, cause), 0) + 1
    parts = [
        f"{ALARMED.get(metric, f'`{metric}`')} in {count} ({cause})"
        for (metric, cause), count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return (
        f"For {len({arm for arm, *_ in clauses})} of {len(arms)} arms the list below the table raises an alarm, because a metric is far "
        f"from that of the teacher or of real images: {'; '.join(parts)}. See [how alarms are set](measuring.md#alarms)."
    )


ALARMED = {"is": "the class score (`is`, an Inception score with the classes of judge-a)"}


def own_batches(read: Read) -> str:
    """Why a supplement costs more with the consistency models."""
    header, rows = table(read("data/tables/bench/main.md"))
    cells = [row[header.index("CPU ms an iteration")] for name, row in rows.items() if name.startswith(("cd/", "ect/"))]
    more = sorted(int(found[1]) for cell in cells if (found := re.search(r"\(([+-]\d+) %\)", cell)))
    return (
        "The consistency models make no one-step images in training, so a supplement needs a batch of its own. It adds "
        f"{more[0]} to {more[-1]} % to the time of an iteration."
    )


def few_steps(read: Read, suite: str = "bench") -> str:
    """Distances of the consistency models in 1, 2 and 4 steps."""
    columns = [f"fd5k_judge-a_heldout{end}" for end in ("", "_2steps", "_4steps")]
    means = [bench_means(read, column, suite) for column in columns]
    parts = [
        f"`{'/'.join(arm)}` {', '.join(f'{each[arm]:.2f}' for each in means)}" for arm in means[0] if arm in means[1]
    ]
    return f"In 1, 2 and 4 steps the consistency models reach: {'; '.join(parts)}."


def bench_sentences(read: Read) -> str:
    """What the bench shows, in sentences."""
    text = read("data/tables/bench/main.md")
    compared = len(re.findall(r"^- \S+: \S+ is (?:lower|higher|not distinguishable)", text, re.M))
    return "".join(
        wrapped(f"- {sentence}").replace("\n", "\n  ").rstrip() + "\n"
        for sentence in (
            start_and_end(read),
            *supplement_counts(read),
            pixels(read),
            precision_and_recall(read),
            *pairs_of_arms(read),
            few_steps(read),
            own_batches(read),
            alarms(read),
            f"The page makes {compared} comparisons at the 95 % level on one teacher and 360 held-out digits. Without a "
            "correction some of them exclude zero by chance. Holm's p in [main.md](../data/tables/bench/main.md) corrects within "
            "a family (one baseline, one feature space, one part of the images), and not over the page.",
        )
    )


SUITES = {
    "smoke": "the digits, as short as possible", "demo": "DI and DMD on the digits", "demo-long": "the demo with a better teacher",
    "bench": "eight methods on the digits", "bench-recent": "six methods of 2024 and 2025 on the digits",
    "speed": "times and rates of DI, DMD and SiD", "speed-others": "of DMD2, SiDA, CD and ECT", "speed-recent": "of the six methods",
    "ablation": "the studies of EL", "colour": "drawn faces of 32×32 pixels", "gpu-day": "CIFAR-10, a day of one GPU",
    "paper": "the paper's table",
}  # fmt: skip


def suites(read: Read) -> str:
    """What each suite trains, and how many runs it has. The numbers are those of the settings here, not of `read`."""
    runs = load_params(ROOT / "params.yaml").runs
    lines = [f"| `{name}` | {len({str(run) for run in runs(name)})} | {what} |" for name, what in SUITES.items()]
    return "\n".join(["| suite | runs | what |", "| --- | ---: | --- |", *lines]) + "\n"


def recent_sentences(read: Read) -> str:
    """What the table of the methods of 2024 and 2025 shows, in sentences."""
    suite = "bench-recent"
    lines = (start_and_end(read, suite), *supplement_counts(read, suite), few_steps(read, suite), alarms(read, suite))
    return "".join(wrapped(f"- {each}").replace("\n", "\n  ").rstrip() + "\n" for each in lines)


# --- speed ----------------------------------------------------------------------------------------------


def speed(read: Read) -> str:
    """What a training step and a sampler cost on one CPU thread."""
    found = json.loads(read("benchmarks/step.json"))
    one, heun = (found["sampling"][f"{name}, images/s"] for name in ("one step", "Heun, 18 steps"))
    ratios = {name: [row["ratio"] for row in found["rows"] if row["supplement"] == name] for name in ("none", "el")}
    bare, el = (f"{min(each):.2f} to {max(each):.2f}" for each in ratios.values())
    return wrapped(
        f"On one CPU thread, with the network of the demo, the one-step generator makes {one:,.0f} images per second. Its "
        f"teacher makes {heun:.0f} with Heun's method in 18 steps, so one step is {found['sampling']['ratio']:.0f} times as "
        f"fast. A training step takes {bare} times as long as the network passes that its method needs, and {el} times with "
        "EL."
    )


def speed_gpu(read: Read) -> str:
    """What a GPU measured: correctness, an iteration by precision, EL's share, and sampling."""
    found = json.loads(read(newest_gpu(read)))
    parts = {
        part: {item: row for item, row in values["items"].items() if row["status"] == "done"}
        for part, values in found["parts"].items()
    }
    fast, trained = parts["fast"], {name: row for name, row in parts["right"].items() if "float64" in row["checks"]}
    apart = max(row["checks"]["float64"]["weights"] for row in trained.values())
    repeated = [row["checks"]["twice"]["equal"] for row in trained.values() if "twice" in row["checks"]]
    differing = sum(bool(row["differs"]) for row in parts["right"].values())
    sid = {kind: fast[f"ddpmpp-cifar10, batch 256, sid/none, {kind}"] for kind in ("float32", "tf32", "bfloat16")}
    el, sampled = fast["ddpmpp-cifar10, batch 256, sid/el, bfloat16"], parts["sampling"]["bfloat16"]
    ms = {kind: row["milliseconds"] for kind, row in sid.items()}
    ratios = [row["ratio"] for row in fast.values()]
    first = [row["first_milliseconds"] / 1000 for row in (*sid.values(),)]
    return wrapped(
        f"On one {found['device']['name']} with torch {found['torch']} ({found['date'][:10]}), {len(trained)} small trainings agree "
        f"with the CPU in float64 within {apart:.0e} of the weights, and {sum(repeated)} of {len(repeated)} repeated ones agree "
        f"to the bit; {differing or 'no'} check{'s' * (differing != 1)} failed. An iteration of SiD with the network of CIFAR-10 "
        f"at batch 256 takes {ms['float32']:,.0f} ms in float32, {ms['tf32']:,.0f} ms with `tf32` and {ms['bfloat16']:,.0f} ms in "
        f"bfloat16 ({ms['float32'] / ms['bfloat16']:.1f} times as fast as float32), in {sid['bfloat16']['memory_gib']:.0f} GiB. EL's "
        f"share of it is {el['supplement_percent']:.1f} %. Iterations take {min(ratios):.2f} to {max(ratios):.2f} times as long as "
        f"their network passes alone. The very first takes {min(first):.0f} to {max(first):.0f} s, while cuDNN tries its "
        f"convolutions (`benchmark`). The one-step generator makes {sampled['one step, images/s']:,.0f} images per second, its "
        f"teacher {sampled['Heun, 18 steps, images/s']:,.0f} in 18 steps of Heun's method."
    )


def gpu_day_hours(read: Read) -> str:
    """The hours of one run of the suite gpu-day at the speed that a GPU was measured at."""
    found = json.loads(read(newest_gpu(read)))
    images = int(re.findall(r"sid-day: .*n_images: (\d+)", read("params.yaml"))[0])
    rows = {
        kind: found["parts"]["fast"]["items"][f"ddpmpp-cifar10, batch 256, sid/none, {kind}"]
        for kind in ("float32", "tf32")
    }
    plain, rounded = (images / 256 * row["milliseconds"] / 3.6e6 for row in rows.values())
    return wrapped(
        f"At the speed of [one {found['device']['name']}](speed.md#on-a-gpu), a training of `sid-day/none` takes {plain:.1f} hours in "
        f"float32 and {rounded:.1f} with `distil.tf32: true`, in {rows['float32']['memory_gib']:.0f} GiB. "
        "On a smaller GPU `fit` halves the micro-batch by itself ([GPUs](gpus.md)). The other two methods were not measured in float32."
    )


def newest_gpu(read: Read) -> str:
    """The path of the JSON that benchmarks/gpu/README.md was made from."""
    return "benchmarks/gpu/" + re.findall(r"all numbers are in \[([^]]+)\]", read("benchmarks/gpu/README.md"))[0]


def evaluation_cost(read: Read) -> str:
    """What an evaluation costs, against writing PNG files."""
    found = json.loads(read("benchmarks/evaluate.json"))
    own, plain = (found["over_ours"][f"clean-fid, {mode}"] for mode in ("its own mode", "no resizing"))
    return wrapped(
        f"Evaluating 10,000 digits in four spaces (2,000 of them in `efficientnet-lite0-96`) gives {found['metrics']} numbers in "
        f"{found['seconds']['in one pass, all metrics']:.0f} s on two cores, {found['images_per_second']:.0f} images per second. "
        f"By PNG files and clean-fid the features alone take {own:.1f} times as long, {plain:.1f} times without its resizing."
    )


def embedding_cost(read: Read) -> str:
    """EL's share of an iteration with an rbf kernel at batch 64."""
    rows = re.findall(r"^\| 64 \| ([\w-]+) \| \S+ % \| (\S+) % \|", read("benchmarks/README.md"), re.M)
    share = {name: f"{float(value):.0f} %" for name, value in rows}
    return wrapped(
        f"On one CPU thread, with batch 64, an rbf kernel and the network of the demo, `conv4` takes {share['conv4']} of an "
        f"iteration, `conv8` {share['conv8']}, `mix8-8` {share['mix8-8']} and the pixels (`identity`) {share['identity']}."
    )


def landmarks(read: Read) -> str:
    """Accuracy and cost of anchored EL by the number of landmarks."""
    found = json.loads(read("benchmarks/landmarks.json"))
    kernels = [key for key in found["errors"][0] if key not in ("ensemble", "landmarks")]
    lines = [
        ["ensemble", "landmarks", *(f"error, `{kernel}`" for kernel in kernels), "ms, `rbf`"],
        ["---", *["---:"] * (len(kernels) + 2)],
    ]
    for row in found["errors"]:
        cost = found["milliseconds"][row["ensemble"]]
        count = "all" if row["landmarks"] == found["train_images"] else f"{row['landmarks']:,}"
        cells = [f"{100 * row[kernel]:.2g} %" if count != "all" else "0" for kernel in kernels]
        lines.append([f"`{row['ensemble']}`", count, *cells, f"{cost[str(row['landmarks']) + ' landmarks']:.1f}"])
    for name, cost in found["milliseconds"].items():
        lines.append([f"`{name}`", "real images", *[""] * len(kernels), f"{cost['real images']:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def shared_gpu(found: dict) -> str:
    """What many small trainings at once take on a GPU, in a sentence."""
    runs = [each["provenance"] for each in found["runs"].values()]
    teachers = [each["provenance"] for each in found["teachers"].values()]
    seconds = statistics.median(each["seconds_wall"] for each in runs)
    minutes = max(each["seconds_wall"] for each in teachers) / 60
    return (
        f"One {found['device']} trained {len(runs)} generators at once, each of {runs[0]['iterations']} iterations, in about "
        f"{seconds:.0f} s, and the {len(teachers)} teachers at once in {minutes:.0f} minutes."
    )


COLOUR = "data/tables/colour/{}.csv"
COLOUR_ARMS = ("none", "el", "pixel-mmd", "fd", "drift")
COLOUR_SPACE = "efficientnet-lite0-96"  # ranks the runs of the suite colour


def colour_row(
    read: Read, study: str, supplement: str, space: str = COLOUR_SPACE, method: str = "dmd"
) -> dict[str, str]:
    """An arm in a feature space, of a study of the suite colour, with its interval in percent. Studies of other kinds have one space."""
    for row in rows_of(read(COLOUR.format(study))):
        if (row["method"], row["supplement"], row.get("space", space)) == (method, supplement, space):
            return in_percent(row)
    raise KeyError(f"{study} has no {method}/{supplement} in {space}")


def colour_compared(row: dict[str, str], other: str) -> str:
    """ "equivalent within ±10 % to that without (2.5 % lower [-6.5, 11.6])", or what the test of a difference says."""
    margin = f"±{abs(float(row['margin']) * float(row['percent']) / float(row['difference'])):.0f} %"
    if float(row["p_equivalent_holm"]) < 0.05:
        return f"equivalent within {margin} to that {other} ({said_percent(row)})"
    return (
        against(row, other) if float(row["p_holm"]) < 0.05 else f"undecided against that {other} ({said_percent(row)})"
    )


def colour_finding(read: Read) -> str:
    """The answers in colour in a few sentences, for the first screen, and what the features say that chose no rates."""
    none, control = colour_row(read, "colour-none", "el"), colour_row(read, "colour", "el")
    judge = colour_row(read, "colour", "el", "judge-a")
    teachers = none["data"].partition(", ")[2] or "one teacher"
    fd, drift = (colour_row(read, "colour-relatives", name) for name in ("fd", "drift"))
    small, alone = (colour_row(read, "colour-batch", name, method="dmd-b16") for name in ("el", "none"))
    kept = {each["run"]: each for each in map(json.loads, read("data/tables/colour/kept.jsonl").splitlines())}
    teacher = kept["avatars-32/teacher"]["results"]["metrics"][f"fd5k_{COLOUR_SPACE}_heldout"]
    means = sorted(float(row["fd_mean"]) for row in (none, control, fd, drift))
    planned = list(map(str, load_params(ROOT / "params.yaml").runs("colour")))
    return (
        f"**In colour, preliminary** ([drawn faces](docs/colour.md) of 32×32 pixels; {len(kept.keys() & set(planned))} of {len(planned)} "
        f"planned runs; DMD, {seeds_of(none, control)}, {teachers}, rates chosen on one seed; features of a network for photographs, in "
        f"which they have {means[0]:.0f} to {means[-1]:.0f} and the teacher {teacher:.0f}). The distance with EL is "
        f"{colour_compared(none, 'without')} and {colour_compared(control, 'with the control')}; in judge-a's features it is "
        f"{said_percent(judge)} than with the control. Than with EL it is {said_percent(fd)} with the Fréchet distance as the loss and "
        f"{said_percent(drift)} with the drifting field ({seeds_of(fd, drift)}). Batches of 16 end {said_percent(small)} with EL, and "
        f"{said_percent(alone)} without, than batches of 256 without EL ({seeds_of(small, alone)}, rates not tuned)."
    )


def seeds_of(*rows: dict[str, str]) -> str:
    """ "3 to 4 seeds": the pairs of these comparisons."""
    counts = sorted({int(row["pairs"]) for row in rows})
    return f"{' to '.join(map(str, counts))} seed{'s' * (counts[-1] > 1)}"


def said_percent(row: dict[str, str]) -> str:
    """ "61 % higher [20, 102]": a difference with its interval, without a test; of one pair without an interval."""
    middle = float(row["percent"])
    if not row["low"]:
        return f"{abs(middle):.{0 if abs(middle) >= 10 else 1}f} % {'higher' if middle > 0 else 'lower'}"
    ends = float(row["low"]), float(row["high"])
    low, high = ends if middle > 0 else (-ends[1], -ends[0])
    digits = 0 if abs(middle) >= 10 else 1
    return f"{abs(middle):.{digits}f} % {'higher' if middle > 0 else 'lower'} [{low:.{digits}f}, {high:.{digits}f}]"


def colour_answers(read: Read) -> str:
    """The answers of the studies of the suite colour, each in a paragraph, and EL against the control over several feature spaces."""
    project = load_params(ROOT / "params.yaml")
    made = {json.loads(line)["run"] for line in read("data/tables/colour/kept.jsonl").splitlines()}
    arms: dict[str, dict[str, int]] = {}
    for run in project.runs("colour"):
        if str(run) in made and run.seed not in project.top("tables")["tuning"]:
            counts = arms.setdefault(run.method, {})
            counts[run.supplement] = counts.get(run.supplement, 0) + 1
    each = "; ".join(
        f"`{method}` {', '.join(f'{n} with `{arm}`' for arm, n in found.items())}" for method, found in arms.items()
    )
    names = project.studies("colour")
    studies = sorted(names, key=lambda name: (name not in ("colour", "colour-none"), name))
    texts = [f"[`{name}`](../data/tables/colour/{name}.md): {answer_of(read, name, 'colour')}" for name in studies]
    rows = rows_of(read("data/tables/colour/colour.spaces.csv"))
    row = next(each for each in rows if (each["method"], each["supplement"], each["metric"]) == ("dmd", "el", "fd"))
    middle, low, high = (f"{float(row[f'to_baseline{end}']):.2f}" for end in ("", "_low", "_high"))
    over = f"Over EfficientNet, judge-a and judge-b together the distance with EL is {middle} times [{low}, {high}] that with the control"
    return "\n".join(
        wrapped(text)
        for text in (
            f"Runs on fresh seeds so far: {each}.",
            *texts,
            f"{over} (geometric means at the end of the runs, not corrected).",
        )
    )


def colour_cpu(read: Read) -> str:
    """The runs of the suite colour that git keeps: DMD on the first tuning seed, by supplement and factor."""
    kept = [json.loads(line) for line in read("data/tables/colour/kept.jsonl").splitlines()]
    cells = {}
    for each in kept:
        if found := re.fullmatch(r"avatars-32/dmd-r(\d+)/([\w-]+)/100", each["run"]):
            cells[found[2], float(f"0.{found[1][1:]}" if found[1].startswith("0") else found[1])] = each["results"][
                "metrics"
            ]
    factors, spaces = (
        sorted({factor for _, factor in cells}),
        {"efficientnet-lite0-96": "EfficientNet", "judge-a": "judge-a"},
    )
    lines = [["", *(f"{title}, ×{factor:g}" for title in spaces.values() for factor in factors)]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name in COLOUR_ARMS:
        row = [cells.get((name, factor), {}).get(f"fd5k_{space}_heldout") for space in spaces for factor in factors]
        lines.append(
            [
                f"`{name}`",
                *("–" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in row),
            ]
        )
    shares = {run.split("/")[2]: share for run, share in colour_shares(kept).items() if "/dmd-r025/" in run}
    texts = ", ".join(f"{shares[name]:.2f} for `{name}`" for name in COLOUR_ARMS if name in shares)
    said = f"At ×1/4 the gradient of the supplement is on average, after its warm-up, this share of that of the base loss: {texts}."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{wrapped(said)}\n"


def colour_shares(kept: list[dict]) -> dict[str, float]:
    """{run: mean over its log, after a twentieth of the run, of the weighted gradient of its supplement over that of the base loss}."""
    found = {}
    for each in kept:
        log = each["results"].get("log")
        names = log["names"] if log else []
        own = next((name.split(".")[0] for name in names if name.endswith(".gradient_rms")), None)
        if own is None or "generator.base_rms" not in names:
            continue
        weight, gradient, base = (
            names.index(name) for name in (f"{own}.weight", f"{own}.gradient_rms", "generator.base_rms")
        )
        rows = log["rows"][len(log["rows"]) // 20 :]
        found[each["run"]] = statistics.fmean(
            float(row[weight]) * float(row[gradient]) / float(row[base]) for row in rows
        )
    return found


def colour_gpu(read: Read) -> str:
    """The runs of the suite colour that a GPU made: distances at the end of Diff-Instruct, by supplement and factor."""
    found = json.loads(read("benchmarks/gpu/colour/results.json"))
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for run, each in found["runs"].items():
        _, method, supplement, _ = run.split("/")
        cells[supplement, method] = each["metrics"]
    methods = sorted({method for _, method in cells})
    methods = [m for m in methods if all((supplement, m) in cells for supplement, _ in cells)]
    spaces = {"efficientnet-lite0-96": "EfficientNet", "judge-a": "judge-a"}
    heads = [f"{title}, ×{method.rpartition('-r')[2]}" for title in spaces.values() for method in methods]
    lines = [["", *heads], ["---", *["---:"] * len(heads)]]
    for supplement in dict.fromkeys(
        name for name in ("none", "el", "pixel-mmd", "fd", "drift") if (name, methods[0]) in cells
    ):
        row = [cells[supplement, method][f"fd5k_{space}_heldout"] for space in spaces for method in methods]
        lines.append([f"`{supplement}`", *(f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in row)])
    recall = {cell: metrics["recall5k_judge-a_heldout"] for cell, metrics in cells.items()}
    alone = max(recall["none", method] for method in methods)
    parts = []
    for method in (methods[0], methods[-1]):
        values = sorted(
            value for (supplement, each), value in recall.items() if supplement != "none" and each == method
        )
        parts.append(f"{values[0]:.2g} to {values[-1]:.2g} at ×{method.rpartition('-r')[2]}")
    teacher = " and ".join(
        f"{found['teacher'][f'fd5k_{space}_heldout']:.3g} in {title}" for space, title in spaces.items()
    )
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in lines)
        + "\n\n"
        + wrapped(
            f"The teacher in 18 steps has {teacher}. Recall (judge-a) is at most {alone:.2g} at each of these factors without a "
            f"supplement, and with one it is {' and '.join(parts)}. {shared_gpu(found)}"
        )
    )


MADE: dict[str, Callable[[Read], str]] = {
    "finding": finding,
    "demo-small": lambda read: chosen(read("data/tables/demo/main.md"), SMALL, without_networks),
    "demo-table": lambda read: chosen(read("data/tables/demo/main.md"), DEMO, lambda name: True),
    "demo-reading": demo_reading,
    "demo-error": demo_error,
    "demo-sentences": demo_sentences,
    "bench-table": lambda read: chosen(read("data/tables/bench/main.md"), BENCH, lambda name: True),
    "bench-sentences": bench_sentences,
    "suites": suites,
    "equal-cost": lambda read: wrapped(answer_of(read, "budget", "speed")),
    "recent-table": lambda read: chosen(read("data/tables/bench-recent/main.md"), BENCH, lambda name: True),
    "recent-sentences": recent_sentences,
    "speed-arms": speed_arms,
    "variants": variants,
    "variants-fresh": variants_fresh,
    "ensemble-seed": seeds_apart,
    "variance": lambda read: wrapped(answer_of(read, "variance")),
    "small-batches": small_batches,
    "batch-16": lambda read: "\n".join(wrapped(answer_of(read, name)) for name in BATCH_16),
    "mechanism": lambda read: changes(read, "mechanism"),
    "central": central,
    "colour-gpu": colour_gpu,
    "colour-cpu": colour_cpu,
    "colour-answers": colour_answers,
    "speed": speed,
    "speed-gpu": speed_gpu,
    "gpu-day-hours": gpu_day_hours,
    "evaluation-cost": evaluation_cost,
    "embedding-cost": embedding_cost,
    "landmarks": landmarks,
    "misquotes": misquotes,
}


def renewed(page: str, read: Read) -> str:
    """A page with each quoted part made anew. Raises KeyError for a part that nobody makes."""
    return MARK.sub(lambda found: found[1] + "\n" + MADE[found[2]](read) + "\n" + found[4], page)


def main() -> None:
    """Renew README.md and docs/, and name the pages that changed."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = path.read_text(encoding="utf-8")
        after = renewed(before, read_working_tree)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"renewed {path.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
