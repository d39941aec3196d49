# SPDX-License-Identifier: Apache-2.0
"""Commands that are ended from outside: by a signal at any moment, or by the end of their driver."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from snakemake.exceptions import LockException, MissingRuleException, WorkflowError

from eldistill import signals
from eldistill.errors import Problem
from eldistill.plan import cluster, driver, freshness, params, profiles
from eldistill.plan.plan import Plan
from eldistill.plan.recipes import Step
from eldistill.training import interrupts
from tests.conftest import ROOT

# A step whose maker is in the middle of writing a file. Nothing of torch is imported.
STEP = """
import sys, time
from pathlib import Path
from eldistill import __main__ as program, files, signals
from eldistill.steps import run, work

def make_step(job):
    with files.atomic(job.outputs[0]) as temporary:
        temporary.write_text("half")
        print("at work", flush=True)
        time.sleep(60)

run.make_step, run._checked = make_step, lambda plan, step, recipe: ()
work.set_threads, work.find_machine = lambda *given: None, lambda *given: None
sys.exit(program.main(sys.argv[1:]))
"""
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGHUP: 75, signals.PASSED_ON: 75}
NAMES = {signal.SIGINT: "SIGINT", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP", signals.PASSED_ON: "SIGTERM"}
STEPS = ("data digits/images", "data digits/judge-a", "data digits/reference-pixels", "teacher digits-smoke/check",
         "ensemble digits/conv4/0", "distil digits-smoke/di/el/0", "evaluate digits-smoke/di/el/0", "tables smoke")  # fmt: skip


def usual() -> None:
    """Runs in a child before its program: a background shell ignores some signals, and children inherit that."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def start(*words: str, source: str = "", **more) -> subprocess.Popen:
    """Python with these arguments and this checkout. source: a folder that precedes it."""
    path = os.pathsep.join(filter(None, [source, str(ROOT / "src")]))
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=usual,
        env=os.environ | {"PYTHONPATH": path}, **more,
    )  # fmt: skip


# --- signals ----------------------------------------------------------------------------------------------


def is_sentence(started: subprocess.Popen, number: int) -> None:
    """It ends with one sentence and the exit code of the signal."""
    said = started.communicate(timeout=30)[1]
    assert said.startswith(f"eldistill: stopped by {NAMES[number]}; ") and len(said.splitlines()) == 1, said
    assert started.returncode == SIGNALS[number]


@pytest.mark.parametrize(
    ("words", "number"),
    [*((words, number) for words in STEPS for number in (signal.SIGINT, signal.SIGTERM)),
     *((STEPS[0], number) for number in (signal.SIGHUP, signals.PASSED_ON))],
)  # fmt: skip
def test_a_signal_during_a_step_is_one_sentence_and_leaves_nothing_half_written(project, words, number):
    started = start("-c", STEP, *words.split())
    assert started.stdout.readline() == "at work\n"
    started.send_signal(number)
    is_sentence(started, number)
    assert not [path for path in project.rglob("*") if path.suffix == ".tmp" or path.name == "images.safetensors"]


@pytest.mark.parametrize(
    "broken", ["", "except BaseException: raise ImportError('broken')"], ids=["raised", "replaced"]
)
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_during_the_imports_is_one_sentence(project, tmp_path_factory, number, broken):
    """Libraries are imported before `main` runs, and some replace every exception by one of their own."""
    folder = tmp_path_factory.mktemp("slow")
    wait = "print('importing', flush=True); import time; time.sleep(60)"
    (folder / "yaml.py").write_text(f"try:\n    {wait}\n{broken or 'finally: pass'}\n")
    started = start("-m", "eldistill", "plan", "smoke", source=str(folder))
    assert started.stdout.readline() == "importing\n"
    started.send_signal(number)
    is_sentence(started, number)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_what_the_starter_ignores_stays_ignored(number):
    """nohup asks for that."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with signals.Signals(), interrupts.Interrupts(pytest.fail):
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("order", [(signal.SIGTERM, signals.PASSED_ON), (signals.PASSED_ON, signal.SIGTERM)])
def test_a_signal_that_comes_twice_by_two_ways_is_one_request(order):
    """From the machine and from the driver: the end that the first began is not disturbed."""
    seen = []
    with pytest.raises(signals.Interrupted, match="SIGTERM"), signals.Signals():
        with interrupts.Interrupts(seen.append):
            for number in order:
                os.kill(os.getpid(), number)
        assert seen == ["SIGTERM", "SIGTERM"]
        try:
            os.kill(os.getpid(), order[0])
        finally:
            os.kill(os.getpid(), order[1])
            seen.append("cleaned")
    assert seen[-1] == "cleaned"


def test_handlers_are_those_of_before():
    """Also where the tests run in the background of a shell, which ignores Ctrl-C."""
    outside = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        with signals.Signals():
            assert all(signal.getsignal(number) is not signal.SIG_DFL for number in SIGNALS)
        assert all(signal.getsignal(number) is signal.SIG_DFL for number in SIGNALS)
    finally:
        for number, handler in outside.items():
            signal.signal(number, handler)


# --- the driver -------------------------------------------------------------------------------------------

# In place of a step: `python -m eldistill` that starts a second process, as a step with several does, and writes which signals came.
FAKE = """
import os, signal, subprocess, sys, time
name = sys.argv[1]
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: open(name, "a").write(signal.Signals(number).name + "\\n"))
child = subprocess.Popen([sys.executable, "-m", "eldistill", "worker"]) if name == "step" else None
open(name + ".ready", "w").close()
deadline = time.monotonic() + 60
while time.monotonic() < deadline and not os.path.exists("step"):
    time.sleep(0.05)
