# SPDX-License-Identifier: Apache-2.0
"""An exported network is a package of its own: it needs nothing of this project, and computes the same."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from eldistill import files
from eldistill.commands import export
from eldistill.registry import available
from tests import conftest

NETWORKS = sorted(
    set(available("networks")) - {"classifier", "ddpm"}
)  # a judge's; one of diffusers, which cannot be exported
SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, ".")
from eldistill import networks
assert networks.__file__.startswith(sys.argv[1])
saved = torch.load("saved.pt")
net = networks.build(saved["config"])
net.load_state_dict(saved["state"])
with torch.no_grad():
    torch.save(net.eval()(saved["x"], 0.7), "found.pt")
"""


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_network_stands_alone(name, tmp_path):
    """Every network that can be exported: built from its files alone it gives the same image, to the bit."""
    net, x = conftest.teacher(network=name), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for path, text in export.source_files(name).items():
        files.write_text(tmp_path / path, text)
    torch.save({"config": net.config, "state": net.state_dict(), "x": x}, tmp_path / "saved.pt")
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "found.pt"), net(x, 0.7))
