# SPDX-License-Identifier: Apache-2.0
"""Augmentations against golden arrays of the original EDM code, and against mathematics."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from eldistill.diffusion import augment, draws
from eldistill.errors import Problem
from eldistill.losses import mmd
from tests import conftest

GOLDEN = conftest.GOLDEN / "networks" / "edm_augment.npz"
# Filter and bilinear weights are rounded at coordinates of up to about 100 fine pixels; images are about 1.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
EVERY = augment.OPERATIONS


def normal(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def worst(value: torch.Tensor, reference) -> float:
    reference = torch.as_tensor(reference)
    assert value.shape == reference.shape
    return float((value - reference).abs().max())


def parameters(n: int = 1, **values) -> augment.Parameters:
    """The given parameters for n images, zeros for the others."""
    zeros = {name: torch.zeros(n, dtype=torch.float64) for name in augment.Parameters.__dataclass_fields__}
    zeros["translate"] = torch.zeros(n, 2, dtype=torch.float64)
    for name, value in values.items():
        zeros[name] = torch.as_tensor(value, dtype=torch.float64).expand_as(zeros[name])
    return augment.Parameters(**zeros)


def drawn(n: int, p: float, dtype=torch.float64, **multipliers) -> augment.Parameters:
    return augment.edm_parameters(draws.Draw(0, "test", 0, n, dtype=dtype), p, **multipliers)


@pytest.fixture(autouse=True)
def untouched_rng():
    """No test here but the golden one, which forks the state, may move a global generator."""
    before, numpys = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpys, strict=True))  # noqa: NPY002


class Sequential:
    """draws.Draw's interface on torch's global generator, in the original's order of draws."""

    def __init__(self, size: int):
        self.size = size

    def uniform(self, purpose: str) -> torch.Tensor:
        return torch.rand(self.size)

    def normal(self, purpose: str, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, self.size).movedim(-1, 0)  # the original's images come last

    def integers(self, purpose: str, high: int) -> torch.Tensor:
        return torch.randint(high, (self.size,))


# --- EDM's pipe ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("suffix, p", [("", 0.9), ("_p012", 0.12)])
def test_golden(suffix, p, dtype):
    """Worst errors measured: 4.0e-6 at p = 0.9, 3.6e-7 at 0.12; 3.8e-6 is the reference's own rounding."""
    with np.load(GOLDEN) as golden, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(golden[f"seed{suffix}"]))
        known = json.loads(str(golden["pipe_kwargs_json"]))
        names = {"rotate_frac": "rotate", "translate_frac": "translate"}
        options = {names.get(name, name): value for name, value in known.items() if name != "p"}
        assert suffix or known["p"] == p
        images = torch.from_numpy(golden["images_in"]).to(dtype)
        chosen = augment.edm_parameters(Sequential(len(images)), p, **options)
        out, labels = augment.edm_apply(images, chosen)
        assert out.dtype == labels.dtype == dtype
        assert worst(out, golden[f"images_out{suffix}"]) < 1e-5
        assert np.array_equal(labels.numpy(), golden[f"labels{suffix}"])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [(4, 6), (8, 8), (16, 16), (28, 32)])
def test_probability_zero_gives_the_images_back(size, dtype):
    """sym6 is orthonormal to its even shifts, so halving undoes doubling, at the border too."""
    images = normal(3, 2, *size, dtype=dtype).clamp(-1, 1)
    out, labels = augment.edm_apply(images, drawn(3, 0.0, dtype))
    assert worst(out, images) < TOLERANCE[dtype]
    assert not labels.any() and labels.shape == (3, augment.EDM_LABELS)


@pytest.mark.parametrize("name, axis", [("xflip", 3), ("yflip", 2)])
def test_flip(name, axis):
    images = normal(2, 3, 8, 12)
    out, labels = augment.edm_apply(images, parameters(2, **{name: 1.0}))
    plain, _ = augment.edm_apply(images.flip(axis), parameters(2))
    assert torch.equal(out, plain)
    assert worst(out, images.flip(axis)) < 1e-10
    assert labels.sum() == 2 and labels[:, 3 - axis].tolist() == [1, 1]


