# SPDX-License-Identifier: Apache-2.0
"""The answer to the question of a study: yes, no or undecided, in one sentence with its interval, and no more than the numbers say."""

from __future__ import annotations

import re
from collections.abc import Sequence

from eldistill.tables import headline, inference, names
from eldistill.tables.effects import Effect, spanned_percent
from eldistill.tables.headline import MEASURE, TIME

COVERED_BY = "report"
LOWER, HIGHER, EQUAL, UNDECIDED = range(4)  # what `decide` returns, in the order in which a sentence names them
ASKS = re.compile(
    r"(?:.*: )?(?:do|does|did|is|are|can|has|have|will)\b", re.IGNORECASE
)  # questions that yes or no answers
# The words for what `decide` returns: of questions that yes or no answers, of others, and of times.
YES = ("Yes", "No", "No difference", "Undecided")
WORDS = ("Lower", "Higher", "No difference", "Undecided")
TIMES = ("Sooner", "Later", "No difference", "Undecided")
NAMED = 2  # arms that a sentence names for each answer
MANY = 1000  # seeds that a sentence counts


def decide(effect: Effect) -> int:
    """LOWER, HIGHER, EQUAL or UNDECIDED.

    A difference counts if its interval is without 0 and, where a page has several comparisons, it remains after Holm's correction for
    their number. Otherwise equality counts if its test shows it within the margin. An effect without an interval, or without a
    place in the corrected family, decides nothing."""
    if effect.low is None or effect.high is None or effect.p_holm is None:
        return UNDECIDED
    if effect.certain and not effect.low <= 0 <= effect.high:
        return LOWER if effect.percent < 0 else HIGHER
    return EQUAL if effect.equal else UNDECIDED


def answer(effects: Sequence[Effect], params: dict, measure: str = MEASURE) -> list[str]:
    """Sentences for `headline.headline_html`: the answer first, then the rule, and what is undecided or left out.

    effects: comparisons with the baseline. params: question, against, confidence, and margin if equality is tested. measure: what is
    compared, MEASURE or TIME. Only arms with a supplement answer, if there are any: `none` is there to be compared with."""
    tested = [each for each in effects if each.p_holm is not None]
    if not tested:
        return _nothing_tested(effects, params, measure)
    asked = [each for each in tested if not each.raw.endswith("/none")] or tested
    rest = [each for each in asked if decide(each) == UNDECIDED]
    said = [_sentence(asked, params, measure), headline.certainty(tested)]
    said += [headline.undecided(rest, asked)] if len(rest) > 1 else []
    said += [_others(beside, asked, measure)] if (beside := [each for each in tested if each not in asked]) else []
    return said + headline.left_out(effects, tested)


def more_seeds(effect: Effect, confidence: float) -> int | None:
    """The number of further pairs of seeds with which the test of equality has a power of 80 %, if there is no difference and pairs vary
    as those found; None if equality is not tested, or pairs show no variation."""
    if effect.margin is None or effect.low is None or effect.high is None or effect.low == effect.high:
        return None
    spread = inference.spread_of(effect.low, effect.high, effect.pairs, confidence)
    return max(0, inference.pairs_for_equivalence(spread, effect.margin, effect.level) - effect.pairs)


def amount(effect: Effect, measure: str = MEASURE) -> str:
    """The difference in words with its interval, in the direction of its sign: `5.8 % lower [1.3, 10.3]`."""
    sign, timed = (-1 if effect.percent < 0 else 1), measure == TIME
    low, high = effect.low, effect.high
    if low is not None and high is not None:
        low, high = sorted((sign * low, sign * high))
    middle, *texts = spanned_percent(sign * effect.percent, low, high, signs=False)
    word = ("fewer iterations" if sign < 0 else "more iterations") if timed else ("lower" if sign < 0 else "higher")
    return f"{middle} % {word}" + (f" [{', '.join(texts)}]" if texts else "")


# --- parts of the sentence ------------------------------------------------------------------------------


