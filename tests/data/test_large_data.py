# SPDX-License-Identifier: Apache-2.0
"""Data sets that memory cannot hold: packed one image at a time, read in the file, counted."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eldistill.data import dataset as data
from eldistill.data import packing
from eldistill.errors import Problem
from eldistill.tensors import Growing, grow_tensors, load_tensors, map_tensors, save_tensors

CODEC = {"mean": 0.5, "std": 0.25}
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def folder(path: Path, count: int = 21, size: int = 8) -> dict:
    """Grey and coloured images with labels; returns a data section."""
    path.mkdir()
    for index in range(count):
        colour = (3,) if index % 4 == 1 else ()
        Image.fromarray(random(size, size, *colour, seed=index)).save(path / f"{index:03d}.png")
    labels = [[f"{index:03d}.png", index % 5] for index in range(count)]
    (path / "dataset.json").write_text(json.dumps({"labels": labels}))
    return {"source": "folder", "path": str(path), "resolution": None, "heldout": 6}


# --- the file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 9])
def test_a_stream_is_packed_as_if_it_were_in_memory(tmp_path, limit):
    """The same bytes as of arrays: digest, mean and deviation of all images at once, and safetensors' own header."""
    section = folder(tmp_path / "images") | {"limit": limit}
    about = packing.pack_dataset(section, tmp_path / "pack")
    train, heldout = packing.split_heldout(21, 6)
    train = train if limit is None else train[packing.split_heldout(15, 9)[1]]
    whole = []
    for index in range(21):
        array = np.asarray(Image.open(tmp_path / f"images/{index:03d}.png"))
        whole.append(array.transpose(2, 0, 1) if array.ndim == 3 else np.repeat(array[None], 3, 0))
    whole, labels = np.stack(whole), np.arange(21) % 5
    tensors = {
        "train_images": whole[train], "train_labels": labels[train],
        "heldout_images": whole[heldout], "heldout_labels": labels[heldout],
    }  # fmt: skip
    assert about == {
        "source": "folder", "train": len(train), "heldout": 6, "shape": [3, 8, 8], "classes": 5,
        "class_names": ["0", "1", "2", "3", "4"], "class_counts": np.bincount(labels[train]).tolist(),
        "sha256": hashlib.sha256(whole[train].tobytes() + whole[heldout].tobytes()).hexdigest(),
        "mean": round(float(whole[train].mean(dtype=np.float64)) / 255, 6),
        "std": round(float(whole[train].std(dtype=np.float64)) / 255, 6),
    }  # fmt: skip
    save_tensors(tmp_path / "wanted", {name: torch.from_numpy(each) for name, each in tensors.items()}, about)
    found, wanted = (tmp_path / "pack").read_bytes(), (tmp_path / "wanted").read_bytes()
    if len(f"{about['mean']}{about['std']}") < 16:  # the numbers do not fill the room that is kept for them
        length = int.from_bytes(found[:8], "little")
        found = found[8 : 8 + length].rstrip() + found[8 + length :]
        length = int.from_bytes(wanted[:8], "little")
        wanted = wanted[8 : 8 + length].rstrip() + wanted[8 + length :]
    assert found == wanted


def test_the_digits_are_packed_as_they_always_were(tmp_path):
    about = packing.pack_dataset({"source": "digits", "heldout": 360}, tmp_path / "pack")
    assert about["sha256"] == "cd4dbac8ccef8a2790d87bc95546276165e4ef40b0ec554da9ce8d20474a631c"
    assert (about["mean"], about["std"]) == (0.305314, 0.375564)
    tensors, again = load_tensors(tmp_path / "pack")
    save_tensors(tmp_path / "wanted", tensors, about)
    assert again == about and (tmp_path / "pack").read_bytes() == (tmp_path / "wanted").read_bytes()


