# SPDX-License-Identifier: Apache-2.0
"""Sigma schedules, preconditioning, the denoising loss and streams of random numbers."""

from __future__ import annotations

import hashlib
import math
import shutil

import numpy as np
import pytest
import torch

from eldistill.diffusion import compiled, draws, dropout, noise
from tests import conftest

GOLDEN = conftest.GOLDEN / "methods"
SIGMAS = torch.logspace(-3, 3, 61, dtype=torch.float64)
MASK = 2**64 - 1


@pytest.fixture(autouse=True)
def untouched_rng():
    """No test here may move torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def close(value: torch.Tensor, reference, tolerance: float) -> None:
    """Largest error over largest reference."""
    reference = torch.as_tensor(reference, dtype=value.dtype)
    assert value.shape == reference.shape
    assert float((value - reference).abs().max() / reference.abs().max()) < tolerance


# --- schedules and preconditioning -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 18, 1000])
def test_karras_end_points_and_spacing(n):
    """From 80 down to 0.002, equally spaced in sigma^(1/7)."""
    sigmas = noise.karras_sigmas(n)
    assert sigmas.dtype == torch.float64 and len(sigmas) == n
    assert float(sigmas[0]) == pytest.approx(80, rel=1e-12)
    assert float(sigmas[-1]) == pytest.approx(0.002, rel=1e-12)
    steps = (sigmas ** (1 / 7)).diff()
    assert torch.allclose(steps, steps.mean(), rtol=0, atol=1e-13) and steps.mean() < 0


def test_karras_one_level_and_other_numbers():
    """One level is sigma_max; rho 1 is linear."""
    assert noise.karras_sigmas(1, 0.5, 3.0).tolist() == pytest.approx([3.0], rel=1e-12)
    assert noise.karras_sigmas(5, 1.0, 9.0, 1.0).tolist() == pytest.approx([9, 7, 5, 3, 1], rel=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.3])
def test_precondition_normalises_input_and_target(sigma_data):
    """EDM, appendix B.6: input and target of F have variance 1, and c_skip makes c_out the smallest."""
    c_skip, c_out, c_in, c_noise = noise.precondition(SIGMAS, sigma_data)
    assert torch.allclose(c_in**2 * (SIGMAS**2 + sigma_data**2), torch.ones_like(SIGMAS), atol=1e-14, rtol=0)
    target = (1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * SIGMAS**2
    assert torch.allclose(target / c_out**2, torch.ones_like(SIGMAS), atol=1e-10, rtol=0)
    slope = -2 * (1 - c_skip) * sigma_data**2 + 2 * c_skip * SIGMAS**2
    assert slope.abs().max() < 1e-10
    assert torch.allclose((4 * c_noise).exp(), SIGMAS, rtol=1e-12)
    assert torch.allclose(noise.edm_weight(SIGMAS, sigma_data).rsqrt(), c_out, rtol=1e-12)


def test_precondition_keeps_shape_and_dtype():
    """Each coefficient has sigma's shape; float32 agrees with float64."""
    sigma = torch.tensor([[0.002, 0.5], [2.5, 80.0]])
    for single, double in zip(noise.precondition(sigma, 0.5), noise.precondition(sigma.double(), 0.5), strict=True):
        assert single.dtype == torch.float32 and single.shape == sigma.shape
        assert torch.allclose(single.double(), double, rtol=1e-6)


