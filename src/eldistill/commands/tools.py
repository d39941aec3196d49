# SPDX-License-Identifier: Apache-2.0
"""The commands beside the six steps: one entry of TOOLS each, with its options and the function that it runs."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eldistill.errors import Problem
from eldistill.plan import params, versions
from eldistill.plan.plan import Plan


def say(text: str) -> None:
    """A line that is seen at once, also in a log."""
    print(text, flush=True)


Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **settings) -> Option:
    """Arguments of argparse's add_argument."""
    return names, settings


@dataclass(frozen=True)
class Tool:
    """help: a line in the list; description: above its own help; run: gets the options, returns an exit code or None."""

    help: str
    description: str
    options: tuple[Option, ...]
    run: Callable[[Namespace], int | None]


def _command(module: str) -> Callable[[Namespace], None]:
    # What a module offers as `command(options, say)`; it is imported when it is wanted: most take torch's seconds.
    return lambda chosen: importlib.import_module(f"eldistill.{module}").command(chosen, say=say)


def _zip(chosen: Namespace) -> None:
    from eldistill.data import archives

    step = Plan(params.load()).find("data", f"{chosen.name}/images")
    if not step.fresh(Path()):
        raise Problem(
            f"{step.outputs[0]} is missing or of other numbers; run `python -m eldistill data {step.name}` first"
        )
    count = archives.write_zip(
        step.outputs[0], chosen.out, ("train", "heldout") if chosen.part == "both" else (chosen.part,)
    )
    say(f"{chosen.out}: {count} images")


def _fetch(chosen: Namespace) -> None:
    from eldistill.commands import planned
    from eldistill.steps import run as steps

    plan = Plan(params.load())
    suite = chosen.suite or plan.params.values["suite"]
    names = planned.downloads(plan, planned.states(plan, suite))
    for name in names:
        steps.run("data", f"download/{name}", say=say)
    say(f"suite {suite}: {len(names)} files were fetched" if names else f"suite {suite}: nothing is to be fetched")


def _doctor(chosen: Namespace) -> int:
    from eldistill.commands import doctor

    return 0 if doctor.examine(chosen.suite, say) else 1


def _export(chosen: Namespace) -> None:
    from eldistill.commands import export

    export.make(chosen.name, chosen.out, say)


