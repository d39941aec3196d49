# SPDX-License-Identifier: Apache-2.0
"""Metrics → tables, intervals, plots. Only arithmetic on files: equal input gives equal bytes.

The unit of evidence is a training seed: intervals are Student's t over differences paired by seed, because
variation between seeds dominates the noise of sampling images, and the noise of the reference images is common to
all arms and cancels. A metric is found by its parts, `<metric><n>_<space>_<part>`, whatever n is; the exact names
stand in the tables. An empty cell means that the number cannot be known (one seed, or no baseline).
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev

from eldistill.files import Problem, atomic, read_json, write_rows, write_text

VERSION = 1

PARTS = {"heldout": "held-out", "train": "train"}
REAL, TEACHER = "real (noise floor)", "teacher (Heun, many steps)"
YARDSTICKS = {"real": REAL, "teacher": TEACHER}
NAME = re.compile(r"(?P<metric>[a-z]+)(?P<n>\d+k?)_(?P<space>.+)_(?P<part>heldout|train)")
ABOUT = ("n_images", "iterations", "milliseconds_per_iteration_cpu", "milliseconds_per_iteration_wall",
         "recipe", "git_commit", "command")  # fmt: skip
SAMPLE_ROWS = 4
# Okabe & Ito (2008), told apart by colour-blind readers; black first, for the baseline.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"

# --- inputs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """All that is known of one run. curve: rows as text, by n_images, so that no bit is lost on the way."""

    run: str
    metrics: dict[str, float]
    curve: list[dict[str, str]]
    about: dict

    @property
    def arm(self) -> tuple[str, str, str]:
        """(data, method, supplement)."""
        return tuple(self.run.split("/")[:3])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.run.split("/")[3])

    def iteration(self, point: dict[str, str]) -> int:
        """The iteration of a point of the curve: its share of the run's images."""
        return round(int(point["n_images"]) * self.about["iterations"] / self.about["n_images"])


def named(names, metric: str, space: str, part: str) -> str | None:
    """The one of `names` that is this metric, at any n; None if there is none. Raises Problem if there are two."""
    wanted = (metric, space, part)
    found = [name for name in names if (m := NAME.fullmatch(name)) and m.group("metric", "space", "part") == wanted]
    if len(found) > 1:
        raise Problem(f"{' and '.join(found)} are the same metric at two sizes; expected one")
    return found[0] if found else None


def load(run: str, root: Path) -> Result:
    """Read the metrics, the curve and the provenance of a run. Raises Problem if one is missing or damaged."""
    folder = root / "data/evaluations" / run
    metrics, about = read_json(folder / "metrics.json"), read_json(root / f"data/runs/{run}/provenance.json")
    if absent := [key for key in ABOUT if key not in about]:
        raise Problem(f"data/runs/{run}/provenance.json has no {', '.join(absent)}; make the run again")
    path = folder / "curve.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            curve = sorted(csv.DictReader(file), key=lambda point: int(point["n_images"]))
        finite = all(math.isfinite(float(value)) for point in curve for value in point.values())
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or `python -m eldistill evaluate {run}`") from None
    except (KeyError, ValueError, TypeError) as error:
        raise Problem(f"{path} is damaged ({error}); delete it and run `snakemake all`") from None
    if not curve or not finite:
        raise Problem(f"{path} has no points, or some that are not finite; delete it and run `snakemake all`")
    return Result(run, metrics, curve, about)


def _check(results: list[Result], primary: str) -> None:
    seen: dict[str, Result] = {}
    for result in results:
        first = seen.setdefault(result.arm[0], result)
        names, expected = ({*each.metrics, *each.curve[0]} for each in (result, first))
        if names != expected:
            differing = ", ".join(sorted(names ^ expected)[:3])
            raise Problem(f"{result.run} and {first.run} differ in metrics ({differing}); evaluate both again")
        for part in PARTS:
            if not (named(result.metrics, "fd", primary, part) and named(result.curve[0], "fd", primary, part)):
                raise Problem(f"{result.run} has no fd of {primary}, {part}; it has {', '.join(sorted(names)[:6])}")


