# SPDX-License-Identifier: Apache-2.0
"""Parts of self-contained HTML pages: the style, tables, embedded pictures, and conversion of Markdown to HTML."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

from eldistill.errors import Problem, edge
from eldistill.files import make_again

COVERED_BY = "report"
BLUE = "#0072B2"
LARGE = 150_000  # bytes of a PNG above which it is stored as JPEG
STYLE = """
:root { color-scheme: light dark; --line: #8886; --paper: Canvas; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: right; vertical-align: top; }
th { vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; position: sticky; left: 0; background: var(--paper); }
td { white-space: nowrap; }
.text th { text-align: left; }
.text td { text-align: left; white-space: normal; min-width: 5rem; }
img { max-width: 100%; height: auto; background: white; }
figure { margin: 1rem 0; }
figcaption, .note { font-size: .85rem; opacity: .8; }
code { font-size: .9em; overflow-wrap: anywhere; }
nav a { margin-right: 1rem; }
summary { cursor: pointer; }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.grids figure { margin: 0; }
.zoom { display: block; position: relative; max-width: 36rem; }
.zoom input { position: absolute; opacity: 0; }
.zoom img { width: 100%; image-rendering: pixelated; cursor: zoom-in; }
.zoom input:focus-visible + img { outline: 3px solid #0072B2; }
.zoom input:checked + img { position: fixed; inset: 0; width: 100vw; height: 100vh; max-width: none; object-fit: contain;
  background: #000d; z-index: 9; cursor: zoom-out; }
.chart svg { max-width: 100%; height: auto; background: white; }
.flow { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; padding: 0; list-style: none; }
.flow li { border: 1px solid var(--line); border-radius: .4rem; padding: .3rem .7rem; text-align: center; position: relative; }
.flow li + li { margin-left: 1.2rem; }
.flow li + li::before { content: "→"; position: absolute; left: -1.5rem; top: .6rem; }
.flow b { display: block; }
@media (max-width: 40rem) {
  th:first-child, td:first-child { white-space: normal; max-width: 7rem; }
  .plot img { max-width: 46rem; } }
@media print { body { max-width: none; font-size: 11px; } .wide { overflow: visible; } table { font-size: 7px; }
  th, td { padding: .15rem .25rem; } nav { display: none; } figure, tr { break-inside: avoid; }
  .plot img { width: auto; max-width: 100%; } td { white-space: normal; }
  th:first-child, td:first-child { position: static; } .zoom input { display: none; } }
"""


def short_table(head: list[str], rows: list[list[str]], css: str = "") -> str:
    """An HTML table of texts, which are escaped. head: one text for each column. css: class of the table."""
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table class="{css}">{body}</table></div>'


def picture(caption: str, path: Path, zoom: bool = True) -> str:
    """A figure that is embedded in the page. With `zoom` a click, a touch or the space bar enlarges it to the window.

    Raises Problem if the file is missing."""
    tag = f'<img alt="{html.escape(caption)}" src="{_source(path)}">'
    if zoom:
        tag = f'<label class="zoom"><input type="checkbox" aria-label="enlarge: {html.escape(caption)}">{tag}</label>'
    else:
        tag = f'<div class="wide plot">{tag}</div>'  # on a phone it can be scrolled
    return f"<figure>{tag}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _source(path: Path) -> str:
    # Large files are stored as JPEG, because grids of photographs would take megabytes as PNG.
    try:
        content, kind = path.read_bytes(), "png"
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    if len(content) > LARGE:
        from PIL import Image

        with edge(path, make_again(path)), Image.open(io.BytesIO(content), formats=("PNG",)) as file:
            stored = io.BytesIO()
            file.convert("RGB").save(stored, format="JPEG", quality=88, optimize=True)
        if len(stored.getvalue()) < len(content):
            content, kind = stored.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def markdown_to_html(text: str) -> str:
    """Convert the subset of Markdown that typeset.py writes to HTML: headings, tables, lists, paragraphs and `code`."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.split("\n")
        if lines[0].startswith("#"):
            level = len(lines[0]) - len(lines[0].lstrip("#"))
            level += level > 1  # below the headings of the page
            blocks.append(f"<h{level}>{_inline(lines[0].lstrip('# '))}</h{level}>")
        elif lines[0].startswith("|"):
            cells = [[_inline(cell.strip()) for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
            tags = ["th"] + ["td"] * (len(cells) - 1)
            rows = ["".join(f"<{tag}>{cell}</{tag}>" for cell in row) for tag, row in zip(tags, cells, strict=True)]
            blocks.append('<div class="wide"><table>' + "".join(f"<tr>{row}</tr>" for row in rows) + "</table></div>")
        elif lines[0].startswith("- "):
            blocks.append("<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>")
        else:
            blocks.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "\n".join(blocks)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
