# SPDX-License-Identifier: Apache-2.0
"""What lies outside git has an identity: its content decides, not its times; a change makes exactly what depends on it stale."""

from __future__ import annotations

import ast
import copy
import errno
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from eldistill import __main__, errors
from eldistill.commands import doctor
from eldistill.errors import Problem
from eldistill.external import hashes, listing, sourcelock
from eldistill.numbers import declared
from eldistill.paths import PACKAGE
from eldistill.plan import freshness, identity, params, recipes, schema
from eldistill.plan.identity import Identities, Source
from eldistill.plan.plan import Plan
from eldistill.registry import available, readers
from eldistill.steps import data as steps_data
from eldistill.steps import run as steps
from tests import conftest
from tests.conftest import ROOT
from tests.project import Project

SHIPPED = conftest.shipped()
SCHEMA = yaml.safe_load((ROOT / params.SCHEMA).read_text(encoding="utf-8"))
IDX_PARTS = [row.removeprefix("{files}-") for row in readers()["idx"].downloads]
PICTURES = Source("pictures", "folder", "pictures")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty project in the current folder, on a file system whose times are exact."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(identity, "UNSETTLED_NS", 0)
    Path("data").mkdir()
    shutil.copy(ROOT / "data/sources.csv", "data")
    shutil.copytree(ROOT / "workflow/schemas", "workflow/schemas")


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """The names of the files that are hashed, in order."""
    names = []

    def counted(path):
        names.append(Path(path).name)
        return original(path)

    original = identity.sha256
    monkeypatch.setattr(identity, "sha256", counted)
    return names


def put(name: str, content: bytes = b"x") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def of(source: Source = PICTURES) -> str | None:
    found = identity.measure_source(source)
    return None if found is None else found.sha256


# --- the identity of a content --------------------------------------------------------------------------


def test_content_and_names_decide_and_times_do_not(hashed):
    put("pictures/a.png", b"a"), put("pictures/cat/b.PNG", b"b")
    first = of()
    assert identity.measure_source(PICTURES) == identity.Identity(first, 2, 2) and hashed == ["a.png", "b.PNG"]
    os.utime("pictures/a.png", (5, 5))
    assert of() == first and hashed == ["a.png", "b.PNG", "a.png"]
    put("pictures/a.png", b"c")
    changed = of()
    Path("pictures/a.png").rename("pictures/z.png")
    renamed = of()
    put("pictures/c.png", b"b")
    more = of()
    Path("pictures/c.png").unlink()
    assert of() == renamed and len({first, changed, renamed, more}) == 4
    Path("pictures/z.png").write_bytes(b"a"), Path("pictures/z.png").rename("pictures/a.png")
    assert of() == first


def test_what_is_not_read_is_not_part_of_it(hashed):
    """A README, hidden files and folders, a circle of links; a pipe is not even opened. The table of labels is read."""
    put("pictures/a.png", b"a")
    first = of()
    put("pictures/README.md"), put("pictures/.DS_Store"), put("pictures/a.json"), put("pictures/._a.png")
    put("pictures/.ipynb_checkpoints/a-checkpoint.png"), put("pictures/__MACOSX/._a.png")
    os.mkfifo("pictures/pipe.png")
    Path("pictures/circle").symlink_to(Path("pictures").absolute())
    assert of() == first and hashed == ["a.png"]
    put("pictures/dataset.json", b"{}")
    assert of() != first


def test_a_link_to_a_folder_counts_as_the_folder():
    put("pictures/cat/a.png", b"a"), put("pictures/dog/b.png", b"b")
    first = of()
    Path("pictures/dog").rename("elsewhere")
    assert of() != first
    Path("pictures/dog").symlink_to(Path("elsewhere").absolute())
    assert of() == first
    put("elsewhere/b.png", b"c")
    assert of() != first


def test_a_link_to_a_file_counts_as_what_it_names():
    put("pictures/a.png", b"a")
    first = of()
    put("elsewhere/a.png", b"a")
    Path("pictures/a.png").unlink()
    Path("pictures/a.png").symlink_to(Path("elsewhere/a.png").absolute())
    assert of() == first
    put("elsewhere/a.png", b"b")
    assert of() != first


def test_the_order_in_which_a_folder_is_listed_does_not_matter(monkeypatch):
    for name in "abcdef":
        put(f"pictures/{name}.png", name.encode())
    first, files = of(), identity.READ_AS["folder"]
    for seed in range(5):
        monkeypatch.setitem(
            identity.READ_AS, "folder", lambda *words, s=seed: random.Random(s).sample(files(*words), 6)
        )
        assert of() == first


