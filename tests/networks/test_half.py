# SPDX-License-Identifier: Apache-2.0
"""Half precision of every network: dtypes, agreement with float32, one cast of a weight an optimiser step; derivatives in
forward mode in every precision."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eldistill import networks
from eldistill.diffusion import draws, dropout
from eldistill.networks import edm2, half, layers
from eldistill.training import compute as speed
from eldistill.training import loop, optimisers

COMMON = {"img_resolution": 8, "img_channels": 2, "num_blocks": 1, "attn_resolutions": [4], "channel_mult": [1, 2]}
EDM = {**COMMON, "label_dim": 3, "augment_dim": 9, "dropout": 0.2}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
    "channel_mult_noise": 2,
}
DIFFUSERS = {
    "network": "ddpm", "img_resolution": 8, "img_channels": 2, "block_out_channels": [16, 32], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4, "attention_head_dim": 8,
}  # fmt: skip
SMALL = {
    "ddpmpp": {"network": "song", **EDM, "model_channels": 16},
    "ncsnpp": {"network": "song", **EDM, "model_channels": 16, **NCSNPP},
    "adm": {"network": "adm", **EDM, "model_channels": 32},
    "guided": {"network": "guided", **EDM, "model_channels": 32, "num_head_channels": 32},
    "edm2": {"network": "edm2", **COMMON, "label_dim": 3, "dropout": 0.2, "model_channels": 8, "channels_per_head": 8},
    "vp": {"network": "baselines", **EDM, "model_channels": 16},
    "ve": {"network": "baselines", **EDM, "model_channels": 32, "process": "ve", "unet": "adm"},
    "ddpm": DIFFUSERS,
    "ddpm-v": {**DIFFUSERS, "prediction_type": "v_prediction"},
}
OUTPUT, COSINE = 0.03, 0.999  # relative distance of images from float32's, and the cosine of gradients with float32's
EXACT, HALF = torch.float32, torch.bfloat16
FORWARD_MODE = "ignore:.torch.jit.script. is deprecated:FutureWarning"  # torch's derivatives in forward mode use it


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SMALL)
def net(request) -> torch.nn.Module:
    """A small network in training mode, with no layer at zero."""
    if SMALL[request.param]["network"] == "ddpm":
        pytest.importorskip("diffusers")
    return lively(request.param)


def lively(name: str) -> torch.nn.Module:
    found = networks.build(SMALL[name]).train()
    with torch.no_grad():
        for index, parameter in enumerate(found.parameters()):
            parameter += 0.1 * normal(*parameter.shape, seed=index) if parameter.ndim else 0.5
    return found


def inputs(net: torch.nn.Module, n: int = 8) -> tuple:
    """x, sigma from 0.01 to 30, labels."""
    sigma = torch.logspace(-2, 1.5, n)
    labels = torch.eye(3)[torch.arange(n) % 3] if net.label_dim else None
    return normal(n, 2, 8, 8) * (0.25 + sigma**2).sqrt().reshape(-1, 1, 1, 1), sigma, labels


def denoise(net: torch.nn.Module, x, sigma, labels) -> torch.Tensor:
    with dropout.masks(draws.Draw(3, "scope", 5, len(x)), "a"):
        return net(x, sigma, labels, normal(len(x), 9, seed=7) if net.augment_dim else None)


def step(net: torch.nn.Module, precision=HALF, passes: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Denoised images, and the gradients of x and of all weights, after so many passes in one graph."""
    net.precision = precision
    x, sigma, labels = inputs(net)
    x.requires_grad_()
    net.zero_grad()
    images = sum(denoise(net, x, sigma, labels) for _ in range(passes)) / passes
    (images * normal(*images.shape, seed=2)).sum().backward()
    assert {each.grad.dtype for each in net.parameters() if each.grad is not None} == {torch.float32}
    return (
        images.detach(),
        x.grad,
        torch.cat([each.grad.flatten() for each in net.parameters() if each.grad is not None]),
    )


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), 0))


def equal(a: tuple, b: tuple) -> bool:
    return all(torch.equal(*each) for each in zip(a, b, strict=True))


def weights(net: torch.nn.Module) -> int:
    """How many weights are cast: all of F's but scalars."""
    return sum(1 for each in net.network.parameters() if each.ndim)


def test_every_denoiser_is_tested_here():
    assert {each["network"] for each in SMALL.values()} == set(networks.available()) - {"classifier"}