def _words(params: dict, measure: str) -> Sequence[str]:
    return TIMES if measure == TIME else YES if ASKS.match(params["question"]) else WORDS


def _sentence(asked: Sequence[Effect], params: dict, measure: str) -> str:
    words, base = _words(params, measure), names.baseline_name(params["against"])
    groups = {kind: [each for each in asked if decide(each) == kind] for kind in range(len(words))}
    if len(asked) == 1:
        (kind,) = (kind for kind, group in groups.items() if group)
        return f"{words[kind]}: {_one(asked[0], params, base, measure)}."
    said = [
        (words[kind] if kind == min(kind for kind in groups if groups[kind]) else words[kind].lower())
        + f" {_group(group, asked, base, measure)}"
        for kind, group in groups.items()
        if group
    ]
    return "; ".join(said) + _needed(groups[UNDECIDED], params) + "."


def _one(effect: Effect, params: dict, base: str, measure: str) -> str:
    verb = "needs" if measure == TIME else "ends"
    seeds = f"over {effect.pairs} seeds" if effect.pairs > 1 else "over one seed"
    text = f"{effect.arm} {verb} {amount(effect, measure)} than {base}, {seeds}"
    if effect.margin is None:
        return text
    if decide(effect) == UNDECIDED:
        return text + _needed([effect], params)
    return f"{text}; equivalence within ±{effect.margin:g} % is {'' if effect.equal else 'not '}shown"


def _group(group: Sequence[Effect], asked: Sequence[Effect], base: str, measure: str) -> str:
    # `for A (5.8 % lower [1.3, 10.3] than none) and B (…)`; of many the number and the largest difference.
    what = headline.what(asked)
    if len(group) > NAMED:
        first = max(group, key=lambda each: abs(each.percent))
        every = f"all {len(group)} {what}" if len(group) == len(asked) else f"{len(group)} of {len(asked)} {what}"
        most = f"{headline.who(first, asked)} ({amount(first, measure)} than {base})"
        return f"for {every}, most of all {most}" if decide(first) in (LOWER, HIGHER) else f"for {every}"
    ends = [f" than {base}", *[""] * (len(group) - 1)]
    parts = (
        f"{headline.who(each, asked)} ({amount(each, measure)}{end})" for each, end in zip(group, ends, strict=True)
    )
    return "for " + " and ".join(parts)


def _needed(undecided: Sequence[Effect], params: dict) -> str:
    # How many more seeds would decide, where equality is tested.
    counts = [more for each in undecided if (more := more_seeds(each, params["confidence"])) is not None]
    if not counts:
        return ""
    low, high, margin = min(counts), max(counts), f"±{undecided[0].margin:g} %"
    if not high:
        return f"; there are as many seeds as a test of equivalence within {margin} needs"
    if low > MANY:
        return f"; more than {MANY:,} more seeds would be needed for a margin of {margin}"
    count = f"about {high}" if low == high or len(counts) == 1 else f"{low} to {high}"
    count = count if high <= MANY else f"{low} to more than {MANY:,}"
    seeds = "seed" if high == 1 else "seeds"
    return f"; {count} more {seeds} would show equivalence within {margin}, were there no difference"


def _others(beside: Sequence[Effect], asked: Sequence[Effect], measure: str) -> str:
    # Arms without a supplement, which do not answer the question.
    parts = [f"{headline.who(each, [*beside, *asked])} {amount(each, measure)}" for each in beside[:NAMED]]
    more = f" and {len(beside) - NAMED} more" if len(beside) > NAMED else ""
    return f"For comparison, without a supplement: {', '.join(parts)}{more}."


def _nothing_tested(effects: Sequence[Effect], params: dict, measure: str) -> list[str]:
    found = headline.headline(effects, params["against"], measure)
    if not effects:
        return found
    if any(each.low is not None for each in effects):
        return [f"Undecided: {found[1][0].lower()}{found[1][1:]}", *found[2:]]
    return ["Undecided, because each comparison has one pair of seeds.", *found[1:]]
