# SPDX-License-Identifier: Apache-2.0
"""data/sources.csv: every published network that this project speaks of, under a name, once."""

import csv
import json
import re

from eldistill.external import sources
from tests.conftest import GOLDEN, ROOT

with open(ROOT / "data/sources.csv", newline="", encoding="utf-8") as file:
    ROWS = {row["name"]: row for row in csv.DictReader(file)}
OFFICIAL = json.loads((GOLDEN / "networks/official_state_shapes.json").read_text())


def test_rows_are_complete_and_unlike():
    assert len(ROWS) == len({row["url"] for row in ROWS.values()}) > 60
    for name, row in ROWS.items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name)
        assert row["url"].startswith(("https://", "http://fashion-mnist.")) and not row["url"].endswith("/")
        assert (
            row["licence"]
            and row["version"]
            and row["kind"] in ("data", "teacher", "student", "reference", "metric", "vae")
        )
        assert re.fullmatch(r"[0-9a-f]{64}|", row["sha256"]) and re.fullmatch(r"\d*", row["bytes"])
        assert (row["kind"] in ("teacher", "student")) <= bool(re.search(r"fid \d|1 call", row["published"]))


def test_every_official_teacher_is_there():
    """All networks whose states are known, and the reference statistics and students beside them."""
    teachers = [name for name, row in ROWS.items() if row["kind"] == "teacher"]
    for name in OFFICIAL:
        if not name.endswith("-uncond") or name.startswith("edm-"):
            assert any(teacher == name or teacher.startswith(f"{name}-") for teacher in teachers), name
    assert {"fid-refs-cifar10-32x32", "fid-refs-imagenet-64x64", "dataset-refs-img512", "inception-2015-12-05"} <= set(
        ROWS
    )
    sizes = [f"edm2-img512-{size}" for size in ("xs", "s", "m", "l", "xl", "xxl")]
    for data in ("cifar10-uncond", "cifar10-cond", "imagenet64", "ffhq64", "afhqv2-64", *sizes):
        assert {f"sid-{data}", f"sida-{data}"} <= set(ROWS) and [
            name for name in ROWS if name.startswith(f"sid2a-{data}")
        ]


def test_students_of_dmd2_are_measured_at_the_level_of_their_authors():
    """The figures are those of the table of their repository, and each is in the address of its file, too."""
    found = [row for name, row in ROWS.items() if name.startswith("dmd2-")]
    assert len(found) == 3 and {row["licence"] for row in found} == {"CC BY-NC-SA 4.0"}
    for row in found:
        assert row["published"] == f"sigma_init 80; fid {re.search('_fid(.*?)_', row['url'])[1]}, 1 call"


def test_a_row_is_found_by_its_name(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert sources.source_row("edm-cifar10-32x32-uncond-vp")["url"].endswith("/edm-cifar10-32x32-uncond-vp.pkl")