# --- statistics ---------------------------------------------------------------------------------------


def interval(values: list[float], confidence: float) -> tuple[float | None, float | None]:
    """Student's t-interval of the mean, (low, high); (None, None) for fewer than two values."""
    if len(values) < 2:
        return None, None
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def reached(result: Result, base: Result, primary: str, part: str) -> tuple[int, bool]:
    """(iteration, censored): the first point of the curve at or below the last one of the baseline's curve.

    No interpolation: the resolution is that of the snapshots. Censored: never reached, and the iteration is the
    last one known. Both curves have the same n. A first crossing of a noisy curve comes a little early.
    """
    column = named(base.curve[0], "fd", primary, part)
    goal = float(base.curve[-1][column])
    for point in result.curve:
        if float(point[column]) <= goal:
            return result.iteration(point), False
    return result.iteration(result.curve[-1]), True


def censored_median(values: list[tuple[float, bool]]) -> tuple[float, bool]:
    """Median of (value, censored), and whether it is only a lower bound.

    Censored values count as larger than all others; if the middle one (or one of the two) is censored, so is the
    median. This is no Kaplan–Meier median; for arms of one length and odd numbers of seeds they agree.
    """
    ordered = sorted(values, key=lambda each: (each[1], each[0]))
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    return fmean(value for value, _ in middle), any(censored for _, censored in middle)


def _bounded(value: float, censored: bool, sign: str = ">"):
    value = int(value) if value == int(value) else value
    return f"{sign} {value}" if censored else value


# --- rows ---------------------------------------------------------------------------------------------


def spaces(results: list[Result], primary: str) -> list[str]:
    """All feature spaces, the primary one first."""
    found = [match["space"] for result in results for name in result.metrics if (match := NAME.fullmatch(name))]
    return list(dict.fromkeys([primary, *found]))


def columns(results: list[Result], primary: str) -> list[tuple[str, str, str]]:
    """(metric, space, part) of the columns of the main table; the first is the one that ranks."""
    others = [("fd", space, "heldout") for space in spaces(results, primary)[1:]]
    return [("fd", primary, "heldout"), ("fd", primary, "train"), *others,
            *((metric, primary, "heldout") for metric in ("kid", "precision", "recall"))]  # fmt: skip


def _arms(results: list[Result]) -> dict[tuple[str, str, str], list[Result]]:
    arms: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        arms.setdefault(result.arm, []).append(result)
    return arms


def _twins(results: list[Result], arms: dict, baseline: str) -> list[tuple[Result, Result]]:
    # (run, baseline's run of the same data, method and seed)
    data, method, _ = results[0].arm
    bases = {base.seed: base for base in arms.get((data, method, baseline), ())}
    return [(result, bases[result.seed]) for result in results if result.seed in bases]


def run_rows(results: list[Result], params: dict) -> list[dict]:
    """runs.csv: one row a run: every metric, the cost, the crossings, and where each number comes from."""
    arms, names, rows = _arms(results), dict.fromkeys(n for result in results for n in result.metrics), []
    for result in results:
        about, twins = result.about, _twins([result], arms, params["baseline"])
        crossings = {
            f"iterations_to_baseline_{part}": _bounded(*reached(*twins[0], params["primary"], part)) if twins else None
            for part in PARTS
        }
        rows.append(
            dict(zip(("data", "method", "supplement"), result.arm, strict=True))
            | {"seed": result.seed, **{name: result.metrics.get(name) for name in names}}
            | {key: about[key] for key in ABOUT[:4]}
            | crossings
            | {"metrics_file": f"data/evaluations/{result.run}/metrics.json", "recipe": str(about["recipe"])[:12]}
            | {key: about.get(key) for key in ("git_commit", "git_dirty", "command", "device")}
        )
    return rows


