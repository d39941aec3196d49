# SPDX-License-Identifier: Apache-2.0
"""What is stale is planned and nothing else, in any order of edits, runs, commits and checkouts; dvc.lock says nothing false.

Random sequences with the real Snakemake and the real DVC, and many more with a model of Snakemake's rule, which the real
ones check. A sequence is made again by its seed: `SEED=7 python -m pytest tests/plan/test_freshness.py -k real`.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.exceptions import WorkflowError

from eldistill.errors import Problem
from eldistill.plan import driver, freshness, params, reading, recipes
from eldistill.plan.plan import Plan
from eldistill.plan.recipes import WORDS, Step
from tests import conftest, forks
from tests import snakemake_rule as rule
from tests.conftest import ROOT, read_yaml, write_yaml

FOLDERS = {"data": "sets", "teacher": "teachers", "ensemble": "ensembles", "distil": "runs", "evaluate": "evaluations",
           "tables": "tables"}  # fmt: skip
SEED = int(os.environ.get("SEED", 0))


# --- refresh, and the model of what Snakemake does with it ----------------------------------------------


class Toy:
    """A chain of steps with numbers, without rules or processes: a, b from a, c from a and b, d from c (waits for b)."""

    def __init__(self, root: Path, chance: random.Random, token: bool = True):
        self.root, self.chance, self.token = root, chance, token
        self.numbers = dict.fromkeys("abcd", 0)
        self.memory = rule.Memory()
        self.kept: list[tuple[dict, dict]] = []

    def steps(self) -> list[Step]:
        """What the numbers ask for, upstream first."""

        def step(name: str, *upstream: Step, after: tuple[Step, ...] = ()) -> Step:
            word, folder = {"a": "data", "b": "teacher", "c": "distil", "d": "evaluate"}[name], f"data/sets/{name}"
            return Step(word, name, (), {"n": self.numbers[name]}, (f"{folder}/1", f"{folder}/2"), upstream, after)

        a = step("a")
        b = step("b", a)
        c = step("c", a, b)
        return [a, b, c, step("d", c, after=(b,))]

    def put(self, step: Step) -> None:
        """What a job leaves; the clock of its machine may be wrong."""
        skew = self.chance.choice([0, 0, 0, -1000, 1000])
        for path in (*step.outputs, step.sidecar):
            text = step.recipe if path == step.sidecar else forks.content(path, step.digest)
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text)
            os.utime(self.root / path, (time.time() + skew,) * 2)
        recipes.records.write_record(self.root, step.record, step.digest, step.outputs)

    def plan(self, word: str = "all") -> tuple[list[Step], dict[str, rule.Job], set[str]]:
        """The stale steps, the jobs behind a target, and which of them the model of Snakemake runs."""
        steps = self.steps()
        stale = freshness.refresh(steps, self.root)
        if not self.token:  # as it was: the mtime of the recipe alone, whose content may be remembered
            for step in steps:
                os.utime(self.root / step.file, (os.stat(self.root / step.token).st_mtime,) * 2)
                (self.root / step.token).unlink()
        targets = [step for step in steps if word in ("all", step.word)]
        jobs = rule.graph(steps, targets, freshness.Inputs(stale, rule.Ancient, False, self.root))
        if not self.token:
            for job in jobs.values():
                job.inputs = [path for path in job.inputs if not path.endswith(".stale")]
        return stale, jobs, rule.planned(jobs, self.memory, self.root)

    def run(self, word: str = "all") -> set[str]:
        """As Snakemake would: each planned job upstream first, none with an upstream of other numbers."""
        _, jobs, planned = self.plan(word)
        for step in self.steps():
            if f"{step.word} {step.name}" in planned:
                assert all((self.root / above.sidecar).read_text() == above.recipe for above in step.upstream), (
                    step.name
                )
                self.put(step)
                self.memory.remember(jobs[f"{step.word} {step.name}"], self.root)
        return planned

    def files(self) -> dict[str, str]:
        folder = self.root / "data/sets"
        return {str(path.relative_to(self.root)): path.read_text() for path in folder.rglob("*") if path.is_file()}

    def act(self) -> str:
        """One random thing that a user does."""
        steps, act = self.steps(), self.chance.choice(
            ["edit", "edit", "all", "all", "word", "hand", "keep", "checkout", "checkout", "numbers", "files", "delete", "change",
             "forget"])  # fmt: skip
        step = self.chance.choice(steps)
        if act == "edit":
            self.numbers[step.name] = self.chance.choice([0, 1, 2])
        elif act in ("all", "word"):
            self.run("all" if act == "all" else step.word)
        elif act == "hand":
            if all(above.fresh(self.root) for above in step.upstream):
                self.put(step)
        elif act == "keep":
            self.kept.append((dict(self.numbers), self.files()))
        elif act in ("checkout", "numbers", "files") and self.kept:
            numbers, files = self.chance.choice(self.kept)
            if act != "files":
                self.numbers = dict(numbers)
            if act != "numbers":
                shutil.rmtree(self.root / "data/sets", ignore_errors=True)
                for path, text in files.items():
                    (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                    (self.root / path).write_text(text)
        elif act == "delete":
            (self.root / self.chance.choice([*step.outputs, step.sidecar])).unlink(missing_ok=True)
        elif act == "change" and (self.root / step.outputs[1]).exists():
            (self.root / step.outputs[1]).write_text("by hand")
        elif act == "forget":
            self.memory.clear()  # a clone has no .snakemake
        return f"{act} {step.name}"


def stale_by_hand(step: Step, root: Path) -> bool:
    """Independently of `fresh`: other numbers, a lost file, or an edit of what is made again after one."""
    sidecar = root / step.sidecar
    if not sidecar.exists() or sidecar.read_text() != step.recipe or not all((root / o).exists() for o in step.outputs):
        return True
    edited = any((root / each).read_text() != forks.content(each, step.digest) for each in step.outputs)
    return step.word in recipes.REMADE and edited


def toy_sequence(folder: Path, seed: int, length: int = 6) -> None:
    toy = Toy(folder, random.Random(seed))
    said = []
    for _ in range(length):
        said.append(toy.act())
        stale, _, planned = toy.plan()
        wanted = {f"{step.word} {step.name}" for step in toy.steps() if stale_by_hand(step, folder)}
        assert wanted == {f"{step.word} {step.name}" for step in stale} == planned, (seed, said)
    toy.run()
    assert not freshness.stale_targets(toy.steps(), set(), folder), (seed, said)


@pytest.fixture
def memory_folder(tmp_path):
    """A folder in memory where there is one: thousands of small files are quick there."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_what_is_stale_is_planned_in_2000_sequences_with_the_model(memory_folder):
    """After each act exactly the stale steps are planned; after a run of all nothing is stale."""
    print(f"seeds {SEED} to {SEED + 1999}")
    for seed in range(SEED, SEED + 2000):
        toy_sequence(memory_folder / "toy", seed)
        shutil.rmtree(memory_folder / "toy", ignore_errors=True)
        recipes.records._seen.clear()


