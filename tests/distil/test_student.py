# SPDX-License-Identifier: Apache-2.0
"""Generators of another size than their teacher: the rule by which they start, and whole runs with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eldistill import __main__, networks
from eldistill.commands import card, cost, export
from eldistill.diffusion.draws import stream_seed
from eldistill.distil import student
from eldistill.errors import Problem, Stopped
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.registry import available, literal
from eldistill.sampling import generators
from eldistill.tensors import load_tensors
from eldistill.training import loop
from tests import conftest, test_resume
from tests.distil import test_distil

made, project = test_distil.made, test_distil.project  # the fixtures
DATA, SIGMA = test_distil.DATA, 2.5
METHODS = [file for file in available("methods") if literal(f"methods/{file}", "OTHER_SIZE", False)]
SIZES = {
    "narrower": {"model_channels": 4, "channel_mult": [1]},
    "wider": {"model_channels": 16},
    "deeper": {"num_blocks": 3},
    "shallower": {"num_blocks": 1},
    "another width of one level": {"channel_mult": [1, 1]},
}


def teacher_of(network: str, labels: int = 0, **changes) -> torch.nn.Module:
    """A frozen network with two resolutions, whose weights are away from their start."""
    config = {"network": network, "img_resolution": 8, "img_channels": 1, "label_dim": labels, "model_channels": 8,
              "channel_mult": [1, 2], "num_blocks": 2, "attn_resolutions": [4], "dropout": 0.0, **changes}  # fmt: skip
    return conftest.perturb(networks.build(config, 3), 0.1, 4).requires_grad_(False).eval()


def distance(a, b, labels: int = 0, n: int = 64) -> float:
    """Mean squared distance of the denoised images of pure noise that no fit has seen."""
    z = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    given = torch.nn.functional.one_hot(torch.arange(n) % labels, labels).float() if labels else None
    sigma = torch.full((n,), SIGMA)
    with torch.no_grad():
        return float((a(SIGMA * z, sigma, given) - b(SIGMA * z, sigma, given)).square().mean())


# --- channels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("new", "old"), [(4, 8), (8, 8), (16, 8), (6, 8), (12, 8)])
def test_evenly_spaced_channels_keep_what_belongs_together(new, old):
    """The order; both parts of a join of equal parts; queries, keys and values; and all of the teacher's, if there is room."""
    found = student.spaced(new, old)
    assert torch.equal(found, found.sort().values) and found[0] == 0 and found[-1] < old
    assert len(found.unique()) == min(new, old)
    joined = student.spaced(2 * new, 2 * old)
    assert torch.equal(joined, torch.cat([found, old + found]))
    triples = student.spaced(3 * new, 3 * old, 3)
    assert torch.equal(triples.reshape(new, 3), 3 * found[:, None] + torch.arange(3))
    if new == old:
        assert torch.equal(found, torch.arange(old))


@pytest.mark.parametrize("wider", [12, 16, 24])
def test_repeated_channels_leave_sums_as_they_were(wider):
    """A layer that sees repeated channels returns what the teacher's returns, and weighs the repetitions differently."""
    weight, x = torch.randn(5, 8, 3, 3), torch.randn(2, 8, 6, 6)
    random = torch.Generator().manual_seed(0)
    found = student.fit_shape(weight, torch.Size([5, wider, 3, 3]), "conv0.weight", random)
    seen = x[:, student.spaced(wider, 8)]
    wanted = torch.nn.functional.conv2d(x, weight)
    torch.testing.assert_close(torch.nn.functional.conv2d(seen, found), wanted, rtol=1e-4, atol=1e-4)
    repeated = student.spaced(wider, 8)
    first, second = (repeated == repeated[0]).nonzero().flatten()[:2]
    assert not torch.allclose(found[:, first], found[:, second], rtol=0.01)


def test_fewer_channels_keep_the_variance_of_what_a_layer_computes():
    """Of independent inputs, over many layers."""
    weight, x = torch.randn(2000, 64), torch.randn(500, 64)
    found = student.fit_shape(weight, torch.Size([2000, 16]), "affine.weight", torch.Generator())
    seen = x[:, student.spaced(16, 64)]
    assert float((seen @ found.T).std()) == pytest.approx(float((x @ weight.T).std()), rel=0.05)


def test_what_channels_cannot_explain_is_drawn():
    """Another kernel, or another number of dimensions."""
    random = torch.Generator()
    assert student.fit_shape(torch.zeros(4, 4, 3, 3), torch.Size([4, 4, 1, 1]), "a", random) is None
    assert student.fit_shape(torch.zeros(4), torch.Size([4, 4]), "a", random) is None


