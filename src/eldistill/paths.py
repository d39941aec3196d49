# SPDX-License-Identifier: Apache-2.0
"""Where things lie: the package itself, and files and folders of a project, below its root."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
SCRATCH = "data/scratch"  # what can be made again: recipes, downloads, states, locks
STATE = f"{SCRATCH}/state"  # of trainings that are not finished, a folder each
FOLDERS = ("data/sets", "data/teachers", "data/ensembles", "data/runs", "data/evaluations")  # of results
# Of a suite, beside its studies; the first carries the recipe.
TABLES = ("main.csv", "main.md", "main.tex", "runs.csv", "curves.csv", "published.csv", "curves.png", "costs.png", "radar.png",
          "samples.png", "report.html")  # fmt: skip
TABLE_NAMES = tuple(
    dict.fromkeys(name.split(".")[0] for name in TABLES)
)  # without endings; no study can have one of them
STUDY = rf"(?!(?:{'|'.join(TABLE_NAMES)})\.)[^/]+"  # Snakemake's pattern of one
