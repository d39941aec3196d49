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
from eldistill.evaluate import features, fid, gaussians
from eldistill.external import sources
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.tables import published, suite
from tests import conftest
from tests.conftest import ROOT
from tests.toys import OneOfTwo

SHIPPED = conftest.shipped()


# The figures of DMAD are on a project page that names no paper and has no commits.
SOURCE = re.compile(r"arXiv \d{4}\.\d{5}\b|\w@[0-9a-f]{7}\b|^DMAD project-page table")
PLACES = {("CIFAR-10", "no", "32"), ("CIFAR-10", "yes", "32"), ("ImageNet", "yes", "64"), ("ImageNet", "yes", "512"),
          ("FFHQ", "no", "64"), ("AFHQv2", "no", "64")}  # fmt: skip


def at(row) -> tuple[str, str, str]:
    return row["dataset"], row["conditional"], row["resolution"]


def test_every_row_names_a_paper_or_a_commit_and_a_figure():
    rows = published.load_figures()
    assert len(rows) > 290
    for row in rows:
        assert SOURCE.search(row["source"]) and row["method"] and at(row) in PLACES, row
        assert float(row["fid"]) > 0 and re.fullmatch(r"(\d+(x2)?)?", row["nfe"]), row
        assert all(0 < float(row[name]) < 1 for name in ("precision", "recall") if row[name]), row
        assert not row["inception_score"] or float(row["inception_score"]) > 1, row
    assert [row["method"] for row in rows if not row["nfe"]] == ["EDM (as evaluated by GDD authors)"]


def test_a_method_has_one_figure_for_a_number_of_calls():
    """Two figures of one method have two names, which say who measured them or of what size it is."""
    rows = [(*at(row), row["method"], row["nfe"]) for row in published.load_figures()]
    assert sorted(rows) == sorted(set(rows))


def test_the_file_has_the_columns_that_its_reader_names():
    for name in published.load_figures()[0]:
        assert name in published.load_figures.__doc__
    assert None not in published.load_figures()[0] and all(None not in row.values() for row in published.load_figures())


def figures(place: str, method: str) -> dict[str, str]:
    """{calls: FID} of the rows of a method on a data setting."""
    return {row["nfe"]: row["fid"] for row in published.load_figures()
            if at(row) == published.SETS[place] and row["method"] == method}  # fmt: skip


CORRECTED = [  # data setting, method, {calls: FID}, and what its source names
    ("imagenet64", "EDM2-S (Heun)", {"63": "1.58"}, "NVlabs/edm2"),
    ("imagenet64", "EDM2-M (Heun)", {"63": "1.43"}, "NVlabs/edm2"),
    ("imagenet64", "EDM2-L (Heun)", {"63": "1.33"}, "NVlabs/edm2"),
    ("imagenet64", "EDM2-XL (Heun)", {"63": "1.33"}, "NVlabs/edm2"),
    ("imagenet64", "EDM2 (Heun; size not stated)", {"63": "1.33"}, "2410.11081"),
    ("cifar10-cond", "Uni-Instruct", {"1": "1.38"}, "2505.20755"),
    ("cifar10", "TCM", {"1": "2.46", "2": "2.05"}, "NVlabs/TCM"),
    ("cifar10", "RealUID + FT", {"1": "1.98"}, "2509.22459"),
    ("cifar10", "RealUID + FT (published weights; EMA 0.9999)", {"1": "1.91"}, "RealUID README@"),
    ("cifar10-cond", "RealUID + FT", {"1": "1.87"}, "2509.22459"),
    ("cifar10-cond", "RealUID + FT (published weights; EMA 0.9999)", {"1": "1.77"}, "RealUID README@"),
    ("cifar10-cond", "CTM (+GAN)", {"1": "1.73"}, "conditional by"),
    ("cifar10", "CTM (+GAN)", {"1": "1.98", "2": "1.87"}, "2410.18958"),
    ("cifar10", "SCT", {"1": "3.11", "2": "2.05"}, "2410.18958"),
    ("cifar10", "SIM", {"1": "2.06"}, "2410.16794"),
]


@pytest.mark.parametrize(("place", "method", "wanted", "source"), CORRECTED)
def test_corrected_rows(place, method, wanted, source):
    assert figures(place, method) == wanted
    rows = [row for row in published.load_figures() if (at(row), row["method"]) == (published.SETS[place], method)]
    assert all(source in row["source"] for row in rows)


