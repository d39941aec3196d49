# SPDX-License-Identifier: Apache-2.0
"""Several processes that share every batch are one process: the same weights, averages and log."""

from __future__ import annotations

import datetime
import json
import multiprocessing as forking
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch import distributed as collectives
from torch import multiprocessing

from eldistill import __main__, contract, files
from eldistill.distil import student
from eldistill.errors import Problem, Stopped
from eldistill.sampling import generators as sampling
from eldistill.tensors import load_tensors
from eldistill.training import launch, loop, state, update
from eldistill.training import processes as distributed
from tests.conftest import Bench
from tests.distil import test_distil

made = test_distil.made  # the fixture
METHODS = sorted(path.stem for path in (Path(loop.__file__).parents[1] / "methods").glob("[!_]*.py"))
EL = {"embedding": {"real_ratio": 2, "diagnose": 3}}
# What is trained beside the plain methods: method, supplements, and what else of Bench.job.
MORE = {
    "el": ("diff_instruct", EL, {}),
    "el, labels and dropout": ("diff_instruct", EL, {"labels": 3, "dropout": 0.2}),
    "el, linear and augmented": ("diff_instruct", {"embedding": {"kernel": "linear", "augmentation": ("flip", "cutout")}}, {}),
    "el where gradients meet at the weights": ("consistency", EL, {}),
    "el in micro-batches": ("sida", EL, {"micro_batch": 2}),
    "gan": ("diff_instruct", {"gan": {}}, {}),
    "regression and el": ("dmd", {"regression": {}, "embedding": {}}, {}),
    "clipped": ("sid", {}, {"optimiser": {"clip": 0.5, "warmup_images": 40}}),
    "fd": ("dmd", {"fd": {"population": 64, "axes": 20}}, {}),
    "drift": ("dmd", {"drift": {"real_ratio": 2}}, {}),
    "a guided teacher": ("sid", {}, {"guided": {"weight": 1.5, "low": 0.3}, "labels": 3}),
    "a wider student": ("dmd", {}, {"sizes": {"model_channels": 8}}),
    "fd without a base loss": ("alone", {"fd": {"weighting": "fixed"}}, {}),
}  # fmt: skip
LOSSES = [method for method in METHODS if contract.load_method(method).offers("generator_terms")]
CASES = {**{method: (method, {}, {}) for method in LOSSES}, **MORE}
BATCH, STEPS = 16, 6  # past every warm-up, every `diagnose`, and the first redraw of labels
STOP = 3  # where a run of one number of processes ends and one of another goes on
FEW = ("el", "dmd2")  # with four processes these are tried every time, the others by `make test-slow`
DTYPES = (torch.float64, torch.float32)
every = pytest.mark.parametrize(
    ("case", "size"), [(case, 2) for case in CASES] + [(case, 4) for case in FEW]
    + [pytest.param(case, 4, marks=pytest.mark.slow) for case in CASES if case not in FEW],
)  # fmt: skip
# In float32, whose agreement that in float64 implies but for rounding, the same few; all by `make test-slow`.
in_float32 = pytest.mark.parametrize(
    ("case", "size"), [(case, size) for case in FEW for size in (2, 4)]
    + [pytest.param(case, size, marks=pytest.mark.slow) for case in CASES if case not in FEW for size in (2, 4)],
)  # fmt: skip
SMOOTH = {"eps": 1e-3}  # Adam's first steps are signs of gradients: those near 0 would show nothing but rounding


def trained(bench: Bench, case: str, dtype, steps: int = STEPS, folder: str = "state", stop: int = 0) -> loop.Loop:
    method, supplements, others = CASES[case]
    optimiser = {**SMOOTH, **others.get("optimiser", {})}
    job = bench.job(method, supplements, folder=folder, dtype=dtype, batch=BATCH, steps=steps, ticks=4,
                    **{**others, "optimiser": optimiser})  # fmt: skip

    class Ending(loop.Loop):
        def iterate(self) -> None:
            super().iterate()
            if self.iteration == stop and self.across.rank == self.across.size - 1:
                self.stop_reason = "stopped by the test"

    work = Ending(job)
    try:
        work.run()
    except Stopped:
        assert work.iteration == stop
    return work


def outcome(work: loop.Loop) -> tuple[dict, list]:
    tensors = state.pack_tensors({**work.job.nets, "average": work.average}, work.optimisers)
    return {name: each.clone() for name, each in tensors.items()}, work.rows