def test_it_agrees_with_float32(net):
    exact, rounded = step(net, EXACT), step(net)
    assert [each.dtype for each in rounded] == [torch.float32] * 3
    assert 0 < relative(rounded[0], exact[0]) < OUTPUT
    assert all(cosine(a, b) > COSINE for a, b in zip(rounded[1:], exact[1:], strict=True))
    assert equal(step(net, EXACT), exact)  # and leaves nothing behind


class Seen(TorchDispatchMode):
    """Notes what features (more channels than an image has) come out of operations, and casts of the given shapes."""

    def __init__(self, shapes=()):
        super().__init__()
        self.features, self.casts, self.shapes = set(), 0, {tuple(each) for each in shapes}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.is_floating_point():
            if found.ndim == 4 and found.shape[0] == 8 and found.shape[1] > 3:
                self.features.add(found.dtype)
            copied = function is torch.ops.aten._to_copy.default and args[0].dtype == torch.float32
            self.casts += copied and found.dtype == HALF and tuple(found.shape) in self.shapes
        return found


def test_all_features_are_bfloat16_and_no_pass_casts_a_weight(net):
    """Of norms, activations, sums, attention and dropout; after the first pass has made the copies."""
    net.precision = HALF
    norms = [each for each in net.network.modules() if isinstance(each, torch.nn.GroupNorm)]
    dtypes = set()
    for each in norms:
        each.register_forward_hook(lambda _, taken, given: dtypes.update({taken[0].dtype, given.dtype}))
    denoise(net, *inputs(net))
    with Seen([each.shape for each in net.network.parameters() if each.ndim > 1]) as seen:
        denoise(net, *inputs(net))
    assert seen.features == {HALF} and not seen.casts
    assert dtypes == ({HALF} if norms else set())


def test_pixel_norms_sum_in_float32():
    """Sums of squares that bfloat16 cannot hold: 4096 equal numbers added one by one would stop growing at 256."""
    x = torch.full((2, 4096, 1, 1), 3.0, dtype=HALF)
    found = edm2.normalise(x, dim=1)
    assert found.dtype == HALF and torch.equal(found, torch.ones_like(x))
    y = normal(4, 64, 3, 3).to(HALF)
    assert relative(edm2.normalise(y, dim=1), edm2.normalise(y.double(), dim=1)) < 2**-8
    assert edm2.normalise(torch.full_like(y, float("nan"))).isnan().all()


def test_weights_are_cast_once_an_optimiser_step(net):
    """Whatever is in between: passes with and without gradient, micro-batches, phases in which the network is frozen."""
    optimiser = torch.optim.Adam(net.parameters(), fused=True)
    for count in (1, 2, 3):
        step(net)
        with torch.no_grad():
            denoise(net, *inputs(net))
        net.requires_grad_(False)
        denoise(net, *inputs(net))
        net.requires_grad_(True)
        step(net, passes=2)
        assert net.copies.made == count * weights(net)
        optimiser.step()


@pytest.mark.parametrize("method", ["sid", "diff_instruct", "consistency"])
def test_a_training_casts_once_a_step_of_a_network(bench, method):
    """Frozen networks once for good; fake_score is used once more after its last step, the generator is not."""
    job = bench.job(method, batch=8, steps=4)
    job.micro_batch = 4
    nets = {**job.fixed, **job.nets}
    speed.set_precision("bfloat16", nets.values())
    loop.Loop(job).run()
    for name, net in nets.items():
        assert net.copies.made == {"teacher": 1, "fake_score": 5, "generator": 4, "target": 4}[name] * weights(net), (
            name
        )


def fused(net, make=torch.optim.Adam):
    optimiser = make(net.parameters(), **({"fused": True} if make is not optimisers.RAdam else {}))
    for index, each in enumerate(net.parameters()):
        each.grad = normal(*each.shape, seed=index)
    return optimiser.step


CHANGES = {
    "adam": fused,
    "adamw": lambda net: fused(net, torch.optim.AdamW),
    "radam": lambda net: fused(net, optimisers.RAdam),
    "average": lambda net: lambda: torch._foreach_lerp_(list(net.parameters()), [2 * p.detach() for p in net.parameters()], 0.3),
    "loaded": lambda net: lambda: net.load_state_dict({key: 1.1 * value for key, value in net.state_dict().items()}),
    "assigned": lambda net: lambda: net.load_state_dict({k: 1.1 * v for k, v in net.state_dict().items()}, assign=True),
    "normalised": lambda net: lambda: [m.normalise_weight() for m in net.modules() if hasattr(m, "normalise_weight")],
    "memory": lambda net: lambda: net.to(memory_format=torch.channels_last),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["ddpmpp", "edm2"])
