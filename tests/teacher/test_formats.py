# SPDX-License-Identifier: Apache-2.0
"""Files of trainings and of papers around EDM: each is read as what it is, or named, with what to give in its place.

The published files are not here; what is written has their classes, keywords, names and layout, by the code that writes them.
"""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eldistill import networks
from eldistill.errors import Problem
from eldistill.external import pickles
from eldistill.sampling import teachers
from eldistill.teacher import agree, convert, edm
from tests import official

SIZES = {"img_resolution": 8, "img_channels": 3, "label_dim": 5}
# What EDM's training passes for each --arch, with small values of --cbase and --cres.
ARCHS = {
    "ddpmpp": {"model_type": "SongUNet", "embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard",
               "channel_mult_noise": 1, "resample_filter": [1, 1], "model_channels": 16, "channel_mult": [1, 2]},
    "ncsnpp": {"model_type": "SongUNet", "embedding_type": "fourier", "encoder_type": "residual", "decoder_type": "standard",
               "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1], "model_channels": 16, "channel_mult": [1, 2]},
    "adm": {"model_type": "DhariwalUNet", "model_channels": 32, "channel_mult": [1, 2]},
}  # fmt: skip
OUTER = {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond"}


def network(kwargs: dict, seed: int = 1) -> torch.nn.Module:
    """The network with EDM's preconditioning, all of its weights drawn."""
    settings = {key: value for key, value in kwargs.items() if key not in edm.UNUSED}
    kind = "song" if kwargs["model_type"] == "SongUNet" else "adm"
    net = networks.build({"network": kind, **settings}, seed).eval().requires_grad_(False)
    for parameter in net.parameters():  # those that start at zero too
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.1)
    return net


def write(path: Path, kwargs: dict, outer: str, **more) -> torch.nn.Module:
    """A snapshot of EDM whose network has the class `outer`."""
    net = network(kwargs)
    value = official.edm(net, kwargs) | more
    value["ema"] = official.root(net, kwargs, classes=(outer, kwargs["model_type"]))
    official.write(path, value)
    return net


def adopt(path: Path, labels: bool = True) -> tuple[torch.nn.Module, dict]:
    section = {"file": str(path), "codec": agree.PIXELS, "labels": labels}
    convert.convert_teacher(section, path.parent / "teacher.safetensors")
    return teachers.load_denoiser(path.parent / "teacher.safetensors", dtype=torch.float64)


def refused(path: Path) -> str:
    """The sentence for a file that is no teacher; nothing is written."""
    with pytest.raises(Problem) as caught:
        adopt(path)
    assert "\n" not in str(caught.value) and not (path.parent / "teacher.safetensors").exists()
    return str(caught.value)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64), torch.eye(5, dtype=torch.float64)[:4]


def time_of_vp(sigma: float) -> float:
    """t with sigma^2 = exp(19.9 t^2 / 2 + 0.1 t) - 1, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        above = np.expm1(19.9 * middle**2 / 2 + 0.1 * middle) > sigma**2
        low, high = (low, middle) if above else (middle, high)
    return low


def denoised(process: str, inner, x: torch.Tensor, sigma: float, labels) -> torch.Tensor:
    """D of table 1 of EDM's paper, columns VP and VE, with the U-Net alone."""
    if process == "vp":
        return x - sigma * inner(x / (sigma**2 + 1) ** 0.5, x.new_tensor([999 * time_of_vp(sigma)]), labels)
    return x + sigma * inner(x, x.new_tensor([np.log(sigma / 2)]), labels)


