# SPDX-License-Identifier: Apache-2.0
"""The contract between the loop and a method, a supplement or a family: their functions, and the values that pass between them.

A method has a frozen dataclass `Numbers`, a literal `RECIPE`, and these functions (those in brackets are optional):

    phases(numbers, progress) -> [Phase, …]                         optimiser steps of one iteration, in order
    generator(teacher, start, numbers) -> Module                    student before training; start: generator of another run, or None
    networks(teacher, numbers, seed) -> {name: Module}              further networks; seed: for weights that are not copied
    generate(nets, batch, numbers) -> images [n, c, h, w]           one-step images of nets["generator"], see below
    generator_terms(nets, batch, images, numbers) -> Terms          loss of the generator; images() makes [n, c, h, w], detached
    [critic_terms(nets, batch, images, numbers) -> Scalars]         loss of the further networks; images: a tensor, or None
    [after_step(nets, numbers, progress)]                           at the end of an iteration, before the running average
    [normalised(numbers) -> (name, …)]                              networks with EDM2's forced normalisation; without it all
    [group(numbers) -> int]                                         images that must share a micro-batch; without it 1
    [passes(numbers, encoder) -> float]                             cost of an image in forward passes, for `cost`; encoder: its share
    sampler(numbers) -> dict                                        {"steps": {"1": [sigma], …}}, see eldistill.sampling.generators

generate returns D(sigma z; sigma) with z = batch.draw.normal("z", *batch.shape) and sigma the one level of "1" in
sampler(numbers)["steps"]. A student with the weights of its teacher must give the teacher's image, which is checked before the
first step. It is called with and without a graph. The student has an attribute `boundary` (networks/precond.py).

Section `generator` of params.yaml has the optimiser of the generator, `critic` that of all others. A network that no phase
trains is in eval mode; after_step may change it. Two names mean something: critic terms of supplements join the phases of
fake_score, and target is set to the generator where a run starts from another one.

A method sees micro-batches, so each term is a mean over images. An AtImages term gives its gradient at the images, a scalar is
backpropagated as it is and needs a graph to the weights. images is a function, so that a loss without images does not pay for them.

critic_terms is called in each phase of a network other than the generator, and is not told of which one: it returns the terms
of all of them, and only the network of the phase receives a gradient. images is None if the phase has images="none".

A supplement has `Numbers`, `RECIPE`, `prepare(numbers, setting) -> prepared`, and of these what it needs:

    networks(nets, prepared, numbers, seed)                         adds weights to the networks, in place
    generator_terms(prepared, images, batch, numbers) -> AtAll      loss at the images [n, c, h, w] of the batch, all micro-batches
    weight(base, own, batch, numbers, progress, memory) -> Weight   factor of that gradient; batch: int, images in an iteration
    direct_terms(prepared, nets, batch, numbers) -> Scalars         loss with a pass of its own; the loop multiplies it by numbers.weight
    critic_terms(prepared, nets, batch, images, numbers) -> Scalars added as they are to those of the method, for fake_score only
    diagnose(value, base, own, batch, numbers, memory) -> Later     for the log; value: a scalar; base (or None), own: gradients
    warning(means) -> sentence or None                              of the means of a row of the log
    passes(numbers, encoder) -> float                               as for a method

A supplement with generator_terms has weight, and the other way round. A term whose gradient is None is logged and not trained;
for a method also one whose gradient another term contains.

In weight, base and own are root mean squares of the gradients of base loss and supplement, scalars on the device that must not
be read, because reading waits for a GPU. They are taken where the gradients are added: at the images, or, if the base loss has
none there, at the generator's last layer, where base includes the direct terms of other supplements.

With several processes, images are the rows of this process and the loop sums gradients. If prepared has an attribute `across`
that is not None, the supplement gathers from all processes and returns the loss of the complete batch.

memory is a dict of scalars (floats or on the device), saved with the state as floats. All random numbers come from batch.draw.

A family of embedding networks has `Numbers`, `RECIPE` and

    draw(numbers, shape, normal) -> {name: tensor}                  random weights; normal(name, *size) gives N(0, 1)
    stages(weights, images, numbers) -> [tensor, …]                 outputs [n, …] of its stages for images over sigma_data
    [fit(weights, images, numbers) -> {name: tensor}]               weights that depend on the calibration images

The last stage is the feature, unless a member says otherwise. With a literal `TEACHER = True` in the file, `stages` gets the
frozen teacher as a fourth argument. docs/architecture.md lists what the contract tests ask of each file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, Self

import torch

from eldistill.diffusion.draws import Draw
from eldistill.errors import Problem
from eldistill.registry import available

COVERED_BY = "loop"
Nets = dict[str, torch.nn.Module]  # networks by name: generator, teacher, fake_score, …
Denoiser = Any  # a network of eldistill.networks: a torch module, with what precond.py and losses/head.py add to it
Codec = dict[str, Any]  # how pixels or latents are encoded: mean, std


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    n_images: int  # generated so far
    iteration: int  # iterations so far
    total: int  # images in the whole run


@dataclass(frozen=True)
class Phase:
    """One optimiser step of an iteration.

    The phases of DMD2 with re-use, for example: the generator every fifth iteration, then fake_score on the same images.

        [Phase("generator", every=5),
         Phase("fake_score", images="reuse", labels="same", generator_mode="eval")]

    Raises ValueError for images that are reused with other labels.
    """

    net: str  # the network that is trained
    every: int = 1  # it happens in iterations 0, every, 2 every, …
    # Phases of networks other than the generator: whether they get new images (fresh), those of the phase before in the same
    # iteration, if there are any (reuse), or none; and the mode, train or eval, of the generator while it makes them.
    images: str = "fresh"
    generator_mode: str = "train"
    labels: str = "fresh"  # fresh, or same as in the phase before in this iteration

    def __post_init__(self) -> None:
        if self.images == "reuse" and self.labels != "same":
            raise ValueError("a phase that reuses images must reuse their labels: labels='same'")


@dataclass(frozen=True)
class AtImages:
    """A loss term by its value (scalar) and its gradient at the images [n, c, h, w], which is detached.

    gradient: of the mean over the n images, so that each row is of order 1/n; the loop multiplies it by the share that a
    micro-batch has in the batch. None: the term is logged only, because another term of the same loss contains its gradient,
    or because it is not trained.
    """

    value: torch.Tensor
    gradient: torch.Tensor | None


@dataclass(frozen=True)
class Weight:
    """The factor of a supplement's gradient, and whether a bound held it: then it is not the one that was asked for.

    Both may be scalars of the device: the loop does not wait to know them.
    """

    factor: float | torch.Tensor
    bounded: bool | torch.Tensor = False


@dataclass(frozen=True)
class Later:
    """Numbers for the log that are made of some scalars of the device, once these are read back with all others.

    finish: takes their values in order and gives the numbers by name; it may change the supplement's memory.
    """

    scalars: list[torch.Tensor]
    finish: Callable[..., dict[str, float]]


Terms = dict[
    str, AtImages | torch.Tensor
]  # by name: terms at the images, and scalars that are backpropagated as they are
AtAll = dict[str, AtImages]  # terms at the images of the whole batch
Scalars = dict[str, torch.Tensor]
Memory = dict[str, Any]  # what a supplement remembers: floats, or scalars of the device


class RealImages(Protocol):
    """Encoded real images, as eldistill.data.dataset.Reals holds them.

    One of latents has `fresh(indices, normal)` too, which gives them new noise of their encoder.
    """

    codec: Codec
    sigma_data: float  # standard deviation of the encoded images

    def __len__(self) -> int: ...

    def labels(self, indices: torch.Tensor) -> torch.Tensor | None:
        """One-hot labels [n, L] of rows [n], or None."""

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images [n, c, h, w] and labels [n, L], or None, of rows [n]."""


