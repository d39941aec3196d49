# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/ say what is so: their links, commands, keys and numbers."""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import eldistill
from eldistill import __main__
from eldistill.commands import cost
from eldistill.plan import params, recipes
from eldistill.plan.plan import Plan
from eldistill.tables import published
from tests import conftest
from tests.conftest import ROOT, read_yaml
from tests.project import Project, bins, tracked  # noqa: F401  (bins is a fixture)
from tests.test_messages import AVOIDED

PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
EVERY = PAGES | {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
PARAMS = params.from_values(conftest.shipped(), ROOT)
BLOCKS = [block for text in EVERY.values() for block in re.findall(r"```sh\n(.*?)```", text, re.S)]
TYPED = sorted({line for block in BLOCKS for line in block.splitlines() if line.strip()})
INLINE = {
    span for text in EVERY.values() for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
}


# --- commands ---------------------------------------------------------------------------------------------


def commands(line: str) -> list[list[str]]:
    """The commands of a line as words, without variables that are set before them."""
    parts = re.split(r" && ", line.replace("\n", " "))
    words = [shlex.split(part, comments=True) for part in parts]
    return [list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), each)) for each in words]


EVERY_COMMAND = sorted(
    {tuple(words) for line in {*TYPED, *INLINE} if "…" not in line and line.count("'") % 2 == 0
     for words in commands(line) if len(words) > 1}
)  # fmt: skip


def begins(*first: str) -> list[tuple[str, ...]]:
    """The commands of all pages that begin with these words."""
    return [words[len(first) :] for words in EVERY_COMMAND if words[: len(first)] == first]


@pytest.mark.parametrize("line", TYPED)
def test_lines_to_type_are_lines_of_a_shell(line):
    done = subprocess.run(["sh", "-n"], input=line, capture_output=True, text=True)
    assert done.returncode == 0 and shlex.split(line, comments=True), done.stderr


def test_commands_of_the_package_are_understood():
    """Each `python -m eldistill …` has a subcommand and options that exist, and runs and suites that params.yaml names."""
    found = begins("python", "-m", "eldistill")
    assert len(found) > 15
    for words in found:
        if not words or words[0].isupper() or "NAME" in words[1:2] or "NAME/images" in words:
            continue  # STEP, NAME: a placeholder in a sentence
        if "--help" in words:
            assert words[0] in {*recipes.WORDS, "--help"}
            continue
        options = __main__.parser().parse_args(list(words))
        if (
            options.word == "distil" and "/my_method/" not in options.name
        ):  # test_workflow.py adds this method to a copy
            assert PARAMS.run(options.name)
        if options.word in ("plan", "cost", "fetch") and (suite := getattr(options, "suite", None)) not in (
            "mine",
            "mine-rates",
        ):
            assert suite in {*PARAMS.values["suites"], "SUITE", None}, words


def test_commands_of_snakemake_are_understood():
    """Options exist, profiles are folders with a config.yaml, and suites are those of params.yaml."""
    from snakemake import cli

    parser = cli.get_argument_parser()
    known = {option for action in parser._actions for option in action.option_strings}
    found = begins("snakemake")
    assert len(found) > 10
    for words in found:
        for option in (word.split("=")[0] for word in words if word.startswith("-")):
            assert option in known or option.startswith("--slurm-"), words
        for option, value in itertools.pairwise(words):
            if option == "--profile" and value not in ("~/mine",):
                assert (ROOT / value / "config.yaml").exists(), words
            if value.startswith("suite="):
                assert value.removeprefix("suite=") in {*PARAMS.values["suites"], "NAME", "mine", "mine-rates"}, words
    for suite in re.findall(r"ELDISTILL_SUITE=([\w-]+)", "\n".join(EVERY.values())):
        assert suite in {*PARAMS.values["suites"], "mine"}


def test_commands_of_dvc_are_understood():
    from dvc.cli.parser import get_main_parser

    words = {word[0] for word in begins("dvc")}
    known = next(
        action.choices
        for action in get_main_parser()._actions
        if getattr(action, "choices", None) and "push" in action.choices
    )
    assert {"repro", "push", "pull", "metrics", "exp"} <= words <= set(known)