def test_equal_identity_means_equal_content():
    """Fifty random edits of a folder, beside a model of it: {name: bytes}."""
    draw, model, seen = random.Random(0), {}, {}
    names = [f"{folder}{letter}.png" for folder in ("", "cat/", "dog/") for letter in "ab"]
    for _ in range(50):
        name, action = draw.choice(names), draw.choice(("put", "put", "remove", "rename", "touch", "swap"))
        there = Path("pictures") / name
        if action == "put" or not model:
            model[name] = draw.choice((b"1", b"2", b"33"))
            put(f"pictures/{name}", model[name])
        elif name in model and action == "remove":
            there.unlink()
            del model[name]
        elif name in model and action == "touch":
            os.utime(there, (draw.randrange(10), 7))
        elif name in model and action in ("rename", "swap"):
            other = draw.choice(names)
            put(f"pictures/{other}")  # its folder is there
            if action == "swap" and other in model:
                put(f"pictures/{other}", model[name]), put(f"pictures/{name}", model[other])
                model[name], model[other] = model[other], model[name]
            else:
                there.rename(Path("pictures") / other)
                model[other] = model.pop(name)
        found, key = of(), json.dumps(sorted((name, content.decode()) for name, content in model.items()))
        assert seen.setdefault(key, found) == found
        assert (found is None) == (not model)
    assert len(set(seen.values())) == len(seen) > 20


def test_a_file_is_its_own_identity_and_a_folder_of_one_file_another():
    put("a.zip", b"zip")
    assert of(Source("a.zip", "folder", "a.zip")) == identity.sha256("a.zip")
    put("pictures/a.png", b"zip")
    assert of() != identity.sha256("a.zip")


@pytest.mark.parametrize("read_as", sorted(listing.READ_AS))
def test_what_is_not_there_has_none(read_as):
    source = Source("it", read_as, "it", ("a",))
    assert of(source) is None
    Path("it").mkdir()  # a disk that is not mounted
    put("it/README.md")
    assert of(source) is None
    shutil.rmtree("it")
    os.mkfifo("it")
    assert of(source) is None
    put("file")
    assert of(Source("it", read_as, "file/it", ("a",))) is None


# --- hashes that are kept -------------------------------------------------------------------------------


def test_a_hash_is_taken_from_the_cache_only_at_equal_size_and_times(hashed):
    for name in "abc":
        put(f"pictures/{name}.png", b"12")
    first = of()
    assert hashed == ["a.png", "b.png", "c.png"] and of() == first and len(hashed) == 3
    about = Path("pictures/b.png").stat()
    put("pictures/b.png", b"21")
    os.utime("pictures/b.png", ns=(about.st_atime_ns, about.st_mtime_ns))  # as a program does that copies times
    assert of() != first and hashed[3:] == ["b.png"]
    put("pictures/c.png", b"123")
    of()
    assert hashed[4:] == ["c.png"]


def test_two_files_of_one_size_and_time_that_changed_places(hashed):
    for name, content in (("a", b"1"), ("b", b"2")):
        os.utime(put(f"pictures/{name}.png", content), (7, 7))
    first = of()
    for old, new in (("a", "t"), ("b", "a"), ("t", "b")):
        Path(f"pictures/{old}.png").rename(f"pictures/{new}.png")
    assert of() != first


def test_what_was_hashed_right_after_it_was_written_is_hashed_once_more(hashed):
    put("pictures/a.png", b"1")
    for times in (1, 2):
        identity.measure_source(PICTURES, unsettled=60 * 10**9)
        assert len(hashed) == times


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"[1, 2]\n{}\nnull\n", b'["', None])
def test_a_damaged_cache_is_ignored(hashed, damage):
    put("pictures/a.png", b"1"), put("pictures/b.png", b"2")
    first = of()
    for path in hashes.HASHES.iterdir():
        path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    assert of() == first
    assert of() == first and len(hashed) <= 4


def test_a_hashing_that_is_stopped_goes_on_where_it_was(monkeypatch, hashed):
    for name in "abcd":
        put(f"pictures/{name}.png", name.encode())
    counted = identity.sha256

    def stopped(path):
        if path.endswith("c.png"):
            raise KeyboardInterrupt
        return counted(path)

    monkeypatch.setattr(identity, "sha256", stopped)
    with pytest.raises(KeyboardInterrupt):
        of()
    monkeypatch.setattr(identity, "sha256", counted)
    assert of() and hashed == ["a.png", "b.png", "c.png", "d.png"]


