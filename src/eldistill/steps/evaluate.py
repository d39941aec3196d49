# SPDX-License-Identifier: Apache-2.0
"""The steps of the word `evaluate`: metrics of generators, teachers and held-out images, and the metrics of a suite in one file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eldistill import files
from eldistill.data import classes, dataset
from eldistill.errors import Problem
from eldistill.evaluate import arithmetic, clean, evaluator, features, fid, metrics
from eldistill.evaluate.references import load_reference, noise_floor
from eldistill.external import fetching
from eldistill.sampling import generators, guidance, pictures, teachers
from eldistill.steps.work import Work
from eldistill.tables import kept, results, sheet, summary
from eldistill.training import lock, processes, state

COVERED_BY = "evaluate"
MINUTE = 60.0  # seconds between two lines about the images of a teacher
STRIPS = 4  # rows of an interpolation

# images(n, start, labels): uint8 [*, c, h, w] chunks of the images start … start + n, of the given labels where there are some
Images = Callable[..., Iterator[torch.Tensor]]


@dataclass(frozen=True)
class Published:
    """Feature space and reference statistics of the FID that is comparable with published values."""

    space: Any  # Inception's features
    reference: tuple[Any, Any, Any]  # mean, covariance and its root, of the authors' images
    name: str  # end of the metric's name


def make_step(work: Work) -> None:
    """Make the outputs of this step. Raises Problem, and NonFinite for images or features that are not finite."""
    with arithmetic.on(None if work.machine.device == "cpu" else work.machine.device):
        MAKERS[work.step.kind](work)


# --- one function for each kind -------------------------------------------------------------------------


def _evaluation(work: Work) -> None:
    ruler = _ruler(work)
    drawn = _classes(work, ruler.spaces, real=False)
    asked = _published(work, ruler)
    generator = _generator(work, work.input("run"), drawn)
    images = _images_of(work, generator)
    rows = _curve(work, ruler, drawn, asked)
    found = ruler.measure(images, work.params["n"], asked=drawn.asked)
    for steps in [each for each in generator.metadata["sampler"]["steps"] if each != "1"]:
        few = ruler.measure(_images_of(work, generator, int(steps)), work.params["n"], metrics.CURVE)
        found |= {f"{name}_{steps}steps": value for name, value in few.items()}
    if asked:
        found |= _fid(work, ruler, images, asked)
    shown = _shown(work, drawn, images)
    if not work.first:
        return
    _write(work, found, shown, drawn)
    files.write_rows(work.output("curve.csv"), sorted(rows, key=lambda row: row["n_images"]))
    strip = generators.interpolate(generator, STRIPS, work.params["grid"], work.params["seed"])
    _save_picture(work.output("interpolation.png"), strip, work.params["grid"])
    sheet.make_sheet(work.step.name, Path(), work.output("sheet.html"))


def _samples(work: Work) -> None:
    ruler = _ruler(work)
    drawn = _classes(work, ruler.spaces, real=False)
    asked = _published(work, ruler)
    folder = work.state = state.state_folder(work.digest)
    with lock.lock(folder) if work.first else contextlib.nullcontext():
        images = _images_of_teacher(work, drawn, folder)
        found = ruler.measure(images, work.params["n"], asked=drawn.asked)
        if asked:
            found |= _fid(work, ruler, images, asked)
        shown = _shown(work, drawn, images)
        if work.first:
            _write(work, found, shown, drawn)


def _reals(work: Work) -> None:
    ruler = _ruler(work)
    drawn = _classes(work, ruler.spaces, real=True)
    found = noise_floor(ruler.references, work.params, ruler.spaces, drawn.asked)
    shown = _shown(work, drawn, None)
    if work.first:
        _write(work, found, shown, drawn)


def _metrics(work: Work) -> None:
    found = {step.name: results.metrics_of(step.name, Path(), work.kept) for step in work.upstream}
    runs: summary.Runs = {}
    for step in work.inputs.get("evaluation", ()):
        data, method, supplement, seed = step.name.split("/")
        curve = (
            kept.curve_of(work.kept[step.name]) if step.name in work.kept else files.read_rows(Path(step.outputs[1]))
        )
        runs.setdefault((data, method, supplement), {})[seed] = summary.Evaluation(found[step.name], curve)
    files.write_json(
        work.output("metrics.json"), summary.summarise(runs, work.params["primary"], work.params["baseline"])
    )
    files.write_json(work.output("metrics-all.json"), evaluator.nest(found))


MAKERS = {"evaluation": _evaluation, "samples": _samples, "reals": _reals, "metrics": _metrics}


# --- their parts ----------------------------------------------------------------------------------------


def _ruler(work: Work) -> evaluator.Evaluator:
    names, device = work.params["features"], work.machine.device
    # A judge is an input of this step under the name of its feature space.
    spaces = {name: features.feature_space(name, work.optional(name), device) for name in names}
    references = {name: load_reference(work.input(f"reference-{name}")) for name in spaces}
    across = processes.process_group() or processes.SingleProcess()
    return evaluator.Evaluator(spaces, references, work.params, work.machine.batch, across)


def _classes(work: Work, spaces: dict[str, Any], real: bool) -> classes.Drawn:
    # How classes are drawn and shown in an evaluation, and what is left out.
    if not work.params.get("labels"):
        return classes.Drawn()
    drawn = classes.classes_of_pack(_pack(work), work.params, real)
    if not real:
        work.say(classes.how_drawn(drawn.about))
    if drawn.asked is not None and not any(
        getattr(each, "label_dim", 0) == drawn.label_dim for each in spaces.values()
    ):
        work.say(f"agreement is not measured: none of {', '.join(spaces)} is a classifier of these {drawn.label_dim} classes; "
                 "add judge-a to evaluate.features")  # fmt: skip
        return classes.without_asked(drawn)
    return drawn


def _pack(work: Work) -> Path:
    # The images of an evaluation's data setting; for real latents, and where there are no others, those of their pixels.
    found = [step.outputs[0] for step in work.inputs["images"]]
    own = work.plan.pack(work.step.data).outputs[0]
    return Path(own if own in found else found[0])


def _generator(work: Work, path: Path, drawn: classes.Drawn, raw: bool = False) -> generators.Generator:
    found = generators.load_generator(path, work.machine.device, raw)
    _check_made(work, path, found.metadata)
    return generators.Generator(found.network, drawn.applied(found.metadata))


def _check_made(work: Work, path: Path, metadata: dict[str, Any]) -> None:
    # A generator that somebody copied here from another run would be measured under the name of this one.
    (step,) = work.inputs["run"]
    wanted = work.recipe["upstream"][f"distil {step.name}"]
    if metadata.get("recipe", wanted) != wanted:
        raise Problem(
            f"{path} is the generator of another run, or of other numbers; restore the file, or run `python -m eldistill distil "
            f"{step.name} --force`"
        )


def _images_of(work: Work, generator: generators.Generator, steps: int = 1) -> Images:
    def images(n: int, start: int = 0, labels: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        return generators.images_of(generator, n, work.params["seed"], labels, work.machine.batch, steps, start)

    return images


def _images_of_teacher(work: Work, drawn: classes.Drawn, folder: Path) -> Images:
    # folder: where they are stored, for a repetition after a stop.
    options = work.params
    path, guide = work.teacher()
    teacher, about = guidance.load_teacher(path, options.get("guidance"), guide, work.machine.device)
    about = drawn.applied(about)

    def images(n: int, start: int = 0, labels: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        made = teachers.images_of_teacher(
            teacher,
            about,
            n,
            options["steps"],
            options["seed"],
            work.machine.batch,
            first=start,
            labels=labels,
            folder=folder,
        )
        count, began, told = 0, time.monotonic(), time.monotonic()
        for chunk in made:
            yield chunk
            count += len(chunk)
            if time.monotonic() - told > MINUTE:
                left = (time.monotonic() - began) / count * (n - count) / 60
                work.say(f"{count} of {n} images of the teacher, {left:.1f} min left")
                told = time.monotonic()

    return images


def _shown(work: Work, drawn: classes.Drawn, images: Images | None) -> torch.Tensor:
    # What samples.png shows, uint8 [n, c, h, w]: the first images, or a row of each class; images: None for real ones.
    columns, dim = work.params["grid"], drawn.label_dim
    if images is None:
        real, labels, _ = dataset.load_pack(_pack(work), "heldout")
        return classes.first_of_each(real, labels, dim, columns) if dim else real[: columns**2]
    if not dim:
        return torch.cat(list(images(columns**2)))
    rows = classes.row_labels(dim, columns)
    return torch.cat(list(images(len(rows), labels=rows)))


def _curve(
    work: Work, ruler: evaluator.Evaluator, drawn: classes.Drawn, asked: Published | None
) -> list[dict[str, float]]:
    options, rows = work.params, []
    followed = options.get("curve_features") or list(ruler.spaces)
    for path in _snapshots(work):
        snapshot = _generator(work, path, drawn)
        seen = snapshot.metadata["n_images_before"] + snapshot.metadata["n_images"]
        row = ruler.measure(_images_of(work, snapshot), options["curve_n"], metrics.CURVE, followed)
        if asked and options["fid"].get("curve_n"):
            row |= ruler.fid_of_snapshot(_images_of(work, snapshot), asked.space, asked.reference, asked.name)
        if snapshot.metadata.get("raw"):
            raw = _images_of(work, _generator(work, path, drawn, raw=True))
            found = ruler.measure(raw, options["curve_n"], ["fd"], followed[:1])
            row |= {f"raw_{name}": value for name, value in found.items()}
        rows.append({"n_images": seen, **row})
        work.say(f"{path.name}: {seen} images, " + "  ".join(f"{k} {v:.4g}" for k, v in list(rows[-1].items())[1:3]))
    return rows


def _snapshots(work: Work) -> list[Path]:
    # The snapshots of the run at which its curve is measured.
    found = [path for path in map(Path, work.inputs["run"][0].outputs) if path.name.startswith("ema-")]
    asked = work.params.get("curve_snapshots", ())
    return [path for path in found if int(path.stem.removeprefix("ema-")) in asked] or found


def _published(work: Work, ruler: evaluator.Evaluator) -> Published | None:
    # None if evaluate.fid does not ask for it.
    if not (wanted := work.params.get("fid")):
        return None
    name = wanted["reference"]
    path = Path(name) if Path(name).suffix else fetching.fetch(name, say=work.say)
    mean, cov = fid.load_statistics(path)
    return Published(
        _space(work, ruler, "inception"),
        (mean, cov, arithmetic.symmetric_root(cov)),
        f"inception_{fid.reference_label(name)}",
    )


def _space(work: Work, ruler: evaluator.Evaluator, name: str) -> Any:
    return ruler.spaces.get(name) or features.feature_space(name, None, work.machine.device)


def _fid(work: Work, ruler: evaluator.Evaluator, images: Images, asked: Published) -> dict[str, float]:
    cleanly = None
    if work.params["fid"].get("clean"):
        cleanly = _space(work, ruler, clean.SPACE), clean.load_clean_reference(work.input("moments"))
    found: dict[str, float] = ruler.fid(images, asked.space, asked.reference, asked.name, cleanly)
    work.say("  ".join(f"{key} {value:.4g}" for key, value in found.items()))
    return found


def _write(work: Work, found: dict[str, float], shown: torch.Tensor, drawn: classes.Drawn) -> None:
    _save_picture(work.output("samples.png"), shown, work.params["grid"], drawn.titles)
    files.write_json(work.outputs[0], found)


def _save_picture(path: Path, images: torch.Tensor, columns: int, titles: list[str] | None = None) -> None:
    board = pictures.grid(images, columns, max(1, 32 // images.shape[-1]))
    with files.atomic(path) as temporary:
        (classes.add_row_titles(board, titles) if titles else board).save(temporary, format="PNG")
