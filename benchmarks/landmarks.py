# SPDX-License-Identifier: Apache-2.0
"""Accuracy and cost of EL against all real images, by the number of landmarks.

    python benchmarks/landmarks.py --root DIR      # DIR: a project in which `make demo` was run; writes benchmarks/landmarks.json

Accuracy: relative error of the gradient of mu at 64 held-out digits, half of them with noise, against the mean over all train
images; the mean over the members of an ensemble. Cost: milliseconds of EL and its gradient at batch 64 on one thread, with real
images and with landmarks in turns, the median of 15.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "src"))

from eldistill.data import dataset as data  # noqa: E402
from eldistill.ensemble import anchors, seed  # noqa: E402
from eldistill.losses import kernel_sums  # noqa: E402
from eldistill.supplements import embedding  # noqa: E402

CODEC = {"mean": 0.3053, "std": 0.3756}  # of the data setting digits
BATCH, TURNS = 64, 15


def gradient(x, points, weights, kernel: str, bandwidth: float) -> torch.Tensor:
    """Gradient [n, D] of the weighted sum of kernels at the features x."""
    x = x.clone().requires_grad_()
    value, _ = kernel_sums.kernel_sums(x, points, weights, 0, kernel, bandwidth)
    return torch.autograd.grad(value, x)[0].double()


def error(member, anchor, features, x, kernel: str) -> float:
    """Relative error of the gradient with landmarks, against all features."""
    even = torch.full((len(features),), 1 / len(features), dtype=torch.float64)
    exact = gradient(x.double(), features, even, kernel, member.bandwidth)
    found = gradient(x, anchor.points, anchor.weights, kernel, member.bandwidth)
    return float((found - exact).norm() / exact.norm())


def seconds(compute, images) -> float:
    """Seconds of a value and its gradient at the images."""
    x, begun = images.clone().requires_grad_(), time.perf_counter()
    torch.autograd.grad(compute(x), x)
    return time.perf_counter() - begun


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=HERE.parent, help="project with the results of `make demo`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pack = options.root / "data/sets/digits/images.safetensors"
    reals, held = (data.load_real_images(pack, CODEC, False, part=part) for part in ("train", "heldout"))
    n = len(reals)
    shown = held.take(torch.arange(BATCH))[0]
    noise = torch.randn(shown[32:].shape, generator=torch.Generator().manual_seed(1))
    x = torch.cat([shown[:32], shown[32:] + 0.15 * noise]) / reals.sigma_data
    errors, cost = [], {}
    for name in ("conv4", "identity"):
        members = seed.Ensemble(options.root / f"data/ensembles/digits/{name}/0.json").at(0)
        with torch.no_grad():
            every = [member(reals.take(torch.arange(n))[0] / reals.sigma_data).double() for member in members]
            ours = [member(x) for member in members]
        runs = {"real images": lambda x, members=members: embedding.embedding_loss(
            members, x, reals.take(torch.arange(BATCH))[0] / reals.sigma_data, "rbf", "unbiased")}  # fmt: skip
        for count in (64, 256, 1024, n):
            arrays = anchors.record_anchors(members, reals, 0, count)
            row = {"ensemble": name, "landmarks": count}
            for kernel in anchors.KERNELS:
                found = anchors.anchors_of(arrays, members, kernel, reals)
                parts = zip(members, found, every, ours, strict=True)
                row[kernel] = statistics.mean(error(*each[:3], each[3], kernel) for each in parts)
            errors.append(row)
            known = anchors.anchors_of(arrays, members, "rbf", reals)
            runs[f"{count} landmarks"] = lambda x, members=members, known=known: embedding.embedding_loss(
                members, x, None, "rbf", "unbiased", anchors=known
            )
            print(row, flush=True)
        times = {what: [] for what in runs}
        for _ in range(TURNS):
            for what, compute in runs.items():
                times[what].append(seconds(compute, x))
        cost[name] = {what: 1000 * statistics.median(each) for what, each in times.items()}
        print(name, cost[name], flush=True)
    found = {"train_images": n, "torch": torch.__version__, "errors": errors, "milliseconds": cost}
    (HERE / "landmarks.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
