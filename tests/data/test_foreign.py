# SPDX-License-Identifier: Apache-2.0
"""What users have instead of a folder of pictures is named, with what to do; what is left out or wrong without a word is said."""

from __future__ import annotations

import csv
import json
import os
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eldistill.data import foreign, images, packing
from eldistill.data import labels as labels_
from eldistill.errors import Problem
from eldistill.external import listing
from eldistill.steps import data as steps_data
from tests.conftest import ROOT

PAGE = (ROOT / "docs/images.md").read_text(encoding="utf-8")


def fill(folder: Path, count: int = 8, first: int = 0) -> Path:
    """A folder of pictures of 4x4 pixels that all differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        pixels = np.random.default_rng(index).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def pack(path: Path, heldout: int = 3, **keys) -> tuple[dict, list[str]]:
    said: list[str] = []
    section = {"source": "folder", "path": str(path), "resolution": None, "heldout": heldout, **keys}
    return packing.pack_dataset(section, path.parent / "pack.safetensors", say=said.append), said


# --- other formats ----------------------------------------------------------------------------------------


FILES = {
    "x.parquet": (b"PAR1" + bytes(40), ["a Parquet file", "From other formats"]),
    "x.arrow": (b"ARROW1\0\0" + bytes(40), ["an Arrow file", "save its images as PNG"]),
    "x.h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), ["an HDF5 file"]),
    "x.npy": (b"\x93NUMPY\1\0" + bytes(40), ["a NumPy array"]),
    "data_batch_1": (b"\x80\x04\x95" + bytes(40), ["a pickle"]),
    "x.rar": (b"Rar!\x1a\7\0" + bytes(40), ["a RAR archive", "unpack it"]),
    "x.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(40), ["a 7-Zip archive", "unpack it"]),
    "x.gz": (b"\x1f\x8b\x08" + bytes(40), ["a gzip file", "unpack it"]),
    "x.png": (b"\x89PNG\r\n\x1a\n" + bytes(40), ["one picture", "the folder that holds it"]),
    "x.zip": (b"PK\3\4" + bytes(40), ["a zip that is cut off", "download it again"]),
    "empty.zip": (b"", ["is empty", "download it again"]),
    "x.tfrecord": (bytes(40), ["neither a folder nor a zip", "From other formats"]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format_is_named_with_what_to_do(tmp_path, name):
    content, words = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Problem) as error:
        pack(tmp_path / name)
    assert all(word in str(error.value) for word in [name, *words]), error.value


@pytest.mark.parametrize(
    ("name", "words"),
    [("train-0.parquet", "From other formats"), ("00000.tar", "unpack the archives"), ("a.heic", "convert them to PNG"),
     ("0.npy", "save the images as PNG"), ("data.mdb", "From other formats"), ("shard.tar.gz", "unpack")],
)  # fmt: skip
def test_a_folder_of_another_format_is_explained(tmp_path, name, words):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(b"x")
    with pytest.raises(Problem, match=rf"has no images.*left out: files of other kinds.*{words}"):
        pack(tmp_path / "set")


def test_an_archive_in_a_zip_is_explained(tmp_path):
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("inner.zip", b"x")
    with pytest.raises(Problem, match="unpack the archives in it"):
        pack(tmp_path / "outer.zip")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(ROOT / "README.md", "README.md")
    with pytest.raises(Problem, match="unpack this tar archive"):
        pack(tmp_path / "x.tar")


def test_a_pipe_is_no_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Problem, match="a pipe, a socket or a device; give a folder"):
        pack(tmp_path / "pipe")


def snippet(word: str) -> str:
    return next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if word in block)


@pytest.mark.parametrize(
    ("low", "high", "white", "black", "kind"),
    [(0, 1, 1, 0, "f4"), (-1, 1, 1, -1, "f4"), (0, 65535, 65535, 0, "u2"), (0, 255, 255, 0, "u1")],
)
def test_the_lines_for_arrays_give_back_the_pixels(tmp_path, monkeypatch, low, high, white, black, kind):
    """Levels that were put on any range come back exactly."""
    monkeypatch.chdir(tmp_path)
    levels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    np.savez("images.npz", (low + levels.astype(np.float64) * ((high - low) / 255)).astype(kind))
    exec(snippet("np.load").replace("white, black = 255, 0", f"white, black = {white}, {black}"), {})
    for index, image in enumerate(levels):
        np.testing.assert_array_equal(np.asarray(Image.open(f"mine/{index:06d}.png")), image)


def test_the_lines_for_a_table_of_labels_give_the_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(Path("mine"))
    with open("mine/labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "label"], *([f"{i:03d}.png", ["dog", "cat"][i % 2]] for i in range(8))])
    exec(snippet("csv.DictReader"), {})
    about, _ = pack(tmp_path / "mine")
    assert about["class_names"] == ["cat", "dog"] and sum(about["class_counts"]) == 5


# --- said, not left out without a word ----------------------------------------------------------------------


def test_held_out_images_that_equal_train_images_are_counted(tmp_path):
    fill(tmp_path / "set", 8)
    assert not any("equal a train image" in line for line in pack(tmp_path / "set")[1])
    for name in list((tmp_path / "set").iterdir()):
        (tmp_path / "set" / f"copy-{name.name}").write_bytes(name.read_bytes())
    _, said = pack(tmp_path / "set")
    train, heldout = images.split_heldout(16, 3)
    order = [path.name.removeprefix("copy-") for path in sorted((tmp_path / "set").iterdir())]  # as the reader sorts
    expected = sum(order[i] in {order[j] for j in train} for i in heldout)
    assert expected and any(line.startswith(f"{expected} of 3 held-out images equal a train image") for line in said)


def test_a_pipe_among_pictures_is_counted(tmp_path):
    fill(tmp_path / "set")
    os.mkfifo(tmp_path / "set/x.png")
    about, said = pack(tmp_path / "set")
    assert about["train"] == 5 and any("1 pipe, socket or device, such as x.png" in line for line in said)


def test_links_in_a_circle_are_refused_or_counted(tmp_path):
    """A link to itself ended in an error of the operating system that named no way out."""
    fill(tmp_path / "set")
    (tmp_path / "set/self").symlink_to("self")
    (tmp_path / "set/up").symlink_to("..")
    about, said = pack(tmp_path / "set")
    assert about["train"] == 5 and any("2 links" in line for line in said), said
    (tmp_path / "set/x.png").symlink_to("x.png")
    with pytest.raises(Problem, match=r"x\.png is a link to a missing file"):
        pack(tmp_path / "set")


@pytest.mark.parametrize(
    ("content", "noted"), [({"labels": []}, True), ({"images": [], "annotations": []}, True), ({"labels": None}, False)]
)
def test_a_table_without_labels_is_said(tmp_path, content, noted):
    fill(tmp_path / "set")
    (tmp_path / "set/dataset.json").write_text(json.dumps(content))
    assert any("has no labels" in line for line in pack(tmp_path / "set")[1]) == noted


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_images_that_networks_cannot_halve_are_refused(tmp_path, side):
    """They were packed, and the first judge ended in a traceback; `resolution` has the same lower limit."""
    (tmp_path / "set").mkdir()
    for index in range(8):
        Image.fromarray(np.full((side, side, 3), index, np.uint8)).save(tmp_path / f"set/{index}.png")
    if side >= 4:
        assert pack(tmp_path / "set")[0]["shape"] == [3, side, side]
        return
    with pytest.raises(Problem, match=rf"fewer than 4 pixels a side.*{side}x{side}.*such as 4,"):
        pack(tmp_path / "set")
    assert pack(tmp_path / "set", resolution=4)[0]["shape"] == [3, 4, 4]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_images_are_a_number(tmp_path, count):
    fill(tmp_path / "set", count)
    with pytest.raises(Problem, match=rf"there (is|are) {count} images?; expected at least 4"):
        pack(tmp_path / "set", heldout=360)


def test_names_of_classes_in_any_encoding_are_kept_as_text(tmp_path):
    """Bytes that are no UTF-8, and half a character in JSON: both became an error of an encoder at the end of packing."""
    fill(tmp_path / "set/a")
    os.makedirs(os.fsencode(tmp_path / "set") + b"/caf\xe9")
    for path in (tmp_path / "set/a").iterdir():
        with open(os.fsencode(tmp_path / "set") + b"/caf\xe9/" + path.name.encode(), "wb") as file:
            file.write(path.read_bytes())
    about, _ = pack(tmp_path / "set")
    assert about["class_names"] == ["a", "caf\\udce9"]
    assert labels_.renumber([0, 1], {0: "half \ud800", 1: "日本"}).names == ["half \\ud800", "日本"]


def test_a_codec_that_is_not_for_these_images_is_said():
    """Only far outside: EDM's codec on dark or on bright images is usual."""
    about = {
        "train": 500,
        "heldout": 500,
        "shape": [1, 8, 8],
        "sha256": "0" * 64,
        "class_names": [],
        "class_counts": [],
    }

    def said(mean, std, codec_mean, codec_std) -> bool:
        setting = {"labels": False, "codec": {"mean": codec_mean, "std": codec_std}}
        lines = steps_data.described(about | {"mean": mean, "std": std}, setting)
        return any(line.startswith("codec: ") or "nothing to learn" in line for line in lines)

    assert not said(0.13, 0.31, 0.5, 0.25) and not said(0.87, 0.2, 0.5, 0.25) and not said(0.3, 0.3, 0.3, 0.3)
    assert said(0.5, 0.25, 0.5, 1e-30) and said(0.5, 0.25, 0.5, 1.0) is False and said(0.5, 0.02, 0.5, 0.25)
    assert said(0.5, 0.0, 0.5, 0.25)
    assert not said([0.1, 5.0], [0.9, 1.1], [0.1, 5.0], [0.9, 1.1]) and said(
        [0.1, 5.0], [0.9, 1.1], [0.1, 0.0], [0.9, 1.1]
    )


def test_every_ending_of_the_advice_is_one_that_is_not_read():
    from eldistill.data.readers.folder import ENDINGS

    assert not (foreign.PACKED | foreign.PICTURES | foreign.ARRAYS) & set(ENDINGS)
    assert listing.choose_files(["a.heic"], ENDINGS).others == {".heic": 1}
