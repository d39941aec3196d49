# SPDX-License-Identifier: Apache-2.0
"""Settings that contradict each other are refused when params.yaml is read, in one sentence that names both keys."""

from __future__ import annotations

import random

import pytest

from eldistill import networks
from eldistill.ensemble import members
from eldistill.errors import Problem
from eldistill.methods import consistency
from eldistill.numbers import make_numbers
from eldistill.plan import combinations, embeddings, params, questions, unets
from eldistill.plan.plan import Plan
from eldistill.plan.schema import Wrong
from eldistill.registry import available, literal
from tests.plan.test_params import SHIPPED, changed, load

MINE = {
    "source": "folder",
    "path": "pictures",
    "resolution": 16,
    "heldout": 100,
    "codec": {"mean": 0.5, "std": 0.25},
    "teacher": "mine",
}
TEACHER = {
    "data": "mine",
    "network": {"network": "song", "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1},
}
RATES = {"n_images": 640, "batch": 32}
GRID = {"data": ["mine"], "methods": ["di"], "supplements": ["none", "el"], "seeds": [0]}


def document(*changes: tuple[str, object]) -> dict:
    """The shipped parameters with a data setting, teacher and the only suite `mine`, and then with these changes."""
    numbers = [
        (f"distil/methods/{method}/per_data/mine", dict(RATES)) for method in ("di", "dmd", "dmd2", "sid", "sida", "cd")
    ]
    numbers += [("distil/methods/sida/per_data/mine/group", 32)]
    own = [("data/mine", MINE), ("teacher/mine", TEACHER), *numbers, ("suites", {"mine": [GRID]}), ("suite", "mine")]
    values = SHIPPED
    for path, value in (*own, *changes):
        values = changed(path, value, values)
    return values


def grid(**keys) -> tuple[str, object]:
    return "suites/mine", [GRID | keys]


def studied(kind: str, against: str = "none", more: dict | None = None, **keys) -> list[tuple[str, object]]:
    """The suite `mine` with a study of this kind. more: further keys of the study."""
    return [
        ("tables/studies/asked", {"question": "?", "kind": kind, "against": against, **(more or {})}),
        grid(studies=["asked"], **keys),
    ]


def member(**keys) -> list[tuple[str, object]]:
    """EL with an ensemble of one member."""
    return [("ensemble/own", {"members": [keys]}), ("distil/supplements/el/ensemble", "own")]


# changes, and what the sentence must contain: the place, both keys, what to type
CONTRADICTIONS = {
    # data
    "no codec": (
        [("data/mine/codec", ...)],
        ["data.mine.codec", "missing", "{mean: 0.5, std: 0.25}", "data NAME/images"],
    ),
    "half a codec": ([("data/mine/codec/std", ...)], ["data.mine.codec.std", "missing"]),
    "more held out than digits": (
        [("data/digits/heldout", 1796)],
        ["data.digits.heldout", "1796", "1,797", "at most 1795"],
    ),
    "more held out than test images": (
        [("data/cifar10/heldout", 10001)],
        ["data.cifar10.heldout", "10,000", "at most 10000"],
    ),
    "more held out than counted": (
        [("data/mine/count", "afhqv2"), ("data/mine/heldout", 15803)],
        ["data.mine.heldout", "count: afhqv2", "at most 15801"],
    ),
    "judges without a step": (
        [("data/mine/judges", {"n_images": 32})],
        ["judges.n_images", "32", "judges.batch is 64"],
    ),
    # teachers
    "a network that cannot halve": (
        [("teacher/mine/network/channel_mult", [1, 2, 2, 2, 2, 2])],
        ["teacher.mine.network.channel_mult", "16 pixels", "at most 5", "multiple of 32"],
    ),
    "attention nowhere": ([("teacher/mine/network/attn_resolutions", [4])], ["attn_resolutions", "has 4", "16, 8"]),
    "channels in no groups": (
        [("teacher/mine/network/model_channels", 18)],
        ["model_channels", "18", "groups", "multiple of 32"],
    ),
    "attention in no heads": (
        [("teacher/mine/network", {"network": "adm", "model_channels": 144, "channel_mult": [1]})],
        ["teacher.mine.network.model_channels", "144"],
    ),
    "a classifier as a denoiser": (
        [("teacher/mine/network", {"network": "classifier"})],
        ["teacher.mine.network.network", "judges", "song"],
    ),
    "a text for a width": (
        [("teacher/mine/network/model_channels", "many")],
        ["model_channels", "'many'", "whole number"],
    ),
    "a number for widths": ([("teacher/mine/network/channel_mult", 2)], ["channel_mult", "2", "list of whole numbers"]),
    "augmentation of edm2": (
        [("teacher/mine/network", {"network": "edm2"}), ("teacher/mine/augment", 0.1)],
        ["teacher.mine.augment", "edm2", "set augment to 0"],
    ),
    "a published teacher of another size": (
        [("teacher/mine", {"data": "mine", "source": "edm-ffhq-64x64-uncond-vp"})],
        ["teacher.mine.source", "64 pixels", "data.mine has 16"],
    ),
    "a published teacher without labels": (
        [
            ("data/mine/resolution", 32),
            ("data/mine/labels", True),
            ("teacher/mine", {"data": "mine", "source": "edm-cifar10-32x32-uncond-vp"}),
        ],
        ["teacher.mine.source", "labels: false", "labels: true"],
    ),
    "a published teacher with another codec": (
        [
            ("data/mine/resolution", 32),
            ("data/mine/codec/mean", 0.4),
            ("teacher/mine", {"data": "mine", "source": "edm-cifar10-32x32-uncond-vp"}),
        ],
        ["data.mine.codec", "[-1, 1]", "{mean: 0.5, std: 0.25}"],
    ),
    "two kinds of heads": (
        [
            (
                "teacher/mine",
                {
                    "data": "mine",
                    "file": "a.pt",
                    "state": {"img_resolution": 16, "num_heads": 4, "num_head_channels": 64},
                },
            )
        ],
        ["teacher.mine.state", "num_head_channels", "num_heads"],
    ),
    "a state of another size": (
        [("teacher/mine", {"data": "mine", "file": "a.pt", "state": {"img_resolution": 64}})],
        ["state.img_resolution", "64", "16 pixels"],
    ),
    "a check in an unknown space": (
        [("teacher/mine/check", {"features": "inceptoin"})],
        ["check.features", "did you mean inception?"],
    ),
    "a reference of other features": (
        [("teacher/mine/check", {"features": "judge-a", "reference": "fid-refs-cifar10-32x32"})],
        ["check.reference", "features is judge-a"],
    ),
    "churn from above to below": (
        [("teacher/mine/check", {"churn": {"s_min": 2, "s_max": 1}})],
        ["churn.s_min", "s_max 1"],
    ),
    "a teacher of images of another size": (
        [("data/mine/resolution", 8), ("data/other", {**MINE, "resolution": 32}), ("teacher/mine/data", "other")],
        ["data.mine.teacher", "32 pixels", "data.mine has 8"],
    ),
    "a teacher of other channels": (
        [
            ("data/mine/source", "digits"),
            ("data/mine/path", None),
            ("data/mine/resolution", None),
            ("data/other", {"source": "cifar10", "codec": MINE["codec"], "teacher": "mine"}),
            ("teacher/mine/data", "other"),
        ],
        ["data.mine.teacher", "32 pixels"],
    ),
    # ensembles
    "anchor and redraw": (
        [("ensemble/conv4/anchor", True), ("ensemble/conv4/redraw", 1)],
        ["ensemble.conv4.anchor", "redraw is 1"],
    ),
    "batch norm": (member(family="conv", norm="batch"), ["ensemble.own.members[0].norm", "batch", "group"]),
    "four groups of six": (
        member(family="conv", norm="group", width=6),
        ["members[0].width", "norm is group", "multiple of 4"],
    ),
    "heads of a vit": (member(family="vit", width=10, heads=3), ["members[0].heads", "width is 10"]),
    "layers for larger images": (member(family="conv", depth=5), ["members[0].depth", "data.mine has 16", "at most 4"]),
    "stages for larger images": (
        member(family="resnet", depth=5),
        ["members[0].depth", "data.mine has 16", "at most 4"],
    ),
    "vgg for larger images": (member(family="vgg"), ["members[0].family", "vgg", "16 pixels", "32 or more"]),
    "squares that do not fill": (member(family="identity", mean=3), ["members[0].mean", "divisor"]),
    "landmarks between what can be solved and all images": (
        [
            ("suites/mine", [{"data": ["cifar10"], "methods": ["di"], "supplements": ["el"], "seeds": [0]}]),
            ("ensemble/mix8-32/anchor", True),
            ("ensemble/mix8-32/landmarks", 20000),
        ],
        ["ensemble.mix8-32.landmarks", "20000", "data.cifar10 has 50000", "10000"],
    ),
    # methods
    "group and batch": (
        [("distil/methods/sida/per_data/mine/group", 24), grid(methods=["sida"])],
        ["distil.methods.sida", "group is 24", "batch 32", "divisor"],
    ),
    "low above high": (
        [("distil/methods/dmd/low", 0.99), grid(methods=["dmd"])],
        ["distil.methods.dmd", "low is 0.99", "high 0.98"],
    ),
    "sigmas that rise": (
        [("distil/methods/cd/per_data/mine/sigmas_2", [1, 80]), grid(methods=["cd"])],
        ["sigmas_2", "falling", "sigma_min"],
    ),
    "sigmas from another level": (
        [("distil/methods/cd/per_data/mine/sigma_max", 10), grid(methods=["cd"])],
        ["sigmas_2 starts at 80", "sigma_max is 10"],
    ),
    "lpips without weights": (
        [("distil/methods/cd/distance", "lpips"), grid(methods=["cd"])],
        ["lpips is null", "distance lpips", "huber"],
    ),
    "weights without lpips": (
        [("distil/methods/cd/lpips", "w.safetensors"), grid(methods=["cd"])],
        ["lpips is w.safetensors", "distance huber"],
    ),
    "augmentation that the teacher never saw": (
        [("distil/methods/di/augment", 0.1)],
        ["augment is 0.1", "teacher.mine", "teacher.mine.augment"],
    ),
    "uncertainty of song": (
        [("distil/methods/sid/uncertainty", True), grid(methods=["sid"])],
        ["uncertainty is true", "song", "edm2", "false"],
    ),
    "a start without numbers": (
        [("distil/methods/dmd/start_from", "ect/none"), grid(methods=["dmd"])],
        ["distil.methods.dmd.start_from", "ect", "no numbers", "per_data.mine"],
    ),
    "a start from another level": (
        [("distil/methods/di/start_from", "dmd/none")],
        ["distil.methods.di.start_from", "noise level 80", "sigma_init is 2.5"],
    ),
    # supplements
    "joint without labels": (
        [("distil/supplements/el/labels", "joint")],
        ["distil.supplements.el.labels", "joint", "data.mine.labels is false", "marginal"],
    ),
    "joint with pairs": (
        [("data/mine/labels", True), ("distil/supplements/el/labels", "joint"), ("distil/supplements/el/pairs", 10)],
        ["el.labels", "pairs is 10"],
    ),
    "a start of a fixed weight": (
        [("distil/supplements/el/weighting", "fixed"), ("distil/supplements/el/start_images", 10)],
        ["el.start_images", "weighting is fixed"],
    ),
    "unbiased from one image": ([("distil/methods/di/per_data/mine/batch", 1)], ["el.estimator", "batch is 1"]),
    "anchored without anchor": (
        [("distil/supplements/el/anchored", True)],
        ["el.anchored", "ensemble.conv4.anchor is false"],
    ),
    "anchored and real_ratio": (
        [
            ("ensemble/own", {"like": "conv4", "anchor": True}),
            ("distil/supplements/el/ensemble", "own"),
            ("distil/supplements/el/anchored", True),
            ("distil/supplements/el/real_ratio", 2),
        ],
        ["el.real_ratio", "anchored is true"],
    ),
    "dmd2 and gan": (
        [grid(methods=["dmd2"], supplements=["gan"])],
        ["distil.supplements.gan", "dmd2", "mine/dmd2/gan", "such as dmd"],
    ),
    "gan without a fake_score": (
        [grid(methods=["cd"], supplements=["gan"])],
        ["distil.supplements.gan", "fake_score", "distil.methods.cd"],
    ),
    "two discriminators": (
        [("distil/supplements/gan2", {"like": "gan"}), grid(supplements=["gan+gan2"])],
        ["distil.supplements.gan2", "gan brings one"],
    ),
    # evaluation
    "too few held out for k": ([("data/mine/heldout", 3)], ["data.mine.heldout", "evaluate.neighbours is 3"]),
    "too few images for k": (
        [("evaluate/per_data/mine", {"n": 10, "neighbours": 10})],
        ["evaluate.n on mine", "neighbours is 10"],
    ),
    "too few train images for k": ([("data/mine/limit", 3)], ["data.mine.limit", "neighbours is 3"]),
    "more images than n": (
        [("evaluate/n_of", {"pixels": 6000})],
        ["evaluate.n_of.pixels", "6000", "evaluate.n is 5000"],
    ),
    # other losses in features
    "moments of networks that are redrawn": (
        [
            ("ensemble/own", {"like": "conv4", "redraw": 5}),
            ("distil/supplements/fd/ensemble", "own"),
            grid(supplements=["fd"]),
        ],
        ["distil.supplements.fd.ensemble", "is own", "redraw is 5", "redraw: 0"],
    ),
    "drift without a radius": (
        [("distil/supplements/drift/radii", []), grid(supplements=["drift"])],
        ["distil.supplements.drift.radii", "is []", "above 0"],
    ),
    "drift with a radius of nothing": (
        [("distil/supplements/drift/radii", [0.1, 0]), grid(supplements=["drift"])],
        ["distil.supplements.drift.radii", "[0.1, 0]", "above 0"],
    ),
    "drift of one image": (
        [("distil/methods/di/per_data/mine", {"n_images": 4, "batch": 1}), grid(supplements=["drift"])],
        ["distil.supplements.drift", "needs 2", "batch is 1 on mine"],
    ),
    "a network of fd that is too deep": (
        [
            ("ensemble/own", {"members": [{"family": "conv", "depth": 5}]}),
            ("distil/supplements/fd/ensemble", "own"),
            grid(supplements=["fd"]),
        ],
        ["ensemble.own.members[0].depth", "is 5", "data.mine has 16", "at most 4"],
    ),
    "a network of drift that is too deep": (
        [
            ("ensemble/own", {"members": [{"family": "conv", "depth": 5}]}),
            ("distil/supplements/drift/ensemble", "own"),
            grid(supplements=["drift"]),
        ],
        ["ensemble.own.members[0].depth", "is 5", "data.mine has 16", "at most 4"],
    ),
    # suites and studies
    "a suite that is a path": ([("suites/a%b", [GRID])], ["suites.a%b", "folder"]),
    "a ranking that is not measured": (
        [
            ("data/twin", {"like": "mine"}),
            ("evaluate/per_data/twin", {"features": ["pixels"]}),
            grid(data=["mine", "twin"]),
        ],
        ["evaluate.per_data.twin.features", "judge-a", "add judge-a"],
    ),
    "a ranking without its curve": (
        [("evaluate/per_data/mine", {"curve_features": ["pixels"]})],
        ["evaluate.per_data.mine.curve_features", "judge-a"],
    ),
    "speed without a start": (
        [("distil/snapshots", [50, 100]), *studied("speed")],
        ["distil.snapshots", "has no 0", "speed"],
    ),
    "a curve of speed without its start": (
        [("evaluate/per_data/mine", {"curve_snapshots": [50, 100]}), *studied("speed")],
        ["evaluate.per_data.mine.curve_snapshots", "has no 0", "speed"],
    ),
    "runs without their end": ([("distil/snapshots", [0, 50])], ["distil.snapshots", "has no 100", "suite mine"]),
    "curves without the end of the runs": (
        [("evaluate/per_data/mine", {"curve_snapshots": [0, 50]})],
        ["evaluate.per_data.mine.curve_snapshots", "has no 100", "suite mine"],
    ),
    "one factor twice": (
        [("distil/methods/di-one", {"like": "di", "rate": 1}), *studied("speed", methods=["di", "di-one"])],
        ["tables.studies.asked", "mine/di-one", "factor 1"],
    ),
    "variance of gan": (
        studied("variance", supplements=["gan"]),
        ["tables.studies.asked.kind", "variance", "distil.supplements.gan"],
    ),
    "variance without a fake_score": (
        studied("variance", methods=["cd"]),
        ["variance", "fake_score", "distil.methods.cd"],
    ),
    "seeds without ensembles": (studied("seeds"), ["tables.studies.asked.kind", "NAME-e0", "suites.mine"]),
    "half a table of seeds": (
        studied("seeds", supplements=["el-e0"]),
        ["tables.studies.asked.kind", "el-e*", "1 ensembles"],
    ),
    "nothing to compare": (
        studied("contrast", supplements=["el"]),
        ["tables.studies.asked.against", "none", "suites.mine"],
    ),
    "means over snapshots of a kind without them": (
        studied("budget", more={"last": 3}),
        ["tables.studies.asked.last", "is 3", "budget", "contrast, central, seeds"],
    ),
    "fewer snapshots than a mean needs": (
        [("evaluate/per_data/mine", {"curve_snapshots": [50, 100]}), *studied("contrast", more={"last": 3})],
        ["tables.studies.asked.last", "is 3", "2 snapshots", "distil.snapshots"],
    ),
    "means in a space without curves": (
        [("evaluate/per_data/mine", {"curve_features": ["pixels"]}), *studied("contrast", more={"last": 3})],
        ["evaluate.per_data.mine.curve_features", "judge-a"],
    ),
    "means of different numbers of images": (
        [
            ("data/twin", {"like": "mine"}),
            ("evaluate/per_data/twin", {"curve_n": 500}),
            *studied("central", data=["mine", "twin"], more={"last": 2}),
        ],
        ["evaluate.per_data.twin.curve_n", "500", "tables.studies.asked"],
    ),
    "two rankings of one set": (
        [
            ("data/twin", {"like": "mine"}),
            ("evaluate/per_data/twin", {"features": ["pixels", "judge-a"]}),
            *studied("contrast", data=["mine", "twin"]),
        ],
        ["evaluate.per_data.twin.features", "mine", "tables.studies.asked"],
    ),
    # seeds
    "a seed above torch's": ([grid(seeds=[2**63])], ["suites.mine[0].seeds[0]", str(2**63), str(2**63 - 1)]),
    "a seed of the teacher": ([("teacher/mine/seed", 10**30)], ["teacher.mine.seed", str(2**63 - 1)]),
    **{
        f"a seed of the ensemble of {name}": (
            [(f"distil/supplements/{name}/ensemble_seed", 2**63)],
            [f"{name}.ensemble_seed", str(2**63 - 1)],
        )
        for name in ("el", "fd", "drift")
    },
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_one_sentence_that_names_both_keys(case):
    changes, words = CONTRADICTIONS[case]
    with pytest.raises(Problem) as caught:
        questions.check_suite(load(document(*changes)), "mine")
    text = str(caught.value)
    assert "\n" not in text and text.split(":")[0] in (
        "params.yaml",
        "workflow/params/ablation.yaml",
        "workflow/params/colour.yaml",
        "workflow/params/paper.yaml",
    )
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


def test_what_these_contradict_is_accepted_and_so_is_every_shipped_suite():
    questions.check_suite(load(document()), "mine")
    project = load(SHIPPED)
    assert set(
        "demo demo-long bench bench-recent smoke gpu-day paper ablation speed speed-others speed-recent".split()
    ) <= set(SHIPPED["suites"])
    for suite in SHIPPED["suites"]:
        questions.check_suite(project, suite)


def test_settings_of_one_suite_do_not_stop_another():
    """EL with labels contradicts the unlabelled digits of the demo, and is right for labelled images."""
    values = changed("distil/supplements/el/labels", "joint", document(("data/mine/labels", True)))
    values["suites"]["demo"] = SHIPPED["suites"]["demo"]
    project = load(values)
    questions.check_suite(project, "mine")
    with pytest.raises(Problem, match="el.labels is joint, but data.digits.labels is false"):
        questions.check_suite(project, "demo")


def test_a_run_of_the_command_line_is_checked_like_one_of_a_suite():
    plan = Plan(load(SHIPPED))
    for word in ("distil", "evaluate"):
        with pytest.raises(Problem, match="brings one already"):
            plan.find(word, "digits/dmd2/gan/0")
    with pytest.raises(Problem, match="seed above"):
        plan.find("distil", f"digits/di/el/{2**63}")


# --- the modules that compute say the same ------------------------------------------------------------


def refused(check, *kinds) -> bool:
    try:
        check()
    except kinds:
        return True
    return False


@pytest.mark.parametrize("seed", range(4))
def test_a_network_is_refused_if_and_only_if_it_cannot_be_built(seed):
    draw, found = random.Random(seed), []
    for _ in range(12):
        file, side = draw.choice(["song", "adm", "edm2"]), draw.choice([4, 8, 12, 24, 28, 32])
        mult = [draw.choice([1, 1, 2, 3]) for _ in range(draw.randint(1, 4))]
        network = {"network": file, "model_channels": draw.choice([2, 4, 6, 18, 20, 32, 48, 72, 96, 144]), "channel_mult": mult,
                   "num_blocks": draw.randint(1, 2)}  # fmt: skip
        sides = [side >> level for level in range(len(mult))]
        if draw.random() < 0.5:
            network["attn_resolutions"] = [each for each in sides if draw.random() < 0.5]
        built = {**network, "img_resolution": side, "img_channels": 3}
        here = refused(lambda n=network, s=side: unets.check_network("teacher.mine.network", n, s), Wrong)
        assert here == refused(lambda b=built: networks.outline(b), ValueError), network
        found.append(here)
    assert {True, False} == set(found)


FAMILIES = sorted(set(available("ensemble")) - {"teacher"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_member_is_refused_if_and_only_if_it_cannot_be_drawn(family):
    draw = random.Random(family)
    keys = {"width": [2, 4, 6, 8], "depth": [1, 2, 3, 4, 5], "norm": ["none", "group", "instance", "batch"], "heads": [1, 2, 3],
            "mean": [1, 2, 3]}  # fmt: skip
    known = params.declared("ensemble", family)
    for _ in range(25):
        side = draw.choice([4, 7, 8, 12, 16, 32])
        chosen = {key: draw.choice(values) for key, values in keys.items() if key in known}
        section = load_ensemble({"members": [{"family": family, **chosen}]})

        def early(section=section, side=side):
            embeddings.check_ensemble("ensemble.own", section)
            embeddings.check_members("ensemble.own", section, side, "data.mine")

        def late(section=section, side=side):
            members.draw_members(section, 0, 0, (3, side, side))

        assert refused(early, Wrong) == refused(late, Problem), (side, chosen)


def load_ensemble(section: dict) -> dict:
    from eldistill.plan.ensembles import ensemble_section

    values = ensemble_section({"members": [{"family": section["members"][0]["family"]}]})
    values["members"][0] |= section["members"][0]
    return values


def test_numbers_of_consistency_are_refused_if_and_only_if_their_module_refuses_them():
    draw, defaults = (
        random.Random(0),
        {key: each["default"] for key, each in params.declared("methods", "consistency").items()},
    )
    found = []
    for _ in range(100):
        chosen = {"sigma_min": draw.choice([0.002, 0.9, 80]), "sigma_max": draw.choice([80.0, 10.0]), "first": draw.choice([2, 10]),
                  "last": draw.choice([4, 150]), "sigmas_2": draw.choice([[80.0, 0.821], [10.0, 0.8], [0.8, 80.0], [80.0]])}  # fmt: skip
        if chosen["sigma_max"] == 10.0:
            chosen["sigmas_4"] = [10.0, 3.0, 1.0, 0.95]
        numbers = defaults | chosen
        here = refused(lambda n=numbers: combinations._consistency("m", n, "mine", MINE), Wrong)
        assert here == refused(lambda n=numbers: make_numbers(consistency, n), Problem), chosen
        found.append(here)
    assert {True, False} == set(found)


def test_which_methods_have_a_discriminator_or_no_fake_score_is_what_their_files_do():
    from eldistill import contract
    from tests import conftest

    for file in available("methods"):
        method = contract.load_method(file)
        numbers = method.Numbers()
        nets = method.networks(conftest.teacher(), numbers, 0)
        assert ("fake_score" not in nets) == (not combinations.trains_fake_score({"file": file})), file
        head = getattr(nets.get("fake_score"), "head", None)
        assert (head is not None) == combinations.has_discriminator(f"methods/{file}"), file


def test_the_limits_are_those_of_the_modules():
    assert embeddings.PATCHES == literal("ensemble/vit", "PATCHES")
