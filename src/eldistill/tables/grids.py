# SPDX-License-Identifier: Apache-2.0
"""The picture samples.png of a suite: the first images of the teacher and of each arm, with labels."""

from __future__ import annotations

from pathlib import Path

from eldistill.errors import Problem, edge
from eldistill.files import atomic, make_again
from eldistill.tables.results import TEACHER, Result, arms_of

COVERED_BY = "plots"
SAMPLE_ROWS = 4


def _picture(path: Path, columns: int, width: int):
    # The first rows of a grid of square images, enlarged by an integer factor.
    from PIL import Image

    try:
        with edge(path, make_again(path)), Image.open(path, formats=("PNG",)) as file:
            picture = file.convert("RGB")
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    picture = picture.crop((0, 0, picture.width, min(picture.height, SAMPLE_ROWS * picture.width // columns)))
    scale = max(1, width // picture.width)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def draw_samples(path: Path, results: list[Result], params: dict, root: Path) -> None:
    """Write samples.png: the first images of the teacher and of each arm (its lowest seed), with labels, two panels in a row.

    params: grid, the number of images in a row. Raises Problem for a missing or damaged picture."""
    from PIL import Image, ImageDraw, ImageFont

    places: dict[str, list[tuple[str, str]]] = {}
    for (data, method, supplement), group in arms_of(results).items():
        run = min(group, key=lambda result: result.seed)
        panels = places.setdefault(data, [(f"{data}: {TEACHER}", f"{data}/teacher")])
        panels.append((f"{data}: {method}, {supplement}, seed {run.seed}", run.run))
    panels = [(text, _picture(root / f"data/evaluations/{folder}/samples.png", params["grid"], 576))
              for group in places.values() for text, folder in group]  # fmt: skip
    label, gap = 36, 24
    width, height = (max(getattr(picture, side) for _, picture in panels) for side in ("width", "height"))
    rows = -(-len(panels) // 2)
    board = Image.new("RGB", (2 * width + 3 * gap, rows * (height + label + gap) + gap // 2), "white")
    pen, font = ImageDraw.Draw(board), ImageFont.load_default(size=22)
    for i, (text, picture) in enumerate(panels):
        x, y = gap + i % 2 * (width + gap), gap // 2 + i // 2 * (height + label + gap)
        pen.text((x, y), text, fill="black", font=font)
        board.paste(picture, (x, y + label))
    with atomic(path) as temporary:
        board.save(temporary, format="PNG")