DEVICE = option("--device", default="cpu", help="cpu or cuda (default: cpu)")
TOOLS = {
    "sample": Tool(
        "images from a finished generator", "Images from a finished generator: --grid, --out or both.",
        (
            option("--generator", required=True, metavar="FILE", help="a generator_ema.safetensors"),
            option("--n", type=int, default=64, metavar="N", help="images (default: 64)"),
            option("--seed", type=int, default=0, metavar="SEED", help="image i depends on SEED and i (default: 0)"),
            option("--steps", type=int, default=1, metavar="STEPS", help="network calls an image, as its method defines (default: 1)"),
            option("--label", metavar="CLASS", help="class of all images: its name, or its number from 0 (default: drawn for each)"),
            option("--grid", metavar="FILE.png", help="one picture of all images"),
            option("--out", metavar="FOLDER", help="one PNG an image, 000000.png and on"),
            DEVICE,
        ), _command("commands.sample"),
    ),
    "zip": Tool(
        "a packed data set as a zip that EDM's code reads",
        "A packed data set as a zip of PNGs with dataset.json, as EDM's code reads it.",
        (
            option("name", metavar="DATA", help="a data setting whose images are packed"),
            option("--out", required=True, metavar="FILE.zip", help="where to"),
            option("--part", choices=("train", "heldout", "both"), default="both", help="which images (default: both)"),
        ), _zip,
    ),
    "encode": Tool(
        "a data set's images as latents, for a data setting with source: latents",
        "The images of a folder or zip as latents: means and deviations of an autoencoder, as EDM2 has them.",
        (
            option("name", metavar="DATA", help="a data setting whose source is a folder or zip of images"),
            option("--out", required=True, metavar="PATH", help="FILE.zip, or a folder: there the same command continues"),
            option("--vae", metavar="FOLDER", help="an autoencoder as diffusers saves it (default: sd-vae-ft-mse, which is fetched)"),
            DEVICE,
        ), _command("commands.encode"),
    ),
    "check": Tool(
        "measure a published teacher or student of data/sources.csv",
        "A published network, as its authors measured it: Fréchet distance in Inception's features to their reference.",
        (
            option("name", metavar="NAME", help="row of data/sources.csv: a teacher or a student"),
            option("--file", metavar="FILE", help="its file, if it need not be fetched"),
            option("--n", type=int, default=50_000, metavar="N", help="images (default: 50000, as published)"),
            option("--steps", type=int, metavar="STEPS", help="of Heun's method, for a teacher (default: its authors')"),
            option("--seed", type=int, default=0, metavar="SEED", help="of the images (default: 0)"),
            option("--batch", type=int, default=250, metavar="N", help="images at once (default: 250)"),
            option("--reference", metavar="NAME", help="row with reference statistics, or a file (default: its own row's)"),
            DEVICE,
        ), _command("commands.check"),
    ),
    "cost": Tool(
        "what a suite would take, before it runs",
        "Operations, GPU hours, memory and disk of a suite's trainings, counted without running them.",
        (
            option("suite", metavar="SUITE", help="a name under `suites`"),
            option("--tflops", type=float, default=60.0, metavar="N", help="what the GPU achieves (default: 60, an A100 in bf16)"),
            option("--left", action="store_true", help="one line about what is still to be made (default: a table)"),
            option("--allow", type=float, metavar="HOURS", help="the same line; exit code 2 if that takes more GPU hours"),
        ), _command("commands.cost"),
    ),
    "plan": Tool(
        "what of a suite is there, what is stale and why, what is left",
        "On one page: fresh, stale (with the numbers that changed) and missing steps, downloads, and hours, memory and disk.",
        (
            option("suite", metavar="SUITE", nargs="?", help="a name under `suites` (default: `suite` of params.yaml)"),
            option("--tflops", type=float, default=60.0, metavar="N", help="what the GPU achieves (default: 60, an A100 in bf16)"),
        ), _command("commands.planned"),
    ),
    "suggest": Tool(
        "numbers of every method for a data set of your own",
        "A block of numbers for a data setting that has none, for each method: those of the images nearest in size, with a "
        "shorter training. Untuned.",
        (
            option("name", metavar="DATA", help="a name under `data`"),
            option("--images", type=int, metavar="N", help="images of a training (default: 512000 above 16 pixels a side)"),
            option("--write", action="store_true", help="write them into params.yaml (default: print them)"),
        ), _command("commands.suggest"),
    ),
    "fetch": Tool(
        "the files of others that a suite will read", "Fetches what the steps of a suite that are still to be made will read of "
        "data/sources.csv: for a cluster on which one machine alone reaches the network.",
        (option("suite", metavar="SUITE", nargs="?", help="a name under `suites` (default: `suite` of params.yaml)"),), _fetch,
    ),
    "doctor": Tool(
        "what would stop a suite on this machine",
        "Looks at Python, torch, GPUs, disk, files, Slurm and locks; exit code 1 if something needs a look.",
        (option("suite", metavar="SUITE", nargs="?", help="a name under `suites` (default: `suite` of params.yaml)"),), _doctor,
    ),
    "prune": Tool(
        "results that no suite names", "Lists results and states that no suite of params.yaml names, with their sizes.",
        (option("--remove", action="store_true", help="remove them (default: list them)"),), _command("commands.prune"),
    ),
    "export": Tool(
        "a generator as a folder to give away",
        "A folder with weights, settings, a card, images and a loader that needs torch and safetensors only.",
        (
            option("name", metavar="RUN", help="DATA/METHOD/SUPPLEMENT/SEED, which is finished"),
            option("--out", metavar="FOLDER", help="where to (default: exports/RUN)"),
        ), _export,
    ),
    "recipes": Tool(
        "write workflow/versions.json from the RECIPE of every module",
        "Writes workflow/versions.json from the RECIPE of every module.", (), lambda chosen: versions.write_versions(),
    ),
}  # fmt: skip
