# SPDX-License-Identifier: Apache-2.0
"""Makes steps of a suite on one GPU, several at a time, on a machine that has neither Snakemake nor the network.

    python benchmarks/gpu_suite.py colour --out DIR --minutes 8 --jobs 16 --only 'avatars-32/*/*/30[0-4]'

It needs Python >= 3.11 and the packages of `eldistill distil`; feature spaces of others need theirs. Small networks leave most of a
GPU idle, so that several trainings share it; with `--mps` through NVIDIA's MPS, if the machine has it. The times in the provenance of
such runs are those of a shared GPU: they are no measure of speed.

Before: copy the packed images (data/sets/DATA/images.safetensors with its .recipe and .made) together with the repository. After: unpack
DIR/*.tar.xz in the repository; `python -m eldistill keep SUITE` there collects the results of the runs for git. Where Snakemake is at
hand, `snakemake --cores 16 all --config suite=colour` does the same and more.

Steps are made in the order of the suite, with what they need first. At the end of the time, those that are not done are stopped and
listed. Exit code 0, or 1 if a step failed.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch  # noqa: E402, F401  imported before the processes are forked, so that each of them need not

from eldistill import files  # noqa: E402
from eldistill.plan import params  # noqa: E402
from eldistill.plan.identity import Identities  # noqa: E402
from eldistill.plan.plan import Plan  # noqa: E402
from eldistill.plan.recipes import Step  # noqa: E402
from eldistill.steps import run as steps  # noqa: E402

LOGS = Path("data/scratch/logs")
PACK = 20.0  # seconds at the end for packing
PIECE = 14 * 2**20  # bytes of files in one archive, at most
LARGE = ("images.safetensors", "ema-", "reference-", "sheet.html", "interpolation.png", "generator_ema")


def chosen(plan: Plan, suite: str, only: list[str]) -> list[Step]:
    """The evaluations of a suite whose run matches a pattern of `only`, with everything they need, in the order of the patterns.

    Runs whose results are kept (`eldistill keep`) are not made again. A pattern without a slash names a teacher, whose check is made
    first."""

    def place(step: Step) -> int | None:
        return next((number for number, each in enumerate(only) if fnmatch.fnmatch(step.name, each)), None)

    there = plan.kept(suite)
    todo = [step for step in plan.evaluations(suite) if (step.name, step.digest) not in there]
    placed = [(number, step) for step in todo if (number := place(step)) is not None]
    lasts = [plan.find("teacher", f"{each}/check") for each in only if "/" not in each]
    lasts += [step for _, step in sorted(placed, key=lambda pair: pair[0])]
    found = {(step.word, step.name): step for last in lasts for step in last.walk() if not step.on_demand}
    return list(found.values())


def start(step: Step) -> int:
    """Start a process that makes a step; returns its number."""
    log = LOGS / step.word / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if child := os.fork():
        return child
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)
        sys.argv = ["eldistill", step.word, step.name]  # the command that its provenance names
        steps.run_step(step.word, step.name, step.file, say=lambda line: print(line, flush=True))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def make(todo: list[Step], jobs: int, until: float, say) -> tuple[list[str], list[str]]:
    """Make steps, at most `jobs` at once, until the time `until` (time.monotonic); returns the names of those that failed and those
    that were not reached."""
    done = {(step.word, step.name) for step in todo if step.fresh(Path())}
    waiting = [step for step in todo if (step.word, step.name) not in done]
    running: dict[int, tuple[Step, float]] = {}
    failed: list[str] = []
    say(f"{len(waiting)} steps to make, {len(done)} fresh")
    while (waiting or running) and time.monotonic() < until:
        ready = (
            step
            for step in waiting
            if all((u.word, u.name) in done for u in (*step.upstream, *step.after) if not u.on_demand)
        )
        while len(running) < jobs and (step := next(ready, None)):
            waiting.remove(step)
            running[start(step)] = step, time.monotonic()
            ready = (
                s for s in waiting if all((u.word, u.name) in done for u in (*s.upstream, *s.after) if not u.on_demand)
            )
        if not running:
            break
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            time.sleep(0.02)
            continue
        step, begun = running.pop(child)
        name = f"{step.word} {step.name}"
        say(f"{name}: {'done' if not status else 'FAILED'} in {time.monotonic() - begun:.1f} s")
        if status:
            failed.append(name)
            say((LOGS / step.word / f"{step.name}.log").read_text()[-1500:])
        else:
            done.add((step.word, step.name))
    for child, (step, _) in running.items():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        waiting.insert(0, step)
    return failed, [f"{step.word} {step.name}" for step in waiting]


def pack(todo: list[Step], out: Path, keep: list[str]) -> None:
    """Write the small outputs of the steps that are fresh to OUT/results-N.tar.xz. keep: patterns of outputs that are kept too, though
    they are large."""
    pieces: list[list[str]] = [[]]
    size = 0
    for step in todo:
        if not step.fresh(Path()):
            continue
        log = LOGS / step.word / f"{step.name}.log"
        for path in (*step.outputs, step.sidecar, step.record, step.file, str(log)):
            large = any(each in path for each in LARGE) and not path.endswith((".recipe", ".made"))
            if not Path(path).exists() or large and not any(fnmatch.fnmatch(path, each) for each in keep):
                continue
            if size + os.path.getsize(path) > PIECE:
                pieces.append([])
                size = 0
            pieces[-1].append(path)
            size += os.path.getsize(path)
    for number, piece in enumerate(pieces):
        with tarfile.open(out / f"results-{number}.tar.xz", "w:xz", preset=1) as archive:
            for path in dict.fromkeys(piece):
                archive.add(path)


def with_mps(say) -> bool:
    """Start NVIDIA's MPS, through which processes use the GPU at the same time; False if it is missing or does not work."""
    if not shutil.which("nvidia-cuda-mps-control"):
        say("no MPS on this machine")
        return False
    os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": "/tmp/mps", "CUDA_MPS_LOG_DIRECTORY": "/tmp/mps-log"}
    for folder in ("/tmp/mps", "/tmp/mps-log"):
        Path(folder).mkdir(exist_ok=True)
    subprocess.run(["nvidia-cuda-mps-control", "-d"], check=False, timeout=10)
    probe = "import torch; x = torch.ones(8, device='cuda'); assert (x + x).sum().item() == 16"
    try:
        if subprocess.run([sys.executable, "-c", probe], timeout=40).returncode == 0:
            say("MPS works")
            return True
    except subprocess.TimeoutExpired:
        pass
    without_mps()
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
        os.environ.pop(name)
    say("MPS does not work here; processes take turns")
    return False


def without_mps() -> None:
    """Stop MPS."""
    subprocess.run(["nvidia-cuda-mps-control"], input=b"quit\n", check=False, timeout=20)


def main() -> int:
    """Read the command line, make the steps, pack their outputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of runs, and names of teachers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything, packing included")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", nargs="*", default=[], help="patterns of large outputs that are packed too")
    parser.add_argument("--mps", action="store_true", help="let processes use the GPU at the same time")
    options = parser.parse_args()
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun:7.1f}  {line}", flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(params.load_params(), Identities(measured=False))
    todo = chosen(plan, options.suite, options.only)
    for step in todo:
        files.write_text(Path(step.file), step.recipe)
    mps = options.mps and with_mps(say)
    try:
        failed, missing = make(todo, options.jobs, begun + 60 * options.minutes - PACK, say)
    finally:
        if mps:
            without_mps()
    say(f"{len(failed)} failed: {failed}; {len(missing)} not reached: {missing[:40]}")
    pack(todo, options.out, options.keep)
    with io.StringIO(json.dumps({"failed": failed, "not_reached": missing})) as text:
        (options.out / "steps.json").write_text(text.getvalue())
    say("packed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
