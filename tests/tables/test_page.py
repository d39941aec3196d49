# SPDX-License-Identifier: Apache-2.0
"""Parts of pages: figures as inline SVG, charts, pictures of a bounded size, tables whose first column stays, folded sentences."""

from __future__ import annotations

import math
import random
import re

import pytest
from PIL import Image

from eldistill.errors import Problem
from eldistill.paths import PACKAGE
from eldistill.tables import chart, figures, logged, page
from eldistill.tables.vector import inline_svg


def svg_file(path, colour="#000000"):
    from matplotlib.figure import Figure

    with figures.plain_style():
        figure = Figure(figsize=(3, 2))
        axes = figure.subplots()
        axes.plot([1.23456789, 2, 3], [3.14159265, 1, 2], color=colour, marker="o", label="a <b> 1.23456789")
        axes.legend()
        figures.save(figure, [path])
    return path


def test_a_figure_follows_the_colours_of_the_page_and_is_smaller(tmp_path):
    path = svg_file(tmp_path / "a.svg", "#0072B2")
    text = inline_svg(path)
    assert len(text) < 0.7 * path.stat().st_size and text == inline_svg(path)
    assert (
        text.startswith("<svg viewBox") and "var(--paper)" in text and "var(--blue)" in text and "#0072b2" not in text
    )
    assert "font-family" not in text and "metadata" not in text and "<style" not in text
    assert "a &lt;b&gt; 1.23456789" in text  # the words of a figure keep their digits
    coordinates = " ".join(re.findall(r' d="([^"]*)"', text))
    assert not re.search(r"\.\d{3}", coordinates)
    for used in re.findall(r'(?:href="|url\()#(\w+)', text):
        assert f'id="{used}"' in text


@pytest.mark.parametrize(
    "inside",
    ["<script>1</script>", '<g onload="x()"/>', '<image href="http://a.b/c.png"/>', "<foreignObject/>", '<a href="#x"/>',
     '<use xlink:href="file:///etc/passwd"/>', '<rect style="fill: url(http://a.b)"/>', "<STYLE>@import 'x'</STYLE>"],
)  # fmt: skip
def test_a_figure_with_anything_active_is_refused(tmp_path, inside):
    path = tmp_path / "a.svg"
    path.write_text(f'<svg viewBox="0 0 1 1" xmlns="http://www.w3.org/2000/svg">{inside}</svg>')
    with pytest.raises(Problem, match="not a figure of this project"):
        inline_svg(path)


def test_a_missing_or_damaged_figure_is_named(tmp_path):
    with pytest.raises(Problem, match=r"a\.svg is missing"):
        inline_svg(tmp_path / "a.svg")
    (tmp_path / "a.svg").write_bytes(b"\xff\xfe")
    with pytest.raises(Problem, match=r"a\.svg"):
        inline_svg(tmp_path / "a.svg")


def test_a_figure_that_is_too_large_becomes_pixels(tmp_path, monkeypatch):
    svg_file(tmp_path / "a.svg"), svg_file(tmp_path / "a.png")
    assert "<svg" in page.figure("x", tmp_path / "a.svg", tmp_path / "a.png")
    monkeypatch.setattr(page, "VECTOR", 1000)
    made = page.figure("x", tmp_path / "a.svg", tmp_path / "a.png")
    assert "<svg" not in made and "data:image/" in made


@pytest.mark.parametrize("most", [5_000, 20_000, 100_000])
def test_a_picture_has_at_most_the_bytes_it_may_have(tmp_path, most):
    Image.effect_noise((500, 500), 80).convert("RGB").save(tmp_path / "a.png")
    assert len(page.source(tmp_path / "a.png", most)) <= 4 / 3 * most + 40


def test_a_table_keeps_its_first_column_and_escapes():
    made = page.short_table(["a", "b", "c", "<d>"], [["<x>", "1", "2", "3"]], kinds=["group"], titles=['"t"'])
    assert (
        "&lt;d&gt;" in made and "&lt;x&gt;" in made and 'title="&quot;t&quot;"' in made and '<tr class="group">' in made
    )
    assert 'class="cue"' in made and 'tabindex="0"' in made
    rule = re.search(r"th:first-child, td:first-child \{([^}]*)\}", page.STYLE)[1]
    assert "position: sticky" in rule and "left: 0" in rule and "background" in rule


