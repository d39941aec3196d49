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
from eldistill.tensors import load_tensors, save_tensors

RECIPE = ("sampling", 1)


@dataclass(frozen=True)
class Generator:
    """A finished generator.

    generator = load_generator("data/runs/digits/di/el/0/generator_ema.safetensors")
    images = sample(generator, 16, seed=0)            # uint8 [16, c, h, w]
    """

    network: torch.nn.Module  # frozen, in eval mode
    about: dict  # its description: shape, label_dim, codec, sampler, lineage, …

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of its images."""
        return tuple(self.about["shape"])


def save_generator(path: str | Path, network: torch.nn.Module, about: dict) -> None:
    """Write a generator with what is needed to rebuild and sample it. about: shape, label_dim, codec, sampler, …"""
    save_tensors(path, network.state_dict(), {**about, "config": network.config})


def load_generator(path: str | Path, device: str = "cpu") -> Generator:
    """Read a generator_ema.safetensors (or a snapshot). Raises Problem for any other file."""
    tensors, about = load_tensors(path)
    if "sampler" not in about:
        raise Problem(f"{path} is not a generator; expected a generator_ema.safetensors of a run")
    network = weights.restore_network(path, tensors, about)
    network.boundary = about["sampler"].get("boundary", 0.0)
    return Generator(network.requires_grad_(False).eval().to(device), about)


def one_hot_labels(draw: Draw, about: dict, wanted) -> torch.Tensor | None:
    if not about["label_dim"]:
        return None
    chosen = classes.draw_classes(draw, about) if wanted is None else wanted
    return torch.nn.functional.one_hot(chosen, about["label_dim"]).to(draw.dtype)


def chunks(
    n: int, seed: int, batch: int, device, wanted=None, start: int = 0
) -> Iterator[tuple[Draw, torch.Tensor | None]]:
    wanted = None if wanted is None else torch.as_tensor(wanted, dtype=torch.int64, device=device).expand(n)
    for first in range(0, n, batch):
        size = min(batch, n - first)
        yield (
            Draw(seed, "sample", start + first, size, device),
            None if wanted is None else wanted[first : first + size],
        )


def sigmas_of(generator: Generator, steps: int) -> list[float]:
    """The noise levels of sampling in `steps` steps. Raises Problem if its method does not define them."""
    known = generator.about["sampler"]["steps"]
    if str(steps) not in known:
        raise Problem(f"this generator is sampled in {' or '.join(known)} step(s), not in {steps}")
    return known[str(steps)]


@torch.no_grad()
def few_steps(generator: Generator, draw: Draw, labels: torch.Tensor | None, sigmas: list[float]) -> torch.Tensor:
    """Encoded images [n, c, h, w]: x = f(sigma_1 z; sigma_1), then for each further level f(x + s n; sigma).

    s = sqrt(sigma^2 - boundary^2) where the sampler says renoise: boundary (CM, algorithm 1), sigma otherwise (ECT);
    clip: x is first clipped to the range of pixels.
    """
    settings, net = generator.about["sampler"], generator.network
    x = sigmas[0] * draw.normal("z", *generator.shape)
    for step, sigma in enumerate(sigmas):
        if step:
            below = settings["boundary"] if settings.get("renoise") == "boundary" else 0.0
            if settings.get("clip"):
                x = x.clamp(*data.encoded_limits(generator.about["codec"]))
            x = x + (sigma**2 - below**2) ** 0.5 * draw.normal(f"renoise/{step}", *generator.shape)
        x = net(x, x.new_full((len(x),), sigma), labels)
    return x


@torch.no_grad()
def images_of(
    generator: Generator, n: int, seed: int = 0, labels=None, batch: int = 250, steps: int = 1, first: int = 0
) -> Iterator[torch.Tensor]:
    """Chunks of uint8 images [≤ batch, c, h, w], those from number `first` on; labels: one class for all, or [n]; if None
    they are drawn as `classes.draw_classes` says: by the frequency of the train images, where the generator knows it."""
    device, about = next(generator.network.parameters()).device, generator.about
    sigmas = sigmas_of(generator, steps)
    for draw, wanted in chunks(n, seed, batch, device, labels, first):
        x = few_steps(generator, draw, one_hot_labels(draw, about, wanted), sigmas)
        yield data.decode(x, about["codec"]).cpu()


@torch.no_grad()
def between(generator: Generator, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """uint8 [rows * columns, c, h, w]: in each row one-step images from noise 2r of the seed to noise 2r + 1, on the great
    circle between them, all of image 2r's class: a generator that has learned images changes by small steps."""
    device, about = next(generator.network.parameters()).device, generator.about
    draw = Draw(seed, "sample", 0, 2 * rows, device)
    ends, labels = draw.normal("z", *generator.shape), one_hot_labels(draw, about, None)
    one, other = (ends[side::2].repeat_interleave(columns, 0) for side in (0, 1))
    angle = torch.linspace(0, math.pi / 2, columns, dtype=ends.dtype, device=device).repeat(rows).view(-1, 1, 1, 1)
    (sigma,) = sigmas_of(generator, 1)
    x = sigma * (torch.cos(angle) * one + torch.sin(angle) * other)
    labels = None if labels is None else labels[::2].repeat_interleave(columns, 0)
    return data.decode(generator.network(x, x.new_full((len(x),), sigma), labels), about["codec"]).cpu()


def sample(generator: Generator, n: int, seed: int = 0, labels=None, steps: int = 1) -> torch.Tensor:
    """n images of a generator: uint8 [n, channel, height, width]; image i depends on (seed, i), its label and steps only.

        sample(generator, 4, labels=7)                    # four of class 7
        sample(generator, 4, labels=[0, 1, 2, 3], steps=2)

    labels: a class for all, or one for each image; None draws them by their frequency in the train images, uniformly where
    the generator's file does not say it. Raises Problem for a number of steps that the generator's method does not define,
    or for a class that there is not.
    """
    dim = generator.about["label_dim"]
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
    """The class that a name says; or, where no class has that name, a number from 0. Raises Problem."""
    names, dim = generator.about.get("class_names", []), generator.about["label_dim"]
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < dim:
        return int(text)
    few = f"one of {', '.join(names[:20])}{', …' if len(names) > 20 else ''}, or " if names else ""
    whole = (
        f"{few}a number from 0 to {dim - 1}{nearest(text, names)}" if dim else "none: this generator knows no labels"
    )
    raise Problem(f"--label is {text}; expected {whole}")