def test_the_cache_does_not_grow_for_ever():
    for round in range(60):
        for name in "abc":
            put(f"pictures/{name}.png", f"{round} {name}".encode())
        of()
    (path,) = hashes.HASHES.glob("*.tsv")
    assert len(path.read_text().splitlines()) < 250


def test_long_hashing_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr(hashes, "PATIENCE", -1.0)
    put("pictures/a.png", b"1"), put("pictures/b.png", b"2")
    lines: list[str] = []
    identity.measure_source(PICTURES, say=lines.append)
    assert "2 of at most 2 files" in lines[-1] and lines[-1].startswith("pictures: ")


def test_a_scratch_that_cannot_be_written_costs_nothing_but_the_hashes():
    put("pictures/a.png", b"1")
    put("data/scratch")
    assert of() == of() is not None


# --- the record in git ----------------------------------------------------------------------------------


def plan_of(measured: bool = True) -> tuple[Identities, list[str]]:
    lines: list[str] = []
    return Identities(measured, say=lines.append), lines


def test_an_identity_is_recorded_once_and_holds_where_the_source_is_absent(hashed):
    put("pictures/a.png", b"1"), put('with, "comma"/a.png', b"1")
    odd = Source('with, "comma"', "folder", 'with, "comma"')
    plan, lines = plan_of()
    wanted = plan((PICTURES, odd))
    plan.record()
    assert len(lines) == 2 and "sources.lock.csv" in lines[0]
    text = sourcelock.LOCK.read_text()
    assert text.splitlines()[0] == "name,sha256,bytes,noted,files,read_as"
    os.utime(sourcelock.LOCK, (5, 5))
    plan, lines = plan_of()
    assert plan((PICTURES, odd)) == wanted and plan.record() is None and lines == []
    assert sourcelock.LOCK.stat().st_mtime == 5
    shutil.rmtree("pictures"), shutil.rmtree("data/scratch")
    plan, lines = plan_of()
    assert plan((PICTURES,)) == plan((PICTURES,)) == {"pictures": wanted["pictures"]}
    assert len(lines) == 1 and lines[0].startswith("pictures is not here; ") and "1 files" in lines[0]
    put("pictures/a.png", b"2")
    plan, lines = plan_of()
    assert plan((PICTURES,)) != {"pictures": wanted["pictures"]}
    plan.record()
    assert f"it was {wanted['pictures'][:16]}" in lines[0] and len(sourcelock.read_rows()) == 2


def test_a_source_that_cannot_be_read_counts_as_absent_and_why_is_said():
    put("pictures/a.png", b"1")
    plan, _ = plan_of()
    wanted = plan((PICTURES,))
    plan.record()
    Path("pictures/b.png").symlink_to("nowhere.png")
    plan, lines = plan_of()
    assert plan((PICTURES,)) == wanted and "No such file" in lines[0] and "b.png" in lines[0]


def test_a_source_that_was_never_seen_is_null_and_its_appearance_another_recipe():
    plan, lines = plan_of()
    assert plan((PICTURES,)) == {"pictures": None} and plan.record() is None and lines == []
    put("pictures/a.png", b"1")
    assert plan_of()[0]((PICTURES,))["pictures"]


def test_a_job_hashes_nothing(hashed):
    put("pictures/a.png", b"1")
    plan, _ = plan_of(measured=False)
    assert plan((PICTURES,)) == {"pictures": None}
    plan, _ = plan_of()
    wanted = plan((PICTURES,))
    plan.record()
    put("pictures/a.png", b"2")
    job, _ = plan_of(measured=False)
    assert job((PICTURES,)) == wanted and hashed == ["a.png"]


def test_one_path_that_is_read_in_two_ways_has_two_rows():
    put("both/a.png", b"1"), put("both/a.npy", b"2")
    plan, _ = plan_of()
    wanted = {kind: plan((Source("both", kind, "both"),)) for kind in ("folder", "latents")}
    plan.record()
    assert set(sourcelock.read_rows()) == {("both", "folder"), ("both", "latents")}
    job, _ = plan_of(measured=False)
    assert {kind: job((Source("both", kind, "both"),)) for kind in wanted} == wanted and len(
        set(map(str, wanted.values()))
    ) == 2


