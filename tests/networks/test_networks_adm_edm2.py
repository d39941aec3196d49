# SPDX-License-Identifier: Apache-2.0
"""What every denoiser keeps to (encoder and decoder apart, boundary, two runs in one graph), and what is particular
to ADM and EDM2. Their golden arrays are compared in test_networks.py too."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch

from eldistill import networks
from eldistill.diffusion import draws, noise
from eldistill.diffusion.dropout import masks
from eldistill.networks import adm, edm2, layers
from eldistill.sampling.heun import heun
from tests.conftest import GOLDEN

DATA = GOLDEN
COMMON = {"img_resolution": 8, "img_channels": 2, "label_dim": 3, "num_blocks": 1, "attn_resolutions": [4]}
SMALL = {
    "song": {**COMMON, "model_channels": 16, "channel_mult": [1, 2], "augment_dim": 9, "dropout": 0.0},
    "adm": {**COMMON, "model_channels": 32, "channel_mult": [1, 2], "augment_dim": 9, "dropout": 0.0},
    "edm2": {**COMMON, "model_channels": 8, "channel_mult": [1, 2], "channels_per_head": 8, "logvar_channels": 16},
}
FEATURES = {"song": (32, 4, 4), "adm": (64, 4, 4), "edm2": (16, 4, 4)}
ATOL = {torch.float32: 1e-5, torch.float64: 1e-12}


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(name: str, dtype=torch.float64, **changes) -> torch.nn.Module:
    """A small network in evaluation mode whose zero-like layers have been woken up."""
    network = networks.build({"network": name, **SMALL[name], **changes}).to(dtype).eval()
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter += 0.1 * normal(*parameter.shape, seed=index) if parameter.ndim else 0.5
    return network


def batch(n: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, sigma, labels."""
    return normal(n, 2, 8, 8), torch.tensor([0.05, 0.7, 30.0])[:n], torch.eye(3)[:n]


def relative_error(value: torch.Tensor, reference: np.ndarray) -> float:
    assert value.shape == reference.shape
    return float(np.abs(value.detach().double().numpy() - reference).max() / np.abs(reference).max())


@pytest.fixture(params=SMALL)
def name(request) -> str:
    return request.param


# Encoder and decoder apart


@pytest.mark.parametrize("dtype", ATOL, ids=["f32", "f64"])
@torch.no_grad()
def test_encode_and_both_agree_with_forward(name, dtype):
    network, (x, sigma, labels) = lively(name, dtype), batch()
    denoised = network(x, sigma, labels)
    features = network.encode(x, sigma, labels)
    both = network.both(x, sigma, labels)
    assert torch.equal(both[0], denoised) and torch.equal(both[1], features)
    assert features.shape == (3, *FEATURES[name]) and network.features_shape == FEATURES[name]
    assert features.dtype == dtype and torch.isfinite(features).all() and features.std() > 0.1
    assert torch.equal(network.encode(x, 0.75), network.both(x, torch.tensor(0.75))[1])
    if network.augment_dim:
        augment = normal(3, 9)
        assert torch.equal(network.both(x, sigma, labels, augment)[0], network(x, sigma, labels, augment))
        assert not torch.equal(network.encode(x, sigma, labels, augment), features)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_features_shape_of_other_depths(name, levels):
    changes = {"channel_mult": [2, 1, 3][:levels], "num_blocks": 2}
    network = lively(name, torch.float32, **changes)
    c, h, w = network.features_shape
    assert network.encode(*batch(1)).shape == (1, c, h, w) and h == w == 8 >> levels - 1
    assert c == SMALL[name]["model_channels"] * changes["channel_mult"][-1]


@torch.no_grad()
def test_decode_leaves_what_encode_gave(name):
    inner, (x, sigma, labels) = lively(name).network, batch()
    encoded = inner.encode(x.double(), sigma.double(), labels.double())
    assert torch.equal(inner.decode(*encoded), inner.decode(*encoded))


