# SPDX-License-Identifier: Apache-2.0
"""The sliced Wasserstein distance, and the registry of metrics that only some evaluations ask for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from eldistill import paths, registry
from eldistill.evaluate import arithmetic, metrics
from eldistill.metrics import sw
from eldistill.paths import PACKAGE
from eldistill.plan import params, versions
from eldistill.plan.plan import Plan
from eldistill.plan.schema import Wrong
from eldistill.tables import names
from tests import conftest
from tests.conftest import ROOT
from tests.evaluate.test_evaluate import normal
from tests.evaluate.test_metrics import OPTIONS

MANY = sw.Numbers(projections=2000, seed=3)


def quantiles(n: int) -> np.ndarray:
    """n values whose distribution is close to a standard normal one."""
    return stats.norm.ppf((np.arange(n) + 0.5) / n)


# --- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 3, 40])
def test_a_shift_has_a_closed_form(dim):
    """x against x + d: each projection moves by the projection of d, so that the mean of its square is |d|² / D."""
    x, d = normal(60, dim), np.random.default_rng(5).normal(size=dim)
    rows = np.concatenate(list(sw._directions(dim, MANY, 300)), axis=1)
    assert sw.measure(x, x + d, MANY) == pytest.approx(math.sqrt(((d @ rows) ** 2).mean()), rel=1e-9)
    assert sw.measure(x, x + d, MANY) == pytest.approx(np.linalg.norm(d) / math.sqrt(dim), rel=0.05)


def test_gaussians_have_a_closed_form():
    """Means a, b and covariances s² I, t² I: √(|a - b|² / D + (s - t)²), up to the error of sampling and of directions."""
    a, b, s, t = np.array([1.0, -0.5, 0.3]), np.array([0.0, 0.5, 0.0]), 2.0, 0.7
    found = sw.measure(a + s * normal(20_000, 3, seed=1), b + t * normal(15_000, 3, seed=2), sw.Numbers(300, 0))
    assert found == pytest.approx(math.sqrt(((a - b) ** 2).sum() / 3 + (s - t) ** 2), rel=0.03)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (7, 5), (60, 45), (1, 9)])
def test_one_dimension_is_the_exact_transport(n, m):
    """Equal and other counts: each image is repeated until both sides have n m images, of which the sorted ones are coupled."""
    x, y = normal(n, 1), 0.5 + 2 * normal(m, 1, seed=9)
    longer = [np.sort(np.repeat(side[:, 0], count)) for side, count in ((x, m), (y, n))]
    wanted = math.sqrt(((longer[0] - longer[1]) ** 2).mean())
    assert sw.measure(x, y, sw.Numbers(5, 0)) == pytest.approx(wanted, rel=1e-12)


def test_it_is_a_distance_between_sets():
    """Zero for equal sets, symmetric, of the scale of the features, and blind to the order of images and to how often all are given."""
    x, y = normal(80, 6), 0.3 + normal(50, 6, seed=4)
    value = sw.measure(x, y, MANY)
    assert sw.measure(x, x[::-1].copy(), MANY) == 0
    assert sw.measure(y, x, MANY) == pytest.approx(value, rel=1e-12)
    assert sw.measure(7 * x, 7 * y, MANY) == pytest.approx(7 * value, rel=1e-12)
    shuffled = np.random.default_rng(1).permutation(len(x))
    assert sw.measure(x[shuffled], np.concatenate([y, y]), MANY) == pytest.approx(value, rel=1e-12)


def test_its_floor_falls_with_both_numbers_of_images():
    """Two samples of one distribution: about √(1/n + 1/m) times the deviation. In one dimension and for uniform values on [0, 1] the
    mean of the squared distance is (1/n + 1/m) / 6, but for terms of higher order."""
    draw = np.random.default_rng(0)
    for n, m in ((100, 100), (400, 100), (400, 1600)):
        squares = [
            sw.measure(draw.uniform(size=(n, 1)), draw.uniform(size=(m, 1)), sw.Numbers(1, 0)) ** 2 for _ in range(400)
        ]
        assert np.mean(squares) == pytest.approx((1 / n + 1 / m) / 6, rel=0.15)


def test_nothing_that_is_not_finite_is_hidden():
    x = normal(20, 3)
    broken = x.copy()
    broken[3, 1] = np.nan
    assert math.isnan(sw.measure(broken, x, MANY)) and math.isnan(sw.measure(x, broken, MANY))


# --- arithmetic -------------------------------------------------------------------------------------------


def test_torch_computes_what_numpy_computes():
    """The device of the context is torch's CPU here; on a GPU the same functions run."""
    for n, m in ((90, 90), (90, 61)):
        x, y = normal(n, 12), 0.2 + 1.3 * normal(m, 12, seed=8)
        here = sw.measure(x, y, MANY)
        with arithmetic.on("cpu"):
            assert sw.measure(x, y, MANY) == pytest.approx(here, rel=1e-12)


def test_blocks_bound_the_memory_and_change_nothing(monkeypatch):
    x, y = normal(50, 4), normal(30, 4, seed=2)
    whole, seen = sw.measure(x, y, MANY), []
    compute = sw._sum_here
    monkeypatch.setattr(sw, "BLOCK", 80 * 16)
    monkeypatch.setattr(
        sw, "_sum_here", lambda fake, real, rows, *rest: seen.append(rows.shape) or compute(fake, real, rows, *rest)
    )
    assert sw.measure(x, y, MANY) == pytest.approx(whole, rel=1e-12)
    assert set(seen) == {(4, 16)} and len(seen) * 16 == MANY.projections


