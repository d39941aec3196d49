# SPDX-License-Identifier: Apache-2.0
"""A data set becomes one packed file: uint8 images, integer labels, train and held-out apart.

Networks see x = 0.5 (u/255 - mean) / std, so that sigma_data = 0.5 holds; metrics see uint8. To add a kind of
source, add a reader: a function of the data section that returns (images, labels, held-out images, held-out labels).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from eldistill.fetching import fetch
from eldistill.files import NonFinite, Problem, atomic, load_tensors, save_tensors

VERSION = 1
SIGMA_DATA = 0.5
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

# --- codec --------------------------------------------------------------------------------------------


def encode(images: torch.Tensor, codec: dict, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 to x = 0.5 (u/255 - mean) / std. With mean 0.5, std 0.25 this is EDM's u/127.5 - 1."""
    return (images.to(dtype) / 255 - codec["mean"]) * (SIGMA_DATA / codec["std"])


def decode(x: torch.Tensor, codec: dict) -> torch.Tensor:
    """The inverse of `encode`, clipped and rounded half up to uint8 (EDM adds 128 and truncates: the same).

    Raises NonFinite for a NaN or an infinity, which a cast would hide as a black or a white pixel.
    """
    if not bool(x.isfinite().all()):
        raise NonFinite(f"an image is not finite in {int((~x.isfinite()).sum())} of its values, shape {tuple(x.shape)}; "
                        "the network that made it is broken")  # fmt: skip
    level = (x.double() * (codec["std"] / SIGMA_DATA) + codec["mean"]) * 255
    return (level + 0.5).clamp(0, 255).to(torch.uint8)


def limits(codec: dict) -> tuple[float, float]:
    """The encoded values of uint8 0 and 255."""
    return -codec["mean"] * SIGMA_DATA / codec["std"], (1 - codec["mean"]) * SIGMA_DATA / codec["std"]


