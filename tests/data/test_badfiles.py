# SPDX-License-Identifier: Apache-2.0
"""All files of a source that cannot be taken are named by one message, wherever in the file the fault lies."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eldistill.data import badfiles, packing
from eldistill.errors import Problem

SECTION = {"source": "folder", "crop": "square", "resolution": 8, "heldout": 2, "limit": None, "count": None,
           "background": None, "orientation": "ignore", "bits": None}  # fmt: skip


def png(seed: int, mode: str = "RGB") -> bytes:
    array = np.random.default_rng(seed).integers(0, 256, (16, 16, len(mode)), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array, mode=mode).save(buffer, format="PNG")
    return buffer.getvalue()


def contents(bad: int) -> dict[str, bytes]:
    """`bad` pictures of each kind: no picture, cut off in its body, and of a kind without a rule; ten good ones."""
    buffer = io.BytesIO()
    Image.fromarray(np.ones((16, 16), np.float32)).save(buffer, format="TIFF")
    found = {f"good{index}.png": png(index) for index in range(10)}
    for index in range(bad):
        found |= {
            f"text{index}.png": b"<html>",
            f"cut{index}.png": png(index)[:300],
            f"real{index}.tif": buffer.getvalue(),
        }
    return found


def stored(folder: Path, files: dict[str, bytes], kind: str) -> Path:
    path = folder / ("mine.zip" if kind == "zip" else "mine")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_every_bad_picture_is_named_once(tmp_path, kind):
    path = stored(tmp_path, contents(2), kind)
    with pytest.raises(Problem) as caught:
        packing.pack_dataset(SECTION | {"path": str(path)}, tmp_path / "out")
    text = str(caught.value)
    assert "6 of 16 files cannot be taken" in text and text.count(str(path)) == 1
    assert all(text.count(f"{name}{index}.") == 1 for name in ("text", "cut", "real") for index in (0, 1))
    assert "good" not in text and not (tmp_path / "out").exists()


def test_pictures_cut_off_behind_their_heads_are_found_together(tmp_path):
    files = {name: content for name, content in contents(3).items() if not name.startswith(("text", "real"))}
    path = stored(tmp_path, files, "folder")
    with pytest.raises(Problem, match="3 of 13 files cannot be taken: cut0.png .*; cut1.png .*; cut2.png "):
        packing.pack_dataset(SECTION | {"path": str(path)}, tmp_path / "out")


def test_a_missing_key_is_told_with_the_bad_pictures(tmp_path):
    """Transparent pictures are fine once `background` is set: they are counted, not called bad."""
    path = stored(tmp_path, contents(1) | {f"clear{index}.png": png(index, "RGBA") for index in range(4)}, "folder")
    with pytest.raises(
        Problem, match="3 of 17 files cannot be taken.*; 4 pictures, such as clear0.png, have transparent"
    ):
        packing.pack_dataset(SECTION | {"path": str(path)}, tmp_path / "out")


def test_a_long_list_is_cut(tmp_path):
    path = stored(tmp_path, {f"{index:03}.png": b"" for index in range(100)} | contents(0), "folder")
    with pytest.raises(Problem, match="100 of 110 files cannot be taken.*019.png [^;]*; [^;]*; and 80 more$") as caught:
        packing.pack_dataset(SECTION | {"path": str(path)}, tmp_path / "out")
    assert str(caught.value).count(".png") == badfiles.MOST_SHOWN


def test_one_bad_picture_keeps_its_sentence(tmp_path):
    path = stored(tmp_path, contents(0) | {"bad.png": b"no"}, "folder")
    with pytest.raises(Problem, match=r"bad\.png is not an image, but something else under its name") as caught:
        packing.pack_dataset(SECTION | {"path": str(path)}, tmp_path / "out")
    assert "cannot be taken" not in str(caught.value)


def test_every_bad_latent_is_named_once(tmp_path):
    good, files = io.BytesIO(), {}
    np.save(good, np.ones((8, 4, 4), np.float32))
    files = {f"{index}.npy": good.getvalue() for index in range(6)}
    files |= {"7.npy": b"", "8.npy": good.getvalue()[:-9]}
    path = stored(tmp_path, files, "folder")
    with pytest.raises(Problem, match="2 of 8 files cannot be taken: 7.npy .*; 8.npy "):
        packing.pack_dataset(SECTION | {"source": "latents", "path": str(path)}, tmp_path / "out")
