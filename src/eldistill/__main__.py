# SPDX-License-Identifier: Apache-2.0
"""The command line `python -m eldistill`: one subcommand for each of the six steps and for each entry of TOOLS.

Exit codes: 0 done; 2 something the user can put right, in one sentence; 1 the machine failed (disk, memory, a NaN);
75 stopped by a signal or a time limit, 130 by Ctrl-C outside a training: the same command continues.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from eldistill import environment, signals

if (
    __name__ == "__main__" or os.path.basename(sys.argv[0]) == "eldistill"
):  # the latter imports this module from its script
    signals.handle_from_start()

environment.set_threads()  # before numpy is imported
os.environ.pop("SOURCE_DATE_EPOCH", None)  # our figures have no dates, and matplotlib raises where this is no number
os.environ["MPLBACKEND"] = (
    "agg"  # a notebook names a backend of its own, which this environment may lack; only files are drawn
)

from eldistill import __version__, files  # noqa: E402
from eldistill.commands import arguments  # noqa: E402
from eldistill.commands import help as helptext  # noqa: E402
from eldistill.commands.tools import TOOLS, say  # noqa: E402
from eldistill.errors import Lost, NonFinite, Problem, Stopped, absent_package, quoted  # noqa: E402
from eldistill.plan import cluster, gpus, identity, params, recipes  # noqa: E402
from eldistill.plan.plan import Plan  # noqa: E402
from eldistill.steps import run as steps  # noqa: E402

AGAIN = "repeat the command, which continues from the last saved state"
MAX_MICRO_BATCHES = 256  # upper limit when a device runs out of memory and a process halves its micro-batch
ABOUT = {
    "data": ("pack a data set, train a judge, measure a reference",
             "NAME/images, NAME/judge-a, NAME/judge-b, NAME/reference-judge-a, NAME/reference-pixels"),
    "teacher": ("train a teacher, or take over a published one; measure its samples", "NAME under `teacher`, or NAME/check"),
    "ensemble": ("draw and calibrate an ensemble of random networks", "DATA/ENSEMBLE/SEED"),
    "distil": ("distil a teacher into a one-step generator", "DATA/METHOD/SUPPLEMENT/SEED, such as digits/di/el/0"),
    "evaluate": ("generate images and measure them", "a run, DATA/real, DATA/teacher, or suite/SUITE for data/metrics.json"),
    "tables": ("make the tables and plots of a suite", "SUITE, or SUITE/STUDY"),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m eldistill",
        description="Distil diffusion models into one-step generators, measure them and write the tables.",
        epilog="All numbers are in params.yaml; `--help` of a step lists the numbers that it reads.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="word", required=True, metavar="STEP")
    for word, (about, names) in ABOUT.items():
        each = commands.add_parser(
            word, help=about, description=about + ".", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        each.add_argument("name", metavar="NAME", help=names)
        each.add_argument(
            "--recipe", metavar="FILE", help="recipe that the step follows (default: computed from params.yaml)"
        )
        each.add_argument(
            "--force", action="store_true", help="run the step even if its outputs are up to date (default: no)"
        )
        each.add_argument("--max-minutes", type=arguments.from_zero, default=0, metavar="MINUTES",
                          help="save the state and stop after this time, with exit code 75 (default: 0, no limit)")  # fmt: skip
        each.add_argument("--processes", type=int, default=1, metavar="N",
                          help="number of processes that share each batch of a training, one for each GPU (default: 1)")  # fmt: skip
        if word == "tables":
            each.add_argument("--partial", action="store_true",
                              help="keep the finished runs as `keep` does, and make the table from those that are kept (default: from all "
                                   "runs, which must be made)")  # fmt: skip
        each.set_defaults(parser=each)
    for word, tool in TOOLS.items():
        each = commands.add_parser(word, help=tool.help, description=tool.description)
        for names, settings in tool.options:
            each.add_argument(*names, **settings)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _accept_any_text()
    cluster.ensure_user_name()
    with signals.Signals() as caught:
        try:
            code = _run(sys.argv[1:] if arguments is None else arguments)
        except BaseException as error:
            found = caught.report(error) if caught.is_cause_of(error) else _explain(error)
            if found is None:
                _flush()  # what argparse printed
                raise
            code = found
    return _flush() or code


def _accept_any_text() -> None:
    # Under LC_ALL=C and other locales without UTF-8, a character that the terminal lacks is printed as its number.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> int:
    # Python would flush once more at its end, and print that whoever reads the output, `head` say, has seen enough.
    try:
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _run(arguments: list[str]) -> int:
    top = parser()
    if len(arguments) > 1 and arguments[0] in ABOUT and {"-h", "--help"} & set(arguments[1:]):
        # The list of numbers is long: it is made only when it is asked for.
        top._subparsers._group_actions[0].choices[arguments[0]].epilog = helptext.describe_numbers(arguments[0])
    chosen = top.parse_args(arguments)
    return run_chosen(chosen, arguments) if chosen.word in ABOUT else TOOLS[chosen.word].run(chosen) or 0


def _explain(error: BaseException) -> int | None:
    """Print the sentence of an exception and return the exit code, or None if it is a defect of this project."""
    error = absent_package(error) or error
    if isinstance(error, BrokenPipeError):
        return 1
    if isinstance(error, OSError):
        text, code = f"{files.describe_failure(error)} and {AGAIN}", 1
    elif isinstance(error, Problem | NonFinite | Lost | Stopped):
        text, code = str(error), 2 if isinstance(error, Problem) else 75 if isinstance(error, Stopped) else 1
    elif not _out_of_memory(error):
        return None
    elif os.environ.get("ELDISTILL_PARTS"):
        text, code = "the device has too little memory", 76  # to the launcher, which tries again
    else:
        text, code = (
            (
                "the device has too little memory; set distil.micro_batch in params.yaml to a part of the batch (in an evaluation: "
                f"lower evaluate.batch) and {AGAIN}"
            ),
            1,
        )
    print(f"eldistill: {text}", file=sys.stderr)
    return code


def _out_of_memory(error: BaseException) -> bool:
    # Of a device. Whoever raises it has imported torch, which takes seconds.
    if "torch" not in sys.modules:
        return False
    from eldistill.training import compute

    return isinstance(error, Exception) and compute.out_of_memory(error)


def run_chosen(chosen: argparse.Namespace, arguments: list[str]) -> int:
    """Make a step, in one process, in several that are started here, or as one of those that torchrun has started."""
    words = chosen.word, chosen.name, chosen.recipe, chosen.force, chosen.max_minutes
    most = max(64, 4 * (os.cpu_count() or 1))
    if not 1 <= chosen.processes <= most:
        raise Problem(f"--processes {quoted(chosen.processes)}; expected 1 to {most} on this machine, one for each GPU")
    if os.environ.get(gpus.COUNT):
        step = Plan(params.load_params(), identity.Identities(measured=False)).find(chosen.word, chosen.name)
        gpus.take_gpus(chosen.processes if step.kind in recipes.ON_GPU else 0)
    if getattr(chosen, "partial", False):
        return _make_partial(chosen)
    if chosen.processes == 1 and os.environ.get("WORLD_SIZE", "1") == "1":
        steps.run_step(*words, say=say)
        return 0
    from eldistill.training import launch
    from eldistill.training import processes as distributed  # torch takes seconds

    if chosen.processes > 1 and "RANK" not in os.environ:
        values = params.load_params()
        plan = Plan(values, identity.Identities(measured=not chosen.recipe))
        step = plan.find(chosen.word, chosen.name)
        # The rule of a teacher does not know whether it is trained here.
        if step.kind == "conversion" or not (chosen.force or chosen.recipe or not step.fresh(Path())):
            steps.run_step(*words, say=say)
            return 0
        top = values.top("distil")
        most = MAX_MICRO_BATCHES if top["fit"] and not top["micro_batch"] else 1
        if not chosen.recipe:  # so that the processes need not find out what lies outside
            files.write_text(step.file, step.recipe)
            arguments = [*arguments, "--recipe", step.file]
        code = launch.launch(arguments, chosen.processes, most, say)
        if code == 0:
            plan.identities.record()
        return code
    with distributed.join_group(params.load_params().top("device")) as rank:
        steps.run_step(*words, say=say, rank=rank)
    return 0


def _make_partial(chosen: argparse.Namespace) -> int:
    # A table of the runs that are made: those that are finished here are kept first, because it is made from those that are kept.
    from eldistill.commands import keep

    if chosen.recipe:
        raise Problem("--partial and --recipe name different recipes; remove one of them")
    plan = Plan(params.load_params(), identity.Identities(measured=True))
    plan.find(chosen.word, chosen.name)
    say(keep.keep_runs(plan, chosen.name.strip("/").split("/")[0]))
    steps.run_step(chosen.word, chosen.name, force=chosen.force, say=say, partial=True)
    return 0


def end_process(code: int) -> None:
    """End the process. One of several that failed on a GPU ends at once: what torch does at the end waits for the others."""
    if "torch.distributed" in sys.modules:
        from eldistill.training import processes

        if processes.left_after_error():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    end_process(main())