def test_a_short_description_is_followed_by_blanks(tmp_path):
    """Safetensors reads it all the same, and so do we."""
    rows = random(4, 3, 2, 2)
    shapes = {"images": ("U8", rows.shape), "labels": ("I64", (4,))}
    with grow_tensors(tmp_path / "grown", shapes, {"mean": 0.123456, "more": "x" * 50}) as file:
        file.append("labels", np.arange(4))
        for row in rows:
            file.append("images", row)
        file.about = {"mean": 0.5}
    for read in (load_tensors, map_tensors):
        tensors, about = read(tmp_path / "grown")
        assert about == {"mean": 0.5} and tensors["labels"].tolist() == [0, 1, 2, 3]
        assert np.array_equal(tensors["images"], rows) and tensors["images"].dtype == torch.uint8


@pytest.mark.parametrize("rows", [1, 3])
def test_a_file_that_lacks_rows_or_gets_too_many_does_not_appear(tmp_path, rows):
    with (
        pytest.raises(ValueError, match="unfinished|more rows than its shape"),
        grow_tensors(tmp_path / "pack", {"x": ("F32", (2, 2))}, {}) as file,
    ):
        for _ in range(rows):
            file.append("x", np.zeros(2, np.float32))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_known_before_the_first_image(tmp_path):
    with (
        pytest.raises(OSError, match="No space left"),
        grow_tensors(tmp_path / "p", {"x": ("U8", (1 << 62,))}, {}),
    ):
        raise AssertionError("the block is not entered")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_a_damaged_pack_is_one_sentence(tmp_path, kept):
    packing.pack_dataset(folder(tmp_path / "images"), tmp_path / "pack")
    (tmp_path / "pack").write_bytes((tmp_path / "pack").read_bytes()[:kept])
    with pytest.raises(Problem, match="pack is damaged .*; restore it from a copy"):
        data.load_pack(tmp_path / "pack")
    (tmp_path / "pack").write_bytes((tmp_path / "pack").read_bytes() + b"more")
    with pytest.raises(Problem, match="pack is damaged"):
        data.load_pack(tmp_path / "pack")


def test_a_picture_that_breaks_off_late_leaves_nothing_behind(tmp_path):
    section = folder(tmp_path / "images")
    broken = tmp_path / "images/013.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    with pytest.raises(Problem, match=r"013\.png is a damaged image"):
        packing.pack_dataset(section, tmp_path / "sets/pack")
    assert not list((tmp_path / "sets").iterdir())
    (tmp_path / "images/013.png").write_bytes((tmp_path / "images/014.png").read_bytes())
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in (tmp_path / "images").iterdir():
            archive.write(path, path.name)
    content = bytearray((tmp_path / "images.zip").read_bytes())
    content[content.index(b"IDAT") + 12] ^= 1
    (tmp_path / "images.zip").write_bytes(content)
    with pytest.raises(Problem, match=r"images.zip(: | is damaged at )\d\d\d.png"):
        packing.pack_dataset(section | {"path": str(tmp_path / "images.zip")}, tmp_path / "sets/pack")
    assert not list((tmp_path / "sets").iterdir())


# --- memory -----------------------------------------------------------------------------------------------

BOUNDED = """
import resource, sys, zipfile, io
import numpy as np, torch
from PIL import Image
from eldistill.data import dataset as data, packing
from eldistill.evaluate import features
from eldistill.spaces.pixels import pixels

def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

count, size = 3600, 96
with zipfile.ZipFile("images.zip", "w") as archive:
    for index in range(count):
        file = io.BytesIO()
        Image.fromarray(np.full((size, size, 3), index % 256, np.uint8)).save(file, "BMP")
        archive.writestr(f"{index:04d}.bmp", file.getvalue())
section = {"source": "folder", "path": "images.zip", "resolution": None, "heldout": 600, "limit": None}
few = {**section, "limit": 2, "heldout": 2}
packing.pack_dataset(few, "few", say=len)  # what the first time loads is no part of the measurement
data.load_real_images("few", {"mean": 0.5, "std": 0.25}, False).take(torch.arange(2))
whole = count * size * size * 3
room = 24 << 20
before = kilobytes("VmData") << 10
resource.setrlimit(resource.RLIMIT_DATA, (before + room, before + room))
packing.pack_dataset(section, "pack", say=len)
assert kilobytes("VmData") - (before >> 10) < 4096, "packing itself needs next to nothing"
reals = data.load_real_images("pack", {"mean": 0.5, "std": 0.25}, False)
for index in range(0, 3000, 8):
    images, _ = reals.take(torch.arange(index, index + 8))
rows = features.embed(features.chunks(data.load_pack("pack")[0][:600], 8), pixels)
print(whole, room, rows.shape[0])
try:
    torch.zeros(whole, dtype=torch.uint8)
except RuntimeError:
    print("refused")  # the limit holds: the whole would not have fitted
"""


