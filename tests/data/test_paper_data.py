# SPDX-License-Identifier: Apache-2.0
"""The data sets of the papers, from files in their authors' layouts with synthetic images."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eldistill import __main__
from eldistill.data import archives, packing, pictures
from eldistill.data import dataset as data
from eldistill.data.readers import cifar10
from eldistill.errors import Problem
from eldistill.external import pickles
from eldistill.tensors import save_tensors
from tests import conftest

FEW = 20  # images in each of the six batches


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def string(text: bytes) -> bytes:
    """A string of Python 2, as protocol 2 has it."""
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text


def batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch of CIFAR-10 as Python 2 and numpy 1 wrote it: every opcode written out."""
    rows = images.reshape(len(images), -1)
    dtype = (
        b"cnumpy\ndtype\n"
        + string(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R(K\x01M"
             + struct.pack("<H", len(rows)) + b"M" + struct.pack("<H", rows.shape[1]) + b"\x86" + dtype + b"\x89"
             + string(rows.tobytes()) + b"tb")  # fmt: skip
    names = b"](" + b"".join(string(b"leptodactylus_s_%06d.png" % i) for i in range(len(labels))) + b"e"
    classes = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    pairs = [
        (b"batch_label", string(b"training batch 1 of 5")),
        (b"labels", classes),
        (b"data", array),
        (b"filenames", names),
    ]
    return b"\x80\x02}q\x00(" + b"".join(string(key) + value for key, value in pairs) + b"u."


def images_of(name: str) -> tuple[np.ndarray, list[int]]:
    seed = sum(name.encode())
    return random(FEW, 3, 32, 32, seed=seed), [(seed + i) % 10 for i in range(FEW)]


def tarball(path: Path, change=lambda name, content: content) -> dict:
    """A tarball of six small batches; returns a data section that reads it."""
    with tarfile.open(path, "w:gz") as archive:
        for name in [each for names in cifar10.BATCHES for each in names]:
            content = change(name, batch(*images_of(name)))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    return {"source": "cifar10", "path": str(path), "heldout": 15, "md5": md5, "resolution": None}


def test_python_agrees_about_a_batch():
    """What the tests write is what numpy's own unpickling understands."""
    import pickle
    import warnings

    images, labels = images_of("x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pickle.loads(batch(images, labels), encoding="latin1")
    assert found["labels"] == labels and np.array_equal(found["data"], images.reshape(FEW, -1))
    ours = pickles.read_python2_pickle(batch(images, labels))
    assert ours["labels"] == labels and np.array_equal(ours["data"], found["data"])
    assert ours["filenames"] == found["filenames"]


def test_cifar_is_packed_in_its_order(tmp_path):
    """Five batches of train images, then held-out ones from the test batch; red, green, blue planes; labels as filed."""
    about = packing.pack_dataset(tarball(tmp_path / "cifar-10-python.tar.gz"), tmp_path / "pack")
    assert (about["train"], about["heldout"], about["shape"], about["classes"]) == (5 * FEW, 15, [3, 32, 32], 10)
    for part, names, count in (("train", cifar10.BATCHES[0], 5 * FEW), ("heldout", cifar10.BATCHES[1], 15)):
        images, labels, _ = data.load_pack(tmp_path / "pack", part)
        wanted = [images_of(name) for name in names]
        assert np.array_equal(images, np.concatenate([each for each, _ in wanted])[:count])
        assert labels.tolist() == sum((classes for _, classes in wanted), [])[:count]


CANARY = b"cos\nsystem\n" + string(b"touch canary") + b"\x85R"
BAD = {
    "another digest": (lambda name, content: content, {"md5": "0" * 32}, "has md5 .*fetch it again"),
    "a call": (lambda name, content: b"\x80\x02}" + string(b"data") + CANARY + b"s.", {}, "it names 'os.system'.*nothing was executed"),
    "a list": (lambda name, content: b"\x80\x02].", {}, "data_batch_1 is not a batch of CIFAR-10"),
    "a cut": (lambda name, content: content[:-100], {}, "is not a batch of CIFAR-10"),
    "too few labels": (lambda name, content: batch(images_of(name)[0], [1, 2]), {}, "2 labels; fetch it again"),
    "too many held-out": (lambda name, content: content, {"heldout": 21}, "heldout is 21, but CIFAR-10 has 20 test images"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_tarball_is_one_sentence(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    change, section, sentence = BAD[kind]
    with pytest.raises(Problem, match=sentence):
        packing.pack_dataset(tarball(Path("cifar-10-python.tar.gz"), change) | section, "pack")
    assert not Path("canary").exists() and not Path("pack").exists()


def test_the_digest_is_the_authors_own(tmp_path, monkeypatch):
    """Without a word of params.yaml the tarball must be the published one."""
    section = tarball(tmp_path / "cifar-10-python.tar.gz")
    del section["md5"]
    with pytest.raises(Problem, match="c58f30108f718f92721af3b95e74349a"):
        packing.pack_dataset(section, tmp_path / "pack")
    with pytest.raises(Problem, match="is missing; give the path of"):
        packing.pack_dataset(section | {"path": str(tmp_path / "no.tar.gz")}, tmp_path / "pack")


# --- crops ----------------------------------------------------------------------------------------------


def halves(image: np.ndarray, size: int) -> np.ndarray:
    """Means of 2x2, rounded half up as pillow's box filter does it, while the short side is twice too long."""
    while min(image.shape[:2]) >= 2 * size:
        h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        blocks = image[:h, :w].reshape(h // 2, 2, w // 2, 2, -1).astype(float)
        image = np.floor(blocks.mean((1, 3)) + 0.5).astype(np.uint8)
    return image


@pytest.mark.parametrize(("height", "width"), [(128, 256), (256, 128), (64, 64), (512, 256)])
def test_adms_crop_of_even_sizes_is_halving_and_a_window(height, width):
    """Where sides are the wanted size times powers of two no bicubic step is left: means, then the centre."""
    image = random(height, width, 3, seed=height)
    found = np.asarray(pictures.CROPS["adm"](Image.fromarray(image), 64))
    wanted = halves(image, 64)
    top, left = (wanted.shape[0] - 64) // 2, (wanted.shape[1] - 64) // 2
    assert found.shape == (64, 64, 3)
    times = int(np.log2(min(height, width) // 64))  # pillow rounds after each axis: one level a halving
    assert np.abs(found.astype(int) - wanted[top : top + 64, left : left + 64]).max() <= times


def cubic(image: np.ndarray, count: int, axis: int) -> np.ndarray:
    """One bicubic pass (a = -0.5, widened for shrinking), written out."""
    length = image.shape[axis]
    scale = length / count
    support = 2 * max(scale, 1)
    weights = np.zeros((count, length))
    for i in range(count):
        centre = (i + 0.5) * scale
        for j in range(max(0, int(centre - support + 0.5)), min(length, int(centre + support + 0.5))):
            x = abs((j + 0.5 - centre) / max(scale, 1))
            weights[i, j] = (1.5 * x - 2.5) * x * x + 1 if x < 1 else ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0
    weights /= weights.sum(1, keepdims=True)
    return np.clip(np.floor(np.moveaxis(np.tensordot(weights, image.astype(float), (1, axis)), 0, axis) + 0.5), 0, 255)


@pytest.mark.parametrize(("height", "width"), [(100, 77), (75, 110), (40, 90)])
def test_adms_crop_of_odd_sizes_is_bicubic_to_the_short_side(height, width):
    image = random(height, width, 3, seed=width)
    found = np.asarray(pictures.CROPS["adm"](Image.fromarray(image), 64)).astype(int)
    scale = 64 / min(height, width)
    wanted = cubic(cubic(image, round(width * scale), 1), round(height * scale), 0)
    top, left = (wanted.shape[0] - 64) // 2, (wanted.shape[1] - 64) // 2
    assert np.abs(found - wanted[top : top + 64, left : left + 64]).max() <= 1


def test_a_crop_is_chosen_by_its_name(tmp_path):
    """EDM's and EDM2's ImageNet are different images of one file."""
    (tmp_path / "images").mkdir()
    for index in range(4):
        Image.fromarray(random(90, 140, 3, seed=index)).save(tmp_path / f"images/{index}.png")
    section = {"source": "folder", "path": str(tmp_path / "images"), "resolution": 32, "heldout": 2}
    packs = {}
    for crop in (None, "square", "adm"):
        packing.pack_dataset(section | ({"crop": crop} if crop else {}), tmp_path / "pack")
        packs[crop] = data.load_pack(tmp_path / "pack")[0].numpy()
    assert np.array_equal(packs[None], packs["square"]) and not np.array_equal(packs["adm"], packs["square"])


# --- layouts --------------------------------------------------------------------------------------------


def tree(folder: Path, names: list[str]) -> dict:
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random(16, 16, 3, seed=index)).save(folder / name)
    return {"source": "folder", "path": str(folder), "resolution": None, "heldout": 2}


def test_folders_of_classes_are_labels_in_sorted_order(tmp_path):
    """ImageNet's train folder: WordNet ids in order are 0, 1, …; a file beside them has no place."""
    names = [f"{wnid}/{wnid}_{i}.png" for wnid in ("n02", "n01", "n10") for i in range(3)]
    section = tree(tmp_path / "train", names)
    packing.pack_dataset(section, tmp_path / "pack")
    labels = np.concatenate([data.load_pack(tmp_path / "pack", part)[1] for part in ("train", "heldout")])
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    train, _ = packing.split_heldout(9, 2)
    assert data.load_pack(tmp_path / "pack")[1].tolist() == [index // 3 for index in train]
    Image.fromarray(random(16, 16, 3)).save(tmp_path / "train/loose.png")
    with pytest.raises(Problem, match=r"loose.png lies beside the folders of classes \(n01, n02, n10\)"):
        packing.pack_dataset(section, tmp_path / "pack")


@pytest.mark.parametrize("listed", [{"labels": None}, {"labels": [["00000/img00000000.png", 3]]}])
def test_a_dataset_json_beats_the_folders(tmp_path, listed):
    """FFHQ's and EDM's zips have folders of a thousand that are no classes."""
    names = [f"{i % 2:05d}/img{i:08d}.png" for i in range(4)]
    if listed["labels"]:
        listed = {"labels": [[name, 7 - i] for i, name in enumerate(sorted(names))]}
    section = tree(tmp_path / "images", names)
    (tmp_path / "images/dataset.json").write_text(json.dumps(listed))
    about = packing.pack_dataset(section, tmp_path / "pack")
    assert about["class_names"] == (["4", "5", "6", "7"] if listed["labels"] else [])
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted((tmp_path / "images").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "images"))
    assert (
        packing.pack_dataset(section | {"path": str(tmp_path / "images.zip")}, tmp_path / "zipped")["sha256"]
        == about["sha256"]
    )


def test_one_folder_below_is_no_class(tmp_path):
    names = [f"00000/{i}.png" for i in range(4)]
    assert packing.pack_dataset(tree(tmp_path / "images", names), tmp_path / "pack")["classes"] == 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_zip_there_and_back(tmp_path, channels, labelled):
    """What is written as EDM's container is read again as it was; its members are stored, its names EDM's."""
    images, labels = random(7, channels, 8, 8), np.arange(7) % 3 if labelled else np.full(7, -1)
    tensors = {
        "train_images": images[:5],
        "train_labels": labels[:5],
        "heldout_images": images[5:],
        "heldout_labels": labels[5:],
    }
    save_tensors(
        tmp_path / "pack", {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in tensors.items()}, {}
    )
    assert archives.write_zip(tmp_path / "pack", tmp_path / "images.zip") == 7
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        assert archive.namelist()[0] == "00000/img00000000.png" and len(archive.namelist()) == 8
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert (json.loads(archive.read("dataset.json"))["labels"] is None) is not labelled
    section = {"source": "folder", "path": str(tmp_path / "images.zip"), "resolution": None, "heldout": 2}
    about = packing.pack_dataset(section, tmp_path / "again")
    train, heldout = packing.split_heldout(7, 2)
    for part, indices in (("train", train), ("heldout", heldout)):
        found, classes, _ = data.load_pack(tmp_path / "again", part)
        assert np.array_equal(found, images[indices]) and np.array_equal(classes, labels[indices])
    assert about["classes"] == (3 if labelled else 0)


def test_a_zip_by_its_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    conftest.copy_parameters(tmp_path)
    assert __main__.main(["zip", "digits", "--out", "digits.zip"]) == 2
    assert (
        "data/sets/digits/images.safetensors is missing" in capsys.readouterr().err and not Path("digits.zip").exists()
    )
    assert __main__.main(["data", "digits/images"]) == 0
    assert __main__.main(["zip", "digits", "--out", "digits.zip", "--part", "heldout"]) == 0
    assert "digits.zip: 360 images" in capsys.readouterr().out
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("heldout: 360", "heldout: 361", 1), encoding="utf-8")
    assert __main__.main(["zip", "digits", "--out", "other.zip"]) == 2
    assert (
        "is missing, or was made with other numbers; run `python -m eldistill data digits/images`"
        in capsys.readouterr().err
    )
