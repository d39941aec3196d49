# SPDX-License-Identifier: Apache-2.0
"""Pretrained feature spaces: that they know real pictures, and that a new one is one file."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from eldistill import paths
from eldistill.errors import Problem
from eldistill.evaluate import features
from eldistill.paths import PACKAGE
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.plan.versions import recipe_name
from eldistill.registry import literal, spaces
from eldistill.spaces import efficientnet
from tests import conftest
from tests.conftest import ROOT

SHIPPED = conftest.shipped()
PALACE, BELL_COTE, DAISY = 698, 442, 985  # of ImageNet's 1,000 classes


def square(picture: np.ndarray) -> torch.Tensor:
    """The central square of a picture [h, w, 3] as uint8 [1, 3, h, h]."""
    side, left = picture.shape[0], (picture.shape[1] - picture.shape[0]) // 2
    return torch.from_numpy(picture[:, left : left + side].copy()).permute(2, 0, 1)[None]


def test_it_recognises_a_palace_and_a_flower():
    """The right weights in the right network after the right preparation: its own last layer names two photographs."""
    net, space = efficientnet.load_network(224), features.feature_space("efficientnet-lite0-224")
    temple, flower = (
        (space(square(picture)) @ net._fc.weight.T + net._fc.bias)[0] for picture in load_sample_images().images
    )
    assert set(temple.topk(2).indices.tolist()) == {PALACE, BELL_COTE}
    assert int(flower.argmax()) == DAISY


def test_images_have_the_scale_that_the_network_was_trained_on():
    """Its first normalisation remembers the spread of ImageNet behind the first layer; photographs must have about that."""
    net = efficientnet.load_network(224)
    crops = [
        square(picture)[..., i : i + 224, j : j + 224]
        for picture in load_sample_images().images
        for i in (0, 200)
        for j in (0, 200)
    ]
    with torch.no_grad():
        found = net._conv_stem(efficientnet.standardise(torch.cat(crops), 224)).var((0, 2, 3)) / net._bn0.running_var
    assert 0.5 < float(found.median()) < 2  # 6 with ImageNet's moments in place of (u - 127) / 128


@pytest.mark.parametrize("name", efficientnet.NAMES)
def test_features_do_not_depend_on_the_chunk(name):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16), np.uint8))
    space = features.feature_space(name)
    together, apart = space(images), torch.cat([space(image[None]) for image in images])
    assert together.shape == (3, 1280) and together.dtype == torch.float32
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert not any(each.requires_grad for each in efficientnet.load_network(96).parameters())


@pytest.mark.parametrize("size", [8, 32, 96, 300])
def test_images_are_resized_as_pillow_does_it(size):
    """Bicubic with antialiasing, to a level of 255; grey three times; as (u - 127) / 128."""
    # Away from black and white, where pillow clips between its two passes.
    image = np.random.default_rng(size).integers(80, 176, (size, size), np.uint8)
    wanted = np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC), np.float32) / 255
    found = efficientnet.standardise(torch.from_numpy(image)[None, None], 96)[0]
    assert found.shape == (3, 96, 96)
    for channel in range(3):
        back = (found[channel].numpy() * 128 + 127) / 255
        assert np.abs(back - wanted).max() < 1.6 / 255


def test_four_channels_are_one_sentence():
    with pytest.raises(Problem, match=r"4 channels for efficientnet-lite0; expected 1 or 3: .*evaluate\.features"):
        efficientnet.standardise(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), 96)


def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(efficientnet, "WEIGHTS", "0" * 64)
    with pytest.raises(Problem, match="has digest 579344248a93e230; expected 0000000000000000"):
        efficientnet.load_network(96)


def plan(**evaluate_section):
    values = copy.deepcopy(SHIPPED)
    values["evaluate"] = values["evaluate"] | evaluate_section
    return Plan(params.from_values(values, ROOT))


def test_the_recipe_of_a_space_names_its_file():
    here = plan(features=["efficientnet-lite0-96", "judge-a"])
    step = here.evaluation(here.params.run("digits/di/el/0"))
    versions = {each.name: json.loads(each.recipe)["versions"] for each in step.upstream if "/reference-" in each.name}
    assert versions["digits/reference-efficientnet-lite0-96"]["spaces/efficientnet"] == efficientnet.RECIPE[1]
    assert "spaces/efficientnet" not in versions["digits/reference-judge-a"]
    assert here.find("data", "digits/reference-efficientnet-lite0-96").outputs == (
        "data/sets/digits/reference-efficientnet-lite0-96.npz",
    )


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"features": ["efficientnet-lite0"]}, r"evaluate\.features is 'efficientnet-lite0'; did you mean effic"),
        ({"curve_features": ["pixel"]}, r"evaluate\.curve_features is 'pixel'; did you mean pixels\? Expected one of "),
        (
            {"features": ["pixels"], "curve_features": ["judge-a"]},
            "curve_features is 'judge-a'; expected one of pixels",
        ),
        ({"per_data": {"digits": {"features": ["judge-c"]}}}, r"evaluate\.per_data\.digits\.features is 'judge-c'"),
    ],
)
def test_an_unknown_space_is_one_sentence(section, sentence):
    with pytest.raises(Problem, match=sentence):
        plan(**section)


def test_all_spaces_in_curves_is_the_default_and_leaves_recipes_alone():
    run = "digits/di/el/0"
    recipe = lambda here: here.evaluation(here.params.run(run)).recipe  # noqa: E731
    assert recipe(plan()) == recipe(plan(curve_features=[])) != recipe(plan(curve_features=["judge-a"]))
    assert "curve_features" not in json.loads(recipe(plan()))["params"]


@pytest.mark.parametrize("name", spaces())
def test_the_module_of_every_space_counts_for_its_reference(name):
    """Judges and pixels too: nothing but the folder says which spaces there are, and no two files have the same one."""
    files = sorted(path.stem for path in (PACKAGE / "spaces").glob("[a-z]*.py"))
    assert sum(len(literal(f"spaces/{file}", "NAMES")) for file in files) == len(spaces())
    counted = json.loads(plan().reference("digits", name).recipe)["versions"]
    assert counted.keys() >= {"evaluate", recipe_name(f"spaces/{spaces()[name]}")}


def test_a_new_space_is_one_file(tmp_path, monkeypatch):
    """A file in spaces/ is known to params.yaml, to recipes and to the evaluation without another edit."""
    here = PACKAGE / "spaces"
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    for source in here.parent.rglob("*.py"):
        target = tmp_path / source.relative_to(here.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (tmp_path / "spaces/mean.py").write_text(
        "RECIPE = ('spaces/mean', 1)\nNAMES = ('mean',)\n\ndef load_space(name, device='cpu'):\n"
        "    return lambda images: images.float().mean((2, 3))\n"
    )
    import eldistill.spaces

    monkeypatch.setattr(eldistill.spaces, "__path__", [*eldistill.spaces.__path__, str(tmp_path / "spaces")])
    spaces.cache_clear()
    try:
        here = plan(features=["mean", "pixels"])
        assert json.loads(here.reference("digits", "mean").recipe)["versions"]["spaces/mean"] == 1
        images = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)
        assert features.feature_space("mean")(images).tolist() == [[7.0] * 3] * 2
    finally:
        spaces.cache_clear()
        monkeypatch.undo()


def test_clip_is_clean_fids_and_optional(monkeypatch):
    """Without its package one sentence; with one (here a stand-in) clean-fid's own preparation and encoder are used."""
    import sys
    from types import ModuleType

    for name in ("clip", "cleanfid.clip_features"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "clip", None)
    with pytest.raises(Problem, match=r"clip-vit-b-32 needs the package clip; .*remove it from evaluate\.features"):
        features.feature_space("clip-vit-b-32")
    seen = []

    class Model(torch.nn.Module):
        def encode_image(self, x):
            seen.append(x)
            return x.mean((2, 3))

    fake = ModuleType("clip")
    fake.load = lambda name, device: (Model(), None)
    monkeypatch.setitem(sys.modules, "clip", fake)
    monkeypatch.delitem(sys.modules, "cleanfid.clip_features", raising=False)
    space = features.feature_space("clip-vit-b-32")
    images = torch.full((3, 1, 8, 8), 51, dtype=torch.uint8)
    found = space(images)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    assert seen[0].shape == (3, 3, 224, 224)
    torch.testing.assert_close(found, ((0.2 - mean) / std).expand(3, 3))
    with pytest.raises(Problem, match="4 channels for clip-vit-b-32"):
        space(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))
    monkeypatch.delitem(sys.modules, "cleanfid.clip_features", raising=False)