# --- trainings with EDM's code ------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("process", ["vp", "ve"])
def test_the_baselines_denoise_as_their_formulas_say(tmp_path, process, arch):
    """In float64 to rounding, from the network's own U-Net; features and the range are those of EDM's networks.

    Fourier features of the labels of vp, which go up to 999, turn a rounding of 1e-16 into one of 1e-11."""
    steep = (process, arch) == ("vp", "ncsnpp")
    kwargs = ARCHS[arch] | SIZES | {"dropout": 0.1, "use_fp16": False}
    inner = write(tmp_path / "net.pkl", kwargs, OUTER[process]).double().model
    net, about = adopt(tmp_path / "net.pkl")
    assert about["source"]["class"] == OUTER[process] and about["config"]["process"] == process
    x, labels = inputs()
    for sigma in (0.03, 0.5, 7.0, 79.0):
        wanted = denoised(process, inner, sigma * x, sigma, labels)
        found = net(sigma * x, sigma, labels)
        assert float((found - wanted).abs().max() / wanted.abs().max()) < (1e-8 if steep else 1e-11)
        image, features = net.both(sigma * x, sigma, labels)
        assert torch.equal(image, found) and features.shape[1:] == net.features_shape
        rounded = net.float()(sigma * x, sigma, labels).double()
        assert float((rounded - wanted).abs().max() / wanted.abs().max()) < (0.1 if steep else 1e-4)
        net.double()
    limits = (0.02, 100.0) if process == "ve" else (np.expm1(1e-6 + 9.95e-10) ** 0.5, np.expm1(10.05) ** 0.5)
    assert (net.sigma_min, net.sigma_max) == pytest.approx(limits)


