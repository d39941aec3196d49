# SPDX-License-Identifier: Apache-2.0
"""Guided teachers: their formula and its closed forms, files that do not fit, and whole chains by their commands."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from eldistill import __main__
from eldistill.commands import card, cost
from eldistill.contract import Batch, Progress
from eldistill.diffusion.draws import Draw
from eldistill.errors import Problem, Stopped
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.sampling import generators, guidance
from eldistill.sampling.guidance import Guided
from eldistill.sampling.heun import heun
from eldistill.sampling.teachers import images_of_teacher, load_denoiser
from eldistill.teacher import train
from eldistill.tensors import load_tensors, save_tensors
from eldistill.training import loop
from tests import conftest, test_resume
from tests.distil import test_distil
from tests.training import test_passes

made, project = test_distil.made, test_distil.project  # the fixtures
DATA = test_distil.DATA
METHODS = ("diff_instruct", "dmd", "dmd2", "sid", "sida", "sim", "f_divergence", "consistency")


class Gaussian(torch.nn.Module):
    """The ideal denoiser of N(mean, std^2) in each pixel: D(x; sigma) = mean + std^2 (x - mean) / (std^2 + sigma^2)."""

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean, self.variance = mean, std**2
        self.unused = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)
        self.passes = 0

    def forward(self, x, sigma, labels=None):
        self.passes += 1
        level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1)
        shift = 0 if labels is None else labels.sum(dim=1).reshape(-1, 1, 1, 1)
        mean = self.mean + shift
        return mean + self.variance * (x - mean) / (self.variance + level**2)


def noise(n: int = 6, seed: int = 0) -> torch.Tensor:
    return Draw(seed, "test", 0, n, dtype=torch.float64).normal("x", 1, 4, 4)


# --- the formula ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 1.7, 4.0])
def test_guidance_of_gaussian_denoisers_is_linear_in_x(weight):
    """The slope and the offset at each noise level are those of the two denoisers, extrapolated."""
    main, guide, x = Gaussian(0.4, 0.5), Gaussian(-0.1, 0.8), noise()
    sigma = torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0, 80.0], dtype=torch.float64)
    slopes = [each.variance / (each.variance + sigma**2) for each in (main, guide)]
    offsets = [each.mean * (1 - slope) for each, slope in zip((main, guide), slopes, strict=True)]
    slope, offset = (weight * mine + (1 - weight) * its for mine, its in (slopes, offsets))
    wanted = slope.reshape(-1, 1, 1, 1) * x + offset.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(Guided(main, guide, weight)(x, sigma), wanted)


@pytest.mark.parametrize("weight", [1.5, 3.0])
def test_sampling_of_gaussians_has_a_closed_form(weight):
    """For means of 0, d ln x / d sigma = w sigma / (s^2 + sigma^2) + (1 - w) sigma / (t^2 + sigma^2), so that
    x(0) / x(T) = (s^2 / (s^2 + T^2))^(w / 2) (t^2 / (t^2 + T^2))^((1 - w) / 2): narrower than the data for t > s."""
    main, guide, z = Gaussian(0, 0.5), Gaussian(0, 0.7), noise()
    found = heun(Guided(main, guide, weight), z, steps=400, sigma_max=10.0)
    power = {main: weight / 2, guide: (1 - weight) / 2}
    ratio = math.prod((each.variance / (each.variance + 100)) ** power[each] for each in power)
    torch.testing.assert_close(found, 10 * ratio * z, rtol=2e-3, atol=1e-6)
    assert found.std() < heun(main, z, steps=400, sigma_max=10.0).std()


def test_without_another_network_the_label_is_left_out():
    """Classifier-free guidance: the second pass is one of the same network without a label."""
    main, x, labels = Gaussian(0.0, 0.5), noise(), torch.ones(6, 2, dtype=torch.float64)
    found = Guided(main, None, 2.5)(x, 1.0, labels)
    torch.testing.assert_close(found, main(x, 1.0) + 2.5 * (main(x, 1.0, labels) - main(x, 1.0)))


def test_an_interval_limits_guidance():
    """At sigma_low < sigma <= sigma_high it is guided, elsewhere bit-equal to the main network."""
    main, guide, x = Gaussian(0.1, 0.5), Gaussian(0.0, 0.9), noise()
    sigma = torch.tensor([0.1, 0.2, 0.5, 1.0, 2.0, 2.5], dtype=torch.float64)
    found = Guided(main, guide, 2.0, low=0.2, high=2.0)(x, sigma)
    inside = [False, False, True, True, True, False]
    for image, one, every, guided in zip(
        found, main(x, sigma), Guided(main, guide, 2.0)(x, sigma), inside, strict=True
    ):
        assert torch.equal(image, every if guided else one)


@pytest.mark.parametrize(("low", "high", "guided"), [(0.0, None, 35), (20.0, None, 7), (0.0, 0.1, None)])
def test_passes_of_sampling(low, high, guided):
    """Two a call, and one where guidance does not act; counted by the networks themselves."""
    main, guide = Gaussian(0.0, 0.5), Gaussian(0.0, 0.9)
    heun(Guided(main, guide, 2.0, low, high), noise(2), steps=18)
    assert main.passes == 35 and (guided is None or guide.passes == guided) and 0 < guide.passes <= 35


def test_a_nan_of_the_guide_is_not_masked():
    """Nor outside of the interval, where the guide counts with weight 0, if it was asked for another image."""
    main, guide, x = Gaussian(0.0, 0.5), Gaussian(math.nan, 0.9), noise()
    assert Guided(main, guide, 2.0)(x, 1.0).isnan().all()
    sigma = torch.tensor([1.0, 9, 9, 9, 9, 9], dtype=torch.float64)
    assert Guided(main, guide, 2.0, high=2.0)(x, sigma).isnan().all()


def test_gradients_flow_through_both_networks():
    """As in SiD, whose loss is differentiated through the teacher."""
    main, guide, x = Gaussian(0.0, 0.5), Gaussian(0.0, 0.9), noise().requires_grad_()
    (slope,) = torch.autograd.grad(Guided(main, guide, 3.0)(x, 1.0).sum(), x)
    torch.testing.assert_close(slope, torch.full_like(x, 3 * 0.25 / 1.25 - 2 * 0.81 / 1.81))


@pytest.mark.parametrize("network", ["song", "adm", "edm2"])
def test_of_networks(network):
    """The lerp of two networks, attributes of the main one, and a copy that is one."""
    main, guide = (conftest.teacher(3, torch.float64, seed=seed, network=network) for seed in (0, 7))
    guided, x = Guided(main, guide, 1.5), torch.randn(4, 1, 8, 8, dtype=torch.float64)
    labels = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    wanted = 1.5 * main(x, 0.7, labels) - 0.5 * guide(x, 0.7, labels)
    torch.testing.assert_close(guided(x, 0.7, labels), wanted)
    assert guided.sigma_data == main.sigma_data and guided.features_shape == main.features_shape
    assert torch.equal(copy.deepcopy(guided)(x, 0.7, labels), guided(x, 0.7, labels))
    assert guidance.networks_of(guided) == [main, guide] and guidance.networks_of(main) == [main]
    assert guidance.networks_of(Guided(main, None, 2.0)) == [main]
    with pytest.raises(AttributeError):
        _ = guided.nothing_of_this_name


# --- training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("labels", [0, 3])
def test_a_method_costs_as_many_passes_of_the_guide_as_of_the_teacher(bench, method, labels):
    """Counted in an iteration; generator and fake_score cost what they did. The teacher's passes are those that the method names."""
    counts = {}
    for guided in (None, {"weight": 2.0}):
        job = bench.job(method, labels=labels, batch=test_passes.BATCH, steps=100, guided=guided, folder=str(guided))
        teacher = job.fixed["teacher"]
        parts = dict(zip(("main", "guide"), guidance.networks_of(teacher), strict=False))
        meter = test_passes.Meter({**parts, **job.nets})
        loop.Loop(job).iterate()
        counts[bool(guided)] = {name: meter.of(name) for name in (*parts, *job.nets)}
    assert counts[True]["guide"] == counts[True]["main"] == counts[False]["main"]
    assert counts[True]["main"][0] > 0
    assert all(counts[True][name] == counts[False][name] for name in job.nets)


