# SPDX-License-Identifier: Apache-2.0
"""Latents: their codec, their packs, noise that is fresh and repeats itself, and the way back to pixels."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from eldistill import __main__, contract, files
from eldistill.data import archives, latents, packing
from eldistill.data import dataset as data
from eldistill.diffusion import draws
from eldistill.errors import NonFinite, Problem, Stopped
from eldistill.external import listing
from eldistill.networks import build
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.sampling import teachers
from eldistill.teacher import agree, convert, edm
from eldistill.tensors import load_tensors, save_tensors
from eldistill.training import loop, state
from eldistill.training.job import Job
from tests import conftest, official
from tests.conftest import GOLDEN, ROOT

EDM2 = latents.EDM2
SMALL = {"mean": [0.3], "std": [0.9]}  # of one channel: what the networks of conftest.py see
TINY = {"block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16, "latent_channels": 4}  # fmt: skip


def stored(count: int, channels: int = 4, side: int = 8, seed: int = 0) -> np.ndarray:
    """Means and deviations of latents, float32 [count, 2 channels, side, side]."""
    random = np.random.default_rng(seed)
    means = random.normal(0.5, 2, (count, channels, side, side))
    return np.concatenate([means, random.uniform(0.1, 0.6, means.shape)], 1).astype(np.float32)


def container(path: Path, arrays, labels=None) -> dict:
    """A folder or zip of latents as EDM2 names them; returns a data section."""
    contents = {}
    for index, array in enumerate(arrays):
        name = f"{index // 1000:05d}/img-mean-std-{index:08d}.npy"
        np.save(path.parent / "one.npy", array)
        contents[name] = (path.parent / "one.npy").read_bytes()
    listed = None if labels is None else [[name, int(label)] for name, label in zip(contents, labels, strict=True)]
    contents["dataset.json"] = json.dumps({"labels": listed}).encode()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    for name, content in {} if path.suffix == ".zip" else contents.items():
        files.write_text(path / name, "")
        (path / name).write_bytes(content)
    return {"source": "latents", "path": str(path), "resolution": None, "heldout": 5}


def reals_of(arrays: np.ndarray, codec=SMALL, labels: int = 0, dtype=torch.float32) -> data.PackedLatents:
    classes = torch.arange(len(arrays)) % (labels or 1)
    return data.PackedLatents(torch.from_numpy(arrays), classes, codec, labels, dtype=dtype)


# --- codec ----------------------------------------------------------------------------------------------


def test_the_constants_are_edm2s_to_the_bit():
    scale, bias = latents.codec_constants(EDM2)
    with np.load(GOLDEN / "networks/edm2_math.npz") as golden:
        assert scale.dtype == bias.dtype == torch.float32
        assert np.array_equal(scale.flatten(), golden["vae_scale"].ravel())
        assert np.array_equal(bias.flatten(), golden["vae_bias"].ravel())


def test_latents_are_standardised_channel_by_channel():
    """(mean + deviation n) 0.5 / std - mean 0.5 / std, entry by entry in float64."""
    arrays, noises = torch.from_numpy(stored(3)), torch.randn(3, 4, 8, 8, dtype=torch.float64)
    found = latents.encode(arrays, noises, EDM2)
    for c in range(4):
        raw = arrays[:, c].double() + arrays[:, 4 + c].double() * noises[:, c]
        wanted = (raw - EDM2["mean"][c]) * 0.5 / EDM2["std"][c]
        assert torch.allclose(found[:, c], wanted, rtol=0, atol=1e-6)
    assert found.dtype == torch.float64


def test_their_own_moments_give_latents_sigma_data(tmp_path):
    """What a pack says of its channels, as the codec: every channel has mean 0 and deviation 0.5, noise included."""
    about = packing.pack_dataset(container(tmp_path / "latents", stored(40)), tmp_path / "pack")
    codec = {"mean": about["mean"], "std": about["std"]}
    reals = data.load_real_images(tmp_path / "pack", codec, False)
    x = torch.cat([reals.take(torch.arange(35))[0] for _ in range(2)])
    assert x.mean((0, 2, 3)).abs().max() < 0.01 and (x.std((0, 2, 3)) - 0.5).abs().max() < 0.01


def test_latents_have_no_limits_and_no_lpips():
    assert data.encoded_limits(EDM2) == (-float("inf"), float("inf"))
    from eldistill.losses import perceptual

    with pytest.raises(Problem, match="LPIPS sees pixels, but this data has latents"):
        perceptual.lpips({}, torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), EDM2)


# --- packs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["latents", "latents.zip"])
@pytest.mark.parametrize("labelled", [True, False])
def test_latents_are_packed_as_they_are(tmp_path, kind, labelled):
    arrays, labels = stored(17), np.arange(17) % 3
    about = packing.pack_dataset(container(tmp_path / kind, arrays, labels if labelled else None), tmp_path / "pack")
    train_, heldout = packing.split_heldout(17, 5)
    assert (about["train"], about["heldout"], about["shape"], about["classes"]) == (12, 5, [8, 8, 8], 3 * labelled)
    for part, indices in (("train", train_), ("heldout", heldout)):
        found, classes, _ = data.load_pack(tmp_path / "pack", part)
        assert found.dtype == torch.float32 and np.array_equal(found, arrays[indices])
        assert classes.tolist() == (labels[indices].tolist() if labelled else [-1] * len(indices))
    mean, deviation = np.split(arrays[train_].astype(np.float64), 2, axis=1)
    assert np.allclose(about["mean"], mean.mean((0, 2, 3)), rtol=0, atol=1e-6)
    variance = mean.var((0, 2, 3)) + (deviation**2).mean((0, 2, 3))  # of what the encoder's noise is added to
    assert np.allclose(about["std"], np.sqrt(variance), rtol=0, atol=1e-6)


def test_a_container_there_and_back(tmp_path):
    """`zip` writes latents under EDM2's names, and they are read again."""
    packing.pack_dataset(container(tmp_path / "latents.zip", stored(9), np.arange(9) % 2), tmp_path / "pack")
    assert archives.write_zip(tmp_path / "pack", tmp_path / "again.zip") == 9
    with zipfile.ZipFile(tmp_path / "again.zip") as archive:
        assert archive.namelist()[0] == "00000/img-mean-std-00000000.npy"
    section = {"source": "latents", "path": str(tmp_path / "again.zip"), "resolution": None, "heldout": 4}
    assert packing.pack_dataset(section, tmp_path / "other")["classes"] == 2
    both = [
        torch.cat([data.load_pack(tmp_path / name, part)[0] for part in ("train", "heldout")])
        for name in ("pack", "other")
    ]
    order = np.concatenate(packing.split_heldout(9, 4))
    assert torch.equal(both[1], both[0][order])


