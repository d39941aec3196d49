# SPDX-License-Identifier: Apache-2.0
"""Snakemake and DVC together, in a clone of the tracked files: what runs, what is kept, counted by the run log."""

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest
import yaml

from eldistill.errors import Problem
from eldistill.plan import params, reading
from tests.project import BIN, ROOT, bins, digests, project, quick, smoke  # noqa: F401  (the fixtures)

RUN_EL, RUN_NONE = "digits-smoke/di/el/0", "digits-smoke/di/none/0"
COLLECT = {"evaluate suite/smoke", "tables smoke"}


def test_life_of_a_project(smoke, quick):  # noqa: F811
    """First run, recording, edits, clones, old commits: exactly the stale steps run, never a stale student."""
    project = quick  # noqa: F811
    first = set(json.loads((smoke / "first.json").read_text()))
    assert {
        f"distil {RUN_EL}",
        f"distil {RUN_NONE}",
        "teacher digits-smoke",
        "teacher digits-smoke/check",
        "data digits/images",
    } | COLLECT <= first
    assert len(first) == 17
    # Snakemake came first, then DVC, which recorded and ran nothing (project.make_smoke).
    assert project.nothing_to_do()
    weights = digests(project, "data/runs/**/*.safetensors")

    # One number of the supplement: exactly its run.
    project.edit("distil", "supplements", "el", "weight", value=0.5)
    assert project.ran("snakemake", "all", "--cores", "2") == {f"distil {RUN_EL}", f"evaluate {RUN_EL}"} | COLLECT
    assert project.ran("dvc", "repro") == set()
    changed = {name for name, value in digests(project, "data/runs/**/*.safetensors").items() if weights[name] != value}
    assert changed and all("/el/" in name for name in changed)

    # `dvc metrics diff` lists exactly the changed rows.
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "second")
    rows = json.loads(project.run("dvc", "metrics", "diff", "HEAD~1", "--json").splitlines()[0])["data/metrics.json"]
    texts = ((project.path / "data/metrics.json").read_text(), project.run("git", "show", "HEAD~1:data/metrics.json"))
    now, old = (json.loads(text)["digits-smoke"]["di"]["el"] for text in texts)
    changed = {name for name in {*now, *old} if now.get(name) != old.get(name)}
    assert changed and set(rows) == {f"digits-smoke.di.el.{name}" for name in changed}
    assert "metrics.json" not in project.run("dvc", "metrics", "diff", "HEAD")
    project.run("dvc", "push")

    # An old commit and back: nothing to do.
    project.run("git", "checkout", "-q", "HEAD~1")
    project.run("dvc", "checkout")
    assert project.nothing_to_do()
    assert digests(project, "data/runs/**/*.safetensors") == weights
    project.run("git", "checkout", "-q", "main")
    project.run("dvc", "checkout")
    assert project.nothing_to_do()

    # A fresh clone with pulled results: nothing to do; an edit of the method reruns both students, through DVC.
    clone = project.clone("fresh")
    clone.run("dvc", "pull", "-q")
    assert clone.nothing_to_do() and not clone.log()
    assert clone.ran("dvc", "repro") == set()
    clone.edit("distil", "methods", "di", "per_data", "digits-smoke", "generator", "lr", value=4.0e-4)
    both = {f"{word} {run}" for word in ("distil", "evaluate") for run in (RUN_EL, RUN_NONE)}
    assert clone.ran("dvc", "repro") == both | COLLECT
    assert clone.nothing_to_do()

    # A number that describes the machine retrains nothing.
    clone.edit("distil", "micro_batch", value=16)
    assert clone.nothing_to_do()

    # By hand equals by workflow, bit for bit.
    before = digests(clone, f"data/runs/{RUN_EL}/*.safetensors") | digests(clone, f"data/runs/{RUN_EL}/log.csv")
    clone.edit("distil", "micro_batch", value=0)
    assert clone.ran("python", "-m", "eldistill", "distil", RUN_EL, "--force") == {f"distil {RUN_EL}"}
    assert digests(clone, f"data/runs/{RUN_EL}/*.safetensors") | digests(clone, f"data/runs/{RUN_EL}/log.csv") == before
    assert clone.nothing_to_do()


