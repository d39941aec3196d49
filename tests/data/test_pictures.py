# SPDX-License-Identifier: Apache-2.0
"""Every kind of image that docs/images.md names becomes the array that its rule gives, or is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eldistill.data import dataset as data
from eldistill.data import packing, pictures
from eldistill.data.readers.folder import ENDINGS
from eldistill.errors import Problem
from eldistill.plan import params
from eldistill.plan.plan import Plan
from tests import conftest
from tests import pictures as made
from tests.conftest import ROOT

PAGE = (ROOT / "docs/images.md").read_text(encoding="utf-8")
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in PAGE.split("| image |")[1].split("\n\n")[0].splitlines()[2:]
]
KINDS = made.kinds()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def packed(contents: dict[str, bytes], **keys) -> tuple[np.ndarray, list[str]]:
    """The first image [c, h, w] of a folder with these files, and what was printed of it."""
    for name, content in contents.items():
        path = Path("source", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    said: list[str] = []
    section = {"source": "folder", "path": "source", "resolution": None, "heldout": 2} | keys
    packing.pack_dataset(section, "sets/pack", say=said.append)
    # These sets are of equal pictures, which packing says.
    return data.load_pack("sets/pack")[0][0].numpy(), [line for line in said if "equal a train image" not in line]


def four(kind: made.Kind) -> dict[str, bytes]:
    return {f"{index}.{kind.ending}": kind.content for index in range(4)}


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    planes = wanted[None] if wanted.ndim == 2 else wanted.transpose(2, 0, 1)
    return found.shape == planes.shape and bool((found == planes).all())


# --- the table ------------------------------------------------------------------------------------------


def test_the_page_and_the_files_have_the_same_rows():
    assert [row[0] for row in ROWS if len(row) != 3] == []
    assert sorted(row[0] for row in ROWS) == sorted(KINDS) and len(ROWS) > 60


@pytest.mark.parametrize(("name", "without", "rule"), ROWS, ids=[row[0] for row in ROWS])
def test_each_row_of_the_table(name, without, rule):
    """Without a key what the second column says; with the key that the rule names the array of the rule."""
    kind = KINDS[name]
    if without == "refused":
        with pytest.raises(Problem) as caught:
            packed(four(kind))
        assert "\n" not in str(caught.value) and not Path("sets/pack").exists()
        assert bool(kind.keys) == (kind.wanted is not None)
        for key in kind.keys:
            assert f"`{key}" in str(caught.value) and f"`{key}" in rule, "the sentence names the key, and the rule too"
    else:
        assert not kind.keys and {1: "grey", 3: "colour"}[len(packed(four(kind))[0])] == without
    if kind.wanted is not None:
        found, said = packed(four(kind), **kind.keys)
        assert same(found, kind.wanted)
        assert kind.note in " ".join(said) and bool(kind.note) == bool(said)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_is_stretched(bits):
    levels = made.GREY >> (8 - bits)
    found, _ = packed({f"{i}.png": made.png(bits, 0, levels[..., None]) for i in range(4)})
    assert same(found, levels * (255 // (2**bits - 1)))
    clear = made.png(bits, 0, levels[..., None], (1).to_bytes(2, "big"))  # the level 1 is transparent
    found, _ = packed({f"{i}.png": clear for i in range(4)}, background="black")
    assert same(found, np.where(levels == 1, 0, levels * (255 // (2**bits - 1))))


def test_the_endings_of_the_page_are_those_that_are_read():
    named = re.search(r"The endings\nthat are read are (.*?),", PAGE, re.S)
    sentence = re.search(r"that are read are (.*?), in small", PAGE, re.S)[1]
    assert named and {f".{each}" for each in re.findall(r"\w+", sentence) if each != "and"} == set(ENDINGS)


# --- transparency ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [None, 4])
@pytest.mark.parametrize("colour", ["white", "black", [1, 2, 3]])
def test_what_is_hidden_has_no_influence(resolution, colour):
    """Whatever lies under pixels that are quite transparent: the pack is the same, resized or not."""
    hidden = made.RGBA.copy()
    hidden[made.OPACITY == 0] = (200, 30, 10, 0)
    packs = [
        packed({f"{i}.png": made.save(image, "PNG") for i in range(4)}, background=colour, resolution=resolution)[0]
        for image in (made.RGBA, hidden)
    ]
    assert np.array_equal(*packs)
    wanted = made.over(made.COLOUR, made.OPACITY, {"white": 255, "black": 0}.get(str(colour), colour))
    if resolution:
        wanted = np.asarray(Image.fromarray(wanted).resize((4, 4), Image.Resampling.LANCZOS))
    assert same(packs[0], wanted)


@pytest.mark.parametrize(("colour", "channels"), [("white", 1), ([7, 7, 7], 1), ([7, 8, 7], 3)])
def test_grey_on_a_grey_background_stays_grey(colour, channels):
    found, _ = packed({f"{i}.png": made.save(made.LA, "PNG") for i in range(4)}, background=colour)
    background = 255 if colour == "white" else colour
    wanted = made.GREY if channels == 1 else np.repeat(made.GREY[..., None], 3, 2)
    assert same(found, made.over(wanted, made.OPACITY, background if channels == 3 else np.ravel(background)[0]))


def test_how_many_pictures_hide_something_is_said():
    contents = {f"{i}.png": made.save(made.RGBA if i % 2 else made.COLOUR, "PNG") for i in range(8)}
    with pytest.raises(
        Problem, match=r"source: 4 pictures, such as 1.png, have transparent pixels; set `background` of"
    ):
        packed(contents)


@pytest.mark.parametrize("value", ["whit", [1, 2], [1, 2, 256], [1, 2, -1], [1, 2, 0.5], [True, 0, 0], 5, "#ffffff"])
def test_a_background_that_is_none_is_one_sentence(value):
    with pytest.raises(Problem, match="background is .*; expected white, black, or three whole numbers from 0 to 255"):
        pictures.parse_background(value)
    values = conftest.shipped()
    values["data"]["ffhq64"]["background"] = value
    with pytest.raises(Problem, match=r"data\.ffhq64\.background"):
        params.from_values(values, ROOT)


def test_the_keys_of_pictures_are_for_folders_and_in_their_recipe():

    values = conftest.shipped()
    before = Plan(params.from_values(values, ROOT)).pack("ffhq64").digest
    for key, value in (("background", [1, 2, 3]), ("orientation", "exif"), ("bits", 12)):
        changed = values | {"data": values["data"] | {"ffhq64": values["data"]["ffhq64"] | {key: value}}}
        assert Plan(params.from_values(changed, ROOT)).pack("ffhq64").digest != before
        changed = values | {"data": values["data"] | {"digits": values["data"]["digits"] | {key: value}}}
        with pytest.raises(Problem, match=f"data.digits.{key} is .*does not read it"):
            params.from_values(changed, ROOT)


# --- deep grey ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(9, 16))
def test_a_set_that_uses_fewer_than_sixteen_bits_is_asked_about(bits):
    """One image of the set is enough to show that more are used."""
    values = np.linspace(0, 2**bits - 1, 64).astype(np.uint16).reshape(8, 8)
    contents = {f"{i}.tif": made.save(values, "TIFF") for i in range(4)}
    with pytest.raises(Problem, match=f"no value is above {2**bits - 1:,}; write `bits: {bits}`"):
        packed(contents)
    found, _ = packed(contents, bits=bits)
    assert int(found.min()) == 0 and int(found.max()) == 255
    assert same(packed(contents, bits=16)[0], np.rint(values / 257).astype(np.uint8))
    with pytest.raises(Problem, match=f"{bits - 1} bits from 0 to {2 ** (bits - 1) - 1:,}; change `bits`"):
        packed(contents, bits=bits - 1)
    Path("sets/pack").unlink()
    assert same(packed(contents | {"9.tif": made.save(made.DEEP, "TIFF")})[0], np.rint(values / 257).astype(np.uint8))


def test_a_negative_value_is_refused():
    with pytest.raises(Problem, match=r"0.tif: its values go from -5 to"):
        packed({f"{i}.tif": made.save(made.DEEP.astype(np.int32) - 5, "TIFF") for i in range(4)}, bits=16)


# --- orientation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_eight_orientations(form, orientation):
    """Ignored unless the key asks; a TIFF's is part of the format."""
    options = {"lossless": True} if form == "WEBP" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    options |= {"tiffinfo": {274: orientation}} if form == "TIFF" else {"exif": exif}
    contents = {f"{i}.{form.lower()}": made.save(made.COLOUR, form, **options) for i in range(4)}
    found, said = packed(contents)
    assert same(found, made.turn(made.COLOUR, orientation if form == "TIFF" else 1))
    assert any("EXIF orientation" in line for line in said) == (orientation > 1 and form != "TIFF")
    found, said = packed(contents, orientation="exif")
    assert same(found, made.turn(made.COLOUR, orientation)) and not said


# --- bounds ---------------------------------------------------------------------------------------------


def test_a_picture_of_too_many_pixels_is_one_sentence(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(Problem, match=r"0.png has more pixels than a picture should \(40\)"):
        packed({f"{i}.png": made.save(made.COLOUR, "PNG") for i in range(4)})


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what Pillow says of damage beside raising an error
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_file_of_any_kind_that_is_cut_or_spoilt_is_one_sentence_or_an_image(name):
    """No error of a decoder gets through: ten damages of each kind, each taken as an image or refused."""
    kind, draw = KINDS[name], np.random.default_rng(sum(map(ord, name)))
    for _ in range(10):
        content = bytearray(kind.content)
        if draw.integers(2):
            content = content[: draw.integers(len(content))]
        for _ in range(draw.integers(1, 4)):
            if content:
                content[draw.integers(len(content))] = draw.integers(256)
        try:
            packed(
                {"0." + kind.ending: bytes(content), **{f"{i}.{kind.ending}": kind.content for i in (1, 2, 3)}},
                resolution=8,
            )
        except Problem as problem:
            assert "\n" not in str(problem)
