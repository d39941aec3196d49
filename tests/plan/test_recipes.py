# SPDX-License-Identifier: Apache-2.0
"""Recipes: equal numbers give equal digests, and a changed number retires exactly what depends on it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from eldistill import paths
from eldistill.errors import Problem
from eldistill.files import canonical, digest
from eldistill.paths import PACKAGE
from eldistill.plan import freshness, params, recipes, versions
from eldistill.plan.plan import Plan
from eldistill.registry import literal
from tests import conftest
from tests.conftest import ROOT

SHIPPED = conftest.shipped()

SHIPPED["suites"]["demo"] = [  # the cases below count this grid
    {"data": ["digits"], "methods": ["di"], "supplements": ["none", "el", "pixel-mmd"], "seeds": [0, 1, 2]}
]


def values_with(path: str = "", value=None) -> dict:
    """The shipped params.yaml with one value replaced."""
    values = copy.deepcopy(SHIPPED)
    if path:
        *above, last = path.split("/")
        place = values
        for step in above:
            place = place.setdefault(step, {}) if isinstance(place, dict) else place[int(step)]
        place[last] = value
    return values


def plan(path: str = "", value=None) -> Plan:
    return Plan(params.from_values(values_with(path, value), ROOT))


def steps(path: str = "", value=None, suite: str = "demo") -> dict[str, recipes.Step]:
    return {f"{word} {name}": step for (word, name), step in plan(path, value).suite(suite).items()}


def digests(path: str = "", value=None, suite: str = "demo") -> dict[str, str]:
    return {name: step.digest for name, step in steps(path, value, suite).items()}


BEFORE = digests()


def differing(after: dict[str, str], before: dict[str, str] = BEFORE) -> set[str]:
    assert after.keys() == before.keys()
    return {name for name in before if before[name] != after[name]}


def runs(supplements=("none", "el", "pixel-mmd"), seeds=(0, 1, 2), data="digits") -> set[str]:
    return {f"{data}/di/{supplement}/{seed}" for supplement in supplements for seed in seeds}


def down(of_runs: set[str]) -> set[str]:
    """These runs, their evaluations and what stands on all evaluations."""
    words = {f"{word} {run}" for run in of_runs for word in ("distil", "evaluate")}
    return words | {"evaluate suite/demo", "tables demo"}


JUDGED = {
    "data digits/judge-a",
    "data digits/judge-b",
    "data digits/reference-judge-a",
    "data digits/reference-judge-b",
}
REFERENCE_RUNS = {"evaluate digits/real", "evaluate digits/teacher"}
EVALUATIONS = {f"evaluate {run}" for run in runs()} | REFERENCE_RUNS | {"evaluate suite/demo", "tables demo"}
CHECK = {"teacher digits/check"}
TAUGHT = {"teacher digits", "evaluate digits/teacher"} | CHECK
ENSEMBLES = {f"ensemble digits/{name}/{seed}" for name in ("conv4", "identity") for seed in (0, 1, 2)}


# --- what a suite needs -------------------------------------------------------------------------------


def test_a_suite_holds_every_step_upstream_first():
    found = list(steps())
    assert set(found) == {
        "data digits/images", "data digits/reference-pixels", "teacher digits", *CHECK, *JUDGED, *ENSEMBLES,
        *down(runs()), *REFERENCE_RUNS,
    }  # fmt: skip
    place = {name: index for index, name in enumerate(found)}
    for name, step in steps().items():
        for above in (*step.upstream, *step.after):
            assert place[f"{above.word} {above.name}"] < place[name]


def test_every_step_is_found_again_by_its_name():
    whole = plan()
    for suite in SHIPPED["suites"]:
        for (word, name), step in whole.suite(suite).items():
            assert whole.find(word, name) == step


def test_no_two_steps_write_the_same_file():
    for suite in SHIPPED["suites"]:
        outputs = [
            path
            for step in steps(suite=suite).values()
            for path in (*step.outputs, step.sidecar, step.record, step.file, step.token)
        ]
        assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize(
    ("word", "name", "near"),
    [
        ("data", "digit/images", "digits"), ("data", "digits/image", "did you mean images?"), ("data", "digits", "--help"),
        ("teacher", "digit", "digits"), ("ensemble", "digits/conv5/0", "conv4"), ("ensemble", "digits/conv4", "--help"),
        ("distil", "digits/dii/el/0", "di"), ("distil", "digits/di/el", "DATA/METHOD"), ("tables", "dem", "demo"),
        ("evaluate", "suite/dem", "demo"), ("evaluate", "digits/rael", "--help"), ("evaluate", "digits/di/no/0", "el"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_one_sentence_with_what_there_is(word, name, near):
    with pytest.raises(Problem) as caught:
        plan().find(word, name)
    assert near in str(caught.value) and "\n" not in str(caught.value)


# --- digests ------------------------------------------------------------------------------------------


def test_equal_params_give_equal_digests():
    assert digests() == BEFORE
    turned = yaml.safe_load(yaml.safe_dump(SHIPPED, sort_keys=True))
    turned = {key: turned[key] for key in reversed(turned)}
    again = Plan(params.from_values(turned, ROOT)).suite("demo")
    assert {f"{word} {name}": step.digest for (word, name), step in again.items()} == BEFORE


def test_a_recipe_is_canonical_json_and_its_digest_is_of_the_text():
    for step in steps().values():
        value = json.loads(step.recipe)
        assert canonical(value) == step.recipe and "\n" not in step.recipe
        assert set(value) == {"step", "name", "versions", "params", "upstream"}
        assert value["upstream"] == {f"{each.word} {each.name}": each.digest for each in step.upstream}
        assert step.digest == digest(step.recipe)


@pytest.mark.parametrize(
    ("path", "one", "other"),
    [
        ("distil/methods/di/sigma_init", 1, 1.0),
        ("teacher/digits/n_images", 6400, 6400.0),
        ("teacher/digits/optimiser/lr", 1, 1.0),
        ("data/digits/codec/mean", 0, 0.0),
        ("distil/supplements/el/weight", 1, 1.0),
        ("threads", 2, 2.0),
        ("ensemble/conv4/members/0/bias", 1, 1.0),
        ("suites/demo/0/seeds", [0, 1, 2], [0, 1.0, 2]),
        ("teacher/digits/network/dropout", 0, 0.0),
    ],
)
def test_1_and_1_point_0_are_the_same_number(path, one, other):
    assert digests(path, one) == digests(path, other)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data/digits/folder", "/somewhere"),
        ("device", "cpu"),
        ("mirror", "/somewhere"),
        ("max_gpu_hours", 5),
        ("distil/micro_batch", 8),
        ("distil/fit", False),
        ("distil/recompute", True),
        ("distil/channels_last", True),
        ("distil/compile", True),
        ("distil/tf32", True),
        ("distil/deterministic", True),
        ("distil/benchmark", False),
        ("distil/log", ["csv", "tensorboard"]),
        ("distil/save_seconds", 7),
        ("evaluate/batch", 10),
        # A default written out, and things that this suite does not use.
        ("distil/supplements/el/kernel", "rbf"),
        ("teacher/digits/steps", 18),
        ("teacher/edm-cifar10/file", "elsewhere.pkl"),
        ("suite", "smoke"),
        ("distil/methods/di/per_data/fashion-mnist/batch", 32),
        ("teacher/fashion-mnist/P_mean", -1),
        ("distil/supplements/el-linear/weight", 3),
        ("evaluate/per_data/digits-smoke/n", 400),
        ("evaluate/classes", "uniform"),
    ],
)
def test_what_describes_a_machine_or_another_suite_changes_no_digest(path, value):
    assert differing(digests(path, value)) == set()


def test_every_site_key_of_the_schema_is_among_those_tried():
    schema = yaml.safe_load((ROOT / params.SCHEMA).read_text(encoding="utf-8"))
    owners = {"": schema, **schema["$defs"]}
    site = {f"{o}/{k}" for o, each in owners.items() for k, v in each.get("properties", {}).items() if v.get("site")}
    assert site == {
        "/device",
        "/max_gpu_hours",
        "/mirror",
        "data/folder",
        "distil/benchmark",
        "distil/channels_last",
        "distil/compile",
        "distil/deterministic",
        "distil/fit",
        "distil/log",
        "distil/recompute",
        "distil/micro_batch",
        "distil/save_seconds",
        "distil/tf32",
        "evaluate/batch",
    }


CHANGES = {
    "distil/methods/di/sigma_init": (1.0, down(runs())),
    "distil/methods/di/per_data/digits/batch": (128, down(runs())),
    "distil/supplements/el/weight": (0.3, down(runs(("el", "pixel-mmd")))),  # pixel-mmd is like el
    "distil/supplements/pixel-mmd/weight": (0.3, down(runs(("pixel-mmd",)))),
    "distil/supplements/el/per_data": ({"digits": {"decay": 0.5}}, down(runs(("el", "pixel-mmd")))),
    "distil/ticks": (10, down(runs())),
    "ensemble/conv4/redraw": (
        3, {name for name in ENSEMBLES if "conv4" in name} | down(runs(("el",)))
    ),
    "ensemble/identity/calibration": (
        64, {name for name in ENSEMBLES if "identity" in name} | down(runs(("pixel-mmd",)))
    ),
    "teacher/digits/P_mean": (-1.0, TAUGHT | down(runs())),
    "data/digits/judges": ({"lr": 0.1}, JUDGED | CHECK | EVALUATIONS),
    "data/digits/codec/mean": (0.5, set(BEFORE) - {"data digits/images", "data digits/reference-pixels"}),
    "data/digits/heldout": (361, set(BEFORE)),
    "data/digits/labels": (True, TAUGHT | down(runs()) | {"evaluate digits/real"}),
    "evaluate/neighbours": (5, EVALUATIONS),
    "tables/confidence": (0.9, {"tables demo"}),
    "tables/grid": (6, EVALUATIONS),
}  # fmt: skip


@pytest.mark.parametrize("path", CHANGES)
def test_a_number_changes_exactly_what_depends_on_it(path):
    value, expected = CHANGES[path]
    assert differing(digests(path, value)) == expected


def test_real_images_are_measured_as_sorted_by_name_where_their_reader_sorts_files():
    """Only their own reference run asks for it: no evaluation of generated images, and none of a source with an order of its own."""
    for data, values in (("mine", {"source": "folder", "path": "pictures"}), ("digits", {})):
        made = plan(f"data/{data}", SHIPPED["data"]["digits"] | values) if values else plan()
        for which, asked in (("real", bool(values)), ("teacher", False)):
            assert ("by_name" in made.reference_run(data, which).params) is asked


def test_sampling_steps_of_a_teacher_retrain_nothing():
    assert differing(digests("teacher/digits/steps", 9)) == {
        "teacher digits/check", "evaluate digits/teacher", "evaluate suite/demo", "tables demo"
    }  # fmt: skip


def test_a_seed_of_the_ensemble_of_its_own_is_shared_by_all_runs():
    whole = plan("distil/supplements/el/ensemble_seed", 0)
    used = {step.name for step in whole.suite("demo").values() if step.word == "ensemble"}
    assert used == {"digits/conv4/0", "digits/identity/0"}
    own = plan().distil(params.Run("digits", "di", "el", 2)).upstream[-1]
    assert own.name == "digits/conv4/2"


def test_one_more_seed_changes_no_run_that_exists():
    after = digests("suites/demo/0/seeds", [0, 1, 2, 3])
    assert {name for name in BEFORE if after[name] != BEFORE[name]} == {"evaluate suite/demo", "tables demo"}
    assert after.keys() - BEFORE.keys() >= {"distil digits/di/el/3", "ensemble digits/conv4/3"}


# --- versions -----------------------------------------------------------------------------------------

USES = {
    "data": set(BEFORE),
    "labels": set(BEFORE),
    "judges": JUDGED | CHECK | EVALUATIONS,
    "loop": JUDGED | {"teacher digits"} | CHECK | EVALUATIONS | down(runs()),
    "teacher/train": TAUGHT | down(runs()),
    "networks/song": TAUGHT | down(runs()),
    "networks/classifier": JUDGED | CHECK | EVALUATIONS,
    "ensemble/seed": ENSEMBLES | down(runs(("el", "pixel-mmd"))),
    "ensemble/conv": {name for name in ENSEMBLES if "conv4" in name} | down(runs(("el",))),
    "ensemble/identity": {name for name in ENSEMBLES if "identity" in name} | down(runs(("pixel-mmd",))),
    "distil": down(runs()),
    "methods/diff_instruct": down(runs()),
    "supplements/embedding": down(runs(("el", "pixel-mmd"))),
    "evaluate": EVALUATIONS
    | CHECK
    | {"data digits/reference-pixels"}
    | {name for name in JUDGED if "reference" in name},
    "sampling": EVALUATIONS | CHECK,
    "noise": JUDGED | ENSEMBLES | {"teacher digits"} | CHECK | EVALUATIONS | down(runs()),
    "mmd": ENSEMBLES | down(runs(("el", "pixel-mmd"))),
    "balance": down(runs(("el", "pixel-mmd"))),
    "augment": TAUGHT | down(runs()),
    "networks/layers": JUDGED | {"teacher digits"} | CHECK | EVALUATIONS | down(runs()),
    "networks/precond": TAUGHT | down(runs()),
    "tables": {"tables demo"},
    "teacher/check": CHECK,
    "score": down(runs()),
    **dict.fromkeys(
        (
            "classes",
            "ensemble/anchors",
            "latents",
            "folders",
            "pictures",
            "networks/adm",
            "networks/edm2",
            "methods/dmd",
            "methods/dmd2",
            "methods/sid",
            "methods/sida",
            "methods/consistency",
            "supplements/gan",
            "supplements/regression",
            "drifting",
            "frechet",
            "tangent",
            "teacher/pairs",
            "teacher/pickles",
            "teacher/machine",
            "teacher/convert",
            "teacher/folders",
            "teacher/states",
            "adversarial",
            "head",
            "perceptual",
            "studies",
            "diagnostics",
            "variance",
            "partial",
            "comparisons",
            "central",
            "speed",
            "clean",
            "guidance",
            "student",
        ),
        set(),
    ),
    "metrics": EVALUATIONS
    | CHECK
    | {"data digits/reference-pixels"}
    | {name for name in JUDGED if "reference" in name},
    "fid": CHECK,
    "across": {"tables demo"},
    "published": {"tables demo"},
    "inference": {"tables demo"},
    "plots": {"tables demo"},
    "names": {"tables demo"},
    "typeset": {"tables demo"},
    "report": {"tables demo"},
    "results": {"tables demo", "evaluate suite/demo"},
    "summary": {"evaluate suite/demo"},
}


def test_every_version_has_its_dependents_listed_here():
    plugins = (
        "methods/",
        "supplements/",
        "ensemble/",
        "networks/",
        "spaces/",
        "metrics/",
    )  # one more of these needs no edit here
    assert (
        {name for name in versions.version_table() if not name.startswith(plugins)}
        <= set(USES)
        <= set(versions.version_table())
    )


def test_every_module_names_what_it_is_built_on():
    """USES holds at least what a method or a supplement imports; for one that is not listed the imports are read."""
    for module in versions.version_table():
        if module.startswith(("methods/", "supplements/")) and module in versions.USES:
            named = set(versions.USES[module])
            below = named | {each for name in named for each in versions.USES.get(name, ())}
            below |= {"loop", *versions.USES["loop"]}  # which every run counts
            assert set(versions._imported(module)) <= below, module


@pytest.mark.parametrize("module", USES)
def test_a_raised_version_retires_exactly_its_dependents(monkeypatch, module):
    old = versions.version_of
    monkeypatch.setattr(versions, "version_of", lambda name: old(name) + (name == module))
    assert differing(digests()) == USES[module]


IN_BENCH = {
    "methods/dmd": {"dmd"},
    "methods/dmd2": {"dmd2"},
    "methods/sid": {"sid", "sid2a"},  # sid2a starts from sid
    "methods/sida": {"sida", "sid2a"},
    "methods/consistency": {"cd", "ect"},
    "adversarial": {"dmd2", "sida", "sid2a"},
    "head": {"dmd2"},
    "supplements/regression": {"dmd"},
    "teacher/pairs": {"dmd"},
    "perceptual": {"dmd", "cd", "ect"},
    "score": {"di", "dmd", "dmd2", "sid", "sida", "sid2a", "cd", "ect"},
}


@pytest.mark.parametrize("module", IN_BENCH)
def test_a_raised_version_of_a_method_retires_its_runs_and_those_that_start_from_them(monkeypatch, module):
    old, before = versions.version_of, digests(suite="bench")
    monkeypatch.setattr(versions, "version_of", lambda name: old(name) + (name == module))
    changed = {name for name in differing(digests(suite="bench"), before) if name.startswith("distil ")}
    assert {name.split("/")[1] for name in changed} == IN_BENCH[module]
    if module in ("supplements/regression", "teacher/pairs"):
        assert {name.split("/")[2] for name in changed} == {"regression", "regression+el"}


# Files that cannot change a result: they name, plan, fetch, store, check or show. All others have a RECIPE or a COVERED_BY.
WITHOUT_RESULTS = {
    "__main__", "commands/arguments", "commands/card", "commands/cite", "commands/cost", "commands/doctor", "commands/export",
    "commands/help",
    "commands/keep", "commands/loader", "commands/planned", "commands/prune", "commands/suggest", "commands/tools", "data/given",
    "embedding_loss", "ensemble/frozen", "environment", "errors", "external/arrays", "external/fetching", "external/hashes",
    "external/sourcelock", "external/sources", "files", "numbers", "outside", "paths", "plan/called", "plan/checks", "plan/conflicts",
    "plan/cluster",
    "plan/added_losses", "plan/combinations", "plan/datasets", "plan/driver", "plan/embeddings", "plan/ensembles", "plan/freshness",
    "plan/gpus", "plan/identity", "plan/insertion", "plan/kept", "plan/models", "plan/params", "plan/plan", "plan/profiles",
    "plan/questions", "plan/rates", "plan/reading", "plan/recipes", "plan/records", "plan/related", "plan/run", "plan/schema",
    "plan/sizes", "plan/unets", "plan/versions", "plan/yamltext", "registry", "signals", "tables/sheet", "tensorheader",
    "tensors", "plan/guidance", "plan/students", "plan/teachers",
}  # fmt: skip


def test_every_file_says_who_it_is_in_recipes():
    """A new file of the package has a RECIPE, or a COVERED_BY, or is named above."""
    files = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
    packages = {file for file in files if file.endswith("__init__")} - {
        "networks/__init__"
    }  # a docstring; names read late
    groups = set(versions.named_files()), set(versions.covering_names()), WITHOUT_RESULTS, packages
    assert set().union(*groups) == files and sum(map(len, groups)) == len(files)
    for file in files:  # what the search of the text finds is what the file says
        name = literal(file, "RECIPE", (None,))[0]
        assert (name, literal(file, "COVERED_BY")) == (
            versions.named_files().get(file),
            versions.covering_names().get(file),
        ), file
    assert set(versions.covering_names().values()) <= set(versions.version_table())


def package(monkeypatch, tmp_path, texts):
    """A package of these files in place of the shipped one."""
    for file, text in texts.items():
        path = tmp_path / f"{file}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)


@pytest.mark.parametrize(("texts", "sentence"), [
    ({"a": 'RECIPE = ("x", 1)\n', "b": 'RECIPE = ("x", 2)\n'}, r"b\.py and src/eldistill/a\.py both have the name 'x'"),
    ({"methods/b": 'RECIPE = ("methods/a", 1)\n'}, r'expected a name.*such as RECIPE = \("methods/b", 1\); here the name is'),
    ({"a": 'RECIPE = ("x", "1")\n'}, r'a\.py has RECIPE = \("x", "1"\); expected a name and a whole number'),
    ({"a": 'RECIPE = ("x", True)\n'}, r"expected a name and a whole number"),
    ({"a": "RECIPE = (\n    'x', 1)\n"}, r"on one line"),
    ({"a": 'RECIPE = print("x")\n'}, r"expected a name and a whole number"),
    ({"a": 'COVERED_BY = "x"\n'}, r"a\.py has COVERED_BY = 'x'; expected the name in the RECIPE of another"),
    ({"a": 'RECIPE = ("x", 1)\n', "b": 'COVERED_BY = "x"\n', "c": 'COVERED_BY = "b"\n'}, r"c\.py has COVERED_BY = 'b'"),
    ({"a": 'RECIPE = ("x", 1)\nCOVERED_BY = "x"\n'}, r"no RECIPE beside it"),
    ({"a": "COVERED_BY = 1\n"}, r"a\.py has COVERED_BY = 1; expected the name"),
])  # fmt: skip
def test_a_name_that_is_not_one_is_refused_in_one_sentence(monkeypatch, tmp_path, texts, sentence):
    package(monkeypatch, tmp_path, texts)
    with pytest.raises(Problem, match=sentence):
        versions.version_table()


def test_an_import_counts_by_the_name_of_what_it_reaches(monkeypatch, tmp_path):
    """A new method is retired by the names of the modules it imports, wherever they lie; files without results do not count."""
    package(monkeypatch, tmp_path, {
        "losses/score": 'RECIPE = ("score", 4)\n', "mixed": 'COVERED_BY = "loop"\n', "training/loop": 'RECIPE = ("loop", 2)\n',
        "networks/__init__": 'COVERED_BY = "draws"\n', "draws": 'RECIPE = ("draws", 1)\n', "files": "",
        "methods/new": "from eldistill import files\nfrom eldistill.losses import score\nfrom eldistill.losses.score import x\n"
                       "from eldistill.mixed import y\nfrom eldistill.networks import build\n"
                       'RECIPE = ("methods/new", 1)\n',
    })  # fmt: skip
    versions._imported.cache_clear()
    try:
        assert versions.uses("methods/new") == ("draws", "loop", "score")
    finally:
        versions._imported.cache_clear()


def test_every_module_of_a_recipe_has_a_literal_version():
    modules = {module for suite in SHIPPED["suites"] for step in steps(suite=suite).values() for module in step.modules}
    assert len(modules) > 10 and all(isinstance(versions.version_of(module), int) for module in modules)
    with pytest.raises(Problem, match=r"no module .* has the name 'files' in its RECIPE; add"):
        versions.version_of("files")


def test_the_version_table_in_git_is_the_present_one():
    assert json.loads((ROOT / "workflow/versions.json").read_text(encoding="utf-8")) == versions.version_table()


def test_writing_versions_leaves_an_equal_file_alone(tmp_path):
    (tmp_path / "workflow").mkdir()
    versions.write_versions(tmp_path)
    path = tmp_path / "workflow/versions.json"
    os.utime(path, (5, 5))
    versions.write_versions(tmp_path)
    assert path.stat().st_mtime == 5
    path.write_text("{}")
    versions.write_versions(tmp_path)
    assert json.loads(path.read_text()) == versions.version_table()


# --- packs shared by `like` ---------------------------------------------------------------------------


def test_settings_that_read_the_same_images_share_the_pack():
    whole = plan()
    assert whole.pack("digits-smoke") == whole.pack("digits")
    assert whole.find("data", "digits-smoke/images").name == "digits/images"
    assert whole.judge("digits-smoke", "a").name == "digits-smoke/judge-a"
    assert steps(suite="smoke").keys() & BEFORE.keys() == {"data digits/images"}


@pytest.mark.parametrize(("key", "value", "shared"), [("heldout", 300, False), ("limit", 500, False),
                                                      ("labels", True, True), ("folder", "/x", True)])  # fmt: skip
def test_a_setting_with_other_images_has_a_pack_of_its_own(key, value, shared):
    whole = plan(f"data/digits-smoke/{key}", value)
    assert (whole.pack("digits-smoke").name == "digits/images") is shared
    assert whole.pack("digits").digest == BEFORE["data digits/images"]


# --- refresh ------------------------------------------------------------------------------------------


def make(step: recipes.Step, root: Path) -> None:
    """What a job leaves behind: its outputs, then the recipe it followed."""
    for output in (*step.outputs, step.sidecar):
        path = root / output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.recipe if output == step.sidecar else "made")


def mtime(root: Path, name: str) -> float:
    return (root / name).stat().st_mtime


@pytest.fixture
def chain(tmp_path):
    """The steps behind one evaluation, all made."""
    last = plan().find("evaluate", "digits/real")
    every = list({step.name: step for step in last.walk()}.values())
    for step in every:
        make(step, tmp_path)
    return tmp_path, every


def test_nothing_made_is_all_stale(tmp_path):
    every = list(plan().suite("smoke").values())
    start = time.time() - 5
    assert freshness.refresh(every, tmp_path) == every
    for step in every:
        assert (tmp_path / step.file).read_text(encoding="utf-8") == step.recipe
        assert mtime(tmp_path, step.token) > start and mtime(tmp_path, step.file) == 1
        assert not (tmp_path / step.sidecar).exists()


def test_all_made_is_fresh_whatever_a_checkout_did_to_mtimes(chain):
    root, every = chain
    future = time.time() + 1000
    for step in every:
        os.utime(root / step.sidecar, (future, future))
    assert freshness.refresh(every, root) == []
    for step in every:
        assert mtime(root, step.file) == mtime(root, step.token) == mtime(root, step.sidecar) == 1
        assert mtime(root, step.outputs[0]) > 1


def test_a_second_refresh_changes_nothing_but_the_tokens_of_stale_steps(chain):
    root, every = chain
    step = every[-1]
    (root / step.sidecar).write_text("older")
    assert freshness.refresh(every, root) == [step]
    token, inode = (root / step.token).read_text(), (root / step.file).stat().st_ino
    os.utime(root / step.token, (2, 2))
    assert freshness.refresh(every, root) == [step]
    assert mtime(root, step.token) > time.time() - 1000 and (root / step.token).read_text() != token
    assert (root / step.file).stat().st_ino == inode
    assert (root / step.sidecar).read_text() == "older" and mtime(root, step.sidecar) == 1


@pytest.mark.parametrize("loss", ["sidecar", "output", "other recipe"])
def test_a_step_is_stale_without_its_outputs_or_its_recipe(chain, loss):
    root, every = chain
    step = every[-1]
    if loss == "sidecar":
        (root / step.sidecar).unlink()
    elif loss == "output":
        (root / step.outputs[1]).unlink()
    else:
        (root / step.sidecar).write_text(step.recipe.replace('"neighbours":3', '"neighbours":4'))
    assert freshness.refresh(every, root) == [step]
    assert mtime(root, step.token) > 1
    make(step, root)
    assert freshness.refresh(every, root) == []
    assert mtime(root, step.token) == mtime(root, step.sidecar) == 1


def test_a_changed_number_makes_the_dependents_stale_and_changing_it_back_fresh(chain):
    root, every = chain
    changed = plan("evaluate/neighbours", 5)
    after = [changed.find(step.word, step.name) for step in every]
    assert [step.name for step in freshness.refresh(after, root)] == ["digits/real"]
    assert freshness.refresh(every, root) == []


def test_recipes_import_nothing_heavy():
    heavy = {"torch", "numpy", "scipy", "PIL", "sklearn", "tqdm", "urllib.request"}
    code = f"import sys, eldistill.plan.recipes; print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
