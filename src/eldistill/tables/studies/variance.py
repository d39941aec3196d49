# SPDX-License-Identifier: Apache-2.0
"""The kind of study that shows how the variance of a gradient falls with the batch size, and the part that does not fall.

eldistill.distil.probe measures it on the networks of finished runs.
"""

from __future__ import annotations

from statistics import fmean

from eldistill.tables import inference, names
from eldistill.tables.results import arms_of, identity, short
from eldistill.tables.studies.study import Study

RECIPE = ("variance", 4)  # the answer first
NETWORKS = True  # the study needs the networks of its runs


def variance(study: Study) -> tuple[list[dict], list[str]]:
    """Variance of the gradient of every arm; returns rows and sentences.

    Columns are the variance over the squared norm of the mean gradient at each batch size (the ratio of means over runs), and the
    floor in percent of the variance at the smallest batch, with its interval over runs. `none` has the gradient of the base loss, and
    an arm with a supplement that of the supplement."""
    from eldistill.distil.probe import REPEATS, measure_variance  # imported here, because importing torch takes seconds

    rows, said, confidence = [], [], study.params["confidence"]
    least, most = min(REPEATS), max(REPEATS)
    for group in arms_of(study.results).values():
        looks = [measure_variance(result.run, study.root) for result in group]
        for which in looks[0]:
            each = [found[which] for found in looks]
            signal = fmean(found["signal"] for found in each)
            row = identity(group) | {"gradient": which, "signal": signal}
            for batch in REPEATS:
                noise = fmean(found[batch] for found in each)
                row |= {f"variance_{batch}": noise, f"noise_{batch}": noise / signal if signal > 0 else None}
            shares = [100 * found["floor"] / found[least] for found in each if found[least]]
            row["share"], (row["share_low"], row["share_high"]) = None, inference.interval(shares, confidence)
            if shares:
                row["share"] = fmean(shares)
            rows.append(row | {"runs": " ".join(result.run for result in group)})
            stays = (
                f"{_verdict(row)} of the variance at batch {least} stays at any batch"
                if shares
                else f"no variance at batch {least}"
            )
            said.append(f"{row['data']}, {row['method']}/{row['supplement']}, {which}: {stays}; {_ratio(row, least, most)} "
                        f"({len(group)} runs, each with {REPEATS[least]} and {REPEATS[most]} gradients).")  # fmt: skip
    return rows, [answer(rows, least), *said]


def answer(rows: list[dict], least: int) -> str:
    """The sentence that answers: the gradients with a part that no batch averages out, and how many have none that is seen.

    rows: of `variance`. least: the smallest batch."""
    if not any(row["share_low"] is not None for row in rows):
        return f"Undecided for {len(rows)} gradients, of one run each or without variance."
    found = [row for row in rows if row["share_low"] is not None and row["share_low"] > 0]
    if not found:
        return f"Nothing: none of {len(rows)} gradients has a part of its variance that stays at any batch."
    parts = [
        f"{row['share']:.0f} % [{row['share_low']:.0f}, {row['share_high']:.0f}] with {row['gradient']} "
        f"({names.arm_name(row['method'], row['supplement']).short})"
        for row in found
    ]
    listed = parts[0] if not parts[1:] else f"{', '.join(parts[:-1])} and {parts[-1]}"
    rest = len(rows) - len(found)
    more = "one more gradient" if rest == 1 else f"{rest} more gradients"
    others = f"; of {more} no such part is seen" if rest else ""
    return f"Of the variance at batch {least} no batch averages out {listed}{others}."


def _verdict(row: dict) -> str:
    low, high = row["share_low"], row["share_high"]
    if low is None:
        return f"of one run: {row['share']:.1f} %"
    verdict = "a floor" if low > 0 else "no floor, and the fit does not suit it" if high < 0 else "no floor to be seen"
    return f"{verdict}: {row['share']:.1f} % [{low:.1f}, {high:.1f}]"


def _ratio(row: dict, least: int, most: int) -> str:
    if row["signal"] <= 0:
        return "its mean is lost in the noise"
    return (
        f"noise over signal {short(row[f'noise_{least}'])} at {least}, {short(row[f'noise_{most}'])} at {most} images"
    )
