# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the Embedding Loss (EL): its share of the time of an iteration of Diff-Instruct.

    python benchmarks/embedding.py                # the demo's network on 8x8 images
    python benchmarks/embedding.py --device cuda --resolution 32 --channels 128

One training loop (a step of fake_score, a step of the generator, the averages) has every variant of EL as a separate supplement, so
that all of them use the same images. The time of each supplement is measured (its real images, the members on both sides, the kernel,
the gradient at the images, its weight), and the time of the whole iteration. The rest is the iteration without any supplement:

    share = EL / (rest + EL),    the median of this ratio over the iterations

All times are measured within a fraction of a second, so that the load from other jobs cancels. The order of the supplements
rotates, and the first two iterations are not counted. `anchored` is the share with the rbf kernel and landmarks instead of real
images. The two other columns are medians of the time of EL with the rbf kernel: stacked over loop, and bfloat16 over float32. The
diagnosis of gradients every tenth iteration is omitted. With one CPU thread CPU time is measured, otherwise wall time (synchronised
with a GPU). Ensembles and numbers are those of params.yaml. Real images are random, which does not change the time.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import loops
import torch

from eldistill.data.dataset import PackedImages
from eldistill.ensemble import members as ensemble_members
from eldistill.ensemble import seed as ensembles
from eldistill.losses import mmd
from eldistill.plan import params
from eldistill.training import loop
from eldistill.training.job import Job, Supplement

KERNEL = "rbf"  # kernel of the two ratios


class Variant(NamedTuple):
    """A variant of EL that is measured."""

    ensemble: str
    kernel: str
    stack: str
    precision: str = "float32"
    anchored: bool = False


class Clocked(loop.Loop):
    """The training loop with a clock: `seen` has the seconds of the last iteration, for `rest` and for each supplement."""

    def __init__(self, job: Job):
        super().__init__(job)
        self.seen: dict[str, float] = {}
        for name in ("own_gradient", "weigh"):  # all work for a supplement
            setattr(self.update.meeting, name, self._clocked(getattr(self.update.meeting, name)))

    @property
    def at_images(self) -> list[Supplement]:
        """The supplements, in the order of the next iteration."""
        return self.update.meeting.supplements

    def iterate(self) -> None:
        """Make one iteration, and rotate the order of the supplements for the next one."""
        self.seen = dict.fromkeys(["rest", *(each.name for each in self.at_images)], 0.0)
        with self._clock("rest"):
            super().iterate()
        self.seen["rest"] -= sum(self.seen[each.name] for each in self.at_images)
        self.update.meeting.supplements = self.at_images[1:] + self.at_images[:1]

    def _clocked(self, call: Callable) -> Callable:
        def clocked(each: Supplement, *arguments):
            with self._clock(each.name):
                return call(each, *arguments)

        return clocked

    @contextlib.contextmanager
    def _clock(self, name: str):
        start = self._now()
        yield
        self.seen[name] += self._now() - start

    def _now(self) -> float:
        if self.job.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def images(options, device: str = "cpu", count: int = 2048) -> PackedImages:
    """Random images, grey for 8x8 pixels like the digits, otherwise in colour."""
    return loops.random_images(1 if options.resolution == 8 else 3, options.resolution, device, count)


def supplements(settings: params.Params, names: list[str], options, folder: Path) -> dict[Variant, Supplement]:
    """A supplement for each kernel in the form that a run uses on this device, and for the other form and bfloat16 if they differ."""
    own, other = ("stacked", "loop") if options.device == "cuda" else ("loop", "stacked")
    values, made = settings.section("supplement", "el"), {}
    for name in names:
        path = loops.ensemble_of(settings, name, images(options, count=512), folder, anchor=True)
        members = ensembles.Ensemble(path).at(0)
        variants = [*(Variant(name, kernel, own) for kernel in mmd.KERNELS), Variant(name, KERNEL, own, anchored=True)]
        variants += [Variant(name, KERNEL, other)] if len(ensemble_members.stacks(members)) < len(members) else []
        variants += [Variant(name, KERNEL, own, "bfloat16")] if any(member.weights for member in members) else []
        for variant in variants:
            section = {**values, **variant._asdict(), "diagnose": 0}
            made[variant] = loops.supplement_of(
                str(variant), section, path, options.device, reals=images(options, options.device)
            )
    return made


