# SPDX-License-Identifier: Apache-2.0
"""Drivers, jobs and what they leave behind; the doctor, what to prune, what to give away. Slurm is a stand-in here."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eldistill import __main__, files, networks
from eldistill.commands import doctor, export
from eldistill.distil import provenance
from eldistill.errors import Problem
from eldistill.plan import cluster, params
from eldistill.plan.plan import Plan
from eldistill.sampling import generators as sampling
from eldistill.training import lock as locks
from eldistill.training import state
from tests import conftest
from tests.conftest import ROOT
from tests.distil import test_distil

made = test_distil.made  # the fixture
SOURCE = Path(state.__file__).parents[2]
RUN = "digits-smoke/di/el/0"


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    shutil.copytree(made, tmp_path / "project", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "project")
    shutil.copy(SOURCE.parent / "data/sources.csv", "data/sources.csv")
    return tmp_path / "project"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Stand-ins for Slurm's programs: the file `jobs` says which are running, `cancelled` which were told to end."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    programs = {
        "squeue": f'grep -q "^$3$" {folder}/jobs 2>/dev/null && echo RUNNING; exit 0',
        "scancel": f'echo "$1" >> {folder}/cancelled; sed -i "/^$1$/d" {folder}/jobs',
        "sinfo": "printf 'cpu\\nbig\\n'", "sbatch": "true", "sacct": "echo disabled >&2; exit 1",
    }  # fmt: skip
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "jobs").write_text("")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


# --- locks ------------------------------------------------------------------------------------------------


def test_a_lock_names_process_host_and_job(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "345")
    with locks.lock(tmp_path):
        text = (tmp_path / "lock").read_text()
    assert f"process {os.getpid()} on " in text and locks.job_of(text) == "345"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert locks.job_of(locks.me()) is None


def test_where_locks_do_not_reach_slurm_is_asked(tmp_path, slurm, monkeypatch):
    """A running job of another node holds; its end, or being that job again after a requeue, frees."""
    (tmp_path / "lock").write_text("process 1 on node7, job 345\n")
    (slurm / "jobs").write_text("345\n")
    with (
        pytest.raises(Problem, match="process 1 on node7, job 345 is already at work on this run"),
        locks.lock(tmp_path),
    ):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "345")
    with locks.lock(tmp_path):
        pass
    (tmp_path / "lock").write_text("process 1 on node7, job 344\n")
    with locks.lock(tmp_path):
        pass


def test_orphans_are_told_to_end(tmp_path, slurm):
    """All that a Snakemake of this folder has in the queue, waiting or at work; nothing else of the same user."""
    here, other = tmp_path / "here", tmp_path / "other"
    rows = [
        ("11", "rule_distil_run_wildcards_a", here),
        ("12", "rule_judge", here),
        ("13", "rule_judge", other),
        ("14", "mine", here),
    ]
    (slurm / "jobs").write_text("".join(f"{job}|{comment}|{where}\n" for job, comment, where in rows))
    (slurm / "squeue").write_text(f"#!/bin/sh\ncat {slurm}/jobs\n")
    (slurm / "scancel").write_text(
        f'#!/bin/sh\nfor job; do echo $job >> {slurm}/cancelled; sed -i "/^$job|/d" {slurm}/jobs; done\n'
    )
    told: list[str] = []
    assert cluster.end_orphans(here, told.append) == ["11", "12"]
    assert (slurm / "cancelled").read_text() == "11\n12\n"
    assert len(told) == 1 and "2 jobs of an earlier snakemake still run (11, 12)" in told[0]
    assert cluster.end_orphans(here, told.append) == [] and len(told) == 1
    assert cluster.jobs_of(other) == ["13"]


def test_no_answer_of_slurm_is_no_answer(tmp_path, slurm, monkeypatch):
    """A controller that is down does not say that a job has ended; a job that it has forgotten has."""
    (tmp_path / "lock").write_text("process 1 on node7, job 345\n")
    (slurm / "squeue").write_text(
        "#!/bin/sh\necho slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1\n"
    )
    assert locks.running("345") is None and cluster.jobs_of(tmp_path) is None
    with pytest.raises(Problem, match="squeue does not say whether process 1 on node7, job 345"), locks.lock(tmp_path):
        pass
    told: list[str] = []
    assert cluster.end_orphans(tmp_path, told.append) == [] and "squeue does not answer" in told[0]
    (slurm / "squeue").write_text("#!/bin/sh\necho slurm_load_jobs error: Invalid job id specified >&2; exit 1\n")
    assert locks.running("345") is False
    with locks.lock(tmp_path):
        pass
    answers = iter([["11"], None, None, []])
    monkeypatch.setattr(cluster, "jobs_of", lambda folder: next(answers))
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    assert cluster.end_orphans(tmp_path, told.append) == ["11"] and not list(answers), "silence is no sign of an end"


def test_what_git_does_not_say_is_not_known(tmp_path, monkeypatch):
    """`git_dirty: false` only where git says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    about = provenance.origin("0" * 64)
    assert about["git_commit"] is None and about["git_dirty"] is None
    subprocess.run(["git", "init", "-q"], check=True)
    assert provenance.origin("0" * 64)["git_dirty"] is False
    (tmp_path / "file").write_text("")
    subprocess.run(["git", "add", "file"], check=True)
    assert provenance.origin("0" * 64)["git_dirty"] is True


