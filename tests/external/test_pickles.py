# SPDX-License-Identifier: Apache-2.0
"""Published network files: what is read equals what was written, and everything else is refused in one sentence."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import struct
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from eldistill import files, networks
from eldistill.external import pickles, weights
from eldistill.external.machine import STORAGES
from eldistill.external.pickles import Refused
from eldistill.sampling import teachers
from eldistill.teacher import edm
from eldistill.tensors import load_tensors
from tests import conftest, hostile, official

DATA = conftest.GOLDEN / "networks"
GOLDEN = sorted(
    path.stem
    for path in DATA.glob("*.npz")
    if path.stem.startswith(("song", "adm", "edm2_")) and path.stem != "edm2_math"
)


def golden(name: str) -> tuple[torch.nn.Module, dict]:
    """A network of the original code, and the keywords it was made with."""
    with np.load(DATA / f"{name}.npz") as arrays:
        kwargs = json.loads(str(arrays["_kwargs_json"]))["init_kwargs"]
        state = {key: torch.from_numpy(arrays[key]) for key in arrays.files if not key.startswith("_")}
    settings = {key: value for key, value in kwargs.items() if key not in edm.UNUSED}
    kind = {"SongUNet": "song", "DhariwalUNet": "adm", None: "edm2"}[kwargs.get("model_type")]
    network = networks.build({"network": kind, **settings}).eval().requires_grad_(False)
    network.load_state_dict(state)
    return network, kwargs


def small(seed: int = 0) -> tuple[torch.nn.Module, dict]:
    """A network of a few thousand numbers and its keywords."""
    kwargs = {"model_type": "SongUNet", "model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [],
              "dropout": 0.1, "use_fp16": False, "img_resolution": 4, "img_channels": 1, "label_dim": 0}  # fmt: skip
    settings = {key: value for key, value in kwargs.items() if key not in edm.UNUSED}
    return networks.build({"network": "song", **settings}, seed).eval().requires_grad_(False), kwargs


def same(a: dict, b: dict) -> bool:
    """Equal names, order, dtypes and bits."""
    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


# --- there and back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [True, False], ids=["torch 1.13, numpy 1", "torch 2, numpy 2"])
@pytest.mark.parametrize("name", GOLDEN)
def test_a_network_comes_back_bit_for_bit(tmp_path, name, old):
    """All architectures, both spellings of numpy, both kinds of module state; EDM2 in float16."""
    network, kwargs = golden(name)
    latent = name == "edm2_cond_latent"
    write, core = (official.edm2 if name.startswith("edm2") else official.edm), "core" if old else "_core"
    if name.startswith("edm2"):
        network = network.half()
    more = {"latent": latent} if name.startswith("edm2") else {}
    path = official.write(tmp_path / "net.pkl", write(network, kwargs, core, old, **more))
    with pickles.read_network_file(path) as file:
        found = file.network()
        assert same(found.state(), network.state_dict())
        assert found.kwargs == kwargs and found.inner_kwargs == kwargs
        loaded = edm.build_network(found)
        latents = edm.codec_of(file)
        assert (latents is not None) is latent
        if latent:
            assert latents["scale"] == pytest.approx([0.12, 0.11, 0.13, 0.15])
            assert latents["bias"] == pytest.approx([-0.7, -0.35, -0.02, 0.33])
        assert file.bytes == path.stat().st_size and file.sha256 == files.sha256(path)
    assert same(loaded.state_dict(), network.float().state_dict())
    x = torch.randn(2, network.img_channels, *[network.img_resolution] * 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(x, 0.7), network(x, 0.7))


def test_a_converted_teacher_is_a_teacher(tmp_path):
    """convert writes one safetensors file which the other steps load; it says where it comes from."""
    network, kwargs = golden("song_ddpmpp_cond")
    path = official.write(tmp_path / "net.pkl", official.edm(network, kwargs))
    about = edm.convert_pickle(path, tmp_path / "teacher.safetensors", licence="CC BY-NC-SA 4.0")
    loaded, description = teachers.load_denoiser(tmp_path / "teacher.safetensors")
    assert same(loaded.state_dict(), network.state_dict()) and description == json.loads(json.dumps(about))
    source = about["source"]
    assert source["sha256"] == files.sha256(path) and source["licence"] == "CC BY-NC-SA 4.0"
    assert source["dataset_kwargs"]["max_size"] == 50000 and source["class"] == "EDMPrecond"
    assert about["codec"] == {"mean": 0.5, "std": 0.25} and about["label_dim"] == 10
    with pytest.raises(Refused, match="has the sha256 .*; expected 0000000000000000"):
        edm.convert_pickle(path, tmp_path / "other.safetensors", sha256="0" * 64)
    assert not (tmp_path / "other.safetensors").exists()


def test_half_precision_stays_in_the_file_and_is_raised_on_load(tmp_path):
    network, kwargs = golden("edm2_cond_latent")
    path = official.write(tmp_path / "net.pkl", official.edm2(network.half(), kwargs))
    edm.convert_pickle(path, tmp_path / "teacher.safetensors")
    assert {tensor.dtype for tensor in load_tensors(tmp_path / "teacher.safetensors")[0].values()} == {torch.float16}
    loaded, _ = teachers.load_denoiser(tmp_path / "teacher.safetensors")
    assert same(loaded.state_dict(), network.float().state_dict())


def test_reference_statistics_and_a_bare_root(tmp_path):
    """EDM2's dict of arrays; NVIDIA's Inception is a network at the root, with torch's own layers in it."""
    mean, cov = np.arange(3.0), np.asfortranarray(np.arange(9.0).reshape(3, 3))
    for core in ("core", "_core"):
        value = {"num_images": 1281167, "fid": {"mu": official.Array(mean, core), "sigma": official.Array(cov, core)}}
        with pickles.read_network_file(official.write(tmp_path / "refs.pkl", value)) as file:
            found = file.plain(file.value)
        assert found["num_images"] == 1281167
        assert np.array_equal(found["fid"]["mu"], mean) and np.array_equal(found["fid"]["sigma"], cov)
    layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.MaxPool2d(3, 2), torch.nn.AvgPool2d(2))
    inception = official.Persistent("InceptionV3", {"_parameters": {}, "_buffers": {}, "_modules": {"layers": layers}})
    with pickles.read_network_file(official.write(tmp_path / "inception.pkl", inception)) as file:
        found = file.network()
        assert same(found.state(), {f"layers.{key}": value for key, value in layers.state_dict().items()})
        assert found.classes["layers.1"] == "MaxPool2d"


