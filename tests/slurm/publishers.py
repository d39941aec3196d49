# SPDX-License-Identifier: Apache-2.0
"""A local server with small files of the official forms, and a project that has its numbers small enough for them.

What the authors publish cannot be kept here and takes days; files of the same form take seconds: pickles of EDM and of a
student of SiD, the tarball of CIFAR-10, the weights of Inception, the statistics that a FID is measured against.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from eldistill import networks
from eldistill.data.readers import cifar10
from eldistill.plan import reading
from eldistill.spaces import inception
from tests import conftest, official
from tests.data import test_paper_data

TEACHER, STUDENT, CIFAR = "edm-cifar10-32x32-uncond-vp", "sid-cifar10-uncond", "cifar-10-python"
IMAGES = 40  # in each of CIFAR's six batches
KWARGS = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1, 1, 2], "num_blocks": 1, "attn_resolutions": [8],
          "dropout": 0.13, "augment_dim": 9, "use_fp16": False, "img_resolution": 32, "img_channels": 3, "label_dim": 0}  # fmt: skip


def rows(root: Path) -> dict[str, dict[str, str]]:
    """data/sources.csv by name."""
    with open(root / "data/sources.csv", newline="", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def network(seed: int) -> dict:
    """The content of a file as EDM's code writes it; the network is small and random."""
    from eldistill.teacher import edm

    known = {key: value for key, value in KWARGS.items() if key not in edm.UNUSED}
    made = networks.build({"network": "song", **known}, seed).eval().requires_grad_(False)
    return official.edm(made, KWARGS)


def pictures(seed: int, n: int) -> np.ndarray:
    """uint8 [n, 3, 32, 32]: a disc of one colour on another, at a random place."""
    draw = np.random.default_rng(seed)
    x, y, size = draw.uniform(8, 24, (3, n, 1, 1)) * np.array([1, 1, 0.4]).reshape(3, 1, 1, 1)
    grid = np.arange(32)
    inside = np.hypot(grid[None, :, None] - y, grid[None, None, :] - x) < size
    colours = draw.integers(0, 256, (2, n, 3, 1, 1))
    return np.where(inside[:, None], colours[0], colours[1]).astype(np.uint8)


def tarball(path: Path) -> None:
    """Six batches as Python 2 wrote those of CIFAR-10, ten classes in each."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for seed, name in enumerate(each for names in cifar10.BATCHES for each in names):
            content = test_paper_data.batch(pictures(seed, IMAGES), [i % 10 for i in range(IMAGES)])
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def weights() -> inception.Inception:
    """Inception with random numbers, scaled so that activations neither die nor explode."""
    torch.manual_seed(0)
    made = inception.Inception()
    for module in made.modules():
        if isinstance(module, inception.Conv):
            torch.nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
            for name, values in (("beta", (0.0, 0.1)), ("mean", (0.0, 0.1)), ("var", (1.0, 0.0))):
                torch.nn.init.normal_(getattr(module, name), *values)
    return made


def build(folder: Path, root: Path) -> None:
    """Write every file into the folder, under the names by which data/sources.csv of `root` asks for them."""
    folder.mkdir(parents=True, exist_ok=True)
    name = {key: row["url"].rsplit("/", 1)[-1] for key, row in rows(root).items()}
    official.write(folder / name[TEACHER], network(0))
    official.write(folder / name[STUDENT], network(1))
    tarball(folder / name[CIFAR])
    net = weights()
    official.write(
        folder / name[inception.DOWNLOADS[0]], official.wrapped(net, class_name="InceptionV3", _init_kwargs={})
    )
    with torch.inference_mode():
        found = net.requires_grad_(False).eval()(torch.from_numpy(pictures(99, 64))).double().numpy()
    np.savez(folder / name["fid-refs-cifar10-32x32"], mu=found.mean(0), sigma=np.cov(found, rowvar=False))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, by the last part of the address."""

    def translate_path(self, path: str) -> str:
        return str(Path(self.directory) / path.rsplit("/", 1)[-1])

    def log_message(self, *words) -> None:
        self.server.asked.append(self.path)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A server of the folder on a free port; `.address` is what to write before a file's name, `.asked` what it was asked for."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    server.asked, server.address = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()


def small(project: Path, site: Path, address: str, methods: list[str], supplements: list[str]) -> None:
    """Point a clone at the server, and make its numbers those of the rehearsal: the sections of CIFAR-10, a hundred images.

    Addresses, digest of the tarball and the numbers of two files of parameters are all that differs from what a user has.
    """
    table = rows(project)
    for row in table.values():
        row["url"] = f"{address}/{row['url'].rsplit('/', 1)[-1]}"
    tar = site / table[CIFAR]["url"].rsplit("/", 1)[-1]
    table[CIFAR] |= {"sha256": hashlib.sha256(tar.read_bytes()).hexdigest(), "bytes": str(tar.stat().st_size)}
    with open(project / "data/sources.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, next(iter(table.values())), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.values())
    below, path = project / reading.FILES[0], project / "params.yaml"
    paper, values = (conftest.read_yaml(each.read_text(encoding="utf-8")) for each in (below, path))
    paper["data"]["cifar10"] |= {"heldout": 20, "judges": {"n_images": 256, "batch": 64}}
    paper["teacher"]["edm-cifar10"] |= {"steps": 2, "check": {"n": 20}}
    rates = {"generator": {"lr": 1.0e-3}, "critic": {"lr": 1.0e-3}}
    for name in {*methods, "sid"}:
        more = {"freeze_images": 0, "solo_images": 0, "group": 8} if name in ("sida", "sid2a") else {}
        numbers = {"n_images": 32, "batch": 8, "dropout": 0, **more}
        paper["distil"]["methods"].setdefault(name, {}).setdefault("per_data", {})["cifar10"] = numbers | {
            key: {**rate, "warmup_images": 0} for key, rate in rates.items()
        }
    values["distil"] |= {"snapshots": [0, 100], "ticks": 2}
    values["ensemble"]["mix8-32"] = {
        "members": [{"family": "conv", "width": 8, "depth": 3, "norm": "instance", "count": 2}]
    }
    fid = {"reference": "fid-refs-cifar10-32x32", "n": 20, "blocks": 1}
    paper["evaluate"]["per_data"]["cifar10"] = {
        "n": 40,
        "curve_n": 20,
        "features": ["judge-a", "pixels"],
        "neighbours": 3,
        "fid": fid,
    }
    values["distil"]["supplements"]["pixel-mmd"]["weight"] = 0.7  # its own, so that a change of EL's does not reach it
    values["tables"]["confidence"] = 0.95  # written out: DVC changes no key that is not there
    values["suite"] = "rehearsal"
    values["suites"]["rehearsal"] = [
        {"data": ["cifar10"], "methods": methods, "supplements": supplements, "seeds": [0]}
    ]
    below.write_text(conftest.write_yaml(paper), encoding="utf-8")
    path.write_text(conftest.write_yaml(values), encoding="utf-8")
