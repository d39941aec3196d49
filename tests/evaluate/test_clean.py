# SPDX-License-Identifier: Apache-2.0
"""clean-fid's FID and KID: equal to `cleanfid.fid` on the same PNG files, in one pass, whoever shares the images."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eldistill import __main__, files
from eldistill.errors import Problem
from eldistill.evaluate import clean, features, fid, gaussians
from eldistill.evaluate import evaluator as evaluate
from eldistill.plan import params, recipes
from eldistill.plan.plan import Plan
from eldistill.sampling import generators as sampling
from eldistill.spaces import inception_clean
from eldistill.tables import results
from eldistill.tensors import save_tensors
from tests import conftest, official
from tests.conftest import ROOT
from tests.project import tracked
from tests.spaces.test_inception import net, wrapped  # noqa: F401  (the fixture)
from tests.toys import OneOfTwo

SHIPPED = conftest.shipped()
CPU = torch.device("cpu")
FEW = 256  # of the 2,048 features, for clean-fid's root of a matrix, which takes 20 s of all


def pictures(n: int, seed: int, shape: tuple[int, ...] = (3, 32, 32)) -> torch.Tensor:
    """uint8 images with large smooth shapes, as resizing is about neighbours."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(n, shape[0], 4, 4, generator=generator) * 255
    return torch.nn.functional.interpolate(small, shape[1:], mode="nearest").to(torch.uint8)


def packed(path: Path, train: torch.Tensor) -> Path:
    """A packed data set with these train images."""
    save_tensors(
        path, {"train_images": train, "train_labels": torch.full((len(train),), -1)}, {"shape": list(train.shape[1:])}
    )
    return path


def folder(path: Path, images: torch.Tensor) -> str:
    """The images as PNG files, in order."""
    path.mkdir()
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path / f"{index:04}.png")
    return str(path)


# --- against clean-fid ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):  # noqa: F811
    """A folder with the network as NVIDIA's pickle and as the TorchScript that clean-fid's own class reads."""
    path = tmp_path_factory.mktemp("weights")
    official.write(path / "inception-2015-12-05.pkl", wrapped(net))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, torch.zeros(1, 3, 16, 16, dtype=torch.uint8), check_trace=False).save(
            str(path / "inception-2015-12-05.pt")
        )
    return path


@pytest.fixture(scope="module")
def ours(weights):
    return inception_clean.load_space("inception-clean", path=weights / "inception-2015-12-05.pkl")


@pytest.fixture(scope="module")
def theirs(weights):
    from cleanfid.inception_torchscript import InceptionV3W

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = InceptionV3W(str(weights), download=False).eval()
    return lambda x: model(x)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 320, 304)])
def test_features_are_those_of_clean_fids_own_class(ours, theirs, tmp_path, shape):
    """All 2,048, from PNG files by clean-fid's own pass: smaller and larger images, colour and grey."""
    from cleanfid import fid as cleanfid

    images = pictures(3, 1, shape)
    wanted = cleanfid.get_folder_features(
        folder(tmp_path / "png", images), theirs, num_workers=0, batch_size=2, device=CPU, mode="clean", verbose=False
    )
    with torch.no_grad():
        found = ours(images).numpy()
    assert found.shape == wanted.shape == (3, 2048) and wanted.std() > 0.01
    assert np.abs(found - wanted).max() < 1e-3 * wanted.std()


def test_fid_and_kid_are_clean_fids_on_the_same_png_files(ours, theirs, tmp_path, monkeypatch):
    """Two folders, clean-fid's compute_fid and compute_kid, against the streamed reference and the evaluation's own pass."""
    from cleanfid import fid as cleanfid

    train, made = pictures(10, 2), pictures(8, 3)
    png = [folder(tmp_path / "made", made), folder(tmp_path / "train", train)]
    few = lambda x: theirs(x)[:, :FEW]  # noqa: E731
    options = {"num_workers": 0, "batch_size": 8, "device": CPU, "mode": "clean", "verbose": False}
    monkeypatch.setattr(cleanfid, "build_feature_extractor", lambda *args, **kwargs: few)  # theirs would fetch
    np.random.seed(clean.SEED)  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted_fid = cleanfid.compute_fid(*png, custom_feat_extractor=few, **options)
        wanted_kid = cleanfid.compute_kid(*reversed(png), **options)

    space = lambda x: ours(x)[:, :FEW]  # noqa: E731
    clean.make_clean_reference(space, packed(tmp_path / "pack", train), tmp_path / "moments.npz")
    reference = clean.load_clean_reference(tmp_path / "moments.npz")
    ruler = evaluate.Evaluator({}, {}, {"fid": {"n": 8, "blocks": 1, "reference": "x"}}, 3)
    found = ruler.fid(stream(made), pixels, STANDARD, "x", (space, reference))
    assert wanted_fid > 1 and abs(found["fid8_clean"] - wanted_fid) < 1e-3
    assert abs(wanted_kid) > 1e-3 and abs(found["kid8_clean"] - wanted_kid) < min(1e-3, 1e-3 * abs(wanted_kid))


