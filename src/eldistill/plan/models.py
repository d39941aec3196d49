# SPDX-License-Identifier: Apache-2.0
"""Steps of the words `teacher`, `ensemble` and `distil`, as a plan makes them."""

from __future__ import annotations

import functools

from eldistill.external.sources import TABLE, source_row
from eldistill.plan import guidance, versions
from eldistill.plan.datasets import PlanOfData, row_of
from eldistill.plan.rates import method_of
from eldistill.plan.recipes import Step
from eldistill.plan.run import Run
from eldistill.registry import literal, spaces

# What reads the networks of others (src/eldistill/teacher/), and the networks that it can find in a file.
READERS = {"pickles": ("adm", "edm2", "song"), "states": ("guided",), "folders": ("ddpm",)}
# Networks that came later. Their first version is omitted, so that recipes from before they existed remain valid.
LATER = {"pickles": ("baselines",)}


class PlanOfModels(PlanOfData):
    """The part of a Plan that knows teachers, ensembles and runs."""

    @functools.cache  # noqa: B019
    def teacher(self, name: str) -> Step:
        """A teacher that we train, or that a file holds; of a guided one the teacher that is guided."""
        if (main := guidance.main_name(self.params, name)) != name:
            return self.teacher(main)
        section = self.params.without_site("teacher", self.params.section("teacher", name))
        data = self.data(section["data"])
        for key in ("steps", "check"):  # of sampling, not of training
            section.pop(key)
        folder = f"data/teachers/{name}"
        outputs = (f"{folder}/teacher.safetensors", f"{folder}/log.csv", f"{folder}/provenance.json")
        if section.get("source") or section.get("file"):
            # Where the file of a published network lies makes no other teacher of it.
            identity = ("source", "sha256") if section.get("source") else ("file", "sha256")
            params = {key: section[key] for key in identity if key in section}
            params |= {"codec": data["codec"], "labels": data["labels"]}
            if section.get("source"):  # another version of the row is another network
                row = source_row(section["source"], self.params.root / TABLE)
                params["version"] = row["version"]
            if section.get("state") is not None:
                params["state"] = section["state"]
            # Which network it is stands in the file, so all count that it can hold: of a row its ending says which.
            readers: dict[str, tuple[str, ...]] = READERS
            if section.get("source"):
                readers = {key: READERS[key] for key in ("states" if row["url"].endswith(".pt") else "pickles",)}
            read = [f"teacher/{reader}" for reader in readers]
            read += [f"networks/{file}" for files in readers.values() for file in files]
            later = [f"networks/{file}" for reader in readers for file in LATER.get(reader, ())]
            read += [name for name in later if versions.version_of(name) > 1]
            fetched = None if self.params.section("teacher", name)["file"] else section.get("source")
            return self._step(
                "conversion", name, ("teacher/convert", *read), params, outputs, after=self._downloads(fetched)
            )
        params = {**section, "codec": data["codec"], "labels": data["labels"], "threads": self.threads}
        modules = ("teacher/train", "loop", f"networks/{section['network'].get('network', 'song')}")
        return self._step("teacher", name, modules, params, outputs, (self.pack(section["data"]),))

    def _guidance(self, name: str) -> tuple[dict, tuple[str, ...], tuple[Step, ...]]:
        """What steps that evaluate a teacher have in addition if it is guided: parameters, names in RECIPE, and its guide."""
        if (found := guidance.guidance_of(self.params, name)) is None:
            return {}, (), ()
        guide = () if found["guide"] is None else (self.teacher(found["guide"]),)
        return {"guidance": found}, ("guidance",), guide

    @functools.cache  # noqa: B019
    def check(self, name: str) -> Step:
        """The samples of a teacher, measured before anything is distilled from it."""
        section = self.params.section("teacher", name)
        row = source_row(section["source"], self.params.root / TABLE) if section["source"] else {}
        params = section["check"]
        reference = params["reference"] or row.get("reference")
        features = params["features"] or ("inception" if reference else "judge-a")
        if features != "inception":
            reference = None
        params |= {"steps": section["steps"], "features": features, "reference": reference, "published": row.get("published", ""),
                   "n": params["n"] or (50_000 if reference else 1_000), "threads": self.threads}  # fmt: skip
        measured = () if reference else (self.reference(section["data"], features),)
        judges = tuple(step for each in measured for step in each.upstream if step.kind == "judge")
        later = [name for name in ("metrics", "fid") if versions.version_of(name) > 1]  # as in `reference`
        modules = (
            "teacher/check",
            "sampling",
            "evaluate",
            versions.recipe_name(f"spaces/{spaces()[features]}"),
            *later,
        )
        guided, by, guide = self._guidance(name)
        more, packs = ((), ()) if reference else self._labelled(section["data"])
        output = f"data/teachers/{name}/check.json"
        fetched = self._downloads(*self._of_spaces(features), row_of(reference))
        return self._step(
            "check",
            f"{name}/check",
            (*modules, *by, *more),
            params | guided,
            (output,),
            (self.teacher(name), *guide, *packs, *judges, *measured),
            fetched,
        )

    @functools.cache  # noqa: B019
    def pairs(self, teacher: str, n: int, seed: int) -> Step:
        """Noises and the teacher's images of them, for the supplement `regression`."""
        made, section = self.teacher(teacher), self.params.section("teacher", teacher)
        params = {"n": n, "seed": seed, "steps": section["steps"], "threads": self.threads}
        stem, (more, packs) = f"{teacher}/pairs-{n}-{seed}", self._labelled(section["data"])
        guided, by, guide = self._guidance(teacher)
        outputs = (f"data/teachers/{stem}.npz",)
        return self._step(
            "pairs", stem, ("teacher/pairs", *by, *more), params | guided, outputs, (made, *guide, *packs)
        )

    @functools.cache  # noqa: B019
    def ensemble(self, data: str, name: str, seed: int) -> Step:
        """An ensemble drawn from its seed and calibrated on a data setting."""
        section = self.params.without_site("ensemble", self.params.section("ensemble", name))
        setting = self.data(data)
        params = {**section, "codec": setting["codec"], "seed": seed}
        families = sorted({f"ensemble/{member['family']}" for member in section["members"]})
        taught = any(literal(family, "TEACHER", False) for family in families)
        teacher = (self.teacher(setting["teacher"]),) if taught else ()
        stem = f"data/ensembles/{data}/{name}/{seed}"
        modules = ("ensemble/seed", *families, *(("ensemble/anchors",) if section.get("anchor") else ()))
        return self._step("ensemble", f"{data}/{name}/{seed}", modules, params,
                    (f"{stem}.json", f"{stem}.npz"), (self.pack(data), *teacher), data=data)  # fmt: skip

    @functools.cache  # noqa: B019
    def distil(self, run: Run) -> Step:
        """A run: teacher to generator."""
        method = self.params.without_site("method", method_of(self.params, run))
        supplements = {
            name: self.params.without_site("supplement", self.params.section("supplement", name, run.data))
            for name in run.supplements
        }
        data, top = self.data(run.data), self.params.without_site("distil", self.params.top("distil"))
        params = {
            "method": method,
            "supplements": supplements,
            "data": {key: data[key] for key in ("codec", "labels")},
            "seed": run.seed,
            "threads": self.threads,
            **{key: top[key] for key in ("snapshots", "ticks")},
        }
        ensembles = [
            self.ensemble(
                run.data, each["ensemble"], run.seed if each.get("ensemble_seed") is None else each["ensemble_seed"]
            )
            for each in supplements.values()
            if each.get("ensemble")
        ]
        guided, by, guide = self._guidance(data["teacher"])
        params |= guided
        modules: tuple[str, ...] = (
            "distil",
            "loop",
            f"methods/{method['file']}",
            *(f"supplements/{s['file']}" for s in supplements.values()),
            *by,
            *(("student",) if method.get("generator_network") else ()),
        )
        pairs = [
            self.pairs(data["teacher"], each["pairs"], each.get("pairs_seed", 0))
            for each in supplements.values()
            if each.get("pairs")
        ]
        start = method["start_from"]
        before = (self.distil(self.params.run(f"{run.data}/{start}/{run.seed}")),) if start else ()
        upstream = (self.pack(run.data), self.teacher(data["teacher"]), *guide, *ensembles, *pairs, *before)
        return self._step("run", str(run), tuple(dict.fromkeys(modules)), params, self.run_outputs(f"data/runs/{run}"), upstream,
                    (self.check(data["teacher"]),), data=run.data)  # fmt: skip

    def run_outputs(self, folder: str) -> tuple[str, ...]:
        """The files of a run; one copy of generator_ema for each share of the training in distil.snapshots."""
        snapshots = [
            f"{folder}/ema-{percent}.safetensors" for percent in sorted(self.params.top("distil")["snapshots"])
        ]
        return (f"{folder}/generator_ema.safetensors", *snapshots, f"{folder}/log.csv", f"{folder}/provenance.json")
