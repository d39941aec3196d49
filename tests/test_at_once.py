# SPDX-License-Identifier: Apache-2.0
"""Two commands at once in one folder: one of them makes a step, and the other one says who does; nothing that is in use is removed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eldistill import __main__, files
from eldistill.errors import Problem
from eldistill.plan import cluster, params
from eldistill.plan.plan import Plan
from eldistill.steps import run, work
from eldistill.training import lock
from tests.conftest import ROOT

STEPS = ("data digits/images", "data digits/judge-a", "teacher digits-smoke", "teacher digits-smoke/check",
         "ensemble digits/conv4/0", "distil digits-smoke/di/el/0", "evaluate digits-smoke/di/el/0", "evaluate suite/smoke",
         "tables smoke")  # fmt: skip
RUN = "digits-smoke/di/el/0"


def find(words: str):
    return Plan(params.load_params()).find(*words.split(" ", 1))


@pytest.fixture
def bare(project, monkeypatch):
    """A project without results, whose steps make nothing unless a test says what."""
    monkeypatch.setattr(run, "_checked", lambda plan, step, recipe: ())
    monkeypatch.setattr(run, "_upstream", lambda plan, step, recipe: ())
    monkeypatch.setattr(work, "set_threads", lambda *given: None)
    monkeypatch.setattr(work, "find_machine", lambda *given: None)
    monkeypatch.setattr(run, "make_step", lambda job: pytest.fail("a second process makes the step"))
    return project


def make(job) -> None:
    for output in job.outputs:
        files.write_text(output, "made")


# --- one step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", STEPS)
def test_a_second_process_of_a_step_names_the_first_and_touches_nothing(bare, capsys, words):
    """It removed the temporary files of the first one, which then failed at its end."""
    step = find(words)
    temporary = Path(step.outputs[0]).with_name(f".{Path(step.outputs[0]).name}.77.tmp")
    files.write_text(temporary, "half")
    with lock.claim(step.outputs[0], words):
        assert __main__.main([*words.split(" ", 1), "--force"]) == 2
    said = capsys.readouterr().err
    assert f"process {os.getpid()} on " in said and f"is already at work on {words}; wait for it" in said
    assert len(said.splitlines()) == 1 and temporary.read_text() == "half"
    assert not os.path.exists(step.sidecar)


@pytest.mark.parametrize("words", ["distil digits-smoke/di/el/0", "evaluate suite/smoke"])
def test_a_step_ends_its_claim_and_can_be_made_again(bare, monkeypatch, words):
    monkeypatch.setattr(run, "make_step", make)
    for _ in range(2):
        assert __main__.main([*words.split(" ", 1), "--force"]) == 0
    assert find(words).fresh(Path()) and lock.claimed(Path(find(words).outputs[0])) is None


def test_what_another_process_made_meanwhile_is_not_made_again(bare, monkeypatch, capsys):
    """The second process found the step stale, and the first one ended before the second one claimed it."""
    step = find(STEPS[-1])

    @contextlib.contextmanager
    def claim(output, what):
        for output in step.outputs:
            files.write_text(output, "made")
        files.write_text(step.sidecar, step.recipe)
        yield

    monkeypatch.setattr(lock, "claim", claim)
    assert __main__.main(STEPS[-1].split(" ", 1)) == 0
    assert "was made by another process meanwhile" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["evaluate digits-smoke/di/el/0", "tables smoke"])
@pytest.mark.parametrize("ways", ["other numbers", "gone"])
def test_results_that_are_replaced_while_they_are_read_finish_nothing(project, monkeypatch, capsys, words, ways):
    """Otherwise the new numbers would stand beside the recipe of the old ones, and count as what params.yaml asks for."""
    step = find(words)
    for above in step.upstream:
        for output in above.outputs:
            files.write_text(output, "made")
        files.write_text(above.sidecar, above.recipe)

    def make_meanwhile(job) -> None:
        make(job)
        sidecar = Path(step.upstream[-1].sidecar)
        sidecar.unlink() if ways == "gone" else files.write_text(sidecar, "of other numbers")

    monkeypatch.setattr(work, "set_threads", lambda *given: None)
    monkeypatch.setattr(work, "find_machine", lambda *given: None)
    monkeypatch.setattr(run, "make_step", make_meanwhile)
    assert __main__.main(words.split(" ", 1)) == 2
    said = capsys.readouterr().err
    assert f"{words} is not finished, because what it reads changed meanwhile: " in said and len(said.splitlines()) == 1
    assert not os.path.exists(step.sidecar)


def test_a_process_that_was_killed_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "from eldistill.training import lock\nwith lock.claim('data/runs/a/x', 'it'):\n print('held', flush=True)\n input()"
    holder = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env=os.environ | {"PYTHONPATH": str(ROOT / "src")})  # fmt: skip
    with holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            for path in ("data/runs/a/x", "data/runs/a/.y.1.tmp", "data/runs/a/deep/z"):
                assert lock.claimed(Path(path)).startswith(f"process {holder.pid} on ")
            assert lock.claimed(Path("data/runs/b/x")) is lock.claimed(Path("data/runs/ab")) is None
            with pytest.raises(Problem, match=f"process {holder.pid} on .* is already at work on that; wait"):
                with lock.claim("data/runs/a/x", "that"):
                    pass
        finally:
            holder.kill()
    assert lock.claimed(Path("data/runs/a/x")) is None
    with lock.claim("data/runs/a/x", "that"):
        pass


def test_a_step_that_failed_is_at_work_no_more(tmp_path, monkeypatch):
    """Its Slurm job may be listed for a while, and the next attempt is another job."""
    monkeypatch.setenv("SLURM_JOB_ID", "345")
    with pytest.raises(ZeroDivisionError), lock.claim("a/x", "it", tmp_path):
        1 / 0  # noqa: B018
    monkeypatch.setenv("SLURM_JOB_ID", "346")
    monkeypatch.setattr(lock, "running", lambda job: True)
    with lock.claim("a/x", "it", tmp_path):
        (file,) = (tmp_path / lock.CLAIMS).rglob("*.claim")
        assert ", job 346" in file.read_text()
    assert lock.claimed(Path("a/x"), tmp_path) is None
    file.write_text("process 1 on node7, job 345\n")  # that was killed, on a node whose locks are not seen here
    assert lock.claimed(Path("a/x"), tmp_path) == "process 1 on node7, job 345"
    with pytest.raises(Problem, match="job 345 is already at work on it"), lock.claim("a/x", "it", tmp_path):
        pass


def test_the_lock_file_of_a_colleague_is_a_lock_too(tmp_path, monkeypatch):
    """It may only be read by others, and its step can be made again by whoever may write the folder."""
    usual = os.open

    def only_read(path, flags, *more):
        if flags & os.O_RDWR and str(path).endswith(".claim"):
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path, flags, *more)

    with lock.claim("a/x", "it", tmp_path):
        pass
    monkeypatch.setattr(os, "open", only_read)
    with lock.claim("a/x", "it", tmp_path), pytest.raises(Problem, match="another process is already at work on it"):
        with lock.claim("a/x", "it", tmp_path):
            pass


# --- prune --------------------------------------------------------------------------------------------------


def test_prune_leaves_the_files_of_a_step_that_is_being_made(project, capsys):
    """Those that it is writing have names that no suite knows."""
    folder = Path(f"data/runs/{RUN}")
    busy, old = folder / ".generator_ema.safetensors.77.tmp", Path("data/runs/old/di/el/0/log.csv")
    for path in (busy, old):
        files.write_text(path, "x")
    with lock.claim(f"{folder}/generator_ema.safetensors", "distil"):
        assert __main__.main(["prune", "--remove"]) == 0
    assert busy.exists() and not old.exists()
    said = capsys.readouterr().out
    assert "nothing to remove" not in said
    assert f"kept: process {os.getpid()} on " in said and "is at work on its step" in said
    busy.write_bytes(b"")  # it has no size, and is something nevertheless
    assert __main__.main(["prune", "--remove"]) == 0
    assert not busy.exists() and "nothing to remove" not in capsys.readouterr().out


def test_prune_removes_nothing_while_a_snakemake_works(project, capsys):
    """Its jobs may run on machines whose locks are not seen here."""
    old = Path("data/runs/old/di/el/0/log.csv")
    files.write_text(old, "x")
    alone, descriptor = cluster.driver_lock()
    assert alone and __main__.main(["prune", "--remove"]) == 2 and old.exists()
    assert "a snakemake is at work in this folder: " in capsys.readouterr().err
    assert __main__.main(["prune"]) == 0  # a list is no harm
    os.close(descriptor)
    assert __main__.main(["prune", "--remove"]) == 0 and not old.exists()


def test_a_file_that_is_gone_when_prune_comes_to_it_is_no_error(project, monkeypatch):
    """The temporary file of a step that has ended since."""
    from eldistill.commands import prune

    monkeypatch.setattr(prune, "leftovers", lambda plan: [Path("data/runs/gone.tmp")])
    assert __main__.main(["prune", "--remove"]) == 0


def test_the_run_log_is_written_by_the_process_that_makes_the_step(bare, monkeypatch):
    """So its number of lines is that of the steps that were made."""
    monkeypatch.setattr(run, "make_step", make)
    with lock.claim(find(STEPS[0]).outputs[0], "it"):
        assert __main__.main(STEPS[0].split(" ", 1)) == 2
    assert not Path(run.RUN_LOG).exists()
    assert __main__.main(STEPS[0].split(" ", 1)) == 0
    assert [json.loads(line)["name"] for line in Path(run.RUN_LOG).read_text().splitlines()] == ["digits/images"]


@pytest.mark.parametrize("words", ["distil digits-smoke/di/el/0", "tables smoke"])
def test_a_step_whose_results_could_not_be_written_does_not_begin(bare, monkeypatch, capsys, words):
    """A training of days would have failed at its end."""
    folder = Path(find(words).outputs[0]).parent
    folder.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder.absolute())
    assert __main__.main(words.split(" ", 1)) == 2
    said = capsys.readouterr().err
    assert f"{folder} is a folder that this user may not write" in said and len(said.splitlines()) == 1
    assert not list(folder.iterdir())


# --- reading what is being replaced -------------------------------------------------------------------------


def test_a_run_that_is_made_again_while_it_is_read_is_not_kept(project, monkeypatch):
    """Its metrics could be new and its curve old."""
    from eldistill.commands import keep
    from eldistill.plan import kept

    read: list[str] = []

    def line_of(found, root):
        read.append(found[0].name)
        return kept.make_kept(found[0].name, {each.word: each.digest for each in found}, {"metrics": {"a": 1.0}})

    monkeypatch.setattr(kept, "line_of", line_of)
    monkeypatch.setattr(kept, "is_measured", lambda step, root: not read or step.name != read[0])
    found = keep.finished(Plan(params.load_params()), "smoke")
    assert len(read) > 2 and {run for run, _ in found} == set(read[1:])