@pytest.mark.parametrize("mean, std, expected", [(-1.2, 1.2, 200.4), (-0.4, 1.0, 20.4)])
def test_mean_weight_under_the_training_distribution(mean, std, expected):
    """E[lambda] = E[sigma^-2] + 4 = exp(2 std^2 - 2 mean) + 4, here by quadrature over the normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    sigma = noise.lognormal(torch.from_numpy(nodes), mean, std)
    average = float((noise.edm_weight(sigma, 0.5) * torch.from_numpy(weights)).sum()) / math.sqrt(2 * math.pi)
    assert average == pytest.approx(math.exp(2 * std**2 - 2 * mean) + 4, rel=1e-9)
    assert average == pytest.approx(expected, abs=0.1)


# --- the denoising loss ----------------------------------------------------------------------------------


class Recorder:
    """A network that gives a fixed answer and keeps what it was asked."""

    def __init__(self, answer, sigma_data=0.5):
        self.answer, self.sigma_data = answer, sigma_data

    def __call__(self, *arguments):
        self.arguments = arguments
        return self.answer


def test_denoising_loss_golden():
    """Levels, noisy images, loss, sum and gradient of the original code, to float32 rounding."""
    with np.load(GOLDEN / "edm_fake_score_loss.npz") as file:
        golden = {name: torch.from_numpy(file[name]) for name in file.files}
    sigma = noise.lognormal(golden["z_normal"].reshape(-1), -1.2, 1.2)
    close(sigma, golden["sigma"].reshape(-1), 1e-6)
    network = Recorder(golden["pred"].clone().requires_grad_())
    loss = noise.denoising_loss(network, golden["x_gen"], "labels", sigma, golden["eps"], "augment")
    close(network.arguments[0], golden["x_t"], 1e-6)
    assert torch.equal(network.arguments[1], sigma) and network.arguments[2:] == ("labels", "augment")
    close(loss.detach(), golden["loss_map"], 1e-6)
    total = loss.sum(dim=(1, 2, 3)).mean()
    close(total.detach(), golden["total_sum_over_B"].reshape(()), 1e-6)
    total.backward()
    close(network.answer.grad, golden["grad_pred"], 1e-6)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 20.0])
def test_denoising_loss_of_the_perfect_denoiser_is_one(sigma):
    """Data N(0, sigma_data^2): D = c_skip x leaves the posterior variance c_out^2 = 1 / lambda."""
    draw = draws.Draw(0, "test", 0, 40_000, dtype=torch.float64)
    images, level = 0.5 * draw.normal("x", 1, 1, 1), torch.full((draw.size,), sigma, dtype=torch.float64)

    def network(x, sigma, labels, augment):
        return noise.precondition(sigma, 0.5)[0].reshape(-1, 1, 1, 1) * x

    network.sigma_data = 0.5
    loss = noise.denoising_loss(network, images, None, level, draw.normal("noise", 1, 1, 1))
    assert float(loss.mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / draw.size))  # chi^2: variance 2


# --- streams of random numbers ---------------------------------------------------------------------------


def philox(counter: int, key: int) -> list[int]:
    """Philox 4x64-10 (Salmon et al. 2011) in whole numbers: one block of four 64-bit words."""
    a, b, c, d = ((counter >> shift) & MASK for shift in (0, 64, 128, 192))
    left, right = key & MASK, key >> 64
    for _ in range(10):
        first, second = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = (second >> 64) ^ b ^ left, second & MASK, (first >> 64) ^ d ^ right, first & MASK
        left, right = (left + 0x9E3779B97F4A7C15) & MASK, (right + 0xBB67AE8584CAA73B) & MASK
    return [a, b, c, d]


def words(seed: int, name: str, image: int, each: int) -> list[int]:
    """The 32-bit words of one image by the definition: blocks of eight, low half first, counted from 1."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    blocks = -(-each // 8)
    out = []
    for block in range(image * blocks, (image + 1) * blocks):
        for word in philox(block + 1, key):
            out += [word & 0xFFFFFFFF, word >> 32]
    return out[:each]


def test_philox_known_answers():
    """The reference above gives the published vectors (Random123, kat_vectors)."""
    zeros = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    ones = [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]
    assert philox(0, 0) == zeros
    assert philox(2**256 - 1, 2**128 - 1) == ones


@pytest.mark.parametrize("first", [0, 3, 10**7])
@pytest.mark.parametrize("each", [1, 2, 7, 8, 9, 16, 35])
def test_draw_follows_its_definition(first, each):
    """Uniforms, normals and integers of every image, computed anew with whole numbers and math alone."""
    draw = draws.Draw(11, "generator", first, 3, dtype=torch.float64)
    uniform, normal = draw.uniform("u", each), draw.normal("n", each)
    integers = draw.integers("i", 1797)
    pairs = (each + 1) // 2
    for row in range(3):
        expected = [word / 2**32 for word in words(11, "generator/u", first + row, each)]
        assert uniform[row].tolist() == expected
        bits = words(11, "generator/n", first + row, 2 * pairs)
        radius = [math.sqrt(-2 * math.log((word + 1) / 2**32)) for word in bits[:pairs]]
        angle = [2 * math.pi * word / 2**32 for word in bits[pairs:]]
        both = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
        both += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
        assert normal[row].tolist() == pytest.approx(both[:each], abs=1e-13)
        assert int(integers[row]) == words(11, "generator/i", first + row, 1)[0] * 1797 >> 32