BAD = {
    "another type": (stored(1)[0].astype(np.float64), "is float64 .*expected float32, means and deviations"),
    "an odd number of channels": (stored(1)[0][:7], "expected float32, means and deviations of c channels"),
    "another shape": (stored(1, side=4)[0], "the first one"),
    "a NaN": (np.full((8, 8, 8), np.nan, np.float32), "not finite"),
    "a negative deviation": (-stored(1)[0], "deviations below 0"),
    "a pickle": (np.array([{}], object), "is no array of numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_latents_are_one_sentence(tmp_path, case):
    array, sentence = BAD[case]
    section = container(tmp_path / "latents", [*stored(8), array])
    with pytest.raises(Problem, match=f"img-mean-std-00000008.npy .*{sentence}"):
        packing.pack_dataset(section | {"heldout": 2}, tmp_path / "sets/pack")
    assert not list((tmp_path / "sets").glob("*"))


def test_a_container_without_latents_is_one_sentence(tmp_path):
    (tmp_path / "latents").mkdir()
    with pytest.raises(Problem, match="has no latents; expected .npy files, as `python -m eldistill encode`"):
        packing.pack_dataset({"source": "latents", "path": str(tmp_path / "latents"), "heldout": 2}, tmp_path / "pack")


def test_a_codec_of_the_other_kind_is_one_sentence(tmp_path):
    packing.pack_dataset(container(tmp_path / "latents", stored(8)), tmp_path / "pack")
    with pytest.raises(Problem, match="has latents, its codec is .*a list of means"):
        data.load_real_images(tmp_path / "pack", {"mean": 0.5, "std": 0.25}, False)
    packing.pack_dataset({"source": "digits", "heldout": 360}, tmp_path / "digits")
    with pytest.raises(Problem, match="has pixels, its codec is"):
        data.load_real_images(tmp_path / "digits", EDM2, False)


# --- noise ------------------------------------------------------------------------------------------------


def batch_at(reals, n_images: int, size: int = 6, seed: int = 0, scope: str = "generator") -> contract.Batch:
    draw = draws.Draw(seed, scope, n_images, size, dtype=reals.dtype)
    return contract.Batch(draw, None, reals.shape, contract.Progress(n_images, 0, 1000), reals)


def one(dtype=torch.float64) -> data.PackedLatents:
    """A data set of one image: what differs between two draws is the encoder's noise alone."""
    return reals_of(stored(1, channels=2), {"mean": [0.3, -1.0], "std": [0.9, 2.0]}, dtype=dtype)


def test_the_noise_is_fresh_for_every_image_of_a_run():
    """No two of 40 showings share a number, and as a whole they are N(mean, deviation) in every entry."""
    reals = one()
    x = torch.cat([batch_at(reals, first, 500).real("el/real", 2)[0] for first in range(0, 2000, 500)])
    assert len({float(each[0, 0, 0]) for each in x}) == len(x) == 4000
    scale, bias = latents.codec_constants(reals.codec)
    mean, deviation = (part[0] for part in reals.images.double().chunk(2, 1))
    z = ((x - bias) / scale - mean) / deviation
    assert z.mean((0,)).abs().max() < 5 / 4000**0.5 and (z.std((0,)) - 1).abs().max() < 5 / 8000**0.5
    flat = z.flatten(1)
    across = flat.T @ flat / len(flat) - torch.eye(flat.shape[1], dtype=torch.float64)
    assert across.abs().max() < 6 / 4000**0.5, "entries are independent"


def test_the_noise_is_a_function_of_seed_stream_and_image():
    """The same again; another for another seed, phase, purpose or place in the run."""
    reals = one()
    x = batch_at(reals, 12).real("image")[0]
    assert torch.equal(x, batch_at(reals, 12).real("image")[0])
    for other in (batch_at(reals, 12, seed=1), batch_at(reals, 12, scope="fake_score"), batch_at(reals, 18)):
        assert not torch.isin(other.real("image")[0], x).any()
    assert not torch.isin(batch_at(reals, 12).real("el/real")[0], x).any()


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("cut", [1, 4])
def test_micro_batches_and_processes_see_the_same_noise(each, cut):
    reals = reals_of(stored(10, channels=1))
    batch = batch_at(reals, 24)
    whole = batch.real("image", each)[0]
    assert torch.equal(torch.cat([batch[:cut].real("image", each)[0], batch[cut:].real("image", each)[0]]), whole)
    assert torch.equal(batch_at(reals, 24 + cut, 6 - cut).real("image", each)[0], whole[cut * each :])


def test_measurements_see_the_same_noise_every_time():
    """That of an image depends on the image alone: not on what else is asked for."""
    reals = reals_of(stored(10, channels=1), labels=2)
    x, labels = reals.take(torch.tensor([4, 2, 4]))
    assert torch.equal(x[0], x[2]) and not torch.isin(x[0], x[1]).any()
    assert torch.equal(reals.take(torch.arange(10))[0][2], x[1]) and labels.argmax(1).tolist() == [0, 0, 0]
    assert reals.shape == (1, 8, 8) and len(reals) == 10


METHODS = {"diff_instruct": {"embedding": {}}, "dmd2": {}, "consistency": {}}


def job_on_latents(bench, method: str, folder: str, **others) -> Job:
    """A training on latents: what it draws of them goes into its critic, its supplement or its own loss."""
    module = contract.load_module("methods", method)
    numbers = module.Numbers(source="data") if method == "consistency" else None
    reals = reals_of(stored(12, channels=1), dtype=others.get("dtype", torch.float32))
    return bench.job(method, METHODS[method], numbers=numbers, reals=reals, folder=folder, **others)


def trained(job: Job) -> dict[str, torch.Tensor]:
    work = loop.Loop(job)
    work.run()
    return {name: each.clone() for name, each in state.pack_tensors({**job.nets, "average": work.average}, {}).items()}


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_changes_nothing(bench, method):
    smooth = {"eps": 1e-3}
    run = lambda size: trained(job_on_latents(bench, method, f"state-{size}", dtype=torch.float64, batch=6, steps=2,  # noqa: E731
                                              micro_batch=size, optimiser=smooth))  # fmt: skip
    whole, parts = run(0), run(2)
    for name, each in whole.items():
        torch.testing.assert_close(
            parts[name], each, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )
    flat = job_on_latents(bench, method, "flat", dtype=torch.float64, batch=6, steps=2, optimiser=smooth)
    flat.reals.images = flat.reals.images.clone()
    flat.reals.images[:, 1:] = 0
    assert any(not torch.equal(each, whole[name]) for name, each in trained(flat).items()), "the noise is seen"


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_continued_is_the_uninterrupted_run(bench, method):
    class Ending(loop.Loop):
        def iterate(self) -> None:
            super().iterate()
            if self.iteration == 2:
                self.stop_reason = "stopped by the test"

    whole = trained(job_on_latents(bench, method, "whole", steps=5))
    with pytest.raises(Stopped):
        Ending(job_on_latents(bench, method, "stopped", steps=5)).run()
    again = trained(job_on_latents(bench, method, "stopped", steps=5))
    assert all(torch.equal(each, again[name]) for name, each in whole.items())


# --- recipes and params -------------------------------------------------------------------------------------


def shipped() -> dict:
    return conftest.shipped()


def test_latents_are_judged_by_their_pixels():
    """Judges, references and the images of `real` are those of the pixels; runs train on the latents."""
    plan = Plan(params.from_values(shipped(), ROOT))
    run = plan.evaluation(params.Run("imagenet512-s", "di", "el", 0))
    names = [step.name for step in run.upstream]
    assert {"imagenet512-rgb/images", "imagenet512-s/images"} <= set(names), "of the latents the labels alone are read"
    real = [step.name for step in plan.reference_run("imagenet512-s", "real").upstream]
    assert "imagenet512-rgb/images" in real and "imagenet512-s/images" not in real
    assert {name.split("/")[0] for name in names if "judge" in name or "reference" in name} == {"imagenet512-rgb"}
    assert "imagenet512-s/images" in [
        step.name for step in plan.distil(params.Run("imagenet512-s", "di", "el", 0)).upstream
    ]
    assert "latents" in run.modules and "latents" in plan.pack("imagenet512-s").modules
    assert "latents" not in plan.evaluation(params.Run("imagenet64", "di", "el", 0)).modules
    assert plan.find("data", "imagenet512-s/judge-a") == plan.judge("imagenet512-rgb", "a")
    assert plan.pack("imagenet512-s").params["count"] == "imagenet"


def test_what_is_no_latent_has_none_of_it_in_its_recipes():
    """Keys that only latents have are in no recipe of pixels."""
    plan = Plan(params.from_values(shipped(), ROOT))
    for suite in ("demo", "bench", "ablation"):
        for step in plan.suite(suite).values():
            found = json.loads(step.recipe)
            assert not {"pixels", "vae", "count"} & (found["params"].keys() | found["params"].get("codec", {}).keys())
            assert "latents" not in found["versions"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pixels": None}, "imagenet512-s.pixels is missing; source: latents needs it"),
        ({"path": None}, "imagenet512-s.path is missing"),
        ({"pixels": "imagenet512-rbg"}, "did you mean imagenet512-rgb"),
        ({"pixels": "imagenet512-s"}, "expected a data setting of images, and only where source is latents"),
        ({"codec": {"mean": 0.5, "std": 0.25}}, "source: latents needs two lists"),
        ({"codec": {"mean": [1, 2], "std": [1]}}, "source: latents needs two lists"),
        ({"codec": {"mean": [1, 2], "std": [1, 0]}}, r"std\[1\] is 0; expected a number > 0"),
        ({"source": "digits"}, "source: digits needs two numbers"),
        ({"count": "imagnet"}, "did you mean imagenet"),
    ],
)
def test_a_mistake_is_one_sentence(changes, sentence):
    values = shipped()
    values["data"]["imagenet512-s"] |= changes
    with pytest.raises(Problem, match=sentence) as caught:
        params.from_values(values, ROOT)
    assert str(caught.value).startswith("workflow/params/paper.yaml: ") and "\n" not in str(caught.value)


# --- teachers ---------------------------------------------------------------------------------------------


def golden_edm2():
    with np.load(GOLDEN / "networks/edm2_cond_latent.npz", allow_pickle=False) as arrays:
        kwargs = json.loads(str(arrays["_kwargs_json"]))["init_kwargs"]
        settings = {key: value for key, value in kwargs.items() if key not in edm.UNUSED}
        network = build({"network": "edm2", **settings})
        names = network.state_dict()
        network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in names})
    return network.half(), kwargs


