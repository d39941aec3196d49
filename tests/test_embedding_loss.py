# SPDX-License-Identifier: Apache-2.0
"""eldistill.EmbeddingLoss, for training loops of others: it is the supplement's loss, and behaves like a torch module."""

from __future__ import annotations

import copy
import datetime
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import warnings

import pytest
import torch
from torch import distributed, multiprocessing

import eldistill
from eldistill.data.dataset import PackedImages
from eldistill.ensemble import seed as seeds
from eldistill.errors import NonFinite, Problem
from eldistill.paths import PACKAGE
from eldistill.plan import ensembles, params
from eldistill.supplements import embedding
from tests.conftest import ROOT

KERNELS = embedding.Numbers.__dataclass_fields__["kernel"].metadata["enum"]
LABELS = embedding.Numbers.__dataclass_fields__["labels"].metadata["enum"]
CODEC = {"mean": 0.5, "std": 0.25}  # in units of 0 … 255: mean 127.5, sigma_data 63.75; in -1 … 1: 0 and 0.5
EDM = {"mean": 0.0, "sigma_data": 0.5}
SMALL = [{"family": "conv", "width": 4, "count": 2}, {"family": "conv", "width": 4, "norm": "instance"}]


def images(n: int = 40, number: int = 1) -> torch.Tensor:
    """uint8 images with a bright bar, whose place is the class n mod 4."""
    made = 90 + 40 * torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(number))
    for i, image in enumerate(made):
        image[:, 2 * (i % 4) : 2 * (i % 4) + 2] += 80
    return made.clamp(0, 255).to(torch.uint8)


def classes(n: int) -> torch.Tensor:
    return torch.arange(n) % 4


def fakes(n: int = 12) -> torch.Tensor:
    """Images in -1 … 1."""
    return (images(n, 2).float() / 127.5 - 1) * 0.8


def made(**given) -> eldistill.EmbeddingLoss:
    """A loss in the units -1 … 1."""
    return eldistill.EmbeddingLoss(images(), **{"ensemble": SMALL, "seed": 5, "limits": (-1, 1), **given})


# --- the supplement's value -------------------------------------------------------------------------------

CASES = [
    *itertools.product(KERNELS, ("unbiased", "biased"), ("marginal",)),
    *itertools.product(("rbf", "linear"), ("unbiased",), LABELS[1:]),
    *((kernel, estimator, "anchored") for kernel in KERNELS for estimator in ("unbiased", "biased")),
]


@pytest.mark.parametrize(
    "ensemble", ["conv4", SMALL, [{"family": "whitened"}, {"family": "conv", "features": "multi"}]], ids=str
)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_value_and_gradient_are_the_supplements(case, ensemble, tmp_path):
    """For images in -1 … 1, against a recorded ensemble and packed images, as a run has them; to 1e-6."""
    kernel, estimator, labels = case
    anchored, labels = labels == "anchored", "marginal" if labels == "anchored" else labels
    section = ensembles.ensemble_section(ensemble) | {"anchor": anchored}
    packed = PackedImages(images(), classes(40), CODEC, 0)
    seeds.record_ensemble(section, 5, packed, tmp_path / "e.json", tmp_path / "e.npz")
    wide = PackedImages(images(), classes(40), CODEC, 0, dtype=torch.float64)
    held = seeds.Ensemble(tmp_path / "e.json", dtype=torch.float64)
    fake, real = fakes().double().requires_grad_(), images(9, 3)
    encoded = PackedImages(real, classes(9), CODEC, 0, dtype=torch.float64).take(torch.arange(9))[0]
    told = None if labels == "marginal" else (classes(12), classes(9))
    expected = embedding.embedding_loss(
        held.at(0), fake / 0.5, None if anchored else encoded / 0.5, kernel, estimator, labels=labels, classes=told,
        anchors=held.anchored(kernel, wide)[0] if anchored else None,
    )  # fmt: skip
    (slope,) = torch.autograd.grad(expected, fake)
    loss = made(ensemble=ensemble, kernel=kernel, estimator=estimator, labels=labels, anchored=anchored, **EDM).double()
    given = {} if anchored else {"real": real}
    if labels != "marginal":
        given |= {"labels": classes(12), "real_labels": torch.nn.functional.one_hot(classes(9))}
    value = loss(fake, **given)
    (gradient,) = torch.autograd.grad(value, fake)
    close = (
        1e-5 if (kernel, anchored) == ("cubic", True) else 1e-6
    )  # landmarks are float32, and third powers magnify that
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=close, abs=close)
    assert (gradient - slope).abs().max() < close * max(1, float(slope.abs().max()))
    assert float(slope.abs().max()) > 1e-6