time.sleep(0.3)
sys.exit(75)
"""
SNAKEFILE = """
import sys
sys.path.insert(0, {source!r})
from eldistill.plan import driver
driver.pass_signals_on()
rule all:
    output: "out"
    shell: "PYTHONPATH={fake} {python} -m eldistill step 2>&1 | (trap '' INT TERM HUP; exec tee log)"
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_the_driver_alone_reaches_its_steps_once(tmp_path, number):
    """Snakemake would wait for the end of the job. Of several processes that share a step only the one that started them is asked."""
    package = tmp_path / "fake/eldistill"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE)
    (tmp_path / "Snakefile").write_text(
        SNAKEFILE.format(source=str(ROOT / "src"), fake=tmp_path / "fake", python=sys.executable)
    )
    started = start("-m", "snakemake", "--cores", "1", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "worker.ready").exists() and time.monotonic() < deadline and started.poll() is None:
        time.sleep(0.05)
    begun = time.monotonic()
    started.send_signal(number)
    said = started.communicate(timeout=60)[1]
    assert time.monotonic() - begun < 30 and started.returncode == 1
    assert (tmp_path / "step").read_text() == "SIGUSR1\n" and not (tmp_path / "worker").exists(), said
    assert "eldistill: 1 running step was asked to end" in said and "Traceback" not in said


def test_another_version_of_snakemake_is_left_as_it_is():
    from snakemake.executors.local import Executor
    from snakemake.scheduling.job_scheduler import JobScheduler

    before = JobScheduler.exit_gracefully, Executor.cancel
    assert not driver.pass_signals_on("9.99.0")
    assert before == (JobScheduler.exit_gracefully, Executor.cancel)


HOLD = "from eldistill.plan import cluster; print(cluster.driver_lock()[0], flush=True); input()"


def locked() -> None:
    raise LockException


def test_the_second_driver_is_told_who_holds_the_folder(tmp_path, monkeypatch, capsys):
    """Process, machine and time; never the advice to unlock while the other one lives. --unlock is refused for as long."""
    monkeypatch.chdir(tmp_path)
    first = start("-c", HOLD, stdin=subprocess.PIPE)
    assert first.stdout.readline() == "True\n"
    alone, file = cluster.driver_lock()
    unlocked = []
    workflow = SimpleNamespace(execute=locked, unlock=lambda: unlocked.append(1))
    driver.name_other_driver(workflow, file)
    holder = rf"process {first.pid} on \S+, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
    try:
        assert not alone
        for _ in range(2):  # asking does not lose the lock of this process
            for call, words in ((workflow.execute, "do not use --unlock"), (workflow.unlock, "nothing is unlocked")):
                with pytest.raises(SystemExit) as ended:
                    call()
                said = capsys.readouterr().err
                assert (
                    ended.value.code == 2 and re.search(holder, said) and words in said and len(said.splitlines()) == 1
                )
    finally:
        first.kill()
        first.communicate()
    with pytest.raises(LockException):  # nobody is left: Snakemake's own advice is right
        workflow.execute()
    workflow.unlock()
    assert unlocked == [1]
    os.close(file)


def test_recipes_stay_while_another_driver_lives(tmp_path):
    """Its waiting jobs read them when they start. What is as they read it, and what no job reads yet, is no reason to refuse."""
    steps = [Step("data", name, (), {"n": 1}, (f"data/sets/{name}/1",)) for name in "abcde"]
    freshness.refresh(steps[:4], tmp_path)
    freshness.refuse_changes(steps, "process 7 on node0", "demo", tmp_path)
    changed = [replace(step, params={"n": 2}) for step in steps]
    with pytest.raises(Problem) as error:
        freshness.refuse_changes(changed, "process 7 on node0", "demo", tmp_path)
    assert "process 7 on node0" in str(error.value) and "data a, data b, data c and 1 others" in str(error.value)
    assert [(tmp_path / step.file).read_text(encoding="utf-8") for step in steps[:4]] == [
        step.recipe for step in steps[:4]
    ]


def test_a_cluster_says_which_suite_dvc_would_record(capsys):
    for local, suite, said in ((False, "gpu-day", True), (False, "demo", False), (True, "gpu-day", False)):
        driver.name_suite(SimpleNamespace(local_exec=local), suite, "demo")
        err = capsys.readouterr().err
        assert ("the suite is gpu-day; `dvc repro` makes and records that of params.yaml, demo" in err) is said
        assert len(err.splitlines()) == said


