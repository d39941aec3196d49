# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of metrics by torch, as on a GPU, gives numpy's values; without it numpy's bits. Here the device is the CPU."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from eldistill.evaluate import arithmetic, gaussians, metrics, remembered
from eldistill.evaluate.references import noise_floor

OPTIONS = {"neighbours": 3, "neighbours_n": 150}
DIMENSIONS = (5, 160)  # matrices that stay on the CPU, and others
WIDE = 200  # more than the held-out images, whose covariance is then singular


def sides(d: int, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features of generated images, and of both parts of real ones, that cannot be written to, as an evaluation has them."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(d, d)) / d**0.5
    fake, train, heldout = (
        generator.normal(shift, 1.0, (n, d)) @ mixing for shift, n in ((0.2, 230), (0.0, 310), (0.0, 170))
    )
    return remembered.keep(fake, {}), {"train": remembered.keep(train, {}), "heldout": remembered.keep(heldout, {})}


def measured(d: int, device: str | None) -> dict[str, float]:
    fake, real = sides(d)
    with arithmetic.on(device):
        return metrics.measure({"s": fake}, {"s": real}, OPTIONS) | noise_floor({"t": real}, OPTIONS)


@pytest.mark.parametrize(("d", "relative"), [(5, 1e-9), (160, 1e-9), (WIDE, 1e-7)])
def test_every_metric_is_the_same_on_a_device(d, relative):
    """Of all tables of metrics, with the noise floor of real images. Roots of eigenvalues that are 0 but for rounding have half of the
    digits, by numpy as well."""
    here, there = measured(d, None), measured(d, "cpu")
    assert list(here) == list(there) and len(here) > 20
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=relative), name


@pytest.mark.parametrize("d", DIMENSIONS)
def test_each_function_is_the_same_on_a_device(d):
    """Also of arrays that can be written to, of float32 features, and of those of one row more than a block."""
    fake, real = sides(d)
    values = {}
    for device in (None, "cpu"):
        with arithmetic.on(device):
            mean, cov = gaussians.moments(fake)
            root = arithmetic.symmetric_root(cov)
            single, _ = gaussians.moments(fake.astype(np.float32))
            trace = arithmetic.trace_of_root(root, gaussians.moments(real["train"])[1])
            sums = [arithmetic.cubic_sums(fake, other, 1.7, block=45) for other in (fake, real["train"])]
            near = arithmetic.nearest(fake, real["train"])
            within = arithmetic.inside(fake, real["train"], 4)
            values[device] = [mean, cov, root @ root, single, trace, *map(list, sums), near, within]
    for here, there in zip(*values.values(), strict=True):
        assert np.asarray(here).dtype == np.asarray(there).dtype
        assert np.allclose(there, here, rtol=1e-9, atol=1e-12 * np.abs(here).max())


def test_nothing_is_computed_by_torch_without_a_device(monkeypatch):
    """So a CPU keeps its bits; on a device both are computed there."""

    def refuse(*arguments, **options):
        raise AssertionError("torch was asked")

    wanted = measured(WIDE, None)
    for name in ("as_tensor", "tensor"):
        monkeypatch.setattr(torch, name, refuse)
    assert measured(WIDE, None) == wanted
    with pytest.raises(AssertionError, match="torch was asked"):
        measured(WIDE, "cpu")


def test_real_features_are_copied_once_and_forgotten(monkeypatch):
    """As long as they exist, within the context; a copy of what can change is never kept."""
    copies, tensor = [], torch.tensor
    monkeypatch.setattr(
        torch, "tensor", lambda array, **options: copies.append(array.shape) or tensor(array, **options)
    )
    fake, real = sides(WIDE)
    with arithmetic.on("cpu"):
        for seed in (1, 2, 3):
            other = sides(WIDE, seed)[0]
            metrics.measure({"s": other}, {"s": real}, OPTIONS, ["fd", "kid"])
        assert copies.count((310, WIDE)) == 1 == copies.count((170, WIDE)) and copies.count((230, WIDE)) == 3
        known = len(arithmetic._copies)
        del other
        gc.collect()
        assert len(arithmetic._copies) == known - 1
        changing = fake.copy()
        before = arithmetic.nearest(changing, real["train"])
        changing += 1.0
        assert not np.allclose(arithmetic.nearest(changing, real["train"]), before)
    assert not arithmetic._copies and arithmetic._device is None


def test_a_device_with_too_little_memory_leaves_it_to_numpy(monkeypatch):
    """The values are then numpy's to the bit."""
    wanted = measured(WIDE, None)

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("no memory")

    for name in ("as_tensor", "tensor"):
        monkeypatch.setattr(torch, name, full)
    assert measured(WIDE, "cpu") == wanted


def test_a_nan_is_never_masked():
    """It is an error, or a NaN, on both."""
    fake, real = sides(WIDE)
    for device in (None, "cpu"):
        broken = fake.copy()
        broken[3, 5] = np.nan
        with arithmetic.on(device), np.errstate(invalid="ignore"):
            assert np.isnan(arithmetic.cubic_sums(broken, real["train"], 1.0)[0])
            assert np.isnan(arithmetic.nearest(broken, real["train"])).sum() == 1
            with pytest.raises((np.linalg.LinAlgError, RuntimeError)):
                gaussians.fd(broken, real["train"], {})
