# SPDX-License-Identifier: Apache-2.0
"""Checks of a supplement that compares features of an ensemble, in a run: its own numbers, its ensemble and the images."""

from __future__ import annotations

import math
from typing import Any, Protocol

from eldistill.plan import embeddings, sizes
from eldistill.plan.schema import Wrong
from eldistill.registry import literal

Section = dict[str, Any]


class Sections(Protocol):
    """The part of params.Params that these checks use."""

    def peek(self, kind: str, name: str, data: str | None = None) -> Section: ...
    def place(self, kind: str, name: str) -> str: ...


def check_supplement(
    params: Sections, where: str, each: Section, base: Section, data: str, setting: Section
) -> None:  # fmt: skip
    """Raise Wrong if a supplement contradicts itself, its ensemble, or the method and the data setting of the run.

    where: the place of the supplement in messages. each, base, setting: the resolved supplement, method and data setting."""
    if "anchored" in each:
        _embedding(params, where, each, base, data, setting)
    if "population" in each:
        _frechet(where, each, params.peek("ensemble", each["ensemble"]))
    if "radii" in each:
        _drift(where, each, base, data)
    side = sizes.side_of(setting)
    if "ensemble" in each and side is not None:
        name = each["ensemble"]
        embeddings.check_members(params.place("ensemble", name), params.peek("ensemble", name), side, f"data.{data}")


def _frechet(where: str, each: Section, ensemble: Section) -> None:
    if ensemble["redraw"]:
        raise Wrong(
            f"{where}.ensemble",
            f"is {each['ensemble']}, whose redraw is {ensemble['redraw']}, but moments of all train images need a single draw; name an "
            "ensemble with redraw: 0",
        )


def _drift(where: str, each: Section, base: Section, data: str) -> None:
    radii = each["radii"]
    if not radii or not all(isinstance(radius, int | float) and 0 < radius < math.inf for radius in radii):
        raise Wrong(f"{where}.radii", f"is {radii}; expected numbers above 0, such as [0.02, 0.05, 0.2]")
    if base["batch"] < 2:
        raise Wrong(
            f"{where}",
            f"pulls generated images away from each other, which needs 2, but the batch is {base['batch']} on {data}; raise the batch",
        )


def _embedding(params: Sections, where: str, each: Section, base: Section, data: str, setting: Section) -> None:
    if each["labels"] != "marginal" and not setting["labels"]:
        raise Wrong(
            f"{where}.labels",
            f"is {each['labels']}, but data.{data}.labels is false; set the former to marginal, or the latter to true",
        )
    if each["labels"] != "marginal" and each["pairs"]:
        raise Wrong(f"{where}.labels", f"is {each['labels']}, but pairs is {each['pairs']}, and pairs have no labels; set labels to "
                    "marginal, or pairs to null")  # fmt: skip
    if each["start_images"] and each["weighting"] == "fixed":
        raise Wrong(f"{where}.start_images", f"is {each['start_images']}, but weighting is fixed, whose factor never changes; set "
                    "start_images to 0, or weighting to balanced")  # fmt: skip
    if each["estimator"] == "unbiased" and base["batch"] < 2:
        raise Wrong(f"{where}.estimator", f"is unbiased, which needs 2 images, but the batch is {base['batch']} on {data}; raise the "
                    "batch, or set estimator to biased")  # fmt: skip
    name = each["ensemble"]
    ensemble = params.peek("ensemble", name)
    if each["anchored"]:
        _anchored(where, each, name, ensemble)
    train, most = sizes.fewest_train(setting), literal("ensemble/anchors", "SOLVED")
    if ensemble["anchor"] and train and most < ensemble["landmarks"] < train:
        raise Wrong(
            f"ensemble.{name}.landmarks",
            f"is {ensemble['landmarks']} and anchor is true, but data.{data} has {train} train images; set landmarks to at most {most}, "
            f"or to {train}, which needs no weights",
        )


def _anchored(where: str, each: Section, name: str, ensemble: Section) -> None:
    if not ensemble["anchor"]:
        raise Wrong(
            f"{where}.anchored", f"is true, but ensemble.{name}.anchor is false; set it to true, or anchored to false"
        )
    wanted: dict[str, Any] = {"augmentation": [], "pairs": None, "real_ratio": 1, "labels": "marginal"}
    for key, value in wanted.items():
        if each[key] != value:
            raise Wrong(
                f"{where}.{key}",
                f"is {each[key]}, but anchored is true, which compares with all train images as they are; set {key} to "
                f"{'null' if value is None else value}, or anchored to false",
            )
