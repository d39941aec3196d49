# SPDX-License-Identifier: Apache-2.0
"""Images from teachers (Heun) and from generators (one or a few steps), with a seed for each image.

Image i of a seed is the same whatever the batch, the device or the number of images asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from eldistill.data import classes
from eldistill.data import dataset as data
from eldistill.diffusion.draws import Draw
from eldistill.errors import Problem, nearest
from eldistill.external import weights
from eldistill.networks import interval
from eldistill.tensors import load_tensors, save_tensors

RECIPE = ("sampling", 1)


@dataclass(frozen=True)
class Generator:
    """A finished one-step generator, as `load_generator` returns it.

        generator = load_generator("data/runs/digits/di/el/0/generator_ema.safetensors")
        channels, height, width = generator.shape
        images = sample(generator, 16, seed=0)
        assert images.shape == (16, channels, height, width) and images.dtype == torch.uint8

    `load_generator` raises Problem for any other file.
    """

    network: torch.nn.Module  # frozen, in eval mode
    metadata: dict  # shape, label_dim, codec, sampler, lineage, …, as `save_generator` wrote them

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return tuple(self.metadata["shape"])


RAW = "raw/"  # in names of tensors: of the generator without its running average


def save_generator(
    path: str | Path, network: torch.nn.Module, metadata: dict, raw: torch.nn.Module | None = None
) -> None:
    """Write a generator and the metadata needed to rebuild and sample it: shape, label_dim, codec, sampler, …

    raw: the same generator without its running average, which `load_generator(path, raw=True)` returns.
    """
    tensors = dict(network.state_dict())
    if raw is not None:
        tensors |= {f"{RAW}{name}": tensor for name, tensor in raw.state_dict().items()}
        metadata = {**metadata, "raw": True}
    save_tensors(path, tensors, {**metadata, "config": network.config})


def load_generator(path: str | Path, device: str = "cpu", raw: bool = False) -> Generator:
    """Load a generator_ema.safetensors or a snapshot to a device, frozen.

    raw: the generator without its running average, which only snapshots with `raw_snapshots: true` have. Raises
    Problem for any other or a damaged file.
    """
    tensors, metadata = load_tensors(path)
    if "sampler" not in metadata:
        raise Problem(f"{path} is not a generator; expected a generator_ema.safetensors of a run")
    if raw and not metadata.get("raw"):
        raise Problem(f"{path} has no generator without its average; set raw_snapshots: true in its method")
    chosen = {name.removeprefix(RAW): each for name, each in tensors.items() if name.startswith(RAW) == raw}
    network = weights.restore_network(path, chosen, metadata)
    network.boundary = metadata["sampler"].get("boundary", 0.0)
    return Generator(network.requires_grad_(False).eval().to(device), metadata)


def one_hot_labels(draw: Draw, metadata: dict, wanted) -> torch.Tensor | None:
    """One-hot labels [n, label_dim] for the images of `draw`; None without labels.

    wanted: classes [n]; None draws them.
    """
    if not metadata["label_dim"]:
        return None
    chosen = classes.draw_classes(draw, metadata) if wanted is None else wanted
    return torch.nn.functional.one_hot(chosen, metadata["label_dim"]).to(draw.dtype)


def chunks(
    n: int, seed: int, batch: int, device, wanted=None, start: int = 0
) -> Iterator[tuple[Draw, torch.Tensor | None]]:
    """(random numbers, classes [≤ batch] or None) of n images in chunks, starting at image `start`."""
    wanted = None if wanted is None else torch.as_tensor(wanted, dtype=torch.int64, device=device).expand(n)
    for first in range(0, n, batch):
        size = min(batch, n - first)
        yield (
            Draw(seed, "sample", start + first, size, device),
            None if wanted is None else wanted[first : first + size],
        )


def sigmas_of(generator: Generator, steps: int) -> list[float]:
    """The noise levels of sampling in `steps` steps. Raises Problem if the generator's method does not define them."""
    known = generator.metadata["sampler"]["steps"]
    if str(steps) not in known:
        raise Problem(f"steps is {steps}; this generator can be sampled in {' or '.join(known)} step(s)")
    return known[str(steps)]


@torch.no_grad()
def few_steps(generator: Generator, draw: Draw, labels: torch.Tensor | None, sigmas: list[float]) -> torch.Tensor:
    """Encoded images [n, c, h, w]: x = f(sigma_1 z; sigma_1), then for each further level f(x + s n; sigma).

    s = sqrt(sigma^2 - boundary^2) where the sampler says renoise: boundary (CM, algorithm 1), sigma otherwise (ECT);
    clip: x is first clipped to the range of pixels. With renoise: none the noise stays: see `along_flow`.
    """
    settings, net = generator.metadata["sampler"], generator.network
    x = sigmas[0] * draw.normal("z", *generator.shape)
    if settings.get("renoise") == "none":
        return along_flow(net, x, labels, sigmas)
    for step, sigma in enumerate(sigmas):
        if step:
            below = settings["boundary"] if settings.get("renoise") == "boundary" else 0.0
            if settings.get("clip"):
                x = x.clamp(*data.encoded_limits(generator.metadata["codec"]))
            x = x + (sigma**2 - below**2) ** 0.5 * draw.normal(f"renoise/{step}", *generator.shape)
        x = net(x, x.new_full((len(x),), sigma), labels)
    return x


