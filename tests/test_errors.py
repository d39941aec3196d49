# SPDX-License-Identifier: Apache-2.0
"""What goes wrong for a user: one sentence, the right exit code, nothing half-written, nothing unpickled."""

from __future__ import annotations

import ast
import contextlib
import csv
import errno
import functools
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eldistill import __main__ as program
from eldistill import files, networks
from eldistill.data import packing
from eldistill.errors import Problem
from eldistill.external import fetching
from eldistill.paths import PACKAGE
from eldistill.plan import params, recipes
from eldistill.plan.plan import Plan
from eldistill.tensors import save_tensors
from tests import conftest
from tests.conftest import ROOT

RUN = "digits-smoke/di/none/0"
TEACHER = "data/teachers/digits-smoke/teacher.safetensors"
PACK = "data/sets/digits/images.safetensors"
CODEC = {"mean": 0.3053, "std": 0.3756}


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("pack") / "images.safetensors"
    packing.pack_dataset({"source": "digits", "heldout": 360}, path)
    return path.read_bytes()


@pytest.fixture
def project(project, monkeypatch, packed):
    """A project with the packed digits; no waiting."""
    files.write_text(project / PACK, "")
    (project / PACK).write_bytes(packed)
    monkeypatch.setattr(fetching.time, "sleep", lambda seconds: None)
    monkeypatch.delenv("ELDISTILL_STORE", raising=False)
    threads = torch.get_num_threads()
    yield project
    torch.set_num_threads(threads)


DIGITS_CODEC = conftest.shipped()["data"]["digits"]["codec"]


def change(path: str, value) -> None:
    """Replace one value of the project's params.yaml."""
    values = conftest.read_yaml(Path("params.yaml").read_text())
    *above, last = path.split("/")
    place = values
    for step in above:
        place = place[step]
    place[last] = value
    Path("params.yaml").write_text(conftest.write_yaml(values))


def tree() -> dict[str, int]:
    """All files of the project but logs and training state, with their sizes; temporary files everywhere."""
    found = {path.as_posix(): path.stat().st_size for path in Path().rglob("*") if path.is_file()}
    return {name: size for name, size in found.items() if not name.startswith("data/scratch/") or "tmp" in name}


def vouch() -> None:
    """Give every file that a test has put in the place of an output the recipe that is wanted of it."""
    for step in vouched(Path("params.yaml").read_text()) if Path("params.yaml").exists() else ():
        if Path(step.outputs[0]).exists() and not Path(step.sidecar).exists():
            Path(step.sidecar).write_text(step.recipe, encoding="utf-8")


@functools.cache
def vouched(text: str) -> list[recipes.Step]:
    """The packs and teachers of a params.yaml, as far as it can be read."""
    found = []
    with contextlib.suppress(Problem):
        plan = Plan(params.from_values(conftest.read_yaml(text)))
        found += [plan.pack(name) for name in plan.params.values["data"]]
        found += [plan.teacher(name) for name in plan.params.values["teacher"]]
    return found


def fails(capsys, *arguments: str, code: int = 2) -> str:
    """Run a command that must fail; returns its sentence."""
    vouch()
    before = tree()
    capsys.readouterr()
    found = program.main(list(arguments))
    lines = capsys.readouterr().err.strip().splitlines()
    # A progress bar, which belongs to a person who waits, ends in a carriage return.
    lines = [line for line in lines if line.strip() and "B/s" not in line]
    assert found == code and len(lines) == 1, (found, lines)
    assert lines[0].startswith("eldistill: ")
    assert tree() == before
    return lines[0]


def teacher(codec=None, resolution: int = 8, label_dim: int = 0) -> None:
    """A teacher of seconds with everything a run needs."""
    config = {"network": "song", "img_resolution": resolution, "img_channels": 1, "label_dim": label_dim,
              "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": []}  # fmt: skip
    net = networks.build(config)
    about = {
        "config": net.config,
        "codec": codec or CODEC,
        "shape": [1, resolution, resolution],
        "label_dim": label_dim,
    }
    save_tensors(TEACHER, net.state_dict(), {**about, "n_images": 0, "recipe": ""})
    Path(TEACHER).with_name("log.csv").write_text("")
    Path(TEACHER).with_name("provenance.json").write_text("{}")