def test_the_pickler_of_python_agrees_about_plain_values(tmp_path):
    """Texts, numbers, nesting, memo, in protocols 2 to 5."""
    rng = random.Random(0)

    def some(depth: int):
        if depth == 0:
            return rng.choice([None, True, False, 0, 255, 256, 65535, 65536, -1, -(2**31), 2**31, 2**200, -(2**63), 0.1, -math.inf,
                               "", "a", "ß€😀", "x" * 300])  # fmt: skip
        many = range(rng.choice([0, 1, 2, 3, 4, 7]))
        kind = rng.choice(["list", "tuple", "dict"])
        return {"list": list, "tuple": tuple}[kind](some(depth - 1) for _ in many) if kind != "dict" else {
            f"key {i}": some(depth - 1) for i in many}  # fmt: skip

    for protocol in (2, 3, 4, 5):
        for _ in range(40):
            value = some(4)
            twice = [value, value, [value]]
            path = tmp_path / "value.pkl"
            path.write_bytes(pickle.dumps(twice, protocol))
            with pickles.read_network_file(path) as file:
                assert file.value == twice and file.value[0] is file.value[2][0]


def test_tensors_that_are_not_in_order_are_read_in_order(tmp_path):
    """Transposed, offset and empty ones, of every dtype."""
    base = torch.arange(24, dtype=torch.float32)
    tensors = {
        "a": base.reshape(4, 6).t(),
        "b": base[6:12].reshape(2, 3),
        "c": torch.empty(0, 3),
        "d": torch.tensor(3.0),
    }
    tensors |= {f"t{i}": base.reshape(2, 3, 4).to(dtype) for i, dtype in enumerate(STORAGES.values())}
    tensors["last"] = base.reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    value = {"ema": official.Persistent("Net", {"_parameters": {}, "_buffers": tensors, "_modules": {}})}
    with pickles.read_network_file(official.write(tmp_path / "net.pkl", value)) as file:
        assert same(file.network().state(), tensors)


