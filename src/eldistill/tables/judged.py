# SPDX-License-Identifier: Apache-2.0
"""What the judges of a suite learned, and how well: distances in the features of a judge that learned nothing mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eldistill.tables import names
from eldistill.tables.page import short_table

COVERED_BY = "report"
LARGEST = 1_000_000  # bytes of the head of a judge's file


def section(judges: list[tuple[str, str, Path]]) -> str:
    """A heading and a table in HTML; nothing without judges.

    judges: (data setting, name of the feature space, its file). A file that is absent or damaged is named as such."""
    if not judges:
        return ""
    rows = []
    for data, name, path in judges:
        about, who = _description(path), [names.data_name(data).text, names.space_name(name).text]
        rows.append([*who, learned(about), accuracy(about)] if about else [*who, f"{path} is not here", ""])
    return (
        '<h3 id="judges">Judges</h3><p>Judge A (<code>judge-a</code>, convolutional) and judge B (<code>judge-b</code>, an MLP) are '
        "small classifiers, trained on the train images; distances are measured in their features. Without labels they learn by how "
        "many quarter turns an image was rotated. An accuracy near chance means that a judge's features say little about these images.</p>"
        + short_table(["data", "judge", "learned", "accuracy on held-out images"], rows, "text")
    )


def learned(about: dict[str, Any]) -> str:
    """What a judge learned, in words. about: the description in its file."""
    if about["rotations"]:
        return "quarter turns of the images, which have no labels"
    return f"the {about['config']['label_dim']} classes of the images"


def accuracy(about: dict[str, Any]) -> str:
    """The held-out accuracy of a judge in percent, with that of a guess. about: the description in its file."""
    chance = f"chance: {100 / about['config']['label_dim']:.3g} %"
    if about.get("accuracy_heldout") is None:  # earlier code measured none of quarter turns
        return f"not recorded ({chance})"
    return f"{100 * about['accuracy_heldout']:.1f} % ({chance})"


def _description(path: Path) -> dict[str, Any] | None:
    # The description in a file of tensors, read without torch, which the tables do not import; None if there is none.
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > LARGEST:
                return None
            about = json.loads(json.loads(file.read(size))["__metadata__"]["eldistill"])
        learned(about), accuracy(about)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ZeroDivisionError):
        return None
    return about if isinstance(about, dict) else None
