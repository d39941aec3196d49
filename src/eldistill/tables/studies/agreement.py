# SPDX-License-Identifier: Apache-2.0
"""Whether KID says the same as the Fréchet distance that answers a study.

Two distances of the same features can rank arms in opposite orders. A reader of an answer must see that, because the study was
asked in one of them only.
"""

from __future__ import annotations

from collections.abc import Sequence

from eldistill.tables import headline, names
from eldistill.tables.answers import HIGHER, LOWER, NAMED, decide
from eldistill.tables.effects import Effect, of_study
from eldistill.tables.results import spanned

COVERED_BY = "report"
Row = dict


def kid_sentence(rows: Sequence[Row], params: dict) -> tuple[str, bool]:
    """(a sentence on the differences of KID of the arms that answer, whether it contradicts the answer for one of them).

    rows, params: of a study. KID is not corrected for the number of comparisons, and its difference is absolute, because KID itself
    can be below 0. The sentence is empty where no row has a difference of KID with an interval."""
    asked = [pair for row in rows if (pair := _paired(row, params)) and not pair[1].raw.endswith("/none")]
    if not asked:
        return "", False
    effects = [effect for _, effect in asked]
    groups: dict[str, list[str]] = {"opposite": [], "same": [], "alone": [], "open": []}
    for row, effect in asked:
        groups[_kind(row, effect)].append(_one(row, effect, effects))
    base = names.baseline_name(params["against"])
    words = {
        "opposite": "says the opposite for",
        "alone": "shows a difference by itself for",
        "same": "agrees for",
        "open": "decides nothing for",
    }
    said = [f"{words[kind]} {_listed(groups[kind], len(asked), kind != 'open')}" for kind in words if groups[kind]]
    text = f"KID in the same features (minus that of {base}; not corrected) {'; '.join(said)}."
    return text, bool(groups["opposite"])


def _paired(row: Row, params: dict) -> tuple[Row, Effect] | None:
    if row.get("p_holm") is None or row.get("kid_low") is None:
        return None
    effects = of_study([row], params)
    return (row, effects[0]) if effects else None


def _kind(row: Row, effect: Effect) -> str:
    if row["kid_low"] <= 0 <= row["kid_high"]:
        return "open"
    verdict, side = decide(effect), LOWER if row["kid_difference"] < 0 else HIGHER
    if verdict not in (LOWER, HIGHER):
        return "alone"
    return "same" if verdict == side else "opposite"


def _one(row: Row, effect: Effect, effects: Sequence[Effect]) -> str:
    sign, numbers = (
        "+" if row["kid_difference"] > 0 else "",
        (row[f"kid_{key}"] for key in ("difference", "low", "high")),
    )
    return f"{headline.who(effect, effects)} ({sign}{spanned(*numbers).replace('-', '−')})"


def _listed(arms: Sequence[str], of: int, example: bool) -> str:
    if len(arms) <= NAMED:
        return " and ".join(arms)
    count = f"all {of} arms" if len(arms) == of else f"{len(arms)} of {of} arms"
    return f"{count}, among them {arms[0]}" if example else count
