# SPDX-License-Identifier: Apache-2.0
"""The plan of a project: finds every step by its name, lists the steps of a suite, and makes those of `evaluate` and `tables`."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

from eldistill.errors import Problem, quoted
from eldistill.external.sources import AUTOENCODER, TABLE, source_row
from eldistill.paths import STUDY_ENDINGS, TABLES
from eldistill.plan import called, questions
from eldistill.plan import kept as keeping
from eldistill.plan.datasets import row_of
from eldistill.plan.models import PlanOfModels
from eldistill.plan.rates import arm_rates
from eldistill.plan.recipes import MEASURED, Step
from eldistill.plan.related import related_spaces
from eldistill.plan.run import Run
from eldistill.plan.schema import refuse_unknown
from eldistill.plan.versions import literal_of, metric_names
from eldistill.registry import readers, spaces


class Plan(PlanOfModels):
    """All steps of a project. Each is made from the parameters when it is first needed.

        plan = Plan(parameters)
        step = plan.find("distil", "digits/di/el/0")
        assert "data/runs/digits/di/el/0/log.csv" in step.outputs
        assert ("distil", "digits/di/el/0") in plan.suite("demo")

    Args:
        params: the parameters that eldistill.plan.params reads from params.yaml.
        identities: digests of files outside git; by default those that data/sources.lock.csv records.

    Its functions raise Problem for a name that params.yaml does not define.
    """

    # --- evaluate, tables ---

    def _evaluation(
        self, kind: str, name: str, data: str, extra: dict, upstream: tuple[Step, ...], outputs: tuple[str, ...]
    ) -> Step:
        section = self.params.without_site("evaluate", self.params.top("evaluate", data))
        params = {
            **section,
            **extra,
            "codec": self.data(data)["codec"],
            "threads": self.threads,
            "metrics": metric_names(self.data(data)["labels"]),
        }
        references = tuple(self.reference(data, features) for features in section["features"])
        judges = tuple(step for each in references for step in each.upstream if step.kind == "judge")
        # seen: the data setting whose pixels are compared, another than `data` for latents. modules: names in RECIPE, whose versions
        # enter the recipe. more, packs: modules and packed images that decide which classes are drawn; empty without labels.
        folder, seen = f"data/evaluations/{name}", self._seen(data)
        modules = ("evaluate", "metrics", "sampling", *(() if seen == data else ("latents",)))
        modules += ("guidance",) if "guidance" in extra else ()
        more, packs = self._labelled(data)
        if kind == "reals" and readers()[self.data(seen)["source"]].endings:
            params["by_name"] = True  # real images in the order of their files' names, which may be sorted by class
        if not packs:
            params.pop("classes", None)  # without labels no classes are drawn
        else:
            params["labels"] = True
            if seen != data and kind != "reals":
                upstream = (*upstream, *packs)  # classes are those of the train images, not of a part of their pixels
        modules += (*more, *(f"metrics/{name}" for name in section.get("extra_metrics", ())))
        fetched: list[str | None] = [*self._of_spaces(*section["features"])]
        if seen != data and not self.data(data)["codec"].get("vae"):
            fetched.append(AUTOENCODER)
        if wanted := section.get("fid"):
            fetched += [*self._of_spaces("inception"), row_of(wanted["reference"])]
            modules += ("fid", "spaces/inception")
            if not Path(wanted["reference"]).suffix:  # another version of the reference statistics gives other values
                params["fid"] = wanted | {
                    "version": source_row(wanted["reference"], self.params.root / TABLE)["version"]
                }
            if wanted.get("clean"):
                fetched += self._of_spaces("inception-clean")
                modules += ("clean", "spaces/inception_clean")
                references += (self.moments(data),)
        return self._step(kind, name, modules, params,
                    tuple(f"{folder}/{output}" for output in outputs), (*upstream, self.pack(seen), *judges, *references),
                    self._downloads(*fetched), data=data)  # fmt: skip

    @functools.cache  # noqa: B019
    def evaluation(self, run: Run) -> Step:
        """The metrics, the curve and the samples of a run."""
        outputs = ("metrics.json", "curve.csv", "samples.png", "interpolation.png", "sheet.html")
        grid = {"grid": self.params.top("tables")["grid"]}
        return self._evaluation("evaluation", str(run), run.data, grid, (self.distil(run),), outputs)

    @functools.cache  # noqa: B019
    def reference_run(self, data: str, which: str) -> Step:
        """The reference run of a data setting: the metrics of held-out images (`real`) or of the teacher's samples (`teacher`)."""
        grid, outputs = {"grid": self.params.top("tables")["grid"]}, ("metrics.json", "samples.png")
        if which == "real":
            return self._evaluation("reals", f"{data}/real", data, grid, (), outputs)
        name = self.data(data)["teacher"]
        guided, _, guide = self._guidance(name)
        extra = {"steps": self.params.section("teacher", name)["steps"], **grid, **guided}
        return self._evaluation("samples", f"{data}/teacher", data, extra, (self.teacher(name), *guide), outputs)

    def evaluations(self, suite: str) -> tuple[Step, ...]:
        """All evaluations of a suite, those of the reference runs of its data settings first."""
        return self._evaluations(list(self.params.runs(suite)))

    def _evaluations(self, runs: list[Run]) -> tuple[Step, ...]:
        reference_runs = [
            self.reference_run(data, which)
            for data in dict.fromkeys(run.data for run in runs)
            for which in ("real", "teacher")
        ]
        return (*reference_runs, *(self.evaluation(run) for run in runs))

    # --- kept results ---

    @functools.cache  # noqa: B019
    def kept(self, suite: str) -> dict[keeping.Key, keeping.Kept]:
        """The kept results of a suite by run and digest of the recipe of its evaluation. Raises Problem for a damaged file."""
        return keeping.read_kept(self.params.root / keeping.kept_file(suite))

    def _reading_kept(self, suite: str, step: Step) -> Step:
        # The same step, for which nothing need make the runs whose results are kept. Its recipe is the same.
        lines, there = dict[str, str](), self.kept(suite)
        for each in step.upstream:
            if each.kind in MEASURED and (line := there.get((each.name, each.digest))):
                lines[each.name] = line.sha256
        parts: dict[bool, list[Step]] = {True: [], False: []}
        for each in step.upstream:
            parts[each.name in lines and each.word in ("distil", "evaluate")].append(each)
        if not lines:
            return step
        kept = tuple(parts[True])
        here = functools.partial(keeping.sha256_here, kept, self.params.root)
        return dataclasses.replace(step, upstream=tuple(parts[False]), kept=kept, kept_lines=lines, kept_here=here)

    def kept_results(self, step: Step, suite: str) -> dict[str, keeping.Kept]:
        """{run: its kept results} of the runs that a step reads from the file of kept results, because they are not on the disk."""
        return {
            each.name: self.kept(suite)[each.name, each.digest]
            for each in keeping.only_kept(step.kept, self.params.root)
        }

    def _present(self, suite: str, runs: list[Run], partial: bool) -> tuple[list[Run], dict[str, dict]]:
        """The runs that a table is made of, and parameters that name those that are absent.

        They are all runs, and nothing is absent, unless the table is partial: then they are those that are kept, so that they do not
        depend on what lies on this machine. Raises Problem if none is."""
        if not partial:
            return runs, {}
        there = [run for run in runs if (str(run), self.evaluation(run).digest) in self.kept(suite)]
        if not there:
            raise Problem(
                f"none of the {len(runs)} runs of {suite} is made, or all were made with other numbers than params.yaml asks for; "
                f"`snakemake all --config suite={suite}` makes them"
            )
        made = set(there)
        absent = [str(run) for run in runs if run not in made]
        return there, {"partial": {"asked": len(runs), "missing": absent}} if absent else {}

    def _called(self, runs: list[Run]) -> dict[str, called.Notes]:
        # What variants among these runs change, for readers of the tables; no key where there are none.
        found = called.notes(self.params, runs)
        return {"called": found} if found else {}

    def partial(self, name: str) -> Step:
        """The tables of a suite (SUITE) or one study (SUITE/STUDY) from the runs that are kept. Raises Problem as `find` does."""
        self.find("tables", name)
        suite, _, study = name.strip("/").partition("/")
        return self.study(suite, study, partial=True) if study else self.tables(suite, partial=True)

    @functools.cache  # noqa: B019
    def metrics(self, suite: str) -> Step:
        """data/metrics.json: what `dvc metrics` shows of the suite; and data/metrics-all.json: every metric, nested."""
        datas = dict.fromkeys(run.data for run in self.params.runs(suite))
        params = {
            "suite": suite,
            "primary": {data: self.params.top("evaluate", data)["features"][0] for data in datas},
            "baseline": self.params.top("tables")["baseline"],
        }
        outputs = ("data/metrics.json", "data/metrics-all.json")
        return self._reading_kept(
            suite,
            self._step("metrics", f"suite/{suite}", ("evaluate", "summary"), params, outputs, self.evaluations(suite)),
        )

    @functools.cache  # noqa: B019
    def tables(self, suite: str, partial: bool = False) -> Step:
        """Tables and plots of a suite. partial: of the runs that are kept, as `_present` chooses them."""
        folder = f"data/tables/{suite}"
        runs, absent = self._present(suite, list(self.params.runs(suite)), partial)
        section = self.params.top("tables")
        params = {
            **{key: section[key] for key in ("confidence", "baseline", "grid")},
            "primary": questions.ranking_space(self.params, suite),
            "runs": list(map(str, runs)),
            **self._called(runs),
            "related": related_spaces(self.params, runs),
            **absent,
        }
        modules = (
            "tables",
            "typeset",
            "names",
            "plots",
            "results",
            "inference",
            "metrics",
            "published",
            "report",
            "across",
        )
        step = self._step(
            "tables",
            suite,
            (*modules, *(("partial",) if absent else ())),
            params,
            tuple(f"{folder}/{output}" for output in TABLES),
            (*self._evaluations(runs), *(self.distil(run) for run in runs)),
        )
        return self._reading_kept(suite, step)

    @functools.cache  # noqa: B019
    def study(self, suite: str, name: str, partial: bool = False) -> Step:
        """The table of one question, from the grids of the suite that name it. partial: of the runs that are kept, as `_present`
        chooses them."""
        runs, absent = self._present(suite, list(self.params.runs(suite, name)), partial)
        section = self.params.top("tables")
        params = {
            **section["studies"][name],
            **{key: section[key] for key in ("confidence", "tuning")},
            # {data setting: [its images, the feature space that ranks it]}; settings with the same images differ in their teacher.
            "beds": {
                data: [self._pack_name(data), self.params.top("evaluate", data)["features"][0]]
                for data in dict.fromkeys(run.data for run in runs)
            },
            "runs": list(map(str, runs)),
            **self._called(runs),
            "related": related_spaces(self.params, runs),
            **absent,
        }
        kind = literal_of("studies", "KINDS")[section["studies"][name]["kind"]]
        if literal_of(
            kind, "RATES", False
        ):  # the study compares learning rates: {METHOD/SUPPLEMENT: [method at rate 1, factor]}
            params["rates"] = arm_rates(self.params, runs)
        upstream = [each for run in runs for each in (self.evaluation(run), self.distil(run))]
        upstream += [
            self.reference_run(data, which)
            for data in dict.fromkeys(run.data for run in runs)
            for which in ("real", "teacher")
        ]
        if literal_of(kind, "NETWORKS", False):  # the study computes with the networks of the runs
            upstream += [each for run in runs for each in self.distil(run).upstream]
        outputs = tuple(f"data/tables/{suite}/{name}.{ending}" for ending in STUDY_ENDINGS)
        step = self._step(
            "study",
            f"{suite}/{name}",
            (
                "studies",
                kind,
                "names",
                "inference",
                "plots",
                "results",
                "report",
                "across",
                *(("partial",) if absent else ()),
            ),
            params,
            outputs,
            tuple({(step.word, step.name): step for step in upstream}.values()),
            item=name,
        )
        # The networks of a run are not kept.
        return step if literal_of(kind, "NETWORKS", False) else self._reading_kept(suite, step)

    def studies(self, suite: str) -> tuple[Step, ...]:
        """The studies of a suite, in the order in which its grids name them."""
        return tuple(self.study(suite, name) for name in self.params.studies(suite))

    # --- lookup ---

    def suite(self, suite: str, kept: bool = False) -> dict[tuple[str, str], Step]:
        """Every step that a suite needs, by (word, name), upstream first. kept: also those of runs whose results are kept."""
        lasts = (self.metrics(suite), self.tables(suite), *self.studies(suite))
        return {(step.word, step.name): step for last in lasts for step in last.walk(kept)}

    def find(self, word: str, name: str) -> Step:
        """The step that the command line calls `word name`. Raises Problem that lists the known names."""
        parts = name.strip("/").split("/")
        data = self.params.values["data"]
        if word == "tables" and len(parts) <= 2:
            list(self.params.runs(parts[0]))
            if len(parts) == 2:
                if not (there := self.params.studies(parts[0])):
                    raise Problem(
                        f"the suite {parts[0]} has no studies; `python -m eldistill tables {parts[0]}` makes its tables"
                    )
                if parts[1] not in there:
                    refuse_unknown(f"study of {name}", parts[1], there, "")
                return self.study(parts[0], parts[1])
            return self.tables(parts[0])
        if word == "teacher":
            if len(parts) == 2 and (found := re.fullmatch(r"pairs-(\d+)-(\d+)", parts[1])):
                self.params.section("teacher", parts[0], where="teacher on the command line")
                return self.pairs(parts[0], int(found[1]), int(found[2]))
            self.params.section("teacher", parts[0], where="teacher on the command line")
            if len(parts) == 2 and parts[1] != "check":
                refuse_unknown(f"the end of {name} on the command line", parts[1], ("check", "pairs-COUNT-SEED"), "")
            if len(parts) <= 2:
                return self.check(parts[0]) if len(parts) == 2 else self.teacher(parts[0])
        if word == "evaluate" and parts[0] == "suite" and len(parts) == 2:
            list(self.params.runs(parts[1]))
            return self.metrics(parts[1])
        if word == "distil" or (word == "evaluate" and len(parts) == 4):
            run = self.params.run(name, "")
            questions.check_run(self.params, run)
            return self.distil(run) if word == "distil" else self.evaluation(run)
        if word == "data" and parts[0] == "download" and len(parts) == 2:
            return self.download(parts[1])
        if word in ("data", "ensemble", "evaluate") and parts[0] not in data:
            refuse_unknown(f"data of {name}", parts[0], data, "")
        if word == "evaluate" and len(parts) == 2 and parts[1] in ("real", "teacher"):
            return self.reference_run(parts[0], parts[1])
        if word == "ensemble" and len(parts) == 3 and parts[2].isdecimal():
            self.params.section("ensemble", parts[1], where="ensemble on the command line")
            return self.ensemble(parts[0], parts[1], int(parts[2]))
        if word == "data" and len(parts) == 2:
            if parts[1] == "images":
                return self.pack(parts[0])
            if parts[1] == "moments-clean":
                return self.moments(parts[0])
            if parts[1] in ("judge-a", "judge-b"):
                return self.judge(parts[0], parts[1][-1])
            if parts[1].startswith("reference-") and parts[1].removeprefix("reference-") in spaces():
                return self.reference(parts[0], parts[1].removeprefix("reference-"))
            known = ("images", "moments-clean", "judge-a", "judge-b", *(f"reference-{each}" for each in spaces()))
            refuse_unknown(f"the end of {name} on the command line", parts[1], known, "")
        raise Problem(
            f"{quoted(name)} is not a name that the step `{word}` knows; type `python -m eldistill {word} --help` for its names"
        )
