# SPDX-License-Identifier: Apache-2.0
"""A Slurm with accounting: MariaDB and slurmdbd of its own, loopback alone, one account and two QOS.

Needs mariadbd and slurmdbd besides (Debian: apt-get install mariadb-server slurmdbd).
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.slurm import cluster

PROGRAMS = ("mariadbd", "mariadb-install-db", "slurmdbd", "sacct", "sacctmgr")
LINES = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.sock
AccountingStorageEnforce=associations,limits,qos"""
DAEMON = """AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StoragePort={database}
StorageUser=root
StorageLoc=accounting
"""
ACCOUNT, QOS = "lab", "long"


def lacking() -> str:
    """The programs that are not there, in one sentence; empty if all are."""
    path = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return f"no {', '.join(absent)} on this machine (Debian: apt-get install mariadb-server slurmdbd)" if absent else ""


def wait_for(what: str, holds: Callable[[], bool], seconds: float = 60) -> None:
    """Ask until it holds. Raises RuntimeError."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} does not start")
        time.sleep(0.2)


class Accounted(cluster.Slurm):
    """A cluster whose users have the account `lab` with the QOS `normal` and `long`, and nothing else."""

    def __init__(self, folder: Path):
        self.port, self.database = cluster._port(), cluster._port()
        super().__init__(folder, LINES.format(port=self.port, folder=folder.resolve()))
        self.environment |= {"MYSQL_UNIX_PORT": f"{self.folder}/database.sock", "ELDISTILL_SLURM_STATUS": "sacct"}
        self.processes: list[subprocess.Popen] = []
        config = self.folder / "slurmdbd.conf"
        config.touch(mode=0o600)  # slurmdbd reads no other
        config.write_text(
            DAEMON.format(folder=self.folder, port=self.port, user=getpass.getuser(), database=self.database)
        )

    def background(self, *words: str) -> None:
        """Start a program that ends with this cluster."""
        with open(self.folder / "daemons.log", "a") as log:
            self.processes.append(subprocess.Popen(words, env=self.environment, stdout=log, stderr=log))

    def start_accounting(self) -> None:
        """MariaDB, slurmdbd, and who may do what. Between munged and slurmctld."""
        place, user = f"--datadir={self.folder}/database", f"--user={getpass.getuser()}"
        self.run("mariadb-install-db", place, user, "--auth-root-authentication-method=normal", "--skip-test-db")
        socket = self.folder / "database.sock"
        self.background("mariadbd", place, user, f"--socket={socket}", f"--port={self.database}", "--bind-address=127.0.0.1",
                        "--innodb-buffer-pool-size=64M", f"--pid-file={self.folder}/database.pid")  # fmt: skip
        wait_for("mariadbd", socket.exists)
        self.background("slurmdbd", "-D")
        add = ("sacctmgr", "--immediate", "add")
        wait_for("slurmdbd", lambda: self.run(*add, "cluster", "eldistill", check=False).returncode == 0)
        self.run(*add, "qos", QOS)
        self.run(*add, "account", ACCOUNT)
        self.run(*add, "user", getpass.getuser(), f"account={ACCOUNT}", f"qos=normal,{QOS}")

    def stop(self) -> None:
        """The others first: slurmctld writes to the database until it ends."""
        super().stop()
        for process in reversed(self.processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
