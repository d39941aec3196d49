# SPDX-License-Identifier: Apache-2.0
"""Settings that would be ignored, or make results wrong without a word, are refused; so are those that would end in a traceback."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from eldistill.data.images import split_heldout
from eldistill.errors import Problem, nearest
from eldistill.plan import conflicts, params, questions, schema, unets
from eldistill.registry import readers
from tests.conftest import ROOT
from tests.plan.test_combinations import MINE, RATES, TEACHER, document, grid
from tests.plan.test_params import SHIPPED, load

SECOND = [("data/other", MINE | {"teacher": "mine"}), ("distil/methods/di/per_data/other", dict(RATES))]
LATENTS = {
    "source": "latents", "path": "latents", "heldout": 100, "codec": {"mean": [0.0] * 4, "std": [1.0] * 4},
    "teacher": "latent", "pixels": "mine",
}  # fmt: skip
IN_LATENTS = [
    ("data/latent", LATENTS), ("teacher/latent", TEACHER | {"data": "latent"}), ("distil/methods/di/per_data/latent", dict(RATES)),
]  # fmt: skip
REFUSED = {
    "like in a block": ([("distil/methods/di/per_data/mine/like", "dmd")], ["per_data.mine.like has no effect", "move it to"]),
    "a block in a block": ([("distil/supplements/el/per_data", {"mine": {"per_data": {}}})], ["el.per_data.mine.per_data has no effect"]),
    "a block in a block of evaluate": ([("evaluate/per_data/mine", {"per_data": {}})], ["evaluate.per_data.mine.per_data"]),
    "data settings of one name": ([("data/Mine", MINE)], ["data.Mine differs from mine only in capitals"]),
    "supplements of one name": ([("distil/supplements/EL", {"like": "el"})], ["EL differs from el", "rename"]),
    "suites of one name": ([("suites/MINE", [grid()[1][0]])], ["suites.MINE differs from mine"]),
    "more held out than the teacher": (
        [*SECOND, ("data/other/heldout", 130), grid(data=["mine", "other"])],
        ["data.other.heldout is 130", "holds out 100", "has seen 30 of them", "a teacher of its own"],
    ),
    "more pixels held out than latents": (
        [*IN_LATENTS, ("data/latent/heldout", 90), grid(data=["latent"])],
        ["data.mine.heldout is 100", "data.latent", "90", "same number"],
    ),
    "one arm in two orders": (
        [grid(supplements=["el+pixel-mmd", "none", "pixel-mmd+el"])],
        ["el+pixel-mmd and pixel-mmd+el", "the same in another order"],
    ),
    "no module": ([("distil/methods/new", {"P_mean": 1})], ["distil.methods.new.file is missing", "diff_instruct", "a `like`"]),
    "no module of a supplement": ([("distil/supplements/new", {"weight": 1})], ["new.file is missing", "embedding"]),
    "an empty path": ([("data/mine/path", "")], ["data.mine.path is ''", "a folder or zip"]),
    "a blank path": ([("teacher/mine/file", "  ")], ["teacher.mine.file is '  '"]),
    "a baseline with its method": ([("tables/baseline", "di/none")], ["is 'di/none'", "without its method"]),
    "a seed twice": ([grid(seeds=[0, 0])], ["seeds is [0, 0]", "each of them once"]),
    "one of two decay rates": ([("teacher/mine/optimiser", {"betas": [0.9]})], ["is [0.9]", "a list of 2 "]),
    "another capital": ([grid(methods=["DI"])], ["did you mean di?"]),
    "more blocks than a network has": ([("teacher/mine/network/num_blocks", 10**6)], ["is 1000000; expected at most 64"]),
    "channels without end": ([("teacher/mine/network/model_channels", 2**30)], ["expected at most 8192"]),
    "a filter of one tap": ([("teacher/mine/network/resample_filter", [1])], ["is [1]; expected an even number"]),
    "a filter of no tap": ([("teacher/mine/network/resample_filter", [])], ["is []; expected an even number"]),
    "a filter whose sum is 0": ([("teacher/mine/network/resample_filter", [1, -1])], ["sum is not 0"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_go_wrong_without_a_word_is_refused(name):
    changes, words = REFUSED[name]
    with pytest.raises(Problem) as error:
        questions.check_suite(load(document(*changes)), "mine")
    text = str(error.value)
    assert all(word in text for word in words) and "\n" not in text, text


@pytest.mark.parametrize(
    "changes",
    [
        [*SECOND, ("data/other/heldout", 90), grid(data=["mine", "other"])],  # the teacher has seen none of them
        [*SECOND, ("data/other/path", "others"), ("data/other/heldout", 130), grid(data=["other"])],  # other images
        [*IN_LATENTS, ("data/latent/heldout", 110), grid(data=["latent"])],
        [grid(supplements=["el+pixel-mmd", "el", "pixel-mmd"])],
        [("distil/methods/di/per_data/mine/file", "diff_instruct")],
        [("teacher/mine/network/resample_filter", [1, 3, 3, 1])],
    ],
)
def test_what_is_right_is_not_refused(changes):
    questions.check_suite(load(document(*changes)), "mine")


@pytest.mark.parametrize(("fewer", "more"), [(2, 3), (20, 50)])
def test_the_smaller_held_out_part_is_in_the_larger_one(fewer, more):
    """What `check_heldout` relies on."""
    assert set(split_heldout(100, fewer)[1]) < set(split_heldout(100, more)[1])


def test_sources_with_a_test_part_read_it():
    for name in readers():
        text = (ROOT / f"src/eldistill/data/readers/{name}.py").read_text()
        assert ("first_of_test" in text) == (name in conflicts.sizes.OWN_TEST)


def test_the_limits_of_a_network_are_those_of_its_settings():
    for key, most in unets.MOST.items():
        assert all(most >= 8 * default for name in ("song", "adm", "edm2") if (default := _default(name, key)))


def _default(network: str, key: str) -> int | None:
    return unets.setting_fields(network).get(key, (None, None))[1]


def test_only_capitals_make_the_nearest_name():
    """For every name of every section: in other capitals it is proposed, and as itself it is not."""
    for name in itertools.chain(SHIPPED["data"], SHIPPED["distil"]["supplements"], SHIPPED["suites"]):
        there = [*SHIPPED["data"], *SHIPPED["distil"]["supplements"], *SHIPPED["suites"]]
        assert nearest(name.upper(), there) == f"; did you mean {name}?" and f" {name}?" not in nearest(name, there)


def test_a_list_says_how_many_values_it_takes():
    def said(**keys) -> str:
        return schema.expected_value({"type": "array", **keys})

    assert (
        said() == "a list"
        and said(minItems=2) == "a list of at least 2"
        and said(minItems=2, maxItems=2) == "a list of 2"
    )
    assert (
        said(maxItems=4) == "a list of at most 4"
        and said(minItems=1, maxItems=4) == "a list of at least 1 and at most 4"
    )
    assert said(uniqueItems=True) == "a list, each of them once"


def test_a_zero_byte_is_refused_wherever_it_is_written(project):
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("data:\n", 'data:\n  mine: {source: folder, path: "a\\0b"}\n', 1))
    with pytest.raises(Problem, match=r"data\.mine\.path holds a zero byte"):
        params.load_params()


@pytest.mark.parametrize("seed", ["²", "x", "-1", "1.0", "", "٣٤", "00"])
def test_a_seed_on_the_command_line_is_a_number_or_one_sentence(seed):
    """`²` is a digit to Python's isdigit(), and no number to int()."""
    project = load(document())
    if seed.isdecimal():
        assert project.run(f"mine/di/none/{seed}").seed == int(seed)
    else:
        with pytest.raises(Problem, match="is not a run"):
            project.run(f"mine/di/none/{seed}")


def test_no_module_asks_isdigit_before_int():
    assert not [path for path in (ROOT / "src").rglob("*.py") if ".isdigit()" in path.read_text()]
