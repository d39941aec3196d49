# SPDX-License-Identifier: Apache-2.0
"""The page: everything inside, nothing fetched, nothing executed."""

import re

from PIL import Image

from eldistill import report


def test_markdown_becomes_html():
    """Headings, tables, lists, code and paragraphs; text is escaped."""
    text = "# A <b>\n\n`fd` ranks.\nMore & more.\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n| 3 | 4 |\n\n- one\n- two\n"
    page = report.to_html(text)
    assert "<h1>A &lt;b&gt;</h1>" in page and "<p><code>fd</code> ranks. More &amp; more.</p>" in page
    assert "<tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr><tr><td>3</td><td>4</td></tr>" in page
    assert "<ul><li>one</li><li>two</li></ul>" in page


def test_the_page_needs_no_network(tmp_path):
    """Pictures are inside, no address is referred to, every run is listed with its origin; equal input, equal bytes."""
    (tmp_path / "main.md").write_text("# Suite x\n\n| a |\n| --- |\n| 1 |\n")
    (tmp_path / "runs.csv").write_text("metrics_file,command,git_commit,recipe\nm.json,python -m eldistill,abc,012\n")
    Image.new("L", (4, 4)).save(tmp_path / "p.png")
    pages = []
    for name in ("one.html", "two.html"):
        report.make(tmp_path / "main.md", tmp_path / "runs.csv", {"p": tmp_path / "p.png"}, tmp_path / name)
        pages.append((tmp_path / name).read_bytes())
    text = pages[0].decode()
    assert pages[0] == pages[1]
    assert not re.search(r"https?://|<script|<link", text) and 'src="data:image/png;base64,' in text
    assert all(word in text for word in ("m.json", "python -m eldistill", "abc", "012"))
