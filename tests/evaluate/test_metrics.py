# SPDX-License-Identifier: Apache-2.0
"""Metrics beyond the Fréchet distance itself: its bias and error, density and coverage, class scores, copies, alarms."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch

from eldistill import paths
from eldistill.data import dataset as data
from eldistill.data import packing
from eldistill.errors import Problem
from eldistill.evaluate import arithmetic, classifiers, features, gaussians, neighbours
from eldistill.evaluate import evaluator as evaluate
from eldistill.evaluate.references import load_reference, make_reference, noise_floor
from eldistill.paths import PACKAGE
from eldistill.plan import params, versions
from eldistill.plan.plan import Plan
from eldistill.tables.alarms import alarms
from tests import conftest
from tests.conftest import ROOT
from tests.evaluate.test_evaluate import normal, train_judge

OPTIONS = {"neighbours": 3, "neighbours_n": 2000}

# --- the jackknife --------------------------------------------------------------------------------------


def jackknife_by_loops(x: np.ndarray, y: np.ndarray, groups: int) -> tuple[float, float]:
    def f(gone_x=(), gone_y=()):
        kept = (
            [row for i, row in enumerate(z) if i % groups not in gone]
            for z, gone in ((x, gone_x), (y, gone_y))
        )  # fmt: skip
        return gaussians.fd(*map(np.array, kept), {})

    whole, estimate, variance = f(), f(), 0.0
    for side in (0, 1):
        without = lambda *gone, side=side: f(gone) if side == 0 else f((), gone)  # noqa: E731
        left = [without(g) for g in range(groups)]
        estimate -= (groups - 1) * (np.mean(left) - whole)
        own = (groups - 1) / groups * sum((each - np.mean(left)) ** 2 for each in left)
        q = [groups * whole - (groups - 1) * (left[i] + left[j]) + (groups - 2) * without(i, j)
             for i in range(groups) for j in range(i)]  # fmt: skip
        variance += max(own / 2, own - sum((each - np.mean(q)) ** 2 for each in q) / (groups * (groups - 1)))
    return estimate, math.sqrt(variance)


def test_the_jackknife_is_the_explicit_one():
    x, y = 1.3 * normal(90, 4, seed=1) + 50, normal(60, 4, seed=2) + 50
    assert gaussians.jackknife(x, y, 7) == pytest.approx(jackknife_by_loops(x, y, 7), rel=1e-7)
    assert gaussians.jackknife(x, y, 7) == pytest.approx(gaussians.jackknife(y, x, 7), rel=1e-7)


@pytest.mark.parametrize(("shift", "d"), [(0.0, 4), (0.0, 16), (0.3, 8)])
def test_its_interval_covers_the_truth(shift, d):
    """Two samples of Gaussians, equal or a shift apart: the nominal 95 % interval holds the true distance in 90 to 99 % of
    trials, where the plain distance lies above it on average by many of its own deviations."""
    from scipy.stats import t

    random, sd, half = np.random.default_rng(d), 1 / np.sqrt(np.arange(1, d + 1)), t.ppf(0.975, gaussians.GROUPS - 1)
    hits, found, plain = 0, [], []
    for _ in range(200):
        x, y = random.normal(size=(400, d)) * sd, random.normal(size=(300, d)) * sd
        x[:, 0] += shift
        value, error = gaussians.jackknife(x, y)
        hits += abs(value - shift**2) <= half * error
        found.append(value)
        plain.append(gaussians.fd(x, y, {}))
    assert 0.90 <= hits / 200 <= 0.99
    assert abs(np.mean(found) - shift**2) < 0.15 * (np.mean(plain) - shift**2)


def test_the_paired_interval_covers_the_truth():
    """Differences of five paired seeds without an effect: the nominal 95 % interval holds 0 in 90 to 99 % of trials."""
    from eldistill.tables.inference import interval

    random = np.random.default_rng(0)
    ends = [interval(list(random.normal(size=5)), 0.95) for _ in range(1000)]
    assert 0.90 <= np.mean([low <= 0 <= high for low, high in ends]) <= 0.99


def test_the_jackknife_stays_away_where_it_cannot_be_had():
    assert gaussians.debiased(normal(30, 4), normal(400, 4), OPTIONS) is None
    assert gaussians.debiased(normal(400, 200), normal(400, 200), OPTIONS) is None
    with pytest.raises(Problem, match="30 images for a jackknife in 20 groups; expected 40 or more"):
        gaussians.jackknife(normal(30, 4), normal(400, 4))


# --- density and coverage, classes, copies --------------------------------------------------------------


def dense_by_loops(fake: np.ndarray, real: np.ndarray, k: int = 5) -> tuple[float, float]:
    radii = [sorted(np.linalg.norm(a - b) for j, b in enumerate(real) if j != i)[k - 1] for i, a in enumerate(real)]
    inside = [[np.linalg.norm(f - r) <= radius for r, radius in zip(real, radii, strict=True)] for f in fake]
    return sum(map(sum, inside)) / (k * len(fake)), sum(any(column) for column in zip(*inside, strict=True)) / len(real)


def test_density_and_coverage_are_brute_force():
    fake, real = 0.7 * normal(40, 3, seed=1) + 0.5, normal(40, 3, seed=2)
    density, coverage = dense_by_loops(fake, real)
    assert neighbours.density(fake, real, OPTIONS) == pytest.approx(density, abs=1e-12)
    assert neighbours.coverage(fake, real, OPTIONS) == pytest.approx(coverage, abs=1e-12)
    assert 0 < coverage < 1 and neighbours.coverage(fake[:4], real, OPTIONS) is None


def test_the_inception_score_has_its_closed_forms():
    """Sure and balanced: the number of classes. The same for all images, sure or not: 1."""
    sure = {"probabilities": lambda features: np.eye(4)[np.arange(len(features)) % 4]}
    assert classifiers.inception_score(normal(400, 2), {}, sure) == pytest.approx(4)
    for row in (np.eye(4)[0], np.full(4, 0.25), np.array([0.7, 0.1, 0.1, 0.1])):
        same = {"probabilities": lambda features, row=row: np.tile(row, (len(features), 1))}
        assert classifiers.inception_score(normal(400, 2), {}, same) == pytest.approx(1, abs=1e-9)
    assert classifiers.inception_score(normal(400, 2), {}, {}) is None


@pytest.mark.parametrize("n", [400, 405, 39])
def test_real_images_that_are_sorted_by_class_have_the_score_of_mixed_ones(n):
    """A folder for each class gives that order; splits of neighbours would hold one class each, and the score would be 1."""
    classes = np.arange(n) % 4
    options = {"probabilities": lambda features: np.eye(4)[features[:, 0].astype(int)]}
    mixed, in_order = ({"s": each[:, None].astype(float)} for each in (classes, np.sort(classes)))
    name, stem = f"is{n}_s", {"train": mixed["s"], "heldout": mixed["s"]}
    by_name, plain = (
        metrics.measure(in_order, {"s": stem}, OPTIONS | more, heads={"s": options["probabilities"]}, parts=())[name]
        for more in ({"by_name": True}, {})
    )
    assert by_name > 3.4 and plain < 2 and metrics.inception_score(mixed["s"], {}, options) > 3.4


def test_probabilities_are_a_softmax_of_the_last_layer():
    features, weight, bias = normal(6, 3), normal(4, 3, seed=1), normal(4, seed=2)
    wanted = torch.softmax(torch.from_numpy(features @ weight.T + bias), 1).numpy()
    assert np.allclose(arithmetic.softmax(features, weight, bias), wanted, rtol=1e-12)
    assert np.allclose(arithmetic.softmax(1e4 * features, weight).sum(1), 1)


def test_copies_count_from_chance_to_all():
    """Fresh draws: 0, whatever the sizes of the two parts. Train images themselves: 1. Held-out ones: as far below 0."""
    train, heldout = normal(600, 3, seed=1), normal(200, 3, seed=2)
    parts = {"train": train, "heldout": heldout}
    fresh = [neighbours.copied(normal(1000, 3, seed=9 + s), parts, OPTIONS) for s in range(5)]
    assert abs(np.mean(fresh)) < 0.15
    assert neighbours.copied(train + 1e-6, parts, OPTIONS) == 1
    assert neighbours.copied(heldout + 1e-6, parts, OPTIONS) == pytest.approx(-600 / 200)
    both = {"train": train, "heldout": train}
    assert neighbours.copied(normal(1000, 3, seed=3), both, OPTIONS) == pytest.approx(0)


# --- alarms -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ruler(tmp_path_factory):
    """Measures images of digits in the features of a judge that has learned them: {name without n and space: value}."""
    folder = tmp_path_factory.mktemp("ruler")
    packing.pack_dataset({"source": "digits", "heldout": 360}, folder / "pack")
    train_judge("a", folder / "pack", folder / "judge", 57_600)
    spaces = {"judge-a": features.feature_space("judge-a", folder / "judge")}
    make_reference(spaces["judge-a"], folder / "pack", folder / "reference.npz")
    known = {"judge-a": load_reference(folder / "reference.npz")}

    def seen(values: dict) -> dict[str, float]:
        names = {name.split("_judge-a")[0].rstrip("0123456789k"): value for name, value in values.items()
                 if name.endswith(("_judge-a_heldout", "_judge-a"))}  # fmt: skip
        return names

    def measure(images: torch.Tensor) -> dict[str, float]:
        return seen(evaluate.Evaluator(spaces, known, OPTIONS).measure(lambda n, first: images.split(250), len(images)))

    images, labels, _ = data.load_pack(folder / "pack")
    # The class score of train images is a reference only for themselves: that of held-out ones stands for real images.
    row = noise_floor(known, OPTIONS, spaces)
    floor = seen({name: value for name, value in row.items() if not name.startswith("is1437")})
    return measure, floor, images, labels


def blurred(images: torch.Tensor) -> torch.Tensor:
    x = torch.nn.functional.pad(images.float(), (1, 1, 1, 1), mode="replicate")
    x = torch.nn.functional.avg_pool2d(x, 3, 1)
    x = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return x.round().to(torch.uint8)


def noisy(images: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images.float() + 0.25 * 255 * noise).clamp(0, 255).to(torch.uint8)


PLANTED = {  # what is done to half of the train images, and the metrics of which one at least must say so
    "five classes missing": (lambda images, labels: images[labels < 5], {"coverage", "recall", "is"}),
    "blur": (lambda images, labels: blurred(images), {"precision", "recall", "is"}),
    "noise": (lambda images, labels: noisy(images), {"precision", "is"}),
    "duplicates": (lambda images, labels: images[:20].repeat(30, 1, 1, 1), {"coverage", "recall"}),
    "memorised images": (lambda images, labels: images, {"copied"}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_collapse_raises_an_alarm(ruler, name):
    measure, floor, images, labels = ruler
    spoil, which = PLANTED[name]
    half = images[::2], labels[::2]
    said = alarms(measure(spoil(*half)), {"real images": floor})
    assert {text.split(" ")[0] for text in said} & which, (said, floor)
    assert all(("copied" in text) or ("real images" in text) for text in said)


def test_real_images_raise_no_alarm(ruler):
    """Held-out images that are not in the reference are not to be had here: the floor itself, which is as good."""
    _, floor, _, _ = ruler
    assert alarms(floor | {"copied": 0.0}, {"real images": floor}) == []


def test_a_student_is_not_asked_to_beat_its_teacher():
    found = {"precision": 0.6, "coverage": 0.5}
    real, teacher = {"precision": 0.9, "coverage": 0.9}, {"precision": 0.7, "coverage": 0.9}
    said = alarms(found, {"real images": real, "its teacher": teacher})
    assert len(said) == 1 and said[0].startswith("coverage 0.50, real images 0.90: ")


# --- a new metric -------------------------------------------------------------------------------------------

SHIFT = '''
def shift(fake, real, options):
    """Distance of the means, over the root of the number of features."""
    return float(np.linalg.norm(fake.mean(0) - real.mean(0)) / real.shape[1] ** 0.5)


Metric = '''


def test_a_new_metric_is_one_function_and_its_name(tmp_path, monkeypatch):
    """metrics.py with one more function in METRICS: it is measured in every space and to both parts, under its name, and every
    evaluation is stale without it."""
    plan = lambda: Plan(params.from_values(conftest.shipped(), ROOT))  # noqa: E731
    before = plan().reference_run("digits", "real")
    for source in PACKAGE.rglob("*.py"):
        target = tmp_path / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    file = tmp_path / "evaluate/metrics.py"
    text = (
        file.read_text(encoding="utf-8").replace("\nMetric = ", SHIFT).replace('"fd": fd,', '"fd": fd, "shift": shift,')
    )
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    versions.metric_names.cache_clear()
    try:
        after = plan().reference_run("digits", "real")
    finally:
        versions.metric_names.cache_clear()
    assert set(after.params["metrics"]) - set(before.params["metrics"]) == {"shift"} and after.digest != before.digest
    spec = importlib.util.spec_from_file_location("metrics_with_one_more", file)
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    rows = normal(30, 4) - normal(30, 4).mean(0)
    found = other.measure({"b": rows + 1.5}, {"b": {"train": rows, "heldout": rows + 2}}, OPTIONS)
    assert found["shift30_b_heldout"] == pytest.approx(0.5) and found["shift30_b_train"] == pytest.approx(1.5)
    assert {name for name in found if name.startswith("shift")} == {"shift30_b_heldout", "shift30_b_train"}
