# SPDX-License-Identifier: Apache-2.0
"""Files of numpy are read as numpy reads them, and everything that is not a plain array of the size that it claims is refused."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest

from eldistill.external import arrays, zips


def npy(array, **options) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def headed(text: str, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + content


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_of_numpy(tmp_path, save):
    """Every dtype of plain numbers, both orders, empty arrays and single numbers."""
    some = np.arange(12).reshape(3, 4)
    values = {code: some.astype(code) for code in ("?", "i1", "u1", "<i4", "<i8", "<f2", "<f4", "<f8", ">f4", ">i2")}
    values |= {"fortran": np.asfortranarray(some), "empty": np.empty((0, 3)), "one": np.float32(3), "cut": some[:, ::2]}
    save(tmp_path / "a.npz", **{f"x{number}": each for number, each in enumerate(values.values())})
    found = arrays.read_npz(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as wanted:
        assert list(found) == wanted.files
        for name, each in found.items():
            assert np.array_equal(each, wanted[name]) and each.dtype == wanted[name].dtype and each.flags.writeable
    assert list(arrays.read_npz(tmp_path / "a.npz", ("x1", "absent"))) == ["x1"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", npy(np.ones(3))[:-1], npy(np.ones(3)) + b"x", npy(np.array([1, "a"], object), allow_pickle=True),
     npy(np.zeros(2, [("a", "i4")])), npy(np.array(["text"])),
     headed("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"),
     headed("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"),
     headed("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 99999999999999999999), }"),
     headed("{'descr': '<V0', 'fortran_order': False, 'shape': (5,), }"),
     headed("__import__('os').system('touch canary')"), headed("(" * 9000)],
    ids=range(13),
)  # fmt: skip
def test_what_is_no_plain_array_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(arrays.BadArrays):
        arrays.read_npy(content)
    with zipfile.ZipFile("a.npz", "w") as archive:
        archive.writestr("mu.npy", content)
    with pytest.raises(arrays.BadArrays):
        arrays.read_npz("a.npz")
    assert not (tmp_path / "canary").exists()


# --- zips -------------------------------------------------------------------------------------------------


def zipped(path, method=zipfile.ZIP_DEFLATED, **members: bytes):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def opened(path, name: str) -> bytes:
    with open(path, "rb") as file, zips.open_zip(file) as archive:
        member = archive.getinfo(name)
        zips.check_member(member, path.stat().st_size)
        with zips.open_member(archive, member) as content:
            return content.read()


def test_a_member_is_read_as_zipfile_reads_it(tmp_path):
    path = zipped(tmp_path / "a.zip", a=b"x" * 10_000, b=b"")
    assert opened(path, "a") == b"x" * 10_000 and opened(path, "b") == b""
    path.write_bytes(path.read_bytes() + b"")
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"a comment"
    assert opened(path, "a") == b"x" * 10_000


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_whose_decoders_take_any_memory_are_refused(tmp_path, method):
    with pytest.raises(zips.BadZip, match="it is compressed by method"):
        opened(zipped(tmp_path / "a.zip", method, a=b"x"), "a")


def test_a_member_that_is_far_larger_than_its_zip_is_refused(tmp_path):
    with pytest.raises(zips.BadZip, match="it has 100,000,000 bytes; expected at most"):
        opened(zipped(tmp_path / "a.zip", a=bytes(10**8)), "a")


def test_no_more_is_decompressed_than_a_member_declares(tmp_path):
    """A member of 10^8 bytes that says it has 10: zipfile would decompress all before it compares."""
    path = zipped(tmp_path / "a.zip", a=bytes(10**8))
    content = path.read_bytes().replace(struct.pack("<L", 10**8), struct.pack("<L", 10))
    path.write_bytes(content)
    with pytest.raises(zips.BadZip, match="CRC"):
        opened(path, "a")


def test_overlapping_members_and_a_directory_that_is_too_long_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", zipfile.ZIP_STORED, a=bytes(10_000))
    content = path.read_bytes()
    at = content.index(zips.DIRECTORY)
    directory, end = content[at:-22], content[-22:]
    for count, sentence in ((3, "its members overlap"), (10**6, "its directory has 1,000,000 entries")):
        length = struct.pack("<HHL", min(count, 65535), min(count, 65535), count * len(directory))
        path.write_bytes(content[:at] + count * directory + end[:8] + length + end[16:])
        with pytest.raises(zips.BadZip, match=sentence):
            opened(path, "a")