def test_the_seed_decides_the_directions():
    x, y = normal(40, 5), normal(40, 5, seed=6)
    values = [sw.measure(x, y, sw.Numbers(50, seed)) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    first, *_ = sw._directions(5, sw.Numbers(50, 0), 50)
    more, *_ = sw._directions(5, sw.Numbers(70, 0), 70)
    assert np.array_equal(first, more[:, :50]), "more projections add directions"
    assert np.allclose(np.linalg.norm(first, axis=0), 1, rtol=1e-12)


# --- in an evaluation -------------------------------------------------------------------------------------


def test_it_is_measured_where_it_is_asked_for():
    fake, real = normal(64, 5), {"train": normal(40, 5, seed=2), "heldout": normal(30, 5, seed=3)}
    plain = metrics.measure({"pixels": fake}, {"pixels": real}, OPTIONS)
    asked = metrics.measure(
        {"pixels": fake}, {"pixels": real}, OPTIONS | {"extra_metrics": {"sw": {"projections": 50, "seed": 1}}}
    )
    assert set(asked) - set(plain) == {"sw64_pixels_heldout", "sw64_pixels_train"} and {*plain.items()} < {
        *asked.items()
    }
    assert asked["sw64_pixels_train"] == sw.measure(fake, real["train"], sw.Numbers(50, 1))
    curve = metrics.measure({"pixels": fake}, {"pixels": real}, OPTIONS | {"extra_metrics": {"sw": {}}}, metrics.CURVE)
    assert not any(name.startswith("sw") for name in curve), "a curve has the metrics of CURVE alone"


def plan_with(extra: dict | None) -> Plan:
    values = conftest.shipped()
    if extra is not None:
        values["evaluate"] = values["evaluate"] | {"extra_metrics": extra}
    return Plan(params.from_values(values, ROOT))


def recipe(extra: dict | None):
    return plan_with(extra).reference_run("digits", "real")


def test_only_an_evaluation_that_asks_for_it_has_it_in_its_recipe():
    plain, empty, asked, other = map(recipe, (None, {}, {"sw": {}}, {"sw": {"seed": 1}}))
    assert plain.recipe == empty.recipe and "sw" not in plain.recipe
    assert asked.params["extra_metrics"] == {"sw": {"projections": 1000, "seed": 0}} and "metrics/sw" in asked.modules
    assert len({each.digest for each in (plain, asked, other)}) == 3


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"sv": {}}, "sw"),
        ({"sw": {"projections": 0}}, "projections"),
        ({"sw": {"projektions": 9}}, "projections"),
        ({"sw": 5}, "mapping"),
    ],
)
def test_a_mistake_is_one_sentence(extra, words):
    with pytest.raises(Wrong, match=words) as caught:
        recipe(extra)
    assert "\n" not in str(caught.value) and "evaluate.extra_metrics" in str(caught.value)


SHIFT = '''
"""Distance of the means, over the root of the number of features."""
from dataclasses import dataclass

import numpy as np

from eldistill.numbers import number

RECIPE = ("metrics/shift", 1)


@dataclass(frozen=True)
class Numbers:
    power: float = number(1.0, "power of the result", low=0)


def measure(fake, real, numbers):
    return float(np.linalg.norm(fake.mean(0) - real.mean(0)) / real.shape[1] ** 0.5) ** numbers.power
'''


@pytest.fixture
def one_more(tmp_path, monkeypatch):
    """A copy of the package with one more file in metrics/, which plans and evaluations find."""
    for source in PACKAGE.rglob("*.py"):
        target = tmp_path / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (tmp_path / "metrics/shift.py").write_text(SHIFT, encoding="utf-8")
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    import eldistill.metrics

    monkeypatch.setattr(eldistill.metrics, "__path__", [str(tmp_path / "metrics")])
    registry.available.cache_clear()
    yield
    registry.available.cache_clear()


def test_a_new_metric_is_one_file_and_retires_nothing(request):
    """Recipes of evaluations stay; one that asks for the new file is another; it is measured in every space and to both parts."""
    before = recipe(None)
    request.getfixturevalue("one_more")
    assert recipe(None).recipe == before.recipe
    asked = recipe({"shift": {}})
    assert asked.digest != before.digest and '"metrics/shift":1' in asked.recipe.replace(" ", "")
    assert asked.params["extra_metrics"] == {"shift": {"power": 1.0}}
    assert versions.version_of("metrics/shift") == 1
    rows = normal(30, 4) - normal(30, 4).mean(0)
    options = OPTIONS | {"extra_metrics": {"shift": {"power": 2}}}
    found = metrics.measure({"b": rows + 1.5}, {"b": {"train": rows, "heldout": rows + 2}}, options)
    assert {name: value for name, value in found.items() if name.startswith("shift")} == {
        "shift30_b_heldout": pytest.approx(0.25), "shift30_b_train": pytest.approx(2.25)
    }  # fmt: skip


@pytest.mark.parametrize("name", registry.available("metrics"))
def test_every_file_has_a_name_that_metrics_can_have(name):
    """Letters alone, so that `<metric><n>_<space>_<part>` is read in one way, and a name for readers; standard names are taken."""
    assert name.isalpha() and name.islower() and name in names.METRICS
    assert name not in {*metrics.METRICS, *metrics.ALONE, *metrics.LABELLED}
