# SPDX-License-Identifier: Apache-2.0
"""The evaluator, which computes the metrics of generated images in several feature spaces.

The name of a metric states how it is measured: `fd5k_judge-a_heldout` is the Fréchet distance of 5,000 generated images to the
held-out images in the features of judge-a. metrics.py has the metrics, and references.py the features of real images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from eldistill.evaluate import clean, fid, references
from eldistill.evaluate.features import embed_all
from eldistill.evaluate.metrics import count_name, measure, measure_labelled
from eldistill.evaluate.remembered import keep
from eldistill.training.processes import ProcessGroup, SingleProcess

RECIPE = ("evaluate", 2)  # precision and recall take images evenly, not the first ones


@dataclass(frozen=True)
class Evaluator:
    """Measures generated images in several feature spaces. Its methods get images as a function of (count, first) that returns an
    iterable of uint8 chunks [m, c, h, w]: `count` images, starting with number `first`."""

    spaces: dict[str, Callable]  # by name: from uint8 images [n, c, h, w] to features [n, D]
    references: dict[str, dict]  # {space: {train, heldout}}, features [n, D] of real images
    options: dict  # the section `evaluate` of params.yaml
    batch: int = 250  # images in a chunk
    team: SingleProcess | ProcessGroup = field(default_factory=SingleProcess)  # the processes that share the images

    def share(self, n: int) -> tuple[int, int]:
        """(count, first): how many of n images this process makes, and the number of the first one.

        Processes get whole chunks in the order of their ranks, so that chunks do not depend on the number of processes."""
        rows = self.team.rows(n, max(1, min(self.batch, n // self.team.size)))
        return rows.stop - rows.start, rows.start

    def measure(
        self, images: Callable[[int, int], Iterable], n: int, names=None, spaces=None, asked=None
    ) -> dict[str, float]:
        """{name: value} of the metrics of n generated images, in one pass; empty in all processes but the first.

        names: some of METRICS; None means all, and those of ALONE. spaces: names of feature spaces; None means all. asked: the
        class that was requested for each image, int64 [n]; with it the metrics of LABELLED are measured too."""
        chosen = {name: space for name, space in self.spaces.items() if spaces is None or name in spaces}
        count, first = self.share(n)
        most = {name: few - first for name, few in self.options.get("n_of", {}).items()}
        features = embed_all(images(count, first), chosen, most)
        features = {name: keep(self.team.gather_of(each), {}) for name, each in features.items()}
        if self.team.rank:
            return {}
        found = measure(features, self.references, self.options, names, heads=references.heads(chosen))
        return (
            found
            if asked is None
            else found | measure_labelled(features, asked.numpy(), references.label_heads(chosen))
        )

    def fid(
        self,
        images: Callable[[int, int], Iterable],
        space: Callable,
        reference: tuple,
        label: str,
        cleanly: tuple[Callable, clean.Reference] | None = None,
    ) -> dict[str, float]:
        """{name: value} of the FID that is comparable with published values, in blocks as set by `evaluate.fid`.

        Block b consists of the n images from number b n on. space: Inception's features. reference: (mean [D], covariance [D, D])
        or these and the root of the covariance. label: end of the metric's name. cleanly: clean-fid's feature space and reference;
        with it clean-fid's metrics of the first block are measured too, on the same images."""
        wanted = self.options["fid"]
        count, start = self.share(wanted["n"])
        number, own = count_name(wanted["n"]), slice(start, start + count)
        sample = clean.Sample(cleanly[0], clean.choose_for_kid(wanted["n"])[own]) if cleanly else None

        def block(index: int) -> Iterable:
            made = images(count, start + index * wanted["n"])
            return sample.watch(made) if sample and index == 0 else made

        found = fid.fid_of_blocks(block, space, reference, f"fid{number}_{label}", wanted["blocks"], self.team)
        return found | (sample.measure(cleanly[1], number, self.team) if sample else {})

    def fid_of_snapshot(
        self, images: Callable[[int, int], Iterable], space: Callable, reference: tuple, label: str
    ) -> dict[str, float]:
        """{name: value} of this FID for a snapshot, measured on its first `curve_n` images."""
        n = self.options["fid"]["curve_n"]
        return {
            f"fid{count_name(n)}_{label}": fid.fid_to_reference(images(*self.share(n)), space, reference, self.team)
        }


def nest(evaluations: dict[str, dict]) -> dict:
    """Metrics of evaluations, {digits/di/el/0: metrics}, as nested mappings for data/metrics-all.json."""
    nested: dict = {}
    for name, metrics in evaluations.items():
        place = nested
        for part in name.split("/"):
            place = place.setdefault(part, {})
        place |= metrics
    return nested