@pytest.mark.parametrize("units", [(0.0, 255.0), (-1.0, 1.0), (0.0, 1.0)])
def test_units_and_types_of_images_change_nothing(units):
    """uint8 with limits, and floating point in the same units: one value; the gradient is in the caller's units."""
    low, high = units
    real, scale = images(), (high - low) / 2
    exact = made(**EDM)(fakes(), images(9, 3))
    for given in (real, real.float() / 255 * (high - low) + low, (real.double() / 255 * (high - low) + low)):
        fake = ((fakes() + 1) * scale + low).requires_grad_()
        loss = eldistill.EmbeddingLoss(
            given,
            SMALL,
            5,
            limits=units if given.dtype == torch.uint8 else None,
            mean=low + scale,
            sigma_data=scale / 2,
        )
        others = images(9, 3) if given.dtype == torch.uint8 else images(9, 3).float() / 255 * (high - low) + low
        value = loss(fake, others)
        assert float((value - exact).detach()) == pytest.approx(0, abs=1e-6)
        (slope,) = torch.autograd.grad(value, fake)
        assert slope.dtype == fake.dtype and slope.abs().max() > 0


def test_mean_and_deviation_are_those_of_all_real_images():
    loss = eldistill.EmbeddingLoss(images(2500), SMALL)  # more than one block
    values = images(2500).double()
    assert loss.mean == pytest.approx(float(values.mean()), rel=1e-12)
    assert loss.sigma_data == pytest.approx(float(values.std(correction=0)), rel=1e-12)


def test_named_ensembles_are_those_of_params_yaml():
    """Each name resolves to what the workflow's parameters resolve it to; the files beside plan/ are links, no copies."""
    shipped = params.load_params(ROOT / "params.yaml")
    names = params.reading.read_file(ROOT / "params.yaml")["ensemble"]
    assert len(names) > 3
    for name in names:
        assert ensembles.ensemble_section(name) == shipped.section("ensemble", name)
    for name, there in (("params.yaml", ROOT / "params.yaml"), ("params.schema.yaml", ROOT / params.SCHEMA)):
        assert (PACKAGE / "plan" / name).read_bytes() == there.read_bytes()
        assert (
            f"plan/{name}"
            in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["eldistill"]
        )


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_nan_is_never_masked(kernel):
    loss, fake = made(kernel=kernel), fakes()
    fake[3, 0, 2, 2] = float("nan")
    assert loss(fake).isnan()


# --- a torch module ---------------------------------------------------------------------------------------


def test_real_images_are_drawn_from_the_seed_and_the_call():
    """Others in each call, the same for the same seed; the value is that of a call with these images."""
    one, same, other = made(), made(), made(seed=6)
    first, second = one(fakes()), one(fakes())
    assert first != second and first == same(fakes()) and first != other(fakes())
    drawn = [made()._draw_real(12, None)[0] for _ in range(2)]
    assert torch.equal(*drawn) and made()(fakes(), drawn[0]) == first
    assert len(made(real_ratio=3)._draw_real(12, None)[0]) == 36


@pytest.mark.parametrize(
    "options",
    [{}, {"kernel": "linear", "anchored": True}, {"ensemble": {"members": SMALL, "redraw": 2, "draws": 2}},
     {"ensemble": [{"family": "whitened"}]}, {"augmentation": ("flip", "crop")}],
    ids=str,
)  # fmt: skip
def test_a_state_dict_continues_the_training(options):
    """Through a file that holds tensors only; into a loss that was calibrated on other real images."""
    loss = made(**options)
    for _ in range(3):
        loss(fakes())
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other = made(**options)
    other.reals.images = loss.reals.images
    other.mean, other.sigma_data = 7.0, 9.0
    state = torch.load(file, weights_only=True)
    assert all(isinstance(each, torch.Tensor) for each in state.values())
    other.load_state_dict(state)
    assert [other(fakes()) for _ in range(3)] == [loss(fakes()) for _ in range(3)]


