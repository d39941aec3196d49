# SPDX-License-Identifier: Apache-2.0
"""What theory says of the Embedding Loss: estimators and their gradients, label forms, parts on several processes,
mixtures of two gradients, and what a run says of itself."""

from __future__ import annotations

import datetime
import functools
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributed as collectives
from torch import multiprocessing

from eldistill.contract import Progress
from eldistill.ensemble import identity
from eldistill.ensemble.anchors import Anchor
from eldistill.ensemble.members import Member
from eldistill.errors import Problem
from eldistill.losses import mixing, mmd
from eldistill.supplements import embedding
from eldistill.training import processes as distributed

ESTIMATORS, FORMS = ("unbiased", "biased"), ("marginal", "joint", "per_class")
each_kernel = pytest.mark.parametrize("kernel", mmd.KERNELS)

# Class 2 has no real row, class 3 one generated row: too few for U, enough for V.
OF_X, OF_Y = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 3, 3, 3, 3])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(m: int = 9, n: int = 11, d: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return 0.7 * normal(m, d, seed=1), 0.3 + normal(n, d, seed=2)


def statistic(kernel: str, estimator: str, form: str, x, y, of_x=OF_X, of_y=OF_Y) -> torch.Tensor:
    """One of the three forms; bandwidth 2.5."""
    if form == "per_class":
        return mmd.per_class(x, y, kernel, 2.5, estimator, (of_x, of_y))
    return mmd.mmd2(x, y, kernel, 2.5, estimator, (of_x, of_y) if form == "joint" else None)


def near(values: torch.Tensor, truth: float, errors: float = 3) -> bool:
    """Whether the mean of independent values is within so many standard errors of the truth."""
    return abs(float(values.mean()) - truth) < errors * float(values.std()) / math.sqrt(len(values))


# --- values and gradients --------------------------------------------------------------------------------


def explicit(kernel: str, estimator: str, form: str, x, y, of_x, of_y) -> float:
    """The definition in numpy, from three kernel matrices."""
    if form == "per_class":
        rows = [(x[of_x == label], y[of_y == label]) for label in range(4)]
        least = 2 if estimator == "unbiased" else 1
        return np.mean([explicit(kernel, estimator, "", *r, *r) for r in rows if min(map(len, r)) >= least])

    def average(a, b, of_a, of_b) -> float:
        dots, squares = np.einsum("id,jd->ij", a, b), ((a[:, None] - b[None]) ** 2).sum(-1)
        mixture = sum(np.exp(-squares / (2 * c * 2.5)) for c in (1 / 4, 1 / 2, 1, 2, 4)) / 5
        peaks = sum(np.exp(-np.sqrt(squares / 2.5) / r) for r in (1 / 4, 1 / 2, 1, 2)) / 4
        k = {"linear": dots, "cubic": (dots + 1) ** 3, "energy": -np.sqrt(squares), "rbf": mixture, "laplace": peaks}[
            kernel
        ]
        if form == "joint":
            k = k * (of_a[:, None] == of_b[None])
        if a is not b or estimator == "biased":
            return k.sum() / k.size
        return (k * (1 - np.eye(len(a)))).sum() / (len(a) * (len(a) - 1))

    return average(x, x, of_x, of_x) + average(y, y, of_y, of_y) - 2 * average(x, y, of_x, of_y)


@pytest.mark.parametrize("which", [*itertools.product(mmd.KERNELS, ESTIMATORS, FORMS)], ids="-".join)
def test_value_and_gradient(which):
    """The explicit sums to 1e-10, with 1[y = y'] for joint; c.8: in any order of rows. Finite differences in both sides."""
    (x, y), p, q = pair(), 2 * torch.arange(9) % 9, 3 * torch.arange(11) % 11
    expected = explicit(*which, *(each.numpy() for each in (x, y, OF_X, OF_Y)))
    assert float(statistic(*which, x, y)) == pytest.approx(expected, rel=0, abs=1e-10)
    assert float(statistic(*which, x[p], y[q], OF_X[p], OF_Y[q])) == pytest.approx(expected, rel=0, abs=1e-10)
    assert torch.autograd.gradcheck(functools.partial(statistic, *which), [x.requires_grad_(), y.requires_grad_()])


@each_kernel
def test_product_kernel_splits_by_class(kernel):
    """c.8: of C equal classes the mean V_c is C V_joint; of one class alone joint is marginal, in both estimators.

    No class with enough rows: 0, and so is the gradient.
    """
    (x, y), of_x, of_y = pair(12, 18), torch.arange(12) % 3, torch.arange(18) % 3
    joint, split = (float(statistic(kernel, "biased", form, x, y, of_x, of_y)) for form in ("joint", "per_class"))
    assert split == pytest.approx(3 * joint, rel=1e-12)
    for estimator in ESTIMATORS:
        one = [float(statistic(kernel, estimator, form, x, y, 0 * of_x, 0 * of_y)) for form in FORMS]
        assert one == pytest.approx(one[:1] * 3, rel=1e-12)
    empty = statistic(kernel, "unbiased", "per_class", x.requires_grad_(), y, of_x, of_y + 3)
    assert float(empty.detach()) == 0 and not torch.autograd.grad(empty, x)[0].any()


@each_kernel
def test_mean_does_not_depend_on_the_batch(kernel):
    """c.2, exactly: the mean of U over all parts with m and n rows of a sample is U of the sample; that of V is not."""
    x, y = pair(6, 5)
    whole = float(mmd.mmd2(x, y, kernel, 2.5))
    for (m, n), form in itertools.product(((2, 5), (3, 2), (6, 4)), ESTIMATORS):
        parts = itertools.product(itertools.combinations(range(6), m), itertools.combinations(range(5), n))
        mean = np.mean([float(mmd.mmd2(x[list(i)], y[list(j)], kernel, 2.5, form)) for i, j in parts])
        assert mean == pytest.approx(whole, abs=1e-12) if form == "unbiased" else mean > whole + 0.02


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_anchored(estimator):
    """(|S|^2 - q) / m(m-1) - 2 S.mu / m + |mu|^2, or |S/m - mu|^2: the limit of n -> inf copies of the data set.

    V of the whole set is it; U of n copied rows falls short by tr Cov / (n - 1). Over all ways to draw n = 3 of four
    images with replacement E U is it too, and E V has tr Cov / n on top.
    """
    (x, data), unbiased = pair(9, 4), estimator == "unbiased"
    mean, spread, s = data.mean(0), float(data.var(0, correction=0).sum()), x.sum(0)
    own = (s @ s - x.square().sum()) / (9 * 8) if unbiased else s @ s / 81
    value = float(mmd.anchored(x, mean, estimator))
    assert value == pytest.approx(float(own - 2 * s @ mean / 9 + mean @ mean), abs=1e-13)
    for copies in (1, 3, 100):
        found = float(mmd.mmd2(x, data.repeat(copies, 1), "linear", 1.0, estimator))
        assert found + unbiased * spread / (4 * copies - 1) == pytest.approx(value, abs=1e-12)
    draws = [data[list(each)] for each in itertools.product(range(4), repeat=3)]
    found = np.mean([float(mmd.mmd2(x, y, "linear", 1.0, estimator)) for y in draws])
    assert found - (not unbiased) * spread / 3 == pytest.approx(value, abs=1e-13)
    assert torch.autograd.gradcheck(lambda x, mean: mmd.anchored(x, mean, estimator), (x.requires_grad_(), mean))
    with pytest.raises(Problem, match="1 generated image; expected at least 2"):
        mmd.anchored(x[:1], mean)


# --- statistics ------------------------------------------------------------------------------------------

DRAWS, WIDTH, TRACE = 2000, 37, 21.552  # a normal with E V = 2.694 and a deviation of U of 0.637 at m = n = 16


def simulate(kernel: str, estimator: str, xs: torch.Tensor, ys: torch.Tensor) -> torch.Tensor:
    return torch.vmap(lambda x, y: mmd.mmd2(x, y, kernel, 2.5, estimator))(xs, ys)


def test_at_the_null():
    """c.1: U has mean 0 at P = Q, V has tr(Cov) (1/m + 1/n): 2.694 at m = n = 16.

    c.2: the deviation of U falls as 1/m: 0.637, 0.157, 0.039 at 16, 64, 256; ratios near 4.
    """
    deviations = {}
    for m, n, count in ((16, 16, DRAWS), (8, 32, DRAWS), (64, 64, 500), (256, 256, 500)):
        x, y = ((TRACE / WIDTH) ** 0.5 * normal(count, rows, WIDTH, seed=7 * m + k) for k, rows in enumerate((m, n)))
        unbiased, biased = (simulate("linear", form, x, y) for form in ESTIMATORS)
        assert near(unbiased, 0) and near(biased, TRACE * (1 / m + 1 / n))
        assert biased.std() / count**0.5 < 0.02 * biased.mean()
        deviations[m] = float(unbiased.std())
    d16, d64, d256 = (deviations[m] for m in (16, 64, 256))
    assert [d16, d64, d256] == pytest.approx([0.637, 0.157, 0.0392], rel=0.1)  # three errors of those from 500 draws
    assert [d16 / d64, d64 / d256] == pytest.approx([4, 4], rel=0.15)


@each_kernel
def test_slope_at_the_truth(kernel):
    """c.3: generator x -> a x at a = 1. E dU/da = 0; V pays for shrinking, linear: E dV/da = 2 tr(Cov) / m."""
    spread = torch.tensor([1.0, 0.8, 0.4], dtype=torch.float64)  # tr Cov = 1.8
    x, y = spread * normal(DRAWS, 4, 3, seed=3), spread * normal(DRAWS, 16, 3, seed=4)
    a = torch.ones(DRAWS, 1, 1, dtype=torch.float64, requires_grad=True)
    unbiased, biased = (torch.autograd.grad(simulate(kernel, e, a * x, y).sum(), a)[0].flatten() for e in ESTIMATORS)
    assert near(unbiased, 0) and not near(biased, 0, 5) and biased.mean() > 0
    assert kernel != "linear" or near(biased, 2 * 1.8 / 4)


MEANS = torch.tensor([[1, 0, 0.5, 0], [-1, 0.5, 0, 0], [0, 0, 0, 1]], dtype=torch.float64).reshape(3, 1, 2, 2)
# The labels by which real images are made, and those that EL is told, from two independent draws.
INDEPENDENT, STRATIFIED = lambda of_x, of_y: (of_y, of_y), lambda of_x, of_y: (of_x, of_x)
SWAPPED = lambda of_x, of_y: (of_y, torch.tensor([1, 0, 2])[of_y])  # noqa: E731


def losses(kernel: str, labels: str, count: int, real_labels) -> torch.Tensor:
    """EL of 24 images against 24, pixels N(MEANS[class], 1/4)."""
    member, values = Member(identity, identity.Numbers(), {}, bandwidth=2.5), []
    random = torch.Generator().manual_seed(5)
    for _ in range(count):
        of_x, of_y = torch.randint(3, (2, 24), generator=random)
        drawn, told = real_labels(of_x, of_y)
        noise = torch.randn(2, 24, 1, 2, 2, generator=random, dtype=torch.float64) / 2
        x, y = MEANS[of_x] + noise[0], MEANS[drawn] + noise[1]
        value = embedding.embedding_loss([member], x, y, kernel, "unbiased", labels=labels, classes=(of_x, told))
        values.append(value)
    return torch.stack(values)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("labels, share", [("joint", 2 / 9), ("both", 1 / 9), ("per_class", 2 / 3)])
def test_label_forms(kernel, labels, share):
    """Independent real labels: mean 0 at P = Q. Labels 0 and 1 swapped: seen, of which linear says how much."""
    assert near(losses(kernel, labels, 400, INDEPENDENT), 0)
    seen = losses(kernel, labels, 100, SWAPPED)
    assert not near(seen, 0, 10) and seen.mean() > 0
    assert kernel != "linear" or near(seen, share * float((MEANS[0] - MEANS[1]).square().sum()))


def test_labels_that_the_marginal_form_does_not_see():
    """Swapped labels leave it as it is. Stratified real labels would bias it by -2/m tr Cov of the class means."""
    told, swapped, stratified = (losses("linear", "marginal", 600, f) for f in (INDEPENDENT, SWAPPED, STRATIFIED))
    assert torch.equal(told, swapped) and near(told, 0)
    assert near(stratified, -2 / 24 * float(MEANS.var(0, correction=0).sum())) and not near(stratified, 0, 5)


# --- several processes -----------------------------------------------------------------------------------

SPLITS = [(4, 4), (3, 4), (1, 6)]  # images of each of two processes; with twice as many real ones
CASES = [*itertools.product(("linear", "rbf"), ESTIMATORS, (*FORMS, "both"))]
CASES += [(kernel, estimator, "anchored") for kernel in mmd.KERNELS for estimator in ESTIMATORS]


def evaluate(case, split: tuple[int, int], rank: int, across=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """EL with two members, its gradient at the own images, and the gap; without `across` from the whole batch."""
    (kernel, estimator, labels), m, start = case, sum(split), rank * split[0]
    own = slice(start, start + split[rank])
    held, real = (slice(m), slice(2 * m)) if across is None else (own, slice(2 * own.start, 2 * own.stop))
    x, y = (each.reshape(-1, 1, 2, 2) for each in pair(m, 2 * m, 4))
    x, y, classes = x[held].requires_grad_(), y[real], (torch.arange(m)[held] % 2, torch.arange(2 * m)[real] // 2 % 2)
    rest = {"labels": labels, "classes": classes}
    if labels == "anchored":
        known = [normal(4, seed=k) for k in (6, 7)]
        if kernel != "linear":
            known = [Anchor(normal(5, 4, seed=k), normal(5, seed=k + 2).softmax(0), (0.4, 0.5)) for k in (6, 7)]
        y, rest = None, {"anchors": known}
    members = [Member(identity, identity.Numbers(), {}, scale=scale, bandwidth=2.5) for scale in (0.9, 1.7)]
    value = embedding.embedding_loss(members, x, y, kernel, estimator, across=across, **rest)
    (gradient,) = torch.autograd.grad(value, x)
    gaps: list[torch.Tensor] = []
    embedding.embedding_loss(members, x, y, kernel, estimator, across=across, gaps=gaps, **rest)
    return value.detach(), gradient if across else gradient[own], torch.stack(gaps).mean()


def work(rank: int, folder: str) -> None:
    """One of two processes: every case and split, and what the two collectives do."""
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=120)
    collectives.init_process_group("gloo", f"file://{folder}/store", wait, world_size=2, rank=rank)
    across = distributed.process_group()
    found = {each: evaluate(*each, rank, across) for each in itertools.product(CASES, SPLITS)}
    own = (torch.arange(2.0 + rank)[:, None] + 10 * rank + torch.zeros(3)).requires_grad_()  # 2 and 3 rows
    gathered, total, factors = across.gather(own), across.total(own.sum(0)), torch.arange(15.0).reshape(5, 3)
    slopes = [torch.autograd.grad((f * g).sum(), own)[0] for f, g in ((gathered, factors), (total, factors[0]))]
    facts = gathered.detach(), total.detach(), *slopes, across.gather(torch.full((rank,), 7))
    torch.save((found, facts, (across.rank, across.size, across.count(own))), f"{folder}/{rank}.pt")
    collectives.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list:
    """What two gloo processes found; they are started once."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_processes_are_one(processes, case):
    """Both have the value of the whole batch, each the gradient at its own images, with no factor, to 1e-10."""
    for split, (rank, (found, _, _)) in itertools.product(SPLITS, enumerate(processes)):
        expected = evaluate(case, split, rank)
        assert expected[1].abs().max() > 1e-3
        torch.testing.assert_close(found[case, split], expected, rtol=1e-10, atol=1e-13)


def test_collectives(processes):
    """gather: all rows in order of rank, integers and no rows too; total: their sum. Gradients: to the own rows, once."""
    rows, factors = torch.tensor([0.0, 1, 10, 11, 12])[:, None].expand(5, 3), torch.arange(15.0).reshape(5, 3)
    for rank, (_, facts, counts) in enumerate(processes):
        own = (slice(0, 2), slice(2, 5))[rank]
        expected = rows, rows.sum(0), factors[own], factors[0].expand(2 + rank, 3), torch.tensor([7])
        assert all(torch.equal(*each) for each in zip(facts, expected, strict=True)) and counts == (rank, 2, 5)
    assert distributed.process_group() is None


# --- mixtures of two gradients ---------------------------------------------------------------------------

GRID = np.linspace(0, 1, 100_001)


def variance(share, s1: float, s2: float, r: float):
    return (1 - share) ** 2 * s1 + share**2 * s2 + 2 * share * (1 - share) * r


@pytest.mark.parametrize("b1, b2, share, least", [(0, 0, 0.2414, 0.8310), (0.5, -0.2, 0.3097, 0.9248)])
def test_best_mix(b1, b2, share, least):
    """c.5 and, with bias and second moments, c.7: variances 1 and 2.5, covariance 0.3; a grid finds the same minimum."""
    m1, m2, m12 = moments = 1 + b1 * b1, 2.5 + b2 * b2, 0.3 + b1 * b2
    found, values = mixing.mix(*moments), variance(GRID, *moments)
    assert found == pytest.approx(share, abs=5e-5) and found == pytest.approx(GRID[values.argmin()], abs=1e-5)
    error = variance(found, 1, 2.5, 0.3) + ((1 - found) * b1 + found * b2) ** 2  # variance and squared bias
    assert error == pytest.approx((m1 * m2 - m12**2) / (m1 + m2 - 2 * m12)) == pytest.approx(values.min(), rel=1e-9)
    assert error == pytest.approx(least, abs=5e-5)


def test_when_a_mix_helps():
    """c.6: over random covariances, exactly where r < min(s1, s2); elsewhere the share is clipped to the better one."""
    helped = 0
    for root in normal(2000, 2, 2, seed=8).numpy():
        (s1, r), (_, s2) = root @ root.T
        share = mixing.mix(s1, s2, r)
        assert variance(share, s1, s2, r) <= variance(GRID[::100], s1, s2, r).min() + 1e-12
        helps = variance(share, s1, s2, r) < min(s1, s2)
        assert helps == (r < min(s1, s2)) == (0 < share < 1) and (helps or share == (0 if s1 < s2 else 1))
        helped += helps
    assert 500 < helped < 1900
    assert mixing.mix(1, 1, 1) == mixing.mix(0, 0, 0) == 0  # one estimator twice


@pytest.mark.parametrize("s1, s2, r", [(1, 2.5, 0.3), (2, 1, 0), (1, 4, 1.5)])
def test_optimal_share_from_one_batch(s1, s2, r):
    """Two noisy copies of one vector: the share of `mix` on average, whatever EL's unit; None against each other."""
    root, shares = torch.linalg.cholesky(torch.tensor([[s1, r], [r, s2]], dtype=torch.float64)), []
    for seed in range(30):
        noise = torch.einsum("ij,jnchw->inchw", root, normal(2, 35, 1, 16, 16, seed=10 + seed))
        base, own = 3 * normal(1, 16, 16, seed=9) + noise
        shares.append(mixing.optimal(base, own))
        assert mixing.optimal(base, 1e-3 * own) == pytest.approx(shares[-1], rel=1e-9)
    assert np.mean(shares) == pytest.approx(mixing.mix(s1, s2, r), abs=0.03)
    assert mixing.optimal(base, -own) is None and mixing.optimal(base, 0 * own) is None


# --- what a run does with it, and says -------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["balanced", "fixed"])
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_fade(weighting, warmup):
    """The factor is 1 until the last quarter of the run, then (1 + cos) / 2 down to 0, times the warm-up."""
    numbers, memory = embedding.Numbers(weighting=weighting, weight=0.6, warmup=warmup, fade=0.25), {}
    for n_images in range(0, 401, 4):
        found = embedding.weight(2.0, 2.0, 4, numbers, Progress(n_images, n_images // 4, 400), memory).factor
        factor = min(1, (n_images + 4) / 40) if warmup else 1
        factor *= 1 if n_images <= 300 else (1 + math.cos(math.pi * (n_images - 300) / 100)) / 2
        assert found == pytest.approx(0.6 * factor, rel=1e-9, abs=1e-15)
    assert found == pytest.approx(0, abs=1e-15)


def said(values, base, own, size: int = 4, every: int = 10, decay: float = 0.9) -> list[dict]:
    """What `diagnose` says at the first iterations of a run."""
    numbers, memory = embedding.Numbers(diagnose=every, decay=decay), {}
    batches = [SimpleNamespace(size=size, progress=Progress(i * size, i, 1000)) for i in range(len(values))]
    later = [
        embedding.diagnose(torch.tensor(v).double(), base, own, b, numbers, memory)
        for v, b in zip(values, batches, strict=True)
    ]
    return [each.finish(*map(float, each.scalars)) for each in later]


@pytest.mark.parametrize("decay, first", [(0.9, 1), (0.99, 5)])
def test_signal_to_noise(decay, first):
    """The running mean over the running deviation, weights decay^age; silent until they hold 5 %, or without spread."""
    values, own = np.array([0.3, -0.1, 0.5, 0.2, 0.2, -0.4, 0.1, 0.6, 0.0, 0.3]), torch.zeros(4, 1, 2, 2)
    for i, found in enumerate(said(values.tolist(), None, own, decay=decay)):
        assert list(found) == (["snr"] if i >= first else [])
        if found:
            weights = decay ** np.arange(i, -1, -1)
            mean = np.average(values[: i + 1], weights=weights)
            deviation = np.average((values[: i + 1] - mean) ** 2, weights=weights) ** 0.5
            assert found["snr"] == pytest.approx(mean / deviation, rel=1e-6)
    assert not any(said([0.3] * 50, None, own, decay=decay))


def test_angle_of_the_gradients():
    """cosine: every `diagnose` iterations, of known gradients; not where one is missing or 0. optimal: from 16 images."""
    base, own = torch.zeros(2, 4, 1, 2, 2)
    base[0, 0, 0, 0], own[0, 0, 0], own[1, 0, 1, 1] = 3e-30, 2e-30, 1e-30  # float32 squares would be 0
    for sign in (1, -1):
        found = [each.get("cosine") for each in said([0.1] * 7, base, sign * own, every=3)]
        assert found == [None if i % 3 else pytest.approx(sign * 2 / 3, rel=1e-6) for i in range(7)]
    for left, right, every in ((None, own, 1), (0 * base, own, 1), (base, 0 * own, 1), (base, own, 0)):
        assert "cosine" not in said([0.1], left, right, every=every)[0]
    base, own = 1 + normal(2, 16, 1, 4, 4)
    assert said([0.1], base, own, 16)[0]["optimal"] == mixing.optimal(base, own)
    assert "optimal" not in said([0.1], base[:15], own[:15], 15)[0] and "optimal" not in said([0.1], base, -own, 16)[0]


def test_warning_of_collapse():
    """Images of half the spread have a quarter of the trace: below one half a sentence says so, otherwise nothing."""
    member, found, real = Member(identity, identity.Numbers(), {}), {}, normal(12, 1, 2, 2)
    embedding.embedding_loss([member], 0.5 * real + 3, real, "rbf", "unbiased", found=found)
    assert found == {"trace_ratio": pytest.approx(0.25, rel=1e-12)} and "25 %" in embedding.warning(found)
    assert embedding.warning({"trace_ratio": 0.49}) is not None
    assert embedding.warning({"trace_ratio": 0.5}) is None and embedding.warning({}) is None
