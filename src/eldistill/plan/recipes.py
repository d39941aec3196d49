# SPDX-License-Identifier: Apache-2.0
"""What decides whether an output is stale: its recipe.

A recipe is the canonical JSON of {step, versions, resolved parameters, digests of the recipes upstream}. It is
written to data/scratch/recipes/ when the Snakefile is read, copied by the step beside its first output as
`<output>.recipe`, and versioned with it. Equal: fresh for ever, whatever a checkout did to mtimes. Different:
the step runs; freshness.py says how Snakemake is told. This file imports nothing heavy.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from eldistill.errors import Problem
from eldistill.external.sources import AUTOENCODER, TABLE, published, source
from eldistill.files import canonical, digest
from eldistill.paths import SCRATCH, TABLES
from eldistill.plan import records, versions
from eldistill.plan.identity import Identities, Source, named
from eldistill.plan.params import Params, Run
from eldistill.registry import literal, spaces

# What reads the networks of others (src/eldistill/teacher/), and the networks that it can find in a file.
READERS = {"pickles": ("adm", "edm2", "song"), "states": ("guided",), "folders": ("ddpm",)}
IDX_PARTS = ("train-images", "train-labels", "test-images", "test-labels")  # rows of a data set, behind its `files`
PICTURE_KEYS = ("background", "orientation", "bits")  # of a data setting whose source is a folder: see pictures.py
WORDS = ("data", "teacher", "ensemble", "distil", "evaluate", "tables")
# Steps that are made again when somebody has edited an output: their numbers are what is read and published. An edit
# further up is reported only: a log.csv that was opened and saved must not cost a week of training.
REMADE = ("evaluate", "tables")


def _row_of(reference: str | None) -> str | None:
    """The row of data/sources.csv that reference statistics are; None for a file of the user."""
    return reference if reference and not Path(reference).suffix else None


@dataclass(frozen=True)
class Step:
    """One thing to make. word: its step. name: what the command line calls it. outputs: the first carries the recipe.

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

    @functools.cached_property
    def recipe(self) -> str:
        """Canonical JSON, one line."""
        value = {
            "step": self.word,
            "name": self.name,
            "versions": {
                module: versions.version(module) for each in self.modules for module in (each, *versions.uses(each))
            },
            "params": self.params,
            "upstream": {f"{step.word} {step.name}": step.digest for step in self.upstream},
        }
        # A step that reads nothing from outside has the recipe that it always had.
        if identities := self.identities(self.sources):
            value["sources"] = identities
        return canonical(value)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of the recipe: the identity of this result."""
        return digest(self.recipe)

    @property
    def file(self) -> str:
        """Where the Snakefile puts the recipe that is wanted."""
        return f"{SCRATCH}/recipes/{self.word}/{self.name}.json"

    @property
    def sidecar(self) -> str:
        """Where the step puts the recipe it followed."""
        return f"{self.outputs[0]}.recipe"

    @property
    def token(self) -> str:
        """What tells Snakemake whether this step is stale: freshness.py writes it."""
        return f"{SCRATCH}/recipes/{self.word}/{self.name}.stale"

    @property
    def record(self) -> str:
        """What the files were when the step had made them; inside a folder that DVC keeps."""
        first = self.outputs[0]
        return f"{first if first.count('/') > 1 else first.replace('data/', 'data/evaluations/')}.made"

    def changed(self, root: Path) -> list[str]:
        """Outputs that somebody has changed since this step made them."""
        return records.changed(root, self.record, self.digest)

    def fresh(self, root: Path) -> bool:
        """Whether all outputs are there and were made by this recipe; those of REMADE steps must be unchanged too."""
        try:
            with open(os.path.join(root, self.sidecar), encoding="utf-8") as file:
                same = file.read() == self.recipe
        except OSError:
            return False
        complete = same and all(os.path.exists(os.path.join(root, output)) for output in self.outputs)
        return complete and not (self.word in REMADE and self.changed(root))

    def walk(self) -> Iterator[Step]:
        """This step and all upstream, upstream first, with repetitions."""
        for step in (*self.upstream, *self.after):
            yield from step.walk()
        yield self


class Plan:
    """Every step of a project, made on demand from its Params.

    identities: of what lies outside git; those that data/sources.lock.csv records unless others are given.
    """

    def __init__(self, params: Params, identities: Identities | None = None):
        self.params = params
        self.threads = params.top("threads")
        self.identities = identities or Identities()

    def _step(self, word, name, modules, params, outputs, upstream=(), after=(), sources=()) -> Step:
        # What its parameters name outside git is part of every step.
        sources = tuple(sorted({*named(params), *sources}))
        return Step(word, name, modules, params, outputs, upstream, after, False, sources, self.identities)

    # --- data ---

    @functools.cache  # noqa: B019
    def download(self, name: str) -> Step:
        """The file of a row of data/sources.csv: fetched, its digest checked, kept in the store. Its output is a link there."""
        source(name, self.params.root / TABLE)
        (row,) = published((name,), self.params.root / TABLE)
        params = {key: row[key] for key in ("url", "version", "sha256")}
        return Step("data", f"download/{name}", (), params, (f"{SCRATCH}/downloads/{name}/file",), on_demand=True)

    def _downloads(self, *names: str | None) -> tuple[Step, ...]:
        return tuple(self.download(name) for name in dict.fromkeys(filter(None, names)))

    def _of_spaces(self, *features: str) -> list[str]:
        # What feature spaces say themselves that they read.
        modules = (spaces()[name] for name in features)
        return [name for module in modules if module for name in literal(f"spaces/{module}", "DOWNLOADS", ())]

    def data(self, name: str) -> dict:
        """A data setting, resolved, without what only describes a machine."""
        return self.params.without_site("data", self.params.section("data", name))

    def _pack_params(self, name: str) -> dict:
        data = self.data(name)
        return {
            key: data[key]
            for key in ("source", "files", "path", "resolution", "crop", "heldout", "limit", "count", *PICTURE_KEYS)
            if key in data
        }

    def _pack_name(self, name: str) -> str:
        # Settings that are `like` another and read the same images share its packed file.
        while (like := self.params.values["data"][name].get("like")) and self._pack_params(like) == self._pack_params(
            name
        ):
            name = like
        return name

    @functools.cache  # noqa: B019  (a plan lives as long as the program)
    def pack(self, data: str) -> Step:
        """The packed images of a data setting."""
        name = self._pack_name(data)
        output = f"data/sets/{name}/images.safetensors"
        more = {"cifar10": ("teacher/pickles",), "latents": ("latents", "folders"), "folder": ("folders", "pictures")}
        modules = ("data", "labels", *more.get(self.data(name)["source"], ()))
        params = self._pack_params(name)
        wanted = () if self.folder(name) else self._fetched(name)
        return self._step(
            "data",
            f"{name}/images",
            modules,
            params,
            (output,),
            after=self._downloads(*wanted),
            sources=self._idx(name),
        )

    def _fetched(self, name: str) -> tuple[str, ...]:
        # Rows of data/sources.csv that a pack is made of.
        data = self.data(name)
        if data["source"] == "idx":
            return tuple(f"{data['files']}-{part}" for part in IDX_PARTS)
        return ("cifar-10-python",) if data["source"] == "cifar10" and not data["path"] else ()

    def folder(self, pack: str) -> str | None:
        """Where files lie that `data PACK/images` would fetch. Settings that share a pack may know different folders: any of
        them will do."""
        sharing = (name for name in self.params.values["data"] if self._pack_name(name) == pack)
        return next(filter(None, (self.params.section("data", name)["folder"] for name in sharing)), None)

    def _idx(self, name: str) -> tuple[Source, ...]:
        # IDX files of a folder, where data/sources.csv does not say what they must be.
        files = self.data(name)["files"]
        if self.data(name)["source"] != "idx":
            return ()
        rows = published(tuple(f"{files}-{part}" for part in IDX_PARTS), self.params.root / TABLE)
        if all(row["sha256"] for row in rows):
            return ()
        names = tuple(row["url"].rsplit("/", 1)[-1] for row in rows)
        return (Source(files, "idx", self.folder(name) or "", names),)

    def _seen(self, data: str) -> str:
        # The data setting of the pixels with which generated images are compared.
        return self.data(data).get("pixels") or data

    @functools.cache  # noqa: B019
    def judge(self, data: str, letter: str) -> Step:
        """An evaluation classifier (a or b); of latents that of their pixels."""
        data = self._seen(data)
        pack, setting = self.pack(data), self.data(data)
        params = {"codec": setting["codec"], "judges": setting["judges"], "threads": self.threads}
        output = f"data/sets/{data}/judge-{letter}.safetensors"
        return self._step(
            "data", f"{data}/judge-{letter}", ("judges", "loop", "networks/classifier"), params, (output,), (pack,)
        )

    @functools.cache  # noqa: B019
    def reference(self, data: str, features: str) -> Step:
        """Features and their moments of the train and the held-out images; of latents those of their pixels."""
        data = self._seen(data)
        judge = (self.judge(data, features[-1]),) if features.startswith("judge-") else ()
        module = spaces()[features]
        modules = ("evaluate",) if module is None else ("evaluate", f"spaces/{module}")
        output = f"data/sets/{data}/reference-{features}.npz"
        return self._step("data", f"{data}/reference-{features}", modules, {}, (output,), (self.pack(data), *judge),
                    self._downloads(*self._of_spaces(features)))  # fmt: skip

    @functools.cache  # noqa: B019
    def moments(self, data: str) -> Step:
        """What clean-fid's figures compare with: the train images in its feature space; of latents those of their pixels."""
        data = self._seen(data)
        output = f"data/sets/{data}/moments-clean.npz"
        return self._step("data", f"{data}/moments-clean", ("clean", "spaces/inception_clean"), {}, (output,), (self.pack(data),),
                    self._downloads(*self._of_spaces("inception-clean")))  # fmt: skip

    # --- teacher, ensemble, distil ---

    @functools.cache  # noqa: B019
    def teacher(self, name: str) -> Step:
        """A teacher that we train, or that a file holds."""
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
                row = source(section["source"], self.params.root / TABLE)
                params["version"] = row["version"]
            if section.get("state") is not None:
                params["state"] = section["state"]
            # Which network it is stands in the file, so all count that it can hold: of a row its ending says which.
            readers = READERS
            if section.get("source"):
                readers = {key: READERS[key] for key in ("states" if row["url"].endswith(".pt") else "pickles",)}
            modules = [f"teacher/{reader}" for reader in readers]
            modules += [f"networks/{file}" for files in readers.values() for file in files]
            fetched = None if self.params.section("teacher", name)["file"] else section.get("source")
            return self._step(
                "teacher", name, ("teacher/convert", *modules), params, outputs, after=self._downloads(fetched)
            )
        params = {**section, "codec": data["codec"], "labels": data["labels"], "threads": self.threads}
        modules = ("teacher/train", "loop", f"networks/{section['network'].get('network', 'song')}")
        return self._step("teacher", name, modules, params, outputs, (self.pack(section["data"]),))

    @functools.cache  # noqa: B019
    def check(self, name: str) -> Step:
        """The samples of a teacher, measured before anything is distilled from it."""
        section = self.params.section("teacher", name)
        row = source(section["source"], self.params.root / TABLE) if section["source"] else {}
        params = section["check"]
        reference = params["reference"] or row.get("reference")
        features = params["features"] or ("inception" if reference else "judge-a")
        if features != "inception":
            reference = None
        params |= {"steps": section["steps"], "features": features, "reference": reference, "published": row.get("published", ""),
                   "n": params["n"] or (50_000 if reference else 1_000), "threads": self.threads}  # fmt: skip
        measured = () if reference else (self.reference(section["data"], features),)
        judges = tuple(step for each in measured for step in each.upstream if "/judge-" in step.name)
        space = spaces()[features]
        modules = ("teacher/check", "sampling", "evaluate", *((f"spaces/{space}",) if space else ()))
        more, packs = ((), ()) if reference else self._labelled(section["data"])
        output = f"data/teachers/{name}/check.json"
        fetched = self._downloads(*self._of_spaces(features), _row_of(reference))
        return self._step(
            "teacher",
            f"{name}/check",
            (*modules, *more),
            params,
            (output,),
            (self.teacher(name), *packs, *judges, *measured),
            fetched,
        )

    def _labelled(self, data: str) -> tuple[tuple[str, ...], tuple[Step, ...]]:
        # (modules, packs) of a step that draws classes by the frequency of the train images: none without labels.
        return (("classes",), (self.pack(data),)) if self.data(data)["labels"] else ((), ())

    @functools.cache  # noqa: B019
    def pairs(self, teacher: str, n: int, seed: int) -> Step:
        """Noises and the teacher's images of them, for the supplement `regression`."""
        made, section = self.teacher(teacher), self.params.section("teacher", teacher)
        params = {"n": n, "seed": seed, "steps": section["steps"], "threads": self.threads}
        stem, (more, packs) = f"{teacher}/pairs-{n}-{seed}", self._labelled(section["data"])
        outputs = (f"data/teachers/{stem}.npz",)
        return self._step("teacher", stem, ("teacher/pairs", *more), params, outputs, (made, *packs))

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
        return self._step("ensemble", f"{data}/{name}/{seed}", ("ensemble/seed", *families), params,
                    (f"{stem}.json", f"{stem}.npz"), (self.pack(data), *teacher))  # fmt: skip

    @functools.cache  # noqa: B019
    def distil(self, run: Run) -> Step:
        """A run: teacher to generator."""
        method = self.params.without_site("method", self.params.section("method", run.method, run.data))
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
        modules = (
            "distil",
            "loop",
            f"methods/{method['file']}",
            *(f"supplements/{s['file']}" for s in supplements.values()),
        )
        pairs = [
            self.pairs(data["teacher"], each["pairs"], each.get("pairs_seed", 0))
            for each in supplements.values()
            if each.get("pairs")
        ]
        start = method["start_from"]
        before = (self.distil(self.params.run(f"{run.data}/{start}/{run.seed}")),) if start else ()
        upstream = (self.pack(run.data), self.teacher(data["teacher"]), *ensembles, *pairs, *before)
        return self._step("distil", str(run), tuple(dict.fromkeys(modules)), params, self.run_outputs(f"data/runs/{run}"), upstream,
                    (self.check(data["teacher"]),))  # fmt: skip

    def run_outputs(self, folder: str) -> tuple[str, ...]:
        """The files of a run; one copy of generator_ema for each share of the training in distil.snapshots."""
        snapshots = [
            f"{folder}/ema-{percent}.safetensors" for percent in sorted(self.params.top("distil")["snapshots"])
        ]
        return (f"{folder}/generator_ema.safetensors", *snapshots, f"{folder}/log.csv", f"{folder}/provenance.json")

    # --- evaluate, tables ---

    def _evaluation(
        self, name: str, data: str, extra: dict, upstream: tuple[Step, ...], outputs: tuple[str, ...]
    ) -> Step:
        section = self.params.without_site("evaluate", self.params.top("evaluate", data))
        params = {
            **section,
            **extra,
            "codec": self.data(data)["codec"],
            "threads": self.threads,
            "metrics": versions.metric_names(self.data(data)["labels"]),
        }
        references = tuple(self.reference(data, features) for features in section["features"])
        judges = tuple(step for each in references for step in each.upstream if "/judge-" in step.name)
        folder, seen = f"data/evaluations/{name}", self._seen(data)
        modules = ("evaluate", "metrics", "sampling", *(() if seen == data else ("latents",)))
        more, packs = self._labelled(data)
        if not packs:
            params.pop("classes", None)  # there are none to draw
        else:
            params["labels"] = True
            if seen != data and not name.endswith("/real"):
                upstream = (*upstream, *packs)  # classes are those of the train images, not of a part of their pixels
        modules += more
        fetched = self._of_spaces(*section["features"])
        if seen != data and not self.data(data)["codec"].get("vae"):
            fetched.append(AUTOENCODER)
        if wanted := section.get("fid"):
            fetched += [*self._of_spaces("inception"), _row_of(wanted["reference"])]
            modules += ("fid", "spaces/inception")
            if not Path(wanted["reference"]).suffix:  # another version of the row is another ruler
                params["fid"] = wanted | {"version": source(wanted["reference"], self.params.root / TABLE)["version"]}
            if wanted.get("clean"):
                fetched += self._of_spaces("inception-clean")
                modules += ("clean", "spaces/inception_clean")
                references += (self.moments(data),)
        return self._step("evaluate", name, modules, params,
                    tuple(f"{folder}/{output}" for output in outputs), (*upstream, self.pack(seen), *judges, *references),
                    self._downloads(*fetched))  # fmt: skip

    @functools.cache  # noqa: B019
    def evaluation(self, run: Run) -> Step:
        """The metrics, the curve and the samples of a run."""
        outputs = ("metrics.json", "curve.csv", "samples.png", "interpolation.png", "sheet.html")
        grid = {"grid": self.params.top("tables")["grid"]}
        return self._evaluation(str(run), run.data, grid, (self.distil(run),), outputs)

    @functools.cache  # noqa: B019
    def yardstick(self, data: str, which: str) -> Step:
        """The same metrics of real held-out images (`real`) or of the teacher's samples (`teacher`)."""
        section = self.data(data)
        if which == "real":
            return self._evaluation(
                f"{data}/real", data, {"grid": self.params.top("tables")["grid"]}, (), ("metrics.json", "samples.png")
            )
        teacher = self.params.section("teacher", section["teacher"])
        extra = {"steps": teacher["steps"], "grid": self.params.top("tables")["grid"]}
        return self._evaluation(
            f"{data}/teacher", data, extra, (self.teacher(section["teacher"]),), ("metrics.json", "samples.png")
        )

    def evaluations(self, suite: str) -> tuple[Step, ...]:
        """All evaluations of a suite, the yardsticks of its data settings first."""
        runs = list(self.params.runs(suite))
        yardsticks = [
            self.yardstick(data, which)
            for data in dict.fromkeys(run.data for run in runs)
            for which in ("real", "teacher")
        ]
        return (*yardsticks, *(self.evaluation(run) for run in runs))

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
        return self._step(
            "evaluate", f"suite/{suite}", ("evaluate", "summary"), params, outputs, self.evaluations(suite)
        )

    @functools.cache  # noqa: B019
    def tables(self, suite: str) -> Step:
        """Tables and plots of a suite."""
        folder = f"data/tables/{suite}"
        runs = tuple(self.distil(run) for run in self.params.runs(suite))
        section = self.params.top("tables")
        params = {
            **{key: section[key] for key in ("confidence", "baseline", "grid")},
            "primary": self.params.top("evaluate")["features"][0],
            "runs": list(map(str, self.params.runs(suite))),
        }
        return self._step(
            "tables",
            suite,
            ("tables", "typeset", "plots", "results", "inference", "metrics", "published", "report"),
            params,
            tuple(f"{folder}/{output}" for output in TABLES),
            (*self.evaluations(suite), *runs),
        )

    @functools.cache  # noqa: B019
    def study(self, suite: str, name: str) -> Step:
        """The table of one question, from the grids of the suite that name it."""
        runs, section = list(self.params.runs(suite, name)), self.params.top("tables")
        params = {
            **section["studies"][name],
            **{key: section[key] for key in ("confidence", "tuning")},
            # What a data setting shows (settings of one bed differ in their teacher) and the space that ranks it.
            "beds": {
                data: [self._pack_name(data), self.params.top("evaluate", data)["features"][0]]
                for data in dict.fromkeys(run.data for run in runs)
            },
            "runs": list(map(str, runs)),
        }
        kind = versions.literal_of("studies", "KINDS")[section["studies"][name]["kind"]]
        upstream = [each for run in runs for each in (self.evaluation(run), self.distil(run))]
        if versions.literal_of(kind, "NETWORKS", False):  # it runs them again
            upstream += [each for run in runs for each in self.distil(run).upstream]
        outputs = tuple(f"data/tables/{suite}/{name}.{ending}" for ending in ("csv", "md", "png"))
        return self._step(
            "tables",
            f"{suite}/{name}",
            ("studies", kind, "inference", "plots", "results"),
            params,
            outputs,
            tuple({(step.word, step.name): step for step in upstream}.values()),
        )

    def studies(self, suite: str) -> tuple[Step, ...]:
        """The studies of a suite, in the order in which its grids name them."""
        return tuple(self.study(suite, name) for name in self.params.studies(suite))

    # --- lookup ---

    def suite(self, suite: str) -> dict[tuple[str, str], Step]:
        """Every step that a suite needs, by (word, name), upstream first."""
        lasts = (self.metrics(suite), self.tables(suite), *self.studies(suite))
        return {(step.word, step.name): step for last in lasts for step in last.walk()}

    def find(self, word: str, name: str) -> Step:
        """The step that the command line calls `word name`. Raises Problem with what there is."""
        parts = name.strip("/").split("/")
        data = self.params.values["data"]
        if word == "tables":
            list(self.params.runs(parts[0]))
            if len(parts) == 2:
                if parts[1] not in (there := self.params.studies(parts[0])):
                    self.params._unknown(f"study of {name}", parts[1], there)
                return self.study(parts[0], parts[1])
            return self.tables(parts[0])
        if word == "teacher":
            if len(parts) == 2 and (found := re.fullmatch(r"pairs-(\d+)-(\d+)", parts[1])):
                self.params.section("teacher", parts[0], where="teacher on the command line")
                return self.pairs(parts[0], int(found[1]), int(found[2]))
            if len(parts) == 2 and parts[1] == "check":
                self.params.section("teacher", parts[0], where="teacher on the command line")
                return self.check(parts[0])
            self.params.section("teacher", parts[0], where="teacher on the command line")
            return self.teacher(parts[0])
        if word == "evaluate" and parts[0] == "suite" and len(parts) == 2:
            list(self.params.runs(parts[1]))
            return self.metrics(parts[1])
        if word == "distil" or (word == "evaluate" and len(parts) == 4):
            run = self.params.run(name)
            return self.distil(run) if word == "distil" else self.evaluation(run)
        if word == "data" and parts[0] == "download" and len(parts) == 2:
            return self.download(parts[1])
        if parts[0] not in data:
            self.params._unknown(f"data of {name}", parts[0], data)
        if word == "evaluate" and len(parts) == 2 and parts[1] in ("real", "teacher"):
            return self.yardstick(parts[0], parts[1])
        if word == "ensemble" and len(parts) == 3 and parts[2].isdigit():
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
        raise Problem(f"{name!r} is nothing that `{word}` makes; see `python -m eldistill {word} --help`")
