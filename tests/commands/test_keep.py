# SPDX-License-Identifier: Apache-2.0
"""`keep`: results of finished runs in a file for git, and tables from them where nobody has the runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from eldistill import __main__, files
from eldistill.commands import cost, keep, planned, prune
from eldistill.errors import Problem
from eldistill.plan import freshness, kept, params, records
from eldistill.plan.plan import Plan
from tests import conftest
from tests.conftest import ROOT
from tests.project import tracked
from tests.tables.test_studies import add
from tests.tables.test_tables import add_reference_runs, picture

SUPPLEMENTS, SEEDS = ("none", "el", "pixel-mmd"), (0, 1, 2, 3)
RUNS = [f"digits/di/{supplement}/{seed}" for supplement in SUPPLEMENTS for seed in SEEDS]
LINES = sorted([*RUNS, "digits/real", "digits/teacher"])
STUDY = {"question": "What of it?", "kind": "contrast"}
GRID = {"studies": ["toys"], "data": ["digits"], "methods": ["di"], "supplements": [*SUPPLEMENTS], "seeds": [*SEEDS]}
LOG = {
    "el.weight": [0.5] * 8,
    "el.gradient_rms": [2.0] * 8,
    "generator.base_rms": [4.0] * 8,
    "fake_score.loss": [1.0] * 8,
}
FILE = Path("data/tables/toys/kept.jsonl")


class Toys:
    """A project in the current folder with a suite `toys` of twelve runs, whose results are synthetic."""

    def __init__(self):
        conftest.copy_parameters(Path())
        values = conftest.shipped()
        values["tables"]["studies"]["toys"] = STUDY
        self.values = values | {"suite": "toys", "suites": {"toys": [GRID]}}
        self.write()

    def write(self) -> None:
        Path("params.yaml").write_text(conftest.write_yaml(self.values, sort_keys=False), encoding="utf-8")

    @property
    def plan(self) -> Plan:
        return Plan(params.load_params())

    def make(self, runs=LINES, shift: float = 0.0) -> None:
        """Synthetic results of these runs, as their steps would leave them."""
        plan = self.plan
        for run in runs:
            method, _, seed = run.rpartition("/")
            if run.count("/") == 1:
                add_reference_runs(Path(), "digits")
            else:
                value = (
                    {"none": 2.0, "el": 1.5, "pixel-mmd": 1.75}[method.split("/")[2]] + 0.01 * int(seed) ** 2 + shift
                )
                add(Path(), run, value, LOG, flop=7.0)
                finish(plan.find("distil", run))
            finish(plan.find("evaluate", run))

    def tables(self, name: str = "toys/toys", *words: str) -> dict[str, bytes]:
        """Make tables; returns the content of their outputs."""
        assert __main__.main(["tables", name, *words]) == 0
        step = self.plan.partial(name) if "--partial" in words else self.plan.find("tables", name)
        return {output: Path(output).read_bytes() for output in step.outputs}


def finish(step) -> None:
    """Leave a step as if it had run: what its outputs hold is there already, or does not matter."""
    for output in step.outputs:
        if output.endswith(".png"):
            picture(Path(output))
        elif not Path(output).exists():
            files.write_text(output, "")
    records.write_record(Path(), step.record, step.digest, step.outputs)
    files.write_text(step.sidecar, step.recipe)


def forget() -> None:
    """As a fresh clone: no runs, no evaluations, no tables but what was kept."""
    for folder in ("data/runs", "data/evaluations", "data/scratch", "data/sets"):
        shutil.rmtree(folder, ignore_errors=True)
    for path in FILE.parent.iterdir():
        if path != FILE:
            path.unlink()


@pytest.fixture
def toys(tmp_path, monkeypatch) -> Toys:
    monkeypatch.chdir(tmp_path)
    return Toys()


def keep_toys(*others: Path) -> str:
    return keep.keep_runs(Plan(params.load_params()), "toys", others)


# --- there and back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toys/toys", "toys"])
def test_there_and_back(toys, name):
    """Tables from kept results have the bytes and the recipe of those from the runs; only pictures cannot be kept."""
    toys.make()
    first, recipe = toys.tables(name), toys.plan.find("tables", name).recipe
    assert keep_toys() == f"{FILE} holds 14 of 14 runs and reference runs, 14 of them new"
    forget()
    assert not Path("data/runs").exists()
    second = toys.tables(name)
    differ = {Path(path).name for path in first if first[path] != second[path]}
    assert differ == ({"samples.png", "report.html"} if name == "toys" else set())
    assert toys.plan.find("tables", name).recipe == recipe
    if name == "toys":
        page = second["data/tables/toys/report.html"].decode()
        assert "5 pictures are left out: kept results have none, and the runs were made elsewhere." in page


def test_means_over_snapshots_come_back_from_kept_results(toys):
    """Curves are kept, so that a study of the last three snapshots has the same bytes."""
    toys.values["tables"]["studies"]["toys"] = STUDY | {"last": 3}
    toys.write()
    toys.make()
    first = toys.tables()
    keep_toys()
    forget()
    assert toys.tables() == first
    assert b"means over the last 3 snapshots" in first["data/tables/toys/toys.md"]


def test_the_metrics_of_a_suite_are_read_from_kept_results(toys):
    toys.make()
    assert __main__.main(["evaluate", "suite/toys"]) == 0
    first = [Path(name).read_bytes() for name in ("data/metrics.json", "data/metrics-all.json")]
    keep_toys()
    forget()
    assert __main__.main(["evaluate", "suite/toys"]) == 0
    assert first == [Path(name).read_bytes() for name in ("data/metrics.json", "data/metrics-all.json")]


def test_nothing_but_tables_is_asked_of_a_clone(toys):
    """Neither trainings nor data; by hand each run can still be made, and the bill is empty."""
    toys.make()
    keep_toys()
    forget()
    plan = toys.plan
    assert set(plan.suite("toys")) == {("evaluate", "suite/toys"), ("tables", "toys"), ("tables", "toys/toys")}
    assert len(plan.suite("toys", kept=True)) > 40 and plan.find("distil", RUNS[0]).upstream
    assert cost.describe_left(plan, "toys") == "suite toys: all trainings are finished"
    assert "12 of 12 runs are read from data/tables/toys/kept.jsonl" in "\n".join(planned.plan_page(plan, "toys", ""))


def test_what_is_kept_and_lies_here_is_not_pruned(toys):
    toys.make()
    keep_toys()
    assert not [path for path in prune.leftovers(toys.plan) if path.as_posix().startswith(("data/runs", "data/eval"))]


def test_every_number_that_studies_read_of_a_log_is_kept():
    """By the names in the code of the studies."""
    asked = set()
    for path in (ROOT / "src/eldistill/tables/studies").glob("*.py"):
        for name, of in re.findall(r'\.logged\(\w+, "(\w+)"(?:, of="(\w+)")?\)', path.read_text(encoding="utf-8")):
            asked.add(f"{of}.{name}")
    text = (ROOT / "src/eldistill/tables/studies/comparisons.py").read_text(encoding="utf-8")
    asked |= {f".{name}" for name in re.findall(r'"(\w+)"', re.search(r"for name in (\(.+\))\]\n +ratios", text)[1])}
    assert {".weight", ".gradient_rms", ".base_rms", ".trace_ratio", "generator.gradient_norm"} == asked
    assert all(name.endswith(kept.LOGGED) for name in asked)


def test_the_name_of_a_machine_is_not_kept(toys):
    toys.make([RUNS[0]])
    path = Path(f"data/runs/{RUNS[0]}/provenance.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "my-laptop"}))
    keep_toys()
    assert "my-laptop" not in FILE.read_text(encoding="utf-8")


# --- what changed ---------------------------------------------------------------------------------------


def test_a_run_whose_recipe_changed_is_trained_again(toys):
    """Of one supplement only; its lines are dropped at the next keep and counted."""
    toys.make()
    keep_toys()
    forget()
    toys.values["distil"]["supplements"]["pixel-mmd"]["weight"] = 0.123
    toys.write()
    asked = {name for word, name in toys.plan.suite("toys") if word == "distil"}
    assert asked == {f"digits/di/pixel-mmd/{seed}" for seed in SEEDS}
    assert keep_toys() == (
        f"{FILE} holds 10 of 14 runs and reference runs, 0 of them new; 4 dropped, because params.yaml asks for other numbers "
        "now; `snakemake all --config suite=toys` makes the rest"
    )


def test_what_is_on_the_disk_is_read_and_kept_in_place_of_a_line(toys):
    """Another machine's numbers under the same recipe: the disk wins here, and its line replaces the other at the next keep."""
    toys.make()
    keep_toys()
    first = toys.tables()
    forget()
    toys.make([run for run in RUNS if "/el/" in run], shift=0.5)
    assert toys.tables() != first
    assert "0 of them new" in keep_toys()
    there = toys.plan.kept("toys")
    assert {line.results["metrics"]["fd5k_judge-a_heldout"] for line in there.values() if "/el/" in line.run} == {
        1.5 + 0.5 + 0.01 * seed**2 for seed in SEEDS
    }


