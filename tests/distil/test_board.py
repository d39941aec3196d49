# SPDX-License-Identifier: Apache-2.0
"""`distil.log: [csv, tensorboard]`: events of a run, which change nothing in it."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from eldistill import __main__, files
from eldistill.distil import board
from eldistill.errors import Problem
from tests import conftest
from tests.distil.test_distil import DATA, made, make, project, run, weights  # noqa: F401  (fixtures)

RUN = "di/el/0"


class Stub:
    """A writer in place of TensorBoard's, which remembers what it was given."""

    def __init__(self, folder: Path, start: int) -> None:
        self.folder, self.start = folder, start
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.images: list[tuple[int, torch.Tensor]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append((step, value))

    def add_image(self, name: str, image: torch.Tensor, step: int) -> None:
        self.images.append((step, image))

    def flush(self) -> None:
        pass


@pytest.fixture
def writers(monkeypatch):
    """The stubs that were opened, with the packages declared to be there."""
    opened: list[Stub] = []
    monkeypatch.setattr(board, "PACKAGES", {})
    monkeypatch.setattr(board, "open_writer", lambda *words: opened.append(Stub(*words)) or opened[-1])
    return opened


def log_to(*names: str) -> None:
    values = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    values["distil"]["log"] = list(names)
    Path("params.yaml").write_text(conftest.write_yaml(values), encoding="utf-8")


def test_events_are_the_rows_of_the_log_and_change_nothing(project, writers, capsys):  # noqa: F811
    """The same bits, the same recipe, the same log.csv; each value of the log is an event, and each snapshot a grid."""
    run(RUN)
    folder = Path(f"data/runs/{DATA}/{RUN}")
    before, rows = weights(RUN), (folder / "log.csv").read_text(encoding="utf-8")
    recipe = (folder / "generator_ema.safetensors.recipe").read_text(encoding="utf-8")
    assert not writers
    log_to("csv", "tensorboard")
    assert __main__.main(["distil", f"{DATA}/{RUN}"]) == 0 and not writers  # nothing became stale
    run(RUN, "--force")
    after = weights(RUN)
    assert all(torch.equal(after[name], each) for name, each in before.items()) and after.keys() == before.keys()
    assert (folder / "log.csv").read_text(encoding="utf-8") == rows
    assert (folder / "generator_ema.safetensors.recipe").read_text(encoding="utf-8") == recipe
    (writer,) = writers
    assert writer.folder == Path("data/scratch/tensorboard") / DATA / RUN / files.digest(recipe)[:12]
    for name, events in writer.scalars.items():
        column = name.replace("/", ".", 1)
        wanted = {int(row["n_images"]): row[column] for row in files.read_rows(folder / "log.csv") if row[column]}
        assert events and dict(events) == pytest.approx({k: float(v) for k, v in wanted.items()})
    assert {name.split("/")[0] for name in writer.scalars} >= {"generator", "el"} and "el/weight" in writer.scalars
    assert sorted({step for step, _ in writer.images}) == [0, 32, 64]
    assert all(image.shape == (1, 72, 72) and image.dtype == torch.uint8 for _, image in writer.images)
    assert not torch.equal(writer.images[0][1], writer.images[-1][1])


def test_without_the_package_one_sentence_comes_before_the_training(project, capsys):  # noqa: F811
    log_to("csv", "tensorboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(board, "PACKAGES", {"a_module_that_is_not_there": "tensorboard"})
        assert __main__.main(["distil", f"{DATA}/di/none/7"]) == 2
    text = capsys.readouterr().err
    assert (
        "distil.log in params.yaml names tensorboard, but the package tensorboard is missing; type `pip install" in text
    )
    assert not Path(f"data/runs/{DATA}/di/none/7").exists()
    board.check_packages(("csv",))


@pytest.mark.parametrize("names", [["tensorboad"], ["csv", "csv"], []])
def test_another_word_is_one_sentence(project, names, capsys):  # noqa: F811
    log_to(*names)
    assert __main__.main(["distil", f"{DATA}/{RUN}"]) == 2
    assert "distil.log" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("out of memory"), ImportError("x")]
)
def test_a_failure_of_the_writer_ends_the_events_and_is_said_once(tmp_path, monkeypatch, error):
    def fail(*words):
        raise error

    lines: list[str] = []
    monkeypatch.setattr(board, "open_writer", fail)
    found = board.Board(tmp_path, "cpu", lines.append)
    found.row({"n_images": 1, "iteration": 1, "generator.kl": 0.5})
    found.row({"n_images": 2, "iteration": 2, "generator.kl": 0.5})
    found.snapshot(tmp_path / "missing.safetensors", 2)
    assert len(lines) == 1 and "the training goes on" in lines[0]


def test_a_run_that_continues_does_not_hide_its_events(tmp_path, monkeypatch):
    """It writes the snapshot of its start again, which would open the writer there."""
    opened: list[Stub] = []
    monkeypatch.setattr(board, "open_writer", lambda *words: opened.append(Stub(*words)) or opened[-1])
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    found = board.Board(tmp_path, "cpu", print)
    found.snapshot(tmp_path / "missing.safetensors", 0)
    found.row({"n_images": 64, "iteration": 1, "generator.kl": 0.5})
    assert [writer.start for writer in opened] == [64]


def test_a_damaged_snapshot_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "open_writer", Stub)
    with pytest.raises(Problem, match="is missing"):
        board.Board(tmp_path, "cpu", print).snapshot(tmp_path / "missing.safetensors", 2)


def test_tensorboard_reads_the_events(tmp_path):
    """With the package, if it is there: scalars and an image, and an earlier attempt is hidden from its last state on."""
    pytest.importorskip(
        "tensorboard", reason="the package tensorboard is not in the locked environment; it is an optional extra"
    )
    from tensorboard.backend.event_processing import event_accumulator

    for start, value in ((0, 1.0), (20, 2.0)):
        writer = board.open_writer(tmp_path, start)
        for step in range(start, 40, 10):
            writer.add_scalar("el/weight", value, step)
        writer.add_image("images", torch.zeros(1, 9, 9, dtype=torch.uint8), start)
        writer.close()
    found = event_accumulator.EventAccumulator(str(tmp_path))
    found.Reload()
    values = {each.step: each.value for each in found.Scalars("el/weight")}
    assert values == {0: 1.0, 10: 1.0, 20: 2.0, 30: 2.0} and json.dumps(found.Tags()["images"]) == '["images"]'
