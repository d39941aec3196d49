# SPDX-License-Identifier: Apache-2.0
"""Random embedding networks: derived from the seed alone, calibrated on real images, recorded, checked."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
import torch

from eldistill import files
from eldistill.data import dataset as data
from eldistill.ensemble import conv, identity, seed
from eldistill.ensemble import members as ensemble_members
from eldistill.errors import Problem
from eldistill.losses import mmd

SHAPE = (1, 8, 8)
NORMS = ["none", "group", "instance"]
MIXED = [{"family": "conv", "norm": norm, "width": 8, "count": 1} for norm in NORMS]


def section(members=MIXED, redraw: int = 0, calibration: int = 64, draws: int = 3) -> dict:
    return {"members": members, "redraw": redraw, "calibration": calibration, "draws": draws}


def smooth(n: int = 60, channels: int = 1, size: int = 8, start: int = 0) -> torch.Tensor:
    """uint8 images of waves with random direction, phase and brightness."""
    normal = torch.Generator().manual_seed(start)
    axis = torch.arange(size) / size
    a, b, phase, level = torch.randn(4, n, channels, 1, 1, generator=normal)
    waves = torch.sin(4 * (a * axis + b * axis[:, None]) + 3 * phase)
    return (128 + 70 * waves + 20 * level).clamp(0, 255).to(torch.uint8)


def reals(**changes) -> data.PackedImages:
    images = smooth(**changes)
    return data.PackedImages(images, torch.zeros(len(images), dtype=torch.int64), {"mean": 0.5, "std": 0.25}, 0)


def standard(n: int = 60, dtype=torch.float64, **changes) -> torch.Tensor:
    """The images over sigma_data, as the members see them."""
    source = reals(n=n, **changes)
    return source.take(torch.arange(n))[0].to(dtype) / source.sigma_data


def weights(members) -> list[dict]:
    return [member.weights for member in members]


def same(left, right) -> bool:
    """Equal names and bit-equal tensors, member by member."""
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(left, right, strict=True)
    )


def derive(members=MIXED, number: int = 3, redraw: int = 0, **options):
    return ensemble_members.draw_members(section(members), number, redraw, SHAPE, **options)


# --- derivation (c.10) -----------------------------------------------------------------------------------


def test_members_are_a_function_of_seed_redraw_and_place():
    """c.10: bit-equal whatever number of members follow, whatever was drawn before, whatever torch's own state."""
    first = weights(derive())
    with torch.random.fork_rng(devices=[]):
        for redraw in (7, 1):
            derive(redraw=redraw)
        torch.manual_seed(99)
        assert same(weights(derive()), first)
    longer = [*MIXED, {"family": "conv", "norm": "none", "width": 8, "count": 5}, {"family": "identity", "count": 1}]
    assert same(weights(derive(longer))[:3], first)
    assert same(weights(derive(MIXED[:1])), first[:1])
    # Norm has no weights: in another order each place keeps its own.
    assert same(weights(derive(MIXED[::-1])), first)


def test_no_global_random_numbers():
    """Drawing and calibrating leave torch's generator alone."""
    before = torch.get_rng_state()
    for member in derive():
        ensemble_members.calibrate(member, standard(dtype=torch.float32))
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_redraw_place_and_layer_give_different_weights():
    """No tensor occurs twice; those of two networks are uncorrelated."""
    drawn = [
        member.weights["1.weight"].flatten()
        for number in (0, 1)
        for redraw in (0, 1, 10)
        for member in derive(number=number, redraw=redraw)
    ]
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))
    assert correlation.abs().max() < 5 / math.sqrt(len(drawn[0]))  # 153 pairs of 576 weights


def test_count_unfolds():
    """count: 2 is two entries; they differ."""
    twice = derive([{"family": "conv", "norm": "none", "width": 8, "count": 2}])
    assert same(weights(twice), weights(derive([MIXED[0], MIXED[0]])))
    assert not torch.equal(twice[0].weights["0.weight"], twice[1].weights["0.weight"])


def test_double_precision_has_the_weights_of_single():
    """float64 members are the float32 members, cast; so are their fingerprints."""
    for single, double in zip(derive(), derive(dtype=torch.float64), strict=True):
        assert all(w.dtype == torch.float64 for w in double.weights.values())
        assert all(torch.equal(w.double(), double.weights[name]) for name, w in single.weights.items())
        assert ensemble_members.fingerprint(single) == ensemble_members.fingerprint(double)
        images = standard()
        wide, narrow = double(images), single(images.float())
        assert (wide - narrow).abs().max() < 1e-5 * wide.abs().max()


