# SPDX-License-Identifier: Apache-2.0
"""Runs snakemake, dvc and the steps of a project by forking a process that has imported them: a tenth of the time.

Only the start differs: every command is a process of its own, with its own arguments, folder, environment and exit code.
The code of the steps is that of this checkout, whatever the project holds. Unless it serves whole steps, their makers are
replaced: an output holds its name and the digest of its recipe, and nothing is trained.

    python tests/forks.py SOCKET         serves until it is killed
    python tests/forks.py SOCKET whole   with the real makers
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRELOADED = (
    "dvc.cli", "dvc.commands.checkout", "dvc.commands.repro", "dvc.repo.checkout", "dvc.repo.reproduce", "dvc.stage.run",
    "dvc.dependency", "dvc.output", "dvc.repo.index", "dvc.repo.scm_context", "dvc.stage.cache", "dvc.stage.loader", "dvc.lock",
    "dvc.rwlock", "dvc.cachemgr", "dvc.data_cloud", "dvc.parsing", "dvc.dvcfile", "dvc_data.index.checkout",
    "dvc_data.index.build", "dvc_data.hashfile.build", "dvc_data.hashfile.state", "dvc_data.hashfile.checkout",
    "dvc_data.hashfile.transfer", "scmrepo.git", "pygit2", "dulwich.repo", "dvc_objects.fs.local", "shortuuid", "networkx",
    "snakemake.cli", "snakemake.api", "snakemake.workflow", "snakemake.executors.local", "snakemake.scheduling.job_scheduler",
    "snakemake_executor_plugin_slurm", "eldistill.__main__", "eldistill.plan.driver", "eldistill.steps.run",
)  # fmt: skip

# What the real makers need besides.
WHOLE = (
    "torch", "torch._dynamo", "numpy", "scipy.linalg", "sklearn.datasets", "pandas", "PIL.Image", "matplotlib.pyplot",
    "matplotlib.backends.backend_agg", "eldistill.distil.run", "eldistill.evaluate.evaluator",
    "eldistill.evaluate.features", "eldistill.evaluate.judges", "eldistill.training.loop", "eldistill.data.packing",
    "eldistill.tables.report", "eldistill.sampling.generators", "eldistill.tables.sheet", "eldistill.tables.suite",
    "eldistill.ensemble.seed", "eldistill.ensemble.conv", "eldistill.methods.diff_instruct", "eldistill.networks.song",
    "eldistill.supplements.embedding", "eldistill.teacher.check", "eldistill.teacher.train",
)  # fmt: skip
ROOT = Path(__file__).parents[1]

CLIENT = """#!{python} -IS
import json, os, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect({socket!r})
told = json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(line, [len(told).to_bytes(4, "big")], [0, 1, 2])
line.sendall(told)
sys.exit(int(line.recv(8) or 1))
"""


@contextmanager
def serving(folder: Path, whole: bool = False) -> Iterator[Path]:
    """A server for as long as the context lasts; gives a folder with snakemake, dvc and python for the PATH."""
    programs(folder / "bin", folder / "door")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / 'src'), "OMP_NUM_THREADS": "1",
                   "MPLBACKEND": "agg"}  # fmt: skip
    command = [sys.executable, __file__, str(folder / "door"), *(["whole"] if whole else [])]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"ready\n"
        try:
            yield folder / "bin"
        finally:
            server.kill()


def content(output: str, digest: str) -> str:
    """What the stand-in of a step writes."""
    return json.dumps({"output": output, "recipe": digest}) + "\n"


def programs(folder: Path, address: Path) -> None:
    """Write snakemake, dvc and python into a folder for the PATH."""
    folder.mkdir(parents=True)
    for name in ("snakemake", "dvc", "python"):
        (folder / name).write_text(CLIENT.format(python=sys.executable, socket=str(address), name=name))
        (folder / name).chmod(0o755)


def make(work) -> None:
    """In place of every maker. The file `fail` names a step whose maker breaks down."""
    if Path("fail").exists() and Path("fail").read_text() == f"{work.step.word} {work.step.name}":
        raise RuntimeError("it was told to fail")
    for output in work.outputs:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(content(str(output), work.digest))


def run(name: str, arguments: list[str], whole: bool = False) -> int:
    """One command, in this process."""
    if name == "snakemake":
        sys.executable = str(Path(os.environ["PATH"].split(os.pathsep)[0]) / "python")
        return _snakemake(arguments)
    if name == "dvc":
        from dvc.cli import main

        return main(arguments)
    from eldistill import __main__
    from eldistill.steps import run as steps
    from eldistill.steps import work
    from eldistill.training.machine import Machine

    if whole:
        return __main__.main(arguments[2:])
    if arguments[:3] != ["-m", "eldistill", "cost"]:  # which Snakemake starts when a run begins
        steps.make_step = make
        work.set_threads = lambda *given: None
        work.find_machine = lambda *given: Machine()
        return __main__.main(arguments[2:])
    return 0


def _snakemake(arguments: list[str]) -> int:
    from snakemake import cli, workflow

    build = workflow.Workflow._build_dag

    def build_and_tell(self) -> None:
        # Which jobs Snakemake has decided to run, by their first outputs.
        build(self)
        jobs = [job for job in self.dag.needrun_jobs() if job.output]
        Path("planned.json").write_text(json.dumps(sorted(str(job.output[0]) for job in jobs)))

    workflow.Workflow._build_dag = build_and_tell
    cli.main(arguments)
    return 0


def _answer(line: socket.socket, whole: bool) -> None:
    size, descriptors, _, _ = socket.recv_fds(line, 4, 3)
    told = b""
    while len(told) < int.from_bytes(size, "big"):
        told += line.recv(1 << 16)
    name, arguments, folder, environment = json.loads(told)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # New streams: those of the server remember whether its own files could seek.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [name, *arguments]
    code = 1
    try:
        code = run(name, arguments, whole)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        line.sendall(str(int(code or 0)).encode())
        os._exit(0)


def serve(address: str, whole: bool) -> None:
    """Import what takes long, then answer each call in a fork."""
    for name in (*PRELOADED, *(WHOLE if whole else ())):
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    door = socket.socket(socket.AF_UNIX)
    door.bind(address)
    door.listen(64)
    print("ready", flush=True)
    while True:
        line, _ = door.accept()
        if os.fork() == 0:
            door.close()
            _answer(line, whole)
        line.close()


if __name__ == "__main__":
    serve(sys.argv[1], "whole" in sys.argv[2:])
