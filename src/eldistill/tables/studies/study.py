# SPDX-License-Identifier: Apache-2.0
"""The input of a study: the results of its runs, its section of params.yaml, and the logs of the trainings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eldistill.errors import Problem
from eldistill.plan.kept import Kept
from eldistill.tables.results import Result, named
from eldistill.tables.studies.last import mean_of_last

COVERED_BY = "results"


@dataclass(frozen=True)
class Study:
    """The input of a study. params["beds"] is {data setting: [name of its data set, feature space that ranks it]}."""

    results: list[Result]
    params: dict  # its section of params.yaml, with `confidence`, `tuning` and `beds`
    logs: dict[str, list[dict[str, str]]]  # {run: rows of its training log}
    root: Path = Path()  # folder with data/runs
    lines: Mapping[str, Kept] = field(default_factory=dict)  # {run: its kept results} of runs that are not there

    def metric(
        self, result: Result, metric: str = "fd", space: str | None = None, part: str = "heldout"
    ) -> float | None:
        """The value of a metric of a run; None if it was not measured. space: None means the primary one.

        A Fréchet distance is the mean over as many of the last snapshots as the key `last` of the study says. Raises Problem if a
        curve has fewer."""
        if metric == "fd" and self.last > 1:
            return mean_of_last(result, self.last, space or self.primary(result), part)
        return self.at_end(result, metric, space, part)

    @property
    def last(self) -> int:
        """The number of the last snapshots over whose mean distances are compared; 1 compares those at the end."""
        last: int = self.params.get("last", 1)
        return last

    def at_end(
        self, result: Result, metric: str = "fd", space: str | None = None, part: str = "heldout"
    ) -> float | None:
        """The value of a metric at the end of a run; None if it was not measured. Arguments as of `metric`."""
        name = named(result.metrics, metric, space or self.primary(result), part)
        return None if name is None else result.metrics[name]

    def primary(self, result: Result) -> str:
        """The feature space that ranks a run."""
        return self.params["beds"][result.arm[0]][1]

    def spaces(self) -> list[str]:
        """The feature spaces in which the distances of all runs are known; those that rank come first."""
        return [
            space
            for space in self._every_space()
            if all(self.metric(result, space=space) is not None for result in self.results)
        ]

    def without_curves(self) -> list[str]:
        """The feature spaces that all runs have at their end, but not in their curves, although the study needs these."""
        every = [space for space in self._every_space() if space not in self.spaces()]
        return [
            space for space in every if all(self.at_end(result, space=space) is not None for result in self.results)
        ]

    def _every_space(self) -> list[str]:
        found = (re.fullmatch(r"fd\d+k?_(.+)_heldout", name) for name in self.results[0].metrics)
        return list(dict.fromkeys([*map(self.primary, self.results), *(match[1] for match in found if match)]))

    def curve(self, result: Result) -> list[tuple[int, float]]:
        """The curve of a run: (iteration, distance to held-out images in the primary space)."""
        return result.distances(self.primary(result), "heldout")

    def ranking(self, results: list[Result] | None = None) -> list[str]:
        """The names of the metrics that rank these runs, or all runs; there are several if numbers of images differ."""
        chosen = self.results if results is None else results
        places = ((r.curve[0] if self.last > 1 else r.metrics, self.primary(r)) for r in chosen)
        return list(dict.fromkeys(named(place, "fd", space, "heldout") for place, space in places))

    def split(self) -> list[tuple[str, Study]]:
        """One study for each data set, which may have several data settings. Raises Problem if two spaces rank the same data set."""
        beds: dict[str, list[Result]] = {}
        for result in self.results:
            beds.setdefault(self.params["beds"][result.arm[0]][0], []).append(result)
        for name, results in beds.items():
            if len(first := sorted({self.primary(result) for result in results})) > 1:
                raise Problem(f"the settings of {name} are ranked by {' and '.join(first)}; in one study they need the same "
                              "first name in evaluate.features")  # fmt: skip
        return [(name, dataclasses.replace(self, results=results)) for name, results in beds.items()]

    def logged(self, result: Result, number: str, of: str | None = None) -> list[float]:
        """The values of a logged number in the second half of a run. of: the loss or network that logged it; None means the supplement."""
        rows = self.logs[result.run]
        ending = f".{number}" if of is None else f"{of}.{number}"
        names = [name for name in rows[0] if name.endswith(ending)] if rows else []
        values = [float(row[names[0]]) for row in rows if row.get(names[0])] if names else []
        return values[len(values) // 2 :]
