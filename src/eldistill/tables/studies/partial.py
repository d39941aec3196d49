# SPDX-License-Identifier: Apache-2.0
"""What a table of a part of its runs says: how many are made, which are missing, what goes on, and how many seeds would decide."""

from __future__ import annotations

import math
from statistics import fmean

from eldistill.tables import inference
from eldistill.tables.results import arms_of, short
from eldistill.tables.studies.comparisons import baseline_of, pair_with_baseline
from eldistill.tables.studies.study import Study

RECIPE = ("partial", 2)  # seeds in a row and arms with equal seeds are one entry
PAIRED = ("contrast", "central")  # kinds that compare distances at the end with those of a baseline of the same seeds
MANY = 1000  # seeds that a sentence counts
LISTED = 12  # entries of missing seeds that are listed


def count_runs(partial: dict, suite: str) -> str:
    """A paragraph with the numbers of runs made and missing, the missing ones by arm, and the command that makes them.

    partial: {asked: number of runs, missing: names of the missing ones, DATA/METHOD/SUPPLEMENT/SEED}."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for run in partial["missing"]:
        data, method, supplement, seed = run.split("/")
        seeds.setdefault((data, method, supplement), []).append(int(seed))
    alike: dict[tuple[str, str, str], list[str]] = {}
    for (data, method, supplement), each in seeds.items():
        alike.setdefault((data, method, _ranges(each)), []).append(supplement)
    entries = [f"{data}/{method}/{_one_of(arms)} {each}" for (data, method, each), arms in alike.items()]
    left = sum(len(arms) for arms in list(alike.values())[LISTED:])
    more = f"; and seeds of {left} other arms" if left else ""
    made = partial["asked"] - len(partial["missing"])
    return (
        f"**{made} of {partial['asked']} runs made.** Missing (arm and seeds): {'; '.join(entries[:LISTED])}{more}. "
        f"`snakemake all --config suite={suite}` makes them.\n\n"
    )


def _ranges(seeds: list[int]) -> str:
    # Seeds in order; three or more in a row are a range.
    ordered, rows = sorted(seeds), []
    for seed in ordered:
        if rows and rows[-1][-1] == seed - 1:
            rows[-1].append(seed)
        else:
            rows.append([seed])
    return ", ".join(f"{row[0]}–{row[-1]}" if len(row) > 2 else ", ".join(map(str, row)) for row in rows)


def _one_of(supplements: list[str]) -> str:
    # In the braces of a shell, so that an entry can be typed.
    return supplements[0] if len(supplements) == 1 else f"{{{','.join(supplements)}}}"


def describe(study: Study, suite: str) -> str:
    """The paragraph of `count_runs`, and a list with a sentence for each arm that its runs do not decide yet."""
    text = count_runs(study.params["partial"], suite)
    said = undecided(study) if study.params["kind"] in PAIRED else []
    return text + "".join(f"- {each}\n" for each in said) + ("\n" if said else "")


def undecided(study: Study) -> list[str]:
    """A sentence for each arm that is paired with a baseline and for which its pairs show neither a difference nor equivalence.

    The test is that of the logarithms of the ratios of the ranking distances, without a correction for the number of arms. In a study
    of the kind `central` the ratio of a seed is the geometric mean over the teachers, as in its answer. The number of seeds is
    the one at which the two one-sided tests of equivalence have a power of 80 % if both arms are equal and the ratios vary
    as those found do."""
    said, level = [], 1 - study.params["confidence"]
    for name, bed in study.split() if study.params["kind"] == "central" else [("", study)]:
        for arm, logs in _log_ratios(name, bed).items():
            if text := _sentence(logs, study.params["margin"], level):
                said.append(f"{arm} against {study.params['against']}: {text}")
    return said


def _log_ratios(name: str, study: Study) -> dict[str, list[float]]:
    # {arm: logarithms of its ratios to the baseline, one a seed}. In a named data set the arms of all teachers are one arm, whose
    # seeds are those that all of them have. A distance of 0 has no ratio, and a baseline is not compared with itself.
    arms, found = arms_of(study.results), {}
    for arm, group in arms.items():
        pairs = pair_with_baseline(study, group, arms)
        ends = [[study.metric(result) for result in pair] for pair in pairs]
        if arm != baseline_of(study, arm) and all(min(each) > 0 for each in ends):
            logs = {ours.seed: math.log(a / b) for (ours, _), (a, b) in zip(pairs, ends, strict=True)}
            found.setdefault("/".join((name, *arm[1:]) if name else arm), []).append(logs)
    paired = {arm: [each for each in settings if each] or [{}] for arm, settings in found.items()}
    common = {arm: sorted(set.intersection(*map(set, settings))) for arm, settings in paired.items()}
    return {arm: [fmean(each[seed] for each in paired[arm]) for seed in seeds] for arm, seeds in common.items()}


def _sentence(logs: list[float], margin: float, level: float) -> str:
    # What pairs of seeds do not decide; nothing if they do.
    within = f"a margin of {100 * margin:g} %"
    if len(logs) < 2:
        return f"undecided, with {len(logs)} pair{'s' if len(logs) != 1 else ''} of seeds; two or more show how much they vary."
    bound = math.log1p(margin)
    if min(inference.paired_p(logs), inference.equivalence_p(logs, bound)) < level:
        return ""
    needed = inference.seeds_for_equivalence(logs, bound, level)
    spread = f"paired log deviation {short(inference.stdev(logs))} over {len(logs)} pairs, not corrected"
    if needed <= len(logs):
        return f"undecided, though its {len(logs)} pairs are as many as {within} needs ({spread})."
    more = needed - len(logs)
    if more > MANY:
        return f"undecided; more than {MANY:,} more seeds would be needed for {within} ({spread})."
    return f"undecided; about {more} more seed{'s' if more > 1 else ''} would do for {within} ({spread})."
