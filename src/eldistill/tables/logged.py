# SPDX-License-Identifier: Apache-2.0
"""Names for readers of what the log of a training has, such as `el.gradient_norm`: whose number it is, and what it is."""

from __future__ import annotations

from eldistill.tables import names

COVERED_BY = "report"
NETWORKS = {
    "generator": "generator",
    "fake_score": "fake score",
    "discriminator": "discriminator",
    "head": "discriminator head",
    "target": "target network",
    "weighting": "weight of noise levels",
}
NUMBERS = {
    "kl": "integral KL (signed; shows no progress)",
    "denoising": "denoising loss",
    "matching": "distribution matching",
    "identity": "score identity loss",
    "adversarial": "adversarial loss",
    "consistency": "consistency loss",
    "mean_flow": "mean velocity loss",
    "huber": "pseudo-Huber loss",
    "mmd2": "squared MMD",
    "gradient_norm": "gradient norm",
    "gradient_rms": "gradient, root mean square",
    "base_rms": "gradient of the base loss, root mean square",
    "weight": "weight",
    "share": "weighted gradient over that of the base loss",
    "bounded": "weight at its bound",
    "snr": "signal over noise",
    "cosine": "cosine with the base loss's gradient",
    "optimal": "mix of least variance",
    "trace_ratio": "spread over that of real features",
    "signal": "signal of the adaptive weight",
    "gap": "biased minus unbiased",
    "length": "squared length of the drifting field",
}
NOTES = {
    "snr": "a batch's value over its running deviation; below 1 one batch alone says little",
    "trace_ratio": "below 0.5 is collapse",
    "optimal": "the share that would mix both gradients with least variance",
    "weight": "factor on the supplement's gradient",
}


def split(raw: str) -> tuple[str, str]:
    """(whose, what): the parts of the name of a logged number; `whose` is empty for a name without a dot."""
    whose, _, what = raw.rpartition(".")
    return whose, what


def logged_name(raw: str) -> str:
    """The name for readers of a logged number, such as `EL: gradient norm`. What is not in these tables stays as it is."""
    whose, what = split(raw)
    known = NETWORKS.get(whose) or (names.supplement_name(whose).short if whose else "")
    return ": ".join(part for part in (known, NUMBERS.get(what, what)) if part)


def note(raw: str) -> str:
    """One sentence about a logged number that needs it, or nothing."""
    what = split(raw)[1]
    return f"{NUMBERS[what][0].upper()}{NUMBERS[what][1:]}: {NOTES[what]}." if what in NOTES else ""