def curve_rows(results: list[Result]) -> list[dict]:
    """curves.csv: one row a snapshot, for `dvc plots`."""
    names = dict.fromkeys(name for result in results for name in result.curve[0] if name != "n_images")
    return [
        dict(zip(("data", "method", "supplement"), result.arm, strict=True))
        | {"seed": result.seed, "n_images": point["n_images"], "iteration": result.iteration(point)}
        | {name: point.get(name) for name in names}
        for result in results
        for point in result.curve
    ]


def _compare(twins: list[tuple[Result, Result]], params: dict, is_baseline: bool) -> dict:
    # Everything relative to the baseline, over the seeds that both arms have.
    primary, row, known = params["primary"], {}, bool(twins)
    against = known and not is_baseline
    for part in PARTS:
        name = named(twins[0][0].metrics, "fd", primary, part) if known else None
        pairs = [(result.metrics[name], base.metrics[name]) for result, base in twins]
        deltas, stem = [a - b for a, b in pairs], f"fd_{primary}_{part}"
        low, high = interval(deltas, params["confidence"]) if against else (None, None)
        row[f"{stem}_difference"] = fmean(deltas) if against else None
        row |= {f"{stem}_difference_low": low, f"{stem}_difference_high": high}
        row[f"{stem}_lower_in"] = f"{sum(delta < 0 for delta in deltas)}/{len(deltas)}" if against else None
        row[f"{stem}_ratio"] = (
            fmean(a for a, _ in pairs) / (fmean(b for _, b in pairs) or math.inf) if against else None
        )
    row["paired_seeds"] = len(twins) if against else None
    for part in PARTS:
        here = censored_median([reached(result, base, primary, part) for result, base in twins]) if known else None
        there = censored_median([reached(base, base, primary, part) for _, base in twins]) if known else None
        row[f"iterations_to_baseline_{part}"] = _bounded(*here) if known else None
        row[f"saving_percent_{part}"] = _bounded(100 - 100 * here[0] / there[0], here[1], "<") if against else None
    return row


def group_row(results: list[Result], arms: dict, params: dict, wanted: list) -> dict:
    """One row of main.csv: mean and deviation over seeds, and the comparison with the baseline.

    saving_percent: 100 (1 - iterations / the baseline's own first crossing of its final value), medians over paired
    seeds; counted so that a baseline which was there before its end is not flattered away. `> N` iterations and
    `< x` percent: not reached by N. overhead_percent: of CPU time an iteration, medians over paired seeds.
    """
    primary, baseline, row = params["primary"], params["baseline"], {}
    data, method, supplement = results[0].arm
    for metric, space, part in wanted:
        name = named(results[0].metrics, metric, space, part)
        values, stem = [result.metrics[name] for result in results] if name else [], f"{metric}_{space}_{part}"
        row[f"{stem}_mean"] = fmean(values) if values else None
        row[f"{stem}_sd"] = stdev(values) if len(values) > 1 else None
    twins, key = _twins(results, arms, baseline), "milliseconds_per_iteration_cpu"
    mine, theirs = (median(pair[i].about[key] for pair in twins) if twins else None for i in (0, 1))
    return {
        "data": data, "method": method, "supplement": supplement, "seeds": len(results),
        **{f"metric_{part}": named(results[0].metrics, "fd", primary, part) for part in PARTS},
        **row, **_compare(twins, params, supplement == baseline),
        "step_ms_cpu": median(result.about[key] for result in results),
        "overhead_percent": 100 * mine / theirs - 100 if theirs and supplement != baseline else None,
        "runs": " ".join(result.run for result in results),
    }  # fmt: skip


