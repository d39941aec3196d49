# SPDX-License-Identifier: Apache-2.0
"""Every family of embedding networks by hand; read-outs, stacks, precision, anchors, recipes; a new family."""

from __future__ import annotations

import copy
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from eldistill import contract, files
from eldistill.contract import Batch, Progress, Setting
from eldistill.data import dataset as data
from eldistill.diffusion.draws import Draw
from eldistill.diffusion.noise import SIGMA_DATA
from eldistill.ensemble import members as ensemble_members
from eldistill.ensemble import seed
from eldistill.errors import Problem
from eldistill.losses import mmd
from eldistill.numbers import declared, make_numbers
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.supplements import embedding
from tests import conftest
from tests.conftest import ROOT
from tests.project import project, smoke  # noqa: F401  (the fixtures)

SHAPE, CODEC = (1, 8, 8), {"mean": 0.5, "std": 0.25}
NORMS = ["none", "group", "instance", "layer"]
CONV, PIXELS, VGG = {"family": "conv", "width": 8}, {"family": "identity"}, {"family": "vgg", "width": 4}
SMALL = {  # one of every family with weights for 8x8 images
    "conv": CONV,
    "resnet": {"family": "resnet", "width": 4, "depth": 2},
    "alexnet": {"family": "alexnet", "scale": 0.04},
    "lenet": {"family": "lenet"},
    "mlp": {"family": "mlp", "width": 16},
    "vit": {"family": "vit", "width": 12, "depth": 2},
}
each_family = pytest.mark.parametrize("kind", [*SMALL.values(), VGG], ids=[*SMALL, "vgg"])


def waves(n: int, shape, start: int) -> torch.Tensor:
    """uint8 images of noisy waves with random direction, phase and brightness."""
    normal, axis = torch.Generator().manual_seed(start), torch.arange(shape[-1]) / shape[-1]
    a, b, phase, level = torch.randn(4, n, shape[0], 1, 1, generator=normal)
    clean = 128 + 70 * torch.sin(4 * (a * axis + b * axis[:, None]) + 3 * phase) + 20 * level
    return (clean + 10 * torch.randn(n, *shape, generator=normal)).clamp(0, 255).to(torch.uint8)


def reals(n: int = 80) -> data.PackedImages:
    return data.PackedImages(waves(n, SHAPE, 0), torch.zeros(n, dtype=torch.int64), CODEC, 0)


def standard(n: int = 80, shape=SHAPE, start: int = 0, dtype=torch.float64) -> torch.Tensor:
    """Images over sigma_data, as the members see them."""
    return data.encode(waves(n, shape, start), CODEC, dtype) / SIGMA_DATA


def section(members, **changes) -> dict:
    members = [{"count": 1, **each} for each in members]
    return {"members": members, "redraw": 0, "calibration": 64, "draws": 2, **changes}


def derive(
    *members, number: int = 3, redraw: int = 0, shape=SHAPE, dtype=torch.float64
) -> list[ensemble_members.Member]:
    return ensemble_members.draw_members(section(members), number, redraw, shape, dtype=dtype)


def calibrated(*members, shape=SHAPE, dtype=torch.float64) -> list[ensemble_members.Member]:
    images = standard(shape=shape, dtype=dtype)
    return [ensemble_members.calibrate(member, images) for member in derive(*members, shape=shape, dtype=dtype)]


def make(folder, members, source=None, teacher=None, **changes) -> Path:
    path = folder / "e.json"
    seed.record_ensemble(section(members, **changes), 3, source or reals(), path, path.with_suffix(".npz"), teacher)
    return path


def recorded(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path.with_suffix(".npz")) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is wanted; shapes must be equal."""
    assert found.shape == wanted.shape
    return float((found - wanted).detach().double().norm() / wanted.detach().double().norm())


# --- every architecture by hand --------------------------------------------------------------------------


def convolved(w: dict, name: str, x: torch.Tensor, stride: int = 1, padding: int | None = None) -> torch.Tensor:
    """Sums over windows: weights [out, in k k] times patches [in k k, places]."""
    kernel, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    padding = kernel.shape[-1] // 2 if padding is None else padding
    patches = F.unfold(x, kernel.shape[-1], padding=padding, stride=stride)
    side = math.isqrt(patches.shape[-1])
    return (kernel.flatten(1) @ patches + bias[:, None]).reshape(len(x), -1, side, side)


def normed(x: torch.Tensor, norm: str) -> torch.Tensor:
    """Minus the mean, over the deviation, of an image's channel, of a quarter of its channels, or of all."""
    if norm == "none":
        return x
    parts = x.reshape(len(x), {"instance": x.shape[1], "group": 4, "layer": 1}[norm], -1)
    centred = parts - parts.mean(2, keepdim=True)
    return (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)


