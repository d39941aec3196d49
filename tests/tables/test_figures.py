# SPDX-License-Identifier: Apache-2.0
"""Figures at their printed size: no text is cut off, and no title, label or small print covers another."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from matplotlib.text import Text

from eldistill.files import read_rows
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.tables import figures, names
from eldistill.tables.studies import forest
from tests.conftest import ROOT

PLAN = Plan(params.load_params(ROOT / "params.yaml"))
WORDS = ("ends", "runs", "diverged_seeds", "data", "method", "supplement", "part", "space", "bound")  # columns of text
LONG = "Is a question that nobody can read in one breath cut off where the figure ends, or does it go into a second line of it?"
# (suite, study) of tables in git.
STUDIES = [("speed", "speed"), ("speed", "speed-control"), ("speed", "budget"), ("ablation", "tuning-variants")]


def typed(row: dict[str, str]) -> dict:
    """A row of a study's CSV as the study made it."""

    def value(key: str, text: str) -> object:
        if key in WORDS or not text:
            return text if key in ("ends", "runs") else text or None
        try:
            return float(text)
        except ValueError:
            return text

    return {key: value(key, text) for key, text in row.items()}


def words(figure) -> list[Text]:
    """The texts of a figure that are drawn, but for numbers and names at ticks."""
    ticks = {
        tick for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_ticklabels(which="both")
    }
    offsets = {axis.get_offset_text() for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in ticks | offsets
    ]


def check(figure) -> None:
    """All words are inside the figure, and no two of them overlap."""
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
    boxes = {text: text.get_window_extent(renderer) for text in words(figure)}
    whole = figure.bbox
    for text, box in boxes.items():
        inside = box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= whole.width + 0.5 and box.y1 <= whole.height + 0.5
        assert inside, f"{text.get_text()!r} is cut off: {box.extents} of {whole.size}"
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(wide) <= 1, f"{one.get_text()!r} covers {other.get_text()!r}"


def drawn(study, rows, monkeypatch, **changes):
    """The figure of a study with these rows, after `check`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    seen = []

    def save(figure, paths) -> None:
        figure.set_dpi(figures.DPI)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        check(figure)
        seen.append(figure)

    monkeypatch.setattr(figures, "save", save)
    params = PLAN.study(*study).params | changes
    with names.variants(params.get("called", {})):
        forest.draw_study([Path("a.png")], rows, params)
    assert len(seen) == 1 and len(words(seen[0])) > 1
    return seen[0]


def rows_of(study):
    return [typed(row) for row in read_rows(ROOT / f"data/tables/{study[0]}/{study[1]}.csv")]


@pytest.mark.parametrize("question", ["as it is", LONG])
@pytest.mark.parametrize("study", STUDIES, ids="/".join)
def test_words_of_a_study_are_inside_its_figure_and_apart(study, question, monkeypatch):
    """With the numbers of the tables in git, also with a longer question."""
    drawn(study, rows_of(study), monkeypatch, **({} if question == "as it is" else {"question": LONG}))


def test_a_comparison_without_a_ratio_is_a_cross_with_its_legend(monkeypatch):
    """At the upper edge of its panel; without one there is neither."""
    study = ("speed", "speed")
    rows = rows_of(study)
    one = next(row for row in rows if row["part"] == "time" and row["ratio_iterations"] is not None)
    gone = {key: None for key in one if key.startswith(("ratio_", "fewer_"))} | {
        "never": 4.0,
        "early": 1.0,
        "bound": None,
    }
    for changed, count in ((rows, 0), ([one | gone if row is one else row for row in rows], 1)):
        figure = drawn(study, changed, monkeypatch)
        panel = figure.axes[1]
        crosses = [line for line in panel.lines if line.get_marker() == "x"]
        assert len(crosses) == count and all(line.get_ydata()[0] == panel.get_ylim()[1] for line in crosses)
        texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert any("never reached" in text for text in texts) is bool(count)


def test_labels_of_two_lines_do_not_touch(monkeypatch):
    """The names of variants are long: labels at the axis are apart, too."""
    figure = drawn(("ablation", "tuning-variants"), rows_of(("ablation", "tuning-variants")), monkeypatch)
    boxes = [tick.get_window_extent() for tick in figure.axes[0].get_yticklabels()]
    for a, b in itertools.pairwise(sorted(boxes, key=lambda box: box.y0)):
        assert a.y1 <= b.y0 + 1
    assert any("\n" in tick.get_text() for tick in figure.axes[0].get_yticklabels())


@pytest.mark.parametrize("rows", [1, 3])
def test_long_titles_and_labels_of_panels_are_made_smaller_and_short_ones_are_not(rows, tmp_path):
    """A title ends before the label right of it, and a label of a vertical axis before the one below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for title, label, smaller in (
        ("short", "short\nlabel", ()),
        ("A title of many words " * 4, "A label of words " * 4, (0, 1)),
    ):
        figure = Figure(figsize=(7, 1.8 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        for axes in figure.subplots(rows, 2, squeeze=False).flat:
            axes.set_title(title.strip(), loc="left", fontsize=8)
            axes.set_ylabel(label.strip(), fontsize=8)
        figures.save(figure, [tmp_path / "a.png"])
        check(figure)
        sizes = [figures.left_title(axes).get_fontsize() for axes in figure.axes]
        labels = [axes.yaxis.label.get_fontsize() for axes in figure.axes]
        for place, found in enumerate((sizes, labels)):
            assert len(set(found)) == 1 and (found[0] < 8) is (place in smaller)


def test_the_check_finds_what_is_cut_off_and_what_is_covered():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for places, complaint in (([(0.9, 0.5), (0.1, 0.1)], "is cut off"), ([(0.3, 0.5), (0.31, 0.5)], "covers")):
        figure = Figure(figsize=(3, 2))
        FigureCanvasAgg(figure)
        for x, y in places:
            figure.text(x, y, "some words")
        with pytest.raises(AssertionError, match=complaint):
            check(figure)