def test_another_line_of_an_equal_recipe_makes_the_table_stale(toys):
    """The table was made of the kept line; the same line again, or the run itself, makes it fresh again."""
    toys.make()
    keep_toys()
    before = FILE.read_bytes()
    forget()
    toys.tables()
    step = toys.plan.find("tables", "toys/toys")
    assert step.fresh(Path())
    lines = {line.key: line for line in toys.plan.kept("toys").values()}
    line = lines[RUNS[0], toys.plan.find("evaluate", RUNS[0]).digest]
    other = kept.make_kept(line.run, line.recipes, line.results | {"metrics": line.results["metrics"] | {"more": 1.5}})
    FILE.write_text(kept.text_of(lines | {line.key: other}), encoding="utf-8")
    changed = toys.plan.find("tables", "toys/toys")
    assert changed.recipe == step.recipe and not changed.fresh(Path())
    assert planned.state_of(changed, Path()).why == (f"the kept results of {RUNS[0]} changed",)
    FILE.write_bytes(before)
    assert toys.plan.find("tables", "toys/toys").fresh(Path())


def other_line(toys, run: str) -> kept.Kept:
    """What another machine found of a run under the same recipe."""
    line = toys.plan.kept("toys")[run, toys.plan.find("evaluate", run).digest]
    metrics = {name: value + 0.25 for name, value in line.results["metrics"].items()}
    return kept.make_kept(line.run, line.recipes, line.results | {"metrics": metrics})


