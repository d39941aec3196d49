# SPDX-License-Identifier: Apache-2.0
"""A real Slurm on this machine, for tests and for trying: one node, four GPUs that are only counted, loopback alone.

    python tests/slurm/cluster.py                   a fresh clone, `snakemake --profile slurm all` in it, its tables
    python tests/slurm/cluster.py COMMAND ...       any command, here, with that Slurm

Needs slurmctld, slurmd and munged (Debian: slurm-wlm and munge), no root, nothing below /etc. No accounting: squeue is asked
(accounting.py has a Slurm with it).
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")  # each stands for a GPU

CONFIG = """
ClusterName=eldistill
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
{accounting}
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=30
MinJobAge=3600
KillWait=30
InactiveLimit=0
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=64 Boards=1 SocketsPerBoard=1 \
CoresPerSocket=64 ThreadsPerCore=1 RealMemory=512000 Feature=a100,nvlink Gres=gpu:a100:4 State=UNKNOWN
PartitionName=cpu Nodes=node0 Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=node0 MaxTime=INFINITE State=UP
"""


def lacking() -> str:
    """The programs that are not there, in one sentence; empty if all are."""
    path = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if not absent:
        return ""
    return f"no {', '.join(absent)} on this machine (Debian: apt-get install slurm-wlm munge)"


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Slurm:
    """A running cluster in a folder. `environment` is what a command needs to use it, `sbatch.log` in the folder has the
    arguments of every submission. accounting: lines of its slurm.conf."""

    def __init__(self, folder: Path, accounting: str = "AccountingStorageType=accounting_storage/none"):
        self.folder = folder.resolve()
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munged wants its socket to be within everybody's reach
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        config, host = self.folder / "slurm.conf", socket.gethostname().split(".")[0]
        config.write_text(
            CONFIG.format(
                host=host, user=getpass.getuser(), folder=self.folder, ports=(_port(), _port()), accounting=accounting
            ).lstrip()
        )
        (self.folder / "gres.conf").write_text(
            "".join(f"NodeName=node0 Name=gpu Type=a100 File={device}\n" for device in DEVICES)
        )
        path = os.environ["PATH"] + os.pathsep + "/usr/sbin"
        # The plugin's job steps drop SLURM_CONF before they call srun: it is put back on the way.
        self.shim("srun", f'SLURM_CONF={config} exec {shutil.which("srun", path=path)} "$@"')
        self.shim("sbatch", f'echo "$*" >> {self.folder}/sbatch.log\nexec {shutil.which("sbatch", path=path)} "$@"')
        self.environment = os.environ | {
            "SLURM_CONF": str(config), "PATH": f"{self.folder}/bin{os.pathsep}{path}", "ELDISTILL_SLURM_STATUS": "squeue",
            "ELDISTILL_SLURM_POLL": "1",
        }  # fmt: skip
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)  # each job starts Snakemake twice

    def shim(self, name: str, text: str) -> None:
        """Put a program of a shell's lines in front of the others."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def submitted(self) -> list[str]:
        """The arguments of sbatch, one submission a line."""
        log = self.folder / "sbatch.log"
        return [line for line in log.read_text().splitlines() if line.startswith("--")] if log.exists() else []

    def run(self, *words: str, check: bool = True, **options) -> subprocess.CompletedProcess:
        """Run a command with this Slurm; options of subprocess.run. Raises RuntimeError with what it said."""
        done = subprocess.run(words, env=self.environment, text=True, capture_output=True, **options)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done

    def daemon(self, *words: str) -> None:
        """Start a program that goes on in the background, with a log in the folder."""
        with open(self.folder / "daemons.log", "a+") as log:
            if subprocess.run(words, env=self.environment, stdout=log, stderr=log).returncode:
                log.seek(0)
                raise RuntimeError(f"{' '.join(words)}: {log.read()[-2000:]}")

    def start(self) -> None:
        """Start the three daemons and wait until the node is idle. Raises RuntimeError."""
        at = lambda name: f"{self.folder}/{name}"  # noqa: E731
        self.daemon("munged", f"--key-file={at('munge.key')}", f"--socket={at('munge.sock')}", f"--pid-file={at('munged.pid')}",
                 f"--log-file={at('munged.log')}", f"--seed-file={at('munged.seed')}")  # fmt: skip
        self.start_accounting()
        self.daemon("slurmctld", "-c")
        self.start_node()

    def start_accounting(self) -> None:
        """Nothing: accounting.py has a cluster with a database."""

    def start_node(self) -> None:
        """Start slurmd, also after it was killed."""
        self.daemon("slurmd", "-N", "node0")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            state = self.run("sinfo", "--noheader", "--format", "%T", check=False).stdout.split()
            if state and set(state) <= {"idle", "mixed", "allocated"}:
                return
            time.sleep(0.1)
        raise RuntimeError(
            f"the node of {self.folder} does not start: " + (self.folder / "slurmd.log").read_text()[-2000:]
        )

    def kill_node(self) -> None:
        """kill -9 of slurmd: the steps of its jobs go on, but nobody answers for them."""
        os.kill(int((self.folder / "slurmd.pid").read_text()), signal.SIGKILL)

    def jobs(self) -> list[dict]:
        """Every job of this cluster: id, state, partition, GPUs (such as gres:gpu:1), comment (rule and wildcards)."""
        columns = ("id", "state", "partition", "gpus", "comment")
        rows = [line.split() for line in self.table().splitlines()[1:]]
        return [dict(zip(columns, row, strict=True)) for row in rows if row]

    def table(self) -> str:
        """The same as squeue prints it."""
        wanted = "JobID:8,State:12,Partition:8,tres-per-job:16,Comment:80"
        return self.run("squeue", "--all", "--states=all", "--sort=i", "--Format", wanted).stdout

    def stop(self) -> None:
        """Cancel what runs and end the daemons."""
        for word in ("--state=PENDING", "--state=RUNNING"):
            self.run("scancel", "--user", getpass.getuser(), word, check=False)
        deadline = time.monotonic() + 40
        while self.run("squeue", "--noheader", check=False).stdout.strip() and time.monotonic() < deadline:
            time.sleep(0.2)
        for name in ("slurmd", "slurmctld", "munged"):
            with contextlib.suppress(OSError, ValueError):
                pid = int((self.folder / f"{name}.pid").read_text())
                os.kill(pid, signal.SIGTERM)
                for _ in range(100):
                    os.kill(pid, 0)  # until there is no such process
                    time.sleep(0.1)


