# SPDX-License-Identifier: Apache-2.0
"""Results of runs: their metrics, curves and provenance, loaded and checked. All tables and plots are made from them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eldistill.errors import Problem, brief
from eldistill.files import read_json, read_rows
from eldistill.plan.kept import NO_LINES, Kept
from eldistill.tables import kept

RECIPE = ("results", 3)  # iterations are those of the run itself, without those of the run that it starts from

PARTS = {"heldout": "held-out", "train": "train"}
REAL, TEACHER = "real (noise floor)", "teacher (Heun, many steps)"
REFERENCE_RUNS = {"real": REAL, "teacher": TEACHER}
NAME = re.compile(r"(?P<metric>[a-z]+)(?P<n>\d+k?)_(?P<space>.+)_(?P<part>heldout|train)")
ABOUT = ("n_images", "iterations", "milliseconds_per_iteration_cpu", "milliseconds_per_iteration_wall",
         "recipe", "git_commit", "command")  # fmt: skip

# --- inputs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """The result of one run."""

    run: str  # data/method/supplement/seed
    metrics: dict[str, float]
    curve: list[
        dict[str, str]
    ]  # rows of curve.csv in the order of n_images; as text, so that values keep all their digits
    about: dict  # its provenance

    @property
    def arm(self) -> tuple[str, str, str]:
        """(data, method, supplement)."""
        return tuple(self.run.split("/")[:3])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.run.split("/")[3])

    @property
    def images_before(self) -> int:
        """The number of images of the runs that this one starts from (`start_from`), which its curve counts too; 0 without them.

        Its provenance has the number of its own images, and its last snapshot is the end of the run."""
        return max(0, int(self.curve[-1]["n_images"]) - self.about["n_images"])

    def iteration(self, point: dict[str, str]) -> int:
        """The iteration of a point of the curve, from 0 at the start of this run, computed from its number of images.

        Iterations of earlier runs are not counted: they may have had another batch and another cost, and all arms share them."""
        return round((int(point["n_images"]) - self.images_before) * self.about["iterations"] / self.about["n_images"])

    def distances(self, space: str, part: str) -> list[tuple[int, float]]:
        """(iteration, Fréchet distance) of each point of the curve, in a feature space and to a part of the data."""
        column = named(self.curve[0], "fd", space, part)
        return [(self.iteration(point), float(point[column])) for point in self.curve]


def named(names, metric: str, space: str, part: str) -> str | None:
    """The name in `names` of this metric with any number of images, or None. Raises Problem if there are two."""
    parts = (metric, space, part)
    found = [n for n in names if (m := NAME.fullmatch(n)) and m.group("metric", "space", "part") == parts]
    if len(found) > 1:
        raise Problem(
            f"{' and '.join(found)} are the same metric for two numbers of images; expected one: "
            "delete the metrics and run `snakemake all`"
        )
    return found[0] if found else None


def named_without_part(names, metric: str, space: str, count: str = r"\d+k?") -> str | None:
    """The name in `names` of a metric without a part, such as copied or is, or None. count: the number of images as names have it, or
    any; real images have such a metric twice, of the train and of the held-out ones."""
    return next((n for n in names if re.fullmatch(rf"{metric}{count}_{re.escape(space)}", n)), None)


def protocols(names) -> list[str]:
    """The names in `names` of metrics with a published protocol: FIDs like their authors', and clean-fid's FID and KID."""
    return [name for name in names if name.startswith("fid") or re.fullmatch(r"kid\d+k?_clean", name)]


def ended_no_better(curve: list[tuple[float, float]]) -> bool | None:
    """Whether a curve of (time, distance) ends at or above its first value; None if it has only one point."""
    return curve[-1][1] >= curve[0][1] if len(curve) > 1 else None


def read_metrics(path: Path) -> dict[str, float]:
    """Load the metrics of an evaluation. Raises Problem if one is not finite, because means and tests would not be finite either."""
    metrics = read_json(path)
    if odd := [name for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise Problem(
            f"{path} has {odd[0]} = {metrics[odd[0]]}, which is not finite; delete it and run `snakemake all`"
        )
    return metrics


def metrics_of(run: str, root: Path, lines: Mapping[str, Kept]) -> dict[str, float]:
    """The metrics of a run or a reference run: those of its line in `lines`, {run: kept results}, otherwise of its file."""
    return kept.metrics_of(lines[run]) if run in lines else read_metrics(root / f"data/evaluations/{run}/metrics.json")


def load_result(run: str, root: Path, lines: Mapping[str, Kept] = NO_LINES) -> Result:
    """Load the metrics, the curve and the provenance of a run below the folder `root`, or from its line in `lines`, {run: kept
    results}. Raises Problem if one is missing or damaged."""
    line, path = lines.get(run), root / f"data/evaluations/{run}/curve.csv"
    about = kept.about_of(line) if line else read_json(root / f"data/runs/{run}/provenance.json")
    metrics = metrics_of(run, root, lines)
    if absent := [key for key in ABOUT if key not in about]:
        raise Problem(f"data/runs/{run}/provenance.json has no {', '.join(absent)}; make the run again")
    missing = f"{path} is missing; run `python -m eldistill evaluate {run}`"
    try:
        rows = kept.curve_of(line) if line else read_rows(path, ("n_images",), missing=missing)
        curve = sorted(rows, key=lambda point: int(point["n_images"]))
        finite = all(math.isfinite(float(value)) for point in curve for value in point.values())
    except (ValueError, TypeError) as error:
        raise Problem(f"{path} is damaged ({brief(error)}); delete it and run `snakemake all`") from None
    if not curve or not finite:
        raise Problem(f"{path} has no points, or some that are not finite; delete it and run `snakemake all`")
    return Result(run, metrics, curve, about)


def check_results(results: list[Result], primary: str, curves: bool = True) -> None:
    """Raise Problem unless all runs of a data setting have the same metrics with the same numbers of images.

    Metrics of several steps may differ, because not all methods have them. primary: the feature space that ranks, which must be
    measured. curves: whether the points of curves need it too."""
    first: dict[str, Result] = {}
    for result in results:
        twin = first.setdefault(result.arm[0], result)
        names, expected = (
            {n for n in (*each.metrics, *each.curve[0]) if not (n.endswith("steps") or n.startswith("raw_"))}
            for each in (result, twin)
        )
        if odd := ", ".join(sorted(names ^ expected)[:3]):
            raise Problem(f"{result.run} and {twin.run} differ in metrics ({odd}); evaluate both again")
        for part, place in itertools.product(PARTS, (result.metrics, *([result.curve[0]] if curves else []))):
            if not named(place, "fd", primary, part):
                raise Problem(f"{result.run} has no fd of {primary}, {part}; it has {', '.join(sorted(place))}")


COSTS: dict[str, Callable[[Result], float | None]] = {  # costs of an iteration; None if not measured
    "iterations": lambda result: 1.0,
    "seconds": lambda result: result.about["milliseconds_per_iteration_cpu"] / 1000,
    "FLOP": lambda result: result.about.get("flop_per_iteration"),
}


def one_device(results: list[Result]) -> bool:
    """Whether all runs were made on the same kind of device, so that their times are comparable.

    Of runs on CPUs also whether none names another model of CPU; runs of old records name none."""
    devices = {result.about.get("device") for result in results}
    models = {model for result in results if (model := result.about.get("processor"))}
    return len(devices) < 2 and len(models) < 2


def names_of_metrics(results: list[Result]) -> list[str]:
    """The names of all metrics of the results, each once, in their order."""
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def measured(result: Result, names: list[str]) -> dict:
    """The first columns of the row of a run: its arm and seed, these metrics, and its length and cost."""
    row = dict(zip(("data", "method", "supplement"), result.arm, strict=True)) | {"seed": result.seed}
    return row | {name: result.metrics.get(name) for name in names} | {key: result.about[key] for key in ABOUT[:4]}


def origin(result: Result) -> dict:
    """The last columns of the row of a run: its file of metrics, its recipe, and what made it."""
    row = {"metrics_file": f"data/evaluations/{result.run}/metrics.json", "recipe": result.about["recipe"][:12]}
    return row | {key: result.about.get(key) for key in ("git_commit", "git_dirty", "command", "device")}


def identity(group: list[Result]) -> dict:
    """The first columns of a row: data, method and supplement of an arm, and its number of seeds."""
    return dict(zip(("data", "method", "supplement"), group[0].arm, strict=True)) | {"seeds": len(group)}


def arms_of(results: list[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """The results of each arm, {(data, method, supplement): results}, in the order of the runs."""
    arms: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        arms.setdefault(result.arm, []).append(result)
    return arms


def corrected(p: float, family: int) -> str:
    """A p-value after Holm's correction, with the number of comparisons that it was corrected over."""
    return f"Holm over {family}: {short(p)}"