def test_without_a_token_the_model_finds_nothing_to_do(tmp_path):
    """A, B, the files of A, the numbers of B: the defect that the token is for."""
    for token, planned in ((False, set()), (True, {"teacher b", "distil c", "evaluate d"})):
        toy = Toy(tmp_path / str(token), random.Random(1), token)
        toy.chance.choice = lambda options: 0
        toy.run()
        files = toy.files()
        toy.numbers["b"] = 1
        toy.run()
        for path, text in files.items():
            (toy.root / path).write_text(text)
        assert toy.plan()[2] == planned


def test_a_lost_file_remakes_its_step_and_not_what_was_made_from_it(tmp_path):
    """Nor does it hide a stale step further down."""
    toy = Toy(tmp_path, random.Random(0))
    toy.run()
    (tmp_path / "data/sets/a/2").unlink()
    assert toy.plan()[2] == {"data a"}
    toy.numbers["d"] = 1
    assert toy.plan()[2] == {"data a", "evaluate d"}
    assert toy.run("evaluate") == {"data a", "evaluate d"}


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    """A stale step that nobody can be told of is never passed over; of a fresh one there is nothing to tell."""
    toy = Toy(tmp_path, random.Random(0))
    toy.run()
    toy.plan()

    def refuse(*given):
        raise PermissionError(13, "Permission denied", "data/scratch/recipes")

    monkeypatch.setattr(os, "replace", refuse)
    assert freshness.refresh(toy.steps(), tmp_path) == []
    toy.numbers["d"] = 1
    with pytest.raises(Problem, match="cannot be written .Permission denied.*clone of your own"):
        freshness.refresh(toy.steps(), tmp_path)


