# SPDX-License-Identifier: Apache-2.0
"""params.yaml: how values resolve, and that every mistake is one sentence with a way out."""

from __future__ import annotations

import copy
import dataclasses
import random
import re
from pathlib import Path

import jsonschema
import pytest

from eldistill import numbers
from eldistill.errors import Problem
from eldistill.files import canonical
from eldistill.numbers import declared
from eldistill.plan import params, schema
from eldistill.registry import available
from tests import conftest
from tests.conftest import ROOT

SHIPPED = conftest.shipped()
SCHEMA = conftest.read_yaml((ROOT / params.SCHEMA).read_text(encoding="utf-8"))
NAN, INF = float("nan"), float("inf")
FILES = [(kind, file) for kind in ("methods", "supplements", "ensemble", "metrics") for file in available(kind)]


def changed(path: str, value, document: dict = SHIPPED) -> dict:
    """A copy of a document with the value at `a/b/0/c` replaced; a value of `...` removes the key."""
    document = copy.deepcopy(document)
    *above, last = path.split("/")
    place = document
    for step in above:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if value is ...:
        del place[last]
    elif isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return document


def load(values) -> params.Params:
    return params.from_values(values, ROOT)


def sentence(values) -> str:
    """What the checker says of a bad document: exactly one line."""
    with pytest.raises(Problem) as caught:
        load(values)
    text = str(caught.value)
    assert text and "\n" not in text and "Traceback" not in text
    return text


# --- the shipped file ---------------------------------------------------------------------------------


def test_the_shipped_file_is_accepted_and_every_suite_has_runs():
    project = params.load_params(ROOT / "params.yaml")
    assert {kind for kind, _, _ in project.sections()} == {"data", "teacher", "ensemble", "method", "supplement"}
    for suite in SHIPPED["suites"]:
        runs = list(project.runs(suite))
        assert runs and len(set(runs)) == len(runs)
        assert [project.run(str(run)) for run in runs] == runs


def test_a_suite_is_the_product_of_its_grids_without_repetition():
    grid = {"data": ["digits"], "methods": ["di"], "supplements": ["none", "el"], "seeds": [0, 1]}
    project = load(changed("suites/demo", [grid, {**grid, "seeds": [1, 2]}]))
    wanted = [
        f"digits/di/{supplement}/{seed}"
        for seeds, supplements in (((0, 1), ("none", "el")), ((2,), ("none", "el")))
        for supplement in supplements
        for seed in seeds
    ]
    assert list(map(str, project.runs("demo"))) == wanted


def test_a_run_knows_its_supplements():
    assert params.Run("a", "b", "none", 0).supplements == ()
    assert params.Run("a", "b", "el+gan", 0).supplements == ("el", "gan")


# --- resolution ---------------------------------------------------------------------------------------


def resolved(default=True, like=None, own=None, per_data=None, like_per_data=None) -> dict:
    below = {"file": "diff_instruct", "n_images": 10000, "batch": 100, "generator": {"lr": 0.5}}
    above = {"like": "below"}
    if like is not None:
        below["generator"]["eps"] = like
    if own is not None:
        above["generator"] = {"eps": own}
    if per_data is not None:
        above["per_data"] = {"digits": {"generator": {"eps": per_data}}}
    if like_per_data is not None:
        below["per_data"] = {"digits": {"generator": {"eps": like_per_data}}}
    values = changed("distil/methods/below", below)
    values["distil"]["methods"]["above"] = above
    return load(values).section("method", "above", "digits")


@pytest.mark.parametrize(
    ("layers", "eps"),
    [
        ({}, 1e-8),
        ({"like": 0.1}, 0.1),
        ({"like": 0.1, "own": 0.2}, 0.2),
        ({"like": 0.1, "like_per_data": 0.3}, 0.3),
        ({"own": 0.2, "like_per_data": 0.3}, 0.2),
        ({"like": 0.1, "own": 0.2, "per_data": 0.4}, 0.4),
        ({"like": 0.1, "own": 0.2, "like_per_data": 0.3, "per_data": 0.4}, 0.4),
    ],
)
def test_later_layers_win_and_nested_neighbours_survive(layers, eps):
    value = resolved(**layers)
    assert value["generator"]["eps"] == eps
    assert value["generator"]["lr"] == 0.5 and value["generator"]["betas"] == [0.9, 0.999]
    assert value["batch"] == 100 and "like" not in value and "per_data" not in value


