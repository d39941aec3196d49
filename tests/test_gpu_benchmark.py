# SPDX-License-Identifier: Apache-2.0
"""The benchmark for the day with a GPU, on the CPU: its parts run, its comparisons can fail, and what fails is written down.
Nothing here asserts a time."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eldistill.plan import params
from tests.conftest import ROOT

SCRIPT = ROOT / "benchmarks/gpu.py"
HEAVY = ("scipy", "sklearn", "pandas", "matplotlib", "PIL", "snakemake", "dvc", "cleanfid", "torchvision")
# As if they were not installed: found by nobody who asks for them.
BLOCK = f"""
import sys


class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {HEAVY} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):  # importlib.metadata asks it for installed packages
        return getattr(self.finder, name)


sys.meta_path[:] = [Without(each) if hasattr(each, "find_spec") else each for each in sys.meta_path]
"""
BROKEN = {
    "right/di/el, labels": "raise",
    "fast/ddpmpp-cifar10, batch 8, dmd/none, bfloat16": "exit",
    "learning/teacher": "memory",
}
REASONS = ("time", "failed before", "stopped", "stopped before")


@pytest.fixture(scope="module")
def of():
    """Modules beside benchmarks/gpu.py by their names."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield importlib.import_module
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("gpu", "gpu_parts", "gpu_readme", "step", "loops"):
            del sys.modules[name]


@pytest.fixture
def options(tmp_path) -> SimpleNamespace:
    """What a part sees."""
    return SimpleNamespace(
        device="cpu", toy=True, folder=tmp_path, settings=params.load_params(ROOT / "params.yaml"), threads=1, compile=False,
        ceilings={"bfloat16": 1e12}, data="digits", carry=tmp_path, breaks=[], item=[],
    )  # fmt: skip


def environment(folder: Path, heavy: bool = True) -> dict:
    """Of a process; heavy: False: one in which what a GPU machine may lack cannot be imported."""
    if not heavy:
        (folder / "sitecustomize.py").write_text(BLOCK)
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}


