# SPDX-License-Identifier: Apache-2.0
"""The headline of a page: what helped, by how much, and how certain it is, in a few sentences written from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eldistill.tables import names
from eldistill.tables.effects import Effect
from eldistill.tables.page import inline, unbroken

COVERED_BY = "report"
NAMED = 3  # effects that a sentence names at most; the forest plot has all
MEASURE = "the Fréchet distance to held-out images"
TIME = "the number of iterations to the baseline's value"


def headline(effects: Sequence[Effect], against: str, measure: str = MEASURE) -> list[str]:
    """Two to five sentences, the claim first.

    effects: comparisons with the baseline. against: the baseline, a supplement or METHOD/SUPPLEMENT. measure: what is compared. A
    difference is called lower or higher only if it remains after the correction for the number of comparisons."""
    base, tested = names.baseline_name(against), [each for each in effects if each.p_holm is not None]
    if not effects:
        return ["Nothing is compared.", f"No arm shares a seed with the baseline ({base})."]
    if not tested:
        if any(each.low is not None for each in effects):
            return ["Nothing is certain.", "These comparisons are exploratory, without a correction."]
        return ["Nothing is certain, because each comparison has one pair of seeds.", _untested(effects, base, measure)]
    certain = [each for each in tested if each.certain]
    rest = [each for each in tested if not each.certain]
    said = [_claim(certain, base, tested, measure) if certain else _nothing(tested, base, measure), certainty(tested)]
    said += [undecided(rest, effects)] if rest else []
    return said + left_out(effects, tested)


def left_out(effects: Sequence[Effect], tested: Sequence[Effect]) -> list[str]:
    """Sentences on the comparisons that are not tested."""
    left = sum(each.low is None for each in effects)
    said = [f"{_count(left, 'comparison', 'comparisons')} with one seed cannot be tested."] if left else []
    if explores := len(effects) - len(tested) - left:
        said.append(
            f"{_count(explores, 'more comparison is', 'more comparisons are')} exploratory, without a correction."
        )
    return said


def headline_html(sentences: Sequence[str], more: Sequence[str] = ()) -> str:
    """The sentences of `headline` as HTML: the claim in large letters, then the numbers, and what `certain` means in small print.

    more: sentences that follow the numbers."""
    claim, *rest = (unbroken(sentence) for sentence in sentences)
    rule = [rest.pop(0)] if len(rest) > 1 else []
    body = f'<p class="claim">{inline(claim)}</p><p>{inline(" ".join(filter(None, (*rest, *map(unbroken, more)))))}</p>'
    return body + "".join(f'<p class="note">{inline(text)}</p>' for text in rule)


def _count(n: int, one: str, several: str) -> str:
    return f"{n} {one if n == 1 else several}"


def _claim(certain: Sequence[Effect], base: str, every: Sequence[Effect], measure: str) -> str:
    # What lowers the distance, and what raises it.
    said: list[str] = []
    for lower, one, several in ((True, "lowers", "lower"), (False, "raises", "raise")):
        group = [each for each in certain if (each.percent < 0) is lower]
        goal = "it" if said else f"{measure}, compared with {base}"
        if len(group) == 1:
            said.append(f"{who(group[0], every)} {one} {goal}: {group[0].text()}")
        elif group:
            said.append(f"{len(group)} of {len(every)} {what(every)} {several} {goal}{_most(group, every)}")
    return "; ".join(said) + "."


def what(effects: Sequence[Effect]) -> str:
    """`arms`, or `comparisons` if some arm is compared several times."""
    return "arms" if len({(each.data, each.raw) for each in effects}) == len(effects) else "comparisons"


def _most(group: Sequence[Effect], every: Sequence[Effect]) -> str:
    # Two by name; of more the largest, so that the claim can be read at a glance.
    if len(group) <= 2:
        return f": {_listed(group, every)}"
    first = max(group, key=lambda each: abs(each.percent))
    return f", most of all {who(first, every)}: {first.text()}"


def _listed(group: Sequence[Effect], every: Sequence[Effect]) -> str:
    # The largest ones by name.
    order = sorted(group, key=lambda each: -abs(each.percent))
    named = [(who(each, every), each.text()) for each in order[:NAMED]]
    said = [f"{name} ({text})" if ", " in name else f"{name} {text}" for name, text in named]
    said += [f"{len(order) - NAMED} more"] if len(order) > NAMED else []
    return f"{', '.join(said[:-1])} and {said[-1]}" if said[1:] else said[0]


def who(effect: Effect, every: Sequence[Effect]) -> str:
    """The arm of an effect, with its data setting if there are several."""
    several = len({each.data for each in every}) > 1
    return f"{effect.arm} ({names.data_name(effect.data).short})" if several else effect.arm


def _seeds(effects: Sequence[Effect]) -> str:
    low, high = min(each.pairs for each in effects), max(each.pairs for each in effects)
    return f"{low} to {high} seeds" if low < high else _count(low, "seed", "seeds")


def _nothing(tested: Sequence[Effect], base: str, measure: str) -> str:
    if len(tested) == 1:
        return f"{tested[0].arm} does not differ for certain from {base} in {measure}."
    if what(tested) == "arms":
        return f"None of {len(tested)} arms differs for certain from {base} in {measure}."
    return f"None of {len(tested)} comparisons with {base} shows a certain difference in {measure}."


def certainty(tested: Sequence[Effect]) -> str:
    """A sentence on what `certain` means."""
    over = f"all {len(tested)} comparisons"
    if any(each.family != len(tested) for each in tested) and len({each.data for each in tested}) > 1:
        over = "the comparisons of a data setting"
    correction = f" after Holm's correction over {over}" if len(tested) > 1 else ""
    return (
        f"A difference counts as certain if a paired t-test over {_seeds(tested)} has p < {tested[0].level:.3g}{correction}; "
        "intervals in brackets are not corrected."
    )


def undecided(rest: Sequence[Effect], every: Sequence[Effect]) -> str:
    """A sentence on what is undecided: on which side the means lie, and what would differ without the correction, or else the largest
    difference. every: all effects."""
    if len(rest) == 1:
        return f"Undecided: {_listed(rest, every)}."
    alone, lower = [each for each in rest if each.by_itself], sum(each.percent < 0 for each in rest)
    said = f"The mean is lower in {lower} and higher in {len(rest) - lower} of the {len(rest)} undecided {what(rest)}. "
    if alone:
        return f"{said}By themselves, without the correction, these would differ: {_listed(alone, every)}."
    first = max(rest, key=lambda each: abs(each.percent))
    return f"{said}{who(first, every)} differs most, by {first.text()}."


def _untested(effects: Sequence[Effect], base: str, measure: str) -> str:
    ends = sorted(effects, key=lambda each: each.percent)
    said = "Each comparison has one pair of runs, so that nothing shows how much of a difference is chance. "
    if len(ends) == 1:
        return f"{said}Compared with {base}, {measure} of {who(ends[0], effects)} differs by {ends[0].text()}."
    return (
        f"{said}Compared with {base}, {measure} differs by {ends[0].text()} ({who(ends[0], effects)}) to "
        f"{ends[-1].text()} ({who(ends[-1], effects)})."
    )


def elsewhere(found: Mapping[str, Sequence[Effect]]) -> str:
    """One sentence about the differences that are certain in features that do not rank, or nothing.

    found: {feature space: comparisons in it}; each space is a family of its own."""
    said = []
    for space, effects in found.items():
        name = names.space_name(space).text
        where = "in pixels" if space == "pixels" else f"in the features of {name}"
        for lower, word in ((True, "lower"), (False, "higher")):
            group = [each for each in effects if each.certain and (each.percent < 0) is lower]
            if group:
                said.append(f"{where} {_listed(group, effects)} ({word})")
    if not said:
        return "In the other feature spaces no difference is certain." if any(found.values()) else ""
    return f"In the other feature spaces, each corrected by itself, some differences are certain: {'; '.join(said)}."
