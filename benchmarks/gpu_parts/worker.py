# SPDX-License-Identifier: Apache-2.0
"""The process that measures the items of a part in order, and writes a line of JSON when an item starts and ends."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from eldistill.plan import params
from eldistill.steps import work
from gpu_parts import results, supervise
from gpu_parts.items import Item, attempt, free, poisoned

ROOT = Path(__file__).resolve().parents[2]
LEAST = 1.0  # seconds that must be left for an item to be started
PATIENCE = 10.0  # seconds that every item has in addition to its share


def run(options) -> int:
    """Read commands from standard input until it ends, and measure the items of their parts; returns the exit code."""
    faulthandler.enable()
    _end_with(os.getppid())
    with open(options.worker, "a", encoding="utf-8") as file, tempfile.TemporaryDirectory() as folder:

        def tell(event: str, **values) -> None:
            file.write(json.dumps(results.plain({"event": event, **values}), allow_nan=False) + "\n")
            file.flush()

        work.set_threads(options.threads, "distil")  # like every step of the package
        tell("device", **device(options.device))
        warm(options.device)
        options.folder, options.ceilings = Path(folder), {}
        options.settings = params.load_params(ROOT / "params.yaml")
        tell("ready")
        for line in sys.stdin:
            if not make(options, tell, **json.loads(line)):
                return supervise.POISONED
    return 0


def make(options, tell: Callable, part: str, until: float, after: str | None) -> bool:
    """Measure the items of a part after the item `after`, until the time `until` (of time.time()). Returns False if the GPU is lost."""
    items = importlib.import_module(f"gpu_parts.{part}").items(options)
    items = [item for item in items if not options.item or any(words in item.name for words in options.item)]
    names = [item.name for item in items]
    tell("plan", items=names)
    todo = items[names.index(after) + 1 :] if after else items
    for place, item in enumerate(todo):
        left = until - time.time()
        if left < LEAST:
            break
        seconds = left * item.weight / sum(each.weight for each in todo[place:])
        tell("begin", name=item.name, limit=item.patience * seconds + PATIENCE)
        began = time.monotonic()
        row = attempt(broken(item, f"{part}/{item.name}", options.breaks), seconds)
        tell("end", name=item.name, seconds=round(time.monotonic() - began, 3), **row)
        free(options.device)
        if row.get("poison") or poisoned(options.device):
            return False
    tell("over")
    return True


def device(kind: str) -> dict:
    """The name of the device, and the versions of its driver and libraries."""
    import platform

    if kind == "cpu":
        return {"kind": "cpu", "name": platform.machine(), "threads": torch.get_num_threads()}
    seen = torch.cuda.get_device_properties(0)
    return {
        "kind": "cuda", "name": seen.name, "capability": f"{seen.major}.{seen.minor}",
        "memory_gib": round(seen.total_memory / 2**30, 1), "processors": seen.multi_processor_count,
        "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": _driver(),
        "cpu": platform.machine(), "cpus": os.cpu_count(),
    }  # fmt: skip


def warm(kind: str) -> None:
    """Import torch's optimisers and initialise the GPU's libraries, so that the first item does not include their time."""
    weight = torch.ones(1, 4, 3, 3, device=kind, requires_grad=True)
    torch.nn.functional.conv2d(torch.ones(2, 4, 8, 8, device=kind), weight).sum().backward()
    torch.optim.Adam([weight]).step()
    (torch.ones(64, 64, device=kind) @ torch.ones(64, 64, device=kind)).sum().item()


def _driver() -> str | None:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return (answer.stdout.strip().splitlines() or [None])[0] if answer.returncode == 0 else None


def _end_with(parent: int) -> None:
    # Ends this process if its parent was killed, so that it does not keep the GPU.
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --- for tests --------------------------------------------------------------------------------------------


def broken(item: Item, name: str, breaks: list[str]) -> Item:
    """The item, or one that fails in the way that --break names."""
    how = dict(each.rsplit("=", 1) for each in breaks).get(name)
    return item if how is None else Item(item.name, lambda seconds: _BREAKS[how](), item.weight, item.patience)


def _raise():
    raise ValueError("broken on purpose")


def _memory():
    raise torch.OutOfMemoryError("broken on purpose")


_BREAKS = {
    "raise": _raise,
    "memory": _memory,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": lambda: time.sleep(3600),
    "poison": lambda: {"poison": True},
    "leave": lambda: sys.exit(4),
}
