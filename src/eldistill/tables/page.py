# SPDX-License-Identifier: Apache-2.0
"""Parts of self-contained HTML pages: the document, tables, embedded pictures and figures, and folded text."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from eldistill.errors import Problem, edge
from eldistill.files import make_again
from eldistill.tables import names
from eldistill.tables.vector import inline_svg

COVERED_BY = "report"
LARGE = 150_000  # bytes of a picture above which it is stored as JPEG; fewer on a page with many pictures
LEAST = 4_000  # bytes that every picture may have
VECTOR = 900_000  # characters of an inline figure; a larger one is embedded as pixels
STYLE = """
:root { color-scheme: light dark; --line: #8886; --paper: Canvas; --grey: #666; --blue: #0072B2; --shade: #0003; }
@media (prefers-color-scheme: dark) { :root { --grey: #A0A0A0; --blue: #56B4E9; --shade: #FFF4; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
a { color: LinkText; }
.claim { font-size: 1.35rem; line-height: 1.35; font-weight: bold; margin: .5rem 0; max-width: 60rem; }
.claim + p { max-width: 60rem; }
.wide { overflow-x: auto; margin: .5rem 0; background:
  linear-gradient(to right, var(--paper) 60%, transparent) left / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 60%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / .8rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / .8rem 100% no-repeat scroll; }
table { border-collapse: separate; border-spacing: 0; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: right; vertical-align: top; }
th { vertical-align: bottom; min-width: 4.2rem; max-width: 9rem; line-height: 1.25; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); min-width: 14.5rem;
  max-width: 18rem; border-right: 1px solid var(--line); z-index: 1; }
td { white-space: nowrap; }
td:first-child { white-space: normal; overflow-wrap: anywhere; }
.text th:first-child, .text td:first-child { min-width: 6rem; }
tr.group > * { border-top: 2px solid var(--line); }
tr.reference { font-style: italic; }
.text th { text-align: left; max-width: none; }
.text td { text-align: left; white-space: normal; min-width: 5rem; }
.names td:nth-child(2), .names th:nth-child(2) { text-align: left; }
.names td:last-child, .names th:last-child { text-align: left; }
.names td:last-child { font-family: monospace; }
.cue { display: none; font-size: .85rem; margin: 0; }
img { max-width: 100%; height: auto; background: white; }
figure { margin: 1rem 0; }
figcaption, .note { font-size: .85rem; opacity: .85; }
code { font-size: .9em; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
summary { cursor: pointer; padding: .3rem 0; }
details ul { font-size: .9rem; padding-left: 1.2rem; }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(11rem, 45%), 1fr)); gap: .8rem; align-items: start; }
.grids figure { margin: 0; }
.grids figcaption { line-height: 1.25; }
.zoom { display: block; position: relative; max-width: 36rem; }
.zoom input { position: absolute; opacity: 0; }
.zoom img { width: 100%; image-rendering: pixelated; cursor: zoom-in; object-fit: cover; object-position: top; display: block; }
.grids .zoom img { image-rendering: auto; }
.zoom input:focus-visible + img { outline: 3px solid var(--blue); }
.zoom input:checked + img { position: fixed; inset: 0; width: 100vw; height: 100vh; max-width: none; object-fit: contain;
  aspect-ratio: auto !important; image-rendering: pixelated !important; object-position: center;
  background: #000d; z-index: 9; cursor: zoom-out; }
.chart svg { display: block; width: 100%; min-width: 36rem; max-width: 58rem; height: auto; fill: currentColor; }
.chart svg * { stroke-linejoin: round; stroke-linecap: butt; }
.chart svg text { fill: currentColor; font-family: "DejaVu Sans", Verdana, system-ui, sans-serif; }
.flow { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; padding: 0; list-style: none; }
.flow li { border: 1px solid var(--line); border-radius: .4rem; padding: .3rem .7rem; text-align: center; position: relative; }
.flow li + li { margin-left: 1.2rem; }
.flow li + li::before { content: "→"; position: absolute; left: -1.5rem; top: .6rem; }
.flow b { display: block; }
.alarm { border-left: 4px solid #D55E00; padding-left: .8rem; }
@media (max-width: 40rem) {
  th:first-child, td:first-child { min-width: 5.5rem; max-width: 7.5rem; white-space: normal;
    overflow-wrap: anywhere; }
  .cue { display: block; } .claim { font-size: 1.2rem; } .flow li + li { margin-left: 1rem; } }
@media print { :root { font-size: 11px; color-scheme: light; --paper: white; --grey: #666; --blue: #0072B2; }
  body { max-width: none; font-size: 1rem; padding: 0; } .wide { overflow: visible; background: none; } table { font-size: 8px; }
  th, td { padding: .15rem .3rem; min-width: 0; } nav, .cue { display: none; } figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } td { white-space: normal; } th:first-child, td:first-child { position: static; min-width: 0; }
  .chart svg { min-width: 0; max-height: 24cm; } .grids { grid-template-columns: repeat(6, 1fr); } .zoom input { display: none; } }
"""


def document(title: str, parts: Sequence[str], style: str = "") -> str:
    """A complete HTML page. title: text. parts: HTML. style: CSS beside STYLE."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )  # fmt: skip


def short_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    css: str = "",
    kinds: Sequence[str] = (),
    titles: Sequence[str] = (),
    label: str = "table",
) -> str:
    """An HTML table of texts, which are escaped; it scrolls by itself below its first column, which stays.

    head: one text for each column. css: class of the table. kinds: class of each row. titles: of each row, shown where a mouse rests
    on its first cell. label: what the table has, for readers who hear the page."""
    lines = ["<tr>" + "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head) + "</tr>"]
    for place, row in enumerate(rows):
        kind = f' class="{kinds[place]}"' if kinds and kinds[place] else ""
        title = f' title="{html.escape(titles[place])}"' if titles and titles[place] else ""
        first = f"<td{title}>{html.escape(unbroken(row[0]))}</td>"
        lines.append(f"<tr{kind}>{first}" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:]) + "</tr>")
    style = f' class="{css}"' if css else ""
    cue = '<p class="cue">Scroll this table sideways →</p>' if len(head) > 3 and "text" not in css else ""
    return (
        f'{cue}<div class="wide" tabindex="0" role="region" aria-label="{html.escape(label)}"><table{style}>'
        + "".join(lines)
        + "</table></div>"
    )


