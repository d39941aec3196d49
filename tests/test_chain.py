# SPDX-License-Identifier: Apache-2.0
"""The six steps of a suite by their commands, in one process: from data to tables, and what a changed number makes again."""

from __future__ import annotations

import json
from pathlib import Path

from eldistill import __main__
from eldistill.plan import freshness, params
from eldistill.plan.plan import Plan
from tests.project import digests, tracked


def stale() -> set[str]:
    """What a driver would make, by the recipes."""
    plan = Plan(params.load_params())
    return {f"{step.word} {step.name}" for step in freshness.refresh(plan.suite("smoke").values())}


def test_from_data_to_tables_and_again_where_a_number_changed(tmp_path, monkeypatch, capsys):
    """Every step runs, leaves its files and is fresh; one number of EL makes EL's run again and nothing else; put back, it
    gives the first weights to the bit."""
    project = tracked(tmp_path / "project")
    monkeypatch.chdir(project.path)

    def run() -> None:
        for word, name in Plan(params.load_params()).suite("smoke"):
            assert __main__.main([word, name]) == 0, (word, name, capsys.readouterr().err)

    run()
    assert stale() == set()
    assert {Path(file).name for file in project.path.glob("data/tables/smoke/*")} > {
        "main.md",
        "main.csv",
        "report.html",
    }
    assert "di/el" in Path("data/tables/smoke/main.md").read_text(encoding="utf-8")
    metrics = json.loads(Path("data/metrics.json").read_text(encoding="utf-8"))["digits-smoke"]["di"]
    assert set(metrics) == {"none", "el"} and metrics["none"] != metrics["el"]
    first = digests(project, "data/runs/**/*.safetensors")

    project.edit("distil", "supplements", "el", "weight", value=0.5)
    again = {f"{word} digits-smoke/di/el/0" for word in ("distil", "evaluate")} | {
        "evaluate suite/smoke",
        "tables smoke",
    }
    assert stale() == again
    run()
    second = digests(project, "data/runs/**/*.safetensors")
    assert {name.split("/")[4] for name in first if first[name] != second[name]} == {"el"}

    project.edit("distil", "supplements", "el", "weight", value=0.7)
    assert stale() == again
    run()
    assert digests(project, "data/runs/**/*.safetensors") == first