# --- names and files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "name", "words"),
    [
        ("distil", "digits/dii/el/0", ["'dii'", "did you mean di?"]),
        ("distil", "digit/di/el/0", ["'digit'", "did you mean digits?"]),
        ("distil", "digits/di/ell/0", ["'ell'", "did you mean el?"]),
        ("distil", "digits/di/el", ["not a run", "DATA/METHOD/SUPPLEMENT/SEED"]),
        ("evaluate", "digits/di/el/zero", ["not a run"]),
        ("evaluate", "suite/dem", ["'dem'", "did you mean demo?"]),
        ("data", "digits/image", ["digits/image", "did you mean images?"]),
        ("teacher", "digit", ["'digit'", "did you mean digits?"]),
        ("ensemble", "digits/identty/0", ["'identty'", "did you mean identity?"]),
        ("tables", "dem", ["'dem'", "did you mean demo?"]),
    ],
)
def test_an_unknown_name_names_the_nearest(project, capsys, word, name, words):
    text = fails(capsys, word, name)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("word", "name", "missing", "command"),
    [
        ("distil", RUN, TEACHER, "teacher digits-smoke"),
        ("evaluate", RUN, "data/sets/digits-smoke/judge-a.safetensors", "data digits-smoke/judge-a"),
        ("evaluate", "digits/real", "data/sets/digits/judge-a.safetensors", "data digits/judge-a"),
        ("data", "digits/reference-judge-b", "data/sets/digits/judge-b.safetensors", "data digits/judge-b"),
        ("data", "fashion-mnist/judge-a", "data/sets/fashion-mnist/images.safetensors", "data fashion-mnist/images"),
        ("tables", "smoke", "runs/digits-smoke/di/el/0/generator_ema.safetensors", "distil digits-smoke/di/el/0"),
    ],
)
def test_a_missing_file_upstream_names_the_command_that_makes_it(project, capsys, word, name, missing, command):
    text = fails(capsys, word, name)
    assert missing in text and f"python -m eldistill {command}" in text


def test_outside_of_a_project_the_folder_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "params.yaml is missing; run this command in the folder" in fails(capsys, "tables", "demo")


def test_a_bad_number_stops_every_step(project, capsys):
    change("teacher/digits/batch", "many")
    for word, name in (("data", "digits/images"), ("distil", RUN), ("tables", "demo")):
        assert "teacher.digits.batch is 'many'" in fails(capsys, word, name)


def test_a_missing_recipe_file_is_one_sentence(project, capsys):
    assert "nowhere.json" in fails(capsys, "data", "digits/images", "--recipe", "nowhere.json")


