# SPDX-License-Identifier: Apache-2.0
"""One command with all measurements that need a GPU, in ten minutes.

    python benchmarks/gpu.py --minutes 9 --out DIR                      # DIR/gpu-results.json and DIR/log.txt
    srun --gres=gpu:1 --time=10 python benchmarks/gpu.py --minutes 9 --out DIR    # on a cluster with Slurm
    python benchmarks/gpu.py --minutes 0.5 --device cpu --out DIR       # a test of the same code with toy networks

It needs Python >= 3.11 and the packages of `eldistill distil` (torch >= 2.11, numpy, pyyaml, safetensors, tqdm). It needs no network
and no installation, because it uses the package of this repository. Before: run `make demo`, which makes the files for the part
`learning` (data/teachers/digits/ and data/sets/digits/), and copy them together with the repository, because git ignores them;
--carry FOLDER names another place. After: copy the JSON to benchmarks/gpu/DATE-DEVICE.json and run
`python benchmarks/gpu_readme.py`, which shows the newest results in benchmarks/gpu/README.md.

The parts in order, with their seconds out of 540: right 90, fast 230, sampling 20, learning 170; 30 are a reserve. Time that a part
does not use goes to the next ones. A separate process measures. It is killed if it hangs, and it ends if it loses the GPU (an illegal
access); a new process then starts with the next item. If an item fails, its traceback is recorded and the next one starts. The JSON
is complete after every item, and lists items that were not reached with the reason.
The exit code is 0, or 1 if an item failed or differs, or 2 if nothing could start.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_parts.results import Results
from gpu_parts.supervise import Part, Worker

ROOT = Path(__file__).resolve().parents[1]
SHARES = {"right": 90.0, "fast": 230.0, "sampling": 20.0, "learning": 170.0}
TOY_SHARES = {
    "right": 120.0,
    "fast": 170.0,
    "sampling": 60.0,
    "learning": 160.0,
}  # starting takes more time than measuring
RESERVE, WHOLE = 30.0, 540.0
STARTING = 1 / 3  # largest fraction of the time for the first start
GRACE = 0.03  # fraction of the time by which an item may exceed the time of its part
RESULTS, LOG = "gpu-results.json", "log.txt"


class Stop(Exception):
    """A signal that ends the benchmark."""


def measure(options, say=print, begun: float | None = None) -> int:
    """Run the selected parts within options.minutes from `begun` (a time.monotonic(), None means now); returns the exit code."""
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
                for event in worker.wait(begun + STARTING * whole):
                    if event["event"] == "device":
                        results.values["device"] = {key: each for key, each in event.items() if key != "event"}
                for place, name in enumerate(shares):
                    now, rest = time.monotonic(), sum(list(shares.values())[place:])
                    until = now + shares[name] / rest * max(0.0, deadline - reserve - now)
                    say(f"{name}: {until - now:.0f} s")
                    latest = min(until + GRACE * whole, deadline - GRACE / 4 * whole)
                    Part(name, options.device, worker, results, until, latest, say).run()
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
    """Print the summary; returns the exit code."""
    found = results.values["summary"]
    say(f"{found['done']} items measured in {results.values['seconds']:.0f} s: {results.path}")
    for kind, words in (("failed", "failed"), ("left_out", "left out"), ("not_reached", "not reached")):
        for each in found[kind]:
            say(f"  {words}: {each['item']} ({each['reason']})")
    for each in found["differs"]:
        say(f"  differs: {each['item']} in {', '.join(each['checks'])}")
    return int(bool(found["failed"] or found["differs"]))


def about(options) -> dict:
    """The origin of the results: command, date, commit and versions."""
    import torch

    return {
        "benchmark": "eldistill gpu",
        "version": 1,
        "command": shlex.join(["python", "benchmarks/gpu.py", *options.words]).replace(
            shlex.quote(str(options.out)), "DIR"
        ),
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
    """The parsed options; `words` are the arguments for the process that measures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="limit of the wall time in minutes")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the results")
    parser.add_argument("--part", nargs="+", choices=list(SHARES), default=list(SHARES), help="parts to run")
    parser.add_argument(
        "--item", nargs="+", default=[], metavar="WORDS", help="only items whose name contains one of these"
    )
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu tests the code with toy networks"
    )
    parser.add_argument("--toy", action="store_true", help="use toy networks on a GPU too, for a test of a minute")
    parser.add_argument("--compile", action="store_true", help="also compile toy networks")
    parser.add_argument("--carry", type=Path, default=ROOT, help="folder that holds data/teachers and data/sets")
    parser.add_argument("--data", default="digits", help="data setting for the part learning")
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads")
    # Internal: act as the process that measures, and write its events to this file.
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
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
        *(["--item", *options.item] if options.item else []),
        *(f"--break={each}" for each in options.breaks),
    ]  # fmt: skip
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, or act as the process that measures."""
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
