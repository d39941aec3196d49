# SPDX-License-Identifier: Apache-2.0
"""The model card of an exported generator: what it is, how it was made, what it may be used for, and whom to cite."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from eldistill.sampling.guidance import describe
from eldistill.tables import citations

Section = dict[str, Any]


def model_card(
    run: str,
    about: Section,
    metrics: Section,
    teacher: Section,
    ensembles: dict[str, Section] | None = None,
    papers: Sequence[str] = (),
) -> str:
    """The model card of a run, Markdown.

    about: metadata of its generator. metrics: those of its evaluation; empty if there was none. teacher: metadata of the teacher.
    ensembles: {supplement: the section of its ensemble}, of those that are known. papers: keys of
    tables/citations.csv."""
    lineage, source = about["lineage"], teacher.get("source") or {}
    licence = source.get("licence") or "that of its data and of its teacher; nothing else is claimed"
    origin = f"{source['name']} (sha256 {source['sha256']})" if source.get("name") else "trained in the same project"
    data, guidance = lineage["params"]["data"], lineage["params"].get("guidance")
    return f"""# {run}

A one-step generator of images of shape {about["shape"]}, distilled from a diffusion teacher by the project eldistill
(method `{lineage["method"]}`, {_added(lineage["params"]["supplements"], ensembles or {})}, {_images(about)}).

![samples](samples.png)

```sh
{_commands(about)}
```

Needs torch and safetensors. {_steps(about)}

## Where it comes from

* **Data**: `{run.split("/")[0]}`: {json.dumps(data, sort_keys=True)}
* **Classes**: {_classes(about)}
* **Teacher**: {origin}; sha256 of the file it was distilled from: `{lineage["teacher_sha256"]}`{_guidance(guidance, lineage)}
* **Made from**: recipe `{about["recipe"]}`, git commit `{lineage["git_commit"]}`; every setting stands in `config.json`

## How it was trained

* **Method** `{lineage["method"]}`: {_settings(lineage["params"]["method"])}
{_supplements(lineage["params"]["supplements"], ensembles or {})}{_student(about, teacher)}

## Licence

{licence}. A student follows its teacher and its data: pass it on under their terms.

## Numbers

{_numbers(run, metrics)}

## Limits

It shows what its data shows, with its gaps and its slants, and nothing beyond; images may resemble those it was trained on.
Numbers in different features, of different numbers of images or to other references are not comparable. It was trained and
measured for research.

## Citation

{_citations(papers)}
"""


def _images(about: Section) -> str:
    before = about.get("n_images_before", 0)
    return f"{about['n_images']:,} generated images" + (
        f", after {before:,} of the runs that it starts from" if before else ""
    )


# --- use ------------------------------------------------------------------------------------------------


def _commands(about: Section) -> str:
    lines, names = (
        [("python load.py 16 images.png", "16 images; a name that ends in .pt gets the tensor")],
        about.get("class_names", []),
    )
    if isinstance(about["codec"]["mean"], list):
        lines = [
            (
                "python load.py 16 latents.pt",
                f"16 latents; the autoencoder {about['codec'].get('vae', 'sd-vae-ft-mse')} turns them into images",
            )
        ]
    command = lines[0][0]
    if about["label_dim"]:
        label = next((name for name in names if re.fullmatch(r"[\w.-]+", name)), "0")
        lines.append((f"{command} --label {label}", "of one class, by name or number"))
    lines += [
        (f"{command} --steps {steps}", f"in {steps} steps") for steps in about["sampler"]["steps"] if steps != "1"
    ]
    width = max(len(line) for line, _ in lines)
    return "\n".join(f"{line:<{width}}    # {text}" for line, text in lines)


def _steps(about: Section) -> str:
    each = []
    for steps, levels in about["sampler"]["steps"].items():
        plural, listed = "s" if steps != "1" else "", ", ".join(f"{level:g}" for level in levels)
        each.append(f"{steps} step{plural} from noise level{plural} {listed}")
    return f"It can be sampled in {'; '.join(each)}."


def _classes(about: Section) -> str:
    names = about.get("class_names", [])
    if not about["label_dim"]:
        return "none; the network sees no labels"
    listed = (
        ", ".join(f"{number} {name}" for number, name in enumerate(names[:100]))
        or f"numbers from 0 to {about['label_dim'] - 1}"
    )
    return listed + (f", … ({len(names):,}; all stand in `config.json`)" if len(names) > 100 else "")


def _guidance(guidance: Section | None, lineage: Section) -> str:
    # The line about a guided teacher; nothing without guidance.
    if guidance is None:
        return ""
    guide = f"; sha256 of the other network: `{lineage['guide_sha256']}`" if lineage.get("guide_sha256") else ""
    return f"""
