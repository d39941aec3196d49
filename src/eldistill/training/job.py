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


@dataclass
class Supplement:
    """A supplement at work."""

    name: str  # in the log
    module: SupplementModule
    numbers: Any  # its Numbers
    prepared: Any = None  # what its `prepare` made
    memory: Memory = field(default_factory=dict)  # scalars, perhaps of the device; saved with the state


@dataclass(frozen=True)
class Training:
    """How long, and in which portions."""

    n_images: int  # images in the whole run
    batch: int  # images in an iteration, of all processes together
    ema: Ema  # of the running average that is published


@dataclass
class Job:
    """Everything that one training needs."""

    method: Method
    numbers: Any  # of the method
    training: Training
    nets: Nets  # those that are trained
    published: str  # the network whose running average is the result
    reals: RealImages
    shape: tuple[int, int, int]  # (channels, height, width) of images
    seed: int
    folder: Path  # of the saved state
    optimisers: dict[str, Optimiser]  # for each of `nets`
    fixed: Nets = field(default_factory=dict)  # networks that are not trained
    supplements: list[Supplement] = field(default_factory=list)
    device: str = "cpu"
    dtype: torch.dtype = torch.float32  # of random numbers
    micro_batch: int = 0  # images at once; 0: all of this process
    ticks: int = 40  # rows of the log, about
    save_seconds: float = 120  # seconds between saved states
    max_seconds: float = 0  # seconds after which the training saves and stops; 0: never
    snapshots: dict[int, Callable[[torch.nn.Module], None]] = field(default_factory=dict)  # by images: gets the average
    log: Callable[[str], None] = print  # status lines and warnings
    arithmetic: Arithmetic | None = None  # for the provenance
