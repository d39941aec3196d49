# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page of a suite: the tables, the pictures, and where every number comes from."""

from __future__ import annotations

import base64
import csv
import html
import re
from pathlib import Path

from eldistill.files import write_text

VERSION = 1

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #8886; padding: .35rem .6rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
img { max-width: 100%; height: auto; background: white; image-rendering: auto; }
code { font-size: .9em; overflow-wrap: anywhere; }
.runs td { text-align: left; }
@media print { body { max-width: none; } .wide { overflow: visible; } table { font-size: .6rem; } }
"""


def make(markdown: Path, runs: Path, pictures: dict[str, Path], output: Path) -> None:
    """Write the page. markdown: main.md; runs: runs.csv; pictures: {caption: png}. Needs no network to be read."""
    figures = "".join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{_base64(path)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, path in pictures.items()
    )
    write_text(
        output,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>eldistill: {html.escape(output.parent.name)}</title><style>{STYLE}</style></head><body>\n"
        f"{to_html(markdown.read_text(encoding='utf-8'))}\n{figures}\n{_origins(runs)}\n</body></html>\n",
    )


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _origins(runs: Path) -> str:
    with open(runs, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ("metrics_file", "command", "git_commit", "recipe")
    body = "".join(
        "<tr>" + "".join(f"<td><code>{html.escape(row[c])}</code></td>" for c in columns) + "</tr>" for row in rows
    )
    head = "".join(f"<th>{name}</th>" for name in ("metrics", "made by", "git commit", "recipe"))
    return (
        f'<h2>Where the numbers come from</h2><div class="wide"><table class="runs"><tr>{head}</tr>{body}</table></div>'
    )


def to_html(text: str) -> str:
    """The Markdown that tables.py writes (headings, tables, lists, paragraphs, `code`) as HTML."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.split("\n")
        if lines[0].startswith("#"):
            level = len(lines[0]) - len(lines[0].lstrip("#"))
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
