# SPDX-License-Identifier: Apache-2.0
"""Is a teacher what it claims to be: its samples measured, beside what is published, before anything is distilled."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eldistill import __main__
from eldistill.commands.check import codec_of
from eldistill.data import dataset as data
from eldistill.data import latents
from eldistill.errors import Problem
from eldistill.evaluate import features, gaussians
from eldistill.plan import params, sizes
from eldistill.plan.plan import Plan
from eldistill.sampling import generators as sampling
from eldistill.sampling import teachers
from eldistill.sampling.teachers import images_of_teacher
from eldistill.spaces import inception
from eldistill.spaces.pixels import pixels
from eldistill.teacher import agree, check
from tests import conftest, official
from tests.conftest import ROOT
from tests.data import test_latents
from tests.distil import test_distil
from tests.spaces.test_inception import net, wrapped  # noqa: F401  (the fixture)
from tests.teacher import test_foreign_teachers

made, project = test_distil.made, test_foreign_teachers.project  # the fixtures
NAME = "edm-ffhq-64x64-uncond-vp"


def gaussian(seed: int, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of random features."""
    return gaussians.moments(np.random.default_rng(seed).normal(size=(n, 5)))


def test_moments_do_not_depend_on_the_chunks():
    """Streamed sums equal the moments of all features at once, to rounding, whatever the chunks."""
    images = torch.randint(256, (40, 1, 4, 4), dtype=torch.uint8)
    mean, cov = gaussians.moments(features.embed([images], pixels))
    for size in (1, 7, 40):
        count, own_mean, own_cov = check.measure_moments(images.split(size), pixels)
        assert count == 40 and np.allclose(own_mean, mean, rtol=1e-13) and np.allclose(own_cov, cov, atol=1e-14)
    with pytest.raises(Problem, match="1 images for a covariance"):
        check.measure_moments([images[:1]], pixels)


def test_both_forms_of_reference_statistics(tmp_path):
    """EDM's npz and EDM2's pickle give the same numbers; anything else is one sentence."""
    mean, cov = gaussian(0)
    np.savez(tmp_path / "refs.npz", mu=mean, sigma=cov)
    content = {"num_images": 12} | {
        key: {"mu": official.Array(m, "core"), "sigma": official.Array(c, "core")}
        for key, (m, c) in (("fid", (mean, cov)), ("fd_dinov2", gaussian(1)))
    }
    pkl = official.write(tmp_path / "refs.pkl", content)
    for path in (tmp_path / "refs.npz", pkl):
        found = check.load_statistics(path)
        assert np.array_equal(found[0], mean) and np.array_equal(found[1], cov)
    np.savez(tmp_path / "half.npz", mu=mean)
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], dtype=object), sigma=cov)
    np.savez(tmp_path / "nan.npz", mu=mean * np.nan, sigma=cov)
    (tmp_path / "page.npz").write_text("<html>")
    official.write(tmp_path / "other.pkl", {"fid": 3})
    for name in ("half.npz", "objects.npz", "nan.npz", "page.npz", "other.pkl", "none.npz"):
        with pytest.raises(Problem, match=name):
            check.load_statistics(tmp_path / name)


@pytest.mark.parametrize(
    ("found", "count", "name", "published", "agrees", "words"),
    [
        (1.99, 50_000, "fd50k_inception_edmref", "fid 1.97, 35 calls", True, "published fid 1.97, 35 calls"),
        (2.364, 50_000, "fd50k_inception_edmref", "fid 1.97, 35 calls", True, "1.97"),
        (2.365, 50_000, "fd50k_inception_edmref", "fid 1.97, 35 calls", False, "1.97"),
        (9.0, 1_000, "fd1k_inception_edmref", "fid 1.97, 35 calls", None, "50000 images and Inception's features"),
        (9.0, 50_000, "fd50k_judge-a_train", "fid 1.97, 35 calls", None, "50000 images and Inception's features"),
        (9.0, 50_000, "fd50k_inception_edmref", "", None, "nothing is published"),
    ],
)  # fmt: skip
def test_only_like_is_compared_with_like(found, count, name, published, agrees, words):
    about = check.verdict(found, count, name, published, 1.2)
    assert about["agrees"] is agrees and about[name] == found and words in check.sentence(about, name)


def test_a_teacher_that_was_trained_here(made, monkeypatch, capsys):
    """Its figure is the Fréchet distance between its images and the train images in judge-a, computed anew."""
    monkeypatch.chdir(made)
    for item in ("judge-a", "reference-judge-a"):
        assert __main__.main(["data", f"digits-smoke/{item}"]) == 0
    assert __main__.main(["teacher", "digits-smoke/check"]) == 0
    assert "fd1k_judge-a_train" in capsys.readouterr().out
    found = json.loads(Path("data/teachers/digits-smoke/check.json").read_text())
    teacher, about = teachers.load_denoiser("data/teachers/digits-smoke/teacher.safetensors")
    images = torch.cat(list(images_of_teacher(teacher, about, 1000, 3, 0, 333)))
    space = features.feature_space("judge-a", Path("data/sets/digits-smoke/judge-a.safetensors"))
    reals, _, _ = data.load_pack("data/sets/digits/images.safetensors")
    wanted = gaussians.fd(features.embed([images], space), features.embed([reals], space), {})
    assert found["fd1k_judge-a_train"] == pytest.approx(wanted, rel=1e-4)
    assert (found["n"], found["steps"], found["published"], found["agrees"]) == (1000, 3, None, None)
    assert __main__.main(["teacher", "digits-smoke/check"]) == 0 and "up to date" in capsys.readouterr().out


