# SPDX-License-Identifier: Apache-2.0
"""The table of commands that are not steps: TOOLS has the options of each and the function that runs it."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eldistill import files
from eldistill.commands import arguments
from eldistill.errors import Problem, printable
from eldistill.plan import params, versions
from eldistill.plan.plan import Plan


def say(text: str) -> None:
    """Print a line, without control characters of names in it, and flush it, so that it appears at once also in a log file."""
    print(printable(text), flush=True)


Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **settings) -> Option:
    """Arguments of argparse's add_argument."""
    return names, settings


@dataclass(frozen=True)
class Tool:
    """help: its line in the list of commands. description: the text above its options. run: gets the options and returns an exit
    code, or None for 0."""

    help: str
    description: str
    options: tuple[Option, ...]
    run: Callable[[Namespace], int | None]


def _command(module: str) -> Callable[[Namespace], None]:
    # The function `command(options, say)` of a module, which is imported when it runs: most modules import torch for seconds.
    return lambda chosen: importlib.import_module(f"eldistill.{module}").command(chosen, say=say)


def _zip(chosen: Namespace) -> None:
    from eldistill.data import archives

    files.check_target(chosen.out)
    step = Plan(params.load_params()).find("data", f"{chosen.name}/images")
    if not step.fresh(Path()):
        raise Problem(
            f"{step.outputs[0]} is missing, or was made with other numbers; run `python -m eldistill data {step.name}` first"
        )
    count = archives.write_zip(
        step.outputs[0], chosen.out, ("train", "heldout") if chosen.part == "both" else (chosen.part,)
    )
    say(f"{chosen.out}: {count} images")


def _fetch(chosen: Namespace) -> None:
    from eldistill.commands import planned
    from eldistill.steps import run as steps

    plan = Plan(params.load_params())
    suite = chosen.suite or plan.params.values["suite"]
    names = planned.downloads(plan, planned.suite_states(plan, suite))
    for name in names:
        steps.run_step("data", f"download/{name}", say=say)
    say(f"suite {suite}: {len(names)} files were fetched" if names else f"suite {suite}: there is nothing to fetch")


def _doctor(chosen: Namespace) -> int:
    from eldistill.commands import doctor

    return 0 if doctor.examine(chosen.suite, say) else 1


def _selftest(chosen: Namespace) -> int:
    from eldistill.commands import selftest

    code: int = selftest.command(chosen, say)
    return code


def _export(chosen: Namespace) -> None:
    from eldistill.commands import export

    export.export_run(chosen.name, chosen.out, say)


def _recipes(chosen: Namespace) -> None:
    if not Path("Snakefile").is_file():  # otherwise a folder `workflow` would be made anywhere
        raise Problem("Snakefile is missing; run this command in the folder of the project")
    versions.write_versions()


