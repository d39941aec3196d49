# SPDX-License-Identifier: Apache-2.0
"""What to cite: everything that is registered has an entry, and entries are BibTeX that can be typeset."""

from __future__ import annotations

import ast
import re
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from eldistill.commands import cite
from eldistill.errors import Problem
from eldistill.evaluate import metrics
from eldistill.paths import PACKAGE
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.registry import available, spaces
from eldistill.tables import citations
from tests.conftest import ROOT

PLAN = Plan(params.load_params(ROOT / "params.yaml"))
READERS = sorted(path.stem for path in (PACKAGE / "data/readers").glob("[a-z]*.py"))
TABLES = {
    "METHODS": available("methods"),
    "SUPPLEMENTS": available("supplements"),
    "SOURCES": READERS,
    "NETWORKS": available("networks"),
    "METRICS": [*metrics.METRICS, *metrics.ALONE, *metrics.LABELLED, *available("metrics"), "fid"],
}


def arxiv(entry: citations.Entry) -> set[str]:
    """The arXiv numbers of an entry."""
    return set() if isinstance(entry, str) else {citations.papers()[key]["arxiv"] for key in entry}


# --- the table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_all_that_is_registered_has_papers_or_a_reason(table):
    """A new file in methods/, supplements/, networks/ or data/readers/, or a new metric, needs a line, and no line outlives its file."""
    odd = set(TABLES[table]) ^ set(getattr(citations, table))
    assert not odd, (
        f"give {', '.join(sorted(odd))} a line in {table} of tables/citations.py (a paper is a row of citations.csv), or remove it"
    )


@pytest.mark.parametrize("name", sorted(spaces()))
def test_every_feature_space_has_papers_or_a_reason(name):
    entry = citations.of_space(name)
    assert not isinstance(entry, str) or name.startswith(("judge-", "pixels"))


@pytest.mark.parametrize("name", sorted(PLAN.params.named("data")))
def test_every_data_setting_has_papers_or_a_reason(name):
    """Those of the papers have some; the drawn faces are in LICENSES.md."""
    entry = citations.of_data(PLAN.params.section("data", name))
    assert not isinstance(entry, str) or name.startswith("avatars"), f"data/{name}: {entry}"


def test_an_entry_is_keys_of_the_table_or_a_sentence_and_every_paper_is_used():
    tables = [citations.METHODS, citations.LEVELS, citations.SUPPLEMENTS, citations.SOURCES, citations.FILES, citations.COUNTS,
              citations.NETWORKS, citations.SPACES, citations.METRICS, citations.PIXELS, citations.GUIDANCE]  # fmt: skip
    entries = [entry for table in tables for entry in table.values()]
    used = {"eldistill", "zhang2018lpips"}
    for entry in entries:
        if isinstance(entry, str):
            assert re.fullmatch(r"none: .{10,}", entry)
        else:
            assert entry and set(entry) <= set(citations.papers())
            used |= set(entry)
    assert used == set(citations.papers())


def cited(file: str) -> set[str]:
    """The arXiv numbers in the first paragraph of the docstring of src/eldistill/<file>.py."""
    text = ast.get_docstring(ast.parse((PACKAGE / f"{file}.py").read_text(encoding="utf-8"))) or ""
    return set(re.findall(r"arXiv (\d{4}\.\d{4,5})", text.split("\n\n")[0]))


@pytest.mark.parametrize("file", [f"methods/{name}" for name in available("methods")]
                         + [f"supplements/{name}" for name in available("supplements")]
                         + [f"spaces/{name}" for name in sorted(set(spaces().values()))])  # fmt: skip
def test_the_papers_of_a_file_are_those_that_it_names_itself(file):
    """The numbers in its docstring are in its entry, and a file of a paper names one."""
    kind, name = file.split("/")
    if kind == "spaces":
        entries = [citations.of_space(space) for space, each in spaces().items() if each == name]
    else:
        entries = [(citations.METHODS if kind == "methods" else citations.SUPPLEMENTS)[name]]
    found = set().union(*map(arxiv, entries))
    if name == "consistency":
        found |= set().union(*map(arxiv, citations.LEVELS.values()))
    assert cited(file) <= found and (cited(file) or not found or kind == "spaces")


def test_the_package_and_its_papers_agree_with_the_citation_file():
    """Titles, authors, years and numbers of CITATION.cff are those of the table."""
    text = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    rows = {row["title"]: row for row in citations.papers().values()}
    assert citations.papers()["eldistill"]["title"].startswith(text["title"])
    for each in text["references"]:
        row = rows[each["title"]]
        names = [f"{author['family-names']}, {author['given-names']}" for author in each["authors"]]
        assert row["authors"].split(" and ") == names and row["year"] == str(each["year"])
        assert f"arXiv:{row['arxiv']}" in [identifier["value"] for identifier in each["identifiers"]]


