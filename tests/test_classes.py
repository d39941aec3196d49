# SPDX-License-Identifier: Apache-2.0
"""Classes of conditional generators: as often as in the train images, image by image; agreement; grids with a row a class."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eldistill import __main__
from eldistill.data import classes, packing
from eldistill.data import dataset as data
from eldistill.diffusion.draws import Draw
from eldistill.errors import Problem
from eldistill.evaluate import classifiers, metrics
from eldistill.evaluate.features import ClassifierSpace
from eldistill.evaluate.references import heads, label_heads
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.sampling import generators as sampling
from eldistill.sampling.pictures import grid
from eldistill.sampling.teachers import images_of_teacher
from eldistill.spaces.pixels import pixels
from eldistill.tables.alarms import alarms
from tests import conftest
from tests.conftest import ROOT
from tests.sampling.test_sampling import Plain, about


def known(counts: list[int], **other) -> dict:
    """The description of a generator whose train images have these counts."""
    return about(label_dim=len(counts), class_counts=counts, **other)


# --- drawing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3, 7, 10, 1000])
@pytest.mark.parametrize("each", [1, 3, 500, 1_281])
def test_of_a_balanced_set_the_classes_are_those_of_a_uniform_choice(number, each):
    """floor(floor(u C m) / m) = floor(u C): nothing changes, image by image, where all classes are equally frequent."""
    draw = Draw(5, "sample", 11, 4000)
    uniform = classes.draw_classes(draw, about(label_dim=number))
    assert torch.equal(classes.draw_classes(draw, known([each] * number)), uniform)
    assert uniform.min() >= 0 and uniform.max() < number and uniform.dtype == torch.int64


@pytest.mark.parametrize("counts", [[1, 3], [90, 0, 10], [1, 2, 3, 4], [0, 5, 0], [1000, 1, 1]])
def test_classes_are_as_frequent_as_among_the_train_images(counts):
    """Each count lies within 5 binomial deviations; a class without train images is never drawn."""
    n = 20_000
    found = torch.bincount(classes.draw_classes(Draw(0, "sample", 0, n), known(counts)), minlength=len(counts))
    for count, seen in zip(counts, found.tolist(), strict=True):
        share = count / sum(counts)
        assert abs(seen - n * share) <= 5 * math.sqrt(n * share * (1 - share))


def test_the_class_of_an_image_depends_on_its_seed_and_number_alone():
    counts = known([5, 80, 15])
    whole = classes.requested_classes(counts, 300, 4)
    parts = [classes.draw_classes(Draw(4, "sample", first, 60), counts) for first in range(0, 300, 60)]
    assert torch.equal(torch.cat(parts), whole) and torch.equal(classes.requested_classes(counts, 7, 4), whole[:7])
    assert not torch.equal(classes.requested_classes(counts, 300, 5), whole)
    assert classes.requested_classes(about(label_dim=0), 3, 0) is None


def test_the_images_of_a_generator_have_these_classes():
    """Of generators and of teachers; and the noise of an image is that of its number, whatever its class is."""
    counts = [1, 30, 2]
    net = sampling.Generator(Plain(), known(counts))
    wanted = classes.requested_classes(net.metadata, 40, 6)
    assert torch.equal(sampling.sample(net, 40, seed=6), sampling.sample(net, 40, seed=6, labels=wanted))
    assert not torch.equal(
        sampling.sample(net, 40, seed=6), sampling.sample(sampling.Generator(Plain(), about()), 40, seed=6)
    )
    of_teacher = torch.cat(list(images_of_teacher(Plain(), net.metadata, 40, 3, seed=6, batch=9)))
    told = torch.cat(list(images_of_teacher(Plain(), net.metadata, 40, 3, seed=6, batch=16, labels=wanted)))
    assert torch.equal(of_teacher, told)
    # On a path from one noise to another the class is that of the first.
    strip = sampling.interpolate(net, 2, 3, seed=6)
    assert torch.equal(strip[::3], sampling.sample(net, 3, seed=6, labels=wanted[:3])[::2])


BAD = {"too few": [1, 2], "negative": [1, -1, 3], "all 0": [0, 0, 0], "no numbers": ["1", 2, 3], "parts": [0.5, 0.2, 0.3],
       "truths": [True, True, False], "a number": 7, "too large": [2**31, 1, 1]}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_counts_that_are_none_are_one_sentence(kind):
    with pytest.raises(Problem, match="expected 3 whole numbers, one for each label") as error:
        classes.class_counts(about(class_counts=BAD[kind]))
    assert "\n" not in str(error.value)


def test_a_network_that_does_not_know_its_counts_says_so():
    assert classes.class_counts(about()) is None and classes.class_counts(about(label_dim=0, class_counts=[1])) is None
    assert classes.how_drawn(about()) == "each of 3 classes is drawn equally often"
    assert (
        classes.how_drawn(known([4, 9, 2])) == "classes are drawn by their frequency: 2 to 9 train images in each of 3"
    )


# --- agreement ----------------------------------------------------------------------------------------


def test_agreement_has_its_closed_forms():
    """1 where every image shows its class, 0 where none does; of a classifier that errs, its share of right answers."""
    sure = {"probabilities": lambda features: np.eye(4)[features[:, 0].astype(int)]}
    asked = np.arange(400) % 4
    assert classifiers.agreement(asked[:, None], asked, sure) == 1
    assert classifiers.agreement((asked[:, None] + 1) % 4, asked, sure) == 0
    assert classifiers.agreement(np.where(np.arange(400) < 100, (asked + 1) % 4, asked)[:, None], asked, sure) == 0.75
    assert classifiers.agreement(np.zeros((400, 1)), asked, sure) == 0.25
    assert classifiers.agreement(asked[:, None], asked, {}) is None


def test_agreement_is_measured_where_a_classifier_of_the_labels_is():
    """In a space that sees the first images only, of those; never in pixels or by a network of other classes."""
    features = {"judge-a": np.arange(8)[:, None] % 2, "judge-b": np.arange(6)[:, None] % 2, "pixels": np.zeros((8, 3))}
    heads = dict.fromkeys(("judge-a", "judge-b"), lambda found: np.eye(2)[found[:, 0].astype(int)])
    found = metrics.measure_labelled(features, np.array([0, 1, 0, 1, 0, 1, 1, 0]), heads)
    assert found == {"agreement8_judge-a": 0.75, "agreement6_judge-b": 1.0}


def test_a_network_of_other_classes_is_not_asked():
    """An ImageNet network gives probabilities of its own classes, whatever their numbers are; only judges know the labels."""
    foreign, judge = (ClassifierSpace(pixels, lambda features: features, labels) for labels in (0, 3))
    spaces = {"inception": foreign, "judge-a": judge, "pixels": pixels}
    assert set(label_heads(spaces)) == {"judge-a"} and set(heads(spaces)) == {"inception", "judge-a"}


def test_an_alarm_names_images_of_other_classes():
    floors = {"real images": {"agreement": 0.98}}
    assert alarms({"agreement": 0.9}, floors) == []
    (said,) = alarms({"agreement": 0.5}, floors)
    assert said.startswith("agreement 0.50, real images 0.98: images of another class")


# --- grids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 19, 20, 21, 1000])
def test_a_grid_has_a_row_for_each_class_or_for_some_that_are_spread(number):
    rows = classes.shown_classes(number)
    assert len(rows) == min(number, classes.MOST_ROWS) and rows == sorted(set(rows)) and rows[0] == 0
    assert max(np.diff([*rows, number])) <= -(-number // len(rows))
    assert classes.row_labels(number, 3).tolist() == [each for each in rows for _ in range(3)]


def test_real_images_stand_in_the_row_of_their_class():
    labels = torch.tensor([2, 0, 2, 2, 0, 2])
    images = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).repeat(1, 3, 2, 2)
    board = classes.first_of_each(images, labels, 3, 3)
    assert board.shape == (9, 3, 2, 2)
    assert board[:, 0, 0, 0].tolist() == [1, 4, 255, 255, 255, 255, 0, 2, 3]


def test_names_stand_beside_the_rows_and_leave_the_images_as_they_are():
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    board = grid(images, 3, 4)
    shown = classes.add_row_titles(board, ["a", "a rather lon…"])
    margin = shown.width - board.width
    assert margin > 8 and shown.height == board.height
    assert np.array_equal(np.asarray(shown)[:, margin:], np.asarray(board))
    for row in (0, 1):
        part = np.asarray(shown)[row * board.height // 2 : (row + 1) * board.height // 2, :margin]
        assert (part < 128).any(), "each row has its text"


def test_titles_are_names_or_numbers():
    assert classes.row_titles(about()) == ["0", "1", "2"]
    assert classes.row_titles(about(class_names=["cat", "a name that is long", "dog"])) == [
        "cat",
        "a name that i…",
        "dog",
    ]


# --- from images to metrics ---------------------------------------------------------------------------

COUNTS = {"circle": 60, "cross": 24, "stripes": 12}


def picture(kind: str, random) -> Image.Image:
    """8x8: three kinds that a classifier tells."""
    image = random.normal(60, 8, (8, 8, 3))
    if kind == "circle":
        image[2:6, 2:6] += 120
    elif kind == "cross":
        image[[3, 4]] += 110
        image[:, [3, 4]] += 110
    else:
        image[::2] += 130
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory):
    """A project with three classes, unequally frequent: taught, distilled and evaluated by its commands."""
    folder, patch = tmp_path_factory.mktemp("unbalanced"), pytest.MonkeyPatch()
    random = np.random.default_rng(0)
    for kind, count in COUNTS.items():
        (folder / "pictures" / kind).mkdir(parents=True)
        for index in range(count):
            picture(kind, random).save(folder / "pictures" / kind / f"{index:03d}.png")
    values = conftest.shipped()
    values["data"] = {"shapes": {"source": "folder", "path": "pictures", "heldout": 24, "labels": True, "teacher": "shapes",
                                 "codec": {"mean": 0.5, "std": 0.25}, "judges": {"n_images": 6400, "batch": 32}}}  # fmt: skip
    tiny = {
        "network": "song",
        "model_channels": 8,
        "channel_mult": [1],
        "num_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0,
    }
    values["teacher"] = {"shapes": {"data": "shapes", "network": tiny, "batch": 16, "n_images": 320, "steps": 3,
                                    "check": {"n": 100}}}  # fmt: skip
    for each in (*values["distil"]["methods"].values(), *values["distil"]["supplements"].values()):
        each.pop("per_data", None)
    values["distil"]["methods"]["di"] |= {"n_images": 64, "batch": 16}
    values["distil"]["supplements"]["regression"] |= {"pairs": 60}
    values["distil"]["snapshots"] = [0, 100]
    values["evaluate"] = {"n": 200, "curve_n": 50, "features": ["judge-a", "pixels"], "curve_features": ["judge-a"],
                          "neighbours_n": 20}  # fmt: skip
    values["tables"]["studies"], values["tables"]["grid"] = {}, 4
    values["suites"] = {
        "demo": [{"data": ["shapes"], "methods": ["di"], "supplements": ["none", "regression"], "seeds": [0]}]
    }
    (folder / "params.yaml").write_text(conftest.write_yaml(values))
    shutil.copytree(ROOT / "workflow/schemas", folder / "workflow/schemas")
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data/sources.csv", folder / "data")
    patch.chdir(folder)
    for word, name in Plan(params.load_params()).suite("demo"):
        assert __main__.main([word, name]) == 0, (word, name)
    yield values
    patch.undo()


RUN = "shapes/di/none/0"


def test_a_generator_carries_the_counts_of_its_train_images(unbalanced):
    labels = data.load_pack("data/sets/shapes/images.safetensors")[1]
    wanted = np.bincount(labels, minlength=3).tolist()
    assert sum(wanted) == 72 and wanted[0] > 2 * wanted[1] > 2 * wanted[2]
    for name in ("generator_ema", "ema-0"):
        found = sampling.load_generator(f"data/runs/{RUN}/{name}.safetensors").metadata
        assert found["class_counts"] == wanted and found["label_dim"] == 3


def test_every_evaluation_draws_by_frequency(unbalanced):
    """The run's and the teacher's first images of a seed are of the classes that the train images would give."""
    pack = Path("data/sets/shapes/images.safetensors")
    drawn = classes.classes_of_pack(pack, {"n": 200, "seed": 0})
    generator = sampling.load_generator(f"data/runs/{RUN}/generator_ema.safetensors")
    assert torch.equal(drawn.asked, classes.requested_classes(generator.metadata, 200, 0))
    shares = torch.bincount(drawn.asked, minlength=3) / 200
    wanted = torch.tensor(generator.metadata["class_counts"]) / 72
    assert (shares - wanted).abs().max() < 0.1 and (shares - 1 / 3).abs().max() > 0.15
    for name in (RUN, "shapes/teacher", "shapes/real"):
        found = json.loads(Path(f"data/evaluations/{name}/metrics.json").read_text())
        (agreement,) = [key for key in found if key.startswith("agreement")]
        assert agreement == ("agreement24_judge-a" if name.endswith("real") else "agreement200_judge-a")
        assert 0 <= found[agreement] <= 1
        assert name != "shapes/real" or found[agreement] > 0.9, "the floor: the judge tells real images"


def test_a_table_shows_agreement_beside_its_floor(unbalanced):
    text = Path("data/tables/demo/main.md").read_text(encoding="utf-8")
    head, _, *rows = [line for line in text.splitlines() if line.startswith("|")][:4]
    (place,) = (index for index, cell in enumerate(head.split("|")) if "agreement" in cell)
    assert all(float(row.split("|")[place]) >= 0 for row in rows)


def test_grids_have_a_row_a_class(unbalanced):
    for name in (RUN, "shapes/teacher", "shapes/real"):
        with Image.open(f"data/evaluations/{name}/samples.png") as shown:
            scale = 32 // 8
            assert shown.height == 3 * 9 * scale and shown.width > 4 * 9 * scale


def test_pairs_have_the_classes_of_the_train_images(unbalanced):
    with np.load("data/teachers/shapes/pairs-60-0.npz") as arrays:
        found = torch.from_numpy(arrays["labels"])
    about = classes.describe_classes(Path("data/sets/shapes/images.safetensors")) | {"label_dim": 3}
    assert torch.equal(found, classes.draw_classes(Draw(0, "pairs", 0, 60), about))


def test_the_key_for_uniform_classes_makes_evaluations_again_and_nothing_else(unbalanced, capsys):
    before = json.loads(Path(f"data/evaluations/{RUN}/metrics.json").read_text())
    plan = Plan(params.load_params())
    changed = copy.deepcopy(unbalanced)
    changed["evaluate"]["classes"] = "uniform"
    Path("params.yaml").write_text(conftest.write_yaml(changed))
    try:
        again = Plan(params.load_params())
        differ = {name for name, step in plan.suite("demo").items() if again.suite("demo")[name].digest != step.digest}
        assert {word for word, name in differ} == {"evaluate", "tables"}
        assert __main__.main(["evaluate", RUN]) == 0
        assert "each of 3 classes is drawn equally often" in capsys.readouterr().out
        assert json.loads(Path(f"data/evaluations/{RUN}/metrics.json").read_text()) != before
    finally:
        Path("params.yaml").write_text(conftest.write_yaml(unbalanced))


GIVEN = """
import load, torch
seen = []
net, load.net = load.net, lambda x, sigma, labels: seen.append(labels.argmax(1)) or net(x, sigma, labels)
load.sample(2000)
load.sample(4, label=2)
print(*torch.bincount(seen[0], minlength=3).tolist(), *seen[1].tolist())
"""


def test_a_generator_that_is_given_away_draws_them_likewise(unbalanced, tmp_path):
    assert __main__.main(["export", RUN, "--out", str(tmp_path / "out")]) == 0
    done = subprocess.run([sys.executable, "-c", GIVEN], cwd=tmp_path / "out", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    *found, a, b, c, d = map(int, done.stdout.split())
    counts = json.loads((tmp_path / "out/config.json").read_text())["class_counts"]
    assert [a, b, c, d] == [2] * 4
    for count, seen in zip(counts, found, strict=True):
        assert abs(seen - 2000 * count / sum(counts)) < 5 * math.sqrt(2000 * count / sum(counts))
    with Image.open(tmp_path / "out/samples.png") as shown:
        assert shown.height == 3 * 9 * 4


def test_the_command_says_how_classes_are_drawn(unbalanced, capsys):
    file = f"data/runs/{RUN}/generator_ema.safetensors"
    assert __main__.main(["sample", "--generator", file, "--n", "4", "--out", "images"]) == 0
    assert "classes are drawn by their frequency" in capsys.readouterr().out


def test_agreement_needs_a_judge_in_the_features(unbalanced, capsys):
    """Without one it is left out, and the log says why and what would bring it."""
    changed = copy.deepcopy(unbalanced)
    changed["evaluate"] |= {"features": ["pixels"], "curve_features": []}
    Path("params.yaml").write_text(conftest.write_yaml(changed))
    try:
        assert __main__.main(["data", "shapes/reference-pixels"]) == 0
        assert __main__.main(["evaluate", "shapes/teacher"]) == 0
        said = capsys.readouterr().out
        assert "agreement is not measured: none of pixels is a classifier of these 3 classes" in said
        found = json.loads(Path("data/evaluations/shapes/teacher/metrics.json").read_text())
        assert found and not any(name.startswith("agreement") for name in found)
    finally:
        Path("params.yaml").write_text(conftest.write_yaml(unbalanced))


def test_unlabelled_data_are_as_before():
    """No step of a suite without labels knows of classes, so that none is stale."""
    plan = Plan(params.load_params(ROOT / "params.yaml"))
    for step in plan.suite("demo").values():
        recipe = json.loads(step.recipe)
        assert "classes" not in recipe["versions"] and "agreement" not in recipe["params"].get("metrics", [])
        assert step.word != "evaluate" or not {"classes", "labels"} & recipe["params"].keys()


def test_a_pack_without_labels_is_one_sentence(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "plain").mkdir()
    for index in range(8):
        picture("cross", random).save(tmp_path / f"plain/{index}.png")
    packing.pack_dataset({"source": "folder", "path": str(tmp_path / "plain"), "resolution": None, "crop": "square", "heldout": 3,
                  "limit": None, "count": None}, tmp_path / "pack")  # fmt: skip
    assert classes.describe_classes(tmp_path / "pack") == {}
    with pytest.raises(Problem, match="has no labels, but its data setting has labels: true"):
        classes.classes_of_pack(tmp_path / "pack", {"n": 4, "seed": 0})
