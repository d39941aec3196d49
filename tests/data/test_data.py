# SPDX-License-Identifier: Apache-2.0
"""Data sets: codecs, packed files, readers, and files fetched over a broken line."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eldistill.data import dataset as data
from eldistill.data import images, packing
from eldistill.diffusion.noise import SIGMA_DATA
from eldistill.errors import NonFinite, Problem
from eldistill.external import fetching
from tests import conftest
from tests.conftest import ROOT

CODECS = {
    "edm": {"mean": 0.5, "std": 0.25},
    "digits": {"mean": 0.3053, "std": 0.3756},
    "fashion": {"mean": 0.2190, "std": 0.3318},
    "wide": {"mean": 0.0, "std": 1.0},
    "narrow": {"mean": 1.0, "std": 0.001},
}
LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
DIGITS = {"source": "digits", "heldout": 360}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- codec --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CODECS)
def test_every_level_comes_back(name, dtype):
    x = data.encode(LEVELS, CODECS[name], dtype)
    assert x.dtype == dtype
    assert torch.equal(data.decode(x, CODECS[name]), LEVELS)


@pytest.mark.parametrize("name", CODECS)
def test_half_a_level_is_where_rounding_turns(name):
    step = 0.5 / CODECS[name]["std"] / 255
    x = data.encode(LEVELS, CODECS[name], torch.float64)
    inner = LEVELS[LEVELS > 0]
    assert torch.equal(data.decode(x + 0.49 * step, CODECS[name]), LEVELS)
    assert torch.equal(data.decode(x - 0.49 * step, CODECS[name]), LEVELS)
    assert torch.equal(data.decode(x - 0.51 * step, CODECS[name])[LEVELS > 0], inner - 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_no_pixel(bad):
    x = torch.zeros(2, 1, 2, 2)
    x[1, 0, 0, 1] = bad
    with pytest.raises(NonFinite, match="not finite in 1 of its values"):
        data.decode(x, CODECS["edm"])


def test_out_of_range_is_clipped():
    x = torch.tensor([-1e9, -1.5, 1.5, 1e9])
    assert data.decode(x, CODECS["edm"]).tolist() == [0, 0, 255, 255]


def test_the_edm_codec_is_edms_formula():
    assert torch.allclose(data.encode(LEVELS, CODECS["edm"]), LEVELS / 127.5 - 1, rtol=0, atol=1e-6)
    x = 2 * torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(data.decode(x, CODECS["edm"]), (x * 127.5 + 128).clip(0, 255).to(torch.uint8))


# --- digits -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "images.safetensors"
    return path, packing.pack_dataset(DIGITS, path)


def test_the_digits_are_counted(digits):
    path, about = digits
    assert (about["train"], about["heldout"], about["shape"], about["classes"]) == (1437, 360, [1, 8, 8], 10)
    for part, count in (("train", 1437), ("heldout", 360)):
        images, labels, again = data.load_pack(path, part)
        assert images.shape == (count, 1, 8, 8) and images.dtype == torch.uint8
        assert labels.shape == (count,) and labels.dtype == torch.int64 and set(labels.tolist()) == set(range(10))
        assert again == about


def test_the_split_is_fixed_for_ever():
    train, heldout = packing.split_heldout(1797, 360)
    assert hashlib.sha256(",".join(map(str, heldout)).encode()).hexdigest() == (
        "c088ef83f43280c4dd8ecac8d05b515c09be7a3940707dd79e05a9d77acc9086"
    )
    assert sorted([*train, *heldout]) == list(range(1797))


def test_packed_digits_are_scikit_learns_in_that_split(digits):
    from sklearn.datasets import load_digits

    source, (train, heldout) = load_digits(), packing.split_heldout(1797, 360)
    for part, indices in (("train", train), ("heldout", heldout)):
        images, labels, _ = data.load_pack(digits[0], part)
        assert np.abs(images[:, 0].double().numpy() * 16 / 255 - source.images[indices]).max() < 16 / 255 / 2
        assert np.array_equal(labels, source.target[indices])


def test_the_shipped_codec_gives_the_digits_sigma_data(digits):
    codec = conftest.shipped()["data"]["digits"]["codec"]
    x = data.encode(data.load_pack(digits[0])[0], codec)
    assert abs(float(x.mean())) < 1e-3 and abs(float(x.std()) - SIGMA_DATA) < 1e-3
    assert codec == pytest.approx({"mean": digits[1]["mean"], "std": digits[1]["std"]}, abs=1e-4)


def test_a_smaller_heldout_part_is_inside_a_larger_one():
    assert set(packing.split_heldout(100, 10)[1]) < set(packing.split_heldout(100, 20)[1])
    with pytest.raises(Problem, match="heldout is 100, but there are 100 images"):
        packing.split_heldout(100, 100)


def test_equal_input_gives_equal_bytes(tmp_path, digits):
    packing.pack_dataset(DIGITS, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == digits[0].read_bytes()
    packing.pack_dataset({**DIGITS, "heldout": 361}, tmp_path / "other.safetensors")
    assert (tmp_path / "other.safetensors").read_bytes() != digits[0].read_bytes()


def test_reals_are_encoded_images_with_one_hot_labels(digits):
    reals = data.load_real_images(digits[0], CODECS["edm"], True)
    images, labels, _ = data.load_pack(digits[0])
    picked = torch.tensor([5, 3, 5])
    x, one_hot = reals.take(picked)
    assert torch.equal(data.decode(x, CODECS["edm"]), images[picked])
    assert one_hot.shape == (3, 10) and torch.equal(one_hot.argmax(1), labels[picked])
    assert len(reals) == 1437 and reals.shape == (1, 8, 8) and reals.label_dim == 10
    plain = data.load_real_images(digits[0], CODECS["edm"], False)
    assert plain.label_dim == 0 and plain.take(picked)[1] is None


# --- IDX ----------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_sources(contents: dict[str, bytes], url: str = "http://127.0.0.1:9/", mirror: str = "") -> None:
    """data/sources.csv of the current folder, a row for each file of contents {name: bytes}."""
    Path("data").mkdir(exist_ok=True)
    with open("data/sources.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "version", "url", "mirror", "sha256", "bytes", "licence"])
        for name, content in contents.items():
            plain = content  # a row's digest is that of the content
            with contextlib.suppress(OSError, EOFError):
                plain = gzip.decompress(content) if name.endswith(".gz") else content
            row = [name, 1, url + name, mirror and mirror + name, hashlib.sha256(plain).hexdigest(), len(content)]
            writer.writerow([*row, "MIT"])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty project as the current folder; no proxies, no waiting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetching.time, "sleep", lambda seconds: None)
    monkeypatch.delenv("ELDISTILL_STORE", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path


def tiny(ending: str, change=None) -> dict[str, bytes]:
    """Four IDX files: 6 train and 4 test images of 28x28."""
    arrays = {"train-images": random(6, 28, 28), "train-labels": np.arange(6, dtype=np.uint8),
              "test-images": random(4, 28, 28, seed=1), "test-labels": np.arange(4, dtype=np.uint8)}  # fmt: skip
    contents = {f"tiny-{key}{ending}": idx(array) for key, array in arrays.items()}
    if ending == ".gz":
        contents = {name: gzip.compress(content, mtime=0) for name, content in contents.items()}
    if change:
        name = f"tiny-{change[0]}{ending}"
        contents[name] = change[1](contents[name])
    return contents


def place(contents: dict[str, bytes]) -> dict:
    """Write the files into the folder `own` and their rows, whose names have no ending; returns a section."""
    Path("own").mkdir(exist_ok=True)
    for name, content in contents.items():
        Path("own", name).write_bytes(content)
    write_sources(contents)
    table = Path("data/sources.csv")
    rows = [line.split(",") for line in table.read_text().splitlines()]
    rows = [rows[0], *([row[0].removesuffix(".gz"), *row[1:]] for row in rows[1:])]
    table.write_text("\n".join(map(",".join, rows)) + "\n")
    return {"source": "idx", "files": "tiny", "resolution": 32, "heldout": 3}


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_padded_about_their_centre(here, ending):
    about = packing.pack_dataset(place(tiny(ending)), "pack.safetensors", "own")
    assert (about["train"], about["heldout"], about["shape"], about["classes"]) == (6, 3, [1, 32, 32], 6)
    for part, seed, count in (("train", 0, 6), ("heldout", 1, 3)):
        images, labels, _ = data.load_pack("pack.safetensors", part)
        whole = random(6 if part == "train" else 4, 28, 28, seed=seed)
        assert np.array_equal(images[:, 0, 2:30, 2:30], whole[:count])
        assert int(images.sum()) == int(whole[:count].sum(dtype=np.int64)), "the border is not zero"
        assert labels.tolist() == list(range(count))


def test_gzip_and_plain_give_the_same_pack(here):
    digests = [packing.pack_dataset(place(tiny(ending)), f"pack{ending}", "own")["sha256"] for ending in ("", ".gz")]
    assert digests[0] == digests[1]
    assert Path("pack").read_bytes() == Path("pack.gz").read_bytes()


@pytest.mark.parametrize(("resolution", "padding", "times"), [(16, 2, 2), (14, 0, 2), (8, 2, 4), (7, 0, 4)])
def test_a_smaller_resolution_averages_blocks(here, resolution, padding, times):
    """28 pixels to 16 are padded to 32 and every four become one: explicit sums, rounded half up."""
    about = packing.pack_dataset({**place(tiny("")), "resolution": resolution}, "pack", "own")
    assert about["shape"] == [1, resolution, resolution]
    whole = np.pad(random(6, 28, 28, seed=0), ((0, 0), (padding, padding), (padding, padding))).astype(int)
    images = data.load_pack("pack")[0][:, 0].numpy()
    for row in range(resolution):
        for column in range(resolution):
            block = whole[:, row * times : (row + 1) * times, column * times : (column + 1) * times]
            assert np.array_equal(images[:, row, column], (2 * block.sum((1, 2)) + times**2) // (2 * times**2))


def test_a_limit_keeps_some_train_images_and_all_held_out_ones(here):
    """The same ones every time, with their labels; more than there are is no limit."""
    section = place(tiny(""))
    packing.pack_dataset(section, "all", "own")
    for count in (2, 4, 6, 99):
        about = packing.pack_dataset({**section, "limit": count}, "some", "own")
        assert (about["train"], about["heldout"]) == (min(count, 6), 3)
        kept = packing.split_heldout(6, count)[1] if count < 6 else np.arange(6)
        for found, wanted in zip(data.load_pack("some")[:2], data.load_pack("all")[:2], strict=True):
            assert torch.equal(found, wanted[kept])
        assert torch.equal(data.load_pack("some", "heldout")[0], data.load_pack("all", "heldout")[0])


def test_without_a_resolution_the_size_stays(here):
    assert packing.pack_dataset({**place(tiny("")), "resolution": None}, "pack", "own")["shape"] == [1, 28, 28]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("train-images", lambda content: content[:-1]), "tiny-train-images is not a complete IDX file"),
        (("train-images", lambda content: content + b"0"), "tiny-train-images is not a complete IDX file"),
        (("train-images", lambda content: b"\0\0\x0d" + content[3:]), "not a complete IDX file of bytes"),
        (("test-labels", lambda content: idx(np.zeros(3, np.uint8))), "4 images and 3 labels"),
        (("train-labels", lambda content: b""), "tiny-train-labels is empty"),
        (("train-labels", lambda content: b"\0\0\x08"), "not a complete IDX file"),
        (("train-images", lambda content: idx(random(6, 40, 40))), "resolution is 32, but the images have 40"),
    ],
)
def test_a_bad_idx_file_is_one_sentence(here, change, sentence):
    with pytest.raises(Problem, match=sentence):
        packing.pack_dataset(place(tiny("", change)), "pack", "own")
    assert not Path("pack").exists()


@pytest.mark.parametrize(
    "content", [lambda c: c[: len(c) // 2], lambda c: c[:-4], lambda c: b"not gzip", lambda c: b""]
)
def test_a_bad_gzip_is_one_sentence(here, content):
    with pytest.raises(Problem, match="tiny-train-images"):
        packing.pack_dataset(place(tiny(".gz", ("train-images", content))), "pack", "own")


def test_too_many_heldout_images_are_one_sentence(here):
    with pytest.raises(Problem, match="heldout is 5, but tiny has 4 test images"):
        packing.pack_dataset({**place(tiny("")), "heldout": 5}, "pack", "own")


def test_a_file_that_changed_in_the_users_folder_is_refused_and_kept(here):
    section = place(tiny(""))
    Path("own/tiny-test-images").write_bytes(b"\0\0\x08changed")
    with pytest.raises(Problem, match="tiny-test-images has sha256 .*, expected"):
        packing.pack_dataset(section, "pack", "own")
    assert Path("own/tiny-test-images").read_bytes() == b"\0\0\x08changed"


# --- Fashion-MNIST --------------------------------------------------------------------------------------

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# Debian's files are upstream's without the name and the time in their gzip header; these are the times.
TIMES = {"train": 1504176606, "t10k": 1504176627}


def sources() -> dict[str, dict[str, str]]:
    with open(ROOT / "data/sources.csv", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_fashion_mnist_has_a_digest_a_size_and_a_licence():
    """What can be checked without its publisher is known beforehand; of the other rows test_registry.py speaks."""
    rows = {name: row for name, row in sources().items() if name.startswith("fashion-mnist-")}
    assert {f"fashion-mnist-{part}" for part in ("train-images", "train-labels", "test-images", "test-labels")} == set(
        rows
    )
    for row in rows.values():
        assert list(row) == [
            "name",
            "version",
            "url",
            "mirror",
            "sha256",
            "bytes",
            "licence",
            "kind",
            "published",
            "reference",
            "form",
        ]
        assert row["url"].startswith("http") and row["licence"] and int(row["bytes"]) > 0
        assert len(row["sha256"]) == 64 and not set(row["sha256"]) - set("0123456789abcdef")
    assert len({row["sha256"] for row in rows.values()}) == len(rows)


@pytest.mark.skipif(not DEBIAN.exists(), reason=f"{DEBIAN} is absent: apt-get install dataset-fashion-mnist")
def test_fashion_mnist_is_read_from_a_folder(here):
    for name in (row["url"].rsplit("/", 1)[-1] for row in sources().values() if "fashion" in row["name"]):
        packed, plain = (DEBIAN / name).read_bytes(), name.removesuffix(".gz")
        assert packed[:4] == b"\x1f\x8b\x08\x00", "this file has its name in the header"
        header = b"\x1f\x8b\x08\x08" + TIMES[name.split("-")[0]].to_bytes(4, "little") + packed[8:10]
        Path(name).write_bytes(header + plain.encode() + b"\0" + packed[10:])
    Path("data").mkdir()
    Path("data/sources.csv").write_bytes((ROOT / "data/sources.csv").read_bytes())
    setting = conftest.shipped()["data"]["fashion-mnist"]
    about = packing.pack_dataset(setting, "pack", ".")
    assert (about["train"], about["heldout"], about["shape"], about["classes"]) == (60000, 10000, [1, 32, 32], 10)
    assert setting["codec"] == pytest.approx({"mean": about["mean"], "std": about["std"]}, abs=1e-4)
    for part, each in (("train", 6000), ("heldout", 1000)):
        assert torch.bincount(data.load_pack("pack", part)[1]).tolist() == [each] * 10


# --- folders and zips -----------------------------------------------------------------------------------


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def build(contents: dict[str, bytes], kind: str = "folder") -> str:
    """A folder or zip called `source` with these files."""
    if kind == "zip":
        with zipfile.ZipFile("source.zip", "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return "source.zip"
    for name, content in contents.items():
        path = Path("source", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return "source"


def section(path: str, resolution: int | None = None, heldout: int = 2) -> dict:
    return {"source": "folder", "path": path, "resolution": resolution, "heldout": heldout}


def both_parts(path: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a pack in the order of the source."""
    train, heldout = packing.split_heldout(count, count - len(data.load_pack(path)[0]))
    order = np.argsort([*train, *heldout])
    images, labels = zip(*(data.load_pack(path, part)[:2] for part in ("train", "heldout")), strict=True)
    return torch.cat(images).numpy()[order], torch.cat(labels).numpy()[order]