@pytest.mark.parametrize("method", METHODS)
def test_a_guided_teacher_changes_what_a_student_learns(bench, method):
    """And with weight 1 it is the teacher: the same weights after some steps, in float64 up to rounding."""
    found = {}
    for weight in (None, 1.0, 2.0):
        guided = None if weight is None else {"weight": weight}
        job = bench.job(method, dtype=torch.float64, guided=guided, folder=str(weight), optimiser={"eps": 1e-2})
        work = loop.Loop(job)
        work.run()
        found[weight] = torch.cat([each.flatten() for each in work.nets["generator"].parameters()])
    torch.testing.assert_close(found[1.0], found[None], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found[2.0], found[None], rtol=1e-6, atol=1e-6)


def test_a_stopped_run_of_a_guided_teacher_continues_bit_for_bit(bench):
    """Its networks are not part of the state: they are loaded again."""
    guided = {"guided": {"weight": 2.0, "high": 5.0}}
    whole = test_resume.Ending(test_resume.job_of(bench, "whole", {}, **guided), after=99)
    whole.run()
    with pytest.raises(Stopped):
        test_resume.Ending(test_resume.job_of(bench, "parts", {}, **guided), after=4).run()
    rest = loop.Loop(test_resume.job_of(bench, "parts", {}, **guided))
    rest.run()
    test_resume.assert_equal(rest, whole)