ADDED = [  # data setting, method, FIDs in the order of the calls
    ("cifar10", "CMT (then ECT)", "2.74 1.97"), ("cifar10", "ADCM", "2.80"), ("cifar10", "HKD", "3.30"),
    ("cifar10", "2-Rectified Flow++", "3.38"), ("cifar10", "SCT*", "2.92 2.02"), ("cifar10", "CCM (+GAN)", "1.64"),
    ("cifar10", "ECT (FastGen)", "2.92"), ("cifar10", "sCT (FastGen)", "3.23"), ("cifar10", "sCD (FastGen)", "3.22"),
    ("cifar10", "TCM (FastGen)", "2.70"), ("cifar10", "MeanFlow (FastGen)", "2.82"),
    ("cifar10-cond", "DMD2 (by the authors of f-distill)", "2.13"), ("cifar10-cond", "f-distill (forward KL)", "1.92"),
    ("cifar10-cond", "DMD2 (FastGen)", "1.99"), ("cifar10-cond", "f-distill (FastGen)", "1.85"), ("cifar10-cond", "R3GAN", "1.96"),
    ("ffhq64", "CMT (then ECT)", "3.89 2.75"), ("ffhq64", "ECT/ECM (by the authors of HKD)", "5.99"), ("ffhq64", "HKD", "5.70"),
    ("ffhq64", "R3GAN", "1.95"), ("afhqv2-64", "CMT (then ECT)", "3.28 2.34"),
    ("imagenet64", "f-distill (Jensen-Shannon)", "1.16"), ("imagenet64", "f-distill (FastGen)", "1.11"),
    ("imagenet64", "DMD2 (FastGen)", "1.12"), ("imagenet64", "ECT (FastGen; EDM2-S)", "4.05"),
    ("imagenet64", "TCM (FastGen; EDM2-XL)", "2.23"), ("imagenet64", "TCM (EDM2-S)", "2.88 2.31"),
    ("imagenet64", "TCM (EDM2-XL)", "2.20 1.62"), ("imagenet64", "CMT", "1.32"), ("imagenet64", "MSD (4 students)", "1.20"),
    ("imagenet64", "R3GAN", "2.09"), ("imagenet64", "ADCM (2x model)", "3.04"), ("imagenet64", "SCT-S", "5.10 3.05 2.51"),
    ("imagenet64", "SCT-M", "3.30 2.13 1.83"), ("imagenet64", "SCT-M*", "2.42 1.55"), ("imagenet64", "CCM (+GAN)", "2.18"),
    ("imagenet64", "CD (as evaluated by GDD authors)", "6.87"), ("imagenet64", "MultiStep-CD", "3.20 1.90 1.6 1.4"),
    ("imagenet64", "PD (with aDDIM; by Heek et al.)", "10.7 4.7 2.4 1.7"),
    ("imagenet512-s", "FreeFlow (teacher SiT-XL/2+REPA)", "1.49"), ("imagenet512-s", "pMF-B/32", "3.70"),
    ("imagenet512-s", "pMF-L/32", "2.75"), ("imagenet512-s", "pMF-H/32", "2.48"), ("imagenet512-s", "CMT", "1.84"),
    ("imagenet512-s", "ADCM (M)", "10.53"), ("imagenet512-s", "ECT/ECM (S; by the authors of ADCM)", "25.69"),
    ("imagenet512-s", "ECT/ECM (M; by the authors of ADCM)", "13.55"),
]  # fmt: skip


def test_added_rows():
    for place, method, wanted in ADDED:
        found = figures(place, method)
        assert " ".join(found[calls] for calls in sorted(found, key=int)) == wanted, (place, method)
    teachers = [
        figures("imagenet512-s", f"sCM's own teacher ({size}) with guidance")["63x2"]
        for size in ("S", "M", "L", "XL", "XXL")
    ]
    assert teachers == ["2.29", "2.00", "1.87", "1.80", "1.73"]


