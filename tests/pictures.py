# SPDX-License-Identifier: Apache-2.0
"""Images of every kind that docs/images.md names, most by Pillow, some byte by byte: it cannot write them."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

SIZE = 8
GREY = (np.arange(64) * 4 + 3).astype(np.uint8).reshape(SIZE, SIZE)  # 3 to 255
COLOUR = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
OPACITY = np.tile(np.array([0, 1, 77, 128, 200, 254, 255, 255], np.uint8), (SIZE, 1))
OPAQUE = np.full((SIZE, SIZE), 255, np.uint8)
DEEP = (np.arange(64) * 1040).astype(np.uint16).reshape(SIZE, SIZE)  # to 65,520
TWELVE = (np.arange(64) * 65).astype(np.uint16).reshape(SIZE, SIZE)  # to 4,095
GREEN = [10, 200, 30]


@dataclass(frozen=True)
class Kind:
    """A file of one row of the table. wanted: the array [h, w] or [h, w, 3] that the rule of the row gives with these keys of
    a data section; None where no key helps. note: what is printed."""

    ending: str
    content: bytes
    wanted: np.ndarray | None
    keys: dict = field(default_factory=dict)
    note: str = ""


def save(image, form: str, **options) -> bytes:
    """The bytes of a file that Pillow writes of an array or picture."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def decoded(content: bytes, mode: str = "RGB") -> np.ndarray:
    """What Pillow makes of the first frame of a file."""
    return np.asarray(Image.open(io.BytesIO(content)).convert(mode))


def over(colours: np.ndarray, opacity: np.ndarray, background) -> np.ndarray:
    """(c a + b (255 - a)) / 255, rounded, in exact fractions."""
    planes = colours[..., None] if colours.ndim == 2 else colours
    below = np.broadcast_to(np.array(background), planes.shape).tolist()
    mixed = [
        [[(2 * (int(c) * int(a) + b * (255 - int(a))) + 255) // 510 for c, b in zip(pixel, under, strict=True)]
         for pixel, a, under in zip(*rows, strict=True)]
        for rows in zip(planes, opacity, below, strict=True)
    ]  # fmt: skip
    return np.array(mixed, np.uint8).reshape(colours.shape)


def png(bits: int, kind: int, samples: np.ndarray, transparent: bytes = b"") -> bytes:
    """A PNG byte by byte: samples [h, w, channels]; kind 0 grey, 2 RGB, 4 grey and alpha; a tRNS chunk."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        digits = [[f"{value:0{bits}b}" for value in row] for row in rows.tolist()]
        lines = [int("".join(row), 2).to_bytes(len(row) * bits // 8, "big") for row in digits]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    body = chunk(b"tRNS", transparent) if transparent else b""
    body += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def tiff(samples: np.ndarray, photometric: int, extra: int | None = None, order: str = "<") -> bytes:
    """An uncompressed TIFF byte by byte: samples [h, w, channels], uint8 or uint16; extra: 1 premultiplied alpha."""
    height, width, channels = samples.shape
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    bits = 8 * samples.dtype.itemsize
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, None), (259, 3, 1, 1), (262, 3, 1, photometric),
            (273, 4, 1, 8), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(data))]  # fmt: skip
    tags += [] if extra is None else [(338, 3, 1, extra)]
    start = 8 + len(data)
    after = start + 2 + 12 * len(tags) + 4
    file = (
        (b"II" if order == "<" else b"MM")
        + struct.pack(f"{order}HI", 42, start)
        + data
        + struct.pack(f"{order}H", len(tags))
    )
    for tag, kind, count, value in tags:
        if value is None and count * 2 > 4:
            file += struct.pack(f"{order}HHII", tag, kind, count, after)
        else:
            value = bits if value is None else value
            file += struct.pack(f"{order}HHI", tag, kind, count) + (
                struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
            )
    return file + struct.pack(f"{order}I", 0) + struct.pack(f"{order}{channels}H", *[bits] * channels)


def palette(indices: np.ndarray, colours: np.ndarray) -> Image.Image:
    """A picture with a palette."""
    picture = Image.fromarray(indices).convert("L")
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette(colours.astype(np.uint8).tobytes())
    return picture


def several(form: str, **options) -> bytes:
    """A file of four frames."""
    frames = [Image.fromarray(np.roll(COLOUR, shift, 0)) for shift in range(4)]
    return save(frames[0], form, save_all=True, append_images=frames[1:], **options)


def turned(image: np.ndarray, orientation: int, form: str) -> bytes:
    """A file whose EXIF asks to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(image, form, exif=exif)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows of stored pixels, by the definition of EXIF's eight orientations."""
    swapped = image.swapaxes(0, 1)
    return {1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1], 5: swapped, 6: swapped[:, ::-1],
            7: swapped[::-1, ::-1], 8: swapped[::-1]}[orientation]  # fmt: skip


