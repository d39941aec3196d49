# SPDX-License-Identifier: Apache-2.0
"""Write the files of `python -m eldistill selftest` anew, from a finished and evaluated run of the demo.

`python docs/renew_selftest.py` after `make demo`, if tests/commands/test_selftest.py says that the files are stale. The weights
are stored as float16, which halves the file; the expected numbers are those of the stored weights. The model card is that of
`python -m eldistill export`.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from eldistill import files
from eldistill.commands import export, selftest
from eldistill.evaluate import gaussians, references
from eldistill.sampling.generators import images_of, load_generator
from eldistill.tensors import load_tensors, save_tensors

RUN = "digits/dmd/el/0"
N = 5000  # images, as in an evaluation of the demo
STORED = 64  # images that are stored
SEEDS = 8  # other seeds, whose spread is told
# Allowed differences. float64 in place of float32 and GPUs move the distance by less than 1e-4 (`rounding` in expected.json), and
# single pixels by one grey level; another seed moves it by several 1e-3.
TOLERANCE = 0.001
GREY = 3
METRIC = "fd5k_pixels_heldout"
NOTE = """
## This copy

It is a part of the package eldistill, for `python -m eldistill selftest`. Its weights are rounded to float16, which changes
`{metric}` from {run:.5f} to {here:.5f}. The digits are those of scikit-learn: Optical Recognition of Handwritten Digits
(E. Alpaydin, C. Kaynak, 1998), CC BY 4.0 as the UCI repository lists it, rescaled and split here.
"""


def main() -> None:
    """Write all files of selftest.FILES."""
    path = Path(f"data/runs/{RUN}/generator_ema.safetensors")
    evaluated = files.read_json(f"data/evaluations/{RUN}/metrics.json")
    floor = files.read_json(f"data/evaluations/{RUN.split('/')[0]}/real/metrics.json")
    weights, about = load_tensors(path)
    folder = selftest.FILES
    save_tensors(folder / "generator.safetensors", {name: each.half() for name, each in weights.items()}, about)
    wanted = {"run": RUN, "recipe": about["recipe"], "n": N, "seed": 0, "stored": STORED, "metric": METRIC,
              "tolerance": TOLERANCE, "grey": GREY}  # fmt: skip
    images = selftest.make_images(wanted)
    real = references.load_reference(Path(f"data/sets/{RUN.split('/')[0]}/reference-pixels.npz"))["heldout"]
    mean, cov = gaussians.moments(real)
    statistic = {"mean": torch.from_numpy(mean), "covariance": torch.from_numpy(cov), "images": images[:STORED]}
    save_tensors(folder / "reference.safetensors", statistic, {"of": "held-out digits in the pixels", "n": len(real)})
    wanted |= {"distance": selftest.measure(images)["distance"], "of_run": evaluated[METRIC]}
    wanted |= {"real": next(value for name, value in floor.items() if name.startswith("fd") and name.endswith("_pixels_heldout")
                            and name[2].isdigit())}  # fmt: skip
    wanted |= {"seeds": _spread(wanted), "rounding": abs(_in_float64(wanted) - wanted["distance"])}
    files.write_json(folder / "expected.json", wanted)
    with tempfile.TemporaryDirectory() as temporary:
        card = (export.export_run(RUN, temporary) / "README.md").read_text(encoding="utf-8")
    kept = card.split("\n## Numbers")[0].split("\n![samples]")  # neither its picture nor its loader lies beside it
    text = kept[0] + "\n" + kept[1][kept[1].index("\n## Where it comes from") :]
    files.write_text(
        folder / "README.md", text + NOTE.format(metric=METRIC, run=wanted["of_run"], here=wanted["distance"])
    )
    print({**wanted, "bytes": (folder / "generator.safetensors").stat().st_size})


def _spread(wanted: dict) -> float:
    # Standard deviation of the distance over other seeds.
    seeds = range(1, SEEDS + 1)
    return statistics.stdev(
        selftest.measure(selftest.make_images({**wanted, "seed": seed}))["distance"] for seed in seeds
    )


def _in_float64(wanted: dict) -> float:
    # The distance if the network computes in float64.
    generator = load_generator(selftest.FILES / "generator.safetensors")
    network = generator.network.double()

    def doubled(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return network(x.double(), sigma.double(), labels)

    doubled.parameters = network.parameters
    object.__setattr__(generator, "network", doubled)
    return selftest.measure(torch.cat(list(images_of(generator, wanted["n"], wanted["seed"]))))["distance"]


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