NAMES = ["b.png", "a.png", "c/z.png", "c-1.png", "d.PNG", "c/a.png"]
GREY = {name: random(8, 8, seed=seed) for seed, name in enumerate(NAMES)}
LABELS = {name: index % 3 for index, name in enumerate(NAMES)}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_and_labels_come_in_sorted_order(here, kind):
    table = json.dumps({"labels": [[name, label] for name, label in LABELS.items()]}).encode()
    path = build({**{name: png(image) for name, image in GREY.items()}, "dataset.json": table, "x.txt": b"x"}, kind)
    about = packing.pack_dataset(section(path), "pack")
    assert (about["train"], about["heldout"], about["shape"], about["classes"]) == (4, 2, [1, 8, 8], 3)
    images, labels = both_parts("pack", 6)
    wanted = sorted(NAMES)
    assert np.array_equal(images[:, 0], np.stack([GREY[name] for name in wanted]))
    assert labels.tolist() == [LABELS[name] for name in wanted]


def test_a_folder_and_its_zip_give_the_same_bytes(here):
    contents = {name: png(image) for name, image in GREY.items()}
    for kind in ("folder", "zip"):
        packing.pack_dataset(section(build(contents, kind)), f"pack-{kind}")
    assert Path("pack-folder").read_bytes() == Path("pack-zip").read_bytes()


