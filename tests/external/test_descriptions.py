# SPDX-License-Identifier: Apache-2.0
"""The descriptions in files of this project follow a schema: what other modules read without looking is what they expect."""

from __future__ import annotations

import math

import pytest

from eldistill.errors import Problem
from eldistill.external.descriptions import check_description

GOOD = {
    "shape": [[1, 8, 8], [3, 64, 64]],
    "label_dim": [0, 10],
    "classes": [0, 1000],
    "codec": [{"mean": 0.5, "std": 0.25}, {"mean": 0, "std": 1}, {"mean": [1.0, -2], "std": [3, 4.5], "vae": None},
              {"mean": [1.0], "std": [3.0], "vae": "/models/vae", "note": 1}],
    "sampler": [{"steps": {"1": [80.0]}}, {"steps": {"1": [2.5], "2": [80, 0.8]}, "boundary": 0.002, "clip": True}],
    "rotations": [True, False],
    "class_names": [[], ["a", "ä"]],
}  # fmt: skip
WRONG = {
    "shape": [None, 8, [8, 8], [1, 8, 8, 8], [1.0, 8, 8], [0, 8, 8], [1, 8, -8], [True, 8, 8], [1, 8, 2**40], "188"],
    "label_dim": [None, -1, 2.0, True, 2**40, "2", [2]],
    "classes": [None, -1, 0.5, "2"],
    "codec": [None, 1, [], {}, {"mean": 0}, {"mean": "a", "std": 1}, {"mean": 0, "std": 0}, {"mean": 0, "std": -1},
              {"mean": math.nan, "std": 1}, {"mean": [1], "std": 1}, {"mean": [1, 2], "std": [1]},
              {"mean": [], "std": []}, {"mean": [1], "std": [math.inf]},
              {"mean": [1] * 65, "std": [1] * 65}, {"mean": 0, "std": 1, "vae": 3}],
    "sampler": [None, 1, {}, {"steps": {}}, {"steps": [80.0]}, {"steps": {"a": [80.0]}}, {"steps": {"1": []}},
                {"steps": {"1": 80.0}}, {"steps": {"1": [math.inf]}}, {"steps": {"1": [-1.0]}}, {"steps": {"1": ["80"]}},
                {"steps": {"1": [80.0]}, "boundary": "0"}],
    "rotations": [None, 0, "no"],
    "class_names": [None, "ab", [1], ["x" * 5000]],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in GOOD.items() for value in values], ids=str)
def test_what_this_project_writes_is_accepted(key, value):
    check_description("net.safetensors", {key: value, "anything": object()})


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values], ids=str)
def test_anything_else_is_one_sentence_with_the_key(key, value):
    with pytest.raises(
        Problem, match=f"net.safetensors says that its {key} is .*; expected .*: make or fetch it again"
    ) as caught:
        check_description("net.safetensors", {key: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
