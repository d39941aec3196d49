# SPDX-License-Identifier: Apache-2.0
"""What KID says of the answer of a study: the same, the opposite or nothing, by paired differences in the features that rank."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scipy import stats

from eldistill.tables.studies.agreement import kid_sentence
from tests.tables.test_studies import BASE, add, make, undrawn  # noqa: F401

PARAMS = {"question": "Does EL help?", "against": "pixel-mmd", "confidence": 0.95, "margin": 0.1}
KID = "kid5k_judge-a_heldout"


def row(difference, kid, half=0.5, kid_half=0.01, supplement="el", p=0.001, **more):
    return {
        "data": "digits", "method": "dmd", "supplement": supplement, "difference": difference, "low": difference - half,
        "high": difference + half, "percent": 10 * difference, "p_holm": p, "p_family": 1, "pairs": 10, "margin": 1.0,
        "p_equivalent": 0.5, "kid_difference": kid, "kid_low": kid - kid_half, "kid_high": kid + kid_half,
    } | more  # fmt: skip


@pytest.mark.parametrize(
    ("difference", "kid", "said", "contradicts"),
    [
        (-1, 0.035, "says the opposite for DMD + EL (+0.035 [0.025, 0.045])", True),
        (1, -0.035, "says the opposite for DMD + EL (−0.035 [−0.045, −0.025])", True),
        (-1, -0.035, "agrees for DMD + EL (−0.035 [−0.045, −0.025])", False),
        (-1, 0.002, "decides nothing for DMD + EL (+0.002 [−0.008, 0.012])", False),
        (0.1, 0.035, "shows a difference by itself for DMD + EL (+0.035 [0.025, 0.045])", False),
    ],
)
def test_the_sentence(difference, kid, said, contradicts):
    """By the sides of both differences, where their intervals are without 0."""
    p = 0.9 if abs(difference) < 0.5 else 0.001
    text, found = kid_sentence([row(difference, kid, p=p)], PARAMS)
    assert text == f"KID in the same features (minus that of pixel MMD; not corrected) {said}." and found is contradicts


def test_arms_that_do_not_answer_are_not_asked():
    """Neither the row without a supplement, nor one that only explores, nor one without KID."""
    asked = [row(5, 0.2, supplement="none"), row(-1, 0.035, p=None), row(-1, 0.035) | {"kid_low": None}]
    assert kid_sentence(asked, PARAMS) == ("", False)


def test_of_many_arms_there_is_the_number():
    arms = [row(-1, 0.035, supplement=name) for name in ("el", "fd", "drift")] + [row(-1, -0.2, supplement="gan")]
    text, contradicts = kid_sentence(arms, PARAMS)
    assert contradicts and "says the opposite for 3 of 4 arms, among them DMD + EL (+0.035" in text
    opened = [row(-1, 0.002, supplement=name) for name in ("el", "fd", "drift")]
    assert kid_sentence(opened, PARAMS)[0].endswith("decides nothing for all 3 arms.")
    assert text.endswith("agrees for DMD + GAN (−0.200 [−0.210, −0.190]).")


def with_kid(root, run, value, kid):
    add(root, run, value)
    path = root / f"data/evaluations/{run}/metrics.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {KID: kid}))
    return run


@pytest.mark.parametrize("kind", ["central", "contrast"])
@pytest.mark.parametrize("teachers", [1, 2])
def test_the_numbers_are_those_of_the_runs(tmp_path, kind, teachers):
    """Differences of KID paired by seed, averaged over the teachers; the page and the text name the contradiction."""
    draw, runs, deltas = np.random.default_rng(0), [], []
    for data in ("one", "two")[:teachers]:
        ours, theirs = draw.normal(0.4, 0.01, 5), draw.normal(0.3, 0.01, 5)
        deltas.append(ours - theirs)
        for i, base in enumerate(BASE):
            runs.append(with_kid(tmp_path, f"{data}/di/pixels/{i}", base, theirs[i]))
            runs.append(with_kid(tmp_path, f"{data}/di/el/{i}", base - 2 - 0.01 * i, ours[i]))
    rows, text = make(tmp_path, runs, kind=kind, against="pixels")
    each = np.mean(deltas, 0) if kind == "central" else deltas[0]
    found = next(row for row in rows if row["supplement"] == "el")
    low, high = stats.t.interval(0.95, 4, np.mean(each), stats.sem(each))
    assert [float(found[f"kid_{key}"]) for key in ("difference", "low", "high")] == pytest.approx(
        [np.mean(each), low, high]
    )
    page = (tmp_path / "out/study.html").read_text()
    assert re.match(r"\*\*.* But KID in the same features .* says the opposite for .*\*\*$", text.split("\n\n")[1])
    assert "But KID in the same features" in page.partition('class="claim"')[2].partition("</p>")[0]
