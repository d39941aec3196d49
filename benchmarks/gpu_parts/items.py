# SPDX-License-Identifier: Apache-2.0
"""Items, which are the single measurements of a part: how they are run, and what is recorded if they fail."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

TAIL = 14  # number of lines of a traceback that are recorded


class LeftOut(Exception):
    """Raised if an item cannot be measured on this machine; the message is the reason. It is not a failure."""


@dataclass(frozen=True)
class Item:
    """A measurement.

    run: function of the seconds that it may take. It returns a dict for JSON, with `differs` if a check failed. weight: its share of
    the remaining time of the part, relative to the other items. patience: it is stopped after this multiple of its share.
    """

    name: str
    run: Callable[[float], dict]
    weight: float = 1.0
    patience: float = 3.0


def is_memory(error: BaseException) -> bool:
    """Whether an exception means that a device ran out of memory, which its libraries report with different messages."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in ("out of memory", "ALLOC_FAILED"))
    )


def failure(error: BaseException) -> dict:
    """Reason, type, message and the end of the traceback of an exception."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return {
        "reason": "out of memory" if is_memory(error) else "failed",
        "type": type(error).__name__,
        "message": str(error)[:2000],
        "traceback": lines[-TAIL:],
    }


def attempt(item: Item, seconds: float) -> dict:
    """Run an item; returns its row, with `status` done, failed or left out, and its result or its failure."""
    try:
        return {"status": "done", **item.run(seconds)}
    except LeftOut as reason:
        return {"status": "left out", "reason": str(reason)}
    except (Exception, SystemExit) as error:
        return {"status": "failed", **failure(error)}


def free(device: str) -> None:
    """Free the memory of the last item. Networks with recorded calls form reference cycles, which need a garbage collection."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def poisoned(device: str) -> bool:
    """Whether this process can no longer use its GPU, because every call after an illegal access fails."""
    if device != "cuda":
        return False
    try:
        torch.ones(8, device=device).sum().item()
    except RuntimeError:
        return True
    return False
