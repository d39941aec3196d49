# SPDX-License-Identifier: Apache-2.0
"""Draws an ensemble from its seed, calibrates it on real images and records it; `Ensemble` draws it again.

The manifest records a digest of the weights, which is checked when a run draws them again.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from eldistill.diffusion.draws import Draw
from eldistill.ensemble import anchors
from eldistill.ensemble.members import Member, calibrate, draw_members, fingerprint, unfold_members
from eldistill.errors import Problem, brief, denied
from eldistill.external.arrays import read_npz
from eldistill.files import atomic, read_json, write_json

RECIPE = ("ensemble/seed", 1)


def record_ensemble(section: dict, seed: int, reals, json_path: Path, npz_path: Path, teacher=None) -> None:
    """Calibrate an ensemble with `calibrate_ensemble` and write its manifest and its arrays. Raises Problem."""
    record, arrays = calibrate_ensemble(section, seed, reals, teacher)
    with atomic(npz_path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    write_json(json_path, record)


def calibrate_ensemble(section: dict, seed: int, reals, teacher=None) -> tuple[dict, dict[str, np.ndarray]]:
    """Draw an ensemble and calibrate it on real images: its manifest and its arrays, of which `Ensemble` makes members.

    section: of params.yaml. reals: encoded training images (see data.dataset). teacher: frozen network for families
    that read one. Raises Problem for settings that contradict each other or do not fit the images.
    """
    if section.get("anchor") and section["redraw"]:
        raise Problem(
            f"params.yaml: an ensemble has anchor: true and redraw: {section['redraw']}; what is recorded of all images "
            "needs a single draw: set redraw to 0"
        )
    chance = Draw(seed, "el/calibration", 0, len(reals), dtype=torch.float64).uniform("image")
    indices = chance.argsort()[: section["calibration"]]
    images, _ = reals.take(indices)
    images, shape = images / reals.sigma_data, tuple(images.shape[1:])
    scaled = section.get("scaled", True)
    drawn = [
        [calibrate(member, images, scaled) for member in draw_members(section, seed, r, shape, teacher=teacher)]
        for r in range(section["draws"] if section["redraw"] else 1)
    ]
    first, bare, manifest = drawn[0], draw_members(section, seed, 0, shape, teacher=teacher), []
    for k, kind in enumerate(unfold_members(section)):
        many = isinstance(first[k].scale, tuple)
        scales = zip(*(each[k].scale if many else (each[k].scale,) for each in drawn), strict=True)
        scales = [statistics.median(scale) for scale in scales]
        manifest.append({
            **kind, "member": k, "weights": f"{seed}/el/<redraw>/{k}", "sha256": fingerprint(bare[k]),
            "features": int(first[k](images[:1]).shape[1]), "readout": first[k].features,
            "scale": scales if many else scales[0],
            "bandwidth": statistics.median(each[k].bandwidth for each in drawn),
        })  # fmt: skip
    arrays = {"indices": indices.numpy()}
    arrays |= {f"mean_{k}": member(images).mean(0).numpy() for k, member in enumerate(first)}
    for k, member in enumerate(first):
        if hasattr(member.family, "fit"):
            arrays |= {f"fitted_{k}/{name}": weight.numpy() for name, weight in member.weights.items()}
    if section.get("anchor"):
        arrays |= anchors.record_anchors(first, reals, seed, section.get("landmarks", anchors.LANDMARKS))
    record = {"seed": seed, "shape": list(shape), "redraw": section["redraw"], "draws": len(drawn),
              "calibration": section["calibration"], "members": manifest, "section": section}  # fmt: skip
    return record, arrays


class Ensemble:
    """A recorded ensemble; `at(iteration)` returns the calibrated members of that iteration.

        ensemble = Ensemble("data/ensembles/digits/conv4/0.json")
        images = torch.zeros(4, *ensemble.record["shape"])                # encoded images [n, c, h, w]
        features = [member(images / 0.5) for member in ensemble.at(0)]    # divided by sigma_data
        assert all(each.shape[0] == 4 for each in features)               # [n, D] of each member

    Args:
        path: of the manifest; the arrays lie beside it in a file with the ending .npz.
        device, dtype: of the weights.
        teacher: frozen network for families that read one.
        held: manifest and arrays as `calibrate_ensemble` returns them, which are then not read from files.

    Raises Problem if the seed gives weights that differ from the recorded ones, or if a file is missing or damaged.
    """

    def __init__(self, path: str | Path, device="cpu", dtype=torch.float32, teacher=None, held=None):
        self.path, self.device, self.dtype, self.teacher, self.held = path, device, dtype, teacher, held
        self.record = held[0] if held else read_json(path)
        expected = [member["sha256"] for member in self.record["members"]]
        section, shape = self.record["section"], tuple(self.record["shape"])
        drawn = draw_members(section, self.record["seed"], 0, shape, teacher=teacher)
        if [fingerprint(member) for member in drawn] != expected:
            raise Problem(f"{path} records other weights than its seed gives here; delete it and run `snakemake all`")
        self.fitted: list[dict[str, torch.Tensor]] = [{} for _ in drawn]
        self.last: tuple[int, list[Member]] = (-1, [])  # (redraw, its members): the last draw is kept
        for k, member in enumerate(drawn):
            if hasattr(member.family, "fit"):
                prefix = f"fitted_{k}/"
                arrays = {
                    key.removeprefix(prefix): each for key, each in self._arrays().items() if key.startswith(prefix)
                }
                self.fitted[k] = {name: torch.from_numpy(each).to(device, dtype) for name, each in arrays.items()}

    def _arrays(self) -> dict[str, np.ndarray]:
        if self.held:
            return self.held[1]
        path = Path(self.path).with_suffix(".npz")
        try:
            found = read_npz(path)
            if odd := [
                key for key, each in found.items() if each.dtype.kind not in "iuf" or not np.isfinite(each).all()
            ]:
                raise ValueError(f"its {odd[0]} is not finite numbers")
            return found
        except PermissionError:
            raise denied(path) from None
        except (OSError, ValueError) as error:
            raise Problem(f"{path} is missing or damaged ({brief(error)}); delete it and run `snakemake all`") from None

    def anchors(self) -> list[torch.Tensor]:
        """Mean features of each member over all training images, a list of [D].

        Raises Problem if none were recorded.
        """
        arrays, count = self._arrays(), len(self.record["members"])
        if "anchor_0" not in arrays:
            raise Problem(f"{self.path} has no means over all images; give its ensemble `anchor: true` in params.yaml")
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        return [torch.from_numpy(arrays[f"anchor_{k}"]).to(self.device, kind) for k in range(count)]

    def anchored(self, kernel: str, reals) -> tuple[Sequence[torch.Tensor | anchors.Anchor], list[float]]:
        """What anchored EL needs of each member: its mean features [D] (linear) or its Anchor, and the trace of its features'
        covariance over all real images.

        reals: the real images of the run. Raises Problem if the ensemble has none of this recorded.
        """
        means, arrays = self.anchors(), self._arrays()
        wanted = [f"trace_{k}" for k in range(len(means))]
        wanted += [] if kernel == "linear" else ["landmarks", *(f"within_{kernel}_{k}" for k in range(len(means)))]
        if missing := [name for name in wanted if name not in arrays]:
            raise Problem(
                f"{self.path} has no {missing[0]}, because earlier code made it; delete it and run `snakemake all`"
            )
        traces = [float(arrays[f"trace_{k}"]) for k in range(len(means))]
        return (means if kernel == "linear" else anchors.anchors_of(arrays, self.at(0), kernel, reals)), traces

    def _draw(self, redraw: int) -> list[Member]:
        drawn = draw_members(
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
        """The members of an iteration (from 0): always the first draw, or a new one every `redraw` iterations."""
        every = self.record["redraw"]
        redraw = iteration // every if every else 0
        if self.last[0] != redraw:
            self.last = redraw, self._draw(redraw)
        return self.last[1]