def start(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=120)
    collectives.init_process_group("gloo", f"file://{folder}/store-{size}", wait, world_size=size, rank=rank)


def work(rank: int, folder: str, cases: dict, rounded: tuple) -> None:
    """One of four processes: every case of two, if it is one of the first two, then those of four; in float64, and those of
    `rounded` in float32.
    Of two also what a stopped run leaves and continues."""
    for size in (2, 4):
        if rank >= size:
            continue
        start(rank, size, folder)
        bench, found = Bench(Path(folder)), {}
        for case in cases[size]:
            for dtype in DTYPES if case in rounded else DTYPES[:1]:
                found[case, dtype] = outcome(trained(bench, case, dtype, folder=f"state-{size}-{rank}"))
                if rank == 0:
                    shutil.rmtree(bench.folder / f"state-{size}-{rank}")
                collectives.barrier()
        if size == 2:  # what one process began two continue, and what two begin one shall
            found["continued"] = outcome(trained(bench, "el", torch.float64, folder="begun by one"))
            collectives.barrier()
            trained(bench, "el", torch.float64, folder="begun by two", stop=STOP)
        torch.save(found, f"{folder}/found-{size}-{rank}.pt")
        collectives.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory, request) -> dict:
    """{number of processes: what each found}, 1 for one process."""
    slow = any("slow" in item.keywords for item in request.session.items if item.path == Path(__file__))
    rounded = tuple(CASES) if slow else FEW
    cases = {2: tuple(CASES), 4: rounded}
    folder = tmp_path_factory.mktemp("processes")
    bench = Bench(folder)
    alone = {}
    for case in CASES:
        for dtype in DTYPES if case in rounded else DTYPES[:1]:
            alone[case, dtype] = outcome(trained(bench, case, dtype))
            shutil.rmtree(folder / "state")
    trained(bench, "el", torch.float64, folder="begun by one", stop=STOP)
    # One server imports torch and these tests, and four processes fork from it.
    forking.set_forkserver_preload(["test_processes"])
    multiprocessing.start_processes(work, (str(folder), cases, rounded), nprocs=4, start_method="forkserver")
    several = {size: [torch.load(folder / f"found-{size}-{rank}.pt") for rank in range(size)] for size in (2, 4)}
    again = outcome(trained(bench, "el", torch.float64, folder="begun by two"))
    return {1: [alone], **several, "by one": again}


def assert_near(mine: tuple, wanted: tuple, rtol: float) -> None:
    assert mine[0].keys() == wanted[0].keys()
    for name, each in wanted[0].items():
        scale = each.abs().max() if each.numel() else 0
        assert (mine[0][name] - each).abs().max() <= rtol * scale + 1e-12, name
    assert len(mine[1]) == len(wanted[1]) > 3
    for row, other in zip(mine[1], wanted[1], strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            assert row[name] == pytest.approx(value, rel=rtol, abs=1e-9), name


@every
def test_several_processes_are_one(found, size, case):
    """After all steps networks, averages, optimisers and every logged number, in float64; all processes hold the same."""
    wanted = found[1][0][case, torch.float64]
    assert_near(found[size][0][case, torch.float64], wanted, 1e-6)
    for other in found[size][1:]:
        for name, each in found[size][0][case, torch.float64][0].items():
            assert torch.equal(other[case, torch.float64][0][name], each), name
    began = trained_weights(case)
    assert any(not torch.equal(each, began[name]) for name, each in wanted[0].items() if name in began)


def trained_weights(case: str) -> dict:
    """The generator that every case starts from."""
    module = contract.load_module("methods", CASES[case][0])
    numbers = module.Numbers(**({"group": 2} if hasattr(module, "group") else {}))
    labels, dropout = (CASES[case][2].get(name, 0) for name in ("labels", "dropout"))
    teacher = student.resize(Bench.teacher(labels, torch.float64, dropout), CASES[case][2].get("sizes"), 1, 2.5)
    net = module.generator(teacher, None, numbers)
    return {f"net/generator/{name}": each for name, each in net.state_dict().items()}


@in_float32
def test_in_float32_their_losses_are_near(found, size, case):
    """To a thousandth of the loss, or of the largest number of its kind in the log where it passes through 0."""
    mine, wanted = (found[each][0][case, torch.float32][1] for each in (size, 1))
    largest = {name: max(abs(row.get(name, 0)) for row in wanted) for row in wanted for name in row}
    for row, other in zip(mine, wanted, strict=True):
        for name, value in other.items():
            if not name.endswith((".cosine", ".optimal", ".snr")):  # of noise
                assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-3 * largest[name]), name