def is_reason(iterations) -> bool:
    """Whether a cell for the time to the baseline's final value contains a reason in words, instead of a number or a bound `> N`."""
    return isinstance(iterations, str) and not iterations.startswith(">")


def short(value) -> str:
    """A number as text with three significant digits, without an exponent for readable sizes; text is unchanged, None is empty."""
    if value is None or isinstance(value, str):
        return value or ""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def decimals(spread: float) -> int:
    """The decimal place of the second significant digit of a positive number: 0.0136 has 3, 1.36 has 1, 136 has -1."""
    return 1 - int(f"{spread:.1e}".split("e")[1])


def rounded(value: float, places: int) -> str:
    """A number as text with this number of decimal places; a negative number of places rounds to tens and hundreds."""
    return f"{round(value, places):z.{max(0, places)}f}"


def plus_minus(mean: float | None, deviation: float | None) -> str:
    """`mean ± deviation` with two significant digits of the deviation, and the mean to the same decimal place.

    Without a deviation the mean has three significant digits; so it has where the deviation is below 1e-4 or either is very large.
    None is empty."""
    if mean is None:
        return ""
    if not deviation:
        return short(mean) + ("" if deviation is None else " ± 0")
    if deviation < 1e-4 or max(abs(mean), deviation) >= 1e7:
        return f"{short(mean)} ± {deviation:.1e}"
    return f"{rounded(mean, decimals(deviation))} ± {rounded(deviation, decimals(deviation))}"