def test_targets_profiles_and_variables_exist():
    """Make's targets and their variables, scripts, and variables that the code or a profile reads."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = begins("make")
    assert {"doctor", "env", "demo", "docs"} <= {words[0] for words in made}
    for target, *variables in made:
        assert f"\n{target}:" in makefile, target
        assert all(f"{name.split('=')[0]}" in makefile for name in variables), (target, variables)
    scripts = [words[0] for words in begins("python") if words[0].endswith(".py")]
    exported = {"load.py"}  # part of what `export` writes
    assert len(scripts) > 3 and not [name for name in scripts if name not in exported and not (ROOT / name).exists()]
    sources = [
        *ROOT.glob("src/**/*.py"),
        *ROOT.glob("workflow/rules/*.smk"),
        *ROOT.glob("slurm/*"),
        *ROOT.glob("profiles/*/*"),
    ]
    read = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    text = "\n".join(EVERY.values())
    assert not [name for name in set(re.findall(r"ELDISTILL_[A-Z_]+", text)) if name not in read]


@pytest.mark.parametrize("name", EVERY)
def test_blocks_of_python_and_yaml_can_be_read(name):
    """Their syntax; names that examples import from the package exist."""
    for block in re.findall(r"```python\n(.*?)```", EVERY[name], re.S):
        tree = ast.parse(block)
        used = [
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "eldistill"
        ]
        assert not [each for each in used if each not in eldistill.__all__]
    for block in re.findall(r"```yaml\n(.*?)```", EVERY[name], re.S):
        assert isinstance(read_yaml(block), dict)


def test_the_entry_of_the_catalog_has_the_catalogs_keys():
    entry = read_yaml((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))
    assert set(entry) == {"usage"} and set(entry["usage"]["mandatory-flags"]) == {"desc", "flags"}
    assert set(entry["usage"]) == {"mandatory-flags", "software-stack-deployment", "report"}


@pytest.mark.parametrize("name", [*EVERY, "benchmarks/README.md", "benchmarks/gpu/README.md", "params.yaml", "workflow/params/paper.yaml",
                                  "workflow/params/ablation.yaml", "workflow/params/colour.yaml"])  # fmt: skip
def test_pages_avoid_the_words_that_messages_avoid(name):
    """The words that tests/test_messages.py keeps out of messages and docstrings."""
    text = EVERY.get(name) or (ROOT / name).read_text(encoding="utf-8")
    assert [found[0] for found in AVOIDED.finditer(text)] == []


def test_the_glossary_is_in_the_order_of_the_alphabet():
    """Each word once, so that a reader finds it."""
    words = [
        re.sub(r"[^a-z0-9 -]", "", word.lower())
        for word in re.findall(r"^\| ([^|]+) \|", PAGES["glossary.md"], re.M)[1:]
    ]
    assert words == sorted(set(words)) and len(words) > 40


def test_the_commits_that_departures_name_exist():
    """Each table and each change of a rule that docs/limits.md names can be looked up."""
    if (
        subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True).stdout
        != "false\n"
    ):
        pytest.skip("no complete history here")
    named = re.findall(r"`([0-9a-f]{7})`", PAGES["limits.md"].split("## Departures from the protocol")[1])
    found = [subprocess.run(["git", "cat-file", "-e", f"{name}^{{commit}}"], cwd=ROOT).returncode for name in named]
    assert len(named) > 5 and not any(found)


# --- the site ---------------------------------------------------------------------------------------------


def test_names_of_the_public_api_exist():
    """docs/api.rst documents objects that can be imported from where it says."""
    page = (ROOT / "docs/api.rst").read_text(encoding="utf-8")
    names = re.findall(r"^\.\. auto(?:class|function|exception|method):: (\S+)", page, re.M)
    assert len(names) >= 10
    for name in names:
        assert callable(resolved(name)), name


def resolved(name: str):
    """An object by its dotted name: the longest prefix that is a module, then attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[length:], found)
    raise AssertionError(f"{name} is nowhere")


