# SPDX-License-Identifier: Apache-2.0
"""Images of a report: a grid of real images, of the teacher and of each arm, and strips from one noise to another."""

from __future__ import annotations

import html
from collections.abc import Collection
from pathlib import Path

from eldistill.errors import Problem, edge
from eldistill.files import make_again
from eldistill.tables import names
from eldistill.tables.grids import SAMPLE_ROWS, elsewhere, with_pictures
from eldistill.tables.page import LARGE, folded, picture

COVERED_BY = "report"
BUDGET = 2_000_000  # bytes of all pictures of a page together, before base64 adds a third
ARMS = 200  # that a page shows at most
REFERENCES = {"real": "real images", "teacher": "teacher"}


def _arms(runs: list[str]) -> dict[str, list[str]]:
    # {data setting: the first run of each of the first ARMS arms}, in the order of the suite; the arms of a method stand together.
    first = {run.rsplit("/", 1)[0]: run for run in sorted(runs, key=lambda run: -int(run.rsplit("/", 1)[1]))}
    arms = list(dict.fromkeys(run.rsplit("/", 1)[0] for run in runs))
    methods = list(dict.fromkeys(arm.rsplit("/", 1)[0] for arm in arms))
    found: dict[str, list[str]] = {}
    for arm in sorted(arms[:ARMS], key=lambda arm: methods.index(arm.rsplit("/", 1)[0])):
        found.setdefault(arm.split("/")[0], []).append(first[arm])
    return found


def _most(runs: list[str]) -> int:
    # Bytes that each picture of the page may have.
    arms = _arms(runs)
    if not arms:
        return LARGE
    return min(LARGE, BUDGET // (2 * sum(map(len, arms.values())) + 2 * len(arms)))


def samples(params: dict, root: Path, absent: Collection[str] = ()) -> str:
    """The first images of real data, of the teacher and of each arm's lowest seed, as HTML; the arms of a method follow each other.

    params: runs, and grid, the number of images in a row. root: folder that contains data/evaluations. absent: paths of pictures
    that kept results lack; the number of those left out is said. Raises Problem for a missing or damaged picture."""
    said = ["<p>Teacher and generators start from the same noise at the same place, and nothing is selected. A generator need not map "
            "a noise to its teacher's image. Choose a grid to see all of its images.</p>"]  # fmt: skip
    there = with_pictures(params["runs"], absent)
    arms, most = _arms(there), _most(params["runs"])
    said += [f"<p>{html.escape(note)}</p>" for note in _left_out(there, root)]
    references = [f"{data}/{which}" for data in {run.split("/")[0] for run in params["runs"]} for which in REFERENCES]
    if lost := _count(params["runs"]) - _count(there) + len(references) - len(with_pictures(references, absent)):
        said.append(f"<p>{elsewhere(lost)}</p>")
    for data, runs in arms.items():
        if len(arms) > 1:
            said.append(f"<h3>{html.escape(names.data_name(data).text)}</h3>")
        grids = [(text, f"{data}/{which}") for which, text in REFERENCES.items()] + [(_label(run), run) for run in runs]
        here = with_pictures((folder for _, folder in grids), absent)
        said.append('<div class="grids">')
        for text, folder in ((text, folder) for text, folder in grids if folder in here):
            path = root / f"data/evaluations/{folder}/samples.png"
            said.append(picture(text, path, most, _cut(path, params["grid"]), folder))
        said.append("</div>")
    return "\n".join(said)


def _count(runs: list[str]) -> int:
    # The number of arms.
    return len({run.rsplit("/", 1)[0] for run in runs})


def _left_out(runs: list[str], root: Path) -> list[str]:
    # What the page does not have, so that it stays small.
    shown = [run for each in _arms(runs).values() for run in each]
    every, most = _count(runs), _most(runs)
    paths = [root / f"data/evaluations/{run}/samples.png" for run in shown]
    notes = []
    if len(shown) < every:
        notes.append(f"These are {len(shown)} of {every} arms; the images of the others are in data/evaluations.")
    if any(path.exists() and path.stat().st_size > most for path in paths):
        notes.append("Large pictures are stored smaller here; data/evaluations has them in full.")
    return notes


def _label(run: str) -> str:
    _, method, supplement, seed = run.split("/")
    return f"{names.arm_name(method, supplement).short} (seed {seed})"


def _cut(path: Path, columns: int) -> tuple[int, int] | None:
    # A grid with classes has a row for each, and perhaps names at its left: it is shown as it is.
    from PIL import Image

    try:
        with edge(path, make_again(path)), Image.open(path, formats=("PNG",)) as file:
            side, rest = divmod(file.width, columns)
            plain = not rest and side and not file.height % side and file.height // side > SAMPLE_ROWS
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    return (columns, SAMPLE_ROWS) if plain else None


def strips(params: dict, root: Path, absent: Collection[str] = ()) -> str:
    """Images on the way from one noise to another, a strip for each arm that is not among the paths `absent`, folded."""
    arms, most = _arms(with_pictures(params["runs"], absent, "interpolation.png")), _most(params["runs"])
    made = []
    for data, runs in arms.items():
        for run in runs:
            text = f"{names.data_name(data).short}, {_label(run)}" if len(arms) > 1 else _label(run)
            made.append(picture(text, root / f"data/evaluations/{run}/interpolation.png", most, title=run))
    if not made:
        return ""
    body = f'<div class="grids">{"".join(made)}</div>'
    return folded("Images from one noise to another, for each arm", body)
