# SPDX-License-Identifier: Apache-2.0
"""Packs a data set: writes the images of a reader into one file. Folders and zips are read one image at a time."""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from eldistill.data.images import Stream, split_heldout
from eldistill.data.labels import count_labels, renumber
from eldistill.errors import Problem
from eldistill.registry import readers
from eldistill.tensors import grow_tensors, save_tensors

COVERED_BY = "data"
# Number of images in official data sets. A setting whose `count` names one is packed only if its source has that number.
COUNTS = {"cifar10": 50_000, "ffhq": 70_000, "afhqv2": 15_803, "imagenet": 1_281_167}


def pack_dataset(
    section: dict, path: str | Path, folder: str | None = None, say=print, conditional: Sequence[str] = ()
) -> dict:
    """Read the source of a resolved data section and write one packed file. Returns its description.

    folder: folder with the files that would otherwise be fetched. say: gets a sentence about everything that was left out or
    decided. conditional: data settings with labels: true that read these images. In the description `class_names` has C texts and
    `class_counts` C numbers of train images; both are empty without labels. Raises Problem, also for images without labels if
    `conditional` names a setting; then no file is written.
    """
    source = section["source"]
    found = importlib.import_module(f"eldistill.data.readers.{source}").read({**section, "folder": folder})
    classes_known = bool(found.names) if isinstance(found, Stream) else bool((found[1] >= 0).any())
    if conditional and not classes_known:
        raise Problem(
            f"data.{conditional[0]}.labels is true, but {section.get('path') or source} has no classes; set it to false, add "
            "dataset.json, or sort the images into a folder for each class"
        )
    if isinstance(found, Stream):
        return _pack_stream(found, section, path, say)
    images, labels, heldout, heldout_labels = found
    check_count(section, len(images))
    classes = renumber(np.concatenate([labels, heldout_labels]), dict(enumerate(readers()[source].classes)))
    labels, heldout_labels = np.split(classes.numbers, [len(labels)])
    for note in classes.notes:
        say(note)
    if section.get("limit") and section["limit"] < len(images):
        _, kept = split_heldout(len(images), section["limit"])
        images, labels = images[kept], labels[kept]
    about = _describe(section, (labels, heldout_labels), images.shape[1:], classes.names) | {
        "sha256": hashlib.sha256(images.tobytes() + heldout.tobytes()).hexdigest(),
        "mean": round(float(images.mean(dtype=np.float64)) / 255, 6),
        "std": round(float(images.std(dtype=np.float64)) / 255, 6),
    }
    seen = _Repeats(len(images), len(heldout))
    for part, arrays in (("train", images), ("heldout", heldout)):
        for array in arrays:
            seen.add(part, np.ascontiguousarray(array))
    seen.report(say)
    tensors = {
        "train_images": images, "train_labels": labels, "heldout_images": heldout, "heldout_labels": heldout_labels,
    }  # fmt: skip
    save_tensors(path, {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}, about)
    return about


def _pack_stream(stream: Stream, section: dict, path: str | Path, say) -> dict:
    # Only one image is in memory. The results equal those of all images at once.
    check_count(section, len(stream.labels))
    for note in stream.notes:
        say(note)
    train, heldout = split_heldout(len(stream.labels), section["heldout"])
    if section.get("limit") and section["limit"] < len(train):
        train = train[split_heldout(len(train), section["limit"])[1]]
    seen = _PixelMoments() if stream.kind == "U8" else _LatentMoments(stream.shape[0] // 2)
    total, repeats = hashlib.sha256(), _Repeats(len(train), len(heldout))
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
                repeats.add(part, image)
                if part == "train":
                    seen.add(image)
                file.append(f"{part}_images", image)
        mean, std = seen.result()
        file.about = about = about | {"sha256": total.hexdigest(), "mean": mean, "std": std}
    repeats.report(say)
    return about


def check_count(section: dict, number: int) -> None:
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
        "classes": len(names), "class_names": names, "class_counts": count_labels(parts[0], len(names)),
    }  # fmt: skip


class _Repeats:
    """Counts held-out images that equal a train image, by 8 bytes of a hash of each: 10 MB for a million images."""

    def __init__(self, train: int, heldout: int):
        self.found = {"train": np.zeros(train, np.uint64), "heldout": np.zeros(heldout, np.uint64)}
        self.count = {"train": 0, "heldout": 0}

    def add(self, part: str, image: np.ndarray) -> None:
        digest = hashlib.blake2b(image.data, digest_size=8).digest()
        self.found[part][self.count[part]] = int.from_bytes(digest, "little")
        self.count[part] += 1

    def report(self, say) -> None:
        equal = int(np.isin(self.found["heldout"], self.found["train"]).sum())
        if equal:
            say(
                f"{equal:,} of {self.count['heldout']:,} held-out images equal a train image, so that distances to held-out images say "
                "less about new images; remove duplicates from the source"
            )


class _PixelMoments:
    """Mean and standard deviation of uint8 images in units of 255, computed exactly and rounded at the end."""

    longest: float | list = 0.123456  # the longest value that a description can have

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
    """Mean and standard deviation of each channel of raw latents, including the encoder's noise."""

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
