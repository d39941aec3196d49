# SPDX-License-Identifier: Apache-2.0
"""All that is to be measured on a GPU that is there for ten minutes, in one command.

    python benchmarks/gpu.py --minutes 9 --out DIR                      # DIR/gpu-results.json and DIR/log.txt
    srun --gres=gpu:1 --time=10 python benchmarks/gpu.py --minutes 9 --out DIR    # on a cluster with Slurm
    python benchmarks/gpu.py --minutes 0.5 --device cpu --out DIR       # the same code on toy networks: a test

It needs Python >= 3.11 and what `eldistill distil` needs (torch >= 2.11, numpy, pyyaml, safetensors, tqdm), no network, and
no installation: the package beside it is used. Beforehand: `make demo` makes the files that the part `learning` reads
(data/teachers/digits/ and data/sets/digits/; git ignores them, so they have to be copied along with the repository; --carry
FOLDER names another place). Afterwards: copy the JSON to benchmarks/gpu/DATE-DEVICE.json and run
`python benchmarks/gpu_readme.py`, which shows the newest results in benchmarks/gpu/README.md.

Parts, in order, with their share of the time: right 90, fast 230, sampling 20, learning 170, of 540 seconds; 30 are kept.
What one does not use the next ones have. A process of its own measures: if it hangs it is killed, and if it loses the GPU (an
illegal access) it ends; another one begins with the item after. An item that fails is written down with its traceback, and the
next begins. The JSON is complete after every item; what was not reached is listed with the reason.
The exit code is 0, 1 if anything failed or differs, 2 if nothing could begin.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = str(Path(__file__).resolve())
ROOT = Path(SCRIPT).parents[1]
SHARES = {"right": 90.0, "fast": 230.0, "sampling": 20.0, "learning": 170.0}
TOY_SHARES = {"right": 120.0, "fast": 170.0, "sampling": 60.0, "learning": 160.0}  # starting costs more than measuring
RESERVE, WHOLE = 30.0, 540.0
POISONED = 86  # exit code of a process that can no longer use its GPU
START = {"cuda": 12.0, "cpu": 4.0}  # seconds without which starting a process again is no use
RESULTS, LOG = "gpu-results.json", "log.txt"


class Stop(Exception):
    """A signal asked for the end."""


# --- results --------------------------------------------------------------------------------------------


def plain(value):
    """A value for JSON: numbers that are not finite as their names."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


class Results:
    """The one file of results, written anew after every change, whole or not at all."""

    def __init__(self, path: Path, begun: float, about: dict):
        self.path, self.begun = path, begun
        self.values: dict = {**about, "complete": False, "seconds": 0.0, "device": None, "parts": {}, "summary": {}}

    def part(self, name: str) -> dict:
        """The entry of a part."""
        return self.values["parts"].setdefault(name, {"items": {}})

    def write(self) -> None:
        """Write the file."""
        self.values["seconds"] = round(time.monotonic() - self.begun, 2)
        self.values["summary"] = self.summary()
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(plain(self.values), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)

    def summary(self) -> dict:
        """Numbers of items by status; what failed, differs, was not reached."""
        rows = [(f"{part}: {name}", row) for part, entry in self.values["parts"].items()
                for name, row in entry["items"].items()]  # fmt: skip
        parts = [(part, entry) for part, entry in self.values["parts"].items() if entry.get("failed")]
        broken = [
            {"item": name, "reason": f"{row['reason']}: {row['type']}: {first_line(row['message'])}"}
            for name, row in rows
            if row["status"] == "failed"
        ]
        return {
            "done": sum(row["status"] == "done" for _, row in rows),
            "failed": [*({"item": part, "reason": entry["failed"]} for part, entry in parts), *broken],
            "differs": [{"item": name, "checks": row["differs"]} for name, row in rows if row.get("differs")],
            "left_out": [{"item": name, "reason": row["reason"]} for name, row in rows if row["status"] == "left out"],
            "not_reached": [
                {"item": name, "reason": row["reason"]} for name, row in rows if row["status"] == "not reached"
            ],
        }


def first_line(message: str) -> str:
    """The beginning of an error's message."""
    return (message.splitlines() or [""])[0][:160]


