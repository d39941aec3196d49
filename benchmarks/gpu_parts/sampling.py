# SPDX-License-Identifier: Apache-2.0
"""How fast does one step sample? Beside Heun's method in 18 steps with the same network, CIFAR's DDPM++."""

from __future__ import annotations

from argparse import Namespace

import step

from eldistill.steps import work
from gpu_parts import fast
from gpu_parts.items import Item


def items(options) -> list[Item]:
    """In bfloat16, then in float32, in which generators are evaluated."""
    step.NETWORKS.update(fast.TOYS if options.toy else fast.SUBJECTS)
    counts = {"bfloat16": 8, "float32": 8} if options.toy else {"bfloat16": 256, "float32": 64}
    return [
        Item(precision, lambda _, precision=precision, n=n: rates(precision, n, options))
        for precision, n in counts.items()
    ]


def rates(precision: str, n: int, options) -> dict:
    """Images a second of both, and their ratio, for n images at once."""
    work.set_threads(options.threads, "distil")
    asked = Namespace(
        device=options.device, network="ddpmpp-cifar10", batch=n, images=n, precision=precision, compile=False,
        channels_last=False, recompute=False,
    )  # fmt: skip
    return {"precision": precision, **step.throughput(options.settings, asked, options.folder)}
