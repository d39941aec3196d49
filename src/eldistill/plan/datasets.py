# SPDX-License-Identifier: Apache-2.0
"""Steps of the word `data`, as a plan makes them, and what all words share."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eldistill.external.sources import TABLE, published_rows, source_row
from eldistill.paths import SCRATCH
from eldistill.plan import versions
from eldistill.plan.identity import Identities, Source, sources_of
from eldistill.plan.params import Params
from eldistill.plan.recipes import KINDS, Step
from eldistill.registry import literal, readers, spaces

PICTURE_KEYS = ("background", "orientation", "bits")  # of a data setting whose source is a folder: see pictures.py


def row_of(reference: str | None) -> str | None:
    """The row of data/sources.csv that reference statistics are; None for a file of the user."""
    return reference if reference and not Path(reference).suffix else None


class PlanOfData:
    """The part of a Plan that knows data settings: downloads, packed images, judges and references.

    identities: of what lies outside git; those that data/sources.lock.csv records unless others are given.
    """

    def __init__(self, params: Params, identities: Identities | None = None):
        self.params = params
        self.threads = params.top("threads")
        self.identities = identities or Identities()

    def _step(
        self, kind: str, name: str, modules: Iterable[str], params: dict[str, Any], outputs: tuple[str, ...],
        upstream: tuple[Step, ...] = (), after: tuple[Step, ...] = (), sources: tuple[Source, ...] = (), data: str = "", item: str = "",
    ) -> Step:  # fmt: skip
        # What its parameters name outside git is part of every step.
        return Step(
            word=KINDS[kind], name=name, modules=tuple(modules), params=params, outputs=outputs, upstream=upstream, after=after,
            sources=tuple(sorted({*sources_of(params), *sources})), identities=self.identities, kind=kind, data=data, item=item,
        )  # fmt: skip

    @functools.cache  # noqa: B019
    def download(self, name: str) -> Step:
        """The file of a row of data/sources.csv: fetched, its digest checked, kept in the store. Its output is a link there."""
        source_row(name, self.params.root / TABLE)
        (row,) = published_rows((name,), self.params.root / TABLE)
        params = {key: row[key] for key in ("url", "version", "sha256")}
        outputs = (f"{SCRATCH}/downloads/{name}/file",)
        return Step("data", f"download/{name}", (), params, outputs, on_demand=True, kind="download", item=name)

    def _downloads(self, *names: str | None) -> tuple[Step, ...]:
        return tuple(self.download(name) for name in dict.fromkeys(filter(None, names)))

    def _of_spaces(self, *features: str) -> list[str]:
        # What feature spaces say themselves that they read.
        modules = (spaces()[name] for name in features)
        return [name for module in modules for name in literal(f"spaces/{module}", "DOWNLOADS", ())]

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
        source = self.data(name)["source"]
        modules = ("data", "labels", versions.recipe_name(f"data/readers/{source}"), *readers()[source].modules)
        params = self._pack_params(name)
        wanted = () if self.folder(name) else self._fetched(name)
        return self._step(
            "images",
            f"{name}/images",
            tuple(dict.fromkeys(modules)),
            params,
            (output,),
            after=self._downloads(*wanted),
            sources=self._idx(name),
            data=name,
        )

    def _fetched(self, name: str) -> tuple[str, ...]:
        # Rows of data/sources.csv that a pack is made of.
        data = self.data(name)
        return () if data["path"] else tuple(row.format(**data) for row in readers()[data["source"]].downloads)

    def folder(self, pack: str) -> str | None:
        """Where files lie that `data PACK/images` would fetch. Settings that share a pack may know different folders: any of
        them will do."""
        return next(filter(None, (self.params.section("data", name)["folder"] for name in self.sharing(pack))), None)

    def sharing(self, pack: str) -> list[str]:
        """The data settings that share the packed images called `pack`."""
        return [name for name in self.params.values["data"] if self._pack_name(name) == pack]

    def _idx(self, name: str) -> tuple[Source, ...]:
        # IDX files of a folder, where data/sources.csv does not say what they must be.
        files = self.data(name)["files"]
        if self.data(name)["source"] != "idx":
            return ()
        rows = published_rows(self._fetched(name), self.params.root / TABLE)
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
            "judge", f"{data}/judge-{letter}", ("judges", "loop", "networks/classifier"), params, (output,), (pack,),
            data=data, item=letter,
        )  # fmt: skip

    @functools.cache  # noqa: B019
    def reference(self, data: str, features: str) -> Step:
        """Features and their moments of the train and the held-out images; of latents those of their pixels."""
        data = self._seen(data)
        judge = (self.judge(data, features[-1]),) if features.startswith("judge-") else ()
        # Sums over the real images are in the file too. The first version of what computes them names nobody.
        later = [name for name in ("metrics",) if versions.version_of(name) > 1]
        modules = tuple(dict.fromkeys(("evaluate", versions.recipe_name(f"spaces/{spaces()[features]}"), *later)))
        output = f"data/sets/{data}/reference-{features}.npz"
        return self._step("reference", f"{data}/reference-{features}", modules, {}, (output,), (self.pack(data), *judge),
                    self._downloads(*self._of_spaces(features)), data=data, item=features)  # fmt: skip

    @functools.cache  # noqa: B019
    def moments(self, data: str) -> Step:
        """What clean-fid's figures compare with: the train images in its feature space; of latents those of their pixels."""
        data = self._seen(data)
        output = f"data/sets/{data}/moments-clean.npz"
        return self._step("moments", f"{data}/moments-clean", ("clean", "spaces/inception_clean"), {}, (output,), (self.pack(data),),
                    self._downloads(*self._of_spaces("inception-clean")), data=data)  # fmt: skip

    def _labelled(self, data: str) -> tuple[tuple[str, ...], tuple[Step, ...]]:
        # (modules, packs) of a step that draws classes by the frequency of the train images: none without labels.
        return (("classes",), (self.pack(data),)) if self.data(data)["labels"] else ((), ())
