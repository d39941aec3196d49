# SPDX-License-Identifier: Apache-2.0
"""DDPM networks of diffusers: as denoisers they give what diffusers' own scheduler says, and they can be distilled."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eldistill import __main__, files, networks
from eldistill.errors import Problem
from eldistill.external import listing
from eldistill.networks import ddpm
from eldistill.sampling import generators as sampling
from eldistill.sampling import teachers
from eldistill.sampling.heun import heun
from eldistill.teacher import agree
from eldistill.teacher import ddpm as folders
from eldistill.tensors import load_tensors
from tests import conftest
from tests.distil import test_distil

diffusers = pytest.importorskip("diffusers")
made = test_distil.made  # the fixture
SMALL = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (16, 32), "layers_per_block": 1,
         "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
         "norm_num_groups": 8}  # fmt: skip
PREDICTIONS = ("epsilon", "v_prediction")


def write(folder: Path, seed: int = 0, schedule: dict | None = None, **changes):
    """A folder as their training script saves it, and its network."""
    torch.manual_seed(seed)
    unet = diffusers.UNet2DModel(**SMALL | changes).eval().requires_grad_(False)
    scheduler = diffusers.DDPMScheduler(**schedule or {})
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return unet, scheduler


def read(folder: Path, output: Path) -> torch.nn.Module:
    """Converted, and read as a teacher."""
    folders.convert_folder(folder, output)
    return teachers.load_denoiser(output)[0].requires_grad_(False).eval()


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "trained"])
def test_the_schedule_is_theirs(schedule):
    """sigma of every step from diffusers' own alphas."""
    if schedule == "trained":
        betas = torch.linspace(0.01, 0.3, 50).tolist()
        own, theirs = (
            {"trained_betas": betas, "num_train_timesteps": 50},
            diffusers.DDPMScheduler(50, trained_betas=betas),
        )
    else:
        own, theirs = {"beta_schedule": schedule}, diffusers.DDPMScheduler(beta_schedule=schedule)
    left = theirs.alphas_cumprod.double()
    found = ddpm.sigmas(ddpm.Settings(img_resolution=8, img_channels=1, **own))
    assert torch.allclose(found, ((1 - left) / left).sqrt(), rtol=2e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_the_denoised_image_is_what_their_scheduler_predicts(tmp_path, prediction, schedule):
    """D at the sigma of a step, against the original sample that diffusers computes from the network's output there."""
    unet, scheduler = write(
        tmp_path / "ddpm", schedule={"prediction_type": prediction, "beta_schedule": schedule, "clip_sample": False}
    )
    net = read(tmp_path / "ddpm", tmp_path / "teacher.safetensors")
    levels = ddpm.sigmas(ddpm.Settings(img_resolution=8, img_channels=1, beta_schedule=schedule))
    x0, noise = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    for step in (1, 100, 500, 900):
        seen = scheduler.add_noise(x0, noise, torch.tensor([step] * 3))
        output = unet(seen, step).sample
        wanted = scheduler.step(output, step, seen).pred_original_sample
        sigma = float(levels[step])
        found = net(x0 + sigma * noise, sigma)
        assert torch.allclose(found, wanted, atol=2e-4 * max(1, sigma)), step


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_float32_keeps_its_digits_at_every_level(prediction, schedule):
    """D against float64 of the same weights, to 2e-6 of its size from the smallest sigma to the largest, which is 157 of the linear
    schedule and 2e4 of the cosine one. Through epsilon, v would lose 3.6e-5 and 3e-3 there."""
    config = {"network": "ddpm", "img_resolution": 8, "img_channels": 1, "beta_schedule": schedule, "prediction_type": prediction,
              **{k: v for k, v in SMALL.items() if k[:3] not in ("sam", "in_", "out")}}  # fmt: skip
    net = networks.build(config, 3).eval().requires_grad_(False)
    wide = networks.build(config, 3).eval().requires_grad_(False).double()
    levels = ddpm.sigmas(ddpm.Settings(img_resolution=8, img_channels=1, beta_schedule=schedule))
    draw = torch.Generator().manual_seed(0)
    for step in (0, 300, 700, 900, 990, 998, 999):
        sigma = levels[step].float()
        x = (sigma**2 + 0.25).sqrt() * torch.randn(8, 1, 8, 8, generator=draw)
        exact = wide(x.double(), sigma.double())
        assert (net(x, sigma).double() - exact).abs().max() < 2e-6 * exact.abs().max(), step


def test_v_of_a_known_image_gives_that_image_back():
    """In float64, to 1e-12: the v of x_0 and n, which no network needs to find, at every level."""
    config = {"network": "ddpm", "img_resolution": 8, "img_channels": 1, "prediction_type": "v_prediction",
              "beta_schedule": "squaredcos_cap_v2", **{k: v for k, v in SMALL.items() if k[:3] not in ("sam", "in_", "out")}}  # fmt: skip
    net = networks.build(config, 3).eval().requires_grad_(False).double()
    x0, noise = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sigma in (0.0065, 0.5, 1.0, 30.0, 2e4):
        a = (1 + sigma**2) ** -0.5
        net.model.unet.conv_out = Given(a * noise - sigma * a * x0)
        assert torch.allclose(net(x0 + sigma * noise, sigma), x0, rtol=0, atol=1e-11), sigma


class Given(torch.nn.Module):
    """A last layer whose output is known."""

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output = output

    def forward(self, h):
        return self.output


def test_one_prediction_can_be_had_from_the_other():
    """A network whose v is a n - s x_0 for the epsilon of another gives the same images at every sigma."""
    config = {
        "network": "ddpm",
        "img_resolution": 8,
        "img_channels": 1,
        **{k: v for k, v in SMALL.items() if k[:3] not in ("sam", "in_", "out")},
    }
    one = networks.build(config, 3).double().eval()
    other = networks.build(config | {"prediction_type": "v_prediction"}, 3).double().eval()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    sigma = torch.tensor([0.05, 0.7, 5.0, 60.0], dtype=torch.float64)
    image = one(x, sigma)
    a, s = (1 / (1 + sigma**2).sqrt()).reshape(-1, 1, 1, 1), (sigma / (1 + sigma**2).sqrt()).reshape(-1, 1, 1, 1)
    epsilon = (x - image) / sigma.reshape(-1, 1, 1, 1)
    other.model.unet.conv_out = Given(a * epsilon - s * image)
    assert torch.allclose(other(x, sigma), image, atol=1e-9)


def test_steps_are_found_again_and_ends_are_kept():
    """The step of a level is that step; halfway in ln sigma is half a step; nothing lies beyond the ends."""
    net = networks.build({"network": "ddpm", "img_resolution": 8, "img_channels": 1, "block_out_channels": [8], "norm_num_groups": 8,
                          "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}, 0)  # fmt: skip
    levels = net.model.levels
    assert torch.allclose(net.model.step(levels.exp()), torch.arange(1000.0, dtype=torch.float64), atol=1e-6)
    middle = (levels[7:9].mean().exp()).reshape(1)
    assert net.model.step(middle).item() == pytest.approx(7.5, abs=1e-6)
    assert net.model.step(torch.tensor([1e-6, 1e6], dtype=torch.float64)).tolist() == [0, 999]
    assert (net.sigma_min, net.sigma_max) == pytest.approx((levels[0].exp().item(), levels[-1].exp().item()))


def test_a_network_of_ours_in_every_respect(tmp_path):
    """float64 agrees with float32; gradients; features; the boundary; a copy; the same seed; the global generator."""
    config = {
        "network": "ddpm",
        "img_resolution": 8,
        "img_channels": 1,
        **{k: v for k, v in SMALL.items() if k[:3] not in ("sam", "in_", "out")},
    }
    state = torch.random.get_rng_state()
    net = networks.build(config, 5).eval()
    assert torch.equal(state, torch.random.get_rng_state())
    again = networks.build(net.config, 5)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    x, sigma = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 2.5, 40.0])
    wide = copy.deepcopy(net).double()
    assert torch.allclose(net(x, sigma).double(), wide(x.double(), sigma.double()), atol=1e-3)
    features = net.encode(x, sigma)
    assert features.shape[1:] == net.features_shape and torch.equal(net.both(x, sigma)[1], features)
    net.boundary = 0.1
    assert torch.allclose(net(x, 0.1), x, atol=1e-6)
    leaf = x.clone().requires_grad_()
    net(leaf, sigma).square().sum().backward()
    assert leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0
    images = heun(again.eval().requires_grad_(False), torch.randn(2, 1, 8, 8), steps=6)
    assert images.isfinite().all()


# --- folders --------------------------------------------------------------------------------------------


def every_scheduler() -> list[str]:
    """All classes of schedulers that the installed diffusers offers, and some that it may not."""
    others = [
        "FlowMatchEulerDiscreteScheduler",
        "EDMEulerScheduler",
        "ScoreSdeVeScheduler",
        "KarrasVeScheduler",
        "AScheduler",
    ]
    return sorted(
        {name for name in dir(diffusers) if name.endswith("Scheduler")} | set(others) | set(folders.SCHEDULERS)
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("schedulers") / "ddpm"
    write(folder)
    return folder


@pytest.mark.parametrize("name", every_scheduler())
def test_a_scheduler_is_taken_only_if_its_noise_is_ddpms(written, tmp_path, name):
    """By its class: those that are taken have the abar that diffusers computes, at its own defaults; all others are named."""
    shutil.copytree(written, tmp_path / "ddpm")
    shutil.rmtree(tmp_path / "ddpm/scheduler")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy about how diffusers makes its arrays
            scheduler = getattr(diffusers, name)()
        scheduler.save_pretrained(tmp_path / "ddpm/scheduler")
    except Exception:  # not there, or it needs another package
        scheduler = None
        (tmp_path / "ddpm/scheduler").mkdir(exist_ok=True)
        (tmp_path / "ddpm" / SCHEDULER).write_text(json.dumps({"_class_name": name}))
    if name not in folders.SCHEDULERS:
        with pytest.raises(Problem, match=rf"describes '{name}', whose noise or network output differs from DDPM's"):
            folders.read_folder(tmp_path / "ddpm")
        return
    if scheduler is None:
        pytest.skip(f"{name} cannot be made here")
    config, _ = folders.read_folder(tmp_path / "ddpm")
    left = scheduler.alphas_cumprod.double()
    config.pop("network")
    assert torch.allclose(ddpm.sigmas(ddpm.Settings(**config)), ((1 - left) / left).sqrt(), rtol=2e-3)
    known = folders.SCHEDULE | folders.SCHEDULE_FIXED | dict.fromkeys(folders.SAMPLING)
    assert set(inspect.signature(type(scheduler).__init__).parameters) - {"self", "kwargs"} <= set(known)


def test_every_keyword_of_their_network_is_known_with_its_default():
    """One that a newer diffusers adds is refused by name until somebody has looked at it."""
    theirs = {key: each.default for key, each in inspect.signature(diffusers.UNet2DModel.__init__).parameters.items()}
    theirs.pop("self")
    assert set(theirs) <= set(folders.UNET | folders.UNET_FIXED)
    ours = {each.name: each.default for each in dataclasses.fields(ddpm.Settings)}
    for key in set(folders.UNET) & set(ours):
        default = tuple(theirs[key]) if isinstance(theirs[key], tuple | list) else theirs[key]
        assert ours[key] == default, key


def test_a_folder_there_and_back(tmp_path):
    """Every number to the bit; a pipeline's folder and that of its network beside the scheduler's."""
    unet, _ = write(tmp_path / "ddpm")
    net = read(tmp_path / "ddpm", tmp_path / "teacher.safetensors")
    assert all(torch.equal(value, net.state_dict()[f"model.unet.{name}"]) for name, value in unet.state_dict().items())
    about = load_tensors(tmp_path / "teacher.safetensors")[1]
    assert (
        about["source"]["sha256"] == files.sha256(tmp_path / "ddpm/unet" / listing.WEIGHTS)
        and about["codec"] == agree.PIXELS
    )
    assert folders.read_folder(tmp_path / "ddpm/unet")[0] == folders.read_folder(tmp_path / "ddpm")[0]


def test_old_names_and_a_square_pair_are_read(tmp_path):
    """Attention's layers as diffusers called them until 2023; sample_size as height and width. The same teacher to the bit."""
    write(tmp_path / "ddpm")
    before = read(tmp_path / "ddpm", tmp_path / "before.safetensors").state_dict()
    path = tmp_path / "ddpm/unet" / listing.WEIGHTS
    tensors = load_file(path)
    olds = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in olds.items():
        tensors = {name.replace(f".{new}.", f".{old}."): each for name, each in tensors.items()}
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, path)
    spoil(tmp_path / "ddpm", UNET, sample_size=[8, 8])
    after = read(tmp_path / "ddpm", tmp_path / "after.safetensors").state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_a_running_average_of_a_training_is_read_where_its_scheduler_is(tmp_path):
    write(tmp_path / "ddpm")
    spoil(tmp_path / "ddpm", UNET, decay=0.9999, inv_gamma=1.0, optimization_step=7)
    (tmp_path / "ddpm/unet").rename(tmp_path / "ddpm/unet_ema")
    with pytest.raises(Problem, match="has no unet, only a unet_ema"):
        folders.read_folder(tmp_path / "ddpm")
    assert folders.read_folder(tmp_path / "ddpm/unet_ema")[0]["img_resolution"] == 8


def spoil(folder: Path, file: str, **changes) -> None:
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | changes))


