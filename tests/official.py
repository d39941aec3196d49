# SPDX-License-Identifier: Apache-2.0
"""Writes files in the format in which EDM and EDM2 publish their networks, from networks of ours with the same state.

Every module becomes what their classes pickle as: a call of torch_utils.persistence with a description of five parts.
Containers are pickled natively, tensors as torch pickles them.
"""

from __future__ import annotations

import collections
import contextlib
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import torch

SOURCE = "raise SystemExit('the source in the file was executed')\n" * 20
HOOKS = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


def _function(module: str, name: str):
    def called(*_):
        raise AssertionError(f"{module}.{name} was called")

    called.__module__, called.__qualname__, called.__name__ = module, name, name
    return called


RECONSTRUCT = _function("torch_utils.persistence", "_reconstruct_persistent_obj")
SCALAR = {core: _function(f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")}
ARRAY = {core: _function(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
EASY = type("EasyDict", (dict,), {"__module__": "dnnlib.util", "__qualname__": "EasyDict"})


@contextlib.contextmanager
def importable():
    """While files are written, the modules that they name exist."""
    named = {"torch_utils.persistence": [RECONSTRUCT], "dnnlib.util": [EASY]}
    named |= {f"numpy.{core}.multiarray": [SCALAR[core], ARRAY[core]] for core in ("core", "_core")}
    before = {}
    for name, members in named.items():
        parts = name.split(".")
        for path in (".".join(parts[: i + 1]) for i in range(1 if parts[0] != "numpy" else 1, len(parts))):
            before.setdefault(path, sys.modules.get(path))
        before.setdefault(parts[0], sys.modules.get(parts[0]))
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member.__name__, member)
        sys.modules[name] = module
        if parts[0] != "numpy":
            sys.modules[parts[0]] = types.ModuleType(parts[0])
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


class Persistent:
    """An object that is pickled with its source."""

    def __init__(self, class_name: str, state: dict, **changes):
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE,
            "class_name": class_name,
            "state": state,
        } | changes

    def __reduce__(self):
        return RECONSTRUCT, (self.meta,)


class Number:
    """A numpy scalar, pickled under the spelling of numpy 1 (core) or 2 (_core)."""

    def __init__(self, value, core: str):
        self.value, self.core = np.asarray(value), core

    def __reduce__(self):
        return SCALAR[self.core], (self.value.dtype, self.value.tobytes())


class Array:
    """A numpy array likewise."""

    def __init__(self, value, core: str):
        self.value, self.core = np.asarray(value), core

    def __reduce__(self):
        fortran = self.value.flags.f_contiguous and not self.value.flags.c_contiguous
        state = (1, self.value.shape, self.value.dtype, fortran, self.value.tobytes("F" if fortran else "C"))
        return ARRAY[self.core], (np.ndarray, (0,), b"b"), state


def state_of(module: torch.nn.Module, core: str, old: bool, **attributes) -> dict:
    """What an nn.Module of theirs has in its __dict__; old: as torch 1.13 has it."""
    mapping = collections.OrderedDict if old else dict
    state = {"training": False, "_parameters": mapping(module._parameters), "_buffers": mapping(module._buffers),
             "_non_persistent_buffers_set": set(module._non_persistent_buffers_set),
             **{name: collections.OrderedDict() for name in HOOKS}, "_is_full_backward_hook": None}  # fmt: skip
    state["_modules"] = mapping((name, wrapped(child, core, old)) for name, child in module._modules.items())
    return state | {"_init_args": (), "_init_kwargs": {"skip_scale": Number(np.float64(0.5) ** 0.5, core)}} | attributes


def wrapped(
    module: torch.nn.Module, core: str = "_core", old: bool = False, class_name: str | None = None, **attributes
):
    """A module of ours as theirs would be pickled."""
    if isinstance(module, torch.nn.ModuleDict | torch.nn.ModuleList) and class_name is None:
        container = torch.nn.ModuleDict()
        container._modules = {name: wrapped(child, core, old) for name, child in module._modules.items()}
        return container
    return Persistent(class_name or type(module).__name__, state_of(module, core, old, **attributes))


ROOTS = {
    "song": ("EDMPrecond", "model", "SongUNet"),
    "adm": ("EDMPrecond", "model", "DhariwalUNet"),
    "edm2": ("Precond", "unet", "UNet"),
}


def root(
    network: torch.nn.Module, kwargs: dict, core: str = "_core", old: bool = False, classes: tuple[str, str] | None = None,
    **changes,
) -> Persistent:  # fmt: skip
    """The whole network as the value of `ema`; kwargs: what their constructor was called with. classes: of the whole and of
    the U-Net in it, where they are not those of EDM or EDM2."""
    outer, inner, inner_name = ROOTS[network.config["network"]]
    outer, inner_name = classes or (outer, inner_name)
    about = {"img_resolution": network.img_resolution, "img_channels": network.img_channels, "label_dim": network.label_dim,
             "use_fp16": False, "sigma_data": network.sigma_data}  # fmt: skip
    if outer.startswith("EDMPrecond"):
        about |= {"sigma_min": 0, "sigma_max": float("inf")}
    made = wrapped(network, core, old, outer, _init_kwargs=kwargs, **about)
    made.meta["state"]["_modules"][inner] = wrapped(
        getattr(network, inner), core, old, inner_name, _init_kwargs=dict(kwargs)
    )
    made.meta["state"] |= changes
    return made


def edm(network: torch.nn.Module, kwargs: dict, core: str = "_core", old: bool = False, **more) -> dict:
    """The dict that an EDM file holds."""
    loss = Persistent(
        "EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5, "_init_args": (), "_init_kwargs": {}}
    )
    pipe = Persistent("AugmentPipe", {"p": 0.12, "xflip": 1e8, "_init_args": (), "_init_kwargs": {"p": 0.12}})
    about = {"class_name": "training.dataset.ImageFolderDataset", "path": "datasets/cifar10-32x32.zip", "use_labels": False,
             "xflip": False, "cache": True, "resolution": network.img_resolution, "max_size": 50000}  # fmt: skip
    return {
        "ema": root(network, kwargs, core, old),
        "loss_fn": loss,
        "augment_pipe": pipe,
        "dataset_kwargs": about,
    } | more


def edm2(
    network: torch.nn.Module, kwargs: dict, core: str = "_core", old: bool = False, latent: bool = True, **more
) -> dict:
    """The EasyDict that an EDM2 file holds; the network's numbers are float16."""
    scale, bias = np.float32([0.12, 0.11, 0.13, 0.15]), np.float32([-0.7, -0.35, -0.02, 0.33])
    state = {"scale": Array(scale.reshape(4, 1, 1), core), "bias": Array(bias.reshape(4, 1, 1), core)} if latent else {}
    encoder = Persistent(
        "StabilityVAEEncoder" if latent else "StandardRGBEncoder", {"_init_args": (), "_init_kwargs": {}} | state
    )
    loss = Persistent(
        "EDM2Loss", {"P_mean": -0.4, "P_std": 1.0, "sigma_data": 0.5, "_init_args": (), "_init_kwargs": {}}
    )
    return EASY(encoder=encoder, dataset_kwargs=EASY(path="datasets/img512.zip", use_labels=True), loss_fn=loss,
                ema=root(network, kwargs, core, old)) | more  # fmt: skip


def student(network: torch.nn.Module, kwargs: dict, core: str = "_core", old: bool = False, **more) -> dict:
    """The dict that a snapshot of SiDA or SiD2A holds: the generator, whose U-Net gives the encoder's last output too, and no
    loss or encoder beside it. kwargs: EDM's or EDM2's, and for the latter what the training adds."""
    if network.config["network"] == "edm2":
        classes = ("EDM_2_Precond_Generator", "UNet_EncoderDecoder")
        kwargs = kwargs | {"force_normalization": True, "use_gan": True}
        changes = {"force_normalization": True, "use_gan": True}
    else:
        model_type = f"{kwargs['model_type']}_EncoderDecoder"
        classes, kwargs, changes = ("EDMPrecond_EncoderDecoder", model_type), kwargs | {"model_type": model_type}, {}
    return {"ema": root(network, kwargs, core, old, classes, **changes)} | more


def dumps(value, protocol: int = 4) -> bytes:
    """The file's bytes."""
    with importable():
        return pickle.dumps(value, protocol)


def write(path: Path, value, protocol: int = 4) -> Path:
    """Write a file and return its path."""
    with importable(), open(path, "wb") as file:
        pickle.dump(value, file, protocol)
    return path
