# SPDX-License-Identifier: Apache-2.0
"""Files of others: every reader follows links, expands `~`, refuses what is no ordinary file without waiting for it, and names
what a failed download leaves behind."""

from __future__ import annotations

import os
import shutil
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eldistill import outside
from eldistill.data import latents
from eldistill.data.readers import cifar10, folder
from eldistill.errors import Problem
from eldistill.evaluate import fid
from eldistill.external import fetching, pickles
from eldistill.losses import perceptual
from eldistill.plan.identity import Source, measure_source
from eldistill.sampling import generators, teachers
from eldistill.teacher import convert
from eldistill.tensors import load_tensors, save_tensors
from tests import official
from tests.conftest import ROOT
from tests.external.test_pickles import small

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n" + b" " * 4000
CODEC = {"mean": 0.5, "std": 0.25}


def adopt(path: Path):
    section = {"file": str(path), "codec": CODEC, "labels": False}
    return convert.convert_teacher(section, path.parent / "adopted/teacher.safetensors")


READERS = {
    "a pickle": ("net.pkl", lambda path: pickles.read_network_file(path)),
    "a network to check": ("net.pkl", lambda path: convert.load_published(path)),
    "a teacher of EDM": ("net.pkl", adopt),
    "a state": ("net.pt", adopt),
    "a teacher of ours": ("net.safetensors", adopt),
    "tensors": ("net.safetensors", lambda path: load_tensors(path, foreign=True)),
    "a denoiser": ("net.safetensors", teachers.load_denoiser),
    "a generator": ("net.safetensors", generators.load_generator),
    "weights of LPIPS": ("lpips.safetensors", perceptual.load_lpips),
    "statistics, npz": ("fid.npz", fid.load_statistics),
    "statistics, pickle": ("fid.pkl", fid.load_statistics),
    "a tar of CIFAR-10": ("cifar.tar.gz", lambda path: cifar10.read({"path": str(path), "folder": None, "heldout": 1})),
}  # fmt: skip


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = os.getcwd()
        os.chdir(path.parent)  # the address of a socket is short
        try:
            made.bind(path.name)
        finally:
            os.chdir(before)


MADE = {
    "a pipe": (os.mkfifo, "is a named pipe"), "a link to a pipe": (lambda p: (os.mkfifo(f"{p}2"), p.symlink_to(f"{p}2")), "a named pipe"),
    "a socket": (bound, "is a socket"), "an endless device": (device, "is a device"),
    "a link to nothing": (lambda p: p.symlink_to("nowhere"), "is a link to nowhere, which is not there|is missing"),
    "a file of the system": (lambda p: p.symlink_to("/proc/self/environ"), "is empty"),
    "an empty file": (Path.touch, "is empty; fetch or copy it again"),
    "a pointer of Git LFS": (lambda p: p.write_bytes(POINTER), "is a pointer of Git LFS to a file of 123,456,789 bytes, not the file; run"),
    "a web page": (lambda p: p.write_bytes(PAGE), "is a web page, not the file; download it again"),
    "an answer": (lambda p: p.write_bytes(b"Entry not found\n"), "is a text that begins with 'Entry not found', perhaps"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_such_file_is_named_by_every_reader(tmp_path, reader, kind):
    """At once, in one sentence, and nothing is written. A reader that opened the pipe would wait for ever."""
    (name, read), (make, sentence) = READERS[reader], MADE[kind]
    make(tmp_path / name)
    with pytest.raises(Problem, match=sentence) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value) and not (tmp_path / "adopted").exists()


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch, reader):
    """And nobody is told to delete it. Root may read everything, so that the system's answer is imitated."""
    name, read = READERS[reader]
    (tmp_path / name).write_bytes(b"content")
    (tmp_path / name).chmod(0)
    opened = os.open

    def denied(path, *rest, **options):
        if Path(path) == tmp_path / name:
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **options)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(Problem, match=r"may not be read by this user \(mode 0, owner \d+\); ask its owner") as caught:
        read(tmp_path / name)
    assert "delete" not in str(caught.value)


def test_no_right_is_one_sentence(tmp_path):
    """What the system says, whoever runs the tests."""
    said = outside._denied(tmp_path, PermissionError(13, "Permission denied"), "a network file")
    assert said.startswith("may not be read by this user (mode ") and "delete" not in said


