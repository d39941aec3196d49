# SPDX-License-Identifier: Apache-2.0
"""Generated images → features → metrics. Features come from any iterable of uint8 images; metrics are arithmetic on them.

A metric's name carries what it is: `fd5k_judge-a_heldout` is the Fréchet distance of 5,000 images to the held-out
images in the features of judge-a. The metrics themselves: metrics.py; the real images: references.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from eldistill.evaluate import clean, fid, references
from eldistill.evaluate.features import embed_all
from eldistill.evaluate.metrics import count_name, measure, measure_labelled
from eldistill.training.processes import Alone, Processes

RECIPE = ("evaluate", 2)  # precision and recall take images evenly, not the first ones


@dataclass(frozen=True)
class Evaluator:
    """Feature spaces, their references {space: {train, heldout}}, the options of `evaluate`, how many images at once, and
    the processes that share them. Images come from functions of (count, first) that give uint8 chunks."""

    spaces: dict[str, Callable]
    references: dict[str, dict]
    options: dict
    batch: int = 250
    team: Alone | Processes = field(default_factory=Alone)

    def share(self, n: int) -> tuple[int, int]:
        """How many of n images are this process's, and the first of them: whole chunks, in the order of ranks, so that the
        images that meet in a chunk are the same for one process and for many."""
        rows = self.team.rows(n, max(1, min(self.batch, n // self.team.size)))
        return rows.stop - rows.start, rows.start

    def measure(
        self, images: Callable[[int, int], Iterable], n: int, names=None, spaces=None, asked=None
    ) -> dict[str, float]:
        """The metrics of n generated images in all spaces, or in those named, in one pass; nothing in processes but the first.

        asked: the class of each image, int64 [n], of a conditional generator; then those of LABELLED too."""
        chosen = {name: space for name, space in self.spaces.items() if spaces is None or name in spaces}
        count, first = self.share(n)
        most = {name: few - first for name, few in self.options.get("n_of", {}).items()}
        features = embed_all(images(count, first), chosen, most)
        features = {name: self.team.gather_of(each) for name, each in features.items()}
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
        """The FID that compares with published ones, as `evaluate.fid` asks for it: block b has images b n and on.

        cleanly: clean-fid's feature space and reference, for its figures of the first block, whose images are made once."""
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
        """The same of a snapshot: one number, of its first `curve_n` images."""
        n = self.options["fid"]["curve_n"]
        return {
            f"fid{count_name(n)}_{label}": fid.fid_to_reference(images(*self.share(n)), space, reference, self.team)
        }


def nest(evaluations: dict[str, dict]) -> dict:
    """{digits/di/el/0: metrics} as nested mappings, for data/metrics-all.json."""
    nested: dict = {}
    for name, metrics in evaluations.items():
        place = nested
        for part in name.split("/"):
            place = place.setdefault(part, {})
        place |= metrics
    return nested