def loop_of(settings: params.Params, added: list[Supplement], batch: int, options, folder: Path) -> Clocked:
    """The loop of Diff-Instruct with the numbers of the digits and a learning rate so low that weights hardly change."""
    changes = {"model_channels": options.channels} if options.channels else {}
    network = {**settings.section("teacher", options.network)["network"], **changes}
    values = settings.section("method", "di", "digits")
    return Clocked(loops.still_job(values, network, images(options, options.device), batch, folder, added))


def measure(settings: params.Params, names: list[str], batch: int, options, folder: Path) -> list[dict]:
    """A row for each ensemble: batch, ensemble, the share for each kernel and anchored, and the two ratios (None if there is only one
    form)."""
    added = supplements(settings, names, options, folder)
    work, seen = loop_of(settings, list(added.values()), batch, options, folder), []
    for _ in range(2 + options.repeats):
        work.iterate()
        seen.append(work.seen)

    def share(variant: Variant) -> float:
        return statistics.median(one[str(variant)] / (one["rest"] + one[str(variant)]) for one in seen[2:])

    def ratio(first: Variant, second: Variant) -> float | None:
        both = first in added and second in added
        return statistics.median(one[str(first)] / one[str(second)] for one in seen[2:]) if both else None

    rows, own = [], next(iter(added)).stack
    for name in names:
        shares = {kernel: share(Variant(name, kernel, own)) for kernel in mmd.KERNELS}
        shares["anchored"] = share(Variant(name, KERNEL, own, anchored=True))
        forms = ratio(Variant(name, KERNEL, "stacked"), Variant(name, KERNEL, "loop"))
        half = ratio(Variant(name, KERNEL, own, "bfloat16"), Variant(name, KERNEL, own))
        rows.append({"batch": batch, "ensemble": name, **shares, "stacked/loop": forms, "bfloat16/float32": half})
    return rows


def line(row: dict) -> str:
    """A row of the Markdown table, with shares in percent."""
    shares = [f"{100 * row[name]:.1f} %" for name in (*mmd.KERNELS, "anchored")]
    ratios = ["–" if row[name] is None else f"{row[name]:.2f}" for name in ("stacked/loop", "bfloat16/float32")]
    return "| " + " | ".join([str(row["batch"]), row["ensemble"], *shares, *ratios]) + " |"


def head(options) -> list[str]:
    """A sentence about the measurement, and the head of the table."""
    cpu = f"{platform.machine()} CPU with {torch.backends.cpu.get_cpu_capability()}"
    machine = torch.cuda.get_device_name() if options.device == "cuda" else cpu
    network = f"`{options.network}`" + (f" with {options.channels} channels" if options.channels else "")
    shares = [f"share, {name}" for name in (*mmd.KERNELS, f"{KERNEL}, anchored")]
    columns = ["batch", "ensemble", *shares, "stacked/loop", "bfloat16/float32"]
    return [f"EL's share of an iteration of Diff-Instruct: network {network}, {options.resolution} px; {machine}, "
            f"{options.threads} thread(s), torch {torch.__version__}; medians of {options.repeats} iterations.", "",
            "| " + " | ".join(columns) + " |", "|---:|---|" + "---:|" * (len(columns) - 2)]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table, and write it if --out is given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--resolution", type=int, choices=[8, 16, 32, 64], default=8)
    parser.add_argument("--network", default="digits", help="a name under `teacher` in params.yaml")
    parser.add_argument("--channels", type=int, help="model_channels of that network (default: those in params.yaml)")
    parser.add_argument("--batch", type=int, nargs="+", help="batches (default: 16 64 256, with --quick 64)")
    parser.add_argument("--repeats", type=int, help="number of measured iterations (default: 21, with --quick 5)")
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads")
    parser.add_argument("--quick", action="store_true", help="measure less: under a minute at 8 pixels")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    options = parser.parse_args(arguments)
    options.batch = options.batch or ([64] if options.quick else [16, 64, 256])
    options.repeats = options.repeats or (5 if options.quick else 21)
    torch.set_num_threads(options.threads)
    settings, text = params.load_params(Path(__file__).parents[1] / "params.yaml"), head(options)
    names = ["conv4", f"mix8-{options.resolution}", "identity", "conv8"]
    print(*text, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for batch in options.batch:
            found = [line(row) for row in measure(settings, names, batch, options, Path(folder))]
            print(*found, sep="\n", flush=True)
            text += found
    if options.out:
        options.out.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
