# SPDX-License-Identifier: Apache-2.0
"""`python -m eldistill`: one subcommand for each step, and `sample`.

Exit codes: 0 done; 2 something the user can put right, in one sentence; 1 the machine failed (disk, memory, a NaN);
75 stopped politely with its state saved, the same command continues.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path

# Before numpy is imported: the number of BLAS threads must not follow the machine, bits would too.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from eldistill import __version__, helptext, params, recipes, steps  # noqa: E402
from eldistill.files import Problem  # noqa: E402

PARTS = 256  # into so many a process cuts its images, where they do not fit into the memory of a device, at most
ABOUT = {
    "data": ("pack a data set, train a judge, measure a reference",
             "NAME/images, NAME/judge-a, NAME/judge-b, NAME/reference-judge-a, NAME/reference-pixels"),
    "teacher": ("train a teacher, or take over a published one; measure its samples", "NAME under `teacher`, or NAME/check"),
    "ensemble": ("draw and calibrate an ensemble of random networks", "DATA/ENSEMBLE/SEED"),
    "distil": ("distil a teacher into a one-step generator", "DATA/METHOD/SUPPLEMENT/SEED, such as digits/di/el/0"),
    "evaluate": ("generate images and measure them", "a run, DATA/real, DATA/teacher, or suite/SUITE for data/metrics.json"),
    "tables": ("make the tables and plots of a suite", "SUITE"),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m eldistill", description="One-step generators from diffusion teachers.",
                                  epilog="All numbers stand in params.yaml; each subcommand's --help lists those it reads.")  # fmt: skip
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="word", required=True, metavar="STEP")
    for word, (about, names) in ABOUT.items():
        each = commands.add_parser(
            word, help=about, description=about + ".", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        each.add_argument("name", metavar="NAME", help=names)
        each.add_argument("--recipe", metavar="FILE", help="recipe to follow (default: computed from params.yaml)")
        each.add_argument("--force", action="store_true", help="make it again even if it is up to date (default: no)")
        each.add_argument("--max-minutes", type=float, default=0, metavar="MINUTES",
                          help="stop politely after this time, exit code 75 (default: 0, no limit)")  # fmt: skip
        each.add_argument("--processes", type=int, default=1, metavar="N",
                          help="share every batch among so many processes, one for each GPU; for trainings (default: 1)")  # fmt: skip
        each.set_defaults(parser=each)
    draw = commands.add_parser(
        "sample",
        help="images from a finished generator",
        description="Images from a finished generator: --grid, --out or both.",
    )
    draw.add_argument("--generator", required=True, metavar="FILE", help="a generator_ema.safetensors")
    draw.add_argument("--n", type=int, default=64, metavar="N", help="images (default: 64)")
    draw.add_argument("--seed", type=int, default=0, metavar="SEED", help="image i depends on SEED and i (default: 0)")
    draw.add_argument(
        "--steps",
        type=int,
        default=1,
        metavar="STEPS",
        help="network calls an image, as its method defines (default: 1)",
    )
    draw.add_argument("--label", type=int, metavar="CLASS", help="class of all images (default: drawn for each)")
    draw.add_argument("--grid", metavar="FILE.png", help="one picture of all images")
    draw.add_argument("--out", metavar="FOLDER", help="one PNG an image, 000000.png and on")
    draw.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    box = commands.add_parser(
        "zip",
        help="a packed data set as a zip that EDM's code reads",
        description="A packed data set as a zip of PNGs with dataset.json, as EDM's code reads it.",
    )
    box.add_argument("name", metavar="DATA", help="a data setting whose images are packed")
    box.add_argument("--out", required=True, metavar="FILE.zip", help="where to")
    box.add_argument(
        "--part", choices=("train", "heldout", "both"), default="both", help="which images (default: both)"
    )
    code = commands.add_parser(
        "encode",
        help="a data set's images as latents, for a data setting with source: latents",
        description="The images of a folder or zip as latents: means and deviations of an autoencoder, as EDM2 has them.",
    )
    code.add_argument("name", metavar="DATA", help="a data setting whose source is a folder or zip of images")
    code.add_argument(
        "--out", required=True, metavar="PATH", help="FILE.zip, or a folder: there the same command continues"
    )
    code.add_argument(
        "--vae",
        metavar="FOLDER",
        help="an autoencoder as diffusers saves it (default: sd-vae-ft-mse, which is fetched)",
    )
    code.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    ruler = commands.add_parser(
        "check",
        help="measure a published teacher or student of data/sources.csv",
        description="A published network, as its authors measured it: Fréchet distance in Inception's features to their reference.",
    )
    ruler.add_argument("name", metavar="NAME", help="row of data/sources.csv: a teacher or a student")
    ruler.add_argument("--file", metavar="FILE", help="its file, if it need not be fetched")
    ruler.add_argument("--n", type=int, default=50_000, metavar="N", help="images (default: 50000, as published)")
    ruler.add_argument(
        "--steps", type=int, metavar="STEPS", help="of Heun's method, for a teacher (default: its authors')"
    )
    ruler.add_argument("--seed", type=int, default=0, metavar="SEED", help="of the images (default: 0)")
    ruler.add_argument("--batch", type=int, default=250, metavar="N", help="images at once (default: 250)")
    ruler.add_argument(
        "--reference", metavar="NAME", help="row with reference statistics, or a file (default: its own row's)"
    )
    ruler.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    bill = commands.add_parser(
        "cost",
        help="what a suite would take, before it runs",
        description="Operations, GPU hours, memory and disk of a suite's trainings, counted without running them.",
    )
    bill.add_argument("suite", metavar="SUITE", help="a name under `suites`")
    bill.add_argument(
        "--tflops", type=float, default=60.0, metavar="N", help="what the GPU achieves (default: 60, an A100 in bf16)"
    )
    bill.add_argument("--left", action="store_true", help="one line about what is still to be made (default: a table)")
    look = commands.add_parser(
        "doctor",
        help="what would stop a suite on this machine",
        description="Looks at Python, torch, GPUs, disk, files, Slurm and locks; exit code 1 if something needs a look.",
    )
    look.add_argument(
        "suite", metavar="SUITE", nargs="?", help="a name under `suites` (default: `suite` of params.yaml)"
    )
    old = commands.add_parser(
        "prune",
        help="results that no suite names",
        description="Lists results and states that no suite of params.yaml names, with their sizes.",
    )
    old.add_argument("--remove", action="store_true", help="remove them (default: list them)")
    give = commands.add_parser(
        "export",
        help="a generator as a folder to give away",
        description="A folder with weights, settings, a card, images and a loader that needs torch and safetensors only.",
    )
    give.add_argument("name", metavar="RUN", help="DATA/METHOD/SUPPLEMENT/SEED, which is finished")
    give.add_argument("--out", metavar="FOLDER", help="where to (default: exports/RUN)")
    commands.add_parser("recipes", help="write workflow/versions.json from the VERSION of every module")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one step; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    top = parser()
    if len(arguments) > 1 and arguments[0] in ABOUT and {"-h", "--help"} & set(arguments[1:]):
        # The list of numbers is long: it is made only when it is asked for.
        top._subparsers._group_actions[0].choices[arguments[0]].epilog = helptext.numbers(arguments[0])
    chosen = top.parse_args(arguments)
    try:
        if chosen.word == "recipes":
            recipes.write_versions()
        elif chosen.word == "zip":
            from eldistill import data

            step = recipes.Plan(params.load()).find("data", f"{chosen.name}/images")
            if not step.fresh(Path()):
                raise Problem(
                    f"{step.outputs[0]} is missing or of other numbers; run `python -m eldistill data {step.name}` first"
                )
            count = data.write_zip(
                step.outputs[0], chosen.out, ("train", "heldout") if chosen.part == "both" else (chosen.part,)
            )
            print(f"{chosen.out}: {count} images")
        elif chosen.word == "encode":
            from eldistill import data

            values = params.load()
            section = values.section("data", chosen.name, where="data on the command line")
            say = lambda text: print(text, flush=True)  # noqa: E731
            count = data.write_latents(section, chosen.out, chosen.vae, chosen.device, say)
            print(f"{chosen.out}: latents of {count} images")
        elif chosen.word == "check":
            from eldistill.teacher import check

            check.command(chosen, say=lambda text: print(text, flush=True))
        elif chosen.word == "cost":
            from eldistill import cost

            cost.command(chosen, say=lambda text: print(text, flush=True))
        elif chosen.word == "doctor":
            from eldistill import doctor

            return 0 if doctor.examine(chosen.suite, say=lambda text: print(text, flush=True)) else 1
        elif chosen.word == "export":
            from eldistill import export

            export.make(chosen.name, chosen.out, say=lambda text: print(text, flush=True))
        elif chosen.word == "prune":
            from eldistill import doctor

            doctor.prune(chosen.remove, say=lambda text: print(text, flush=True))
        elif chosen.word == "sample":
            from eldistill import sampling

            sampling.command(chosen, say=lambda text: print(text, flush=True))
        else:
            return make(chosen, arguments)
        return 0
    except Problem as problem:
        print(f"eldistill: {problem}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"eldistill: no space left on the disk of {error.filename or os.getcwd()}; free some and repeat the command, "
                  "which continues from the last saved state", file=sys.stderr)  # fmt: skip
            return 1
        # Permissions, a lost file system: the machine's own words name the file.
        print(
            f"eldistill: {error}; mend it and repeat the command, which continues from the last saved state",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError" and int(os.environ.get("ELDISTILL_PARTS", "0")) > 0:
            print("eldistill: the device has too little memory", file=sys.stderr)
            return 76  # to the launcher, which tries again
        if type(error).__name__ == "OutOfMemoryError":
            print(
                "eldistill: the device has too little memory; set distil.micro_batch in params.yaml to a part of the batch "
                "(or evaluate.batch lower) and repeat the command, which continues from the last saved state",
                file=sys.stderr,
            )
            return 1
        if type(error).__name__ in ("NonFinite", "Lost"):
            print(f"eldistill: {error}", file=sys.stderr)
            return 1
        if type(error).__name__ == "Stopped":
            print(f"eldistill: {error}", file=sys.stderr)
            return 75
        raise


def make(chosen: argparse.Namespace, arguments: list[str]) -> int:
    """Make a step, in one process, in several that are started here, or as one of those that torchrun has started."""
    say = lambda text: print(text, flush=True)  # noqa: E731
    words = chosen.word, chosen.name, chosen.recipe, chosen.force, chosen.max_minutes
    if chosen.processes < 1:
        raise Problem(f"--processes {chosen.processes}; expected 1 or more")
    if chosen.processes == 1 and os.environ.get("WORLD_SIZE", "1") == "1":
        steps.run(*words, say=say)
        return 0
    from eldistill import distributed  # torch takes seconds

    if chosen.processes > 1 and "RANK" not in os.environ:
        top = params.load().top("distil")
        return distributed.launch(
            arguments, chosen.processes, most=PARTS if top["fit"] and not top["micro_batch"] else 1, say=say
        )
    with distributed.joined() as rank:
        steps.run(*words, say=say, rank=rank)
    return 0


if __name__ == "__main__":
    sys.exit(main())
