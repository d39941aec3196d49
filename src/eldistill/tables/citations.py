# SPDX-License-Identifier: Apache-2.0
"""What to cite for runs: the papers of their methods, supplements, data, teachers' networks, feature spaces and metrics.

citations.csv holds the papers. The tables below say which of them belong to what can be registered: a value is a tuple of keys of
citations.csv, or a text that begins with `none:` and says why there is nothing to cite. tests/tables/test_citations.py holds that
each method, supplement, source of data, network, feature space and metric of this project has an entry.
"""

from __future__ import annotations

import csv
import functools
import html
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from eldistill.paths import PACKAGE
from eldistill.plan import guidance
from eldistill.registry import available

COVERED_BY = "report"
Section = Mapping[str, Any]
Entry = tuple[str, ...] | str

METHODS: dict[str, Entry] = {  # by the file of a method
    "alone": "none: it is a control of this project",
    "consistency": ("song2023consistency",),
    "diff_instruct": ("luo2023diffinstruct",),
    "dmd": ("yin2024dmd",),
    "dmd2": ("yin2024dmd2",),
    "f_divergence": ("xu2025fdistill", "wang2025uniinstruct"),
    "mean_flow": ("geng2025meanflow",),
    "scm": ("lu2025scm",),
    "sid": ("zhou2024sid",),
    "sida": ("zhou2024sid", "zhou2025sida"),
    "sim": ("luo2024sim",),
    "tcm": ("lee2025tcm",),
}
LEVELS = {"doubling": ("song2024improved",), "continuous": ("geng2025ect",)}  # by `levels` of the file consistency
SUPPLEMENTS: dict[str, Entry] = {  # by the file of a supplement
    "drift": ("deng2026drifting",),
    "embedding": ("ying2026embedding",),
    "fd": ("yang2026frechet",),
    "gan": ("yin2024dmd2",),
    "regression": ("yin2024dmd",),
}
PIXELS: dict[str, Entry] = {
    "embedding": ("gretton2012kernel",)
}  # by the file of a supplement whose ensemble is the identity alone
SOURCES: dict[str, Entry] = {  # by `source` of a data setting
    "digits": ("alpaydin1998digits",),
    "cifar10": ("krizhevsky2009cifar",),
    "idx": "none: its key `files` says which data set it is",
    "folder": "none: they are a user's own images, unless `count` names a published set",
    "latents": ("rombach2022latent",),
}
FILES: dict[str, Entry] = {"fashion-mnist": ("xiao2017fashion",)}  # by `files` of a data setting
COUNTS: dict[str, Entry] = {  # by `count` of a data setting
    "ffhq": ("karras2019stylegan",),
    "afhqv2": ("choi2020stargan",),
    "imagenet": ("deng2009imagenet",),
}
NETWORKS: dict[str, Entry] = {  # by `network` of a teacher
    "song": ("karras2022edm", "song2021score"),
    "adm": ("karras2022edm", "dhariwal2021adm"),
    "edm2": ("karras2022edm", "karras2024edm2"),
    "ddpm": ("karras2022edm", "ho2020ddpm"),
    "guided": ("karras2022edm", "dhariwal2021adm"),
    "baselines": ("karras2022edm", "song2021score"),
    "classifier": "none: it is a judge of this project",
}
GUIDANCE: dict[str, tuple[str, ...]] = {  # by what guides a teacher, and whether only at some noise levels
    "unlabelled": ("ho2022classifierfree",),
    "guide": ("karras2024guiding",),
    "limited": ("kynkaanniemi2024limited",),
}
SPACES: dict[str, Entry] = {  # by the name of a feature space
    "judge-a": "none: it is trained by this project",
    "judge-b": "none: it is trained by this project",
    "pixels": "none: there is no network",
    "inception": ("szegedy2016inception", "heusel2017fid"),
    "inception-clean": ("szegedy2016inception", "parmar2022clean"),
    "clip-vit-b-32": ("radford2021clip", "kynkaanniemi2023role"),
    "efficientnet-lite0": ("tan2019efficientnet",),
}
METRICS: dict[str, Entry] = {  # by the name in evaluate/metrics.py or of a file in metrics/, and those of FIDs
    "fd": ("dowson1982frechet", "heusel2017fid"),
    "relfd": ("dowson1982frechet",),
    "debiased": ("quenouille1956bias", "efron1981jackknife"),
    "kid": ("binkowski2018kid",),
    "precision": ("kynkaanniemi2019precision",),
    "recall": ("kynkaanniemi2019precision",),
    "density": ("naeem2020reliable",),
    "coverage": ("naeem2020reliable",),
    "copied": "none: it is defined in this project",
    "is": ("salimans2016improved",),
    "agreement": "none: it is the accuracy of a classifier",
    "fid": ("heusel2017fid",),
    "sw": ("bonneel2015sliced",),
}