def test_a_table_of_the_disk_is_stale_where_another_line_is_read(toys):
    """Here the runs are read, so that another line concerns nobody; in a clone, which has the table and the lines, it does."""
    toys.make()
    keep_toys()
    toys.tables()
    made = {path: path.read_bytes() for path in FILE.parent.iterdir() if path != FILE}
    lines, other = toys.plan.kept("toys"), other_line(toys, RUNS[0])
    FILE.write_text(kept.text_of(lines | {other.key: other}), encoding="utf-8")
    assert toys.plan.find("tables", "toys/toys").fresh(Path())
    forget()
    for path, content in made.items():
        path.write_bytes(content)
    assert toys.plan.find("tables", "toys/toys").read_otherwise(Path()) == [RUNS[0]]
    toys.tables()
    assert toys.plan.find("tables", "toys/toys").fresh(Path())


def test_a_table_of_lines_is_stale_where_the_disk_and_its_line_are_others(toys):
    """Made of the lines; then the runs are made here with other numbers, and kept in place of them."""
    toys.make()
    keep_toys()
    forget()
    toys.tables()
    toys.make([RUNS[0]], shift=0.5)
    keep_toys()
    assert toys.plan.find("tables", "toys/toys").read_otherwise(Path()) == [RUNS[0]]


def test_a_picture_of_another_recipe_is_never_shown(toys):
    """Left by an earlier run of other numbers, beside which the kept results are read."""
    toys.make()
    keep_toys()
    step = toys.plan.find("evaluate", RUNS[0])
    assert not kept.absent_pictures([step], Path())
    files.write_text(step.sidecar, step.recipe.replace("digits", "letters"))
    assert kept.absent_pictures([step], Path()) == {output for output in step.outputs if output.endswith(".png")}


# --- two machines ---------------------------------------------------------------------------------------