def _with(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.dstack([GREY, alpha]), np.dstack([COLOUR, alpha])


LA, RGBA = _with(OPACITY)
LA1, RGBA1 = _with(OPAQUE)
SIXTEEN = np.arange(64, dtype=np.uint8).reshape(SIZE, SIZE) // 4
COLOURS16 = np.random.default_rng(1).integers(0, 256, (16, 3))
GREYS16 = np.repeat(np.arange(16)[:, None] * 17, 3, 1)
PALETTE, GREY_PALETTE = palette(SIXTEEN, COLOURS16), palette(SIXTEEN, GREYS16)
SHOWN = COLOURS16[SIXTEEN].astype(np.uint8)
CLEAR = np.where(SIXTEEN == 3, 0, 255)  # where an index, a level or a colour is transparent
BITS = np.indices((SIZE, SIZE)).sum(0).astype(np.uint8) % 2
RGB16 = np.random.default_rng(2).integers(0, 65536, (SIZE, SIZE, 3)).astype(np.uint16)
ONE_GREY = np.where(GREY == GREY[2, 2], 0, 255)
ONE_COLOUR = np.where((COLOUR == COLOUR[2, 2]).all(-1), 0, 255)
ONE_DEEP = np.where(DEEP == DEEP[2, 2], 0, 255)
LAB = Image.new("LAB", (SIZE, SIZE), (128, 10, 20))
CMYK = Image.fromarray(COLOUR).convert("CMYK")
MULTIPLIED = np.dstack([np.rint(COLOUR * (OPACITY[..., None] / 255)).astype(np.uint8), OPACITY])
ANIMATED = "such as 0.{}, have further frames or pages; the first is taken, {} are left out"


def _rint(values: np.ndarray, white: int) -> np.ndarray:
    return np.rint(values.astype(float) * 255 / white).astype(np.uint8)


def _unmultiplied(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.frombytes("RGBa", (SIZE, SIZE), image.tobytes()).convert("RGBA"))[..., :3]


def _jpeg(image, **options) -> bytes:
    return save(image, "JPEG", quality=95, **options)


def _pnm(magic: str, largest: int, samples: np.ndarray) -> bytes:
    return f"{magic}\n{SIZE} {SIZE}\n{largest}\n".encode() + samples.astype(">u2" if largest > 255 else "u1").tobytes()


def kinds() -> dict[str, Kind]:
    """{first cell of a row of docs/images.md: Kind}."""
    white, green = {"background": "white"}, {"background": GREEN}
    found = {
        "PNG, 1, 2, 4 or 8 bits of grey": Kind("png", png(2, 0, (GREY >> 6)[..., None]), (GREY >> 6) * 85),
        "PNG, 8 bits of grey, alpha opaque everywhere": Kind("png", save(LA1, "PNG"), GREY),
        "PNG, 8 bits of grey, some pixels transparent": Kind("png", save(LA, "PNG"), over(GREY, OPACITY, 255), white),
        "PNG, 8 bits of grey, one transparent level (tRNS)": Kind(
            "png", save(GREY, "PNG", transparency=int(GREY[2, 2])), over(GREY, ONE_GREY, 255), white),
        "PNG, 1 bit, one transparent level (tRNS)": Kind(
            "png", save(Image.fromarray(BITS * 255).convert("1"), "PNG", transparency=0), np.full_like(GREY, 255), white),
        "PNG, RGB": Kind("png", save(COLOUR, "PNG"), COLOUR),
        "PNG, RGBA, opaque everywhere": Kind("png", save(RGBA1, "PNG"), COLOUR),
        "PNG, RGBA, some pixels transparent": Kind("png", save(RGBA, "PNG"), over(COLOUR, OPACITY, GREEN), green),
        "PNG, RGB, one transparent colour (tRNS)": Kind(
            "png", save(COLOUR, "PNG", transparency=tuple(COLOUR[2, 2].tolist())), over(COLOUR, ONE_COLOUR, GREEN), green),
        "PNG, palette of colours": Kind("png", save(PALETTE, "PNG"), SHOWN),
        "PNG, palette, all pixels grey": Kind("png", save(GREY_PALETTE, "PNG"), SIXTEEN * 17),
        "PNG, palette, some pixels transparent (tRNS)": Kind(
            "png", save(PALETTE, "PNG", transparency=3), over(SHOWN, CLEAR, GREEN), green),
        "PNG, 16 bits of grey": Kind("png", save(DEEP, "PNG"), _rint(DEEP, 65535)),
        "PNG, 16 bits of grey, of which all images of the set use fewer": Kind(
            "png", save(TWELVE, "PNG"), _rint(TWELVE, 4095), {"bits": 12}),
        "PNG, 16 bits of grey, one transparent level (tRNS)": Kind(
            "png", png(16, 0, DEEP[..., None], struct.pack(">H", DEEP[2, 2])), over(_rint(DEEP, 65535), ONE_DEEP, 255), white),
        "PNG, 16 bits of grey and alpha": Kind(
            "png", png(16, 4, np.dstack([DEEP, OPACITY.astype(np.uint16) * 257])),
            over((DEEP >> 8).astype(np.uint8), OPACITY, 255), white),
        "PNG, 16 bits of colour": Kind("png", png(16, 2, RGB16), (RGB16 >> 8).astype(np.uint8)),
        "PNG, 16 bits of colour, of which all images of the set use fewer": Kind(
            "png", png(16, 2, RGB16 >> 4), (RGB16 >> 12).astype(np.uint8), {"bits": 16}),
        "PNG, 16 bits of colour, one transparent colour (tRNS)": Kind(
            "png", png(16, 2, RGB16, RGB16[2, 2].astype(">u2").tobytes()), None),
        "PNG, animated": Kind("png", several("PNG"), COLOUR, note=ANIMATED.format("png", 12)),
        "JPEG, grey": Kind("jpg", _jpeg(GREY), decoded(_jpeg(GREY), "L")),
        "JPEG, YCbCr": Kind("jpg", _jpeg(COLOUR), decoded(_jpeg(COLOUR))),
        "JPEG, CMYK": Kind("jpg", _jpeg(CMYK), decoded(_jpeg(CMYK))),
        "JPEG, several pictures (MPO)": Kind(
            "jpg", several("MPO"), decoded(several("MPO")), note=ANIMATED.format("jpg", 12)),
        "JPEG, turned by EXIF": Kind(
            "jpg", turned(COLOUR, 6, "JPEG"), decoded(save(COLOUR, "JPEG")), note="EXIF orientation, which is ignored, as EDM"),
        "PNG, turned by EXIF": Kind("png", turned(COLOUR, 6, "PNG"), COLOUR, note="4 pictures, such as 0.png, have an EXIF"),
        "GIF, grey": Kind("gif", save(GREY, "GIF"), GREY),
        "GIF, colours": Kind("gif", save(PALETTE, "GIF"), SHOWN),
        "GIF, some pixels transparent": Kind("gif", save(PALETTE, "GIF", transparency=3), over(SHOWN, CLEAR, GREEN), green),
        "GIF, animated": Kind("gif", several("GIF"), decoded(several("GIF")), note=ANIMATED.format("gif", 12)),
        "WebP, RGB": Kind("webp", save(COLOUR, "WEBP", lossless=True), COLOUR),
        "WebP, RGBA, some pixels transparent": Kind(
            "webp", save(RGBA, "WEBP", lossless=True, exact=True), over(COLOUR, OPACITY, GREEN), green),
        "WebP, animated": Kind("webp", several("WEBP", lossless=True), COLOUR, note=ANIMATED.format("webp", 12)),
        "BMP, grey": Kind("bmp", save(GREY, "BMP"), GREY),
        "BMP, RGB": Kind("bmp", save(COLOUR, "BMP"), COLOUR),
        "BMP, palette of colours": Kind("bmp", save(PALETTE, "BMP"), SHOWN),
        "PBM, 1 bit": Kind("pbm", save(Image.fromarray(BITS * 255).convert("1"), "PPM"), BITS * 255),
        "PGM, 8 bits": Kind("pgm", _pnm("P5", 100, GREY // 3), _rint(GREY // 3, 100)),
        "PGM, 12 bits that its head declares": Kind("pgm", _pnm("P5", 4095, TWELVE), _rint(TWELVE, 4095)),
        "PPM, RGB": Kind("ppm", save(COLOUR, "PPM"), COLOUR),
        "PPM, 16 bits of colour": Kind("ppm", _pnm("P6", 65535, RGB16), _rint(RGB16, 65535)),
        "PFM under the name of a PPM": Kind("ppm", b"Pf\n8 8\n-1.0\n" + GREY.astype("<f4").tobytes(), None),
        "TIFF, 1 bit": Kind("tif", save(Image.fromarray(BITS * 255).convert("1"), "TIFF"), BITS * 255),
        "TIFF, 8 bits of grey": Kind("tif", save(GREY, "TIFF"), GREY),
        "TIFF, grey and alpha, some pixels transparent": Kind("tif", save(LA, "TIFF"), over(GREY, OPACITY, 255), white),
        "TIFF, RGB": Kind("tiff", save(COLOUR, "TIFF"), COLOUR),
        "TIFF, RGBA, some pixels transparent": Kind("tif", save(RGBA, "TIFF"), over(COLOUR, OPACITY, GREEN), green),
        "TIFF, RGBA multiplied by its alpha": Kind(
            "tif", tiff(MULTIPLIED, 2, 1), over(_unmultiplied(MULTIPLIED), OPACITY, GREEN), green),
        "TIFF, palette of colours": Kind("tif", save(PALETTE, "TIFF"), SHOWN),
        "TIFF, CMYK": Kind("tif", save(CMYK, "TIFF"), np.asarray(CMYK.convert("RGB"))),
        "TIFF, YCbCr": Kind(
            "tif", save(Image.fromarray(COLOUR).convert("YCbCr"), "TIFF"),
            np.asarray(Image.fromarray(COLOUR).convert("YCbCr").convert("RGB"))),
        "TIFF, LAB": Kind("tif", save(LAB, "TIFF"), None),
        "TIFF, 16 bits of grey": Kind("tif", save(DEEP, "TIFF"), _rint(DEEP, 65535)),
        "TIFF, 16 bits of grey, big-endian": Kind("tif", tiff(DEEP[..., None], 1, order=">"), _rint(DEEP, 65535)),
        "TIFF, 16 bits of grey, of which all images of the set use fewer": Kind(
            "tif", save(TWELVE, "TIFF"), _rint(TWELVE, 4095), {"bits": 12}),
        "TIFF, 16 bits of colour": Kind("tif", tiff(RGB16, 2), (RGB16 >> 8).astype(np.uint8)),
        "TIFF, whole numbers of 32 bits": Kind(
            "tif", save(DEEP.astype(np.int32) * 16, "TIFF"), _rint(DEEP.astype(int) * 16, 2**20 - 1), {"bits": 20}),
        "TIFF, floating-point numbers": Kind("tif", save(GREY.astype(np.float32), "TIFF"), None),
        "TIFF, several pages": Kind("tif", several("TIFF"), COLOUR, note=ANIMATED.format("tif", 12)),
        "TIFF, turned by its own tag": Kind("tif", save(COLOUR, "TIFF", tiffinfo={274: 6}), turn(COLOUR, 6)),
        "PostScript under the name of a PNG": Kind("png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nquit\n", None),
        "half a PNG": Kind("png", save(COLOUR, "PNG")[:150], None),
    }  # fmt: skip
    both = PALETTE.convert("PA")
    both.putalpha(Image.fromarray(OPACITY))
    found["TIFF, palette and alpha, some pixels transparent"] = Kind(
        "tif", save(both, "TIFF"), over(SHOWN, OPACITY, GREEN), green
    )
    return found
