# SPDX-License-Identifier: Apache-2.0
"""The steps of the word `teacher`: train a denoiser or convert a published one, check its samples, make pairs with it."""

from __future__ import annotations

from pathlib import Path

from eldistill import files
from eldistill.steps.work import Work, run_training

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
    files.write_rows(work.outputs[1], [])
    files.write_json(work.outputs[2], provenance.origin(work.digest) | {"source": about["source"]})
    work.say(f"{work.step.name}: {about['source']['name']}, sha256 {about['source']['sha256']}, {about['config']['network']} "
             f"for images of shape {about['shape']} and {about['label_dim']} classes")  # fmt: skip


def _check(work: Work) -> None:
    from eldistill.teacher import check

    features = work.params["features"]
    found = check.check_teacher(
        work.params, work.input("teacher"), work.optional(f"reference-{features}"), work.optional(features), work.machine, work.say,
        work.optional("images"),
    )  # fmt: skip
    files.write_json(work.outputs[0], found)


def _pairs(work: Work) -> None:
    from eldistill.teacher import pairs
    from eldistill.training import lock, state

    folder = work.state = state.state_folder(work.digest)
    with lock.lock(folder):
        machine = work.machine
        pairs.make_pairs(
            work.params, work.input("teacher"), work.outputs[0], folder, machine.batch, machine.device, work.say,
            work.optional("images"),
        )  # fmt: skip


MAKERS = {"teacher": _teacher, "conversion": _conversion, "check": _check, "pairs": _pairs}