def test_the_rows_of_the_embedding_loss_stay_as_they_are():
    rows = [
        (row["dataset"], row["conditional"], row["method"], row["fid"])
        for row in published.load_figures()
        if "+EL" in row["method"]
    ]
    assert rows == [
        ("CIFAR-10", "no", "DI+EL", "3.95"), ("CIFAR-10", "no", "SiD2A+EL", "1.475"), ("CIFAR-10", "yes", "SiD2A+EL", "1.380"),
        ("ImageNet", "yes", "SiD2A+EL (teacher size not stated)", "2.132"), ("FFHQ", "no", "SiD2A+EL", "1.06"),
        ("AFHQv2", "no", "SiD2A+EL", "1.26"),
    ]  # fmt: skip


@pytest.mark.parametrize("resolution", ["64", "512"])
def test_the_figures_of_edm2_are_those_of_the_files_that_are_fetched(resolution):
    """data/sources.csv and published.csv name the same FID for the same network, and Heun's 32 steps as 63 calls."""
    end = {"64": " (Heun)", "512": " without guidance"}[resolution]
    theirs = {
        row["method"]: (row["nfe"], float(row["fid"]))
        for row in published.load_figures()
        if row["resolution"] == resolution
    }
    text = (ROOT / sources.TABLE).read_text(encoding="utf-8")
    found = re.findall(rf'^edm2-img{resolution}-(\w+)-\d+-[\d.]+,.*"fid ([\d.]+), (\d+) calls"', text, re.M)
    assert len(found) >= 4
    for size, figure, calls in found:
        assert theirs[f"EDM2-{size.upper()}{end}"] == (calls, float(figure)), size


# --- ImageNet in the discriminator -------------------------------------------------------------------


def test_who_used_a_discriminator_trained_on_imagenet_is_marked_with_its_source():
    marks = {row["method"].split(" (")[0]: set() for row in published.load_figures()}
    for row in published.load_figures():
        assert row["imagenet_discriminator"] in ("yes", "no", ""), row
        if row["imagenet_discriminator"]:
            assert SOURCE.search(row["note"].split("Discriminator: ")[1]) or "authors state" in row["note"], row
        marks[row["method"].split(" (")[0]].add(row["imagenet_discriminator"])
    marked = {name for name, each in marks.items() if "yes" in each}
    distilled = {"CTM", "CCM", "DMAD + projected discriminator", "D2O-F", "GDD-I"}
    assert marked == distilled | {"Diffusion ProjectedGAN", "StyleGAN-XL", "StyleSAN-XL"}
    assert all(len(each) == 1 for name, each in marks.items() if name != "CTM")  # CTM has a row without a GAN
    assert {name for name, each in marks.items() if "no" in each} == {"R3GAN"}


def test_the_mark_and_the_note_stand_in_the_tables_of_a_suite(monkeypatch):
    monkeypatch.setitem(published.METHODS, "di", ("CTM", "DMD"))
    row = {"data": "cifar10", "method": "di", "supplement": "none", "seeds": 1}
    ctm, *_, dmd = [each for each in suite.published_rows([row]) if each["calls"] == "1"]
    assert (ctm["published_as"], dmd["published_as"]) == ("CTM (no GAN)", "DMD")
    marked = next(each for each in suite.published_rows([row]) if each["published_fid"] == "1.98")
    assert marked["published_as"] == "CTM (+GAN), discriminator trained on ImageNet"
    assert "Quoted as 1.87" in marked["source"] and dmd["source"] == "DMD arXiv 2311.18828 Table 6"


def test_a_quote_differs_from_the_figure():
    rows = [row for row in published.load_figures() if row["note"].startswith("Quoted as ")]
    assert len(rows) == 7
    for row in rows:
        quoted = re.match(r"Quoted as ([\d.]+\d)\b", row["note"])[1]
        assert float(quoted) != float(row["fid"]) and re.search(r"by \w+ arXiv \d{4}\.\d{5} Table \d", row["note"]), row


def test_one_method_under_two_names_says_so():
    for row in published.load_figures():
        if row["method"].startswith(("GDD-I", "D2O-F")):
            assert "GDD-I" in row["note"] and "D2O-F" in row["note"] and "one method" in row["note"]


def test_a_teacher_of_512_pixels_stands_beside_its_own_figure():
    rows = published.figures_for("imagenet512-s", "teacher", "none")
    assert [(row["method"], row["fid"]) for row in rows] == [("EDM2-S without guidance", "2.56")]
    assert all(published.is_comparable("imagenet512-s", "teacher", row) for row in rows)


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
        gaussians.frechet(*gaussians.moments(features.embed(images(100, 100 * b), space)), *REFERENCE) for b in range(3)
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