def test_a_sidecar_of_a_colleague_makes_nothing_run(tmp_path, monkeypatch):
    """Its mtime cannot be set; it is as new as can be, and its token is newer still where it is stale."""
    toy = Toy(tmp_path, random.Random(0))
    toy.run()
    theirs, set_time = tmp_path / "data/sets/b/1.recipe", os.utime
    set_time(theirs, (time.time() + 500,) * 2)

    def refuse(path, times):
        if Path(path) == theirs:
            raise PermissionError(1, "Operation not permitted", str(path))
        set_time(path, times)

    monkeypatch.setattr(os, "utime", refuse)
    assert toy.plan()[2] == set()
    set_time(tmp_path / "data/sets/b/1", (time.time() + 600,) * 2)
    set_time(tmp_path / "data/sets/b/2", (time.time() + 600,) * 2)
    toy.numbers["b"] = 1
    assert toy.plan()[2] == {"teacher b", "distil c", "evaluate d"}


def test_results_that_are_planned_by_nobody_are_named(tmp_path):
    """A run of another suite with other numbers is; one that is fresh, one of this suite, and the file of metrics that all
    suites share are not."""
    plan = Plan(params.load_params(ROOT / "params.yaml"))
    old, fresh, own = (plan.distil(plan.params.run(f"digits/{run}")) for run in ("sid/el/0", "sid/none/0", "di/el/0"))
    metrics = plan.metrics("bench")
    for step in (old, fresh, own, metrics):
        for path in (*step.outputs, step.sidecar):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(step.recipe if step is fresh else "other numbers")
    assert freshness.abandoned(plan, "demo", tmp_path) == [("bench", [old])]


def test_an_edit_of_a_log_is_named_and_costs_no_training(tmp_path):
    """Evaluations and tables are made again, trainings are kept; both are said. Without a record nothing is claimed."""
    toy = Toy(tmp_path, random.Random(0))
    toy.run()
    (tmp_path / "data/sets/c/2").write_text("by hand")
    (tmp_path / "data/sets/d/2").write_text("by hand")
    told: list[str] = []
    assert [step.name for step in freshness.refresh(toy.steps(), tmp_path, told.append)] == ["d"]
    assert "data/sets/c/2 changed since `distil c` made it; it is kept" in told[0] and "--force" in told[0]
    assert "data/sets/d/2 changed since `evaluate d` made it; it is made again" in told[1]
    for step in toy.steps():
        (tmp_path / step.record).unlink()
    told.clear()
    assert freshness.refresh(toy.steps(), tmp_path, told.append) == [] == told


def test_a_run_that_leaves_a_step_stale_does_not_end_well(tmp_path, monkeypatch):
    """Whatever Snakemake believes: a DVC stage would record it. A dry run and the user's own word are let through."""
    monkeypatch.chdir(tmp_path)
    toy = Toy(Path(), random.Random(0))
    toy.run()
    toy.numbers["d"] = 1

    def end(targets=frozenset(), **given) -> None:
        settings = SimpleNamespace(targets=targets, until=set(), omit_from=set(), batch=None, rerun_triggers=None)
        values = {"dryrun": False, "touch": False, "workflow_settings": SimpleNamespace(consider_ancient={}), **given}
        workflow = SimpleNamespace(dag_settings=settings, execute=lambda: None, **values)
        driver.obey_recipes(workflow, toy.steps())
        assert [str(each) for each in settings.rerun_triggers] == ["mtime"]
        workflow.execute()

    for targets in (set(), {"all"}, {"evaluate"}, {"data/sets/d/1"}):
        with pytest.raises(WorkflowError, match="evaluate d is still not what params.yaml asks for"):
            end(targets)
    end({"distil"})
    end(dryrun=True)
    end(touch=True)
    end(workflow_settings=SimpleNamespace(consider_ancient={"x": {0}}))


