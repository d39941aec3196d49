# SPDX-License-Identifier: Apache-2.0
"""Whole runs by their command, small: starts, pairs, lineage, dropout, and what a generator knows of itself."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from eldistill import __main__, files
from eldistill.distil import run as distil
from eldistill.errors import Problem
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.sampling import generators as sampling
from eldistill.tensors import load_tensors
from eldistill.training import compute as speed
from eldistill.training import loop
from tests import conftest

DATA = "digits-smoke"
FLOWS = ("scd", "mean-flow", "tcm")
METHODS = ("di", "dmd", "dmd2", "sid", "sida", "sim", "f-distill", "uni-instruct", "cd", "ct", "ict", "ect", *FLOWS)
GROUPED = {
    **dict.fromkeys(("sida", "sid2a"), {"group": 8, "freeze_images": 0, "solo_images": 16}),
    **dict.fromkeys(("f-distill", "uni-instruct"), {"group": 8}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_project) -> Path:
    """A project folder with a packed data set and a teacher of 320 images: each module's own copy."""
    folder = tmp_path_factory.mktemp("distil")
    shutil.copytree(small_project, folder, dirs_exist_ok=True)
    return folder


def make(folder: Path) -> Path:
    """The one that is copied; conftest.py makes it once for all files."""
    conftest.copy_parameters(folder)
    values = conftest.read_yaml((folder / "params.yaml").read_text(encoding="utf-8"))
    values["teacher"][DATA] |= {"n_images": 320, "steps": 3}
    values["distil"] |= {"snapshots": [0, 50, 100], "ticks": 2}
    for name in (*METHODS, "sid2a"):
        small = {"n_images": 64, "batch": 16} | GROUPED.get(name, {})
        values["distil"]["methods"][name].setdefault("per_data", {})[DATA] = small
    values["distil"]["methods"]["di"]["per_data"][DATA] |= {"n_images": 64, "batch": 16}
    values["distil"]["supplements"]["regression"]["per_data"] = {"digits": {"pairs": 40}}
    (folder / "params.yaml").write_text(conftest.write_yaml(values), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert __main__.main(["data", f"{DATA}/images"]) == 0
        assert __main__.main(["teacher", DATA]) == 0
        assert __main__.main(["ensemble", f"{DATA}/conv4/0"]) == 0
    return folder


@pytest.fixture
def project(made, monkeypatch) -> Path:
    """Work in that folder; params.yaml is put back afterwards."""
    monkeypatch.chdir(made)
    text = (made / "params.yaml").read_text(encoding="utf-8")
    yield made
    (made / "params.yaml").write_text(text, encoding="utf-8")


def change(method: str, **values) -> None:
    tree = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    tree["distil"]["methods"][method]["per_data"][DATA] |= values
    Path("params.yaml").write_text(conftest.write_yaml(tree), encoding="utf-8")


def run(name: str, *more: str) -> sampling.Generator:
    assert __main__.main(["distil", f"{DATA}/{name}", *more]) == 0
    return sampling.load_generator(f"data/runs/{DATA}/{name}/generator_ema.safetensors")


def weights(name: str, file: str = "generator_ema") -> dict[str, torch.Tensor]:
    tensors, _ = load_tensors(f"data/runs/{DATA}/{name}/{file}.safetensors")
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(sampling.RAW)}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_generator(project, method):
    """By its command: finite weights that have moved; images in every number of steps that its sampler names."""
    generator = run(f"{method}/none/0")
    after, before = weights(f"{method}/none/0"), weights(f"{method}/none/0", "ema-0")
    assert all(value.isfinite().all() for value in after.values()) and not same(after, before)
    assert same(after, weights(f"{method}/none/0", "ema-100"))
    begun = load_tensors(f"data/teachers/{DATA}/teacher.safetensors")[0]
    assert same({key: before[key] for key in begun}, begun)
    assert not any(before[key].any() for key in before.keys() - begun.keys())  # a further layer is zero at first
    few = generator.metadata["sampler"]["steps"]
    assert set(few) == ({"1", "2", "4"} if method in ("cd", "ct", "ict", "ect", *FLOWS) else {"1"})
    pictures = [sampling.sample(generator, 4, steps=int(steps)) for steps in few]
    assert all(images.float().std() > 0 for images in pictures)
    assert len({images.numpy().tobytes() for images in pictures}) == len(few)


