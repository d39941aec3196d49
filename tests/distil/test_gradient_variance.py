# SPDX-License-Identifier: Apache-2.0
"""The study of variance: its arithmetic on gradients whose moments are known, and a look at a small run."""

import itertools

import numpy as np
import pytest
import torch

from eldistill import __main__
from eldistill.diffusion.draws import Draw
from eldistill.distil import probe
from eldistill.errors import Problem
from tests.distil import test_distil

made, project = test_distil.made, test_distil.project  # the fixtures
RUN = f"{test_distil.DATA}/di/none/0"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_moments_are_the_trace_of_the_covariance():
    rows = normal(40, 3) * [1.0, 2.0, 3.0] + 5
    found = probe.moments(rows)
    assert found.variance == pytest.approx(np.trace(np.cov(rows, rowvar=False)), rel=1e-12)
    assert np.allclose(found.mean, rows.mean(0)) and found.count == 40


@pytest.mark.parametrize(("floor", "slope"), [(0.0, 3.0), (0.25, 1.0), (2.0, 0.0), (-0.01, 1.0)])
def test_a_line_that_is_exact_is_found(floor, slope):
    found = probe.fit_variance({batch: floor + slope / batch for batch in (8, 32, 128)})
    assert found == pytest.approx((floor, slope), abs=1e-12)
    found = probe.fit_variance({batch: floor + slope / batch + 7 / batch**2 for batch in (8, 32, 128)}, 2)
    assert found == pytest.approx((floor, slope, 7), abs=1e-9)


def test_a_u_statistic_has_a_part_in_one_over_the_square():
    """The unbiased MMD with a linear kernel of x, y ~ N(mu, 1), N(0, 1): Var = 4 mu^2 (1/n + 1/n) / ... + O(1/n^2); a line
    puts its floor below 0, the square finds none."""
    draw, found = np.random.default_rng(0), {}
    for batch in (8, 32, 128):
        x, y = 0.3 + draw.normal(size=(40000, batch)), draw.normal(size=(40000, batch))
        own = [(each.sum(1) ** 2 - (each**2).sum(1)) / (batch * (batch - 1)) for each in (x, y)]
        values = own[0] + own[1] - 2 * x.mean(1) * y.mean(1)
        assert values.mean() == pytest.approx(0.09, abs=0.01)
        found[batch] = values.var()
    assert probe.fit_variance(found)[0] < -0.01 * found[8]
    assert abs(probe.fit_variance(found, 2)[0]) < 0.005 * found[8]


def test_the_fit_weighs_relative_errors():
    """The same relative error everywhere: the floor's error is that of the largest batch, not of the smallest."""
    floors = [probe.fit_variance({b: e / b for b, e in zip((8, 32, 128), errors, strict=True)})[0]
              for errors in itertools.product((0.9, 1.1), repeat=3)]  # fmt: skip
    assert max(map(abs, floors)) < 0.3 / 32


def test_noise_within_does_not_count_as_variance_between():
    """Means of many groups of 8 noisy rows about one centre: nothing between them; about centres apart: their variance."""
    groups = [probe.moments(1 + normal(8, 4, seed=seed)) for seed in range(2000)]
    assert probe.variance_between(groups) == pytest.approx(0, abs=0.05)
    assert probe.squared_mean(groups) == pytest.approx(4, abs=0.1)
    apart = [probe.moments(normal(4, seed=5000 + seed) * 2 + normal(8, 4, seed=seed)) for seed in range(2000)]
    assert probe.variance_between(apart) == pytest.approx(16, rel=0.1)


def test_one_level_for_a_batch_changes_nothing_else():
    draw = Draw(3, "scope", 40, 8)
    one = probe.OneLevel.of(draw)
    assert torch.equal(one.normal("epsilon", 1, 2, 2), draw.normal("epsilon", 1, 2, 2))
    assert torch.equal(one.integers("label", 10), draw.integers("label", 10))
    for found, own in (
        (one.normal("sigma"), draw.normal("sigma")),
        (one.uniform("sigma"), draw.uniform("sigma")),
        (one.integers("matching/sigma", 1000), draw.integers("matching/sigma", 1000)),
    ):
        assert found.shape == own.shape and found.dtype == own.dtype
        assert (found == own[0]).all() and len(set(own.tolist())) > 1


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(probe, "PERCENT", 50)
    monkeypatch.setattr(probe, "FAKE_IMAGES", 256)
    monkeypatch.setattr(probe, "REPEATS", {4: 24, 16: 16, 64: 8})


def test_a_look_at_a_run(project, quick):
    """With networks: the variance falls as 1 / batch for images that draw their own level, and with the Embedding Loss;
    less where a batch shares one, and where fake_scores differ."""
    test_distil.run("di/none/0")
    found = probe.measure_variance(RUN, project)
    assert list(found) == [probe.OWN, probe.SHARED, probe.ACROSS]
    own, shared, across = found.values()
    share = [100 * each["floor"] / each[4] for each in (own, shared, across)]
    assert own[4] / own[64] == pytest.approx(16, rel=0.5) and abs(share[0]) < 10
    assert shared[4] / shared[64] < 8 and share[1] > 10
    assert share[2] > abs(share[0]) and all(across[b] > own[b] for b in (4, 16, 64))
    assert own["signal"] > across["signal"]
    test_distil.run("di/el/0")
    (el,) = probe.measure_variance(RUN.replace("none", "el"), project).values()
    assert el[4] / el[64] == pytest.approx(16, rel=0.7)


def test_two_looks_are_one(project, quick, monkeypatch):
    monkeypatch.setattr(probe, "REPEATS", {4: 2, 16: 2, 64: 2})
    monkeypatch.setattr(probe, "FAKE_IMAGES", 64)
    test_distil.run("di/none/0")
    assert probe.measure_variance(RUN, project) == probe.measure_variance(RUN, project)


def test_what_cannot_be_looked_at_is_one_sentence(project, quick, monkeypatch):
    test_distil.run("cd/none/0")
    with pytest.raises(Problem, match="the method consistency has no fake_score"):
        probe.measure_variance(RUN.replace("/di/", "/cd/"), project)
    assert __main__.main(["distil", RUN]) == 0
    monkeypatch.setattr(probe, "PERCENT", 20)
    with pytest.raises(Problem, match=r"ema-20\.safetensors is missing; .*add 20 to distil\.snapshots"):
        probe.measure_variance(RUN, project)
    with pytest.raises(Problem, match="recipe of .*di/none/7 cannot be read"):
        probe.measure_variance(RUN.replace("/0", "/7"), project)
