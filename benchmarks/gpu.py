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
import platform
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
TOY_SHARES = {"right": 120.0, "fast": 170.0, "sampling": 60.0, "learning": 160.0}  # starting costs more than measuring
RESERVE, WHOLE = 30.0, 540.0
STARTING = 1 / 3  # share of the time that the first start may take
GRACE = 0.03  # share of the time in which an item may end after its part's time
RESULTS, LOG = "gpu-results.json", "log.txt"


class Stop(Exception):
    """A signal asked for the end."""


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
    # Be the process that measures, and write its events into this file.
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
