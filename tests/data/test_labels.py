# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder or zip are data, which class each has, and what is said of the rest."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from eldistill import __main__
from eldistill.data import archives, containers, labels, packing
from eldistill.data import dataset as data
from eldistill.data.readers.folder import ENDINGS
from eldistill.errors import Problem
from eldistill.external import listing
from eldistill.plan import identity
from eldistill.sampling import generators as sampling
from tests import conftest, pictures
from tests.conftest import ROOT
from tests.data.test_data import build


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    array = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def put(name: str, content: bytes = b"x") -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def tree(names, table=None, kind: str = "folder", at: str = "") -> str:
    """A folder or zip `source` of images with these names, and a dataset.json with these labels in the folder `at`."""
    contents = {name: png(index) if name.endswith(".png") else b"x" for index, name in enumerate(names)}
    if table is not None:
        contents[f"{at}dataset.json"] = table if isinstance(table, bytes) else json.dumps({"labels": table}).encode()
    return build(contents, kind)


def packed(path: str = "source", **keys) -> tuple[dict, list[str]]:
    """The description of a pack and the sentences that were printed."""
    said: list[str] = []
    section = {"source": "folder", "path": path, "resolution": None, "heldout": 2} | keys
    return packing.pack_dataset(section, "pack", say=said.append), said


def counts(about: dict) -> dict[str, int]:
    """{class: images}, train and held-out."""
    numbers = torch.cat([data.load_pack("pack", part)[1] for part in ("train", "heldout")])
    assert (about["classes"] == 0) == bool((numbers == -1).all())
    return dict(zip(about["class_names"], labels.count_labels(numbers.numpy(), about["classes"]), strict=True))


PLAIN = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(4)]
KINDS = pytest.mark.parametrize("kind", ["folder", "zip"])

# --- hidden files ---------------------------------------------------------------------------------------

RUBBISH = [
    ".ipynb_checkpoints/0-checkpoint.png", "cat/.ipynb_checkpoints/1-checkpoint.png", "._cat/0.png", "cat/._0.png",
    "__MACOSX/cat/._0.png", "__MACOSX/cat/1.png", "cat/.thumbnails/0.png", ".DS_Store", "cat/Thumbs.db", "dog/desktop.ini",
    "@eaDir/cat/0.png", ".git/a/b/c.png", ".hidden.png", "cat/.a/b/dataset.json",
]  # fmt: skip


@KINDS
def test_hidden_files_are_no_images_and_no_class(kind):
    """The pack is to the byte that of the set without them, and how many there are is printed."""
    packed(tree(PLAIN, kind=kind))
    wanted = Path("pack").read_bytes()
    about, said = packed(tree(PLAIN + RUBBISH, kind=kind))
    assert Path("pack").read_bytes() == wanted and counts(about) == {"cat": 4, "dog": 4}
    assert said == ["left out: 13 hidden files or folders, such as .DS_Store"]


@KINDS
def test_files_of_other_kinds_are_counted_by_their_ending(kind):
    names = [*PLAIN, "a.txt", "cat/b.TXT", "c.heic", "LICENSE", "cat/dataset.json"]
    about, said = packed(tree(names, kind=kind))
    assert counts(about) == {"cat": 4, "dog": 4}
    assert said == ["left out: files of other kinds (1 without an ending, 1 .heic, 1 .json, 2 .txt)"]


@KINDS
def test_without_an_image_what_was_left_out_is_said(kind):
    path = tree(["a.heic", "b.heic", ".c.png"], kind=kind)
    with pytest.raises(
        Problem, match=r"has no images; expected png.*left out: 1 hidden file or folder, .*\(2 \.heic\)"
    ):
        packed(path)


@KINDS
def test_every_ending_of_the_list_is_read_in_any_letters(kind):
    names = [f"{i}{end.upper() if i % 2 else end}" for i, end in enumerate(ENDINGS)]
    contents = {name: png(i) for i, name in enumerate(names)}
    path = tree([], kind=kind)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        for name, content in contents.items():
            put(f"source/{name}", content)
    about, said = packed(path)  # the content decides the kind of a file: these are PNGs
    assert about["train"] + about["heldout"] == len(names) and not said


