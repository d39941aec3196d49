# SPDX-License-Identifier: Apache-2.0
"""Metrics against golden values, closed forms and explicit loops; features against clean-fid's pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from eldistill.data import dataset as data
from eldistill.data import packing
from eldistill.errors import Problem
from eldistill.evaluate import evaluator as evaluate
from eldistill.evaluate import features, gaussians, judges, kernel, metrics, neighbours
from eldistill.evaluate.references import load_reference, make_reference, noise_floor
from eldistill.spaces.pixels import pixels
from eldistill.training.machine import Machine
from tests import conftest

GOLDEN = conftest.GOLDEN / "evaluate" / "fid_formula.npz"
OPTIONS = {"neighbours": 3, "neighbours_n": 2000}
CODEC = {"mean": 0.3053, "std": 0.3756}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def covariance(d: int, seed: int) -> np.ndarray:
    root = normal(d, 2 * d, seed=seed)
    return root @ root.T / d


# --- Fréchet distance -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("fake", "key"), [("a", "fid"), ("c", "fid_c_b")])
def test_the_frechet_distance_is_the_golden_one(fake, key):
    with np.load(GOLDEN) as golden:
        features = {name: golden[f"features_{name}"] for name in "abc"}
        for name in (fake, "b"):
            mean, cov = gaussians.moments(features[name])
            assert np.allclose(mean, golden[f"mu_{name}"], rtol=0, atol=1e-12)
            assert np.allclose(cov, golden[f"sigma_{name}"], rtol=0, atol=1e-12)
        assert gaussians.fd(features[fake], features["b"], OPTIONS) == pytest.approx(float(golden[key]), rel=1e-6)


@pytest.mark.parametrize("d", [2, 8, 64])
def test_the_frechet_distance_is_clean_fids(d):
    from cleanfid.fid import frechet_distance

    moments = (normal(d, seed=1), covariance(d, 2), normal(d, seed=3), covariance(d, 4))
    assert gaussians.frechet(*moments) == pytest.approx(float(frechet_distance(*moments)), rel=1e-6)


def test_between_diagonal_covariances_it_has_a_closed_form():
    mean, mean_r = normal(16, seed=1), normal(16, seed=2)
    sd, sd_r = np.abs(normal(16, seed=3)), np.abs(normal(16, seed=4))
    sd[3] = sd_r[5] = 0
    wanted = ((mean - mean_r) ** 2).sum() + ((sd - sd_r) ** 2).sum()
    assert gaussians.frechet(mean, np.diag(sd**2), mean_r, np.diag(sd_r**2)) == pytest.approx(wanted, rel=1e-12)


def test_between_commuting_covariances_it_has_a_closed_form():
    turn = np.linalg.qr(normal(16, 16))[0]
    sd, sd_r = np.abs(normal(16, seed=3)), np.abs(normal(16, seed=4))
    zero = np.zeros(16)
    found = gaussians.frechet(zero, turn * sd**2 @ turn.T, zero, turn * sd_r**2 @ turn.T)
    assert found == pytest.approx(((sd - sd_r) ** 2).sum(), rel=1e-10)


def test_a_linear_map_of_a_gaussian_has_its_transport_cost():
    # y = A x with A symmetric positive is the optimal map, so that FD = tr((A - 1) S (A - 1)).
    s, a = covariance(12, 1), covariance(12, 2)
    zero, rest = np.zeros(12), a - np.eye(12)
    assert gaussians.frechet(zero, a @ s @ a, zero, s) == pytest.approx(np.trace(rest @ s @ rest), rel=1e-9)


def test_it_is_zero_for_equal_and_symmetric():
    x, y = normal(100, 8, seed=1), 2 * normal(60, 8, seed=2) + 1
    assert abs(gaussians.fd(x, x, OPTIONS)) < 1e-10
    assert gaussians.fd(x, y, OPTIONS) == pytest.approx(gaussians.fd(y, x, OPTIONS), rel=1e-10)
    assert gaussians.fd(x, x + 3, OPTIONS) == pytest.approx(8 * 9, rel=1e-10)


def test_relfd_is_free_of_the_scale_of_the_features():
    x, y = normal(100, 8, seed=1), 2 * normal(60, 8, seed=2) + 1
    relative = gaussians.relfd(x, y, OPTIONS)
    assert relative == pytest.approx(gaussians.fd(x, y, OPTIONS) / np.cov(y.T).trace(), rel=1e-12)
    assert gaussians.relfd(7 * x, 7 * y, OPTIONS) == pytest.approx(relative, rel=1e-10)


def test_one_feature_is_enough_and_one_image_is_not():
    x, y = normal(50, 1, seed=1), 3 * normal(50, 1, seed=2) + 2
    wanted = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert gaussians.fd(x, y, OPTIONS) == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(Problem, match="1 images for a covariance; expected at least 2"):
        gaussians.fd(x[:1], y, OPTIONS)


# --- KID, precision, recall -------------------------------------------------------------------------------


def kid_by_loops(x: np.ndarray, y: np.ndarray) -> float:
    scale = np.sqrt(np.mean([np.var(column) for column in y.T]))

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / scale**2 / len(a) + 1) ** 3

    within = [
        sum(k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j) / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return within[0] + within[1] - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize(("m", "n", "shift"), [(12, 9, 0), (7, 15, 2), (2, 2, 1)])
def test_kid_is_the_u_statistic_of_explicit_loops(m, n, shift):
    x, y = normal(m, 5, seed=1) + shift, 3 * normal(n, 5, seed=2)
    assert kernel.kid(x, y, OPTIONS) == pytest.approx(kid_by_loops(x, y), rel=1e-10, abs=1e-12)


def test_kid_is_unbiased_over_halves_of_one_cloud():
    values = [kernel.kid(normal(40, 4, seed=2 * s), normal(40, 4, seed=2 * s + 1), OPTIONS) for s in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def covered_by_loops(points: np.ndarray, cloud: np.ndarray, k: int) -> float:
    radii = [sorted(np.linalg.norm(a - b) for j, b in enumerate(cloud) if j != i)[k - 1] for i, a in enumerate(cloud)]
    inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(cloud, radii, strict=True)) for p in points]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_brute_force(k):
    fake, real = 0.7 * normal(40, 3, seed=1) + 0.5, normal(40, 3, seed=2)
    options = {**OPTIONS, "neighbours": k}
    precision, recall = neighbours.precision(fake, real, options), neighbours.recall(fake, real, options)
    assert precision == pytest.approx(covered_by_loops(fake, real, k), abs=1e-12)
    assert recall == pytest.approx(covered_by_loops(real, fake, k), abs=1e-12)
    assert 0 < recall < 1 and precision == neighbours.recall(real, fake, options)


def test_both_sides_have_as_many_points():
    fake, real = normal(50, 3, seed=1), normal(30, 3, seed=2)
    for metric in (neighbours.precision, neighbours.recall):
        evenly = fake[np.linspace(0, 49, 30).astype(int)]
        assert metric(fake, real, OPTIONS) == metric(evenly, real, OPTIONS)
        few = {**OPTIONS, "neighbours_n": 20}
        thin = [side[np.linspace(0, len(side) - 1, 20).astype(int)] for side in (fake, real)]
        assert metric(fake, real, few) == metric(*thin, few)
    with pytest.raises(Problem, match="3 images for precision and recall with k = 3"):
        neighbours.recall(fake[:3], real, OPTIONS)


def test_collapse_keeps_precision_and_loses_recall():
    real = normal(200, 3, seed=1)
    fake = real[:1] + 1e-3 * normal(200, 3, seed=2)
    assert neighbours.precision(fake, real, OPTIONS) == 1
    assert neighbours.recall(fake, real, OPTIONS) < 0.05


# --- names ------------------------------------------------------------------------------------------------


def references(n: int = 60, m: int = 40) -> dict[str, dict[str, np.ndarray]]:
    return {
        space: {"train": normal(n, 4, seed=seed), "heldout": normal(m, 4, seed=seed + 1)}
        for seed, space in ((10, "judge-a"), (20, "pixels"))
    }


@pytest.mark.parametrize(("n", "name"), [(5000, "5k"), (50000, "50k"), (512, "512"), (1437, "1437"), (1500, "1500")])
def test_a_count_in_a_name(n, name):
    assert metrics.count_name(n) == name


def test_a_name_says_metric_count_space_and_part():
    found = metrics.measure({"judge-a": normal(1000, 4), "pixels": normal(50, 4)}, references(), OPTIONS)
    several = {"debiased": ("fdj", "fdse")}
    names = [name for key in metrics.METRICS for name in several.get(key, (key,))]
    spaces = (("1k", "judge-a"), ("50", "pixels"))
    assert set(found) == {
        f"{name}{count}_{space}_{part}" for name in names for count, space in spaces for part in ("train", "heldout")
    } | {f"copied{count}_{space}" for count, space in spaces}
    wanted = gaussians.fd(normal(50, 4), references()["pixels"]["train"], OPTIONS)
    assert found["fd50_pixels_train"] == wanted
    assert all(type(value) is float for value in found.values())


def test_a_function_put_into_metrics_is_measured(monkeypatch):
    monkeypatch.setitem(metrics.METRICS, "gap", lambda fake, real, options: float(len(fake) - len(real)))
    monkeypatch.setitem(metrics.ALONE, "many", lambda fake, real, options: float(len(fake) + len(real["train"])))
    found = metrics.measure({"pixels": normal(50, 4)}, references(), OPTIONS)
    assert found["gap50_pixels_heldout"] == 10 and found["gap50_pixels_train"] == -10 and found["many50_pixels"] == 110
    named = metrics.measure({"pixels": normal(50, 4)}, references(), OPTIONS, names=("gap",))
    assert set(named) == {"gap50_pixels_heldout", "gap50_pixels_train"}


def test_the_real_row_is_symmetric_in_train_and_heldout():
    row = noise_floor(references(), OPTIONS)
    for space in ("judge-a", "pixels"):
        assert row[f"fd60_{space}_heldout"] == pytest.approx(row[f"fd40_{space}_train"], rel=1e-10)
        assert row[f"fdj60_{space}_heldout"] == pytest.approx(row[f"fdj40_{space}_train"], rel=1e-10)
        assert row[f"precision60_{space}_heldout"] == row[f"recall40_{space}_train"]
    assert len(row) == 2 * 2 * (len(metrics.METRICS) + 1)


def test_nest_keeps_every_value_at_its_place():
    flat = {"digits/real": {"fd": 1.0}, "digits/di/el/0": {"fd": 2.0}, "digits/di/el/1": {"fd": 3.0}}
    assert evaluate.nest(flat) == {
        "digits": {"real": {"fd": 1.0}, "di": {"el": {"0": {"fd": 2.0}, "1": {"fd": 3.0}}}}
    }  # fmt: skip
    assert evaluate.nest(dict(reversed(flat.items()))) == evaluate.nest(flat)


# --- features ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    path = tmp_path_factory.mktemp("pack") / "images.safetensors"
    packing.pack_dataset({"source": "digits", "heldout": 360}, path)
    return path


def train_judge(letter: str, pack: Path, output: Path, n_images: int = 1920) -> dict:
    numbers = {"n_images": n_images, "batch": 64, "lr": 2e-3, "smoothing": 0.05}
    folder = output.with_suffix(".state")
    folder.mkdir(parents=True)
    site = Machine(save_seconds=1e9)
    recipe = {"judges": numbers, "codec": CODEC}
    return judges.train_judge(letter, recipe, pack, output, folder, "digest", site, lambda text: None)


@pytest.fixture(scope="module")
def judge_files(pack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges")
    return {letter: (folder / letter, train_judge(letter, pack, folder / letter)) for letter in "ab"}


@pytest.fixture(scope="module")
def spaces(judge_files):
    found = {f"judge-{letter}": features.feature_space(f"judge-{letter}", judge_files[letter][0]) for letter in "ab"}
    return {**found, "pixels": features.feature_space("pixels")}


@pytest.mark.parametrize("letter", "ab")
def test_a_judge_is_a_function_of_its_recipe_alone(judge_files, pack, tmp_path, letter):
    torch.manual_seed(123)
    again = train_judge(letter, pack, tmp_path / letter)
    path, result = judge_files[letter]
    assert (tmp_path / letter).read_bytes() == path.read_bytes()
    assert again == result and result["accuracy_heldout"] > 0.3


def test_the_judges_are_two(judge_files):
    configs = [result["config"]["body"] for _, result in judge_files.values()]
    assert configs == ["conv", "mlp"]


@pytest.mark.parametrize("name", ["judge-a", "judge-b", "pixels"])
def test_features_do_not_depend_on_chunking(spaces, pack, name):
    images = data.load_pack(pack, "heldout")[0]
    whole = features.embed([images], spaces[name])
    assert whole.dtype == np.float64 and len(whole) == 360
    for size in (1, 7, 250):
        found = features.embed(features.chunks(images, size), spaces[name])
        assert np.allclose(found, whole, rtol=0, atol=1e-5)
    assert np.array_equal(
        features.embed((images[i : i + 90] for i in range(0, 360, 90)), spaces[name]).shape, whole.shape
    )


@pytest.mark.parametrize("name", ["judge-a", "judge-b"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 8), (1, 8, 16), (1, 4, 4)])
def test_a_judge_refuses_images_of_another_shape(spaces, name, shape):
    """Its convolutions take them, so that a teacher of another size would get a distance that means nothing."""
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    with pytest.raises(
        Problem, match=rf"trained on images of shape \[1, 8, 8\], and these have \[{shape[0]}, {shape[1]}, {shape[2]}\]"
    ):
        features.embed([images], spaces[name])


def test_pixels_are_the_image_in_0_to_1_and_blocks_of_large_ones():
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = images[:, :, :8, :8]
    assert np.allclose(pixels(small), small.flatten(1) / 255, rtol=0, atol=1e-7)
    blocks = images.double().reshape(5, 3, 16, 2, 16, 2).mean((3, 5)).flatten(1) / 255
    assert np.allclose(pixels(images), blocks, rtol=0, atol=1e-6)


def test_features_that_are_not_finite_are_one_sentence():
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    images[2] = 1
    with pytest.raises(Problem, match="1 images have features that are not finite"):
        features.embed([images], lambda chunk: 1 / (1 - chunk.float().flatten(1)))


def identity(image: np.ndarray) -> np.ndarray:
    return image


@pytest.mark.parametrize("name", ["judge-a", "judge-b", "pixels"])
def test_clean_fids_pass_over_png_files_gives_the_same_features(spaces, pack, tmp_path, name):
    from cleanfid import fid

    images = data.load_pack(pack, "heldout")[0][:40]
    for index, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{index:03}.png")
    seen = []

    def extractor(batch: torch.Tensor) -> torch.Tensor:  # grey comes back as three equal channels
        seen.append(batch)
        return spaces[name](batch[:, :1].to(torch.uint8))

    theirs = fid.get_folder_features(
        str(tmp_path), extractor, num_workers=0, batch_size=16, device=torch.device("cpu"), verbose=False,
        custom_fn_resize=identity, custom_image_tranform=identity,
    )  # fmt: skip
    assert torch.equal(torch.cat(seen), images.float().expand(-1, 3, -1, -1))
    assert np.allclose(theirs, features.embed([images], spaces[name]), rtol=0, atol=1e-5)


# --- references -------------------------------------------------------------------------------------------


def test_a_reference_holds_features_and_moments_and_has_equal_bytes(pack, tmp_path):
    for name in ("one", "other"):
        make_reference(pixels, pack, tmp_path / f"{name}.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
    loaded = load_reference(tmp_path / "one.npz")
    for part in ("train", "heldout"):
        rows = pixels(data.load_pack(pack, part)[0]).double().numpy()
        assert np.allclose(loaded[part], rows, rtol=0, atol=1e-7) and loaded[part].dtype == np.float64
        with np.load(tmp_path / "one.npz") as archive:
            assert np.allclose(archive[f"mu_{part}"], rows.mean(0), rtol=0, atol=1e-12)
            assert np.allclose(archive[f"sigma_{part}"], np.cov(rows.T), rtol=0, atol=1e-12)


@pytest.mark.parametrize("content", [None, b"", b"not an archive", b"PK\x03\x04 half an archive"])
def test_a_damaged_reference_is_one_sentence(tmp_path, content):
    path = tmp_path / "reference.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Problem, match="reference.npz is missing or damaged") as caught:
        load_reference(path)
    assert "\n" not in str(caught.value)


def test_a_reference_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "reference.npz", train=np.array([{}], dtype=object), heldout=np.zeros(2))
    with pytest.raises(Problem, match="missing or damaged"):
        load_reference(tmp_path / "reference.npz")


def test_images_in_metrics_out(pack, spaces, tmp_path):
    make_reference(spaces["pixels"], pack, tmp_path / "r.npz")
    known = {"pixels": load_reference(tmp_path / "r.npz")}
    images = data.load_pack(pack)[0]
    ruler = evaluate.Evaluator({"pixels": pixels}, known, OPTIONS)
    found = ruler.measure(lambda n, first: images[first : first + n].split(100), len(images))
    assert found["fd1437_pixels_train"] == pytest.approx(0, abs=1e-5)
    assert found["precision1437_pixels_train"] == found["recall1437_pixels_train"] == 1
    row = noise_floor(known, OPTIONS)
    assert found["fd1437_pixels_heldout"] == pytest.approx(row["fd1437_pixels_heldout"], rel=1e-5)
    curve = ruler.measure(lambda n, first: [images], len(images), metrics.CURVE)
    assert {name.split("1437")[0] for name in curve} == set(metrics.CURVE)


def test_a_space_may_see_the_first_images_only():
    """In one pass with the others; its metrics carry the number; a process whose images come later gives it none."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (90, 1, 2, 2), np.uint8))
    spaces = {"pixels": pixels, "half": lambda chunk: pixels(chunk) / 2}
    found = features.embed_all(images.split(20), spaces, {"half": 50})
    assert len(found["pixels"]) == 90 and np.array_equal(found["half"], found["pixels"][:50] / 2)
    known = {name: {"train": normal(60, 4), "heldout": normal(60, 4, seed=1)} for name in spaces}
    ruler = evaluate.Evaluator(spaces, known, {**OPTIONS, "n_of": {"half": 50}})
    names = ruler.measure(lambda n, first: images[first : first + n].split(20), 90)
    assert {"fd90_pixels_heldout", "fd50_half_heldout"} <= set(names)
    assert features.embed_all(images.split(20), spaces, {"half": -5})["half"].shape == (0, 0)


