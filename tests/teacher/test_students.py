# SPDX-License-Identifier: Apache-2.0
"""Every row of data/sources.csv that is a network: a file of the form that its row names is read as what it is.

None of the published files is here: official.py writes files of the same classes, keywords and names of tensors, with sizes
that fit into a test.
"""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest
import torch

from eldistill import __main__, networks
from eldistill.commands.check import codec_of
from eldistill.errors import Problem
from eldistill.external import pickles
from eldistill.networks import guided
from eldistill.sampling import generators as sampling
from eldistill.sampling import teachers
from eldistill.teacher import agree, convert, edm
from tests import official
from tests.conftest import GOLDEN, ROOT
from tests.networks import test_guided

with open(ROOT / "data/sources.csv", newline="", encoding="utf-8") as file:
    ROWS = {row["name"]: row for row in csv.DictReader(file) if row["kind"] in ("teacher", "student")}
FULL = json.loads((GOLDEN / "networks/official_state_shapes.json").read_text())
COMMON = {
    "model_channels": 16,
    "dropout": 0.1,
    "use_fp16": True,
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 0,
}
SONG = {"model_type": "SongUNet", "embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard",
        "channel_mult_noise": 1, "resample_filter": [1, 1], "channel_mult": [1, 2], "augment_dim": 9,
        "num_blocks": 1, **COMMON}  # fmt: skip
ADM = {"model_type": "DhariwalUNet", "channel_mult": [1, 2], "num_blocks": 1, **COMMON, "label_dim": 5}
EDM2 = {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 16, **COMMON, "label_dim": 5,
        "img_channels": 4}  # fmt: skip
SMALL = {
    "model_channels": 64,
    "channel_mult": [1],
    "num_blocks": 1,
    "label_dim": 5,
}  # a state that counts as published here


def classes(row: dict) -> tuple[str, str]:
    """The class of the whole and of its U-Net that a row names."""
    return re.match(r"(\w+) of (\w+), by the code that wrote it; never read here$", row["form"]).groups()


def network(kind: str, kwargs: dict, seed: int = 1, **more) -> torch.nn.Module:
    settings = {key: value for key, value in kwargs.items() if key not in edm.UNUSED}
    net = networks.build({"network": kind, **settings, **more}, seed).eval().requires_grad_(False)
    for parameter in net.parameters():  # those that start at zero too
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.1)
    return net


