# SPDX-License-Identifier: Apache-2.0
"""`make avatars`: the tool that draws the images of the data setting avatars-32, its licences, and the suite `colour`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eldistill.data.readers import folder
from eldistill.plan import params, rates
from tests.conftest import ROOT

TOOL = ROOT / "data/avatars"
DRAW = TOOL / "draw.mjs"
STYLES = re.findall(r'"([\w-]+)"', re.search(r"const STYLES = \[(.*?)\]", DRAW.read_text(encoding="utf-8"), re.S)[1])
FIFTEEN = "c326cbb8112e2a233c44a263e0ffa0e3b0a450f0eca293ab097995d3419312d4"  # the pixels of one face of each style
NODE = shutil.which("node")

with_node = pytest.mark.skipif(NODE is None, reason="there is no Node.js here")
with_packages = pytest.mark.skipif(
    NODE is None or not (TOOL / "node_modules/@dicebear/core").is_dir(),
    reason="there is no Node.js here, or `npm ci --prefix data/avatars` was not typed",
)


def draw(*words: object, tool: Path = DRAW) -> subprocess.CompletedProcess[str]:
    return subprocess.run([NODE, str(tool), *map(str, words)], capture_output=True, text=True)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a command that refused its input."""
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# --- licences and packages ------------------------------------------------------------------------------


def licences() -> dict[str, str]:
    text = (ROOT / "LICENSES.md").read_text(encoding="utf-8").split("**Drawn faces.**")[1].split("\n**")[0]
    return dict(re.findall(r"^\| `([\w-]+)` \| \[.+\]\(.+\) \| \[.+\]\(.+\) \| (.+) \|$", text, re.M))


def test_every_style_has_its_source_author_and_free_licence():
    assert STYLES == sorted(STYLES) and len(set(STYLES)) == 15
    assert list(licences()) == STYLES and set(licences().values()) == {"CC0 1.0", "CC BY 4.0"}


@with_packages
@pytest.mark.parametrize("style", STYLES)
def test_the_licence_is_the_one_that_the_package_states(style):
    text = (TOOL / f"node_modules/@dicebear/{style}/LICENSE").read_text(encoding="utf-8")
    assert re.search(r"^License: (.+?) \(", text, re.M)[1] == licences()[style]


def test_the_lock_has_versions_and_digests_and_no_registry():
    wanted = json.loads((TOOL / "package.json").read_text(encoding="utf-8"))["dependencies"]
    text = (TOOL / "package-lock.json").read_text(encoding="utf-8")
    packages = {name.removeprefix("node_modules/"): each for name, each in json.loads(text)["packages"].items() if name}
    assert {name: packages[name]["version"] for name in wanted} == wanted
    assert all(each["integrity"].startswith("sha512-") for each in packages.values())
    assert "resolved" not in text and "http" not in text.replace("https://opencollective.com", "")
    assert "omit-lockfile-registry-resolved=true" in (TOOL / ".npmrc").read_text(encoding="utf-8")


def test_git_ignores_what_is_drawn_and_installed():
    for name in ("datasets/avatars-32.zip", "datasets/avatars-32.zip.part", "data/avatars/node_modules/x"):
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode == 0, name


# --- drawing --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "deep/faces.zip"
    done = draw(path, "--each", 1, "--digest", FIFTEEN)
    assert done.returncode == 0 and done.stdout.rstrip().endswith(f"{FIFTEEN}, as expected"), done.stderr
    return path


@with_packages
def test_the_same_faces_have_the_same_bytes(drawn, tmp_path):
    """And a set of more faces contains them."""
    assert draw(tmp_path / "again.zip", "--each", 1).returncode == 0
    assert (tmp_path / "again.zip").read_bytes() == drawn.read_bytes()
    assert draw(tmp_path / "more.zip", "--each", 2).returncode == 0
    with zipfile.ZipFile(drawn) as few, zipfile.ZipFile(tmp_path / "more.zip") as more:
        assert few.testzip() is None and more.testzip() is None and len(more.namelist()) == 30
        assert all(more.read(name) == few.read(name) for name in few.namelist())
        assert {(each.compress_type, each.date_time[0]) for each in more.infolist()} == {(zipfile.ZIP_STORED, 1980)}