def test_two_machines_and_a_merge(toys, tmp_path):
    """Each keeps its runs; the lines of both, in any order, doubled and with lines of other recipes, are the file of all."""
    toys.make()
    keep_toys()
    whole = FILE.read_text(encoding="utf-8")
    halves = []
    for number in (0, 1):
        forget()
        FILE.unlink()
        toys.make(LINES[number::2] + ["digits/real", "digits/teacher"])
        keep_toys()
        halves.append(FILE.read_text(encoding="utf-8"))
    assert halves[0] != halves[1] and all(set(half.splitlines()) < set(whole.splitlines()) for half in halves)
    for text in (halves[1] + halves[0], halves[0] + whole + halves[1], "\n".join(reversed(whole.splitlines()))):
        forget()
        FILE.write_text(text, encoding="utf-8")
        assert kept.text_of(toys.plan.kept("toys")) == whole
        keep_toys()
        assert FILE.read_text(encoding="utf-8") == whole
    FILE.write_text(halves[0], encoding="utf-8")
    other = tmp_path / "other.jsonl"
    other.write_text(halves[1], encoding="utf-8")
    keep_toys(other)
    assert FILE.read_text(encoding="utf-8") == whole


def test_git_merges_two_files_without_a_conflict(tmp_path):
    """Sorted lines are added at the same place by both; the attribute of this project takes both."""

    def git(*words: str) -> None:
        options = ["-c", "user.name=x", "-c", "user.email=x", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *options, *words], cwd=tmp_path, check=True, capture_output=True)

    shutil.copy(ROOT / ".gitattributes", tmp_path)
    path = tmp_path / FILE
    lines = [kept.make_kept(f"a/b/c/{seed}", {"evaluate": "0"}, {}).line for seed in range(4)]
    git("init", "-q")
    files.write_text(path, f"{lines[0]}\n")
    git("add", "-A")
    git("commit", "-qm", "start")
    for branch, line in (("one", lines[1]), ("two", lines[2])):
        git("checkout", "-qb", branch, "main")
        files.write_text(path, f"{lines[0]}\n{line}\n")
        git("commit", "-qam", branch)
    git("merge", "-q", "one", "-m", "both")
    assert {line.line for line in kept.read_kept(path).values()} == set(lines[:3])


# --- a part of the runs ---------------------------------------------------------------------------------


def test_a_page_of_a_part_of_the_runs(toys):
    """It says how many there are, which are missing and what goes on; the workflow still wants all of them."""
    toys.make([run for run in LINES if not run.endswith(("el/2", "el/3", "pixel-mmd/3"))])
    page = toys.tables("toys/toys", "--partial")["data/tables/toys/toys.md"].decode()
    assert (
        "**9 of 12 runs made.** Missing (arm and seeds): digits/di/el 2, 3; digits/di/pixel-mmd 3. "
        "`snakemake all --config suite=toys` makes them."
    ) in page
    assert len(toys.plan.kept("toys")) == 11
    whole, part = toys.plan.find("tables", "toys/toys"), toys.plan.partial("toys/toys")
    assert part.fresh(Path()) and not whole.fresh(Path())
    assert json.loads(part.recipe)["params"]["partial"] == {
        "asked": 12,
        "missing": ["digits/di/el/2", "digits/di/el/3", "digits/di/pixel-mmd/3"],
    }
    forget()
    again = toys.tables("toys/toys", "--partial")["data/tables/toys/toys.md"].decode()
    assert again == page
    main = toys.tables("toys", "--partial")["data/tables/toys/main.md"].decode()
    assert main.splitlines()[2].startswith("**9 of 12 runs made.**")
    for page in sorted(Path("data/tables/toys").glob("*.html")):
        head = page.read_text(encoding="utf-8").partition('class="claim"')[0]
        assert "<b>9 of 12 runs made.</b>" in head, page
    toys.make(LINES)
    keep_toys()
    assert toys.plan.partial("toys/toys") == toys.plan.find("tables", "toys/toys")
    assert "runs made" not in toys.tables("toys/toys", "--partial")["data/tables/toys/toys.md"].decode()


def test_no_run_at_all_is_one_sentence(toys, capsys):
    assert __main__.main(["tables", "toys/toys", "--partial"]) == 2
    assert "none of the 12 runs of toys is made" in capsys.readouterr().err and not FILE.exists()


