# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/ say what is so: their links, commands, keys and numbers."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import conftest
import pytest
import yaml
from project import Project, bins, tracked  # noqa: F401  (bins is a fixture)

from eldistill.commands import cost, tools
from eldistill.plan import params, recipes
from eldistill.plan.plan import Plan
from eldistill.tables import published

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
PARAMS = params.from_values(conftest.shipped(), ROOT)
TYPED = [
    line
    for text in PAGES.values()
    for block in re.findall(r"```sh\n(.*?)```", text, re.S)
    for line in block.splitlines()
]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)\)", PAGES[name])
    assert not [link for link in links if not (ROOT / "docs" / link).exists()]


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in PAGES if f"(docs/{name})" not in readme]


def test_commands_of_the_pages_exist():
    """Make's targets, the words of `python -m eldistill`, profiles, and variables that the code or a profile reads."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = "\n".join(PAGES.values())
    assert {"doctor", "env"} <= (targets := set(re.findall(r"(?:^|`)make ([a-z][a-z-]+)", text, re.M)))
    assert not [target for target in targets if f"\n{target}:" not in makefile]
    words = set(re.findall(r"python -m eldistill ([a-z]+)", text))
    assert words and words <= {*recipes.WORDS, *tools.TOOLS}
    profiles = set(re.findall(r"--profile ([\w/.-]+)", text))
    assert all((ROOT / profile / "config.yaml").exists() for profile in profiles)
    sources = [
        *ROOT.glob("src/**/*.py"),
        *ROOT.glob("workflow/rules/*.smk"),
        *ROOT.glob("slurm/*"),
        *ROOT.glob("profiles/*/*"),
    ]
    read = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert not [name for name in set(re.findall(r"ELDISTILL_[A-Z_]+", text)) if name not in read]


@pytest.mark.parametrize("line", TYPED)
def test_lines_to_type_are_lines_of_a_shell(line):
    done = subprocess.run(["sh", "-n"], input=line, capture_output=True, text=True)
    assert done.returncode == 0 and shlex.split(line, comments=True), done.stderr


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
    return {row["fid"] for row in published.figures() if row["method"] == method and row["dataset"] == "CIFAR-10"}


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
    hours = cost.hours_left([cost.of_run(Plan(PARAMS), run) for run in runs])
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
