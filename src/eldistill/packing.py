# SPDX-License-Identifier: Apache-2.0
"""From a source to a pack, and from a pack to a zip: readers of what data sets come as, one image in memory where they are large.

To add a kind of source, add a reader: a function of the data section that returns (images, labels, held-out images, held-out
labels), or a Stream of what memory may not hold. A change here that changes packs raises VERSION in data.py.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from eldistill import latents, listing
from eldistill.data import load
from eldistill.fetching import fetch
from eldistill.files import Problem, atomic, grow_tensors, save_tensors

# Images of the official data sets. A setting whose `count` names one is packed only if its source has as many.
COUNTS = {"cifar10": 50_000, "ffhq": 70_000, "afhqv2": 15_803, "imagenet": 1_281_167}
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Stream:
    """Images that are read one by one, each time that they are asked for.

    shape: of one image; kind: U8 or F32. labels: int64 [n], -1 where there is none. read: from indices to arrays of that
    shape, in their order.
    """

    shape: tuple[int, ...]
    kind: str
    labels: np.ndarray
    read: Callable[[np.ndarray], Iterator[np.ndarray]]


# --- packing ------------------------------------------------------------------------------------------


def pack(section: dict, path: str | Path, folder: str | None = None) -> dict:
    """Read the source of a data section and write one packed file; returns its description. Raises Problem.

    folder: where files lie that would otherwise be fetched.
    """
    found = READERS[section["source"]]({**section, "folder": folder})
    if isinstance(found, Stream):
        return _pack_stream(found, section, path)
    images, labels, heldout, heldout_labels = found
    _counted(section, len(images))
    classes = _classes(labels, heldout_labels)
    if section.get("limit") and section["limit"] < len(images):
        _, kept = split(len(images), section["limit"])
        images, labels = images[kept], labels[kept]
    about = _describe(section, len(images), len(heldout), images.shape[1:], classes) | {
        "sha256": hashlib.sha256(images.tobytes() + heldout.tobytes()).hexdigest(),
        "mean": round(float(images.mean(dtype=np.float64)) / 255, 6),
        "std": round(float(images.std(dtype=np.float64)) / 255, 6),
    }
    tensors = {
        "train_images": images, "train_labels": labels.astype(np.int64),
        "heldout_images": heldout, "heldout_labels": heldout_labels.astype(np.int64),
    }  # fmt: skip
    save_tensors(path, {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}, about)
    return about


def _pack_stream(stream: Stream, section: dict, path: str | Path) -> dict:
    # One image in memory at a time; the numbers are those of all at once.
    _counted(section, len(stream.labels))
    train, heldout = split(len(stream.labels), section["heldout"])
    classes = _classes(stream.labels[train], stream.labels[heldout])
    if section.get("limit") and section["limit"] < len(train):
        train = train[split(len(train), section["limit"])[1]]
    seen = _PixelMoments() if stream.kind == "U8" else _LatentMoments(stream.shape[0] // 2)
    total = hashlib.sha256()
    about = _describe(section, len(train), len(heldout), stream.shape, classes)
    longest = about | {"sha256": total.hexdigest(), "mean": seen.longest, "std": seen.longest}
    parts = {"train": train, "heldout": heldout}
    shapes = {f"{part}_images": (stream.kind, (len(indices), *stream.shape)) for part, indices in parts.items()}
    shapes |= {f"{part}_labels": ("I64", (len(indices),)) for part, indices in parts.items()}
    with grow_tensors(path, shapes, longest) as file:
        for part, indices in parts.items():
            file.append(f"{part}_labels", stream.labels[indices])
            for image in stream.read(indices):
                image = np.ascontiguousarray(image)
                total.update(image)
                if part == "train":
                    seen.add(image)
                file.append(f"{part}_images", image)
        mean, std = seen.result()
        file.about = about = about | {"sha256": total.hexdigest(), "mean": mean, "std": std}
    return about


def _counted(section: dict, count: int) -> None:
    wanted = COUNTS.get(section.get("count"), count)
    if count != wanted:
        raise Problem(
            f"{section['path'] or section['source']} has {count:,} images; {section['count']} has {wanted:,}: prepare it again, "
            "or remove `count` of the data setting if that is what you mean"
        )


def _classes(labels: np.ndarray, heldout_labels: np.ndarray) -> int:
    return int(max(labels.max(), heldout_labels.max())) + 1 if (labels >= 0).all() else 0


def _describe(section: dict, train: int, heldout: int, shape, classes: int) -> dict:
    if train < 2 or heldout < 2:
        raise Problem(f"{train} train and {heldout} held-out images; expected at least 2 of each: change `heldout`")
    return {
        "source": section["source"], "train": train, "heldout": heldout, "shape": list(map(int, shape)), "classes": classes,
    }  # fmt: skip


class _PixelMoments:
    """Mean and deviation of uint8 images in units of 255, exact until they are rounded."""

    longest: float | list = 0.123456  # what takes most room in a description

    def __init__(self):
        self.count = self.total = self.squares = 0

    def add(self, image: np.ndarray) -> None:
        wide = image.astype(np.int64)
        self.count += image.size
        self.total += int(wide.sum())
        self.squares += int((wide * wide).sum())

    def result(self) -> tuple[float, float]:
        std = math.sqrt(self.count * self.squares - self.total**2) / self.count
        return round(self.total / self.count / 255, 6), round(std / 255, 6)


class _LatentMoments:
    """Mean and deviation of each channel of raw latents, the encoder's noise included; means and deviations are added."""

    def __init__(self, channels: int):
        self.longest = [-1.2345678901234567e-300] * channels
        self.count, self.total, self.squares = 0, np.zeros(channels), np.zeros(channels)

    def add(self, image: np.ndarray) -> None:
        mean, deviation = np.split(image.astype(np.float64), 2)
        self.count += mean[0].size
        self.total += mean.sum((1, 2))
        self.squares += (mean**2 + deviation**2).sum((1, 2))

    def result(self) -> tuple[list, list]:
        mean = self.total / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        return [round(float(each), 6) for each in mean], [round(float(each), 6) for each in std]


