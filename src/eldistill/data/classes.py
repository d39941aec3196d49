# SPDX-License-Identifier: Apache-2.0
"""Classes of conditional generators: their frequencies, how they are drawn, and grids with one row for each class.

A generator is trained with the labels of real images, so classes occur as often as in the train images. Images that are
compared with real ones are drawn with the same frequencies (SiD's metric in training takes the labels of random images
likewise); `evaluate.classes: uniform` draws every class equally often, as EDM's script does. For equal counts both give
the same classes, image by image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from eldistill.data import dataset as data
from eldistill.diffusion.draws import Draw
from eldistill.errors import Problem

RECIPE = ("classes", 1)
MOST_ROWS = 20  # of a grid; of more classes this many are shown, evenly spread
NAME_LETTERS = 14  # longest name beside a row; longer names are cut


def describe_classes(pack: Path) -> dict:
    """{class_counts, class_names} of a packed file: number of train images in each class, and their names if it has them.

    {} if the images have no labels. Raises Problem if the file is not a pack.
    """
    _, labels, about = data.load_pack(pack)
    if not about["classes"]:
        return {}
    found = {"class_counts": torch.bincount(labels, minlength=about["classes"]).tolist()}
    return found | ({"class_names": about["class_names"]} if about.get("class_names") else {})


def class_counts(about: dict) -> list[int] | None:
    """The `class_counts` in the description of a network, None if it has none or no labels.

    Raises Problem if they are not `label_dim` whole numbers from 0, at least one above 0."""
    found, dim = about.get("class_counts"), about["label_dim"]
    if found is None or not dim:
        return None
    good = isinstance(found, list) and all(type(each) is int and 0 <= each < 2**31 for each in found)
    if not good or len(found) != dim or not 0 < sum(found) < 2**31:
        raise Problem(
            f"class_counts of this network are {str(found)[:60]}; expected {dim} whole numbers, one for each label, not all 0: "
            "make the network again, or without them"
        )
    return found


def draw_classes(draw: Draw, about: dict) -> torch.Tensor:
    """Classes [n], int64, for the images of `draw`, by the frequencies in class_counts; uniform if there are none.

    One random number for each image chooses a place among all train images, sorted by class. So the class of an image depends
    only on its own number, and for equal counts it is the class that a uniform choice gives.
    """
    known = class_counts(about)
    if known is None:
        return draw.integers("label", about["label_dim"])
    ends = torch.tensor(known, dtype=torch.int64, device=draw.device).cumsum(0)
    return torch.searchsorted(ends, draw.integers("label", sum(known)), right=True)


def requested_classes(about: dict, n: int, seed: int) -> torch.Tensor | None:
    """The classes [n], int64, that sampling draws for the first n images of a seed; None without labels."""
    return draw_classes(Draw(seed, "sample", 0, n), about) if about["label_dim"] else None


def how_drawn(about: dict) -> str:
    """A sentence for the log about how classes are drawn."""
    known = class_counts(about)
    if known is None:
        return f"each of {about['label_dim']} classes is drawn equally often"
    return f"classes are drawn by their frequency: {min(known)} to {max(known)} train images in each of {len(known)}"


# --- in an evaluation -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """How classes are drawn and shown in an evaluation. Both fields are empty for networks without labels.

    about: {label_dim, class_counts (absent: uniform), class_names}. asked: int64 [n], the class of each generated or held-out
    image; None if it is unknown.
    """

    about: dict = field(default_factory=dict)
    asked: torch.Tensor | None = None

    @property
    def label_dim(self) -> int:
        """The number of classes; 0 without labels."""
        return self.about.get("label_dim", 0)

    @property
    def titles(self) -> list[str] | None:
        """The texts beside the rows of a grid; None without labels."""
        return row_titles(self.about) if self.label_dim else None

    def applied(self, about: dict) -> dict:
        """A network's description in which the class_counts are replaced by those of this object."""
        kept = {key: value for key, value in about.items() if key != "class_counts"}
        return kept | {key: value for key, value in self.about.items() if key == "class_counts"}


def classes_of_pack(pack: Path, options: dict, real: bool = False) -> Drawn:
    """Drawn for a packed file with labels. options: n, seed and classes of `evaluate`. real: of the held-out images instead of
    generated ones. Raises Problem for a pack without labels."""
    about = describe_classes(pack)
    if not about:
        raise Problem(
            f"{pack} has no labels, but its data setting has labels: true; set it to false or add dataset.json"
        )
    about["label_dim"] = len(about["class_counts"])
    if options.get("classes") == "uniform":
        del about["class_counts"]
    if not real:
        return Drawn(about, requested_classes(about, options["n"], options["seed"]))
    labels = data.load_pack(pack, "heldout")[1]
    return Drawn(about, labels if bool((labels >= 0).all()) else None)


def without_asked(drawn: Drawn) -> Drawn:
    """A copy without `asked`, for evaluations in which no classifier can compare an image with its class."""
    return replace(drawn, asked=None)


# --- a grid with a row for each class ---------------------------------------------------------------------


def shown_classes(label_dim: int) -> list[int]:
    """The classes of the rows of a grid: all of them, or MOST_ROWS that are evenly spread."""
    shown = min(label_dim, MOST_ROWS)
    return [place * label_dim // shown for place in range(shown)]


def row_labels(label_dim: int, columns: int) -> torch.Tensor:
    """The classes [rows * columns], int64, of the images in a grid, row by row."""
    return torch.tensor(shown_classes(label_dim), dtype=torch.int64).repeat_interleave(columns)


def first_of_each(images: torch.Tensor, labels: torch.Tensor, label_dim: int, columns: int) -> torch.Tensor:
    """The first `columns` images of each shown class, uint8 [rows * columns, c, h, w]; white where a class has fewer.

    images: uint8 [n, c, h, w]. labels: int64 [n]."""
    board = torch.full((len(shown_classes(label_dim)), columns, *images.shape[1:]), 255, dtype=torch.uint8)
    for row, wanted in zip(board, shown_classes(label_dim), strict=True):
        found = images[(labels == wanted).nonzero().flatten()[:columns]]
        row[: len(found)] = found
    return board.flatten(0, 1)


def row_titles(about: dict) -> list[str]:
    """The texts beside the rows of a grid: the names of the classes, or their numbers, cut to NAME_LETTERS."""
    names = about.get("class_names") or list(range(about["label_dim"]))
    texts = [str(names[each]) if each < len(names) else str(each) for each in shown_classes(about["label_dim"])]
    return [text if len(text) <= NAME_LETTERS else text[: NAME_LETTERS - 1] + "…" for text in texts]


def add_row_titles(picture, texts: list[str]):
    """A copy of a PIL picture of len(texts) equal rows, with one text to the left of each row."""
    from PIL import Image, ImageDraw, ImageFont

    font, high = ImageFont.load_default(size=12), picture.height / len(texts)
    margin = 8 + max(int(font.getlength(text)) + 1 for text in texts)
    board = Image.new("RGB", (margin + picture.width, picture.height), "white")
    board.paste(picture, (margin, 0))
    pen = ImageDraw.Draw(board)
    for row, text in enumerate(texts):
        pen.text((margin - 4, (row + 0.5) * high), text, fill="black", font=font, anchor="rm")
    return board