@pytest.mark.parametrize("table", [None, b"{}", b'{"labels": null}'])
def test_without_labels_there_are_no_classes(here, table):
    contents = {name: png(image) for name, image in GREY.items()}
    packing.pack_dataset(section(build(contents | ({"dataset.json": table} if table else {}))), "pack")
    assert data.load_pack("pack")[2]["classes"] == 0 and set(data.load_pack("pack")[1].tolist()) == {-1}
    with pytest.raises(Problem, match="has no labels, but its data setting has labels: true"):
        data.load_real_images("pack", CODECS["edm"], True)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (31, 20), (24, 24), (12, 15)])
def test_crop_and_resize_are_pillows(here, height, width):
    pictures = [random(height, width, 3, seed=seed) for seed in range(4)]
    packing.pack_dataset(section(build({f"{i}.png": png(picture) for i, picture in enumerate(pictures)}), 16), "pack")
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    for found, picture in zip(both_parts("pack", 4)[0], pictures, strict=True):
        square = Image.fromarray(picture).crop((left, top, left + side, top + side))
        assert np.array_equal(found.transpose(1, 2, 0), square.resize((16, 16), Image.Resampling.LANCZOS))


def test_one_colour_image_makes_all_three_channels(here):
    grey, colour = random(8, 8), random(8, 8, 3)
    packing.pack_dataset(
        section(build({"a.png": png(grey), "b.png": png(colour), "c.png": png(grey), "d.png": png(grey)})), "pack"
    )
    images, _ = both_parts("pack", 4)
    assert images.shape == (4, 3, 8, 8)
    assert np.array_equal(images[1], colour.transpose(2, 0, 1))
    assert all(np.array_equal(channel, grey) for index in (0, 2, 3) for channel in images[index])


