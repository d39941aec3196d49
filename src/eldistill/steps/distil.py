# SPDX-License-Identifier: Apache-2.0
"""The steps of the word `distil`: train a one-step generator from a teacher."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from eldistill import files
from eldistill.distil import board, prepare, provenance, run
from eldistill.errors import Lost, NonFinite
from eldistill.steps.work import Work, overwriting, run_training
from eldistill.training import compute

COVERED_BY = "evaluate"


def make_step(work: Work) -> None:
    """Make the outputs of this step. Raises Problem, and NonFinite or Stopped where it trains."""
    board.check_packages(work.machine.log)
    teacher, guide = work.teacher()
    upstream: dict[str, Any] = {"images": work.input("images"), "teacher": teacher, "guide": guide}
    upstream |= prepare.upstream_files(work.params, (Path(output) for step in work.upstream for output in step.outputs))
    upstream["start"] = work.optional("run")

    def make(folder: Path) -> None:
        done = run.train_generator(work.params, work.digest, upstream, folder, work.machine, work.say, work.recipe)
        flop = None
        # It trains on: the result must not depend on it.
        with (
            compute.without_compiled_code(work.machine.compile),
            contextlib.suppress(NonFinite, RuntimeError, MemoryError, Lost),
        ):
            flop = done.count_flop()
        if not work.first:
            return
        about = provenance.provenance(done, work.digest, work.machine.device, flop)
        files.write_json(folder / "provenance.json", about)
        with overwriting(work.step):
            run.publish_outputs(folder, work.step.outputs, Path())

    run_training(work, make)
