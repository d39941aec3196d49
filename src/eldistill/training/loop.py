# SPDX-License-Identifier: Apache-2.0
"""The training loop, which methods, teachers and judges share.

With several processes (eldistill.training.processes) each computes its rows of every batch, and all logged numbers are
those of the whole batch.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch

from eldistill.contract import Progress
from eldistill.errors import Stopped
from eldistill.training import compute, optimisers, processes, state
from eldistill.training.interrupts import Interrupts
from eldistill.training.job import Job
from eldistill.training.monitor import Monitor
from eldistill.training.update import Update

RECIPE = ("loop", 1)
QUIET = ("_rms", "_norm", ".snr", ".cosine", ".optimal", ".bounded")  # ends of names that only log.csv shows


class Loop:
    """One training, from its saved state (or from the start) to the end.

    `iterate` makes one iteration, `run` the whole training. `average` is the running average of the published network.
    `rows` is the log: means over the iterations since the previous row.

        work = Loop(job)
        average = work.run()            # continues from the state in job.folder, if there is one
        assert work.n_images >= job.training.n_images
        last = work.rows[-1]            # {"n_images": …, "iteration": …, "generator.kl": …}

    Args:
        job: everything that the training needs. Its networks and their weights are changed in place.

    `run` raises NonFinite, Stopped, Problem or Lost, as it explains.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.across = processes.process_group_or_single()
        self.monitor = Monitor(self.across.size)
        self.update = Update(job, self.across, self.monitor)
        self.nets, self.optimisers = self.update.nets, self.update.optimisers
        self.average = copy.deepcopy(job.nets[job.published]).requires_grad_(False).eval()
        self.averaged: list[torch.Tensor] = [*self.average.parameters()]
        self.buffers = list(zip(self.average.buffers(), job.nets[job.published].buffers(), strict=True))
        self.n_images = self.iteration = self.steps = 0
        self.rows: list[dict[str, Any]] = []
        self.seconds = {"wall": 0.0, "cpu": 0.0}
        self.stop_reason: str | None = None
        self.writer = state.Writer()

    @property
    def progress(self) -> Progress:
        """The images and iterations so far."""
        return Progress(self.n_images, self.iteration, self.job.training.n_images)

    # --- one iteration ---

    def iterate(self) -> None:
        """Make all optimiser steps of one iteration and update the running average. Raises NonFinite."""
        job, progress = self.job, self.progress
        self.update.begin()
        seen: dict[str, int] = {}
        for phase in job.method.phases(job.numbers, progress):
            # Several phases of one network draw different numbers.
            again = seen[phase.net] = seen.get(phase.net, -1) + 1
            if self.iteration % phase.every == 0:
                self.update.step(phase, progress, f"{phase.net}/{again}" if again else phase.net)
        job.method.after_step(self.nets, job.numbers, progress)
        self._average(progress)
        self.monitor.flush(progress)  # the only synchronisation with a GPU in an iteration
        self.n_images += job.training.batch
        self.iteration += 1
        self.steps += 1

    @torch.no_grad()
    def _average(self, progress: Progress) -> None:
        beta = optimisers.ema_beta(self.job.training.ema, progress, self.job.training.batch)
        now = [parameter for _, parameter in self.update.named[self.job.published]]
        torch._foreach_lerp_(self.averaged, now, 1 - beta)
        for old, new in self.buffers:
            old.copy_(new)

    # --- the whole run ---

    def run(self) -> torch.nn.Module:
        """Train to the end and return the running average of the published network.

        Raises Stopped after a signal or max_seconds, with the state saved; NonFinite for a bad value, with the last
        good state kept; Problem for a damaged state; Lost if another process has ended.
        """
        job, total = self.job, self.job.training.n_images
        self._resume()
        self.across.barrier()  # no process may finish and remove the state before all have read it
        first = self.across.rank == 0
        tick_every = max(1, total // job.training.batch // job.ticks)
        wall, cpu, saved, since = time.perf_counter(), time.process_time(), time.monotonic(), time.monotonic()
        begun = time.monotonic()
        with Interrupts(self._stop), self.writer:
            while self.n_images < total:
                self.iterate()
                now = time.perf_counter(), time.process_time()
                self.seconds["wall"] += now[0] - wall
                self.seconds["cpu"] += now[1] - cpu
                wall, cpu = now
                if first and self.n_images in job.snapshots:
                    job.snapshots[self.n_images](self.average)
                if self.iteration % tick_every == 0 or self.n_images >= total:
                    self._tick(time.monotonic() - since)
                    since = time.monotonic()
                if job.max_seconds and time.monotonic() - begun > job.max_seconds:
                    self.stop_reason = "the time budget is used up"
                late = time.monotonic() - saved > job.save_seconds
                stop = self.stop_reason is not None  # a signal may come between here and the end of the step
                if self.across.size > 1:
                    stop, late = map(bool, self.across.largest(float(stop), float(late)))
                if stop or late:
                    self.save(wait=stop)
                    saved = time.monotonic()
                wall, cpu = time.perf_counter(), time.process_time()
                if stop and self.n_images < total:
                    why = self.stop_reason or "another process was stopped"
                    raise Stopped(f"{why}; saved at {self.n_images} of {total} images, the same command continues")
        self.save()
        return self.average

    def _stop(self, signal: str) -> None:
        self.stop_reason = f"stopped by {signal}"

    def count_flop(self) -> float:
        """Floating-point operations of an iteration, averaged over a cycle of the phases, as torch counts them.

        They include products, convolutions and attention of all networks, forward and backward. Call it after the
        results are written: it makes further training steps and restores only the counters.
        """
        from torch.utils.flop_counter import FlopCounterMode

        before = self.n_images, self.iteration, self.steps, dict(self.monitor.sums)
        cycle = max(phase.every for phase in self.job.method.phases(self.job.numbers, self.progress))
        self.iteration -= self.iteration % cycle
        self.n_images = max(0, self.n_images - cycle * self.job.training.batch)
        try:
            with FlopCounterMode(display=False) as counter:
                for _ in range(cycle):
                    self.iterate()
        finally:
            self.n_images, self.iteration, self.steps, self.monitor.sums = before
        return float(
            self.across.sum(
                torch.tensor(counter.get_total_flops() / cycle, dtype=torch.float64, device=self.job.device)
            )
        )

    def _together(self) -> None:
        """Add the sums of all processes in the first one and clear the others."""
        if self.across.size == 1:
            return
        names = sorted(self.monitor.sums)
        found = torch.tensor([self.monitor.sums[name] for name in names], dtype=torch.float64, device=self.job.device)
        added = self.across.sum(found).tolist()
        self.monitor.sums = dict(zip(names, added if self.across.rank == 0 else [[0.0, 0.0]] * len(names), strict=True))

    def _tick(self, seconds: float) -> None:
        self._together()
        means = {name: value / over for name, (value, over) in self.monitor.sums.items() if over}
        steps, self.steps, self.monitor.sums = self.steps, 0, {}
        self.rows.append({"n_images": self.n_images, "iteration": self.iteration, **means})
        if self.job.on_row and self.across.rank == 0:
            self.job.on_row(self.rows[-1])
        total, rate = self.job.training.n_images, steps * self.job.training.batch / max(seconds, 1e-9)
        left = (total - self.n_images) / max(rate, 1e-9)
        terms = "  ".join(f"{name} {value:.4g}" for name, value in means.items() if not name.endswith(QUIET))
        memory = compute.memory_gib(self.job.device)
        self.job.log(
            f"{self.n_images:>8}/{total} images  {rate:6.0f} images/s  {memory:5.1f} GiB  {left / 60:5.1f} min left  {terms}"
        )
        for each in self.job.supplements:
            own = {name.removeprefix(f"{each.name}."): value for name, value in means.items()}
            if bounded := own.get("bounded"):
                self.job.log(
                    f"warning: {each.name}: its weight reached a bound in {100 * bounded:.0f} % of the iterations, so its gradient is "
                    f"{own.get('share', 0):.3g} times the base loss's on average instead of the chosen share"
                )
            late = (
                2 * self.n_images >= total
            )  # a generator starts with the teacher's blurred images, which would trigger the warning
            if late and (text := each.module.warning(own)):
                self.job.log(f"warning: {each.name}: {text}")

    def save(self, wait: bool = True) -> None:
        """Save the state. The first process writes it, and any number of processes can continue from it.

        wait: return only when it is on the disk; otherwise it is written in a thread while the training goes on.
        """
        self._together()
        if self.across.rank:
            return
        nets = {**self.job.nets, "average": self.average}
        large, scalars = state.pack_memories({each.name: each.memory for each in self.job.supplements})
        numbers = {
            "n_images": self.n_images, "iteration": self.iteration, "steps": self.steps, "sums": self.monitor.sums, "rows": self.rows,
            "seconds": self.seconds, "memory": scalars,
        }  # fmt: skip
        self.writer.write(self.job.folder, state.pack_tensors(nets, self.optimisers) | large, numbers)
        if wait:
            self.writer.wait()

    def _resume(self) -> None:
        found = state.load_state(self.job.folder)
        if found is None:
            return
        tensors, numbers = found
        state.unpack_tensors(tensors, {**self.job.nets, "average": self.average}, self.optimisers, self.job.folder)
        self.n_images, self.iteration = numbers["n_images"], numbers["iteration"]
        self.monitor.sums, self.steps = numbers["sums"], numbers["steps"]
        if self.across.rank:  # the saved sums are those of all processes, and the first one has them
            self.monitor.sums = {name: [0.0, 0.0] for name in self.monitor.sums}
        self.rows, self.seconds = numbers["rows"], numbers["seconds"]
        memories = {each.name: each.memory for each in self.job.supplements}
        state.unpack_memories(tensors, numbers["memory"], memories, self.job.device, self.job.folder)
        self.job.log(f"continuing at {self.n_images} of {self.job.training.n_images} images")