@pytest.mark.parametrize(
    ("where", "value", "suite"),
    [
        ("data/digits/heldout", 300, "demo"), ("data/digits/judges", {"lr": 0.1}, "demo"), ("teacher/digits/P_mean", -1, "demo"),
        ("teacher/digits/steps", 9, "demo"), ("ensemble/conv4/redraw", 3, "demo"), ("distil/supplements/el/weight", 0.3, "demo"),
        ("distil/supplements/el/ensemble_seed", 5, "demo"),
        ("distil/supplements/regression/per_data", {"digits": {"pairs": 64}}, "bench"), ("evaluate/neighbours", 5, "demo"),
        ("teacher/digits/P_mean", -1, "ablation"), ("evaluate/features", ["pixels"], "demo"),
        ("evaluate/per_data/cifar10/fid/clean", True, "gpu-day"),
        ("tables/grid", 6, "demo"), ("tables/confidence", 0.9, "demo"), ("threads", 2, "demo"),
    ],
)  # fmt: skip
def test_the_dvc_stage_of_what_a_number_changes_depends_on_it(where, value, suite):
    """Else its word is skipped by `dvc repro`, a later one makes its steps, and dvc.lock has the old results of it."""
    shipped = conftest.shipped()
    values = copy.deepcopy(shipped)
    *above, last = where.split("/")
    functools.reduce(lambda place, key: place.setdefault(key, {}), above, values)[last] = value
    before, after = (Plan(params.from_values(each, ROOT)).suite(suite) for each in (shipped, values))
    stages = read_yaml((ROOT / "dvc.yaml").read_text())["stages"]
    changed = {step.word for key, step in after.items() if key not in before or before[key].digest != step.digest}
    assert changed
    for word in WORDS:
        upstream = {each for each in changed if f"data/{FOLDERS[each]}" in stages[word]["deps"]}
        assert word not in changed or upstream or where.split("/")[0] in stages[word]["params"], word


# --- the real Snakemake and the real DVC -----------------------------------------------------------------

EDITS = {
    "data/digits/heldout": (360, 300),
    "teacher/digits-smoke/P_mean": (-1.2, -1.0),
    "distil/supplements/el/weight": (0.7, 0.35),
    "evaluate/neighbours": (3, 5),
    "tables/confidence": (0.95, 0.9),
}


