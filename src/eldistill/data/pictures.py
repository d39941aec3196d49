# SPDX-License-Identifier: Apache-2.0
"""Converts the pictures of a folder or zip to uint8 arrays. docs/images.md lists the rule for each kind of picture.

Nothing is guessed from the values of one picture. Facts that a file does not contain (the colour behind transparent pixels, how
many of 16 bits are used) are keys of the data setting; without such a key a picture that needs it is refused. Only the decoders
of FORMATS are used, because other decoders of Pillow start programs.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eldistill.data.containers import Container
from eldistill.errors import Problem, edge
from eldistill.external.zips import Member, size_of

RECIPE = ("pictures", 1)
DAMAGED = "is a damaged image"
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM")
GREY, COLOUR, PALETTE = {"1", "L"}, {"RGB", "RGBX", "CMYK", "YCbCr"}, {"P", "PA"}
ALPHA = {"LA", "La", "RGBA", "RGBa", "PA"}  # with a plane of opacity
DEEP = {"I", "I;16", "I;16B", "I;16L", "I;16N"}  # grey of more than 8 bits
GREY_ALPHA = "grey with alpha of 16 bits"  # which Pillow opens as RGBA: a mark in its info
STRETCHED = {"L;2": 85, "L;4": 17}
KNOWN = GREY | COLOUR | PALETTE | ALPHA | DEEP
BACKGROUND = "set `background` of the data setting to the colour behind them: white, black, or three numbers such as [255, 255, 255]"
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0)}
FREE_PIXELS = 2**23  # pixels that a picture may have however small its file is; they take at most 126 MB
PIXELS_PER_BYTE = 16  # pixels that it may have more for each byte of its file
BLOCK = 2**18  # pixels that are computed at once in wide numbers
TEXTS = (
    "Decompressed data too large",
    "Too much memory used in text chunks",
)  # what Pillow says of long texts in a PNG


@dataclass(frozen=True)
class Rules:
    """The keys of a data section that decide how pictures become arrays.

    background: red, green, blue, 0 … 255, or None. orientation: ignore or exif. bits: of deep grey, None for 16 that must be
    used. resolution: pixels a side or None; crop: see CROPS.
    """

    background: tuple[int, int, int] | None = None
    orientation: str = "ignore"
    bits: int | None = None
    resolution: int | None = None
    crop: str = "square"

    @classmethod
    def of(cls, section: dict) -> Rules:
        """The rules of a resolved data section. Raises Problem for a background that is not a colour."""
        return cls(
            parse_background(section.get("background")), section.get("orientation", "ignore"), section.get("bits"),
            section["resolution"], section.get("crop", "square"),
        )  # fmt: skip


def parse_background(value) -> tuple[int, int, int] | None:
    """The colour (red, green, blue, 0 … 255) of a `background` value, None for null. Raises Problem."""
    if value is None:
        return None
    if isinstance(value, str) and value in BACKGROUNDS:
        return BACKGROUNDS[value]
    whole = isinstance(value, list | tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if whole and len(value) == 3 and all(0 <= v <= 255 for v in value):
        return tuple(value)
    raise Problem(
        f"background is {value!r}; expected white, black, or three whole numbers from 0 to 255, such as [255, 255, 255]"
    )


# --- one picture --------------------------------------------------------------------------------------


@contextmanager
def open_picture(path: Path, name: str, container: Container, complete: bool = True):
    """Context with an open PIL picture. complete: read the file to its end. Raises Problem if it is not a picture, is truncated or
    has too many pixels."""
    from PIL import Image, UnidentifiedImageError

    Image.init()  # Pillow knows five formats before that
    # Pillow's decoders raise whatever their formats lead them to; which errors these are is documented nowhere.
    with (
        container.open(name) as file,
        edge(f"{path}: {name}", "put it elsewhere, or replace it", DAMAGED),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter(
            "ignore"
        )  # Pillow's, of damaged descriptions beside the pixels: they do not name the file
        try:
            with Image.open(
                io.BytesIO(file.read()) if complete else Member(file, size_of(file)), formats=FORMATS
            ) as found:
                _check_size(found, size_of(file))
                _correct(found)
                yield found
        except Image.DecompressionBombError:
            raise Problem(f"{path}: {name} has more pixels than a picture should ({Image.MAX_IMAGE_PIXELS * 2:,}); make it "
                          "smaller, or put it elsewhere") from None  # fmt: skip
        except UnidentifiedImageError:
            raise Problem(
                f"{path}: {name} is not an image, but something else under its name; put it elsewhere, or replace it"
            ) from None
        except Problem as problem:
            raise Problem(f"{path}: {name}: {problem}") from None
        except ValueError as error:
            if any(each in str(error) for each in TEXTS):
                raise Problem(
                    f"{path}: {name} has texts of more than a mebibyte beside its pixels; save it without them"
                ) from None
            raise


def _check_size(found, size: int) -> None:
    # A few bytes can claim to be any number of pixels. Photographs have about a bit for each, flat colour has less than a hundredth.
    pixels, most = found.width * found.height, FREE_PIXELS + PIXELS_PER_BYTE * size
    if pixels > most:
        raise Problem(
            f"it has {pixels:,} pixels in {size:,} bytes; expected at most {most:,} in so small a file: make it smaller, or save it "
            "as an uncompressed TIFF or BMP"
        )


def _correct(found) -> None:
    # Corrections where Pillow describes a PNG differently from the pixels that it returns.
    raw = str(found.tile[0][3]) if found.tile else ""
    if found.mode == "RGBA" and raw.startswith("LA;16"):
        found.info[GREY_ALPHA] = True
    if raw in STRETCHED and "transparency" in found.info:  # the level as it is stored, of pixels that are stretched
        found.info["transparency"] *= STRETCHED[raw]


def has_16_bit_colours(found) -> bool:
    """Whether an open picture has 16-bit colours, or 16-bit grey with opacity, of which Pillow returns the upper eight bits."""
    return bool(found.tile) and found.mode not in DEEP and ";16" in str(found.tile[0][3])


def is_turned(found) -> bool:
    """Whether the EXIF data of an open picture ask to turn or mirror it."""
    if found.format == "TIFF":
        return False
    # Pillow would decode all of a PNG to look behind its pixels.
    if found.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & found.info.keys():
        return False
    return found.getexif().get(0x0112, 1) in range(2, 9)


def read_pixels(found, rules: Rules) -> np.ndarray:
    """The pixels of an open picture before cropping: uint8 [h, w] if it is grey, [h, w, 3] if it has colour. Raises Problem."""
    found = _upright(found, rules)
    array, opacity = _colours(found, rules), opacity_of(found)
    if opacity is not None and opacity.min() < 255:
        if rules.background is None:
            raise Problem(f"it has transparent pixels; {BACKGROUND}")
        array = blend_over(array, opacity, rules.background)
    if found.mode in PALETTE or GREY_ALPHA in found.info:
        array = array[..., 0] if (array == array[..., :1]).all() else array
    return np.ascontiguousarray(array)


def _upright(found, rules: Rules):
    # A TIFF's orientation is a part of the format, which Pillow applies by itself.
    from PIL import ImageOps

    turned = rules.orientation == "exif" or found.format == "TIFF"
    found.load()
    return ImageOps.exif_transpose(found) if turned else found


def _colours(found, rules: Rules) -> np.ndarray:
    # The colours [h, w] or [h, w, 3], also of transparent pixels.
    if found.mode in DEEP:
        return eight_bits(np.asarray(found), rules.bits or 16)
    if found.mode in PALETTE:
        return np.asarray(found.convert("RGBA"))[..., :3]
    if found.mode in ("La", "RGBa"):  # colours that are multiplied by their opacity
        found = found.convert({"La": "LA", "RGBa": "RGBA"}[found.mode])
    plain = "L" if found.mode in GREY or found.mode == "LA" else "RGB"
    return np.asarray(found if found.mode == plain else found.convert(plain))


def eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Grey values 0 … 2^bits - 1 scaled to 0 … 255 and rounded, uint8 of the same shape. Raises Problem for other values."""
    white = 2**bits - 1
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > white:
        raise Problem(
            f"its values go from {low:,} to {high:,}, those of {bits} bits from 0 to {white:,}; change `bits` of the data setting"
        )
    return _by_rows(lambda part: np.rint(np.asarray(part, np.float64) / (white / 255)).astype(np.uint8), values)


