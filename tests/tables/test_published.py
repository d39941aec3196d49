# SPDX-License-Identifier: Apache-2.0
"""Figures of others: where they come from, beside which arm they stand, and a FID that compares with them."""

from __future__ import annotations

import copy
import json
import re
from importlib import resources

import numpy as np
import pytest
import torch

from eldistill.data import dataset as data
from eldistill.errors import Problem
from eldistill.evaluate import evaluator as evaluate
from eldistill.evaluate import features, fid, metrics
from eldistill.external import sources
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.tables import published
from tests import conftest
from tests.conftest import ROOT
from tests.toys import OneOfTwo

SHIPPED = conftest.shipped()


def test_every_row_has_a_source_and_a_figure():
    rows = published.load_figures()
    assert len(rows) > 200
    for row in rows:
        assert re.search(r"arXiv|README|arxiv|github|[A-Z]\w+/\w+@", row["source"]) or len(row["source"]) > 10, row
        assert float(row["fid"]) > 0 and row["dataset"] and row["method"], row
    assert len({tuple(row.values()) for row in rows}) == len(rows)


def test_it_is_shipped_as_package_data():
    assert resources.files("eldistill").joinpath("tables/published.csv").is_file()
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "tables/published.csv" in text


def test_a_published_figure_stands_beside_its_arm():
    found = lambda *arm: [(row["method"], row["fid"]) for row in published.figures_for(*arm)]  # noqa: E731
    assert found("cifar10", "sid2a", "el") == [("SiD2A+EL", "1.475")]
    assert found("cifar10-cond", "sid2a", "el") == [("SiD2A+EL", "1.380")]
    assert found("cifar10", "di", "none") == [("Diff-Instruct (DI)", "4.53")]
    assert ("EDM (VP) teacher", "1.97") in found("cifar10", "teacher", "none")
    assert found("cifar10", "di", "pixel-mmd") == [] and found("cifar10", "unknown", "none") == []
    elsewhere = published.figures_for("digits", "sid2a", "el")
    assert len({row["dataset"] for row in elsewhere}) > 2  # of other data: the page says that they compare with nothing


@pytest.mark.parametrize("method", [name for name in published.METHODS if name != "teacher"])
def test_each_method_is_one_of_the_project(method):
    assert method in SHIPPED["distil"]["methods"] and published.figures_for("digits", method, "none")
    assert set(published.SETS) <= set(SHIPPED["data"])


# --- the FID that compares ------------------------------------------------------------------------------


def images(n: int, first: int = 0) -> list[torch.Tensor]:
    """Image i of a stream, in chunks of 7."""
    every = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (300, 1, 2, 2), np.uint8))
    return list(every[first : first + n].split(7))


def space(chunk: torch.Tensor) -> torch.Tensor:
    return chunk.flatten(1).float() / 255


REFERENCE = (np.full(4, 0.4), 0.1 * np.eye(4))


def test_blocks_follow_each_other_and_the_mean_is_the_figure():
    ruler = evaluate.Evaluator({}, {}, {"fid": {"n": 100, "blocks": 3, "reference": "fid-refs-cifar10-32x32"}})
    found = ruler.fid(images, space, REFERENCE, "inception_edmref")
    each = [
        metrics.frechet(*metrics.moments(features.embed(images(100, 100 * b), space)), *REFERENCE) for b in range(3)
    ]
    assert [found[f"fid100_inception_edmref_block{b + 1}"] for b in range(3)] == pytest.approx(each, rel=1e-9)
    assert found["fid100_inception_edmref"] == pytest.approx(np.mean(each))
    assert found["fid100_inception_edmref_min"] == pytest.approx(min(each))
    assert found["fid100_inception_edmref_sd"] == pytest.approx(np.std(each, ddof=1))
    one = evaluate.Evaluator({}, {}, {"fid": {"n": 100, "blocks": 1}}).fid(images, space, REFERENCE, "x")
    assert set(one) == {"fid100_x", "fid100_x_min", "fid100_x_block1"}


class Half(OneOfTwo):
    """One of two processes, the other of which has been asked before."""

    def sum_of(self, value):
        if self.rank:
            return np.asarray(value) + self.other.pop(0)
        self.other.append(np.asarray(value, np.float64))
        return np.asarray(value, np.float64)


def test_two_processes_find_what_one_finds():
    options, said = {"fid": {"n": 105, "blocks": 2}}, []
    alone = evaluate.Evaluator({}, {}, options, 7).fid(images, space, REFERENCE, "x")
    evaluate.Evaluator({}, {}, options, 7, Half(0, said)).fid(images, space, REFERENCE, "x")
    both = evaluate.Evaluator({}, {}, options, 7, Half(1, said)).fid(images, space, REFERENCE, "x")
    assert both == pytest.approx(alone, rel=1e-9) and not said


def test_features_that_do_not_belong_to_the_reference_are_one_sentence():
    with pytest.raises(
        Problem, match="features have 4 dimensions, the reference statistics 3; expected the same number"
    ):
        fid.fid_of_blocks(lambda block: images(20), space, (np.zeros(3), np.eye(3)), "x", 1)


def test_images_become_levels_as_edm_rounds_them():
    """(x 127.5 + 128), clipped and cut off: the uint8 of EDM's own script, for pixels on [-1, 1]."""
    x = torch.linspace(-1.1, 1.1, 4001).reshape(1, 1, 1, -1)
    wanted = (x * 127.5 + 128).clip(0, 255).to(torch.uint8)
    assert torch.equal(data.decode(x, {"mean": 0.5, "std": 0.25}), wanted)


def plan(**changes) -> Plan:
    values = copy.deepcopy(SHIPPED)
    values["evaluate"]["per_data"].setdefault("digits", {}).update(changes)
    return Plan(params.from_values(values, ROOT))


def test_asking_for_it_is_part_of_the_recipe_and_not_asking_is_not():
    def recipe(here):
        return json.loads(here.evaluation(here.params.run("digits/di/el/0")).recipe)

    assert "fid" not in recipe(plan())["params"] and "fid" not in recipe(plan())["versions"]
    asked = recipe(plan(fid={"reference": "fid-refs-cifar10-32x32"}))
    assert asked["params"]["fid"] == {"reference": "fid-refs-cifar10-32x32", "n": 50000, "blocks": 3, "version": "1"}
    assert {"fid", "spaces/inception"} <= set(asked["versions"])
    with pytest.raises(Problem, match="fid-refs-cifar10"):
        recipe(plan(fid={"reference": "fid-refs-cifar"}))


@pytest.mark.parametrize("name", published.SETS)
def test_the_data_sets_of_the_papers_ask_for_it(name):
    here = Plan(params.from_values(copy.deepcopy(SHIPPED), ROOT))
    wanted = here.params.top("evaluate", name)["fid"]
    assert (wanted["n"], wanted["blocks"]) == (50_000, 3)
    teacher = here.params.section("teacher", here.params.section("data", name)["teacher"])
    assert wanted["reference"] == sources.source_row(teacher["source"], ROOT / sources.TABLE)["reference"]
