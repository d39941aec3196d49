# SPDX-License-Identifier: Apache-2.0
"""Figures that others have published (published.csv), and which of them may be shown next to which arm."""

from __future__ import annotations

import csv
import functools

from eldistill.paths import PACKAGE

RECIPE = ("published", 2)  # which figures ours may stand beside
FIGURES = PACKAGE / "tables/published.csv"
METHODS: dict[str, tuple[str, ...]] = {  # what published.csv calls the methods of this project, up to a bracket
    "teacher": ("EDM", "EDM teacher", "EDM2-S"),
    "di": ("DI", "Diff-Instruct"),
    "dmd": ("DMD",),
    "dmd2": ("DMD2", "DMD2 with GAN", "DMD2 with GAN; longer training"),
    "sid": ("SiD",),
    "sida": ("SiDA",),
    "sid2a": ("SiD2A",),
    "cd": ("CD",),
    "ct": ("CT",),
    "ict": ("iCT",),
    "ect": ("ECT", "ECT-S"),
}
ENDINGS = {"none": "", "el": "+EL", "regression": "", "regression+el": "+EL"}  # of those names, for each supplement
SETS = {  # what published.csv calls the data settings of params.yaml: (data set, conditional, resolution)
    "cifar10": ("CIFAR-10", "no", "32"), "cifar10-cond": ("CIFAR-10", "yes", "32"), "ffhq64": ("FFHQ", "no", "64"),
    "afhqv2-64": ("AFHQv2", "no", "64"), "imagenet64": ("ImageNet", "yes", "64"), "imagenet512-s": ("ImageNet", "yes", "512"),
}  # fmt: skip


@functools.cache
def load_figures() -> tuple[dict[str, str], ...]:
    """The rows of published.csv: dataset, conditional, resolution, method, nfe, fid, inception_score, precision, recall and
    source. They were measured by their authors, each in a way of its own: to be shown beside ours, never ranked with them."""
    with open(FIGURES, newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def figures_for(data: str, method: str, supplement: str) -> list[dict[str, str]]:
    """The published figures of an arm: same data, method and supplement (none, or el); of a data setting that nobody published
    those on all data sets, which then compare with nothing here."""
    ending = ENDINGS.get(supplement)
    if ending is None:
        return []
    wanted = {f"{name}{ending}" for name in METHODS.get(method, ())}
    rows = [row for row in load_figures() if row["method"].split(" (")[0].split("/")[0] in wanted]
    return [row for row in rows if data not in SETS or _place(row) == SETS[data]]


def is_comparable(data: str, method: str, figure: dict[str, str]) -> bool:
    """Whether our figure of an arm was measured on the data of this published one, with as many network calls: students
    are measured in one call, a teacher in as many as its authors chose."""
    return data in SETS and _place(figure) == SETS[data] and (method == "teacher" or figure["nfe"] == "1")


def _place(row: dict[str, str]) -> tuple[str, str, str]:
    return row["dataset"], row["conditional"], row["resolution"]