def started(folder: Path, *words: str, heavy: bool = True) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(folder / "out"), *words]
    return subprocess.Popen(
        command, env=environment(folder, heavy), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def read(folder: Path) -> dict:
    return json.loads((folder / "out/gpu-results.json").read_text(encoding="utf-8"))


# --- the command ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[int, str, dict]:
    """The command on toy networks, some of its items broken, without the packages of the workflow: code, output, results.
    Few items and much time, so that a busy machine changes nothing."""
    folder = tmp_path_factory.mktemp("gpu")
    breaks = [f"--break={name}={how}" for name, how in BROKEN.items()]
    items = ("labels", "dmd/none, bfloat16", "tf32", "teacher", "float32")
    process = started(folder, "--minutes", "8", "--item", *items, *breaks, heavy=False)
    said, _ = process.communicate(timeout=600)
    assert {path.name for path in (folder / "out").iterdir()} == {"gpu-results.json", "log.txt"}
    return process.returncode, said, read(folder)


def test_every_part_ran_or_says_why_not(run):
    code, said, found = run
    assert code == 1 and "Traceback" not in said
    assert list(found["parts"]) == ["right", "fast", "sampling", "learning"] and found["complete"]
    assert found["asked"]["toy"] and found["device"]["kind"] == "cpu" and found["torch"] == torch.__version__
    statuses = set()
    for part, entry in found["parts"].items():
        assert entry["items"]
        for name, row in entry["items"].items():
            statuses.add(row["status"])
            if row["status"] == "failed":
                assert f"{part}/{name}" in BROKEN
    assert statuses == {"done", "failed", "left out"}
    assert found["parts"]["sampling"]["items"]["float32"]["status"] == "done"


def test_what_was_broken_is_written_down(run):
    """By its error and the lines that led there, or by how its process ended."""
    _, said, found = run
    for place, how in BROKEN.items():
        part, _, name = place.partition("/")
        row = found["parts"][part]["items"][name]
        assert row["status"] == "failed" and f"{part}: {name} FAILED" in said
        assert any(each["item"] == f"{part}: {name}" for each in found["summary"]["failed"])
        if how == "exit":
            assert row["message"] == "its process ended with exit code 3" and row["log_tail"] is not None
        else:
            assert "broken on purpose" in row["message"] and any(
                "broken on purpose" in line for line in row["traceback"]
            )
            assert row["reason"] == ("out of memory" if how == "memory" else "failed")


def results() -> dict:
    """A file of results as a GPU of full size would leave it, with an item of each kind."""
    exact, same = {"weights": 3e-13, "terms": 2e-14, "passes": True}, {"equal": True, "passes": True}
    checks = {"float64": exact, "float32": {"weights": 4e-6, "terms": 1e-6}, "twice": same, "resumed": same | {"equal": False},
              "micro-batch": exact, "bfloat16": {"apart_over_moved": 0.0123}}  # fmt: skip
    row = {"milliseconds": 812.34, "bare_milliseconds": 780.0, "ratio": 1.04, "images_per_second": 315.0, "micro_batch": 128,
           "supplement_percent": 2.5, "memory_gib": 61.2}  # fmt: skip
    rates = {"batch": 256, "one step, images/s": 9000.0, "Heun, 18 steps, images/s": 260.0, "ratio": 34.6}
    curve = [
        {"images": n, "seconds": n / 100, "judge-a_heldout": 9.0 - n / 200, "pixels_heldout": 5.0}
        for n in (0, 100, 500, 1000)
    ]
    parts = {
        "right": {"di/none": {"checks": checks, "differs": ["resumed"]}, "EL stacked": {"checks": {}, "differs": []}},
        "fast": {"ddpmpp-cifar10, batch 256, sid/el, bfloat16": row},
        "sampling": {"bfloat16": rates},
        "learning": {
            "teacher": {"quality": curve[0], "train images": curve[3]},
            "di/el": {"curve": curve, "n_images": 1000},
        },
    }
    parts = {
        name: {"items": {item: {"status": "done", **row} for item, row in rows.items()}} for name, rows in parts.items()
    }
    parts["fast"]["items"] |= {"slow": {"status": "not reached", "reason": "time"}}
    device = {"kind": "cuda", "name": "NVIDIA Toy", "memory_gib": 79.6, "driver": "580.1", "cuda": "13.0"}
    summary = {"failed": [{"item": "fast: adm", "reason": "out of memory"}], "left_out": [],
               "not_reached": [{"item": "fast: slow", "reason": "time"}]}  # fmt: skip
    asked = {"toy": False, "parts": ["right", "fast", "sampling", "learning"]}
    return {"asked": asked, "device": device, "parts": parts, "summary": summary, "torch": "2.14.1", "python": "3.11",
            "commit": "0123456789abcdef",
            "date": "2026-01-03T00:00:00Z", "seconds": 530.2, "command": "python benchmarks/gpu.py"}  # fmt: skip


def test_the_page_shows_the_newest_results_of_a_gpu(of, tmp_path):
    """With its name, a table for each part, and what failed; never those of a CPU or of toy networks."""
    page, found = of("gpu_readme").page, results()
    for name, changes in (("2026-02-01-cpu", {"device": {"kind": "cpu", "name": "x86_64"}}), ("2026-02-02-toy", {"asked": {"toy": True}}),
                          ("2026-02-03-none", {"device": None})):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(found | changes | {"date": "2026-02-01T00:00:00Z"}))
    assert "There are no results" in page(tmp_path)
    (tmp_path / "2026-01-02-old.json").write_text(json.dumps(found | {"date": "2026-01-02T00:00:00Z", "torch": "2.11"}))
    (tmp_path / "2026-01-03-toy.json").write_text(json.dumps(found))
    text = page(tmp_path)
    for wanted in (
        "NVIDIA Toy (80 GiB, driver 580.1, CUDA 13.0), torch 2.14.1", "commit 0123456789ab, 2026-01-03", "(2026-01-03-toy.json)",
        "| di/none | 3e-13 | 2e-14 | 4e-06 | yes | no | 3e-13 | 0.012 | differs: resumed |", "* EL stacked: passes.",
        "| ddpmpp-cifar10, batch 256, sid/el, bfloat16 (128 images at once) | 812.3 | 780.0 | 1.04 | 315 | 2.5 | – |",
        "| bfloat16 | 256 | 9000 | 260.0 | 34.6 |",
        "Fréchet distance in judge-a to the held-out images; the teacher in 18 steps has 9.00, the train images 4.00.",
        "| di/el | 1000 of 1000 | 10.0 | 9.00 | 8.50 | 6.50 | 4.00 |", "* fast: adm: out of memory", "* fast: slow: time",
    ):  # fmt: skip
        assert wanted in text, wanted
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 4 and all(len({line.count("|") for line in block}) == 1 for block in tables)
    for part in found["parts"].values():
        part["items"] = {}
    (tmp_path / "2026-01-03-toy.json").write_text(json.dumps(found))
    assert page(tmp_path).count("Not measured.") == 4