def test_rows_of_fetched_files_and_of_paths_live_in_one_file():
    """Four columns as before, a damaged line says nothing, a fetched file's first row stays, a path's follows."""
    sourcelock.LOCK.write_text(
        f"name,sha256,bytes,noted\nother,{'1' * 64},5,2026-01-01\npictures,{'a' * 64},3,x,y,images\nz,abc"
    )
    path = {"name": "pictures", "sha256": "2" * 64, "bytes": "7", "files": "3", "read_as": "images"}
    sourcelock.add_rows([{"name": "other", "sha256": "3" * 64, "bytes": "6"}, path])
    sourcelock.add_rows([path | {"sha256": "4" * 64}])
    lines = sourcelock.LOCK.read_text().splitlines()
    assert lines[1] == f"other,{'1' * 64},5,2026-01-01"
    assert lines[2].startswith(f"pictures,{'4' * 64},7,") and lines[2].endswith(",3,images") and len(lines) == 3
    assert set(sourcelock.read_rows()) == {("other", ""), ("pictures", "images")}


# --- keys of params.yaml --------------------------------------------------------------------------------

# Texts that are names, or describe a machine. A new key that names a path is marked `outside`; another is listed here.
NAMES = {
    "/suite", "data/like", "data/source", "data/files", "data/background", "data/pixels", "data/teacher", "teacher/like", "teacher/data",
    "teacher/source", "teacher/sha256", "guidance/of", "guidance/guide",
    "check/features", "check/reference", "ensemble/like", "member/family", "method/like", "method/file",
    "method/start_from", "supplement/like", "supplement/file", "tables/baseline", "study/question", "study/against",
    "supplements/embedding/ensemble", "supplements/fd/ensemble", "supplements/drift/ensemble",
}  # fmt: skip


def texts() -> dict[str, dict]:
    """Every key of the schema and of the modules that may be any text."""
    owners = {"": SCHEMA, **SCHEMA["$defs"]}
    for kind in ("methods", "supplements", "ensemble", "metrics"):
        owners |= {f"{kind}/{file}": {"properties": declared(kind, file)} for file in available(kind)}
    found = {
        f"{owner}/{key}": each for owner, about in owners.items() for key, each in about.get("properties", {}).items()
    }
    return {key: each for key, each in found.items() if "string" in (each.get("type") or ()) and not each.get("enum")}


def test_every_key_that_names_a_path_is_marked():
    marked = {key: each["outside"] for key, each in texts().items() if each.get("outside")}
    site = {key for key, each in texts().items() if each.get("site")}
    assert marked == {
        "data/path": "source", "codec/vae": "autoencoder", "teacher/file": "network", "fid/reference": "statistics",
        "methods/consistency/lpips": "weights", "supplements/regression/lpips": "weights",
    }  # fmt: skip
    sources = set(readers())
    assert {*marked.values(), *sources} - {"source", "digits"} == set(listing.READ_AS)
    assert set(texts()) - set(marked) - site <= NAMES


def test_a_copy_of_a_value_knows_what_it_is_read_as():
    value = schema.OutsidePath("a.zip", "images")
    for each in (copy.deepcopy({"path": value})["path"], copy.copy(value)):
        assert each == "a.zip" and each.read_as == "images"
    assert schema.OutsidePath("a.zip", "x") == "a.zip" and json.dumps([value]) == '["a.zip"]'


def test_readers_take_the_listing_of_the_identity():
    """No module but listing.py looks through a folder of a source by itself."""
    for path in [*(PACKAGE / "data").rglob("*.py"), *(PACKAGE / "teacher").glob("*.py")]:
        if path.name == "plain.py":
            continue  # for a sentence it looks which snapshot lies beside a file that is refused
        text = path.read_text(encoding="utf-8")
        assert not {
            "rglob",
            "glob",
            "iterdir",
            "scandir",
            "listdir",
        } & {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}


# --- recipes --------------------------------------------------------------------------------------------


