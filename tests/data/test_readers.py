# SPDX-License-Identifier: Apache-2.0
"""Readers of data sets: each file of data/readers says what it reads, and another one needs no edit elsewhere."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys

import pytest
import yaml

import eldistill.data.readers
from eldistill import paths, registry
from eldistill.data import dataset as data
from eldistill.data import packing
from eldistill.errors import Problem
from eldistill.external import listing
from eldistill.external.sources import published_rows
from eldistill.paths import PACKAGE
from eldistill.plan import params, versions
from eldistill.plan.plan import Plan
from tests import conftest
from tests.conftest import ROOT

SHIPPED = conftest.shipped()
SCHEMA = yaml.safe_load((ROOT / params.SCHEMA).read_text(encoding="utf-8"))["$defs"]["data"]["properties"]
STRIPES = '''"""Grey images whose rows are all alike: image i has the level i."""
import numpy as np

RECIPE = ("stripes", 7)
OPTIONS = ("files", "resolution")
NEEDS = ("resolution",)
MODULES = ("pictures",)
DOWNLOADS = ("{files}-train-images",)
CLASSES = ("even", "odd")


def read(section):
    side = section["resolution"]
    images = np.arange(12, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 1, side, side), np.uint8)
    labels = np.arange(12) % 2
    return images[:9], labels[:9], images[9:], labels[9:]
'''


def test_every_reader_says_what_can_be_asked_of_it():
    """Literals name keys of a data setting that are off by default, modules with a RECIPE, and rows that exist."""
    assert list(registry.readers()) == ["cifar10", "digits", "folder", "idx", "latents"]
    for name, each in registry.readers().items():
        module = importlib.import_module(f"eldistill.data.readers.{name}")
        assert callable(module.read) and module.read.__doc__
        assert set(each.needs) <= set(each.options) <= SCHEMA.keys()
        assert all("default" in SCHEMA[key] for key in each.options)
        assert set(each.modules) <= versions.version_table().keys() and all(end.startswith(".") for end in each.endings)
        rows = [row.format(files="fashion-mnist") for row in each.downloads]
        assert len(published_rows(tuple(rows), ROOT / "data/sources.csv")) == len(rows)
        assert (name in listing.READ_AS) >= ("path" in each.options)


@pytest.mark.parametrize("name", registry.readers())
def test_a_key_that_is_not_read_is_refused(name):
    """For every source and every key of a source: given where nothing reads it, it is an error and not silence."""
    given = {"files": "x", "path": "x", "pixels": "digits", "crop": "adm", "resolution": 16, "background": "white",
             "orientation": "exif", "bits": 12}  # fmt: skip
    assert set(given) == {key for each in registry.readers().values() for key in each.options}
    codec = {"mean": [0.0] * 4, "std": [1.0] * 4} if name == "latents" else {"mean": 0.5, "std": 0.25}
    needed = {key: given[key] for key in registry.readers()[name].needs}
    for key in set(given) - set(registry.readers()[name].options):
        setting = {"source": name, "codec": codec, "teacher": "own", **needed, key: given[key]}
        with pytest.raises(Problem, match=rf"data\.own\.({key} is|pixels is)"):
            settings(own=setting)
    for key in needed:
        with pytest.raises(Problem, match=rf"data\.own\.{key} is missing; source: {name} needs it"):
            settings(own={"source": name, "codec": codec, "teacher": "own", **needed, key: None})


def settings(**sections):
    """Params with these data settings, each with a teacher of its own."""
    values = copy.deepcopy(SHIPPED)
    values["suites"] = {values["suite"]: values["suites"]["smoke"]}
    values["data"] |= sections
    network = SHIPPED["teacher"]["digits"]
    values["teacher"] |= {name: network | {"data": name} for name in sections}
    return params.from_values(values, ROOT)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's text, in which the planner looks and from which new readers are imported."""
    for source in PACKAGE.rglob("*.py"):
        target = tmp_path / "eldistill" / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    copied = tmp_path / "eldistill"
    monkeypatch.setattr(paths, "PACKAGE", copied)
    found = [*eldistill.data.readers.__path__, str(copied / "data/readers")]
    monkeypatch.setattr(eldistill.data.readers, "__path__", found)
    yield copied
    registry.readers.cache_clear()
    sys.modules.pop("eldistill.data.readers.stripes", None)


def test_a_new_reader_is_one_file(package, tmp_path, monkeypatch):
    """params.yaml knows it as a source, with its own keys and needs; recipes count its version; it is packed."""
    with pytest.raises(Problem, match="data.own.source is 'stripes'; expected one of cifar10, digits"):
        settings(own={"source": "stripes"})
    (package / "data/readers/stripes.py").write_text(STRIPES, encoding="utf-8")
    registry.readers.cache_clear()
    own = {"source": "stripes", "files": "fashion-mnist", "resolution": 4, "heldout": 3, "teacher": "own",
           "codec": {"mean": 0.5, "std": 0.25}}  # fmt: skip
    with pytest.raises(Problem, match="data.own.resolution is missing; source: stripes needs it"):
        settings(own=own | {"resolution": None})
    with pytest.raises(Problem, match="data.own.path is 'x', but source: stripes does not read it"):
        settings(own=own | {"path": "x"})
    step = Plan(settings(own=own)).pack("own")
    assert json.loads(step.recipe)["versions"] == {
        "data": 2,
        "labels": versions.version_of("labels"),
        "pictures": 1,
        "stripes": 7,
    }
    assert [each.name for each in step.after] == ["download/fashion-mnist-train-images"]
    about = packing.pack_dataset(own, tmp_path / "pack")
    assert about["class_names"] == ["even", "odd"] and about["class_counts"] == [5, 4]
    images, labels, _ = data.load_pack(tmp_path / "pack", "heldout")
    assert images.shape == (3, 1, 4, 4) and images[:, 0, 0, 0].tolist() == [9, 10, 11] and labels.tolist() == [1, 0, 1]


def test_the_planner_imports_no_reader():
    code = (
        "import sys; from eldistill.plan import params; from eldistill.plan.plan import Plan; p = Plan(params.load_params()); "
        "[p.pack(name).recipe for name in p.params.values['data']]; "
        "print([m for m in sys.modules if m.startswith('eldistill.data') or m in ('torch', 'numpy')])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr
