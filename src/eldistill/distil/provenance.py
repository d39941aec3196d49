# SPDX-License-Identifier: Apache-2.0
"""Records who made a result, when, with which command, from which inputs and at what cost."""

from __future__ import annotations

import dataclasses
import datetime
import platform
import socket
import subprocess
import sys
from typing import Any

import torch

from eldistill.training import compute
from eldistill.training.loop import Loop

COVERED_BY = "distil"


def origin(digest: str) -> dict[str, Any]:
    """The command, commit, recipe digest, machine and time of a result, as JSON-able values."""
    return {
        "command": " ".join(["python -m eldistill", *sys.argv[1:]]),
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if (status := git("status", "--porcelain", "--untracked-files=no")) is None else bool(status),
        "recipe": digest,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def provenance(work: Loop, digest: str, device: str, flop: float | None = None) -> dict[str, Any]:
    """The provenance of a finished training. It is the only output that differs between equal runs.

    flop: floating-point operations of an iteration. Memory is in GiB, times are in seconds or milliseconds.
    """
    iterations = max(1, work.iteration)
    return {
        **origin(digest),
        "device": torch.cuda.get_device_name() if "cuda" in device else platform.machine(),
        "processor": None if "cuda" in device else _processor(),
        **(dataclasses.asdict(work.job.arithmetic) if work.job.arithmetic else {}),
        "iterations": work.iteration,
        "n_images": work.n_images,
        "flop_per_iteration": flop,
        "memory_gib": round(compute.memory_gib(device), 3),
        "seconds_wall": round(work.seconds["wall"], 3),
        "seconds_cpu": round(work.seconds["cpu"], 3),
        "milliseconds_per_iteration_cpu": round(1000 * work.seconds["cpu"] / iterations, 3),
        "milliseconds_per_iteration_wall": round(1000 * work.seconds["wall"] / iterations, 3),
    }


def _processor() -> str | None:
    # The model of this machine's CPU; None where the system does not name it.
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = [line.partition(":") for line in file.read(65536).splitlines()]
    except OSError:
        return platform.processor() or None
    return next((text.strip() for key, _, text in lines if key.strip() == "model name" and text.strip()), None)


def git(*words: str) -> str | None:
    """The output of a git command in the current folder; None if git fails or is not installed."""
    try:
        answer = subprocess.run(["git", *words], capture_output=True, encoding="utf-8", errors="replace", timeout=20)
        return answer.stdout.strip() if answer.returncode == 0 else None
    except (OSError, subprocess.SubprocessError):
        return None
