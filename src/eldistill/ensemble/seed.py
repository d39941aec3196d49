# SPDX-License-Identifier: Apache-2.0
"""Draws an ensemble from its seed, calibrates it on real images, records it, and derives it again.

The weights of member k in redraw r are a function of (ensemble seed, r, k) alone: not of the run's seed, the
device, the number of members or earlier draws. The manifest keeps a digest of them, which is checked when a run
derives them again.
"""

from __future__ import annotations

import hashlib
import statistics
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from eldistill import contract
from eldistill.diffusion.draws import Draw
from eldistill.errors import Problem
from eldistill.files import atomic, read_json, write_json
from eldistill.losses import mmd

RECIPE = ("ensemble/seed", 1)


@dataclass(frozen=True)
class Member:
    """One frozen random network. features: last, multi or gap. order: of the pixels it is shown, [h * w], or None.
    scale: root of the trace of its covariance over real images, one for each stage with `multi`; bandwidth: median
    squared distance of its scaled features over pairs of real images."""

    family: Any
    numbers: Any
    weights: dict[str, torch.Tensor]
    features: str = "last"
    order: torch.Tensor | None = None
    scale: float | tuple[float, ...] = 1.0
    bandwidth: float = 1.0
    teacher: Any = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled features [n, D], float32 or better, of encoded images over sigma_data, [n, c, h, w]."""
        return self.read(self.weights, images)

    def read(self, weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """The same with other weights of the same shapes: what is mapped over a stack of members."""
        parts = self.raw(weights, images)
        if not isinstance(self.scale, tuple):
            return parts[0] / self.scale
        return torch.cat([part / scale for part, scale in zip(parts, self.scale, strict=True)], 1) / len(parts) ** 0.5

    def raw(self, weights: dict[str, torch.Tensor], images: torch.Tensor) -> list[torch.Tensor]:
        """Features before their scale, [n, D] each: one part, or with `multi` one for each stage."""
        if self.order is not None:
            images = images.flatten(2)[:, :, self.order].reshape(images.shape)
        if any(weight.dtype == torch.bfloat16 for weight in weights.values()):
            images = images.bfloat16()
        tools = () if self.teacher is None else (self.teacher,)
        stages = self.family.stages(weights, images, self.numbers, *tools)
        return [part if part.dtype == torch.float64 else part.float() for part in READOUTS[self.features](stages)]


def _four(stage: torch.Tensor) -> torch.Tensor:
    # At most 4x4 means of a stage that has space.
    if stage.ndim < 4:
        return stage
    return functional.adaptive_avg_pool2d(stage, [min(4, side) for side in stage.shape[2:]]).flatten(1)


READOUTS = {
    "last": lambda stages: [stages[-1].flatten(1)],
    "multi": lambda stages: [_four(stage) for stage in stages],
    "gap": lambda stages: [stages[-1].flatten(2).mean(2) if stages[-1].ndim > 2 else stages[-1]],
}


def kinds(section: dict) -> list[dict]:
    """The ensemble's members one by one (`count` unfolded)."""
    return [member for member in section["members"] for _ in range(member["count"])]


def draw(
    section: dict, seed: int, redraw: int, shape: tuple[int, int, int], device="cpu", dtype=torch.float32, teacher=None
) -> list[Member]:
    """The members of one draw, not calibrated; dtype: of the weights. Raises Problem if a member cannot be."""
    members = []
    for k, kind in enumerate(kinds(section)):
        family = contract.module("ensemble", kind["family"])
        numbers = contract.numbers(family, kind)
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
    """The same member with scale and bandwidth measured on real images [n, c, h, w] over sigma_data; where its family
    has a `fit`, fitted to them first. scaled: False leaves the scale at 1."""
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
    """sha256 of the weights' float32 bytes, by name."""
    total = hashlib.sha256()
    for name, weight in sorted(member.weights.items()):
        total.update(name.encode() + np.ascontiguousarray(weight.float().cpu().numpy()).tobytes())
    return total.hexdigest()


def make(section: dict, seed: int, reals, json_path: Path, npz_path: Path, teacher=None) -> None:
    """Draw, calibrate and record. reals: encoded train images (see data.Reals). Raises Problem."""
    if section.get("anchor") and section["redraw"]:
        raise Problem(
            "an ensemble with anchor and redraw; the mean over all images belongs to one draw: set redraw to 0"
        )
    chance = Draw(seed, "el/calibration", 0, len(reals), dtype=torch.float64).uniform("image")
    indices = chance.argsort()[: section["calibration"]]
    images, _ = reals.take(indices)
    images, shape = images / reals.sigma_data, tuple(images.shape[1:])
    scaled = section.get("scaled", True)
    drawn = [
        [calibrate(member, images, scaled) for member in draw(section, seed, r, shape, teacher=teacher)]
        for r in range(section["draws"] if section["redraw"] else 1)
    ]
    first, bare, manifest = drawn[0], draw(section, seed, 0, shape, teacher=teacher), []
    for k, kind in enumerate(kinds(section)):
        many = isinstance(first[k].scale, tuple)
        scales = zip(*(each[k].scale if many else (each[k].scale,) for each in drawn), strict=True)
        scales = [statistics.median(scale) for scale in scales]
        manifest.append({
            **kind, "member": k, "weights": f"{seed}/el/<redraw>/{k}", "sha256": fingerprint(bare[k]),
            "features": int(first[k](images[:1]).shape[1]), "readout": first[k].features,
            "scale": scales if many else scales[0],
            "bandwidth": statistics.median(each[k].bandwidth for each in drawn),
        })  # fmt: skip
    arrays = {f"mean_{k}": member(images).mean(0).numpy() for k, member in enumerate(first)}
    for k, member in enumerate(first):
        if hasattr(member.family, "fit"):
            arrays |= {f"fitted_{k}/{name}": weight.numpy() for name, weight in member.weights.items()}
    if section.get("anchor"):
        arrays |= {f"anchor_{k}": mean.numpy() for k, mean in enumerate(_means(first, reals))}
    with atomic(npz_path) as temporary, open(temporary, "wb") as file:
        np.savez(file, indices=indices.numpy(), **arrays)
    write_json(json_path, {"seed": seed, "shape": list(shape), "redraw": section["redraw"], "draws": len(drawn),
                           "calibration": section["calibration"], "members": manifest, "section": section})  # fmt: skip