def test_sid2a_starts_where_sid_ended(project, capsys):
    """SiD²A needs its run of SiD, says so, starts from that generator, and counts its images as well."""
    assert __main__.main(["distil", f"{DATA}/sid2a/el/3"]) == 2
    error = capsys.readouterr().err
    assert f"data/runs/{DATA}/sid/none/3/" in error and f"python -m eldistill distil {DATA}/sid/none/3" in error
    assert __main__.main(["ensemble", f"{DATA}/conv4/3"]) == 0
    run("sid/none/3")
    second = run("sid2a/el/3")
    assert same(weights("sid2a/el/3", "ema-0"), weights("sid/none/3"))
    assert not same(weights("sid2a/el/3"), weights("sid/none/3"))
    assert second.metadata["n_images_before"] == 64 and second.metadata["n_images"] == 64
    assert f"distil {DATA}/sid/none/3" in second.metadata["lineage"]["upstream"]
    plan = Plan(params.load_params())
    old = plan.find("distil", f"{DATA}/sid2a/none/3").digest
    change("sid", alpha=0.5)
    plan = Plan(params.load_params())
    assert plan.find("distil", f"{DATA}/sid2a/none/3").digest != old  # another SiD is another SiD²A
    assert __main__.main(["distil", f"{DATA}/sid2a/el/3"]) == 2
    assert "was made with other numbers" in capsys.readouterr().err


def test_regression_needs_its_pairs(project, capsys):
    """The pairs are a step of their own; the run learns from them, also beside the Embedding Loss."""
    assert __main__.main(["distil", f"{DATA}/dmd/regression/0"]) == 2
    assert f"python -m eldistill teacher {DATA}/pairs-40-0" in capsys.readouterr().err
    assert __main__.main(["teacher", f"{DATA}/pairs-40-0"]) == 0
    assert "40/40 pairs" in capsys.readouterr().out
    assert not Path("data/scratch/state").exists() or not list(Path("data/scratch/state").rglob("pairs-*"))
    run("dmd/none/0")
    run("dmd/regression/0")
    run("dmd/regression+el/0")
    made = [weights(f"dmd/{name}/0") for name in ("none", "regression", "regression+el")]
    assert not same(made[0], made[1]) and not same(made[1], made[2])
    assert "regression.huber" in Path(f"data/runs/{DATA}/dmd/regression+el/0/log.csv").read_text(encoding="utf-8")


def test_gan_joins_di_and_not_dmd2_or_cd(project, capsys):
    """The discriminator goes with methods that have a fake_score and no head; the others are refused in a sentence."""
    run("di/gan/0")
    log = Path(f"data/runs/{DATA}/di/gan/0/log.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "fake_score.gan.adversarial" in log and "gan.weight" in log
    for method, words in (
        ("cd", "needs a fake_score, and distil.methods.cd trains none"),
        ("scd", "needs a fake_score, and distil.methods.scd trains none"),
        ("dmd2", "dmd2 brings one already"),
    ):
        assert __main__.main(["distil", f"{DATA}/{method}/gan/0"]) == 2
        assert words in capsys.readouterr().err
        assert not Path(f"data/runs/{DATA}/{method}/gan").exists()


def test_a_generator_knows_where_it_comes_from(project, capsys):
    """Metadata: resolved parameters, method, images, the teacher's digest, the commit; snapshots carry the recipe."""
    about = run("di/none/0").metadata
    recipe = Path(f"data/runs/{DATA}/di/none/0/generator_ema.safetensors.recipe").read_text(encoding="utf-8")
    lineage = about["lineage"]
    assert about["recipe"] == files.digest(recipe) and f'"params":{files.canonical(lineage["params"])}' in recipe
    assert lineage["params"]["method"]["n_images"] == lineage["n_images"] == about["n_images"] == 64
    assert (lineage["method"], lineage["file"]) == ("di", "diff_instruct") and lineage["run"] == f"{DATA}/di/none/0"
    assert lineage["teacher_sha256"] == files.sha256(f"data/teachers/{DATA}/teacher.safetensors")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    assert lineage["git_commit"] == (commit.stdout.strip() if commit.returncode == 0 else None)
    before = files.sha256(f"data/runs/{DATA}/di/none/0/generator_ema.safetensors")
    run("di/none/0", "--force")
    assert files.sha256(f"data/runs/{DATA}/di/none/0/generator_ema.safetensors") == before


@pytest.mark.parametrize("rate", [None, 0.0, 0.3])
def test_dropout_of_a_method_is_that_of_its_networks(project, monkeypatch, rate):
    """null keeps the teacher's dropout (0 here); a number is that of generator and fake_score, not of the teacher."""
    seen = {}

    class Watched(loop.Loop):
        def run(self):
            for name, net in self.nets.items():
                seen[name] = {layer.dropout for layer in net.modules() if hasattr(layer, "dropout")}
            return super().run()

    monkeypatch.setattr(distil, "Loop", Watched)
    change("di", dropout=rate)
    run("di/none/0", "--force")
    assert seen == {"teacher": {0.0}, "generator": {rate or 0.0}, "fake_score": {rate or 0.0}}


def test_augmentation_needs_a_teacher_that_knows_its_labels(project, capsys):
    for method in ("di", "sid", "sida"):
        change(method, augment=0.1)
        assert __main__.main(["distil", f"{DATA}/{method}/none/5"]) == 2
        assert "augment is 0.1, but teacher.digits-smoke was trained without augmentation" in capsys.readouterr().err


@pytest.mark.parametrize(("start", "words"), [
    ("sid", "expected METHOD/SUPPLEMENT"), ("sidd/none", "did you mean sid"), ("sid/ell", "did you mean el"),
    ("sid2a/none", "goes in a circle"),
])  # fmt: skip
def test_a_start_that_cannot_be_is_one_sentence(project, capsys, start, words):
    tree = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    tree["distil"]["methods"]["sid2a"]["start_from"] = start
    Path("params.yaml").write_text(conftest.write_yaml(tree), encoding="utf-8")
    assert __main__.main(["distil", f"{DATA}/di/none/0"]) == 2
    error = capsys.readouterr().err
    assert words in error and "start_from" in error and error.count("\n") == 1


def test_impossible_levels_of_dmd_are_one_sentence(project, capsys):
    for method in ("dmd", "dmd2"):
        change(method, low=0.7, high=0.3)
        assert __main__.main(["distil", f"{DATA}/{method}/none/6"]) == 2
        assert "expected low below high" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weight", "code", "words"), [(float("nan"), 2, "a NaN or an infinity"), (3e38, 1, "not finite")]
)
def test_a_broken_generator_is_never_shown(project, tmp_path, capsys, weight, code, words):
    """A NaN in a weight is seen as the file is read, one in an image before it is shown; there is no picture."""
    generator = run("di/none/0")
    for parameter in generator.network.parameters():
        parameter.fill_(weight)
    sampling.save_generator(tmp_path / "g.safetensors", generator.network, generator.metadata)
    capsys.readouterr()
    picture = tmp_path / "g.png"
    assert __main__.main(["sample", "--generator", str(tmp_path / "g.safetensors"), "--grid", str(picture)]) == code
    assert words in capsys.readouterr().err and not picture.exists()


