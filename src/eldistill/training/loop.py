# SPDX-License-Identifier: Apache-2.0
"""The only training loop. Methods, teachers and judges all train on it.

A generator step makes the images of the whole batch first. The gradients of the base loss and of every
supplement meet at those images, and one backward pass carries their weighted sum into the generator: a supplement
sees the whole batch however small the micro-batches are, and a weight that compares gradients costs nothing.

Several processes (eldistill.training.processes) share every batch: each does its rows, and all numbers are those of the whole.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from eldistill.contract import AtImages, Batch, Phase, Progress
from eldistill.diffusion import noise
from eldistill.diffusion.noise import Draw
from eldistill.errors import NonFinite as NonFinite
from eldistill.training import compute as speed
from eldistill.training import optimisers, reduction, state
from eldistill.training import processes as distributed
from eldistill.training import watch as guards

RECIPE = ("loop", 1)
QUIET = ("_rms", "_norm", ".snr", ".cosine", ".optimal", ".bounded")  # in log.csv, but not in the status line


class Stopped(Exception):
    """The loop saved its state and ended before the run was complete (a signal, or the time budget)."""


@dataclass
class Supplement:
    """A supplement at work: its module, its numbers, what `prepare` made, what it remembers."""

    name: str
    module: ModuleType
    numbers: Any
    tools: Any = None
    memory: dict[str, float | torch.Tensor] = field(default_factory=dict)  # scalars, perhaps of the device


@dataclass
class Job:
    """Everything that one training needs. `training` has n_images, batch, ema and an optimiser per network."""

    method: ModuleType
    numbers: Any
    training: Any
    nets: dict[str, torch.nn.Module]
    published: str
    reals: Any
    shape: tuple[int, int, int]
    seed: int
    folder: Path
    optimisers: dict[str, Any]
    fixed: dict[str, torch.nn.Module] = field(default_factory=dict)
    supplements: list[Supplement] = field(default_factory=list)
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    micro_batch: int = 0
    ticks: int = 40
    save_seconds: float = 120
    max_seconds: float = 0
    snapshots: dict[int, Callable[[torch.nn.Module], None]] = field(default_factory=dict)
    say: Callable[[str], None] = print
    arithmetic: speed.Arithmetic | None = None


class Loop:
    """One training, from its saved state (or nothing) to the end."""

    def __init__(self, job: Job):
        self.job = job
        self.across = distributed.others()
        self.watch = guards.Watch(self.across.size)
        group = job.method.group(job.numbers) if hasattr(job.method, "group") else 1
        self.own = self.across.rows(job.training.batch, group)  # rows of a batch
        self.nets = {**job.fixed, **job.nets}
        for net in job.fixed.values():
            net.requires_grad_(False).eval()
        self.optimisers = {name: optimisers.make(net, job.optimisers[name]) for name, net in job.nets.items()}
        self.average = copy.deepcopy(job.nets[job.published]).requires_grad_(False).eval()
        self.averaged = list(self.average.parameters())
        self.buffers = list(zip(self.average.buffers(), job.nets[job.published].buffers(), strict=True))
        self.modules = {name: list(net.modules()) for name, net in job.nets.items()}
        self.named = {name: list(net.named_parameters()) for name, net in job.nets.items()}
        self.reductions = reduction.reductions(self.across, self.named)
        # EDM2's forced normalisation: once after a step, never inside a graph that may hold the weights twice.
        forced = job.method.normalised(job.numbers) if hasattr(job.method, "normalised") else job.nets
        self.normalised = {
            name: [m for m in each if name in forced and hasattr(m, "normalise_weight")]
            for name, each in self.modules.items()
        }
        offers = lambda function: [each for each in job.supplements if hasattr(each.module, function)]  # noqa: E731
        self.at_images, self.critics = offers("generator_terms"), offers("critic_terms")
        self.direct = [each for each in offers("direct_terms") if each.numbers.weight]
        self.n_images = self.iteration = self.steps = 0
        self.rows: list[dict] = []
        self.seconds = {"wall": 0.0, "cpu": 0.0}
        self.stop_reason: str | None = None
        self.writer = state.Writer()
        self._labels = None
        self._images: torch.Tensor | None = None

    @property
    def progress(self) -> Progress:
        """Where the run is."""
        return Progress(self.n_images, self.iteration, self.job.training.n_images)

    # --- one iteration ---

    def iterate(self) -> None:
        """All phases once, then the averages."""
        job, progress = self.job, self.progress
        self._labels = self._images = None  # `same` and `reuse` reach back to phases of this iteration
        seen: dict[str, int] = {}
        for phase in job.method.phases(job.numbers, progress):
            # Several phases of one network draw different numbers.
            again = seen[phase.net] = seen.get(phase.net, -1) + 1
            if self.iteration % phase.every == 0:
                self._phase(phase, progress, f"{phase.net}/{again}" if again else phase.net)
        if hasattr(job.method, "after_step"):
            job.method.after_step(self.nets, job.numbers, progress)
        self._average(progress)
        self.watch.look(progress)  # the one place where a GPU is waited for
        self.n_images += job.training.batch
        self.iteration += 1
        self.steps += 1

    def _phase(self, phase: Phase, progress: Progress, scope: str) -> None:
        job = self.job
        for name in job.nets:
            training = name == phase.net or (name == "generator" and phase.generator_mode == "train")
            self._set(name, training, name == phase.net)
        draw = Draw(job.seed, scope, self.n_images, job.training.batch, job.device, job.dtype)[self.own]
        if phase.labels == "fresh" or self._labels is None:
            self._labels = job.reals.labels(draw.on("cpu").integers("label", len(job.reals)))
        batch = Batch(draw, self._labels, job.shape, progress, job.reals)
        optimiser, numbers = self.optimisers[phase.net], job.optimisers[phase.net]
        optimiser.zero_grad(set_to_none=True)
        (self._generator if phase.net == "generator" else self._critic)(phase, batch)
        self._sum_gradients(phase.net)
        self._check_gradients(phase.net, numbers)
        optimiser.param_groups[0]["lr"] = optimisers.learning_rate(numbers, progress)
        optimiser.step()
        for layer in self.normalised[phase.net]:
            layer.normalise_weight()

    def _last(self, name: str, last: bool) -> contextlib.AbstractContextManager:
        """Around a backward pass. last: nothing is added to the gradients of this network in this phase after it."""
        return self.reductions[name].last_pass() if last and self.reductions else contextlib.nullcontext()

    def _sum_gradients(self, name: str) -> None:
        """Sum the gradients of all processes. Raises NonFinite for what this process has computed itself."""
        if not self.reductions:
            return
        # All sums come before an error: no process waits for one that has stopped.
        self.watch.ask([self.reductions[name].finish()], self.reductions[name].settle)
        self.watch.look(self.progress)

    def _look_together(self) -> None:
        """Look, where another process may have found a bad value of its own and has ended: its sentence is the better one."""
        try:
            self.watch.look(self.progress)
        except NonFinite:
            self.across.barrier()
            raise

    def _set(self, name: str, training: bool, gradient: bool) -> None:
        if self.job.device != "cpu":
            self.job.nets[name].train(training).requires_grad_(gradient)
            return
        # The same without a walk through the module tree, and without asking which kind of attribute is set: on a CPU that
        # costs a tenth of a small step.
        for module in self.modules[name]:
            module.__dict__["training"] = training
        for _, parameter in self.named[name]:
            parameter.requires_grad = gradient

    def _parts(self, size: int) -> list[slice]:
        step = self.job.micro_batch or size
        if hasattr(self.job.method, "group"):
            together = self.job.method.group(self.job.numbers)
            step = max(together, step // together * together)
        return [slice(start, min(start + step, size)) for start in range(0, size, step)]

    def _generate(self, batch: Batch, part: slice) -> torch.Tensor:
        with noise.masks(batch.draw[part], "images"):
            return self.job.method.generate(self.nets, batch[part], self.job.numbers)

    def _critic(self, phase: Phase, batch: Batch) -> None:
        job = self.job
        made = []
        for part in self._parts(batch.size):
            images = None
            if phase.images == "reuse" and self._images is not None:
                images = self._images[part]
            elif phase.images != "none":
                with torch.no_grad():
                    images = self._generate(batch, part)
                self.watch.finite("images", images)
                made.append(images)
            share = (part.stop - part.start) / job.training.batch
            with noise.masks(batch.draw[part], "terms"):
                terms = job.method.critic_terms(self.nets, batch[part], images, job.numbers)
            for each in self.critics if phase.net == "fake_score" else ():
                with noise.masks(batch.draw[part], each.name):
                    more = each.module.critic_terms(each.tools, self.nets, batch[part], images, each.numbers)
                terms = {**terms, **{f"{each.name}.{name}": value for name, value in more.items()}}
            for name, value in terms.items():
                self.watch.finite(f"{phase.net}.{name}", value)
                self.watch.count(f"{phase.net}.{name}", value, share)
            with self._last(phase.net, part.stop == batch.size):
                (sum(terms.values()) * share).backward()
        if made:
            self._images = torch.cat(made)

    def _generator(self, phase: Phase, batch: Batch) -> None:
        job = self.job
        parts = self._parts(batch.size)
        made: dict[int, torch.Tensor] = {}

        def images_of(index: int) -> torch.Tensor:
            # One micro-batch: keep its graph. Several: make the images now, replay each with a graph later.
            if index not in made:
                with torch.set_grad_enabled(len(parts) == 1):
                    made[index] = self._generate(batch, parts[index])
                self.watch.finite("images", made[index])
            return made[index].detach()

        gradients: dict[int, torch.Tensor] = {}
        for index, part in enumerate(parts):
            share = (part.stop - part.start) / job.training.batch
            with noise.masks(batch.draw[part], "terms"):
                terms = job.method.generator_terms(
                    self.nets, batch[part], lambda index=index: images_of(index), job.numbers
                )
            direct = []
            for name, term in terms.items():
                value = term.value if isinstance(term, AtImages) else term
                self.watch.finite(f"generator.{name}", value)
                self.watch.count(f"generator.{name}", value, share)
                if not isinstance(term, AtImages):
                    direct.append(term)
                elif term.gradient is not None:
                    self.watch.finite(f"generator.{name}: gradient at the images", term.gradient)
                    gradients[index] = gradients.get(index, 0) + term.gradient * share
            # The last pass, if nothing is pulled through the images afterwards.
            ends = index == len(parts) - 1 and not gradients and not self.at_images
            if direct:
                with self._last("generator", ends and not self.direct):
                    (sum(direct) * share).backward()
            for each in self.direct:
                self._direct(each, batch[part], share, ends and each is self.direct[-1])

        def pull(gradient_of: Callable[[int], torch.Tensor], again: bool = False) -> None:
            for index, part in enumerate(parts):
                graph = made[index] if len(parts) == 1 else self._generate(batch, part)
                with self._last("generator", index == len(parts) - 1 and not again):
                    graph.backward(gradient_of(index), retain_graph=again)

        if self.at_images:
            images = torch.cat([images_of(index) for index in range(len(parts))])
            if gradients:
                whole = self._meet_at_images(
                    images, torch.cat([gradients[index] for index in range(len(parts))]), batch
                )
                gradients = {index: whole[part] for index, part in enumerate(parts)}
            else:
                self._meet_at_weights(images, batch, lambda own: pull(lambda index: own[parts[index]], again=True))
        if gradients:
            pull(lambda index: gradients[index])
        if made:
            self._images = torch.cat([made[index].detach() for index in range(len(parts))])

    def _direct(self, each: Supplement, batch: Batch, share: float, last: bool) -> None:
        with noise.masks(batch.draw, each.name):
            terms = each.module.direct_terms(each.tools, self.nets, batch, each.numbers)
        for name, value in terms.items():
            self.watch.finite(f"{each.name}.{name}", value)
            self.watch.count(f"{each.name}.{name}", value, share)
        with self._last("generator", last):
            (sum(terms.values()) * (share * each.numbers.weight)).backward()

    def _meet_at_images(self, images: torch.Tensor, base: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The base loss's gradient at the images plus that of every supplement."""
        total = base
        strength = self._rms(base)
        self.watch.count("generator.base_rms", strength)
        for each in self.at_images:
            own = self._own_gradient(each, images, batch, base)
            weight = self._weigh(each, strength, self._rms(own), batch)
            if _acts(weight):
                total = total + weight * own
        return total

    def _meet_at_weights(self, images: torch.Tensor, batch: Batch, pull: Callable[[torch.Tensor], None]) -> None:
        """The base loss has no gradient at the images: those of base and supplements meet at the weights.

        Their strengths are compared at the last layer, the nearest thing to the images that both pass.
        """
        weights = [p for _, p in self.named["generator"]]
        base = [p.grad for p in weights]
        last = max((p.ndim > 1, index) for index, p in enumerate(weights) if p.grad is not None)[1]
        strength = _rms(self.across.sum(base[last]))
        self.watch.count("generator.base_rms", strength)
        total = base
        for each in self.at_images:
            for p in weights:
                p.grad = None
            pull(self._own_gradient(each, images, batch))
            own = [p.grad for p in weights]
            weight = self._weigh(each, strength, _rms(self.across.sum(own[last])), batch)
            if _acts(weight):
                total = [
                    a if b is None else weight * b if a is None else a + weight * b
                    for a, b in zip(total, own, strict=True)
                ]
        for p, gradient in zip(weights, total, strict=True):
            p.grad = gradient

    def _own_gradient(
        self, each: Supplement, images: torch.Tensor, batch: Batch, base: torch.Tensor | None = None
    ) -> torch.Tensor:
        # At the images.
        terms = each.module.generator_terms(each.tools, images, batch, each.numbers)
        # A supplement that asks the other processes gives the loss of the whole batch, any other that of the own rows.
        whole = getattr(each.tools, "across", None) is not None
        share = None if whole else batch.size / self.job.training.batch
        for name, term in terms.items():
            self.watch.finite(f"{each.name}.{name}", term.value)
            if term.gradient is not None:
                self.watch.finite(f"{each.name}.{name}: gradient at the images", term.gradient)
            self.watch.count(f"{each.name}.{name}", term.value, share)
        gradients = [term.gradient for term in terms.values() if term.gradient is not None]
        own = gradients[0] if len(gradients) == 1 else sum(gradients)
        own = own if share in (None, 1) else own * share
        loss = sum(term.value for term in terms.values() if term.gradient is not None)
        if hasattr(each.module, "diagnose"):
            both = [None if gradient is None else self.across.gather(gradient) for gradient in (base, own)]
            self.watch.later(
                each.module.diagnose(loss, *both, batch, each.numbers, each.memory), prefix=f"{each.name}."
            )
        return own

    def _weigh(self, each: Supplement, base: torch.Tensor, own: torch.Tensor, batch: Batch) -> float | torch.Tensor:
        # base, own: root mean squares of the two gradients, scalars of the device.
        size = self.job.training.batch
        weight = each.module.weight(base, own, size, each.numbers, batch.progress, each.memory)
        self.watch.count(f"{each.name}.gradient_rms", own)
        self.watch.count(f"{each.name}.weight", weight.factor)
        # The share of the base loss's gradient that it has, if that has one.
        self.watch.count(f"{each.name}.share", weight.factor * own / base, known=base != 0)
        self.watch.count(f"{each.name}.bounded", weight.bounded)
        return weight.factor

    @torch.no_grad()
    def _average(self, progress: Progress) -> None:
        beta = optimisers.ema_beta(self.job.training.ema, progress, self.job.training.batch)
        now = [parameter for _, parameter in self.named[self.job.published]]
        torch._foreach_lerp_(self.averaged, now, 1 - beta)
        for old, new in self.buffers:
            old.copy_(new)

    def _rms(self, own: torch.Tensor) -> torch.Tensor:
        """Root of the mean square over the images of the whole batch."""
        if self.across.size == 1:
            return _rms(own)
        squares = self.across.sum(own.double().square().sum())
        return (squares / (own[0].numel() * self.job.training.batch)).sqrt()

    def _check_gradients(self, name: str, numbers) -> None:
        found = [(key, gradient) for key, p in self.named[name] if (gradient := p.grad) is not None]
        norm = torch.nn.utils.get_total_norm([gradient for _, gradient in found])
        parts = ((f"gradient of {name}.{key}", gradient) for key, gradient in found)
        self.watch.finite(f"gradient norm of {name}", norm, parts)
        self.watch.count(f"{name}.gradient_norm", norm)
        if self.across.size > 1:
            self._look_together()
        if numbers.clip:
            torch.nn.utils.clip_grads_with_norm_([p for _, p in self.named[name]], numbers.clip, norm)
        if numbers.clip_value:
            torch.nn.utils.clip_grad_value_([p for _, p in self.named[name]], numbers.clip_value)

    # --- the whole run ---

    def run(self) -> torch.nn.Module:
        """Train to the end and return the running average. Raises NonFinite or Stopped, the state being saved."""
        job, total = self.job, self.job.training.n_images
        self._resume()
        self.across.barrier()  # nobody finishes, and clears away, what another has still to read
        first = self.across.rank == 0
        tick_every = max(1, total // job.training.batch // job.ticks)
        wall, cpu, saved, since = time.perf_counter(), time.process_time(), time.monotonic(), time.monotonic()
        begun = time.monotonic()
        with _signals(self), self.writer:
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

    def count_flop(self) -> float:
        """Floating-point operations of an iteration, as torch counts them: the mean over a cycle of the phases.

        Of products, convolutions and attention, forwards and backwards, of all networks. To be called when the results
        are written: it trains on, from what is in memory, and puts only the counters back.
        """
        from torch.utils.flop_counter import FlopCounterMode

        before = self.n_images, self.iteration, self.steps, dict(self.watch.sums)
        cycle = max(phase.every for phase in self.job.method.phases(self.job.numbers, self.progress))
        self.iteration -= self.iteration % cycle
        self.n_images = max(0, self.n_images - cycle * self.job.training.batch)
        try:
            with FlopCounterMode(display=False) as counter:
                for _ in range(cycle):
                    self.iterate()
        finally:
            self.n_images, self.iteration, self.steps, self.watch.sums = before
        return float(
            self.across.sum(
                torch.tensor(counter.get_total_flops() / cycle, dtype=torch.float64, device=self.job.device)
            )
        )

    def _together(self) -> None:
        """The sums of all processes, in the first one."""
        if self.across.size == 1:
            return
        names = sorted(self.watch.sums)
        found = torch.tensor([self.watch.sums[name] for name in names], dtype=torch.float64, device=self.job.device)
        added = self.across.sum(found).tolist()
        self.watch.sums = dict(zip(names, added if self.across.rank == 0 else [[0.0, 0.0]] * len(names), strict=True))

    def _tick(self, seconds: float) -> None:
        self._together()
        means = {name: value / over for name, (value, over) in self.watch.sums.items() if over}
        steps, self.steps, self.watch.sums = self.steps, 0, {}
        self.rows.append({"n_images": self.n_images, "iteration": self.iteration, **means})
        total, rate = self.job.training.n_images, steps * self.job.training.batch / max(seconds, 1e-9)
        left = (total - self.n_images) / max(rate, 1e-9)
        terms = "  ".join(f"{name} {value:.4g}" for name, value in means.items() if not name.endswith(QUIET))
        memory = memory_gib(self.job.device)
        self.job.say(
            f"{self.n_images:>8}/{total} images  {rate:6.0f} images/s  {memory:5.1f} GiB  {left / 60:5.1f} min left  {terms}"
        )
        for each in self.job.supplements:
            own = {name.removeprefix(f"{each.name}."): value for name, value in means.items()}
            if bounded := own.get("bounded"):
                self.job.say(
                    f"warning: {each.name}: its weight reached a bound in {100 * bounded:.0f} % of the iterations; its gradient "
                    f"is {own.get('share', 0):.3g} of the base loss's on average, and not what was asked for"
                )
            late = 2 * self.n_images >= total  # a generator begins with the teacher's blurred guesses
            if late and hasattr(each.module, "warning") and (text := each.module.warning(own)):
                self.job.say(f"warning: {each.name}: {text}")

    def save(self, wait: bool = True) -> None:
        """Write the state; of several processes the first one does, and any number of them can read it.

        wait: until it is on the disk; otherwise the training goes on meanwhile.
        """
        self._together()
        if self.across.rank:
            return
        nets = {**self.job.nets, "average": self.average}
        numbers = {
            "n_images": self.n_images, "iteration": self.iteration, "steps": self.steps, "sums": self.watch.sums, "rows": self.rows,
            "seconds": self.seconds,
            "memory": {s.name: {key: float(value) for key, value in s.memory.items()} for s in self.job.supplements},
        }  # fmt: skip
        self.writer.write(self.job.folder, state.pack(nets, self.optimisers), numbers)
        if wait:
            self.writer.wait()

    def _resume(self) -> None:
        found = state.load(self.job.folder)
        if found is None:
            return
        tensors, numbers = found
        state.unpack(tensors, {**self.job.nets, "average": self.average}, self.optimisers, self.job.folder)
        self.n_images, self.iteration = numbers["n_images"], numbers["iteration"]
        self.watch.sums, self.steps = numbers["sums"], numbers["steps"]
        if self.across.rank:  # they are those of all processes
            self.watch.sums = {name: [0.0, 0.0] for name in self.watch.sums}
        self.rows, self.seconds = numbers["rows"], numbers["seconds"]
        for supplement in self.job.supplements:
            supplement.memory.update(numbers["memory"].get(supplement.name, {}))
        self.job.say(f"continuing at {self.n_images} of {self.job.training.n_images} images")


def _rms(tensor: torch.Tensor) -> torch.Tensor:
    """Root of the mean square over all entries, in float64."""
    return tensor.double().square().mean().sqrt()


def _acts(weight: float | torch.Tensor) -> bool:
    """Whether a supplement has a weight; what only the device knows may be 0 and is multiplied."""
    return isinstance(weight, torch.Tensor) or weight != 0


def memory_gib(device: str) -> float:
    """The most memory that this process has held: of the GPU, or on a CPU of the whole process, torch included."""
    if "cuda" in str(device):
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class _signals:
    """SIGTERM and SIGINT end the loop after the current step; a second one ends it at once."""

    def __init__(self, loop: Loop):
        self.loop = loop

    def __enter__(self):
        self.before = {}

        def stop(number, _frame):
            self.loop.stop_reason = f"stopped by {signal.Signals(number).name}"
            signal.signal(number, self.before[number])

        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, stop)
        except ValueError:  # not in the main thread: signals stay with whoever has it
            self.before = {}

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