# --- runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "there", "absent"),
    [
        ("digits/dmd/el/0", "ying2026embedding yin2024dmd alpaydin1998digits karras2022edm song2021score", "gretton2012kernel zhou2024sid"),
        ("digits/dmd/pixel-mmd/0", "gretton2012kernel yin2024dmd", "ying2026embedding"),
        ("digits/dmd/regression+el/0", "ying2026embedding yin2024dmd", "zhang2018lpips"),
        ("digits/cd/none/0", "song2023consistency", "song2024improved geng2025ect ying2026embedding"),
        ("digits/ict/none/0", "song2023consistency song2024improved", "geng2025ect"),
        ("digits/ect/none/0", "song2023consistency geng2025ect", "song2024improved"),
        ("digits/sid2a/el/0", "zhou2024sid zhou2025sida", "luo2023diffinstruct"),
        ("cifar10/sid/none/0", "krizhevsky2009cifar szegedy2016inception heusel2017fid", "alpaydin1998digits dhariwal2021adm"),
        ("imagenet64/sid/none/0", "deng2009imagenet dhariwal2021adm", "karras2024edm2 krizhevsky2009cifar"),
        ("imagenet512-s/sid/none/0", "deng2009imagenet karras2024edm2 rombach2022latent", "dhariwal2021adm"),
    ],
)  # fmt: skip
def test_a_run_cites_what_it_uses_and_nothing_else(run, there, absent):
    keys = citations.of_runs(PLAN, [run])
    assert keys[0] == "eldistill" and len(set(keys)) == len(keys)
    assert set(there.split()) <= set(keys) and not set(absent.split()) & set(keys)


def test_a_suite_cites_the_union_of_its_runs_in_the_order_of_the_table():
    runs = [str(run) for run in PLAN.params.runs("demo")]
    together = citations.of_runs(PLAN, runs)
    assert set(together) == set().union(*(citations.of_runs(PLAN, [run]) for run in runs))
    assert together == [key for key in citations.papers() if key in together]


def test_a_plug_in_of_a_user_is_no_error():
    """Its entry says that it has none."""
    assert "no entry in tables/citations.py" in citations.of_method({"file": "mine"})
    assert "no entry" in citations.of_supplement({"file": "mine"}) and "no entry" in citations.of_space("mine")
    assert "no entry" in citations.of_data({"source": "mine"}) and "no entry" in citations.of_network(
        {"network": {"network": "mine"}}
    )
    assert citations.keys_of(["none: a reason"]) == ["eldistill"]


# --- text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", citations.papers())
def test_an_entry_is_bibtex(key):
    """Braces are balanced, fields are unique, the authors are `Family, Given` joined by `and`, and the paper can be found."""
    text, row = citations.bibtex([key]), citations.papers()[key]
    assert text.startswith("@") and text.count("{") == text.count("}") and text.endswith("}\n")
    fields = re.findall(r"^  (\w+) = \{(.+)\},$", text, re.M)
    assert len(fields) == text.count("\n") - 2 and len(dict(fields)) == len(fields)
    assert re.fullmatch(r"[a-z]+\d{4}[a-z0-9]*|eldistill", key) and key == "eldistill" or row["year"] in key
    assert key == "eldistill" or all(re.fullmatch(r"[^,]+, [^,]+", name) for name in row["authors"].split(" and "))
    assert not row["arxiv"] or re.fullmatch(r"\d{4}\.\d{4,5}", row["arxiv"])
    assert row["arxiv"] or row["doi"] or row["where"] or key == "eldistill"


def test_numbers_and_titles_are_unique():
    for column in ("arxiv", "doi", "title"):
        found = [row[column] for row in citations.papers().values() if row[column]]
        assert len(set(found)) == len(found)


def test_the_block_of_the_page_is_folded_escaped_and_complete():
    keys = citations.of_runs(PLAN, ["digits/dmd/el/0"])
    text = citations.section(keys)
    assert text.startswith("<details id=") and text.count("<li>") == len(keys) and "http" not in text
    assert all(f"{{{key}," in text for key in keys) and not citations.section([])


def test_the_command_prints_or_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines: list[str] = []
    cite.command(Namespace(name="digits/di/el/0", out=None), lines.append)
    assert "luo2023diffinstruct" in lines[0] and "eprint = {2604.22379}" in lines[0]
    cite.command(Namespace(name="bench", out=str(tmp_path / "a.bib")), lines.append)
    assert "zhou2025sida" in (tmp_path / "a.bib").read_text(encoding="utf-8") and lines[-1].startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dem", "did you mean demo\\? Expected one of"),
        ("x" * 300, "neither a suite"),
        ("digits/nothing/el/0", "nothing"),
        ("a/b", "is not a run"),
    ],
)
def test_what_is_neither_a_run_nor_a_suite_is_one_sentence(name, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(Problem, match=words) as found:
        cite.command(Namespace(name=name, out="never.bib"), print)
    assert "\n" not in str(found.value) and not Path("never.bib").exists()
