# SPDX-License-Identifier: Apache-2.0
"""The README says what is so: its numbers, its commands, its names."""

import functools
import hashlib
import json
import re
import subprocess
from pathlib import Path

import check
import conftest
import pytest
import yaml

from eldistill.plan import params, schema
from eldistill.plan.plan import Plan

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


NUMBERS = {12: "twelve", 13: "thirteen", 14: "fourteen", 15: "fifteen", 16: "sixteen"}


def committed(name: str) -> str:
    """A file as git has it: after `make demo` the tables here are of this machine, whose CPU rounds as it does."""
    done = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    return done.stdout if done.returncode == 0 else (ROOT / name).read_text(encoding="utf-8")


@functools.cache
def tracked() -> set[str]:
    """The files that git has, or without git all that are here."""
    done = subprocess.run(["git", "ls-files", "-z", "data"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    here = (str(path.relative_to(ROOT)) for path in (ROOT / "data").rglob("*"))
    return set(done.stdout.split("\0") if done.returncode == 0 else here)


def table_rows(text: str) -> list[list[str]]:
    """The cells of all Markdown table rows."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_the_demo_table_is_the_committed_one():
    """Each row of the README's demo table is made of cells of the same row of data/tables/demo/main.md, in order."""
    made = {row[0]: row for row in table_rows(committed("data/tables/demo/main.md"))}
    section = TEXT.split("<!-- demo-table")[1].split("### Every method")[0]
    rows = [row for row in table_rows(section) if row[0] in made and len(row) > 5]
    assert {"di/none", "di/el", "di/pixel-mmd"} <= {row[0] for row in rows}
    for row in rows:
        rest = iter(made[row[0]])
        assert all(cell in rest for cell in row), row[0]
    for sentence in re.findall(r"^- di/.*$", section, re.M):
        assert sentence in committed("data/tables/demo/main.md")


def test_the_bench_table_is_the_committed_one():
    """The README's bench has every row of data/tables/bench/main.md, its cells in order, and only its sentences."""
    text = committed("data/tables/bench/main.md")
    made = {row[0]: row for row in table_rows(text) if "/" in row[0] and len(row) > 8}
    section = TEXT.split("<!-- bench-table")[1].split("## On your machine")[0]
    rows = {row[0]: row for row in table_rows(section) if row[0] in made}
    arms = [name for name in made if name != "method/supplement"]
    assert len(arms) == 26 and set(arms) <= set(rows)
    for name in arms:
        rest = iter(made[name])
        assert all(cell in rest for cell in rows[name]), name


def test_the_tables_are_those_of_the_lock():
    """data/tables/demo in git is, to the bit, what dvc.lock says that the stage `tables` left: nobody has touched it since."""
    out = yaml.safe_load(committed("dvc.lock"))["stages"]["tables"]["outs"][0]
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "HEAD", out["path"]], cwd=ROOT, capture_output=True, text=True
    )
    entries = []
    for name in sorted(listed.stdout.split()):
        content = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True).stdout
        entries.append({"md5": hashlib.md5(content).hexdigest(), "relpath": name.removeprefix(f"{out['path']}/")})
    assert out["path"] == "data/tables/demo" and len(entries) == out["nfiles"] > 10
    assert hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir" == out["md5"]


def test_what_an_evaluation_costs_is_what_was_measured():
    found = json.loads((ROOT / "benchmarks/evaluate.json").read_text(encoding="utf-8"))
    own, plain = (found["over_ours"][f"clean-fid, {mode}"] for mode in ("its own mode", "no resizing"))
    text = " ".join(TEXT.split())
    assert f"{found['metrics']} numbers, took {found['seconds']['in one pass, all metrics']:.0f} s on two cores" in text
    assert f"{found['images_per_second']:.0f} images/s" in text and f"took {own:.1f} times as long" in text
    assert f"{plain:.1f} times without its resizing" in text


def test_what_a_step_costs_is_what_was_measured():
    found = json.loads((ROOT / "benchmarks/step.json").read_text(encoding="utf-8"))
    text = " ".join(TEXT.split())
    rates = [found["sampling"][f"{name}, images/s"] for name in ("one step", "Heun, 18 steps")]
    assert (
        f"makes {rates[0]:,.0f} images a second" in text
        and f"in 18 steps {rates[1]:.0f}: {found['sampling']['ratio']:.0f} times" in text
    )
    for supplement, words in (("none", "costs {:.2f} to {:.2f} times"), ("el", "with EL {:.2f} to {:.2f} times")):
        ratios = [row["ratio"] for row in found["rows"] if row["supplement"] == supplement]
        assert words.format(min(ratios), max(ratios)) in text


