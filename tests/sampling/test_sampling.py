# SPDX-License-Identifier: Apache-2.0
"""Sampling: Heun against the original's arrays, and images that depend on their seed and index only."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import eldistill
from eldistill import __main__, networks
from eldistill.data import dataset as data
from eldistill.diffusion import draws
from eldistill.errors import Problem
from eldistill.sampling import generators as sampling
from eldistill.sampling import pictures, teachers
from eldistill.sampling.heun import heun
from eldistill.sampling.teachers import images_of_teacher
from eldistill.tensors import save_tensors
from tests import conftest

GOLDEN = conftest.GOLDEN / "networks" / "song_ddpmpp_cond.npz"
SOURCE = Path(sampling.__file__).parents[2]
CODEC = {"mean": 0.5, "std": 0.25}
SMALL = {
    "network": "song", "img_resolution": 8, "img_channels": 1, "label_dim": 3, "model_channels": 16,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.0,
}  # fmt: skip


# --- Heun ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as archive:
        return {key: archive[key] for key in archive.files}


def original(golden: dict, dtype: torch.dtype) -> nn.Module:
    settings = json.loads(str(golden["_kwargs_json"]))["init_kwargs"]
    config = {k: v for k, v in settings.items() if k not in ("model_type", "decoder_type", "use_fp16")}
    network = networks.build({"network": "song", **config}).eval()
    network.load_state_dict({k: torch.from_numpy(v) for k, v in golden.items() if not k.startswith("_")})
    return network.requires_grad_(False).to(dtype)


CHURN = {"churn": 2, "s_min": 0.05, "s_max": 50, "s_noise": 1.003}


@pytest.mark.parametrize("kind", ["det", "churn"])
@pytest.mark.parametrize(
    ("dtype", "suffix", "tolerance"), [(torch.float64, "_f64net", 1e-12), (torch.float32, "", 5e-6)]
)
def test_heun_is_the_originals(golden, kind, dtype, suffix, tolerance):
    fresh = [torch.from_numpy(each) for each in golden["_sampler_noise"]]
    extra = {**CHURN, "fresh": lambda step: fresh[step]} if kind == "churn" else {}
    labels = torch.from_numpy(golden["_labels"]).to(dtype)
    latents = torch.from_numpy(golden["_sampler_latents"])
    found = heun(original(golden, dtype), latents, labels, steps=6, **extra)
    wanted = golden[f"_sampler_heun6_{kind}{suffix}"]
    assert found.dtype == torch.float64
    assert np.abs(found.numpy() - wanted).max() / np.abs(wanted).max() < tolerance


class Gaussian(nn.Module):
    """The ideal denoiser of N(0, s^2): D(x; sigma) = x s^2 / (s^2 + sigma^2). Counts its calls."""

    def __init__(self, s: float = 0.5):
        super().__init__()
        self.s = nn.Parameter(torch.tensor(s, dtype=torch.float64), requires_grad=False)
        self.calls = 0

    def forward(self, x, sigma, labels=None):
        self.calls += 1
        return x * (self.s**2 / (self.s**2 + sigma.reshape(-1, 1, 1, 1) ** 2))


def test_heun_is_of_second_order_on_a_gaussian():
    # The flow of N(0, s^2) scales x by s / sqrt(s^2 + sigma_max^2).
    latents = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    exact = 80 * 0.5 / (0.25 + 80**2) ** 0.5
    errors = [abs(float(heun(Gaussian(), latents, steps=steps)) - exact) for steps in (32, 64, 128)]
    assert errors[-1] < 1e-3
    assert all(3 < coarse / fine < 5.5 for coarse, fine in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_heun_calls_the_network_twice_a_step_but_once_in_the_last(steps):
    network = Gaussian()
    heun(network, torch.ones(1, 1, 2, 2), steps=steps)
    assert network.calls == 2 * steps - 1


def test_one_step_of_heun_is_the_denoised_image_at_sigma_max():
    z = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = torch.full((3,), 80.0, dtype=torch.float64)
    assert torch.allclose(heun(Gaussian(), z, steps=1), Gaussian()(80 * z, level), rtol=0, atol=1e-12)


# --- generators ---------------------------------------------------------------------------------------


def lively(config: dict = SMALL, seed: int = 0) -> nn.Module:
    """A network whose zero-like layers have been woken up."""
    network = networks.build(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def about(sigma: float = 2.5, **other) -> dict:
    shape = {"shape": [1, 8, 8], "label_dim": 3, "codec": CODEC, "n_images": 64, "recipe": "r"}
    return {**shape, "sampler": {"steps": {"1": [sigma]}}, **other}


@pytest.fixture
def generator():
    return sampling.Generator(lively(), about())


class Plain(nn.Module):
    """A denoiser that works on each pixel alone: equal bits whatever the batch."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5), requires_grad=False)

    def forward(self, x, sigma, labels=None):
        shift = 0 if labels is None else labels @ torch.arange(labels.shape[1], dtype=x.dtype)
        return torch.tanh(self.gain * x) + 0.1 * torch.as_tensor(shift).reshape(-1, 1, 1, 1)