* **Guidance**: the teacher was {describe(guidance)}, D = D_guide + weight (D_teacher - D_guide){guide}"""


# --- training -------------------------------------------------------------------------------------------


def _added(supplements: Section, ensembles: dict[str, Section]) -> str:
    if not supplements:
        return "without a supplement"
    return (
        f"with {' and '.join(f'{_title(each, ensembles.get(name))} (`{name}`)' for name, each in supplements.items())}"
    )


def _title(supplement: Section, ensemble: Section | None) -> str:
    if ensemble and all(member["family"] == "identity" for member in ensemble["members"]):
        return "an MMD on pixels, which is the Embedding Loss without its networks"
    titles = {"embedding": "the Embedding Loss", "regression": "a regression loss", "gan": "a discriminator"}
    return titles.get(supplement["file"], f"the supplement {supplement['file']}")


def _settings(section: Section) -> str:
    # "key: value" of all settings, nested ones in braces.
    return ", ".join(f"{key}: {_value(value)}" for key, value in section.items() if key != "file")


def _student(about: Section, teacher: Section) -> str:
    # The line about a generator of another size than the teacher; nothing for one of the same size.
    sizes = about["lineage"]["params"]["method"].get("generator_network")
    if not sizes:
        return ""
    theirs = {key: teacher.get("config", {}).get(key) for key in sizes}
    return f"""
* **Network**: {_settings(sizes)}; the teacher has {_settings(theirs)}. It started with evenly spaced channels of the teacher, rescaled,
  and a last layer that was fitted by least squares to the teacher's images of pure noise"""


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + _settings(value) + "}"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')


def _member(member: Section) -> str:
    numbers = _settings({key: value for key, value in member.items() if key not in ("family", "count")})
    return f"{member.get('count', 1)} × {member['family']}" + (f" ({numbers})" if numbers else "")


def _supplements(supplements: Section, ensembles: dict[str, Section]) -> str:
    lines = []
    for name, each in supplements.items():
        lines.append(f"* **Supplement** `{name}`, {_title(each, ensembles.get(name))}: {_settings(each)}")
        if section := ensembles.get(name):
            members = "; ".join(map(_member, section["members"]))
            rest = _settings({key: value for key, value in section.items() if key != "members"})
            lines.append(f"* **Random networks** `{each['ensemble']}`: {members}; {rest}")
    return "\n".join(lines or ["* **Supplements**: none"])


# --- numbers and citations ------------------------------------------------------------------------------


def _numbers(run: str, metrics: Section) -> str:
    numbers = "\n".join(
        f"| `{name}` | {value:.4g} |" for name, value in sorted(metrics.items()) if isinstance(value, int | float)
    )
    if not numbers:
        return (
            "This run was not evaluated: nothing is known of the quality of its images. "
            f"`python -m eldistill evaluate {run}` measures it."
        )
    return f"""Names say what was measured: the distance, of how many images, in which features, to which images. Lower is better for fd
and kid, higher for precision and recall.

| metric | value |
| --- | ---: |
{numbers}"""


def _citations(papers: Sequence[str]) -> str:
    if not papers:
        return "No paper is listed; `python -m eldistill cite RUN` lists those of a run."
    lines = "\n".join(f"* {citations.line(key)}" for key in papers)
    return f"{lines}\n\n```bibtex\n{citations.bibtex(papers)}```"