UNIFORM = [0.46312120370566845, 0.12285804119892418, 0.10426035802811384, 0.03729475871659815]
NORMAL = [0.5141163018756983, 1.3766448605870372, -0.2265355311190885, 1.764738804785235]
INTEGERS = [255, 1055]
STREAM_SEED = 4380272978847225564


def test_draw_never_changes():
    """Numbers written down on the day the streams were fixed."""
    draw = draws.Draw(0, "generator", 0, 2, dtype=torch.float64)
    assert draw.uniform("u", 2).flatten().tolist() == UNIFORM
    assert draw.normal("z", 2).flatten().tolist() == pytest.approx(NORMAL, abs=1e-14)
    assert draw.integers("label", 1437).tolist() == INTEGERS
    assert draws.stream_seed(0, "dropout") == STREAM_SEED


KINDS = {
    "uniform": lambda draw: draw.uniform("a", 3, 5),
    "scalar": lambda draw: draw.uniform("a"),
    "normal": lambda draw: draw.normal("a", 1, 8, 8),
    "odd": lambda draw: draw.normal("a", 7),
    "integers": lambda draw: draw.integers("a", 1437),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [0, 5, 2**40])
def test_slices_equal_the_whole(kind, first):
    """Any split into micro-batches, by slicing or by a new Draw, gives the same numbers, bit for bit."""
    whole = draws.Draw(3, "test", first, 12)
    values = KINDS[kind](whole)
    for cuts in ([0, 12], [0, 1, 12], [0, 4, 8, 12], [0, 5, 5, 11, 12], list(range(13))):
        parts = [slice(*pair) for pair in zip(cuts[:-1], cuts[1:], strict=True)]
        assert torch.equal(torch.cat([KINDS[kind](whole[part]) for part in parts]), values)
        sizes = [draws.Draw(3, "test", first + part.start, part.stop - part.start) for part in parts]
        assert torch.equal(torch.cat([KINDS[kind](each) for each in sizes]), values)
    assert torch.equal(KINDS[kind](whole[2:10][3:-2]), values[5:8])
    assert whole[2:10][3:-2].size == 3


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_is_the_rounded_double(kind):
    """float32 numbers are the float64 numbers, rounded."""
    double = KINDS[kind](draws.Draw(3, "test", 0, 1000, dtype=torch.float64))
    single = KINDS[kind](draws.Draw(3, "test", 0, 1000))
    assert single.dtype == (torch.int64 if kind == "integers" else torch.float32)
    assert torch.equal(single, double.to(single.dtype))


N = 20_000


def streams() -> dict[str, torch.Tensor]:
    def draw(seed=0, scope="a", first=0):
        return draws.Draw(seed, scope, first, N, dtype=torch.float64)

    pair = draw().normal("pair", 2)
    return {
        "this": draw().normal("x"), "other purpose": draw().normal("y"), "other seed": draw(1).normal("x"),
        "other scope": draw(scope="b").normal("x"), "next image": draw(first=1).normal("x"),
        "cosine": pair[:, 0], "sine": pair[:, 1], "uniform": draw().uniform("u"),
        "label": draw().integers("label", 10).double(),
    }  # fmt: skip


def test_streams_are_independent():
    """Values and their squares are uncorrelated between purposes, seeds, scopes, images and the pair's halves."""
    every = streams()
    rows = torch.stack(list(every.values()))
    squares = (rows - rows.mean(1, keepdim=True)).square()
    for table in (rows, squares):
        correlation = torch.corrcoef(table)
        off = correlation - torch.eye(len(rows), dtype=torch.float64)
        assert off.abs().max() < 4.5 / math.sqrt(N)  # 72 normal correlations: beyond 4.5 with chance 5e-4


def kolmogorov(values: torch.Tensor, distribution) -> float:
    """sqrt(n) times the largest distance of the two distribution functions."""
    cumulated = distribution(values.sort().values)
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    return math.sqrt(len(values)) * float(torch.maximum(steps[1:] - cumulated, cumulated - steps[:-1]).max())