@pytest.mark.parametrize("way", ["a link", "a link to a link", "a home folder"])
def test_a_teacher_is_found_where_it_is(tmp_path, monkeypatch, way):
    """The files in the cache of a hub are links; a path may begin with ~. The recipe sees the content in each case."""
    network, kwargs = small()
    store = tmp_path / "blobs"
    store.mkdir()
    official.write(store / "0123", official.edm(network, kwargs))
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "net.pkl"
    if way == "a home folder":
        shutil.copy(store / "0123", path)
    else:
        (tmp_path / "other").symlink_to(store / "0123")
        path.symlink_to("other" if way == "a link to a link" else store / "0123")
    given = "~/net.pkl" if way == "a home folder" else str(path)
    about = convert.convert_teacher({"file": given, "codec": CODEC, "labels": False}, tmp_path / "teacher.safetensors")
    assert about["source"]["name"] == "net.pkl"
    found = measure_source(Source(given, "network", given), tmp_path)
    assert found.sha256 == about["source"]["sha256"]


def test_tensors_statistics_and_pictures_are_links_and_at_home_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_tensors(tmp_path / "blob", {"a": torch.ones(2)}, {})
    (tmp_path / "a.safetensors").symlink_to("blob")
    assert load_tensors("~/a.safetensors")[0]["a"].tolist() == [1, 1]
    np.savez(tmp_path / "numbers", mu=np.zeros(2), sigma=np.eye(2))
    (tmp_path / "fid.npz").symlink_to("numbers.npz")
    assert fid.load_statistics(Path("~/fid.npz"))[1].tolist() == np.eye(2).tolist()
    (tmp_path / "pictures").mkdir()
    for index in range(4):
        Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(tmp_path / f"{index}.png")
        (tmp_path / f"pictures/{index}.png").symlink_to(f"../{index}.png")
    section = {"path": "~/pictures", "resolution": None, "crop": None, "heldout": 1}
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.write(tmp_path / "0.png", "0.png")
    assert folder.read(section).shape == folder.read(section | {"path": "~/pictures.zip"}).shape == (3, 4, 4)


def test_a_pointer_among_pictures_is_named(tmp_path):
    for index in range(3):
        Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes(POINTER)
    with pytest.raises(Problem, match=r"1\.png is a pointer of Git LFS to a file of 123,456,789 bytes"):
        folder.read({"path": str(tmp_path), "resolution": None, "crop": None, "heldout": 1})


def test_a_folder_of_downloads_may_hold_a_pointer(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(POINTER)
    with pytest.raises(Problem, match="is a pointer of Git LFS"):
        fetching.fetch("cifar-10-python", tmp_path)


def test_an_autoencoder_is_found_at_home(tmp_path, monkeypatch):
    """Its config.json may be a short text; a pointer in its place is named."""
    pytest.importorskip("diffusers")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_bytes(POINTER)
    with pytest.raises(Problem, match=r"config\.json is a pointer of Git LFS"):
        latents.load_autoencoder("~/vae")


@pytest.mark.parametrize("head", [b"\x80\x04\x95", b"PK\x03\x04", b"\x08\0\0\0\0\0\0\0{}", b"<", b"v", b"\x1f\x8b\x08"])
def test_the_beginnings_of_real_files_are_left_alone(head):
    assert outside.recognise(head + bytes(20), 23) is None


def test_a_short_text_is_right_where_texts_are_expected():
    assert outside.recognise(b'{"a": 1}', 8, text=True) is None and "is a text" in outside.recognise(b'{"a": 1}', 8)


def test_a_pipe_in_a_mirror_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data/sources.csv", "data/sources.csv")
    os.mkfifo(tmp_path / "cifar-10-python.tar.gz")
    monkeypatch.setenv("ELDISTILL_MIRROR", str(tmp_path))
    monkeypatch.setenv("ELDISTILL_OFFLINE", "1")
    with pytest.raises(Problem, match=r"cifar-10-python\.tar\.gz is a named pipe \(FIFO\); give the file itself"):
        fetching.fetch("cifar-10-python", store=tmp_path / "store")