class Reals:
    """The encoded images of one part of a packed file, on a device.

    images: uint8 [n, c, h, w]. labels: int64 [n], -1 where there is none. label_dim: width of the one-hot labels,
    0 for networks that see none.
    """

    sigma_data = SIGMA_DATA

    def __init__(self, images, labels, codec: dict, label_dim: int, device="cpu", dtype=torch.float32):
        self.images, self.classes = images.to(device), labels.to(device)
        self.codec, self.label_dim, self.dtype = codec, label_dim, dtype

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return tuple(self.images.shape[1:])

    def labels(self, indices: torch.Tensor) -> torch.Tensor | None:
        """One-hot labels [len(indices), label_dim], or None."""
        if not self.label_dim:
            return None
        return torch.nn.functional.one_hot(self.classes[indices], self.label_dim).to(self.dtype)

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encoded images [len(indices), c, h, w] and their one-hot labels."""
        return encode(self.images[indices], self.codec, self.dtype), self.labels(indices)


def load(path: str | Path, part: str = "train") -> tuple[torch.Tensor, torch.Tensor, dict]:
    """(uint8 images [n, c, h, w], labels [n], description) of a packed file; part is train or heldout."""
    tensors, about = load_tensors(path)
    if f"{part}_images" not in tensors:
        raise Problem(f"{path} is not a packed data set; delete it and run `snakemake all`")
    return tensors[f"{part}_images"], tensors[f"{part}_labels"], about


def reals(path: str | Path, codec: dict, labels: bool, device="cpu", dtype=torch.float32, part: str = "train") -> Reals:
    """A packed file as Reals; labels: whether networks are conditioned on them. Raises Problem if there are none."""
    images, classes, about = load(path, part)
    if labels and not about["classes"]:
        raise Problem(
            f"{path} has no labels, but its data setting has labels: true; set it to false or add dataset.json"
        )
    return Reals(images, classes, codec, about["classes"] if labels else 0, device, dtype)


# --- packing ------------------------------------------------------------------------------------------


def pack(section: dict, path: str | Path, folder: str | None = None) -> dict:
    """Read the source of a data section and write one packed file; returns its description. Raises Problem.

    folder: where files lie that would otherwise be fetched.
    """
    images, labels, heldout, heldout_labels = READERS[section["source"]]({**section, "folder": folder})
    known = labels >= 0
    classes = int(max(labels.max(), heldout_labels.max())) + 1 if known.all() else 0
    if section.get("limit") and section["limit"] < len(images):
        _, kept = split(len(images), section["limit"])
        images, labels = images[kept], labels[kept]
    if len(images) < 2 or len(heldout) < 2:
        raise Problem(
            f"{len(images)} train and {len(heldout)} held-out images; expected at least 2 of each: change `heldout`"
        )
    about = {
        "source": section["source"],
        "train": len(images),
        "heldout": len(heldout),
        "shape": list(images.shape[1:]),
        "classes": classes,
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
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise Problem(f"{path} cannot be read ({error.strerror}); give the path of cifar-10-python.tar.gz") from None
    if digest != section.get("md5", CIFAR10_MD5):
        raise Problem(f"{path} has md5 {digest}, cifar-10-python.tar.gz has {CIFAR10_MD5}; fetch it again")
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


def read_folder(section: dict) -> Arrays:
    """A folder or zip of images, in sorted order of their names; labels from dataset.json ({"labels": [[name, int], …]}),
    or, where there is none, from the top level's folders, in sorted order, if there are several.

    With `resolution` images are cropped and resized as `crop` says (see CROPS); without, all must be square and of one
    size. One colour image makes all of them three channels.
    """
    from PIL import Image

    images, names = [], []
    table: dict[str, int] = {}
    listed = False  # a dataset.json without labels says that there are none
    for name, content in _members(Path(section["path"])):
        if name == "dataset.json":
            table, listed = _labels(content, section["path"]), True
            continue
        try:
            picture = Image.open(io.BytesIO(content))
            if picture.mode.startswith("I"):  # 16 bits of grey
                picture = Image.fromarray(np.rint(np.asarray(picture, np.float64) / 257).astype(np.uint8))
            picture = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
        except OSError:
            raise Problem(f"{section['path']}: {name} is not an image; remove it or put it elsewhere") from None
        if section["resolution"]:
            picture = CROPS[section.get("crop", "square")](picture, section["resolution"])
        images.append(np.asarray(picture))
        names.append(name)
    if not images:
        raise Problem(f"{section['path']} has no images; expected png, jpg, bmp, webp or tif files")
    colour = any(image.ndim == 3 for image in images)
    shapes = {image.shape[:2] for image in images}
    if len(shapes) > 1 or any(h != w for h, w in shapes):
        raise Problem(
            f"{section['path']} has images of {len(shapes)} sizes, such as {sorted(shapes)[0]}; set `resolution`"
        )
    stack = [image if not colour or image.ndim == 3 else np.repeat(image[..., None], 3, 2) for image in images]
    array = np.stack(stack).transpose(0, 3, 1, 2) if colour else np.stack(stack)[:, None]
    tops = sorted({name.split("/", 1)[0] for name in names if "/" in name})
    if not listed and len(tops) > 1:
        table = {name: tops.index(name.split("/", 1)[0]) for name in names if "/" in name}
    unknown = [name for name in names if table and name not in table]
    if unknown:
        raise Problem(f"{section['path']}/dataset.json has no label for {unknown[0]}; expected one for every image")
    return _parts(array, np.array([table.get(name, -1) for name in names]), section["heldout"])


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


def _labels(content: bytes, path: str) -> dict[str, int]:
    try:
        pairs = json.loads(content).get("labels") or []
        table = {str(name): label for name, label in (pairs.items() if isinstance(pairs, dict) else pairs)}
    except (ValueError, TypeError, AttributeError):
        table = {"": None}
    if not all(isinstance(label, int) and label >= 0 for label in table.values()):
        raise Problem(f'{path}/dataset.json is not understood; expected {{"labels": [[name, whole number], …]}}')
    return table


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    endings = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
    if path.is_dir():
        for file in sorted(path.rglob("*"), key=lambda file: file.relative_to(path).as_posix()):
            if file.suffix.lower() in endings or file == path / "dataset.json":
                yield file.relative_to(path).as_posix(), file.read_bytes()
    elif path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.lower().endswith(endings) or name == "dataset.json":
                    try:
                        yield name, archive.read(name)
                    except (zipfile.BadZipFile, zlib.error) as error:
                        raise Problem(f"{path} is damaged at {name} ({error}); make it again") from None
    else:
        raise Problem(f"{path} is neither a folder nor a zip file; set `path` of the data setting")


def write_zip(pack: str | Path, path: str | Path, parts=("train", "heldout")) -> int:
    """The images of a packed file as a zip that EDM's code reads: PNGs, nothing compressed, labels in dataset.json.

    Returns how many images it holds. Raises Problem.
    """
    from PIL import Image

    labels: list[list] = []
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for part in parts:
            images, classes, _ = load(pack, part)
            for image, label in zip(images.numpy(), classes.tolist(), strict=True):
                name = f"{len(labels) // 1000:05d}/img{len(labels):08d}.png"
                png = io.BytesIO()
                Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(
                    png, "PNG", compress_level=0
                )
                archive.writestr(name, png.getvalue())
                labels.append([name, label])
        known = all(label >= 0 for _, label in labels)
        archive.writestr("dataset.json", json.dumps({"labels": labels if known else None}))
    return len(labels)


READERS: dict[str, Callable[[dict], Arrays]] = {
    "digits": read_digits,
    "idx": read_idx,
    "cifar10": read_cifar10,
    "folder": read_folder,
}