@pytest.mark.parametrize(("n", "batch", "size"), [(1000, 100, 3), (999, 100, 4), (10, 250, 4), (1000, 7, 2)])
def test_processes_take_whole_chunks_in_order(n, batch, size):
    """The images of all processes are 0 … n - 1, each once, and only chunks that one process would make too, if there are
    enough of them."""
    images, shares = torch.arange(n), []
    for rank in range(size):
        team = SimpleNamespace(rank=rank, size=size, rows=lambda b, group, rank=rank: shared_rows(b, group, rank, size))
        shares.append(evaluate.Evaluator({}, {}, {}, batch, team).share(n))
    assert torch.equal(torch.cat([images[first : first + count] for count, first in shares]), images)
    if n >= batch * size:
        assert all(first % batch == 0 for _, first in shares)


def shared_rows(batch: int, group: int, rank: int, size: int) -> slice:
    from eldistill.training.processes import ProcessGroup

    return ProcessGroup.rows(SimpleNamespace(rank=rank, size=size), batch, group)


def test_kid_in_blocks_is_kid(monkeypatch):
    """Sums over blocks equal the sums over whole kernel matrices."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(37, 5)), generator.normal(0.3, 1.2, size=(53, 5))
    whole = kernel.kid(x, y, {})
    cubic = kernel.cubic_sums
    monkeypatch.setattr(kernel, "cubic_sums", lambda a, b, scale: cubic(a, b, scale, block=10))
    assert kernel.kid(x, y, {}) == pytest.approx(whole, rel=1e-12)


def test_real_images_sorted_by_class_are_taken_evenly():
    """Recall against real images in two sorted halves sees both halves, though only half of the images are taken."""
    real = (
        np.concatenate([np.zeros((50, 2)), np.full((50, 2), 9.0)])
        + np.random.default_rng(0).normal(size=(100, 2)) * 0.1
    )
    fake = np.random.default_rng(1).normal(size=(50, 2)) * 0.1
    assert neighbours.recall(fake, real, {"neighbours": 3, "neighbours_n": 50}) == pytest.approx(0.5, abs=0.1)