@linux
def test_packing_and_reading_need_a_quarter_of_the_packs_size(tmp_path):
    """100 MB of images with 24 MB of memory that the system lets the process have."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["99532800", str(24 << 20), "600", "refused"]
    assert (tmp_path / "pack").stat().st_size > 99532800


@linux
def test_a_pack_may_be_larger_than_the_memory(tmp_path):
    """A file with holes, twice as large as memory and swap together: rows from both ends are what they are."""
    memory = sum(
        int(line.split()[1]) << 10 for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith(("MemTotal", "SwapTotal"))
    )  # fmt: skip
    count, shape, last = 2 * memory // (3 * 512 * 512), (3, 512, 512), random(3, 512, 512)
    shapes = {"train_images": ("U8", (count, *shape)), "train_labels": ("I64", (count,))}
    with open(tmp_path / "pack", "wb") as file:
        growing = Growing(file, shapes, {"classes": 0})
        first, end = growing.places["train_images"]
        for name, place in growing.places.items():
            place[0] = place[1] - (last.nbytes if name == "train_images" else 8)
        growing.append("train_images", last)
        growing.append("train_labels", np.array([7]))
        growing.finish()
    if (tmp_path / "pack").stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system knows no holes")
    reals = data.load_real_images(tmp_path / "pack", CODEC, False)
    assert len(reals) == count and end - first > 1.9 * memory
    x, _ = reals.take(torch.tensor([count - 1, 0]))
    assert torch.equal(data.decode(x, CODEC), torch.from_numpy(np.stack([last, np.zeros_like(last)])))
    assert reals.classes[-1] == 7


def test_images_that_fill_the_device_stay_where_they_are(tmp_path, monkeypatch):
    """On a GPU with room they move as a whole, else row by row; what networks see is the same."""
    images, labels = torch.from_numpy(random(6, 1, 4, 4)), torch.arange(6)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * images.nbytes, 10**9))
    assert data._fits(images, "cuda:0") and data._fits(images, "cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * images.nbytes - 4, 10**9))
    assert not data._fits(images, "cuda:0")
    moved = []
    monkeypatch.setattr(data, "_fits", lambda images, device: moved.append(device))
    reals = data.PackedImages(images, labels, CODEC, 6, "meta")
    assert reals.images is images and moved == ["meta"]
    assert reals.rows(torch.tensor([1, 2])).device.type == "meta"


def test_on_the_cpu_nothing_is_copied(tmp_path):
    packing.pack_dataset(folder(tmp_path / "images"), tmp_path / "pack")
    images, labels, _ = data.load_pack(tmp_path / "pack")
    assert data.PackedImages(images, labels, CODEC, 0).images.data_ptr() == images.data_ptr()


# --- counts -------------------------------------------------------------------------------------------------


def test_a_source_that_lacks_images_is_not_packed(tmp_path, monkeypatch):
    assert packing.COUNTS == {"cifar10": 50_000, "ffhq": 70_000, "afhqv2": 15_803, "imagenet": 1_281_167}
    section = folder(tmp_path / "images") | {"count": "ffhq"}
    with pytest.raises(Problem, match="images has 21 images; ffhq has 70,000: prepare it again, or remove `count`"):
        packing.pack_dataset(section, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()
    monkeypatch.setitem(packing.COUNTS, "ffhq", 21)
    assert packing.pack_dataset(section, tmp_path / "pack") == packing.pack_dataset(
        section | {"count": None}, tmp_path / "other"
    )
