# SPDX-License-Identifier: Apache-2.0
"""Alarms: metrics of generated images that are far below those of real images or of the teacher."""

from __future__ import annotations

COVERED_BY = "metrics"
# (metric, fraction of the value of real images or of the teacher below which there is an alarm, possible cause)
ALARMS: tuple[tuple[str, float, str], ...] = (
    ("precision", 0.8, "blurred, noisy or strange images"),
    ("recall", 0.8, "kinds of images that are missing"),
    ("coverage", 0.8, "kinds of images that are missing, or one image many times"),
    ("is", 0.9, "classes that are missing, or images of no class"),
    ("agreement", 0.8, "images of another class than the one that was asked for"),
)
COPIES = 0.2  # value of `copied`, the fraction of copies beyond chance, above which there is an alarm


def alarms(found: dict[str, float], floors: dict[str, dict[str, float]]) -> list[str]:
    """Clauses about metrics that show a problem of generated images; empty if there is none.

    found: {metric: value} of the generated images. floors: the same of real images and of the teacher, by their names; each metric
    is compared with the lowest of them. Random variation does not reach the limits, so that an alarm is a reason to look at the
    images."""
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