def test_each_level_of_a_batch_has_its_own_label(tmp_path):
    kwargs = ARCHS["ddpmpp"] | SIZES | {"dropout": 0.1, "use_fp16": False}
    write(tmp_path / "net.pkl", kwargs, "VPPrecond")
    net, _ = adopt(tmp_path / "net.pkl")
    x, labels = inputs()
    levels = torch.tensor([0.1, 1, 10, 50], dtype=torch.float64)
    alone = torch.cat([net(x[i : i + 1], levels[i], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(net(x, levels, labels), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("precond", OUTER)
def test_every_option_of_the_command_line_of_edm_is_read(tmp_path, precond, arch):
    """--cbase, --cres, --dropout, --augment, --fp16 and --cond, with each --arch and --precond; label dropout by edited code."""
    options = {
        "model_channels": [32], "channel_mult": [[1], [2, 1]], "dropout": [0.0, 0.3], "augment_dim": [9], "use_fp16": [True],
        "label_dropout": [0.1],
    }  # fmt: skip
    changes = [{key: value} for key, values in options.items() for value in values] + [{"label_dim": 0}]
    for index, change in enumerate(changes):
        path = tmp_path / str(index) / "net.pkl"
        path.parent.mkdir()
        kwargs = ARCHS[arch] | SIZES | {"dropout": 0.1, "use_fp16": False, "num_blocks": 1} | change
        net = write(path, kwargs, OUTER[precond])
        found, _ = adopt(path, labels=bool(kwargs["label_dim"]))
        assert [*found.state_dict()] == [*net.state_dict()]


def test_the_state_of_a_training_names_the_snapshot_beside_it(tmp_path):
    """training-state-*.pt of EDM and ECT: a pickled network and an optimiser."""
    kwargs = ARCHS["ddpmpp"] | SIZES | {"dropout": 0.1, "use_fp16": False}
    net = network(kwargs)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    path = tmp_path / "training-state-000010.pt"
    with official.importable():
        torch.save({"net": official.root(net, kwargs), "optimizer_state": optimizer.state_dict()}, path)
    assert "is the state of a training of EDM" in (said := refused(path)) and said.endswith(
        "network-snapshot-*.pkl of the same training"
    )
    for name in ("network-snapshot-000005.pkl", "network-snapshot-000010.pkl"):
        (tmp_path / name).touch()
        assert refused(path).endswith(f"give {name}, which lies beside it")


class Loss(official.Persistent):
    def __reduce__(self):
        # Theirs makes a new description each time, with the same settings: the method's object is met before it is complete.
        return official.RECONSTRUCT, (dict(self.meta),)

    def t_to_r_sigmoid(self):
        """A method that the loss holds among its settings."""


def with_a_method() -> Loss:
    state = {"q": 4, "_init_args": (), "_init_kwargs": {}}
    loss = Loss("ECMLoss", state)
    state["t_to_r"] = loss.t_to_r_sigmoid
    return loss


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kwargs", [{}, {"sigma_min": 0.01}], ids=["default", "given"])
def test_a_consistency_model_of_ect_is_measured_and_is_no_teacher(tmp_path, kwargs, protocol):
    """Its loss holds a bound method, which is named by getattr and read past. The network is x at sigma_min."""
    kwargs = ARCHS["ddpmpp"] | SIZES | {"dropout": 0.1, "use_fp16": False} | kwargs
    net, path = network(kwargs), tmp_path / "net.pkl"
    limits = {"sigma_min": kwargs.get("sigma_min", 0.003)}
    value = official.edm(net, kwargs) | {"loss_fn": with_a_method()}
    value["ema"] = official.root(net, kwargs, classes=("ECMPrecond", "SongUNet"), **limits)
    assert b"getattr" in official.write(path, value, protocol).read_bytes()
    ours, _ = convert.load_published(path)
    x, labels = (each.float() for each in inputs())
    low, data = limits["sigma_min"], 0.5
    for sigma in (low, 0.5, 80.0):
        whole = (sigma**2 + data**2) ** 0.5
        inner = net.model(sigma * x / whole, torch.tensor([np.log(sigma) / 4]).float(), labels)
        wanted = data**2 / ((sigma - low) ** 2 + data**2) * sigma * x + (sigma - low) * data / whole * inner
        torch.testing.assert_close(ours(sigma * x, sigma, labels), wanted, rtol=1e-4, atol=1e-4)
    assert "holds a ECMPrecond, a consistency model of ECT; expected a teacher" in refused(path)


@pytest.mark.parametrize("words", [("getattr", 3), ("getattr", "__class__"), ("getattr", "a.b")], ids=str)
def test_getattr_is_only_a_word(tmp_path, words):
    """Of an object of the file and with the name of a method; nothing is looked up."""

    class Asked:
        def __reduce__(self):
            return getattr, (official.Persistent("ECMLoss", {"a": 1}) if words[1] != 3 else 3, str(words[1]))

    (tmp_path / "net.pkl").write_bytes(official.dumps({"ema": Asked()}))
    assert "an attribute of something else" in refused(tmp_path / "net.pkl")


# --- other code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pytorch_model.bin", "old.pt", "model.safetensors"])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_state_without_a_configuration_is_measured_and_is_no_teacher(tmp_path, arch, form):
    """DMD2's generators: all settings follow from names and shapes, and give the same images."""
    kwargs = ARCHS[arch] | SIZES | {"dropout": 0.0, "use_fp16": False, "attn_resolutions": [8, 4], "model_channels": 64}
    theirs, path = network(kwargs), tmp_path / form
    if form.endswith("safetensors"):
        save_file(theirs.state_dict(), path)
    else:
        torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=form != "old.pt")
    ours, constants = convert.load_published(path)
    x, labels = (each.float() for each in inputs())
    assert constants is None and torch.equal(ours(2.5 * x, 2.5, labels), theirs(2.5 * x, 2.5, labels))
    assert (
        "holds the weights of a network of EDM without its configuration, as DMD2 saves its one-step generators"
        in refused(path)
    )
    state = theirs.state_dict()
    state.pop("model.map_layer1.weight")
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(Problem, match="its description asks for|are not those of a network of EDM"):
        convert.load_published(tmp_path / "less.safetensors")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            {"state_dict": {"a": torch.ones(2)}, "epoch": 3},
            "holds a state under 'state_dict' beside other things of a training",
        ),
        (
            {"down_blocks.0.a": torch.ones(2)},
            "weights of a network of diffusers without its configuration; give the folder",
        ),
        ({"a": torch.ones(2)}, "is no network of OpenAI's consistency models"),
    ],
    ids=["a training", "diffusers", "another"],
)
def test_other_states_are_named(tmp_path, value, sentence):
    torch.save(value, tmp_path / "net.pt")
    assert sentence in refused(tmp_path / "net.pt")
    if all(isinstance(each, torch.Tensor) for each in value.values()):
        save_file(value, tmp_path / "net.safetensors")
        assert sentence.startswith("is no network") or sentence in refused(tmp_path / "net.safetensors")


@pytest.mark.parametrize("name", edm.KNOWN)
def test_relatives_that_are_not_supported_are_named(tmp_path, name):
    kwargs = ARCHS["adm"] | SIZES | {"dropout": 0.1, "use_fp16": False}
    write(tmp_path / "net.pkl", kwargs, name)
    assert edm.KNOWN[name] in refused(tmp_path / "net.pkl")


def test_a_gan_is_named(tmp_path):
    value = {key: official.Persistent("Generator", {"_modules": {}}) for key in ("G", "D", "G_ema")}
    official.write(tmp_path / "net.pkl", value)
    assert "holds a GAN (G, D and G_ema, as StyleGAN has them)" in refused(tmp_path / "net.pkl")