@pytest.mark.parametrize("each", [1, 3, 16])
def test_normal_distribution(each):
    """Kolmogorov-Smirnov at 0.1 %, and four moments within 4 standard errors."""
    values = draws.Draw(1, "test", 0, 48_000 // each, dtype=torch.float64).normal("x", each).flatten()
    assert kolmogorov(values, torch.special.ndtr) < 1.95
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = abs(float((values**power).mean()) - expected)
        assert error < 4 * math.sqrt(variance / len(values))


@pytest.mark.parametrize("each", [1, 5])
def test_uniform_distribution(each):
    """Kolmogorov-Smirnov at 0.1 %, mean 1/2, variance 1/12, inside [0, 1)."""
    values = draws.Draw(1, "test", 0, 48_000 // each, dtype=torch.float64).uniform("x", each).flatten()
    assert kolmogorov(values, lambda sorted_values: sorted_values) < 1.95
    assert 0 <= values.min() and values.max() < 1
    assert abs(float(values.mean()) - 1 / 2) < 4 * math.sqrt(1 / 12 / len(values))
    assert abs(float(values.var()) - 1 / 12) < 4 * math.sqrt(1 / 180 / len(values))


@pytest.mark.parametrize("high", [1, 2, 10, 97])
def test_integers_are_uniform(high):
    """chi^2 over all values within 4 standard deviations of high - 1; nothing beyond 0 and high - 1."""
    counts = torch.bincount(draws.Draw(1, "test", 0, N).integers("x", high), minlength=high)
    assert len(counts) == high
    chi2 = float(((counts - N / high) ** 2 / (N / high)).sum())
    assert abs(chi2 - (high - 1)) <= 4 * math.sqrt(2 * (high - 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("word", [0, 2**31, 2**32 - 1])
def test_extreme_words(monkeypatch, word, dtype):
    """The smallest and largest words give finite normals below 6.7, integers below high and U in [0, 1)."""
    monkeypatch.setattr(draws, "_bits", lambda seed, name, first, count, each: np.full((count, each), word, np.uint32))
    draw = draws.Draw(0, "test", 0, 2, dtype=dtype)
    assert draw.normal("x", 3).abs().max() < 6.7
    assert 0 <= int(draw.integers("x", 1437).min()) <= int(draw.integers("x", 1437).max()) < 1437
    assert 0 <= draw.uniform("x", 3).min() and draw.uniform("x", 3).max() < 1


def test_names_do_not_collide():
    """Seed and purpose name the stream together; keys of 128 bits, seeds of 63."""
    names = [(seed, purpose) for seed in (0, 1, 11) for purpose in ("a", "1/a", "a/b", "b", "")]
    assert len({draws.stream_key(*name) for name in names}) == len(names)
    assert all(0 <= draws.stream_key(*name) < 2**128 for name in names)
    assert all(draws.stream_seed(*name) == draws.stream_key(*name) % 2**63 for name in names)


def test_dropout_is_a_fair_coin_for_each_image_and_layer():
    """A share p of the entries is zero, the rest is scaled to keep the mean; masks belong to images, layers, purposes."""
    draw, x = draws.Draw(3, "scope", 5, 64), torch.ones(64, 8, 16, 16)
    with dropout.masks(draw, "a"):
        first, second = dropout.dropout(x, 0.3), dropout.dropout(x, 0.3)
    for y in (first, second):
        zeros = (y == 0).double()
        assert abs(zeros.mean() - 0.3) < 4 * (0.21 / zeros.numel()) ** 0.5
        assert torch.allclose(y[y != 0], torch.tensor(1 / 0.7))
        assert zeros.mean(dim=0).std() < 1.5 * (0.21 / 64) ** 0.5 and zeros.flatten(1).mean(1).std() < 0.02
    together = ((first == 0) & (second == 0)).double().mean()
    assert abs(together - 0.09) < 0.005
    with dropout.masks(draw[10:20], "a"):
        assert torch.equal(dropout.dropout(x[10:20], 0.3), first[10:20])
    with dropout.masks(draw, "b"):
        assert not torch.equal(dropout.dropout(x, 0.3), first)
    with dropout.masks(draw, "a"), pytest.raises(RuntimeError, match="masks"):
        dropout.dropout(x[:3], 0.3)


@pytest.mark.parametrize("at_once", [1, 50, 10**9])
def test_how_many_numbers_of_a_mask_are_computed_together_changes_none(monkeypatch, at_once):
    """The mask by its definition, in whole numbers."""
    monkeypatch.setattr(dropout, "AT_ONCE", {"cpu": at_once})
    draw, p = draws.Draw(4, "generator", 10, 5), 0.3
    with dropout.masks(draw, "images"):
        dropout.dropout(torch.ones(5, 2), p)  # the first layer
        found = dropout.dropout(torch.ones(5, 3, 4, 4, dtype=torch.float64), p)

    def scramble(x: int) -> int:
        for factor in (-49064778989728563, -4265267296055464877):
            x = (x ^ x >> 33) * factor & MASK
        return x ^ x >> 33

    for row in range(5):
        low, high = words(4, "generator/dropout/images", 10 + row, 2)
        key = low << 32 | high
        kept = [scramble(key ^ scramble(place + (2 << 40))) & 0xFFFFFF >= round(p * 2**24) for place in range(48)]
        assert found[row].flatten().tolist() == [keep / (1 - p) for keep in kept]


# --- dropout as compiled code, as a GPU has it ---


@pytest.fixture
def fused(monkeypatch):
    """The CPU takes the path of a GPU, with the plain form of what is compiled."""
    monkeypatch.setattr(compiled, "DEVICES", ("cpu",))
    kernel(monkeypatch, dropout._expression)


def kernel(monkeypatch, code=None) -> None:
    """A kernel of dropout that knows of no failure; code: what its compiler makes."""
    monkeypatch.setattr(dropout, "KERNEL", compiled.Kernel(dropout._expression, "dropout is computed"))
    if code is not None:
        monkeypatch.setattr(dropout.KERNEL, "_compiled", code)


def masked(x: torch.Tensor, p: float, layers: int = 2) -> list[torch.Tensor]:
    """What so many layers give, and the gradient of x under a fixed weighting of it."""
    x = x.clone().requires_grad_()
    with dropout.masks(draws.Draw(3, "scope", 5, len(x)), "a"):
        found = [dropout.dropout(x, p) for _ in range(layers)]
    weights = torch.arange(x.numel(), dtype=x.dtype).reshape(x.shape) % 7
    return [*found, *torch.autograd.grad(sum((weights * each).sum() for each in found), x)]


SHAPES = {"images": (4, 6, 5, 5), "vectors": (3, 7), "one": (1, 1), "numbers": (5,)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_fused_dropout_is_dropout(fused, monkeypatch, shape, dtype):
    """Values and gradients to the bit, whatever the order in memory; a NaN stays one where the mask is zero."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    orders = [x, x.contiguous(memory_format=torch.channels_last)] if len(shape) == 4 else [x]
    for each in orders:
        found = masked(each, 0.4)
        with monkeypatch.context() as plain:
            plain.setattr(compiled, "DEVICES", ())
            wanted = masked(each, 0.4)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(each.isnan().all() for each in masked(torch.full_like(x, float("nan")), 0.4)[:2])
    assert dropout.KERNEL.failed is None


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's forward mode uses it
def test_fused_dropout_is_linear(fused):
    """It has the derivative of a linear map, twice, and in forward mode."""
    x = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def drop(x):
        with dropout.masks(draws.Draw(3, "scope", 5, 3), "a"):
            return dropout.dropout(x, 0.3)

    with torch.random.fork_rng():
        assert torch.autograd.gradcheck(drop, x) and torch.autograd.gradgradcheck(drop, x)
    value, along = torch.func.jvp(drop, (x.detach(),), (2 * x.detach(),))
    assert torch.equal(along, 2 * value) and torch.equal(value, drop(x))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), 2 * x.detach())
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(drop(dual)).tangent, along)


def test_dropout_does_without_a_compiler(fused, monkeypatch):
    """One warning, and the same masks; but a lack of memory is for the caller to answer."""

    def broken(*_):
        raise RuntimeError("no compiler here\nmore lines")

    x, wanted = torch.ones(4, 3, 2), masked(torch.ones(4, 3, 2), 0.4)
    kernel(monkeypatch, broken)
    with pytest.warns(UserWarning, match="without compiled code.*no compiler here$") as seen:
        found = masked(x, 0.4)
    assert len(seen) == 1 and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

    def full(*_):
        raise torch.OutOfMemoryError("full")

    kernel(monkeypatch, full)
    with pytest.raises(torch.OutOfMemoryError):
        masked(x, 0.4)
    assert dropout.KERNEL.failed is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler to compile with")
def test_compiled_dropout_has_the_masks_of_the_plain_one(monkeypatch):
    """Machine code by torch's compiler, for this CPU: equal to the bit, for layers far apart, sizes that change too."""
    kernel(monkeypatch)
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    for n, layer in ((4, 1), (4, 200), (9, 3)):
        x = torch.randn(n, 6, 5, 5, generator=generator)
        keys = torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator)
        limit = round(0.37 * 2**24)
        plain = dropout._apply(x, dropout._keep(x, keys, layer << 40, limit), 0.37)
        assert torch.equal(dropout._fused(x, keys, layer << 40, limit, 0.37), plain)
    assert dropout.KERNEL.failed is None