SECTIONS = ("own", "per_data", "near")  # of each section: its keys, those for the data, those for what the data is like


@pytest.mark.parametrize("seed", range(20))
def test_random_chains_resolve_as_written_down(seed):
    """Three sections in a chain, each with any of its layers: the nearest section wins, within it the nearest data."""
    draw = random.Random(seed)
    values = changed("data/near", {"like": "digits"})
    wanted, above = 1e-8, None
    for name in ("first", "second", "third"):
        section = {"file": "diff_instruct", "n_images": 100, "batch": 10} if above is None else {"like": above}
        layers = {layer: draw.random() for layer in SECTIONS if draw.random() < 0.5}
        if "own" in layers:
            section["generator"] = {"eps": layers["own"]}
        section["per_data"] = {
            data: {"generator": {"eps": layers[layer]}}
            for data, layer in (("digits", "per_data"), ("near", "near")) if layer in layers
        }  # fmt: skip
        for layer in SECTIONS:
            wanted = layers.get(layer, wanted)
        values["distil"]["methods"][name] = section
        above = name
    assert load(values).section("method", "third", "near")["generator"]["eps"] == wanted


@pytest.mark.parametrize(
    ("change", "reaches"),
    [
        ({}, True),
        ({"limit": 100, "heldout": 50}, True),
        ({"resolution": 16}, False),
        ({"files": "mnist"}, False),
        ({"source": "folder", "path": "elsewhere", "files": None}, False),
    ],
)
def test_numbers_follow_a_data_setting_to_the_same_images_alone(change, reaches):
    values = changed("data/mine", {"like": "fashion-mnist", **change})
    values["evaluate"]["per_data"]["fashion-mnist"] = {"n": 77}
    project = load(values)
    assert (project.section("method", "di", "mine")["n_images"] == 128000) == reaches
    assert project.has_numbers("di", "mine") == reaches
    assert (project.top("evaluate", "mine")["n"] == 77) == reaches


def test_which_of_the_shipped_settings_share_their_numbers():
    project = load(SHIPPED)
    shared = {name: project.ancestry(name)[:-1] for name in SHIPPED["data"]}
    assert {name: found for name, found in shared.items() if found} == {
        "digits-long": ["digits"], "digits-smoke": ["digits"], "digits-t1": ["digits"], "digits-t2": ["digits"],
        "avatars-32-t1": ["avatars-32"], "avatars-32-t2": ["avatars-32"],
        "fashion-32": ["fashion-mnist"], "cifar10-cond": ["cifar10"],
    }  # fmt: skip


def test_the_control_on_pixels_has_no_network_on_any_data():
    project = load(SHIPPED)
    for name in SHIPPED["distil"]["supplements"]:
        for data in SHIPPED["data"]:
            section = project.section("supplement", name, data)
            if name.startswith("pixel-"):
                members = project.section("ensemble", section["ensemble"])["members"]
                assert {member["family"] for member in members} <= {"identity", "whitened"}, (name, data)
            elif name == "el" and data in SHIPPED["distil"]["supplements"]["el"]["per_data"]:
                assert section["ensemble"].startswith("mix8"), data


def test_per_data_of_another_setting_changes_nothing():
    project = load(SHIPPED)
    assert project.section("method", "di", "digits")["batch"] == 64
    assert project.section("method", "di", "digits-smoke")["batch"] == 32
    assert project.section("method", "di")["batch"] == SCHEMA["$defs"]["method"]["properties"]["batch"]["default"]
    assert project.top("evaluate", "digits-smoke")["n"] == 500 and project.top("evaluate", "digits")["n"] == 5000


def test_like_passes_through_several_sections_of_every_kind():
    values = changed("data/third", {"like": "digits-smoke", "heldout": 300})
    values["teacher"]["third"] = {"like": "digits-smoke", "P_mean": -1}
    values["distil"]["supplements"]["third"] = {"like": "el-linear", "weight": 2}
    values["ensemble"]["third"] = {"like": "conv4", "redraw": 5}
    project = load(values)
    data = project.section("data", "third")
    assert (data["heldout"], data["source"], data["judges"]["n_images"]) == (300, "digits", 6400)
    teacher = project.section("teacher", "third")
    assert (teacher["P_mean"], teacher["optimiser"]["lr"], teacher["optimiser"]["warmup_images"]) == (-1, 2e-3, 640)
    supplement = project.section("supplement", "third")
    assert (supplement["kernel"], supplement["weight"], supplement["ensemble"]) == ("linear", 2, "conv4")
    assert [member["count"] for member in project.section("ensemble", "third")["members"]] == [2, 1, 1]


