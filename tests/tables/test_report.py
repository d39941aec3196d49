# SPDX-License-Identifier: Apache-2.0
"""The pages, of a suite and of a run: everything inside, nothing fetched, nothing executed, and a browser shows them."""

import re
import shutil
import subprocess

import pytest
from PIL import Image

from eldistill.errors import Problem
from eldistill.tables import report
from eldistill.tables import sheet as sheets
from eldistill.tables import suite as tables
from eldistill.tables.page import markdown_to_html, picture
from tests.tables import test_tables
from tests.tables.test_tables import NAMES, PARAMS, suite  # noqa: F401  (the fixture)


def test_markdown_becomes_html():
    """Headings, tables, lists, code and paragraphs; text is escaped."""
    text = "# A <b>\n\n## B\n\n`fd` ranks.\nMore & more.\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n| 3 | 4 |\n\n- one\n- two\n"
    made = markdown_to_html(text)
    assert "<h1>A &lt;b&gt;</h1>" in made and "<h3>B</h3>" in made
    assert "<p><code>fd</code> ranks. More &amp; more.</p>" in made
    assert "<tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr><tr><td>3</td><td>4</td></tr>" in made
    assert "<ul><li>one</li><li>two</li></ul>" in made


def add_pictures(root, runs):
    """What the page of a suite shows beside its tables."""
    for run in runs:
        test_tables.picture(root / f"data/evaluations/{run}/interpolation.png", 9)
        log = "n_images,generator.kl,generator.gradient_norm,el.weight,el.snr\n64,0.5,2,1,\n128,-0.25,1,2,0.5\n"
        (root / f"data/runs/{run}/log.csv").write_text(log)
    test_tables.picture(root / "data/evaluations/toy/real/samples.png")


def make(root, runs, name="demo"):
    params = PARAMS | {"runs": runs}
    folder = root / "data/tables" / name
    parts = [folder / each for each in NAMES]
    tables.make_tables(params, root, parts)
    params |= {"steps": {"data": 6, "distil": len(runs), "tables": 1}}
    report.make_report(name, params, root, {path.name: path for path in parts}, folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def page(suite):  # noqa: F811
    root, runs = suite
    add_pictures(root, runs)
    return make(root, runs)


def test_the_page_needs_no_network(suite, page):  # noqa: F811
    """Pictures are inside, no address is referred to, every run is listed with its origin; equal input, equal bytes."""
    root, runs = suite
    text = page.read_text()
    page.unlink()
    assert make(root, runs).read_text() == text
    assert not re.search(r'(src|href)="(?!data:|#|\.\./\.\./evaluations/)|<script|url\(|@import', text)
    assert text.count('src="data:image/') == 3 + 2 + 2 + 2  # plots; real and teacher; an arm each; and its strip
    assert all(word in text for word in ("c0ffee", "0123456789ab", "python -m eldistill distil toy/di/el/1"))
    assert all(f"../../evaluations/{run}/sheet.html" in text for run in runs)
    assert "<b>distil</b>6 steps" in text and "<b>tables</b>1 step<" in text


def test_what_was_run_has_the_seeds_of_each_supplement():
    """Supplements of one method with other seeds stand in lines of their own."""
    runs = [
        f"toy/di/{name}/{seed}" for name, count in (("none", 3), ("el", 1), ("pixel-mmd", 3)) for seed in range(count)
    ]
    text = report._what(PARAMS | {"runs": runs}, ["toy"])
    assert "<td>toy/di</td><td>none, pixel-mmd</td><td>0, 1, 2</td>" in text
    assert "<td>toy/di</td><td>el</td><td>0</td>" in text


def test_what_was_published_elsewhere_is_folded_away(page):
    """Figures of other data are not in the table of ours, and say that they compare with nothing."""
    text = page.read_text()
    inside = re.search(r"<details>(.*?)</details>", text, re.S)[1]
    assert "compares with nothing on this page" in inside and "arXiv 2604.22379" in inside
    assert "3.95" not in text.replace(inside, "")


def test_a_large_picture_is_stored_smaller(tmp_path):
    noise = Image.effect_noise((500, 500), 80).convert("RGB")
    noise.save(tmp_path / "large.png")
    assert "data:image/jpeg" in picture("x", tmp_path / "large.png")
    Image.new("RGB", (500, 500)).save(tmp_path / "small.png")
    assert "data:image/png" in picture("x", tmp_path / "small.png")


def test_the_sheet_of_a_run(suite, page):  # noqa: F811
    """Every logged number has a chart under its heading, every metric a cell; no time, so that equal runs have equal sheets."""
    root, runs = suite
    path = root / f"data/evaluations/{runs[0]}/sheet.html"
    texts = []
    for _ in range(2):
        sheets.make_sheet(runs[0], root, path)
        texts.append(path.read_text())
    assert texts[0] == texts[1]
    for word in (
        "Loss terms",
        "generator.kl",
        "Gradients",
        "generator.gradient_norm",
        "signal",
        "el.snr",
        "fd2k_judge-a_train",
        "kid5k",
    ):
        assert word in texts[0], word
    assert "2026" not in texts[0] and not re.search(
        r'(src|href)="(?!data:|#)|<script', texts[0].replace("xlink:href", "")
    )
    (root / f"data/runs/{runs[0]}/log.csv").write_text("n_images,a\n1,x\n")
    with pytest.raises(Problem, match="log.csv is damaged"):
        sheets.make_sheet(runs[0], root, path)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_a_complaint(page, tmp_path, width):
    """Headless, at the width of a desk and of a phone: no message on the console, nothing wider than the window but what scrolls
    by itself, less than 5 MB. A window of Chromium is at least 500 wide: the phone is a frame in it."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!doctype html><link rel="icon" href="data:,"><body style="margin:0"><iframe id="f" src="{page.as_uri()}" style="border:0" '
        f'width="{width}" height="2000"></iframe><script>onload = () => {{ const d = document.getElementById("f").contentDocument; '
        'document.title = `${d.documentElement.scrollWidth} ${[...d.images].every(i => i.complete && i.naturalWidth)}`}</script>'
    )  # fmt: skip
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        "--v=0",
    ]
    more = [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([BROWSER, *flags, *more, frame.as_uri()],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    found = re.search(r"<title>(\d+) (true|false)</title>", done.stdout)
    assert found, done.stderr[-2000:]
    assert int(found[1]) <= width and found[2] == "true"
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    assert page.stat().st_size < 5 << 20