@with_packages
def test_the_digest_is_that_of_the_pixels_in_the_order_of_the_reader(drawn):
    """The reader finds opaque colour images of 32x32 pixels, and the styles as classes in the order of their names."""
    with zipfile.ZipFile(drawn) as faces:
        pictures = [Image.open(io.BytesIO(faces.read(name))) for name in sorted(faces.namelist())]
        pixels = b"".join(picture.convert("RGB").tobytes() for picture in pictures)
        assert all(np.asarray(picture.convert("RGBA"))[..., 3].min() == 255 for picture in pictures)
    assert hashlib.sha256(pixels).hexdigest() == FIFTEEN
    stream = folder.read(params.load_params(ROOT / "params.yaml").section("data", "avatars-32") | {"path": str(drawn)})
    images = np.stack(list(stream.read(np.arange(15))))
    assert stream.shape == (3, 32, 32) and images.transpose(0, 2, 3, 1).tobytes() == pixels
    assert list(stream.names) == STYLES and stream.labels.tolist() == list(range(15)) and not stream.notes


@with_packages
def test_neighbours_are_as_different_as_others(tmp_path):
    """Faces with numbers in a row are independent, as those far apart are; DiceBear's own random numbers from such numbers are not."""
    assert draw(tmp_path / "faces.zip", "--each", 60).returncode == 0
    with zipfile.ZipFile(tmp_path / "faces.zip") as faces:
        found = [
            np.asarray(Image.open(io.BytesIO(faces.read(name))).convert("RGB"), float) for name in faces.namelist()
        ]
    styles = np.stack(found).reshape(15, 60, -1)
    near, far = (np.abs(styles - np.roll(styles, step, 1)).mean((1, 2)) for step in (1, 30))
    assert abs((near / far).mean() - 1) < 0.03


@with_packages
def test_other_pixels_are_refused_and_nothing_is_left(tmp_path):
    text = refused(draw(tmp_path / "a/faces.zip", "--each", 1, "--digest", "0" * 64))
    assert FIFTEEN in text and "0" * 64 in text and "npm ci" in text and not list(tmp_path.iterdir())


@with_packages
def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "faces.zip").mkdir()
    assert "cannot be written" in refused(draw(tmp_path / "faces.zip", "--each", 1))
    assert [path.name for path in tmp_path.iterdir()] == ["faces.zip"]


@with_node
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], "found 0 names of files"),
        (["a.zip", "b.zip"], "found 2 names of files"),
        (["a.zip", "--each", "0"], "--each is 0; expected a whole number from 1 to 4369"),
        (["a.zip", "--each", "1.5"], "--each is 1.5"),
        (["a.zip", "--all"], "'--all'"),
    ],
)
def test_a_wrong_word_is_one_sentence(words, found):
    assert found in refused(draw(*words))


