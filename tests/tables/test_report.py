# SPDX-License-Identifier: Apache-2.0
"""The pages, of a suite and of a run: everything inside, nothing fetched, nothing executed, and a browser shows them."""

import random
import re
import shutil
import subprocess

import pytest
from PIL import Image

from eldistill.errors import Problem
from eldistill.tables import gallery, report
from eldistill.tables import page as page_parts
from eldistill.tables import sheet as sheets
from eldistill.tables import suite as tables
from eldistill.tables.page import picture
from tests.tables import test_tables
from tests.tables.test_tables import NAMES, PARAMS, suite  # noqa: F401  (the fixture)


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
    made = tables.make_tables(params, root, parts)
    params |= {"steps": {"data": 6, "distil": len(runs), "tables": 1}}
    report.make_report(name, params, root, made, {path.name: path for path in parts}, folder / "report.html")
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
    assert not re.search(r'(src|href)="(?!data:|#|\.\./\.\./evaluations/)|<script|url\((?!#)|@import', text)
    assert text.count('src="data:image/') == 2 + 2 + 2  # real and teacher; an arm each; and its strip
    assert text.count('<div class="wide chart"') == 3 and text.count("<svg viewBox") == 3  # figures
    assert all(word in text for word in ("c0ffee", "0123456789ab", "python -m eldistill distil toy/di/el/1"))
    assert all(f"../../evaluations/{run}/sheet.html" in text for run in runs)
    assert "<b>distil</b>6 steps" in text and "<b>tables</b>1 step<" in text


def test_what_was_run_has_the_seeds_of_each_supplement():
    """Supplements of one method with other seeds stand in lines of their own."""
    runs = [
        f"toy/di/{name}/{seed}" for name, count in (("none", 3), ("el", 1), ("pixel-mmd", 3)) for seed in range(count)
    ]
    text = report._what(PARAMS | {"runs": runs}, ["toy"])
    assert "<td>toy, DI</td><td>no supplement, pixel MMD</td><td>0, 1, 2</td><td>toy/di: none, pixel-mmd</td>" in text
    assert "<td>toy, DI</td><td>EL</td><td>0</td><td>toy/di: el</td>" in text


def test_what_was_published_elsewhere_is_folded_away(page):
    """Figures of other data are not in the table of ours, and say that they compare with nothing."""
    text = page.read_text()
    inside = next(each for each in re.findall(r"<details>(.*?)</details>", text, re.S) if "What was published" in each)
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
    assert "2026" not in texts[0] and not re.search(r'(src|href)="(?!data:|#)|<script', texts[0])
    assert "<h1>toy: Diff-Instruct + Embedding Loss (EL), seed 0</h1>" in texts[0]
    assert (
        "<td>Fréchet distance</td><td>judge A</td><td>0.500</td><td>1.00</td><td>5,000</td><td>fd5k_judge-a</td>"
        in texts[0]
    )
    (root / f"data/runs/{runs[0]}/log.csv").write_text("n_images,a\n1,x\n")
    with pytest.raises(Problem, match="log.csv is damaged"):
        sheets.make_sheet(runs[0], root, path)


# --- a large suite ------------------------------------------------------------------------------------

ARMS = [(m, s) for m in ("di", "dmd") for s in ("none", "el", "pixel-mmd", "regression+el")]
DATAS = ("digits", "cifar10-cond")


