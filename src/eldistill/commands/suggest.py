# SPDX-License-Identifier: Apache-2.0
"""The command `suggest`: for each method a block of numbers to start with, for a data setting that has none.

Each block is that of the data setting whose images are nearest in size, with a shorter training. Nobody has tuned it.
"""

from __future__ import annotations

import functools
import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eldistill import files
from eldistill.errors import Problem
from eldistill.plan import insertion, params, reading, sizes, yamltext
from eldistill.plan.params import Params
from eldistill.plan.schema import merge_mappings

BATCH = 256  # images a step at most: what one GPU holds
IMAGES = 512_000  # of a training above 16 pixels a side: about an hour of one GPU at 32 pixels
SMALL = 16  # pixels a side up to which a training keeps the length of its model
SIDE_OF_LATENTS = 64  # of EDM2's latents of images of 512 pixels a side
OF_RUN = ("freeze_images", "solo_images", "stage_images", "tangent_images")  # of a method: parts of a run, in images
OF_OPTIMISER = ("warmup_images", "decay_images")
# Dropout and network are those of the user's teacher, and the rates of arms are tuned for other images.
LEFT_OUT = ("status", "dropout", "start_from", "generator_network", "rates")


@dataclass(frozen=True)
class Suggestion:
    """Numbers of one method for a data setting."""

    method: str
    block: dict[str, Any]  # as it stands under per_data
    model: str  # the data setting whose numbers they were
    side: int  # its pixels a side
    status: str  # where its numbers come from


def command(chosen: Namespace, say: Callable[[str], None]) -> None:
    """Print the blocks, or write them into params.yaml. Raises Problem for a data setting that is unknown."""
    found = _loaded(chosen.name)
    suggestions = list(suggest(found, chosen.name, chosen.images))
    if not suggestions:
        say(f"every method has numbers for the data {chosen.name} already; change them in params.yaml")
        return
    if not chosen.write:
        say(suggestion_text(chosen.name, suggestions))
        say(f"# untuned. `python -m eldistill suggest {chosen.name} --write` writes them into params.yaml")
        return
    path = Path("params.yaml")
    before = yamltext.read_text(path)
    after = before
    for each in suggestions:
        after = insertion.insert(after, ["distil", "methods", each.method, "per_data"], chosen.name, _lines(each))
    params.from_values(
        _merged_with(path, after), path.parent
    )  # the same checks as everywhere, before anything is written
    files.write_text(path, after)
    say(
        f"params.yaml: {len(suggestions)} blocks for {chosen.name}, untuned, under {', '.join(e.method for e in suggestions)}; "
        "name those that you want in the `methods` of a suite"
    )


def _loaded(data: str) -> Params:
    # A suite may name the data before there are numbers for it: that is what is asked for here.
    values = reading.merge_files(reading.read_files(Path()))
    suites = values.get("suites", {})
    if isinstance(suites, dict) and all(isinstance(grids, list) for grids in suites.values()):
        kept = {name: [grid for grid in grids if not _names(grid, data)] for name, grids in suites.items()}
        values["suites"] = {name: grids for name, grids in kept.items() if grids or not suites[name]}
        # The suite of params.yaml may consist of such grids: any other one takes its place.
        if values.get("suite") in suites and values["suite"] not in values["suites"]:
            values["suite"] = next(iter(values["suites"]), values["suite"])
    return params.from_values(values, Path())


def _names(grid: Any, data: str) -> bool:
    return isinstance(grid, dict) and isinstance(grid.get("data"), list) and data in grid["data"]


def suggest(project: Params, data: str, images: int | None = None) -> Iterator[Suggestion]:
    """A block for each method without numbers for `data`, in the order of params.yaml. images: of a training (default: by
    the size of the images). Raises Problem."""
    side = side_of(project, project.section("data", data, where="data on the command line"))
    if side is None:
        raise Problem(
            f"data.{data} does not say how large its images are; give it a `resolution` and repeat the command"
        )
    for method in project.named("method"):
        if _continues(project.named("method")[method]):
            continue  # a longer chain of another method's run, not a method to begin with
        if not project.has_numbers(method, data) and (model := _model(project, method, side)):
            block = adapt_numbers(_own(project, method, model), images or (None if side <= SMALL else IMAGES))
            block |= _start_level(project, method, side)
            if not _augmented(project, data):
                block.pop("augment", None)
            known = side_of(project, project.section("data", model)) or 0
            yield Suggestion(method, block, model, known, project.status("method", method, model) or "ours")


def _start_level(project: Params, method: str, side: int) -> dict[str, Any]:
    # The noise levels of the run that a method continues. They are always said, because a method that is like another one also has
    # what is suggested for that one.
    start = (project.named("method")[method].get("start_from") or "").split("/")[0]
    before = _model(project, start, side) if start else None
    if before is None:
        return {}
    mine, its = project.peek("method", method, before), project.peek("method", start, before)
    key, other = (next((key for key in ("sigma_init", "sigma_max") if key in each), None) for each in (mine, its))
    if not key or not other:
        return {}
    return {key: its[other]} | {steps: mine[steps] for steps in ("sigmas_2", "sigmas_4") if steps in mine}