def sentence(part: str, name: str, row: dict) -> str:
    """What is printed of an item."""
    where, took = f"{part}: {name}", f"{row.get('seconds', 0):.1f} s"
    if row["status"] == "failed":
        return f"{where} FAILED after {took} ({row['type']}: {first_line(row['message'])})"
    if row["status"] == "done":
        return (
            f"{where} DIFFERS in {', '.join(row['differs'])}, {took}" if row.get("differs") else f"{where} done, {took}"
        )
    return f"{where} {row['status']}: {row['reason']}"


# --- the process that measures ---------------------------------------------------------------------------


class Worker:
    """A process that makes the items of parts, told by lines of JSON what to do and telling by lines what it does.

    It is started when it is needed: again after it has broken down, else once, because starting costs many seconds.
    """

    def __init__(self, words: list[str], folder: Path, log: Path):
        self.words, self.folder, self.log = words, folder, log
        self.process: subprocess.Popen | None = None
        self.starts, self.read = 0, 0

    def send(self, command: dict) -> None:
        """Start the process unless it is there, and tell it what to do."""
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.starts, self.read = self.starts + 1, 0
            self.events = self.folder / f"events-{self.starts}.jsonl"
            with open(self.log, "ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, SCRIPT, "--worker", str(self.events), *self.words], stdin=subprocess.PIPE, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True, text=True,
                )  # fmt: skip
        with contextlib.suppress(BrokenPipeError):  # its exit code says so too
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()

    def told(self) -> list[dict]:
        """What it has told since the last call."""
        found = []
        if self.events.exists():
            with open(self.events, encoding="utf-8") as file:
                file.seek(self.read)
                while (line := file.readline()).endswith("\n"):
                    self.read = file.tell()
                    found.append(json.loads(line))
        return found

    def stop(self) -> None:
        """End it, and what it has started, at once."""
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
    """One part: what the worker has told of it so far, and its entry in the results."""

    def __init__(self, name: str, device: str, worker: Worker, results: Results, until: float, say):
        self.name, self.device, self.worker, self.results, self.until = name, device, worker, results, until
        self.entry, self.say = results.part(name), say
        self.running: str | None = None  # the item at work
        self.last: str | None = None  # the item that began last
        self.kill_at, self.begun = until, 0.0

    def run(self) -> None:
        """All items, by as many workers as it takes; no longer than `until`."""
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
        # A worker that breaks down is followed by another, which begins after the item that broke it.
        while True:
            after = self.last
            code, killed = self._attempt()
            if code is None:
                return
            if self.last == after:
                self.entry["failed"] = f"its process ended with {ended(code, killed)} before its first item"
                self.entry["log_tail"] = self.worker.tail()
                self.say(f"{self.name} FAILED: {self.entry['failed']}; see {LOG}")
                return
            if not self._waiting() or self.until - time.monotonic() < START[self.device]:
                return

    def _waiting(self) -> list[str]:
        return [name for name, row in self.entry["items"].items() if row["status"] == "waiting"]

    def _attempt(self) -> tuple[int | None, bool]:
        # The items after the last one, by one worker: (the code with which it ended too early, whether it was killed here).
        self.running, self.kill_at, killed = None, self.until, False
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
            self.kill_at = min(self.until, self.begun + event["limit"])
        elif kind == "end":
            name = event.pop("name")
            items[name], self.running, self.kill_at = event, None, self.until
            self.say(sentence(self.name, name, event))
        self.results.write()

    def _broken(self, code: int, killed: bool) -> None:
        # The item during which a process ended.
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


# --- the whole --------------------------------------------------------------------------------------------


