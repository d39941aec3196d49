# SPDX-License-Identifier: Apache-2.0
"""The inputs of a training: its method, networks, data, numbers and supplements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eldistill.contract import Memory, Method, Nets, RealImages, SupplementModule
from eldistill.training.compute import Arithmetic
from eldistill.training.optimisers import Ema, Optimiser

COVERED_BY = "loop"
Snapshot = Callable[[torch.nn.Module], None]  # is given the running average


@dataclass
class Supplement:
    """A supplement of one run, with its configuration and what it prepared."""

    name: str  # prefix of its values in the log
    module: SupplementModule
    numbers: Any  # its Numbers
    prepared: Any = None  # returned by its `prepare`
    memory: Memory = field(default_factory=dict)  # scalars and tensors on the device, saved with the state


@dataclass(frozen=True)
class Training:
    """The length of a run, its batch, and its running average."""

    n_images: int  # generated (or real) images until the end of the run
    batch: int  # images in an iteration, summed over all processes
    ema: Ema  # of the running average that is published


@dataclass
class Job:
    """Everything that one training needs."""

    method: Method
    numbers: Any  # of the method
    training: Training
    nets: Nets  # networks that are trained, by name
    published: str  # the network whose running average is the result
    reals: RealImages
    shape: tuple[int, int, int]  # (channels, height, width) of images
    seed: int  # of all random numbers
    folder: Path  # of the saved state
    optimisers: dict[str, Optimiser]  # for each of `nets`
    fixed: Nets = field(default_factory=dict)  # networks that are not trained
    supplements: list[Supplement] = field(default_factory=list)  # in the order in which their gradients are added
    device: str = "cpu"  # cpu or cuda
    dtype: torch.dtype = torch.float32  # of random numbers
    micro_batch: int = 0  # images on the device at once; 0: all images of this process
    ticks: int = 40  # approximate number of rows in the log
    save_seconds: float = 120  # seconds between saved states
    max_seconds: float = 0  # seconds after which the training saves and stops; 0: never
    snapshots: dict[int, Snapshot] = field(default_factory=dict)  # by number of images, exactly reached
    log: Callable[[str], None] = print  # gets status lines and warnings
    on_row: Callable[[dict[str, Any]], None] | None = None  # gets each row of the log, in the first process
    arithmetic: Arithmetic | None = None  # for the provenance