def test_a_teacher_of_latents_must_have_the_codec_of_its_data(tmp_path):
    """official.edm2 writes scale .12 .11 .13 .15 and bias -.7 -.35 -.02 .33."""
    path = official.write(tmp_path / "net.pkl", official.edm2(*golden_edm2()))
    scale, bias = [0.12, 0.11, 0.13, 0.15], [-0.7, -0.35, -0.02, 0.33]
    codec = {"mean": [-b / s for s, b in zip(scale, bias, strict=True)], "std": [0.5 / s for s in scale]}
    about = convert.convert_teacher(
        {"file": str(path), "codec": codec, "labels": True}, tmp_path / "teacher.safetensors"
    )
    assert about["codec"] == codec and about["shape"][0] == 4
    assert teachers.load_denoiser(tmp_path / "teacher.safetensors")[1]["codec"] == codec
    wrong = {
        "was trained on latents with scale": EDM2,
        "was trained on 4 channels, but the codec of its data setting has 1": SMALL,
        "was trained on latents, but its data setting has pixels": agree.PIXELS,
    }
    for sentence, other in wrong.items():
        with pytest.raises(Problem, match=sentence):
            convert.convert_teacher({"file": str(path), "codec": other, "labels": True}, tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


# --- the autoencoder ----------------------------------------------------------------------------------------


class Toy(nn.Module):
    """An autoencoder in closed form: means of 2x2 pixels and their grey, and the three colours back."""

    def encode(self, x: torch.Tensor):
        assert len(x) == 1 and 0 <= x.min() and x.max() <= 1, "one image at a time, pixels in [0, 1]"
        mean = nn.functional.avg_pool2d(x, 2)
        mean = 4 * torch.cat([mean, mean.mean(1, keepdim=True)], 1) - 1
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.full_like(mean, 0.01)))

    def decode(self, z: torch.Tensor):
        return SimpleNamespace(sample=nn.functional.interpolate((z[:, :3] + 1) / 4, scale_factor=2))


