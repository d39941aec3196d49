# SPDX-License-Identifier: Apache-2.0
"""Benchmark of an iteration of each method: its time relative to the passes of its networks, which are necessary.

    python benchmarks/step.py                                    # every method, the demo's network, with and without EL
    python benchmarks/step.py --network cifar10 --batch 4 --methods di sid
    python benchmarks/step.py --compare other.json               # ratios to another machine or commit

The loop makes an iteration while every pass through a network is recorded: the network, the number of images, and whether it goes
backwards to the weights, the input, or both. Then the same passes are made alone, one after the other, with the same inputs and
without noise, losses, optimisers, averages and checks for NaN. Iterations and bare passes alternate in one process, and the ratio is
the median over the turns:

    ratio = iteration / sum of its bare passes

Methods whose iterations differ, such as DMD2, are measured over a whole cycle. `passes` is the number of recorded calls of networks
per iteration, in units of a batch. With one CPU thread CPU time is measured, otherwise wall time. `% for data` is the share of an
iteration for reading, sending and encoding real images and labels. `% of ceiling` is the rate of floating-point operations of an
iteration, as counted by torch, relative to a large matrix product in the same precision on the same device. Images are random, which
does not change the time.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import loops
import torch

from eldistill.diffusion import draws, dropout
from eldistill.losses import score
from eldistill.plan import params
from eldistill.sampling import generators as sampling
from eldistill.sampling.teachers import images_of_teacher
from eldistill.steps.work import set_threads
from eldistill.training import compute, loop
from eldistill.training.machine import Machine

ROOT = Path(__file__).parents[1]
METHODS = ("di", "dmd", "dmd2", "sid", "sida", "cd", "ect")
LEAST = 3  # smallest number of measured turns if time is short
SETTINGS = ("precision", "channels_last", "recompute", "compile")


@dataclass(frozen=True)
class Subject:
    """A network that is measured.

    network: the name of a teacher in params.yaml, or the settings of a network. side: of its images, in pixels. data: the data
    setting whose numbers methods and supplements use, including augmentation. dropout: None means that of the method.
    """

    network: str | dict
    side: int
    channels: int
    data: str = "digits"
    dropout: float | None = None


NETWORKS = {
    "demo": Subject("digits", 8, 1),
    "cifar10": Subject("cifar10", 32, 3),
    "adm64": Subject("imagenet64", 64, 3),
    "edm2-xs": Subject({"network": "edm2", "model_channels": 128}, 64, 4),
    "edm2-s": Subject({"network": "edm2", "model_channels": 192}, 64, 4),
}


@dataclass
class Pass:
    """A recorded call of a network, which can be repeated."""

    net: torch.nn.Module
    call: Callable
    arguments: tuple
    training: bool
    weights: bool
    to_input: bool
    masks: AbstractContextManager  # reproduces its dropout masks
    back: bool = False

    def again(self) -> None:
        """Repeat the pass alone."""
        x, *rest = self.arguments
        grad = self.weights or self.to_input
        with self.masks, torch.set_grad_enabled(grad):
            x = x.detach().requires_grad_(self.to_input)
            found = self.call(x, *rest)
        found = found if isinstance(found, tuple) else (found,)
        if grad and self.back:
            torch.autograd.backward(found, [torch.ones_like(each) for each in found])


class Recorder:
    """Records the passes of a loop's networks while `passes` is a list."""

    def __init__(self, work: loop.Loop):
        self.passes: list[Pass] | None = None
        for net in work.nets.values():
            for name in ("forward", "encode", "both"):
                if hasattr(net, name):
                    setattr(net, name, self._recording(net, getattr(net, name)))

    def _recording(self, net: torch.nn.Module, call: Callable) -> Callable:
        def recording(x, *rest, **named):
            if self.passes is None:
                return call(x, *rest, **named)
            grad = torch.is_grad_enabled()
            seen = Pass(net, lambda x, *rest: call(x, *rest, **named), (x.detach(), *rest), net.training,
                        grad and any(p.requires_grad for p in net.parameters()), grad and x.requires_grad,
                        dropout.repeat_masks()[1])  # fmt: skip
            self.passes.append(seen)
            kept, self.passes = self.passes, None  # `both` calls the other functions, which must not be recorded again
            found = call(x, *rest, **named)
            self.passes = kept
            for each in found if isinstance(found, tuple) else (found,):
                if each.requires_grad:
                    each.register_hook(lambda gradient: setattr(seen, "back", True))
            return found

        return recording