def _augmented(project: Params, data: str) -> bool:
    # Whether the teacher is trained here with augmentation, without which a method can have none. Of others' files nobody knows it yet.
    teacher = project.section("data", data)["teacher"]
    return bool(teacher and project.section("teacher", teacher)["augment"])


def _continues(section: dict[str, Any]) -> bool:
    # Whether a method starts from a run of the very method that it is like.
    start = section.get("start_from") or ""
    return bool(section.get("like")) and start.split("/")[0] == section["like"]


def _model(project: Params, method: str, side: int) -> str | None:
    # The data setting with numbers of the method whose images are nearest in size; None for a method that needs none of its own.
    models = [each for each in project.named("data") if _own(project, method, each)]
    sizes = {each: known for each in models if (known := side_of(project, project.section("data", each)))}
    if not sizes:
        return None
    model = min(sizes, key=lambda each: (abs(math.log2(sizes[each] / side)), _rank(project, method, each)))
    section = project.named("method")[method]
    # A run continues at the noise level that the one before it ends with, so both take the numbers of one data setting.
    before = _model(project, section["start_from"].split("/")[0], side) if section.get("start_from") else None
    model = before if before in sizes else model
    block = section.get("per_data", {}).get(model, {})
    rates = any("lr" in block.get(role, {}) for role in ("generator", "critic"))
    # A variant of another method gets that one's numbers, unless its own differ in more than the length.
    return model if "file" in section or "start_from" in section or rates else None


def side_of(project: Params, section: dict[str, Any]) -> int | None:
    """Pixels a side of the images of a data setting, if its section says it."""
    return SIDE_OF_LATENTS if section["source"] == "latents" else sizes.side_of(section)


def _own(project: Params, method: str, data: str) -> dict[str, Any]:
    # What the method, and those it is like, have for this data setting itself.
    chain = project.chain("method", method, project.place("method", method))
    layers = [each.get("per_data", {}).get(data, {}) for each in chain]
    found: dict[str, Any] = functools.reduce(merge_mappings, layers, {})
    return found if "n_images" in found and "batch" in found else {}


def _rank(project: Params, method: str, data: str) -> int:
    # Between images of one size: numbers of authors before those of others; then the first in the file.
    return (
        ("authors", "paper").index(status)
        if (status := project.status("method", method, data)) in ("authors", "paper")
        else 2
    )


def adapt_numbers(block: dict[str, Any], images: int | None) -> dict[str, Any]:
    """The numbers of a long run for one of about `images` images: smaller batches with lower rates, shorter stages.

    Rates fall with the root of the batch. The running average is ramped, so that its memory fits the run.
    """
    batch = min(block["batch"], BATCH)
    whole = batch * max(1, round(min(images or block["n_images"], block["n_images"]) / batch))
    share = whole / block["n_images"]
    found = {key: value for key, value in block.items() if key not in (*LEFT_OUT, "n_images", "batch")}
    found = {"status": "ours", "n_images": whole, "batch": batch} | found
    for key in OF_RUN:
        if found.get(key):
            found[key] = _multiple(found[key] * share, batch)
    if "group" in found:
        found["group"] = math.gcd(found["group"], batch)
    for role in ("generator", "critic"):
        if role in found:
            found[role] = _optimiser(found[role], math.sqrt(batch / block["batch"]), share, batch)
    if share < 1:
        found["ema"] = {"policy": "ramped", "halflife_images": _multiple(whole / 10, batch), "ramp": 0.05}
    return found


def _optimiser(numbers: dict[str, Any], rate: float, share: float, batch: int) -> dict[str, Any]:
    found = dict(numbers)
    if "lr" in found and rate != 1:
        found["lr"] = float(f"{found['lr'] * rate:.2g}")
    return found | {key: _multiple(found[key] * share, batch) for key in OF_OPTIMISER if found.get(key)}


def _multiple(images: float, batch: int) -> int:
    return batch * max(1, round(images / batch))


# --- as text --------------------------------------------------------------------------------------------


def suggestion_text(data: str, suggestions: list[Suggestion]) -> str:
    """The blocks as they stand in params.yaml, with where they come from."""
    lines = ["distil:", "  methods:"]
    for each in suggestions:
        lines += [f"    {each.method}:", "      per_data:", f"        {data}:    {_lines(each)[0]}"]
        lines += [f"          {line}" for line in _lines(each)[1:]]
    return "\n".join(lines)


def _lines(suggestion: Suggestion) -> list[str]:
    # The comment behind the name, then a line for each number.
    from_ = f"# untuned; from {suggestion.model} ({suggestion.side} pixels a side, status {suggestion.status})"
    return [from_, *(f"{key}: {_flow(value)}" for key, value in suggestion.block.items())]


def _flow(value: Any) -> str:
    # YAML 1.1 reads 1e-05 as text; what is written here is read back by any reader as the number that it is.
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float) and "e" in repr(value) and "." not in repr(value):
        mantissa, exponent = repr(value).split("e")
        return f"{mantissa}.0e{exponent}"
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _merged_with(path: Path, new: str) -> dict[str, Any]:
    found = reading.read_files(path.parent)
    found[reading.FILES[-1]] = reading.read_yaml(new)
    return reading.merge_files(found)
