# SPDX-License-Identifier: Apache-2.0
"""Networks against golden arrays of the original EDM code, and against mathematics (arXiv 2206.00364)."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from eldistill import networks
from eldistill.diffusion import draws, dropout, noise
from eldistill.networks import adm, edm2, layers, precond, song
from tests import conftest

DATA = conftest.GOLDEN / "networks"
GOLDEN = [
    *("song_ddpmpp_uncond", "song_ddpmpp_cond", "song_ddpmpp_3level", "song_ncsnpp_uncond"),
    *("adm_cond", "adm_cond_2heads", "edm2_cond_latent", "edm2_uncond_rgb_3level", "edm2_variant"),
]
MODULES = {"song": song, "adm": adm, "edm2": edm2}
OFFICIAL = json.loads((DATA / "official_state_shapes.json").read_text())
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}  # max abs error / max abs reference
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
SMALL = {
    "network": "song",
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 3,
    "augment_dim": 9,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.0,
}


def from_official(init_kwargs: dict) -> dict:
    """The configuration of a published network (only what the published checkpoints use)."""
    settings = dict(init_kwargs)
    settings.pop("use_fp16")
    assert settings.pop("decoder_type", "standard") == "standard"
    name = {"SongUNet": "song", "DhariwalUNet": "adm", None: "edm2"}[settings.pop("model_type", None)]
    return {"network": name, **settings}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def relative_error(value: torch.Tensor, reference: np.ndarray) -> float:
    assert value.shape == reference.shape
    return float(np.abs(value.detach().double().numpy() - reference).max() / np.abs(reference).max())


def lively(config: dict, seed: int = 0) -> precond.EDMPrecond:
    """A network in evaluation mode, in float64, whose zero-like layers have been woken up."""
    network = networks.build(config, seed).double().eval()
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter += 0.1 * normal(*parameter.shape, seed=index).double()
    return network


class Golden:
    """One golden file and the network it describes."""

    def __init__(self, name: str):
        with np.load(DATA / f"{name}.npz") as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        self.names = [key for key in self.arrays if not key.startswith("_")]
        kwargs = json.loads(str(self.arrays["_kwargs_json"]))
        self.config = from_official(kwargs["init_kwargs"])
        assert kwargs["class"] == ("Precond" if self.config["network"] == "edm2" else "EDMPrecond")

    def network(self, dtype: torch.dtype) -> precond.EDMPrecond:
        network = networks.build(self.config).eval()
        network.load_state_dict({key: torch.from_numpy(self.arrays[key]) for key in self.names}, strict=True)
        return network.to(dtype)

    def tensor(self, key: str, dtype: torch.dtype) -> torch.Tensor | None:
        return torch.from_numpy(self.arrays[key]).to(dtype) if key in self.arrays else None


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request) -> Golden:
    return Golden(request.param)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=SUFFIX.get)
def test_outputs_match_the_original(golden, dtype, record_property):
    network, suffix = golden.network(dtype), SUFFIX[dtype]
    x, sigma, labels, augment = (golden.tensor(key, dtype) for key in ("_x", "_sigma", "_labels", "_augment_labels"))
    with torch.no_grad():
        outputs = {
            "D": network(x, sigma, labels),
            "D_nolabel": network(x, sigma),
            "D_aug": network(x, sigma, labels, augment),
            "D_scalar_sigma": network(x, torch.tensor(0.5, dtype=dtype), labels),
        }
        if hasattr(network, "logvar"):
            outputs["logvar"] = network.logvar(sigma)
    if labels is None:
        del outputs["D_nolabel"]  # the golden file has it for conditional networks only
    if augment is None:
        del outputs["D_aug"]
    errors = {key: relative_error(out, golden.arrays[f"_{key}_{suffix}"]) for key, out in outputs.items()}
    record_property("worst", max(errors.values()))
    print(suffix, {key: f"{error:.1e}" for key, error in errors.items()})
    assert all(out.dtype == dtype for out in outputs.values())
    assert max(errors.values()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=SUFFIX.get)
def test_gradients_match_the_original(golden, dtype, record_property):
    network = golden.network(dtype)
    x = golden.tensor("_x", dtype).requires_grad_()
    out = network(x, golden.tensor("_sigma", dtype), golden.tensor("_labels", dtype))
    (out * golden.tensor("_cotangent", dtype)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    unused = json.loads(str(golden.arrays["_grad_param_unused"]))
    names = json.loads(str(golden.arrays["_grad_param_names"]))
    assert [name for name in gradients if name not in unused] == names
    assert all(gradients[name] is None for name in unused)
    norms = torch.stack([gradients[name].double().norm() for name in names])
    references = golden.arrays["_grad_param_norms_f64"]
    errors = {
        "x": relative_error(x.grad, golden.arrays[f"_grad_x_{SUFFIX[dtype]}"]),
        "norms": relative_error(norms, references),
    }
    each = float(np.abs(norms.numpy() / references - 1).max())
    record_property("worst", max(errors.values()))
    print(SUFFIX[dtype], {key: f"{error:.1e}" for key, error in errors.items()}, f"each norm {each:.1e}")
    assert max(errors.values()) < TOLERANCE[dtype]
    assert each < 20 * TOLERANCE[dtype]  # no small gradient hides behind a large one


def test_state_names_and_order_match_the_original(golden):
    state = networks.build(golden.config).state_dict()
    assert list(state) == golden.names
    assert all(tuple(state[key].shape) == golden.arrays[key].shape for key in golden.names)


def test_resample_filters_match_the_original(golden):
    """They are constants of the file: building must give the bits that loading gives."""
    for key, value in networks.build(golden.config).state_dict().items():
        if key.endswith("resample_filter"):
            assert np.array_equal(value.numpy(), golden.arrays[key])


@pytest.mark.parametrize("name", OFFICIAL)
def test_published_state_is_matched(name):
    """Names, shapes, order, buffers and the parameter count of every published network."""
    settings = from_official(OFFICIAL[name]["init_kwargs"])
    with torch.device("meta"):  # the largest would take 6 GB
        network = MODULES[settings.pop("network")].network(**settings)
    buffers = {key for key, _ in network.named_buffers()}
    state = network.state_dict()
    found = [[key, list(value.shape)] + ["buffer"] * (key in buffers) for key, value in state.items()]
    assert found == OFFICIAL[name]["tensors"]
    assert len(state) == OFFICIAL[name]["num_tensors"]
    assert sum(parameter.numel() for parameter in network.parameters()) == OFFICIAL[name]["num_parameters"]


# Preconditioning


def test_no_noise_leaves_the_image():
    x = normal(2, 1, 8, 8).double()
    with torch.no_grad():
        assert torch.allclose(lively(SMALL)(x, 1e-12), x, rtol=0, atol=1e-10)


def test_fresh_network_is_the_wiener_filter():
    """The last layer starts at almost zero, so D starts as c_skip x, the best linear denoiser."""
    network = networks.build(SMALL).eval()
    x, sigma = normal(3, 1, 8, 8), torch.tensor([0.05, 0.7, 30.0])
    c_skip, c_out, _, _ = noise.precondition(sigma.reshape(-1, 1, 1, 1), network.sigma_data)
    with torch.no_grad():
        assert ((network(x, sigma) - c_skip * x).abs() <= 1e-3 * c_out).all()


def test_preconditioning_constants_reach_the_network():
    class Recorder(torch.nn.Module):
        img_resolution, img_channels, label_dim, augment_dim = 4, 2, 0, 0

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x, c_noise, labels, augment_labels):
            self.seen = x, c_noise
            return 3 * self.weight * torch.ones_like(x)

    x, sigma = normal(2, 2, 4, 4).double(), torch.tensor([0.3, 2.0], dtype=torch.float64)
    inner = Recorder()
    out = precond.EDMPrecond(inner, sigma_data=0.8)(x, sigma)
    for i, s in enumerate(sigma.tolist()):
        q = s**2 + 0.8**2
        assert torch.allclose(inner.seen[0][i], x[i] / math.sqrt(q), rtol=1e-14)
        assert torch.allclose(out[i], x[i] * 0.8**2 / q + 3 * s * 0.8 / math.sqrt(q), rtol=1e-14)
    assert torch.allclose(inner.seen[1], sigma.log() / 4, rtol=1e-14) and inner.seen[1].shape == (2,)


@torch.no_grad()
def test_equivalent_inputs():
    network, x = lively(SMALL), normal(3, 1, 8, 8).double()
    sigma, labels = torch.full((3,), 0.7), torch.eye(3)
    plain, labelled = network(x, sigma), network(x, sigma, labels)
    assert torch.equal(plain, network(x, sigma, torch.zeros(3, 3)))
    assert torch.equal(plain, network(x, sigma, None, torch.zeros(3, 9)))
    assert torch.allclose(plain, network(x, 0.7 * torch.ones(1)), rtol=1e-11)
    assert torch.allclose(plain, network(x, torch.tensor(0.7)), rtol=1e-11)
    assert torch.allclose(labelled[:1], network(x[:1], sigma[:1], labels[0]), rtol=1e-11)
    assert not torch.allclose(plain, labelled, rtol=1e-3)
    assert not torch.allclose(plain, network(x, sigma, None, torch.ones(3, 9)), rtol=1e-3)


@torch.no_grad()
def test_images_of_a_batch_do_not_meet():
    network, x = lively(SMALL), normal(3, 1, 8, 8).double()
    sigma, labels, order = torch.tensor([0.05, 0.7, 30.0]), torch.eye(3), [2, 0, 1]
    whole = network(x, sigma, labels)
    assert torch.allclose(network(x[order], sigma[order], labels[order]), whole[order], rtol=1e-11)
    single = torch.cat([network(x[i : i + 1], sigma[i : i + 1], labels[i : i + 1]) for i in range(3)])
    assert torch.allclose(single, whole, rtol=1e-11)


def test_unconditional_network_ignores_labels():
    network = lively({**SMALL, "label_dim": 0})
    x = normal(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(x, 0.5), network(x, 0.5, torch.eye(2)))


def test_working_dtype_follows_the_weights():
    network, x = networks.build(SMALL), normal(2, 1, 8, 8)
    assert network(x.double(), torch.tensor([0.5, 1.0]).double()).dtype == torch.float32
    assert network(x.half(), 0.5).dtype == torch.float32
    assert network.double()(x, 0.5).dtype == torch.float64


@pytest.mark.parametrize(
    ("shape", "sigma", "labels", "augment", "message"),
    [
        ((2, 3, 8, 8), [1.0], None, None, r"x has the shape \[2, 3, 8, 8\], expected \[n, 1, 8, 8\]"),
        ((2, 1, 16, 16), [1.0], None, None, "x has the shape"),
        ((1, 8, 8), [1.0], None, None, "x has the shape"),
        ((2, 1, 8, 8), [1.0, 2.0, 3.0], None, None, "3 values of sigma for 2 images"),
        ((2, 1, 8, 8), [1.0], (2, 4), None, r"labels has the shape \[2, 4\], expected \[2, 3\]"),
        ((2, 1, 8, 8), [1.0], (2,), None, "labels has the shape"),
        ((2, 1, 8, 8), [1.0], (3, 3), None, "labels has the shape"),
        ((2, 1, 8, 8), [1.0], None, (2, 8), r"augment_labels has the shape \[2, 8\], expected \[2, 9\]"),
    ],
)
def test_wrong_shapes_are_named(shape, sigma, labels, augment, message):
    zeros = [None if wanted is None else torch.zeros(wanted) for wanted in (labels, augment)]
    with pytest.raises(ValueError, match=message):
        networks.build(SMALL)(torch.zeros(shape), torch.tensor(sigma), *zeros)


# Layers


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling_keeps_constants_and_the_mean(taps):
    up = layers.Conv2d(2, 2, 0, up=True, resample_filter=taps)
    down = layers.Conv2d(2, 2, 0, down=True, resample_filter=taps)
    ones = torch.ones(1, 2, 8, 8)
    assert torch.allclose(up(ones)[..., 2:-2, 2:-2], torch.ones(1, 2, 12, 12))
    assert torch.allclose(down(ones)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    x = torch.nn.functional.pad(normal(1, 2, 4, 4), [2, 2, 2, 2])
    assert torch.allclose(up(x).sum(), 4 * x.sum(), atol=1e-4)
    assert torch.allclose(down(x).sum(), x.sum() / 4, atol=1e-5)


def test_box_filter_there_and_back():
    x = normal(2, 3, 4, 4)
    doubled = layers.Conv2d(3, 3, 0, up=True)(x)
    assert torch.equal(doubled, x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.allclose(layers.Conv2d(3, 3, 0, down=True)(doubled), x)


def test_up_and_down_are_adjoint():
    """<up x, y> = 4 <x, down y> for a symmetric filter."""
    x, y = normal(1, 2, 4, 4).double(), normal(1, 2, 8, 8, seed=2).double()
    up = layers.Conv2d(2, 2, 0, up=True, resample_filter=[1, 3, 3, 1]).double()
    down = layers.Conv2d(2, 2, 0, down=True, resample_filter=[1, 3, 3, 1]).double()
    assert torch.allclose((up(x) * y).sum(), 4 * (x * down(y)).sum(), rtol=1e-12)


def test_fused_down_is_convolution_then_resampling_inside():
    fused = layers.Conv2d(2, 4, 3, down=True, resample_filter=[1, 3, 3, 1], fused=True)
    layers.initialise(fused, generator())
    plain, halve = layers.Conv2d(2, 4, 3), layers.Conv2d(4, 4, 0, down=True, resample_filter=[1, 3, 3, 1])
    plain.load_state_dict({"weight": fused.weight, "bias": fused.bias})
    x = normal(1, 2, 12, 12)
    assert fused(x).shape == (1, 4, 6, 6)
    assert torch.allclose(fused(x)[..., 1:-1, 1:-1], halve(plain(x))[..., 1:-1, 1:-1], atol=1e-6)


def test_attention_of_each_head_by_hand():
    n, heads, width, pixels = 2, 3, 4, 6
    qkv = normal(n, heads * width * 3, 2, 3).double()
    by_hand = torch.empty(n, heads * width, pixels, dtype=torch.float64)
    for head in range(heads):
        part = qkv.reshape(n, heads, width, 3, pixels)[:, head]
        q, k, v = part[:, :, 0], part[:, :, 1], part[:, :, 2]
        weights = (q.transpose(1, 2) @ k / math.sqrt(width)).softmax(dim=2)  # [n, query, key]
        by_hand[:, head * width : (head + 1) * width] = v @ weights.transpose(1, 2)
    assert torch.allclose(layers.attention(qkv, heads).flatten(2), by_hand, rtol=1e-12)


def test_attention_without_queries_is_the_mean():
    qkv = normal(1, 12, 2, 2)
    qkv[:, 0::3] = 0
    mean = qkv[:, 2::3].mean(dim=(2, 3), keepdim=True).expand(-1, -1, 2, 2)
    assert torch.allclose(layers.attention(qkv, 2), mean, atol=1e-6)


@pytest.mark.parametrize("endpoint", [True, False])
def test_positional_frequencies(endpoint):
    x = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)
    embedding = layers.PositionalEmbedding(8, endpoint)(x)
    frequencies = [1e-4 ** (i / (3 if endpoint else 4)) for i in range(4)]
    expected = [[math.cos(v * f) for f in frequencies] + [math.sin(v * f) for f in frequencies] for v in x]
    assert torch.allclose(embedding, torch.tensor(expected, dtype=torch.float64), rtol=1e-14)


def test_fourier_embedding_has_period_one_in_f_x():
    embed = layers.FourierEmbedding(8).double()
    embed.freqs.copy_(torch.arange(1, 5))
    x = torch.tensor([0.1, 0.3], dtype=torch.float64)
    assert torch.allclose(embed(x), embed(x + 1), atol=1e-12)
    assert torch.allclose(embed(x)[:, 0], (2 * math.pi * x).cos())


def test_normalised_groups():
    out = layers.GroupNorm(64, eps=1e-12)(5 + 3 * normal(2, 64, 4, 4)).reshape(2, 16, -1)  # 16 groups of 4
    assert torch.allclose(out.mean(2), torch.zeros(2, 16), atol=1e-5)
    assert torch.allclose(out.var(2, correction=0), torch.ones(2, 16), atol=1e-4)
    assert layers.GroupNorm(256, eps=1e-6).num_groups == 32


@pytest.mark.parametrize("build", [lambda: layers.GroupNorm(3, 1e-6), lambda: layers.GroupNorm(130, 1e-6)])
def test_impossible_groups(build):
    with pytest.raises(ValueError, match="cannot be split"):
        build()


@pytest.mark.parametrize(
    "keywords",
    [{"up": True, "down": True}, {"fused": True}, {"down": True, "resample_filter": [1, 2, 1]}],
)
def test_impossible_convolutions(keywords):
    with pytest.raises(ValueError):
        layers.Conv2d(4, 4, 3, **keywords)


# Building


def test_initial_weights_follow_edm():
    network = networks.build({**SMALL, "model_channels": 32, "embedding_type": "fourier", "channel_mult_noise": 8})
    for name, parameter in network.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            out, into = parameter.shape[0], parameter.shape[1]
            bound = math.sqrt(6 / ((out + into) * parameter[0, 0].numel()))
            layer = name.split(".")[-2].rsplit("x")[-1]
            bound *= 1e-5 if layer in ("conv1", "proj") or "aux_conv" in name else 1
            bound *= math.sqrt(0.2) if layer == "qkv" else 1
            assert parameter.abs().max() <= bound
            assert parameter.abs().max() > 0.9 * bound and abs(parameter.mean()) < 0.2 * bound
            assert 0.4 * bound < parameter.std() < 0.75 * bound  # uniform: bound / sqrt(3)
    assert 12 < network.model.map_noise.freqs.std() < 20


@pytest.mark.parametrize("extra", [{}, {"embedding_type": "fourier", "encoder_type": "residual"}])
def test_same_seed_same_weights_and_no_global_randomness(extra):
    config = {**SMALL, **extra}
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = networks.build(config, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    second, other = networks.build(config, seed=5).state_dict(), networks.build(config, seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["model.map_layer0.weight"], other["model.map_layer0.weight"])
    default, zero = networks.build(config).state_dict(), networks.build(config, seed=0).state_dict()
    assert all(torch.equal(default[key], zero[key]) for key in default)
    assert all(torch.isfinite(value).all() for value in first.values())


def test_forgotten_weights_show():
    settings = {key: value for key, value in SMALL.items() if key != "network"}
    assert song.network(**settings)(torch.zeros(1, 1, 8, 8), 1.0).isnan().all()


def test_config_rebuilds_the_network(golden):
    network = golden.network(torch.float32)
    config = json.loads(json.dumps(network.config, allow_nan=False))
    fields = {field.name for field in dataclasses.fields(MODULES[config["network"]].Settings)}
    assert config == network.config and set(config) == {"network", *fields}
    assert config["sigma_data"] == network.sigma_data and config["num_blocks"] in (1, 2)
    again = networks.build(config).eval()
    assert again.config == config
    again.load_state_dict(network.state_dict(), strict=True)
    x, sigma = golden.tensor("_x", torch.float32), golden.tensor("_sigma", torch.float32)
    with torch.no_grad():
        assert torch.equal(again(x, sigma), network(x, sigma))


def test_config_is_a_copy():
    config = json.loads(json.dumps(SMALL))
    network = networks.build(config)
    network.config["channel_mult"].append(7)
    assert config == SMALL


def test_limits_of_sigma():
    network = networks.build({**SMALL, "sigma_data": 0.8, "sigma_min": 0.002, "sigma_max": 80.0})
    assert (network.sigma_data, network.sigma_min, network.sigma_max) == (0.8, 0.002, 80.0)
    assert (networks.build(SMALL).sigma_min, networks.build(SMALL).sigma_max) == (0, math.inf)
    assert (network.img_resolution, network.img_channels) == (8, 1)
    assert (network.label_dim, network.augment_dim) == (3, 9)


@torch.no_grad()
def test_dropout_acts_in_training_only():
    network, x = lively({**SMALL, "dropout": 0.3}), normal(2, 1, 8, 8)
    quiet = network(x, 0.7)
    assert torch.equal(network(x, 0.7), quiet)
    network.train()
    before = torch.get_rng_state()

    def masked(purpose, part=slice(None)):
        with dropout.masks(draws.Draw(0, "test", 0, len(x))[part], purpose):
            return network(x[part], 0.7)

    noisy, other = masked("a"), masked("b")
    assert not torch.allclose(noisy, quiet) and not torch.allclose(noisy, other)
    assert torch.equal(masked("a"), noisy) and torch.equal(torch.get_rng_state(), before)
    assert torch.allclose(masked("a", slice(1, 2)), noisy[1:2], rtol=0, atol=1e-6)
    with pytest.raises(RuntimeError, match="masks"):
        network(x, 0.7)
    assert torch.equal(network.eval()(x, 0.7), quiet)


@torch.no_grad()
def test_zero_dropout_draws_nothing():
    network, x = lively(SMALL), normal(2, 1, 8, 8)
    quiet, before = network(x, 0.7), torch.get_rng_state()
    assert torch.equal(network.train()(x, 0.7), quiet)
    assert torch.equal(torch.get_rng_state(), before)


def test_listing():
    assert {"song", "adm", "edm2"} <= set(networks.available())
    assert not {"layers", "precond"} & set(networks.available())


@pytest.mark.parametrize("name", ["sogn", "layers", "precond", "", None, 3, "../song"])
def test_unknown_network_lists_what_is_there(name):
    with pytest.raises(ValueError, match="There is no network .*known networks: .*song"):
        networks.build({**SMALL, "network": name})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_chanels": 16}, "no setting 'model_chanels'; the nearest one is 'model_channels'"),
        ({"droput": 0.1}, "no setting 'droput'; the nearest one is 'dropout'"),
        ({"embedding_type": "sinus"}, "embedding_type must be one of positional, fourier, not 'sinus'"),
        ({"encoder_type": "skip"}, "encoder_type must be one of standard, residual, not 'skip'"),
        ({"img_resolution": 9}, "img_resolution 9 cannot be halved 1 times"),
        ({"channel_mult": []}, "cannot be halved"),
        ({"channel_mult": 2}, "unusable"),
        ({"model_channels": 2}, "width must be even and >= 4"),
        ({"model_channels": 18, "channel_mult": [1, 1]}, "18 channels cannot be split"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"sigma_max": math.inf}, "unusable"),
        ({"resample_filter": [1, 2, 1]}, "even length"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        networks.build({**SMALL, **change})


def test_missing_settings_are_named():
    with pytest.raises(ValueError, match="needs img_resolution, img_channels"):
        networks.build({"network": "song"})
