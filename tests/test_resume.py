# SPDX-License-Identifier: Apache-2.0
"""Stopped, killed or cut short: a run that is continued is the uninterrupted run, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eldistill
from eldistill import __main__, files
from eldistill.errors import NonFinite, Problem, Stopped
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.sampling import generators as sampling
from eldistill.training import lock, loop, state
from eldistill.training.job import Job
from tests import conftest
from tests.conftest import ROOT

STEPS, BATCH, TICKS = 10, 4, 3  # a row every 3 steps: 3, 6, 9 and 10
EL = {"none": {}, "el": {"embedding": {}},
      "el that changes": {"embedding": {"augmentation": ("flip", "cutout", "scale"), "real_ratio": 2, "redraw": 3}}}  # fmt: skip
with_el = pytest.mark.parametrize("el", EL)


class Interrupted(Exception):
    """What a kill is to the loop: an end without warning."""


class Ending(loop.Loop):
    """A loop that ends after some steps: politely, or as if killed, its last state then being older."""

    def __init__(self, job: Job, after: int, saved_at: int | None = None):
        super().__init__(job)
        self.after, self.saved_at = after, saved_at

    def iterate(self) -> None:
        super().iterate()
        if self.iteration == self.after:
            if self.saved_at is not None:
                raise Interrupted
            self.stop_reason = "stopped by the test"

    def save(self, wait: bool = True) -> None:
        if self.saved_at is None or self.iteration <= self.saved_at:
            super().save(wait)


def job_of(bench, folder: str, supplements: dict, **others) -> Job:
    """Ten steps of Diff-Instruct with snapshots, a warm-up, a ramped average and dropout."""
    job = bench.job("diff_instruct", supplements, folder=folder, steps=STEPS, batch=BATCH, ticks=TICKS, dropout=0.2,
                    optimiser={"warmup_images": 16, "decay_images": 12, "betas": [0.5, 0.99], "lr": 0.01},
                    ema={"policy": "ramped", "halflife_images": 40, "ramp": 0.5}, **others)  # fmt: skip
    for count in (8, 20, 40):
        path = job.folder / f"ema-{count}.safetensors"
        job.snapshots[count] = lambda net, path=path: sampling.save_generator(path, net, {"n": path.name})
    return job


def outcome(work: loop.Loop) -> tuple[dict, list, dict, dict]:
    """Networks, averages and optimisers tensor by tensor; rows; digests of snapshots; what supplements remember."""
    tensors = state.pack_tensors({**work.job.nets, "average": work.average}, work.optimisers)
    snapshots = {path.name: files.sha256(path) for path in sorted(work.job.folder.glob("ema-*"))}
    return tensors, work.rows, snapshots, {each.name: each.memory for each in work.job.supplements}


def assert_equal(found: loop.Loop, wanted: loop.Loop) -> None:
    (a, *rest_a), (b, *rest_b) = outcome(found), outcome(wanted)
    assert a.keys() == b.keys() and any(name.startswith("optimiser/generator/") for name in a)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert rest_a == rest_b
    assert len(rest_a[0]) == 4 and len(rest_a[1]) == 3
    assert (found.n_images, found.iteration) == (wanted.n_images, wanted.iteration)


def finished(bench, folder: str, supplements: dict, **others) -> loop.Loop:
    work = loop.Loop(job_of(bench, folder, supplements, **others))
    work.run()
    return work


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, loop.Loop]:
    """The uninterrupted run with each of EL, to compare with."""
    bench = conftest.Bench(tmp_path_factory.mktemp("whole"))
    return {name: finished(bench, name.replace(" ", "-"), supplements) for name, supplements in EL.items()}


# --- the loop ---


@with_el
@pytest.mark.parametrize("after", [3, 4])
def test_stop_and_resume_is_the_uninterrupted_run(bench, whole, el, after):
    """Stopped politely once, at a row of the log and between two of them: weights, optimisers, rows, snapshots agree."""
    with pytest.raises(Stopped):
        Ending(job_of(bench, "parted", EL[el]), after).run()
    assert_equal(finished(bench, "parted", EL[el]), whole[el])


@with_el
def test_stopped_after_every_step(bench, whole, el):
    """After any step, the first and the last among them: nine stops in one run change nothing either."""
    for after in range(1, STEPS):
        with pytest.raises(Stopped):
            Ending(job_of(bench, "parted", EL[el]), after).run()
    assert_equal(finished(bench, "parted", EL[el]), whole[el])


@with_el
@pytest.mark.parametrize(("saved_at", "after"), [(0, 2), (1, 3), (4, 6), (5, 9)])
def test_killed_after_a_save_is_the_uninterrupted_run(bench, whole, el, saved_at, after):
    """Killed some steps after the last save (rows and snapshots were written since), or before the first one."""
    with pytest.raises(Interrupted):
        Ending(job_of(bench, "parted", EL[el], save_seconds=-1.0), after, saved_at).run()
    assert_equal(finished(bench, "parted", EL[el]), whole[el])


def test_the_log_is_the_same_file_after_a_resume(bench, whole):
    """log.csv has the same bytes, the order of its columns included, however often a run was stopped."""
    for after in (2, 5):
        with pytest.raises(Stopped):
            Ending(job_of(bench, "parted", EL["el"]), after).run()
    for name, work in (("parted", finished(bench, "parted", EL["el"])), ("whole", whole["el"])):
        files.write_rows(bench.folder / f"{name}.csv", work.rows)
    assert (bench.folder / "parted.csv").read_text() == (bench.folder / "whole.csv").read_text()


@pytest.mark.parametrize(
    "optimiser", [{"kind": "adamw", "weight_decay": 0.1}, {"kind": "radam"}], ids=lambda o: o["kind"]
)
def test_every_optimiser_continues(bench, optimiser):
    """AdamW and RAdam resume as Adam does."""
    make = lambda folder: bench.job("diff_instruct", {}, folder=folder, steps=8, optimiser=optimiser)  # noqa: E731
    with pytest.raises(Stopped):
        Ending(make("parted"), 3).run()
    parted, whole = loop.Loop(make("parted")), loop.Loop(make("whole"))
    parted.run()
    whole.run()
    a, b = outcome(parted)[0], outcome(whole)[0]
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_micro_batch_may_change_between_stop_and_resume(bench):
    """micro_batch describes a machine: a run continued on a smaller one agrees to rounding."""

    def make(folder: str, size: int) -> Job:
        return bench.job("diff_instruct", {"embedding": {}}, folder=folder, steps=6, micro_batch=size,
                         dtype=torch.float64, optimiser={"eps": 1e-2})  # fmt: skip

    with pytest.raises(Stopped):
        Ending(make("parted", 0), 3).run()
    parted, whole = loop.Loop(make("parted", 1)).run(), loop.Loop(make("whole", 0)).run()
    for a, b in zip(parted.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


# --- the state file ---


def test_pack_and_unpack_are_inverse(bench):
    """What was packed comes back in other networks and optimisers, bit for bit, after a trip through a file."""
    job, other = bench.job("diff_instruct", folder="a"), bench.job("diff_instruct", folder="b", seed=5, apart=0.3)
    work, empty = loop.Loop(job), loop.Loop(other)
    work.iterate()
    flat = state.pack_tensors(job.nets, work.optimisers)
    kept = {"n": [1.5, None, 0.1 + 0.2, 2.0, 3]}
    state.save_state(job.folder, flat, kept)
    tensors, numbers = state.load_state(job.folder)
    state.unpack_tensors(tensors, other.nets, empty.optimisers)
    again = state.pack_tensors(other.nets, empty.optimisers)
    assert flat.keys() == again.keys() and all(torch.equal(flat[name], again[name]) for name in flat)
    assert all(flat[name].dtype == again[name].dtype for name in flat)
    assert repr(numbers) == repr(kept)  # 2.0 stays 2.0: log.csv is written from these
    assert state.load_state(other.folder) is None


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncated_state_is_a_problem(bench, whole, share):
    """A state cut short is a sentence with the file's name, not a crash, a wrong run or a silent start."""
    content = (whole["none"].job.folder / "state.safetensors").read_bytes()
    job = job_of(bench, "data/scratch/state", {})
    (job.folder / "state.safetensors").write_bytes(content[: int(share * len(content))])
    with pytest.raises(Problem, match=r"state\.safetensors is damaged .*; delete it"):
        loop.Loop(job).run()


