# SPDX-License-Identifier: Apache-2.0
"""The steps of the word `teacher`: train a denoiser or convert a published one, check its samples, make pairs with it."""

from __future__ import annotations

from pathlib import Path

from eldistill import files
from eldistill.errors import Problem
from eldistill.plan import sizes
from eldistill.steps.work import Work, noting, run_training

COVERED_BY = "evaluate"


def make_step(work: Work) -> None:
    """Make the outputs of this step. Raises Problem, and NonFinite or Stopped where it trains."""
    MAKERS[work.step.kind](work)


def _teacher(work: Work) -> None:
    from eldistill.distil import provenance
    from eldistill.teacher import train as training

    def make(folder: Path) -> None:
        done = training.train_teacher(
            work.params, work.input("images"), work.outputs[0], folder, work.digest, work.machine, work.say
        )
        if not work.first:
            return
        files.write_rows(work.outputs[1], done.rows)
        files.write_json(work.outputs[2], provenance.provenance(done, work.digest, work.machine.device))

    run_training(work, make)


def _conversion(work: Work) -> None:
    from eldistill.distil import provenance
    from eldistill.teacher import convert

    here = work.plan.params.section("teacher", work.step.name)["file"]
    about = convert.convert_teacher(work.params, work.outputs[0], here, work.say)
    _check_size(work, about["shape"])
    files.write_rows(work.outputs[1], [])
    files.write_json(work.outputs[2], provenance.origin(work.digest) | {"source": about["source"]})
    work.say(f"{work.step.name}: {about['source']['name']}, sha256 {about['source']['sha256']}, {about['config']['network']} "
             f"for images of shape {about['shape']} and {about['label_dim']} classes")  # fmt: skip


def _check_size(work: Work, shape: list[int]) -> None:
    """Raise Problem if a converted network makes images of another shape than its data setting has, as far as params.yaml says it.
    The file stays as a conversion of what was given, but without its recipe no step takes it."""
    name = work.plan.params.section("teacher", work.step.name)["data"]
    data = work.plan.params.section("data", name)
    known = {"channels": (shape[0], sizes.channels_of(data)), "pixels a side": (shape[-1], sizes.side_of(data))}
    for what, (made, wanted) in known.items():
        if wanted is not None and made != wanted:
            work.outputs[0].unlink(missing_ok=True)
            raise Problem(
                f"teacher {work.step.name} makes images with {made} {what}, but data.{name} in params.yaml has {wanted}; give a network "
                f"that was trained on such images, or change data.{name}"
            )


def _check(work: Work) -> None:
    from eldistill.teacher import check
    from eldistill.training import lock, state

    features = work.params["features"]
    teacher, guide = work.teacher()
    folder = work.state = state.state_folder(work.digest)
    with lock.lock(folder):
        with noting(work, folder, check.Disagrees):  # else a cluster would measure again what it retries
            found = check.check_teacher(
                work.params, teacher, work.optional(f"reference-{features}"), work.optional(features), work.machine, work.say,
                work.optional("images"), guide, folder,
            )  # fmt: skip
    files.write_json(work.outputs[0], found)


def _pairs(work: Work) -> None:
    from eldistill.teacher import pairs
    from eldistill.training import lock, state

    folder = work.state = state.state_folder(work.digest)
    with lock.lock(folder):
        machine, (teacher, guide) = work.machine, work.teacher()
        pairs.make_pairs(
            work.params, teacher, work.outputs[0], folder, machine.batch, machine.device, work.say,
            work.optional("images"), guide,
        )  # fmt: skip


MAKERS = {"teacher": _teacher, "conversion": _conversion, "check": _check, "pairs": _pairs}