class Clock:
    """Measures the seconds of an iteration by part. Of nested calls only the outermost is counted.

    `data` is the time for real images: reading their rows, sending and encoding them. `augmentation` is EDM's augmentation, including
    its random numbers. `rest` is all other time: losses, scalings, and Python between the parts.
    """

    def __init__(self, work: loop.Loop, options, only_data: bool = False):
        self.options, self.seconds, self.inside, self.undo = options, {}, False, []
        data = [(work.job.reals, name, "data") for name in ("take", "labels")]
        augments = getattr(work.job.numbers, "augment", 0)
        self.places = data if only_data else [
            *data, *([(score, "augmented", "augmentation")] if augments else []),
            *((draws.Draw, name, "noise") for name in ("normal", "uniform", "integers")),
            *((net, way, name) for name, net in work.nets.items() for way in ("forward", "encode", "both") if hasattr(net, way)),
            (torch.Tensor, "backward", "backward"), (torch.autograd, "grad", "backward"),
            *((each, way, "optimiser") for each in work.optimisers.values() for way in ("step", "zero_grad")),
            (work.update, "_check_gradients", "checks"), (work.monitor, "finite", "checks"), (work.monitor, "flush", "checks"),
            (work, "_average", "average"), (work.update.meeting, "own_gradient", "supplement"),
        ]  # fmt: skip

    def __enter__(self):
        for owner, name, part in self.places:
            own = name in vars(owner)
            self.undo.append((owner, name, vars(owner).get(name), own))
            setattr(owner, name, self._clocked(getattr(owner, name), part))
        return self

    def __exit__(self, *_):
        for owner, name, before, own in reversed(self.undo):
            setattr(owner, name, before) if own else delattr(owner, name)
        self.undo = []

    def _clocked(self, call: Callable, part: str) -> Callable:
        def clocked(*arguments, **named):
            if self.inside:
                return call(*arguments, **named)
            self.inside, start = True, now(self.options)
            try:
                return call(*arguments, **named)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + now(self.options) - start
                self.inside = False

        return clocked