def test_the_sentences_of_studies_are_the_committed_ones():
    """What the README quotes of a study stands in its page, to the letter; it quotes no study whose page git has not."""
    blocks = re.findall(r"<!-- study: ([\w-]+) -->\n\n((?:- .*\n)+)", TEXT)
    for name, quoted in blocks:
        assert f"data/tables/ablation/{name}.md" in tracked(), (
            f"{name} has no page in git; run `make ablation STUDY={name}`"
        )
        page = committed(f"data/tables/ablation/{name}.md")
        assert all(f"\n{sentence}\n" in page for sentence in quoted.splitlines()), name
    assert TEXT.count("<!-- study:") == len(blocks)
    # A sentence of a study is known by its form: it cannot stand outside of such a block, or in it under another name.
    inside = [sentence for _, quoted in blocks for sentence in quoted.splitlines()]
    form = r"^- .*(?:\d pairs|[0-9]+ never\)|\(\d+ runs\)|images a batch|runs ended no better).*$"
    assert set(re.findall(form, TEXT, re.M)) <= set(inside)


def test_no_number_stands_for_a_table_that_git_has_not():
    """Each table, page and picture that the README links or shows is in git; test_tables_in_git.py says that it is fresh."""
    links = set(re.findall(r"\]\((data/tables/[^)#]+)\)", TEXT))
    assert len(links) > 3 and links <= tracked()
    assert {"data/tables/demo/main.md", "data/tables/bench/main.md"} <= tracked()


def test_the_studies_that_are_said_to_be_open_are():
    """Those without a page in git are named, and no other."""
    asked = conftest.shipped()["tables"]["studies"]
    pages = (Path(name) for name in tracked() if name.startswith("data/tables/ablation/") and name.endswith(".md"))
    made = {path.stem for path in pages} - {"main"}
    named = re.search(r"Without a table in git: (.*?)\.\n", TEXT, re.S)
    said = set(re.findall(r"`([\w-]+)`", named[1])) if named else set()
    assert named or f"All {NUMBERS[len(asked)]} studies have a table in git" in TEXT
    assert said == set(asked) - made and made <= set(asked)


def test_links_within_the_page_lead_somewhere():
    headings = re.findall(r"^#+ (.+)$", TEXT, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert links and set(links) <= anchors


def test_named_files_exist():
    """Every relative link and picture of the README is there."""
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", TEXT)
    assert len(links) > 8
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("promise", check.PROMISES)
def test_make_check_finds_the_test_of_a_promise(promise):
    file, _, name = check.PROMISES[promise].partition("::")
    assert (
        f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")
        if name
        else (ROOT / "tests" / file).exists()
    )


def test_make_targets_exist():
    """Every `make <target>` of the README is in the Makefile."""
    targets = set(re.findall(r"(?:^|`)make ([a-z][a-z-]+)", TEXT, re.M))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= targets
    assert not [target for target in targets if f"\n{target}:" not in makefile]


def test_the_example_of_own_data_is_valid(tmp_path):
    """The YAML of "To add …", put into params.yaml, passes the check."""
    example = yaml.safe_load(re.search(r"```yaml\n(data:.*?)```", TEXT, re.S).group(1))
    values = conftest.shipped()
    values = schema.merge(values, example)
    assert [str(run) for run in params.from_values(values, ROOT).runs("mine")][0] == "mine/di/none/0"


@pytest.mark.parametrize("word", ["machine", "registry"])
def test_no_path_of_a_machine_is_named(word):
    """Nothing in the project names a folder or an index of the machine that it was written on."""
    bad = {"machine": r"(?<![\w./-])/(work|root|home)/\w", "registry": r"pypi\.org|--index-url|--extra-index-url"}[word]
    names = [
        p for p in ROOT.rglob("*") if p.suffix in (".md", ".py", ".smk", ".yaml", ".yml", ".toml", ".lock", ".cff")
    ]
    ours = [p for p in names if not {".venv", "scratch", ".snakemake", ".dvc"} & set(p.relative_to(ROOT).parts)]
    assert len(ours) > 50
    found = [
        str(p) for p in ours if p != Path(__file__) and re.search(bad, p.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not found


def test_the_bill_of_the_paper_is_what_the_command_prints():
    """Jobs, trainings, hours, memory and disk of the suite `paper`."""
    from eldistill.commands import cost

    values = conftest.shipped()
    plan = Plan(params.from_values(values, ROOT))
    jobs = len(plan.suite("paper")) + 1  # and `all`
    assert f"({jobs} jobs, {len(list(plan.params.runs('paper')))} of them trainings" in TEXT
    assert f"prints {jobs} jobs" in TEXT
    made = {row[0]: row for row in table_rows("\n".join(cost.table(plan, "paper")))}
    section = TEXT.split("### The paper's table")[1].split("### DVC")[0]
    rows = table_rows(section)[2:]
    assert len(rows) == 7
    for name, *cells in rows:
        assert cells == [made[name][1], *made[name][4:7]], name
