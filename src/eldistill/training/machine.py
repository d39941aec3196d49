# SPDX-License-Identifier: Apache-2.0
"""Settings of the machine that a run computes on. They never make a result stale."""

from __future__ import annotations

from dataclasses import dataclass

COVERED_BY = "loop"


@dataclass
class Machine:
    """The keys of params.yaml that are marked `site`, with types. They change results by rounding only.

    micro_batch is halved while a step runs if the device runs out of memory.
    """

    device: str = "cpu"  # cpu or cuda
    micro_batch: int = 0  # images on the device at once in training; 0: the whole batch
    batch: int = 250  # images on the device at once when they are generated or measured
    fit: bool = False  # halve micro_batch until a training fits into memory
    channels_last: bool = False  # memory layout of networks in training
    recompute: bool = False  # compute blocks again in the backward pass, which saves memory
    compile: bool = False  # networks in training are compiled
    tf32: bool = False  # TF32 convolutions in trainings on a GPU: inputs rounded to 10 bits
    deterministic: bool | str = "auto"  # equal runs on a GPU are equal to the bit; auto: no
    benchmark: bool | str = "auto"  # cuDNN times its algorithms and takes the fastest; auto: unless deterministic
    save_seconds: float = 120  # seconds between saved states
    log: tuple[str, ...] = ("csv",)  # where a run writes its log: csv, tensorboard
    max_seconds: float = 0  # seconds after which a training stops with its state saved; 0: never