@pytest.fixture
def published(project, net, monkeypatch):  # noqa: F811
    """The project's teacher as a row of the registry, with a figure, a reference and Inception in a mirror."""
    Path("mirror").mkdir()
    Path("net.pkl").rename(f"mirror/{NAME}.pkl")
    official.write(Path("mirror/inception-2015-12-05.pkl"), wrapped(net))
    draw = np.random.default_rng(0)
    np.savez("mirror/ffhq-64x64.npz", mu=draw.normal(size=64), sigma=np.eye(64))
    whole = inception.load_space
    # Of 2048 features 64: the roots of their covariances take most of the time.
    monkeypatch.setattr(inception, "load_space", lambda *args, **kw: lambda images: whole(*args, **kw)(images)[:, :64])
    with open(ROOT / "data/sources.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with open("data/sources.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    monkeypatch.setenv("ELDISTILL_MIRROR", "mirror")
    monkeypatch.setenv("ELDISTILL_OFFLINE", "1")
    # The file under this name is a stand-in for images of another size.
    monkeypatch.setattr(sizes, "row_facts", lambda row: {})
    test_foreign_teachers.change(file=None, source=NAME, steps=2, check={"n": 4})
    return project


def test_a_published_teacher_beside_its_figure(published, capsys, monkeypatch, tmp_path):
    """Inception's distance to their statistics; with enough images a wrong one stops everything, and leaves nothing."""
    tree = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    tree["data"]["theirs"]["path"] = None
    Path("params.yaml").write_text(conftest.write_yaml(tree), encoding="utf-8")
    assert __main__.main(["teacher", "theirs"]) == 0
    assert __main__.main(["teacher", "theirs/check"]) == 0
    found = json.loads(Path("data/teachers/theirs/check.json").read_text())
    assert (found["published"], found["published_as"], found["agrees"]) == (2.39, "fid 2.39, 79 calls", None)
    assert (found["reference"], found["features"]) == ("fid-refs-ffhq-64x64", "inception")
    teacher, about = teachers.load_denoiser("data/teachers/theirs/teacher.safetensors")
    images = list(images_of_teacher(teacher, about, 4, 2))
    rows = features.embed(images, inception.load_space("inception", path=Path("mirror/inception-2015-12-05.pkl")))
    wanted = gaussians.frechet(*gaussians.moments(rows), *check.load_statistics(Path("mirror/ffhq-64x64.npz")))
    assert found["fd4_inception_edmref"] == pytest.approx(wanted, rel=1e-9)
    monkeypatch.setattr(check, "ENOUGH", 4)
    Path("data/teachers/theirs/check.json").unlink()
    capsys.readouterr()
    assert __main__.main(["teacher", "theirs/check"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "more than 1.2 times the published distance" in error and "check.limit" in error
    assert not Path("data/teachers/theirs/check.json").exists()
    with monkeypatch.context() as patch:  # another attempt, as a cluster makes, measures nothing again
        patch.delattr(check, "check_teacher")
        assert __main__.main(["teacher", "theirs/check"]) == 2
    assert "this step failed before: " in capsys.readouterr().err
    test_foreign_teachers.change(check={"n": 4, "limit": 1e9})
    assert __main__.main(["teacher", "theirs/check"]) == 0
    assert json.loads(Path("data/teachers/theirs/check.json").read_text())["agrees"] is True


def test_the_ruler_is_laid_to_published_networks_by_one_command(published, capsys):
    """A student makes its images in one step from sigma_init, a teacher by Heun; what is no pixels is one sentence."""
    colour = test_foreign_teachers.network(img_channels=3)
    official.write(Path("student.pkl"), official.edm(*colour))
    np.savez("refs.npz", mu=np.zeros(64), sigma=np.eye(64))
    command = ["check", "sid-cifar10-uncond", "--file", "student.pkl", "--n", "4", "--reference", "refs.npz"]
    assert __main__.main(command) == 0
    printed = capsys.readouterr().out
    assert "fd4_inception_edmref" in printed and "published sigma_init 2.5; fid 1.923, 1 call" in printed
    generator = sampling.Generator(
        colour[0],
        {"shape": [3, 8, 8], "label_dim": 0, "codec": agree.PIXELS, "sampler": {"steps": {"1": [2.5]}}},
    )
    rows = features.embed(sampling.images_of(generator, 4), inception.load_space("inception"))
    wanted = gaussians.frechet(*gaussians.moments(rows), np.zeros(64), np.eye(64))
    assert f"fd4_inception_edmref {wanted:.4g} " in printed
    command = ["check", NAME, "--file", "student.pkl", "--n", "2", "--steps", "1", "--reference", "refs.npz"]
    assert __main__.main(command) == 0 and "published fid 2.39, 79 calls" in capsys.readouterr().out
    for words, sentence in (
        (["check", "cifar-10-python"], "is a data; expected a teacher or a student"),
        (["check", "sid-cifar"], "it has sid-cifar10"),
        (["check", "sid-cifar10-uncond", "--file", f"mirror/{NAME}.pkl"], "makes images of 1 channels"),
    ):
        assert __main__.main(words) == 2
        assert sentence in capsys.readouterr().err


def test_networks_of_latents_are_measured_by_their_pixels(published, monkeypatch, capsys):
    """A student's file says nothing of its codec: it is EDM2's. What is decoded is measured."""
    monkeypatch.setattr(latents, "load_autoencoder", lambda folder=None, device="cpu": test_latents.Toy())
    network = test_foreign_teachers.network(img_channels=4)
    official.write(Path("student.pkl"), official.edm(*network))
    np.savez("refs.npz", mu=np.zeros(64), sigma=np.eye(64))
    command = ["check", "sid-edm2-img512-xs", "--file", "student.pkl", "--n", "4", "--reference", "refs.npz"]
    assert __main__.main(command) == 0
    generator = sampling.Generator(
        network[0], {"shape": [4, 8, 8], "label_dim": 0, "codec": latents.EDM2, "sampler": {"steps": {"1": [2.5]}}}
    )
    images = list(sampling.images_of(generator, 4))
    assert images[0].shape[1:] == (3, 16, 16)
    rows = features.embed(images, inception.load_space("inception"))
    wanted = gaussians.frechet(*gaussians.moments(rows), np.zeros(64), np.eye(64))
    assert f"fd4_inception_edmref {wanted:.4g} " in capsys.readouterr().out


def test_the_constants_of_a_file_are_its_codec():
    """There and back: scale and bias of a codec give that codec; other numbers of channels are one sentence."""
    codec = {"mean": [0.5, -1.0], "std": [2.0, 3.0]}
    scale, bias = (part.flatten().tolist() for part in latents.codec_constants(codec))
    found = codec_of("net", {"scale": scale, "bias": bias}, 2)
    assert found["mean"] == pytest.approx(codec["mean"]) and found["std"] == pytest.approx(codec["std"])
    assert codec_of("net", None, 3) == agree.PIXELS
    for constants, channels in ((None, 2), ({"scale": scale, "bias": bias}, 4)):
        with pytest.raises(Problem, match=f"makes images of {channels} channels"):
            codec_of("net", constants, channels)


# --- in the workflow ----------------------------------------------------------------------------------


def plan(**check) -> Plan:
    values = conftest.shipped()
    for name in ("digits", "edm-cifar10"):
        values["teacher"][name]["check"] = check
    return Plan(params.from_values(values, ROOT))


def test_it_comes_before_every_run_and_decides_nothing_about_it():
    """Upstream of the suite, not of the recipe: another number of images makes no run stale, and no teacher."""
    before, after = plan(), plan(n=77)
    for name in ("digits", "edm-cifar10"):
        assert before.check(name).digest != after.check(name).digest
        assert before.teacher(name).digest == after.teacher(name).digest
    run = before.params.run("digits/di/el/0")
    assert before.distil(run).digest == after.distil(run).digest
    assert before.distil(run).after == (before.check("digits"),) and "check" not in before.distil(run).recipe
    assert ("teacher", "digits/check") in before.suite("demo")
    assert before.find("teacher", "digits/check") is before.check("digits")


def test_a_published_network_is_measured_as_its_authors_did():
    """50,000 images, Inception, their statistics and their figure; ours by 1,000 in judge-a."""
    theirs, ours = plan().check("edm-cifar10"), plan().check("digits")
    assert {key: theirs.params[key] for key in ("n", "features", "reference", "published", "steps")} == {
        "n": 50_000, "features": "inception", "reference": "fid-refs-cifar10-32x32", "published": "fid 1.97, 35 calls", "steps": 18
    }  # fmt: skip
    assert (ours.params["n"], ours.params["features"], ours.params["reference"]) == (1_000, "judge-a", None)
    assert "spaces/inception" in json.loads(theirs.recipe)["versions"]
    churn = plan().check("edm-imagenet64").params["churn"]
    assert churn == {"churn": 40, "s_min": 0.05, "s_max": 50, "s_noise": 1.003}


def test_every_published_figure_has_a_reference():
    """Each teacher and student of the registry names statistics that are a row of it."""
    with open(ROOT / "data/sources.csv", newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    for row in rows.values():
        if row["kind"] in ("teacher", "student"):
            assert rows[row["reference"]]["kind"] == "reference"
            assert ("img512" in row["name"]) == (row["reference"] == "dataset-refs-img512")
        else:
            assert not row["reference"]
