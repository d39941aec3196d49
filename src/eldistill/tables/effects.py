# SPDX-License-Identifier: Apache-2.0
"""Differences from the baseline in the metric that ranks, as the headline and the forest plot of a page need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eldistill.tables import names
from eldistill.tables.results import places_of, rounded

COVERED_BY = "report"


@dataclass(frozen=True)
class Effect:
    """The mean difference of an arm from its baseline over paired seeds, in percent of the baseline's mean; below 0 is better.

    low, high: ends of its interval, which is not corrected for the number of comparisons; None for one pair of runs. p_holm: p-value
    after Holm's correction over `family` comparisons; None for one pair, and for a comparison of a study that only explores. level:
    below this p_holm a difference is certain."""

    data: str
    arm: str  # its short name for readers, without the data setting
    raw: str  # method/supplement, as files call it
    percent: float
    low: float | None
    high: float | None
    p_holm: float | None
    family: int | None
    pairs: int
    level: float
    where: str = ""  # the feature space of a comparison, if a page has several
    margin: float | None = None  # largest difference that counts as equal, in percent; None if equality is not tested
    p_equal: float | None = None  # p-value of the test of equality, after its correction if there is one

    @property
    def equal(self) -> bool:
        """Whether the test shows that the difference is within the margin."""
        return self.p_equal is not None and self.p_equal < self.level

    @property
    def certain(self) -> bool:
        """Whether the difference remains after the correction."""
        return self.p_holm is not None and self.p_holm < self.level

    @property
    def by_itself(self) -> bool:
        """Whether the interval excludes 0, although the difference does not remain after the correction."""
        return not self.certain and self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    @property
    def verdict(self) -> str:
        """What is known, in a few words."""
        if self.p_holm is None:
            return "one pair of runs, no interval" if self.low is None else "exploratory, without a correction"
        side = "lower" if self.percent < 0 else "higher"
        if self.certain:
            return f"{side}, also after the correction"
        return f"{side} by itself, not after the correction" if self.by_itself else "undecided"

    def text(self) -> str:
        """The difference with its interval, such as `−29 % [−36, −22]`, all to the place of the second digit of half of the interval."""
        middle, *ends = spanned_percent(self.percent, self.low, self.high)
        return f"{middle} %" + (f" [{', '.join(ends)}]" if ends else "")


def spanned_percent(middle: float, low: float | None, high: float | None, signs: bool = True) -> list[str]:
    """[middle, low, high] as texts with no more digits than their interval has; [middle] without an interval.

    signs: with a + before numbers above 0."""
    if low is None or high is None or not high - low >= 1e-4 or max(map(abs, (middle, low, high))) >= 1e7:
        values = [middle] if low is None or high is None else [middle, low, high]
        return [signed(value) if signs else signed(value).removeprefix("+") for value in values]
    places = places_of(low, high)
    texts = [rounded(value, places).replace("-", "−") for value in (middle, low, high)]
    return [f"+{text}" if signs and float(text.replace("−", "-")) > 0 else text for text in texts]


def signed(value: float) -> str:
    """A number of percent with its sign: no decimal place from 10 on, one from 1 on, and two significant digits below."""
    digits = 0 if abs(value) >= 9.95 else 1 if abs(value) >= 0.995 else 2
    text = f"{value:+.{digits}f}" if abs(value) >= 0.1 or not value else f"{value:+.1g}"
    return text.replace("-", "−") if float(text) else "0"


def of_suite(rows: Sequence[dict], params: dict) -> tuple[list[Effect], list[str]]:
    """(effects, raw names of arms whose difference has no percentage because the baseline's mean is not above 0).

    rows: of main.csv, as suite.main_rows returns them. params: primary and confidence of the suite. The baseline's mean is that over
    the seeds that an arm shares with it. Effects are in the order of the suite, with the arms of a method together."""
    stem = f"fd_{params['primary']}_heldout"
    found: list[Effect] = []
    without: list[str] = []
    for row in rows:
        if row["seeds"] is None or row.get(f"{stem}_difference") is None:
            continue
        if row[f"{stem}_baseline"] > 0:
            found.append(_effect(row, stem, params))
        else:
            without.append(f"{row['data']}/{row['method']}/{row['supplement']}")
    order = list(dict.fromkeys((each.data, each.raw.split("/")[0]) for each in found))
    datas = list(dict.fromkeys(data for data, _ in order))
    found.sort(key=lambda each: (datas.index(each.data), order.index((each.data, each.raw.split("/")[0]))))
    return found, without


def other_spaces(rows: Sequence[dict], params: dict) -> dict[str, list[Effect]]:
    """{feature space: effects in it}, for the spaces that do not rank. Arguments as of `of_suite`."""
    ends = ("fd_", "_heldout_p_holm")
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(ends[0]) and key.endswith(ends[1]))
    spaces = [key.removeprefix(ends[0]).removesuffix(ends[1]) for key in keys]
    return {space: of_suite(rows, {**params, "primary": space})[0] for space in spaces if space != params["primary"]}


def _effect(row: dict, stem: str, params: dict) -> Effect:
    percents = (None if (value := row[f"{stem}_difference{end}"]) is None else 100 * value / row[f"{stem}_baseline"]
                for end in ("", "_low", "_high"))  # fmt: skip
    return Effect(
        row["data"], names.arm_name(row["method"], row["supplement"]).short, f"{row['method']}/{row['supplement']}",
        *percents, row[f"{stem}_p_holm"], row[f"{stem}_p_family"], row["paired_seeds"], 1 - params["confidence"],
    )  # fmt: skip


def of_study(rows: Sequence[dict], params: dict) -> list[Effect]:
    """The effects of a study's rows that have a difference in percent of the baseline. params: confidence, and margin if rows have one."""
    found = []
    for row in rows:
        if row.get("difference") is None or row.get("percent") is None:
            continue
        ends = [None if row["low"] is None else row[end] * percent_of(row) for end in ("low", "high")]
        arm = names.arm_name(row["method"], row["supplement"]).short + (
            f" at equal {row['equal']}" if row.get("equal") else ""
        )
        corrected = row.get("p_equivalent_holm")
        found.append(
            Effect(row["data"], arm, f"{row['method']}/{row['supplement']}", row["percent"], *ends, row.get("p_holm"),
                   row.get("p_family"), row["pairs"], 1 - params["confidence"],
                   names.space_name(row["space"]).text if row.get("space") else "",
                   100 * params["margin"] if row.get("margin") else None,
                   row.get("p_equivalent") if corrected is None else corrected)
        )  # fmt: skip
    return found


def percent_of(row: dict) -> float:
    """What one unit of the difference of a study's row is in percent of its baseline's mean. The row has a `percent`."""
    if row["difference"]:
        return row["percent"] / row["difference"]
    # Without a difference the arm has the mean of its baseline. A pooled row has no mean, and its difference is in percent.
    return 100 / (row.get("fd_mean") or 100)


@dataclass(frozen=True)
class Unmeasured:
    """A comparison of times that has no interval and no test: only a bound is known, or nothing. Fields as of Effect.

    percent: the bound, or None. more: whether the difference is at least the bound, and not at most. text: what is known."""

    data: str
    arm: str
    raw: str
    text: str
    percent: float | None = None
    more: bool = True
    where: str = ""


def of_times(rows: Sequence[dict], confidence: float) -> list[Effect | Unmeasured]:
    """The comparisons of a study of the kind `speed`: ratios of iterations to a value of the baseline, in percent more (below 0: fewer)."""
    found: list[Effect | Unmeasured] = []
    for row in rows:
        if not row.get("pairs"):
            continue
        arm = f"{names.arm_name(row['method'], row['supplement']).short}, value at {row['of_run']:g} %"
        place = row["data"], arm, f"{row['method']}/{row['supplement']}"
        if row["ratio_iterations"] is None or row["bound"]:
            found.append(_unmeasured(row, *place))
            continue
        ends = [None if (end := row[f"fewer_iterations{side}"]) is None else -end for side in ("_high", "_low")]
        found.append(
            Effect(
                *place, -row["fewer_iterations"], *ends, row["p_holm"], row["p_family"], row["pairs"], 1 - confidence
            )
        )
    return found


def _unmeasured(row: dict, data: str, arm: str, raw: str) -> Unmeasured:
    seeds = f" of {row['pairs']} seeds"
    why = [f"never reached in {row['never']}"] if row["never"] else []
    why += [f"reached before the first snapshot in {row['early']}"] if row["early"] else []
    reason = f"{', '.join(why)}{seeds}" if why else f"no time in {row['no_time']}{seeds}"
    if row["ratio_iterations"] is None:
        return Unmeasured(data, arm, raw, reason)
    percent, more = -row["fewer_iterations"], row["bound"] == "at least"
    sign = ("≤" if more else "≥") if percent < 0 else ("≥" if more else "≤")
    word = "fewer" if percent < 0 else "more"
    return Unmeasured(
        data, arm, raw, f"{sign} {signed(abs(percent)).removeprefix('+')} % {word}, {reason}", percent, more
    )
