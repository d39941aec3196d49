# SPDX-License-Identifier: Apache-2.0
"""The contract of methods and supplements: their functions, and the values that pass between them and the loop.

A method has a frozen dataclass `Numbers`, a literal `RECIPE`, and these functions (those in brackets are optional):

    phases(numbers, progress) -> [Phase, …]                         optimiser steps of one iteration, in order
    generator(teacher, start, numbers) -> Module                    student before training; start: generator of another run, or None
    networks(teacher, numbers, seed) -> {name: Module}              further networks; seed: for weights that are not copied
    generate(nets, batch, numbers) -> images [n, c, h, w]           one-step images of nets["generator"], see below
    [generator_terms(nets, batch, images, numbers) -> Terms]        loss of the generator; images() makes [n, c, h, w], detached
    [critic_terms(nets, batch, images, numbers) -> Scalars]         loss of the further networks; images: a tensor, or None
    [after_step(nets, numbers, progress)]                           at the end of an iteration, before the running average
    [normalised(numbers) -> (name, …)]                              networks with EDM2's forced normalisation; without it all
    [group(numbers) -> int]                                         images that must share a micro-batch; without it 1
    [passes(numbers, encoder) -> float]                             cost of an image in forward passes, for `cost`; encoder: its share
    [passes_of(numbers) -> {"generator": f, "teacher": f}]          those of two networks among them, whose sizes may differ
    sampler(numbers) -> dict                                        {"steps": {"1": [sigma], …}}, see eldistill.sampling.generators

generate returns D(sigma z; sigma) with z = batch.draw.normal("z", *batch.shape) and sigma the one level of "1" in
sampler(numbers)["steps"]. A student with the weights of its teacher must give the teacher's image, which is checked before the
first step. It is called with and without a graph. The student has an attribute `boundary` (networks/precond.py).

A method file with OTHER_SIZE = True works with a generator that is smaller or larger than the teacher (`generator_network`, which
distil/student.py makes): `generator` then gets that network as teacher, `networks` the teacher.

Section `generator` of params.yaml has the optimiser of the generator, `critic` that of all others. A network that no phase
trains is in eval mode; after_step may change it. Two names mean something: critic terms of supplements join the phases of
fake_score, and target is set to the generator where a run starts from another one. A file whose critic_terms train no fake_score
names those networks in a literal CRITICS.

A method sees micro-batches, so each term is a mean over images. An AtImages term gives its gradient at the images, a scalar is
backpropagated as it is and needs a graph to the weights. images is a function, so that a loss without images does not pay for them.
Without generator_terms, supplements alone train the generator. Their weighting must be fixed: no base gradient to compare with.

critic_terms is called in each phase of a network other than the generator, and is not told of which one: it returns the terms
of all of them, and only the network of the phase receives a gradient. images is None if the phase has images="none".

A supplement has `Numbers`, `RECIPE`, `prepare(numbers, setting) -> prepared`, and of these what it needs:

    networks(nets, prepared, numbers, seed)                         adds weights to the networks, in place
    generator_terms(prepared, images, batch, numbers) -> AtAll      loss at the images [n, c, h, w] of the batch, all micro-batches
    recall(prepared, numbers, memory) -> prepared                   with what generator_terms needs of memory; a copy
    observe(prepared, terms, numbers, memory)                       keeps in memory what recall and weight need of these terms
    weight(base, own, batch, numbers, progress, memory) -> Weight   factor of that gradient; batch: int, images in an iteration
    direct_terms(prepared, nets, batch, numbers) -> Scalars         loss with a pass of its own; the loop multiplies it by numbers.weight
    critic_terms(prepared, nets, batch, images, numbers) -> Scalars added as they are to those of the method, for fake_score only
    diagnose(value, base, own, batch, numbers, memory) -> Later     for the log; value: a scalar; base (or None), own: gradients
    warning(means) -> sentence or None                              of the means of a row of the log
    passes(numbers, encoder) -> float                               as for a method
    passes_of(numbers) -> {name: f}                                 as for a method

A supplement with generator_terms must have weight, and the other way round; the order is recall, generator_terms, observe, weight.
A term whose gradient is None is logged and not trained; for a method also one whose gradient another term contains. A supplement
with TARGET_HELD = True gives the gradient of a distance to targets that it holds fixed, which is not the derivative of its value.

In weight, base and own are root mean squares of the gradients of base loss and supplement, scalars on the device that must not
be read, because reading waits for a GPU. They are taken where the gradients are added: at the images, or, if the base loss has
none there, at the generator's output layer, where base includes the direct terms of other supplements.

With several processes, images are the rows of this process and the loop sums gradients. If prepared has an attribute `across`
that is not None, the supplement gathers from all processes and returns the loss of the complete batch. observe is given the terms
of this process, and what it remembers must be equal in all.

memory is a dict of scalars (floats or tensors on the device), saved with the state as floats, and of larger tensors, saved as they
are. All random numbers come from batch.draw; global generators are not used.

eldistill.ensemble has the contract of a family of embedding networks. docs/architecture.md lists what the tests ask of a method.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, Self

import torch

from eldistill import omitted
from eldistill.diffusion.draws import Draw
from eldistill.errors import Problem
from eldistill.registry import available

COVERED_BY = "loop"
Nets = dict[str, torch.nn.Module]  # networks by name: generator, teacher, fake_score, …
Denoiser = Any  # a network of eldistill.networks: a torch module, with what precond.py and losses/head.py add to it
Codec = dict[str, Any]  # how pixels or latents are encoded: mean, std


@dataclass(frozen=True)
class Progress:
    """The progress of a run."""

    n_images: int  # iterations so far times the batch, however many phases generate images
    iteration: int  # iterations so far
    total: int  # images until the end of the run


@dataclass(frozen=True)
class Phase:
    """One optimiser step of an iteration.

    DMD2, for example, trains the generator in every fifth iteration, and fake_score on the same images:

        order = [
            Phase("generator", every=5),
            Phase("fake_score", images="reuse", labels="same", generator_mode="eval"),
        ]

    Raises ValueError for images that are reused with other labels.
    """

    net: str  # name of the network that is trained
    every: int = 1  # the phase is part of the iterations 0, every, 2 every, …
    # These two are for phases of networks other than the generator, which may need generated images:
    images: str = "fresh"  # fresh: new images; reuse: those of the previous phase of this iteration, if any; none
    generator_mode: str = "train"  # mode of the generator while it makes images: train or eval
    labels: str = "fresh"  # fresh: new labels; same: those of the previous phase of this iteration

    def __post_init__(self) -> None:
        if self.images == "reuse" and self.labels != "same":
            raise ValueError("a phase that reuses images must reuse their labels: labels='same'")


@dataclass(frozen=True)
class AtImages:
    """A loss term, given by its value (a scalar) and its gradient at the images [n, c, h, w], which is detached.

    gradient: of the mean over the n images, so each row is of order 1/n; the loop multiplies it by the share that the micro-batch
    has in the batch. None if the gradient of another term includes it, or if the term is for the log only.
    """

    value: torch.Tensor
    gradient: torch.Tensor | None


@dataclass(frozen=True)
class Weight:
    """The factor of a supplement's gradient, whether a bound limited it, and further numbers for the log, by name; also on the device."""

    factor: float | torch.Tensor
    bounded: bool | torch.Tensor = False
    logged: dict[str, float | torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Later:
    """Numbers for the log that are computed from scalars on the device after these have been read back.

    finish: is given the values of the scalars in order and returns numbers by name. It may change the memory.
    """

    scalars: list[torch.Tensor]
    finish: Callable[..., dict[str, float]]


Terms = dict[str, AtImages | torch.Tensor]  # by name: terms at the images; scalars are backpropagated as they are
AtAll = dict[str, AtImages]  # terms at the images of the whole batch
Scalars = dict[str, torch.Tensor]
Memory = dict[str, Any]  # what a supplement remembers: floats, scalars of the device, and tensors


class RealImages(Protocol):
    """Encoded real images, as in data/dataset.py. Latents also have `fresh(indices, normal)`: with new noise of their encoder."""

    codec: Codec
    sigma_data: float  # standard deviation of the encoded images

    def __len__(self) -> int: ...

    def labels(self, indices: torch.Tensor) -> torch.Tensor | None:
        """One-hot labels [n, L] of rows [n], or None."""

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images [n, c, h, w] and labels [n, L], or None, of rows [n]."""


@dataclass(frozen=True)
class Batch:
    """The images of one phase: their random numbers, labels, and real images.

    A purpose, such as "z", names a stream of random numbers: within a phase the same purpose gives the same numbers, in another
    phase or iteration others.

    A slice is a micro-batch, with the same random numbers for the same images.

        z = batch.draw.normal("z", *batch.shape)          # unit noise [n, c, h, w]
        real, labels = batch.real("label")                # encoded images [n, c, h, w]; one-hot labels [n, L] or None
        first = batch[:2]                                 # images 0 and 1
        assert torch.equal(first.draw.normal("z", *batch.shape), z[:2])

    Slices are contiguous. `real` raises ValueError for a batch without real images.
    """

    draw: Draw  # random numbers of its n images
    labels: torch.Tensor | None  # one-hot [n, L]
    shape: tuple[int, int, int]  # (c, h, w) of an image
    progress: Progress  # at the beginning of the iteration
    reals: RealImages | None = field(repr=False, default=None)

    @property
    def size(self) -> int:
        """Number of images."""
        return self.draw.size

    def __getitem__(self, part: slice) -> Batch:
        labels = None if self.labels is None else self.labels[part]
        return Batch(self.draw[part], labels, self.shape, self.progress, self.reals)

    def real(self, purpose: str, each: int = 1) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw real images independently with replacement, `each` of them for every image of the batch.

        purpose: name of the random numbers; the same purpose gives the same images. In a phase with fresh labels "label" gives
        the images whose labels `batch.labels` are. Latents get new noise of their encoder. Returns encoded images
        [n * each, c, h, w] and one-hot labels [n * each, L] or None. Raises ValueError for a batch without real images.
        """
        if self.reals is None:
            raise ValueError(f"this batch has no real images, which {purpose!r} needs")
        indices = self.draw.on("cpu").integers(purpose, len(self.reals), each).reshape(-1)
        if not hasattr(self.reals, "fresh"):
            return self.reals.take(indices)

        def normal(*size: int) -> torch.Tensor:
            return self.draw.normal(f"{purpose}/encoder", each, *size).flatten(0, 1)

        images: tuple[torch.Tensor, torch.Tensor | None] = self.reals.fresh(indices, normal)
        return images


@dataclass(frozen=True)
class Setting:
    """The facts, files and device of a run, which `prepare` of a supplement is given."""

    sigma_data: float  # standard deviation of the encoded images
    seed: int  # of the run
    sigma_init: float  # noise level that the generator starts from
    device: str = "cpu"
    dtype: torch.dtype = torch.float32  # of its computations
    ensemble: Path | None = None  # manifest of the ensemble that its numbers name
    pairs: Path | None = None  # .npz with pairs of noise and the teacher's image
    codec: Codec = field(default_factory=dict)  # of the data
    label_dim: int = 0  # width of one-hot labels; 0: no labels
    micro_batch: int = 0  # images on the device at once; 0: the whole batch
    teacher: torch.nn.Module | None = None  # frozen
    reals: RealImages | None = None  # the real images of the run


# --- loaded modules ---


class Functions:
    """The functions of a module by name, with defaults for those that its file omits."""

    @classmethod
    def of(cls, module: Any) -> Self:
        """Take them from a module, or from any object that has them as attributes."""
        there = vars(module)
        names = (name for name in cls.__annotations__ if name in there)
        return cls(**{name: there[name] for name in names})

    def offers(self, function: str) -> bool:
        """Whether the module itself has a function of this name, so that no default is used."""
        return getattr(self, function) is not getattr(type(self), function, None)


@dataclass(frozen=True)
class Method(Functions):
    """The functions of a loaded method. The docstring of this module lists their arguments and results."""

    phases: Callable[[Any, Progress], list[Phase]]
    Numbers: Callable[..., Any] = omitted.unoffered
    generator: Callable[[torch.nn.Module, torch.nn.Module | None, Any], torch.nn.Module] = omitted.unoffered
    networks: Callable[[torch.nn.Module, Any, int], Nets] = omitted.unoffered
    generate: Callable[[Nets, Batch, Any], torch.Tensor] = omitted.unoffered
    generator_terms: Callable[[Nets, Batch, Callable[[], torch.Tensor], Any], Terms] = omitted.no_terms
    critic_terms: Callable[[Nets, Batch, Any, Any], Scalars] = omitted.unoffered
    after_step: Callable[[Nets, Any, Progress], None] = omitted.nothing
    normalised: Callable[[Any], tuple[str, ...] | None] = omitted.nothing  # None: all networks
    group: Callable[[Any], int] = omitted.one
    passes: Callable[[Any, float], float] = omitted.unoffered
    passes_of: Callable[[Any], dict[str, float]] = omitted.unoffered
    sampler: Callable[[Any], dict[str, Any]] = omitted.unoffered


@dataclass(frozen=True)
class SupplementModule(Functions):
    """The functions of a loaded supplement. The docstring of this module lists their arguments and results."""

    Numbers: Callable[..., Any] = omitted.unoffered
    prepare: Callable[[Any, Setting], Any] = omitted.nothing
    networks: Callable[[Nets, Any, Any, int], None] = omitted.nothing
    generator_terms: Callable[[Any, torch.Tensor, Batch, Any], AtAll] = omitted.no_terms
    recall: Callable[[Any, Any, Memory], Any] = omitted.first
    observe: Callable[[Any, AtAll, Any, Memory], None] = omitted.nothing
    weight: Callable[[Any, Any, int, Any, Progress, Memory], Weight] = omitted.unoffered
    direct_terms: Callable[[Any, Nets, Batch, Any], Scalars] = omitted.no_terms
    critic_terms: Callable[[Any, Nets, Batch, Any, Any], Scalars] = omitted.no_terms
    diagnose: Callable[[torch.Tensor, Any, torch.Tensor, Batch, Any, Memory], Later] = omitted.unoffered
    warning: Callable[[dict[str, float]], str | None] = omitted.nothing
    passes: Callable[[Any, float], float] = omitted.unoffered
    passes_of: Callable[[Any], dict[str, float]] = omitted.no_terms


def load_method(file: str) -> Method:
    """Load a method from methods/<file>.py.

        method = load_method("dmd2")
        numbers = make_numbers(method, {"every": 3})
        order = method.phases(numbers, Progress(n_images=0, iteration=0, total=1000))
        assert [phase.net for phase in order] == ["generator", "fake_score"] and order[0].every == 3

    Raises Problem for an unknown file, with the names of all files.
    """
    return Method.of(load_module("methods", file))


def load_supplement(file: str) -> SupplementModule:
    """Load a supplement from supplements/<file>.py.

        supplement = load_supplement("embedding")
        numbers = make_numbers(supplement, {"weight": 0.5, "weighting": "fixed", "warmup": 0})
        progress = Progress(n_images=0, iteration=0, total=1000)
        assert supplement.weight(1.0, 2.0, 64, numbers, progress, {}).factor == 0.5

    Raises Problem for an unknown file, with the names of all files.
    """
    return SupplementModule.of(load_module("supplements", file))


def load_module(kind: str, file: str) -> ModuleType:
    """Import kind/file.py; kind: methods, supplements, ensemble or metrics. Raises Problem for an unknown file."""
    if file not in (there := available(kind)):
        raise Problem(f"{kind}/ has no file {file!r}; it has {', '.join(there)}")
    return importlib.import_module(f"eldistill.{kind}.{file}")