def write(path: Path, row: dict) -> torch.nn.Module:
    """A file of the row's form, and the network in it."""
    outer, inner = classes(row)
    if outer == "state":
        theirs = test_guided.state(mult=(1,), attend=(0,))
        test_guided.save(theirs, path)
        settings = guided.settings(theirs)
        net = networks.build({"network": "guided", **settings}).eval().requires_grad_(False)
        net.load_state_dict(guided.renamed(theirs, guided.Settings(**settings)))
        return net
    if outer == "weights":  # those of EDM's network alone, as DMD2 saves them
        net = network("adm", ADM | {"dropout": 0.0})
        torch.save(net.state_dict(), path)
        return net
    kind, kwargs = {"Song": ("song", SONG), "Dhar": ("adm", ADM), "UNet": ("edm2", EDM2)}[inner[:4]]
    net = network(kind, kwargs, **({"logvar_channels": 0} if outer == "EDM_2_Precond_Generator" else {}))
    writer = (
        official.student if inner.endswith("_EncoderDecoder") else official.edm2 if kind == "edm2" else official.edm
    )
    official.write(path, writer(net, kwargs))
    return net


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The published state of OpenAI's, but small."""
    monkeypatch.setattr(guided, "PUBLISHED", guided.PUBLISHED | SMALL)
    monkeypatch.setattr(guided, "PUBLISHED_LEVELS", [0])
    monkeypatch.setattr(guided, "PUBLISHED_GIVEN", {"img_resolution": 8, "num_head_channels": 64})


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_read_as_its_class_says(tmp_path, name):
    """The network that `check` measures gives the images of the one that was written, bit for bit, at the level that the row
    names; a teacher is adopted; a student is none, and says what it is."""
    row, path = ROWS[name], tmp_path / {"state": "net.pt", "weights": "net.bin"}.get(classes(ROWS[name])[0], "net.pkl")
    theirs = write(path, row)
    ours, constants = convert.load_published(path)
    assert [(key, each.shape) for key, each in ours.state_dict().items()] == [
        (key, each.shape) for key, each in theirs.state_dict().items()
    ]
    x = 2.5 * torch.randn(2, theirs.img_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.eye(5)[:2] if theirs.label_dim else None
    assert torch.equal(ours(x, 2.5, labels), theirs(x, 2.5, labels))
    codec = codec_of(name, constants, theirs.img_channels)
    section = {"source": name, "codec": codec, "labels": bool(theirs.label_dim)}
    if row["kind"] == "teacher":
        about = convert.convert_teacher(section, tmp_path / "teacher.safetensors", str(path))
        adopted, _ = teachers.load_denoiser(tmp_path / "teacher.safetensors")
        assert (
            torch.equal(adopted(x, 2.5, labels), theirs(x, 2.5, labels))
            and about["source"]["licence"] == row["licence"]
        )
        return
    with pytest.raises(Problem, match=f"{name} of data/sources.csv is of the kind student; expected a teacher"):
        convert.convert_teacher(section, tmp_path / "teacher.safetensors", str(path))
    about = {"shape": [*x.shape[1:]], "label_dim": theirs.label_dim, "codec": codec, "sampler": {"steps": {"1": [2.5]}}}
    images = sampling.sample(sampling.Generator(ours, about | {"codec": agree.PIXELS}), 2)
    assert images.shape == x.shape and images.dtype == torch.uint8
    if classes(row)[0] in edm.STUDENTS:
        with pytest.raises(Problem, match="a one-step generator of SiDA or SiD2A; expected a teacher"):
            convert.convert_teacher({**section, "source": None, "file": str(path)}, tmp_path / "teacher.safetensors")
    assert not (tmp_path / "teacher.safetensors").exists()


@pytest.mark.parametrize("name", [name for name in FULL if not name.endswith("uncond") or name.startswith("edm-")])
def test_a_student_has_the_tensors_of_the_network_it_started_from(name):
    """With the published keywords, at full size: SiDA's state is the plain network's, EDM2's without the uncertainty."""
    about = FULL[name]
    kwargs = about["init_kwargs"]
    if name.startswith("edm2"):
        found = pickles.Network("EDM_2_Precond_Generator", kwargs | {"use_gan": True, "force_normalization": True}, {},
                                {"": "EDM_2_Precond_Generator", "unet": "UNet_EncoderDecoder"})  # fmt: skip
    else:
        inner = f"{kwargs['model_type']}_EncoderDecoder"
        kwargs = {key: math.inf if value == "Infinity" else value for key, value in kwargs.items()}
        found = pickles.Network("EDMPrecond_EncoderDecoder", kwargs | {"model_type": inner}, {}, {"model": inner})
    outline = networks.outline(edm.read_configuration(found))
    wanted = [(key, tuple(shape)) for key, shape, *_ in about["tensors"] if not key.startswith("logvar")]
    assert [(key, tuple(each.shape)) for key, each in outline.state_dict().items()] == wanted
    assert not hasattr(outline, "logvar")


OUTER, INNER = "EDMPrecond_EncoderDecoder", "SongUNet_EncoderDecoder"


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("song", {"classes": (OUTER, "SongUNet")}, "a network 'EDMPrecond_EncoderDecoder' of a 'SongUNet'"),
        ("song", {"classes": ("EDMPrecond", INNER)}, "a network 'EDMPrecond' of a 'SongUNet_EncoderDecoder'"),
        ("song", {"classes": (OUTER, "UNet_EncoderDecoder")}, "a network 'EDMPrecond_EncoderDecoder' of a 'UNet_EncoderDecoder'"),
        ("song", {"kwargs": {"use_gan": True}}, "its keyword 'use_gan' is none of"),
        ("edm2", {"classes": ("EDM_2_Precond_EncoderDecoder", "UNet_EncoderDecoder")}, "a network 'EDM_2_Precond_EncoderDecoder'"),
        ("edm2", {"kwargs": {"use_gan": 1}}, "its use_gan is 1"),
        ("edm2", {"logvar": 8}, "its keywords need"),
    ],
)  # fmt: skip
def test_what_is_neither_is_refused(tmp_path, kind, changes, sentence):
    """By class and by keyword: the fake score of SiDA on EDM2 has an uncertainty, its generator has none."""
    kwargs = {"song": SONG, "edm2": EDM2}[kind]
    net = network(kind, kwargs, **({"logvar_channels": changes.get("logvar", 0)} if kind == "edm2" else {}))
    value = official.student(net, kwargs)
    if "classes" in changes:
        said = {"model_type": changes["classes"][1]} if kind == "song" else {}
        value["ema"] = official.root(net, kwargs | said, classes=changes["classes"])
    if "kwargs" in changes:
        value["ema"].meta["state"]["_init_kwargs"].update(changes["kwargs"])
    with pytest.raises(Problem, match=re.escape(sentence)) as caught:
        with pickles.read_network_file(official.write(tmp_path / "net.pkl", value)) as opened:
            edm.check_network(opened.network())
    assert "\n" not in str(caught.value)


def test_the_command_says_that_the_file_was_never_read(capsys):
    """Before it measures; a row's form is its classes."""
    assert __main__.main(["check", "sida-edm2-img512-xs", "--file", "no.pkl", "--n", "2"]) == 2
    printed = capsys.readouterr()
    assert "EDM_2_Precond_Generator of UNet_EncoderDecoder, by the code that wrote it; never read here" in printed.out
    assert "no.pkl is missing" in printed.err