def test_merge_mixes_mappings_and_replaces_the_rest():
    below = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    above = {"a": {"c": [3]}, "d": {"e": 2}}
    assert schema.merge_mappings(below, above) == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert schema.merge_mappings(below, {}) == below and schema.merge_mappings({}, above) == above


def test_resolving_leaves_the_file_as_it_was():
    values = copy.deepcopy(SHIPPED)
    project = load(values)
    project.section("ensemble", "conv4")["members"][0]["count"] = 99
    project.section("method", "di", "digits")["generator"]["lr"] = 99
    assert values == SHIPPED
    assert project.section("ensemble", "conv4")["members"][0]["count"] == 2
    assert project.section("method", "di", "digits")["generator"]["lr"] == 5e-4


def test_a_module_declares_the_defaults_of_its_class_numbers():
    from eldistill import contract

    for kind, file in FILES:
        numbers = getattr(contract.load_module(kind, file), "Numbers", None)
        fields = declared(kind, file)
        if numbers is None:
            assert fields == {}
            continue
        defaults = {field.name: field.default for field in dataclasses.fields(numbers)}
        read = {key: tuple(v) if isinstance(v := each["default"], list) else v for key, each in fields.items()}
        assert read == defaults


def test_numbers_are_inherited_from_classes_that_the_text_names(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from eldistill.losses.balance import WeightNumbers\nclass Mine:\n    a: int = number(1, '')\n    decay: float = number(2.0, 'x')\n"
        "class Numbers(Mine, WeightNumbers):\n    weight: float = number(3.0, 'its own')\n    b: int = number(4, 'b')\n"
    )
    found = {key: each["default"] for key, each in numbers._fields(path, "Numbers").items()}
    assert found == {"weighting": "balanced", "weight": 3.0, "decay": 2.0, "warmup": 0.05, "fade": 0.0, "a": 1, "b": 4}


@pytest.mark.parametrize("base", ["balance.WeightNumbers", "Unknown", "Protocol"])
def test_a_class_that_the_text_does_not_name_is_one_sentence(tmp_path, base):
    (tmp_path / "mine.py").write_text(
        f"from typing import Protocol\nfrom eldistill.losses import balance\nclass Numbers({base}):\n    a: int = number(1, 'a')\n"
    )
    with pytest.raises(Problem, match=rf"class Numbers in mine\.py inherits from {re.escape(base)}; expected a class"):
        numbers._fields(tmp_path / "mine.py", "Numbers")


# --- mistakes -----------------------------------------------------------------------------------------

