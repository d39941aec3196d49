# SPDX-License-Identifier: Apache-2.0
"""A full disk is one sentence that names the full folder, whoever writes: a step, a library, or the driver."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eldistill import files
from tests.conftest import ROOT


@pytest.fixture
def small(project):
    """A function that puts a file system of 64 kB at a folder of the project and fills it."""
    mounted = []

    def fill(folder: str) -> Path:
        place = project / folder
        place.mkdir(parents=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("a small file system cannot be mounted here")
        mounted.append(place)
        (place / "ballast").write_bytes(b"\0" * (1 << 16))
        return place

    if shutil.which("mount") is None:
        pytest.skip("no mount here")
    yield fill
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


WRITERS = {
    "atomic": lambda path: files.write_text(path, "x" * 9000),
    "replaced": lambda path: files.replace_text(path, "x" * 9000),
    "appended": lambda path: files.append_line(path, "x" * 9000),
    "rows": lambda path: files.write_rows(path, [{"a": "x" * 9000}]),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_by_the_folder(small, writer):
    place = small("data/tables")
    with pytest.raises(OSError) as caught:
        WRITERS[writer](place / "main.csv")
    assert f"no space left on the disk, in {place}; free some" in files.describe_failure(caught.value)
    assert writer == "appended" or [each.name for each in place.iterdir()] == ["ballast"]


def test_an_error_without_a_code_on_a_full_disk_is_that(small):
    """Pillow says `encoder error -2 when writing image file`."""
    place = small("data/tables")
    with pytest.raises(OSError) as caught, files.atomic(place / "a.png"):
        raise OSError("encoder error -2 when writing image file")
    assert caught.value.errno == errno.ENOSPC and str(place) in files.describe_failure(caught.value)


def test_an_error_without_a_name_is_found_by_the_free_space(small):
    small("data/evaluations")
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "in data/evaluations; free some space" in files.describe_failure(error)
    assert "does not name" in files.describe_failure(error, places=[])


def test_quota_and_largest_size_have_their_own_words(tmp_path):
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(tmp_path))
    assert f"the disk quota is used up, in {tmp_path}" in files.describe_failure(quota)
    with pytest.raises(OSError) as caught, files.atomic(tmp_path / "a"):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert f"a file in {tmp_path} would be larger than allowed" in files.describe_failure(caught.value)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_the_code_in_the_text_of_safetensors_is_found(tmp_path, code):
    with pytest.raises(OSError) as caught, files.atomic(tmp_path / "a"):
        raise RuntimeError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")
    assert (caught.value.errno, caught.value.filename) == (code, str(tmp_path))


def test_a_reading_error_keeps_its_words(tmp_path):
    """Within a write, something else may be read: it is not called full, nor named by the output."""
    with pytest.raises(OSError, match=r"^\[Errno 5\] broken$"), files.atomic(tmp_path / "a"):
        raise OSError(errno.EIO, "broken")


@pytest.mark.parametrize("folder", ["data/scratch/recipes", "data/scratch"])
def test_the_driver_on_a_full_disk_is_one_sentence(small, folder):
    for name in ("workflow", "profiles"):
        shutil.copytree(ROOT / name, name, dirs_exist_ok=True)
    shutil.copy(ROOT / "Snakefile", "Snakefile")
    Path("src").symlink_to(ROOT / "src")
    small(folder)
    words = [sys.executable, "-m", "snakemake", "-n", "all", "--config", "suite=smoke"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
    said = done.stderr
    ours = [line for line in said.splitlines() if line.startswith("eldistill: ")]
    assert done.returncode == 1 and "Traceback" not in said, said
    assert len(ours) == 1 and "no space left on the disk, in " in ours[0] and folder in ours[0], said
