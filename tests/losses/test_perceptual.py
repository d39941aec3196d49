# SPDX-License-Identifier: Apache-2.0
"""LPIPS with random weights against the same distance written down with torch's modules and plain matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eldistill.errors import Problem
from eldistill.losses import perceptual
from eldistill.methods import consistency
from eldistill.numbers import declared
from eldistill.plan import params
from tests.conftest import ROOT

CODEC = {"mean": 0.4, "std": 0.3}
SMALL = (3, 4, 5, 4, 3)  # channels instead of 64 … 512


@pytest.fixture
def weights(monkeypatch) -> dict[str, torch.Tensor]:
    """Random weights of a VGG with few channels; those of LPIPS are positive."""
    monkeypatch.setattr(perceptual, "WIDTHS", SMALL)
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in perceptual.weight_shapes().items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        made[name] = values.abs() if name.startswith("lin") else values * (0.3 if name.endswith("weight") else 0.1)
    return made


def images(n: int = 3, channels: int = 3, side: int = 8, seed: int = 1) -> torch.Tensor:
    """Encoded images of pixels between 0 and 1."""
    level = torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (level - CODEC["mean"]) / CODEC["std"] * 0.5


def enlarged(rows: int, side: int = 224) -> torch.Tensor:
    """The matrix [side, rows] of linear interpolation between the centres of pixels."""
    matrix = torch.zeros(side, rows, dtype=torch.float64)
    for index in range(side):
        place = min(max((index + 0.5) * rows / side - 0.5, 0), rows - 1)
        low = min(int(place), rows - 2) if rows > 1 else 0
        matrix[index, low] = 1 - (place - low)
        if rows > 1:
            matrix[index, low + 1] = place - low
    return matrix


POOLINGS = {"max": nn.MaxPool2d(2, 2), "average": nn.AvgPool2d(2, 2)}  # the latter: PIQ's, with `replace_pooling`


def independent(weights: dict, a: torch.Tensor, b: torch.Tensor, pooling: str = "max") -> np.ndarray:
    """LPIPS as its authors describe it: VGG-16 with numbered layers, images in [-1, 1], shift and scale of their own."""
    layers: list[nn.Module] = []
    before, taken = 3, []
    for stage, (width, depth) in enumerate(zip(SMALL, (2, 2, 3, 3, 3), strict=True)):
        layers += [POOLINGS[pooling]] if stage else []
        for _ in range(depth):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        taken.append(len(layers) - 1)
    vgg = nn.Sequential(*layers).double()
    vgg.load_state_dict({k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features")})
    assert taken == [3, 8, 15, 22, 29]  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3

    def features(x):
        x = (x / 0.5 * CODEC["std"] + CODEC["mean"]) * 2 - 1
        if x.shape[-1] < 224:
            grow = enlarged(x.shape[-1])
            x = grow @ x @ grow.T
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]], dtype=torch.float64)
        x = (x - shift[:, None, None]) / scale[:, None, None]
        for index, layer in enumerate(vgg):
            x = layer(x)
            if index in taken:
                yield x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)

    total = np.zeros(len(a))
    with torch.no_grad():
        for number, (x, y) in enumerate(zip(features(a), features(b), strict=True)):
            w = weights[f"lin{number}"].flatten().numpy()
            for image in range(len(a)):
                square = ((x[image] - y[image]) ** 2).numpy()
                total[image] += sum(w[channel] * square[channel].mean() for channel in range(len(w)))
    return total


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("side", [1, 8, 32, 224, 225])
def test_distance_is_the_authors(weights, side, pooling):
    """To 1e-7, whether the images are enlarged to 224 or not; measured 8e-9: they add 1e-10 outside the root."""
    a, b = images(2, side=side), images(2, side=side, seed=2)
    found = perceptual.lpips(weights, a, b, CODEC, pooling)
    np.testing.assert_allclose(found.numpy(), independent(weights, a, b, pooling), rtol=1e-7)


def test_pooling_is_a_choice_of_the_method(weights, tmp_path):
    """The two give other distances; the maximum is the default, and a recipe of before has it."""
    path = tmp_path / "weights.safetensors"
    save_file({name: value.clone() for name, value in weights.items()}, path)
    a, b = images(), images(seed=2)
    for pooling in POOLINGS:
        numbers = consistency.Numbers(distance="lpips", lpips=str(path), lpips_pooling=pooling)
        found = consistency.distance(a, b, numbers, CODEC)
        assert torch.equal(found, perceptual.lpips(weights, a, b, CODEC, pooling))
    default = perceptual.lpips(weights, a, b, CODEC)
    assert torch.equal(default, perceptual.lpips(weights, a, b, CODEC, "max"))
    assert not torch.allclose(default, perceptual.lpips(weights, a, b, CODEC, "average"), rtol=1e-3)
    for kind, file in (("methods", "consistency"), ("supplements", "regression")):
        assert declared(kind, file)["lpips_pooling"]["neutral"]


def test_pooling_differs_nowhere_on_images_without_a_pattern(weights, monkeypatch):
    """Of equal values the maximum is the average: constant images under filters of the centre alone."""
    central = {name: value * (torch.arange(9).reshape(3, 3) == 4) if value.ndim == 4 and "lin" not in name else value
               for name, value in weights.items()}  # fmt: skip
    a, b = (torch.full((2, 3, 8, 8), level, dtype=torch.float64) for level in (-0.3, 0.4))
    both = [perceptual.lpips(central, a, b, CODEC, pooling) for pooling in POOLINGS]
    torch.testing.assert_close(*both, rtol=1e-12, atol=0)
    assert (both[0] > 0).all()


def test_imagenet_has_the_pooling_of_its_authors():
    """CD and CT of the shipped parameters: average on ImageNet-64, the maximum on CIFAR-10 and wherever nobody said."""
    whole = params.load_params(ROOT / "params.yaml")
    for method in ("cd", "ct"):
        for setting in ("cifar10", "imagenet64"):
            wanted = "average" if setting == "imagenet64" else "max"
            assert whole.section("method", method, setting)["lpips_pooling"] == wanted


def test_distance_of_grey_images(weights):
    """One channel counts as three equal ones."""
    a, b = images(channels=1), images(channels=1, seed=2)
    wanted = perceptual.lpips(weights, a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1), CODEC)
    torch.testing.assert_close(perceptual.lpips(weights, a, b, CODEC), wanted, rtol=1e-12, atol=0)


def test_distance_is_a_distance(weights):
    """Zero for equal images, positive and symmetric for others, one number an image whatever its neighbours are."""
    a, b = images(), images(seed=2)
    found = perceptual.lpips(weights, a, b, CODEC)
    assert found.shape == (3,) and (found > 0).all()
    assert not perceptual.lpips(weights, a, a, CODEC).any()
    torch.testing.assert_close(found, perceptual.lpips(weights, b, a, CODEC), rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1:2], perceptual.lpips(weights, a[1:2], b[1:2], CODEC), rtol=1e-9, atol=0)


def test_gradient_is_finite(weights):
    """At equal images it is zero, not a NaN; at others it lowers the distance."""
    a, b = images().requires_grad_(), images(seed=2)
    (slope,) = torch.autograd.grad(perceptual.lpips(weights, a, a.detach(), CODEC).sum(), a)
    assert not slope.any()
    before = perceptual.lpips(weights, a, b, CODEC).sum()
    (slope,) = torch.autograd.grad(before, a)
    assert slope.isfinite().all() and slope.any()
    assert perceptual.lpips(weights, a.detach() - 1e-3 * slope / slope.norm(), b, CODEC).sum() < before
    # Features of zero have no direction.
    silent = {name: torch.zeros_like(value) if "lin" not in name else value for name, value in weights.items()}
    (slope,) = torch.autograd.grad(perceptual.lpips(silent, a, b, CODEC).sum(), a)
    assert not slope.any()


def test_load(weights, tmp_path):
    """The file's names are torchvision's and LPIPS's; a file that lacks a weight, or has one of another shape, is named."""
    path = tmp_path / "whole.safetensors"
    save_file({name: value.float() for name, value in weights.items()} | {"extra": torch.zeros(1)}, path)
    read = perceptual.load_lpips(str(path), dtype=torch.float64)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], value.float().double()) for name, value in weights.items())
    for name in ("features.28.bias", "lin4"):
        path = tmp_path / f"without-{name}.safetensors"
        save_file({key: value for key, value in weights.items() if key != name}, path)
        with pytest.raises(Problem, match=f"no {name} of shape"):
            perceptual.load_lpips(str(path))
    path = tmp_path / "other.safetensors"
    save_file({**weights, "features.0.weight": torch.zeros(3, 1, 3, 3)}, path)
    with pytest.raises(Problem, match="no features.0.weight of shape"):
        perceptual.load_lpips(str(path))
    with pytest.raises(Problem, match="is missing"):
        perceptual.load_lpips(str(tmp_path / "nothing.safetensors"))


def test_shapes_are_those_of_vgg16():
    """14.7 million weights of VGG-16's convolutions and 1,472 of LPIPS."""
    sizes = {name: int(np.prod(shape)) for name, shape in perceptual.weight_shapes().items()}
    assert sum(n for name, n in sizes.items() if name.startswith("features")) == 14_714_688
    assert sum(n for name, n in sizes.items() if name.startswith("lin")) == 1_472
    assert len(sizes) == 2 * 13 + 5


def test_consistency_distance(weights, tmp_path):
    """`distance: lpips` of consistency models is this one; without a file it is a sentence."""
    path = tmp_path / "weights.safetensors"
    save_file({name: value.clone() for name, value in weights.items()}, path)
    a, b = images(), images(seed=2)
    found = consistency.distance(a, b, consistency.Numbers(distance="lpips", lpips=str(path)), CODEC)
    torch.testing.assert_close(found, perceptual.lpips(weights, a, b, CODEC), rtol=1e-12, atol=0)
    with pytest.raises(Problem, match="give `lpips`"):
        consistency.distance(a, b, consistency.Numbers(distance="lpips"), CODEC)
