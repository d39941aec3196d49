# SPDX-License-Identifier: Apache-2.0
"""Teachers that others trained, through the steps of the workflow: from their file to a generator."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from eldistill import __main__, files, networks
from eldistill.errors import Problem
from eldistill.plan import params, sizes
from eldistill.plan.plan import Plan
from eldistill.sampling import generators as sampling
from eldistill.sampling import teachers
from eldistill.teacher import edm
from eldistill.tensors import load_tensors
from tests import conftest, official
from tests.conftest import ROOT
from tests.distil import test_distil

made = test_distil.made  # the fixture
KWARGS = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [], "dropout": 0.13,
          "use_fp16": False, "img_resolution": 8, "img_channels": 1, "label_dim": 0}  # fmt: skip
RUN = "theirs/di/el/0"


def network(seed: int = 0, **changes):
    kwargs = KWARGS | changes
    settings = {key: value for key, value in kwargs.items() if key not in edm.UNUSED}
    return networks.build({"network": "song", **settings}, seed).eval().requires_grad_(False), kwargs


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    """A project with the smoke data on [-1, 1] and a teacher from net.pkl."""
    shutil.copytree(made, tmp_path / "project", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "project")
    official.write(Path("net.pkl"), official.edm(*network()))
    values = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    values["data"]["theirs"] = {"like": "digits-smoke", "codec": {"mean": 0.5, "std": 0.25}, "teacher": "theirs"}
    values["teacher"]["theirs"] = {"data": "theirs", "file": "net.pkl"}
    Path("params.yaml").write_text(conftest.write_yaml(values), encoding="utf-8")
    return tmp_path / "project"


def change(**values) -> None:
    tree = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    tree["teacher"]["theirs"] |= values
    Path("params.yaml").write_text(conftest.write_yaml(tree), encoding="utf-8")


def refuses(capsys, *words: str) -> str:
    assert __main__.main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("eldistill: ") and error.count("\n") == 1
    return error


def test_from_a_published_pickle_to_a_generator(project, capsys):
    """The teacher is theirs to the bit; Diff-Instruct with the Embedding Loss starts from it."""
    assert __main__.main(["teacher", "theirs"]) == 0
    digest = files.sha256("net.pkl")
    assert f"net.pkl, sha256 {digest}, song for images of shape [1, 8, 8] and 0 classes" in capsys.readouterr().out
    loaded, about = teachers.load_denoiser("data/teachers/theirs/teacher.safetensors")
    theirs, kwargs = network()
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), theirs.state_dict().values(), strict=True)
    )
    assert about["source"]["kwargs"] == kwargs
    provenance = json.loads(Path("data/teachers/theirs/provenance.json").read_text())
    assert provenance["source"]["sha256"] == digest and provenance["command"].startswith("python -m eldistill")
    assert __main__.main(["ensemble", "theirs/conv4/0"]) == 0
    assert __main__.main(["distil", RUN]) == 0
    start = load_tensors(f"data/runs/{RUN}/ema-0.safetensors")[0]
    assert all(torch.equal(start[name], value) for name, value in theirs.state_dict().items())
    assert sampling.sample(sampling.load_generator(f"data/runs/{RUN}/generator_ema.safetensors"), 3).shape == (
        3,
        1,
        8,
        8,
    )
    assert __main__.main(["teacher", "theirs"]) == 0 and "is up to date" in capsys.readouterr().out


def test_from_a_teacher_of_ours(project):
    """A teacher.safetensors of another project is taken over, and remembers where it came from."""
    assert __main__.main(["teacher", "theirs"]) == 0
    shutil.copy("data/teachers/theirs/teacher.safetensors", "other.safetensors")
    before = load_tensors("other.safetensors")
    change(file="other.safetensors", sha256=files.sha256("other.safetensors"))
    assert __main__.main(["teacher", "theirs"]) == 0
    after = load_tensors("data/teachers/theirs/teacher.safetensors")
    assert after[1] == before[1] and all(torch.equal(after[0][key], before[0][key]) for key in before[0])


def test_a_row_of_the_registry_is_fetched_or_taken_from_its_place(project, capsys, monkeypatch):
    """By its name; the same teacher whether it was fetched or lay there; an unknown digest is noted."""
    Path("mirror").mkdir()
    Path("net.pkl").rename("mirror/edm-ffhq-64x64-uncond-vp.pkl")
    monkeypatch.setenv("ELDISTILL_MIRROR", "mirror")
    monkeypatch.setenv("ELDISTILL_OFFLINE", "1")
    shutil.copy(ROOT / "data/sources.csv", "data/sources.csv")
    monkeypatch.setattr(sizes, "row_facts", lambda row: {})  # the file is a stand-in for images of another size
    change(file=None, source="edm-ffhq-64x64-uncond-vp")
    assert __main__.main(["teacher", "theirs"]) == 0
    digest = files.sha256("mirror/edm-ffhq-64x64-uncond-vp.pkl")
    assert f"sha256 {digest} is trusted from now on" in capsys.readouterr().out
    _, about = teachers.load_denoiser("data/teachers/theirs/teacher.safetensors")
    assert about["source"]["licence"] == "CC BY-NC-SA 4.0"
    recipe = Path("data/teachers/theirs/teacher.safetensors.recipe").read_text()
    change(file="mirror/edm-ffhq-64x64-uncond-vp.pkl")
    assert __main__.main(["teacher", "theirs"]) == 0 and "up to date" in capsys.readouterr().out
    assert __main__.main(["teacher", "theirs", "--force"]) == 0
    assert Path("data/teachers/theirs/teacher.safetensors.recipe").read_text() == recipe
    official.write(Path("mirror/edm-ffhq-64x64-uncond-vp.pkl"), official.edm(*network(seed=1)))
    assert f"expected {digest[:16]}" in refuses(capsys, "teacher", "theirs", "--force")
    change(file=None, source="edm-ffhq-64x64-uncond")
    assert "it has edm-ffhq-64x64-uncond-vp, " in refuses(capsys, "teacher", "theirs")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"file": "no.pkl"}, "no.pkl is missing; give the path of a network file"),
        ({"file": "no.safetensors"}, "no.safetensors"),
        ({"file": "params.yaml"}, "params.yaml is no network file of EDM or EDM2"),
        ({"sha256": "0" * 64}, "expected 0000000000000000…: fetch it again"),
        (
            {"network": {"network": "song"}},
            "params.yaml: teacher.theirs has a network and a source or a file; give one of `network`, `source` and `file`",
        ),
    ],
)
def test_a_file_that_is_not_one_is_one_sentence(project, capsys, values, sentence):
    change(**values)
    assert sentence in refuses(capsys, "teacher", "theirs")
    assert not Path("data/teachers/theirs/teacher.safetensors").exists()


def test_what_does_not_go_with_its_data_is_one_sentence(project, capsys):
    """Classes and pixels; before anything is written."""
    official.write(Path("net.pkl"), official.edm(*network(label_dim=10)))
    assert "net.pkl has 10 classes, but its data setting has labels: false; set labels to true" in refuses(
        capsys, "teacher", "theirs"
    )
    official.write(Path("net.pkl"), official.edm(*network()))
    tree = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    tree["data"]["theirs"]["codec"] = {"mean": 0.3, "std": 0.3}
    Path("params.yaml").write_text(conftest.write_yaml(tree), encoding="utf-8")
    assert "net.pkl was trained on pixels on [-1, 1]" in refuses(capsys, "teacher", "theirs")
    assert not Path("data/teachers/theirs").exists() or not list(Path("data/teachers/theirs").iterdir())


def test_a_teacher_needs_a_network_or_a_file():
    values = conftest.shipped()
    values["teacher"]["empty"] = {"data": "digits"}
    with pytest.raises(
        Problem, match=r"teacher\.empty has neither a network to train nor a source or a file; give one of"
    ):
        params.from_values(values, ROOT)


def test_another_file_or_digest_is_another_teacher():
    """The recipe has the path and the digest that was asked for; a trained teacher's recipe knows neither key."""
    values = conftest.shipped()
    found = []
    for section in ({"file": "a.pkl"}, {"file": "b.pkl"}, {"file": "a.pkl", "sha256": "0" * 64}):
        values["teacher"]["theirs"] = {"data": "cifar10"} | section
        found.append(Plan(params.from_values(values, ROOT)).teacher("theirs"))
    assert len({step.digest for step in found}) == 3
    versions = set(json.loads(found[0].recipe)["versions"])
    assert {"teacher/convert", "teacher/pickles", "networks/song", "networks/adm", "networks/edm2"} <= versions
    values["teacher"]["theirs"] = {"data": "cifar10", "source": "edm-cifar10-32x32-uncond-vp"}
    recipe = Plan(params.from_values(values, ROOT)).teacher("theirs").recipe
    versions = set(json.loads(recipe)["versions"])  # a row names its kind: another kind's reader retires nothing of it
    assert {"teacher/pickles", "networks/song"} <= versions and not {"teacher/states", "networks/ddpm"} & versions
    values["teacher"]["theirs"]["file"] = "elsewhere.pkl"
    assert Plan(params.from_values(values, ROOT)).teacher("theirs").recipe == recipe
    assert not {"file", "sha256", "source"} & set(Plan(params.from_values(values, ROOT)).teacher("digits").params)