def test_folded_text_needs_no_script():
    assert page.folded("a <b>", "<p>c</p>") == "<details><summary>a &lt;b&gt;</summary><p>c</p></details>"
    assert page.bullets(["`a` < b"]) == "<ul><li><code>a</code> &lt; b</li></ul>"
    assert "script" not in page.document("t", ["<p>x</p>"])


# --- charts -------------------------------------------------------------------------------------------


def numbers(text, pattern):
    return [float(each) for each in re.findall(pattern, text)]


@pytest.mark.parametrize("seed", range(40))
def test_a_chart_clips_no_tick_and_no_point(seed):
    """Random curves of all magnitudes: every point lies in the frame, every number at a tick inside the drawing."""
    draw = random.Random(seed)
    n = draw.randint(1, 12)
    values = [draw.gauss(0, 1) * 10 ** draw.uniform(-9, 9) if draw.random() < 0.8 else math.nan for _ in range(n)]
    values[0] = draw.choice([0.0, 1e-12, -3.5, 1e12])
    if log := seed % 2 == 0:
        values = [abs(value) for value in values]
    places = sorted(draw.sample(range(10 ** draw.randint(2, 9)), n))
    text = chart.line_chart("t", "raw", places, values, log)
    xs, ys = numbers(text, r'<circle cx="([^"]*)"'), numbers(text, r'cy="([^"]*)"')
    assert len(xs) == sum(not math.isnan(value) for value in values)
    assert all(chart.LEFT <= x <= chart.WIDE - chart.RIGHT for x in xs)
    assert all(chart.TOP <= y <= chart.TALL - chart.BOTTOM for y in ys)
    for x, anchor, word in re.findall(r'<text x="([^"]*)" y="[^"]*" text-anchor="(\w+)">([^<]*)<', text):
        wide = chart.LETTER * len(word) * (1 if anchor == "end" else 0.5)
        if word != "generated images in training":
            assert float(x) - wide >= -1 and (anchor == "end" or float(x) + wide <= chart.WIDE + 1), word


def test_a_gap_breaks_the_line_and_what_cannot_be_drawn_is_counted():
    text = chart.line_chart("t", "raw", [0, 1, 2, 3], [1.0, math.nan, 2.0, 3.0], False)
    assert re.search(r'd="(M[^ML]*M[^ML]*L[^ML]*)"', re.search(r'class="curve"[^>]*', text)[0])
    assert "1 infinite values are not drawn" in chart.line_chart("t", "raw", [0, 1], [1.0, math.inf], False)
    assert "No number was logged" in chart.line_chart("t", "raw", [0, 1], [math.nan, math.nan], True)


def test_logged_numbers_have_names_for_readers():
    assert logged.logged_name("el.gradient_norm") == "EL: gradient norm"
    assert logged.logged_name("fake_score.denoising") == "fake score: denoising loss"
    assert logged.logged_name("mine.strange") == "mine: strange" and logged.logged_name("alone") == "alone"
    assert "collapse" in logged.note("el.trace_ratio") and logged.note("el.mmd2") == ""


def test_runs_are_linked_by_one_function_and_each_once():
    """By arm, with readable names; no other module spells the path of a sheet out."""
    text = page.sheet_links(["digits/di/el/0", "digits/di/el/1", "cifar10/dmd/none/0", "digits/di/el/0"])
    assert re.findall(r'href="([^"]*)"', text) == [
        f"../../evaluations/{run}/sheet.html" for run in ("digits/di/el/0", "digits/di/el/1", "cifar10/dmd/none/0")
    ]
    assert "<li>8×8 digits, DI + EL: " in text and "CIFAR-10, DMD: " in text and text.count(page.BESIDE) == 1
    files = [
        path for path in (PACKAGE / "tables").rglob("*.py") if "../../evaluations" in path.read_text(encoding="utf-8")
    ]
    assert [path.name for path in files] == ["page.py"]