@with_node
def test_without_its_packages_it_names_the_command(tmp_path):
    shutil.copy(DRAW, tmp_path)
    assert "npm ci --prefix data/avatars" in refused(draw(tmp_path / "a.zip", tool=tmp_path / "draw.mjs"))
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize(
    ("programs", "found"),
    [
        ({}, "no working pair of them"),
        ({"node": "v20.1.0"}, "no working pair of them"),
        ({"npm": "1"}, "no working pair of them"),
        ({"npm": "1", "node": "v16.20.2"}, "v16.20.2"),
    ],
)
def test_make_says_what_to_install(programs, found, tmp_path):
    """Where Node.js or npm is missing or too old, in one sentence, before anything is installed."""
    (tmp_path / "data/avatars").mkdir(parents=True)
    for name in ("Makefile", "data/avatars/draw.mjs", "data/avatars/package-lock.json"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for name, answer in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho {answer}\n", encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    done = subprocess.run(
        [shutil.which("make"), "avatars"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert (
        done.returncode == 2 and len(said) == 1 and f"and found {found}: install the packages nodejs and npm" in said[0]
    )
    assert sorted(os.listdir(tmp_path / "data/avatars")) == ["draw.mjs", "package-lock.json"]
    assert not (tmp_path / "datasets").exists()


# --- the suite ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> params.Params:
    return params.load_params(ROOT / "params.yaml")


def test_arms_are_paired_on_seeds_that_tuned_nothing(shipped):
    """Each arm runs at the factors of its method on the tuning seeds, and at its own on the same fresh seeds under three teachers."""
    tuning, tried = set(shipped.top("tables")["tuning"]), {"di": (0.25, 0.5, 1, 2), "dmd": (0.125, 0.25, 0.5, 1, 2, 4)}
    arms: dict[tuple[str, str], set] = {}
    for run in shipped.runs("colour"):
        arms.setdefault((rates.base_method(shipped, run.method), run.supplement), set()).add(
            (run.data, rates.factor(shipped, run), run.seed)
        )
    alone = {arm: arms.pop(arm) for arm in list(arms) if arm[0] == "alone"}
    assert {supplement for _, supplement in alone} == {f"{name}-fixed" for name in ("el", "pixel-mmd", "fd", "drift")}
    for (_, supplement), cells in alone.items():  # the rates chosen beside dmd, from the same noise level
        beside = {factor for data, factor, seed in arms["dmd", supplement.removesuffix("-fixed")] if seed not in tuning}
        assert {factor for _, factor, _ in cells} == beside
    levels = {name: shipped.section("method", name, "avatars-32").get("sigma_init") for name in ("alone", "dmd")}
    assert levels["alone"] == 80 and levels["dmd"] in (None, 80)
    batches = {arm: cells for arm, cells in arms.items() if arm[0].startswith("dmd-b")}
    full = {arm: cells for arm, cells in arms.items() if arm not in batches}
    assert set(full) == {(method, arm) for method in tried for arm in ("none", "el", "pixel-mmd", "fd", "drift")}
    assert set(batches) == {("dmd-b16", "none"), ("dmd-b16", "el"), ("dmd-b256", "none")}
    for arm, cells in arms.items():
        tuned = {(factor, seed) for _, factor, seed in cells if seed in tuning}
        fresh = {(data, seed) for data, _, seed in cells if seed not in tuning}
        settings = ["avatars-32", "avatars-32-t1", "avatars-32-t2"] if arm in full else ["avatars-32"]
        assert tuned == (
            {(factor, seed) for factor in tried[arm[0]] for seed in (100, 101, 102)} if arm in full else set()
        )
        assert fresh == {(data, seed) for data in settings for seed in range(300, 310)}
        assert len({factor for _, factor, seed in cells if seed not in tuning}) == 1


def test_images_and_teachers_of_the_settings(shipped):
    """Three teachers that differ in their seed alone, of the same images, which are as many as the tool draws."""
    assert shipped.section("data", "avatars-32")["path"] == "datasets/avatars-32.zip"
    teachers = [shipped.section("teacher", name) for name in ("avatars-32", "avatars-32-t1", "avatars-32-t2")]
    assert [each["seed"] for each in teachers] == [0, 1, 2]
    assert all({key for key in each if each[key] != teachers[0][key]} <= {"seed", "data"} for each in teachers)


def test_the_times_are_read_in_the_space_that_ranks(shipped):
    """The study of the kind speed needs curves in the first feature space; of all suites."""
    studies = shipped.top("tables")["studies"]
    for suite in shipped.values["suites"]:
        for name in shipped.studies(suite):
            for run in shipped.runs(suite, name) if studies[name]["kind"] in ("speed", "budget") else ():
                section = shipped.top("evaluate", run.data)
                assert section["features"][0] in (section["curve_features"] or section["features"]), (name, run.data)


def test_the_page_says_whether_the_studies_have_tables():
    listed = subprocess.run(["git", "ls-files", "data/tables/colour"], cwd=ROOT, capture_output=True, text=True).stdout
    page = (ROOT / "docs/colour.md").read_text(encoding="utf-8")
    pages = [name for name in listed.splitlines() if name.endswith(".md")]  # kept results are no table
    assert ("No study of this suite has a table in git yet." in page) == (not pages)


def test_batches_hold_the_images_and_scale_the_rates(shipped):
    """By the square root of the batch, from the numbers of `dmd`."""
    base = shipped.section("method", "dmd", "avatars-32")
    for batch in (16, 256):
        section = shipped.section("method", f"dmd-b{batch}", "avatars-32")
        assert (section["batch"], section["n_images"]) == (batch, base["n_images"])
        for network in ("generator", "critic"):
            assert section[network]["lr"] == pytest.approx(base[network]["lr"] * (batch / base["batch"]) ** 0.5)