@contextlib.contextmanager
def running(kind: type[Slurm] = Slurm) -> Iterator[Slurm]:
    """A Slurm that is stopped at the end. Its folder has a short name: sockets have no long ones."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        slurm = kind(Path(folder))
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.stop()


def clone(target: Path) -> Path:
    """The tracked files of this folder, as they lie here, as a repository of their own."""

    def git(*words: str, where: Path) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        return subprocess.run(["git", *who, *words], cwd=where, check=True, capture_output=True, text=True).stdout

    for name in git("ls-files", "-z", where=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    (
        git("init", "--quiet", where=target),
        git("add", "--all", where=target),
        git("commit", "--quiet", "-m", "clone", where=target),
    )
    return target


def main(words: list[str]) -> int:
    """See above."""
    if absent := lacking():
        print(f"eldistill: {absent}", file=sys.stderr)
        return 2
    with running() as slurm, tempfile.TemporaryDirectory(prefix="clone-") as folder:
        if words:
            return subprocess.run(words, env=slurm.environment).returncode
        there = clone(Path(folder))
        slurm.environment |= {"PYTHONPATH": str(there / "src"), "OMP_NUM_THREADS": "1"}
        slurm.environment.setdefault("ELDISTILL_SUITE", "smoke")
        slurm.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{slurm.environment['PATH']}"
        print(f"$ ELDISTILL_SUITE={slurm.environment['ELDISTILL_SUITE']} snakemake --profile slurm all", flush=True)
        code = subprocess.run(["snakemake", "--profile", "slurm", "all"], cwd=there, env=slurm.environment).returncode
        print("\n$ squeue --all --states=all --Format JobID,State,Partition,tres-per-job,Comment")
        print(slurm.table())
        for table in sorted((there / "data/tables").glob(f"{slurm.environment['ELDISTILL_SUITE']}/main.md")):
            print(table.read_text(encoding="utf-8"))
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