def test_what_the_packer_reads_is_what_the_identity_holds():
    """Random trees with hidden names, links and circles: the files of the identity are the images and the table, no others."""
    draw = random.Random(0)
    names = ["a", "b", ".c", "__MACOSX", "d.png", "e.JPG", ".f.png", "g.txt", "dataset.json"]
    for _ in range(30):
        top = Path(f"tree{_}")
        folders = [top]
        top.mkdir()
        for _ in range(25):
            place = draw.choice(folders) / draw.choice(names)
            if place.exists() or place.is_symlink():
                continue
            if place.suffix or place.name.startswith(".f"):
                place.write_bytes(b"x")
            elif draw.random() < 0.3:
                place.symlink_to(draw.choice(folders).absolute())
            else:
                place.mkdir()
                folders.append(place)
        found = listing.list_folder(top, ENDINGS)
        read = sorted([*found.names, *filter(None, [found.labels])])
        assert identity._listed(identity.Source("x", "folder", str(top)), Path()) == read
        inodes = [os.stat(top / name).st_ino for name in found.names]
        assert set(inodes) == reachable(top) and len(inodes) == len(set(inodes))


def reachable(top: Path) -> set[int]:
    """The images that visible names lead to, as inodes: the closure, without an order."""
    images, seen, waiting = set(), set(), {top.resolve()}
    while waiting:
        folder = waiting.pop()
        seen.add(folder)
        for entry in folder.iterdir():
            if listing.is_hidden(entry.name):
                continue
            if entry.is_dir():
                waiting |= {entry.resolve()} - seen
            elif entry.suffix.lower() in ENDINGS:
                images.add(entry.stat().st_ino)
    return images


# --- links ----------------------------------------------------------------------------------------------


def test_a_linked_class_folder_is_a_class():
    tree(PLAIN)
    packed()
    wanted = Path("pack").read_bytes()
    Path("source/dog").rename("elsewhere")
    Path("source/dog").symlink_to(Path("elsewhere").absolute())
    about, said = packed()
    assert Path("pack").read_bytes() == wanted and counts(about) == {"cat": 4, "dog": 4} and not said


def test_a_link_into_a_hidden_store_is_followed():
    """As git-annex and DVC lay files out."""
    tree([f".store/{name}" for name in PLAIN])
    for name in ("cat", "dog"):
        Path(f"source/{name}").symlink_to(Path(f"source/.store/{name}").absolute())
    assert counts(packed()[0]) == {"cat": 4, "dog": 4}


@pytest.mark.parametrize("target", ["source", "source/cat", "."])
def test_circles_and_second_links_end_and_are_said(target):
    tree(PLAIN)
    Path("source/cat/again").symlink_to(Path(target).absolute())
    about, said = packed()
    assert counts(about) == {"cat": 4, "dog": 4}
    assert len(said) == 1 and said[0].startswith("left out: 1 link, such as cat/again")


def test_a_link_whose_image_is_gone_is_one_sentence():
    tree(PLAIN)
    Path("source/cat/9.png").symlink_to(Path("nowhere.png").absolute())
    with pytest.raises(
        Problem, match="source/cat/9.png is a link to a missing file; restore the file, or take it out of the folder"
    ):
        packed()


def test_a_link_to_a_folder_that_is_gone_is_said():
    tree(PLAIN)
    Path("source/owl").symlink_to(Path("nowhere").absolute())
    assert packed()[1] == [
        "left out: 1 link, such as owl; a link is followed if it leads to a folder that is not read already"
    ]


# --- folders of classes ---------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("outer", ["", "archive/", "a/b/c/", "train/", "Data Set/"])
def test_folders_that_hold_all_the_rest_count_for_nothing(kind, outer):
    about, said = packed(tree([outer + name for name in PLAIN], kind=kind))
    assert counts(about) == {"cat": 4, "dog": 4} and not said


@KINDS
@pytest.mark.parametrize("outer", ["", "archive/", "a/b/"])
@pytest.mark.parametrize("inner", ["", "00000/", "00000/0/"])
def test_a_dataset_json_in_an_outer_folder_is_found(kind, outer, inner):
    names = [f"{outer}{inner}{i}.png" for i in range(6)]
    about, said = packed(tree(names, [[f"{inner}{i}.png", i % 3] for i in range(6)], kind, outer))
    assert counts(about) == {"0": 2, "1": 2, "2": 2} and not said


@KINDS
@pytest.mark.parametrize(
    "parts", [("train", "val"), ("Train", "Test"), ("train", "valid", "test"), ("training", "validation")]
)
@pytest.mark.parametrize("outer", ["", "set/"])
def test_the_parts_of_a_split_are_no_classes(kind, parts, outer):
    names = [f"{outer}{part}/{name}" for part in parts for name in PLAIN]
    about, said = packed(tree(names, kind=kind))
    assert counts(about) == {"cat": 4 * len(parts), "dog": 4 * len(parts)}
    (line,) = said
    assert (
        line == f"{', '.join(sorted(parts))} are merged; the held-out images are chosen from all of them by `heldout`"
    )


