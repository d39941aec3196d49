# SPDX-License-Identifier: Apache-2.0
"""Published results (published.csv), and the choice of those that are shown next to an arm."""

from __future__ import annotations

import csv
import functools

from eldistill.paths import PACKAGE

RECIPE = ("published", 2)  # which figures ours may stand beside
FIGURES = PACKAGE / "tables/published.csv"
METHODS: dict[
    str, tuple[str, ...]
] = {  # {method of this project: its names in published.csv, without anything in brackets}
    "teacher": ("EDM", "EDM teacher", "EDM2-S"),
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
}
ENDINGS = {"none": "", "el": "+EL", "regression": "", "regression+el": "+EL"}  # {supplement: ending of these names}
SETS = {  # {data setting: (data set, conditional, resolution) in published.csv}
    "cifar10": ("CIFAR-10", "no", "32"), "cifar10-cond": ("CIFAR-10", "yes", "32"), "ffhq64": ("FFHQ", "no", "64"),
    "afhqv2-64": ("AFHQv2", "no", "64"), "imagenet64": ("ImageNet", "yes", "64"), "imagenet512-s": ("ImageNet", "yes", "512"),
}  # fmt: skip


@functools.cache
def load_figures() -> tuple[dict[str, str], ...]:
    """Load the rows of published.csv: dataset, conditional, resolution, method, nfe, fid, inception_score, precision, recall and
    source. Authors measured them in different ways; they are shown next to ours and not ranked with them."""
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


def _place(row: dict[str, str]) -> tuple[str, str, str]:
    return row["dataset"], row["conditional"], row["resolution"]
