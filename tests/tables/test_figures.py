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
from eldistill.tables import figures
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


@pytest.mark.parametrize("question", ["as it is", LONG])
@pytest.mark.parametrize("study", STUDIES, ids="/".join)
def test_words_of_a_study_are_inside_its_figure_and_apart(study, question, tmp_path, monkeypatch):
    """With the numbers of the tables in git, also with a longer question."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    seen = []

    def save(figure, paths) -> None:
        figure.set_dpi(figures.DPI)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        check(figure)
        seen.append(figure)

    monkeypatch.setattr(figures, "save", save)
    rows = [typed(row) for row in read_rows(ROOT / f"data/tables/{study[0]}/{study[1]}.csv")]
    chosen = PLAN.study(*study).params
    forest.draw_study([Path(tmp_path / "a.png")], rows, chosen | ({} if question == "as it is" else {"question": LONG}))
    assert len(seen) == 1 and len(words(seen[0])) > 1


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