def grid_picture(path, draw, width=4, names=0):
    """A grid of noise, as evaluations write it; with names of classes at its left it is wider."""
    image = Image.effect_noise((37 * width + names, 37 * 4), 20 + draw.random() * 60).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def add_large_suite(root):
    """Two data settings, one of them with classes, and eight arms of three seeds: EL helps much, pixel MMD harms."""
    draw, runs = random.Random(0), []
    for data in DATAS:
        test_tables.add_reference_runs(root, data)
        for which in ("real", "teacher"):
            grid_picture(root / f"data/evaluations/{data}/{which}/samples.png", draw, names=30 * (data != DATAS[0]))
        for method, supplement in ARMS:
            factor = {"none": 1.0, "el": 0.6, "pixel-mmd": 1.5}.get(supplement, 0.95)
            for seed in range(3):
                run = f"{data}/{method}/{supplement}/{seed}"
                value = factor * (2 + 0.02 * seed) + draw.uniform(-0.01, 0.01) * (40 if factor == 0.95 else 1)
                test_tables.add_run(root, run, value, tuple(value * k for k in (9, 5, 2, 1)))
                for name in ("samples", "interpolation"):
                    wide = 30 * (data != DATAS[0] and name == "samples")
                    grid_picture(root / f"data/evaluations/{run}/{name}.png", draw, names=wide)
                runs.append(run)
    return runs


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The page of a large suite, made once: to read only."""
    root = tmp_path_factory.mktemp("large")
    return make(root, add_large_suite(root), "large")


def test_the_page_begins_with_the_answer(large):
    """The claim, its certainty, the plot of all comparisons and the images come before the tables, curves and runs."""
    text = large.read_text()
    claim = re.search(r'<p class="claim">(.*?)</p>', text)[1]
    assert claim.startswith("4 of 12 arms lower the Fréchet distance to held-out images, compared with no supplement, ")
    assert re.search(
        r"most of all DM?D?I? \+ EL \([^:]*\): −40\.\d\u00a0% \[−4[^;]*; 4 of 12 arms raise it, most of all ", claim
    ), claim
    order = [
        'class="claim"',
        'class="forest"',
        'id="samples"',
        "<table",
        'class="wide chart"',
        'id="checks"',
        'id="runs"',
    ]
    places = [text.index(each) for each in order]
    assert places == sorted(places)
    assert len(re.findall(r'<li class="[a-z ]*(?:sure|open|low|high)">', text)) == 12


def test_sentences_with_p_values_are_folded(large):
    text = large.read_text()
    outside = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert "Holm over" in text and "Holm over" not in outside and "t-intervals" not in outside
    assert outside.count("<h3>") >= 2 and "CIFAR-10, with classes" in outside


def test_a_grid_with_classes_is_shown_as_it_is(large):
    """Other grids are cut to four rows, until they are enlarged."""
    root = large.parents[3]
    assert gallery._cut(root / f"data/evaluations/{DATAS[1]}/real/samples.png", 4) is None
    test_tables.picture(root / "square.png", 37)
    with Image.open(root / "square.png") as file:
        file.resize((148, 296)).save(root / "tall.png")
    assert gallery._cut(root / "tall.png", 4) == (4, 4)


def test_a_page_with_many_photographs_has_at_most_five_megabytes(tmp_path):
    """Many arms with grids of noise, which no format makes smaller."""
    runs = [f"photos/di/el-{i}/0" for i in range(24)]
    large = Image.effect_noise((512, 512), 90).convert("RGB")
    for folder in ("photos/real", "photos/teacher", *runs):
        for name in ("samples", "interpolation"):
            path = tmp_path / f"data/evaluations/{folder}/{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent.name == "real" and name == "samples":
                large.save(path)
                first = path
            elif not path.exists():
                path.hardlink_to(first)
    made = gallery.samples({"runs": runs, "grid": 8}, tmp_path) + gallery.strips({"runs": runs, "grid": 8}, tmp_path)
    assert made.count("data:image/jpeg") == 50 and len(made) < 3_500_000
    assert "Large pictures are stored smaller here" in made
    many = [f"photos/di/el-{i}/0" for i in range(1000)]
    assert gallery._left_out(many, tmp_path)[0].startswith("These are 200 of 1000 arms")
    assert 400 * max(page_parts.LEAST, gallery._most(many)) * 4 / 3 < 4_000_000


# --- in a browser -------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# In the frame: its width; whether all images were shown; texts that overlap, outside of what scrolls by itself; cells that overflow.
LOOK = """
const d = document.getElementById("f").contentDocument, w = d.createTreeWalker(d.body, NodeFilter.SHOW_TEXT), rects = [];
while (w.nextNode()) {
  const n = w.currentNode, e = n.parentElement;
  if (!n.data.trim() || e.closest(".wide") || !e.checkVisibility({contentVisibilityAuto: true})) continue;
  const r = d.createRange(); r.selectNodeContents(n);
  for (const b of r.getClientRects()) if (b.width > 1) rects.push([b.left, b.top + 3, b.right, b.bottom - 3, n.data.trim()]);
}
const hits = [];
for (let i = 0; i < rects.length; i++) for (let j = 0; j < i; j++) {
  const a = rects[i], b = rects[j];
  if (a[0] < b[2] - 1 && b[0] < a[2] - 1 && a[1] < b[3] - 1 && b[1] < a[3] - 1) hits.push(a[4] + " on " + b[4]);
}
for (const c of d.querySelectorAll("th, td")) if (c.scrollWidth > c.clientWidth + 1) hits.push("cell " + c.textContent);
for (const r of rects) if (r[2] > d.documentElement.clientWidth + 1) hits.push("outside " + r[4]);
document.title = d.documentElement.scrollWidth + " " + [...d.images].every(i => i.complete && i.naturalWidth) + " " + hits.join("; ");
"""


def look(path, tmp_path, width, dark=False):
    """(width of the page, whether all images are shown, what overlaps, the console). A window of Chromium is at least 500 wide: the
    phone is a frame in it."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!doctype html><link rel="icon" href="data:,"><body style="margin:0"><iframe id="f" src="{path.as_uri()}" style="border:0" '
        f'width="{width}" height="2000"></iframe><script>onload = () => {{ {LOOK} }}</script>'
    )  # fmt: skip
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        "--v=0",
    ]
    flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    more = [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([BROWSER, *flags, *more, frame.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>(\d+) (true|false) (.*?)</title>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return int(found[1]), found[2] == "true", found[3], done.stderr


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_a_complaint(large, tmp_path, width):
    """Headless, at the width of a desk and of a phone: no message on the console, nothing wider than the window but what scrolls
    by itself, no text on another, less than 5 MB."""
    wide, complete, hits, console = look(large, tmp_path, width)
    assert wide <= width and complete and not hits, hits
    assert "CONSOLE" not in console, console[-2000:]
    assert large.stat().st_size < 5_000_000


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_a_browser_shows_the_sheet_of_a_run_on_a_phone(suite, tmp_path):  # noqa: F811
    root, runs = suite
    add_pictures(root, runs)
    sheets.make_sheet(runs[0], root, root / "sheet.html")
    wide, complete, hits, console = look(root / "sheet.html", tmp_path, 390, dark=True)
    assert wide <= 390 and complete and not hits and "CONSOLE" not in console, (wide, hits, console[-2000:])