@pytest.fixture
def toy(monkeypatch) -> list:
    """The toy in place of the real one; returns for which (folder, device) it was asked."""
    asked = []
    monkeypatch.setattr(
        latents, "load_autoencoder", lambda folder=None, device="cpu": asked.append((folder, device)) or Toy()
    )
    return asked


def quiet_diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffusers", reason="pip install '.[latent]'")


@pytest.fixture
def tiny(tmp_path):
    """The folder of a random AutoencoderKL as diffusers saves it, and the network itself."""
    diffusers = quiet_diffusers()
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(**TINY).eval()
        vae.save_pretrained(tmp_path / "vae", safe_serialization=True)
    latents.load_autoencoder.cache_clear()
    yield str(tmp_path / "vae"), vae
    latents.load_autoencoder.cache_clear()


def test_decoding_clips_and_truncates(toy):
    """(x - bias) / scale, then the decoder, then 255 times what is between 0 and 1, without a half added."""
    raw = torch.randn(9, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scale, bias = latents.codec_constants(EDM2)
    found = data.decode(raw * scale + bias, EDM2)
    pixels = (raw[:, :3].double() + 1) / 4 * 255
    wanted = pixels.clamp(0, 255).floor().repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert found.dtype == torch.uint8 and found.shape == (9, 3, 8, 8)
    near = (pixels - pixels.round()).abs().repeat_interleave(2, 2).repeat_interleave(2, 3) < 1e-3
    assert torch.equal(found[~near], wanted[~near].to(torch.uint8)) and near.double().mean() < 0.05
    assert int(found.min()) == 0 and int(found.max()) == 255, "both ends are clipped"
    assert data.decode(torch.zeros(1, 4, 4, 4), {**EDM2, "vae": "here"}).shape == (1, 3, 8, 8) and toy[-1] == (
        "here",
        "cpu",
    )


def test_what_is_not_finite_is_no_image(toy, monkeypatch):
    with pytest.raises(NonFinite, match="not finite in 1 of its values"):
        data.decode(torch.full((1, 4, 2, 2), 0.0).index_put((torch.tensor(0),) * 4, torch.tensor(float("nan"))), EDM2)
    monkeypatch.setattr(Toy, "decode", lambda self, z: SimpleNamespace(sample=z * float("inf")))
    with pytest.raises(NonFinite, match="a decoded image is not finite"):
        data.decode(torch.zeros(1, 4, 2, 2), EDM2)


def test_without_diffusers_the_sentence_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    latents.load_autoencoder.cache_clear()
    with pytest.raises(Problem, match=r"need the package diffusers, .*type: pip install '\.\[latent\]'"):
        data.decode(torch.zeros(1, 4, 8, 8), EDM2)


def test_a_folder_of_diffusers_is_read_as_it_was_saved(tiny):
    """The same moments and the same pixels to the bit; weights under the names of old files too."""
    folder, vae = tiny
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 16, 16), np.uint8))
    with torch.no_grad():
        wanted = vae.encode(image[None].float() / 255).latent_dist
        found = latents.encode_moments(image, folder)
        assert found.shape == (8, 8, 8) and torch.equal(found, torch.cat([wanted.mean, wanted.std], 1)[0])
        x = torch.randn(2 * latents.CHUNK + 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        scale, bias = latents.codec_constants(EDM2)
        z = (x - bias) / scale
        wanted = (
            torch.cat([vae.decode(part).sample for part in z.split(latents.CHUNK)]).clamp(0, 1).mul(255).to(torch.uint8)
        )
    assert torch.equal(data.decode(x, EDM2 | {"vae": folder}), wanted)
    tensors, _ = load_tensors(Path(folder) / listing.WEIGHTS, foreign=True)
    old = {}
    for name, each in tensors.items():
        for before, now in latents.OLD_NAMES.items():
            name = name.replace(f".attentions.0.{now}.", f".attentions.0.{before}.")
        old[name] = each[..., None, None].clone() if name.endswith("query.weight") else each.clone()
    assert sum(".query." in name or ".proj_attn." in name for name in old) == 8, "both halves have attention"
    save_tensors(Path(folder) / listing.WEIGHTS, old, {})
    latents.load_autoencoder.cache_clear()
    assert torch.equal(data.decode(x, EDM2 | {"vae": folder}), wanted)


def test_the_settings_of_the_published_autoencoder_are_its_own(tiny):
    """83,653,863 numbers, 8 times fewer pixels a side; nothing else fits into it."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(latents.CONFIG)
    assert sum(each.numel() for each in vae.parameters()) == 83_653_863
    assert vae.encode(torch.zeros(1, 3, 64, 64, device="meta")).latent_dist.mean.shape == (1, 4, 8, 8)


@pytest.mark.parametrize("kind", ["other weights", "no weights", "no config", "another network"])
def test_a_bad_folder_is_one_sentence(tiny, kind):
    folder = Path(tiny[0])
    if kind == "other weights":
        save_tensors(folder / listing.WEIGHTS, {"x": torch.zeros(2)}, {})
    elif kind == "another network":
        files.write_json(folder / "config.json", {**TINY, "block_out_channels": [8, 8]})
    else:
        (folder / (listing.WEIGHTS if kind == "no weights" else "config.json")).unlink()
    with pytest.raises(Problem, match="is no AutoencoderKL of the expected architecture|is missing") as caught:
        latents.load_autoencoder(str(folder))
    assert "\n" not in str(caught.value)


# --- from images to a table -----------------------------------------------------------------------------------


def project(folder: Path, monkeypatch, vae: str | None = None) -> dict:
    """A project with 40 coloured images of 16x16, their latents' setting, a tiny EDM2 teacher and a run."""
    (folder / "pictures").mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(40):
        image = np.full((16, 16, 3), 40 * (index % 2), np.float64) + random.normal(100, 10, (16, 16, 3))
        image[:, 8 * (index % 2) : 8 * (index % 2) + 8] += 80
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"pictures/{index:03d}.png")
    labels = [[f"{index:03d}.png", index % 2] for index in range(40)]
    (folder / "pictures/dataset.json").write_text(json.dumps({"labels": labels}))
    values = shipped()
    tiny = {"network": "edm2", "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [],
            "channels_per_head": 8, "logvar_channels": 8}  # fmt: skip
    codec = {"mean": [1.2, 1.2, 1.2, 1.2], "std": [0.8, 0.8, 0.8, 0.8], **({"vae": vae} if vae else {})}
    values["data"] = {
        "rgb": {"source": "folder", "path": "pictures", "heldout": 12, "labels": True, "teacher": "rgb",
                "codec": {"mean": 0.5, "std": 0.25}, "judges": {"n_images": 640}},
        "small": {"source": "latents", "path": "latents.zip", "heldout": 12, "labels": True, "codec": codec,
                  "pixels": "rgb", "teacher": "small"},
    }  # fmt: skip
    values["teacher"] = {
        "rgb": {"data": "rgb", "network": tiny, "n_images": 64},
        "small": {"data": "small", "network": tiny, "batch": 8, "n_images": 160, "steps": 3},
    }
    for each in (*values["distil"]["methods"].values(), *values["distil"]["supplements"].values()):
        each.pop("per_data", None)
    values["ensemble"] = {
        name: {"members": each.get("members", [{"family": "identity"}])} for name, each in values["ensemble"].items()
    }
    values["ensemble"]["conv4"]["calibration"] = 16
    values["distil"]["methods"]["di"] |= {"n_images": 40, "batch": 8}
    values["distil"]["snapshots"] = [0, 100]
    # The roots of covariances of 768 pixels take most of the time: once where they are asked for, never in the curve.
    features = ["judge-a", "pixels"][: 1 if vae else 2]
    values["evaluate"] = {"n": 16, "curve_n": 8, "features": features, "curve_features": ["judge-a"], "batch": 8,
                          "neighbours_n": 8}  # fmt: skip
    values["tables"]["studies"] = {}
    values["suites"] = {"demo": [{"data": ["small"], "methods": ["di"], "supplements": ["el"], "seeds": [0]}]}
    (folder / "params.yaml").write_text(conftest.write_yaml(values))
    shutil.copytree(ROOT / "workflow/schemas", folder / "workflow/schemas")
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data/sources.csv", folder / "data")
    monkeypatch.chdir(folder)
    return values