HOLD = "from eldistill.plan import cluster; print(cluster.driver_lock()[0], flush=True); input()"


def driver(folder: Path) -> tuple[subprocess.Popen, str]:
    started = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    return started, started.stdout.readline().strip()


def test_the_lock_of_a_dead_driver_goes_and_that_of_a_living_one_stays(tmp_path):
    lock = tmp_path / ".snakemake/locks/0.output.lock"

    def leave() -> None:
        files.write_text(lock, "out")

    leave()
    first, alone = driver(tmp_path)
    assert alone == "True" and not lock.exists()
    leave()
    second, alone = driver(tmp_path)
    assert alone == "False" and lock.exists()
    for each in (first, second):
        each.kill()
        each.communicate()
    third, alone = driver(tmp_path)
    assert alone == "True" and not lock.exists()
    third.communicate("\n")
    leave()
    (tmp_path / "data/scratch/driver.lock").write_text("another-login-node\n")
    assert cluster.driver_lock(tmp_path)[0] is True and lock.exists(), "its processes cannot be seen from here"


# --- doctor and prune ---------------------------------------------------------------------------------------


def examined(capsys, suite: str = "smoke") -> dict[str, list[str]]:
    doctor.examine(suite, print)
    found: dict[str, list[str]] = {"ok": [], "LOOK": [], "-": []}
    for line in capsys.readouterr().out.splitlines():
        found[line[:5].strip()].append(line[6:])
    return found


def test_the_doctor_sees_what_slurm_lacks(project, slurm, capsys, monkeypatch):
    """A partition that is not there, and a status command that does not work: each with what to type."""
    found = examined(capsys)
    assert any("partition cpu" in line for line in found["ok"])
    assert any(
        "gpu" in line and "export ELDISTILL_SLURM_GPU_PARTITION=" in line and "big, cpu" in line
        for line in found["LOOK"]
    )
    assert any("export ELDISTILL_SLURM_STATUS=squeue" in line for line in found["LOOK"])
    monkeypatch.setenv("ELDISTILL_SLURM_STATUS", "squeue"), monkeypatch.setenv("ELDISTILL_SLURM_GPU_PARTITION", "big")
    found = examined(capsys)
    assert not found["LOOK"] and any("squeue answers" in line for line in found["ok"])
    assert __main__.main(["doctor", "smoke"]) == 0


@pytest.mark.parametrize(
    "variable, expected", [(None, None), ("ELDISTILL_SLURM_GPU_PARTITION", False), ("SNAKEMAKE_PROFILE", False)]
)
def test_a_broken_slurm_stops_only_who_uses_it(slurm, monkeypatch, variable, expected):
    """sinfo fails where Slurm's programs are installed without a cluster; that is a finding only with a sign of its use."""
    (slurm / "sinfo").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    for name in [name for name in os.environ if name.startswith("ELDISTILL_SLURM_") or name == "SNAKEMAKE_PROFILE"]:
        monkeypatch.delenv(name)
    if variable:
        monkeypatch.setenv(variable, "slurm")
    ((good, sentence),) = doctor._slurm(None, "demo")
    assert good is expected and "sinfo fails: no controller" in sentence


