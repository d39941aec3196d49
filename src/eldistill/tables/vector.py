# SPDX-License-Identifier: Apache-2.0
"""Figures inside a page: an SVG file of matplotlib becomes a smaller inline SVG that follows the colours of the page."""

from __future__ import annotations

import re
from pathlib import Path

from eldistill.errors import Problem, edge
from eldistill.files import make_again

COVERED_BY = "report"
MOST = 30_000_000  # bytes of a file that is read
# In a page, what is white on paper takes the colour of the page, and black that of its text.
THEME = {"#ffffff": "var(--paper)", "#000000": "currentColor", "#666666": "var(--grey)", "#0072b2": "var(--blue)"}
# What figures of this project never contain, and what a browser would execute or fetch.
ACTIVE = re.compile(
    r"<(?:script|foreignObject|iframe|image|a)\b|\son\w+\s*=|href\s*=\s*[\"'](?!#)|url\((?!#)|@import", re.I
)
DROPPED = (r"<\?xml.*?\?>", r"<!DOCTYPE.*?>", r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style.*?</style>",
           r' id="(?![mp][0-9a-f]{10}\")[^"]*"', r' xmlns(:\w+)?="[^"]*"', r"font-family: [^;\"]*;? ?",
           r' transform="rotate\(-?0 [^)]*\)"')  # fmt: skip


def inline_svg(path: Path) -> str:
    """The content of an SVG file that figures.save wrote, to stand in HTML: one decimal place, no fonts, no metadata.

    Raises Problem for a missing, damaged or too large file, and for one with a script or an address."""
    try:
        with edge(path, make_again(path)), open(path, "rb") as file:
            content = file.read(MOST + 1)
            text = content.decode()
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    for pattern in DROPPED[:4]:
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    if len(content) > MOST or "<svg" not in text or ACTIVE.search(text):
        raise Problem(f"{path} is not a figure of this project; expected an SVG without scripts and addresses, of at most "
                      f"{MOST // 1_000_000} MB: {make_again(path)}")  # fmt: skip
    for pattern in DROPPED[4:]:
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    text = re.sub(r"font: (?:[a-z0-9]+ )*?([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'( (?:d|x|y|transform|points)=")([^"]*)"', lambda match: f'{match[1]}{_rounded(match[2])}"', text)
    for colour, ours in THEME.items():
        text = text.replace(colour, ours)
    text = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 role="img">', text, count=1)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _rounded(text: str) -> str:
    # A tenth of a point cannot be seen, but in a marker, which is a few points wide.
    shorter = re.sub(r"-?\d+\.\d+(?:e-?\d+)?", lambda match: _short(float(match[0])), text)
    return re.sub(r"\s*\n\s*", "", re.sub(r"\s*\n([A-Za-z]) ", r"\1", shorter))


def _short(value: float) -> str:
    return f"{round(value, 1 if abs(value) >= 10 else 2):zg}"
