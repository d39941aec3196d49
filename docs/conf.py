# SPDX-License-Identifier: Apache-2.0
"""Settings of Sphinx for `make docs`: the pages of this folder, and the API out of the docstrings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from eldistill import __version__  # noqa: E402

project = "eldistill"
author = "The eldistill authors"
copyright = "the eldistill authors, Apache License 2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["reference/modules.rst"]
nitpicky = True  # a cross-reference in a page that leads nowhere is a warning, and `make docs` makes it an error

# --- pages ------------------------------------------------------------------------------------------------

myst_heading_anchors = 4  # as GitHub names the headings, so that one link serves both


def site_links(text: str) -> str:
    """The page with its links out of docs/ as the site needs them.

    In the repository a link names a file. On the site a module of the package is the page of its docstrings, and every
    other file is a copy that the site holds.
    """
    text = re.sub(r"\]\(\.\./src/eldistill/([\w/]+)\.py\)", lambda m: f"](#eldistill.{m[1].replace('/', '.')})", text)
    # The text of a link may go over two lines. A copy has no anchors.
    return re.sub(r"(?<!!)(\[[^\]\[]*\])\((\.\./[^)#]+)(?:#[^)]*)?\)", r"\1(<path:\2>)", text)


# --- docstrings -------------------------------------------------------------------------------------------

apidoc_modules = [
    {
        "path": "../src/eldistill",
        "destination": "reference",
        "separate_modules": True,
        "module_first": True,
        "include_private": False,
        "max_depth": 2,
        "automodule_options": {"members", "show-inheritance"},
    }
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
default_role = "code"
nitpick_ignore_regex = [("py:.*", ".*")]  # types in signatures, most of them other projects'
SECTION = re.compile(r"(Args|Arguments|Returns|Raises|Yields|Example|Examples|Attributes|Note|Source):\s*$")


def _escaped(line: str) -> str:
    """A line of a docstring without what reStructuredText would take for markup: `*`, `|`, and `_` at a word's end."""
    parts = re.split(r"(``.*?``|`[^`]*`)", line)
    outside = [re.sub(r"([*|])|(?<=\w)(_)(?!\w)", lambda m: "\\" + m[0], part) for part in parts[::2]]
    return "".join(a + b for a, b in zip(outside, [*parts[1::2], ""], strict=True))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def plain_docstring(lines: list[str]) -> list[str]:
    """Docstrings here are plain text: an indented block is shown as it is typed, unless it belongs to `Args:` and its like."""
    made: list[str] = []
    literal = section = False
    for number, line in enumerate(lines):
        if line.strip() and not _indent(line):
            literal, section = False, bool(SECTION.match(line))
        starts = line.strip() and _indent(line) and number and not lines[number - 1].strip()
        if starts and not literal and not section and not (made and "::" in "".join(made[-2:])):
            made += ["::", ""]
        literal = literal or bool(starts and not section)
        made.append(line if literal or section and SECTION.match(line) else _escaped(line))
    return made


def setup(app) -> None:
    """Sphinx calls this."""

    def read(app, name: str, source: list[str]) -> None:
        if (Path(app.srcdir) / f"{name}.md").exists():
            source[0] = site_links(source[0])

    def docstring(app, what, name, thing, options, lines: list[str]) -> None:
        lines[:] = plain_docstring(lines)

    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", docstring, priority=100)


# --- looks ------------------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "eldistill"
html_sidebars = {"**": ["globaltoc.html"]}
html_show_sourcelink = False
html_theme_options = {
    "navbar_center": [],
    "navbar_persistent": ["search-button"],
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_static_path = ["_static"]
html_css_files = ["eldistill.css"]
