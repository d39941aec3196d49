# SPDX-License-Identifier: Apache-2.0
"""EL against all real images for every kernel: landmarks, their weights, constants, and what a run does with them."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from eldistill.contract import Batch, Progress, Setting
from eldistill.data import dataset as data
from eldistill.diffusion.draws import Draw
from eldistill.ensemble import anchors, identity, seed
from eldistill.ensemble.members import Member
from eldistill.errors import Problem
from eldistill.losses import mmd
from eldistill.losses.kernel_sums import kernel_sums, sum_of_diagonal
from eldistill.supplements import embedding

ESTIMATORS = ("unbiased", "biased")
each_kernel = pytest.mark.parametrize("kernel", anchors.KERNELS)
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
BANDWIDTH = 2.5


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Vectors:
    """Real images [n, 1, 1, d] as a run has them; sigma_data is 1."""

    sigma_data = 1.0

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices):
        return self.images[indices], None


def smooth(n: int, width: int, seed: int = 0) -> torch.Tensor:
    """Rows near a curved surface with four dimensions, of unit trace, as features of images are: [n, width]."""
    hidden = normal(n, 4, seed=seed) @ normal(4, width, seed=99)
    return torch.tanh(hidden / 2) / (0.6 * width**0.5) + 0.02 * normal(n, width, seed=seed + 1) / width**0.5


MEMBER = Member(identity, identity.Numbers(), {}, bandwidth=BANDWIDTH)


def anchor_of(y: torch.Tensor, kernel: str, landmarks: int, member: Member = MEMBER, number: int = 3) -> anchors.Anchor:
    """What is recorded of the rows y [n, d] and read again."""
    reals = Vectors(y[:, None, None])
    return anchors.anchors_of(anchors.record_anchors([member], reals, number, landmarks), [member], kernel, reals)[0]


# --- sums of kernels -------------------------------------------------------------------------------------


@each_kernel
def test_sums_are_those_of_the_kernels(kernel):
    """Values and gradients equal what autograd makes of mmd.KERNELS, together and each alone; finite differences too."""
    x, y, weights = 0.7 * normal(6, 3, seed=1), 0.3 + normal(8, 3, seed=2), normal(8, seed=3)
    x.requires_grad_()
    k = functools.partial(mmd.KERNELS[kernel], bandwidth=BANDWIDTH)
    gram, double = k(x, x), (k(x, y) @ weights).sum()
    pairs = gram.sum() - gram.trace()
    cases = [((y, weights, 0.3), 0.3 * pairs + double), ((y, weights, 0), double), ((None, None, 0.3), 0.3 * pairs)]
    for arguments, wanted in cases:
        found, of_pairs = kernel_sums(x, *arguments, kernel, BANDWIDTH)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            of_pairs, pairs.detach() if arguments[2] else 0 * pairs.detach(), rtol=1e-12, atol=1e-12
        )
        slopes = [torch.autograd.grad(each, x, retain_graph=True)[0] for each in (found, wanted)]
        torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-10)
        assert torch.autograd.gradcheck(lambda x, rest=arguments: kernel_sums(x, *rest, kernel, BANDWIDTH)[0], x)
    torch.testing.assert_close(sum_of_diagonal(x, kernel), mmd.exact_diagonal(gram, kernel).trace(), rtol=1e-12, atol=0)


@each_kernel
def test_equal_rows_have_no_slope_between_them(kernel):
    """A generated image that equals another one, or a landmark, gets finite gradients; a NaN in one is not hidden."""
    row, weights = normal(1, 3), torch.ones(1, dtype=torch.float64)
    x = row.repeat(3, 1).requires_grad_()
    (slope,) = torch.autograd.grad(kernel_sums(x, row, weights, 1.0, kernel, 1.0)[0], x)
    assert slope.isfinite().all() and (kernel == "cubic" or slope.abs().max() < 1e-6)
    broken = torch.cat([row, row * float("nan")])
    for arguments in ((row, weights, 1.0), (row, weights, 0), (None, None, 1.0)):
        assert kernel_sums(broken, *arguments, kernel, 1.0)[0].isnan()


# --- against all real images -----------------------------------------------------------------------------


@each_kernel
@each_estimator
def test_all_images_as_landmarks_are_the_full_sum(kernel, estimator):
    """M = n: value and gradient are those of mmd2 against all real images, to 1e-10; M > n is M = n."""
    y, x = 0.3 + normal(40, 3, seed=2), (0.7 * normal(7, 3, seed=1)).requires_grad_()
    wanted = mmd.mmd2(x, y, kernel, BANDWIDTH, estimator)
    (slope,) = torch.autograd.grad(wanted, x)
    for landmarks in (40, 1000):
        found = anchor_of(y, kernel, landmarks).mmd2(x, kernel, BANDWIDTH, estimator)
        assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=0, abs=1e-10)
        torch.testing.assert_close(torch.autograd.grad(found, x)[0], slope, rtol=0, atol=1e-10)


@each_kernel
def test_the_gap_is_the_biased_minus_the_unbiased_value(kernel):
    """`gaps` receives one number: V - U against all real images, whichever is asked for."""
    anchor, x = anchor_of(normal(30, 3, seed=2), kernel, 12), normal(5, 3, seed=1)
    unbiased, biased = (anchor.mmd2(x, kernel, BANDWIDTH, each) for each in ESTIMATORS)
    for estimator in ESTIMATORS:
        gaps: list[torch.Tensor] = []
        anchor.mmd2(x, kernel, BANDWIDTH, estimator, gaps=gaps)
        assert [float(gap) for gap in gaps] == [pytest.approx(float(biased - unbiased), rel=1e-9)]


def relative_error(y: torch.Tensor, x: torch.Tensor, kernel: str, landmarks: int, member: Member) -> float:
    """Of the gradient of mu in float32 with landmarks, to that with all images in float64."""
    anchor, width = anchor_of(y, kernel, landmarks, member), member.bandwidth
    slopes = []
    for points, weights, rows in (
        (anchor.points.float(), anchor.weights.float(), x.float()),
        (y, torch.full((len(y),), 1 / len(y), dtype=torch.float64), x),
    ):
        rows = rows.clone().requires_grad_()
        slopes.append(torch.autograd.grad(kernel_sums(rows, points, weights, 0, kernel, width)[0], rows)[0].double())
    return float((slopes[0] - slopes[1]).norm() / slopes[1].norm())


@each_kernel
@pytest.mark.parametrize("width", [8, 64])
def test_the_gradient_of_mu_gets_better_with_landmarks(kernel, width):
    """Its relative error falls with M at both widths, and with the weights it is below that of M images that count alike."""
    y, x = smooth(1200, width), 0.8 * smooth(32, width, seed=5)
    member = Member(identity, identity.Numbers(), {}, bandwidth=mmd.median_squared_distance(y[:400]))
    errors = [relative_error(y, x, kernel, landmarks, member) for landmarks in (32, 128, 512)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2] and errors[2] < 0.03
    part = y[anchors.landmark_order(3, len(y))[:128]]
    plain = relative_error(y, x, kernel, 128, member), relative_error_of_a_part(y, part, x, kernel, member.bandwidth)
    assert plain[0] < 0.7 * plain[1]


def relative_error_of_a_part(y, part, x, kernel: str, width: float) -> float:
    slopes = []
    for points in (part, y):
        rows, weights = x.clone().requires_grad_(), torch.full((len(points),), 1 / len(points), dtype=torch.float64)
        slopes.append(torch.autograd.grad(kernel_sums(rows, points, weights, 0, kernel, width)[0], rows)[0])
    return float((slopes[0] - slopes[1]).norm() / slopes[1].norm())


@each_kernel
def test_weights_do_not_see_a_constant(kernel):
    """They sum to 1, stay small, and a constant added to the kernel changes neither them nor MMD, energy included."""
    y = smooth(300, 8)
    z, width = y[:60], mmd.median_squared_distance(y)
    gram, mean = anchors.grams(z, z, width)[kernel], anchors.grams(z, y, width)[kernel].mean(1)
    weights, shifted = anchors.solve(gram, mean), anchors.solve(gram + 3, mean + 3)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-9) and float(weights.abs().sum()) < 10
    torch.testing.assert_close(shifted, weights, rtol=0, atol=1e-7)
    # The combination is the nearest one: the MMD^2 between it and the data is below that of equal weights.
    gap = [float(a @ gram @ a - 2 * a @ mean) for a in (weights, torch.full_like(weights, 1 / 60))]
    assert gap[0] < gap[1]


def test_repeated_landmarks():
    """Images that occur twice make K singular; the ridge solves it. Without any spread a sentence says so."""
    y = smooth(50, 8).repeat(4, 1)
    for kernel in anchors.KERNELS:
        anchor = anchor_of(y, kernel, 150)
        assert anchor.weights.isfinite().all() and float(anchor.weights.abs().sum()) < 10
    with pytest.raises(Problem, match="weights of 4 landmarks are not finite; choose another number"):
        anchors.solve(torch.full((4, 4), float("nan"), dtype=torch.float64), torch.ones(4, dtype=torch.float64))


@each_kernel
@pytest.mark.parametrize("landmarks", [32, 128])
def test_new_real_images_have_the_value_zero_on_average(kernel, landmarks):
    """Over data sets and batches of one distribution the unbiased value averages to zero, within three errors."""
    values = []
    for number in range(40):
        rows = smooth(400, 8, seed=1000 + number)[torch.randperm(400, generator=torch.Generator().manual_seed(number))]
        y, new = rows[:240], rows[240:]
        member = Member(identity, identity.Numbers(), {}, bandwidth=0.8)
        anchor = anchor_of(y, kernel, landmarks, member)
        values.append(torch.stack([anchor.mmd2(x, kernel, 0.8) for x in new.split(16)]).mean())
    found = torch.stack(values)
    assert abs(float(found.mean())) < 3 * float(found.std()) / 40**0.5
    assert float(found.std()) > 0


def test_constants_over_blocks(monkeypatch):
    """c over blocks is the mean over all pairs; of a larger set a random part is taken, and a gradient does not change."""
    y, x = normal(53, 3), normal(5, 3, seed=1).requires_grad_()
    whole = anchors.within(y, BANDWIDTH)
    monkeypatch.setattr(anchors, "BLOCK", 10)
    for kernel, values in anchors.within(y, BANDWIDTH).items():
        gram = mmd.exact_diagonal(mmd.KERNELS[kernel](y, y, BANDWIDTH), kernel)
        wanted = torch.stack([(gram.sum() - gram.trace()) / (53 * 52), gram.mean()])
        torch.testing.assert_close(values, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(values, whole[kernel], rtol=1e-12, atol=1e-12)
    slopes, constants = [], []
    for limit in (53, 25):
        monkeypatch.setattr(anchors, "WITHIN", limit)
        anchor = anchor_of(y, "rbf", 53)
        slopes.append(torch.autograd.grad(anchor.mmd2(x, "rbf", BANDWIDTH), x)[0])
        constants.append(anchor.within)
    assert torch.equal(*slopes) and constants[0] != constants[1]
    part = anchors.within(y[anchors.landmark_order(3, 53)[:25]], BANDWIDTH)["rbf"]
    assert constants[1] == pytest.approx(part.tolist(), rel=1e-12)


# --- recorded, and in a run ------------------------------------------------------------------------------

CODEC = {"mean": 0.5, "std": 0.25}
CONV = {"family": "conv", "width": 4, "depth": 1}


def reals(n: int = 60, dtype=torch.float32) -> data.PackedImages:
    random = torch.Generator().manual_seed(4)
    images = torch.randint(256, (n, 1, 8, 8), generator=random, dtype=torch.uint8)
    return data.PackedImages(images, torch.zeros(n, dtype=torch.int64), CODEC, 0, dtype=dtype)


def make(folder: Path, **changes) -> Path:
    members = [{"count": 1, **CONV}, {"count": 1, **CONV, "features": "multi"}, {"count": 1, "family": "identity"}]
    section = {"members": members, "redraw": 0, "calibration": 32, "draws": 2, **changes}
    seed.record_ensemble(section, 3, reals(), folder / "e.json", folder / "e.npz")
    return folder / "e.json"


def term(path: Path, size: int = 12, real=True, **changes) -> dict:
    """EL's terms at `size` images as a run computes them, without real images in the batch."""
    numbers = embedding.Numbers(anchored=True, diagnose=1, **changes)
    setting = Setting(
        ensemble=path, label_dim=3, sigma_data=0.5, seed=8, sigma_init=2.5, reals=reals() if real is True else real
    )
    batch = Batch(Draw(0, "generator", 0, size), None, (1, 8, 8), Progress(0, 0, 100), None)
    x = 0.3 * normal(size, 1, 8, 8, seed=3).float() + 0.1
    return embedding.generator_terms(embedding.prepare(numbers, setting), x, batch, numbers)


