# SPDX-License-Identifier: Apache-2.0
"""The LaTeX tables: they compile, fit the page, and hold the numbers of the rows with the stated number of digits."""

import math
import random
import re
import shutil
import subprocess

import pytest

from eldistill.tables import latex, names
from eldistill.tables import suite as tables
from eldistill.tables.results import arms_of, decimals, load_result, plus_minus
from tests.tables.test_tables import PARAMS, add_run, add_setting, suite  # noqa: F401  (the fixture)

LATEX = shutil.which("pdflatex")
DOCUMENT = (
    "\\documentclass{{article}}\n\\usepackage{{booktabs,graphicx,rotating}}\n\\begin{{document}}\n{}\\end{{document}}\n"
)
SPREAD = (0.0, 1e-9, 0.0136, 0.0996, 1.36, 12.3, 123.4, 98765.0)


def rows_of(root, runs):
    results = [load_result(run, root) for run in runs]
    return results, tables.main_rows(results, PARAMS | {"runs": runs}, root)


def texts(root, runs):
    """Both tables of some runs."""
    results, rows = rows_of(root, runs)
    return latex.narrow(rows, PARAMS), latex.wide(rows, PARAMS, tables.columns(results, "judge-a"))


def cells(text, first):
    """The cells of the row of a LaTeX table that begins with `first`."""
    (line,) = (line for line in text.splitlines() if line.removeprefix("\\raggedright ").startswith(f"{first} &"))
    return [cell.strip() for cell in line.removesuffix("\\\\").split("&")]


@pytest.mark.skipif(LATEX is None, reason="no pdflatex here (Debian: apt-get install texlive-latex-recommended)")
def test_both_tables_compile_and_nothing_is_wider_than_the_page(tmp_path):
    """Two data settings, one of them with long names, wide numbers and one seed; eight arms; signs that LaTeX reads as commands."""
    runs = add_setting(tmp_path, "toy") + add_setting(tmp_path, "a_long-name&50%of#data", 12345.678, "512", "250")
    for run in list(runs[:9]):
        runs.append(
            run.replace("/di/", "/a_method-with_a-very-long_name/").replace("/el/", "/regression+el-permuted_x/")
        )
        add_run(tmp_path, runs[-1], 3.0 + len(runs) / 7)
    for text in texts(tmp_path, runs):
        (tmp_path / "page.tex").write_text(DOCUMENT.format(text))
        words = [LATEX, "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Overfull" not in done.stdout and "Missing character" not in (tmp_path / "page.log").read_text(
            errors="replace"
        )


def test_the_narrow_table_has_five_columns_and_the_caption_says_what_they_are(suite):  # noqa: F811
    root, runs = suite
    text, wide = texts(root, runs)
    assert "\\centering" in text and "tabular*}{\\textwidth}" in text
    assert {line.count("&") for line in text.splitlines() if line.endswith("\\\\")} == {4}
    caption = re.search(r"\\caption{(.*)}", text)[1]
    for words in (
        "5,000 generated images",
        "over 3 seeds",
        "standard deviation",
        "Bold: the best mean",
        "over the 1 comparison on",
    ):
        assert words in caption
    assert "sidewaystable" in wide and wide.count("&") > text.count("&")
    assert "-" not in re.sub(r"\$[^$]*\$", "", cells(text, "DI + EL")[2])  # every minus is one of mathematics


def test_the_best_mean_of_a_method_is_bold_and_reference_runs_are_not(suite):  # noqa: F811
    """el has the lower distance; the recall of these runs rises with the distance, so that none has the higher one."""
    root, runs = suite
    text = texts(root, runs)[0]
    bold = {who: ["mathbf" in cell for cell in cells(text, who)] for who in ("DI", "DI + EL")}
    assert bold == {"DI": [False, False, False, False, True], "DI + EL": [False, True, False, False, False]}
    assert not [line for line in text.splitlines() if "mathbf" in line and "$n=" in line]
    alone = texts(root, [run for run in runs if "/el/" in run])[0]
    assert "mathbf" not in alone


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("deviation", SPREAD)
def test_a_deviation_has_two_digits_and_its_mean_the_same_place(scale, deviation):
    draw = random.Random(0)
    for _ in range(50):
        mean, spread = draw.uniform(-9, 9) * scale, deviation * scale * draw.uniform(1, 9)
        first, second = plus_minus(mean, spread).split(" ± ")
        assert float(second) == pytest.approx(spread, rel=0.051)
        if spread < 1e-4 or spread >= 1e7:
            continue
        place = 10.0 ** -decimals(spread)
        assert abs(float(first) - mean) <= place / 2 * (1 + 1e-9) and abs(float(second) - spread) <= place / 2 * (
            1 + 1e-9
        )
        assert len(first.partition(".")[2]) == len(second.partition(".")[2]) == max(0, decimals(spread))
        assert not re.fullmatch(r"-0(\.0*)?", first)


def test_an_interval_is_rounded_with_its_estimate(suite):  # noqa: F811
    root, runs = suite
    _, rows = rows_of(root, runs)
    row = next(row for row in rows if row["supplement"] == "el")
    numbers = [float(each) for each in re.findall(r"-?\d+\.?\d*", cells(texts(root, runs)[0], "DI + EL")[2])]
    exact = [row[f"fd_judge-a_heldout_difference{end}"] for end in ("", "_low", "_high")]
    place = 10.0 ** -decimals((exact[2] - exact[1]) / 2)
    assert all(abs(a - b) <= place / 2 * 1.001 for a, b in zip(numbers, exact, strict=True)) and math.isfinite(place)


def test_every_name_of_this_project_has_one_for_readers(suite):  # noqa: F811
    """Methods, supplements, spaces and metrics that params.yaml and the code know; a user's own name stays; LaTeX reads all of them."""
    from eldistill.evaluate.metrics import ALONE, LABELLED, METRICS
    from tests import conftest

    shipped = conftest.shipped()["distil"]
    known = {
        **dict.fromkeys(shipped["methods"], names.method_name),
        **dict.fromkeys(shipped["supplements"], names.supplement_name),
    }
    assert {raw for raw, look_up in known.items() if look_up(raw).short == raw} == {"regression", "f-distill"}
    written = {*METRICS, *ALONE, *LABELLED, "fdj", "fdse"} - {"debiased"}  # which writes fdj and fdse
    assert written <= set(names.METRICS)
    assert names.method_name("my_own").short == "my_own" and names.method_name("my_own").tex == r"my\_\allowbreak{}own"
    assert names.supplement_name("regression+el").short == "regression + EL"
    assert names.arm_name("dmd-r4", "none").short == "DMD (r4)"
    assert names.metric_name("fd5k_judge-a_heldout").text == (
        "Fréchet distance to held-out images (features of judge A, 5,000 images)"
    )
    root, runs = suite
    assert {arm[2] for arm in arms_of([load_result(run, root) for run in runs])} == {"none", "el"}
