# SPDX-License-Identifier: Apache-2.0
"""Steps and their recipes. The recipe of a step decides whether its outputs are stale.

A recipe is the canonical JSON of {step, versions, resolved parameters, digests of the recipes upstream}. It is
written to data/scratch/recipes/ when the Snakefile is read, copied by the step beside its first output as
`<output>.recipe`, and versioned with it. If both are equal, the outputs are fresh, whatever a checkout did to
mtimes. If they differ, the step runs; freshness.py tells Snakemake. This file imports nothing heavy.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from eldistill.files import canonical, digest
from eldistill.paths import SCRATCH
from eldistill.plan import records, versions
from eldistill.plan.identity import Source

WORDS = ("data", "teacher", "ensemble", "distil", "evaluate", "tables")
# Steps that are made again when somebody has edited an output: their numbers are what is read and published. An edit
# further up is reported only: a log.csv that was opened and saved must not cost a week of training.
REMADE = ("evaluate", "tables")

# What a step makes, and the word that makes it. A conversion is a teacher that others trained, in our form; `reals` and `samples`
# are the reference runs of an evaluation: held-out images, and images of the teacher.
KINDS = {
    "download": "data", "images": "data", "judge": "data", "reference": "data", "moments": "data",
    "teacher": "teacher", "conversion": "teacher", "check": "teacher", "pairs": "teacher",
    "ensemble": "ensemble", "run": "distil",
    "evaluation": "evaluate", "reals": "evaluate", "samples": "evaluate", "metrics": "evaluate",
    "tables": "tables", "study": "tables",
}  # fmt: skip
TRAINED = {"teacher", "run"}  # several processes can share their batches
MEASURED = {"evaluation", "reals", "samples"}  # several processes can share their images
ON_GPU = TRAINED | MEASURED | {"moments", "check", "pairs"}  # their rules ask for a GPU


@dataclass(frozen=True)
class Step:
    """One thing to make. word: its step. name: what the command line calls it. outputs: the first carries the recipe.

    kept: steps upstream whose results this one reads from the suite's file of kept results (kept.py), so that nothing has to make
    them; for the recipe they count like the others. kept_lines: {run: sha256 of its line there}, and kept_here: a function from a run
    to the sha256 that a line of its results on the disk would have, or None if they are not there.
    after: what must have been made before, and decides nothing about this. on_demand: made only for a step that runs and
    waits for it, never for its own sake: a download. sources: what is read from outside git, and identities: a function
    that gives {name: identity} of it; it is asked when the recipe is.
    """

    word: str
    name: str
    modules: tuple[str, ...]
    params: dict
    outputs: tuple[str, ...]
    upstream: tuple[Step, ...] = field(default=())
    after: tuple[Step, ...] = field(default=())
    on_demand: bool = False
    sources: tuple[Source, ...] = field(default=())
    identities: Callable[[tuple[Source, ...]], dict] = field(default=lambda sources: {}, compare=False, repr=False)
    kept: tuple[Step, ...] = field(default=())
    kept_lines: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    kept_here: Callable[[str], str | None] = field(default=lambda run: None, compare=False, repr=False)
    # What kind of thing it makes, for which data setting, and which one of its kind: none of this is in the recipe's text.
    kind: str = field(default="", compare=False)  # a name in KINDS
    data: str = field(default="", compare=False)  # of a teacher, a download and a suite it is empty
    item: str = field(
        default="", compare=False
    )  # letter of a judge, space of a reference, row of a download, name of a study

    @property
    def role(self) -> str:
        """The role of this step as an input of others: its kind, with the letter of a judge or the space of a reference."""
        kind = "teacher" if self.kind == "conversion" else self.kind
        return f"{kind}-{self.item}" if kind in ("judge", "reference") else kind

    @functools.cached_property
    def inputs(self) -> dict[str, tuple[Step, ...]]:
        """The steps upstream by their roles, such as {"images": …, "teacher": …, "judge-a": …}."""
        return by_role(self.upstream)

    @functools.cached_property
    def recipe(self) -> str:
        """Canonical JSON, one line."""
        value = {
            "step": self.word,
            "name": self.name,
            "versions": {
                module: versions.version_of(module) for each in self.modules for module in (each, *versions.uses(each))
            },
            "params": self.params,
            "upstream": {f"{step.word} {step.name}": step.digest for step in (*self.upstream, *self.kept)},
        }
        # Without sources the key is omitted, so that recipes from before there were sources remain valid.
        if identities := self.identities(self.sources):
            value["sources"] = identities
        return canonical(value)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of the recipe: the identity of this result."""
        return digest(self.recipe)

    @property
    def file(self) -> str:
        """Path of the recipe that params.yaml asks for; the Snakefile writes it."""
        return f"{SCRATCH}/recipes/{self.word}/{self.name}.json"

    @property
    def sidecar(self) -> str:
        """Path of the recipe that the outputs were made by; the step writes it."""
        return f"{self.outputs[0]}.recipe"

    @property
    def token(self) -> str:
        """Path of the file that tells Snakemake whether this step is stale; freshness.py writes it."""
        return f"{SCRATCH}/recipes/{self.word}/{self.name}.stale"

    @property
    def record(self) -> str:
        """Path of the record of the outputs' sizes and digests, in a folder that DVC tracks."""
        first = self.outputs[0]
        return f"{first if first.count('/') > 1 else first.replace('data/', 'data/evaluations/')}.made"

    def changed(self, root: Path) -> list[str]:
        """Outputs that somebody has changed since this step made them."""
        return records.changed_outputs(root, self.record, self.digest)

    def read_otherwise(self, root: Path) -> list[str]:
        """Runs whose kept results are no longer those that this step read when it made its outputs."""
        other = records.other_lines(root, self.record, self.digest, self.kept_lines) if self.kept_lines else {}
        # What is on the disk is read in place of a line, so a table that was made of it is not concerned by another line.
        return [run for run, sha256 in other.items() if self.kept_here(run) != sha256]

    def fresh(self, root: Path) -> bool:
        """Whether all outputs are there and were made by this recipe; those of REMADE steps must be unchanged too, and from the kept
        results that are there now."""
        return self.made(root, self.outputs) and not self.read_otherwise(root)

    def made(self, root: Path, outputs: tuple[str, ...]) -> bool:
        """Whether these outputs are there and were made by this recipe; no output of a REMADE step may have been changed."""
        try:
            with open(os.path.join(root, self.sidecar), encoding="utf-8") as file:
                same = file.read() == self.recipe
        except (OSError, UnicodeDecodeError):
            return False
        complete = same and all(os.path.exists(os.path.join(root, output)) for output in outputs)
        return complete and not (self.word in REMADE and self.changed(root))

    def walk(self, kept: bool = False) -> Iterator[Step]:
        """This step and all upstream, upstream first, with repetitions. kept: also those whose results are read from a kept file."""
        for step in (*self.upstream, *(self.kept if kept else ()), *self.after):
            yield from step.walk(kept)
        yield self


def by_role(steps: Iterable[Step]) -> dict[str, tuple[Step, ...]]:
    """Steps by their roles, in their order."""
    found: dict[str, tuple[Step, ...]] = {}
    for step in steps:
        found[step.role] = (*found.get(step.role, ()), step)
    return found
