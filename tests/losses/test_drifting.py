# SPDX-License-Identifier: Apache-2.0
"""The drifting field: closed forms, symmetries, and a slow version with loops over single numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eldistill.losses import drifting


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_field(x, positives, negatives, radius: float, floor: float, own: bool) -> np.ndarray:
    """The definition, pair by pair: affinities are geometric means of two normalisations of exp(-distance / R)."""
    m, n, count = len(x), len(positives), len(positives) + len(negatives)
    others = np.concatenate([positives, negatives])
    kernel = np.zeros((m, count))
    for i in range(m):
        for j in range(count):
            if not (own and j == n + i):
                kernel[i, j] = math.exp(-math.sqrt(sum((x[i] - others[j]) ** 2)) / radius)
    affinity = np.zeros((m, count))
    for i in range(m):
        for j in range(count):
            if not (own and j == n + i):
                share = kernel[i, j] / sum(kernel[i]), kernel[i, j] / sum(kernel[:, j])
                affinity[i, j] = max(floor, math.sqrt(share[0] * share[1]))
    found = np.zeros(x.shape)
    for i in range(m):
        for j in range(n):
            for k in range(n, count):
                found[i] += affinity[i, j] * affinity[i, k] * (others[j] - others[k])
    return found


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("radius", "floor"), [(0.5, 0.0), (0.1, 1e-3), (2.0, 0.05)])
def test_the_field_is_that_of_loops(own, radius, floor):
    x, positives = random(5, 3), random(7, 3, seed=1)
    negatives = x if own else random(4, 3, seed=2)
    found = drifting.field(x, positives, negatives, radius, floor, own)
    wanted = slow_field(x.numpy(), positives.numpy(), negatives.numpy(), radius, floor, own)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("floor", [0.0, 1e-3])
def test_it_is_zero_where_both_sets_are_the_same(floor):
    x, both = random(6, 4), random(9, 4, seed=1)
    for radius in (0.02, 0.2, 5.0):
        assert float(drifting.field(x, both, both.flip(0), radius, floor).abs().max()) < 1e-12


@pytest.mark.parametrize("floor", [0.0, 1e-3])
def test_it_changes_its_sign_when_the_sets_are_exchanged(floor):
    x, a, b = random(6, 4), random(9, 4, seed=1), random(5, 4, seed=2)
    for radius in (0.02, 0.2, 5.0):
        torch.testing.assert_close(drifting.field(x, a, b, radius, floor), -drifting.field(x, b, a, radius, floor))


def test_it_points_to_a_single_real_image():
    """From between two others, whose repulsions cancel, exactly towards it; without others nowhere."""
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    real = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    found = drifting.field(x, real, x, 0.5, own=True)
    assert found[0, 0] > 0 and abs(float(found[0, 1])) < 1e-12
    assert found[1, 1] > found[0, 1] > found[2, 1]  # the outer ones are also pushed apart
    assert not drifting.field(x[:1], real, x[:1], 0.5, own=True).any()


def test_it_is_weak_where_generated_images_are_distributed_as_real_ones():
    """As a mean over images, against a shift of one standard deviation, in which direction it then points."""
    real, x, away = random(400, 2), random(400, 2, seed=1), random(400, 2, seed=2) + torch.tensor([1.0, 0.0])
    equal, _, _ = drifting.drift(x, real, (0.2,), 0.0, False)
    shifted, _, _ = drifting.drift(away.double(), real, (0.2,), 0.0, False)
    assert float(equal.mean(0).norm()) < 0.25 * float(shifted.mean(0).norm())
    assert float(shifted.mean(0)[0]) < -0.9 * float(shifted.mean(0).norm())


def test_drift_is_in_units_of_the_mean_distance():
    """Scaled features have the same field, and another unit; with normalisation each radius has a field of length 1."""
    x, real = random(8, 3), random(12, 3, seed=1) + 1
    radii = (0.05, 0.2)
    found, unit, length = drifting.drift(x, real, radii, 1e-3, False)
    again, larger, same = drifting.drift(7 * x, 7 * real, radii, 1e-3, False)
    torch.testing.assert_close(again, found)
    torch.testing.assert_close(larger, 7 * unit)
    torch.testing.assert_close(same, length)
    off = ~torch.eye(8, dtype=torch.bool)
    wanted = torch.cat([torch.cdist(x, real).flatten(), torch.cdist(x, x)[off]]).mean()
    torch.testing.assert_close(unit, wanted)
    one, _, _ = drifting.drift(x, real, (0.2,), 1e-3, True)
    assert float(one.square().sum(1).mean()) == pytest.approx(1)
    each = [drifting.drift(x, real, (radius,), 1e-3, True)[0] for radius in radii]
    torch.testing.assert_close(drifting.drift(x, real, radii, 1e-3, True)[0], sum(each))


def test_equal_features_do_not_drift_and_a_nan_comes_out():
    same = torch.ones(4, 3, dtype=torch.float64)
    assert float(drifting.drift(same, same, (0.05,), 1e-3, True)[0].abs().max()) < 1e-9
    x = random(4, 3)
    x[1, 1] = torch.nan
    assert drifting.drift(x, random(5, 3, seed=1), (0.05,), 1e-3, True)[0].isnan().any()
