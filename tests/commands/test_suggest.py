# SPDX-License-Identifier: Apache-2.0
"""A start for data of one's own: numbers of every method, put into params.yaml without touching another line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from eldistill import __main__
from eldistill.commands import suggest
from eldistill.errors import Problem
from eldistill.plan import insertion, params, questions, reading
from eldistill.plan.plan import Plan
from tests.conftest import ROOT

DATA = """  mine: {source: folder, path: mine.zip, resolution: %d, heldout: 100, codec: {mean: 0.5, std: 0.25}, teacher: mine}
"""
TEACHER = """  mine: {data: mine, network: {network: song, model_channels: 16, channel_mult: [1, 1], num_blocks: 1, attn_resolutions: []}}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A function that makes a project folder with a data setting `mine` of so many pixels a side, and goes there."""

    def make(side: int) -> Path:
        for name in (*reading.FILES, "workflow/schemas/params.schema.yaml"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
        text = (tmp_path / "params.yaml").read_text(encoding="utf-8")
        text = text.replace("\nteacher:\n", "\n" + DATA % side + "\nteacher:\n" + TEACHER)
        (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make


BASES = {"di", "dmd", "dmd-unpaired", "dmd2", "sid", "sida", "sid2a", "cd", "ct", "ict", "ect"} | {
    "sim",
    "f-distill",
    "uni-instruct",
    "scd",
    "mean-flow",
    "tcm",
    "tcm-ect",
}


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64, 256])
def test_every_method_gets_numbers_that_can_be_planned(project, side, capsys):
    """Written by its command, checked as every other number, the other lines as they were; then a run of each is planned."""
    root = project(side)
    before = (root / "params.yaml").read_text(encoding="utf-8")
    assert __main__.main(["suggest", "mine", "--write"]) == 0
    after = (root / "params.yaml").read_text(encoding="utf-8")
    kept = iter(after.splitlines())
    assert all(line in kept for line in before.splitlines())  # each, in its order
    found = params.load_params()
    plan = Plan(found)
    for method in BASES:
        values = found.section("method", method, "mine")
        assert values["batch"] <= suggest.BATCH and values["n_images"] % values["batch"] == 0
        assert found.status("method", method, "mine") == "ours"
        own = reading.read_file(root / "params.yaml")["distil"]["methods"].get(method, {}).get("per_data", {})
        assert "rates" not in own.get("mine", {})
        questions.check_run(found, found.run(f"mine/{method}/none/0"))
        assert "mine" in plan.distil(found.run(f"mine/{method}/none/0")).name
    assert "untuned" in capsys.readouterr().out
    assert __main__.main(["suggest", "mine", "--write"]) == 0
    assert "every method has numbers for the data mine already" in capsys.readouterr().out
    assert (root / "params.yaml").read_text(encoding="utf-8") == after


@pytest.mark.parametrize("chosen", ["demo", "mine"])
def test_a_suite_may_ask_for_it_before(project, capsys, chosen):
    """Other commands say what to type; this one does not ask for the numbers that it is to give. chosen: `suite` of params.yaml,
    which may have no other grid than the one that asks."""
    root = project(32)
    text = (root / "params.yaml").read_text(encoding="utf-8").replace("suite: demo", f"suite: {chosen}", 1)
    suite = "  mine: [{data: [mine], methods: [di, sid], supplements: [none], seeds: [0]}]\n"
    (root / "params.yaml").write_text(text.replace("\nsuites:\n", "\nsuites:\n" + suite), encoding="utf-8")
    assert __main__.main(["plan", "mine"]) == 2
    assert "python -m eldistill suggest mine" in capsys.readouterr().err
    assert __main__.main(["suggest", "mine", "--write"]) == 0
    assert {run.method for run in params.load_params().runs("mine")} == {"di", "sid"}


def test_what_is_printed_is_what_is_written(project, capsys):
    """As YAML, under the same keys; nothing is written."""
    root = project(32)
    before = (root / "params.yaml").read_bytes()
    assert __main__.main(["suggest", "mine"]) == 0
    printed = reading.read_yaml(capsys.readouterr().out)["distil"]["methods"]
    assert (root / "params.yaml").read_bytes() == before
    assert __main__.main(["suggest", "mine", "--write"]) == 0
    written = reading.read_file(root / "params.yaml")["distil"]["methods"]
    assert {name: each["per_data"]["mine"] for name, each in printed.items()} == {
        name: written[name]["per_data"]["mine"] for name in printed
    }


def test_a_chain_that_continues_a_run_of_its_own_method_is_not_suggested(project):
    """`suggest` starts methods; what starts from a run of the method that it is like has nothing to start from."""
    project(32)
    methods = params.load_params().named("method")
    continued = {n for n, each in methods.items() if str(each.get("start_from")).split("/")[0] == each.get("like")}
    found = {each.method for each in suggest.suggest(suggest._loaded("mine"), "mine")}
    assert continued and not continued & found and "sid2a" in found


def test_the_nearest_images_are_the_model():
    """By size, and of two alike the one whose numbers are the authors'; a variant without rates of its own needs none."""
    found = params.load_params(ROOT / "params.yaml")
    values = found.values | {"data": found.values["data"] | {"mine": dict(found.values["data"]["ffhq64"])}}
    for side, model in ((10, "digits"), (24, "cifar10"), (40, "cifar10"), (100, "ffhq64")):
        values["data"]["mine"] |= {"resolution": side, "path": "mine"}
        project = params.from_values(values, ROOT)
        made = {each.method: each for each in suggest.suggest(project, "mine")}
        assert made["sid"].model == model and "di-day" not in made and "ect-quick" not in made