# --- refusals -------------------------------------------------------------------------------------------


def module(**changes) -> official.Persistent:
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}} | changes
    return official.Persistent("Net", state)


def ema(**changes) -> bytes:
    return official.dumps({"ema": module(**changes)})


def tensor(size, stride, offset=0, numel=6, hooks=None, dtype=torch.float32) -> bytes:
    storage = torch.arange(numel).to(dtype)
    build = hostile.Call(torch._utils._rebuild_tensor_v2, storage.storage(), offset, size, stride, False, hooks or {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ema(_buffers={"x": build})


def raw(text: bytes) -> bytes:
    """A stream of protocol 4 without frames."""
    return b"\x80\x04" + text + b"."


def name(where: str, what: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (where, what)) + b"\x93"


def blob() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(torch.arange(6.0).storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def in_blob(content: bytes) -> bytes:
    """A file whose only tensor has this blob."""
    load = name("torch.storage", "_load_from_bytes") + b"B" + struct.pack("<I", len(content)) + content + b"\x85R"
    return raw(b"}\x8c\x03ema" + load + b"s")


def zip_blob() -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.arange(6.0), buffer)
    return buffer.getvalue()


GOOD = blob()
_AT = GOOD.index(b"\x88", GOOD.index(b"little_endian"))
BIG_ENDIAN = GOOD[:_AT] + b"\x89" + GOOD[_AT + 1 :]
OTHER_COUNT = GOOD[:-32] + struct.pack("<q", 5) + GOOD[-24:]
PERSISTENT = name("torch_utils.persistence", "_reconstruct_persistent_obj")
DICT = name("collections", "OrderedDict") + b")R"
CONTAINER = name("torch.nn.modules.container", "ModuleDict") + b")\x81"
HOSTILE: dict[str, bytes] = {
    # calls
    "os.system": hostile.dumps(),
    "os.system, protocol 2": hostile.dumps(2),
    "os.system, protocol 0": hostile.dumps(0),
    "os.system, protocol 1": hostile.dumps(1),
    "eval": pickle.dumps(hostile.Call(eval, f"open('{hostile.CANARY}','w')")),
    "INST": b"(S'touch canary'\nios\nsystem\n.",
    "INST behind PROTO": raw(b"(S'touch canary'\nios\nsystem\n"),
    "OBJ": raw(b"(" + name("os", "system") + b"\x8c\x0ctouch canaryo"),
    "NEWOBJ_EX": raw(name("collections", "OrderedDict") + b")}\x92"),
    "dotted name": raw(name("torch.nn.modules.container", "ModuleDict.__init__.__globals__")),
    "module of an allowed name": raw(name("torch_utils", "persistence._reconstruct_persistent_obj")),
    "torch.load": raw(name("torch", "load") + b"\x8c\x01x\x85R"),
    "builtins.getattr": raw(name("builtins", "getattr")),
    "numpy.core.multiarray._reconstruct.__globals__": raw(name("numpy.core.multiarray", "_reconstruct.__globals__")),
    "numpy.load": raw(name("numpy", "load")),
    "torch.FloatStorage outside": raw(name("torch", "FloatStorage")),
    "_rebuild_parameter_with_state": raw(name("torch._utils", "_rebuild_parameter_with_state")),
    "a global by GLOBAL": raw(b"cos\nsystem\n"),
    "GLOBAL without an end": raw(b"cos" + b"x" * 400),
    "a global named by numbers": raw(b"K\x01K\x02\x93"),
    "a call of a text": raw(b"\x8c\x01a)R"),
    "a call of a record": raw(DICT + b")R"),
    "a call without a tuple": raw(name("collections", "OrderedDict") + b"}R"),
    "a mapping of something": raw(name("collections", "OrderedDict") + b"]\x85R"),
    "a container of something": raw(name("torch.nn.modules.container", "ModuleDict") + b"K\x01\x85\x81"),
    "a container by REDUCE": raw(name("torch.nn.modules.container", "ModuleDict") + b")R"),
    "ndarray called": raw(name("numpy", "ndarray") + b"K\x01\x85\x85R"),
    # states
    "state on a name": raw(PERSISTENT + b"N}\x8c\x01aK\x01s\x86b"),
    "state on a class": raw(name("numpy", "ndarray") + b"}\x8c\x01aK\x01sb"),
    "slot state on a container": raw(CONTAINER + b"N}\x8c\x01aK\x01s\x86b"),
    "two states": raw(CONTAINER + b"}b}b"),
    "a state on a mapping": raw(DICT + b"}\x8c\x01aK\x01sb"),
    "a state on a list": raw(b"]}b"),
    "a state on nothing": raw(b"}b"),
    # opcodes and stack
    "EXT1": raw(b"\x82\x01"),
    "EXT2": raw(b"\x83\x01\x00"),
    "EXT4": raw(b"\x84\x01\x00\x00\x00"),
    "PERSID": raw(b"Pabc\n"),
    "BINPERSID": raw(b"K\x01Q"),
    "NEXT_BUFFER": raw(b"\x97"),
    "BYTEARRAY8": raw(b"\x96" + bytes(8)),
    "DUP": raw(b"K\x012\x86"),
    "LONG4": raw(b"\x8b\x01\x00\x00\x00\x01"),
    "FROZENSET": raw(b"(\x91"),
    "LIST": raw(b"(l"),
    "DICT": raw(b"(d"),
    "INT": raw(b"I1\n"),
    "STRING": raw(b"S'a'\n"),
    "FLOAT": raw(b"F1\n"),
    "UNICODE": raw(b"Va\n"),
    "BINSTRING": raw(b"U\x01a"),
    "unknown opcode": raw(b"\xff"),
    "PROTO 6": b"\x80\x06N.",
    "PROTO twice": raw(b"\x80\x04N"),
    "empty stack": raw(b""),
    "values left": raw(b"NN"),
    "a mark left": raw(b"(N"),
    "no mark": raw(b"Nu"),
    "POP below a mark": raw(b"N(0"),
    "a tuple below a mark": raw(b"N(\x85"),
    "APPEND to a number": raw(b"K\x01K\x02a"),
    "SETITEM on a list": raw(b"]\x8c\x01aK\x01s"),
    "an odd SETITEMS": raw(b"}(\x8c\x01au"),
    "a key that is a number": raw(b"}K\x01K\x02s"),
    "a key that is a tuple": raw(b"})K\x02s"),
    "a long key": raw(b"}X\x00\x04\x00\x00" + b"k" * 1024 + b"Ns"),
    "a set of numbers": raw(b"\x8f(K\x01\x90"),
    "an unknown memo": raw(b"h\x05"),
    "a memo of nothing": b"\x80\x04\x94.",
    "not UTF-8": raw(b"\x8c\x01\xff"),
    "bytes behind the end": raw(b"}") + b"more",
    # bombs
    "a text of 4 GiB": raw(b"X\xff\xff\xff\xff"),
    "bytes of 2^63": raw(b"\x8e" + b"\xff" * 7 + b"\x7f"),
    "a memo index of 4 billion": raw(b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff"),
    "a million sets": raw(b"(" + b"\x8f" * 10**6 + b"t"),
    "a million lists": raw(b"(" + b"]" * 999_990 + b"t"),
    "a million marks": raw(b"(" * 999_999),
    "two million Nones": raw(b"(" + b"N" * 2 * 10**6 + b"t"),
    "a deep tuple": raw(b"N" + b"\x85" * 500_000),
    "a deep tuple as a dtype": raw(name("numpy", "dtype") + b"N" + b"\x85" * 200_000 + b"\x85R"),
    # tensors
    "beyond its storage": tensor((7,), (1,)),
    "an offset beyond": tensor((3,), (1,), offset=4),
    "a negative size": tensor((-1,), (1,)),
    "a negative stride": tensor((2,), (-1,), offset=3),
    "a negative offset": tensor((2,), (1,), offset=-1),
    "a stride of 0": tensor((6,), (0,)),
    "a huge shape of stride 0": tensor((10**9, 10**9), (0, 0)),
    "gaps": tensor((3,), (2,)),
    "sizes without strides": tensor((2, 3), (1,)),
    "nine dimensions": tensor((1,) * 9, (1,) * 9),
    "a size that is a float": tensor((2.0,), (1,)),
    "hooks": tensor((6,), (1,), hooks={"a": 1}),
    "a size of 2^60": tensor((2**60,), (1,)),
    "a size that is true": tensor((True,), (1,)),
    # storages
    "a zip as a storage": in_blob(zip_blob()),
    "a cut storage": in_blob(GOOD[:-1]),
    "a storage with more": in_blob(GOOD + b"\0"),
    "another magic": in_blob(GOOD.replace(b"\x6c\xfc\x9c\x46", b"\x6c\xfc\x9c\x47", 1)),
    "no storage": in_blob(b""),
    "a text as a storage": in_blob(b"hello"),
    "os.system in the first stream": in_blob(hostile.dumps(2) + GOOD),
    "os.system as the storage's class": in_blob(GOOD.replace(b"ctorch\nFloatStorage", b"cos\nsystem", 1)),
    "an unknown storage": in_blob(GOOD.replace(b"FloatStorage", b"CharStorage!")),
    "another count": in_blob(OTHER_COUNT),
    "big endian": in_blob(BIG_ENDIAN),
    "a storage in a storage": in_blob(in_blob(GOOD)),
    "a number as a storage": raw(name("torch.storage", "_load_from_bytes") + b"K\x01\x85R"),
    # numpy
    "an object dtype": raw(name("numpy", "dtype") + b"\x8c\x02O8\x85R"),
    "a dtype of text": raw(name("numpy", "dtype") + b"\x8c\x02U8\x85R"),
    "a big-endian dtype": raw(name("numpy", "dtype") + b"\x8c\x02f8\x85R(K\x03\x8c\x01>tb"),
    "a number of other bytes": raw(
        name("numpy.core.multiarray", "scalar") + name("numpy", "dtype") + b"\x8c\x02f8\x85RC\x07" + bytes(7) + b"\x86R"
    ),
    "an array without content": official.dumps(
        {"ema": module(_init_kwargs={"a": hostile.Call(official.ARRAY["core"], np.ndarray, (0,), b"b")})}
    ),
    # objects
    "a description of another version": official.dumps({"ema": official.Persistent("Net", {}, version=7)}),
    "a description with a part more": official.dumps({"ema": official.Persistent("Net", {}, more=1)}),
    "a state that is a list": official.dumps({"ema": official.Persistent("Net", [])}),
    "a source that is a number": official.dumps({"ema": official.Persistent("Net", {}, module_src=1)}),
    "no ema": official.dumps({"G_ema": module()}),
    "a number as a root": pickle.dumps(3),
    "a list as a root": pickle.dumps([]),
    "a number as a module": ema(_modules={"a": 3}),
    "a list of modules": ema(_modules=[]),
    "a text as a parameter": ema(_parameters={"a": "x"}),
    "a buffer as a parameter": ema(_parameters={"a": torch.ones(2)}),
    "parameters that are a list": ema(_parameters=[]),
    "keywords that are a list": ema(_init_kwargs=[1]),
    "keywords with a module in them": ema(_init_kwargs={"a": module()}),
    # files
    "empty": b"",
    "zeros": bytes(1000),
    "a page": b"<!DOCTYPE html><html><body>404</body></html>",
    "a zip": zip_blob(),
    "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


def refused(path: Path) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(Refused) as caught:
        with pickles.read_network_file(path) as file:
            edm.build_network(file.network())
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600 and "Traceback" not in text
    return text


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_and_damaged_files_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    Path("net.pkl").write_bytes(HOSTILE[kind])
    assert refused(Path("net.pkl")).startswith("net.pkl")
    assert not hostile.called() and sorted(os.listdir()) == ["net.pkl"]


def test_there_are_enough_of_them():
    assert len(HOSTILE) > 100 and len(set(HOSTILE.values())) == len(HOSTILE)


def test_the_hostile_parts_would_bite_elsewhere(tmp_path, monkeypatch):
    """The canary is alive: Python's own unpickler does create it."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE["os.system"])
    assert hostile.called()


def test_a_source_in_the_file_is_only_hashed(tmp_path):
    """official.SOURCE would end the process."""
    import hashlib

    network, kwargs = small()
    with pickles.read_network_file(official.write(tmp_path / "net.pkl", official.edm(network, kwargs))) as file:
        assert file.network().source_sha256 == hashlib.sha256(official.SOURCE.encode()).hexdigest()


def test_modules_that_share_modules_do_not_explode(tmp_path):
    """Thirty levels of two names for one module would be a billion modules."""
    below = module()
    for _ in range(30):
        below = module(_modules={"a": below, "b": below})
    assert "modules deeper than" in refused(official.write(tmp_path / "net.pkl", {"ema": below}))
    shared = {"ema": module(_buffers={f"x{i}": tensor for tensor in [torch.ones(1000)] for i in range(1000)})}
    assert "tensors of more than its" in refused(official.write(tmp_path / "net.pkl", shared))
    nested = {"a": 1}
    for _ in range(30):
        nested = {"a": nested, "b": nested}
    assert "nested too deeply" in refused(official.write(tmp_path / "net.pkl", {"ema": module(_init_kwargs=nested)}))


def below_long_names(**state) -> dict:
    """A root with a module whose name has 501 characters."""
    return {"ema": module(_modules={"a" * 250: module(_modules={"b" * 250: module(**state)})})}


def shares(kind: str):
    """Small files that name one thing a thousand times, each time to be written out."""
    network, kwargs = small()
    leaf = module(_buffers={f"x{i}": tensor for tensor in [torch.ones(0)] for i in range(50)})
    text, nothing = "x" * 4_000_000, [[]] * 1000
    return {
        "names of tensors": lambda: below_long_names(_modules={str(i): leaf for i in range(19_000)}),
        "names of modules": lambda: below_long_names(_modules={str(i): leaf for i in range(100_000)}),
        "names of few modules": lambda: below_long_names(_modules={str(i): leaf for i in range(15_000)}),
        "texts about the data": lambda: official.edm(network, kwargs, dataset_kwargs={"path": [text] * 100_000}),
        "lists about the data": lambda: official.edm(network, kwargs, dataset_kwargs={"path": [nothing] * 990}),
        "texts as a keyword": lambda: official.edm(network, kwargs | {"channel_mult": [text] * 5000}),
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    ["names of tensors", "names of modules", "names of few modules", "texts about the data", "lists about the data",
     "texts as a keyword"],
)  # fmt: skip
def test_what_a_file_shares_is_counted_as_often_as_it_is_named(tmp_path, kind):
    """Memory grows by less than twice the file and 64 MB; nothing is written."""
    network, kwargs = small()
    edm.convert_pickle(
        official.write(tmp_path / "good.pkl", official.edm(network, kwargs)), tmp_path / "good.safetensors"
    )
    os.remove(tmp_path / "good.pkl"), os.remove(tmp_path / "good.safetensors")  # what is imported for it is not counted
    path = official.write(tmp_path / "net.pkl", shares(kind))
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match="names of more than|than settings need|or too many"):
            edm.convert_pickle(path, tmp_path / "out.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size + 64e6
    finally:
        tracemalloc.stop()
    assert sorted(os.listdir(tmp_path)) == ["net.pkl"]


def test_an_array_is_no_keyword(tmp_path):
    """It could not be compared with the keyword of the outer network."""
    inner = module(_init_kwargs={"model_channels": official.Array(np.arange(3), "core")})
    state = {"_parameters": {}, "_buffers": {}, "_modules": {"model": inner}, "_init_kwargs": {"model_channels": 4}}
    assert "that are arrays" in refused(
        official.write(tmp_path / "net.pkl", {"ema": official.Persistent("EDMPrecond", state)})
    )


@pytest.mark.parametrize("kind", ["dangling", "folder", "fifo", "missing", "device"])
def test_only_ordinary_files_are_opened(tmp_path, kind):
    path = tmp_path / "net.pkl"
    {"dangling": lambda: path.symlink_to(tmp_path / "no"), "folder": path.mkdir,
     "fifo": lambda: os.mkfifo(path), "missing": lambda: None, "device": lambda: path.symlink_to("/dev/zero")}[kind]()  # fmt: skip
    assert str(path) in refused(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "NCSNpp"}, "its model_type is 'NCSNpp', but its U-Net is of the class 'SongUNet'"),
        ({"model_channels": 10**9}, "its model_channels is 1000000000"), ({"model_channels": True}, "its model_channels is True"),
        ({"model_channels": 4.0}, "its model_channels is 4.0"), ({"num_blocks": 10**6}, "its num_blocks is"),
        ({"channel_mult": [1] * 99}, "its channel_mult is"), ({"channel_mult": "12"}, "its channel_mult is '12'"),
        ({"decoder_type": "skip"}, "its decoder_type is 'skip'"), ({"embedding_type": "eval"}, "its embedding_type is 'eval'"),
        ({"__class__": 1}, "its keyword '__class__' is none of"), ({"sigma_max": math.nan}, "its sigma_max is nan"),
        ({"img_resolution": 8}, "its keyword img_resolution is 8, but its attribute img_resolution is 4"),
        ({"num_blocks": 2}, "its keywords need"), ({"model_channels": 8}, r"expected \["), ({"dropout": -1}, "its dropout is -1"),
    ],
)  # fmt: skip
def test_keywords_that_do_not_fit_are_refused(tmp_path, changes, sentence):
    """Before anything of their size is built."""
    network, kwargs = small()
    path = official.write(tmp_path / "net.pkl", official.edm(network, kwargs | changes))
    with pytest.raises(Refused, match=sentence):
        edm.convert_pickle(path, tmp_path / "out.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["net.pkl"]


@pytest.mark.parametrize(
    "told",
    [{"path": math.inf}, {"path": official.Array(np.ones(3), "core")}, {"path": "\ud800"}, {None: 1, "a": 2}, {(1, 2): 3},
     [math.nan], {"x": b"bytes"}],
    ids=lambda told: type(told).__name__ + str(len(told)),
)  # fmt: skip
def test_what_is_told_of_the_data_must_be_plain(tmp_path, told):
    """It goes into a header of JSON: everything that does not is refused, and nothing is written."""
    network, kwargs = small()
    path = official.write(tmp_path / "net.pkl", official.edm(network, kwargs, dataset_kwargs=told))
    with pytest.raises(Refused, match="net.pkl"):
        edm.convert_pickle(path, tmp_path / "out.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["net.pkl"]


@pytest.mark.parametrize("bias", [np.ones(1000), np.array([math.nan]), np.array([2**60]), np.zeros(0), "text"], ids=str)
def test_constants_of_latents_are_a_few_numbers(tmp_path, bias):
    network, kwargs = small()
    value = official.Array(bias, "core") if isinstance(bias, np.ndarray) else bias
    encoder = official.Persistent("StabilityVAEEncoder", {"scale": official.Array(np.ones(4), "core"), "bias": value})
    path = official.write(tmp_path / "net.pkl", official.edm(network, kwargs, encoder=encoder))
    with pytest.raises(Refused, match="bias of its latents"):
        edm.convert_pickle(path, tmp_path / "out.safetensors")


@pytest.mark.parametrize("scale", [np.zeros(4), np.ones(3), -np.ones(4)], ids=str)
def test_scales_of_latents_can_be_divided_by(tmp_path, scale):
    network, kwargs = small()
    state = {"scale": official.Array(scale, "core"), "bias": official.Array(np.ones(4), "core")}
    encoder = official.Persistent("StabilityVAEEncoder", state)
    path = official.write(tmp_path / "net.pkl", official.edm(network, kwargs, encoder=encoder))
    with pytest.raises(Refused, match="scales of its latents"):
        edm.convert_pickle(path, tmp_path / "out.safetensors")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    network, kwargs = small()
    next(network.parameters()).data.view(-1)[0] = math.nan
    path = official.write(tmp_path / "net.pkl", official.edm(network, kwargs))
    with pytest.raises(Refused, match="is not finite"):
        edm.convert_pickle(path, tmp_path / "out.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_number_that_is_not_finite_is_found_anywhere(dtype):
    """Alone or beside its opposite; and large numbers whose sum overflows are finite all the same."""
    for place in (0, 1, 500, 999):
        for value in (math.nan, math.inf, -math.inf):
            numbers = torch.ones(1000, dtype=dtype)
            numbers[place] = value
            assert not weights.is_finite(numbers)
            numbers[place - 1] = -value
            assert not weights.is_finite(numbers)
    assert weights.is_finite(torch.full((1000,), torch.finfo(dtype).max, dtype=dtype))


def test_truncations_are_refused_everywhere(tmp_path):
    network, kwargs = small()
    whole = official.dumps(official.edm(network, kwargs))
    rng, path = random.Random(1), tmp_path / "net.pkl"
    for length in [*range(40), *(rng.randrange(len(whole)) for _ in range(400)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path)


def fuzz(path: Path, whole: bytes, count: int, seed: int) -> int:
    """Mutated files: each is read, or refused in a sentence; nothing else. Returns how many were refused."""
    rng, bad = random.Random(seed), 0
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
            at, kind = rng.randrange(len(data)), rng.randrange(6)
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at] = rng.randrange(256)
            elif kind == 2:
                del data[at : at + rng.choice([1, 2, 8, 100])]
            elif kind == 3:
                data[at:at] = rng.randbytes(rng.choice([1, 4, 16]))
            elif kind == 4:
                other = rng.randrange(len(data))
                data[at:at] = data[other : other + rng.choice([1, 10, 200])]
            else:
                data[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1, rng.randrange(2**32)]))
            if not data:
                data = bytearray(b"\x80")
        path.write_bytes(data)
        try:
            with pickles.read_network_file(path) as file:
                file.network()
            edm.convert_pickle(path, path.with_suffix(".safetensors"))
        except Refused as error:
            bad += 1
            assert "\n" not in str(error) and len(str(error)) < 600
    return bad


@pytest.fixture(scope="module")
def tiny() -> bytes:
    """A valid file of a few kilobytes, with every kind of part."""
    network, kwargs = small()
    holder = module(_parameters={"w": torch.nn.Parameter(torch.ones(2))}, _buffers={"b": torch.ones(3).half(), "none": None},
                    _modules={"enc": torch.nn.ModuleDict(), "x": module()},
                    _init_kwargs={"a": official.Number(np.float64(2), "core"), "b": official.Array(np.ones((2, 2)), "_core")})  # fmt: skip
    return official.dumps(
        {"ema": holder, "dataset_kwargs": official.EASY(path="x", max_size=5), "more": [1.5, (None, {"a": 2**70})]}
    )


def test_mutations_are_read_or_refused(tmp_path, tiny):
    """1,500 of the 10,000; all of them in the slow test below."""
    assert fuzz(tmp_path / "net.pkl", tiny, 1500, 0) > 750


@pytest.mark.slow
def test_ten_thousand_mutations_are_read_or_refused(tmp_path, tiny):
    network, kwargs = small()
    whole = official.dumps(official.edm(network, kwargs))
    assert fuzz(tmp_path / "net.pkl", tiny, 7000, 1) + fuzz(tmp_path / "net.pkl", whole, 3000, 2) > 5000