def test_hooks_fire_and_the_decoder_rests_while_encoding(name):
    network, (x, sigma, labels) = lively(name), batch()
    seen = {}
    last = list(network.network.enc.values())[-1], list(network.network.dec.values())[-1]
    for which, layer in zip(("encoder", "decoder"), last, strict=True):
        layer.register_forward_hook(lambda _, __, out, which=which: seen.__setitem__(which, out))
    features = network.encode(x, sigma, labels)
    assert set(seen) == {"encoder"} and torch.equal(seen["encoder"], features)
    for call in (network, network.both):
        seen.clear()
        call(x, sigma, labels)
        assert set(seen) == {"encoder", "decoder"} and torch.equal(seen["encoder"], features)


def test_features_have_at_least_single_precision(name):
    network, (x, sigma, labels) = lively(name, torch.float32), batch()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        denoised, features = network.both(x, sigma, labels)
        assert network.encode(x, sigma, labels).dtype == denoised.dtype == features.dtype == torch.float32
        if name == "edm2":
            coarse = network.logvar(sigma)
            assert coarse.dtype == torch.float32
    if name == "edm2":
        assert torch.equal(coarse, network.logvar(sigma))
        assert copy.deepcopy(network).half().logvar(sigma.half()).dtype == torch.float32


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_copy_runs_twice_in_one_graph(name, dropout):
    """A discriminator's step: generated images through the whole network, real ones through the encoder."""
    network, (x, sigma, labels) = lively(name, dropout=dropout), batch()
    copied, real = copy.deepcopy(network).train(), normal(3, 2, 8, 8, seed=2)
    unused = ("map_augment.weight", "logvar_linear.weight")
    parameters = [each for key, each in copied.named_parameters() if not key.endswith(unused)]
    before = [parameter._version for parameter in parameters]

    def terms():
        draw = draws.Draw(0, "test", 0, 3)
        with masks(draw, "generated"):
            denoised, features = copied.both(x, sigma, labels)
        with masks(draw, "real"):
            of_real = copied.encode(real, sigma, labels)
        return denoised.square().mean() + features.square().mean(), of_real.pow(3).mean()

    together = torch.autograd.grad(sum(terms()), parameters)
    assert [parameter._version for parameter in parameters] == before  # no forward writes to a weight
    first = torch.autograd.grad(terms()[0], parameters)
    second = torch.autograd.grad(terms()[1], parameters, allow_unused=True)
    for whole, one, other in zip(together, first, second, strict=True):
        assert torch.allclose(whole, one if other is None else one + other, rtol=1e-9, atol=1e-12)
    assert all(torch.isfinite(gradient).all() for gradient in together)


# The boundary


@torch.no_grad()
def test_the_boundary_leaves_the_image(name):
    network, (x, _, labels) = lively(name, torch.float32), batch()
    assert network.boundary == 0.0 and "boundary" not in "".join(network.state_dict())
    plain = network(x, 0.7, labels)
    network.boundary = 0.002
    consistent = copy.deepcopy(network)
    assert consistent.boundary == 0.002
    assert torch.equal(consistent(x, 0.002, labels), x)
    assert torch.equal(consistent.both(x, torch.full((3,), 0.002), labels)[0], x)
    assert 0 < (consistent(x, 0.7, labels) - plain).abs().max() < 0.05
    assert torch.equal(consistent.encode(x, 0.7, labels), network.encode(x, 0.7, labels))
    network.boundary = 0.0
    assert torch.equal(network(x, 0.7, labels), plain)


def test_scalings_match_consistency_models():
    with np.load(DATA / "methods" / "cm_scalings.npz") as golden:
        sigma = torch.from_numpy(golden["sigma"])
        for prefix, boundary in (("cm", 0.002), ("edm", 0.0)):
            found = noise.precondition(sigma, 0.5, boundary)
            for value, coefficient in zip(found, ("c_skip", "c_out", "c_in"), strict=False):
                assert np.allclose(value.numpy(), golden[f"{prefix}_{coefficient}"], rtol=1e-6, atol=0)
            assert torch.equal(found[3], sigma.log() / 4)
        for zero, absent in zip(found, noise.precondition(sigma, 0.5), strict=True):
            assert torch.equal(zero, absent)


# What every denoiser keeps to