def along_flow(net: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor | None, sigmas: list[float]) -> torch.Tensor:
    """Encoded images [n, c, h, w] of x at sigmas[0], for networks with a second noise level (networks/interval.py).

    From each level to the next, and to 0: D + (next / sigma) (x - D) with D = D(x; sigma, next), which is a step with the
    mean velocity of MeanFlow (arXiv 2505.13447, eq. 12) in the variables of EDM.
    """
    for sigma, lower in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        with interval.until(x.new_tensor([lower])):
            image = net(x, x.new_full((len(x),), sigma), labels)
        x = image + (lower / sigma) * (x - image)
    return x


@torch.no_grad()
def images_of(
    generator: Generator, n: int, seed: int = 0, labels=None, batch: int = 250, steps: int = 1, first: int = 0
) -> Iterator[torch.Tensor]:
    """Chunks of at most `batch` uint8 images [≤ batch, c, h, w], n in total, starting at image number `first`.

    labels: one class for all images, or classes [n]. None draws them by their frequency in the training images if the
    generator records it, otherwise uniformly (see `classes.draw_classes`). Raises Problem for an undefined number of steps.
    """
    device, metadata = next(generator.network.parameters()).device, generator.metadata
    sigmas = sigmas_of(generator, steps)
    for draw, wanted in chunks(n, seed, batch, device, labels, first):
        x = few_steps(generator, draw, one_hot_labels(draw, metadata, wanted), sigmas)
        yield data.decode(x, metadata["codec"]).cpu()


@torch.no_grad()
def interpolate(generator: Generator, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """One-step images between two noises in each row, uint8 [rows * columns, c, h, w].

    Row r goes along the great circle from noise 2r of the seed to noise 2r + 1; all its images have the class of image
    2r. A generator that has not just memorised images changes gradually along a row. Raises Problem without one-step
    sampling.
    """
    device, metadata = next(generator.network.parameters()).device, generator.metadata
    draw = Draw(seed, "sample", 0, 2 * rows, device)
    ends, labels = draw.normal("z", *generator.shape), one_hot_labels(draw, metadata, None)
    one, other = (ends[side::2].repeat_interleave(columns, 0) for side in (0, 1))
    angle = torch.linspace(0, math.pi / 2, columns, dtype=ends.dtype, device=device).repeat(rows).view(-1, 1, 1, 1)
    (sigma,) = sigmas_of(generator, 1)
    x = sigma * (torch.cos(angle) * one + torch.sin(angle) * other)
    labels = None if labels is None else labels[::2].repeat_interleave(columns, 0)
    return data.decode(generator.network(x, x.new_full((len(x),), sigma), labels), metadata["codec"]).cpu()


def sample(generator: Generator, n: int, seed: int = 0, labels=None, steps: int = 1) -> torch.Tensor:
    """n images of a generator, uint8 [n, channels, height, width].

    Image i depends only on (seed, i), its label and `steps`.

        generator = load_generator("data/runs/digits/di/el/0/generator_ema.safetensors")
        twos = sample(generator, 4, labels=2)             # four images of class 2
        mixed = sample(generator, 3, labels=[0, 1, 2])    # one image of each of three classes
        assert torch.equal(sample(generator, 8)[:4], sample(generator, 4))

    Args:
        generator: from `load_generator`; images are made on its device and returned on the CPU.
        n: number of images, 1 or more.
        seed: any integer.
        labels: a class in 0 … label_dim - 1 for all images, or n classes. None draws them by their frequency in the
            training images, or uniformly if the generator's file does not record it.
        steps: network passes for each image.

    Raises Problem for a number of steps that the method does not define, for labels that do not fit, and for n below 1.
    """
    dim = generator.metadata["label_dim"]
    if n < 1:
        raise Problem(f"n is {n}; expected 1 or more images")
    if labels is not None:
        wanted = torch.as_tensor(labels)
        if wanted.is_floating_point() or wanted.shape not in ((), (1,), (n,)):
            raise Problem(f"labels are {labels!r}; expected one class, or {n} of them, as whole numbers")
        if not dim:
            raise Problem("this generator knows no labels; omit them")
        if int(wanted.min()) < 0 or int(wanted.max()) >= dim:
            raise Problem(f"labels reach from {int(wanted.min())} to {int(wanted.max())}; expected 0 to {dim - 1}")
    return torch.cat(list(images_of(generator, n, seed, labels, steps=steps)))


def class_number(generator: Generator, text: str) -> int:
    """The class by its name, or by its number from 0 if no class has that name. Raises Problem for anything else."""
    names, dim = generator.metadata.get("class_names", []), generator.metadata["label_dim"]
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < dim:
        return int(text)
    near = nearest(text, names) if dim else ""
    few = f"one of {', '.join(names[:20])}{', …' if len(names) > 20 else ''}, or " if names else ""
    wanted = f"{few}a number from 0 to {dim - 1}" if dim else "none: this generator knows no labels"
    raise Problem(f"--label is {text[:100]}{f'{near} Expected' if near else '; expected'} {wanted}")
