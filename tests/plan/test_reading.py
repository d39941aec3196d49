# SPDX-License-Identifier: Apache-2.0
"""The files that together are the parameters: how they merge, which one a sentence names, and whose numbers a block has."""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path

import pytest
from snakemake.utils import update_config

from eldistill.errors import Problem
from eldistill.plan import params, reading
from eldistill.plan.plan import Plan
from tests import conftest
from tests.conftest import ROOT

PAPER, ABLATION, COLOUR, OWN = reading.FILES


@pytest.fixture
def project(tmp_path) -> Path:
    """The files of this project in another folder."""
    for name in (*reading.FILES, str(params.SCHEMA), "data/sources.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def change(project: Path, file: str, where: str, value) -> params.Params:
    """Load with one key of one file set. where: keys, separated by /."""
    values = conftest.read_yaml((project / file).read_text(encoding="utf-8"))
    *above, last = where.split("/")
    place = values
    for key in above:
        place = place.setdefault(key, {})
    place[last] = value
    (project / file).write_text(conftest.write_yaml(values, sort_keys=False), encoding="utf-8")
    return params.load_params(project / OWN)


# --- merged ---------------------------------------------------------------------------------------------


def tree(draw: random.Random, depth: int = 3) -> dict:
    def inner():
        return tree(draw, depth - 1) if depth and draw.random() < 0.6 else draw.choice([1, None, [2, 3], "x"])

    return {key: inner() for key in draw.sample("abcd", draw.randint(1, 4))}


@pytest.mark.parametrize("seed", range(50))
def test_files_merge_as_snakemake_merges_its_configfiles(seed):
    """Where no file has a section and another a value under one key, which the schema forbids."""
    draw = random.Random(seed)
    files = {name: tree(draw) for name in reading.FILES}
    wanted: dict = {}
    for each in files.values():
        update_config(wanted, copy.deepcopy(each))
    before = copy.deepcopy(files)
    assert reading.merge_files(files) == wanted and files == before


def test_the_snakefile_names_the_same_files_in_the_same_order():
    text = (ROOT / "Snakefile").read_text(encoding="utf-8")
    assert tuple(re.findall(r'^configfile: "(.*)"$', text, re.M)) == reading.FILES
    config: dict = {}
    for name in reading.FILES:
        update_config(config, reading.read_file(ROOT / name))
    loaded = params.load_params(ROOT / OWN)
    assert config == loaded.values == params.from_snakemake(config, {}, ROOT).values
    assert params.from_snakemake(config | {"suite": "smoke"}, {"suite": "smoke"}, ROOT).values["suite"] == "smoke"


def leaves(values: dict, where: str = "") -> set[str]:
    found = set()
    for key, value in values.items():
        place = f"{where}/{key}"
        found |= leaves(value, place) if isinstance(value, dict) and value else {place}
    return found


def test_no_key_stands_in_two_files():
    """Else nobody knows which one to edit."""
    found = [leaves(values) for values in reading.read_files(ROOT).values()]
    assert all(not one & other for i, one in enumerate(found) for other in found[:i])


def test_the_file_to_edit_can_be_read():
    for name in reading.FILES:
        assert max(map(len, (ROOT / name).read_text(encoding="utf-8").splitlines())) <= 160, name
    assert len((ROOT / OWN).read_text(encoding="utf-8").splitlines()) <= 340


def test_what_a_user_writes_wins_and_comes_first(project):
    there = change(project, OWN, "distil/methods/sid/per_data/cifar10/batch", 128)
    section = there.section("method", "sid", "cifar10")
    assert (section["batch"], section["n_images"], section["generator"]["lr"]) == (128, 500_000_000, 1e-5)
    assert list(there.values["data"])[0] == "digits" and list(there.values["suites"])[0] == "demo"


def test_a_section_of_params_yaml_may_be_like_one_of_another_file(project):
    """And its numbers for a data setting are those of the one it is like."""
    there = change(project, OWN, "data/mine", {"like": "ffhq64", "heldout": 100})
    assert there.section("data", "mine")["resolution"] == 64
    assert there.section("method", "sid", "mine") == there.section("method", "sid", "ffhq64")
    there = change(project, OWN, "distil/supplements/half", {"like": "el-base", "weight": 0.35})
    assert there.section("supplement", "half") == there.section("supplement", "el-w035")


def test_a_project_with_params_yaml_alone_is_one(project):
    """Everything may stand in it."""
    for name in (PAPER, ABLATION):
        (project / name).unlink()
    (project / OWN).write_text(conftest.write_yaml(conftest.shipped()), encoding="utf-8")
    assert params.load_params(project / OWN).values == params.load_params(ROOT / OWN).values


# --- sentences name the file ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "where", "value", "sentence"),
    [
        (OWN, "teacher/digits/batch", 0, "teacher.digits.batch is 0; expected a whole number ≥ 1"),
        (PAPER, "teacher/cifar10/batch", 0, "teacher.cifar10.batch is 0"),
        (ABLATION, "teacher/fashion-16/n_images", 0, "teacher.fashion-16.n_images is 0"),
        (PAPER, "data/cifar10/teacher", "x", "data.cifar10.teacher is 'x'; expected one of digits, "),
        (PAPER, "distil/methods/sid/per_data/cifar10/n_images", 1000,
         "distil.methods.sid.per_data.cifar10.n_images is 1000; expected a multiple"),
        (OWN, "distil/methods/sid/per_data/digits/n_images", 1000,
         "distil.methods.sid.per_data.digits.n_images is 1000; expected a multiple"),
        # Where sid-day, which is like it, comes first.
        (PAPER, "distil/methods/sid/per_data/cifar10/alhpa", 1, "distil.methods.sid.per_data.cifar10.alhpa is not a known key"),
        (OWN, "distil/methods/sid/alhpa", 1, "distil.methods.sid.alhpa is not a known key"),
        (PAPER, "distil/methods/di/per_data/cifar10/status", "mine",
         "distil.methods.di.per_data.cifar10.status is 'mine'; expected one of authors, paper, ours"),
        (ABLATION, "tables/studies/central/kind", "centre", "tables.studies.central.kind is 'centre'"),
        (ABLATION, "tables/studies/a.b", {"question": "?", "against": "di/none"}, "tables.studies.a.b cannot be a name"),
        (ABLATION, "suites/ablation", [], "suites.ablation is []"),
        (COLOUR, "data/avatars-32/heldout", -1, "data.avatars-32.heldout is -1"),
        (PAPER, "evaluate/per_data/ffhq64/fid/reference", 1, "evaluate.per_data.ffhq64.fid.reference is 1"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_file_of_its_key(project, file, where, value, sentence):
    with pytest.raises(Problem) as caught:
        change(project, file, where, value)
    assert str(caught.value).startswith(f"{file}: {sentence}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", reading.FILES)
def test_a_file_that_is_no_yaml_or_no_mapping_is_one_sentence(project, file):
    (project / file).write_text("data: [", encoding="utf-8")
    with pytest.raises(
        Problem, match=rf"{re.escape(file)} is not YAML near lines? [12].*: .*; compare the indentation"
    ):
        params.load_params(project / OWN)
    (project / file).write_text("- 1", encoding="utf-8")
    with pytest.raises(Problem, match=rf"{re.escape(file)} holds a list; expected sections"):
        params.load_params(project / OWN)


@pytest.mark.parametrize(
    "text, lines", [("a:\n  b: 1\n c: 2\n", "near line"), ("a: 1\nb: [1,\nc: 2\n", "near lines? 2")]
)
def test_wrong_indentation_is_shown_by_its_lines(project, text, lines):
    """One sentence with numbers of lines, and no word of the parser's own files."""
    (project / OWN).write_text(text, encoding="utf-8")
    with pytest.raises(Problem, match=rf"{OWN} is not YAML {lines}") as caught:
        params.load_params(project / OWN)
    assert "\n" not in str(caught.value) and "unicode string" not in str(caught.value)


def test_what_only_snakemake_would_see_names_the_file_to_write_into():
    given = {"distil": {"methods": {"sid": {"per_data": {"cifar10": {"batch": 128}}}}}}
    config = conftest.shipped()
    update_config(config, given)
    with pytest.raises(Problem, match=rf"and {PAPER} has 256; .*dvc exp run -S {PAPER}:distil\S+batch=128"):
        params.from_snakemake(config, given, ROOT)


# --- status ---------------------------------------------------------------------------------------------


def test_no_recipe_sees_a_status(project):
    """Neither of a block nor of a section, whatever it says."""
    before = {key: step.digest for key, step in Plan(params.load_params(project / OWN)).suite("gpu-day").items()}
    for where in ("distil/methods/di/status", "distil/methods/di/per_data/cifar10/status", "distil/supplements/el/status",
                  "teacher/cifar10/status"):  # fmt: skip
        there = change(project, OWN, where, "paper")
    assert {key: step.digest for key, step in Plan(there).suite("gpu-day").items()} == before
    assert "status" not in there.section("method", "di", "cifar10") | there.section("teacher", "cifar10")


@pytest.mark.parametrize(
    ("method", "data", "status"),
    [
        ("sid", "cifar10", "authors"), ("sid", "cifar10-cond", "authors"),  # a block of its own
        ("di", "cifar10", "authors"), ("di", "cifar10-cond", "ours"),  # inherited from other images' authors
        ("dmd", "cifar10-cond", "paper"), ("dmd-unpaired", "imagenet64", "paper"), ("sid-day", "cifar10", "ours"),
        ("sid", "digits", None), ("di-b8", "digits", None),
    ],
)  # fmt: skip
def test_numbers_that_are_inherited_are_ours(method, data, status):
    assert params.load_params(ROOT / OWN).status("method", method, data) == status