def split(count: int, heldout: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, held-out) indices, each ascending; the choice is fixed by a hash of the index, for ever."""
    if heldout >= count:
        raise Problem(f"heldout is {heldout}, but there are {count} images; expected fewer")
    order = sorted(range(count), key=lambda index: hashlib.sha256(str(index).encode()).digest())
    return np.sort(order[: count - heldout]), np.sort(order[count - heldout :])


def _parts(images: np.ndarray, labels: np.ndarray, heldout: int) -> Arrays:
    train, rest = split(len(images), heldout)
    return images[train], labels[train], images[rest], labels[rest]


def read_digits(section: dict) -> Arrays:
    """scikit-learn's 1,797 real handwritten digits: 8x8, one channel, 17 grey levels, stretched to 0 … 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return _parts(images, bunch.target, section["heldout"])


def read_idx(section: dict) -> Arrays:
    """Four IDX files (images and labels, train and test), zero-padded to `resolution`, or to its next multiple and
    averaged in blocks (28 pixels to 16: padded to 32, means of 2x2); held-out are test images."""
    arrays = []
    for part in ("train", "test"):
        images = _idx(fetch(f"{section['files']}-{part}-images", section["folder"]))[:, None]
        labels = _idx(fetch(f"{section['files']}-{part}-labels", section["folder"]))
        if len(images) != len(labels):
            raise Problem(f"{section['files']} {part}: {len(images)} images and {len(labels)} labels; expected as many")
        arrays += [_fit(images, section["resolution"]), labels.astype(np.int64)]
    return _first_of_test(arrays, section["heldout"], section["files"])


def _first_of_test(arrays: list[np.ndarray], n: int, name: str) -> Arrays:
    train, labels, test, test_labels = arrays
    if n > len(test):
        raise Problem(f"heldout is {n}, but {name} has {len(test)} test images; expected at most as many")
    return train, labels, test[:n], test_labels[:n]


