# SPDX-License-Identifier: Apache-2.0
"""Benchmark of planning: `snakemake -n` with 200 and 2,000 jobs, `dvc repro` with nothing to do, and `dvc metrics diff`.

    python benchmarks/plan.py [--times 3]

Runs in a clone of the tracked files, after it has made the suite smoke. Prints Markdown, and writes benchmarks/plan.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.slurm import cluster  # noqa: E402

TARGETS = {
    "snakemake -n, 200 jobs": 5,
    "snakemake -n, 2,000 jobs": 10,
    "dvc repro, nothing to do": 5,
    "dvc metrics diff": 3,
}


def main() -> None:
    """Measure, print the table and write the JSON file."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--times", type=int, default=3)
    times = options.parse_args().times
    with tempfile.TemporaryDirectory() as folder:
        there = cluster.clone(Path(folder) / "project")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(there / "src"), "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1",
                                    "DVC_SITE_CACHE_DIR": f"{folder}/site", "HOME": folder}  # fmt: skip
        environment |= {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def run(*words: str) -> tuple[float, str]:
            began = time.perf_counter()
            done = subprocess.run(words, cwd=there, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            return time.perf_counter() - began, done.stdout

        def measured(name: str, *words: str) -> float:
            found = statistics.median(run(*words)[0] for _ in range(times))
            print(f"{name}: {found:.1f} s", flush=True)
            return found

        text = (there / "params.yaml").read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        for jobs in (200, 2000):  # a run has three jobs: its ensemble, its training and its evaluation
            grid = {"data": ["digits-smoke"], "methods": ["di"], "supplements": ["el"], "seeds": list(range(jobs // 3))}
            values["suites"][f"plan-{jobs}"] = [grid]
        (there / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        found = {}
        for jobs, name in ((200, "snakemake -n, 200 jobs"), (2000, "snakemake -n, 2,000 jobs")):
            run("snakemake", "-n", "--quiet", "all", "--config", f"suite=plan-{jobs}")  # writes the recipes
            found[name] = measured(name, "snakemake", "-n", "--quiet", "all", "--config", f"suite=plan-{jobs}")
        (there / "params.yaml").write_text(text.replace("suite: demo", "suite: smoke", 1), encoding="utf-8")
        (there / "dvc.lock").unlink(missing_ok=True)
        run("snakemake", "all", "--cores", "2")
        run("dvc", "repro")
        run("git", "add", "-A"), run("git", "commit", "-qm", "results")
        found["dvc repro, nothing to do"] = measured("dvc repro, nothing to do", "dvc", "repro")
        found["dvc metrics diff"] = measured("dvc metrics diff", "dvc", "metrics", "diff", "HEAD~1")
    print("\n| what | seconds | target |\n| --- | ---: | ---: |")
    for name, seconds in found.items():
        print(f"| {name} | {seconds:.1f} | {TARGETS[name]} |")
    (ROOT / "benchmarks/plan.json").write_text(json.dumps({"seconds": found, "targets": TARGETS}, indent=1) + "\n")


if __name__ == "__main__":
    main()
