# SPDX-License-Identifier: Apache-2.0
"""The numbers of every block with the status authors, or paper, are those of its authors' scripts, or paper (tests/golden/authors.yaml,
by hand)."""

from __future__ import annotations

import pytest

from eldistill.plan import params
from tests import conftest
from tests.conftest import GOLDEN, ROOT

AUTHORS = conftest.read_yaml((GOLDEN / "authors.yaml").read_text(encoding="utf-8"))["blocks"]
PROJECT = params.load_params(ROOT / "params.yaml")
OURS = {
    "rate": None,
    "rates": {},
    "raw_snapshots": False,
    "generator_network": None,
}  # keys that no author has, and what they are for a run like theirs


def section(block: str) -> dict:
    """A resolved block without the keys of OURS, which must have these values."""
    found = PROJECT.section("method", *block.split("/"))
    assert {key: found.pop(key) for key in OURS} == OURS
    return found


def marked() -> set[str]:
    """METHOD/DATA of every block with the status authors or paper."""
    blocks = {
        f"{method}/{data}": block.get("status")
        for method, section in PROJECT.values["distil"]["methods"].items()
        for data, block in section.get("per_data", {}).items()
    }
    return {name for name, status in blocks.items() if status in ("authors", "paper")}


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
    ours = section(block)
    assert differences(ours, AUTHORS[block]) == []


@pytest.mark.parametrize("change", [("alpha", 1.1), ("n_images", 5), ("new_key", 1), ("alpha", ...)])
def test_a_difference_is_found(change):
    ours = section("sid/cifar10")
    key, value = change
    ours.pop(key) if value is ... else ours.update({key: value})
    assert [found.split()[0] for found in differences(ours, AUTHORS["sid/cifar10"])] == [key]


def test_a_nested_difference_is_found():
    ours = section("sid/cifar10")
    ours["generator"]["betas"] = [0.9, 0.999]
    assert differences(ours, AUTHORS["sid/cifar10"]) == [
        "generator.betas is [0.9, 0.999] here and [0.0, 0.999] in the table"
    ]