# --- files ----------------------------------------------------------------------------------------------


def written(folder: Path, name: str, about: dict | None = None, **config) -> Path:
    net = conftest.networks.build({"network": "song", "img_resolution": 8, "img_channels": 1, "model_channels": 4,
                                   "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [], **config}, 0)  # fmt: skip
    described = {"config": net.config, "codec": {"mean": 0.3, "std": 0.4}, "label_dim": net.label_dim,
                 "shape": [net.img_channels, *[net.img_resolution] * 2]}  # fmt: skip
    save_tensors(folder / f"{name}.safetensors", net.state_dict(), described | (about or {}))
    return folder / f"{name}.safetensors"


@pytest.mark.parametrize(
    ("main", "guide", "words"),
    [
        ({"label_dim": 3}, {"label_dim": 3, "img_resolution": 4}, "trained on images of shape [1, 4, 4] and cannot guide"),
        ({"label_dim": 3}, {"label_dim": 3, "img_channels": 3}, "trained on images of shape [3, 8, 8] and cannot guide"),
        ({"label_dim": 3}, {"label_dim": 2}, "knows 2 classes and cannot guide"),
        ({}, {"label_dim": 2}, "knows 2 classes and cannot guide"),
        ({}, {"about": {"codec": {"mean": 0.5, "std": 0.25}}}, "trained on the codec {'mean': 0.5, 'std': 0.25} and cannot guide"),
        ({}, None, "knows no labels, so that no pass without one can guide it"),
    ],
)  # fmt: skip
def test_networks_that_do_not_fit_are_refused_in_one_sentence(tmp_path, main, guide, words):
    main = written(tmp_path, "main", **main)
    guide = guide if guide is None else written(tmp_path, "guide", **guide)
    with pytest.raises(Problem) as error:
        guidance.load_teacher(main, {"weight": 2.0, "guide": guide and "guide"}, guide)
    assert words in str(error.value) and "; name a" in str(error.value)


def test_a_guide_may_be_smaller_or_without_classes(tmp_path):
    main = written(tmp_path, "main", label_dim=3)
    for name, config in {"small": {"label_dim": 3, "num_blocks": 2}, "unlabelled": {}}.items():
        found, about = guidance.load_teacher(main, {"weight": 2.0, "guide": name}, written(tmp_path, name, **config))
        assert about["label_dim"] == 3 and not any(each.requires_grad for each in found.parameters())
        assert found(torch.zeros(2, 1, 8, 8), 1.0, torch.eye(3)[:2]).shape == (2, 1, 8, 8)


# --- parameters -----------------------------------------------------------------------------------------


def guided_values(weight: float = 2.0, **changes) -> dict:
    """The parameters of this project with a guided teacher of digits, and a data setting that has it."""
    values = conftest.shipped()
    values["teacher"]["worse"] = {"like": "digits", "data": "digits", "n_images": 6400}
    values["teacher"]["guided"] = {
        "data": "digits",
        "guidance": {"of": "digits", "guide": "worse", "weight": weight, **changes},
    }
    values["data"]["digits-guided"] = {"like": "digits", "teacher": "guided"}
    return values


def plan_of(values: dict) -> Plan:
    return Plan(params.from_values(values, conftest.ROOT))


def recipe(plan: Plan, word: str, name: str) -> dict:
    return json.loads(plan.find(word, name).recipe)


RUNS = [("distil", "{}/sid/none/0"), ("evaluate", "{}/teacher")]


@pytest.mark.parametrize(("word", "name"), [*RUNS, ("teacher", "{}/check"), ("teacher", "{}/pairs-5-0")])
def test_the_weight_is_in_the_recipe_of_all_that_evaluates_the_teacher(word, name):
    """With weight 1 the recipe is that of the teacher without guidance, but for its own name."""
    mine, its = ("guided", "digits") if word == "teacher" else ("digits-guided", "digits")
    plain = recipe(plan_of(guided_values()), word, name.format(its))
    one = recipe(plan_of(guided_values(1.0)), word, name.format(mine))
    two = recipe(plan_of(guided_values(2.0, sigma_low=0.2)), word, name.format(mine))
    assert "guidance" not in plain["params"] and one["params"] == plain["params"]
    assert one["versions"] == plain["versions"] and len(one["upstream"]) == len(plain["upstream"])
    assert two["params"]["guidance"] == {"of": "digits", "guide": "worse", "weight": 2, "sigma_low": 0.2}
    assert two["versions"]["guidance"] and two["upstream"].keys() - plain["upstream"].keys() >= {"teacher worse"}
    assert "teacher digits" in two["upstream"]
    other = recipe(plan_of(guided_values(2.5, sigma_low=0.2)), word, name.format(mine))
    assert other != two


def test_nothing_is_trained_twice_for_a_guided_teacher():
    """Its step is that of the teacher that is guided, and no recipe of other data settings changes."""
    before, after = plan_of(conftest.shipped()), plan_of(guided_values())
    assert after.teacher("guided") is after.teacher("digits")
    assert after.find("distil", "digits/di/el/0").recipe == before.find("distil", "digits/di/el/0").recipe
    labelled = plan_of(label_values())
    assert (
        "label_dropout" not in before.teacher("digits").params
        and labelled.teacher("free").params["label_dropout"] == 0.1
    )


def label_values(label_dropout: float = 0.1) -> dict:
    """The same with a teacher that knows labels and is guided by its passes without them."""
    values = guided_values()
    values["teacher"]["labelled"] = {"like": "digits", "data": "labelled", "label_dropout": label_dropout}
    values["teacher"]["free"] = {"data": "labelled", "guidance": {"of": "labelled", "weight": 2.0}}
    values["data"]["labelled"] = {"like": "digits", "labels": True, "teacher": "labelled"}
    values["data"]["labelled-guided"] = {"like": "labelled", "teacher": "free"}
    return values


WRONG = {
    "of an unknown one": (lambda v: v["teacher"]["guided"]["guidance"].update(of="digit"), "teacher.guided.guidance.of is 'digit'"),
    "by an unknown one": (lambda v: v["teacher"]["guided"]["guidance"].update(guide="wors"), "did you mean worse?"),
    "of a guided one": (lambda v: v["teacher"].update(again={"data": "digits", "guidance": {"of": "guided", "guide": "worse"}}),
                        "which has guidance itself"),
    "by itself": (lambda v: v["teacher"]["guided"]["guidance"].update(guide="digits"), "set guide to null"),
    "other images": (lambda v: v["teacher"]["guided"]["guidance"].update(guide="fashion-mnist"), "name a teacher of the same images"),
    "other labels": (lambda v: v["data"].update(named={"like": "digits", "labels": True, "teacher": "named"})
                     or v["teacher"].update(named={"like": "digits", "data": "named"})
                     or v["teacher"]["guided"]["guidance"].update(guide="named"), "that knows the same classes, or none"),
    "no labels": (lambda v: v["teacher"]["guided"]["guidance"].update(guide=None), "knows no labels; name a worse teacher"),
    "limits": (lambda v: v["teacher"]["guided"]["guidance"].update(sigma_low=3, sigma_high=2), "expected sigma_low below sigma_high"),
    "a network beside it": (lambda v: v["teacher"]["guided"].update(like="digits"), "does not count beside guidance"),
    "a length beside it": (lambda v: v["teacher"]["guided"].update(n_images=640), "does not count beside guidance"),
    "label dropout without labels": (lambda v: v["teacher"]["digits"].update(label_dropout=0.1), "has no labels; set it to 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_section_is_one_sentence(case):
    change, words = WRONG[case]
    values = guided_values()
    change(values)
    with pytest.raises(Problem) as error:
        plan_of(values)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_passes_without_a_label_need_label_dropout():
    plan_of(label_values())
    with pytest.raises(Problem, match=r"was trained with a label on every image; set teacher.labelled.label_dropout"):
        plan_of(label_values(0.0))


def asked(values: dict) -> dict:
    """The same with a suite that has one run of the guided teacher."""
    values["suites"]["tried"] = [{"data": ["digits-guided"], "methods": ["di"], "supplements": ["none"], "seeds": [0]}]
    return values


def test_a_second_pass_is_in_the_bill():
    """One pass of the guide for each of the teacher; a smaller one costs less, and a pass without a label as much."""
    values = guided_values()
    values["teacher"]["worse"]["network"] = {"model_channels": 8}
    plan = plan_of(values)
    small = cost.operations(cost.network_of(plan, "worse"))[0]
    for method, teacher in {"di": 1, "sid": 2, "dmd2": 0.2, "cd": 2}.items():
        bills = [
            cost.cost_of_run(plan, plan.params.run(f"{data}/{method}/none/0")) for data in ("digits", "digits-guided")
        ]
        assert bills[1]["flop"] - bills[0]["flop"] == pytest.approx(bills[0]["images"] * teacher * small, rel=1e-9)
        assert bills[1]["weights"] > bills[0]["weights"] and bills[1]["disk"] == bills[0]["disk"]
    assert [cost.guided_teachers(plan_of(each), "tried") for each in (asked(values), asked(guided_values(1.0)))] == [
        ["the teacher guided is guided by worse with weight 2: each of its calls takes two passes, which are counted"], []
    ]  # fmt: skip
    plan = plan_of(label_values())
    bills = [cost.cost_of_run(plan, plan.params.run(f"{data}/sid/none/0")) for data in ("labelled", "labelled-guided")]
    forward = cost.operations(cost.network_of(plan, "labelled"))[0]
    assert bills[1]["flop"] - bills[0]["flop"] == pytest.approx(2 * forward * bills[0]["images"])


# --- whole chains ---------------------------------------------------------------------------------------


@pytest.fixture
def guided_project(project) -> Path:
    """The small project with a worse teacher, made, and the data settings `guided` and `same`, of weight 3 and 1."""
    values = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    values["teacher"]["worse"] = {"like": DATA, "data": DATA, "n_images": 64, "seed": 1}
    for name, weight in (("guided", 3), ("same", 1)):
        values["teacher"][name] = {
            "data": DATA,
            "steps": 3,
            "guidance": {"of": DATA, "guide": "worse", "weight": weight},
        }
        values["data"][name] = {"like": DATA, "teacher": name}
    Path("params.yaml").write_text(conftest.write_yaml(values), encoding="utf-8")
    if not Path("data/teachers/worse/teacher.safetensors").exists():
        assert __main__.main(["teacher", "worse"]) == 0
    return project


def weights(name: str, file: str = "generator_ema") -> dict[str, torch.Tensor]:
    tensors, _ = load_tensors(f"data/runs/{name}/{file}.safetensors")
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(generators.RAW)}


def test_runs_and_pairs_of_a_guided_teacher(guided_project, capsys):
    """Distilled from the guided denoiser, and bit-equal to the plain run with weight 1; pairs are its images, too."""
    for data in (DATA, "same", "guided"):
        assert __main__.main(["distil", f"{data}/sid/none/0"]) == 0
    assert "the teacher is guided by worse with weight 3" in capsys.readouterr().out
    plain, same, guided = (weights(f"{data}/sid/none/0") for data in (DATA, "same", "guided"))
    assert test_distil.same(plain, same) and not test_distil.same(plain, guided)
    start = weights("guided/sid/none/0", "ema-0")
    assert test_distil.same(start, load_tensors(f"data/teachers/{DATA}/teacher.safetensors")[0])
    about = generators.load_generator("data/runs/guided/sid/none/0/generator_ema.safetensors").metadata
    assert about["lineage"]["params"]["guidance"]["weight"] == 3 and about["lineage"]["guide_sha256"]
    text = card.model_card("guided/sid/none/0", about, {}, {})
    assert "the teacher was guided by worse with weight 3" in text and about["lineage"]["guide_sha256"] in text
    assert __main__.main(["distil", "guided/ect/none/0"]) == 0
    assert "warning: this method does not evaluate the teacher" in capsys.readouterr().out
    for name in (DATA, "guided"):
        assert __main__.main(["teacher", f"{name}/pairs-40-0"]) == 0
    arrays = [conftest.np.load(f"data/teachers/{name}/pairs-40-0.npz") for name in (DATA, "guided")]
    assert (arrays[0]["z"] == arrays[1]["z"]).all() and not (arrays[0]["images"] == arrays[1]["images"]).all()
    paths = [f"data/teachers/{name}/teacher.safetensors" for name in (DATA, "worse")]
    teacher, _ = guidance.load_teacher(paths[0], {"weight": 3.0, "guide": "worse"}, paths[1])
    wanted = heun(teacher, torch.from_numpy(arrays[1]["z"]), None, 3).float()
    torch.testing.assert_close(torch.from_numpy(arrays[1]["images"]), wanted, rtol=1e-4, atol=1e-4)
    recorded = json.loads(Path("data/runs/guided/sid/none/0/provenance.json").read_text())
    plan = Plan(params.load_params())
    bill = cost.cost_of_run(plan, plan.params.run("guided/sid/none/0"))
    assert bill["flop"] == pytest.approx(recorded["flop_per_iteration"] * recorded["iterations"], rel=0.03)


def test_a_guide_that_is_not_made_is_asked_for(guided_project, capsys):
    """By its command, as any input; a guide that was trained with other numbers does not count."""
    Path("data/teachers/worse/teacher.safetensors").rename("data/teachers/worse/hidden")
    try:
        assert __main__.main(["distil", "guided/di/none/5"]) == 2
        assert "run `python -m eldistill teacher worse` first" in capsys.readouterr().err
    finally:
        Path("data/teachers/worse/hidden").rename("data/teachers/worse/teacher.safetensors")


def test_samples_of_a_guided_teacher_do_not_depend_on_the_batch(guided_project):
    """Image i depends on the seed and i alone."""
    paths = [f"data/teachers/{name}/teacher.safetensors" for name in (DATA, "worse")]
    teacher, about = guidance.load_teacher(paths[0], {"weight": 2.0, "guide": "worse", "sigma_low": 0.3}, paths[1])
    whole = torch.cat(list(images_of_teacher(teacher, about, 9, 3, seed=4, batch=9)))
    parts = torch.cat(list(images_of_teacher(teacher, about, 9, 3, seed=4, batch=4)))
    assert whole.dtype == torch.uint8 and (whole.int() - parts.int()).abs().max() <= 1
    plain, _ = load_denoiser(paths[0])
    assert not torch.equal(whole, torch.cat(list(images_of_teacher(plain, about, 9, 3, seed=4, batch=9))))


def test_label_dropout_hides_that_share_of_labels(monkeypatch):
    """A hidden label is a row of zeros; each image is asked by itself, and with 0 no label is touched."""
    seen = {}

    def loss(net, x, labels, *rest):
        seen[net] = labels
        return x

    monkeypatch.setattr(train.noise, "denoising_loss", loss)
    batch = Batch(Draw(3, "teacher", 0, 4000), None, (1, 8, 8), Progress(0, 0, 1), conftest.reals(3))
    for share in (0.0, 0.25):
        train.critic_terms({"teacher": share}, batch, None, train.Numbers(-1.2, 1.2, 0.0, share))
    hidden = seen[0.25].sum(dim=1) == 0
    assert (seen[0.0].sum(dim=1) == 1).all() and torch.equal(seen[0.25][~hidden], seen[0.0][~hidden])
    assert float(hidden.double().mean()) == pytest.approx(0.25, abs=0.03)