def test_members_are_redrawn_as_in_a_run(tmp_path):
    """With redraw: 2, call 2 has the members of iteration 2."""
    section = ensembles.ensemble_section({"members": SMALL, "redraw": 2, "draws": 2})
    packed = PackedImages(images(), classes(40), CODEC, 0)
    seeds.record_ensemble(section, 5, packed, tmp_path / "e.json", tmp_path / "e.npz")
    held, loss = seeds.Ensemble(tmp_path / "e.json"), made(ensemble=section, **EDM)
    real = packed.take(torch.arange(9))[0]
    for call in range(5):
        expected = embedding.embedding_loss(held.at(call), fakes() / 0.5, real / 0.5, "rbf", "unbiased")
        assert float(loss(fakes(), images()[:9])) == pytest.approx(float(expected), abs=1e-6)


def test_a_redraw_leaves_the_gradients_of_earlier_calls():
    """The sum of two calls has the sum of their gradients, although the members change between them."""
    fake, slopes = fakes().requires_grad_(), []
    for together in (True, False):
        loss = made(ensemble={"members": SMALL, "redraw": 1, "draws": 2})
        values = [loss(fake) for _ in range(2)] if together else (loss(fake) for _ in range(2))
        slopes.append(sum(torch.autograd.grad(value, fake)[0] for value in values))
    assert torch.equal(*slopes)


def test_it_moves_and_is_copied_like_a_module():
    """No parameters, so that optimisers and DistributedDataParallel find none; copies and precisions agree."""
    loss = made()
    assert not list(loss.parameters()) and "sigma_data" in repr(loss)
    value = float(loss(fakes(), images(9, 3)))
    for each in (copy.deepcopy(loss), copy.deepcopy(loss).double(), torch.nn.Sequential(made())[0]):
        assert float(each(fakes(), images(9, 3))) == pytest.approx(value, abs=1e-6)
    assert copy.deepcopy(loss).double()(fakes().double(), images(9, 3)).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert float(loss(fakes(), images(9, 3))) == value
    far = float(loss(0.3 * fakes(), images(9, 3)))
    assert float(copy.deepcopy(loss).bfloat16()(0.3 * fakes().bfloat16(), images(9, 3))) == pytest.approx(far, rel=0.1)
    stacked = made(stack="stacked")
    assert float(stacked(fakes(), images(9, 3))) == pytest.approx(value, abs=1e-6)


def test_it_can_be_compiled():
    """The compiled loss draws the same images and is not compiled anew in each call."""
    torch._dynamo.reset()
    plain, fast = made(), torch.compile(made(), backend="aot_eager")
    fake = fakes().requires_grad_()
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for _ in range(5):
            one, other = plain(fake), fast(fake)
            slopes = [torch.autograd.grad(each, fake)[0] for each in (one, other)]
            assert float(one.detach()) == pytest.approx(float(other.detach()), abs=1e-6)
            assert torch.allclose(*slopes, atol=1e-7)


def test_images_of_another_unit_are_noticed():
    with pytest.warns(UserWarning, match=r"0 … 255 .* limits=\(-1, 1\)"):
        made(limits=None)(fakes())


@pytest.mark.parametrize(("of_real", "of_fake", "warned"), [
    ((0, 1), (-1, 1), "real_images are in 0 … 1"), ((-1, 1), (0, 1), "real_images are in -1 … 1"),
    ((0, 1), (0, 1), ""), ((-1, 1), (-1, 1), ""), ((0, 1), (-3, 3), ""), ((-1, 1), (-0.1, 0.1), ""),
])  # fmt: skip
def test_floating_images_of_another_range_are_noticed(of_real, of_fake, warned):
    """Of [0, 1] and [-1, 1], which loops mix up; a generator without limits at its start is no sign of it."""
    chance = torch.Generator().manual_seed(0)
    real, fake = (low + (high - low) * torch.rand(32, 1, 8, 8, generator=chance) for low, high in (of_real, of_fake))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        eldistill.EmbeddingLoss(real, ensemble="identity")(fake[:8])
    assert [warned in str(each.message) for each in caught] == ([True] if warned else [])