def halved(x: torch.Tensor, pool: str = "mean") -> torch.Tensor:
    n, c, h, w = x.shape
    squares = x.reshape(n, c, h // 2, 2, w // 2, 2)
    return {"mean": squares.mean((3, 5)), "max": squares.amax((3, 5)), "stride": x}[pool]


def relu(x: torch.Tensor) -> torch.Tensor:
    return x * (x > 0)


def chain(w: dict, x: torch.Tensor, plan, norm: str = "none", pool: str = "mean", act=relu, paddings=(None,) * 9):
    """M halves; all else names a layer, which is normed and activated."""
    for step, padding in zip(plan, paddings, strict=False):
        if step == "M":
            x = halved(x, pool)
        elif w[f"{step}.weight"].ndim == 2:
            x = act(x.flatten(1) @ w[f"{step}.weight"].T + w[f"{step}.bias"])
        else:
            x = act(normed(convolved(w, step, x, 2 if pool == "stride" else 1, padding), norm))
    return x.flatten(1)


VGG11 = ["0.0", "M", "1.0", "M", "2.0", "2.1", "M", "3.0", "3.1", "M", "4.0", "4.1", "M"]
CHAINS = [
    *(({**CONV, "norm": norm, "pool": pool, "activation": act}, 8, "0M1M", {"norm": norm, "pool": pool, "act": act}, 32)
      for norm in NORMS for pool in ("mean", "max", "stride") for act in ("relu", "leaky", "silu", "linear")),
    *(({**VGG, "norm": norm}, 32, VGG11, {"norm": norm, "paddings": (None,) * 13}, 32) for norm in NORMS),
    ({"family": "alexnet", "scale": 1 / 16}, 32, "0M1M234M", {"pool": "max"}, 12 * 16),
    ({"family": "lenet"}, 32, "0M1M23", {"pool": "max", "paddings": (2, None, 0, None, None, None)}, 84),
    ({"family": "lenet"}, 8, "0M1M23", {"pool": "max"}, 84),
    ({"family": "mlp"}, 8, "01", {}, 128),
    ({"family": "mlp", "depth": 3}, 64, "MMM012", {}, 128),  # 8x8 means above 32 pixels
    ({"family": "identity", "mean": 4}, 8, "MM", {}, 12),
]  # fmt: skip
ACTIVATIONS = {
    "relu": relu, "leaky": lambda x: torch.where(x > 0, x, 0.01 * x), "silu": lambda x: x / (1 + (-x).exp()),
    "linear": lambda x: x,
}  # fmt: skip


def test_chains_by_hand():
    """conv, vgg, alexnet, lenet, mlp and identity: the list of layers, one after the other, in plain sums."""
    for kind, side, plan, options, features in CHAINS:
        options = {**options, "act": ACTIVATIONS[options.get("act", "relu")]}
        (member,), images = derive(kind, shape=(3, side, side)), standard(3, (3, side, side))
        wanted = chain(member.weights, images, plan, **options)
        assert wanted.shape == (3, features) and error(member(images), wanted) < 1e-12, kind


@pytest.mark.parametrize("norm", NORMS)
def test_resnet_by_hand(norm):
    """Stem, then blocks relu(shortcut + two normed convolutions); from the second on twice as wide after a halving."""
    (member,) = derive({"family": "resnet", "width": 8, "depth": 3, "norm": norm})
    w, images = member.weights, standard(4)
    x = relu(normed(convolved(w, "stem", images), norm))
    for stage in range(3):
        x = halved(x) if stage else x
        inner = relu(normed(convolved(w, f"{stage}.first", x), norm))
        inner = normed(convolved(w, f"{stage}.second", inner), norm)
        x = relu(inner + (convolved(w, f"{stage}.shortcut", x) if stage else x))
    assert x.shape == (4, 32, 2, 2) and error(member(images), x.flatten(1)) < 1e-12


def test_vit_by_hand():
    """torch's own pre-norm encoder on 8x8 patches of height/8 x width/8; the mean of the tokens after a last norm."""
    shape = (2, 16, 24)
    (member,) = derive({**SMALL["vit"], "std": 0.3}, shape=shape)  # 0.02 would leave attention all but uniform
    w, images = member.weights, torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    patches = [images[:, :, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].flatten(1) for i in range(8) for j in range(8)]
    x = torch.stack(patches, 1) @ w["patch"].T + w["place"]
    for block in "01":
        layer = torch.nn.TransformerEncoderLayer(12, 3, 48, 0, F.gelu, 1e-5, True, True, bias=False).double()
        places = {"self_attn.in_proj_weight": "qkv", "self_attn.out_proj.weight": "out", "linear1.weight": "up",
                  "linear2.weight": "down"}  # fmt: skip
        layer.load_state_dict({there: w[f"{block}.{here}"] for there, here in places.items()}, strict=False)
        x = layer(x)
    wanted = ((x - x.mean(2, keepdim=True)) / (x.var(2, correction=0, keepdim=True) + 1e-5).sqrt()).mean(1)
    assert wanted.shape == (3, 12) and error(member(images), wanted) < 1e-12


@pytest.mark.parametrize("kind, norm, dims, macs, size", [
    ({"family": "conv", "width": 128, "depth": 3}, [128] * 3, (2048, 8192), (0.051, 0.203), 0.30),
    ({"family": "conv", "width": 128, "depth": 4}, [128] * 4, (512, 2048), (0.053, 0.212), 0.45),
    ({"family": "conv", "width": 32, "depth": 3}, [32] * 3, (512, 2048), (0.004, 0.015), 0.02),
    ({"family": "alexnet"}, [], (3072, 12288), (0.245, 0.980), 1.84),
    ({"family": "vgg"}, [64, 128, 256, 256, 512, 512, 512, 512], (512, 2048), (0.153, 0.611), 9.23),
], ids=["conv3", "conv4", "conv3-32", "alexnet", "vgg"])  # fmt: skip
def test_sizes_of_dataset_condensation(kind, norm, dims, macs, size):
    """Features, 10^9 multiplications and 10^6 weights of the originals (b.2), at 32 and 64 pixels.

    Their norms have a learned scale and shift, which ours lack and which are counted here.
    """
    family = contract.load_module("ensemble", kind["family"])
    numbers = make_numbers(family, {"norm": "instance", **kind})
    for side, features, mac in zip((32, 64), dims, macs, strict=True):
        weights = family.draw(numbers, (3, side, side), lambda name, *size: torch.empty(size, device="meta"))
        with FlopCounterMode(display=False) as counted:
            last = family.stages(weights, torch.empty(1, 3, side, side, device="meta"), numbers)[-1]
        assert last.flatten(1).shape == (1, features)
        assert round(counted.get_total_flops() / 2e9, 3) == mac
        assert round((sum(each.numel() for each in weights.values()) + 2 * sum(norm)) / 1e6, 2) == size


@pytest.mark.parametrize("kind, side, words", [
    ({"family": "vgg"}, 16, "a vgg member on 16-pixel images; expected at least 32"),
    ({"family": "alexnet"}, 4, "an alexnet member on 4-pixel images; expected at least 8"),
    ({"family": "lenet"}, 2, "a lenet member on 2-pixel images; expected at least 4"),
    ({"family": "resnet", "depth": 4}, 8, "a resnet member of depth 4 on 8-pixel images"),
    ({"family": "vit"}, 12, "a vit member on images of 12x12 pixels; expected multiples of 8"),
    ({"family": "vit", "width": 16}, 8, "width 16 with 3 heads"),
    ({"family": "identity", "mean": 3}, 8, "an identity member with mean: 3 on 8x8 pixels"),
    ({"family": "resnet", "width": 3, "norm": "group"}, 8, "width 6 with norm: group"),
    ({"family": "vgg", "width": 3, "norm": "group"}, 32, "width 6 with norm: group"),
    *(({"family": family, "norm": "batch"}, 32, "norm: batch; expected none, .* hides the very shift that EL measures")
      for family in ("conv", "resnet", "vgg")),
])  # fmt: skip
def test_what_cannot_be_drawn(kind, side, words):
    """A Problem that says what was expected: too small, indivisible, or batch norm and why not."""
    with pytest.raises(Problem, match=words):
        derive(kind, shape=(1, side, side))


# --- weights ---------------------------------------------------------------------------------------------


def test_spread_of_weights():
    """he: N(0, 2 / fan-in), biases N(0, bias^2); torch: uniform within 1 / root of fan-in; vit: N(0, std^2) cut at 2 std."""
    uniform = derive({"family": "conv", "width": 64, "init": "torch"})[0].weights["1.weight"] * math.sqrt(9 * 64)
    grid = torch.linspace(-1, 1, uniform.numel(), dtype=torch.float64)
    assert (uniform.flatten().sort().values - grid).abs().max() < 2 * 1.63 / math.sqrt(uniform.numel())  # Kolmogorov
    cut = derive({"family": "vit", "width": 96, "depth": 1})[0].weights["0.up"] / 0.02
    variance = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    assert 1.99 < cut.abs().max() < 2 + 1e-6 and float(cut.var()) == pytest.approx(variance, rel=0.02)
    for kind in (*(SMALL[name] for name in SMALL if name != "vit"), VGG):
        family = contract.load_module("ensemble", kind["family"])
        numbers = make_numbers(family, {**kind, "bias": 0.7})
        for name, each in family.draw(numbers, (1, 32, 32), lambda name, *size: torch.ones(size)).items():
            wanted = 0.7 if name.endswith("bias") else math.sqrt(2 / each[0].numel())
            assert torch.allclose(each, torch.tensor(wanted)), (kind, name)


@each_family
def test_weights_are_a_function_of_seed_redraw_and_place(kind):
    """c.10: bit-equal whatever stands before or after and whatever was drawn before; another seed, redraw or place: none."""

    def weights(*before, number=3, redraw=2, after=()):
        members = derive(*before, kind, *after, number=number, redraw=redraw, shape=(1, 32, 32))
        return members[len(before)].weights

    state, mlp = torch.get_rng_state(), SMALL["mlp"]
    first = weights(mlp)
    weights(mlp, redraw=7)
    for again in (weights(mlp), weights(PIXELS), weights(mlp, after=[kind, PIXELS, mlp])):
        assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    for other in (weights(mlp, number=4), weights(mlp, redraw=3), weights(), weights(mlp, mlp)):
        assert not any(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("norm, low, high", [
    ("instance", 0, 1e-6), ("group", 1e-3, 0.1), ("layer", 1e-3, 0.1), ("none", 1e-2, 1),
])  # fmt: skip
@pytest.mark.parametrize("kind", [CONV, SMALL["resnet"]], ids=["conv", "resnet"])
def test_contrast(kind, norm, low, high):
    """c.9: |mean f(x) - mean f(0.8 x)|^2 / tr Cov, on average over eight members: instance norm ignores contrast.

    It removes the biases before it too, so that only its epsilon is left. Group and layer norm see contrast through
    the biases of the first layer alone, which are large here: 0.5.
    """
    images, shifts = standard(), []
    for number in range(8):
        (member,) = derive({**kind, "width": 16, "norm": norm, "bias": 0.5}, number=number)
        features = member(images)
        shifts.append(float((features - member(0.8 * images)).mean(0).square().sum() / features.var(0).sum()))
        if norm == "instance" and kind is CONV:
            bare = {name: 0 * w if name.endswith("bias") else w for name, w in member.weights.items()}
            assert error(member.read(bare, images), features) < 1e-12
    assert low <= np.mean(shifts) < high


# --- calibration, read-outs, permutation -----------------------------------------------------------------


def test_scaling_is_not_optional():
    """Raw traces of covariance lie apart by orders of magnitude: unscaled, one member would be the whole sum."""
    kinds = (*SMALL.values(), {**CONV, "init": "torch"}, PIXELS)
    traces = [float(member(standard()).var(0).sum()) for member in derive(*kinds)]
    assert max(traces) / min(traces) > 100
    assert [float(each(standard()).var(0).sum()) for each in calibrated(*kinds)] == pytest.approx([1] * len(kinds))
    # Instance norm makes one pixel a constant, of which no scale can be measured.
    with pytest.raises(Problem, match="same features"):
        calibrated({**CONV, "depth": 3, "pool": "stride", "norm": "instance"})


def test_unscaled(tmp_path):
    """scaled: false leaves every scale at 1; the bandwidth is that of the raw features."""
    kinds = [CONV, {**CONV, "features": "multi"}, PIXELS]
    path = make(tmp_path, kinds, scaled=False)
    images = reals().take(recorded(path)["indices"])[0] / 0.5
    members = seed.Ensemble(path).at(0)
    assert [member.scale for member in members] == [1.0, (1.0, 1.0), 1.0]
    for member, bare in zip(members, derive(*kinds, dtype=torch.float32), strict=True):
        raw = torch.cat(bare.raw(bare.weights, images), 1) / len(np.atleast_1d(member.scale)) ** 0.5
        assert torch.equal(member(images), raw)
        assert member.bandwidth == pytest.approx(mmd.median_squared_distance(raw.double()), rel=1e-6)


@each_family
def test_readouts(kind):
    """last: the last stage; gap: its mean over space; multi: 4x4 means at most, every stage an equal share of trace 1."""
    images, shape = standard(40, (1, 32, 32)), (1, 32, 32)
    for readout in ("last", "gap", "multi"):
        (bare,) = derive({**kind, "features": readout}, shape=shape)
        member, stages = (
            ensemble_members.calibrate(bare, images),
            bare.family.stages(bare.weights, images, bare.numbers),
        )
        if readout == "gap":
            stages = [stages[-1].mean((2, 3)) if stages[-1].ndim == 4 else stages[-1]]
        stages = stages if readout == "multi" else stages[-1:]
        for place, stage in enumerate(stages):
            if readout == "multi" and stage.ndim == 4 and stage.shape[2] > 4:
                # Cells of 4x4; lenet's 14 pixels overlap: from floor(3.5 i) to ceil(3.5 (i + 1)).
                size = stage.shape[2] / 4
                cells = [slice(math.floor(i * size), math.ceil((i + 1) * size)) for i in range(4)]
                stage = torch.stack([stage[:, :, a, b].mean((2, 3)) for a in cells for b in cells], 2)
            stages[place] = stage.flatten(1) / (stage.flatten(1).var(0).sum() * len(stages)).sqrt()
        assert isinstance(member.scale, tuple) == (readout == "multi")
        assert len(np.atleast_1d(member.scale)) == len(stages)
        assert error(member(images), torch.cat(stages, 1)) < 1e-12
        assert float(member(images).var(0).sum()) == pytest.approx(1, rel=1e-12)


def test_permuted_pixels():
    """One bijection for all members and channels, whatever the redraw; networks see it, an MMD of pixels does not."""
    kinds, shape = [PIXELS, CONV, {**SMALL["resnet"], "norm": "group"}], (3, 8, 8)
    mixed = [{**kind, "permute": True} for kind in kinds]
    plain, members = calibrated(*kinds, shape=shape), calibrated(*mixed, shape=shape)
    order = members[0].order
    assert order.sort().values.equal(torch.arange(64)) and not order.equal(torch.arange(64))
    assert all(member.order.equal(order) for member in (*members, *derive(*mixed, redraw=5, shape=shape)))
    assert not derive(*mixed, number=4, shape=shape)[0].order.equal(order)
    x, y = 0.7 * standard(12, shape, 1) + 0.2, standard(12, shape, 2)
    shown = x.flatten(2)[:, :, order].reshape(x.shape)
    for before, after in zip(plain, members, strict=True):
        assert error(after(x) * after.scale, before(shown) * before.scale) < 1e-12 and error(after(x), before(x)) > 0.1
    for kernel in mmd.KERNELS:
        for place, low, high in ((0, 0, 1e-10), (1, 1e-3, math.inf)):
            loss = [embedding.embedding_loss([each[place]], x, y, kernel, "unbiased") for each in (plain, members)]
            assert low <= error(*loss) < high


# --- members that are not random -------------------------------------------------------------------------


def test_whitened(tmp_path):
    """The covariance on the calibration images has eigenvalues v / (v + ridge mean v): the identity for a small ridge."""
    images = standard(300)
    values = np.linalg.eigvalsh(np.cov(images.flatten(1).numpy(), rowvar=False))
    for ridge in (1e-5, 0.01, 1.0):
        (member,) = derive({"family": "whitened", "ridge": ridge})
        weights = {"map": member.family.fit({}, images, member.numbers)["map"].double()}
        found = np.cov(member.read(weights, images).numpy(), rowvar=False)
        assert np.abs(found - np.diag(values / (values + ridge * values.mean()))).max() < 1e-5
        assert ridge > 1e-5 or np.abs(found - np.eye(64)).max() < 0.01
    path = make(tmp_path, [CONV, {"family": "whitened"}], redraw=2)
    arrays = recorded(path)
    assert {key for key in arrays if key.startswith("fitted")} == {"fitted_1/map"}
    chosen = reals().take(arrays["indices"])[0] / 0.5
    fitted = ensemble_members.calibrate(*derive({"family": "whitened"}, dtype=torch.float32), chosen)
    for iteration in (0, 9):
        member = seed.Ensemble(path).at(iteration)[1]
        for wanted in (arrays["fitted_1/map"], fitted.weights["map"]):
            assert torch.equal(member.weights["map"], wanted) and member.scale == pytest.approx(fitted.scale)
    assert ensemble_members.stacks([member, member]) == [[0], [1]]


def test_teacher_features(tmp_path, bench):
    """The frozen encoder at the told level, on images in the teacher's own units, with gradient to the images."""
    teacher, x = bench.teacher(), bench.reals().take(torch.arange(6))[0].requires_grad_()
    path = make(tmp_path, [{"family": "teacher", "sigma": 0.3}], bench.reals(), teacher)
    (member,) = seed.Ensemble(path, teacher=teacher).at(0)
    assert ensemble_members.stacks([member, member]) == [[0], [1]]
    found, wanted = member(x / 0.5) * member.scale, teacher.encode(x, torch.full((6,), 0.3)).flatten(1)
    assert error(found, wanted) < 1e-6
    assert error(*(torch.autograd.grad(each.square().sum(), x)[0] for each in (found, wanted))) < 1e-6


# --- stacks and precision --------------------------------------------------------------------------------

STACKED = {
    **{f"conv-{norm}": [{**CONV, "norm": norm, "activation": act, "pool": pool}
                        for act in ACTIVATIONS for pool in ("mean", "max", "stride")] for norm in NORMS},
    **{f"{name}-{readout}": [{**kind, "features": readout}] for name, kind in SMALL.items() for readout in ("last", "multi")},
    "gap": [{**SMALL["resnet"], "features": "gap"}], "permuted": [{**CONV, "permute": True}],
}  # fmt: skip


@pytest.mark.parametrize("name", STACKED)
def test_a_stack_is_a_loop(name):
    """Features and gradients of three members in one pass are those of one after the other.

    Rounding in float32: 8e-7 at most was measured, where instance norm sees 2x2 pixels; elsewhere 1e-7 to 6e-7.
    """
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
        for kind in STACKED[name]:
            members = calibrated(*[kind] * 3, dtype=dtype)
            assert ensemble_members.stacks(members) == [[0, 1, 2]] and len({member.scale for member in members}) == 3
            x = standard(3, start=5, dtype=dtype).requires_grad_()
            loop, stack = torch.stack([member(x) for member in members]), ensemble_members.stacked(members)(x)
            assert stack.dtype == dtype and error(stack, loop) < tolerance, kind
            towards = torch.randn(loop.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
            one, other = (torch.autograd.grad((each * towards).sum(), x)[0] for each in (stack, loop))
            assert error(one, other) < tolerance, kind


MIXED = [
    CONV, {**CONV, "norm": "group"}, CONV, PIXELS, PIXELS, {**CONV, "features": "multi"}, SMALL["mlp"],
    {**CONV, "permute": True}, CONV, {**CONV, "features": "multi"}, SMALL["mlp"], {**SMALL["mlp"], "width": 17},
]  # fmt: skip


@pytest.mark.parametrize("kernel", mmd.KERNELS)
def test_mixed_ensembles(kernel):
    """Members alike in all but weights go together, each in its place; EL and its gradient do not depend on it."""
    members, real = calibrated(*MIXED), standard(9, start=1)
    assert ensemble_members.stacks(members) == [[0, 2, 8], [1], [3], [4], [5, 9], [6, 10], [7], [11]]
    results, classes = [], (torch.arange(7) % 3, torch.arange(9) % 3)
    for stack in (False, True):
        x, found = (0.7 * standard(7, start=2) + 0.2).requires_grad_(), {}
        value = embedding.embedding_loss(
            members, x, real, kernel, "unbiased", labels="both", classes=classes, stack=stack, found=found
        )
        results.append((value, torch.autograd.grad(value, x)[0], torch.as_tensor(found["trace_ratio"])))
    assert max(error(stack, loop) for loop, stack in zip(*results, strict=True)) < 1e-12


def at_work(path: Path, size: int = 32, **changes):
    """EL's term at `size` images as a run computes it in float32; its tools; those images and the real ones."""
    setting = Setting(ensemble=path, device="cpu", dtype=torch.float32, sigma_data=0.5, seed=8, sigma_init=2.5)
    batch = Batch(Draw(0, "generator", 0, size), None, SHAPE, Progress(0, 0, 100), reals())
    x, numbers = 0.35 * standard(size, start=3, dtype=torch.float32) + 0.5, embedding.Numbers(**changes)
    tools = embedding.prepare(numbers, setting)
    term = embedding.generator_terms(tools, x, batch, numbers)["mmd2"]
    return term, tools.ensemble.at(0), x / 0.5, batch.real("el/real")[0] / 0.5


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_bfloat16(tmp_path, kernel):
    """Layers in bfloat16 move EL by less than 1 %; features, their sums and the gradient at the images are float32."""
    kinds = [*({"family": "conv", "norm": norm} for norm in ("none", *NORMS)), SMALL["mlp"], SMALL["vit"]]
    path = make(tmp_path, [*kinds, *({**kind, "features": "multi"} for kind in kinds[:2])])
    wide = at_work(path, kernel=kernel, stack="loop")[0]
    for stack in ("loop", "stacked"):
        term, members, x, real = at_work(path, kernel=kernel, stack=stack, precision="bfloat16")
        assert term.value.dtype == term.gradient.dtype == torch.float32
        assert error(term.value, wide.value) < 0.01 and error(term.gradient, wide.gradient) < 0.1
    assert all(weight.dtype == torch.bfloat16 for member in members for weight in member.weights.values())
    pairs = [(member(x), member(real), member.bandwidth) for member in members]
    assert all(left.dtype == right.dtype == torch.float32 for left, right, _ in pairs)
    exact = torch.stack([mmd.mmd2(left.double(), right.double(), kernel, width) for left, right, width in pairs]).mean()
    assert error(embedding.embedding_loss(members, x, real, kernel, "unbiased"), exact) < 1e-5


# --- anchors ---------------------------------------------------------------------------------------------


def test_anchors(tmp_path):
    """anchor: true records the means over all real images; anchored EL is linear EL against all of them at once."""
    kinds, every, many = [CONV, {**CONV, "features": "multi"}, PIXELS], standard(1100), reals(1100)
    ensemble = seed.Ensemble(path := make(tmp_path, kinds, many, anchor=True), dtype=torch.float64)
    members, x = ensemble.at(0), (0.7 * standard(7, start=2) + 0.2).requires_grad_()
    means = [member(every).mean(0) for member in members]
    assert all((anchor - mean).norm() < 1e-6 for anchor, mean in zip(ensemble.anchors(), means, strict=True))
    whole = embedding.embedding_loss(members, x, every, "linear", "biased")
    spread = sum(member(x).var(0).sum() / 7 for member in members) / 3  # what U leaves out of the generated side
    for stack in (False, True):
        for form, wanted in (("biased", whole), ("unbiased", whole - spread)):
            value = embedding.embedding_loss(members, x, None, "linear", form, anchors=means, stack=stack)
            pair = [torch.autograd.grad(each, x, retain_graph=True)[0] for each in (value, wanted)]
            assert error(value, wanted) < 1e-12 and error(*pair) < 1e-12
    term, members, x, _ = at_work(path, kernel="linear", estimator="biased", anchored=True)
    assert error(term.value, embedding.embedding_loss(members, x, every.float(), "linear", "biased")) < 1e-5
    with pytest.raises(Problem, match="set redraw to 0"):
        make(tmp_path, kinds, anchor=True, redraw=1)
    with pytest.raises(Problem, match="has no means over all images; .*`anchor: true`"):
        at_work(make(tmp_path, kinds), kernel="linear", anchored=True)


# --- recipes ---------------------------------------------------------------------------------------------

SHIPPED = conftest.shipped()
SHIPPED["suites"] = {SHIPPED["suite"]: SHIPPED["suites"]["smoke"]}
SHIPPED["ensemble"]["mine"] = {"members": [{"family": "conv"}, {"family": "identity"}]}
SHIPPED["distil"]["supplements"]["el"]["ensemble"] = "mine"


def steps(*written):
    """The steps of the ensemble and of the run, with each (place, key, value) written into params.yaml."""
    values = copy.deepcopy(SHIPPED)
    mine, el = values["ensemble"]["mine"], values["distil"]["supplements"]["el"]
    places = dict(zip(("conv", "identity"), mine["members"], strict=True))
    places |= {"supplement": el, "ensemble": mine, "member": places["conv"]}
    for place, key, value in written:
        places[place][key] = value
    plan = Plan(params.from_values(values, ROOT))
    return plan.ensemble("digits", "mine", 0), plan.distil(plan.params.run("digits/di/el/0"))


def test_neutral_numbers():
    """A neutral number at its default is in no recipe, written or not; another value is, of ensemble and run or of the run."""
    known = yaml.safe_load((ROOT / params.SCHEMA).read_text(encoding="utf-8"))["$defs"]
    known = {place: known[place]["properties"] for place in ("ensemble", "member")}
    known |= {family: declared("ensemble", family) for family in ("conv", "identity")}
    known["supplement"] = declared("supplements", "embedding")
    neutral = {place: {k: each for k, each in keys.items() if each.get("neutral")} for place, keys in known.items()}
    for place, keys in {
        "supplement": "labels anchored pairs pairs_seed fade stack precision diagnose", "ensemble": "scaled anchor landmarks",
        "member": "features permute", "conv": "activation pool init", "identity": "mean",
    }.items():  # fmt: skip
        assert neutral[place].keys() >= set(keys.split())
    every = [(place, key, each["default"]) for place, keys in neutral.items() for key, each in keys.items()]
    ensemble, run = steps()
    assert [step.digest for step in steps(*every)] == [ensemble.digest, run.digest]
    kept = dict(zip(("conv", "identity"), ensemble.params["members"], strict=True))
    kept |= {"supplement": run.params["supplements"]["el"], "ensemble": ensemble.params, "member": kept["conv"]}
    assert not any(key in kept[place] for place, key, _ in every) and {"width", "count"} <= kept["conv"].keys()
    for place, key, default in every:
        each = neutral[place][key]
        other = not default if each["type"] == "boolean" else each.get("maximum", 2)
        other = each["enum"][-1] if "enum" in each else other
        changed = [
            after.digest != before.digest
            for after, before in zip(steps((place, key, other)), (ensemble, run), strict=True)
        ]
        assert changed == [place != "supplement", True], (place, key)


def test_only_anchored_ensembles_count_the_module_of_anchors():
    """Its version is in the recipe of an ensemble with anchor: true, and so upstream of its runs; in no other recipe."""
    for written, there in (((), False), ((("ensemble", "anchor", True),), True)):
        ensemble, run = steps(*written)
        assert ("ensemble/anchors" in json.loads(ensemble.recipe)["versions"]) == there
        assert "ensemble/anchors" not in json.loads(run.recipe)["versions"] and ensemble in run.upstream
    assert steps(("ensemble", "anchor", True))[1].digest != steps()[1].digest


# --- a new family ----------------------------------------------------------------------------------------

FOURIER = '''"""Random Fourier features: cosines of one linear layer."""
from dataclasses import dataclass
import torch
from eldistill.ensemble import conv
from eldistill.numbers import number

RECIPE = ("ensemble/fourier", 3)

@dataclass(frozen=True)
class Numbers:
    width: int = number(32, "features", low=1)

def draw(numbers, shape, normal):
    return conv.layer_of(normal, "0", (numbers.width, shape[0] * shape[1] * shape[2]), 1.0)

def stages(weights, images, numbers):
    return [torch.cos(images.flatten(1) @ weights["0.weight"].T + weights["0.bias"])]
'''


def test_a_new_family_is_one_file_and_one_section(project):  # noqa: F811
    """A family dropped into ensemble/ runs to a generator with a section in params.yaml and no other edit, and nothing else
    does."""
    clone = project
    (clone.path / "src/eldistill/ensemble/fourier.py").write_text(FOURIER, encoding="utf-8")
    clone.edit("ensemble", "cosines", value={"members": [{"family": "fourier", "width": 24, "count": 2}]})
    clone.edit("distil", "supplements", "el-cosines", value={"like": "el", "ensemble": "cosines", "stack": "stacked"})
    grid = {"data": ["digits-smoke"], "methods": ["di"], "supplements": ["el-cosines"], "seeds": [0]}
    clone.edit("suites", "smoke", value=[grid])
    steps = {"ensemble digits-smoke/cosines/0", "distil digits-smoke/di/el-cosines/0"}
    assert clone.ran("snakemake", "distil", "--cores", "2") == steps
    record = clone.path / "data/ensembles/digits-smoke/cosines/0.json"
    assert [member["features"] for member in files.read_json(record)["members"]] == [24, 24]
    versions = json.loads(record.with_name("0.json.recipe").read_text(encoding="utf-8"))["versions"]
    assert versions["ensemble/fourier"] == 3 and "ensemble/conv" in versions  # what it imports retires it too
    with open(clone.path / "data/runs/digits-smoke/di/el-cosines/0/log.csv", encoding="utf-8") as log:
        rows = list(csv.DictReader(log))
    assert len(rows) == 10 and all(float(row["el-cosines.weight"]) > 0 for row in rows)
    assert float(rows[0]["el-cosines.mmd2"]) > 0