def spanned(middle: float, low: float | None, high: float | None) -> str:
    """`middle [low, high]`, all to the decimal place of the second significant digit of half of the interval, so that a difference has
    as many digits as the deviations beside it.

    An interval without 0 is never written with an end of 0: it has as many more places as that needs. Without an interval, and where
    half of it is below 1e-4 or a number is very large, the numbers have three significant digits."""
    if low is None or high is None:
        return short(middle)
    half = abs(high - low) / 2
    if not 1e-4 <= half or max(map(abs, (middle, low, high))) >= 1e7:
        return f"{short(middle)} [{short(low)}, {short(high)}]"
    places = places_of(low, high)
    return f"{rounded(middle, places)} [{rounded(low, places)}, {rounded(high, places)}]"


def places_of(low: float, high: float) -> int:
    """The decimal place to which an interval is written: that of the second significant digit of half of it, and as many more as keep
    an end from 0 if the interval is without 0. The ends must differ."""
    places = decimals(abs(high - low) / 2)
    while (
        low * high > 0
        and min(abs(low), abs(high)) >= 1e-12
        and not all(float(rounded(end, places)) for end in (low, high))
    ):
        places += 1
    return places


def signed_percent(row: Mapping[str, float | None]) -> str:
    """`percent` of a comparison with its sign, to the decimal place of the second significant digit of half of its interval.

    row: percent, and difference with its ends low and high, which are None without an interval; then it has one decimal place."""
    percent, difference, low, high = (row.get(key) for key in ("percent", "difference", "low", "high"))
    if percent is None:
        return ""
    if (
        not difference
        or low is None
        or high is None
        or not 1e-4 <= (width := abs((high - low) * percent / difference)) < 1e7
    ):
        return f"{percent:+.1f}"
    places = decimals(width / 2)
    text = rounded(percent, places)
    return f"+{text}" if float(text) > 0 else text