def test_members_may_stand_in_a_tuple():
    assert made(ensemble=tuple(SMALL)).record == made(ensemble=list(SMALL)).record
    assert made(ensemble={"members": tuple(SMALL)}).record == made(ensemble={"members": SMALL}).record


@pytest.mark.parametrize(("labels", "sentence"), [
    (torch.rand(40), "is torch.float32 .40.; expected classes"), (torch.zeros(40, 1), "is torch.float32 .40, 1."),
    (torch.zeros(40, 1, dtype=torch.int64), r"labels.long\(\).flatten\(\)"), (torch.full((40,), -1), "has values below 0"),
    (torch.zeros(40, 3), "rows that are not one-hot"), (torch.full((40, 2), 0.5), "rows that are not one-hot"),
    ([0] * 40, "is list; expected a tensor"),
])  # fmt: skip
def test_labels_that_would_be_read_as_others_are_refused(labels, sentence):
    """Fractions were cut to whole numbers, a column of numbers and rows without a class were read as class 0."""
    with pytest.raises(Problem, match=f"EmbeddingLoss: real_labels .*{sentence}|EmbeddingLoss: real_labels {sentence}"):
        made(labels="joint", real_labels=labels)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"limits": "ab"}, "limits are ab"), ({"limits": 3}, "limits are 3"), ({"limits": (0, 1, 2)}, "two rising numbers"),
    ({"limits": (0, float("inf"))}, "two rising numbers"), ({"mean": "a"}, "mean is 'a'; expected one finite number"),
    ({"mean": torch.zeros(3)}, "mean is Tensor"), ({"mean": float("inf")}, "mean is inf"),
    ({"sigma_data": float("nan")}, "sigma_data is nan"), ({"across": "all"}, "across is 'all'"), ({"across": 2}, "across is 2"),
])  # fmt: skip
def test_a_number_of_another_kind_is_one_sentence(options, sentence):
    with pytest.raises(Problem, match=f"EmbeddingLoss: .*{sentence}"):
        made(**options)


def test_channels_at_the_end_are_named():
    with pytest.raises(Problem, match=r"looks like \[n, h, w, c\]; .*permute\(0, 3, 1, 2\)"):
        eldistill.EmbeddingLoss(torch.zeros(4, 8, 8, 3, dtype=torch.uint8))


