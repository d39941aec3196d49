# SPDX-License-Identifier: Apache-2.0
"""What a step is (its kind, its inputs by role), which module makes it, and what it is given."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from eldistill import contract
from eldistill.errors import Problem
from eldistill.numbers import make_numbers
from eldistill.plan import params, recipes
from eldistill.plan.plan import Plan
from eldistill.plan.recipes import KINDS, WORDS, Step
from eldistill.steps import work as works
from eldistill.steps.work import Work
from eldistill.training.machine import Machine
from tests.conftest import ROOT

PLAN = Plan(params.load_params(ROOT / "params.yaml"))
STEPS = {key: step for suite in PLAN.params.values["suites"] for key, step in PLAN.suite(suite).items()}
# What one file of a step is called; the role that an input has by its kind must be the one that it has by its file.
FILES = {
    r"data/sets/[^/]+/images\.safetensors": "images", r"data/sets/[^/]+/(judge-[ab])\.safetensors": None,
    r"data/sets/[^/]+/(reference-[^/]+)\.npz": None, r"data/sets/[^/]+/moments-clean\.npz": "moments",
    r"data/teachers/[^/]+/teacher\.safetensors": "teacher", r"data/teachers/[^/]+/check\.json": "check",
    r"data/teachers/[^/]+/pairs-\d+-\d+\.npz": "pairs", r"data/ensembles/.*\.json": "ensemble",
    r"data/runs/.*/generator_ema\.safetensors": "run", r"data/evaluations/([^/]+/){4}metrics\.json": "evaluation",
    r"data/evaluations/[^/]+/real/metrics\.json": "reals", r"data/evaluations/[^/]+/teacher/metrics\.json": "samples",
    r"data/scratch/downloads/.*": "download", r"data/metrics\.json": "metrics", r"data/tables/[^/]+/main\.csv": "tables",
    r"data/tables/[^/]+/[^/]+\.csv": "study",
}  # fmt: skip


def role_of(path: str) -> str:
    found = next((match, role) for pattern, role in FILES.items() if (match := re.fullmatch(pattern, path)))
    return found[1] or found[0][1]


def test_every_step_has_a_kind_of_its_word_and_the_role_of_its_file():
    """Kinds and names are two ways to say the same; of all kinds there is a step."""
    assert {step.kind for step in STEPS.values()} == set(KINDS) - {"moments"}  # only where somebody asks for clean-fid
    for step in STEPS.values():
        assert KINDS[step.kind] == step.word and role_of(step.outputs[0]) == step.role, step.name
        assert step.data in ("", step.name.split("/")[0])
        assert [each for steps in step.inputs.values() for each in steps] == sorted(
            step.upstream, key=lambda each: list(step.inputs).index(each.role)
        )


def test_what_a_step_reads_by_role_it_has_once():
    """Only a run (ensembles, pairs), an evaluation of latents (two packs), and what joins evaluations have several."""
    several = {(step.kind, role) for step in STEPS.values() for role, found in step.inputs.items() if len(found) > 1}
    assert several <= {("run", "ensemble"), ("run", "pairs"), ("evaluation", "images"), ("samples", "images")} | {
        (kind, role) for kind in ("metrics", "tables", "study") for role in map(str, KINDS | {"teacher": 0})
    }


def test_recipes_know_nothing_of_kinds():
    step = STEPS["distil", "digits/di/el/0"]
    other = dataclasses.replace(step, kind="images", data="x", item="y")
    assert other.recipe == step.recipe and other == step
    assert not {"kind", "data", "item"} & set(json.loads(step.recipe))


@pytest.mark.parametrize("word", WORDS)
def test_every_kind_has_its_maker(word):
    module = importlib.import_module(f"eldistill.steps.{word}")
    kinds = {kind for kind, its in KINDS.items() if its == word}
    assert callable(module.make_step) and set(getattr(module, "MAKERS", kinds)) == kinds


def test_kinds_that_ask_for_a_gpu_are_those_whose_rules_do():
    rules = {"moments_clean": "moments", "train_teacher": "teacher", "check_teacher": "check", "make_pairs": "pairs",
             "distil_run": "run", "evaluate_run": "evaluation", "evaluate_reference_run": "reals samples"}  # fmt: skip
    asking = set()
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        for name, body in re.findall(r"^rule (\w+):\n((?:(?:    .*)?\n)+)", path.read_text(encoding="utf-8"), re.M):
            if "gpu=1" in body:
                asking |= set(rules[name].split())
    assert asking == recipes.ON_GPU


# --- what it is given -----------------------------------------------------------------------------------


def work(upstream: tuple[Step, ...], **changes) -> Work:
    step = STEPS["evaluate", "digits/di/el/0"]
    given = {"step": step, "recipe": json.loads(step.recipe), "digest": step.digest, "upstream": upstream, "plan": PLAN,
             "machine": Machine(), "say": print, "force": False, "first": True, "alone": True}  # fmt: skip
    return Work(**given | changes)


def test_work_finds_its_files():
    """Inputs are those that the recipe names, which may be fewer or others than params.yaml asks for now."""
    step = STEPS["evaluate", "digits/di/el/0"]
    whole = work(step.upstream)
    assert whole.input("run") == Path("data/runs/digits/di/el/0/generator_ema.safetensors")
    assert (
        whole.optional("judge-a") == Path("data/sets/digits/judge-a.safetensors") and whole.optional("moments") is None
    )
    assert whole.output("curve.csv") == Path("data/evaluations/digits/di/el/0/curve.csv")
    assert work(()).optional("run") is None and not work(()).inputs


def test_a_generator_of_another_run_is_not_measured_under_this_name():
    """Its metadata name the recipe that made it; those of generators from before there were such names are trusted."""
    from eldistill.steps import evaluate

    run, other = (STEPS["distil", f"digits/di/{arm}/0"] for arm in ("el", "none"))
    mine = work(STEPS["evaluate", "digits/di/el/0"].upstream)
    for metadata in ({"recipe": run.digest}, {}):
        evaluate._check_made(mine, Path("generator_ema.safetensors"), metadata)
    with pytest.raises(Problem, match=r"another run.*distil digits/di/el/0 --force"):
        evaluate._check_made(mine, Path("generator_ema.safetensors"), {"recipe": other.digest})


def test_the_machine_is_what_params_yaml_says_of_it(monkeypatch):
    """Every key that is marked `site` below distil has a field; time is left for the last step and saving."""
    step, values = STEPS["distil", "digits/di/el/0"], PLAN.params
    found = works.find_machine(values, step.params, step, 60)
    assert found.max_seconds == 3600 - 300 and works.find_machine(values, step.params, step, 4).max_seconds == 180
    fields = {field.name for field in dataclasses.fields(Machine)}
    site = {key for key, each in values.definitions["distil"]["properties"].items() if each.get("site")}
    assert site <= fields and fields - site == {"device", "batch", "max_seconds"}
    asked = {key: values.top("distil")[key] for key in site}
    assert {key: getattr(found, key) for key in site} == asked | {"log": tuple(asked["log"])}
    monkeypatch.setenv("ELDISTILL_PARTS", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert (
        works.find_machine(values, step.params, step, 0).micro_batch == 11
    )  # of 64 images, in 3 processes, in two parts


def test_a_gpu_that_slurm_gave_and_torch_does_not_see_is_one_sentence(monkeypatch, tmp_path):
    """A step would compute on the CPU for hours. Without a driver the GPU is counted and not real, as in a trial of Slurm."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(works, "DRIVER_OF_GPUS", tmp_path / "version")
    step = STEPS["distil", "digits/di/el/0"]
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    assert works._device("auto", step) == "cpu"
    (tmp_path / "version").write_text("NVRM version: 535.104")
    with pytest.raises(Problem, match="Slurm gave this job a GPU .SLURM_JOB_GPUS=0., and torch .* sees none"):
        works._device("auto", step)
    assert works._device("cpu", step) == "cpu"
    monkeypatch.delenv("SLURM_JOB_GPUS")
    assert works._device("auto", step) == "cpu"


