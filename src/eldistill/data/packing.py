# SPDX-License-Identifier: Apache-2.0
"""From a source to a pack: the readers of data sets, one image in memory where they are large.

To add a kind of source, add a reader: a function of the data section that returns (images, labels, held-out images, held-out
labels), or a Stream (folders.py) of what memory may not hold. A change here that changes packs raises the version of dataset.py.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from eldistill.data.folders import Stream, read_folder, read_latents
from eldistill.data.labels import count, renumber
from eldistill.errors import Problem
from eldistill.external.fetching import fetch
from eldistill.tensors import grow_tensors, save_tensors

COVERED_BY = "data"
# Images of the official data sets. A setting whose `count` names one is packed only if its source has as many.
COUNTS = {"cifar10": 50_000, "ffhq": 70_000, "afhqv2": 15_803, "imagenet": 1_281_167}
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


# --- packing ------------------------------------------------------------------------------------------


def pack(section: dict, path: str | Path, folder: str | None = None, say=print) -> dict:
    """Read the source of a data section and write one packed file; returns its description. Raises Problem.

    folder: where files lie that would otherwise be fetched. say: gets a sentence for each thing that was left out or decided.
    Of the description `class_names` are C texts and `class_counts` C numbers of train images, both empty without labels.
    """
    found = READERS[section["source"]]({**section, "folder": folder})
    if isinstance(found, Stream):
        return _pack_stream(found, section, path, say)
    images, labels, heldout, heldout_labels = found
    counted(section, len(images))
    classes = renumber(np.concatenate([labels, heldout_labels]), dict(enumerate(NAMES.get(section["source"], ()))))
    labels, heldout_labels = np.split(classes.numbers, [len(labels)])
    for note in classes.notes:
        say(note)
    if section.get("limit") and section["limit"] < len(images):
        _, kept = split(len(images), section["limit"])
        images, labels = images[kept], labels[kept]
    about = _describe(section, (labels, heldout_labels), images.shape[1:], classes.names) | {
        "sha256": hashlib.sha256(images.tobytes() + heldout.tobytes()).hexdigest(),
        "mean": round(float(images.mean(dtype=np.float64)) / 255, 6),
        "std": round(float(images.std(dtype=np.float64)) / 255, 6),
    }
    tensors = {
        "train_images": images, "train_labels": labels, "heldout_images": heldout, "heldout_labels": heldout_labels,
    }  # fmt: skip
    save_tensors(path, {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}, about)
    return about


def _pack_stream(stream: Stream, section: dict, path: str | Path, say) -> dict:
    # One image in memory at a time; the numbers are those of all at once.
    counted(section, len(stream.labels))
    for note in stream.notes:
        say(note)
    train, heldout = split(len(stream.labels), section["heldout"])
    if section.get("limit") and section["limit"] < len(train):
        train = train[split(len(train), section["limit"])[1]]
    seen = _PixelMoments() if stream.kind == "U8" else _LatentMoments(stream.shape[0] // 2)
    total = hashlib.sha256()
    about = _describe(section, (stream.labels[train], stream.labels[heldout]), stream.shape, stream.names)
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


def counted(section: dict, number: int) -> None:
    """Raise Problem if a section that names an official data set has another number of images."""
    wanted = COUNTS.get(section.get("count"), number)
    if number != wanted:
        raise Problem(
            f"{section['path'] or section['source']} has {number:,} images; {section['count']} has {wanted:,}: prepare it again, "
            "or remove `count` of the data setting if that is what you mean"
        )


def _describe(section: dict, parts: tuple[np.ndarray, np.ndarray], shape, names: list[str]) -> dict:
    # parts: the labels of the train and of the held-out images.
    train, heldout = map(len, parts)
    if train < 2 or heldout < 2:
        raise Problem(f"{train} train and {heldout} held-out images; expected at least 2 of each: change `heldout`")
    return {
        "source": section["source"], "train": train, "heldout": heldout, "shape": list(map(int, shape)),
        "classes": len(names), "class_names": names, "class_counts": count(parts[0], len(names)),
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
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NAMES = {"cifar10": CIFAR10_CLASSES}  # of the labels 0, 1, …, by source
CIFAR10 = ([f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)], ["cifar-10-batches-py/test_batch"])


def read_cifar10(section: dict) -> Arrays:
    """cifar-10-python.tar.gz (fetched, or `path`): 50,000 train images, in its order; held-out are test images. Its batches
    are pickles, which are read without executing them."""
    from eldistill.external.pickles import Refused, python2

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


READERS: dict[str, Callable[[dict], Arrays | Stream]] = {
    "digits": read_digits,
    "idx": read_idx,
    "cifar10": read_cifar10,
    "folder": read_folder,
    "latents": read_latents,
}