@pytest.fixture
def s3(monkeypatch) -> Iterator[Callable[[], list[str]]]:
    """A server on this machine that speaks S3, with a bucket; gives a function that lists the objects in it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(900):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT"), timeout=5).close()
                break
            time.sleep(0.1)
        values = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1",
                  "EC2_METADATA_DISABLED": "true"}  # fmt: skip
        for name, value in values.items():
            monkeypatch.setenv(f"AWS_{name}", value)

        def listed() -> list[str]:
            with urllib.request.urlopen(f"{address}/bucket?list-type=2&max-keys=1000", timeout=10) as answer:
                return re.findall("<Key>([^<]+)</Key>", answer.read().decode())

        yield listed
    finally:
        server.kill()
        server.wait()


def test_results_travel_through_s3(project, s3):  # noqa: F811
    """A push that is killed half way and repeated; then a wipe, a clone, a pull: nothing to do, nothing lost."""
    pytest.importorskip("dvc_s3", reason="pip install '.[s3]'")
    there = project
    weights = digests(there, "data/**/*.safetensors")
    assert len(weights) > 20
    for words in (["remote", "add", "-d", "team", "s3://bucket/eldistill"], ["remote", "list"]):
        there.run("dvc", *words)
    there.run("git", "commit", "-qam", "a remote of the team")
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1",
                   "DVC_SITE_CACHE_DIR": str(there.path.parent / "site"), "HOME": str(there.path.parent)}  # fmt: skip
    push = subprocess.Popen(
        ["dvc", "push", "-j", "1"],
        cwd=there.path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while push.poll() is None and len(s3()) < 5:
        time.sleep(0.01)
    push.kill()
    push.wait()
    half = len(s3())
    assert half >= 5
    there.run("dvc", "push")
    whole = len(s3())
    assert whole > half, "it was killed half way"
    assert "in sync" in there.run("dvc", "status", "-c")
    clone = there.clone("s3-clone")
    shutil.rmtree(there.path / ".dvc/cache")
    clone.run("dvc", "pull", "-q")
    assert digests(clone, "data/**/*.safetensors") == weights
    assert clone.nothing_to_do() and not clone.log()
    assert "in sync" in clone.run("dvc", "status", "-c")


@pytest.mark.parametrize("count", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_runs_at_once_do_not_collide(quick, count):  # noqa: F811
    """Seeds of one arm with as many jobs at a time: each ran once, none has another's result, nothing is left behind."""
    clone = quick
    grid = {"data": ["digits-smoke"], "methods": ["di"], "supplements": ["el"], "seeds": list(range(10, 10 + count))}
    clone.edit("suites", "smoke", value=[grid])
    ran = clone.ran("snakemake", "distil", "-j", str(count))
    runs = [f"digits-smoke/di/el/{seed}" for seed in grid["seeds"]]
    assert {step for step in ran if step.startswith("distil")} == {f"distil {run}" for run in runs}
    found = digests(clone, "data/runs/digits-smoke/di/el/1?/generator_ema.safetensors")
    assert len(set(found.values())) == len(found) == count
    assert not list((clone.path / "data").rglob("*.tmp*")) and not list((clone.path / "data/scratch/state").glob("*"))
    clone.run("python", "-m", "eldistill", "distil", runs[-2], "--force")
    assert digests(clone, "data/runs/digits-smoke/di/el/1?/generator_ema.safetensors") == found


PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
ADDING = PAGE.partition("\n## Adding a method\n")[2].partition("\n##")[0]
QUICK = "terms_are_named or phases or declared or functions or offers or sampler or starts_at or embedding_loss or downwards"