def test_every_change_of_weights_is_noticed(name, change):
    """The next pass is that of a copy, which has never made a pass."""
    net = lively(name)
    before = step(net)
    with torch.no_grad():
        CHANGES[change](net)()
    fresh = copy.deepcopy(net)
    after = step(net)
    assert equal(after, step(fresh))
    if change not in ("memory", "normalised"):
        assert not torch.equal(after[0], before[0])


def test_a_copy_and_a_pickle_are_without(net):
    step(net)
    names, state = list(net.state_dict()), step(net)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net.copies))):
        assert getattr(other, "copies", other).made == 0
    assert list(net.state_dict()) == names and equal(step(net), state)


def test_weights_are_back_after_an_error(net):
    net.precision = HALF
    own = list(net.network.parameters())

    def fail(*_):
        raise KeyError("here")

    hook = next(
        each for each in net.network.modules() if isinstance(each, layers.Conv2d | edm2.MPConv | torch.nn.Conv2d)
    )
    handle = hook.register_forward_hook(fail)
    with pytest.raises(KeyError, match="here"):
        denoise(net, *inputs(net))
    handle.remove()
    assert all(a is b for a, b in zip(own, net.network.parameters(), strict=True))
    assert not any(getattr(each, "prepared", False) for each in net.modules()) and not half._depth["half"]
    step(net)


def test_blocks_computed_again_have_the_same_weights(net):
    wanted = step(net)
    speed.recompute_blocks([net])
    assert equal(step(net), wanted)


def test_a_graph_is_used_twice(net):
    """retain_graph, then another backward pass: gradients double; and the next graph has the same link to the weights."""
    net.precision = HALF
    images = denoise(net, *inputs(net))
    once = torch.autograd.grad(images.sum(), list(net.network.parameters()), retain_graph=True, allow_unused=True)
    again = torch.autograd.grad(images.sum(), list(net.network.parameters()), allow_unused=True)
    other = torch.autograd.grad(denoise(net, *inputs(net)).sum(), list(net.network.parameters()), allow_unused=True)
    for a, b, c in zip(once, again, other, strict=True):
        assert a is b is c is None or torch.equal(a, b) and torch.equal(a, c)


def test_a_weight_changed_before_the_way_back_is_an_error():
    net = lively("edm2")
    net.precision = HALF
    images = denoise(net, *inputs(net))
    with torch.no_grad():
        next(each for each in net.network.parameters() if each.ndim == 4).mul_(2)
    with pytest.raises(RuntimeError, match="changed in place between a pass in half precision and its backward pass"):
        images.sum().backward()


def test_inference_mode_leaves_copies_that_can_be_trained(net):
    wanted = step(copy.deepcopy(net))
    net.precision = HALF
    with torch.inference_mode():
        denoise(net, *inputs(net))
    assert equal(step(net), wanted)


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (4, 7)])
def test_gradient_of_a_normalised_weight(shape):
    """By torch's derivative of `prepared_weight`, in float64."""
    layer = edm2.MPConv(shape[1], shape[0], *shape[2:])
    weight, gradient = 3 * normal(*shape).double(), normal(*shape, seed=2).double()
    weight.requires_grad_()
    (wanted,) = torch.autograd.grad(layer.prepared_weight(weight), weight, gradient)
    found = layer.unprepared_gradient(weight.detach(), gradient)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_fused_attention_is_attention(heads, order):
    """By the formula in float64, up to the rounding of bfloat16; the gradient too."""
    qkv = normal(3, 48, 4, 4).to(HALF).contiguous(memory_format=order).requires_grad_()
    wide = qkv.detach().double().requires_grad_()
    found, wanted = layers.attention(qkv, heads), layers.attention(wide, heads)
    assert found.dtype == HALF and relative(found, wanted) < 2**-7
    given = normal(*found.shape, seed=2)
    pulled = [torch.autograd.grad(out, at, given.to(out.dtype))[0] for out, at in ((found, qkv), (wanted, wide))]
    assert relative(*pulled) < 2**-6


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_network_takes_the_copies(net):
    """One graph for all optimiser steps, as without a compiler up to the order of sums."""
    if net.config["network"] == "ddpm":
        pytest.skip("diffusers' layers are not compiled in tests")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    wanted = step(net)
    net.network.compile(dynamic=False, backend="aot_eager")
    for count in (1, 2, 3):
        found = step(net)
        assert relative(found[0], wanted[0]) < OUTPUT / 10 and cosine(found[2], wanted[2]) > COSINE
        assert net.copies.made == count * weights(net)
        with torch.no_grad():
            torch._foreach_mul_(list(net.parameters()), 1.0)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


