# SPDX-License-Identifier: Apache-2.0
"""Images from teachers (Heun) and from generators (one step), with a seed for each image.

Image i of a seed is the same whatever the batch, the device or the number of images asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from eldistill import data, networks, noise
from eldistill.files import Problem, load_tensors, save_tensors
from eldistill.noise import Draw

VERSION = 1


def heun(
    network, latents: torch.Tensor, labels=None, steps: int = 18, sigma_min: float = noise.SIGMA_MIN,
    sigma_max: float = noise.SIGMA_MAX, rho: float = noise.RHO, churn: float = 0, s_min: float = 0,
    s_max: float = float("inf"), s_noise: float = 1, fresh=None,
) -> torch.Tensor:  # fmt: skip
    """EDM's sampler, algorithm 2 (deterministic with churn 0): 2 steps - 1 network calls; arithmetic in float64.

    latents: N(0, 1), [n, c, h, w]. fresh: function of the step that gives new noise, needed with churn.
    Returns images [n, c, h, w] in float64.
    """
    if churn and fresh is None:
        raise ValueError("heun with churn needs `fresh`, which gives the noise")
    sigmas = torch.cat(
        [noise.karras_sigmas(steps, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)]
    ).tolist()
    dtype = next(network.parameters()).dtype

    def slope(x: torch.Tensor, sigma: float) -> torch.Tensor:
        level = torch.full((len(x),), sigma, dtype=dtype, device=x.device)
        return (x - network(x.to(dtype), level, labels).double()) / sigma

    x = latents.double() * sigmas[0]
    for step, (now, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        gamma = min(churn / steps, 2**0.5 - 1) if s_min <= now <= s_max else 0.0
        raised = now * (1 + gamma)
        if fresh is not None and churn:
            x = x + (raised**2 - now**2) ** 0.5 * s_noise * fresh(step).double()
        d = slope(x, raised)
        euler = x + (following - raised) * d
        x = euler if following == 0 else x + (following - raised) * (d + slope(euler, following)) / 2
    return x


@dataclass(frozen=True)
class Generator:
    """A finished generator: network, codec, sampler settings and the rest of its description."""

    network: torch.nn.Module
    about: dict

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
    network = networks.build(about["config"])
    network.load_state_dict(tensors)
    return Generator(network.requires_grad_(False).eval().to(device), about)


def _labels(draw: Draw, label_dim: int, wanted) -> torch.Tensor | None:
    if not label_dim:
        return None
    classes = draw.integers("label", label_dim) if wanted is None else wanted
    return torch.nn.functional.one_hot(classes, label_dim).to(draw.dtype)


def _chunks(n: int, seed: int, batch: int, device, wanted=None) -> Iterator[tuple[Draw, torch.Tensor | None]]:
    wanted = None if wanted is None else torch.as_tensor(wanted, dtype=torch.int64, device=device).expand(n)
    for first in range(0, n, batch):
        size = min(batch, n - first)
        yield Draw(seed, "sample", first, size, device), None if wanted is None else wanted[first : first + size]


@torch.no_grad()
def images_of(generator: Generator, n: int, seed: int = 0, labels=None, batch: int = 250) -> Iterator[torch.Tensor]:
    """Chunks of uint8 images [≤ batch, c, h, w]; labels: one class for all, or [n]; drawn uniformly if None."""
    device, about = next(generator.network.parameters()).device, generator.about
    (sigma,) = about["sampler"]["sigmas"]
    for draw, wanted in _chunks(n, seed, batch, device, labels):
        z = draw.normal("z", *generator.shape)
        one_hot = _labels(draw, about["label_dim"], wanted)
        yield data.decode(generator.network(sigma * z, z.new_full((len(z),), sigma), one_hot), about["codec"]).cpu()


@torch.no_grad()
def images_of_teacher(
    teacher, about: dict, n: int, steps: int, seed: int = 0, batch: int = 250
) -> Iterator[torch.Tensor]:
    """Chunks of uint8 images by Heun's method, from the same latents as a generator's."""
    device = next(teacher.parameters()).device
    for draw, _ in _chunks(n, seed, batch, device):
        x = heun(teacher, draw.normal("z", *about["shape"]), _labels(draw, about["label_dim"], None), steps)
        yield data.decode(x, about["codec"]).cpu()


def sample(generator: Generator, n: int, seed: int = 0, labels=None) -> torch.Tensor:
    """n images of a generator: uint8 [n, channel, height, width]; image i depends on (seed, i) and its label only."""
    return torch.cat(list(images_of(generator, n, seed, labels)))


def grid(images: torch.Tensor, columns: int, scale: int = 1):
    """uint8 images [n, c, h, w] as one PIL picture with `columns` a row, each pixel enlarged `scale` times."""
    from PIL import Image

    n, c, h, w = images.shape
    rows = -(-n // columns)
    board = torch.full((rows * columns, c, h + 1, w + 1), 255, dtype=torch.uint8)
    board[:n, :, :h, :w] = images
    board = (
        board.reshape(rows, columns, c, h + 1, w + 1)
        .permute(2, 0, 3, 1, 4)
        .reshape(c, rows * (h + 1), columns * (w + 1))
    )
    picture = Image.fromarray(board[0].numpy() if c == 1 else board[:3].permute(1, 2, 0).numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