def now(options) -> float:
    """A time in seconds: CPU time with one CPU thread, otherwise wall time, synchronised with a GPU."""
    if options.device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def loop_of(
    settings: params.Params, method: str, supplement: str, options, folder: Path, micro_batch: int = 0
) -> loop.Loop:
    """The loop of a method with its numbers for the data of the subject and a learning rate near 0. micro_batch: images at once; 0
    means the whole batch."""
    subject, network = NETWORKS[options.network], None
    if isinstance(subject.network, str):
        network = settings.section("teacher", subject.network)["network"]
    values = settings.section("method", method, subject.data)
    dropout = values["dropout"] if subject.dropout is None else subject.dropout
    reals = loops.random_images(subject.channels, subject.side, options.device)
    added = []
    if supplement != "none":
        section = settings.section("supplement", supplement, subject.data)
        # Scales do not affect the time of a step, so that few images are enough.
        ensemble = loops.ensemble_of(settings, section["ensemble"], reals, folder, calibration=64)
        added.append(loops.supplement_of(supplement, section, ensemble, options.device))
    config = {**(network or subject.network), **({} if dropout is None else {"dropout": dropout})}
    job = loops.still_job(values, config, reals, options.batch, folder, added, micro_batch)
    nets = [job.fixed["teacher"], *job.nets.values()]
    if options.device == "cuda":  # as a run of this machine; a CPU would train in float32, whatever is to be measured
        half = "bfloat16" if options.precision == "bfloat16" else "float32"
        compute.set_arithmetic(half, Machine(device=options.device, tf32=options.precision == "tf32"), nets)
    else:
        compute.set_precision(options.precision, nets)
    machine = Machine(channels_last=options.channels_last, recompute=options.recompute, compile=options.compile)
    compute.prepare_networks(machine, nets[:1], nets[1:])
    work = loop.Loop(job)
    work.n_images = 64 * options.batch * (10**6 // options.batch)  # after all warm-ups, which are counted in images
    return work


def measure(
    settings: params.Params, method: str, supplement: str, options, folder: Path, micro_batch: int = 0,
    seconds: float = math.inf,
) -> dict:  # fmt: skip
    """A row of the table: milliseconds of an iteration and of its bare passes, their ratio, the passes, images per second, memory.

    seconds: no turn starts after this time, once there are LEAST turns, and the parts are measured over fewer iterations.
    """
    begun = time.monotonic()
    work = loop_of(settings, method, supplement, options, folder, micro_batch)
    cycle = max(phase.every for phase in work.job.method.phases(work.job.numbers, work.progress))
    recorder, turns = Recorder(work), []
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for turn in range(options.warmup + options.repeats):
        if turn >= options.warmup + LEAST and time.monotonic() - begun > seconds:
            break
        work.iteration -= work.iteration % cycle
        recorder.passes = None
        with Clock(work, options, only_data=True) as waiting:
            before = now(options)
            for _ in range(cycle):
                work.iterate()
            between, waited = now(options), waiting.seconds.get("data", 0.0)
        if turn == 0:  # recorded once, because recording takes time
            recorder.passes = []
            for _ in range(cycle):
                work.iterate()
            passes, recorder.passes = recorder.passes, None
        bare = sum(_bare(each, options) for each in passes)
        turns.append(((between - before) / cycle, bare / cycle, waited / (between - before)))
    kept = turns[options.warmup :]
    step, bare = (statistics.median(each[i] for each in kept) for i in (0, 1))
    looks = cycle * (3 if seconds == math.inf else 1)
    with Clock(work, options) as clock:  # not during the turns, because the clock takes time
        before = now(options)
        for _ in range(looks):
            work.iterate()
        whole = now(options) - before
    parts = {**clock.seconds, "rest": whole - sum(clock.seconds.values())}
    with compute.without_compiled_code(options.compile):
        flop = work.count_flop()
    return {
        "method": method,
        "supplement": supplement,
        "network": options.network,
        "batch": options.batch,
        **{key: getattr(options, key) for key in SETTINGS},
        "milliseconds": 1000 * step,
        "bare_milliseconds": 1000 * bare,
        "ratio": statistics.median(a / b for a, b, _ in kept),
        "data_percent": 100 * statistics.median(each[2] for each in kept),
        "passes": len(passes) / cycle * (micro_batch or options.batch) / options.batch,
        "parts_milliseconds": {part: 1000 * spent / looks for part, spent in parts.items()},
        "images_per_second": options.batch / step,
        "flop_per_second": flop / step,
        "ceiling_percent": 100 * flop / step / options.ceiling,
        "memory_gib": compute.memory_gib(options.device),
        "micro_batch": micro_batch,
        "turns": len(kept),
        "first_milliseconds": 1000 * turns[0][0],
    }


def ceiling(options) -> float:
    """Floating-point operations per second of a product of two large matrices, the fastest of ten."""
    n = 8192 if options.device == "cuda" else 2048
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    compute.set_precision(options.precision, [])
    a, b = torch.ones(2, n, n, dtype=dtype, device=options.device)
    seconds = []
    for _ in range(10):
        start = now(options)
        a @ b
        seconds.append(now(options) - start)
    return 2 * n**3 / min(seconds)


def _bare(each: Pass, options) -> float:
    # Seconds of a pass, without the time for restoring the state of the network.
    for parameter in each.net.parameters():
        parameter.requires_grad, parameter.grad = each.weights, None
    for module in each.net.modules():
        module.training = each.training
    start = now(options)
    each.again()
    return now(options) - start


def throughput(settings: params.Params, options, folder: Path) -> dict:
    """Images per second of one-step generation and of Heun's method in 18 steps (35 calls), alternating, with the same network."""
    work, n = loop_of(settings, "di", "none", options, folder), options.images
    net = work.nets["teacher"]
    about = {
        "shape": list(work.job.shape),
        "label_dim": 0,
        "codec": {"mean": 0.5, "std": 0.29},
        "sampler": {"steps": {"1": [2.5]}},
    }
    routes = {
        "one step": lambda: sampling.images_of(sampling.Generator(net, about), n, batch=options.batch),
        "Heun, 18 steps": lambda: images_of_teacher(net, about, n, 18, batch=options.batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in routes}
    for turn in range(LEAST + 1):
        for name, route in routes.items():
            start = now(options)
            for _ in route():
                pass
            if turn:
                seconds[name].append(now(options) - start)
    found = {f"{name}, images/s": n / statistics.median(each) for name, each in seconds.items()}
    ratios = [slow / fast for fast, slow in zip(*seconds.values(), strict=True)]
    return {"network": options.network, "batch": options.batch, **found, "ratio": statistics.median(ratios)}


def line(row: dict, other: dict | None) -> str:
    """A row of the Markdown table. other: the row of the same measurement on another machine or commit."""
    cells = [row["method"], row["supplement"], f"{row['milliseconds']:.1f}", f"{row['bare_milliseconds']:.1f}", f"{row['ratio']:.2f}",
             f"{row['data_percent']:.1f}", f"{row['passes']:g}", f"{row['images_per_second']:.3g}", f"{row['ceiling_percent']:.0f}",
             f"{row['memory_gib']:.1f}"]  # fmt: skip
    if other:
        cells.append(f"{row['milliseconds'] / other['milliseconds']:.2f}")
    return f"| {' | '.join(cells)} |"


def parts_table(rows: list[dict]) -> str:
    """A Markdown table of the milliseconds of an iteration by part, measured over a few iterations after the turns."""
    names = list(dict.fromkeys(part for row in rows for part in row["parts_milliseconds"] if part != "rest")) + ["rest"]
    lines = [["method", "supplement", *names], ["---", "---", *["---:"] * len(names)]]
    for row in rows:
        spent = row["parts_milliseconds"]
        cells = (f"{spent[name]:.1f}" if name in spent else "" for name in names)
        lines.append([row["method"], row["supplement"], *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table, and write it if --out is given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--network", choices=list(NETWORKS), default="demo")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), help="names under distil.methods with numbers for digits"
    )
    parser.add_argument("--supplements", nargs="+", default=["none", "el"])
    parser.add_argument("--precision", choices=["float32", "tf32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="compile the networks, as with distil.compile")
    parser.add_argument("--channels-last", action="store_true", help="as with distil.channels_last")
    parser.add_argument("--recompute", action="store_true", help="recompute blocks, as with distil.recompute")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15, help="number of measured turns")
    parser.add_argument(
        "--images", type=int, default=1000, help="number of images for the comparison with Heun's method; 0 omits it"
    )
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file")
    parser.add_argument(
        "--compare", type=Path, help="a file written by --out: adds a column with the ratio of the times to those in it"
    )
    options = parser.parse_args(arguments)
    set_threads(options.threads, "distil")  # what every step begins with
    options.ceiling = ceiling(options)
    settings, rows = params.load_params(ROOT / "params.yaml"), []
    others = json.loads(options.compare.read_text(encoding="utf-8"))["rows"] if options.compare else []
    machine = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{platform.machine()}, {options.threads} thread(s)"
    )
    print(
        f"Network {options.network}, batch {options.batch}, {options.precision}, {machine}, torch {torch.__version__}, "
        f"matrix products {options.ceiling / 1e9:.0f} GFLOP/s\n"
    )
    head = [
        "method",
        "supplement",
        "ms an iteration",
        "ms of its bare passes",
        "ratio",
        "% for data",
        "passes",
        "images/s",
        "% of ceiling",
        "GiB",
    ]
    head += ["ms over the other's"] if others else []
    print(f"| {' | '.join(head)} |\n|---|---|{'---:|' * (len(head) - 2)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for method in options.methods:
            for supplement in options.supplements:
                row = measure(settings, method, supplement, options, Path(folder))
                same = ("method", "supplement", "network", "batch", *SETTINGS)
                twin = next((each for each in others if all(each.get(key) == row[key] for key in same)), None)
                print(line(row, twin), flush=True)
                rows.append(row)
        print("\n" + parts_table(rows), flush=True)
        rates = throughput(settings, options, Path(folder)) if options.images else {}
    print("\n" + ", ".join(f"{key} {rates[key]:.4g}" for key in rates if key.endswith(("images/s", "ratio"))))
    if options.out:
        about = {
            "machine": machine,
            "torch": torch.__version__,
            "ceiling": options.ceiling,
            "rows": rows,
            "sampling": rates,
        }
        options.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
