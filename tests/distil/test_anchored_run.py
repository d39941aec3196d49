# SPDX-License-Identifier: Apache-2.0
"""A run with EL against all real images, from params.yaml to the log."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from eldistill import __main__
from tests import conftest
from tests.distil import test_distil

made, project = test_distil.made, test_distil.project  # fixtures
DATA = test_distil.DATA


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_a_run_against_all_real_images(project, kernel):
    """It makes a generator, and its log has EL, its weight and the ratio of spreads, as with real images."""
    tree = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    tree["ensemble"]["all"] = {"like": "conv4", "anchor": True, "landmarks": 8}
    tree["distil"]["supplements"]["el-all"] = {
        "like": "el", "ensemble": "all", "kernel": kernel, "anchored": True, "diagnose": 1
    }  # fmt: skip
    Path("params.yaml").write_text(conftest.write_yaml(tree), encoding="utf-8")
    assert __main__.main(["ensemble", f"{DATA}/all/0"]) == 0
    test_distil.run("di/el-all/0")
    with open(f"data/runs/{DATA}/di/el-all/0/log.csv", encoding="utf-8") as log:
        rows = list(csv.DictReader(log))
    assert rows and all(
        math.isfinite(float(row[f"el-all.{name}"])) for row in rows for name in ("mmd2", "weight", "trace_ratio")
    )
    assert float(rows[0]["el-all.mmd2"]) > 0 and 0 < float(rows[0]["el-all.trace_ratio"]) < 10
