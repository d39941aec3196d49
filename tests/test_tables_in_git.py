# SPDX-License-Identifier: Apache-2.0
"""No table in git is stale: each was made by the recipe that params.yaml and the code ask for today."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path

import pytest

from eldistill.errors import Problem
from eldistill.plan import kept, params, recipes
from eldistill.plan.plan import Plan
from tests.conftest import ROOT

METRICS = "data/metrics.json.recipe"


@functools.cache
def tracked() -> list[str]:
    """The tables that git has, and data/metrics.json; without git all that are here."""
    words = ["git", "ls-files", "-z", "data/tables", "data/metrics.json", METRICS]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    there = [path for path in (ROOT / "data/tables").rglob("*") if path.is_file()] + [ROOT / METRICS]
    found = done.stdout.split("\0") if done.returncode == 0 else [str(path.relative_to(ROOT)) for path in there]
    return sorted(filter(None, found))


SIDECARS = [name for name in tracked() if name.endswith(".recipe")]


@functools.cache
def plan() -> Plan:
    """What the present params.yaml asks for."""
    return Plan(params.load_params(ROOT / "params.yaml"))


def asked(name: str, text: str) -> recipes.Step:
    """The step of a recipe in git: of a table its folder is the suite and its file the study (main: the suite's tables); of
    data/metrics.json the recipe names the suite. Raises Problem if nobody asks for it."""
    if name == METRICS:
        return plan().find("evaluate", f"suite/{json.loads(text)['params']['suite']}")
    suite, file = Path(name).parts[-2:]
    study = file.split(".")[0]
    name = suite if study == "main" else f"{suite}/{study}"
    # A table of a part of the runs names those that are missing; which ones they are follows from the kept results in git.
    return plan().partial(name) if "partial" in json.loads(text).get("params", {}) else plan().find("tables", name)


def complaint(name: str, text: str) -> str | None:
    """One sentence on a recipe that is not the one that is asked for, and what to type; None if it is."""
    folder = str(Path(name).parent)
    try:
        step = asked(name, text)
    except Problem as problem:
        return f"{name} is asked for by nobody ({problem}); type `git rm {name.split('.')[0]}.*`"
    if text == step.recipe:
        return None
    found, wanted = json.loads(text), json.loads(step.recipe)
    more = [f"version of {key}" for key in wanted["versions"] if found["versions"].get(key) != wanted["versions"][key]]
    more += [f"parameter {key}" for key in wanted["params"] if found["params"].get(key) != wanted["params"][key]]
    if "partial" in found["params"]:
        return (
            f"{name.removesuffix('.recipe')} is a table of fewer runs, or of others, than are kept; type `python -m eldistill tables "
            f"{step.name} --partial` and commit what that makes"
        )
    changed = sum(found["upstream"].get(key) != value for key, value in wanted["upstream"].items())
    more += [f"{changed} of {len(wanted['upstream'])} inputs"] if changed else []
    suite = step.params["suite"] if name == METRICS else Path(folder).name
    return (
        f"{name.removesuffix('.recipe')} is stale, its recipe is not the one that params.yaml and the code ask for "
        f"(differing: {', '.join(more) or 'what it was made of'}); type `snakemake all --config suite={suite}` and commit "
        f"what that makes, or `git rm` it with what README.md says of it"
    )


@pytest.mark.parametrize("name", SIDECARS)
def test_no_table_in_git_is_stale(name):
    """Its recipe is the text that the workflow would write today."""
    sentence = complaint(name, (ROOT / name).read_text(encoding="utf-8"))
    assert sentence is None, sentence


def test_every_file_of_a_table_has_a_recipe():
    """Whatever lies in data/tables is an output of a step whose recipe lies beside it: no file outlives what made it."""
    assert METRICS in SIDECARS and len(SIDECARS) > 1
    known = set(SIDECARS)
    for name in SIDECARS:
        step = asked(name, (ROOT / name).read_text(encoding="utf-8"))
        known |= {*step.outputs, step.record}
    known |= {kept.kept_file(suite) for suite in plan().params.values["suites"]}
    orphans = sorted(set(tracked()) - known)
    assert not orphans, f"no recipe in git says what made {orphans[0]}; type `git rm {orphans[0]}`, or make it again"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("data/tables/demo/main.csv.recipe", ("versions", "tables", 0), ["demo/main.csv is stale", "version of tables)", "suite=demo`"]),
        ("data/tables/demo/main.csv.recipe", ("params", "confidence", 0.5), ["parameter confidence)", "suite=demo`"]),
        ("data/tables/ablation/central.csv.recipe", ("upstream", "distil digits/dmd/none/0", "0"), ["1 of ", "suite=ablation`"]),
        (METRICS, ("versions", "evaluate", 0), ["data/metrics.json is stale", "version of evaluate)", "suite=demo`"]),
    ],
)  # fmt: skip
def test_a_stale_recipe_is_one_sentence_that_says_what_to_type(name, change, words):
    """Of the recipe that is wanted one number is changed: a version, a parameter, an input."""
    wanted = asked(name, json.dumps({"params": {"suite": "demo"}})).recipe
    assert complaint(name, wanted) is None
    place, key, value = change
    recipe = json.loads(wanted)
    assert recipe[place][key] != value
    recipe[place][key] = value
    sentence = complaint(name, json.dumps(recipe))
    assert "\n" not in sentence and all(word in sentence for word in words), sentence


def test_a_table_that_nobody_asks_for_is_told_from_a_stale_one():
    """Its study or its suite is gone from params.yaml."""
    for name in ("data/tables/ablation/why.csv.recipe", "data/tables/gone/main.csv.recipe"):
        assert f"{name} is asked for by nobody" in complaint(name, "{}") and "`git rm data/tables/" in complaint(
            name, "{}"
        )