def whole_way(capsys, encode: list[str]) -> None:
    """encode, then every step of the suite by its command."""
    threads = torch.get_num_threads()
    assert __main__.main(["encode", "rgb", "--out", "latents.zip", *encode]) == 0
    assert "latents.zip: latents of 40 images" in capsys.readouterr().out
    plan = Plan(params.load_params())
    for (word, name), step in plan.suite("demo").items():
        if word != "tables" and not step.on_demand:
            assert __main__.main([word, name]) == 0, (word, name)
    torch.set_num_threads(threads)


def test_from_images_to_metrics_through_latents(tmp_path, monkeypatch, capsys, toy):
    """Encoded, packed, a teacher trained on them, distilled with EL, decoded, and compared with the pixels."""
    project(tmp_path / "project", monkeypatch)
    whole_way(capsys, [])
    images, labels, about = data.load_pack("data/sets/small/images.safetensors")
    order = packing.split_heldout(40, 12)[0]
    picture = np.asarray(Image.open(f"pictures/{order[3]:03d}.png")).astype(np.float64) / 255
    pooled = picture.reshape(8, 2, 8, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.allclose(images[3, :3], 4 * pooled - 1, atol=1e-5) and labels[3] == order[3] % 2
    assert about["shape"] == [8, 8, 8] and about["classes"] == 2
    metrics = json.loads(Path("data/evaluations/small/di/el/0/metrics.json").read_text())
    assert {"fd16_judge-a_heldout", "fd16_pixels_train"} <= metrics.keys() and all(map(np.isfinite, metrics.values()))
    for name in ("real", "teacher", "di/el/0"):
        with Image.open(f"data/evaluations/small/{name}/samples.png") as shown:
            assert shown.mode == "RGB" and shown.size[1] == 2 * 17 * 2, (
                "a row a class of pixels, 16x16, each twice as large"
            )
            assert 8 * 17 * 2 < shown.size[0] < 8 * 17 * 2 + 40, "and its number beside it"
    assert __main__.main(["sample", "--generator", "data/runs/small/di/el/0/generator_ema.safetensors", "--n", "3",
                          "--out", "images"]) == 0  # fmt: skip
    with Image.open("images/000002.png") as shown:
        assert shown.size == (16, 16)
    assert (
        not Path("data/sets/small/judge-a.safetensors").exists() and Path("data/sets/rgb/judge-a.safetensors").exists()
    )


def test_the_same_with_an_autoencoder_of_diffusers(tmp_path, monkeypatch, capsys, tiny):
    folder, vae = tiny
    project(tmp_path / "project", monkeypatch, folder)
    whole_way(capsys, ["--vae", folder])
    index = packing.split_heldout(40, 12)[1][0]
    image = torch.from_numpy(np.asarray(Image.open(f"pictures/{index:03d}.png")).transpose(2, 0, 1).copy())
    with torch.no_grad():
        wanted = vae.encode(image[None].float() / 255).latent_dist
    found = data.load_pack("data/sets/small/images.safetensors", "heldout")[0][0]
    assert torch.equal(found, torch.cat([wanted.mean, wanted.std], 1)[0])
    assert Path("data/evaluations/small/di/el/0/metrics.json").exists()


def test_encoding_into_a_folder_continues(tmp_path, monkeypatch, capsys, toy):
    """What is there is kept; the container is the same as in one go, and as the zip."""
    project(tmp_path / "project", monkeypatch)
    assert __main__.main(["encode", "rgb", "--out", "latents"]) == 0
    whole = {path.relative_to("latents").as_posix(): path.read_bytes() for path in Path("latents").rglob("*.*")}
    assert len(whole) == 41
    for name in list(whole)[10:30]:
        Path("latents", name).unlink()
    kept = next(path for path in Path("latents").rglob("*.npy")).stat().st_mtime_ns
    assert __main__.main(["encode", "rgb", "--out", "latents"]) == 0
    again = {path.relative_to("latents").as_posix(): path.read_bytes() for path in Path("latents").rglob("*.*")}
    assert again == whole and next(path for path in Path("latents").rglob("*.npy")).stat().st_mtime_ns == kept
    assert __main__.main(["encode", "rgb", "--out", "latents.zip"]) == 0
    with zipfile.ZipFile("latents.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == whole


@pytest.mark.parametrize("change", ["other images", "fewer images", "another resolution", "a damaged file"])
def test_a_folder_of_other_latents_is_refused(tmp_path, monkeypatch, capsys, toy, change):
    """It was continued: latents of two sets of images, under one table of labels."""
    values = project(tmp_path / "project", monkeypatch)
    assert __main__.main(["encode", "rgb", "--out", "latents"]) == 0
    pictures = sorted(Path("pictures").rglob("*.png"))
    if change == "other images":
        for path in pictures:
            pixels = np.random.default_rng(len(path.name)).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(path)
    if change == "fewer images":
        pictures[-1].unlink()
        labels = [[path.name, index % 2] for index, path in enumerate(pictures[:-1])]
        Path("pictures/dataset.json").write_text(json.dumps({"labels": labels}))
    if change == "another resolution":
        values["data"]["rgb"]["resolution"] = 8
        Path("params.yaml").write_text(conftest.write_yaml(values))
    if change == "a damaged file":
        next(iter(sorted(Path("latents").rglob("*.npy")))).write_bytes(b"x" * 600)
    before = {path: path.read_bytes() for path in Path("latents").rglob("*.*")}
    Path("latents/00000/img-mean-std-00000005.npy").unlink(missing_ok=True)
    capsys.readouterr()
    assert __main__.main(["encode", "rgb", "--out", "latents"]) == 2
    said = capsys.readouterr().err
    assert "give another folder, or remove it" in said and "Traceback" not in said
    assert all(path.read_bytes() == content for path, content in before.items() if path.exists())


def test_what_cannot_be_encoded_is_one_sentence(tmp_path, monkeypatch, capsys, toy):
    values = project(tmp_path / "project", monkeypatch)
    for name, sentence in (
        ("small", "source is latents; expected a data setting whose source is a folder"),
        ("rbg", "rgb?"),
    ):
        assert __main__.main(["encode", name, "--out", "x.zip"]) == 2
        assert sentence in capsys.readouterr().err
    for path in Path("pictures").glob("*.png"):
        Image.open(path).convert("L").save(path)
    assert __main__.main(["encode", "rgb", "--out", "x.zip"]) == 2
    assert "has grey images; expected images in colour" in capsys.readouterr().err and not Path("x.zip").exists()
    changed = copy.deepcopy(values)
    changed["data"]["rgb"]["count"] = "ffhq"
    Path("params.yaml").write_text(conftest.write_yaml(changed))
    for path in Path("pictures").glob("*.png"):
        Image.open(path).convert("RGB").save(path)
    assert __main__.main(["encode", "rgb", "--out", "x.zip"]) == 2
    assert "has 40 images; ffhq has 70,000" in capsys.readouterr().err
