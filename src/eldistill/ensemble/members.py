# SPDX-License-Identifier: Apache-2.0
"""Members of an ensemble: frozen random networks, drawn from a seed and calibrated on real images.

The weights of member k in redraw r depend only on (ensemble seed, r, k), and not on the seed of the run, the device,
the number of members or earlier draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from eldistill import contract
from eldistill.diffusion.draws import Draw, sent
from eldistill.errors import Problem
from eldistill.losses import mmd
from eldistill.numbers import make_numbers

COVERED_BY = "ensemble/seed"


@dataclass(frozen=True)
class Member:
    """One frozen random network.

    features: last, multi or gap (see READOUTS). order: permutation of the pixels [h * w], or None. scale: root of the
    trace of the features' covariance over real images, one value for each stage with `multi`. bandwidth: median squared
    distance of the scaled features over pairs of real images. teacher: frozen network for families that read one.
    """

    family: Any
    numbers: Any
    weights: dict[str, torch.Tensor]
    features: str = "last"
    order: torch.Tensor | None = None
    scale: float | tuple[float, ...] = 1.0
    bandwidth: float = 1.0
    teacher: Any = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled features [n, D], at least float32, of encoded images divided by sigma_data, [n, c, h, w]."""
        return self.read(self.weights, images)

    def read(self, weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Like a call of the member, but with other weights of the same shapes."""
        parts = self.raw(weights, images)
        if not isinstance(self.scale, tuple):
            return parts[0] / self.scale
        return torch.cat([part / scale for part, scale in zip(parts, self.scale, strict=True)], 1) / len(parts) ** 0.5

    def raw(self, weights: dict[str, torch.Tensor], images: torch.Tensor) -> list[torch.Tensor]:
        """Unscaled features, a list of [n, D]: one entry, or with `multi` one for each stage."""
        if self.order is not None:
            images = images.flatten(2)[:, :, self.order].reshape(images.shape)
        if any(weight.dtype == torch.bfloat16 for weight in weights.values()):
            images = images.bfloat16()
        extra = () if self.teacher is None else (self.teacher,)
        stages = self.family.stages(weights, images, self.numbers, *extra)
        return [part if part.dtype == torch.float64 else part.float() for part in READOUTS[self.features](stages)]


def _four(stage: torch.Tensor) -> torch.Tensor:
    # Averages a stage with spatial dimensions to at most 4x4.
    if stage.ndim < 4:
        return stage
    return functional.adaptive_avg_pool2d(stage, [min(4, side) for side in stage.shape[2:]]).flatten(1)


READOUTS = {
    "last": lambda stages: [stages[-1].flatten(1)],
    "multi": lambda stages: [_four(stage) for stage in stages],
    "gap": lambda stages: [stages[-1].flatten(2).mean(2) if stages[-1].ndim > 2 else stages[-1]],
}


def unfold_members(section: dict) -> list[dict]:
    """The sections of all members; one with `count: n` appears n times."""
    return [member for member in section["members"] for _ in range(member["count"])]


def draw_members(
    section: dict, seed: int, redraw: int, shape: tuple[int, int, int], device="cpu", dtype=torch.float32, teacher=None
) -> list[Member]:
    """Draw the members of a section of params.yaml, without calibrating them.

    redraw: number of the draw, from 0. shape: (c, h, w) of the images. dtype: of the weights. Raises Problem if a
    member is not possible for this shape.
    """
    members = []
    for k, kind in enumerate(unfold_members(section)):
        family = contract.load_module("ensemble", kind["family"])
        numbers = make_numbers(family, kind)
        source = Draw(seed, f"el/{redraw}/{k}", 0, 1, dtype=torch.float32)
        weights = family.draw(numbers, shape, lambda name, *size, source=source: source.normal(name, *size)[0])
        weights = {name: w.to(device, dtype) for name, w in weights.items()}
        order = None
        if kind.get("permute"):
            order = Draw(seed, "el/permutation", 0, 1).uniform("pixel", shape[1] * shape[2])[0].argsort().to(device)
        members.append(Member(
            family, numbers, weights, kind.get("features", "last"), order,
            teacher=teacher if getattr(family, "TEACHER", False) else None,
        ))  # fmt: skip
    return members


def calibrate(member: Member, images: torch.Tensor, scaled: bool = True) -> Member:
    """The member with scale and bandwidth measured on real images [n, c, h, w], divided by sigma_data.

    If its family has a `fit`, its weights are fitted to the images first. scaled: False leaves the scale at 1. Raises
    Problem if all images have the same features.
    """
    with torch.no_grad():
        if hasattr(member.family, "fit"):
            member = replace(member, weights=member.family.fit(member.weights, images, member.numbers))
        raw = [part.double() for part in member.raw(member.weights, images)]
        scales = tuple(float(part.var(dim=0).sum().sqrt()) for part in raw)
        if not min(scales) > 0:
            raise Problem(
                "an embedding network gives every calibration image the same features; change its numbers or seed"
            )
        scales = scales if scaled else (1.0,) * len(raw)
        member = replace(member, scale=scales if member.features == "multi" else scales[0])
        whole = raw[0] / scales[0] if len(raw) == 1 else member(images).double()
        return replace(member, bandwidth=mmd.median_squared_distance(whole))


def fingerprint(member: Member) -> str:
    """SHA-256 of the names and float32 bytes of all weights, in the order of the names."""
    total = hashlib.sha256()
    for name, weight in sorted(member.weights.items()):
        total.update(name.encode() + np.ascontiguousarray(weight.float().cpu().numpy()).tobytes())
    return total.hexdigest()


def stacks(members: list[Member]) -> list[list[int]]:
    """Groups of indices of members that differ only in weights and calibration, so that one pass computes them."""
    groups: dict[tuple, list[int]] = {}
    for place, member in enumerate(members):
        alone = (place,) if member.teacher is not None or not member.weights or hasattr(member.family, "fit") else ()
        groups.setdefault(
            (member.family.__name__, member.numbers, member.features, member.order is None, *alone), []
        ).append(place)
    return list(groups.values())


def stacked(members: list[Member]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that computes the k members of a stack in one pass: images [n, c, h, w] to scaled features [k, n, D].

    The result equals that of one member after the other up to rounding. Convolutions become grouped convolutions.
    """
    first = members[0]
    weights = {name: torch.stack([member.weights[name] for member in members]) for name in first.weights}
    scales = [member.scale if isinstance(member.scale, tuple) else (member.scale,) for member in members]
    scale = sent(torch.tensor(scales, dtype=torch.float64), next(iter(weights.values())).device)

    def read(images: torch.Tensor) -> torch.Tensor:
        parts = torch.func.vmap(lambda own: tuple(first.raw(own, images)))(weights)
        parts = [part / scale[:, j, None, None].to(part) for j, part in enumerate(parts)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2) / len(parts) ** 0.5

    return read