def test_a_later_run_of_one_part_fills_in_what_was_not_measured(of, tmp_path):
    """It does not replace the run of all parts, nor what that run measured; another device adds nothing."""
    script, found = of("gpu_readme"), results()
    (tmp_path / "2026-01-03-toy.json").write_text(json.dumps(found))
    row = next(iter(found["parts"]["fast"]["items"].values())) | {"milliseconds": 111.1}
    items = {"slow": row | {"milliseconds": 77.7}, "ddpmpp-cifar10, batch 256, sid/el, bfloat16": row}
    later = found | {"asked": {"toy": False, "parts": ["fast"]}, "date": "2026-01-04T00:00:00Z",
                     "parts": {"fast": {"items": items}}}  # fmt: skip
    other = later | {"device": found["device"] | {"name": "NVIDIA Other"}}
    (tmp_path / "2026-01-04-other.json").write_text(json.dumps(other))
    assert "77.7" not in script.page(tmp_path)
    (tmp_path / "2026-01-04-slow.json").write_text(json.dumps(later))
    text = script.page(tmp_path)
    assert (
        "([2026-01-04-slow.json](2026-01-04-slow.json)): fast: slow." in text
        and "| slow (128 images at once) | 77.7 |" in text
    )
    assert "111.1" not in text and "* fast: slow" not in text and "commit 0123456789ab, 2026-01-03" in text


def test_the_page_is_what_its_script_writes(of):
    script = of("gpu_readme")
    assert (script.FOLDER / "README.md").read_text(encoding="utf-8") == script.page(script.FOLDER)


