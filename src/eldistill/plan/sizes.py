# SPDX-License-Identifier: Apache-2.0
"""The sizes that params.yaml alone tells: of the images of a data setting, and of the network of a published teacher.

None stands for what only the images or the file can say.
"""

from __future__ import annotations

import re
from typing import Any

from eldistill.registry import literal, readers

OWN_TEST = ("cifar10", "idx")  # sources whose held-out images are the first ones of a test part of their own


def side_of(section: dict[str, Any]) -> int | None:
    """Pixels a side of the images of a resolved data setting; None for latents and for images of unknown size."""
    fixed = readers()[section["source"]].shape[1:]
    if fixed and fixed[0]:
        return fixed[0]
    side: int | None = None if section["source"] == "latents" else section["resolution"]
    return side


def channels_of(section: dict[str, Any]) -> int | None:
    """Channels of the encoded images of a resolved data setting; None if only the images say them."""
    if section["source"] == "latents":
        return len(section["codec"]["mean"])
    return next(iter(readers()[section["source"]].shape), None)


def most_heldout(section: dict[str, Any]) -> tuple[int, str] | None:
    """(largest allowed `heldout`, the reason) of a resolved data setting; None if only the images say it."""
    images = readers()[section["source"]].images
    if images and images[1]:
        return images[1], f"source: {section['source']} has {images[1]:,} test images"
    count = section["count"] and literal("data/packing", "COUNTS")[section["count"]]
    if images or count:
        total = images[0] if images else count
        named = f"count: {section['count']}" if count else f"source: {section['source']}"
        return total - 2, f"{named} has {total:,} images, of which 2 or more must be left to train on"
    return None


def fewest_train(section: dict[str, Any]) -> int | None:
    """Number of train images of a resolved data setting, or an upper limit of it; None if only the images say it."""
    images = readers()[section["source"]].images
    known = [section["limit"]] if section["limit"] else []
    if images:
        known.append(images[0] if images[1] else images[0] - section["heldout"])
    return min(known) if known else None


def row_facts(row: str) -> dict[str, Any]:
    """What the name of a published network of data/sources.csv says: resolution (pixels), channels, labels, augmented; a key is
    absent if the name does not say it. The names are those of the files that EDM and EDM2 publish."""
    if found := re.search(r"-(\d+)x\1-(un)?cond-(\w+)", row):
        return {"resolution": int(found[1]), "channels": 3, "labels": not found[2], "augmented": found[3] != "adm"}
    if found := re.match(r"edm2-img(\d+)-", row):
        latents = found[1] == "512"
        return {"resolution": 64, "channels": 4 if latents else 3, "labels": True, "augmented": False}
    return {}