def sizes(step: Step) -> list[int]:
    """The micro-batches that a run tries one after the other while its device runs out of memory, the whole batch first."""
    given = work(step.upstream, step=step, recipe=json.loads(step.recipe), machine=Machine(fit=True))
    found = [given.params["method"]["batch"]]
    while found[-1]:
        given.machine.micro_batch = found[-1]
        found.append(works._smaller(given))
    return found[:-1]


METHODS = {json.loads(s.recipe)["params"]["method"]["file"]: s for s in STEPS.values() if s.kind == "run"}


@pytest.mark.parametrize("file", METHODS)
def test_out_of_memory_halves_down_to_the_group_of_the_method(file):
    """Never fewer than the images that the method keeps together, and that many at last."""
    values, module = json.loads(METHODS[file].recipe)["params"]["method"], contract.load_method(file)
    found, group = sizes(METHODS[file]), module.group(make_numbers(module, values))
    assert found[-1] == min(group, found[0]) and all(
        big > small >= big / 2 for big, small in zip(found, found[1:], strict=False)
    )


def test_the_group_is_the_answer_of_the_method_and_no_name_of_a_number(monkeypatch):
    """A method may compute it, and a number that happens to be called `group` means what the method says it means."""
    load = contract.load_method
    monkeypatch.setattr(contract, "load_method", lambda file: dataclasses.replace(load(file), group=lambda numbers: 24))
    assert sizes(METHODS["diff_instruct"])[-2:] == [32, 24] and sizes(METHODS["sida"])[-2:] == [32, 24]