@pytest.mark.parametrize("kernel", mmd.KERNELS)
@each_estimator
def test_a_run_without_real_images(tmp_path, kernel, estimator):
    """With all images as landmarks a run's EL is that against all real images; trace_ratio is that of their spread."""
    path = make(tmp_path, anchor=True)
    terms = term(path, kernel=kernel, estimator=estimator)
    members, every = seed.Ensemble(path).at(0), reals().take(torch.arange(60))[0] / 0.5
    x, found = (0.3 * normal(12, 1, 8, 8, seed=3).float() + 0.1).requires_grad_(), {}
    wanted = embedding.embedding_loss(members, x / 0.5, every, kernel, estimator, found=found)
    value = float(wanted.detach())
    if kernel == "linear" and estimator == "unbiased":  # the form from means has |mean|^2, not its unbiased estimate
        value += sum(float(member(every).var(0).sum()) / 60 for member in members) / 3
    assert float(terms["mmd2"].value) == pytest.approx(value, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(terms["mmd2"].gradient, torch.autograd.grad(wanted, x)[0], rtol=1e-3, atol=1e-6)
    assert float(terms["trace_ratio"].value) == pytest.approx(float(found["trace_ratio"]), rel=1e-4)
    stacked = term(path, kernel=kernel, estimator=estimator, stack="stacked")
    torch.testing.assert_close(stacked["mmd2"].gradient, terms["mmd2"].gradient, rtol=1e-3, atol=1e-6)


def test_collapse_is_seen(tmp_path):
    """Generated images without spread have a trace_ratio near 0, at which a run warns."""
    path = make(tmp_path, anchor=True, landmarks=16)
    ensemble = seed.Ensemble(path)
    known, traces = ensemble.anchored("rbf", reals())
    x, found = torch.zeros(6, 1, 8, 8) + 0.01 * normal(6, 1, 8, 8).float(), {}
    embedding.embedding_loss(ensemble.at(0), x, None, "rbf", "unbiased", anchors=known, traces=traces, found=found)
    assert 0 < found["trace_ratio"] < 0.01 and "collaps" in embedding.warning(found)


def test_arrays(tmp_path):
    """What is stored has the stated size and comes from the ensemble's seed; other ensembles have nothing of it."""
    with np.load(make(tmp_path, anchor=True, landmarks=16).with_suffix(".npz")) as arrays:
        mine = {
            key: arrays[key]
            for key in arrays.files
            if key.startswith(("landmarks", "anchor_", "trace_", "within_", "weights_"))
        }
    widths, kernels = [64, 64, 64], len(anchors.KERNELS)
    assert sum(each.nbytes for each in mine.values()) == 8 * (16 + sum(w + 1 + kernels * (16 + 2) for w in widths))
    assert np.array_equal(mine["landmarks"], anchors.landmark_order(3, 60)[:16]) and len(set(mine["landmarks"])) == 16
    with np.load(make(tmp_path).with_suffix(".npz")) as arrays:
        assert {key.split("_")[0] for key in arrays.files} == {"indices", "mean"}
    first = anchors.landmark_order(3, 60)
    assert torch.equal(first.sort().values, torch.arange(60)) and not torch.equal(first, anchors.landmark_order(4, 60))


def test_refusals(tmp_path, monkeypatch):
    """One sentence names everything that anchored EL cannot go with; files of other images or other code are refused."""
    monkeypatch.setattr(anchors, "SOLVED", 20)
    with pytest.raises(Problem, match="landmarks: 30 of 60 train images; expected at most 20, or at least 60"):
        make(tmp_path, anchor=True, landmarks=30)
    assert not list(tmp_path.iterdir())
    path = make(tmp_path, anchor=True, landmarks=16)
    for changes, words in (
        ({"augmentation": ("flip",)}, r"augmentation: \['flip'\]"), ({"real_ratio": 2}, "real_ratio: 2"), ({"pairs": 4}, "pairs: 4"),
        ({"real_ratio": 2, "pairs": 4}, "pairs: 4, real_ratio: 2"), ({"labels": "joint"}, "labels: joint"),
    ):  # fmt: skip
        with pytest.raises(
            Problem, match=f"anchored is true .* with {words}; .* expected no augmentation.* real_ratio: 1"
        ):
            term(path, **changes)
    few = data.PackedImages(reals().images[:10], torch.zeros(10, dtype=torch.int64), CODEC, 0)
    with pytest.raises(Problem, match=r"has landmark \d+, but the run has 10 real images; delete"):
        term(path, real=few)
    with pytest.raises(Problem, match="1 generated image; expected at least 2"):
        term(path, size=1)
    with np.load(path.with_suffix(".npz")) as arrays:
        held = {key: arrays[key] for key in arrays.files}
    for gone in ("trace_0", "landmarks", "within_rbf_2"):
        np.savez(path.with_suffix(".npz"), **{key: each for key, each in held.items() if key != gone})
        with pytest.raises(Problem, match=f"has no {gone}, because earlier code made it; delete it"):
            term(path)
    with pytest.raises(Problem, match="has no means over all images; .*`anchor: true`"):
        term(make(tmp_path))
    with pytest.raises(Problem, match="anchored is true .* with redraw: 2"):
        term(make(tmp_path, redraw=2))


@pytest.mark.parametrize("kernel, estimator", [*itertools.product(anchors.KERNELS, ESTIMATORS)])
def test_one_generated_image_in_the_biased_form(kernel, estimator):
    """V takes a single row; U refuses it in a sentence, and so does the gap."""
    anchor, x = anchor_of(normal(20, 3), kernel, 20), normal(1, 3, seed=1)
    with pytest.raises(Problem, match="of 1 generated image"):
        anchor.mmd2(x, kernel, BANDWIDTH, estimator, gaps=[])
    wanted = mmd.mmd2(x, normal(20, 3), kernel, BANDWIDTH, "biased")
    assert float(anchor.mmd2(x, kernel, BANDWIDTH, "biased")) == pytest.approx(float(wanted), abs=1e-10)