@torch.no_grad()
def test_equivalent_inputs(name):
    network, (x, sigma, labels) = lively(name), batch()
    same = torch.full((3,), 0.75)
    plain, labelled = network(x, same), network(x, same, labels)
    assert torch.equal(plain, network(x, same, torch.zeros(3, 3)))
    assert torch.allclose(plain, network(x, torch.tensor(0.75)), rtol=1e-11)
    assert torch.allclose(labelled[:1], network(x[:1], 0.75, labels[0]), rtol=1e-11)
    assert not torch.allclose(plain, labelled, rtol=1e-3)
    whole, order = network(x, sigma, labels), [2, 0, 1]
    assert torch.allclose(network(x[order], sigma[order], labels[order]), whole[order], rtol=1e-11)
    assert network.float()(x.double(), sigma.double()).dtype == torch.float32
    unconditional = lively(name, label_dim=0)
    assert torch.equal(unconditional(x, 0.5), unconditional(x, 0.5, torch.eye(3)))


def test_wrong_shapes_are_named(name):
    network = lively(name)
    for call in (network, network.encode, network.both):
        with pytest.raises(ValueError, match="x has the shape"):
            call(torch.zeros(1, 3, 8, 8), 1.0)
        with pytest.raises(ValueError, match="augment_labels has the shape"):
            call(torch.zeros(1, 2, 8, 8), 1.0, None, torch.zeros(1, 8))


@torch.no_grad()
def test_dropout_acts_in_training_only(name):
    network, (x, sigma, labels) = lively(name, dropout=0.3), batch()
    quiet = network(x, sigma, labels)
    before = torch.get_rng_state()

    def masked(purpose: str, part=slice(None)):
        with masks(draws.Draw(0, "test", 0, 3)[part], purpose):
            return network(x[part], sigma[part], labels[part])

    network.train()
    noisy = masked("a")
    assert not torch.allclose(noisy, quiet) and not torch.allclose(noisy, masked("b"))
    assert torch.equal(masked("a"), noisy) and torch.equal(torch.get_rng_state(), before)
    assert torch.allclose(masked("a", slice(1, 2)), noisy[1:2], rtol=0, atol=1e-12)
    with pytest.raises(RuntimeError, match="masks"):
        network(x, sigma)
    assert torch.equal(network.eval()(x, sigma, labels), quiet)
    still = lively(name)
    assert torch.equal(still.train()(x, sigma), still.eval()(x, sigma))