def test_what_is_no_tensor_is_called_that():
    """Not "fake is on cpu, the loss on cpu"."""
    loss = made()
    for name, given in (("fake", (None,)), ("fake", (fakes().numpy(),)), ("real", (fakes(), [1]))):
        with pytest.raises(Problem, match=f"EmbeddingLoss: {name} is .*; expected a tensor"):
            loss(*given)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"ensemble": "conv5"}, r"ensemble is 'conv5'; did you mean conv4\? Expected one of conv4, "),
    ({"ensemble": {"members": [{"family": "convv"}]}}, r"members\[0\]\.family is 'convv'.*did you mean conv"),
    ({"ensemble": {"members": SMALL, "calibation": 9}}, r"calibation is not a known key .*did you mean calibration"),
    ({"ensemble": 3}, r"ensemble is 3; expected a name"),
    ({"ensemble": [{"family": "teacher"}]}, r"reads a teacher"),
    ({"kernel": "rfb"}, r"kernel is 'rfb'; did you mean rbf\? Expected one of "),
    ({"labels": "class"}, r"labels is 'class'"), ({"estimator": "fair"}, r"estimator is 'fair'"),
    ({"real_ratio": 0}, r"real_ratio is 0; expected a whole number ≥ 1"),
    ({"augmentation": ["blur"]}, r"augmentation\[0\] is 'blur'"), ({"reduce": "max"}, r"reduce is 'max'"),
    ({"anchored": True, "labels": "joint", "kernel": "linear"}, r"anchored is True; expected"),
    ({"anchored": True, "kernel": "linear", "ensemble": {"members": SMALL, "redraw": 5}}, r"redraw 5; expected redraw 0"),
    ({"seed": 1.5}, r"seed is 1\.5; expected a whole number"), ({"seed": -1}, r"seed is -1"),
    ({"limits": (1, -1)}, r"limits are \(1, -1\)"), ({"sigma_data": 0}, r"sigma_data is 0"),
    ({"real_labels": classes(3)}, r"3 real_labels for 40 real_images"),
])  # fmt: skip
def test_a_wrong_argument_is_one_sentence(options, sentence):
    with pytest.raises(Problem, match=sentence) as found:
        made(**options)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("given", "sentence"), [
    (lambda: images().to(torch.int32), r"real_images is torch.int32 \[40, 1, 8, 8\]; expected a tensor"),
    (lambda: [1, 2], r"real_images is list"), (lambda: images()[0], r"\[1, 8, 8\]"),
    (lambda: images(1), r"1 real_images; expected at least 2"), (lambda: images()[:2] * 0, r"sigma_data is 0"),
])  # fmt: skip
def test_wrong_real_images_are_one_sentence(given, sentence):
    with pytest.raises(Problem, match=sentence):
        eldistill.EmbeddingLoss(given())


def test_real_images_with_a_nan_are_refused():
    with pytest.raises(NonFinite, match="hold a NaN"):
        eldistill.EmbeddingLoss(torch.full((4, 1, 8, 8), float("nan")))


def test_a_wrong_call_is_one_sentence():
    loss, joint = made(), made(labels="joint")
    calls = (
        (lambda: loss(fakes()[:, :, :4]), r"fake has the shape \[12, 1, 4, 8\]; expected \[n, 1, 8, 8\]"),
        (lambda: loss(fakes(), images()[:, :, :4]), r"real has the shape"), (lambda: loss(fakes(1)), r"at least 2"),
        (lambda: joint(fakes(), images(9)), r"no labels for 12 images"),
        (lambda: joint(fakes(), images(9), classes(12), classes(8)), r"8 real_labels for 9 images"),
        (lambda: joint(fakes(), labels=classes(12)), r"no real_labels for 12"),
        (lambda: made(kernel="linear", anchored=True)(fakes(), images(9)), r"anchored=True"),
        (lambda: eldistill.EmbeddingLoss(fakes(), SMALL)(fakes(), images()), r"uint8, but real_images were floating"),
        (lambda: loss.load_state_dict(made(seed=6).state_dict()), r"the state has seed 6, this loss 5"),
        (lambda: loss.load_state_dict(made(kernel="linear").state_dict()), r"the state has options"),
        (lambda: loss.load_state_dict(loss.state_dict() | {"_extra_state": torch.ones(3)}), r"state_dict is damaged"),
    )  # fmt: skip
    for call, sentence in calls:
        with pytest.raises(Problem, match=sentence):
            call()
    assert joint.calls == joint.drawn == 0  # a refused call uses no random numbers


def test_changed_weights_are_noticed():
    state = made().state_dict()
    name = next(name for name in state if name.endswith("weight"))
    with pytest.raises(Problem, match="weights of member 0 .* are not those of its seed"):
        made().load_state_dict(state | {name: state[name] + 1e-6})


# --- several processes ------------------------------------------------------------------------------------

SPLIT = (5, 7)  # images of each of two processes
FORMS = [
    {},
    {"kernel": "linear"},
    {"kernel": "linear", "anchored": True},
    {"labels": "joint", "real_labels": classes(40)},
]