@pytest.mark.parametrize("x, y", [(1, 0), (0, -2), (3, -2), (-5, 4)])
def test_whole_pixels_move_as_roll(x, y):
    """A shift by an even number of fine pixels keeps the filters orthonormal: exact where nothing wraps."""
    images = normal(1, 2, 16, 20)
    out, labels = augment.edm_apply(images, parameters(translate=[8 * x / 20, 8 * y / 16]))
    inside = (..., slice(max(y, 0), 16 + min(y, 0)), slice(max(x, 0), 20 + min(x, 0)))
    assert worst(out[inside], images.roll((y, x), (2, 3))[inside]) < 1e-10
    assert labels[0].tolist() == [0] * 7 + [8 * x / 20, 8 * y / 16]


# sym6's centre of mass lies at tap 5.098, where the pipe takes it to be at 5: (5 - 5.098) / 2 pixels.
OFFSET = (5 - np.dot(np.arange(12), augment._SYM6) / math.sqrt(2)) / 2


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_right_angles_turn_as_rot90(turns):
    """Up to the filter's offset d, seen from two sides: |d - R d| <= 2 sqrt(2) |OFFSET| times the slope."""
    x, y = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="xy")
    images = torch.sin(2 * math.pi * (x + 0.3 * y) / 24).double()[None, None]
    out, labels = augment.edm_apply(images, parameters(angle=turns * math.pi / 2))
    inner = (..., slice(4, -4), slice(4, -4))  # beyond reach of the border: a filter touches 3 pixels
    slope = 2 * math.pi / 24 * math.hypot(1, 0.3)
    assert worst(out[inner], images.rot90(turns, (2, 3))[inner]) < slope * 2 * math.sqrt(2) * abs(OFFSET) < 0.04
    expected = [math.cos(turns * math.pi / 2) - 1, math.sin(turns * math.pi / 2)]
    assert labels[0, 3:5].tolist() == pytest.approx(expected, abs=1e-15)


def test_a_slope_meets_the_affine_map_exactly():
    """Filters and bilinear weights reproduce linear functions, so out(p) = in(G (p - d) + d) without error.

    G is composed here anew, as a product of inverses in the opposite order.
    """
    size, n = 32, 20
    chosen = drawn(n, 1.0, xflip=0, yflip=0)
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    slope = torch.tensor([0.7, -0.4], dtype=torch.float64)
    images = (slope[0] * axis + slope[1] * axis[:, None]).expand(n, 1, size, size)
    out, _ = augment.edm_apply(images, chosen)
    checked = 0
    for i in range(n):

        def turn(angle):
            return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

        zoom, stretch = 2 ** (0.2 * float(chosen.scale[i])), 2 ** (0.2 * float(chosen.aniso[i]))
        angle, along = float(chosen.angle[i]), float(chosen.aniso_angle[i])
        forward = turn(-along) @ np.diag([stretch, 1 / stretch]) @ turn(along) @ turn(-angle) * zoom
        places = np.stack(np.meshgrid(axis.numpy(), axis.numpy())) - OFFSET  # [x or y, row, column]
        moved = places - chosen.translate[i].numpy()[:, None, None] * size / 8
        sources = np.einsum("ij,jrc->irc", np.linalg.inv(forward), moved) + OFFSET
        reach = (size - 1) / 2 - 3 - 3.5 * math.sqrt(2) * np.linalg.norm(np.linalg.inv(forward), 2)
        inside = (np.abs(sources) < reach).all(axis=0)
        expected = np.einsum("i,irc->rc", slope.numpy(), sources)
        assert np.abs(out[i, 0].numpy() - expected)[inside].max(initial=0) < 1e-9
        checked += inside.sum()
    assert checked > 0.1 * n * size**2


