# SPDX-License-Identifier: Apache-2.0
"""Supervision of the process that measures: starts it, reads its events, kills it at a time limit, and starts another one after a
failure. This module does not need torch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu_parts.results import Results, sentence

SCRIPT = str(Path(__file__).resolve().parents[1] / "gpu.py")
POISONED = 86  # exit code of a process that can no longer use its GPU
START = {"cuda": 12.0, "cpu": 4.0}  # seconds that must be left for another process to be started


class Worker:
    """A process that measures the items of parts. It gets commands and writes events as lines of JSON.

    It is started when it is needed, and again only after a failure, because starting takes many seconds.
    """

    def __init__(self, words: list[str], folder: Path, log: Path):
        self.words, self.folder, self.log = words, folder, log
        self.process: subprocess.Popen | None = None
        self.starts, self.read = 0, 0

    def start(self) -> None:
        """Start the process unless it is running."""
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.starts, self.read = self.starts + 1, 0
            self.events = self.folder / f"events-{self.starts}.jsonl"
            with open(self.log, "ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, SCRIPT, "--worker", str(self.events), *self.words], stdin=subprocess.PIPE, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True, text=True,
                )  # fmt: skip

    def wait(self, until: float) -> list[dict]:
        """Start the process and wait until it is ready, has ended, or the time is up; returns its events."""
        self.start()
        found: list[dict] = []
        while time.monotonic() < until and self.process.poll() is None:
            found += self.told()
            if any(event["event"] == "ready" for event in found):
                break
            time.sleep(0.05)
        return found

    def send(self, command: dict) -> None:
        """Send a command to the process, which is started if necessary."""
        self.start()
        with contextlib.suppress(BrokenPipeError):  # its exit code is handled elsewhere
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()

    def told(self) -> list[dict]:
        """The events since the last call."""
        found = []
        if self.events.exists():
            with open(self.events, encoding="utf-8") as file:
                file.seek(self.read)
                while (line := file.readline()).endswith("\n"):
                    self.read = file.tell()
                    found.append(json.loads(line))
        return found

    def stop(self) -> None:
        """Kill the process and all processes that it started."""
        if self.process is not None:
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def tail(self) -> list[str]:
        """The last lines of its output."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:] if self.log.exists() else []


class Part:
    """One part of the benchmark: its progress and its entry in the results.

    until: the time after which no item starts. latest: the time at which a running item is stopped. Both are time.monotonic().
    """

    def __init__(self, name: str, device: str, worker: Worker, results: Results, until: float, latest: float, say):
        self.name, self.device, self.worker, self.results = name, device, worker, results
        self.until, self.latest = until, latest
        self.entry, self.say = results.part(name), say
        self.running: str | None = None  # the item that is running
        self.last: str | None = None  # the item that was started last
        self.kill_at, self.begun = latest, 0.0

    def run(self) -> None:
        """Measure all items, with new workers after failures, until the time `until`."""
        began, reason = time.monotonic(), "stopped"
        self.entry["planned_seconds"] = round(self.until - began, 2)
        try:
            self._items()
            reason = "failed before" if self.entry.get("failed") else "time"
        finally:
            for name in self._waiting():
                self.entry["items"][name] = {"status": "not reached", "reason": reason}
            self.entry["seconds"] = round(time.monotonic() - began, 2)
            self.results.write()

    def _items(self) -> None:
        # After a failure of a worker, a new one starts with the item after the one that failed.
        while True:
            after = self.last
            code, killed = self._attempt()
            if code is None:
                return
            if self.last == after:
                self.entry["failed"] = f"its process ended with {ended(code, killed)} before its first item"
                self.entry["log_tail"] = self.worker.tail()
                self.say(f"{self.name} FAILED: {self.entry['failed']}; see {self.worker.log.name}")
                return
            if not self._waiting() or self.until - time.monotonic() < START[self.device]:
                return

    def _waiting(self) -> list[str]:
        return [name for name, row in self.entry["items"].items() if row["status"] == "waiting"]

    def _attempt(self) -> tuple[int | None, bool]:
        # The items after the last one, by one worker: (the code with which it ended too early, whether it was killed here).
        self.running, self.kill_at, killed = None, self.latest, False
        until = time.time() + self.until - time.monotonic()
        self.worker.send({"part": self.name, "until": until, "after": self.last})
        while True:
            code = self.worker.process.poll()  # before the events are read: none can come after it
            for event in self.worker.told():
                if event["event"] == "over":
                    return None, False
                self._seen(event)
            if code is not None:
                break
            if time.monotonic() > self.kill_at:
                killed = True
                self.worker.stop()
            time.sleep(0.05)
        if self.running is not None:
            self._broken(code, killed)
        return code, killed

    def _seen(self, event: dict) -> None:
        # Takes up what the process says.
        kind, items = event.pop("event"), self.entry["items"]
        if kind == "device":
            self.results.values["device"] = self.results.values["device"] or event
        elif kind == "plan":
            for name in event["items"]:
                items.setdefault(name, {"status": "waiting"})
        elif kind == "begin":
            self.running = self.last = event["name"]
            self.begun = time.monotonic()
            self.kill_at = min(self.latest, self.begun + event["limit"])
        elif kind == "end":
            name = event.pop("name")
            items[name], self.running, self.kill_at = event, None, self.latest
            self.say(sentence(self.name, name, event))
        self.results.write()

    def _broken(self, code: int, killed: bool) -> None:
        # Records the item during which a process ended.
        took, name = time.monotonic() - self.begun, self.running
        row = {"status": "failed", "seconds": round(took, 2), "type": "ProcessEnded", "reason": "failed", "traceback": [],
               "message": f"its process ended with {ended(code, killed)}", "log_tail": self.worker.tail()}  # fmt: skip
        if killed:
            row |= {"type": "Stopped", "reason": "time", "message": f"it was stopped at its limit, after {took:.0f} s"}
        self.entry["items"][name] = row
        self.say(sentence(self.name, name, row))
        self.running = None
        self.results.write()


def ended(code: int, killed: bool) -> str:
    """An exit code in words."""
    if killed:
        return "a signal of this benchmark, at its limit"
    if code == POISONED:
        return "a GPU that it could no longer use"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