def test_any_number_of_processes_continues_a_run(found):
    """Stopped by its last process alone, at the same step in all; one continues two's, two continue one's."""
    wanted = found[1][0]["el", torch.float64]
    assert_near(found["by one"], wanted, 1e-6)
    assert_near(found[2][0]["continued"], wanted, 1e-6)


@pytest.mark.parametrize(("batch", "group", "size"), [(16, 1, 3), (16, 4, 3), (7, 1, 7), (10, 4, 3), (2048, 64, 8)])
def test_rows_are_a_partition_in_whole_groups(batch, group, size):
    parts = []
    for rank in range(size):
        across = object.__new__(distributed.ProcessGroup)
        across.rank, across.size = rank, size
        parts.append(across.rows(batch, group))
    assert [index for part in parts for index in range(part.start, part.stop)] == list(range(batch))
    assert all(part.start % group == 0 and part.stop > part.start for part in parts)


def test_a_batch_too_small_to_be_shared_is_one_sentence():
    across = object.__new__(distributed.ProcessGroup)
    across.rank, across.size = 0, 4
    with pytest.raises(
        Problem, match="a batch of 8 images in groups of 4 cannot be shared by 4 processes; expected at least 16"
    ):
        across.rows(8, 4)


# --- from the command line -----------------------------------------------------------------------------


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    shutil.copytree(made, tmp_path / "project", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "project")
    shutil.rmtree("data/runs", ignore_errors=True)
    return tmp_path / "project"


RUN = "digits-smoke/di/el/0"


def environment() -> dict:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(loop.__file__).parents[2])}


def command(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *words], env=environment(), capture_output=True, text=True, timeout=300, **options
    )


def weights() -> dict:
    return load_tensors(f"data/runs/{RUN}/generator_ema.safetensors")[0]


def near(mine: dict, wanted: dict) -> bool:
    return all((mine[name] - each).abs().max() <= 2e-3 * each.abs().max() + 1e-6 for name, each in wanted.items())


def test_by_one_option_or_by_torchrun(project):
    """The same generator; one file of each kind, one line in the log of what ran, nothing left behind."""
    assert __main__.main(["distil", RUN]) == 0
    alone, lines = weights(), len(Path("data/scratch/run-log.jsonl").read_text().splitlines())
    for words in (
        ["eldistill", "distil", RUN, "--force", "--processes", "2"],
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "eldistill", "distil", RUN, "--force"],
    ):
        done = command(*words)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count(" images/s ") >= 1 and near(weights(), alone)
        lines += 1
        assert len(Path("data/scratch/run-log.jsonl").read_text().splitlines()) == lines
        assert not list(Path("data/scratch/state").glob("*")) and not list(Path("data").rglob("*.tmp*"))
    flop = files.read_json(f"data/runs/{RUN}/provenance.json")["flop_per_iteration"]
    assert flop and sampling.load_generator(f"data/runs/{RUN}/generator_ema.safetensors").metadata["recipe"]


def test_an_evaluation_is_shared(project):
    """The metrics, the curve and the pictures of two processes are those of one, and those of a smaller batch."""
    for words in (["data", "digits-smoke/judge-a"], ["data", "digits-smoke/judge-b"], ["distil", RUN],
                  *(["data", f"digits-smoke/reference-{name}"] for name in ("judge-a", "judge-b", "pixels"))):  # fmt: skip
        assert __main__.main(words) == 0
    folder, found = Path(f"data/evaluations/{RUN}"), []
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    for more, batch in (([], 100), (["--processes", "2"], 100), ([], 37)):
        Path("params.yaml").write_text(yaml.safe_dump(values | {"evaluate": values["evaluate"] | {"batch": batch}}))
        if more:
            done = command("eldistill", "evaluate", RUN, "--force", *more)
            assert done.returncode == 0, done.stderr[-2000:]
        else:
            assert __main__.main(["evaluate", RUN, "--force"]) == 0
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    alone, shared, smaller = found
    recorded = {f"metrics.json{ending}" for ending in ("", ".recipe", ".made")}
    assert shared == alone
    assert set(alone) == {*recorded, "curve.csv", "samples.png", "interpolation.png", "sheet.html"}
    one, other = (json.loads(each["metrics.json"]) for each in (alone, smaller))
    assert other == pytest.approx(one, rel=1e-4, abs=1e-4)  # convolutions of other shapes round otherwise