def test_foreign_state_is_a_problem(bench):
    """A safetensors file without our description is refused."""
    from safetensors.torch import save_file

    job = job_of(bench, "state", {})
    save_file({"x": torch.zeros(1)}, job.folder / "state.safetensors")
    with pytest.raises(Problem, match="not eldistill's description"):
        loop.Loop(job).run()


def test_an_interrupted_save_keeps_the_state_before(bench, monkeypatch):
    """A save that dies half-way leaves the former state whole, and no temporary file."""
    work = loop.Loop(job_of(bench, "state", {}))
    work.iterate()
    work.save()
    before = (work.job.folder / "state.safetensors").read_bytes()
    work.iterate()

    def cut(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", cut)
    with pytest.raises(OSError, match="No space left"):
        work.save()
    monkeypatch.undo()
    assert (work.job.folder / "state.safetensors").read_bytes() == before
    assert [path.name for path in work.job.folder.iterdir() if path.suffix == ".tmp"] == []
    assert state.load_state(work.job.folder)[1]["iteration"] == 1


def test_failure_is_remembered_until_the_source_changes(tmp_path):
    """A noted failure is repeated for the same source only."""
    assert state.noted_failure(tmp_path, "code") is None
    state.note_failure(tmp_path, "step 3: a NaN", "code")
    assert state.noted_failure(tmp_path, "code") == "step 3: a NaN"
    assert state.noted_failure(tmp_path, "other code") is None


# --- one process for a run ---


def test_second_lock_is_a_problem(tmp_path):
    """Who holds the folder is named; the lock ends with the block."""
    with lock.lock(tmp_path):
        with pytest.raises(Problem, match=f"process {os.getpid()} on .* is already at work on this run"):
            with lock.lock(tmp_path):
                pass
    with lock.lock(tmp_path):
        pass


def environment() -> dict[str, str]:
    source = str(Path(eldistill.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_the_lock_of_another_process(tmp_path):
    """Another process holds the folder until it ends, even by kill -9."""
    text = "from pathlib import Path\nfrom eldistill.training import lock\n"
    text += f"with lock.lock(Path({str(tmp_path)!r})):\n print('held', flush=True)\n input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Problem, match=f"process {holder.pid} on .* is already at work"):
            with lock.lock(tmp_path):
                pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with lock.lock(tmp_path):
        pass


# --- the digest ---


def values() -> dict:
    return conftest.shipped()


def plan(values: dict) -> Plan:
    return Plan(params.from_values(values, ROOT))


def digest(values: dict, run: str = "digits-smoke/di/el/0") -> str:
    return plan(values).find("distil", run).digest


@pytest.fixture(scope="module")
def shipped() -> Plan:
    """That of params.yaml as it is."""
    return plan(values())


@pytest.mark.parametrize(("section", "key", "value"), [
    ("methods.di.per_data.digits-smoke", "n_images", 1280),
    ("methods.di.per_data.digits-smoke", "batch", 64),
    ("methods.di.per_data.digits-smoke", "sigma_init", 1.0),
    ("methods.di.per_data.digits-smoke.generator", "lr", 5.1e-4),
    ("methods.di.per_data.digits-smoke.critic", "clip", 1.0),
    ("methods.di.per_data.digits-smoke.ema", "beta", 0.91),
    ("supplements.el", "weight", 0.71),
    ("supplements.el", "ensemble", "identity"),
    ("", "ticks", 41),
    ("", "snapshots", [50, 100]),
])  # fmt: skip
def test_a_changed_number_has_its_own_state(tmp_path, shipped, section, key, value):
    """Any number of the run leads to another state folder: it never continues what another number began."""
    changed = values()
    place = changed["distil"]
    for word in section.split(".") if section else []:
        place = place.setdefault(word, {})
    assert place.get(key) != value
    place[key] = value
    digests = digest(changed), shipped.find("distil", "digits-smoke/di/el/0").digest
    folders = {state.state_folder(each, tmp_path) for each in digests}
    assert len(folders) == 2 and all(folder.is_dir() and tmp_path in folder.parents for folder in folders)


def test_other_seeds_and_supplements_have_their_own_state(shipped):
    """Runs that differ in any part of their name, or upstream in the teacher, differ in their digest."""
    changed = values()
    changed["teacher"]["digits-smoke"]["seed"] = 1
    runs = [f"digits-smoke/di/{supplement}/{seed}" for supplement in ("none", "el", "el+pixel-mmd") for seed in (0, 1)]
    assert len({shipped.find("distil", run).digest for run in runs} | {digest(changed)}) == len(runs) + 1


@pytest.mark.parametrize(("key", "value"), [("save_seconds", 1.0), ("micro_batch", 4)])
def test_a_site_number_keeps_the_state(shipped, key, value):
    """What describes the machine belongs to no digest: a run moves and continues."""
    changed = values()
    changed["distil"][key] = value
    assert digest(changed) == shipped.find("distil", "digits-smoke/di/el/0").digest


# --- the command line, in a project of its own ---


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A project folder with digits, the smoke teacher and its ensemble, made by the command line."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "workflow").mkdir()
    shutil.copytree(ROOT / "workflow" / "schemas", folder / "workflow" / "schemas")
    changed = values()
    changed["device"] = "cpu"
    changed["distil"]["save_seconds"] = 0.05
    changed["teacher"]["digits-smoke"] |= {"n_images": 320, "steps": 3}
    (folder / "params.yaml").write_text(conftest.write_yaml(changed, sort_keys=False), encoding="utf-8")
    if (ROOT / "data" / "sources.csv").exists():
        (folder / "data").mkdir()
        shutil.copy(ROOT / "data" / "sources.csv", folder / "data")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for words in ("data digits-smoke/images", "teacher digits-smoke", "ensemble digits-smoke/conv4/0"):
            assert __main__.main(words.split()) == 0, words
    finally:
        os.chdir(before)
    return folder


def project(inputs: Path, folder: Path, n_images: int) -> Path:
    """A copy of the project whose smoke run has n_images."""
    shutil.copytree(inputs, folder)
    changed = conftest.read_yaml((folder / "params.yaml").read_text(encoding="utf-8"))
    changed["distil"]["methods"]["di"]["per_data"]["digits-smoke"]["n_images"] = n_images
    (folder / "params.yaml").write_text(conftest.write_yaml(changed, sort_keys=False), encoding="utf-8")
    return folder


RUN = "digits-smoke/di/el/0"


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every output that must not differ between equal runs."""
    paths = [path for path in (folder / "data/runs" / RUN).iterdir() if path.name != "provenance.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def states(folder: Path) -> list[Path]:
    return list((folder / "data/scratch/state").glob("*/state.safetensors"))


def test_command_stops_with_75_and_continues(inputs, tmp_path, monkeypatch, capsys):
    """SIGTERM: exit code 75 and one sentence; the same command continues to the very files of an uninterrupted run."""
    whole, parted = (project(inputs, tmp_path / name, 320) for name in ("whole", "parted"))
    monkeypatch.chdir(whole)
    assert __main__.main(["distil", RUN]) == 0
    monkeypatch.chdir(parted)
    iterate = loop.Loop.iterate

    def stopped(self):
        iterate(self)
        if self.iteration == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Loop, "iterate", stopped)
    capsys.readouterr()
    assert __main__.main(["distil", RUN]) == 75
    assert "stopped by SIGTERM; saved at 128 of 320 images, the same command continues" in capsys.readouterr().err
    assert not (parted / "data/runs" / RUN / "generator_ema.safetensors").exists() and len(states(parted)) == 1
    monkeypatch.setattr(loop.Loop, "iterate", iterate)
    assert __main__.main(["distil", RUN]) == 0
    assert "continuing at 128 of 320 images" in capsys.readouterr().out
    assert digests(parted) == digests(whole) and len(digests(whole)) == 1 + 18 + 1 + 2
    assert __main__.main(["distil", RUN]) == 0 and "is up to date" in capsys.readouterr().out


def test_counting_flop_costs_no_result(inputs, tmp_path, monkeypatch):
    """The count trains on when all is written: it is there, twice the same, and where it fails the run stands without it."""
    counts, files = [], []
    for name in ("once", "again", "failing"):
        monkeypatch.chdir(project(inputs, tmp_path / name, 64))
        if name == "failing":
            run = loop.Loop.run

            def ended(self, run=run):
                average = run(self)
                self.iterate = lambda: (_ for _ in ()).throw(NonFinite("after the end"))
                return average

            monkeypatch.setattr(loop.Loop, "run", ended)
        assert __main__.main(["distil", RUN]) == 0
        about = json.loads(Path("data/runs", RUN, "provenance.json").read_text(encoding="utf-8"))
        counts.append(about["flop_per_iteration"])
        files.append(digests(Path()))
        assert about["n_images"] == 64 and about["iterations"] == 2
    assert counts[0] == counts[1] > 1e6
    assert counts[2] is None and files[0] == files[1] == files[2]


def test_command_starts_anew_with_a_changed_number(inputs, tmp_path, monkeypatch, capsys):
    """A run stopped half-way is not continued after a number changed, and is after it changed back."""
    folder = project(inputs, tmp_path / "project", 64)
    monkeypatch.chdir(folder)
    assert __main__.main(["distil", RUN, "--max-minutes", "1e-9"]) == 75
    before = (folder / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(before.replace("lr: 0.001", "lr: 0.002"), encoding="utf-8")
    assert before != (folder / "params.yaml").read_text(encoding="utf-8")
    capsys.readouterr()
    assert __main__.main(["distil", RUN]) == 0 and "continuing" not in capsys.readouterr().out
    tree = conftest.read_yaml(before)
    tree["distil"]["methods"]["di"]["per_data"]["digits-smoke"]["ema"]["ramp"] = 0.2
    (folder / "params.yaml").write_text(conftest.write_yaml(tree), encoding="utf-8")
    assert __main__.main(["distil", RUN]) == 0
    assert "continuing" not in capsys.readouterr().out
    (folder / "params.yaml").write_text(before, encoding="utf-8")
    assert __main__.main(["distil", RUN]) == 0
    assert "continuing at 32 of 64 images" in capsys.readouterr().out


def test_command_names_a_running_copy(inputs, tmp_path, monkeypatch, capsys):
    """A second copy of a running command ends with exit code 2 and a sentence."""
    folder = project(inputs, tmp_path / "project", 64)
    monkeypatch.chdir(folder)
    step = Plan(params.load_params()).find("distil", RUN)
    with lock.lock(state.state_folder(step.digest)):
        assert __main__.main(["distil", RUN]) == 2
    assert re.search(rf"process {os.getpid()} on .* is already at work on this run", capsys.readouterr().err)
    assert __main__.main(["distil", RUN]) == 0


def killed(folder: Path, lines: int | None, last: str, pause: float) -> tuple[int, str]:
    """The command, killed `pause` seconds after it printed so many lines, or its last one (lines: None)."""
    command = [sys.executable, "-m", "eldistill", "distil", RUN]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        told = ""
        while (
            lines != told.count("\n") and not (lines is None and last in told) and (line := process.stdout.readline())
        ):
            told += line
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            process.kill()
        told += process.stdout.read()
    return process.returncode, told


@pytest.mark.slow
def test_kill_9_at_random_moments(inputs, tmp_path):
    """kill -9 twenty times, each followed by the same command: every final file equals the uninterrupted run's."""
    n_images, kills, finished, continued, chance = 12_800, 0, 0, [], random.Random(20)
    last = f"{n_images}/{n_images} images"
    whole = project(inputs, tmp_path / "whole", n_images)
    code, told = killed(whole, None, last, 60)
    assert code == 0, told
    wanted = digests(whole)
    assert len(wanted) == 1 + 14 + 1 + 2
    while kills < 20:
        finished += 1
        parted = project(inputs, tmp_path / f"parted-{finished}", n_images)
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            # A life ends while it imports, between any two steps or saves, or while the outputs are written.
            if kills == 20:
                lines, pause = None, 60.0
            elif kills % 4 == 3:
                lines, pause = None, chance.uniform(0, 0.25)
            elif kills % 8 == 0:
                lines, pause = 0, chance.uniform(0, 3)
            else:
                lines, pause = chance.randrange(1, 20), chance.uniform(0, 0.25)
            code, told = killed(parted, lines, last, pause)
            kills += code == -signal.SIGKILL
            continued += map(int, re.findall(r"continuing at (\d+) of", told))
        assert code == 0, told
        assert digests(parted) == wanted
        assert not states(parted), "a finished run leaves no state"
    print(f"{kills} kills, {finished} finished runs, continued at {continued} of {n_images} images")
    assert len(set(continued)) >= 5
