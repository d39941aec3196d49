# SPDX-License-Identifier: Apache-2.0
"""What docs/cluster.md says of other people's clusters, typed on a Slurm of this machine: its blocks are read from the page."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import project as projects
from tests.slurm import accounting, cluster

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(cluster.lacking()), reason=cluster.lacking() or "all there"),
]
PAGE = (cluster.ROOT / "docs/cluster.md").read_text(encoding="utf-8")
TEACHER, IMAGES = "data/teachers/digits-smoke/teacher.safetensors", "data/sets/digits/images.safetensors"
QUICK = {"OMP_NUM_THREADS": "1", "ELDISTILL_SUITE": "smoke", "LINE_OF_A_MODULE": "loaded"}
# A stand-in for apptainer: notes what it is called with, sets what --env says, and runs the command.
APPTAINER = r"""
[ "$1" = --version ] && { echo "apptainer version 1.3.6"; exit; }
printf '%s\n' "$(printf '%s|' "$@")" | tr '\n' ' ' >> LOG; echo >> LOG
while [ $# -gt 0 ]; do
  case "$1" in
    --env) export "$2"; shift ;;
    *.sif) shift; exec "$@" ;;
  esac
  shift
done
"""


def with_path(slurm: cluster.Slurm) -> cluster.Slurm:
    slurm.environment |= QUICK
    slurm.environment["PATH"] = (
        f"{slurm.folder}/bin{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{slurm.environment['PATH']}"
    )
    return slurm


@pytest.fixture(scope="module")
def slurm() -> Iterator[cluster.Slurm]:
    with cluster.running() as found:
        yield with_path(found)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A small project whose images are packed: its teacher is one short job."""
    there = projects.tracked(tmp_path_factory.mktemp("site") / "a/project")
    there.run("python", "-m", "eldistill", "data", "digits/images")
    return there.path


@pytest.fixture
def here(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "project", symlinks=True))


def blocks(title: str) -> list[dict]:
    """The blocks of the page that show lines of slurm/config.yaml, below a heading."""
    section = re.split(r"\n##+ ", PAGE.split(f"# {title}\n")[1])[0]
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n# slurm/config.yaml.*?\n(.*?)```", section, re.S)]


def write(here: Path, *lines: dict) -> None:
    """Put lines into slurm/config.yaml, as an editor would: below their keys."""
    path = here / "slurm/config.yaml"
    profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    for block in lines:
        for rule, values in block["set-resources"].items():
            profile["set-resources"][rule] |= values
    path.write_text(yaml.safe_dump(profile, sort_keys=False), encoding="utf-8")


def snakemake(slurm: cluster.Slurm, here: Path, *words: str, code: int = 0) -> str:
    command = ["snakemake", "--profile", "slurm", *words]
    environment = slurm.environment | {"PYTHONPATH": str(here / "src")}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def one_job(slurm: cluster.Slurm, here: Path, *words: str) -> tuple[str, dict[str, str]]:
    """Make the teacher by one job: the arguments that sbatch got, and what scontrol says of the job."""
    before = len(slurm.submitted())
    snakemake(slurm, here, *words, TEACHER)
    assert (here / TEACHER).exists()
    (asked,) = slurm.submitted()[before:]
    number = max(int(job["id"]) for job in slurm.jobs())
    told = slurm.run("scontrol", "show", "job", str(number)).stdout
    return asked, dict(pair.split("=", 1) for pair in told.split() if "=" in pair)


# --- settings of a site -----------------------------------------------------------------------------------


def test_lines_of_the_page_reach_slurm(slurm, here):
    """gres, constraint, further options and a shorter limit at once; the training is told when it must have ended."""
    titles = (
        "`gres` in place of GPUs by number",
        "Nodes with a feature",
        "Other options of `sbatch`",
        "Shorter limits",
    )
    found = [block for title in titles for block in blocks(title)]
    assert len(found) == len(titles)
    write(here, *found)
    asked, told = one_job(slurm, here)
    assert "--gpus" not in asked and told["TresPerNode"] == "gres:gpu:a100:1"
    assert told["Features"] == "a100&nvlink" and told["Partition"] == "gpu"
    assert told["Nice"] == "100" and told["TimeLimit"] == "00:30:00"
    log = (here / "data/scratch/logs/teacher/digits-smoke.log").read_text(encoding="utf-8")
    assert "640/640 images" in log


def test_a_feature_that_no_node_has_is_refused_at_once(slurm, here):
    write(here, {"set-resources": {"train_teacher": {"constraint": "h100"}}})
    assert "Invalid feature specification" in snakemake(slurm, here, "--retries", "0", TEACHER, code=1)


def test_options_of_the_command_line_and_of_the_shell(slurm, here, monkeypatch):
    """`--slurm-qos`, which is ignored without accounting; what sbatch reads from its environment; the variable of the GPU's
    model; what `module load` sets is there in jobs."""
    monkeypatch.setitem(slurm.environment, "SBATCH_CONSTRAINT", "nvlink")
    monkeypatch.setitem(slurm.environment, "ELDISTILL_SLURM_GPU_MODEL", "a100")
    rule = here / "workflow/rules/teacher.smk"
    text = rule.read_text(encoding="utf-8").replace(
        'f"python -m eldistill teacher {{', 'f"echo $LINE_OF_A_MODULE > module.txt; python -m eldistill teacher {{'
    )
    rule.write_text(text, encoding="utf-8")
    asked, told = one_job(slurm, here, "--slurm-qos", "long")
    assert "--qos=long" in asked and told["QOS"] == "(null)"
    assert told["Features"] == "nvlink" and "--gpus=a100:1" in asked
    assert (here / "module.txt").read_text() == "loaded\n"