def _means(members: list[Member], reals, size: int = 1000) -> list[torch.Tensor]:
    """Each member's mean features over all real images, float64 [D]."""
    totals: list[Any] = [0] * len(members)
    with torch.no_grad():
        for start in range(0, len(reals), size):
            images, _ = reals.take(torch.arange(start, min(start + size, len(reals)), device=reals.images.device))
            for k, member in enumerate(members):
                totals[k] = totals[k] + member(images / reals.sigma_data).double().sum(0)
    return [total / len(reals) for total in totals]


class Ensemble:
    """A recorded ensemble at work: `at(iteration)` gives the members of that step, calibrated."""

    def __init__(self, path: str | Path, device="cpu", dtype=torch.float32, teacher=None):
        self.path, self.device, self.dtype, self.teacher = path, device, dtype, teacher
        self.record = read_json(path)
        expected = [member["sha256"] for member in self.record["members"]]
        section, shape = self.record["section"], tuple(self.record["shape"])
        drawn = draw(section, self.record["seed"], 0, shape, teacher=teacher)
        if [fingerprint(member) for member in drawn] != expected:
            raise Problem(f"{path} records other weights than its seed gives here; delete it and run `snakemake all`")
        self.fitted: list[dict[str, torch.Tensor]] = [{} for _ in drawn]
        self.last: tuple[int, list[Member]] = (-1, [])  # redraw and its members: the last ones are kept
        for k, member in enumerate(drawn):
            if hasattr(member.family, "fit"):
                prefix = f"fitted_{k}/"
                arrays = {
                    key.removeprefix(prefix): each for key, each in self._arrays().items() if key.startswith(prefix)
                }
                self.fitted[k] = {name: torch.from_numpy(each).to(device, dtype) for name, each in arrays.items()}

    def _arrays(self) -> dict[str, np.ndarray]:
        path = Path(self.path).with_suffix(".npz")
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                found = {key: archive[key] for key in archive.files}
            if odd := [
                key for key, each in found.items() if each.dtype.kind not in "iuf" or not np.isfinite(each).all()
            ]:
                raise ValueError(f"its {odd[0]} is not finite numbers")
            return found
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise Problem(f"{path} is missing or damaged ({error}); delete it and run `snakemake all`") from None

    def anchors(self) -> list[torch.Tensor]:
        """Each member's mean features over all train images, [D]. Raises Problem if none were recorded."""
        arrays, count = self._arrays(), len(self.record["members"])
        if "anchor_0" not in arrays:
            raise Problem(f"{self.path} has no means over all images; give its ensemble `anchor: true` in params.yaml")
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        return [torch.from_numpy(arrays[f"anchor_{k}"]).to(self.device, kind) for k in range(count)]

    def _draw(self, redraw: int) -> list[Member]:
        drawn = draw(
            self.record["section"], self.record["seed"], redraw, tuple(self.record["shape"]), self.device, self.dtype,
            self.teacher,
        )  # fmt: skip
        return [
            replace(
                member, weights={**member.weights, **fitted}, bandwidth=row["bandwidth"],
                scale=tuple(row["scale"]) if isinstance(row["scale"], list) else row["scale"],
            )
            for member, row, fitted in zip(drawn, self.record["members"], self.fitted, strict=True)
        ]  # fmt: skip

    def at(self, iteration: int) -> list[Member]:
        """The members of a training step: the first draw for ever, or a new one every `redraw` steps."""
        every = self.record["redraw"]
        redraw = iteration // every if every else 0
        if self.last[0] != redraw:
            self.last = redraw, self._draw(redraw)
        return self.last[1]


def stacks(members: list[Member]) -> list[list[int]]:
    """The places of members that differ in nothing but their weights and numbers measured on them, in order."""
    groups: dict[tuple, list[int]] = {}
    for place, member in enumerate(members):
        alone = (place,) if member.teacher is not None or not member.weights or hasattr(member.family, "fit") else ()
        groups.setdefault(
            (member.family.__name__, member.numbers, member.features, member.order is None, *alone), []
        ).append(place)
    return list(groups.values())


def stacked(members: list[Member]) -> Callable[[torch.Tensor], torch.Tensor]:
    """One function for several members of a stack: images [n, c, h, w] to scaled features [k, n, D].

    The same numbers as one member after the other, up to rounding; convolutions become grouped ones.
    """
    first = members[0]
    weights = {name: torch.stack([member.weights[name] for member in members]) for name in first.weights}
    scales = [member.scale if isinstance(member.scale, tuple) else (member.scale,) for member in members]
    scale = next(iter(weights.values())).new_tensor(scales, dtype=torch.float64)

    def read(images: torch.Tensor) -> torch.Tensor:
        parts = torch.func.vmap(lambda own: tuple(first.raw(own, images)))(weights)
        parts = [part / scale[:, j, None, None].to(part) for j, part in enumerate(parts)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2) / len(parts) ** 0.5

    return read