def test_a_partition_that_ends_jobs_sooner_than_rules_ask_is_named(slurm):
    (slurm / "sinfo").write_text("#!/bin/sh\nprintf 'cpu|infinite\\ngpu|12:00:00\\n'\n")
    found = [sentence for good, sentence in doctor._slurm(None, "demo") if good is False]
    assert any("partition gpu has a limit of 12:00:00" in each and "1440 minutes" in each for each in found)
    assert not any("partition cpu has a limit" in each for each in found)
    assert [doctor._minutes(each) for each in ("1-00:00:00", "12:30:00", "30:00", "infinite", "n/a")] == [
        1440, 750, 30, math.inf, math.inf,
    ]  # fmt: skip


def test_the_doctor_knows_the_longest_limit_of_the_rules():
    profile = (ROOT / "slurm/config.yaml").read_text(encoding="utf-8").partition("set-resources:")[2]
    with_gpu = set(re.findall(r"^  (\w+):", profile, re.MULTILINE))
    longest = {"CPU": 0, "GPU": 0}
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        for rule in re.split(r"^rule ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            kind = "GPU" if rule.partition(":")[0] in with_gpu else "CPU"
            longest[kind] = max([longest[kind], *map(int, re.findall(r"runtime=(\d+)", rule))])
    assert longest == doctor.LONGEST


def test_the_doctor_sees_what_is_not_there(project, capsys, monkeypatch):
    """Files of a suite, a disk that is too small, a GPU that nobody has."""
    values = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    values["device"] = "cuda"
    values["data"]["theirs"] = {
        "source": "folder",
        "path": "no.zip",
        "codec": {"mean": 0.5, "std": 0.25},
        "teacher": "theirs",
    }
    values["teacher"]["theirs"] = {"data": "theirs", "file": "no.pkl"}
    numbers = values["distil"]["methods"]["di"]["per_data"]
    numbers["theirs"] = numbers["digits-smoke"]
    values["suites"]["mine"] = [{"data": ["theirs"], "methods": ["di"], "supplements": ["none"], "seeds": [0]}]
    Path("params.yaml").write_text(conftest.write_yaml(values), encoding="utf-8")
    found = examined(capsys, "mine")["LOOK"]
    assert any("no.pkl is missing" in line and "teacher.theirs.file" in line for line in found)
    assert any("no.zip is missing" in line and "data.theirs.path" in line for line in found)
    assert torch.cuda.is_available() or any("sees no GPU" in line for line in found)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    for run in Path("data/runs").rglob("*.recipe"):
        run.unlink()
    assert any("too little" in line for line in examined(capsys)["LOOK"])
    assert __main__.main(["doctor", "mine"]) == 1
    assert __main__.main(["doctor", "smook"]) == 2 and "smoke" in capsys.readouterr().err


def test_the_doctor_names_what_is_stale_or_edited_and_planned_by_nobody(project, capsys):
    """Results of another suite by other numbers, and a log that somebody has edited."""
    plan, log = Plan(params.load_params()), Path("data/teachers/digits-smoke/log.csv")
    log.write_text(log.read_text() + "\n")
    found = examined(capsys)
    assert any(str(log) in line and "it is kept" in line for line in found["LOOK"])
    other = next(
        each
        for name in plan.params.values["suites"]
        for each in plan.suite(name).values()
        if each.name == "digits/judge-a"
    )
    files.write_text(Path(other.sidecar), "other numbers")
    found = examined(capsys)["-"]
    assert any(
        "made by other numbers" in line and "data digits/judge-a" in line and "--config suite=" in line
        for line in found
    )


def test_what_no_suite_names_is_listed_and_on_request_removed(project, capsys):
    """A run of another seed, a snapshot too many, an old state; a state at work and all that is named stay."""
    before = {path for path in Path("data").rglob("*") if path.is_file()}
    other = Path("data/runs/digits-smoke/di/el/77/generator_ema.safetensors")
    snapshot = Path(f"data/runs/{RUN}/ema-3.safetensors")
    for path in (other, snapshot):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    old, busy = state.state_folder("a" * 64), state.state_folder("b" * 64)
    (old / "state.safetensors").write_bytes(b"x" * 5000)
    plan = Plan(params.load_params())
    mine = state.state_folder(files.digest(plan.find("distil", RUN).recipe))
    with locks.lock(busy):
        assert __main__.main(["prune"]) == 0
        printed = capsys.readouterr().out
        assert all(str(path) in printed for path in (other, snapshot, old, busy)) and str(mine) not in printed
        assert other.exists() and old.exists() and "make prune REMOVE=yes" in printed
        assert __main__.main(["prune", "--remove"]) == 0
    assert not any(path.exists() for path in (other, other.parent, snapshot, old)) and busy.exists() and mine.exists()
    assert {path for path in before if not path.exists()} == set()


# --- export -------------------------------------------------------------------------------------------------

BARE = """
import os
import re
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("numpy", "yaml", "tqdm", "PIL"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
sys.argv = ["load.py", "5", "out.pt"]
import runpy
runpy.run_path("load.py", run_name="__main__")
here = os.getcwd() + os.sep
assert all(module.__file__.startswith(here) for name, module in sys.modules.items() if name.split(".")[0] == "eldistill")
"""


def test_a_model_is_loaded_with_torch_and_safetensors_alone(project, tmp_path, capsys):
    """The loader's images are those of the generator, from the same noise; the card has every number and its origin."""
    assert __main__.main(["distil", RUN]) == 0
    files.write_json(
        Path(f"data/evaluations/{RUN}/metrics.json"), {"fd5k_judge-a_heldout": 1.25, "kid5k_pixels_train": 0.5}
    )
    recipe = Path(f"data/evaluations/{RUN}/metrics.json.recipe")
    files.write_json(recipe, {"upstream": {f"distil {RUN}": "of another generator"}})
    capsys.readouterr()
    assert __main__.main(["export", RUN, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "metrics.json is left out" in said and "was not evaluated" in said
    assert "fd5k_judge-a_heldout" not in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    made_by = sampling.load_generator(f"data/runs/{RUN}/generator_ema.safetensors").metadata["recipe"]
    files.write_json(recipe, {"upstream": {f"distil {RUN}": made_by}})
    assert __main__.main(["export", RUN, "--out", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "eldistill", "generator_ema.safetensors", "load.py", "samples.png",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", BARE], cwd=folder, capture_output=True, text=True,
                          env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    generator = sampling.load_generator(f"data/runs/{RUN}/generator_ema.safetensors")
    z = torch.randn(5, *generator.shape, generator=torch.Generator().manual_seed(0))
    sigma = generator.metadata["sampler"]["steps"]["1"][0]
    from eldistill.data import dataset as data

    wanted = data.decode(generator.network(sigma * z, torch.full((5,), sigma), None), generator.metadata["codec"])
    assert torch.equal(torch.load(folder / "out.pt", weights_only=True), wanted)
    text = (folder / "README.md").read_text(encoding="utf-8")
    metrics = files.read_json(f"data/evaluations/{RUN}/metrics.json")
    assert all(f"`{name}`" in text for name in metrics)
    assert generator.metadata["lineage"]["teacher_sha256"] in text and generator.metadata["recipe"] in text
    assert json.loads((folder / "config.json").read_text())["lineage"]["params"]


@pytest.mark.parametrize("name", [name for name in networks.available() if name != "ddpm"])
def test_every_network_of_ours_can_be_given_away(name, tmp_path):
    """Its files and those that they import, unchanged but for two; a copy in which it is built with torch alone."""
    sources = export.source_files(name)
    kept = {path: text for path, text in sources.items() if path not in export.IN_PLACE}
    assert f"eldistill/networks/{name}.py" in kept and sources.keys() - kept.keys() <= set(export.IN_PLACE)
    assert all((SOURCE / path).read_text(encoding="utf-8") == text for path, text in kept.items())
    for path, text in sources.items():
        files.write_text(tmp_path / path, text)
    code = (
        BARE[: BARE.index("sys.argv")]
        + f"sys.path.insert(0, '.')\nfrom eldistill.networks import {name}\nprint({name}.__file__)"
    )
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, env=bare
    )
    assert Path(done.stdout.strip()).resolve() == tmp_path / f"eldistill/networks/{name}.py", done.stderr[-2000:]


def test_a_network_of_another_package_cannot_be_given_away():
    with pytest.raises(
        Problem,
        match="of the kind ddpm needs more than torch and cannot be exported; share its generator_ema.safetensors as it is",
    ):
        export.source_files("ddpm")


def test_what_cannot_be_given_away_is_one_sentence(project, capsys):
    assert __main__.main(["export", "digits-smoke/di/el/9"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert __main__.main(["export", RUN]) == 2
    assert "is missing; run `python -m eldistill distil" in capsys.readouterr().err
    assert not Path("exports").exists()
