# SPDX-License-Identifier: Apache-2.0
"""Draws an ensemble from its seed, calibrates it on real images, records it, and derives it again.

The weights of member k in redraw r are a function of (ensemble seed, r, k) alone: not of the run's seed, the
device, the number of members or earlier draws. The manifest keeps a digest of them, which is checked when a run
derives them again.
"""

from __future__ import annotations

import functools
import hashlib
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eldistill import contract, mmd
from eldistill.files import Problem, atomic, read_json, write_json
from eldistill.noise import Draw

VERSION = 1


@dataclass(frozen=True)
class Member:
    """One frozen random network. scale: root of the trace of its covariance over real images; bandwidth: median
    squared distance of its scaled features over pairs of real images."""

    family: Any
    numbers: Any
    weights: dict[str, torch.Tensor]
    scale: float = 1.0
    bandwidth: float = 1.0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled features [n, D] of encoded images over sigma_data, [n, c, h, w]."""
        return self.family.features(self.weights, images, self.numbers) / self.scale


def kinds(section: dict) -> list[dict]:
    """The ensemble's members one by one (`count` unfolded)."""
    return [member for member in section["members"] for _ in range(member["count"])]


def draw(
    section: dict, seed: int, redraw: int, shape: tuple[int, int, int], device="cpu", dtype=torch.float32
) -> list[Member]:
    """The members of one draw, not calibrated. Raises Problem if a member cannot be."""
    members = []
    for k, kind in enumerate(kinds(section)):
        family = contract.module("ensemble", kind["family"])
        numbers = contract.numbers(family, kind)
        source = Draw(seed, f"el/{redraw}/{k}", 0, 1, dtype=torch.float32)
        weights = family.draw(numbers, shape, lambda name, *size, source=source: source.normal(name, *size)[0])
        members.append(Member(family, numbers, {name: w.to(device, dtype) for name, w in weights.items()}))
    return members


def calibrate(member: Member, images: torch.Tensor) -> Member:
    """The same member with scale and bandwidth measured on real images [n, c, h, w] over sigma_data."""
    with torch.no_grad():
        raw = member.family.features(member.weights, images, member.numbers).double()
        scale = float(raw.var(dim=0).sum().sqrt())
        if not scale > 0:
            raise Problem(
                "an embedding network gives every calibration image the same features; change its numbers or seed"
            )
        bandwidth = mmd.median_squared_distance(raw / scale)
    return Member(member.family, member.numbers, member.weights, scale, bandwidth)


def fingerprint(member: Member) -> str:
    """sha256 of the weights' float32 bytes, by name."""
    total = hashlib.sha256()
    for name, weight in sorted(member.weights.items()):
        total.update(name.encode() + np.ascontiguousarray(weight.float().cpu().numpy()).tobytes())
    return total.hexdigest()


def make(section: dict, seed: int, reals, json_path: Path, npz_path: Path) -> None:
    """Draw, calibrate and record. reals: encoded train images (see data.Reals)."""
    chance = Draw(seed, "el/calibration", 0, len(reals), dtype=torch.float64).uniform("image")
    indices = chance.argsort()[: section["calibration"]]
    images, _ = reals.take(indices)
    images, shape = images / reals.sigma_data, tuple(images.shape[1:])
    first = [calibrate(member, images) for member in draw(section, seed, 0, shape)]
    drawn = [first]
    if section["redraw"]:
        drawn += [[calibrate(m, images) for m in draw(section, seed, r, shape)] for r in range(1, section["draws"])]
    manifest = []
    for k, kind in enumerate(kinds(section)):
        manifest.append({
            **kind, "member": k, "weights": f"{seed}/el/<redraw>/{k}", "sha256": fingerprint(first[k]),
            "features": int(first[k](images[:1]).shape[1]),
            "scale": statistics.median(each[k].scale for each in drawn),
            "bandwidth": statistics.median(each[k].bandwidth for each in drawn),
        })  # fmt: skip
    means = {f"mean_{k}": member(images).mean(0).numpy() for k, member in enumerate(first)}
    with atomic(npz_path) as temporary, open(temporary, "wb") as file:
        np.savez(file, indices=indices.numpy(), **means)
    write_json(json_path, {"seed": seed, "shape": list(shape), "redraw": section["redraw"], "draws": len(drawn),
                           "calibration": section["calibration"], "members": manifest, "section": section})  # fmt: skip


class Ensemble:
    """A recorded ensemble at work: `at(iteration)` gives the members of that step, calibrated."""

    def __init__(self, path: str | Path, device="cpu", dtype=torch.float32):
        self.path, self.device, self.dtype = path, device, dtype
        self.record = read_json(path)
        expected = [member["sha256"] for member in self.record["members"]]
        section, shape = self.record["section"], tuple(self.record["shape"])
        if [fingerprint(member) for member in draw(section, self.record["seed"], 0, shape)] != expected:
            raise Problem(f"{path} records other weights than its seed gives here; delete it and run `snakemake all`")

    @functools.lru_cache(maxsize=1)  # noqa: B019  (one ensemble a run)
    def _draw(self, redraw: int) -> list[Member]:
        drawn = draw(
            self.record["section"], self.record["seed"], redraw, tuple(self.record["shape"]), self.device, self.dtype
        )
        return [
            Member(member.family, member.numbers, member.weights, row["scale"], row["bandwidth"])
            for member, row in zip(drawn, self.record["members"], strict=True)
        ]

    def at(self, iteration: int) -> list[Member]:
        """The members of a training step: the first draw for ever, or a new one every `redraw` steps."""
        every = self.record["redraw"]
        return self._draw(iteration // every if every else 0)
