# SPDX-License-Identifier: Apache-2.0
"""States that are written while the training goes on: whole, of one moment, and never lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from eldistill import files
from eldistill.training import state


@pytest.fixture
def slow(monkeypatch):
    """A disk that writes when it is told to: `.begun` when a write has begun, `.go` lets it end."""
    begun, go, whole = threading.Event(), threading.Event(), state.save_state

    def save(*arguments):
        begun.set()
        assert go.wait(30)
        whole(*arguments)

    monkeypatch.setattr(state, "save_state", save)
    save.begun, save.go = begun, go
    return save


def test_what_is_written_is_of_the_moment_of_the_call(tmp_path, slow):
    """The training changes tensors and rows while the disk is slow; neither reaches the file, and nobody waits."""
    weights, numbers = torch.arange(6.0), {"rows": [{"n_images": 1}]}
    with state.Writer() as writer:
        writer.write(tmp_path, {"w": weights}, numbers)
        assert slow.begun.wait(30) and state.load_state(tmp_path) is None
        weights.zero_()
        numbers["rows"].append({"n_images": 2})
        slow.go.set()
    tensors, found = state.load_state(tmp_path)
    assert torch.equal(tensors["w"], torch.arange(6.0)) and found == {"rows": [{"n_images": 1}]}


def test_states_follow_each_other(tmp_path):
    """Buffers are used again, also when a tensor changes its shape or another one comes."""
    with state.Writer() as writer:
        for step, shape in enumerate([(3,), (3,), (2, 2), (1,)]):
            writer.write(
                tmp_path,
                {"w": torch.full(shape, float(step)), **({"b": torch.ones(1)} if step > 1 else {})},
                {"n": step},
            )
    tensors, numbers = state.load_state(tmp_path)
    assert numbers == {"n": 3} and tensors["w"].tolist() == [3.0] and set(tensors) == {"w", "b"}


def test_what_the_disk_says_is_raised_once(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "save_state", full)
    writer = state.Writer()
    writer.write(tmp_path, {"w": torch.ones(1)}, {})
    with pytest.raises(OSError, match="No space left"):
        writer.write(tmp_path, {"w": torch.ones(1)}, {})
    writer.wait()
    with pytest.raises(OSError, match="No space left"), writer:
        writer.write(tmp_path, {"w": torch.ones(1)}, {})


def test_what_ends_a_training_is_not_hidden_by_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "save_state", lambda *arguments: 1 / 0)
    with pytest.raises(ValueError, match="a NaN"), state.Writer() as writer:
        writer.write(tmp_path, {"w": torch.ones(1)}, {})
        raise ValueError("a NaN")


def _killed(folder: str, path) -> None:
    # Two states; the second one is stopped between its temporary file and its name.
    with state.Writer() as writer:
        writer.write(Path(folder), {"w": torch.ones(1000)}, {"n": 1})
    whole = os.replace

    def replace(source, target):
        path.set()
        time.sleep(60)
        whole(source, target)

    files.os.replace = replace
    state.Writer().write(Path(folder), {"w": torch.zeros(1000)}, {"n": 2})
    time.sleep(60)


def test_a_kill_while_a_state_is_written_keeps_the_one_before(tmp_path):
    context = multiprocessing.get_context("fork")
    half = context.Event()
    process = context.Process(target=_killed, args=(str(tmp_path), half))
    process.start()
    assert half.wait(30) and len(list(tmp_path.glob("*.tmp"))) + len(list(tmp_path.glob(".*.tmp"))) >= 1
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    tensors, numbers = state.load_state(tmp_path)
    assert numbers == {"n": 1} and torch.equal(tensors["w"], torch.ones(1000))


@pytest.mark.parametrize("piece", [1, 100, 2**28])
def test_buffers_hold_every_tensor_apart(tmp_path, monkeypatch, piece):
    """Of any type and shape, whatever fits into one piece of memory; a file of them is that of tensors of their own."""
    monkeypatch.setattr(state, "PIECE", piece)
    tensors = {
        "image": torch.randn(3, 2, 5, 7).contiguous(memory_format=torch.channels_last), "half": torch.randn(9).bfloat16(),
        "step": torch.tensor(3.0, dtype=torch.float64), "none": torch.empty(0, 4), "index": torch.arange(5),
    }  # fmt: skip
    layout = {name: (each.shape, each.dtype) for name, each in tensors.items()}
    made = state.make_buffers(layout, pinned=False)
    assert {name: (each.shape, each.dtype) for name, each in made.items()} == layout and list(made) == list(tensors)
    for name, each in tensors.items():
        made[name].copy_(each)
    assert all(torch.equal(made[name], each) for name, each in tensors.items())
    for name, each in (("own", tensors), ("packed", made)):
        (tmp_path / name).mkdir()
        state.save_state(tmp_path / name, each, {})
    assert (tmp_path / "own/state.safetensors").read_bytes() == (tmp_path / "packed/state.safetensors").read_bytes()