def train(across, split=(12,), rank: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Loss and averaged gradient of a generator in three calls of each form, under DDP if there are several processes."""
    start = sum(split[:rank])
    noise, labels = (each[start : start + split[rank]] for each in (fakes(), classes(12)))
    found = []
    for form in FORMS:
        torch.manual_seed(0)
        generator = torch.nn.Conv2d(1, 1, 3, padding=1)
        run = torch.nn.parallel.DistributedDataParallel(generator) if len(split) > 1 else generator
        loss = made(across=across, **form)
        copy.deepcopy(loss)
        for _ in range(3):
            generator.zero_grad()
            value = loss(run(noise), labels=labels)
            value.backward()
            found.append((value.detach(), generator.weight.grad.clone()))
    return found


def work(rank: int, folder: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=120)
    distributed.init_process_group("gloo", f"file://{folder}/store", wait, world_size=2, rank=rank)
    found = [train(across, SPLIT, rank) for across in (True, distributed.new_group([0, 1]))]
    with pytest.raises(Problem, match="different calibrations or counters"):
        eldistill.EmbeddingLoss(images(40, rank), SMALL, limits=(-1, 1), across=True)(fakes())
    apart = made()(fakes())  # without `across`: real images of its own
    torch.save((*found, apart), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    """With `across`, the value is that of the complete batch, and DDP's mean of the gradients is its gradient."""
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    expected = train(False)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for *both, _ in found:
        for (value, slope), (exact, whole) in zip(itertools.chain(*both), expected * 2, strict=True):
            assert float(value) == pytest.approx(float(exact), abs=1e-6)
            assert torch.allclose(slope, whole, atol=1e-6)
    assert found[0][-1] == made()(fakes()) and found[0][-1] != found[1][-1]


# --- without the workflow ---------------------------------------------------------------------------------

BARE = """
import sys
BLOCKED = ("snakemake", "dvc", "pandas", "matplotlib", "PIL", "sklearn", "scipy", "cleanfid", "torchvision", "diffusers")
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(each) if hasattr(each, "find_spec") else each for each in sys.meta_path]
import torch, eldistill
assert "torch" in sys.modules and "eldistill.embedding_loss" not in sys.modules
loss = eldistill.EmbeddingLoss(torch.randint(256, (40, 3, 8, 8)).to(torch.uint8), "mix8-8", limits=(-1, 1))
fake = torch.rand(6, 3, 8, 8, requires_grad=True)
loss(fake).backward()
assert fake.grad.isfinite().all() and eldistill.__file__.startswith(sys.argv[1])
"""


def test_an_installed_package_needs_torch_alone(tmp_path):
    """The package as a wheel holds it, without a checkout around it and without the packages of the workflow."""
    shutil.copytree(PACKAGE, tmp_path / "site/eldistill", ignore=shutil.ignore_patterns("__pycache__"))
    assert not (tmp_path / "site/eldistill/plan/params.yaml").is_symlink()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_page_runs(monkeypatch, tmp_path):
    """docs/other-loops.md, its first block, from beginning to end, in a folder without a project."""
    page = (ROOT / "docs/other-loops.md").read_text(encoding="utf-8")
    block, *others = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block, "docs/other-loops.md", "exec"), names)
    before, after = names["distances"]["none"], names["distances"]["el"]
    assert after < before
    fake = torch.randn(16, 1, 8, 8, requires_grad=True)
    base, own = (fake**3).mean(), names["loss"](fake)
    exec(compile(others[0], "docs/other-loops.md", "exec"), names)
    slopes = [
        torch.autograd.grad(each, fake, retain_graph=True)[0] for each in (base, names["with_el"](base, fake, own))
    ]
    assert float((slopes[1] - slopes[0]).norm() / slopes[0].norm()) == pytest.approx(0.7, rel=1e-4)


def test_the_lines_for_a_loop_are_few():
    """At most ten for each repository, all of them Python."""
    page = (ROOT / "docs/other-loops.md").read_text(encoding="utf-8")
    loops = page.split("## SiD, DMD2 and FastGen")[1].split("\n### ")[1:]
    assert [loop.split()[0] for loop in loops] == ["SiD", "DMD2", "FastGen"]
    for loop in loops:
        lines = [line for block in re.findall(r"```python\n(.*?)```", loop, re.S) for line in block.splitlines()]
        assert 4 <= len(lines) <= 10 and "nobody has run" in page.lower()