def test_same_seed_same_weights_and_no_global_randomness(name):
    config = {"network": name, **SMALL[name]}
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = networks.build(config, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    again, other = networks.build(config, seed=5).state_dict(), networks.build(config, seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) and torch.isfinite(first[key]).all() for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@torch.no_grad()
def test_a_fresh_network_is_the_wiener_filter(name):
    network, (x, sigma, labels) = networks.build({"network": name, **SMALL[name]}).eval(), batch()
    c_skip, c_out, _, _ = noise.precondition(sigma.reshape(-1, 1, 1, 1), 0.5)
    assert ((network(x, sigma, labels) - c_skip * x).abs() <= 1e-3 * c_out).all()
    if name != "song":  # its last layer starts at almost zero only
        assert torch.equal(network(x, sigma, labels), c_skip * x)


@torch.no_grad()
@pytest.mark.parametrize("module", [adm, edm2])
def test_forgotten_weights_show(module):
    settings = SMALL[module.__name__.split(".")[-1]]
    assert module.network(**settings)(torch.zeros(1, 2, 8, 8), 1.0).isnan().all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("adm", {"img_resolution": 9}, "img_resolution 9 cannot be halved 1 times"),
        ("adm", {"channel_mult": []}, "cannot be halved"),
        ("adm", {"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ("adm", {"model_channels": 31}, "must be even, not 31"),
        ("adm", {"channel_mult": [1, 7]}, "224 channels cannot be split into 3 equal heads"),
        ("adm", {"model_channels": 80, "channel_mult": [1, 3], "attn_resolutions": []}, "cannot be split"),
        ("adm", {"sigma_dta": 1}, "no setting 'sigma_dta'; the nearest one is 'sigma_data'"),
        ("edm2", {"img_resolution": 9}, "cannot be halved"),
        ("edm2", {"dropout": -0.1}, "dropout must lie"),
        ("edm2", {"res_balance": 1.5}, r"res_balance must lie in \[0, 1\], not at 1.5"),
        ("edm2", {"clip_act": 0}, "clip_act must be positive"),
        ("edm2", {"channels_per_head": 5}, "16 channels cannot be split into 3 equal heads"),
        ("edm2", {"resample_filter": [1, 2, 1]}, "even length"),
    ],
)
def test_bad_settings_are_named(name, change, message):
    with pytest.raises(ValueError, match=message):
        networks.build({"network": name, **SMALL[name], **change})


# ADM


def test_initial_weights_of_adm():
    network = networks.build({"network": "adm", **SMALL["adm"], "model_channels": 64})
    for key, parameter in network.named_parameters():
        layer = key.split(".")[-2].rsplit("x")[-1]
        if "norm" in layer:
            assert (parameter == (1 if key.endswith("weight") else 0)).all()
        elif layer in ("conv1", "proj", "out_conv", "map_augment"):
            assert (parameter == 0).all()
        elif layer == "map_label":
            assert 0.9 < parameter.std() < 1.1
        else:
            bound = network.get_parameter(key.rsplit(".", 1)[0] + ".weight")[0].numel() ** -0.5
            assert parameter.abs().max() <= bound and parameter.abs().max() > 0.9 * bound
            assert 0.4 * bound < parameter.std() < 0.75 * bound  # uniform: bound / sqrt(3)


def test_adm_attends_with_heads_of_64_channels():
    network = adm.network(**{**SMALL["adm"], "model_channels": 64, "attn_resolutions": [8]}).model
    heads = {f"{part}.{key}": layer.heads for part in ("enc", "dec") for key, layer in getattr(network, part).items()
             if isinstance(layer, adm.Block)}  # fmt: skip
    assert heads == {
        "enc.8x8_block0": 1, "enc.4x4_down": 0, "enc.4x4_block0": 0, "dec.4x4_in0": 2, "dec.4x4_in1": 0,
        "dec.4x4_block0": 0, "dec.4x4_block1": 0, "dec.8x8_up": 0, "dec.8x8_block0": 1, "dec.8x8_block1": 1,
    }  # fmt: skip
    narrow = adm.network(**SMALL["adm"], channel_mult_emb=1).model
    assert not hasattr(narrow.enc["8x8_block0"], "qkv") and narrow.enc["8x8_block0"].heads == 0


# EDM2: operations that keep the magnitude


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(DATA / "networks" / "edm2_math.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def test_operations_match_the_original(golden):
    a, b, c, e = (golden[f"x_{letter}"] for letter in "abce")
    found = {
        "normalize_default": edm2.normalise(a),
        "normalize_dim1": edm2.normalise(a, dim=1),
        "mp_silu": edm2.mp_silu(a),
        "mp_sum_t0p3": edm2.mp_sum(a, c, 0.3),
        "mp_cat_t0p5": edm2.mp_cat(a, b, 0.5),
        **{
            f"{way}_{''.join(map(str, taps))}": edm2.Resample(**{way: True}, resample_filter=taps)(e)
            for way in ("up", "down")
            for taps in ([1, 1], [1, 3, 3, 1])
        },
    }
    errors = {key: relative_error(value, golden[key].numpy()) for key, value in found.items()}
    print({key: f"{error:.1e}" for key, error in errors.items()})
    assert max(errors.values()) < 5e-7


def test_training_matches_the_original(golden):
    """Its forced normalisation writes in the forward pass; ours by `normalise_weight` before it."""
    layer = edm2.MPConv(4, 6, 3, 3)
    layer.load_state_dict({"weight": golden["train_w_before"]})
    layer.normalise_weight()
    y = layer(golden["train_x"], golden["train_gain"])
    (y * golden["train_cotangent"]).sum().backward()
    found = {"train_w_after": layer.weight, "train_y": y, "train_grad_w": layer.weight.grad}
    errors = {key: relative_error(value, golden[key].numpy()) for key, value in found.items()}
    errors["eval_y_after"] = relative_error(
        layer.eval()(golden["train_x"], golden["train_gain"]), golden["eval_y_after"].numpy()
    )
    print({key: f"{error:.1e}" for key, error in errors.items()})
    assert max(errors.values()) < 1e-6


def test_operations_keep_the_mean_square():
    a, b = normal(64, 32, 8, 8).double(), normal(64, 96, 8, 8, seed=2).double()

    def size(x):
        return x.square().mean().sqrt()

    assert size(edm2.normalise(7 * a)) == pytest.approx(1, abs=1e-4)
    assert size(edm2.mp_silu(a)) == pytest.approx(1, abs=0.01)
    for share in (0.0, 0.3, 1.0):
        assert size(edm2.mp_sum(a, b[:, :32], share)) == pytest.approx(1, abs=0.01)
        joined = edm2.mp_cat(a, b, share)
        assert size(joined) == pytest.approx(1, abs=0.01)
        parts = [part.square().sum().sqrt() for part in joined.split([32, 96], dim=1)]
        assert parts[1] * (1 - share) == pytest.approx(float(parts[0] * share), rel=0.02, abs=1e-9)
    fourier, linear = edm2.MPFourier(256), edm2.MPConv(96, 512)
    for layer in (fourier, linear):
        layers.initialise(layer, torch.Generator().manual_seed(0))
    assert size(fourier(normal(512))) == pytest.approx(1, abs=0.02)
    linear.requires_grad_(False)
    assert size(linear(normal(512, 96))) == pytest.approx(1, abs=0.02)
    assert size(linear(normal(512, 96), 0.3)) == pytest.approx(0.3, abs=0.01)


def test_precision_of_the_operations():
    """Norms and frequencies in float32 at least; results in the dtype of the input."""
    wide = torch.full((1, 4096), 60.0, dtype=torch.float16)  # the sum of squares overflows float16
    assert torch.allclose(edm2.normalise(wide), torch.ones_like(wide)) and edm2.normalise(wide).dtype == torch.float16
    fourier = edm2.MPFourier(8)
    layers.initialise(fourier, torch.Generator().manual_seed(0))
    x = normal(5)
    expected = math.sqrt(2) * (x.double()[:, None] * fourier.freqs.double() + fourier.phases.double()).cos()
    assert torch.allclose(fourier(x).double(), expected, atol=1e-5) and fourier(x.half()).dtype == torch.float16
    layer = edm2.MPConv(4, 6)
    layers.initialise(layer, torch.Generator().manual_seed(0))
    assert layer(x.new_ones(2, 4).half()).dtype == torch.float16 and layer.weight.dtype == torch.float32


def test_a_fresh_edm2_keeps_unit_magnitude_everywhere():
    network = networks.build({"network": "edm2", **SMALL["edm2"], "model_channels": 32}).eval()
    sizes = {}
    for key, layer in (*network.unet.enc.items(), *network.unet.dec.items()):
        layer.register_forward_hook(lambda _, __, out, key=key: sizes.__setitem__(key, float(out.detach().std())))
    network(math.sqrt(0.5) * normal(16, 2, 8, 8), 0.5)
    assert len(sizes) == 9 and all(0.7 < size < 1.3 for size in sizes.values()), sizes


def test_initial_weights_of_edm2():
    network = networks.build({"network": "edm2", **SMALL["edm2"], "model_channels": 32})
    for key, parameter in network.requires_grad_(False).named_parameters():
        if key.endswith("gain"):
            assert parameter.shape == () and parameter == 0
        else:
            assert parameter.std() == pytest.approx(1, abs=0.25) and abs(parameter.mean()) < 0.35
    assert 4 < network.unet.emb_fourier.freqs.std() < 9
    assert 0 <= network.unet.emb_fourier.phases.min() and 4 < network.unet.emb_fourier.phases.max() <= 2 * math.pi


def test_no_label_is_a_row_of_zeros():
    """Without a label the noise embedding still enters with its weight of the sum (as in the original)."""
    inner, (x, sigma, _) = lively("edm2").unet, batch()
    x, sigma = x.double(), sigma.double()
    with torch.no_grad():
        assert torch.equal(inner(x, sigma), inner(x, sigma, torch.zeros(3, 3).double()))


# EDM2: forced weight normalisation


def normalise_all(network: torch.nn.Module) -> int:
    """What the training loop does after a step of the optimiser."""
    found = [module for module in network.modules() if hasattr(module, "normalise_weight")]
    for module in found:
        module.normalise_weight()
    return len(found)


@torch.no_grad()
def test_normalising_changes_weights_but_not_the_function():
    network, (x, sigma, labels) = lively("edm2"), batch()
    weights = [each for each in network.parameters() if each.ndim]
    for parameter in weights:
        parameter *= 3  # as if training had let it grow
    start = network(x, sigma, labels), network.logvar(sigma)
    assert normalise_all(network) == len(weights)
    once, after = [each.clone() for each in weights], (network(x, sigma, labels), network.logvar(sigma))
    for one, other in zip(start, after, strict=True):
        assert relative_error(other, one.numpy()) < 3e-4  # eps = 1e-4 beside norms of 3 and of 1
    for weight in weights:
        rows = weight.flatten(1).square().mean(1).sqrt()
        assert torch.allclose(rows, torch.ones_like(rows), rtol=0, atol=1.5e-4)
    normalise_all(network)
    for one, other in zip(once, weights, strict=True):
        assert torch.allclose(one, other, rtol=1.5e-4, atol=0)
    for one, other in zip(after, (network(x, sigma, labels), network.logvar(sigma)), strict=True):
        assert relative_error(other, one.numpy()) < 1e-7


def test_gradients_keep_the_size_of_the_weights():
    """The function does not depend on the size of a row, so the gradient is orthogonal to it, up to eps."""
    network, (x, sigma, labels) = lively("edm2").train(), batch()
    normalise_all(network)
    assert all(each.is_leaf and each.requires_grad for each in network.parameters())
    (network(x, sigma, labels).pow(3).mean() + network.logvar(sigma).square().mean()).backward()
    for parameter in network.parameters():
        if parameter.ndim:
            gradient, weight = parameter.grad.flatten(1), parameter.detach().flatten(1)
            along = (gradient * weight).sum(1)
            assert (gradient.norm(dim=1) > 0).all()
            assert (along.abs() <= 2e-3 * gradient.norm(dim=1) * weight.norm(dim=1)).all()


# EDM2: the sampler


class Guided(torch.nn.Module):
    """D_guide + weight (D - D_guide), the guide being the same network without labels."""

    def __init__(self, network: torch.nn.Module, weight: float):
        super().__init__()
        self.network, self.weight = network, weight

    def forward(self, x, sigma, labels=None):
        guide = self.network(x, sigma)
        return guide + self.weight * (self.network(x, sigma, labels) - guide)


def test_samples_match_the_original():
    with np.load(DATA / "networks" / "edm2_cond_latent.npz") as arrays:
        golden = {key: arrays[key] for key in arrays.files}
    settings = json.loads(str(golden["_kwargs_json"]))["init_kwargs"]
    settings.pop("use_fp16")
    network = networks.build({"network": "edm2", **settings}).eval()
    network.load_state_dict({key: torch.from_numpy(golden[key]) for key in golden if not key.startswith("_")})
    latents, labels = torch.from_numpy(golden["_sampler_latents"]), torch.from_numpy(golden["_labels"])
    runs = {
        "det": (network, torch.float32, 5e-6),
        # In float64, as the reference's own rounding, which guidance amplifies, is 3e-6 already.
        "guid1p7": (Guided(network, 1.7), torch.float64, 5e-6),
        "det_f64": (network, torch.float64, 1e-12),
    }
    for key, (model, dtype, tolerance) in runs.items():
        with torch.no_grad():
            found = heun(model.to(dtype), latents, labels, steps=6)
        error = relative_error(found, golden[f"_sampler_heun6_{key}"])
        print(f"{key}: {error:.1e}")
        assert error < tolerance
