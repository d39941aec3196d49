# SPDX-License-Identifier: Apache-2.0
"""What the page of a suite, and the log, say about judges: what they learned, and how well."""

from __future__ import annotations

import re

import pytest
import torch

from eldistill.evaluate import judges
from eldistill.tables import judged
from eldistill.tensors import save_tensors


def about(rotations: bool, accuracy: float | None, classes: int = 10) -> dict:
    return {"rotations": rotations, "accuracy_heldout": accuracy, "config": {"label_dim": 4 if rotations else classes}}


def test_the_page_says_what_each_judge_learned_and_its_accuracy(tmp_path):
    found = {"labelled": about(False, 0.981), "plain": about(True, 0.5), "old": about(True, None)}
    for name, each in found.items():
        save_tensors(tmp_path / name, {"weight": torch.zeros(2)}, each)
    text = judged.section([(name, "judge-a", tmp_path / name) for name in (*found, "absent")])
    rows = {row.split("<")[0]: re.sub(r"<[^>]*>", " ", row) for row in text.split("<tr><td>")[1:]}
    assert "the 10 classes" in rows["labelled"] and "98.1 % (chance: 10 %)" in rows["labelled"]
    assert "quarter turns" in rows["plain"] and "50.0 % (chance: 25 %)" in rows["plain"]
    assert "not recorded" in rows["old"] and "is not here" in rows["absent"]
    assert judged.section([]) == ""


DAMAGED = [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]", b"\xff\xff\xff\xff\xff\xff\0\0{"]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_of_a_judge_is_named_and_stops_no_page(tmp_path, content):
    (tmp_path / "judge").write_bytes(content)
    assert "is not here" in judged.section([("toy", "judge-a", tmp_path / "judge")])


class Corner(torch.nn.Module):
    """Says by how many quarter turns an image was rotated, whose bright corner was the upper left one."""

    def __init__(self, knows: bool):
        super().__init__()
        self.knows, self.weight = knows, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        corners = torch.stack([x[:, 0, 0, 0], x[:, 0, -1, 0], x[:, 0, -1, -1], x[:, 0, 0, -1]], 1)
        return corners if self.knows else corners * 0


def test_the_accuracy_of_a_judge_without_labels_is_that_of_all_four_turns(monkeypatch):
    images = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = 255
    monkeypatch.setattr(judges.data, "load_pack", lambda path, part: (images, torch.full((5,), -1), {}))
    codec = {"mean": 0.5, "std": 0.25}
    assert judges.accuracy(Corner(True), "pack", codec, rotations=True) == 1
    assert judges.accuracy(Corner(False), "pack", codec, rotations=True) == 0.25