# --- forward mode ---


@dataclasses.dataclass
class Along:
    """D and its derivative along a direction of x and sigma; the gradients of all weights of a weighted sum of each."""

    value: torch.Tensor
    tangent: torch.Tensor
    gradients: list[torch.Tensor]


def direction(net: torch.nn.Module, dtype) -> tuple:
    x, sigma, labels = inputs(net)
    # sigma of diffusers' networks stays: their embedding of it is float32 always, which no difference resolves.
    along = normal(*x.shape, seed=5), 0.3 * sigma * (net.config["network"] != "ddpm")
    return (x.to(dtype), sigma.to(dtype)), tuple(each.to(dtype) for each in along), labels


def along(net: torch.nn.Module, dtype, precision=EXACT, ready: bool = True) -> Along:
    net.to(dtype).precision = precision
    primals, tangents, labels = direction(net, dtype)
    with half.forward_mode(*[net] * ready):
        value, tangent = torch.func.jvp(lambda x, sigma: denoise(net, x, sigma, labels), primals, tangents)
    gradients = []
    for each in (value, tangent):
        net.zero_grad()
        (each * normal(*each.shape, seed=2).to(dtype)).sum().backward(retain_graph=True)
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    return Along(value.detach(), tangent.detach(), gradients)


@pytest.mark.filterwarnings(FORWARD_MODE)
@pytest.mark.parametrize("recompute", [False, True])
def test_forward_mode_is_the_derivative(net, recompute):
    """In float64 by a central difference, through dropout and attention, whether blocks are to be computed again or not."""
    if recompute:
        speed.recompute_blocks([net])
    found = along(net, torch.float64)
    (x, sigma), (dx, dsigma), labels = direction(net, torch.float64)
    size = 1e-3 if net.config["network"] == "ddpm" else 1e-6
    with torch.no_grad():
        assert torch.allclose(found.value, denoise(net, x, sigma, labels), rtol=1e-12, atol=1e-12)
        up, down = (denoise(net, x + s * dx, sigma + s * dsigma, labels) for s in (size, -size))
    assert relative(found.tangent, (up - down) / (2 * size)) < 1e-5


@pytest.mark.filterwarnings(FORWARD_MODE)
def test_forward_mode_in_half_precision_is_near(net):
    """The derivative, and the gradients of the weights through it and through the value."""
    rounded, exact = along(net, torch.float32, HALF), along(net, torch.float32)
    assert rounded.tangent.isfinite().all() and rounded.tangent.dtype == torch.float32
    assert 0 < relative(rounded.value, exact.value) < OUTPUT and relative(rounded.tangent, exact.tangent) < 2 * OUTPUT
    assert cosine(rounded.gradients[0], exact.gradients[0]) > COSINE
    assert cosine(rounded.gradients[1], exact.gradients[1]) > 0.995


@pytest.mark.filterwarnings(FORWARD_MODE)
def test_copies_made_inside_a_transform_outlive_it(net):
    wanted = step(copy.deepcopy(net))
    along(net, torch.float32, HALF, ready=False)
    assert net.copies.made == weights(net) and equal(step(net), wanted)


@pytest.mark.parametrize("precision", [EXACT, HALF])
def test_gradients_of_weights_come_on_the_way_back(net, precision):
    """Layer by layer, in half precision too: sums over processes begin, and memory is freed, before the pass is over."""
    net.precision = precision
    weights = [each for each in net.parameters() if each.ndim]
    order = []
    for each in weights:
        each.requires_grad_().register_post_accumulate_grad_hook(lambda _: order.append("weight"))
    x, sigma, labels = inputs(net)
    x.requires_grad_().register_hook(lambda _: order.append("images"))
    denoise(net, x, sigma, labels).sum().backward()
    assert order.index("images") > 0.8 * order.count("weight") > 0