def test_image_i_depends_on_neither_the_number_nor_the_batch():
    plain = sampling.Generator(Plain(), about())
    whole = sampling.sample(plain, 50, seed=3)
    assert torch.equal(sampling.sample(plain, 7, seed=3), whole[:7])
    for batch in (1, 8, 49, 50, 1000):
        parts = list(sampling.images_of(plain, 50, 3, batch=batch))
        assert max(map(len, parts)) == min(batch, 50) and torch.equal(torch.cat(parts), whole)
    assert not torch.equal(sampling.sample(plain, 50, seed=4), whole)
    assert len({image.numpy().tobytes() for image in whole}) == 50


def test_image_i_of_a_network_depends_on_neither_the_number_nor_the_batch(generator):
    whole = sampling.sample(generator, 20, seed=3)
    for batch in (1, 7, 20):
        found = torch.cat(list(sampling.images_of(generator, 20, 3, batch=batch)))
        # A convolution may round otherwise in a batch of another size: a level at most, and rarely.
        assert (found.int() - whole.int()).abs().max() <= 1
        assert (found != whole).double().mean() < 0.01


def test_sampling_touches_no_global_generator(generator):
    before = torch.get_rng_state()
    first = sampling.sample(generator, 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(sampling.sample(generator, 4), first)
    torch.set_rng_state(before)


def test_samples_are_the_decoded_denoised_latents(generator):
    images = sampling.sample(generator, 5, seed=1, labels=2)
    assert images.dtype == torch.uint8 and images.shape == (5, 1, 8, 8) and images.device.type == "cpu"
    z = draws.Draw(1, "sample", 0, 5).normal("z", 1, 8, 8)
    labels = torch.tensor([[0.0, 0.0, 1.0]]).expand(5, 3)
    x = generator.network(2.5 * z, torch.full((5,), 2.5), labels)
    assert torch.equal(images, data.decode(x, CODEC)) and images.float().std() > 1


def test_labels_are_one_for_all_or_one_each_or_drawn():
    plain = sampling.Generator(Plain(), about())
    by_class = [sampling.sample(plain, 12, labels=label) for label in range(3)]
    assert (by_class[0] <= by_class[1]).all() and not torch.equal(by_class[0], by_class[1])
    mixed = [0, 1, 2] * 4
    wanted = torch.stack([by_class[label][index] for index, label in enumerate(mixed)])
    assert torch.equal(sampling.sample(plain, 12, labels=mixed), wanted)
    assert torch.equal(torch.cat(list(sampling.images_of(plain, 12, labels=torch.tensor(mixed), batch=5))), wanted)
    drawn = draws.Draw(0, "sample", 0, 12).integers("label", 3)
    assert set(drawn.tolist()) == {0, 1, 2}
    assert torch.equal(sampling.sample(plain, 12), torch.stack([by_class[c][i] for i, c in enumerate(drawn)]))


def test_a_generator_without_labels_ignores_none():
    plain = sampling.Generator(Plain(), about(label_dim=0))
    z = draws.Draw(0, "sample", 0, 6).normal("z", 1, 8, 8)
    assert torch.equal(sampling.sample(plain, 6), data.decode(Plain()(2.5 * z, None), CODEC))


def test_a_saved_generator_comes_back(tmp_path, generator):
    path = tmp_path / "generator_ema.safetensors"
    sampling.save_generator(path, generator.network, about())
    again = sampling.load_generator(path)
    assert again.shape == (1, 8, 8) and {k: again.metadata[k] for k in about()} == about()
    assert again.metadata["config"] == generator.network.config
    state = generator.network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.network.state_dict().items())
    assert not again.network.training and not any(p.requires_grad for p in again.network.parameters())
    assert torch.equal(sampling.sample(again, 4), sampling.sample(generator, 4))
    sampling.save_generator(tmp_path / "again.safetensors", again.network, about())
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_file_that_is_no_generator_is_one_sentence(tmp_path):
    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2)}, {"shape": [1]})
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-3])
    for name, sentence in (("other", "is not a generator"), ("half", "is damaged"), ("no", "is missing")):
        with pytest.raises(Problem, match=sentence) as caught:
            sampling.load_generator(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)


