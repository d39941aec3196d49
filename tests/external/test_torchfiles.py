# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save: what our own machine reads equals what torch reads, and everything else is one sentence."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from eldistill.errors import Problem
from eldistill.external import torchfiles
from eldistill.external.machine import Tensor
from eldistill.external.opcodes import Refused
from tests import hostile

DTYPES = [*torchfiles.ALL_STORAGES.values(), *torchfiles.NEW_DTYPES.values()]
BASE = torch.arange(24, dtype=torch.float32)


def module() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Linear(3, 2))


def trained() -> dict:
    """A state of a training; the keys of its optimiser are numbers."""
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 2), "exp_avg_sq": torch.zeros(2, 2)}
    optimiser = {
        "state": {0: moments, 1: moments},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1]}],
    }
    return {"net": module().state_dict(), "optimiser": optimiser, "step": 3, "loss": [0.5, None, "a", (1, 2**40)]}


VALUES = {
    "strides": lambda: {
        "transposed": BASE.reshape(4, 6).t(), "steps": BASE[1::3], "offset": BASE[6:12].reshape(2, 3), "scalar": BASE[5],
        "expanded": BASE[:1].expand(4, 3), "empty": torch.empty(0, 3), "windows": BASE.unfold(0, 5, 2),
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    },
    "shared": lambda: {"all": BASE, "half": BASE[12:], "again": BASE, "list": [BASE, BASE[::2]]},
    "a module": lambda: module().state_dict(),
    "parameters": lambda: torch.nn.ParameterList(module().parameters()).state_dict(keep_vars=True),
    "an optimiser": trained,
    "ordered": lambda: collections.OrderedDict(a=collections.OrderedDict(b=torch.ones(2)), c=torch.Size([1, 2]), d={"x"}),
    **{str(dtype): lambda dtype=dtype: {"x": torch.arange(1, 9).reshape(2, 4).to(dtype)} for dtype in DTYPES},
}  # fmt: skip


def compare(ours, theirs) -> None:
    """Equal structure, dtypes, shapes and bits."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, Tensor) and ours.parameter == isinstance(theirs, torch.nn.Parameter)
        view = ours.view()
        assert view.dtype == theirs.dtype and view.shape == theirs.shape and view.stride() == theirs.stride()
        bits = [each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (view, ours.value(), theirs)]
        assert torch.equal(bits[0], bits[2]) and torch.equal(bits[1], bits[2])
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, each in theirs.items():
            compare(ours[key], each)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            compare(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 2020"])
@pytest.mark.parametrize("kind", list(VALUES))
def test_values_are_those_of_torch_to_the_bit(tmp_path, kind, old):
    path = tmp_path / "net.pt"
    value = VALUES[kind]()
    if old and kind.removeprefix("torch.") in torchfiles.NEW_DTYPES:
        pytest.skip("dtypes that are younger than the format")
    torch.save(value, path, _use_new_zipfile_serialization=not old)
    with torchfiles.read_torch_file(path) as file:
        compare(file.value, torch.load(path, weights_only=True))
        assert file.bytes == path.stat().st_size


def test_a_storage_that_is_shared_is_read_once(tmp_path):
    torch.save({"a": BASE, "b": BASE[3:9]}, tmp_path / "net.pt")
    with torchfiles.read_torch_file(tmp_path / "net.pt") as file:
        a, b = (file.value[name].view() for name in "ab")
        assert b.data_ptr() - a.data_ptr() == 12


# --- refusals -------------------------------------------------------------------------------------------


def zipped(pickled: bytes, **records: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/data.pkl", pickled)
        for name, content in records.items():
            archive.writestr(f"net/data/{name}", content)
    return buffer.getvalue()


def described(
    size: tuple, stride: tuple, offset: int = 0, numel: int = 6, kind: bytes = b"FloatStorage", key: str = "k"
) -> bytes:
    """The pickle of a tensor of a storage."""
    plain = lambda value: pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"").replace(b"q\x01", b"")  # noqa: E731
    storage = b"(" + plain("storage") + b"ctorch\n" + kind + b"\n" + plain(key) + plain("cpu") + plain(numel) + b"tQ"
    rest = plain(offset) + plain(size) + plain(stride) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR."


def test_the_pickle_of_the_refusals_is_read_where_it_is_right(tmp_path):
    (tmp_path / "net.pt").write_bytes(zipped(described((2, 3), (3, 1)), k=struct.pack("<6f", *range(6))))
    with torchfiles.read_torch_file(tmp_path / "net.pt") as file:
        assert file.value.view().tolist() == [[0, 1, 2], [3, 4, 5]]


def old(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def script() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("data.pkl", "code/net.py", "constants.pkl", "version"):
            archive.writestr(f"net/{name}", b"\x80\x02}.")
    return buffer.getvalue()


SIX = struct.pack("<6f", *range(6))
REFUSED = {
    "a call": (lambda: saved({"a": hostile.Call()}), "it names '(posix|os|nt).system'"),
    "a call, before 2020": (lambda: old({"a": hostile.Call()}), "it names"),
    "a module": (lambda: saved(module()), "it names"),
    "beyond its storage": (lambda: zipped(described((2, 4), (4, 1)), k=SIX), "does not lie within its 6 numbers"),
    "an offset beyond it": (lambda: zipped(described((6,), (1,), 1), k=SIX), "does not lie within its 6 numbers"),
    "a negative stride": (lambda: zipped(described((6,), (-1,)), k=SIX), "not understood"),
    "a storage that lacks": (lambda: zipped(described((6,), (1,))), "a storage at byte .* that is not in the file"),
    "a storage of another length": (lambda: zipped(described((6,), (1,), numel=5), k=SIX), "another length than its numbers"),
    "a huge storage": (lambda: zipped(described((2**40,), (1,), numel=2**40), k=SIX), "another length than its numbers"),
    "a storage of no tensor": (lambda: zipped(b"\x80\x02}.", k=SIX), "belongs to no numbers"),
    "a storage of an unknown kind": (lambda: zipped(described((6,), (1,), kind=b"QInt8Storage"), k=SIX), "it names"),
    "no data.pkl": (lambda: zipped(b"").replace(b"data.pkl", b"data.pk_"), "a zip without data.pkl"),
    "TorchScript": (script, "a program of TorchScript, which would have to be executed"),
    "cut off": (lambda: saved({"a": BASE})[:-40], "no end of a directory"),
    "cut off, before 2020": (lambda: old({"a": BASE})[:-8], "is cut off"),
    "more than its end": (lambda: old({"a": BASE}) + b"more", "4 bytes follow its end"),
    "a text": (lambda: b"version https://git-lfs", "a text that begins with"),
    "empty": (lambda: b"", "is empty"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(REFUSED))
def test_everything_else_is_one_sentence(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    content, sentence = REFUSED[kind]
    Path("net.pt").write_bytes(content())
    with pytest.raises(Problem, match=sentence) as caught:
        torchfiles.read_torch_file("net.pt")
    assert str(caught.value).startswith("net.pt") and "\n" not in str(caught.value) and os.listdir() == ["net.pt"]


def test_much_of_little_is_refused_where_it_would_be_copied(tmp_path):
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "net.pt")
    with torchfiles.read_torch_file(tmp_path / "net.pt") as file, pytest.raises(Refused, match="would have more than"):
        torchfiles.tensors_of(file.value, file.bytes)