# path, bad value, what its sentence must contain: where, what was found, what was expected, the nearest name.
BAD = {
    "unknown key at the top": ("datas", {}, ["datas", "{}", "data"]),
    "unknown key of a section": ("data/digits/heldot", 5, ["data.digits.heldot", "5", "did you mean heldout?"]),
    "unknown key two deep": ("data/digits/codec/men", 0.5, ["data.digits.codec.men", "0.5", "did you mean mean?"]),
    "unknown key of a method": (
        "distil/methods/di/sigma_int", 2, ["distil.methods.di.sigma_int", "2", "did you mean sigma_init?"]
    ),
    "unknown key for one data setting": (
        "distil/methods/di/per_data/digits/batsh", 2, ["distil.methods.di.batsh", "2", "did you mean batch?"]
    ),
    "unknown key of an optimiser": (
        "distil/methods/di/per_data/digits/critic/l", 2, ["distil.methods.di.critic.l", "2", "lr"]
    ),
    "unknown key of a supplement": ("distil/supplements/el/wight", 1, ["distil.supplements.el.wight", "weight?"]),
    "unknown key of a member": ("ensemble/conv4/members/1/widht", 1, ["ensemble.conv4.members[1].widht", "width?"]),
    "unknown key of a grid": ("suites/demo/0/seed", [0], ["suites.demo[0].seed", "[0]", "did you mean seeds?"]),
    "text for a number": ("teacher/digits/batch", "many", ["teacher.digits.batch", "'many'", "whole number", "images"]),
    "fraction for a whole number": ("teacher/digits/batch", 64.5, ["teacher.digits.batch", "64.5", "whole number"]),
    "number for a mapping": ("data/digits", 3, ["data.digits", "3", "mapping"]),
    "nothing for a mapping": ("data/digits", None, ["data.digits", "None", "mapping"]),
    "text for a list": ("distil/snapshots", "all", ["distil.snapshots", "'all'", "list"]),
    "bool for a number": ("teacher/digits/P_mean", True, ["teacher.digits.P_mean", "True", "a number"]),
    "bool for a whole number": ("threads", True, ["threads", "True", "whole number"]),
    "number for a bool": ("data/digits/labels", 1, ["data.digits.labels", "1", "true or false"]),
    "NaN": ("teacher/digits/P_mean", NAN, ["teacher.digits.P_mean", "nan", "a number"]),
    "NaN without a range": ("teacher/digits/ema/halflife_images", NAN, ["halflife_images", "nan", "a number"]),
    "infinity": ("teacher/digits/ema/halflife_images", INF, ["halflife_images", "inf", "a number"]),
    "too small": ("threads", 0, ["threads", "0", "≥ 1", "CPU threads"]),
    "too large": ("data/digits/codec/mean", 1.5, ["data.digits.codec.mean", "1.5", "≤ 1", "divided by 255"]),
    "on an open end": ("data/digits/codec/std", 0, ["data.digits.codec.std", "0", "> 0"]),
    "out of a method's range": ("distil/methods/di/sigma_init", 0, ["distil.methods.di.sigma_init", "0", "> 0"]),
    "beta of 1": ("distil/methods/di/generator", {"betas": [0, 1]}, ["generator.betas[1]", "1", "< 1"]),
    "not a choice": ("device", "gpu", ["device", "'gpu'", "auto, cpu, cuda", "did you mean cpu?"]),
    "not a module's choice": ("distil/supplements/el/kernel", "rdf", ["kernel", "'rdf'", "did you mean rbf?"]),
    "empty list": ("distil/snapshots", [], ["distil.snapshots", "[]", "at least 1"]),
    "list too long": ("teacher/digits/optimiser/betas", [0, 0, 0], ["optimiser.betas", "[0, 0, 0]"]),
    "repeated in a list": ("distil/snapshots", [5, 5], ["distil.snapshots", "[5, 5]"]),
    "repeated as 5 and 5.0": ("distil/snapshots", [5, 5.0], ["distil.snapshots", "[5, 5.0]"]),
    "duplicate seeds": ("suites/demo/0/seeds", [0, 1, 1], ["suites.demo[0].seeds", "[0, 1, 1]"]),
    "unknown teacher": ("data/digits/teacher", "digit", ["data.digits.teacher", "'digit'", "did you mean digits?"]),
    "unknown data of a teacher": ("teacher/digits/data", "digts", ["teacher.digits.data", "'digts'", "digits?"]),
    "unknown ensemble": (
        "distil/supplements/el/ensemble", "identty", ["distil.supplements.el.ensemble", "'identty'", "identity?"]
    ),
    "unknown method file": (
        "distil/methods/di/file", "diff_instuct", ["distil.methods.di.file", "diff_instuct", "diff_instruct?"]
    ),
    "unknown supplement file": ("distil/supplements/el/file", "embeding", ["supplements.el.file", "embedding?"]),
    "unknown family": ("ensemble/conv4/members/0/family", "cnv", ["ensemble.conv4.members[0].family", "conv?"]),
    "a module that is no family": ("ensemble/conv4/members/2/family", "seed", ["members[2].family", "'seed'"]),
    "unknown network": ("teacher/digits/network/network", "sing", ["teacher.digits.network", "sing", "song"]),
    "unknown data for an override": (
        "distil/methods/di/per_data/digit", {}, ["distil.methods.di.per_data", "'digit'", "did you mean digits?"]
    ),
    "compiled and recomputed": ("distil", {**SHIPPED["distil"], "compile": True, "recompute": True}, ["distil.compile", "set one of them"]),
    "unknown data for an evaluation": ("evaluate/per_data/digit", {}, ["evaluate.per_data", "'digit'", "digits?"]),
    "unknown like": ("data/digits-smoke/like", "digts", ["data.digits-smoke.like", "'digts'", "did you mean digits?"]),
    "like in a circle": ("data/digits/like", "digits-smoke", ["data.digits", "circle", "digits → digits-smoke"]),
    "like itself": ("data/digits/like", "digits", ["data.digits.like", "circle"]),
    "missing section": ("ensemble", ..., ["ensemble", "missing", "mapping"]),
    "missing key of a section": ("data/digits/teacher", ..., ["data.digits.teacher", "missing", "a text"]),
    "missing key of distil": ("distil/methods", ..., ["distil.methods", "missing", "mapping"]),
    "missing key of a grid": ("suites/demo/0/seeds", ..., ["suites.demo[0].seeds", "missing", "list"]),
    "missing files of an idx source": ("data/fashion-mnist/files", ..., ["data.fashion-mnist.files", "missing", "idx"]),
    "images not a multiple of the batch": ("teacher/digits/n_images", 192001, ["n_images", "192001", "64", "192000"]),
    "unknown suite": ("suite", "dem", ["suite", "'dem'", "demo, demo-long, bench, smoke", "did you mean demo?"]),
    "unknown method in a suite": ("suites/demo/0/methods", ["dii"], ["method", "'dii'", "did you mean di?"]),
    "unknown supplement in a suite": ("suites/demo/0/supplements", ["el+xel"], ["supplement", "'xel'", "el?"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_sentence_with_place_found_and_expected(case):
    path, value, words = BAD[case]
    text = sentence(changed(path, value))
    assert text.startswith("params.yaml: ")
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


@pytest.mark.parametrize("text", ["data: [1, 2", "a: b: c", "x: 'open"])
def test_what_is_not_yaml_is_one_sentence_with_a_line(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(Problem, match="not YAML near line") as caught:
        params.load_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "kind"), [("", "is empty"), ("- a", "holds a list"), ("a", "holds one value")])
def test_a_file_that_is_no_mapping_is_one_sentence(tmp_path, text, kind):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(Problem, match=f"params.yaml {kind}; expected sections"):
        params.load_params(tmp_path / "params.yaml")


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(Problem, match=r"params\.yaml is missing; run"):
        params.load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["digits/di/el", "digits/di/el/0/1", "digits/di/el/x", "digits/di/el/-1", ""])
def test_what_is_no_run_is_one_sentence(text):
    with pytest.raises(Problem, match="is not a run; expected DATA/METHOD/SUPPLEMENT/SEED"):
        load(SHIPPED).run(text)


# --- our checker and the library ----------------------------------------------------------------------


def complete_schema() -> dict:
    """The static schema with the numbers of every module, for the library."""
    complete = copy.deepcopy(SCHEMA)
    for kind, file in FILES:
        if kind == "metrics":  # their numbers stand one level lower, below evaluate.extra_metrics
            continue
        owner = {"methods": "method", "supplements": "supplement", "ensemble": "member"}[kind]
        known = complete["$defs"][owner]["properties"]
        for key, each in copy.deepcopy(declared(kind, file)).items():
            if key in known:  # two modules may give one name two types (`pairs` is optional in one of them)
                kinds = [
                    each["type"] if isinstance(each["type"], list) else [each["type"]] for each in (known[key], each)
                ]
                each["type"] = list(dict.fromkeys(kinds[0] + kinds[1]))
                if "enum" in each and "enum" in known[key]:  # or two ranges of choices (`weighting`)
                    each["enum"] = list(dict.fromkeys(known[key]["enum"] + each["enum"]))
            known[key] = each
    return complete


def complete_document() -> dict:
    """The shipped file with every section resolved, so that required keys are there."""
    project = load(SHIPPED)
    values = copy.deepcopy(SHIPPED)
    for kind, name, section in project.sections():
        place = values["distil"][f"{kind}s"] if kind in ("method", "supplement") else values[kind]
        place[name] = section
    return values


COMPLETE, FULL = complete_schema(), complete_document()
GOOD = {
    "as it is": ("threads", 1),
    "1.0 is a whole number": ("threads", 1.0),
    "a whole number is a number": ("teacher/digits/P_mean", -1),
    "at the lower end": ("data/digits/codec/mean", 0),
    "at the upper end": ("data/digits/codec/mean", 1),
    "null where it may be": ("data/digits/resolution", None),
    "empty mapping": ("tables", {}),
    "free mapping": ("teacher/digits/network", {"network": "song", "anything": [1, {"a": None}]}),
    "other numbers of a module": ("distil/supplements/el/augmentation", ["crop", "flip"]),
    "no runs of a kind": ("suites", {}),
    "left out": ("tables", ...),
    "longest list": ("teacher/digits/optimiser/betas", [0, 0.5]),
}
DOCUMENTS = {**GOOD, **{name: case[:2] for name, case in BAD.items() if name not in ("infinity",)}}
MEANING = (
    "unknown teacher", "unknown data of a teacher", "unknown ensemble", "unknown method file", "unknown family",
    "unknown supplement file", "a module that is no family", "unknown network", "unknown data for an override",
    "unknown data for an evaluation", "unknown like", "like in a circle", "like itself", "unknown suite",
    "missing files of an idx source", "images not a multiple of the batch", "unknown method in a suite",
    "unknown supplement in a suite", "unknown key for one data setting", "unknown key of an optimiser",
)  # fmt: skip
NOT_JSON = ("NaN", "NaN without a range")  # JSON has no NaN, so the library has no opinion


@pytest.mark.parametrize("case", [case for case in DOCUMENTS if case not in (*MEANING, *NOT_JSON)])
def test_our_checker_agrees_with_jsonschema(case):
    path, value = DOCUMENTS[case]
    document = changed(path, value, FULL)
    library = jsonschema.Draft202012Validator(COMPLETE).is_valid(document)
    definitions = COMPLETE["$defs"]
    try:
        schema.check_value(document, {k: v for k, v in COMPLETE.items() if k != "$defs"}, "", definitions)
        ours = True
    except Problem:
        ours = False
    assert ours is library
    assert library or case not in GOOD


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(COMPLETE)


# --- the schema itself --------------------------------------------------------------------------------


def leaves(owner: dict, where: str):
    for key, each in owner.get("properties", {}).items():
        yield f"{where}.{key}", each, schema.follow_reference(each, COMPLETE["$defs"])
        yield from leaves(each, f"{where}.{key}")


EVERY = [leaf for owner in (SCHEMA, *SCHEMA["$defs"].values()) for leaf in leaves(owner, owner.get("title", "$defs"))]
EVERY += [(f"{kind}/{file}.{key}", each, each) for kind, file in FILES for key, each in declared(kind, file).items()]


def test_every_key_says_what_it_is():
    assert len(EVERY) > 80
    for where, _, each in EVERY:
        assert each.get("type"), where
        assert len(each.get("description", "").split()) >= 2, where


def test_every_default_satisfies_its_own_schema():
    checked = 0
    for where, _, each in EVERY:
        if "default" in each:
            schema.check_value(each["default"], each, where, COMPLETE["$defs"])
            jsonschema.Draft202012Validator({**each, "$defs": COMPLETE["$defs"]}).validate(each["default"])
            checked += 1
    assert checked > 60


def test_fill_gives_every_default_at_every_depth():
    filled = schema.fill_defaults({}, COMPLETE["$defs"]["method"], COMPLETE["$defs"])
    assert filled["generator"]["betas"] == [0.9, 0.999] and filled["ema"]["policy"] == "ramped"
    assert filled["batch"] == 128 and "file" not in filled


def nested(depth: int, schema_of: dict) -> tuple[dict, dict]:
    """(values, schemas) of one key in so many mappings, beside a key that lasts at each depth."""
    values, known = {"key": 1, "kept": 1}, {"key": schema_of, "kept": {"type": "integer", "default": 1}}
    for _ in range(depth):
        values, known = {"inner": values, "kept": 1}, {"inner": {"properties": known}, "kept": known["kept"]}
    return values, known


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize(
    ("mark", "lasts"),
    [({"neutral": True, "default": 1}, False), ({"neutral": True, "default": 2}, True), ({"default": 1}, True),
     ({"site": True, "default": 2}, False), ({"site": False}, True)],
)  # fmt: skip
def test_recipes_leave_out_neutral_defaults_and_machines_at_every_depth(depth, mark, lasts):
    values, known = nested(depth, mark)
    found = schema.lasting_keys(values, known, {})
    assert ("key" in canonical(found).replace("kept", "")) == lasts
    assert canonical(found).count('"kept"') == depth + 1 and values == nested(depth, mark)[0]
    by_reference = {"a": {"$ref": "#/$defs/a", "default": None}}
    assert schema.lasting_keys({"a": values}, by_reference, {"a": {"properties": known}}) == {"a": found}
    assert schema.lasting_keys({"a": None}, by_reference, {"a": {"properties": known}}) == {"a": None}


def test_fill_makes_equal_numbers_equal_text():
    definitions = COMPLETE["$defs"]
    optimiser = definitions["optimiser"]
    one = schema.fill_defaults({"lr": 1, "warmup_images": 5, "betas": [0, 0.5]}, optimiser, definitions)
    other = schema.fill_defaults({"lr": 1.0, "warmup_images": 5.0, "betas": [0.0, 0.5]}, optimiser, definitions)
    assert canonical(one) == canonical(other)
    assert isinstance(one["lr"], float) and isinstance(other["warmup_images"], int)


@pytest.mark.parametrize(
    ("data", "key", "value"),
    [("cifar10", "resolution", 16), ("cifar10", "crop", "adm"), ("digits", "resolution", 16), ("digits", "path", "x"),
     ("fashion-mnist", "crop", "adm")],
)  # fmt: skip
def test_an_option_that_a_source_does_not_read_is_no_silence(data, key, value):
    values = conftest.shipped()
    values["data"][data][key] = value
    with pytest.raises(Problem, match=rf"data\.{data}.*{key} is .*does not read it; remove it"):
        params.from_values(values, ROOT)


def test_a_method_with_dots_in_its_name_may_start_from_the_one_it_is_like():
    """The name of a method is not read out of a sentence: `dmd2.1` is not `dmd2`."""
    values = conftest.shipped()
    values["distil"]["methods"]["dmd2.1"] = {"like": "dmd2", "start_from": "dmd2/none"}
    assert params.from_values(values, ROOT).section("method", "dmd2.1", "digits")["start_from"] == "dmd2/none"
    values["distil"]["methods"]["dmd2.1"]["start_from"] = "dmd2.1/none"
    with pytest.raises(Problem, match=r"distil\.methods\.dmd2\.1\.start_from goes in a circle"):
        params.from_values(values, ROOT)


@pytest.mark.parametrize("against", ["none", "di/none"])
def test_a_study_with_a_dot_in_its_name_is_one_sentence(against):
    """Whatever it is compared with, and nothing else of it is looked at before."""
    values = conftest.shipped()
    values["tables"]["studies"]["a.b"] = {"question": "?", "against": against}
    with pytest.raises(Problem, match=r"tables\.studies\.a\.b cannot be a name; expected letters, digits, _ -"):
        params.from_values(values, ROOT)


# --- Snakemake's --config and --configfile --------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "cuda"}, ["device as 'cuda'", "has none"]),
        ({"threads": 2}, ["threads as 2", "has 1", "dvc exp run -S threads=2"]),
        ({"suite": "smoke", "distil": {"micro_batch": 8}}, ["distil.micro_batch as 8"]),
        ({"data": {"mine": {"source": "folder"}}}, ["data.mine as a section", "has none"]),
    ],
)
def test_what_only_snakemake_would_see_is_refused(given, said):
    """The steps read params.yaml: another number on Snakemake's command line would be planned and not computed."""
    root = Path(params.__file__).parents[3]
    config = schema.merge_mappings(conftest.shipped(), given)
    with pytest.raises(Problem) as caught:
        params.from_snakemake(config, given, root)
    assert all(each in str(caught.value) for each in said) and "\n" not in str(caught.value)


def test_a_suite_and_numbers_that_params_yaml_has_are_accepted():
    root = Path(params.__file__).parents[3]
    values = conftest.shipped()
    given = {"suite": "smoke", "threads": values["threads"]}
    assert params.from_snakemake(schema.merge_mappings(values, given), given, root).values["suite"] == "smoke"
    assert params.from_snakemake(schema.merge_mappings(values, {"suite": "smoke"}), {"suite": "smoke"}, root)
