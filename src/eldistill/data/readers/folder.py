# SPDX-License-Identifier: Apache-2.0
"""The reader of a folder or zip of images; one file is in memory at a time.

All images are examined before the first one is packed: whether any has colour, which sizes occur, and whether a rule covers
each of them (eldistill.data.pictures, docs/images.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eldistill.data import badfiles, foreign, labels, pictures
from eldistill.data.containers import Container, open_container
from eldistill.data.images import Stream
from eldistill.data.pictures import Rules
from eldistill.errors import Problem
from eldistill.external.listing import Listing
from eldistill.outside import locate

RECIPE = ("folders", 1)
OPTIONS = ("path", "crop", "resolution", "background", "orientation", "bits")
NEEDS = ("path",)
MODULES = ("pictures",)
SMALLEST = 4  # pixels a side, as `resolution` has it: judges and embedding networks halve the image
ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip


def read(section: dict) -> Stream:
    """A folder or zip of images, in sorted order of their names; labels from dataset.json ({"labels": [[name, int], …]}),
    or, where there is none, from folders of classes (see eldistill.data.labels).

    With `resolution` images are cropped and resized as `crop` says (see CROPS in pictures.py); without, all must be square and
    of one size. One colour image makes all of them three channels. Raises Problem.
    """
    path, rules = locate(section["path"]), Rules.of(section)
    with open_container(path) as container:
        files = container.list(ENDINGS)
        if not files.names:
            raise Problem(
                "; ".join(
                    [
                        f"{path} has no images; expected png, jpg, gif, bmp, webp, tif or ppm files",
                        *files.left_out(),
                        *foreign.advice(files.others),
                    ]
                )
            )
        classes = labels.labels_of_listing(path, files, container)
        with _listing_all(path, files, rules):
            seen = _survey(path, files, container, rules)
    seen.check(path, rules)

    def read_these(indices: np.ndarray) -> Iterator[np.ndarray]:
        with open_container(path) as container:
            for index in indices:
                with _listing_all(path, files, rules):
                    array = _pixels(path, files.names[index], container, rules)
                planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
                yield np.repeat(planes, 3, 0) if seen.colour and len(planes) == 1 else planes

    side = rules.resolution or next(iter(seen.sizes))[0]
    notes = [*files.left_out(), *seen.notes(rules), *classes.notes]
    return Stream((3 if seen.colour else 1, side, side), "U8", classes.numbers, read_these, classes.names, notes)


def _pixels(path: Path, name: str, container: Container, rules: Rules) -> np.ndarray:
    with pictures.open_picture(path, name, container) as picture:
        return pictures.fit_resolution(pictures.read_pixels(picture, rules), rules)


def _listing_all(path: Path, files: Listing, rules: Rules) -> AbstractContextManager[None]:
    seen = Survey()
    # Transparent pixels are reported by `Survey.check`, which counts them.
    filled = dataclasses.replace(rules, background=rules.background or (0, 0, 0))

    def examine(container: Container, name: str) -> None:
        with pictures.open_picture(path, name, container, complete=False) as picture:
            _look(name, picture, rules, seen)
            size = picture.size
        _pixels(path, name, container, filled)
        seen.sizes.setdefault(size, name)

    return badfiles.listing_all(path, files.names, examine, lambda: seen.sizes and seen.check(path, rules))


# --- a survey of all images -----------------------------------------------------------------------------


@dataclass
class Survey:
    """The properties of all pictures of a source. colour: whether any has colour. sizes: {(width, height): the first picture of
    that size}. Lists are names of pictures: hiding: with transparent pixels. turned: with an EXIF orientation. several: with
    further frames, of which there are `frames`. deep, wide: grey of 16 and of 32 bits, `highest` their largest value. fine:
    coloured, of 16 bits, `brightest` the largest of their upper eight.
    """

    colour: bool = False
    sizes: dict[tuple[int, int], str] = field(default_factory=dict)
    hiding: list[str] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    frames: int = 0
    deep: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)
    highest: int = 0
    fine: list[str] = field(default_factory=list)
    brightest: int = 0

    def notes(self, rules: Rules) -> list[str]:
        """Sentences about orientations and frames that are ignored."""
        found = []
        if self.turned and rules.orientation == "ignore":
            found.append(
                f"{_some(self.turned)} an EXIF orientation, which is ignored, as EDM does; `orientation: exif` turns them"
            )
        if self.several:
            found.append(
                f"{_some(self.several)} further frames or pages; the first is taken, {self.frames:,} are left out"
            )
        return found

    def check(self, path: Path, rules: Rules) -> None:
        """Raise Problem if the sizes differ without `resolution`, or if the pictures need a key that the data setting lacks."""
        if self.hiding and rules.background is None:
            raise Problem(f"{path}: {_some(self.hiding)} transparent pixels; {pictures.BACKGROUND}")
        self._check_bits(path, rules)
        if not rules.resolution:
            self._check_sizes(path)

    def _check_sizes(self, path: Path) -> None:
        first, *others = sorted(self.sizes)
        if not others and first[0] == first[1] >= SMALLEST:
            return
        shown = [f"{self.sizes[size]} with {size[0]}x{size[1]} pixels" for size in (first, *others[-1:])]
        small = f"fewer than {SMALLEST} pixels a side" if first[0] == first[1] else "another shape than squares"
        what = f"{len(self.sizes)} sizes" if others else small
        raise Problem(
            f"{path} has images of {what}, such as {' and '.join(shown)}; set `resolution` in the data setting to a number "
            f"of pixels, such as {max(SMALLEST, min(first))}, and all are made squares of that side"
        )

    def _check_bits(self, path: Path, rules: Rules) -> None:
        bits = max(1, self.highest.bit_length())
        if rules.bits is None and self.wide:
            raise Problem(
                f"{path}: {_some(self.wide)} whole numbers of 32 bits, or with a sign, up to {self.highest:,}; write `bits: {bits}` "
                f"into the data setting if 2^{bits} - 1 is white, or another number of bits"
            )
        if rules.bits is None and self.deep and bits < 16:
            raise Problem(
                f"{path}: {_some(self.deep)} 16 bits of grey, but no value is above {self.highest:,}; write `bits: {bits}` into the "
                f"data setting if 2^{bits} - 1 is white, or `bits: 16` if they are meant to be so dark"
            )
        dark = self.fine and rules.bits is None and self.brightest < 128
        if dark or (self.fine and rules.bits not in (None, 16)):
            raise Problem(
                f"{path}: {_some(self.fine)} colours of 16 bits, of which the upper 8 are read, and they reach {self.brightest} of 255; "
                "save them with 8 bits, or write `bits: 16` into the data setting if they are meant to be so dark"
            )


def _some(names: list[str]) -> str:
    return f"{names[0]} has" if len(names) == 1 else f"{len(names):,} pictures, such as {names[0]}, have"


def _survey(path: Path, files: Listing, container: Container, rules: Rules) -> Survey:
    # Mode and size are at the beginning of a file, so that few pictures must be decoded for them.
    seen, known = Survey(), set()
    for name in files.names:
        with pictures.open_picture(path, name, container, complete=False) as picture:
            kind = picture.mode, picture.size
            _look(name, picture, rules, seen)
            if not rules.resolution and kind not in known:
                picture.load()  # a damaged picture may claim any size: report the damage, not the sizes
            known.add(kind)
            seen.sizes.setdefault(kind[1], name)
    return seen


def _look(name: str, picture, rules: Rules, seen: Survey) -> None:
    mode, fine = picture.mode, pictures.has_16_bit_colours(picture)
    if mode not in pictures.KNOWN:
        kind = "floating-point numbers" if mode == "F" else f"the mode {mode}"
        raise Problem(f"it has {kind}, for which there is no rule; save it as 8-bit grey or RGB")
    if mode == "RGB" and fine and "transparency" in picture.info:
        raise Problem("it has a transparent colour of 16 bits, which 8 bits cannot name; save it as 8-bit RGBA")
    if pictures.is_turned(picture):
        seen.turned.append(name)
    if getattr(picture, "is_animated", False):
        seen.several.append(name)
        seen.frames += picture.n_frames - 1
    inside = fine or mode in pictures.PALETTE | pictures.ALPHA | pictures.DEEP or "transparency" in picture.info
    grey = _look_inside(name, picture, rules, seen) if inside else mode in pictures.GREY
    seen.colour |= not grey


def _look_inside(name: str, picture, rules: Rules, seen: Survey) -> bool:
    # Examines the pixels where mode and size are not enough. Returns whether the picture is grey.
    wide = picture.mode == "I" and picture.format == "TIFF"  # elsewhere Pillow's I holds 16 bits
    deep, fine = picture.mode in pictures.DEEP, pictures.has_16_bit_colours(picture)
    picture.load()
    opacity = pictures.opacity_of(picture)
    if opacity is not None and opacity.min() < 255:
        seen.hiding.append(name)
        if rules.background is None:
            return True  # `check` refuses it after all pictures have been examined
    if deep:
        (seen.wide if wide else seen.deep).append(name)
        seen.highest = max(seen.highest, int(np.asarray(picture).max()))
        if wide and rules.bits is None:
            return True
    array = pictures.read_pixels(picture, rules)
    if fine:
        seen.fine.append(name)
        seen.brightest = max(seen.brightest, int(array.max()))
    return array.ndim == 2