# --- the start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("network", ["song", "adm", "edm2"])
@pytest.mark.parametrize("case", SIZES)
def test_a_student_starts_nearer_to_the_teacher_than_the_constructor_does(case, network, labels):
    """On noise that the fit has not seen; every weight is finite, the sizes are those that were asked for."""
    teacher = teacher_of(network, labels)
    made = student.resize(teacher, SIZES[case], 0, SIGMA)
    plain = networks.build({**teacher.config, **SIZES[case]}, stream_seed(0, "initialisation/generator")).eval()
    assert {key: made.config[key] for key in SIZES[case]} == SIZES[case]
    assert made.config == plain.config and made.state_dict().keys() == plain.state_dict().keys()
    assert all(each.isfinite().all() for each in made.state_dict().values())
    assert distance(made, teacher, labels) < 0.8 * distance(plain, teacher, labels)


def test_what_a_teacher_has_counts_beside_the_fit():
    """Random features with a fitted last layer are further away, of a student that is wider."""
    teacher = teacher_of("song")
    made = student.resize(teacher, SIZES["wider"], 0, SIGMA)
    drawn = networks.build({**teacher.config, **SIZES["wider"]}, 1).eval()
    student.fit_last_layer(drawn, teacher, 0, SIGMA)
    assert distance(made, teacher) < 0.8 * distance(drawn, teacher)


@pytest.mark.parametrize("network", ["song", "adm"])
def test_the_last_layer_is_a_least_squares_solution(network):
    """Of the noise that it is fitted on no other last layer comes nearer."""
    teacher = teacher_of(network)
    made = student.resize(teacher, SIZES["narrower"], 0, SIGMA)
    given = student._noise(made, student.Draw(0, "student", 0, student.IMAGES), SIGMA)
    wanted = student.last_layer(teacher, *given).output
    layer, best = (
        student.last_layer(made, *given).layer,
        float((student.last_layer(made, *given).output - wanted).square().sum()),
    )
    kept = layer.weight.clone()
    for seed in range(5):
        conftest.torch.manual_seed(seed)
        layer.weight.copy_(kept + 0.02 * kept.std() * torch.randn_like(kept))
        assert float((student.last_layer(made, *given).output - wanted).square().sum()) > best


def test_equal_sizes_are_the_teacher_itself():
    teacher = teacher_of("song")
    for sizes in (None, {}, {"model_channels": 8}, {"channel_mult": [1, 2], "num_blocks": 2}):
        assert student.resize(teacher, sizes, 0, SIGMA) is teacher


def test_the_seed_decides_every_bit():
    """And global random numbers are neither read nor changed."""
    teacher, before = teacher_of("song"), torch.get_rng_state()
    a, b, c = (student.resize(teacher, SIZES["wider"], seed, SIGMA).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[key], b[key]) for key in a) and any(not torch.equal(a[key], c[key]) for key in a)
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_that_cannot_be_built_is_one_sentence():
    with pytest.raises(
        Problem, match=r"generator_network is .* no network song can be built .*; change it, or set it to null"
    ):
        student.resize(teacher_of("song"), {"channel_mult": [1, 1, 1, 1, 1]}, 0, SIGMA)


# --- training -------------------------------------------------------------------------------------------


WIDER = {"model_channels": 8}  # than the teachers of Bench, which have 4 channels


@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_says_so_trains_a_student_of_another_size(bench, method, labels):
    """Its average has the student's shapes; all other networks those of the teacher. A method alone needs a supplement."""
    supplements = {"embedding": {"weighting": "fixed"}} if method == "alone" else {"embedding": {}}
    work = loop.Loop(bench.job(method, supplements, labels=labels, steps=6, batch=4, sizes=WIDER))
    before = [each.clone() for each in work.average.parameters()]
    average = work.run()
    assert average.config["model_channels"] == 8
    assert any(not torch.equal(a, b) for a, b in zip(average.parameters(), before, strict=True))
    assert all(each.isfinite().all() for each in average.parameters())
    fake = work.nets.get("fake_score")
    assert fake is None or fake.config["model_channels"] == 4


def test_a_stopped_run_continues_bit_for_bit(bench):
    """The start is made again from the seed and replaced by the saved state."""
    whole = test_resume.Ending(test_resume.job_of(bench, "whole", {}, sizes=WIDER), after=99)
    whole.run()
    with pytest.raises(Stopped):
        test_resume.Ending(test_resume.job_of(bench, "parts", {}, sizes=WIDER), after=3).run()
    rest = loop.Loop(test_resume.job_of(bench, "parts", {}, sizes=WIDER))
    rest.run()
    test_resume.assert_equal(rest, whole)


# --- parameters -----------------------------------------------------------------------------------------


def plan_of(method: str = "di", sizes=None, **others) -> Plan:
    values = conftest.shipped()
    values["distil"]["methods"]["small"] = {"like": method, "generator_network": sizes, **others}
    values["suites"]["tried"] = [{"data": ["digits"], "methods": ["small"], "supplements": ["none"], "seeds": [0]}]
    return Plan(params.from_values(values, conftest.ROOT))


