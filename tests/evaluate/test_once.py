# SPDX-License-Identifier: Apache-2.0
"""Values of real images are computed once, and are those that every comparison would compute."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from eldistill.evaluate import arithmetic, gaussians, kernel, metrics, references, remembered
from eldistill.evaluate.evaluator import Evaluator
from tests.evaluate.test_metrics import OPTIONS

NAMES = tuple(metrics.METRICS)


@pytest.fixture
def sides() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    return draw.normal(size=(90, 6)), draw.normal(0.3, 1.2, size=(120, 6))


def test_remembered_values_change_no_bit(sides):
    """Every metric has the same bits for arrays that are remembered, the first and the second time."""
    fake, real = sides
    want = metrics.measure({"s": fake}, {"s": {"heldout": real}}, OPTIONS, NAMES, ("heldout",))
    kept = {"s": {"heldout": remembered.keep(real.copy(), {})}}
    for side in (fake, remembered.keep(fake.copy(), {})):
        for _ in range(2):
            assert metrics.measure({"s": side}, kept, OPTIONS, NAMES, ("heldout",)) == want


def test_an_array_that_can_change_is_not_remembered(sides):
    fake, real = sides
    before = gaussians.fd(fake, real, {})
    real += 1
    assert gaussians.fd(fake, real, {}) > before + 1


def test_nothing_is_remembered_longer_than_its_array(sides):
    """And a pair is that of these two arrays, not of others in their places."""
    fake = remembered.keep(sides[0].copy(), {})
    for shift in range(20):
        real = remembered.keep(sides[1] + shift, {})
        assert gaussians.fd(fake, real, {}) == gaussians.fd(sides[0], sides[1] + shift, {})
        del real
    known = len(remembered._kept)
    del fake
    gc.collect()
    assert len(remembered._kept) == known - 1


def test_references_bring_what_metrics_need(sides, tmp_path):
    """A file of before, without roots and sums, gives the same values."""
    fake, real = sides
    real = real.astype(np.float32).astype(np.float64)
    mean, cov = gaussians.moments(real)
    arrays = {}
    for part in ("train", "heldout"):
        arrays |= {part: real.astype(np.float32), f"mu_{part}": mean, f"sigma_{part}": cov}
    np.savez(tmp_path / "old.npz", **arrays)
    for part in ("train", "heldout"):
        arrays |= {f"root_{part}": arithmetic.symmetric_root(cov), f"pairs_{part}": np.array(kernel.pairs_of(real))}
    np.savez(tmp_path / "new.npz", **arrays)
    found = [
        metrics.measure({"s": fake}, {"s": references.load_reference(tmp_path / name)}, OPTIONS, NAMES)
        for name in ("old.npz", "new.npz")
    ]
    assert found[0] == found[1] == metrics.measure({"s": fake}, {"s": {"train": real, "heldout": real}}, OPTIONS, NAMES)


def test_the_evaluator_compares_each_pair_once(sides, monkeypatch):
    """fd and relfd of one snapshot take one root, not two."""
    import torch

    fake, real = sides
    count = []
    frechet = gaussians.frechet
    monkeypatch.setattr(gaussians, "frechet", lambda *args: count.append(1) or frechet(*args))
    evaluator = Evaluator(
        {"s": lambda images: images.flatten(1).float()},
        {"s": {part: remembered.keep(real.copy(), {}) for part in ("train", "heldout")}},
        OPTIONS,
    )
    images = torch.from_numpy((fake * 20 + 128).clip(0, 255).astype(np.uint8))[:, :, None, None]
    evaluator.measure(lambda n, first: images[first : first + n].split(50), len(images), metrics.CURVE)
    assert len(count) == 2  # train and held-out
