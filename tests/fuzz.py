# SPDX-License-Identifier: Apache-2.0
"""Mutates files of every kind that is read from outside, and measures what their readers do with them.

    python tests/fuzz.py COUNT [READER ...]     prints a table, and a JSON list in its last line

A reader may return or raise Problem with one line of text. Anything else is a failure: another exception, more memory than twice
the file and 128 MB, more than ten seconds, or a start of something. The process has a limit of memory, so that a claim of a file
that is believed ends in a MemoryError and not in a machine without memory.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image, PngImagePlugin  # noqa: E402

from eldistill import networks  # noqa: E402
from eldistill.data import dataset  # noqa: E402
from eldistill.data.readers import folder as folders  # noqa: E402
from eldistill.data.readers import idx, latents  # noqa: E402
from eldistill.errors import Problem  # noqa: E402
from eldistill.evaluate import clean, fid, references  # noqa: E402
from eldistill.external import torchfiles  # noqa: E402
from eldistill.external.machine import Tensor  # noqa: E402
from eldistill.files import read_json, read_rows  # noqa: E402
from eldistill.sampling import generators, teachers  # noqa: E402
from eldistill.teacher import ddpm, edm  # noqa: E402
from eldistill.tensors import load_tensors, save_tensors  # noqa: E402
from tests import hostile, official  # noqa: E402

SLACK, SECONDS = 128 * 2**20, 10.0
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class")
NUMBERS = (0, 1, 2, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
TOKENS = (b"-1", b"1e308", b"1e5", b"NaN", b"null", b"true", b'"x"', b"[]", b"{}", b"9" * 30, b"9" * 5000, b"[" * 2000, b"0.5",
          b'"\\ud800"', b'"\\u001b[31m"', b'"' + b"x" * 3000 + b'"', b"[[[[1]]]]", b"2147483648")  # fmt: skip


# --- mutations ------------------------------------------------------------------------------------------


def mutate(rng: random.Random, data: bytes) -> bytes:
    """A copy with a few bytes changed, removed, repeated or replaced by numbers that sizes should not have."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        at, kind = rng.randrange(len(data) or 1), rng.randrange(8)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.choice([1, 2, 8, 100])]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 16]))
        elif kind == 4:
            other = rng.randrange(len(data) or 1)
            data[at:at] = data[other : other + rng.choice([1, 10, 200])]
        elif kind == 5:
            del data[at:]
        else:
            form = rng.choice("<>") + rng.choice("BHIQ")
            value = rng.choice(NUMBERS) % 256 ** struct.calcsize(form)
            data[at : at + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(data)


def of_tokens(rng: random.Random, data: bytes) -> bytes:
    """A JSON text with a value replaced, or any mutation."""
    values = list(re.finditer(rb'-?\d[\d.e+-]*|"[^"]*"|true|false|null|\[|\{', data))
    if not values or rng.random() < 0.4:
        return mutate(rng, data)
    for _ in range(rng.choice([1, 1, 2])):
        chosen = rng.choice(values)
        data = data[: chosen.start()] + rng.choice(TOKENS) + data[chosen.end() :]
    return data


def of_png(rng: random.Random, data: bytes) -> bytes:
    """A PNG with right checksums, so that the content of its chunks is read."""
    data = bytearray(mutate(rng, data))
    at = 8
    while rng.random() < 0.9 and at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        struct.pack_into(">I", data, at + 8 + length, zlib.crc32(data[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(data)


def of_zip(inner: Callable, methods=(zipfile.ZIP_STORED,)) -> Callable:
    """Mutations of a zip: of its bytes, or of a member with a right checksum."""

    def change(rng: random.Random, data: bytes) -> bytes:
        if rng.random() < 0.5:
            return mutate(rng, data)
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            members = {each.filename: old.read(each) for each in old.infolist()}
        name = rng.choice(list(members))
        members[name] = inner(rng, members[name])
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", rng.choice(methods)) as new:
            for key, content in members.items():
                new.writestr(key, content)
        return out.getvalue()

    return change


def of_gzip(rng: random.Random, data: bytes) -> bytes:
    """Mutations of a gzip file or of its content."""
    return mutate(rng, data) if rng.random() < 0.5 else gzip.compress(mutate(rng, gzip.decompress(data)), 1)


def of_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Mutations of the description with a right length, or of any byte."""
    if rng.random() < 0.3:
        return mutate(rng, data)
    (length,) = struct.unpack_from("<Q", data)
    header = of_tokens(rng, data[8 : 8 + length])
    told = json.loads(data[8 : 8 + length])
    if "eldistill" in told.get("__metadata__", {}) and rng.random() < 0.6:  # the description inside the description
        inner = of_tokens(rng, told["__metadata__"]["eldistill"].encode()).decode("utf-8", "replace")
        header = json.dumps(told | {"__metadata__": {"eldistill": inner}}).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def of_folder(inner: Callable) -> Callable:
    """Mutations of one file of a folder that is kept as a zip of its files."""

    def change(rng: random.Random, data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            members = {each.filename: old.read(each) for each in old.infolist()}
        name = rng.choice(list(members))
        members[name] = inner(name)(rng, members[name])
        return zipped(members)

    return change


# --- the readers ----------------------------------------------------------------------------------------


@dataclass
class Reader:
    """seeds: right files. name: of the file in a folder of its own. read: what is done with it; a folder if `unpacked`. change: the
    mutation of a file."""

    seeds: list[bytes]
    name: str
    read: Callable[[Path], object]
    change: Callable[[random.Random, bytes], bytes] = mutate
    unpacked: bool = False


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def picture(kind: str, mode: str = "RGB", **options) -> bytes:
    """A small picture of Pillow's format `kind`."""
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 4), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(out, kind, **options)
    return out.getvalue()


def png() -> list[bytes]:
    """PNGs with text, a palette, opacity and 16 bits."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("note", "x" * 500, zip=True)
    texts.add_itxt("other", "y" * 50)
    deep = io.BytesIO()
    Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 400).save(deep, "PNG")
    return [
        picture("PNG", pnginfo=texts),
        picture("PNG", "P"),
        picture("PNG", "LA"),
        picture("PNG", "1"),
        deep.getvalue(),
    ]


def npz(method: Callable = np.savez, **arrays: np.ndarray) -> bytes:
    """An .npz file."""
    out = io.BytesIO()
    method(out, **arrays)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    """A .npy file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def safetensors(tensors: dict, about: dict, place: Path) -> bytes:
    """A safetensors file."""
    save_tensors(place / "made.safetensors", tensors, about)
    return (place / "made.safetensors").read_bytes()


def torch_seeds(old: bool) -> list[bytes]:
    """Files of torch.save with all that they may have, and one that calls something."""
    found = []
    base = torch.arange(12.0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    values = {
        "a": base,
        "b": base[3:9].reshape(2, 3).t(),
        "c": torch.nn.Parameter(base.half()),
        "net": net.state_dict(),
        "n": [1, 0.5],
    }
    for value in (values, net.state_dict(), {"a": hostile.Call()}):
        out = io.BytesIO()
        torch.save(value, out, _use_new_zipfile_serialization=not old)
        found.append(out.getvalue())
    return found


def network() -> tuple[torch.nn.Module, dict]:
    """A network of a few thousand numbers and its keywords."""
    kwargs = {"model_type": "SongUNet", "model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [],
              "dropout": 0.1, "use_fp16": False, "img_resolution": 4, "img_channels": 1, "label_dim": 0}  # fmt: skip
    settings = {key: value for key, value in kwargs.items() if key not in edm.UNUSED}
    return networks.build({"network": "song", **settings}, 0).eval().requires_grad_(False), kwargs


def diffusers_folder(place: Path) -> bytes:
    """A DDPM in the format of diffusers."""
    unet = {"_class_name": "UNet2DModel", "sample_size": 4, "in_channels": 1, "out_channels": 1, "block_out_channels": [8],
            "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 4,
            "add_attention": False}  # fmt: skip
    schedule = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 10,
        "beta_start": 0.1,
        "beta_end": 0.2,
        "beta_schedule": "linear",
    }
    (place / "unet").mkdir(parents=True, exist_ok=True)
    (place / "scheduler").mkdir(exist_ok=True)
    (place / "unet/config.json").write_text(json.dumps(unet))
    (place / "scheduler/scheduler_config.json").write_text(json.dumps(schedule))
    config = {"network": "ddpm", "img_channels": 1, **ddpm._unet(place / "unet/config.json")}
    config |= ddpm._schedule(place / "scheduler/scheduler_config.json")
    state = {name.removeprefix("model.unet."): each for name, each in networks.build(config, 0).state_dict().items()}
    weights = safetensors(state, {}, place)
    return zipped({"unet/config.json": json.dumps(unet).encode(), "scheduler/scheduler_config.json": json.dumps(schedule).encode(),
                   "unet/diffusion_pytorch_model.safetensors": weights})  # fmt: skip


def read_images(path: Path, **more) -> None:
    """All images of a folder or zip."""
    section = {"path": str(path), "resolution": 8, "background": "white", "orientation": "exif", "bits": 16, **more}
    found = folders.read(section)
    for _ in found.read(np.arange(len(found.labels))):
        pass


def read_latents(path: Path) -> None:
    """All latents of a folder or zip."""
    found = latents.read({"path": str(path)})
    for _ in found.read(np.arange(len(found.labels))):
        pass


def read_torch(path: Path) -> None:
    """A file of torch.save, with copies of its tensors."""

    def copies(value) -> None:
        if isinstance(value, Tensor) and value.bytes <= path.stat().st_size:
            value.value()
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            copies(each)

    with torchfiles.read_torch_file(path) as file:
        copies(file.value)


def read_pack(path: Path) -> None:
    """A packed data set, every number of it."""
    for part in ("train", "heldout"):
        images, classes, _ = dataset.load_pack(path, part)
        int(images.sum(dtype=torch.int64)) + int(classes.sum())


def convert(path: Path) -> None:
    """A pickle of EDM as a teacher."""
    edm.convert_pickle(path, path.parent / "out.safetensors")


def readers(place: Path) -> dict[str, Reader]:
    """All readers of files from outside, by name."""
    net, kwargs = network()
    about = {"config": net.config, "shape": [1, 4, 4], "label_dim": 0, "codec": {"mean": 0.5, "std": 0.25}}
    made = {"sampler": {"steps": {"1": [2.0]}}, "class_names": ["a"], "classes": 1}
    ours = functools.partial(safetensors, place=place)
    pack = {
        "train_images": torch.zeros(3, 1, 4, 4, dtype=torch.uint8),
        "train_labels": torch.zeros(3, dtype=torch.int64),
    }
    pack |= {name.replace("train", "heldout"): each.clone() for name, each in pack.items()}
    moments = {"mu": np.ones(4), "sigma": np.eye(4)}
    of_part = {
        "": np.ones((3, 4)),
        "mu_": moments["mu"],
        "sigma_": moments["sigma"],
        "root_": np.eye(4),
        "pairs_": np.ones(3),
    }
    features = {f"{name}{part}": each for part in ("train", "heldout") for name, each in of_part.items()}
    told = {name: official.Array(each, "core") for name, each in moments.items()}
    pickled = [
        official.dumps(official.edm(net, kwargs)),
        hostile.dumps(2),
        hostile.dumps(4),
    ]
    table = json.dumps({"labels": [[f"{n}.png", n % 2] for n in range(3)], "class_names": ["a", "b"]}).encode()
    small = picture("PNG", "L")
    images = {f"{n}.png": small for n in range(3)}
    latent = npy(np.ones((4, 4, 4), np.float32))
    numbers = b"\0\0\x08\x03" + struct.pack(">III", 2, 4, 4) + bytes(32)
    both = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    by_ending = lambda name: of_safetensors if name.endswith("safetensors") else of_tokens  # noqa: E731
    found = {
        "pickle of EDM": Reader(pickled, "net.pkl", convert),
        "pickle of statistics": Reader([official.dumps({"fid": told})], "refs.pkl", fid.load_statistics),
        "torch.save": Reader(torch_seeds(False), "net.pt", read_torch, of_zip(mutate)),
        "torch.save before 2020": Reader(torch_seeds(True), "net.bin", read_torch),
        "safetensors": Reader([ours({"a": torch.ones(2, 3), "b": torch.ones(4).half()}, {})], "net.safetensors",
                              lambda path: load_tensors(path, foreign=True), of_safetensors),
        "a teacher": Reader([ours(net.state_dict(), about)], "teacher.safetensors", teachers.load_denoiser, of_safetensors),
        "a generator": Reader([ours(net.state_dict(), about | made)], "g.safetensors", generators.load_generator, of_safetensors),
        "a pack": Reader([ours(pack, {"classes": 1})], "images.safetensors", read_pack, of_safetensors),
        "a folder of diffusers": Reader([diffusers_folder(place)], "net",
                                        lambda path: ddpm.convert_folder(path, path.parent / "out.safetensors"),
                                        of_folder(by_ending), unpacked=True),
        "statistics (npz)": Reader([npz(**moments), npz(np.savez_compressed, **moments)], "refs.npz", fid.load_statistics,
                                   of_zip(mutate, both)),
        "references (npz)": Reader([npz(**features), npz(np.savez_compressed, **features)], "r.npz", references.load_reference,
                                   of_zip(mutate, both)),
        "moments (npz)": Reader([npz(mean=np.ones(2), cov=np.eye(2), rows=np.ones((3, 2)))], "m.npz", clean.load_clean_reference,
                                of_zip(mutate, both)),
        "zip of pictures": Reader([zipped(images | {"dataset.json": table}, method) for method in both], "images.zip", read_images,
                                  of_zip(lambda rng, data: (of_png if data[:1] == b"\x89" else of_tokens)(rng, data), both)),
        "dataset.json": Reader([zipped(images | {"dataset.json": table})], "images", read_images,
                               lambda rng, data: zipped(images | {"dataset.json": of_tokens(rng, table)}), unpacked=True),
        "latents (npy)": Reader([zipped({"0.npy": latent, "1.npy": latent}, method) for method in both], "latents.zip", read_latents,
                                of_zip(mutate, both)),
        "IDX": Reader([gzip.compress(numbers)], "x.gz", idx._idx, of_gzip),
        "JSON of ours": Reader([b'{"a": [1, 2.5, null], "b": {"c": "d"}}'], "a.json", read_json, of_tokens),
        "CSV of ours": Reader([b"a,b\n1,2\n3,4\n"], "a.csv", read_rows),
    }  # fmt: skip
    formats = {
        "JPEG": {},
        "GIF": {"mode": "P"},
        "BMP": {},
        "WEBP": {"lossless": True},
        "TIFF": {"compression": "tiff_lzw"},
        "PPM": {},
    }
    pictures = {"PNG": png(), **{kind: [picture(kind, **options)] for kind, options in formats.items()}}
    for kind, seeds in pictures.items():
        ending = {"JPEG": "jpg", "WEBP": "webp", "TIFF": "tif"}.get(kind, kind.lower())
        found[kind] = Reader(
            seeds, f"images/0.{ending}", lambda path: read_images(path.parent), of_png if kind == "PNG" else mutate
        )
    return found


# --- measuring ------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What a reader did with its mutations. memory: the largest increase, in MB. seconds: the longest. failures: texts."""

    reader: str
    mutations: int = 0
    read: int = 0
    refused: int = 0
    memory: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def _status(key: str) -> int:
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def _put(reader: Reader, folder: Path, content: bytes) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / reader.name
    path.parent.mkdir(parents=True)
    if not reader.unpacked:
        path.write_bytes(content)
        return path
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            (path / member.filename).parent.mkdir(parents=True, exist_ok=True)
            (path / member.filename).write_bytes(archive.read(member))
    return path


def _once(reader: Reader, path: Path) -> str | None:
    # None if it was read, "" if it was refused, otherwise what went wrong.
    try:
        reader.read(path)
    except Problem as problem:
        text = str(problem)
        odd = [letter for letter in text if not letter.isprintable()]
        return (
            f"a sentence with {odd[0]!r} or of {len(text)} characters: {text[:300]!r}"
            if odd or len(text) > 1500
            else ""
        )
    except (Exception, MemoryError):
        return traceback.format_exc(limit=-4)
    return None


def fuzz(name: str, reader: Reader, folder: Path, count: int, started: list[str]) -> Figures:
    """The figures of a reader after `count` mutations."""
    figures, rng = Figures(name), random.Random(name)
    # Libraries are imported and caches filled; and a reader that reads no right file would refuse every mutation for nothing.
    found = [_once(reader, _put(reader, folder, seed)) for seed in reader.seeds]
    if None not in found:
        figures.failures.append(f"none of its right files is read: {found}")
    for number in range(count):
        content = reader.change(rng, rng.choice(reader.seeds))
        path = _put(reader, folder, content)
        allowed = 2 * len(content) + SLACK
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + allowed, resource.RLIM_INFINITY))
        began = time.process_time()  # of this process: others may keep the machine busy
        found = _once(reader, path)
        seconds = time.process_time() - began
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        memory = _status("VmHWM") - before
        if not found and memory > allowed:
            found = f"{memory:,} bytes of memory"
        if not found and seconds > SECONDS:
            found = f"{seconds:.1f} seconds"
        if not found and (started or hostile.called()):
            found = f"it started {started}"
            started.clear()
        figures.mutations, figures.read = figures.mutations + 1, figures.read + (found is None)
        figures.refused += found == ""
        figures.memory, figures.seconds = max(figures.memory, memory / 1e6), max(figures.seconds, seconds)
        if found:
            figures.failures.append(f"mutation {number}: {found}")
            if os.environ.get("FUZZ_KEEP"):
                Path(os.environ["FUZZ_KEEP"], f"{name.replace(' ', '-')}-{number}").write_bytes(content)
    return figures


def main(arguments: list[str]) -> int:
    """Print the figures of the named readers, or of all."""
    count, wanted = int(arguments[0]), arguments[1:]
    started: list[str] = []
    torch.set_num_threads(1)
    all_figures = []
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        found = readers(Path(place) / "made")
        sys.addaudithook(lambda event, details: started.append(event) if event in STARTS else None)
        for name in wanted or found:
            figures = fuzz(name, found[name], Path(place) / "case", count, started)
            all_figures.append(asdict(figures) | {"failures": figures.failures[:20], "failed": len(figures.failures)})
            print(f"{name:24} {figures.mutations:6} mutations  {figures.read:6} read  {figures.refused:6} refused  "
                  f"{figures.memory:7.1f} MB  {figures.seconds:6.3f} s  {len(figures.failures):4} failures", flush=True)  # fmt: skip
        os.chdir(ROOT)
    print(json.dumps(all_figures))
    return int(any(each["failed"] for each in all_figures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