@pytest.mark.parametrize("asked", [f"my_method and ({QUICK})", pytest.param("my_method", marks=pytest.mark.slow)])
def test_a_method_is_added_as_the_page_says(project, asked):  # noqa: F811
    """The list in docs/architecture.md, typed: one file and one section make a run and tables, and nothing else is made."""
    clone = project
    copying, running = (textwrap.dedent(each).splitlines() for each in re.findall(r"```sh\n(.*?)```", ADDING, re.S))
    for line in copying:
        clone.run("sh", "-c", line)
    path = clone.path / "src/eldistill/methods/my_method.py"
    source = path.read_text()
    path.write_text(source.replace("difference / len(images))", "difference * 0.5 / len(images))"))
    assert path.read_text() != source
    (block,) = re.findall(r"```yaml\n(.*?)```", ADDING, re.S)
    ((name, section),) = yaml.safe_load(block)["distil"]["methods"].items()
    clone.edit("distil", "methods", name, value=section | {"n_images": 64})
    recipes, teacher, distil, contracts = map(shlex.split, running)
    clone.run(*recipes)
    assert json.loads((clone.path / "workflow/versions.json").read_text())["methods/my_method"] == 1
    assert not clone.ran(*teacher), "it is there"
    assert clone.ran(*distil) == {"distil digits-smoke/my_method/none/0"}
    assert contracts[-2:] == ["-k", "my_method"]
    shutil.copytree(
        ROOT / "tests", clone.path / "tests", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
    )
    assert re.search(r"\d+ passed", text := clone.run(*contracts[:-1], asked)) and "failed" not in text
    grid = {"data": ["digits-smoke"], "methods": ["my_method"], "supplements": ["none", "el"], "seeds": [0]}
    clone.edit("suites", "smoke", value=[grid])
    runs = {f"digits-smoke/my_method/{supplement}/0" for supplement in ("none", "el")}
    wanted = {"distil digits-smoke/my_method/el/0"} | {f"evaluate {run}" for run in runs} | COLLECT
    assert clone.ran("snakemake", "all", "--cores", "2") == wanted
    recipe = clone.path / "data/runs/digits-smoke/my_method/el/0/generator_ema.safetensors.recipe"
    assert {"methods/my_method", "score", "noise"} <= json.loads(recipe.read_text())[
        "versions"
    ].keys()  # and what it imports
    assert "my_method/el" in (clone.path / "data/tables/smoke/main.md").read_text()


def test_the_page_names_the_keys_that_no_number_may_have(monkeypatch):
    """Those of every method and of every supplement, as the schema has them: a field of Numbers with such a name is refused."""
    definitions, known = params.load_params(ROOT / "params.yaml").definitions, params.declared
    for kind in ("method", "supplement"):
        (listed,) = re.findall(rf"keys of every {kind} are (.*?)\.", PAGE.replace("\n", " "))
        keys = set(definitions[kind]["properties"])
        assert set(re.findall(r"`(\w+)`", listed)) == keys, kind
        for key in keys:
            extra = {f"{kind}s": {key: {}}}
            monkeypatch.setattr(
                params, "declared", lambda its, file, extra=extra: known(its, file) | extra.get(its, {})
            )
            with pytest.raises(
                Problem, match=rf"src/eldistill/{kind}s/\w+\.py: Numbers has a field '{key}'.* rename it"
            ):
                params.load_params(ROOT / "params.yaml")


SHRINK = '''"""Pulls images towards 0, at the images and by a pass of its own."""
from dataclasses import dataclass
from eldistill.contract import AtImages, Weight
from eldistill.losses import mmd
from eldistill.numbers import number

RECIPE = ("supplements/shrink", 4)

@dataclass(frozen=True)
class Numbers:
    weight: float = number(0.1, "factor of the mean square", low=0)

def prepare(numbers, setting):
    return None

def generator_terms(tools, images, batch, numbers):
    return {"square": AtImages(images.square().mean() / 2, images / images.numel())}

def weight(base, own, batch, numbers, progress, memory):
    return Weight(numbers.weight)
'''


def test_a_new_supplement_is_one_file_and_one_section(project):  # noqa: F811
    """A file dropped into supplements/ joins a method and its log by a section in params.yaml; nothing else is made."""
    clone = project
    (clone.path / "src/eldistill/supplements/shrink.py").write_text(SHRINK, encoding="utf-8")
    clone.edit("distil", "supplements", "smaller", value={"file": "shrink", "weight": 0.25})
    grid = {"data": ["digits-smoke"], "methods": ["di"], "supplements": ["smaller"], "seeds": [0]}
    clone.edit("suites", "smoke", value=[grid])
    assert clone.ran("snakemake", "distil", "--cores", "2") == {"distil digits-smoke/di/smaller/0"}
    folder = clone.path / "data/runs/digits-smoke/di/smaller/0"
    versions = json.loads((folder / "generator_ema.safetensors.recipe").read_text())["versions"]
    assert versions["supplements/shrink"] == 4 and "mmd" in versions  # what it imports retires it too
    with open(folder / "log.csv", encoding="utf-8") as log:
        rows = list(csv.DictReader(log))
    assert all(float(row["smaller.weight"]) == 0.25 and float(row["smaller.square"]) > 0 for row in rows)


def test_bad_parameters_stop_snakemake_before_anything_runs(project):  # noqa: F811
    """One sentence, and no job."""
    before = project.log()
    project.edit("distil", "methods", "di", "bacth", value=64)
    text = project.run("snakemake", "all", "--cores", "1", code=2)
    assert "distil.methods.di.bacth is not a known key" in text and "did you mean batch" in text
    assert project.log() == before