def project() -> dict:
    """Every kind of source in one suite."""
    values = copy.deepcopy(SHIPPED)
    codec = {"mean": 0.5, "std": 0.25}
    data = {"source": "folder", "path": "pictures", "codec": codec, "teacher": "mine"}
    latent = {"mean": [0.0, 0.0], "std": [1.0, 1.0], "vae": "vae"}
    values["data"] |= {
        "mine": data, "other": data | {"teacher": "other", "path": "other.zip"},
        "latent": {"source": "latents", "path": "latents", "pixels": "mine", "codec": latent, "teacher": "latent"},
        "own": {"source": "idx", "files": "own", "folder": "idx", "codec": codec, "teacher": "own"},
        "own-too": {"like": "own", "folder": None},
    }  # fmt: skip
    network = {"network": "song", "model_channels": 8}
    values["teacher"] |= {
        "mine": {"data": "mine", "file": "teacher.pkl"}, "other": {"data": "other", "network": network},
        "latent": {"data": "latent", "file": "ddpm"}, "own": {"data": "own", "network": network},
    }  # fmt: skip
    methods, supplements = values["distil"]["methods"], values["distil"]["supplements"]
    for name in ("mine", "other", "latent", "own"):
        methods["di"]["per_data"][name] = {"n_images": 64, "batch": 8}
    methods["cd-lpips"] = {
        "file": "consistency",
        "distance": "lpips",
        "lpips": "vgg.safetensors",
        "n_images": 64,
        "batch": 8,
    }
    supplements["far"] = {"like": "regression", "lpips": "vgg.safetensors"}
    values["evaluate"]["per_data"]["mine"] = {"fid": {"reference": "own.npz"}}
    grid = {"data": ["mine", "other", "latent", "own"], "methods": ["di"], "supplements": ["none"], "seeds": [0]}
    values["suites"]["all"] = [
        grid,
        {**grid, "data": ["other"], "supplements": ["far"]},
        {**grid, "data": ["other"], "methods": ["cd-lpips"]},
    ]
    rows = [f"own-{part},1,https://example.org/{part}.gz,,,,,data,," for part in IDX_PARTS]
    with open("data/sources.csv", "a") as table:
        table.write("".join(f"{row}\n" for row in rows))
    put("pictures/a.png", b"1"), put("other.zip", b"1"), put("latents/a.npy", b"1"), put("latents/dataset.json", b"1")
    put("teacher.pkl", b"1"), put("vgg.safetensors", b"1"), put("own.npz", b"1")
    put("vae/config.json", b"1"), put(f"vae/{listing.WEIGHTS}", b"1"), put("vae/README.md", b"1")
    put("ddpm/unet/config.json", b"1"), put(f"ddpm/unet/{listing.WEIGHTS}"), put(f"ddpm/scheduler/{listing.SCHEDULE}")
    for part in IDX_PARTS:
        put(f"idx/{part}.gz", b"1")
    return values


CHECKED: list[params.Params] = []  # checking takes longer than all else, and the parameters are always the same


def suite(measured: bool = True, record: bool = True, values: dict | None = None) -> dict[str, recipes.Step]:
    """The steps of that suite, as a plan in the current folder sees them."""
    found = Identities(measured, say=lambda line: None)
    plan = Plan(params.from_values(values, ".") if values else CHECKED[0], found)
    made = {f"{word} {name}": step for (word, name), step in plan.suite("all").items()}
    assert all(step.recipe for step in made.values())
    if record:
        found.record()
    return made


def recipes_of(made: dict[str, recipes.Step]) -> dict[str, str]:
    return {name: step.recipe for name, step in made.items()}


@pytest.fixture
def before() -> dict[str, recipes.Step]:
    values = project()
    if not CHECKED:
        CHECKED.append(params.from_values(values, "."))
    return suite()


def below(made: dict[str, recipes.Step], *firsts: str) -> set[str]:
    """These steps and all that stand on them."""
    stale = set(firsts)
    for name, step in made.items():
        if {f"{each.word} {each.name}" for each in step.upstream} & stale:
            stale.add(name)
    return stale


READERS = {
    "pictures/a.png": ["data mine/images"],
    "other.zip": ["data other/images"],
    "latents/a.npy": ["data latent/images"],
    "latents/dataset.json": ["data latent/images"],
    "idx/train-images.gz": ["data own/images"],
    "teacher.pkl": ["teacher mine"],
    "ddpm/unet/config.json": ["teacher latent"],
    f"ddpm/scheduler/{listing.SCHEDULE}": ["teacher latent"],
    "vgg.safetensors": ["distil other/di/far/0", "distil other/cd-lpips/none/0"],
    "own.npz": ["evaluate mine/real", "evaluate mine/teacher", "evaluate mine/di/none/0"],
    f"vae/{listing.WEIGHTS}": ["teacher latent", "distil latent/di/none/0", "evaluate latent/real", "evaluate latent/teacher",
                               "evaluate latent/di/none/0"],
    "vae/README.md": [],
}  # fmt: skip


@pytest.mark.parametrize("changed", READERS)
def test_a_change_makes_exactly_what_depends_on_it_stale(before, changed):
    content = Path(changed).read_bytes()
    put(changed, b"2")
    after = suite(record=False)
    assert {name for name in before if after[name].recipe != before[name].recipe} == below(before, *READERS[changed])
    put(changed, content)
    assert recipes_of(suite()) == recipes_of(before)