def main_rows(results: list[Result], params: dict, root: Path) -> list[dict]:
    """main.csv: for each data setting the noise floor, the teacher, then a row for each arm, as the suite lists them."""
    arms, wanted, rows = _arms(results), columns(results, params["primary"]), []
    for data in dict.fromkeys(arm[0] for arm in arms):
        groups = [group_row(group, arms, params, wanted) for arm, group in arms.items() if arm[0] == data]
        for which, label in YARDSTICKS.items():
            metrics = read_json(root / f"data/evaluations/{data}/{which}/metrics.json")
            row = dict.fromkeys(groups[0]) | {"data": data, "method": label, "runs": f"{data}/{which}"}
            row |= {f"metric_{part}": named(metrics, "fd", params["primary"], part) for part in PARTS}
            row |= {"_".join((*want, "mean")): metrics.get(named(metrics, *want)) for want in wanted}
            rows.append(row)
        rows += groups
    return rows


# --- Markdown -----------------------------------------------------------------------------------------


def _short(value) -> str:
    # Three significant digits without an exponent where that is readable; text and nothing stay as they are.
    if value is None or isinstance(value, str):
        return value or ""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def _cell(row: dict, stem: str) -> str:
    sd = row[f"{stem}_sd"]
    return _short(row[f"{stem}_mean"]) + (f" ± {_short(sd)}" if sd is not None else "")


def sentence(row: dict, part: str, params: dict) -> str | None:
    """What the paired difference of one row says, and no more; None without a baseline."""
    stem, baseline, name = f"fd_{params['primary']}_{part}", params["baseline"], row[f"metric_{part}"]
    delta, low, high = (row[f"{stem}_difference{end}"] for end in ("", "_low", "_high"))
    if delta is None:
        return None
    who, count = f"{row['method']}/{row['supplement']}: {name}", row["paired_seeds"]
    if low is None:
        return f"{who} differs from {baseline} by {_short(delta)} in the only paired seed: no interval, no conclusion."
    tail = f"({100 * params['confidence']:g} %, {count} paired seeds; lower in {row[f'{stem}_lower_in'].replace('/', ' of ')})"
    if low <= 0 <= high:
        return f"{who} is not distinguishable from {baseline}: {_short(delta)} [{_short(low)}, {_short(high)}] {tail}."
    near, far = sorted((abs(low), abs(high)))
    which = "lower" if delta < 0 else "higher"
    return f"{who} is {which} than {baseline} by {_short(abs(delta))} [{_short(near)}, {_short(far)}] {tail}."


def _line(row: dict, params: dict, wanted: list) -> list[str]:
    stems = ["_".join(want) for want in wanted]
    if row["seeds"] is None:
        # A yardstick has another number of images than the arms: its cells say so.
        sizes = {part: f" (n = {NAME.fullmatch(name)['n']})" for part in PARTS if (name := row[f"metric_{part}"])}
        cells = [
            text + sizes.get(stem[2], "") if (text := _cell(row, s)) else ""
            for s, stem in zip(stems, wanted, strict=True)
        ]
        return [row["method"], "", cells[0], "", cells[1], "", *cells[2:], "", ""]
    deltas = []
    for part in PARTS:
        delta, low, high = (row[f"fd_{params['primary']}_{part}_difference{end}"] for end in ("", "_low", "_high"))
        deltas.append(_short(delta) + (f" [{_short(low)}, {_short(high)}]" if low is not None else ""))
    saving, overhead = row["saving_percent_heldout"], row["overhead_percent"]
    reach = _short(row["iterations_to_baseline_heldout"])
    cells = [_cell(row, stem) for stem in stems]
    return [f"{row['method']}/{row['supplement']}", str(row["seeds"]), cells[0], deltas[0], cells[1], deltas[1], *cells[2:],
            reach + (f" (saves {_percent(saving)} %)" if saving is not None else ""),
            _short(row["step_ms_cpu"]) + (f" ({overhead:+.0f} %)" if overhead is not None else "")]  # fmt: skip


def _percent(saving) -> str:
    return f"< {float(saving[2:]):.0f}" if isinstance(saving, str) else f"{saving:.0f}"