def test_resources_on_the_command_line_replace_those_of_the_file(slurm, here):
    """Why the page says to edit: the partition of GPUs is gone."""
    for more, partition in (((), "gpu"), (("--set-resources", "train_teacher:runtime=30"), "cpu")):
        planned = snakemake(slurm, here, "-n", TEACHER, *more)
        assert f"slurm_partition={partition}" in planned.split("rule train_teacher")[1]
    assert "replaces all entries" in PAGE


def test_a_whole_node_for_one_run(slurm, here):
    """Four processes, one for each GPU of the job, that nobody else is on."""
    write(here, *blocks("A GPU partition that gives whole nodes"))
    asked, told = one_job(slurm, here)
    assert "--gpus=4" in asked and "--exclusive" in asked and told["NumCPUs"] == "64"  # all that the node has
    log = (here / "data/scratch/logs/teacher/digits-smoke.log").read_text(encoding="utf-8")
    assert "640/640 images" in log


def test_a_whole_node_that_snakemake_shares_out(slurm, here):
    """The page's sbatch line: Snakemake inside of a job that holds the node, one run on each GPU."""
    line = next(line for line in PAGE.splitlines() if line.startswith("sbatch --partition=gpu --exclusive"))
    words = [word for word in shlex.split(line) if word != "--mem=0"]
    words[words.index("--wrap") + 1] = words[words.index("--wrap") + 1].replace(" all", f" {TEACHER}")
    environment = slurm.environment | {"PYTHONPATH": str(here / "src")}
    subprocess.run(words, cwd=here, env=environment, check=True, capture_output=True)
    accounting.wait_for("the job", lambda: slurm.jobs()[-1]["state"] not in ("PENDING", "RUNNING", "COMPLETING"), 120)
    said = "".join(path.read_text() for path in here.glob("slurm-*.out"))
    assert slurm.jobs()[-1]["state"] == "COMPLETED" and (here / TEACHER).exists(), said[-3000:]
    assert [path.name for path in (here / "data/scratch/gpus").glob("*.lock")] == ["0.lock"]


# --- in a container ---------------------------------------------------------------------------------------


def test_each_command_goes_through_the_image(slurm, here, monkeypatch):
    """With a stand-in for apptainer: image, GPUs, the checkout's code, the bound store, of a job and of the login node."""
    log = slurm.folder / "apptainer.log"
    slurm.shim("apptainer", APPTAINER.replace("LOG", str(log)))
    monkeypatch.setitem(slurm.environment, "ELDISTILL_STORE", str(here / "a store"))
    (here / "data/scratch").mkdir(parents=True, exist_ok=True)
    (here / "data/scratch/eldistill.sif").touch()
    (here / IMAGES).unlink()  # packed by a job of its own
    snakemake(slurm, here, "--profile", "profiles/slurm-apptainer", TEACHER)
    calls = [line for line in log.read_text().splitlines() if "|exec|" in f"|{line}"]
    assert len(calls) == 2 and (here / TEACHER).exists()
    for call in calls:
        words = call.split("|")
        assert "--nv" in words and f"PYTHONPATH={here / 'src'}" in words and "data/scratch/eldistill.sif" in words
        assert words[words.index("--bind") + 1] == str(here / "a store")
        assert words[words.index("--home") + 1] == str(here)
    assert sum("eldistill teacher digits-smoke" in call for call in calls) == 1


# --- with accounting --------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(accounting.lacking()), reason=accounting.lacking() or "all there")
def test_accounts_and_qos_with_accounting(here, prepared, tmp_path):
    """A real slurmdbd: the page's QOS, the account, sacct as the profile asks it; an unknown QOS is refused."""
    with cluster.running(accounting.Accounted) as slurm:
        with_path(slurm)
        slurm.environment["ELDISTILL_SLURM_ACCOUNT"] = accounting.ACCOUNT
        (block,) = blocks("A QOS for some jobs")
        write(here, {"set-resources": {"train_teacher": block["set-resources"]["distil_run"]}})
        _, told = one_job(slurm, here)
        assert told["QOS"] == accounting.QOS and told["Account"] == accounting.ACCOUNT
        listed = slurm.run("sacct", "-X", "-n", "-P", "-o", "State,Account,QOS,User").stdout.split()
        assert listed == [f"COMPLETED|{accounting.ACCOUNT}|{accounting.QOS}|{getpass.getuser()}"]
        other = Path(shutil.copytree(prepared, tmp_path / "other", symlinks=True))
        said = snakemake(slurm, other, "--retries", "0", "--slurm-qos", "none-such", TEACHER, code=1)
        assert "Invalid qos specification" in said and not (other / TEACHER).exists()