def test_beyond_one_reflection_lies_zero():
    """16 pixels and their reflections are 46: shrunk 4 or 16 times 11.5 or 2.9; the filters blur 3 more."""
    out, _ = augment.edm_apply(torch.ones(2, 1, 16, 16).double(), parameters(2, scale=[-10.0, -20.0]))
    assert worst(out[0, 0, 6:-6, 6:-6], torch.ones(4, 4)) < 1e-10
    ring = torch.ones(16, 16, dtype=torch.bool)
    ring[3:-3, 3:-3] = False
    assert not out[1, 0, ring].any()


def test_micro_batches():
    """The margins are the batch's, so its split shows, faintly and in the outermost ring of pixels.

    Measured over 768 single images at each of 8, 16 and 32 pixels: 9.6e-5 there and 3e-7 inside with p = 1,
    5e-6 and 1e-14 with p = 0.12.
    """
    images = normal(64, 3, 16, 16).clamp(-1, 1)
    draw = draws.Draw(0, "test", 0, 64, dtype=torch.float64)
    for p, ring in ((0.12, 2e-5), (1.0, 3e-4)):
        whole, labels = augment.edm_apply(images, augment.edm_parameters(draw, p))
        for start in range(0, 64, 4):
            part = slice(start, start + 4)
            out, told = augment.edm_apply(images[part], augment.edm_parameters(draw[part], p))
            assert worst(out[..., 1:-1, 1:-1], whole[part, :, 1:-1, 1:-1]) < 1e-6
            assert worst(out, whole[part]) < ring
            assert torch.equal(told, labels[part])


def test_multipliers_choose_the_operations():
    """Each operation acts with probability p times its multiplier; the flips then mirror half of the time."""
    n, p = 4000, 0.3
    labels = drawn(n, p).labels()
    shares = (labels != 0).double().mean(0)
    expected = torch.tensor([0.5, p / 2, p, p, p, p, p / 2, p, p])  # half of the stretches are along the axes
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()).all()
    off = dict.fromkeys(("xflip", "yflip", "scale", "rotate", "aniso", "translate"), 0)
    for name, columns in [("xflip", [0]), ("yflip", [1]), ("scale", [2]), ("rotate", [3, 4])] + [
        ("aniso", [5, 6]),
        ("translate", [7, 8]),
    ]:
        labels = drawn(64, 1.0, **off | {name: 1}).labels()
        assert labels.any(0).nonzero().flatten().tolist() == columns
    full = drawn(n, 1.0)
    for column in (full.scale, full.aniso, *full.translate.T):
        assert abs(column.mean()) < 4 / math.sqrt(n) and abs(column.std() - 1) < 4 / math.sqrt(2 * n)
    assert abs(full.angle.std() - math.pi / math.sqrt(3)) < 0.1 and full.angle.abs().max() <= math.pi
    with pytest.raises(ValueError, match="must lie in"):
        drawn(1, 1.5)


# --- one transform for both sides ------------------------------------------------------------------------


def find(name: str, seed: int = 0):
    """A few siamese transforms of one operation."""
    return [augment.siamese(seed, step, (name,)) for step in range(8)]


@pytest.mark.parametrize("name", EVERY)
def test_siamese_is_a_function_of_seed_and_step(name):
    real, fake = normal(5, 3, 8, 8), normal(2, 3, 8, 8, seed=1)
    results = []
    for step in range(8):
        once, again = (augment.siamese(3, step, (name,)) for _ in range(2))
        both = once(torch.cat([real, fake]))
        assert torch.equal(both, torch.cat([again(real), again(fake)]))
        assert worst(once(real.float()), both[:5]) < 1e-5 and once(real.float()).dtype == torch.float32
        assert once(real.bfloat16()).dtype == torch.float32
        assert once(real[:, :, :, :6]).shape == (5, 3, 8, 6)
        results.append(both)
    assert any(not torch.equal(results[0], other) for other in results[1:])


def test_every_operation_is_drawn():
    """Uniformly, whatever the order of their names."""
    n, counts = 1200, dict.fromkeys(EVERY, 0)
    for step in range(n):
        counts[augment.siamese(0, step, EVERY).args[0]] += 1
    for count in counts.values():
        assert abs(count - n / 6) < 4 * math.sqrt(n * 5 / 36)
    image = normal(1, 3, 8, 8)
    for step in range(20):
        one, other = ("rotate", "flip", "crop"), ("crop", "flip", "rotate", "flip")
        assert torch.equal(augment.siamese(0, step, one)(image), augment.siamese(0, step, other)(image))