# --- a few steps ----------------------------------------------------------------------------------------

FEW = {"steps": {"1": [10.0], "2": [10.0, 0.8], "4": [10.0, 3.0, 0.8, 0.2]}, "boundary": 0.1}


class Shrink(nn.Module):
    """f(x; sigma) = x / (1 + sigma): what it is given can be read off what it returns."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x, sigma, labels=None):
        return self.gain * x / (1 + sigma.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("renoise", ["boundary", "whole"])
@pytest.mark.parametrize("clip", [False, True])
def test_few_steps_noise_the_last_image_to_the_next_level(steps, renoise, clip):
    """x <- f(x + s n; sigma), s^2 = sigma^2 - boundary^2 or sigma^2, x clipped to the pixels' range first or not."""
    net = sampling.Generator(Shrink(), about(label_dim=0, sampler={**FEW, "renoise": renoise, "clip": clip}))
    draw = draws.Draw(7, "sample", 0, 6)
    sigmas = FEW["steps"][str(steps)]
    x = sigmas[0] * draw.normal("z", 1, 8, 8) / (1 + sigmas[0])
    for step, sigma in enumerate(sigmas[1:], 1):
        x = x.clamp(-1, 1) if clip else x
        extra = (sigma**2 - 0.1**2) ** 0.5 if renoise == "boundary" else sigma
        x = (x + extra * draw.normal(f"renoise/{step}", 1, 8, 8)) / (1 + sigma)
    found = sampling.few_steps(net, draw, None, sigmas)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-6)
    assert torch.equal(sampling.sample(net, 6, seed=7, steps=steps), data.decode(found, CODEC))


def test_an_image_of_few_steps_depends_on_its_seed_and_index_only():
    net = sampling.Generator(Shrink(), about(label_dim=0, sampler=FEW))
    whole = sampling.sample(net, 20, seed=1, steps=4)
    parts = torch.cat(list(sampling.images_of(net, 20, 1, batch=7, steps=4)))
    assert torch.equal(parts, whole) and torch.equal(sampling.sample(net, 3, seed=1, steps=4), whole[:3])


def test_a_number_of_steps_that_the_method_does_not_define_is_one_sentence(generator):
    with pytest.raises(Problem, match="steps is 2; this generator can be sampled in 1 step"):
        sampling.sample(generator, 4, steps=2)


@pytest.mark.parametrize("labels", [3, -1, [0, 1, 7, 2]])
def test_a_class_that_there_is_not_is_one_sentence(generator, labels):
    with pytest.raises(Problem, match="expected 0 to 2"):
        sampling.sample(generator, 4, labels=labels)
    with pytest.raises(Problem, match="knows no labels"):
        sampling.sample(sampling.Generator(Plain(), about(label_dim=0)), 4, labels=labels)


@pytest.mark.parametrize("labels", [[0, 1], [], 1.5, [[0, 1, 2, 0]]])
def test_labels_of_another_number_or_kind_are_one_sentence(generator, labels):
    with pytest.raises(Problem, match="expected one class, or 4 of them"):
        sampling.sample(generator, 4, labels=labels)
    with pytest.raises(Problem, match="n is 0"):
        sampling.sample(generator, 0)