# --- lint: what is known to lose results or time -----------------------------------------------------------

RULES = [ROOT / "Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]
YAMLS = {"slurm": ROOT / "slurm/config.yaml", "default": ROOT / "profiles/default/config.yaml"}


def test_traps_are_avoided():
    """No `gpus=`, rule-level retries, directory() outputs, params or --keep-incomplete; one profile file; six words."""
    for path in RULES:
        text = path.read_text()
        for trap in (r"\bgpus\s*=", r"^\s*retries:", r"directory\(", r"^\s+params:", "keep-incomplete"):
            assert not re.search(trap, text, re.M), f"{path.name}: {trap}"
    for name, path in YAMLS.items():
        assert [each.name for each in path.parent.iterdir()] == ["config.yaml"], name
        assert "keep-incomplete" not in path.read_text()
        assert "slurm-array" not in path.read_text()
    assert not (ROOT / "default").exists()
    assert not {"default-resources", "set-resources", "retries"} & set(yaml.safe_load(YAMLS["default"].read_text()))
    assert len((ROOT / "Snakefile").read_text().splitlines()) < 40
    assert all("--signal" not in path.read_text() for path in [*RULES, *YAMLS.values()])


def test_rules_log_and_profile_names_exist():
    """Every rule with a command has a log; the Slurm profile names those that ask for a GPU; WORDS name the files."""
    names, on_gpu, words = set(), set(), ("data", "teacher", "ensemble", "distil", "evaluate", "tables")
    for path in RULES:
        for name, body in re.findall(r"^rule (\w+):\n((?:(?:    .*)?\n)+)", path.read_text(), re.M):
            names.add(name)
            on_gpu |= {name} if "gpu=1" in body else set()
            assert ("benchmark:" in body) == ("gpu=1" in body), f"{name}: what costs GPU hours has a record of them"
            assert ("shell:" in body) == ("log:" in body), name
    named = yaml.safe_load(YAMLS["slurm"].read_text())["set-resources"]
    assert len({str(block) for block in named.values()}) == 1, "each of them as the first"
    assert set(named) == on_gpu <= names, "what asks for a GPU goes to the partition that has some"
    assert set(words) | {"all"} <= names
    assert {path.stem for path in RULES[1:]} == {"common", "settings", *words}


def test_dvc_stages_are_the_six_words():
    """One coarse stage a word, `snakemake <word>`, every output persists, the parameters of the word are tracked."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == ["data", "teacher", "ensemble", "distil", "evaluate", "tables"]
    for word, stage in stages.items():
        assert stage["cmd"] == f"snakemake {word} --config suite=${{suite}}"
        names = [each for each in stage["params"] if isinstance(each, str)]
        assert {word, "suite", "suites"} <= set(names)
        # Of the files below params.yaml, the sections that stand there and that the word reads.
        for file, values in reading.read_files(ROOT).items():
            listed = [each[file] for each in stage["params"] if isinstance(each, dict) and file in each]
            assert listed == ([] if file == "params.yaml" else [[name for name in names if name in values]]), file
        assert "workflow/versions.json" in stage["deps"]
        # Recipes of these words hold versions and digests of rows of the table.
        assert ("data/sources.csv" in stage["deps"]) == (word in ("data", "teacher", "evaluate"))
        for out in [*stage["outs"], *stage.get("metrics", [])]:
            (options,) = out.values()
            assert options["persist"] is True, out
    assert not any(dep.startswith("src") for stage in stages.values() for dep in stage["deps"])


def test_versions_file_is_current():
    """workflow/versions.json is what the modules say; `python -m eldistill recipes` writes it."""
    from eldistill.plan import versions

    assert json.loads((ROOT / "workflow/versions.json").read_text()) == versions.version_table()


def test_distil_needs_five_packages_only():
    """The modules of a distil step import torch, numpy, pyyaml, safetensors, tqdm and nothing else from outside."""
    code = """
import sys
from importlib import import_module
for name in ("steps.run", "distil.run", "training.loop", "teacher.train", "sampling.generators", "ensemble.seed",
             "supplements.embedding", "methods.diff_instruct", "evaluate.judges", "data.dataset"):
    import_module("eldistill." + name)
forbidden = {"snakemake", "diffusers", "dvc", "cleanfid", "pandas", "scipy", "sklearn", "matplotlib", "PIL", "torchvision", "jsonschema"}
found = forbidden & {name.split(".")[0] for name in sys.modules}
sys.exit(f"imported: {sorted(found)}" if found else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