DEVICE = option("--device", default="cpu", help="cpu or cuda (default: cpu)")
TOOLS = {
    "sample": Tool(
        "sample images from a finished generator",
        "Samples images from a finished generator. Give --grid for one picture, --out for a folder of PNG files, or both.",
        (
            option("--generator", required=True, metavar="FILE", help="the generator_ema.safetensors of a run"),
            option("--n", type=int, default=64, metavar="N", help="number of images (default: 64)"),
            option("--seed", type=int, default=0, metavar="SEED",
                   help="seed; image i depends on SEED and i only (default: 0)"),
            option("--steps", type=int, default=1, metavar="STEPS",
                   help="network calls for each image; the method defines which numbers are possible (default: 1)"),
            option("--label", metavar="CLASS",
                   help="class of all images: its name, or its number counted from 0 (default: drawn for each image)"),
            option("--grid", metavar="FILE.png", help="write all images into one picture"),
            option("--out", metavar="FOLDER", help="write each image as a PNG file: 000000.png, 000001.png, …"),
            DEVICE,
        ), _command("commands.sample"),
    ),
    "selftest": Tool(
        "sample a small generator of the package, and compare its images with stored numbers",
        "Samples a small generator that is in the package, measures its images and compares the numbers with those that one must see. "
        "It needs neither a project nor a network connection. The exit code is 1 if a number differs.",
        (
            option("--out", metavar="FILE.png", default="selftest.png", help="picture to write (default: selftest.png)"),
            DEVICE,
        ), _selftest,
    ),
    "zip": Tool(
        "write a packed data set as a zip that EDM's code reads",
        "Writes a packed data set as a zip of PNG files with a dataset.json, the format that EDM's code reads.",
        (
            option("name", metavar="DATA", help="name of a data setting whose step `data` has finished"),
            option("--out", required=True, metavar="FILE.zip", help="zip file to write"),
            option("--part", choices=("train", "heldout", "both"), default="both",
                   help="part of the images (default: both)"),
        ), _zip,
    ),
    "encode": Tool(
        "encode the images of a data set as latents, for a data setting with `source: latents`",
        "Encodes the images of a folder or zip as latents: means and standard deviations of an autoencoder, as EDM2 stores them.",
        (
            option("name", metavar="DATA", help="a data setting whose source is a folder or zip of images"),
            option("--out", required=True, metavar="PATH",
                   help="zip file or folder to write; in a folder the same command continues after an interruption"),
            option("--vae", metavar="FOLDER",
                   help="folder of an autoencoder as diffusers saves it (default: sd-vae-ft-mse, which is fetched)"),
            DEVICE,
        ), _command("commands.encode"),
    ),
    "check": Tool(
        "measure a published teacher or student of data/sources.csv",
        "Measures a published network as its authors did: the FID of its samples against their reference statistics.",
        (
            option("name", metavar="NAME", help="name of a teacher or a student in data/sources.csv"),
            option("--file", metavar="FILE",
                   help="file of the network, if you have it already (default: it is fetched)"),
            option("--n", type=arguments.whole_up_to(10_000_000), default=50_000, metavar="N",
                   help="number of images (default: 50000, as published)"),
            option("--steps", type=arguments.whole_up_to(10_000), metavar="STEPS",
                   help="steps of Heun's method for a teacher (default: as many as its authors used)"),
            option("--seed", type=int, default=0, metavar="SEED", help="seed of the images (default: 0)"),
            option("--batch", type=arguments.whole_up_to(100_000), default=250, metavar="N",
                   help="images that are generated at once (default: 250)"),
            option("--reference", metavar="NAME",
                   help="reference statistics: a name in data/sources.csv, or a file (default: those that the network's row names)"),
            DEVICE,
        ), _command("commands.check"),
    ),
    "cost": Tool(
        "print the GPU hours, memory and disk that a suite needs, before it runs",
        "Counts the operations, GPU hours, memory and disk of a suite's trainings without running them.",
        (
            option("suite", metavar="SUITE", help="name of a suite of params.yaml"),
            option("--tflops", type=arguments.above_zero, default=60.0, metavar="N",
                   help="speed of the GPU in TFLOP/s (default: 60, an A100 in bfloat16)"),
            option("--left", action="store_true",
                   help="print one line about the trainings that are not finished (default: a table of all)"),
            option("--allow", type=arguments.from_zero, metavar="HOURS",
                   help="print the same line, with exit code 2 if these trainings take more than HOURS GPU hours"),
            option("--only", nargs="+", metavar="WORD/NAME",
                   help="with --allow: count these trainings only, such as distil/digits/di/el/0 and teacher/digits (default: all)"),
        ), _command("commands.cost"),
    ),
    "plan": Tool(
        "print which steps of a suite are fresh, which are stale and why, and which are missing",
        "Prints the steps of a suite that are fresh, stale (with the numbers that changed) or missing, the files to fetch, and the hours, "
        "memory and disk that are needed.",
        (
            option("suite", metavar="SUITE", nargs="?", help="name of a suite (default: `suite` of params.yaml)"),
            option("--tflops", type=arguments.above_zero, default=60.0, metavar="N",
                   help="speed of the GPU in TFLOP/s (default: 60, an A100 in bfloat16)"),
        ), _command("commands.planned"),
    ),
    "suggest": Tool(
        "suggest numbers for every method on a new data set",
        "Suggests a block of numbers for each method that has none for the data setting. They come from the data setting with the "
        "nearest image size, with a shorter training. They are not tuned.",
        (
            option("name", metavar="DATA", help="name of a data setting of params.yaml"),
            option("--images", type=arguments.whole_from_one, metavar="N",
                   help="length of a training in images (default: 512000 for images of more than 16 pixels a side)"),
            option("--write", action="store_true", help="write the blocks into params.yaml (default: print them)"),
        ), _command("commands.suggest"),
    ),
    "fetch": Tool(
        "fetch the published files that a suite needs",
        "Fetches the files of data/sources.csv that the unfinished steps of a suite read. Use it on a cluster where only some machines "
        "can connect to the internet.",
        (option("suite", metavar="SUITE", nargs="?", help="name of a suite (default: `suite` of params.yaml)"),), _fetch,
    ),
    "doctor": Tool(
        "check whether this machine can run a suite",
        "Checks Python, torch, GPUs, disk, files, Slurm and locks. The exit code is 1 if something needs attention.",
        (option("suite", metavar="SUITE", nargs="?", help="name of a suite (default: `suite` of params.yaml)"),), _doctor,
    ),
    "prune": Tool(
        "list or remove results that no suite uses",
        "Lists the results and saved states that no suite of params.yaml uses, with their sizes.",
        (option("--remove", action="store_true", help="remove them (default: only list them)"),), _command("commands.prune"),
    ),
    "keep": Tool(
        "keep the results of a suite's finished runs in a file for git",
        "Writes the metrics, curves and provenance of the finished runs of a suite into data/tables/SUITE/kept.jsonl. Commit this file: "
        "where it is, tables are made without training or measuring these runs again.",
        (
            option("suite", metavar="SUITE", help="name of a suite of params.yaml"),
            option("others", metavar="FILE", nargs="*", help="files kept.jsonl of other machines, whose runs are added"),
        ), _command("commands.keep"),
    ),
    "export": Tool(
        "export a generator as a folder that works without this project",
        "Writes a folder with weights, settings, a model card, images and a loader that needs only torch and safetensors.",
        (
            option("name", metavar="RUN", help="a finished run: DATA/METHOD/SUPPLEMENT/SEED"),
            option("--out", metavar="FOLDER", help="folder to write (default: exports/RUN)"),
        ), _export,
    ),
    "cite": Tool(
        "print what to cite for a run or a suite, as BibTeX",
        "Prints the papers of the methods, supplements, data, networks, feature spaces and metrics of a run or a suite as BibTeX.",
        (
            option("name", metavar="RUN|SUITE", help="a run, DATA/METHOD/SUPPLEMENT/SEED, or the name of a suite"),
            option("--out", metavar="FILE.bib", help="file to write (default: print)"),
        ), _command("commands.cite"),
    ),
    "recipes": Tool(
        "write workflow/versions.json from the RECIPE of every module",
        "Writes workflow/versions.json from the RECIPE of every module.", (), _recipes,
    ),
}  # fmt: skip