def test_a_gpu_that_is_not_there_is_one_sentence(project, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    change("device", "cuda")
    for word, name in (("teacher", "digits"), ("evaluate", "digits/real")):
        upstream = Plan(params.load_params()).find(word, name).upstream
        for step in upstream:
            Path(step.outputs[0]).touch()
            Path(step.sidecar).write_text(step.recipe, encoding="utf-8")
        assert "device is cuda, but torch sees no GPU" in fails(capsys, word, name)
    assert program.main(["data", "digits/images", "--force"]) == 0


# --- damaged and foreign files ----------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "foreign":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(3)}, path)
    elif how == "pickle":
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        cut = {"truncated": whole[: len(whole) // 2], "short by a byte": whole[:-1], "empty": b""}
        path.write_bytes(cut.get(how) if how in cut else np.random.default_rng(0).bytes(5000))


@pytest.mark.parametrize("how", ["truncated", "short by a byte", "empty", "random bytes", "foreign", "pickle"])
def test_a_damaged_teacher_is_named(project, capsys, how):
    teacher()
    damage(Path(TEACHER), how)
    text = fails(capsys, "distil", RUN)
    assert TEACHER in text
    assert ("but not eldistill's description" if how == "foreign" else "is damaged") in text


@pytest.mark.parametrize("how", ["truncated", "random bytes", "foreign"])
def test_a_damaged_pack_is_named(project, capsys, how):
    damage(Path(PACK), how)
    assert PACK in fails(capsys, "data", "digits/reference-pixels")


def test_a_pack_in_the_teachers_place_is_named(project, capsys):
    teacher()
    shutil.copy(PACK, TEACHER)
    assert f"{TEACHER} is not a teacher" in fails(capsys, "distil", RUN)


def test_a_teacher_in_the_packs_place_is_named(project, capsys):
    teacher()
    shutil.copy(TEACHER, PACK)
    assert PACK in fails(capsys, "data", "digits/reference-pixels")


def test_a_teacher_of_another_codec_is_refused(project, capsys):
    teacher(codec={"mean": 0.5, "std": 0.25})
    text = fails(capsys, "distil", RUN)
    assert TEACHER in text and "codec" in text and "0.5" in text and "0.3053" in text


@pytest.mark.parametrize("other", [{"resolution": 16}, {"label_dim": 10}])
def test_a_teacher_of_other_images_is_refused(project, capsys, other):
    teacher(**other)
    assert "choose a teacher that fits" in fails(capsys, "distil", RUN)


def test_a_network_that_cannot_be_built_is_one_sentence(project, capsys):
    change("teacher/digits/network", {"network": "song", "model_chanels": 16})
    assert "model_chanels" in fails(capsys, "teacher", "digits")


# --- folders of data ----------------------------------------------------------------------------------------


def test_a_missing_fashion_folder_is_one_sentence(project, capsys):
    change("data/fashion-mnist/folder", "nowhere")
    text = fails(capsys, "data", "fashion-mnist/images")
    assert "nowhere/train-images-idx3-ubyte.gz is missing" in text


def test_a_wrong_digest_in_the_folder_is_one_sentence(project, capsys):
    change("data/fashion-mnist/folder", "own")
    Path("own").mkdir()
    Path("own/train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    text = fails(capsys, "data", "fashion-mnist/images")
    assert "own/train-images-idx3-ubyte.gz has sha256" in text and "expected c59f468a2f672dc8" in text


def test_offline_is_one_sentence(project, capsys, monkeypatch):
    def refused(*words, **more):
        raise fetching.urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(fetching.urllib.request, "urlopen", refused)
    text = fails(capsys, "data", "fashion-mnist/images")
    assert "could not be fetched" in text and "name that folder in params.yaml" in text


def test_a_mirror_in_params_is_asked_first_and_the_variable_beats_it(project, capsys, monkeypatch):
    monkeypatch.delenv("ELDISTILL_MIRROR", raising=False)
    monkeypatch.setenv("ELDISTILL_OFFLINE", "1")
    change("mirror", "nearby")
    text = fails(capsys, "data", "fashion-mnist/images")
    assert "No such file" in text and "/nearby/train-images-idx3-ubyte.gz" in text
    monkeypatch.setenv("ELDISTILL_MIRROR", "elsewhere")
    assert "/elsewhere/train-images" in fails(capsys, "data", "fashion-mnist/images")


def test_a_missing_table_of_sources_is_one_sentence(project, capsys):
    Path("data/sources.csv").unlink()
    assert "sources.csv" in fails(capsys, "data", "fashion-mnist/images")


def test_a_source_without_rows_is_one_sentence(project, capsys):
    change("data/fashion-mnist/files", "fashion")
    assert "fashion-train-images is not in data/sources.csv" in fails(capsys, "data", "fashion-mnist/images")


def png(*shape: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def own_images(contents: dict[str, bytes], **setting) -> None:
    """A data setting `own` whose source is the folder `pictures` with these files."""
    for name, content in contents.items():
        files.write_text(Path("pictures", name), "")
        Path("pictures", name).write_bytes(content)
    codec = {"mean": 0.5, "std": 0.25}
    change(
        "data/own", {"source": "folder", "path": "pictures", "heldout": 2, "codec": codec, "teacher": "own", **setting}
    )
    values = conftest.read_yaml(Path("params.yaml").read_text())
    change("teacher/own", {**values["teacher"]["digits-smoke"], "data": "own"})


GOOD = {f"{i}.png": png(8, 8) for i in range(6)}


def test_labels_true_without_labels_is_one_sentence(project, capsys):
    """Before the images are packed."""
    own_images(GOOD, labels=True)
    text = fails(capsys, "data", "own/images")
    assert "data.own.labels is true, but pictures has no classes; set it to false, add dataset.json" in text


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (GOOD | {"x.png": png(9, 9)}, "set `resolution`"),
        ({"readme.txt": b"x"}, "has no images"),
        (GOOD | {"x.png": b"x"}, "x.png is not an image"),
        (GOOD | {"dataset.json": b"{"}, "dataset.json"),
        (GOOD | {"dataset.json": b'{"labels": [["0.png", 1]]}'}, "no label for 1.png"),
        (GOOD | {"dataset.json": b'{"labels": {"0.png": 1}}'}, "no label for 1.png"),
        (GOOD | {"dataset.json": b'[["0.png", 1]]'}, "dataset.json"),
    ],
)
def test_a_bad_folder_of_images_is_one_sentence(project, capsys, contents, sentence):
    own_images(contents)
    assert sentence in fails(capsys, "data", "own/images")


def test_a_broken_zip_is_one_sentence(project, capsys):
    own_images({}, path="pictures.zip")
    Path("pictures.zip").write_bytes(b"PK\x03\x04 nothing")
    assert "pictures.zip" in fails(capsys, "data", "own/images")


def test_a_damaged_zip_is_one_sentence(project, capsys):
    own_images({}, path="pictures.zip")
    with zipfile.ZipFile("pictures.zip", "w") as archive:
        for name, content in GOOD.items():
            archive.writestr(name, content)
    whole = Path("pictures.zip").read_bytes()
    Path("pictures.zip").write_bytes(whole.replace(GOOD["3.png"][-40:-20], b"?" * 20, 4))
    assert "pictures.zip" in fails(capsys, "data", "own/images")


# --- a full disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def full(project):
    """A file system of a few pages under data/sets/full; gives a function that frees it."""
    place = project / "data/sets/full"
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip() if done else 'no mount'}")
    try:
        (place / "ballast").write_bytes(b"\0" * (1 << 20))
        yield (place / "ballast").unlink
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("item", ["images", "reference-pixels"])
def test_a_full_disk_is_one_sentence_and_the_same_command_succeeds_later(project, capsys, full, item):
    # Not `like: digits`: this setting must have a pack of its own in the full folder.
    change("data/full", {"source": "digits", "heldout": 100, "teacher": "digits", "codec": DIGITS_CODEC})
    if item != "images":
        Path("data/sets/full/ballast").unlink()
        assert program.main(["data", "full/images"]) == 0
        free = shutil.disk_usage("data/sets/full").free
        Path("data/sets/full/ballast").write_bytes(b"\0" * free)
    text = fails(capsys, "data", f"full/{item}", code=1)
    assert "no space left on the disk" in text and "repeat the command" in text
    full()
    assert program.main(["data", f"full/{item}"]) == 0
    assert len([name for name in tree() if name.startswith("data/sets/full")]) == (3 if item == "images" else 6)


def test_a_full_disk_leaves_the_older_file_as_it_was(project, capsys, full):
    change("data/full", {"source": "digits", "heldout": 100, "teacher": "digits", "codec": DIGITS_CODEC})
    Path("data/sets/full/ballast").unlink()
    assert program.main(["data", "full/images"]) == 0
    before = Path("data/sets/full/images.safetensors").read_bytes()
    Path("data/sets/full/ballast").write_bytes(b"\0" * shutil.disk_usage("data/sets/full").free)
    change("data/full/heldout", 101)
    fails(capsys, "data", "full/images", code=1)
    assert Path("data/sets/full/images.safetensors").read_bytes() == before


# --- a step that succeeds -------------------------------------------------------------------------------------


def test_a_step_is_made_once_and_again_by_force(project, capsys):
    Path(PACK).unlink()
    assert program.main(["data", "digits/images"]) == 0
    made = Path(PACK).stat().st_mtime_ns
    capsys.readouterr()
    assert program.main(["data", "digits/images"]) == 0
    assert "up to date; --force makes it again" in capsys.readouterr().out and Path(PACK).stat().st_mtime_ns == made
    digest = hashlib.sha256(Path(PACK).read_bytes()).hexdigest()
    assert program.main(["data", "digits/images", "--force"]) == 0
    assert Path(PACK).stat().st_mtime_ns > made
    assert hashlib.sha256(Path(PACK).read_bytes()).hexdigest() == digest
    log = [json.loads(line) for line in Path("data/scratch/run-log.jsonl").read_text().splitlines()]
    assert [(line["word"], line["name"]) for line in log] == [("data", "digits/images")] * 2


# --- help -------------------------------------------------------------------------------------------------------


def helped(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        program.main([*arguments, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_of_the_program_lists_every_step(project, capsys):
    text = helped(capsys)
    assert all(word in text for word in (*program.ABOUT, "recipes"))


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("data", ["heldout", "default 360", "divided by 255", "label smoothing"]),
        ("teacher", ["P_mean", "default -1.2", "images per optimiser step", "steps of Heun's method"]),
        ("ensemble", ["calibration", "default 512", "channels of every layer", "steps between new draws"]),
        ("distil", ["sigma_init", "default 2.5", "default balanced", "seconds between two saved states", "percent"]),
        ("evaluate", ["curve_n", "default 2000", "number of images for each final metric", "neighbours for precision"]),
        ("tables", ["confidence", "default 0.95", "confidence level of the intervals"]),
    ],
)
def test_help_of_a_step_says_meaning_unit_and_default_of_its_numbers(project, capsys, word, words):
    text = helped(capsys, word)
    for each in (*words, "NAME", "--force", "--max-minutes"):
        assert each in text, each


@pytest.mark.parametrize("word", program.ABOUT)
def test_help_is_given_even_where_params_yaml_is_missing(tmp_path, monkeypatch, capsys, word):
    monkeypatch.chdir(tmp_path)
    assert "could not be listed: params.yaml is missing" in helped(capsys, word)


def test_help_of_recipes_exits_with_0(project, capsys):
    assert "usage" in helped(capsys, "recipes")


@pytest.mark.parametrize("arguments", [[], ["dance"], ["data"], ["data", "x", "--max-minutes", "soon"]])
def test_a_wrong_command_line_exits_with_2(project, capsys, arguments):
    with pytest.raises(SystemExit) as end:
        program.main(arguments)
    assert end.value.code == 2 and "usage" in capsys.readouterr().err


# --- nothing is executed ------------------------------------------------------------------------------------------


def calls(path: Path):
    """(text of the function, the call) of every call of a source file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_is_unpickled_or_executed():
    sources = sorted(PACKAGE.rglob("*.py"))
    assert len(sources) > 20
    for path in sources:
        text = path.read_text(encoding="utf-8")
        modules = {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not modules & {"dill", "cloudpickle", "joblib", "shelve", "marshal"}, path
        for function, call in calls(path):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert function not in ("pickle.load", "pickle.loads", "eval", "exec", "torch.jit.load", "yaml.load"), path
            assert function != "torch.load", path  # external/torchfiles.py reads these files without an unpickler
            if function == "np.load":
                assert given.get("allow_pickle", "False") == "False", path


def test_the_sources_table_is_a_table():
    with open(ROOT / "data/sources.csv", newline="") as file:
        assert all(None not in row and None not in row.values() for row in csv.DictReader(file))
    assert os.path.getsize(ROOT / "data/sources.csv") < 100_000


def test_a_folder_that_may_not_be_written_is_one_sentence(project, capsys, monkeypatch):
    """Exit code 1, the folder and what to do, no traceback."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "data/sets/digits")

    monkeypatch.setattr(files, "append_line", refuse)
    text = fails(capsys, "data", "digits/images", "--force", code=1)
    assert "this user may not write or read data/sets/digits; ask its owner for access" in text


def test_too_little_memory_is_one_sentence(project, capsys, monkeypatch):
    """A device out of memory: exit code 1, and what to lower."""

    def refuse(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(files, "append_line", refuse)
    assert "micro_batch" in fails(capsys, "data", "digits/images", "--force", code=1)


def test_a_student_of_another_teacher_is_refused(project, capsys):
    """An upstream file that other numbers made does not do: the step says which command makes it."""
    teacher()
    vouch()
    change("teacher/digits-smoke/seed", 7)
    text = fails(capsys, "distil", "digits-smoke/di/none/0")
    assert "was made with other numbers" in text and "teacher digits-smoke" in text


def test_an_input_whose_step_did_not_end_is_called_that(project, capsys):
    """Not "made with other numbers": a full disk, or a kill, leaves outputs without a recipe."""
    teacher()
    vouch()
    Path(Plan(params.load_params()).find("teacher", "digits-smoke").sidecar).unlink()
    assert program.main(["distil", "digits-smoke/di/none/0"]) == 2
    text = capsys.readouterr().err
    assert "did not come to its end" in text and "teacher digits-smoke" in text


def test_an_old_recipe_does_not_vouch_for_a_mixture(project, monkeypatch):
    """Killed while outputs are replaced: no recipe is left; failed before any was: the old one stays."""
    from eldistill.steps import work

    step = Plan(params.load_params()).find("data", "digits/images")
    Path(step.sidecar).write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), work.overwriting(step):
        assert not Path(step.sidecar).exists()
        raise KeyboardInterrupt
    assert Path(step.sidecar).read_text(encoding="utf-8") == "old"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(OSError), work.overwriting(step):
        for name in (
            "write_text",
            "replace_text",
            "atomic",
        ):  # nothing can be written: a week of training must not be lost
            patched.setattr(files, name, full)
        files.write_text(step.outputs[0], "new")
    assert Path(step.sidecar).read_text(encoding="utf-8") == "old"
    with pytest.raises(KeyboardInterrupt), work.overwriting(step):
        files.write_text(step.outputs[0], "new")
        raise KeyboardInterrupt
    assert not Path(step.sidecar).exists()
    assert not list(Path(step.sidecar).parent.glob(".*"))
