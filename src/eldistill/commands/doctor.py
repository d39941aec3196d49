# SPDX-License-Identifier: Apache-2.0
"""The command `doctor`: checks whether this machine can run a suite, before hours are lost."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from eldistill import environment
from eldistill.errors import Problem
from eldistill.external import sources
from eldistill.external.sourcelock import LOCK
from eldistill.outside import locate
from eldistill.plan import freshness, guidance, identity, params, questions
from eldistill.plan.plan import Plan
from eldistill.training import lock

GIB = 2**30
LONGEST = {
    "CPU": 720,
    "GPU": 1440,
}  # minutes that a rule asks for at most, by the kind of its partition in slurm/config.yaml

# A finding: (True: good, False: needs attention, None: only information; a sentence that ends with what to do).
Finding = tuple[bool | None, str]


def _answer(*words: str) -> tuple[int, str]:
    """(exit code, what it printed) of a command; (127, "") if there is none."""
    try:
        done = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except (OSError, subprocess.SubprocessError):
        return 127, ""
    return done.returncode, (done.stdout + done.stderr).strip()


def _python(plan: Plan, suite: str) -> Iterator[Finding]:
    yield (3, 11) <= sys.version_info[:2] < (3, 14), f"Python {sys.version.split()[0]}; expected 3.11 to 3.13"
    absent = [name for name in ("snakemake", "dvc") if shutil.which(name, path=_path()) is None]
    yield (
        not absent,
        f"no {' and no '.join(absent)} on the PATH: `source .venv/bin/activate`"
        if absent
        else "snakemake and dvc are there",
    )


def _home(plan: Plan, suite: str) -> Iterator[Finding]:
    """Snakemake keeps a cache in the home folder and does not start where that cannot be written."""
    asked = os.environ.get("XDG_CACHE_HOME", "")  # of which only an absolute path counts
    cache = Path(asked if os.path.isabs(asked) else os.path.expanduser("~/.cache"))
    place = next(each for each in (cache, *cache.parents) if each.exists())
    if cache.is_absolute() and place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        yield True, f"{cache}, where Snakemake keeps a cache, can be written"
    else:
        where = f"{cache} cannot be written" if cache.is_absolute() else "this user has no home folder"
        yield (
            False,
            f"{where}, and Snakemake does not start without a cache: export XDG_CACHE_HOME={Path('data/scratch/cache').absolute()}"
            + ("" if cache.is_absolute() else " and HOME"),
        )


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def _device(plan: Plan, suite: str) -> Iterator[Finding]:
    import torch

    wanted, count = plan.params.top("device"), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(count)}))
        free = min(torch.cuda.mem_get_info(index)[0] for index in range(count)) / GIB
        yield (
            True,
            f"torch {torch.__version__} sees {count} GPU{'s' * (count > 1)} ({names}), {free:.1f} GiB free at least",
        )
    elif wanted == "cuda":
        yield (
            False,
            f"device is cuda in params.yaml, but torch {torch.__version__} sees no GPU here; on a login node that is usual",
        )
    else:
        yield None, f"torch {torch.__version__} sees no GPU here: this machine computes on its CPU"


def _disk(plan: Plan, suite: str) -> Iterator[Finding]:
    from eldistill.commands import cost

    free = shutil.disk_usage(".").free / 1e9
    try:
        bills = cost.bills_left(plan, suite)
    except Problem as problem:
        yield None, f"{free:.0f} GB of disk are free; how much the suite {suite} needs is not known yet ({problem})"
        return
    need = sum(each["disk"] for each in bills)
    word = (
        "enough"
        if need < 0.9 * free
        else "too little: choose another disk, fewer snapshots (distil.snapshots) or a smaller suite"
    )
    yield (
        need < 0.9 * free,
        f"{free:.0f} GB of disk are free, the {len(bills)} trainings left in the suite {suite} need {need:.3g} GB: {word}",
    )


def _files(plan: Plan, suite: str) -> Iterator[Finding]:
    """Published teachers and data that are not on this machine yet."""
    store, offline = locate(environment.store_folder()), environment.offline()
    teachers = {plan.params.section("data", run.data)["teacher"] for run in plan.params.runs(suite)}
    for name in sorted({part for each in teachers for part in guidance.parts_of(plan.params, each)}):
        section, step = plan.params.section("teacher", name), plan.teacher(name)
        if step.fresh(plan.params.root) or not (section["source"] or section["file"]):
            continue
        if section["file"]:
            there = locate(section["file"]).exists()
            advice = "is there" if there else f"is missing: put it there, or change teacher.{name}.file"
            yield there, f"teacher {name}: {section['file']} {advice}"
            continue
        row = sources.source_row(section["source"])
        file_name = row["url"].rsplit("/", 1)[-1]
        if any(store.glob(f"*-{file_name}")):
            yield True, f"teacher {name}: {file_name} has been fetched"
        elif offline:
            yield (
                False,
                f"teacher {name}: ELDISTILL_OFFLINE is 1 and {file_name} is not in {store}; fetch it elsewhere and set teacher.{name}.file",
            )
        else:
            yield None, f"teacher {name}: {row['url']} will be fetched"
    for name in sorted({run.data for run in plan.params.runs(suite)}):
        path = plan.params.section("data", name)["path"]
        if path and not plan.pack(name).fresh(plan.params.root):
            there = locate(path).exists()
            yield (
                there,
                f"data {name}: {path} is {'there' if there else f'missing: put it there, or change data.{name}.path'}",
            )


def _sources(plan: Plan, suite: str) -> Iterator[Finding]:
    """Files outside git, compared with their recorded digests."""
    readers: dict[identity.Source, list[str]] = {}
    for (word, name), step in plan.suite(suite).items():
        for source in step.sources:
            readers.setdefault(source, []).append(f"{word} {name}")
    for source, steps in sorted(readers.items()):
        row = plan.identities.recorded.get((source.name, source.read_as))
        if row is None:
            continue
        where = f"{steps[0]}{f' and {len(steps) - 1} other steps' if len(steps) > 1 else ''}: {source.name}"
        try:
            found, why = identity.measure_source(source, plan.identities.root, print), "is not here"
        except OSError as error:
            found, why = None, identity.why_unreadable(error)
        if found is None:
            yield None, f"{where} {why}; results that were made from it are kept, but cannot be made again here"
        elif found.sha256 == row["sha256"]:
            yield True, f"{where} is what {LOCK} records ({found.files} files)"
        else:
            yield (
                False,
                f"{where} changed since {LOCK} recorded it ({row['files']} files then, {found.files} now): what depends on it will "
                "be made again",
            )


def _slurm(plan: Plan, suite: str) -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield None, "no Slurm here (no sbatch on the PATH)"
        return
    code, text = _answer("sinfo", "--noheader", "--format", "%R|%l")
    if code:
        # Without a sign that Slurm will be used, a broken one stops nothing.
        used = any(name.startswith("ELDISTILL_SLURM_") for name in os.environ) or "SNAKEMAKE_PROFILE" in os.environ
        yield (
            False if used else None,
            f"sinfo fails: {text.splitlines()[0] if text else 'no output'}; if you use Slurm, ask the administrators of this cluster",
        )
        return
    limits = dict(line.strip().partition("|")[::2] for line in text.splitlines())
    partitions = sorted(limits)
    for kind, usual in (("CPU", "cpu"), ("GPU", "gpu")):
        name = os.environ.get(f"ELDISTILL_SLURM_{kind}_PARTITION", usual)
        yield (
            name in partitions,
            f"partition {name} for {kind}s"
            + (
                ""
                if name in partitions
                else f" is none of {', '.join(partitions)}: export ELDISTILL_SLURM_{kind}_PARTITION=…"
            ),
        )
        if _minutes(limits.get(name, "")) < LONGEST[kind]:
            yield (
                False,
                f"partition {name} has a limit of {limits[name]}, and rules ask for up to {LONGEST[kind]} minutes there: such jobs may "
                "wait without end; write a shorter `runtime` for them into slurm/config.yaml (docs/cluster.md, Shorter limits)",
            )
    status, wanted = os.environ.get("ELDISTILL_SLURM_STATUS", "sacct"), {}
    for command in ("sacct", "squeue"):
        wanted[command] = _answer(command, "--noheader")[0] == 0
    if status in wanted and not wanted[status]:
        other = next((command for command, works in wanted.items() if works), None)
        advice = (
            f"export ELDISTILL_SLURM_STATUS={other}"
            if other
            else "the alternative does not work either: ask the administrators of this cluster"
        )
        yield False, f"{status}, by which Snakemake sees its jobs end, does not work here: {advice}"
    else:
        yield True, f"{status} answers: Snakemake will see its jobs end"


def _minutes(limit: str) -> float:
    # Minutes of a time limit as sinfo prints it, such as 1-00:00:00; inf if there is none, or if it has another form.
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit.strip())
    if not found:
        return math.inf
    days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
    return 1440 * days + 60 * hours + minutes + seconds / 60


def _locks(plan: Plan, suite: str) -> Iterator[Finding]:
    try:
        lock.locks_work()
    except OSError as error:
        yield (
            False,
            f"this file system has no locks ({error}): start one snakemake at a time, and no second copy of a run",
        )
    else:
        yield True, "this file system has locks"


def _results(plan: Plan, suite: str) -> Iterator[Finding]:
    """Stale results that this suite does not make again, and outputs that were edited."""
    root = plan.params.root
    for other, steps in freshness.abandoned(plan, suite, root):
        yield (
            None,
            f"{len(steps)} results of the suite {other} were made by other numbers than params.yaml asks for, and the suite "
            f"{suite} does not make them again: {freshness.step_names(steps)}; `snakemake all --config suite={other}` does",
        )
    for sentence in freshness.describe_edits(plan.suite(suite).values(), root):
        yield False, sentence


CHECKS: tuple[Callable, ...] = (_python, _home, _device, _disk, _files, _sources, _results, _slurm, _locks)


def examine(suite: str | None, say: Callable[[str], None]) -> bool:
    """Run all checks and log their findings. Returns whether none needs attention. Raises Problem for wrong parameters."""
    values = params.load_params()
    plan, suite = Plan(values), suite or values.top("suite")
    questions.check_suite(values, suite)
    say(f"ok    params.yaml: the suite {suite} has {len(plan.suite(suite))} steps")
    well = True
    for check in CHECKS:
        for good, sentence in check(plan, suite):
            say(f"{ {True: 'ok   ', False: 'LOOK ', None: '-    '}[good] } {sentence}")
            well = well and good is not False
    return well
