# SPDX-License-Identifier: Apache-2.0
"""The whole chain by the commands that a user types, on a Slurm of this machine: from an address to a FID, then DVC.

    python tests/slurm/rehearsal.py            # {di, sid2a, dmd} with {none, el, pixel-mmd}
    python tests/slurm/rehearsal.py --short    # {di} with {none, el}: from the address to `dvc metrics diff`, a fifth of the trainings

In a fresh clone, with files of the official forms on a local server (publishers.py): download, check, distil, FID,
tables; what was made is recorded, pushed and pulled elsewhere; one number is changed.
No job of Slurm reaches the network. Every command is printed as it is typed, with what it said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import conftest
from tests.slurm import cluster, publishers

METHODS, SUPPLEMENTS = ["di", "sid2a", "dmd"], ["none", "el", "pixel-mmd"]
SHORT_METHODS, SHORT_SUPPLEMENTS = METHODS[:1], SUPPLEMENTS[:2]
SHOWN = 14  # lines of what a command says
# Read by every Python of a job before anything else: its connections fail, as on a node without a line.
BLOCKED = """
import os, socket
if "SLURM_JOB_ID" in os.environ:
    def refuse(self, address, connect=socket.socket.connect):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise OSError(f"the network is blocked in jobs: {address}")
        return connect(self, address)
    socket.socket.connect = refuse
"""


class Failed(Exception):
    """The rehearsal did not go as a user would expect."""


class Folder:
    """A clone and what is typed in it."""

    def __init__(self, path: Path, environment: dict[str, str]):
        self.path, self.environment = path, environment | {"PYTHONPATH": f"{path / 'src'}{os.pathsep}{path.parent}"}

    def type(self, command: str, shown: int = SHOWN, **more: str) -> str:
        """Run a line of a shell, print it and the end of what it says; returns all of it. Raises Failed."""
        print(f"\n$ {command}", flush=True)
        began = time.monotonic()
        done = subprocess.run(command, shell=True, cwd=self.path, env=self.environment | more, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        print("\n".join([*(["…"] if len(lines) > shown else []), *lines[-shown:]]))
        print(f"[exit code {done.returncode}, {time.monotonic() - began:.0f} s]", flush=True)
        if done.returncode:
            raise Failed(f"`{command}` ended with exit code {done.returncode}: {done.stdout[-6000:]}")
        return done.stdout


def expect(what: str, holds: bool) -> None:
    """Print a fact that the rehearsal rests on. Raises Failed if it does not hold."""
    print(f"  {'ok' if holds else 'NOT SO'}: {what}", flush=True)
    if not holds:
        raise Failed(what)


def first(here: Folder, slurm: cluster.Slurm, asked: list[str]) -> None:
    """From an address to tables, through Slurm."""
    here.type("snakemake -n --quiet --profile slurm all", shown=4)
    here.type("snakemake --profile slurm all", shown=3)
    wanted = {
        "cifar-10-python.tar.gz",
        "edm-cifar10-32x32-uncond-vp.pkl",
        "cifar10-32x32.npz",
        "inception-2015-12-05.pkl",
    }
    fetched = [path.rsplit("/", 1)[-1] for path in asked]
    expect(f"{len(wanted)} files were fetched, each once", sorted(fetched) == sorted(wanted))
    jobs = slurm.jobs()
    gpus = [job for job in jobs if "gpu:1" in job["gpus"]]
    right = all(job["partition"] == ("gpu" if job in gpus else "cpu") for job in jobs)
    expect("each with a GPU in the partition of GPUs, the others in the other", right)
    expect(f"{len(jobs)} jobs of Slurm, {len(gpus)} of them with a GPU, all completed without network",
           {job["state"] for job in jobs} == {"COMPLETED"})  # fmt: skip
    print((here.path / "data/tables/rehearsal/main.md").read_text(encoding="utf-8"))
    runs = (here.path / "data/tables/rehearsal/runs.csv").read_text(encoding="utf-8")
    expect("every run has a FID", "fid20_inception_edmref" in runs)


def recorded(here: Folder, elsewhere: Path) -> None:
    """DVC: recorded, pushed, pulled into a clone that has nothing to do."""
    here.type("dvc repro", shown=4)
    here.type("git add --all && git commit --quiet -m 'the first results' && dvc push", shown=2)
    here.type(f"git clone --quiet . {elsewhere}", shown=1)
    there = Folder(elsewhere, here.environment)
    there.type("dvc pull", shown=2)
    plan = there.type("snakemake -n all", shown=2)
    expect("the clone has nothing to do", "Nothing to be done" in plan)
    expect("dvc agrees", "up to date" in there.type("dvc repro", shown=2))


def changed(here: Folder) -> None:
    """One number, and its effect on the FID."""
    path = here.path / "params.yaml"
    values = conftest.read_yaml(path.read_text(encoding="utf-8"))
    values["distil"]["supplements"]["el"]["weight"] = 2.8
    path.write_text(conftest.write_yaml(values), encoding="utf-8")
    here.type("dvc params diff", shown=4)
    here.type("dvc repro", shown=3, SNAKEMAKE_PROFILE="slurm")
    diff = here.type("dvc metrics diff")
    expect("the FID of the changed runs moved", "fid20_inception_edmref" in diff)
    moved = [line.split()[1] for line in diff.splitlines() if "cifar10." in line]
    expect("only runs with EL changed", bool(moved) and all(".el." in name for name in moved))
    expect("it fits a screen", len(diff.splitlines()) <= 24)


def tried(here: Folder) -> None:
    """An experiment of DVC."""
    here.type("git commit --quiet -am 'EL at 2.8'", shown=1)
    here.type("dvc exp run --set-param tables.confidence=0.9 --name narrower", shown=3, SNAKEMAKE_PROFILE="slurm")
    expect("the experiment is kept", "narrower" in here.type("dvc exp list", shown=3))


def students(here: Folder) -> None:
    """A published one-step student beside its authors' figure, by the same ruler."""
    said = here.type("python -m eldistill check sid-cifar10-uncond --n 20 --batch 20", shown=1)
    expect("a student of SiD is read and measured", "fd20_inception_edmref" in said and "fid 1.923" in said)


