# SPDX-License-Identifier: Apache-2.0
"""Alarms: metrics of generated images that are far below those of real images or of the teacher."""

from __future__ import annotations

COVERED_BY = "metrics"
# (metric, share of what real images or the teacher reach below which something is wrong, what may be wrong)
ALARMS: tuple[tuple[str, float, str], ...] = (
    ("precision", 0.8, "blurred, noisy or strange images"),
    ("recall", 0.8, "kinds of images that are missing"),
    ("coverage", 0.8, "kinds of images that are missing, or one image many times"),
    ("is", 0.9, "classes that are missing, or images of no class"),
    ("agreement", 0.8, "images of another class than the one that was asked for"),
)
COPIES = 0.2  # share of copies of train images beyond chance


def alarms(found: dict[str, float], floors: dict[str, dict[str, float]]) -> list[str]:
    """What is wrong with generated images, by {metric: value}, beside the same of what they cannot be expected to beat, by
    name: real images, the teacher; the lowest counts. A clause each, none where nothing is wrong. Limits are far from what
    sampling does, so that an alarm is a reason to look."""
    said = []
    for name, share, what in ALARMS:
        known = {who: each[name] for who, each in floors.items() if each.get(name) is not None}
        if not known or found.get(name) is None:
            continue
        lowest = min(known, key=lambda who: known[who])
        if found[name] < share * known[lowest]:
            said.append(f"{name} {found[name]:.2f}, {lowest} {known[lowest]:.2f}: {what}")
    if (found.get("copied") or 0.0) > COPIES:
        said.append(f"copied {found['copied']:.2f}: copies of train images")
    return said
