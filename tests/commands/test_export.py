# SPDX-License-Identifier: Apache-2.0
"""An exported network is a package of its own: it needs nothing of this project, and computes the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from eldistill import files
from eldistill.commands import card, export
from eldistill.commands.loader import LOADER
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


# --- the loader and the card ---------------------------------------------------------------------------


def exported(
    folder: Path, label_dim: int = 0, names: tuple[str, ...] = (), steps: dict | None = None, channels: int = 1
) -> dict:
    """A folder with load.py and what it reads, for a small network; returns its config."""
    net = conftest.teacher(label_dim)
    about = {"config": net.config, "codec": {"mean": 0.5, "std": 0.25}, "shape": [channels, 8, 8], "label_dim": label_dim,
             "class_names": list(names), "sampler": {"steps": steps or {"1": [2.5]}, "boundary": 0.0}}  # fmt: skip
    for path, text in export.source_files("song").items():
        files.write_text(folder / path, text)
    files.write_text(folder / "load.py", LOADER)
    files.write_json(folder / "config.json", about)
    save_file(net.state_dict(), folder / "generator_ema.safetensors")
    return about


def load_py(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "load.py", *words], cwd=folder, capture_output=True, text=True, env={}
    )


def test_the_loader_takes_labels_and_steps_and_writes_a_png(tmp_path):
    exported(tmp_path, 3, ("ant", "bee", "cat"), {"1": [2.5], "2": [2.5, 0.5]})
    for words in (["9", "a.pt"], ["9", "a.png"], ["9", "bee.pt", "--label", "bee"], ["9", "one.pt", "--label", "1"],
                  ["9", "two.pt", "--label", "1", "--steps", "2"], ["9", "seed.pt", "--label", "1", "--seed", "1"]):  # fmt: skip
        done = load_py(tmp_path, *words)
        assert done.returncode == 0, done.stderr[-1500:]
    tensors = {path.stem: torch.load(path) for path in tmp_path.glob("*.pt")}
    with Image.open(tmp_path / "a.png") as picture:
        seen = torch.from_numpy(numpy.array(picture))
    assert torch.equal(seen, tensors["a"][:, 0].reshape(3, 3, 8, 8).permute(0, 2, 1, 3).reshape(24, 24))
    assert torch.equal(tensors["bee"], tensors["one"])
    assert len({tensors[name].numpy().tobytes() for name in ("one", "two", "seed")}) == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["0", "a.png"], "n is 0; expected 1 or more"),
        (["1000000000000", "a.png"], "n is 1000000000000; expected at most 100000"),
        (["1", "a.png", "--steps", "4"], "steps is 4; expected 1"),
        (["1", "a.png", "--label", "dog"], "expected one of ant, bee, or a number from 0 to 1"),
        (["1", "a.png", "--label", "2"], "a number from 0 to 1"),
    ],
)
def test_what_the_loader_cannot_do_is_one_sentence(tmp_path, words, sentence):
    exported(tmp_path, 2, ("ant", "bee"))
    done = load_py(tmp_path, *words)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "a.png").exists()


LINEAGE = {
    "method": "di", "teacher_sha256": "0" * 64, "git_commit": "1" * 40,
    "params": {"data": {"labels": True}, "method": {"file": "diff_instruct", "batch": 64, "generator": {"lr": 0.001}},
               "supplements": {"el": {"file": "embedding", "ensemble": "conv4", "kernel": "rbf", "weight": 0.7}}},
}  # fmt: skip
ABOUT = {
    "shape": [1, 8, 8], "label_dim": 2, "class_names": ["ant", "bee"], "n_images": 640, "recipe": "2" * 64, "lineage": LINEAGE,
    "codec": {"mean": 0.5, "std": 0.25}, "sampler": {"steps": {"1": [80], "2": [80, 0.8]}}, "config": {"network": "song"},
}  # fmt: skip


def test_the_card_names_the_embedding_loss_its_settings_classes_steps_and_papers():
    ensembles = {"el": {"members": [{"family": "conv", "norm": "group", "count": 2}], "redraw": 0}}
    papers = ["ying2026embedding", "luo2023diffinstruct", "karras2022edm"]
    text = card.model_card("mine/di/el/0", ABOUT, {"fd5k_judge-a_heldout": 1.5}, {}, ensembles, papers)
    for words in ("with the Embedding Loss (`el`)", "kernel: rbf", "weight: 0.7", "2 × conv (norm: group)", "0 ant, 1 bee",
                  "--label ant", "--steps 2", "2 steps from noise levels 80, 0.8", "2604.22379", "2305.18455", "2206.00364",
                  "@inproceedings{karras2022edm,", "lr: 0.001", "| `fd5k_judge-a_heldout` | 1.5 |"):  # fmt: skip
        assert words in text, f"{words!r} is not in the card"


def test_the_card_of_a_run_without_el_does_not_cite_it_and_one_without_metrics_says_so():
    plain = {**ABOUT, "label_dim": 0, "lineage": {**LINEAGE, "params": {**LINEAGE["params"], "supplements": {}}}}
    text = card.model_card("mine/di/none/0", plain, {}, {})
    assert "without a supplement" in text and "2604.22379" not in text and "--label" not in text
    assert (
        "This run was not evaluated" in text
        and "`python -m eldistill evaluate mine/di/none/0`" in text
        and "| metric |" not in text
    )


def test_the_card_counts_the_images_of_the_run_that_a_generator_starts_from():
    assert "640 generated images)" in card.model_card("mine/di/el/0", ABOUT, {}, {})
    assert "640 generated images)" in card.model_card("mine/di/el/0", ABOUT | {"n_images_before": 0}, {}, {})
    longer = card.model_card("mine/di/el/0", ABOUT | {"n_images_before": 12800}, {}, {})
    assert "640 generated images, after 12,800 of the runs that it starts from)" in longer