@dataclass(frozen=True)
class Batch:
    """The images of one phase: their labels and random numbers. A slice is a micro-batch, with the same numbers for the same images.

    A purpose, such as "z", names a stream of random numbers: the same purpose gives the same numbers within a phase, and others
    in another phase or iteration.

    z = batch.draw.normal("z", *batch.shape)          # [n, c, h, w]
    real, labels = batch.real("label")                # [n, c, h, w] and [n, L] or None
    first = batch[:8]                                 # of images 0 … 7
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
        """`each` real images for every image of the batch, drawn independently with replacement; of latents each time with
        fresh noise of their encoder, which is the draw's as all random numbers are.

        `real("label")` gives the images whose labels `batch.labels` are, in a phase with fresh labels.

        Returns images [n * each, c, h, w] (encoded) and their labels [n * each, L] or None. Raises ValueError where the batch
        has none.
        """
        if self.reals is None:
            raise ValueError(f"{purpose!r} asks for real images, and this batch has none")
        indices = self.draw.on("cpu").integers(purpose, len(self.reals), each).reshape(-1)
        if not hasattr(self.reals, "fresh"):
            return self.reals.take(indices)

        def normal(*size: int) -> torch.Tensor:
            return self.draw.normal(f"{purpose}/encoder", each, *size).flatten(0, 1)

        images: tuple[torch.Tensor, torch.Tensor | None] = self.reals.fresh(indices, normal)
        return images


@dataclass(frozen=True)
class Setting:
    """What `prepare` of a supplement is given: facts of the run, files, and where to compute."""

    sigma_data: float  # standard deviation of the encoded images
    seed: int  # of the run
    sigma_init: float  # noise level that the generator starts from
    device: str = "cpu"
    dtype: torch.dtype = torch.float32  # of what it computes
    ensemble: Path | None = None  # manifest of the ensemble that its numbers name
    pairs: Path | None = None  # .npz with pairs of noise and the teacher's image
    codec: Codec = field(default_factory=dict)  # of the data
    label_dim: int = 0  # width of one-hot labels; 0: there are none
    micro_batch: int = 0  # images on the device at once; 0: the whole batch
    teacher: torch.nn.Module | None = None  # frozen


# --- loaded modules -------------------------------------------------------------------------------------


def _unoffered(*_: Any) -> Any:
    raise TypeError(
        "a function that this method or supplement does not offer is needed; eldistill.contract lists all of them"
    )


def _nothing(*_: Any) -> None:
    return None


def _no_terms(*_: Any) -> dict[str, Any]:
    return {}


def _one(_numbers: Any) -> int:
    return 1


class Functions:
    """The functions of a module by name, with a default for each that its file leaves out."""

    @classmethod
    def of(cls, module: Any) -> Self:
        """From a module, or from anything else that has them as attributes."""
        there = vars(module)
        names = (name for name in cls.__annotations__ if name in there)
        return cls(**{name: there[name] for name in names})

    def offers(self, function: str) -> bool:
        """Whether the module has a function of this name, and no default stands for it."""
        return getattr(self, function) is not getattr(type(self), function, None)


@dataclass(frozen=True)
class Method(Functions):
    """A method at work. The head of this file says what each function takes and gives."""

    phases: Callable[[Any, Progress], list[Phase]]
    Numbers: Callable[..., Any] = _unoffered
    generator: Callable[[torch.nn.Module, torch.nn.Module | None, Any], torch.nn.Module] = _unoffered
    networks: Callable[[torch.nn.Module, Any, int], Nets] = _unoffered
    generate: Callable[[Nets, Batch, Any], torch.Tensor] = _unoffered
    generator_terms: Callable[[Nets, Batch, Callable[[], torch.Tensor], Any], Terms] = _unoffered
    critic_terms: Callable[[Nets, Batch, Any, Any], Scalars] = _unoffered
    after_step: Callable[[Nets, Any, Progress], None] = _nothing
    normalised: Callable[[Any], tuple[str, ...] | None] = _nothing  # None: all networks
    group: Callable[[Any], int] = _one
    passes: Callable[[Any, float], float] = _unoffered
    sampler: Callable[[Any], dict[str, Any]] = _unoffered


@dataclass(frozen=True)
class SupplementModule(Functions):
    """A supplement as its file has it. The head of this file says what each function takes and gives."""

    Numbers: Callable[..., Any] = _unoffered
    prepare: Callable[[Any, Setting], Any] = _nothing
    networks: Callable[[Nets, Any, Any, int], None] = _nothing
    generator_terms: Callable[[Any, torch.Tensor, Batch, Any], AtAll] = _no_terms
    weight: Callable[[Any, Any, int, Any, Progress, Memory], Weight] = _unoffered
    direct_terms: Callable[[Any, Nets, Batch, Any], Scalars] = _no_terms
    critic_terms: Callable[[Any, Nets, Batch, Any, Any], Scalars] = _no_terms
    diagnose: Callable[[torch.Tensor, Any, torch.Tensor, Batch, Any, Memory], Later] = _unoffered
    warning: Callable[[dict[str, float]], str | None] = _nothing
    passes: Callable[[Any, float], float] = _unoffered


def load_method(file: str) -> Method:
    """The functions of methods/<file>.py. Raises Problem."""
    return Method.of(load_module("methods", file))


def load_supplement(file: str) -> SupplementModule:
    """The functions of supplements/<file>.py. Raises Problem."""
    return SupplementModule.of(load_module("supplements", file))


def load_module(kind: str, file: str) -> ModuleType:
    """The module methods/<file>.py, supplements/<file>.py or ensemble/<file>.py. Name is module. Raises Problem."""
    if file not in (there := available(kind)):
        raise Problem(f"{kind}/ has no file {file!r}; it has {', '.join(there)}")
    return importlib.import_module(f"eldistill.{kind}.{file}")


def make_numbers(kind: Any, values: dict[str, Any]) -> Any:
    """The Numbers of a module (or of its loaded functions) from a resolved section; keys that are not its own are left to
    others."""
    fields = kind.Numbers.__dataclass_fields__
    return kind.Numbers(**{key: _cast(fields[key].type, value) for key, value in values.items() if key in fields})


def _cast(kind: str, value: Any) -> Any:
    # A recipe writes 1.0 as 1 and a tuple as a list.
    if isinstance(value, list):
        return tuple(value)
    return {"float": float, "int": int}[kind](value) if kind in ("float", "int") else value