def test_the_target_of_a_run_that_starts_elsewhere_starts_there(project, monkeypatch):
    """CD from the generator of another run: its target, a running average, begins at that generator."""
    tree = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    tree["distil"]["methods"]["cd"]["start_from"] = "ct/none"
    Path("params.yaml").write_text(conftest.write_yaml(tree), encoding="utf-8")
    seen = {}

    class Watched(loop.Loop):
        def run(self):
            seen.update({name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in self.nets.items()})
            return super().run()

    run("ct/none/7")
    monkeypatch.setattr(distil, "Loop", Watched)
    run("cd/none/7")
    assert same(seen["target"], seen["generator"]) and same(seen["target"], weights("ct/none/7"))


@pytest.mark.parametrize(("method", "changes", "words"), [
    ("sid", {"uncertainty": True}, "uncertainty is true"),
    ("sida", {"uncertainty": True}, "uncertainty is true"),
    ("sida", {"normalise": "none"}, "normalise is none, but teacher."),
    ("cd", {"sigmas_2": [10.0]}, "expected 2 falling noise levels"),
    ("cd", {"sigmas_4": [10.0, 3.0, 3.0, 0.2]}, "expected 4 falling noise levels"),
    ("cd", {"sigmas_2": [10.0, 0.001]}, "above sigma_min"),
    ("cd", {"sigma_min": 20.0}, "sigma_min"),
    ("ict", {"first": 64}, "first is 64 and last 32"),
    ("ect", {"distance": "lpips"}, "give the file with the weights as lpips"),
    ("sid2a", {"sigma_init": 1.0}, "whose generator starts from the noise level 2.5"),
])  # fmt: skip
def test_numbers_that_do_not_go_together_are_one_sentence(project, capsys, method, changes, words):
    """What a schema cannot see: exit code 2, one sentence, nothing half-written."""
    if method == "sid2a":
        run("sid/none/8")
    change(method, **changes)
    capsys.readouterr()
    assert __main__.main(["distil", f"{DATA}/{method}/none/8"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not Path(f"data/runs/{DATA}/{method}/none/8").exists() or method == "sid"


@pytest.mark.parametrize("method", ["sid", "dmd", "sid2a"])
def test_a_method_without_numbers_for_the_data_is_one_sentence(project, capsys, method):
    """Nobody's defaults are taken for a data set: 100 million images at a rate of 1e-3 are no recipe."""
    assert __main__.main(["distil", f"fashion-mnist/{method}/none/0"]) == 2
    error = capsys.readouterr().err
    assert f"distil.methods.{method} has no numbers for the data fashion-mnist" in error and error.count("\n") == 1


def test_a_student_of_a_consistency_model_forgets_its_boundary():
    """Another method that starts from it trains, and is sampled, with the plain scalings."""
    from eldistill import networks
    from eldistill.losses import score
    from eldistill.methods import consistency

    net = networks.build({"network": "song", "img_resolution": 8, "img_channels": 1, "model_channels": 4,
                          "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []})  # fmt: skip
    net.boundary = 0.003
    assert score.student(net, None).boundary == score.student(None, net).boundary == 0.0
    assert consistency.generator(net, None, consistency.Numbers()).boundary == 0.002


def test_a_cpu_trains_in_float32_and_says_so(project):
    """Whatever the recipe holds: the same weights, and the provenance says how they were computed."""
    found = {}
    for precision in ("float32", "bfloat16"):
        change("di", precision=precision)
        run("di/none/5")
        found[precision] = weights("di/none/5")
        provenance = files.read_json(f"data/runs/{DATA}/di/none/5/provenance.json")
        assert {key: provenance[key] for key in ("precision", "tf32", "deterministic", "benchmark")} == {
            "precision": "float32", "tf32": False, "deterministic": True, "benchmark": False
        }  # fmt: skip
    assert same(*found.values())


@pytest.mark.parametrize("key", ["recompute", "compile", "channels_last"])
def test_keys_of_a_machine_reach_every_training(project, monkeypatch, key):
    """Student and teacher are changed as the key says, before the loop begins; the recipe and the result are what they were."""
    run("di/none/0")
    teacher, recipe = (
        Path(f"data/teachers/{DATA}/teacher.safetensors"),
        Path(f"data/runs/{DATA}/di/none/0/generator_ema.safetensors.recipe"),
    )
    before = weights("di/none/0"), teacher.read_bytes(), recipe.read_text(encoding="utf-8")
    name = {"compile": "compile_networks", "recompute": "recompute_blocks", "channels_last": "set_channels_last"}[key]
    real, seen = getattr(speed, name), []
    monkeypatch.setattr(
        speed,
        name,
        lambda nets: (nets := list(nets), seen.append(len(nets)), real(nets) if key == "recompute" else None),
    )
    tree = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    tree["distil"][key] = True
    Path("params.yaml").write_text(conftest.write_yaml(tree), encoding="utf-8")
    run("di/none/0", "--force")
    assert __main__.main(["teacher", DATA, "--force"]) == 0
    assert seen == [2 if key == "recompute" else 3, 1]  # generator and fake_score, and the frozen teacher; a teacher
    after = weights("di/none/0"), teacher.read_bytes(), recipe.read_text(encoding="utf-8")
    assert same(before[0], after[0]) and before[1:] == after[1:]


def test_snapshots_keep_the_generator_without_its_average_too(project):
    """Where the method asks for it: equal to the average if that forgets everything, else only at the start. The average
    changes nothing of the generator itself."""

    def snapshots() -> list[tuple[dict, dict]]:
        run("di/none/7", "--force")
        paths = [f"data/runs/{DATA}/di/none/7/ema-{percent}.safetensors" for percent in (0, 50, 100)]
        both = (False, True)
        return [tuple(sampling.load_generator(path, raw=raw).network.state_dict() for raw in both) for path in paths]

    change("di", raw_snapshots=True, ema={"policy": "constant", "beta": 0})
    first = snapshots()
    change("di", ema={"policy": "constant", "beta": 0.9})
    second = snapshots()
    assert [same(*each) for each in first] == [True, True, True] and [same(*each) for each in second] == [
        True,
        False,
        False,
    ]
    assert all(same(a[1], b[1]) for a, b in zip(first, second, strict=True))
    with pytest.raises(Problem, match="raw_snapshots: true"):
        sampling.load_generator(f"data/runs/{DATA}/di/none/7/generator_ema.safetensors", raw=True)


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_a_run_against_all_real_images(project, kernel):
    """It makes a generator, and its log has EL, its weight and the ratio of spreads, as with real images."""
    tree = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    tree["ensemble"]["all"] = {"like": "conv4", "anchor": True, "landmarks": 8}
    tree["distil"]["supplements"]["el-all"] = {
        "like": "el", "ensemble": "all", "kernel": kernel, "anchored": True, "diagnose": 1
    }  # fmt: skip
    Path("params.yaml").write_text(conftest.write_yaml(tree), encoding="utf-8")
    assert __main__.main(["ensemble", f"{DATA}/all/0"]) == 0
    run("di/el-all/0")
    rows = files.read_rows(Path(f"data/runs/{DATA}/di/el-all/0/log.csv"))
    assert rows and all(
        math.isfinite(float(row[f"el-all.{name}"])) for row in rows for name in ("mmd2", "weight", "trace_ratio")
    )
    assert float(rows[0]["el-all.mmd2"]) > 0 and 0 < float(rows[0]["el-all.trace_ratio"]) < 10
