# SPDX-License-Identifier: Apache-2.0
# Parameters are checked, recipes are written and staleness is decided here (src/eldistill/plan/recipes.py says how).
import gc
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "src"))

from snakemake.exceptions import WorkflowError

from eldistill.plan import cluster, driver, freshness, identity, params
from eldistill.paths import STUDY
from eldistill.errors import Problem
from eldistill.plan.plan import Plan
from eldistill.plan.recipes import WORDS

# Thousands of jobs are millions of objects that stay: looking for garbage among them is a tenth of planning.
gc.set_threshold(200_000, 20, 20)

try:
    if workflow.is_main_process:
        driver.need_image(workflow)
    PARAMS = params.from_snakemake(config, workflow.config_settings.overwrite_config, workflow.basedir)
    SUITE = PARAMS.values["suite"]
    # The driver looks at what lies outside git; a job takes what the driver recorded.
    PLAN = Plan(PARAMS, identity.Identities(measured=workflow.is_main_process))
    STEPS = PLAN.suite(SUITE)
    stale = None
    if workflow.is_main_process:
        # Held for as long as this driver lives; what a driver that was killed has left is cleared away.
        ONLY_ONE, DRIVER = cluster.driver_lock()
        stale = freshness.refresh(
            STEPS.values(),
            say=lambda line: print(f"eldistill: {line}", file=sys.stderr),
        )
        for line in freshness.missing_files(stale):
            print(f"eldistill: {line}", file=sys.stderr)
        PLAN.identities.record()
    INPUTS = freshness.Inputs(stale, ancient, driver.forced(workflow))
except Problem as problem:
    print(f"eldistill: {problem}", file=sys.stderr)
    sys.exit(2)


# Used only with `--software-deployment-method apptainer`, as profiles/slurm-apptainer sets it.
container: driver.IMAGE


driver.wake_once()
if workflow.is_main_process:
    driver.obey_recipes(workflow, STEPS.values())


onstart:
    # Trainings of a driver that was killed go on: they are told to save, and are continued.
    if ONLY_ONE and workflow.is_main_process and not workflow.local_exec:
        cluster.end_orphans()
    # What is ahead, and whether somebody meant to spend so much.
    if workflow.is_main_process and driver.trains(workflow, stale):
        driver.print_bill(SUITE, PARAMS.top("max_gpu_hours"))


def outputs_of(*words):
    """What these steps of the suite leave: the first output and the recipe stand for the others. A step that lacks any of
    them is stale by its recipe, and planning takes half the time."""
    chosen = [step for (word, _), step in STEPS.items() if word in words and not step.on_demand]
    return [path for step in chosen for path in (step.outputs[0], step.sidecar)]


def inputs_of(word, name):
    """Inputs of a rule, the recipe by its name: src/eldistill/plan/freshness.py says which, and what they tell Snakemake."""

    def inputs(wildcards):
        wanted = name.format(**wildcards)
        if (word, wanted) not in STEPS:
            raise WorkflowError(
                f"{word} {wanted} is not in the suite {SUITE}; add it to a grid, or run it by hand"
            )
        recipe, *others = INPUTS(STEPS[word, wanted])
        return {"recipe": recipe, "others": others}

    return inputs


# What lies elsewhere is fetched by the rule `download`, where there is a line; no other job asks the network.
os.environ.setdefault("ELDISTILL_FETCH", "no")


# Jobs of this machine share the GPUs that --resources gpu=N counts: each locks its own (src/eldistill/plan/gpus.py).
if workflow.is_main_process and workflow.local_exec and "gpu" in workflow.global_resources:
    os.environ.setdefault("ELDISTILL_GPUS", str(workflow.global_resources["gpu"]))


# Names of teachers that others have trained, as a pattern of wildcards; the others are trained here.
THEIRS = "|".join(map(re.escape, PARAMS.others_teachers())) or "(?!)"


# What a command prints is shown and kept. Ctrl-C and Slurm's signals are for the command: `tee` reads to its end.
TEE = "2>&1 | (trap '' INT TERM; exec tee {log})"
# Under Slurm a training stops by itself, saved, before its time is up (exit code 75, retried by the profile).
BUDGET = "${{SLURM_JOB_ID:+--max-minutes {resources.runtime}}}"
# A training shares its batches, an evaluation its images, among the GPUs of its job (`gpu: 4` under set-resources).
SHARED = "--processes $(( {resources.gpu} > 1 ? {resources.gpu} : 1 ))"


def at_most_thrice(mb):
    """Memory that grows with the attempts: a job that was killed for it must not be killed again, one that uses up its
    time thirty times must not ask for thirty times as much."""
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
