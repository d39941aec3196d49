# SPDX-License-Identifier: Apache-2.0
"""States of EDM's networks without a configuration, and what other files of weights are.

DMD2 saves its one-step generators of ImageNet-64 as such a state, as torch.save (pytorch_model.bin) or safetensors: {name: tensor}
with the names of EDM's networks. Resolutions are in the names and widths in the shapes, so that the configuration follows from
both; the probability of dropout does not, and is 0 as in DMD2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from eldistill import networks
from eldistill.errors import Problem
from eldistill.external import torchfiles, weights, zips
from eldistill.external.machine import Record
from eldistill.external.opcodes import Refused
from eldistill.external.pickles import File
from eldistill.teacher import guided
from eldistill.tensors import load_tensors

COVERED_BY = "teacher/convert"
LAYER = re.compile(r"model\.enc\.(\d{1,4})x(\d{1,4})_(conv|down|aux_residual|block\d{1,2})\.")

TAIL = 22 + 65535  # bytes in which a zip has the end of its directory
NESTED = ("state_dict", "model_state_dict", "ema_state_dict", "ema", "model")  # keys under which trainings save a state


def is_plain(names) -> bool:
    """Whether the names of tensors are those of a state of EDM's networks."""
    return any(LAYER.match(name) for name in names)


def find_configuration(tensors: Mapping[str, torch.Tensor]) -> dict:
    """The `config` of networks.build for a state of SongUNet or DhariwalUNet. Raises Refused if there is none."""
    try:
        config = _configuration(tensors)
        outline = networks.outline(config)
    except (KeyError, ValueError, IndexError, ZeroDivisionError, TypeError) as error:
        raise Refused(f"its tensors are not those of a network of EDM ({' '.join(str(error).split())[:160]})") from None
    if (fault := weights.find_fault(tensors, outline.state_dict())) is not None:
        raise Refused(f"it {fault}")
    return outline.config


def _configuration(tensors: Mapping[str, torch.Tensor]) -> dict:
    layers = [(int(found[1]), found[3]) for name in tensors if (found := LAYER.match(name))]
    sides = sorted({side for side, _ in layers}, reverse=True)
    first = f"model.enc.{sides[0]}x{sides[0]}"

    def size(name: str, axis: int) -> int:
        return tensors[f"model.{name}"].shape[axis]

    adm = "model.out_conv.weight" in tensors
    width = size("map_layer0.weight", 1) if adm else size(f"enc.{sides[0]}x{sides[0]}_conv.weight", 0)
    mult = [size(f"enc.{side}x{side}_block0.conv1.weight", 0) // width for side in sides]
    attending = {
        int(found[1]) for name in tensors if (found := re.match(r"model\.enc\.(\d{1,4})x\d{1,4}_block\d+\.qkv\.", name))
    }
    config = {
        "network": "adm" if adm else "song", "img_resolution": sides[0], "img_channels": tensors[f"{first}_conv.weight"].shape[1],
        "label_dim": size("map_label.weight", 1) if "model.map_label.weight" in tensors else 0,
        "augment_dim": size("map_augment.weight", 1) if "model.map_augment.weight" in tensors else 0,
        "model_channels": width, "channel_mult": mult, "channel_mult_emb": size("map_layer0.weight", 0) // width,
        "num_blocks": len({name for side, name in layers if side == sides[0] and name.startswith("block")}),
        "attn_resolutions": sorted(attending, reverse=True), "dropout": 0.0,
    }  # fmt: skip
    return config if adm else config | _of_song(tensors, width, {name for _, name in layers})


def _of_song(tensors: Mapping[str, torch.Tensor], width: int, kinds: set[str]) -> dict:
    taps = next((each.shape[-1] for name, each in tensors.items() if name.endswith(".resample_filter")), 2)
    return {
        "channel_mult_noise": tensors["model.map_layer0.weight"].shape[1] // width,
        "embedding_type": "fourier" if "model.map_noise.freqs" in tensors else "positional",
        "encoder_type": "residual" if "aux_residual" in kinds else "standard",
        "resample_filter": {2: [1, 1], 4: [1, 3, 3, 1]}[taps],
    }


def load_plain(path: Path) -> tuple[dict, dict[str, torch.Tensor]] | None:
    """The configuration and the tensors of a file with a state of EDM's networks; None if it holds something else.

    Raises Refused if it holds one that is damaged."""
    try:
        tensors = guided.load_floats(path) if torchfiles.is_torch_file(path) else load_tensors(path, foreign=True)[0]
    except Problem:
        return None
    if not is_plain(tensors):
        return None
    try:
        return find_configuration(tensors), tensors
    except Refused as error:
        raise Refused(f"{path} is damaged, or no state of a network of EDM ({error}); fetch it again") from None


def explain_file(path: Path) -> str | None:
    """What a file of torch.save or of safetensors is that no reader of teachers takes, and what to give in its place, as the end of
    a sentence; None if it is not recognised."""
    if not torchfiles.is_torch_file(path):
        try:
            tensors, about = load_tensors(path, foreign=True)
            return None if about else _explain_names(path, tensors)  # what we wrote has a sentence of its own
        except Problem:
            return None
    try:
        with torchfiles.read_torch_file(path) as file:
            return _explain_value(path, file)
    except Problem:
        return _explain_bytes(path)


def _explain_bytes(path: Path) -> str | None:
    # Of a file that cannot be read as one of torch.save.
    with open(path, "rb") as file:
        start = file.read(2**16)  # the first part of such a zip is the pickle
        file.seek(max(0, path.stat().st_size - TAIL))
        if start.startswith(zips.LOCAL) and zips.END not in file.read(TAIL):
            return "is cut off: the download or copy ended early; fetch it again"
    return _training_state(path) if b"torch_utils.persistence" in start else None


def _explain_value(path: Path, file: File) -> str | None:
    value = file.value
    if isinstance(value, dict) and (
        "optimizer_state" in value or any(isinstance(each, Record) for each in value.values())
    ):
        return _training_state(path)
    if not isinstance(value, dict):
        return None
    inner = next((key for key in NESTED if isinstance(value.get(key), dict)), None)
    if inner is not None:
        return f"holds a state under {inner!r} beside other things of a training; save that state by itself"
    return _explain_names(path, value)


def _explain_names(path: Path, names) -> str | None:
    if is_plain(names):
        return (
            "holds the weights of a network of EDM without its configuration, as DMD2 saves its one-step generators; a teacher "
            "denoises all noise levels: give EDM's own file, such as edm-imagenet-64x64-cond-adm"
        )
    if any(name.startswith(("down_blocks.", "unet.down_blocks.")) for name in names):
        return "holds the weights of a network of diffusers without its configuration; give the folder, with config.json and scheduler"
    return None


def _training_state(path: Path) -> str:
    number = re.search(r"training-state-(\w+)\.pt$", path.name)
    beside = path.with_name(f"network-snapshot-{number[1]}.pkl" if number else "network-snapshot.pkl")
    there = sorted(each.name for each in path.parent.glob("network-snapshot-*.pkl"))
    which = f"{beside.name}, which lies beside it" if beside.exists() else (
        f"{there[-1]}, which lies beside it" if there else "the network-snapshot-*.pkl of the same training"
    )  # fmt: skip
    return f"is the state of a training of EDM (its network before averaging, and its optimiser); give {which}"