def _idx(path: Path) -> np.ndarray:
    # IDX: two zero bytes, type 8 (uint8), number of dimensions, big-endian sizes, data.
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error):
        raw = b""
    sizes = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])] if len(raw) > 3 else []
    if raw[:3] != b"\0\0\x08" or not sizes or len(raw) != 4 + 4 * len(sizes) + math.prod(sizes):
        raise Problem(f"{path} is not a complete IDX file of bytes; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


def _fit(images: np.ndarray, resolution: int | None) -> np.ndarray:
    size = images.shape[-1]
    resolution = resolution or size
    times = -(-size // resolution)
    missing = times * resolution - size
    if times > 1 and 4 * missing > size:
        raise Problem(f"resolution is {resolution}, but the images have {size} pixels; expected no less, or a number of "
                      f"which a multiple is little above {size}, to average blocks")  # fmt: skip
    before = missing // 2
    padded = np.pad(images, ((0, 0), (0, 0), (before, missing - before), (before, missing - before)))
    if times == 1:
        return padded
    blocks = padded.reshape(*images.shape[:2], resolution, times, resolution, times)
    return np.floor(blocks.mean((3, 5), dtype=np.float64) + 0.5).astype(np.uint8)


CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"  # of cifar-10-python.tar.gz, as its authors state it
CIFAR10 = ([f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)], ["cifar-10-batches-py/test_batch"])


def read_cifar10(section: dict) -> Arrays:
    """cifar-10-python.tar.gz (fetched, or `path`): 50,000 train images, in its order; held-out are test images. Its batches
    are pickles, which are read without executing them."""
    from eldistill.teacher.pickles import Refused, python2

    path = Path(section["path"]) if section["path"] else fetch("cifar-10-python", section["folder"])
    if section["path"]:  # what is fetched has the digest of data/sources.csv
        _check_md5(path, section.get("md5", CIFAR10_MD5))
    arrays: list[np.ndarray] = []
    with tarfile.open(path, "r:gz") as archive:
        for names in CIFAR10:
            images, labels = [], []
            for name in names:
                try:
                    batch = python2(archive.extractfile(name).read())
                    rows, classes = batch["data"], np.asarray(batch["labels"], np.int64)
                except (Refused, KeyError, TypeError, AttributeError, ValueError) as error:
                    raise Problem(f"{path}: {name} is not a batch of CIFAR-10 ({error}); fetch it again") from None
                if rows.dtype != np.uint8 or rows.shape != (len(classes), 3072):
                    raise Problem(
                        f"{path}: {name} has {rows.shape} {rows.dtype} and {len(classes)} labels; fetch it again"
                    )
                images.append(rows.reshape(-1, 3, 32, 32))
                labels.append(classes)
            arrays += [np.concatenate(images), np.concatenate(labels)]
    return _first_of_test(arrays, section["heldout"], "CIFAR-10")


def _check_md5(path: Path, wanted: str) -> None:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise Problem(f"{path} cannot be read ({error.strerror}); give the path of cifar-10-python.tar.gz") from None
    if digest != wanted:
        raise Problem(f"{path} has md5 {digest}, cifar-10-python.tar.gz has {CIFAR10_MD5}; fetch it again")


def read_folder(section: dict) -> Stream:
    """A folder or zip of images, in sorted order of their names; labels from dataset.json ({"labels": [[name, int], …]}),
    or, where there is none, from the top level's folders, in sorted order, if there are several.

    With `resolution` images are cropped and resized as `crop` says (see CROPS); without, all must be square and of one
    size. One colour image makes all of them three channels.
    """
    path, resolution = Path(section["path"]), section["resolution"]
    with _container(path) as (names_of, opened):
        names, table, listed = _names(path, names_of(listing.PICTURES), opened)
        if not names:
            raise Problem(f"{path} has no images; expected png, jpg, bmp, webp or tif files")
        kinds = set()  # mode and size stand at the beginning of a file: few pictures are decoded for them
        for name in names:
            with _picture(path, name, opened, whole=False) as picture:
                kind = _grey(picture), picture.size
                if not resolution and kind not in kinds:
                    picture.load()  # a broken picture may have any size: say that, not how many sizes there are
                kinds.add(kind)
    colour = any(not grey for grey, _ in kinds)
    shapes = sorted({(height, width) for _, (width, height) in kinds})
    if not resolution and (len(shapes) > 1 or shapes[0][0] != shapes[0][1]):
        raise Problem(f"{path} has images of {len(shapes)} sizes, such as {shapes[0]}; set `resolution`")
    tops = sorted({name.split("/", 1)[0] for name in names if "/" in name})
    if not listed and len(tops) > 1:
        table = {name: tops.index(name.split("/", 1)[0]) for name in names if "/" in name}

    def read(indices: np.ndarray) -> Iterator[np.ndarray]:
        with _container(path) as (_, opened):
            for index in indices:
                with _picture(path, names[index], opened) as picture:
                    array = _pixels(picture, resolution, section.get("crop", "square"))
                planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
                yield np.repeat(planes, 3, 0) if colour and len(planes) == 1 else planes

    side = resolution or shapes[0][0]
    return Stream((3 if colour else 1, side, side), "U8", _labels_of(names, table, path), read)


def _grey(picture) -> bool:
    return picture.mode in ("1", "L", "LA") or picture.mode.startswith("I")


def _pixels(picture, resolution: int | None, crop: str) -> np.ndarray:
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits of grey
        picture = Image.fromarray(np.rint(np.asarray(picture, np.float64) / 257).astype(np.uint8))
    picture = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
    return np.asarray(CROPS[crop](picture, resolution) if resolution else picture)


def read_latents(section: dict) -> Stream:
    """A folder or zip of .npy files, float32 [2c, r, r]: what an encoder says of each image, c means and c deviations, in
    sorted order of their names; labels from dataset.json. EDM2's container, and that of `python -m eldistill encode`."""
    path = Path(section["path"])
    with _container(path) as (names_of, opened):
        names, table, _ = _names(path, names_of(listing.ARRAYS), opened)
        if not names:
            raise Problem(f"{path} has no latents; expected .npy files, as `python -m eldistill encode` writes them")
        shape = _latent(path, names[0], opened, None).shape

    def read(indices: np.ndarray) -> Iterator[np.ndarray]:
        with _container(path) as (_, opened):
            for index in indices:
                yield _latent(path, names[index], opened, shape)

    return Stream(shape, "F32", _labels_of(names, table, path), read)


def _latent(path: Path, name: str, opened: Callable, shape: tuple | None) -> np.ndarray:
    with opened(name) as file:
        try:
            array = np.load(io.BytesIO(file.read()), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise Problem(f"{path}: {name} is no array of numbers ({error}); encode the images again") from None
    found = f"{array.dtype} {list(array.shape)}"
    if array.dtype != np.float32 or array.ndim != 3 or len(array) % 2 or array.shape[1] != array.shape[2]:
        raise Problem(
            f"{path}: {name} is {found}; expected float32, means and deviations of c channels, such as [8, 64, 64]"
        )
    if shape not in (None, array.shape):
        raise Problem(f"{path}: {name} is {found}, the first one {list(shape)}; encode the images again")
    if not np.isfinite(array).all() or array[len(array) // 2 :].min() < 0:
        raise Problem(f"{path}: {name} has deviations below 0 or values that are not finite; encode the images again")
    return array


def _square(picture, size: int):
    """EDM's center-crop: the central square of the short side, then Lanczos."""
    from PIL import Image

    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def _adm(picture, size: int):
    """ADM's center-crop (Dhariwal & Nichol 2021), as EDM2 has it: halved with a box filter while the short side is at
    least twice too long, bicubic to the right one, then the centre."""
    from PIL import Image

    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


CROPS: dict[str, Callable] = {"square": _square, "adm": _adm}


def _names(path: Path, names: list[str], opened: Callable) -> tuple[list[str], dict[str, int], bool]:
    # The images, their labels by dataset.json, and whether there is one: without labels it says that there are none.
    if listing.LABELS not in names:
        return names, {}, False
    names.remove(listing.LABELS)
    with opened(listing.LABELS) as file:
        content = file.read()
    try:
        pairs = json.loads(content).get("labels") or []
        table = {str(name): label for name, label in (pairs.items() if isinstance(pairs, dict) else pairs)}
    except (ValueError, TypeError, AttributeError):
        table = {"": None}
    if not all(isinstance(label, int) and label >= 0 for label in table.values()):
        raise Problem(f'{path}/dataset.json is not understood; expected {{"labels": [[name, whole number], …]}}')
    return names, table, True


def _labels_of(names: list[str], table: dict[str, int], path: Path) -> np.ndarray:
    unknown = next((name for name in names if table and name not in table), None)
    if unknown is not None:
        raise Problem(f"{path}/dataset.json has no label for {unknown}; expected one for every image")
    return np.array([table.get(name, -1) for name in names], np.int64)


@contextmanager
def _container(path: Path) -> Iterator[tuple[Callable, Callable]]:
    """Two functions for a folder or zip: the sorted names of the files with some endings, and of dataset.json; and one file
    of a name, opened."""
    if path.is_dir():
        yield lambda endings: listing.images(path, endings), lambda name: open(path / name, "rb")
    elif path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:

            @contextmanager
            def opened(name: str) -> Iterator[BinaryIO]:
                try:
                    with archive.open(name) as file:
                        yield file
                except (zipfile.BadZipFile, zlib.error) as error:
                    raise Problem(f"{path} is damaged at {name} ({error}); make it again") from None

            names = sorted(archive.namelist())
            yield lambda endings: [n for n in names if n.lower().endswith(endings) or n == listing.LABELS], opened
    else:
        raise Problem(f"{path} is neither a folder nor a zip file; set `path` of the data setting")


@contextmanager
def _picture(path: Path, name: str, opened: Callable, whole: bool = True):
    """An open PIL picture. Raises Problem if it is none, or if it breaks off. whole: read and checked to its end."""
    from PIL import Image

    with opened(name) as file:
        content = io.BytesIO(file.read()) if whole else file
        try:
            with Image.open(content) as picture:
                yield picture
        except OSError:
            raise Problem(f"{path}: {name} is not an image; remove it or put it elsewhere") from None


def write_zip(pack: str | Path, path: str | Path, parts=("train", "heldout")) -> int:
    """The images of a packed file as a zip that EDM's code reads: PNGs, nothing compressed, labels in dataset.json; of
    latents one that EDM2's code reads.

    Returns how many images it holds. Raises Problem.
    """
    labels: list[list] = []
    with _zip(path) as put:
        for part in parts:
            images, classes, _ = load(pack, part)
            for image, label in zip(images, classes.tolist(), strict=True):
                name, content = (_npy if image.dtype == torch.float32 else _png)(len(labels), image)
                put(name, content)
                labels.append([name, label])
        put("dataset.json", _dataset(labels))
    return len(labels)


@contextmanager
def _zip(path: str | Path) -> Iterator[Callable[[str, bytes], None]]:
    # A function that adds a file to a zip, which appears when all is done.
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        yield archive.writestr


@contextmanager
def _folder(path: str | Path) -> Iterator[Callable[[str, bytes], None]]:
    # The same for a folder, in which each file appears when it is whole.
    def put(name: str, content: bytes) -> None:
        with atomic(Path(path) / name) as temporary:
            temporary.write_bytes(content)

    yield put


def _dataset(labels: list[list]) -> bytes:
    return json.dumps({"labels": labels if all(label >= 0 for _, label in labels) else None}).encode()


def _png(index: int, image: torch.Tensor) -> tuple[str, bytes]:
    from PIL import Image

    png, array = io.BytesIO(), image.numpy()
    Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)).save(png, "PNG", compress_level=0)
    return f"{index // 1000:05d}/img{index:08d}.png", png.getvalue()


def _npy(index: int, image: torch.Tensor) -> tuple[str, bytes]:
    file = io.BytesIO()
    np.save(file, image.numpy())
    return _npy_name(index), file.getvalue()


def _npy_name(index: int) -> str:
    return f"{index // 1000:05d}/img-mean-std-{index:08d}.npy"


def write_latents(section: dict, path: str | Path, vae: str | None = None, device: str = "cpu", say=print) -> int:
    """Encode the images of a section's folder or zip, one at a time, as `read_latents` and EDM2's code read them.

    path: a zip; or a folder, in which what is there is kept: the same command continues. vae: the folder of an autoencoder;
    None fetches sd-vae-ft-mse. Returns how many images it holds. Raises Problem.
    """
    if section["source"] != "folder":
        raise Problem(
            f"source is {section['source']}; expected a data setting whose source is a folder or zip of images"
        )
    latents.load(vae, device)  # what is missing is said before the images are looked at
    stream, path = read_folder(section), Path(path)
    if stream.shape[0] != 3:
        raise Problem(f"{section['path']} has grey images; expected colours")
    count, began, last = len(stream.labels), time.monotonic(), time.monotonic()
    _counted(section, count)
    whole = path.suffix == ".zip"
    wanted = [index for index in range(count) if whole or not (path / _npy_name(index)).exists()]
    with (_zip if whole else _folder)(path) as put:
        for done, (index, image) in enumerate(zip(wanted, stream.read(np.array(wanted, np.int64)), strict=True), 1):
            put(*_npy(index, latents.moments(torch.tensor(image), vae, device)))
            if time.monotonic() - last > 60 or done == len(wanted):
                last, rate = time.monotonic(), done / max(time.monotonic() - began, 1e-9)
                say(f"{count - len(wanted) + done:>8}/{count} images  {rate:6.1f} images/s  "
                    f"{(len(wanted) - done) / rate / 3600:5.1f} h left")  # fmt: skip
        put("dataset.json", _dataset([[_npy_name(index), label] for index, label in enumerate(stream.labels.tolist())]))
    return count


READERS: dict[str, Callable[[dict], Arrays | Stream]] = {
    "digits": read_digits,
    "idx": read_idx,
    "cifar10": read_cifar10,
    "folder": read_folder,
    "latents": read_latents,
}
