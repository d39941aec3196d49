# SPDX-License-Identifier: Apache-2.0
"""Starts several processes on this machine for one command and ends them together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from eldistill.signals import ENDING, PASSED_ON, Interrupted, signal_name

COVERED_BY = "loop"
MEMORY = 76  # exit code of a process whose device ran out of memory
GRACE = 20.0  # seconds until the remaining processes are killed after one has failed


def launch(arguments: list[str], count: int, most: int = 1, log: Callable[[str], None] = print) -> int:
    """Run `python -m eldistill` with these arguments in `count` processes on this machine.

    Returns 0, or the exit code of the process that failed first (75: the state is saved, the same command continues).
    most: upper limit of micro-batches in each process. When a device runs out of memory, all processes start again from
    the last saved state with twice as many micro-batches.

    Differs from torchrun in three ways: each process gets a signal once, exit codes are passed on, and the message of
    the process that failed first is printed. When this process is killed, the others are killed too.
    """
    parts = 1
    while (code := _launch(arguments, count, parts if most > 1 else 0)) == MEMORY and parts < most:
        parts *= 2
        log(f"a device ran out of memory; continuing with {parts} micro-batches in each process")
    return 1 if code == MEMORY else code


def _launch(arguments: list[str], count: int, parts: int) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[subprocess.Popen] = []
    said = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(count)]
    before: dict[int, Any] = {}
    stopping: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        asked = len(stopping)
        stopping.append(number)
        impatient = sum(each != PASSED_ON for each in stopping) > 1  # PASSED_ON repeats a signal, before or after it
        for each in started:
            if each.poll() is None and (impatient or not asked):
                each.send_signal(signal.SIGKILL if impatient else signal.SIGTERM)

    try:
        for number in ENDING:
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, forward)
        for rank in range(count):
            environment = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), "ELDISTILL_PARTS": str(parts),
            }  # fmt: skip
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "eldistill", *arguments],
                    env=environment,
                    start_new_session=True,
                    preexec_fn=_mortal,
                    stdout=None if rank == 0 else subprocess.DEVNULL,
                    stderr=said[rank],
                )  # fmt: skip
            )
        early = stopping.copy()  # before all were started
        stopping.clear()
        for caught in early:
            forward(caught, None)
        first = _wait(started)
        said[first].seek(0)
        sys.stderr.write(said[first].read())
        code = started[first].returncode
        if code == -signal.SIGTERM and stopping:  # a worker whose Python had not yet started
            raise Interrupted(signal_name(stopping[0]))
        return code if code >= 0 else 1
    finally:
        for each in started:
            if each.poll() is None:
                each.kill()
                each.wait()
        for caught, handler in before.items():
            signal.signal(caught, handler)
        for file in said:
            file.close()


def _mortal() -> None:
    # Runs between fork and exec. On Linux the process is then killed with its parent; elsewhere it must be stopped by
    # hand.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _wait(started: list[subprocess.Popen]) -> int:
    """Wait for all processes. Returns the rank that failed first, or 0 if none did."""
    first, ended = None, 0.0
    while any(each.poll() is None for each in started):
        for rank, each in enumerate(started):
            if first is None and each.returncode not in (None, 0):
                first, ended = rank, time.monotonic()
        if first is not None and time.monotonic() - ended > GRACE:
            for each in started:
                if each.poll() is None:
                    each.kill()
        time.sleep(0.05)
    if first is None:
        first = next((rank for rank, each in enumerate(started) if each.returncode), 0)
    return first