def only_pickles(folder: Path) -> None:
    (folder / "unet" / listing.WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin")


def parts_only(folder: Path) -> None:
    (folder / "unet" / listing.WEIGHTS).rename(folder / "unet/diffusion_pytorch_model-00001-of-00002.safetensors")


def index(folder: Path, names: dict) -> None:
    (folder / "unet" / listing.WEIGHTS).unlink()
    (folder / "unet" / f"{listing.WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def weights(change):
    def spoiled(folder: Path) -> None:
        path = folder / "unet" / listing.WEIGHTS
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return spoiled


def half(unet, folder: Path) -> None:
    unet.half().save_pretrained(folder, variant="fp16")


def shards(unet, folder: Path) -> None:
    unet.save_pretrained(folder, max_shard_size="20KB")


def half_shards(unet, folder: Path) -> None:
    unet.half().save_pretrained(folder, variant="fp16", max_shard_size="10KB")


def old_half_shards(unet, folder: Path) -> None:
    """With the variant behind the number of the part, as diffusers named them for some time."""
    half_shards(unet, folder)
    path = next(folder.glob("*.index*.json"))
    text = path.read_text()
    for part in folder.glob("*-of-*.safetensors"):
        name = part.name.replace(".fp16-", "-").replace(".safetensors", ".fp16.safetensors")
        text = text.replace(part.name, name)
        part.rename(folder / name)
    path.write_text(text)


def pickled(unet, folder: Path) -> None:
    torch.save(unet.state_dict(), folder / "diffusion_pytorch_model.bin")


FORMS = {"half precision": half, "shards": shards, "shards in half precision": half_shards, "older names of those": old_half_shards,
         "a pickle of torch": pickled}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_in_every_form_that_diffusers_writes(tmp_path, form):
    """The same teacher, to the bit where the numbers are the same; the recipe sees every file that is read."""
    unet, _ = write(tmp_path / "ddpm")
    (tmp_path / "ddpm/unet" / listing.WEIGHTS).unlink()
    FORMS[form](copy.deepcopy(unet), tmp_path / "ddpm/unet")
    net = read(tmp_path / "ddpm", tmp_path / "teacher.safetensors")
    for name, value in unet.state_dict().items():
        same = value.half().float() if "half" in form or "older" in form else value
        assert torch.equal(same, net.state_dict()[f"model.unet.{name}"])
    read_files = listing.READ_AS["network"](tmp_path / "ddpm", ())
    there = {f"unet/{path.name}" for path in (tmp_path / "ddpm/unet").iterdir()}
    assert set(read_files) == there | {"scheduler/scheduler_config.json"}


def test_of_two_forms_the_safe_and_precise_one_is_read(tmp_path):
    """A folder with the same weights as safetensors, in half precision, and as a pickle."""
    unet, _ = write(tmp_path / "ddpm")
    half(copy.deepcopy(unet), tmp_path / "ddpm/unet")
    pickled(unet, tmp_path / "ddpm/unet")
    assert [path.name for path in folders.read_folder(tmp_path / "ddpm")[1]] == [listing.WEIGHTS]
    files_read = listing.READ_AS["network"](tmp_path / "ddpm", ())
    assert files_read == ["scheduler/scheduler_config.json", "unet/config.json", f"unet/{listing.WEIGHTS}"]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_classes_are_embedded_as_theirs(tmp_path, prediction):
    """One-hot labels against diffusers' own forward pass with class numbers."""
    unet, scheduler = write(tmp_path / "ddpm", schedule={"prediction_type": prediction}, num_class_embeds=5)
    folders.convert_folder(tmp_path / "ddpm", tmp_path / "teacher.safetensors", labels=True)
    net, about = teachers.load_denoiser(tmp_path / "teacher.safetensors", dtype=torch.float64)
    assert about["label_dim"] == 5
    unet, noisy, classes = unet.double(), torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.arange(5)
    for step in (3, 500, 999):
        left = scheduler.alphas_cumprod[step].double()
        out = unet(noisy, step, classes).sample
        image = noisy / left.sqrt() - ((1 - left) / left).sqrt() * out
        if prediction == "v_prediction":
            image = left.sqrt() * noisy - (1 - left).sqrt() * out
        found = net(noisy / left.sqrt(), ((1 - left) / left).sqrt(), torch.eye(5, dtype=torch.float64))
        torch.testing.assert_close(found, image, rtol=2e-4, atol=2e-4 * float(image.abs().max()))
    with pytest.raises(Problem, match="has 5 classes, but its data setting has labels: false"):
        folders.convert_folder(tmp_path / "ddpm", tmp_path / "out.safetensors", labels=False)


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
SPOILED = {
    "another class": (lambda f: spoil(f, UNET, _class_name="UNet2DConditionModel"), "expected a UNet2DModel"),
    "a keyword of its own": (lambda f: spoil(f, UNET, hook="import os"), "has the key 'hook', which no"),
    "a huge width": (lambda f: spoil(f, UNET, block_out_channels=[10**9, 8]), "has block_out_channels"),
    "another block": (lambda f: spoil(f, UNET, down_block_types=["SkipDownBlock2D", "DownBlock2D"]), "has down_block_types"),
    "classes that no tensor has": (lambda f: spoil(f, UNET, num_class_embeds=10), "its description asks for"),
    "classes as time steps": (lambda f: spoil(f, UNET, class_embed_type="timestep"), "has class_embed_type 'timestep'"),
    "centred input": (lambda f: spoil(f, UNET, center_input_sample=True), "has center_input_sample True"),
    "more channels out": (lambda f: spoil(f, UNET, out_channels=2), "another number of out_channels than of in_channels"),
    "another depth": (lambda f: spoil(f, UNET, layers_per_block=2), "its description asks for"),
    "widths that do not fit": (lambda f: spoil(f, UNET, norm_num_groups=7), "describes a network that is not supported"),
    "no JSON": (lambda f: (f / UNET).write_text("{"), "cannot be read"),
    "a list": (lambda f: (f / UNET).write_text("[1]"), "is not a mapping"),
    "no configuration": (lambda f: (f / UNET).unlink(), "is missing"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "which defines the noise of each step"),
    "the image as prediction": (lambda f: spoil(f, SCHEDULER, prediction_type="sample"), "has prediction_type 'sample'"),
    "no signal at the end": (lambda f: spoil(f, SCHEDULER, rescale_betas_zero_snr=True), "has rescale_betas_zero_snr True"),
    "no resolution": (lambda f: spoil(f, UNET, sample_size=None), "has no sample_size; add it, with the side"),
    "an oblong": (lambda f: spoil(f, UNET, sample_size=[8, 16]), "has sample_size"),
    "a flow": (lambda f: spoil(f, SCHEDULER, use_flow_sigmas=True), "has use_flow_sigmas True"),
    "continuous steps": (lambda f: spoil(f, SCHEDULER, timestep_type="continuous"), "has timestep_type 'continuous'"),
    "a variance that is learned": (lambda f: spoil(f, SCHEDULER, variance_type="learned_range"), "has variance_type 'learned_range'"),
    "limits of its own": (lambda f: spoil(f, SCHEDULER, sigma_max=80.0), "has sigma_max 80.0"),
    "old word for the image": (lambda f: spoil(f, SCHEDULER, predict_epsilon=False), "has predict_epsilon False"),
    "a flow's prediction": (lambda f: spoil(f, SCHEDULER, prediction_type="flow_prediction"), "has prediction_type 'flow_prediction'"),
    "an unknown key": (lambda f: spoil(f, SCHEDULER, shift=3.0), "has the key 'shift', which no supported scheduler has"),
    "an unknown key with a bar": (lambda f: spoil(f, SCHEDULER, _shift=3.0), "has the key '_shift', which no supported scheduler"),
    "no class": (lambda f: spoil(f, SCHEDULER, _class_name=None), "describes None, whose noise"),
    "a class that is a list": (lambda f: spoil(f, SCHEDULER, _class_name=["DDPMScheduler"]), "whose noise"),
    "no beta": (lambda f: (f / SCHEDULER).write_text('{"_class_name": "DDPMScheduler"}'), "has no num_train_timesteps"),
    "betas of another number": (lambda f: spoil(f, SCHEDULER, trained_betas=[0.1, 0.2]), "has 2 trained_betas"),
    "an autoencoder beside it": (lambda f: (f / "vqvae").mkdir(), "has a vqvae next to its unet"),
    "a huge file": (lambda f: (f / UNET).write_text(" " * 5_000_000), "more than 4 MiB"),
    "steps without noise": (lambda f: spoil(f, SCHEDULER, beta_start=0, beta_end=0), "steps that add no noise"),
    "a pickle that is none": (only_pickles, "holds no plain state of a network|is no file of torch.save"),
    "no weights": (lambda f: (f / "unet" / listing.WEIGHTS).unlink(), "safe_serialization=True"),
    "parts without an index": (parts_only, "there are diffusion_pytorch_model-00001-of-00002.safetensors"),
    "an index of nothing": (lambda f: index(f, {}), "has no weight_map of names"),
    "an index of what is not there": (lambda f: index(f, {"a": "diffusion_pytorch_model-00001-of-00001.safetensors"}), "is missing, which"),
    "an index of another folder": (lambda f: index(f, {"a": "../../net.safetensors"}), "is missing, which"),
    "a NaN": (weights(lambda t: t["conv_in.bias"].fill_(math.nan)), "expected .* of finite floats"),
    "whole numbers": (weights(lambda t: t.update({"conv_in.bias": t["conv_in.bias"].int()})), "expected .* of finite floats"),
    "another shape": (weights(lambda t: t.update({"conv_in.bias": t["conv_in.bias"][:3].clone()})), "expected .* of finite floats"),
    "a tensor too many": (weights(lambda t: t.update(more=torch.ones(1))), "the first other one is 'model.unet.more'"),
    "half a file": (lambda f: (f / "unet" / listing.WEIGHTS).write_bytes(b"\x08" + bytes(20)), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILED)
def test_what_is_not_understood_is_refused(tmp_path, kind):
    """In one sentence, before anything is written."""
    change, sentence = SPOILED[kind]
    write(tmp_path / "ddpm")
    change(tmp_path / "ddpm")
    with pytest.raises(Problem, match=sentence) as caught:
        folders.convert_folder(tmp_path / "ddpm", tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value) and not (tmp_path / "out.safetensors").exists()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(Problem, match=r"needs the package diffusers; run `pip install \.\[latent\]`"):
        networks.outline({"network": "ddpm", "img_resolution": 8, "img_channels": 1})


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    """A project with the smoke data on [-1, 1] and a teacher from a folder."""
    shutil.copytree(made, tmp_path / "project", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "project")
    write(Path("ddpm"))
    values = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    values["data"]["theirs"] = {"like": "digits-smoke", "codec": {"mean": 0.5, "std": 0.25}, "teacher": "theirs"}
    values["teacher"]["theirs"] = {"data": "theirs", "file": "ddpm"}
    for name in ("di", "cd"):
        values["distil"]["methods"][name]["per_data"]["digits-smoke"] |= {"n_images": 80, "batch": 16}
    Path("params.yaml").write_text(conftest.write_yaml(values), encoding="utf-8")
    return tmp_path / "project"


def test_a_folder_distils(project, capsys):
    """Five steps, with the Embedding Loss; with a head on its encoder; as a consistency model. The generator draws images."""
    assert __main__.main(["teacher", "theirs"]) == 0
    assert "ddpm for images of shape [1, 8, 8] and 0 classes" in capsys.readouterr().out
    assert __main__.main(["ensemble", "theirs/conv4/0"]) == 0
    for run in ("di/el", "di/gan", "cd/none"):
        assert __main__.main(["distil", f"theirs/{run}/0"]) == 0, run
        about = json.loads(Path(f"data/runs/theirs/{run}/0/provenance.json").read_text())
        assert about["iterations"] == 5, run
        start, end = (
            load_tensors(f"data/runs/theirs/{run}/0/{name}.safetensors")[0] for name in ("ema-0", "generator_ema")
        )
        assert any(not torch.equal(start[name], end[name]) for name in start), run
        images = sampling.sample(sampling.load_generator(f"data/runs/theirs/{run}/0/generator_ema.safetensors"), 3)
        assert images.shape == (3, 1, 8, 8), run


def test_dropout_that_the_network_has_not_is_one_sentence(project, capsys):
    values = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    values["distil"]["methods"]["di"]["per_data"]["digits-smoke"]["dropout"] = 0.1
    Path("params.yaml").write_text(conftest.write_yaml(values), encoding="utf-8")
    for words in (["teacher", "theirs"], ["ensemble", "theirs/conv4/0"]):
        assert __main__.main(words) == 0
    assert __main__.main(["distil", "theirs/di/el/0"]) == 2
    assert "dropout is 0.1, but the teacher's network has none" in capsys.readouterr().err
