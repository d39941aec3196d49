# SPDX-License-Identifier: Apache-2.0
"""Paths of the package, and of the files and folders of a project relative to its root."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parent
SCRATCH = "data/scratch"  # everything that can be made again: recipes, downloads, states, locks
STATE = f"{SCRATCH}/state"  # one folder for each unfinished training
FOLDERS = ("data/sets", "data/teachers", "data/ensembles", "data/runs", "data/evaluations")  # folders of results
# Files of a suite's step `tables`; the recipe lies beside the first one.
TABLES = (
    "main.csv", "main.md", "main.tex", "main-wide.tex", "runs.csv", "curves.csv", "published.csv",
    "spaces.csv", "spaces.md", "spaces.tex",
    *(f"{stem}.{ending}" for stem in ("curves", "costs", "ratios") for ending in ("png", "pdf", "svg")),
    "curves-panels.pdf", "samples.png", "report.html",
)  # fmt: skip
TABLE_NAMES = tuple(
    dict.fromkeys(name.split(".")[0] for name in TABLES)
)  # file names without endings; a study cannot have one of these names
STUDY = rf"(?!(?:{'|'.join(TABLE_NAMES)})\.)[^/.]+"  # regular expression for the name of a study in Snakemake's rules
# Of the files of a study: its table, page, figure, runs, the summary over feature spaces, the figure again, and the page for a browser.
STUDY_ENDINGS = ("csv", "md", "png", "runs.csv", "spaces.csv", "pdf", "svg", "html")


def is_result(path: str | os.PathLike[str]) -> bool:
    """Whether a step of the project in the current folder, or of the one that the path lies in, makes the file. Any other file is a
    user's own, which no message tells to delete."""
    name = Path(path)
    if f"/{SCRATCH}/" in f"/{name.as_posix()}" or (name.parent / f"{name.name}.recipe").exists():
        return True
    inside = Path(os.path.relpath(name)).as_posix()
    return any(inside.startswith(f"{folder}/") for folder in (*FOLDERS, SCRATCH, "data/tables"))