class Real:
    """A project whose steps take milliseconds, and the model beside it."""

    def __init__(self, path: Path, bins: Path):
        self.path, self.memory, self.commits = path, rule.Memory(), []
        self.environment = {
            "PATH": f"{bins}{os.pathsep}{os.environ['PATH']}", "HOME": str(path.parent), "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(path.parent / "site"), "PYTHONPATH": str(path / "src"), "OMP_NUM_THREADS": "1",
            **{f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }  # fmt: skip

    def call(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            words, cwd=self.path, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return done.returncode, done.stdout.decode()

    def do(self, *words: str) -> str:
        code, text = self.call(*words)
        assert code == 0, f"{words}: {text[-3000:]}"
        return text

    def values(self) -> dict:
        return read_yaml((self.path / "params.yaml").read_text())

    def number(self, where: str, value) -> None:
        values = place = self.values()
        *above, last = where.split("/")
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
        (self.path / "params.yaml").write_text(write_yaml(values, sort_keys=False))

    def steps(self) -> list[Step]:
        return list(Plan(params.load_params(self.path / "params.yaml")).suite("smoke").values())

    def expected(self, word: str) -> tuple[dict[str, rule.Job], set[str]]:
        """What the model says that `snakemake WORD` runs, by name."""
        steps = self.steps()
        stale = freshness.refresh(steps, self.path)
        targets = [step for step in steps if word in ("all", step.word)]
        jobs = rule.graph(steps, targets, freshness.Inputs(stale, rule.Ancient, False, self.path))
        return jobs, rule.planned(jobs, self.memory, self.path)

    def planned(self, *words: str) -> set[str]:
        """What the real one says."""
        self.do("snakemake", "-n", "--quiet", "all", *words)
        return self.told()

    def told(self) -> set[str]:
        first = {step.outputs[0]: f"{step.word} {step.name}" for step in self.steps()}
        return {first[path] for path in json.loads((self.path / "planned.json").read_text())}

    def log(self) -> list[str]:
        path = self.path / "data/scratch/run-log.jsonl"
        rows = map(json.loads, path.read_text().splitlines() if path.exists() else [])
        return [f"{row['word']} {row['name']}" for row in rows]

    def snakemake(self, word: str) -> None:
        """Run a word, or all: exactly what the model expects is planned and runs; nothing that it asks for stays stale."""
        jobs, expected = self.expected(word)
        before = len(self.log())
        self.do("snakemake", "--cores", "4", word)
        assert self.told() == expected == set(self.log()[before:]) and len(self.log()[before:]) == len(expected)
        for name in expected:
            self.memory.remember(jobs[name], self.path)
        assert not [step for step in self.steps() if word in ("all", step.word) and stale_by_hand(step, self.path)]

    def repro(self, fail: str | None) -> None:
        """`dvc repro`, in which a step may break down; dvc.lock must be true after it."""
        if fail:
            (self.path / "fail").write_text(fail)
        code, text = self.call("dvc", "repro")
        (self.path / "fail").unlink(missing_ok=True)
        assert code == 0 or fail, text[-3000:]
        self.memory.clear()
        self.lock_is_true()

    def lock_is_true(self) -> None:
        """Where dvc.lock has the present numbers of a word, it has results of these numbers."""
        lock = read_yaml((self.path / "dvc.lock").read_text())["stages"] if (self.path / "dvc.lock").exists() else {}
        values, steps = self.values(), self.steps()
        for word, stage in lock.items():
            if any(values.get(key) != value for key, value in stage["params"]["params.yaml"].items()):
                continue
            kept: dict[str, str] = {}
            for out in stage["outs"]:
                if not out["md5"].endswith(".dir"):
                    kept[out["path"]] = out["md5"]
                    continue
                listing = self.path / f".dvc/cache/files/md5/{out['md5'][:2]}/{out['md5'][2:]}"
                if listing.exists():  # else of a folder that git keeps
                    kept |= {
                        f"{out['path']}/{each['relpath']}": each["md5"] for each in json.loads(listing.read_text())
                    }
            for step in steps:
                if step.word == word and step.sidecar in kept:
                    assert kept[step.sidecar] == hashlib.md5(step.recipe.encode()).hexdigest(), (word, step.name)
                elif step.word == word and word != "tables":
                    raise AssertionError(f"{step.sidecar} is not in dvc.lock")

    def act(self, chance: random.Random) -> str:
        """One random thing that a user does."""
        act = chance.choice(["edit", "edit", "back", "all", "word", "hand", "repro", "repro", "commit", "checkout", "both", "both",
                             "dvc", "delete", "change"])  # fmt: skip
        step, where = chance.choice(self.steps()), chance.choice(list(EDITS))
        word, fail = chance.choice(WORDS), chance.choice([None, None, f"{step.word} {step.name}"])
        if act in ("edit", "back"):
            self.number(where, EDITS[where][act == "edit"])
            return f"{act} {where}"
        if act in ("all", "word"):
            self.snakemake(word if act == "word" else act)
            return f"snakemake {word if act == 'word' else act}"
        if act == "hand":
            return f"{step.word} {step.name} by hand: {self.call('python', '-m', 'eldistill', step.word, step.name)[0]}"
        if act == "repro":
            self.repro(fail)
            return f"dvc repro, failing {fail}"
        if act == "commit":
            self.commit()
        elif act in ("checkout", "both"):
            self.do("git", "checkout", "-qf", chance.choice(self.commits))
        if act in ("dvc", "both"):
            code, text = self.call("dvc", "checkout", "-q", "-f")
            assert code == 0 or "Checkout failed" in text, text  # what was never recorded is not in the cache
        path = self.path / chance.choice([*step.outputs, step.sidecar])
        if act == "delete":
            path.unlink(missing_ok=True)
        elif act == "change":
            metrics = next(
                each for each in self.steps() if each.name == "digits-smoke/di/el/0" and each.word == "evaluate"
            )
            if (self.path / metrics.outputs[0]).exists():
                (self.path / metrics.outputs[0]).write_text("{}\n")
        return f"{act} {path.relative_to(self.path) if act == 'delete' else ''}"

    def commit(self) -> None:
        self.do("git", "add", "-A")
        self.do("git", "commit", "-q", "--allow-empty", "-m", "x")
        self.commits.append(self.do("git", "rev-parse", "HEAD").strip())


@pytest.fixture(scope="module")
def bins(tmp_path_factory):
    """A folder with snakemake, dvc and python, forked from one process."""
    with forks.serving(tmp_path_factory.mktemp("forks")) as programs:
        yield programs


@pytest.fixture(scope="module")
def base(tmp_path_factory, bins) -> Path:
    """The tracked files, a suite of twelve steps, all made, recorded and committed."""
    path = tmp_path_factory.mktemp("base") / "project"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    for name in names.splitlines():
        tracked = name.startswith(("workflow/", "profiles/", ".dvc", "src/")) or name in (
            "Snakefile", "params.yaml", "dvc.yaml", ".gitignore", "data/.gitignore", "data/sources.csv")  # fmt: skip
        if tracked and (ROOT / name).exists():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
    values = read_yaml((path / "params.yaml").read_text())
    values |= {"suite": "smoke", "suites": {"smoke": values["suites"]["smoke"]}}
    values["evaluate"] = {"features": ["pixels"], "neighbours": 3}
    values["teacher"]["digits-smoke"]["check"] = {"features": "pixels"}
    (path / "params.yaml").write_text(write_yaml(values, sort_keys=False))
    with open(path / ".gitignore", "a") as file:
        file.write("/planned.json\n/fail\n")
    it = Real(path, bins)
    it.do("git", "init", "-q", "-b", "main")
    it.do("git", "add", "-A")
    it.do("git", "commit", "-qm", "start")
    it.snakemake("all")
    it.repro(None)
    it.commit()
    return path


def real_sequence(base: Path, bins: Path, path: Path, seed: int, length: int = 5) -> None:
    shutil.copytree(base, path, symlinks=True)
    it, chance, said = Real(path, bins), random.Random(seed), []
    it.commit()
    try:
        for _ in range(length):
            said.append(it.act(chance))
            stale = {f"{step.word} {step.name}" for step in it.steps() if stale_by_hand(step, path)}
            assert it.planned() == stale
        it.repro(None)
        assert it.planned() == set()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {'; '.join(said)}: {error}") from None


def test_there_and_back_and_there_again(base, bins, tmp_path):
    """A is made, B is made, A is checked out, B's number is put in by hand: Snakemake remembers every checksum of B, and has
    to make it again; `dvc repro` records no B beside A."""
    shutil.copytree(base, tmp_path / "project", symlinks=True)
    it, (where, (_, value)) = Real(tmp_path / "project", bins), ("distil/supplements/el/weight", (0.7, 0.35))
    it.commit()
    it.number(where, value)
    it.snakemake("all")
    it.repro(None)
    it.commit()
    it.do("git", "checkout", "-qf", it.commits[0])
    it.do("dvc", "checkout", "-q", "-f")
    assert it.planned() == set()
    it.number(where, value)
    before = len(it.log())
    it.snakemake("all")
    run = "digits-smoke/di/el/0"
    assert set(it.log()[before:]) == {f"distil {run}", f"evaluate {run}", "evaluate suite/smoke", "tables smoke"}
    it.repro(None)


@pytest.mark.slow
def test_dvc_knows_the_keys_of_every_file_of_parameters(base, bins, tmp_path):
    """`dvc exp run -S` writes a key of workflow/params, its steps alone are made, and `dvc params diff` shows it."""
    shutil.copytree(base, tmp_path / "project", symlinks=True)
    it, arm = Real(tmp_path / "project", bins), "digits-smoke/di/el-base/0"
    grid = {"data": ["digits-smoke"], "methods": ["di"], "supplements": ["none", "el-base"], "seeds": [0]}
    it.number("suites/smoke", [grid])
    it.repro(None)
    it.commit()
    before, (paper, ablation, *_) = len(it.log()), reading.FILES
    changes = {
        paper: "distil.methods.sid.per_data.cifar10.batch=128",
        ablation: "distil.supplements.el-base.weight=0.5",
    }
    it.do("dvc", "exp", "run", *(word for file, change in changes.items() for word in ("-S", f"{file}:{change}")))
    assert set(it.log()[before:]) == {f"distil {arm}", f"evaluate {arm}", "evaluate suite/smoke", "tables smoke"}
    loaded = params.load_params(it.path / "params.yaml")
    assert loaded.section("method", "sid", "cifar10")["batch"] == 128
    assert (
        loaded.section("supplement", "el-base")["weight"] == 0.5 == loaded.section("supplement", "pixel-base")["weight"]
    )
    told = it.do("dvc", "params", "diff")
    rows = {tuple(line.split()) for line in told.splitlines()}
    assert {
        (paper, changes[paper].split("=")[0], "256", "128"),
        (ablation, changes[ablation].split("=")[0], "0.7", "0.5"),
    } <= rows
    it.lock_is_true()
    assert it.planned() == set()


@pytest.mark.parametrize(
    "seed", [SEED + 1, *(pytest.param(SEED + more, marks=pytest.mark.slow) for more in (0, 2, 3, 4))]
)
def test_what_is_stale_is_planned_in_real_sequences(base, bins, tmp_path, seed):
    """After each act `snakemake -n all` plans exactly the stale steps, and dvc.lock is true."""
    real_sequence(base, bins, tmp_path / "project", seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1060))
def test_what_is_stale_is_planned_in_60_real_sequences(base, bins, tmp_path, seed):
    """The same, longer and more often."""
    real_sequence(base, bins, tmp_path / "project", seed, length=12)