def test_sixteen_bit_grey_keeps_its_contrast(here):
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    packing.pack_dataset(section(build({f"{i}.png": png(ramp) for i in range(4)})), "pack")
    assert np.abs(data.load_pack("pack")[0][0, 0].numpy().astype(int) - ramp / 257).max() <= 1


GOOD = {f"{i}.png": png(random(8, 8, seed=i)) for i in range(4)}
BAD_FOLDERS = {
    "mixed sizes": (GOOD | {"x.png": png(random(9, 9))}, "2 sizes, such as 0.png with 8x8 pixels and x.png with 9x9 .*`resolution`.* as 8"),
    "not square": ({name: png(random(8, 9)) for name in GOOD}, "another shape than squares, such as 0.png with 9x8 .*`resolution`"),
    "no images": ({"x.txt": b"x"}, "has no images; expected png"),
    "no image inside": (GOOD | {"x.png": b"nothing"}, "x.png is not an image"),
    "half an image": (GOOD | {"x.png": png(random(64, 64))[:900]}, "x.png is a damaged image"),
    "a missing label": (GOOD | {"dataset.json": b'{"labels": [["0.png", 1]]}'}, "no label for 1.png"),
    "json that is none": (GOOD | {"dataset.json": b"{"}, "dataset.json"),
    "json that is a list": (GOOD | {"dataset.json": b"[]"}, "dataset.json"),
    "labels that are no pairs": (GOOD | {"dataset.json": b'{"labels": [1, 2]}'}, "dataset.json"),
    "labels that are text": (
        GOOD | {"dataset.json": json.dumps({"labels": [[n, "cat"] for n in GOOD]}).encode()}, "dataset.json"
    ),
    "too few": ({"0.png": GOOD["0.png"]}, "there is 1 image; expected at least 4"),
    "one left to train on": (dict(list(GOOD.items())[:3]), "1 train and 2 held-out images"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_one_sentence(here, case, kind):
    contents, sentence = BAD_FOLDERS[case]
    with pytest.raises(Problem, match=sentence) as caught:
        packing.pack_dataset(section(build(contents, kind)), "pack")
    assert "\n" not in str(caught.value) and not Path("pack").exists()


def test_a_path_that_is_neither_folder_nor_zip_is_one_sentence(here):
    Path("file").write_text("x")
    for path, what in (("file", "is neither a folder nor a zip file"), ("nowhere", "does not exist; put it there"),
                       ("~/nowhere", "does not exist; put it there")):  # fmt: skip
        with pytest.raises(Problem, match=f"{Path(path).expanduser()} {what}"):
            packing.pack_dataset(section(path), "pack")


@pytest.mark.parametrize("count", [4, 10, 300])
@pytest.mark.parametrize("more", [0, 1, 700])
def test_too_many_held_out_images_are_refused_with_a_number_that_works(count, more):
    """The sentence says how many images there are; what it proposes is accepted."""
    with pytest.raises(
        Problem, match=f"heldout is {count + more}, but there are {count} images; set .* below {count}"
    ) as caught:
        images.split_heldout(count, count + more)
    for proposed in re.findall(r"for instance to (\d+)", str(caught.value)):
        train, rest = images.split_heldout(count, int(proposed))
        assert len(train) > 1 and len(rest) > 1