def folded(summary: str, body: str) -> str:
    """HTML below a line that opens it. summary: text."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def bullets(texts: Sequence[str]) -> str:
    """A list of texts, in which `names` become code."""
    return "<ul>" + "".join(f"<li>{inline(text)}</li>" for text in texts) + "</ul>"


def inline(text: str) -> str:
    """A text as HTML, with `names` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def unbroken(text: str) -> str:
    """A text in which no line breaks between a number and its percent or times sign."""
    return text.replace(" %", "\u00a0%").replace("× ", "×\u00a0")


def notice(text: str) -> str:
    """A marked box: a paragraph of Markdown with **bold** words, and the items of a list below it; nothing for no text."""
    lines = text.strip().splitlines()
    if not lines:
        return ""
    items = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    told = " ".join(line for line in lines if line and not line.startswith("- "))
    bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", inline(told))
    return f'<div class="alarm"><p>{bold}</p>{bullets(items) if items else ""}</div>'


def true_minus(text: str) -> str:
    """A text whose numbers have a minus sign in place of a hyphen."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def figure(caption: str, vector: Path, pixels: Path) -> str:
    """A figure of the suite as inline SVG, which scrolls on a phone. One that is too large for a page is embedded as pixels.

    vector, pixels: its files. Raises Problem for a missing or damaged file."""
    drawn = inline_svg(vector)
    if len(drawn) > VECTOR:
        drawn = f'<img alt="{html.escape(caption)}" src="{source(pixels, VECTOR // 2)}">'
    return (
        f'<figure><p class="cue">Scroll this figure sideways →</p><div class="wide chart" tabindex="0" role="region" '
        f'aria-label="{html.escape(caption)}">{drawn}</div><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def picture(caption: str, path: Path, most: int = LARGE, rows: tuple[int, int] | None = None, title: str = "") -> str:
    """A picture that is embedded in the page. A click, a touch or the space bar enlarges it to the window.

    most: bytes it may have. rows: (images in a row, rows) to which it is cut until it is enlarged. title: shown where a mouse rests.
    Raises Problem if the file is missing."""
    cut = f' style="aspect-ratio: {rows[0]} / {rows[1]}"' if rows else ""
    tag = f'<img alt="{html.escape(caption)}" src="{source(path, most)}"{cut}>'
    tag = f'<label class="zoom"><input type="checkbox" aria-label="enlarge: {html.escape(caption)}">{tag}</label>'
    hint = f' title="{html.escape(title)}"' if title else ""
    return f"<figure{hint}>{tag}<figcaption>{html.escape(caption)}</figcaption></figure>"


BESIDE = "These links lead to files beside this page, which are there once the workflow has run or DVC has pulled them."


def evaluation_link(run: str, file: str, text: str) -> str:
    """A link from a page in data/tables/SUITE to a file of the evaluation of a run, DATA/METHOD/SUPPLEMENT/SEED. text: HTML."""
    return f'<a href="../../evaluations/{html.escape(run)}/{file}">{text}</a>'


def sheet_links(runs: Sequence[str]) -> str:
    """A list with a line for each arm, in which each seed is a link to the page of its run, and a sentence on where these pages are."""
    arms: dict[tuple[str, ...], list[str]] = {}
    for run in dict.fromkeys(runs):
        arms.setdefault(tuple(run.split("/")[:3]), []).append(run)
    several, items = len({arm[0] for arm in arms}) > 1, []
    for (data, method, supplement), each in arms.items():
        arm = names.arm_name(method, supplement).short
        links = " ".join(evaluation_link(run, "sheet.html", f"seed {run.rsplit('/', 1)[1]}") for run in each)
        items.append(f"<li>{html.escape(f'{names.data_name(data).short}, {arm}' if several else arm)}: {links}</li>")
    return f"<p>Curves, training log, images and every metric. {BESIDE}</p><ul>{''.join(items)}</ul>"


def source(path: Path, most: int = LARGE) -> str:
    """The address of an embedded picture. A file of more than `most` bytes becomes JPEG, and smaller until it fits."""
    try:
        content, kind = path.read_bytes(), "png"
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    if len(content) > most:
        smaller = _jpeg(path, content, max(most, LEAST))
        if len(smaller) < len(content):
            content, kind = smaller, "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _jpeg(path: Path, content: bytes, most: int) -> bytes:
    from PIL import Image

    with edge(path, make_again(path)), Image.open(io.BytesIO(content), formats=("PNG",)) as file:
        image = file.convert("RGB")
    while True:
        stored = io.BytesIO()
        image.save(stored, format="JPEG", quality=88, optimize=True)
        if len(stored.getvalue()) <= most or max(image.size) < 64:
            return stored.getvalue()
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)), Image.Resampling.LANCZOS)