def _by_rows(function: Callable, *planes: np.ndarray) -> np.ndarray:
    # A function of each pixel, of a few rows at a time: it computes in numbers that are eight times as wide.
    rows = max(1, BLOCK // max(1, planes[0][:1].size))
    parts = [function(*(each[at : at + rows] for each in planes)) for at in range(0, len(planes[0]), rows)]
    return np.concatenate(parts) if len(parts) != 1 else parts[0]


def opacity_of(found) -> np.ndarray | None:
    """The opacity of an open picture, uint8 [h, w], 255 where it is opaque; None if it has no transparency."""
    key = found.info.get("transparency")
    if found.mode in ALPHA:
        return np.asarray(found.getchannel("A" if found.mode.endswith("A") else "a"))
    if key is None:
        return None
    if found.mode in DEEP:
        return np.where(np.asarray(found) == key, 0, 255).astype(np.uint8)
    if found.mode == "1":
        return np.where(np.asarray(found) == bool(key), 0, 255).astype(np.uint8)
    return np.asarray(found.convert("LA" if found.mode == "L" else "RGBA").getchannel("A"))


def blend_over(planes: np.ndarray, opacity: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """A picture over a background: (c a + b (255 - a)) / 255, rounded; grey stays grey on a grey background.

    planes c: uint8 [h, w] or [h, w, 3]. opacity a: uint8 [h, w]. colour b: red, green, blue, 0 … 255."""
    if planes.ndim == 2 and len(set(colour)) > 1:
        planes = np.repeat(planes[..., None], 3, 2)
    below = np.array(colour if planes.ndim == 3 else colour[0])

    def blend(part: np.ndarray, over: np.ndarray) -> np.ndarray:
        over = over.astype(np.int64)
        over = over[..., None] if part.ndim == 3 else over
        return ((2 * (part * over + below * (255 - over)) + 255) // 510).astype(np.uint8)

    return _by_rows(blend, planes, opacity)


# --- sizes --------------------------------------------------------------------------------------------


def _square(found, size: int):
    """EDM's center-crop: the central square of the short side, then Lanczos."""
    from PIL import Image

    side = min(found.size)
    left, top = (found.width - side) // 2, (found.height - side) // 2
    return found.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def _adm(found, size: int):
    """ADM's center-crop (Dhariwal & Nichol 2021), as EDM2 has it: halved with a box filter while the short side is at
    least twice too long, bicubic to the right one, then the centre."""
    from PIL import Image

    while min(found.size) >= 2 * size:
        found = found.resize((found.width // 2, found.height // 2), Image.Resampling.BOX)
    scale = size / min(found.size)
    found = found.resize((round(found.width * scale), round(found.height * scale)), Image.Resampling.BICUBIC)
    left, top = (found.width - size) // 2, (found.height - size) // 2
    return found.crop((left, top, left + size, top + size))


CROPS: dict[str, Callable] = {"square": _square, "adm": _adm}


def fit_resolution(array: np.ndarray, rules: Rules) -> np.ndarray:
    """The pixels [h, w] or [h, w, 3] cropped and resized to `rules.resolution`, unchanged if that is None."""
    from PIL import Image

    return np.asarray(CROPS[rules.crop](Image.fromarray(array), rules.resolution)) if rules.resolution else array