def test_a_shorter_run_is_the_long_one_in_small():
    """Rates by the root of the batch, stages by the length, an average that is ramped; a run that is short already stays."""
    long = {"status": "authors", "n_images": 8192000, "batch": 1024, "dropout": 0.1, "alpha": 1.2, "freeze_images": 102400,
            "group": 384, "generator": {"lr": 4e-5, "warmup_images": 81920}, "ema": {"policy": "constant", "beta": 0.9}}  # fmt: skip
    assert suggest.adapt_numbers(long, 512000) == {
        "status": "ours", "n_images": 512000, "batch": 256, "alpha": 1.2, "freeze_images": 6400, "group": 128,
        "generator": {"lr": 2e-5, "warmup_images": 5120}, "ema": {"policy": "ramped", "halflife_images": 51200, "ramp": 0.05},
    }  # fmt: skip
    short = {"n_images": 10240, "batch": 64, "generator": {"lr": 1e-3}, "ema": {"policy": "constant", "beta": 0.97}}
    assert suggest.adapt_numbers(short, None) == {"status": "ours"} | short
    assert suggest.adapt_numbers(short, 5000)["n_images"] == 4992


@pytest.mark.parametrize(
    "name, resolution, sentence",
    [("nobody", 32, "data on the command line is 'nobody'"), ("mine", "null", "does not say how large its images are")],
)
def test_one_sentence(project, name, resolution, sentence, capsys):
    root = project(32)
    text = (
        (root / "params.yaml")
        .read_text(encoding="utf-8")
        .replace("resolution: 32, heldout: 100", f"resolution: {resolution}, heldout: 100")
    )
    (root / "params.yaml").write_text(text, encoding="utf-8")
    assert __main__.main(["suggest", name]) == 2
    assert sentence in capsys.readouterr().err


# --- the text -------------------------------------------------------------------------------------------

TEXT = """# a comment
a:           # the first
  b:
    c: 1     # a number

  # of d
  d: {e: 2}
# the end
"""


@pytest.mark.parametrize(
    "path, expected",
    [
        (["a", "b"], "    c: 1     # a number\n    new:    # why\n      x: 1\n\n  # of d\n"),
        (["a"], "  d: {e: 2}\n  new:    # why\n    x: 1\n# the end\n"),
        (["a", "f"], "  d: {e: 2}\n  f:\n    new:    # why\n      x: 1\n# the end\n"),
        (["z", "y"], "# the end\n"),
    ],
)
def test_a_block_is_put_at_the_end_of_its_mapping(path, expected):
    """With the indentation of its neighbours; comments stay where they are; mappings that are missing are made."""
    found = insertion.insert(TEXT, path, "new", ["# why", "x: 1"])
    assert expected in found
    values = reading.read_yaml(found)
    for name in path:
        values = values[name]
    assert values["new"] == {"x": 1}
    kept = iter(found.splitlines())
    assert all(line in kept for line in TEXT.splitlines())


@pytest.mark.parametrize(
    "path, key, sentence",
    [
        (["a", "d"], "new", "a.d is not written with one key per line; insert the block by hand"),
        (["a", "b"], "c", "a.b.c exists already; change it by hand"),
        (["a", "b", "c"], "new", "a.b.c is not written with one key per line"),
    ],
)
def test_where_it_cannot_be_put(path, key, sentence):
    with pytest.raises(Problem, match=sentence):
        insertion.insert(TEXT, path, key, ["# why", "x: 1"])


# --- a key that stands twice ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, sentence",
    [
        ("\ndistil:\n  methods:\n    di: {}\n", "distil occurs twice, in line {first} and in line {last}"),
        ("\n\ndata:\n  mine: {}\n", "data occurs twice, in line {first} and in line {last}"),
    ],
)
def test_a_block_at_the_wrong_place_is_refused_with_both_lines(project, more, sentence, capsys):
    """Pasted at the end of the file it would replace the whole section, without a word."""
    root = project(32)
    text = (root / "params.yaml").read_text(encoding="utf-8") + more
    (root / "params.yaml").write_text(text, encoding="utf-8")
    lines = [index for index, line in enumerate(text.splitlines(), 1) if line == f"{sentence.split()[0]}:"]
    assert len(lines) == 2
    assert __main__.main(["plan", "smoke"]) == 2
    error = capsys.readouterr().err
    assert "params.yaml: " + sentence.format(first=lines[0], last=lines[1]) in error and error.count("\n") == 1


def test_a_key_that_stands_twice_is_found_at_every_depth():
    for text, place in (
        ("a: {b: 1, b: 2}", "a.b"), ("a:\n- b: 1\n- c: {d: 1, e: 2, d: 1}\n", r"a\[1\].c.d"), ("\"1\": a\n\"1\": b\n", "1"),
    ):  # fmt: skip
        with pytest.raises(Problem, match=f"^{place} occurs twice"):
            reading.read_yaml(text)
    with pytest.raises(Problem) as caught:
        reading.read_yaml("a: 1\nb: {c: 1, c: 2}\na: 2\na: 3\n")
    assert "b.c occurs twice, in line 2 and in line 2; a occurs twice, in line 1 and in line 3; a occurs" in str(
        caught.value
    )
    with pytest.raises(
        Problem, match=r"a occurs twice, in line 1 and in line 5 \(what it adds belongs below a.b.c, in line 3\)"
    ):
        reading.read_yaml("a:\n  b:\n    c: {d: 1}\n    e: 1\na: {b: {c: {new: 2}}}\n")
    assert reading.read_yaml("x: &x {a: 1}\ny: {<<: *x, a: 2}\n") == {"x": {"a": 1}, "y": {"a": 2}}
    assert reading.read_yaml("") is None
