# SPDX-License-Identifier: Apache-2.0
# Checks the parameters, writes the recipes and decides which outputs are stale (src/eldistill/plan/recipes.py explains how).
import gc
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from eldistill import files
from eldistill.plan import cluster, driver, freshness, gpus, identity, params, profiles
from eldistill.paths import FOLDERS, STUDY
from eldistill.errors import Problem, printable
from eldistill.plan.plan import Plan
from eldistill.plan.recipes import WORDS

# A plan of thousands of jobs keeps millions of objects alive. With Python's default thresholds, garbage collection would take a
# tenth of the time of planning.
gc.set_threshold(200_000, 20, 20)

try:
    cluster.ensure_user_name()
    if workflow.is_main_process:
        driver.need_image(workflow)
    PARAMS = params.from_snakemake(config, workflow.config_settings.overwrite_config, workflow.basedir)
    SUITE = PARAMS.values["suite"]
    # The driver reads the files outside git to identify them; a job uses the identities that the driver recorded.
    PLAN = Plan(PARAMS, identity.Identities(measured=workflow.is_main_process))
    STEPS = PLAN.suite(SUITE)
    stale = None
    if workflow.is_main_process:
        # The lock lasts as long as this driver. Leftovers of a driver that was killed are removed.
        ONLY_ONE, DRIVER = cluster.driver_lock()
        if not ONLY_ONE and (other := cluster.other_driver(DRIVER)):
            freshness.refuse_changes(STEPS.values(), other, SUITE)
        stale = freshness.refresh(
            STEPS.values(),
            say=lambda line: print(f"eldistill: {printable(line)}", file=sys.stderr),
        )
        for line in freshness.missing_files(stale):
            print(f"eldistill: {printable(line)}", file=sys.stderr)
        PLAN.identities.record()
    INPUTS = freshness.Inputs(stale, ancient, driver.forced(workflow))
except Problem as problem:
    print(f"eldistill: {profiles.name_place(str(problem))}", file=sys.stderr)
    sys.exit(2)
except OSError as error:
    print(f"eldistill: {files.describe_failure(error)} and repeat the command", file=sys.stderr)
    sys.exit(1)
except KeyboardInterrupt:  # files outside git are hashed here, which may take minutes
    print(
        "eldistill: stopped by SIGINT before any job was started; repeat the command to go on",
        file=sys.stderr,
    )
    sys.exit(130)


# Used only with `--software-deployment-method apptainer`, as profiles/slurm-apptainer sets it.
container: driver.IMAGE


driver.wake_once()
if workflow.is_main_process:
    driver.pass_signals_on()
    driver.obey_recipes(workflow, STEPS.values())
    driver.name_other_driver(workflow, DRIVER)
    driver.explain_targets(workflow, PLAN, SUITE)


onstart:
    # DVC wants the folder of each stage, also where nothing is made in it because the results of all runs are kept.
    if workflow.is_main_process and PLAN.kept(SUITE):
        for folder in FOLDERS:
            os.makedirs(folder, exist_ok=True)
    # Trainings of a driver that was killed are still running. They are asked to save, and this driver continues them.
    if ONLY_ONE and workflow.is_main_process and not workflow.local_exec:
        cluster.end_orphans()
    if workflow.is_main_process:
        driver.need_workers(workflow)
        driver.name_suite(workflow, SUITE, PARAMS.recorded_suite)
        driver.need_files(workflow, stale)
    # Prints the estimated cost, and stops if it is above max_gpu_hours.
    if workflow.is_main_process and driver.trains(workflow, stale):
        driver.print_bill(SUITE, PARAMS.top("max_gpu_hours"), driver.called_for(workflow, stale))


def outputs_of(*words):
    """The first output and the recipe of each of these steps of the suite.

    They stand for the other outputs, because a step that lacks any output is stale by its recipe; this halves the time of
    planning."""
    chosen = [step for (word, _), step in STEPS.items() if word in words and not step.on_demand]
    return [path for step in chosen for path in (step.outputs[0], step.sidecar)]


def inputs_of(word, name):
    """The input function of a rule: the recipe of the step and its other inputs, as src/eldistill/plan/freshness.py chooses them."""

    def inputs(wildcards):
        wanted = name.format(**wildcards)
        if (word, wanted) not in STEPS:
            raise WorkflowError(f"{driver.ABSENT}: {word} {wanted}")
        recipe, *others = INPUTS(STEPS[word, wanted])
        return {"recipe": recipe, "others": others}

    return inputs


# Only the rule `download` uses the network, on the machine of the driver; all other jobs read the files that it fetched.
os.environ.setdefault("ELDISTILL_FETCH", "no")


# Jobs on this machine share the GPUs of --resources gpu=N, and each job locks the GPUs that it uses (src/eldistill/plan/gpus.py).
if workflow.is_main_process and workflow.local_exec and "gpu" in workflow.global_resources:
    gpus.share(workflow.global_resources["gpu"])


# Pattern for wildcards that matches the names of published teachers, which are converted; all others are trained here.
THEIRS = "|".join(map(re.escape, PARAMS.others_teachers())) or "(?!)"


# The output of a command is printed and also written to its log. `tee` ignores the signals of Ctrl-C, of Slurm and of a closed
# terminal, so that it still records what the command prints while it stops.
TEE = "2>&1 | (trap '' INT TERM HUP; exec tee {log})"
# Under Slurm a training saves its state and stops before its time limit, with exit code 75; the profile then retries the job.
BUDGET = "${{SLURM_JOB_ID:+--max-minutes {resources.runtime}}}"
# A training splits its batches, and an evaluation its images, among the GPUs of its job (`gpu: 4` under set-resources).
SHARED = "--processes $(( {resources.gpu} > 1 ? {resources.gpu} : 1 ))"


def at_most_thrice(mb):
    """Memory in MB that grows with the attempts, up to three times `mb`.

    A job that was killed for lack of memory gets more on its next attempt. The limit is for jobs that are retried many times
    because their time is up."""
    return lambda wildcards, attempt: mb * min(attempt, 3)


wildcard_constraints:
    data="[^/]+",
    method="[^/]+",
    supplement="[^/]+",
    ensemble="[^/]+",
    seed=r"\d+",
    n=r"\d+",
    features="[^/]+",
    letter="[ab]",
    which="real|teacher",
    study=STUDY,