def test_only_a_student_of_another_size_is_in_a_recipe():
    """With null the recipe is that of the method, but for its name; with sizes it has them and the version of the rule."""
    method, none, small = (
        json.loads(plan.find("distil", f"digits/{name}/none/0").recipe)
        for plan, name in ((plan_of(), "di"), (plan_of(), "small"), (plan_of(sizes={"model_channels": 8}), "small"))
    )
    assert none["params"] == method["params"] and none["versions"] == method["versions"]
    assert small["params"]["method"]["generator_network"] == {"model_channels": 8}
    assert small["versions"].keys() - none["versions"].keys() == {"student"}


@pytest.mark.parametrize(
    ("method", "sizes", "others", "words"),
    [
        ("cd", {"model_channels": 8}, {}, "the method consistency needs a generator of the teacher's size; set it to null, or"),
        ("di", {"model_chanels": 8}, {}, "did you mean model_channels?"),
        ("di", {"dropout": 0.1}, {}, "which is no size of the teacher's network"),
        ("di", {"img_resolution": 16}, {}, "which is no size of the teacher's network"),
        ("di", {"channel_mult": [1, 1, 1, 1, 1, 1]}, {}, "halve the image 5 times"),
        ("di", {"model_channels": "8"}, {}, "is '8'; expected a whole number"),
        ("di", 8, {}, "is 8; expected a mapping or null"),
        ("sida", {"model_channels": 8}, {"start_from": "sid/none"}, "make them equal"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused_in_one_sentence(method, sizes, others, words):
    with pytest.raises(Problem) as error:
        plan_of(method, sizes, **others).find("distil", "digits/small/none/0")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_smaller_student_costs_less():
    """Its own passes alone: those of teacher and fake_score stay. Its memory and its files shrink too."""
    plain, small = (plan_of(sizes=sizes) for sizes in (None, {"model_channels": 8}))
    run = "digits/small/none/0"
    a, b = (cost.cost_of_run(plan, plan.params.run(run)) for plan in (plain, small))
    config = cost.network_of(plain, "digits")
    (large, _, many), (less, _, few) = cost.operations(config), cost.operations(config | {"model_channels": 8})
    assert a["flop"] - b["flop"] == pytest.approx(4 * a["images"] * (large - less))
    assert b["disk"] == pytest.approx(a["disk"] * few / many)
    assert b["weights"] == pytest.approx(a["weights"] - 5 * 4e-9 * (many - few))


# --- whole runs -----------------------------------------------------------------------------------------


def test_a_run_its_files_its_card_and_its_export(project, capsys, monkeypatch):
    """There and back: the exported folder makes images with the student's network; cost is what the loop counts."""
    test_distil.change("di", generator_network={"model_channels": 8})
    generator = test_distil.run("di/none/7")
    assert generator.network.config["model_channels"] == 8
    teacher, about = load_tensors(f"data/teachers/{DATA}/teacher.safetensors")
    start = test_distil.weights("di/none/7", "ema-0")
    assert start.keys() == teacher.keys() and any(start[key].shape != teacher[key].shape for key in start)
    images = generators.sample(generator, 8, seed=3)
    assert images.shape == (8, 1, 8, 8) and images.float().std() > 0
    recorded = json.loads(Path(f"data/runs/{DATA}/di/none/7/provenance.json").read_text())
    plan = Plan(params.load_params())
    bill = cost.cost_of_run(plan, plan.params.run(f"{DATA}/di/none/7"))
    assert bill["flop"] == pytest.approx(recorded["flop_per_iteration"] * recorded["iterations"], rel=0.03)
    text = card.model_card(f"{DATA}/di/none/7", generator.metadata, {}, about)
    assert "* **Network**: model_channels: 8; the teacher has model_channels: 16" in text
    folder = export.export_run(f"{DATA}/di/none/7", Path("exported"))
    assert json.loads((folder / "config.json").read_text())["config"]["model_channels"] == 8
    done = test_distil.subprocess.run(
        [test_distil.__main__.sys.executable, "load.py", "4", "images.pt"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert torch.load(folder / "images.pt").shape == (4, 1, 8, 8)


def test_a_run_that_starts_from_one_of_its_size(project, capsys):
    """SiD²A of a small SiD; both say the same sizes, and the files of before are refused if they are of another size."""
    for method in ("sid", "sid2a"):
        test_distil.change(method, generator_network={"num_blocks": 2})
    test_distil.run("sid/none/7")
    assert test_distil.run("sid2a/none/7").network.config["num_blocks"] == 2
    assert test_distil.same(test_distil.weights("sid2a/none/7", "ema-0"), test_distil.weights("sid/none/7"))
    assert __main__.main(["distil", f"{DATA}/sid2a/none/7"]) == 0