def test_a_boundary_is_part_of_a_saved_generator(tmp_path, generator):
    """A consistency model comes back with its scalings: at the boundary it returns what it is given."""
    sampling.save_generator(tmp_path / "cm", generator.network, about(sampler={**FEW, "renoise": "whole"}))
    network = sampling.load_generator(tmp_path / "cm").network
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x, 0.1), x, rtol=1e-6, atol=1e-6)
    assert generator.network.boundary == 0 and not torch.allclose(generator.network(x, 0.1), x, atol=1e-3)


# --- the command ----------------------------------------------------------------------------------------


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    code = __main__.main(["sample", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_writes_a_grid_and_single_images(tmp_path, capsys, generator):
    """`eldistill sample` gives what the Python function gives, in one picture and one by one."""
    path = tmp_path / "generator_ema.safetensors"
    sampling.save_generator(path, generator.network, about())
    grid, out = tmp_path / "new" / "out.png", tmp_path / "images"
    code, text, _ = command(capsys, "--generator", str(path), "--n", "7", "--seed", "3", "--label", "1",
                            "--grid", str(grid), "--out", str(out))  # fmt: skip
    assert code == 0 and "7 images" in text
    images = sampling.sample(generator, 7, seed=3, labels=1)
    from PIL import Image

    with Image.open(grid) as picture:
        assert np.array_equal(np.array(picture), np.array(pictures.grid(images, 3, 4)))
    assert sorted(each.name for each in out.iterdir()) == [f"{index:06d}.png" for index in range(7)]
    for index, image in enumerate(images):
        with Image.open(out / f"{index:06d}.png") as picture:
            assert np.array_equal(np.array(picture), image[0].numpy())


def test_a_class_is_asked_for_by_its_name(tmp_path, capsys, generator):
    """A name comes before a number: labels 1 to 3 are the classes 0 to 2, and `--label 1` is what the data called 1."""
    for names in (["cat", "dog", "owl"], ["1", "2", "3"], ["2", "0", "1"]):
        named = sampling.Generator(generator.network, about(class_names=names))
        assert [sampling.class_number(named, name) for name in names] == [0, 1, 2]
    assert [sampling.class_number(generator, str(number)) for number in range(3)] == [0, 1, 2]
    path = tmp_path / "generator_ema.safetensors"
    sampling.save_generator(path, generator.network, about(class_names=["cat", "dog", "owl"]))
    written = []
    for label in ("owl", "2"):
        assert command(capsys, "--generator", str(path), "--label", label, "--grid", str(tmp_path / "g.png"))[0] == 0
        written.append((tmp_path / "g.png").read_bytes())
    assert written[0] == written[1]
    code, _, error = command(capsys, "--generator", str(path), "--label", "dgo", "--grid", str(tmp_path / "g.png"))
    assert (
        code == 2
        and "--label is dgo; did you mean dog? Expected one of cat, dog, owl, or a number from 0 to 2" in error
    )
    with pytest.raises(Problem, match="--label is cat; expected none: this generator knows no labels"):
        sampling.class_number(sampling.Generator(Plain(), about(label_dim=0)), "cat")


@pytest.mark.parametrize(("arguments", "words"), [
    ((), "nothing to write"),
    (("--grid", "a.png", "--n", "0"), "--n is 0"),
    (("--grid", "a.png", "--steps", "2"), "steps is 2; this generator"),
    (("--grid", "a.png", "--label", "9"), "--label is 9; expected a number from 0 to 2"),
    (("--grid", "a.png", "--label", "-1"), "expected a number from 0 to 2"),
    (("--grid", "a.png", "--label", "9" * 40), "expected a number from 0 to 2"),
    (("--grid", "a.png", "--label", "cat"), "--label is cat; expected a number from 0 to 2"),
    (("--grid", "a.png", "--device", "tpu"), "--device is tpu"),
])  # fmt: skip
def test_a_command_that_cannot_be_is_one_sentence(tmp_path, capsys, monkeypatch, generator, arguments, words):
    monkeypatch.chdir(tmp_path)
    sampling.save_generator("g.safetensors", generator.network, about())
    code, text, error = command(capsys, "--generator", "g.safetensors", *arguments)
    assert code == 2 and not text and words in error and error.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["g.safetensors"]
    code, _, error = command(capsys, "--generator", "none.safetensors", "--grid", "a.png")
    assert code == 2 and "none.safetensors is missing" in error


def test_before_training_a_generator_shows_what_the_teacher_denoises(tmp_path):
    teacher = lively()
    sampling.save_generator(tmp_path / "g", teacher, about(sigma=80.0))
    one_step = sampling.sample(sampling.load_generator(tmp_path / "g"), 10, seed=2)
    of_teacher = torch.cat(list(images_of_teacher(teacher, about(), 10, steps=1, seed=2, batch=4)))
    assert (one_step.int() - of_teacher.int()).abs().max() <= 1


def test_a_teachers_images_are_heuns_from_a_generators_latents():
    teacher = lively()
    found = torch.cat(list(images_of_teacher(teacher, about(label_dim=3), 6, steps=4, seed=5)))
    draw = draws.Draw(5, "sample", 0, 6)
    one_hot = nn.functional.one_hot(draw.integers("label", 3), 3).float()
    x = heun(teacher, draw.normal("z", 1, 8, 8), one_hot, 4)
    assert torch.equal(found, data.decode(x, CODEC)) and found.shape == (6, 1, 8, 8)


# --- pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "columns", "scale", "c"), [(9, 3, 1, 1), (7, 3, 2, 3), (1, 4, 1, 1), (8, 8, 4, 1), (4, 2, 1, 4)]
)
def test_a_grid_shows_every_image_at_its_place(n, columns, scale, c):
    images = torch.randint(0, 256, (n, c, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = pictures.grid(images, columns, scale)
    rows = -(-n // columns)
    assert picture.size == (columns * 7 * scale, rows * 6 * scale)
    assert picture.mode == ("L" if c == 1 else "RGB")
    board = np.asarray(picture).reshape(picture.height, picture.width, -1)[::scale, ::scale]
    for index, image in enumerate(images[:, :3]):
        top, left = index // columns * 6, index % columns * 7
        assert np.array_equal(board[top : top + 5, left : left + 6], image.permute(1, 2, 0))
    assert (board[5::6] == 255).all() and (board[:, 6::7] == 255).all()


# --- the package --------------------------------------------------------------------------------------


def test_the_package_offers_two_names():
    assert eldistill.load_generator is sampling.load_generator and eldistill.sample is sampling.sample
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = eldistill.nothing


def test_importing_the_package_does_not_import_torch():
    code = "import sys, eldistill; print('torch' in sys.modules); eldistill.sample; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_teachers_images_are_not_made_again_after_a_stop(tmp_path, monkeypatch):
    """Equal images, with as few passes as are missing; a damaged chunk is made again; large images are not stored."""
    teacher, passes = lively(), []
    teacher.register_forward_hook(lambda *given: passes.append(1))

    def made(folder: Path | None, count: int = 10) -> list[torch.Tensor]:
        passes.clear()
        return list(
            itertools.islice(images_of_teacher(teacher, about(), 10, steps=1, seed=2, batch=4, folder=folder), count)
        )

    whole, full = torch.cat(made(None)), len(passes)
    made(tmp_path, 2)
    rest = made(tmp_path)
    assert torch.equal(torch.cat(rest), whole) and 3 * len(passes) == full
    assert torch.equal(torch.cat(made(tmp_path)), whole) and not passes
    (tmp_path / "images-4-4.npy").write_bytes(b"half")
    assert torch.equal(torch.cat(made(tmp_path)), whole) and 3 * len(passes) == full
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images-0-4.npy", "images-4-4.npy", "images-8-2.npy"]
    monkeypatch.setattr(teachers, "STORED_BYTES", 63)
    made(tmp_path / "large")
    assert not (tmp_path / "large").exists()