def measure(options, say=print, begun: float | None = None) -> int:
    """Run the parts asked for within options.minutes of `begun` (None: of now); returns the exit code."""
    begun = time.monotonic() if begun is None else begun
    whole = 60 * options.minutes
    deadline, reserve = begun + whole, RESERVE / WHOLE * whole
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / LOG).write_text("", encoding="utf-8")
    results = Results(options.out / RESULTS, begun, about(options))
    shares = {name: each for name, each in (TOY_SHARES if options.toy else SHARES).items() if name in options.part}
    results.write()
    code, before = 0, {}

    def stop(number, _frame):
        raise Stop(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, stop)
    try:
        with tempfile.TemporaryDirectory(prefix="eldistill-gpu-") as folder:
            worker = Worker(options.words, Path(folder), options.out / LOG)
            try:
                for place, name in enumerate(shares):
                    now, rest = time.monotonic(), sum(list(shares.values())[place:])
                    until = now + shares[name] / rest * max(0.0, deadline - reserve - now)
                    say(f"{name}: {until - now:.0f} s")
                    Part(name, options.device, worker, results, until, say).run()
            finally:
                worker.stop()
        results.values["complete"] = True
    except Stop as reason:
        say(f"stopped by {reason}; what was measured is in {results.path}")
        results.values["stopped"] = str(reason)
        code = 143
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for name in shares:
            if name not in results.values["parts"]:
                results.part(name)["items"] = {"all": {"status": "not reached", "reason": "stopped before"}}
        results.write()
    return code or report(results, say)


def report(results: Results, say) -> int:
    """Print the summary; the exit code."""
    found = results.values["summary"]
    say(f"{found['done']} items measured in {results.values['seconds']:.0f} s: {results.path}")
    for kind, words in (("failed", "failed"), ("left_out", "left out"), ("not_reached", "not reached")):
        for each in found[kind]:
            say(f"  {words}: {each['item']} ({each['reason']})")
    for each in found["differs"]:
        say(f"  differs: {each['item']} in {', '.join(each['checks'])}")
    return int(bool(found["failed"] or found["differs"]))


def about(options) -> dict:
    """Where these results come from."""
    import torch

    return {
        "benchmark": "eldistill gpu",
        "version": 1,
        "command": " ".join(["python", "benchmarks/gpu.py", *options.words]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": _git("status", "--porcelain", "--untracked-files=no"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "asked": {"device": options.device, "minutes": options.minutes, "parts": options.part, "toy": options.toy},
    }


def _git(*words: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options; `words` are those that the process that measures is started with."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="of wall time, which are not exceeded")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the results")
    parser.add_argument("--part", nargs="+", choices=list(SHARES), default=list(SHARES), help="parts to run")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: on toy networks, as a test")
    parser.add_argument("--toy", action="store_true", help="toy networks on a GPU too: a look of a minute")
    parser.add_argument("--compile", action="store_true", help="compile toy networks too")
    parser.add_argument("--carry", type=Path, default=ROOT, help="folder that holds data/teachers and data/sets")
    parser.add_argument("--data", default="digits", help="data setting of the part learning")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--worker", type=Path, help=argparse.SUPPRESS
    )  # be the process that measures; its file of events
    # For tests: PART/ITEM=HOW, HOW being one of raise, memory, exit, kill, hang, poison.
    parser.add_argument("--break", dest="breaks", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes is {options.minutes}; expected more than 0")
    options.part = [name for name in SHARES if name in options.part]
    options.toy = options.toy or options.device == "cpu"
    options.carry = options.carry.resolve()
    options.words = [
        "--minutes", f"{options.minutes:g}", "--out", str(options.out), "--device", options.device, "--data", options.data,
        "--threads", str(options.threads), *(["--toy"] if options.toy else []), *(["--compile"] if options.compile else []),
        *(["--carry", str(options.carry)] if options.carry != ROOT else []),
        *(["--part", *options.part] if options.part != list(SHARES) else []),
        *(f"--break={each}" for each in options.breaks),
    ]  # fmt: skip
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, or be the process that does."""
    begun, options = time.monotonic(), parsed(arguments)
    for place in (str(ROOT / "src"), str(ROOT / "benchmarks")):
        if place not in sys.path:
            sys.path.insert(0, place)
    if options.worker:
        from gpu_parts import worker

        return worker.run(options)
    try:
        import torch
    except ImportError as error:
        print(
            f"gpu.py: torch cannot be imported ({error}); expected the packages of `eldistill distil`", file=sys.stderr
        )
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: torch sees no GPU on this machine; --device cpu runs toy networks, as a test", file=sys.stderr)
        return 2
    return measure(options, lambda text: print(text, flush=True), begun)


if __name__ == "__main__":
    sys.exit(main())
