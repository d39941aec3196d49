# SPDX-License-Identifier: Apache-2.0
"""The command `sample`: what it takes is known before anything is written, and files are written in pieces."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from eldistill import __main__
from eldistill.commands import sample
from eldistill.sampling import pictures

GENERATOR = str(next((Path(__main__.__file__).parent / "commands/selftest_files").glob("generator*.safetensors")))


def run(*words: str) -> int:
    return __main__.main(["sample", "--generator", GENERATOR, *words])


@pytest.mark.parametrize("n", [10**12, 10**40])
@pytest.mark.parametrize("words", [["--grid", "a.png"], ["--out", "images"], ["--grid", "a.png", "--out", "images"]])
def test_an_absurd_number_of_images_is_refused_with_the_largest_that_fits(tmp_path, monkeypatch, capsys, n, words):
    """It ran until it was stopped, and kept all images in memory."""
    monkeypatch.chdir(tmp_path)
    assert run("--n", str(n), *words) == 2
    said = capsys.readouterr().err
    assert (
        f"--n is {n}, and" in said
        and "expected at most" in said
        and "lower --n" in said
        and len(said.splitlines()) == 1
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (32, 32), (512, 512), (3, 7)])
@pytest.mark.parametrize("scale", [1, 4])
def test_the_bound_of_a_picture_is_its_number_of_pixels(monkeypatch, shape, scale):
    """The number of images that a refusal names is accepted, and a picture has the pixels that were counted."""
    monkeypatch.setattr(sample, "MOST_PIXELS", 2**20)
    columns = lambda n: math.isqrt(n - 1) + 1  # noqa: E731
    with pytest.raises(sample.Problem, match="room for ([0-9,]+) of") as refused:
        sample._check_pixels(10**9, columns(10**9), scale, *shape)
    most = int(str(refused.value).split("room for ")[1].split(" of")[0].replace(",", ""))
    if most:
        sample._check_pixels(most, columns(most), scale, *shape)
        if most < 2000:
            made = pictures.grid(torch.zeros(most, 1, *shape, dtype=torch.uint8), columns(most), scale)
            assert made.width * made.height <= 2**20
    with pytest.raises(sample.Problem):
        sample._check_pixels(most + 1 + 2 * columns(most + 1), columns(most + 1 + 2 * columns(most + 1)), scale, *shape)


def test_files_must_fit_on_the_disk_in_bytes_and_in_number(tmp_path, monkeypatch):
    def disk(blocks, files, total=100):
        about = os.statvfs_result((4096, 4096, 1000, blocks, blocks, total, files, files, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda path: about)

    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    disk(10, 10)
    sample._check_space(10, tmp_path / "new/deep", image)
    for blocks, files in ((9, 10), (10, 9)):
        disk(blocks, files)
        with pytest.raises(sample.Problem, match="at most 9 images"):
            sample._check_space(10, tmp_path / "new/deep", image)
    disk(10, 0, total=0)  # a file system that does not count files
    sample._check_space(10, tmp_path / "new/deep", image)


def test_pieces_are_the_images_of_one_piece(tmp_path, capsys, monkeypatch):
    """More images than one call of the network makes: the files and the picture show images 0 … n - 1 in their order."""
    monkeypatch.setattr(sample, "PATIENCE", 0.0)
    assert run("--n", "260", "--out", str(tmp_path / "a"), "--grid", str(tmp_path / "a.png")) == 0
    assert "250 of 260 images, about 0 min left" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [f"{index:06d}.png" for index in range(260)]
    with Image.open(tmp_path / "a.png") as whole:
        for index in (0, 249, 250, 259):
            row, column = divmod(index, 17)
            with Image.open(tmp_path / f"a/{index:06d}.png") as one:
                shown = whole.crop((column * 36, row * 36, column * 36 + 32, row * 36 + 32)).resize(one.size, 0)
                assert shown.tobytes() == one.tobytes()
