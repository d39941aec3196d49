# SPDX-License-Identifier: Apache-2.0
"""The picture samples.png of a suite: real images, then the first images of the teacher and of each arm, with labels."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eldistill.errors import Problem, edge
from eldistill.files import atomic, make_again
from eldistill.tables import names
from eldistill.tables.results import Result, arms_of

COVERED_BY = "plots"
SAMPLE_ROWS = 4  # of images without classes; with classes a grid has a row for each, and all are shown
WIDTH = 576  # pixels that a grid is enlarged to at most, by an integer factor
LABEL, GAP, FONT = 40, 24, 26  # pixels
PAIRED = "Teacher and generators start from the same noise at the same place. Nothing is selected."


@dataclass(frozen=True)
class Grid:
    """A grid of images with its label. folder: where its samples.png is, below data/evaluations."""

    label: str
    folder: str


def _picture(path: Path, columns: int) -> Any:
    # The first rows of a grid of square images, enlarged by an integer factor, so that no pixel is blurred.
    from PIL import Image

    try:
        with edge(path, make_again(path)), Image.open(path, formats=("PNG",)) as file:
            picture = file.convert("RGB")
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    side, rest = divmod(picture.width, columns)
    if not rest and side and not picture.height % side:  # names of classes at the left would make the grid wider
        picture = picture.crop((0, 0, picture.width, min(picture.height, SAMPLE_ROWS * side)))
    scale = max(1, WIDTH // picture.width)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def with_pictures(names: Iterable[str], absent: Collection[str], file: str = "samples.png") -> list[str]:
    """The runs and reference runs among `names` whose picture is not among the paths `absent`."""
    return [name for name in names if f"data/evaluations/{name}/{file}" not in absent]


def elsewhere(number: int) -> str:
    """A sentence on the pictures that are left out; nothing for none. number: of them."""
    if not number:
        return ""
    return f"{number} picture{'s are' if number > 1 else ' is'} left out: kept results have none, and the runs were made elsewhere."


def _lines(results: list[Result]) -> list[list[Grid]]:
    # Grids that stand beside each other: real images and the teacher, and then the arms of each method, three at most.
    lines: dict[tuple[str, str], list[Grid]] = {}
    for (data, method, supplement), group in arms_of(results).items():
        name, run = names.data_name(data).short, min(group, key=lambda result: result.seed)
        lines.setdefault(
            (data, ""), [Grid(f"{name}: real images", f"{data}/real"), Grid(f"{name}: teacher", f"{data}/teacher")]
        )
        label = f"{names.arm_name(method, supplement).short} (seed {run.seed})"
        lines.setdefault((data, method), []).append(Grid(label, run.run))
    order = sorted(lines, key=lambda place: list(dict.fromkeys(data for data, _ in lines)).index(place[0]))
    return [lines[place][i : i + 3] for place in order for i in range(0, len(lines[place]), 3)]


def draw_samples(path: Path, results: list[Result], params: dict, root: Path, absent: Collection[str] = ()) -> None:
    """Write samples.png: real images, the teacher and each arm (its lowest seed), with labels; a method starts a new line.

    params: grid, the number of images in a row. absent: paths of pictures that kept results lack; the number of those left out is
    said. Raises Problem for a missing or damaged picture."""
    shown = set(with_pictures((result.run for result in results), absent))
    wanted = [grid.folder for line in _lines(results) for grid in line]
    lines = _lines([result for result in results if result.run in shown])
    here = set(with_pictures((grid.folder for line in lines for grid in line), absent))
    lines = [there for line in lines if (there := [grid for grid in line if grid.folder in here])]
    _draw_board(path, lines, params, root, elsewhere(len(wanted) - sum(map(len, lines))))


def _draw_board(path: Path, lines: list[list[Grid]], params: dict, root: Path, missing: str) -> None:
    from PIL import Image, ImageDraw

    pictures = [
        [_picture(root / f"data/evaluations/{grid.folder}/samples.png", params["grid"]) for grid in line]
        for line in lines
    ]
    width = max((picture.width for line in pictures for picture in line), default=WIDTH)
    highs = [max(picture.height for picture in line) + LABEL + GAP for line in pictures]
    across = max(map(len, lines), default=1)
    note = f"{PAIRED} {missing}".rstrip() if lines else missing
    board = Image.new("RGB", (across * (width + GAP) + GAP, sum(highs) + LABEL + GAP // 2), "white")
    pen = ImageDraw.Draw(board)
    top = GAP // 2
    for line, found, high in zip(lines, pictures, highs, strict=True):
        for i, (grid, picture) in enumerate(zip(line, found, strict=True)):
            font = _font(_fitting(grid.label, width, FONT))
            pen.text((GAP + i * (width + GAP), top), grid.label, fill="black", font=font)
            board.paste(picture, (GAP + i * (width + GAP), top + LABEL))
        top += high
    pen.text((GAP, top), note, fill="#555555", font=_font(_fitting(note, board.width - 2 * GAP, 0.8 * FONT)))
    with atomic(path) as temporary:
        board.save(temporary, format="PNG", optimize=True)


def _fitting(text: str, width: int, largest: float) -> float:
    # The size of letters, `largest` or less, at which a text is at most this many pixels wide.
    return min(largest, FONT * width / max(1, _font(FONT).getlength(text)))


def _font(size: float) -> Any:
    # The letters of the figures, because Pillow's own font has no × and few letters of other languages.
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
