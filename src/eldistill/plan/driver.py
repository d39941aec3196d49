# SPDX-License-Identifier: Apache-2.0
"""Changes to Snakemake's main process: it follows the recipes, stops when a suite is too expensive, ends its steps when it is ended, and
checks its result."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from eldistill.errors import Problem, expected_among, quoted
from eldistill.plan import cluster, freshness
from eldistill.plan.recipes import WORDS, Step
from eldistill.signals import PASSED_ON

if TYPE_CHECKING:
    from psutil import Process
    from snakemake.workflow import Workflow

    from eldistill.plan.plan import Plan

HOURS = "ELDISTILL_MAX_GPU_HOURS"
IMAGE = os.environ.get("ELDISTILL_IMAGE") or "data/scratch/eldistill.sif"  # what jobs run inside, if asked to
DEFINITION = "profiles/slurm-apptainer/eldistill.def"


# The Snakemake whose scheduler `wake_once` knows: that of requirements.lock.
KNOWN = "9.27.1"


def wake_once(version: str | None = None) -> bool:
    """Limit Snakemake's scheduler to one pending wake-up; returns whether this was done, which is only for the version KNOWN.

    The scheduler requests a wake-up in one second whenever it wakes up and whenever a job ends, and these requests add up. A
    driver with a hundred finished jobs spends up to a third of a core on them, one with a thousand a whole core.
    """
    import snakemake
    from snakemake.scheduling.job_scheduler import JobScheduler

    if (version or snakemake.__version__) != KNOWN:
        return False
    waiting: weakref.WeakSet[JobScheduler] = weakref.WeakSet()

    def schedule(scheduler: JobScheduler, delay: float) -> None:
        def wake() -> None:
            waiting.discard(scheduler)
            scheduler._open_jobs.release()

        if scheduler not in waiting:
            waiting.add(scheduler)
            threading.Timer(delay, wake).start()

    JobScheduler._schedule_reevalutation = schedule
    return True


def forced(workflow: Workflow) -> bool:
    """Whether the user asks Snakemake to run steps again (--forceall, --forcerun …); everything that depends on them follows."""
    settings = workflow.dag_settings
    return bool(settings and (settings.forceall or settings.forcerun or settings.forcetargets))


def trains(workflow: Workflow, stale: Iterable[Step]) -> bool:
    """Whether this call of Snakemake may start trainings of generators."""
    targets = set(workflow.dag_settings.targets)
    return any(step.word == "distil" for step in stale) and not (targets and targets <= {"data", "teacher", "ensemble"})


def need_files(workflow: Workflow, stale: Iterable[Step]) -> None:
    """Raises WorkflowError if a job of this call reads a file outside git that does not exist: such a job may come last."""
    from snakemake.exceptions import WorkflowError

    made = {str(path) for job in workflow.dag.needrun_jobs() for path in job.output}
    if lines := freshness.missing_files(step for step in stale if step.outputs[0] in made):
        raise WorkflowError(f"eldistill: {'; '.join(lines)}; no job was started")


def name_suite(workflow: Workflow, suite: str, recorded: str) -> None:
    """Say on a cluster, whose profile chooses the suite, if DVC would make and record another one.

    recorded: the suite of params.yaml."""
    if suite != recorded and not workflow.local_exec:
        print(
            f"eldistill: the suite is {suite}; `dvc repro` makes and records that of params.yaml, {recorded}: write `suite: {suite}` "
            "there to record this one",
            file=sys.stderr,
        )


def need_workers(workflow: Workflow) -> None:
    """Raises WorkflowError where no job could ever start, for which Snakemake would wait without end: `--cores 0`, `--jobs 0`."""
    from snakemake.exceptions import WorkflowError

    most = workflow.global_resources["_cores" if workflow.local_exec else "_nodes"].value
    if isinstance(most, int) and most < 1:
        option = "--cores" if workflow.local_exec else "--jobs"
        raise WorkflowError(
            f"eldistill: {option} is {most}, so that no job could start; give {option} 1 or more, or -n to see what would run"
        )


def explain_targets(workflow: Workflow, plan: Plan, suite: str) -> None:
    """Make Snakemake say in one sentence which targets there are where it is asked for another one."""
    from snakemake.exceptions import MissingRuleException, WorkflowError

    execute = workflow.execute
    known = (
        f"or a file that a step makes: `python -m eldistill plan {suite}` lists the steps, `snakemake --list` the rules, and "
        "--config suite=NAME chooses another suite"
    )

    def execute_known(*given: Any, **named: Any) -> None:
        try:
            execute(*given, **named)
        except MissingRuleException as error:
            found = re.search(r"No rule to produce (.*?) \(if you use", str(error), re.DOTALL)
            target = found[1] if found else ""
            _refuse(
                f"the target {quoted(target)} is not made by this workflow{expected_among(['all', *WORDS], target)}, {known}"
            )
        except WorkflowError as error:
            if "Target rules may not contain wildcards" in str(error):
                _refuse(f"a rule that makes many files is no target; expected one of all, {', '.join(WORDS)}, {known}")
            if found := re.search(rf"{ABSENT}: (\w+) (\S+)", str(error)):
                _refuse(absent_step(plan, suite, found[1], found[2]))
            raise

    workflow.execute = execute_known


ABSENT = "no step of this suite"  # marks the error of an input function, in which Snakemake puts a traceback


def absent_step(plan: Plan, suite: str, word: str, name: str) -> str:
    """Why nothing makes a step in a suite, and what to type."""
    by_hand = f"`python -m eldistill {word} {name}`"
    if (word, name) in plan.suite(suite, kept=True):
        return f"the results of {word} {name} are kept, so that nothing makes it; {by_hand} makes it by hand"
    others = [other for other in plan.params.values["suites"] if (word, name) in plan.suite(other)]
    where = f"--config suite={others[0]} has it" if others else "no other suite has it: add it to a grid of params.yaml"
    return f"{word} {name} is not in the suite {suite}; {where}, and {by_hand} makes it by hand if its name is right"


def need_image(workflow: Workflow, image: str = IMAGE) -> None:
    """Raises Problem where jobs are to run inside an image that is not there: each would fail, and be tried again."""
    settings = workflow.deployment_settings
    wanted = {method.name for method in settings.deployment_method} if settings else set()
    if "APPTAINER" in wanted and "://" not in image and not Path(image).exists():
        raise Problem(
            f"the image {image} is missing; build it with `apptainer build {image} {DEFINITION}` on a machine that reaches the "
            "network, or name another one by ELDISTILL_IMAGE"
        )


def allowed(most: float) -> float:
    """GPU hours that may be spent: those of ELDISTILL_MAX_GPU_HOURS, or without it `most`. Raises Problem if it is no number."""
    given = os.environ.get(HOURS)
    if given is None:
        return most
    try:
        hours = float(given)
    except ValueError:
        hours = math.nan
    if not hours >= 0:  # also nan, which is below nothing and would let everything pass
        raise Problem(
            f"{HOURS} is {quoted(given)}; expected a number of hours that is not negative, such as 100, or inf"
        )
    return hours


def called_for(workflow: Workflow, stale: Iterable[Step]) -> list[str] | None:
    """The trainings that this call of Snakemake makes, as `cost --only` takes them; None for all that are stale."""
    made = {str(path) for job in workflow.dag.needrun_jobs() for path in job.output}
    trained = [step for step in stale if step.kind in ("teacher", "run")]
    found = [step for step in trained if step.outputs[0] in made]
    return None if len(found) == len(trained) else [f"{step.word}/{step.name}" for step in found]


def print_bill(suite: str, most: float, only: list[str] | None = None) -> None:
    """Print the GPU hours of the unfinished trainings. Raises WorkflowError above `most` hours, or if they cannot be counted.

    only: what `called_for` gives.

    Counting needs torch, which takes seconds to import, so it runs in another process.
    """
    from snakemake.exceptions import WorkflowError

    try:
        hours = allowed(most)
    except Problem as problem:
        raise WorkflowError(f"eldistill: {problem}; no job was started") from None
    if only is not None and not only:
        return  # this call trains nothing
    more = [] if only is None else ["--only", *only]
    done = subprocess.run([sys.executable, "-m", "eldistill", "cost", suite, "--allow", str(hours), *more])
    if done.returncode == 2:
        raise WorkflowError("eldistill: no job was started")
    if done.returncode:
        raise WorkflowError(
            f"eldistill: what the suite {suite} takes could not be counted (exit code {done.returncode}, see above), so no job was "
            f"started; `{sys.executable} -m eldistill cost {suite}` has to work here"
        )


def step_processes(process: Process) -> Iterator[Process]:
    """The steps that run below a process: of several processes that share a step the one that started the others."""
    import psutil

    with contextlib.suppress(psutil.Error):  # it has ended meanwhile
        for child in process.children():
            with contextlib.suppress(psutil.Error):
                words = child.cmdline()
                if ("-m", "eldistill") in zip(words, words[1:], strict=False):
                    yield child
                else:
                    yield from step_processes(child)


def stop_steps() -> int:
    """Ask the steps that this process started to end; trainings save their state. Returns their number."""
    import psutil

    count = 0
    for step in step_processes(psutil.Process()):
        with contextlib.suppress(psutil.Error):
            step.send_signal(PASSED_ON)
            count += 1
    if count:
        asked = "1 running step was" if count == 1 else f"{count} running steps were"
        # Not `print`: this may be called in the handler of a signal.
        os.write(
            2, f"eldistill: {asked} asked to end; trainings save their state, and the same command continues\n".encode()
        )
    return count


def pass_signals_on(version: str | None = None) -> bool:
    """Pass SIGTERM, SIGINT and SIGHUP to the driver alone on to its steps; returns whether this was done, which is only for KNOWN.

    Snakemake would wait for running jobs, of which a training may take days. Where the signal goes to all processes, as Ctrl-C in
    a terminal does, steps get it twice, and PASSED_ON is ignored by those that have it.
    """
    import snakemake
    from snakemake.executors.local import Executor
    from snakemake.scheduling.job_scheduler import JobScheduler

    if (version or snakemake.__version__) != KNOWN:
        return False
    graceful, cancel = JobScheduler.exit_gracefully, Executor.cancel

    def exit_gracefully(scheduler: JobScheduler, *given: Any) -> None:
        graceful(scheduler, *given)
        stop_steps()

    def cancel_and_stop(executor: Executor) -> None:
        stop_steps()
        cancel(executor)

    JobScheduler.exit_gracefully, Executor.cancel = exit_gracefully, cancel_and_stop
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    return True


def _refuse(sentence: str) -> NoReturn:
    # Snakemake would print the place in this file below an exception of its own.
    print(f"eldistill: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def name_other_driver(workflow: Workflow, file: int | None) -> None:
    """Make Snakemake say which other driver is at work in this folder, instead of advising --unlock, and refuse --unlock meanwhile.

    file: the descriptor of `cluster.driver_lock`."""
    from snakemake.exceptions import LockException

    execute, unlock = workflow.execute, workflow.unlock

    def execute_alone(*given: Any, **named: Any) -> None:
        try:
            execute(*given, **named)
        except LockException:
            if other := cluster.other_driver(file):
                _refuse(
                    f"another snakemake makes some of the same files here: {other}; wait until it has ended, or stop it by Ctrl-C "
                    "(`kill -INT` elsewhere), on which trainings save their state; do not use --unlock while it runs"
                )
            raise

    def unlock_if_alone() -> None:
        if other := cluster.other_driver(file):
            _refuse(
                f"a snakemake is at work in this folder: {other}; nothing is unlocked, because two that make the same files damage "
                "them; stop it first"
            )
        unlock()

    workflow.execute, workflow.unlock = execute_alone, unlock_if_alone


def obey_recipes(workflow: Workflow, steps: Iterable[Step]) -> None:
    """Let only recipes decide which steps run, and fail at the end if a requested step is still stale.

    Snakemake's own records of code, parameters and input sets would run finished steps again. Its records of checksums can
    make it skip a stale step, after which DVC would record results under the wrong numbers.
    """
    from snakemake.exceptions import WorkflowError
    from snakemake.settings.types import RerunTrigger

    settings, execute, steps = workflow.dag_settings, workflow.execute, list(steps)
    if not settings:  # nothing will run: --lint
        return
    settings.rerun_triggers = frozenset({RerunTrigger.MTIME})

    def execute_and_check(*given: Any, **named: Any) -> None:
        execute(*given, **named)
        partly = settings.until or settings.omit_from or settings.batch or workflow.workflow_settings.consider_ancient
        if workflow.dryrun or workflow.touch or partly:
            return
        if left := freshness.stale_targets(steps, set(settings.targets)):
            raise WorkflowError(f"eldistill: {freshness.complaint(left)}")

    workflow.execute = execute_and_check