def test_the_parts_of_a_split_without_classes_have_none():
    about, said = packed(tree([f"{part}/{i}.png" for part in ("train", "test") for i in range(3)]))
    assert about["classes"] == 0 and "test, train are merged" in said[0]


def test_train_among_other_classes_is_a_class():
    about, _ = packed(tree([f"{name}/{i}.png" for name in ("bus", "car", "train") for i in range(3)]))
    assert counts(about) == {"bus": 3, "car": 3, "train": 3}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([*PLAIN, "preview.png"], r"preview.png lies beside the folders of classes \(cat, dog\); move it .*write .*null"),
        ([*PLAIN, "a.png", "b.png"], "a.png and 1 more lies beside"),
        ([f"{p}/{n}" for p in ("train", "val") for n in PLAIN] + ["test/0.png"], "source/test/0.png lies beside the folders"),
        ([f"train/{n}" for n in PLAIN] + ["val/images/0.png"], "val has the class images, which the training images lack"),
    ],
)  # fmt: skip
def test_images_beside_folders_of_classes_are_one_sentence(names, sentence):
    with pytest.raises(Problem, match=sentence):
        packed(tree(names))
    put("source/dataset.json", b'{"labels": null}')  # the way out that the sentence names
    assert packed()[0]["classes"] == 0


def test_an_empty_folder_is_no_class():
    tree(PLAIN)
    Path("source/bird").mkdir()
    put("source/ant/notes.txt")
    assert counts(packed()[0]) == {"cat": 4, "dog": 4}


# --- dataset.json ---------------------------------------------------------------------------------------

NAMES = [f"00000/img{i:08}.png" for i in range(12)]