def main() -> int:
    """See above."""
    if absent := cluster.lacking():
        print(f"eldistill: {absent}", file=sys.stderr)
        return 2
    short = sys.argv[1:] == ["--short"]
    began = time.monotonic()
    with cluster.running() as slurm, tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        site, clone = Path(folder) / "site", cluster.clone(Path(folder) / "clone")
        publishers.build(site, clone)
        (Path(folder) / "sitecustomize.py").write_text(BLOCKED)
        slurm.environment |= {"OMP_NUM_THREADS": "1", "ELDISTILL_SUITE": "rehearsal"}
        slurm.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{slurm.environment['PATH']}"
        with publishers.served(site) as server:
            methods, supplements = (SHORT_METHODS, SHORT_SUPPLEMENTS) if short else (METHODS, SUPPLEMENTS)
            publishers.small(clone, site, server.address, methods, supplements)
            here = Folder(clone, slurm.environment)
            who = "git config user.name x && git config user.email x@x"
            subprocess.run(
                f"{who} && git commit --quiet -am 'the numbers of the rehearsal'", shell=True, cwd=clone, check=True
            )
            try:
                first(here, slurm, server.asked)
                recorded(here, Path(folder) / "elsewhere")
                changed(here)
                if not short:
                    tried(here)
                    students(here)
            except Failed as failed:
                print(f"\neldistill: the rehearsal failed: {failed}", file=sys.stderr)
                if keep := os.environ.get("ELDISTILL_KEEP"):
                    shutil.copytree(clone, keep, symlinks=True)
                return 1
    print(f"\nthe rehearsal took {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
