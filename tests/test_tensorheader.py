# SPDX-License-Identifier: Apache-2.0
"""Files of tensors are read as the package safetensors reads them; whatever does not add up is one sentence."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from eldistill import tensorheader
from eldistill.errors import Problem
from eldistill.tensors import load_tensors, map_tensors, save_tensors

DTYPES = [getattr(torch, name) for _, name in tensorheader.ITEMS.values() if hasattr(torch, name)]


def test_tensors_are_those_of_the_package(tmp_path):
    """Every dtype, numbers without an axis, empty tensors, names that JSON escapes."""
    tensors = {f"{dtype}": torch.arange(12).reshape(3, 4).to(dtype) for dtype in DTYPES}
    tensors |= {"one": torch.tensor(3.0), "empty": torch.empty(0, 3), 'quote "ä\\': torch.ones(1)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found, about = load_tensors(tmp_path / "a.safetensors", foreign=True)
    wanted = load_file(tmp_path / "a.safetensors")
    assert about == {} and set(found) == set(wanted)
    for name, each in found.items():
        assert each.dtype == wanted[name].dtype and each.shape == wanted[name].shape
        assert torch.equal(each.reshape(-1).view(torch.uint8), wanted[name].reshape(-1).view(torch.uint8))


def test_tensors_that_share_memory_are_written_each(tmp_path):
    base = torch.arange(6.0)
    save_tensors(tmp_path / "a.safetensors", {"a": base, "b": base[2:], "c": base}, {})
    found, _ = load_tensors(tmp_path / "a.safetensors")
    assert torch.equal(found["a"], base) and torch.equal(found["b"], base[2:]) and torch.equal(found["c"], base)


def file(header, content: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


WRONG = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"\0\1\2\3\4\5\6", "cut off"),
    "a length beyond the file": (struct.pack("<Q", 2**63) + b"{}", "cut off"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html></html>", "a web page"),
    "a zip": (b"PK\3\4" + bytes(40), "a zip"),
    "no JSON": (file(b"{{"), "Expecting"),
    "a list": (file([]), "no mapping"),
    "nested": (file(b"[" * 100_000), "nested too deeply"),
    "values without end": (file(b"[" + b"[]," * 2_000_000 + b"[]]"), "more than 3,000,000 values"),
    "a name twice": (file(b'{"a": 1, "a": 2}'), "a name twice"),
    "a long name": (file({"x" * 600: entry()}), "600 characters"),
    "metadata of numbers": (file({"a": entry(), "__metadata__": {"a": 1}}), "metadata are no texts"),
    "no dtype": (file({"a": {"shape": [2], "data_offsets": [0, 8]}}), "not described by"),
    "one key more": (file({"a": entry(more=1)}), "not described by"),
    "an unknown dtype": (file({"a": entry("F7")}), "which is not read"),
    "a dtype that is a list": (file({"a": entry([])}), "which is not read"),
    "a shape of floats": (file({"a": entry(shape=(2.0,))}), "a few whole numbers"),
    "a shape below 0": (file({"a": entry(shape=(-2,))}), "a few whole numbers"),
    "a shape of nine axes": (file({"a": entry(shape=(1,) * 8 + (2,))}), "a few whole numbers"),
    "truth as a number": (file({"a": entry(shape=(True, 2))}), "a few whole numbers"),
    "a huge shape": (file({"a": entry(shape=(2**40, 2**19))}), "need another number"),
    "offsets in reverse": (file({"a": entry(offsets=(8, 0))}), "need another number"),
    "three offsets": (file({"a": entry(offsets=(0, 8, 8))}), "a few whole numbers"),
    "offsets beyond the file": (file({"a": entry(offsets=(8, 16))}), "overlap, or leave gaps"),
    "twice the same bytes": (file({"a": entry(), "b": entry()}), "overlap, or leave gaps"),
    "bytes that are left": (file({"a": entry()}, bytes(9)), "not what its description says"),
    "bytes that lack": (file({"a": entry()}, bytes(7)), "not what its description says"),
    "a description of half a letter": (file({"a": entry(), "__metadata__": {"eldistill": '{"a": "\\ud800"}'}}), "surrogates"),
    "a nested description": (file({"a": entry(), "__metadata__": {"eldistill": "[" * 100_000}}), "nested too deeply"),
    "a description that is a list": (file({"a": entry(), "__metadata__": {"eldistill": "[]"}}), "no mapping"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(WRONG))
def test_what_does_not_add_up_is_one_sentence(tmp_path, kind):
    content, sentence = WRONG[kind]
    (tmp_path / "a.safetensors").write_bytes(content)
    for read in (load_tensors, map_tensors, lambda path: load_tensors(path, foreign=True)):
        with pytest.raises(Problem, match=sentence) as caught:
            read(tmp_path / "a.safetensors")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_no_file_and_no_ordinary_file_are_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, sentence in (("absent", "is missing"), ("fifo", "a named pipe"), (".", "is a folder")):
        with pytest.raises(Problem, match=sentence):
            load_tensors(tmp_path / name)