def _section(data: str, rows: list[dict], params: dict, wanted: list) -> str:
    floor, arms = rows[0], [row for row in rows if row["seeds"]]
    primary, baseline, first = params["primary"], params["baseline"], arms[0]
    n = NAME.fullmatch(first["metric_heldout"])["n"]
    intro = (
        f"`{first['metric_heldout']}` ranks: Fréchet distance of {n} generated images to the held-out ones in the features "
        f"of {primary}; lower is better. Noise floor `{floor['metric_heldout']}`, train images against held-out ones: "
        f"{_short(floor[f'fd_{primary}_heldout_mean'])}. Cells: mean ± sd over seeds; differences paired by seed, with "
        f"{100 * params['confidence']:g} % t-intervals. Fewer images raise a Fréchet distance: compare at equal n only."
    )
    titles = [f"{metric} {space} {PARTS[part]}" for metric, space, part in wanted]
    head = ["method/supplement", "seeds", titles[0], f"minus {baseline}", titles[1], f"minus {baseline}", *titles[2:],
            f"iterations to {baseline}'s final {titles[0]}", "CPU ms an iteration"]  # fmt: skip
    table = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *(_line(row, params, wanted) for row in rows)]
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    said = [f"- {text}" for row in arms for part in PARTS if (text := sentence(row, part, params))]
    stem = f"fd_{primary}_heldout_mean"
    said += [f"- {row['method']}/{row['supplement']}: below the noise floor. That is no success but a reason to look for a mistake."
             for row in arms if row[stem] < floor[stem]]  # fmt: skip
    return "\n".join(
        [f"## {data}", "", intro, "", *lines, "", *(said or [f"No comparison: there is no run of {baseline}."])]
    )


def markdown(suite: str, rows: list[dict], params: dict, wanted: list) -> str:
    """main.md: a section for each data setting; below its table one sentence for each comparison."""
    sections = [
        _section(data, list(group), params, wanted) for data, group in itertools.groupby(rows, lambda row: row["data"])
    ]
    note = "Every interval stands alone: none is corrected for the number of comparisons. All digits and the runs: main.csv."
    return "\n\n".join([f"# Suite {suite}", *sections, note]) + "\n"


# --- pictures -----------------------------------------------------------------------------------------


def _panel(axes, arms: dict, rows: list[dict], styles: dict, part: str, primary: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for (*_, supplement), results in arms.items():
        column, points = named(results[0].curve[0], "fd", primary, part), {}
        for result in results:
            x = [int(point["n_images"]) for point in result.curve]
            y = [float(point[column]) for point in result.curve]
            for n_images, value in zip(x, y, strict=True):
                points.setdefault(n_images, []).append(value)
            if len(results) > 1:
                axes.plot(x, y, color=styles[supplement][0], linewidth=0.8, alpha=0.4)
        means = {n_images: fmean(values) for n_images, values in sorted(points.items()) if len(values) == len(results)}
        colour, marker = styles[supplement]
        seeds = f"mean of {len(results)} seeds" if len(results) > 1 else "1 seed"
        axes.plot(
            means.keys(),
            means.values(),
            color=colour,
            marker=marker,
            markersize=4.5,
            linewidth=2,
            label=f"{supplement} ({seeds})",
        )
    for row, dash, colour in zip(rows, ((0, (6, 2)), (0, (1, 1.5))), ("#777777", "#777777"), strict=True):
        if (value := row[f"fd_{primary}_{part}_mean"]) is not None:
            name = NAME.fullmatch(row[f"metric_{part}"])
            label = f"{row['method'].split(' (')[0]}: {_short(value)} (n = {name['n']})".replace("real", "noise floor")
            axes.axhline(value, color=colour, linestyle=dash, linewidth=1.6, label=label)
    data, method, _ = next(iter(arms))
    axes.set(title=f"{data}, {method}: against {PARTS[part]} images", yscale="log", xlabel="images seen in training",
             ylabel=f"Fréchet distance (lower is better)\n{column}")  # fmt: skip
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=10)


