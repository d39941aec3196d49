# SPDX-License-Identifier: Apache-2.0
"""The contract of methods and supplements: their functions, and the values that pass between them and the loop.

A method is a module with a frozen dataclass `Numbers` and these functions (those in brackets are optional):

    phases(numbers, progress) -> [Phase, …]                          the order of one iteration
    generator(teacher, start, numbers) -> Module                     the student before training
    networks(teacher, numbers, seed) -> {name: Module}               extra networks; seed for new weights
    generate(nets, batch, numbers) -> images [n, c, h, w]            with gradient to nets["generator"]
    generator_terms(nets, batch, images, numbers) -> {name: AtImages or scalar}
    [critic_terms(nets, batch, images, numbers) -> {name: scalar}]   for the extra networks that a phase trains
    [after_step(nets, numbers, progress)]                            weights changed outside an optimiser
    [normalised(numbers) -> (name, …)]                               networks of EDM2 whose weights are normalised after each
                                                                     of their steps; all of them without this function
    [group(numbers) -> int]                                          images that must share a micro-batch
    [passes(numbers, encoder) -> float]                              network passes an image, for the estimate of cost
    sampler(numbers) -> dict                                         how the finished generator is sampled

`start` is the generator of another run, or None. `images` of generator_terms is a function without arguments. It makes
the images at sigma_init on its first call, so a base loss that does not use them (consistency) costs no pass. A scalar
term is backpropagated; an `AtImages` term carries its gradient at the images. A method is called with micro-batches, so
each of its terms must be a mean over images. Each module has a literal `RECIPE` (its name and its version), whose
version is raised when a change of code changes results. A sampler has `steps` {"1": [sigma], "2": [sigma, sigma], …}
and perhaps `boundary`, `renoise` and `clip`, which eldistill.sampling.generators explains.

A supplement offers `Numbers`, `prepare(numbers, setting) -> prepared`, and those of these functions that it needs:

    networks(nets, prepared, numbers, seed)                          adds its weights to the networks
    generator_terms(prepared, images, batch, numbers) -> {name: AtImages}     at the images of the whole batch
    weight(base, own, batch, numbers, progress, memory) -> Weight    factor of that gradient
    direct_terms(prepared, nets, batch, numbers) -> {name: scalar}   from a separate pass; `numbers.weight` is its factor
    critic_terms(prepared, nets, batch, images, numbers) -> {name: scalar}    added to the phase of `fake_score`
    diagnose(value, base, own, batch, numbers, memory) -> Later      for the log: value (scalar) and gradients at the images
    warning(means) -> sentence or None                               from the means of a row of the log

A supplement with generator_terms must also have weight. A term whose gradient is None is only logged. base and own are
the root mean squares of the gradients of the base loss and of the supplement, at the images. If the base loss has no
gradient at the images, they are measured at the generator's last layer, where base includes the direct terms of other
supplements. Both are scalars on the device; a supplement must not read their values, because that would wait for a GPU.
`memory` is a dict of scalars (floats or tensors on the device) that is saved with the state as floats. All random
numbers come from `batch.draw`; global generators are not used.

A family of embedding networks offers `Numbers` and

    draw(numbers, shape, normal) -> {name: tensor}                   random weights; normal(name, *size) gives N(0, 1)
    stages(weights, images, numbers) -> [tensor, …]                  outputs [n, …] of its stages for images over sigma_data
    [fit(weights, images, numbers) -> {name: tensor}]                weights that depend on the calibration images

The last stage gives the features unless a member sets `features`. With a literal `TEACHER = True` in the file `stages`
gets the frozen teacher as a fourth argument.
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
    """The progress of a run."""

    n_images: int  # images generated so far
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
    every: int = 1  # iterations between these steps
    images: str = "fresh"  # fresh: new images; reuse: those of the previous phase of this iteration, if any; none
    generator_mode: str = "train"  # mode of the generator while it makes images: train or eval
    labels: str = "fresh"  # fresh: new labels; same: those of the previous phase of this iteration

    def __post_init__(self) -> None:
        if self.images == "reuse" and self.labels != "same":
            raise ValueError("a phase that reuses images must reuse their labels: labels='same'")


@dataclass(frozen=True)
class AtImages:
    """A loss term, given by its value (a scalar) and its gradient at the images [n, c, h, w].

    gradient: None if the gradient of another term includes it, or if the term is for the log only.
    """

    value: torch.Tensor
    gradient: torch.Tensor | None


@dataclass(frozen=True)
class Weight:
    """The factor of a supplement's gradient, and whether it was limited by a bound.

    Both may be scalars on the device, so that the loop need not wait for a GPU.
    """

    factor: float | torch.Tensor
    bounded: bool | torch.Tensor = False


@dataclass(frozen=True)
class Later:
    """Numbers for the log that are computed from scalars on the device after these have been read back.

    finish: is given the values of the scalars in order and returns numbers by name. It may change the supplement's
    memory.
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
    """Encoded real images; eldistill.data.dataset implements it.

    Data sets of latents also have `fresh(indices, normal)`, which returns images with new noise of their encoder.
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
    """The images of one phase: their random numbers, labels, and real images.

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

        purpose: name of the random numbers; the same purpose gives the same images. Latents get new noise of their
        encoder. Returns encoded images [n * each, c, h, w] and one-hot labels [n * each, L] or None. Raises ValueError
        for a batch without real images.
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


# --- loaded modules -------------------------------------------------------------------------------------


def _unoffered(*_: Any) -> Any:
    raise TypeError(
        "this method or supplement lacks a function that is needed here; eldistill.contract lists the functions"
    )


def _nothing(*_: Any) -> None:
    return None


def _no_terms(*_: Any) -> dict[str, Any]:
    return {}


def _one(_numbers: Any) -> int:
    return 1


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
    """The functions of a loaded supplement. The docstring of this module lists their arguments and results."""

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
    """Import methods/<file>.py, supplements/<file>.py or ensemble/<file>.py. Raises Problem for an unknown file.

    kind: methods, supplements or ensemble.
    """
    if file not in (there := available(kind)):
        raise Problem(f"{kind}/ has no file {file!r}; it has {', '.join(there)}")
    return importlib.import_module(f"eldistill.{kind}.{file}")


def make_numbers(kind: Any, values: dict[str, Any]) -> Any:
    """The `Numbers` of a module or of its loaded functions, from a resolved section of params.yaml.

    Keys that are not fields of its `Numbers` are ignored, because they belong to other parts. Raises Problem for
    impossible values.
    """
    fields = kind.Numbers.__dataclass_fields__
    return kind.Numbers(**{key: _cast(fields[key].type, value) for key, value in values.items() if key in fields})


def _cast(kind: str, value: Any) -> Any:
    # A recipe writes 1.0 as 1 and a tuple as a list.
    if isinstance(value, list):
        return tuple(value)
    return {"float": float, "int": int}[kind](value) if kind in ("float", "int") else value