def test_it_differs_from_the_other_inception_by_the_resizing_alone(ours, net):  # noqa: F811
    """At 299 pixels there is nothing to resize, and both spaces are one."""
    images = pictures(2, 4, (3, 299, 299))
    small = pictures(2, 4)
    with torch.no_grad():
        assert torch.allclose(ours(images), net(images), rtol=1e-4, atol=1e-5)
        assert (ours(small) - net(small)).abs().max() > 1e-2


def test_four_channels_are_one_sentence(ours):
    with pytest.raises(Problem, match=r"4 channels for inception-clean; expected 1 or 3"):
        ours(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def test_without_the_package_it_is_one_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cleanfid.resize", None)
    with pytest.raises(Problem, match="inception-clean needs the package cleanfid"):
        features.feature_space("inception-clean")


# --- one pass, any number of processes ------------------------------------------------------------------

STANDARD = (np.full(4, 0.4), 0.1 * np.eye(4))


def pixels(chunk: torch.Tensor) -> torch.Tensor:
    """Four numbers of an image, in float32."""
    return torch.nn.functional.adaptive_avg_pool2d(chunk.float() / 255, 2).mean(1).flatten(1)


def stream(images: torch.Tensor, size: int = 6):
    """Image i of a stream, as the evaluation asks for it; `calls` counts images that were made."""

    def made(n: int, first: int = 0):
        made.calls += n
        return iter(images[first : first + n].split(size))

    made.calls = 0
    return made


def reference_of(rows: np.ndarray) -> clean.Reference:
    return clean.Reference(*gaussians.moments(rows), rows.astype(np.float32))


def test_the_first_block_is_made_once_for_both_figures():
    images, made = pictures(90, 5), None
    known = reference_of(features.embed(pictures(50, 6).split(10), pixels))
    made = stream(images)
    ruler = evaluate.Evaluator({}, {}, {"fid": {"n": 30, "blocks": 3}}, 6)
    found = ruler.fid(made, pixels, STANDARD, "x", (pixels, known))
    assert made.calls == 90
    own = features.embed(images[:30].split(6), pixels)
    assert found["fid30_clean"] == pytest.approx(
        gaussians.frechet(*gaussians.moments(own), known.mean, known.cov), abs=1e-9
    )
    plain = ruler.fid(stream(images), pixels, STANDARD, "x")
    assert {name: found[name] for name in plain} == plain and set(found) - set(plain) == {"fid30_clean", "kid30_clean"}


class Half(OneOfTwo):
    """One of two processes; the second one is asked first, and hands over what it has."""

    def _met(self, value, together):
        if not self.rank:
            return together(np.asarray(value), self.other.pop(0))
        self.other.append(np.asarray(value))
        return np.asarray(value)

    def sum_of(self, value):
        return self._met(value, lambda own, other: own + other)

    def gather_of(self, value):
        return self._met(value, lambda own, other: np.concatenate([own, other]))


@pytest.mark.parametrize("most", [1000, 7])
def test_two_processes_find_what_one_finds(monkeypatch, most):
    """Also where KID sees fewer images than there are: which ones does not depend on who makes them."""
    monkeypatch.setattr(clean, "MOST", most)
    images, options, told = pictures(45, 7), {"fid": {"n": 45, "blocks": 1}}, []
    cleanly = pixels, reference_of(features.embed(pictures(40, 8).split(10), pixels))
    alone = evaluate.Evaluator({}, {}, options, 6).fid(stream(images), pixels, STANDARD, "x", cleanly)
    second = evaluate.Evaluator({}, {}, options, 6, Half(1, told))
    monkeypatch.setattr(fid, "fid_to_reference", lambda images, space, *_: len(features.embed(images, space)))
    assert "fid45_clean" not in second.fid(stream(images), pixels, STANDARD, "x", cleanly)
    both = evaluate.Evaluator({}, {}, options, 6, Half(0, told)).fid(stream(images), pixels, STANDARD, "x", cleanly)
    assert not told
    for name in ("fid45_clean", "kid45_clean"):
        assert both[name] == pytest.approx(alone[name], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("n", [2, 10, 11, 97])
def test_kid_sees_all_images_or_so_many_spread_evenly(monkeypatch, n):
    monkeypatch.setattr(clean, "MOST", 10)
    places = np.flatnonzero(clean.choose_for_kid(n))
    assert len(places) == min(n, 10) and places[0] == 0 and places[-1] == n - 1
    assert np.ptp(np.diff(places)) <= 1


def test_a_reference_is_moments_and_rows_of_all_train_images(tmp_path, monkeypatch):
    """Streamed: mean and covariance of all, rows of the chosen; equal bytes; sorted classes are all seen."""
    monkeypatch.setattr(clean, "MOST", 25)
    train = pictures(600, 9)
    for name in ("one", "other"):
        clean.make_clean_reference(pixels, packed(tmp_path / "pack", train), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    found, rows = clean.load_clean_reference(tmp_path / "one"), features.embed(train.split(100), pixels)
    mean, cov = gaussians.moments(rows)
    assert np.allclose(found.mean, mean, rtol=0, atol=1e-12) and np.allclose(found.cov, cov, rtol=0, atol=1e-12)
    assert np.array_equal(found.rows, rows[clean.choose_for_kid(600)].astype(np.float32)) and len(found.rows) == 25


def test_the_distance_of_the_train_images_to_themselves_is_zero():
    rows = features.embed(pictures(60, 10).split(10), pixels)
    known = reference_of(rows)
    sample = clean.Sample(pixels, clean.choose_for_kid(60))
    assert sum(len(chunk) for chunk in sample.watch(pictures(60, 10).split(10))) == 60
    assert abs(sample.measure(known, "60")["fid60_clean"]) < 1e-9


def test_kid_leaves_the_global_generator_alone_and_does_not_depend_on_it():
    x, y = np.random.default_rng(0).normal(size=(30, 5)), np.random.default_rng(1).normal(0.5, 1, (40, 5))
    np.random.seed(3)  # noqa: NPY002
    first = clean.kernel_distance(x, y)
    left = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    assert left == np.random.random()  # noqa: NPY002
    assert clean.kernel_distance(x, y) == first > 0


def test_features_that_are_not_finite_are_never_masked():
    images = pictures(4, 11)
    broken = lambda chunk: pixels(chunk) / 0 * 0  # noqa: E731
    with pytest.raises(Problem, match="not finite"):
        list(clean.Sample(broken, clean.choose_for_kid(4)).watch([images]))


@pytest.mark.parametrize("content", [None, b"", b"not an archive", b"PK\x03\x04 half an archive"])
def test_a_damaged_reference_is_one_sentence(tmp_path, content):
    path = tmp_path / "moments-clean.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Problem, match="moments-clean.npz is missing or damaged"):
        clean.load_clean_reference(path)


@pytest.mark.parametrize(
    "change",
    [{"cov": np.eye(3)}, {"rows": np.zeros((5, 3))}, {"mean": np.full(4, np.nan)}, {"rows": np.full((5, 4), np.inf)},
     {"mean": np.zeros((4, 1))}, {"mean": np.zeros(())}, {"mean": np.array([{}] * 4)}, {"rows": np.array(["x"] * 4)}],
)  # fmt: skip
def test_a_reference_of_other_shapes_is_one_sentence(tmp_path, change):
    sound = {"mean": np.zeros(4), "cov": np.eye(4), "rows": np.zeros((5, 4), np.float32)}
    np.savez(tmp_path / "moments.npz", **(sound | change))
    with pytest.raises(
        Problem, match=r"moments\.npz (is missing or damaged|has a mean of shape .*expected finite \[D\])"
    ):
        clean.load_clean_reference(tmp_path / "moments.npz")


# --- plan and parameters --------------------------------------------------------------------------------


def plan(data: str = "digits", **asked) -> Plan:
    values = copy.deepcopy(SHIPPED)
    section = values["evaluate"]["per_data"].setdefault(data, {})
    section["fid"] = {"reference": "fid-refs-cifar10-32x32"} | asked
    return Plan(params.from_values(values, ROOT))


def evaluation(here: Plan, run: str = "digits/di/el/0") -> recipes.Step:
    return here.evaluation(here.params.run(run))


@pytest.mark.parametrize("asked", [{"clean": False}, {"curve_n": None}, {"clean": False, "curve_n": None}])
def test_a_default_that_is_written_retires_nothing(asked):
    assert evaluation(plan(**asked)).recipe == evaluation(plan()).recipe


def test_asking_for_it_is_part_of_the_recipe():
    plain, asked = (json.loads(evaluation(plan(**each)).recipe) for each in ({}, {"clean": True}))
    assert asked["params"]["fid"] == plain["params"]["fid"] | {"clean": True}
    assert {"clean", "spaces/inception_clean"} == set(asked["versions"]) - set(plain["versions"])
    assert set(asked["upstream"]) - set(plain["upstream"]) == {"data digits/moments-clean"}
    curve = json.loads(evaluation(plan(curve_n=10_000)).recipe)
    assert curve["params"]["fid"] == plain["params"]["fid"] | {"curve_n": 10_000}
    assert curve["upstream"] == plain["upstream"]


def test_the_reference_is_a_step_that_fetches_inception_and_asks_for_a_gpu():
    here = plan("cifar10", clean=True)
    step = here.find("data", "cifar10/moments-clean")
    assert (
        step.outputs == ("data/sets/cifar10/moments-clean.npz",)
        and step in evaluation(here, "cifar10/di/el/0").upstream
    )
    assert [each.name for each in step.after] == ["download/inception-2015-12-05-pkl"] and step.kind in recipes.ON_GPU
    assert set(json.loads(step.recipe)["versions"]) == {"clean", "fid", "spaces/inception", "spaces/inception_clean"}
    latents = plan("imagenet512-s", clean=True).moments("imagenet512-s")
    assert latents.name == "imagenet512-rgb/moments-clean"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"clean": 1}, r"fid\.clean is 1; expected true or false"),
        ({"curve_n": 1}, r"fid\.curve_n is 1; expected a whole number or null ≥ 2"),
        ({"cleanly": True}, r"fid\.cleanly is not a known key .*did you mean clean"),
    ],
)
def test_other_values_are_one_sentence(asked, sentence):
    with pytest.raises(Problem, match=sentence):
        plan(**asked)


