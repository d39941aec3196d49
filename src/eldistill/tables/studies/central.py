# SPDX-License-Identifier: Apache-2.0
"""The kind of study that compares each arm with the baseline and tests equivalence, with a margin that was fixed before the runs."""

from __future__ import annotations

from statistics import fmean, stdev

from eldistill.errors import Problem
from eldistill.tables.results import Result, arms_of, corrected, identity, short, signed_percent, spanned
from eldistill.tables.studies.comparisons import (
    at_end,
    compare_kid,
    compare_pairs,
    correct,
    equivalence,
    mean_and_sd,
    pair_with_baseline,
)
from eldistill.tables.studies.study import Study

RECIPE = ("central", 6)  # differences of KID


def central(study: Study) -> tuple[list[dict], list[str]]:
    """Compare each arm with the baseline: lower, higher, equivalent or undecided. Returns rows and sentences.

    The answer is one row for each arm and data set, in the primary space, pooled over all teachers of the data set; an arm that
    cannot be pooled has one row for each data setting. The p-values of the answers are one family (Holm), and those of their tests of
    equivalence are another. All other rows are exploratory and not corrected. In the primary space a pooled arm has one sentence;
    the rows of its single settings have none, because its answer contains them."""
    answers, pooled, rows, contained, level = [], [], [], set(), 1 - study.params["confidence"]
    for name, bed in study.split():
        whole, more = _pooled(name, bed), _settings(bed)
        first = bed.primary(bed.results[0])
        done = {(row["method"], row["supplement"]) for row in whole}
        ranked = [row for row in more if row["space"] == first and row.get("p") is not None]
        alone = [row for row in ranked if (row["method"], row["supplement"]) not in done]
        answers += whole + alone
        contained |= {id(row) for row in ranked} - {id(row) for row in alone}
        pooled, rows = pooled + whole, rows + more
    correct(answers)
    correct(answers, "p_equivalent")
    for row in answers:
        row["verdict"] = _decide(row, level)
    rows = pooled + rows
    blank = dict.fromkeys(key for row in rows for key in row)
    spoken = [row for row in rows if row.get("verdict") and id(row) not in contained]
    return [blank | row for row in rows], [_central_sentence(row, study.params) for row in spoken]


def _settings(study: Study) -> list[dict]:
    arms, rows = arms_of(study.results), []
    level, margin = 1 - study.params["confidence"], study.params["margin"]
    for space in study.spaces():
        for group in arms.values():
            values = [study.metric(r, space=space) for r in group]
            row = identity(group) | {"space": space} | mean_and_sd(values, "fd") | at_end(study, group, space)
            row |= mean_and_sd([study.metric(r, "kid", space) for r in group], "kid")
            twins = pair_with_baseline(study, group, arms)
            if twins:
                ours, theirs = ([study.metric(r, space=space) for r in side] for side in zip(*twins, strict=True))
                row |= compare_pairs(ours, theirs, study.params["confidence"])
                deltas, bound = [a - b for a, b in zip(ours, theirs, strict=True)], margin * fmean(theirs)
                row |= equivalence(deltas, bound, level)
                row["verdict"] = _decide(row, level)
                row |= compare_kid(study, [twins]) if space == study.primary(group[0]) else {}
            rows.append(row | {"runs": " ".join(r.run for r in group)})
    return rows


def _pooled(name: str, study: Study) -> list[dict]:
    """The rows of arms pooled over all data settings of a data set, in percent of the baseline in each setting.

    The unit is a training seed. Its differences under all teachers are averaged, because they share images, noise and judge. Only
    seeds that are paired under every teacher count, because other means would also depend on the teacher. An arm with one data
    setting, or with fewer than two such seeds, has no row here. Raises Problem if settings are ranked by different metrics."""
    rows, arms, level = [], arms_of(study.results), 1 - study.params["confidence"]
    for method, supplement in dict.fromkeys(arm[1:] for arm in arms):
        settings = [
            pair_with_baseline(study, group, arms) for arm, group in arms.items() if arm[1:] == (method, supplement)
        ]
        settings = [{a.seed: (a, b) for a, b in twins} for twins in settings if twins]
        common = [seed for seed in settings[0] if all(seed in each for each in settings)] if settings else []
        if len(settings) < 2 or len(common) < 2:
            continue
        if len(names := study.ranking([run for each in settings for pair in each.values() for run in pair])) > 1:
            raise Problem(f"the settings of {name} are ranked by {' and '.join(names)}; in one study they need the same "
                          f"number of images, evaluate.{'curve_n' if study.last > 1 else 'n'}")  # fmt: skip
        shares = [_shares(study, [each[seed] for seed in common]) for each in settings]
        if None in shares:
            continue
        means, deltas = [fmean(each) for each in shares], [fmean(each) for each in zip(*shares, strict=True)]
        bound = 100 * study.params["margin"]
        row = {
            "data": f"{name}, {len(means)} teachers",
            "method": method,
            "supplement": supplement,
            "seeds": len(deltas),
            "space": study.primary(study.results[0]),
        }
        row |= compare_pairs(deltas, [0.0] * len(deltas), study.params["confidence"], 100.0)
        row |= equivalence(deltas, bound, level) | {"between_settings_sd": stdev(means)}
        row |= compare_kid(study, [[each[seed] for seed in common] for each in settings])
        rows.append(row)
    return rows


def _shares(study: Study, twins: list[tuple[Result, Result]]) -> list[float] | None:
    # Differences in percent of the baseline's mean; None if it is 0.
    base = fmean(study.metric(b) for _, b in twins)
    return [100 * (study.metric(a) - study.metric(b)) / base for a, b in twins] if base else None


def _decide(row: dict, level: float) -> str:
    if row["p"] is None:
        return "undecided"
    p, equal = (row[key] if row.get(f"{key}_holm") is None else row[f"{key}_holm"] for key in ("p", "p_equivalent"))
    if equal is not None and equal < level:
        return "equivalent"
    return ("lower" if row["difference"] < 0 else "higher") if p < level else "undecided"


def _central_sentence(row: dict, params: dict) -> str:
    who = f"{row['data']}, {row['method']}/{row['supplement']} in {row['space']}"
    if row["low"] is None:
        return f"{who}: one paired seed, {short(row['difference'])} from {params['against']}: no conclusion."
    span = spanned(row["difference"], row["low"], row["high"])
    span += "" if row["percent"] is None else f", {signed_percent(row)} % of {params['against']}"
    within = f"±{100 * params['margin']:g} %"
    equal = f"within {within}: {_tested(row, 'p_equivalent')}"
    if row["margin"] is None:
        equal = "not tested, for the mean of the baseline is 0"
    explores = ", not corrected, exploratory" if row.get("p_holm") is None else ""
    tests = f"{_tested(row, 'p')}; equivalence {equal}; {row['pairs']} pairs{explores}"
    needed = (
        "" if row["seeds_needed"] is None else f"; were they equal, about {row['seeds_needed']} pairs would show it"
    )
    text = {
        "equivalent": f"equivalent to {params['against']} within the margin",
        "lower": f"lower than {params['against']}, and not shown equivalent",
        "higher": f"higher than {params['against']}, and not shown equivalent",
        "undecided": f"undecided against {params['against']}{needed}",
    }[row["verdict"]]
    return f"{who}: {text}: {span} ({tests})."


def _tested(row: dict, key: str) -> str:
    # A p-value, and its correction if it belongs to a family.
    holm = row.get(f"{key}_holm")
    return f"p = {short(row[key])}" + ("" if holm is None else f", {corrected(holm, row[f'{key}_family'])}")