def test_no_driver_waits_for_jobs_that_cannot_start():
    """`--cores 0` waited without end."""
    for local, option in ((True, "--cores"), (False, "--jobs")):
        for most in (0, 1, None):
            here, there = (most, None) if local else (None, most)
            numbers = {"_cores": SimpleNamespace(value=here), "_nodes": SimpleNamespace(value=there)}
            workflow = SimpleNamespace(local_exec=local, global_resources=numbers)
            if most == 0:
                with pytest.raises(
                    WorkflowError, match=f"{option} is 0, so that no job could start; give {option} 1 or more"
                ):
                    driver.need_workers(workflow)
            else:
                driver.need_workers(workflow)


@pytest.mark.parametrize(
    ("target", "near"), [("tabels", "did you mean tables"), ("data/runs/x/y.z", "expected one of all, data")]
)
def test_an_unknown_target_is_answered_with_those_that_there_are(target, near, capsys):
    def execute():
        raise MissingRuleException(target)

    workflow = SimpleNamespace(execute=execute)
    driver.explain_targets(workflow, None, "smoke")
    with pytest.raises(SystemExit) as ended:
        workflow.execute()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"the target '{target}' is not made by this workflow" in said and near in said
    assert "python -m eldistill plan smoke" in said and "--config suite=NAME" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("step", "words"),
    [("distil digits/di/el/0", "is not in the suite smoke; --config suite=demo has it, and `python -m eldistill distil digits/di/el/0`"),
     ("distil nosuch/di/el/0", "is not in the suite smoke; no other suite has it: add it to a grid of params.yaml, and `python"),
     ("tables smoke/nosuch", "is not in the suite smoke; no other suite has it"), ("", "a rule that makes many files is no target")],
)  # fmt: skip
def test_a_step_that_is_not_in_the_suite_is_one_sentence(project, capsys, step, words):
    """Snakemake puts the error of an input function between a list of wildcards and a traceback."""
    text = f"Error:\n  WorkflowError:\n    {driver.ABSENT}: {step}\nWildcards:\n    data=digits\nTraceback:\n  File"

    def execute():
        raise WorkflowError(text if step else "Target rules may not contain wildcards. Please specify concrete files")

    workflow = SimpleNamespace(execute=execute)
    driver.explain_targets(workflow, Plan(params.load_params()), "smoke")
    with pytest.raises(SystemExit) as ended:
        workflow.execute()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and words in said and step in said and len(said.splitlines()) == 1


def test_other_errors_of_snakemake_pass():
    def execute():
        raise WorkflowError("another")

    workflow = SimpleNamespace(execute=execute)
    driver.explain_targets(workflow, None, "smoke")
    with pytest.raises(WorkflowError, match="another"):
        workflow.execute()


# --- profiles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["config:\n  - suite=a\n  - device=cuda\n", "config: {suite: a, device: cuda}\ncores: 1\n"]
)
@pytest.mark.parametrize("how", ["--profile P", "--profile=P", "--workflow-profile P", "variable"])
def test_a_key_of_a_profile_names_the_file_of_the_profile(tmp_path, text, how):
    (tmp_path / "config.yaml").write_text(text)
    sentence = f"{profiles.OPTIONS} gives device as 'cuda', and params.yaml has none"
    words = [] if how == "variable" else how.replace("P", str(tmp_path)).split()
    variables = {"SNAKEMAKE_PROFILE": str(tmp_path)} if how == "variable" else {}
    there = sentence.replace(profiles.OPTIONS, f"`config:` in {tmp_path}/config.yaml")
    assert profiles.name_place(sentence, words, variables) == there
    assert profiles.name_place(sentence, [*words, "--config", "device=cuda"], variables) == sentence
    other = sentence.replace("device", "devices")
    assert profiles.name_place(other, words, variables) == other


@pytest.mark.parametrize(
    ("profile", "name", "value"),
    [("slurm", "ELDISTILL_SLURM_POLL", "abc"), ("slurm", "ELDISTILL_SLURM_POLL", "0"), ("slurm", "ELDISTILL_SLURM_STATUS", "x"),
     ("profiles/gpu", "ELDISTILL_GPUS", "two")],
)  # fmt: skip
def test_a_variable_of_a_profile_that_is_wrong_is_one_sentence(profile, name, value, monkeypatch, capsys):
    """Without the page of options that Snakemake prints when a profile cannot be read."""
    import yte

    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        yte.process_yaml((ROOT / profile / "config.yaml").read_text(encoding="utf-8"), require_use_yte=True)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and len(said.splitlines()) == 1
    assert said.startswith(f"eldistill: {name} is '{value}'; expected") and f"{profile}/config.yaml" in said
    monkeypatch.delenv(name)
    assert yte.process_yaml((ROOT / profile / "config.yaml").read_text(encoding="utf-8"), require_use_yte=True)