def conf():
    """docs/conf.py as a module; it imports nothing of Sphinx."""
    spec = importlib.util.spec_from_file_location("docs_conf", ROOT / "docs/conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOCSTRING = """\
Weights a_ and *args of `x_` | y.

An indented block is shown as it is:

    phases(numbers) -> [Phase, …]    *not* markup
    generator_

Args:
    x: images [n, c, h, w], |x| <= 1

Returns images."""


def test_plain_docstrings_become_plain_text():
    """What reStructuredText takes for markup is escaped outside of backticks, and indented blocks are literal."""
    made = conf().plain_docstring(DOCSTRING.splitlines())
    assert made[0] == r"Weights a\_ and \*args of `x_` \| y."
    block = made.index("    phases(numbers) -> [Phase, …]    *not* markup")
    assert made[block - 2 : block] == ["::", ""] and made[block + 1] == "    generator_"
    assert r"    x: images [n, c, h, w], \|x\| <= 1" in made and made.count("::") == 1


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    """What `make docs` types, into another folder."""
    pytest.importorskip("sphinx")
    line = re.search(r"-m (sphinx .*)", (ROOT / "Makefile").read_text(encoding="utf-8"))[1]
    words = [str(tmp_path / Path(word).name) if word.startswith("data/") else word for word in line.split()]
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "docs/index.html").exists() and (tmp_path / "docs/reference/eldistill.contract.html").exists()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_no_link_of_a_page_leads_out_of_the_site(page):
    """Each link to a file outside of docs/ becomes a copy or a page of docstrings, also one over two lines or with an anchor."""
    made = re.sub(
        r"```.*?```|!\[[^\]]*\]\([^)]*\)", "", conf().site_links(page.read_text(encoding="utf-8")), flags=re.S
    )
    assert re.findall(r"\]\(\.\./[^)]*\)", made) == []


def test_links_out_of_docs_are_those_of_the_site():
    """A module is the page of its docstrings, another file a copy; pictures and links within docs/ stay."""
    links = "[a](../src/eldistill/methods/dmd.py) [b](../data/sources.csv) ![c](../x.png) [d](dvc.md) [e](../README.md)"
    assert conf().site_links(links) == (
        "[a](#eldistill.methods.dmd) [b](<path:../data/sources.csv>) ![c](../x.png) [d](dvc.md) [e](<path:../README.md>)"
    )


def test_settings_that_describe_a_machine_are_marked_so():
    """Each key of the table in docs/speed.md is `site` in the schema: it is in no recipe."""
    section = PAGES["speed.md"].split("## Settings that describe a machine")[1].split("\n## ")[0]
    keys = [key for row in re.findall(r"^\| (`[^|]*) \|", section, re.M) for key in re.findall(r"`(\w+)", row)]
    properties = PARAMS.definitions["distil"]["properties"]
    assert len(keys) > 5 and not [key for key in keys if not properties[key].get("site")]


# --- cluster ----------------------------------------------------------------------------------------------


def test_the_bill_of_the_paper_is_what_the_command_prints():
    """Jobs, trainings, hours, memory and disk of the suite `paper`."""
    plan = Plan(PARAMS)
    jobs = len(plan.suite("paper")) + 1  # and `all`
    trainings = len(list(PARAMS.runs("paper")))
    page = PAGES["paper.md"]
    assert f"{jobs} jobs, {trainings} of them trainings" in page and f"[{trainings} trainings]" in EVERY["README.md"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in cost.cost_table(plan, "paper")]
    made = {row[0]: row for row in cells}
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")
    ]
    assert len(rows) == 9
    for name, *rest in rows[2:]:
        assert rest == [made[name][1], *made[name][4:7]], name
    hours = int(made["all"][4].replace(",", ""))
    assert f"that is {hours / 24 / 365:.0f} years of one GPU" in " ".join(page.split())


def test_numbers_of_the_profile_are_those_of_the_page():
    profile = read_yaml((ROOT / "slurm/config.yaml").read_text(encoding="utf-8"))
    page = " ".join(PAGES["cluster.md"].split())
    assert f"at most {profile['jobs']} jobs at once" in page and f"({profile['retries']} retries)" in page
    assert f"`max_gpu_hours` ({PARAMS.schema['properties']['max_gpu_hours']['default']})" in page


def test_rules_and_keys_of_the_cluster_page_exist():
    """A rule that is not in the profile would not be obeyed; a resource that nobody reads neither."""
    from snakemake_executor_plugin_slurm import submit_string, utils

    profile = yaml.safe_load((ROOT / "slurm/config.yaml").read_text(encoding="utf-8"))
    read = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (submit_string, utils))
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGES["cluster.md"], re.S)]
    assert len(found) > 5
    for block in found:
        for rule, values in block["set-resources"].items():
            assert rule in profile["set-resources"]
            assert all(f'"{key}"' in read or f".{key}" in read for key in values), values


def test_the_commands_of_the_quickstart_are_those_of_the_rehearsal():
    """What the page shows with its output is typed, to the letter, by tests/slurm/rehearsal.py."""
    typed = (ROOT / "tests/slurm/rehearsal.py").read_text(encoding="utf-8")
    section = PAGES["cluster.md"].split("## The three commands")[1].split("\n## ")[0]
    shown = re.findall(r"^\$ (?:SNAKEMAKE_PROFILE=slurm )?(.+)$", section, re.M)
    assert shown == ["snakemake --profile slurm all", "dvc repro", "dvc repro", "dvc metrics diff"]
    assert not [command for command in shown if f'("{command}"' not in typed]


# --- gpu-day ----------------------------------------------------------------------------------------------


def figure(method: str) -> set[str]:
    return {row["fid"] for row in published.load_figures() if row["method"] == method and row["dataset"] == "CIFAR-10"}


def test_lengths_and_figures_of_gpu_day():
    """Images, published lengths and their ratio are those of params.yaml; the figures those of published.csv."""
    page = " ".join(PAGES["gpu-day.md"].split())
    whole = {"di-day": "di", "sid-day": "sid", "dmd-day": "dmd-unpaired"}
    assert list(whole) == PARAMS.values["suites"]["gpu-day"][0]["methods"]
    for name, full in whole.items():
        images, length = (PARAMS.section("method", each, "cifar10")["n_images"] for each in (name, full))
        assert f"| {name} | {images:,} | {length:,} | {100 * images / length:.2f} % |" in page
    assert "4.53" in figure("Diff-Instruct (DI)") and "1.923" in figure("SiD (alpha=1.2)")
    assert "3.77" in figure("DMD") and "3.95" in figure("DI+EL") and "1.97" in figure("EDM (VP) teacher")
    assert PARAMS.section("method", "sid-day", "cifar10")["alpha"] == 1.2
    runs = list(PARAMS.runs("gpu-day"))
    assert f"two seeds: {len(runs)} trainings" in page
    hours = cost.hours_left([cost.cost_of_run(Plan(PARAMS), run) for run in runs])
    assert f"{hours:.0f} hours of one GPU that reaches {cost.TFLOPS:g} TFLOP/s" in page


# --- dvc --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(tmp_path_factory, bins) -> Project:  # noqa: F811
    """A clone whose dvc.lock names results that are nowhere."""
    project = Project(tracked(tmp_path_factory.mktemp("docs") / "a/project").path, bins)
    lock = (ROOT / "dvc.lock").read_text(encoding="utf-8")
    (project.path / "dvc.lock").write_text(lock, encoding="utf-8")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "locked")
    return project.clone("clone")


def quoted(said: str) -> None:
    """Whether the page has the sentence that DVC said."""
    assert said in PAGES["dvc.md"], said


def test_a_pull_from_an_empty_remote_says_what_the_page_says(clone):
    for remote in ((), ("dvc", "remote", "add", "--local", "-f", "-d", "team", "/nowhere/eldistill")):
        if remote:
            clone.run(*remote)
        said = clone.run("dvc", "pull", code=1)
        for sentence in (
            "WARNING: Some of the cache files do not exist neither locally nor on remote. Missing cache files:",
            "ERROR: failed to pull data from the cloud - Checkout failed for following targets:",
            "Is your cache up to date?", "Everything is up to date.",
        ):  # fmt: skip
            assert sentence in said
            quoted(sentence)
        assert clone.run("git", "status", "--porcelain") == ""
    said = clone.run("dvc", "push")
    assert "Everything is up to date." in said


def test_a_pull_without_a_remote_says_what_the_page_says(clone):
    clone.run("dvc", "remote", "remove", "local")
    (clone.path / ".dvc/config.local").unlink(missing_ok=True)
    said = clone.run("dvc", "pull", code=1)
    assert "No remote provided and no default remote set." in said
    quoted("No remote provided and no default remote set.")
    clone.run("git", "checkout", ".dvc/config")
    assert "eldistill-store" in clone.run("dvc", "remote", "list")


def test_a_server_that_cannot_be_reached_says_what_the_page_says(clone, monkeypatch):
    for name, value in {
        "ACCESS_KEY_ID": "x",
        "SECRET_ACCESS_KEY": "x",
        "EC2_METADATA_DISABLED": "true",
        "MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    clone.run("dvc", "remote", "add", "--local", "-f", "-d", "team", "s3://bucket/eldistill")
    clone.run("dvc", "remote", "modify", "--local", "team", "endpointurl", "http://127.0.0.1:9")
    said = clone.run("dvc", "pull", code=1)
    (clone.path / ".dvc/config.local").unlink()
    assert re.search(r"failed to connect to s3 \(.*\) - Could not connect to the endpoint URL", said)
    quoted("failed to connect to s3 (…) - Could not connect to the endpoint URL")