def test_without_a_gpu_there_is_one_sentence(of, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert of("gpu").main(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "torch sees no GPU on this machine" in said and not list(tmp_path.iterdir())


def test_a_signal_leaves_what_there_is(tmp_path):
    """The file is whole, says what stopped it and what was not reached, and nobody goes on working."""
    process = started(tmp_path, "--minutes", "2", "--part", "sampling", "learning", "--break=sampling/bfloat16=hang")
    deadline = time.monotonic() + 120
    while not (tmp_path / "out/gpu-results.json").exists() or "waiting" not in str(read(tmp_path)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped by SIGTERM" in said
    found = read(tmp_path)
    assert found["stopped"] == "SIGTERM" and not found["complete"]
    assert {each["item"].split(":")[0] for each in found["summary"]["not_reached"]} == {"sampling", "learning"}
    rows = [row for entry in found["parts"].values() for row in entry["items"].values()]
    missed = [row["reason"] for row in rows if row["status"] == "not reached"]
    assert missed and set(missed) <= set(REASONS)


# --- the process that measures, and who watches over it -------------------------------------------------

WORKER = """
import json, os, signal, sys, time
file = open(sys.argv[sys.argv.index("--worker") + 1], "a")
def tell(event, **values):
    print(json.dumps({"event": event, **values}), file=file, flush=True)
tell("device", kind="cpu", name="toy")
tell("ready")
acts = {"exit": lambda: os._exit(3), "kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "hang": lambda: time.sleep(60)}
for line in sys.stdin:
    command = json.loads(line)
    if command["part"] == "sampling":
        os._exit(5)
    names = ["good", "exit", "kill", "hang", "poison", "last"]
    tell("plan", items=names)
    for name in names[names.index(command["after"]) + 1 if command["after"] else 0:]:
        tell("begin", name=name, limit=0.5 if name == "hang" else 60)
        acts.get(name, lambda: None)()
        tell("end", name=name, status="done", seconds=0.0, pid=os.getpid())
        if name == "poison":
            os._exit(86)
    tell("over")
"""


def test_a_process_that_breaks_down_is_followed_by_another(of, tmp_path, monkeypatch):
    """Whatever an item does to its process, those after it are measured, by one process while it lives."""
    gpu, said = of("gpu"), []
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(of("gpu_parts.supervise"), "SCRIPT", str(tmp_path / "worker.py"))
    monkeypatch.setattr(of("gpu_parts.supervise"), "START", {"cpu": 0.0})
    words = [
        "--device",
        "cpu",
        "--minutes",
        "2",
        "--out",
        str(tmp_path / "out"),
        "--part",
        "right",
        "sampling",
        "learning",
    ]
    assert gpu.measure(gpu.parsed(words), said.append) == 1
    found = read(tmp_path)
    right, learning = (found["parts"][name]["items"] for name in ("right", "learning"))
    for items in (right, learning):
        assert {name: row["status"] for name, row in items.items()} == {
            "good": "done", "exit": "failed", "kill": "failed", "hang": "failed", "poison": "done", "last": "done",
        }  # fmt: skip
        assert "exit code 3" in items["exit"]["message"] and "SIGKILL" in items["kill"]["message"]
        assert items["hang"]["reason"] == "time" and "stopped at its limit" in items["hang"]["message"]
        assert len({row["pid"] for row in items.values() if "pid" in row}) == 3
    assert "exit code 5" in found["parts"]["sampling"]["failed"] and "fast" not in found["parts"]
    assert any("sampling FAILED" in line for line in said)


def test_time_that_is_up_is_a_reason(of, tmp_path, monkeypatch):
    """What the time does not reach is listed with it; a part that hangs takes nothing from the end."""
    gpu, said = of("gpu"), []
    (tmp_path / "worker.py").write_text(WORKER.replace('0.5 if name == "hang" else 60', "60"))
    monkeypatch.setattr(of("gpu_parts.supervise"), "SCRIPT", str(tmp_path / "worker.py"))
    monkeypatch.setattr(of("gpu_parts.supervise"), "START", {"cpu": 0.0})
    words = ["--device", "cpu", "--minutes", "0.05", "--out", str(tmp_path / "out"), "--part", "right"]
    assert gpu.measure(gpu.parsed(words), said.append) == 1
    assert any("not reached: right: last (time)" in line for line in said)
    found = read(tmp_path)
    rows = found["parts"]["right"]["items"]
    assert rows["last"] == {"status": "not reached", "reason": "time"} and rows["good"]["status"] in (
        "done",
        "not reached",
    )
    assert found["summary"]["not_reached"]


def test_items_are_made_one_after_the_other(of, options, monkeypatch):
    """An error is the item's alone; a lost GPU ends the process; the item named is where another one goes on."""
    worker, items = of("gpu_parts.worker"), of("gpu_parts.items")

    def leave(seconds):
        raise items.LeftOut("not here")

    acts = {
        "a": lambda seconds: {"x": math.nan},
        "b": lambda seconds: 1 / 0,
        "c": leave,
        "d": lambda seconds: {"seconds_left": seconds},
    }
    monkeypatch.setattr(
        of("gpu_parts.right"), "items", lambda options: [items.Item(name, act) for name, act in acts.items()]
    )
    told = []

    def make(after=None, until=math.inf) -> dict:
        told.clear()
        going = worker.make(options, lambda event, **values: told.append((event, values)), "right", until, after)
        return {"going": going, **{row["name"]: row for event, row in told if event == "end"}}

    found = make()
    assert found["going"] and list(found) == ["going", "a", "b", "c", "d"]
    assert [found[name]["status"] for name in "abcd"] == ["done", "failed", "left out", "done"]
    assert found["b"]["type"] == "ZeroDivisionError" and "1 / 0" in "".join(found["b"]["traceback"])
    assert of("gpu_parts.results").plain(found["a"])["x"] == "nan"
    assert list(make(after="b")) == ["going", "c", "d"]
    assert list(make(until=0.0)) == ["going"] and told[-1][0] == "over"
    monkeypatch.setattr(worker, "poisoned", lambda device: True)
    assert list(make()) == ["going", "a"] and not make()["going"]


# --- the parts ------------------------------------------------------------------------------------------


def test_a_comparison_agrees_and_can_fail(of, options, monkeypatch):
    """With EL, all checks pass; a run from another seed, a stop that forgets, or steps that move nothing do not."""
    right, small = of("gpu_parts.right"), of("gpu_parts.small")
    case, trained = small.Case("di", "el"), small.trained
    found = right.compare(case, options)
    assert found["differs"] == [] and len(found["checks"]) == 6
    assert found["checks"]["float64"]["moved"] > 1e-3 and found["checks"]["float32"]["weights"] > 0

    def wrong(settings, case, folder, stop=0, change=None):
        other = case.micro_batch or stop or case.precision == "bfloat16"
        return trained(settings, dataclasses.replace(case, seed=1) if other else case, folder, stop, change)

    monkeypatch.setattr(small, "trained", wrong)
    found = right.compare(case, options)
    assert set(found["differs"]) >= {"micro-batch", "resumed"}
    outcome = trained(options.settings, case, options.folder)
    assert not right.exact(outcome, outcome, outcome)["passes"]  # nothing has moved


def test_a_check_that_raises_is_one_that_differs(of):
    right = of("gpu_parts.right")

    def fails():
        raise ValueError("no such kernel")

    found = right.verdict({"good": {"passes": True}, "stated": {"x": 1.0}, "bad": right.tried(fails)})
    assert found["differs"] == ["bad"] and found["checks"]["bad"]["message"] == "no such kernel"

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError):
        right.tried(lost)


def test_other_comparisons(of, options):
    """EL stacked, a group of one process, dropout with augmentation."""
    right, small = of("gpu_parts.right"), of("gpu_parts.small")
    assert right.stacked(options)["differs"] == []
    found = right.group_of_one(options)
    assert found["backend"] == "gloo" and found["differs"] == [] and not torch.distributed.is_initialized()
    assert right.compare(small.Case("di", dropout=0.2, augment=0.5), options, right.SHORT)["differs"] == []


@pytest.mark.slow
def test_every_comparison(of, options):
    for item in of("gpu_parts.right").items(options):
        assert item.run(10.0)["differs"] == [], item.name


@pytest.mark.slow
def test_every_network_and_method(of, options):
    """With EL and without, the numbers of their data settings; only what needs a GPU or a compiler is left out."""
    attempt, left = of("gpu_parts.items").attempt, []
    for item in of("gpu_parts.fast").items(options):
        row = attempt(item, 0.1)
        assert row["status"] in ("done", "left out"), row
        left += [item.name] if row["status"] == "left out" else []
        assert ("/el" in item.name) == (row.get("supplement_percent", 0) > 0)
    assert len(left) == 2


def test_a_batch_that_does_not_fit_is_cut(of, options, monkeypatch):
    """In halves, down to one that does; the row says which did not, and what an iteration is spent on."""
    fast, step = of("gpu_parts.fast"), of("step")
    whole, tried = step.measure, []

    def small(settings, method, supplement, asked, folder, micro_batch, seconds):
        tried.append(micro_batch)
        if micro_batch != 4:
            raise torch.OutOfMemoryError("out of memory")
        return whole(settings, method, supplement, asked, folder, micro_batch, seconds)

    monkeypatch.setattr(step, "measure", small)
    names = [item.name for item in fast.items(options)]
    assert names[:3] == [f"ddpmpp-cifar10, batch 8, sid/none, {each}" for each in ("float32", "tf32", "bfloat16")]
    row = fast.measured(fast.Setting("ddpmpp-cifar10", 8, "di"), options, 0.1)
    assert tried == [0, 4] and row["did_not_fit"] == [8] and row["micro_batch"] == 4 and row["turns"] == step.LEAST
    assert row["augmentation_percent"] > 0 and row["passes"] == 6  # the images are made once more for their graph
    monkeypatch.setattr(fast, "SMALLEST", 8)
    with pytest.raises(torch.OutOfMemoryError, match="8 images at once do not fit"):
        fast.measured(fast.Setting("ddpmpp-cifar10", 8, "di"), options, 0.1)


def test_one_step_is_faster_than_many(of, options):
    sampling = of("gpu_parts.sampling")
    assert [item.name for item in sampling.items(options)] == ["bfloat16", "float32"]
    row = sampling.rates("float32", 4, options)
    assert row["ratio"] > 5 and row["batch"] == 4


def test_learning_without_its_files_says_what_to_do(of, options):
    worker_items, learning = of("gpu_parts.items"), of("gpu_parts.learning")
    options.toy = False
    rows = [worker_items.attempt(item, 1.0) for item in learning.items(options)]
    assert len(rows) == 11 and {row["status"] for row in rows} == {"left out"}
    assert all("make demo" in row["reason"] and "images.safetensors" in row["reason"] for row in rows)


def test_a_curve_has_images_seconds_and_distances(of, options):
    """From the start of a run to its end; seconds rise; where time is up the first and the last snapshot are judged."""
    bench = of("gpu_parts.learning").Bench(options)
    row = bench.run("di", "pixel-mmd", 4.0, 60.0)
    assert row["stopped"] is None and row["not_judged"] == [] and row["rates_times"] == 4.0
    images, seconds = ([each[key] for each in row["curve"]] for key in ("images", "seconds"))
    assert (
        images[0] == 0
        and images[-1] == row["n_images"]
        and images == sorted(set(images))
        and seconds == sorted(seconds)
    )
    assert {"pixels_train", "pixels_heldout"} < set(row["curve"][0]) and row["curve"][0] != row["curve"][-1]
    short = bench.run("di", "none", 1.0, 0.0)
    assert len(short["curve"]) == 2 and short["not_judged"]