@pytest.mark.parametrize("raw", [[0, 1, 2], [1, 2, 3], [0, 7, 21], [10**6, 10**6 + 1, 10**30], [5], [2, 10, 100]])
def test_classes_are_numbered_from_zero_in_order_and_keep_their_names(raw):
    """One-hot labels are as wide as there are classes with images; order and names are those of the numbers."""
    about, said = packed(tree(NAMES, [[name, raw[i % len(raw)]] for i, name in enumerate(NAMES)]))
    assert about["class_names"] == [str(label) for label in raw] and about["classes"] == len(raw)
    assert set(counts(about).values()) == {12 // len(raw)}
    train, heldout = packing.split_heldout(12, 2)
    for part, indices in (("train", train), ("heldout", heldout)):
        assert data.load_pack("pack", part)[1].tolist() == [index % len(raw) for index in indices]
    assert about["class_counts"] == np.bincount(train % len(raw), minlength=len(raw)).tolist()
    assert bool(said) == (raw != list(range(len(raw))))
    assert data.load_real_images("pack", {"mean": 0.5, "std": 0.25}, True).take(torch.arange(3))[1].shape == (
        3,
        len(raw),
    )


GOOD = [[name, i % 3] for i, name in enumerate(NAMES)]


@pytest.mark.parametrize(
    ("table", "note"),
    [
        ([[name, float(label)] for name, label in GOOD], None),
        ([[name.replace("/", "\\"), label] for name, label in GOOD], None),
        ([[f"./{name}", label] for name, label in GOOD], None),
        (dict(GOOD), None),
        (b"\xef\xbb\xbf" + json.dumps({"labels": GOOD}).encode(), None),
        (json.dumps({"labels": GOOD}).encode("utf-16"), None),
        (GOOD + GOOD[:2], "names 2 files twice, with the same label"),
        (
            json.dumps({"labels": GOOD, "class_names": ["a", "b"]}).encode(),
            "dataset.json has 2 class_names, its labels go to 2: the names are not taken",
        ),
        (
            [*GOOD, ["00001/x.png", 0], ["00001/y.png", 9]],
            "has labels for 2 files that are not there, such as 00001/x.png",
        ),
    ],
    ids=["floats", "backslashes", "dots", "object", "BOM", "UTF-16", "twice", "few names", "spare"],
)
def test_tables_that_are_taken(table, note):
    about, said = packed(tree(NAMES, table))
    assert counts(about) == {"0": 4, "1": 4, "2": 4}
    assert [note in line for line in said] == ([True] if note else [])


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ([[name, bool(label)] for name, label in GOOD], "gives 00000/img00000000.png the label false; expected a whole number"),
        ([[name, str(label)] for name, label in GOOD], 'the label "0"; expected a whole number'),
        ([[name, label + 0.5] for name, label in GOOD], "the label 0.5; expected a whole number"),
        ([[name, [0.5, 0.5]] for name, _ in GOOD], r"the label \[0.5, 0.5\]; expected a whole number"),
        ([[name, -1] for name, _ in GOOD], "the label -1; expected a whole number"),
        ([[name, None] for name, _ in GOOD], "the label null; expected a whole number"),
        (b'{"labels": [["a.png", NaN]]}', "the label NaN"),
        (b'{"labels": [["a.png", {"a": 1}]]}', "expected a whole number"),
        ([*GOOD, [NAMES[0], 2]], "gives 00000/img00000000.png two labels, 0 and 2; keep one"),
        (b'{"labels": {"a.png": 1, "a.png": 2}}', "gives a.png two labels, 1 and 2"),
        ([["a\\b.png", 1], ["a/b.png", 2]], "gives a/b.png two labels"),
        (GOOD[1:], "has no label for 00000/img00000000.png; expected one for every image"),
        (GOOD[3:], "has no label for 00000/img00000000.png and 2 more"),
        ([[1, 2]], "is not understood; expected"),
        (b'{"labels": "abc"}', "is not understood"),
        (b'{"labels": 5}', "is not understood"),
        (b"[" * 100_000, "is not understood"),
        (b"\xff\xfe\x00", "is not understood"),
        (b'{"labels": [], "class_names": [1]}', "is not understood"),
        (b'{"labels": [], "class_names": ["a", "a"]}', "is not understood"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(table, sentence):
    with pytest.raises(Problem, match=sentence) as caught:
        packed(tree(NAMES, table))
    assert "\n" not in str(caught.value) and not Path("pack").exists()


def test_a_class_whose_images_are_all_held_out_or_cut_off_is_said():
    about, _ = packed(tree(NAMES, [[name, int(i == 7)] for i, name in enumerate(NAMES)]), limit=2)
    assert sum(about["class_counts"]) == 2 == about["train"] and about["classes"] == 2
    text = " ".join(labels.class_table(["a", "b"], [5, 0]))
    assert (
        text
        == "classes  a 5, b 0 (train images) b: no train image; all that the class has are held out or beyond `limit`"
    )


def test_many_classes_are_abridged():
    (line,) = labels.class_table([f"n{i}" for i in range(1000)], [*range(1, 1001)])
    assert line == "classes  1,000, from n0 with 1 train images to n999 with 1,000"
    assert labels.class_table([], []) == ["no classes"]


# --- other sources, and there and back ------------------------------------------------------------------


def test_digits_have_their_names():
    about = packing.pack_dataset({"source": "digits", "heldout": 360}, "pack")
    assert about["class_names"] == [str(i) for i in range(10)] and sum(about["class_counts"]) == 1437
    assert about["class_counts"] == torch.bincount(data.load_pack("pack")[1]).tolist()


def test_labels_of_arrays_are_numbered_too():
    """IDX files whose labels begin at 1, as EMNIST's letters do."""
    found = labels.renumber(np.array([3, 1, 26, 1]))
    assert found.numbers.tolist() == [1, 0, 2, 0] and found.names == ["1", "3", "26"]
    assert labels.renumber(np.array([-1, -1])).names == []
    assert labels.renumber([1, 0], {0: "airplane", 1: "bird"}).names == ["airplane", "bird"]


def test_names_survive_a_zip():
    packed(tree(PLAIN))
    archives.write_zip("pack", "again.zip")
    with zipfile.ZipFile("again.zip") as archive:
        table = json.loads(archive.read("dataset.json"))
    assert {label for _, label in table["labels"]} == {0, 1}  # what their code reads
    assert counts(packed("again.zip")[0]) == {"cat": 4, "dog": 4}


def test_names_go_from_folders_to_generator_command_and_card(capsys):
    """Three unbalanced classes of transparent colour images with rubbish among them, from the folder to the card."""
    Path("data").mkdir()
    conftest.copy_parameters(Path())
    Path("data/sources.csv").write_bytes((ROOT / "data/sources.csv").read_bytes())
    values = conftest.shipped()
    network = {"network": "song", "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    values["data"]["mine"] = {"source": "folder", "path": "source", "heldout": 8, "labels": True, "teacher": "mine",
                              "codec": {"mean": 0.5, "std": 0.25}, "background": "white",
                              "judges": {"n_images": 64, "batch": 8}}  # fmt: skip
    values["teacher"]["mine"] = {"data": "mine", "network": network, "batch": 8, "n_images": 64, "steps": 3}
    rates = {"lr": 1e-4, "betas": [0.0, 0.999]}
    values["distil"]["methods"]["di"]["per_data"]["mine"] = {
        "n_images": 64, "batch": 8, "generator": rates, "critic": rates
    }  # fmt: skip
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    names = [f"{name}/{i}.png" for name, count in (("cat", 20), ("dog", 10), ("owl", 5)) for i in range(count)]
    for index, name in enumerate(names):
        array = np.random.default_rng(index).integers(0, 256, (8, 8, 4), dtype=np.uint8)
        put(f"source/archive/{name}", pictures.save(array, "PNG"))
        put(f"source/archive/__MACOSX/{name}", b"rubbish")
    for word, name in (("data", "mine/images"), ("teacher", "mine"), ("distil", "mine/di/none/0")):
        assert __main__.main([word, name]) == 0
    said = capsys.readouterr().out
    train, _ = packing.split_heldout(35, 8)
    number = np.bincount(np.repeat(range(3), (20, 10, 5))[train]).tolist()
    assert (
        "classes  cat {}, dog {}, owl {}".format(*number) in said
        and "1 hidden file or folder, such as archive/__MACOSX" in said
    )
    generator = "data/runs/mine/di/none/0/generator_ema.safetensors"
    about = sampling.load_generator(generator).metadata
    assert (about["label_dim"], about["class_names"]) == (3, ["cat", "dog", "owl"])
    assert __main__.main(["sample", "--generator", generator, "--label", "owl", "--n", "4", "--grid", "owl.png"]) == 0
    assert __main__.main(["export", "mine/di/none/0", "--out", "given"]) == 0
    assert "* **Classes**: 0 cat, 1 dog, 2 owl" in Path("given/README.md").read_text(encoding="utf-8")
    code = "import load; assert (load.sample(2, 5, 'owl') == load.sample(2, 5, 2)).all()"
    subprocess.run([sys.executable, "-c", code], cwd="given", check=True)


# --- zips -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_is_to_be_unpacked(mode):
    tree(PLAIN)
    with tarfile.open("source.tar", mode) as archive:
        archive.add("source")
    with pytest.raises(
        Problem, match="is neither a folder nor a zip file; unpack this tar archive and give its folder"
    ):
        packed("source.tar")


def test_a_zip_with_windows_names_is_read():
    with zipfile.ZipFile("source.zip", "w") as archive:
        for index, name in enumerate(PLAIN):
            member = zipfile.ZipInfo(name)
            member.filename = name.replace("/", "\\")
            archive.writestr(member, png(index))
    assert counts(packed("source.zip")[0]) == {"cat": 4, "dog": 4}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips_that_are_refused(monkeypatch):
    with zipfile.ZipFile("source.zip", "w") as archive:
        archive.writestr("a.png", png(0)), archive.writestr("a.png", png(1))
    with pytest.raises(Problem, match=r"source.zip holds two files called a.png; make the zip again"):
        packed("source.zip")
    tree(["a.png", "b.png"], kind="zip")
    content = bytearray(Path("source.zip").read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    Path("source.zip").write_bytes(content)
    with pytest.raises(Problem, match="a.png is encrypted; make the zip again without a password"):
        packed("source.zip")
    tree(["a.png", "b.png"], kind="zip")
    monkeypatch.setattr(containers, "LARGEST", 20)
    with pytest.raises(Problem, match="a.png has .* bytes; expected at most 20"):
        packed("source.zip")


def test_images_without_classes_are_refused_before_they_are_packed_if_a_setting_asks_for_labels(tmp_path, monkeypatch):
    """Not by the first training, which comes after hours of packing; with classes, and without the setting, they are packed."""
    monkeypatch.chdir(tmp_path)
    Path("flat").mkdir()
    for index in range(6):
        Path(f"flat/{index}.png").write_bytes(png(index))
    section = {"source": "folder", "path": "flat", "resolution": None, "heldout": 2}
    with pytest.raises(
        Problem, match="data.mine.labels is true, but flat has no classes; set it to false, add dataset.json"
    ):
        packing.pack_dataset(section, "pack", conditional=["mine"])
    assert not Path("pack").exists()
    packing.pack_dataset(section, "pack")
    packing.pack_dataset({"source": "digits", "heldout": 360}, "digits", conditional=["mine"])
