# SPDX-License-Identifier: Apache-2.0
"""The numbers of every block that is marked O, or P, are those of its authors' scripts, or paper (tests/data/authors.yaml, by hand)."""

from __future__ import annotations

import re
from pathlib import Path

import conftest
import pytest

from eldistill.plan import params

ROOT = Path(__file__).parent.parent
AUTHORS = conftest.read_yaml((Path(__file__).parent / "data/authors.yaml").read_text(encoding="utf-8"))["blocks"]
PROJECT = params.load(ROOT / "params.yaml")


def marked() -> set[str]:
    """METHOD/DATA of every block of params.yaml whose comment begins with O or P."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = text[text.index("\n  methods:\n") : text.index("\n  supplements:\n")]
    found, method = set(), None
    for line in text.splitlines():
        if name := re.match(r" {4}([A-Za-z0-9-]+):", line):
            method = name[1]
        if (name := re.match(r" {8}([a-z0-9-]+):", line)) and re.search(r"# [OP]\b", line):
            found.add(f"{method}/{name[1]}")
    return found


def differences(ours: dict, authors: dict) -> list[str]:
    """What of a block is not as the table says, a sentence for each key."""
    unread = authors.get("unread", [])
    found = [f"{key} is not in the table" for key in ours if key not in authors and key not in unread]
    found += [f"{key} is in the table and in no section" for key in authors if key not in ours and key != "unread"]
    for key in (ours.keys() & authors.keys()) - set(unread):
        said = authors[key]
        if isinstance(said, dict) and "why" in said:
            said = said["here"]
        if isinstance(ours[key], dict):
            found += [f"{key}.{each}" for each in differences(ours[key], said)]
            continue
        if key == "n_images":
            said = int(said) // ours["batch"] * ours["batch"]
        if ours[key] != said:
            found.append(f"{key} is {ours[key]!r} here and {said!r} in the table")
    return found


def test_the_table_has_every_block_that_is_marked_as_the_authors():
    missing = marked() - AUTHORS.keys()
    assert len(marked()) >= 25 and not missing


@pytest.mark.parametrize("block", sorted(AUTHORS))
def test_a_block_has_its_authors_numbers_and_the_table_every_key_of_it(block):
    ours = PROJECT.section("method", *block.split("/"))
    assert differences(ours, AUTHORS[block]) == []


@pytest.mark.parametrize("change", [("alpha", 1.1), ("n_images", 5), ("new_key", 1), ("alpha", ...)])
def test_a_difference_is_found(change):
    ours = PROJECT.section("method", "sid", "cifar10")
    key, value = change
    ours.pop(key) if value is ... else ours.update({key: value})
    assert [found.split()[0] for found in differences(ours, AUTHORS["sid/cifar10"])] == [key]


def test_a_nested_difference_is_found():
    ours = PROJECT.section("method", "sid", "cifar10")
    ours["generator"]["betas"] = [0.9, 0.999]
    assert differences(ours, AUTHORS["sid/cifar10"]) == [
        "generator.betas is [0.9, 0.999] here and [0.0, 0.999] in the table"
    ]