def test_no_operation_and_unknown_ones():
    image = normal(1, 3, 8, 8)
    assert augment.siamese(0, 0, ())(image) is image
    with pytest.raises(Problem, match="no operation 'blur'; there are color, crop, cutout, flip, scale, rotate"):
        augment.siamese(0, 0, ("flip", "blur"))
    augment.check_operations(EVERY)


def test_color():
    """Against numpy, with the parameters read from the same stream."""
    x = normal(4, 3, 6, 8).numpy()
    for step, transform in enumerate(find("color")):
        stream = draws.Draw(0, "siamese", step, 1, dtype=torch.float64)
        brightness, saturation, contrast = stream.uniform("parameters", 3)[0].numpy()
        expected = np.empty_like(x)
        for i, image in enumerate(x + (brightness - 0.5) * 1.0):
            grey = image.mean(axis=0)
            image = np.stack([(channel - grey) * 2 * saturation + grey for channel in image])
            expected[i] = (image - image.mean()) * (contrast + 0.5) + image.mean()
        assert worst(transform(torch.from_numpy(x)), expected) < 1e-12


@pytest.mark.parametrize("size, most", [(8, 1), (28, 4), (32, 4)])
def test_crop_is_a_shift(size, most):
    image, seen = normal(1, 2, size, size), set()
    for step in range(1500):
        out = augment.siamese(0, step, ("crop",))(image)
        shifts = range(-most, most + 1)
        for down, right in ((d, r) for d in shifts for r in shifts):
            rows, columns = (
                slice(max(down, 0), size + min(down, 0)),
                slice(max(right, 0), size + min(right, 0)),
            )
            if torch.equal(out[..., rows, columns], image.roll((down, right), (2, 3))[..., rows, columns]):
                assert int((out == 0).sum()) == 2 * size**2 - 2 * (size - abs(down)) * (size - abs(right))
                seen.add((down, right))
                break
        else:
            pytest.fail(f"step {step} is no shift")
        if len(seen) == (2 * most + 1) ** 2:
            return
    pytest.fail(f"only {len(seen)} shifts were drawn")


