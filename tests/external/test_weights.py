# SPDX-License-Identifier: Apache-2.0
"""Weights of a file are checked against its description before they are used, whatever reads them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eldistill import files, networks
from eldistill.data import latents
from eldistill.errors import Problem
from eldistill.external import weights
from eldistill.losses import perceptual
from eldistill.sampling import generators as sampling
from eldistill.sampling import teachers
from eldistill.spaces import inception, judges
from eldistill.teacher import convert
from eldistill.tensors import save_tensors
from eldistill.training import state
from tests import official
from tests.spaces.test_inception import net, wrapped  # noqa: F401  (the fixture)

SONG = {"network": "song", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
        "img_resolution": 8, "img_channels": 1}  # fmt: skip
CODEC = {"mean": 0.5, "std": 0.25}
NAME = "model.enc.8x8_conv.weight"  # of a tensor of the first two


def teacher() -> tuple[dict, dict]:
    """Tensors and description of a file of that kind."""
    network = networks.build(SONG, 0)
    return network.state_dict(), {"config": network.config, "codec": CODEC, "shape": [1, 8, 8], "label_dim": 0}


def generator() -> tuple[dict, dict]:
    tensors, about = teacher()
    return tensors, about | {"sampler": {"steps": {"1": [2.5]}}}


def judge() -> tuple[dict, dict]:
    config = {"network": "classifier", "body": "conv", "img_resolution": 8, "img_channels": 1, "label_dim": 3}
    network = networks.build(config, 0)
    return network.state_dict(), {"config": network.config, "codec": CODEC, "rotations": False}


def adopted(path: Path):
    """As a teacher of another project."""
    convert.convert_teacher({"file": str(path), "codec": CODEC, "labels": False}, path.with_name("adopted.safetensors"))


def loaded(path: Path):
    return judges.load_space("judge-a", "cpu", path)


KINDS = {"teacher": (teacher, teachers.load_denoiser), "generator": (generator, sampling.load_generator), "judge": (judge, loaded),
         "adopted": (teacher, adopted)}  # fmt: skip


def first(tensors: dict) -> str:
    return next(name for name, each in tensors.items() if each.ndim == 4)


def put(**changes):
    """A damage: tensors by name, None to remove; `at` stands for a weight."""

    def damage(tensors: dict, about: dict) -> None:
        for name, change in changes.items():
            name = first(tensors) if name == "at" else name
            if change is None:
                del tensors[name]
            else:
                tensors[name] = change(tensors.get(name))

    return damage


def say(**changes):
    """A damage of the description."""
    return lambda tensors, about: about.update(changes)


def configured(**changes):
    return lambda tensors, about: about.update(config=about["config"] | changes)


def holed(value: float):
    def damage(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return damage


DAMAGES = {
    "a NaN": (put(at=holed(math.nan)), "with a NaN or an infinity; expected .* of finite floats"),
    "an infinity": (put(at=holed(math.inf)), "with a NaN or an infinity"),
    "whole numbers": (put(at=lambda each: each.to(torch.int32)), "int32; expected .* of finite floats"),
    "truth values": (put(at=lambda each: each > 0), "bool; expected .* of finite floats"),
    "another shape": (put(at=lambda each: each[:1].clone()), r"expected \[.*\] of finite floats"),
    "the same numbers in another shape": (put(at=lambda each: each.flatten()), r"expected \[.*\] of finite floats"),
    "one that lacks": (put(at=None), "its description asks for"),
    "one too many": (put(more=lambda each: torch.ones(1)), "the first other one is 'more'"),
    "another resolution": (configured(img_resolution=12), "expected|asks for|says that its shape"),
    "a network that is none": (configured(network="none"), "describes no network"),
    "a description that is none": (say(config=[1]), "has no configuration of a network"),
    "a million blocks": (configured(num_blocks=10**6, body=10**9), "with more layers than it has tensors"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_disagrees_with_its_description_is_one_sentence(tmp_path, kind, damage):
    make, read = KINDS[kind]
    tensors, about = make()
    save_tensors(tmp_path / "net.safetensors", tensors, about)
    read(tmp_path / "net.safetensors")
    change, sentence = DAMAGES[damage]
    change(tensors, about)
    save_tensors(tmp_path / "net.safetensors", tensors, about)
    (tmp_path / "adopted.safetensors").unlink(missing_ok=True)
    with pytest.raises(Problem, match=sentence) as caught:
        read(tmp_path / "net.safetensors")
    assert "\n" not in str(caught.value) and "net.safetensors" in str(caught.value)
    assert not (tmp_path / "adopted.safetensors").exists()


@pytest.mark.parametrize("key", ["shape", "label_dim"])
@pytest.mark.parametrize("kind", ["teacher", "generator", "adopted"])
def test_a_description_that_contradicts_itself_is_one_sentence(tmp_path, kind, key):
    make, read = KINDS[kind]
    tensors, about = make()
    save_tensors(tmp_path / "net.safetensors", tensors, about | {key: {"shape": [3, 8, 8], "label_dim": 7}[key]})
    with pytest.raises(Problem, match=f"says that its {key} is"):
        read(tmp_path / "net.safetensors")


def test_a_generator_is_no_teacher_and_a_judge_is_none_either(tmp_path):
    for make, sentence in ((generator, "is a one-step generator"), (judge, "its description has no shape")):
        save_tensors(tmp_path / "net.safetensors", *make())
        with pytest.raises(Problem, match=sentence):
            teachers.load_denoiser(tmp_path / "net.safetensors")


@pytest.mark.parametrize("text", ["{", "[1]", "1", "[" * 100_000])
def test_a_description_that_is_no_mapping_is_one_sentence(tmp_path, text):
    save_file(teacher()[0], tmp_path / "net.safetensors", metadata={"eldistill": text})
    with pytest.raises(Problem, match=r"net\.safetensors (is damaged|has a description that is no mapping)"):
        teachers.load_denoiser(tmp_path / "net.safetensors")


def test_half_precision_is_not_damage(tmp_path):
    """Teachers of EDM2 stay in float16; the largest numbers of it may have an infinite sum."""
    tensors, about = teacher()
    half = {name: each.half() for name, each in tensors.items()}
    half[NAME] = torch.full_like(half[NAME], torch.finfo(torch.float16).max)
    save_tensors(tmp_path / "net.safetensors", half, about)
    loaded, _ = teachers.load_denoiser(tmp_path / "net.safetensors")
    assert loaded.state_dict()[NAME].dtype == torch.float32 and (loaded.state_dict()[NAME] == 65504).all()


def test_fault_names_the_first_of_several():
    wanted = {"a": torch.empty(2, device="meta"), "b": torch.empty(1, dtype=torch.int64, device="meta")}
    assert weights.find_fault({"a": torch.ones(2), "b": torch.ones(1, dtype=torch.int64)}, wanted) is None
    assert "'a'" in weights.find_fault({"a": torch.ones(2) * math.nan, "b": torch.ones(1)}, wanted)
    assert weights.find_fault({"a": torch.ones(2), "b": torch.ones(1)}, wanted).endswith("expected [1] of torch.int64")


@pytest.mark.parametrize("change", [holed(math.nan), lambda each: each[:1].clone(), lambda each: each.int()])
def test_a_saved_training(change):
    """Its networks, before it is continued."""
    network = networks.build(SONG, 0)
    optimisers = {"net": torch.optim.Adam(network.parameters())}
    flat = state.pack_tensors({"net": network}, optimisers)
    state.unpack_tensors(flat, {"net": network}, optimisers)
    flat[f"net/net/{NAME}"] = change(flat[f"net/net/{NAME}"])
    with pytest.raises(Problem, match=r"somewhere is damaged: its net has a 'model\.enc.*; delete that folder and run"):
        state.unpack_tensors(flat, {"net": network}, optimisers, Path("somewhere"))


# --- weights of others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["NaN", "whole numbers"])
def test_lpips(tmp_path, bad):
    tensors = {name: torch.zeros(shape) for name, shape in perceptual.weight_shapes().items()}
    tensors["lin4"] = tensors["lin4"] * math.nan if bad == "NaN" else tensors["lin4"].int()
    save_file(tensors, tmp_path / "lpips.safetensors")
    with pytest.raises(Problem, match=r"lpips\.safetensors has no lin4 of shape .* and finite floats"):
        perceptual.load_lpips(str(tmp_path / "lpips.safetensors"))


@pytest.mark.parametrize("bad", ["NaN", "whole numbers"])
def test_an_autoencoder(tmp_path, bad):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=2)
    vae.save_pretrained(tmp_path / "vae")
    state = vae.state_dict()
    name = next(iter(state))
    state[name] = state[name] * math.nan if bad == "NaN" else state[name].int()
    save_file(state, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    with pytest.raises(Problem, match="is no AutoencoderKL of the expected architecture .*of finite floats"):
        latents.load_autoencoder(str(tmp_path / "vae"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"_class_name": "VQModel"}, "its config.json describes a 'VQModel'"),
        ({"hook": 1}, "its config.json has 'hook', which no"),
    ],
)
def test_an_autoencoder_of_another_class_or_key(tmp_path, changes, sentence):
    """diffusers itself leaves unknown keys out with a warning."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=2).save_pretrained(
        tmp_path / "vae"
    )
    files.write_json(tmp_path / "vae/config.json", files.read_json(tmp_path / "vae/config.json") | changes)
    with pytest.raises(Problem, match=sentence):
        latents.load_autoencoder(str(tmp_path / "vae"))


def test_inception(tmp_path, net):  # noqa: F811
    net.layers.conv.weight.data[0, 0, 0, 0] = math.nan
    path = official.write(tmp_path / "inception.pkl", wrapped(net))
    net.layers.conv.weight.data[0, 0, 0, 0] = 0.0
    with pytest.raises(Problem, match="is not the Inception network of December 2015"):
        inception.load_network(path)
