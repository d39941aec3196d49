# SPDX-License-Identifier: Apache-2.0
"""Pictures, tables of labels and zips that claim more than they hold are refused before memory is allocated for them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from eldistill.data import pictures
from eldistill.data.readers import folder, idx
from eldistill.errors import Problem

SECTION = {"resolution": 8, "background": "white", "orientation": "ignore", "bits": None}


def read(path) -> list[np.ndarray]:
    found = folder.read(SECTION | {"path": str(path)})
    return list(found.read(np.arange(len(found.labels))))


def png(image: Image.Image | None = None, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with more chunks behind its first."""
    out = io.BytesIO()
    (image or Image.new("L", (8, 8), 100)).save(out, "PNG")
    content = out.getvalue()
    more = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return content[:33] + more + content[33:]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def test_a_picture_of_a_few_bytes_has_no_more_pixels_than_it_can_need(place):
    (place / "0.png").write_bytes(png(Image.new("1", (5000, 5000))))
    with pytest.raises(Problem, match=r"0\.png: it has 25,000,000 pixels in \d,\d+ bytes; expected at most"):
        read(place)
    noise = np.random.default_rng(0).integers(0, 255, (2900, 2900), dtype=np.uint8)  # 2^23 pixels and a little
    Image.fromarray(noise).save(place / "0.png")
    assert read(place)[0].shape == (1, 8, 8)


def test_long_texts_beside_the_pixels_are_named(place):
    (place / "0.png").write_bytes(png(None, (b"zTXt", b"note\0\0" + zlib.compress(bytes(5_000_000)))))
    with pytest.raises(
        Problem, match="0.png has texts of more than a mebibyte beside its pixels; save it without them"
    ):
        read(place)
    (place / "0.png").write_bytes(png(None, (b"tEXt", b"workflow\0" + b"x" * 5_000_000)))
    assert int(read(place)[0].mean()) == 100


def test_rows_are_blended_as_the_whole_picture():
    """More pixels than are computed at once; the formula itself on all of them."""
    draw = np.random.default_rng(0)
    for shape in ((700, 500), (700, 500, 3)):
        planes = draw.integers(0, 256, shape, dtype=np.uint8)
        opacity = draw.integers(0, 256, shape[:2], dtype=np.uint8)
        a = opacity.astype(float).reshape(*shape[:2], *[1] * (len(shape) - 2))
        wanted = np.floor((planes * a + 77 * (255 - a)) / 255 + 0.5)
        assert np.array_equal(pictures.blend_over(planes, opacity, (77, 77, 77)), wanted)
    deep = draw.integers(0, 4096, (700, 500)).astype(np.uint16)
    assert np.array_equal(pictures.eight_bits(deep, 12), np.rint(deep / (4095 / 255)))


@pytest.mark.parametrize("label", ["-1", "0.5", "1e400", "9" * 400, "null", '"a"', "[]"])
def test_absurd_labels_are_one_sentence(place, label):
    (place / "0.png").write_bytes(png())
    (place / "dataset.json").write_text(f'{{"labels": [["0.png", {label}]]}}')
    with pytest.raises(Problem, match="dataset.json (gives 0.png the label|is not understood)") as caught:
        read(place)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"labels":' * 5000, '{"labels": [' + "[]," * 2_000_000 + "[]]}", '{"labels": [["0.png", ' + "1" * 5000 + "]]}",
     json.dumps({"labels": [["0.png", 0]], "class_names": ["x" * 10_000]}), '{"labels": [["\\ud800", 0]]}'],
    ids=range(6),
)  # fmt: skip
def test_absurd_tables_are_one_sentence(place, text):
    (place / "0.png").write_bytes(png())
    (place / "dataset.json").write_text(text)
    with pytest.raises(Problem, match=r"dataset\.json is not understood") as caught:
        read(place)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("method", "sentence"),
    [(zipfile.ZIP_LZMA, "compressed by method 14"), (zipfile.ZIP_BZIP2, "compressed by method 12"),
     (zipfile.ZIP_DEFLATED, "it has 100,000,000 bytes; expected at most")],
)  # fmt: skip
def test_zips_that_unpack_to_any_size_are_one_sentence(tmp_path, method, sentence):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("0.bmp", bytes(10**8) if method == zipfile.ZIP_DEFLATED else png())
    with pytest.raises(Problem, match=sentence):
        read(tmp_path / "a.zip")


def test_an_encrypted_entry_is_named_and_one_that_is_not_read_does_not_matter(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0.png", png())
        archive.writestr("readme.txt", "x")
    content = (tmp_path / "a.zip").read_bytes()

    def encrypted(name: bytes) -> bytes:
        changed, at = bytearray(content), content.rindex(name) - 46
        changed[at + 8] |= 1
        return bytes(changed)

    (tmp_path / "a.zip").write_bytes(encrypted(b"readme.txt"))
    assert len(read(tmp_path / "a.zip")) == 1
    (tmp_path / "a.zip").write_bytes(encrypted(b"0.png"))
    with pytest.raises(Problem, match="0.png is encrypted; make the zip again without a password"):
        read(tmp_path / "a.zip")


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08", b"\0\0\x08\x01\0\0", b"\0\0\x08\x03" + b"\xff" * 12, b"\0\0\x08\x01\0\0\0\x02x", b"\0\0\x08\x01\0\0\0\x02xxx",
     b"\0\0\x08\x01\x7f\xff\xff\xff" + bytes(10**6), b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"x", b"\0\0\x08\x00x"],
    ids=range(9),
)  # fmt: skip
def test_an_idx_file_has_the_bytes_that_it_claims(tmp_path, content):
    for name, packed in (("x", content), ("x.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(Problem, match="is not a complete IDX file of bytes"):
            idx._idx(tmp_path / name)
    for name in ("x", "x.gz"):
        good = b"\0\0\x08\x02\0\0\0\2\0\0\0\3abcdef"
        (tmp_path / name).write_bytes(gzip.compress(good) if name == "x.gz" else good)
        assert idx._idx(tmp_path / name).tobytes() == b"abcdef"
