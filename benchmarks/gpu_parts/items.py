# SPDX-License-Identifier: Apache-2.0
"""One thing that a part measures, how it is tried, and what is written down if it fails."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

TAIL = 14  # lines of a traceback that are kept


class LeftOut(Exception):
    """An item cannot be measured here, for the reason in its message; nothing is broken."""


@dataclass(frozen=True)
class Item:
    """run: a function of the seconds it may take; its result is a JSON-able dict, with `differs` where a check failed.

    weight: its share of the time left to the part. patience: it is stopped after so many times its share.
    """

    name: str
    run: Callable[[float], dict]
    weight: float = 1.0
    patience: float = 3.0


def is_memory(error: BaseException) -> bool:
    """Whether a device had too little memory; its libraries say so in words of their own."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in ("out of memory", "ALLOC_FAILED"))
    )


def failure(error: BaseException) -> dict:
    """Type, message and the end of the traceback of an exception."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return {
        "reason": "out of memory" if is_memory(error) else "failed",
        "type": type(error).__name__,
        "message": str(error)[:2000],
        "traceback": lines[-TAIL:],
    }


def attempt(item: Item, seconds: float) -> dict:
    """The row of an item: `status` done, failed or left out, and its result or what went wrong."""
    try:
        return {"status": "done", **item.run(seconds)}
    except LeftOut as reason:
        return {"status": "left out", "reason": str(reason)}
    except (Exception, SystemExit) as error:
        return {"status": "failed", **failure(error)}


def free(device: str) -> None:
    """Give back what the last item held: networks whose calls were recorded hold each other until they are collected."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def poisoned(device: str) -> bool:
    """Whether this process can no longer use its GPU: after an illegal access every later call fails too."""
    if device != "cuda":
        return False
    try:
        torch.ones(8, device=device).sum().item()
    except RuntimeError:
        return True
    return False
