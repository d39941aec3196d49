# SPDX-License-Identifier: Apache-2.0
"""Checks the weights of a file against the description of their network, and restores the network.

A file may be damaged, edited or written by other code. A NaN in it could spoil a week of training, and a wrong dtype or shape
would end in an error of torch. Faults are reported in one sentence before memory for the network is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from eldistill import networks
from eldistill.errors import Problem
from eldistill.external.descriptions import check_description

COVERED_BY = "networks/layers"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = 2**20  # largest whole number in a description, far above those of networks


def is_finite(numbers: torch.Tensor) -> bool:
    """Whether a tensor of floats has neither NaN nor infinity."""
    # A NaN or an infinity is in the sum too, which takes a tenth of the time; a sum may overflow where none is.
    total = numbers.sum(dtype=torch.float64 if numbers.dtype == torch.float64 else torch.float32)
    return bool(total.isfinite()) or bool(numbers.isfinite().all())


def find_fault(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str | None:
    """The first fault of `tensors` as the end of a sentence that begins with the name of the file; None if there is none.

    wanted: a state with the names, shapes and kinds (floats or whole numbers) that `tensors` must have, on any device, also
    meta. Floats must be finite."""
    if odd := sorted(wanted.keys() ^ tensors.keys()):
        return (f"has {len(tensors)} tensors, its description asks for {len(wanted)}; the first other one is "
                f"{ascii(odd[0])[:80]}")  # fmt: skip
    for name, tensor in tensors.items():
        like = wanted[name]
        kind = tensor.dtype in FLOATS if like.is_floating_point() else tensor.dtype == like.dtype
        if tensor.shape != like.shape or not kind or (like.is_floating_point() and not is_finite(tensor)):
            what = "finite floats" if like.is_floating_point() else str(like.dtype)
            found = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            bad = " with a NaN or an infinity" if kind and tensor.shape == like.shape else ""
            return f"has a {ascii(name)[:80]} of {found}{bad}; expected {list(like.shape)} of {what}"
    return None


def check_weights(path: str | Path, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Raise Problem, one sentence, if `find_fault` finds a fault. path: the file, for the message."""
    if (found := find_fault(tensors, wanted)) is not None:
        raise Problem(f"{path} {found}: it is damaged, or its description is wrong; make or fetch it again")


def restore_network(path: str | Path, tensors: Mapping[str, torch.Tensor], about: dict) -> nn.Module:
    """The network that the description of a file of this project defines, with its weights, in float32 and training mode.

    about: the file's description: `config` of networks.build and, if they are there, `shape` [channels, height, width] and
    `label_dim`, which must be the network's. Raises Problem if anything disagrees, or a number is not finite.
    """
    config = about.get("config") if isinstance(about, dict) else None
    if not isinstance(config, dict) or not is_bounded(config, len(tensors)):
        raise Problem(
            f"{path} has no configuration of a network, or one with more layers than it has tensors; make or fetch it again"
        )
    try:
        outline = networks.outline(config)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise Problem(
            f"{path} describes no network ({' '.join(str(error).split())[:200]}); make or fetch it again"
        ) from None
    for key, value in _implied(outline).items():
        if key in about and about[key] != value:
            raise Problem(
                f"{path} says that its {key} is {ascii(about[key])[:60]}, its network's is {value}; make or fetch it again"
            )
    check_description(path, about)
    check_weights(path, tensors, outline.state_dict())
    try:
        network = networks.build(config)
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        RuntimeError,
    ) as error:  # values that only count on a device
        raise Problem(
            f"{path} describes no network ({' '.join(str(error).split())[:200]}); make or fetch it again"
        ) from None
    network.load_state_dict(tensors)
    return network


def _implied(network: nn.Module) -> dict:
    # What a description repeats of its configuration.
    config = network.config
    shape = [config["img_channels"], config["img_resolution"], config["img_resolution"]]
    return {"shape": shape, "label_dim": config["label_dim"]}


def is_bounded(config: dict, tensors: int) -> bool:
    """Whether a configuration has no more layers than a file has tensors, and no number beyond LARGEST. Building takes time and memory
    by the number of layers, each of which has a tensor at least."""

    def small(value) -> bool:
        if isinstance(value, list):
            return len(value) <= 100_000 and all(not isinstance(each, list | dict) and small(each) for each in value)
        return not isinstance(value, int | float) or abs(value) <= LARGEST or math.isinf(value)

    depth = [config.get(key, 1) for key in ("num_blocks", "layers_per_block")]
    depth += [len(config[key]) for key in ("channel_mult", "block_out_channels") if isinstance(config.get(key), list)]
    return all(map(small, config.values())) and all(isinstance(each, int) and each <= tensors for each in depth)