def test_fingerprint_sees_every_weight():
    """One bit of one weight, or a name, changes it."""
    (member,) = derive(MIXED[:1])
    found = {ensemble_members.fingerprint(member)}
    for name, weight in member.weights.items():
        other = weight.clone()
        other.view(-1)[-1] = torch.nextafter(other.view(-1)[-1], torch.tensor(9.0))
        for change in ({name: other}, {f"{name}x": weight}):
            kept = {key: value for key, value in member.weights.items() if key != name}
            found.add(ensemble_members.fingerprint(ensemble_members.Member(conv, member.numbers, {**kept, **change})))
    assert len(found) == 1 + 2 * 4


# --- families --------------------------------------------------------------------------------------------


def members_of(numbers: conv.Numbers, shape=SHAPE) -> ensemble_members.Member:
    generator = torch.Generator().manual_seed(0)
    drawn = conv.draw(numbers, shape, lambda name, *size: torch.randn(*size, generator=generator, dtype=torch.float64))
    return ensemble_members.Member(conv, numbers, drawn)


@pytest.mark.parametrize("channels, depth, width", [(1, 1, 4), (3, 2, 16), (4, 3, 8)])
def test_conv_shapes_and_initial_spread(channels, depth, width):
    """Features are width (h / 2^depth)(w / 2^depth); weights N(0, 2 / fan-in), biases N(0, bias^2)."""
    ones = conv.draw(
        conv.Numbers(width=width, depth=depth, bias=0.7), (channels, 8, 16), lambda name, *size: torch.ones(size)
    )
    for layer in range(depth):
        fan_in = 9 * (width if layer else channels)
        assert torch.equal(ones[f"{layer}.weight"], torch.full_like(ones[f"{layer}.weight"], math.sqrt(2 / fan_in)))
        assert ones[f"{layer}.weight"].shape == (width, fan_in // 9, 3, 3)
        assert torch.equal(ones[f"{layer}.bias"], torch.full((width,), 0.7))
    assert len(ones) == 2 * depth
    images = torch.randn(5, channels, 8, 16, generator=torch.Generator().manual_seed(0))
    features = conv.stages(ones, images, conv.Numbers(width=width, depth=depth))[-1].flatten(1)
    assert features.shape == (5, width * (8 >> depth) * (16 >> depth))


@pytest.mark.parametrize("norm", NORMS)
def test_conv_features_by_definition(norm):
    """Sums over 3x3 windows, norm over the groups' own pixels, ReLU, means of 2x2, written out in numpy."""
    numbers = conv.Numbers(width=8, depth=2, norm=norm)
    member, images = members_of(numbers), standard(4)
    x = images.numpy()
    for layer in range(2):
        kernel, bias = (member.weights[f"{layer}.{name}"].numpy() for name in ("weight", "bias"))
        size = x.shape[-1]
        wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        x = np.zeros((len(x), 8, size, size)) + bias[:, None, None]
        for row in range(3):
            for column in range(3):
                window = wide[:, :, row : row + size, column : column + size]
                x += np.einsum("oc,ncij->noij", kernel[:, :, row, column], window)
        groups = {"none": 0, "group": 4, "instance": 8}[norm]
        if groups:
            grouped = x.reshape(len(x), groups, -1)
            grouped = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + 1e-5)
            x = grouped.reshape(x.shape)
        x = np.maximum(x, 0).reshape(len(x), 8, size // 2, 2, size // 2, 2).mean((3, 5))
    assert np.abs(member(images).numpy() - x.reshape(4, -1)).max() < 1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_images_do_not_see_each_other(norm):
    """An image's features are the same alone, in a batch, and in another order (what batch norm would break)."""
    member, images = members_of(conv.Numbers(width=8, norm=norm)), standard(12)
    together = member(images)
    alone = torch.cat([member(image[None]) for image in images])
    assert (together - alone).abs().max() < 1e-12
    assert (member(images.flip(0)).flip(0) - together).abs().max() < 1e-12
    changed = torch.cat([images[:1], 5 * images[1:] - 2])
    assert (member(changed)[0] - together[0]).abs().max() < 1e-12


@pytest.mark.parametrize(
    "norm, bias, low, high",
    [("instance", 0.2, 0, 1e-6), ("group", 0.0, 0, 1e-6), ("group", 0.2, 1e-4, 1), ("none", 0.2, 1e-2, 1)],
)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_contrast(norm, bias, low, high, number):
    """c.9: V(x, 0.8 x) / tr Cov is nothing for instance norm, which is blind to contrast, and not for the others.

    Group norm sees it through the biases alone, which do not shrink along. Over 20 seeds: instance at most 2e-10,
    group without bias 2e-11, group 4e-4 to 8e-3, none 0.03 to 0.1.
    """
    kind = {"family": "conv", "norm": norm, "bias": bias, "count": 1}
    (member,) = derive([kind], number, dtype=torch.float64)
    images = standard(200)
    features = member(images)
    shift = mmd.mmd2(member(0.8 * images), features, "linear", 1.0, "biased") / features.var(0).sum()
    assert low <= float(shift) < high


def test_batch_norm_is_refused_with_the_reason():
    with pytest.raises(Problem, match=r"norm: batch; expected none, group or instance: .*hides the very shift"):
        derive([{"family": "conv", "norm": "batch", "count": 1}])


@pytest.mark.parametrize("shape, most", [((1, 8, 8), 3), ((3, 32, 32), 5), ((1, 16, 9), 3), ((1, 28, 28), 4)])
def test_too_deep(shape, most):
    """The deepest network leaves one pixel of the shorter side; one layer more is refused and told the limit."""

    def normal(name, *size):
        return torch.zeros(size)

    deepest = conv.Numbers(width=4, depth=most)
    assert conv.stages(conv.draw(deepest, shape, normal), torch.zeros(2, *shape), deepest)[-1].flatten(1).shape[1] >= 4
    with pytest.raises(Problem, match=f"depth {most + 1} on {min(shape[1:])}-pixel images; .* at most {most}"):
        conv.draw(conv.Numbers(width=4, depth=most + 1), shape, normal)


def test_width_that_groups_do_not_divide():
    """A width of 6 has no four equal groups: a Problem for the user, not an error of torch's."""
    with pytest.raises(Problem):
        (member,) = derive([{"family": "conv", "norm": "group", "width": 6, "count": 1}])
        member(standard(dtype=torch.float32))


def test_unknown_family():
    with pytest.raises(Problem, match="ensemble/ has no file 'convnet'"):
        derive([{"family": "convnet", "count": 1}])


def test_identity():
    """The pixels themselves, without weights."""
    images = standard(5, channels=3)
    assert identity.draw(identity.Numbers(), (3, 8, 8), None) == {}
    (member,) = derive([{"family": "identity", "count": 1}])
    assert torch.equal(member(images), images.flatten(1))


# --- calibration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*MIXED, {"family": "identity", "count": 1}], ids=[*NORMS, "identity"])
def test_calibration(kind):
    """Scaled features have a covariance of trace 1; the bandwidth is the median of their squared distances."""
    images = standard()
    (raw,) = derive([kind], dtype=torch.float64)
    member = ensemble_members.calibrate(raw, images)
    features = member(images).numpy()
    assert np.trace(np.cov(features, rowvar=False)) == pytest.approx(1, abs=1e-12)
    every = [((a - b) ** 2).sum() for i, a in enumerate(features) for b in features[:i]]
    assert member.bandwidth == pytest.approx(statistics.median_low(every), rel=1e-12)
    assert statistics.fmean(every) == pytest.approx(2, rel=1e-12)  # E |x - x'|^2 = 2 tr Cov
    assert torch.allclose(member(images) * member.scale, raw(images), rtol=1e-12)
    # Units do not matter: calibrated features of a network with other units are the same.
    louder = {name: 3 * w if name.startswith("1.") else w for name, w in raw.weights.items()}
    if kind.get("norm") == "none":
        assert torch.allclose(
            ensemble_members.calibrate(ensemble_members.Member(conv, raw.numbers, louder), images)(images),
            member(images),
        )


def test_calibration_of_equal_images():
    """Without spread there is no unit: a Problem, not a division by zero."""
    (member,) = derive(MIXED[:1], dtype=torch.float64)
    with pytest.raises(Problem, match="same features"):
        ensemble_members.calibrate(member, standard(1).expand(8, 1, 8, 8))


# --- the record ------------------------------------------------------------------------------------------


def make(folder, number: int = 3, name: str = "e", **changes):
    path = folder / f"{name}.json"
    seed.record_ensemble(section(**changes), number, reals(), path, folder / f"{name}.npz")
    return path


def test_round_trip(tmp_path):
    """What runs use is what was drawn and calibrated on the recorded images, bit for bit."""
    path = make(tmp_path, members=[*MIXED, {"family": "identity", "count": 2}])
    record = files.read_json(path)
    with np.load(tmp_path / "e.npz") as arrays:
        indices = torch.from_numpy(arrays["indices"])
        means = [arrays[f"mean_{k}"] for k in range(5)]
    assert len(indices) == len(set(indices.tolist())) == min(64, len(reals())) and indices.max() < len(reals())
    images = reals().take(indices)[0] / 0.5
    assert record["shape"] == list(SHAPE) and record["seed"] == 3 and record["draws"] == 1
    at_work = seed.Ensemble(path).at(0)
    drawn = ensemble_members.draw_members(section(record["section"]["members"]), 3, 0, SHAPE)
    assert same(weights(at_work), weights(drawn))
    for member, raw, row, mean in zip(at_work, drawn, record["members"], means, strict=True):
        again = ensemble_members.calibrate(raw, images)
        assert (member.scale, member.bandwidth) == (again.scale, again.bandwidth)
        assert member.numbers == raw.numbers
        assert row["features"] == member(images).shape[1] == len(mean)
        assert np.abs(member(images).mean(0).numpy() - mean).max() < 1e-6


def test_making_it_again_gives_the_same_files(tmp_path):
    """Equal inputs, equal bytes; another seed, other members and other calibration images."""
    first, again, other = (make(tmp_path, number, name) for number, name in ((3, "a"), (3, "b"), (4, "c")))
    assert first.read_bytes() == again.read_bytes()
    assert first.with_suffix(".npz").read_bytes() == again.with_suffix(".npz").read_bytes()
    digests = [[row["sha256"] for row in files.read_json(path)["members"]] for path in (first, other)]
    assert not set(digests[0]) & set(digests[1])
    with np.load(first.with_suffix(".npz")) as a, np.load(other.with_suffix(".npz")) as c:
        assert not np.array_equal(a["indices"], c["indices"])


@pytest.mark.parametrize("change", ["digest", "seed", "width", "bias", "order"])
def test_tampered_manifest(tmp_path, change):
    """A record whose digests are not those of its seed and section is refused."""
    path = make(tmp_path, members=[*MIXED, {"family": "identity", "count": 1}])
    seed.Ensemble(path)
    record = files.read_json(path)
    if change == "digest":
        digest = record["members"][1]["sha256"]
        record["members"][1]["sha256"] = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    elif change == "seed":
        record["seed"] += 1
    elif change == "order":
        record["section"]["members"].reverse()
    else:
        record["section"]["members"][2][change] = 12
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(Problem, match="records other weights than its seed gives"):
        seed.Ensemble(path)


def test_missing_or_damaged_manifest(tmp_path):
    with pytest.raises(Problem, match="is missing"):
        seed.Ensemble(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text('{"seed": 3', encoding="utf-8")
    with pytest.raises(Problem, match="is not JSON"):
        seed.Ensemble(tmp_path / "broken.json")


def test_arrays_with_a_nan_are_one_sentence(tmp_path):
    path = make(tmp_path)
    with np.load(path.with_suffix(".npz")) as archive:
        arrays = dict(archive)
    arrays["mean_0"][0] = np.nan
    np.savez(path.with_suffix(".npz"), **arrays)
    with pytest.raises(Problem, match=r"damaged \(its mean_0 is not finite numbers\)"):
        seed.Ensemble(path)._arrays()


def test_double_precision_run(tmp_path):
    """The record of a float32 draw serves a float64 run."""
    path = make(tmp_path)
    single, double = seed.Ensemble(path).at(0), seed.Ensemble(path, dtype=torch.float64).at(0)
    images = standard()
    for a, b in zip(single, double, strict=True):
        assert b(images).dtype == torch.float64
        assert (b(images) - a(images.float())).abs().max() < 1e-5


# --- redrawing -------------------------------------------------------------------------------------------


def test_fixed_members_stay(tmp_path):
    """redraw 0: the first draw for ever."""
    ensemble = seed.Ensemble(make(tmp_path))
    assert all(same(weights(ensemble.at(i)), weights(derive())) for i in (0, 1, 10**6))


@pytest.mark.parametrize("every", [1, 4])
def test_redrawn_members(tmp_path, every):
    """Step i has draw i // redraw, in whatever order steps are asked for, also past the calibrated draws."""
    path = make(tmp_path, redraw=every)
    ensemble, later = seed.Ensemble(path), seed.Ensemble(path)
    steps = [0, every - 1, every, 2 * every - 1, 2 * every, 100 * every + every - 1]
    for i in steps:
        assert same(weights(ensemble.at(i)), weights(derive(redraw=i // every)))
    for i in reversed(steps):
        assert same(weights(later.at(i)), weights(ensemble.at(i)))
    assert not same(weights(ensemble.at(0)), weights(ensemble.at(every)))


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_redrawn_members_share_the_median_calibration(tmp_path, draws):
    """Scale and bandwidth of member k at every step: the medians over the calibrated draws 0 ... draws - 1."""
    path = make(tmp_path, redraw=2, draws=draws)
    with np.load(path.with_suffix(".npz")) as arrays:
        images = reals().take(torch.from_numpy(arrays["indices"]))[0] / 0.5
    every = [[ensemble_members.calibrate(member, images) for member in derive(redraw=r)] for r in range(draws)]
    scales = [statistics.median(each[k].scale for each in every) for k in range(3)]
    widths = [statistics.median(each[k].bandwidth for each in every) for k in range(3)]
    ensemble = seed.Ensemble(path)
    for iteration in (0, 2, 40):
        assert [member.scale for member in ensemble.at(iteration)] == scales
        assert [member.bandwidth for member in ensemble.at(iteration)] == widths
    assert len(set(scales)) == 3 and files.read_json(path)["draws"] == draws