def draw_curves(path: Path, results: list[Result], rows: list[dict], params: dict) -> None:
    """curves.png: a row of two panels (held-out, train) for each data setting and method, 1200 x 500 pixels each.

    Thick: mean over the seeds at points that all of them have; thin: each seed; dashed: the two yardsticks.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    arms = _arms(results)
    supplements = dict.fromkeys(arm[2] for arm in sorted(arms, key=lambda arm: arm[2] != params["baseline"]))
    first = 0 if params["baseline"] in supplements else 1
    styles = {s: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, s in enumerate(supplements, first)}
    beds = list(dict.fromkeys(arm[:2] for arm in arms))
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(12, 5 * len(beds)), dpi=100, layout="constrained")
        grid = figure.subplots(len(beds), 2, squeeze=False)
        for panels, bed in zip(grid, beds, strict=True):
            here = {arm: group for arm, group in arms.items() if arm[:2] == bed}
            yardsticks = [row for row in rows if row["data"] == bed[0] and row["seeds"] is None]
            for axes, part in zip(panels, PARTS, strict=True):
                _panel(axes, here, yardsticks[::-1], styles, part, params["primary"])
        with atomic(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _picture(path: Path, columns: int, width: int):
    # The first rows of a grid of square images, enlarged by a whole number.
    from PIL import Image

    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except OSError as error:
        raise Problem(f"{path} is no picture ({error}); delete it and run `snakemake all`") from None
    picture = picture.crop((0, 0, picture.width, min(picture.height, SAMPLE_ROWS * picture.width // columns)))
    scale = max(1, width // picture.width)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def draw_samples(path: Path, results: list[Result], params: dict, root: Path) -> None:
    """samples.png: the teacher's and each arm's first images (lowest seed), labelled, two panels a row."""
    from PIL import Image, ImageDraw, ImageFont

    places: dict[str, list[tuple[str, str]]] = {}
    for (data, method, supplement), group in _arms(results).items():
        run = min(group, key=lambda result: result.seed)
        panels = places.setdefault(data, [(f"{data}: {TEACHER}", f"{data}/teacher")])
        panels.append((f"{data}: {method}, {supplement}, one step, seed {run.seed}", run.run))
    panels = [(text, _picture(root / f"data/evaluations/{folder}/samples.png", params["grid"], 576))
              for group in places.values() for text, folder in group]  # fmt: skip
    label, gap = 36, 24
    width, height = (max(getattr(picture, side) for _, picture in panels) for side in ("width", "height"))
    rows = -(-len(panels) // 2)
    board = Image.new("RGB", (2 * width + 3 * gap, rows * (height + label + gap) + gap // 2), "white")
    pen, font = ImageDraw.Draw(board), ImageFont.load_default(size=22)
    for i, (text, picture) in enumerate(panels):
        x, y = gap + i % 2 * (width + gap), gap // 2 + i // 2 * (height + label + gap)
        pen.text((x, y), text, fill="black", font=font)
        board.paste(picture, (x, y + label))
    with atomic(path) as temporary:
        board.save(temporary, format="PNG")


# --- the step -----------------------------------------------------------------------------------------


def make(params: dict, root: Path, outputs: list[Path]) -> None:
    """Write main.csv, main.md, runs.csv, curves.csv, curves.png, samples.png (outputs, in this order).

    params: confidence, baseline (a supplement), grid (images in a row of a samples.png), primary (the feature space
    that ranks), runs. Reads data/evaluations and data/runs under root. Raises Problem for a missing or damaged input.
    """
    results = [load(run, root) for run in dict.fromkeys(params["runs"])]
    if not results:
        raise Problem("the suite has no runs; see `suites` in params.yaml")
    _check(results, params["primary"])
    rows = main_rows(results, params, root)
    main, text, runs, curves, curves_picture, samples = outputs
    write_rows(main, rows)
    write_text(text, markdown(main.parent.name, rows, params, columns(results, params["primary"])))
    write_rows(runs, run_rows(results, params))
    write_rows(curves, curve_rows(results))
    draw_curves(curves_picture, results, rows, params)
    draw_samples(samples, results, params, root)
