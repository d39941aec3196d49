# SPDX-License-Identifier: Apache-2.0
"""What is planned: downloads as steps of their own, the page of `eldistill plan`, and the bill that stops a plan."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from eldistill import __main__, files
from eldistill.commands import cost, planned
from eldistill.errors import Problem
from eldistill.external import fetching
from eldistill.plan import driver, freshness, params
from eldistill.plan.plan import Plan
from eldistill.registry import readers
from tests import conftest
from tests.conftest import ROOT

SHIPPED = conftest.shipped()


def plan_of(root: Path = ROOT, **suites) -> Plan:
    values = copy.deepcopy(SHIPPED)
    values["suites"] |= suites
    return Plan(params.from_values(values, root))


def grid(data: str, method: str = "di", supplement: str = "none") -> list[dict]:
    return [{"data": [data], "methods": [method], "supplements": [supplement], "seeds": [0]}]


def downloads_of(plan: Plan, suite: str) -> dict[str, list[str]]:
    """Names of downloads by the step that waits for them."""
    found = {}
    for step in plan.suite(suite).values():
        assert all(each.on_demand for each in step.after if each.name.startswith("download/"))
        if names := sorted(each.name.split("/")[1] for each in step.after if each.on_demand):
            found[f"{step.word} {step.name}"] = names
    return found


# --- downloads ------------------------------------------------------------------------------------------


def test_every_file_that_a_suite_reads_has_a_download():
    found = downloads_of(plan_of(one=grid("cifar10")), "one")
    inception, reference = "inception-2015-12-05-pkl", "fid-refs-cifar10-32x32"
    assert found == {
        "data cifar10/images": ["cifar-10-python"],
        "teacher edm-cifar10": ["edm-cifar10-32x32-uncond-vp"],
        "teacher edm-cifar10/check": [reference, inception],
        "evaluate cifar10/real": [reference, inception],
        "evaluate cifar10/teacher": [reference, inception],
        "evaluate cifar10/di/none/0": [reference, inception],
    }


def test_the_parts_of_idx_and_the_autoencoder_of_latents():
    found = downloads_of(plan_of(one=grid("fashion-mnist"), two=grid("imagenet512-s")), "one")
    assert found == {
        "data fashion-mnist/images": sorted(row.format(files="fashion-mnist") for row in readers()["idx"].downloads)
    }
    found = downloads_of(plan_of(two=grid("imagenet512-s")), "two")
    assert "sd-vae-ft-mse" in found["evaluate imagenet512-s/di/none/0"] and "data imagenet512-s/images" not in found


def test_clean_fids_figures_need_inception_and_no_other_file():
    values = copy.deepcopy(SHIPPED)
    values["evaluate"]["per_data"]["cifar10"]["fid"]["clean"] = True
    values["suites"]["one"] = grid("cifar10")
    found = downloads_of(Plan(params.from_values(values, ROOT)), "one")
    before = downloads_of(plan_of(one=grid("cifar10")), "one")
    assert found == before | {"data cifar10/moments-clean": ["inception-2015-12-05-pkl"]}


@pytest.mark.parametrize(
    ("section", "change", "gone"),
    [
        ("data", {"cifar10": {"folder": "/here"}}, "data cifar10/images"),
        ("data", {"cifar10": {"path": "/here/cifar-10-python.tar.gz"}}, "data cifar10/images"),
        ("teacher", {"edm-cifar10": {"file": "/here/net.pkl"}}, "teacher edm-cifar10"),
    ],
)
def test_what_the_user_has_is_not_fetched(section, change, gone):
    values = copy.deepcopy(SHIPPED)
    for name, keys in change.items():
        values[section][name] |= keys
    values["suites"]["one"] = grid("cifar10")
    assert gone not in downloads_of(Plan(params.from_values(values, ROOT)), "one")


def test_a_download_decides_nothing():
    """Not a recipe, and not a run that is finished: only a step that runs waits for it."""
    plan = plan_of(one=grid("cifar10"))
    step = plan.teacher("edm-cifar10")
    assert not any("download" in name for name in json.loads(step.recipe)["upstream"])
    (download,) = step.after
    inputs = freshness.Inputs([], lambda path: path, forced=False, root=ROOT)
    assert download.sidecar not in inputs(step)
    inputs = freshness.Inputs([step, download], lambda path: path, forced=False, root=ROOT)
    assert download.sidecar in inputs(step)
    assert download not in freshness.stale_targets(plan.suite("one").values(), set(), ROOT)


def test_every_place_that_fetches_is_planned():
    """The names that modules ask for are literals, parameters of a step, or DOWNLOADS of a space: a new kind fails here."""
    calls = {
        path.relative_to(ROOT / "src/eldistill").as_posix(): len(
            re.findall(r"\bfetch\(", path.read_text(encoding="utf-8"))
        )
        for path in (ROOT / "src/eldistill").rglob("*.py")
    }
    assert {name for name, count in calls.items() if count} == {
        "commands/check.py", "data/latents.py", "data/readers/cifar10.py", "data/readers/idx.py", "external/fetching.py",
        "spaces/inception.py", "spaces/inception_clean.py", "steps/data.py", "steps/evaluate.py", "teacher/check.py",
        "teacher/convert.py",
    }, "tell Plan what the new place reads (`_downloads`), then add it here"  # fmt: skip


@pytest.fixture
def project(project, monkeypatch) -> Path:
    """A project with a row of the table of published files in a local mirror."""
    Path("mirror").mkdir()
    Path("mirror/cifar10-32x32.npz").write_bytes(b"statistics")
    for name in ("ELDISTILL_STORE", "ELDISTILL_FETCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ELDISTILL_MIRROR", "mirror")
    monkeypatch.setenv("ELDISTILL_OFFLINE", "1")
    return project


def test_a_download_is_a_link_into_the_store(project):
    """Made once; made again when the file is gone; the same content under another name of the store too."""
    assert __main__.main(["data", "download/fid-refs-cifar10-32x32"]) == 0
    link = Path("data/scratch/downloads/fid-refs-cifar10-32x32/file")
    assert link.is_symlink() and link.read_bytes() == b"statistics"
    step = Plan(params.load_params()).download("fid-refs-cifar10-32x32")
    assert step.fresh(project)
    link.resolve().unlink()
    assert not step.fresh(project)
    assert __main__.main(["data", "download/fid-refs-cifar10-32x32"]) == 0 and step.fresh(project)


def test_a_job_takes_what_is_there_and_asks_nobody(project, monkeypatch):
    monkeypatch.setenv("ELDISTILL_FETCH", "no")
    with pytest.raises(Problem, match="fid-refs-cifar10-32x32 is not in data/scratch/store, and jobs fetch nothing"):
        fetching.fetch("fid-refs-cifar10-32x32")
    monkeypatch.delenv("ELDISTILL_FETCH")
    path = fetching.fetch("fid-refs-cifar10-32x32")
    shutil.rmtree("mirror")
    monkeypatch.setenv("ELDISTILL_FETCH", "no")
    assert fetching.fetch("fid-refs-cifar10-32x32") == path


def test_an_unknown_download_is_one_sentence(project, capsys):
    assert __main__.main(["data", "download/fid-refs-cifar"]) == 2
    assert "fid-refs-cifar10-32x32" in capsys.readouterr().err


# --- the page -------------------------------------------------------------------------------------------


def made(plan: Plan, suite: str) -> None:
    """Every output of a suite and its recipe, as a finished project has them."""
    for step in plan.suite(suite).values():
        for output in () if step.on_demand else step.outputs:
            files.write_text(plan.params.root / output, "x")
            files.write_text(plan.params.root / step.sidecar, step.recipe)


def test_the_page_says_what_is_stale_and_why(project):
    plan = Plan(params.load_params())
    states = planned.suite_states(plan, "smoke")
    assert {each.is_ for each in states} == {"missing"}
    made(plan, "smoke")
    assert {each.is_ for each in planned.suite_states(plan, "smoke")} == {"fresh"}
    values = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    values["distil"]["supplements"]["el"]["weight"] = 1.4
    changed = Plan(params.from_values(values, project))
    Path("data/tables/smoke/main.tex").unlink()
    states = {f"{each.step.word} {each.step.name}": each for each in planned.suite_states(changed, "smoke")}
    assert states["distil digits-smoke/di/el/0"].why == ("supplements.el.weight: 0.7 → 1.4",)
    assert states["distil digits-smoke/di/none/0"].is_ == "fresh"
    assert states["evaluate digits-smoke/di/el/0"] == planned.State(
        states["evaluate digits-smoke/di/el/0"].step, "stale", ()
    )
    text = "\n".join(planned.plan_page(changed, "smoke", "the bill"))
    assert "supplements.el.weight: 0.7 → 1.4   (distil digits-smoke/di/el/0)" in text and "the bill" in text
    assert "3 steps that follow from them" in text
    states = {each.step.name: each for each in planned.suite_states(plan, "smoke") if each.step.word == "tables"}
    assert states["smoke"].why == ("data/tables/smoke/main.tex is missing",)


def test_a_file_of_all_suites_is_not_compared_with_that_of_another(project):
    """data/metrics.json of another suite is stale because of the suite, not because of each of its numbers."""
    plan = Plan(params.load_params())
    made(plan, "smoke"), made(plan, "demo")
    (last,) = (each for each in planned.suite_states(plan, "smoke") if each.step.outputs[0] == "data/metrics.json")
    assert last.why == ("data/metrics.json holds suite/demo; it will hold suite/smoke",)


def test_what_is_to_be_downloaded(project):
    plan = plan_of(project, one=grid("cifar10"))
    states = planned.suite_states(plan, "one")
    assert sorted(planned.downloads(plan, states)) == [
        "cifar-10-python", "edm-cifar10-32x32-uncond-vp", "fid-refs-cifar10-32x32", "inception-2015-12-05-pkl",
    ]  # fmt: skip
    made(plan, "one")
    assert planned.downloads(plan, planned.suite_states(plan, "one")) == []


# --- the bill -------------------------------------------------------------------------------------------


def test_a_bill_above_the_limit_is_refused_with_a_way_out(project):
    plan = plan_of(project, one=grid("cifar10"))
    assert cost.hours_left(cost.bills_left(plan, "one")) > 100
    with pytest.raises(
        Problem, match=r"1 trainings are left, .* hours .*max_gpu_hours allows 100 hours: .*ELDISTILL_MAX_GPU_HOURS="
    ):
        cost.check_allowed(plan, "one", 100)
    assert "1 trainings are left" in cost.check_allowed(plan, "one", 1e9)
    assert "less than an hour" in cost.check_allowed(plan, "demo", 0.5)
    assert "less than an hour" in cost.check_allowed(plan, "bench", 0.5)


def test_what_cannot_be_counted_stops_nothing(project):
    values = copy.deepcopy(SHIPPED)
    values["teacher"]["mine"] = {"data": "cifar10", "file": "net.pkl"}
    values["data"]["cifar10"]["teacher"] = "mine"
    values["suites"]["one"] = grid("cifar10")
    assert "is not known yet" in cost.check_allowed(Plan(params.from_values(values, project)), "one", 1e-9)


@pytest.mark.parametrize("network", ["a file that is missing", "images of unknown size"])
def test_a_plan_needs_no_bill(project, network, capsys, monkeypatch):
    """The page says which steps are missing, and why there are no hours; without it a user's own teacher ended the command."""
    monkeypatch.chdir(project)
    values = copy.deepcopy(SHIPPED)
    values["data"]["mine"] = {
        "source": "folder", "path": "nowhere", "heldout": 9, "codec": {"mean": 0.5, "std": 0.25}, "teacher": "mine",
    }  # fmt: skip
    own = {"file": "net.pkl"} if "file" in network else {"network": {"network": "song", "model_channels": 16}}
    values["teacher"]["mine"] = {"data": "mine", **own}
    values["distil"]["methods"]["di"]["per_data"]["mine"] = {"n_images": 640, "batch": 32}
    values["suites"]["one"] = grid("mine")
    monkeypatch.setattr(params, "load_params", lambda: params.from_values(values, project))
    assert __main__.main(["plan", "one"]) == 0
    said = capsys.readouterr().out
    assert "is not known yet" in said and "nowhere does not exist" in said and "missing" in said


@pytest.mark.parametrize(
    ("targets", "words", "trains"),
    [
        (set(), {"distil"}, True),
        ({"all"}, {"distil", "evaluate"}, True),
        ({"data", "teacher"}, {"distil"}, False),
        ({"all"}, {"evaluate"}, False),
        ({"distil"}, set(), False),
    ],
)
def test_only_a_call_that_may_train_is_asked(targets, words, trains):
    workflow = SimpleNamespace(dag_settings=SimpleNamespace(targets=targets))
    assert driver.trains(workflow, [SimpleNamespace(word=word) for word in words]) == trains