@functools.cache
def papers() -> dict[str, dict[str, str]]:
    """The rows of citations.csv by their keys."""
    with open(PACKAGE / "tables/citations.csv", encoding="utf-8", newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


# --- which papers -----------------------------------------------------------------------------------------


def of_method(section: Section) -> Entry:
    """Those of a resolved section of a method; of a file that is not known here, a sentence."""
    found = METHODS.get(section["file"], f"none: methods/{section['file']}.py has no entry in tables/citations.py")
    return found if isinstance(found, str) else found + LEVELS.get(section.get("levels", ""), ()) + _distance(section)


def of_supplement(section: Section, ensemble: Section | None = None) -> Entry:
    """Those of a resolved section of a supplement. ensemble: the section of its ensemble, if it has one."""
    members = (ensemble or {}).get("members", [])
    if section["file"] in PIXELS and members and all(each["family"] == "identity" for each in members):
        return PIXELS[section["file"]]
    none = f"none: supplements/{section['file']}.py has no entry in tables/citations.py"
    found = SUPPLEMENTS.get(section["file"], none)
    return found if isinstance(found, str) else found + _distance(section)


def _distance(section: Section) -> tuple[str, ...]:
    # Of a method or supplement that compares images by LPIPS.
    return ("zhang2018lpips",) if section.get("distance") == "lpips" or section.get("lpips") else ()


def of_data(section: Section) -> Entry:
    """Those of a resolved section of a data setting. A user's own images have none."""
    named = FILES.get(section.get("files") or "", COUNTS.get(section.get("count") or "", ()))
    source = SOURCES.get(
        section["source"], f"none: data/readers/{section['source']}.py has no entry in tables/citations.py"
    )
    return source if not named or isinstance(named, str) else (source if isinstance(source, tuple) else ()) + named


def of_space(name: str) -> Entry:
    """Those of a feature space by its name, of which a resolution may be a part: efficientnet-lite0-96."""
    base = max((known for known in SPACES if name == known or name.startswith(f"{known}-")), key=len, default="")
    return SPACES[base] if base else f"none: spaces/ has {name}, and tables/citations.py no entry for it"


def keys_of(entries: Iterable[Entry]) -> list[str]:
    """The keys in entries, each once, in the order of citations.csv, with the package itself first."""
    wanted = {key for entry in entries if not isinstance(entry, str) for key in entry} | {"eldistill"}
    return [key for key in papers() if key in wanted]


def of_runs(plan, runs: Iterable) -> list[str]:
    """The keys of all that runs `DATA/METHOD/SUPPLEMENT/SEED` of a plan use, in training and evaluation. Raises Problem for a run
    that is not valid."""
    arms = {(run.data, run.method, run.supplement): run for run in (plan.params.run(str(each)) for each in runs)}
    return keys_of(entry for run in arms.values() for entry in _of_run(plan.params, run))


def _of_run(params, run) -> Iterator[Entry]:
    data = params.section("data", run.data)
    yield of_data(data)
    yield from _of_training(params, run.data, run.method, run.supplements)
    for name in guidance.parts_of(params, data["teacher"]):
        yield of_network(params.section("teacher", name))
    yield of_guidance(guidance.guidance_of(params, data["teacher"]))
    evaluation = params.top("evaluate", run.data)
    fid = evaluation.get("fid") or {}
    spaces = [
        *evaluation["features"],
        *(["inception"] if fid else []),
        *(["inception-clean"] if fid.get("clean") else []),
    ]
    yield from map(of_space, spaces)
    unasked = set(available("metrics")) - set(evaluation["extra_metrics"])
    yield from (entry for name, entry in METRICS.items() if name not in unasked)


def _of_training(params, data: str, method: str, supplements: Iterable[str]) -> Iterator[Entry]:
    # Of a method, of its supplements, and of the run that its generator starts from.
    section = params.section("method", method, data)
    yield of_method(section)
    for name in supplements:
        each = params.section("supplement", name, data)
        ensemble = each.get("ensemble")
        yield of_supplement(each, params.section("ensemble", ensemble) if ensemble else None)
    if section.get("start_from"):
        other, _, names = section["start_from"].partition("/")
        yield from _of_training(params, data, other, [] if names == "none" else names.split("+"))


def of_network(teacher: Section) -> Entry:
    """Those of a resolved section of a teacher: a network that is trained here, or a published one, by the name of its row."""
    network = (teacher.get("network") or {}).get("network")
    if network is None:
        source = str(teacher.get("source") or "")
        network = "edm2" if source.startswith("edm2") else "adm" if source.endswith("adm") else "song"
    return NETWORKS.get(network, f"none: networks/{network}.py has no entry in tables/citations.py")


def of_guidance(section: Section | None) -> Entry:
    """Those of the guidance of a teacher, as a recipe has it; a guide that is named may be a worse network or one without labels."""
    if section is None:
        return "none: the teacher is not guided"
    limited = GUIDANCE["limited"] if {"sigma_low", "sigma_high"} & section.keys() else ()
    return GUIDANCE["unlabelled"] + (() if section["guide"] is None else GUIDANCE["guide"]) + limited


# --- as text ----------------------------------------------------------------------------------------------


def bibtex(keys: Iterable[str]) -> str:
    """BibTeX of papers, an entry a paragraph. Raises KeyError for a key that is not in citations.csv."""
    return "\n\n".join(map(_entry, keys)) + "\n"


def _entry(key: str) -> str:
    row = papers()[key]
    kind = {"software": "misc"}.get(row["kind"], row["kind"])
    place = {"inproceedings": "booktitle", "techreport": "institution", "misc": "publisher"}.get(kind, "journal")
    fields = {
        "title": f"{{{row['title']}}}",
        "author": row["authors"],
        place: row["where"] or (f"arXiv preprint arXiv:{row['arxiv']}" if row["arxiv"] and kind == "article" else ""),
        "year": row["year"],
        "eprint": row["arxiv"],
        "archiveprefix": "arXiv" if row["arxiv"] else "",
        "doi": row["doi"],
    }
    return "\n".join(
        [f"@{kind}{{{key},", *(f"  {name} = {{{value}}}," for name, value in fields.items() if value), "}"]
    )


def line(key: str) -> str:
    """A paper in one line, such as `Song and Dhariwal 2024: Improved Techniques … (arXiv 2310.14189)`."""
    row = papers()[key]
    names = [name.partition(",")[0].strip("{}") for name in row["authors"].split(" and ")]
    who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
    where = f" (arXiv {row['arxiv']})" if row["arxiv"] else f" (doi {row['doi']})" if row["doi"] else ""
    return f"{who} {row['year']}: {row['title']}{where}"


def section(keys: Iterable[str]) -> str:
    """HTML that is folded until it is opened: the papers in a list, and their BibTeX. A page refers to no address."""
    found = list(keys)
    if not found:
        return ""
    items = "".join(f"<li>{html.escape(line(key))}</li>" for key in found)
    return (
        f'<details id="cite"><summary>What to cite: {len(found)} entries, of the methods, supplements, data and metrics of this page'
        f"</summary><ul>{items}</ul><pre>{html.escape(bibtex(found))}</pre></details>"
    )