def test_a_recipe_names_what_its_step_reads_and_no_other(before):
    assert json.loads(before["data mine/images"].recipe)["sources"] == {"pictures": of()}
    for name in ("tables all", "data mine/judge-a", "teacher own", "teacher other"):
        assert "sources" not in json.loads(before[name].recipe)


def test_all_removed_all_planned_as_before_also_by_a_job(before, hashed):
    """As in a clone with pulled results, on a machine that has none of the sources."""
    assert recipes_of(suite(measured=False)) == recipes_of(before) and not hashed
    for name in ("pictures", "latents", "vae", "ddpm", "idx", "data/scratch"):
        shutil.rmtree(name)
    for name in ("other.zip", "teacher.pkl", "vgg.safetensors", "own.npz"):
        Path(name).unlink()
    Path("pictures").mkdir()
    assert recipes_of(suite()) == recipes_of(before) and not hashed


def test_where_the_folder_of_idx_files_lies_is_not_part_of_a_recipe(before):
    wanted, values = before["data own/images"].recipe, copy.deepcopy(CHECKED[0].values)
    Path("idx").rename("moved")
    for own, too in (("moved", None), (None, None), (None, "moved")):  # a setting that shares the pack may know it
        values["data"]["own"]["folder"], values["data"]["own-too"]["folder"] = own, too
        assert suite(values=values)["data own/images"].recipe == wanted
    put("moved/train-images.gz", b"2")
    assert suite(values=values)["data own/images"].recipe != wanted


def test_what_is_published_is_known_by_its_row(hashed):
    """No file of Fashion-MNIST in a folder is hashed, nor one beside `source`: they are checked when they are read."""
    values = copy.deepcopy(SHIPPED)
    plan = Plan(params.from_values(values, ROOT), Identities())
    wanted = plan.pack("fashion-mnist").recipe, plan.teacher("edm-cifar10").recipe
    values["data"]["fashion-mnist"]["folder"] = "idx"
    values["teacher"]["edm-cifar10"]["file"] = "teacher.pkl"
    put("idx/train-images-idx3-ubyte.gz"), put("teacher.pkl")
    plan = Plan(params.from_values(values, ROOT), Identities(measured=True))
    assert (plan.pack("fashion-mnist").recipe, plan.teacher("edm-cifar10").recipe) == wanted and not hashed


def test_only_what_a_suite_needs_is_hashed(hashed):
    values = project()
    values["suites"]["all"] = [{"data": ["other"], "methods": ["di"], "supplements": ["none"], "seeds": [0]}]
    plan = Plan(params.from_values(values, "."), Identities(measured=True, say=lambda line: None))
    assert all(step.recipe for step in plan.suite("all").values()) and hashed == ["other.zip"]


# --- a step, by hand and as a job -----------------------------------------------------------------------


@pytest.fixture
def pictures() -> None:
    """A folder of pictures and its data setting, in params.yaml."""
    from PIL import Image

    for number in range(8):
        Path("pictures").mkdir(exist_ok=True)
        Image.new("L", (8, 8), 20 * number).save(f"pictures/{number}.png")
    values = copy.deepcopy(SHIPPED)
    values["data"]["mine"] = {
        "source": "folder",
        "path": "pictures",
        "heldout": 2,
        "teacher": "mine",
        "codec": {"mean": 0.5, "std": 0.25},
    }
    values["teacher"]["mine"] = {"data": "mine", "network": {"network": "song"}}
    values["distil"]["methods"]["di"]["per_data"]["mine"] = {"n_images": 64, "batch": 8}
    values["suites"]["mine"] = [{"data": ["mine"], "methods": ["di"], "supplements": ["none"], "seeds": [0]}]
    values["evaluate"]["neighbours"] = 1  # of two held-out images
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def recolour(name: str, level: int) -> None:
    from PIL import Image

    Image.new("L", (8, 8), level).save(f"pictures/{name}.png")


def test_by_hand_up_to_date_means_of_this_content(pictures, capsys, hashed):
    assert __main__.main(["data", "mine/images"]) == 0 and len(hashed) == 8
    assert __main__.main(["data", "mine/images"]) == 0 and len(hashed) == 8
    assert capsys.readouterr().out.count("up to date") == 1
    recolour("3", 255)
    assert __main__.main(["data", "mine/images"]) == 0 and hashed[8:] == ["3.png"]
    assert "6 train and 2 held-out" in capsys.readouterr().out
    Path("pictures").rename("elsewhere")
    assert __main__.main(["data", "mine/images"]) == 0
    said = capsys.readouterr()
    assert "up to date" in said.out and said.err.count("\n") == 1 and "pictures is not here" in said.err
    assert __main__.main(["data", "mine/images", "--force"]) == 2
    assert "pictures does not exist; put it there" in capsys.readouterr().err