# --- protocols ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_network_is_the_same_in_every_protocol(tmp_path, protocol, core):
    """Sets, bytes and tensors have other forms below protocol 4."""
    kwargs = ARCHS["ncsnpp"] | SIZES | {"dropout": 0.1, "use_fp16": False}
    net = network(kwargs)
    path = official.write(tmp_path / "net.pkl", official.edm(net, kwargs, core, old=core == "core"), protocol)
    with pickles.read_network_file(path) as file:
        found = file.network().state()
    assert [*found] == [*net.state_dict()] and all(
        torch.equal(found[name], value) for name, value in net.state_dict().items()
    )


ARRAYS = {
    "rows": np.arange(6.0).reshape(2, 3), "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "number": np.float64(0.1),
    "half": np.ones(3, np.float16), "empty": np.zeros((0, 3)), "whole": np.int64(-5), "scalar": np.array(2.5), "truth": np.bool_(True),
    "view": np.arange(10.0)[::2],
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("old", [False, True], ids=["this numpy", "numpy 1"])
def test_arrays_of_numpy_are_read_in_every_protocol(tmp_path, protocol, old):
    """As Python and numpy write them, and under the names of numpy 1."""
    content = pickle.dumps(ARRAYS, protocol)
    if old and protocol < 4:
        content = content.replace(b"cnumpy._core.", b"cnumpy.core.")
    elif old:
        content = pickle.dumps(ARRAYS, protocol).replace(
            b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
        )
        content = content.replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric")
        if content[2] == 0x95:  # the length of the frame
            content = content[:2] + b"\x95" + (len(content) - 11).to_bytes(8, "little") + content[11:]
    (tmp_path / "a.pkl").write_bytes(content)
    with pickles.read_network_file(tmp_path / "a.pkl") as file:
        found = file.plain(file.value)
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(found[name], value)
        assert not isinstance(value, np.ndarray) or found[name].dtype == value.dtype


def test_bytes_that_are_named_a_thousand_times_are_kept_once(tmp_path):
    """Below protocol 3 bytes are texts that are encoded by a call: each call of the same text gives the same bytes."""
    text = b"\x58" + (10**6).to_bytes(4, "little") + b"a" * 10**6
    call = b"h\x01h\x02h\x03\x86R0"  # (encode, text, latin1), and the result is dropped
    start = b"\x80\x02c_codecs\nencode\nq\x01" + text + b"q\x02" + b"\x58\x06\0\0\0latin1q\x03" + b"000"
    (tmp_path / "a.pkl").write_bytes(start + call * 1000 + b"}.")
    with pickles.read_network_file(tmp_path / "a.pkl") as file:
        assert file.value == {}


def test_texts_that_are_no_bytes_are_refused(tmp_path):
    for text, how in (("\u20ac", "latin1"), ("a", "rot13"), ("a", "utf-8")):
        raw = text.encode()
        content = b"\x80\x02c_codecs\nencode\n\x58" + len(raw).to_bytes(4, "little") + raw
        content += b"\x58" + len(how).to_bytes(4, "little") + how.encode() + b"\x86R."
        (tmp_path / "a.pkl").write_bytes(content)
        with pytest.raises(Problem, match="an encoding of something else|a text of bytes that has other characters"):
            pickles.read_network_file(tmp_path / "a.pkl")


def test_a_cut_file_says_so(tmp_path):
    kwargs = ARCHS["ddpmpp"] | SIZES | {"dropout": 0.1, "use_fp16": False}
    net = network(kwargs)
    whole = official.dumps(official.edm(net, kwargs))
    (tmp_path / "net.pkl").write_bytes(whole[: len(whole) // 2])
    assert "the download or copy was cut off" in refused(tmp_path / "net.pkl")
    torch.save(net.state_dict(), tmp_path / "net.pt")
    half = (tmp_path / "net.pt").read_bytes()
    (tmp_path / "net.pt").write_bytes(half[: len(half) // 2])
    assert "cut off" in refused(tmp_path / "net.pt")
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    half = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "net.safetensors").write_bytes(half[: len(half) // 2])
    assert "cut off" in refused(tmp_path / "net.safetensors") or "damaged" in refused(tmp_path / "net.safetensors")
    assert len(list(itertools.chain(tmp_path.glob("teacher*")))) == 0