@pytest.mark.parametrize("size", [7, 8])
def test_cutout_zeroes_a_clipped_square(size):
    """The zeros fill a box of half the size, smaller only where the border cuts it; nothing else changes."""
    image, side, corners = torch.ones(1, 1, size, size), math.ceil(size / 2), set()
    centres = range(size + 1) if side % 2 == 0 else range(size)
    boxes = {(max(c - side // 2, 0), min(c - side // 2 + side, size)) for c in centres}
    for step in range(400):
        zero = augment.siamese(0, step, ("cutout",))(image)[0, 0] == 0
        rows, columns = (zero.any(dim).nonzero().flatten() for dim in (1, 0))
        box = [(int(found[0]), int(found[-1]) + 1) for found in (rows, columns)]
        assert int(zero.sum()) == math.prod(stop - start for start, stop in box)
        assert boxes >= set(box)
        corners |= set(box)
    assert corners == boxes
    kept = augment.siamese(0, 0, ("cutout",))(normal(2, 3, size, size))
    assert torch.equal(kept[kept != 0], normal(2, 3, size, size)[kept != 0])


def test_flip_twice_is_the_identity():
    image, flipped = normal(2, 3, 6, 8), 0
    for step in range(200):
        transform = augment.siamese(0, step, ("flip",))
        assert torch.equal(transform(transform(image)), image)
        flipped += torch.equal(transform(image), image.flip(3))
    assert abs(flipped - 100) < 4 * math.sqrt(50)


def test_scale_and_rotate_stay_in_range():
    """On slopes x and y bilinear sampling is exact: the map can be read off at the centre."""
    height, width = 12, 16
    x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2).expand(height, width)
    y = (torch.arange(height, dtype=torch.float64) - (height - 1) / 2)[:, None].expand(height, width)
    images = torch.stack([x, y])[:, None]
    seen = {"scale": [], "rotate": []}
    for name, found in seen.items():
        for step in range(400):
            out = augment.siamese(0, step, (name,))(images)[:, 0, 5:7, 7:9]
            across, down = (
                out[:, 0, 1] - out[:, 0, 0],
                out[:, 1, 0] - out[:, 0, 0],
            )  # columns of the inverse map
            assert abs(out.mean(dim=(1, 2))).max() < 1e-12  # the centre stays
            if name == "scale":
                assert abs(across[1]) < 1e-12 and abs(down[0]) < 1e-12
                found += [float(across[0]), float(down[1])]
            else:
                assert torch.allclose(across @ down, torch.zeros(()).double(), atol=1e-12)
                assert float(across.norm()) == pytest.approx(1) == float(down.norm())
                found.append(math.degrees(math.atan2(across[1], across[0])))
    assert 1 / 1.2 <= min(seen["scale"]) < 0.84 and 1.19 < max(seen["scale"]) <= 1.2
    assert -15 <= min(seen["rotate"]) < -14.5 and 14.5 < max(seen["rotate"]) <= 15
    corner = augment.siamese(0, 0, ("rotate",))(torch.ones(1, 1, 16, 16))[0, 0, 0, 0]
    assert corner < 1  # zeros outside


@pytest.mark.parametrize("name", EVERY)
def test_gradients(name):
    images = normal(2, 3, 6, 8).requires_grad_()
    for step in (0, 1):
        assert torch.autograd.gradcheck(augment.siamese(0, step, (name,)), images)


def test_shared_augmentation_keeps_the_mmd_unbiased():
    """c.8: for equal distributions the U-statistic has mean 0 under a shared transform, not under two."""
    n, m, size = 1500, 6, 8
    shape = normal(1, 1, size, size, seed=9)  # a mean that no operation leaves alone
    shared, apart = np.empty(n), np.empty(n)
    samples = normal(n, 2, m, 1, size, size, seed=5) + shape
    for step in range(n):
        x, y = samples[step]
        one, other = augment.siamese(0, step, EVERY), augment.siamese(1, step, EVERY)
        shared[step] = mmd.mmd2(one(x).flatten(1), one(y).flatten(1), "linear")
        apart[step] = mmd.mmd2(one(x).flatten(1), other(y).flatten(1), "linear")
    assert abs(shared.mean()) < 4 * shared.std() / math.sqrt(n)
    assert apart.mean() > 20 * apart.std() / math.sqrt(n)


# --- on another device -----------------------------------------------------------------------------------


class Sent(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what goes to the device `meta`, which stands for a GPU: tensors of the CPU, and numbers one by one."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        given = [each for each in arguments if isinstance(each, torch.Tensor)]
        made = isinstance(found, torch.Tensor) and found.device.type == "meta"
        self.count += bool(made and all(each.device.type == "cpu" for each in given) and given)
        assert "item" not in str(function) and "local_scalar" not in str(function) or given[0].device.type == "cpu"
        return found


def test_a_device_is_sent_three_tensors_and_asked_nothing():
    """Mirrors, matrices and labels; the filters once for each size. A number of a device cannot be read on `meta`."""
    images = torch.zeros(5, 3, 32, 32, device="meta")
    chosen = augment.edm_parameters(draws.Draw(3, "test", 0, 5), 1.0)
    for wanted in (3 + 3, 3):  # the filters of 32 + 12 once, and of the two padded sides
        with Sent() as sent:
            out, labels = augment.edm_apply(images, chosen)
        assert sent.count <= wanted + 1 and out.shape == images.shape and labels.device.type == "meta"
    assert sent.count == 3


def test_callers_draw_parameters_on_the_cpu():
    """Wherever the images are, so that their bits are the CPU's."""
    for name in ("losses/score", "teacher/train"):
        text = (Path(augment.__file__).parents[1] / f"{name}.py").read_text(encoding="utf-8")
        assert text.count("edm_parameters(") == text.count('.on("cpu"), ') == 1