# --- damage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda text: text[:-20], "it is cut off"),
        (lambda text: text.replace('"fd5k_judge-a_heldout":1.5', '"fd5k_judge-a_heldout":1.25', 1), "its sha256 is missing or is not"),
        (lambda text: f"<<<<<<< HEAD\n{text}", "a mark of a merge that git did not finish"),
        (lambda text: f"{text}\udcff", "can't decode"),
        (lambda text: f"{text}{{}}\n", "its sha256 is missing"),
        (lambda text: f"{text}[\n", "it is cut off"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_sentence_and_stays(toys, capsys, damage, why):
    toys.make()
    keep_toys()
    FILE.write_bytes(damage(FILE.read_text(encoding="utf-8")).encode(errors="surrogateescape"))
    before = FILE.read_bytes()
    for words in (["tables", "toys/toys"], ["keep", "toys"], ["plan", "toys"]):
        assert __main__.main(words) == 2
        said = capsys.readouterr().err.strip()
        assert "\n" not in said and why in said and f"{FILE} is damaged in line" in said
        assert "`python -m eldistill keep toys`" in said
    assert FILE.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metrics": {"fd5k_judge-a_heldout": float("1e400")}}, None),
        ({"metrics": {"fd5k_judge-a_heldout": "1.5"}}, "is not a finite number"), ({"metrics": None}, "it has no metrics"),
        ({"curve": {"names": ["n_images"], "rows": [["nan"]]}}, "no finite numbers"), ({"curve": 3}, "are damaged"),
        ({"curve": {"names": ["n_images"], "rows": [["1", "2"]]}}, "are damaged"), ({"log": {}}, "are damaged"),
        ({"provenance": []}, "it has no provenance"), ({"provenance": {}}, "has no n_images"),
    ],
)  # fmt: skip
def test_a_line_with_other_content_is_one_sentence(toys, capsys, change, why):
    """Its sha256 is right, so that somebody wrote it; NaN and infinity are not written at all."""
    toys.make()
    keep_toys()
    lines = dict(toys.plan.kept("toys"))
    line = next(line for line in lines.values() if line.run == RUNS[0])
    if why is None:
        with pytest.raises(ValueError):
            kept.make_kept(line.run, line.recipes, line.results | change)
        return
    lines[line.key] = kept.make_kept(line.run, line.recipes, line.results | change)
    FILE.write_text(kept.text_of(lines), encoding="utf-8")
    forget()
    assert __main__.main(["tables", "toys/toys"]) == 2
    said = capsys.readouterr().err.strip()
    assert why in said and "\n" not in said


def test_a_result_that_is_not_finite_is_not_kept(toys):
    toys.make()
    path = Path(f"data/evaluations/{RUNS[0]}/metrics.json")
    path.write_text(path.read_text().replace("1.5", "NaN", 1) if "1.5" in path.read_text() else '{"a": NaN}')
    step = toys.plan.find("evaluate", RUNS[0])
    records.write_record(Path(), step.record, step.digest, step.outputs)
    with pytest.raises(Problem, match="a number that is not finite"):
        keep_toys()
    assert not FILE.exists()


def test_a_file_that_is_missing_or_too_large_is_one_sentence(toys, tmp_path, monkeypatch):
    with pytest.raises(Problem, match=r"none.jsonl is missing; expected a kept.jsonl of another machine"):
        keep_toys(tmp_path / "none.jsonl")
    toys.make()
    keep_toys()
    monkeypatch.setattr(kept, "MAX_BYTES", 100)
    with pytest.raises(Problem, match="more than 100 bytes"):
        keep_toys()


# --- snakemake ------------------------------------------------------------------------------------------


def test_a_fresh_clone_makes_the_tables_only(tmp_path, monkeypatch):
    """What `snakemake -n` of a clone with kept results would run: the metrics and the tables of the suite, and no training."""
    project = tracked(tmp_path / "project")
    monkeypatch.chdir(project.path)
    plan = Plan(params.load_params())
    add_reference_runs(Path(), "digits-smoke")
    for step in plan.evaluations("smoke"):
        if step.kind == "evaluation":
            add(Path(), step.name, 1.5, LOG)
            finish(plan.find("distil", step.name))
        finish(step)
    keep.keep_runs(plan, "smoke")
    shutil.rmtree("data/runs")
    shutil.rmtree("data/evaluations")
    said = project.run("snakemake", "-n", "all")
    jobs = set(re.findall(r"^(?:local)?rule (\w+):", said, re.M))
    assert jobs == {"metrics", "make_tables", "all"}, said[-3000:]
    assert freshness.stale_targets(Plan(params.load_params()).suite("smoke").values(), set())
