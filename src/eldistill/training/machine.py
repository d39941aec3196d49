# SPDX-License-Identifier: Apache-2.0
"""Settings of the machine that a run computes on. They never make a result stale."""

from __future__ import annotations

from dataclasses import dataclass

COVERED_BY = "loop"


@dataclass
class Machine:
    """The keys of params.yaml that are marked `site`, as a step needs them. Results are the same up to rounding.

    micro_batch changes while a step runs, where the device has too little memory for it.
    """

    device: str = "cpu"  # cpu or cuda
    micro_batch: int = 0  # images on the device at once in training; 0: the whole batch
    batch: int = 250  # images at once, where they are generated or measured
    fit: bool = False  # whether a training halves micro_batch until it fits into the memory
    channels_last: bool = False  # memory layout of networks in training
    recompute: bool = False  # blocks are computed again on the way back, for less memory
    compile: bool = False  # networks in training are compiled
    tf32: bool = False  # trainings on a GPU round what enters a product of float32 to 10 bits
    deterministic: bool | str = "auto"  # trainings on a GPU give equal bits in equal runs; auto: no
    benchmark: bool | str = "auto"  # trainings on a GPU choose convolutions by a trial; auto: unless deterministic
    save_seconds: float = 120  # seconds between saved states
    max_seconds: float = 0  # seconds after which a training stops with its state saved; 0: never