def test_packing_says_again_what_it_found_and_what_is_not_used(pictures, capsys):
    """Mean, deviation and classes are printed by a second call too; few held-out images are called few."""
    assert __main__.main(["data", "mine/images"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert __main__.main(["data", "mine/images"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == first
    assert any("2 held-out images are few" in line for line in first)
    about = {"train": 9, "heldout": 900, "shape": [1, 8, 8], "mean": 0.5, "std": 0.2, "sha256": "0" * 64,
             "class_names": ["cat", "dog"], "class_counts": [4, 5]}  # fmt: skip
    codec = {"mean": about["mean"], "std": about["std"]}
    lines = [steps_data.described(about, {"labels": labelled, "codec": codec}) for labelled in (True, False)]
    assert lines[1][:-1] == lines[0] and "networks do not see these classes; `labels: true`" in lines[1][-1]
    assert not any("few" in line for line in lines[1])


def test_plan_sees_what_lies_outside_git(pictures, capsys):
    """As Snakemake does, and without recording it: a file that was removed, and a path that is nowhere."""
    values = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    values["data"]["mine"]["resolution"] = 8
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert __main__.main(["data", "mine/images"]) == 0
    recorded = Path("data/sources.lock.csv").read_text(encoding="utf-8")
    assert __main__.main(["plan", "mine"]) == 0
    said = capsys.readouterr().out
    assert "content of pictures" not in said and "does not exist" not in said and "of a teacher" in said
    Path("pictures/3.png").unlink()
    assert __main__.main(["plan", "mine"]) == 0
    assert "content of pictures" in capsys.readouterr().out
    assert Path("data/sources.lock.csv").read_text(encoding="utf-8") == recorded
    values["data"]["mine"]["path"] = "nowhere"
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert __main__.main(["plan", "mine"]) == 0
    assert "nowhere does not exist, and `data mine/images` reads it: put it there" in capsys.readouterr().out


def job(name: str = "mine/images") -> str:
    """Plan as the driver does, and give the recipe to a job."""
    found = Identities(measured=True, say=lambda line: None)
    step = Plan(params.load_params(), found).find("data", name)
    freshness.refresh([step])
    found.record()
    return step.file


def test_a_job_takes_the_recipe_that_it_is_given_and_hashes_nothing(pictures, hashed):
    file = job()
    del hashed[:]
    assert steps.run_step("data", "mine/images", file) is True
    assert steps.run_step("data", "mine/images", file) is False and hashed == []
    assert Path("data/sets/mine/images.safetensors.recipe").read_text() == Path(file).read_text()


def test_a_job_refuses_what_changed_since_it_was_planned(pictures, capsys):
    file = job()
    recolour("0", 255)
    assert __main__.main(["data", "mine/images", "--recipe", file]) == 2
    assert "pictures changed since this recipe was written" in capsys.readouterr().err
    assert not Path("data/sets/mine").exists() or not list(Path("data/sets/mine").iterdir())
    os.utime("pictures/1.png", (9, 9))
    assert __main__.main(["data", "mine/images", "--recipe", job()]) == 0


@pytest.mark.parametrize("forbidden", ["sha256", "_listed"])
def test_what_may_not_be_read_is_not_said_to_have_changed(pictures, capsys, monkeypatch, forbidden):
    """It has no identity, because it was never read; the sentence is that of its reader, and no `[Errno 13]` is printed."""

    def deny(*given):
        raise PermissionError(errno.EACCES, "Permission denied", "pictures/3.png")

    def refuse(work):
        raise errors.denied("pictures/3.png")

    monkeypatch.setattr(identity, forbidden, deny)
    monkeypatch.setattr(steps, "make_step", refuse)
    assert __main__.main(["data", "mine/images"]) == 2
    said = capsys.readouterr().err
    assert said.endswith(
        "pictures/3.png may not be read by this user; ask its owner for the right to read it (chmod g+r)\n"
    )
    assert "changed since" not in said and "Errno" not in said


def test_pictures_that_change_while_they_are_packed_make_no_result(pictures, monkeypatch):
    file, original = job(), steps.make_step

    def slow(work):
        original(work)
        recolour("0", 200)

    monkeypatch.setattr(steps, "make_step", slow)
    with pytest.raises(Problem, match="pictures changed since"):
        steps.run_step("data", "mine/images", file)
    assert not Path("data/sets/mine/images.safetensors.recipe").exists()


def test_pictures_that_appear_make_a_step_stale_that_had_none(pictures):
    Path("pictures").rename("elsewhere")
    file = job()
    assert json.loads(Path(file).read_text())["sources"] == {"pictures": None}
    with pytest.raises(Problem, match="pictures does not exist"):
        steps.run_step("data", "mine/images", file)
    Path("elsewhere").rename("pictures")
    with pytest.raises(Problem, match="changed since"):
        steps.run_step("data", "mine/images", file)
    assert steps.run_step("data", "mine/images", job())


def test_the_doctor_says_what_is_absent_and_what_changed(pictures):
    def said() -> list[tuple]:
        return [finding for finding in doctor._sources(Plan(params.load_params()), "mine") if "pictures" in finding[1]]

    assert said() == []
    steps.run_step("data", "mine/images", job())
    assert said() == [(True, "data mine/images: pictures is what data/sources.lock.csv records (8 files)")]
    recolour("0", 200)
    ((good, sentence),) = said()
    assert good is False and "changed" in sentence and "data mine/images" in sentence
    shutil.rmtree("pictures")
    ((good, sentence),) = said()
    assert good is None and "is not here" in sentence


def idx(name: str, array: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    put(f"idx/{name}.gz", gzip.compress(b"\0\0\x08" + bytes([array.ndim]) + sizes + array.tobytes()))


def test_own_idx_files_that_change_are_packed_again_once_their_digest_is_given_up(pictures, capsys):
    """Without a digest in data/sources.csv: the step is stale, the noted digest refuses, and says which line to remove."""
    with open("data/sources.csv", "a") as table:
        table.write("".join(f"own-{part},1,https://example.org/{part}.gz,,,,,data,,\n" for part in IDX_PARTS))
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    values["data"]["mine"] |= {"source": "idx", "files": "own", "folder": "idx", "path": None}
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    for name in IDX_PARTS:
        idx(name, np.arange(512, dtype=np.uint8).reshape(8, 8, 8) if "images" in name else np.zeros(8, np.uint8))
    assert __main__.main(["data", "mine/images"]) == __main__.main(["data", "mine/images"]) == 0
    assert "up to date" in capsys.readouterr().out
    idx("train-images", np.ones((8, 8, 8), np.uint8))
    assert __main__.main(["data", "mine/images"]) == 2
    assert "remove the line of own-train-images there" in capsys.readouterr().err
    lines = sourcelock.LOCK.read_text().splitlines(keepends=True)
    sourcelock.LOCK.write_text("".join(line for line in lines if not line.startswith("own-train-images,")))
    assert __main__.main(["data", "mine/images"]) == 0 and "mean 0.003922" in capsys.readouterr().out


# --- Snakemake and DVC ----------------------------------------------------------------------------------


def test_a_clone_without_the_pictures_has_nothing_to_do_and_with_another_picture_it_has(pictures, tmp_path):
    """Packed, recorded and pushed; cloned and pulled where there are no pictures: nothing runs. Another picture: its step."""
    origin, wanted = Project(tmp_path / "a/project"), "data/sets/mine/images.safetensors"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in tracked.splitlines():
        if not name.startswith(("data/", "tests/", "dvc.lock")) or name.startswith(("data/.git", "data/sources")):
            (origin.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, origin.path / name)
    shutil.copy("params.yaml", origin.path)
    origin.edit("suite", value="mine")
    origin.edit("data", "mine", "path", value=str(tmp_path / "pictures"))
    origin.run("git", "init", "-q", "-b", "main")
    snakemake = ("snakemake", "--cores", "1", wanted)
    origin.run(sys.executable, "-m", "eldistill", "data", "mine/images")
    origin.run("dvc", "commit", "-q", "-f", "data")
    origin.run("dvc", "push", "-q")
    origin.run("git", "add", "-A")
    origin.run("git", "commit", "-qm", "packed")
    clone = origin.clone("clone")
    clone.run("dvc", "pull", "-q", "data")
    Path("pictures").rename("elsewhere")
    said = clone.run(*snakemake)
    assert "Nothing to be done" in said and said.count("is not here; data/sources.lock.csv is trusted instead") == 1
    assert clone.run("git", "status", "--porcelain") == ""
    shutil.copytree("elsewhere", "pictures", copy_function=shutil.copyfile)
    recolour("3", 255)
    assert clone.ran(*snakemake) == {"data mine/images"}
    assert "data/sources.lock.csv" in clone.run("git", "status", "--porcelain")