def test_a_day_of_a_gpu_follows_the_fid_of_ten_thousand_images():
    here = Plan(params.from_values(copy.deepcopy(SHIPPED), ROOT))
    assert {here.params.top("evaluate", run.data)["fid"]["curve_n"] for run in here.params.runs("gpu-day")} == {10_000}


# --- from a command to the tables -----------------------------------------------------------------------


def test_every_evaluation_has_the_figures_and_tables_take_them(tmp_path, monkeypatch):
    """The suite smoke with clean-fid's figures and a FID on the way, in features of four numbers: metrics, curves and tables have
    them; the last point of the curve and the figures at the end are those of the same images; nothing is stale afterwards."""
    project = tracked(tmp_path / "project")
    monkeypatch.chdir(project.path)
    np.savez("own.npz", mu=STANDARD[0], sigma=STANDARD[1])
    section = {"n": 100, "curve_n": 50}
    section["fid"] = {"reference": "own.npz", "n": 60, "blocks": 2, "clean": True, "curve_n": 60}
    project.edit("evaluate", "per_data", "digits-smoke", value=section)
    project.edit("distil", "snapshots", value=[0, 100])
    grid = {"data": ["digits-smoke"], "methods": ["di"], "supplements": ["none"], "seeds": [0]}
    project.edit("suites", "smoke", value=[grid])
    known = features.feature_space
    monkeypatch.setattr(
        features, "feature_space", lambda name, *rest: pixels if name.startswith("inception") else known(name, *rest)
    )
    plan = Plan(params.load_params())
    for step in plan.suite("smoke").values():
        assert step.on_demand or __main__.main([step.word, step.name]) == 0, step.name
    made = Plan(params.load_params()).suite("smoke").values()
    assert not [each.name for each in made if not (each.on_demand or each.fresh(Path()))]

    train = clean.load_clean_reference(Path("data/sets/digits-smoke/moments-clean.npz"))
    assert len(train.rows) == 1437
    folder = Path("data/evaluations/digits-smoke")
    for name in ("di/none/0", "teacher"):
        found = json.loads((folder / name / "metrics.json").read_text(encoding="utf-8"))
        assert {"fid60_inception_edmref", "fid60_clean", "kid60_clean"} <= set(found), name
    run = results.load_result("digits-smoke/di/none/0", Path())
    assert all("fid60_inception_edmref" in point for point in run.curve)
    assert float(run.curve[-1]["fid60_inception_edmref"]) == pytest.approx(
        run.metrics["fid60_inception_edmref_block1"], rel=1e-9
    )
    generator = sampling.load_generator(Path("data/runs/digits-smoke/di/none/0/generator_ema.safetensors"))
    rows = features.embed(sampling.images_of(generator, 60, plan.params.top("evaluate")["seed"]), pixels)
    assert run.metrics["fid60_clean"] == pytest.approx(
        gaussians.frechet(*gaussians.moments(rows), train.mean, train.cov), abs=1e-9
    )
    assert run.metrics["kid60_clean"] == pytest.approx(clean.kernel_distance(rows, train.rows), abs=1e-6)
    main, curves = (files.read_rows(Path(f"data/tables/smoke/{name}.csv")) for name in ("main", "curves"))
    assert {"fid60_inception_edmref_mean", "fid60_clean_mean", "kid60_clean_mean"} <= set(main[0])
    arms = {row["supplement"]: row for row in main}
    assert float(arms["none"]["kid60_clean_mean"]) == run.metrics["kid60_clean"]
    assert all(row["fid60_inception_edmref"] for row in curves)