def test_too_much_for_the_memory_is_done_in_parts(project, monkeypatch, capsys):
    """Halved until it fits, from the last saved state, with the same result; not at all if `fit` is false."""
    assert __main__.main(["distil", RUN, "--force"]) == 0
    alone, whole = weights(), update.Update._generate
    tried = []

    def small(self, batch, part):
        if part.stop - part.start > 8:
            tried.append(part.stop - part.start)
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, batch, part)

    monkeypatch.setattr(update.Update, "_generate", small)
    capsys.readouterr()
    assert __main__.main(["distil", RUN, "--force"]) == 0
    assert tried == [16] and "continuing with 8 images at once" in capsys.readouterr().out
    assert near(weights(), alone)
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    values["distil"]["fit"] = False
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert __main__.main(["distil", RUN, "--force"]) == 1
    assert "set distil.micro_batch in params.yaml" in capsys.readouterr().err


def test_several_processes_start_again_in_parts(monkeypatch):
    """One exit code of a process says so to the launcher; all others end it."""
    answers, seen = [76, 76, 0], []
    monkeypatch.setattr(launch, "_launch", lambda words, count, parts: seen.append(parts) or answers[len(seen) - 1])
    assert launch.launch([], 2, most=8, log=lambda text: None) == 0 and seen == [1, 2, 4]
    seen.clear()
    assert launch.launch([], 2, most=2, log=lambda text: None) == 1 and seen == [1, 2]
    for code in (75, 2):
        answers, seen[:] = [code], []
        assert launch.launch([], 2, most=8) == code and seen == [1]


def test_what_is_no_training_or_no_number_is_one_sentence(project, capsys):
    for words, sentence in (
        (["data", "digits/images", "--force", "--processes", "2"], "is made by one process; remove --processes"),
        (["distil", RUN, "--processes", "0"], "--processes 0; expected 1 to "),
        (["distil", RUN, "--processes", "1000000"], "--processes 1000000; expected 1 to "),
        (["distil", RUN, "--max-minutes", "x"], "expected a number, 0 or more"),
    ):  # fmt: skip
        try:
            code = __main__.main(words)
        except SystemExit as ended:  # argparse
            code = ended.code
        error = capsys.readouterr().err
        assert code == 2 and error.count(sentence) == 1 and "Traceback" not in error


def begin(*words: str) -> tuple[subprocess.Popen, str]:
    """A run of two processes, once it is at work, and what it has printed."""
    printed = ""
    started = subprocess.Popen(
        [sys.executable, "-m", "eldistill", "distil", RUN, "--processes", "2", *words], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for line in started.stdout:
        printed += line
        if " images/s " in line:
            return started, printed
    raise AssertionError(started.stderr.read())


def long(n_images: int = 8000) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    block = values["distil"]["methods"]["di"]["per_data"]["digits-smoke"]
    block["n_images"] = n_images // block["batch"] * block["batch"] if "batch" in block else n_images
    values["distil"]["save_seconds"], values["distil"]["ticks"] = 0.5, 200
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def ours() -> list[int]:
    """Processes of this run that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
            here = os.readlink(path / "cwd") == os.getcwd()
        except OSError:
            continue
        if here and "eldistill" in words and RUN in words:
            found.append(int(path.name))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_run_of_several_that_is_stopped_or_killed_continues(project):
    """Exit code 75 where it was asked to stop; nobody is left; the same command continues, after each of four ends."""
    long()
    again = False
    for how in ("SIGTERM", "SIGINT", "a worker killed", "the launcher killed", "SIGTERM"):
        started, printed = begin()
        assert ("continuing at" in printed) == again, how
        again = True
        workers = [pid for pid in ours() if pid != started.pid]
        assert len(workers) == 2, how
        if how == "a worker killed":
            os.kill(max(workers), signal.SIGKILL)
        elif how == "the launcher killed":
            started.kill()
        else:
            started.send_signal(getattr(signal, how))
        told, said = started.communicate(timeout=240)
        assert "Traceback" not in said, how
        if how.startswith("SIG"):
            assert started.returncode == 75 and "stopped by SIGTERM; saved at" in said, (how, told + said)
            assert (state.state_folder(plan_digest()) / "state.safetensors").exists(), how
        else:
            assert started.returncode != 0, how
        deadline = time.monotonic() + 90
        while ours() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ours() == [], how


def plan_digest() -> str:
    from eldistill.plan import params
    from eldistill.plan.plan import Plan

    return files.digest(Plan(params.load_params()).find("distil", RUN).recipe)
