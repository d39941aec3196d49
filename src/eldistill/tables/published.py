# SPDX-License-Identifier: Apache-2.0
"""Published results (published.csv), and the choice of those that are shown next to an arm."""

from __future__ import annotations

import csv
import functools

from eldistill.paths import PACKAGE

RECIPE = ("published", 3)  # more figures, and a mark on those of discriminators trained on ImageNet
FIGURES = PACKAGE / "tables/published.csv"
METHODS: dict[
    str, tuple[str, ...]
] = {  # {method of this project: its names in published.csv, without anything in brackets}
    "teacher": ("EDM", "EDM teacher", "EDM2-S", "EDM2-S without guidance"),
    "di": ("DI", "Diff-Instruct"),
    "dmd": ("DMD",),
    "dmd2": ("DMD2", "DMD2 with GAN", "DMD2 with GAN; longer training"),
    "sid": ("SiD",),
    "sim": ("SIM",),
    "f-distill": ("f-distill",),
    "uni-instruct": ("Uni-Instruct",),
    "sida": ("SiDA",),
    "sid2a": ("SiD2A",),
    "cd": ("CD",),
    "ct": ("CT",),
    "ict": ("iCT",),
    "ect": ("ECT", "ECT-S"),
    "scd": ("sCD",),
    "sct": ("sCT",),
    "mean-flow": ("MeanFlow",),
    "tcm": ("TCM",),
    "tcm-ect": ("TCM",),
}
ENDINGS = {"none": "", "el": "+EL", "regression": "", "regression+el": "+EL"}  # {supplement: ending of these names}
SETS = {  # {data setting: (data set, conditional, resolution) in published.csv}
    "cifar10": ("CIFAR-10", "no", "32"), "cifar10-cond": ("CIFAR-10", "yes", "32"), "ffhq64": ("FFHQ", "no", "64"),
    "afhqv2-64": ("AFHQv2", "no", "64"), "imagenet64": ("ImageNet", "yes", "64"), "imagenet512-s": ("ImageNet", "yes", "512"),
}  # fmt: skip


@functools.cache
def load_figures() -> tuple[dict[str, str], ...]:
    """Load the rows of published.csv: dataset, conditional, resolution, method, nfe (network calls for an image), fid,
    inception_score, precision, recall, source, imagenet_discriminator and note. A value that is not known is empty.

    imagenet_discriminator: `yes` if a source shows a discriminator on features that were trained on ImageNet, `no` if the authors
    state that they use none. Such features can lower a FID, whose own network was trained on ImageNet. note: what a reader must know
    of the figure. Authors measured in different ways; their figures are shown next to ours and not ranked with them."""
    with open(FIGURES, newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def figures_for(data: str, method: str, supplement: str) -> list[dict[str, str]]:
    """The published results of the same method and supplement on the same data.

    For a data setting without published results they are those on all data sets, and are not comparable with ours."""
    ending = ENDINGS.get(supplement)
    if ending is None:
        return []
    wanted = {f"{name}{ending}" for name in METHODS.get(method, ())}
    rows = [row for row in load_figures() if row["method"].split(" (")[0].split("/")[0] in wanted]
    return [row for row in rows if data not in SETS or _place(row) == SETS[data]]


def is_comparable(data: str, method: str, figure: dict[str, str]) -> bool:
    """Whether our FID of an arm is comparable with a published one: same data, and the same number of network calls, which is one for
    a student and the authors' number for a teacher."""
    return data in SETS and _place(figure) == SETS[data] and (method == "teacher" or figure["nfe"] == "1")


def label(figure: dict[str, str]) -> str:
    """The name that a published figure has in our tables: its method, and whether its discriminator knew ImageNet."""
    marked = figure["imagenet_discriminator"] == "yes"
    return figure["method"] + (", discriminator trained on ImageNet" if marked else "")


def source_and_note(figure: dict[str, str]) -> str:
    """Where a published figure stands, and what a reader must know of it."""
    return figure["source"] + (f". {figure['note']}" if figure["note"] else "")


def _place(row: dict[str, str]) -> tuple[str, str, str]:
    return row["dataset"], row["conditional"], row["resolution"]
