# SPDX-License-Identifier: Apache-2.0
"""The part `sampling`: images per second of one-step generation and of Heun's method in 18 steps, with DDPM++ for CIFAR-10."""

from __future__ import annotations

from argparse import Namespace

import step

from eldistill.steps import work
from gpu_parts import fast
from gpu_parts.items import Item


def items(options) -> list[Item]:
    """One item in bfloat16, and one in float32, the precision of evaluations."""
    step.NETWORKS.update(fast.TOYS if options.toy else fast.SUBJECTS)
    counts = {"bfloat16": 8, "float32": 8} if options.toy else {"bfloat16": 256, "float32": 64}
    return [
        Item(precision, lambda _, precision=precision, n=n: rates(precision, n, options))
        for precision, n in counts.items()
    ]


def rates(precision: str, n: int, options) -> dict:
    """Images per second of both, and their ratio, for n images at once."""
    work.set_threads(options.threads, "distil")
    asked = Namespace(
        device=options.device, network="ddpmpp-cifar10", batch=n, images=n, precision=precision, compile=False,
        channels_last=False, recompute=False,
    )  # fmt: skip
    return {"precision": precision, **step.throughput(options.settings, asked, options.folder)}
